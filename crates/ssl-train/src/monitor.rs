//! Those who look at a run besides its training: the measures between epochs, and the doctor. They change nothing of it.

use std::time::Instant;

use candle_core::Device;
use serde_json::{Map, Value, json};
use ssl_backbones::Backbone;
use ssl_methods::MethodConfig;

use crate::doctor::{Doctor, Verdict};
use crate::error::Result;
use crate::evaluate::{Protocol, score};
use crate::history::History;
use crate::images::Images;
use crate::measure::{Measures, measured_features};
use crate::observer::{MeasureReport, Observer};
use crate::recipe::Recipe;
use crate::run_folder::{Log, RunFolder};

/// The measures and the doctor of one run.
pub(crate) struct Monitor {
    /// `measures.jsonl`.
    log: Log,
    /// The step of its last line.
    measured: Option<usize>,
    doctor: Doctor,
    verdicts: Vec<Verdict>,
    /// Spent on measures in this process.
    seconds: f64,
}

/// When a run is measured.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    /// Optimiser steps done.
    pub(crate) step: usize,
    /// Those of the whole run.
    pub(crate) last: usize,
    pub(crate) steps_per_epoch: usize,
}

impl Moment {
    /// Whether it is time for something that happens every so many epochs, at the start and at the end of the run, or never.
    fn is_due(self, every_epochs: usize) -> bool {
        let period = every_epochs.saturating_mul(self.steps_per_epoch);
        every_epochs > 0 && (self.step == self.last || self.step.is_multiple_of(period))
    }
}

/// What is measured.
pub(crate) struct Subject<'a> {
    pub(crate) encoder: &'a dyn Backbone,
    pub(crate) recipe: &'a Recipe,
    pub(crate) images: &'a Images,
    pub(crate) threads: usize,
    pub(crate) device: &'a Device,
}

impl Monitor {
    /// Goes on after the first `step` of `last` steps, of which the logs in `folder` tell.
    pub(crate) fn open(folder: &RunFolder, method: &MethodConfig, step: usize, last: usize) -> Result<Self> {
        let log = folder.measures(step)?;
        let history = History::read(folder.path())?;
        let (doctor, verdicts) = history.examine(method, last);
        let measured = history.measure("step").last().map(|(step, _)| step as usize);
        Ok(Self { log, measured, doctor, verdicts, seconds: 0.0 })
    }

    /// What the doctor has said so far.
    pub(crate) fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// Seconds of this process in which features were measured.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Writes what is measured to the disk.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.log.sync().map(drop)
    }

    /// Shows the doctor the terms of step `step`.
    pub(crate) fn look(
        &mut self,
        step: usize,
        terms: &[(&'static str, f64)],
        observers: &mut [Box<dyn Observer>],
    ) {
        let value = |name: &str| terms.iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
        let verdicts = self.doctor.look(step, &value);
        self.tell(verdicts, observers);
    }

    /// Tells what came before a number that is not finite.
    pub(crate) fn tell_ancestry(&self, observers: &mut [Box<dyn Observer>]) {
        let notice = self.doctor.ancestry();
        observers.iter_mut().for_each(|observer| observer.on_notice(&notice));
    }

    /// Measures features, if it is time for it, and evaluates them.
    pub(crate) fn measure(
        &mut self,
        moment: Moment,
        subject: &Subject<'_>,
        observers: &mut [Box<dyn Observer>],
    ) -> Result<()> {
        let Subject { encoder, recipe, images, threads, device } = *subject;
        let (measures, accuracies) =
            (moment.is_due(recipe.measure.every_epochs), moment.is_due(recipe.eval.every_epochs));
        let Moment { step, steps_per_epoch, .. } = moment;
        if self.measured >= Some(step) || !(measures || accuracies) {
            return Ok(());
        }
        let started = Instant::now();
        let mut values = Vec::new();
        if measures {
            let features = measured_features(encoder, recipe, &images.train, threads, device)?;
            values.extend(Measures::of(&features)?.values());
        }
        if accuracies && images.can_evaluate() {
            let scores = score(encoder, &Protocol::of_recipe(recipe), images, device)?;
            values.extend([("knn", scores.knn), ("linear", scores.linear)]);
        }
        self.measured = Some(step);
        let epoch = step as f64 / steps_per_epoch as f64;
        let mut line = Map::new();
        line.insert("step".to_owned(), json!(step));
        line.insert("epoch".to_owned(), json!(epoch));
        line.extend(values.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        self.log.append(&Value::Object(line))?;
        self.seconds += started.elapsed().as_secs_f64();
        let report = MeasureReport { step, epoch, values: &values };
        observers.iter_mut().for_each(|observer| observer.on_measure(&report));
        let value = |name: &str| values.iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
        let verdicts = self.doctor.look_at_measures(step, &value);
        self.tell(verdicts, observers);
        Ok(())
    }

    /// Tells observers what the doctor says, and remembers it.
    fn tell(&mut self, verdicts: impl IntoIterator<Item = Verdict>, observers: &mut [Box<dyn Observer>]) {
        for verdict in verdicts {
            observers.iter_mut().for_each(|observer| observer.on_notice(&verdict.to_string()));
            self.verdicts.push(verdict);
        }
    }
}
