//! Which value stands where, for one shape of the input.
//!
//! ```text
//! buffer 0   x1 x1 x1 . . x4 x4 x4 x4           a value lives from the step that computes it
//! buffer 1   . . x2 x2 x2 x2 . . .              to the last one that reads it, then its
//! buffer 2   . . . x3 x3 . . x5 x5              buffer is free for others
//!            step ──►
//! ```

use std::mem;
use std::time::{Duration, Instant};

use kernels::{Parallelism, Workspace};

use super::program::{Program, Task, shapes};
use super::{Call, Home, Inputs, Place};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::leaves::leaves;
use crate::tensor::count;

/// A step with the places of its operands.
struct Placed {
    /// Position in the program; none for a copy of a value to the output.
    step: Option<usize>,
    inputs: Vec<Place>,
    shapes: Vec<Vec<usize>>,
    output: Place,
}

/// Everything about a program that follows from the shapes of its inputs.
pub(crate) struct Layout {
    pub input_shapes: Vec<Vec<usize>>,
    pub output_shape: Vec<usize>,
    steps: Vec<Placed>,
    /// Floats of each buffer.
    buffers: Vec<usize>,
    /// Floats of scratch memory for so many tasks at once.
    workspace: (usize, usize),
}

impl Layout {
    /// Lays a program's values out for inputs of these shapes.
    pub fn new(program: &Program, layer: &dyn Layer, inputs: &[Vec<usize>], slots: usize) -> Result<Self> {
        let (leaves, _) = leaves(layer, 0, program.inputs.len());
        let shapes = shapes(&leaves, inputs)?;
        for (leaf, shape) in leaves.iter().zip(&shapes) {
            count("output", shape).map_err(|error| leaf.within(error))?;
        }
        let len = |leaf: usize| shapes[leaf].iter().product::<usize>();
        let mut places: Vec<Option<Place>> = vec![None; leaves.len()];
        for (input, &leaf) in program.inputs.iter().enumerate() {
            places[leaf] = Some(Place { home: Home::Input(input), offset: 0, len: len(leaf) });
        }
        // The last step that reads each value, and how often it is read.
        let mut reads = vec![(0, 0); leaves.len()];
        for (at, step) in program.steps.iter().enumerate() {
            for &input in &step.inputs {
                reads[input] = (at, reads[input].1 + 1);
            }
        }
        let output = program.source[program.output];
        let direct = places[output].is_none() && reads[output].1 == 0;
        if direct {
            places[output] = Some(Place { home: Home::Output, offset: 0, len: len(output) });
        }
        let parts = parts_of_concats(program, &shapes, &places, &reads, output);

        let (mut buffers, mut free): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        let mut steps = Vec::with_capacity(program.steps.len() + 1);
        for (at, step) in program.steps.iter().enumerate() {
            let mut inputs = step.inputs.clone();
            if inputs.is_empty() {
                return Err(Error::invalid("inputs", "at least 1 tensor", 0));
            }
            let mut in_place = false;
            if places[step.output].is_none() {
                let x = inputs[0];
                let dies = |leaf: usize| reads[leaf] == (at, 1) && leaf != output && parts[leaf].is_none();
                if let (Task::Activation(_), Some(Place { home: Home::Buffer(_), .. })) = (&step.task, places[x])
                    && dies(x)
                    && parts[step.output].is_none()
                {
                    // Nobody else needs x: the buffer goes on as the output's.
                    places[step.output] = places[x];
                    in_place = true;
                } else {
                    place(step.output, &parts, &mut places, &shapes, &mut buffers, &mut free);
                }
            }
            let placed = |leaf: &usize| places[*leaf].ok_or_else(|| Error::invalid("graph", "values in order", leaf));
            // What was written where it belongs needs no copy.
            let is_written = parts[inputs[0]].is_some_and(|(concat, _)| concat == step.output);
            if !is_written {
                let shapes: Vec<Vec<usize>> = step.shown.iter().map(|&shown| shapes[shown].clone()).collect();
                let operands = if in_place { Ok(Vec::new()) } else { inputs.iter().map(placed).collect() };
                steps.push(Placed { step: Some(at), inputs: operands?, shapes, output: placed(&step.output)? });
            }
            inputs.sort_unstable();
            inputs.dedup();
            for input in inputs {
                if let (Some(Place { home: Home::Buffer(buffer), .. }), false) = (places[input], in_place)
                    && reads[input].0 == at
                    && input != output
                    && parts[input].is_none()
                {
                    free.push(buffer);
                }
            }
        }
        if !direct {
            let from = places[output].ok_or(Error::NoForward)?;
            let to = Place { home: Home::Output, offset: 0, len: from.len };
            steps.push(Placed { step: None, inputs: vec![from], shapes: Vec::new(), output: to });
        }
        let output_shape = shapes[program.output].clone();
        let mut layout = Self { input_shapes: inputs.to_vec(), output_shape, steps, buffers, workspace: (0, 0) };
        layout.ask_for_workspace(program, slots)?;
        Ok(layout)
    }

    fn ask_for_workspace(&mut self, program: &Program, slots: usize) -> Result<()> {
        let mut len = 0;
        for placed in &self.steps {
            if let Some(step) = placed.step {
                len = len.max(program.steps[step].task.workspace_len(&placed.shapes, slots)?);
            }
        }
        self.workspace = (slots, len);
        Ok(())
    }

    /// How many elements the output has.
    pub fn output_len(&self) -> usize {
        self.output_shape.iter().product()
    }

    /// Runs the program. Allocates nothing once buffers and workspace are large enough, unless the time of each step is
    /// asked for.
    pub fn run(
        &mut self,
        program: &Program,
        inputs: &[&[f32]],
        y: &mut [f32],
        memory: &mut Memory,
        parallelism: Parallelism<'_>,
        mut times: Option<&mut Vec<(Option<usize>, Duration)>>,
    ) -> Result<()> {
        if self.workspace.0 != parallelism.threads() {
            self.ask_for_workspace(program, parallelism.threads())?;
        }
        let Memory { buffers, workspace } = memory;
        if buffers.len() < self.buffers.len() {
            buffers.resize_with(self.buffers.len(), Workspace::new);
        }
        for (buffer, &len) in buffers.iter_mut().zip(&self.buffers) {
            buffer.grow(len)?;
        }
        let workspace = workspace.grow(self.workspace.1)?;
        for Placed { step, inputs: places, shapes, output } in &self.steps {
            let Place { home, offset, len } = *output;
            // The buffer is taken out while it is written; no input stands in it.
            let mut written = Workspace::new();
            if let Home::Buffer(buffer) = home {
                mem::swap(&mut written, &mut buffers[buffer]);
            }
            let all: &mut [f32] = if home == Home::Output { &mut *y } else { &mut written };
            let y = &mut all[offset..][..len];
            let inputs = Inputs { network: inputs, buffers, places };
            let start = times.is_some().then(Instant::now);
            let result = match step {
                Some(step) => program.steps[*step].task.run(Call { inputs, shapes, y, workspace, parallelism }),
                None => {
                    y.copy_from_slice(inputs.get(0));
                    Ok(())
                }
            };
            if let (Some(times), Some(start)) = (times.as_deref_mut(), start) {
                times.push((*step, start.elapsed()));
            }
            if let Home::Buffer(buffer) = home {
                mem::swap(&mut written, &mut buffers[buffer]);
            }
            result?;
        }
        Ok(())
    }
}

/// The memory that all layouts of a program share.
#[derive(Default)]
pub(crate) struct Memory {
    buffers: Vec<Workspace>,
    workspace: Workspace,
}

/// For each leaf, the concat of a single image that it may be written into, and where in it: those that a step computes
/// and that nobody else reads.
fn parts_of_concats(
    program: &Program,
    shapes: &[Vec<usize>],
    places: &[Option<Place>],
    reads: &[(usize, usize)],
    output: usize,
) -> Vec<Option<(usize, usize)>> {
    let mut parts = vec![None; shapes.len()];
    for step in &program.steps {
        if !matches!(step.task, Task::Concat) || shapes[step.output].first() != Some(&1) {
            continue;
        }
        let mut offset = 0;
        // All or none: a concat that copies must not read from where it writes.
        if step.inputs.iter().any(|&input| places[input].is_some() || reads[input].1 != 1 || input == output) {
            continue;
        }
        for &input in &step.inputs {
            parts[input] = Some((step.output, offset));
            offset += shapes[input].iter().product::<usize>();
        }
    }
    parts
}

/// Gives a value its place: a part of the concat that it belongs to, or the smallest free buffer that is large enough,
/// or the largest of them made larger, or a new one.
fn place(
    leaf: usize,
    parts: &[Option<(usize, usize)>],
    places: &mut [Option<Place>],
    shapes: &[Vec<usize>],
    buffers: &mut Vec<usize>,
    free: &mut Vec<usize>,
) -> Place {
    if let Some(place) = places[leaf] {
        return place;
    }
    let len = shapes[leaf].iter().product();
    let placed = match parts[leaf] {
        Some((concat, offset)) => {
            let Place { home, offset: start, .. } = place(concat, parts, places, shapes, buffers, free);
            Place { home, offset: start + offset, len }
        }
        None => {
            let fits = |&at: &usize| (buffers[free[at]] < len, buffers[free[at]].abs_diff(len));
            let buffer = match (0..free.len()).min_by_key(fits) {
                Some(at) => free.swap_remove(at),
                None => {
                    buffers.push(0);
                    buffers.len() - 1
                }
            };
            buffers[buffer] = buffers[buffer].max(len);
            Place { home: Home::Buffer(buffer), offset: 0, len }
        }
    };
    places[leaf] = Some(placed);
    placed
}
