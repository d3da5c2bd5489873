//! The images of a run: opened, put under the policy for broken files, and split for evaluation.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rand_core::RngCore;
use ssl_data::{CaptionFile, Dataset, OpenOptions, Resolution, Sample, Tolerant, open};
use ssl_nn::{Purpose, rng};

use crate::data_config::DataConfig;
use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// The images of a run.
#[derive(Clone, Debug)]
pub struct Images {
    /// Images to train on; the bank of the kNN classifier and the training set of the linear probe.
    pub train: Arc<Tolerant>,
    /// Images to evaluate on, if there are labels of two classes or more.
    pub test: Option<Arc<Tolerant>>,
    /// What the data is, in a line.
    pub description: String,
    /// Digest of the data.
    pub fingerprint: String,
}

impl Images {
    /// Opens the images at `path` as `config` says, every one decoded whole.
    ///
    /// If they have labels but no test split, the share `config.holdout` of every class is held out, chosen by index alone,
    /// so that every run on the same files holds out the same images.
    ///
    /// # Errors
    /// If there are no images at `path`, or a file that describes them is broken.
    pub fn open(config: &DataConfig, path: &Path) -> Result<Self> {
        Self::open_with(config, None, None, path)
    }

    /// Opens the images at `path` for a run of `recipe`, with the captions that it names, large JPEGs reduced as far as its
    /// views allow; otherwise as [`Images::open`].
    ///
    /// # Errors
    /// As [`Images::open`], or if the recipe's augmentation is impossible.
    pub fn of_recipe(recipe: &Recipe, path: &Path) -> Result<Self> {
        let captions = recipe.text.as_ref().and_then(|text| text.caption_file(path));
        let resolution = if recipe.data.whole_jpegs { None } else { Some(recipe.resolution()?) };
        Self::open_with(&recipe.data, captions, resolution, path)
    }

    fn open_with(
        config: &DataConfig,
        captions: Option<CaptionFile>,
        resolution: Option<Resolution>,
        path: &Path,
    ) -> Result<Self> {
        config.validate()?;
        let policy = config.policy()?;
        let partners = (!config.partners.is_empty()).then(|| path.join(&config.partners));
        let cache_bytes = config.cache_mib << 20;
        let options = OpenOptions { cache_bytes, captions, partners, resolution, ..OpenOptions::default() };
        let splits = open(path, &options)?;
        let (description, fingerprint) = (splits.train.describe(), splits.train.fingerprint());
        let labelled =
            |set: &dyn Dataset| set.class_names().len() > 1 && (0..set.len()).all(|i| set.label(i).is_some());
        let (train, test): (Box<dyn Dataset>, Option<Box<dyn Dataset>>) = match splits.test {
            Some(test) if labelled(&*splits.train) && labelled(&*test) => (splits.train, Some(test)),
            None if labelled(&*splits.train) => {
                let all: Arc<dyn Dataset> = Arc::from(splits.train);
                let (kept, held) = hold_out(&*all, config.holdout);
                let (n, classes) = (all.len(), all.class_names().len());
                if held.is_empty() || kept.len() <= classes {
                    return Err(Error::Recipe(format!(
                        "data.holdout = {} splits the {n} images of {classes} classes into {} to train on and {} to \
                         evaluate on, too few on one side; change it, add images or a folder `test`",
                        config.holdout,
                        kept.len(),
                        held.len(),
                    )));
                }
                let subset = |indices| Box::new(Subset { all: all.clone(), indices }) as Box<dyn Dataset>;
                (subset(kept), Some(subset(held)))
            }
            _ => (splits.train, None),
        };
        let tolerant = |set| Arc::new(Tolerant::new(set, policy));
        Ok(Images { train: tolerant(train), test: test.map(tolerant), description, fingerprint })
    }

    /// Names of the classes; empty without labels.
    pub fn class_names(&self) -> &[String] {
        self.train.class_names()
    }

    /// Whether every image has a label, of two classes or more, and there are images to evaluate on.
    pub fn can_evaluate(&self) -> bool {
        self.test.is_some()
    }

    /// What was skipped: a line for each broken file met so far.
    pub fn broken(&self) -> Vec<String> {
        let of = |images: &Tolerant| images.broken().into_values().collect::<Vec<_>>();
        let mut broken = of(&self.train);
        broken.extend(self.test.iter().flat_map(|test| of(test)));
        broken
    }
}

/// Opens the images and checks that the recipe can be run on them.
pub(crate) fn usable_images(recipe: &Recipe, data: &Path) -> Result<Images> {
    let images = Images::of_recipe(recipe, data)?;
    if let Some(text) = &recipe.text {
        text.check(&images)?;
    }
    let (n, batch) = (images.train.len(), recipe.train.batch_size);
    if batch > n {
        return Err(Error::Recipe(format!(
            "train.batch_size = {batch} is larger than the data set: {} has {n} images to train on",
            data.display()
        )));
    }
    recipe.schedule.validate_steps(recipe.train.epochs * (n / batch)).map_err(Error::Recipe)?;
    Ok(images)
}

/// Indices kept and held out, ascending; of every class the share `holdout`, rounded, but never all.
fn hold_out(set: &dyn Dataset, holdout: f64) -> (Vec<usize>, Vec<usize>) {
    let mut classes: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
    (0..set.len()).for_each(|i| classes.entry(set.label(i)).or_default().push(i));
    let (mut kept, mut held) = (Vec::new(), Vec::new());
    for mut members in classes.into_values() {
        members.sort_by_key(|i| rng(0, Purpose::Split, 0, *i as u64, 0).next_u64());
        let cut = ((members.len() as f64 * holdout).round() as usize).min(members.len() - 1);
        held.extend_from_slice(&members[..cut]);
        kept.extend_from_slice(&members[cut..]);
    }
    kept.sort_unstable();
    held.sort_unstable();
    (kept, held)
}

/// Some images of a data set.
#[derive(Debug)]
struct Subset {
    all: Arc<dyn Dataset>,
    indices: Vec<usize>,
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn get(&self, index: usize) -> ssl_data::Result<Sample> {
        let place =
            self.indices.get(index).ok_or(ssl_data::Error::Index { index, len: self.indices.len() })?;
        self.all.get(*place)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.all.label(*self.indices.get(index)?)
    }

    fn caption(&self, index: usize) -> Option<Arc<str>> {
        self.all.caption(*self.indices.get(index)?)
    }

    fn class_names(&self) -> &[String] {
        self.all.class_names()
    }

    fn fingerprint(&self) -> String {
        self.all.fingerprint()
    }

    fn describe(&self) -> String {
        format!("{} of {}", self.indices.len(), self.all.describe())
    }
}
