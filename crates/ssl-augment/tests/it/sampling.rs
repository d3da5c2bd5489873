//! Distributions of random parameters, compared with 20 000 draws of torchvision 0.24.1.

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use ssl_augment::{Adjustment, ColorJitter, ColorJitterConfig, Interpolation, RandomResizedCrop};

use crate::golden::Fixture;

const DRAWS: usize = 40_000;

/// Draws of the reference.
const REFERENCE_DRAWS: f64 = 20_000.0;

#[test]
fn random_resized_crop_boxes() {
    let fixture = Fixture::read("random_resized_crop_stats");
    let settings = [
        (224, 224, [0.08, 1.0]),
        (224, 224, [0.2, 1.0]),
        (240, 320, [0.08, 1.0]),
        (40, 48, [0.2, 1.0]),
        (300, 300, [0.05, 0.25]),
    ];
    for (i, (height, width, scale)) in settings.into_iter().enumerate() {
        let crop =
            RandomResizedCrop::new(224, scale, [3.0 / 4.0, 4.0 / 3.0], Interpolation::Bilinear).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(i as u64);
        let boxes: Vec<_> = (0..DRAWS).map(|_| crop.draw(width, height, &mut rng)).collect();
        let area = |b: &ssl_augment::CropBox| (b.height * b.width) as f64 / (height * width) as f64;
        let log_ratio = |b: &ssl_augment::CropBox| (b.width as f64 / b.height as f64).ln();
        check_rows(&fixture, &format!("out.f64.area_{i}"), boxes.iter().map(area).collect());
        check_rows(&fixture, &format!("out.f64.logaspect_{i}"), boxes.iter().map(log_ratio).collect());

        let center = fixture.doubles(&format!("out.f64.center_{i}"));
        let middle =
            |start: usize, len: usize, limit: usize| (start as f64 + len as f64 / 2.0) / limit as f64;
        let vertical: Vec<f64> = boxes.iter().map(|b| middle(b.top, b.height, height)).collect();
        let horizontal: Vec<f64> = boxes.iter().map(|b| middle(b.left, b.width, width)).collect();
        check_moments(&vertical, center[0], center[1], &format!("vertical centre {i}"));
        check_moments(&horizontal, center[2], center[3], &format!("horizontal centre {i}"));
    }
}

#[test]
fn color_jitter_factors_and_order() {
    let fixture = Fixture::read("color_jitter_stats");
    let config = ColorJitterConfig { p: 1.0, brightness: 0.8, contrast: 0.8, saturation: 0.8, hue: 0.2 };
    let jitter = ColorJitter::new(config).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let draws: Vec<_> = (0..DRAWS).map(|_| jitter.draw(&mut rng)).collect();

    let (ranges, means, stds) =
        (fixture.doubles("out.f64.ranges"), fixture.doubles("out.f64.mean"), fixture.doubles("out.f64.std"));
    let first_op_freq = fixture.doubles("out.f64.first_op_freq");
    let all = [Adjustment::Brightness, Adjustment::Contrast, Adjustment::Saturation, Adjustment::Hue];
    for (row, adjustment) in all.into_iter().enumerate() {
        let factor = |draw: &ssl_augment::Adjustments| draw.iter().find(|(a, _)| *a == adjustment)?.1;
        let values: Vec<f64> = draws.iter().filter_map(factor).collect();
        assert_eq!(values.len(), DRAWS);
        let [low, high] = [ranges[2 * row], ranges[2 * row + 1]];
        assert!(values.iter().all(|x| (low - 1e-9..=high + 1e-9).contains(x)), "{adjustment:?}");
        check_moments(&values, means[row], stds[row], &format!("{adjustment:?}"));

        for place in 0..4 {
            let count = draws.iter().filter(|draw| draw[place].0 == adjustment).count();
            let frequency = count as f64 / DRAWS as f64;
            // Five standard errors of a frequency of 1/4, for either sample.
            assert!((frequency - 0.25).abs() < 0.011, "{adjustment:?} at {place}: {frequency}");
            assert!((first_op_freq[row] - 0.25).abs() < 0.0153);
        }
    }
}

/// Mean, standard deviation and quantiles 1, 10, 25, 50, 75, 90, 99 %.
fn check_rows(fixture: &Fixture, name: &str, mut values: Vec<f64>) {
    let rows = fixture.doubles(name);
    check_moments(&values, rows[0], rows[1], name);
    values.sort_by(f64::total_cmp);
    for (q, expected) in [0.01, 0.10, 0.25, 0.50, 0.75, 0.90, 0.99].into_iter().zip(&rows[2..]) {
        let actual = values[(q * (values.len() - 1) as f64) as usize];
        // Quantiles are noisier than means where the density is low: the fixture's own bound.
        assert!(
            (actual - expected).abs() <= 0.02 + 0.05 * expected.abs(),
            "{name}, q {q}: {actual}, {expected}"
        );
    }
}

/// The mean within five standard errors of the difference, the standard deviation within 3 %.
fn check_moments(values: &[f64], mean: f64, std: f64, name: &str) {
    let n = values.len() as f64;
    let own_mean = values.iter().sum::<f64>() / n;
    let own_std = (values.iter().map(|x| (x - own_mean).powi(2)).sum::<f64>() / n).sqrt();
    let bound = 5.0 * std * (1.0 / n + 1.0 / REFERENCE_DRAWS).sqrt();
    assert!((own_mean - mean).abs() < bound, "{name}: mean {own_mean}, expected {mean} within {bound}");
    assert!((own_std / std - 1.0).abs() < 0.03, "{name}: std {own_std}, expected {std}");
}
