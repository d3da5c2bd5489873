//! Whether an image file is all there.
//!
//! Decoders accept some files that end too early: the JPEG decoder fills the rest with grey, the PNG decoder
//! needs no end marker. A training set should not contain half images, so the end is looked for here.

use image::ImageFormat;

use crate::jpeg;

/// What is missing at the end of `bytes`, a file of the given format, or `None` if it is complete.
pub(crate) fn missing_end(format: ImageFormat, bytes: &[u8]) -> Option<&'static str> {
    match format {
        ImageFormat::Jpeg if !jpeg::has_end(bytes) => Some("no end-of-image marker"),
        ImageFormat::Png if !png_has_end(bytes) => Some("no IEND chunk"),
        ImageFormat::WebP if !webp_has_end(bytes) => Some("shorter than its RIFF header says"),
        _ => None,
    }
}

/// Follows the chunks (length, type, data, checksum) to a whole IEND.
fn png_has_end(bytes: &[u8]) -> bool {
    const SIGNATURE_BYTES: usize = 8;
    let mut rest = bytes.get(SIGNATURE_BYTES..).unwrap_or_default();
    while let [a, b, c, d, kind @ ..] = rest {
        let chunk_bytes = 12 + u64::from(u32::from_be_bytes([*a, *b, *c, *d]));
        let Ok(chunk_bytes) = usize::try_from(chunk_bytes) else { return false };
        if rest.len() < chunk_bytes {
            return false;
        }
        if kind.starts_with(b"IEND") {
            return true;
        }
        rest = &rest[chunk_bytes..];
    }
    false
}

/// Compares the size in the RIFF header, which counts from its 8th byte, with the file.
fn webp_has_end(bytes: &[u8]) -> bool {
    match bytes.get(4..8) {
        Some(&[a, b, c, d]) => 8 + u64::from(u32::from_le_bytes([a, b, c, d])) <= bytes.len() as u64,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x01tEXt!crc!\0\0\0\0IENDcrc!";
    const WEBP: &[u8] = b"RIFF\x05\0\0\0WEBP!";

    #[test]
    fn whole_files_lack_nothing() {
        assert_eq!(missing_end(ImageFormat::Png, PNG), None);
        assert_eq!(missing_end(ImageFormat::WebP, WEBP), None);
    }

    #[test]
    fn every_shorter_file_lacks_its_end() {
        for (format, file) in [(ImageFormat::Png, PNG), (ImageFormat::WebP, WEBP)] {
            for cut in 0..file.len() {
                assert!(missing_end(format, &file[..cut]).is_some(), "{format:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn bytes_behind_the_end_do_no_harm() {
        assert_eq!(missing_end(ImageFormat::Png, &[PNG, b"more"].concat()), None);
        assert_eq!(missing_end(ImageFormat::WebP, &[WEBP, b"more"].concat()), None);
    }

    #[test]
    fn a_chunk_of_four_gibibytes_is_no_overflow() {
        assert!(missing_end(ImageFormat::Png, b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIDAT").is_some());
    }
}
