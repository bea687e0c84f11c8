//! Promises of the remembered digests.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::directory::{Access, prepare};

const NOW: u64 = 1_700_000_000;

fn cache() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), Access::ReadWrite).unwrap();
    dir
}

fn root() -> ContextRoot {
    ContextRoot { device: 1, inode: 2, path: b"/context".to_vec() }
}

fn load(cache: &tempfile::TempDir) -> ContextDigests {
    ContextDigests::load_at(cache.path(), &root(), UNIX_EPOCH + Duration::from_secs(NOW))
}

/// A file changed `age` nanoseconds before the build began.
fn changed(age: i128) -> Fingerprint {
    let time = i128::from(NOW) * 1_000_000_000 - age;
    let time = ((time / 1_000_000_000) as i64, (time % 1_000_000_000) as u32);
    Fingerprint { device: 1, inode: 3, size: 4, mtime: time, ctime: time, mode: 0o100_644 }
}

const OLD: i128 = 60_000_000_001;

#[test]
fn what_was_saved_is_known_to_the_next_build_and_to_no_other_context() {
    let cache = cache();
    let first = load(&cache);
    first.put(b"a/\xff", changed(OLD), [1; 32]);
    first.put(b"a", changed(OLD), [2; 32]);
    assert!(first.save().unwrap());
    let second = load(&cache);
    assert_eq!(second.get(b"a/\xff", &changed(OLD)), Some([1; 32].into()));
    assert_eq!(second.get(b"a", &changed(OLD)), Some([2; 32].into()));
    assert_eq!(second.get(b"b", &changed(OLD)), None);
    assert!(!second.save().unwrap(), "nothing changed");
    let other = ContextRoot { inode: 9, ..root() };
    assert_eq!(ContextDigests::load(cache.path(), &other).get(b"a", &changed(OLD)), None);
}

#[test]
fn it_is_remembered_whether_a_file_is_plain() {
    let cache = cache();
    let first = load(&cache);
    let plain = Remembered { digest: [1; 32], is_plain: true };
    first.put(b"a", changed(OLD), plain);
    first.put(b"b", changed(OLD), [1; 32]);
    first.save().unwrap();
    let second = load(&cache);
    assert_eq!(second.get(b"a", &changed(OLD)), Some(plain));
    assert_eq!(second.get(b"b", &changed(OLD)), Some(Remembered { is_plain: false, ..plain }));
}

#[test]
fn every_part_of_the_fingerprint_counts() {
    let cache = cache();
    let first = load(&cache);
    let known = changed(OLD);
    first.put(b"a", known, [1; 32]);
    first.save().unwrap();
    let second = load(&cache);
    for other in [
        Fingerprint { device: 9, ..known },
        Fingerprint { inode: 9, ..known },
        Fingerprint { size: 9, ..known },
        Fingerprint { mtime: (known.mtime.0, known.mtime.1 ^ 1), ..known },
        Fingerprint { ctime: (known.ctime.0 - 1, known.ctime.1), ..known },
        Fingerprint { mode: 0o100_755, ..known },
    ] {
        assert_eq!(second.get(b"a", &other), None, "{other:?}");
    }
    assert_eq!(second.get(b"a", &known), Some([1; 32].into()));
}

#[test]
fn racy_files_are_never_remembered() {
    let cache = cache();
    let digests = load(&cache);
    let mtime_only = Fingerprint { ctime: changed(OLD).ctime, ..changed(1) };
    let whole_seconds = changed(1_000_000_000);
    assert_eq!(whole_seconds.ctime.1, 0);
    for (path, racy) in [
        (b"a", changed(GRANULARITY)),
        (b"b", changed(0)),
        (b"c", changed(-OLD)),
        (b"d", mtime_only),
        (b"e", whole_seconds),
    ] {
        digests.put(path, racy, [1; 32]);
        assert_eq!(digests.get(path, &racy), None, "{racy:?}");
    }
    assert!(!digests.save().unwrap());
    digests.put(b"f", changed(GRANULARITY + 1), [1; 32]);
    assert!(digests.get(b"f", &changed(GRANULARITY + 1)).is_some());
}

#[test]
fn a_real_file_rewritten_at_once_is_read_again() {
    let cache = cache();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "old").unwrap();
    let root = ContextRoot::of(dir.path()).unwrap();
    let first = ContextDigests::load(cache.path(), &root);
    let before = Fingerprint::of(&fs::metadata(&file).unwrap());
    first.put(b"f", before, [1; 32]);
    // Same size, same inode, most likely the same tick.
    fs::write(&file, "new").unwrap();
    first.save().unwrap();
    let after = Fingerprint::of(&fs::metadata(&file).unwrap());
    assert_eq!(ContextDigests::load(cache.path(), &root).get(b"f", &after), None);
}

#[test]
fn a_damaged_file_is_empty_and_noticed_and_replaced() {
    let cache = cache();
    let first = load(&cache);
    first.put(b"a", changed(OLD), [1; 32]);
    first.put(b"b", changed(OLD), [2; 32]);
    first.save().unwrap();
    let whole = fs::read(&first.path).unwrap();
    let mut variants: Vec<Vec<u8>> = (0..whole.len()).map(|at| whole[..at].to_vec()).collect();
    variants.extend((0..whole.len()).map(|at| {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        flipped
    }));
    for bytes in variants {
        fs::write(&first.path, &bytes).unwrap();
        let damaged = load(&cache);
        assert!(damaged.notice().is_some(), "{} bytes", bytes.len());
        assert_eq!(damaged.get(b"a", &changed(OLD)), None);
    }
    let again = load(&cache);
    again.put(b"a", changed(OLD), [3; 32]);
    assert!(again.save().unwrap());
    assert_eq!(load(&cache).get(b"a", &changed(OLD)), Some([3; 32].into()));
    assert!(load(&cache).notice().is_none());
}

#[test]
fn entries_nobody_asks_for_are_dropped_when_they_are_the_most() {
    let cache = cache();
    let first = load(&cache);
    for number in 0..(SPARE as u32 + 100) {
        first.put(&number.to_be_bytes(), changed(OLD), [1; 32]);
    }
    first.save().unwrap();
    let second = load(&cache);
    assert!(second.get(&7_u32.to_be_bytes(), &changed(OLD)).is_some());
    second.put(b"new", changed(OLD), [2; 32]);
    second.save().unwrap();
    let third = load(&cache);
    assert_eq!(third.old.count, 2);
    assert!(third.get(&7_u32.to_be_bytes(), &changed(OLD)).is_some());
}

#[test]
fn twenty_thousand_entries_are_found_each() {
    let cache = cache();
    let path = |number: u32| format!("src/directory-{}/file-{number}.txt", number % 97);
    let first = load(&cache);
    for number in 0..20_000 {
        let fingerprint = Fingerprint { inode: number.into(), ..changed(OLD) };
        first.put(
            path(number).as_bytes(),
            fingerprint,
            *blake3::hash(&number.to_le_bytes()).as_bytes(),
        );
    }
    first.save().unwrap();
    let start = std::time::Instant::now();
    let second = load(&cache);
    let loaded = start.elapsed();
    for number in 0..20_000 {
        let fingerprint = Fingerprint { inode: number.into(), ..changed(OLD) };
        assert_eq!(
            second.get(path(number).as_bytes(), &fingerprint),
            Some((*blake3::hash(&number.to_le_bytes()).as_bytes()).into())
        );
    }
    println!("20,000 entries: loaded in {loaded:?}, loaded and found in {:?}", start.elapsed());
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), count in 0u32..4) {
        // With a right frame around them, so that the entries are read.
        let mut framed = [&MAGIC[..], &count.to_le_bytes(), &[0; 36], &bytes].concat();
        let text = (bytes.len() as u32).wrapping_sub(count * ENTRY as u32);
        framed[12..16].copy_from_slice(&text.to_le_bytes());
        framed[16..48].copy_from_slice(blake3::hash(&bytes).as_bytes());
        for bytes in [bytes, framed] {
            if let Ok(table) = Table::check(bytes) {
                for at in 0..5 {
                    let _ = (table.path(at), table.entry(at));
                }
                let _ = table.find(b"a");
            }
        }
    }
}
