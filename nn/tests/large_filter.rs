//! The lecture's filter of 15 x 15 x 3 x 4: four maps of 14 x 14 of a picture of 28 x 28 with three colours.

use nn::models::Stacked;
use nn::{Network, Parallelism, Random, Result, tensor};

/// The rounding unit of f32.
const U: f64 = f32::EPSILON as f64 / 2.0;

fn model() -> Stacked {
    Stacked { channels: 3, kernel: 15, filters: vec![4], ..Stacked::default() }
}

#[test]
fn four_filters_of_15_x_15_over_three_colours_make_four_maps_of_14_x_14() -> Result<()> {
    let mut network = Network::new(model().build(&mut Random::new(1))?);
    let summary = network.summary(&[1, 3, 28, 28])?;
    let filter = &summary.rows[0];
    assert_eq!((filter.kind, filter.shape.as_slice()), ("Conv2d", &[1, 4, 14, 14][..]));
    assert_eq!(filter.parameters, 15 * 15 * 3 * 4 + 4);
    assert_eq!(filter.parameters, 2_704);
    // Each of 784 numbers is a sum of 675 products.
    assert_eq!(filter.flops, 2.0 * 784.0 * 675.0);
    assert_eq!(summary.parameters(), 2_704 + (784 + 1) * 10);
    let mut shapes = Vec::new();
    network.visit(|name, parameter| shapes.push((name.to_string(), parameter.value().shape().to_vec())));
    assert_eq!(shapes[..2], [("0.weight".to_string(), vec![4, 3, 15, 15]), ("0.bias".to_string(), vec![4])]);
    Ok(())
}

#[test]
fn its_maps_and_its_classes_are_those_of_the_loops() -> Result<()> {
    let random = &mut Random::new(2);
    let mut network = Network::new(model().build(random)?);
    network.set_parallelism(Parallelism::Serial);
    let mut parameters: Vec<Vec<f64>> = Vec::new();
    network.visit(|_, parameter| {
        parameter.update().0.iter_mut().for_each(|value| *value += random.uniform(-0.125, 0.125));
        parameters.push(parameter.elements().iter().map(|&value| value as f64).collect());
    });
    let x: Vec<f32> = (0..2 * 3 * 28 * 28).map(|_| random.uniform(0.0, 1.0)).collect();
    let [filter, filter_bias, weight, bias] = &parameters[..] else { panic!("four parameters") };
    let mut expected = Vec::new();
    for image in x.chunks(3 * 28 * 28) {
        // Values, and the sums of magnitudes in whose roundings their errors are bounded.
        let (mut maps, mut sizes) = (Vec::new(), Vec::new());
        for oc in 0..4 {
            for oh in 0..14 {
                for ow in 0..14 {
                    let (mut sum, mut size) = (filter_bias[oc], filter_bias[oc].abs());
                    for ic in 0..3 {
                        for kh in 0..15 {
                            for kw in 0..15 {
                                let pixel = image[(ic * 28 + oh + kh) * 28 + ow + kw] as f64;
                                let tap = filter[((oc * 3 + ic) * 15 + kh) * 15 + kw];
                                sum += pixel * tap;
                                size += (pixel * tap).abs();
                            }
                        }
                    }
                    maps.push(sum.max(0.0));
                    sizes.push(size);
                }
            }
        }
        for class in 0..10 {
            let weights = &weight[class * 784..][..784];
            let sum: f64 = maps.iter().zip(weights).map(|(map, weight)| map * weight).sum();
            let size: f64 = sizes.iter().zip(weights).map(|(size, weight)| size * weight.abs()).sum();
            expected.push((sum + bias[class], size + bias[class].abs()));
        }
    }
    let x = tensor(&[2, 3, 28, 28], x)?;
    let trained = network.forward(&x)?;
    network.eval();
    assert_eq!(network.forward(&x)?, trained);
    for (&given, (exact, size)) in trained.iter().zip(expected) {
        // A product passes the roundings of a sum of 675 and a bias, and then of one of 784 and a bias.
        let bound = (677.0 + 786.0) * U * size;
        assert!((given as f64 - exact).abs() <= bound, "{given} for {exact}, may be off by {bound}");
    }
    Ok(())
}
