//! What holds of retrieval for any features.

use ssl_eval::{Features, Queries, mean_average_precision, mean_average_precision_at, recall_at};

use crate::{clusters, with_threads};

/// Average precision and recall of a query by their definitions: of the rows in descending order of `f64` cosines, `k`.
fn naive(
    gallery: &Features,
    query: &[f32],
    label: u32,
    without: Option<usize>,
    k: usize,
) -> Option<(f64, f64)> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = |row: &usize| {
        let row = gallery.row(*row);
        dot(query, row) / (dot(query, query) * dot(row, row)).sqrt()
    };
    let mut rows: Vec<usize> = (0..gallery.rows()).filter(|row| Some(*row) != without).collect();
    rows.sort_by_cached_key(|row| std::cmp::Reverse((cosine(row) * 1e15) as i64));
    let hits: Vec<bool> = rows.iter().map(|row| gallery.labels()[*row] == label).collect();
    let count = |hits: &[bool]| hits.iter().filter(|hit| **hit).count() as f64;
    let relevant = count(&hits).min(k as f64);
    let shown = &hits[..k.min(hits.len())];
    let at_hits = (0..shown.len()).filter(|rank| shown[*rank]);
    let precision: f64 = at_hits.map(|rank| count(&shown[..=rank]) / (rank + 1) as f64).sum();
    (relevant > 0.0).then(|| (precision / relevant, count(shown).min(1.0)))
}

#[test]
fn values_are_those_of_the_definitions() {
    // More queries than a tile has, and a label that the gallery does not have.
    let (gallery, other) = (clusters(250, 8, 6, 1.5, 1), clusters(150, 8, 7, 1.5, 2));
    for k in [1, 5, 100, 1000] {
        for queries in [Queries::Others(&other), Queries::LeaveOneOut] {
            let asking = if let Queries::Others(other) = queries { other } else { &gallery };
            let without = |i: usize| matches!(queries, Queries::LeaveOneOut).then_some(i);
            let of = |i: usize| naive(&gallery, asking.row(i), asking.labels()[i], without(i), k);
            let expected: Vec<(f64, f64)> = (0..asking.rows()).filter_map(of).collect();
            let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / expected.len() as f64;
            let precision = mean(&mut expected.iter().map(|(precision, _)| *precision));
            let recall = mean(&mut expected.iter().map(|(_, recall)| *recall));
            let found = mean_average_precision_at(k, &gallery, queries).unwrap();
            // Ranks are by f32 cosines, whose rounding may swap two neighbours.
            assert!((found - precision).abs() < 1e-4, "{k}: {found} is not {precision}");
            assert!((recall_at(k, &gallery, queries).unwrap() - recall).abs() < 1e-4);
            if k == 1000 {
                assert!((mean_average_precision(&gallery, queries).unwrap() - precision).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn a_similarity_serves_both_of_its_rows() {
    // More rows than a stripe has.
    let rows = clusters(2600, 8, 6, 1.5, 5);
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let of = |i: usize| naive(&rows, rows.row(i), rows.labels()[i], Some(i), 20).unwrap().0;
    let expected = mean((0..2600).map(of).collect());
    let found = mean_average_precision_at(20, &rows, Queries::LeaveOneOut).unwrap();
    assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
    for threads in [1, 2] {
        let again =
            with_threads(threads, || mean_average_precision_at(20, &rows, Queries::LeaveOneOut).unwrap());
        assert_eq!(again, found);
    }
}

#[test]
fn clusters_that_are_far_apart_are_retrieved_whole() {
    let rows = clusters(300, 8, 3, 0.01, 3);
    for found in [
        mean_average_precision(&rows, Queries::LeaveOneOut),
        mean_average_precision_at(10, &rows, Queries::LeaveOneOut),
        recall_at(1, &rows, Queries::LeaveOneOut),
    ] {
        assert_eq!(found.unwrap(), 1.0);
    }
}

#[test]
fn the_length_of_features_and_the_number_of_threads_do_not_matter() {
    let rows = clusters(300, 8, 5, 1.0, 4);
    let expected = mean_average_precision(&rows, Queries::LeaveOneOut).unwrap();
    let longer: Vec<f32> = rows.data().iter().enumerate().map(|(i, x)| x * (1 + i / 8 % 4) as f32).collect();
    let longer = Features::new(longer, 8, rows.labels().to_vec()).unwrap();
    assert!((mean_average_precision(&longer, Queries::LeaveOneOut).unwrap() - expected).abs() < 1e-4);
    for threads in [1, 2] {
        let found = with_threads(threads, || mean_average_precision(&rows, Queries::LeaveOneOut).unwrap());
        assert_eq!(found, expected);
    }
}
