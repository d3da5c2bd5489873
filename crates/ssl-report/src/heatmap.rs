//! Tables of numbers as colours.

use maud::{Markup, html};

use crate::axis::{Axis, Scale};
use crate::error::{Error, Result};
use crate::frame::{Plot, WIDTH};
use crate::number::number;
use crate::symbol::px;
use crate::text::shortened;

/// The most letters of the name of a row.
const LETTERS: usize = 14;

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
        let longest = self.rows.iter().map(|r| r.chars().count()).max().unwrap_or(0).min(LETTERS);
        let left = 12.0 + 6.6 * longest as f64;
        let width = (WIDTH - 4.0 - left) / self.columns.len().max(1) as f64;
        let cell = Cell { left, width, height: width.clamp(4.0, 24.0) };
        let body = html! {
            @for (n, row) in self.rows.iter().enumerate() {
                @let y = cell.top(n) + cell.height / 2.0 + 4.0;
                text class="tick" x=(px(left - 6.0)) y=(px(y)) text-anchor="end" { (shortened(row, LETTERS)) }
            }
            (self.draw_cells(&cell))
            (self.draw_columns(&cell))
        };
        let (rows, columns) = (self.rows.len(), self.columns.len());
        let description = format!("table of {rows} rows and {columns} columns as colours");
        Plot { height: cell.top(rows) + 20.0, body, keys: Vec::new(), hover: None, description }
    }

    fn draw_cells(&self, cell: &Cell) -> Markup {
        let axis = Axis::around(Scale::Linear, self.values.iter().copied().chain([0.0]), 0.0);
        let (wide, high) = (px(cell.width - 1.0), px(cell.height - 1.0));
        let places = self
            .rows
            .iter()
            .enumerate()
            .flat_map(|row| self.columns.iter().enumerate().map(move |c| (row, c)));
        html! {
            @for (((n, row), (m, column)), value) in places.zip(&self.values) {
                @let (x, y) = (cell.left + cell.width * m as f64, cell.top(n));
                @if let Some(strength) = axis.place(*value) {
                    @let opacity = format!("{:.2}", 0.04 + 0.76 * strength);
                    rect class="cell" x=(px(x)) y=(px(y)) width=(wide) height=(high) fill-opacity=(opacity) {
                        title { (row) ", " (column) ": " (number(*value)) }
                    }
                    // A number is written where it has room.
                    @if cell.width >= 40.0 {
                        @let (x, y) = (x + cell.width / 2.0, y + cell.height / 2.0 + 3.5);
                        text class="cell-value" x=(px(x)) y=(px(y)) text-anchor="middle" {
                            (number((value * 1000.0).round() / 1000.0))
                        }
                    }
                }
            }
        }
    }

    /// The names of the columns, as many as there is room for.
    fn draw_columns(&self, cell: &Cell) -> Markup {
        let every = (44.0 / cell.width).ceil().max(1.0);
        let letters = ((cell.width * every / 6.6) as usize).max(2);
        let y = px(cell.top(self.rows.len()) + 13.0);
        html! {
            @for (m, column) in self.columns.iter().enumerate().step_by(every as usize) {
                @let x = cell.left + cell.width * (m as f64 + 0.5);
                text class="tick" x=(px(x)) y=(y) text-anchor="middle" { (shortened(column, letters)) }
            }
        }
    }
}

/// The size of the cells, and where the first column begins.
struct Cell {
    left: f64,
    width: f64,
    height: f64,
}

impl Cell {
    fn top(&self, row: usize) -> f64 {
        4.0 + self.height * row as f64
    }
}
