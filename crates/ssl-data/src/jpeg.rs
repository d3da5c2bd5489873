//! What the markers of a JPEG file say (ITU-T T.81, annex B).

/// The markers that open a segment, start or end the image, up to the first place where the chain breaks.
///
/// Segments are skipped by their length, so nothing inside of one is taken for a marker: an EXIF thumbnail is a
/// JPEG file of its own.
#[derive(Clone, Debug)]
pub(crate) struct Markers<'a> {
    bytes: &'a [u8],
    at: usize,
}

const START_OF_PROGRESSIVE_FRAME: u8 = 0xc2;
const START_OF_IMAGE: u8 = 0xd8;
const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;

/// Whether the image ends where it should.
pub(crate) fn has_end(bytes: &[u8]) -> bool {
    Markers { bytes, at: 0 }.any(|marker| marker == END_OF_IMAGE)
}

/// Whether decoding keeps the coefficients of the whole image.
pub(crate) fn is_progressive(bytes: &[u8]) -> bool {
    let mut header = Markers { bytes, at: 0 }.take_while(|&marker| marker != START_OF_SCAN);
    header.any(|marker| marker == START_OF_PROGRESSIVE_FRAME)
}

impl Iterator for Markers<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        loop {
            self.at += self.bytes.get(self.at..)?.iter().position(|&byte| byte == 0xff)? + 1;
            match *self.bytes.get(self.at)? {
                // A stuffed zero, TEM or a restart within the coded data.
                0x00 | 0x01 | 0xd0..=0xd7 => self.at += 1,
                // A fill byte: the marker may begin here.
                0xff => {}
                marker @ (START_OF_IMAGE | END_OF_IMAGE) => {
                    self.at += 1;
                    return Some(marker);
                }
                marker => {
                    let length = self.bytes.get(self.at + 1..self.at + 3)?;
                    self.at += 1 + usize::from(length[0]) * 256 + usize::from(length[1]);
                    return Some(marker);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start, an application segment that holds a whole small JPEG, a frame, coded data with a stuffed zero and a
    /// restart, a fill byte, end.
    const FILE: [u8; 27] = [
        0xff, 0xd8, 0xff, 0xe1, 0x00, 0x06, 0xff, 0xd8, 0xff, 0xd9, 0xff, 0xc2, 0x00, 0x03, 0x08, 0xff, 0xda,
        0x00, 0x02, 0x17, 0xff, 0x00, 0xff, 0xd3, 0xff, 0xff, 0xd9,
    ];

    #[test]
    fn segments_are_skipped_and_coded_data_is_searched() {
        let markers: Vec<u8> = Markers { bytes: &FILE, at: 0 }.collect();
        assert_eq!(markers, [0xd8, 0xe1, 0xc2, 0xda, 0xd9]);
        assert!(is_progressive(&FILE));
    }

    #[test]
    fn only_the_whole_file_has_an_end() {
        assert!(has_end(&FILE));
        for cut in 0..FILE.len() {
            assert!(!has_end(&FILE[..cut]), "{cut}");
        }
    }
}
