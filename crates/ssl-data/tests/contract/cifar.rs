//! CIFAR-10 and CIFAR-100 in their binary versions, made by hand.

use std::fs;
use std::path::Path;

use ssl_data::{Limits, OpenOptions};
use tempfile::TempDir;

use crate::fixtures::{open, open_error, pixel, write};

/// A record: labels, then the planes; red counts up, green is flat, blue is flat.
fn record(labels: &[u8], green: u8) -> Vec<u8> {
    let red = (0..1024).map(|at| (at % 251) as u8);
    labels.iter().copied().chain(red).chain([green; 1024]).chain([3; 1024]).collect()
}

fn cifar_10() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for batch in 1..=5 {
        let records = [record(&[batch], 10 * batch), record(&[0], 10 * batch + 1)].concat();
        write(folder.path(), &format!("data_batch_{batch}.bin"), &records);
    }
    write(folder.path(), "test_batch.bin", &record(&[9], 200));
    let names = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n";
    write(folder.path(), "batches.meta.txt", names.as_bytes());
    folder
}

fn cifar_100(root: &Path) {
    write(root, "train.bin", &[record(&[1, 99], 5), record(&[2, 7], 6)].concat());
    write(root, "test.bin", &record(&[3, 0], 7));
}

#[test]
fn cifar_10_joins_its_batches_in_order() {
    let folder = cifar_10();
    let splits = open(folder.path()).unwrap();
    let (train, test) = (splits.train, splits.test.unwrap());
    assert_eq!((train.len(), test.len()), (10, 1));
    assert_eq!(train.describe(), "CIFAR-10 (binary), 10 images of 32x32, 10 classes");
    assert_eq!(train.class_names()[9], "truck");
    let labels: Vec<u32> = (0..10).filter_map(|index| train.label(index)).collect();
    assert_eq!(labels, [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]);
    let image = train.get(4).unwrap().image;
    assert_eq!((image.width(), image.height()), (32, 32));
    // Row 2, column 1 is byte 65 of each plane.
    assert_eq!((pixel(&image, 0, 0), pixel(&image, 1, 2)), ([0, 30, 3], [65, 30, 3]));
    assert_eq!(test.get(0).unwrap().label, Some(9));
}

#[test]
fn cifar_100_has_fine_labels() {
    let folder = tempfile::tempdir().unwrap();
    cifar_100(folder.path());
    let splits = open(folder.path()).unwrap();
    assert_eq!((splits.train.label(0), splits.train.label(1)), (Some(99), Some(7)));
    assert_eq!(splits.train.describe(), "CIFAR-100 (binary), 2 images of 32x32, 100 classes");
    assert_eq!(splits.train.class_names()[99], "99");
    assert_eq!(pixel(&splits.train.get(1).unwrap().image, 31, 0), [31, 6, 3]);
    let names: Vec<String> = (0..100).map(|label| format!("fine {label}")).collect();
    write(folder.path(), "fine_label_names.txt", names.join("\n").as_bytes());
    assert_eq!(open(folder.path()).unwrap().test.unwrap().class_names()[42], "fine 42");
}

#[test]
fn the_test_batch_is_optional_training_batches_are_not() {
    let folder = cifar_10();
    fs::remove_file(folder.path().join("test_batch.bin")).unwrap();
    assert!(open(folder.path()).unwrap().test.is_none());
    fs::remove_file(folder.path().join("data_batch_2.bin")).unwrap();
    fs::remove_file(folder.path().join("data_batch_5.bin")).unwrap();
    assert!(
        open_error(folder.path()).ends_with("CIFAR-10 (binary) lacks data_batch_2.bin, data_batch_5.bin")
    );
}

#[test]
fn broken_batches_are_named_with_the_numbers() {
    let cases: [(&str, Vec<u8>, &str); 5] = [
        (
            "data_batch_3.bin",
            record(&[1], 0)[..3072].to_vec(),
            "3072 bytes, expected records of 3073 bytes each",
        ),
        ("data_batch_3.bin", vec![], "0 bytes, expected records"),
        (
            "test_batch.bin",
            [record(&[9], 0), record(&[10], 0)].concat(),
            "label 10 in record 1 is out of range 0 to 9",
        ),
        ("batches.meta.txt", b"a\nb\n".to_vec(), "2 class names, expected 10"),
        ("batches.meta.txt", b"\n".to_vec(), "no class name in it"),
    ];
    for (name, content, expected) in cases {
        let folder = cifar_10();
        write(folder.path(), name, &content);
        let message = open_error(folder.path());
        assert!(message.contains(expected) && message.contains(name), "{message}");
    }
}

#[test]
fn a_split_over_the_limit_is_refused() {
    let folder = cifar_10();
    let open_within = |max_packed_bytes| {
        let limits = Limits { max_packed_bytes, ..Limits::default() };
        ssl_data::open(folder.path(), &OpenOptions { limits, ..OpenOptions::default() })
    };
    open_within(40_000).unwrap();
    let message = open_within(20_000).unwrap_err().to_string();
    assert!(message.contains("data_batch_4.bin") && message.contains("limit"), "{message}");
}
