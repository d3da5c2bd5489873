//! What charts have in common: their box, grid, ticks and labels, and the keys of their legends.

use maud::{Markup, html};

use crate::axis::Axis;
use crate::number::number;
use crate::symbol::{circle, colour, cross, px, shape};

/// The width of every chart in its own units, and the usual height. A unit is about a pixel on a wide screen.
pub(crate) const WIDTH: f64 = 400.0;
pub(crate) const HEIGHT: f64 = 240.0;

/// A drawn chart without its title and legend.
#[derive(Debug)]
pub(crate) struct Plot {
    pub(crate) height: f64,
    pub(crate) body: Markup,
    pub(crate) keys: Vec<Key>,
    /// What the script of the page needs to read values off the chart, as JSON.
    pub(crate) hover: Option<String>,
    /// What a reader who sees nothing is told.
    pub(crate) description: String,
}

/// A line of a legend.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) symbol: Symbol,
    pub(crate) name: String,
    /// The value beside the name, such as the last one.
    pub(crate) value: String,
    /// What the script of the page writes there.
    pub(crate) hovered: Option<Hovered>,
}

/// Values that the script of the page reads off a chart and writes into its legend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hovered {
    /// Their place among those of all series.
    pub(crate) place: usize,
    /// Letters of the longest.
    pub(crate) letters: usize,
}

impl Key {
    /// Where the name begins, behind the symbol.
    pub(crate) fn text_x(&self) -> f64 {
        if matches!(self.symbol, Symbol::None) { 0.0 } else { 28.0 }
    }
}

/// What stands before a name in a legend.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Symbol {
    /// A line with the marker of a series.
    Line(usize),
    /// The marker of a series.
    Marker(usize),
    /// A box in the colour of a series.
    Box(usize),
    /// The quiet area of a schedule.
    Area,
    /// The mark of what has no place on the axis.
    Odd,
    /// A word of explanation without a symbol.
    None,
}

impl Symbol {
    /// The symbol in a box of 22 by 12.
    pub(crate) fn draw(self) -> Markup {
        html! {
            @match self {
                Symbol::Line(n) => {
                    path class={ "line " (colour(n)) } d="M1 6H21" {}
                    path class={ "marker " (colour(n)) } d=(shape(n, 11.0, 6.0, 3.0)) {}
                }
                Symbol::Marker(n) => path class={ "marker " (colour(n)) } d=(shape(n, 11.0, 6.0, 4.0)) {},
                Symbol::Box(n) => rect class={ "bar " (colour(n)) } x="5" y="1" width="12" height="10" rx="2" {},
                Symbol::Area => {
                    path class="schedule-area" d="M1 12L8 2L21 8V12z" {}
                    path class="schedule" d="M1 12L8 2L21 8" {}
                }
                Symbol::Odd => path class="odd" d=(cross(11.0, 6.0, 3.5)) {},
                Symbol::None => {}
            }
        }
    }
}

/// The box of a chart between two axes.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) left: f64,
    pub(crate) right: f64,
    pub(crate) top: f64,
    pub(crate) bottom: f64,
}

impl Frame {
    /// A box of the usual size, with room for the labels of its ticks.
    pub(crate) fn new(x: Axis, y: Axis, y_label: &str) -> Self {
        let longest = y.ticks(5).iter().map(|t| number(*t).chars().count()).max().unwrap_or(1);
        let left = 12.0 + 7.4 * longest as f64;
        let top = if y_label.is_empty() { 8.0 } else { 24.0 };
        Self { x, y, left, right: WIDTH - 12.0, top, bottom: HEIGHT - 36.0 }
    }

    pub(crate) fn across(&self, value: f64) -> Option<f64> {
        self.x.place(value).map(|place| self.left + place * (self.right - self.left))
    }

    pub(crate) fn up(&self, value: f64) -> Option<f64> {
        self.y.place(value).map(|place| self.bottom - place * (self.bottom - self.top))
    }

    /// The place of a point, if both axes show it.
    pub(crate) fn point(&self, x: f64, y: f64) -> Option<(f64, f64)> {
        Some((self.across(x)?, self.up(y)?))
    }

    /// Horizontal lines and labels for the y axis.
    pub(crate) fn draw_y(&self, label: &str) -> Markup {
        html! {
            @for tick in self.y.ticks(5) {
                @if let Some(y) = self.up(tick) {
                    path class="grid" d={ "M" (px(self.left)) " " (px(y)) "H" (px(self.right)) } {}
                    text class="tick" x=(px(self.left - 6.0)) y=(px(y + 4.0)) text-anchor="end" { (number(tick)) }
                }
            }
            @if !label.is_empty() {
                text class="axis" x="4" y="12" { (label) }
            }
        }
    }

    /// The lower edge with ticks and labels for the x axis.
    pub(crate) fn draw_x(&self, label: &str) -> Markup {
        html! {
            path class="edge" d={ "M" (px(self.left)) " " (px(self.bottom)) "H" (px(self.right)) } {}
            @for tick in self.x.ticks(5) {
                @if let Some(x) = self.across(tick) {
                    path class="edge" d={ "M" (px(x)) " " (px(self.bottom)) "v4" } {}
                    text class="tick" x=(px(x)) y=(px(self.bottom + 17.0)) text-anchor="middle" { (number(tick)) }
                }
            }
            @if !label.is_empty() {
                text class="axis" x=(px(self.right)) y=(px(self.bottom + 33.0)) text-anchor="end" { (label) }
            }
        }
    }

    /// `content`, drawn in the coordinates of the chart and cut off at the box.
    pub(crate) fn clipped(&self, content: Markup) -> Markup {
        let (width, height) = (px(self.right - self.left), px(self.bottom - self.top));
        let corner = [px(self.left), px(self.top)];
        html! {
            svg x=(corner[0]) y=(corner[1]) width=(width) height=(height)
                viewBox={ (corner[0]) " " (corner[1]) " " (width) " " (height) } { (content) }
        }
    }

    /// The words in the middle of a chart that has nothing to show.
    pub(crate) fn draw_empty(&self) -> Markup {
        let (x, y) = ((self.left + self.right) / 2.0, (self.top + self.bottom) / 2.0);
        html! { text class="axis" x=(px(x)) y=(px(y)) text-anchor="middle" { "no values yet" } }
    }
}

/// A hollow circle, the start of a path.
pub(crate) fn draw_start(index: usize, x: f64, y: f64) -> Markup {
    html! { path class={ "start " (colour(index)) } d=(circle(x, y, 4.0)) {} }
}
