//! Whole training steps of SimCLR, encoder to optimiser, against PyTorch.
//!
//! `tests/python/make_simclr_step.py` computed the reference in float64 from the paper's formula and torchvision's
//! network; `tests/golden/steps` holds it. Both sides start from the weights of the pattern rule in
//! `tests/golden/README.md` and take three steps on one batch. Tolerances are relative, by L2 norm for tensors, and
//! stand beside what PyTorch's own float32 run strays from its float64 run (`make_simclr_step.py --float32`).

// The lints take only functions marked as tests for tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use ssl_backbones::{BackboneConfig, Stem};
use ssl_methods::{Batch, Method, SimClr, SimClrConfig, StepContext};
use ssl_nn::Params;
use ssl_train::{AdamConfig, Gradients, LarsConfig, Optimizer, OptimizerConfig, SgdConfig};

const STEPS: usize = 3;

#[test]
fn gradients_are_those_of_pytorch() {
    let golden = Golden::load();
    let run = Run::new(&golden, &sgd());
    let trainable: Vec<_> = run.params.trainable().into_iter().map(|(name, _)| name).collect();
    assert_eq!(trainable.len(), golden.grad_norms.len());
    // PyTorch in float32: 2e-6.
    for name in &trainable {
        let norm = golden.grad_norms[name];
        check(&format!("norm of the gradient of {name}"), &[l2(&run.gradient(name))], &[norm], 1e-4);
    }
    let tensors: Vec<_> = golden.names("grad.param.").collect();
    assert_eq!(tensors.len(), 3);
    for name in tensors {
        let expected = golden.values(&format!("grad.param.{name}"));
        check(&format!("gradient of {name}"), &run.gradient(name), &expected, 1e-4);
    }
}

#[test]
fn three_steps_of_adamw_are_those_of_pytorch() {
    // With an eps of 1e-3 an element moves by a smooth function of its gradient. With 1e-8 it would move by the sign,
    // which for a tiny gradient is a matter of rounding. PyTorch in float32: 2e-5.
    let config = AdamConfig {
        lr: 2e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-3,
        weight_decay: 0.01,
        exclude_bias_and_norm: true,
    };
    check_steps("adamw", &OptimizerConfig::AdamW(config), 4e-4);
}

#[test]
fn three_steps_of_sgd_are_those_of_pytorch() {
    // PyTorch in float32: 1e-5.
    check_steps("sgd", &sgd(), 1e-4);
}

#[test]
fn three_steps_of_lars_are_those_of_pytorch() {
    // The trust coefficient moves weights by so little, 5e-4 of their size, that their own float32 rounding shows.
    // PyTorch in float32: 2e-4.
    let config = LarsConfig {
        lr: 0.1,
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
    };
    check_steps("lars", &OptimizerConfig::Lars(config), 1e-3);
}

fn sgd() -> OptimizerConfig {
    OptimizerConfig::Sgd(SgdConfig {
        lr: 0.02,
        momentum: 0.9,
        nesterov: false,
        weight_decay: 1e-4,
        exclude_bias_and_norm: false,
    })
}

/// Compares losses, movements of the parameters to `tolerance`, and running statistics.
fn check_steps(name: &str, config: &OptimizerConfig, tolerance: f64) {
    let golden = Golden::load();
    let expected = &golden.steps[name];
    let run = Run::new(&golden, config);
    // PyTorch in float32: 1e-5 in the third step, where the steps before have amplified the rounding.
    assert_eq!(run.losses.len(), expected.loss.len());
    for (step, (loss, expected)) in run.losses.iter().zip(&expected.loss).enumerate() {
        check(&format!("loss of step {step}"), &[*loss], &[*expected], 1e-4);
    }
    for (name, norm) in &expected.movement_norms {
        check(&format!("norm of the movement of {name}"), &[l2(&run.movement(name))], &[*norm], tolerance);
    }
    let prefix = format!("out.{name}.");
    let (parameters, buffers): (Vec<_>, Vec<_>) =
        golden.names(&prefix).partition(|name| golden.grad_norms.contains_key(*name));
    assert_eq!((parameters.len(), buffers.len()), (3, 3));
    for name in parameters {
        let end = golden.values(&format!("{prefix}{name}"));
        let movement: Vec<_> = end.iter().zip(&run.start[name]).map(|(end, start)| end - start).collect();
        check(&format!("movement of {name}"), &run.movement(name), &movement, tolerance);
    }
    // PyTorch in float32: 2e-7.
    for name in buffers {
        check(name, &run.values(name), &golden.values(&format!("{prefix}{name}")), 1e-5);
    }
}

/// Asserts that `actual` differs from `expected` by at most `tolerance` times the norm of `expected`.
fn check(what: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let difference: Vec<_> = actual.iter().zip(expected).map(|(a, e)| a - e).collect();
    let relative = l2(&difference) / l2(expected);
    assert!(relative <= tolerance, "{what}: relative deviation {relative:.2e} is above {tolerance:.0e}");
}

fn l2(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Three steps of the real thing, in float32.
struct Run {
    params: Params,
    start: BTreeMap<String, Vec<f64>>,
    losses: Vec<f64>,
    /// Of the first step.
    gradients: Gradients,
}

impl Run {
    fn new(golden: &Golden, optimizer: &OptimizerConfig) -> Self {
        let (params, method) = simclr();
        let start = params.all().into_iter().map(|(name, var)| (name, to_f64(&var))).collect();
        let views = ["in.view_a", "in.view_b"].map(|name| golden.tensors[name].clone()).to_vec();
        let batch = Batch { index: (0..views[0].dim(0).unwrap()).collect(), views };
        let (trainable, lr) = (params.trainable(), optimizer.lr());
        let mut optimizer = Optimizer::new(optimizer, &trainable).unwrap();
        let (mut losses, mut first) = (Vec::new(), None);
        for step in 0..STEPS {
            let context = StepContext { step, total_steps: STEPS, steps_per_epoch: STEPS, part: 0, seed: 0 };
            let loss = method.loss(&batch, &context).unwrap().loss;
            let mut gradients = Gradients::default();
            gradients.accumulate(&trainable, &mut loss.backward().unwrap(), 1.0).unwrap();
            optimizer.step(&gradients, lr).unwrap();
            losses.extend(to_f64(&loss));
            first.get_or_insert(gradients);
        }
        Self { params, start, losses, gradients: first.unwrap() }
    }

    fn gradient(&self, name: &str) -> Vec<f64> {
        to_f64(self.gradients.get(name).unwrap())
    }

    fn values(&self, name: &str) -> Vec<f64> {
        to_f64(&self.params.get(name).unwrap())
    }

    fn movement(&self, name: &str) -> Vec<f64> {
        self.values(name).iter().zip(&self.start[name]).map(|(end, start)| end - start).collect()
    }
}

/// The method of the reference with the pattern weights.
fn simclr() -> (Params, SimClr) {
    let params = Params::new(0, DType::F32, &Device::Cpu);
    let backbone = BackboneConfig {
        stem: Some(Stem::Cifar),
        width: Some(8),
        ..BackboneConfig::named("resnet18").unwrap()
    };
    let config =
        SimClrConfig { temperature: 0.2, projector_hidden: 16, projector_dim: 12, projector_layers: 2 };
    let method = SimClr::new(&config, &backbone, &params).unwrap();
    let weights = params.all().into_iter().map(|(name, var)| {
        let weights = pattern(&name, var.dims());
        (name, weights)
    });
    params.load(&weights.collect()).unwrap();
    (params, method)
}

/// The pattern weights of the tensor `name`: see `tests/golden/README.md`.
fn pattern(name: &str, shape: &[usize]) -> Tensor {
    if name.ends_with("num_batches_tracked") {
        return Tensor::zeros(shape, DType::I64, &Device::Cpu).unwrap();
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let ends_residual = name.starts_with("backbone.layer") && name.ends_with("bn2.weight");
    let count: usize = shape.iter().product();
    let value = |i: usize| {
        let u = unit(hash.wrapping_add(i as u64));
        let s = 2.0 * u - 1.0;
        let value = match name.rsplit('.').next().unwrap() {
            "bias" | "running_mean" => 0.1 * s,
            "running_var" => 0.5 + u,
            _ if shape.len() > 1 => s * (3.0 / (count / shape[0]) as f64).sqrt(),
            _ if ends_residual => 0.25 * (1.0 + 0.1 * s),
            _ => 1.0 + 0.1 * s,
        };
        value as f32
    };
    Tensor::from_vec((0..count).map(value).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

/// A number in [0, 1) from the splitmix64 generator at `state`.
fn unit(state: u64) -> f64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f64 / (1u64 << 24) as f64
}

fn to_f64(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The reference: tensors and scalars.
struct Golden {
    tensors: BTreeMap<String, Tensor>,
    grad_norms: BTreeMap<String, f64>,
    steps: BTreeMap<String, Steps>,
}

#[derive(Deserialize)]
struct Scalars {
    grad_norms: BTreeMap<String, f64>,
    steps: BTreeMap<String, Steps>,
}

#[derive(Deserialize)]
struct Steps {
    loss: Vec<f64>,
    movement_norms: BTreeMap<String, f64>,
}

impl Golden {
    fn load() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/steps/simclr_step");
        let tensors = candle_core::safetensors::load(format!("{path}.safetensors"), &Device::Cpu).unwrap();
        let scalars = std::fs::read_to_string(format!("{path}.json")).unwrap();
        let Scalars { grad_norms, steps } = serde_json::from_str(&scalars).unwrap();
        Self { tensors: tensors.into_iter().collect(), grad_norms, steps }
    }

    /// What follows `prefix` in the names of the tensors that begin with it.
    fn names(&self, prefix: &str) -> impl Iterator<Item = &str> {
        self.tensors.keys().filter_map(move |name| name.strip_prefix(prefix))
    }

    fn values(&self, name: &str) -> Vec<f64> {
        to_f64(&self.tensors[name])
    }
}
