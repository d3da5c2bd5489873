//! Event files of TensorBoard: records with checksums (TensorFlow's TFRecord) around messages of protocol buffers.
//!
//! The messages are those of `tensorflow/core/util/event.proto` and `framework/summary.proto`, of which scalars, images
//! and texts are written.

use std::io::{self, Write};

use crate::png::Png;

/// The version that stands in the first record.
const VERSION: &str = "brain.Event:2";

/// The number of `DT_STRING` in `types.proto`.
const STRING_TYPE: u64 = 7;

/// Writes an event file.
///
/// The clock is the caller's: `wall_time` is in seconds since 1970.
///
/// ```
/// use ssl_report::EventWriter;
///
/// let mut file = Vec::new();
/// let mut writer = EventWriter::new(&mut file, 1.7e9)?;
/// writer.scalars(1.7e9, 0, &[("loss", 8.3), ("learning rate", 0.1)])?;
/// writer.text(1.7e9, 0, "recipe", "epochs = 10")?;
/// writer.flush()?;
/// // Twelve bytes of the record and nine of the time stand before the version.
/// assert_eq!(file[21..36], *b"\x1a\x0dbrain.Event:2");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct EventWriter<W> {
    inner: W,
}

impl<W: Write> EventWriter<W> {
    /// Begins a file with its version.
    ///
    /// # Errors
    /// If `inner` refuses the bytes.
    pub fn new(inner: W, wall_time: f64) -> io::Result<Self> {
        let mut writer = Self { inner };
        // The time is field 1 of an event, the version field 3.
        let event = Message::default().double(1, wall_time).bytes(3, VERSION.as_bytes());
        writer.record(&event)?;
        Ok(writer)
    }

    /// Writes numbers of a step, each with its tag. They are kept in single precision, as TensorBoard does.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalars(&mut self, wall_time: f64, step: u64, scalars: &[(&str, f64)]) -> io::Result<()> {
        let value = |(tag, number): &(&str, f64)| {
            // A number beyond the range of single precision becomes an infinity.
            Message::default().bytes(1, tag.as_bytes()).float(2, *number as f32)
        };
        self.event(wall_time, step, scalars.iter().map(value))
    }

    /// Writes an image of a step.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn image(&mut self, wall_time: f64, step: u64, tag: &str, png: &Png) -> io::Result<()> {
        let image = Message::default()
            .integer(1, png.height().into())
            .integer(2, png.width().into())
            // Three channels: red, green, blue.
            .integer(3, 3)
            .bytes(4, png.bytes());
        self.event(wall_time, step, [Message::default().bytes(1, tag.as_bytes()).message(4, &image)])
    }

    /// Writes a text of a step, which TensorBoard reads as Markdown.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn text(&mut self, wall_time: f64, step: u64, tag: &str, text: &str) -> io::Result<()> {
        let plugin = Message::default().bytes(1, b"text");
        let metadata = Message::default().message(1, &plugin);
        // A tensor without dimensions, whose only element is the text.
        let shape = Message::default();
        let tensor = Message::default().integer(1, STRING_TYPE).message(2, &shape).bytes(8, text.as_bytes());
        let value = Message::default().bytes(1, tag.as_bytes()).message(9, &metadata).message(8, &tensor);
        self.event(wall_time, step, [value])
    }

    /// Hands all records on to where they are written.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    /// What the records were written to.
    pub fn into_inner(self) -> W {
        self.inner
    }

    fn event(&mut self, time: f64, step: u64, values: impl IntoIterator<Item = Message>) -> io::Result<()> {
        let summary = values.into_iter().fold(Message::default(), |summary, v| summary.message(1, &v));
        self.record(&Message::default().double(1, time).integer(2, step).message(5, &summary))
    }

    /// Length, its checksum, the message, its checksum.
    fn record(&mut self, message: &Message) -> io::Result<()> {
        let Message(data) = message;
        let length = (data.len() as u64).to_le_bytes();
        let parts = [&length, &masked_crc(&length).to_le_bytes()[..], data, &masked_crc(data).to_le_bytes()];
        // In one piece, so that a reader at the same time finds whole records where the system allows it.
        self.inner.write_all(&parts.concat())
    }
}

/// The name by which TensorBoard finds an event file: the second in which it was begun, and the machine or anything else
/// that tells it from others of that second.
///
/// ```
/// assert_eq!(ssl_report::event_file_name(1_700_000_000, "run-1"), "events.out.tfevents.1700000000.run-1");
/// ```
#[must_use]
pub fn event_file_name(seconds: u64, suffix: &str) -> String {
    format!("events.out.tfevents.{seconds:010}.{suffix}")
}

/// A message of protocol buffers, field after field.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn double(self, field: u64, value: f64) -> Self {
        self.key(field, 1).raw(&value.to_le_bytes())
    }

    fn float(self, field: u64, value: f32) -> Self {
        self.key(field, 5).raw(&value.to_le_bytes())
    }

    fn integer(self, field: u64, value: u64) -> Self {
        self.key(field, 0).varint(value)
    }

    fn bytes(self, field: u64, bytes: &[u8]) -> Self {
        self.key(field, 2).varint(bytes.len() as u64).raw(bytes)
    }

    fn message(self, field: u64, message: &Message) -> Self {
        self.bytes(field, &message.0)
    }

    fn key(self, field: u64, wire_type: u64) -> Self {
        self.varint(field << 3 | wire_type)
    }

    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// The checksum of a record: CRC-32C, turned and shifted so that checksums of checksums are no trouble.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), byte by byte.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| CRC_TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8);
    !bytes.iter().fold(!0, step)
}

/// The remainders of all bytes.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of a message: its number, and its bits or bytes.
    #[derive(Debug, Clone, PartialEq)]
    enum Field {
        Bits(u64, u64),
        Bytes(u64, Vec<u8>),
    }

    fn take_varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }

    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(n);
        *bytes = rest;
        taken
    }

    fn fields(mut bytes: &[u8]) -> Vec<Field> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = take_varint(&mut bytes);
            let field = key >> 3;
            fields.push(match key & 7 {
                0 => Field::Bits(field, take_varint(&mut bytes)),
                1 => Field::Bits(field, u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
                2 => {
                    let length = take_varint(&mut bytes) as usize;
                    Field::Bytes(field, take(&mut bytes, length).to_vec())
                }
                5 => Field::Bits(field, u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap()).into()),
                other => panic!("no wire type {other}"),
            });
        }
        fields
    }

    fn nested(message: &[u8], path: &[u64]) -> Vec<Field> {
        path.iter().fold(fields(message), |found, number| {
            let inner = found.iter().find_map(|f| match f {
                Field::Bytes(n, bytes) if n == number => Some(fields(bytes)),
                _ => None,
            });
            inner.unwrap()
        })
    }

    /// The messages of a file, after their checksums were compared.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !file.is_empty() {
            let head = take(&mut file, 8);
            assert_eq!(take(&mut file, 4), masked_crc(head).to_le_bytes());
            let data = take(&mut file, u64::from_le_bytes(head.try_into().unwrap()) as usize);
            assert_eq!(take(&mut file, 4), masked_crc(data).to_le_bytes());
            records.push(data.to_vec());
        }
        records
    }

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn a_file_begins_with_time_and_version() {
        let file = EventWriter::new(Vec::new(), 12.5).unwrap().into_inner();
        // The first twelve bytes are those of every event file of TensorFlow: length 24 and its checksum.
        assert_eq!(file[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
        let expected = [Field::Bits(1, 12.5_f64.to_bits()), Field::Bytes(3, VERSION.as_bytes().to_vec())];
        assert_eq!(fields(&records(&file)[0]), expected);
    }

    #[test]
    fn scalars_of_a_step_are_one_event() {
        let mut writer = EventWriter::new(Vec::new(), 1.0).unwrap();
        writer.scalars(2.0, 300, &[("loss", 0.5), ("nan", f64::NAN)]).unwrap();
        let records = records(&writer.into_inner());
        assert_eq!(fields(&records[1])[..2], [Field::Bits(1, 2.0_f64.to_bits()), Field::Bits(2, 300)]);
        let values = nested(&records[1], &[5]);
        assert_eq!(values.len(), 2);
        let Field::Bytes(1, loss) = &values[0] else { panic!("{values:?}") };
        let expected = [Field::Bytes(1, b"loss".to_vec()), Field::Bits(2, 0.5_f32.to_bits().into())];
        assert_eq!(fields(loss), expected);
    }

    #[test]
    fn texts_and_images_say_what_they_are() {
        let png = [b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", &[0, 0, 1, 0, 0, 0, 0, 9][..]].concat();
        let mut writer = EventWriter::new(Vec::new(), 1.0).unwrap();
        writer.text(2.0, 1, "recipe", "a = 1").unwrap();
        writer.image(3.0, 2, "views", &Png::new(png.clone()).unwrap()).unwrap();
        let records = records(&writer.into_inner());
        assert_eq!(nested(&records[1], &[5, 1, 9, 1]), [Field::Bytes(1, b"text".to_vec())]);
        assert_eq!(
            nested(&records[1], &[5, 1, 8]),
            [Field::Bits(1, 7), Field::Bytes(2, vec![]), Field::Bytes(8, b"a = 1".to_vec())]
        );
        let size = [Field::Bits(1, 9), Field::Bits(2, 256), Field::Bits(3, 3), Field::Bytes(4, png)];
        assert_eq!(nested(&records[2], &[5, 1, 4]), size);
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut room = [0_u8; 50];
        let mut writer = EventWriter::new(&mut room[..], 1.0).unwrap();
        let error = writer.scalars(2.0, 1, &[("loss", 1.0)]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }
}
