//! Decompression by what the bytes are, never by a name or a media type.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Cursor;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;

use crate::layer::header::BLOCK;
use crate::layer::read::is_header;

/// Compressed bytes read at a time.
const BUFFER: usize = 128 << 10;

/// A format, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Plain,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Format {
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame: some writers put their table of contents in front.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::Plain,
        }
    }
}

enum Decoder<B: BufRead> {
    Plain(B),
    Gzip(Box<MultiGzDecoder<B>>),
    Zstd(zstd::Decoder<'static, B>),
    Bzip2(MultiBzDecoder<B>),
    Xz(XzDecoder<B>),
}

impl<B: BufRead> Decoder<B> {
    fn new(format: Format, input: B) -> io::Result<Self> {
        Ok(match format {
            Format::Plain => Self::Plain(input),
            Format::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(input))),
            Format::Zstd => Self::Zstd(zstd::Decoder::with_buffer(input)?),
            Format::Bzip2 => Self::Bzip2(MultiBzDecoder::new(input)),
            Format::Xz => Self::Xz(XzDecoder::new_multi_decoder(input)),
        })
    }
}

impl<B: BufRead> Read for Decoder<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
            Self::Bzip2(reader) => reader.read(buffer),
            Self::Xz(reader) => reader.read(buffer),
        }
    }
}

/// Reads a layer blob as a tar: gzip with any number of members, zstd with any
/// number of frames, or what it is if it is neither.
///
/// # Errors
/// Those of reading the first bytes. Damage shows while reading.
pub fn reader(mut input: impl Read + Send) -> io::Result<impl Read + Send> {
    let head = head(&mut input, 6)?;
    let format = match Format::of(&head) {
        format @ (Format::Gzip | Format::Zstd) => format,
        _ => Format::Plain,
    };
    let whole = Cursor::new(head).chain(input);
    Decoder::new(format, BufReader::with_capacity(BUFFER, whole))
}

/// Reads what may be compressed by gzip, zstd, bzip2 or xz; anything else as it is.
///
/// # Errors
/// Those of reading the first bytes. Damage shows while reading.
pub fn any_reader(mut input: impl Read + Send) -> io::Result<impl Read + Send> {
    let head = head(&mut input, 6)?;
    let format = Format::of(&head);
    let whole = Cursor::new(head).chain(input);
    Decoder::new(format, BufReader::with_capacity(BUFFER, whole))
}

/// Reads `input` as a tar if it is one, plain or compressed by gzip, zstd, bzip2
/// or xz, judged as `ADD` judges: it decompresses, and a tar header comes first.
/// `None` if not; `input` then stands where it stood.
///
/// # Errors
/// Those of reading and seeking in `input`; damage inside means that it is no archive.
pub fn archive_reader<R: Read + Seek>(mut input: R) -> io::Result<Option<impl Read>> {
    let start = input.stream_position()?;
    let format = Format::of(&head(&mut input, 6)?);
    input.seek(SeekFrom::Start(start))?;
    let mut decoder = Decoder::new(format, BufReader::with_capacity(BUFFER, &mut input))?;
    // Whether reading or decompressing failed can't be told apart here; if it was
    // reading, whoever reads the file next meets it again.
    let head = head(&mut decoder, BLOCK).unwrap_or_default();
    drop(decoder);
    input.seek(SeekFrom::Start(start))?;
    if !is_header(&head) {
        return Ok(None);
    }
    Decoder::new(format, BufReader::with_capacity(BUFFER, input)).map(Some)
}

/// The first `length` bytes of `input`, fewer if it is shorter.
fn head(input: &mut impl Read, length: usize) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(length);
    input.by_ref().take(length as u64).read_to_end(&mut head)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::layer::compress::Compression;
    use crate::layer::compress::Compressor;

    fn compressed(bytes: &[u8], compression: Compression) -> Vec<u8> {
        let mut compressor = Compressor::new(Vec::new(), compression, 2).expect("a level");
        compressor.write_all(bytes).expect("a vector takes all");
        compressor.finish().expect("a vector takes all")
    }

    fn everything(mut reader: impl Read) -> Vec<u8> {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).expect("it decompresses");
        bytes
    }

    fn small_tar() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_cksum();
        tar.append_data(&mut header, "a", b"abc".as_slice()).expect("a vector takes all");
        tar.into_inner().expect("a vector takes all")
    }

    /// The same bytes in every format, by name.
    fn every_format(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(bytes).expect("a vector takes all");
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(bytes).expect("a vector takes all");
        let gzip = Compression::Gzip { level: 1, single_member: false };
        vec![
            ("plain", bytes.to_vec()),
            ("gzip", compressed(bytes, gzip)),
            ("zstd", compressed(bytes, Compression::Zstd { level: 1 })),
            ("bzip2", bzip2.finish().expect("a vector takes all")),
            ("xz", xz.finish().expect("a vector takes all")),
        ]
    }

    #[test]
    fn archives_are_recognised_in_every_format_and_other_files_are_not() {
        let tar = small_tar();
        for (name, bytes) in every_format(&tar) {
            let found = archive_reader(Cursor::new(bytes)).expect("memory is readable");
            assert_eq!(everything(found.expect(name)), tar, "{name}");
        }
        for (name, bytes) in every_format(&vec![b'x'; 4096]) {
            let mut file = Cursor::new(bytes.clone());
            assert!(archive_reader(&mut file).expect("readable").is_none(), "{name}");
            assert_eq!(everything(file), bytes, "{name} stands at its start again");
        }
        for bytes in [&b""[..], b"BZh9 but not really", &[0x1f, 0x8b, 8, 0], &[0; 1024]] {
            assert!(archive_reader(Cursor::new(bytes)).expect("readable").is_none());
        }
    }

    #[test]
    fn a_stream_in_any_format_is_read_as_what_was_compressed() {
        let bytes = vec![b'x'; 200_000];
        for (name, compressed) in every_format(&bytes) {
            let found = everything(any_reader(compressed.as_slice()).expect("readable"));
            assert!(found == bytes, "{name}");
        }
        assert_eq!(everything(any_reader(&b"BZ"[..]).expect("readable")), b"BZ");
    }

    #[test]
    fn layers_of_several_members_and_frames_are_read_to_the_end() {
        let bytes: Vec<u8> = (0..5 << 20).map(|at: u32| (at.wrapping_mul(at) >> 7) as u8).collect();
        for compression in [
            Compression::None,
            Compression::Gzip { level: 1, single_member: false },
            Compression::Gzip { level: 1, single_member: true },
            Compression::Zstd { level: 1 },
        ] {
            let blob = compressed(&bytes, compression);
            let found = everything(reader(blob.as_slice()).expect("memory is readable"));
            assert!(found == bytes, "{}", compression.label());
        }
    }

    #[test]
    fn a_cut_layer_is_an_error_and_not_a_short_layer() {
        let bytes = vec![b'x'; 100_000];
        for (name, blob) in every_format(&bytes).into_iter().filter(|(name, _)| *name != "plain") {
            if !matches!(name, "gzip" | "zstd") {
                continue;
            }
            let mut found = Vec::new();
            let cut = &blob[..blob.len() - 3];
            let result = reader(cut).expect("readable").read_to_end(&mut found);
            assert!(result.is_err(), "{name}");
        }
    }
}
