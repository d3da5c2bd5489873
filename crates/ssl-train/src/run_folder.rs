//! The folder of one run: who may write to it, what lies where, what is kept.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::Device;
use ssl_backbones::write_atomically;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::history::Line;
use crate::recipe::Recipe;

/// Where the checkpoints lie in a run's folder.
const CHECKPOINTS: &str = "checkpoints";

/// A run's folder, locked for as long as this value lives.
///
/// ```text
/// recipe.toml  metrics.jsonl  measures.jsonl  checkpoints/step-….safetensors  encoder.safetensors  result.json
/// ```
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The operating system releases the lock when the process ends, however it ends.
    _lock: File,
}

impl RunFolder {
    /// Makes the folder of a new run and writes its recipe.
    ///
    /// # Errors
    /// If the folder holds a run already, another process uses it, or the file system refuses.
    pub fn create(path: &Path, recipe: &Recipe) -> Result<Self> {
        fs::create_dir_all(path).map_err(Error::io(path))?;
        let folder = Self::lock(path)?;
        if folder.recipe_path().exists() {
            return Err(Error::RunFolder {
                path: path.to_owned(),
                reason: "holds a run already; go on with it by --resume, or choose another folder by --out"
                    .to_owned(),
            });
        }
        let checkpoints = folder.checkpoints_path();
        fs::create_dir_all(&checkpoints).map_err(Error::io(&checkpoints))?;
        folder.write("recipe.toml", recipe.to_toml()?.as_bytes())?;
        Ok(folder)
    }

    /// Opens the folder of a run that was started before, and its recipe.
    ///
    /// # Errors
    /// If it holds no run, another process uses it, or its recipe cannot be read.
    pub fn open(path: &Path) -> Result<(Self, Recipe)> {
        let recipe_path = path.join("recipe.toml");
        if !recipe_path.is_file() {
            return Err(Error::RunFolder {
                path: path.to_owned(),
                reason: "holds no run: there is no recipe.toml".to_owned(),
            });
        }
        let folder = Self::lock(path)?;
        folder.remove_leftovers()?;
        let text = fs::read_to_string(&recipe_path).map_err(Error::io(&recipe_path))?;
        Ok((folder, Recipe::parse(&text, &[])?))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file `name` in the folder, atomically.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path.join(name);
        write_atomically(&path, bytes).map_err(Error::io(&path))?;
        Ok(path)
    }

    /// The newest checkpoint that is intact. Damaged ones are passed over, each with a sentence to `notice`.
    ///
    /// # Errors
    /// If a checkpoint is intact but of another format, or if there are only damaged ones.
    pub fn latest(
        &self,
        device: &Device,
        mut notice: impl FnMut(&str),
    ) -> Result<Option<(PathBuf, Checkpoint)>> {
        let mut broken = 0;
        for path in self.checkpoints()?.into_iter().rev() {
            match Checkpoint::load(&path, device) {
                Ok(checkpoint) => return Ok(Some((path, checkpoint))),
                Err(error @ Error::Weights(ssl_backbones::Error::Corrupt { .. })) => {
                    notice(&format!("checkpoint passed over: {error}"));
                    broken += 1;
                }
                Err(error) => return Err(error),
            }
        }
        if broken > 0 {
            return Err(Error::RunFolder {
                path: self.checkpoints_path(),
                reason: format!("all {broken} checkpoints are damaged; nothing to resume from"),
            });
        }
        Ok(None)
    }

    /// Saves a checkpoint, then removes all but the newest `keep`.
    ///
    /// # Errors
    /// If the file system refuses; the older checkpoints then stay.
    pub fn save(&self, checkpoint: &Checkpoint, keep: usize) -> Result<PathBuf> {
        let path = self.checkpoints_path().join(Checkpoint::file_name(checkpoint.step));
        checkpoint.save(&path)?;
        let all = self.checkpoints()?;
        for old in &all[..all.len().saturating_sub(keep)] {
            fs::remove_file(old).map_err(Error::io(old))?;
        }
        Ok(path)
    }

    /// Paths of the checkpoints, oldest first.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn checkpoints(&self) -> Result<Vec<PathBuf>> {
        Self::checkpoints_of(&self.path)
    }

    /// The same of the run in the folder `run`, without its lock: it may be training, which removes older ones.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn checkpoints_of(run: &Path) -> Result<Vec<PathBuf>> {
        let folder = run.join(CHECKPOINTS);
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&folder).map_err(Error::io(&folder))?;
        let mut paths = entries
            .map(|e| Ok(e?.path()))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(Error::io(&folder))?;
        paths.retain(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            name.starts_with("step-") && name.ends_with(".safetensors")
        });
        paths.sort();
        Ok(paths)
    }

    /// Opens metrics.jsonl and cuts it to `bytes`: what came after the checkpoint will be written again.
    pub(crate) fn metrics(&self, bytes: u64) -> Result<Log> {
        Log::open(self.path.join("metrics.jsonl"), bytes)
    }

    /// Opens measures.jsonl and cuts it after the lines of `step`.
    pub(crate) fn measures(&self, step: usize) -> Result<Log> {
        let path = self.path.join("measures.jsonl");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io(&path)(error)),
        };
        let kept = text.split_inclusive('\n').take_while(|line| {
            let line = serde_json::from_str::<Line>(line).ok();
            line.and_then(|line| line.get("step")?.as_u64()).is_some_and(|own| own <= step as u64)
        });
        Log::open(path, kept.map(|line| line.len() as u64).sum())
    }

    fn lock(path: &Path) -> Result<Self> {
        let file = path.join(".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(Error::io(&file))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::RunFolder {
                path: path.to_owned(),
                reason: "is in use by another run; wait for it, or choose another folder by --out".to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(Error::io(&file)(source)),
        }
    }

    /// Temporary files of a process that was killed while writing.
    fn remove_leftovers(&self) -> Result<()> {
        for folder in [self.path.clone(), self.checkpoints_path()] {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                let name =
                    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                if name.starts_with('.') && name.ends_with(".tmp") {
                    fs::remove_file(&path).map_err(Error::io(&path))?;
                }
            }
        }
        Ok(())
    }

    fn recipe_path(&self) -> PathBuf {
        self.path.join("recipe.toml")
    }

    fn checkpoints_path(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }
}

/// metrics.jsonl or measures.jsonl: JSON objects, one a line, without anything that differs between two equal runs.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(path: PathBuf, bytes: u64) -> Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let mut file = file.map_err(Error::io(&path))?;
        let found = file.metadata().map_err(Error::io(&path))?.len();
        if found < bytes {
            return Err(Error::RunFolder {
                path,
                reason: format!("has {found} bytes, but the checkpoint was written when it had {bytes}"),
            });
        }
        file.set_len(bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(Error::io(&path))?;
        Ok(Self { path, file, bytes })
    }

    /// Appends one line.
    pub(crate) fn append(&mut self, line: &serde_json::Value) -> Result<()> {
        let line = format!("{line}\n");
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Flushes to the disk and returns the length: what a checkpoint may rely on.
    pub(crate) fn sync(&self) -> Result<u64> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        Ok(self.bytes)
    }
}
