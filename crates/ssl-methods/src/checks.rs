//! Ranges that the settings of several methods share. Every message names the key, its value and what is allowed.

use std::ops::RangeInclusive;

type Check = Result<(), String>;

/// Widths of layers.
pub(crate) const WIDTH: RangeInclusive<usize> = 1..=65_536;

/// Numbers of layers of a projector or predictor.
pub(crate) const LAYERS: RangeInclusive<usize> = 1..=8;

/// Numbers of prototypes.
pub(crate) const PROTOTYPES: RangeInclusive<usize> = 2..=1_000_000;

/// Epochs of a run, or a part of them.
pub(crate) const EPOCHS: RangeInclusive<usize> = 0..=1_000_000;

/// A whole number in `range`.
pub(crate) fn count(key: &str, value: usize, range: RangeInclusive<usize>) -> Check {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(format!("method.{key} = {value} is not in {}..={}", range.start(), range.end())),
    }
}

/// A number in the closed `range`.
pub(crate) fn number(key: &str, value: f64, range: RangeInclusive<f64>) -> Check {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(format!("method.{key} = {value} is not in [{}, {}]", range.start(), range.end())),
    }
}

/// Two numbers in the closed `range`, the first not above the second.
pub(crate) fn interval(key: &str, [low, high]: [f64; 2], range: RangeInclusive<f64>) -> Check {
    match range.contains(&low) && range.contains(&high) && low <= high {
        true => Ok(()),
        false => Err(format!(
            "method.{key} = [{low}, {high}] must rise within [{}, {}]",
            range.start(),
            range.end()
        )),
    }
}

/// A divisor of logits, above 0 and at most 10.
pub(crate) fn temperature(key: &str, value: f64) -> Check {
    match value > 0.0 && value <= 10.0 {
        true => Ok(()),
        false => Err(format!("method.{key} = {value} is not in (0, 10]")),
    }
}
