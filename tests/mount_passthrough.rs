//! Files that the kernel reads and writes by itself, behind the back of the overlay: what
//! is different then, and that nothing else is. The other tests of the mount are run in
//! this way with `YADOKARI_FUSE_PASSTHROUGH=1`. Needs what `tests/mount.rs` needs, and the
//! host's root.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/both.rs"]
mod both;

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::fs::Permissions;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::SystemTime;

use both::Both;
use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FallocateFlags;
use rustix::fs::SeekFrom;
use rustix::fs::StatxFlags;
use yadokari::change::Change;
use yadokari::layer;
use yadokari::overlay::MountOptions;
use yadokari::overlay::Overlay;
use yadokari::overlay::Transport;
use yadokari::path::RootPath;
use yadokari::snapshot::LogSnapshotter;
use yadokari::snapshot::Snapshotter;
use yadokari::tree::Content;
use yadokari::tree::ContentReader;
use yadokari::tree::Tree;

const MEBIBYTE: usize = 1 << 20;

fn options() -> MountOptions {
    MountOptions { passthrough: true, ..both::options() }
}

/// A mount that passes files through; `None`, said aloud, where the host doesn't.
fn mounted() -> Option<Both> {
    let both = Both::with(options(), Vec::new())?;
    if let Some(why) = both.session().fallback() {
        let required = std::env::var("YADOKARI_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|need| need == "passthrough"), "{why}");
        eprintln!("skipped: {why}");
        return None;
    }
    Some(both)
}

fn requests(both: &Both, name: &str) -> u64 {
    let counts = both.overlay.requests().counts();
    counts.into_iter().find(|(known, _)| *known == name).map_or(0, |(_, count)| count)
}

fn bytes_of(content: Content) -> Vec<u8> {
    let mut bytes = Vec::new();
    ContentReader::new(content).read_to_end(&mut bytes).unwrap();
    bytes
}

fn content(tree: &dyn Tree, path: &str) -> Content {
    let node =
        tree.find(&RootPath::strict(path.as_bytes()).unwrap()).unwrap().expect("it is there");
    tree.content(node).unwrap()
}

fn noise(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| (index / 251) as u8 ^ (index as u8).wrapping_mul(seed)).collect()
}

/// The layer of what happened since the mark; gives the paths that it puts.
fn write_layer(both: &Both) -> Vec<String> {
    both.session().sync().unwrap();
    let (before, after, log) = (both.overlay.before(), both.overlay.after(), both.overlay.log());
    let set = LogSnapshotter::new().changes(before.as_ref(), after.as_ref(), &log).unwrap();
    layer::write(&set, &layer::WriteOptions::default(), &mut std::io::sink()).unwrap();
    let puts = set.changes.iter().filter_map(|change| match change {
        Change::Put(put) => Some(put.path.to_string()),
        Change::Delete(_) => None,
    });
    puts.collect()
}

#[test]
fn what_is_written_without_a_request_is_in_the_layer_and_in_a_fresh_mount() {
    let Some(mut both) = mounted() else { return };
    let bytes = noise(64 * MEBIBYTE, 3);
    fs::write(both.ours().join("large"), &bytes).unwrap();
    assert!(fs::read(both.ours().join("large")).unwrap() == bytes);
    assert_eq!((requests(&both, "WRITE"), requests(&both, "READ")), (0, 0));
    assert_eq!(write_layer(&both), ["/large"]);
    assert!(bytes_of(content(both.overlay.after().as_ref(), "large")) == bytes);
    both.remount();
    assert!(fs::read(both.ours().join("large")).unwrap() == bytes);
}

#[test]
fn a_file_that_is_overwritten_appended_to_and_cut_is_as_on_a_disk() {
    let Some(mut both) = mounted() else { return };
    both.same(|at| {
        let path = at.join("f");
        fs::write(&path, noise(3 * MEBIBYTE, 5)).unwrap();
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        (&file).write_all(b"behind").unwrap();
        let other = OpenOptions::new().write(true).open(&path).unwrap();
        other.write_all_at(b"within", 2 * MEBIBYTE as u64).unwrap();
        drop((file, other));
        fs::write(&path, noise(2 * MEBIBYTE, 7)).unwrap();
        fs::write(at.join("small"), "a few bytes").unwrap();
        fs::write(at.join("small"), "some more bytes").unwrap();
        blake3::hash(&fs::read(&path).unwrap()).to_string()
    });
    // That it will be made empty isn't known when a file is opened: a small one is served.
    assert!(requests(&both, "WRITE") <= 1);
    both.remount();
    both.same(|at| (fs::read(at.join("f")).unwrap(), fs::read(at.join("small")).unwrap()));
}

/// A handle on a content, the tree before and a layer that was written: none of them has
/// what is written through a descriptor that was open then.
#[test]
fn what_was_sealed_does_not_change_under_a_later_write() {
    let Some(both) = mounted() else { return };
    let (old, path) = (noise(2 * MEBIBYTE, 11), both.ours().join("f"));
    fs::write(&path, &old).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert_eq!(write_layer(&both), ["/f"]);
    let sealed = content(both.overlay.after().as_ref(), "f");
    both.overlay.mark();
    assert!(both.overlay.log().events.len() <= 1);
    file.write_all_at(b"later", 4096).unwrap();
    let mut new = old.clone();
    new[4096..4101].copy_from_slice(b"later");
    assert!(bytes_of(sealed) == old);
    assert!(bytes_of(content(both.overlay.before().as_ref(), "f")) == old);
    assert!(bytes_of(content(both.overlay.after().as_ref(), "f")) == new);
    assert_eq!(write_layer(&both), ["/f"]);
    both.overlay.mark();
    drop(file);
    assert_eq!(write_layer(&both), Vec::<String>::new());
    // And what is opened anew, once the file has landed.
    let sealed = content(both.overlay.after().as_ref(), "f");
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"again", 0).unwrap();
    assert!(bytes_of(sealed) == new);
    assert_eq!(write_layer(&both), ["/f"]);
}

/// `$1`: a file of two mebibytes. Maps it, closes it, and writes with each line it reads.
const MAPS: &str = r"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
file = os.open(sys.argv[1], os.O_RDWR)
at = libc.mmap(None, 2 << 20, 3, 1, file, 0)
os.close(file)
print('mapped', flush=True)
for line in sys.stdin:
    ctypes.memmove(at + 8192, line.strip().encode(), len(line.strip()))
    print('written', flush=True)
";

/// A process that does as it is told, line by line.
struct Told {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Told {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut told = Self { child, input, output };
        told.hear();
        told
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn tell(&mut self, line: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
        self.hear()
    }

    fn end(mut self) {
        self.input = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The kernel says that a descriptor is gone, and not when its mapping is.
#[test]
fn a_mapping_that_outlives_its_descriptor_is_seen_by_all_and_changes_no_layer() {
    let Some(mut both) = mounted() else { return };
    let path = both.ours().join("f");
    let mut bytes = noise(2 * MEBIBYTE, 13);
    fs::write(&path, &bytes).unwrap();
    let mut maps = Told::start(Command::new("python3").args(["-c", MAPS]).arg(&path));
    assert_eq!(maps.tell("one"), "written");
    let first = bytes.clone();
    bytes[8192..8195].copy_from_slice(b"one");
    assert!(fs::read(&path).unwrap() == bytes && bytes != first);
    assert_eq!(write_layer(&both), ["/f"]);
    let sealed = content(both.overlay.after().as_ref(), "f");
    both.overlay.mark();
    maps.tell("two");
    assert!(bytes_of(sealed) == bytes);
    bytes[8192..8195].copy_from_slice(b"two");
    // A descriptor and the mapping show the same, whoever writes.
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(b"plain", 0).unwrap();
    bytes[..5].copy_from_slice(b"plain");
    maps.tell("six");
    bytes[8192..8195].copy_from_slice(b"six");
    drop(file);
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(write_layer(&both), ["/f"]);
    maps.end();
    both.remount();
    assert!(fs::read(&path).unwrap() == bytes);
}

#[test]
fn a_write_through_a_mapping_moves_the_time_at_once() {
    let Some(both) = mounted() else { return };
    both.same(|at| {
        let path = at.join("f");
        fs::write(&path, noise(2 * MEBIBYTE, 29)).unwrap();
        // The first lands by the next one's requests.
        both.session().sync().unwrap();
        fs::write(at.join("other"), "").unwrap();
        // Asked alone: a mapping already makes the kernel ask for the time of access.
        let time = || {
            let (flags, mask) = (AtFlags::empty(), StatxFlags::MTIME);
            let stat = rustix::fs::statx(CWD, &path, flags, mask).unwrap();
            (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec)
        };
        let before = time();
        let mut maps = Told::start(Command::new("python3").args(["-c", MAPS]).arg(&path));
        let mapped = time();
        maps.tell("one");
        let written = time();
        maps.end();
        (before == mapped, mapped < written, written == time())
    });
}

#[test]
fn whoever_still_maps_a_file_when_the_mount_ends_changes_it_no_more() {
    let Some(mut both) = mounted() else { return };
    let path = both.ours().join("f");
    let mut bytes = noise(2 * MEBIBYTE, 17);
    fs::write(&path, &bytes).unwrap();
    let mut maps = Told::start(Command::new("python3").args(["-c", MAPS]).arg(&path));
    maps.tell("one");
    bytes[8192..8195].copy_from_slice(b"one");
    both.remount();
    maps.tell("two");
    assert!(fs::read(&path).unwrap() == bytes);
    maps.end();
}

fn stat_of(path: &Path) -> (u64, String) {
    let said = Command::new("stat").args(["-c", "%s %y"]).arg(path).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let (size, time) = said.trim().split_once(' ').unwrap();
    (size.parse().unwrap(), time.to_owned())
}

#[test]
fn size_and_time_of_a_file_that_is_being_written_are_seen_by_others() {
    let Some(both) = mounted() else { return };
    let path = both.ours().join("f");
    let file = File::create(&path).unwrap();
    let mut seen = vec![stat_of(&path)];
    for count in 1..=3 {
        (&file).write_all(&noise(100_000, 3)).unwrap();
        let now = stat_of(&path);
        assert_eq!(now.0, count * 100_000);
        assert!(now.1 > seen.last().unwrap().1, "{seen:?} {now:?}");
        seen.push(now);
    }
    file.set_len(77).unwrap();
    assert_eq!(stat_of(&path).0, 77);
    let listed = fs::read_dir(both.ours()).unwrap().next().unwrap().unwrap();
    assert_eq!((listed.metadata().unwrap().len(), file.metadata().unwrap().len()), (77, 77));
}

#[test]
fn a_time_that_a_program_set_stays_until_bytes_are_written() {
    let Some(mut both) = mounted() else { return };
    let path = both.ours().join("f");
    let file = File::create(&path).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 7);
    let future = SystemTime::now() + Duration::from_secs(100_000);
    (&file).write_all(&noise(2 * MEBIBYTE, 3)).unwrap();
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    file.set_modified(then).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), then);
    (&file).write_all(b"more").unwrap();
    assert!(fs::metadata(&path).unwrap().modified().unwrap() >= before);
    file.set_modified(future).unwrap();
    (&file).write_all(b"and more").unwrap();
    assert!(fs::metadata(&path).unwrap().modified().unwrap() < future);
    file.set_modified(then).unwrap();
    drop(file);
    both.session().sync().unwrap();
    let (tree, found) = (both.overlay.after(), RootPath::strict(b"f").unwrap());
    let stat = tree.stat(tree.find(&found).unwrap().unwrap()).unwrap();
    assert_eq!((stat.mtime.seconds, stat.mtime.nanoseconds), (1_000_000_000, 7));
    drop(tree);
    both.remount();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), then);
}

#[test]
fn truncation_fallocate_and_holes_of_an_open_file_are_as_on_a_disk() {
    let Some(mut both) = mounted() else { return };
    both.same(|at| {
        let path = at.join("f");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.unwrap();
        let mut seen = Vec::new();
        let mut look = |what: &str| {
            let seek = |to| rustix::fs::seek(&file, to).ok();
            let size = fs::metadata(&path).unwrap().len();
            let data = seek(SeekFrom::Data(1 << 20));
            seen.push(format!("{what}: {size} {:?} {data:?}", seek(SeekFrom::Hole(0))));
        };
        file.write_all_at(&noise(65_536, 3), 0).unwrap();
        file.write_all_at(&noise(65_536, 3), 4 << 20).unwrap();
        look("written");
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 8192, 4096).unwrap();
        look("punched");
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 6 << 20, 1 << 20).unwrap();
        look("made longer");
        rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 100, 1000).unwrap();
        file.set_len(5 << 20).unwrap();
        look("cut");
        file.set_len(9 << 20).unwrap();
        look("made longer again");
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 20 << 20, 1 << 20).unwrap();
        look("promised");
        let past = rustix::fs::seek(&file, SeekFrom::Data(9 << 20)).ok();
        (seen, past, blake3::hash(&fs::read(&path).unwrap()).to_string())
    });
    assert_eq!(requests(&both, "WRITE"), 0);
    both.remount();
    both.same(|at| fs::read(at.join("f")).unwrap());
}

#[test]
fn a_file_that_is_being_written_is_copied_as_it_is() {
    let Some(both) = mounted() else { return };
    both.same(|at| {
        let source = OpenOptions::new().read(true).write(true).create_new(true).open(at.join("a"));
        let source = source.unwrap();
        source.write_all_at(&noise(2 * MEBIBYTE, 19), 0).unwrap();
        fs::copy(at.join("a"), at.join("whole")).unwrap();
        let target = File::create(at.join("b")).unwrap();
        let (mut from, mut to) = (1000, 10);
        let mut left = MEBIBYTE;
        while left > 0 {
            let (from, to) = (Some(&mut from), Some(&mut to));
            left -= rustix::fs::copy_file_range(&source, from, &target, to, left).unwrap();
        }
        source.write_all_at(b"changed after it was copied", 1000).unwrap();
        drop(target);
        let of = |name| blake3::hash(&fs::read(at.join(name)).unwrap()).to_string();
        (of("a"), of("b"), of("whole"))
    });
}

/// `$1`: a file. Opens it as another user and writes to it with each line it reads.
const WRITES: &str = r"
import os, sys
os.setgroups([])
os.setresgid(1000, 1000, 1000)
os.setresuid(1000, 1000, 1000)
file = os.open(sys.argv[1], os.O_WRONLY)
print('open', flush=True)
for line in sys.stdin:
    os.pwrite(file, b'bytes', 10)
    print('written', flush=True)
";

#[test]
fn a_write_of_another_user_takes_set_id_bits_whenever_they_came() {
    let Some(both) = mounted() else { return };
    both.same(|at| {
        let (early, late) = (at.join("early"), at.join("late"));
        fs::write(&early, noise(2 * MEBIBYTE, 3)).unwrap();
        fs::write(&late, noise(2 * MEBIBYTE, 3)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        set(&early, 0o6777).unwrap();
        set(&late, 0o777).unwrap();
        let writer =
            |path: &Path| Told::start(Command::new("python3").args(["-c", WRITES]).arg(path));
        let (mut first, mut second) = (writer(&early), writer(&late));
        set(&late, 0o6777).unwrap();
        let before = (mode(&early), mode(&late));
        first.tell("write");
        second.tell("write");
        let seen = (before, mode(&early), mode(&late));
        // The user who may keep them, too.
        set(&late, 0o4755).unwrap();
        OpenOptions::new().write(true).open(&late).unwrap().write_all_at(b"root", 0).unwrap();
        first.end();
        second.end();
        (seen, mode(&late))
    });
}

#[test]
fn a_truncating_open_takes_set_id_bits_as_on_a_disk() {
    let Some(both) = mounted() else { return };
    both.same(|at| {
        let path = at.join("f");
        fs::write(&path, noise(2 * MEBIBYTE, 3)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o6777)).unwrap();
        let cut = "import os, sys\nos.setgroups([])\nos.setresuid(1000, 1000, 1000)\n\
                   os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)";
        assert!(Command::new("python3").args(["-c", cut]).arg(&path).status().unwrap().success());
        let stat = fs::metadata(&path).unwrap();
        (stat.mode(), stat.len())
    });
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn small_files_keep_no_descriptor_and_more_open_ones_than_the_limit_are_all_right() {
    let Some(mut both) = mounted() else { return };
    let name = |number: usize| both.ours().join(format!("f{number}"));
    let before = descriptors();
    for number in 0..500 {
        fs::write(name(number), noise(number, 3)).unwrap();
    }
    both.session().sync().unwrap();
    both.overlay.mark();
    // Other tests of this process have theirs.
    assert!(descriptors() < before + 200, "{before} {}", descriptors());
    let files: Vec<File> = (500..700).map(|number| File::create(name(number)).unwrap()).collect();
    for (number, file) in (500..).zip(&files) {
        file.write_all_at(&noise(number, 3), 0).unwrap();
    }
    // Served or passed through: a file is so for everybody.
    for number in [510, 690] {
        let again = OpenOptions::new().read(true).write(true).open(name(number)).unwrap();
        again.write_all_at(b"!", 0).unwrap();
    }
    drop(files);
    both.remount();
    for number in 0..700 {
        let mut bytes = noise(number, 3);
        if number == 510 || number == 690 {
            bytes[0] = b'!';
        }
        assert!(fs::read(both.ours().join(format!("f{number}"))).unwrap() == bytes, "{number}");
    }
}

/// A file lands while others open it, write to it and cut it.
#[test]
fn a_small_file_that_many_append_to_loses_nothing() {
    let Some(both) = mounted() else { return };
    let (path, cut) = (both.ours().join("f"), both.ours().join("cut"));
    fs::write(&cut, "").unwrap();
    let append = |number: usize| {
        for line in 0..200 {
            let mut file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
            file.write_all(format!("{number} {line:03}\n").as_bytes()).unwrap();
            drop(file);
            let mut file = OpenOptions::new().append(true).open(&cut).unwrap();
            file.write_all(&[b'x'; 300]).unwrap();
        }
    };
    // By the name: no OPEN tells of it.
    let cuts = "import os, sys\nfor n in range(2000): os.truncate(sys.argv[1], 100 + n % 400)";
    let mut cuts = Command::new("python3").args(["-c", cuts]).arg(&cut).spawn().unwrap();
    std::thread::scope(|scope| {
        for number in 0..6 {
            scope.spawn(move || append(number));
        }
    });
    assert!(cuts.wait().unwrap().success());
    let text = fs::read_to_string(&path).unwrap();
    for number in 0..6 {
        let mark = format!("{number} ");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(&mark)).collect();
        let expected: Vec<String> = (0..200).map(|line| format!("{number} {line:03}")).collect();
        assert_eq!(lines, expected);
    }
    assert_eq!(text.lines().count(), 1200);
    assert!(fs::read(&cut).unwrap().iter().all(|byte| *byte == b'x' || *byte == 0));
    assert_eq!(write_layer(&both), ["/cut", "/f"]);
}

#[test]
fn a_file_without_a_name_is_passed_through() {
    let Some(both) = mounted() else { return };
    let nameless = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(both.ours())
        .unwrap();
    nameless.write_all_at(&noise(2 * MEBIBYTE, 23), 0).unwrap();
    let mut bytes = vec![0; 2 * MEBIBYTE];
    nameless.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == noise(2 * MEBIBYTE, 23));
    assert_eq!((requests(&both, "WRITE"), requests(&both, "READ")), (0, 0));
}

#[test]
fn where_nothing_can_be_passed_through_the_mount_says_why_and_serves() {
    let options = MountOptions { transport: Transport::Fuser, ..options() };
    let Some(both) = Both::with(options, Vec::new()) else { return };
    let why = both.session().fallback().expect("it isn't");
    assert!(why.contains("not passed through") && why.contains("fuser"), "{why}");
    fs::write(both.ours().join("f"), noise(2 * MEBIBYTE, 3)).unwrap();
    assert!(requests(&both, "WRITE") >= 2);
}

/// Where the next test writes to when it begins again elsewhere.
const PLACE: &str = "YADOKARI_PASSTHROUGH_PLACE";

/// Begins `test` again by the shell script `script`, which knows the program as `$0` and a
/// directory as `$PLACE`; `None` where the script can't be run.
fn again(test: &str, script: &str) -> Option<String> {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), Permissions::from_mode(0o777)).unwrap();
    let output = Command::new("unshare")
        .args(["-m", "sh", "-ec", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("PLACE", place.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        eprintln!("skipped: {errors}");
        return None;
    }
    assert!(output.status.success(), "{said}{errors}");
    Some(said)
}

/// What the mount says about itself over scratch in the place that was given.
fn say_why(place: &Path) {
    let (scratch, at) = (place.join("scratch"), place.join("at"));
    fs::create_dir(&scratch).unwrap();
    fs::create_dir(&at).unwrap();
    let _guard = both::Guard::of(&at);
    let overlay = Overlay::new(Vec::new(), &scratch).unwrap();
    let session = overlay.mount(&at, options()).unwrap();
    println!("why: {}", session.fallback().unwrap_or("nothing"));
    fs::write(at.join("f"), noise(2 * MEBIBYTE, 3)).unwrap();
    assert!(fs::read(at.join("f")).unwrap() == noise(2 * MEBIBYTE, 3));
    session.unmount().unwrap();
}

#[test]
fn in_a_user_namespace_the_mount_says_why_and_serves() {
    if let Some(place) = std::env::var_os(PLACE) {
        return say_why(Path::new(&place));
    }
    let name = "in_a_user_namespace_the_mount_says_why_and_serves";
    let script =
        format!("unshare -Urm true || exit 77; {PLACE}=$PLACE exec unshare -Urm \"$0\" \"$@\"");
    let Some(said) = again(name, &script) else { return };
    assert!(said.contains("not that of a user namespace"), "{said}");
}

#[test]
fn over_a_stacked_filesystem_the_mount_says_why_and_serves() {
    if let Some(place) = std::env::var_os(PLACE) {
        return say_why(Path::new(&place));
    }
    let name = "over_a_stacked_filesystem_the_mount_says_why_and_serves";
    let script = format!(
        "cd \"$PLACE\"; mkdir lower upper work merged\n\
         mount -t overlay none -o lowerdir=lower,upperdir=upper,workdir=work merged || exit 77\n\
         {PLACE}=$PLACE/merged exec \"$0\" \"$@\""
    );
    let Some(said) = again(name, &script) else { return };
    assert!(said.contains("stacked filesystem"), "{said}");
}
