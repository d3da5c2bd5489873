//! A page about a run, in one file that needs no network.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::chart::{Chart, STYLE};
use crate::notice::Notice;
use crate::png::Png;
use crate::table::Table;
use crate::text::{inline, paragraphs, without_controls};

/// What a page may load: pictures that are part of it, and itself again. The browser refuses everything else.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'";

/// Images up to this width are enlarged, pixel by pixel.
const SMALL_IMAGE: u32 = 96;

/// A page about a run.
///
/// Every text is plain text; what has a meaning in HTML is shown as it is. In prose, what stands between back quotes is
/// shown as code.
///
/// ```
/// use ssl_report::{Block, Card, Notice, Page, Section, Severity};
///
/// let page = Page {
///     title: "simclr <1>".into(),
///     verdict: Some(Notice::new(Severity::Good, "The encoder learned something", "")),
///     cards: vec![Card::new("kNN", "86.1 %", "raw pixels: 83.2 %")],
///     sections: vec![Section::new("loss", "Loss", vec![Block::Text("It fell.".into())])],
///     ..Page::default()
/// };
/// assert!(page.to_html().contains("simclr &lt;1&gt;"));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// The name of the run.
    pub title: String,
    /// What it was, in a line, or nothing.
    pub subtitle: String,
    /// What came out, in a line.
    pub verdict: Option<Notice>,
    /// Key figures.
    pub cards: Vec<Card>,
    /// The parts of the page.
    pub sections: Vec<Section>,
    /// How all this was measured and made, or nothing. Empty lines separate paragraphs.
    pub footer: String,
    /// After how many seconds the page looks for a newer version of itself, while the run goes on.
    pub refresh_seconds: Option<u32>,
}

/// A key figure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Card {
    /// What it is.
    pub label: String,
    /// The figure with its unit.
    pub value: String,
    /// What to compare it with, or nothing.
    pub note: String,
}

impl Card {
    /// A figure with what it is and what to compare it with.
    #[must_use]
    pub fn new(label: impl Into<String>, value: impl Into<String>, note: impl Into<String>) -> Self {
        Self { label: label.into(), value: value.into(), note: note.into() }
    }
}

/// A part of a page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Section {
    /// Its name in links to it: letters, digits and hyphens. Other characters become hyphens.
    pub id: String,
    /// The heading.
    pub title: String,
    /// What it shows, or nothing. Empty lines separate paragraphs.
    pub intro: String,
    /// What is in it.
    pub blocks: Vec<Block>,
}

impl Section {
    /// A part without an introduction.
    #[must_use]
    pub fn new(id: impl Into<String>, title: impl Into<String>, blocks: Vec<Block>) -> Self {
        Self { id: id.into(), title: title.into(), intro: String::new(), blocks }
    }
}

/// What a section consists of.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Block {
    /// Paragraphs, which empty lines separate.
    Text(String),
    /// Verdicts.
    Notices(Vec<Notice>),
    /// Charts side by side.
    Charts(Vec<Chart>),
    /// A table.
    Table(Table),
    /// Images side by side.
    Gallery(Gallery),
    /// Something to unfold.
    Details(Details),
}

/// Images with captions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gallery {
    /// A sentence on what is shown, or nothing.
    pub caption: String,
    /// The images.
    pub images: Vec<Picture>,
}

/// An image of a [`Gallery`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The image.
    pub png: Png,
    /// What is read below it, and by those who do not see it.
    pub caption: String,
}

/// Something to unfold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// What is read while it is folded.
    pub summary: String,
    /// What is in it.
    pub content: Content,
}

/// The content of [`Details`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// A file, such as the recipe, line by line.
    Code(String),
    /// Names and values, such as facts about the machine.
    Facts(Vec<(String, String)>),
}

impl Page {
    /// The page as an HTML document.
    #[must_use]
    pub fn to_html(&self) -> String {
        let sheets = STYLE.into_iter().chain([include_str!("page.css")]);
        let ids = self.ids();
        let html = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta http-equiv="Content-Security-Policy" content=(POLICY);
                    meta name="color-scheme" content="light dark";
                    @if let Some(seconds) = self.refresh_seconds {
                        noscript { meta http-equiv="refresh" content=(seconds.max(1)); }
                    }
                    link rel="icon" href="data:,";
                    title { (self.title) }
                    style { @for sheet in sheets { (PreEscaped(sheet)) } }
                }
                body data-refresh=[self.refresh_seconds.map(|s| s.max(1))] {
                    (self.render_header())
                    div class="columns" {
                        (self.render_contents(&ids))
                        main { @for (section, id) in self.sections.iter().zip(&ids) { (section.render(id)) } }
                    }
                    @if !self.footer.is_empty() { footer { (paragraphs(&self.footer)) } }
                    script { (PreEscaped(include_str!("page.js"))) }
                }
            }
        };
        without_controls(html.into_string())
    }

    /// An anchor a section, all of them different.
    fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = Vec::new();
        for section in &self.sections {
            let letter = |c: char| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
            let name: String = section.id.chars().map(letter).collect();
            let name = if name.is_empty() { "section".to_owned() } else { name };
            let numbered = (1..).map(|n: usize| if n == 1 { name.clone() } else { format!("{name}-{n}") });
            let id = numbered.into_iter().find(|id| !ids.contains(id)).unwrap_or_default();
            ids.push(id);
        }
        ids
    }

    fn render_header(&self) -> Markup {
        html! {
            header {
                h1 { (self.title) }
                @if !self.subtitle.is_empty() { p class="subtitle" { (inline(&self.subtitle)) } }
                @if let Some(verdict) = &self.verdict { (verdict.render()) }
                @if !self.cards.is_empty() {
                    dl class="cards" {
                        @for card in &self.cards {
                            div class="card" {
                                dt { (inline(&card.label)) }
                                dd class="figure" { (card.value) }
                                @if !card.note.is_empty() { dd class="note" { (inline(&card.note)) } }
                            }
                        }
                    }
                }
            }
        }
    }

    fn render_contents(&self, ids: &[String]) -> Markup {
        html! {
            @if self.sections.len() > 1 {
                nav aria-label="Contents" {
                    ul { @for (section, id) in self.sections.iter().zip(ids) {
                        li { a href={ "#" (id) } { (inline(&section.title)) } }
                    } }
                }
            }
        }
    }
}

impl Section {
    fn render(&self, id: &str) -> Markup {
        html! {
            section id=(id) {
                h2 { (inline(&self.title)) }
                (paragraphs(&self.intro))
                @for block in &self.blocks { (block.render()) }
            }
        }
    }
}

impl Block {
    fn render(&self) -> Markup {
        html! {
            @match self {
                Block::Text(text) => (paragraphs(text)),
                Block::Notices(notices) => @for notice in notices { (notice.render()) },
                Block::Charts(charts) => div class="charts" { @for chart in charts { (chart.render()) } },
                Block::Table(table) => (table.render()),
                Block::Gallery(gallery) => (gallery.render()),
                Block::Details(details) => (details.render()),
            }
        }
    }
}

impl Gallery {
    fn render(&self) -> Markup {
        html! {
            @if !self.caption.is_empty() { p class="gallery-caption" { (inline(&self.caption)) } }
            div class="gallery" {
                @for Picture { png, caption } in &self.images {
                    @let small = png.width() <= SMALL_IMAGE;
                    // As wide as the image, so that a caption does not keep the next image from its side.
                    @let width = (!small).then(|| format!("width:{}px", png.width()));
                    figure class=(if small { "small" } else { "large" }) style=[width] {
                        img src=(png.data_uri()) width=(png.width()) height=(png.height()) alt=(caption);
                        @if !caption.is_empty() { figcaption { (inline(caption)) } }
                    }
                }
            }
        }
    }
}

impl Details {
    fn render(&self) -> Markup {
        html! {
            details {
                summary { (inline(&self.summary)) }
                @match &self.content {
                    // A line break that follows the tag directly is not part of the text.
                    Content::Code(text) => pre tabindex="0" { "\n" (text) },
                    Content::Facts(facts) => dl class="facts" {
                        @for (name, value) in facts { dt { (name) } dd { (value) } }
                    },
                }
            }
        }
    }
}
