//! Pooling against its definition.

use kernels::conv::{Layout, Padding, Shape};
use kernels::pool::{self, Pool2dSpec};
use kernels::{Error, Execution, Isa, Parallelism, reference};
use tests::guard::{Guarded, SENTINEL as SENTINEL_BITS, Side};

const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    fn integers(&mut self, len: usize, reach: usize) -> Vec<f32> {
        (0..len).map(|_| self.below(2 * reach + 1) as f32 - reach as f32).collect()
    }
    fn reals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }
}

/// A slice that starts one element into its allocation and is followed by a sentinel, so it is never aligned.
struct Unaligned(Vec<f32>);

impl Unaligned {
    fn new(values: &[f32]) -> Self {
        let mut all = vec![SENTINEL];
        all.extend_from_slice(values);
        all.push(SENTINEL);
        Self(all)
    }
    fn poisoned(len: usize) -> Self {
        Self::new(&vec![f32::NAN; len])
    }
    fn get(&self) -> &[f32] {
        &self.0[1..self.0.len() - 1]
    }
    fn get_mut(&mut self) -> &mut [f32] {
        let end = self.0.len() - 1;
        &mut self.0[1..end]
    }
    /// The values, once nothing around them was written.
    fn checked(self) -> Vec<f32> {
        assert_eq!([self.0[0], self.0[self.0.len() - 1]], [SENTINEL; 2]);
        self.0[1..self.0.len() - 1].to_vec()
    }
}

const SENTINEL: f32 = 12345.678;

#[derive(Clone, Copy, Debug)]
struct Case {
    spec: Pool2dSpec,
    shape: Shape,
    channels: usize,
}

impl Case {
    /// A random case whose window fits its image.
    fn random(random: &mut Random, dilated: bool) -> Self {
        loop {
            let mut pair = |from: &[usize]| [random.pick(from), random.pick(from)];
            let (kernel, stride) = (pair(&[1, 2, 2, 3, 3, 4, 5, 7]), pair(&[1, 2, 2, 3, 4, 9]));
            let dilation = if dilated { pair(&[1, 1, 1, 2, 3]) } else { [1, 1] };
            let [height, width] = pair(&[1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 35, 47, 66]);
            let window = [(kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1];
            let mut padding = || [random.below(window[0] / 2 + 1), random.below(window[1] / 2 + 1)];
            let ([top, left], [bottom, right]) = (padding(), padding());
            let spec = Pool2dSpec::new(kernel)
                .stride(stride)
                .dilation(dilation)
                .padding(Padding { top, bottom, left, right })
                .layout(random.pick(&[Layout::Nchw, Layout::Nhwc]))
                .ceil_mode(random.below(2) == 1)
                .count_include_pad(random.below(2) == 1);
            if spec.output_size([height, width]).is_ok() {
                let channels = random.pick(&[1, 2, 3, 7, 8, 9, 16, 17, 33, 40]);
                return Self { spec, shape: Shape::new(random.below(3), height, width), channels };
            }
        }
    }

    fn lens(&self) -> (usize, usize) {
        let sizes = self.spec.sizes(self.shape, self.channels).unwrap();
        (sizes.x_len, sizes.y_len)
    }

    fn max(&self, x: &[f32], dy: &[f32], run: Execution) -> (Vec<f32>, Vec<f32>) {
        let Self { spec, shape, channels } = *self;
        let (x, dy) = (Unaligned::new(x), Unaligned::new(dy));
        let (mut y, mut dx) = (Unaligned::poisoned(dy.get().len()), Unaligned::poisoned(x.get().len()));
        pool::max_forward(&spec, shape, channels, x.get(), y.get_mut(), run).unwrap();
        pool::max_backward(&spec, shape, channels, x.get(), y.get(), dy.get(), dx.get_mut(), run).unwrap();
        (y.checked(), dx.checked())
    }

    fn average(&self, x: &[f32], dy: &[f32], run: Execution) -> (Vec<f32>, Vec<f32>) {
        let Self { spec, shape, channels } = *self;
        let (x, dy) = (Unaligned::new(x), Unaligned::new(dy));
        let (mut y, mut dx) = (Unaligned::poisoned(dy.get().len()), Unaligned::poisoned(x.get().len()));
        pool::average_forward(&spec, shape, channels, x.get(), y.get_mut(), run).unwrap();
        pool::average_backward(&spec, shape, channels, dy.get(), dx.get_mut(), run).unwrap();
        (y.checked(), dx.checked())
    }
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || a.is_nan() && b.is_nan())
}

fn doubles(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

#[test]
fn max_pooling_is_exact_and_gives_its_gradient_to_the_first_maximum() {
    let mut random = Random(1);
    for _ in 0..4000 {
        let case = Case::random(&mut random, true);
        let (x_len, y_len) = case.lens();
        // Few values, so that maxima are often tied; sometimes NaN and infinities among them.
        let mut x = random.integers(x_len, 4);
        if x_len > 0 && random.below(3) == 0 {
            for special in [f32::NAN, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY] {
                x[random.below(x_len)] = special;
            }
        }
        let dy = random.integers(y_len, 100);
        let (mut y, mut dx) = (vec![0.0; y_len], vec![0.0; x_len]);
        reference::max_pool2d_forward(&case.spec, case.shape, case.channels, &x, &mut y).unwrap();
        reference::max_pool2d_backward(&case.spec, case.shape, case.channels, &x, &dy, &mut dx).unwrap();
        for isa in Isa::available() {
            let (given_y, given_dx) = case.max(&x, &dy, Execution::on(isa));
            assert!(same(&given_y, &y), "forward on {isa}: {case:?}");
            assert!(same(&given_dx, &dx), "backward on {isa}: {case:?}");
        }
    }
}

#[test]
fn small_square_windows_at_every_width_read_and_write_what_is_theirs() {
    let mut random = Random(8);
    let [mut x_memory, mut y_memory, mut dy_memory, mut dx_memory] = [(); 4].map(|()| Guarded::default());
    let specials = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
    for (kernel, stride) in [(2, 1), (2, 2), (3, 1), (3, 2)] {
        for width in 1..=67 {
            for height in [1, 2, 3, 5, 8] {
                let mut edge = || random.below(2);
                let padding = Padding { top: edge(), bottom: edge(), left: edge(), right: edge() };
                let spec = Pool2dSpec::new([kernel; 2]).stride([stride; 2]).padding(padding).ceil_mode(edge() == 1);
                if spec.output_size([height, width]).is_err() {
                    continue;
                }
                let case = Case { spec, shape: Shape::new(2, height, width), channels: 3 };
                let (x_len, y_len) = case.lens();
                let mut x = random.integers(x_len, 4);
                for _ in 0..x_len / 8 {
                    x[random.below(x_len)] = random.pick(&specials);
                }
                let dy = random.integers(y_len, 100);
                let (mut y, mut dx) = (vec![0.0; y_len], vec![0.0; x_len]);
                reference::max_pool2d_forward(&spec, case.shape, 3, &x, &mut y).unwrap();
                reference::max_pool2d_backward(&spec, case.shape, 3, &x, &dy, &mut dx).unwrap();
                for isa in Isa::available() {
                    for side in [Side::Left, Side::Right] {
                        let (x, dy) = (x_memory.copy(&x, side), dy_memory.copy(&dy, side));
                        let given_y = y_memory.filled(y_len, side, SENTINEL_BITS);
                        let given_dx = dx_memory.filled(x_len, side, SENTINEL_BITS);
                        let run = Execution::on(isa);
                        pool::max_forward(&spec, case.shape, 3, x, given_y, run).unwrap();
                        pool::max_backward(&spec, case.shape, 3, x, given_y, dy, given_dx, run).unwrap();
                        assert!(same(given_y, &y), "forward on {isa}, {side:?}: {case:?}");
                        assert!(same(given_dx, &dx), "backward on {isa}, {side:?}: {case:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn average_pooling_is_exact_where_the_divisors_are_powers_of_two() {
    let mut random = Random(2);
    let mut cases = 0;
    while cases < 1000 {
        let mut case = Case::random(&mut random, false);
        case.spec.kernel = [random.pick(&[1, 2, 4, 8]), random.pick(&[1, 2, 4, 8])];
        case.spec.padding = Padding::all(0);
        case.spec.ceil_mode = false;
        if case.spec.output_size([case.shape.height, case.shape.width]).is_err() {
            continue;
        }
        cases += 1;
        let (x_len, y_len) = case.lens();
        let (x, dy) = (random.integers(x_len, 1000), random.integers(y_len, 1000));
        let (mut y, mut dx) = (vec![0.0; y_len], vec![0.0; x_len]);
        reference::average_pool2d_forward(&case.spec, case.shape, case.channels, &x, &mut y).unwrap();
        reference::average_pool2d_backward(&case.spec, case.shape, case.channels, &dy, &mut dx).unwrap();
        for isa in Isa::available() {
            let (given_y, given_dx) = case.average(&x, &dy, Execution::on(isa));
            assert_eq!(given_y, y, "forward on {isa}: {case:?}");
            assert_eq!(given_dx, dx, "backward on {isa}: {case:?}");
        }
    }
}

#[test]
fn average_pooling_errs_by_no_more_than_its_bound() {
    let mut random = Random(3);
    for _ in 0..3000 {
        let case = Case::random(&mut random, false);
        let Case { spec, shape, channels } = case;
        let (x_len, y_len) = case.lens();
        let (x, dy) = (random.reals(x_len), random.reals(y_len));
        let absolute = |v: &[f32]| v.iter().map(|v| v.abs() as f64).collect::<Vec<_>>();
        let (mut y, mut y_scale) = (vec![0.0; y_len], vec![0.0; y_len]);
        let (mut dx, mut dx_scale) = (vec![0.0; x_len], vec![0.0; x_len]);
        reference::average_pool2d_forward(&spec, shape, channels, &doubles(&x), &mut y).unwrap();
        reference::average_pool2d_forward(&spec, shape, channels, &absolute(&x), &mut y_scale).unwrap();
        reference::average_pool2d_backward(&spec, shape, channels, &doubles(&dy), &mut dx).unwrap();
        reference::average_pool2d_backward(&spec, shape, channels, &absolute(&dy), &mut dx_scale).unwrap();
        let gamma = |roundings: usize| 1.001 * roundings as f64 * UNIT;
        let taps = spec.kernel[0] * spec.kernel[1];
        for isa in Isa::available() {
            let (given_y, given_dx) = case.average(&x, &dy, Execution::on(isa));
            for i in 0..y_len {
                let error = (given_y[i] as f64 - y[i]).abs();
                assert!(error <= gamma(taps + 1) * y_scale[i], "y[{i}] on {isa}: {case:?}");
            }
            for i in 0..x_len {
                // No more windows meet in a pixel than there are taps.
                let error = (given_dx[i] as f64 - dx[i]).abs();
                assert!(error <= gamma(taps + 1) * dx_scale[i], "dx[{i}] on {isa}: {case:?}");
            }
        }
    }
}

#[test]
fn wide_images_and_wide_windows_cross_every_strip() {
    let mut random = Random(4);
    for (kernel, stride, width) in [
        ([2, 2], [2, 2], 4101),
        ([3, 3], [2, 2], 4103),
        ([3, 3], [1, 1], 4099),
        ([1, 5], [1, 3], 6301),
        ([2, 2000], [1, 7], 2200),
        ([2, 2048], [1, 1], 2060),
        ([2, 2049], [1, 1], 2060),
        ([2, 2101], [1, 3], 2101),
        ([3, 2500], [3, 2500], 2500),
    ] {
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let spec = Pool2dSpec::new(kernel).stride(stride).padding(Padding { left: 1, ..Padding::all(0) });
            let spec = if kernel[1] == width { spec.padding(Padding::all(0)) } else { spec }.layout(layout);
            let case = Case { spec, shape: Shape::new(1, 3, width), channels: 1 };
            let (x_len, y_len) = case.lens();
            let (x, dy) = (random.integers(x_len, 20), random.integers(y_len, 20));
            let (mut y, mut dx) = (vec![0.0; y_len], vec![0.0; x_len]);
            reference::max_pool2d_forward(&spec, case.shape, 1, &x, &mut y).unwrap();
            reference::max_pool2d_backward(&spec, case.shape, 1, &x, &dy, &mut dx).unwrap();
            let (mut mean, mut spread) = (vec![0.0; y_len], vec![0.0; x_len]);
            reference::average_pool2d_forward(&spec, case.shape, 1, &doubles(&x), &mut mean).unwrap();
            reference::average_pool2d_backward(&spec, case.shape, 1, &doubles(&dy), &mut spread).unwrap();
            let taps = (kernel[0] * kernel[1]) as f64;
            for isa in Isa::available() {
                let (given_y, given_dx) = case.max(&x, &dy, Execution::on(isa));
                assert!(given_y == y && given_dx == dx, "max on {isa}: {case:?}");
                let (given_y, given_dx) = case.average(&x, &dy, Execution::on(isa));
                // Sums of integers are exact, so one division rounds; shares of at most 20 are added up taps times.
                assert!((0..y_len).all(|i| (given_y[i] as f64 - mean[i]).abs() <= UNIT * mean[i].abs()), "{case:?}");
                let bound = 1.001 * (taps + 1.0) * UNIT * 20.0;
                assert!((0..x_len).all(|i| (given_dx[i] as f64 - spread[i]).abs() <= bound), "{case:?}");
            }
        }
    }
}

#[cfg(test)]
fn in_pool<T: Send>(threads: usize, job: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(job)
}

#[test]
fn threads_batches_and_instruction_sets_do_not_change_a_bit() {
    let mut random = Random(5);
    for (layout, channels) in [(Layout::Nchw, 24), (Layout::Nhwc, 24)] {
        for (kernel, stride) in [([2, 2], [2, 2]), ([3, 3], [2, 2]), ([3, 3], [1, 1]), ([61, 57], [61, 57])] {
            let spec = Pool2dSpec::new(kernel).stride(stride).layout(layout);
            let case = Case { spec, shape: Shape::new(3, 61, 57), channels };
            let (x_len, y_len) = case.lens();
            let (x, dy) = (random.reals(x_len), random.reals(y_len));
            let serial = (case.max(&x, &dy, Execution::default()), case.average(&x, &dy, Execution::default()));
            for threads in [1, 2, 3] {
                let parallel = in_pool(threads, || {
                    let run = Execution::from(Parallelism::Current);
                    (case.max(&x, &dy, run), case.average(&x, &dy, run))
                });
                assert!(parallel == serial, "{threads} threads: {case:?}");
            }
            for isa in Isa::available() {
                let given = (case.max(&x, &dy, Execution::on(isa)), case.average(&x, &dy, Execution::on(isa)));
                // There are no products, so even the portable code has nothing to round differently.
                assert!(given == serial, "{isa}: {case:?}");
            }
            let alone = Case { shape: Shape::new(1, 61, 57), ..case };
            let (x_one, y_one) = alone.lens();
            let given = alone.average(&x[x_one..2 * x_one], &dy[y_one..2 * y_one], Execution::default());
            assert!(given.0 == serial.1.0[y_one..2 * y_one] && given.1 == serial.1.1[x_one..2 * x_one]);
        }
    }
}

#[test]
fn ceil_mode_drops_a_window_that_starts_beyond_the_image() {
    let spec = Pool2dSpec::new([2, 2]).padding(Padding::all(1));
    // Columns -1 ..= 3 of the padded image: windows start at -1, 1 and, rounded up, at 3, which is padding.
    assert_eq!(spec.output_size([3, 3]).unwrap(), [2, 2]);
    assert_eq!(spec.ceil_mode(true).output_size([3, 3]).unwrap(), [2, 2]);
    assert_eq!(spec.ceil_mode(true).output_size([4, 4]).unwrap(), [3, 3]);
    assert_eq!(Pool2dSpec::new([3, 3]).stride([2, 2]).ceil_mode(true).output_size([6, 8]).unwrap(), [3, 4]);
}

#[test]
fn a_dilated_window_that_steps_over_the_image_has_the_maximum_of_nothing() {
    // Two taps, two apart, around the only pixel.
    let spec = Pool2dSpec::new([1, 2]).dilation([1, 2]).stride([1, 1]).padding(Padding::symmetric([0, 1]));
    let case = Case { spec, shape: Shape::new(1, 1, 1), channels: 1 };
    for layout in [Layout::Nchw, Layout::Nhwc] {
        let case = Case { spec: spec.layout(layout), ..case };
        let (y, dx) = case.max(&[7.0], &[5.0], Execution::default());
        assert_eq!((y, dx), (vec![f32::NEG_INFINITY], vec![0.0]));
    }
}

#[test]
fn a_global_average_of_every_plane_size_errs_by_no_more_than_its_bound() {
    let mut random = Random(6);
    for size in 1..=40 {
        let spec = Pool2dSpec::global([size, size]);
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let case = Case { spec: spec.layout(layout), shape: Shape::new(2, size, size), channels: 5 };
            let (x_len, y_len) = case.lens();
            let (x, dy) = (random.integers(x_len, 100), random.integers(y_len, 100));
            let mut y = vec![0.0; y_len];
            reference::average_pool2d_forward(&case.spec, case.shape, 5, &doubles(&x), &mut y).unwrap();
            for isa in Isa::available() {
                let (given, _) = case.average(&x, &dy, Execution::on(isa));
                assert!((0..y_len).all(|i| (given[i] as f64 - y[i]).abs() <= UNIT * y[i].abs()), "{isa}: {case:?}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_outputs_stay_untouched() {
    let spec = Pool2dSpec::new([2, 2]);
    let shape = Shape::new(1, 4, 4);
    let run = Parallelism::Serial;
    let refused =
        |spec: Pool2dSpec, shape: Shape, channels: usize| spec.sizes(shape, channels).unwrap_err().to_string();
    assert_eq!(refused(Pool2dSpec::new([0, 2]), shape, 1), "kernel: expected at least 1, given [0, 2]");
    assert_eq!(refused(spec.stride([1, 0]), shape, 1), "stride: expected at least 1, given [1, 0]");
    assert_eq!(refused(spec.dilation([0, 1]), shape, 1), "dilation: expected at least 1, given [0, 1]");
    let padded = spec.padding(Padding { left: 2, ..Padding::all(0) });
    assert_eq!(refused(padded, shape, 1), "padding: expected at most 1, half of the window, given 2");
    assert!(refused(spec, Shape::new(1, 1, 4), 1).starts_with("height: expected at least 2 with padding"));
    assert!(refused(spec.padding(Padding::all(1)), Shape::new(1, 4, 0), 1).starts_with("width"));
    for huge in [usize::MAX, usize::MAX / 2, 1 << 62, 1 << 32] {
        assert!(spec.sizes(Shape::new(huge, huge, huge), huge).is_err());
        assert!(spec.kernel_of(huge).sizes(shape, 1).is_err());
        assert!(spec.dilation([huge, 1]).sizes(shape, 1).is_err());
        assert!(spec.stride([huge, huge]).ceil_mode(true).sizes(shape, 1).is_ok());
        assert_eq!(spec.sizes(Shape::new(0, 4, 4), huge).unwrap().x_len, 0);
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let spec = spec.layout(layout);
            pool::max_forward(&spec, Shape::new(0, 4, 4), huge, &[], &mut [], run).unwrap();
            pool::average_backward(&spec, Shape::new(huge, 4, 4), 0, &[], &mut [], run).unwrap();
        }
    }

    let (x, mut y, mut dx) = ([1.0; 16], [9.0; 5], [9.0; 15]);
    let short = pool::max_forward(&spec, shape, 1, &x, &mut y, run).unwrap_err();
    assert_eq!(short, Error::Length { argument: "y", expected: 4, given: 5 });
    assert!(pool::max_forward(&spec, shape, 1, &x[1..], &mut y[1..], run).is_err());
    assert!(pool::max_backward(&spec, shape, 1, &x, &[1.0; 4], &[1.0; 4], &mut dx, run).is_err());
    assert!(pool::average_backward(&spec, shape, 1, &[1.0; 4], &mut dx, run).is_err());
    let dilated = spec.dilation([2, 1]);
    assert!(
        pool::average_forward(&dilated, shape, 1, &x, &mut y, run).unwrap_err().to_string().starts_with("dilation")
    );
    assert_eq!((y, dx), ([9.0; 5], [9.0; 15]));
}

trait KernelOf {
    fn kernel_of(self, size: usize) -> Self;
}

impl KernelOf for Pool2dSpec {
    fn kernel_of(mut self, size: usize) -> Self {
        self.kernel = [size, size];
        self
    }
}

#[test]
fn a_maximum_that_is_not_in_its_window_gives_nothing() {
    let spec = Pool2dSpec::new([2, 2]);
    let mut dx = [1.0; 4];
    pool::max_backward(&spec, Shape::new(1, 2, 2), 1, &[1.0; 4], &[5.0], &[3.0], &mut dx, Parallelism::Serial).unwrap();
    assert_eq!(dx, [0.0; 4]);
}
