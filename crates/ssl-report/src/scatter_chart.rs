//! Points in the plane, coloured by class.

use maud::{Markup, html};

use crate::axis::{Axis, Scale};
use crate::frame::{Frame, HEIGHT, Key, Plot, Symbol, WIDTH};
use crate::symbol::{colour, px, shape};

/// A map of samples: a point each, with colour and shape of its class.
///
/// Without labels the positions have no meaning of their own, as in a projection of embeddings; then no
/// axes are drawn, and distances are the same in all directions.
///
/// ```
/// use ssl_report::{Chart, Class, ScatterChart};
///
/// let chart = Chart::from(ScatterChart {
///     title: "Embeddings".into(),
///     classes: vec![Class::new("shoe", [[0.1, 0.2], [0.3, 0.1]]), Class::new("bag", [[2.0, 1.5]])],
///     ..ScatterChart::default()
/// });
/// assert!(chart.to_svg().contains("shoe"));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScatterChart {
    /// What is shown.
    pub title: String,
    /// A sentence below the chart on how to read it, or nothing.
    pub caption: String,
    /// The name of the horizontal axis, or nothing.
    pub x_label: String,
    /// The name of the vertical axis, or nothing.
    pub y_label: String,
    /// The points, class by class. Each costs about 60 bytes of the page.
    pub classes: Vec<Class>,
}

/// The points of one class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Class {
    /// Its name in the legend.
    pub name: String,
    /// Where its points are. What is not finite is left out.
    pub points: Vec<[f64; 2]>,
    /// What is read when the mouse rests on a point, in the order of the points; beyond its end, the name of the class.
    pub titles: Vec<String>,
}

impl Class {
    /// Points without titles of their own.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = [f64; 2]>) -> Self {
        Self { name: name.into(), points: points.into_iter().collect(), titles: Vec::new() }
    }
}

impl ScatterChart {
    pub(crate) fn plot(&self) -> Plot {
        let frame = self.frame();
        let marked = self.is_marked();
        let placed =
            |class: &Class| class.points.iter().filter(|[x, y]| frame.point(*x, *y).is_some()).count();
        let count: usize = self.classes.iter().map(placed).sum();
        // Many points are small, so that they do not hide each other.
        let radius = if count > 400 { 2.1 } else { 3.2 };
        let body = html! {
            @if marked { (frame.draw_y(&self.y_label)) (frame.draw_x(&self.x_label)) }
            @if count == 0 { (frame.draw_empty()) }
            @for (n, class) in self.classes.iter().enumerate() {
                (draw_class(&frame, n, class, radius))
            }
            @if !marked {
                rect class="box" x="1" y="1" width=(px(WIDTH - 2.0)) height=(px(HEIGHT + 38.0)) rx="4" {}
            }
        };
        let key = |(n, class): (usize, &Class)| Key {
            symbol: Symbol::Marker(n),
            name: class.name.clone(),
            value: String::new(),
            hovered: None,
        };
        let names: Vec<&str> = self.classes.iter().map(|c| c.name.as_str()).collect();
        Plot {
            height: HEIGHT + 40.0,
            body,
            keys: self.classes.iter().enumerate().map(key).collect(),
            hover: None,
            description: format!("{count} points of the classes {}", names.join(", ")),
        }
    }

    fn is_marked(&self) -> bool {
        !(self.x_label.is_empty() && self.y_label.is_empty())
    }

    fn frame(&self) -> Frame {
        let along = |at: usize| self.classes.iter().flat_map(move |c| c.points.iter().map(move |p| p[at]));
        let [x, y] = [0, 1].map(|at| Axis::around(Scale::Linear, along(at), 0.05));
        if self.is_marked() {
            let frame = Frame::new(x, y, &self.y_label);
            return Frame { bottom: frame.bottom + 40.0, ..frame };
        }
        let frame = Frame { x, y, left: 6.0, right: WIDTH - 6.0, top: 6.0, bottom: HEIGHT + 34.0 };
        // Distances mean the same in all directions.
        let (width, height) = (frame.right - frame.left, frame.bottom - frame.top);
        let unit = (x.length() / width).max(y.length() / height);
        Frame { x: x.widened(unit * width), y: y.widened(unit * height), ..frame }
    }
}

fn draw_class(frame: &Frame, index: usize, class: &Class, radius: f64) -> Markup {
    html! {
        g class={ "points " (colour(index)) } {
            title { (class.name) }
            @for (at, [x, y]) in class.points.iter().enumerate() {
                @if let Some((across, up)) = frame.point(*x, *y) {
                    path d=(shape(index, across, up, radius)) {
                        @if let Some(title) = class.titles.get(at) { title { (title) } }
                    }
                }
            }
        }
    }
}
