//! Plain text in a page.

use maud::{Markup, html};

/// Text in which what stands between two back quotes is code.
pub(crate) fn inline(text: &str) -> Markup {
    let parts: Vec<&str> = text.split('`').collect();
    let last = parts.len() - 1;
    html! {
        @for (n, part) in parts.into_iter().enumerate() {
            @if n % 2 == 0 { (part) }
            // A back quote without a second one is a back quote.
            @else if n == last { "`" (part) }
            @else { code { (part) } }
        }
    }
}

/// Paragraphs, which empty lines separate.
pub(crate) fn paragraphs(text: &str) -> Markup {
    html! {
        @for paragraph in text.split("\n\n").map(str::trim).filter(|p| !p.is_empty()) {
            p { (inline(paragraph)) }
        }
    }
}

/// The first letters of a text that is too long.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// A document without the characters that neither HTML nor XML may contain.
pub(crate) fn without_controls(text: String) -> String {
    let refused =
        |c: char| (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{fffe}' | '\u{ffff}');
    if text.contains(refused) { text.replace(refused, "\u{fffd}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_quotes_are_code_in_pairs() {
        assert_eq!(inline("set `a.b` to 1").into_string(), "set <code>a.b</code> to 1");
        assert_eq!(inline("a ` b").into_string(), "a ` b");
        assert_eq!(inline("").into_string(), "");
        assert_eq!(paragraphs("a\n\n\n\nb < c").into_string(), "<p>a</p><p>b &lt; c</p>");
    }

    #[test]
    fn characters_that_documents_may_not_contain_are_replaced() {
        assert_eq!(shortened("pullover", 5), "pull…");
        assert_eq!(without_controls("a\u{0}b\u{1b}\n".to_owned()), "a\u{fffd}b\u{fffd}\n");
    }
}
