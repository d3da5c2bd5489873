//! Right operands of the kernels, packed into panels.

use std::ops::Range;

use crate::fresh::filled;
use crate::kernel::{ISA, Right, Run};
use crate::storage::Element;

/// Rows that are packed together, so that the lines of both sides stay in the cache.
const ROWS: usize = 16;

/// Right operands of multiplications: one matrix `K × N` in panels of columns for each group.
pub(crate) struct Packed<T> {
    data: Vec<T>,
    /// Elements of a group.
    group: usize,
    /// Rows of each matrix.
    k: usize,
    width: usize,
}

/// Matrices `K × N` inside of an array: row `r` of tap `t` starts `start(group, t) + r · row`, and its elements are
/// `column` apart. `K` is `taps · rows`.
pub(crate) struct Strided<'a, T, F> {
    pub(crate) data: &'a [T],
    pub(crate) taps: usize,
    pub(crate) rows: usize,
    pub(crate) start: F,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl<T: Element> Packed<T> {
    /// `groups` matrices of `k × n`, whose elements `at(group, k, n)` gives.
    pub(crate) fn new(
        groups: usize,
        k: usize,
        n: usize,
        at: impl Fn(usize, usize, usize) -> T + Sync,
    ) -> Self {
        Self::panels(groups, k, n, |group, columns, width, panel| {
            for first in (0..k).step_by(ROWS) {
                for (j, column) in columns.clone().enumerate() {
                    for row in first..k.min(first + ROWS) {
                        panel[row * width + j] = at(group, row, column);
                    }
                }
            }
        })
    }

    /// `groups` matrices of `n` columns that lie in an array.
    pub(crate) fn strided(
        groups: usize,
        n: usize,
        from: &Strided<'_, T, impl Fn(usize, usize) -> usize + Sync>,
    ) -> Self {
        Self::panels(groups, from.taps * from.rows, n, |group, columns, width, panel| {
            for (tap, panel) in panel.chunks_exact_mut((from.rows * width).max(1)).enumerate() {
                let data = &from.data[(from.start)(group, tap) + columns.start * from.column..];
                for first in (0..from.rows).step_by(ROWS) {
                    let rows = first..from.rows.min(first + ROWS);
                    let block = &mut panel[first * width..rows.end * width];
                    copy_block(
                        &data[first * from.row..],
                        (from.row, from.column),
                        columns.len(),
                        (block, width),
                    );
                }
            }
        })
    }

    /// Panels that `fill(group, columns, width, panel)` writes.
    fn panels(
        groups: usize,
        k: usize,
        n: usize,
        fill: impl Fn(usize, Range<usize>, usize, &mut [T]) + Sync,
    ) -> Self {
        let width = ISA.panel::<T>();
        let panels = n.div_ceil(width);
        let data = filled(groups * panels * k * width, k * width, |p, panel| {
            let first = p % panels * width;
            fill(p / panels, first..n.min(first + width), width, panel);
        });
        Self { data, group: panels * k * width, k, width }
    }

    /// The matrix of a group.
    pub(crate) fn right(&self, group: usize) -> Right<'_, T> {
        let data = &self.data[group * self.group..][..self.group];
        Right { data, panel: self.k * self.width, row: self.width }
    }

    /// `k` as runs of `len` rows, contiguous in the left operand as well.
    pub(crate) fn runs(&self, len: usize) -> Vec<Run> {
        (0..self.k).step_by(len.max(1)).map(|k| Run { a: k, b: k * self.width }).collect()
    }
}

/// `columns` columns of the rows of `block`, whose rows and columns lie `row` and `column` apart in `data`.
fn copy_block<T: Element>(
    data: &[T],
    (row, column): (usize, usize),
    columns: usize,
    (block, width): (&mut [T], usize),
) {
    if column == 1 {
        for (r, to) in block.chunks_exact_mut(width).enumerate() {
            to[..columns].copy_from_slice(&data[r * row..][..columns]);
        }
        return;
    }
    for j in 0..columns {
        let from = data[j * column..].iter().step_by(row);
        for (to, v) in block.chunks_exact_mut(width).zip(from) {
            to[j] = *v;
        }
    }
}
