//! The layers beyond the first course's against PyTorch. `fixtures/pytorch.py` says how the numbers were made.

mod fixtures;

use kernels::LocalResponse;
use kernels::conv::{Accuracy, Conv1dSpec, ConvTranspose2dSpec, Padding};
use kernels::pool::Pool2dSpec;
use nn::{
    AdaptiveAvgPool2d, AvgPool2d, BatchNorm2d, BlockNames, ClipLoss, Conv1d, ConvTranspose2d, CosineLogits, Embedding,
    GELU, Gate, GroupNorm, Layer, LayerNorm, LocalResponseNorm, MSELoss, MaxPool2d, MultiHeadAttention, Parallelism,
    Random, Result, RmsNorm, SiLU, TransformerBlock,
};

use fixtures::{array, check, close, elements, fixtures, parameters, recorded};

#[test]
fn convolutions_of_lines_agree() -> Result<()> {
    let (weight, bias) = parameters("conv1d");
    let spec =
        Conv1dSpec { stride: 2, padding: [1, 1], groups: 2, accuracy: Accuracy::Direct, ..Conv1dSpec::new(4, 6, 3) };
    // The longest sum is over the 6 outputs of 2 lines; a window has 3 taps of 2 channels, or 3 of 3.
    check("conv1d", &mut Conv1d::with_weights(spec, weight, bias)?, Some(12), [0.0; 2])
}

#[test]
fn transposed_convolutions_agree() -> Result<()> {
    let (weight, bias) = parameters("conv_transpose");
    let spec = ConvTranspose2dSpec::new(3, 4, [3, 3]).stride([2, 2]).padding(Padding::all(1)).output_padding([1, 1]);
    // A bias sees the 6 x 8 outputs; a weight the 3 x 4 inputs, a pixel at most 9 taps of 4 channels.
    check("conv_transpose", &mut ConvTranspose2d::with_weights(spec, weight, bias)?, Some(48), [0.0; 2])?;
    let (weight, bias) = parameters("conv_transpose_grouped");
    let spec = ConvTranspose2dSpec::new(4, 2, [2, 3]).stride([1, 2]).groups(2);
    // 6 taps, 12 pixels.
    check("conv_transpose_grouped", &mut ConvTranspose2d::with_weights(spec, weight, bias)?, Some(12), [0.0; 2])
}

/// Compares a layer without parameters whose numbers are sums of numbers below 1, or their means.
fn check_sums(name: &str, layer: &mut dyn Layer, longest: usize) -> Result<()> {
    let case = fixtures(name);
    let y = layer.forward(&[&array(&case, "x").into_shared()], Parallelism::Current)?;
    let dx = layer.backward(&array(&case, "dy").into_shared(), Parallelism::Current)?.remove(0);
    for (result, given) in [("y", y), ("dx", dx)] {
        let expected = array(&case, result);
        assert_eq!(given.shape(), expected.shape(), "{name}.{result}");
        let scale = vec![1.0; expected.len()];
        let given: Vec<f32> = given.iter().copied().collect();
        close(&format!("{name}.{result}"), &given, &elements(&case, result), &scale, longest as f64 + 2.0);
    }
    Ok(())
}

#[test]
fn poolings_agree() -> Result<()> {
    // A pixel is the largest of up to four windows, whose gradients may cancel.
    let ceil = Pool2dSpec::new([3, 3]).stride([2, 2]).ceil_mode(true);
    check_sums("pool_ceil", &mut MaxPool2d::new(ceil)?, 4)?;
    let average = Pool2dSpec::new([3, 3]).stride([2, 2]).padding(Padding::all(1));
    check_sums("average_pool", &mut AvgPool2d::new(average.count_include_pad(true))?, 9)?;
    let ceil = Pool2dSpec::new([2, 3]).stride([2, 2]).padding(Padding::symmetric([0, 1])).ceil_mode(true);
    check_sums("average_pool_ceil", &mut AvgPool2d::new(ceil.count_include_pad(false))?, 6)?;
    // Windows of up to 3 x 3.
    check_sums("adaptive_pool", &mut AdaptiveAvgPool2d::new([3, 2])?, 9)?;
    check_sums("global_pool", &mut AdaptiveAvgPool2d::global(), 20)
}

#[test]
fn gates_agree() -> Result<()> {
    // x g(x), with |x| up to 3 and g and its derivative below 1.2 and a few ULP off: some roundings of 3, twice.
    check_sums("gelu", &mut GELU::default(), 40)?;
    check_sums("gelu_tanh", &mut GELU::tanh(), 40)?;
    check_sums("gelu_quick", &mut GELU::quick(), 40)?;
    check_sums("silu", &mut SiLU::default(), 40)
}

#[test]
fn normalisations_agree() -> Result<()> {
    // Sums of 10 to 24 numbers with deviations above a quarter: dividing by them, and by their squares on the way back,
    // makes 4 and 16 roundings of each.
    let roundings = 24.0 * 16.0;
    recorded("layer_norm", &mut LayerNorm::new(10)?, roundings)?;
    recorded("rms_norm", &mut RmsNorm::new(10)?, roundings)?;
    recorded("group_norm", &mut GroupNorm::new(2, 6)?, roundings)?;
    // What is kept for the examination is compared as well.
    recorded("batch_norm", &mut BatchNorm2d::new(3)?, roundings)?;
    let mut examined = BatchNorm2d::new(3)?;
    examined.set_training(false);
    recorded("batch_norm_eval", &mut examined, roundings)
}

#[test]
fn local_response_normalisation_agrees() -> Result<()> {
    let norm = LocalResponse { size: 5, alpha: 0.5, beta: 0.75, k: 2.0 };
    // Sums of 5 squares below 4; the power is an exponential of a logarithm, some ten roundings.
    recorded("local_response", &mut LocalResponseNorm::new(norm)?, 4.0 * (5.0 + 12.0))
}

#[test]
fn words_agree() -> Result<()> {
    // A word occurs three times.
    recorded("embedding", &mut Embedding::new(7, 4, &mut Random::new(0))?, 3.0)
}

#[test]
fn attention_agrees() -> Result<()> {
    let layer = || Ok::<_, nn::Error>(MultiHeadAttention::new(6, 2, &mut Random::new(0))?.pytorch_names());
    // Projections are sums of 6 products, up to 7 in magnitude and mostly below 2; scores sums of 3 of their products;
    // what they err by, times a score, is what a probability errs by. Gradients go all the way back.
    let roundings = 300.0;
    recorded("attention", &mut layer()?, roundings)?;
    recorded("attention_causal", &mut layer()?.causal(true)?, roundings)?;
    recorded("attention_cross", &mut layer()?, roundings)
}

#[test]
fn encoder_and_decoder_layers_agree() -> Result<()> {
    let random = &mut Random::new(0);
    // Attention, once or twice, in front of normalisation by deviations that may be a tenth of what they are of.
    let roundings = 3000.0;
    for (name, norm_first, gate) in [("last", false, Gate::Relu), ("first", true, Gate::Gelu)] {
        let encoder = TransformerBlock {
            hidden: 8,
            norm_first,
            gate,
            names: BlockNames::PYTORCH_ENCODER,
            ..TransformerBlock::encoder(6, 2)
        };
        recorded(&format!("encoder_{name}"), &mut encoder.build(random)?, roundings)?;
        let decoder =
            TransformerBlock { causal: true, is_cross: true, names: BlockNames::PYTORCH_DECODER, ..encoder.clone() };
        recorded(&format!("decoder_{name}"), &mut decoder.build(random)?, roundings)?;
    }
    Ok(())
}

#[test]
fn the_squared_error_agrees() -> Result<()> {
    let case = fixtures("mse");
    let mut loss = MSELoss::default();
    let [y, target] = ["y", "target"].map(|name| array(&case, name).into_shared());
    let mean = loss.forward(&y, &target, Parallelism::Current)?;
    // 66 squares, each rounded three times; all are positive.
    let expected = elements(&case, "mean");
    close("mean", &[mean], &expected, &expected, 66.0 + 3.0);
    let expected = elements(&case, "dy");
    let scale: Vec<f32> = expected.iter().map(|x| x.abs()).collect();
    close("dy", loss.backward()?.as_slice().unwrap(), &expected, &scale, 4.0);
    Ok(())
}

#[test]
fn the_contrastive_loss_agrees() -> Result<()> {
    let case = fixtures("clip_loss");
    let [images, texts] = ["images", "texts"].map(|name| array(&case, name).into_shared());
    let (mut cosines, mut loss) = (CosineLogits::new(), ClipLoss::default());
    cosines.visit("", &mut |_, scale| scale.update().0.copy_from_slice(&elements(&case, "logit_scale")));
    let z = cosines.forward(&[&images, &texts], Parallelism::Current)?;
    let value = loss.forward(&z, Parallelism::Current)?;
    let mut gradients = cosines.backward(&loss.backward()?, Parallelism::Current)?;
    let mut of_scale = Vec::new();
    cosines.visit("", &mut |_, scale| of_scale.extend_from_slice(scale.gradient_elements()));
    let given = [
        ("z", z.as_slice().unwrap()),
        ("loss", &[value]),
        ("d_texts", gradients.pop().unwrap().as_slice().unwrap()),
        ("d_images", gradients.pop().unwrap().as_slice().unwrap()),
        ("d_logit_scale", &of_scale),
    ]
    .map(|(name, given)| (name, given.to_vec()));
    for (name, given) in given {
        let expected = elements(&case, name);
        // Cosines err by the roundings of 9 features and two lengths, a scale below e makes logits of them, and the
        // loss sums 5 of their exponentials, twice.
        close(name, &given, &expected, &vec![1.0; expected.len()], 3.0 * (2.0 * 9.0 + 16.0) * 2.0);
    }
    Ok(())
}
