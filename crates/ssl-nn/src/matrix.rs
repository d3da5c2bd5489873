//! Matrix multiplication over slices: the one safe door to the `gemm` kernels.

use std::ops::Range;

use crate::storage::Element;

/// Where the elements of a matrix lie in a slice: element `(r, c)` at `r * row_stride + c * col_stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strides {
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl Strides {
    /// Rows one after the other, each of `cols` elements.
    pub(crate) fn row_major(cols: usize) -> Self {
        Self { row: cols, col: 1 }
    }

    /// Columns one after the other, each of `rows` elements.
    pub(crate) fn col_major(rows: usize) -> Self {
        Self { row: 1, col: rows }
    }

    fn span(self, rows: usize, cols: usize) -> Range<usize> {
        0..(rows - 1) * self.row + (cols - 1) * self.col + 1
    }
}

/// `out = lhs · rhs`, or `out += lhs · rhs`, for `(m, k) · (k, n)`, on the calling thread.
pub(crate) fn matmul<T: Element>(
    (m, k, n): (usize, usize, usize),
    (out, out_at): (&mut [T], Strides),
    (lhs, lhs_at): (&[T], Strides),
    (rhs, rhs_at): (&[T], Strides),
    accumulate: bool,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let out = &mut out[out_at.span(m, n)];
    let lhs = &lhs[lhs_at.span(m, k)];
    let rhs = &rhs[rhs_at.span(k, n)];
    // SAFETY: the three slices were just cut to hold every element that their strides reach, `out` is exclusive, and
    // `T` is f32 or f64, for which `gemm` has kernels.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out_at.col as isize,
            out_at.row as isize,
            accumulate,
            lhs.as_ptr(),
            lhs_at.col as isize,
            lhs_at.row as isize,
            rhs.as_ptr(),
            rhs_at.col as isize,
            rhs_at.row as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_choose_the_transpose() {
        let (a, b) = ([1f32, 2., 3., 4., 5., 6.], [1f32, 0., 2., 1., 1., 3.]);
        let mut out = [10f32; 4];
        let at = Strides::row_major(2);
        matmul((2, 3, 2), (&mut out, at), (&a, Strides::row_major(3)), (&b, Strides::row_major(2)), false);
        assert_eq!(out, [8., 11., 20., 23.]);
        matmul((2, 3, 2), (&mut out, at), (&a, Strides::col_major(2)), (&b, Strides::col_major(3)), true);
        assert_eq!(out, [8. + 11., 11. + 19., 20. + 14., 23. + 24.]);
    }
}
