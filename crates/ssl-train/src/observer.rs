//! Those who look on: progress bars, loggers, monitors.

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport<'a> {
    /// Optimiser steps done, this one included.
    pub step: usize,
    /// Optimiser steps of the whole run.
    pub total_steps: usize,
    /// Epoch of this step, counted from 0.
    pub epoch: usize,
    /// Epochs of the whole run.
    pub epochs: usize,
    /// Value of the loss.
    pub loss: f64,
    /// The method's terms and our monitors, by name.
    pub terms: &'a [(&'static str, f64)],
    /// Norms of the gradients of the network's layers, from its input on.
    pub layer_grad_norms: &'a [f64],
    /// Learning rate of this step.
    pub lr: f64,
    /// Images of this step.
    pub images: usize,
    /// Seconds that this step took.
    pub seconds: f64,
    /// Seconds of these in which the training thread waited for images.
    pub wait_seconds: f64,
}

/// What the features of a run are like.
#[derive(Clone, Copy, Debug)]
pub struct MeasureReport<'a> {
    /// Optimiser steps done.
    pub step: usize,
    /// Epochs done.
    pub epoch: f64,
    /// The [`Measures`](crate::Measures), and the accuracies if there are some, by name.
    pub values: &'a [(&'static str, f64)],
}

/// What an observer wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Write a checkpoint and end the run.
    Stop,
}

/// Looks at a run and may ask it to stop; changes nothing.
pub trait Observer {
    /// Called before the first step with the number of steps already done and of the whole run.
    fn on_start(&mut self, _done: usize, _total_steps: usize) {}

    /// Called while the method is shown all images, before a step: SeLa's labels and BEiT's codes are found that way. `done`
    /// of them have been shown, `total` when it is at its end.
    fn on_pass(&mut self, _done: usize, _total: usize) {}

    /// Called after every step.
    fn on_step(&mut self, _report: &StepReport<'_>) -> Control {
        Control::Continue
    }

    /// Called when features were measured.
    fn on_measure(&mut self, _report: &MeasureReport<'_>) {}

    /// Called with a sentence that a person should read.
    fn on_notice(&mut self, _notice: &str) {}
}
