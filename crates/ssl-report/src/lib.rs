//! What a training run looks like to a person, from plain numbers.
//!
//! A [`Page`] is an HTML document of one file: verdict, key figures, charts, tables, images. A [`Chart`] is drawn as SVG,
//! in a page or as a picture of its own. An [`EventWriter`] writes the event files that TensorBoard reads.
//! There are no tensors here, no files, no clock and no randomness: equal numbers give equal bytes.
#![doc = include_str!("../README.md")]

mod axis;
mod bar_chart;
mod chart;
mod error;
mod events;
mod frame;
mod heatmap;
mod level;
mod line;
mod line_chart;
mod lying_bars;
mod notice;
mod number;
mod page;
mod path_chart;
mod png;
mod scatter_chart;
mod symbol;
mod table;
mod text;
mod thin;

pub use axis::Scale;
pub use bar_chart::{BarChart, Bars, Direction};
pub use chart::Chart;
pub use error::{Error, Result};
pub use events::{EventWriter, event_file_name};
pub use heatmap::Heatmap;
pub use level::Level;
pub use line_chart::{LineChart, Mark, Series};
pub use notice::{Notice, Severity};
pub use number::{decimals, number, percent};
pub use page::{Block, Card, Content, Details, Gallery, Page, Picture, Section};
pub use path_chart::{PathChart, Trace};
pub use png::Png;
pub use scatter_chart::{Class, ScatterChart};
pub use table::{Align, Best, Cell, Column, Table};
