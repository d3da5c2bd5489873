//! What a reader must know at once.

use maud::{Markup, html};

use crate::text::inline;

/// How grave something is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// All is well.
    Good,
    /// Worth knowing.
    #[default]
    Note,
    /// Worth looking at.
    Warning,
    /// The result cannot be trusted, or there is none.
    Bad,
}

impl Severity {
    /// The class in the style sheet.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Severity::Good => "good",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Bad => "bad",
        }
    }

    /// A sign for those who see no colours.
    pub(crate) fn sign(self) -> &'static str {
        match self {
            Severity::Good => "✓",
            Severity::Note => "i",
            Severity::Warning => "!",
            Severity::Bad => "×",
        }
    }
}

/// A verdict with its reason.
///
/// ```
/// use ssl_report::{Notice, Severity};
///
/// let notice = Notice::new(Severity::Bad, "The embeddings have collapsed", "Try a lower `optimizer.lr`.");
/// assert_eq!(notice.severity, Severity::Bad);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notice {
    /// How grave it is.
    pub severity: Severity,
    /// The verdict in a few words.
    pub title: String,
    /// Why, and what to do, or nothing. What stands between back quotes is shown as code.
    pub text: String,
}

impl Notice {
    /// A verdict with its reason.
    #[must_use]
    pub fn new(severity: Severity, title: impl Into<String>, text: impl Into<String>) -> Self {
        Self { severity, title: title.into(), text: text.into() }
    }

    pub(crate) fn render(&self) -> Markup {
        html! {
            div class={ "notice " (self.severity.class()) } {
                span class="sign" role="img" aria-label=(self.severity.class()) { (self.severity.sign()) }
                div {
                    strong { (inline(&self.title)) }
                    @if !self.text.is_empty() { p { (inline(&self.text)) } }
                }
            }
        }
    }
}
