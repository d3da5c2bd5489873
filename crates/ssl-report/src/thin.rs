//! Fewer points that look like all of them.

/// A point of a line; no second value is a gap, one that is not finite stays as it is.
pub(crate) type Point = (f64, Option<f64>);

/// At most `most` points if `points` are all numbers, and at most twice as many with gaps and numbers without a place.
///
/// Runs of neighbours are replaced by their lowest and highest, so that no peak is lost; the first and the last point
/// stay. The first gap of each run and the first value that is not `shown` stay too.
pub(crate) fn thin(points: &[Point], most: usize, shown: impl Fn(f64) -> bool) -> Vec<Point> {
    if points.len() <= most {
        return points.to_vec();
    }
    let runs = (most / 2).saturating_sub(1).max(1);
    let length = points.len().div_ceil(runs);
    let mut kept = vec![0, points.len() - 1];
    for (start, run) in points.chunks(length).enumerate().map(|(n, run)| (n * length, run)) {
        let numbers =
            || run.iter().enumerate().filter_map(|(at, (_, y))| y.filter(|y| shown(*y)).map(|y| (at, y)));
        let lowest = numbers().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at);
        let highest = numbers().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at);
        let gap = run.iter().position(|(_, y)| y.is_none());
        let odd = run.iter().position(|(_, y)| y.is_some_and(|y| !shown(y)));
        kept.extend([lowest, highest, gap, odd].into_iter().flatten().map(|at| start + at));
    }
    kept.sort_unstable();
    kept.dedup();
    kept.into_iter().map(|at| points[at]).collect()
}

/// The mean of each value with its neighbours, `width` of them in all as far as there are; gaps and what is not `shown`
/// stay.
pub(crate) fn smooth(points: &[Point], width: usize, shown: impl Fn(f64) -> bool) -> Vec<Point> {
    let reach = width / 2;
    let mean = |at: usize| {
        // Fewer neighbours at the start, where values change most. At the end those before count alone, so that the last
        // value, which is written beside the name, is a mean too.
        let reach = reach.min(at);
        let neighbours = &points[at - reach..points.len().min(at + reach + 1)];
        let around = neighbours.iter().filter_map(|(_, y)| y.filter(|y| shown(*y)));
        let (sum, count) = around.fold((0.0, 0.0), |(sum, count), y| (sum + y, count + 1.0));
        sum / count
    };
    let smoothed = |(at, (x, y)): (usize, &Point)| (*x, y.map(|y| if shown(y) { mean(at) } else { y }));
    points.iter().enumerate().map(smoothed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_extremes_and_ends() {
        let mut points: Vec<Point> =
            (0..100_000).map(|n| (f64::from(n), Some((f64::from(n) / 900.0).sin()))).collect();
        points[12_345].1 = Some(7.0);
        points[77_777].1 = Some(-9.0);
        let few = thin(&points, 600, f64::is_finite);
        assert!(few.len() <= 600, "{}", few.len());
        assert!(few.contains(&(12_345.0, Some(7.0))) && few.contains(&(77_777.0, Some(-9.0))));
        assert_eq!((few[0], few[few.len() - 1]), (points[0], points[99_999]));
        assert!(few.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn thinning_keeps_gaps_and_what_is_not_finite() {
        let mut points: Vec<Point> = (0..5000).map(|n| (f64::from(n), Some(1.0))).collect();
        points[2500].1 = None;
        points[4000].1 = Some(f64::NAN);
        let few = thin(&points, 100, f64::is_finite);
        assert!(few.contains(&(2500.0, None)));
        assert!(few.iter().any(|(x, y)| *x == 4000.0 && y.is_some_and(f64::is_nan)));
        let gaps: Vec<Point> = (0..5000).map(|n| (f64::from(n), (n % 2 == 0).then_some(1.0))).collect();
        assert!(thin(&gaps, 100, f64::is_finite).len() <= 200);
    }

    #[test]
    fn few_points_stay_as_they_are() {
        let points = [(0.0, Some(1.0)), (1.0, None)];
        assert_eq!(thin(&points, 600, f64::is_finite), points);
        assert_eq!(thin(&[], 600, f64::is_finite), []);
        assert_eq!(smooth(&[], 9, f64::is_finite), []);
    }

    #[test]
    fn smoothing_keeps_a_slope_up_to_its_end_and_passes_over_gaps() {
        let slope: Vec<Point> = (0..20).map(|n| (f64::from(n), Some(f64::from(n)))).collect();
        let smooth_slope = smooth(&slope, 5, f64::is_finite);
        assert_eq!(smooth_slope[..18], slope[..18]);
        assert_eq!(smooth_slope[18..], [(18.0, Some(17.5)), (19.0, Some(18.0))]);
        let gap =
            [(0.0, Some(1.0)), (1.0, Some(f64::INFINITY)), (2.0, None), (3.0, Some(3.0)), (4.0, Some(5.0))];
        let smooth = smooth(&gap, 3, f64::is_finite);
        assert_eq!(smooth[1..4], [(1.0, Some(f64::INFINITY)), (2.0, None), (3.0, Some(4.0))]);
    }
}
