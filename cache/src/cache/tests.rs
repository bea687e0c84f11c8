//! The contract of the cache, held by every index, alone and in turns.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::survey::Compacted;

/// Runs a claim for each index this program has.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod plain {
            $(#[test] fn $name() { super::$name(crate::index::Kind::Plain); })*
        }
        #[cfg(feature = "rocksdb")]
        mod rocks {
            $(#[test] fn $name() { super::$name(crate::index::Kind::Rocks); })*
        }
    };
}

contract!(
    a_put_is_seen_by_all_before_and_after_a_fold,
    what_was_put_and_folded_behind_an_open_handle_is_found,
    the_later_put_wins,
    buckets_do_not_meet,
    an_index_that_vanished_is_made_anew,
    a_damaged_index_is_set_aside_and_made_anew,
    an_index_of_another_log_is_made_anew,
    damaged_spool_files_cost_only_themselves,
    a_damaged_log_costs_only_the_damaged_records,
    a_held_lock_makes_a_fold_leave,
    a_few_records_are_not_worth_a_fold,
    a_reader_gets_hits_and_changes_nothing,
    a_killed_fold_is_repeated_without_harm,
    what_is_written_over_a_failed_append_is_not_taken_for_it,
    many_folds_keep_everything,
    nothing_is_left_in_flight,
    what_is_taken_back_is_gone_before_and_after_a_fold,
    taking_back_spares_what_was_put_meanwhile,
    a_log_made_shorter_says_the_same,
    what_was_put_since_is_shown_wherever_it_is_by_then,
    what_is_no_file_in_the_spool_is_set_aside,
);

struct Room {
    dir: tempfile::TempDir,
    kind: Kind,
}

impl Room {
    fn new(kind: Kind) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), kind }
    }

    fn open(&self) -> Cache {
        Cache::open_with(self.dir.path(), Access::ReadWrite, self.kind).unwrap()
    }

    fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join(part)
    }

    fn spool(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("spool")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

fn key(number: u32) -> Key {
    Key::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn put(cache: &Cache, number: u32, value: &[u8]) {
    cache.put(&[(Bucket::Steps, key(number), value.to_vec())]).unwrap();
}

fn get(cache: &Cache, number: u32) -> Option<Vec<u8>> {
    cache.get(Bucket::Steps, &key(number))
}

fn a_put_is_seen_by_all_before_and_after_a_fold(kind: Kind) {
    let room = Room::new(kind);
    let (a, b) = (room.open(), room.open());
    assert_eq!(get(&b, 1), None);
    put(&a, 1, b"one");
    for cache in [&a, &b, &room.open()] {
        assert_eq!(get(cache, 1).as_deref(), Some(&b"one"[..]));
    }
    assert!(!room.path("index").exists(), "the spool answered");
    assert_eq!(a.fold(Fold::Now).unwrap(), Folded::Done(1));
    assert!(room.spool().is_empty());
    for cache in [&a, &b, &room.open()] {
        assert_eq!(get(cache, 1).as_deref(), Some(&b"one"[..]));
        assert_eq!(get(cache, 2), None);
    }
    assert!(a.take_notices().is_empty());
    assert!(b.take_notices().is_empty());
}

fn what_was_put_and_folded_behind_an_open_handle_is_found(kind: Kind) {
    let room = Room::new(kind);
    let (a, b) = (room.open(), room.open());
    for number in 0..20 {
        assert_eq!(get(&b, number), None);
        put(&a, number, &number.to_le_bytes());
        a.fold(Fold::Now).unwrap();
        assert_eq!(get(&b, number).as_deref(), Some(&number.to_le_bytes()[..]));
    }
}

fn the_later_put_wins(kind: Kind) {
    let room = Room::new(kind);
    let cache = room.open();
    put(&cache, 1, b"first");
    put(&cache, 1, b"second");
    assert_eq!(get(&room.open(), 1).as_deref(), Some(&b"second"[..]));
    cache.fold(Fold::Now).unwrap();
    assert_eq!(get(&room.open(), 1).as_deref(), Some(&b"second"[..]));
    put(&cache, 1, b"third");
    assert_eq!(get(&room.open(), 1).as_deref(), Some(&b"third"[..]));
    cache.fold(Fold::Now).unwrap();
    assert_eq!(get(&room.open(), 1).as_deref(), Some(&b"third"[..]));
}

fn buckets_do_not_meet(kind: Kind) {
    let room = Room::new(kind);
    let cache = room.open();
    let records: Vec<_> = Bucket::ALL
        .iter()
        .map(|&bucket| (bucket, key(1), bucket.name().as_bytes().to_vec()))
        .collect();
    cache.put(&records).unwrap();
    assert_eq!(room.spool().len(), 1, "one put, one file");
    for _ in 0..2 {
        let reader = room.open();
        for (bucket, key, value) in &records {
            assert_eq!(reader.get(*bucket, key).as_ref(), Some(value));
        }
        cache.fold(Fold::Now).unwrap();
    }
}

fn an_index_that_vanished_is_made_anew(kind: Kind) {
    let room = Room::new(kind);
    let cache = room.open();
    put(&cache, 1, b"one");
    cache.fold(Fold::Now).unwrap();
    let _ = fs::remove_dir_all(room.path("index"));
    assert_eq!(get(&room.open(), 1).as_deref(), Some(&b"one"[..]));
    put(&cache, 2, b"two");
    cache.fold(Fold::Now).unwrap();
    let reader = room.open();
    assert_eq!(get(&reader, 1).as_deref(), Some(&b"one"[..]));
    assert_eq!(get(&reader, 2).as_deref(), Some(&b"two"[..]));
}

fn a_damaged_index_is_set_aside_and_made_anew(kind: Kind) {
    // Each file of the index in turn: truncated, then overwritten.
    for overwrite in [false, true] {
        let count = index_files(&filled(kind)).len();
        for victim in 0..count {
            let room = filled(kind);
            let Some(file) = index_files(&room).get(victim).cloned() else { continue };
            let mut bytes = fs::read(&file).unwrap();
            let half = bytes.len() / 2;
            match overwrite {
                true => bytes.iter_mut().for_each(|byte| *byte ^= 0x55),
                false => bytes.truncate(half),
            }
            fs::write(&file, bytes).unwrap();
            let reader = room.open();
            for number in 0..100 {
                let found = get(&reader, number);
                assert_eq!(found.as_deref(), Some(&number.to_le_bytes()[..]), "{}", file.display());
            }
            put(&reader, 1000, b"more");
            reader.fold(Fold::Now).unwrap();
            let after = room.open();
            for number in 0..100 {
                assert_eq!(
                    get(&after, number).as_deref(),
                    Some(&number.to_le_bytes()[..]),
                    "record {number} after damage to {}: {:?}",
                    file.display(),
                    reader.take_notices(),
                );
            }
            assert_eq!(get(&after, 1000).as_deref(), Some(&b"more"[..]));
        }
    }
}

fn filled(kind: Kind) -> Room {
    let room = Room::new(kind);
    let cache = room.open();
    let records: Vec<_> =
        (0..100_u32).map(|n| (Bucket::Steps, key(n), n.to_le_bytes().to_vec())).collect();
    cache.put(&records).unwrap();
    cache.fold(Fold::Now).unwrap();
    room
}

fn index_files(room: &Room) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(room.path("index")) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            // The lock and the database's own log decide nothing.
            let name = path.file_name().unwrap().to_str().unwrap();
            !name.starts_with("LO") && fs::metadata(path).unwrap().len() > 0
        })
        .collect();
    files.sort();
    files
}

fn an_index_of_another_log_is_made_anew(kind: Kind) {
    let room = filled(kind);
    // A collector rewrote the log: only record 7 is left, under a new number.
    let other = filled_with_one(kind);
    fs::copy(other.path("records/1.log"), room.path("records/2.log")).unwrap();
    fs::remove_file(room.path("records/1.log")).unwrap();
    let cache = room.open();
    put(&cache, 1000, b"more");
    cache.fold(Fold::Now).unwrap();
    let after = room.open();
    assert_eq!(get(&after, 7).as_deref(), Some(&b"seven"[..]));
    assert_eq!(get(&after, 8), None);
    assert_eq!(get(&after, 1000).as_deref(), Some(&b"more"[..]));
}

fn filled_with_one(kind: Kind) -> Room {
    let room = Room::new(kind);
    let cache = room.open();
    put(&cache, 7, b"seven");
    cache.fold(Fold::Now).unwrap();
    room
}

fn damaged_spool_files_cost_only_themselves(kind: Kind) {
    let room = Room::new(kind);
    let cache = room.open();
    put(&cache, 1, b"one");
    let whole = fs::read(&room.spool()[0]).unwrap();
    for (number, bytes) in
        [&whole[..whole.len() - 1], b"", b"garbage", &[&whole[..], b"x"].concat()]
            .iter()
            .enumerate()
    {
        fs::write(room.path(&format!("spool/zz{number}")), bytes).unwrap();
    }
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(room.path("spool/zz9"), flipped).unwrap();
    let reader = room.open();
    assert_eq!(get(&reader, 1).as_deref(), Some(&b"one"[..]));
    let notices = reader.take_notices();
    assert_eq!(notices.len(), 5, "{notices:?}");
    assert_eq!(room.spool().len(), 1);
    assert_eq!(fs::read_dir(room.path("aside")).unwrap().count(), 5);
    assert_eq!(get(&reader, 2), None);
    assert!(reader.take_notices().is_empty(), "reported once");
    // A fold meets one nobody has read.
    fs::write(room.path("spool/zz"), b"garbage").unwrap();
    assert_eq!(cache.fold(Fold::Now).unwrap(), Folded::Done(1));
    assert!(matches!(cache.take_notices()[..], [Notice::SetAside { .. }]));
    assert!(room.spool().is_empty());
}

fn a_damaged_log_costs_only_the_damaged_records(kind: Kind) {
    let room = Room::new(kind);
    let cache = room.open();
    for number in 0..3 {
        put(&cache, number, &[number as u8; 50]);
        cache.fold(Fold::Now).unwrap();
    }
    let log = room.path("records/1.log");
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // And the end of it is a torn append.
    bytes.extend_from_slice(b"ydkrREC1\x40");
    fs::write(&log, bytes).unwrap();
    let _ = fs::remove_dir_all(room.path("index"));
    put(&cache, 3, b"three");
    cache.fold(Fold::Now).unwrap();
    let after = room.open();
    assert_eq!(get(&after, 0), Some(vec![0; 50]));
    assert_eq!(get(&after, 1), None);
    assert_eq!(get(&after, 2), Some(vec![2; 50]));
    assert_eq!(get(&after, 3).as_deref(), Some(&b"three"[..]));
    let notices = [cache.take_notices(), after.take_notices()].concat();
    assert!(
        notices.iter().any(|notice| matches!(notice, Notice::LogDamaged { .. })),
        "{notices:?}"
    );
}

fn a_held_lock_makes_a_fold_leave(kind: Kind) {
    let room = Room::new(kind);
    let cache = room.open();
    put(&cache, 1, b"one");
    let lock = File::create(room.path("records/lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(cache.fold(Fold::Now).unwrap(), Folded::Busy);
    assert_eq!(get(&room.open(), 1).as_deref(), Some(&b"one"[..]));
    drop(lock);
    assert_eq!(cache.fold(Fold::Now).unwrap(), Folded::Done(1));
}

fn a_few_records_are_not_worth_a_fold(kind: Kind) {
    let room = Room::new(kind);
    let cache = room.open();
    assert_eq!(cache.fold(Fold::Now).unwrap(), Folded::NotWorthwhile);
    put(&cache, 0, b"x");
    assert_eq!(cache.fold(Fold::IfWorthwhile).unwrap(), Folded::NotWorthwhile);
    let file = room.spool().remove(0);
    for number in 1..WORTHWHILE {
        fs::copy(&file, room.path(&format!("spool/{number}"))).unwrap();
    }
    assert_eq!(cache.fold(Fold::IfWorthwhile).unwrap(), Folded::Done(WORTHWHILE));
}

fn a_reader_gets_hits_and_changes_nothing(kind: Kind) {
    let room = filled(kind);
    put(&room.open(), 1000, b"more");
    fs::write(room.path("spool/zz"), b"garbage").unwrap();
    let before = listing(room.dir.path());
    let reader = Cache::open_with(room.dir.path(), Access::ReadOnly, kind).unwrap();
    assert_eq!(get(&reader, 1000).as_deref(), Some(&b"more"[..]));
    assert_eq!(get(&reader, 5).as_deref(), Some(&5_u32.to_le_bytes()[..]));
    assert_eq!(get(&reader, 2000), None);
    assert!(matches!(reader.put(&[(Bucket::Steps, key(1), vec![])]), Err(Error::ReadOnly { .. })));
    assert!(matches!(reader.fold(Fold::Now), Err(Error::ReadOnly { .. })));
    drop(reader);
    assert_eq!(listing(room.dir.path()), before);
}

fn listing(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        found.push((entry.path(), if metadata.is_dir() { 0 } else { metadata.len() }));
        if metadata.is_dir() {
            found.extend(listing(&entry.path()));
        }
    }
    found.sort();
    found
}

fn a_killed_fold_is_repeated_without_harm(kind: Kind) {
    // Killed before unlinking: the same files come again.
    let room = Room::new(kind);
    let cache = room.open();
    put(&cache, 1, b"one");
    put(&cache, 2, b"two");
    let kept: Vec<_> =
        room.spool().iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    cache.fold(Fold::Now).unwrap();
    for (path, bytes) in &kept {
        fs::write(path, bytes).unwrap();
    }
    cache.fold(Fold::Now).unwrap();
    // Killed between the log and the index: the log is ahead.
    put(&cache, 3, b"three");
    let spool = room.spool().remove(0);
    let frame = fs::read(&spool).unwrap();
    Log::open_for_append(room.dir.path()).unwrap().append(&frame).unwrap();
    cache.fold(Fold::Now).unwrap();
    let after = room.open();
    for (number, value) in [(1, &b"one"[..]), (2, b"two"), (3, b"three")] {
        assert_eq!(get(&after, number).as_deref(), Some(value));
    }
    assert!(cache.take_notices().is_empty());
}

fn what_is_written_over_a_failed_append_is_not_taken_for_it(kind: Kind) {
    // All that was read ends in the midst of a longer one, and with one as long.
    for replacing in [&[b'3'; 500][..], b"333"] {
        write_over_a_failed_append(kind, replacing);
    }
}

fn write_over_a_failed_append(kind: Kind, replacing: &[u8]) {
    let room = Room::new(kind);
    let cache = room.open();
    put(&cache, 1, b"one");
    cache.fold(Fold::Now).unwrap();
    let (mut index, mut notices) = (kind.index(room.dir.path()), Vec::new());
    index.refresh(&mut notices);
    // Somebody reads what is cut off as the disk is full.
    let frame = frame::encode([("steps.v1", &key(2), &b"two"[..])].into_iter()).unwrap();
    let mut log = Log::open_for_append(room.dir.path()).unwrap();
    let length = log.length().unwrap();
    log.append(&frame).unwrap();
    index.refresh(&mut notices);
    let two = index_key("steps.v1", &key(2));
    assert_eq!(index.get(&two, &mut notices).as_deref(), Some(&b"two"[..]));
    let mut until = cache.each_record(&mut |_| {}).unwrap();
    File::options().write(true).open(&log.path).unwrap().set_len(length).unwrap();
    put(&cache, 3, replacing);
    cache.fold(Fold::Now).unwrap();
    put(&cache, 4, b"four");
    cache.fold(Fold::Now).unwrap();
    index.refresh(&mut notices);
    assert_eq!(index.get(&two, &mut notices), None);
    for (number, value) in [(1, &b"one"[..]), (3, replacing), (4, b"four")] {
        let name = index_key("steps.v1", &key(number));
        assert_eq!(index.get(&name, &mut notices).as_deref(), Some(value), "{number}");
    }
    let mut found = Vec::new();
    cache.each_record_since(&mut until, &mut |seen| found.push(seen.key)).unwrap();
    assert!(found.contains(&key(3)) && found.contains(&key(4)), "{found:?}");
    assert_eq!((notices, cache.take_notices()), (vec![], vec![]));
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_torn_append_is_told_by_whoever_folds_next_and_by_nobody_else() {
    let room = Room::new(Kind::Rocks);
    let (cache, reader) = (room.open(), room.open());
    put(&cache, 1, b"one");
    cache.fold(Fold::Now).unwrap();
    assert_eq!(get(&reader, 1).as_deref(), Some(&b"one"[..]));
    let log = room.path("records/1.log");
    let torn = [fs::read(&log).unwrap(), b"ydkrREC1\xff\0\0\0".to_vec()].concat();
    fs::write(&log, torn).unwrap();
    put(&cache, 2, b"two");
    cache.fold(Fold::Now).unwrap();
    assert_eq!(get(&reader, 2).as_deref(), Some(&b"two"[..]));
    assert_eq!(reader.take_notices(), []);
    assert_eq!(cache.take_notices(), [Notice::LogDamaged { path: log, skipped: 12 }]);
}

fn many_folds_keep_everything(kind: Kind) {
    let room = Room::new(kind);
    let cache = room.open();
    for number in 0..30 {
        put(&cache, number, &number.to_le_bytes());
        cache.fold(Fold::Now).unwrap();
    }
    let after = room.open();
    for number in 0..30 {
        assert_eq!(get(&after, number).as_deref(), Some(&number.to_le_bytes()[..]));
    }
}

fn nothing_is_left_in_flight(kind: Kind) {
    let room = Room::new(kind);
    let cache = room.open();
    put(&cache, 1, b"one");
    cache.fold(Fold::Now).unwrap();
    drop(cache);
    assert_eq!(fs::read_dir(room.path("tmp")).unwrap().count(), 0);
}

/// A plain build and a RocksDB build may share a directory: both fold the log,
/// neither loses what the other folded.
#[cfg(feature = "rocksdb")]
#[test]
fn both_indexes_in_turns_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let open = |kind| Cache::open_with(dir.path(), Access::ReadWrite, kind).unwrap();
    for number in 0..6 {
        let kind = if number % 2 == 0 { Kind::Rocks } else { Kind::Plain };
        let cache = open(kind);
        put(&cache, number, &number.to_le_bytes());
        cache.fold(Fold::Now).unwrap();
    }
    let cache = open(Kind::Rocks);
    put(&cache, 6, &6_u32.to_le_bytes());
    cache.fold(Fold::Now).unwrap();
    for kind in [Kind::Rocks, Kind::Plain] {
        let after = open(kind);
        for number in 0..7 {
            assert_eq!(get(&after, number).as_deref(), Some(&number.to_le_bytes()[..]), "{kind:?}");
        }
    }
}

#[test]
fn a_malformed_record_is_a_miss_with_a_notice() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), Access::ReadWrite).unwrap();
    put(&cache, 1, b"\x01{}");
    assert_eq!(cache.record::<crate::StepRecord>(&key(1)), None);
    assert!(matches!(cache.take_notices()[..], [Notice::RecordUnreadable { .. }]));
}

/// What a model of the cache predicts.
#[derive(Debug, Clone)]
enum Act {
    Put(u32),
    Get(u32, bool),
    Fold,
    Reopen,
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0u32..6).prop_map(Act::Put),
        4 => (0u32..6, any::<bool>()).prop_map(|(key, second)| Act::Get(key, second)),
        1 => Just(Act::Fold),
        1 => Just(Act::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_acts_agrees_with_a_map(acts in prop::collection::vec(any_act(), 1..30)) {
        let room = Room::new(Kind::compiled());
        let mut handles = [room.open(), room.open()];
        let mut model = std::collections::HashMap::new();
        for act in acts {
            match act {
                // Each key has one value: records of one key are equivalent.
                Act::Put(number) => {
                    put(&handles[0], number, &number.to_le_bytes());
                    model.insert(number, number.to_le_bytes().to_vec());
                }
                Act::Get(number, second) => prop_assert_eq!(
                    get(&handles[usize::from(second)], number),
                    model.get(&number).cloned()
                ),
                Act::Fold => {
                    handles[1].fold(Fold::Now).unwrap();
                }
                Act::Reopen => handles[1] = room.open(),
            }
        }
    }
}

fn name_of(cache: &Cache, bucket: Bucket, key: &Key) -> RecordName {
    RecordName::new(bucket.name(), *key, &cache.get(bucket, key).unwrap())
}

fn all(cache: &Cache) -> Vec<(String, Key, Vec<u8>)> {
    let mut found = Vec::new();
    cache
        .each_record(&mut |seen| found.push((seen.bucket.to_owned(), seen.key, seen.value.into())))
        .unwrap();
    found.sort();
    found
}

fn what_is_no_file_in_the_spool_is_set_aside(kind: Kind) {
    let room = Room::new(kind);
    let cache = room.open();
    let key = Key::from_bytes([1; 32]);
    cache.put(&[(Bucket::Steps, key, b"value".to_vec())]).unwrap();
    // Reading a pipe would wait for ever.
    let (pipe, directory) = (room.path("spool/0-pipe"), room.path("spool/0-directory"));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    fs::create_dir(&directory).unwrap();
    let other = room.open();
    assert_eq!(other.get(Bucket::Steps, &key), Some(b"value".to_vec()));
    assert_eq!(other.take_notices().len(), 2);
    assert!(!pipe.exists() && !directory.exists());
    other.fold(Fold::Now).unwrap();
    assert_eq!(room.open().get(Bucket::Steps, &key), Some(b"value".to_vec()));
}

fn what_was_put_since_is_shown_wherever_it_is_by_then(kind: Kind) {
    let room = Room::new(kind);
    let (cache, other) = (room.open(), room.open());
    let put = |number: u8| {
        let key = Key::from_bytes([number; 32]);
        other.put(&[(Bucket::Steps, key, vec![number])]).unwrap();
    };
    put(1);
    other.fold(Fold::Now).unwrap();
    put(2);
    let mut until = cache.each_record(&mut |_| {}).unwrap();
    let mut since = |least: &[u8]| {
        let mut found = Vec::new();
        cache.each_record_since(&mut until, &mut |seen| found.push(seen.value[0])).unwrap();
        found.sort_unstable();
        found.dedup();
        assert!(least.iter().all(|number| found.contains(number)), "{found:?}");
        assert!(!found.contains(&1), "{found:?}");
        found
    };
    assert_eq!(since(&[]), [0; 0]);
    put(3);
    assert_eq!(since(&[3]), [3]);
    assert_eq!(since(&[]), [0; 0]);
    put(4);
    other.fold(Fold::Now).unwrap();
    put(5);
    since(&[4, 5]);
    assert_eq!(since(&[]), [0; 0]);
    other.compact(true).unwrap();
    put(6);
    let mut found = Vec::new();
    cache.each_record_since(&mut until, &mut |seen| found.push(seen.value[0])).unwrap();
    assert!(found.contains(&6));
}

fn what_is_taken_back_is_gone_before_and_after_a_fold(kind: Kind) {
    for (fold_put, fold_back) in [(false, false), (false, true), (true, false), (true, true)] {
        let room = Room::new(kind);
        let (cache, other) = (room.open(), room.open());
        let (gone, stays) = (Key::from_bytes([1; 32]), Key::from_bytes([2; 32]));
        for key in [gone, stays] {
            cache.put(&[(Bucket::Steps, key, b"value".to_vec())]).unwrap();
        }
        if fold_put {
            cache.fold(Fold::Now).unwrap();
        }
        cache.take_back(&[name_of(&cache, Bucket::Steps, &gone)]).unwrap();
        if fold_back {
            cache.fold(Fold::Now).unwrap();
        }
        for handle in [&cache, &other, &room.open()] {
            assert_eq!(handle.get(Bucket::Steps, &gone), None, "{fold_put} {fold_back}");
            assert!(handle.get(Bucket::Steps, &stays).is_some());
            assert_eq!(all(handle), [("steps.v1".into(), stays, b"value".to_vec())]);
        }
        cache.put(&[(Bucket::Steps, gone, b"value".to_vec())]).unwrap();
        for _ in 0..2 {
            assert!(room.open().get(Bucket::Steps, &gone).is_some(), "put again");
            cache.fold(Fold::Now).unwrap();
        }
    }
}

fn taking_back_spares_what_was_put_meanwhile(kind: Kind) {
    let room = Room::new(kind);
    let (builder, collector) = (room.open(), room.open());
    let key = Key::from_bytes([1; 32]);
    for fold in [false, true] {
        builder.put(&[(Bucket::Steps, key, b"old".to_vec())]).unwrap();
        let seen = name_of(&collector, Bucket::Steps, &key);
        builder.put(&[(Bucket::Steps, key, b"new".to_vec())]).unwrap();
        if fold {
            builder.fold(Fold::Now).unwrap();
        }
        collector.take_back(&[seen]).unwrap();
        assert_eq!(room.open().get(Bucket::Steps, &key).as_deref(), Some(&b"new"[..]));
        builder.fold(Fold::Now).unwrap();
        assert_eq!(room.open().get(Bucket::Steps, &key).as_deref(), Some(&b"new"[..]));
    }
}

fn a_log_made_shorter_says_the_same(kind: Kind) {
    let room = Room::new(kind);
    let cache = room.open();
    let key = |number: u32| Key::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes());
    let value = |number: u32| vec![number as u8; 5_000];
    for chunk in 0..20 {
        let puts: Vec<_> =
            (0..50).map(|n| (Bucket::Steps, key(chunk * 50 + n), value(chunk * 50 + n))).collect();
        cache.put(&puts).unwrap();
    }
    cache.fold(Fold::Now).unwrap();
    assert_eq!(cache.compact(false).unwrap(), Compacted::NotWorthwhile);
    let open = room.open();
    assert!(open.get(Bucket::Steps, &key(0)).is_some());
    let names: Vec<_> =
        (0..900).map(|number| RecordName::new("steps.v1", key(number), &value(number))).collect();
    cache.take_back(&names).unwrap();
    let Compacted::Done(saved) = cache.compact(false).unwrap() else { panic!("worthwhile") };
    assert!(saved > 4_000_000);
    let logs = |room: &Room| {
        let names = fs::read_dir(room.path("records")).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.ends_with(".log"));
        names
    };
    assert_eq!(logs(&room), ["2.log"]);
    cache.put(&[(Bucket::Steps, key(2_000), value(7))]).unwrap();
    cache.fold(Fold::Now).unwrap();
    for handle in [&open, &cache, &room.open()] {
        for number in 0..1_000 {
            let found = handle.get(Bucket::Steps, &key(number));
            assert_eq!(found, (number >= 900).then(|| value(number)), "{number}");
        }
        assert!(handle.get(Bucket::Steps, &key(2_000)).is_some());
        assert_eq!(handle.take_notices(), []);
    }
    assert_eq!(all(&cache).len(), 101);
    // Killed between the new log and the index's new position.
    fs::rename(room.path("records/2.log"), room.path("records/3.log")).unwrap();
    assert!(room.open().get(Bucket::Steps, &key(950)).is_some());
    cache.put(&[(Bucket::Steps, key(2_001), value(7))]).unwrap();
    cache.fold(Fold::Now).unwrap();
    let reader = room.open();
    assert!(reader.get(Bucket::Steps, &key(950)).is_some());
    assert!(reader.get(Bucket::Steps, &key(2_001)).is_some());
    assert_eq!(reader.get(Bucket::Steps, &key(5)), None);
    assert_eq!([cache.take_notices(), reader.take_notices()], [[], []]);
}
