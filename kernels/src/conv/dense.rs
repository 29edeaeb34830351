//! The dense algorithms, direct and im2col, as the plans see them: a slide, and what goes into the lanes.

use super::blocking::Blocking;
use super::channel_lanes::ChannelLanes;
use super::engine::{Call, Engine as _};
use super::pack::Source;
use super::pixel_lanes::{PixelLanes, TileRows, tile_rows};
use super::slide::Slide;
use super::spec::{Conv2dSpec, Layout, Shape, Sizes};
use crate::error::Error;
use crate::parallel::Parallelism;
use crate::simd::Isa;

/// Where patches come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Read where they are.
    Direct,
    /// Packed.
    Im2col,
}

/// What neighbours in a vector are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lanes {
    Pixels,
    Channels,
}

#[derive(Clone)]
enum Engine {
    Pixels(PixelLanes),
    Channels(ChannelLanes),
}

impl Engine {
    fn new(
        slide: Slide,
        spec: &Conv2dSpec,
        form: Form,
        lanes: Lanes,
        isa: Isa,
        blocking: Blocking,
    ) -> Result<Self, Error> {
        let im2col = form == Form::Im2col;
        Ok(match lanes {
            Lanes::Pixels => Self::Pixels(PixelLanes::new(slide, spec.groups, im2col, isa, blocking)?),
            Lanes::Channels => {
                Self::Channels(ChannelLanes::new(slide, spec.groups, spec.layout, im2col, isa, blocking)?)
            }
        })
    }

    fn pack(&mut self, source: Source<'_>, parallelism: Parallelism<'_>) {
        match self {
            Self::Pixels(engine) => engine.pack(source, parallelism),
            Self::Channels(engine) => engine.pack(source, parallelism),
        }
    }

    fn workspace_len(&self, batch: usize, in_size: [usize; 2], out_size: [usize; 2], slots: usize) -> usize {
        match self {
            Self::Pixels(engine) => engine.workspace_len(batch, in_size, out_size, slots),
            Self::Channels(engine) => engine.workspace_len(batch, in_size, out_size, slots),
        }
    }

    fn run(&self, call: Call<'_>) {
        match self {
            Self::Pixels(engine) => engine.run(call),
            Self::Channels(engine) => engine.run(call),
        }
    }
}

/// Seconds that a slide takes on one thread: multiplications at the speed of the registers, the copies that a form
/// needs, and what is computed but not asked for.
pub(super) fn cost(
    slide: &Slide,
    layout: Layout,
    [images, pixels]: [usize; 2],
    grid: [usize; 2],
    form: Form,
    lanes: Lanes,
    isa: Isa,
) -> f64 {
    let vector = isa.lanes();
    let depth = slide.depth() as f64;
    // What follows was fitted for each apart.
    let wide = isa == Isa::Avx512;
    // Vector operations per element of depth and tile, in units of one FMA of all lanes.
    let (tile_pixels, rows) = (2 * vector, tile_rows(isa));
    let products = match lanes {
        Lanes::Pixels => {
            // Steps of one row of weights, as many as there are vectors of pixels for each of its elements.
            let steps = match form {
                Form::Direct => {
                    let pitch = grid[1].saturating_add(slide.extra[1]);
                    TileRows::best(vector, pitch, grid, slide.depth()).steps(vector, grid, slide.depth()) as f64 / depth
                }
                Form::Im2col => pixels.div_ceil(vector) as f64,
            };
            let tiles = steps / 2.0;
            let panels = slide.out_channels.div_ceil(rows) as f64;
            // A panel of few rows waits for the latency of its chains; a packed row costs two loads, two stores and
            // their addresses per run of pixels.
            let per_panel = (2 * slide.out_channels.div_ceil(panels as usize)).max(8) as f64;
            let runs = (tile_pixels as f64 / grid[1].max(1) as f64).ceil() + 1.0;
            let taps = slide.taps.len().max(1) as f64;
            let per_tile = panels * (per_panel + TILE_OPERATIONS / depth);
            // A band is copied, all of its phases, for each block of output channels.
            let in_place =
                form == Form::Im2col && slide.stride == [1, 1] && slide.first_shift.iter().all(|&at| at >= 0);
            let blocks = slide.out_channels.div_ceil(Blocking::default_for(isa).out_channels) as f64;
            let copy = BAND_OPERATIONS * if !wide && slide.stride[1] > 2 { STRIDED_COPY } else { 1.0 };
            let copies = if in_place { 0.0 } else { copy * slide.phases.len() as f64 * blocks / taps };
            // Read where it is, a band's lines are met for the first time, and from another page each, by every panel's
            // first tap: measured, an eighth of the products of a single tap where a panel has a line and another.
            let first_tap = 2.0 / vector as f64 / taps;
            // A single tap is packed by the first panel that meets it.
            let on_the_way = in_place && slide.taps.len() == 1;
            let packing = if on_the_way && !wide { IN_PLACE_OPERATIONS } else { 6.0 * runs };
            match form {
                Form::Direct => tiles * (per_tile * (1.0 + first_tap) + copies),
                Form::Im2col => tiles * (per_tile + packing + copies),
            }
        }
        Lanes::Channels => {
            let panel_vectors = isa.lanes().max(8) / 8 * 2;
            let vectors = slide.out_channels.div_ceil(vector) as f64;
            let tiles = pixels.div_ceil(6) as f64;
            // With two whole additions a cycle, 8 chains hide the latency of one.
            // One or two pixels meet several panels at once.
            let at_once = if pixels <= 2 { 8 / pixels.max(1) } else { panel_vectors };
            let beside = if wide { panel_vectors as f64 } else { vectors.min(at_once as f64) };
            let per_tile = (pixels as f64 / tiles).max(8.0 / beside);
            // Each element is loaded with its offset; NCHW results are transposed.
            let store = if layout == Layout::Nchw { pixels as f64 * vectors * STORE_OPERATIONS / depth } else { 0.0 };
            let packing = match form {
                Form::Im2col => pixels as f64 * 1.5,
                Form::Direct if wide => 0.0,
                Form::Direct => {
                    PIXEL_OPERATIONS * pixels as f64 * slide.phases.len() as f64 / slide.taps.len().max(1) as f64
                }
            };
            let start = tiles * (vectors / panel_vectors as f64).ceil() * TILE_OPERATIONS / depth;
            tiles * per_tile * vectors * 1.02 + start + store + packing
        }
    };
    let flops_per_operation = 2.0 * vector as f64;
    images as f64 * depth * products * flops_per_operation / PEAK_FLOPS
}

/// What a tile costs beside its products: the call, the sums on their way out, bias and activation.
const TILE_OPERATIONS: f64 = 120.0;

/// What a tile's pixels of one phase of a band cost to copy. This and `STORE_OPERATIONS`: fitted to two dozen layers on
/// one core of Zen 4 with AVX-512, to within 5 %.
const BAND_OPERATIONS: f64 = 48.0;
/// How much longer a phase takes to copy whose elements are more than two apart: the least that has 96 channels of
/// 11 x 11 x 3 at a stride of 4 choose channels in the lanes, which run at 91 % of the peak, and not pixels, which run
/// at 85 % (AVX2 on Zen 4).
const STRIDED_COPY: f64 = 2.5;
/// What a pixel of one phase costs to copy where channels lie in the lanes. Fitted, with the number of chains, to 400
/// layers of `kernelbench conv --random` with AVX2 on Zen 4: the choice costs 3.5 % over the best of each, and 9 %
/// without.
const PIXEL_OPERATIONS: f64 = 1.5;
/// What a tile costs whose pixels are packed on the way from where they are; fitted with the same layers.
const IN_PLACE_OPERATIONS: f64 = 4.0;
/// What a vector of results costs that is transposed on its way out.
const STORE_OPERATIONS: f64 = 14.0;

/// The speed of one thread that costs are expressed in. Only ratios of costs matter.
pub(super) const PEAK_FLOPS: f64 = 100e9;

/// The lanes that suit an image, and the seconds that they take.
fn best_lanes(slide: &Slide, spec: &Conv2dSpec, batch: usize, grid: [usize; 2], form: Form, isa: Isa) -> (Lanes, f64) {
    let counts = [batch.saturating_mul(spec.groups), grid[0].saturating_mul(grid[1])];
    let cost = |lanes| cost(slide, spec.layout, counts, grid, form, lanes, isa);
    let channels = (Lanes::Channels, cost(Lanes::Channels));
    if spec.layout == Layout::Nhwc {
        return channels;
    }
    let pixels = (Lanes::Pixels, cost(Lanes::Pixels));
    if form == Form::Im2col || pixels.1 <= channels.1 { pixels } else { channels }
}

/// Forward.
#[derive(Clone)]
pub(super) struct Dense {
    engine: Engine,
    group_in: usize,
    group_out: usize,
    taps: usize,
}

impl Dense {
    pub fn cost(spec: &Conv2dSpec, form: Form, hint: Shape, sizes: &Sizes, isa: Isa) -> f64 {
        best_lanes(&Slide::forward(spec), spec, hint.batch, sizes.output, form, isa).1
    }

    pub fn new(
        spec: &Conv2dSpec,
        form: Form,
        hint: Shape,
        sizes: &Sizes,
        isa: Isa,
        blocking: Blocking,
    ) -> Result<Self, Error> {
        let slide = Slide::forward(spec);
        let (lanes, _) = best_lanes(&slide, spec, hint.batch, sizes.output, form, isa);
        Ok(Self {
            group_in: slide.in_channels,
            group_out: slide.out_channels,
            taps: spec.kernel[0] * spec.kernel[1],
            engine: Engine::new(slide, spec, form, lanes, isa, blocking)?,
        })
    }

    pub fn lanes(&self) -> Lanes {
        match self.engine {
            Engine::Pixels(_) => Lanes::Pixels,
            Engine::Channels(_) => Lanes::Channels,
        }
    }

    pub fn pack(&mut self, values: &[f32], parallelism: Parallelism<'_>) {
        let Self { group_in, group_out, taps, .. } = *self;
        let group = group_out * group_in * taps;
        self.engine.pack(Source { values, group, output: group_in * taps, input: taps }, parallelism);
    }

    pub fn workspace_len(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        self.engine.workspace_len(shape.batch, sizes.input, sizes.output, slots)
    }

    pub fn run(&self, call: Call<'_>) {
        self.engine.run(call);
    }
}

/// Backward-data: one slide for each phase of the stride.
#[derive(Clone)]
pub(super) struct DenseBackwardData {
    engines: Vec<Engine>,
    /// Whether some pixels are reached by no tap.
    gaps: bool,
    group_in: usize,
    group_out: usize,
    taps: usize,
}

impl DenseBackwardData {
    pub fn cost(spec: &Conv2dSpec, form: Form, hint: Shape, sizes: &Sizes, isa: Isa) -> f64 {
        let slides = Slide::backward_data(spec);
        let grid = |slide: &Slide| [slide.grid(0, sizes.input[0]), slide.grid(1, sizes.input[1])];
        // Results that are not neighbours are stored one by one: 1.4 to 2 times the time on Zen 4, for 3x3 taps of
        // stride 2 up to 11x11 of stride 4.
        let apart = if spec.stride[1] > 1 { 1.4 } else { 1.0 };
        apart * slides.iter().map(|slide| best_lanes(slide, spec, hint.batch, grid(slide), form, isa).1).sum::<f64>()
    }

    pub fn new(
        spec: &Conv2dSpec,
        form: Form,
        hint: Shape,
        sizes: &Sizes,
        isa: Isa,
        blocking: Blocking,
    ) -> Result<Self, Error> {
        let mut engines = Vec::new();
        for slide in Slide::backward_data(spec) {
            let grid = [slide.grid(0, sizes.input[0]), slide.grid(1, sizes.input[1])];
            let (lanes, _) = best_lanes(&slide, spec, hint.batch, grid, form, isa);
            engines.push(Engine::new(slide, spec, form, lanes, isa, blocking)?);
        }
        Ok(Self {
            gaps: engines.len() < spec.stride[0].saturating_mul(spec.stride[1]),
            engines,
            group_in: spec.in_channels / spec.groups,
            group_out: spec.out_channels / spec.groups,
            taps: spec.kernel[0] * spec.kernel[1],
        })
    }

    pub fn pack(&mut self, values: &[f32], parallelism: Parallelism<'_>) {
        let Self { group_in, group_out, taps, .. } = *self;
        let group = group_out * group_in * taps;
        for engine in &mut self.engines {
            // What backward reads are the output channels, what it computes the input channels.
            engine.pack(Source { values, group, output: taps, input: group_in * taps }, parallelism);
        }
    }

    pub fn workspace_len(&self, shape: Shape, sizes: &Sizes, slots: usize) -> usize {
        let len = |engine: &Engine| engine.workspace_len(shape.batch, sizes.output, sizes.input, slots);
        self.engines.iter().map(len).max().unwrap_or(0)
    }

    /// Whether every pixel is the result of some slide.
    pub fn writes_everything(&self) -> bool {
        !self.gaps
    }

    /// `call.input` is `dy`, `call.output` is `dx`.
    pub fn run(&self, mut call: Call<'_>) {
        if self.gaps {
            call.output.fill(0.0);
        }
        for engine in &self.engines {
            engine.run(call.reborrow());
        }
    }
}
