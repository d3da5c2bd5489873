//! The estimator of Kraskov, Stögbauer and Grassberger: Gaussians, its ceiling, invariances, and scikit-learn's values.

use ssl_eval::{Features, KsgAlgorithm, KsgConfig, ksg_information};

use crate::correlated::{gaussians, truth};
use crate::with_threads;

fn column(values: impl Iterator<Item = f64>) -> Features {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    let labels = vec![0; values.len()];
    Features::new(values, 1, labels).unwrap()
}

const BOTH: [KsgAlgorithm; 2] = [KsgAlgorithm::Cubes, KsgAlgorithm::Rectangles];

#[test]
fn ksg_is_that_of_scikit_learn() {
    // `_compute_mi_cc` of sklearn.feature_selection, version 1.9.1, which has the first algorithm for two columns.
    let sequence = |step: f64, i: u32| (f64::from(i) * step).fract();
    let x = column((0..300).map(|i| sequence(0.754878, i)));
    let y = column((0..300).map(|i| sequence(0.754878, i).powi(2) + 0.25 * sequence(0.569840, i)));
    for (k, expected) in [(1, 1.1096539394888785), (3, 1.1365721105210151), (10, 1.160387277912088)] {
        let config = KsgConfig { k, standardize: false, ..Default::default() };
        let nats = ksg_information(&x, &y, &config).unwrap();
        // One count that differs by one, where distances agree to the rounding of f32, would be 1e-5 or more.
        assert!((nats - expected).abs() < 1e-9, "k = {k}: {nats} instead of {expected}");
    }
}

#[test]
fn ksg_finds_the_information_of_few_gaussian_columns() {
    for algorithm in BOTH {
        for (dim, rho) in [(1, 0.0), (1, 0.9), (2, 0.0), (2, 0.3), (2, 0.6), (2, 0.9)] {
            let [x, y] = gaussians(2000, dim, rho, 1);
            let nats = ksg_information(&x, &y, &KsgConfig { algorithm, ..Default::default() }).unwrap();
            // The standard deviation over samples is 0.025 at most, the bias at rho = 0.9 is −0.015.
            let error = nats - truth(dim, rho);
            assert!(error.abs() < 0.09, "{algorithm:?}, {dim} columns, rho = {rho}: off by {error}");
        }
    }
}

#[test]
fn ksg_falls_short_in_many_columns() {
    // About a half, a quarter and a quarter of the truth, where the standard deviation is below 0.04.
    for (dim, rho, share) in [(8, 0.9, 0.6), (16, 0.6, 0.4), (16, 0.9, 0.4)] {
        let [x, y] = gaussians(1000, dim, rho, 2);
        let nats = ksg_information(&x, &y, &KsgConfig::default()).unwrap();
        assert!(nats > 0.5 && nats < share * truth(dim, rho), "{dim} columns, rho = {rho}: {nats}");
    }
    let [x, y] = gaussians(1000, 64, 0.0, 3);
    let nats = ksg_information(&x, &y, &KsgConfig::default()).unwrap();
    assert!(nats.abs() < 0.1, "independent: {nats}");
}

#[test]
fn ksg_has_the_ceiling_that_it_states() {
    // log N is close to ψ(N) and above it; ψ(3) = 3/2 − γ. The same features twice have infinite information.
    let [x, _] = gaussians(500, 2, 0.0, 4);
    let nats = ksg_information(&x, &x, &KsgConfig::default()).unwrap();
    let ceiling = 500f64.ln() - (1.5 - 0.5772156649);
    assert!(nats < ceiling && nats > ceiling - 0.01, "{nats} at a ceiling of {ceiling}");
}

#[test]
fn ksg_keeps_what_it_must() {
    let [x, y] = gaussians(400, 2, 0.8, 5);
    let scaled =
        x.data().iter().enumerate().map(|(i, value)| if i % 2 == 0 { 1024.0 * value } else { -*value });
    let scaled = Features::new(scaled.collect(), 2, vec![0; 400]).unwrap();
    for algorithm in BOTH {
        let config = KsgConfig { algorithm, ..Default::default() };
        let nats = ksg_information(&x, &y, &config).unwrap();
        // Equal but for the order of two terms.
        assert!((ksg_information(&y, &x, &config).unwrap() - nats).abs() < 1e-12);
        // A power of two and a sign are exact, so that neighbours stay.
        assert!((ksg_information(&scaled, &y, &config).unwrap() - nats).abs() < 1e-12);
        let raw = KsgConfig { standardize: false, ..config.clone() };
        assert!((ksg_information(&scaled, &y, &raw).unwrap() - nats).abs() > 0.1);
        for threads in [1, 3] {
            let again = with_threads(threads, || ksg_information(&x, &y, &config).unwrap());
            assert_eq!(again.to_bits(), nats.to_bits());
        }
    }
}

#[test]
fn ksg_refuses_what_it_cannot_use() {
    let [x, y] = gaussians(10, 2, 0.5, 6);
    let [longer, _] = gaussians(11, 2, 0.5, 6);
    let error = ksg_information(&x, &longer, &KsgConfig::default()).unwrap_err();
    assert_eq!(error.to_string(), "number of rows of y is 11, expected 10");
    for k in [0, 10, usize::MAX] {
        let error = ksg_information(&x, &y, &KsgConfig { k, ..Default::default() }).unwrap_err();
        assert_eq!(error.to_string(), format!("k is {k}, allowed is 1 to the number of rows (exclusive)"));
    }
    assert!(ksg_information(&x, &y, &KsgConfig { k: 9, ..Default::default() }).unwrap().is_finite());
}
