//! The mounted overlay against the filesystem of the temporary directory: the same
//! random operations on both, the same answers, and after a fresh mount the same
//! tree. Needs what `tests/mount.rs` needs.
//!
//! `YADOKARI_SEED` repeats a run, `YADOKARI_OPERATIONS` makes it longer;
//! `scripts/nightly` does a million operations.

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/both.rs"]
mod both;

use std::collections::BTreeMap;
use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use both::Both;
use both::Guard;
use rustix::fs::CWD;
use rustix::fs::FallocateFlags;
use rustix::fs::RenameFlags;
use rustix::fs::XattrFlags;
use yadokari::layer;
use yadokari::layer::LayerIndex;
use yadokari::overlay::Lower;
use yadokari::overlay::MountError;
use yadokari::overlay::Overlay;
use yadokari::snapshot::LogSnapshotter;
use yadokari::snapshot::Mode;
use yadokari::snapshot::Snapshotter;
use yadokari::snapshot::WalkSnapshotter;

const NAMES: [&str; 6] = ["a", "b", "c", "dd", "e.txt", "f"];
/// Operations between two snapshots.
const STEP: u64 = 150;

/// Numbers that look random (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }

    fn path(&mut self) -> PathBuf {
        (0..=self.roll(3)).map(|_| NAMES[self.roll(NAMES.len() as u64) as usize]).collect()
    }
}

/// One operation, on whichever root.
#[derive(Debug)]
enum Act {
    Create(PathBuf),
    Write(PathBuf, u64, usize, u8),
    Append(PathBuf, usize, u8),
    Overwrite(PathBuf, usize, u8),
    Truncate(PathBuf, u64),
    Punch(PathBuf, u64, u64),
    Copy(PathBuf, u64, PathBuf, u64, usize),
    Remove(PathBuf),
    MakeDirectory(PathBuf),
    RemoveDirectory(PathBuf),
    RemoveAll(PathBuf),
    Rename(PathBuf, PathBuf, RenameFlags),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Mode(PathBuf, u32),
    Owner(PathBuf, u32, u32),
    Attribute(PathBuf, u64, usize),
    NoAttribute(PathBuf, u64),
    Times(PathBuf, i64),
    List(PathBuf),
    Read(PathBuf),
}

fn think_of(dice: &mut Dice) -> Act {
    let path = dice.path();
    // Mostly small, sometimes beyond the size at which a file is stored otherwise.
    let large = dice.roll(20) == 0;
    let at = dice.roll(if large { 2_000_000 } else { 9_000 });
    let length = dice.roll(if large { 300_000 } else { 5_000 }) as usize;
    let byte = dice.roll(255) as u8 + 1;
    match dice.roll(30) {
        0..=2 => Act::Create(path),
        3..=6 => Act::Write(path, at, length, byte),
        7 => Act::Append(path, length, byte),
        8 => Act::Overwrite(path, length, byte),
        9 | 10 => Act::Truncate(path, at),
        11 => Act::Punch(path, at, length as u64 + 1),
        12 => Act::Copy(path, at, dice.path(), dice.roll(9_000), length),
        13 | 14 => Act::Remove(path),
        15..=17 => Act::MakeDirectory(path),
        18 => Act::RemoveDirectory(path),
        19 if dice.roll(6) == 0 => Act::RemoveAll(path),
        19 | 20 => Act::Rename(path, dice.path(), RenameFlags::empty()),
        21 => Act::Rename(path, dice.path(), RenameFlags::EXCHANGE),
        22 => Act::Rename(path, dice.path(), RenameFlags::NOREPLACE),
        23 => Act::Link(path, dice.path()),
        24 => Act::Symlink(dice.path(), path),
        25 => Act::Mode(path, dice.roll(0o10000) as u32),
        26 => Act::Owner(path, dice.roll(3) as u32, dice.roll(3) as u32),
        27 if dice.roll(2) == 0 => Act::NoAttribute(path, dice.roll(3)),
        27 => Act::Attribute(path, dice.roll(3), length % 60),
        28 => Act::Times(path, dice.roll(2_000_000_000) as i64),
        _ if dice.roll(2) == 0 => Act::List(path),
        _ => Act::Read(path),
    }
}

/// Does it below `root`; what can be seen of the answer.
fn perform(root: &Path, act: &Act) -> io::Result<String> {
    let at = |path: &Path| root.join(path);
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(at(path));
    Ok(match act {
        Act::Create(path) => {
            OpenOptions::new().write(true).create_new(true).open(at(path))?;
            String::new()
        }
        Act::Write(path, offset, length, byte) => {
            open(path)?.write_all_at(&vec![*byte; *length], *offset)?;
            String::new()
        }
        Act::Append(path, length, byte) => {
            let mut file = OpenOptions::new().append(true).open(at(path))?;
            io::Write::write_all(&mut file, &vec![*byte; *length])?;
            String::new()
        }
        Act::Overwrite(path, length, byte) => {
            fs::write(at(path), vec![*byte; *length])?;
            String::new()
        }
        Act::Truncate(path, size) => {
            open(path)?.set_len(*size)?;
            String::new()
        }
        Act::Punch(path, offset, length) => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(open(path)?, flags, *offset, *length)?;
            String::new()
        }
        Act::Copy(from, offset, to, target, length) => {
            let (from, to) = (open(from)?, open(to)?);
            let (mut offset, mut target) = (*offset, *target);
            let count = rustix::fs::copy_file_range(
                &from,
                Some(&mut offset),
                &to,
                Some(&mut target),
                *length,
            )?;
            format!("{count}")
        }
        Act::Remove(path) => format!("{:?}", fs::remove_file(at(path))?),
        Act::MakeDirectory(path) => format!("{:?}", fs::create_dir(at(path))?),
        Act::RemoveDirectory(path) => format!("{:?}", fs::remove_dir(at(path))?),
        Act::RemoveAll(path) => format!("{:?}", fs::remove_dir_all(at(path))?),
        Act::Rename(from, to, flags) => {
            rustix::fs::renameat_with(CWD, at(from), CWD, at(to), *flags)?;
            String::new()
        }
        Act::Link(from, to) => format!("{:?}", fs::hard_link(at(from), at(to))?),
        Act::Symlink(target, path) => format!("{:?}", symlink(target, at(path))?),
        Act::Mode(path, mode) => {
            let permissions = fs::Permissions::from_mode(*mode);
            format!("{:?}", fs::set_permissions(at(path), permissions)?)
        }
        Act::Owner(path, uid, gid) => {
            format!("{:?}", std::os::unix::fs::lchown(at(path), Some(*uid), Some(*gid))?)
        }
        Act::Attribute(path, number, length) => {
            let (name, value) = (format!("user.{number}"), vec![b'v'; *length]);
            rustix::fs::setxattr(at(path), name, &value, XattrFlags::empty())?;
            String::new()
        }
        Act::NoAttribute(path, number) => {
            rustix::fs::removexattr(at(path), format!("user.{number}"))?;
            String::new()
        }
        Act::Times(path, seconds) => {
            let time = rustix::fs::Timespec { tv_sec: *seconds, tv_nsec: 123_456_789 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(CWD, at(path), &times, flags)?;
            String::new()
        }
        Act::List(path) => {
            let mut names = Vec::new();
            for entry in fs::read_dir(at(path))? {
                let entry = entry?;
                names.push((entry.file_name(), format!("{:?}", entry.file_type()?)));
            }
            names.sort();
            format!("{names:?}")
        }
        Act::Read(path) => blake3::hash(&fs::read(at(path))?).to_hex().to_string(),
    })
}

/// A tree as text. Times are compared where an operation set them: they alone are
/// that fraction of a second.
fn dump(root: &Path) -> String {
    let (mut lines, mut groups) = (String::new(), BTreeMap::new());
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let at = root.join(&path);
        let data = fs::symlink_metadata(&at).expect("readable");
        let next = groups.len();
        let group = *groups.entry(data.ino()).or_insert(next);
        let is_directory = data.is_dir();
        let (size, links) = if is_directory { (0, 1) } else { (data.len(), data.nlink()) };
        let time = if data.mtime_nsec() == 123_456_789 && !is_directory { data.mtime() } else { 0 };
        let mut attributes = Vec::new();
        if !data.is_symlink() {
            let mut names = vec![0; 4096];
            let length = rustix::fs::listxattr(&at, &mut names).expect("readable");
            for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
                let mut value = vec![0; 100];
                let length = rustix::fs::getxattr(&at, name, &mut value).expect("readable");
                attributes.push((String::from_utf8_lossy(name).into_owned(), length));
            }
            attributes.sort();
        }
        let content = match data.file_type() {
            kind if kind.is_file() => {
                blake3::hash(&fs::read(&at).expect("readable")).to_hex()[..16].to_owned()
            }
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(&at).expect("readable")),
            _ => String::new(),
        };
        let owner = (data.uid(), data.gid());
        lines += &format!(
            "{path:?} {:o} {owner:?} {size} {links} {group} {time} {attributes:?} {content}\n",
            data.mode()
        );
        if is_directory {
            let mut names: Vec<_> = fs::read_dir(&at)
                .expect("readable")
                .map(|entry| entry.expect("readable").file_name())
                .collect();
            names.sort();
            names.reverse();
            pending.extend(names.into_iter().map(|name| path.join(name)));
        }
    }
    lines
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn random_operations_do_the_same_here_and_on_the_host() {
    let chance = std::process::id() as u64 * 0x9e37_79b9 + 1;
    let seed = number("YADOKARI_SEED", chance);
    let count = number("YADOKARI_OPERATIONS", 4_000);
    let place = tempfile::tempdir().expect("a directory");
    let [root, native, scratch] = ["root", "native", "scratch"].map(|name| {
        let path = place.path().join(name);
        fs::create_dir(&path).expect("a directory");
        path
    });
    let _guard = Guard::of(&root);
    let mut lowers: Vec<Lower> = Vec::new();
    let mut overlay = Overlay::new(Vec::new(), &scratch).expect("an overlay");
    let mut session = match overlay.mount(&root, both::options()) {
        Ok(session) => session,
        Err(
            error @ (MountError::NoDevice(_)
            | MountError::DeviceRefused(_)
            | MountError::NotPermitted(_)),
        ) => {
            let required = std::env::var("YADOKARI_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|need| need == "fuse"), "{error}");
            eprintln!("skipped: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    println!("YADOKARI_SEED={seed} YADOKARI_OPERATIONS={count}");
    let mut dice = Dice(seed);
    for step in 0..count.div_ceil(STEP) {
        overlay.mark();
        let mut walk = WalkSnapshotter::new(Mode::Full);
        walk.mark(overlay.after().as_ref()).expect("readable");
        for _ in 0..STEP {
            let act = think_of(&mut dice);
            let (ours, theirs) = (perform(&root, &act), perform(&native, &act));
            let errno = |error: io::Error| error.raw_os_error();
            assert_eq!(ours.map_err(errno), theirs.map_err(errno), "{act:?} in step {step}");
        }
        assert_eq!(dump(&root), dump(&native), "after step {step}");
        session.sync().expect("synced");
        let (before, after) = (overlay.before(), overlay.after());
        let log = overlay.log();
        let set =
            LogSnapshotter::new().changes(before.as_ref(), after.as_ref(), &log).expect("readable");
        let walked = walk.changes(before.as_ref(), after.as_ref(), &log).expect("readable");
        let write = |set| {
            let mut tar = Vec::new();
            let options = layer::WriteOptions::default();
            let written = layer::write(set, &options, &mut tar).expect("a layer");
            (tar, written.index)
        };
        let (tar, index) = write(&set);
        assert_eq!(tar, write(&walked).0, "log and walk after step {step}");
        let mut blob = tempfile::tempfile().expect("a file");
        io::Write::write_all(&mut blob, &tar).expect("room");
        let index = Arc::new(LayerIndex::from_bytes(index).expect("a good index"));
        let layer = Lower { index, blob: Arc::new(blob) };
        lowers.push(layer.clone());
        match step % 3 {
            0 => overlay.settle(&set, layer),
            // The kernel's caches hide what a filesystem forgot.
            1 => {
                session.unmount().expect("unmounted");
                session = overlay.mount(&root, both::options()).expect("mounted");
                assert_eq!(dump(&root), dump(&native), "remounted after step {step}");
            }
            // Go on over the layers alone. They carry no attributes but capabilities
            // and no fractions of seconds, so those go on the host, too.
            _ => {
                session.unmount().expect("unmounted");
                drop((before, after));
                overlay = Overlay::new(lowers.clone(), &scratch).expect("an overlay");
                session = overlay.mount(&root, both::options()).expect("mounted");
                forget_what_layers_do_not_carry(&native);
                assert_eq!(dump(&root), dump(&native), "over layers after step {step}");
            }
        }
    }
    session.unmount().expect("unmounted");
}

/// Threads that keep to directories of their own do what they would do alone.
#[test]
fn threads_do_the_same_here_and_on_the_host() {
    let Some(mut both) = Both::new() else { return };
    let chance = u64::from(std::process::id()) * 0x9e37_79b9 + 1;
    let seed = number("YADOKARI_SEED", chance);
    let rounds = number("YADOKARI_OPERATIONS", 4_000).div_ceil(4 * STEP);
    println!("YADOKARI_SEED={seed}");
    let threads: u64 = 4;
    for root in [both.ours(), both.plain()] {
        (0..threads).for_each(|number| fs::create_dir(root.join(number.to_string())).expect("new"));
    }
    for round in 0..rounds {
        both.overlay.mark();
        let mut walk = WalkSnapshotter::new(Mode::Full);
        walk.mark(both.overlay.after().as_ref()).expect("readable");
        let work = |root: PathBuf| -> Vec<Vec<String>> {
            let one = |number: u64| {
                let at = root.join(number.to_string());
                move || {
                    let mut dice = Dice((seed + number * 7 + round * 101) | 1);
                    let acts = (0..STEP).map(|_| think_of(&mut dice));
                    let done = acts.map(|act| (perform(&at, &act), act));
                    done.map(|(answer, act)| {
                        format!("{act:?}: {:?}", answer.map_err(|error| error.raw_os_error()))
                    })
                    .collect()
                }
            };
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..threads).map(|number| scope.spawn(one(number))).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            })
        };
        let (ours, theirs) = (work(both.ours()), work(both.plain()));
        for (ours, theirs) in ours.iter().flatten().zip(theirs.iter().flatten()) {
            assert_eq!(ours, theirs, "in round {round}");
        }
        assert_eq!(dump(&both.ours()), dump(&both.plain()), "after round {round}");
        both.session().sync().expect("synced");
        let (before, after) = (both.overlay.before(), both.overlay.after());
        let log = both.overlay.log();
        let set =
            LogSnapshotter::new().changes(before.as_ref(), after.as_ref(), &log).expect("readable");
        let walked = walk.changes(before.as_ref(), after.as_ref(), &log).expect("readable");
        let tar = |set| {
            let mut tar = Vec::new();
            layer::write(set, &layer::WriteOptions::default(), &mut tar).expect("a layer");
            tar
        };
        assert!(tar(&set) == tar(&walked), "log and walk after round {round}");
        drop((before, after));
        both.remount();
        assert_eq!(dump(&both.ours()), dump(&both.plain()), "remounted after round {round}");
    }
}

/// Takes attributes and fractions of seconds from everything below `root`.
fn forget_what_layers_do_not_carry(root: &Path) {
    let mut pending = vec![root.to_owned()];
    while let Some(at) = pending.pop() {
        let data = fs::symlink_metadata(&at).expect("readable");
        if !data.is_symlink() {
            for number in 0..3 {
                // Most have none.
                let _ = rustix::fs::removexattr(&at, format!("user.{number}"));
            }
        }
        let time = rustix::fs::Timespec { tv_sec: data.mtime(), tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(CWD, &at, &times, flags).expect("there");
        if data.is_dir() {
            let entries = fs::read_dir(&at).expect("readable");
            pending.extend(entries.map(|entry| entry.expect("readable").path()));
        }
    }
}
