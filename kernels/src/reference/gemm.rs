//! The matrix product as in a lecture: three loops.

use super::Float;
use crate::error::{Error, check_len, checked_len};

/// `out[i, j] += sum over l of lhs[i, l] * rhs[l, j]`, in order of `l`, all matrices row-major.
///
/// # Errors
/// [`Error::Length`] for a slice of another length.
pub fn gemm<T: Float>(m: usize, n: usize, k: usize, lhs: &[T], rhs: &[T], out: &mut [T]) -> Result<(), Error> {
    check_len("lhs", checked_len("lhs", &[m, k])?, lhs.len())?;
    check_len("rhs", checked_len("rhs", &[k, n])?, rhs.len())?;
    check_len("out", checked_len("out", &[m, n])?, out.len())?;
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                out[i * n + j] += lhs[i * k + l] * rhs[l * n + j];
            }
        }
    }
    Ok(())
}
