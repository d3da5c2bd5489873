//! The layers of transformers: gradients against central differences in f64, values against plain formulas.

use candle_core::{D, DType, Device, Tensor, Var};
use ssl_nn::{
    AttentionOptions, Purpose, attention, attention_map, gelu, gelu_tanh, layer_norm, quick_gelu, rng, swiglu,
};

use crate::differences::{
    Input, assert_close, assert_independent_of_threads, below, cases, check, layouts, uniform, values,
};

#[test]
fn layer_norm_in_value_and_gradient() {
    for (layout, mut rng) in layouts().zip(cases(100, 60)) {
        let shape = [2 + below(&mut rng, 20), 2 + below(&mut rng, 20), 2 + below(&mut rng, 40)];
        let x = Input::uniform(&mut rng, &shape, layout);
        let weight = Var::from_tensor(&uniform(&mut rng, &shape[2..])).unwrap();
        let bias = Var::from_tensor(&uniform(&mut rng, &shape[2..])).unwrap();
        let v = x.see().unwrap();
        let y = layer_norm(&v, &weight, &bias, 1e-3).unwrap();
        let centred = v.broadcast_sub(&v.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let normed = centred.broadcast_div(&(variance + 1e-3).unwrap().sqrt().unwrap()).unwrap();
        let expected = normed.broadcast_mul(&weight).unwrap().broadcast_add(&bias).unwrap();
        assert_close(&y, &expected, 1e-12);
        let label = format!("layer norm {shape:?}, {layout:?}");
        check(&mut rng, &label, &[x.var.clone(), weight.clone(), bias.clone()], || {
            layer_norm(&x.see()?, &weight, &bias, 1e-3)
        });
    }
}

#[test]
fn swiglu_in_value_and_gradient() {
    for (layout, mut rng) in layouts().zip(cases(111, 32)) {
        let half = 1 + below(&mut rng, 40);
        let shape = [1 + below(&mut rng, 3), 1 + below(&mut rng, 150), 2 * half];
        let input = Input::uniform(&mut rng, &shape, layout).times(6.0);
        let x = input.see().unwrap();
        let (gate, value) = (x.narrow(2, 0, half).unwrap(), x.narrow(2, half, half).unwrap());
        let expected = (gate.contiguous().unwrap().silu().unwrap() * value).unwrap();
        assert_close(&swiglu(&x).unwrap(), &expected, 1e-12);
        assert_close(&swiglu(&x.to_dtype(DType::F32).unwrap()).unwrap(), &expected, 2e-5);
        let label = format!("{shape:?}, {layout:?}");
        check(&mut rng, &label, std::slice::from_ref(&input.var), || swiglu(&input.see()?));
    }
}

#[test]
fn gelus_in_value_and_gradient() {
    for (layout, mut rng) in layouts().zip(cases(101, 32)) {
        let shape = [2 + below(&mut rng, 9), 2 + below(&mut rng, 40)];
        let input = Input::uniform(&mut rng, &shape, layout).times(6.0);
        let x = input.see().unwrap();
        for f in [gelu, gelu_tanh, quick_gelu] {
            let label = format!("{shape:?}, {layout:?}");
            check(&mut rng, &label, std::slice::from_ref(&input.var), || f(&input.see()?));
            let single = f(&x.to_dtype(DType::F32).unwrap()).unwrap();
            assert_close(&single, &f(&x).unwrap(), 2e-6);
        }
        assert_close(&gelu(&x).unwrap(), &x.gelu_erf().unwrap(), 1e-12);
        assert_close(&gelu_tanh(&x).unwrap(), &x.gelu().unwrap(), 1e-10);
    }
    let nan = Tensor::new(&[f32::NAN, 1.0], &Device::Cpu).unwrap();
    assert!([gelu, gelu_tanh, quick_gelu].iter().all(|f| values(&f(&nan).unwrap())[0].is_nan()));
}

/// Far below the units that a test against absolute errors would see: GELU(-6) is -6e-9.
#[test]
fn gelu_in_f32_keeps_its_relative_accuracy_in_the_left_tail() {
    let x: Vec<f32> = (0..60_000).map(|i| i as f32 / -10_000.0).collect();
    let run = |x: &Tensor| {
        let x = Var::from_tensor(x).unwrap();
        let y = gelu(&x).unwrap();
        let dx = y.sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone();
        (values(&y), values(&dx))
    };
    let x = Tensor::new(x, &Device::Cpu).unwrap();
    let ((y, dx), (exact, exact_dx)) = (run(&x), run(&x.to_dtype(DType::F64).unwrap()));
    for (y, exact) in y.iter().zip(exact) {
        assert!((y - exact).abs() <= 1e-6 * exact.abs(), "{y} is not {exact}");
    }
    // The slope passes through zero at -0.75, where only its absolute error can be small.
    for ((x, dx), exact) in values(&x).into_iter().zip(dx).zip(exact_dx) {
        let error = (dx - exact).abs();
        assert!(error <= 1e-6 * exact.abs() || (x > -1.5 && error < 1.2e-7), "{dx} is not {exact} at {x}");
    }
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
    assert_independent_of_threads(run);
    let error = layer_norm(&x, &weight.narrow(0, 0, 32).unwrap(), &bias, 1e-6).unwrap_err().to_string();
    assert!(error.contains("(33)") && error.contains("[32]"), "{error}");
}

#[test]
fn attention_in_value_and_gradient() {
    let none = AttentionOptions::default();
    for (layout, mut rng) in layouts().zip(cases(103, 40)) {
        let (heads, width) = (1 + below(&mut rng, 4), 1 + below(&mut rng, 6));
        let shape = [2 + below(&mut rng, 3), 2 + below(&mut rng, 20), 3 * heads * width];
        let x = Input::uniform(&mut rng, &shape, layout).times(2.0);
        let v = x.see().unwrap();
        let (b, n, _) = v.dims3().unwrap();
        let values = v.narrow(2, 2 * heads * width, heads * width).unwrap();
        let values = values.reshape((b, n, heads, width)).unwrap().transpose(1, 2).unwrap();
        let expected =
            attention_map(&v, heads, &none).unwrap().matmul(&values.contiguous().unwrap()).unwrap();
        let expected = expected.transpose(1, 2).unwrap().reshape((b, n, heads * width)).unwrap();
        assert_close(&attention(&v, heads, &none).unwrap(), &expected, 1e-12);
        let label = format!("{heads} heads, {shape:?}, {layout:?}");
        check(&mut rng, &label, std::slice::from_ref(&x.var), || attention(&x.see()?, heads, &none));
    }
    let error =
        attention(&Tensor::zeros((2, 3, 8), DType::F32, &Device::Cpu).unwrap(), 2, &none).unwrap_err();
    assert!(error.to_string().contains("a multiple of 6"), "{error}");
}

#[test]
fn attention_over_several_tiles_does_not_depend_on_threads() {
    let none = AttentionOptions::default();
    let mut rng = rng(7, Purpose::Init, 104, 0, 0);
    // 600 tokens make tiles of 54 queries.
    let double = Var::from_tensor(&uniform(&mut rng, &[2, 600, 12])).unwrap();
    check(&mut rng, "600 tokens", std::slice::from_ref(&double), || attention(&double, 2, &none));
    let x = Var::from_tensor(&double.to_dtype(DType::F32).unwrap()).unwrap();
    let run = || {
        let y = attention(&x, 2, &none).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        [values(&y), values(grads.get(&x).unwrap())]
    };
    assert_independent_of_threads(run);
    let nan = (x.as_tensor() * f64::NAN).unwrap();
    assert!(values(&attention(&nan, 2, &none).unwrap()).iter().all(|y| y.is_nan()));
}
