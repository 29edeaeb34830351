//! The workspace of every algorithm is bounded: what the input and the output hold together, and 4 MiB for each slot.

use kernels::conv::{Algorithm, Conv2d, Conv2dBackward, Options};
use tests::case::ConvCase;

/// Bytes of a slot.
const SLOT: usize = 4 << 20;

/// The layers of a file of the benchmarks.
fn layers(csv: &str) -> Vec<(String, ConvCase)> {
    let row = |line: &str| {
        let mut fields = line.split(',');
        let name = fields.next().unwrap().to_owned();
        let field: Vec<usize> = fields.map(|field| field.trim().parse().unwrap()).collect();
        let [n, c, h, w, k, r, s, sh, sw, ph, pw, dh, dw, groups] = field[..] else { panic!("{line}") };
        let case = ConvCase::new(c, k, [r, s]).batch(n).image(h, w).stride(sh, sw).padding(ph, ph, pw, pw);
        (name, case.dilation(dh, dw).groups(groups))
    };
    csv.lines().skip(1).filter(|line| !line.trim().is_empty()).map(row).collect()
}

#[test]
fn workspaces_hold_no_more_than_images_and_four_mebibytes_a_slot() {
    let files = [
        include_str!("../../benches/shapes/conv_networks.csv"),
        include_str!("../../benches/shapes/conv_training.csv"),
    ];
    let mut checked = std::collections::BTreeMap::new();
    for (name, case) in files.iter().flat_map(|csv| layers(csv)) {
        for case in [case, case.nhwc()] {
            let sizes = case.spec.sizes(case.shape).unwrap();
            let weights = vec![0.0; sizes.w_len];
            // The baseline stores its patch matrix: that is what makes it one.
            let algorithms =
                Algorithm::ALL.into_iter().chain([Algorithm::Auto]).filter(|a| a.to_string() != "baseline");
            for algorithm in algorithms {
                let options = Options { algorithm, ..Options::default() };
                let forward = Conv2d::with_options(case.spec, &weights, None, case.shape, options.forward());
                let backward = Conv2dBackward::with_options(case.spec, &weights, case.shape, options);
                for slots in [1, 2, 7] {
                    let bound = 4 * (sizes.x_len + sizes.y_len) + SLOT * slots;
                    if let Ok(plan) = &forward {
                        let bytes = 4 * plan.workspace_len(case.shape, slots).unwrap();
                        assert!(
                            bytes <= bound,
                            "{name} forward, {algorithm}, {slots} slots: {bytes} > {bound}, {case}"
                        );
                        *checked.entry((algorithm.to_string(), "forward")).or_insert(0) += 1;
                    }
                    if let Ok(plan) = &backward {
                        let bytes = 4 * plan.workspace_len(case.shape, slots).unwrap();
                        assert!(
                            bytes <= bound,
                            "{name} backward, {algorithm}, {slots} slots: {bytes} > {bound}, {case}"
                        );
                        *checked.entry((algorithm.to_string(), "backward")).or_insert(0) += 1;
                    }
                }
            }
        }
    }
    // Each has layers that it is for.
    for algorithm in Algorithm::ALL.into_iter().chain([Algorithm::Auto]).filter(|a| a.to_string() != "baseline") {
        for pass in ["forward", "backward"] {
            assert!(checked.contains_key(&(algorithm.to_string(), pass)), "{algorithm} {pass}: {checked:?}");
        }
    }
}
