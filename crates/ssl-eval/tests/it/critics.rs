//! Critics on Gaussians of known information, their ceilings, and what does not change an estimate.

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use ssl_eval::{Bound, CriticConfig, CriticInformation, Features, critic_information};

use crate::correlated::{gaussians, truth};
use crate::with_threads;

const ALL: [Bound; 4] = [Bound::InfoNce, Bound::Nwj, Bound::smile(), Bound::DonskerVaradhan];

/// Smaller than the default, for 2,000 rows.
fn small() -> CriticConfig {
    CriticConfig { batch_size: 128, max_steps: 600, patience: 100, learning_rate: 1e-3, ..Default::default() }
}

fn measure([x, y]: &[Features; 2], bound: Bound, config: &CriticConfig, seed: u64) -> CriticInformation {
    critic_information(x, y, bound, config, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap()
}

/// Standard errors that chance may add to an estimate.
const NOISE: f64 = 3.0;

#[test]
fn independent_features_have_no_information() {
    let features = gaussians(2000, 8, 0.0, 1);
    for bound in ALL {
        let found = measure(&features, bound, &small(), 2);
        // A critic that was stopped early still takes chance for dependence: 0.03 beside the noise of the test part.
        let limit = NOISE * found.standard_error + 0.03;
        assert!(found.nats.abs() < limit, "{bound:?}: {found:?}");
    }
}

#[test]
fn estimates_are_close_where_rows_suffice() {
    // What the critic does not learn from 1,200 rows, as a share of the truth: more in more columns.
    for (dim, rho, missing) in [(2, 0.6, 0.1), (2, 0.9, 0.1), (8, 0.6, 0.2)] {
        let features = gaussians(2000, dim, rho, 3);
        for bound in ALL {
            let found = measure(&features, bound, &small(), 4);
            let (truth, noise) = (truth(dim, rho), NOISE * found.standard_error);
            let range = (1.0 - missing) * truth - noise..truth + noise;
            assert!(range.contains(&found.nats), "{bound:?}, {dim} columns, rho = {rho}: {found:?}");
        }
    }
}

#[test]
fn lower_bounds_stay_below_the_truth_and_their_ceiling() {
    for (dim, rho) in [(2, 0.3), (16, 0.9), (64, 0.6)] {
        let features = gaussians(2000, dim, rho, 5);
        for bound in [Bound::InfoNce, Bound::Nwj] {
            let found = measure(&features, bound, &small(), 6);
            // The slack is for the standard error, which is an estimate itself.
            let limit = truth(dim, rho) + NOISE * found.standard_error + 0.02;
            assert!(found.nats < limit, "{bound:?}, {dim} columns, rho = {rho}: {found:?}");
            let ceiling = (bound == Bound::InfoNce).then(|| 128f64.ln());
            assert_eq!(found.ceiling, ceiling);
            assert!(ceiling.is_none_or(|ceiling| found.nats <= ceiling), "{found:?}");
        }
    }
}

#[test]
fn the_generator_decides_and_the_number_of_threads_does_not() {
    let features = gaussians(400, 3, 0.8, 7);
    let config = CriticConfig { batch_size: 32, max_steps: 50, ..small() };
    for bound in ALL {
        let run = |threads, seed| with_threads(threads, || measure(&features, bound, &config, seed));
        let found = run(1, 8);
        assert_eq!(found, run(3, 8));
        assert_ne!(found.nats, run(1, 9).nats);
    }
}

#[test]
fn the_scale_of_a_column_changes_nothing() {
    let [x, y] = gaussians(400, 3, 0.8, 7);
    let config = CriticConfig { batch_size: 32, max_steps: 50, ..small() };
    // A power of two, so that standardised values are the same to the last bit.
    let scaled =
        x.data().iter().enumerate().map(|(i, value)| if i % 3 == 0 { 1024.0 * value } else { *value });
    let scaled = Features::new(scaled.collect(), 3, vec![1; 400]).unwrap();
    let found = measure(&[x, y.clone()], Bound::InfoNce, &config, 8);
    assert_eq!(found, measure(&[scaled, y], Bound::InfoNce, &config, 8));
}

#[test]
fn critics_refuse_what_they_cannot_use() {
    let [x, y] = gaussians(100, 2, 0.5, 9);
    let [longer, _] = gaussians(101, 2, 0.5, 9);
    let refuse = |y: &Features, bound, config: CriticConfig| {
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        critic_information(&x, y, bound, &config, &mut generator).unwrap_err().to_string()
    };
    // Of 100 rows, 15 are for validation.
    let fits = CriticConfig { batch_size: 15, max_steps: 0, ..Default::default() };
    assert_eq!(measure(&[x.clone(), y.clone()], Bound::Nwj, &fits, 1).steps, 0);
    let rows = refuse(&longer, Bound::Nwj, fits.clone());
    assert_eq!(rows, "number of rows of y is 101, expected 100");
    for batch_size in [0, 1, 16] {
        let message = refuse(&y, Bound::Nwj, CriticConfig { batch_size, ..fits.clone() });
        assert!(message.starts_with(&format!("batch_size is {batch_size}, allowed is 2 to")), "{message}");
    }
    for clip in [0.0, -1.0, f64::NAN] {
        let message = refuse(&y, Bound::Smile { clip }, fits.clone());
        assert_eq!(message, format!("clip is {clip}, allowed is above 0"));
    }
    let nan = f64::NAN;
    for (config, expected) in [
        (CriticConfig { width: 0, ..fits.clone() }, "width is 0, allowed is at least 1"),
        (CriticConfig { embedding: 0, ..fits.clone() }, "embedding is 0, allowed is at least 1"),
        (CriticConfig { patience: 0, ..fits.clone() }, "patience is 0, allowed is at least 1"),
        (CriticConfig { learning_rate: 0.0, ..fits.clone() }, "learning_rate is 0, allowed is above 0"),
        (CriticConfig { weight_decay: -1.0, ..fits.clone() }, "weight_decay is -1, allowed is at least 0"),
        (CriticConfig { test_share: 0.0, ..fits.clone() }, "test_share is 0, allowed is above 0"),
        (CriticConfig { test_share: 0.85, ..fits.clone() }, "test_share is 0.85, allowed is above 0"),
        (
            CriticConfig { validation_share: nan, ..fits.clone() },
            "validation_share is NaN, allowed is above 0",
        ),
    ] {
        let message = refuse(&y, Bound::Nwj, config);
        assert!(message.starts_with(expected), "{message}");
    }
}
