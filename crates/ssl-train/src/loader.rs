//! Decodes and augments on threads of its own, ahead of the step that needs the images.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use candle_core::{Device, Tensor};
use ssl_augment::{Image, MultiView, Normalize};
use ssl_data::{Dataset, Tolerant};
use ssl_methods::Batch;
use ssl_nn::{Purpose, Rng, rng};
use ssl_text::ClipTokenizer;

use crate::captions::Captions;
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::sampler::Sampler;

/// Batches that may wait for the training thread, beyond one for each worker.
const AHEAD: usize = 2;

/// Yields the micro-batches of a run in order.
///
/// Every view is a function of the seed, the epoch, the image and the number of the view, and so is the text of an image,
/// so neither the number of workers nor the first batch changes what a batch holds.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    device: Device,
}

impl Loader {
    /// Starts `threads` workers on the micro-batches `range` of a run, counted from its start.
    ///
    /// # Errors
    /// If the recipe's augmentation is impossible or a thread cannot be started.
    pub fn new(
        recipe: &Recipe,
        images: Arc<Tolerant>,
        range: Range<usize>,
        threads: usize,
        device: &Device,
    ) -> Result<Self> {
        let sampler = Sampler::of_recipe(recipe, images.len());
        let order = Mutex::new((usize::MAX, Arc::default()));
        let plan = Plan::Steps { sampler, parts: recipe.train.accumulate, order };
        Self::start(Maker::of_recipe(recipe, images, plan)?, range, threads, device)
    }

    /// Starts `threads` workers on the first `steps` batches of a training with labels, on one view of each image.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(crate) fn labelled(
        sampler: Sampler,
        images: Arc<Tolerant>,
        view: MultiView,
        normalize: Normalize,
        steps: usize,
        threads: usize,
        device: &Device,
    ) -> Result<Self> {
        let plan = Plan::Steps { sampler, parts: 1, order: Mutex::new((usize::MAX, Arc::default())) };
        let (sizes, views, seed) = (view.sizes(), (view, None), sampler.seed);
        let maker = Maker { images, captions: None, views, sizes, normalize, float: false, seed, plan };
        Self::start(maker, 0..steps, threads, device)
    }

    /// Starts `threads` workers on one pass over all images in their order, between the steps `step − 1` and `step`.
    ///
    /// Its batches are nearly equal and at most as large as a micro-batch. Its views are those of training, with random
    /// numbers of their own.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub(crate) fn pass(
        recipe: &Recipe,
        images: Arc<Tolerant>,
        step: usize,
        threads: usize,
        device: &Device,
    ) -> Result<Self> {
        let batches = images.len().div_ceil(recipe.train.batch_size / recipe.train.accumulate);
        let plan = Plan::Pass { step, batches };
        Self::start(Maker::of_recipe(recipe, images, plan)?, 0..batches, threads, device)
    }

    /// Starts `threads` workers on `draws` sets of views of the images `index`, one batch a set. They are the same whenever
    /// in the run they are asked for.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub(crate) fn measure(
        recipe: &Recipe,
        images: Arc<Tolerant>,
        index: Vec<usize>,
        draws: usize,
        threads: usize,
        device: &Device,
    ) -> Result<Self> {
        let maker = Maker::of_recipe(recipe, images, Plan::Measure { index })?;
        Self::start(maker, 0..draws, threads, device)
    }

    fn start(maker: Maker, range: Range<usize>, threads: usize, device: &Device) -> Result<Self> {
        let maker = Arc::new(maker);
        let queue =
            Queue { next_job: range.start, next_out: range.start, end: range.end, ..Default::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new() });
        let mut loader = Self { shared: shared.clone(), workers: Vec::new(), device: device.clone() };
        for number in 0..threads.max(1) {
            let (shared, maker) = (shared.clone(), maker.clone());
            let name = format!("loader-{number}");
            let limit = threads.max(1) + AHEAD;
            let worker =
                std::thread::Builder::new().name(name.clone()).spawn(move || work(&shared, &maker, limit));
            loader.workers.push(worker.map_err(Error::io(std::path::Path::new(&name)))?);
        }
        Ok(loader)
    }

    /// The next micro-batch, or `None` after the last.
    ///
    /// # Errors
    /// If an image cannot be decoded and the policy says stop.
    pub fn next_batch(&mut self) -> Option<Result<Batch>> {
        self.next_host().map(|host| host.and_then(|host| host.into_batch(&self.device)))
    }

    /// The next micro-batch with the labels of its images.
    ///
    /// # Errors
    /// As [`Loader::next_batch`], or if an image has no label.
    pub(crate) fn next_labelled(&mut self) -> Option<Result<(Batch, Vec<u32>)>> {
        let host = self.next_host()?;
        Some(host.and_then(|host| {
            let label = |(label, index): (&Option<u32>, &usize)| {
                label.ok_or_else(|| Error::Recipe(format!("image {index} has no label")))
            };
            let labels = host.labels.iter().zip(&host.index).map(label).collect::<Result<_>>()?;
            Ok((host.into_batch(&self.device)?, labels))
        }))
    }

    fn next_host(&mut self) -> Option<Result<HostBatch>> {
        let mut queue = self.shared.lock();
        let host = loop {
            if queue.next_out == queue.end {
                return None;
            }
            let wanted = queue.next_out;
            if let Some(host) = queue.ready.remove(&wanted) {
                queue.next_out += 1;
                self.shared.changed.notify_all();
                break host;
            }
            if queue.lost_worker {
                return Some(Err(Error::Candle(candle_core::Error::Msg(
                    "a loader thread panicked".to_owned(),
                ))));
            }
            queue = self.shared.wait(queue);
        };
        Some(host)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().end = 0;
        self.shared.changed.notify_all();
        for worker in self.workers.drain(..) {
            // A panic of a worker has been reported by `next_batch`.
            let _ = worker.join();
        }
    }
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    next_job: usize,
    next_out: usize,
    /// One past the last batch; 0 asks the workers to stop.
    end: usize,
    ready: BTreeMap<usize, Result<HostBatch>>,
    lost_worker: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the training thread if a worker dies, which would otherwise wait for ever.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().lost_worker = true;
            self.0.changed.notify_all();
        }
    }
}

fn work(shared: &Shared, maker: &Maker, limit: usize) {
    let _alarm = Alarm(shared);
    loop {
        let mut queue = shared.lock();
        while queue.next_job < queue.end && queue.next_job >= queue.next_out + limit {
            queue = shared.wait(queue);
        }
        if queue.next_job >= queue.end {
            return;
        }
        let job = queue.next_job;
        queue.next_job += 1;
        drop(queue);
        let batch = maker.make(job);
        shared.lock().ready.insert(job, batch);
        shared.changed.notify_all();
    }
}

/// A batch before it becomes tensors.
#[derive(Debug)]
struct HostBatch {
    /// Pixels of each view, `(B, 3, S, S)`, and its size `S`.
    views: Vec<(Vec<f32>, usize)>,
    index: Vec<usize>,
    labels: Vec<Option<u32>>,
    /// Token ids, `(B, 77)`.
    text: Option<Vec<u32>>,
}

impl HostBatch {
    fn into_batch(self, device: &Device) -> Result<Batch> {
        let n = self.index.len();
        let text =
            self.text.map(|ids| Tensor::from_vec(ids, (n, ClipTokenizer::CONTEXT), device)).transpose()?;
        let tensor = |(pixels, size)| Tensor::from_vec(pixels, (n, 3, size, size), device);
        let views = self.views.into_iter().map(tensor).collect::<candle_core::Result<_>>()?;
        Ok(Batch { views, index: self.index, text })
    }
}

/// Which images a batch holds.
#[derive(Debug)]
enum Plan {
    /// The micro-batches of a run.
    Steps {
        sampler: Sampler,
        parts: usize,
        /// The order of the epoch last asked for.
        order: Mutex<(usize, Arc<Vec<usize>>)>,
    },
    /// All images once, in their order.
    Pass { step: usize, batches: usize },
    /// The same few images in every batch.
    Measure { index: Vec<usize> },
}

impl Plan {
    /// The images of batch `number`, and the purpose and time of their random numbers.
    fn batch(&self, number: usize, images: usize) -> (Vec<usize>, Purpose, u64) {
        match self {
            Self::Steps { sampler, parts, order } => {
                let (step, part) = (number / parts, number % parts);
                let (epoch, place) = (step / sampler.steps_per_epoch(), step % sampler.steps_per_epoch());
                let n = sampler.batch_size / parts;
                let start = place * sampler.batch_size + part * n;
                let mut order = order.lock().unwrap_or_else(PoisonError::into_inner);
                if order.0 != epoch {
                    *order = (epoch, Arc::new(sampler.order(epoch)));
                }
                (order.1[start..start + n].to_vec(), Purpose::Augment, epoch as u64)
            }
            Self::Pass { step, batches } => {
                let bound = |number: usize| number * images / batches;
                ((bound(number)..bound(number + 1)).collect(), Purpose::Pass, *step as u64)
            }
            Self::Measure { index } => (index.clone(), Purpose::Measure, number as u64),
        }
    }
}

/// Makes any batch of its plan from its number.
#[derive(Debug)]
struct Maker {
    images: Arc<Tolerant>,
    captions: Option<Captions>,
    /// Those of images, and those of their partners.
    views: (MultiView, Option<MultiView>),
    sizes: Vec<usize>,
    normalize: Normalize,
    float: bool,
    seed: u64,
    plan: Plan,
}

impl Maker {
    fn of_recipe(recipe: &Recipe, images: Arc<Tolerant>, plan: Plan) -> Result<Self> {
        let captions = recipe.text.as_ref().map(|text| Captions::new(text, images.class_names()));
        Ok(Self {
            images,
            captions: captions.transpose()?,
            views: recipe.views()?,
            sizes: recipe.view_sizes()?,
            normalize: recipe.augment.normalize()?,
            float: recipe.augment.is_float()?,
            seed: recipe.seed,
            plan,
        })
    }

    fn make(&self, number: usize) -> Result<HostBatch> {
        let (index, purpose, time) = self.plan.batch(number, self.images.len());
        let n = index.len();
        let (own, of_partners) = &self.views;
        let mut views: Vec<_> =
            self.sizes.iter().map(|size| (vec![0f32; n * 3 * size * size], *size)).collect();
        let mut text = self.captions.as_ref().map(|_| Vec::new());
        let mut labels = Vec::with_capacity(n);
        for (row, image) in index.iter().enumerate() {
            let sample = self.images.get(*image)?;
            labels.push(sample.label);
            if let (Some(captions), Some(text)) = (&self.captions, &mut text) {
                let pass = u32::from(purpose == Purpose::Pass);
                let mut rng = rng(self.seed, Purpose::Caption, time, *image as u64, pass);
                text.extend(captions.ids(&sample, &mut rng)?);
            }
            let rng = |view: usize| rng(self.seed, purpose, time, *image as u64, view as u32);
            let (first, second) = views.split_at_mut(own.len());
            self.write_views(own, &sample.image, rng, row, first)?;
            if let (Some(of_partners), Some(partner)) = (of_partners, &sample.partner) {
                let rng = |view: usize| rng(own.len() + view);
                self.write_views(of_partners, partner, rng, row, second)?;
            }
        }
        Ok(HostBatch { views, index, labels, text })
    }

    fn write_views(
        &self,
        views: &MultiView,
        image: &Image,
        rng: impl Fn(usize) -> Rng,
        row: usize,
        out: &mut [(Vec<f32>, usize)],
    ) -> Result<()> {
        if self.float {
            self.write_row(&views.views(&image.to_float(), rng), row, out)
        } else {
            self.write_row(&views.views(image, rng), row, out)
        }
    }

    fn write_row<S: ssl_augment::Sample>(
        &self,
        views: &[ssl_augment::Image<S>],
        row: usize,
        out: &mut [(Vec<f32>, usize)],
    ) -> Result<()> {
        for (view, (pixels, size)) in views.iter().zip(out) {
            let len = 3 * *size * *size;
            self.normalize.write_chw(view, &mut pixels[row * len..(row + 1) * len])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::images::Images;

    /// A BMP file of `side` x `side` pixels of changing colours.
    fn bmp(side: u32, seed: u32) -> Vec<u8> {
        let row_bytes = (3 * side).next_multiple_of(4);
        let mut file = b"BM".to_vec();
        for word in
            [54 + row_bytes * side, 0, 54, 40, side, side, 1 | 24 << 16, 0, row_bytes * side, 0, 0, 0, 0]
        {
            file.extend(word.to_le_bytes());
        }
        file.extend((0..row_bytes * side).map(|i| (i % 253 * (i % 7) + 31 * seed) as u8));
        file
    }

    /// Two epochs of batches: the indices and all pixels.
    fn batches(folder: &Path, cache_mib: &str, threads: usize) -> (Vec<usize>, Vec<f32>) {
        let settings = [
            ("data.cache_mib", cache_mib),
            ("data.on_error", "skip"),
            ("augment.size", "16"),
            ("train.batch_size", "4"),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let recipe = Recipe::load("simclr-cifar10", &settings).unwrap();
        let images = Images::of_recipe(&recipe, folder).unwrap().train;
        let mut loader = Loader::new(&recipe, images, 0..6, threads, &Device::Cpu).unwrap();
        let (mut index, mut pixels) = (Vec::new(), Vec::new());
        while let Some(batch) = loader.next_batch() {
            let batch = batch.unwrap();
            index.extend(batch.index);
            for view in batch.views {
                pixels.extend(view.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            }
        }
        (index, pixels)
    }

    #[test]
    fn a_pass_shows_every_image_once_in_batches_of_nearly_one_size() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..11 {
            std::fs::write(folder.path().join(format!("{i:02}.bmp")), bmp(20, i)).unwrap();
        }
        let settings = [("augment.size", "16"), ("train.batch_size", "4")];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let recipe = Recipe::load("simclr-cifar10", &settings).unwrap();
        let images = Images::of_recipe(&recipe, folder.path()).unwrap().train;
        let pass = |step| {
            let mut loader = Loader::pass(&recipe, images.clone(), step, 2, &Device::Cpu).unwrap();
            std::iter::from_fn(move || loader.next_batch())
                .map(std::result::Result::unwrap)
                .collect::<Vec<_>>()
        };
        let batches = pass(3);
        assert_eq!(batches.iter().map(|batch| batch.index.len()).collect::<Vec<_>>(), [3, 4, 4]);
        assert_eq!(
            batches.iter().flat_map(|batch| batch.index.clone()).collect::<Vec<_>>(),
            (0..11).collect::<Vec<_>>()
        );
        let pixels = |batch: &Batch| batch.views[0].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(pixels(&batches[0]), pixels(&pass(3)[0]));
        assert_ne!(pixels(&batches[0]), pixels(&pass(4)[0]));
    }

    #[test]
    fn large_jpegs_are_reduced_as_far_as_the_views_allow() {
        let photo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/images/progressive.jpg");
        let folder = tempfile::tempdir().unwrap();
        for i in 0..4 {
            std::fs::copy(photo, folder.path().join(format!("{i}.jpg"))).unwrap();
        }
        let images = |settings: &[(&str, &str)]| {
            let settings = settings.iter().map(|(key, value)| (key.to_string(), value.to_string()));
            let recipe = Recipe::load("simclr-cifar10", &settings.collect::<Vec<_>>()).unwrap();
            let train = Images::of_recipe(&recipe, folder.path()).unwrap().train;
            let image = train.get(0).unwrap().image;
            (image.width(), image.height())
        };
        // The smallest crops have 6 % of the pixels: of 12x8 enough for a view of 2 pixels, of 6x4 for one of 1.
        assert_eq!(images(&[("augment.size", "1")]), (6, 4));
        assert_eq!(images(&[("augment.size", "2")]), (12, 8));
        assert_eq!(images(&[("augment.size", "3")]), (48, 32));
        assert_eq!(images(&[("augment.size", "2"), ("data.whole_jpegs", "true")]), (48, 32));
    }

    #[test]
    fn a_cache_changes_no_batch() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..12 {
            // Half of the images fill a cache of one MiB.
            std::fs::write(folder.path().join(format!("{i:02}.bmp")), bmp(250, i)).unwrap();
        }
        std::fs::write(folder.path().join("05.bmp"), b"torn").unwrap();
        let plain = batches(folder.path(), "0", 1);
        assert_eq!(plain.0.len(), 24);
        for cache_mib in ["1", "64"] {
            for threads in [1, 3] {
                assert!(
                    batches(folder.path(), cache_mib, threads) == plain,
                    "{cache_mib} MiB, {threads} threads"
                );
            }
        }
    }
}
