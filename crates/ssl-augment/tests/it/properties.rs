//! What holds for every image and every seed.

use proptest::prelude::*;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use ssl_augment::{
    CenterCrop, ColorJitter, ColorJitterConfig, GaussianBlur, Grayscale, HorizontalFlip, Image,
    Interpolation, MultiView, Normalize, Posterize, RandomResizedCrop, ResizeCenterCrop, Resolution, Sample,
    Solarize, Transform, ViewConfig, flip_horizontal, gaussian_blur, presets, resize, solarize,
};

/// Images of any shape from 1 x 1 on, some of them very elongated.
fn images() -> impl Strategy<Value = Image> {
    let sizes = prop_oneof![(1usize..24, 1usize..24), (1usize..3, 100usize..400), (100usize..400, 1usize..3)];
    sizes.prop_flat_map(|(width, height)| {
        prop::collection::vec(any::<u8>(), width * height * 3)
            .prop_map(move |data| Image::new(width, height, data).unwrap())
    })
}

fn interpolations() -> impl Strategy<Value = Interpolation> {
    prop_oneof![Just(Interpolation::Nearest), Just(Interpolation::Bilinear), Just(Interpolation::Bicubic)]
}

/// Every random transform that keeps the size, at probability `p`.
fn same_size<S: Sample>(p: f64) -> Vec<Box<dyn Transform<S>>> {
    let jitter = ColorJitterConfig { p, brightness: 0.8, contrast: 0.8, saturation: 0.8, hue: 0.2 };
    vec![
        Box::new(HorizontalFlip::new(p).unwrap()),
        Box::new(ColorJitter::new(jitter).unwrap()),
        Box::new(Grayscale::new(p).unwrap()),
        Box::new(GaussianBlur::new(p, [0.1, 20.0]).unwrap()),
        Box::new(Solarize::new(p, 128).unwrap()),
        Box::new(Posterize::new(p, 3).unwrap()),
    ]
}

fn seeded() -> ProptestConfig {
    let rng_seed = prop::test_runner::RngSeed::Fixed(20);
    ProptestConfig { cases: 64, failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(seeded())]

    #[test]
    fn probability_zero_is_the_identity(image in images(), seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for transform in same_size::<u8>(0.0) {
            prop_assert_eq!(&transform.apply(image.clone(), &mut rng), &image);
        }
        let float = image.to_float();
        for transform in same_size::<f32>(0.0) {
            prop_assert_eq!(&transform.apply(float.clone(), &mut rng), &float);
        }
    }

    #[test]
    fn sizes_stay_and_floats_stay_in_range(image in images(), seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for transform in same_size::<u8>(1.0) {
            let out = transform.apply(image.clone(), &mut rng);
            prop_assert_eq!((out.width(), out.height()), (image.width(), image.height()));
        }
        for transform in same_size::<f32>(1.0) {
            let out = transform.apply(image.to_float(), &mut rng);
            prop_assert_eq!((out.width(), out.height()), (image.width(), image.height()));
            prop_assert!(out.data().iter().all(|x| (-1e-6..=1.0 + 1e-6).contains(x)), "{:?}", transform);
        }
    }

    #[test]
    fn flip_and_full_solarize_undo_themselves(image in images()) {
        prop_assert_eq!(&flip_horizontal(flip_horizontal(image.clone())), &image);
        prop_assert_eq!(&solarize(solarize(image.clone(), 0), 0), &image);
    }

    #[test]
    fn a_constant_image_stays_constant(
        color: [u8; 3],
        (width, height) in (1usize..60, 1usize..60),
        (out_width, out_height) in (1usize..60, 1usize..60),
        sigma in 0.01..40.0f64,
        interpolation in interpolations(),
    ) {
        let image = Image::new(width, height, color.repeat(width * height)).unwrap();
        prop_assert_eq!(&gaussian_blur(image.clone(), sigma), &image);
        let resized = resize(&image, out_width, out_height, interpolation).unwrap();
        prop_assert!(resized.pixels().iter().all(|&pixel| pixel == color));

        let float = image.to_float();
        for out in [gaussian_blur(float.clone(), sigma), resize(&float, out_width, out_height, interpolation).unwrap()] {
            for pixel in out.pixels() {
                prop_assert!(pixel.iter().zip(float.pixels()[0]).all(|(a, b)| (a - b).abs() < 1e-5));
            }
        }
    }

    #[test]
    fn resizing_to_the_same_size_is_the_identity(image in images(), interpolation in interpolations()) {
        prop_assert_eq!(&resize(&image, image.width(), image.height(), interpolation).unwrap(), &image);
        let float = image.to_float();
        prop_assert_eq!(&resize(&float, float.width(), float.height(), interpolation).unwrap(), &float);
    }

    #[test]
    fn both_arithmetics_agree_within_rounding(image in images(), size in 1usize..40) {
        // Two roundings of half a level each, the first of them weighed by filters whose weights sum to 1.
        let int = resize(&image, size, size, Interpolation::Bilinear).unwrap().to_float();
        let float = resize(&image.to_float(), size, size, Interpolation::Bilinear).unwrap();
        prop_assert!(int.data().iter().zip(float.data()).all(|(a, b)| (a - b).abs() < 1.01 / 255.0));
    }

    #[test]
    fn crops_have_their_size_and_their_boxes_lie_inside(
        image in images(), size in 1usize..40, seed: u64, low in 0.01..1.0f64, ratio in 0.1..3.0f64,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let crop = RandomResizedCrop::new(size, [low, 1.0], [ratio, 2.0 * ratio], Interpolation::Bicubic).unwrap();
        let drawn = crop.draw(image.width(), image.height(), &mut rng);
        prop_assert!(0 < drawn.width && drawn.left + drawn.width <= image.width());
        prop_assert!(0 < drawn.height && drawn.top + drawn.height <= image.height());

        let transforms: [Box<dyn Transform>; 3] = [
            Box::new(crop),
            Box::new(CenterCrop::new(size).unwrap()),
            Box::new(ResizeCenterCrop::evaluation(size).unwrap()),
        ];
        for transform in transforms {
            let out = transform.apply(image.clone(), &mut rng);
            prop_assert_eq!((out.width(), out.height()), (size, size));
        }
    }

    #[test]
    fn no_crop_of_an_image_of_the_needed_resolution_is_enlarged(
        size in 1usize..40, seed: u64, low in 0.01..1.0f64, ratio in 0.1..3.0f64, spread in 1.0..3.0f64,
        width in 1usize..2000,
    ) {
        let crop = RandomResizedCrop::new(size, [low, 1.0], [ratio, spread * ratio], Interpolation::Bilinear).unwrap();
        // The image of this width that meets it by a hair, if there is one.
        let needed = crop.resolution();
        let height = needed.shorter_side.max(needed.pixels.div_ceil(width as u64));
        if needed.is_met_by(width as u64, height) {
            prop_assert!(!needed.is_met_by(width as u64, height - 1));
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            for _ in 0..50 {
                let drawn = crop.draw(width, height as usize, &mut rng);
                prop_assert!(size <= drawn.width && size <= drawn.height, "{drawn:?}");
            }
        } else {
            prop_assert!((width as u64) < needed.shorter_side);
        }
    }

    #[test]
    fn normalize_is_undone_by_its_inverse(image in images()) {
        let normalize = Normalize::cifar10();
        let n_pixels = image.pixels().len();
        let mut out = vec![0.0; 3 * n_pixels];
        normalize.write_chw(&image, &mut out).unwrap();
        for (i, pixel) in image.to_float().pixels().iter().enumerate() {
            for c in 0..3 {
                let back = out[c * n_pixels + i] * normalize.std()[c] as f32 + normalize.mean()[c] as f32;
                prop_assert!((back - pixel[c]).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn a_seed_fixes_the_result() {
    let image = Image::new(13, 9, (0..351).map(|i| (i * 7 % 256) as u8).collect()).unwrap();
    for transform in same_size::<u8>(1.0) {
        let apply = |seed| transform.apply(image.clone(), &mut ChaCha8Rng::seed_from_u64(seed));
        assert_eq!(apply(3), apply(3), "{transform:?}");
    }
}

#[test]
fn several_views_need_what_the_most_demanding_one_needs() {
    let needed = |config: &[ViewConfig]| MultiView::new(config).unwrap().resolution();
    let [large, small] = presets::swav(224).try_into().unwrap();
    // 224² / (0.14 · 3/4) and 96² / (0.05 · 3/4); a small view may need more than a large one.
    assert_eq!(needed(std::slice::from_ref(&large)), Resolution { pixels: 477_867, shorter_side: 224 });
    assert_eq!(needed(std::slice::from_ref(&small)), Resolution { pixels: 245_760, shorter_side: 96 });
    assert_eq!(needed(&[small.clone(), large.clone()]), Resolution { pixels: 477_867, shorter_side: 224 });
    let smaller = ViewConfig { crop_scale: [0.02, 0.05], ..small };
    assert_eq!(needed(&[large, smaller]), Resolution { pixels: 614_400, shorter_side: 224 });
    let evaluation = ResizeCenterCrop::evaluation(224).unwrap().resolution();
    assert_eq!(evaluation, Resolution { pixels: 0, shorter_side: 256 });
}

#[test]
fn center_crop_pads_a_small_image_with_black() {
    let image = Image::new(1, 2, vec![9u8; 6]).unwrap();
    let out = CenterCrop::new(3).unwrap().apply(image, &mut ChaCha8Rng::seed_from_u64(0));
    let rows: Vec<_> = out.pixels().chunks(3).map(|row| [row[0][0], row[1][0], row[2][0]]).collect();
    assert_eq!(rows, [[0, 9, 0], [0, 9, 0], [0, 0, 0]]);
}

#[test]
fn center_crop_splits_odd_differences_as_torchvision() {
    // round(1 / 2) = 0 and round(3 / 2) = 2, halves to even.
    for (width, first) in [(3, 0), (5, 2)] {
        let image =
            Image::new(width, 2, (0..width as u8 * 2).flat_map(|i| [i % width as u8; 3]).collect()).unwrap();
        let out = CenterCrop::new(2).unwrap().apply(image, &mut ChaCha8Rng::seed_from_u64(0));
        assert_eq!(out.pixels()[0][0], first);
    }
}

#[test]
fn evaluation_leaves_an_image_of_the_right_size_alone() {
    let image = Image::new(32, 32, (0..3072).map(|i| (i % 251) as u8).collect()).unwrap();
    assert_eq!(ResizeCenterCrop::evaluation(32).unwrap().crop(&image), image);
}

#[test]
fn bad_parameters_are_refused_by_name() {
    let bilinear = Interpolation::Bilinear;
    let crop =
        |size, scale, ratio| RandomResizedCrop::new(size, scale, ratio, bilinear).unwrap_err().to_string();
    assert_eq!(crop(0, [0.1, 1.0], [1.0, 1.0]), "size is 0, must be in 1..=16384 pixels");
    assert_eq!(
        crop(8, [0.5, 0.1], [1.0, 1.0]),
        "crop_scale is [0.5, 0.1], must be [low, high] with 0 < low <= high <= 1"
    );
    assert!(crop(8, [0.0, 1.0], [1.0, 1.0]).starts_with("crop_scale"));
    assert!(crop(8, [0.1, 1.1], [1.0, 1.0]).starts_with("crop_scale"));
    assert!(crop(8, [0.1, f64::NAN], [1.0, 1.0]).starts_with("crop_scale"));
    assert!(crop(8, [0.1, 1.0], [0.0, 1.0]).starts_with("crop_ratio"));
    assert!(crop(8, [0.1, 1.0], [1.0, f64::INFINITY]).starts_with("crop_ratio"));

    for p in [-0.1, 1.1, f64::NAN] {
        assert!(HorizontalFlip::new(p).unwrap_err().to_string().starts_with("flip_p is"));
        assert!(Grayscale::new(p).unwrap_err().to_string().starts_with("grayscale_p is"));
        assert!(Solarize::new(p, 128).unwrap_err().to_string().starts_with("solarize_p is"));
        assert!(Posterize::new(p, 4).unwrap_err().to_string().starts_with("posterize_p is"));
        assert!(GaussianBlur::new(p, [0.1, 2.0]).unwrap_err().to_string().starts_with("blur_p is"));
    }
    assert!(Posterize::new(1.0, 0).is_err());
    assert!(Posterize::new(1.0, 9).is_err());
    assert!(CenterCrop::new(0).is_err());
    assert!(ResizeCenterCrop::new(31, 32, bilinear).is_err());
    assert!(Normalize::new([0.5; 3], [0.5, 0.0, 0.5]).is_err());
    assert!(Normalize::new([f64::NAN, 0.5, 0.5], [0.5; 3]).is_err());
}

#[test]
fn bad_jitter_is_refused_by_name() {
    let good = ColorJitterConfig { p: 0.8, brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 };
    let cases = [
        ("jitter.p", ColorJitterConfig { p: 2.0, ..good }),
        ("jitter.brightness", ColorJitterConfig { brightness: -0.1, ..good }),
        ("jitter.contrast", ColorJitterConfig { contrast: f64::NAN, ..good }),
        ("jitter.saturation", ColorJitterConfig { saturation: f64::INFINITY, ..good }),
        ("jitter.hue", ColorJitterConfig { hue: 0.6, ..good }),
    ];
    assert!(ColorJitter::new(good).is_ok());
    for (field, config) in cases {
        assert!(ColorJitter::new(config).unwrap_err().to_string().starts_with(field), "{field}");
    }
}

#[test]
fn bad_sizes_and_boxes_are_refused() {
    let image = Image::new(4, 3, vec![0u8; 36]).unwrap();
    assert!(resize(&image, 0, 3, Interpolation::Bilinear).is_err());
    assert!(resize(&image, 3, 20_000, Interpolation::Bilinear).is_err());
    for (top, left, height, width) in
        [(0, 0, 0, 1), (0, 0, 4, 1), (0, 1, 1, 4), (3, 0, 1, 1), (1, 0, usize::MAX, 1)]
    {
        let crop = ssl_augment::CropBox { top, left, height, width };
        assert!(ssl_augment::resized_crop(&image, crop, 2, 2, Interpolation::Bilinear).is_err(), "{crop:?}");
    }
    assert!(Normalize::identity().write_chw(&image, &mut [0.0; 35]).is_err());
}
