//! A case: its entry in the manifest and the tensors of its file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};

/// What the manifest says of a case.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) file: String,
    pub(crate) area: String,
    pub(crate) case: String,
    pub(crate) origin: String,
    pub(crate) params: Options,
    pub(crate) notes: String,
    pub(crate) rtol: f64,
    pub(crate) atol: f64,
    /// Shapes of the stored tensors.
    pub(crate) tensors: BTreeMap<String, Vec<usize>>,
    /// `[rtol, atol]` of single tensors.
    pub(crate) tol: BTreeMap<String, [f64; 2]>,
    /// Tensors that are judged as a whole.
    pub(crate) l2_rtol: BTreeMap<String, f64>,
    /// By mode and parameter; `None` where there is no gradient.
    pub(crate) grad_norms: BTreeMap<String, BTreeMap<String, Option<f64>>>,
    pub(crate) grad_norm_tol: BTreeMap<String, [f64; 2]>,
    pub(crate) weights: BTreeMap<String, Weight>,
    pub(crate) n_parameters: Option<usize>,
}

/// A weight that is made from its name.
#[derive(Debug)]
pub(crate) struct Weight {
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: String,
    pub(crate) sum: Option<f64>,
}

impl Entry {
    pub(crate) fn parse(value: Value) -> Result<Self> {
        let fields = Options::new(value)?;
        let tensors: BTreeMap<String, Value> = fields.get("tensors")?;
        let tensors = tensors.into_iter().map(|(name, info)| Ok((name, Options::new(info)?.get("shape")?)));
        let weights: BTreeMap<String, Value> = fields.optional("weights")?.unwrap_or_default();
        let weights = weights.into_iter().map(|(name, info)| {
            let info = Options::new(info)?;
            let (shape, kind, sum) = (info.get("shape")?, info.get("kind")?, info.optional("sum")?);
            Ok((name, Weight { shape, kind, sum }))
        });
        Ok(Self {
            file: fields.get("file")?,
            area: fields.get("area")?,
            case: fields.get("case")?,
            origin: fields.get("origin")?,
            params: fields.nested("params")?,
            notes: fields.get("notes")?,
            rtol: fields.get("rtol")?,
            atol: fields.get("atol")?,
            tensors: tensors.collect::<Result<_>>()?,
            tol: fields.optional("tol")?.unwrap_or_default(),
            l2_rtol: fields.optional("l2_rtol")?.unwrap_or_default(),
            grad_norms: fields.optional("grad_norms")?.unwrap_or_default(),
            grad_norm_tol: fields.optional("grad_norm_tol")?.unwrap_or_default(),
            weights: weights.collect::<Result<_>>()?,
            n_parameters: fields.optional("n_parameters")?,
        })
    }

    pub(crate) fn title(&self) -> String {
        format!("{}/{}", self.area, self.case)
    }

    /// Whether the case has the result `name`.
    pub(crate) fn expects(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

/// An object of the manifest, read key by key.
#[derive(Debug)]
pub(crate) struct Options(Map<String, Value>);

impl Options {
    pub(crate) fn new(value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            other => bail!("expected an object, found {other}"),
        }
    }

    pub(crate) fn get<T: Readable>(&self, key: &str) -> Result<T> {
        self.optional(key)?.with_context(|| format!("the manifest has no `{key}`"))
    }

    pub(crate) fn optional<T: Readable>(&self, key: &str) -> Result<Option<T>> {
        let value = self.0.get(key).filter(|value| !value.is_null());
        value
            .map(|value| T::read(value.clone()))
            .transpose()
            .with_context(|| format!("`{key}` cannot be read"))
    }

    /// The object under `key`.
    pub(crate) fn nested(&self, key: &str) -> Result<Self> {
        Self::new(self.get(key)?)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether all options that are switched on are among `known`: to ignore one would compare something else.
    pub(crate) fn all_among(&self, known: &[&str]) -> bool {
        let off =
            |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || value.as_f64() == Some(0.0);
        self.0.iter().all(|(key, value)| known.contains(&key.as_str()) || off(value))
    }
}

/// A type that the manifest holds.
pub(crate) trait Readable: Sized {
    fn read(value: Value) -> serde_json::Result<Self>;
}

macro_rules! readable {
    ($($type:ty),* $(,)?) => {$(
        impl Readable for $type {
            fn read(value: Value) -> serde_json::Result<Self> {
                serde_json::from_value(value)
            }
        }
    )*};
}

readable!(
    bool,
    f64,
    usize,
    String,
    Value,
    [f64; 2],
    [f64; 3],
    [usize; 2],
    [usize; 4],
    Vec<f64>,
    Vec<u8>,
    Vec<u32>,
    Vec<usize>,
    Vec<String>,
    Vec<Value>,
    Vec<[usize; 2]>,
    Vec<[usize; 4]>,
    Vec<(usize, f64)>,
    BTreeMap<String, f64>,
    BTreeMap<String, [f64; 2]>,
    BTreeMap<String, Value>,
    BTreeMap<String, BTreeMap<String, Option<f64>>>,
);

/// An entry with its tensors.
#[derive(Debug)]
pub(crate) struct Case<'a> {
    pub(crate) entry: &'a Entry,
    /// The hyper-parameters of the entry.
    pub(crate) params: &'a Options,
    tensors: BTreeMap<String, Tensor>,
}

impl<'a> Case<'a> {
    pub(crate) fn load(golden: &Path, entry: &'a Entry) -> Result<Self> {
        let path = golden.join(&entry.file);
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let case = Self { entry, params: &entry.params, tensors: tensors.into_iter().collect() };
        for (name, shape) in &entry.tensors {
            let found = case.tensor(name)?.dims();
            if found != shape {
                bail!("`{name}` has shape {found:?} in {}, the manifest says {shape:?}", entry.file);
            }
        }
        Ok(case)
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("{} has no tensor `{name}`", self.entry.file))
    }

    /// All elements of a tensor, row-major.
    pub(crate) fn values(&self, name: &str) -> Result<Vec<f64>> {
        elements(self.tensor(name)?)
    }

    /// All elements of an integer tensor without negative values.
    pub(crate) fn labels(&self, name: &str) -> Result<Vec<u32>> {
        Ok(self.tensor(name)?.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?)
    }

    /// What follows `prefix` in the names of the tensors that start with it.
    pub(crate) fn names_after(&self, prefix: &str) -> BTreeSet<&str> {
        self.tensors.keys().filter_map(|name| name.strip_prefix(prefix)).collect()
    }

    /// Every result that the case must produce.
    pub(crate) fn expected(&self) -> BTreeMap<String, Tensor> {
        let results =
            self.tensors.iter().filter(|(name, _)| name.starts_with("out.") || name.starts_with("grad."));
        results.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
    }
}

/// All elements of a tensor of any type, row-major.
pub(crate) fn elements(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}
