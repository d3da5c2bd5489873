//! Hue: a turn around the grey axis, by way of HSV.

use crate::image::Image;
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
    for pixel in pixels {
        let [h, s, v] = rgb_to_hsv_u8(*pixel);
        *pixel = hsv_to_rgb_u8([h.wrapping_add(shift), s, v]);
    }
}

pub(crate) fn shift_hue_f32(pixels: &mut [[f32; 3]], turns: f64) {
    let turns = turns.rem_euclid(1.0) as f32;
    for pixel in pixels {
        let [h, s, v] = rgb_to_hsv_f32(*pixel);
        *pixel = hsv_to_rgb_f32([fraction(h + turns), s, v]);
    }
}

/// Pillow's `rgb2hsv`: single precision for quotients, double for the sums, truncation to 8 bits.
fn rgb_to_hsv_u8([r, g, b]: [u8; 3]) -> [u8; 3] {
    let max = r.max(g).max(b);
    let min = r.min(g).min(b);
    if max == min {
        return [0, 0, max];
    }
    let range = f32::from(max - min);
    let distance = |x: u8| f32::from(max - x) / range;
    let (rc, gc, bc) = (distance(r), distance(g), distance(b));
    let sixths = if r == max {
        bc - gc
    } else if g == max {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    // In [5/6, 11/6], so that one subtraction makes the remainder.
    let turn = f64::from(sixths) / 6.0 + 1.0;
    let h = (if turn < 1.0 { turn } else { turn - 1.0 }) as f32;
    let s = range / f32::from(max);
    [(f64::from(h) * 255.0) as u8, (f64::from(s) * 255.0) as u8, max]
}

/// Pillow's `hsv2rgb`; hue 255 is a whole turn, as 0 is.
fn hsv_to_rgb_u8([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let sixths = f64::from(h) * 6.0 / 255.0;
    let sector = sixths as u32;
    let f = f64::from((sixths - f64::from(sector)) as f32);
    let fs = f64::from((f64::from(s) / 255.0) as f32);
    // The same as `round` for all 2^24 arguments, and a cast is many times faster where it is a call.
    let level = |x: f64| (f64::from(v) * x + 0.5) as u8;
    sector_rgb(sector, v, level(1.0 - fs), level(1.0 - fs * f), level(1.0 - fs * (1.0 - f)))
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

    #[test]
    fn levels_are_rounded_as_in_pillow() {
        for h in 0..=255u8 {
            let sixths = f64::from(h) * 6.0 / 255.0;
            let f = f64::from((sixths - sixths.floor()) as f32);
            for s in 1..=255u8 {
                let fs = f64::from((f64::from(s) / 255.0) as f32);
                for v in (0..=255u8).step_by(5) {
                    let level = |x: f64| (f64::from(v) * x).round() as u8;
                    let (p, q, t) = (level(1.0 - fs), level(1.0 - fs * f), level(1.0 - fs * (1.0 - f)));
                    assert_eq!(hsv_to_rgb_u8([h, s, v]), sector_rgb(sixths.floor() as u32, v, p, q, t));
                }
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

    #[test]
    fn eight_bit_hue_of_the_primary_colours() {
        assert_eq!(rgb_to_hsv_u8([255, 0, 0]), [0, 255, 255]);
        assert_eq!(rgb_to_hsv_u8([0, 255, 0]), [85, 255, 255]);
        assert_eq!(rgb_to_hsv_u8([0, 0, 255]), [170, 255, 255]);
        assert_eq!(hsv_to_rgb_u8([255, 255, 255]), [255, 0, 0]);
    }
}
