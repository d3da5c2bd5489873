//! The policy for broken files.

use std::sync::Arc;
use std::thread;

use ssl_data::{Dataset, Error, Image, OnError, Result, Sample, Tolerant};

/// One pixel an image, its index as colour and label; the given indices are broken.
#[derive(Debug)]
struct Toy {
    len: usize,
    broken: Vec<usize>,
}

impl Dataset for Toy {
    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize) -> Result<Sample> {
        if self.len <= index {
            return Err(Error::Index { index, len: self.len });
        }
        if self.broken.contains(&index) {
            return Err(Error::Decode { path: format!("{index}.png").into(), reason: "torn".to_owned() });
        }
        let image = Image::new(1, 1, vec![index as u8; 3])?;
        Ok(Sample { image, label: self.label(index), caption: None, partner: None })
    }

    fn label(&self, index: usize) -> Option<u32> {
        Some(index as u32)
    }

    fn class_names(&self) -> &[String] {
        &[]
    }

    fn fingerprint(&self) -> String {
        "0".repeat(16)
    }

    fn describe(&self) -> String {
        "toy".to_owned()
    }
}

fn tolerant(len: usize, broken: &[usize], policy: OnError) -> Tolerant {
    Tolerant::new(Box::new(Toy { len, broken: broken.to_vec() }), policy)
}

fn red(dataset: &Tolerant, index: usize) -> u8 {
    dataset.get(index).unwrap().image.data()[0]
}

#[test]
fn stop_returns_the_error() {
    let data = tolerant(4, &[1], OnError::Stop);
    assert_eq!(red(&data, 0), 0);
    assert_eq!(data.get(1).unwrap_err().to_string(), "cannot decode 1.png: torn");
    assert!(data.broken().is_empty());
}

#[test]
fn skip_takes_the_next_readable_image_and_wraps() {
    let data = tolerant(6, &[1, 2, 5], OnError::Skip);
    assert_eq!([0, 1, 2, 3, 4, 5].map(|index| red(&data, index)), [0, 3, 3, 3, 4, 0]);
    assert_eq!(data.get(1).unwrap().label, Some(3));
    assert_eq!(data.label(1), Some(1));
    let messages = [1, 2, 5].map(|index| (index, format!("cannot decode {index}.png: torn")));
    assert_eq!(data.broken(), messages.into());
}

#[test]
fn replacements_do_not_depend_on_the_order_or_on_threads() {
    let broken = [0, 3, 4, 9, 10, 11];
    let expected: Vec<u8> = (0..20).map(|index| red(&tolerant(20, &broken, OnError::Skip), index)).collect();
    let shared = Arc::new(tolerant(20, &broken, OnError::Skip));
    let read = |reversed: bool| {
        let data = Arc::clone(&shared);
        thread::spawn(move || {
            let mut reds = vec![0; 20];
            for step in 0..20 {
                let index = if reversed { 19 - step } else { step };
                reds[index] = red(&data, index);
            }
            reds
        })
    };
    let threads = [read(false), read(true), read(false)];
    assert!(threads.into_iter().all(|thread| thread.join().unwrap() == expected));
    assert_eq!(shared.broken().into_keys().collect::<Vec<_>>(), broken);
}

#[test]
fn more_than_half_broken_is_an_error_that_says_why() {
    let data = tolerant(4, &[1, 2, 3], OnError::Skip);
    let message = data.get(1).unwrap_err().to_string();
    assert!(message.starts_with("3 of 4 images are broken, more than half"), "{message}");
    assert!(message.ends_with("the first: cannot decode 1.png: torn"), "{message}");
    // The data set stays refused.
    assert!(matches!(data.get(2), Err(Error::TooManyBroken { broken: 3, len: 4, .. })));
    assert_eq!(red(&tolerant(4, &[1, 2], OnError::Skip), 1), 3);
}

#[test]
fn all_broken_ends_in_an_error() {
    for len in 1..5 {
        let data = tolerant(len, &[0, 1, 2, 3, 4], OnError::Skip);
        for index in 0..len {
            assert!(matches!(data.get(index), Err(Error::TooManyBroken { .. })), "{index} of {len}");
        }
    }
}

#[test]
fn an_index_beyond_the_end_is_nobody_s_broken_file() {
    for policy in [OnError::Stop, OnError::Skip] {
        let data = tolerant(4, &[], policy);
        assert!(matches!(data.get(4), Err(Error::Index { index: 4, len: 4 })));
        assert!(data.broken().is_empty());
    }
}

#[test]
fn everything_else_is_passed_on() {
    let data = tolerant(4, &[], OnError::Skip);
    assert_eq!((data.len(), data.is_empty(), data.describe()), (4, false, "toy".to_owned()));
    assert_eq!((data.fingerprint().len(), data.class_names().len()), (16, 0));
}
