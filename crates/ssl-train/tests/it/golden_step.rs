//! Whole training steps of every method, encoder to optimiser to teacher, against PyTorch.
//!
//! The programs in `tests/reference` computed the references in float64, each from its paper; `tests/golden/steps` holds
//! them, a pair of files a method, and this test takes every pair that is there. Both sides start from the weights of the
//! pattern rule in `tests/golden/README.md` and take a few steps on one batch. Tolerances are relative, by L2 norm for
//! tensors, and stand beside what PyTorch's own float32 run strays from its float64 run (`--float32` prints it).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use ssl_backbones::BackboneConfig;
use ssl_methods::{Batch, Method, MethodConfig, StepContext, TrainingData};
use ssl_nn::Params;
use ssl_train::{Gradients, Optimizer, OptimizerConfig, Rates};

/// What a float32 may be off after a few updates, relative to itself.
const ROUNDING: f64 = 3e-7;

#[test]
fn steps_are_those_of_pytorch() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/steps"));
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    cases.sort();
    assert!(cases.iter().any(|path| path.ends_with("simclr.json")), "{cases:?}");
    let deviations: Vec<_> = cases.iter().flat_map(|path| Golden::load(path).deviations()).collect();
    assert!(deviations.is_empty(), "{}", deviations.join("\n"));
}

/// A reference: tensors and scalars.
struct Golden {
    name: String,
    tensors: BTreeMap<String, Tensor>,
    case: Case,
}

#[derive(Deserialize)]
struct Case {
    method: MethodConfig,
    backbone: toml::Table,
    steps: usize,
    total_steps: usize,
    steps_per_epoch: usize,
    tolerances: Tolerances,
    runs: BTreeMap<String, Reference>,
}

#[derive(Deserialize)]
struct Tolerances {
    loss: f64,
    gradient: f64,
}

#[derive(Deserialize)]
struct Reference {
    optimizer: OptimizerConfig,
    movement_tolerance: f64,
    lr_at: Vec<f64>,
    loss: Vec<f64>,
    /// Of each step; what has no gradient is not there.
    grad_norms: Vec<BTreeMap<String, f64>>,
    /// Of all tensors of floats, from the start to the end.
    movement_norms: BTreeMap<String, f64>,
}

impl Golden {
    fn load(path: &PathBuf) -> Self {
        let tensors =
            candle_core::safetensors::load(path.with_extension("safetensors"), &Device::Cpu).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let case = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        Self { name, tensors: tensors.into_iter().collect(), case }
    }

    /// A line for everything that is not as in the reference.
    fn deviations(&self) -> Vec<String> {
        let mut check = Check { place: String::new(), found: vec![] };
        for (run, reference) in &self.case.runs {
            check.place = format!("{} with {run}", self.name);
            self.compare(run, reference, &mut check);
        }
        check.found
    }

    fn compare(&self, name: &str, reference: &Reference, check: &mut Check) {
        let run = Run::new(self, reference);
        let (case, trainable) = (&self.case, run.params.trainable());
        check.equal("the losses", run.losses.len(), reference.loss.len());
        for (step, (loss, expected)) in run.losses.iter().zip(&reference.loss).enumerate() {
            check.close(&format!("loss of step {step}"), &[*loss], &[*expected], case.tolerances.loss);
        }
        for (step, (gradients, expected)) in run.gradients.iter().zip(&reference.grad_norms).enumerate() {
            let total = expected.values().map(|norm| norm * norm).sum::<f64>().sqrt();
            for (parameter, _) in &trainable {
                let what = format!("gradient of {parameter} in step {step}");
                match (gradients.get(parameter), expected.get(parameter)) {
                    // The steps before have amplified the rounding, so only the first gradient is held to the bound.
                    // A bias in front of a batch norm has none: what is left of it is rounding.
                    (Some(grad), Some(norm)) if *norm < 1e-12 * total => {
                        let rest = l2(&to_f64(grad)) / total;
                        check.equal(&format!("no {what}, but {rest:.1e} of all"), rest < 1e-6, true);
                    }
                    (Some(grad), Some(norm)) => {
                        let tolerance = case.tolerances.gradient * if step == 0 { 1.0 } else { 10.0 };
                        check.close(
                            &format!("norm of the {what}"),
                            &[l2(&to_f64(grad))],
                            &[*norm],
                            tolerance,
                        );
                    }
                    (ours, theirs) => check.equal(&what, ours.is_some(), theirs.is_some()),
                }
            }
        }
        for parameter in self.names("grad.0.") {
            let expected = self.values(&format!("grad.0.{parameter}"));
            let ours = to_f64(run.gradients[0].get(parameter).unwrap());
            check.close(&format!("gradient of {parameter}"), &ours, &expected, case.tolerances.gradient);
        }
        let floats = run.params.all().into_iter().filter(|(_, var)| var.dtype().is_float());
        let floats: Vec<String> = floats.map(|(name, _)| name).collect();
        check.equal("the tensors", floats.len(), reference.movement_norms.len());
        for tensor in &floats {
            match reference.movement_norms.get(tensor) {
                Some(norm) => {
                    // What moves by less than its own rounding is compared with the size of that; and AdamW makes more
                    // of a rest of a gradient where there should be none.
                    let none = reference.grad_norms[0].get(tensor).is_some_and(|norm| *norm < 1e-12);
                    let rounding = if none { 1e-4 } else { ROUNDING } * l2(&run.start[tensor]);
                    let (ours, bound) = (l2(&run.movement(tensor)), reference.movement_tolerance * norm);
                    let far = (ours - norm).abs() > bound.max(rounding);
                    let what = format!(
                        "{tensor} moves by {ours:.6e}, by {norm:.6e} in the reference: too far apart"
                    );
                    check.equal(&what, ours.is_nan() || far, false);
                }
                None => check.found.push(format!("{}: the reference has no {tensor}", check.place)),
            }
        }
        let prefix = format!("out.{name}.");
        for tensor in self.names(&prefix) {
            let end = self.values(&format!("{prefix}{tensor}"));
            if trainable.iter().any(|(name, _)| name == tensor) {
                let movement: Vec<_> =
                    end.iter().zip(&run.start[tensor]).map(|(end, start)| end - start).collect();
                let what = format!("movement of {tensor}");
                check.close(&what, &run.movement(tensor), &movement, reference.movement_tolerance);
            } else {
                check.close(tensor, &run.values(tensor), &end, reference.movement_tolerance.min(1e-5));
            }
        }
    }

    /// What follows `prefix` in the names of the tensors that begin with it.
    fn names(&self, prefix: &str) -> impl Iterator<Item = &str> {
        self.tensors.keys().filter_map(move |name| name.strip_prefix(prefix))
    }

    fn values(&self, name: &str) -> Vec<f64> {
        to_f64(&self.tensors[name])
    }

    fn backbone(&self) -> BackboneConfig {
        let mut table = toml::Table::try_from(
            BackboneConfig::named(self.case.backbone["name"].as_str().unwrap()).unwrap(),
        )
        .unwrap();
        table.extend(self.case.backbone.clone());
        table.try_into().unwrap()
    }
}

/// Collects what deviates.
struct Check {
    place: String,
    found: Vec<String>,
}

impl Check {
    fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, ours: T, theirs: T) {
        if ours != theirs {
            self.found.push(format!("{}: {what}: {ours:?} here, {theirs:?} in the reference", self.place));
        }
    }

    /// Whether `actual` differs from `expected` by at most `tolerance` times the norm of `expected`.
    fn close(&mut self, what: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
        let place = &self.place;
        if actual.len() != expected.len() {
            self.found.push(format!("{place}: {what}: {} values, not {}", actual.len(), expected.len()));
            return;
        }
        let difference: Vec<_> = actual.iter().zip(expected).map(|(a, e)| a - e).collect();
        let (difference, size) = (l2(&difference), l2(expected));
        if difference.is_nan() || difference > tolerance * size {
            let relative = difference / size;
            self.found
                .push(format!("{place}: {what}: relative deviation {relative:.2e} is above {tolerance:.0e}"));
        }
    }
}

/// The steps of the real thing, in float32.
struct Run {
    params: Params,
    start: BTreeMap<String, Vec<f64>>,
    losses: Vec<f64>,
    gradients: Vec<Gradients>,
}

impl Run {
    fn new(golden: &Golden, reference: &Reference) -> Self {
        let case = &golden.case;
        let views: Vec<Tensor> =
            (0..).map_while(|i| golden.tensors.get(&format!("in.view_{i}")).cloned()).collect();
        let images = views[0].dim(0).unwrap();
        let (params, mut method) = build(golden, images);
        let start = params.all().into_iter().map(|(name, var)| (name, to_f64(&var))).collect();
        let text = golden.tensors.get("in.text").cloned();
        let batch = Batch { index: (0..images).collect(), views, text };
        let trainable = params.trainable();
        let groups = reference.optimizer.groups(&trainable, |name| method.parameter_rule(name));
        let mut optimizer = Optimizer::with_groups(&reference.optimizer, &trainable, groups).unwrap();
        let (mut losses, mut all) = (Vec::new(), Vec::new());
        for step in 0..case.steps {
            let context = StepContext {
                step,
                total_steps: case.total_steps,
                steps_per_epoch: case.steps_per_epoch,
                part: 0,
                seed: 0,
            };
            if method.wants_pass(&context) {
                method.pass(&context, &mut std::iter::once(Ok(batch.clone()))).unwrap();
            }
            let output = method.loss(&batch, &context).unwrap();
            let mut gradients = Gradients::default();
            gradients.accumulate(&trainable, &mut output.loss.backward().unwrap(), 1.0).unwrap();
            optimizer.step(&gradients, Rates::lr(reference.lr_at[step])).unwrap();
            method.after_step(&context, &output.memory).unwrap();
            losses.extend(to_f64(&output.loss));
            all.push(gradients);
        }
        Self { params, start, losses, gradients: all }
    }

    fn values(&self, name: &str) -> Vec<f64> {
        to_f64(&self.params.get(name).unwrap_or_else(|| panic!("no tensor {name}")))
    }

    fn movement(&self, name: &str) -> Vec<f64> {
        self.values(name).iter().zip(&self.start[name]).map(|(end, start)| end - start).collect()
    }
}

/// The method of the reference with the weights it starts from.
fn build(golden: &Golden, images: usize) -> (Params, Box<dyn Method>) {
    let params = Params::new(0, DType::F32, &Device::Cpu);
    let data = TrainingData { images, mean: [0.5; 3], std: [0.25; 3] };
    let method = golden.case.method.build(&golden.backbone(), &params, &data).unwrap();
    let weights = params.all().into_iter().map(|(name, var)| {
        let given = golden.tensors.get(&format!("start.{name}")).cloned();
        let weights = given.unwrap_or_else(|| pattern(&name, var.dims(), var.dtype()));
        (name, weights)
    });
    params.load(&weights.collect()).unwrap();
    (params, method)
}

/// The pattern weights of the tensor `name`: see `tests/golden/README.md`.
fn pattern(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    if !dtype.is_float() {
        return Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let ends_residual = name.contains("backbone.layer") && name.ends_with("bn2.weight");
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

fn l2(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn to_f64(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
