//! The byte-pair encoding of CLIP (Radford et al., 2021, <https://arxiv.org/abs/2103.00020>; official code openai/CLIP),
//! after Sennrich et al., 2016, <https://arxiv.org/abs/1508.07909>.

use std::io::Read;

use flate2::read::GzDecoder;
use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::normalizers::{Lowercase, NFC, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Splitters;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use crate::error::{Error, Result};

const MERGES: &[u8] = include_bytes!("../vocabulary/merges.txt.gz");

/// Marks a token that ends a word.
const END_OF_WORD: &str = "</w>";

/// Endings of English, runs of letters, digits, runs of what is neither.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Turns texts into the token ids of CLIP.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
}

impl ClipTokenizer {
    /// The number of tokens.
    pub const VOCABULARY: usize = 49_408;
    /// The number of ids of an encoded text.
    pub const CONTEXT: usize = 77;
    /// The token before every text.
    pub const START: u32 = 49_406;
    /// The token after every text, the highest of all.
    pub const END: u32 = 49_407;

    /// Unpacks the vocabulary, which takes some tenths of a second.
    ///
    /// # Errors
    /// If the vocabulary is damaged.
    pub fn new() -> Result<Self> {
        let refuse = |reason: &dyn std::fmt::Display| Error::Vocabulary(reason.to_string());
        let mut text = String::new();
        GzDecoder::new(MERGES).read_to_string(&mut text).map_err(|e| refuse(&e))?;
        let pairs = text.lines().map(|line| line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())));
        let merges: Merges = pairs.collect::<Option<_>>().ok_or_else(|| refuse(&"a line is no pair"))?;
        let bytes = bytes();
        let whole = bytes.iter().map(char::to_string);
        let ends = bytes.iter().map(|byte| format!("{byte}{END_OF_WORD}"));
        let merged = merges.iter().map(|(a, b)| format!("{a}{b}"));
        let vocabulary: tokenizers::models::bpe::Vocab = whole.chain(ends).chain(merged).zip(0..).collect();
        let bpe = BPE::builder().vocab_and_merges(vocabulary, merges);
        let bpe = bpe.end_of_word_suffix(END_OF_WORD.to_owned()).build().map_err(|e| refuse(&e))?;
        let words = SplitPattern::Regex(WORDS.to_owned());
        let words = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(|e| refuse(&e))?;
        let mut tokenizer = Tokenizer::new(bpe);
        let normalizer = Normalizers::new(vec![NFC.into(), Lowercase.into()]);
        tokenizer.with_normalizer(Some(normalizer)).map_err(|e| refuse(&e))?;
        let byte_level = ByteLevel::new(false, false, false);
        tokenizer.with_pre_tokenizer(Some(Splitters::new(vec![words.into(), byte_level.into()])));
        Ok(Self { tokenizer })
    }

    /// The ids of `text`, without those of start and end.
    ///
    /// # Errors
    /// If the text cannot be cut into tokens.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let refuse =
            |reason: tokenizers::Error| Error::Text { text: text.to_owned(), reason: reason.to_string() };
        Ok(self.tokenizer.encode_fast(text, false).map_err(refuse)?.get_ids().to_vec())
    }

    /// Start, the ids of `text` as far as they fit, end, and zeros.
    ///
    /// # Errors
    /// As [`ClipTokenizer::tokens`].
    pub fn encode(&self, text: &str) -> Result<[u32; Self::CONTEXT]> {
        let tokens = self.tokens(text)?;
        let n = tokens.len().min(Self::CONTEXT - 2);
        let mut ids = [0; Self::CONTEXT];
        ids[0] = Self::START;
        ids[1..=n].copy_from_slice(&tokens[..n]);
        ids[n + 1] = Self::END;
        Ok(ids)
    }
}

/// The characters that stand for the 256 bytes, in the order of their ids: the printable ones for themselves, then the
/// others by characters from number 256 on.
fn bytes() -> Vec<char> {
    let printable = [0x21..=0x7e_u8, 0xa1..=0xac, 0xae..=0xff];
    let others = (0..=u8::MAX).filter(|byte| !printable.iter().any(|range| range.contains(byte)));
    let stand_ins = (0x100..).filter_map(char::from_u32).take(others.count());
    printable.iter().cloned().flatten().map(char::from).chain(stand_ins).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_character_for_every_byte() {
        let characters = bytes();
        assert_eq!((characters.len(), characters[0], characters[255]), (256, '!', '\u{143}'));
        assert!(ByteLevel::alphabet().iter().all(|c| characters.contains(c)));
    }

    #[test]
    fn the_vocabulary_has_its_size_and_the_end_is_its_highest() {
        let tokenizer = ClipTokenizer::new().unwrap();
        assert_eq!(tokenizer.tokenizer.get_vocab_size(false), ClipTokenizer::VOCABULARY - 2);
        assert_eq!(ClipTokenizer::END as usize, ClipTokenizer::VOCABULARY - 1);
    }
}
