//! Winograd's F(2,3) along both axes, written to be read, and with the mistakes that tiles have of their own.

use kernels::conv::{Conv2dSpec, Sizes};

use super::{Fault, at};

/// Outputs of a tile, along an axis.
const OUTPUTS: usize = 2;
/// Inputs of a tile, and points of its polynomials: 0, 1, -1 and infinity.
const INPUTS: usize = 4;

type Tile = [[f32; INPUTS]; INPUTS];

/// Whether there are tiles for a spec.
pub(super) fn can_do(spec: &Conv2dSpec) -> bool {
    spec.groups == 1 && spec.kernel == [3, 3] && spec.stride == [1, 1] && spec.dilation == [1, 1]
}

/// `Bᵀ d` of a row.
fn input(d: [f32; INPUTS]) -> [f32; INPUTS] {
    [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
}

/// `G w` of a row.
fn weight(fault: Fault, w: [f32; 3]) -> [f32; INPUTS] {
    let half = if fault == Fault::TileConstantWrong { 0.25 } else { 0.5 };
    [w[0], (w[0] + w[1] + w[2]) * half, (w[0] - w[1] + w[2]) * 0.5, w[2]]
}

/// `Aᵀ m` of a row.
fn output(m: [f32; INPUTS]) -> [f32; OUTPUTS] {
    [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
}

fn transposed(tile: Tile) -> Tile {
    std::array::from_fn(|row| std::array::from_fn(|column| tile[column][row]))
}

/// Writes the tiles' outputs over those of `y`, which are computed by definition: they stay where a tile's are not
/// finite.
pub(super) fn forward(
    fault: Fault,
    spec: &Conv2dSpec,
    sizes: &Sizes,
    batch: usize,
    [x, weights]: [&[f32]; 2],
    y: &mut [f32],
) {
    let [height, width] = sizes.output;
    let mut sums: Tile = Default::default();
    for n in 0..batch {
        for oc in 0..spec.out_channels {
            for top in (0..height).step_by(OUTPUTS) {
                for left in (0..width).step_by(OUTPUTS) {
                    if fault != Fault::TileSumsKept {
                        sums = Default::default();
                    }
                    for ic in 0..spec.in_channels {
                        let pixel = |i: usize, j: usize| {
                            let h = (top + i).checked_sub(spec.padding.top).filter(|&h| h < sizes.input[0]);
                            let w = (left + j).checked_sub(spec.padding.left).filter(|&w| w < sizes.input[1]);
                            let (Some(h), Some(w)) = (h, w) else { return 0.0 };
                            x[at(spec.layout, spec.in_channels, sizes.input, [n, ic, h, w])]
                        };
                        let filter = &weights[(oc * spec.in_channels + ic) * 9..][..9];
                        let d: Tile = std::array::from_fn(|i| input(std::array::from_fn(|j| pixel(i, j))));
                        let d = transposed(transposed(d).map(input));
                        let u: [[f32; INPUTS]; 3] =
                            std::array::from_fn(|i| weight(fault, std::array::from_fn(|j| filter[3 * i + j])));
                        // By columns, so turned.
                        let u: Tile = std::array::from_fn(|j| weight(fault, std::array::from_fn(|i| u[i][j])));
                        for (i, row) in sums.iter_mut().enumerate() {
                            for (j, sum) in row.iter_mut().enumerate() {
                                *sum += u[j][i] * d[i][j];
                            }
                        }
                    }
                    let half = sums.map(output);
                    let columns: [[f32; OUTPUTS]; OUTPUTS] =
                        std::array::from_fn(|j| output(std::array::from_fn(|i| half[i][j])));
                    let spoilt = fault == Fault::TileSpoilt && columns.as_flattened().iter().any(|y| !y.is_finite());
                    for (j, column) in columns.iter().enumerate() {
                        for (i, &value) in column.iter().enumerate() {
                            let (i, j) = if fault == Fault::TileTransposed { (j, i) } else { (i, j) };
                            let fits = top + i < height && left + j < width;
                            if !fits && (fault != Fault::TileUnclipped || top + i >= height) {
                                continue;
                            }
                            let to = at(spec.layout, spec.out_channels, sizes.output, [n, oc, top + i, left + j]);
                            if to < y.len() && (value.is_finite() || spoilt) {
                                y[to] = value;
                            }
                        }
                    }
                }
            }
        }
    }
}
