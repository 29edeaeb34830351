//! The last step where keys are cut into pieces: the sums of all pieces of a group of rows, merged in order.

use super::call::MR;
use super::forward::{Forward, Unit};
use super::meet::fold_sums;
use super::values::store_row;
use crate::simd::{Isa, Job, Simd, dispatch, math};
use crate::softmax::ln;

/// Merges the pieces of the group of rows that is numbered like the task.
///
/// ```text
/// out = sum over pieces of exp(m[piece] - m) sums[piece] / sum over pieces of exp(m[piece] - m) total[piece]
/// ```
pub(super) struct Merge<'a>(pub Forward<'a>);

impl Merge<'_> {
    pub fn start(self, isa: Isa) {
        dispatch(isa, self);
    }
}

impl Job for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(task) = self;
        let Forward { call, outputs, cut, layout, .. } = task;
        let factor = simd.splat(std::f32::consts::LOG2_E);
        // Units go backwards: the last is the first piece.
        let unit = Unit::new(&task, task.task * cut.units + cut.units - 1);
        let unit_len = layout.unit_len(&cut);
        for index in 0..unit.tiles.count {
            let tile = unit.tile(index);
            let mut totals = [simd.zero(); 4];
            let mut maxima = [simd.splat(f32::NEG_INFINITY); 4];
            let groups = 16 / S::LANES;
            // SAFETY: every unit of the group has left its states and sums here; the outputs are the group's.
            unsafe {
                for piece in 0..cut.key_pieces {
                    let state = unit.state(&tile).add(piece * unit_len);
                    for g in 0..groups {
                        maxima[g] = simd.max(simd.load(state.add(g * S::LANES)), maxima[g]);
                    }
                }
                for g in 0..groups {
                    let nothing = simd.eq(maxima[g], simd.splat(f32::NEG_INFINITY));
                    let shift = simd.select(nothing, simd.zero(), maxima[g]);
                    for piece in 0..cut.key_pieces {
                        let state = unit.state(&tile).add(piece * unit_len);
                        let change = simd.mul(simd.sub(simd.load(state.add(g * S::LANES)), shift), factor);
                        let weight = math::exp2_nonpositive(simd, change);
                        let mut sums = [0.0f32; 16];
                        fold_sums(simd, state, &mut sums);
                        totals[g] = simd.fma(weight, simd.load(sums.as_ptr().add(g * S::LANES)), totals[g]);
                        // From here on the weight stands where the maximum was.
                        simd.store(state.add(g * S::LANES), weight);
                    }
                }
                let (mut sums, mut shifts) = ([0.0f32; 16], [0.0f32; 16]);
                for g in 0..groups {
                    simd.store(sums.as_mut_ptr().add(g * S::LANES), totals[g]);
                    simd.store(shifts.as_mut_ptr().add(g * S::LANES), maxima[g]);
                }
                for i in 0..tile.count {
                    let (head, row) = tile.places[i];
                    let out = outputs.out.head(unit.batch, head);
                    let divisor = simd.splat(if sums[i] == 0.0 { 1.0 } else { sums[i] * call.stays() });
                    if !outputs.lse.is_null() {
                        *outputs.lse.add(unit.lse_at(head, row)) = shifts[i] + ln(simd, sums[i]);
                    }
                    for at in (0..call.spec.v_dim).step_by(S::LANES) {
                        let mut sum = simd.zero();
                        for piece in 0..cut.key_pieces {
                            let weight = *unit.state(&tile).add(piece * unit_len + i);
                            let from = (tile.index * MR + i) * layout.stride + at;
                            let values = simd.load(unit.sums.add(piece * unit_len + from));
                            sum = simd.fma(simd.splat(weight), values, sum);
                        }
                        let lanes = S::LANES.min(call.spec.v_dim - at);
                        let value = simd.div(sum, divisor);
                        store_row(simd, out.at(row, at).cast_mut(), out.step, lanes, value);
                    }
                }
            }
        }
    }
}
