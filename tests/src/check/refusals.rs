//! Calls that must be refused: slices that are too short or too long.

use kernels::{Error, Parallelism};

use super::Problem;
use super::run::{Run, refused};
use crate::guard::{POISON, SENTINEL};
use crate::subject::{BackwardPlan, ForwardPlan};

impl Run<'_> {
    /// Slices that are too short or too long are refused, and the output is not touched.
    pub(super) fn refusals_forward(&mut self, plan: &dyn ForwardPlan) -> Result<(), String> {
        let Problem { sizes, data, case, .. } = self.problem;
        let needed = plan.workspace_len(case.shape, 1).map_err(refused("workspace_len"))?;
        for (what, x_len, y_len, workspace_len) in wrong_lengths(["x", "y"], sizes.x_len, sizes.y_len, needed) {
            let memory = &mut *self.memory;
            let x = memory.x.filled(x_len, self.side, 0);
            let residual = data.residual.as_ref().map(|residual| &*memory.residual.copy(residual, self.side));
            let y = memory.y.filled(y_len, self.side, SENTINEL);
            let workspace = memory.workspace.filled(workspace_len, self.side, POISON);
            let result = plan.run(case.shape, x, residual, y, workspace, Parallelism::Serial);
            must_be_refused(&what, result, &[y])?;
        }
        Ok(())
    }

    /// As [`Run::refusals_forward`], for the gradients.
    pub(super) fn refusals_backward(&mut self, plan: &dyn BackwardPlan) -> Result<(), String> {
        let Problem { sizes, case, .. } = self.problem;
        let (shape, side, memory) = (case.shape, self.side, &mut *self.memory);
        let needed = plan.workspace_len(shape, 1).map_err(refused("workspace_len"))?;
        for (what, dy_len, dx_len, workspace_len) in wrong_lengths(["dy", "dx"], sizes.y_len, sizes.x_len, needed) {
            let dy = memory.dy.filled(dy_len, side, 0);
            let dx = memory.dx.filled(dx_len, side, SENTINEL);
            let workspace = memory.workspace.filled(workspace_len, side, POISON);
            let result = plan.data(shape, dy, dx, workspace, Parallelism::Serial);
            // The data call may need less than the longest of the three.
            if result.is_err() || !what.starts_with("workspace") {
                must_be_refused(&what, result, &[dx])?;
            }
        }
        let channels = case.spec.out_channels;
        for (what, x_len, dw_len, workspace_len) in wrong_lengths(["x", "dw"], sizes.x_len, sizes.w_len, needed) {
            for (what, db_len) in [(what, channels), ("db one longer".to_string(), channels + 1)] {
                let (x, dy) = (memory.x.filled(x_len, side, 0), memory.dy.filled(sizes.y_len, side, 0));
                let dx = memory.dx.filled(sizes.x_len, side, SENTINEL);
                let dw = memory.dw.filled(dw_len, side, SENTINEL);
                let db = memory.db.filled(db_len, side, SENTINEL);
                let workspace = memory.workspace.filled(workspace_len, side, POISON);
                let result = plan.both(shape, x, dy, dx, dw, Some(db), workspace, Parallelism::Serial);
                must_be_refused(&what, result, &[dx, dw, db])?;
            }
        }
        Ok(())
    }
}

/// Lengths of an input, an output and a workspace, one of which is wrong, and its name.
fn wrong_lengths(
    [input_name, output_name]: [&str; 2],
    input: usize,
    output: usize,
    workspace: usize,
) -> Vec<(String, usize, usize, usize)> {
    let mut wrong = vec![
        (format!("{input_name} one longer"), input + 1, output, workspace),
        (format!("{output_name} one longer"), input, output + 1, workspace),
    ];
    if input > 0 {
        wrong.push((format!("{input_name} one shorter"), input - 1, output, workspace));
    }
    if output > 0 {
        wrong.push((format!("{output_name} one shorter"), input, output - 1, workspace));
    }
    if workspace > 0 {
        wrong.push(("workspace one shorter".into(), input, output, workspace - 1));
    }
    wrong
}

fn must_be_refused(what: &str, result: Result<(), Error>, outputs: &[&mut [f32]]) -> Result<(), String> {
    if result.is_ok() {
        return Err(format!("{what}: not refused"));
    }
    let untouched = outputs.iter().all(|output| output.iter().all(|value| value.to_bits() == SENTINEL));
    if untouched { Ok(()) } else { Err(format!("{what}: refused, but an output was written to")) }
}
