//! What holds of Gaussian measures of information.

use candle_core::{DType, Device, IndexOp, Tensor};
use ssl_eval::{Covariance, GaussianInformation, Shrinkage};

use crate::{normal, with_threads};

/// `n` rows of two views of `d` features each, whose pairs of features have correlation `rho`.
fn correlated(n: usize, d: usize, rho: f64, seed: u64) -> (Tensor, Tensor) {
    let (x, noise) = (normal(n, d, seed), normal(n, d, seed + 1000));
    let y = (&x * rho).unwrap() + noise * (1.0 - rho * rho).sqrt();
    (x, y.unwrap())
}

/// `−(d / 2) log(1 − ρ²)`
fn truth(d: usize, rho: f64) -> f64 {
    -0.5 * d as f64 * (1.0 - rho * rho).ln()
}

fn between(x: &Tensor, y: &Tensor, shrinkage: Shrinkage) -> f64 {
    GaussianInformation::between(x, y, shrinkage).unwrap().nats()
}

#[test]
fn known_covariances_give_the_closed_form() {
    for d in [2, 8, 32, 64] {
        for rho in [0.0, 0.5, 0.9, 0.99] {
            let entry = |i: usize, j: usize| match i.abs_diff(j) {
                0 => 1.0,
                apart if apart == d => rho,
                _ => 0.0,
            };
            let values: Vec<f64> = (0..4 * d * d).map(|at| entry(at / (2 * d), at % (2 * d))).collect();
            let covariance = Tensor::from_vec(values, (2 * d, 2 * d), &Device::Cpu).unwrap();
            let covariance = Covariance::new(&covariance).unwrap();
            let information = GaussianInformation::from_covariance(&covariance, d).unwrap();
            assert!((information.nats() - truth(d, rho)).abs() < 1e-11 * (1.0 + truth(d, rho)));
            // The two views of the closed form are all that the features know of each other.
            assert!((covariance.total_correlation().unwrap() - truth(d, rho)).abs() < 1e-10);
        }
    }
}

#[test]
fn samples_come_close_to_the_closed_form_but_for_the_bias_that_is_documented() {
    let n = 4000;
    for d in [2, 8, 32, 64] {
        for rho in [0.0, 0.5, 0.9, 0.99] {
            let (x, y) = correlated(n, d, rho, d as u64);
            let found = between(&x, &y, Shrinkage::None);
            let bias = (d * d) as f64 / (2 * n) as f64;
            // Five standard deviations: ρ √(d / N) of the true directions, d / (√2 N) of the false ones.
            let noise = rho * (d as f64 / n as f64).sqrt() + d as f64 / (2f64.sqrt() * n as f64);
            let error = found - truth(d, rho) - bias;
            assert!(error.abs() < 0.1 * bias + 5.0 * noise, "d {d}, rho {rho}: {found}, off by {error}");
        }
    }
}

#[test]
fn invertible_maps_and_the_order_of_rows_change_nothing() {
    let (x, y) = correlated(500, 6, 0.7, 1);
    let y = y.i((.., ..4)).unwrap().contiguous().unwrap();
    let expected = GaussianInformation::between(&x, &y, Shrinkage::None).unwrap();
    assert_eq!(expected.canonical_correlations().len(), 4);
    let mixed_x = (x.matmul(&normal(6, 6, 2)).unwrap() + 3.0).unwrap();
    let mixed_y = (y.matmul(&normal(4, 4, 3)).unwrap() * 1e3).unwrap();
    let backwards = Tensor::arange_step(499i64, -1, -1, &Device::Cpu).unwrap();
    let reordered = [&x, &y].map(|view| view.index_select(&backwards, 0).unwrap());
    for (a, b) in [(&mixed_x, &mixed_y), (&reordered[0], &reordered[1]), (&y, &x)] {
        let found = GaussianInformation::between(a, b, Shrinkage::None).unwrap();
        assert!((found.nats() - expected.nats()).abs() < 1e-9);
        for (a, b) in found.canonical_correlations().iter().zip(expected.canonical_correlations()) {
            assert!((a - b).abs() < 1e-9);
        }
    }
}

#[test]
fn information_is_what_entropies_leave() {
    let (x, y) = correlated(300, 5, 0.6, 4);
    let entropy = |view: &Tensor| Covariance::of(view, Shrinkage::None).unwrap().entropy().unwrap();
    let joint = entropy(&Tensor::cat(&[&x, &y], 1).unwrap());
    assert!((between(&x, &y, Shrinkage::None) - (entropy(&x) + entropy(&y) - joint)).abs() < 1e-10);
}

#[test]
fn few_rows_make_independent_features_seem_narrow_and_dependent_as_is_documented() {
    let (n, d) = (1000, 40);
    let sample = Covariance::of(&normal(n, d, 20), Shrinkage::None).unwrap();
    let (n, d) = (n as f64, d as f64);
    let entropy = sample.entropy().unwrap() - d / 2.0 * (std::f64::consts::TAU * std::f64::consts::E).ln();
    let bias = -d * (d + 1.0) / (4.0 * n);
    // Five standard deviations: that of the mean of D logarithms of variances, and of D (D − 1) / 2 correlations.
    assert!((entropy - bias).abs() < 5.0 * (d / (2.0 * n)).sqrt(), "{entropy} is not {bias}");
    let (found, bias) = (sample.total_correlation().unwrap(), d * (d - 1.0) / (4.0 * n));
    assert!((found - bias).abs() < 0.1 * bias + 5.0 * d / (2.0 * n), "{found} is not {bias}");
}

#[test]
fn more_shrinkage_means_less_information() {
    let (x, y) = correlated(100, 8, 0.8, 5);
    let shrunk = [0.0, 0.1, 0.3, 1.0].map(|weight| between(&x, &y, Shrinkage::Fixed(weight)));
    assert!(shrunk.is_sorted_by(|a, b| a > b), "{shrunk:?}");
    assert_eq!((shrunk[0], shrunk[3]), (between(&x, &y, Shrinkage::None), 0.0));
    // Rows that are too few for any value without shrinkage.
    let (x, y) = correlated(12, 8, 0.8, 6);
    assert!(GaussianInformation::between(&x, &y, Shrinkage::None).is_err());
    assert!(between(&x, &y, Shrinkage::LedoitWolf).is_finite());
}

/// Errors in nats at `N = 4 d`, means of five draws: of all rows, and of one half on the other, without shrinkage and with.
fn errors(d: usize, rho: f64) -> [f64; 3] {
    let n = 4 * d;
    let mut sums = [0.0; 3];
    for seed in 0..5 {
        let (x, y) = correlated(n, d, rho, 10 + seed);
        let part = |start: usize| [&x, &y].map(|view| view.narrow(0, start, n / 2).unwrap());
        let (fit, test) = (part(0), part(n / 2));
        let held_out = |shrinkage| {
            let (fit, test) = ((&fit[0], &fit[1]), (&test[0], &test[1]));
            GaussianInformation::held_out(fit, test, shrinkage).unwrap().nats()
        };
        let all = between(&x, &y, Shrinkage::None);
        let found = [all, held_out(Shrinkage::None), held_out(Shrinkage::LedoitWolf)];
        sums.iter_mut().zip(found).for_each(|(sum, nats)| *sum += (nats - truth(d, rho)) / 5.0);
    }
    sums
}

#[test]
fn held_out_rows_are_more_honest_when_rows_are_few_and_the_views_know_little_of_each_other() {
    for (d, rho) in [(8, 0.0), (8, 0.5), (32, 0.0), (32, 0.5)] {
        let [all, half, shrunk] = errors(d, rho);
        assert!(half.abs() < 0.7 * all && shrunk.abs() < 0.5 * all, "{all} {half} {shrunk}");
    }
    // Of views that know much of each other it says too little, and not too much.
    for (d, rho) in [(16, 0.9), (32, 0.9), (32, 0.99)] {
        let [all, half, shrunk] = errors(d, rho);
        assert!(all > 2.0 && half < -2.0 && (half..0.0).contains(&shrunk), "{all} {half} {shrunk}");
    }
}

#[test]
fn types_and_threads_do_not_matter() {
    let (x, y) = correlated(200, 8, 0.5, 7);
    let (x, y) = (x.to_dtype(DType::F32).unwrap(), y.to_dtype(DType::F32).unwrap());
    let all = |x: &Tensor, y: &Tensor| {
        let held_out = GaussianInformation::held_out((x, y), (x, y), Shrinkage::Fixed(0.1)).unwrap();
        (between(x, y, Shrinkage::LedoitWolf), held_out.nats())
    };
    let [one, two] = [1, 2].map(|threads| with_threads(threads, || all(&x, &y)));
    let double = all(&x.to_dtype(DType::F64).unwrap(), &y.to_dtype(DType::F64).unwrap());
    assert_eq!((one, one), (two, double));
}
