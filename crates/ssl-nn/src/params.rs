//! The store of state: every persistent tensor of a model under one ordered, seeded list of names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use crate::init::{Fan, Init};

/// What may change a tensor of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The optimiser, from gradients.
    Trainable,
    /// The model itself: running statistics, teachers, queues, centres.
    Buffer,
}

#[derive(Debug)]
struct Entry {
    name: String,
    role: Role,
    var: Var,
}

#[derive(Debug, Default)]
struct Entries {
    list: Vec<Entry>,
    index: BTreeMap<String, usize>,
}

/// A named, ordered, seeded store of tensors.
///
/// Names are PyTorch's, so that exported files load elsewhere. The order is the order of creation, which is the order
/// of the network. Initial values depend on the seed and the name alone: adding a layer does not change the others.
/// A clone is a handle to the same store.
///
/// ```
/// use candle_core::{DType, Device};
/// use ssl_nn::{Init, Params};
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let head = params.root().pp("head");
/// head.trainable("weight", (4, 2), Init::Normal { std: 0.01 })?;
/// head.buffer("running_mean", 4, Init::Const(0.0))?;
/// assert_eq!(params.names(), ["head.weight", "head.running_mean"]);
/// assert_eq!(params.trainable().len(), 1);
/// assert_eq!(params.num_trainable(), 8);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Params {
    entries: Arc<Mutex<Entries>>,
    seed: u64,
    dtype: DType,
    device: Device,
}

impl Params {
    /// An empty store. `dtype` is the type of the parameters: `F32` to train, `F64` to check gradients.
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        Self { entries: Arc::default(), seed, dtype, device: device.clone() }
    }

    /// The scope without a prefix, from which layers take their parameters.
    pub fn root(&self) -> Scope {
        Scope { params: self.clone(), prefix: String::new(), frozen: false }
    }

    /// The seed that initial values are drawn from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The device of all tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All names, in order of creation.
    pub fn names(&self) -> Vec<String> {
        self.lock().list.iter().map(|e| e.name.clone()).collect()
    }

    /// Names and variables that the optimiser may change, in order of creation.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        self.with_role(Role::Trainable)
    }

    /// Names and variables that only the model changes, in order of creation.
    pub fn buffers(&self) -> Vec<(String, Var)> {
        self.with_role(Role::Buffer)
    }

    /// Names and variables of both roles, in order of creation.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.lock().list.iter().map(|e| (e.name.clone(), e.var.clone())).collect()
    }

    /// The variable `name`.
    pub fn get(&self, name: &str) -> Option<Var> {
        let entries = self.lock();
        entries.index.get(name).map(|&i| entries.list[i].var.clone())
    }

    /// Number of trainable scalars.
    pub fn num_trainable(&self) -> usize {
        self.trainable().iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// Overwrites every tensor of the store, or none.
    ///
    /// # Errors
    /// If `tensors` lacks a name of the store, has one more, or differs in a shape. The message lists the names.
    pub fn load(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let all = self.all();
        let missing: Vec<_> =
            all.iter().map(|(n, _)| n.as_str()).filter(|n| !tensors.contains_key(*n)).collect();
        let extra: Vec<_> = tensors.keys().filter(|n| self.get(n).is_none()).map(String::as_str).collect();
        if !missing.is_empty() || !extra.is_empty() {
            bail!("tensors do not match the model: missing {}; unexpected {}", list(&missing), list(&extra));
        }
        for (name, var) in &all {
            let tensor = &tensors[name];
            if tensor.dims() != var.dims() {
                bail!(
                    "tensor `{name}` has shape {:?} where the model expects {:?}",
                    tensor.dims(),
                    var.dims()
                );
            }
        }
        all.iter().try_for_each(|(name, var)| {
            var.set(&tensors[name].to_dtype(var.dtype())?.to_device(&self.device)?)
        })
    }

    /// A candle [`VarBuilder`] over this store, so that layers written for candle-nn take their parameters from here.
    ///
    /// Tensors named `running_mean` or `running_var` become buffers, all others are trainable.
    pub fn var_builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Backend(self.clone())), self.dtype, self.device.clone())
    }

    fn with_role(&self, role: Role) -> Vec<(String, Var)> {
        let entries = self.lock();
        entries.list.iter().filter(|e| e.role == role).map(|e| (e.name.clone(), e.var.clone())).collect()
    }

    fn insert(&self, name: String, role: Role, value: Tensor) -> Result<Var> {
        let mut entries = self.lock();
        if entries.index.contains_key(&name) {
            bail!("parameter `{name}` is created twice");
        }
        let var = Var::from_tensor(&value)?;
        let i = entries.list.len();
        entries.index.insert(name.clone(), i);
        entries.list.push(Entry { name, role, var: var.clone() });
        Ok(var)
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Every change of the list is complete before a call that can panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a [`Params`] store: the prefix under which a layer creates its tensors.
#[derive(Clone, Debug)]
pub struct Scope {
    params: Params,
    prefix: String,
    frozen: bool,
}

impl Scope {
    /// The scope `name` below this one ("push prefix").
    pub fn pp(&self, name: impl ToString) -> Self {
        Self { prefix: self.path(&name.to_string()), ..self.clone() }
    }

    /// The same place for a network that no optimiser may change, such as a teacher: what its layers would learn become
    /// buffers, and no gradient flows to them.
    pub fn frozen(&self) -> Self {
        Self { frozen: true, ..self.clone() }
    }

    /// Creates a tensor for the optimiser; in a [`Scope::frozen`] place, a buffer.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn trainable(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        if self.frozen {
            // Shares the memory of the buffer, so that the layer sees what is written to it.
            return Ok(self.create(name, Role::Buffer, &shape.into(), init)?.as_detached_tensor());
        }
        Ok(self.create(name, Role::Trainable, &shape.into(), init)?.as_tensor().clone())
    }

    /// Creates a tensor that only the model itself changes.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn buffer(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Var> {
        self.create(name, Role::Buffer, &shape.into(), init)
    }

    /// Creates a tensor with the values of `value`, in its type, that only the model itself changes: labels, counts.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn buffer_from(&self, name: &str, value: &Tensor) -> Result<Var> {
        self.params.insert(self.path(name), Role::Buffer, value.to_device(&self.params.device)?)
    }

    /// Creates an integer scalar (`I64`, shape `[]`) that starts at 0, as PyTorch's `num_batches_tracked`.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn counter(&self, name: &str) -> Result<Var> {
        let zero = Tensor::zeros((), DType::I64, &self.params.device)?;
        self.params.insert(self.path(name), Role::Buffer, zero)
    }

    /// A constant of the store's type and device that is not remembered.
    pub(crate) fn constant(&self, shape: impl Into<Shape>, value: f64) -> Result<Tensor> {
        Tensor::full(value, shape, &self.params.device)?.to_dtype(self.params.dtype)
    }

    fn create(&self, name: &str, role: Role, shape: &Shape, init: Init) -> Result<Var> {
        let (path, params) = (self.path(name), &self.params);
        let value = init.sample(shape.dims(), params.seed, &path, params.dtype, &params.device)?;
        params.insert(path, role, value)
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

fn list(names: &[&str]) -> String {
    match names {
        [] => "none".to_owned(),
        [first @ .., last] if names.len() <= 4 => {
            first.iter().map(|n| format!("`{n}`, ")).collect::<String>() + &format!("`{last}`")
        }
        _ => format!("`{}`, `{}`, `{}` and {} more", names[0], names[1], names[2], names.len() - 3),
    }
}

struct Backend(Params);

impl SimpleBackend for Backend {
    fn get(&self, shape: Shape, name: &str, hint: candle_nn::Init, _: DType, _: &Device) -> Result<Tensor> {
        if let Some(var) = self.0.get(name) {
            if var.shape() != &shape {
                bail!("parameter `{name}` has shape {:?}, not {:?}", var.dims(), shape.dims());
            }
            return Ok(var.as_tensor().clone());
        }
        let running = name.ends_with("running_mean") || name.ends_with("running_var");
        let role = if running { Role::Buffer } else { Role::Trainable };
        Ok(self.0.root().create(name, role, &shape, from_candle(hint, shape.dims()))?.as_tensor().clone())
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        match self.0.get(name) {
            Some(var) => Ok(var.as_tensor().clone()),
            None => bail!("no parameter `{name}` in the store"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
}

/// The seeded counterpart of one of candle-nn's initialisations; means other than 0 do not occur in its layers.
fn from_candle(hint: candle_nn::Init, shape: &[usize]) -> Init {
    use candle_nn::init::{FanInOut, NormalOrUniform};
    match hint {
        candle_nn::Init::Const(value) => Init::Const(value),
        candle_nn::Init::Randn { stdev, .. } => Init::Normal { std: stdev },
        candle_nn::Init::Uniform { lo, up } => Init::Uniform { bound: lo.abs().max(up.abs()) },
        candle_nn::Init::Kaiming { dist, fan, non_linearity } => {
            let fan = match fan {
                FanInOut::FanIn => Fan::In,
                FanInOut::FanOut => Fan::Out,
            };
            let std = non_linearity.gain() / (crate::init::fan_of(shape, fan) as f64).sqrt();
            match dist {
                NormalOrUniform::Normal => Init::Normal { std },
                NormalOrUniform::Uniform => Init::Uniform { bound: 3f64.sqrt() * std },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Params {
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let scope = params.root().pp("layer");
        scope.trainable("weight", (2, 3), Init::Normal { std: 1.0 }).unwrap();
        scope.buffer("running_mean", 2, Init::Const(0.0)).unwrap();
        scope.counter("num_batches_tracked").unwrap();
        params
    }

    fn tensors(params: &Params) -> BTreeMap<String, Tensor> {
        params.all().into_iter().map(|(n, v)| (n, v.as_tensor().copy().unwrap())).collect()
    }

    #[test]
    fn same_seed_same_values() {
        let values = |p: Params| p.get("layer.weight").unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(values(store()), values(store()));
    }

    #[test]
    fn load_refuses_what_does_not_match_and_then_changes_nothing() {
        let params = store();
        let before = params.get("layer.weight").unwrap().to_vec2::<f32>().unwrap();
        let zeros = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let mut wanted = tensors(&params);
        wanted.insert("layer.weight".into(), zeros.clone());
        for (break_it, part) in [
            (
                Box::new(|t: &mut BTreeMap<_, _>| drop(t.remove("layer.running_mean")))
                    as Box<dyn Fn(&mut _)>,
                "missing `layer.running_mean`",
            ),
            (
                Box::new(|t: &mut BTreeMap<_, _>| drop(t.insert("fc.bias".into(), zeros.clone()))),
                "unexpected `fc.bias`",
            ),
            (
                Box::new(|t: &mut BTreeMap<_, _>| drop(t.insert("layer.running_mean".into(), zeros.clone()))),
                "`layer.running_mean` has shape [2, 3] where the model expects [2]",
            ),
        ] {
            let mut broken = wanted.clone();
            break_it(&mut broken);
            let error = params.load(&broken).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(params.get("layer.weight").unwrap().to_vec2::<f32>().unwrap(), before);
        }
        params.load(&wanted).unwrap();
        assert_eq!(params.get("layer.weight").unwrap().to_vec2::<f32>().unwrap(), [[0.0; 3]; 2]);
    }

    #[test]
    fn a_name_is_created_once() {
        let params = store();
        let error = params.root().pp("layer").counter("weight").unwrap_err().to_string();
        assert!(error.contains("`layer.weight` is created twice"), "{error}");
    }

    #[test]
    fn a_frozen_place_has_buffers_that_take_no_gradient_and_show_what_is_written_to_them() {
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let w =
            params.root().pp("teacher").frozen().pp("fc").trainable("weight", 2, Init::Const(1.0)).unwrap();
        let student = params.root().trainable("w", 2, Init::Const(3.0)).unwrap();
        assert_eq!(params.trainable().len(), 1);
        let var = params.get("teacher.fc.weight").unwrap();
        let grads = (&w * &student).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&var).is_none() && grads.get(&student).is_some());
        var.set(&Tensor::new(&[5f32, 6.0], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(w.to_vec1::<f32>().unwrap(), [5.0, 6.0]);
    }

    #[test]
    fn candle_layers_take_their_parameters_from_the_store() {
        let params = Params::new(5, DType::F32, &Device::Cpu);
        let vb = params.var_builder();
        candle_nn::linear(3, 2, vb.pp("fc")).unwrap();
        candle_nn::batch_norm(2, 1e-5, vb.pp("bn")).unwrap();
        let names: Vec<_> = params.trainable().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["fc.weight", "fc.bias", "bn.weight", "bn.bias"]);
        assert_eq!(params.buffers().len(), 2);
        assert!(vb.contains_tensor("bn.running_var"));
    }
}
