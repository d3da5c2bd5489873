//! Tables of numbers as colours.

use maud::html;

use crate::axis::{Axis, Scale};
use crate::error::{Error, Result};
use crate::frame::{Plot, WIDTH};
use crate::number::number;
use crate::symbol::px;
use crate::text::shortened;

/// A table of numbers, each a cell that is the stronger the higher it is: confusions of classes, similarities.
#[derive(Debug, Clone, PartialEq)]
pub struct Heatmap {
    /// What is shown.
    pub title: String,
    /// A sentence below the chart on how to read it, or nothing.
    pub caption: String,
    rows: Vec<String>,
    columns: Vec<String>,
    values: Vec<f64>,
}

impl Heatmap {
    /// A table of `values`, row by row.
    ///
    /// # Errors
    /// If there are not as many values as cells.
    ///
    /// ```
    /// use ssl_report::Heatmap;
    ///
    /// let names = || ["shoe", "bag"].map(String::from).to_vec();
    /// let map = Heatmap::new("Confusions", names(), names(), vec![0.9, 0.1, 0.2, 0.8])?;
    /// assert_eq!(map.title, "Confusions");
    /// let error = Heatmap::new("Confusions", names(), names(), vec![1.0]).unwrap_err();
    /// assert_eq!(error.to_string(), "\"Confusions\" has 1 values, must have 2 x 2 = 4");
    /// # Ok::<(), ssl_report::Error>(())
    /// ```
    pub fn new(
        title: impl Into<String>,
        rows: Vec<String>,
        columns: Vec<String>,
        values: Vec<f64>,
    ) -> Result<Self> {
        let title = title.into();
        if rows.len().checked_mul(columns.len()) != Some(values.len()) {
            let (rows, columns) = (rows.len(), columns.len());
            return Err(Error::Cells { title, values: values.len(), rows, columns });
        }
        Ok(Self { title, caption: String::new(), rows, columns, values })
    }

    pub(crate) fn plot(&self) -> Plot {
        let axis = Axis::around(Scale::Linear, self.values.iter().copied().chain([0.0]), 0.0);
        let longest = self.rows.iter().map(|r| r.chars().count()).max().unwrap_or(0).min(14);
        let left = 12.0 + 6.6 * longest as f64;
        let width = (WIDTH - 4.0 - left) / self.columns.len().max(1) as f64;
        let height = width.clamp(4.0, 24.0);
        let foot = 4.0 + height * self.rows.len() as f64;
        // Few cells have their number in them, where it has room.
        let written = width >= 40.0;
        let every = (44.0 / width).ceil() as usize;
        let letters = ((width * every as f64 / 6.6) as usize).max(2);
        let body = html! {
            @for (n, row) in self.rows.iter().enumerate() {
                @let top = 4.0 + height * n as f64;
                text class="tick" x=(px(left - 6.0)) y=(px(top + height / 2.0 + 4.0)) text-anchor="end" { (shortened(row, 14)) }
                @for (m, column) in self.columns.iter().enumerate() {
                    @let value = self.values[n * self.columns.len() + m];
                    @let x = left + width * m as f64;
                    @if let Some(strength) = axis.place(value) {
                        rect class="cell" x=(px(x)) y=(px(top)) width=(px(width - 1.0)) height=(px(height - 1.0))
                            fill-opacity=(format!("{:.2}", 0.04 + 0.76 * strength)) {
                            title { (row) ", " (column) ": " (number(value)) }
                        }
                        @if written {
                            text class="cell-value" x=(px(x + width / 2.0)) y=(px(top + height / 2.0 + 3.5)) text-anchor="middle" {
                                (number((value * 1000.0).round() / 1000.0))
                            }
                        }
                    }
                }
            }
            @for (m, column) in self.columns.iter().enumerate().step_by(every.max(1)) {
                text class="tick" x=(px(left + width * (m as f64 + 0.5))) y=(px(foot + 13.0)) text-anchor="middle" { (shortened(column, letters)) }
            }
        };
        Plot {
            height: foot + 20.0,
            body,
            keys: Vec::new(),
            hover: None,
            description: format!(
                "table of {} rows and {} columns as colours",
                self.rows.len(),
                self.columns.len()
            ),
        }
    }
}
