//! Sizes that are said twice; blocks that leave no tile out.

use super::axis::Axis;
use super::blocks::{Blocks, Tile};
use super::points::MOST;
use super::scheme::{Scheme, Visit, with_scheme};

/// Taps, inputs, points and outputs, as a scheme has them.
struct Sizes;

impl Visit for Sizes {
    type Output = [usize; 4];

    #[inline(always)]
    fn visit<A: Scheme>(self) -> [usize; 4] {
        [A::TAPS, A::INPUTS, A::POINTS, A::OUTPUTS]
    }
}

#[test]
fn a_scheme_has_the_sizes_of_its_axis() {
    let mut seen = Vec::new();
    for (taps, stride, outputs) in (1..=12).flat_map(|t| (1..=3).flat_map(move |s| [2, 4, 6].map(|m| (t, s, m)))) {
        let gradients = [0, 1].map(|before| Axis::gradient(taps, stride, outputs, before));
        for axis in [Axis::forward(taps, stride, outputs)].into_iter().chain(gradients).flatten() {
            let sizes = [axis.taps, axis.inputs(), axis.points(), axis.outputs];
            assert_eq!(with_scheme(axis, Sizes), sizes, "taps, inputs, points and outputs of {axis:?}");
            assert!(sizes.into_iter().all(|size| (1..=MOST).contains(&size)), "{axis:?}");
            if !seen.contains(&axis) {
                seen.push(axis);
            }
        }
    }
    // One tap at three strides, 6 tiles of stride 1, and 7 of stride 2 with 9 gradients; direct are 2 to 11 taps at
    // three strides, but 3 taps at stride 1.
    assert_eq!(seen.len(), 25 + 29);
}

#[test]
fn blocks_hold_every_tile_once_and_no_more_than_they_may() {
    let mut state = 46u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let (mut alone, mut shared) = (0, 0);
    for round in 0..3000 {
        let tiles = if round % 50 == 0 { [1, 1] } else { [1 + below(30), 1 + below(30)] };
        let (batch, groups, most) = (below(6), 1 + below(3), 1 + below(224));
        let floats = 1 + below(20_000);
        let tile = Tile {
            seconds: (1 + below(1000)) as f64 * 1e-7,
            floats: [floats, floats + below(20_000)],
            near: 256 * 1024,
            weights: 1 << (16 + below(10)),
            cell: if round % 2 == 0 { 1 } else { 1 + below(9) },
            shared: if round % 3 == 0 { 1 + below(224) } else { usize::MAX },
        };
        for slots in [1, 2, 7, 9, usize::MAX] {
            let blocks = Blocks::new(tiles, batch, groups, most, slots, tile);
            let case = || format!("round {round}: {batch} x {groups} x {tiles:?} tiles, {most} a block, {slots} slots");
            let mut times = vec![0; batch * groups * tiles[0] * tiles[1] * tile.cell];
            for index in 0..blocks.count() {
                let block = blocks.at(index);
                let sizes = [block.images, block.rows, block.columns / tile.cell];
                let within = sizes.iter().zip(&blocks.block).all(|(a, b)| a <= b);
                assert!(within && (1..=most.max(tile.cell)).contains(&block.tiles()), "{}: block {index}", case());
                for image in block.image..block.image + block.images {
                    for row in block.row..block.row + block.rows {
                        let line = (image * groups + block.group) * tiles[0] + row;
                        let start = line * tiles[1] * tile.cell + block.column;
                        times[start..start + block.columns].iter_mut().for_each(|times| *times += 1);
                    }
                }
            }
            assert!(times.iter().all(|&times| times == 1), "{}", case());
            assert!(blocks.block_tiles() <= most.max(tile.cell), "{}: {:?}", case(), blocks.block);
            assert!(!blocks.shared || blocks.block_tiles() <= tile.shared, "{}: {:?}", case(), blocks.block);
            *(if blocks.shared { &mut shared } else { &mut alone }) += 1;
        }
    }
    assert!(alone > 1000 && shared > 1000, "{alone} alone, {shared} shared");
}
