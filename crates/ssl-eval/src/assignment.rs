//! The cheapest assignment of rows to columns, by the Hungarian algorithm.

/// The column of each row, all different, whose costs in `costs`, `(size, size)` row-major and finite, have the least sum.
///
/// Rows are added one by one along shortest augmenting paths (Jonker & Volgenant, "A shortest augmenting path algorithm for
/// dense and sparse linear assignment problems", 1987), in `size³` steps.
pub(crate) fn assign(costs: &[f64], size: usize) -> Vec<usize> {
    // What rows and columns take of the cost of their pairs; the column `size` is where a new row starts.
    let (mut of_row, mut of_column) = (vec![0.0; size], vec![0.0; size + 1]);
    let mut row_of: Vec<Option<usize>> = vec![None; size + 1];
    for new_row in 0..size {
        let mut distance = vec![f64::INFINITY; size];
        let (mut before, mut done) = (vec![size; size], vec![false; size + 1]);
        let mut column = size;
        row_of[size] = Some(new_row);
        while let Some(row) = row_of[column] {
            done[column] = true;
            let (mut next, mut step) = (size, f64::INFINITY);
            for other in (0..size).filter(|other| !done[*other]) {
                let cost = costs[row * size + other] - of_row[row] - of_column[other];
                if cost < distance[other] {
                    (distance[other], before[other]) = (cost, column);
                }
                if distance[other] < step {
                    (next, step) = (other, distance[other]);
                }
            }
            for other in 0..=size {
                if let (true, Some(row)) = (done[other], row_of[other]) {
                    of_row[row] += step;
                    of_column[other] -= step;
                } else if other < size {
                    distance[other] -= step;
                }
            }
            column = next;
        }
        // The path backwards: each column takes the row of the one before it.
        while column < size {
            row_of[column] = row_of[before[column]];
            column = before[column];
        }
    }
    let mut columns = vec![0; size];
    for (column, row) in row_of[..size].iter().enumerate() {
        if let Some(row) = row {
            columns[*row] = column;
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::draw::below;

    /// The least cost of the rows from `row` on among the columns that are free.
    fn least(costs: &[f64], size: usize, row: usize, taken: &mut Vec<bool>) -> f64 {
        if row == size {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        for column in 0..size {
            if !taken[column] {
                taken[column] = true;
                best = best.min(costs[row * size + column] + least(costs, size, row + 1, taken));
                taken[column] = false;
            }
        }
        best
    }

    #[test]
    fn no_permutation_is_cheaper() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for round in 0..200 {
            let size = 1 + round % 6;
            // Few different costs, so that there are ties.
            let costs: Vec<f64> = (0..size * size).map(|_| below(&mut rng, 7) as f64 - 3.0).collect();
            let columns = assign(&costs, size);
            let mut sorted = columns.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..size).collect::<Vec<_>>());
            let cost: f64 = (0..size).map(|row| costs[row * size + columns[row]]).sum();
            assert_eq!(cost, least(&costs, size, 0, &mut vec![false; size]), "{costs:?}");
        }
    }
}
