//! The part of Fashion-MNIST that ships with the repository.

use std::path::Path;

use ssl_data::{Dataset, Splits};

use crate::fixtures::open;

fn splits() -> Splits {
    open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/fashion-mnist"))).unwrap()
}

fn counts(dataset: &dyn Dataset) -> Vec<usize> {
    let mut counts = vec![0; dataset.class_names().len()];
    (0..dataset.len()).for_each(|index| counts[dataset.label(index).unwrap() as usize] += 1);
    counts
}

#[test]
fn classes_are_balanced_and_named() {
    let Splits { train, test } = splits();
    let test = test.unwrap();
    assert_eq!(counts(&*train), [1_000; 10]);
    assert_eq!(counts(&*test), [200; 10]);
    assert_eq!(
        (train.class_names()[0].as_str(), train.class_names()[9].as_str()),
        ("T-shirt/top", "Ankle boot")
    );
    assert_eq!(train.describe(), "fashion-mnist (IDX), 10000 images of 28x28, 10 classes");
}

/// The first five labels of the original files, which the cut keeps, and the mean of the pixels, in 0 to 255.
#[test]
fn content_is_that_of_the_original() {
    let Splits { train, test } = splits();
    let test = test.unwrap();
    let first_labels = |dataset: &dyn Dataset| [0, 1, 2, 3, 4].map(|index| dataset.label(index).unwrap());
    assert_eq!(first_labels(&*train), [9, 0, 0, 3, 0]);
    assert_eq!(first_labels(&*test), [9, 2, 1, 1, 6]);
    let sum =
        |index| -> u64 { train.get(index).unwrap().image.data().iter().map(|&value| u64::from(value)).sum() };
    let mean = (0..train.len()).map(sum).sum::<u64>() as f64 / (10_000.0 * 28.0 * 28.0 * 3.0);
    assert!((mean - 73.103820).abs() < 1e-3, "{mean}");
    assert_eq!((train.get(0).unwrap().image.width(), train.get(0).unwrap().image.height()), (28, 28));
}

#[test]
fn fingerprints_are_constant() {
    let Splits { train, test } = splits();
    assert_eq!(train.fingerprint(), "10b2e471135f8924");
    assert_eq!(test.unwrap().fingerprint(), "adcee72397313218");
}
