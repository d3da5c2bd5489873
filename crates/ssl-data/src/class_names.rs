//! Files that name classes, one a line.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use crate::{Error, Result};

/// More than any list of class names; a file that is larger is something else.
const MAX_BYTES: u64 = 1 << 20;

/// The class names in `path`, or the numbers from 0 to `default_count - 1` if there is no such file.
///
/// Blank lines at the end are ignored, as the lists that come with CIFAR have them.
pub(crate) fn read_or_number(path: &Path, default_count: usize) -> Result<Vec<String>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((0..default_count).map(|label| label.to_string()).collect());
        }
        Err(error) => return Err(Error::io(path, error)),
    };
    let mut text = String::new();
    let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
    read.map_err(|error| Error::malformed(path, format!("no text in UTF-8: {error}")))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(Error::malformed(path, format!("more than {MAX_BYTES} bytes of class names")));
    }
    let names: Vec<String> = text.trim_end().lines().map(|line| line.trim().to_owned()).collect();
    if names.is_empty() {
        return Err(Error::malformed(path, "no class name in it, expected one a line"));
    }
    match names.iter().position(String::is_empty) {
        Some(line) => {
            Err(Error::malformed(path, format!("line {} is blank, expected a class name", line + 1)))
        }
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("class_names.txt");
        fs::write(&path, content).unwrap();
        read_or_number(&path, 2)
    }

    #[test]
    fn names_are_trimmed_lines() {
        assert_eq!(read(b"T-shirt/top\r\nAnkle boot \n\n\n").unwrap(), ["T-shirt/top", "Ankle boot"]);
    }

    #[test]
    fn without_a_file_classes_are_numbers() {
        assert_eq!(read_or_number(Path::new("/nonexistent/names.txt"), 3).unwrap(), ["0", "1", "2"]);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for (content, expected) in
            [(&b"\n \n"[..], "no class name"), (b"a\n\nb", "line 2 is blank"), (b"\xff\xfe", "UTF-8")]
        {
            let message = read(content).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("class_names.txt"), "{message}");
        }
    }
}
