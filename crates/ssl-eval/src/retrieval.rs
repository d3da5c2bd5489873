//! Images found by images: average precision and recall of rankings by cosine, exact, by brute force.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::nearest::{Candidate, nearest, nearest_among, unit_rows};
use crate::{Error, Features, Result};

/// Queries that are ranked together; their similarities to the gallery are in memory at once.
const TILE: usize = 64;

/// Which images are looked for.
#[derive(Clone, Copy, Debug)]
pub enum Queries<'a> {
    /// Those of another set.
    Others(&'a Features),
    /// Each image of the gallery among all others.
    LeaveOneOut,
}

/// The mean over queries of the average precision of the whole gallery, ranked by cosine: the precision up to the rank of
/// each image of the query's label, averaged over those images.
///
/// Of equally similar images the earlier one goes first. Queries of a label that the gallery does not have are left out.
/// Similarities are `f32`; memory beyond the features is a copy of them and 64 rows of similarities.
///
/// # Errors
/// If the dimensions differ, or no query has an image of its label to find.
///
/// # Example
/// ```
/// use ssl_eval::{Features, Queries, mean_average_precision};
///
/// let gallery = Features::new(vec![1.0, 0.0, 0.8, 0.6, 0.0, 1.0], 2, vec![5, 6, 5])?;
/// let query = Features::new(vec![1.0, 0.1], 2, vec![5])?;
/// // Found at the ranks 1 and 3: (1 / 1 + 2 / 3) / 2.
/// let found = mean_average_precision(&gallery, Queries::Others(&query))?;
/// assert!((found - 5.0 / 6.0).abs() < 1e-12);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn mean_average_precision(gallery: &Features, queries: Queries<'_>) -> Result<f64> {
    let search = Search::new(gallery, queries)?;
    let columns = unit_rows(gallery, 0, gallery.rows())?.t()?.contiguous()?; // (D, N)
    let mut precisions = Vec::with_capacity(search.asking.rows());
    for first in (0..search.asking.rows()).step_by(TILE) {
        let similarities = unit_rows(search.asking, first, TILE)?.matmul(&columns)?.to_vec2()?; // (TILE, N)
        let queries = similarities.par_iter().enumerate();
        precisions.par_extend(queries.map(|(at, row)| search.average_precision(first + at, row)));
    }
    mean(&precisions)
}

/// As [`mean_average_precision`], of the `k` most similar images alone: the precisions up to the ranks where images of the
/// query's label are, over as many such images as there could be, `k` or those of the gallery.
///
/// A `k` above the size of the gallery is that size. Memory beyond the features is a copy of the queries and the ranks.
///
/// # Errors
/// Those of [`mean_average_precision`], or if `k` is 0.
///
/// # Example
/// ```
/// use ssl_eval::{Features, Queries, mean_average_precision_at};
///
/// let gallery = Features::new(vec![1.0, 0.0, 0.8, 0.6, 0.0, 1.0], 2, vec![5, 6, 5])?;
/// let query = Features::new(vec![1.0, 0.1], 2, vec![5])?;
/// assert_eq!(mean_average_precision_at(2, &gallery, Queries::Others(&query))?, 0.5);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn mean_average_precision_at(k: usize, gallery: &Features, queries: Queries<'_>) -> Result<f64> {
    let search = Search::new(gallery, queries)?;
    let precision = |(query, rows): (usize, Vec<usize>)| {
        average_precision(rows.iter().map(|row| search.hits(query, *row)), search.relevant(query).min(k))
    };
    mean(&search.nearest(k)?.into_iter().enumerate().map(precision).collect::<Vec<_>>())
}

/// The share of queries that have an image of their label among the `k` most similar ones. Queries of a label that the
/// gallery does not have are left out.
///
/// # Errors
/// Those of [`mean_average_precision_at`].
///
/// # Example
/// ```
/// use ssl_eval::{Features, Queries, recall_at};
///
/// let rows = Features::new(vec![1.0, 0.0, 0.9, 0.1, 0.8, 0.3], 2, vec![0, 1, 0])?;
/// assert_eq!(recall_at(1, &rows, Queries::LeaveOneOut)?, 0.0);
/// assert_eq!(recall_at(2, &rows, Queries::LeaveOneOut)?, 1.0);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn recall_at(k: usize, gallery: &Features, queries: Queries<'_>) -> Result<f64> {
    let search = Search::new(gallery, queries)?;
    let found = |(query, rows): (usize, Vec<usize>)| {
        let hit = rows.iter().any(|row| search.hits(query, *row));
        (search.relevant(query) > 0).then_some(f64::from(u8::from(hit)))
    };
    mean(&search.nearest(k)?.into_iter().enumerate().map(found).collect::<Vec<_>>())
}

/// What is looked for, and where.
#[derive(Debug)]
struct Search<'a> {
    gallery: &'a Features,
    asking: &'a Features,
    /// Whether the row of a query is that of the gallery.
    leave_one_out: bool,
    /// How many images of the gallery have a label.
    counts: BTreeMap<u32, usize>,
}

impl<'a> Search<'a> {
    fn new(gallery: &'a Features, queries: Queries<'a>) -> Result<Self> {
        let (asking, leave_one_out) = match queries {
            Queries::Others(features) => (features, false),
            Queries::LeaveOneOut => (gallery, true),
        };
        asking.check_dim(gallery.dim())?;
        let mut counts = BTreeMap::new();
        for label in gallery.labels() {
            *counts.entry(*label).or_insert(0) += 1;
        }
        Ok(Self { gallery, asking, leave_one_out, counts })
    }

    /// How many images there are for a query to find.
    fn relevant(&self, query: usize) -> usize {
        let count = self.counts.get(&self.asking.labels()[query]).copied().unwrap_or(0);
        count - usize::from(self.leave_one_out)
    }

    fn hits(&self, query: usize, row: usize) -> bool {
        self.gallery.labels()[row] == self.asking.labels()[query]
    }

    fn is_itself(&self, query: usize, row: usize) -> bool {
        self.leave_one_out && query == row
    }

    /// The average precision of a query, given its similarity to each row of the gallery.
    fn average_precision(&self, query: usize, similarities: &[f32]) -> Option<f64> {
        let candidates = similarities.iter().enumerate().filter(|(row, _)| !self.is_itself(query, *row));
        let mut ranked: Vec<Candidate> =
            candidates.map(|(row, &similarity)| Candidate { similarity, row }).collect();
        ranked.sort_unstable_by(Candidate::nearest_first);
        average_precision(ranked.iter().map(|found| self.hits(query, found.row)), self.relevant(query))
    }

    /// The up to `k` nearest rows of the gallery to each query, nearest first.
    fn nearest(&self, k: usize) -> Result<Vec<Vec<usize>>> {
        if k == 0 {
            return Err(Error::Config { field: "k", value: k.to_string(), allowed: "at least 1" });
        }
        let k = k.min(self.gallery.rows());
        if !self.leave_one_out {
            return nearest(self.gallery, self.asking, k);
        }
        // One more, since the query may be among them.
        let mut found = nearest_among(self.gallery, (k + 1).min(self.gallery.rows()))?;
        for (query, rows) in found.iter_mut().enumerate() {
            rows.retain(|row| !self.is_itself(query, *row));
            rows.truncate(k);
        }
        Ok(found)
    }
}

/// The sum of the precisions at the ranks of hits, over `relevant`; `None` if there is nothing to find.
fn average_precision(hits: impl Iterator<Item = bool>, relevant: usize) -> Option<f64> {
    let (mut found, mut sum) = (0, 0.0);
    for (hit, rank) in hits.zip(1..) {
        if hit {
            found += 1;
            sum += f64::from(found) / f64::from(rank);
        }
    }
    (relevant > 0).then(|| sum / relevant as f64)
}

/// The mean over the queries that have something to find.
fn mean(values: &[Option<f64>]) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in values.iter().flatten() {
        sum += value;
        count += 1;
    }
    if count == 0 {
        let field = "number of queries with an image of their label in the gallery";
        return Err(Error::Config { field, value: "0".to_owned(), allowed: "at least 1" });
    }
    Ok(sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_by_hand() {
        let of = |hits: &[u8], relevant| average_precision(hits.iter().map(|hit| *hit == 1), relevant);
        assert_eq!(of(&[1, 1, 0], 2), Some(1.0));
        assert_eq!(of(&[0, 1, 0, 1], 2), Some(0.5));
        assert_eq!(of(&[0, 1], 4), Some(0.125));
        assert_eq!((of(&[0, 0], 1), of(&[0, 0], 0)), (Some(0.0), None));
    }

    #[test]
    fn a_query_does_not_find_itself_and_ties_go_to_the_earlier_row() {
        // The rows 0, 1 and 2 are equal; row 3 is alone with its label.
        let rows = [1.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 1.0].to_vec();
        let rows = Features::new(rows, 2, vec![0, 1, 0, 2]).unwrap();
        // Row 0 finds 1, 2; row 2 finds 0, 1; rows 1 and 3 have nothing to find.
        let expected = (0.5 + 1.0) / 2.0;
        assert_eq!(mean_average_precision(&rows, Queries::LeaveOneOut).unwrap(), expected);
        assert_eq!(mean_average_precision_at(2, &rows, Queries::LeaveOneOut).unwrap(), expected);
        assert_eq!(recall_at(1, &rows, Queries::LeaveOneOut).unwrap(), 0.5);
    }

    #[test]
    fn bad_input_is_refused() {
        let rows = Features::new(vec![1.0, 2.0], 1, vec![0, 1]).unwrap();
        let wide = Features::new(vec![1.0, 2.0], 2, vec![0]).unwrap();
        for found in [
            mean_average_precision(&rows, Queries::Others(&wide)),
            recall_at(1, &rows, Queries::Others(&wide)),
        ] {
            assert!(matches!(found, Err(Error::Size { .. })));
        }
        let error = mean_average_precision(&rows, Queries::LeaveOneOut).unwrap_err().to_string();
        assert!(error.contains("with an image of their label in the gallery is 0"), "{error}");
        let error = recall_at(0, &rows, Queries::LeaveOneOut).unwrap_err().to_string();
        assert!(error.contains("k is 0, allowed is at least 1"), "{error}");
    }
}
