//! Numbers as people read them.

/// A number with at most four significant digits before and after the point, thousands set apart and a true minus.
///
/// ```
/// use ssl_report::number;
///
/// assert_eq!(number(8.317_766), "8.318");
/// assert_eq!(number(-24_000.0), "−24,000");
/// assert_eq!(number(0.000_25), "2.5e−4");
/// assert_eq!(number(f64::NAN), "NaN");
/// ```
#[must_use]
pub fn number(value: f64) -> String {
    let size = value.abs();
    let digits = if value.is_nan() {
        return "NaN".to_owned();
    } else if value.is_infinite() {
        "∞".to_owned()
    } else if size == 0.0 {
        return "0".to_owned();
    } else if (9.9995e-4..1e9).contains(&size) {
        plain(size)
    } else {
        with_exponent(size)
    };
    if value < 0.0 { format!("−{digits}") } else { digits }
}

/// A number as [`number`] writes it, or with `decimals` digits behind the point.
///
/// ```
/// assert_eq!(ssl_report::decimals(1234.5, 2), "1,234.50");
/// assert_eq!(ssl_report::decimals(-0.001, 1), "0.0");
/// ```
#[must_use]
pub fn decimals(value: f64, decimals: usize) -> String {
    if !value.is_finite() || value.abs() >= 1e9 {
        return number(value);
    }
    let digits = set_apart(&format!("{:.decimals$}", value.abs()));
    let is_zero = !digits.contains(|c: char| ('1'..='9').contains(&c));
    if value < 0.0 && !is_zero { format!("−{digits}") } else { digits }
}

/// A fraction in [0, 1] in per cent, with `decimals` digits behind the point.
///
/// ```
/// assert_eq!(ssl_report::percent(0.8612, 1), "86.1 %");
/// ```
#[must_use]
pub fn percent(fraction: f64, decimals: usize) -> String {
    format!("{} %", self::decimals(100.0 * fraction, decimals))
}

fn plain(size: f64) -> String {
    // Values of this branch are within [1e-3, 1e9), so that the exponent is small.
    let exponent = size.log10().floor() as i32;
    let decimals = usize::try_from(3 - exponent).unwrap_or(0).min(6);
    set_apart(trimmed(&format!("{size:.decimals$}")))
}

fn with_exponent(size: f64) -> String {
    let text = format!("{size:.3e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{}", trimmed(digits), exponent.replace('-', "−"))
}

/// Without the zeros that end a decimal fraction.
fn trimmed(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

/// With a comma between thousands.
fn set_apart(digits: &str) -> String {
    let (whole, fraction) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut text = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_keep_their_size() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (0.1 + 0.2, "0.3"),
            (999.96, "1,000"),
            (1234.0, "1,234"),
            (0.001, "0.001"),
            (0.000_999_99, "0.001"),
            (0.06, "0.06"),
            (1e-4, "1e−4"),
            (-3.456_78e-7, "−3.457e−7"),
            (65_536.0, "65,536"),
            (1e9, "1e9"),
            (f64::INFINITY, "∞"),
            (f64::NEG_INFINITY, "−∞"),
        ] {
            assert_eq!(number(value), text, "{value:?}");
        }
    }

    #[test]
    fn decimals_stay_and_a_rounded_zero_has_no_sign() {
        assert_eq!(decimals(0.5, 3), "0.500");
        assert_eq!(decimals(-0.04, 1), "0.0");
        assert_eq!(decimals(f64::NAN, 1), "NaN");
        assert_eq!(percent(1.0, 2), "100.00 %");
    }
}
