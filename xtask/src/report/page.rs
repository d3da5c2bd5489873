//! The page of one run.

use ssl_vision::report::{
    Best, Block, Card, Cell, Column, Content, Details, Notice, Page, Section, Severity, Table, decimals,
    percent,
};
use ssl_vision::train::Verdict;

use super::charts;
use super::run::Run;

/// Of a run that is not known to have ended.
const UNFINISHED: &str = "The run has not ended, or was not evaluated.";

/// The page of `run`, with the sections `pictures` of what its network makes of images.
pub(super) fn of(run: &Run, pictures: Vec<Section>) -> Page {
    let mut sections =
        vec![doctor(run), Section::new("training", "Training", vec![Block::Charts(charts::training(run))])];
    sections.push(Section {
        intro: "What two views of an image tell of each other, or a part of it of the rest, as far as the loss shows it. A \
                bound cannot exceed the logarithm of the number of candidates: near that ceiling it says nothing more."
            .into(),
        ..charts_section("information", "Information", charts::information(run))
    });
    sections.push(Section {
        intro: "All methods make views of an image alike while something keeps images apart. Measured on features of the \
                encoder, the same way for every method: the distance of two views, the entropy of all features, and what \
                their dimensions tell twice."
            .into(),
        ..charts_section("plane", "How the run trades alignment for entropy", charts::plane(&[run]))
    });
    sections.push(charts_section("features", "Features", charts::features(run)));
    sections.extend(pictures);
    sections.extend(evaluation(run));
    sections.push(record(run));
    sections.retain(|section| !section.blocks.is_empty());
    Page {
        title: run.name.clone(),
        subtitle: subtitle(run),
        verdict: Some(verdict(run)),
        cards: cards(run),
        sections,
        footer: footer(run),
        refresh_seconds: None,
    }
}

fn charts_section(id: &str, title: &str, charts: Vec<ssl_vision::report::Chart>) -> Section {
    let blocks = if charts.is_empty() { Vec::new() } else { vec![Block::Charts(charts)] };
    Section::new(id, title, blocks)
}

fn subtitle(run: &Run) -> String {
    let recipe = &run.recipe;
    let images = run.number("/dataset/train_images").map_or(String::new(), |n| format!(" of {n:.0} images"));
    let total = run.total_steps().map_or(String::new(), |total| format!(" of {total}"));
    format!(
        "{} with {} on {}: step {}{total}, {} epochs{images}",
        recipe.method.name(),
        recipe.backbone.name,
        recipe.data.path,
        run.steps(),
        recipe.train.epochs
    )
}

fn verdict(run: &Run) -> Notice {
    let open = run.verdicts.iter().filter(|verdict| !verdict.recovered && !is_over(run, verdict));
    match open.min_by_key(|verdict| verdict.symptom) {
        Some(verdict) => Notice::new(
            Severity::Bad,
            format!("The doctor sees: {}", verdict.symptom.name()),
            verdict.to_string(),
        ),
        None => {
            let gain = run.number("/knn/top1").zip(run.number("/baselines/untrained/knn"));
            match gain {
                Some((own, untrained)) if own > untrained => Notice::new(
                    Severity::Good,
                    "The encoder has learned, in good health",
                    format!(
                        "kNN is {} points above the same network untrained.",
                        decimals(100.0 * (own - untrained), 1)
                    ),
                ),
                Some((own, untrained)) => Notice::new(
                    Severity::Warning,
                    "The encoder is no better than the same network untrained",
                    format!("kNN is {} points below it.", decimals(100.0 * (untrained - own), 1)),
                ),
                None => Notice::new(Severity::Note, "No sign of a collapse so far", UNFINISHED),
            }
        }
    }
}

fn is_over(run: &Run, verdict: &Verdict) -> bool {
    run.verdicts.iter().any(|other| other.recovered && other.symptom == verdict.symptom)
}

fn cards(run: &Run) -> Vec<Card> {
    let mut cards = Vec::new();
    for (label, pointer, kind) in [("kNN", "/knn/top1", "knn"), ("linear probe", "/linear/top1", "linear")] {
        let baseline =
            |name: &str| run.number(&format!("/baselines/{name}/{kind}")).map(|value| percent(value, 1));
        if let Some(value) = run.number(pointer) {
            let note = baseline("untrained").zip(baseline("pixels"));
            let note = note.map_or(String::new(), |(u, p)| format!("untrained {u}, raw pixels {p}"));
            cards.push(Card::new(label, percent(value, 1), note));
        }
    }
    if let Some(rank) = run.last_measure("rank_me") {
        let first = run.history.measure("rank_me").next().map_or(rank, |(_, first)| first);
        cards.push(Card::new("RankMe", decimals(rank, 1), format!("{} at the start", decimals(first, 1))));
    }
    let bound = run.last_metric("mi_lower_bound").zip(run.last_metric("mi_ceiling"));
    let bound =
        bound.or(run.last_metric("prediction_information").zip(run.last_metric("prediction_ceiling")));
    if let Some((nats, ceiling)) = bound {
        let note = format!("of at most {} nats", decimals(ceiling, 2));
        cards.push(Card::new("information", decimals(nats, 2), note));
    }
    if let Some(bits) = run.last_metric("bits_per_dimension") {
        cards.push(Card::new("information", decimals(bits, 2), "bits a hidden value"));
    }
    if let Some(speed) = run.number("/images_per_second") {
        let seconds = run.number("/seconds").unwrap_or_default();
        let threads = run.number("/threads").unwrap_or_default();
        cards.push(Card::new(
            "images a second",
            decimals(speed, 0),
            format!("{seconds:.0} s on {threads:.0} threads"),
        ));
    }
    if cards.is_empty() {
        cards.extend(
            run.last_metric("loss").map(|loss| Card::new("loss", decimals(loss, 3), "at the last step")),
        );
    }
    cards
}

fn doctor(run: &Run) -> Section {
    let notices = run.verdicts.iter().map(|verdict| {
        let severity = if verdict.recovered { Severity::Good } else { Severity::Bad };
        Notice::new(
            severity,
            format!("{}, step {}", verdict.symptom.name(), verdict.step),
            verdict.to_string(),
        )
    });
    let mut notices: Vec<_> = notices.collect();
    if notices.is_empty() {
        let what = "no collapse, no dead prototypes, no loss at its value for a network that knows nothing, no explosion, no \
                    falling rank";
        notices.push(Notice::new(
            Severity::Good,
            "Nothing to say",
            format!("In {} steps: {what}.", run.steps()),
        ));
    }
    Section::new("doctor", "The doctor", vec![Block::Notices(notices)])
}

fn evaluation(run: &Run) -> Option<Section> {
    run.number("/knn/top1")?;
    let row = |name: &str, knn: &str, linear: &str| {
        let cell =
            |pointer: &str| run.number(pointer).map_or(Cell::text("–"), |value| Cell::percent(value, 1));
        vec![Cell::text(name), cell(knn), cell(linear)]
    };
    let mut rows = vec![
        row("trained encoder", "/knn/top1", "/linear/top1"),
        row("the same network untrained", "/baselines/untrained/knn", "/baselines/untrained/linear"),
        row("raw pixels", "/baselines/pixels/knn", "/baselines/pixels/linear"),
    ];
    if let Some(zero_shot) = run.number("/zero_shot/top1") {
        rows.push(vec![Cell::text("zero-shot, by texts"), Cell::percent(zero_shot, 1), Cell::text("–")]);
    }
    let table = Table {
        caption: "Top-1 accuracy on the test images.".into(),
        columns: vec![
            Column::text("features"),
            Column::number("kNN", Best::Highest),
            Column::number("linear probe", Best::Highest),
        ],
        rows,
    };
    Some(Section::new("evaluation", "Evaluation", vec![Block::Table(table)]))
}

/// The recipe and the facts of the machine.
fn record(run: &Run) -> Section {
    let mut blocks = vec![];
    if let Ok(text) = run.recipe.to_toml() {
        blocks.push(Block::Details(Details { summary: "recipe.toml".into(), content: Content::Code(text) }));
    }
    let mut facts = vec![("processor".to_owned(), crate::machine::cpu())];
    for (name, pointer, unit) in [
        ("threads", "/threads", ""),
        ("peak memory", "/peak_rss_bytes", " MiB"),
        ("time waited for images", "/wait_share", " %"),
        ("time spent on measures", "/measure_share", " %"),
        ("test images", "/dataset/test_images", ""),
        ("broken images", "/dataset/broken_images", ""),
    ] {
        if let Some(value) = run.number(pointer) {
            let value = match unit {
                " MiB" => decimals(value / 1_048_576.0, 0),
                " %" => decimals(100.0 * value, 1),
                _ => decimals(value, 0),
            };
            facts.push((name.to_owned(), format!("{value}{unit}")));
        }
    }
    for (name, pointer) in
        [("data", "/dataset/fingerprint"), ("recipe's hash", "/recipe_hash"), ("version", "/version")]
    {
        let text = run.result.as_ref().and_then(|result| result.pointer(pointer)?.as_str());
        facts.extend(text.map(|text| (name.to_owned(), text.to_owned())));
    }
    blocks.push(Block::Details(Details { summary: "System".into(), content: Content::Facts(facts) }));
    Section::new("record", "Recipe and system", blocks)
}

fn footer(run: &Run) -> String {
    let protocol =
        |name: &str| run.result.as_ref().and_then(|r| r.pointer(&format!("/protocol/{name}"))?.as_str());
    let how = match (protocol("features"), protocol("linear")) {
        (Some(features), Some(linear)) => format!(
            "Features: {features}. kNN: cosine, k = {}, temperature {}. Linear probe: {linear}. Weights of the last step.",
            run.recipe.eval.knn_k, run.recipe.eval.knn_temperature
        ),
        _ => UNFINISHED.to_owned(),
    };
    let measured = format!(
        "Measures: {} images with {} views each, in evaluation mode, every {} epochs.",
        run.recipe.measure.images, run.recipe.measure.views, run.recipe.measure.every_epochs
    );
    format!("{how} {measured}\n\nMade by ssl-vision {}.", env!("CARGO_PKG_VERSION"))
}
