//! The table at the end of a run.

use ssl_vision::train::{Evaluation, Scores, Study, ZeroShot};

/// Accuracies of the encoder beside its baselines.
pub(crate) fn scores(evaluation: &Evaluation) -> String {
    let Evaluation { encoder, baselines, zero_shot, protocol } = evaluation;
    let row = |name: &str, s: &Scores| {
        let note = if s.linear_converged { "" } else { "  (probe not converged)" };
        format!("{name:<20} {:>8.1} {:>8.1}{note}\n", 100.0 * s.knn, 100.0 * s.linear)
    };
    let mut text = format!("{:<20} {:>8} {:>8}\n", "top-1 accuracy, %", "kNN", "linear");
    text += &row("trained encoder", encoder);
    text += &row("untrained network", &baselines.untrained);
    text += &row("raw pixels", &baselines.pixels);
    let [knn, linear] = &encoder.intervals;
    text += &format!(
        "trained encoder, 95 % by bootstrap: kNN {:.1} to {:.1}, linear {:.1} to {:.1}\n",
        100.0 * knn.low,
        100.0 * knn.high,
        100.0 * linear.low,
        100.0 * linear.high
    );
    text += &format!("kNN: k = {}, temperature = {}\n", protocol.knn.k, protocol.knn.temperature);
    if let Some(ZeroShot { top1, classes, templates }) = zero_shot {
        let chance = 100.0 / *classes as f64;
        text += &format!(
            "zero-shot: {:.1} % (chance {chance:.1} %), {classes} classes by name in {} templates\n",
            100.0 * top1,
            templates.len()
        );
    }
    text
}

/// The figures of a study, part by part.
pub(crate) fn study(study: &Study) -> String {
    let mut text = String::new();
    for part in study.figures.chunk_by(|a, b| a.part == b.part) {
        text += &part.first().map_or(String::new(), |figure| format!("{}\n", figure.part));
        for figure in part {
            let ceiling = figure.ceiling.map_or(String::new(), |most| format!("  (at most {most:.2})"));
            text += &match &figure.value {
                Ok(value) => format!("  {:<40} {value:>9.3}{ceiling}\n", figure.name),
                Err(reason) => format!("  {:<40} {:>9}  ({reason})\n", figure.name, "—"),
            };
        }
    }
    text
}
