//! Watches the embeddings of a run for collapse: all images on one point, on a line, or at one prototype.
//!
//! Directions are watched for all methods. A method whose loss compares embeddings as they are, without normalisation,
//! reports the term `deviation` as well, the mean over dimensions of the standard deviation over samples, which its loss
//! keeps near 1. A method whose codes say if it is in health reports `used_prototypes`, how many prototypes are the first
//! choice of a code, and `possible_prototypes`, how many could be in the batch. Without the second the first is not looked
//! at: it may be that of predictions, which say little in the first steps. A method that predicts what is hidden, and
//! reports a gain over the mean, may fill fewer dimensions: the tokens of small grey images lie near one line, from dark to
//! bright, in good health, too.

use candle_core::{DType, Result, Tensor};

/// Steps in a row that must look collapsed before somebody is told, at least and at most; early batches may look so by
/// chance.
const PATIENCE: [usize; 2] = [20, 500];

/// Between these, the share of the run: some methods pass through a line when they begin to learn.
const PATIENCE_SHARE: usize = 16;

/// Share of the possible prototypes below which their use has collapsed; one prototype has in any case.
const USED_SHARE: f64 = 0.01;

/// How far the normalised embeddings of a batch are spread over the sphere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The mean over dimensions of the standard deviation over samples, times `√D`: 1 for directions spread evenly over
    /// the sphere, 0 for a collapsed encoder (Chen & He, 2021, section 4.1).
    pub std: f64,
    /// Dimensions that the embeddings fill: the participation ratio `(Σλ)² / Σλ²` of the eigenvalues `λ` of their
    /// covariance, from 1 for points on a line to `min(N − 1, D)`; 0 for one point.
    pub dimensions: f64,
}

impl Spread {
    /// The spread of the first view's embeddings `(N, D)`; zeros if there are none.
    pub(crate) fn of(embeddings: &[Tensor]) -> Result<Self> {
        let Some(z) = embeddings.first() else { return Ok(Self { std: 0.0, dimensions: 0.0 }) };
        let z = z.to_dtype(DType::F64)?;
        let (n, d) = z.dims2()?;
        let norm = (z.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-12)?;
        let z = z.broadcast_div(&norm)?;
        let z = z.broadcast_sub(&z.mean_keepdim(0)?)?;
        let std = z.sqr()?.mean(0)?.sqrt()?.mean_all()?.to_scalar::<f64>()? * (d as f64).sqrt();
        // ‖Z Zᵀ‖ = ‖Zᵀ Z‖: the smaller product will do.
        let t = z.t()?.contiguous()?;
        let gram = if n < d { z.matmul(&t)? } else { t.matmul(&z)? };
        let (trace, squares) =
            (z.sqr()?.sum_all()?.to_scalar::<f64>()?, gram.sqr()?.sum_all()?.to_scalar::<f64>()?);
        // Rounding alone gives one point some shape.
        let point = std < 1e-6 || squares == 0.0;
        Ok(Self { std, dimensions: if point { 0.0 } else { trace * trace / squares } })
    }

    /// As terms of the log.
    pub(crate) fn terms(self) -> [(&'static str, f64); 2] {
        [("embedding_std", self.std), ("embedding_dimensions", self.dimensions)]
    }
}

/// Tells if the embeddings stay collapsed, and if they recover after that, each once.
#[derive(Debug)]
pub(crate) struct CollapseWatch {
    patience: usize,
    collapsed: usize,
    gathered: usize,
    /// Steps in a row since it has told, without a sign of collapse.
    healthy: usize,
    told: bool,
    recovered: bool,
}

impl CollapseWatch {
    /// The watch of a run of `total_steps` steps.
    pub(crate) fn new(total_steps: usize) -> Self {
        let patience = (total_steps / PATIENCE_SHARE).clamp(PATIENCE[0], PATIENCE[1]);
        Self { patience, collapsed: 0, gathered: 0, healthy: 0, told: false, recovered: false }
    }

    /// Looks at the terms of a step; returns a sentence for a person if now is the time.
    pub(crate) fn look(&mut self, step: usize, terms: &[(&'static str, f64)]) -> Option<String> {
        let term = |name: &str| terms.iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
        let (std, dimensions) = (term("embedding_std")?, term("embedding_dimensions")?);
        // Of methods that compare embeddings as they are, which keep it near 1: normalised ones do not show that all
        // of them shrink.
        let deviation = term("deviation");
        let shrunk = deviation.is_some_and(|deviation| deviation < 0.05);
        let predicts = term("prediction_gain").or(term("reconstruction_gain")).is_some();
        let line = dimensions < if predicts { 1.1 } else { 1.5 };
        self.collapsed = if std < 0.05 || line || shrunk { self.collapsed + 1 } else { 0 };
        // Images may choose one prototype and still have directions of their own.
        let codes = term("used_prototypes").zip(term("possible_prototypes"));
        let few = codes.is_some_and(|(used, possible)| used <= (USED_SHARE * possible).max(1.0));
        self.gathered = if few { self.gathered + 1 } else { 0 };
        if self.told {
            self.healthy = if self.collapsed.max(self.gathered) == 0 { self.healthy + 1 } else { 0 };
            let now = self.healthy == self.patience && !self.recovered;
            self.recovered |= now;
            let since = step + 1 - self.healthy;
            return now.then(|| {
                format!(
                    "the embeddings have recovered since step {since}: standard deviation {std:.3}, {dimensions:.1} \
                     dimensions filled"
                )
            });
        }
        if self.collapsed.max(self.gathered) < self.patience {
            return None;
        }
        self.told = true;
        let since = step + 1 - self.patience;
        if self.collapsed >= self.patience {
            let scale = deviation.map_or(String::new(), |d| format!(", {d:.3} before normalisation"));
            return Some(format!(
                "the embeddings have collapsed since step {since}: standard deviation {std:.3} (1 is healthy, 0 is one \
                 point){scale}, {dimensions:.1} dimensions filled; the encoder is likely to learn nothing from here on"
            ));
        }
        let (used, possible) = codes?;
        Some(format!(
            "the codes have collapsed since step {since}: all images choose {used:.0} of {possible:.0} prototypes; the \
             encoder is likely to learn nothing from here on"
        ))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn spread(rows: &[[f64; 2]]) -> Spread {
        Spread::of(&[Tensor::from_vec(rows.concat(), (rows.len(), 2), &Device::Cpu).unwrap()]).unwrap()
    }

    #[test]
    fn a_circle_is_healthy_and_a_point_and_a_line_are_not() {
        let circle = spread(&[[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -1.0]]);
        assert!((circle.std - 1.0).abs() < 1e-9 && (circle.dimensions - 2.0).abs() < 1e-9, "{circle:?}");
        let line = spread(&[[1.0, 1.0], [-1.0, -1.0], [2.0, 2.0]]);
        assert!(line.std > 0.5 && (line.dimensions - 1.0).abs() < 1e-9, "{line:?}");
        let point = spread(&[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]);
        assert!(point.std < 1e-9 && point.dimensions == 0.0, "{point:?}");
    }

    #[test]
    fn the_watch_speaks_once_and_only_after_its_patience() {
        let terms = |std: f64| [("embedding_std", std), ("embedding_dimensions", 9.0)];
        let mut watch = CollapseWatch::new(0);
        assert!(
            (1..=PATIENCE[0])
                .all(|step| watch.look(step, &terms(if step == 5 { 1.0 } else { 0.01 })).is_none())
        );
        let said: Vec<_> = (PATIENCE[0] + 1..200).filter_map(|step| watch.look(step, &terms(0.01))).collect();
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("since step 6: standard deviation 0.010"), "{}", said[0]);
    }

    #[test]
    fn long_runs_are_watched_longer_and_a_recovery_is_told_once() {
        let terms = |std: f64| [("embedding_std", std), ("embedding_dimensions", 9.0)];
        let mut watch = CollapseWatch::new(1600);
        let mut said = |steps: std::ops::Range<usize>, std: f64| -> Vec<String> {
            steps.filter_map(|step| watch.look(step, &terms(std))).collect()
        };
        // A sixteenth of the run is 100 steps.
        assert!(said(1..100, 0.01).is_empty() && said(100..150, 0.5).is_empty());
        assert!(said(150..249, 0.01).is_empty());
        assert!(said(249..300, 0.01)[0].contains("collapsed since step 150"));
        assert!(said(300..399, 0.5).is_empty());
        assert!(said(399..400, 0.5)[0].contains("recovered since step 300: standard deviation 0.500"));
        assert!(said(400..900, 0.01).is_empty() && said(900..1600, 0.5).is_empty());
    }

    #[test]
    fn embeddings_that_shrink_have_collapsed_whatever_their_directions() {
        let terms = |deviation: f64| {
            [("deviation", deviation), ("embedding_std", 1.0), ("embedding_dimensions", 9.0)]
        };
        let said = |deviation: f64| {
            let mut watch = CollapseWatch::new(0);
            (1..=PATIENCE[0]).find_map(|step| watch.look(step, &terms(deviation)))
        };
        assert_eq!(said(0.4), None);
        assert!(said(0.01).unwrap().contains("1.000 (1 is healthy, 0 is one point), 0.010 before"));
    }

    #[test]
    fn tokens_near_a_line_are_no_collapse_of_what_predicts_them_and_on_it_they_are() {
        let said = |std: f64, dimensions: f64| {
            let terms =
                [("prediction_gain", 0.5), ("embedding_std", std), ("embedding_dimensions", dimensions)];
            let mut watch = CollapseWatch::new(0);
            (1..=PATIENCE[0]).find_map(|step| watch.look(step, &terms))
        };
        assert_eq!(said(0.5, 1.2), None);
        assert!(said(0.5, 1.02).unwrap().contains("1.0 dimensions filled"));
        assert!(said(0.01, 1.2).unwrap().contains("standard deviation 0.010"));
    }

    #[test]
    fn images_that_gather_at_one_prototype_have_collapsed_whatever_their_directions() {
        let said = |used: f64, possible: Option<f64>| {
            let mut terms =
                vec![("used_prototypes", used), ("embedding_std", 1.0), ("embedding_dimensions", 9.0)];
            terms.extend(possible.map(|possible| ("possible_prototypes", possible)));
            let mut watch = CollapseWatch::new(0);
            let told: Vec<_> = (8..100).filter_map(|step| watch.look(step, &terms)).collect();
            assert!(told.len() <= 1, "{told:?}");
            told.first().cloned()
        };
        let told = said(1.0, Some(60.0)).unwrap();
        assert!(told.contains("collapsed since step 8: all images choose 1 of 60 prototypes"), "{told}");
        assert!(said(30.0, Some(3000.0)).unwrap().contains("choose 30 of 3000"));
        for (used, possible) in [(2.0, Some(60.0)), (31.0, Some(3000.0)), (1.0, None), (1.5, Some(60.0))] {
            assert_eq!(said(used, possible), None, "{used} of {possible:?}");
        }
        let mut watch = CollapseWatch::new(0);
        let mut look = |step, used| {
            watch.look(
                step,
                &[("used_prototypes", used), ("embedding_std", 1.0), ("embedding_dimensions", 9.0)],
            )
        };
        assert!((1..=80).all(|step| look(step, if step % 20 == 0 { 5.0 } else { 1.0 }).is_none()));
    }
}
