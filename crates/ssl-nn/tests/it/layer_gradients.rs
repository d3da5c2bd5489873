//! Norms, softmax, cross-entropy, interpolation and dropout: gradients against central differences in f64, values
//! against plain formulas, in all layouts.

use candle_core::{D, DType, Device, Tensor, Var};
use ssl_nn::{
    BicubicConfig, DrawsAt, Purpose, cross_entropy, drop_path, dropout, group_norm, interpolate_positions,
    log_softmax, resize_bicubic, rms_norm, rng, soft_cross_entropy, softmax,
};

use crate::differences::{
    Input, assert_close, assert_independent_of_threads, below, cases, check, layouts, uniform, values,
};

#[test]
fn rms_norm_in_value_and_gradient() {
    for (layout, mut rng) in layouts().zip(cases(200, 40)) {
        let shape = [2 + below(&mut rng, 9), 2 + below(&mut rng, 9), 1 + below(&mut rng, 40)];
        let x = Input::uniform(&mut rng, &shape, layout);
        let weight = Var::from_tensor(&uniform(&mut rng, &shape[2..])).unwrap();
        let v = x.see().unwrap();
        let rms = (v.sqr().unwrap().mean_keepdim(D::Minus1).unwrap() + 1e-3).unwrap().sqrt().unwrap();
        let expected = v.broadcast_div(&rms).unwrap().broadcast_mul(&weight).unwrap();
        assert_close(&rms_norm(&v, &weight, 1e-3).unwrap(), &expected, 1e-12);
        let label = format!("rms norm {shape:?}, {layout:?}");
        check(&mut rng, &label, &[x.var.clone(), weight.clone()], || rms_norm(&x.see()?, &weight, 1e-3));
    }
    let x = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
    let error = rms_norm(&x, &x.narrow(0, 0, 1).unwrap(), 1e-6).unwrap_err().to_string();
    assert!(error.contains("a weight (4)") && error.contains("[1, 4]"), "{error}");
}

#[test]
fn group_norm_in_value_and_gradient() {
    for (layout, mut rng) in layouts().zip(cases(201, 60)) {
        let (groups, each) = (1 + below(&mut rng, 4), 1 + below(&mut rng, 4));
        let mut shape = vec![1 + below(&mut rng, 4), groups * each];
        shape.extend((0..below(&mut rng, 3)).map(|_| 1 + below(&mut rng, 7)));
        let x = Input::uniform(&mut rng, &shape, layout);
        let weight = Var::from_tensor(&uniform(&mut rng, &shape[1..2])).unwrap();
        let bias = Var::from_tensor(&uniform(&mut rng, &shape[1..2])).unwrap();
        let label = format!("{groups} groups, {shape:?}, {layout:?}");
        let apply = || group_norm(&x.see()?, groups, &weight, &bias, 1e-2);
        // Means and variances of each group, one value at a time.
        let (v, w, b) = (values(&x.see().unwrap()), values(&weight), values(&bias));
        let space: usize = shape[2..].iter().product();
        let group = each * space;
        let expected = v.iter().enumerate().map(|(i, x)| {
            let all = &v[i / group * group..][..group];
            let mean = all.iter().sum::<f64>() / group as f64;
            let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / group as f64;
            let channel = i / space % shape[1];
            (x - mean) / (variance + 1e-2).sqrt() * w[channel] + b[channel]
        });
        let expected = Tensor::from_iter(expected, &Device::Cpu).unwrap().reshape(&shape[..]).unwrap();
        assert_close(&apply().unwrap(), &expected, 1e-11);
        check(&mut rng, &label, &[x.var.clone(), weight.clone(), bias.clone()], apply);
    }
}

#[test]
fn softmax_in_value_and_gradient_over_every_dimension() {
    for (layout, mut rng) in layouts().zip(cases(202, 60)) {
        let shape = [1 + below(&mut rng, 5), 1 + below(&mut rng, 5), 1 + below(&mut rng, 40)];
        let dim = below(&mut rng, 3);
        let x = Input::uniform(&mut rng, &shape, layout).times(8.0);
        let exp = x.see().unwrap().exp().unwrap();
        let expected = exp.broadcast_div(&exp.sum_keepdim(dim).unwrap()).unwrap();
        let label = format!("{shape:?}, over {dim}, {layout:?}");
        assert_close(&softmax(&x.see().unwrap(), dim).unwrap(), &expected, 1e-13);
        assert_close(&log_softmax(&x.see().unwrap(), dim).unwrap(), &expected.log().unwrap(), 1e-12);
        check(&mut rng, &label, std::slice::from_ref(&x.var), || softmax(&x.see()?, dim));
        check(&mut rng, &label, std::slice::from_ref(&x.var), || log_softmax(&x.see()?, dim));
        let single = x.see().unwrap().to_dtype(DType::F32).unwrap();
        let exact = softmax(&single.to_dtype(DType::F64).unwrap(), dim).unwrap();
        assert_close(&softmax(&single, dim).unwrap(), &exact, 1e-6);
    }
}

#[test]
fn cross_entropies_in_value_and_gradient() {
    for (layout, mut rng) in layouts().zip(cases(203, 60)) {
        let (rows, columns) = (1 + below(&mut rng, 20), 1 + below(&mut rng, 20));
        let x = Input::uniform(&mut rng, &[rows, columns], layout).times(5.0);
        let other = layouts().nth(below(&mut rng, 4)).unwrap();
        let targets = Input::uniform(&mut rng, &[rows, columns], other);
        let classes: Vec<u32> = (0..rows).map(|_| below(&mut rng, columns as u64) as u32).collect();
        let smoothing = [0.0, 0.1, 1.0][below(&mut rng, 3)];
        let spread = smoothing / columns as f64;
        let distribution = classes.iter().flat_map(|class| {
            (0..columns as u32).map(move |c| spread + if c == *class { 1.0 - smoothing } else { 0.0 })
        });
        let distribution = Tensor::from_iter(distribution, &Device::Cpu).unwrap();
        let distribution = distribution.reshape((rows, columns)).unwrap();
        let classes = Tensor::new(&classes[..], &Device::Cpu).unwrap();
        let classes = if below(&mut rng, 2) == 0 { classes } else { classes.to_dtype(DType::I64).unwrap() };
        let plain = |t: &Tensor| {
            let exp = x.see().unwrap().exp().unwrap();
            let log_p = exp.broadcast_div(&exp.sum_keepdim(1).unwrap()).unwrap().log().unwrap();
            ((log_p * t).unwrap().sum_all().unwrap() / -(rows as f64)).unwrap()
        };
        let hard = || cross_entropy(&x.see()?, &classes, smoothing);
        let soft = || soft_cross_entropy(&x.see()?, &targets.see()?);
        let label = format!("{rows}x{columns}, {layout:?}, {other:?}, smoothing {smoothing}");
        assert_close(&hard().unwrap(), &plain(&distribution), 1e-12);
        assert_close(&soft().unwrap(), &plain(&targets.see().unwrap()), 1e-12);
        check(&mut rng, &label, std::slice::from_ref(&x.var), hard);
        check(&mut rng, &label, &[x.var.clone(), targets.var.clone()], soft);
    }
}

#[test]
fn bicubic_interpolation_has_its_gradient_and_keeps_planes() {
    for (layout, mut rng) in layouts().zip(cases(204, 60)) {
        let (h, w) = (1 + below(&mut rng, 7), 1 + below(&mut rng, 7));
        let size = (1 + below(&mut rng, 9), 1 + below(&mut rng, 9));
        let shift = |to: usize, from: usize| (to as f64 + 0.1) / from as f64;
        let scale = [None, Some((shift(size.0, h), shift(size.1, w)))][below(&mut rng, 2)];
        let config = BicubicConfig { antialias: below(&mut rng, 2) == 0, scale };
        let label = format!("{h}x{w}, {layout:?}, to {size:?}, {config:?}");
        let x = Input::uniform(&mut rng, &[2, 2, h, w], layout);
        check(&mut rng, &label, std::slice::from_ref(&x.var), || resize_bicubic(&x.see()?, size, config));
        let positions = Input::uniform(&mut rng, &[1, 2 + h * w, 3], layout);
        check(&mut rng, &label, std::slice::from_ref(&positions.var), || {
            interpolate_positions(&positions.see()?, (h, w), size, config)
        });
        let ones = Tensor::ones((1, 1, h, w), DType::F64, &Device::Cpu).unwrap();
        let expected = Tensor::ones((1, 1, size.0, size.1), DType::F64, &Device::Cpu).unwrap();
        assert_close(&resize_bicubic(&ones, size, config).unwrap(), &expected, 1e-13);
    }
}

#[test]
fn dropouts_have_their_gradients() {
    for ((case, layout), mut rng) in (0..).zip(layouts()).zip(cases(205, 40)) {
        let shape = [2 + below(&mut rng, 6), 1 + below(&mut rng, 6), 1 + below(&mut rng, 6)];
        let x = Input::uniform(&mut rng, &shape, layout);
        let at = DrawsAt { seed: 7, step: case, first_sample: 0, layer: 1 };
        for f in [dropout, drop_path] {
            let label = format!("{shape:?}, {layout:?}, {at:?}");
            check(&mut rng, &label, std::slice::from_ref(&x.var), || f(&x.see()?, 0.3, at));
        }
    }
}

#[test]
fn nothing_depends_on_the_number_of_threads() {
    let mut rng = rng(7, Purpose::Init, 206, 0, 0);
    let single = |x: Tensor| Var::from_tensor(&x.to_dtype(DType::F32).unwrap()).unwrap();
    let x = single(uniform(&mut rng, &[600, 12, 9]));
    let targets = single(uniform(&mut rng, &[600, 9]));
    let (nine, twelve) = (single(uniform(&mut rng, &[9])), single(uniform(&mut rng, &[12])));
    let classes = Tensor::from_iter((0..600).map(|i| i % 9), &Device::Cpu).unwrap().to_dtype(DType::I64);
    let (classes, at) = (classes.unwrap(), DrawsAt { seed: 1, step: 2, first_sample: 3, layer: 4 });
    assert_independent_of_threads(|| {
        let y = group_norm(&rms_norm(&x, &nine, 1e-5).unwrap(), 3, &twelve, &twelve, 1e-5).unwrap();
        let y = drop_path(&dropout(&softmax(&y, 1).unwrap(), 0.2, at).unwrap(), 0.2, at).unwrap();
        let y =
            resize_bicubic(&y.reshape((60, 10, 12, 9)).unwrap(), (9, 12), BicubicConfig::default()).unwrap();
        let y = log_softmax(&y, 1).unwrap().reshape((600, 12, 9)).unwrap();
        let logits = y.sum(1).unwrap();
        let loss = cross_entropy(&logits, &classes, 0.1).unwrap();
        let loss = (loss + soft_cross_entropy(&logits, &targets).unwrap()).unwrap();
        let grads = loss.backward().unwrap();
        let mut all = vec![values(&loss)];
        all.extend([&x, &targets, &nine, &twelve].map(|v| values(grads.get(v).unwrap())));
        all
    });
}
