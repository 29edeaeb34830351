//! The models against the figures that are published for them: parameters, operations, the shape behind each layer.

mod tables;

use nn::models::{
    AlexNet, Clip, Encoder, Fcn, GoogLeNet, LanguageModel, LeNet5, NiN, Perceptron, Sentiment, Stacked, Tower,
    Transformer, VisionTransformer,
};
use nn::{Layer, Network, Random, Result, Summary, Tensor, tensor};

const IMAGENET: [usize; 4] = [1, 3, 224, 224];

fn summary(layer: impl Layer + 'static, input: &[usize]) -> Summary {
    Network::new(layer).summary(input).unwrap()
}

/// The shapes behind the layers of some kinds, without the batch.
fn shapes(summary: &Summary, kinds: &[&str]) -> Vec<Vec<usize>> {
    summary.rows.iter().filter(|row| kinds.contains(&row.kind)).map(|row| row.shape[1..].to_vec()).collect()
}

fn random() -> Random {
    Random::new(1)
}

#[test]
fn the_perceptron_has_its_two_layers() {
    let summary = summary(Perceptron::default().build(&mut random()).unwrap(), &[1, 1, 28, 28]);
    tables::check("perceptron", &summary);
    assert_eq!(summary.parameters(), 407_050);
    assert_eq!(shapes(&summary, &["Linear"]), [[512], [10]]);
}

#[test]
fn lenet_5_has_the_parameters_and_the_maps_of_its_paper() {
    let summary = summary(LeNet5::default().build(&mut random()).unwrap(), &[1, 1, 28, 28]);
    tables::check("lenet5", &summary);
    assert_eq!(summary.parameters(), 61_706);
    assert_eq!(shapes(&summary, &["Conv2d"]), [[6, 28, 28], [16, 10, 10]]);
    assert_eq!(shapes(&summary, &["MaxPool2d"]), [[6, 14, 14], [16, 5, 5]]);
    assert_eq!(shapes(&summary, &["Linear"]), [[120], [84], [10]]);
    // 117,600 + 240,000 multiply-adds of the convolutions, 48,000 + 10,080 + 840 of the others.
    assert_eq!(summary.flops(), 2.0 * 416_520.0);
}

#[test]
fn alexnet_is_that_of_torchvision() {
    let summary = summary(AlexNet::default().build(&mut random()).unwrap(), &IMAGENET);
    tables::check("alexnet", &summary);
    assert_eq!(summary.parameters(), 61_100_840);
    // torchvision publishes 0.71 billion multiply-adds.
    assert_eq!(format!("{:.2}", summary.flops() / 2e9), "0.71");
    let maps = [[64, 55, 55], [192, 27, 27], [384, 13, 13], [256, 13, 13], [256, 13, 13]];
    assert_eq!(shapes(&summary, &["Conv2d"]), maps);
    assert_eq!(shapes(&summary, &["MaxPool2d", "AdaptiveAvgPool2d"])[1..], [[192, 13, 13], [256, 6, 6], [256, 6, 6]]);
    let names: Vec<&str> = summary.rows.iter().filter(|row| row.parameters > 0).map(|row| row.name.as_str()).collect();
    let expected = ["features.0", "features.3", "features.6", "features.8", "features.10"];
    assert_eq!(names, [&expected[..], &["classifier.1", "classifier.4", "classifier.6"]].concat());
}

#[test]
fn network_in_network_has_its_four_blocks() {
    let summary = summary(NiN::default().build(&mut random()).unwrap(), &IMAGENET);
    tables::check("nin", &summary);
    assert_eq!(summary.parameters(), 7_595_176);
    let maps: Vec<Vec<usize>> = shapes(&summary, &["Conv2d"]).into_iter().step_by(3).collect();
    assert_eq!(maps, [[96, 54, 54], [256, 27, 27], [384, 13, 13], [1024, 6, 6]]);
    assert_eq!(shapes(&summary, &["MaxPool2d"]), [[96, 27, 27], [256, 13, 13], [384, 6, 6]]);
    assert_eq!(shapes(&summary, &["Flatten"]), [[1000]]);
}

#[test]
fn googlenet_has_the_parameters_and_the_maps_of_its_paper() {
    let paper = GoogLeNet { batch_norm: false, ..GoogLeNet::default() };
    let summary = summary(paper.build(&mut random()).unwrap(), &IMAGENET);
    tables::check("googlenet.paper", &summary);
    // Caffe's model, without the two classifiers for training.
    assert_eq!(summary.parameters(), 6_998_552);
    // The paper's table counts 1.5 billion multiply-adds.
    assert_eq!(format!("{:.1}", summary.flops() / 2e9), "1.6");
    let expected = [
        [256, 28, 28],
        [480, 28, 28],
        [512, 14, 14],
        [512, 14, 14],
        [512, 14, 14],
        [528, 14, 14],
        [832, 14, 14],
        [832, 7, 7],
        [1024, 7, 7],
    ];
    assert_eq!(shapes(&summary, &["Concat"]), expected);
    let branch = summary.rows.iter().find(|row| row.name == "inception3a.branch2.1.conv").unwrap();
    assert_eq!((branch.details.as_str(), branch.parameters), ("96->128 3x3 padding 1,1,1,1", 96 * 128 * 9 + 128));
}

#[test]
fn googlenet_is_that_of_torchvision() {
    let summary = summary(GoogLeNet::default().build(&mut random()).unwrap(), &IMAGENET);
    tables::check("googlenet", &summary);
    assert_eq!(summary.parameters(), 6_624_904);
    // torchvision publishes 1.50 billion multiply-adds.
    assert_eq!(format!("{:.2}", summary.flops() / 2e9), "1.50");
    let mut names = Vec::new();
    let mut network = Network::new(GoogLeNet::default().build(&mut random()).unwrap());
    network.visit_buffers(|name, _| names.push(name.to_string()));
    assert_eq!(names.len(), 2 * 57);
    assert_eq!(names[..2], ["conv1.bn.running_mean", "conv1.bn.running_var"]);
    assert!(names.contains(&"inception5b.branch4.1.bn.running_var".to_string()));
}

/// How many numbers a Transformer's block learns: attention, linear layers, normalisation.
fn of_block(features: usize, hidden: usize) -> usize {
    4 * features * (features + 1) + 2 * features * hidden + features + hidden + 4 * features
}

#[test]
fn the_vision_transformer_is_that_of_torchvision() {
    let summary = summary(VisionTransformer::b16().build(&mut random()).unwrap(), &IMAGENET);
    tables::check("vit_b_16", &summary);
    assert_eq!(summary.parameters(), 86_567_656);
    // torchvision publishes 17.56 billion multiply-adds, with the classifier and the scores.
    assert_eq!(format!("{:.2}", summary.flops() / 2e9), "17.56");
    assert_eq!(shapes(&summary, &["Conv2d"]), [[768, 14, 14]]);
    assert_eq!(
        shapes(&summary, &["ToSequence", "ClassToken", "LearnedPositions"]),
        [[196, 768], [197, 768], [197, 768]]
    );
    assert_eq!(shapes(&summary, &["MultiHeadAttention"]), vec![vec![197, 768]; 12]);
    assert_eq!(shapes(&summary, &["GELU"]), vec![vec![197, 3072]; 12]);
    assert_eq!(shapes(&summary, &["Pick", "Linear"])[24..], [vec![768], vec![1000]]);

    let mut parameters = Vec::new();
    let mut network = Network::new(VisionTransformer::b16().build(&mut random()).unwrap());
    network.visit(|name, parameter| parameters.push((name.to_string(), parameter.value().shape().to_vec())));
    let named = |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, shape)| shape.as_slice());
    assert_eq!(parameters.len(), 4 + 12 * 12 + 4);
    assert_eq!(named("class_token"), Some(&[1, 1, 768][..]));
    assert_eq!(named("conv_proj.weight"), Some(&[768, 3, 16, 16][..]));
    assert_eq!(named("encoder.pos_embedding"), Some(&[1, 197, 768][..]));
    let layer = "encoder.layers.encoder_layer_11";
    assert_eq!(named(&format!("{layer}.self_attention.in_proj_weight")), Some(&[2304, 768][..]));
    assert_eq!(named(&format!("{layer}.self_attention.in_proj_bias")), Some(&[2304][..]));
    assert_eq!(named(&format!("{layer}.self_attention.out_proj.bias")), Some(&[768][..]));
    for name in ["ln_1.weight", "ln_2.bias", "mlp.0.weight", "mlp.3.weight"] {
        assert!(named(&format!("{layer}.{name}")).is_some(), "{name}");
    }
    assert!(named("encoder.ln.weight").is_some() && named("heads.head.weight").is_some());
}

#[test]
fn smaller_vision_transformers_have_their_parameters() {
    let count = |model: VisionTransformer| Network::new(model.build(&mut random()).unwrap()).parameter_count();
    assert_eq!(count(VisionTransformer::s16()), 22_050_664);
    assert_eq!(count(VisionTransformer::b32()), 88_224_232);
    assert_eq!(count(VisionTransformer::digits()), 17 * 64 + 64 + 50 * 64 + 4 * of_block(64, 256) + 128 + 650);
    let odd = VisionTransformer { patch: 5, ..VisionTransformer::digits() };
    assert!(odd.build(&mut random()).is_err());
    assert!(VisionTransformer { heads: 5, ..VisionTransformer::digits() }.build(&mut random()).is_err());
}

#[test]
fn an_encoder_has_the_blocks_of_bert_base() {
    let of_bert = summary(Encoder::bert_base().build(&mut random()).unwrap(), &[1, 128, 768]);
    assert_eq!(of_bert.parameters(), 12 * of_block(768, 3072) + 2 * 768 + 2 * 769);
    assert_eq!(of_bert.parameters(), 85_057_538);
    assert_eq!(shapes(&of_bert, &["MultiHeadAttention"]), vec![vec![128, 768]; 12]);
    // 24 d^2 for each position and block, and 4 d for each pair of positions.
    let (pairs, of_position) = (128.0 * 128.0, 24.0 * 768.0 * 768.0);
    assert_eq!(of_bert.flops(), 12.0 * (128.0 * of_position + 4.0 * 768.0 * pairs) + 2.0 * 2.0 * 768.0);
    let of_clip = summary(Encoder::clip_text().build(&mut random()).unwrap(), &[1, 77, 512]);
    assert_eq!(of_clip.parameters(), 12 * of_block(512, 2048) + 2 * 512 + 512 * 513);
    assert_eq!(of_clip.rows.last().unwrap().shape, [1, 512]);
}

/// What `network.visit` shows: names and shapes.
fn parameters(layer: impl Layer + 'static) -> Vec<(String, Vec<usize>)> {
    let mut parameters = Vec::new();
    Network::new(layer)
        .visit(|name, parameter| parameters.push((name.to_string(), parameter.value().shape().to_vec())));
    parameters
}

#[test]
fn clip_is_that_of_openai() {
    let model = Clip::b32();
    let mut network = Network::new(model.build(&mut random()).unwrap());
    let summary = network.summary_all(&[&IMAGENET, &[1, 77]]).unwrap();
    tables::check("clip", &summary);
    assert_eq!(summary.parameters(), 151_277_313);
    assert_eq!(
        shapes(&summary, &["Conv2d", "ToSequence", "ClassToken"]),
        [vec![768, 7, 7], vec![49, 768], vec![50, 768]]
    );
    assert_eq!(shapes(&summary, &["Embedding"]), [[77, 512]]);
    let of_attention = shapes(&summary, &["MultiHeadAttention"]);
    assert_eq!(of_attention, [vec![vec![50, 768]; 12], vec![vec![77, 512]; 12]].concat());
    assert_eq!(shapes(&summary, &["Pick", "Projection"]), [[768], [512], [512], [512]]);
    assert_eq!(summary.rows.last().unwrap().shape, [1, 1]);
    // 24 d^2 for each position and block, and 4 d for each pair of positions that see each other.
    let tower = |n: f64, d: f64, pairs: f64| 12.0 * (24.0 * d * d * n + 4.0 * d * pairs) + 2.0 * d * 512.0;
    let patches = 2.0 * 49.0 * 768.0 * (3.0 * 32.0 * 32.0);
    let expected = patches + tower(50.0, 768.0, 50.0 * 50.0) + tower(77.0, 512.0, 77.0 * 78.0 / 2.0) + 2.0 * 512.0;
    assert_eq!(summary.flops(), expected);

    let all = parameters(model.build(&mut random()).unwrap());
    let shape_of = |name: &str| all.iter().find(|(known, _)| known == name).map(|(_, shape)| shape.as_slice());
    let expected: [(&str, &[usize]); 12] = [
        ("visual.class_embedding", &[768]),
        ("visual.positional_embedding", &[50, 768]),
        ("visual.proj", &[768, 512]),
        ("visual.conv1.weight", &[768, 3, 32, 32]),
        ("visual.ln_pre.weight", &[768]),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", &[2304, 768]),
        ("visual.transformer.resblocks.11.mlp.c_fc.bias", &[3072]),
        ("transformer.resblocks.11.attn.out_proj.weight", &[512, 512]),
        ("transformer.resblocks.0.mlp.c_proj.weight", &[512, 2048]),
        ("positional_embedding", &[77, 512]),
        ("text_projection", &[512, 512]),
        ("logit_scale", &[]),
    ];
    for (name, shape) in expected {
        assert_eq!(shape_of(name), Some(shape), "{name}");
    }
    // 12 for each block; four norms; conv1, two classes of vectors and a matrix; words, positions and a matrix; the
    // scale.
    assert_eq!(all.len(), 24 * 12 + 4 * 2 - 2 + 4 + 3 + 1);
}

#[test]
fn the_towers_of_clip_give_what_their_cosines_are_of() -> Result<()> {
    let tower = Tower { features: 16, depth: 2, heads: 2 };
    let clip =
        Clip { channels: 1, size: [8, 8], patch: 4, image: tower, context: 6, words: 20, text: tower, features: 8 };
    let mut whole = Network::new(clip.build(&mut random())?);
    let (mut images, mut texts) =
        (Network::new(clip.build_image(&mut random())?), Network::new(clip.build_text(&mut random())?));
    let state = whole.state_dict();
    images.load_state_dict(&state.under("visual."))?;
    let mut rest = nn::StateDict::new();
    for (name, tensor) in state.iter().filter(|(name, _)| !name.starts_with("visual.") && *name != "logit_scale") {
        rest.insert(name, tensor.clone());
    }
    texts.load_state_dict(&rest)?;

    let x = tensor(&[3, 1, 8, 8], (0..192).map(|at| (at % 17) as f32 / 17.0).collect())?;
    // Two texts that end with word 19; the second goes on behind it, unread.
    let read = |last: f32| tensor(&[2, 4], vec![1.0, 5.0, 7.0, 19.0, 3.0, 19.0, last, 2.0]);
    let z = whole.forward_all(&[&x, &read(4.0)?])?;
    assert_eq!(z.shape(), [3, 2]);
    assert_eq!(whole.forward_all(&[&x, &read(11.0)?])?, z);
    let (a, b) = (images.forward(&x)?, texts.forward(&read(4.0)?)?);
    let length = |x: &Tensor, row: usize| (0..8).map(|at| x[[row, at]] * x[[row, at]]).sum::<f32>().sqrt();
    for n in 0..3 {
        for m in 0..2 {
            let dot: f32 = (0..8).map(|at| a[[n, at]] * b[[m, at]]).sum();
            let cosine = dot / (length(&a, n) * length(&b, m));
            assert!((z[[n, m]] - cosine / 0.07).abs() < 1e-4, "{} for {}", z[[n, m]], cosine / 0.07);
        }
    }
    whole.eval();
    assert_eq!(whole.forward_all(&[&x, &read(4.0)?])?, z);
    Ok(())
}

#[test]
fn the_transformer_is_that_of_pytorch_and_of_its_paper() {
    let base = Transformer::base();
    let mut network = Network::new(base.build(&mut random()).unwrap());
    let summary = network.summary_all(&[&[1, 10, 512], &[1, 7, 512]]).unwrap();
    tables::check("transformer", &summary);
    // sum(p.numel() for p in torch.nn.Transformer().parameters())
    assert_eq!(summary.parameters(), 44_140_544);
    let of_attention = shapes(&summary, &["MultiHeadAttention"]);
    assert_eq!(of_attention, [vec![vec![10, 512]; 6], vec![vec![7, 512]; 12]].concat());
    assert_eq!(shapes(&summary, &["ReLU"]), [vec![vec![10, 2048]; 6], vec![vec![7, 2048]; 6]].concat());
    assert_eq!(summary.rows.last().unwrap().shape, [1, 7, 512]);
    // 24 d^2 for each position of the encoder; 28 d^2 for one of the decoder, whose keys are 4 d^2 for each of the
    // memory.
    let d2 = 512.0 * 512.0;
    let pairs = 10.0 * 10.0 + 7.0 * 8.0 / 2.0 + 7.0 * 10.0;
    assert_eq!(summary.flops(), 6.0 * (24.0 * d2 * 10.0 + 28.0 * d2 * 7.0 + 4.0 * d2 * 10.0 + 4.0 * 512.0 * pairs));

    let all = parameters(base.build(&mut random()).unwrap());
    let shape_of = |name: &str| all.iter().find(|(known, _)| known == name).map(|(_, shape)| shape.as_slice());
    let expected: [(&str, &[usize]); 7] = [
        ("encoder.layers.0.self_attn.in_proj_weight", &[1536, 512]),
        ("encoder.layers.5.linear1.weight", &[2048, 512]),
        ("encoder.norm.weight", &[512]),
        ("decoder.layers.0.multihead_attn.in_proj_weight", &[1536, 512]),
        ("decoder.layers.0.multihead_attn.out_proj.bias", &[512]),
        ("decoder.layers.5.norm3.weight", &[512]),
        ("decoder.norm.bias", &[512]),
    ];
    for (name, shape) in expected {
        assert_eq!(shape_of(name), Some(shape), "{name}");
    }
    // The paper's has no last norms: 63 million with one matrix for 37,000 words, of about 65 that its table says.
    let paper = Transformer { final_norm: false, ..base };
    let blocks = Network::new(paper.build(&mut random()).unwrap()).parameter_count();
    assert_eq!(blocks + 37_000 * 512, 63_082_496);
}

#[test]
fn planned_decoders_give_the_bits_of_their_layers() -> Result<()> {
    let model = Transformer { features: 32, heads: 4, hidden: 48, encoder: 2, decoder: 2, ..Transformer::base() };
    for norm_first in [false, true] {
        let model = Transformer { norm_first, dropout: 0.5, ..model.clone() };
        let mut network = Network::new(model.build_with_words(30, 9, &mut random())?);
        let words = |n: usize| tensor(&[2, n], (0..2 * n).map(|at| (at * 7 % 30) as f32).collect());
        network.eval();
        let mut plain = model.build_with_words(30, 9, &mut random())?;
        plain.set_training(false);
        for (source, target) in [(5, 3), (4, 9), (1, 1)] {
            let (source, target) = (words(source)?, words(target)?);
            let y = network.forward_all(&[&source, &target])?;
            assert_eq!(y.shape(), [2, target.shape()[1], 30]);
            assert_eq!(plain.forward(&[&source, &target], nn::Parallelism::Serial)?, y);
        }
        assert!(network.forward_all(&[&words(5)?]).is_err());
        assert!(network.forward_all(&[&words(5)?, &words(10)?]).is_err());
    }
    Ok(())
}

#[test]
fn models_of_text_have_their_parameters() -> Result<()> {
    let judge = Sentiment { words: 50, features: 16, heads: 2, positions: 8, depth: 2, ..Sentiment::default() };
    let of_judge = summary(judge.build(&mut random())?, &[3, 5]);
    assert_eq!(of_judge.parameters(), 58 * 16 + 2 * of_block(16, 64) + 2 * 16 + 17 * 2);
    assert_eq!(of_judge.rows.last().unwrap().shape, [3, 2]);
    let writer = LanguageModel { words: 30, features: 16, heads: 2, depth: 3, ..LanguageModel::default() };
    let of_writer = summary(writer.build(&mut random())?, &[3, 5]);
    assert_eq!(of_writer.parameters(), 30 * 16 + 3 * of_block(16, 64) + 2 * 16 + 17 * 30);
    assert_eq!(of_writer.rows.last().unwrap().shape, [3, 5, 30]);
    Ok(())
}

#[test]
fn planned_vision_transformers_give_the_bits_of_their_layers() -> Result<()> {
    let mut network = Network::new(VisionTransformer { depth: 2, ..VisionTransformer::digits() }.build(&mut random())?);
    for batch in [1, 3] {
        let x = tensor(&[batch, 1, 28, 28], (0..batch * 784).map(|at| (at % 29) as f32 / 29.0).collect())?;
        network.train();
        let y = network.forward(&x)?;
        network.eval();
        assert_eq!(network.forward(&x)?, y);
    }
    Ok(())
}

#[test]
fn a_fully_convolutional_network_makes_maps_of_pages() -> Result<()> {
    let mut network = Network::new(Fcn::default().build(&mut random())?);
    tables::check("fcn", &network.summary(&[1, 1, 28, 28])?);
    for (size, map) in [([28, 28], [1, 1]), ([32, 28], [2, 1]), ([100, 200], [19, 44])] {
        let x = Tensor::zeros(vec![2, 1, size[0], size[1]]);
        assert_eq!(network.forward(&x)?.shape(), [2, 10, map[0], map[1]]);
    }
    Ok(())
}

#[test]
fn a_page_gives_what_its_windows_give() -> Result<()> {
    // Windows far from the border of the page see no padding: the network is cut out of its own padding first.
    let mut network = Network::new(Fcn::default().build(&mut random())?);
    let pixel = |row: usize, column: usize| ((row * 37 + column * 11) % 23) as f32 / 23.0;
    let image = |top: usize, left: usize, size: usize| {
        let pixels = (0..size * size).map(|at| pixel(top + at / size, left + at % size)).collect();
        tensor(&[1, 1, size, size], pixels)
    };
    let page = network.forward(&image(0, 0, 100)?)?;
    // The part of the page from 16 on, 68 pixels large: its windows from 4 on lie as far from its border as they reach.
    let part = network.forward(&image(16, 16, 68)?)?;
    for c in 0..10 {
        for row in 2..9 {
            for column in 2..9 {
                let (a, b) = (page[[0, c, row + 4, column + 4]], part[[0, c, row, column]]);
                assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{a} and {b}");
            }
        }
    }
    Ok(())
}

#[test]
fn stacked_convolutions_shrink_the_image_by_their_filters() {
    let model = Stacked { filters: vec![1, 8, 16], ..Stacked::default() };
    tables::check("stacked", &summary(model.build(&mut random()).unwrap(), &[1, 1, 28, 28]));
    let summary = summary(model.build(&mut random()).unwrap(), &[3, 1, 28, 28]);
    assert_eq!(shapes(&summary, &["Conv2d"]), [[1, 24, 24], [8, 20, 20], [16, 16, 16]]);
    assert_eq!(summary.parameters(), 26 + (25 + 1) * 8 + (8 * 25 + 1) * 16 + (4096 + 1) * 10);
    assert!(Stacked { size: [6, 6], filters: vec![1, 1], ..Stacked::default() }.build(&mut random()).is_err());
}

#[test]
fn a_width_makes_every_hidden_layer_narrower() {
    let narrow = AlexNet { channels: 1, classes: 10, width: 0.125, ..AlexNet::default() }.build(&mut random()).unwrap();
    let summary = summary(narrow, &[1, 1, 96, 96]);
    assert_eq!(shapes(&summary, &["Linear"]), [[512], [512], [10]]);
    assert_eq!(shapes(&summary, &["Conv2d"])[0], [8, 23, 23]);
    assert!(LeNet5 { width: 0.01, ..LeNet5::default() }.build(&mut random()).is_ok());
    for width in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(LeNet5 { width, ..LeNet5::default() }.build(&mut random()).is_err());
        assert!(GoogLeNet { width, ..GoogLeNet::default() }.build(&mut random()).is_err());
    }
}
