//! Transformer blocks, attention with options and linear layers: values against single layers and plain formulas,
//! gradients against central differences in f64.

use candle_core::{DType, Device, Result, Tensor, Var};
use ssl_nn::{
    Activation, AttentionOptions, BlockOptions, Params, Perceptron, Purpose, QkvBias, TransformerBlock,
    TransformerBlockConfig, attention, attention_map, gelu, layer_norm, linear, rng, swiglu,
    transformer_blocks,
};

use crate::differences::{
    Input, assert_close, assert_independent_of_threads, below, cases, check, layouts, uniform, values,
};

#[test]
fn attention_with_bias_and_hidden_keys_in_value_and_gradient() {
    for (case, mut rng) in (0..).zip(cases(105, 40)) {
        let (heads, width) = (1 + below(&mut rng, 3), 1 + below(&mut rng, 5));
        let (turns, n) = (1 + below(&mut rng, 3), 2 + below(&mut rng, 40));
        let b = turns * (1 + below(&mut rng, 3));
        let x = Var::from_tensor(&(uniform(&mut rng, &[b, n, 3 * heads * width]) * 2.0).unwrap()).unwrap();
        let shape = match below(&mut rng, 3) {
            0 => vec![1, n, n],
            1 => vec![heads, n, n],
            _ => vec![turns, heads, n, n],
        };
        let bias = Var::from_tensor(&uniform(&mut rng, &shape)).unwrap();
        // The first token is always seen.
        let seen: Vec<u8> = (0..b * n).map(|i| u8::from(i % n == 0 || below(&mut rng, 3) > 0)).collect();
        let keys = Tensor::from_vec(seen, (b, n), &Device::Cpu).unwrap();
        let options = AttentionOptions { bias: Some(&bias), keys: (case % 3 > 0).then_some(&keys) };
        let map = attention_map(&x, heads, &options).unwrap();
        let values = x.narrow(2, 2 * heads * width, heads * width).unwrap();
        let values = values.reshape((b, n, heads, width)).unwrap().transpose(1, 2).unwrap();
        let expected = map.matmul(&values.contiguous().unwrap()).unwrap().transpose(1, 2).unwrap();
        let y = attention(&x, heads, &options).unwrap();
        assert_close(&y, &expected.reshape((b, n, heads * width)).unwrap(), 1e-12);
        let label = format!("{heads} heads, {:?}, bias {:?}", x.dims(), bias.dims());
        check(&mut rng, &label, &[x.clone(), bias.clone()], || attention(&x, heads, &options));
    }
}

#[test]
fn a_causal_bias_hides_what_comes_later() {
    let mut rng = rng(7, Purpose::Init, 106, 0, 0);
    let x = uniform(&mut rng, &[1, 5, 12]);
    let later = |i: usize| if i % 5 > i / 5 { f64::NEG_INFINITY } else { 0.0 };
    let bias = Tensor::from_vec((0..25).map(later).collect(), (1, 5, 5), &Device::Cpu).unwrap();
    let y = attention(&x, 2, &AttentionOptions { bias: Some(&bias), keys: None }).unwrap();
    let short = x.narrow(1, 0, 3).unwrap();
    let causal = bias.narrow(1, 0, 3).unwrap().narrow(2, 0, 3).unwrap();
    let first = attention(&short, 2, &AttentionOptions { bias: Some(&causal), keys: None }).unwrap();
    assert_close(&y.narrow(1, 0, 3).unwrap().contiguous().unwrap(), &first, 1e-14);
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap();
    for (bias, keys, part) in [
        (Some(zeros(&[3, 5, 5])), None, "(2 or 1, 5, 5) or (a divisor of 1, 2, 5, 5), got [3, 5, 5]"),
        (Some(zeros(&[2, 2, 5, 5])), None, "got [2, 2, 5, 5]"),
        (Some(zeros(&[1, 1, 5, 5])), None, "got [1, 1, 5, 5]"),
        (Some(zeros(&[2, 5, 5]).to_dtype(DType::F32).unwrap()), None, "of type F32"),
        (None, Some(zeros(&[1, 5])), "keys (1, 5) of type U8, got [1, 5] of F64"),
    ] {
        let options = AttentionOptions { bias: bias.as_ref(), keys: keys.as_ref() };
        let error = attention(&x, 2, &options).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// The block written with single layers.
fn layer_by_layer(x: &Tensor, params: &Params, heads: usize, options: &BlockOptions<'_>) -> Result<Tensor> {
    let get = |name: &str| params.get(name).map(|var| var.as_tensor().clone());
    let dense = |x: &Tensor, name: &str| {
        let y = x.broadcast_matmul(&get(&format!("{name}.weight")).unwrap().t()?)?;
        get(&format!("{name}.bias")).map_or(Ok(y.clone()), |bias| y.broadcast_add(&bias))
    };
    let norm = |x: &Tensor, name: &str| {
        layer_norm(x, &get(&format!("{name}.weight")).unwrap(), &get(&format!("{name}.bias")).unwrap(), 1e-6)
    };
    let add = |x: &Tensor, y: Tensor, scale: &str, branch: usize| {
        let y = get(scale).map_or(Ok(y.clone()), |scale| y.broadcast_mul(&scale))?;
        let y = options
            .drop_path
            .map_or(Ok(y.clone()), |factors| y.broadcast_mul(&factors[branch].reshape(((), 1, 1))?))?;
        x + y
    };
    let mut qkv = dense(&norm(x, "norm1")?, "attn.qkv")?;
    let (batch, tokens, packed) = qkv.dims3()?;
    if let (Some(query), Some(value)) = (get("attn.q_bias"), get("attn.v_bias")) {
        qkv = qkv.broadcast_add(&Tensor::cat(&[&query, &query.zeros_like()?, &value], 0)?)?;
    }
    if get("attn.q_norm.weight").is_some() {
        let part = |i: usize| {
            let part = qkv.narrow(2, i * packed / 3, packed / 3)?;
            part.reshape((batch, tokens, heads, packed / 3 / heads))
        };
        let parts = [norm(&part(0)?, "attn.q_norm")?, norm(&part(1)?, "attn.k_norm")?, part(2)?];
        let parts = parts.map(|part| part.reshape((batch, tokens, packed / 3)).unwrap());
        qkv = Tensor::cat(&parts, 2)?;
    }
    let scale = |i| if get("ls1.gamma").is_some() { format!("ls{i}.gamma") } else { format!("gamma_{i}") };
    let x = add(x, dense(&attention(&qkv, heads, &options.attention)?, "attn.proj")?, &scale(1), 0)?;
    let hidden = dense(&norm(&x, "norm2")?, "mlp.fc1")?;
    let gated = get("mlp.fc2.weight").is_some_and(|second| 2 * second.dims()[1] == hidden.dims()[2]);
    let hidden = if gated { swiglu(&hidden)? } else { gelu(&hidden)? };
    add(&x, dense(&hidden, "mlp.fc2")?, &scale(2), 1)
}

#[test]
fn a_transformer_block_equals_its_layers_in_value_and_gradient() {
    for (case, (layout, mut rng)) in layouts().zip(cases(107, 60)).enumerate() {
        let heads = 1 + below(&mut rng, 3);
        let dim = heads * (1 + below(&mut rng, 12));
        let (b, n) = (1 + below(&mut rng, 6), 1 + below(&mut rng, 60));
        let config = TransformerBlockConfig {
            heads,
            mlp_ratio: 1.0 + below(&mut rng, 4) as f64,
            qkv_bias: [QkvBias::None, QkvBias::All, QkvBias::QueryValue][below(&mut rng, 3)],
            perceptron: [Perceptron::Plain(Activation::Gelu), Perceptron::SwiGlu][below(&mut rng, 2)],
            qk_norm: below(&mut rng, 4) == 0,
            layer_scale: (below(&mut rng, 2) == 0).then_some(0.5),
            ..Default::default()
        };
        let params = Params::new(case as u64, DType::F64, &Device::Cpu);
        let block = TransformerBlock::new(dim, config, &params.root()).unwrap();
        let mut inputs: Vec<Var> = params.trainable().into_iter().map(|(_, var)| var).collect();
        for var in &inputs {
            var.set(&(var.as_tensor() + (uniform(&mut rng, var.dims()) * 0.3).unwrap()).unwrap()).unwrap();
        }
        let x = Input::uniform(&mut rng, &[b, n, dim], layout);
        let bias = Var::from_tensor(&uniform(&mut rng, &[heads, n, n])).unwrap();
        let factors = [(); 2].map(|()| (uniform(&mut rng, &[b]) + 1.0).unwrap());
        let with_bias = below(&mut rng, 2) == 0;
        let options = BlockOptions {
            attention: AttentionOptions { bias: with_bias.then_some(bias.as_tensor()), keys: None },
            drop_path: (below(&mut rng, 2) == 0).then_some([&factors[0], &factors[1]]),
        };
        inputs.push(x.var.clone());
        if with_bias {
            inputs.push(bias.clone());
        }
        let pattern = uniform(&mut rng, &[b, n, dim]);
        let run = |y: Tensor| {
            let grads = (&y * &pattern).unwrap().sum_all().unwrap().backward().unwrap();
            (y, grads)
        };
        let (y, grads) = run(block.forward(&x.see().unwrap(), &options).unwrap());
        let (expected, expected_grads) =
            run(layer_by_layer(&x.see().unwrap(), &params, heads, &options).unwrap());
        assert_close(&y, &expected, 1e-11);
        for input in &inputs {
            assert_close(grads.get(input).unwrap(), expected_grads.get(input).unwrap(), 1e-9);
        }
        if case < 10 {
            let label = format!("{config:?}, {b} samples of {n} tokens");
            check(&mut rng, &label, &inputs, || block.forward(&x.see()?, &options));
        }
    }
}

#[test]
fn a_chain_of_blocks_equals_one_after_the_other_also_for_the_first_tokens_alone() {
    let mut rng = rng(7, Purpose::Init, 110, 0, 0);
    let params = Params::new(1, DType::F64, &Device::Cpu);
    let block = |i: usize| {
        let config = TransformerBlockConfig { layer_scale: Some(0.7), ..Default::default() };
        TransformerBlock::new(6, config, &params.root().pp(i)).unwrap()
    };
    let blocks = [block(0), block(1), block(2)];
    let x = Var::from_tensor(&uniform(&mut rng, &[40, 5, 6])).unwrap();
    let bias = Var::from_tensor(&uniform(&mut rng, &[1, 5, 5])).unwrap();
    let factors = [(); 2].map(|()| uniform(&mut rng, &[40]));
    // Two blocks share a bias, one has drop path.
    let shared = AttentionOptions { bias: Some(&bias), keys: None };
    let options = [
        BlockOptions { attention: shared, drop_path: None },
        BlockOptions { attention: shared, drop_path: None },
        BlockOptions { drop_path: Some([&factors[0], &factors[1]]), ..Default::default() },
    ];
    let vars: Vec<Var> =
        params.trainable().into_iter().map(|(_, var)| var).chain([x.clone(), bias.clone()]).collect();
    for first in [None, Some(1), Some(3), Some(5)] {
        let chain: Vec<_> = blocks.iter().zip(options).collect();
        let y = transformer_blocks(&x, &chain, first).unwrap();
        let one_by_one = chain
            .iter()
            .try_fold(x.as_tensor().clone(), |x, (block, options)| block.forward(&x, options))
            .unwrap();
        let expected = one_by_one.narrow(1, 0, first.unwrap_or(5)).unwrap();
        assert_close(&y, &expected, 1e-12);
        let pattern = uniform(&mut rng, y.dims());
        let grads = [y, expected].map(|y| (y * &pattern).unwrap().sum_all().unwrap().backward().unwrap());
        for var in &vars {
            assert_close(grads[0].get(var).unwrap(), grads[1].get(var).unwrap(), 1e-10);
        }
    }
    for first in [0, 6] {
        let error = transformer_blocks(&x, &[(&blocks[0], options[0])], Some(first)).unwrap_err().to_string();
        assert!(error.contains("is not in 1..=5"), "{error}");
    }
    assert_close(&transformer_blocks(&x, &[], Some(2)).unwrap(), &x.narrow(1, 0, 2).unwrap(), 0.0);
}

#[test]
fn a_frozen_block_hands_the_gradient_on_and_keeps_none() {
    let params = Params::new(1, DType::F64, &Device::Cpu);
    let block = TransformerBlock::new(6, TransformerBlockConfig::default(), &params.root()).unwrap();
    let x = Var::ones((2, 3, 6), DType::F64, &Device::Cpu).unwrap();
    let frozen = block.frozen();
    let y = frozen.forward(&x, &BlockOptions::default()).unwrap();
    let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some());
    assert!(params.trainable().iter().all(|(_, var)| grads.get(var).is_none()));
}

#[test]
fn a_transformer_block_does_not_depend_on_threads() {
    let mut rng = rng(7, Purpose::Init, 108, 0, 0);
    let params = Params::new(1, DType::F32, &Device::Cpu);
    let config = TransformerBlockConfig { layer_scale: Some(1.0), ..Default::default() };
    let block = TransformerBlock::new(48, config, &params.root()).unwrap();
    let x = uniform(&mut rng, &[37, 17, 48]).to_dtype(DType::F32).unwrap();
    let bias = Var::from_tensor(&uniform(&mut rng, &[3, 17, 17]).to_dtype(DType::F32).unwrap()).unwrap();
    let x = Var::from_tensor(&x).unwrap();
    let run = || {
        let attention = AttentionOptions { bias: Some(&bias), keys: None };
        let y = block.forward(&x, &BlockOptions { attention, drop_path: None }).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let vars = params.trainable().into_iter().map(|(_, var)| var).chain([x.clone(), bias.clone()]);
        vars.map(|var| values(grads.get(&var).unwrap())).chain([values(&y)]).collect::<Vec<_>>()
    };
    assert_independent_of_threads(run);
}

#[test]
fn linear_layers_in_value_and_gradient() {
    for (layout, mut rng) in layouts().zip(cases(109, 60)) {
        let (inputs, outputs) = (1 + below(&mut rng, 40), 1 + below(&mut rng, 40));
        let rows = [2 + below(&mut rng, 4), 2 + below(&mut rng, 80)];
        let x = Input::uniform(&mut rng, &[rows[0], rows[1], inputs], layout);
        let weight = Var::from_tensor(&uniform(&mut rng, &[outputs, inputs])).unwrap();
        let bias = Var::from_tensor(&uniform(&mut rng, &[outputs])).unwrap();
        let with_bias = below(&mut rng, 2) == 0;
        let forms = [None, Some(Activation::Gelu), Some(Activation::GeluTanh), Some(Activation::QuickGelu)];
        let activation = forms[below(&mut rng, 4)];
        let run = || linear(&x.see()?, &weight, with_bias.then_some(bias.as_tensor()), activation);
        let plain = x.see().unwrap().broadcast_matmul(&weight.t().unwrap()).unwrap();
        let plain = if with_bias { plain.broadcast_add(&bias).unwrap() } else { plain };
        let plain = activation.map_or(Ok(plain.clone()), |activation| activation.apply(&plain)).unwrap();
        assert_close(&run().unwrap(), &plain, 1e-12);
        let mut vars = vec![x.var.clone(), weight.clone()];
        if with_bias {
            vars.push(bias.clone());
        }
        check(&mut rng, &format!("{inputs} to {outputs}, {activation:?}, {layout:?}"), &vars, run);
    }
}
