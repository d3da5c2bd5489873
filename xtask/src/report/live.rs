//! Pictures of a run that trains, made beside it by one thread whenever there is a new checkpoint.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use candle_core::Device;
use ssl_vision::report::Section;
use ssl_vision::train::{Checkpoint, Images, RunFolder};

use super::gallery;
use super::run::Run;

/// How often the folder is looked at.
const POLL: Duration = Duration::from_secs(1);

/// After pictures were made the thread rests so many times as long, so that the training keeps its cores.
const REST: u32 = 10;

/// The newest pictures of a run.
#[derive(Debug, Clone, Default)]
pub(super) struct Live {
    made: Arc<Mutex<Made>>,
}

#[derive(Debug, Default)]
struct Made {
    sections: Vec<Section>,
    /// Whether there will be no newer ones.
    last: bool,
}

impl Live {
    /// Never has any.
    pub(super) fn without_pictures() -> Self {
        let live = Self::default();
        live.change(|made| made.last = true);
        live
    }

    /// Begins to make pictures of the run in `folder`, until it has ended.
    pub(super) fn start(folder: &Path) -> anyhow::Result<Self> {
        let live = Self::default();
        let (own, folder) = (live.clone(), folder.to_owned());
        let work = move || {
            if let Err(error) = own.work(&folder) {
                eprintln!("the page has no newer pictures: {error:#}");
            }
            own.change(|made| made.last = true);
        };
        // A deep network is dropped by recursion.
        thread::Builder::new().stack_size(64 << 20).spawn(work).context("no thread could be started")?;
        Ok(live)
    }

    /// The newest pictures, and whether they are the last.
    pub(super) fn sections(&self) -> (Vec<Section>, bool) {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        (made.sections.clone(), made.last)
    }

    fn change(&self, change: impl FnOnce(&mut Made)) {
        change(&mut self.made.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn work(&self, folder: &Path) -> anyhow::Result<()> {
        let recipe = Run::read(folder)?.recipe;
        let images = gallery::images_of(&recipe)?;
        let views = gallery::of_views(&recipe, &images)?;
        self.change(|made| made.sections = vec![views]);
        let has_ended = || folder.join("result.json").is_file();
        let mut seen = None;
        loop {
            // Asked first: the last checkpoint is older than the result.
            let ended = has_ended();
            let started = Instant::now();
            let newest = RunFolder::checkpoints_of(folder)?.pop().filter(|path| seen.as_ref() != Some(path));
            if let Some(path) = newest {
                self.look(&path, &images);
                seen = Some(path);
            }
            if ended {
                return Ok(());
            }
            let until = Instant::now() + POLL.max(REST * started.elapsed());
            while Instant::now() < until && !has_ended() {
                thread::sleep(POLL);
            }
        }
    }

    /// Makes pictures of a checkpoint. One that cannot be read leaves the older pictures: the training may just have removed it.
    fn look(&self, path: &Path, images: &Images) {
        let checkpoint = Checkpoint::load(path, &Device::Cpu).map_err(anyhow::Error::from);
        match checkpoint.and_then(|checkpoint| gallery::of_checkpoint(checkpoint, images.clone())) {
            Ok(sections) => self.change(|made| made.sections = sections),
            Err(error) => eprintln!("no pictures of {}: {error:#}", path.display()),
        }
    }
}
