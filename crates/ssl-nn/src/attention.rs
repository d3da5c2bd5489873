//! Multi-head self-attention (Vaswani et al., 2017, <https://arxiv.org/abs/1706.03762>) without a stored score matrix.

use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

use crate::graph::{gradient, node};
use crate::matrix::{Strides, matmul};
use crate::real::{Real, sum_by};
use crate::storage::{dispatch, reader};

/// Scores that are in memory at a time.
const TILE: usize = 1 << 15;

/// `softmax(q kᵀ / sqrt(d)) v` for each of `heads` heads of width `d`.
///
/// `qkv` is `(B, N, 3·heads·d)` as timm packs it: queries, keys, values, each head by head. Returns
/// `(B, N, heads·d)`. Scores are computed for a tile of queries at a time and again in the backward pass, which keeps
/// one number a row.
///
/// # Errors
/// If `qkv` is not of that shape, or its type not `f32` or `f64`.
pub fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, sizes) = Sizes::of(qkv, heads)?;
    if !qkv.device().is_cpu() {
        let [q, k, v] = split(qkv, batch, sizes)?;
        let y = candle_nn::ops::softmax(&scores(&q, &k, sizes)?, D::Minus1)?.matmul(&v)?;
        return y.transpose(1, 2)?.reshape((batch, sizes.tokens, sizes.dim()));
    }
    dispatch!(qkv.dtype(), "attention", T => on_cpu::<T>(qkv, batch, sizes))
}

/// The weights `(B, heads, N, N)` with which [`attention`] averages the values; without gradient.
///
/// # Errors
/// As [`attention`].
pub fn attention_map(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, sizes) = Sizes::of(qkv, heads)?;
    let [q, k, _] = split(&qkv.detach(), batch, sizes)?;
    candle_nn::ops::softmax(&scores(&q, &k, sizes)?, D::Minus1)
}

/// Queries, keys and values `(B, heads, N, d)`.
fn split(qkv: &Tensor, batch: usize, sizes: Sizes) -> Result<[Tensor; 3]> {
    let parts = qkv.reshape((batch, sizes.tokens, 3, sizes.heads, sizes.width))?;
    let part = |i| parts.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
    Ok([part(0)?, part(1)?, part(2)?])
}

fn scores(q: &Tensor, k: &Tensor, sizes: Sizes) -> Result<Tensor> {
    q.matmul(&k.t()?)? / (sizes.width as f64).sqrt()
}

/// Sizes of one sample.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    tokens: usize,
    heads: usize,
    width: usize,
}

impl Sizes {
    fn of(qkv: &Tensor, heads: usize) -> Result<(usize, Self)> {
        match *qkv.dims() {
            [batch, tokens, packed] if heads > 0 && tokens > 0 && packed > 0 && packed % (3 * heads) == 0 => {
                Ok((batch, Self { tokens, heads, width: packed / (3 * heads) }))
            }
            _ => bail!(
                "attention with {heads} heads: expected (B, N, a multiple of {}), got {:?}",
                3 * heads,
                qkv.dims()
            ),
        }
    }

    fn dim(self) -> usize {
        self.heads * self.width
    }

    fn packed(self) -> Strides {
        Strides::row_major(3 * self.dim())
    }

    fn packed_t(self) -> Strides {
        Strides::col_major(3 * self.dim())
    }

    fn scale<T: Real>(self) -> T {
        T::from_f64(1.0 / (self.width as f64).sqrt())
    }

    /// First query and number of queries of each tile.
    fn tiles(self) -> impl Iterator<Item = (usize, usize)> {
        let rows = (TILE / self.tokens).max(16);
        (0..self.tokens).step_by(rows).map(move |start| (start, rows.min(self.tokens - start)))
    }
}

fn on_cpu<T: Real>(qkv: &Tensor, batch: usize, sizes: Sizes) -> Result<Tensor> {
    let qkv = qkv.contiguous()?;
    let sample = sizes.tokens * sizes.dim();
    let rows = sizes.tokens * sizes.heads;
    let mut y = vec![T::ZERO; batch * sample];
    let mut log_sums = vec![T::ZERO; batch * rows];
    y.par_chunks_mut(sample)
        .zip(reader(&qkv).slice::<T>()?.par_chunks(3 * sample))
        .zip(log_sums.par_chunks_mut(rows))
        .for_each(|((y, qkv), log_sums)| forward_sample(sizes, qkv, y, log_sums));
    let kept = qkv.clone();
    node("attention", &[&qkv], (y, (batch, sizes.tokens, sizes.dim())), move |_, dy| {
        let mut dqkv = vec![T::ZERO; kept.elem_count()];
        dqkv.par_chunks_mut(3 * sample)
            .zip(reader(&kept).slice::<T>()?.par_chunks(3 * sample))
            .zip(reader(dy).slice::<T>()?.par_chunks(sample))
            .zip(log_sums.par_chunks(rows))
            .for_each(|(((dqkv, qkv), dy), log_sums)| backward_sample(sizes, qkv, log_sums, dy, dqkv));
        Ok(vec![gradient(dqkv, &kept)?])
    })
}

/// Attention of one sample; leaves the logarithm of each softmax's denominator, head by head.
fn forward_sample<T: Real>(sizes: Sizes, qkv: &[T], y: &mut [T], log_sums: &mut [T]) {
    let Sizes { tokens, heads, width } = sizes;
    let dim = sizes.dim();
    let mut p = Vec::new();
    for (head, log_sums) in (0..heads).zip(log_sums.chunks_exact_mut(tokens)) {
        let [q, k, v] = [0, 1, 2].map(|part| &qkv[part * dim + head * width..]);
        for (start, rows) in sizes.tiles() {
            p.resize(rows * tokens, T::ZERO);
            let p_at = Strides::row_major(tokens);
            let q = (&q[start * 3 * dim..], sizes.packed());
            matmul((rows, width, tokens), (&mut p, p_at), q, (k, sizes.packed_t()), false);
            for (p, log_sum) in p.chunks_exact_mut(tokens).zip(&mut log_sums[start..]) {
                *log_sum = softmax_row(p, sizes.scale());
            }
            let y = (&mut y[start * dim + head * width..], Strides::row_major(dim));
            matmul((rows, tokens, width), y, (&p, p_at), (v, sizes.packed()), false);
        }
    }
}

/// Softmax of the scaled row in place; returns the logarithm of `Σ exp`.
fn softmax_row<T: Real>(row: &mut [T], scale: T) -> T {
    row.iter_mut().for_each(|s| *s *= scale);
    let max = row.iter().fold(row[0], |max, s| if *s > max { *s } else { max });
    row.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum = sum_by(row, row, |p, _| p);
    let factor = T::ONE / sum;
    row.iter_mut().for_each(|p| *p *= factor);
    max + T::from_f64(sum.to_f64().ln())
}

/// Writes the gradient of one sample's packed queries, keys and values.
fn backward_sample<T: Real>(sizes: Sizes, qkv: &[T], log_sums: &[T], dy: &[T], dqkv: &mut [T]) {
    let Sizes { tokens, heads, width } = sizes;
    let (dim, scale) = (sizes.dim(), sizes.scale::<T>());
    let (mut p, mut ds) = (Vec::new(), Vec::new());
    for (head, log_sums) in (0..heads).zip(log_sums.chunks_exact(tokens)) {
        let at = [0, 1, 2].map(|part| part * dim + head * width);
        let [q, k, v] = at.map(|at| &qkv[at..]);
        for (start, rows) in sizes.tiles() {
            p.resize(rows * tokens, T::ZERO);
            ds.resize(rows * tokens, T::ZERO);
            let (p_at, p_t) = (Strides::row_major(tokens), Strides::col_major(tokens));
            let q = (&q[start * 3 * dim..], sizes.packed());
            let dy = (&dy[start * dim + head * width..], Strides::row_major(dim));
            let (k_t, v_t) = ((k, sizes.packed_t()), (v, sizes.packed_t()));
            matmul((rows, width, tokens), (&mut p, p_at), q, k_t, false);
            matmul((rows, width, tokens), (&mut ds, p_at), dy, v_t, false);
            let pairs = p.chunks_exact_mut(tokens).zip(ds.chunks_exact_mut(tokens));
            for ((p, ds), log_sum) in pairs.zip(&log_sums[start..]) {
                p.iter_mut().for_each(|p| *p = (*p * scale - *log_sum).exp());
                let mean = sum_by(p, ds, |p, ds| p * ds);
                ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = *p * (*ds - mean) * scale);
            }
            let packed = sizes.packed();
            let dq = (&mut dqkv[at[0] + start * 3 * dim..], packed);
            matmul((rows, tokens, width), dq, (&ds, p_at), (k, packed), false);
            matmul((tokens, rows, width), (&mut dqkv[at[1]..], packed), (&ds, p_t), q, true);
            matmul((tokens, rows, width), (&mut dqkv[at[2]..], packed), (&p, p_t), dy, true);
        }
    }
}
