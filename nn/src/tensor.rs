//! Tensors are `ndarray` arrays whose elements may be shared.

use kernels::conv::Shape;
use ndarray::{ArcArray, IxDyn};

use crate::error::{Error, Result};

/// What flows through a network: an `ndarray` array of any shape.
///
/// Its elements are reference-counted, so a layer keeps its input for `backward` without a copy. Any owned
/// array becomes a tensor by `.into_dyn().into_shared()`, and `ndarray`'s methods work on it:
///
/// ```
/// let x: nn::Tensor = ndarray::array![[1.0, 2.0], [3.0, 4.0]].into_dyn().into_shared();
/// assert_eq!(x.shape(), [2, 2]);
/// assert_eq!(x.sum(), 10.0);
/// ```
pub type Tensor = ArcArray<f32, IxDyn>;

/// A tensor of a shape over elements in row-major order.
///
/// ```
/// let x = nn::tensor(&[2, 2], vec![1.0, 2.0, 3.0, 4.0])?;
/// assert_eq!(x[[1, 0]], 3.0);
/// # Ok::<(), nn::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] unless there are as many elements as the shape says.
pub fn tensor(shape: &[usize], elements: Vec<f32>) -> Result<Tensor> {
    let given = elements.len();
    Tensor::from_shape_vec(IxDyn(shape), elements).map_err(|_| Error::shape("elements", format!("{shape:?}"), &[given]))
}

/// How many elements a shape has, if they can be counted and addressed.
pub(crate) fn count(argument: &'static str, shape: &[usize]) -> Result<usize> {
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
    let fits = count.filter(|&count| count <= isize::MAX as usize / size_of::<f32>());
    fits.ok_or_else(|| Error::shape(argument, "one that fits in memory", shape))
}

/// Memory for as many elements as a shape has, to be pushed.
pub(crate) fn reserve(argument: &'static str, shape: &[usize]) -> Result<Vec<f32>> {
    let (count, mut elements) = (count(argument, shape)?, Vec::new());
    let reserved = elements.try_reserve_exact(count);
    reserved.map_err(|_| Error::shape(argument, "one that fits in memory", shape))?;
    Ok(elements)
}

/// The same tensor in row-major order without gaps; shares its elements where it is so already.
pub(crate) fn row_major(x: &Tensor) -> Tensor {
    if x.is_standard_layout() { x.clone() } else { x.as_standard_layout().into_owned().into_shared() }
}

/// As [`row_major`], without another owner of the elements.
pub(crate) fn in_order(x: Tensor) -> Tensor {
    if x.is_standard_layout() { x } else { row_major(&x) }
}

/// The elements of a tensor that [`row_major`] or [`tensor`] made.
pub(crate) fn elements(x: &Tensor) -> &[f32] {
    x.as_slice().expect("row-major by construction")
}

/// Fails unless a gradient has the shape of the value that it belongs to.
pub(crate) fn check_gradient(d_output: &Tensor, shape: &[usize]) -> Result<()> {
    if d_output.shape() == shape {
        Ok(())
    } else {
        Err(Error::shape("d_output", format!("{shape:?}"), d_output.shape()))
    }
}

/// Images `[batch, channels, height, width]` as the kernels know them, and their channels.
pub(crate) fn image_shape(images: &[usize]) -> Result<(Shape, usize)> {
    match *images {
        [batch, channels, height, width] => Ok((Shape::new(batch, height, width), channels)),
        _ => Err(Error::shape("x", "[batch, channels, height, width]", images)),
    }
}

/// The same elements in the same order under another shape.
pub(crate) fn reshape(x: Tensor, shape: &[usize]) -> Result<Tensor> {
    let given = x.shape().to_vec();
    row_major(&x).into_shape_with_order(IxDyn(shape)).map_err(|_| Error::shape("x", format!("{shape:?}"), &given))
}
