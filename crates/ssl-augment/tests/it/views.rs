//! Views and presets.

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use ssl_augment::{
    ColorJitterConfig, Error, Image, Interpolation, MultiView, Operation, ViewConfig, flip_horizontal,
    presets,
};

fn image(width: usize, height: usize) -> Image {
    let data = (0..width * height * 3).map(|i| (i * i / 7 % 256) as u8).collect();
    Image::new(width, height, data).unwrap()
}

fn seeded(view: usize) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(100 + view as u64)
}

#[test]
fn every_preset_builds_and_gives_its_sizes() {
    for name in presets::names() {
        for size in [8, 32, 224] {
            let views = MultiView::new(&presets::by_name(name, size, 0.5).unwrap()).unwrap();
            let sizes: Vec<_> = views.views(&image(40, 30), seeded).iter().map(|view| view.width()).collect();
            assert_eq!(sizes, views.sizes(), "{name}");
            assert_eq!(views.sizes()[0], size, "{name}");
        }
    }
    assert_eq!(presets::by_name("simsiam2", 32, 1.0), None);
}

#[test]
fn numbers_of_views_are_the_papers() {
    let n_views = |name| MultiView::new(&presets::by_name(name, 224, 1.0).unwrap()).unwrap().len();
    assert_eq!(["simclr", "moco_v1", "moco_v2", "moco_v3", "byol"].map(n_views), [2; 5]);
    assert_eq!(["swav", "seer", "dino", "msn"].map(n_views), [8, 6, 10, 12]);
    assert_eq!(["mae", "simmim", "beit", "ijepa", "clip"].map(n_views), [1; 5]);
}

#[test]
fn moco_v3_has_byols_views_with_its_own_crops_and_a_flip_at_the_end() {
    let (byol, moco) = (presets::byol(224), presets::moco_v3(224));
    for (byol, moco) in byol.iter().zip(&moco) {
        assert_eq!((moco.crop_scale, moco.interpolation), ([0.2, 1.0], Interpolation::Bilinear));
        assert_eq!(moco.order.last(), Some(&Operation::Flip));
        let ViewConfig { crop_scale, interpolation, order, .. } = byol.clone();
        assert_eq!(&ViewConfig { crop_scale, interpolation, order, ..moco.clone() }, byol);
    }
}

#[test]
fn local_crops_scale_with_the_size() {
    let local = |size| presets::dino(size)[2].size;
    assert_eq!([local(224), local(32), local(96)], [96, 14, 41]);
}

#[test]
fn strength_scales_the_jitter() {
    let half = ColorJitterConfig { p: 0.8, brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 };
    assert_eq!(presets::simclr(32, 0.5)[0].jitter, half);
    assert_eq!(presets::by_name("msn", 224, 1.0).unwrap()[0].jitter, half);
}

#[test]
fn simclr_blurs_large_images_only() {
    assert_eq!([32, 64, 65, 224].map(|size| presets::simclr(size, 1.0)[0].blur_p), [0.0, 0.0, 0.5, 0.5]);
}

#[test]
fn a_view_depends_on_its_own_generator_only() {
    let views = MultiView::new(&presets::dino(32)).unwrap();
    let all = views.views(&image(50, 40), seeded);
    let fewer = MultiView::new(&presets::dino(32)[..2]).unwrap().views(&image(50, 40), seeded);
    assert_eq!(all[..2], fewer[..]);
    assert_ne!(all[0], all[1]);
}

#[test]
fn a_flip_within_the_crop_is_a_flip_after_it() {
    // A photo wider than the view, a tall one whose height shrinks first, and one that grows.
    for (width, height) in [(90, 60), (20, 200), (12, 15)] {
        let config = ViewConfig { size: 24, interpolation: Interpolation::Bicubic, ..ViewConfig::default() };
        let view = |flip_p| ViewConfig { flip_p, ..config.clone() }.build().unwrap();
        for seed in 0..10 {
            let make = |flip_p| view(flip_p).view(&image(width, height), &mut seeded(seed));
            assert_eq!(make(1.0), flip_horizontal(make(0.0)));
            let float = image(width, height).to_float();
            let make = |flip_p| view(flip_p).view(&float, &mut seeded(seed));
            assert_eq!(make(1.0), flip_horizontal(make(0.0)));
        }
    }
}

#[test]
fn float_views_differ_from_byte_views_by_rounding_only() {
    let config = ViewConfig { size: 16, blur_p: 0.0, ..presets::simclr(16, 0.5)[0].clone() };
    // Bilinear, since the byte arithmetic clamps the overshoot of bicubic; and no hue, which has 256 levels there.
    let jitter = ColorJitterConfig { hue: 0.0, ..config.jitter };
    let config = ViewConfig { interpolation: Interpolation::Bilinear, jitter, copies: 8, ..config };
    let views = MultiView::new(&[config]).unwrap();
    let bytes = views.views(&image(50, 40), seeded);
    let floats = views.views(&image(50, 40).to_float(), seeded);
    for (byte, float) in bytes.iter().zip(&floats) {
        let largest =
            byte.to_float().data().iter().zip(float.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest < 6.0 / 255.0, "{largest}");
    }
}

#[test]
fn float_views_of_black_and_white_noise_are_finite() {
    let mut noise = image(41, 37);
    noise.data_mut().iter_mut().for_each(|x| *x = if *x % 3 == 0 { 255 } else { 0 });
    for name in presets::names() {
        let views = MultiView::new(&presets::by_name(name, 48, 1.0).unwrap()).unwrap();
        for seed in 0..20 {
            let made =
                views.views(&noise.to_float(), |view| ChaCha8Rng::seed_from_u64(seed * 64 + view as u64));
            assert!(made.iter().flat_map(|view| view.data()).all(|x| x.is_finite()), "{name}");
        }
    }
}

#[test]
fn order_decides_what_is_applied() {
    let config = ViewConfig { size: 4, flip_p: 0.0, grayscale_p: 1.0, ..ViewConfig::default() };
    let gray = MultiView::new(std::slice::from_ref(&config)).unwrap().views(&image(9, 9), seeded);
    assert!(gray[0].pixels().iter().all(|[r, g, b]| r == g && g == b));
    let plain = ViewConfig { grayscale_p: 0.0, order: vec![Operation::Crop], ..config };
    let colored = MultiView::new(&[plain]).unwrap().views(&image(9, 9), seeded);
    assert!(colored[0].pixels().iter().any(|[r, g, b]| r != g || g != b));
}

#[test]
fn bad_views_are_refused_by_name() {
    let good = ViewConfig::default;
    let cases = [
        ("size", ViewConfig { size: 0, ..good() }),
        ("copies", ViewConfig { copies: 0, ..good() }),
        ("crop_scale", ViewConfig { crop_scale: [0.0, 1.0], ..good() }),
        ("crop_ratio", ViewConfig { crop_ratio: [2.0, 1.0], ..good() }),
        ("flip_p", ViewConfig { flip_p: -1.0, ..good() }),
        ("jitter.hue", ViewConfig { jitter: ColorJitterConfig { hue: 0.6, ..Default::default() }, ..good() }),
        ("grayscale_p", ViewConfig { grayscale_p: 1.5, ..good() }),
        ("blur_p", ViewConfig { blur_p: 1.5, ..good() }),
        ("blur_sigma", ViewConfig { blur_sigma: [0.0, 1.0], ..good() }),
        ("solarize_p", ViewConfig { solarize_p: f64::NAN, ..good() }),
        ("order", ViewConfig { order: vec![], ..good() }),
        ("order", ViewConfig { order: vec![Operation::Crop], ..good() }),
        ("order", ViewConfig { order: vec![Operation::Crop, Operation::Flip, Operation::Crop], ..good() }),
    ];
    assert_eq!(good().validate(), Ok(()));
    for (expected, config) in cases {
        match config.validate() {
            Err(Error::Parameter { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert!(MultiView::new(&[]).is_err());
    assert!(MultiView::new(&[ViewConfig { copies: usize::MAX, ..good() }, good()]).is_err());
}

#[cfg(feature = "serde")]
#[test]
fn configurations_survive_json_and_unknown_fields_do_not() {
    for name in presets::names() {
        let views = presets::by_name(name, 224, 1.0).unwrap();
        let text = serde_json::to_string(&views).unwrap();
        assert_eq!(serde_json::from_str::<Vec<ViewConfig>>(&text).unwrap(), views);
    }
    let partial: ViewConfig = serde_json::from_str(r#"{"size": 32, "order": ["crop", "flip"]}"#).unwrap();
    assert_eq!(
        partial,
        ViewConfig { size: 32, order: vec![Operation::Crop, Operation::Flip], ..Default::default() }
    );
    assert!(serde_json::from_str::<ViewConfig>(r#"{"sise": 32}"#).is_err());
    assert!(serde_json::from_str::<ColorJitterConfig>(r#"{"gamma": 1}"#).is_err());
}
