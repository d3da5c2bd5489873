//! What is opened as what, and what is said where nothing can be.

use std::path::Path;

use crate::fixtures::{open, open_error, write, write_png};

#[test]
fn a_path_that_holds_nothing_is_explained_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "file.png", b"x");
    write(folder.path(), "text/notes.txt", b"x");
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    for (path, found) in [
        ("absent", "does not exist"),
        ("file.png", "is a file"),
        ("empty", "is empty"),
        ("text", "holds no image file"),
    ] {
        let path = folder.path().join(path);
        let message = open_error(&path);
        assert!(
            message.starts_with(&format!("{} {found}; expected a folder with images", path.display())),
            "{message}"
        );
        for accepted in ["webp", "train-images-idx3-ubyte[.gz]", "data_batch_1.bin", "train/"] {
            assert!(message.contains(accepted), "{message}");
        }
        assert!(!message.contains('\n') && !message.contains("  "), "{message}");
    }
}

#[test]
fn cifar_in_python_s_version_is_pointed_out() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "data_batch_1", b"pickle");
    assert!(open_error(folder.path()).contains("Python version"));
}

#[test]
fn packed_files_win_over_images_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    write_png(folder.path(), "overview.png", 1);
    write(folder.path(), "train.bin", &[0; 3074]);
    assert!(open(folder.path()).unwrap().train.describe().starts_with("CIFAR-100"));
}

#[test]
fn an_empty_path_does_not_exist() {
    assert!(open_error(Path::new("")).contains("does not exist"));
}
