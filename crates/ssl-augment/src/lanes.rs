//! Loops that use the vector instructions of the processor at hand.

use pulp::{Arch, NullaryFnOnce};

/// Pixels that [`map_pixels`] works on side by side.
const BLOCK: usize = 64;

/// A loop that is compiled for any processor, for AVX2 and for AVX-512.
///
/// [`Kernel::run`] and all that it calls must be `#[inline(always)]`, since a function of its own is compiled for any
/// processor only. No compilation contracts or reorders arithmetic, so all give the same bits.
pub(crate) trait Kernel {
    /// What the loop yields.
    type Output;

    /// The loop.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` with the widest instructions that there are.
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    Arch::new().dispatch(Inlined(kernel))
}

/// A kernel as `pulp` takes it. A closure would do but for its inlining, which only a named function can demand.
struct Inlined<K>(K);

impl<K: Kernel> NullaryFnOnce for Inlined<K> {
    type Output = K::Output;

    #[inline(always)]
    fn call(self) -> K::Output {
        self.0.run()
    }
}

/// A function of 8-bit pixels without branches, `#[inline(always)]`.
pub(crate) trait PixelMap: Copy {
    /// The new pixel.
    fn map(self, rgb: [u8; 3]) -> [u8; 3];
}

/// Replaces every pixel.
pub(crate) fn map_pixels(pixels: &mut [[u8; 3]], map: impl PixelMap) {
    run(EachPixel { pixels, map });
}

struct EachPixel<'a, M> {
    pixels: &'a mut [[u8; 3]],
    map: M,
}

impl<M: PixelMap> Kernel for EachPixel<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (blocks, rest) = self.pixels.as_chunks_mut();
        for block in blocks {
            map_block(block, self.map);
        }
        if !rest.is_empty() {
            let mut block = [[0; 3]; BLOCK];
            block[..rest.len()].copy_from_slice(rest);
            map_block(&mut block, self.map);
            rest.copy_from_slice(&block[..rest.len()]);
        }
    }
}

/// The loop in the middle vectorises only if its channels lie apart.
#[inline(always)]
fn map_block(block: &mut [[u8; 3]; BLOCK], map: impl PixelMap) {
    let mut channels = [[0; BLOCK]; 3];
    for i in 0..BLOCK {
        for c in 0..3 {
            channels[c][i] = block[i][c];
        }
    }
    let [red, green, blue] = &mut channels;
    for i in 0..BLOCK {
        [red[i], green[i], blue[i]] = map.map([red[i], green[i], blue[i]]);
    }
    for i in 0..BLOCK {
        block[i] = [red[i], green[i], blue[i]];
    }
}

/// From here on `f32` has no fractions.
const WHOLE: f32 = 8_388_608.0;

/// The nearest whole number, halves to even, for `x` in [0, 2^22]: an addition in place of a conversion.
#[inline(always)]
pub(crate) fn round(x: f32) -> f32 {
    (x + WHOLE) - WHOLE
}

/// [`round`] as a byte, for `x` in [0, 255].
#[inline(always)]
pub(crate) fn round_to_u8(x: f32) -> u8 {
    (x + WHOLE).to_bits() as u8
}

/// `x as u8`, which cuts off the fraction and what lies outside of 0..=255.
#[inline(always)]
pub(crate) fn cut_to_u8(x: f32) -> u8 {
    // The order of the comparisons sends NaN to 0.
    let x = if x > 0.0 { x } else { 0.0 };
    let x = if x < 255.0 { x } else { 255.0 };
    let nearest = round(x);
    round_to_u8(if nearest > x { nearest - 1.0 } else { nearest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_is_the_cast() {
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e30, -1e30, 254.99998, 0.99999994];
        let grid = (-4000..=68_000).map(|i| i as f32 / 256.0);
        let neighbours = grid.flat_map(|x| [x.next_down(), x, x.next_up()]);
        for x in neighbours.chain(special) {
            assert_eq!(cut_to_u8(x), x as u8, "{x}");
        }
    }

    #[test]
    fn every_pixel_is_mapped_once() {
        #[derive(Clone, Copy)]
        struct Turn;
        impl PixelMap for Turn {
            #[inline(always)]
            fn map(self, [r, g, b]: [u8; 3]) -> [u8; 3] {
                [g, b, r.wrapping_add(1)]
            }
        }
        for len in [0, 1, 63, 64, 65, 200] {
            let mut pixels: Vec<[u8; 3]> = (0..len).map(|i: u8| [i, i ^ 85, 255 - i]).collect();
            let expected: Vec<_> = pixels.iter().map(|&[r, g, b]| [g, b, r.wrapping_add(1)]).collect();
            map_pixels(&mut pixels, Turn);
            assert_eq!(pixels, expected);
        }
    }
}
