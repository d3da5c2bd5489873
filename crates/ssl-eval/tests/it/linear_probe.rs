//! The linear probe and logistic regression on made-up features.

use ssl_eval::{
    Error, Features, LinearProbeConfig, LogisticRegression, LogisticRegressionConfig, linear_probe,
};

use crate::{clusters, with_threads};

#[test]
fn separable_classes_are_told_apart() {
    let (train, test) = (clusters(200, 8, 4, 0.1, 1), clusters(80, 8, 4, 0.1, 2));
    let result = linear_probe(&train, &test, 4, &LinearProbeConfig::default()).unwrap();
    assert_eq!((result.top1, result.train_top1), (1.0, 1.0));
    assert!(result.converged);
    // All values of c are right on the hold-out, so the smallest is taken.
    assert_eq!(result.c, 0.001);
}

#[test]
fn the_scale_of_a_feature_does_not_matter() {
    let (train, test) = (clusters(300, 6, 3, 1.5, 1), clusters(90, 6, 3, 1.5, 2));
    let rescale = |features: &Features| {
        let scaled = |(i, value): (usize, &f32)| value * 10f32.powi(i as i32 % 6 - 3) + (i % 6) as f32;
        let data = features.data().iter().enumerate().map(scaled).collect();
        Features::new(data, 6, features.labels().to_vec()).unwrap()
    };
    let config = LinearProbeConfig::default();
    let result = linear_probe(&train, &test, 3, &config).unwrap();
    let rescaled = linear_probe(&rescale(&train), &rescale(&test), 3, &config).unwrap();
    assert_eq!((result.top1, result.c), (rescaled.top1, rescaled.c));
}

#[test]
fn noise_asks_for_a_strong_penalty() {
    // Thirty samples of ninety features without information about the class: a weak penalty only fits the noise.
    let (train, test) = (clusters(30, 90, 2, 1e3, 1), clusters(400, 90, 2, 1e3, 2));
    let weak = LinearProbeConfig { c_grid: vec![10.0], ..Default::default() };
    let weak = linear_probe(&train, &test, 2, &weak).unwrap();
    assert_eq!((weak.c, weak.train_top1), (10.0, 1.0));
    assert!(weak.top1 < 0.65, "{weak:?}");
}

#[test]
fn the_order_of_the_grid_does_not_matter() {
    let (train, test) = (clusters(300, 6, 3, 2.0, 1), clusters(90, 6, 3, 2.0, 2));
    let probe = |c_grid| linear_probe(&train, &test, 3, &LinearProbeConfig { c_grid, ..Default::default() });
    assert_eq!(probe(vec![0.01, 1.0, 0.1]).unwrap(), probe(vec![1.0, 0.1, 0.01]).unwrap());
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (train, test) = (clusters(900, 40, 5, 3.0, 1), clusters(200, 40, 5, 3.0, 2));
    let probe = || linear_probe(&train, &test, 5, &LinearProbeConfig::default()).unwrap();
    let one = with_threads(1, probe);
    for threads in [2, 3] {
        assert_eq!(one, with_threads(threads, probe));
    }
    let config = LogisticRegressionConfig::default();
    let fit = || LogisticRegression::fit(&train, 5, &config).unwrap().coefficients();
    assert_eq!(with_threads(1, fit), with_threads(2, fit));
}

#[test]
fn a_fit_that_gave_up_says_so() {
    let train = clusters(300, 6, 3, 2.0, 1);
    let config = LinearProbeConfig { max_iterations: 2, ..Default::default() };
    let result = linear_probe(&train, &train, 3, &config).unwrap();
    assert!(!result.converged);
    assert_eq!(result.iterations, 2 * (config.c_grid.len() + 1));
}

#[test]
fn a_fit_of_the_grid_that_gave_up_is_not_hidden() {
    // Separable classes: the strong penalty is found at once and chosen, the weak one takes many steps.
    let train = clusters(200, 8, 4, 0.1, 1);
    let probe = |c_grid| {
        let config = LinearProbeConfig { c_grid, max_iterations: 6, ..Default::default() };
        linear_probe(&train, &train, 4, &config).unwrap()
    };
    let (chosen, both) = (probe(vec![1e-4]), probe(vec![1e-4, 1e9]));
    assert_eq!((chosen.c, chosen.converged), (1e-4, true));
    assert_eq!((both.c, both.converged), (1e-4, false));
}

#[test]
fn probabilities_sum_to_one_and_a_missing_class_is_unlikely() {
    let train = clusters(100, 4, 3, 1.0, 1);
    let classifier = LogisticRegression::fit(&train, 5, &LogisticRegressionConfig::default()).unwrap();
    assert!(classifier.converged());
    for p in classifier.probabilities(&train).unwrap().chunks(5) {
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(p[3] < 1e-3 && p[4] < 1e-3, "{p:?}");
    }
}

#[test]
fn wide_features_are_fitted_without_a_factorisation() {
    let train = clusters(40, 3000, 2, 1.0, 1);
    let classifier = LogisticRegression::fit(&train, 2, &LogisticRegressionConfig::default()).unwrap();
    assert!(classifier.converged());
    assert_eq!(classifier.predict(&train).unwrap(), train.labels());
}

#[test]
fn bad_settings_are_refused() {
    let train = clusters(60, 4, 3, 1.0, 1);
    let default = LinearProbeConfig::default();
    let bad = [
        ("c_grid", LinearProbeConfig { c_grid: vec![], ..default.clone() }),
        ("c_grid", LinearProbeConfig { c_grid: vec![1.0, 0.0], ..default.clone() }),
        ("c_grid", LinearProbeConfig { c_grid: vec![f64::NAN, 1.0], ..default.clone() }),
        ("validation_fraction", LinearProbeConfig { validation_fraction: 0.0, ..default.clone() }),
        ("validation_fraction", LinearProbeConfig { validation_fraction: 1.0, ..default.clone() }),
        ("tolerance", LinearProbeConfig { tolerance: -1.0, ..default }),
    ];
    for (name, config) in bad {
        let error = linear_probe(&train, &train, 3, &config).unwrap_err();
        assert!(matches!(error, Error::Config { field, .. } if field == name), "{error}");
    }
    let config = LogisticRegressionConfig { c: 0.0, ..Default::default() };
    let error = LogisticRegression::fit(&train, 3, &config).unwrap_err();
    assert_eq!(error.to_string(), "c is 0, allowed is above 0 and finite");
}

#[test]
fn bad_features_are_refused() {
    let (train, wider) = (clusters(60, 4, 3, 1.0, 1), clusters(60, 5, 3, 1.0, 1));
    let config = LinearProbeConfig::default();
    assert!(matches!(
        linear_probe(&train, &wider, 3, &config),
        Err(Error::Size { found: 5, expected: 4, .. })
    ));
    assert!(matches!(linear_probe(&train, &train, 2, &config), Err(Error::Label { row: 2, label: 2, .. })));
    let one_class = Features::new(vec![1.0, 2.0, 3.0, 4.0], 1, vec![1; 4]).unwrap();
    assert!(matches!(linear_probe(&one_class, &one_class, 2, &config), Err(Error::OneClass { label: 1 })));
    let one_each = Features::new(vec![1.0, 2.0], 1, vec![0, 1]).unwrap();
    assert!(matches!(linear_probe(&one_each, &one_each, 2, &config), Err(Error::HoldOut)));
    let classifier = LogisticRegression::fit(&train, 3, &LogisticRegressionConfig::default()).unwrap();
    assert!(matches!(classifier.predict(&wider), Err(Error::Size { found: 5, expected: 4, .. })));
}
