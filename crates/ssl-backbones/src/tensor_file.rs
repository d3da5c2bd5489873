//! Safetensors files that are whole or absent, carry their own checksum, and depend on their content alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Metadata key of the checksum.
const CHECKSUM: &str = "sha256";

/// Named tensors and text metadata: what one safetensors file holds.
#[derive(Clone, Debug, Default)]
pub struct TensorFile {
    /// Tensors of type `F32`, `F64` or `I64`, by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Free text by key.
    pub metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Writes the file with a SHA-256 checksum over all of it, as [`write_atomically`] does.
    ///
    /// The bytes depend on the content alone: equal tensors and metadata make equal files.
    ///
    /// # Errors
    /// If a tensor has another type, or the file system refuses; then an existing file of that name stays as it was.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes()?;
        write_atomically(path, &bytes).map_err(|source| Error::Io { path: path.to_owned(), source })
    }

    /// Reads a file that [`TensorFile::write`] wrote and verifies its checksum.
    ///
    /// # Errors
    /// If the file cannot be read, is not a safetensors file, has no checksum, or does not match it.
    pub fn read(path: &Path, device: &Device) -> Result<Self> {
        let mut file = Self::read_unchecked(path, device)?;
        let corrupt = |reason: String| Error::Corrupt { path: path.to_owned(), reason };
        let Some(expected) = file.metadata.remove(CHECKSUM) else {
            return Err(corrupt(
                "holds no checksum; it was not written by ssl-vision, or is damaged".to_owned(),
            ));
        };
        let found = file.checksum(&file.encode()?);
        if found != expected {
            return Err(corrupt(format!("its checksum is {found}, but {expected} was written")));
        }
        Ok(file)
    }

    /// Reads a safetensors file of any program, such as published weights. Halves (`F16`, `BF16`) become `F32`.
    ///
    /// # Errors
    /// If the file cannot be read or is not a safetensors file.
    pub fn read_foreign(path: &Path, device: &Device) -> Result<Self> {
        let mut file = Self::read_unchecked(path, device)?;
        for tensor in file.tensors.values_mut() {
            if matches!(tensor.dtype(), DType::F16 | DType::BF16) {
                *tensor = tensor.to_dtype(DType::F32)?;
            }
        }
        Ok(file)
    }

    fn read_unchecked(path: &Path, device: &Device) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let corrupt = |reason: String| Error::Corrupt { path: path.to_owned(), reason };
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| corrupt(format!("not a safetensors file, or a damaged one ({e})")))?;
        let metadata: BTreeMap<_, _> = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let tensors = candle_core::safetensors::load_buffer(&bytes, device)
            .map_err(|e| corrupt(format!("its tensors cannot be read ({e})")))?;
        Ok(Self { tensors: tensors.into_iter().collect(), metadata })
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let encoded = self.encode()?;
        let mut metadata = self.metadata.clone();
        metadata.insert(CHECKSUM.to_owned(), self.checksum(&encoded));
        let mut header = Map::from_iter([("__metadata__".to_owned(), json!(metadata))]);
        // Wide elements first keeps every tensor aligned to its element size.
        let mut order: Vec<&Encoded> = encoded.iter().collect();
        order.sort_by_key(|tensor| std::cmp::Reverse(tensor.element_size));
        let mut offset = 0;
        for tensor in &order {
            let end = offset + tensor.bytes.len();
            let entry =
                json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end] });
            header.insert(tensor.name.to_owned(), entry);
            offset = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut bytes = Vec::with_capacity(8 + header.len() + offset);
        bytes.extend((header.len() as u64).to_le_bytes());
        bytes.extend(header);
        order.iter().for_each(|tensor| bytes.extend(&tensor.bytes));
        Ok(bytes)
    }

    fn encode(&self) -> Result<Vec<Encoded<'_>>> {
        self.tensors.iter().map(|(name, tensor)| Encoded::new(name, tensor)).collect()
    }

    /// SHA-256 over the metadata and the tensors in the order of their names, each part preceded by its length.
    fn checksum(&self, encoded: &[Encoded]) -> String {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for (key, value) in &self.metadata {
            part(key.as_bytes());
            part(value.as_bytes());
        }
        for tensor in encoded {
            part(tensor.name.as_bytes());
            part(tensor.dtype.as_bytes());
            part(format!("{:?}", tensor.shape).as_bytes());
            part(&tensor.bytes);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A tensor as it lies in the file.
struct Encoded<'a> {
    name: &'a str,
    dtype: &'static str,
    element_size: usize,
    shape: &'a [usize],
    bytes: Vec<u8>,
}

impl<'a> Encoded<'a> {
    fn new(name: &'a str, tensor: &'a Tensor) -> Result<Self> {
        let flat = tensor.flatten_all()?;
        let (dtype, bytes): (_, Vec<u8>) = match tensor.dtype() {
            DType::F32 => ("F32", flat.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect()),
            DType::F64 => ("F64", flat.to_vec1::<f64>()?.into_iter().flat_map(f64::to_le_bytes).collect()),
            DType::I64 => ("I64", flat.to_vec1::<i64>()?.into_iter().flat_map(i64::to_le_bytes).collect()),
            other => {
                return Err(candle_core::Error::UnsupportedDTypeForOp(other, "write safetensors").into());
            }
        };
        Ok(Self { name, dtype, element_size: tensor.dtype().size_in_bytes(), shape: tensor.dims(), bytes })
    }
}

/// Writes `bytes` to `path` so that a crash leaves either the old file or the new one.
///
/// The bytes go to a temporary file in the same folder, which is flushed to the disk and then renamed; the folder is
/// flushed as well. Parent folders are created. The mode of the file follows the umask: 0644 by default.
///
/// # Errors
/// If the file system refuses, for example when the disk is full; the temporary file is removed.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
    };
    fs::create_dir_all(&folder)?;
    let temporary = folder.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    // A folder can be opened and flushed on Unix only; elsewhere the rename is as durable as the system makes it.
    #[cfg(unix)]
    File::open(&folder)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> TensorFile {
        let tensor = |v: &[f32]| Tensor::new(v, &Device::Cpu).unwrap();
        TensorFile {
            tensors: BTreeMap::from([
                ("a.weight".to_owned(), tensor(&[1.0, -2.5, f32::NAN])),
                ("b.count".to_owned(), Tensor::new(7i64, &Device::Cpu).unwrap()),
            ]),
            metadata: BTreeMap::from([("format".to_owned(), "pt".to_owned())]),
        }
    }

    #[test]
    fn what_is_written_is_read_and_equal_content_makes_equal_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/x.safetensors");
        file().write(&path).unwrap();
        let back = TensorFile::read(&path, &Device::Cpu).unwrap();
        assert_eq!(back.metadata, file().metadata);
        assert_eq!(back.tensors["b.count"].to_scalar::<i64>().unwrap(), 7);
        assert_eq!(back.to_bytes().unwrap(), fs::read(&path).unwrap());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn files_of_other_programs_are_read_when_asked_for_and_their_halves_widened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let half = Tensor::new(&[1f32, -2.5], &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        candle_core::safetensors::save(&[("w", half)].into_iter().collect(), &path).unwrap();
        let error = TensorFile::read(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("no checksum"), "{error}");
        let file = TensorFile::read_foreign(&path, &Device::Cpu).unwrap();
        assert_eq!(file.tensors["w"].to_vec1::<f32>().unwrap(), [1.0, -2.5]);
        fs::write(&path, b"x").unwrap();
        assert!(TensorFile::read_foreign(&path, &Device::Cpu).is_err());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_of_the_content_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let bytes = file().to_bytes().unwrap();
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert!(TensorFile::read(&path, &Device::Cpu).is_err(), "cut at {cut}");
        }
        for bit in 0..8 * bytes.len() {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &broken).unwrap();
            if let Ok(read) = TensorFile::read(&path, &Device::Cpu) {
                // Only a flip that means the same, such as another white space after the header, may pass.
                let same =
                    read.checksum(&read.encode().unwrap()) == file().checksum(&file().encode().unwrap());
                assert!(same, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_refused_write_leaves_the_old_file_and_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        fs::create_dir(&path).unwrap();
        let error = file().write(&path).unwrap_err();
        assert!(error.to_string().contains("x.safetensors"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
