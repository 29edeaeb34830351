//! Everything that is checked of one matrix product.
//!
//! On each instruction set the product is compared with the reference on one thread; every other number of threads,
//! the plain product of dense operands in the blocks of this CPU, one product alone of a batch, and every other
//! instruction set with fused multiply-adds must give the same bits. Outputs and workspaces are filled with NaN before
//! and lie against guard pages, at the other side for each number of threads; the workspace is exactly as long as was
//! asked for; inputs, and what lies between the elements of the output, must be as before. Operands that do not fit
//! must be refused, and nothing written.

use kernels::gemm::{Bias, Epilogue, Gemm, PackedLhs, PackedRhs, workspace_len};
use kernels::internals::{GemmInput, gemm_batched_within, gemm_within};
use kernels::{Error, Isa, Parallelism, View, ViewMut};

use super::case::{Along, GemmCase, Packed};
use super::data::{Matrix, Operands, expected};
use crate::check::tested_isas;
use crate::crash;
use crate::data::random;
use crate::gemm::arrangement::{Arrangement, Place};
use crate::guard::{Guarded, POISON, SENTINEL, Side};
use crate::oracle::{Expected, Rule, compare, same_bits};
use crate::pools::{Pools, THREADS};
use crate::report::{Failure, Tally};

/// What a thread that checks needs: guarded memory and pools, made once.
#[derive(Debug, Default)]
pub struct Bench {
    memory: Memory,
    pools: Pools,
}

/// One guarded buffer for each argument.
#[derive(Debug, Default)]
struct Memory {
    lhs: Guarded,
    rhs: Guarded,
    out: Guarded,
    residual: Guarded,
    bias: Guarded,
    workspace: Guarded,
}

/// What is wrong with a call that must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    Workspace,
    Rhs,
    OutRows,
    OutColumns,
    Bias,
    Residual,
    PackedFor(Isa),
}

/// What the arguments of a call are like.
#[derive(Clone, Copy)]
struct Shapes {
    rhs: [usize; 3],
    out: [usize; 3],
    residual: [usize; 3],
    bias: usize,
    workspace: usize,
}

/// A case with its operands and its reference.
struct Problem<'c> {
    case: &'c GemmCase,
    operands: Operands,
    expected: Expected,
}

/// How a call runs.
#[derive(Clone, Copy)]
struct Run {
    isa: Isa,
    threads: usize,
    side: Side,
}

/// Checks a case every way that it leaves open.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(case: &GemmCase, bench: &mut Bench, tally: &mut Tally) -> Result<(), Failure> {
    check_problem(&Problem::new(case), bench, tally)
}

fn check_problem(problem: &Problem, bench: &mut Bench, tally: &mut Tally) -> Result<(), Failure> {
    let case = problem.case;
    let rule = case.data.quantum().map_or(Rule::Bound, |quantum| Rule::Exact { quantum });
    let first_side = if random(case.seed, 77) & 1 == 0 { Side::Left } else { Side::Right };
    let mut kept: Vec<(Isa, Vec<f32>)> = Vec::new();
    tally.cases += 1;
    for isa in case.isa.map_or_else(tested_isas, |isa| vec![isa]) {
        let mut first: Option<Vec<f32>> = None;
        let mut side = first_side;
        for threads in case.threads.map_or(THREADS.to_vec(), |threads| vec![threads]) {
            let line = GemmCase { isa: Some(isa), threads: Some(threads), ..*case };
            let _running = crash::running(&line);
            let fail = |message| Failure::new(&line, message);
            let out = problem.call(Run { isa, threads, side }, bench).map_err(fail)?;
            tally.call(&name(case, isa));
            match &first {
                None => {
                    let found = compare("out", &out, &problem.expected, rule).map_err(fail)?;
                    tally.judged += found.judged as u64;
                    tally.rejected += found.rejected as u64;
                    problem.is_the_plain_one(isa, &out).map_err(fail)?;
                    first = Some(out);
                }
                // Where threads differ, one thread has to run again as well.
                Some(first) => same_bits("out", &out, first).map_err(|why| {
                    Failure::new(&GemmCase { threads: None, ..line }, format!("{threads} threads change bits: {why}"))
                })?,
            }
            side = side.other();
        }
        let Some(first) = first else { continue };
        for (other, out) in &kept {
            if *other != Isa::Portable && isa != Isa::Portable {
                same_bits("out", &first, out)
                    .map_err(|why| Failure::new(case, format!("{isa} and {other} differ: {why}")))?;
            }
        }
        if random(case.seed, isa as u64).is_multiple_of(4) {
            let line = GemmCase { isa: Some(isa), threads: Some(1), ..*case };
            let _running = crash::running(&line);
            problem.refusals(isa, first_side, bench, tally).map_err(|message| Failure::new(&line, message))?;
        }
        kept.push((isa, first));
    }
    Ok(())
}

fn name(case: &GemmCase, isa: Isa) -> String {
    let kind = match (case.batch, case.packed) {
        (Some(_), _) => "batch",
        (_, Packed::Lhs) => "packed lhs",
        (_, Packed::Rhs) => "packed rhs",
        _ => "plain",
    };
    format!("{kind}, {}, {isa}", case.blocks.name())
}

fn view<'a>(memory: &'a [f32], place: &Place) -> Result<View<'a, f32, 2>, Error> {
    let ([_, rows, columns], [_, row, column]) = (place.shape, place.strides);
    View::strided(memory, place.offset, [rows, columns], [row, column])
}

impl<'c> Problem<'c> {
    fn new(case: &'c GemmCase) -> Self {
        let operands = Operands::new(case);
        Self { case, expected: expected(case, &operands), operands }
    }

    fn shapes(&self, slots: usize) -> Result<Shapes, Error> {
        let GemmCase { m, n, k, .. } = *self.case;
        let batch = self.case.batch.unwrap_or(1);
        Ok(Shapes {
            rhs: [batch, k, n],
            out: [batch, m, n],
            residual: [1, batch * m, n],
            bias: self.operands.bias.len(),
            workspace: workspace_len(m, n, k, slots)?,
        })
    }

    /// Calls the library; gives the elements of the output.
    fn call(&self, run: Run, bench: &mut Bench) -> Result<Vec<f32>, String> {
        // Threads that have to share the workspace of one are fewer.
        let slots = if random(self.case.seed, 79).is_multiple_of(4) { 1 } else { run.threads };
        let shapes = self.shapes(slots).map_err(|error| error.to_string())?;
        let Bench { memory, pools } = bench;
        self.attempt(run, shapes, None, memory, pools)?.map_err(|error| format!("refused: {error}"))?;
        let before = &self.operands.out;
        let mut memory = memory.out.floats(before.place.len, run.side).to_vec();
        let gap = f32::from_bits(SENTINEL);
        // What is left once the elements are taken out was there before.
        let out = before.place.indices().map(|at| std::mem::replace(&mut memory[before.place.at(at)], gap)).collect();
        match memory.iter().position(|value| value.to_bits() != SENTINEL) {
            None => Ok(out),
            Some(at) => Err(format!("element {at} of the memory of the output is none of it, and was written to")),
        }
    }

    /// Calls the library with arguments of any shapes, and looks whether it left its inputs alone.
    fn attempt(
        &self,
        run: Run,
        shapes: Shapes,
        packed_for: Option<Isa>,
        memory: &mut Memory,
        pools: &mut Pools,
    ) -> Result<Result<(), Error>, String> {
        let (Self { case, operands, .. }, Run { isa, threads, side }) = (self, run);
        let (lhs, lhs_place) = fill(&mut memory.lhs, side, case.lhs, operands.lhs.place.shape, Some(&operands.lhs));
        let (rhs, rhs_place) = fill(&mut memory.rhs, side, case.rhs, shapes.rhs, Some(&operands.rhs));
        let (out, out_place) = fill(&mut memory.out, side, case.out, shapes.out, Some(&operands.out));
        let residual = case.residual.map(|lies| {
            let (memory, place) = fill(&mut memory.residual, side, lies, shapes.residual, operands.residual.as_ref());
            (&*memory, place)
        });
        let bias = memory.bias.filled(shapes.bias, side, 0);
        let given = bias.len().min(operands.bias.len());
        bias[..given].copy_from_slice(&operands.bias[..given]);
        let bias_before = bias.to_vec();
        let workspace = memory.workspace.filled(shapes.workspace, side, POISON);

        let (lhs, rhs, bias) = (&*lhs, &*rhs, &*bias);
        let made = |error: Error| format!("a view could not be made: {error}");
        let residual_view = residual.map(|(memory, place)| view(memory, &place)).transpose().map_err(made)?;
        let options = Gemm {
            accumulate: case.accumulate,
            epilogue: Epilogue {
                bias: match case.bias {
                    Along::None => Bias::None,
                    Along::Rows => Bias::Rows(bias),
                    Along::Columns => Bias::Columns(bias),
                },
                residual: residual_view,
                activation: case.activation,
            },
            isa: Some(isa),
        };
        let as_team = random(case.seed, 80).is_multiple_of(4);
        let result = if case.batch.is_some() {
            let a = View::strided(lhs, lhs_place.offset, lhs_place.shape, lhs_place.strides).map_err(made)?;
            let b = View::strided(rhs, rhs_place.offset, rhs_place.shape, rhs_place.strides).map_err(made)?;
            let mut y = ViewMut::strided(out, out_place.offset, out_place.shape, out_place.strides).map_err(made)?;
            pools.on(threads, as_team, |parallelism| match case.blocks.sizes() {
                None => options.run_batched(a, b, &mut y, workspace, parallelism),
                Some(sizes) => gemm_batched_within(&sizes, &options, (a, b), &mut y, workspace, parallelism),
            })
        } else {
            let (a, b) = (view(lhs, &lhs_place).map_err(made)?, view(rhs, &rhs_place).map_err(made)?);
            let ([_, rows, columns], [_, row, column]) = (out_place.shape, out_place.strides);
            let mut y = ViewMut::strided(out, out_place.offset, [rows, columns], [row, column]).map_err(made)?;
            let isa = packed_for.unwrap_or(isa);
            let packed = self.pack(a, b, isa).map_err(|error| format!("an operand could not be packed: {error}"))?;
            pools.on(threads, as_team, |parallelism| match (case.blocks.sizes(), &packed) {
                (None, (None, None)) => options.run(a, b, &mut y, workspace, parallelism),
                (None, (Some(a), _)) => options.run_packed_lhs(a, b, &mut y, workspace, parallelism),
                (None, (_, Some(b))) => options.run_packed_rhs(a, b, &mut y, workspace, parallelism),
                (Some(sizes), (packed_a, packed_b)) => {
                    let a = packed_a.as_ref().map_or(GemmInput::Matrix(a), GemmInput::Packed);
                    let b = packed_b.as_ref().map_or(GemmInput::Matrix(b), GemmInput::Packed);
                    gemm_within(&sizes, &options, (a, b), &mut y, workspace, parallelism)
                }
            })
        };
        if result.is_ok() {
            unchanged("lhs", lhs, &operands.lhs.image)?;
            unchanged("rhs", rhs, &operands.rhs.image)?;
            unchanged("bias", bias, &bias_before)?;
            if let (Some((memory, _)), Some(before)) = (residual, &operands.residual) {
                unchanged("residual", memory, &before.image)?;
            }
        }
        Ok(result)
    }

    /// What is packed ahead of time; some of it over another matrix.
    fn pack(
        &self,
        lhs: View<'_, f32, 2>,
        rhs: View<'_, f32, 2>,
        isa: Isa,
    ) -> Result<(Option<PackedLhs>, Option<PackedRhs>), Error> {
        let again = random(self.case.seed, 81) & 1 == 0;
        let nan = [f32::NAN];
        let other = |of: View<'_, f32, 2>| View::strided(&nan, 0, of.shape(), [0; 2]);
        Ok(match self.case.packed {
            Packed::None => (None, None),
            Packed::Lhs if again => {
                let mut packed = PackedLhs::new(other(lhs)?, Some(isa))?;
                packed.repack(lhs)?;
                (Some(packed), None)
            }
            Packed::Lhs => (Some(PackedLhs::new(lhs, Some(isa))?), None),
            Packed::Rhs if again => {
                let mut packed = PackedRhs::new(other(rhs)?, Some(isa))?;
                packed.repack(rhs)?;
                (None, Some(packed))
            }
            Packed::Rhs => (None, Some(PackedRhs::new(rhs, Some(isa))?)),
        })
    }

    /// Dense operands, one product after the other and nothing packed: the bits are those of any other way.
    fn is_the_plain_one(&self, isa: Isa, out: &[f32]) -> Result<(), String> {
        let (Self { case, operands, .. }, GemmCase { m, n, k, .. }) = (self, *self.case);
        let bias = match case.bias {
            Along::None => Bias::None,
            Along::Rows => Bias::Rows(&operands.bias),
            Along::Columns => Bias::Columns(&operands.bias),
        };
        let refused = |error: Error| format!("the plain product was refused: {error}");
        let mut workspace = vec![f32::from_bits(POISON); workspace_len(m, n, k, 1).map_err(refused)?];
        let mut plain = operands.out.values.clone();
        for b in 0..case.batch.unwrap_or(1) {
            let rows = b * m * n..(b + 1) * m * n;
            let residual = operands.residual.as_ref().map(|all| View::new(&all.values[rows.clone()], [m, n]));
            let epilogue =
                Epilogue { bias, residual: residual.transpose().map_err(refused)?, activation: case.activation };
            let lhs = View::new(&operands.lhs.values[b * m * k..(b + 1) * m * k], [m, k]).map_err(refused)?;
            let rhs = View::new(&operands.rhs.values[b * k * n..(b + 1) * k * n], [k, n]).map_err(refused)?;
            let mut view = ViewMut::new(&mut plain[rows], [m, n]).map_err(refused)?;
            Gemm { accumulate: case.accumulate, epilogue, isa: Some(isa) }
                .run(lhs, rhs, &mut view, &mut workspace, Parallelism::Serial)
                .map_err(refused)?;
        }
        same_bits("out", out, &plain).map_err(|why| format!("the plain product of dense operands differs: {why}"))
    }

    /// Operands that do not fit are refused, and the output is not touched.
    fn refusals(&self, isa: Isa, side: Side, bench: &mut Bench, tally: &mut Tally) -> Result<(), String> {
        let Bench { memory, pools } = bench;
        let mut mistakes = vec![Mistake::Workspace, Mistake::Rhs, Mistake::OutRows, Mistake::OutColumns];
        mistakes.extend((self.case.bias != Along::None).then_some(Mistake::Bias));
        mistakes.extend(self.case.residual.map(|_| Mistake::Residual));
        if self.case.packed != Packed::None {
            mistakes.extend(Isa::available().filter(|&other| other != isa).map(Mistake::PackedFor));
        }
        for mistake in mistakes {
            let mut shapes = self.shapes(1).map_err(|error| error.to_string())?;
            let mut packed_for = None;
            match mistake {
                Mistake::Workspace => shapes.workspace -= 1,
                Mistake::Rhs => shapes.rhs[1] += 1,
                Mistake::OutRows => shapes.out[1] += 1,
                Mistake::OutColumns => shapes.out[2] += 1,
                Mistake::Bias => shapes.bias += 1,
                Mistake::Residual => shapes.residual[2] += 1,
                Mistake::PackedFor(isa) => packed_for = Some(isa),
            }
            let run = Run { isa, threads: 1, side };
            if self.attempt(run, shapes, packed_for, memory, pools)?.is_ok() {
                return Err(format!("{mistake:?}: not refused"));
            }
            let place = self.case.out.place(shapes.out);
            let now = memory.out.floats(place.len, side);
            let before = &self.operands.out;
            let untouched = if place.shape == before.place.shape {
                unchanged("out", now, &before.image).is_ok()
            } else {
                now.iter().all(|value| value.to_bits() == SENTINEL)
            };
            if !untouched {
                return Err(format!("{mistake:?}: refused, but the output was written to"));
            }
            tally.refused += 1;
        }
        Ok(())
    }
}

/// The memory of an operand: as drawn, if it has the shape for which it was drawn, else sentinels.
fn fill<'m>(
    memory: &'m mut Guarded,
    side: Side,
    arrangement: Arrangement,
    shape: [usize; 3],
    drawn: Option<&Matrix>,
) -> (&'m mut [f32], Place) {
    match drawn {
        Some(drawn) if drawn.place.shape == shape => (memory.copy(&drawn.image, side), drawn.place),
        _ => {
            let place = arrangement.place(shape);
            (memory.filled(place.len, side, SENTINEL), place)
        }
    }
}

fn unchanged(name: &str, now: &[f32], before: &[f32]) -> Result<(), String> {
    let same =
        now.len() == before.len() && now.iter().zip(before).all(|(now, before)| now.to_bits() == before.to_bits());
    if same { Ok(()) } else { Err(format!("{name} was written to")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found of a product whose operands or reference were changed behind the back of the check.
    fn found(change: impl Fn(&mut Problem)) -> String {
        let case = "gemm m5 n4 k3 lhs=rows rhs=rows out=rows,gap2 data=int seed=3".parse().unwrap();
        let mut problem = Problem::new(&case);
        change(&mut problem);
        let result = check_problem(&problem, &mut Bench::default(), &mut Tally::default());
        result.map_or_else(|failure| failure.message, |()| "nothing is wrong".into())
    }

    #[test]
    fn results_and_gaps_are_looked_at() {
        assert_eq!(found(|_| {}), "nothing is wrong");
        let wrong = found(|problem| problem.expected.values[7] += 1.0);
        assert!(wrong.starts_with("out[7] is "), "{wrong}");
        let wrong = found(|problem| problem.operands.rhs.image[11] += 1.0);
        assert!(wrong.starts_with("out[3] is "), "{wrong}");
        let wrong = found(|problem| problem.operands.out.image[5] = 7.0);
        assert_eq!(wrong, "element 5 of the memory of the output is none of it, and was written to");
        let wrong = found(|problem| problem.operands.lhs.values[0] += 1.0);
        assert!(wrong.starts_with("the plain product of dense operands differs: out[0] is "), "{wrong}");
    }
}
