//! How series are told apart: a colour by class of the style sheet, and a shape for those who see no colours.

use std::f64::consts::TAU;

/// The number of colours in the style sheet.
const COLOURS: usize = 10;

/// The class that gives the colour of the series `index`.
pub(crate) fn colour(index: usize) -> String {
    format!("s{}", index % COLOURS)
}

/// A shape as the outline of a path. Colours and shapes repeat together after 70 series only.
pub(crate) fn shape(index: usize, x: f64, y: f64, radius: f64) -> String {
    match index % 7 {
        0 => circle(x, y, radius),
        1 => polygon(x, y, radius * 1.2, 4, 0.125),
        2 => polygon(x, y, radius * 1.35, 3, 0.0),
        3 => polygon(x, y, radius * 1.3, 4, 0.0),
        4 => polygon(x, y, radius * 1.35, 3, 0.5),
        5 => plus(x, y, radius * 1.2),
        _ => polygon(x, y, radius * 1.15, 5, 0.0),
    }
}

/// A circle as the outline of a path.
pub(crate) fn circle(x: f64, y: f64, radius: f64) -> String {
    let (r, d) = (px(radius), px(2.0 * radius));
    format!("M{} {}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0z", px(x - radius), px(y))
}

/// Two crossing strokes, the mark of what cannot be shown.
pub(crate) fn cross(x: f64, y: f64, radius: f64) -> String {
    let (left, right, top, bottom) = (px(x - radius), px(x + radius), px(y - radius), px(y + radius));
    format!("M{left} {top}L{right} {bottom}M{left} {bottom}L{right} {top}")
}

fn polygon(x: f64, y: f64, radius: f64, corners: usize, turn: f64) -> String {
    let corner = |n: usize| {
        let (sin, cos) = ((n as f64 / corners as f64 + turn) * TAU).sin_cos();
        format!("{} {}", px(x + radius * sin), px(y - radius * cos))
    };
    format!("M{}z", (0..corners).map(corner).collect::<Vec<_>>().join("L"))
}

fn plus(x: f64, y: f64, radius: f64) -> String {
    let arm = radius * 0.36;
    let far = px(radius - arm);
    let (wide, back) = (px(2.0 * arm), px(-2.0 * arm));
    let start = format!("M{} {}", px(x - arm), px(y - radius));
    format!("{start}h{wide}v{far}h{far}v{wide}h-{far}v{far}h{back}v-{far}h-{far}v{back}h{far}z")
}

/// A coordinate with a tenth of a unit.
pub(crate) fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seventy_series_look_different() {
        let looks: std::collections::BTreeSet<_> =
            (0..70).map(|n| (colour(n), shape(n, 0.0, 0.0, 3.0))).collect();
        assert_eq!(looks.len(), 70);
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!([px(1.0), px(-0.01), px(12.345), px(-7.02)], ["1", "0", "12.3", "-7"]);
    }
}
