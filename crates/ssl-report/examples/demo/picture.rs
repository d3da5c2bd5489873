//! Small pictures and the bytes of a PNG file, without compression.

/// A soft shape on a dark ground.
pub(crate) fn blob(kind: usize, x: usize, y: usize) -> [u8; 3] {
    let (x, y) = (x as f64 / 14.0 - 1.0, y as f64 / 14.0 - 1.0);
    let lobes = (kind % 4 + 2) as f64;
    let reach = 0.62 + 0.2 * (lobes * y.atan2(x) + kind as f64).cos();
    let light = (1.0 - (x.hypot(y) / reach).powi(4)).clamp(0.0, 1.0);
    let tint = [1.0, 0.82 + 0.15 * (kind as f64).sin(), 0.7];
    tint.map(|t| (24.0 + 220.0 * t * light) as u8)
}

/// A PNG file of stored blocks.
pub(crate) fn png(width: usize, height: usize, pixel: impl Fn(usize, usize) -> [u8; 3]) -> Vec<u8> {
    let mut raw = Vec::new();
    for y in 0..height {
        // Each row begins with the number of its filter, none.
        raw.push(0);
        raw.extend((0..width).flat_map(|x| pixel(x, y)));
    }
    let mut data = vec![0x78, 0x01];
    let blocks = raw.chunks(0xffff).count();
    for (n, block) in raw.chunks(0xffff).enumerate() {
        let length = block.len() as u16;
        data.push(u8::from(n + 1 == blocks));
        data.extend(length.to_le_bytes());
        data.extend((!length).to_le_bytes());
        data.extend(block);
    }
    let (a, b) = raw.iter().fold((1, 0), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    data.extend((b << 16 | a).to_be_bytes());
    let mut header = [(width as u32).to_be_bytes(), (height as u32).to_be_bytes()].concat();
    header.extend([8, 2, 0, 0, 0]);
    let chunks = [chunk(b"IHDR", &header), chunk(b"IDAT", &data), chunk(b"IEND", &[])].concat();
    [&b"\x89PNG\r\n\x1a\n"[..], &chunks].concat()
}

fn chunk(name: &[u8], data: &[u8]) -> Vec<u8> {
    let body = [name, data].concat();
    let crc = !body.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    });
    [&(data.len() as u32).to_be_bytes()[..], &body, &crc.to_be_bytes()].concat()
}
