//! Promises of the store.

use std::io::Write;

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn in_flight(dir: &tempfile::TempDir) -> usize {
    fs::read_dir(dir.path().join("tmp"))
        .unwrap()
        .map(|lease| fs::read_dir(lease.unwrap().path()).unwrap().count())
        .sum()
}

#[test]
fn a_blob_is_found_by_its_digest_and_length() {
    let (dir, store) = store();
    let mut writer = store.blob_writer().unwrap();
    writer.write_all(b"hel").unwrap();
    writer.write_all(b"lo").unwrap();
    assert_eq!(writer.size(), 5);
    let digest = Digest::of(b"hello");
    assert!(!store.has_blob(&digest, None).unwrap());
    assert_eq!(writer.commit(Some(&digest)).unwrap(), (digest, 5));
    assert!(store.has_blob(&digest, None).unwrap());
    assert!(store.has_blob(&digest, Some(5)).unwrap());
    assert!(!store.has_blob(&digest, Some(6)).unwrap());
    assert_eq!(fs::read(store.blob_path(&digest)).unwrap(), b"hello");
    assert_eq!(store.read_small_blob(&digest, 5).unwrap().as_deref(), Some(&b"hello"[..]));
    assert!(store.open_blob(&digest).unwrap().is_some());
    assert!(store.open_blob(&Digest::of(b"other")).unwrap().is_none());
    assert_eq!(in_flight(&dir), 0);
}

#[test]
fn other_bytes_than_promised_are_refused_and_leave_nothing() {
    let (dir, store) = store();
    let mut writer = store.blob_writer().unwrap();
    writer.write_all(b"evil").unwrap();
    let promised = Digest::of(b"good");
    assert!(matches!(
        writer.commit(Some(&promised)),
        Err(Error::WrongDigest { expected, found }) if expected == promised && found == Digest::of(b"evil")
    ));
    assert!(!store.has_blob(&promised, None).unwrap());
    assert!(!store.has_blob(&Digest::of(b"evil"), None).unwrap());
    let mut layer = store.layer_writer().unwrap();
    layer.write_all(b"evil").unwrap();
    assert!(matches!(layer.commit(&DiffId::of(b"good"), b"index"), Err(Error::WrongDigest { .. })));
    assert_eq!(store.layer(&DiffId::of(b"good")).unwrap(), None);
    assert_eq!(in_flight(&dir), 0);
}

#[test]
fn an_abandoned_writer_leaves_nothing() {
    let (dir, store) = store();
    let mut writer = store.blob_writer().unwrap();
    writer.write_all(b"half").unwrap();
    assert_eq!(in_flight(&dir), 1);
    drop(writer);
    assert_eq!(in_flight(&dir), 0);
}

#[test]
fn an_existing_blob_stays_and_a_truncated_one_is_replaced() {
    use std::os::unix::fs::MetadataExt;
    let (dir, store) = store();
    let digest = store.put_blob(b"hello").unwrap();
    let path = store.blob_path(&digest);
    let inode = fs::metadata(&path).unwrap().ino();
    assert_eq!(store.put_blob(b"hello").unwrap(), digest);
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    fs::write(&path, "hel").unwrap();
    store.put_blob(b"hello").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert_eq!(in_flight(&dir), 0);
}

#[test]
fn a_damaged_blob_is_told_once_and_then_missing() {
    let (_dir, store) = store();
    let digest = store.put_blob(b"hello").unwrap();
    fs::write(store.blob_path(&digest), "hellO").unwrap();
    assert_eq!(store.read_small_blob(&digest, 100).unwrap(), None);
    assert!(matches!(&store.take_notices()[..], [Notice::SetAside { .. }]));
    assert_eq!(store.read_small_blob(&digest, 100).unwrap(), None);
    assert!(!store.has_blob(&digest, None).unwrap());
    assert_eq!(store.take_notices(), []);
}

/// Other bytes of the same length, under the same seal.
fn rot(path: &Path) {
    let before = fs::metadata(path).and_then(|found| found.modified()).unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[0] ^= 1;
    fs::write(path, bytes).unwrap();
    File::options().write(true).open(path).and_then(|file| file.set_modified(before)).unwrap();
}

#[test]
fn what_came_in_place_of_a_damaged_file_stays() {
    let (dir, store) = store();
    let digest = store.put_blob(b"hello").unwrap();
    let path = store.blob_path(&digest);
    rot(&path);
    let damaged = fs::metadata(&path).unwrap();
    // Another builder, between our hashing and setting aside.
    let new = dir.path().join("tmp/new");
    fs::write(&new, "hello").unwrap();
    fs::rename(&new, &path).unwrap();
    assert!(!store.set_file_aside(&damaged, &[&path], "it is damaged").unwrap());
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert_eq!(store.take_notices(), []);
    let found = fs::metadata(&path).unwrap();
    assert!(store.set_file_aside(&found, &[&path], "it is damaged").unwrap());
    assert!(!path.exists());
    assert!(store.set_file_aside(&found, &[&path], "it is damaged").unwrap(), "it went already");
    assert_eq!(store.take_notices().len(), 1);
}

#[test]
fn what_was_made_anew_is_good_for_who_found_it_damaged() {
    let (dir, store) = store();
    let reader = Store::open_read_only(dir.path()).unwrap();
    let digest = store.put_blob(b"hello").unwrap();
    fs::write(store.blob_path(&digest), "hellO").unwrap();
    for _ in 0..2 {
        assert!(!reader.has_blob(&digest, None).unwrap());
    }
    assert_eq!(reader.take_notices().len(), 1);
    store.put_blob(b"hello").unwrap();
    assert!(reader.has_blob(&digest, None).unwrap());
}

#[test]
fn what_is_damaged_and_in_the_way_is_replaced() {
    let (_dir, store) = store();
    let digest = store.put_blob(b"hello").unwrap();
    let path = store.blob_path(&digest);
    rot(&path);
    // As where it can't be set aside.
    let found = FileId::of(&fs::metadata(&path).unwrap());
    lock(&store.damaged).insert(blob_name(&digest), found);
    let mut writer = store.blob_writer().unwrap();
    writer.write_all(b"hello").unwrap();
    writer.commit(Some(&digest)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert!(store.has_blob(&digest, Some(5)).unwrap());
}

#[test]
fn a_blob_beyond_the_limit_is_not_read() {
    let (_dir, store) = store();
    let digest = store.put_blob(b"hello").unwrap();
    assert!(matches!(
        store.read_small_blob(&digest, 4),
        Err(Error::TooLarge { size: 5, limit: 4, .. })
    ));
}

#[test]
fn a_layer_is_there_only_with_its_index() {
    let (dir, store) = store();
    let diff_id = DiffId::of(b"tar");
    let mut writer = store.layer_writer().unwrap();
    writer.write_all(b"tar").unwrap();
    assert_eq!(store.layer(&diff_id).unwrap(), None);
    writer.commit(&diff_id, b"index").unwrap();
    let layer = store.layer(&diff_id).unwrap().unwrap();
    assert_eq!(fs::read(&layer.tar).unwrap(), b"tar");
    let open = store.open_layer(&diff_id).unwrap().unwrap();
    assert_eq!(open.index.as_ref(), b"index");
    assert_eq!(open.tar.metadata().unwrap().len(), 3);
    assert_eq!(in_flight(&dir), 0);
    // As after a kill between the two.
    fs::remove_file(&layer.index).unwrap();
    assert_eq!(store.layer(&diff_id).unwrap(), None);
    assert!(store.open_layer(&diff_id).unwrap().is_none());
    assert_eq!(open.index.as_ref(), b"index", "what is open stays");
    let mut again = store.layer_writer().unwrap();
    again.write_all(b"tar").unwrap();
    again.commit(&diff_id, b"index").unwrap();
    assert!(store.layer(&diff_id).unwrap().is_some());
    store.discard_layer(&diff_id).unwrap();
    assert_eq!(store.layer(&diff_id).unwrap(), None);
}

#[test]
fn an_empty_layer_index_can_be_opened() {
    let (_dir, store) = store();
    let diff_id = DiffId::of(b"");
    store.layer_writer().unwrap().commit(&diff_id, b"").unwrap();
    assert!(store.open_layer(&diff_id).unwrap().unwrap().index.as_ref().is_empty());
}

#[test]
fn scratch_goes_with_the_store_and_cache_mounts_stay() {
    let (dir, store) = store();
    let (a, b) = (store.scratch().unwrap(), store.scratch().unwrap());
    assert_ne!(a, b);
    fs::write(a.join("work"), "x").unwrap();
    let mount = store.cache_mount_dir("00ff").unwrap();
    fs::write(mount.join("kept"), "x").unwrap();
    drop(store);
    assert!(!a.exists());
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    let again = Store::open(dir.path()).unwrap();
    assert!(again.cache_mount_dir("00ff").unwrap().join("kept").exists());
}

#[test]
fn a_read_only_store_gives_what_it_has_through_one_in_front() {
    let (_old, filled) = store();
    let digest = filled.put_blob(b"hello").unwrap();
    let diff_id = DiffId::of(b"tar");
    let mut layer = filled.layer_writer().unwrap();
    layer.write_all(b"tar").unwrap();
    layer.commit(&diff_id, b"index").unwrap();
    let read_only = Store::open_read_only(filled.directory()).unwrap();
    assert!(matches!(read_only.blob_writer(), Err(Error::ReadOnly { .. })));
    assert!(matches!(read_only.scratch(), Err(Error::ReadOnly { .. })));
    let (_new, front) = store();
    let front = front.in_front_of(read_only);
    assert!(front.has_blob(&digest, Some(5)).unwrap());
    assert_eq!(front.read_small_blob(&digest, 9).unwrap().as_deref(), Some(&b"hello"[..]));
    assert_eq!(front.blob_path(&digest), filled.blob_path(&digest));
    assert!(front.open_layer(&diff_id).unwrap().is_some());
    let new = front.put_blob(b"new").unwrap();
    assert!(front.blob_path(&new).starts_with(front.directory()));
    assert!(!filled.has_blob(&new, None).unwrap());
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing_half_written() {
    // A file size limit stands in for a full disk where no small one is at hand;
    // `tests/cache_processes.rs` fills a real one.
    let error = Error::io("write", Path::new("/cache/tmp/x"))(io::Error::from_raw_os_error(28));
    assert_eq!(
        error.to_string(),
        "no space left to write /cache/tmp/x: free some, or choose another directory with --cache-dir"
    );
    assert_eq!(error.into_io().kind(), io::ErrorKind::StorageFull);
}
