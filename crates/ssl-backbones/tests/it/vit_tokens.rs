//! Vision transformers of every kind, token by token.

use candle_core::{DType, Device, Tensor};
use ssl_backbones::{
    Backbone, MaskedPatches, Pooling, Positions, RelativePositions, Vit, VitConfig, VitMlp, VitOptions,
    VitPass,
};
use ssl_nn::{DrawsAt, Params};

fn small() -> VitConfig {
    VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 2, ..VitConfig::vit_tiny() }
}

/// A small network of every kind.
fn kinds() -> Vec<VitConfig> {
    let plain = VitOptions::default();
    let registers = VitOptions { registers: 2, positions: Positions::LearnedPatches, ..VitOptions::dinov2() };
    let no_class = VitOptions { class_token: false, pooling: Pooling::Mean, ..VitOptions::mae() };
    let options = [
        plain,
        VitOptions::dinov2(),
        registers,
        VitOptions { registers: 1, mlp: VitMlp::SwiGlu, pooling: Pooling::Mean, ..plain },
        no_class,
        VitOptions::beit(),
        VitOptions { relative_positions: RelativePositions::Each, ..VitOptions::beit() },
        VitOptions::clip(),
        VitOptions { qk_norm: true, ..plain },
    ];
    options.into_iter().map(|options| VitConfig { options, ..small() }).collect()
}

fn built(config: VitConfig) -> (Params, Vit) {
    let params = Params::new(1, DType::F64, &Device::Cpu);
    let vit = config.build(&params.root()).unwrap();
    (params, vit)
}

fn doubles(n: usize, size: usize) -> Tensor {
    let values: Vec<f64> = (0..n * 3 * size * size).map(|i| ((i * 7919) % 101) as f64 / 50.0 - 1.0).collect();
    Tensor::from_vec(values, (n, 3, size, size), &Device::Cpu).unwrap()
}

fn largest(x: &Tensor) -> f64 {
    x.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn every_kind_of_network_trains_all_its_parameters() {
    for config in kinds() {
        let (params, vit) = built(config);
        // Layers that start at 0 or close to it would hide those before them.
        for (name, var) in params.trainable() {
            if name.contains("gamma") || name.contains("table") {
                var.set(&(var.ones_like().unwrap() * 0.5).unwrap()).unwrap();
            }
        }
        let tokens = vit.forward_features(&doubles(2, 8)).unwrap();
        assert_eq!(tokens.dims(), [2, config.prefix_tokens() + 4, 12]);
        let grads = tokens.powf(3.0).unwrap().sum_all().unwrap().backward().unwrap();
        for (name, var) in params.trainable() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient: {config:?}"));
            // A constant in all scores is none after the softmax: half of these tables.
            assert!(largest(grad) > 0.0 || name.contains("table"), "{name}: {config:?}");
        }
        assert_eq!(vit.forward_t(&doubles(2, 8), false).unwrap().dims(), [2, 12]);
    }
}

#[test]
fn all_patches_in_another_order_are_the_same_patches() {
    let order = Tensor::new(&[[3u32, 1, 0, 2], [0, 1, 2, 3]], &Device::Cpu).unwrap();
    let plain = |c: &VitConfig| c.options.relative_positions == RelativePositions::None;
    for config in kinds().into_iter().filter(plain) {
        let (_, vit) = built(config);
        let x = doubles(2, 8);
        let whole = vit.split(&vit.forward_features(&x).unwrap()).unwrap();
        let some = vit.run(&vit.embed_visible(&x, &order).unwrap(), &VitPass::default()).unwrap();
        let some = vit.split(&vit.norm(&some).unwrap()).unwrap();
        let rows =
            (0..2).map(|i| whole.patches.get(i).unwrap().index_select(&order.get(i).unwrap(), 0).unwrap());
        let expected = Tensor::stack(&rows.collect::<Vec<_>>(), 0).unwrap();
        assert!(largest(&(some.patches - expected).unwrap()) < 1e-12, "{config:?}");
        if let (Some(some), Some(whole)) = (some.class_token, whole.class_token) {
            assert!(largest(&(some - whole).unwrap()) < 1e-12);
        }
    }
}

#[test]
fn a_masked_patch_is_not_seen_and_its_token_learns() {
    let (_, vit) = built(small());
    let token = candle_core::Var::from_tensor(&doubles(1, 2)).unwrap(); // 12 numbers
    let mask = Tensor::new(&[[0u8, 1, 0, 0], [1, 0, 0, 1]], &Device::Cpu).unwrap();
    let masked = MaskedPatches { mask: &mask, token: &token };
    let x = doubles(2, 8);
    let tokens = vit.embed(&x, Some(masked)).unwrap();
    let plain = vit.embed(&x, None).unwrap();
    let changed = (&tokens - plain).unwrap().abs().unwrap().sum(2).unwrap().to_vec2::<f64>().unwrap();
    let changed: Vec<Vec<bool>> =
        changed.iter().map(|row| row.iter().map(|change| *change > 0.0).collect()).collect();
    assert_eq!(changed, [[false, false, true, false, false], [false, true, false, false, true]]);
    let grads = tokens.sum_all().unwrap().backward().unwrap();
    let grad = grads.get(&token).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert_eq!(grad, [3.0; 12]);
    let error = vit.embed(&doubles(1, 8), Some(masked)).unwrap_err().to_string();
    assert!(error.contains("a mask (1, 4) and a token of 12 numbers, got [2, 4]"), "{error}");
}

#[test]
fn outputs_of_blocks_are_those_of_the_whole_pass() {
    for recompute in [false, true] {
        let (_, vit) = built(VitConfig { recompute, depth: 4, ..small() });
        let x = vit.embed(&doubles(2, 8), None).unwrap();
        let all = vit.run_through(&x, &[0, 2, 3], &VitPass::default()).unwrap();
        let whole = vit.run(&x, &VitPass::default()).unwrap();
        assert!(largest(&(&all[2] - whole).unwrap()) < 1e-12);
        let pass = VitPass { first: Some(1), ..Default::default() };
        let first = vit.run_through(&x, &[0, 2], &pass).unwrap();
        assert_eq!((first[0].dims(), first[1].dims()), (&[2, 5, 12][..], &[2, 1, 12][..]));
        assert!(largest(&(&first[1] - all[1].narrow(1, 0, 1).unwrap()).unwrap()) < 1e-12);
        assert_eq!(vit.attention_map(&x, 1).unwrap().dims(), [2, 3, 5, 5]);
        for outputs in [&[1, 1][..], &[4], &[2, 0]] {
            let error = vit.run_through(&x, outputs, &VitPass::default()).unwrap_err().to_string();
            assert!(error.contains("must rise and lie below the depth 4"), "{error}");
        }
    }
}

#[test]
fn drop_path_is_a_function_of_where_it_draws() {
    let draws = DrawsAt { seed: 1, step: 2, first_sample: 0, layer: 0 };
    let run = |recompute, draws| {
        let options = VitOptions { drop_path: 0.5, ..Default::default() };
        let (_, vit) = built(VitConfig { options, recompute, ..small() });
        vit.forward_train(&doubles(8, 8), Some(draws)).unwrap().to_vec2::<f64>().unwrap()
    };
    assert_eq!(run(false, draws), run(false, draws));
    assert_eq!(run(false, draws), run(true, draws));
    assert_ne!(run(false, draws), run(false, DrawsAt { step: 3, ..draws }));
}
