//! The nearest rows of each row by cosine, exact, by brute force.

use std::cmp::Ordering;

use candle_core::{Device, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::{Features, Result};

/// A tile of similarities has this many queries and bank rows: 512 KiB, small enough for the cache of one core.
const QUERY_TILE: usize = 128;
const BANK_TILE: usize = 1024;

/// Rows among themselves are compared in stripes of so many, whose similarities to a tile of others are held at once.
const STRIPE: usize = 2 * BANK_TILE;

/// Similarities that are looked at together.
const BLOCK: usize = 64;

/// A row of the bank, with its similarity to a query as the matrix multiplication has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) similarity: f32,
    pub(crate) row: usize,
}

impl Candidate {
    pub(crate) fn nearest_first(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then(self.row.cmp(&other.row))
    }
}

/// The `k` best of the neighbours seen so far. Rows must come in ascending order.
#[derive(Clone, Debug)]
struct TopK {
    k: usize,
    floor: f32,
    found: Vec<Candidate>,
}

impl TopK {
    fn new(k: usize) -> Self {
        Self { k, floor: f32::NEG_INFINITY, found: Vec::new() }
    }

    fn extend(&mut self, first_row: usize, similarities: &[f32]) {
        for (block, similarities) in similarities.chunks(BLOCK).enumerate() {
            // Nearly all blocks are passed over, which takes a few vector instructions each.
            if similarities.iter().fold(false, |any, similarity| any | (*similarity > self.floor)) {
                self.extend_block(first_row + block * BLOCK, similarities);
            }
        }
    }

    fn extend_block(&mut self, first_row: usize, similarities: &[f32]) {
        for (offset, &similarity) in similarities.iter().enumerate() {
            self.push(Candidate { similarity, row: first_row + offset });
        }
    }

    fn push(&mut self, candidate: Candidate) {
        // A row as similar as the k-th comes after it, so it never replaces it.
        if candidate.similarity > self.floor {
            self.found.push(candidate);
            if self.found.len() == 2 * self.k.max(16) {
                self.prune();
            }
        }
    }

    fn prune(&mut self) {
        if self.found.len() > self.k {
            let (_, kth, _) = self.found.select_nth_unstable_by(self.k - 1, Candidate::nearest_first);
            self.floor = kth.similarity;
            self.found.truncate(self.k);
        }
    }

    /// The rows, nearest first.
    fn into_rows(mut self) -> Vec<usize> {
        self.prune();
        self.found.sort_unstable_by(Candidate::nearest_first);
        self.found.iter().map(|candidate| candidate.row).collect()
    }
}

/// Extends the best of each column, whose floors are `floors`, by its similarity to one row.
fn extend_columns(best: &mut [TopK], floors: &mut [f32], row: usize, similarities: &[f32]) {
    let blocks = best.chunks_mut(BLOCK).zip(floors.chunks_mut(BLOCK)).zip(similarities.chunks(BLOCK));
    for ((best, floors), similarities) in blocks {
        let above = similarities.iter().zip(&*floors).map(|(similarity, floor)| similarity > floor);
        if above.fold(false, |any, above| any | above) {
            for ((best, floor), &similarity) in best.iter_mut().zip(floors).zip(similarities) {
                if similarity > *floor {
                    best.push(Candidate { similarity, row });
                    *floor = best.floor;
                }
            }
        }
    }
}

/// The `k` nearest bank rows of each query, nearest first.
pub(crate) fn nearest(bank: &Features, queries: &Features, k: usize) -> Result<Vec<Vec<usize>>> {
    let tile = |first| unit_rows(queries, first, QUERY_TILE);
    let query_tiles = (0..queries.rows()).step_by(QUERY_TILE).map(tile).collect::<Result<Vec<_>>>()?;
    let mut best = vec![TopK::new(k); queries.rows()];
    for first_row in (0..bank.rows()).step_by(BANK_TILE) {
        let bank_tile = unit_rows(bank, first_row, BANK_TILE)?.t()?.contiguous()?; // (D, rows)
        query_tiles.par_iter().zip(best.par_chunks_mut(QUERY_TILE)).try_for_each(|(queries, best)| {
            let similarities = queries.matmul(&bank_tile)?; // (queries, rows)
            read_rows(&similarities, |rows| {
                best.iter_mut().zip(rows).for_each(|(best, row)| best.extend(first_row, row));
            })
        })?;
    }
    Ok(best.into_par_iter().map(TopK::into_rows).collect())
}

/// The `k` nearest rows of each row, which may be among them, nearest first.
///
/// They are those of [`nearest`] for half of the multiplications: a similarity serves both of its rows, the one of the
/// stripe and, unless that is in the stripe as well, the one of the tile.
pub(crate) fn nearest_among(features: &Features, k: usize) -> Result<Vec<Vec<usize>>> {
    let block = |first| Ok(unit_rows(features, first, BANK_TILE)?.t()?.contiguous()?); // (D, rows)
    let firsts: Vec<usize> = (0..features.rows()).step_by(BANK_TILE).collect();
    let blocks = firsts.par_iter().map(|first| block(*first)).collect::<Result<Vec<_>>>()?;
    let mut best = vec![TopK::new(k); features.rows()];
    for (at, stripe) in blocks.chunks(STRIPE / BANK_TILE).enumerate() {
        let first = at * STRIPE;
        let tiles = stripe.iter().map(query_tiles).collect::<candle_core::Result<Vec<_>>>()?.concat();
        for (others, first_other) in blocks[first / BANK_TILE..].iter().zip((first..).step_by(BANK_TILE)) {
            let stripe = best[first..].par_chunks_mut(QUERY_TILE).zip(&tiles);
            let extend = |(best, tile): (&mut [TopK], &Tensor)| {
                let similarities = tile.matmul(others)?; // (rows, others)
                read_rows(&similarities, |rows| {
                    best.iter_mut().zip(rows).for_each(|(best, row)| best.extend(first_other, row));
                })?;
                Ok::<_, candle_core::Error>(similarities)
            };
            let similarities: Vec<Tensor> = stripe.map(extend).collect::<candle_core::Result<_>>()?;
            if first_other >= first + STRIPE {
                extend_others(&mut best[first_other..], first, &similarities)?;
            }
        }
    }
    Ok(best.into_par_iter().map(TopK::into_rows).collect())
}

/// Extends the best of the others by their similarities `(rows, others)` to the rows of a stripe, the first of which is
/// `first`.
fn extend_others(best: &mut [TopK], first: usize, similarities: &[Tensor]) -> candle_core::Result<()> {
    let others = similarities[0].dim(1)?;
    best[..others].par_chunks_mut(QUERY_TILE).enumerate().try_for_each(|(at, best)| {
        let mut floors: Vec<f32> = best.iter().map(|best| best.floor).collect();
        for (tile, similarities) in similarities.iter().enumerate() {
            read_rows(similarities, |rows| {
                for (row, similarities) in (first + tile * QUERY_TILE..).zip(rows) {
                    let similarities = &similarities[at * QUERY_TILE..][..best.len()];
                    extend_columns(best, &mut floors, row, similarities);
                }
            })?;
        }
        Ok(())
    })
}

/// What `read` makes of the rows of a matrix.
pub(crate) fn read_rows<T>(
    matrix: &Tensor,
    read: impl FnOnce(std::slice::ChunksExact<'_, f32>) -> T,
) -> candle_core::Result<T> {
    let (storage, _) = matrix.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("features are on the CPU") };
    Ok(read(storage.as_slice::<f32>()?.chunks_exact(matrix.dim(1)?)))
}

/// The rows of a tile of the bank, `(D, rows)`, as tiles of queries.
fn query_tiles(tile: &Tensor) -> candle_core::Result<Vec<Tensor>> {
    let rows = tile.dim(1)?;
    let part = |first| tile.narrow(1, first, QUERY_TILE.min(rows - first))?.t();
    (0..rows).step_by(QUERY_TILE).map(part).collect()
}

/// Up to `count` rows from the row `first` on as a tensor `(rows, D)` of rows of length 1; a row of zeros stays one.
pub(crate) fn unit_rows(features: &Features, first: usize, count: usize) -> Result<Tensor> {
    let (dim, rows) = (features.dim(), count.min(features.rows() - first));
    let mut data = features.data()[first * dim..(first + rows) * dim].to_vec();
    data.par_chunks_exact_mut(dim).for_each(|row| {
        let norm = dot(row, row).sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
        }
    });
    Ok(Tensor::from_vec(data, (rows, dim), &Device::Cpu)?)
}

/// `Σ aᵢ bᵢ` in `f64`, in eight partial sums.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top_k(k: usize, similarities: &[f32]) -> Vec<usize> {
        let mut best = TopK::new(k);
        best.extend(0, similarities);
        best.into_rows()
    }

    #[test]
    fn ties_go_to_the_earlier_row() {
        assert_eq!(top_k(2, &[0.5, 0.7, 0.7, 0.7]), [1, 2]);
        assert_eq!(top_k(3, &[0.5; 200]), [0, 1, 2]);
    }

    #[test]
    fn top_k_equals_a_full_sort() {
        // Steps of 37 modulo 101 give a fixed order with many ties.
        let similarities: Vec<f32> = (0..5000).map(|i| ((i * 37) % 101) as f32 / 101.0).collect();
        let mut rows: Vec<usize> = (0..similarities.len()).collect();
        rows.sort_by(|&a, &b| similarities[b].total_cmp(&similarities[a]).then(a.cmp(&b)));
        for k in [1, 20, 200, 5000] {
            assert_eq!(top_k(k, &similarities), rows[..k]);
        }
    }
}
