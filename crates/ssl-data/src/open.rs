//! Opening a folder whatever it holds.

use std::path::{Path, PathBuf};

use ssl_augment::Resolution;

use crate::cifar::{self, CIFAR_10, CIFAR_100};
use crate::{CaptionFile, Error, Limits, Result, Splits, folder, idx};

/// What [`open`] accepts, for error messages.
pub(crate) const ACCEPTED: &str = "a folder with images (.jpg, .jpeg, .png, .webp, .bmp; at any depth, split into \
    train/ and test/ or val/ or not), with IDX files (train-images-idx3-ubyte[.gz], ...) or with CIFAR binary batches \
    (data_batch_1.bin, ... or train.bin)";

/// How [`open`] reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// What one image, and one data set in memory, may cost.
    pub limits: Limits,
    /// Bytes of memory for decoded training images of a folder, which are then not decoded again; 0, the default, for
    /// none. IDX and CIFAR are in memory in any case. Images have the same values with and without it.
    pub cache_bytes: u64,
    /// Captions of the images of a folder, one for each training image.
    pub captions: Option<CaptionFile>,
    /// A folder with a partner for each training image of a folder: an image of another kind under the same relative path,
    /// whatever its extension. Half of `cache_bytes` is for partners.
    pub partners: Option<PathBuf>,
    /// Resolution that every image of a folder keeps where it is decoded at a reduced size, see
    /// [`decode_bytes`](crate::decode_bytes); `None`, the default, to decode every image whole.
    pub resolution: Option<Resolution>,
}

/// Opens the data set in the folder at `path`.
///
/// The files decide what it is, in this order:
///
/// 1. IDX: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
///    `t10k-labels-idx1-ubyte`, each plain or with `.gz`. Labels may be missing. Classes are named in
///    `class_names.txt`, one a line; without it they are the digits 0 to 9.
/// 2. CIFAR-10, binary version: `data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin`, `batches.meta.txt`.
/// 3. CIFAR-100, binary version, fine labels: `train.bin`, `test.bin`, `fine_label_names.txt`.
/// 4. Image files. With `train/` beside `test/` (or else `val/`) these are the splits, and `train/` alone is a
///    split too; otherwise all images are for training. Images are found at any depth, by extension, in the byte order
///    of their paths. If each lies in a sub-folder of the first level, these are its classes; else there are no labels.
///    Hidden files are skipped, links are followed except into a loop.
///
/// IDX and CIFAR are read whole into memory and checked here; image files are only listed.
///
/// # Errors
///
/// [`Error::Unrecognised`] for a path that does not exist, is no folder or holds nothing of the above,
/// [`Error::Malformed`] for broken IDX and CIFAR files, for splits with different classes, and for captions and
/// partners that do not fit the images or belong to no folder of images,
/// [`Error::Io`] where the operating system refuses.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Splits> {
    if !path.exists() {
        return Err(Error::unrecognised(path, "does not exist"));
    }
    if !path.is_dir() {
        return Err(Error::unrecognised(path, "is a file"));
    }
    let limits = &options.limits;
    let cifar = [CIFAR_10, CIFAR_100].iter().find(|cifar| cifar.recognises(path));
    let is_idx = idx::recognises(path);
    if let Some(captions) = options.captions.as_ref().filter(|_| is_idx || cifar.is_some()) {
        let reason = format!("{} holds no image files that it could name", path.display());
        return Err(Error::malformed(&captions.path, reason));
    }
    if let Some(partners) = options.partners.as_ref().filter(|_| is_idx || cifar.is_some()) {
        let reason = format!("{} holds no image files that they could be partners of", path.display());
        return Err(Error::malformed(partners, reason));
    }
    if is_idx {
        return idx::open(path, &folder_name(path), limits);
    }
    if let Some(cifar) = cifar {
        return cifar.open(path, limits);
    }
    if cifar::recognises_pickles(path) {
        return Err(Error::unrecognised(path, "holds the Python version of CIFAR, which is pickled"));
    }
    folder::open(path, &folder_name(path), options)
}

/// The name of a folder even if the path is `.` or ends in `..`.
pub(crate) fn folder_name(path: &Path) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    absolute.file_name().unwrap_or(absolute.as_os_str()).to_string_lossy().into_owned()
}
