//! Many processes on one cache directory: some are killed, all get the truth.
//!
//! The processes are this test binary again, told by an environment variable
//! which part to play ([`child`]).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use yadokari::oci::digest::Digest;
use yadokari::store::Store;
use yadokari_cache::{Access, Bucket, Cache, Fold, Folded, Key, KeyHasher, Notice};

const PART: &str = "YADOKARI_TEST_PART";
const DIRECTORY: &str = "YADOKARI_TEST_DIRECTORY";
const NUMBER: &str = "YADOKARI_TEST_NUMBER";

fn key(worker: u64, number: u64) -> Key {
    KeyHasher::new("yadokari test processes v1")
        .number("worker", worker)
        .number("number", number)
        .finish()
}

fn content(worker: u64, number: u64) -> Vec<u8> {
    format!("layer {number} of worker {worker} ").repeat(1 + number as usize % 40).into_bytes()
}

/// As a build does: the content first, then the record that names it.
fn step(store: &Store, cache: &Cache, worker: u64, number: u64) {
    let digest = store.put_blob(&content(worker, number)).unwrap();
    cache.put(&[(Bucket::Steps, key(worker, number), digest.to_string().into_bytes())]).unwrap();
}

/// Whether a record is there; it must name the right content, and that must be there.
fn check(store: &Store, cache: &Cache, worker: u64, number: u64) -> bool {
    let Some(value) = cache.get(Bucket::Steps, &key(worker, number)) else { return false };
    let digest: Digest = String::from_utf8(value).unwrap().parse().unwrap();
    let bytes = store.read_small_blob(&digest, 1 << 20).unwrap();
    assert_eq!(bytes, Some(content(worker, number)), "record {worker}/{number}");
    true
}

fn spawn(part: &str, directory: &Path, number: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(PART, part)
        .env(DIRECTORY, directory)
        .env(NUMBER, number.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Not a test of its own: the other processes begin here.
#[test]
fn child() {
    let Ok(part) = std::env::var(PART) else { return };
    let directory = std::env::var_os(DIRECTORY).unwrap();
    let directory = Path::new(&directory);
    let number = std::env::var(NUMBER).unwrap().parse().unwrap();
    match part.as_str() {
        "put" => put_forever(directory, number),
        "mix" => put_get_fold(directory, number),
        "measure" => measure(directory, number),
        "read-only" => read_in_a_read_only_mount(directory, number),
        "full" => put_until_full(directory),
        other => panic!("no part {other}"),
    }
}

/// Acknowledges each step on a line of its own, until killed.
fn put_forever(directory: &Path, worker: u64) {
    let store = Store::open(directory).unwrap();
    let cache = Cache::open(directory, Access::ReadWrite).unwrap();
    for number in 0.. {
        step(&store, &cache, worker, number);
        println!("\nput {number}");
        if number % 3 == 2 {
            cache.fold(Fold::Now).unwrap();
        }
    }
}

#[test]
fn what_a_killed_process_acknowledged_is_there_and_true() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for worker in 0..40 {
        let mut child = spawn("put", dir.path(), worker);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = worker % 11;
        for line in lines.by_ref() {
            let line = line.unwrap();
            let Some(number) = line.strip_prefix("put ") else { continue };
            let number: u64 = number.parse().unwrap();
            acknowledged.insert((worker, number));
            if number >= enough {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before the signal came.
        for line in lines.map_while(Result::ok) {
            if let Some(Ok(number)) = line.strip_prefix("put ").map(str::parse) {
                acknowledged.insert((worker, number));
            }
        }
        let store = Store::open(dir.path()).unwrap();
        let cache = Cache::open(dir.path(), Access::ReadWrite).unwrap();
        for number in 0..enough + 40 {
            let found = check(&store, &cache, worker, number);
            assert!(
                found || !acknowledged.contains(&(worker, number)),
                "{worker}/{number} is lost"
            );
        }
        assert_eq!(cache.take_notices(), []);
    }
    let store = Store::open(dir.path()).unwrap();
    let cache = Cache::open(dir.path(), Access::ReadWrite).unwrap();
    cache.fold(Fold::Now).unwrap();
    for &(worker, number) in &acknowledged {
        assert!(check(&store, &cache, worker, number), "{worker}/{number} is lost");
    }
    // A torn append of a killed fold may have been skipped; nothing else.
    assert!(cache.take_notices().iter().all(|notice| matches!(notice, Notice::LogDamaged { .. })));
    // Nobody is alive but us: at most our two leases have a scratch directory.
    drop((store, cache));
    let last = Store::open(dir.path()).unwrap();
    last.scratch().unwrap();
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 1);
    assert!(acknowledged.len() > 100);
}

const WORKERS: u64 = 8;
const STEPS: u64 = 40;

fn put_get_fold(directory: &Path, worker: u64) {
    let store = Store::open(directory).unwrap();
    let cache = Cache::open(directory, Access::ReadWrite).unwrap();
    let mut busy = 0;
    for number in 0..STEPS {
        step(&store, &cache, worker, number);
        assert!(check(&store, &cache, worker, number));
        check(&store, &cache, (worker + 1 + number % 7) % WORKERS, number);
        // A second handle of the same process.
        let other = Cache::open(directory, Access::ReadOnly).unwrap();
        assert!(check(&store, &other, worker, number));
        assert!(check(&store, &other, worker, number / 2));
        assert_eq!(other.take_notices(), []);
        if number % 5 == worker % 5 {
            busy += u64::from(cache.fold(Fold::Now).unwrap() == Folded::Busy);
        }
    }
    assert_eq!(cache.take_notices(), []);
    println!("\nworker {worker} left {busy} folds to others");
}

#[test]
fn eight_processes_put_get_and_fold_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..WORKERS).map(|worker| spawn("mix", dir.path(), worker)).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let store = Store::open(dir.path()).unwrap();
    let cache = Cache::open(dir.path(), Access::ReadWrite).unwrap();
    for fold in [false, true] {
        if fold {
            cache.fold(Fold::Now).unwrap();
            assert_eq!(fs::read_dir(dir.path().join("spool")).unwrap().count(), 0);
        }
        let reader = Cache::open(dir.path(), Access::ReadOnly).unwrap();
        for worker in 0..WORKERS {
            for number in 0..STEPS {
                assert!(
                    check(&store, &reader, worker, number),
                    "{worker}/{number}, folded: {fold}"
                );
            }
        }
        assert_eq!(reader.take_notices(), []);
    }
    assert_eq!(cache.take_notices(), []);
}

/// A mount namespace of one's own; `false`, said aloud, without the right to one.
fn own_mounts(why: &str) -> bool {
    // SAFETY: unshare takes flags and touches no memory; the test runner's other
    // threads keep their own view of mounts.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        let missing = format!("{why} needs CAP_SYS_ADMIN for a mount namespace");
        assert!(std::env::var_os("YADOKARI_REQUIRE_MOUNT").is_none(), "{missing}");
        println!("\nskipped: {missing}");
        return false;
    }
    use rustix::mount::{MountPropagationFlags, mount_change};
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    true
}

fn run(part: &str, directory: &Path, number: u64) -> String {
    let output = spawn(part, directory, number).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text.lines()
        .filter(|line| line.starts_with("skipped") || line.starts_with("measured"))
        .for_each(|line| eprintln!("{line}"));
    text
}

fn read_in_a_read_only_mount(directory: &Path, count: u64) {
    if !own_mounts("the read-only cache") {
        return;
    }
    use rustix::mount::{MountFlags, mount_bind, mount_remount};
    mount_bind(directory, directory).unwrap();
    mount_remount(directory, MountFlags::RDONLY | MountFlags::BIND, "").unwrap();
    let refused = Cache::open(directory, Access::ReadWrite).unwrap_err();
    assert!(matches!(refused, yadokari_cache::Error::Denied { .. }), "{refused}");
    let store = Store::open_read_only(directory).unwrap();
    let cache = Cache::open(directory, Access::ReadOnly).unwrap();
    for number in 0..count {
        assert!(check(&store, &cache, 0, number));
    }
    assert!(!check(&store, &cache, 0, count));
    assert_eq!(cache.take_notices(), []);
}

#[test]
fn a_cache_on_a_read_only_mount_gives_hits() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let cache = Cache::open(dir.path(), Access::ReadWrite).unwrap();
    for number in 0..10 {
        step(&store, &cache, 0, number);
        if number == 5 {
            cache.fold(Fold::Now).unwrap();
        }
    }
    run("read-only", dir.path(), 10);
}

fn put_until_full(directory: &Path) {
    if !own_mounts("the full disk") {
        return;
    }
    use rustix::mount::{MountFlags, mount};
    mount("tmpfs", directory, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
    let store = Store::open(directory).unwrap();
    let cache = Cache::open(directory, Access::ReadWrite).unwrap();
    let mut kept = 0;
    let refused = loop {
        if let Err(error) = store.put_blob(&content(0, kept)) {
            break error.to_string();
        }
        let digest = Digest::of(&content(0, kept));
        let value = digest.to_string().into_bytes();
        if let Err(error) = cache.put(&[(Bucket::Steps, key(0, kept), value)]) {
            break error.to_string();
        }
        kept += 1;
    };
    assert!(refused.contains("no space left"), "{refused}");
    assert!(kept > 10);
    // Folding needs space, too: it may fail, but loses nothing.
    let _ = cache.fold(Fold::Now);
    for _ in 0..2 {
        let reader = Cache::open(directory, Access::ReadOnly).unwrap();
        for number in 0..kept {
            assert!(check(&store, &reader, 0, number), "{number} of {kept}");
        }
        // Nothing half-written is left; what is removed makes room again.
        for lease in fs::read_dir(directory.join("tmp")).unwrap() {
            assert_eq!(fs::read_dir(lease.unwrap().path()).unwrap().count(), 0);
        }
        store.discard_blob(&Digest::of(&content(0, kept))).unwrap();
        mount_larger(directory);
        cache.fold(Fold::Now).unwrap();
    }
    step(&store, &cache, 0, kept);
    assert!(check(&store, &cache, 0, kept));
}

fn mount_larger(directory: &Path) {
    use rustix::mount::{MountFlags, mount_remount};
    mount_remount(directory, MountFlags::empty(), "size=64m").unwrap();
}

#[test]
fn a_full_disk_loses_nothing_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    run("full", dir.path(), 0);
}

fn measure(directory: &Path, count: u64) {
    let start = Instant::now();
    let cache = Cache::open(directory, Access::ReadOnly).unwrap();
    let opened = start.elapsed();
    let mut times = Vec::new();
    for number in 0..30 {
        let start = Instant::now();
        assert!(cache.get(Bucket::Steps, &key(0, number * (count / 30))).is_some());
        times.push(start.elapsed());
    }
    let missing = Instant::now();
    assert!(cache.get(Bucket::Steps, &key(1, 0)).is_none());
    let missing = missing.elapsed();
    let all = start.elapsed();
    let first = times.remove(0);
    times.sort();
    println!(
        "\nmeasured: {count} records: open {opened:?}, first get {first:?}, 29 more p50 {:?} max {:?}, a miss {missing:?}, all {all:?}",
        times[times.len() / 2],
        times[times.len() - 1],
    );
}

/// Prints what look-ups cost: `cargo test --test cache_processes fresh -- --nocapture`,
/// with another number of records in `YADOKARI_RECORDS`.
#[test]
fn a_fresh_process_finds_what_another_folded() {
    let count: u64 = std::env::var("YADOKARI_RECORDS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(3_000);
    {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), Access::ReadWrite).unwrap();
        let start = Instant::now();
        for chunk in 0..count / 1000 {
            let records: Vec<_> = (0..1000)
                .map(|n| (Bucket::Steps, key(0, chunk * 1000 + n), vec![n as u8; 300]))
                .collect();
            cache.put(&records).unwrap();
        }
        cache.fold(Fold::Now).unwrap();
        eprintln!("{count} records put and folded in {:?}", start.elapsed());
        for _ in 0..3 {
            run("measure", dir.path(), count);
        }
        let spool = tempfile::tempdir().unwrap();
        let waiting = Cache::open(spool.path(), Access::ReadWrite).unwrap();
        let start = Instant::now();
        for number in 0..60 {
            waiting.put(&[(Bucket::Steps, key(0, number), vec![0; 300])]).unwrap();
        }
        eprintln!("a put: {:?}", start.elapsed() / 60);
        eprintln!("60 spool files, nothing folded:");
        run("measure", spool.path(), 60);
        let start = Instant::now();
        cache.put(&[(Bucket::Steps, key(2, 0), vec![0; 300])]).unwrap();
        let put = start.elapsed();
        cache.fold(Fold::Now).unwrap();
        eprintln!("at {count}: put {put:?}, put and fold of one {:?}", start.elapsed());
    }
}
