//! Reference values of Pillow 13.0.0 and torchvision 0.24.1, run on uint8 (`*_pil`) and float images (`*_float`).
//!
//! The 8-bit results must agree bit for bit. The float references were computed in f64 from the same inputs; the bound
//! is `|a - e| <= 2e-6 + 1e-4 |e|`, as tight as or tighter than the fixtures' own.

use std::collections::BTreeMap;

use safetensors::{SafeTensors, tensor::TensorView};
use ssl_augment::{
    Adjustment, CropBox, Image, Interpolation, Normalize, ResizeCenterCrop, Sample, adjust,
    adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, convolve_gaussian, flip_horizontal,
    gaussian_blur, posterize, resized_crop, resized_crop_aliased, solarize, to_grayscale,
};

/// Absolute tolerance of float results.
const ATOL: f32 = 2e-6;

const ENHANCE_FACTORS: [f64; 4] = [0.2, 0.6, 1.4, 1.8];
const HUE_TURNS: [f64; 4] = [-0.4, -0.1, 0.05, 0.2];
const THRESHOLDS: [u8; 3] = [128, 64, 200];
const BOXES: [[usize; 4]; 6] =
    [[0, 0, 40, 48], [5, 7, 20, 30], [3, 20, 33, 11], [10, 10, 16, 16], [0, 30, 9, 18], [25, 2, 15, 40]];

#[test]
fn brightness() {
    check("brightness", ENHANCE_FACTORS, adjust_brightness, adjust_brightness);
}

#[test]
fn contrast() {
    check("contrast", ENHANCE_FACTORS, adjust_contrast, adjust_contrast);
}

#[test]
fn saturation() {
    check("saturation", ENHANCE_FACTORS, adjust_saturation, adjust_saturation);
}

#[test]
fn hue() {
    check("hue", HUE_TURNS, adjust_hue, adjust_hue);
}

#[test]
fn grayscale() {
    check("grayscale", [()], |image, ()| to_grayscale(image), |image, ()| to_grayscale(image));
}

#[test]
fn horizontal_flip() {
    check("hflip", [()], |image, ()| flip_horizontal(image), |image, ()| flip_horizontal(image));
}

#[test]
fn solarization() {
    check("solarize", THRESHOLDS, solarize, solarize);
}

#[test]
fn color_jitter_chain() {
    fn chain<S: Sample>(image: Image<S>, order: [usize; 4]) -> Image<S> {
        let adjustments = [
            (Adjustment::Brightness, Some(1.3)),
            (Adjustment::Contrast, Some(0.7)),
            (Adjustment::Saturation, Some(1.5)),
            (Adjustment::Hue, Some(0.08)),
        ];
        adjust(image, &order.map(|i| adjustments[i]))
    }
    check("color_jitter_chain", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]], chain, chain);
}

#[test]
fn resized_crops() {
    fn crop<S: Sample>(interpolation: Interpolation) -> impl Fn(Image<S>, [usize; 4]) -> Image<S> {
        move |image, [top, left, height, width]| {
            resized_crop(&image, CropBox { top, left, height, width }, 32, 32, interpolation).unwrap()
        }
    }
    check("resized_crop_bilinear", BOXES, crop(Interpolation::Bilinear), crop(Interpolation::Bilinear));
    check("resized_crop_bicubic", BOXES, crop(Interpolation::Bicubic), crop(Interpolation::Bicubic));
}

#[test]
fn resize_and_center_crop() {
    let transform = ResizeCenterCrop::new(36, 32, Interpolation::Bilinear).unwrap();
    check("resize_centercrop", [()], |image, ()| transform.crop(&image), |image, ()| transform.crop(&image));
}

#[test]
fn pillow_gaussian_blur() {
    check_u8("gaussian_blur_pillow", [0.1, 0.5, 1.0, 2.0], gaussian_blur);
}

#[test]
fn posterization() {
    check_u8("posterize", [1, 3, 5], |image, bits| posterize(image, bits).unwrap());
}

#[test]
fn torchvision_gaussian_blur() {
    let fixture = Fixture::read("gaussian_blur_float");
    let cases = [(3, "0.1"), (3, "1.0"), (5, "0.1"), (5, "1.0"), (23, "0.5"), (23, "1.0"), (23, "2.0")];
    for (kernel_size, sigma) in cases {
        let blurred =
            convolve_gaussian(fixture.image().to_float(), kernel_size, sigma.parse().unwrap()).unwrap();
        let expected = fixture.floats(&format!("out.k{kernel_size}_s{sigma}"));
        assert_close(&chw(&blurred), &expected, ATOL, &format!("kernel {kernel_size}, sigma {sigma}"));
    }
}

#[test]
fn resize_without_antialias() {
    let crop = CropBox { top: 2, left: 3, height: 37, width: 41 };
    let order = [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Nearest];
    check_f32("resize_noantialias", order, |image, interpolation| {
        resized_crop_aliased(&image, crop, 20, 16, interpolation).unwrap()
    });
}

#[test]
fn normalize() {
    let fixture = Fixture::read("normalize_float");
    let expected = fixture.floats("out.images");
    let mut actual = vec![0.0; expected.len()];
    Normalize::imagenet().write_chw(&fixture.image(), &mut actual).unwrap();
    assert_close(&actual, &expected, ATOL, "u8");
    Normalize::imagenet().write_chw(&fixture.image().to_float(), &mut actual).unwrap();
    assert_close(&actual, &expected, ATOL, "f32");
}

/// Both arithmetics of a case, over its parameters.
fn check<P: Copy, const N: usize>(
    case: &str,
    parameters: [P; N],
    apply_u8: impl Fn(Image<u8>, P) -> Image<u8>,
    apply_f32: impl Fn(Image<f32>, P) -> Image<f32>,
) {
    check_u8(case, parameters, apply_u8);
    check_f32(case, parameters, apply_f32);
}

fn check_u8<P, const N: usize>(case: &str, parameters: [P; N], apply: impl Fn(Image<u8>, P) -> Image<u8>) {
    let fixture = Fixture::read(&format!("{case}_pil"));
    let expected = fixture.bytes("out.images");
    let actual: Vec<u8> =
        parameters.into_iter().flat_map(|p| apply(fixture.image(), p).into_data()).collect();
    assert_eq!(actual.len(), expected.len(), "{case}");
    let different = actual.iter().zip(&expected).filter(|(a, e)| a != e).count();
    let largest = actual.iter().zip(&expected).map(|(&a, &e)| a.abs_diff(e)).max();
    assert_eq!(different, 0, "{case}: of {} samples {different} differ, by up to {largest:?}", actual.len());
}

fn check_f32<P, const N: usize>(case: &str, parameters: [P; N], apply: impl Fn(Image<f32>, P) -> Image<f32>) {
    let fixture = Fixture::read(&format!("{case}_float"));
    let image = fixture.image().to_float();
    let actual: Vec<f32> = parameters.into_iter().flat_map(|p| chw(&apply(image.clone(), p))).collect();
    assert_close(&actual, &fixture.floats("out.images"), ATOL, case);
}

fn assert_close(actual: &[f32], expected: &[f32], atol: f32, case: &str) {
    assert_eq!(actual.len(), expected.len(), "{case}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= atol + 1e-4 * e.abs(), "{case}: sample {i} is {a}, expected {e}");
    }
}

fn chw(image: &Image<f32>) -> Vec<f32> {
    let mut out = vec![0.0; image.data().len()];
    Normalize::identity().write_chw(image, &mut out).unwrap();
    out
}

/// Tensors of one case by name.
pub(crate) struct Fixture {
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

impl Fixture {
    pub(crate) fn read(case: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/augment");
        let bytes = std::fs::read(format!("{folder}/{case}.safetensors")).unwrap();
        let copy =
            |(name, view): (String, TensorView<'_>)| (name, (view.shape().to_vec(), view.data().to_vec()));
        Self { tensors: SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().map(copy).collect() }
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensors[name].1.clone()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.tensors[name].1.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }

    pub(crate) fn doubles(&self, name: &str) -> Vec<f64> {
        self.tensors[name].1.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
    }

    /// The input image, (H, W, 3).
    pub(crate) fn image(&self) -> Image {
        let (shape, data) = &self.tensors["in.image"];
        Image::new(shape[1], shape[0], data.clone()).unwrap()
    }
}
