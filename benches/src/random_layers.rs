//! Layers made at random, of the kinds that networks have: no choice of an algorithm can have been made for them.
//!
//! After them come a quarter as many of kinds that are rarer, from a generator of their own, so that a seed's other
//! layers stay what they are whatever kinds there are.

use kernels::conv::{Conv2dSpec, Padding, Shape};

use crate::shapes::Layer;
use crate::split_mix::SplitMix;

/// The most operations of a layer, and the least.
const OPERATIONS: std::ops::Range<f64> = 1e5..4e9;

/// Elements of an image and of an output of the rarer kinds, at most.
const MOST_ELEMENTS: usize = 1 << 25;

/// `count` layers of a seed and a quarter as many of rarer kinds; their names are numbers.
pub fn layers(count: usize, seed: u64) -> Vec<Layer> {
    let mut layers = some("random", count, seed, layer, usize::MAX);
    // Another stream of the same seed.
    layers.extend(some("rare", count / 4, !seed, rare, MOST_ELEMENTS));
    layers
}

fn some(
    name: &str,
    count: usize,
    seed: u64,
    layer: fn(&mut SplitMix) -> (Conv2dSpec, Shape),
    most_elements: usize,
) -> Vec<Layer> {
    let mut generator = SplitMix(seed);
    let mut layers = Vec::new();
    while layers.len() < count {
        let (spec, shape) = layer(&mut generator);
        let Ok(sizes) = spec.sizes(shape) else { continue };
        let operations = 2.0 * sizes.y_len as f64 * (sizes.w_len / spec.out_channels) as f64;
        if OPERATIONS.contains(&operations) && sizes.x_len.max(sizes.y_len) <= most_elements {
            layers.push(Layer { name: format!("{name}.{}", layers.len()), spec, shape });
        }
    }
    layers
}

fn layer(generator: &mut SplitMix) -> (Conv2dSpec, Shape) {
    let mut pick = |from: &[usize]| from[generator.next() as usize % from.len()];
    let kernel = pick(&[1, 1, 1, 3, 3, 3, 3, 5, 7]);
    let other = if pick(&[0, 0, 0, 0, 1]) == 1 { pick(&[1, 3, 5]) } else { kernel };
    let stride = pick(&[1, 1, 1, 2]);
    let size = pick(&[1, 4, 7, 10, 14, 20, 28, 40, 56, 75, 112, 160, 224]);
    let width = if pick(&[0, 0, 1]) == 1 { pick(&[3, 7, 13, 30, 60, 100]) } else { size };
    let channels = [1, 3, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 1024];
    let (in_channels, out_channels) = (pick(&channels), pick(&channels));
    let batch = pick(&[1, 1, 1, 2, 4, 8]);
    let (in_channels, out_channels, groups) = match pick(&[0, 0, 0, 0, 0, 0, 1, 2]) {
        0 => (in_channels, out_channels, 1),
        1 => (in_channels, in_channels, in_channels),
        _ => {
            let groups = pick(&[2, 4, 8, 32]);
            (in_channels * groups, out_channels * groups, groups)
        }
    };
    let spec = Conv2dSpec::new(in_channels, out_channels, [kernel, other])
        .stride([stride, stride])
        .padding(Padding::symmetric([kernel / 2, other / 2]))
        .groups(groups);
    (spec, Shape::new(batch, size, width))
}

/// Layers that some networks have and most do not.
fn rare(generator: &mut SplitMix) -> (Conv2dSpec, Shape) {
    let mut pick = |from: &[usize]| from[generator.next() as usize % from.len()];
    let size = [pick(&[7, 14, 20, 28, 33, 56, 75, 112]), pick(&[7, 14, 20, 28, 33, 56, 75, 112])];
    let (few, many) = (pick(&[1, 2, 3, 4]), pick(&[16, 24, 32, 64, 96, 128, 256, 384]));
    let (channels, batch) = (pick(&[8, 16, 32, 64, 128, 256]), pick(&[1, 1, 1, 2, 8]));
    let taps = pick(&[1, 3, 3, 3, 5, 7]);
    let square = Conv2dSpec::new(channels, many, [taps; 2]);
    let same = |taps: usize, dilation: usize| taps / 2 * dilation;
    let (spec, [height, width]) = match pick(&[0, 1, 2, 3, 4, 5]) {
        // Dilated, as for segmentation; at times along one axis, or one plane for each channel.
        0 => {
            let (taps, dilation) = (pick(&[3, 3, 3, 5]), [pick(&[1, 2, 4, 6]), pick(&[2, 3, 4, 12])]);
            let spec = match pick(&[0, 0, 0, 1]) {
                0 => Conv2dSpec::new(channels, many, [taps; 2]),
                _ => Conv2dSpec::new(channels, channels, [taps; 2]).groups(channels),
            };
            let padding = Padding::symmetric(dilation.map(|dilation| same(taps, dilation)));
            (spec.dilation(dilation).padding(padding), size)
        }
        // Strides beyond 2, not always the same down and along.
        1 => {
            let stride = [pick(&[1, 2, 3, 4]), pick(&[3, 4, 5])];
            (square.stride(stride).padding(Padding::symmetric([same(taps, 1); 2])), size)
        }
        // First layers of many taps.
        2 => {
            let (taps, stride) = (pick(&[9, 11, 11, 13]), pick(&[1, 2, 4, 4]));
            let spec = Conv2dSpec::new(few, many, [taps; 2]).stride([stride; 2]);
            (spec.padding(Padding::symmetric([pick(&[0, 2, 5]); 2])), [pick(&[64, 128, 224, 227]); 2])
        }
        // Patch embeddings: every pixel meets one tap.
        3 => {
            let taps = pick(&[2, 4, 7, 8, 14, 16, 32]);
            let channels = if taps < 7 { channels } else { few };
            (Conv2dSpec::new(channels, 4 * many, [taps; 2]).stride([taps; 2]), [taps * pick(&[4, 7, 14, 16]); 2])
        }
        // Paddings that are not half of the kernel: none, all but one tap, and another one on each side.
        4 => {
            let padding = match pick(&[0, 1, 2]) {
                0 => Padding::symmetric([0; 2]),
                1 => Padding::symmetric([taps - 1; 2]),
                _ => {
                    let sides = [0, 1, 2, 3].map(|_| pick(&[0, 1, 2, 3]));
                    Padding { top: sides[0], bottom: sides[1], left: sides[2], right: sides[3] }
                }
            };
            (square.padding(padding).stride([pick(&[1, 1, 2]); 2]), size)
        }
        // Lines of sound: one row.
        _ => {
            let (taps, dilation) = (pick(&[2, 3, 5, 7, 10, 25, 31]), pick(&[1, 1, 1, 2, 8, 64]));
            let spec = Conv2dSpec::new(pick(&[few, channels]), many, [1, taps]);
            let padding = Padding::symmetric([0, same(taps, dilation)]);
            let spec = spec.dilation([1, dilation]).stride([1, pick(&[1, 1, 2, 5])]).padding(padding);
            (spec, [1, pick(&[1000, 4096, 16_000, 44_100])])
        }
    };
    (spec, Shape::new(batch, height, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_layers_and_another_makes_others() {
        assert_eq!(layers(20, 1), layers(20, 1));
        assert_ne!(layers(20, 1), layers(20, 2));
        assert_eq!(layers(20, 1).len(), 25);
    }

    #[test]
    fn more_layers_begin_with_the_same_ones() {
        let named = |count: usize, name: &str| -> Vec<Layer> {
            layers(count, 1).into_iter().filter(|layer| layer.name.starts_with(name)).collect()
        };
        for name in ["random.", "rare."] {
            let few = named(12, name);
            assert_eq!(few, named(40, name)[..few.len()], "{name}");
        }
    }

    type Kind = (&'static str, fn(&Conv2dSpec, Shape) -> bool);

    #[test]
    fn every_rare_kind_is_made() {
        let rare: Vec<Layer> = layers(400, 1).split_off(400);
        let kinds: [Kind; 6] = [
            ("dilation", |spec, shape| spec.dilation != [1, 1] && shape.height > 1),
            ("a stride of 3 or more", |spec, _| spec.stride[1] >= 3 && spec.stride != spec.kernel),
            ("11 x 11 taps", |spec, _| spec.kernel == [11, 11]),
            ("patches", |spec, _| spec.stride == spec.kernel && spec.kernel[0] > 1),
            ("another padding on each side", |spec, _| spec.padding.top != spec.padding.bottom),
            ("a long line", |_, shape| shape.height == 1 && shape.width >= 4096),
        ];
        for (kind, is) in kinds {
            assert!(rare.iter().any(|layer| is(&layer.spec, layer.shape)), "none of {} has {kind}", rare.len());
        }
    }
}
