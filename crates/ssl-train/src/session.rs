//! A run from its first step, or from where it stopped, to its results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{Device, Tensor};
use serde_json::Value;
use ssl_data::Dataset;
use ssl_eval::Features;
use ssl_methods::StepContext;
use ssl_nn::{Params, Schedule};

use crate::checkpoint::Checkpoint;
use crate::doctor::Verdict;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluation, Protocol, judge};
use crate::export::export;
use crate::images::{Images, usable_images};
use crate::loader::Loader;
use crate::monitor::{Moment, Monitor, Subject};
use crate::observer::{Control, Observer, StepReport};
use crate::optimizer::Rates;
use crate::pass::show_all;
use crate::recipe::Recipe;
use crate::result::{Summary, Trained};
use crate::run_folder::{Log, RunFolder};
use crate::sampler::Sampler;
use crate::trainer::Trainer;
use crate::zero_shot::zero_shot;

/// How a call of [`Session::train`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// Somebody asked to stop; a checkpoint holds the run after this many steps.
    Interrupted {
        /// Optimiser steps done.
        step: usize,
    },
}

/// One run in its folder.
///
/// Two runs of a recipe on the same data end with the same bits, wherever and however often they were stopped and
/// resumed, and on however many threads.
pub struct Session {
    recipe: Recipe,
    folder: RunFolder,
    images: Images,
    trainer: Trainer,
    log: Log,
    monitor: Monitor,
    device: Device,
    threads: usize,
    /// Optimiser steps done, and saved.
    step: usize,
    saved: Option<usize>,
    trained: Trained,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("folder", &self.folder)
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Starts a new run on the images at `data` in the folder `out`.
    ///
    /// # Errors
    /// If the data cannot be used with the recipe, or `out` holds a run already. Nothing is written before all is checked.
    pub fn start(recipe: Recipe, data: &Path, out: &Path, device: &Device, threads: usize) -> Result<Self> {
        let images = usable_images(&recipe, data)?;
        let trainer = Trainer::new(&recipe, images.train.len(), device)?;
        let folder = RunFolder::create(out, &recipe)?;
        Self::assemble(recipe, folder, images, trainer, (0, 0), device, threads)
    }

    /// Goes on with the run in the folder `out` from its newest intact checkpoint. `data` tells where its images lie now.
    ///
    /// `wanted` returns what the caller thinks the recipe is, given the run's own; the two must agree in all that changes
    /// the result. Its `backbone.recompute` holds until the session ends; the run's files keep their recipe. Sentences
    /// for a person, such as about a damaged checkpoint, go to `observers`.
    ///
    /// # Errors
    /// If there is no run, its checkpoints are damaged or belong to another recipe or data, or it is in use.
    pub fn resume(
        out: &Path,
        data: impl FnOnce(&Recipe) -> PathBuf,
        wanted: impl FnOnce(&Recipe) -> Result<Recipe>,
        device: &Device,
        threads: usize,
        observers: &mut [Box<dyn Observer>],
    ) -> Result<Self> {
        let (folder, recipe) = RunFolder::open(out)?;
        let wanted = wanted(&recipe)?;
        let mut notice = |text: &str| observers.iter_mut().for_each(|observer| observer.on_notice(text));
        let latest = folder.latest(device, &mut notice)?;
        let (place, theirs) = match &latest {
            Some((path, checkpoint)) => (path.as_path(), &checkpoint.recipe),
            None => (out, &recipe),
        };
        let differences = wanted.differences(theirs)?;
        if !differences.is_empty() {
            let reason = format!("belongs to another recipe: {}", differences.join("; "));
            return Err(Error::Checkpoint { path: place.to_owned(), reason });
        }
        let images = usable_images(&wanted, &data(&wanted))?;
        if let Some((path, checkpoint)) = &latest {
            checkpoint.check_data(path, &images.fingerprint)?;
        }
        let at =
            latest.as_ref().map_or((0, 0), |(_, checkpoint)| (checkpoint.step, checkpoint.metrics_bytes));
        let trainer = Trainer::new(&wanted, images.train.len(), device)?;
        let mut session = Self::assemble(recipe, folder, images, trainer, at, device, threads)?;
        if let Some((path, checkpoint)) = latest {
            let refuse =
                |e: candle_core::Error| Error::Checkpoint { path: path.clone(), reason: e.to_string() };
            session.trainer.params.load(&checkpoint.params).map_err(refuse)?;
            session.trainer.optimizer.load_state(&checkpoint.optimizer).map_err(refuse)?;
            session.saved = Some(checkpoint.step);
        }
        Ok(session)
    }

    fn assemble(
        recipe: Recipe,
        folder: RunFolder,
        images: Images,
        trainer: Trainer,
        (step, metrics_bytes): (usize, u64),
        device: &Device,
        threads: usize,
    ) -> Result<Self> {
        let log = folder.metrics(metrics_bytes)?;
        let last = last_step(&recipe, images.train.len());
        let monitor = Monitor::open(&folder, &recipe.method, step, last)?;
        let device = device.clone();
        Ok(Self {
            recipe,
            folder,
            images,
            trainer,
            log,
            monitor,
            device,
            threads,
            step,
            saved: None,
            trained: Trained::default(),
        })
    }

    /// The recipe of the run.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The images of the run.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The folder of the run.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Optimiser steps done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The store of parameters and buffers.
    pub fn params(&self) -> &Params {
        &self.trainer.params
    }

    /// Share of its training time in this process, in [0, 1], that the training thread waited for images; `None` before
    /// the first step. Above some 5 % more loader threads, smaller files or a cache (`data.cache_mib`) would help.
    pub fn wait_share(&self) -> Option<f64> {
        self.trained.wait_share()
    }

    /// What the doctor has said of the run so far, in this process and before.
    pub fn verdicts(&self) -> &[Verdict] {
        self.monitor.verdicts()
    }

    /// Share of its time in this process, in [0, 1], in which features were measured; `None` before the first step.
    pub fn measure_share(&self) -> Option<f64> {
        let (training, measuring) = (self.trained.seconds, self.monitor.seconds());
        (training > 0.0).then(|| measuring / (training + measuring))
    }

    /// Optimiser steps that the run will have done at its end.
    pub fn last_step(&self) -> usize {
        last_step(&self.recipe, self.images.train.len())
    }

    /// Trains to the end, or until `stop` is set or an observer says so; then the step is finished and a checkpoint
    /// written.
    ///
    /// # Errors
    /// If a number is not finite, an image cannot be decoded, or the file system refuses. The last checkpoint stays.
    pub fn train(&mut self, observers: &mut [Box<dyn Observer>], stop: &AtomicBool) -> Result<Outcome> {
        let (steps_per_epoch, last) = (self.sampler().steps_per_epoch(), self.last_step());
        let (lr, weight_decay) = self.schedules();
        let parts = self.recipe.train.accumulate;
        let range = self.step * parts..last * parts;
        let mut loader =
            Loader::new(&self.recipe, self.images.train.clone(), range, self.threads, &self.device)?;
        observers.iter_mut().for_each(|observer| observer.on_start(self.step, last));
        self.measure(observers)?;
        while self.step < last {
            let started = Instant::now();
            let context = self.context();
            if self.trainer.method.wants_pass(&context) && !self.pass(&context, observers, stop)? {
                self.save()?;
                return Ok(Outcome::Interrupted { step: self.step });
            }
            let rate = lr.at(self.step);
            let rates = Rates { lr: rate, weight_decay_factor: weight_decay.at(self.step) };
            let measured = self.trainer.step(&mut loader, &context, rates);
            if let Err(Error::NonFinite { .. }) = &measured {
                self.monitor.tell_ancestry(observers);
            }
            let measured = measured?;
            let epoch = self.step / steps_per_epoch;
            self.step += 1;
            self.log.append(&measured.line(self.step, epoch, rate))?;
            let seconds = started.elapsed().as_secs_f64();
            self.trained.steps += 1;
            self.trained.seconds += seconds;
            self.trained.wait_seconds += measured.wait_seconds;
            let report = StepReport {
                step: self.step,
                total_steps: last,
                epoch,
                epochs: self.recipe.train.epochs,
                loss: measured.loss,
                terms: &measured.terms,
                layer_grad_norms: &measured.layer_grad_norms,
                lr: rate,
                images: self.recipe.train.batch_size,
                seconds,
                wait_seconds: measured.wait_seconds,
            };
            self.monitor.look(self.step, &measured.terms, observers);
            self.measure(observers)?;
            let mut asked = stop.load(Ordering::Relaxed);
            for observer in observers.iter_mut() {
                asked |= observer.on_step(&report) == Control::Stop;
            }
            let interrupted = asked && self.step < last;
            if interrupted
                || self.step == last
                || self.step.is_multiple_of(self.recipe.checkpoint.every_steps)
            {
                self.save()?;
            }
            if interrupted {
                return Ok(Outcome::Interrupted { step: self.step });
            }
        }
        if self.saved != Some(self.step) {
            self.save()?;
        }
        Ok(Outcome::Finished)
    }

    /// Measures features, if it is time for it.
    fn measure(&mut self, observers: &mut [Box<dyn Observer>]) -> Result<()> {
        let moment = Moment {
            step: self.step,
            last: self.last_step(),
            steps_per_epoch: self.sampler().steps_per_epoch(),
        };
        let subject = Subject {
            encoder: self.trainer.method.encoder(),
            recipe: &self.recipe,
            images: &self.images,
            threads: self.threads,
            device: &self.device,
        };
        self.monitor.measure(moment, &subject, observers)
    }

    /// Shows the method all images. `false` if somebody asked to stop before it had seen all: then it is as it was.
    fn pass(
        &mut self,
        context: &StepContext,
        observers: &mut [Box<dyn Observer>],
        stop: &AtomicBool,
    ) -> Result<bool> {
        let (images, total) = (self.images.train.clone(), self.images.train.len());
        let mut loader = Loader::pass(&self.recipe, images, context.step, self.threads, &self.device)?;
        show_all(&mut *self.trainer.method, context, &mut loader, total, observers, stop)
    }

    fn context(&self) -> StepContext {
        StepContext {
            step: self.step,
            total_steps: self.total_steps(),
            steps_per_epoch: self.sampler().steps_per_epoch(),
            part: 0,
            seed: self.recipe.seed,
        }
    }

    /// Writes the encoder under torchvision's names to `encoder.safetensors` in the run's folder.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn export(&self) -> Result<PathBuf> {
        let path = self.folder.path().join("encoder.safetensors");
        self.export_to(&path)?;
        Ok(path)
    }

    /// Writes the encoder under torchvision's names to `path`.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn export_to(&self, path: &Path) -> Result<()> {
        export(path, &self.recipe, tensors(&self.trainer.params))
    }

    /// Judges the encoder and its baselines; `None` if the data has no labels.
    ///
    /// # Errors
    /// If an image cannot be decoded or a feature is not finite.
    pub fn evaluate(&self, progress: impl FnMut(&str)) -> Result<Option<Evaluation>> {
        if !self.images.can_evaluate() {
            return Ok(None);
        }
        let (method, protocol) = (&self.trainer.method, Protocol::of_recipe(&self.recipe));
        let zero_shot = |test: &Features| match (method.dual_encoder(), &self.recipe.text) {
            (Some(towers), Some(text)) => {
                zero_shot(towers, text, self.images.class_names(), test, &self.device).map(Some)
            }
            _ => Ok(None),
        };
        judge(method.encoder(), &protocol, &self.images, &self.device, progress, zero_shot).map(Some)
    }

    /// Writes `result.json` and returns what it holds.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn write_result(&self, evaluation: Option<&Evaluation>) -> Result<Value> {
        let summary = Summary {
            recipe: &self.recipe,
            images: &self.images,
            step: self.step,
            threads: self.threads,
            trained: self.trained,
            measure_share: self.measure_share(),
            verdicts: self.verdicts(),
        };
        let result = summary.to_json(evaluation)?;
        let text = serde_json::to_string_pretty(&result).map_err(candle_core::Error::wrap)?;
        self.folder.write("result.json", format!("{text}\n").as_bytes())?;
        Ok(result)
    }

    fn save(&mut self) -> Result<()> {
        self.monitor.sync()?;
        let checkpoint = Checkpoint {
            step: self.step,
            metrics_bytes: self.log.sync()?,
            recipe: self.recipe.clone(),
            fingerprint: self.images.fingerprint.clone(),
            params: tensors(&self.trainer.params),
            optimizer: self.trainer.optimizer.state()?,
        };
        self.folder.save(&checkpoint, self.recipe.checkpoint.keep)?;
        self.saved = Some(self.step);
        Ok(())
    }

    fn sampler(&self) -> Sampler {
        Sampler::of_recipe(&self.recipe, self.images.train.len())
    }

    fn total_steps(&self) -> usize {
        self.recipe.train.epochs * self.sampler().steps_per_epoch()
    }

    /// The learning rate and the factor on the weight decay.
    fn schedules(&self) -> (Schedule, Schedule) {
        let (steps_per_epoch, total) = (self.sampler().steps_per_epoch(), self.total_steps());
        let schedule = &self.recipe.schedule;
        (schedule.build(self.recipe.optimizer.lr(), steps_per_epoch, total), schedule.weight_decay(total))
    }
}

/// Optimiser steps that a run has done at its end.
fn last_step(recipe: &Recipe, images: usize) -> usize {
    let total = recipe.train.epochs * Sampler::of_recipe(recipe, images).steps_per_epoch();
    match recipe.train.max_steps {
        0 => total,
        limit => limit.min(total),
    }
}

fn tensors(params: &Params) -> BTreeMap<String, Tensor> {
    params.all().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect()
}
