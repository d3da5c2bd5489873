//! What this crate promises, through its public interface alone.

// Add a test of a single image file to `decode`, of a hostile one to `hostile`, of a format of data sets to its module.
#[cfg(test)]
mod captions;
#[cfg(test)]
mod cifar;
#[cfg(test)]
mod decode;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod folder;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod idx;
#[cfg(test)]
mod open;
#[cfg(test)]
mod pairs;
#[cfg(test)]
mod shipped;
#[cfg(test)]
mod tolerant;
