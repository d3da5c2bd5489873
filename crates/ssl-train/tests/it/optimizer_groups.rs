//! The groups of an optimiser and the rules for single parameters: constant rates, rates of biases, LARC.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use ssl_methods::ParameterRule;
use ssl_train::{Gradients, LarsConfig, Optimizer, OptimizerConfig, Rates};

/// A weight of norm 5, a bias of norm 5 and a bias of zeros, in a head and in a predictor.
fn params() -> Vec<(String, Var)> {
    let all = ["head", "predictor"].into_iter().flat_map(|layer| {
        [("weight", vec![3f32, -4.0], true), ("bias", vec![0.0, 5.0], false), ("zero", vec![0.0, 0.0], false)]
            .map(|(name, values, matrix)| {
                let value = Tensor::new(&values[..], &Device::Cpu).unwrap();
                let value = if matrix { value.reshape((1, 2)).unwrap() } else { value };
                (format!("{layer}.{name}"), Var::from_tensor(&value).unwrap())
            })
    });
    all.collect()
}

fn constant_predictor(name: &str) -> ParameterRule {
    ParameterRule { constant_lr: name.starts_with("predictor."), ..ParameterRule::default() }
}

/// How far every parameter moves in one step of rate `lr`, with gradients of 1 everywhere.
fn moved(config: &OptimizerConfig, lr: f64) -> BTreeMap<String, Vec<f32>> {
    let params = params();
    let mut optimizer =
        Optimizer::with_groups(config, &params, config.groups(&params, constant_predictor)).unwrap();
    let before: Vec<Vec<f32>> = params.iter().map(|(_, var)| values(var)).collect();
    let gradients =
        params.iter().map(|(name, var)| (name.clone(), var.ones_like().unwrap())).collect::<BTreeMap<_, _>>();
    optimizer.step(&Gradients::new(gradients), Rates::lr(lr)).unwrap();
    let moved = params.iter().zip(before).map(|((name, var), before)| {
        (name.clone(), values(var).iter().zip(before).map(|(after, before)| before - after).collect())
    });
    moved.collect()
}

fn values(var: &Var) -> Vec<f32> {
    var.flatten_all().unwrap().to_vec1().unwrap()
}

fn lars(change: impl Fn(&mut LarsConfig)) -> OptimizerConfig {
    let Some(OptimizerConfig::Lars(mut config)) = OptimizerConfig::named("lars") else { panic!("no lars") };
    config.lr = 2.0;
    config.weight_decay = 0.1;
    change(&mut config);
    OptimizerConfig::Lars(config)
}

fn close(actual: &[f32], expected: [f64; 2]) {
    let near = |(a, e): (&f32, f64)| (f64::from(*a) - e).abs() < 1e-6;
    assert!(actual.len() == 2 && actual.iter().zip(expected).all(near), "{actual:?}, expected {expected:?}");
}

#[test]
fn every_parameter_is_in_one_group_and_the_groups_say_why() {
    let params = params();
    let groups = OptimizerConfig::named("adamw").unwrap().groups(&params, constant_predictor);
    let names: Vec<_> = groups.iter().map(|group| (group.name.as_str(), group.constant_lr)).collect();
    let expected = [
        ("decay", false),
        ("no_decay", false),
        ("decay, constant rate", true),
        ("no_decay, constant rate", true),
    ];
    assert_eq!(names, expected);
    assert_eq!(groups.iter().map(|group| group.members.len()).collect::<Vec<_>>(), [1, 2, 1, 2]);
    assert_eq!(groups[2].members, ["predictor.weight"]);
    let plain = OptimizerConfig::named("sgd").unwrap().groups(&params, |_| ParameterRule::default());
    assert_eq!(plain.len(), 1, "sgd exempts nothing, and nothing is constant");
}

#[test]
fn a_constant_rate_is_the_peak_whatever_the_schedule_says() {
    for name in OptimizerConfig::NAMES {
        let config = OptimizerConfig::named(name).unwrap();
        let (at_peak, at_zero) = (moved(&config, config.lr()), moved(&config, 0.0));
        for (name, still) in &at_zero {
            match name.starts_with("predictor.") {
                true => assert_eq!(still, &at_peak[name], "{name}"),
                false => assert!(still.iter().all(|move_| *move_ == 0.0), "{name}: {still:?}"),
            }
        }
        assert!(at_peak.values().all(|moves| moves.iter().any(|move_| *move_ != 0.0)));
    }
}

#[test]
fn biases_have_their_own_rate_and_neither_decay_nor_ratio() {
    let moved = moved(&lars(|config| config.bias_and_norm_lr_factor = 0.024), 0.5);
    close(&moved["head.bias"], [0.5 * 0.024; 2]);
    close(&moved["predictor.bias"], [2.0 * 0.024; 2]);
    // The step of the weight has the length of rate, coefficient and norm, whatever the gradient.
    let length = moved["head.weight"].iter().map(|v| v * v).sum::<f32>().sqrt();
    assert!((length - 0.5 * 1e-3 * 5.0).abs() < 1e-6, "{length}");
}

#[test]
fn larc_scales_biases_too_and_parameters_of_norm_0_take_the_plain_step() {
    let larc = |clip: bool| {
        lars(move |config| {
            config.separate_norms = true;
            config.exclude_bias_and_norm = false;
            config.clip = clip;
        })
    };
    let moves = moved(&larc(false), 0.5);
    let q = 1e-3 * 5.0 / (2f64.sqrt() + 0.1 * 5.0 + 1e-8);
    close(&moves["head.bias"], [0.5 * q, 0.5 * q * 1.5]);
    close(&moves["head.weight"], [0.5 * q * 1.3, 0.5 * q * 0.6]);
    close(&moves["head.zero"], [0.5; 2]);
    // With `clip` the rate cancels as long as it is above the ratio, and is all that there is below.
    close(&moved(&larc(true), 0.5)["head.bias"], [q, q * 1.5]);
    close(&moved(&larc(true), 1e-3)["head.bias"], [1e-3, 1.5e-3]);
}

#[test]
fn a_parameter_that_is_frozen_at_first_moves_as_one_that_begins_then() {
    for name in OptimizerConfig::NAMES {
        let config = OptimizerConfig::named(name).unwrap();
        let params = params();
        let mut optimizer = Optimizer::new(&config, &params).unwrap();
        let step = |optimizer: &mut Optimizer, prefix: &str| {
            let moving = params.iter().filter(|(name, _)| name.starts_with(prefix));
            let ones = moving.map(|(name, var)| (name.clone(), var.ones_like().unwrap())).collect();
            optimizer.step(&Gradients::new(ones), Rates::lr(config.lr())).unwrap();
        };
        let still = values(&params[3].1);
        (0..5).for_each(|_| step(&mut optimizer, "head."));
        assert_eq!(values(&params[3].1), still, "{name}");
        // The head begins anew, and the predictor for the first time.
        let mut other = Optimizer::new(&config, &params).unwrap();
        let state = other.state().unwrap();
        for (kind, var) in params[..3].iter().map(|(_, var)| var).enumerate() {
            var.set(params[3 + kind].1.as_tensor()).unwrap();
        }
        step(&mut optimizer, "predictor.");
        step(&mut other, "head.");
        for kind in 0..3 {
            assert_eq!(values(&params[kind].1), values(&params[3 + kind].1), "{name}");
        }
        let mut negative = state.clone();
        negative.insert("step.head.bias".to_owned(), Tensor::new(-1i64, &Device::Cpu).unwrap());
        let error = other.load_state(&negative).unwrap_err().to_string();
        assert!(error.contains("`step.head.bias` is negative"), "{error}");
    }
}

#[test]
fn a_scalar_such_as_the_scale_of_clip_does_not_decay() {
    let Some(OptimizerConfig::AdamW(config)) = OptimizerConfig::named("adamw") else { panic!("no adamw") };
    let config = OptimizerConfig::AdamW(ssl_train::AdamConfig { weight_decay: 0.2, ..config });
    let var =
        |shape: &[usize]| Var::from_tensor(&Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()).unwrap();
    let params = [("logit_scale".to_owned(), var(&[])), ("text_projection".to_owned(), var(&[2, 2]))];
    let groups = config.groups(&params, |_| ParameterRule::default());
    let decay_of =
        |name: &str| groups.iter().find(|g| g.members.iter().any(|m| m == name)).unwrap().weight_decay;
    assert_eq!((decay_of("logit_scale"), decay_of("text_projection")), (0.0, 0.2));
}
