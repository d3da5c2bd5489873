//! A series made ready to be drawn.

use maud::{Markup, html};

use crate::axis::Scale;
use crate::frame::Frame;
use crate::number::number;
use crate::symbol::{colour, cross, px, shape};
use crate::thin::{Point, smooth, thin};

/// The most points of a series that are drawn.
pub(crate) const MOST_POINTS: usize = 600;

/// Up to so many points each gets a marker; a longer line has a few.
const MOST_MARKERS: usize = 32;

/// A series made ready to be drawn.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    scale: Scale,
    /// The values themselves where the strong line is another.
    pale: Option<Vec<Point>>,
    pub(crate) strong: Vec<Point>,
    /// The last value that can be shown.
    pub(crate) last: Option<f64>,
}

impl Line {
    /// A line whose strong values are the means of `smoothing` neighbours.
    pub(crate) fn new(name: &str, points: &[Point], smoothing: usize, scale: Scale) -> Self {
        let shown = |y: f64| scale.shows(y);
        let placed: Vec<Point> = points.iter().filter(|(x, _)| x.is_finite()).copied().collect();
        let thinned = |points: &[Point]| thin(points, MOST_POINTS, shown);
        let (strong, pale) = if smoothing > 1 {
            (smooth(&placed, smoothing, shown), Some(thinned(&placed)))
        } else {
            (placed, None)
        };
        let last = strong.iter().rev().find_map(|(_, y)| y.filter(|y| shown(*y)));
        Self { name: name.to_owned(), scale, pale, strong: thinned(&strong), last }
    }

    fn shown(&self) -> impl Iterator<Item = (f64, f64)> {
        self.strong.iter().filter_map(|(x, y)| Some((*x, y.filter(|y| self.scale.shows(*y))?)))
    }

    /// Where the line runs.
    pub(crate) fn placed(&self, frame: &Frame) -> Vec<(f64, f64)> {
        self.shown().filter_map(|(x, y)| frame.point(x, y)).collect()
    }

    /// The values without a place on the axis.
    pub(crate) fn odd(&self) -> impl Iterator<Item = (f64, f64)> {
        self.strong.iter().filter_map(|(x, y)| Some((*x, y.filter(|y| !self.scale.shows(*y))?)))
    }

    pub(crate) fn describe(&self) -> String {
        match self.last {
            Some(last) => format!("{}, at the end {}", self.name, number(last)),
            None => format!("{}, no values", self.name),
        }
    }

    pub(crate) fn draw(&self, frame: &Frame, index: usize) -> Markup {
        let colour = colour(index);
        html! {
            @if let Some(pale) = &self.pale { path class={ "line pale " (colour) } d=(outline(frame, pale)) {} }
            path class={ "line " (colour) } d=(outline(frame, &self.strong)) { title { (self.name) } }
        }
    }

    /// Shapes on the line: at each of few points, else at some, at others than those of the other series.
    pub(crate) fn draw_markers(&self, frame: &Frame, index: usize, of: usize) -> Markup {
        let shown: Vec<_> = self.shown().collect();
        let few = shown.len() <= MOST_MARKERS;
        let every = (shown.len() / 5).max(1);
        let first = every * (2 * index + 1) / (2 * of);
        let chosen = shown.iter().enumerate().filter(|(at, _)| few || (of > 1 && at % every == first));
        let inside = |y: &f64| (frame.top - 0.5..=frame.bottom + 0.5).contains(y);
        html! {
            @for (_, (x, y)) in chosen {
                @if let Some((across, up)) = frame.point(*x, *y).filter(|(_, up)| inside(up)) {
                    path class={ "marker " (colour(index)) } d=(shape(index, across, up, 2.6)) {
                        title { (self.name) ": " (number(*y)) " at " (number(*x)) }
                    }
                }
            }
        }
    }

    /// Crosses at the edge for values without a place: what is too low below, all else above.
    pub(crate) fn draw_odd(&self, frame: &Frame) -> Markup {
        let odd = self.odd();
        html! {
            @for (x, y) in odd {
                @let up = if y <= 0.0 { frame.bottom - 5.0 } else { frame.top + 5.0 };
                @if let Some(across) = frame.across(x) {
                    path class="odd" d=(cross(across, up, 3.0)) {
                        title { (self.name) ": " (number(y)) " at " (number(x)) }
                    }
                }
            }
        }
    }
}

/// The outline of a path through points, interrupted at gaps and values without a place.
fn outline(frame: &Frame, points: &[Point]) -> String {
    let mut path = String::new();
    let mut alone = false;
    let mut open = false;
    for (x, y) in points {
        let Some((x, y)) = y.and_then(|y| frame.point(*x, y)) else {
            // A point between two gaps is drawn as a dot.
            path.push_str(if open && alone { "h0" } else { "" });
            open = false;
            continue;
        };
        path.push_str(&format!("{}{} {}", if open { 'L' } else { 'M' }, px(x), px(y)));
        (alone, open) = (!open, true);
    }
    path.push_str(if open && alone { "h0" } else { "" });
    path
}
