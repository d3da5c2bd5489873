//! Files that give images captions.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

#[cfg(feature = "parquet")]
use crate::parquet_captions;
use crate::{Error, Limits, Result, delimited};

/// A file with a caption for each image of a folder: `.csv`, `.tsv` or `.jsonl`, and with the feature `parquet` `.parquet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptionFile {
    /// The file.
    pub path: PathBuf,
    /// The column, or the key of each object, with the paths of the images from the folder of the data on.
    pub file_column: String,
    /// The column, or the key of each object, with the captions.
    pub caption_column: String,
}

/// Captions by the paths of images, with `/` between their parts.
#[derive(Debug)]
pub(crate) struct Captions {
    path: PathBuf,
    /// What its rows are called.
    unit: &'static str,
    rows: BTreeMap<Vec<u8>, (usize, Arc<str>)>,
}

/// The number of a line or row, the path of an image, and its caption.
pub(crate) type Row = (usize, String, String);

impl Captions {
    /// Reads `file`.
    pub(crate) fn read(file: &CaptionFile, limits: &Limits) -> Result<Self> {
        let path = &file.path;
        let refuse = |reason: String| Error::malformed(path, reason);
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let limit = limits.max_file_bytes;
        let rows = match extension.as_str() {
            "csv" => columns(&text(path, limit)?, ',', file),
            "tsv" => columns(&text(path, limit)?, '\t', file),
            "jsonl" => objects(&text(path, limit)?, file),
            #[cfg(feature = "parquet")]
            "parquet" => parquet_captions::rows(file, limit),
            #[cfg(not(feature = "parquet"))]
            "parquet" => Err("captions in .parquet are read with the feature `parquet`".to_owned()),
            _ => Err("captions are read from .csv, .tsv, .jsonl and .parquet".to_owned()),
        };
        let unit = if extension == "parquet" { "row" } else { "line" };
        let mut captions = Self { path: path.clone(), unit, rows: BTreeMap::new() };
        for (line, image, caption) in rows.map_err(refuse)? {
            if caption.trim().is_empty() {
                return Err(refuse(format!("{unit} {line}: the caption of {image:?} is empty")));
            }
            let key = image.strip_prefix("./").unwrap_or(&image).as_bytes().to_vec();
            if let Some((first, _)) = captions.rows.insert(key, (line, caption.into())) {
                let reason = format!("{unit} {line}: {image:?} has a caption already, in {unit} {first}");
                return Err(refuse(reason));
            }
        }
        Ok(captions)
    }

    /// The captions of `images`, in that order. No caption may be left but those of `others`.
    pub(crate) fn of_images(&self, images: &[Vec<u8>], others: &[Vec<u8>]) -> Result<Vec<Arc<str>>> {
        let refuse = |reason: String| Err(Error::malformed(&self.path, reason));
        let missing: Vec<_> = images.iter().filter(|image| !self.rows.contains_key(*image)).collect();
        if let Some(first) = missing.first() {
            let first = String::from_utf8_lossy(first);
            let n = missing.len();
            return refuse(format!(
                "{n} of {} images have no caption in it; the first: {first:?}",
                images.len()
            ));
        }
        let known: std::collections::BTreeSet<_> = images.iter().chain(others).collect();
        let stray = self.rows.iter().filter(|(image, _)| !known.contains(image));
        if let Some((image, (line, _))) = stray.min_by_key(|(_, (line, _))| *line) {
            let image = String::from_utf8_lossy(image);
            return refuse(format!("{} {line}: there is no image {image:?} in the folder", self.unit));
        }
        Ok(images
            .iter()
            .filter_map(|image| self.rows.get(image))
            .map(|(_, caption)| caption.clone())
            .collect())
    }
}

fn text(path: &Path, max_bytes: u64) -> Result<String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    let read = file.take(max_bytes.saturating_add(1)).read_to_string(&mut text);
    read.map_err(|error| Error::malformed(path, format!("no text in UTF-8: {error}")))?;
    match text.len() as u64 > max_bytes {
        true => Err(Error::malformed(path, format!("it is larger than the limit of {max_bytes} bytes"))),
        false => Ok(text),
    }
}

fn columns(text: &str, delimiter: char, file: &CaptionFile) -> std::result::Result<Vec<Row>, String> {
    let mut records = delimited::records(text, delimiter)?.into_iter();
    let (line, names) = records.next().ok_or("it is empty, expected a line with the names of the columns")?;
    let column = |wanted: &str| {
        let found = names.iter().position(|name| name.trim() == wanted);
        found.ok_or_else(|| format!("line {line}: there is no column {wanted:?}, only {}", names.join(", ")))
    };
    let (image, caption) = (column(&file.file_column)?, column(&file.caption_column)?);
    let row = |(line, mut fields): delimited::Record| match fields.len() == names.len() {
        true => Ok((line, std::mem::take(&mut fields[image]), std::mem::take(&mut fields[caption]))),
        false => {
            Err(format!("line {line}: {} fields, expected {} as in its first", fields.len(), names.len()))
        }
    };
    records.map(row).collect()
}

fn objects(text: &str, file: &CaptionFile) -> std::result::Result<Vec<Row>, String> {
    let lines = text.lines().zip(1..).filter(|(text, _)| !text.trim().is_empty());
    let row = |(text, line): (&str, usize)| {
        let object: Value = serde_json::from_str(text).map_err(|e| format!("line {line}: not JSON: {e}"))?;
        let field = |key: &str| match object.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("line {line}: {key:?} is {other}, expected a text")),
            None => Err(format!("line {line}: there is no {key:?}")),
        };
        Ok((line, field(&file.file_column)?, field(&file.caption_column)?))
    };
    lines.map(row).collect()
}
