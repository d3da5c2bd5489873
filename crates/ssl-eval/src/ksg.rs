//! Mutual information by nearest neighbours, exact, by brute force.
//!
//! Kraskov, Stögbauer & Grassberger, "Estimating mutual information", 2004 (<https://arxiv.org/abs/cond-mat/0305641>),
//! sections II.B and II.C. The distance of pairs is the larger of the distances in x and in y, and each of these is the
//! maximum over columns.

use rayon::prelude::*;

use crate::features::check_size;
use crate::standardize::Standardizer;
use crate::{Error, Features, Result};

/// Euler's constant: `ψ(1) = −γ`.
const EULER: f64 = 0.577_215_664_901_532_9;

/// Which of the two estimators of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KsgAlgorithm {
    /// Neighbours within a cube, equation 8: `ψ(k) + ψ(N) − ⟨ψ(n_x + 1) + ψ(n_y + 1)⟩`. Of less variance.
    Cubes,
    /// Neighbours within a rectangle, equation 9: `ψ(k) − 1 / k + ψ(N) − ⟨ψ(n_x) + ψ(n_y)⟩`. Of less bias.
    Rectangles,
}

/// Settings of the estimator of Kraskov, Stögbauer and Grassberger.
#[derive(Clone, Debug, PartialEq)]
pub struct KsgConfig {
    /// The number of neighbours, at least 1 and below the number of rows: more of them, less variance and more bias.
    pub k: usize,
    /// Which of the two estimators.
    pub algorithm: KsgAlgorithm,
    /// Whether each column is shifted and scaled to mean 0 and standard deviation 1 first. Information does not change
    /// with the scale of a column; which neighbours are near does.
    pub standardize: bool,
}

impl Default for KsgConfig {
    fn default() -> Self {
        Self { k: 3, algorithm: KsgAlgorithm::Cubes, standardize: true }
    }
}

/// The mutual information of rows of `x` and of `y` in nats, by the distances to nearest neighbours; labels are not
/// read.
///
/// Row `i` has the distance `ε` to its `k`-th neighbour in the joint space; `n_x` rows are nearer than `ε` in x alone,
/// and `n_y` in y alone. For [`KsgAlgorithm::Rectangles`] the distance is that of the farthest of the `k` in x or y,
/// and `n_x` and `n_y` count the rows at just that distance as well.
///
/// # Bias, variance, ceiling
/// - Independent x and y give 0 on average, in any number of columns; values below 0 are noise.
/// - Otherwise the estimate is too low, since the density is taken as constant in the neighbourhood of a row. With few
///   columns and thousands of rows that is little. It grows with the number of columns and with the information: of
///   Gaussians in eight columns half to two thirds is seen, in 64 a twentieth, and nothing in the estimate says so. The
///   README has a table.
/// - No estimate is above `ψ(N) − ψ(k)`, about `log(N / k)`, since the nearer neighbours of a row are counted in `n_x`
///   and in `n_y`: N must grow exponentially with the information (Gao, Ver Steeg & Galstyan 2015,
///   <https://arxiv.org/abs/1411.2003>).
/// - The standard deviation over samples falls as `1 / sqrt(N)`; it is about 0.02 for 2,000 rows of two columns.
/// - Values must be continuous. Rows that are repeated, or values on a grid, have neighbours at distance 0 and make the
///   estimate meaningless.
///
/// The cost is `N²` times the columns of both: seconds for 10,000 rows of 128 columns. The result is the same for every
/// number of threads.
///
/// # Errors
/// If the numbers of rows differ, or `k` is 0 or not below it.
///
/// # Example
/// ```
/// use ssl_eval::{Features, KsgConfig, ksg_information};
///
/// // The sine of a square says nothing about that of a cube.
/// let column = |power: i32| {
///     let values = (0..500).map(|i| f64::from(i).powi(power).sin() as f32).collect();
///     Features::new(values, 1, vec![0; 500])
/// };
/// let (x, y) = (column(2)?, column(3)?);
/// assert!(ksg_information(&x, &y, &KsgConfig::default())?.abs() < 0.1);
/// assert!(ksg_information(&x, &x, &KsgConfig::default())? > 4.0);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn ksg_information(x: &Features, y: &Features, config: &KsgConfig) -> Result<f64> {
    let n = x.rows();
    check_size("number of rows of y", y.rows(), n)?;
    if !(1..n).contains(&config.k) {
        let allowed = "1 to the number of rows (exclusive)";
        return Err(Error::Config { field: "k", value: config.k.to_string(), allowed });
    }
    let (x, y) = (Columns::new(x, config.standardize)?, Columns::new(y, config.standardize)?);
    let digamma = digamma_of_integers(n);
    let terms: Vec<f64> = (0..n)
        .into_par_iter()
        .map_init(
            || Distances::new(n),
            |distances, row| {
                distances.measure(&x, &y, row);
                let [n_x, n_y] = distances.counts(config);
                digamma[n_x] + digamma[n_y]
            },
        )
        .collect();
    let correction = match config.algorithm {
        KsgAlgorithm::Cubes => 0.0,
        KsgAlgorithm::Rectangles => 1.0 / config.k as f64,
    };
    Ok(digamma[config.k] - correction + digamma[n] - terms.iter().sum::<f64>() / n as f64)
}

/// Features column by column, so that the distances of a row to all others are found side by side.
struct Columns {
    data: Vec<f32>,
    rows: usize,
}

impl Columns {
    fn new(features: &Features, standardize: bool) -> Result<Self> {
        let standardized;
        let features = if standardize {
            standardized = Standardizer::fit(features).apply(features)?;
            &standardized
        } else {
            features
        };
        let columns = (0..features.dim()).flat_map(|column| {
            features.data().iter().skip(column).step_by(features.dim()).copied() // (N,)
        });
        Ok(Self { data: columns.collect(), rows: features.rows() })
    }

    /// The largest difference over columns between `row` and each row; infinite to itself.
    fn distances(&self, row: usize, result: &mut [f32]) {
        result.fill(0.0);
        for column in self.data.chunks_exact(self.rows) {
            let origin = column[row];
            for (result, value) in result.iter_mut().zip(column) {
                let distance = (value - origin).abs();
                *result = if distance > *result { distance } else { *result };
            }
        }
        result[row] = f32::INFINITY;
    }
}

/// Of one row to all others.
struct Distances {
    in_x: Vec<f32>,
    in_y: Vec<f32>,
    /// The larger of the two, with the row that is there.
    joint: Vec<(f32, usize)>,
}

impl Distances {
    fn new(n: usize) -> Self {
        Self { in_x: vec![0.0; n], in_y: vec![0.0; n], joint: vec![(0.0, 0); n] }
    }

    fn measure(&mut self, x: &Columns, y: &Columns, row: usize) {
        x.distances(row, &mut self.in_x);
        y.distances(row, &mut self.in_y);
        let pairs = self.in_x.iter().zip(&self.in_y).enumerate();
        self.joint.iter_mut().zip(pairs).for_each(|(joint, (row, (&x, &y)))| *joint = (x.max(y), row));
    }

    /// The arguments of the digamma function for x and for y, at least `k`.
    fn counts(&mut self, config: &KsgConfig) -> [usize; 2] {
        let nearest = config.k - 1;
        self.joint.select_nth_unstable_by(nearest, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let epsilon = self.joint[nearest].0;
        let neighbours = &self.joint[..config.k];
        [&self.in_x, &self.in_y].map(|distances| match config.algorithm {
            KsgAlgorithm::Cubes => 1 + distances.iter().filter(|&&distance| distance < epsilon).count(),
            KsgAlgorithm::Rectangles => {
                let farthest = neighbours.iter().map(|&(_, row)| distances[row]).fold(0.0, f32::max);
                distances.iter().filter(|&&distance| distance <= farthest).count()
            }
        })
    }
}

/// `ψ(i)` at index `i` for `1 ≤ i ≤ n`: a sum of `1 / j` over `j < i`, less Euler's constant. Index 0 is not used.
fn digamma_of_integers(n: usize) -> Vec<f64> {
    let sums = (1..n).scan(-EULER, |sum, j| {
        *sum += 1.0 / j as f64;
        Some(*sum)
    });
    [f64::NEG_INFINITY, -EULER].into_iter().chain(sums).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: KsgConfig = KsgConfig { k: 1, algorithm: KsgAlgorithm::Cubes, standardize: false };

    fn column(values: Vec<f32>) -> Features {
        let labels = vec![0; values.len()];
        Features::new(values, 1, labels).unwrap()
    }

    #[test]
    fn four_rows_by_hand() {
        let (x, y) = (column(vec![0.0, 1.0, 3.0, 7.0]), column(vec![0.0, 1.5, 3.0, 7.5]));
        // Nearest are 1, 0, 1, 2. Of each row one of the counts is 1 and the other 0: ψ(4) − ψ(1) − 1.
        let cubes = ksg_information(&x, &y, &RAW).unwrap();
        assert!((cubes - 5.0 / 6.0).abs() < 1e-12, "{cubes}");
        // All counts are 1, but that of row 1 in y, which is 2: ψ(4) − ψ(1) − 1 − 1/4.
        let config = KsgConfig { algorithm: KsgAlgorithm::Rectangles, ..RAW };
        let rectangles = ksg_information(&x, &y, &config).unwrap();
        assert!((rectangles - 7.0 / 12.0).abs() < 1e-12, "{rectangles}");
    }

    #[test]
    fn digamma_is_that_of_the_tables() {
        // Abramowitz & Stegun, table 6.1 and 6.3.
        let digamma = digamma_of_integers(10);
        for (n, value) in [(1, -0.5772156649), (2, 0.4227843351), (5, 1.5061176684), (10, 2.2517525890)] {
            assert!((digamma[n] - value).abs() < 1e-10, "{n}: {}", digamma[n]);
        }
        assert_eq!(digamma.len(), 11);
    }

    #[test]
    fn repeated_rows_stay_finite() {
        let same = column(vec![1.0; 8]);
        for algorithm in [KsgAlgorithm::Cubes, KsgAlgorithm::Rectangles] {
            let config = KsgConfig { algorithm, ..RAW };
            assert!(ksg_information(&same, &same, &config).unwrap().is_finite());
        }
    }
}
