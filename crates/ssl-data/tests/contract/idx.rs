//! IDX files.

use std::fs;
use std::path::Path;

use ssl_data::{Error, Limits, OpenOptions};
use tempfile::TempDir;

use crate::fixtures::{gzip, idx, open, open_error, write};

/// Three images of 2 rows and 1 column with labels 0, 9, 1; a test image with label 4.
fn folder_of_idx() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "train-images-idx3-ubyte", &idx(&[3, 2, 1], &[1, 2, 3, 4, 5, 6]));
    write(folder.path(), "train-labels-idx1-ubyte", &idx(&[3], &[0, 9, 1]));
    write(folder.path(), "t10k-images-idx3-ubyte", &idx(&[1, 2, 1], &[7, 8]));
    write(folder.path(), "t10k-labels-idx1-ubyte", &idx(&[1], &[4]));
    folder
}

#[test]
fn both_splits_are_read() {
    let folder = folder_of_idx();
    let splits = open(folder.path()).unwrap();
    let test = splits.test.unwrap();
    assert_eq!((splits.train.len(), test.len()), (3, 1));
    let sample = splits.train.get(1).unwrap();
    assert_eq!((sample.image.width(), sample.image.height(), sample.label), (1, 2, Some(9)));
    assert_eq!(sample.image.data(), [3, 3, 3, 4, 4, 4]);
    assert_eq!((splits.train.label(2), splits.train.label(3), test.label(0)), (Some(1), None, Some(4)));
    assert_eq!(splits.train.class_names()[9], "9");
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(splits.train.describe(), format!("{name} (IDX), 3 images of 1x2, 10 classes"));
    assert!(matches!(splits.train.get(3), Err(Error::Index { index: 3, len: 3 })));
}

#[test]
fn gzipped_and_plain_files_are_the_same_data() {
    let folder = folder_of_idx();
    let plain = open(folder.path()).unwrap().train.fingerprint();
    for name in ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"] {
        let path = folder.path().join(name);
        write(folder.path(), &format!("{name}.gz"), &gzip(&fs::read(&path).unwrap()));
        fs::remove_file(path).unwrap();
    }
    assert_eq!(open(folder.path()).unwrap().train.fingerprint(), plain);
}

#[test]
fn labels_and_test_images_are_optional() {
    let folder = folder_of_idx();
    for name in ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"] {
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    let splits = open(folder.path()).unwrap();
    assert!(splits.test.is_none() && splits.train.class_names().is_empty());
    assert_eq!((splits.train.label(0), splits.train.get(0).unwrap().label), (None, None));
    assert!(splits.train.describe().ends_with("3 images of 1x2, no labels"));
}

#[test]
fn classes_are_named_by_a_file() {
    let folder = folder_of_idx();
    let names: Vec<String> = (0..12).map(|label| format!("class {label}")).collect();
    write(folder.path(), "class_names.txt", names.join("\n").as_bytes());
    write(folder.path(), "train-labels-idx1-ubyte", &idx(&[3], &[0, 9, 11]));
    let train = open(folder.path()).unwrap().train;
    assert_eq!((train.class_names().len(), train.label(2)), (12, Some(11)));
}

#[test]
fn broken_files_are_named_with_the_numbers() {
    let huge = idx(&[u32::MAX; 3], &[]);
    let cases: [(&str, Vec<u8>, &str); 12] = [
        ("train-images-idx3-ubyte", vec![], "no magic number in its header"),
        ("train-images-idx3-ubyte", idx(&[3, 2, 1], &[])[..10].to_vec(), "no size in its header"),
        ("train-images-idx3-ubyte", idx(&[3], &[1, 2, 3]), "0x00000801, expected 0x00000803"),
        ("train-images-idx3-ubyte", idx(&[3, 0, 1], &[]), "its sizes are [3, 0, 1], expected none to be 0"),
        ("train-images-idx3-ubyte", idx(&[0, 2, 1], &[]), "expected none to be 0"),
        ("train-images-idx3-ubyte", huge, "[4294967295, 4294967295, 4294967295], more than the limit"),
        ("train-images-idx3-ubyte", idx(&[3, 2, 1], &[1, 2, 3, 4, 5]), "it ends after 5 of 6 bytes of data"),
        ("train-images-idx3-ubyte", idx(&[3, 2, 1], &[0; 7]), "it goes on after the 6 bytes"),
        ("train-labels-idx1-ubyte", idx(&[2], &[0, 1]), "2 labels for 3 images"),
        ("train-labels-idx1-ubyte", idx(&[3], &[0, 1, 10]), "label 10 at index 2 is out of range 0 to 9"),
        ("t10k-labels-idx1-ubyte", idx(&[1], &[255]), "label 255 at index 0"),
        ("class_names.txt", b"a\nb\n".to_vec(), "label 9 at index 1 is out of range 0 to 1"),
    ];
    for (name, content, expected) in cases {
        let folder = folder_of_idx();
        write(folder.path(), name, &content);
        let message = open_error(folder.path());
        assert!(message.contains(expected), "{message}");
        assert!(message.contains(name) && !message.contains('\n'), "{message}");
    }
}

#[test]
fn gzip_that_is_cut_or_changed_is_an_error_at_every_place() {
    let folder = tempfile::tempdir().unwrap();
    let write_and_open = |file: &[u8]| {
        write(folder.path(), "train-images-idx3-ubyte.gz", file);
        open(folder.path())
    };
    let whole = gzip(&idx(&[3, 2, 1], &[1, 2, 3, 4, 5, 6]));
    write_and_open(&whole).unwrap();
    for cut in 0..whole.len() {
        let message = write_and_open(&whole[..cut]).unwrap_err().to_string();
        assert!(message.contains("train-images-idx3-ubyte.gz"), "{message}");
    }
    // The checksum stands at the end.
    let mut changed = whole.clone();
    changed[whole.len() - 5] ^= 1;
    write_and_open(&changed).unwrap_err();
}

#[test]
fn memory_is_spent_on_what_is_there_only() {
    let folder = tempfile::tempdir().unwrap();
    // Announces 3 GB, holds 4 bytes.
    write(folder.path(), "train-images-idx3-ubyte", &idx(&[3_000, 1_000, 1_000], &[1; 4]));
    assert!(open_error(folder.path()).contains("it ends after 4 of 3000000000 bytes"));
    let limits = Limits { max_packed_bytes: 2_999_999_999, ..Limits::default() };
    let message = ssl_data::open(folder.path(), &OpenOptions { limits, ..OpenOptions::default() })
        .unwrap_err()
        .to_string();
    assert!(message.contains("more than the limit of 2999999999 bytes"), "{message}");
}

#[test]
fn test_images_alone_are_no_training_set() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "t10k-images-idx3-ubyte", &idx(&[1, 2, 1], &[7, 8]));
    assert!(open_error(folder.path()).contains("no train-images-idx3-ubyte[.gz]"));
}

#[test]
fn a_dot_has_a_name_too() {
    let folder = folder_of_idx();
    let dotted = folder.path().join(Path::new("."));
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    assert!(open(&dotted).unwrap().train.describe().starts_with(name));
}
