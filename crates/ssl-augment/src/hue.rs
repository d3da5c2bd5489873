//! Hue: a turn around the grey axis, by way of HSV.

use crate::image::Image;
use crate::lanes::{PixelMap, map_pixels, round, round_to_u8};
use crate::sample::Sample;

/// Turns the hue of every pixel by `turns` full circles, any finite number; torchvision and the papers use [-0.5, 0.5].
///
/// `u8`: through Pillow's 8-bit HSV, so that the hue has 256 levels and even `turns = 0` may change a pixel.
/// `f32`: `h = (h + turns) mod 1`.
///
/// # Example
/// ```
/// use ssl_augment::{Image, adjust_hue};
///
/// let red = Image::new(1, 1, vec![255u8, 0, 0])?.to_float();
/// assert_eq!(adjust_hue(red, 0.5).data(), [0.0, 1.0, 1.0]);
/// # Ok::<(), ssl_augment::Error>(())
/// ```
pub fn adjust_hue<S: Sample>(mut image: Image<S>, turns: f64) -> Image<S> {
    S::shift_hue(image.pixels_mut(), turns);
    image
}

pub(crate) fn shift_hue_u8(pixels: &mut [[u8; 3]], turns: f64) {
    // torchvision truncates towards zero, then wraps to eight bits.
    let shift = (turns * 255.0) as i32 as u8;
    map_pixels(pixels, HueShift { levels: f32::from(shift) });
}

pub(crate) fn shift_hue_f32(pixels: &mut [[f32; 3]], turns: f64) {
    let turns = turns.rem_euclid(1.0) as f32;
    for pixel in pixels {
        let [h, s, v] = rgb_to_hsv_f32(*pixel);
        *pixel = hsv_to_rgb_f32([fraction(h + turns), s, v]);
    }
}

/// A turn of the hue by so many of Pillow's 256 levels.
#[derive(Clone, Copy)]
struct HueShift {
    levels: f32,
}

impl PixelMap for HueShift {
    #[inline(always)]
    fn map(self, rgb: [u8; 3]) -> [u8; 3] {
        let [h, s, v] = rgb_to_hsv_u8(rgb);
        let h = h + self.levels;
        hsv_to_rgb_u8([if h < 256.0 { h } else { h - 256.0 }, s, v])
    }
}

/// Pillow's `rgb2hsv`, with whole numbers of 0..=255 in `f32`.
///
/// Pillow divides the distances of all channels from the largest by the range, one of which is 0 and one is 1. So the
/// hue is a whole number of sixths plus or minus the quotient of the channel in between, rounded once.
#[inline(always)]
fn rgb_to_hsv_u8([r, g, b]: [u8; 3]) -> [f32; 3] {
    let [r, g, b] = [f32::from(r), f32::from(g), f32::from(b)];
    let (low, high) = (least(r, g), largest(r, g));
    let (max, min, mid) = (largest(high, b), least(low, b), largest(low, least(high, b)));
    let range = max - min;
    let quotient = (max - mid) / largest(range, 1.0);
    let (sector, rises) = if r == max {
        (0.0, b <= g)
    } else if g == max {
        (2.0, r <= b)
    } else {
        (4.0, g <= r)
    };
    let sixths = if rises { (sector + 1.0) - quotient } else { (sector - 1.0) + quotient };
    let turn = sixths / 6.0;
    let h = cut_255ths(if turn < 0.0 { 1.0 + turn } else { turn });
    [h, cut_255ths(range / largest(max, 1.0)), max]
}

/// Pillow's `hsv2rgb` for whole numbers of 0..=255; hue 255 is a whole turn, as 0 is.
#[inline(always)]
fn hsv_to_rgb_u8([h, s, v]: [f32; 3]) -> [u8; 3] {
    // A sixth of a turn is 255. Each channel is `v` in two sectors, falls or rises in two, and is least in two.
    let h = 6.0 * h;
    let fall = |x: f32| least(largest(x, 0.0), 255.0);
    let level = |fall: f32| round_to_u8(v * (65_025.0 - s * fall) * (1.0 / 65_025.0));
    let red = level(fall(least(h - 255.0, 1275.0 - h)));
    let green = level(fall(largest(255.0 - h, h - 765.0)));
    let blue = level(fall(largest(765.0 - h, h - 1275.0)));
    [red, green, blue]
}

/// The whole part of the exact product `255 x`, for `x` in [0, 1].
#[inline(always)]
fn cut_255ths(x: f32) -> f32 {
    let nearest = round(255.0 * x);
    // `255 x < nearest` without an error: 256 x and its difference to a number close to it are exact.
    if 256.0 * x - nearest < x { nearest - 1.0 } else { nearest }
}

/// `min` for numbers, as one instruction.
#[inline(always)]
fn least(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// `max` for numbers, as one instruction.
#[inline(always)]
fn largest(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

fn rgb_to_hsv_f32([r, g, b]: [f32; 3]) -> [f32; 3] {
    let max = r.max(g).max(b);
    let min = r.min(g).min(b);
    let range = max - min;
    // After a bicubic resize samples may lie below 0; without this, a maximum of exactly 0 would give NaN.
    if range == 0.0 || max <= 0.0 {
        return [0.0, 0.0, max];
    }
    let sixths = if r == max {
        (g - b) / range
    } else if g == max {
        2.0 + (b - r) / range
    } else {
        4.0 + (r - g) / range
    };
    [fraction(sixths / 6.0 + 1.0), range / max, max]
}

fn hsv_to_rgb_f32([h, s, v]: [f32; 3]) -> [f32; 3] {
    let sector = (h * 6.0) as u32;
    let f = h * 6.0 - sector as f32;
    let level = |x: f32| (v * x).clamp(0.0, 1.0);
    sector_rgb(sector, v, level(1.0 - s), level(1.0 - s * f), level(1.0 - s * (1.0 - f)))
}

/// The fractional part of a number in [0, 3), without a call where there is no instruction for it.
fn fraction(x: f32) -> f32 {
    x - (x as u32) as f32
}

/// The pixel in one of the six sectors of the hue circle, from the largest value `v`, the least `p`,
/// the falling `q` and the rising `t`.
fn sector_rgb<T>(sector: u32, v: T, p: T, q: T, t: T) -> [T; 3] {
    match sector % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_has_no_hue() {
        let grey = Image::new(1, 1, vec![77u8; 3]).unwrap();
        assert_eq!(adjust_hue(grey.clone(), 0.3), grey);
        assert_eq!(adjust_hue(grey.to_float(), 0.3), grey.to_float());
    }

    #[test]
    fn a_third_of_a_turn_permutes_the_primary_colours() {
        let red = Image::new(1, 1, vec![1.0f32, 0.0, 0.0]).unwrap();
        let green = adjust_hue(red.clone(), 1.0 / 3.0);
        assert!(green.data().iter().zip([0.0, 1.0, 0.0]).all(|(x, y)| (x - y).abs() < 1e-6), "{green:?}");
        let blue = adjust_hue(red, -1.0 / 3.0);
        assert!(blue.data().iter().zip([0.0, 0.0, 1.0]).all(|(x, y)| (x - y).abs() < 1e-6), "{blue:?}");
    }

    #[test]
    fn samples_below_black_stay_finite() {
        let image = Image::new(2, 1, vec![0.0f32, -0.1, 0.0, -0.2, -0.1, -0.3]).unwrap();
        assert!(adjust_hue(image, 0.2).data().iter().all(|x| x.is_finite() && *x <= 0.0));
    }

    /// Pillow's `rgb2hsv` step by step: single precision for quotients, double for the sums, truncation to 8 bits.
    fn pillow_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        if max == min {
            return [0, 0, max];
        }
        let range = f32::from(max - min);
        let distance = |x: u8| f64::from(f32::from(max - x) / range);
        let (rc, gc, bc) = (distance(r), distance(g), distance(b));
        let sixths = if r == max {
            bc - gc
        } else if g == max {
            2.0 + rc - bc
        } else {
            4.0 + gc - rc
        };
        let h = ((f64::from(sixths as f32) / 6.0 + 1.0) % 1.0) as f32;
        let s = range / f32::from(max);
        [(f64::from(h) * 255.0) as u8, (f64::from(s) * 255.0) as u8, max]
    }

    /// Pillow's `hsv2rgb` step by step.
    fn pillow_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
        if s == 0 {
            return [v; 3];
        }
        let sixths = f64::from(h) * 6.0 / 255.0;
        let f = f64::from((sixths - sixths.floor()) as f32);
        let fs = f64::from((f64::from(s) / 255.0) as f32);
        let level = |x: f64| (f64::from(v) * x).round() as u8;
        sector_rgb(sixths as u32, v, level(1.0 - fs), level(1.0 - fs * f), level(1.0 - fs * (1.0 - f)))
    }

    fn all_triples() -> impl Iterator<Item = [u8; 3]> {
        (0..1_u32 << 24).map(|i| [(i >> 16) as u8, (i >> 8) as u8, i as u8])
    }

    #[test]
    fn every_colour_has_pillows_hue_and_saturation() {
        for rgb in all_triples() {
            let [h, s, v] = rgb_to_hsv_u8(rgb);
            let expected = pillow_hsv(rgb).map(f32::from);
            // Without saturation the hue is of no consequence.
            let h = if s == 0.0 { expected[0] } else { h };
            assert_eq!([h, s, v], expected, "{rgb:?}");
        }
    }

    #[test]
    fn every_hue_saturation_and_value_is_pillows_colour() {
        for hsv in all_triples() {
            assert_eq!(hsv_to_rgb_u8(hsv.map(f32::from)), pillow_rgb(hsv), "{hsv:?}");
        }
    }

    #[test]
    fn blocks_of_pixels_turn_as_single_ones() {
        for shift in [0, 1, 100, 255] {
            let turned: Vec<_> = all_triples().step_by(97).collect();
            let mut pixels = turned.clone();
            map_pixels(&mut pixels, HueShift { levels: f32::from(shift) });
            for (pixel, rgb) in pixels.into_iter().zip(turned) {
                let [h, s, v] = pillow_hsv(rgb);
                assert_eq!(pixel, pillow_rgb([h.wrapping_add(shift), s, v]), "{rgb:?} by {shift}");
            }
        }
    }

    #[test]
    fn whole_turns_are_nothing() {
        let image = Image::new(1, 2, vec![0.9f32, 0.2, 0.4, 0.1, 0.8, 0.3]).unwrap();
        let turned = |turns| adjust_hue(image.clone(), turns);
        let close =
            |a: &Image<f32>, b: &Image<f32>| a.data().iter().zip(b.data()).all(|(x, y)| (x - y).abs() < 1e-5);
        assert!(close(&turned(-3.0), &image));
        assert!(close(&turned(7.25), &turned(0.25)));
        assert!(close(&turned(-0.75), &turned(0.25)));
    }
}
