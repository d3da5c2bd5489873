//! The layers of transformers: gradients against central differences in f64, values against plain formulas.

// The lints take only functions marked as tests for tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use rand_core::RngCore;
use ssl_nn::{Purpose, Rng, attention, attention_map, gelu, gelu_tanh, layer_norm, quick_gelu, rng};

fn below(rng: &mut Rng, n: u64) -> usize {
    (rng.next_u64() % n) as usize
}

fn uniform(rng: &mut Rng, shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    let data: Vec<f64> = (0..n).map(|_| (rng.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.0).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.dims(), b.dims());
    for (a, b) in values(a).iter().zip(values(b)) {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} is not {b}");
    }
}

/// Checks the gradient of `sum(f() * pattern)` in up to 16 elements of every input.
fn check(rng: &mut Rng, inputs: &[&Var], f: impl Fn() -> Result<Tensor>) {
    let pattern = uniform(rng, f().unwrap().dims());
    let loss = || (f().unwrap() * &pattern).unwrap().sum_all().unwrap();
    let grads = loss().backward().unwrap();
    for (which, input) in inputs.iter().enumerate() {
        let (grad, start) = (values(grads.get(input).unwrap()), values(input));
        for _ in 0..16 {
            let (i, step) = (below(rng, start.len() as u64), 1e-6);
            let value_at = |x: f64| {
                let mut moved = start.clone();
                moved[i] = x;
                input.set(&Tensor::from_vec(moved, input.shape(), &Device::Cpu).unwrap()).unwrap();
                loss().to_scalar::<f64>().unwrap()
            };
            let slope = (value_at(start[i] + step) - value_at(start[i] - step)) / (2.0 * step);
            value_at(start[i]);
            assert!(
                (slope - grad[i]).abs() <= 1e-6 * (1.0 + slope.abs()),
                "input {which}[{i}]: {} is not {slope}",
                grad[i]
            );
        }
    }
}

/// One of three layouts of the same shape: contiguous, transposed, narrowed.
fn view(x: &Var, layout: usize) -> Result<Tensor> {
    match layout {
        0 => Ok(x.as_tensor().clone()),
        1 => x.transpose(0, 1),
        _ => x.narrow(0, 1, x.dim(0)? - 1),
    }
}

#[test]
fn layer_norm_in_value_and_gradient() {
    for case in 0..60 {
        let mut rng = rng(7, Purpose::Init, 100, case, 0);
        let layout = case as usize % 3;
        let shape = [2 + below(&mut rng, 20), 2 + below(&mut rng, 20), 2 + below(&mut rng, 40)];
        let x = Var::from_tensor(&uniform(&mut rng, &shape)).unwrap();
        let weight = Var::from_tensor(&uniform(&mut rng, &shape[2..])).unwrap();
        let bias = Var::from_tensor(&uniform(&mut rng, &shape[2..])).unwrap();
        let y = layer_norm(&view(&x, layout).unwrap(), &weight, &bias, 1e-3).unwrap();
        let v = view(&x, layout).unwrap();
        let centred = v.broadcast_sub(&v.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let normed = centred.broadcast_div(&(variance + 1e-3).unwrap().sqrt().unwrap()).unwrap();
        let expected = normed.broadcast_mul(&weight).unwrap().broadcast_add(&bias).unwrap();
        assert_close(&y, &expected, 1e-12);
        check(&mut rng, &[&x, &weight, &bias], || layer_norm(&view(&x, layout)?, &weight, &bias, 1e-3));
    }
}

#[test]
fn gelus_in_value_and_gradient() {
    for case in 0..30 {
        let mut rng = rng(7, Purpose::Init, 101, case, 0);
        let shape = [2 + below(&mut rng, 9), 2 + below(&mut rng, 40)];
        let x = Var::from_tensor(&(uniform(&mut rng, &shape) * 6.0).unwrap()).unwrap();
        let layout = case as usize % 3;
        for f in [gelu, gelu_tanh, quick_gelu] {
            check(&mut rng, &[&x], || f(&view(&x, layout)?));
            let single = f(&x.to_dtype(DType::F32).unwrap()).unwrap();
            // In the left tail the error of erf, a few 1e-7, is multiplied by x.
            assert_close(&single, &f(&x).unwrap(), 4e-6);
        }
        assert_close(&gelu(&x).unwrap(), &x.gelu_erf().unwrap(), 1e-12);
        assert_close(&gelu_tanh(&x).unwrap(), &x.gelu().unwrap(), 1e-10);
    }
    let nan = Tensor::new(&[f32::NAN, 1.0], &Device::Cpu).unwrap();
    assert!([gelu, gelu_tanh, quick_gelu].iter().all(|f| values(&f(&nan).unwrap())[0].is_nan()));
}

#[test]
fn layer_norm_does_not_depend_on_threads_and_refuses_other_widths() {
    let mut rng = rng(7, Purpose::Init, 102, 0, 0);
    let x = Var::from_tensor(&uniform(&mut rng, &[1030, 33]).to_dtype(DType::F32).unwrap()).unwrap();
    let weight = Var::ones(33, DType::F32, &Device::Cpu).unwrap();
    let bias = Var::zeros(33, DType::F32, &Device::Cpu).unwrap();
    let run = || {
        let y = gelu(&layer_norm(&x, &weight, &bias, 1e-6).unwrap()).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        [&x, &weight, &bias].map(|v| values(grads.get(v).unwrap()))
    };
    let with = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(run);
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(4));
    let error = layer_norm(&x, &weight.narrow(0, 0, 32).unwrap(), &bias, 1e-6).unwrap_err().to_string();
    assert!(error.contains("(33)") && error.contains("[32]"), "{error}");
}

#[test]
fn attention_in_value_and_gradient() {
    for case in 0..40 {
        let mut rng = rng(7, Purpose::Init, 103, case, 0);
        let (heads, width) = (1 + below(&mut rng, 4), 1 + below(&mut rng, 6));
        let shape = [2 + below(&mut rng, 3), 2 + below(&mut rng, 20), 3 * heads * width];
        let layout = case as usize % 3;
        let x = Var::from_tensor(&(uniform(&mut rng, &shape) * 2.0).unwrap()).unwrap();
        let v = view(&x, layout).unwrap();
        let (b, n, _) = v.dims3().unwrap();
        let values = v.narrow(2, 2 * heads * width, heads * width).unwrap();
        let values = values.reshape((b, n, heads, width)).unwrap().transpose(1, 2).unwrap();
        let expected = attention_map(&v, heads).unwrap().matmul(&values.contiguous().unwrap()).unwrap();
        let expected = expected.transpose(1, 2).unwrap().reshape((b, n, heads * width)).unwrap();
        assert_close(&attention(&v, heads).unwrap(), &expected, 1e-12);
        check(&mut rng, &[&x], || attention(&view(&x, layout)?, heads));
    }
    let error = attention(&Tensor::zeros((2, 3, 8), DType::F32, &Device::Cpu).unwrap(), 2).unwrap_err();
    assert!(error.to_string().contains("a multiple of 6"), "{error}");
}

#[test]
fn attention_over_several_tiles_does_not_depend_on_threads() {
    let mut rng = rng(7, Purpose::Init, 104, 0, 0);
    // 600 tokens make tiles of 54 queries.
    let double = Var::from_tensor(&uniform(&mut rng, &[2, 600, 12])).unwrap();
    check(&mut rng, &[&double], || attention(&double, 2));
    let x = Var::from_tensor(&double.to_dtype(DType::F32).unwrap()).unwrap();
    let run = || {
        let y = attention(&x, 2).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        [values(&y), values(grads.get(&x).unwrap())]
    };
    let with = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(run);
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(4));
    let nan = (x.as_tensor() * f64::NAN).unwrap();
    assert!(values(&attention(&nan, 2).unwrap()).iter().all(|y| y.is_nan()));
}
