//! A deterministic hold-out with the class proportions of the whole.

use crate::{Error, Result};

/// Rows to fit on and rows held out, each ascending.
#[derive(Debug, PartialEq)]
pub(crate) struct Split {
    pub(crate) fit: Vec<usize>,
    pub(crate) held_out: Vec<usize>,
}

/// Holds out about `fraction` of each class, evenly spaced over its rows: at least one row, if the class has two, and
/// never all of them.
///
/// # Errors
/// If no class has two rows.
pub(crate) fn stratified_split(labels: &[u32], num_classes: usize, fraction: f64) -> Result<Split> {
    let mut rows_of_class = vec![Vec::new(); num_classes];
    for (row, &label) in labels.iter().enumerate() {
        rows_of_class[label as usize].push(row);
    }
    let mut is_held_out = vec![false; labels.len()];
    for rows in rows_of_class.iter().filter(|rows| rows.len() >= 2) {
        let count = ((rows.len() as f64 * fraction).round() as usize).clamp(1, rows.len() - 1);
        for pick in 0..count {
            is_held_out[rows[(2 * pick + 1) * rows.len() / (2 * count)]] = true;
        }
    }
    let (held_out, fit): (Vec<_>, Vec<_>) = (0..labels.len()).partition(|&row| is_held_out[row]);
    if held_out.is_empty() { Err(Error::HoldOut) } else { Ok(Split { fit, held_out }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_gives_its_share() {
        let labels: Vec<u32> = (0..1000).map(|row| if row % 10 < 7 { 0 } else { 2 }).collect();
        let split = stratified_split(&labels, 3, 0.1).unwrap();
        let held_out_of = |class| split.held_out.iter().filter(|&&row| labels[row] == class).count();
        assert_eq!([held_out_of(0), held_out_of(1), held_out_of(2)], [70, 0, 30]);
        assert_eq!(split, stratified_split(&labels, 3, 0.1).unwrap());
    }

    #[test]
    fn rows_are_parted_and_spread_over_a_sorted_set() {
        let labels: Vec<u32> = (0..200).map(|row| row / 100).collect();
        let split = stratified_split(&labels, 2, 0.04).unwrap();
        assert_eq!(split.held_out, [12, 37, 62, 87, 112, 137, 162, 187]);
        let mut all = [split.fit, split.held_out].concat();
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn small_classes_keep_a_row_to_fit_on() {
        let split = stratified_split(&[0, 1, 1, 2, 2], 3, 0.9).unwrap();
        assert_eq!(split, Split { fit: vec![0, 1, 3], held_out: vec![2, 4] });
        assert!(matches!(stratified_split(&[0, 1, 2], 3, 0.5), Err(Error::HoldOut)));
    }
}
