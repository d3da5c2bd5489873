//! A pass over all images between two steps, for methods that look at them before they train on.

use std::sync::atomic::{AtomicBool, Ordering};

use ssl_methods::{Method, StepContext};

use crate::error::{Error, Result};
use crate::loader::Loader;
use crate::observer::Observer;

/// Shows `method` the `total` images of `loader`. `false` if somebody asked to stop before it had seen all: then it is as
/// it was.
pub(crate) fn show_all(
    method: &mut dyn Method,
    context: &StepContext,
    loader: &mut Loader,
    total: usize,
    observers: &mut [Box<dyn Observer>],
    stop: &AtomicBool,
) -> Result<bool> {
    let mut done = 0;
    // An error of the loader keeps its kind; to the method it is only the end of the pass, as a stop is.
    let (mut failed, mut stopped) = (None, false);
    let mut batches = std::iter::from_fn(|| {
        observers.iter_mut().for_each(|observer| observer.on_pass(done, total));
        stopped = done < total && stop.load(Ordering::Relaxed);
        if stopped {
            return Some(Err(candle_core::Error::Msg("the pass was stopped".to_owned())));
        }
        match loader.next_batch()? {
            Ok(batch) => {
                done += batch.index.len();
                Some(Ok(batch))
            }
            Err(error) => {
                let told = candle_core::Error::Msg(error.to_string());
                failed = Some(error);
                Some(Err(told))
            }
        }
    });
    let shown = method.pass(context, &mut batches);
    match failed {
        Some(error) => Err(error),
        None if stopped => Ok(false),
        None => shown.map(|()| true).map_err(Error::from),
    }
}
