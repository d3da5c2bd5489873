//! IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.
//!
//! Source: the section "File formats" of <http://yann.lecun.com/exdb/mnist/>: two zero bytes, a type (8: unsigned
//! byte), the number of dimensions, one big-endian 32-bit size a dimension, then the values.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::packed::{Layout, Packed, Parts};
use crate::{Dataset, Error, Limits, Result, Splits, class_names};

/// Without `class_names.txt`, labels are the ten digits, as in MNIST.
const DEFAULT_CLASSES: usize = 10;

/// Whether `folder` holds IDX files under the usual names.
pub(crate) fn recognises(folder: &Path) -> bool {
    ["train", "t10k"].iter().any(|split| find(folder, split, "images-idx3").is_some())
}

/// Opens the IDX files in `folder`.
pub(crate) fn open(folder: &Path, name: &str, limits: &Limits) -> Result<Splits> {
    let Some(train) = open_split(folder, "train", name, limits)? else {
        return Err(Error::unrecognised(
            folder,
            "holds t10k-images-idx3-ubyte but no train-images-idx3-ubyte[.gz]",
        ));
    };
    Ok(Splits { train, test: open_split(folder, "t10k", name, limits)? })
}

fn open_split(folder: &Path, split: &str, name: &str, limits: &Limits) -> Result<Option<Box<dyn Dataset>>> {
    let Some(images_path) = find(folder, split, "images-idx3") else { return Ok(None) };
    let images = Idx::read(&images_path, limits)?;
    let [count, height, width] = images.sizes;
    let mut class_names = Vec::new();
    let mut labels = None;
    if let Some(path) = find(folder, split, "labels-idx1") {
        let values = Idx::read(&path, limits)?;
        class_names = class_names::read_or_number(&folder.join("class_names.txt"), DEFAULT_CLASSES)?;
        check_labels(&path, &values, count, class_names.len())?;
        labels = Some(values.data);
    }
    let name = format!("{name} (IDX)");
    let parts = Parts { name, width, height, layout: Layout::Grey, pixels: images.data, labels, class_names };
    Ok(Some(Box::new(Packed::new(parts))))
}

/// The plain file if it exists, else the gzipped one.
fn find(folder: &Path, split: &str, content: &str) -> Option<PathBuf> {
    ["", ".gz"]
        .iter()
        .map(|end| folder.join(format!("{split}-{content}-ubyte{end}")))
        .find(|path| path.is_file())
}

fn check_labels(path: &Path, labels: &Idx<1>, n_images: usize, n_classes: usize) -> Result<()> {
    let [count] = labels.sizes;
    if count != n_images {
        return Err(Error::malformed(path, format!("{count} labels for {n_images} images")));
    }
    match labels.data.iter().position(|&label| usize::from(label) >= n_classes) {
        Some(index) => {
            let (label, last) = (labels.data[index], n_classes - 1);
            let reason = format!(
                "label {label} at index {index} is out of range 0 to {last}; other classes are \
                 named in class_names.txt, one a line"
            );
            Err(Error::malformed(path, reason))
        }
        None => Ok(()),
    }
}

/// The content of an IDX file with `RANK` dimensions, none of them 0.
struct Idx<const RANK: usize> {
    sizes: [usize; RANK],
    data: Vec<u8>,
}

impl<const RANK: usize> Idx<RANK> {
    fn read(path: &Path, limits: &Limits) -> Result<Self> {
        let mut reader = open_maybe_gzipped(path)?;
        let sizes = read_header(path, &mut reader)?;
        let len = data_len(path, &sizes, limits)?;
        let mut data = Vec::new();
        // The byte beyond the data shows what is left over, and makes gzip check its trailer.
        let read = reader.take(len as u64 + 1).read_to_end(&mut data);
        read.map_err(|error| {
            Error::malformed(
                path,
                format!("reading stopped after {} of {len} bytes of data: {error}", data.len()),
            )
        })?;
        if data.len() < len {
            return Err(Error::malformed(
                path,
                format!("it ends after {} of {len} bytes of data", data.len()),
            ));
        }
        if len < data.len() {
            return Err(Error::malformed(
                path,
                format!("it goes on after the {len} bytes that its header announces"),
            ));
        }
        Ok(Idx { sizes, data })
    }
}

fn open_maybe_gzipped(path: &Path) -> Result<Box<dyn Read>> {
    let mut file = BufReader::new(File::open(path).map_err(|error| Error::io(path, error))?);
    let start = file.fill_buf().map_err(|error| Error::io(path, error))?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(MultiGzDecoder::new(file)))
    } else {
        Ok(Box::new(file))
    }
}

fn read_header<const RANK: usize>(path: &Path, reader: &mut dyn Read) -> Result<[usize; RANK]> {
    let mut word = [0; 4];
    let mut next_word = |what: &str| match reader.read_exact(&mut word) {
        Ok(()) => Ok(u32::from_be_bytes(word)),
        Err(error) => Err(Error::malformed(path, format!("no {what} in its header: {error}"))),
    };
    let magic = next_word("magic number")?;
    let expected = 0x0800 + RANK as u32;
    if magic != expected {
        let reason = format!(
            "the magic number is {magic:#010x}, expected {expected:#010x} (bytes in {RANK} dimensions)"
        );
        return Err(Error::malformed(path, reason));
    }
    let mut sizes = [0; RANK];
    for size in &mut sizes {
        *size = next_word("size")? as usize;
    }
    Ok(sizes)
}

fn data_len(path: &Path, sizes: &[usize], limits: &Limits) -> Result<usize> {
    if sizes.contains(&0) {
        return Err(Error::malformed(path, format!("its sizes are {sizes:?}, expected none to be 0")));
    }
    let len = sizes.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    len.filter(|&len| len as u64 <= limits.max_packed_bytes).ok_or_else(|| {
        let reason =
            format!("its sizes are {sizes:?}, more than the limit of {} bytes", limits.max_packed_bytes);
        Error::malformed(path, reason)
    })
}
