//! The spectrum of the covariance of features, as a chart.

use candle_core::Tensor;
use ssl_vision::eval::covariance_spectrum;
use ssl_vision::report::{Chart, LineChart, Scale, Series};

/// Shares of the variance below this are rounding of features in `f32`.
const ROUNDING: f64 = 1e-12;

/// The share of the variance in each principal direction of features `(N, D)`, and of those of the untrained network.
pub(super) fn chart(trained: &Tensor, untrained: &Tensor) -> anyhow::Result<Chart> {
    let (n, dim) = trained.dims2()?;
    let lines = [("trained", trained), ("untrained", untrained)].map(|(name, features)| {
        let shares = shares(&covariance_spectrum(features)?);
        Ok(Series::new(name, (1..).map(f64::from).zip(shares)))
    });
    Ok(Chart::from(LineChart {
        title: "Spectrum of the covariance".into(),
        caption: format!(
            "Eigenvalues of the covariance of {dim} features of {n} images, as shares of their sum. RankMe and the effective \
             rank tell in one number how many directions count, alpha-ReQ how steeply the line falls: a flat line fills all \
             directions, one that breaks off early has collapsed to few."
        ),
        x_label: "rank of the eigenvalue".into(),
        y_label: "share of the variance".into(),
        x_scale: Scale::Log,
        y_scale: Scale::Log,
        series: lines.into_iter().collect::<anyhow::Result<_>>()?,
        ..LineChart::default()
    }))
}

/// Eigenvalues as shares of their sum, without those that are 0 but for rounding; none if all features are equal.
fn shares(eigenvalues: &[f64]) -> Vec<f64> {
    let sum: f64 = eigenvalues.iter().sum();
    eigenvalues.iter().map(|value| value / sum).filter(|share| *share > ROUNDING).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn shares_add_to_one_and_equal_features_have_none() {
        assert_eq!(shares(&[6.0, 2.0, 1e-30, 0.0]), [0.75, 0.25]);
        assert!(shares(&[0.0, 0.0]).is_empty());
    }

    #[test]
    fn a_direction_that_nothing_varies_in_is_not_drawn() {
        let rows = Tensor::new(&[[1.0, 5.0, 0.0], [4.0, 5.0, 1.0], [7.0, 5.0, 0.0]], &Device::Cpu).unwrap();
        let Chart::Lines(chart) = chart(&rows, &rows).unwrap() else { panic!("no lines") };
        let ranks: Vec<_> = chart.series[0].points.iter().map(|(rank, _)| *rank).collect();
        assert_eq!(ranks, [1.0, 2.0]);
    }
}
