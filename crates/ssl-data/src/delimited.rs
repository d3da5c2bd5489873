//! Text in columns: comma- and tab-separated values, as RFC 4180 and spreadsheets write them.

/// A record: the line on which it begins, counted from 1, and its fields.
pub(crate) type Record = (usize, Vec<String>);

/// The records of `text`; blank lines are none.
///
/// A field in double quotes may hold delimiters, line ends, and quotes as two of them.
///
/// # Errors
/// Names the line on which a quoted field has no end, or goes on behind it.
pub(crate) fn records(text: &str, delimiter: char) -> Result<Vec<Record>, String> {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    let (mut records, mut line) = (Vec::new(), 1);
    while rest.peek().is_some() {
        let (first, mut fields) = (line, Vec::new());
        loop {
            let mut field = String::new();
            if rest.next_if_eq(&'"').is_some() {
                let begin = line;
                loop {
                    match rest.next() {
                        Some('"') if rest.next_if_eq(&'"').is_none() => break,
                        Some(c) => {
                            line += usize::from(c == '\n');
                            field.push(c);
                        }
                        None => return Err(format!("line {begin}: a field in quotes has no end")),
                    }
                }
                let next = rest.peek().copied();
                if !next.is_none_or(|c| c == delimiter || c == '\r' || c == '\n') {
                    return Err(format!("line {line}: the field {field:?} goes on behind its quotes"));
                }
            }
            while let Some(c) = rest.next_if(|c| *c != delimiter && *c != '\r' && *c != '\n') {
                field.push(c);
            }
            fields.push(field);
            if rest.next_if_eq(&delimiter).is_none() {
                break;
            }
        }
        rest.next_if_eq(&'\r');
        rest.next_if_eq(&'\n');
        line += 1;
        if fields.iter().any(|field| !field.is_empty()) {
            records.push((first, fields));
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<(usize, Vec<String>)> {
        records(text, ',').unwrap()
    }

    #[test]
    fn quotes_hold_delimiters_line_ends_and_quotes() {
        let found = fields("\u{feff}a,b\r\n\"1,5\",\"two\nlines\"\n\n\"say \"\"hi\"\"\", x ");
        let expected = [
            (1, vec!["a".to_owned(), "b".to_owned()]),
            (2, vec!["1,5".to_owned(), "two\nlines".to_owned()]),
            (5, vec!["say \"hi\"".to_owned(), " x ".to_owned()]),
        ];
        assert_eq!(found, expected);
        assert_eq!(records("a,b\tc", '\t').unwrap()[0].1, ["a,b", "c"]);
    }

    #[test]
    fn empty_fields_are_fields_and_blank_lines_nothing() {
        assert_eq!(fields("a,,\n,\n\r\n"), [(1, vec!["a".to_owned(), String::new(), String::new()])]);
        assert_eq!(fields(""), []);
        assert_eq!(fields("x\ry"), [(1, vec!["x".to_owned()]), (2, vec!["y".to_owned()])]);
    }

    #[test]
    fn broken_quotes_are_named_by_their_line() {
        assert_eq!(records("a\n\"b\nc", ',').unwrap_err(), "line 2: a field in quotes has no end");
        let error = records("a\n\"b\nc\"d", ',').unwrap_err();
        assert_eq!(error, "line 3: the field \"b\\nc\" goes on behind its quotes");
    }
}
