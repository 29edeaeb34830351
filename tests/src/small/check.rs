//! Everything that is checked of one small kernel.
//!
//! Each call is compared with the reference on one thread, on each instruction set; every other number of threads, and
//! every other instruction set with fused multiply-adds, must give the same bits. All slices lie against guard pages,
//! at the other side for each number of threads; outputs and workspaces are filled with NaN before; the workspace is
//! exactly as long as was asked for; inputs must be as before. Any one slice of another length must be refused, and
//! nothing written.

use kernels::{Execution, Isa};

use super::call::{Call, Output};
use super::case::SmallCase;
use crate::check::tested_isas;
use crate::crash;
use crate::data::random;
use crate::guard::{Guarded, POISON, SENTINEL, Side};
use crate::oracle::same_bits;
use crate::pools::{Pools, THREADS};
use crate::report::{Failure, Tally};

/// What a thread that checks needs: guarded memory and pools, made once.
#[derive(Debug, Default)]
pub struct Bench {
    inputs: Vec<Guarded>,
    outputs: Vec<Guarded>,
    workspace: Guarded,
    pools: Pools,
}

/// How a call runs.
#[derive(Clone, Copy)]
struct Run {
    isa: Isa,
    threads: usize,
    side: Side,
    as_team: bool,
}

/// A slice of a call, and by how much it is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    Input(usize, isize),
    Output(usize, isize),
    Workspace,
}

/// Checks a case every way that it leaves open.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(case: &SmallCase, bench: &mut Bench, tally: &mut Tally) -> Result<(), Failure> {
    tally.cases += 1;
    case.calls().iter().enumerate().try_for_each(|(number, call)| check_call(case, number, call, bench, tally))
}

/// Elements of which a kernel makes several tasks.
const MANY: usize = 16 * 1024;

/// Checks the `number`-th call of a case.
fn check_call(
    case: &SmallCase,
    number: usize,
    call: &Call,
    bench: &mut Bench,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let isas = case.isa.map_or_else(tested_isas, |isa| vec![isa]);
    let thread_counts = case.threads.map_or(THREADS.to_vec(), |threads| vec![threads]);
    let first_side = if random(case.seed, 77) & 1 == 0 { Side::Left } else { Side::Right };
    // What there is for several threads to do may not be worth a pool, but it is worth a team.
    let as_team = call.outputs.iter().any(|output| len(output) > MANY) || random(case.seed, 80) & 1 == 0;
    let said = |why: String| format!("{}: {why}", call.name);
    let mut kept: Vec<(Isa, Vec<Vec<f32>>)> = Vec::new();
    for &isa in &isas {
        let (mut first, mut side): (Option<Vec<Vec<f32>>>, _) = (None, first_side);
        for &threads in &thread_counts {
            let line = SmallCase { isa: Some(isa), threads: Some(threads), ..*case };
            let _running = crash::running(&line);
            let fail = |why| Failure::new(&line, said(why));
            let results = run(call, Run { isa, threads, side, as_team }, None, bench).map_err(fail)?;
            results.map_err(|error| fail(format!("refused: {error}")))?;
            let got = outputs(call, side, bench);
            tally.call(&format!("{} {}, {isa}", case.kernel.name(), call.name));
            match &first {
                None => {
                    for (output, got) in call.outputs.iter().zip(&got) {
                        output.judge(got).map_err(fail)?;
                        tally.judged += got.len() as u64;
                    }
                    first = Some(got);
                }
                // Where threads differ, one thread has to run again as well.
                Some(first) => same(call, &got, first).map_err(|why| {
                    let line = SmallCase { threads: None, ..line };
                    Failure::new(&line, said(format!("{threads} threads change bits: {why}")))
                })?,
            }
            side = side.other();
        }
        let Some(first) = first else { continue };
        for (other, results) in &kept {
            if *other != Isa::Portable && isa != Isa::Portable {
                same(call, &first, results)
                    .map_err(|why| Failure::new(case, said(format!("{isa} and {other} differ: {why}"))))?;
            }
        }
        kept.push((isa, first));
    }
    if call.is_shaped && random(case.seed, 90 + number as u64).is_multiple_of(4) {
        let line = SmallCase { isa: Some(isas[0]), threads: Some(1), ..*case };
        let _running = crash::running(&line);
        let run = Run { isa: isas[0], threads: 1, side: first_side, as_team };
        refusals(call, run, bench, tally).map_err(|why| Failure::new(&line, said(why)))?;
    }
    Ok(())
}

fn same(call: &Call, got: &[Vec<f32>], wanted: &[Vec<f32>]) -> Result<(), String> {
    let mut pairs = call.outputs.iter().zip(got.iter().zip(wanted));
    pairs.try_for_each(|(output, (got, wanted))| same_bits(output.name, got, wanted))
}

fn len(output: &Output) -> usize {
    output.exact.len()
}

/// What the outputs of the last call hold.
fn outputs(call: &Call, side: Side, bench: &mut Bench) -> Vec<Vec<f32>> {
    let outputs = bench.outputs.iter_mut().zip(&call.outputs);
    outputs.map(|(memory, output)| memory.floats(len(output), side).to_vec()).collect()
}

/// Calls a kernel, some slice being wrong perhaps, and looks whether it left its inputs alone.
fn run(
    call: &Call,
    run: Run,
    mistake: Option<Mistake>,
    bench: &mut Bench,
) -> Result<Result<(), kernels::Error>, String> {
    let Run { isa, threads, side, as_team } = run;
    let Bench { inputs, outputs, workspace, pools } = bench;
    inputs.resize_with(inputs.len().max(call.inputs.len()), Guarded::default);
    outputs.resize_with(outputs.len().max(call.outputs.len()), Guarded::default);
    let inputs: Vec<&[f32]> = (inputs.iter_mut().zip(&call.inputs).enumerate())
        .map(|(number, (memory, (_, values)))| {
            let more = match mistake {
                Some(Mistake::Input(wrong, more)) if wrong == number => more,
                _ => 0,
            };
            let slice = memory.filled(values.len().saturating_add_signed(more), side, 0);
            let given = slice.len().min(values.len());
            slice[..given].copy_from_slice(&values[..given]);
            &*slice
        })
        .collect();
    let mut outputs: Vec<&mut [f32]> = (outputs.iter_mut().zip(&call.outputs).enumerate())
        .map(|(number, (memory, output))| match (mistake, &output.before) {
            (Some(Mistake::Output(wrong, more)), _) if wrong == number => {
                memory.filled(len(output).saturating_add_signed(more), side, SENTINEL)
            }
            (None, Some(before)) => memory.copy(before, side),
            _ => memory.filled(len(output), side, SENTINEL),
        })
        .collect();
    let needed = call.workspace[threads.clamp(1, 3) - 1];
    let needed = if mistake == Some(Mistake::Workspace) { needed - 1 } else { needed };
    let workspace = workspace.filled(needed, side, POISON);
    let result = pools.on(threads, as_team, |parallelism| {
        (call.run)(&inputs, &mut outputs, workspace, Execution { parallelism, isa: Some(isa) })
    });
    if mistake.is_none() {
        for (now, (name, before)) in inputs.iter().zip(&call.inputs) {
            let same = now.iter().zip(before).all(|(now, before)| now.to_bits() == before.to_bits());
            if !same {
                return Err(format!("the input {name} was written to"));
            }
        }
    }
    if let (Some(mistake), Err(_)) = (mistake, &result) {
        let untouched = outputs.iter().all(|output| output.iter().all(|value| value.to_bits() == SENTINEL));
        if !untouched {
            return Err(format!("{mistake:?}: refused, but an output was written to"));
        }
    }
    Ok(result)
}

/// Slices that are too short or too long are refused, and no output is touched.
fn refusals(call: &Call, how: Run, bench: &mut Bench, tally: &mut Tally) -> Result<(), String> {
    let mut mistakes = Vec::new();
    for (at, (_, input)) in call.inputs.iter().enumerate() {
        mistakes.push(Mistake::Input(at, 1));
        mistakes.extend((!input.is_empty()).then_some(Mistake::Input(at, -1)));
    }
    for (at, output) in call.outputs.iter().enumerate().filter(|(_, output)| !output.is_returned) {
        mistakes.push(Mistake::Output(at, 1));
        mistakes.extend((len(output) > 0).then_some(Mistake::Output(at, -1)));
    }
    mistakes.extend((call.workspace[0] > 0).then_some(Mistake::Workspace));
    for mistake in mistakes {
        if run(call, how, Some(mistake), bench)?.is_ok() {
            return Err(format!("{mistake:?}: not refused"));
        }
        tally.refused += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kernels::{Error, Execution, Parallelism};

    use super::*;
    use crate::small::call::Values;
    use crate::small::case::Kernel;

    /// Doubles its input, with a mistake.
    fn doubling(
        mistake: impl Fn(&[f32], &mut [f32], &mut [f32], Execution<'_>) + Send + Sync + 'static,
        checks_lengths: bool,
    ) -> String {
        let x: Vec<f32> = (0..9u8).map(f32::from).collect();
        let y = Output::exactly("y", &x.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        let call = Call::new("forward", vec![("x", x)], vec![y], move |inputs, outputs, workspace, execution| {
            let (x, y) = (inputs[0], &mut *outputs[0]);
            let given = [x.len(), y.len(), workspace.len()];
            if checks_lengths && given != [9, 9, 3] {
                return Err(Error::Length { argument: "x", expected: 9, given: x.len() });
            }
            x.iter().zip(&mut *y).for_each(|(x, y)| *y = 2.0 * x);
            mistake(x, y, workspace, execution);
            if given == [9, 9, 3] { Ok(()) } else { Err(Error::Length { argument: "x", expected: 9, given: x.len() }) }
        })
        .workspace(3);
        // A seed whose calls with wrong lengths are made as well.
        let seed = (0..).find(|&seed| random(seed, 90).is_multiple_of(4)).unwrap_or(0);
        let case = SmallCase { kernel: Kernel::MeanSquare(9), data: Values::Integers, seed, isa: None, threads: None };
        let result = check_call(&case, 0, &call, &mut Bench::default(), &mut Tally::default());
        result.map_or_else(|failure| failure.message, |()| "nothing is wrong".into())
    }

    #[test]
    fn mistakes_of_kernels_are_found() {
        assert_eq!(doubling(|_, _, _, _| {}, true), "nothing is wrong");
        let found = doubling(|_, y, _, _| y[8] = f32::from_bits(y[8].to_bits() + 1), true);
        assert!(found.starts_with("forward: y[8] is 1.6000002e1 instead of 1.6e1"), "{found}");
        let found = doubling(|_, y, _, _| y[3] = f32::from_bits(SENTINEL), true);
        assert_eq!(found, "forward: y[3] was not written");
        let found = doubling(|_, y, workspace, _| y[3] = workspace[1], true);
        assert_eq!(found, "forward: y[3] holds what the workspace held");
        let on_threads = |_: &[f32], y: &mut [f32], _: &mut [f32], execution: Execution<'_>| {
            if !matches!(execution.parallelism, Parallelism::Serial) {
                y[0] = -0.0;
            }
        };
        let found = doubling(on_threads, true);
        assert!(found.starts_with("forward: 2 threads change bits: y[0] is -0e0"), "{found}");
        let found = doubling(|_, _, _, _| {}, false);
        assert_eq!(found, "forward: Input(0, 1): refused, but an output was written to");
    }
}
