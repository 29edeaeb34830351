//! The calls of one algorithm on one instruction set and number of threads, and what is said about their results.

use kernels::conv::{Algorithm, Shape};
use kernels::internals::{Loops, eagerly};
use kernels::{Error, Isa, Parallelism};

use super::{Failure, Memory, Problem, Results};
use crate::case::{ConvCase, Pass};
use crate::data::random;
use crate::guard::{POISON, SENTINEL, Side};
use crate::oracle::{Expected, Rule, compare, same_bits};
use crate::stats::Stats;
use crate::subject::{BackwardPlan, ForwardPlan};

/// One algorithm on one instruction set and number of threads.
pub(super) struct Run<'a> {
    pub problem: &'a Problem,
    pub case: ConvCase,
    pub threads: usize,
    pub side: Side,
    pub memory: &'a mut Memory,
    pub results: &'a mut Results,
    pub stats: &'a mut Stats,
}

/// A call on the calling thread alone, or on all of the pool that it is inside of; then also its loops.
pub(super) fn on_threads<R>(threads: usize, call: impl FnOnce(Parallelism<'static>) -> R) -> (R, Option<Loops>) {
    if threads == 1 {
        return (call(Parallelism::Serial), None);
    }
    let (result, loops) = eagerly(|| call(Parallelism::Current));
    (result, Some(loops))
}

pub(super) fn refused(what: &str) -> impl Fn(Error) -> String {
    move |error| format!("{what} was refused: {error}")
}

fn unchanged(name: &str, now: &[f32], before: &[f32]) -> Result<(), String> {
    let same = now.iter().zip(before).all(|(now, before)| now.to_bits() == before.to_bits());
    if same { Ok(()) } else { Err(format!("the input {name} was written to")) }
}

impl Run<'_> {
    /// All calls of the plans that there are; an image alone; calls that must be refused.
    pub fn all(
        &mut self,
        forward: &Option<Box<dyn ForwardPlan>>,
        backward: &Option<Box<dyn BackwardPlan>>,
        one_image: bool,
        refusals: bool,
    ) -> Result<(), Failure> {
        if let Some(plan) = forward {
            let mut checks = || {
                self.forward(&**plan)?;
                if one_image {
                    self.one_image_forward(&**plan)?;
                }
                if refusals { self.refusals_forward(&**plan) } else { Ok(()) }
            };
            checks().map_err(|message| self.failure(Pass::Forward, message))?;
        }
        if let Some(plan) = backward {
            self.backward(&**plan)?;
            let mut checks = || {
                if one_image {
                    self.one_image_backward(&**plan)?;
                }
                if refusals { self.refusals_backward(&**plan) } else { Ok(()) }
            };
            checks().map_err(|message| self.failure(Pass::BackwardData, message))?;
        }
        Ok(())
    }

    fn failure(&self, pass: Pass, message: String) -> Failure {
        Failure { case: Box::new(self.case.pass(pass)), message }
    }

    /// Judges a result of an algorithm. Winograd's have a bound of their own, and are exact only where all that its
    /// transforms make of integers is.
    fn judge(
        &mut self,
        pass: Pass,
        name: &'static str,
        got: &[f32],
        expected: &Expected,
        algorithm: Algorithm,
    ) -> Result<(), String> {
        let Problem { case, data, reference, rule, .. } = self.problem;
        // The bias has no algorithm of its own.
        if algorithm.tile().is_some() && name != "db" {
            let expected = match name {
                "y" => reference.winograd_y(case, data, algorithm),
                "dx" => reference.winograd_dx(case, data, algorithm),
                _ => reference.winograd_dw(case, data, algorithm),
            }
            .map_err(refused("the bound"))?;
            // Halves of weights, or of sums, along each axis with the points 0, 1, -1 and infinity alone.
            let halves = |axis: usize| match case.spec.kernel[axis] {
                5 => case.spec.stride[axis] == 2,
                taps => taps < 5,
            };
            let is_exact = algorithm == Algorithm::Winograd2 && halves(0) && halves(1);
            let rule = match *rule {
                Rule::Exact { quantum } if is_exact => Rule::Exact { quantum: quantum / 4.0 },
                _ => Rule::Bound,
            };
            let found = compare(name, got, &expected, rule)?;
            self.stats.judged += found.judged as u64;
            self.stats.rejected += found.rejected as u64;
            if rule == Rule::Bound {
                self.stats.winograd_error(&self.case, algorithm, name, found.worst);
            }
            return Ok(());
        }
        let found = compare(name, got, expected, self.problem.rule)?;
        self.stats.judged += found.judged as u64;
        self.stats.rejected += found.rejected as u64;
        if self.problem.rule == Rule::Bound {
            self.stats.error(&self.case, pass, found.worst, expected.terms);
        }
        Ok(())
    }

    fn forward(&mut self, plan: &dyn ForwardPlan) -> Result<(), String> {
        let Problem { sizes, data, case, .. } = self.problem;
        let len = plan.workspace_len(case.shape, self.threads).map_err(refused("workspace_len"))?;
        let memory = &mut *self.memory;
        let x = &*memory.x.copy(&data.x, self.side);
        let residual = data.residual.as_ref().map(|residual| &*memory.residual.copy(residual, self.side));
        let y = memory.y.filled(sizes.y_len, self.side, SENTINEL);
        let workspace = memory.workspace.filled(len, self.side, POISON);
        let (done, loops) =
            on_threads(self.threads, |parallelism| plan.run(case.shape, x, residual, y, workspace, parallelism));
        done.map_err(refused("forward"))?;
        self.stats.loops(loops);
        unchanged("x", x, &data.x)?;
        if let (Some(now), Some(before)) = (residual, &data.residual) {
            unchanged("residual", now, before)?;
        }
        let y = y.to_vec();
        match &self.results.y {
            Some(first) => same_bits("y", &y, first).map_err(|why| format!("other threads, other bits: {why}"))?,
            None => {
                self.judge(Pass::Forward, "y", &y, &self.problem.reference.y, plan.algorithm())?;
                self.results.y = Some(y);
            }
        }
        self.stats.call(self.case.algorithm.unwrap_or_default(), self.case.isa.unwrap_or(Isa::Portable), Pass::Forward);
        Ok(())
    }

    fn backward(&mut self, plan: &dyn BackwardPlan) -> Result<(), Failure> {
        let (algorithm, isa) = (self.case.algorithm.unwrap_or_default(), self.case.isa.unwrap_or(Isa::Portable));
        // All that are wanted of the three calls, then what they say about each other.
        let mut separate: [Option<Vec<f32>>; 3] = [None, None, None];
        for pass in [Pass::BackwardData, Pass::BackwardWeights, Pass::Both] {
            if !self.case.runs(pass) {
                continue;
            }
            let gradients = self.gradients(plan, pass).map_err(|message| self.failure(pass, message))?;
            let reference = &self.problem.reference;
            let named = ["dx", "dw", "db"].into_iter().zip([&reference.dx, &reference.dw, &reference.db]);
            for (at, ((name, expected), got)) in named.zip(gradients).enumerate() {
                let Some(got) = got else { continue };
                let first = self.results.gradients.as_ref().map(|kept| &kept[at]);
                match (first, &separate[at]) {
                    (Some(first), _) => same_bits(name, &got, first)
                        .map_err(|why| self.failure(pass, format!("other threads, other bits: {why}")))?,
                    (None, Some(separate)) => same_bits(name, &got, separate).map_err(|why| {
                        self.failure(pass, format!("the combined call differs from the separate ones: {why}"))
                    })?,
                    (None, None) => {
                        let [data, weights] = plan.algorithms();
                        let algorithm = if name == "dx" { data } else { weights };
                        self.judge(pass, name, &got, expected, algorithm)
                            .map_err(|message| self.failure(pass, message))?;
                    }
                }
                separate[at] = Some(got);
            }
            self.stats.call(algorithm, isa, pass);
        }
        if let (None, [Some(dx), Some(dw), Some(db)]) = (&self.results.gradients, separate) {
            self.results.gradients = Some([dx, dw, db]);
        }
        Ok(())
    }

    /// Calls one backward pass; gives `dx`, `dw` and `db` as far as the pass has them.
    fn gradients(&mut self, plan: &dyn BackwardPlan, pass: Pass) -> Result<[Option<Vec<f32>>; 3], String> {
        let Problem { sizes, data, case, .. } = self.problem;
        let (shape, side) = (case.shape, self.side);
        let len = plan.workspace_len(shape, self.threads).map_err(refused("workspace_len"))?;
        let memory = &mut *self.memory;
        let (x, dy) = (&*memory.x.copy(&data.x, side), &*memory.dy.copy(&data.dy, side));
        let dx = memory.dx.filled(sizes.x_len, side, SENTINEL);
        let dw = memory.dw.filled(sizes.w_len, side, SENTINEL);
        let db = memory.db.filled(case.spec.out_channels, side, SENTINEL);
        let workspace = memory.workspace.filled(len, side, POISON);
        // Without bias in the forward pass, its gradient is sometimes not asked for.
        let wants_db = case.bias || case.seed % 2 == 0;
        let asked_db = wants_db.then_some(&mut *db);
        let (done, loops) = on_threads(self.threads, |parallelism| match pass {
            Pass::BackwardData => plan.data(shape, dy, dx, workspace, parallelism),
            Pass::BackwardWeights => plan.weights(shape, x, dy, dw, asked_db, workspace, parallelism),
            _ => plan.both(shape, x, dy, dx, dw, asked_db, workspace, parallelism),
        });
        done.map_err(refused("a backward call"))?;
        self.stats.loops(loops);
        unchanged("x", x, &data.x)?;
        unchanged("dy", dy, &data.dy)?;
        let (has_dx, has_dw) = (pass != Pass::BackwardWeights, pass != Pass::BackwardData);
        Ok([has_dx.then(|| dx.to_vec()), has_dw.then(|| dw.to_vec()), (has_dw && wants_db).then(|| db.to_vec())])
    }

    /// One image of a batch, and what is before and behind it in `x` and `y`.
    fn one_image(&self) -> Option<(Shape, std::ops::Range<usize>, std::ops::Range<usize>)> {
        let Problem { sizes, case, .. } = self.problem;
        let batch = case.shape.batch;
        if batch < 2 {
            return None;
        }
        let (x_len, y_len) = (sizes.x_len / batch, sizes.y_len / batch);
        let n = random(case.seed, 78) as usize % batch;
        Some((Shape { batch: 1, ..case.shape }, n * x_len..(n + 1) * x_len, n * y_len..(n + 1) * y_len))
    }

    /// An image alone has the bits that it has in its batch.
    fn one_image_forward(&mut self, plan: &dyn ForwardPlan) -> Result<(), String> {
        let (Some((shape, x_range, y_range)), Some(whole)) = (self.one_image(), &self.results.y) else { return Ok(()) };
        let data = &self.problem.data;
        let len = plan.workspace_len(shape, 1).map_err(refused("workspace_len"))?;
        let memory = &mut *self.memory;
        let x = memory.x.copy(&data.x[x_range], self.side);
        let residual = data.residual.as_ref().map(|all| &*memory.residual.copy(&all[y_range.clone()], self.side));
        let y = memory.y.filled(y_range.len(), self.side, SENTINEL);
        let workspace = memory.workspace.filled(len, self.side, POISON);
        plan.run(shape, x, residual, y, workspace, Parallelism::Serial).map_err(refused("one image of the batch"))?;
        same_bits("y", y, &whole[y_range]).map_err(|why| format!("an image alone differs from the batch: {why}"))
    }

    /// The gradient of an image alone has the bits that it has in its batch.
    fn one_image_backward(&mut self, plan: &dyn BackwardPlan) -> Result<(), String> {
        let (Some((shape, x_range, y_range)), Some([whole, ..])) = (self.one_image(), &self.results.gradients) else {
            return Ok(());
        };
        let len = plan.workspace_len(shape, 1).map_err(refused("workspace_len"))?;
        let memory = &mut *self.memory;
        let dy = memory.dy.copy(&self.problem.data.dy[y_range], self.side);
        let dx = memory.dx.filled(x_range.len(), self.side, SENTINEL);
        let workspace = memory.workspace.filled(len, self.side, POISON);
        plan.data(shape, dy, dx, workspace, Parallelism::Serial).map_err(refused("one image of the batch"))?;
        same_bits("dx", dx, &whole[x_range]).map_err(|why| format!("an image alone differs from the batch: {why}"))
    }
}
