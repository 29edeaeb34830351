//! One dimension of a convolution, seen from its targets: which source positions does each of them read?
//!
//! ```text
//! position    0   1   2   3   4   5   6        position p holds source element p + origin (+0 outside)
//! target 0    t0  t1  t2                       target j reads positions j * step + offset of each tap
//! target 1            t0  t1  t2               (here step 2, offsets 0, 1, 2)
//! ```
//!
//! The forward pass has one phase: targets are outputs, `step` is the stride. The gradient of the input has
//! `stride` phases: targets are input pixels with the same remainder, and they see the taps with that remainder,
//! at a step of 1. So both are the same gather, and nothing is ever scattered.

/// A tap of the kernel as one phase sees it.
#[derive(Clone, Copy, Debug)]
pub(in crate::conv) struct Tap {
    /// Its index in the kernel.
    pub index: usize,
    /// Its distance from a target's first position.
    pub offset: usize,
    /// The slot of the padded row that holds its positions, an index into [`Axis::residues`].
    pub slot: usize,
    /// Its distance from the target in that slot.
    pub shift: usize,
}

/// Targets `first, first + out_step, ...` and the taps that they see, in order of position.
#[derive(Clone, Debug)]
pub(in crate::conv) struct Phase {
    pub first: usize,
    pub taps: Vec<Tap>,
}

/// One dimension: see the module.
#[derive(Clone, Debug)]
pub(in crate::conv) struct Axis {
    /// The source element at position 0; negative where the image is padded.
    pub origin: isize,
    /// Positions between neighbouring targets of a phase.
    pub step: usize,
    /// Target elements between neighbouring targets of a phase.
    pub out_step: usize,
    /// The largest offset of any tap.
    pub reach: usize,
    pub phases: Vec<Phase>,
    /// The remainders of positions by `step` that taps read; each has its own slot in a padded row.
    pub residues: Vec<usize>,
    /// The largest shift of any tap.
    pub max_shift: usize,
}

impl Axis {
    /// The forward pass.
    pub fn forward(kernel: usize, stride: usize, dilation: usize, before: usize) -> Self {
        let phase = Phase { first: 0, taps: (0..kernel).map(|k| tap(k, k * dilation)).collect() };
        Self::new(-(before as isize), stride, 1, vec![phase])
    }

    /// The gradient of the input.
    ///
    /// With `t = target + before`, tap `k` hits it when `t - k * dilation` is a multiple of the stride, and the
    /// quotient is the output it came from. So targets of remainder `a` see the taps of remainder `a`.
    pub fn backward(kernel: usize, stride: usize, dilation: usize, before: usize) -> Self {
        let quotient = |k: usize| (k * dilation / stride) as isize;
        let first_quotient = |a: usize| before.saturating_sub(a).div_ceil(stride);
        let taps_of = |a: usize| (0..kernel).rev().filter(move |k| k * dilation % stride == a);
        let origin = (0..stride)
            .flat_map(|a| taps_of(a).map(move |k| first_quotient(a) as isize - quotient(k)))
            .min()
            .unwrap_or(0);
        let phase = |a: usize| {
            let q = first_quotient(a);
            let taps = taps_of(a).map(|k| tap(k, (q as isize - quotient(k) - origin) as usize)).collect();
            Phase { first: q * stride + a - before, taps }
        };
        Self::new(origin, 1, stride, (0..stride).map(phase).collect())
    }

    /// Whether all targets see taps that are neighbours.
    pub(super) fn sees_neighbours(&self) -> bool {
        let [phase] = &self.phases[..] else { return false };
        self.out_step == 1 && phase.taps.windows(2).all(|pair| pair[1].offset == pair[0].offset + 1)
    }

    /// The source element that the first tap of the first target reads, where all targets see the same taps.
    pub(super) fn first_tap(&self) -> isize {
        self.origin + self.phases[0].taps[0].offset as isize
    }

    /// Each target is its own source.
    pub fn identity() -> Self {
        Self::forward(1, 1, 1, 0)
    }

    fn new(origin: isize, step: usize, out_step: usize, mut phases: Vec<Phase>) -> Self {
        let (mut residues, mut reach, mut max_shift) = (Vec::new(), 0, 0);
        for tap in phases.iter_mut().flat_map(|phase| &mut phase.taps) {
            let residue = tap.offset % step;
            tap.slot = residues.iter().position(|&r| r == residue).unwrap_or_else(|| {
                residues.push(residue);
                residues.len() - 1
            });
            tap.shift = tap.offset / step;
            reach = reach.max(tap.offset);
            max_shift = max_shift.max(tap.shift);
        }
        Self { origin, step, out_step, reach, phases, residues, max_shift }
    }

    /// Targets of a phase among `len` elements.
    pub fn count(&self, phase: &Phase, len: usize) -> usize {
        len.saturating_sub(phase.first).div_ceil(self.out_step)
    }

    /// Targets of the largest phase among `len` elements.
    pub fn max_count(&self, len: usize) -> usize {
        self.phases.iter().map(|phase| self.count(phase, len)).max().unwrap_or(0)
    }

    /// Positions that `count` neighbouring targets read.
    pub fn positions(&self, count: usize) -> usize {
        count.saturating_sub(1).saturating_mul(self.step).saturating_add(self.reach + 1)
    }
}

fn tap(index: usize, offset: usize) -> Tap {
    Tap { index, offset, slot: 0, shift: 0 }
}

/// Taps of one axis: neighbours are `pitch` apart.
#[derive(Clone, Copy)]
pub(in crate::conv) struct Taps {
    /// The source position of the first target's first tap.
    pub first: isize,
    pub pitch: usize,
    pub count: usize,
}

impl Taps {
    pub fn new(axis: &Axis, taps: &[Tap]) -> Self {
        let offset = |k: usize| taps.get(k).map_or(0, |tap| tap.offset);
        let pitch = if taps.len() > 1 { offset(1) - offset(0) } else { 1 };
        debug_assert!(taps.windows(2).all(|pair| pair[1].offset - pair[0].offset == pitch));
        Self { first: axis.origin + offset(0) as isize, pitch, count: taps.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_output_and_tap_is_gathered_once() {
        for (kernel, stride, dilation, before, after, len) in
            [(3, 2, 1, 1, 1, 9), (3, 1, 1, 2, 0, 5), (2, 3, 2, 0, 4, 7), (5, 4, 3, 7, 7, 6), (1, 2, 1, 0, 0, 5)]
        {
            let window = (kernel - 1) * dilation + 1;
            let outputs = (len + before + after - window) / stride + 1;
            let mut expected = Vec::new();
            for o in 0..outputs {
                for k in 0..kernel {
                    let at = (o * stride + k * dilation) as isize - before as isize;
                    if (0..len as isize).contains(&at) {
                        expected.push((o, k, at as usize));
                    }
                }
            }
            expected.sort();
            let gathered = |axis: &Axis, targets: usize, sources: usize| {
                let mut found = Vec::new();
                for phase in &axis.phases {
                    for j in 0..axis.count(phase, targets) {
                        for tap in &phase.taps {
                            let at = (j * axis.step + tap.offset) as isize + axis.origin;
                            if (0..sources as isize).contains(&at) {
                                found.push((phase.first + j * axis.out_step, tap.index, at as usize));
                            }
                        }
                    }
                }
                found
            };
            let mut forward = gathered(&Axis::forward(kernel, stride, dilation, before), outputs, len);
            forward.sort();
            assert_eq!(forward, expected);
            let backward = gathered(&Axis::backward(kernel, stride, dilation, before), len, outputs);
            let mut backward: Vec<_> = backward.into_iter().map(|(target, k, o)| (o, k, target)).collect();
            backward.sort();
            assert_eq!(backward, expected);
        }
    }
}
