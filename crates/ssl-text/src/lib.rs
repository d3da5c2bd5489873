//! Texts as token ids, for methods that compare images with texts.
//!
//! A [`ClipTokenizer`] turns any text into the 77 numbers that the text tower of CLIP takes.
#![doc = include_str!("../README.md")]

mod clip;
mod error;

pub use clip::ClipTokenizer;
pub use error::{Error, Result};
