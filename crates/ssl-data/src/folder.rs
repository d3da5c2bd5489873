//! Folders of image files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ssl_augment::Resolution;

use crate::cached::Cached;
use crate::captions::Captions;
use crate::fingerprint::Fingerprint;
use crate::open::folder_name;
use crate::{Dataset, Error, Limits, OpenOptions, Result, Sample, Splits, decode_file};

const EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "png", "webp", "bmp"];

/// Opens the image files below `root`, whose name for people is `name`.
pub(crate) fn open(root: &Path, name: &str, options: &OpenOptions) -> Result<Splits> {
    let captions = options.captions.as_ref();
    let captions = captions.map(|file| Captions::read(file, &options.limits)).transpose()?;
    let trained = |mut train: ImageFolder, split: &str, test: &[Vec<u8>]| -> Result<Box<dyn Dataset>> {
        if let Some(captions) = &captions {
            train = train.with_captions(captions, split, test)?;
        }
        let Some(partners) = &options.partners else {
            return Ok(Box::new(Cached::new(train, options.cache_bytes)));
        };
        let partners =
            ImageFolder::open(partners, folder_name(partners), options)?.partners_of(&train, split)?;
        let cached = |images| Cached::new(images, options.cache_bytes / 2);
        Ok(Box::new(Pairs { images: cached(train), partners: cached(partners) }))
    };
    let Some((train, test)) = find_splits(root)? else {
        let images = ImageFolder::open(root, name.to_owned(), options)?;
        return Ok(Splits { train: trained(images, "", &[])?, test: None });
    };
    let open_split = |split: &str| ImageFolder::open(&root.join(split), format!("{name}/{split}"), options);
    let images = open_split(train)?;
    let tested = match test {
        Some(split) => Some((split, open_split(split)?.with_classes_of(&images)?)),
        None => None,
    };
    let others = tested.as_ref().map(|(split, images)| images.keys(split)).unwrap_or_default();
    let test = tested.map(|(_, images)| Box::new(images) as Box<dyn Dataset>);
    Ok(Splits { train: trained(images, train, &others)?, test })
}

/// The sub-folders for training and testing, if `root` is divided so.
///
/// `train` without a sibling to test on is a split only if nothing stands beside it: it may be a class of vehicles.
fn find_splits(root: &Path) -> Result<Option<(&'static str, Option<&'static str>)>> {
    if !root.join("train").is_dir() {
        return Ok(None);
    }
    if let Some(test) = ["test", "val"].into_iter().find(|split| root.join(split).is_dir()) {
        return Ok(Some(("train", Some(test))));
    }
    let alone = visible_entries(root)?
        .iter()
        .all(|path| path.ends_with("train") || path.is_file() && !is_image(path));
    Ok(alone.then_some(("train", None)))
}

/// Image files below one folder, in the byte order of their relative paths.
#[derive(Debug)]
struct ImageFolder {
    name: String,
    root: PathBuf,
    /// Relative to `root`.
    files: Vec<PathBuf>,
    /// The folders of the first level that hold images, in byte order; empty without labels.
    classes: Vec<OsString>,
    /// The same as text.
    class_names: Vec<String>,
    /// One a file, or none at all.
    captions: Vec<Arc<str>>,
    fingerprint: String,
    limits: Limits,
    resolution: Option<Resolution>,
}

impl ImageFolder {
    fn open(root: &Path, name: String, options: &OpenOptions) -> Result<Self> {
        let mut walk = Walk { root, found: Vec::new() };
        let canonical = root.canonicalize().map_err(|error| Error::io(root, error))?;
        walk.visit(root, &mut vec![canonical])?;
        let mut found = walk.found;
        if found.is_empty() {
            let what = if visible_entries(root)?.is_empty() { "is empty" } else { "holds no image file" };
            return Err(Error::unrecognised(root, what));
        }
        found.sort_by_cached_key(|(path, _)| sort_key(path));
        let mut fingerprint = Fingerprint::new("folder");
        for (path, byte_size) in &found {
            fingerprint.add(&sort_key(path));
            fingerprint.add_number(*byte_size);
        }
        let files: Vec<PathBuf> = found.into_iter().map(|(path, _)| path).collect();
        let classes = first_level_folders(&files);
        let class_names = classes.iter().map(|class| class.to_string_lossy().into_owned()).collect();
        let fingerprint = fingerprint.finish();
        Ok(ImageFolder {
            name,
            root: root.to_path_buf(),
            files,
            classes,
            class_names,
            captions: Vec::new(),
            fingerprint,
            limits: options.limits.clone(),
            resolution: options.resolution,
        })
    }

    /// Numbers the classes as `train` does, so that a class that is absent here shifts no label.
    fn with_classes_of(mut self, train: &ImageFolder) -> Result<Self> {
        if train.classes.is_empty() || self.classes.is_empty() {
            return Ok(self);
        }
        if let Some(unknown) = self.classes.iter().find(|class| train.classes.binary_search(class).is_err()) {
            let reason = format!("its class {unknown:?} is not one of {}", train.name);
            return Err(Error::malformed(&self.root, reason));
        }
        self.classes = train.classes.clone();
        self.class_names = train.class_names.clone();
        Ok(self)
    }

    /// The paths as a file of captions has them, from the folder of all `split`s on.
    fn keys(&self, split: &str) -> Vec<Vec<u8>> {
        self.files.iter().map(|file| sort_key(&Path::new(split).join(file))).collect()
    }

    /// Gives every image its caption; those for `others` are passed over.
    fn with_captions(mut self, captions: &Captions, split: &str, others: &[Vec<u8>]) -> Result<Self> {
        self.captions = captions.of_images(&self.keys(split), others)?;
        let mut fingerprint = Fingerprint::new("captions");
        fingerprint.add(self.fingerprint.as_bytes());
        self.captions.iter().for_each(|caption| fingerprint.add(caption.as_bytes()));
        self.fingerprint = fingerprint.finish();
        Ok(self)
    }
}

impl ImageFolder {
    /// The images of this folder that are partners of `images`, which are those of `split`, in their order. Both folders
    /// have the same splits, or this one has none.
    fn partners_of(mut self, images: &ImageFolder, split: &str) -> Result<Self> {
        let bare = |file: &Path| sort_key(&file.with_extension(""));
        let mut places: BTreeMap<Vec<u8>, &PathBuf> = BTreeMap::new();
        for file in &self.files {
            if let Some(other) = places.insert(bare(file), file) {
                let (one, two) = (other.display(), file.display());
                let reason = format!("holds two partners for one image: {one} and {two}");
                return Err(Error::malformed(&self.root, reason));
            }
        }
        let partner = |file: &PathBuf| {
            let found = places.get(&bare(&Path::new(split).join(file))).or_else(|| places.get(&bare(file)));
            found.map(|file| (*file).clone()).ok_or_else(|| {
                let image = images.root.join(file);
                let reason =
                    format!("holds no partner of {}: no image of that path below it", image.display());
                Error::malformed(&self.root, reason)
            })
        };
        let files = images.files.iter().map(partner).collect::<Result<Vec<_>>>()?;
        self.files = files;
        Ok(self)
    }
}

/// Images and, in the same order, their partners.
#[derive(Debug)]
struct Pairs {
    images: Cached<ImageFolder>,
    partners: Cached<ImageFolder>,
}

impl Dataset for Pairs {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn get(&self, index: usize) -> Result<Sample> {
        let partner = self.partners.get(index)?.image;
        Ok(Sample { partner: Some(partner), ..self.images.get(index)? })
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.images.label(index)
    }

    fn caption(&self, index: usize) -> Option<Arc<str>> {
        self.images.caption(index)
    }

    fn class_names(&self) -> &[String] {
        self.images.class_names()
    }

    fn fingerprint(&self) -> String {
        let mut fingerprint = Fingerprint::new("pairs");
        [&self.images, &self.partners].iter().for_each(|side| fingerprint.add(side.fingerprint().as_bytes()));
        fingerprint.finish()
    }

    fn describe(&self) -> String {
        format!("{}, each with a partner", self.images.describe())
    }
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn get(&self, index: usize) -> Result<Sample> {
        let file = self.files.get(index).ok_or(Error::Index { index, len: self.len() })?;
        let image = decode_file(&self.root.join(file), &self.limits, self.resolution)?;
        Ok(Sample { image, label: self.label(index), caption: self.caption(index), partner: None })
    }

    fn label(&self, index: usize) -> Option<u32> {
        let class = self.files.get(index)?.iter().next()?;
        let label = self.classes.binary_search_by(|other| other.as_os_str().cmp(class)).ok()?;
        u32::try_from(label).ok()
    }

    fn caption(&self, index: usize) -> Option<Arc<str>> {
        self.captions.get(index).cloned()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn describe(&self) -> String {
        let labels = match self.class_names.len() {
            0 => "no labels".to_owned(),
            n => format!("{n} classes"),
        };
        let captions = if self.captions.is_empty() { "" } else { ", with captions" };
        format!("{} (image folder), {} images, {labels}{captions}", self.name, self.len())
    }
}

/// The images below `root` as they are found: relative path and size in bytes.
struct Walk<'a> {
    root: &'a Path,
    found: Vec<(PathBuf, u64)>,
}

impl Walk<'_> {
    /// Visits `folder`; `route` holds the real paths of the folders from the root to it.
    fn visit(&mut self, folder: &Path, route: &mut Vec<PathBuf>) -> Result<()> {
        for path in visible_entries(folder)? {
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => self.enter(&path, route)?,
                Ok(metadata) if metadata.is_file() => self.list(&path, metadata.len()),
                // Pipes, sockets and devices.
                Ok(_) => {}
                // A dangling link is listed: it stands for an image that is missing.
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.list(&path, 0),
                // A link to itself.
                Err(error) if path.is_symlink() && error.kind() != io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(Error::io(&path, error)),
            }
        }
        Ok(())
    }

    fn enter(&mut self, folder: &Path, route: &mut Vec<PathBuf>) -> Result<()> {
        let canonical = folder.canonicalize().map_err(|error| Error::io(folder, error))?;
        if route.contains(&canonical) {
            return Ok(());
        }
        route.push(canonical);
        self.visit(folder, route)?;
        route.pop();
        Ok(())
    }

    fn list(&mut self, path: &Path, byte_size: u64) {
        if let Ok(relative) = path.strip_prefix(self.root)
            && is_image(relative)
        {
            self.found.push((relative.to_path_buf(), byte_size));
        }
    }
}

fn visible_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let entries = entries.map_err(|error| Error::io(folder, error))?;
    let is_visible = |entry: &fs::DirEntry| !entry.file_name().as_encoded_bytes().starts_with(b".");
    Ok(entries.into_iter().filter(is_visible).map(|entry| entry.path()).collect())
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

/// The bytes of a relative path with `/` between its parts on every system.
fn sort_key(path: &Path) -> Vec<u8> {
    path.iter().map(OsStr::as_encoded_bytes).collect::<Vec<_>>().join(&b'/')
}

/// The classes, or none if a file lies outside of sub-folders.
fn first_level_folders(files: &[PathBuf]) -> Vec<OsString> {
    let mut folders = Vec::new();
    for file in files {
        let mut parts = file.iter();
        match (parts.next(), parts.next()) {
            (Some(folder), Some(_)) => folders.push(folder.to_owned()),
            _ => return Vec::new(),
        }
    }
    folders.sort();
    folders.dedup();
    folders
}
