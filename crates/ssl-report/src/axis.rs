//! From values to places along an axis, and the round numbers that mark it.

/// How values are spread along an axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps for equal differences.
    #[default]
    Linear,
    /// Equal steps for equal ratios. Zero and negative values have no place and are marked at the edge.
    Log,
}

impl Scale {
    /// Whether a value has a place at all.
    pub(crate) fn shows(self, value: f64) -> bool {
        match self {
            Scale::Linear => value.is_finite(),
            Scale::Log => value >= f64::MIN_POSITIVE && value.is_finite(),
        }
    }
}

/// A scale with its ends, of which the lower is less than the higher.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Axis {
    pub(crate) scale: Scale,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Axis {
    /// The axis on which all `values` that can be shown have a place, and `margin` of its length beyond them.
    pub(crate) fn around(scale: Scale, values: impl Iterator<Item = f64>, margin: f64) -> Self {
        let shown = values.filter(|v| scale.shows(*v));
        let (mut low, mut high) =
            shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            (low, high) = if scale == Scale::Log { (0.1, 1.0) } else { (0.0, 1.0) };
        } else if low == high && low.abs() < f64::MIN_POSITIVE {
            // Most of what is counted or measured begins at zero.
            (low, high) = (0.0, 1.0);
        } else if low == high {
            (low, high) = (low - low.abs() / 2.0, high + high.abs() / 2.0);
        }
        let (low, high) = match scale {
            Scale::Linear => {
                let reach = (high / 2.0 - low / 2.0) * 2.0 * margin;
                (low - reach, high + reach)
            }
            Scale::Log => {
                let reach = (high.ln() - low.ln()) * margin;
                (low * (-reach).exp(), high * reach.exp())
            }
        };
        let lowest = if scale == Scale::Log { f64::MIN_POSITIVE } else { f64::MIN };
        Self { scale, low: low.max(lowest), high: high.min(f64::MAX) }
    }

    /// The axis from `low` to `high`, or one around both if they are not the ends of an axis.
    pub(crate) fn between(scale: Scale, [low, high]: [f64; 2]) -> Self {
        if scale.shows(low) && scale.shows(high) && low < high {
            return Self { scale, low, high };
        }
        Self::around(scale, [low, high].into_iter(), 0.0)
    }

    /// The difference between the ends of a linear axis.
    pub(crate) fn length(&self) -> f64 {
        self.high - self.low
    }

    /// The linear axis of a `length` with the same middle, or itself if that is no axis.
    pub(crate) fn widened(&self, length: f64) -> Self {
        let middle = self.low / 2.0 + self.high / 2.0;
        let (low, high) = (middle - length / 2.0, middle + length / 2.0);
        if low < high && length.is_finite() { Self { low, high, ..*self } } else { *self }
    }

    /// Where a value lies, 0 at the lower end and 1 at the higher; beyond them if it is.
    pub(crate) fn place(&self, value: f64) -> Option<f64> {
        // In units of the larger end, so that no difference is beyond the range of numbers.
        let unit = self.low.abs().max(self.high.abs()).max(f64::MIN_POSITIVE);
        let along = |v: f64| if self.scale == Scale::Log { v.ln() } else { v / unit };
        let (low, high) = (along(self.low), along(self.high));
        let place = (along(value) - low) / (high - low);
        // Ends that are neighbours among the numbers can have the same logarithm; far beyond the ends, far is enough.
        let place = if place.is_nan() { 0.5 } else { place.clamp(-1e3, 1e3) };
        self.scale.shows(value).then_some(place)
    }

    /// About `about` round numbers between the ends.
    pub(crate) fn ticks(&self, about: usize) -> Vec<f64> {
        match self.scale {
            Scale::Linear => self.linear_ticks(about),
            Scale::Log => self.log_ticks(about),
        }
    }

    /// Multiples of 1, 2 or 5 times a power of ten.
    fn linear_ticks(&self, about: usize) -> Vec<f64> {
        let about = about.max(1);
        let raw = (self.high / 2.0 - self.low / 2.0) / about as f64 * 2.0;
        let exponent = raw.log10().floor();
        let power = 10_f64.powf(exponent.abs());
        let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|d| *d * 10_f64.powf(exponent) >= raw * 0.999);
        // A quotient of whole numbers is rounded once: 3 / 10 and not 3 * 0.1.
        let digit = digit.unwrap_or(10.0);
        let tick = |n: f64| if exponent < 0.0 { n * digit / power } else { n * digit * power };
        let first = (self.low / tick(1.0)).ceil();
        let ticks = (0..=2 * about).map(|n| tick(first + n as f64) + 0.0);
        ticks.take_while(|t| t.is_finite() && *t <= self.high).collect()
    }

    /// Powers of ten, with 2 and 5 times them where there are few; equal steps within a part of one power.
    fn log_ticks(&self, about: usize) -> Vec<f64> {
        let (first, last) = (self.low.log10().ceil() as i32, self.high.log10().floor() as i32);
        let decades = usize::try_from(last - first + 1).unwrap_or(0);
        let inside = |t: &f64| (self.low..=self.high).contains(t);
        if decades >= 3 {
            let every = decades.div_ceil(about.max(1));
            return (first..=last).step_by(every).map(|e| 10_f64.powi(e)).filter(inside).collect();
        }
        let powers = (first - 1..=last).map(|e| 10_f64.powi(e));
        let ticks: Vec<f64> = powers.flat_map(|p| [p, 2.0 * p, 5.0 * p]).filter(inside).collect();
        if ticks.len() < 2 { self.linear_ticks(about) } else { ticks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(scale: Scale, ends: [f64; 2]) -> Vec<f64> {
        Axis::between(scale, ends).ticks(5)
    }

    #[test]
    fn linear_ticks_are_round_and_within_the_ends() {
        assert_eq!(ticks(Scale::Linear, [0.0, 1.0]), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks(Scale::Linear, [0.0, 2345.0]), [0.0, 500.0, 1000.0, 1500.0, 2000.0]);
        assert_eq!(ticks(Scale::Linear, [-0.13, 0.12]), [-0.1, -0.05, 0.0, 0.05, 0.1]);
        assert_eq!(ticks(Scale::Linear, [8.1, 8.4]), [8.1, 8.2, 8.3, 8.4]);
    }

    #[test]
    fn log_ticks_thin_out_over_many_powers_and_fill_up_within_few() {
        assert_eq!(ticks(Scale::Log, [1e-3, 1.0]), [1e-3, 1e-2, 1e-1, 1.0]);
        assert_eq!(ticks(Scale::Log, [1e-10, 1.0]), [1e-10, 1e-7, 1e-4, 1e-1]);
        assert_eq!(ticks(Scale::Log, [0.15, 3.0]), [0.2, 0.5, 1.0, 2.0]);
        assert_eq!(ticks(Scale::Log, [6.1, 8.9]), [7.0, 8.0]);
    }

    #[test]
    fn an_axis_stands_whatever_the_values() {
        let odd =
            [0.0, -0.0, f64::NAN, f64::INFINITY, f64::MAX, f64::MIN, f64::MIN_POSITIVE, 5e-324, 1e300, -3.0];
        for scale in [Scale::Linear, Scale::Log] {
            for (a, b) in odd.iter().flat_map(|a| odd.iter().map(move |b| (*a, *b))) {
                let axis = Axis::around(scale, [a, b].into_iter(), 0.05);
                assert!(axis.low < axis.high, "{scale:?} {a:?} {b:?}: {axis:?}");
                assert!(axis.ticks(5).len() <= 20, "{scale:?} {a:?} {b:?}");
                for value in [a, b] {
                    let place = axis.place(value);
                    assert_eq!(place.is_some(), scale.shows(value), "{value:?} in {axis:?}");
                    assert!(place.is_none_or(|p| (-1e-9..=1.0 + 1e-9).contains(&p)), "{value:?} in {axis:?}");
                }
            }
        }
    }

    #[test]
    fn a_log_axis_has_no_place_for_zero() {
        let axis = Axis::around(Scale::Log, [0.0, 0.01, 100.0].into_iter(), 0.0);
        assert_eq!(axis.place(0.0), None);
        assert_eq!(axis.place(-1.0), None);
        assert!((axis.place(1.0).unwrap() - 0.5).abs() < 1e-12);
    }
}
