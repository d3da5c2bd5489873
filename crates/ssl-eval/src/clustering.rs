//! How well clusters agree with labels.

use crate::assignment::assign;
use crate::features::check_size;
use crate::{Error, Result};

/// The mutual information of labels and clusters over the arithmetic mean of their entropies, from 0 to 1, as
/// scikit-learn's `normalized_mutual_info_score`. Many clusters raise it without being right.
///
/// # Errors
/// If there are no labels or not as many clusters.
///
/// # Example
/// ```
/// let labels = [0, 0, 1, 1];
/// assert!((ssl_eval::normalized_mutual_information(&labels, &[7, 7, 3, 3])? - 1.0).abs() < 1e-12);
/// assert_eq!(ssl_eval::normalized_mutual_information(&labels, &[0, 1, 0, 1])?, 0.0);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn normalized_mutual_information(labels: &[u32], clusters: &[u32]) -> Result<f64> {
    let table = Contingency::new(labels, clusters)?;
    let n = labels.len() as f64;
    let entropy = |counts: &[usize]| -> f64 {
        let shares = counts.iter().filter(|count| **count > 0).map(|count| *count as f64 / n);
        -shares.map(|share| share * share.ln()).sum::<f64>()
    };
    let (of_labels, of_clusters) = (entropy(&table.of_labels()), entropy(&table.of_clusters()));
    if of_labels == 0.0 && of_clusters == 0.0 {
        return Ok(1.0);
    }
    let information = of_labels + of_clusters - entropy(&table.counts);
    Ok((2.0 * information / (of_labels + of_clusters)).clamp(0.0, 1.0))
}

/// The adjusted Rand index (Hubert & Arabie, "Comparing partitions", 1985): agreement on pairs, 1 for equal partitions and
/// 0 on average for random ones.
///
/// # Errors
/// If there are no labels or not as many clusters.
///
/// # Example
/// ```
/// let labels = [0, 0, 1, 1];
/// assert_eq!(ssl_eval::adjusted_rand_index(&labels, &[7, 7, 3, 3])?, 1.0);
/// assert!((ssl_eval::adjusted_rand_index(&labels, &[0, 1, 0, 1])? + 0.5).abs() < 1e-12);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn adjusted_rand_index(labels: &[u32], clusters: &[u32]) -> Result<f64> {
    let table = Contingency::new(labels, clusters)?;
    let pairs = |count: usize| count as f64 * (count as f64 - 1.0) / 2.0;
    let sum = |counts: &[usize]| counts.iter().map(|count| pairs(*count)).sum::<f64>();
    let (of_labels, of_clusters) = (sum(&table.of_labels()), sum(&table.of_clusters()));
    let expected = of_labels * of_clusters / pairs(labels.len()).max(1.0);
    let most = (of_labels + of_clusters) / 2.0;
    // Both have one cluster, or both have one for each sample.
    Ok(if most == expected { 1.0 } else { (sum(&table.counts) - expected) / (most - expected) })
}

/// The fraction of samples whose label is the most frequent one of their cluster. Several clusters may have one label.
///
/// # Errors
/// If there are no labels or not as many clusters.
///
/// # Example
/// ```
/// assert_eq!(ssl_eval::purity(&[0, 0, 1, 1], &[0, 0, 0, 1])?, 0.75);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn purity(labels: &[u32], clusters: &[u32]) -> Result<f64> {
    let table = Contingency::new(labels, clusters)?;
    let hits: usize = table.counts.chunks_exact(table.width).filter_map(|counts| counts.iter().max()).sum();
    Ok(hits as f64 / labels.len() as f64)
}

/// The fraction of samples that have the label of their cluster, where each cluster stands for a label of its own in the
/// best possible way. Clusters beyond the number of labels stand for none.
///
/// # Errors
/// If there are no labels or not as many clusters.
///
/// # Example
/// ```
/// // Cluster 5 stands for label 1, cluster 6 for label 0.
/// assert_eq!(ssl_eval::clustering_accuracy(&[0, 0, 1, 1], &[6, 5, 5, 5])?, 0.75);
/// assert_eq!(ssl_eval::clustering_accuracy(&[0, 0, 0, 0], &[0, 1, 2, 2])?, 0.5);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn clustering_accuracy(labels: &[u32], clusters: &[u32]) -> Result<f64> {
    let table = Contingency::new(labels, clusters)?;
    let size = table.width.max(table.counts.len() / table.width);
    // A square, whose further rows and columns cost nothing.
    let mut costs = vec![0.0; size * size];
    for (row, counts) in table.counts.chunks_exact(table.width).enumerate() {
        let costs = &mut costs[row * size..][..table.width];
        costs.iter_mut().zip(counts).for_each(|(cost, count)| *cost = -(*count as f64));
    }
    let hits: f64 =
        assign(&costs, size).into_iter().enumerate().map(|(row, column)| -costs[row * size + column]).sum();
    Ok(hits / labels.len() as f64)
}

/// How many samples have a cluster and a label.
#[derive(Debug)]
struct Contingency {
    /// `(clusters, labels)` row-major, of those that occur.
    counts: Vec<usize>,
    /// The number of labels.
    width: usize,
}

impl Contingency {
    fn new(labels: &[u32], clusters: &[u32]) -> Result<Self> {
        check_size("number of clusters", clusters.len(), labels.len())?;
        if labels.is_empty() {
            return Err(Error::Empty);
        }
        let ((labels, width), (clusters, height)) = (numbered(labels), numbered(clusters));
        let mut counts = vec![0; height * width];
        for (cluster, label) in clusters.into_iter().zip(labels) {
            counts[cluster * width + label] += 1;
        }
        Ok(Self { counts, width })
    }

    fn of_labels(&self) -> Vec<usize> {
        (0..self.width).map(|label| self.counts.iter().skip(label).step_by(self.width).sum()).collect()
    }

    fn of_clusters(&self) -> Vec<usize> {
        self.counts.chunks_exact(self.width).map(|counts| counts.iter().sum()).collect()
    }
}

/// The place of each value among the different ones in ascending order, and how many those are.
fn numbered(values: &[u32]) -> (Vec<usize>, usize) {
    let mut different = values.to_vec();
    different.sort_unstable();
    different.dedup();
    (values.iter().map(|value| different.partition_point(|other| other < value)).collect(), different.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Measure = fn(&[u32], &[u32]) -> Result<f64>;

    const MEASURES: [Measure; 4] =
        [normalized_mutual_information, adjusted_rand_index, purity, clustering_accuracy];

    #[test]
    fn names_of_clusters_do_not_matter() {
        let labels = [0, 0, 0, 1, 1, 2, 2, 2];
        let clusters = [0, 0, 1, 1, 1, 2, 2, 0];
        let renamed = clusters.map(|cluster| [900, 4, 17][cluster]);
        for measure in MEASURES {
            assert_eq!(
                measure(&labels, &clusters.map(|cluster| cluster as u32)).unwrap(),
                measure(&labels, &renamed).unwrap()
            );
        }
    }

    #[test]
    fn one_sample_and_one_cluster_agree_and_bad_input_is_refused() {
        for measure in MEASURES {
            assert_eq!(measure(&[3], &[5]).unwrap(), 1.0);
            assert_eq!(measure(&[1; 4], &[2; 4]).unwrap(), 1.0);
            assert!(matches!(measure(&[], &[]), Err(Error::Empty)));
            assert!(matches!(measure(&[1, 2], &[1]), Err(Error::Size { found: 1, expected: 2, .. })));
        }
    }
}
