//! Horizontal lines to compare values with, and where their labels have room.

use maud::{Markup, html};

use crate::frame::Frame;
use crate::number::number;
use crate::symbol::px;

/// The width of a letter and the height of a line of a label, both generous.
const LETTER: f64 = 6.4;
const LINE: f64 = 13.0;

/// Between two points of what is drawn that a label may cover.
const STEP: f64 = 3.0;

/// A horizontal line to compare values with, such as what an untrained network reaches.
///
/// ```
/// let level = ssl_report::Level::new("ceiling ln 4096", 4096_f64.ln());
/// assert_eq!(level.label, "ceiling ln 4096");
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Level {
    /// What the line stands for.
    pub label: String,
    /// Where it is on the axis of values.
    pub value: f64,
}

impl Level {
    /// A line with its label.
    #[must_use]
    pub fn new(label: impl Into<String>, value: f64) -> Self {
        Self { label: label.into(), value }
    }
}

/// The box of a label.
#[derive(Debug, Clone, Copy)]
struct Spot {
    left: f64,
    right: f64,
    top: f64,
    at_right: bool,
}

impl Spot {
    fn bottom(&self) -> f64 {
        self.top + LINE
    }

    fn holds(&self, (x, y): (f64, f64)) -> bool {
        (self.left..=self.right).contains(&x) && (self.top..=self.bottom()).contains(&y)
    }

    fn touches(&self, other: &Spot) -> bool {
        let across = self.left < other.right && other.left < self.right;
        across && self.top < other.bottom() && other.top < self.bottom()
    }
}

/// Lines with labels. A label stands at the right end of its line and above it, or at another place that covers less of
/// `curves`, the places of what is drawn, and of other levels.
pub(crate) fn draw_levels(frame: &Frame, levels: &[Level], curves: &[Vec<(f64, f64)>]) -> Markup {
    let mut placed: Vec<(f64, &Level)> =
        levels.iter().filter_map(|l| Some((frame.up(l.value)?, l))).collect();
    placed.sort_by(|a, b| a.0.total_cmp(&b.0));
    let lines: Vec<Vec<_>> = placed.iter().map(|(y, _)| vec![(frame.left, *y), (frame.right, *y)]).collect();
    let drawn: Vec<_> = curves.iter().chain(&lines).flat_map(|curve| dense(curve)).collect();
    let mut taken: Vec<Spot> = Vec::new();
    for (y, level) in &placed {
        let cost = |spot: &Spot| {
            let outside = spot.top < frame.top - LINE / 2.0 || spot.bottom() > frame.bottom;
            let touched = taken.iter().filter(|other| spot.touches(other)).count();
            let covered = drawn.iter().filter(|point| spot.holds(**point)).count();
            10_000 * usize::from(outside) + 1000 * touched + covered
        };
        // Of equals the first.
        taken.extend(spots(frame, *y, &level.label).into_iter().min_by_key(cost));
    }
    html! {
        @for ((y, level), spot) in placed.iter().zip(&taken) {
            @let (x, anchor) = if spot.at_right { (spot.right, "end") } else { (spot.left, "start") };
            path class="level" d={ "M" (px(frame.left)) " " (px(*y)) "H" (px(frame.right)) } {
                title { (level.label) ": " (number(level.value)) }
            }
            text class="label" x=(px(x)) y=(px(spot.top + 10.0)) text-anchor=(anchor) { (level.label) }
        }
    }
}

/// Where the label of a level at `y` may stand.
fn spots(frame: &Frame, y: f64, label: &str) -> [Spot; 4] {
    let width = (LETTER * label.chars().count() as f64).min(frame.right - frame.left - 8.0);
    [(true, -14.0), (true, 3.0), (false, -14.0), (false, 3.0)].map(|(at_right, below)| {
        let left = if at_right { frame.right - 4.0 - width } else { frame.left + 4.0 };
        Spot { left, right: left + width, top: y + below, at_right }
    })
}

/// Points along a curve, so close that none of it passes between them.
fn dense(curve: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let between = |pair: &[(f64, f64)]| {
        let ((x, y), (to_x, to_y)) = (pair[0], pair[1]);
        let (across, up) = (to_x - x, to_y - y);
        let steps = (across.hypot(up) / STEP).ceil().max(1.0);
        let at = move |n: usize| (x + across * n as f64 / steps, y + up * n as f64 / steps);
        (0..=steps as usize).map(at).collect::<Vec<_>>()
    };
    curve.windows(2).flat_map(between).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::axis::{Axis, Scale};

    /// Where the label of a level in the middle stands: its end, and how far below the line.
    fn stands(curves: &[Vec<(f64, f64)>], levels: &[Level]) -> Vec<(bool, bool)> {
        let axis = || Axis::between(Scale::Linear, [0.0, 1.0]);
        let frame = Frame::new(axis(), axis(), "");
        let drawn = draw_levels(&frame, levels, curves).into_string();
        let texts = drawn.split("<text ").skip(1);
        let value = |text: &str, name: &str| {
            let rest = text.split(&format!("{name}=\"")).nth(1).unwrap();
            rest.split('"').next().unwrap().to_owned()
        };
        let up = |level: &Level| frame.up(level.value).unwrap();
        let mut sorted: Vec<&Level> = levels.iter().collect();
        sorted.sort_by(|a, b| b.value.total_cmp(&a.value));
        let placed = texts.zip(sorted).map(|(text, level)| {
            let below = value(text, "y").parse::<f64>().unwrap() > up(level);
            (value(text, "text-anchor") == "end", below)
        });
        placed.collect()
    }

    #[test]
    fn a_label_gives_way_to_a_curve() {
        let level = [Level::new("chance", 0.5)];
        let axis = || Axis::between(Scale::Linear, [0.0, 1.0]);
        let frame = Frame::new(axis(), axis(), "");
        let middle = frame.up(0.5).unwrap();
        let above = vec![(frame.left, middle - 6.0), (frame.right, middle - 6.0)];
        let below = vec![(frame.left, middle + 8.0), (frame.right, middle + 8.0)];
        let half = |curve: &[(f64, f64)]| vec![(200.0, curve[0].1), curve[1]];
        assert_eq!(stands(&[], &level), [(true, false)]);
        assert_eq!(stands(std::slice::from_ref(&above), &level), [(true, true)]);
        assert_eq!(stands(&[half(&above), half(&below)], &level), [(false, false)]);
    }

    #[test]
    fn labels_of_close_levels_do_not_touch_and_none_leaves_the_box() {
        let close = [Level::new("one", 0.5), Level::new("two", 0.51)];
        assert_eq!(stands(&[], &close), [(true, false), (true, true)]);
        assert_eq!(stands(&[], &[Level::new("most", 1.0)]), [(true, true)]);
        assert_eq!(stands(&[], &[Level::new("least", 0.0)]), [(true, false)]);
    }
}
