//! Captions of the images of a folder.

use std::path::Path;

#[cfg(feature = "parquet")]
use ssl_data::Limits;
use ssl_data::{CaptionFile, Dataset, OpenOptions, Result, Splits};

use crate::fixtures::{idx, write, write_png};

fn open(root: &Path, file: &str, cache_bytes: u64) -> Result<Splits> {
    let captions = CaptionFile {
        path: root.join(file),
        file_column: "file_name".to_owned(),
        caption_column: "text".to_owned(),
    };
    ssl_data::open(root, &OpenOptions { captions: Some(captions), cache_bytes, ..OpenOptions::default() })
}

fn images() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, value) in [("train/cat/1.png", 10), ("train/cat/2.png", 20), ("train/dog/1.png", 30)] {
        write_png(folder.path(), path, value);
    }
    write_png(folder.path(), "val/cat/9.png", 90);
    folder
}

fn captions(dataset: &dyn Dataset) -> Vec<String> {
    let caption = |i| {
        let caption = dataset.get(i).unwrap().caption;
        assert_eq!(caption, dataset.caption(i));
        caption.unwrap().to_string()
    };
    (0..dataset.len()).map(caption).collect()
}

const CSV: &str = "text,id,file_name\r\n\"a cat, asleep\",1,train/cat/1.png\r\n\"a \"\"cat\"\"\",2,./train/cat/2.png\r\n\
                   ein Hündchen,3,train/dog/1.png\r\nnot trained on,4,val/cat/9.png\r\n";
const TSV: &str = "file_name\ttext\ntrain/dog/1.png\tein Hündchen\ntrain/cat/1.png\ta cat, asleep\n\
                   train/cat/2.png\t\"a \"\"cat\"\"\"\n";
const JSONL: &str = "{\"file_name\": \"train/cat/2.png\", \"text\": \"a \\\"cat\\\"\"}\n\n\
                     {\"file_name\": \"train/cat/1.png\", \"text\": \"a cat, asleep\", \"id\": 3}\n\
                     {\"file_name\": \"train/dog/1.png\", \"text\": \"ein Hündchen\"}\n";

#[test]
fn every_format_gives_every_training_image_its_caption() {
    let folder = images();
    let plain = ssl_data::open(folder.path(), &OpenOptions::default()).unwrap().train.fingerprint();
    let mut fingerprints = vec![];
    for (file, text) in [("c.csv", CSV), ("c.tsv", TSV), ("c.jsonl", JSONL)] {
        write(folder.path(), file, text.as_bytes());
        for cache_bytes in [0, 1 << 20] {
            let splits = open(folder.path(), file, cache_bytes).unwrap();
            for _ in 0..2 {
                assert_eq!(
                    captions(&*splits.train),
                    ["a cat, asleep", "a \"cat\"", "ein Hündchen"],
                    "{file}"
                );
            }
            assert!(splits.test.unwrap().caption(0).is_none());
            assert!(splits.train.describe().ends_with("3 images, 2 classes, with captions"));
            fingerprints.push(splits.train.fingerprint());
        }
    }
    assert!(fingerprints.iter().all(|print| *print == fingerprints[0] && *print != plain));
    write(folder.path(), "c.csv", CSV.replace("asleep", "awake").as_bytes());
    assert_ne!(open(folder.path(), "c.csv", 0).unwrap().train.fingerprint(), fingerprints[0]);
}

#[test]
fn what_is_wrong_is_told_with_its_file_and_line() {
    let folder = images();
    let head = "file_name,text\ntrain/cat/1.png,a\ntrain/cat/2.png,b\n";
    let all = format!("{head}train/dog/1.png,c\n");
    for (file, text, message) in [
        ("c.txt", "", "read from .csv, .tsv, .jsonl and .parquet"),
        ("c.csv", "", "it is empty"),
        ("c.csv", "file_name,caption\n", "line 1: there is no column \"text\", only file_name, caption"),
        ("c.csv", head, "1 of 3 images have no caption in it; the first: \"train/dog/1.png\""),
        ("c.csv", &format!("{all}train/dog/2.png,d\n"), "line 5: there is no image \"train/dog/2.png\""),
        (
            "c.csv",
            &format!("{all}train/cat/1.png,d\n"),
            "line 5: \"train/cat/1.png\" has a caption already, in line 2",
        ),
        (
            "c.csv",
            &format!("{head}train/dog/1.png,\" \"\n"),
            "line 4: the caption of \"train/dog/1.png\" is empty",
        ),
        ("c.csv", &format!("{head}train/dog/1.png,a,b\n"), "line 4: 3 fields, expected 2"),
        ("c.csv", &format!("{head}\"train\n"), "line 4: a field in quotes has no end"),
        ("c.jsonl", "{\"file_name\": 3}\n", "line 1: \"file_name\" is 3, expected a text"),
        ("c.jsonl", "\n{\"file_name\": \"a\"}\n", "line 2: there is no \"text\""),
        ("c.jsonl", "[\n", "line 1: not JSON"),
    ] {
        write(folder.path(), file, text.as_bytes());
        let error = open(folder.path(), file, 0).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains(file) && !error.contains('\n'), "{error}");
    }
    write(folder.path(), "c.csv", b"\xff\xfe");
    assert!(open(folder.path(), "c.csv", 0).unwrap_err().to_string().contains("UTF-8"));
    let absent = open(folder.path(), "absent.csv", 0).unwrap_err().to_string();
    assert!(absent.contains("cannot read") && absent.contains("absent.csv"), "{absent}");
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_files_of_other_programs_are_read() {
    let folder = images();
    for name in ["pandas", "gzip"] {
        write(folder.path(), "c.parquet", &parquet(name));
        let splits = open(folder.path(), "c.parquet", 0).unwrap();
        assert_eq!(captions(&*splits.train), ["a cat, asleep", "a \"cat\"", "ein Hündchen"], "{name}");
    }
    for (bytes, message) in [
        (parquet("null"), "row 2: \"text\" is null, expected a text"),
        (parquet("nested"), "the column \"text\" is nested, expected texts"),
        (CSV.as_bytes().to_vec(), "no Parquet file that can be read"),
    ] {
        write(folder.path(), "c.parquet", &bytes);
        let error = open(folder.path(), "c.parquet", 0).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("c.parquet") && !error.contains('\n'), "{error}");
    }
    write(folder.path(), "c.parquet", &parquet("gzip"));
    for (column, message) in [
        ("caption", "there is no column \"caption\", only file_name, text"),
        ("text", "its texts are larger than the limit of 60 bytes"),
    ] {
        let captions = CaptionFile {
            path: folder.path().join("c.parquet"),
            file_column: "file_name".to_owned(),
            caption_column: column.to_owned(),
        };
        let limits = Limits { max_file_bytes: 60, ..Limits::default() };
        let options = OpenOptions { captions: Some(captions), limits, ..OpenOptions::default() };
        let error = ssl_data::open(folder.path(), &options).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[cfg(feature = "parquet")]
#[test]
fn damaged_parquet_files_are_errors_or_other_captions() {
    let folder = images();
    for name in ["pandas", "gzip"] {
        let whole = parquet(name);
        for place in 0..whole.len() {
            write(folder.path(), "c.parquet", &whole[..place]);
            assert!(open(folder.path(), "c.parquet", 0).is_err(), "{name} cut at {place}");
            let mut changed = whole.clone();
            changed[place] ^= 0x55;
            write(folder.path(), "c.parquet", &changed);
            let _ = open(folder.path(), "c.parquet", 0);
        }
    }
}

/// A file of `tests/reference/captions.py`.
#[cfg(feature = "parquet")]
fn parquet(name: &str) -> Vec<u8> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/text"));
    std::fs::read(folder.join(format!("captions-{name}.parquet"))).unwrap()
}

#[test]
fn packed_images_have_no_names_for_captions() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "train-images-idx3-ubyte", &idx(&[1, 2, 2], &[0; 4]));
    let error = open(folder.path(), "c.csv", 0).unwrap_err().to_string();
    assert!(error.contains("c.csv") && error.contains("holds no image files"), "{error}");
}
