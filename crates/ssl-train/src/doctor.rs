//! The collapse doctor: watches the numbers of a run, and says in one line what it sees, since which step, what is the likely
//! cause for the method, and what to try.
//!
//! It sees six things.
//!
//! - **Collapse**: the embeddings of a batch lie on one point or on a line, or shrink. Directions are watched for all
//!   methods; of a method whose loss compares embeddings as they are (it reports the term `deviation`), lengths as well. A
//!   method that predicts what is hidden may fill fewer dimensions: the tokens of small grey images lie near one line, from
//!   dark to bright, in good health, too.
//! - **Dead prototypes**: all images choose one of them, or less than a hundredth of those that could be chosen
//!   (`used_prototypes`, `possible_prototypes`). Without the second term the first is not looked at: it may be that of
//!   predictions, which say little in the first steps.
//! - **No information**: the loss stays at the value of a network that tells no image from another, `ln K` for prototypes,
//!   `ln(2N − 1)` for NT-Xent, `ln(1 + K)` for a queue. Watched as the information that the method reports beside its ceiling.
//!   A teacher's entropy tells whether all images have one prototype or all prototypes alike.
//! - **No gain**: what is hidden is predicted no better than by its mean.
//! - **Explosion**: gradients or embeddings a hundred times as long as they were.
//! - **Falling rank**: of the features that [`Measures`](crate::Measures) look at, to a quarter of what training had reached,
//!   or to a tenth of the untrained network's, which chance has spread over many dimensions.
//!
//! A sign must last for a sixteenth of the run, since some methods pass through a line when they begin to learn, and those of
//! a network that knows nothing for an eighth, since every run begins with them. Each is told once, and once more if it goes
//! away. What the doctor says depends on `metrics.jsonl` and `measures.jsonl` alone, so that
//! whoever reads these again hears the same.

use std::collections::VecDeque;
use std::fmt;

use ssl_methods::{MethodConfig, Safeguard};

/// Steps in a row that must look ill before somebody is told, at least and at most; early batches may look so by chance.
const PATIENCE: [usize; 2] = [20, 500];

/// Between these, the share of the run.
const PATIENCE_SHARE: usize = 16;

/// The same for what every run begins with: to know nothing.
const START_PATIENCE: [usize; 2] = [200, 2000];
const START_PATIENCE_SHARE: usize = 8;

/// Share of the possible prototypes below which their use has collapsed; one prototype has in any case.
const USED_SHARE: f64 = 0.01;

/// Share of its ceiling below which the information is that of a network that knows nothing.
const INFORMATION_SHARE: f64 = 0.01;

/// Bits by which a prediction must beat the mean.
const BITS: f64 = 0.001;

/// A norm that is so many times its usual value has exploded.
const EXPLOSION: f64 = 100.0;

/// Steps whose median is the usual value of a norm, and steps in a row that must exceed it.
const USUAL_STEPS: usize = 101;
const EXPLODED_STEPS: usize = 10;

/// Share of its highest value in training that the rank of the features may fall to.
const RANK_SHARE: f64 = 0.25;

/// Share of the untrained network's rank that it may fall to. MSN gathers the 28 dimensions of a vision transformer as it
/// starts in 7, and is none the worse for it.
const UNTRAINED_RANK_SHARE: f64 = 0.1;

/// What the doctor has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Symptom {
    /// Embeddings on one point, on a line, or without length.
    Collapse,
    /// All images at one prototype.
    DeadPrototypes,
    /// The loss of a network that tells no image from another.
    NoInformation,
    /// A prediction no better than the mean.
    NoGain,
    /// Norms that have grown out of bounds.
    Explosion,
    /// Features that fill ever fewer dimensions.
    FallingRank,
}

impl Symptom {
    const ALL: [Self; 6] = [
        Self::Collapse,
        Self::DeadPrototypes,
        Self::NoInformation,
        Self::NoGain,
        Self::Explosion,
        Self::FallingRank,
    ];

    /// A word or two for a list.
    pub fn name(self) -> &'static str {
        match self {
            Self::Collapse => "collapse",
            Self::DeadPrototypes => "dead prototypes",
            Self::NoInformation => "no information",
            Self::NoGain => "no gain",
            Self::Explosion => "explosion",
            Self::FallingRank => "falling rank",
        }
    }
}

/// One line of the doctor.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What it is about.
    pub symptom: Symptom,
    /// The step after which it was said.
    pub step: usize,
    /// The first step that showed it, or the first without it.
    pub since: usize,
    /// Whether the sign has gone away again.
    pub recovered: bool,
    /// What is seen.
    pub finding: String,
    /// What is the likely cause; empty if it has gone away.
    pub cause: String,
    /// What to try; empty if it has gone away.
    pub remedy: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.finding)?;
        if !self.recovered {
            write!(f, "; likely cause: {}; try {}", self.cause, self.remedy)?;
        }
        Ok(())
    }
}

/// The values of a line of the log by name.
type Values<'a> = &'a dyn Fn(&str) -> Option<f64>;

/// Watches one run.
///
/// ```
/// use ssl_methods::MethodConfig;
/// use ssl_train::Doctor;
///
/// let mut simsiam = MethodConfig::named("simsiam").ok_or("unknown")?;
/// let mut doctor = Doctor::new(&simsiam, 100);
/// // All embeddings stay on one point.
/// let values = |name: &str| match name {
///     "embedding_std" => Some(0.001),
///     "embedding_dimensions" => Some(3.0),
///     _ => None,
/// };
/// let verdicts: Vec<_> = (1..=100).flat_map(|step| doctor.look(step, &values)).collect();
/// assert_eq!(verdicts.len(), 1);
/// assert_eq!((verdicts[0].since, verdicts[0].step), (1, 20));
/// assert!(verdicts[0].to_string().contains("the embeddings have collapsed since step 1"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Doctor {
    safeguard: Safeguard,
    patience: usize,
    start_patience: usize,
    watches: [Watch; 6],
    norms: [(&'static str, VecDeque<f64>); 2],
    untrained_rank: Option<f64>,
    /// The highest since, and after which step.
    best_rank: Option<(usize, f64)>,
}

/// How long a sign has been there, or gone.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    ill: usize,
    healthy: usize,
    since: usize,
    told: bool,
    recovered: bool,
}

impl Watch {
    /// Takes note of a look at `step`; returns whether to speak, and whether of a recovery.
    fn note(&mut self, step: usize, ill: bool, patience: usize) -> Option<bool> {
        if ill != (self.ill > 0) || self.ill + self.healthy == 0 {
            self.since = step;
        }
        (self.ill, self.healthy) = if ill { (self.ill + 1, 0) } else { (0, self.healthy + 1) };
        if !self.told && self.ill == patience {
            self.told = true;
            return Some(false);
        }
        if self.told && !self.recovered && self.healthy == patience {
            self.recovered = true;
            return Some(true);
        }
        None
    }
}

impl Doctor {
    /// The doctor of a run of `total_steps` steps.
    pub fn new(method: &MethodConfig, total_steps: usize) -> Self {
        Self {
            safeguard: method.safeguard(),
            patience: (total_steps / PATIENCE_SHARE).clamp(PATIENCE[0], PATIENCE[1]),
            start_patience: (total_steps / START_PATIENCE_SHARE).clamp(START_PATIENCE[0], START_PATIENCE[1]),
            watches: [Watch::default(); 6],
            norms: ["grad_norm", "embedding_norm"].map(|name| (name, VecDeque::new())),
            untrained_rank: None,
            best_rank: None,
        }
    }

    /// Looks at the values of a step, as `metrics.jsonl` has them, and says what there is to say.
    pub fn look(&mut self, step: usize, values: Values<'_>) -> Vec<Verdict> {
        let (patience, at_start) = (self.patience, self.start_patience);
        let signs = [
            (Symptom::Collapse, collapse(values), patience),
            (Symptom::DeadPrototypes, dead_prototypes(values), patience),
            (Symptom::NoInformation, no_information(values), at_start),
            (Symptom::NoGain, no_gain(values), at_start),
        ];
        let signs =
            signs.into_iter().filter_map(|(symptom, sign, patience)| Some((symptom, sign?, patience)));
        let mut signs: Vec<_> = signs.collect();
        signs.extend(self.explosion(values).map(|sign| (Symptom::Explosion, sign, EXPLODED_STEPS)));
        signs
            .into_iter()
            .filter_map(|(symptom, sign, patience)| self.note(step, symptom, sign, patience))
            .collect()
    }

    /// Looks at measured features, as `measures.jsonl` has them.
    pub fn look_at_measures(&mut self, step: usize, values: Values<'_>) -> Option<Verdict> {
        let rank = values("rank_me")?;
        match self.best_rank {
            _ if step == 0 => self.untrained_rank = Some(rank),
            Some((_, best)) if best >= rank => {}
            _ => self.best_rank = Some((step, rank)),
        }
        let trained = self.best_rank.map(|best| (best, RANK_SHARE));
        let untrained = self.untrained_rank.map(|rank| ((0, rank), UNTRAINED_RANK_SHARE));
        let former = trained.into_iter().chain(untrained).find(|((_, best), share)| rank < share * best);
        let ((former_step, best), _) = former.unwrap_or(((step, rank), 1.0));
        let sign = Sign {
            ill: former.is_some(),
            finding: format!(
                "the rank of the features has fallen from {best:.1} after step {former_step} to {rank:.1}"
            ),
            healthy: format!("the rank of the features has risen again to {rank:.1}"),
        };
        self.note(step, Symptom::FallingRank, sign, 2)
    }

    /// What there is to say of a run that ends with a value that is not finite.
    pub(crate) fn ancestry(&self) -> String {
        let [(_, gradients), _] = &self.norms;
        let grown = match (median(gradients), gradients.back()) {
            (Some(usual), Some(last)) if *last > 3.0 * usual => {
                format!("the norm of the gradients had grown from {usual:.3e} to {last:.3e} before")
            }
            (Some(usual), _) => {
                format!("the norm of the gradients was {usual:.3e} before, without a warning")
            }
            _ => "it happened in the first step".to_owned(),
        };
        format!("{grown}; try a lower optimizer.lr, a longer warm-up, or train.clip_norm = 1")
    }

    /// A norm a hundred times its usual value, or the first one that is not.
    fn explosion(&mut self, values: Values<'_>) -> Option<Sign> {
        let mut signs = Vec::with_capacity(2);
        for (name, recent) in &mut self.norms {
            let Some(norm) = values(name) else { continue };
            let usual = median(recent).filter(|_| recent.len() >= EXPLODED_STEPS).unwrap_or(norm);
            let ill = norm > EXPLOSION * usual.max(1e-12);
            if !ill {
                recent.push_back(norm);
                if recent.len() > USUAL_STEPS {
                    recent.pop_front();
                }
            }
            let what = if *name == "grad_norm" { "gradients" } else { "embeddings" };
            signs.push(Sign {
                ill,
                finding: format!("the norm of the {what} has grown from {usual:.3e} to {norm:.3e}"),
                healthy: format!("the norms are what they were: {norm:.3e} for the {what}"),
            });
        }
        let worst = signs.iter().position(|sign| sign.ill).unwrap_or(0);
        (worst < signs.len()).then(|| signs.swap_remove(worst))
    }

    fn note(&mut self, step: usize, symptom: Symptom, sign: Sign, patience: usize) -> Option<Verdict> {
        let place = Symptom::ALL.iter().position(|own| *own == symptom)?;
        let watch = &mut self.watches[place];
        let recovered = watch.note(step, sign.ill, patience)?;
        let since = watch.since;
        if recovered {
            let finding = sign.healthy.replace("{since}", &since.to_string());
            let (cause, remedy) = (String::new(), String::new());
            return Some(Verdict { symptom, step, since, recovered, finding, cause, remedy });
        }
        let finding = if sign.finding.contains("{since}") {
            sign.finding.replace("{since}", &since.to_string())
        } else {
            format!("{}, since step {since}", sign.finding)
        };
        let (cause, remedy) = self.advice(symptom);
        Some(Verdict { symptom, step, since, recovered, finding, cause, remedy })
    }

    /// The likely cause of a symptom, and what to try.
    fn advice(&self, symptom: Symptom) -> (String, String) {
        let Safeguard { what, removed, doubt, remedy } = &self.safeguard;
        if symptom == Symptom::Explosion {
            let cause = "a learning rate that is too high for this batch and network";
            return (
                cause.to_owned(),
                "a lower optimizer.lr, a longer warm-up, or train.clip_norm = 1".to_owned(),
            );
        }
        if removed.is_empty() {
            return ((*doubt).to_owned(), (*remedy).to_owned());
        }
        let list = |each: &dyn Fn(&ssl_methods::Removed) -> String| {
            removed.iter().map(each).collect::<Vec<_>>().join(" and ")
        };
        let settings = list(&|removed| removed.setting.clone());
        let papers = list(&|removed| {
            let key = removed.setting.split(' ').next().unwrap_or_default();
            format!("{key} = {}", removed.papers)
        });
        let takes = if removed.len() == 1 { "takes" } else { "take" };
        (format!("{settings} {takes} away {what}"), format!("{papers}, as in the paper"))
    }
}

/// What one look at one thing has shown.
struct Sign {
    ill: bool,
    /// The sentence if it stays ill; `{since}` stands for the first step of it.
    finding: String,
    /// The sentence if it has been ill and is healthy again.
    healthy: String,
}

fn collapse(values: Values<'_>) -> Option<Sign> {
    let (std, dimensions) = (values("embedding_std")?, values("embedding_dimensions")?);
    // Of methods that compare embeddings as they are, which keep it near 1: normalised ones do not show that all of them
    // shrink.
    let deviation = values("deviation");
    let shrunk = deviation.is_some_and(|deviation| deviation < 0.05);
    let predicts = values("prediction_gain").or(values("reconstruction_gain")).is_some();
    let line = dimensions < if predicts { 1.1 } else { 1.5 };
    let scale = deviation.map_or(String::new(), |d| format!(", {d:.3} before normalisation"));
    Some(Sign {
        ill: std < 0.05 || line || shrunk,
        finding: format!(
            "the embeddings have collapsed since step {{since}}: standard deviation {std:.3} (1 is healthy, 0 is one \
             point){scale}, {dimensions:.1} dimensions filled; the encoder is likely to learn nothing from here on"
        ),
        healthy: format!(
            "the embeddings have recovered since step {{since}}: standard deviation {std:.3}, {dimensions:.1} dimensions \
             filled"
        ),
    })
}

fn dead_prototypes(values: Values<'_>) -> Option<Sign> {
    // Images may choose one prototype and still have directions of their own.
    let (used, possible) = (values("used_prototypes")?, values("possible_prototypes")?);
    Some(Sign {
        ill: used <= (USED_SHARE * possible).max(1.0),
        finding: format!(
            "the codes have collapsed since step {{since}}: all images choose {used:.0} of {possible:.0} prototypes; the \
             encoder is likely to learn nothing from here on"
        ),
        healthy: format!(
            "the codes have recovered since step {{since}}: images choose {used:.0} of {possible:.0} prototypes"
        ),
    })
}

fn no_information(values: Values<'_>) -> Option<Sign> {
    let pair = |nats, ceiling| values(nats).zip(values(ceiling));
    let (nats, ceiling) = pair("mi_lower_bound", "mi_ceiling")
        .or_else(|| pair("prediction_information", "prediction_ceiling"))
        .or_else(|| pair("token_information", "token_ceiling"))?;
    let how = match values("teacher_entropy") {
        Some(entropy) if entropy < 0.1 => ": the teacher gives all images one prototype",
        Some(_) => ": the teacher gives all images the same mixture of prototypes",
        None => "",
    };
    Some(Sign {
        ill: nats < INFORMATION_SHARE * ceiling,
        finding: format!(
            "the loss has stayed since step {{since}} at its value for a network that tells no image from another: \
             {nats:.3} of at most {ceiling:.2} nats{how}"
        ),
        healthy: format!(
            "the loss has left its value for a network that tells no image from another at step {{since}}: {nats:.2} of at \
             most {ceiling:.2} nats"
        ),
    })
}

fn no_gain(values: Values<'_>) -> Option<Sign> {
    let bits = values("bits_per_dimension")?;
    Some(Sign {
        ill: bits < BITS,
        finding: format!(
            "what is hidden has been predicted no better than by its mean since step {{since}}: {bits:.4} bits a value"
        ),
        healthy: format!(
            "what is hidden is predicted better than by its mean since step {{since}}: {bits:.3} bits a value"
        ),
    })
}

fn median(values: &VecDeque<f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doctor(method: &str, steps: usize) -> Doctor {
        Doctor::new(&MethodConfig::named(method).unwrap(), steps)
    }

    /// Shows `terms` at each of `steps`.
    fn show(doctor: &mut Doctor, steps: std::ops::Range<usize>, terms: &[(&str, f64)]) -> Vec<String> {
        let find = |name: &str| terms.iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
        steps.flat_map(|step| doctor.look(step, &find)).map(|verdict| verdict.to_string()).collect()
    }

    fn embeddings(std: f64, dimensions: f64) -> [(&'static str, f64); 2] {
        [("embedding_std", std), ("embedding_dimensions", dimensions)]
    }

    const HEALTHY: [(&str, f64); 2] = [("embedding_std", 1.0), ("embedding_dimensions", 9.0)];

    #[test]
    fn a_sign_is_told_once_and_only_after_the_patience() {
        let mut doctor = doctor("simclr", 0);
        assert!(show(&mut doctor, 1..5, &embeddings(0.01, 9.0)).is_empty());
        assert!(show(&mut doctor, 5..6, &HEALTHY).is_empty());
        assert!(show(&mut doctor, 6..25, &embeddings(0.01, 9.0)).is_empty());
        let said = show(&mut doctor, 25..200, &embeddings(0.01, 9.0));
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("since step 6: standard deviation 0.010"), "{}", said[0]);
        assert!(
            said[0].contains("likely cause: a temperature") && said[0].contains("try method.temperature")
        );
    }

    #[test]
    fn long_runs_are_watched_longer_and_a_recovery_is_told_once() {
        let mut doctor = doctor("byol", 1600);
        let mut said = |steps, std| show(&mut doctor, steps, &embeddings(std, 9.0));
        // A sixteenth of the run is 100 steps.
        assert!(said(1..100, 0.01).is_empty() && said(100..150, 0.5).is_empty());
        assert!(said(150..249, 0.01).is_empty());
        assert!(said(249..300, 0.01)[0].contains("collapsed since step 150"));
        assert!(said(300..399, 0.5).is_empty());
        assert!(
            said(399..400, 0.5)[0]
                .ends_with("recovered since step 300: standard deviation 0.500, 9.0 dimensions filled")
        );
        assert!(said(400..900, 0.01).is_empty() && said(900..1600, 0.5).is_empty());
    }

    #[test]
    fn a_removed_safeguard_is_the_cause_and_the_paper_the_remedy() {
        let Some(MethodConfig::VicReg(mut settings)) = MethodConfig::named("vicreg") else { panic!() };
        (settings.variance_weight, settings.covariance_weight) = (0.0, 0.0);
        let mut doctor = Doctor::new(&MethodConfig::VicReg(settings), 0);
        let said = show(&mut doctor, 1..30, &embeddings(0.01, 9.0));
        let cause = "method.variance_weight = 0 and method.covariance_weight = 0 take away the variance and covariance parts";
        assert!(said[0].contains(cause), "{}", said[0]);
        assert!(
            said[0].ends_with(
                "try method.variance_weight = 25 and method.covariance_weight = 1, as in the paper"
            )
        );
    }

    #[test]
    fn embeddings_that_shrink_have_collapsed_whatever_their_directions() {
        let said = |deviation: f64| {
            show(&mut doctor("vicreg", 0), 1..40, &[&HEALTHY[..], &[("deviation", deviation)]].concat())
        };
        assert!(said(0.4).is_empty());
        assert!(said(0.01)[0].contains("1.000 (1 is healthy, 0 is one point), 0.010 before"));
    }

    #[test]
    fn tokens_near_a_line_are_no_collapse_of_what_predicts_them_and_on_it_they_are() {
        let said = |std: f64, dimensions: f64| {
            let terms = [&embeddings(std, dimensions)[..], &[("prediction_gain", 0.5)]].concat();
            show(&mut doctor("i-jepa", 0), 1..40, &terms)
        };
        assert!(said(0.5, 1.2).is_empty());
        assert!(said(0.5, 1.02)[0].contains("1.0 dimensions filled"));
        assert!(said(0.01, 1.2)[0].contains("standard deviation 0.010"));
    }

    #[test]
    fn images_that_gather_at_one_prototype_have_collapsed_whatever_their_directions() {
        let said = |used: f64, possible: Option<f64>| {
            let mut terms = [&HEALTHY[..], &[("used_prototypes", used)]].concat();
            terms.extend(possible.map(|possible| ("possible_prototypes", possible)));
            let told = show(&mut doctor("swav", 0), 8..100, &terms);
            assert!(told.len() <= 1, "{told:?}");
            told.first().cloned()
        };
        let told = said(1.0, Some(60.0)).unwrap();
        assert!(told.contains("collapsed since step 8: all images choose 1 of 60 prototypes"), "{told}");
        assert!(said(30.0, Some(3000.0)).unwrap().contains("choose 30 of 3000"));
        for (used, possible) in [(2.0, Some(60.0)), (31.0, Some(3000.0)), (1.0, None), (1.5, Some(60.0))] {
            assert_eq!(said(used, possible), None, "{used} of {possible:?}");
        }
    }

    #[test]
    fn a_loss_at_its_uniform_value_is_told_with_its_ceiling_and_the_teachers_entropy() {
        let ceiling = 255f64.ln();
        let bound = |nats: f64| [&HEALTHY[..], &[("mi_lower_bound", nats), ("mi_ceiling", ceiling)]].concat();
        assert!(show(&mut doctor("simclr", 0), 1..400, &bound(0.1)).is_empty());
        assert!(show(&mut doctor("simclr", 0), 1..200, &bound(0.01)).is_empty());
        let said = show(&mut doctor("simclr", 0), 1..400, &bound(0.01));
        assert!(
            said[0].contains("since step 1 at its value") && said[0].contains("0.010 of at most 5.54 nats")
        );
        for (entropy, how) in [(0.0, "gives all images one prototype"), (4.0, "the same mixture")] {
            let terms =
                [("prediction_information", 0.0), ("prediction_ceiling", 4.1), ("teacher_entropy", entropy)];
            assert!(show(&mut doctor("dino", 0), 1..400, &terms)[0].contains(how));
        }
    }

    #[test]
    fn a_prediction_no_better_than_the_mean_and_exploding_norms_are_told() {
        let said = show(&mut doctor("mae", 0), 1..400, &[("bits_per_dimension", 0.0)]);
        assert!(said[0].contains("no better than by its mean since step 1"), "{said:?}");
        let mut doctor = doctor("mae", 0);
        let norm = |norm: f64| [("grad_norm", norm), ("embedding_norm", 1.0)];
        assert!(show(&mut doctor, 1..50, &norm(2.0)).is_empty());
        // A leap of a few steps is none.
        assert!(
            show(&mut doctor, 50..55, &norm(1000.0)).is_empty()
                && show(&mut doctor, 55..60, &norm(2.0)).is_empty()
        );
        let said = show(&mut doctor, 60..100, &norm(1000.0));
        assert_eq!(said.len(), 1);
        assert!(
            said[0].starts_with("the norm of the gradients has grown from 2.000e0 to 1.000e3, since step 60")
        );
        assert!(doctor.ancestry().contains("was 2.000e0 before"));
    }

    #[test]
    fn a_rank_that_stays_at_a_fraction_of_its_best_is_told() {
        let mut doctor = doctor("simclr", 0);
        let mut look =
            |step, rank| doctor.look_at_measures(step, &|name| (name == "rank_me").then_some(rank));
        assert_eq!(
            [look(0, 30.0), look(10, 60.0), look(20, 14.0), look(30, 40.0), look(40, 14.0)],
            [const { None }; 5]
        );
        let said = look(50, 10.0).unwrap().to_string();
        assert!(said.starts_with(
            "the rank of the features has fallen from 60.0 after step 10 to 10.0, since step 40"
        ));
    }

    #[test]
    fn features_that_chance_has_spread_may_gather_but_not_on_a_line() {
        // A whole run of MSN, which gained 6 points of kNN.
        let ranks = [28.1, 7.6, 7.3, 6.7, 6.6, 6.6, 6.6, 6.7, 6.9];
        let mut healthy = doctor("msn", 1248);
        for (epoch, rank) in ranks.into_iter().enumerate() {
            let said = healthy.look_at_measures(156 * epoch, &|name| (name == "rank_me").then_some(rank));
            assert!(said.is_none(), "{said:?}");
        }
        let mut collapsed = doctor("msn", 1248);
        let mut look =
            |step, rank| collapsed.look_at_measures(step, &|name| (name == "rank_me").then_some(rank));
        assert_eq!([look(0, 28.1), look(156, 1.4)], [const { None }; 2]);
        let said = look(312, 1.2).unwrap().to_string();
        assert!(said.starts_with("the rank of the features has fallen from 28.1 after step 0 to 1.2, since"));
    }
}
