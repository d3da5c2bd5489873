//! What holds of pictures by t-SNE.

use candle_core::Tensor;
use ssl_eval::{TSneConfig, t_sne};

use crate::{clusters, with_threads};

/// Four clusters of 40 rows each in 10 dimensions, one after the other in turn.
fn rows() -> (Tensor, Vec<u32>) {
    let features = clusters(160, 10, 4, 0.3, 3);
    let tensor = Tensor::from_slice(features.data(), (160, 10), &candle_core::Device::Cpu).unwrap();
    (tensor, features.labels().to_vec())
}

fn config(iterations: usize) -> TSneConfig {
    TSneConfig { perplexity: 15.0, iterations, ..Default::default() }
}

#[test]
fn clusters_stay_apart() {
    let (rows, labels) = rows();
    let points = t_sne(&rows, &config(600)).unwrap().points;
    for (i, from) in points.iter().enumerate() {
        let distance = |j: &usize| (from[0] - points[*j][0]).hypot(from[1] - points[*j][1]);
        let others = (0..points.len()).filter(|j| *j != i);
        let nearest = others.min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap();
        assert_eq!(labels[nearest], labels[i], "row {i}");
    }
}

#[test]
fn the_divergence_falls() {
    let (rows, _) = rows();
    let kl = [1, 250, 300, 600].map(|iterations| {
        let exaggerated_iterations = iterations.min(250);
        t_sne(&rows, &TSneConfig { exaggerated_iterations, ..config(iterations) }).unwrap().kl
    });
    assert!(kl.is_sorted_by(|a, b| a > b) && kl[3] > 0.0, "{kl:?}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (rows, _) = rows();
    let [one, two] = [1, 2].map(|threads| with_threads(threads, || t_sne(&rows, &config(260)).unwrap()));
    assert_eq!(one, two);
}
