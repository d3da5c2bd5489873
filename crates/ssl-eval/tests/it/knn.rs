//! kNN on made-up features.

use proptest::prelude::*;
use ssl_eval::{Error, Features, KnnConfig, knn_accuracy, knn_predict};

use crate::{clusters, with_threads};

fn nearest_only() -> KnnConfig {
    KnnConfig { k: 1, ..Default::default() }
}

#[test]
fn four_samples_by_hand() {
    // Lengths do not matter, only directions: 0°, 90°, 60° and 180° against a query at 0°.
    let half_of_root_3 = 0.75f32.sqrt();
    let data = vec![3.0, 0.0, 0.0, 0.5, 0.5, half_of_root_3, -1.0, 0.0];
    let bank = Features::new(data, 2, vec![2, 0, 0, 1]).unwrap();
    let query = Features::new(vec![10.0, 0.0], 2, vec![2]).unwrap();

    let all = knn_predict(&bank, &query, 3, &KnnConfig { k: 4, temperature: 0.5 }).unwrap();
    let expected = [0f64.exp() + 1f64.exp(), (-2f64).exp(), 2f64.exp()];
    for (score, expected) in all.scores.iter().zip(expected) {
        assert!((score - expected).abs() < 1e-5, "{score} is not {expected}");
    }
    assert_eq!(all.classes, [2]);

    // A high temperature makes every neighbour's weight nearly 1: two of class 0 outvote one of class 2.
    let flat = knn_predict(&bank, &query, 3, &KnnConfig { k: 3, temperature: 100.0 }).unwrap();
    assert_eq!(flat.classes, [0]);
    assert_eq!(flat.scores[1], 0.0);
}

#[test]
fn each_sample_is_its_own_nearest_neighbour() {
    // More samples than one tile of the similarity matrix has in either direction.
    let features = clusters(5000, 8, 3, 1.0, 7);
    assert_eq!(knn_accuracy(&features, &features, 3, &nearest_only()).unwrap(), 1.0);
}

#[test]
fn k_is_clipped_to_the_bank() {
    let (bank, queries) = (clusters(12, 4, 3, 0.8, 1), clusters(9, 4, 3, 0.8, 2));
    let predict = |k| knn_predict(&bank, &queries, 3, &KnnConfig { k, ..Default::default() }).unwrap();
    assert_eq!(predict(12), predict(usize::MAX));
}

#[test]
fn a_row_of_zeros_is_similar_to_nothing() {
    let bank = Features::new(vec![0.0, 0.0, 1.0, 0.0], 2, vec![0, 1]).unwrap();
    let query = Features::new(vec![1e-30, 0.0], 2, vec![1]).unwrap();
    assert_eq!(knn_accuracy(&bank, &query, 2, &nearest_only()).unwrap(), 1.0);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (bank, queries) = (clusters(4500, 24, 5, 2.0, 3), clusters(700, 24, 5, 2.0, 4));
    let predict = || knn_predict(&bank, &queries, 5, &KnnConfig::default()).unwrap();
    let one = with_threads(1, predict);
    for threads in [2, 3] {
        assert_eq!(one, with_threads(threads, predict));
    }
}

#[test]
fn bad_input_is_refused() {
    let bank = clusters(12, 4, 3, 1.0, 1);
    let default = KnnConfig::default();
    let zero_k = KnnConfig { k: 0, ..default };
    assert!(matches!(knn_accuracy(&bank, &bank, 3, &zero_k), Err(Error::Config { field: "k", .. })));
    for temperature in [0.0, -0.1, f64::NAN, f64::INFINITY] {
        let error = knn_accuracy(&bank, &bank, 3, &KnnConfig { temperature, ..default }).unwrap_err();
        assert!(matches!(error, Error::Config { field: "temperature", .. }), "{error}");
    }
    assert!(matches!(knn_accuracy(&bank, &bank, 2, &default), Err(Error::Label { row: 2, label: 2, .. })));
    let wider = clusters(6, 5, 3, 1.0, 1);
    let error = knn_accuracy(&bank, &wider, 3, &default).unwrap_err();
    assert_eq!(error.to_string(), "feature dimension is 5, expected 4");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

    #[test]
    fn the_order_of_the_bank_does_not_matter(
        order in Just((0..60).collect::<Vec<usize>>()).prop_shuffle(),
        seed in 0u64..1000,
        k in 1usize..80,
    ) {
        let (bank, queries) = (clusters(60, 6, 4, 1.5, seed), clusters(20, 6, 4, 1.5, seed + 1000));
        let data = order.iter().flat_map(|&row| bank.row(row)).copied().collect();
        let labels = order.iter().map(|&row| bank.labels()[row]).collect();
        let shuffled = Features::new(data, 6, labels).unwrap();
        let config = KnnConfig { k, ..Default::default() };
        let (a, b) = (knn_predict(&bank, &queries, 4, &config), knn_predict(&shuffled, &queries, 4, &config));
        for (a, b) in a.unwrap().scores.iter().zip(b.unwrap().scores) {
            prop_assert!((a - b).abs() <= 1e-4 * b.abs(), "{a} is not {b}");
        }
    }

    #[test]
    fn the_length_of_a_feature_does_not_matter(scale in 1e-3f32..1e3, seed in 0u64..1000) {
        let (bank, queries) = (clusters(60, 6, 4, 0.5, seed), clusters(20, 6, 4, 0.5, seed + 1000));
        let data = queries.data().iter().map(|value| value * scale).collect();
        let scaled = Features::new(data, 6, queries.labels().to_vec()).unwrap();
        let config = KnnConfig::default();
        let (a, b) = (knn_predict(&bank, &queries, 4, &config), knn_predict(&bank, &scaled, 4, &config));
        for (a, b) in a.unwrap().scores.iter().zip(b.unwrap().scores) {
            prop_assert!((a - b).abs() <= 1e-4 * b.abs(), "{a} is not {b}");
        }
    }
}
