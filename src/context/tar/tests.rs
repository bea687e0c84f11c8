use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// One entry: type, name, link target, mode, mtime, bytes.
type Row<'a> = (EntryType, &'a str, &'a str, u32, u64, &'a [u8]);

/// Writes names byte for byte, as the crate's builder refuses the bad ones.
fn archive(rows: &[Row<'_>]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (kind, name, link, mode, mtime, bytes) in rows {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_mtime(*mtime);
        header.set_size(bytes.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn unpacked(bytes: &[u8]) -> Result<TempDir, Error> {
    let outer = TempDir::new().unwrap();
    fs::create_dir(outer.path().join("context")).unwrap();
    let root = RootDir::open(&outer.path().join("context")).unwrap();
    unpack(bytes, "test.tar", &root).map(|_| outer)
}

fn refused(rows: &[Row<'_>]) -> String {
    match unpacked(&archive(rows)).unwrap_err() {
        error @ Error::Entry { .. } => error.to_string(),
        other => panic!("{other:?}"),
    }
}

const FILE: EntryType = EntryType::Regular;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;
const DIRECTORY: EntryType = EntryType::Directory;

#[test]
fn files_links_modes_and_times_arrive() {
    let outer = unpacked(&archive(&[
        (DIRECTORY, "./", "", 0o700, 5, b""),
        (DIRECTORY, "./closed/", "", 0o555, 6, b""),
        (FILE, "./closed/run", "", 0o4755, 7, b"#!/bin/sh"),
        (FILE, "implied/deep/file", "", 0o640, 8, b"text"),
        (LINK, "link", "/etc/passwd", 0o777, 9, b""),
        (HARD, "same", "./closed/run", 0, 0, b""),
        (EntryType::Fifo, "pipe", "", 0o600, 3, b""),
    ]))
    .unwrap();
    let context = outer.path().join("context");
    let stat = |name: &str| fs::symlink_metadata(context.join(name)).unwrap();
    assert_eq!((stat("closed").mode() & 0o7777, stat("closed").mtime()), (0o555, 6));
    assert_eq!((stat("closed/run").mode() & 0o7777, stat("closed/run").mtime()), (0o4755, 7));
    assert_eq!(stat("same").ino(), stat("closed/run").ino());
    assert_eq!(stat("implied/deep").mode() & 0o7777, 0o755);
    assert_eq!(fs::read(context.join("implied/deep/file")).unwrap(), b"text");
    assert_eq!(fs::read_link(context.join("link")).unwrap().to_str(), Some("/etc/passwd"));
    assert_eq!(stat("link").mtime(), 9);
    assert_eq!(stat("pipe").mode() & 0o7777, 0o600);
    assert_eq!(stat("").mtime(), 5);
}

#[test]
fn entries_that_reach_outside_are_refused_by_name() {
    let cases: [(&[Row<'_>], &str); 9] = [
        (&[(FILE, "/etc/x", "", 0o644, 0, b"")], "`/etc/x`, which has an absolute path"),
        (&[(FILE, "a/../../x", "", 0o644, 0, b"")], "`a/../../x`, which has `..` in its path"),
        (&[(FILE, "../x", "", 0o644, 0, b"")], "`../x`, which has `..`"),
        (
            &[(LINK, "up", "..", 0, 0, b""), (FILE, "up/x", "", 0o644, 0, b"")],
            "`up/x`, which leads out of it through a symbolic link",
        ),
        (
            &[(LINK, "tmp", "/tmp", 0, 0, b""), (DIRECTORY, "tmp/x/y/", "", 0o755, 0, b"")],
            "`tmp/x/y/`, which leads out of it through a symbolic link",
        ),
        (
            &[(LINK, "up", "../..", 0, 0, b""), (HARD, "x", "up/outside", 0, 0, b"")],
            "`x`, which leads out of it",
        ),
        (&[(HARD, "x", "../outside", 0, 0, b"")], "`x`, which has `..`"),
        (
            &[
                (LINK, "a", "b", 0, 0, b""),
                (LINK, "b", "a", 0, 0, b""),
                (FILE, "a/x", "", 0, 0, b""),
            ],
            "`a/x`, which leads through symbolic links without end",
        ),
        (&[(EntryType::Char, "null", "", 0o666, 0, b"")], "`null`, which is a device"),
    ];
    for (rows, expected) in cases {
        let message = refused(rows);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_file_replaces_a_link_and_never_what_it_points_to() {
    let outer = TempDir::new().unwrap();
    fs::create_dir(outer.path().join("context")).unwrap();
    let victim = outer.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let root = RootDir::open(&outer.path().join("context")).unwrap();
    let rows: [Row<'_>; 4] = [
        (LINK, "x", "../victim", 0, 0, b""),
        (FILE, "x", "", 0o600, 0, b"new"),
        (HARD, "y", "x", 0, 0, b""),
        (FILE, "x", "", 0o600, 0, b"newer"),
    ];
    unpack(&archive(&rows)[..], "test.tar", &root).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"untouched");
    assert_eq!(fs::read(outer.path().join("context/x")).unwrap(), b"newer");
    assert_eq!(fs::read(outer.path().join("context/y")).unwrap(), b"new");
}

#[test]
fn links_that_stay_inside_are_followed() {
    let outer = unpacked(&archive(&[
        (DIRECTORY, "real", "", 0o755, 0, b""),
        (LINK, "alias", "real", 0, 0, b""),
        (FILE, "alias/file", "", 0o644, 0, b"text"),
    ]))
    .unwrap();
    assert_eq!(fs::read(outer.path().join("context/real/file")).unwrap(), b"text");
}

#[test]
fn compression_is_told_by_the_bytes() {
    let plain = archive(&[(FILE, "file", "", 0o644, 0, b"text")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    for bytes in [&plain, &gzip, &zstd] {
        let outer = unpacked(bytes).unwrap();
        assert_eq!(fs::read(outer.path().join("context/file")).unwrap(), b"text");
    }
    // A damaged checksum stands behind the last entry.
    let mut damaged = gzip;
    let at = damaged.len() - 6;
    damaged[at] ^= 1;
    assert!(matches!(unpacked(&damaged), Err(Error::Archive { .. })));
}

#[test]
fn nothing_and_other_files_are_no_archives() {
    assert!(matches!(unpacked(b""), Err(Error::EmptyArchive { .. })));
    let text = vec![b'x'; 2000];
    assert!(matches!(unpacked(&text), Err(Error::Archive { .. })));
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    let time = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
    assert_eq!(parse_time("12"), time(12, 0));
    assert_eq!(parse_time("12.5"), time(12, 500_000_000));
    assert_eq!(parse_time("12.1234567899"), time(12, 123_456_789));
    assert_eq!(parse_time("-1.25"), time(-2, 750_000_000));
    assert_eq!(parse_time("-0.25"), time(-1, 750_000_000));
    for bad in ["", "x", "1.x", "1e3", "9223372036854775808"] {
        assert_eq!(parse_time(bad), None, "{bad}");
    }
}

#[test]
fn long_names_and_pax_times_are_read() {
    let name = format!("{}/file", "d".repeat(180));
    let mut builder = ::tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("mtime", &b"3.000000004"[..])]).unwrap();
    let mut header = ::tar::Header::new_ustar();
    header.set_size(4);
    header.set_mode(0o644);
    builder.append_data(&mut header, &name, &b"text"[..]).unwrap();
    let outer = unpacked(&builder.into_inner().unwrap()).unwrap();
    let stat = fs::metadata(outer.path().join("context").join(&name)).unwrap();
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (3, 4));
    assert_eq!(stat.permissions().mode() & 0o7777, 0o644);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever order entries come in, they stay in the context.
    #[test]
    fn no_sequence_of_entries_writes_outside(
        rows in prop::collection::vec(
            (
                prop::sample::select(vec![FILE, LINK, HARD, DIRECTORY]),
                "[ab](/[ab]){0,2}",
                prop::sample::select(vec!["a", "b", "..", "../..", "/", "a/b", "../b", "."]),
            ),
            1..12,
        ),
    ) {
        let rows: Vec<Row<'_>> = rows
            .iter()
            .map(|(kind, name, link)| {
                let bytes: &[u8] = if *kind == FILE { b"text" } else { b"" };
                (*kind, name.as_str(), *link, 0o755, 1, bytes)
            })
            .collect();
        let outer = TempDir::new().unwrap();
        fs::create_dir_all(outer.path().join("b")).unwrap();
        fs::create_dir(outer.path().join("context")).unwrap();
        fs::write(outer.path().join("a"), "victim").unwrap();
        let root = RootDir::open(&outer.path().join("context")).unwrap();
        let _ = unpack(&archive(&rows)[..], "test.tar", &root);
        prop_assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 3);
        prop_assert_eq!(fs::read_dir(outer.path().join("b")).unwrap().count(), 0);
        let victim = fs::metadata(outer.path().join("a")).unwrap();
        prop_assert_eq!((victim.len(), victim.nlink()), (6, 1));
    }
}
