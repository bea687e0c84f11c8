//! Tar headers, byte for byte as Go's `archive/tar` writes them for BuildKit.
//!
//! An entry is plain ustar where that can say everything, with the name split at
//! a slash when it is long; else a PAX extended header stands before it. Records
//! are sorted by key. Source: POSIX `pax`, "ustar Interchange Format"; Go
//! `archive/tar`, `Header.allowedFormats` and `Writer.writePAXHeader`.

use crate::tree::Device;

/// Size of everything in a tar.
pub(super) const BLOCK: usize = 512;

const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const UID: std::ops::Range<usize> = 108..116;
const GID: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;
const MTIME: std::ops::Range<usize> = 136..148;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..265;
const MAJOR: std::ops::Range<usize> = 329..337;
const MINOR: std::ops::Range<usize> = 337..345;
const PREFIX: std::ops::Range<usize> = 345..500;

/// Everything that an entry says about itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Header<'a> {
    /// Directories end in a slash.
    pub(super) name: &'a [u8],
    /// Target of a symbolic or hard link.
    pub(super) link: &'a [u8],
    /// The type flag: `0` file, `1` hard link, `2` symbolic link and so on.
    pub(super) flag: u8,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    /// Seconds since the epoch.
    pub(super) mtime: i64,
    pub(super) device: Device,
    /// Value of `security.capability`.
    pub(super) capability: Option<&'a [u8]>,
}

/// Appends the header blocks of an entry to `out`: one, or with an extended
/// header three or more.
///
/// # Errors
/// What a tar can't say, as a reason.
pub(super) fn encode(header: &Header<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
    if !fits(&MAJOR, header.device.major.into()) || !fits(&MINOR, header.device.minor.into()) {
        return Err("its device number is too large");
    }
    if header.name.contains(&0) || header.link.contains(&0) {
        return Err("its name or target holds a NUL byte");
    }
    let split = split(header.name);
    let records = records(header, split.is_none());
    if records.is_empty() {
        let (prefix, name) = split.unwrap_or((b"", header.name));
        plain(header, name, prefix, out);
        return Ok(());
    }
    extended(header.name, &records, out)?;
    plain(&Header { link: &ascii(header.link), ..header.clone() }, &ascii(header.name), b"", out);
    Ok(())
}

/// The PAX records that `header` needs, sorted by key.
fn records(header: &Header<'_>, whole_name: bool) -> Vec<u8> {
    let name_fits = is_ascii(header.name) && header.name.len() <= NAME.len();
    let link_fits = is_ascii(header.link) && header.link.len() <= LINK.len();
    let mtime_fits = u64::try_from(header.mtime).is_ok_and(|mtime| fits(&MTIME, mtime));
    let mut out = Vec::new();
    if let Some(capability) = header.capability {
        record(&mut out, b"SCHILY.xattr.security.capability", capability);
    }
    if !fits(&GID, header.gid.into()) {
        record(&mut out, b"gid", header.gid.to_string().as_bytes());
    }
    if !link_fits {
        record(&mut out, b"linkpath", header.link);
    }
    if !mtime_fits {
        record(&mut out, b"mtime", header.mtime.to_string().as_bytes());
    }
    let before_name = out.len();
    let mut behind_name = Vec::new();
    if !fits(&SIZE, header.size) {
        record(&mut behind_name, b"size", header.size.to_string().as_bytes());
    }
    if !fits(&UID, header.uid.into()) {
        record(&mut behind_name, b"uid", header.uid.to_string().as_bytes());
    }
    // A long name that ustar could split gets its record only if there is one anyway.
    let others = before_name + behind_name.len() > 0;
    if !name_fits && (whole_name || others) {
        record(&mut out, b"path", header.name);
    }
    out.extend_from_slice(&behind_name);
    out
}

/// One PAX record: its own length in decimal, a space, `key=value`, a newline.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + digits(rest);
    // The length counts its own digits, so adding them can add one more.
    if rest + digits(length) != length {
        length = rest + digits(length);
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn digits(value: usize) -> usize {
    value.checked_ilog10().unwrap_or(0) as usize + 1
}

/// Appends the extended header entry in front of `name`.
fn extended(name: &[u8], records: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    let cut = name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let (directory, file) = name.split_at(cut);
    let directory = directory.strip_prefix(b"./").unwrap_or(directory);
    let mut title = ascii(&[directory, b"PaxHeaders.0/", file].concat());
    title.truncate(NAME.len());
    while title.last() == Some(&b'/') {
        title.pop();
    }
    let mut block = [0; BLOCK];
    string(&mut block[NAME], &title);
    for field in [MODE, UID, GID, MTIME] {
        octal(&mut block[field], 0);
    }
    let size = records.len() as u64;
    if !fits(&SIZE, size) {
        return Err("its extended attributes are too large");
    }
    octal(&mut block[SIZE], size);
    block[TYPE] = b'x';
    seal(&mut block);
    out.extend_from_slice(&block);
    out.extend_from_slice(records);
    out.resize(out.len() + padding(size), 0);
    Ok(())
}

/// Appends the header block itself. Numbers that don't fit become zero, and
/// strings are cut: an extended header tells the truth then.
fn plain(header: &Header<'_>, name: &[u8], prefix: &[u8], out: &mut Vec<u8>) {
    let mut block = [0; BLOCK];
    string(&mut block[NAME], name);
    octal(&mut block[MODE], header.mode.into());
    octal(&mut block[UID], header.uid.into());
    octal(&mut block[GID], header.gid.into());
    octal(&mut block[SIZE], header.size);
    octal(&mut block[MTIME], u64::try_from(header.mtime).unwrap_or(0));
    block[TYPE] = header.flag;
    string(&mut block[LINK], header.link);
    octal(&mut block[MAJOR], header.device.major.into());
    octal(&mut block[MINOR], header.device.minor.into());
    string(&mut block[PREFIX], prefix);
    seal(&mut block);
    out.extend_from_slice(&block);
}

/// Writes magic and checksum.
fn seal(block: &mut [u8; BLOCK]) {
    block[MAGIC].copy_from_slice(b"ustar\x0000");
    block[CHECKSUM].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    octal(&mut block[CHECKSUM.start..CHECKSUM.end - 1], sum);
}

fn string(field: &mut [u8], bytes: &[u8]) {
    let taken = bytes.len().min(field.len());
    field[..taken].copy_from_slice(&bytes[..taken]);
    // A cut name that happens to end in a slash would be taken for a directory.
    if bytes.len() > field.len() && field.last() == Some(&b'/') {
        let end = field.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
        field[end] = 0;
    }
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let mut rest = if fits(&(0..field.len()), value) { value } else { 0 };
    for digit in field[..digits].iter_mut().rev() {
        *digit = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    field[digits] = 0;
}

/// Whether `value` can be written in octal into the field, which ends in a NUL.
fn fits(field: &std::ops::Range<usize>, value: u64) -> bool {
    value < 1 << (3 * (field.len() - 1))
}

/// Splits a name that is too long for its field into prefix and name at a slash,
/// if that helps.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= NAME.len() || !is_ascii(name) {
        return None;
    }
    let mut length = name.len();
    if length > PREFIX.len() + 1 {
        length = PREFIX.len() + 1;
    } else if name.ends_with(b"/") {
        length -= 1;
    }
    let slash = name[..length].iter().rposition(|&byte| byte == b'/')?;
    let (prefix, rest) = (&name[..slash], &name[slash + 1..]);
    let bad = prefix.is_empty() || rest.is_empty() || rest.len() > NAME.len();
    (!bad && prefix.len() <= PREFIX.len()).then_some((prefix, rest))
}

fn is_ascii(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte != 0 && byte < 0x80)
}

/// What is left of `bytes` when everything that is no ASCII is dropped.
fn ascii(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|&byte| byte != 0 && byte < 0x80).collect()
}

/// Bytes from `size` to the end of its block.
pub(super) fn padding(size: u64) -> usize {
    (size.wrapping_neg() % BLOCK as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(header: &Header<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        encode(header, &mut out).expect("it can be said");
        assert_eq!(out.len() % BLOCK, 0);
        out
    }

    #[test]
    fn a_record_counts_its_own_digits() {
        for (value, expected) in [(3, "8 a=xxx\n"), (4, "9 a=xxxx\n"), (5, "11 a=xxxxx\n")] {
            let mut out = Vec::new();
            record(&mut out, b"a", &vec![b'x'; value]);
            assert_eq!(out, expected.as_bytes());
        }
        for length in 0..1200 {
            let mut out = Vec::new();
            record(&mut out, b"key", &vec![b'x'; length]);
            let text = String::from_utf8(out).expect("ASCII");
            let (count, _) = text.split_once(' ').expect("a space");
            assert_eq!(count.parse(), Ok(text.len()));
        }
    }

    #[test]
    fn long_names_are_split_where_ustar_can_and_extended_where_it_cannot() {
        let splittable = [b"d".repeat(80), b"/".to_vec(), b"f".repeat(90)].concat();
        let out = blocks(&Header { name: &splittable, flag: b'0', ..Header::default() });
        assert_eq!(out.len(), BLOCK);
        assert_eq!(&out[PREFIX][..81], [b"d".repeat(80), vec![0]].concat());

        let solid = b"f".repeat(101);
        let out = blocks(&Header { name: &solid, flag: b'0', ..Header::default() });
        assert_eq!(out.len(), 3 * BLOCK);
        assert!(out.starts_with(b"PaxHeaders.0/fff"));
        assert_eq!((out[TYPE], out[2 * BLOCK + TYPE]), (b'x', b'0'));

        // Another reason for an extended header brings the whole name along.
        let out = blocks(&Header { name: &splittable, uid: 1 << 21, ..Header::default() });
        let text = String::from_utf8_lossy(&out[BLOCK..2 * BLOCK]);
        assert!(text.contains(" path=ddd") && text.contains(" uid=2097152\n"), "{text}");
    }

    #[test]
    fn non_ascii_names_and_odd_times_go_into_records_sorted_by_key() {
        let out = blocks(&Header {
            name: "ä/é".as_bytes(),
            link: "ö".as_bytes(),
            flag: b'2',
            mtime: -5,
            gid: 1 << 22,
            size: 1 << 33,
            capability: Some(b"\x01\0"),
            ..Header::default()
        });
        assert!(out.starts_with(b"/PaxHeaders.0\0"), "what is not ASCII is dropped");
        let expected = [
            b"39 SCHILY.xattr.security.capability=\x01\0\n".as_slice(),
            b"15 gid=4194304\n",
            "15 linkpath=ö\n".as_bytes(),
            b"12 mtime=-5\n",
            "14 path=ä/é\n".as_bytes(),
            b"19 size=8589934592\n",
        ]
        .concat();
        assert!(out[BLOCK..].starts_with(&[expected, vec![0]].concat()));
        assert_eq!(&out[2 * BLOCK..2 * BLOCK + 2], b"/\0");
    }

    #[test]
    fn what_a_tar_cannot_say_is_an_error() {
        let device = Device { major: 1 << 21, minor: 0 };
        assert!(encode(&Header { device, ..Header::default() }, &mut Vec::new()).is_err());
        assert!(encode(&Header { name: b"a\0b", ..Header::default() }, &mut Vec::new()).is_err());
    }
}
