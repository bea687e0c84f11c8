use std::io::Read;

use super::*;

const SETTINGS: [Compression; 4] = [
    Compression::None,
    Compression::Gzip { level: 1, single_member: false },
    Compression::Gzip { level: 6, single_member: true },
    Compression::Zstd { level: 3 },
];

fn compress(bytes: &[u8], compression: Compression, threads: usize, piece: usize) -> Vec<u8> {
    let mut compressor = Compressor::new(Vec::new(), compression, threads).expect("a level");
    for piece in bytes.chunks(piece) {
        compressor.write_all(piece).expect("a vector takes all");
    }
    compressor.finish().expect("a vector takes all")
}

/// Bytes that compress somewhat.
fn text(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * at) >> 9) as u8 & 0x3f).collect()
}

#[test]
fn the_bytes_do_not_depend_on_threads_or_on_how_they_were_written() {
    let bytes = text(7 * GZIP_BLOCK + 12_345);
    for setting in SETTINGS {
        let one = compress(&bytes, setting, 1, bytes.len());
        for (threads, piece) in [(0, 999_983), (2, 8191), (5, bytes.len())] {
            assert!(compress(&bytes, setting, threads, piece) == one, "{}", setting.label());
        }
    }
}

#[test]
fn nothing_becomes_a_valid_empty_file() {
    for setting in SETTINGS {
        for length in [0, GZIP_BLOCK, ZSTD_BLOCK] {
            let blob = compress(&text(length), setting, 2, 1 << 20);
            assert!(length > 0 || setting == Compression::None || !blob.is_empty());
            let mut found = Vec::new();
            crate::layer::decompress::reader(blob.as_slice())
                .and_then(|mut reader| reader.read_to_end(&mut found))
                .expect("it decompresses");
            assert!(found == text(length), "{} {length}", setting.label());
        }
    }
}

/// Takes some bytes, then fails.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_error_of_the_writer_surfaces_and_stays() {
    // Random enough not to shrink below the limit.
    let mut bytes = vec![0; 8 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    for setting in SETTINGS {
        for threads in [1, 3] {
            let mut compressor = Compressor::new(Full(100_000), setting, threads).expect("a level");
            let written = compressor.write_all(&bytes);
            assert!(written.is_err() || compressor.finish().is_err(), "{}", setting.label());
        }
    }
}

#[test]
fn a_dropped_compressor_ends_its_threads() {
    let setting = Compression::Gzip { level: 1, single_member: false };
    let mut compressor = Compressor::new(Vec::new(), setting, 3).expect("a level");
    compressor.write_all(&text(3 * GZIP_BLOCK)).expect("a vector takes all");
    drop(compressor);
}

#[test]
fn levels_out_of_range_are_refused() {
    for bad in [
        Compression::Gzip { level: 13, single_member: false },
        Compression::Gzip { level: 10, single_member: true },
        Compression::Zstd { level: 0 },
        Compression::Zstd { level: 23 },
    ] {
        assert!(Compressor::new(Vec::new(), bad, 1).is_err(), "{}", bad.label());
    }
}

#[test]
fn labels_are_stable() {
    let labels = SETTINGS.map(|setting| setting.label());
    assert_eq!(labels, ["none", "gzip-members-1", "gzip-single-6", "zstd-frames-3"]);
}
