//! PNG files as part of a page.

use crate::error::{Error, Result};

/// The bytes that every PNG file begins with, and the chunk that comes first.
const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
const HEADER: [u8; 4] = *b"IHDR";

/// An image as the bytes of a PNG file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Png {
    bytes: Vec<u8>,
    width: u32,
    height: u32,
}

impl Png {
    /// The bytes of a PNG file, of which only the header is read.
    ///
    /// # Errors
    /// If there is no header of a PNG file, or a side is zero.
    ///
    /// ```
    /// use ssl_report::Png;
    ///
    /// assert!(Png::new(b"GIF89a".to_vec()).unwrap_err().to_string().contains("not a PNG file"));
    /// ```
    pub fn new(bytes: Vec<u8>) -> Result<Self> {
        let refuse = |reason| Error::Png { bytes: bytes.len(), reason };
        if !bytes.starts_with(&SIGNATURE) {
            return Err(refuse("it does not begin with the signature"));
        }
        if bytes.get(12..16) != Some(&HEADER[..]) {
            return Err(refuse("the header is missing"));
        }
        let side = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
        let (Some(width), Some(height)) = (side(16), side(20)) else {
            return Err(refuse("the header is cut off"));
        };
        if width == 0 || height == 0 {
            return Err(refuse("a side is zero"));
        }
        Ok(Self { bytes, width, height })
    }

    /// The bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The width in pixels.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// The height in pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    pub(crate) fn data_uri(&self) -> String {
        format!("data:image/png;base64,{}", base64(&self.bytes))
    }
}

/// Bytes as letters (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |n: usize| u32::from(group.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * n) & 63) as usize];
            text.push(if n > group.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let vectors = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (n, text) in vectors.into_iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..n]), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn damaged_headers_are_refused() {
        let whole = [&SIGNATURE[..], &[0, 0, 0, 13], &HEADER, &[0, 0, 0, 28, 0, 0, 0, 30]].concat();
        let png = Png::new(whole.clone()).unwrap();
        assert_eq!((png.width(), png.height()), (28, 30));
        for length in 0..whole.len() {
            assert!(Png::new(whole[..length].to_vec()).is_err(), "{length}");
        }
        let mut empty = whole;
        empty[19] = 0;
        let error = Png::new(empty).unwrap_err().to_string();
        assert_eq!(error, "the image of 24 bytes is not a PNG file: a side is zero");
    }
}
