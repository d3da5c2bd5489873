//! What holds of LiDAR for any views.

use candle_core::{DType, Device, IndexOp, Tensor};
use ssl_eval::{LidarConfig, lidar};

use crate::{normal, reflection, with_threads};

/// `n` images of `q` views, `spread` around their image.
fn views(n: usize, q: usize, dim: usize, spread: f64, seed: u64) -> Tensor {
    let images = normal(n, dim, seed).reshape((n, 1, dim)).unwrap();
    let noise = normal(n * q, dim, seed + 1).reshape((n, q, dim)).unwrap();
    images.broadcast_add(&(noise * spread).unwrap()).unwrap()
}

fn of(groups: &Tensor) -> f64 {
    lidar(groups, &LidarConfig::default()).unwrap()
}

#[test]
fn identical_views_with_isotropic_means_have_full_rank() {
    // Opposite corners along each axis: the means are centred and isotropic.
    let corners = |dim: usize| {
        let q = reflection(dim, 1);
        Tensor::cat(&[&q, &q.neg().unwrap()], 0).unwrap().unsqueeze(1).unwrap().repeat((1, 3, 1)).unwrap()
    };
    for dim in [2, 16, 40] {
        // Σ_w is delta alone; epsilon adds about D · 1e-7 · log D.
        assert!((of(&corners(dim)) / dim as f64 - 1.0).abs() < 1e-4);
    }
    // Corners of a simplex: n − 1 directions, however many dimensions there are.
    let simplex = reflection(40, 2).i(..10).unwrap().unsqueeze(1).unwrap().repeat((1, 3, 1)).unwrap();
    assert!((of(&simplex) / 9.0 - 1.0).abs() < 1e-4);
}

#[test]
fn a_single_direction_has_rank_one() {
    let line = normal(50, 1, 3).matmul(&normal(1, 8, 4)).unwrap().unsqueeze(1).unwrap();
    let noise = (normal(50 * 4, 8, 5) * 1e-3).unwrap().reshape((50, 4, 8)).unwrap();
    assert!((of(&line.broadcast_add(&noise).unwrap()) - 1.0).abs() < 0.01);
}

#[test]
fn rotation_position_and_order_change_nothing() {
    let groups = views(80, 4, 12, 0.5, 6);
    let turned = groups.reshape((320, 12)).unwrap().matmul(&reflection(12, 7)).unwrap();
    let turned = (turned.reshape((80, 4, 12)).unwrap() + 5.0).unwrap();
    let backwards = Tensor::arange_step(79i64, -1, -1, &Device::Cpu).unwrap();
    let reordered = groups.index_select(&backwards, 0).unwrap();
    for other in [turned, reordered] {
        assert!((of(&other) - of(&groups)).abs() < 1e-8);
    }
}

#[test]
fn noise_between_views_along_the_images_hides_them() {
    // Views that differ as much as images do along most axes leave few directions that tell images apart.
    let groups = views(400, 10, 16, 0.1, 8);
    let loud: Vec<f64> = (0..16).map(|j| if j < 12 { 30.0 } else { 0.0 }).collect();
    let noise = normal(4000, 16, 9).broadcast_mul(&Tensor::new(loud, &Device::Cpu).unwrap()).unwrap();
    let noisy = (&groups + noise.reshape((400, 10, 16)).unwrap()).unwrap();
    assert!(of(&groups) > 15.0 && of(&noisy) < 5.0, "{} {}", of(&groups), of(&noisy));
}

#[test]
fn fewer_views_than_dimensions_types_and_threads_are_all_one() {
    let groups = views(5, 2, 24, 0.5, 10).to_dtype(DType::F32).unwrap();
    let rank = of(&groups);
    assert!(rank > 1.0 && rank < 4.001, "{rank}");
    let others = [1, 2].map(|threads| with_threads(threads, || of(&groups)));
    assert_eq!(others, [rank, of(&groups.to_dtype(DType::F64).unwrap())]);
}
