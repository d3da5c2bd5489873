//! The binary versions of CIFAR-10 and CIFAR-100.
//!
//! Source: the section "Binary version" of <https://www.cs.toronto.edu/~kriz/cifar.html>: records of a label (of
//! a coarse and a fine label for CIFAR-100) and 3072 pixel bytes, red plane first.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::packed::{Layout, Packed, Parts};
use crate::{Dataset, Error, Limits, Result, Splits, class_names};

const SIDE: usize = 32;
const IMAGE_BYTES: usize = 3 * SIDE * SIDE;

/// One of the two data sets.
pub(crate) struct Cifar {
    name: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    class_names: &'static str,
    n_classes: usize,
    /// The bytes before the pixels; the last of them is the label.
    label_bytes: usize,
}

/// CIFAR-10: five training batches and a test batch.
pub(crate) const CIFAR_10: Cifar = Cifar {
    name: "CIFAR-10 (binary)",
    train: &[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
    ],
    test: "test_batch.bin",
    class_names: "batches.meta.txt",
    n_classes: 10,
    label_bytes: 1,
};

/// CIFAR-100 with its fine labels.
pub(crate) const CIFAR_100: Cifar = Cifar {
    name: "CIFAR-100 (binary)",
    train: &["train.bin"],
    test: "test.bin",
    class_names: "fine_label_names.txt",
    n_classes: 100,
    label_bytes: 2,
};

/// Whether `folder` holds the version for Python, which only Python can read.
pub(crate) fn recognises_pickles(folder: &Path) -> bool {
    ["batches.meta", "data_batch_1"].iter().any(|file| folder.join(file).is_file())
}

impl Cifar {
    /// Whether `folder` holds at least one batch under its usual name.
    pub(crate) fn recognises(&self, folder: &Path) -> bool {
        self.train.iter().chain([&self.test]).any(|file| folder.join(file).is_file())
    }

    /// Opens the batches in `folder`; all training batches must be there.
    pub(crate) fn open(&self, folder: &Path, limits: &Limits) -> Result<Splits> {
        let missing: Vec<&str> =
            self.train.iter().copied().filter(|file| !folder.join(file).is_file()).collect();
        if !missing.is_empty() {
            return Err(Error::malformed(folder, format!("{} lacks {}", self.name, missing.join(", "))));
        }
        let names_path = folder.join(self.class_names);
        let names = class_names::read_or_number(&names_path, self.n_classes)?;
        if names.len() != self.n_classes {
            let reason = format!("{} class names, expected {}", names.len(), self.n_classes);
            return Err(Error::malformed(&names_path, reason));
        }
        let test = match folder.join(self.test).is_file() {
            true => Some(self.open_split(folder, &[self.test], &names, limits)?),
            false => None,
        };
        Ok(Splits { train: self.open_split(folder, self.train, &names, limits)?, test })
    }

    fn open_split(
        &self,
        folder: &Path,
        files: &[&str],
        names: &[String],
        limits: &Limits,
    ) -> Result<Box<dyn Dataset>> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for file in files {
            self.read_batch(&folder.join(file), limits, &mut pixels, &mut labels)?;
        }
        Ok(Box::new(Packed::new(Parts {
            name: self.name.to_owned(),
            width: SIDE,
            height: SIDE,
            layout: Layout::PlanarRgb,
            pixels,
            labels: Some(labels),
            class_names: names.to_vec(),
        })))
    }

    fn read_batch(
        &self,
        path: &Path,
        limits: &Limits,
        pixels: &mut Vec<u8>,
        labels: &mut Vec<u8>,
    ) -> Result<()> {
        let content = read_file(path, limits.max_packed_bytes.saturating_sub(pixels.len() as u64))?;
        let record_bytes = self.label_bytes + IMAGE_BYTES;
        if content.is_empty() || content.len() % record_bytes != 0 {
            let reason = format!("{} bytes, expected records of {record_bytes} bytes each", content.len());
            return Err(Error::malformed(path, reason));
        }
        for (index, record) in content.chunks_exact(record_bytes).enumerate() {
            let label = record[self.label_bytes - 1];
            if usize::from(label) >= self.n_classes {
                let reason =
                    format!("label {label} in record {index} is out of range 0 to {}", self.n_classes - 1);
                return Err(Error::malformed(path, reason));
            }
            labels.push(label);
            pixels.extend_from_slice(&record[self.label_bytes..]);
        }
        Ok(())
    }
}

fn read_file(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    let mut content = Vec::new();
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(|error| Error::io(path, error))?;
    if content.len() as u64 > max_bytes {
        return Err(Error::malformed(
            path,
            format!("more than the {max_bytes} bytes that the limit leaves for it"),
        ));
    }
    Ok(content)
}
