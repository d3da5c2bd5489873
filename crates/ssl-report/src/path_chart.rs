//! Paths through a plane: how two numbers of a run change together.

use maud::{Markup, html};

use crate::axis::{Axis, Scale};
use crate::frame::{Frame, HEIGHT, Key, Plot, Symbol, draw_start};
use crate::level::{Level, draw_levels};
use crate::number::number;
use crate::symbol::{colour, px, shape};
use crate::thin::{Point, thin};

/// The most points of a path that are drawn, counted before its extremes are added.
const MOST_POINTS: usize = 300;

/// One path a run through points (x, y), such as the information plane. A hollow circle is where it starts, a full shape
/// where it ends.
///
/// ```
/// use ssl_report::{Chart, PathChart, Trace};
///
/// let spiral = (0..40).map(|n| f64::from(n) / 8.0).map(|t| [t * t.cos(), t * t.sin()]);
/// let chart = Chart::from(PathChart {
///     title: "Plane".into(),
///     x_label: "I(X; Z) in nats".into(),
///     y_label: "I(Z; Y) in nats".into(),
///     traces: vec![Trace::new("simclr", spiral)],
///     ..PathChart::default()
/// });
/// assert!(chart.to_svg().contains("I(X; Z) in nats"));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PathChart {
    /// What is shown.
    pub title: String,
    /// A sentence below the chart on how to read it, or nothing.
    pub caption: String,
    /// The name and unit of the horizontal axis.
    pub x_label: String,
    /// The name and unit of the vertical axis.
    pub y_label: String,
    /// How the horizontal axis is divided.
    pub x_scale: Scale,
    /// How the vertical axis is divided.
    pub y_scale: Scale,
    /// The paths.
    pub traces: Vec<Trace>,
    /// Horizontal lines to compare with.
    pub levels: Vec<Level>,
}

/// A path of a [`PathChart`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// Its name in the legend.
    pub name: String,
    /// Its points from start to end. What has no place on the axes is left out.
    pub points: Vec<[f64; 2]>,
}

impl Trace {
    /// A path through points.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = [f64; 2]>) -> Self {
        Self { name: name.into(), points: points.into_iter().collect() }
    }
}

impl PathChart {
    pub(crate) fn plot(&self) -> Plot {
        let along = |at: usize| self.traces.iter().flat_map(move |t| t.points.iter().map(move |p| p[at]));
        let x = Axis::around(self.x_scale, along(0), 0.05);
        let y = Axis::around(self.y_scale, along(1).chain(self.levels.iter().map(|l| l.value)), 0.06);
        let frame = Frame::new(x, y, &self.y_label);
        // As high as a map of samples, since both directions count alike.
        let frame = Frame { bottom: frame.bottom + 40.0, ..frame };
        let ways: Vec<_> = self.traces.iter().map(|trace| way(&frame, trace)).collect();
        let curve = |way: &Vec<[f64; 2]>| way.iter().filter_map(|[x, y]| frame.point(*x, *y)).collect();
        let curves: Vec<Vec<_>> = ways.iter().map(curve).collect();
        let body = html! {
            (frame.draw_y(&self.y_label))
            (frame.draw_x(&self.x_label))
            (draw_levels(&frame, &self.levels, &curves))
            @if ways.iter().all(Vec::is_empty) { (frame.draw_empty()) }
            @for (n, way) in ways.iter().enumerate() { (draw_way(&frame, n, &self.traces[n].name, way)) }
        };
        let end = |way: &[[f64; 2]]| way.last().map(|[x, y]| format!("({}, {})", number(*x), number(*y)));
        let key = |(n, trace): (usize, &Trace)| Key {
            symbol: Symbol::Line(n),
            name: trace.name.clone(),
            value: String::new(),
            hovered: None,
        };
        let described = self.traces.iter().zip(&ways);
        let described = described.map(|(t, way)| format!("{} to {}", t.name, end(way).unwrap_or_default()));
        let mut keys: Vec<Key> = self.traces.iter().enumerate().map(key).collect();
        let explained = "○ start, full shape: end".to_owned();
        keys.push(Key { symbol: Symbol::None, name: explained, value: String::new(), hovered: None });
        Plot {
            height: HEIGHT + 40.0,
            body,
            keys,
            hover: None,
            description: format!(
                "paths over {} and {}: {}",
                self.x_label,
                self.y_label,
                described.collect::<Vec<_>>().join("; ")
            ),
        }
    }
}

/// The points of a trace that have a place, few enough to be drawn: its extremes in both directions stay.
fn way(frame: &Frame, trace: &Trace) -> Vec<[f64; 2]> {
    let placed: Vec<[f64; 2]> =
        trace.points.iter().filter(|[x, y]| frame.point(*x, *y).is_some()).copied().collect();
    let order =
        |at: usize| -> Vec<Point> { (0..placed.len()).map(|n| (n as f64, Some(placed[n][at]))).collect() };
    let mut kept: Vec<usize> = [0, 1]
        .into_iter()
        .flat_map(|at| thin(&order(at), MOST_POINTS, f64::is_finite))
        // These are the whole numbers of the line above.
        .map(|(n, _)| n as usize)
        .collect();
    kept.sort_unstable();
    kept.dedup();
    kept.into_iter().map(|n| placed[n]).collect()
}

fn draw_way(frame: &Frame, index: usize, name: &str, way: &[[f64; 2]]) -> Markup {
    let placed: Vec<_> = way.iter().filter_map(|[x, y]| frame.point(*x, *y)).collect();
    let [Some(first), Some(last)] = [placed.first(), placed.last()] else { return html! {} };
    let line: Vec<String> = placed.iter().map(|(x, y)| format!("{} {}", px(*x), px(*y))).collect();
    let at = |point: Option<&[f64; 2]>| point.map(|[x, y]| format!("({}, {})", number(*x), number(*y)));
    html! {
        path class={ "line " (colour(index)) } d={ "M" (line.join("L")) } { title { (name) } }
        (draw_start(index, first.0, first.1))
        path class={ "marker " (colour(index)) } d=(shape(index, last.0, last.1, 4.6)) {
            title { (name) ", end at " (at(way.last()).unwrap_or_default()) }
        }
    }
}
