//! Matrix multiplication over strided slices.

use crate::kernel::{ISA, Left, Right, Run, multiply};
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
}

/// `out = lhs · rhs`, or `out += lhs · rhs`, for `(m, k) · (k, n)`, on the calling thread.
///
/// The rows or the columns of `out` must lie together. `packed` is scratch.
pub(crate) fn matmul<T: Element>(
    (m, k, n): (usize, usize, usize),
    (out, out_at): (&mut [T], Strides),
    (lhs, lhs_at): (&[T], Strides),
    (rhs, rhs_at): (&[T], Strides),
    accumulate: bool,
    packed: &mut Vec<T>,
) {
    if out_at.col != 1 && n > 1 {
        let turned = |at: Strides| Strides { row: at.col, col: at.row };
        let (lhs, rhs) = ((lhs, turned(lhs_at)), (rhs, turned(rhs_at)));
        return matmul((n, k, m), (out, turned(out_at)), rhs, lhs, accumulate, packed);
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let width = ISA.panel::<T>();
    let right = if rhs_at.col == 1 && n.is_multiple_of(width / 2) {
        Right { data: rhs, panel: width, row: rhs_at.row }
    } else {
        pack((k, n), (rhs, rhs_at), width, packed);
        Right { data: packed, panel: k * width, row: width }
    };
    let left = Left { data: lhs, row: lhs_at.row, col: lhs_at.col };
    multiply((m, n), (&[Run { a: 0, b: 0 }], k), left, right, (out, out_at.row.max(n)), accumulate);
}

/// Panels of `width` columns, the last filled up with zeros.
fn pack<T: Element>((k, n): (usize, usize), (rhs, at): (&[T], Strides), width: usize, packed: &mut Vec<T>) {
    packed.resize(n.div_ceil(width) * k * width, T::ZERO);
    for (p, panel) in packed.chunks_exact_mut(k * width).enumerate() {
        let columns = width.min(n - p * width);
        if at.row == 1 {
            // A column of the matrix is a row in memory.
            for c in 0..columns {
                let column = &rhs[(p * width + c) * at.col..][..k];
                panel[c..].iter_mut().step_by(width).zip(column).for_each(|(to, from)| *to = *from);
            }
            if columns < width {
                panel.chunks_exact_mut(width).for_each(|row| row[columns..].fill(T::ZERO));
            }
            continue;
        }
        for (r, row) in panel.chunks_exact_mut(width).enumerate() {
            for (c, v) in row[..columns].iter_mut().enumerate() {
                *v = rhs[r * at.row + (p * width + c) * at.col];
            }
            row[columns..].fill(T::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_choose_the_transpose() {
        let (a, b) = ([1f32, 2., 3., 4., 5., 6.], [1f32, 0., 2., 1., 1., 3.]);
        let (mut out, mut room) = ([10f32; 4], Vec::new());
        let at = Strides::row_major(2);
        matmul(
            (2, 3, 2),
            (&mut out, at),
            (&a, Strides::row_major(3)),
            (&b, Strides::row_major(2)),
            false,
            &mut room,
        );
        assert_eq!(out, [8., 11., 20., 23.]);
        matmul(
            (2, 3, 2),
            (&mut out, at),
            (&a, Strides::col_major(2)),
            (&b, Strides::col_major(3)),
            true,
            &mut room,
        );
        assert_eq!(out, [8. + 11., 11. + 19., 20. + 14., 23. + 24.]);
    }
}
