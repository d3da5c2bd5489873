//! Writes a page about a made-up run, so that its look can be judged:
//! `cargo run -p ssl-report --example demo -- page.html [chart.svg] [events]`.

// An example speaks to whoever runs it.
#![allow(clippy::print_stdout)]

mod noise;
mod picture;
mod representation;
mod training;

use std::{env, fs, io};

use noise::Noise;
use representation::representation;
use ssl_report::{
    BarChart, Bars, Best, Block, Card, Cell, Column, Content, Details, Direction, EventWriter, Gallery,
    Notice, Page, Picture, Png, Section, Severity, Table,
};
use training::{loss_chart, rate, training};

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
