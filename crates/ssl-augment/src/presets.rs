//! The augmentations of the published methods.
//!
//! Sizes are those of ImageNet at 224 pixels; `size` scales them. The small crops of multi-crop are 96/224 of `size`,
//! rounded. Where a paper gives no interpolation it is torchvision's default, bilinear. Each preset is a plain list of
//! [`ViewConfig`], so that a field can be changed before [`MultiView`](crate::MultiView) is built.

use crate::color_jitter::ColorJitterConfig;
use crate::resize::Interpolation;
use crate::view::Operation::{Blur, Crop, Flip, Grayscale, Jitter, Solarize};
use crate::view::ViewConfig;

/// A preset without its strength.
type Preset = fn(usize) -> Vec<ViewConfig>;

/// Every preset by the name of its method.
const PRESETS: [(&str, Preset); 17] = [
    ("simclr", |size| simclr(size, 1.0)),
    ("moco_v1", moco_v1),
    ("moco_v2", moco_v2),
    ("moco_v3", moco_v3),
    ("byol", byol),
    ("swav", swav),
    ("seer", seer),
    ("sela", sela),
    ("dino", dino),
    ("ibot", ibot),
    ("dinov2", dinov2),
    ("msn", msn),
    ("mae", mae),
    ("simmim", simmim),
    ("beit", beit),
    ("ijepa", ijepa),
    ("clip", clip),
];

/// The names that [`by_name`] knows.
pub fn names() -> [&'static str; 17] {
    PRESETS.map(|(name, _)| name)
}

/// The views of a method; `None` if the name is unknown.
///
/// `strength` multiplies brightness, contrast, saturation and hue of every view: 1 is as published (for MSN, whose code has
/// s = 0.5, too), and 0.5 is what SimCLR has on CIFAR-10.
///
/// # Example
/// ```
/// use ssl_augment::presets;
///
/// assert_eq!(presets::by_name("simclr", 32, 0.5), Some(presets::simclr(32, 0.5)));
/// assert_eq!(presets::by_name("simclear", 32, 0.5), None);
/// ```
pub fn by_name(name: &str, size: usize, strength: f64) -> Option<Vec<ViewConfig>> {
    let (_, preset) = PRESETS.iter().find(|(known, _)| *known == name)?;
    let mut views = preset(size);
    for view in &mut views {
        view.jitter = scale_jitter(view.jitter, strength);
    }
    Some(views)
}

/// SimCLR: two views (Chen et al., 2020, <https://arxiv.org/abs/2002.05709>, appendix A).
///
/// `strength` is the paper's s. Up to 64 pixels there is no blur, as in the paper's CIFAR-10 experiments (appendix B.9).
pub fn simclr(size: usize, strength: f64) -> Vec<ViewConfig> {
    vec![ViewConfig {
        size,
        copies: 2,
        interpolation: Interpolation::Bicubic,
        jitter: scale_jitter(jitter(0.8, 0.8, 0.8, 0.2), strength),
        grayscale_p: 0.2,
        blur_p: if size <= 64 { 0.0 } else { 0.5 },
        ..ViewConfig::default()
    }]
}

/// MoCo v1: two views (He et al., 2019, <https://arxiv.org/abs/1911.05722>; as in the authors' code).
pub fn moco_v1(size: usize) -> Vec<ViewConfig> {
    vec![ViewConfig {
        size,
        copies: 2,
        crop_scale: [0.2, 1.0],
        jitter: ColorJitterConfig { p: 1.0, ..jitter(0.4, 0.4, 0.4, 0.4) },
        grayscale_p: 0.2,
        order: vec![Crop, Grayscale, Jitter, Flip],
        ..ViewConfig::default()
    }]
}

/// MoCo v2 and SimSiam: two views (Chen et al., 2020, <https://arxiv.org/abs/2003.04297>; as in the authors' code).
pub fn moco_v2(size: usize) -> Vec<ViewConfig> {
    vec![ViewConfig {
        size,
        copies: 2,
        crop_scale: [0.2, 1.0],
        jitter: jitter(0.4, 0.4, 0.4, 0.1),
        grayscale_p: 0.2,
        blur_p: 0.5,
        order: vec![Crop, Jitter, Grayscale, Blur, Flip],
        ..ViewConfig::default()
    }]
}

/// MoCo v3: two different views (Chen et al., 2021, <https://arxiv.org/abs/2104.02057>; as in the authors' code).
///
/// Those of [`byol`] with crops as MoCo's, bilinear and flipped last. `crop_scale` is that of ResNet-50; ViTs have BYOL's.
pub fn moco_v3(size: usize) -> Vec<ViewConfig> {
    let mut views = byol(size);
    for view in &mut views {
        view.interpolation = Interpolation::Bilinear;
        view.crop_scale = [0.2, 1.0];
        view.order = vec![Crop, Jitter, Grayscale, Blur, Solarize, Flip];
    }
    views
}

/// BYOL, Barlow Twins and VICReg: two different views (Grill et al., 2020, <https://arxiv.org/abs/2006.07733>, table 6).
///
/// The first is always blurred; the second rarely, and sometimes solarised.
pub fn byol(size: usize) -> Vec<ViewConfig> {
    let first = ViewConfig {
        size,
        interpolation: Interpolation::Bicubic,
        jitter: jitter(0.4, 0.4, 0.2, 0.1),
        grayscale_p: 0.2,
        blur_p: 1.0,
        ..ViewConfig::default()
    };
    let second = ViewConfig { blur_p: 0.1, solarize_p: 0.2, ..first.clone() };
    vec![first, second]
}

/// SwAV: two large and six small views (Caron et al., 2020, <https://arxiv.org/abs/2006.09882>).
pub fn swav(size: usize) -> Vec<ViewConfig> {
    let large = ViewConfig {
        size,
        copies: 2,
        crop_scale: [0.14, 1.0],
        jitter: jitter(0.8, 0.8, 0.8, 0.2),
        grayscale_p: 0.2,
        blur_p: 0.5,
        ..ViewConfig::default()
    };
    let small = ViewConfig { size: small_size(size), copies: 6, crop_scale: [0.05, 0.14], ..large.clone() };
    vec![large, small]
}

/// SEER: two large and four small views of 160 and 96 pixels, otherwise as SwAV's (Goyal et al., 2021,
/// <https://arxiv.org/abs/2103.01988>). The small ones are 96/160 of `size`, rounded.
pub fn seer(size: usize) -> Vec<ViewConfig> {
    let mut views = swav(size);
    views[1].size = (size as f64 * 96.0 / 160.0).round().max(1.0) as usize;
    views[1].copies = 4;
    views
}

/// SeLa: one view (Asano et al., 2020, <https://arxiv.org/abs/1911.05371>; as in the authors' code): that of [`moco_v1`]
/// with crops as small as SimCLR's.
pub fn sela(size: usize) -> Vec<ViewConfig> {
    let mut views = moco_v1(size);
    for view in &mut views {
        view.copies = 1;
        view.crop_scale = [0.08, 1.0];
    }
    views
}

/// DINO: two different global and eight local views (Caron et al., 2021, <https://arxiv.org/abs/2104.14294>).
pub fn dino(size: usize) -> Vec<ViewConfig> {
    let [first, second] = [(1.0, 0.0), (0.1, 0.2)].map(|(blur_p, solarize_p)| ViewConfig {
        size,
        crop_scale: [0.4, 1.0],
        interpolation: Interpolation::Bicubic,
        jitter: jitter(0.4, 0.4, 0.2, 0.1),
        grayscale_p: 0.2,
        blur_p,
        solarize_p,
        ..ViewConfig::default()
    });
    let local = ViewConfig {
        size: small_size(size),
        copies: 8,
        crop_scale: [0.05, 0.4],
        blur_p: 0.5,
        ..first.clone()
    };
    vec![first, second, local]
}

/// iBOT: as DINO with ten local views and other sizes of crops (Zhou et al., 2021, <https://arxiv.org/abs/2111.07832>).
pub fn ibot(size: usize) -> Vec<ViewConfig> {
    let mut views = multi_crop(size, [0.25, 1.0], [0.05, 0.25]);
    views[2].copies = 10;
    views
}

/// DINOv2: as DINO with other sizes of crops (Oquab et al., 2023, <https://arxiv.org/abs/2304.07193>). The published
/// weights were trained with blur probabilities 0, 0.9 and 0.5 in place of 1, 0.1 and 0.5: the official code takes
/// the complement.
pub fn dinov2(size: usize) -> Vec<ViewConfig> {
    multi_crop(size, [0.32, 1.0], [0.05, 0.32])
}

/// The views of [`dino`] with crops of these shares of the image.
fn multi_crop(size: usize, global: [f64; 2], local: [f64; 2]) -> Vec<ViewConfig> {
    let mut views = dino(size);
    for (view, crop_scale) in views.iter_mut().zip([global, global, local]) {
        view.crop_scale = crop_scale;
    }
    views
}

/// MSN: the target's view and the anchor's, then ten focal views (Assran et al., 2022, <https://arxiv.org/abs/2204.07141>).
pub fn msn(size: usize) -> Vec<ViewConfig> {
    let random = ViewConfig {
        size,
        copies: 2,
        crop_scale: [0.3, 1.0],
        jitter: jitter(0.4, 0.4, 0.4, 0.1),
        grayscale_p: 0.2,
        blur_p: 0.5,
        ..ViewConfig::default()
    };
    let focal = ViewConfig { size: small_size(size), copies: 10, crop_scale: [0.05, 0.3], ..random.clone() };
    vec![random, focal]
}

/// MAE: one view (He et al., 2021, <https://arxiv.org/abs/2111.06377>).
pub fn mae(size: usize) -> Vec<ViewConfig> {
    vec![ViewConfig {
        size,
        crop_scale: [0.2, 1.0],
        interpolation: Interpolation::Bicubic,
        ..ViewConfig::default()
    }]
}

/// SimMIM: one view (Xie et al., 2021, <https://arxiv.org/abs/2111.09886>).
pub fn simmim(size: usize) -> Vec<ViewConfig> {
    vec![ViewConfig { size, crop_scale: [0.67, 1.0], ..ViewConfig::default() }]
}

/// BEiT and data2vec: one view, its colours changed before the crop (Bao et al., 2021, <https://arxiv.org/abs/2106.08254>).
pub fn beit(size: usize) -> Vec<ViewConfig> {
    vec![ViewConfig {
        size,
        interpolation: Interpolation::Bicubic,
        jitter: ColorJitterConfig { p: 1.0, ..jitter(0.4, 0.4, 0.4, 0.0) },
        order: vec![Jitter, Flip, Crop],
        ..ViewConfig::default()
    }]
}

/// I-JEPA: one view, and no flip (Assran et al., 2023, <https://arxiv.org/abs/2301.08243>).
pub fn ijepa(size: usize) -> Vec<ViewConfig> {
    vec![ViewConfig { size, crop_scale: [0.3, 1.0], flip_p: 0.0, order: vec![Crop], ..ViewConfig::default() }]
}

/// CLIP: one view, a large crop (Radford et al., 2021, <https://arxiv.org/abs/2103.00020>; scale as in OpenCLIP).
pub fn clip(size: usize) -> Vec<ViewConfig> {
    vec![ViewConfig {
        size,
        crop_scale: [0.9, 1.0],
        interpolation: Interpolation::Bicubic,
        flip_p: 0.0,
        order: vec![Crop],
        ..ViewConfig::default()
    }]
}

fn jitter(brightness: f64, contrast: f64, saturation: f64, hue: f64) -> ColorJitterConfig {
    ColorJitterConfig { p: 0.8, brightness, contrast, saturation, hue }
}

fn scale_jitter(jitter: ColorJitterConfig, strength: f64) -> ColorJitterConfig {
    ColorJitterConfig {
        p: jitter.p,
        brightness: jitter.brightness * strength,
        contrast: jitter.contrast * strength,
        saturation: jitter.saturation * strength,
        hue: jitter.hue * strength,
    }
}

/// Side of the small crops of multi-crop, 96 for 224.
fn small_size(size: usize) -> usize {
    (size * 96 + 112) / 224
}
