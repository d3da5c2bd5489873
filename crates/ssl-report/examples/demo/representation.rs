//! What the made-up run learned.

use ssl_report::{
    BarChart, Bars, Block, Class, Heatmap, Level, PathChart, Result, Scale, ScatterChart, Section, Trace,
};

use crate::noise::Noise;

const CLASSES: [&str; 10] =
    ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

pub(crate) fn representation() -> Result<Section> {
    let mut noise = Noise::new(3);
    let mut class = |n: usize| {
        let (sin, cos) = (n as f64 * 2.4).sin_cos();
        let reach = (n as f64 + 1.0).sqrt() * 2.2;
        let points =
            (0..70).map(|_| [reach * cos + 0.8 * noise.normal(), reach * sin + 0.8 * noise.normal()]);
        Class::new(CLASSES[n], points.collect::<Vec<_>>())
    };
    let map = ScatterChart {
        title: "Embeddings in the plane".into(),
        caption: "The first two principal components of 700 test images.".into(),
        classes: (0..10).map(&mut class).collect(),
        ..ScatterChart::default()
    };
    let eigenvalue = |scale: f64| move |n: i32| (-(f64::from(n) / scale).powf(0.8)).exp();
    let spectrum = BarChart {
        title: "Spectrum".into(),
        caption: "Eigenvalues of the covariance of the embeddings, relative to the largest.".into(),
        x_label: "rank".into(),
        y_scale: Scale::Log,
        bars: vec![Bars::new("", (0..64).map(eigenvalue(9.0)))],
        ..BarChart::default()
    };
    let path = |speed: f64, end: f64| {
        (0..60).map(move |n| f64::from(n) / 60.0).map(move |t| {
            let x = 2.0 + 6.0 * t.powf(speed) - 2.2 * (t - 0.4).max(0.0);
            [x, end * (1.0 - (-4.0 * t).exp())]
        })
    };
    let plane = PathChart {
        title: "Information plane".into(),
        caption: "Lower bounds over the course of training.".into(),
        x_label: "I(X; Z) in nats".into(),
        y_label: "I(Z; Y) in nats".into(),
        traces: vec![
            Trace::new("simclr", path(0.6, 2.1)),
            Trace::new("vicreg", path(0.9, 1.9)),
            Trace::new("mae", path(1.4, 1.4)),
        ],
        levels: vec![Level::new("H(Y) = ln 10", 10_f64.ln())],
        ..PathChart::default()
    };
    let confusion = |n: usize| {
        let (row, column) = (n / 10, n % 10);
        let alike = [0, 2, 3, 4, 6].contains(&row) && [0, 2, 3, 4, 6].contains(&column);
        if row == column {
            0.8 + 0.02 * (row % 7) as f64
        } else if alike {
            0.05
        } else {
            0.003
        }
    };
    let names = || CLASSES.map(String::from).to_vec();
    let mut confusions =
        Heatmap::new("Confusions of kNN", names(), names(), (0..100).map(confusion).collect())?;
    confusions.caption = "Rows are true classes, columns predicted ones.".into();
    let charts = vec![map.into(), plane.into(), spectrum.into(), confusions.into()];
    Ok(Section::new("representation", "Representation", vec![Block::Charts(charts)]))
}
