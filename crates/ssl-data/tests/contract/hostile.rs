//! Files that are broken, truncated or made to exhaust memory.

use std::path::Path;

use image::ImageFormat;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use ssl_data::{Error, Limits, Resolution, decode_bytes, decode_file};

use crate::fixtures::{decode, decode_error, encode, golden, gradient, idx, open, png, write};

/// One file of each kind that the decoders treat differently.
fn files() -> Vec<Vec<u8>> {
    let picture = gradient(40, 24);
    let sixteen_bit = image::DynamicImage::ImageRgb16(picture.to_rgb16());
    let palette = png((4, 1), 2, 3, &[(b"PLTE", &[7; 12])], &[0, 0b00_01_10_11]);
    let mut files = vec![encode(&sixteen_bit, ImageFormat::Png), palette];
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp] {
        files.push(encode(&picture, format));
    }
    files.extend(["progressive.jpg", "cmyk.jpg", "lossy.webp", "animated.webp"].map(golden));
    files
}

#[test]
fn no_shorter_file_passes_for_a_whole_one() {
    for file in files() {
        decode(&file).unwrap();
        for cut in 0..file.len() {
            let error = decode(&file[..cut]).unwrap_err();
            assert!(matches!(error, Error::Decode { .. }), "cut at {cut} of {}: {error}", file.len());
            assert!(!error.to_string().contains('\n'), "{error:?}");
        }
    }
}

#[test]
fn truncation_is_the_reason_that_is_given() {
    for file in [encode(&gradient(64, 48), ImageFormat::Jpeg), golden("progressive.jpg")] {
        for cut in [20, file.len() / 2, file.len() - 1] {
            let message = decode_error(&file[..cut]);
            assert!(message.ends_with("the file is truncated: no end-of-image marker"), "{message}");
        }
    }
    let file = encode(&gradient(64, 48), ImageFormat::Png);
    let message = decode_error(&file[..file.len() - 6]);
    assert!(message.ends_with("the file is truncated: no IEND chunk"), "{message}");
}

#[test]
fn the_end_of_a_thumbnail_is_not_the_end_of_the_image() {
    let thumbnail = encode(&gradient(8, 8), ImageFormat::Jpeg);
    let length = (thumbnail.len() as u16 + 2).to_be_bytes();
    let jpeg = encode(&gradient(64, 48), ImageFormat::Jpeg);
    let file = [&jpeg[..2], &[0xff, 0xe1], &length, &thumbnail, &jpeg[2..]].concat();
    decode(&file).unwrap();
    assert!(decode_error(&file[..file.len() - 40]).contains("truncated"));
}

#[test]
fn bytes_behind_the_end_are_ignored() {
    for file in files() {
        decode(&[&file[..], b"appended by a phone"].concat()).unwrap();
    }
}

#[test]
fn a_huge_png_is_refused_from_its_header() {
    // 60,000 x 60,000 pixels would be 10.8 GB; the file has a few dozen bytes.
    let message = decode_error(&png((60_000, 60_000), 8, 2, &[], &[]));
    assert!(message.ends_with("60000x60000 pixels, more than the limit of 16384 on a side"), "{message}");
    let message = decode_error(&png((16_384, 16_384), 8, 2, &[], &[]));
    assert!(message.ends_with("16384x16384 pixels, more than the limit of 100000000 in all"), "{message}");
    let message = decode_error(&png((10_000, 10_000), 16, 6, &[], &[]));
    assert!(
        message.contains("decoding needs 1100000000 bytes, more than the limit of 536870912"),
        "{message}"
    );
}

#[test]
fn a_huge_jpeg_is_refused_from_its_header() {
    let mut file = golden("progressive.jpg");
    let frame = file.windows(2).position(|marker| marker == [0xff, 0xc2]).unwrap();
    let mut resize = |width: u16, height: u16| {
        file[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
        file[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
        decode_error(&file)
    };
    assert!(resize(65_500, 65_500).contains("65500x65500 pixels"));
    // The pixels would fit into the limit, the coefficients beside them do not.
    assert!(resize(10_000, 10_000).contains("decoding needs 1100000000 bytes"));
}

#[test]
fn each_limit_is_inclusive() {
    let file = encode(&gradient(20, 10), ImageFormat::Png);
    let exact = Limits { max_side: 20, max_pixels: 200, max_alloc_bytes: 600, ..Limits::default() };
    let decode_within = |limits: &Limits| decode_bytes(&file, Path::new("x.png"), limits, None);
    decode_within(&exact).unwrap();
    decode_within(&Limits { max_side: 19, ..exact.clone() }).unwrap_err();
    decode_within(&Limits { max_pixels: 199, ..exact.clone() }).unwrap_err();
    decode_within(&Limits { max_alloc_bytes: 599, ..exact }).unwrap_err();
}

#[test]
fn a_reduced_image_needs_less_memory() {
    let file = golden("progressive.jpg");
    let width_within = |max_alloc_bytes, resolution| {
        let limits = Limits { max_alloc_bytes, ..Limits::default() };
        decode_bytes(&file, Path::new("x.jpg"), &limits, resolution).map(|image| image.width()).ok()
    };
    // Whole: coefficients of four components and 48x32 pixels. Reduced: those of three, planes and pixels of 6x4.
    let (whole, reduced) = (48 * 32 * (8 + 3), 48 * 32 * 6 + 6 * 4 * 6);
    assert_eq!((width_within(whole, None), width_within(whole - 1, None)), (Some(48), None));
    let smallest = Some(Resolution::default());
    assert_eq!((width_within(reduced, smallest), width_within(reduced - 1, smallest)), (Some(6), None));
}

#[test]
fn a_file_over_the_limit_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = encode(&gradient(20, 10), ImageFormat::Png);
    write(folder.path(), "a.png", &file);
    let decode_within = |max_file_bytes| {
        decode_file(&folder.path().join("a.png"), &Limits { max_file_bytes, ..Limits::default() }, None)
    };
    decode_within(file.len() as u64).unwrap();
    let message = decode_within(file.len() as u64 - 1).unwrap_err().to_string();
    assert!(message.contains("a.png") && message.contains("larger than the limit"), "{message}");
}

#[test]
fn a_missing_file_is_named() {
    let message =
        decode_file(Path::new("/nonexistent/a.png"), &Limits::default(), None).unwrap_err().to_string();
    assert!(message.starts_with("cannot decode /nonexistent/a.png: cannot be read: "), "{message}");
}

/// Runs a property on the same cases every time.
fn check<T: std::fmt::Debug>(cases: u32, strategy: impl Strategy<Value = T>, property: impl Fn(T)) {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::with_cases(cases), rng);
    let run = runner.run(&strategy, |value| {
        property(value);
        Ok::<(), TestCaseError>(())
    });
    run.unwrap();
}

/// Decodes within small limits, so that a changed header costs no time, and checks that these held.
fn survives(bytes: &[u8]) {
    let limits =
        Limits { max_side: 2_000, max_pixels: 1 << 18, max_alloc_bytes: 1 << 22, ..Limits::default() };
    // Whole, and as small as can be.
    for resolution in [None, Some(Resolution::default())] {
        match decode_bytes(bytes, Path::new("x"), &limits, resolution) {
            Ok(image) => {
                assert!(0 < image.width() * image.height() && image.width() * image.height() <= 1 << 18);
                assert_eq!(image.data().len(), 3 * image.width() * image.height());
            }
            Err(error) => assert!(matches!(error, Error::Decode { .. }), "{error}"),
        }
    }
}

#[test]
fn random_bytes_behind_a_signature_never_panic() {
    let signatures: [&[u8]; 6] = [
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x20\0\0\0WEBPVP8L",
        b"RIFF\x20\0\0\0WEBPVP8X",
        b"BM",
    ];
    let signature = proptest::sample::select(signatures.to_vec());
    check(2_000, (signature, vec(any::<u8>(), 0..200)), |(signature, bytes)| {
        survives(&[signature, &bytes].concat())
    });
}

#[test]
fn damaged_files_never_panic() {
    #[derive(Clone, Debug)]
    enum Damage {
        Flip(u8),
        Set(u8),
        Remove,
        Duplicate,
    }
    let damage = prop_oneof![
        (0..8_u8).prop_map(Damage::Flip),
        any::<u8>().prop_map(Damage::Set),
        Just(Damage::Remove),
        Just(Damage::Duplicate)
    ];
    let damages = vec((any::<Index>(), damage), 1..8);
    check(4_000, (proptest::sample::select(files()), damages), |(mut file, damages)| {
        for (place, damage) in damages {
            let at = place.index(file.len());
            match damage {
                Damage::Flip(bit) => file[at] ^= 1 << bit,
                Damage::Set(byte) => file[at] = byte,
                Damage::Remove => drop(file.drain(at..(at + 9).min(file.len() - 1).max(at))),
                Damage::Duplicate => file.insert(at, file[at]),
            }
        }
        survives(&file);
    });
}

#[test]
fn random_idx_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = vec(prop_oneof![0..5_u32, any::<u32>()], 1..5);
    check(500, (sizes, vec(any::<u8>(), 0..80), any::<bool>()), |(sizes, data, zipped)| {
        let file = if zipped { [&[0x1f, 0x8b][..], &data].concat() } else { idx(&sizes, &data) };
        write(folder.path(), "train-images-idx3-ubyte", &file);
        if let Ok(splits) = open(folder.path()) {
            for index in 0..splits.train.len() {
                splits.train.get(index).unwrap();
            }
        }
    });
}
