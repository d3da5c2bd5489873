//! Multi-head self-attention (Vaswani et al., 2017, <https://arxiv.org/abs/1706.03762>) without a stored score matrix.

use candle_core::{D, DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::convolve::{parts, sum_in_order};
use crate::fresh::Fresh;
use crate::graph::{gradient, node};
use crate::kernel::vectorised;
use crate::lanes::LANES;
use crate::matrix::{Strides, matmul};
use crate::real::{Real, sum_by};
use crate::storage::{dispatch, reader};

/// Scores that are in memory at a time.
const TILE: usize = 1 << 15;

/// What is added to the scores, and which tokens are seen at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionOptions<'a> {
    /// Added to the scaled scores: `(heads, N, N)`, or `(1, N, N)` for all heads, of the type of the tokens. It gets a
    /// gradient. Minus infinity keeps a query (row) from a key (column), as a causal mask does. `(P, heads, N, N)` is for
    /// samples that take turns, such as the windows of images: sample `i` has the part `i mod P`, and `P` divides `B`.
    pub bias: Option<&'a Tensor>,
    /// `(B, N)` of type `U8`: where it is 0, no query of the sample sees the token. A sample needs at least one token
    /// that is seen, or its result is NaN.
    pub keys: Option<&'a Tensor>,
}

/// `softmax(q kᵀ / sqrt(d) + bias) v` for each of `heads` heads of width `d`.
///
/// `qkv` is `(B, N, 3·heads·d)` as timm packs it: queries, keys, values, each head by head. Returns
/// `(B, N, heads·d)`. Scores are computed for a tile of queries at a time and again in the backward pass, so that no
/// score matrix is kept.
///
/// # Errors
/// If `qkv` or one of `options` is not of its shape, or a type not `f32` or `f64`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_nn::{AttentionOptions, attention};
///
/// // Equal keys: every query gets the mean of the values that it may see.
/// let qkv = Tensor::new(&[[[0f32, 0., 1.], [0., 0., 3.]]], &Device::Cpu)?;
/// let all = attention(&qkv, 1, &AttentionOptions::default())?;
/// assert_eq!(all.to_vec3::<f32>()?, [[[2.], [2.]]]);
/// let keys = Tensor::new(&[[1u8, 0]], &Device::Cpu)?;
/// let first = attention(&qkv, 1, &AttentionOptions { keys: Some(&keys), ..Default::default() })?;
/// assert_eq!(first.to_vec3::<f32>()?, [[[1.], [1.]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn attention(qkv: &Tensor, heads: usize, options: &AttentionOptions<'_>) -> Result<Tensor> {
    let (batch, sizes) = Sizes::of(qkv, heads)?;
    options.check(qkv, batch, sizes)?;
    if !qkv.device().is_cpu() {
        let [q, k, v] = split(qkv, batch, sizes)?;
        let y = probabilities(&q, &k, sizes, options)?.matmul(&v)?;
        return y.transpose(1, 2)?.reshape((batch, sizes.tokens, sizes.dim()));
    }
    dispatch!(qkv.dtype(), "attention", T => on_cpu::<T>(qkv, batch, sizes, options))
}

/// The weights `(B, heads, N, N)` with which [`attention`] averages the values; without gradient.
///
/// # Errors
/// As [`attention`].
pub fn attention_map(qkv: &Tensor, heads: usize, options: &AttentionOptions<'_>) -> Result<Tensor> {
    let (batch, sizes) = Sizes::of(qkv, heads)?;
    options.check(qkv, batch, sizes)?;
    let [q, k, _] = split(&qkv.detach(), batch, sizes)?;
    Ok(probabilities(&q, &k, sizes, options)?.detach())
}

/// Queries, keys and values `(B, heads, N, d)`.
fn split(qkv: &Tensor, batch: usize, sizes: Sizes) -> Result<[Tensor; 3]> {
    let parts = qkv.reshape((batch, sizes.tokens, 3, sizes.heads, sizes.width))?;
    let part = |i| parts.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
    Ok([part(0)?, part(1)?, part(2)?])
}

fn probabilities(q: &Tensor, k: &Tensor, sizes: Sizes, options: &AttentionOptions<'_>) -> Result<Tensor> {
    let mut scores = (q.matmul(&k.t()?)? / (sizes.width as f64).sqrt())?;
    match options.bias {
        Some(bias) if bias.rank() == 4 => {
            let Sizes { tokens, heads, .. } = sizes;
            let turns = scores.reshape(((), bias.dim(0)?, heads, tokens, tokens))?;
            scores = turns.broadcast_add(bias)?.reshape(scores.shape())?;
        }
        Some(bias) => scores = scores.broadcast_add(bias)?,
        None => {}
    }
    if let Some(keys) = options.keys {
        let (batch, tokens) = keys.dims2()?;
        let seen = keys.reshape((batch, 1, 1, tokens))?.broadcast_as(scores.shape())?;
        let never = scores.ones_like()?.affine(0.0, f64::NEG_INFINITY)?;
        scores = seen.where_cond(&scores, &never)?;
    }
    candle_nn::ops::softmax(&scores, D::Minus1)
}

impl AttentionOptions<'_> {
    pub(crate) fn check(&self, qkv: &Tensor, batch: usize, sizes: Sizes) -> Result<()> {
        let Sizes { tokens, heads, .. } = sizes;
        if let Some(bias) = self.bias {
            match *bias.dims() {
                [h, n, m] if (h == heads || h == 1) && n == tokens && m == tokens => {}
                [p, h, n, m]
                    if h == heads && n == tokens && m == tokens && p > 0 && batch.is_multiple_of(p) => {}
                _ => bail!(
                    "attention: expected a bias ({heads} or 1, {tokens}, {tokens}) or (a divisor of {batch}, {heads}, \
                     {tokens}, {tokens}), got {:?}",
                    bias.dims()
                ),
            }
            if bias.dtype() != qkv.dtype() {
                bail!("attention: the bias is of type {:?}, the tokens of {:?}", bias.dtype(), qkv.dtype());
            }
        }
        if let Some(keys) =
            self.keys.filter(|keys| keys.dims() != [batch, tokens] || keys.dtype() != DType::U8)
        {
            bail!(
                "attention: expected keys ({batch}, {tokens}) of type U8, got {:?} of {:?}",
                keys.dims(),
                keys.dtype()
            );
        }
        Ok(())
    }

    /// The keys of all samples.
    pub(crate) fn keys_on_cpu(&self) -> Result<Option<Vec<u8>>> {
        self.keys.map(|keys| keys.flatten_all()?.to_vec1()).transpose()
    }
}

/// Sizes of one sample.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    /// Of a head.
    pub(crate) width: usize,
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

    pub(crate) fn dim(self) -> usize {
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

    /// Length of a row of scores in memory: full vectors.
    fn row(self) -> usize {
        self.tokens.next_multiple_of(LANES)
    }

    /// First query and number of queries of each tile.
    fn tiles(self) -> impl Iterator<Item = (usize, usize)> {
        let rows = (TILE / self.tokens).max(16);
        (0..self.tokens).step_by(rows).map(move |start| (start, rows.min(self.tokens - start)))
    }
}

fn on_cpu<T: Real>(
    qkv: &Tensor,
    batch: usize,
    sizes: Sizes,
    options: &AttentionOptions<'_>,
) -> Result<Tensor> {
    let qkv = qkv.contiguous()?;
    let bias = options.bias.map(Tensor::contiguous).transpose()?;
    let keys = options.keys_on_cpu()?;
    let sample = sizes.tokens * sizes.dim();
    let mut y = Fresh::new(batch * sample);
    {
        let bias = bias.as_ref().map(reader);
        let heads = Heads { sizes, bias: slice_of(&bias)?, keys: keys.as_deref() };
        y.par_parts(sample).zip(reader(&qkv).slice::<T>()?.par_chunks(3 * sample)).enumerate().for_each_init(
            Scratch::default,
            |scratch, (i, (y, qkv))| {
                heads.forward(i, qkv, y.clear(), scratch);
            },
        );
    }
    let inputs: Vec<Tensor> = std::iter::once(qkv).chain(bias).collect();
    let kept = inputs.clone();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    node("attention", &inputs, (y.into_vec(), (batch, sizes.tokens, sizes.dim())), move |_, dy| {
        let bias = kept.get(1).map(reader);
        let heads = Heads { sizes, bias: slice_of(&bias)?, keys: keys.as_deref() };
        let bias_len = kept.get(1).filter(|bias| bias.track_op()).map_or(0, Tensor::elem_count);
        let mut dqkv = Fresh::new(kept[0].elem_count());
        let part = batch.div_ceil(parts(bias_len)).max(1);
        let (qkv, dy) = (reader(&kept[0]), reader(dy));
        let sums: Vec<Vec<T>> = dqkv
            .par_parts(part * 3 * sample)
            .zip(qkv.slice::<T>()?.par_chunks(part * 3 * sample))
            .zip(dy.slice::<T>()?.par_chunks(part * sample))
            .enumerate()
            .map(|(p, ((dqkv, qkv), dy))| {
                let (mut d_bias, mut scratch) = (vec![T::ZERO; bias_len], Scratch::default());
                let samples = qkv.chunks_exact(3 * sample).zip(dy.chunks_exact(sample));
                let samples = dqkv.clear().chunks_exact_mut(3 * sample).zip(samples).enumerate();
                for (i, (dqkv, (qkv, dy))) in samples {
                    heads.backward(p * part + i, qkv, dy, dqkv, None, &mut d_bias, &mut scratch);
                }
                d_bias
            })
            .collect();
        let mut gradients = vec![gradient(dqkv.into_vec(), &kept[0])?];
        if let Some(bias) = kept.get(1) {
            gradients.push(if bias_len > 0 { gradient(sum_in_order(sums), bias)? } else { None });
        }
        Ok(gradients)
    })
}

/// The elements of a tensor that may be absent.
pub(crate) fn slice_of<'a, T: Real, G: std::ops::Deref<Target = candle_core::Storage>>(
    reader: &'a Option<crate::storage::Reader<'_, G>>,
) -> Result<Option<&'a [T]>> {
    reader.as_ref().map(|reader| reader.slice()).transpose()
}

/// Memory that a thread uses again for every head.
#[derive(Debug)]
pub(crate) struct Scratch<T> {
    p: Vec<T>,
    ds: Vec<T>,
    packed: Vec<T>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self { p: Vec::new(), ds: Vec::new(), packed: Vec::new() }
    }
}

/// Attention sample by sample.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a, T> {
    pub(crate) sizes: Sizes,
    /// `(heads or 1, N, N)`, or `(P, heads, N, N)`.
    pub(crate) bias: Option<&'a [T]>,
    /// `(B, N)`.
    pub(crate) keys: Option<&'a [u8]>,
}

impl<T: Real> Heads<'_, T> {
    /// The output of sample `i`.
    pub(crate) fn forward(&self, i: usize, qkv: &[T], y: &mut [T], scratch: &mut Scratch<T>) {
        let sizes = self.sizes;
        let (dim, packed) = (sizes.dim(), sizes.packed());
        for head in 0..sizes.heads {
            let [q, k, v] = [0, 1, 2].map(|part| &qkv[part * dim + head * sizes.width..]);
            for (start, rows) in sizes.tiles() {
                self.weights((i, head), (start, rows), (q, k), scratch);
                let Scratch { p, packed: room, .. } = scratch;
                let y = (&mut y[start * dim + head * sizes.width..], Strides::row_major(dim));
                let p = (&p[..], Strides::row_major(sizes.row()));
                matmul((rows, sizes.tokens, sizes.width), y, p, (v, packed), false, room);
            }
        }
    }

    /// Writes the gradient of the packed queries, keys and values of sample `i`, and adds to that of the bias unless it
    /// is empty. Writes the output once more if there is room for it in `y`.
    pub(crate) fn backward(
        &self,
        i: usize,
        qkv: &[T],
        dy: &[T],
        dqkv: &mut [T],
        mut y: Option<&mut [T]>,
        d_bias: &mut [T],
        scratch: &mut Scratch<T>,
    ) {
        let sizes = self.sizes;
        let Sizes { tokens, width, .. } = sizes;
        let (dim, packed) = (sizes.dim(), sizes.packed());
        for head in 0..sizes.heads {
            let at = [0, 1, 2].map(|part| part * dim + head * width);
            let [q, k, v] = at.map(|at| &qkv[at..]);
            for (start, rows) in sizes.tiles() {
                self.weights((i, head), (start, rows), (q, k), scratch);
                let Scratch { p, ds, packed: room } = scratch;
                let (p_at, p_t) = (Strides::row_major(sizes.row()), Strides::col_major(sizes.row()));
                let at_y = start * dim + head * width;
                if let Some(y) = y.as_deref_mut() {
                    let y = (&mut y[at_y..], Strides::row_major(dim));
                    matmul((rows, tokens, width), y, (p, p_at), (v, packed), false, room);
                }
                let q = (&q[start * 3 * dim..], packed);
                let dy = (&dy[at_y..], Strides::row_major(dim));
                ds.resize(rows * sizes.row(), T::ZERO);
                matmul((rows, width, tokens), (ds, p_at), dy, (v, sizes.packed_t()), false, room);
                self.score_gradient((i, head), start, p, ds, d_bias);
                let dq = (&mut dqkv[at[0] + start * 3 * dim..], packed);
                matmul((rows, tokens, width), dq, (ds, p_at), (k, packed), false, room);
                let more = start > 0;
                matmul((tokens, rows, width), (&mut dqkv[at[1]..], packed), (ds, p_t), q, more, room);
                matmul((tokens, rows, width), (&mut dqkv[at[2]..], packed), (p, p_t), dy, more, room);
            }
        }
    }

    /// Where in a bias of `len` numbers that of a head of sample `i` begins.
    fn bias_at(&self, len: usize, i: usize, head: usize) -> usize {
        let Sizes { tokens, heads, .. } = self.sizes;
        match len / (tokens * tokens) {
            1 => 0,
            all => (i % (all / heads) * heads + head) * tokens * tokens,
        }
    }

    /// The softmax of the scores of a tile, in `scratch.p`, in rows of full vectors that end in zeros.
    fn weights(
        &self,
        (i, head): (usize, usize),
        (start, rows): (usize, usize),
        (q, k): (&[T], &[T]),
        scratch: &mut Scratch<T>,
    ) {
        let sizes = self.sizes;
        let (tokens, row) = (sizes.tokens, sizes.row());
        let Scratch { p, packed: room, .. } = scratch;
        p.resize(rows * row, T::ZERO);
        let q = (&q[start * 3 * sizes.dim()..], sizes.packed());
        let size = (rows, sizes.width, tokens);
        matmul(size, (p, Strides::row_major(row)), q, (k, sizes.packed_t()), false, room);
        let bias = self
            .bias
            .map(|bias| &bias[self.bias_at(bias.len(), i, head) + start * tokens..][..rows * tokens]);
        let keys = self.keys.map(|keys| &keys[i * tokens..][..tokens]);
        let (scale, never) = (sizes.scale::<T>(), T::from_f64(f64::NEG_INFINITY));
        vectorised!({
            for (r, p) in p.chunks_exact_mut(row).enumerate() {
                let (scores, rest) = p.split_at_mut(tokens);
                rest.fill(never);
                scores.iter_mut().for_each(|s| *s *= scale);
                if let Some(bias) = bias {
                    scores.iter_mut().zip(&bias[r * tokens..]).for_each(|(s, b)| *s += *b);
                }
                if let Some(keys) = keys {
                    scores.iter_mut().zip(keys).for_each(|(s, seen)| {
                        if *seen == 0 {
                            *s = never;
                        }
                    });
                }
                softmax(p);
            }
        });
    }

    /// From the gradient of the weights `p` to that of the scaled products `q kᵀ`, in `ds`.
    fn score_gradient(
        &self,
        (i, head): (usize, usize),
        start: usize,
        p: &[T],
        ds: &mut [T],
        d_bias: &mut [T],
    ) {
        let (tokens, row) = (self.sizes.tokens, self.sizes.row());
        let scale = self.sizes.scale::<T>();
        let at = if d_bias.is_empty() { 0 } else { self.bias_at(d_bias.len(), i, head) };
        vectorised!({
            for (r, (p, ds)) in p.chunks_exact(row).zip(ds.chunks_exact_mut(row)).enumerate() {
                ds[tokens..].fill(T::ZERO);
                let mean = sum_by(p, ds, |p, ds| p * ds);
                ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = *p * (*ds - mean));
                if !d_bias.is_empty() {
                    let d_bias = &mut d_bias[at + (start + r) * tokens..][..tokens];
                    d_bias.iter_mut().zip(&*ds).for_each(|(sum, ds)| *sum += *ds);
                }
                ds.iter_mut().for_each(|ds| *ds *= scale);
            }
        });
    }
}

/// Softmax in place of full vectors.
#[inline(always)]
fn softmax<T: Real>(row: &mut [T]) {
    let mut lanes = [T::from_f64(f64::NEG_INFINITY); LANES];
    for row in row.chunks_exact(LANES) {
        for (lane, s) in lanes.iter_mut().zip(row) {
            *lane = if *s > *lane { *s } else { *lane };
        }
    }
    let max = lanes.iter().fold(lanes[0], |max, s| if *s > max { *s } else { max });
    row.iter_mut().for_each(|s| *s = (*s - max).exp());
    let factor = T::ONE / sum_by(row, row, |p, _| p);
    row.iter_mut().for_each(|p| *p *= factor);
}
