//! PAX extended headers: records, times, extended attributes.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::GeneralPurpose;
use base64::engine::GeneralPurposeConfig;

use crate::layer::error::Fault;
use crate::tree::Timestamp;
use crate::tree::Xattr;

/// libarchive leaves the padding out; others don't.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The records of one extended header.
#[derive(Default, Debug)]
pub(super) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.offset` and `GNU.sparse.numbytes`, which repeat (sparse format 0.0).
    pub(super) sparse: Vec<(u64, u64)>,
}

impl Records {
    /// Reads `length key=value\n` records. The last of equal keys counts; an
    /// empty value takes the key back.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, Fault> {
        let mut records = Self::default();
        let mut offset = None;
        while !bytes.is_empty() {
            let bad = || Fault::ExtendedHeader;
            let space = bytes.iter().position(|&byte| byte == b' ').ok_or_else(bad)?;
            let length = usize::try_from(decimal(&bytes[..space], "length")?).map_err(|_| bad())?;
            let record = bytes.get(space + 1..length).ok_or_else(bad)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.is_empty() || key.contains(&0) {
                return Err(bad());
            }
            match key {
                b"GNU.sparse.offset" => {
                    if offset.replace(decimal(value, "GNU.sparse.offset")?).is_some() {
                        return Err(Fault::SparseMap);
                    }
                }
                b"GNU.sparse.numbytes" => {
                    let offset = offset.take().ok_or(Fault::SparseMap)?;
                    records.sparse.push((offset, decimal(value, "GNU.sparse.numbytes")?));
                }
                _ if value.is_empty() => {
                    records.values.remove(key);
                }
                _ => {
                    records.values.insert(key.to_vec(), value.to_vec());
                }
            }
            bytes = &bytes[length..];
        }
        if offset.is_some() {
            return Err(Fault::SparseMap);
        }
        Ok(records)
    }

    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key.as_bytes()).map(Vec::as_slice)
    }

    /// A record that holds a decimal number.
    pub(super) fn number(&self, key: &'static str) -> Result<Option<u64>, Fault> {
        self.get(key).map(|value| decimal(value, key)).transpose()
    }

    /// A record that holds a user or group.
    pub(super) fn id(&self, key: &'static str) -> Result<Option<u32>, Fault> {
        match self.number(key)? {
            None => Ok(None),
            Some(id) => u32::try_from(id).map(Some).map_err(|_| Fault::Number(key)),
        }
    }

    /// The modification time.
    pub(super) fn mtime(&self) -> Result<Option<Timestamp>, Fault> {
        self.get("mtime").map(time).transpose()
    }

    /// Extended attributes, sorted by name. star's spelling wins over libarchive's.
    pub(super) fn xattrs(&self) -> Result<Vec<Xattr>, Fault> {
        let mut found = BTreeMap::new();
        for (key, value) in &self.values {
            if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                let value = BASE64.decode(value).map_err(|_| Fault::Xattr)?;
                found.insert(percent_decoded(name)?, value);
            }
        }
        for (key, value) in &self.values {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                found.insert(name.to_vec(), value.clone());
            }
        }
        if found.keys().any(|name| name.is_empty() || name.contains(&0)) {
            return Err(Fault::Xattr);
        }
        Ok(found.into_iter().collect())
    }
}

/// Reads digits and nothing else.
pub(super) fn decimal(text: &[u8], called: &'static str) -> Result<u64, Fault> {
    let bad = || Fault::Number(called);
    if text.is_empty() {
        return Err(bad());
    }
    text.iter().try_fold(0_u64, |value, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
        digit.and_then(|digit| value.checked_mul(10)?.checked_add(digit)).ok_or_else(bad)
    })
}

/// Reads `[-]seconds[.fraction]`; what is finer than a nanosecond is dropped.
fn time(text: &[u8]) -> Result<Timestamp, Fault> {
    let bad = || Fault::Number("mtime");
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|&byte| byte == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..dot], "mtime")?).map_err(|_| bad())?;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let nanoseconds = (0..9).fold(0, |value, at| {
        value * 10 + fraction.get(at).map_or(0, |&digit| u32::from(digit - b'0'))
    });
    Ok(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp::seconds(-seconds),
        (true, _) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

fn percent_decoded(name: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            let &byte = rest.next()?;
            char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok())
        };
        let (high, low) = digit().zip(digit()).ok_or(Fault::Xattr)?;
        out.push(high << 4 | low);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_by_their_length_not_by_newlines() {
        let records = Records::parse(b"12 path=a\nb\n8 a=bcd\n5 a=\n").expect("well formed");
        assert_eq!(records.get("path"), Some(b"a\nb".as_slice()));
        assert_eq!(records.get("a"), None, "an empty value takes the key back");
        for bad in
            ["x", "5 a=b", "9 a=b\n", "6 a=bc\n", "4 =\n", "99999999999999999999 a=b\n", "1 \n"]
        {
            assert!(Records::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_before_the_epoch_count_forward_from_a_whole_second() {
        assert_eq!(time(b"1.5"), Ok(Timestamp { seconds: 1, nanoseconds: 500_000_000 }));
        assert_eq!(time(b"-1.25"), Ok(Timestamp { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(time(b"-3"), Ok(Timestamp::seconds(-3)));
        assert_eq!(time(b"1.0000000019"), Ok(Timestamp { seconds: 1, nanoseconds: 1 }));
        assert!(time(b"").is_err() && time(b"1.x").is_err() && time(b"--1").is_err());
    }

    #[test]
    fn both_spellings_of_extended_attributes_are_understood() {
        let records = Records::parse(
            b"31 LIBARCHIVE.xattr.user.b=AQI\n34 LIBARCHIVE.xattr.user.%61=AA==\n21 SCHILY.xattr.z=\0\x01\n",
        )
        .expect("well formed");
        let expected = [
            (b"user.a".to_vec(), vec![0]),
            (b"user.b".to_vec(), vec![1, 2]),
            (b"z".to_vec(), vec![0, 1]),
        ];
        assert_eq!(records.xattrs(), Ok(expected.to_vec()));
    }
}
