//! Borrowed views: a slice, a shape and strides.
//!
//! A view is checked once, when it is made: every index leads into the slice, and two indices of a
//! mutable view never lead to the same element. What takes a view need not check again.
//!
//! ```text
//! element [i, j] of a View<f32, 2>  =  data[offset + i * strides[0] + j * strides[1]]
//! ```

use crate::error::{Error, checked_len};

/// An immutable view of `N` dimensions. Strides count elements; they may be zero or negative.
///
/// ```
/// use kernels::View;
/// let data = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let matrix = View::new(&data, [2, 3])?;
/// let transposed = matrix.transposed();
/// assert_eq!(transposed.shape(), [3, 2]);
/// assert_eq!(transposed.get([2, 1]), 6.0);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T, const N: usize> {
    data: &'a [T],
    layout: Layout<N>,
}

/// A mutable view of `N` dimensions whose indices all lead to different elements.
#[derive(Debug)]
pub struct ViewMut<'a, T, const N: usize> {
    data: &'a mut [T],
    layout: Layout<N>,
}

#[derive(Clone, Copy, Debug)]
struct Layout<const N: usize> {
    offset: usize,
    shape: [usize; N],
    strides: [isize; N],
}

impl<const N: usize> Layout<N> {
    fn row_major(argument: &'static str, len: usize, shape: [usize; N]) -> Result<Self, Error> {
        let expected = checked_len(argument, &shape)?;
        if len != expected {
            return Err(Error::Length { argument, expected, given: len });
        }
        let mut strides = [1isize; N];
        if expected > 0 {
            for d in (0..N.saturating_sub(1)).rev() {
                strides[d] = strides[d + 1] * shape[d + 1] as isize;
            }
        }
        Ok(Self { offset: 0, shape, strides })
    }

    fn strided(
        argument: &'static str,
        len: usize,
        offset: usize,
        shape: [usize; N],
        strides: [isize; N],
    ) -> Result<Self, Error> {
        checked_len(argument, &shape)?;
        if !shape.contains(&0) {
            let (mut lowest, mut highest) = (offset as i128, offset as i128);
            for d in 0..N {
                let reach = (shape[d] as i128 - 1) * strides[d] as i128;
                if reach < 0 {
                    lowest += reach;
                } else {
                    highest += reach;
                }
            }
            if lowest < 0 {
                return Err(Error::invalid(argument, "strides that stay behind the start of the slice", lowest));
            }
            if highest >= len as i128 {
                let expected = usize::try_from(highest + 1).map_err(|_| Error::Overflow { argument })?;
                return Err(Error::Length { argument, expected, given: len });
            }
        }
        Ok(Self { offset, shape, strides })
    }

    /// Whether all indices surely lead to different elements: taken from the smallest stride up, each
    /// stride steps over all that the smaller ones can reach.
    fn is_injective(&self) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let mut order: [usize; N] = std::array::from_fn(|d| d);
        order.sort_by_key(|&d| self.strides[d].unsigned_abs());
        let mut reach = 0u128;
        for d in order {
            if self.shape[d] > 1 {
                let stride = self.strides[d].unsigned_abs() as u128;
                if stride <= reach {
                    return false;
                }
                reach += stride * (self.shape[d] as u128 - 1);
            }
        }
        true
    }
}

impl<'a, T: Copy, const N: usize> View<'a, T, N> {
    /// A row-major view of a whole slice.
    ///
    /// # Errors
    /// [`Error::Length`] unless the slice has as many elements as the shape.
    pub fn new(data: &'a [T], shape: [usize; N]) -> Result<Self, Error> {
        Ok(Self { data, layout: Layout::row_major("view", data.len(), shape)? })
    }

    /// A view that starts at `data[offset]` and steps by `strides` elements.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Invalid`] when an index would lead out of the slice.
    pub fn strided(data: &'a [T], offset: usize, shape: [usize; N], strides: [isize; N]) -> Result<Self, Error> {
        Ok(Self { data, layout: Layout::strided("view", data.len(), offset, shape, strides)? })
    }

    /// The number of indices along each dimension.
    pub fn shape(&self) -> [usize; N] {
        self.layout.shape
    }

    /// The distance between neighbours along each dimension, in elements.
    pub fn strides(&self) -> [isize; N] {
        self.layout.strides
    }

    /// One element.
    ///
    /// # Panics
    /// When the index is outside of the shape.
    #[inline]
    pub fn get(&self, index: [usize; N]) -> T {
        self.data[flat(&self.layout, index)]
    }

    /// A pointer to element `[0; N]`; dangling when the view is empty.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.data.as_ptr().wrapping_add(self.layout.offset)
    }
}

impl<'a, T: Copy, const N: usize> ViewMut<'a, T, N> {
    /// A row-major view of a whole slice.
    ///
    /// # Errors
    /// [`Error::Length`] unless the slice has as many elements as the shape.
    pub fn new(data: &'a mut [T], shape: [usize; N]) -> Result<Self, Error> {
        let layout = Layout::row_major("view", data.len(), shape)?;
        Ok(Self { data, layout })
    }

    /// A view that starts at `data[offset]` and steps by `strides` elements.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Invalid`] when an index would lead out of the slice,
    /// [`Error::Overlap`] unless the strides, taken from the smallest up, step over each other.
    pub fn strided(data: &'a mut [T], offset: usize, shape: [usize; N], strides: [isize; N]) -> Result<Self, Error> {
        let layout = Layout::strided("view", data.len(), offset, shape, strides)?;
        if !layout.is_injective() {
            return Err(Error::Overlap { argument: "view" });
        }
        Ok(Self { data, layout })
    }

    /// The number of indices along each dimension.
    pub fn shape(&self) -> [usize; N] {
        self.layout.shape
    }

    /// The distance between neighbours along each dimension, in elements.
    pub fn strides(&self) -> [isize; N] {
        self.layout.strides
    }

    /// An immutable view of the same elements.
    pub fn as_view(&self) -> View<'_, T, N> {
        View { data: self.data, layout: self.layout }
    }

    /// Writes one element.
    ///
    /// # Panics
    /// When the index is outside of the shape.
    #[inline]
    pub fn set(&mut self, index: [usize; N], value: T) {
        let at = flat(&self.layout, index);
        self.data[at] = value;
    }

    /// A pointer to element `[0; N]`; dangling when the view is empty.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.data.as_mut_ptr().wrapping_add(self.layout.offset)
    }
}

impl<'a, T: Copy> View<'a, T, 3> {
    /// Of `[rows, heads, dim]`, `count` rows from `first` on as `[1, heads, count, dim]`. They are within the view.
    pub(crate) fn sequence(self, [first, count]: [usize; 2]) -> View<'a, T, 4> {
        let Layout { offset, shape: [rows, heads, dim], strides: [row, head, element] } = self.layout;
        debug_assert!(first + count <= rows);
        // Where nothing can be read, any offset will do.
        let offset = if count == 0 { 0 } else { (offset as isize).wrapping_add(first as isize * row) as usize };
        let layout = Layout { offset, shape: [1, heads, count, dim], strides: [0, head, row, element] };
        View { data: self.data, layout }
    }
}

impl<'a, T: Copy> View<'a, T, 2> {
    /// Rows as columns.
    pub fn transposed(self) -> Self {
        let Layout { offset, shape: [m, n], strides: [rs, cs] } = self.layout;
        Self { data: self.data, layout: Layout { offset, shape: [n, m], strides: [cs, rs] } }
    }
}

impl<'a, T: Copy> ViewMut<'a, T, 2> {
    /// Rows as columns.
    pub fn transposed(self) -> Self {
        let Layout { offset, shape: [m, n], strides: [rs, cs] } = self.layout;
        Self { data: self.data, layout: Layout { offset, shape: [n, m], strides: [cs, rs] } }
    }
}

#[inline]
fn flat<const N: usize>(layout: &Layout<N>, index: [usize; N]) -> usize {
    let mut at = layout.offset as isize;
    for d in 0..N {
        if index[d] >= layout.shape[d] {
            outside(&index, &layout.shape);
        }
        // An index of the shape is inside of the slice, which was checked when the view was made.
        at = at.wrapping_add((index[d] as isize).wrapping_mul(layout.strides[d]));
    }
    at as usize
}

#[cold]
fn outside(index: &[usize], shape: &[usize]) -> ! {
    panic!("index {index:?} outside of shape {shape:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_that_leaves_its_slice_is_refused() {
        let data = [0.0f32; 6];
        assert!(View::new(&data, [2, 4]).is_err());
        assert!(View::strided(&data, 0, [2, 3], [3, 1]).is_ok());
        assert!(View::strided(&data, 1, [2, 3], [3, 1]).is_err());
        assert!(View::strided(&data, 5, [2, 3], [-3, -1]).is_ok());
        assert!(View::strided(&data, 4, [2, 3], [-3, -1]).is_err());
        assert!(View::strided(&data, 0, [usize::MAX, usize::MAX], [0, 0]).is_err());
    }

    #[test]
    fn an_output_whose_indices_meet_is_refused() {
        let mut data = [0.0f32; 16];
        assert!(ViewMut::strided(&mut data, 0, [2, 3], [3, 1]).is_ok());
        assert!(ViewMut::strided(&mut data, 0, [2, 3], [2, 1]).is_err());
        assert!(ViewMut::strided(&mut data, 0, [2, 3], [0, 1]).is_err());
        assert!(ViewMut::strided(&mut data, 0, [1, 3], [0, 5]).is_ok());
    }
}
