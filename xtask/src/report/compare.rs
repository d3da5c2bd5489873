//! The page of several runs.

use ssl_vision::report::{Best, Block, Cell, Column, Notice, Page, Section, Severity, Table};

use super::charts;
use super::run::Run;

/// Accuracies and measures side by side, and how each run trades alignment for entropy.
pub(super) fn of(runs: &[Run]) -> Page {
    let all: Vec<&Run> = runs.iter().collect();
    let over_time = [
        ("Dimensions that the features fill", "RankMe", "rank_me"),
        ("Alignment", "distance² of two views", "alignment"),
        ("Entropy", "nats a dimension", "entropy"),
        ("Redundancy", "nats a dimension", "redundancy"),
        ("Information that features of two views share", "nats", "view_information"),
        ("kNN during the training", "top-1", "knn"),
    ];
    let over_time =
        over_time.iter().filter_map(|(title, label, name)| charts::compared(&all, title, label, name));
    let over_time: Vec<_> = over_time.collect();
    let planes = charts::plane(&all);
    let ill: Vec<_> =
        runs.iter().filter(|run| run.verdicts.iter().any(|verdict| !verdict.recovered)).collect();
    let verdict = match &ill[..] {
        [] => Notice::new(Severity::Good, "All runs are in good health", ""),
        some => {
            let names: Vec<_> = some.iter().map(|run| run.name.as_str()).collect();
            Notice::new(Severity::Warning, "The doctor has seen something", names.join(", "))
        }
    };
    let mut sections = vec![Section::new("results", "Results", vec![Block::Table(table(runs))])];
    if !planes.is_empty() {
        sections.push(Section {
            intro: "Measured on features of the encoders, the same way for every method.".into(),
            ..Section::new("plane", "How methods trade alignment for entropy", vec![Block::Charts(planes)])
        });
    }
    if !over_time.is_empty() {
        sections.push(Section::new("measures", "Measures over the training", vec![Block::Charts(over_time)]));
    }
    let notices: Vec<_> = runs.iter().flat_map(notices).collect();
    if !notices.is_empty() {
        sections.push(Section::new("doctor", "The doctor", vec![Block::Notices(notices)]));
    }
    Page {
        title: format!("{} runs", runs.len()),
        subtitle: runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(", "),
        verdict: Some(verdict),
        sections,
        footer: format!("Made by ssl-vision {}.", env!("CARGO_PKG_VERSION")),
        ..Page::default()
    }
}

fn notices(run: &Run) -> Vec<Notice> {
    let severity = |recovered| if recovered { Severity::Good } else { Severity::Bad };
    let notice = |verdict: &ssl_vision::train::Verdict| {
        Notice::new(severity(verdict.recovered), run.name.clone(), verdict.to_string())
    };
    run.verdicts.iter().map(notice).collect()
}

fn table(runs: &[Run]) -> Table {
    let percent = |value: Option<f64>| value.map_or(Cell::text("–"), |value| Cell::percent(value, 1));
    let number =
        |value: Option<f64>, digits| value.map_or(Cell::text("–"), |value| Cell::number(value, digits));
    let row = |run: &Run| {
        vec![
            Cell::text(run.name.clone()),
            Cell::text(run.recipe.method.name()),
            percent(run.number("/knn/top1").or(run.last_measure("knn"))),
            percent(run.number("/linear/top1").or(run.last_measure("linear"))),
            percent(run.number("/baselines/untrained/knn")),
            number(run.last_measure("alignment"), 3),
            number(run.last_measure("entropy"), 2),
            number(run.last_measure("redundancy"), 2),
            number(run.last_measure("rank_me"), 1),
            number(run.last_measure("lidar"), 1),
            number(run.number("/seconds"), 0),
        ]
    };
    Table {
        caption: "Accuracies on the test images; measures after the last epoch.".into(),
        columns: vec![
            Column::text("run"),
            Column::text("method"),
            Column::number("kNN", Best::Highest),
            Column::number("linear", Best::Highest),
            Column::number("untrained kNN", Best::None),
            Column::number("alignment", Best::Lowest),
            Column::number("entropy", Best::Highest),
            Column::number("redundancy", Best::Lowest),
            Column::number("RankMe", Best::None),
            Column::number("LiDAR", Best::None),
            Column::number("seconds", Best::None),
        ],
        rows: runs.iter().map(row).collect(),
    }
}
