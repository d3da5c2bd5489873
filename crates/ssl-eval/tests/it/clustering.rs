//! What holds of clusters for any features.

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use ssl_eval::{
    Features, KMeans, KMeansConfig, adjusted_rand_index, clustering_accuracy, k_means,
    normalized_mutual_information, purity,
};

use crate::{clusters, with_threads};

fn fit(features: &Features, k: usize, seed: u64) -> KMeans {
    let shape = (features.rows(), features.dim());
    let rows = Tensor::from_slice(features.data(), shape, &Device::Cpu).unwrap();
    k_means(&rows, k, &KMeansConfig::default(), &mut ChaCha8Rng::seed_from_u64(seed)).unwrap()
}

#[test]
fn clusters_that_are_far_apart_are_found() {
    let features = clusters(300, 8, 6, 0.2, 1);
    let found = fit(&features, 6, 1);
    for measure in [normalized_mutual_information, adjusted_rand_index, purity, clustering_accuracy] {
        assert!((measure(features.labels(), &found.clusters).unwrap() - 1.0).abs() < 1e-12);
    }
}

#[test]
fn no_row_is_nearer_to_another_centre_and_more_centres_explain_more() {
    let features = clusters(200, 5, 4, 1.0, 2);
    let mut inertia = f64::INFINITY;
    for k in [1, 2, 4, 8, 16] {
        let found = fit(&features, k, 2);
        for (row, cluster) in (0..features.rows()).zip(&found.clusters) {
            let distance = |centre: &[f64]| -> f64 {
                centre.iter().zip(features.row(row)).map(|(c, x)| (c - f64::from(*x)).powi(2)).sum()
            };
            let own = distance(&found.centres[*cluster as usize * 5..][..5]);
            assert!(found.centres.chunks_exact(5).all(|centre| own <= distance(centre) + 1e-12));
        }
        assert!(found.inertia < inertia, "{k}: {}", found.inertia);
        inertia = found.inertia;
    }
}

#[test]
fn the_generator_alone_decides_and_threads_do_not() {
    let features = clusters(300, 8, 5, 1.5, 3);
    let [one, two] = [1, 2].map(|threads| with_threads(threads, || fit(&features, 7, 3)));
    assert_eq!(one, two);
    assert_ne!(one.centres, fit(&features, 7, 4).centres);
}
