//! Captions from two columns of a Parquet file.

use std::fs::File;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use crate::captions::{CaptionFile, Row};

/// The rows of `file`, counted from 1; texts of more than `max_bytes` together are refused.
pub(crate) fn rows(file: &CaptionFile, max_bytes: u64) -> Result<Vec<Row>, String> {
    let broken = |error: ParquetError| format!("no Parquet file that can be read: {error}");
    let reader = File::open(&file.path).map_err(|error| error.to_string())?;
    let length = reader.metadata().map_err(|error| error.to_string())?.len();
    let reader = SerializedFileReader::new(reader).map_err(broken)?;
    in_file(reader.metadata(), length)?;
    let schema = reader.metadata().file_metadata().schema();
    let names = [&file.file_column, &file.caption_column];
    let columns = names.map(|name| column(schema, name));
    let [images, captions] = columns;
    // A column may serve for both.
    let mut wanted = vec![images?];
    let captions = captions?;
    if !Arc::ptr_eq(&wanted[0], &captions) {
        wanted.push(captions);
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(wanted).build().map_err(broken)?;
    let (mut rows, mut bytes) = (Vec::new(), 0u64);
    for (row, line) in reader.get_row_iter(Some(projection)).map_err(broken)?.zip(1..) {
        let row = row.map_err(broken)?;
        let text = |name: &str| match row.get_column_iter().find(|(own, _)| *own == name) {
            Some((_, Field::Str(text))) => Ok(text.clone()),
            Some((_, other)) => Err(format!("row {line}: {name:?} is {other}, expected a text")),
            None => Err(format!("row {line}: there is no {name:?}")),
        };
        let (image, caption) = (text(names[0])?, text(names[1])?);
        bytes = bytes.saturating_add((image.len() + caption.len()) as u64);
        if bytes > max_bytes {
            return Err(format!("its texts are larger than the limit of {max_bytes} bytes"));
        }
        rows.push((line, image, caption));
    }
    Ok(rows)
}

/// Refuses columns outside of a file of `length` bytes, at which the reader would panic.
fn in_file(metadata: &ParquetMetaData, length: u64) -> Result<(), String> {
    let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
    for column in columns {
        let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let end = start.checked_add(column.compressed_size());
        if start < 0 || column.compressed_size() < 0 || end.is_none_or(|end| end as u64 > length) {
            return Err(format!(
                "no Parquet file that can be read: its column {} has {} bytes at {start}, of {length}",
                column.column_path(),
                column.compressed_size()
            ));
        }
    }
    Ok(())
}

/// The column `name` of the file, which must be one of texts.
fn column(schema: &Type, name: &str) -> Result<Arc<Type>, String> {
    let fields = if schema.is_group() { schema.get_fields() } else { &[] };
    let all = || fields.iter().map(|field| field.name()).collect::<Vec<_>>().join(", ");
    let found = fields.iter().find(|field| field.name() == name);
    let found = found.ok_or_else(|| format!("there is no column {name:?}, only {}", all()))?;
    match found.is_primitive() {
        true => Ok(found.clone()),
        false => Err(format!("the column {name:?} is nested, expected texts")),
    }
}
