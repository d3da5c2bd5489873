//! Writes a page about a made-up run, so that its look can be judged:
//! `cargo run -p ssl-report --example demo -- page.html [chart.svg] [events]`.

// An example speaks to whoever runs it.
#![allow(clippy::print_stdout)]

mod noise;
mod picture;

use std::{env, fs, io};

use noise::Noise;
use ssl_report::{
    BarChart, Bars, Best, Block, Card, Cell, Chart, Class, Column, Content, Details, Direction, EventWriter,
    Gallery, Heatmap, Level, LineChart, Mark, Notice, Page, PathChart, Picture, Png, Scale, ScatterChart,
    Section, Series, Severity, Table, Trace,
};

const STEPS: usize = 3900;
const EPOCHS: usize = 25;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<String> = env::args().skip(1).collect();
    let [page, others @ ..] = &paths[..] else {
        return Err("give the path of the page, and perhaps of a chart and of an event file".into());
    };
    fs::write(page, demo()?.to_html())?;
    println!("wrote {page}");
    if let Some(chart) = others.first() {
        fs::write(chart, loss_chart().to_svg())?;
        println!("wrote {chart}");
    }
    if let Some(events) = others.get(1) {
        write_events(fs::File::create(events)?)?;
        println!("wrote {events}");
    }
    Ok(())
}

fn demo() -> ssl_report::Result<Page> {
    Ok(Page {
        title: "simclr-fashion-mnist-03".into(),
        subtitle: "SimCLR on ResNet-18 (CIFAR stem, width 32), 10,000 images of Fashion-MNIST, 25 epochs, seed 0".into(),
        verdict: Some(Notice::new(
            Severity::Good,
            "The encoder learned something",
            "kNN is 3.4 points above raw pixels and 8.0 above the same network untrained; the embeddings use many directions.",
        )),
        cards: vec![
            Card::new("kNN accuracy", "86.1 %", "raw pixels: 83.2 %"),
            Card::new("Linear probe", "88.4 %", "untrained: 84.9 %"),
            Card::new("Loss", "5.07", "chance: ln 511 = 6.24"),
            Card::new("Effective rank", "41.7", "of 256 dimensions"),
            Card::new("Time", "6 min 12 s", "630 images a second"),
        ],
        sections: vec![verdicts(), training(), evaluation(), representation()?, images()?, made()],
        footer: "kNN: k = 20, T = 0.07, cosine. Linear probe: logistic regression on frozen, standardised features. 2000 test images, standard error about 0.8 points.\n\nMade-up numbers; written by the example `demo` of ssl-report.".into(),
        refresh_seconds: None,
    })
}

fn verdicts() -> Section {
    let notices = vec![
        Notice::new(
            Severity::Good,
            "No collapse",
            "The mean deviation of the normalised embeddings is 0.058, of at most 0.0625 in 256 dimensions.",
        ),
        Notice::new(
            Severity::Note,
            "The positives are nearly solved",
            "The mean similarity of two views is 0.94. A smaller `augment.crop_scale` makes the task harder.",
        ),
        Notice::new(
            Severity::Warning,
            "The training waits for images",
            "31 % of the time went to the loader. Set `data.cache_mib`, or give it a third thread with `loader.threads`.",
        ),
        Notice::new(
            Severity::Bad,
            "Three steps had a gradient that is not finite",
            "Steps 1204 to 1206; the scale of the loss was lowered and the steps were skipped.",
        ),
    ];
    Section::new("verdicts", "What the doctor says", vec![Block::Notices(notices)])
}

fn steps() -> impl Iterator<Item = f64> {
    (0..STEPS).map(|step| step as f64)
}

fn loss_chart() -> Chart {
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

fn rate(step: f64) -> f64 {
    let warm = STEPS as f64 / 10.0;
    let left = (STEPS as f64 - step) / (STEPS as f64 - warm);
    if step < warm { step / warm } else { 0.5 - 0.5 * (std::f64::consts::PI * left).cos() }
}

fn training() -> Section {
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

fn evaluation() -> Section {
    let row = |name: &str, knn: f64, probe: f64, loss: f64, seconds: f64| {
        vec![
            Cell::text(name),
            Cell::percent(knn, 1),
            Cell::percent(probe, 1),
            Cell::number(loss, 3),
            Cell::number(seconds, 0),
        ]
    };
    let table = Table {
        caption: "Top-1 accuracy on 2000 test images.".into(),
        columns: vec![
            Column::text("encoder"),
            Column::number("kNN", Best::Highest),
            Column::number("linear probe", Best::Highest),
            Column::number("loss of the probe", Best::Lowest),
            Column::number("seconds", Best::None),
        ],
        rows: vec![
            row("this run", 0.861, 0.884, 0.331, 372.0),
            row("`simclr-fashion-mnist-02`, the best so far", 0.857, 0.886, 0.334, 1371.0),
            row("untrained network", 0.781, 0.849, 0.441, 0.0),
            row("raw pixels", 0.832, 0.855, 0.418, 0.0),
        ],
    };
    let methods = ["simclr", "byol", "vicreg", "barlow_twins", "dino", "mae", "untrained", "raw pixels"];
    let accuracies = [
        (0.861, 0.004),
        (0.851, 0.006),
        (0.846, 0.003),
        (0.853, 0.005),
        (0.842, 0.008),
        (0.822, 0.006),
        (0.781, 0.0),
        (0.832, 0.0),
    ];
    let probes = [0.884, 0.879, 0.871, 0.877, 0.868, 0.866, 0.849, 0.855].map(|p| (p, 0.003));
    let bars = BarChart {
        title: "Methods side by side".into(),
        caption: "Mean and standard deviation of three seeds.".into(),
        y_label: "accuracy".into(),
        y_range: Some([0.7, 0.9]),
        direction: Direction::Lying,
        labels: methods.map(String::from).to_vec(),
        bars: vec![Bars::with_errors("kNN", accuracies), Bars::with_errors("linear probe", probes)],
        ..BarChart::default()
    };
    Section::new("evaluation", "Evaluation", vec![Block::Table(table), Block::Charts(vec![bars.into()])])
}

const CLASSES: [&str; 10] =
    ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

fn representation() -> ssl_report::Result<Section> {
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

fn images() -> ssl_report::Result<Section> {
    let picture = |n: usize| -> ssl_report::Result<Picture> {
        let png = Png::new(picture::png(28, 28, |x, y| picture::blob(n, x, y)))?;
        Ok(Picture { png, caption: format!("view {} of image {}", n % 2 + 1, n / 2 + 1) })
    };
    let views = (0..8).map(picture).collect::<ssl_report::Result<Vec<_>>>()?;
    let wide =
        Png::new(picture::png(640, 120, |x, y| picture::blob(x / 80, x % 80 * 28 / 80, y * 28 / 120)))?;
    let attention =
        vec![Picture { png: wide, caption: "What the heads of the last block attend to.".into() }];
    Ok(Section::new(
        "images",
        "Images",
        vec![
            Block::Gallery(Gallery {
                caption: "Two augmented views of four images, as the network sees them.".into(),
                images: views,
            }),
            Block::Gallery(Gallery { caption: String::new(), images: attention }),
        ],
    ))
}

fn made() -> Section {
    let recipe = "[method]\nname = \"simclr\"\ntemperature = 0.5\n\n[optimizer]\nname = \"lars\"\nlr = 0.6\n\n[augment]\npreset = \"simclr\"  # a line that is rather long, in order to see that it scrolls in its own box and not the page with it\n";
    let facts = [
        ("version", "0.1.0"),
        ("processor", "2 threads"),
        ("data", "sha256 3f9a0c…"),
        ("peak memory", "612 MiB"),
    ];
    let facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let details = |summary: &str, content| Block::Details(Details { summary: summary.into(), content });
    let blocks =
        vec![details("Recipe", Content::Code(recipe.into())), details("System", Content::Facts(facts))];
    Section::new("made", "How it was made", blocks)
}

fn write_events(file: fs::File) -> Result<(), Box<dyn std::error::Error>> {
    let mut writer = EventWriter::new(io::BufWriter::new(file), 1.7e9)?;
    let mut noise = Noise::new(4);
    for step in 0..100_u32 {
        let loss = 5.0 + (-f64::from(step) / 30.0).exp() + 0.02 * noise.normal();
        writer.scalars(
            1.7e9 + f64::from(step),
            step.into(),
            &[("loss", loss), ("lr", rate(f64::from(step)))],
        )?;
    }
    writer.text(1.7e9, 0, "recipe", "`method.name = simclr`")?;
    writer.image(1.7e9, 0, "views", &Png::new(picture::png(28, 28, |x, y| picture::blob(1, x, y)))?)?;
    Ok(writer.flush()?)
}
