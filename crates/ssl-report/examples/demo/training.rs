//! What the made-up run looked like step by step.

use std::f64::consts::PI;

use ssl_report::{Block, Chart, Level, LineChart, Mark, Scale, Section, Series, Severity};

use crate::noise::Noise;

const STEPS: usize = 3900;
const EPOCHS: usize = 25;

fn steps() -> impl Iterator<Item = f64> {
    (0..STEPS).map(|step| step as f64)
}

pub(crate) fn loss_chart() -> Chart {
    let mut noise = Noise::new(1);
    let falling = |start: f64, end: f64, step: f64| end + (start - end) * (-step / 600.0).exp();
    let mut training: Vec<(f64, f64)> =
        steps().map(|step| (step, falling(6.24, 5.05, step) + 0.06 * noise.normal())).collect();
    for step in 1204..1207 {
        training[step].1 = f64::NAN;
    }
    let other = steps().map(|step| (step, falling(6.24, 5.24, step * 0.7) + 0.06 * noise.normal()));
    let rate = steps().map(|step| (step, 0.6 * rate(step)));
    Chart::from(LineChart {
        title: "Loss".into(),
        caption: "NT-Xent in nats, the mean of 41 steps; the values themselves are pale.".into(),
        x_label: "step".into(),
        series: vec![
            Series::new("this run", training).smoothed(41),
            Series::new("without colour", other).smoothed(41),
        ],
        levels: vec![Level::new("chance, ln 511", 511_f64.ln())],
        marks: vec![Mark::new("resumed", 2340.0, Severity::Note)],
        schedule: Some(Series::new("learning rate", rate)),
        ..LineChart::default()
    })
}

/// The learning rate relative to its highest.
pub(crate) fn rate(step: f64) -> f64 {
    let warm = STEPS as f64 / 10.0;
    let left = (STEPS as f64 - step) / (STEPS as f64 - warm);
    if step < warm { step / warm } else { 0.5 - 0.5 * (PI * left).cos() }
}

pub(crate) fn training() -> Section {
    let mut noise = Noise::new(2);
    let spread = steps()
        .map(|step| (step, 0.0625 - 0.05 * (-step / 300.0).exp() + 0.0008 * noise.normal()))
        .collect::<Vec<_>>();
    let collapsing =
        steps().map(|step| (step, 0.03 * (-(step - 400.0).max(0.0) / 90.0).exp() + 1e-5)).collect::<Vec<_>>();
    let accuracy = |end: f64, noise: &mut Noise| -> Vec<(f64, f64)> {
        let epoch =
            |n: usize| (n as f64, end - (end - 0.78) * (-(n as f64) / 6.0).exp() + 0.003 * noise.normal());
        (0..=EPOCHS).map(epoch).collect()
    };
    let epochs = LineChart {
        title: "kNN accuracy by epoch".into(),
        x_label: "epoch".into(),
        series: vec![
            Series::new("simclr", accuracy(0.862, &mut noise)),
            Series::new("byol", accuracy(0.851, &mut noise)),
            Series::with_gaps(
                "vicreg",
                accuracy(0.846, &mut noise).into_iter().map(|(x, y)| (x, (x as usize % 9 != 5).then_some(y))),
            ),
        ],
        levels: vec![Level::new("raw pixels", 0.832), Level::new("untrained network", 0.781)],
        ..LineChart::default()
    };
    let collapse = LineChart {
        title: "Deviation of the embeddings".into(),
        caption: "Of normalised embeddings, the mean over dimensions.".into(),
        x_label: "step".into(),
        y_scale: Scale::Log,
        series: vec![
            Series::new("this run", spread),
            Series::new("simsiam without stop-gradient", collapsing),
        ],
        levels: vec![Level::new("1 / sqrt(256)", 0.0625)],
        marks: vec![Mark::new("collapsed since step 820", 820.0, Severity::Bad)],
        ..LineChart::default()
    };
    let gradients = steps().map(|step| (step, (0.4 * noise.normal() - step / 3000.0).exp()));
    let gradients = LineChart {
        title: "Norm of the gradient".into(),
        caption: "Before clipping.".into(),
        x_label: "step".into(),
        y_scale: Scale::Log,
        series: vec![Series::new("all parameters", gradients).smoothed(25)],
        levels: vec![Level::new("clipped at 3", 3.0)],
        ..LineChart::default()
    };
    let charts = vec![loss_chart(), epochs.into(), collapse.into(), gradients.into()];
    Section {
        intro: "What happened at every step. Rest the pointer on a line to read its values.".into(),
        ..Section::new("training", "Training", vec![Block::Charts(charts)])
    }
}
