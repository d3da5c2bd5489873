//! Any chart, as part of a page or as a picture of its own.

use maud::{Markup, PreEscaped, html};

use crate::bar_chart::BarChart;
use crate::frame::{Hovered, Key, Plot, WIDTH};
use crate::heatmap::Heatmap;
use crate::line_chart::LineChart;
use crate::path_chart::PathChart;
use crate::scatter_chart::ScatterChart;
use crate::symbol::px;
use crate::text::{inline, without_controls};

/// The colours, and how charts use them.
pub(crate) const STYLE: [&str; 2] = [include_str!("colours.css"), include_str!("chart.css")];

/// A chart of any kind.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Chart {
    /// Lines over steps or epochs.
    Lines(LineChart),
    /// Points by class.
    Scatter(ScatterChart),
    /// Paths through a plane.
    Paths(PathChart),
    /// Bars.
    Bars(BarChart),
    /// A table as colours.
    Heat(Heatmap),
}

impl Chart {
    /// An SVG document with title, legend and style sheet, for use as a file: in light and dark as the reader prefers.
    ///
    /// ```
    /// use ssl_report::{BarChart, Bars, Chart};
    ///
    /// let bars = vec![Bars::new("spectrum", [1.0, 0.5, 0.25])];
    /// let svg = Chart::from(BarChart { title: "Eigenvalues".into(), bars, ..BarChart::default() }).to_svg();
    /// assert!(svg.starts_with("<svg xmlns=") && svg.contains("prefers-color-scheme"));
    /// ```
    #[must_use]
    pub fn to_svg(&self) -> String {
        let plot = self.plot();
        let rows = rows(&plot.keys);
        let legend_top = if self.title().is_empty() { 8.0 } else { 32.0 };
        let top = legend_top + 18.0 * rows.len() as f64 + 4.0;
        let (width, height) = (px(WIDTH + 16.0), px(top + plot.height + 8.0));
        let svg = html! {
            svg xmlns="http://www.w3.org/2000/svg" class="chart" width=(width) height=(height)
                viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(self.describe(&plot)) {
                style { @for sheet in STYLE { (PreEscaped(sheet)) } }
                @let (across, down) = (px(WIDTH + 15.0), px(top + plot.height + 7.0));
                rect class="surface" x="0.5" y="0.5" width=(across) height=(down) rx="8" {}
                text class="title" x="12" y="24" { (self.title()) }
                @for (n, row) in rows.iter().enumerate() {
                    @for (x, key) in row {
                        g transform={ "translate(" (px(12.0 + x)) " " (px(legend_top + 18.0 * n as f64)) ")" } {
                            (key.symbol.draw())
                            text class="key" x=(px(key.text_x())) y="10" {
                                (key.name) @if !key.value.is_empty() { " " tspan class="key-value" { (key.value) } }
                            }
                        }
                    }
                }
                g transform={ "translate(8 " (px(top)) ")" } { (plot.body) }
            }
        };
        without_controls(svg.into_string())
    }

    /// The chart in a page: title, legend with values, picture, caption.
    pub(crate) fn render(&self) -> Markup {
        let plot = self.plot();
        let caption = self.caption();
        html! {
            figure class="chart-box" data-hover=[plot.hover.as_ref()] {
                div class="chart-head" {
                    h3 { (inline(self.title())) }
                    @if !plot.keys.is_empty() { ul class="legend" { @for key in &plot.keys { (draw_key(key)) } } }
                }
                svg class="chart" viewBox={ "0 0 " (px(WIDTH)) " " (px(plot.height)) } role="img"
                    aria-label=(self.describe(&plot)) { (plot.body) }
                @if !caption.is_empty() { figcaption { (inline(caption)) } }
            }
        }
    }

    fn plot(&self) -> Plot {
        match self {
            Chart::Lines(chart) => chart.plot(),
            Chart::Scatter(chart) => chart.plot(),
            Chart::Paths(chart) => chart.plot(),
            Chart::Bars(chart) => chart.plot(),
            Chart::Heat(chart) => chart.plot(),
        }
    }

    fn title(&self) -> &str {
        match self {
            Chart::Lines(LineChart { title, .. })
            | Chart::Scatter(ScatterChart { title, .. })
            | Chart::Paths(PathChart { title, .. })
            | Chart::Bars(BarChart { title, .. })
            | Chart::Heat(Heatmap { title, .. }) => title,
        }
    }

    fn caption(&self) -> &str {
        match self {
            Chart::Lines(LineChart { caption, .. })
            | Chart::Scatter(ScatterChart { caption, .. })
            | Chart::Paths(PathChart { caption, .. })
            | Chart::Bars(BarChart { caption, .. })
            | Chart::Heat(Heatmap { caption, .. }) => caption,
        }
    }

    fn describe(&self, plot: &Plot) -> String {
        format!("{}: {}", self.title(), plot.description)
    }
}

impl From<LineChart> for Chart {
    fn from(chart: LineChart) -> Self {
        Chart::Lines(chart)
    }
}

impl From<ScatterChart> for Chart {
    fn from(chart: ScatterChart) -> Self {
        Chart::Scatter(chart)
    }
}

impl From<PathChart> for Chart {
    fn from(chart: PathChart) -> Self {
        Chart::Paths(chart)
    }
}

impl From<BarChart> for Chart {
    fn from(chart: BarChart) -> Self {
        Chart::Bars(chart)
    }
}

impl From<Heatmap> for Chart {
    fn from(chart: Heatmap) -> Self {
        Chart::Heat(chart)
    }
}

fn draw_key(key: &Key) -> Markup {
    let has_symbol = key.text_x() > 0.0;
    // As wide as any value, so that nothing moves while the pointer does.
    let width = |hovered: &Hovered| format!("min-width:{}ch", hovered.letters.max(key.value.chars().count()));
    html! {
        li {
            @if has_symbol { svg class="chart symbol" viewBox="0 0 22 12" aria-hidden="true" { (key.symbol.draw()) } }
            span { (key.name) }
            @if !key.value.is_empty() || key.hovered.is_some() {
                span class="key-value" data-series=[key.hovered.map(|h| h.place)]
                    style=[key.hovered.as_ref().map(width)] { (key.value) }
            }
        }
    }
}

/// The keys of a legend in rows, each with its place in the row. The width of a text is an estimate.
fn rows(keys: &[Key]) -> Vec<Vec<(f64, &Key)>> {
    let mut rows: Vec<Vec<(f64, &Key)>> = Vec::new();
    let mut x = f64::INFINITY;
    for key in keys {
        let letters = key.name.chars().count() + key.value.chars().count() + 1;
        let width = key.text_x() + 6.6 * letters as f64 + 12.0;
        if x + width > WIDTH {
            rows.push(Vec::new());
            x = 0.0;
        }
        if let Some(row) = rows.last_mut() {
            row.push((x, key));
        }
        x += width;
    }
    rows
}
