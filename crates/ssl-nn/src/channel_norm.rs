//! The passes of a batch norm over slices `(rows, channels)`, a row being a pixel or a sample.
//!
//! Rows are taken in chunks that the cache holds. Sums over a chunk are merged in the order of the chunks, in `f64`, so
//! that they depend neither on the number of threads nor much on rounding.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::activation::rectify;
use crate::fresh::filled;
use crate::kernel::vectorised;
use crate::lanes::{LANES, Lanes, for_blocks, get, put};
use crate::storage::Element;

/// Elements of a chunk.
const CHUNK: usize = 1 << 14;

/// Elements of the rows that one task works on.
fn chunk(channels: usize) -> usize {
    (CHUNK / channels.max(1)).max(1) * channels.max(1)
}

/// Rows that are gone through together: few enough that each is a stream that the processor reads ahead.
fn rows_at_once(channels: usize) -> usize {
    (1024 / channels.max(1)).clamp(4, 64)
}

/// Mean and biased variance of each channel.
#[derive(Clone, Debug)]
pub(crate) struct Statistics {
    pub(crate) mean: Vec<f64>,
    pub(crate) var: Vec<f64>,
}

impl Statistics {
    /// Measures `z` in one pass over memory.
    pub(crate) fn measure<T: Element>(z: &[T], channels: usize) -> Self {
        let (measure, chunk) = (Measure::new(channels), chunk(channels));
        z.par_chunks(chunk).enumerate().for_each(|(i, z)| measure.add(i * chunk, z));
        measure.finish()
    }
}

/// Measures a tensor whose parts come one by one, in any order, from any thread: two passes over each chunk while the
/// cache holds it.
pub(crate) struct Measure {
    channels: usize,
    /// Of each chunk the place of its first element and its moments.
    chunks: Mutex<Vec<(usize, Moments)>>,
}

/// Number of rows, means, and sums of squared distances from them.
type Moments = (f64, Vec<f64>, Vec<f64>);

impl Measure {
    pub(crate) fn new(channels: usize) -> Self {
        Self { channels, chunks: Mutex::default() }
    }

    /// Measures the rows that begin at element `start`.
    pub(crate) fn add<T: Element>(&self, start: usize, rows: &[T]) {
        let chunk = chunk(self.channels);
        let of = |(i, z): (usize, &[T])| (start + i * chunk, chunk_moments(z, self.channels));
        let chunks: Vec<_> = rows.chunks(chunk).enumerate().map(of).collect();
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).extend(chunks);
    }

    /// The statistics of all parts, which do not depend on the order in which these came.
    pub(crate) fn finish(self) -> Statistics {
        let mut chunks = self.chunks.into_inner().unwrap_or_else(PoisonError::into_inner);
        chunks.sort_unstable_by_key(|(start, _)| *start);
        let (mut mean, mut squares) = (vec![0.0; self.channels], vec![0.0; self.channels]);
        let mut seen = 0.0;
        for (_, (rows, own, centred)) in chunks {
            let total = seen + rows;
            for c in 0..self.channels {
                // Chan, Golub and LeVeque (1979).
                let delta = own[c] - mean[c];
                mean[c] += delta * rows / total;
                squares[c] += centred[c] + delta * delta * seen * rows / total;
            }
            seen = total;
        }
        Statistics { mean, var: squares.into_iter().map(|s| s / seen).collect() }
    }
}

fn chunk_moments<T: Element>(z: &[T], channels: usize) -> Moments {
    let rows = (z.len() / channels) as f64;
    let mut sum = vec![T::ZERO; channels];
    vectorised!({
        for row in z.chunks_exact(channels) {
            sum.iter_mut().zip(row).for_each(|(sum, z)| *sum += *z);
        }
    });
    let about: Vec<T> = sum.iter().map(|sum| T::from_f64(sum.to_f64() / rows)).collect();
    // Distances from what is nearly the mean are small, and so is the rounding of their sums.
    let (mut rest, mut squares) = (vec![T::ZERO; channels], vec![T::ZERO; channels]);
    vectorised!({
        for row in z.chunks_exact(channels) {
            let sums = rest.iter_mut().zip(&mut squares);
            for ((rest, squares), (z, about)) in sums.zip(row.iter().zip(&about)) {
                let distance = *z - *about;
                *rest += distance;
                *squares += distance * distance;
            }
        }
    });
    let rest = rest.iter().map(|rest| rest.to_f64());
    let mean = about.iter().zip(rest.clone()).map(|(about, rest)| about.to_f64() + rest / rows).collect();
    let squares = squares.iter().zip(rest).map(|(squares, rest)| squares.to_f64() - rest * rest / rows);
    (rows, mean, squares.collect())
}

/// A normalisation with all that its passes need of each channel: `y = (z − mean) · scale + shift`.
#[derive(Clone, Debug)]
pub(crate) struct ChannelNorm<T> {
    mean: Vec<T>,
    scale: Vec<T>,
    shift: Vec<T>,
    inverse_std: Vec<f64>,
    /// Whether mean and variance are those of the batch, and so depend on it.
    train: bool,
}

/// The parameters of a block of channels.
struct Block<T> {
    mean: Lanes<T>,
    scale: Lanes<T>,
    shift: Lanes<T>,
}

impl<T: Element> ChannelNorm<T> {
    pub(crate) fn new(statistics: &Statistics, eps: f64, weight: &[T], bias: &[T], train: bool) -> Self {
        let inverse_std: Vec<f64> = statistics.var.iter().map(|var| 1.0 / (var + eps).sqrt()).collect();
        Self {
            mean: statistics.mean.iter().map(|v| T::from_f64(*v)).collect(),
            scale: weight.iter().zip(&inverse_std).map(|(w, i)| *w * T::from_f64(*i)).collect(),
            shift: bias.to_vec(),
            inverse_std,
            train,
        }
    }

    fn channels(&self) -> usize {
        self.mean.len()
    }

    #[inline(always)]
    fn block<const FULL: bool>(&self, start: usize, end: usize) -> Block<T> {
        // Not by `map` over an array, of which the compiler makes a call for each copy.
        Block {
            mean: get::<FULL, _>(&self.mean[start..end]),
            scale: get::<FULL, _>(&self.scale[start..end]),
            shift: get::<FULL, _>(&self.shift[start..end]),
        }
    }

    /// The normalised values of a block of channels.
    #[inline(always)]
    fn normalise(&self, start: usize, end: usize) -> impl Fn(Lanes<T>) -> Lanes<T> {
        let Block { mean, scale, shift } = self.block::<false>(start, end);
        #[inline(always)]
        move |mut z| {
            for c in 0..LANES {
                z[c] = (z[c] - mean[c]) * scale[c] + shift[c];
            }
            z
        }
    }

    /// `y = norm(z)`, perhaps rectified.
    pub(crate) fn apply(&self, z: &[T], relu: bool) -> Vec<T> {
        if relu {
            let chunk = chunk(self.channels());
            return filled(z.len(), chunk, |i, y| self.rectify(&z[i * chunk..][..y.len()], y));
        }
        self.map(z, z, |start, end| {
            let norm = self.normalise(start, end);
            #[inline(always)]
            move |z, _| norm(z)
        })
    }

    /// `y = relu(norm(z))` of a few rows.
    pub(crate) fn rectify(&self, z: &[T], y: &mut [T]) {
        self.map_rows((z, z), y, &|start, end| {
            let norm = self.normalise(start, end);
            #[inline(always)]
            move |z, _| rectified(norm(z))
        });
    }

    /// `relu(norm(z) + x)`.
    pub(crate) fn add_relu(&self, z: &[T], x: &[T]) -> Vec<T> {
        self.map(z, x, |start, end| {
            let norm = self.normalise(start, end);
            #[inline(always)]
            move |z, x| rectified(sum(norm(z), x))
        })
    }

    /// `relu(norm(z) + other(x))`.
    pub(crate) fn add_norm_relu(&self, z: &[T], other: &Self, x: &[T]) -> Vec<T> {
        self.map(z, x, |start, end| {
            let (norm, other) = (self.normalise(start, end), other.normalise(start, end));
            #[inline(always)]
            move |z, x| rectified(sum(norm(z), other(x)))
        })
    }

    /// `y = f(z, x)`, where `f` is made for each block of channels.
    #[inline(always)]
    fn map<F: Fn(Lanes<T>, Lanes<T>) -> Lanes<T>>(
        &self,
        z: &[T],
        x: &[T],
        f: impl Fn(usize, usize) -> F + Sync + Send,
    ) -> Vec<T> {
        let chunk = chunk(self.channels());
        filled(z.len(), chunk, |i, y| {
            let [z, x] = [z, x].map(|all| &all[i * chunk..][..y.len()]);
            self.map_rows((z, x), y, &f);
        })
    }

    /// [`Self::map`] of a few rows.
    #[inline(always)]
    fn map_rows<F: Fn(Lanes<T>, Lanes<T>) -> Lanes<T>>(
        &self,
        (z, x): (&[T], &[T]),
        y: &mut [T],
        f: &impl Fn(usize, usize) -> F,
    ) {
        let n = self.channels();
        let group = rows_at_once(n) * n;
        vectorised!(for (y, (z, x)) in y.chunks_mut(group).zip(z.chunks(group).zip(x.chunks(group))) {
            for_blocks!(n, (start, end, FULL) => {
                let f = f(start, end);
                let rows = z.chunks_exact(n).zip(x.chunks_exact(n));
                for (y, (z, x)) in y.chunks_exact_mut(n).zip(rows) {
                    put::<FULL, _>(&mut y[start..end], &f(get::<FULL, _>(&z[start..end]), get::<FULL, _>(&x[start..end])));
                }
            });
        });
    }

    /// The gradients of the input, the weight and the bias.
    ///
    /// `dy` is the gradient of the output, behind the ReLU if there is one.
    pub(crate) fn gradients(&self, z: &[T], dy: &[T], relu: bool) -> (Vec<T>, Vec<T>, Vec<T>) {
        if relu {
            self.gradients_where(z, dy, |normalised| normalised > T::ZERO)
        } else {
            self.gradients_where(z, dy, |_| true)
        }
    }

    /// [`Self::gradients`] of what `passes(normalised)`.
    fn gradients_where(
        &self,
        z: &[T],
        dy: &[T],
        passes: impl Fn(T) -> bool + Sync,
    ) -> (Vec<T>, Vec<T>, Vec<T>) {
        let sums = self.sums(z, dy, &passes);
        let rows = (z.len() / self.channels().max(1)) as f64;
        // Without batch statistics the mean and the variance are constants and carry no gradient.
        let share = if self.train { 1.0 / rows } else { 0.0 };
        let mean_dy: Vec<T> = sums.iter().map(|(dy, _)| T::from_f64(dy * share)).collect();
        let slopes = sums.iter().zip(&self.inverse_std).map(|((_, s), i)| T::from_f64(i * i * s * share));
        let dx = self.input_gradient(z, dy, &passes, (&mean_dy, &slopes.collect::<Vec<T>>()));
        let d_weight = sums.iter().zip(&self.inverse_std).map(|((_, centred), i)| T::from_f64(centred * i));
        let d_bias = sums.iter().map(|(dy, _)| T::from_f64(*dy));
        (dx, d_weight.collect(), d_bias.collect())
    }

    /// For each channel `Σ dy` and `Σ dy · (z − mean)` over what passes.
    fn sums(&self, z: &[T], dy: &[T], passes: &(impl Fn(T) -> bool + Sync)) -> Vec<(f64, f64)> {
        let (n, chunk) = (self.channels(), chunk(self.channels()));
        let parts: Vec<_> = z
            .par_chunks(chunk)
            .zip(dy.par_chunks(chunk))
            .map(|(z, dy)| {
                let (mut first, mut second) = (vec![T::ZERO; n], vec![T::ZERO; n]);
                let group = rows_at_once(n) * n;
                vectorised!({
                    for (z, dy) in z.chunks(group).zip(dy.chunks(group)) {
                        for_blocks!(n, (start, end, FULL) => {
                            let norm = self.block::<FULL>(start, end);
                            let (mut a, mut b) = (get::<FULL, _>(&first[start..end]), get::<FULL, _>(&second[start..end]));
                            for (z, dy) in z.chunks_exact(n).zip(dy.chunks_exact(n)) {
                                let (z, dy) = (get::<FULL, _>(&z[start..end]), get::<FULL, _>(&dy[start..end]));
                                for c in 0..LANES {
                                    let centred = z[c] - norm.mean[c];
                                    let open = passes(centred * norm.scale[c] + norm.shift[c]);
                                    let dy = if open { dy[c] } else { T::ZERO };
                                    a[c] += dy;
                                    b[c] += dy * centred;
                                }
                            }
                            put::<FULL, _>(&mut first[start..end], &a);
                            put::<FULL, _>(&mut second[start..end], &b);
                        });
                    }
                });
                (first, second)
            })
            .collect();
        let mut total = vec![(0.0, 0.0); n];
        for (first, second) in parts {
            for (total, (first, second)) in total.iter_mut().zip(first.iter().zip(&second)) {
                total.0 += first.to_f64();
                total.1 += second.to_f64();
            }
        }
        total
    }

    /// `scale · (dy − mean_dy − (z − mean) · slope)`, with 0 for the `dy` that do not pass.
    fn input_gradient(
        &self,
        z: &[T],
        dy: &[T],
        passes: &(impl Fn(T) -> bool + Sync),
        (mean_dy, slope): (&[T], &[T]),
    ) -> Vec<T> {
        let (n, chunk) = (self.channels(), chunk(self.channels()));
        let group = rows_at_once(n) * n;
        filled(dy.len(), chunk, |i, dx| {
            let [z, dy] = [z, dy].map(|all| &all[i * chunk..][..dx.len()]);
            vectorised!({
                let groups = z.chunks(group).zip(dy.chunks(group));
                for (dx, (z, dy)) in dx.chunks_mut(group).zip(groups) {
                    for_blocks!(n, (start, end, FULL) => {
                        let norm = self.block::<FULL>(start, end);
                        let (mean_dy, slope) = (get::<FULL, _>(&mean_dy[start..end]), get::<FULL, _>(&slope[start..end]));
                        let rows = z.chunks_exact(n).zip(dy.chunks_exact(n));
                        for (dx, (z, dy)) in dx.chunks_exact_mut(n).zip(rows) {
                            let (z, dy) = (get::<FULL, _>(&z[start..end]), get::<FULL, _>(&dy[start..end]));
                            let mut out = [T::ZERO; LANES];
                            for c in 0..LANES {
                                let centred = z[c] - norm.mean[c];
                                let open = passes(centred * norm.scale[c] + norm.shift[c]);
                                let dy = if open { dy[c] } else { T::ZERO };
                                out[c] = norm.scale[c] * (dy - mean_dy[c] - centred * slope[c]);
                            }
                            put::<FULL, _>(&mut dx[start..end], &out);
                        }
                    });
                }
            });
        })
    }
}

#[inline(always)]
fn rectified<T: Element>(mut x: Lanes<T>) -> Lanes<T> {
    for c in 0..LANES {
        x[c] = rectify(x[c]);
    }
    x
}

#[inline(always)]
fn sum<T: Element>(mut a: Lanes<T>, b: Lanes<T>) -> Lanes<T> {
    for c in 0..LANES {
        a[c] += b[c];
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_may_come_in_any_order() {
        let channels = 24;
        let z: Vec<f32> = (0..3000 * channels).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect();
        let part = 700 * channels;
        let measure = |order: &[usize]| {
            let measure = Measure::new(channels);
            order.iter().for_each(|i| measure.add(i * part, &z[i * part..z.len().min((i + 1) * part)]));
            measure.finish()
        };
        let (forwards, backwards) = (measure(&[0, 1, 2, 3, 4]), measure(&[4, 2, 0, 3, 1]));
        assert_eq!((&forwards.mean, &forwards.var), (&backwards.mean, &backwards.var));
        let whole = Statistics::measure(&z, channels);
        for (parts, whole) in forwards.mean.iter().zip(&whole.mean).chain(forwards.var.iter().zip(&whole.var))
        {
            assert!((parts - whole).abs() < 1e-5, "{parts} {whole}");
        }
    }

    #[test]
    fn moments_survive_a_large_mean_and_many_chunks() {
        let channels = 3;
        let z: Vec<f32> = (0..30_000 * channels)
            .map(|i| 1000.0 + ((i / channels * 37 + i % channels) % 11) as f32)
            .collect();
        let statistics = Statistics::measure(&z, channels);
        for c in 0..channels {
            let values: Vec<f64> = z.iter().skip(c).step_by(channels).map(|v| f64::from(*v)).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let var = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / values.len() as f64;
            assert!((statistics.mean[c] - mean).abs() < 1e-4, "{} {mean}", statistics.mean[c]);
            assert!((statistics.var[c] - var).abs() < 1e-4 * var, "{} {var}", statistics.var[c]);
        }
    }
}
