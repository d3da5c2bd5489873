//! Every layer's hand-written gradient against central differences, in f64.

use candle_core::{DType, Device, Result, Tensor, Var};
use ssl_nn::{
    Affine, BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, ConvNorm, Mlp, MlpConfig, Params, Purpose,
    Residual, Rng, Shortcut, SqueezeExcitation, add_relu, avg_pool2d, conv2d, global_avg_pool,
    global_avg_pool_channels_last, max_pool2d, max_pool2d_channels_last, relu, residual_block,
    residual_blocks, rng,
};

use crate::differences::{
    Input, assert_close, assert_independent_of_threads, below, cases, check, layouts, uniform,
};

#[test]
fn convolution() {
    for (layout, mut rng) in layouts().zip(cases(1, 600)) {
        let (kh, kw) = (1 + below(&mut rng, 4), 1 + below(&mut rng, 4));
        let config = Conv2dConfig {
            stride: 1 + below(&mut rng, 3),
            padding: below(&mut rng, 4),
            dilation: 1 + below(&mut rng, 2),
            groups: 1 + below(&mut rng, 3),
        };
        let reach = |k: usize| config.dilation * (k - 1) + 1;
        let size = |rng: &mut Rng, k| reach(k).saturating_sub(2 * config.padding).max(1) + below(rng, 6);
        let (h, w) = (size(&mut rng, kh), size(&mut rng, kw));
        let (b, c_in, c_out) = (1 + below(&mut rng, 5), 1 + below(&mut rng, 3), 1 + below(&mut rng, 4));
        let (c_in, c_out) = (c_in * config.groups, c_out * config.groups);
        let x = Input::uniform(&mut rng, &[b, c_in, h, w], layout);
        let weight_layout = layouts().nth(below(&mut rng, 4)).unwrap();
        let weight = Input::uniform(&mut rng, &[c_out, c_in / config.groups, kh, kw], weight_layout);
        let label =
            format!("{h}x{w}, {layout:?}, * {kh}x{kw}, {weight_layout:?}, {c_in} to {c_out}, {config:?}");
        check(&mut rng, &label, &[x.var.clone(), weight.var.clone()], || {
            conv2d(&x.see()?, &weight.see()?, config)
        });
    }
}

#[test]
fn convolution_equals_candles_forward_and_takes_any_layout() {
    for mut rng in cases(2, 40) {
        let (c_in, c_out, k) = (1 + below(&mut rng, 20), 1 + below(&mut rng, 20), 1 + below(&mut rng, 3));
        let config = Conv2dConfig {
            stride: 1 + below(&mut rng, 2),
            padding: below(&mut rng, 2),
            ..Default::default()
        };
        let x = uniform(&mut rng, &[3, 30, 17, c_in]).to_dtype(DType::F32).unwrap();
        let x = x.permute((0, 3, 1, 2)).unwrap().narrow(2, 3, 20).unwrap();
        let weight = uniform(&mut rng, &[c_out, c_in, k, k]).to_dtype(DType::F32).unwrap();
        let ours = conv2d(&x, &weight, config).unwrap();
        let theirs = x.conv2d(&weight, config.padding, config.stride, 1, 1).unwrap();
        let gap = (ours - theirs).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert!(gap.to_scalar::<f32>().unwrap() < 1e-4, "{gap}");
    }
}

#[test]
fn batch_norm() {
    for (layout, mut rng) in layouts().zip(cases(3, 120)) {
        let channels = 1 + below(&mut rng, 5);
        let mut shape = vec![2 + below(&mut rng, 4), channels];
        if below(&mut rng, 2) == 0 {
            shape.extend([1 + below(&mut rng, 4), 1 + below(&mut rng, 6)]);
        }
        let affine = [Affine::ScaleAndShift, Affine::Scale, Affine::None][below(&mut rng, 3)];
        let (train, with_relu) = (below(&mut rng, 2) == 0, below(&mut rng, 2) == 0);
        let params = Params::new(below(&mut rng, 1000) as u64, DType::F64, &Device::Cpu);
        let bn = BatchNorm::new(channels, BatchNormConfig { affine, ..Default::default() }, &params.root())
            .unwrap();
        let x = Input::uniform(&mut rng, &shape, layout);
        let mut inputs: Vec<Var> = params.trainable().into_iter().map(|(_, var)| var).collect();
        for var in &inputs {
            var.set(&(uniform(&mut rng, &[channels]) + 0.5).unwrap()).unwrap();
        }
        inputs.push(x.var.clone());
        let label = format!("{shape:?}, {layout:?}, {affine:?}, train {train}, relu {with_relu}");
        check(&mut rng, &label, &inputs, || match with_relu {
            true => bn.forward_relu_t(&x.see()?, train),
            false => bn.forward_t(&x.see()?, train),
        });
    }
}

/// Sixteen channels and more go another way than few.
#[test]
fn wide_convolution() {
    for (layout, mut rng) in layouts().zip(cases(7, 60)) {
        let (c_in, c_out) = (16 + below(&mut rng, 20), 16 + below(&mut rng, 20));
        let (h, w) = (3 + below(&mut rng, 6), 3 + below(&mut rng, 6));
        let config = Conv2dConfig { padding: below(&mut rng, 3), ..Default::default() };
        let b = 1 + below(&mut rng, 3);
        let x = Input::uniform(&mut rng, &[b, c_in, h, w], layout);
        let weight = Var::from_tensor(&uniform(&mut rng, &[c_out, c_in, 3, 3])).unwrap();
        let label = format!("{b}x{h}x{w}, {layout:?}, {c_in} to {c_out}, {config:?}");
        check(&mut rng, &label, &[x.var.clone(), weight.clone()], || conv2d(&x.see()?, &weight, config));
    }
}

#[test]
fn residual_blocks_equal_their_layers() {
    for (layout, mut rng) in layouts().zip(cases(8, 40)) {
        let (b, h, w) = (2 + below(&mut rng, 2), 3 + below(&mut rng, 5), 3 + below(&mut rng, 5));
        let (c, stride, train) =
            ([3, 17][below(&mut rng, 2)], 1 + below(&mut rng, 2), below(&mut rng, 2) == 0);
        let params = Params::new(below(&mut rng, 1000) as u64, DType::F64, &Device::Cpu);
        let layer = |name: &str, kernel: usize, stride| ConvNorm {
            conv: Conv2d::new(
                c,
                c,
                kernel,
                Conv2dConfig { stride, padding: kernel / 2, ..Default::default() },
                &params.root().pp(name),
            )
            .unwrap(),
            norm: BatchNorm::new(c, BatchNormConfig::default(), &params.root().pp(name).pp("norm")).unwrap(),
        };
        let branch = [layer("a", 1, 1), layer("b", 3, stride), layer("c", 3, 1)];
        let shortcut = (stride > 1).then(|| layer("shortcut", 1, stride));
        let x = Input::uniform(&mut rng, &[b, h, w, c], layout);
        let mut inputs = vec![x.var.clone()];
        inputs.extend(params.trainable().into_iter().map(|(_, var)| var));
        let fused = || residual_block(&x.see()?, &branch, shortcut.as_ref(), train);
        let layers = || {
            let x = x.see()?.permute((0, 3, 1, 2))?;
            let apply = |layer: &ConvNorm, x: &Tensor| layer.norm.forward_t(&layer.conv.forward(x)?, train);
            let y = relu(&apply(&branch[1], &relu(&apply(&branch[0], &x)?)?)?)?;
            let x = shortcut.as_ref().map_or(Ok(x.clone()), |layer| apply(layer, &x))?;
            add_relu(&apply(&branch[2], &y)?, &x)?.permute((0, 2, 3, 1))?.contiguous()
        };
        let run = |f: &dyn Fn() -> Result<Tensor>| {
            let y = f().unwrap();
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            (y, grads)
        };
        let before: Vec<_> = params.buffers().iter().map(|(_, v)| v.as_tensor().copy().unwrap()).collect();
        let (y, grads) = run(&fused);
        let after: Vec<_> = params.buffers().iter().map(|(_, v)| v.as_tensor().copy().unwrap()).collect();
        params.buffers().iter().zip(&before).for_each(|((_, v), old)| v.set(old).unwrap());
        let (expected, expected_grads) = run(&layers);
        assert_close(&y, &expected, 1e-9);
        for ((name, buffer), fused) in
            params.buffers().iter().zip(&after).filter(|((n, _), _)| !n.ends_with("tracked"))
        {
            assert_eq!(buffer.dims(), fused.dims(), "{name}");
            assert_close(fused, buffer, 1e-9);
        }
        for input in &inputs {
            assert_close(grads.get(input).unwrap(), expected_grads.get(input).unwrap(), 1e-9);
        }
    }
}

#[test]
fn blocks_in_a_row_equal_single_blocks() {
    let params = Params::new(5, DType::F64, &Device::Cpu);
    let layer = |name: &str, c_in, c_out, stride| {
        let (scope, config) =
            (params.root().pp(name), Conv2dConfig { stride, padding: 1, ..Default::default() });
        ConvNorm {
            conv: Conv2d::new(c_in, c_out, 3, config, &scope).unwrap(),
            norm: BatchNorm::new(c_out, BatchNormConfig::default(), &scope.pp("norm")).unwrap(),
        }
    };
    let branches = [[layer("a", 3, 3, 1)], [layer("b", 3, 17, 2)], [layer("c", 17, 17, 1)]];
    let projection = layer("d", 3, 17, 2);
    let shortcuts = [Shortcut::None, Shortcut::Projection(&projection), Shortcut::Identity];
    let blocks: Vec<_> = branches
        .iter()
        .zip(shortcuts)
        .map(|(branch, shortcut)| Residual { branch, gate: None, shortcut })
        .collect();
    let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let x = Var::from_tensor(&uniform(&mut rng(2, Purpose::Init, 9, 0, 0), &[3, 5, 6, 3])).unwrap();
    // With and without a gradient of the input.
    for x in [x.as_tensor(), &x.detach()] {
        let run = |y: Result<Tensor>| {
            let y = y.unwrap();
            (values(&y), y.sqr().unwrap().sum_all().unwrap().backward().unwrap())
        };
        let (y, grads) = run(residual_blocks(x, &blocks, true));
        let single = |x: Tensor, block| residual_blocks(&x, std::slice::from_ref(block), true);
        let (expected, expected_grads) = run(blocks.iter().try_fold(x.clone(), single));
        assert_eq!(y, expected);
        assert_eq!(grads.get(x).map(values), expected_grads.get(x).map(values));
        assert_eq!(grads.get(x).is_some(), x.track_op());
        for (name, var) in params.trainable() {
            assert_eq!(values(grads.get(&var).unwrap()), values(expected_grads.get(&var).unwrap()), "{name}");
        }
    }
}

#[test]
fn squeeze_excitation() {
    for (layout, mut rng) in layouts().zip(cases(10, 60)) {
        let (channels, squeezed) = (1 + below(&mut rng, 20), 1 + below(&mut rng, 5));
        let shape = [1 + below(&mut rng, 4), 1 + below(&mut rng, 4), 1 + below(&mut rng, 4), channels];
        let params = Params::new(below(&mut rng, 1000) as u64, DType::F64, &Device::Cpu);
        let layer = SqueezeExcitation::new(channels, squeezed, &params.root()).unwrap();
        let x = Input::uniform(&mut rng, &shape, layout);
        let mut inputs = vec![x.var.clone()];
        inputs.extend(params.trainable().into_iter().map(|(_, var)| var));
        let label = format!("{shape:?} through {squeezed}, {layout:?}");
        check(&mut rng, &label, &inputs, || layer.forward(&x.see()?));
    }
}

/// A block with a gate, of a branch in groups, equals its layers one after the other.
#[test]
fn gated_blocks_equal_their_layers() {
    for (layout, mut rng) in layouts().zip(cases(11, 40)) {
        let (b, h, w) = (2 + below(&mut rng, 2), 3 + below(&mut rng, 5), 3 + below(&mut rng, 5));
        let (c, stride, train) =
            (4 * (1 + below(&mut rng, 3)), 1 + below(&mut rng, 2), below(&mut rng, 2) == 0);
        let params = Params::new(below(&mut rng, 1000) as u64, DType::F64, &Device::Cpu);
        let layer = |name: &str, kernel: usize, stride, groups| {
            let scope = params.root().pp(name);
            let config = Conv2dConfig { stride, padding: kernel / 2, groups, ..Default::default() };
            ConvNorm {
                conv: Conv2d::new(c, c, kernel, config, &scope).unwrap(),
                norm: BatchNorm::new(c, BatchNormConfig::default(), &scope.pp("norm")).unwrap(),
            }
        };
        let branch = [layer("a", 1, 1, 1), layer("b", 3, stride, c / 4), layer("c", 1, 1, 1)];
        let gate = SqueezeExcitation::new(c, 1 + below(&mut rng, 4), &params.root().pp("gate")).unwrap();
        let projection = (stride > 1).then(|| layer("shortcut", 1, stride, 1));
        let shortcut = projection.as_ref().map_or(Shortcut::Identity, Shortcut::Projection);
        let x = Input::uniform(&mut rng, &[b, h, w, c], layout);
        let fused = || {
            residual_blocks(&x.see()?, &[Residual { branch: &branch, gate: Some(&gate), shortcut }], train)
        };
        let layers = || {
            let x = x.see()?.permute((0, 3, 1, 2))?;
            let apply = |layer: &ConvNorm, x: &Tensor| layer.norm.forward_t(&layer.conv.forward(x)?, train);
            let y = relu(&apply(&branch[1], &relu(&apply(&branch[0], &x)?)?)?)?;
            let y = gate.forward(&y.permute((0, 2, 3, 1))?)?.permute((0, 3, 1, 2))?.contiguous()?;
            let x = projection.as_ref().map_or(Ok(x.clone()), |layer| apply(layer, &x))?;
            add_relu(&apply(&branch[2], &y)?, &x)?.permute((0, 2, 3, 1))?.contiguous()
        };
        let run = |f: &dyn Fn() -> Result<Tensor>| {
            let y = f().unwrap();
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            (y, grads)
        };
        let before: Vec<_> = params.buffers().iter().map(|(_, v)| v.as_tensor().copy().unwrap()).collect();
        let (y, grads) = run(&fused);
        params.buffers().iter().zip(&before).for_each(|((_, v), old)| v.set(old).unwrap());
        let (expected, expected_grads) = run(&layers);
        assert_close(&y, &expected, 1e-9);
        let inputs = params.trainable().into_iter().chain([("x".to_owned(), x.var.clone())]);
        for (_, input) in inputs {
            assert_close(grads.get(&input).unwrap(), expected_grads.get(&input).unwrap(), 1e-9);
        }
    }
}

#[test]
fn a_gate_needs_two_layers() {
    let params = Params::new(0, DType::F64, &Device::Cpu);
    let gate = SqueezeExcitation::new(3, 2, &params.root().pp("gate")).unwrap();
    let branch = [ConvNorm {
        conv: Conv2d::new(3, 3, 1, Conv2dConfig::default(), &params.root()).unwrap(),
        norm: BatchNorm::new(3, BatchNormConfig::default(), &params.root().pp("norm")).unwrap(),
    }];
    let block = Residual { branch: &branch, gate: Some(&gate), shortcut: Shortcut::Identity };
    let x = Tensor::zeros((2, 3, 3, 3), DType::F64, &Device::Cpu).unwrap();
    let error = residual_blocks(&x, &[block], true).unwrap_err().to_string();
    assert!(error.contains("the branch has one"), "{error}");
}

#[test]
fn pooling_and_activations() {
    for (layout, mut rng) in layouts().zip(cases(4, 60)) {
        let (kernel, stride) = (1 + below(&mut rng, 3), 1 + below(&mut rng, 3));
        let padding = below(&mut rng, kernel as u64 / 2 + 1);
        let (h, w) = (kernel + below(&mut rng, 6), kernel + below(&mut rng, 6));
        let x = Input::uniform(&mut rng, &[2, 3, h, w], layout);
        let other = layouts().nth(below(&mut rng, 4)).unwrap();
        let y = Input::uniform(&mut rng, &[2, 3, h, w], other);
        let label = format!("{h}x{w}, {layout:?}, kernel {kernel}, stride {stride}, padding {padding}");
        let mut checked = |name: &str, f: &dyn Fn(&Tensor) -> Result<Tensor>| {
            check(&mut rng, &format!("{name}, {label}"), std::slice::from_ref(&x.var), || f(&x.see()?));
        };
        checked("max", &|x| max_pool2d(x, kernel, stride, padding));
        checked("max, channels last", &|x| max_pool2d_channels_last(x, 1, stride, 0));
        checked("average", &|x| avg_pool2d(x, kernel, stride, padding));
        checked("global average", &global_avg_pool);
        checked("global average, channels last", &global_avg_pool_channels_last);
        checked("relu", &relu);
        check(&mut rng, "add relu", &[x.var.clone(), y.var.clone()], || add_relu(&x.see()?, &y.see()?));
    }
}

#[test]
fn mlp() {
    for (layout, mut rng) in layouts().zip(cases(5, 40)) {
        let params = Params::new(below(&mut rng, 1000) as u64, DType::F64, &Device::Cpu);
        let config = MlpConfig {
            hidden_bias: below(&mut rng, 2) == 0,
            last_bias: below(&mut rng, 2) == 0,
            hidden_norm: below(&mut rng, 2) == 0,
            last_norm: [None, Some(Affine::Scale)][below(&mut rng, 2)],
            gelu: below(&mut rng, 2) == 0,
            init: None,
        };
        let mlp = Mlp::new(&[4, 5, 6, 3], config, &params.root()).unwrap();
        let x = Input::uniform(&mut rng, &[6, 4], layout);
        let mut inputs = vec![x.var.clone()];
        // A bias that a batch norm follows has gradient zero, which central differences drown in rounding.
        inputs.extend(params.trainable().into_iter().filter(|(n, _)| n.ends_with("weight")).map(|(_, v)| v));
        check(&mut rng, &format!("{layout:?}, {config:?}"), &inputs, || mlp.forward_t(&x.see()?, true));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let run = || -> Vec<Vec<f32>> {
        let mut rng = rng(1, Purpose::Init, 6, 0, 0);
        let x = Var::from_tensor(&uniform(&mut rng, &[19, 6, 11, 9]).to_dtype(DType::F32).unwrap()).unwrap();
        let weight =
            Var::from_tensor(&uniform(&mut rng, &[8, 6, 3, 3]).to_dtype(DType::F32).unwrap()).unwrap();
        let params = Params::new(3, DType::F32, &Device::Cpu);
        let bn = BatchNorm::new(8, BatchNormConfig::default(), &params.root()).unwrap();
        let y = conv2d(&x, &weight, Conv2dConfig { padding: 1, ..Default::default() }).unwrap();
        let unit = |name: &str, c_in, c_out| ConvNorm {
            conv: Conv2d::new(
                c_in,
                c_out,
                3,
                Conv2dConfig { padding: 1, ..Default::default() },
                &params.root().pp(name),
            )
            .unwrap(),
            norm: BatchNorm::new(c_out, BatchNormConfig::default(), &params.root().pp(name).pp("norm"))
                .unwrap(),
        };
        let branch = [unit("a", 8, 24), unit("b", 24, 16)];
        let block = residual_block(&y.permute((0, 2, 3, 1)).unwrap(), &branch, Some(&unit("c", 8, 16)), true);
        let block = block.unwrap();
        let gate = SqueezeExcitation::new(16, 4, &params.root().pp("gate")).unwrap();
        let second = [unit("d", 16, 16), unit("e", 16, 16)];
        let gated = Residual { branch: &second, gate: Some(&gate), shortcut: Shortcut::Identity };
        let block = residual_blocks(&block, &[gated], true).unwrap().sqr().unwrap().mean_all().unwrap();
        let y = max_pool2d(&bn.forward_relu_t(&y, true).unwrap(), 3, 2, 1).unwrap();
        let grads = (y.sqr().unwrap().sum_all().unwrap() + block).unwrap().backward().unwrap();
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1().unwrap();
        let mut all = vec![values(&y), values(grads.get(&x).unwrap()), values(grads.get(&weight).unwrap())];
        // Many channels: sums over all positions by blocks of the output, with Winograd and without.
        for (kernel, c_out) in [(3, 272), (1, 300)] {
            let f32s = |rng: &mut Rng, shape: &[usize]| uniform(rng, shape).to_dtype(DType::F32).unwrap();
            let x = f32s(&mut rng, &[9, 256, 7, 5]);
            let weight = Var::from_tensor(&f32s(&mut rng, &[c_out, 256, kernel, kernel])).unwrap();
            let config = Conv2dConfig { padding: kernel / 2, ..Default::default() };
            let y = conv2d(&x, &weight, config).unwrap();
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            all.extend([values(&y), values(grads.get(&weight).unwrap())]);
        }
        all
    };
    assert_independent_of_threads(run);
}
