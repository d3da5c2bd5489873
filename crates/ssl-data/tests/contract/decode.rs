//! One image file at a time: formats, colour models, orientation.

use image::{DynamicImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};

use crate::fixtures::{
    assert_close, decode, decode_error, decode_reduced, encode, golden, gradient, pixel, png,
};

#[test]
fn lossless_formats_keep_every_pixel() {
    let original = gradient(31, 17);
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
        let decoded = decode(&encode(&original, format)).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (31, 17));
        assert_eq!(decoded.data(), original.as_bytes(), "{format:?}");
    }
}

#[test]
fn jpeg_keeps_colours_about() {
    let flat = RgbImage::from_pixel(20, 9, Rgb([200, 120, 40])).into();
    let decoded = decode(&encode(&flat, ImageFormat::Jpeg)).unwrap();
    assert_eq!((decoded.width(), decoded.height()), (20, 9));
    assert_close(pixel(&decoded, 10, 5), [200, 120, 40], 4);
}

#[test]
fn grey_jpeg_is_replicated() {
    let flat = DynamicImage::ImageLuma8(ImageBuffer::from_pixel(9, 9, Luma([77])));
    let decoded = decode(&encode(&flat, ImageFormat::Jpeg)).unwrap();
    let [r, g, b] = pixel(&decoded, 4, 4);
    assert!(r == g && g == b);
    assert_close([r, g, b], [77; 3], 2);
}

/// Expected values: Pillow 13.0's `convert("RGB")` of the same files.
#[test]
fn progressive_jpeg_and_lossy_webp_agree_with_pillow() {
    for (name, expected) in [("progressive.jpg", PROGRESSIVE), ("lossy.webp", LOSSY)] {
        let decoded = decode(&golden(name)).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (48, 32));
        for ((x, y), rgb) in [(4, 4), (24, 16), (44, 28)].into_iter().zip(expected) {
            assert_close(pixel(&decoded, x, y), rgb, 6);
        }
    }
}

const LOSSY: [[u8; 3]; 3] = [[200, 37, 133], [25, 134, 124], [212, 228, 131]];
const PROGRESSIVE: [[u8; 3]; 3] = [[197, 36, 129], [15, 131, 128], [210, 226, 127]];

/// Six flat patches of 16x16 pixels. Expected values: Pillow 13.0's `convert("RGB")` of the same file.
#[test]
fn cmyk_jpeg_agrees_with_pillow() {
    let decoded = decode(&golden("cmyk.jpg")).unwrap();
    let expected = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 137, 75]];
    for (patch, rgb) in expected.into_iter().enumerate() {
        assert_close(pixel(&decoded, 16 * patch + 8, 8), rgb, 4);
    }
}

/// The same coefficients, declared as YCCK in Adobe's segment. Expected values: Pillow 13.0, as above.
#[test]
fn ycck_jpeg_agrees_with_pillow() {
    let mut file = golden("cmyk.jpg");
    assert_eq!(&file[6..11], b"Adobe");
    file[17] = 2;
    let decoded = decode(&file).unwrap();
    for (patch, rgb) in YCCK.into_iter().enumerate() {
        assert_close(pixel(&decoded, 16 * patch + 8, 8), rgb, 4);
    }
}

const YCCK: [[u8; 3]; 6] =
    [[179, 0, 227], [255, 207, 30], [77, 255, 255], [0, 134, 0], [0, 0, 0], [36, 0, 0]];

/// Expected values: Pillow 13.0's after `draft("RGB", (6, 4))` and `draft("RGB", (12, 8))`, which decode at an eighth and at
/// a quarter of the sides. Pillow then has the colours of this file, stored at half its size, in more detail than we, so
/// that brightness is compared.
#[test]
fn a_reduced_jpeg_agrees_with_pillow() {
    let luma =
        |[r, g, b]: [u8; 3]| [(0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b)) as u8; 3];
    let file = golden("progressive.jpg");
    for (shorter_side, (width, height), expected) in [(3, (6, 4), EIGHTH), (8, (12, 8), QUARTER)] {
        let decoded = decode_reduced(&file, shorter_side).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (width, height));
        let places = [(0, 0), (width / 2, height / 2), (width - 1, height - 1)];
        for ((x, y), rgb) in places.into_iter().zip(expected) {
            assert_close(luma(pixel(&decoded, x, y)), luma(rgb), 4);
        }
    }
}

const EIGHTH: [[u8; 3]; 3] = [[203, 32, 128], [57, 160, 130], [204, 224, 129]];
const QUARTER: [[u8; 3]; 3] = [[230, 16, 128], [27, 144, 128], [232, 238, 128]];

/// Of a smooth picture, with sides that no block divides.
#[test]
fn a_reduced_pixel_is_the_mean_of_those_it_stands_for() {
    let wave = |x: f64| (127.0 + 100.0 * x.sin()) as u8;
    let colours = RgbImage::from_fn(1101, 1003, |x, y| {
        let (x, y) = (f64::from(x) / 90.0, f64::from(y) / 70.0);
        Rgb([wave(x), wave(y), wave(x + y)])
    });
    let colours = DynamicImage::ImageRgb8(colours);
    let grey = DynamicImage::ImageLuma8(colours.to_luma8());
    for file in [colours, grey].map(|picture| encode(&picture, ImageFormat::Jpeg)) {
        let whole = decode(&file).unwrap();
        for (divisor, shorter_side) in [(8, 100), (4, 127)] {
            let reduced = decode_reduced(&file, shorter_side).unwrap();
            let (width, height) = (reduced.width(), reduced.height());
            assert_eq!((width, height), (1101_usize.div_ceil(divisor), 1003_usize.div_ceil(divisor)));
            for (x, y) in (0..height - 1).flat_map(|y| (0..width - 1).map(move |x| (x, y))) {
                let block = |c: usize| {
                    let rows = divisor * y..divisor * (y + 1);
                    let sum = rows.flat_map(|y| (divisor * x..divisor * (x + 1)).map(move |x| (x, y)));
                    let sum: usize = sum.map(|(x, y)| usize::from(pixel(&whole, x, y)[c])).sum();
                    (sum / (divisor * divisor)) as u8
                };
                assert_close(pixel(&reduced, x, y), [block(0), block(1), block(2)], 4);
            }
        }
    }
}

#[test]
fn what_cannot_be_reduced_is_decoded_whole() {
    let picture = encode(&gradient(64, 48), ImageFormat::Jpeg);
    // A segment that is reserved for extensions, which only one of the decoders passes over.
    let extended = [&picture[..2], &[0xff, 0xf0, 0, 3, 0], &picture[2..]].concat();
    for file in
        [encode(&gradient(64, 48), ImageFormat::Png), golden("cmyk.jpg"), golden("lossy.webp"), extended]
    {
        assert_eq!(decode_reduced(&file, 1).unwrap(), decode(&file).unwrap());
    }
    assert_eq!(decode_reduced(&picture, 1).unwrap().width(), 8);
    let cut = &picture[..picture.len() - 9];
    assert_eq!(decode_reduced(cut, 1).unwrap_err().to_string(), decode_error(cut));
}

#[test]
fn alpha_is_dropped_even_where_it_is_zero() {
    let rgba = DynamicImage::ImageRgba8(ImageBuffer::from_fn(3, 1, |x, _| Rgba([10, 20, 30, 127 * x as u8])));
    let grey = DynamicImage::ImageLumaA8(ImageBuffer::from_fn(3, 1, |x, _| LumaA([40, 127 * x as u8])));
    assert_eq!(
        decode(&encode(&rgba, ImageFormat::Png)).unwrap().data(),
        [10, 20, 30, 10, 20, 30, 10, 20, 30]
    );
    assert_eq!(
        decode(&encode(&rgba, ImageFormat::WebP)).unwrap().data(),
        [10, 20, 30, 10, 20, 30, 10, 20, 30]
    );
    assert_eq!(decode(&encode(&grey, ImageFormat::Png)).unwrap().data(), [40; 9]);
}

#[test]
fn of_sixteen_bits_the_high_byte_is_kept() {
    // 0x12ff would be 0x13 if it were rounded.
    let grey = DynamicImage::ImageLuma16(ImageBuffer::from_pixel(1, 1, Luma([0x12ff])));
    let grey_alpha = DynamicImage::ImageLumaA16(ImageBuffer::from_pixel(1, 1, LumaA([0x12ff, 5])));
    let rgb = DynamicImage::ImageRgb16(ImageBuffer::from_pixel(1, 1, Rgb([0x12ff, 0xffff, 0x00ff])));
    let rgba = DynamicImage::ImageRgba16(ImageBuffer::from_pixel(1, 1, Rgba([0x12ff, 0xff00, 0x0100, 0])));
    for (image, expected) in
        [(grey, [0x12; 3]), (grey_alpha, [0x12; 3]), (rgb, [0x12, 0xff, 0]), (rgba, [0x12, 0xff, 1])]
    {
        assert_eq!(decode(&encode(&image, ImageFormat::Png)).unwrap().data(), expected);
    }
}

#[test]
fn palettes_are_looked_up() {
    let palette = [255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7];
    // 2 bits a pixel: indices 0, 1, 2, 3; the third is transparent, which is dropped as alpha is.
    let file = png((4, 1), 2, 3, &[(b"PLTE", &palette), (b"tRNS", &[255, 255, 0])], &[0, 0b00_01_10_11]);
    assert_eq!(decode(&file).unwrap().data(), palette);
}

#[test]
fn grey_of_one_bit_spans_the_range() {
    let file = png((3, 1), 1, 0, &[], &[0, 0b1010_0000]);
    assert_eq!(decode(&file).unwrap().data(), [255, 255, 255, 0, 0, 0, 255, 255, 255]);
}

#[test]
fn the_first_frame_of_an_animation_is_taken() {
    let decoded = decode(&golden("animated.webp")).unwrap();
    assert_eq!((decoded.width(), decoded.height()), (8, 6));
    assert_eq!(pixel(&decoded, 7, 5), [10, 20, 30]);
}

#[test]
fn the_smallest_image_is_one_pixel() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp] {
        let decoded = decode(&encode(&gradient(1, 1), format)).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (1, 1), "{format:?}");
    }
}

/// Inserts an EXIF segment with the given orientation behind the start of a JPEG.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
}

/// The corners top left, top right, bottom left, bottom right after each orientation, as EXIF 2.32 (tag 0x0112) defines
/// them; the stored image has r(ed), g(reen), b(lue) and w(hite) there.
const ORIENTATIONS: [(u8, &str); 8] =
    [(1, "rgbw"), (2, "grwb"), (3, "wbgr"), (4, "bwrg"), (5, "rbgw"), (6, "brwg"), (7, "wgbr"), (8, "gwrb")];

#[test]
fn exif_orientations_are_applied() {
    let colour_of = |name: char| match name {
        'r' => [255, 0, 0],
        'g' => [0, 255, 0],
        'b' => [0, 0, 255],
        _ => [255, 255, 255],
    };
    let stored = RgbImage::from_fn(64, 32, |x, y| {
        Rgb(colour_of(match (x < 32, y < 16) {
            (true, true) => 'r',
            (false, true) => 'g',
            (true, false) => 'b',
            (false, false) => 'w',
        }))
    });
    let jpeg = encode(&stored.into(), ImageFormat::Jpeg);
    for (orientation, corners) in ORIENTATIONS {
        let decoded = decode(&with_orientation(&jpeg, orientation)).unwrap();
        let (width, height) = (decoded.width(), decoded.height());
        assert_eq!((width, height), if orientation < 5 { (64, 32) } else { (32, 64) }, "{orientation}");
        let at = [(4, 4), (width - 5, 4), (4, height - 5), (width - 5, height - 5)];
        for ((x, y), name) in at.into_iter().zip(corners.chars()) {
            assert_close(pixel(&decoded, x, y), colour_of(name), 12);
        }

        let reduced = decode_reduced(&with_orientation(&jpeg, orientation), 4).unwrap();
        let (width, height) = (reduced.width(), reduced.height());
        assert_eq!((width, height), if orientation < 5 { (8, 4) } else { (4, 8) }, "{orientation}");
        let at = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)];
        for ((x, y), name) in at.into_iter().zip(corners.chars()) {
            assert_close(pixel(&reduced, x, y), colour_of(name), 12);
        }
    }
}

#[test]
fn an_unknown_orientation_is_ignored() {
    let jpeg = encode(&gradient(8, 4), ImageFormat::Jpeg);
    for orientation in [0, 9, 255] {
        assert_eq!(decode(&with_orientation(&jpeg, orientation)).unwrap().width(), 8);
    }
}

#[test]
fn the_content_decides_not_the_name() {
    let original = gradient(5, 4);
    // `decode` calls every file image.jpg.
    assert_eq!(decode(&encode(&original, ImageFormat::Bmp)).unwrap().data(), original.as_bytes());
}

#[test]
fn what_is_no_image_is_named_with_the_reason() {
    for (bytes, reason) in [
        (&b""[..], "the file is empty"),
        (b"hello, this is no image\n", "its content is no image, expected jpeg, png, webp or bmp"),
        (b"GIF89a\x01\0\x01\0\0\0\0", "its content is Gif, expected jpeg, png, webp or bmp"),
    ] {
        assert_eq!(decode_error(bytes), format!("cannot decode some/image.jpg: {reason}"));
    }
}
