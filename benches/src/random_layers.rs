//! Layers made at random, of the kinds that networks have: no choice of an algorithm can have been made for them.

use kernels::conv::{Conv2dSpec, Padding, Shape};

use crate::shapes::Layer;
use crate::split_mix::SplitMix;

/// The most operations of a layer, and the least.
const OPERATIONS: std::ops::Range<f64> = 1e5..4e9;

/// `count` layers of a seed; their names are numbers.
pub fn layers(count: usize, seed: u64) -> Vec<Layer> {
    let mut generator = SplitMix(seed);
    let mut layers = Vec::new();
    while layers.len() < count {
        let (spec, shape) = layer(&mut generator);
        let Ok(sizes) = spec.sizes(shape) else { continue };
        let operations = 2.0 * sizes.y_len as f64 * (sizes.w_len / spec.out_channels) as f64;
        if OPERATIONS.contains(&operations) {
            layers.push(Layer { name: format!("random.{}", layers.len()), spec, shape });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_layers_and_another_makes_others() {
        assert_eq!(layers(20, 1), layers(20, 1));
        assert_ne!(layers(20, 1), layers(20, 2));
        assert_eq!(layers(20, 1).len(), 20);
    }
}
