//! NaN and infinity go through every layer, forwards and backwards: a run that has gone wrong must not look sound.

use candle_core::{DType, Device, Result, Tensor, Var};
use ssl_nn::{
    Affine, AttentionOptions, BatchNorm, BatchNormConfig, BicubicConfig, Conv2d, Conv2dConfig, ConvNorm,
    DrawsAt, Linear, LinearConfig, Mlp, MlpConfig, Params, Purpose, Residual, Scope, Shortcut,
    SqueezeExcitation, add_relu, attention, avg_pool2d, conv2d, cross_entropy, drop_path, dropout, gelu,
    gelu_tanh, global_avg_pool, global_avg_pool_channels_last, group_norm, interpolate_positions, layer_norm,
    log_softmax, max_pool2d, max_pool2d_channels_last, quick_gelu, relu, residual_block, residual_blocks,
    resize_bicubic, rms_norm, rng, soft_cross_entropy, softmax, stem, swiglu,
};

use crate::differences::{uniform, values};

type Layer = fn(&Tensor) -> Result<Tensor>;

/// Name, shape of the input, layer.
const LAYERS: [(&str, &[usize], Layer); 39] = [
    ("relu", &[3, 4], relu),
    ("add relu", &[3, 4], |x| add_relu(x, &x.ones_like()?)),
    ("gelu", &[3, 4], gelu),
    ("gelu tanh", &[3, 4], gelu_tanh),
    ("quick gelu", &[3, 4], quick_gelu),
    ("swiglu", &[3, 4], swiglu),
    ("linear", &[3, 4], |x| Linear::new(4, 5, LinearConfig::default(), &scope(x))?.forward(x)),
    ("mlp", &[3, 4], |x| Mlp::new(&[4, 6, 5], mlp_config(), &scope(x))?.forward_t(x, true)),
    ("layer norm", &[3, 20], |x| layer_norm(x, &pattern(x, &[20])?, &pattern(x, &[20])?, 1e-5)),
    ("rms norm", &[3, 20], |x| rms_norm(x, &pattern(x, &[20])?, 1e-5)),
    ("group norm", &[2, 6, 3, 2], |x| group_norm(x, 2, &pattern(x, &[6])?, &pattern(x, &[6])?, 1e-5)),
    ("batch norm, training", &[3, 5, 2, 2], |x| batch_norm(x, 5)?.forward_t(x, true)),
    ("batch norm, evaluation", &[3, 5, 2, 2], |x| batch_norm(x, 5)?.forward_t(x, false)),
    ("batch norm, relu", &[3, 5, 2, 2], |x| batch_norm(x, 5)?.forward_relu_t(x, true)),
    ("softmax", &[3, 20], |x| softmax(x, 1)),
    ("softmax over rows", &[3, 20], |x| softmax(x, 0)),
    ("log softmax", &[3, 20], |x| log_softmax(x, 1)),
    ("cross entropy", &[3, 5], |x| cross_entropy(x, &Tensor::new(&[1u32, 0, 4], x.device())?, 0.0)),
    ("smoothed", &[3, 5], |x| cross_entropy(x, &Tensor::new(&[1u32, 0, 4], x.device())?, 0.1)),
    ("soft cross entropy", &[3, 5], |x| soft_cross_entropy(x, &pattern(x, &[3, 5])?)),
    ("attention", &[2, 5, 18], |x| attention(x, 2, &AttentionOptions::default())),
    ("convolution", &[2, 3, 6, 6], |x| conv2d(x, &pattern(x, &[4, 3, 3, 3])?, padded())),
    ("wide convolution", &[2, 16, 6, 6], |x| conv2d(x, &pattern(x, &[16, 16, 3, 3])?, padded())),
    ("pointwise convolution", &[2, 3, 4, 4], |x| {
        conv2d(x, &pattern(x, &[4, 3, 1, 1])?, Conv2dConfig::default())
    }),
    ("strided convolution", &[2, 4, 7, 7], |x| {
        conv2d(x, &pattern(x, &[6, 2, 3, 3])?, Conv2dConfig { stride: 2, groups: 2, ..padded() })
    }),
    ("stem", &[2, 3, 6, 6], |x| stem(x, &conv_norm(x, "a", 3, 4)?, true)),
    ("residual block", &[2, 5, 5, 3], |x| {
        let branch = [conv_norm(x, "a", 3, 4)?, conv_norm(x, "b", 4, 5)?];
        residual_block(x, &branch, Some(&conv_norm(x, "c", 3, 5)?), true)
    }),
    ("residual block, identity", &[2, 5, 5, 3], |x| {
        residual_block(x, &[conv_norm(x, "a", 3, 3)?], None, true)
    }),
    ("residual block, gate", &[2, 5, 5, 3], |x| {
        let branch = [conv_norm(x, "a", 3, 4)?, conv_norm(x, "b", 4, 3)?];
        let gate = SqueezeExcitation::new(4, 2, &scope(x).pp("gate"))?;
        residual_blocks(
            x,
            &[Residual { branch: &branch, gate: Some(&gate), shortcut: Shortcut::Identity }],
            true,
        )
    }),
    ("squeeze-excitation", &[2, 5, 5, 4], |x| SqueezeExcitation::new(4, 6, &scope(x))?.forward(x)),
    ("max pool", &[2, 2, 6, 6], |x| max_pool2d(x, 3, 2, 1)),
    ("max pool, channels last", &[2, 6, 6, 3], |x| max_pool2d_channels_last(x, 2, 2, 0)),
    ("average pool", &[2, 2, 6, 6], |x| avg_pool2d(x, 3, 2, 1)),
    ("global average", &[2, 3, 4, 4], global_avg_pool),
    ("global average, channels last", &[2, 4, 4, 3], global_avg_pool_channels_last),
    ("bicubic", &[1, 2, 4, 4], |x| resize_bicubic(x, (6, 3), BicubicConfig::default())),
    ("positions", &[1, 10, 3], |x| interpolate_positions(x, (3, 3), (4, 2), BicubicConfig::default())),
    ("dropout", &[4, 5], |x| dropout(x, 0.3, AT)),
    ("drop path", &[4, 5], |x| drop_path(x, 0.3, AT)),
];

const AT: DrawsAt = DrawsAt { seed: 0, step: 0, first_sample: 0, layer: 0 };

fn padded() -> Conv2dConfig {
    Conv2dConfig { padding: 1, ..Default::default() }
}

fn mlp_config() -> MlpConfig {
    MlpConfig { hidden_norm: true, last_norm: Some(Affine::Scale), ..Default::default() }
}

/// A new store for each call: a batch norm remembers what it has seen.
fn scope(like: &Tensor) -> Scope {
    Params::new(5, like.dtype(), &Device::Cpu).root()
}

fn batch_norm(like: &Tensor, channels: usize) -> Result<BatchNorm> {
    BatchNorm::new(channels, BatchNormConfig::default(), &scope(like))
}

fn conv_norm(like: &Tensor, name: &str, c_in: usize, c_out: usize) -> Result<ConvNorm> {
    let scope = scope(like).pp(name);
    let norm = BatchNorm::new(c_out, BatchNormConfig::default(), &scope.pp("norm"))?;
    Ok(ConvNorm { conv: Conv2d::new(c_in, c_out, 3, padded(), &scope)?, norm })
}

/// Weights that are nowhere 0.
fn pattern(like: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let mut rng = rng(7, Purpose::Init, 300, 0, 0);
    (uniform(&mut rng, shape) + 1.5)?.to_dtype(like.dtype())
}

fn input(shape: &[usize], dtype: DType) -> Tensor {
    uniform(&mut rng(7, Purpose::Init, 301, 0, 0), shape).to_dtype(dtype).unwrap()
}

/// `x` with `value` as its element `i`.
fn with(x: &Tensor, i: usize, value: f64) -> Tensor {
    let mut all = values(x);
    all[i] = value;
    Tensor::from_vec(all, x.shape(), &Device::Cpu).unwrap().to_dtype(x.dtype()).unwrap()
}

#[test]
fn nan_is_seen_in_every_output_that_it_has_a_part_in() {
    for ((name, shape, layer), dtype) in LAYERS.iter().flat_map(|l| [(l, DType::F32), (l, DType::F64)]) {
        let x = input(shape, dtype);
        let y = values(&layer(&x).unwrap());
        let last = x.elem_count() - 1;
        for i in [0, last / 2, last] {
            // So large that it wins wherever there is a winner.
            let raised = values(&layer(&with(&x, i, 1000.0)).unwrap());
            let spoiled = values(&layer(&with(&x, i, f64::NAN)).unwrap());
            let parts: Vec<usize> = (0..y.len()).filter(|o| raised[*o] != y[*o]).collect();
            assert!(!parts.is_empty() || name.starts_with("drop"), "{name}: {i} has a part in nothing");
            for o in parts {
                assert!(spoiled[o].is_nan(), "{name}, {dtype:?}: NaN at {i} gives {} at {o}", spoiled[o]);
            }
        }
    }
}

/// Infinity may end as 0, as the neighbours do when a root mean square divides them, but not everywhere.
#[test]
fn infinity_is_seen() {
    for ((name, shape, layer), dtype) in LAYERS.iter().flat_map(|l| [(l, DType::F32), (l, DType::F64)]) {
        let x = input(shape, dtype);
        let y = layer(&with(&x, x.elem_count() - 1, f64::INFINITY)).unwrap();
        assert!(values(&y).iter().any(|y| !y.is_finite()), "{name}, {dtype:?}: {y}");
    }
}

#[test]
fn a_gradient_that_is_not_finite_stays_so() {
    for ((name, shape, layer), dtype) in LAYERS.iter().flat_map(|l| [(l, DType::F32), (l, DType::F64)]) {
        let x = Var::from_tensor(&input(shape, dtype)).unwrap();
        let gradient = |o: usize, value: f64| {
            let y = layer(&x).unwrap();
            let seed = with(&y.zeros_like().unwrap(), o, value);
            values((y * seed).unwrap().sum_all().unwrap().backward().unwrap().get(&x).unwrap())
        };
        let outputs = layer(&x).unwrap().elem_count();
        for o in [0, outputs / 2, outputs - 1] {
            for bad in [f64::NAN, f64::INFINITY] {
                for (i, (one, spoiled)) in gradient(o, 1.0).iter().zip(gradient(o, bad)).enumerate() {
                    let part = one.abs() > 1e-3;
                    assert!(
                        !part || !spoiled.is_finite(),
                        "{name}, {dtype:?}: {bad} at {o} gives {spoiled} at {i}"
                    );
                }
            }
        }
    }
}
