//! Tables of texts and numbers.

use maud::{Markup, html};

use crate::number::{decimals, percent};
use crate::text::inline;

/// A table with a name for every column.
///
/// ```
/// use ssl_report::{Best, Cell, Column, Table};
///
/// let table = Table {
///     columns: vec![Column::text("encoder"), Column::number("kNN", Best::Highest)],
///     rows: vec![
///         vec![Cell::text("simclr"), Cell::percent(0.861, 1)],
///         vec![Cell::text("untrained network"), Cell::percent(0.781, 1)],
///     ],
///     ..Table::default()
/// };
/// assert_eq!(table.rows[0][1].text, "86.1 %");
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// A sentence on what is shown and how it was measured, or nothing.
    pub caption: String,
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows; what lacks at their end stays empty, and what is beyond the columns is not shown.
    pub rows: Vec<Vec<Cell>>,
}

/// A column of a [`Table`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Column {
    /// What stands above it.
    pub name: String,
    /// To which side its cells are aligned.
    pub align: Align,
    /// Which of its values is marked.
    pub best: Best,
}

/// The side to which the cells of a column are aligned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Align {
    /// Left, for texts.
    #[default]
    Left,
    /// Right, for numbers.
    Right,
}

/// Which value of a column is the best.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Best {
    /// None is.
    #[default]
    None,
    /// The highest, such as an accuracy. Equals are all marked.
    Highest,
    /// The lowest, such as a loss. Equals are all marked.
    Lowest,
}

impl Column {
    /// A column of texts.
    #[must_use]
    pub fn text(name: impl Into<String>) -> Self {
        Self { name: name.into(), align: Align::Left, best: Best::None }
    }

    /// A column of numbers.
    #[must_use]
    pub fn number(name: impl Into<String>, best: Best) -> Self {
        Self { name: name.into(), align: Align::Right, best }
    }

    /// The best of the values of a column.
    fn best_of(&self, values: impl Iterator<Item = f64>) -> Option<f64> {
        let values = values.filter(|v| !v.is_nan());
        match self.best {
            Best::None => None,
            Best::Highest => values.max_by(f64::total_cmp),
            Best::Lowest => values.min_by(f64::total_cmp),
        }
    }
}

/// A cell of a [`Table`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cell {
    /// What is shown.
    pub text: String,
    /// The number behind it, which decides what is best of its column.
    pub value: Option<f64>,
}

impl Cell {
    /// A cell with a text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), value: None }
    }

    /// A number with `digits` digits behind the point.
    #[must_use]
    pub fn number(value: f64, digits: usize) -> Self {
        Self { text: decimals(value, digits), value: Some(value) }
    }

    /// A fraction in [0, 1] in per cent, with `digits` digits behind the point.
    #[must_use]
    pub fn percent(fraction: f64, digits: usize) -> Self {
        Self { text: percent(fraction, digits), value: Some(fraction) }
    }
}

impl Table {
    pub(crate) fn render(&self) -> Markup {
        let empty = Cell::default();
        let cell = |row: usize, column: usize| self.rows[row].get(column).unwrap_or(&empty);
        let column_best = |(n, column): (usize, &Column)| {
            column.best_of((0..self.rows.len()).filter_map(|row| cell(row, n).value))
        };
        let best: Vec<Option<f64>> = self.columns.iter().enumerate().map(column_best).collect();
        let named = Some(&self.caption).filter(|caption| !caption.is_empty());
        html! {
            div class="table-box" tabindex="0" role="region" aria-label=[named] {
                table {
                    @if !self.caption.is_empty() { caption { span { (inline(&self.caption)) } } }
                    thead { tr {
                        @for column in &self.columns {
                            th scope="col" class=(column.align.class()) { (inline(&column.name)) }
                        }
                    } }
                    tbody { @for row in 0..self.rows.len() { tr {
                        @for (n, column) in self.columns.iter().enumerate() {
                            @let cell = cell(row, n);
                            td class=(column.align.class()) {
                                @if cell.value.is_some() && cell.value == best[n] {
                                    b class="best" title="best of the column" { (cell.text) }
                                } @else { (inline(&cell.text)) }
                            }
                        }
                    } } }
                }
            }
        }
    }
}

impl Align {
    fn class(self) -> &'static str {
        match self {
            Align::Left => "left",
            Align::Right => "right",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(best: Best, values: &[f64]) -> Vec<String> {
        let columns = vec![Column::number("a", best)];
        let rows = values.iter().map(|v| vec![Cell::number(*v, 1)]).collect();
        let html = Table { columns, rows, ..Table::default() }.render().into_string();
        let parts = html.split("<b class=\"best\" title=\"best of the column\">").skip(1);
        parts.filter_map(|part| part.split('<').next().map(str::to_owned)).collect()
    }

    #[test]
    fn the_best_of_a_column_is_marked() {
        let values = [0.5, 2.0, f64::NAN, -1.0, 2.0];
        assert_eq!(marked(Best::Highest, &values), ["2.0", "2.0"]);
        assert_eq!(marked(Best::Lowest, &values), ["−1.0"]);
        assert_eq!(marked(Best::None, &values), Vec::<String>::new());
        assert_eq!(marked(Best::Highest, &[f64::NAN]), Vec::<String>::new());
    }

    #[test]
    fn rows_of_other_lengths_have_as_many_cells_as_columns() {
        let rows = vec![vec![], vec![Cell::text("a"), Cell::text("b"), Cell::text("c")]];
        let table = Table { columns: vec![Column::text("x"), Column::text("y")], rows, ..Table::default() };
        assert_eq!(table.render().into_string().matches("<td").count(), 4);
    }
}
