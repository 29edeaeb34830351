//! The workspace is bounded.

use super::{Direction, Winograd, WinogradWeights};
use crate::conv::{Algorithm, Conv2dSpec, Padding, Shape};
use crate::simd::Isa;

#[test]
fn scratch_memory_holds_what_input_and_output_hold_and_four_megabytes_a_slot() {
    for (channels, size, batch) in [
        ([64, 192], 27, 8),
        ([384, 256], 13, 8),
        ([256, 256], 56, 2),
        ([512, 512], 7, 8),
        ([64, 64], 224, 1),
        ([512, 512], 3, 1),
    ] {
        let spec = Conv2dSpec::new(channels[0], channels[1], [3, 3]).padding(Padding::all(1));
        let shape = Shape::new(batch, size, size);
        let sizes = spec.sizes(shape).unwrap();
        for algorithm in [Algorithm::Winograd2, Algorithm::Winograd2x4, Algorithm::Winograd4, Algorithm::Winograd6] {
            let axes = Winograd::axes(&spec, Direction::Forward, algorithm).unwrap();
            for isa in Isa::available() {
                for slots in [1, 2, 7] {
                    let given = WinogradWeights::new(&spec, axes, isa).workspace_len(shape, &sizes, slots);
                    let most = sizes.x_len + sizes.y_len + slots * (1 << 20) + 16;
                    assert!(given <= most, "{algorithm} on {isa}, {slots} slots: {given} of {most}, {spec} {shape:?}");
                }
            }
        }
    }
}
