//! The overlay on a real kernel: needs `/dev/fuse` and the right to mount.
//!
//! Without them each test says so and passes, unless `YADOKARI_REQUIRE` lists
//! `fuse`: then it fails. What a test wrote is looked at a second time in a fresh
//! mount, because the kernel's caches hide what a filesystem forgot.

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/both.rs"]
mod both;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/mapper.rs"]
mod mapper;

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use both::Guard;
use mapper::Mapper;
use rustix::fs::CWD;
use rustix::fs::FallocateFlags;
use rustix::fs::RenameFlags;
use rustix::fs::XattrFlags;
use yadokari::change::ChangeSet;
use yadokari::layer;
use yadokari::layer::LayerIndex;
use yadokari::overlay::Attributes;
use yadokari::overlay::Lower;
use yadokari::overlay::MountError;
use yadokari::overlay::Overlay;
use yadokari::overlay::Session;
use yadokari::path::Name;
use yadokari::path::RootPath;
use yadokari::snapshot::LogSnapshotter;
use yadokari::snapshot::Mode;
use yadokari::snapshot::Snapshotter;
use yadokari::snapshot::WalkSnapshotter;
use yadokari::tree::Timestamp;

const BUSYBOX: &str = "/bin/busybox";

/// An overlay and its mount. Unmounted when the test ends, however it ends.
struct Mounted {
    overlay: Arc<Overlay>,
    session: Option<Session>,
    place: tempfile::TempDir,
    _guard: Guard,
}

impl Mounted {
    fn over(lowers: Vec<Lower>) -> Option<Self> {
        let place = tempfile::tempdir().expect("a directory");
        for name in ["root", "scratch"] {
            fs::create_dir(place.path().join(name)).expect("a directory");
        }
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let overlay = Overlay::new(lowers, &place.path().join("scratch")).expect("an overlay");
        let guard = Guard::of(&place.path().join("root"));
        let mut mounted = Self { overlay, session: None, place, _guard: guard };
        match mounted.mount() {
            Ok(()) => Some(mounted),
            Err(
                error @ (MountError::NoDevice(_)
                | MountError::DeviceRefused(_)
                | MountError::NotPermitted(_)),
            ) => {
                let required = std::env::var("YADOKARI_REQUIRE").unwrap_or_default();
                assert!(!required.split(',').any(|need| need == "fuse"), "{error}");
                eprintln!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn new() -> Option<Self> {
        Self::over(Vec::new())
    }

    fn mount(&mut self) -> Result<(), MountError> {
        let session = self.overlay.mount(&self.root(), both::options())?;
        self.session = Some(session);
        Ok(())
    }

    fn root(&self) -> PathBuf {
        self.place.path().join("root")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn session(&self) -> &Session {
        self.session.as_ref().expect("mounted")
    }

    /// Unmounts and mounts again: nothing is cached any more.
    fn remount(&mut self) {
        self.session.take().expect("mounted").unmount().expect("unmounted");
        assert!(!is_mounted(&self.root()));
        self.mount().expect("mounted again");
    }

    /// Folds what happened since the mark, and checks it against a full walk.
    fn changes(&self, walk: &mut WalkSnapshotter) -> ChangeSet {
        self.session().sync().expect("synced");
        let (before, after, log) =
            (self.overlay.before(), self.overlay.after(), self.overlay.log());
        let mut fold = LogSnapshotter::new();
        let set = fold.changes(before.as_ref(), after.as_ref(), &log).expect("a change set");
        let walked = walk.changes(before.as_ref(), after.as_ref(), &log).expect("a change set");
        assert_eq!(layer_of(&set).0, layer_of(&walked).0, "log and walk");
        set
    }

    fn mark(&self) -> WalkSnapshotter {
        self.overlay.mark();
        let mut walk = WalkSnapshotter::new(Mode::Full);
        walk.mark(self.overlay.after().as_ref()).expect("a readable tree");
        walk
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let root = self.root();
        drop(self.session.take());
        if !std::thread::panicking() {
            assert!(!is_mounted(&root), "nothing stays mounted");
        }
    }
}

fn is_mounted(at: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
    mounts.lines().any(|line| line.split(' ').nth(1) == at.to_str())
}

fn layer_of(set: &ChangeSet) -> (Vec<u8>, Vec<u8>) {
    let mut tar = Vec::new();
    let written = layer::write(set, &layer::WriteOptions::default(), &mut tar).expect("a layer");
    (tar, written.index)
}

fn lower_of(set: &ChangeSet) -> Lower {
    let (tar, index) = layer_of(set);
    let mut blob = tempfile::tempfile().expect("a file");
    blob.write_all(&tar).expect("room");
    let index = LayerIndex::from_bytes(index).expect("a good index");
    Lower { index: Arc::new(index), blob: Arc::new(blob) }
}

/// A layer with the files `files`, and busybox as `bin/busybox`.
fn base(files: &[(&str, &[u8])]) -> Lower {
    let overlay = Overlay::new(Vec::new(), &std::env::temp_dir()).expect("an overlay");
    overlay.mark();
    let busybox = fs::read(BUSYBOX).unwrap_or_default();
    let all = files.iter().map(|(path, bytes)| (*path, bytes.to_vec()));
    for (path, bytes) in all.chain([("bin/busybox", busybox)]) {
        put(&overlay, path, bytes);
    }
    let (before, after) = (overlay.before(), overlay.after());
    let set = LogSnapshotter::new()
        .changes(before.as_ref(), after.as_ref(), &overlay.log())
        .expect("a change set");
    lower_of(&set)
}

fn put(overlay: &Overlay, path: &str, bytes: Vec<u8>) {
    let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::seconds(1000) };
    let path = RootPath::clamped(path.as_bytes()).expect("no NUL");
    let (parent, name) = (path.parent().expect("a parent"), path.file_name().expect("a name"));
    let (parent, _) = overlay.make_directories(&parent, &attributes).expect("directories");
    overlay.put_file(parent, &name, &attributes, Arc::new(bytes)).expect("a file");
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(next).collect()
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The number of the error of `result`.
fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("must fail").raw_os_error().expect("an error of the system")
}

#[test]
fn files_are_created_written_and_read_back_after_a_remount() {
    let Some(mut mounted) = Mounted::new() else { return };
    fs::create_dir_all(mounted.at("a/b")).unwrap();
    fs::write(mounted.at("a/b/f"), "hello").unwrap();
    OpenOptions::new()
        .append(true)
        .open(mounted.at("a/b/f"))
        .unwrap()
        .write_all(b" again")
        .unwrap();
    assert_eq!(read(&mounted.at("a/b/f")), b"hello again");
    let created = OpenOptions::new().write(true).create_new(true).open(mounted.at("a/b/f"));
    assert_eq!(errno(created), libc::EEXIST);
    let before = fs::metadata(mounted.at("a/b/f")).unwrap();
    mounted.remount();
    assert_eq!(read(&mounted.at("a/b/f")), b"hello again");
    let after = fs::metadata(mounted.at("a/b/f")).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
}

/// The kernel sends neither OPEN nor O_TRUNC; the old tail must not come back.
#[test]
fn a_truncating_open_drops_the_old_tail() {
    let Some(mut mounted) = Mounted::over(vec![base(&[("f", b"a long old content")])]) else {
        return;
    };
    fs::write(mounted.at("f"), "x").unwrap();
    fs::write(mounted.at("g"), "a long old content").unwrap();
    fs::write(mounted.at("g"), "").unwrap();
    mounted.remount();
    assert_eq!(read(&mounted.at("f")), b"x");
    assert_eq!(read(&mounted.at("g")), b"");
}

#[test]
fn a_large_file_survives_random_writes_truncation_and_remounts() {
    let Some(mut mounted) = Mounted::new() else { return };
    let mut model = pattern(9 << 20, 1);
    fs::write(mounted.at("big"), &model).unwrap();
    let file = OpenOptions::new().write(true).read(true).open(mounted.at("big")).unwrap();
    for round in 0..60_u64 {
        let piece = pattern(1 + (round as usize * 7919) % 50_000, round + 2);
        let at = (round as usize * 1_000_003) % (model.len() - piece.len());
        file.write_all_at(&piece, at as u64).unwrap();
        model[at..at + piece.len()].copy_from_slice(&piece);
        if round % 20 == 19 {
            mounted.overlay.mark();
        }
    }
    file.set_len(5_000_001).unwrap();
    model.truncate(5_000_001);
    file.set_len(6 << 20).unwrap();
    model.resize(6 << 20, 0);
    drop(file);
    assert!(read(&mounted.at("big")) == model);
    mounted.remount();
    assert!(read(&mounted.at("big")) == model);
}

#[test]
fn shared_writable_mappings_reach_the_log() {
    let Some(mut mounted) = Mounted::over(vec![base(&[("f", &[7; 10_000])])]) else { return };
    let mut walk = mounted.mark();
    let mut mapper = Mapper::start();
    mapper.write(&mounted.at("f"), &[(5000, b"MMAP".to_vec())]).unwrap();
    // The page stays with the kernel until it is asked for.
    let set = mounted.changes(&mut walk);
    assert_eq!(set.changes.len(), 1);
    mapper.forget().unwrap();
    mounted.remount();
    assert_eq!(&read(&mounted.at("f"))[4999..5005], b"\x07MMAP\x07");
}

#[test]
fn names_are_renamed_linked_and_removed() {
    let Some(mut mounted) = Mounted::over(vec![base(&[("d/one", b"1"), ("d/two", b"2")])]) else {
        return;
    };
    let at = |name: &str| mounted.at(name);
    let rename = |from: &str, to: &str, flags| {
        rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags).map_err(std::io::Error::from)
    };
    assert_eq!(errno(rename("d/one", "d/two", RenameFlags::NOREPLACE)), libc::EEXIST);
    rename("d/one", "d/two", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((read(&at("d/one")), read(&at("d/two"))), (b"2".to_vec(), b"1".to_vec()));
    rename("d/one", "d/moved", RenameFlags::WHITEOUT).unwrap();
    let whiteout = fs::metadata(at("d/one")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    fs::hard_link(at("d/two"), at("linked")).unwrap();
    assert_eq!(fs::metadata(at("d/two")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(at("d/two")).unwrap().ino(), fs::metadata(at("linked")).unwrap().ino());
    fs::write(at("linked"), "through").unwrap();
    assert_eq!(read(&at("d/two")), b"through");
    fs::remove_file(at("d/two")).unwrap();
    assert_eq!(fs::metadata(at("linked")).unwrap().nlink(), 1);
    assert_eq!(errno(fs::remove_dir(at("d"))), libc::ENOTEMPTY);
    // A lower directory moves without a copy.
    fs::rename(at("d"), at("e")).unwrap();
    assert_eq!(errno(fs::metadata(at("d"))), libc::ENOENT);
    symlink("e/moved", at("soft")).unwrap();
    assert_eq!(read(&at("soft")), b"2");
    let long = "x".repeat(256);
    assert_eq!(errno(File::create(at(&long))), libc::ENAMETOOLONG);
    File::create(at(&long[..255])).unwrap();
    mounted.remount();
    assert_eq!(read(&mounted.at("e/moved")), b"2");
    assert_eq!(fs::read_link(mounted.at("soft")).unwrap(), Path::new("e/moved"));
    assert_eq!(read(&mounted.at("linked")), b"through");
}

#[test]
fn a_removed_file_lives_while_it_is_open() {
    let Some(mounted) = Mounted::over(vec![base(&[("f", b"lower")])]) else { return };
    let mut file = OpenOptions::new().read(true).write(true).open(mounted.at("f")).unwrap();
    fs::remove_file(mounted.at("f")).unwrap();
    fs::write(mounted.at("f"), "another").unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b" still").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "lower still");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(read(&mounted.at("f")), b"another");
}

#[test]
fn metadata_and_attributes_are_kept() {
    let Some(mut mounted) = Mounted::over(vec![base(&[("f", b"x")])]) else { return };
    let path = mounted.at("f");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    // chown(2) takes set-user-id away.
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o750);
    let set = |name: &str, value: &[u8], flags| {
        rustix::fs::setxattr(&path, name, value, flags).map_err(std::io::Error::from)
    };
    set("user.one", b"1", XattrFlags::CREATE).unwrap();
    assert_eq!(errno(set("user.one", b"1", XattrFlags::CREATE)), libc::EEXIST);
    assert_eq!(errno(set("user.two", b"2", XattrFlags::REPLACE)), libc::ENODATA);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set("security.capability", &capability, XattrFlags::empty()).unwrap();
    let time = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 6 },
        last_modification: rustix::fs::Timespec { tv_sec: -2, tv_nsec: 800_000_000 },
    };
    rustix::fs::utimensat(CWD, &path, &time, rustix::fs::AtFlags::empty()).unwrap();
    mounted.remount();
    let data = fs::metadata(&path).unwrap();
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (12, 34, 0o750));
    assert_eq!((data.mtime(), data.mtime_nsec()), (-2, 800_000_000));
    assert_eq!((data.atime(), data.atime_nsec()), (5, 6));
    let mut buffer = [0; 64];
    let length = rustix::fs::getxattr(&path, "security.capability", &mut buffer).unwrap();
    assert_eq!(buffer[..length], capability);
    let length = rustix::fs::listxattr(&path, &mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"security.capability\0user.one\0");
    // Writing takes file capabilities away.
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"y").unwrap();
    let gone = rustix::fs::getxattr(&path, "security.capability", &mut buffer);
    assert_eq!(gone, Err(rustix::io::Errno::NODATA));
}

#[test]
fn other_users_are_held_to_permissions() {
    let Some(mounted) = Mounted::over(vec![base(&[("f", b"x")])]) else { return };
    fs::set_permissions(mounted.at("f"), fs::Permissions::from_mode(0o600)).unwrap();
    let as_nobody = |script: &str| {
        let mut command = Command::new("sh");
        command.current_dir(mounted.root()).args(["-c", script]).uid(65534).gid(65534);
        command.stderr(std::process::Stdio::null()).status().unwrap().success()
    };
    assert!(!as_nobody("cat f"));
    assert!(!as_nobody("echo x > new"));
    // A write by somebody else clears set-user-id and set-group-id.
    fs::set_permissions(mounted.at("f"), fs::Permissions::from_mode(0o6777)).unwrap();
    assert!(as_nobody("echo longer > f"));
    assert_eq!(fs::metadata(mounted.at("f")).unwrap().mode() & 0o7777, 0o777);
    // Sticky: nobody removes what belongs to others.
    fs::create_dir(mounted.at("tmp")).unwrap();
    fs::set_permissions(mounted.at("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(mounted.at("tmp/roots"), "").unwrap();
    assert!(!as_nobody("rm -f tmp/roots"));
    assert!(as_nobody("echo x > tmp/own && rm tmp/own"));
}

#[test]
fn special_files_work() {
    let Some(mounted) = Mounted::new() else { return };
    let fifo = mounted.at("fifo");
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let writer = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::write(fifo, "through the pipe").unwrap()
    });
    assert_eq!(read(&fifo), b"through the pipe");
    writer.join().unwrap();
    let device = rustix::fs::makedev(1, 5);
    let mode = 0o666.into();
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, mounted.at("zero"), kind, mode, device).unwrap();
    assert_eq!(fs::metadata(mounted.at("zero")).unwrap().rdev(), device);
    let mut zeros = [1; 8];
    File::open(mounted.at("zero")).unwrap().read_exact(&mut zeros).unwrap();
    assert_eq!(zeros, [0; 8]);
    let _listener = std::os::unix::net::UnixListener::bind(mounted.at("socket")).unwrap();
    std::os::unix::net::UnixStream::connect(mounted.at("socket")).unwrap();
}

#[test]
fn holes_are_made_found_and_copied() {
    let Some(mut mounted) = Mounted::new() else { return };
    let path = mounted.at("sparse");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(20 << 30).unwrap();
    file.write_all_at(b"far", 10 << 30).unwrap();
    assert!(file.metadata().unwrap().blocks() < 100);
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap();
    assert_eq!(data, 10 << 30);
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
    let end = (10 << 30) + 3;
    // A disk knows of whole blocks alone.
    let is_near = both::options().passthrough && hole == (10 << 30) + 4096;
    assert!(hole == end || is_near, "{hole}");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 10 << 30, 1).unwrap();
    let copy = File::create(mounted.at("copy")).unwrap();
    let (mut from, mut to) = ((10_u64 << 30) - 2, 1_u64);
    let copied =
        rustix::fs::copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), 100).unwrap();
    assert_eq!(copied, 100);
    let grown = OpenOptions::new().write(true).open(&path).unwrap();
    rustix::fs::fallocate(&grown, FallocateFlags::empty(), 20 << 30, 5).unwrap();
    drop((file, copy, grown));
    mounted.remount();
    assert_eq!(fs::metadata(mounted.at("sparse")).unwrap().len(), (20 << 30) + 5);
    let copy = read(&mounted.at("copy"));
    assert_eq!((&copy[..6], copy.len()), (&b"\0\0\0\0ar"[..], 101));
}

#[test]
fn thousands_of_small_files_are_listed_read_and_removed() {
    let Some(mut mounted) = Mounted::new() else { return };
    let count = 3000;
    fs::create_dir(mounted.at("many")).unwrap();
    for number in 0..count {
        fs::write(mounted.at(&format!("many/{number}")), number.to_string()).unwrap();
    }
    mounted.remount();
    let mut seen = 0;
    for entry in fs::read_dir(mounted.at("many")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(read(&entry.path()), entry.file_name().as_encoded_bytes());
        seen += 1;
    }
    assert_eq!(seen, count);
    fs::remove_dir_all(mounted.at("many")).unwrap();
    assert_eq!(fs::read_dir(mounted.root()).unwrap().count(), 0);
}

#[test]
fn threads_work_side_by_side() {
    let Some(mut mounted) = Mounted::new() else { return };
    let root = mounted.root();
    std::thread::scope(|scope| {
        for worker in 0..6_u64 {
            let root = &root;
            scope.spawn(move || {
                let own = root.join(format!("w{worker}"));
                fs::create_dir(&own).unwrap();
                for round in 0..60 {
                    let bytes = pattern(1000 + round * 37, worker + 1);
                    fs::write(own.join("tmp"), &bytes).unwrap();
                    fs::rename(own.join("tmp"), own.join(format!("f{}", round % 7))).unwrap();
                    fs::write(root.join("shared"), [worker as u8; 100]).unwrap();
                    let shared = fs::read(root.join("shared")).unwrap();
                    assert!(shared.len() <= 100);
                    let _ = fs::hard_link(own.join("f0"), root.join(format!("l{round}")));
                    let _ = fs::remove_file(root.join(format!("l{}", round / 2)));
                }
            });
        }
    });
    mounted.remount();
    for worker in 0..6 {
        let file = mounted.at(&format!("w{worker}/f3"));
        assert_eq!(read(&file), pattern(1000 + 59 * 37, worker + 1));
    }
}

#[test]
fn programs_run_from_the_mount() {
    if !Path::new(BUSYBOX).exists() {
        return;
    }
    let Some(mounted) = Mounted::over(vec![base(&[])]) else { return };
    let mut walk = mounted.mark();
    let script = "cd /; /bin/busybox mkdir t && /bin/busybox cp /bin/busybox t/ && \
                  t/busybox echo ran > /out && t/busybox rm -r t";
    let status = Command::new("chroot")
        .arg(mounted.root())
        .args(["/bin/busybox", "sh", "-c", script])
        .status()
        .unwrap();
    assert!(status.success());
    let set = mounted.changes(&mut walk);
    let paths: Vec<String> = set.changes.iter().map(|change| change.path().to_string()).collect();
    assert_eq!(paths, ["/out"]);
}

#[test]
fn edits_show_in_a_live_mount() {
    let Some(mounted) = Mounted::over(vec![base(&[("d/f", b"old")])]) else { return };
    let overlay = &mounted.overlay;
    let list = |at: &str| -> Vec<String> {
        let entries = fs::read_dir(mounted.at(at)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    // Everything is in the kernel's caches first, also that there is no `new`.
    assert_eq!(read(&mounted.at("d/f")), b"old");
    assert!(!mounted.at("d/new").exists() && list("d") == ["f"]);
    put(overlay, "d/f", b"changed and longer".to_vec());
    put(overlay, "d/new", b"new".to_vec());
    assert_eq!(read(&mounted.at("d/f")), b"changed and longer");
    assert_eq!(read(&mounted.at("d/new")), b"new");
    assert_eq!(list("d"), ["f", "new"]);
    let place = overlay
        .resolve(&RootPath::clamped(b"d/f").unwrap(), yadokari::overlay::Follow::All)
        .unwrap();
    let attributes = Attributes { mode: 0o640, uid: 3, gid: 4, mtime: Timestamp::seconds(9) };
    overlay.set_attributes(place.node.unwrap(), &attributes).unwrap();
    let data = fs::metadata(mounted.at("d/f")).unwrap();
    assert_eq!((data.mode() & 0o7777, data.uid(), data.mtime()), (0o640, 3, 9));
    overlay.remove(overlay.after().root(), &Name::new(b"d").unwrap()).unwrap();
    assert_eq!(list(""), ["bin"]);
    assert!(!mounted.at("d/f").exists());
    let stubs = vec![overlay.make_stub_directory(&RootPath::clamped(b"mnt/x").unwrap()).unwrap()];
    assert!(mounted.at("mnt/x").is_dir());
    overlay.remove_stubs(stubs).unwrap();
    assert!(!mounted.at("mnt").exists());
    assert_eq!(list(""), ["bin"]);
}

#[test]
fn a_mount_in_use_is_cut_off() {
    let Some(mut mounted) = Mounted::new() else { return };
    // Another mount namespace has a copy, too.
    let mut elsewhere = Command::new("unshare")
        .args(["-m", "sh", "-c", "echo; read line"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    elsewhere.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    fs::write(mounted.at("f"), "kept").unwrap();
    let open = OpenOptions::new().append(true).open(mounted.at("f")).unwrap();
    mounted.session.take().expect("mounted").unmount().expect("unmounted");
    assert!(!is_mounted(&mounted.root()));
    match (&open).write_all(b"late") {
        Err(error) => {
            let late = error.raw_os_error().expect("an error of the system");
            assert!([libc::ENOTCONN, libc::ECONNABORTED, libc::EIO].contains(&late), "{late}");
        }
        // It goes to a file that nobody else has any more.
        Ok(()) => assert!(both::options().passthrough),
    }
    mounted.mount().expect("mounted again");
    assert_eq!(read(&mounted.at("f")), b"kept");
    drop(elsewhere.stdin.take());
    elsewhere.wait().unwrap();
}

#[test]
fn two_mounts_at_once_and_a_bad_place_are_refused() {
    let Some(mounted) = Mounted::new() else { return };
    let second = mounted.overlay.mount(mounted.place.path(), both::options());
    assert!(matches!(second, Err(MountError::Mounted)));
    let other = Overlay::new(Vec::new(), mounted.place.path()).unwrap();
    let nowhere = other.mount(&mounted.place.path().join("nowhere"), both::options());
    assert!(matches!(nowhere, Err(MountError::Mount { .. })));
}
