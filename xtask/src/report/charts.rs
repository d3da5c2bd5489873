//! The charts of a run.

use ssl_vision::report::{
    Block, Chart, Level, LineChart, Mark, Page, PathChart, Scale, Series, Severity, Trace,
};
use ssl_vision::train::Verdict;

use super::run::Run;

/// Curves are averaged over one step in so many of the run.
const SMOOTHING_SHARE: usize = 50;

/// The gradients by depth are means over one step in so many of the run.
const DEPTH_PARTS: usize = 10;

/// Half of `ln 2πe`: the entropy of a normal distribution of variance 1.
const UNIT_ENTROPY: f64 = 1.418_938_533_204_672_7;

/// Pairs of terms in nats, what a method reports and what it cannot exceed, with titles and names.
const BOUNDS: [(&str, &str, &str, &str); 4] = [
    ("mi_lower_bound", "mi_ceiling", "Bound on I(view; view) by the loss", "lower bound"),
    ("cross_view_bound", "cross_view_ceiling", "The same across views only", "lower bound"),
    ("prediction_information", "prediction_ceiling", "I(prototype; image)", "information"),
    ("token_information", "token_ceiling", "I(visible patches; hidden code)", "information"),
];

/// A chart over steps with the doctor's verdicts as marks; `None` if there is nothing to draw.
fn over_steps(run: &Run, title: &str, y_label: &str, lines: &[(&str, &str)]) -> Option<LineChart> {
    let window = (run.steps() / SMOOTHING_SHARE).max(1);
    let series = lines.iter().filter_map(|(name, label)| {
        let points: Vec<_> = run.history.metric(name).collect();
        (!points.is_empty()).then(|| Series::new(*label, points).smoothed(window))
    });
    let series: Vec<_> = series.collect();
    (!series.is_empty()).then(|| LineChart {
        title: title.into(),
        x_label: "step".into(),
        y_label: y_label.into(),
        series,
        marks: run.verdicts.iter().map(mark).collect(),
        ..LineChart::default()
    })
}

/// A chart over epochs, of what was measured between them.
fn over_epochs(run: &Run, title: &str, y_label: &str, lines: &[(&str, &str)]) -> Option<LineChart> {
    let epochs: Vec<f64> = run.history.measure("epoch").map(|(_, epoch)| epoch).collect();
    let steps: Vec<f64> = run.history.measure("epoch").map(|(step, _)| step).collect();
    let epoch_of = |step: f64| steps.iter().position(|own| *own == step).map_or(step, |at| epochs[at]);
    let series = lines.iter().filter_map(|(name, label)| {
        let points: Vec<_> = run.history.measure(name).map(|(step, value)| (epoch_of(step), value)).collect();
        (!points.is_empty()).then(|| Series::new(*label, points))
    });
    let series: Vec<_> = series.collect();
    (!series.is_empty()).then(|| LineChart {
        title: title.into(),
        x_label: "epoch".into(),
        y_label: y_label.into(),
        series,
        ..LineChart::default()
    })
}

fn mark(verdict: &Verdict) -> Mark {
    let severity = if verdict.recovered { Severity::Good } else { Severity::Bad };
    let name = verdict.symptom.name();
    let label = if verdict.recovered { format!("{name} over") } else { name.to_owned() };
    Mark::new(label, verdict.since as f64, severity)
}

/// How large gradients are in each layer, at the start of a run, in its middle and at its end.
fn depth(run: &Run) -> Option<LineChart> {
    let steps: Vec<(f64, Vec<f64>)> = run.history.metric_list("layer_grad_norms").collect();
    let length = steps.len().div_ceil(DEPTH_PARTS);
    let last = steps.len().checked_sub(length)?;
    let mut starts = vec![0, last / 2, last];
    starts.dedup();
    let series = starts.into_iter().filter_map(|start| {
        let part = steps.get(start..start + length)?;
        let mean =
            |layer: usize| part.iter().filter_map(|(_, norms)| norms.get(layer)).sum::<f64>() / length as f64;
        let layers = part.first()?.1.len();
        let name = format!("steps {} to {}", part.first()?.0, part.last()?.0);
        Some(Series::new(name, (0..layers).map(|layer| (layer as f64, mean(layer)))))
    });
    let series: Vec<_> = series.filter(|series| series.points.len() > 1).collect();
    (!series.is_empty()).then(|| LineChart {
        title: "Gradients by depth".into(),
        caption: "Mean norms in each layer of the network, from its input on the left to its output.".into(),
        x_label: "layer".into(),
        y_label: "norm".into(),
        y_scale: Scale::Log,
        series,
        ..LineChart::default()
    })
}

/// The loss with the learning rate behind it, and the norms of gradients.
pub(super) fn training(run: &Run) -> Vec<Chart> {
    let loss = over_steps(run, "Loss", "loss", &[("loss", "loss")]).map(|mut chart| {
        chart.schedule = Some(Series::new("learning rate", run.history.metric("lr")));
        let smooth = chart.series.iter().any(|series| series.smoothing > 1);
        let lines = if smooth { "Pale: every step. Strong: its moving mean. " } else { "" };
        chart.caption = format!("{lines}Behind the line the learning rate, without a scale.");
        chart
    });
    let norm = over_steps(run, "Gradients", "norm", &[("grad_norm", "all")]).map(|mut chart| {
        chart.y_scale = Scale::Log;
        chart
    });
    [loss, norm, depth(run)].into_iter().flatten().map(Chart::from).collect()
}

/// What the loss says of the information, with its ceiling.
pub(super) fn information(run: &Run) -> Vec<Chart> {
    let mut charts = Vec::new();
    for (name, ceiling, title, label) in BOUNDS {
        if let Some(mut chart) = over_steps(run, title, "nats", &[(name, label)]) {
            if let Some(most) = run.last_metric(ceiling) {
                chart.levels.push(Level::new(format!("ceiling {most:.2}"), most));
            }
            chart.levels.push(Level::new("a network that knows nothing", 0.0));
            charts.push(chart);
        }
    }
    let bits = [("bits_per_dimension", "bits a hidden value")];
    charts.extend(over_steps(run, "What the visible tells of the hidden", "bits a value", &bits).map(
        |mut chart| {
            chart.levels.push(Level::new("the mean of what is hidden", 0.0));
            chart
        },
    ));
    let entropy = [
        ("teacher_entropy", "H(teacher)"),
        ("teacher_kl", "KL(teacher ‖ student)"),
        ("code_entropy", "H(code)"),
    ];
    charts.extend(over_steps(run, "The two parts of the loss", "nats", &entropy));
    let views = [("view_information", "two views of an image")];
    charts.extend(over_epochs(run, "Information that features of two views share", "nats", &views).map(
        |mut chart| {
            chart.caption =
                "By canonical correlations in the first principal directions, as if features were normally \
                         distributed."
                    .into();
            chart
        },
    ));
    charts.into_iter().map(Chart::from).collect()
}

/// Alignment, entropy and redundancy: how the run trades them.
pub(super) fn plane(runs: &[&Run]) -> Vec<Chart> {
    let trace = |run: &&Run, x: &str, y: &str| {
        let lines = &run.history.measures;
        let points = lines.iter().filter_map(|line| Some([line.get(x)?.as_f64()?, line.get(y)?.as_f64()?]));
        Trace::new(run.name.clone(), points)
    };
    let chart = |title: &str, x: (&str, &str), y: (&str, &str), levels: Vec<Level>| {
        let traces: Vec<_> =
            runs.iter().map(|run| trace(run, x.0, y.0)).filter(|t| !t.points.is_empty()).collect();
        (!traces.is_empty()).then(|| {
            Chart::from(PathChart {
                title: title.into(),
                caption: "From the start of a run (open) to its end (filled).".into(),
                x_label: x.1.into(),
                y_label: y.1.into(),
                traces,
                levels,
                ..PathChart::default()
            })
        })
    };
    let alignment = ("alignment", "distance² of two views of an image (less is more alike)");
    let entropy = ("entropy", "entropy, nats a dimension (more is more spread)");
    let redundancy = ("redundancy", "redundancy, nats a dimension (less is told twice)");
    let most = Level::new("independent dimensions", UNIT_ENTROPY);
    [
        chart("Alignment and entropy", alignment, entropy, vec![most]),
        chart(
            "Alignment and redundancy",
            alignment,
            redundancy,
            vec![Level::new("independent dimensions", 0.0)],
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What the features are like.
pub(super) fn features(run: &Run) -> Vec<Chart> {
    let ranks = [("rank_me", "RankMe"), ("effective_rank", "of the covariance"), ("lidar", "LiDAR")];
    let spread = [("embedding_std", "standard deviation"), ("deviation", "before normalisation")];
    let charts = [
        over_epochs(run, "Dimensions that the features fill", "effective rank", &ranks),
        over_epochs(
            run,
            "Alignment and uniformity",
            "",
            &[("alignment", "alignment"), ("uniformity", "uniformity")],
        ),
        over_epochs(run, "Decay of the spectrum", "alpha", &[("alpha_req", "alpha-ReQ")]).map(|mut chart| {
            chart.levels.push(Level::new("good representations", 1.0));
            chart
        }),
        over_epochs(
            run,
            "Accuracy during the training",
            "top-1",
            &[("knn", "kNN"), ("linear", "linear probe")],
        ),
        over_steps(run, "Spread of the embeddings that the loss compares", "", &spread).map(|mut chart| {
            chart.levels.extend([Level::new("even", 1.0), Level::new("one point", 0.0)]);
            chart
        }),
        over_steps(
            run,
            "Cosines",
            "cosine",
            &[
                ("positive_cosine", "of an image's views"),
                ("negative_cosine", "of other images"),
                ("cosine", "prediction and target"),
            ],
        ),
        over_steps(
            run,
            "Prototypes",
            "number in a batch",
            &[("used_prototypes", "first choice of an image"), ("possible_prototypes", "possible")],
        ),
    ];
    charts.into_iter().flatten().map(Chart::from).collect()
}

/// One measure of several runs.
pub(super) fn compared(runs: &[&Run], title: &str, y_label: &str, name: &str) -> Option<Chart> {
    let series = runs.iter().filter_map(|run| {
        let mut chart = over_epochs(run, title, y_label, &[(name, &run.name)])?;
        chart.series.pop()
    });
    let series: Vec<_> = series.collect();
    (!series.is_empty()).then(|| {
        Chart::from(LineChart {
            title: title.into(),
            x_label: "epoch".into(),
            y_label: y_label.into(),
            series,
            ..LineChart::default()
        })
    })
}

/// The charts of a page with names for files.
pub(super) fn named(page: &Page) -> Vec<(String, &Chart)> {
    let blocks = page.sections.iter().flat_map(|section| &section.blocks);
    let charts =
        blocks.filter_map(|block| if let Block::Charts(charts) = block { Some(charts) } else { None });
    charts.flatten().map(|chart| (file_name(title(chart)), chart)).collect()
}

fn title(chart: &Chart) -> &str {
    match chart {
        Chart::Lines(chart) => &chart.title,
        Chart::Scatter(chart) => &chart.title,
        Chart::Paths(chart) => &chart.title,
        Chart::Bars(chart) => &chart.title,
        Chart::Heat(chart) => &chart.title,
        _ => "chart",
    }
}

fn file_name(title: &str) -> String {
    let words = title.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("-")
}
