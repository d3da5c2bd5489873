//! Bars: comparisons of a few names, and spectra of many numbers.

use maud::{Markup, html};

use crate::axis::{Axis, Scale};
use crate::frame::{Frame, HEIGHT, Key, Plot, Symbol};
use crate::level::{Level, draw_levels};
use crate::lying_bars::draw_lying;
use crate::number::number;
use crate::symbol::{colour, cross, px};

/// A bar a value.
///
/// ```
/// use ssl_report::{BarChart, Bars, Chart, Direction};
///
/// let chart = Chart::from(BarChart {
///     title: "kNN accuracy".into(),
///     direction: Direction::Lying,
///     labels: ["raw pixels", "untrained", "simclr"].map(String::from).to_vec(),
///     bars: vec![Bars::new("kNN", [0.832, 0.781, 0.861])],
///     ..BarChart::default()
/// });
/// assert!(chart.to_svg().contains("0.861"));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BarChart {
    /// What is shown.
    pub title: String,
    /// A sentence below the chart on how to read it, or nothing.
    pub caption: String,
    /// What the labels are, such as `rank`, or nothing.
    pub x_label: String,
    /// The name and unit of the values, or nothing.
    pub y_label: String,
    /// How the axis of values is divided.
    pub y_scale: Scale,
    /// The ends of the axis of values. Without them a linear axis has zero and everything else in it.
    pub y_range: Option<[f64; 2]>,
    /// Which way the bars go.
    pub direction: Direction,
    /// The names of the places along the other axis. Without them the places are counted from 1.
    pub labels: Vec<String>,
    /// The bars; those of the same place stand side by side.
    pub bars: Vec<Bars>,
    /// Lines to compare with; lying bars have none.
    pub levels: Vec<Level>,
}

/// Which way bars go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Direction {
    /// Upwards, for many bars with short labels or none.
    #[default]
    Standing,
    /// To the right with the value at the end, for few bars with long labels.
    Lying,
}

/// Bars of one colour.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bars {
    /// Their name in the legend.
    pub name: String,
    /// A value a place. `None` and what is not finite have no bar.
    pub values: Vec<Option<f64>>,
    /// Half the length of the error bar, a place each; none where there is none or beyond its end.
    pub errors: Vec<Option<f64>>,
}

impl Bars {
    /// Bars without errors.
    pub fn new(name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        Self { name: name.into(), values: values.into_iter().map(Some).collect(), errors: Vec::new() }
    }

    /// Bars with errors of half the length of their bars of error.
    pub fn with_errors(name: impl Into<String>, values: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let (values, errors) = values.into_iter().map(|(value, error)| (Some(value), Some(error))).unzip();
        Self { name: name.into(), values, errors }
    }

    /// Lower end, value and upper end at a place.
    pub(crate) fn at(&self, place: usize) -> Option<[f64; 3]> {
        let value = self.values.get(place).copied().flatten()?;
        let error = self.errors.get(place).copied().flatten().filter(|e| e.is_finite()).unwrap_or(0.0).abs();
        Some([value - error, value, value + error])
    }
}

impl BarChart {
    pub(crate) fn plot(&self) -> Plot {
        let (height, body) = match self.direction {
            Direction::Standing => (HEIGHT, self.draw_standing()),
            Direction::Lying => draw_lying(self),
        };
        let key = |(n, bars): (usize, &Bars)| Key {
            symbol: Symbol::Box(n),
            name: bars.name.clone(),
            value: String::new(),
            hovered: None,
        };
        let alone = self.bars.len() == 1 && self.bars[0].name.is_empty();
        Plot {
            height,
            body,
            keys: if alone { Vec::new() } else { self.bars.iter().enumerate().map(key).collect() },
            hover: None,
            description: self.describe(),
        }
    }

    pub(crate) fn places(&self) -> usize {
        self.bars.iter().map(|b| b.values.len()).max().unwrap_or(0).max(self.labels.len())
    }

    pub(crate) fn label(&self, place: usize) -> String {
        self.labels.get(place).cloned().unwrap_or_else(|| (place + 1).to_string())
    }

    /// Names and values, the first of many.
    fn describe(&self) -> String {
        let values = |place| {
            let values = self.bars.iter().filter_map(move |b| b.at(place)).map(|[_, value, _]| number(value));
            format!("{} {}", self.label(place), values.collect::<Vec<_>>().join(" and "))
        };
        let places = self.places();
        let first: Vec<_> = (0..places.min(12)).map(values).collect();
        let more =
            if places > first.len() { format!("; {} more", places - first.len()) } else { String::new() };
        format!("bars: {}{more}", first.join("; "))
    }

    /// The axis of values.
    pub(crate) fn values_axis(&self) -> Axis {
        if let Some(ends) = self.y_range {
            return Axis::between(self.y_scale, ends);
        }
        let places = 0..self.places();
        let ends = places.flat_map(|place| self.bars.iter().filter_map(move |b| b.at(place))).flatten();
        let values: Vec<f64> = ends.chain(self.levels.iter().map(|l| l.value)).collect();
        if self.y_scale == Scale::Log {
            return Axis::around(Scale::Log, values.into_iter(), 0.06);
        }
        let axis = Axis::around(Scale::Linear, values.iter().copied().chain([0.0]), 0.06);
        // Bars stand on zero, without room on its other side.
        let any = |side: fn(&f64) -> bool| values.iter().any(|v| v.is_finite() && side(v));
        let low = if any(|v| *v < 0.0) { axis.low } else { 0.0 };
        let high = if any(|v| *v > 0.0) || low == 0.0 { axis.high } else { 0.0 };
        Axis { low, high, ..axis }
    }

    fn draw_standing(&self) -> Markup {
        let places = self.places();
        let x = Axis::between(Scale::Linear, [0.5, places.max(1) as f64 + 0.5]);
        let frame = Frame::new(x, self.values_axis(), &self.y_label);
        let room = (frame.right - frame.left) / places.max(1) as f64;
        let width = (room * 0.8).min(60.0) / self.bars.len().max(1) as f64;
        let foot = frame.up(0.0).unwrap_or(frame.bottom);
        html! {
            (frame.draw_y(&self.y_label))
            @if self.labels.is_empty() { (frame.draw_x(&self.x_label)) } @else { (self.draw_names(&frame, room)) }
            @if places == 0 { (frame.draw_empty()) }
            @for (n, bars) in self.bars.iter().enumerate() {
                (frame.clipped(html! {
                    g class={ "bar " (colour(n)) } {
                        @for place in 0..places {
                            @if let Some([low, value, high]) = bars.at(place) {
                                @let middle = frame.left + room * (place as f64 + 0.5);
                                @let left = middle + width * (n as f64 - self.bars.len() as f64 / 2.0);
                                @let title = format!("{} {}: {}", bars.name, self.label(place), number(value));
                                @if let Some(up) = frame.up(value) {
                                    rect x=(px(left)) y=(px(up.min(foot))) width=(px((width - 0.6).max(0.4)))
                                        height=(px((foot - up).abs().max(0.5))) { title { (title.trim()) } }
                                    (draw_error(frame.up(low).unwrap_or(foot), frame.up(high), left + width / 2.0))
                                } @else {
                                    path class="odd" d=(cross(left + width / 2.0, frame.bottom - 5.0, 3.0)) {
                                        title { (title.trim()) }
                                    }
                                }
                            }
                        }
                    }
                }))
            }
            (draw_levels(&frame, &self.levels, &[]))
        }
    }

    /// The names below standing bars, as many as there is room for.
    fn draw_names(&self, frame: &Frame, room: f64) -> Markup {
        let longest = self.labels.iter().map(|l| l.chars().count()).max().unwrap_or(1);
        let every = (7.0 * longest as f64 / room).ceil().max(1.0) as usize;
        html! {
            path class="edge" d={ "M" (px(frame.left)) " " (px(frame.bottom)) "H" (px(frame.right)) } {}
            @for (place, label) in self.labels.iter().enumerate().step_by(every) {
                text class="tick" x=(px(frame.left + room * (place as f64 + 0.5))) y=(px(frame.bottom + 17.0))
                    text-anchor="middle" { (label) }
            }
            text class="axis" x=(px(frame.right)) y=(px(frame.bottom + 33.0)) text-anchor="end" { (self.x_label) }
        }
    }
}

fn draw_error(low: f64, high: Option<f64>, x: f64) -> Markup {
    html! {
        @if let Some(high) = high.filter(|high| (low - high).abs() > 0.1) {
            @let [x, left, low, high] = [x, x - 3.0, low, high].map(px);
            path class="error" d=(format!("M{x} {low}V{high}M{left} {high}h6M{left} {low}h6")) {}
        }
    }
}
