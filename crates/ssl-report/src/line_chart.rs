//! Lines over steps or epochs.

use maud::{Markup, html};
use serde::Serialize;

use crate::axis::{Axis, Scale};
use crate::frame::{Frame, HEIGHT, Hovered, Key, Plot, Symbol};
use crate::level::{Level, draw_levels};
use crate::line::{Line, MOST_POINTS};
use crate::notice::Severity;
use crate::number::number;
use crate::symbol::px;
use crate::thin::{Point, thin};

/// The height of the label of a mark.
const MARK_ROW: f64 = 15.0;

/// Values over steps or epochs, a line a series.
///
/// Values that are not finite, or not above zero on a logarithmic axis, interrupt their line and are marked at the edge.
///
/// ```
/// use ssl_report::{Chart, Level, LineChart, Scale, Series};
///
/// let loss = (0..1000).map(|step| (f64::from(step), 8.0 * (-f64::from(step) / 300.0).exp() + 0.1));
/// let chart = Chart::from(LineChart {
///     title: "Loss".into(),
///     x_label: "step".into(),
///     y_scale: Scale::Log,
///     series: vec![Series::new("training", loss)],
///     levels: vec![Level::new("chance", 4096_f64.ln())],
///     ..LineChart::default()
/// });
/// assert!(chart.to_svg().starts_with("<svg"));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LineChart {
    /// What is shown.
    pub title: String,
    /// A sentence below the chart on how to read it, or nothing.
    pub caption: String,
    /// The name of the horizontal axis, such as `step`.
    pub x_label: String,
    /// The name and unit of the vertical axis, or nothing if the title says it.
    pub y_label: String,
    /// How the horizontal axis is divided.
    pub x_scale: Scale,
    /// How the vertical axis is divided.
    pub y_scale: Scale,
    /// The ends of the vertical axis; lines are cut off there. Without them everything has a place.
    pub y_range: Option<[f64; 2]>,
    /// The lines.
    pub series: Vec<Series>,
    /// Horizontal lines to compare with.
    pub levels: Vec<Level>,
    /// Vertical lines where something happened.
    pub marks: Vec<Mark>,
    /// A quiet line behind the others with an axis of its own from 0 to its highest value, such as the learning rate.
    pub schedule: Option<Series>,
}

/// A line of a [`LineChart`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Places and values in the order of the line. `None` is a gap.
    pub points: Vec<(f64, Option<f64>)>,
    /// The strong line is the mean of so many neighbouring values, with the values themselves pale behind it; 0 and 1 draw
    /// the values alone.
    pub smoothing: usize,
}

impl Series {
    /// A line through points.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self::with_gaps(name, points.into_iter().map(|(x, y)| (x, Some(y))))
    }

    /// A line through points, interrupted where there is no value.
    pub fn with_gaps(name: impl Into<String>, points: impl IntoIterator<Item = (f64, Option<f64>)>) -> Self {
        Self { name: name.into(), points: points.into_iter().collect(), smoothing: 0 }
    }

    /// The same with a strong line through the means of `smoothing` neighbours.
    #[must_use]
    pub fn smoothed(self, smoothing: usize) -> Self {
        Self { smoothing, ..self }
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.points.iter().filter_map(|(_, y)| *y)
    }
}

/// A vertical line of a [`LineChart`]: something happened there.
///
/// ```
/// use ssl_report::{Mark, Severity};
///
/// let mark = Mark::new("collapsed since step 120", 120.0, Severity::Bad);
/// assert_eq!(mark.x, 120.0);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mark {
    /// What happened.
    pub label: String,
    /// Where on the horizontal axis.
    pub x: f64,
    /// How grave it is, which decides the colour.
    pub severity: Severity,
}

impl Mark {
    /// A line with its label.
    #[must_use]
    pub fn new(label: impl Into<String>, x: f64, severity: Severity) -> Self {
        Self { label: label.into(), x, severity }
    }
}

impl LineChart {
    pub(crate) fn plot(&self) -> Plot {
        let frame = self.frame();
        let lines: Vec<Line> =
            self.series.iter().map(|s| Line::new(&s.name, &s.points, s.smoothing, self.y_scale)).collect();
        let curves: Vec<_> = lines.iter().map(|line| line.placed(&frame)).collect();
        let body = html! {
            (frame.draw_y(&self.y_label))
            @if let Some(schedule) = &self.schedule { (draw_schedule(&frame, schedule)) }
            (frame.draw_x(&self.x_label))
            (frame.clipped(html! {
                @for (n, line) in lines.iter().enumerate() { (line.draw(&frame, n)) }
            }))
            @if lines.iter().all(|line| line.last.is_none()) { (frame.draw_empty()) }
            @for (n, line) in lines.iter().enumerate() { (line.draw_markers(&frame, n, lines.len())) }
            (draw_levels(&frame, &self.levels, &curves))
            (self.draw_marks(&frame))
            @for line in &lines { (line.draw_odd(&frame)) }
        };
        let described = lines.iter().map(Line::describe).collect::<Vec<_>>().join("; ");
        Plot {
            height: HEIGHT + MARK_ROW * self.marks.len() as f64,
            body,
            keys: self.keys(&lines),
            hover: self.hover(&frame, &lines),
            description: format!("lines over {}: {described}", self.x_label),
        }
    }

    fn frame(&self) -> Frame {
        let schedule = self.schedule.iter();
        let places = self.series.iter().chain(schedule).flat_map(|s| s.points.iter().map(|(x, _)| *x));
        let x = Axis::around(self.x_scale, places.chain(self.marks.iter().map(|m| m.x)), 0.0);
        let y = match self.y_range {
            Some(ends) => Axis::between(self.y_scale, ends),
            None => {
                let values = self.series.iter().flat_map(Series::values);
                Axis::around(self.y_scale, values.chain(self.levels.iter().map(|l| l.value)), 0.06)
            }
        };
        let frame = Frame::new(x, y, &self.y_label);
        let marks = MARK_ROW * self.marks.len() as f64;
        Frame { top: frame.top + marks, bottom: frame.bottom + marks, ..frame }
    }

    fn keys(&self, lines: &[Line]) -> Vec<Key> {
        let key = |(n, line): (usize, &Line)| Key {
            symbol: Symbol::Line(n),
            name: line.name.clone(),
            value: line.last.map(number).unwrap_or_default(),
            hovered: hovered(n, &line.strong),
        };
        let mut keys: Vec<Key> = lines.iter().enumerate().map(key).collect();
        if let Some(schedule) = &self.schedule {
            let highest = schedule.values().filter(|v| v.is_finite()).max_by(f64::total_cmp);
            keys.push(Key {
                symbol: Symbol::Area,
                name: schedule.name.clone(),
                value: highest.map(|v| format!("up to {}", number(v))).unwrap_or_default(),
                hovered: hovered(lines.len(), &schedule.points),
            });
        }
        if lines.iter().any(|line| line.odd().next().is_some()) {
            let name = match self.y_scale {
                Scale::Linear => "not finite",
                Scale::Log => "not above zero, or not finite",
            };
            keys.push(Key {
                symbol: Symbol::Odd,
                name: name.to_owned(),
                value: String::new(),
                hovered: None,
            });
        }
        keys
    }

    /// Lines up to their labels, which stand above the box, below each other.
    fn draw_marks(&self, frame: &Frame) -> Markup {
        let placed = self.marks.iter().filter_map(|m| Some((frame.across(m.x)?, m)));
        let first = frame.top - MARK_ROW * self.marks.len() as f64;
        html! {
            @for (n, (x, mark)) in placed.enumerate() {
                @let at_left = x > (frame.left + frame.right) / 2.0;
                @let (text_x, anchor) = if at_left { (x - 4.0, "end") } else { (x + 4.0, "start") };
                @let (severity, top) = (mark.severity.class(), first + MARK_ROW * n as f64);
                path class={ "mark " (severity) } d={ "M" (px(x)) " " (px(top)) "V" (px(frame.bottom)) } {}
                text class={ "label " (severity) } x=(px(text_x)) y=(px(top + 9.0)) text-anchor=(anchor) {
                    (mark.label)
                }
            }
        }
    }

    fn hover(&self, frame: &Frame, lines: &[Line]) -> Option<String> {
        let schedule = self.schedule.as_ref().map(|s| thin(&s.points, MOST_POINTS, f64::is_finite));
        let strong = lines.iter().map(|line| (&line.strong, frame.y));
        let quiet = schedule.iter().map(|points| (points, schedule_axis(points)));
        let series: Vec<_> =
            strong.chain(quiet).map(|(points, y)| hovered_points(frame, points, y)).collect();
        let hover = Hover {
            name: &self.x_label,
            left: frame.left,
            right: frame.right,
            top: frame.top,
            bottom: frame.bottom,
            series,
        };
        serde_json::to_string(&hover).ok()
    }
}

/// What the script of the page needs: the box, and for each series where a point is drawn and what stands there.
#[derive(Serialize)]
struct Hover<'a> {
    name: &'a str,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    series: Vec<Vec<(f64, f64, String, String)>>,
}

/// The values of the series `place`, of `points`.
fn hovered(place: usize, points: &[Point]) -> Option<Hovered> {
    let letters = points.iter().filter_map(|(_, y)| Some(number((*y)?).chars().count()));
    Some(Hovered { place, letters: letters.max().unwrap_or(0) })
}

fn hovered_points(frame: &Frame, points: &[Point], y: Axis) -> Vec<(f64, f64, String, String)> {
    let tenth = |v: f64| (v * 10.0).round() / 10.0;
    let place = |(x, value): &Point| {
        let across = frame.across(*x)?;
        let up = frame.bottom - y.place((*value)?)? * (frame.bottom - frame.top);
        Some((tenth(across), tenth(up.clamp(frame.top, frame.bottom)), number(*x), number((*value)?)))
    };
    points.iter().filter_map(place).collect()
}

/// The axis of a schedule, on which its highest value leaves a little room.
fn schedule_axis(points: &[Point]) -> Axis {
    let highest = points.iter().filter_map(|(_, y)| y.filter(|y| y.is_finite())).fold(0.0, f64::max);
    Axis::between(Scale::Linear, [0.0, if highest > 0.0 { highest * 1.1 } else { 1.0 }])
}

fn draw_schedule(frame: &Frame, schedule: &Series) -> Markup {
    let points = thin(&schedule.points, MOST_POINTS, f64::is_finite);
    let frame = Frame { y: schedule_axis(&points), ..*frame };
    let placed: Vec<_> = points.iter().filter_map(|(x, y)| frame.point(*x, (*y)?)).collect();
    let line = placed.iter().map(|(x, y)| format!("{} {}", px(*x), px(*y))).collect::<Vec<_>>().join("L");
    let [Some((first, _)), Some((last, _))] = [placed.first(), placed.last()] else { return html! {} };
    let foot = px(frame.bottom);
    frame.clipped(html! {
        path class="schedule-area" d={ "M" (px(*first)) " " (foot) "L" (line) "L" (px(*last)) " " (foot) "z" } {}
        path class="schedule" d={ "M" (line) } { title { (schedule.name) } }
    })
}
