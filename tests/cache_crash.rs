//! A cache killed at hundreds of instants, or robbed of its power at any: no record
//! that names what isn't there, no acknowledged record lost, nothing but garbage left.
//!
//! The workload is the one of builders and collectors, by the same code, without the
//! building: contents, records, folds, records taken back, logs written anew,
//! contents evicted. It runs in child processes, which are this test binary again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/disk.rs"]
mod disk;
#[allow(dead_code, reason = "others use the rest")]
#[path = "support/host.rs"]
mod host;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use yadokari::collect;
use yadokari::collect::Limits;
use yadokari::collect::Order;
use yadokari::oci::digest::Digest;
use yadokari::store::Store;
use yadokari_cache::Access;
use yadokari_cache::Cache;
use yadokari_cache::Fold;
use yadokari_cache::Key;
use yadokari_cache::KeyHasher;
use yadokari_cache::Notice;
use yadokari_cache::Record;
use yadokari_cache::StepRecord;
use yadokari_cache::record::Compressed;

const DIRECTORY: &str = "YADOKARI_TEST_DIRECTORY";
/// Where the workload speaks to, if not to its standard output.
const SAID: &str = "YADOKARI_TEST_SAID";
const NUMBER: &str = "YADOKARI_TEST_NUMBER";

/// Kills of the test; `YADOKARI_KILLS` says otherwise, as `scripts/stress-cache` does.
const KILLS: u64 = 250;

/// Steps of one run of the workload.
const STEPS: u64 = 12;

fn content(run: u64, step: u64) -> Vec<u8> {
    format!("layer {step} of run {run} ").repeat(1 + (step as usize * 37) % 300).into_bytes()
}

fn key(run: u64, step: u64) -> Key {
    KeyHasher::new("yadokari test crash v1").number("run", run).number("step", step).finish()
}

/// As `build::layers` does it: blob, record. Both durable when this returns.
fn put(store: &Store, cache: &Cache, run: u64, step: u64) {
    let bytes = content(run, step);
    let digest = store.put_blob(&bytes).unwrap();
    let record = StepRecord {
        diff_id: [0; 32],
        compressed: Some(Compressed {
            digest: *digest.as_bytes(),
            size: bytes.len() as u64,
            media_type: "application/octet-stream".to_owned(),
        }),
        created: 0,
        created_nanoseconds: 0,
        stored: jiff::Timestamp::now().as_second(),
        empty: false,
        inputs: Vec::new(),
        definition: key(run, step),
        content: None,
        hint: None,
        duration_ms: 0,
    };
    cache.put(&record.puts()).unwrap();
}

/// Whether a record is there; it must name the right content, and that must be there.
fn check(store: &Store, cache: &Cache, run: u64, step: u64) -> bool {
    let Some(record) = cache.record::<StepRecord>(&key(run, step)) else { return false };
    let blob = record.compressed.unwrap();
    let bytes = store.read_small_blob(&Digest::from_bytes(blob.digest), 1 << 20).unwrap();
    assert_eq!(
        bytes,
        Some(content(run, step)),
        "record {run}/{step} names nothing or a wrong thing"
    );
    true
}

/// Keys of all records, each of which names what is there, with the right digest.
fn all_true(cache: &Cache, store: &Store) -> BTreeSet<Key> {
    let mut there: BTreeSet<Key> = BTreeSet::new();
    let mut named: Vec<StepRecord> = Vec::new();
    cache
        .each_record(&mut |seen| {
            there.insert(seen.key);
            named.push(StepRecord::decode(seen.value).unwrap());
        })
        .unwrap();
    for record in named {
        let blob = record.compressed.unwrap();
        let digest = Digest::from_bytes(blob.digest);
        let found = store.has_blob(&digest, Some(blob.size)).unwrap();
        assert!(found, "a record names {digest}, which is not there");
    }
    there
}

/// Not a test of its own: the workload, acknowledging each step on a line.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let run: u64 = std::env::var(NUMBER).unwrap().parse().unwrap();
    let cache = Cache::open(directory, Access::ReadWrite).unwrap();
    let store = Store::open(directory).unwrap().with_lease(cache.lease().unwrap());
    let mut said = std::env::var_os(SAID).map(|path| std::fs::File::create(path).unwrap());
    let mut say = |text: String| {
        if let Some(said) = &mut said {
            return said.write_all(format!("{text}\n").as_bytes()).unwrap();
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{text}").unwrap();
        out.flush().unwrap();
    };
    for step in 0..STEPS {
        put(&store, &cache, run, step);
        say(format!("put {step}"));
        match step {
            3 | 9 => drop(cache.fold(Fold::Now).unwrap()),
            // Every second run, so that the others show what is lost.
            5 if run % 2 == 1 => {
                // Evicts somebody, and says so before: he may be gone from now on.
                let mut oldest = u64::MAX;
                cache
                    .each_record(&mut |seen| {
                        let found = StepRecord::decode(seen.value).unwrap();
                        oldest = oldest.min(found.compressed.unwrap().size);
                    })
                    .unwrap();
                let usage = collect::usage(&cache).unwrap();
                say(format!("evicting {}", usage.total()));
                let max_size = Some(usage.total().saturating_sub(40_000));
                let order = Order {
                    limits: Limits { max_size, ttl: None },
                    deadline: None,
                    dry_run: false,
                };
                let done = collect::collect(&cache, None, &order).unwrap();
                say(format!("evicted {}", done.map_or(0, |done| done.removed.len())));
            }
            7 => {
                cache.compact(true).unwrap();
            }
            _ => {}
        }
    }
}

#[test]
fn however_often_killed_a_cache_stays_true() {
    let kills = std::env::var("YADOKARI_KILLS").ok().and_then(|text| text.parse().ok());
    let kills: u64 = kills.unwrap_or(KILLS);
    let dir = tempfile::tempdir().unwrap();
    let mut state = u64::from(std::process::id()) | 1;
    eprintln!("seed {state}");
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut acknowledged: BTreeSet<(u64, u64)> = BTreeSet::new();
    let (mut evictions, mut undisturbed) = (0, 0);
    let mut stages: BTreeMap<String, u32> = BTreeMap::new();
    for run in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, dir.path())
            .env(NUMBER, run.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Up to a random line, then up to 3 ms more: instants in every operation.
        let (after, more) = (random() % (STEPS + 4), Duration::from_micros(random() % 3000));
        let mut said: Vec<String> = Vec::new();
        while (said.len() as u64) < after
            && let Some(Ok(line)) = lines.next()
        {
            if line.starts_with("put ") || line.starts_with("evict") {
                said.push(line);
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < more {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        undisturbed += u64::from(ended.success());
        said.extend(
            lines
                .map_while(Result::ok)
                .filter(|line| line.starts_with("put ") || line.starts_with("evict")),
        );
        *stages.entry(said.last().cloned().unwrap_or_default()).or_default() += 1;
        let evicted = said.iter().any(|line| line.starts_with("evicting"));
        for step in said.iter().filter_map(|line| line.strip_prefix("put ")) {
            acknowledged.insert((run, step.parse().unwrap()));
        }

        let cache = Cache::open(dir.path(), Access::ReadWrite).unwrap();
        let store = Store::open(dir.path()).unwrap().with_lease(cache.lease().unwrap());
        let there = all_true(&cache, &store);
        acknowledged.retain(|&(run, step)| {
            let found = there.contains(&key(run, step));
            assert!(found || evicted, "{run}/{step} is lost");
            found
        });
        for step in 0..STEPS {
            check(&store, &cache, run, step);
        }
        evictions += u64::from(evicted);
        let damage: Vec<Notice> = cache
            .take_notices()
            .into_iter()
            // A torn append of a killed fold: its records are still in the spool.
            .filter(|notice| !matches!(notice, Notice::LogDamaged { .. }))
            .collect();
        assert_eq!(damage, [], "run {run}");
        assert_eq!(store.take_notices(), [], "run {run}");
    }
    eprintln!("{evictions} evictions, {undisturbed} not killed; last words: {stages:?}");
    assert!(kills < 100 || evictions > 10);
    // What the dead left behind goes.
    let cache = Cache::open(dir.path(), Access::ReadWrite).unwrap();
    let own = cache.lease().unwrap();
    let order =
        Order { limits: Limits { max_size: Some(0), ttl: None }, deadline: None, dry_run: false };
    collect::collect(&cache, Some(&own), &order).unwrap().unwrap();
    for part in ["blobs/sha256", "trash", "running"] {
        let left = std::fs::read_dir(dir.path().join(part)).unwrap().count();
        assert_eq!(left, 0, "{part}");
    }
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 1);
}

/// Moments at which the power goes; `YADOKARI_OUTAGES` says otherwise.
const OUTAGES: u64 = 300;

#[test]
fn whatever_a_loss_of_power_takes_no_acknowledged_record_is_lost_or_wrong() {
    if !host::require_host(&[]) {
        return;
    }
    let outages = std::env::var("YADOKARI_OUTAGES").ok().and_then(|text| text.parse().ok());
    let mut seed = u64::from(std::process::id()) | 1;
    eprintln!("seed {seed}");
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let work = tempfile::tempdir().unwrap();
    let at = work.path().join("disk");
    std::fs::create_dir(&at).unwrap();
    let disk = disk::Disk::new();
    let mounted = disk.mount(&at);
    // A second run finds what the first has left.
    for run in 0..2 {
        let worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, at.join("cache"))
            .env(NUMBER, run.to_string())
            .env(SAID, at.join(format!("said-{run}")))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&worker.stderr).into_owned();
        assert!(worker.status.success(), "{text}");
    }
    drop(mounted);
    let changes = disk.changes();
    eprintln!("{changes} changes");
    assert!(changes > 300);
    let (mut kept, mut lost) = (0, 0);
    for outage in 0..outages.unwrap_or(OUTAGES) {
        let until = (random() % (changes as u64 + 1)) as usize;
        let left = work.path().join(format!("left-{outage}"));
        disk.lose_power(until, &left, &mut random);
        let said: Vec<String> = (0..2)
            .map(|run| String::from_utf8(disk.written(&format!("said-{run}"), until)).unwrap())
            .collect();
        let cache_path = left.join("cache");
        let cache = Cache::open(&cache_path, Access::ReadWrite)
            .unwrap_or_else(|error| panic!("outage {outage} after {until} changes: {error}"));
        let store = Store::open(&cache_path).unwrap().with_lease(cache.lease().unwrap());
        let there = all_true(&cache, &store);
        let evicted = said.iter().any(|said| said.contains("evicting"));
        for (run, said) in said.iter().enumerate() {
            for step in said.lines().filter_map(|line| line.strip_prefix("put ")) {
                let step: u64 = step.parse().unwrap();
                let found = there.contains(&key(run as u64, step));
                let asked = check(&store, &cache, run as u64, step);
                assert!(found || evicted, "outage {outage} after {until}: {run}/{step} is lost");
                assert_eq!(asked, found, "outage {outage} after {until}: {run}/{step}");
                *(if found { &mut kept } else { &mut lost }) += 1;
            }
        }
        // And it goes on.
        put(&store, &cache, 9, 1);
        cache.fold(Fold::Now).unwrap();
        let reader = Cache::open(&cache_path, Access::ReadOnly).unwrap();
        assert!(check(&store, &reader, 9, 1));
        assert_eq!(all_true(&reader, &store).len(), there.len() + 1);
        drop((cache, store));
        std::fs::remove_dir_all(&left).unwrap();
    }
    eprintln!("{kept} acknowledged records found, {lost} evicted before");
    assert!(kept > 0);
}
