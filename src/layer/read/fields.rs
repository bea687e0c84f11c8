//! Fields of a tar header block: strings, octal and base-256 numbers, checksum.

use std::ops::Range;

use crate::layer::error::Fault;
use crate::layer::header::BLOCK;

pub(super) type Block = [u8; BLOCK];

pub(super) const NAME: Range<usize> = 0..100;
pub(super) const MODE: Range<usize> = 100..108;
pub(super) const UID: Range<usize> = 108..116;
pub(super) const GID: Range<usize> = 116..124;
pub(super) const SIZE: Range<usize> = 124..136;
pub(super) const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
pub(super) const TYPE: usize = 156;
pub(super) const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
pub(super) const MAJOR: Range<usize> = 329..337;
pub(super) const MINOR: Range<usize> = 337..345;
const USTAR_PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_TRAILER: Range<usize> = 508..512;

/// The dialect of a header, told by its magic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialect {
    /// No magic: no devices, no prefix.
    V7,
    /// POSIX ustar and PAX.
    Ustar,
    /// Schily's star: a shorter prefix.
    Star,
    /// GNU: no prefix, sparse maps.
    Gnu,
}

pub(super) fn dialect(block: &Block) -> Dialect {
    match &block[MAGIC] {
        b"ustar  \0" => Dialect::Gnu,
        magic if magic.starts_with(b"ustar\0") => {
            if &block[STAR_TRAILER] == b"tar\0" {
                Dialect::Star
            } else {
                Dialect::Ustar
            }
        }
        _ => Dialect::V7,
    }
}

/// Whether the checksum of `block` is right. Some old writers summed signed bytes.
pub(in crate::layer) fn checksum_matches(block: &Block) -> bool {
    let Ok(expected) = number(&block[CHECKSUM], "checksum") else { return false };
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if CHECKSUM.contains(&at) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    expected == unsigned || expected == signed
}

/// A string field: up to its first NUL.
pub(super) fn string(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// The whole name of `block`.
pub(super) fn name(block: &Block) -> Vec<u8> {
    let prefix = match dialect(block) {
        Dialect::Ustar => string(&block[USTAR_PREFIX]),
        Dialect::Star => string(&block[STAR_PREFIX]),
        Dialect::V7 | Dialect::Gnu => b"",
    };
    let name = string(&block[NAME]);
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// A number field: octal between spaces and NULs, or GNU's base 256 (two's
/// complement, marked by the highest bit). Empty is 0.
pub(super) fn number(field: &[u8], called: &'static str) -> Result<i64, Fault> {
    let bad = || Fault::Number(called);
    match field.first() {
        Some(&first) if first & 0x80 != 0 => {
            // The mark is replaced by the sign, which stands in the next bit.
            let negative = first & 0x40 != 0;
            let mut value: i64 = if negative { -1 } else { 0 };
            for (at, &byte) in field.iter().enumerate() {
                let byte = match (at, negative) {
                    (0, false) => byte & 0x7f,
                    (0, true) => byte | 0x80,
                    _ => byte,
                };
                value = value.checked_mul(256).ok_or_else(bad)? | i64::from(byte);
            }
            Ok(value)
        }
        _ => {
            let is_filler = |byte: &u8| *byte == b' ' || *byte == 0;
            let Some(start) = field.iter().position(|byte| !is_filler(byte)) else { return Ok(0) };
            let rest = &field[start..];
            let end = rest.iter().position(is_filler).unwrap_or(rest.len());
            if !rest[end..].iter().all(is_filler) {
                return Err(bad());
            }
            rest[..end].iter().try_fold(0_i64, |value, &byte| {
                let digit = (b'0'..=b'7').contains(&byte).then(|| i64::from(byte - b'0'));
                digit.and_then(|digit| value.checked_mul(8)?.checked_add(digit)).ok_or_else(bad)
            })
        }
    }
}

/// A number field that can't be negative.
pub(super) fn unsigned(field: &[u8], called: &'static str) -> Result<u64, Fault> {
    u64::try_from(number(field, called)?).map_err(|_| Fault::Number(called))
}

/// A number field that fits 32 bits.
pub(super) fn small(field: &[u8], called: &'static str) -> Result<u32, Fault> {
    u32::try_from(number(field, called)?).map_err(|_| Fault::Number(called))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_every_dialect() {
        for (field, expected) in [
            (b"0000644\0".as_slice(), 0o644),
            (b" 644 \0\0\0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"77777777", 0o77_777_777),
            (b"\x80\0\0\0\0\0\x01\x02", 258),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        ] {
            assert_eq!(number(field, "x"), Ok(expected), "{field:?}");
        }
        for field in [b"12a\0".as_slice(), b"8\0\0\0", b"-1\0\0", b"1 2\0"] {
            assert!(number(field, "x").is_err(), "{field:?}");
        }
        assert!(number(&[0xbf; 12], "x").is_err(), "above 64 bits");
        assert!(unsigned(&[0xff; 12], "x").is_err(), "negative");
    }
}
