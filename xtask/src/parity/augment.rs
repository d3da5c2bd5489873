//! Transforms against Pillow (`*_pil`), torchvision on floats (`*_float`) and torchvision's draws (`*_stats`).

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use ssl_vision::augment::{
    Adjustment, ColorJitter, ColorJitterConfig, CropBox, Image, Interpolation, Normalize, RandomResizedCrop,
    ResizeCenterCrop, Sample, adjust, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation,
    convolve_gaussian, flip_horizontal, gaussian_blur, posterize, resized_crop, resized_crop_aliased,
    solarize, to_grayscale,
};
use ssl_vision::nn::{Purpose, Rng, rng};

use super::case::{Case, Entry, Options};
use super::check::Check;

/// Own draws of a statistical case, at least.
const MIN_DRAWS: usize = 100_000;

/// Quantiles in the rows of the statistics of crops.
const QUANTILES: [f64; 7] = [0.01, 0.10, 0.25, 0.50, 0.75, 0.90, 0.99];

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    let name = case.entry.case.as_str();
    match name {
        _ if name.starts_with("color_jitter_stats") => color_jitter_stats(case.entry, check)?,
        _ if name.starts_with("random_resized_crop_stats") => crop_stats(case.entry, check)?,
        _ if name.starts_with("gaussian_blur_float") => blur_float(case, check)?,
        _ if name.starts_with("normalize_float") => normalize_float(case, check)?,
        _ => return images(case, check),
    }
    Ok(true)
}

/// The cases that stack their images in `out.images`.
fn images(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    let name = case.entry.case.as_str();
    if let Some(end) = name.rfind("_pil") {
        let Some(images) = transformed(case.entry, &name[..end], &image(case)?)? else { return Ok(false) };
        judge_u8(case, check, &images)?;
    } else if let Some(end) = name.rfind("_float") {
        let image = image(case)?.to_float();
        let images = match &name[..end] {
            "resize_noantialias" => Some(resized_aliased(case.entry, &image)?),
            kind => transformed(case.entry, kind, &image)?,
        };
        let Some(images) = images else { return Ok(false) };
        judge_f32(check, &images, &Normalize::identity())?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// The results of a transform in either arithmetic, one for each of the case's parameters.
fn transformed<S: Sample>(entry: &Entry, kind: &str, image: &Image<S>) -> Result<Option<Vec<Image<S>>>> {
    let each = |key: &str, apply: fn(Image<S>, f64) -> Image<S>| {
        let values: Vec<f64> = entry.params.get(key)?;
        Ok::<_, anyhow::Error>(values.into_iter().map(|value| apply(image.clone(), value)).collect())
    };
    Ok(Some(match kind {
        "brightness" => each("factors", adjust_brightness)?,
        "contrast" => each("factors", adjust_contrast)?,
        "saturation" => each("factors", adjust_saturation)?,
        "hue" => each("factors", adjust_hue)?,
        "gaussian_blur_pillow" => each("radius_sigma", gaussian_blur)?,
        "grayscale" => vec![to_grayscale(image.clone())],
        "hflip" => vec![flip_horizontal(image.clone())],
        "solarize" => {
            let thresholds: Vec<u8> = entry.params.get("thresholds")?;
            thresholds.into_iter().map(|threshold| solarize(image.clone(), threshold)).collect()
        }
        "posterize" => {
            let bits: Vec<u32> = entry.params.get("bits")?;
            bits.into_iter().map(|bits| Ok(posterize(image.clone(), bits)?)).collect::<Result<_>>()?
        }
        "color_jitter_chain" => jittered(entry, image)?,
        "resized_crop_bilinear" | "resized_crop_bicubic" => {
            let boxes: Vec<[usize; 4]> = entry.params.get("boxes_top_left_h_w")?;
            let [height, width] = entry.params.get("size")?;
            let by = interpolation(&entry.params.get::<String>("interpolation")?)?;
            let crop = |sides| Ok(resized_crop(image, crop_box(sides), width, height, by)?);
            boxes.into_iter().map(crop).collect::<Result<_>>()?
        }
        "resize_centercrop" => {
            let by = entry.params.optional::<String>("interpolation")?;
            let by = by.as_deref().map_or(Ok(Interpolation::Bilinear), interpolation)?;
            vec![
                ResizeCenterCrop::new(entry.params.get("resize_shorter")?, entry.params.get("crop")?, by)?
                    .crop(image),
            ]
        }
        _ => return Ok(None),
    }))
}

/// The four adjustments in each of the case's orders.
fn jittered<S: Sample>(entry: &Entry, image: &Image<S>) -> Result<Vec<Image<S>>> {
    let factors = entry.params.nested("factors")?;
    let factor = |key: &str| factors.get::<f64>(key);
    let adjustments = [
        (Adjustment::Brightness, Some(factor("brightness")?)),
        (Adjustment::Contrast, Some(factor("contrast")?)),
        (Adjustment::Saturation, Some(factor("saturation")?)),
        (Adjustment::Hue, Some(factor("hue")?)),
    ];
    let orders: Vec<[usize; 4]> = entry.params.get("orders")?;
    ensure!(orders.as_flattened().iter().all(|&i| i < 4), "an order names an operation that is not in 0..4");
    Ok(orders.into_iter().map(|order| adjust(image.clone(), &order.map(|i| adjustments[i]))).collect())
}

/// The box at each of the case's interpolations.
fn resized_aliased(entry: &Entry, image: &Image<f32>) -> Result<Vec<Image<f32>>> {
    let crop = crop_box(entry.params.get("box")?);
    let [height, width] = entry.params.get("size")?;
    let order: Vec<String> = entry.params.get("order")?;
    let resize = |by: String| Ok(resized_crop_aliased(image, crop, width, height, interpolation(&by)?)?);
    order.into_iter().map(resize).collect()
}

fn blur_float(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let image = image(case)?.to_float();
    for (kernel, sigma) in case.params.get::<Vec<(usize, f64)>>("kernel_sigma")? {
        let blurred = convolve_gaussian(image.clone(), kernel, sigma)?;
        let shape = [3, blurred.height(), blurred.width()];
        // The names have Python's decimals, as `{:?}` does.
        check.values(
            &format!("out.k{kernel}_s{sigma:?}"),
            &shape,
            &chw(&blurred, &Normalize::identity())?,
        )?;
    }
    Ok(())
}

fn normalize_float(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let normalize = Normalize::new(case.params.get("mean")?, case.params.get("std")?)?;
    judge_f32(check, &[image(case)?.to_float()], &normalize)
}

/// Judges 8-bit images, each level and, where the case gives a limit, their mean deviation.
fn judge_u8(case: &Case<'_>, check: &mut Check<'_>, images: &[Image<u8>]) -> Result<()> {
    let first = images.first().context("the case has no images")?;
    let actual: Vec<f64> =
        images.iter().flat_map(|image| image.data()).map(|&level| f64::from(level)).collect();
    check.values("out.images", &[images.len(), first.height(), first.width(), 3], &actual)?;
    let float_path: BTreeMap<String, f64> = case.params.optional("float_path_deviation")?.unwrap_or_default();
    if let Some(float_mean) = float_path.get("mean") {
        let expected = case.values("out.images")?;
        let sum: f64 = actual.iter().zip(&expected).map(|(a, e)| (a - e).abs()).sum();
        check.number("mean deviation", sum / expected.len() as f64, 0.0, [0.0, 2.0 * float_mean + 0.1]);
    }
    Ok(())
}

fn judge_f32(check: &mut Check<'_>, images: &[Image<f32>], normalize: &Normalize) -> Result<()> {
    let first = images.first().context("the case has no images")?;
    let shape = [images.len(), 3, first.height(), first.width()];
    let actual: Vec<Vec<f64>> = images.iter().map(|image| chw(image, normalize)).collect::<Result<_>>()?;
    check.values("out.images", &shape, &actual.concat())
}

/// Factors and orders of many draws.
fn color_jitter_stats(entry: &Entry, check: &mut Check<'_>) -> Result<()> {
    let keys = ["brightness", "contrast", "saturation", "hue"];
    let [brightness, contrast, saturation, hue] = keys.map(|key| entry.params.get::<f64>(key));
    let config = ColorJitterConfig {
        p: 1.0,
        brightness: brightness?,
        contrast: contrast?,
        saturation: saturation?,
        hue: hue?,
    };
    let jitter = ColorJitter::new(config)?;
    let operations = [Adjustment::Brightness, Adjustment::Contrast, Adjustment::Saturation, Adjustment::Hue];
    let mut rng = generator();
    let draws: Vec<_> = (0..own_draws(entry.params.get("draws")?)).map(|_| jitter.draw(&mut rng)).collect();
    let mut rows = Vec::new();
    let mut first_op_freq = Vec::new();
    for operation in operations {
        let neutral = if operation == Adjustment::Hue { 0.0 } else { 1.0 };
        let own =
            |draw: &[(Adjustment, Option<f64>); 4]| draw.iter().find(|(op, _)| *op == operation).copied();
        let drawn = draws.iter().filter_map(own).map(|(_, factor)| factor.unwrap_or(neutral)).collect();
        rows.push(Statistics::of(drawn));
        let first = draws.iter().filter(|draw| draw[0].0 == operation).count();
        first_op_freq.push(first as f64 / draws.len() as f64);
    }
    let column = |value: fn(&Statistics) -> f64| rows.iter().map(value).collect::<Vec<_>>();
    let (min, max) = (column(|row| row.quantile(0.0)), column(|row| row.quantile(1.0)));
    // The ranges of so many draws are those of the distributions, far within the tolerance.
    let ranges: Vec<f64> = min.iter().zip(&max).flat_map(|(min, max)| [*min, *max]).collect();
    check.values("out.f64.ranges", &[4, 2], &ranges)?;
    check.values("out.f64.mean", &[4], &column(|row| row.mean))?;
    check.values("out.f64.std", &[4], &column(|row| row.std))?;
    check.values("out.f64.min", &[4], &min)?;
    check.values("out.f64.max", &[4], &max)?;
    check.values("out.f64.first_op_freq", &[4], &first_op_freq)
}

/// Areas, aspects and centres of many boxes in each setting.
fn crop_stats(entry: &Entry, check: &mut Check<'_>) -> Result<()> {
    let mut rng = generator();
    for (i, setting) in entry.params.get::<Vec<Value>>("settings")?.into_iter().enumerate() {
        let setting = Options::new(setting)?;
        let (height, width): (usize, usize) = (setting.get("height")?, setting.get("width")?);
        // The size of the result has no influence on the box.
        let crop =
            RandomResizedCrop::new(1, setting.get("scale")?, setting.get("ratio")?, Interpolation::Bilinear)?;
        let draws = own_draws(setting.get("draws")?);
        let boxes: Vec<CropBox> = (0..draws).map(|_| crop.draw(width, height, &mut rng)).collect();
        let statistics = |value: &dyn Fn(&CropBox) -> f64| Statistics::of(boxes.iter().map(value).collect());
        let area = statistics(&|b| (b.height * b.width) as f64 / (height * width) as f64);
        let log_aspect = statistics(&|b| (b.width as f64 / b.height as f64).ln());
        let y = statistics(&|b| (b.top as f64 + b.height as f64 / 2.0) / height as f64);
        let x = statistics(&|b| (b.left as f64 + b.width as f64 / 2.0) / width as f64);
        check.values(&format!("out.f64.area_{i}"), &[9], &area.rows())?;
        check.values(&format!("out.f64.logaspect_{i}"), &[9], &log_aspect.rows())?;
        check.values(&format!("out.f64.center_{i}"), &[4], &[y.mean, y.std, x.mean, x.std])?;
        // Single boxes of the reference's generator, which nobody else can draw.
        check.exempt(&format!("out.examples_top_left_h_w_{i}"));
    }
    Ok(())
}

/// Moments and order of a sample.
struct Statistics {
    mean: f64,
    std: f64,
    sorted: Vec<f64>,
}

impl Statistics {
    fn of(mut values: Vec<f64>) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let std = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt();
        values.sort_unstable_by(f64::total_cmp);
        Self { mean, std, sorted: values }
    }

    /// Interpolated between neighbours; 0 is the smallest value, 1 the largest.
    fn quantile(&self, q: f64) -> f64 {
        let place = q * (self.sorted.len() - 1) as f64;
        let (low, part) = (place as usize, place.fract());
        let high = (low + 1).min(self.sorted.len() - 1);
        self.sorted[low] + part * (self.sorted[high] - self.sorted[low])
    }

    /// Mean, standard deviation, quantiles.
    fn rows(&self) -> Vec<f64> {
        let quantiles = QUANTILES.map(|q| self.quantile(q));
        [self.mean, self.std].into_iter().chain(quantiles).collect()
    }
}

fn own_draws(reference: usize) -> usize {
    MIN_DRAWS.max(2 * reference)
}

fn generator() -> Rng {
    rng(0, Purpose::Augment, 0, 0, 0)
}

/// The case's picture, stored as `(H, W, 3)`.
fn image(case: &Case<'_>) -> Result<Image<u8>> {
    let tensor = case.tensor("in.image")?;
    let (height, width, _) = tensor.dims3()?;
    Ok(Image::new(width, height, tensor.flatten_all()?.to_vec1()?)?)
}

/// A float image as `(3, H, W)`.
fn chw(image: &Image<f32>, normalize: &Normalize) -> Result<Vec<f64>> {
    let mut out = vec![0.0; image.data().len()];
    normalize.write_chw(image, &mut out)?;
    Ok(out.into_iter().map(f64::from).collect())
}

fn crop_box([top, left, height, width]: [usize; 4]) -> CropBox {
    CropBox { top, left, height, width }
}

/// `bilinear`, or a name with remarks as in `bicubic(a=-0.75)`.
fn interpolation(name: &str) -> Result<Interpolation> {
    Ok(match name.split('(').next() {
        Some("nearest") => Interpolation::Nearest,
        Some("bilinear") => Interpolation::Bilinear,
        Some("bicubic") => Interpolation::Bicubic,
        _ => bail!("no interpolation is called `{name}`"),
    })
}
