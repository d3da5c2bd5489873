//! What holds of spectra for any embeddings.

use candle_core::{DType, Device, IndexOp, Tensor};
use ssl_eval::{
    Result, alpha_req, covariance_effective_rank, effective_rank, participation_ratio, rank_me, std_collapse,
};

use crate::{normal, reflection, with_threads};

/// Measures that rotations, scales and the order of rows leave alone.
const RANKS: [fn(&Tensor) -> Result<f64>; 5] =
    [rank_me, effective_rank, covariance_effective_rank, participation_ratio, alpha_req];

/// 60 rows of 30 columns whose scales fall as `1 / j`.
fn decaying(seed: u64) -> Tensor {
    let scales: Vec<f64> = (1..=30).map(|j| 1.0 / j as f64).collect();
    normal(60, 30, seed).broadcast_mul(&Tensor::new(scales, &Device::Cpu).unwrap()).unwrap()
}

fn close(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * b.abs()
}

#[test]
fn orthonormal_columns_have_full_rank_and_a_single_one_rank_one() {
    let q = reflection(40, 1).i((.., ..16)).unwrap();
    // The epsilon of RankMe moves it by about 16 · 1e-7 · log 16.
    assert!(close(rank_me(&q).unwrap(), 16.0, 1e-5));
    assert!(close(effective_rank(&q).unwrap(), 16.0, 1e-12));
    let one = q.i((.., ..1)).unwrap().matmul(&normal(1, 16, 2)).unwrap();
    assert!(close(rank_me(&one).unwrap(), 1.0, 1e-4));
    for rank in [effective_rank, covariance_effective_rank, participation_ratio] {
        assert!(close(rank(&one).unwrap(), 1.0, 1e-12));
    }
}

#[test]
fn rotation_scale_and_order_of_rows_change_no_rank() {
    let z = decaying(3);
    let turned = (z.matmul(&reflection(30, 4)).unwrap() * 7.0).unwrap();
    let reversed = z.index_select(&Tensor::arange_step(59i64, -1, -1, &Device::Cpu).unwrap(), 0).unwrap();
    for measure in RANKS {
        let expected = measure(&z).unwrap();
        for other in [&turned, &reversed] {
            assert!(close(measure(other).unwrap(), expected, 1e-9));
        }
    }
}

#[test]
fn measures_of_the_covariance_do_not_see_the_mean() {
    let z = decaying(5);
    let moved = (&z + 3.0).unwrap();
    for measure in [covariance_effective_rank, participation_ratio, alpha_req] {
        assert!(close(measure(&moved).unwrap(), measure(&z).unwrap(), 1e-9));
    }
    // Uncentred ones do: the mean is a direction of its own.
    assert!(rank_me(&moved).unwrap() < 0.8 * rank_me(&z).unwrap());
}

#[test]
fn alpha_is_the_exponent_of_the_decay_and_reads_eigenvalues_11_to_100() {
    // Rows ±√(λⱼ) along axis j, so that the spectrum is known.
    let along_axes = |spectrum: &[f64]| {
        let d = spectrum.len();
        let value = |i: usize| {
            let (row, column) = (i / d, i % d);
            let sign = if row < d { 1.0 } else { -1.0 };
            if row % d == column { sign * spectrum[column].sqrt() } else { 0.0 }
        };
        Tensor::from_vec((0..2 * d * d).map(value).collect::<Vec<_>>(), (2 * d, d), &Device::Cpu).unwrap()
    };
    for alpha in [0.0, 0.5, 1.0, 2.0] {
        let mut spectrum: Vec<f64> = (1..=120).map(|j| (j as f64).powf(-alpha)).collect();
        assert!((alpha_req(&along_axes(&spectrum)).unwrap() - alpha).abs() < 1e-6);
        // Outside of the range anything may stand, in descending order.
        spectrum[..10].iter_mut().for_each(|value| *value += 100.0);
        spectrum[100..].iter_mut().for_each(|value| *value *= 1e-3);
        assert!((alpha_req(&along_axes(&spectrum)).unwrap() - alpha).abs() < 1e-6);
    }
}

#[test]
fn isotropic_rows_have_deviation_one_and_collapsed_ones_zero() {
    // The deviation of D numbers of 2,000 rows has an error of about 1 / √(4,000 D).
    assert!((std_collapse(&normal(2000, 32, 6)).unwrap() - 1.0).abs() < 0.02);
    let collapsed = (normal(2000, 32, 7) * 1e-3).unwrap().affine(1.0, 1.0).unwrap();
    assert!(std_collapse(&collapsed).unwrap() < 2e-3);
}

#[test]
fn types_and_threads_do_not_matter() {
    let z = decaying(8).to_dtype(DType::F32).unwrap();
    let double = z.to_dtype(DType::F64).unwrap();
    for measure in RANKS.into_iter().chain([std_collapse as fn(&Tensor) -> Result<f64>]) {
        let [one, two] = [1, 2].map(|threads| with_threads(threads, || measure(&z).unwrap()));
        assert_eq!((one, one), (two, measure(&double).unwrap()));
    }
}
