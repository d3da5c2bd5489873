//! Layers against PyTorch: `tests/python/make_layers.py` computed the values and gradients of
//! `tests/golden/layers/layers.safetensors` in float64.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Result, Tensor, Var};
use ssl_nn::{
    BicubicConfig, avg_pool2d, cross_entropy, group_norm, interpolate_positions, log_softmax, resize_bicubic,
    rms_norm, soft_cross_entropy, softmax,
};

use crate::differences::assert_close;

fn golden(file: &str) -> BTreeMap<String, Tensor> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(file);
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

/// The tensors of one case whose names begin with `prefix`, in the order of `names`.
struct Case {
    golden: BTreeMap<String, Tensor>,
    name: &'static str,
    dtype: DType,
}

impl Case {
    fn tensor(&self, name: &str) -> Tensor {
        self.golden.get(&format!("{}.{name}", self.name)).unwrap().to_dtype(self.dtype).unwrap()
    }

    /// Compares value and gradients of `f` of the named inputs.
    fn check(&self, names: &[&str], tolerance: f64, f: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let var = |name: &&str| Var::from_tensor(&self.tensor(&format!("in.{name}"))).unwrap();
        let inputs: Vec<Var> = names.iter().map(var).collect();
        let tensors: Vec<Tensor> = inputs.iter().map(|x| x.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        assert_close(&y, &self.tensor("out"), tolerance);
        let grads = (y * self.tensor("pattern")).unwrap().sum_all().unwrap().backward().unwrap();
        for (name, input) in names.iter().zip(&inputs) {
            assert_close(grads.get(input).unwrap(), &self.tensor(&format!("grad.{name}")), tolerance);
        }
    }
}

/// Runs `f` with a case in both types and what may be expected of each.
fn in_both_types(name: &'static str, f: impl Fn(&Case, f64)) {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 5e-6)] {
        f(&Case { golden: golden("layers/layers.safetensors"), name, dtype }, tolerance);
    }
}

#[test]
fn norms() {
    in_both_types("rms_norm", |case, tolerance| {
        case.check(&["x", "weight"], tolerance, |x| rms_norm(&x[0], &x[1], 1e-5));
    });
    in_both_types("group_norm", |case, tolerance| {
        case.check(&["x", "weight", "bias"], tolerance, |x| group_norm(&x[0], 3, &x[1], &x[2], 1e-5));
    });
}

#[test]
fn softmax_and_cross_entropy() {
    in_both_types("softmax", |case, tolerance| case.check(&["x"], tolerance, |x| softmax(&x[0], 1)));
    in_both_types("log_softmax", |case, tolerance| case.check(&["x"], tolerance, |x| log_softmax(&x[0], 1)));
    for (name, smoothing) in [("cross_entropy", 0.0), ("cross_entropy_smoothed", 0.1)] {
        in_both_types(name, |case, tolerance| {
            let classes = &case.golden[&format!("{name}.in.classes")];
            case.check(&["x"], tolerance, |x| cross_entropy(&x[0], classes, smoothing));
        });
    }
    in_both_types("soft_cross_entropy", |case, tolerance| {
        case.check(&["x", "targets"], tolerance, |x| soft_cross_entropy(&x[0], &x[1]));
    });
}

#[test]
fn average_pooling() {
    for (name, kernel, stride, padding) in [("avg_pool", 3, 2, 1), ("avg_pool_rest", 2, 3, 0)] {
        in_both_types(name, |case, tolerance| {
            case.check(&["x"], tolerance, |x| avg_pool2d(&x[0], kernel, stride, padding));
        });
    }
}

#[test]
fn bicubic_interpolation() {
    let scale = Some((6.1 / 4.0, 3.1 / 4.0));
    for (name, size, antialias, scale) in [
        ("bicubic_up", (7, 6), false, None),
        ("bicubic_down", (2, 3), false, None),
        ("bicubic_antialias_up", (7, 6), true, None),
        ("bicubic_antialias_down", (2, 3), true, None),
        ("bicubic_offset", (6, 3), false, scale),
        ("bicubic_antialias_offset", (6, 3), true, scale),
    ] {
        in_both_types(name, |case, tolerance| {
            case.check(&["x"], tolerance, |x| {
                resize_bicubic(&x[0], size, BicubicConfig { antialias, scale })
            });
        });
    }
}

/// The positions of a DINOv2 of 28 pixels in patches of 7, at 42x35 pixels, by the pattern rule of
/// `tests/golden/README.md`.
#[test]
fn positions_of_dinov2() {
    let name = "embeddings.position_embeddings";
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    let value = |i: u64| {
        let z = hash.wrapping_add(i).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let u = ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24);
        (0.2 * (2.0 * u - 1.0)) as f32
    };
    let positions = Tensor::from_iter((0..17 * 48).map(value), &Device::Cpu).unwrap();
    let positions = positions.reshape((1, 17, 48)).unwrap();
    let resized = interpolate_positions(&positions, (4, 4), (6, 5), BicubicConfig::default()).unwrap();
    let expected = golden("backbones/dinov2_pos_interp.safetensors").remove("out.pos_embed").unwrap();
    assert_close(&resized, &expected, 1e-6);
}
