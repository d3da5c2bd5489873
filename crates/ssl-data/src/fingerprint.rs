//! A short name for what a data set contains.

use sha2::{Digest, Sha256};

/// Accumulates parts, each with its length, so that no two lists of parts collide by concatenation.
pub(crate) struct Fingerprint(Sha256);

impl Fingerprint {
    pub(crate) fn new(kind: &str) -> Self {
        let mut fingerprint = Fingerprint(Sha256::new());
        fingerprint.add(kind.as_bytes());
        fingerprint
    }

    pub(crate) fn add(&mut self, part: &[u8]) {
        self.add_number(part.len() as u64);
        self.0.update(part);
    }

    pub(crate) fn add_number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    /// The first 64 bits in hexadecimal.
    pub(crate) fn finish(self) -> String {
        self.0.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&[u8]]) -> String {
        let mut fingerprint = Fingerprint::new("test");
        parts.iter().for_each(|part| fingerprint.add(part));
        fingerprint.finish()
    }

    #[test]
    fn is_the_head_of_a_sha256_over_lengths_and_parts() {
        // printf '\4\0\0\0\0\0\0\0test\1\0\0\0\0\0\0\0a' | sha256sum
        assert_eq!(of(&[b"a"]), "cf55473b4f991834");
    }

    #[test]
    fn depends_on_where_parts_begin() {
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
    }
}
