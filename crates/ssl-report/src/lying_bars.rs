//! Bars from left to right, with their values written at the end.

use maud::{Markup, html};

use crate::axis::Axis;
use crate::bar_chart::BarChart;
use crate::frame::{Frame, WIDTH};
use crate::number::number;
use crate::symbol::{colour, px};
use crate::text::shortened;

/// The height of a bar, and the room between groups.
const BAR: f64 = 14.0;
const GAP: f64 = 9.0;

/// The most letters of a name.
const LETTERS: usize = 20;

/// Height and content of a chart of lying bars.
pub(crate) fn draw_lying(chart: &BarChart) -> (f64, Markup) {
    let places = chart.places();
    let longest = (0..places).map(|p| chart.label(p).chars().count()).max().unwrap_or(0).min(LETTERS);
    let group = BAR * chart.bars.len().max(1) as f64 + GAP;
    let bottom = 4.0 + group * places.max(1) as f64;
    let left = 12.0 + 7.0 * longest as f64;
    let x = chart.values_axis();
    // Nothing is read off the other axis.
    let y = Axis { low: 0.0, high: 1.0, ..Axis::default() };
    let frame = Frame { x, y, left, right: WIDTH - 50.0, top: 4.0, bottom };
    let body = html! {
        (draw_grid(&frame))
        (frame.draw_x(&chart.y_label))
        @if places == 0 { (frame.draw_empty()) }
        @for place in 0..places {
            @let (top, label) = (frame.top + group * place as f64, chart.label(place));
            text class="name" x=(px(left - 8.0)) y=(px(top + group / 2.0 + 4.0)) text-anchor="end" {
                (shortened(&label, LETTERS))
                @if label.chars().count() > LETTERS { title { (label) } }
            }
            @for (n, bars) in chart.bars.iter().enumerate() {
                @if let Some(ends) = bars.at(place) {
                    (draw_bar(&frame, n, &bars.name, ends, top + GAP / 2.0 + BAR * n as f64))
                }
            }
        }
        path class="edge" d={ "M" (px(foot(&frame))) " " (px(frame.top)) "V" (px(bottom)) } {}
    };
    (bottom + 36.0, body)
}

/// Where bars begin: at zero, or at the left if zero is not on the axis.
fn foot(frame: &Frame) -> f64 {
    place(frame, 0.0).unwrap_or(frame.left)
}

/// The place of a value, or the end of the axis that is nearer.
fn place(frame: &Frame, value: f64) -> Option<f64> {
    frame.across(value).map(|x| x.clamp(frame.left, frame.right))
}

fn draw_grid(frame: &Frame) -> Markup {
    html! {
        @for x in frame.x.ticks(5).into_iter().filter_map(|tick| frame.across(tick)) {
            path class="grid" d={ "M" (px(x)) " " (px(frame.top)) "V" (px(frame.bottom)) } {}
        }
    }
}

/// A bar to its value with the error around its end.
fn draw_bar(frame: &Frame, index: usize, name: &str, [low, value, high]: [f64; 3], top: f64) -> Markup {
    let foot = foot(frame);
    let [low, end, high] = [low, value, high].map(|v| place(frame, v).unwrap_or(foot));
    let middle = top + BAR / 2.0 - 1.0;
    let [left, right, upper, centre] = [low, high, middle - 3.0, middle].map(px);
    html! {
        g class={ "bar " (colour(index)) } {
            @let [x, y, width, height] = [end.min(foot), top, (end - foot).abs().max(0.5), BAR - 2.0].map(px);
            rect x=(x) y=(y) width=(width) height=(height) rx="1.5" {
                title { (format!("{name} {}", number(value)).trim()) }
            }
            @if (high - low).abs() > 0.1 {
                path class="error" d=(format!("M{left} {centre}H{right}M{left} {upper}v6M{right} {upper}v6")) {}
            }
        }
        text class="value" x=(px(high.max(end) + 6.0)) y=(px(middle + 4.0)) { (number(value)) }
    }
}
