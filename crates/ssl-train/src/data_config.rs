//! The images of a recipe: where they are, and what to do about broken ones.

use serde::{Deserialize, Serialize};
use ssl_data::OnError;

use crate::error::{Error, Result};

/// As much memory for decoded images as one may ask for, in MiB: 16 TiB.
const MAX_CACHE_MIB: u64 = 1 << 24;

/// The images of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A folder of images, IDX files or CIFAR batches, or `fashion-mnist` for the data that ships with the project.
    pub path: String,
    /// What to do about a file that cannot be decoded: `stop` or `skip`.
    pub on_error: String,
    /// Share of the training images held out for evaluation if the data has labels but no test split, in `(0, 1)`.
    pub holdout: f64,
    /// A folder with an image of another kind for each training image, under the same path, from the folder of the data on;
    /// for methods that compare such pairs. Empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub partners: String,
    /// Memory in MiB for decoded training images of a folder, which are then decoded once and not in every epoch; 0 for
    /// none. It does not change the result.
    pub cache_mib: u64,
    /// Decode every JPEG of a folder whole. Without it, large ones are decoded at a quarter or an eighth of their sides where
    /// no crop, neither of a view nor of the evaluation during a run, has to be enlarged for it; views then differ a little
    /// from those of the whole image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole_jpegs: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: "fashion-mnist".to_owned(),
            on_error: "stop".to_owned(),
            holdout: 0.2,
            partners: String::new(),
            cache_mib: 0,
            whole_jpegs: false,
        }
    }
}

impl DataConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        if self.path.is_empty() {
            return Err(Error::Recipe("data.path is empty, expected a path or `fashion-mnist`".to_owned()));
        }
        if !(self.holdout > 0.0 && self.holdout < 1.0) {
            return Err(Error::Recipe(format!("data.holdout = {} is not in (0, 1)", self.holdout)));
        }
        if self.cache_mib > MAX_CACHE_MIB {
            return Err(Error::Recipe(format!(
                "data.cache_mib = {} is not in 0..={MAX_CACHE_MIB}",
                self.cache_mib
            )));
        }
        self.policy().map(drop)
    }

    /// What to do about a broken file.
    pub(crate) fn policy(&self) -> Result<OnError> {
        match self.on_error.as_str() {
            "stop" => Ok(OnError::Stop),
            "skip" => Ok(OnError::Skip),
            other => {
                Err(Error::Recipe(format!("data.on_error = \"{other}\" is neither \"stop\" nor \"skip\"")))
            }
        }
    }
}
