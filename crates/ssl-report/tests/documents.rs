//! Pages and pictures as a browser gets them: well formed, escaped, with nothing to load, whatever the numbers.

#![allow(clippy::unwrap_used, clippy::panic)]

use ssl_report::{
    BarChart, Bars, Best, Block, Card, Cell, Chart, Class, Column, Content, Details, Direction, Gallery,
    Heatmap, Level, LineChart, Mark, Notice, Page, PathChart, Picture, Png, Scale, ScatterChart, Section,
    Series, Severity, Table, Trace,
};

/// Text that would do harm if it were taken for HTML.
const EVIL: &str = "<script>alert('1')</script> \"&amp;\" ]]> --> \u{0} </style>";

const VOID: [&str; 3] = ["meta", "link", "img"];

/// The tags of a document and their attributes, in order; fails if they are not nested or not quoted.
fn tags(document: &str) -> Vec<(String, Vec<(String, String)>)> {
    let (mut rest, mut open, mut found) = (document, Vec::new(), Vec::new());
    while let Some(start) = rest.find('<') {
        assert!(!rest[..start].contains('>'), "a stray > before {}", &rest[start..]);
        rest = &rest[start + 1..];
        if let Some(name) = rest.strip_prefix('/') {
            let end = name.find('>').unwrap();
            assert_eq!(open.pop().as_deref(), Some(&name[..end]));
            rest = &name[end + 1..];
            continue;
        }
        let name_end = rest.find(|c: char| !c.is_alphanumeric()).unwrap();
        let name = rest[..name_end].to_owned();
        if rest.starts_with("!DOCTYPE") {
            rest = &rest[rest.find('>').unwrap() + 1..];
            continue;
        }
        let (attributes, after) = attributes(&rest[name_end..]);
        rest = after;
        if ["script", "style"].contains(&name.as_str()) {
            rest = &rest[rest.find(&format!("</{name}>")).unwrap()..];
        }
        if !VOID.contains(&name.as_str()) {
            open.push(name.clone());
        }
        found.push((name, attributes));
    }
    assert_eq!(open, Vec::<String>::new());
    found
}

/// Quoted attributes up to the end of a tag, and what follows it.
fn attributes(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        if let Some(after) = rest.strip_prefix('>') {
            return (found, after);
        }
        let (name, after) = rest.strip_prefix(' ').unwrap().split_once("=\"").unwrap();
        assert!(name.chars().all(|c| c.is_alphanumeric() || c == '-'), "{name}");
        let (value, after) = after.split_once('"').unwrap();
        assert!(!value.contains(['<', '>']), "{value}");
        assert!(!found.iter().any(|(n, _)| n == name), "{name} twice");
        found.push((name.to_owned(), value.to_owned()));
        rest = after;
    }
}

/// Fails if a coordinate is not a number.
fn check_coordinates(tags: &[(String, Vec<(String, String)>)]) {
    let places = ["d", "x", "y", "width", "height", "viewBox", "transform", "fill-opacity"];
    for (name, value) in tags.iter().flat_map(|(_, attributes)| attributes) {
        let bad = ["NaN", "inf", "∞"].iter().any(|word| value.contains(word));
        assert!(!places.contains(&name.as_str()) || !bad, "{name}={value}");
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{n} {EVIL}")).collect()
}

/// Every kind of chart of the same numbers.
fn charts(numbers: &[f64], scale: Scale) -> Vec<Chart> {
    let points = || numbers.iter().enumerate().map(|(n, y)| (n as f64, *y));
    let pairs = || numbers.iter().flat_map(|x| numbers.iter().map(|y| [*x, *y]));
    let gaps = points().map(|(x, y)| (x, (x != 1.0).then_some(y)));
    let (title, caption) = (EVIL.to_owned(), EVIL.to_owned());
    let label = || EVIL.to_owned();
    let lines = LineChart {
        title: title.clone(),
        caption: caption.clone(),
        x_label: label(),
        y_label: label(),
        y_scale: scale,
        series: vec![Series::new(EVIL, points()).smoothed(3), Series::with_gaps(EVIL, gaps)],
        levels: numbers.iter().map(|y| Level::new(EVIL, *y)).collect(),
        marks: numbers.iter().map(|x| Mark::new(EVIL, *x, Severity::Bad)).collect(),
        schedule: Some(Series::new(EVIL, points())),
        ..LineChart::default()
    };
    let cut = LineChart { y_range: numbers.first().map(|y| [*y, 1.0]), x_scale: scale, ..lines.clone() };
    let bars = BarChart {
        title: title.clone(),
        y_scale: scale,
        bars: vec![
            Bars::new(EVIL, numbers.iter().copied()),
            Bars::with_errors(EVIL, numbers.iter().map(|y| (*y, *y))),
        ],
        levels: vec![Level::new(EVIL, 1.0)],
        ..BarChart::default()
    };
    let lying = BarChart { direction: Direction::Lying, labels: names(numbers.len()), ..bars.clone() };
    let classes = vec![Class { titles: vec![label()], ..Class::new(EVIL, pairs()) }];
    let scatter = ScatterChart { title: title.clone(), classes, ..ScatterChart::default() };
    let marked = ScatterChart { x_label: label(), ..scatter.clone() };
    let traces = vec![Trace::new(EVIL, pairs())];
    let paths = PathChart { title, caption, x_scale: scale, y_scale: scale, traces, ..PathChart::default() };
    let heat = Heatmap::new(EVIL, names(1), names(numbers.len()), numbers.to_vec()).unwrap();
    vec![
        lines.into(),
        cut.into(),
        bars.into(),
        lying.into(),
        scatter.into(),
        marked.into(),
        paths.into(),
        heat.into(),
    ]
}

fn png() -> Png {
    let bytes = [&b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"[..], &[0, 0, 0, 9, 0, 0, 0, 9]].concat();
    Png::new(bytes).unwrap()
}

/// A page with everything that a page can have.
fn page() -> Page {
    let text = || EVIL.to_owned();
    let table = Table {
        caption: text(),
        columns: vec![Column::text(EVIL), Column::number(EVIL, Best::Highest)],
        rows: vec![vec![Cell::text(EVIL), Cell::number(1.0, 2)], vec![]],
    };
    let facts = Content::Facts(vec![(text(), text())]);
    let blocks = vec![
        Block::Text(text()),
        Block::Notices(vec![Notice::new(Severity::Warning, EVIL, EVIL)]),
        Block::Charts(charts(&[1.0, 2.0, f64::NAN], Scale::Linear)),
        Block::Table(table),
        Block::Gallery(Gallery { caption: text(), images: vec![Picture { png: png(), caption: text() }] }),
        Block::Details(Details { summary: text(), content: Content::Code(text()) }),
        Block::Details(Details { summary: text(), content: facts }),
    ];
    Page {
        title: text(),
        subtitle: text(),
        verdict: Some(Notice::new(Severity::Bad, EVIL, EVIL)),
        cards: vec![Card::new(EVIL, EVIL, EVIL)],
        sections: vec![Section { intro: text(), ..Section::new(EVIL, EVIL, blocks) }],
        footer: text(),
        refresh_seconds: Some(0),
    }
}

#[test]
fn a_page_is_well_formed_and_runs_no_script_but_its_own() {
    let html = page().to_html();
    let tags = tags(&html);
    check_coordinates(&tags);
    assert_eq!(tags.iter().filter(|(name, _)| name == "script").count(), 1);
    assert!(html.contains("&lt;script&gt;alert('1')&lt;/script&gt;"));
    assert!(!html.contains("<script>alert") && !html.contains('\0'));
    let attributes = tags.iter().flat_map(|(_, attributes)| attributes);
    assert!(attributes.clone().all(|(name, _)| !name.starts_with("on")));
}

#[test]
fn a_page_loads_nothing() {
    let html = page().to_html();
    assert!(
        !html.contains("http://")
            && !html.contains("https://")
            && !html.contains("url(")
            && !html.contains("@import")
    );
    for (name, value) in tags(&html).iter().flat_map(|(_, attributes)| attributes) {
        let loads = ["src", "href", "srcset", "action", "data"].contains(&name.as_str());
        assert!(!loads || value.starts_with("data:") || value.starts_with('#'), "{name}={value}");
    }
}

#[test]
fn every_section_has_an_anchor_of_its_own() {
    let sections = ["loss", "loss", "a b/ü", ""].map(|id| Section::new(id, id, vec![])).to_vec();
    let html = Page { sections, ..Page::default() }.to_html();
    let tags = tags(&html);
    let values = |tag: &str, attribute: &str| -> Vec<String> {
        let of_tag = tags.iter().filter(|(name, _)| name == tag).flat_map(|(_, attributes)| attributes);
        of_tag.filter(|(name, _)| name == attribute).map(|(_, value)| value.clone()).collect()
    };
    let ids = values("section", "id");
    assert_eq!(ids, ["loss", "loss-2", "a-b-ü", "section"]);
    assert_eq!(values("a", "href"), ids.iter().map(|id| format!("#{id}")).collect::<Vec<_>>());
}

#[test]
fn charts_stand_whatever_the_numbers() {
    let odd = [
        &[][..],
        &[0.0],
        &[0.5],
        &[-1.0, -1.0, -1.0],
        &[f64::NAN, f64::NAN],
        &[0.0, 1e-3, 0.0, 10.0, -5.0],
        &[1.0, f64::INFINITY, 2.0, f64::NEG_INFINITY, 3.0],
        &[f64::MAX, f64::MIN, 0.0, 5e-324, f64::MIN_POSITIVE],
    ];
    for (numbers, scale) in odd.into_iter().flat_map(|n| [(n, Scale::Linear), (n, Scale::Log)]) {
        let charts = charts(numbers, scale);
        for chart in &charts {
            let svg = chart.to_svg();
            let tags = tags(&svg);
            check_coordinates(&tags);
            assert!(tags[0].1.iter().any(|(name, value)| name == "role" && value == "img"));
            assert!(tags[0].1.iter().any(|(name, value)| name == "aria-label" && value.contains("script")));
        }
        let sections = vec![Section::new("charts", "Charts", vec![Block::Charts(charts)])];
        check_coordinates(&tags(&Page { sections, ..Page::default() }.to_html()));
    }
}

#[test]
fn what_has_no_place_is_marked_and_what_is_missing_is_a_gap() {
    let svg = |values: &[Option<f64>], y_scale| {
        let points = values.iter().enumerate().map(|(n, y)| (n as f64, *y));
        let series = vec![Series::with_gaps("loss", points)];
        Chart::from(LineChart { series, y_scale, ..LineChart::default() }).to_svg()
    };
    let parts = |svg: &str| {
        let line = svg.split("<path class=\"line s0\" d=\"").nth(2).unwrap().split('"').next().unwrap();
        line.matches('M').count()
    };
    let whole = svg(&[Some(1.0), Some(2.0), Some(3.0)], Scale::Linear);
    assert_eq!((parts(&whole), whole.matches("class=\"odd\"").count()), (1, 0));
    let gap = svg(&[Some(1.0), None, Some(3.0)], Scale::Linear);
    assert_eq!((parts(&gap), gap.matches("class=\"odd\"").count()), (2, 0));
    // One mark in the legend and one at the edge.
    let nan = svg(&[Some(1.0), Some(f64::NAN), Some(3.0)], Scale::Linear);
    assert_eq!((parts(&nan), nan.matches("class=\"odd\"").count()), (2, 2));
    assert!(nan.contains("loss: NaN at 1"));
    let zero = svg(&[Some(1.0), Some(0.0), Some(3.0)], Scale::Log);
    assert_eq!((parts(&zero), zero.matches("class=\"odd\"").count()), (2, 2));
}

#[test]
fn a_long_run_has_a_short_chart_with_its_peak() {
    let value = |n: u32| if n == 54_321 { 99.5 } else { f64::from(n % 7) };
    let series = vec![Series::new("loss", (0..200_000).map(|n| (f64::from(n), value(n))))];
    let chart = Chart::from(LineChart { x_label: "step".into(), series, ..LineChart::default() });
    let sections = vec![Section::new("loss", "Loss", vec![Block::Charts(vec![chart])])];
    let html = Page { sections, ..Page::default() }.to_html();
    assert!(html.len() < 100_000, "{}", html.len());
    assert!(html.contains("54,321") && html.contains("99.5"));
}

#[test]
fn equal_numbers_give_equal_bytes() {
    assert_eq!(page().to_html(), page().to_html());
}
