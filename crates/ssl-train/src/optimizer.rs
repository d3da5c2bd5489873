//! Optimisers that work by the names of parameters, in groups, and whose whole state can be saved.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};
use ssl_methods::ParameterRule;

use crate::gradients::Gradients;
use crate::update::{Step, adam, lars, sgd};

/// The update rule; in a recipe the table `[optimizer]`. Learning rates come from the schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum OptimizerConfig {
    /// Stochastic gradient descent with momentum, as PyTorch's.
    Sgd(SgdConfig),
    /// Adam with decoupled weight decay (Loshchilov & Hutter, 2019), as PyTorch's `AdamW`.
    AdamW(AdamConfig),
    /// Adam with weight decay added to the gradient, as PyTorch's `Adam`.
    Adam(AdamConfig),
    /// Layer-wise adaptive rates (You et al., 2017).
    Lars(LarsConfig),
}

/// Settings of SGD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SgdConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Share of the old velocity that is kept.
    pub momentum: f64,
    /// Look one step ahead.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
    /// Exempt biases and norms (tensors of rank 1) from weight decay.
    pub exclude_bias_and_norm: bool,
}

/// Settings of Adam and AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Exempt biases and norms (tensors of rank 1) from weight decay.
    pub exclude_bias_and_norm: bool,
}

/// Settings of LARS. There are several rules of that name; docs/methods.md says who uses which.
///
/// apex's LARC, of SwAV and SEER, is `separate_norms` without `exclude_bias_and_norm`. A parameter or gradient of norm 0
/// has no ratio: it takes the plain step, with `separate_norms` also without decay. Under LARC so does every bias that
/// starts at 0, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LarsConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Share of the old velocity that is kept.
    pub momentum: f64,
    /// Look one step ahead.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
    /// Factor of the ratio of norms that scales each layer's step.
    pub trust_coefficient: f64,
    /// Divide by `‖g‖ + weight_decay · ‖w‖ + eps` (You et al.) rather than by `‖g + weight_decay · w‖` (official code).
    pub separate_norms: bool,
    /// Added to the separate norms.
    pub eps: f64,
    /// Keep the learning rate inside the velocity, as SimCLR's code does.
    pub lr_in_momentum: bool,
    /// Take at most the plain step of the scheduled rate, as apex's LARC with `clip`: the ratio is `min(ratio / lr, 1)`.
    pub clip: bool,
    /// Exempt biases and norms (tensors of rank 1) from weight decay and from the ratio.
    pub exclude_bias_and_norm: bool,
    /// Factor on the learning rate of exempt parameters; Barlow Twins has 0.024.
    pub bias_and_norm_lr_factor: f64,
}

impl OptimizerConfig {
    /// The names that `name` may have.
    pub const NAMES: [&'static str; 4] = ["sgd", "adamw", "adam", "lars"];

    /// The rule `name` with its usual settings.
    pub fn named(name: &str) -> Option<Self> {
        let adam = AdamConfig {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            exclude_bias_and_norm: true,
        };
        match name {
            "sgd" => Some(Self::Sgd(SgdConfig {
                lr: 0.03,
                momentum: 0.9,
                nesterov: false,
                weight_decay: 1e-4,
                exclude_bias_and_norm: false,
            })),
            "adamw" => Some(Self::AdamW(adam)),
            "adam" => Some(Self::Adam(AdamConfig { weight_decay: 0.0, ..adam })),
            "lars" => Some(Self::Lars(LarsConfig {
                lr: 0.3,
                momentum: 0.9,
                nesterov: false,
                weight_decay: 1e-6,
                trust_coefficient: 1e-3,
                separate_norms: false,
                eps: 1e-8,
                lr_in_momentum: false,
                clip: false,
                exclude_bias_and_norm: true,
                bias_and_norm_lr_factor: 1.0,
            })),
            _ => None,
        }
    }

    /// The peak learning rate.
    pub fn lr(&self) -> f64 {
        match self {
            Self::Sgd(c) => c.lr,
            Self::AdamW(c) | Self::Adam(c) => c.lr,
            Self::Lars(c) => c.lr,
        }
    }

    /// The groups of a model with parameters of these names and shapes: those with weight decay, and those without it,
    /// biases and norms where the update rule exempts them, each apart by what `rule` says of their rates.
    pub fn groups(&self, params: &[(String, Var)], rule: impl Fn(&str) -> ParameterRule) -> Vec<ParamGroup> {
        let (weight_decay, exclude, exempt_factor) = match self {
            Self::Sgd(c) => (c.weight_decay, c.exclude_bias_and_norm, 1.0),
            Self::AdamW(c) | Self::Adam(c) => (c.weight_decay, c.exclude_bias_and_norm, 1.0),
            Self::Lars(c) => (c.weight_decay, c.exclude_bias_and_norm, c.bias_and_norm_lr_factor),
        };
        let mut groups: Vec<ParamGroup> = Vec::new();
        for (name, var) in params {
            let ParameterRule { constant_lr, no_decay, lr_factor } = rule(name);
            let exempt = no_decay || (exclude && var.rank() <= 1);
            let lr_factor = if exempt { exempt_factor * lr_factor } else { lr_factor };
            let same = |group: &&mut ParamGroup| {
                group.adapt != exempt && group.constant_lr == constant_lr && group.lr_factor == lr_factor
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.members.push(name.clone()),
                None => groups.push(ParamGroup {
                    name: group_name(exempt, constant_lr, lr_factor),
                    members: vec![name.clone()],
                    lr_factor,
                    constant_lr,
                    weight_decay: if exempt { 0.0 } else { weight_decay },
                    adapt: !exempt,
                }),
            }
        }
        groups
    }

    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        let check = |key: &str, value: f64, range: std::ops::RangeInclusive<f64>| match range.contains(&value)
        {
            true => Ok(()),
            false => Err(format!("optimizer.{key} = {value} is not in [{}, {}]", range.start(), range.end())),
        };
        let (lr, weight_decay) = match self {
            Self::Sgd(c) => (c.lr, c.weight_decay),
            Self::AdamW(c) | Self::Adam(c) => (c.lr, c.weight_decay),
            Self::Lars(c) => (c.lr, c.weight_decay),
        };
        check("lr", lr, 0.0..=1e4)?;
        check("weight_decay", weight_decay, 0.0..=1e4)?;
        if let Self::Lars(c) = self {
            check("trust_coefficient", c.trust_coefficient, 0.0..=1e4)?;
            check("bias_and_norm_lr_factor", c.bias_and_norm_lr_factor, 0.0..=1e4)?;
        }
        match self {
            Self::AdamW(c) | Self::Adam(c) => {
                check("beta1", c.beta1, 0.0..=0.999999)?;
                check("beta2", c.beta2, 0.0..=0.9999999)?;
                check("eps", c.eps, 1e-30..=1.0)
            }
            Self::Sgd(SgdConfig { momentum, nesterov, .. })
            | Self::Lars(LarsConfig { momentum, nesterov, .. }) => {
                check("momentum", *momentum, 0.0..=0.999999)?;
                if *nesterov && *momentum == 0.0 {
                    return Err("optimizer.nesterov = true needs optimizer.momentum above 0".to_owned());
                }
                Ok(())
            }
        }
    }
}

/// The name of a group for messages.
fn group_name(exempt: bool, constant_lr: bool, lr_factor: f64) -> String {
    let decay = if exempt { "no_decay" } else { "decay" };
    let constant = if constant_lr { ", constant rate" } else { "" };
    let factor = if lr_factor == 1.0 { String::new() } else { format!(", {lr_factor} of the rate") };
    format!("{decay}{constant}{factor}")
}

/// Parameters that share settings.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamGroup {
    /// Name of the group, for messages.
    pub name: String,
    /// Names of its parameters.
    pub members: Vec<String>,
    /// Factor on the scheduled learning rate.
    pub lr_factor: f64,
    /// Whether the learning rate is the peak at every step instead of the scheduled one.
    pub constant_lr: bool,
    /// Weight decay of this group.
    pub weight_decay: f64,
    /// Whether LARS scales the steps of this group.
    pub adapt: bool,
}

/// What the schedules say of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Factor on the weight decay of every group.
    pub weight_decay_factor: f64,
}

impl Rates {
    /// This learning rate, and the weight decay of the configuration.
    pub fn lr(lr: f64) -> Self {
        Self { lr, weight_decay_factor: 1.0 }
    }
}

/// What an update rule remembers of one parameter.
#[derive(Debug)]
struct Memory {
    /// Steps that the parameter has taken. One that is frozen at first begins later, and Adam corrects its moments for
    /// that, as PyTorch's does.
    step: usize,
    /// The velocity, or the two moments.
    slots: Vec<Vec<f32>>,
}

/// An update rule with its state.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    groups: Vec<ParamGroup>,
    params: BTreeMap<String, Var>,
    state: BTreeMap<String, Memory>,
}

impl Optimizer {
    /// An optimiser of `params` in the groups that its configuration names.
    ///
    /// # Errors
    /// If a parameter is not `f32`.
    pub fn new(config: &OptimizerConfig, params: &[(String, Var)]) -> Result<Self> {
        Self::with_groups(config, params, config.groups(params, |_| ParameterRule::default()))
    }

    /// An optimiser with groups of the caller's making.
    ///
    /// # Errors
    /// If a parameter is not `f32`, or is not in exactly one group.
    pub fn with_groups(
        config: &OptimizerConfig,
        params: &[(String, Var)],
        groups: Vec<ParamGroup>,
    ) -> Result<Self> {
        for (name, var) in params {
            let count = groups.iter().filter(|group| group.members.contains(name)).count();
            if count != 1 || var.dtype() != candle_core::DType::F32 {
                bail!(
                    "parameter `{name}` ({:?}) is in {count} groups of the optimiser, expected f32 in 1",
                    var.dtype()
                );
            }
        }
        let slots = match config {
            OptimizerConfig::Sgd(_) | OptimizerConfig::Lars(_) => 1,
            OptimizerConfig::AdamW(_) | OptimizerConfig::Adam(_) => 2,
        };
        let memory = |var: &Var| Memory { step: 0, slots: vec![vec![0.0; var.elem_count()]; slots] };
        let state = params.iter().map(|(name, var)| (name.clone(), memory(var)));
        Ok(Self {
            config: config.clone(),
            groups,
            state: state.collect(),
            params: params.iter().cloned().collect(),
        })
    }

    /// Moves every parameter that has a gradient; one without is left alone, decay included.
    ///
    /// # Errors
    /// If a gradient's shape differs from its parameter's.
    pub fn step(&mut self, gradients: &Gradients, rates: Rates) -> Result<()> {
        for group in &self.groups {
            for name in &group.members {
                let (Some(grad), Some(var), Some(Memory { step, slots })) =
                    (gradients.get(name), self.params.get(name), self.state.get_mut(name))
                else {
                    continue;
                };
                let scheduled = if group.constant_lr { self.config.lr() } else { rates.lr };
                *step += 1;
                let config = &self.config;
                let step = Step {
                    lr: scheduled * group.lr_factor,
                    weight_decay: group.weight_decay * rates.weight_decay_factor,
                    adapt: group.adapt,
                    number: *step,
                };
                in_place(var, grad, |w, g| match config {
                    OptimizerConfig::Sgd(c) => sgd(c, step, w, g, slots),
                    OptimizerConfig::AdamW(c) => adam(c, true, step, w, g, slots),
                    OptimizerConfig::Adam(c) => adam(c, false, step, w, g, slots),
                    OptimizerConfig::Lars(c) => lars(c, step, w, g, slots),
                })?;
            }
        }
        Ok(())
    }

    /// The whole state by name: `step.NAME`, and `0.NAME`, `1.NAME` for the slots of each parameter.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (name, memory) in &self.state {
            let shape = self.params[name].shape();
            tensors.insert(format!("step.{name}"), Tensor::new(memory.step as i64, &Device::Cpu)?);
            for (i, slot) in memory.slots.iter().enumerate() {
                tensors.insert(format!("{i}.{name}"), Tensor::from_vec(slot.clone(), shape, &Device::Cpu)?);
            }
        }
        Ok(tensors)
    }

    /// Takes over a state that [`Optimizer::state`] returned.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected or of another shape; then nothing has changed.
    pub fn load_state(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let own = self.state()?;
        for (name, tensor) in &own {
            match tensors.get(name) {
                None => bail!("the optimiser's state lacks `{name}`"),
                Some(found) if found.shape() != tensor.shape() || found.dtype() != tensor.dtype() => {
                    bail!("the optimiser's `{name}` is {:?}, expected {:?}", found.shape(), tensor.shape())
                }
                Some(found) if name.starts_with("step.") && found.to_scalar::<i64>()? < 0 => {
                    bail!("the optimiser's `{name}` is negative")
                }
                Some(_) => {}
            }
        }
        if let Some(name) = tensors.keys().find(|name| !own.contains_key(*name)) {
            bail!("the optimiser's state has an unexpected `{name}`");
        }
        for (name, memory) in &mut self.state {
            memory.step = tensors[&format!("step.{name}")].to_scalar::<i64>()? as usize;
            for (i, slot) in memory.slots.iter_mut().enumerate() {
                *slot = tensors[&format!("{i}.{name}")].flatten_all()?.to_vec1()?;
            }
        }
        Ok(())
    }
}

/// Runs `update(parameter, gradient)` on the elements of a parameter, where they lie.
///
/// On other devices than the CPU they take a way through the host, which is correct and slow.
fn in_place(var: &Var, grad: &Tensor, update: impl FnMut(&mut [f32], &[f32]) + Send) -> Result<()> {
    let grad = grad.contiguous()?;
    if var.device().is_cpu() {
        return var.inplace_op2(&grad, &InPlace(Mutex::new(update)));
    }
    let mut w = var.flatten_all()?.to_vec1::<f32>()?;
    let mut update = update;
    update(&mut w, &grad.flatten_all()?.to_vec1::<f32>()?);
    var.set(&Tensor::from_vec(w, var.shape(), var.device())?)
}

struct InPlace<F>(Mutex<F>);

impl<F: FnMut(&mut [f32], &[f32])> InplaceOp2 for InPlace<F> {
    fn name(&self) -> &'static str {
        "ssl-optimizer-step"
    }

    fn cpu_fwd(&self, w: &mut CpuStorage, w_at: &Layout, g: &CpuStorage, g_at: &Layout) -> Result<()> {
        let (Some((w_start, w_end)), Some((g_start, g_end))) =
            (w_at.contiguous_offsets(), g_at.contiguous_offsets())
        else {
            bail!("parameters and gradients must be contiguous")
        };
        let (CpuStorage::F32(w), CpuStorage::F32(g)) = (&mut *w, g) else {
            bail!("parameters and gradients must be f32, got {:?}", g.dtype())
        };
        if w_end - w_start != g_end - g_start {
            bail!("a gradient has {} elements, its parameter {}", g_end - g_start, w_end - w_start);
        }
        let mut update = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        update(&mut w[w_start..w_end], &g[g_start..g_end]);
        Ok(())
    }
}
