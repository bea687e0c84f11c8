//! The ways in which requests reach the overlay, beside each other: the device, io_uring
//! where this machine lets us switch it on, and the `fuser` crate. And what only our own
//! protocol knows: files without a name, and who may keep set-id bits. Needs what
//! `tests/mount.rs` needs.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/both.rs"]
mod both;

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use both::Both;
use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use yadokari::overlay::MountError;
use yadokari::overlay::RING_SWITCH;
use yadokari::overlay::Transport;

/// Holds the switch of io_uring, which the whole machine shares, and puts it back.
struct Switch {
    before: String,
    _alone: MutexGuard<'static, ()>,
}

impl Switch {
    /// `None`, said aloud, where there is none or it is not ours to turn.
    fn turn(on: bool) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = fs::read_to_string(RING_SWITCH).ok();
        let turned = before.filter(|_| fs::write(RING_SWITCH, if on { "Y" } else { "N" }).is_ok());
        if turned.is_none() {
            eprintln!("skipped: {RING_SWITCH} can't be turned");
        }
        Some(Self { before: turned?, _alone: alone })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = fs::write(RING_SWITCH, self.before.trim());
    }
}

/// A mount for each transport that can be had here, each with what `check` says of it.
fn by_each<T>(transports: &[Transport], check: impl Fn(&mut Both) -> T) -> Vec<(Transport, T)> {
    let mut results = Vec::new();
    for transport in transports {
        let switch = if *transport == Transport::Ring { Switch::turn(true) } else { None };
        if *transport == Transport::Ring && switch.is_none() {
            continue;
        }
        let Some(mut both) = Both::by(*transport, Vec::new()) else { continue };
        assert_eq!(both.session().transport(), *transport);
        assert_eq!(both.session().fallback(), None);
        results.push((*transport, check(&mut both)));
    }
    results
}

const OURS: [Transport; 2] = [Transport::Device, Transport::Ring];
const ALL: [Transport; 3] = [Transport::Device, Transport::Ring, Transport::Fuser];

fn error(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// A bit of everything that a transport carries: long and short answers, errors, names,
/// data of all sizes, and what the kernel makes of them.
fn walk_through(at: &Path) -> Vec<String> {
    let mut seen = Vec::new();
    let mut note = |text: String| seen.push(text);
    fs::create_dir_all(at.join("d/e")).unwrap();
    for number in 0..400 {
        fs::write(at.join(format!("d/file-{number:04}")), number.to_string()).unwrap();
    }
    let mut names: Vec<_> =
        fs::read_dir(at.join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    note(format!("{names:?}"));
    let large: Vec<u8> = (0..3_000_000_u32).map(|index| (index / 7) as u8).collect();
    fs::write(at.join("large"), &large).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(at.join("large")).unwrap();
    file.write_all_at(b"in the middle", 1_048_570).unwrap();
    let mut piece = vec![0; 2_000_001];
    file.read_exact_at(&mut piece, 999_999).unwrap();
    note(format!("{:?}", &piece[48_560..48_590]));
    note(format!("{:?}", rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0))));
    rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::KEEP_SIZE | rustix::fs::FallocateFlags::PUNCH_HOLE,
        4_096,
        8_192,
    )
    .unwrap();
    note(format!("{:?}", rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0))));
    let copy = File::create(at.join("copy")).unwrap();
    let (mut from, mut to) = (4_000, 10);
    let copied =
        rustix::fs::copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), 1_500_000);
    note(format!("{copied:?} {from} {to}"));
    note(format!("{:?}", fs::metadata(at.join("copy")).unwrap().len()));
    std::os::unix::fs::symlink("d/file-0001", at.join("link")).unwrap();
    note(format!("{:?} {:?}", fs::read_link(at.join("link")), fs::read(at.join("link"))));
    fs::hard_link(at.join("d/file-0002"), at.join("d/e/second")).unwrap();
    note(format!("{}", fs::metadata(at.join("d/file-0002")).unwrap().nlink()));
    rustix::fs::renameat_with(
        CWD,
        at.join("link"),
        CWD,
        at.join("copy"),
        rustix::fs::RenameFlags::EXCHANGE,
    )
    .unwrap();
    note(format!("{:?}", fs::read_link(at.join("copy"))));
    note(format!("{:?}", error(fs::create_dir(at.join("d")))));
    note(format!("{:?}", error(fs::remove_dir(at.join("d")))));
    note(format!("{:?}", error(fs::remove_file(at.join("missing")))));
    note(format!("{:?}", error(fs::write(at.join("n".repeat(256)), ""))));
    let path = at.join("d/file-0003");
    rustix::fs::setxattr(&path, "user.name", &[7; 3_000], rustix::fs::XattrFlags::CREATE).unwrap();
    let mut value = vec![0; 4_000];
    note(format!("{:?}", rustix::fs::getxattr(&path, "user.name", &mut value)));
    note(format!("{:?}", rustix::fs::getxattr(&path, "user.name", &mut value[..9])));
    note(format!("{:?}", rustix::fs::getxattr(&path, "user.other", &mut value)));
    note(format!("{:?}", rustix::fs::listxattr(&path, &mut value[..])));
    rustix::fs::removexattr(&path, "user.name").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6741)).unwrap();
    std::os::unix::fs::chown(&path, Some(12), None).unwrap();
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: -5, tv_nsec: 250_000_000 },
        last_modification: rustix::fs::Timespec { tv_sec: 1 << 33, tv_nsec: 999_999_999 },
    };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    let stat = fs::metadata(&path).unwrap();
    note(format!("{:o} {} {} {}", stat.mode(), stat.uid(), stat.atime(), stat.atime_nsec()));
    note(format!("{} {}", stat.mtime(), stat.mtime_nsec()));
    rustix::fs::mknodat(CWD, at.join("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    let device = rustix::fs::makedev(259, 70_000);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, at.join("device"), kind, Mode::RUSR, device).unwrap();
    note(format!("{}", fs::metadata(at.join("device")).unwrap().rdev() == device));
    for number in 0..400 {
        fs::remove_file(at.join(format!("d/file-{number:04}"))).unwrap();
    }
    note(format!("{:?}", fs::read_dir(at.join("d")).unwrap().count()));
    let stat = rustix::fs::statvfs(at).unwrap();
    note(format!("{}", stat.f_namemax));
    seen
}

#[test]
fn every_transport_answers_as_a_plain_directory_does() {
    let results = by_each(&ALL, |both| {
        let seen = both.same(walk_through);
        both.remount();
        (seen, fs::read(both.ours().join("large")).unwrap())
    });
    for pair in results.windows(2) {
        assert!(pair[0].1 == pair[1].1, "{:?} and {:?}", pair[0].0, pair[1].0);
    }
}

#[test]
fn every_transport_is_asked_the_same_questions() {
    let results = by_each(&ALL, |both| {
        walk_through(&both.ours());
        let mut counts: BTreeMap<_, _> = both.overlay.requests().counts().into_iter().collect();
        // When nodes are forgotten is up to the kernel. What nobody serves is counted by
        // our own protocol alone, and large writes end where pages do.
        for name in ["FORGET", "OTHER", "WRITE", "READ"] {
            counts.remove(name);
        }
        counts
    });
    for pair in results.windows(2) {
        assert_eq!(pair[0].1, pair[1].1, "{:?} and {:?}", pair[0].0, pair[1].0);
    }
}

#[test]
fn io_uring_is_taken_where_it_is_switched_on_and_refused_where_it_is_not() {
    {
        let Some(_switch) = Switch::turn(true) else { return };
        let Some(both) = Both::by(Transport::Auto, Vec::new()) else { return };
        assert_eq!(both.session().transport(), Transport::Ring);
    }
    let Some(_switch) = Switch::turn(false) else { return };
    let Some(both) = Both::by(Transport::Auto, Vec::new()) else { return };
    assert_eq!(both.session().transport(), Transport::Device);
    let place = tempfile::tempdir().unwrap();
    let overlay = yadokari::overlay::Overlay::new(Vec::new(), place.path()).unwrap();
    let options = yadokari::overlay::MountOptions {
        transport: Transport::Ring,
        ..yadokari::overlay::MountOptions::default()
    };
    let refused = overlay.mount(place.path(), options).unwrap_err();
    assert!(matches!(refused, MountError::Ring(_)), "{refused}");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(place.path().to_str().unwrap()), "nothing stays mounted");
}

/// Fills mapped files with a byte, and keeps them mapped until its input ends.
const FILL: &str = "
import mmap, os, sys
held = []
for number in range(8):
    file = os.open(f'{sys.argv[1]}-{number}', os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, 600_000)
    held.append(mmap.mmap(file, 600_000))
    held[-1][:] = bytes([int(sys.argv[2]) + number]) * 600_000
print('filled', flush=True)
sys.stdin.read()
";

/// Several programs at once, on all CPUs, with pages that the kernel writes later: all
/// of it is there once the session is synced. They are programs because a mapping that
/// goes waits for the server with the memory of its process locked, the server's own if
/// that is the same one.
#[test]
fn whatever_was_written_from_any_cpu_has_arrived_after_a_sync() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: no python3");
        return;
    }
    by_each(&OURS, |both| {
        for round in 0..3_u8 {
            let mut programs: Vec<_> = (0..6_u8)
                .map(|thread| {
                    Command::new("python3")
                        .args(["-S", "-E", "-c", FILL])
                        .args([thread.to_string(), (thread + round).to_string()])
                        .current_dir(both.ours())
                        .stdin(Stdio::piped())
                        .stdout(Stdio::piped())
                        .spawn()
                        .unwrap()
                })
                .collect();
            for program in &mut programs {
                let mut said = [0; 6];
                program.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
                assert_eq!(&said, b"filled");
            }
            both.session().sync().unwrap();
            let tree = both.overlay.after();
            for (thread, number) in (0..6_u8).flat_map(|thread| (0..8).map(move |it| (thread, it)))
            {
                let name = format!("{thread}-{number}");
                let node = tree.child(tree.root(), name.as_bytes()).unwrap().unwrap();
                let content = tree.content(node).unwrap();
                let mut bytes = Vec::new();
                yadokari::tree::ContentReader::new(content).read_to_end(&mut bytes).unwrap();
                let expected = thread + number + round;
                assert!(bytes.len() == 600_000 && bytes.iter().all(|byte| *byte == expected));
            }
            drop(tree);
            for mut program in programs {
                drop(program.stdin.take());
                assert!(program.wait().unwrap().success());
            }
        }
    });
}

fn nameless(at: &Path, more: OFlags) -> File {
    let flags = OFlags::TMPFILE | OFlags::RDWR | more;
    File::from(rustix::fs::open(at, flags, Mode::from_raw_mode(0o666)).unwrap())
}

/// Gives an open file a name, as open(2) says.
fn give_name(file: &File, path: &Path) -> Result<(), Errno> {
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, itself, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

#[test]
fn a_file_without_a_name_is_what_it_is_in_a_plain_directory() {
    by_each(&OURS, |both| {
        both.overlay.mark();
        both.same(|at| {
            fs::set_permissions(at, fs::Permissions::from_mode(0o2755)).unwrap();
            std::os::unix::fs::chown(at, None, Some(7)).unwrap();
            let mut seen = Vec::new();
            let mut file = nameless(at, OFlags::empty());
            file.write_all(b"without a name").unwrap();
            let stat = file.metadata().unwrap();
            seen.push(format!("{} {:o} {}", stat.nlink(), stat.mode(), stat.gid()));
            seen.push(format!("{}", fs::read_dir(at).unwrap().count()));
            seen.push(format!("{:?}", give_name(&file, &at.join("name"))));
            seen.push(format!("{:?}", give_name(&file, &at.join("name"))));
            seen.push(format!("{:?}", give_name(&file, &at.join("second"))));
            seen.push(format!(
                "{} {:?}",
                file.metadata().unwrap().nlink(),
                fs::read(at.join("name"))
            ));
            fs::remove_file(at.join("name")).unwrap();
            fs::remove_file(at.join("second")).unwrap();
            seen.push(format!("{:?}", give_name(&file, &at.join("again"))));
            let mut back = String::new();
            file.read_to_string(&mut back).unwrap();
            let mut bytes = [0; 14];
            file.read_exact_at(&mut bytes, 0).unwrap();
            seen.push(format!("{back}{bytes:?}"));
            let alone = nameless(at, OFlags::EXCL);
            seen.push(format!("{:?}", give_name(&alone, &at.join("alone"))));
            seen.push(format!("{:?}", nameless(at, OFlags::empty()).set_len(5_000_000)));
            let gone = at.join("gone");
            fs::create_dir(&gone).unwrap();
            let linked = nameless(&gone, OFlags::empty());
            linked.set_len(3).unwrap();
            give_name(&linked, &at.join("kept")).unwrap();
            let flags = OFlags::TMPFILE | OFlags::RDWR;
            let in_file = rustix::fs::open(at.join("kept"), flags, Mode::RUSR);
            seen.push(format!("{:?}", in_file.map(drop)));
            tempfile::tempfile_in(at).unwrap().write_all(b"by a library").unwrap();
            seen
        });
        both.session().sync().unwrap();
        // What was linked is there, what was not is in no layer.
        let tree = both.overlay.after();
        let names: Vec<_> = tree.children(tree.root()).unwrap();
        let names: Vec<_> = names.iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(names, ["gone", "kept"]);
        drop(tree);
        both.remount();
        assert_eq!(fs::metadata(both.ours().join("kept")).unwrap().len(), 3);
    });
}

/// The system's own: one of a user's home can't be run by others.
const PYTHON: &str = "/usr/bin/python3";

/// Who changes the file, by setpriv(1).
const WHO: [(&str, &[&str]); 4] = [
    ("root", &[]),
    ("root without CAP_FSETID", &["--bounding-set=-fsetid", "--inh-caps=-fsetid"]),
    ("its owner", &["--reuid=1000", "--clear-groups"]),
    (
        "its owner with CAP_FSETID",
        &["--reuid=1000", "--clear-groups", "--inh-caps=+fsetid", "--ambient-caps=+fsetid"],
    ),
];

/// What he does to the file `f`, in Python: no shell has all of the calls.
const HOW: [&str; 9] = [
    "os.truncate(f, 1)",
    "os.truncate(f, 7)",
    "os.open(f, os.O_WRONLY | os.O_TRUNC)",
    "os.ftruncate(os.open(f, os.O_WRONLY), 20)",
    "os.write(os.open(f, os.O_WRONLY), b'x')",
    "o = os.open(f, os.O_WRONLY); os.write(o, b'x'); os.write(o, b'y')",
    "os.posix_fallocate(os.open(f, os.O_WRONLY), 0, 9000)",
    "os.copy_file_range(os.open('other', os.O_RDONLY), os.open(f, os.O_WRONLY), 5)",
    "os.chown(f, -1, -1)",
];

/// The files that it is done to: modes, and whether there is a capability.
const FILES: [(u32, bool); 5] =
    [(0o4755, false), (0o2711, false), (0o6775, false), (0o6775, true), (0o755, true)];

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn set_id_bits_and_capabilities_go_as_they_do_in_a_plain_directory() {
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !has("setpriv") || !has(PYTHON) {
        eprintln!("skipped: no setpriv or no {PYTHON}");
        return;
    }
    let outcome = |at: &Path, options: &[&str]| {
        fs::write(at.join("other"), "another").unwrap();
        let mut script = "import os\n".to_owned();
        let mut files = Vec::new();
        for (number, call) in HOW.into_iter().enumerate() {
            for (mode, has_capability) in FILES {
                let name = format!("{number}-{mode:o}-{has_capability}");
                let path = at.join(&name);
                fs::write(&path, "content").unwrap();
                std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                if has_capability {
                    let flags = rustix::fs::XattrFlags::empty();
                    rustix::fs::setxattr(&path, "security.capability", &CAPABILITY, flags).unwrap();
                }
                script += &format!("f = '{name}'; {call}\n");
                files.push((path, call, mode, has_capability));
            }
        }
        let done = Command::new("setpriv")
            .args(options)
            .args([PYTHON, "-S", "-E", "-c", &script])
            .current_dir(at)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let look = |(path, call, mode, has_capability): (std::path::PathBuf, _, _, bool)| {
            let stat = fs::metadata(&path).unwrap();
            let mut value = [0; 64];
            let left = rustix::fs::getxattr(&path, "security.capability", &mut value[..]);
            fs::remove_file(&path).unwrap();
            format!("{call} {mode:o} {has_capability}: {:o} {} {left:?}", stat.mode(), stat.len())
        };
        files.into_iter().map(look).collect::<Vec<_>>()
    };
    by_each(&OURS, |both| {
        for (who, options) in WHO {
            let (ours, plain) = (outcome(&both.ours(), options), outcome(&both.plain(), options));
            for (ours, plain) in ours.iter().zip(&plain) {
                assert_eq!(ours, plain, "{who}");
            }
        }
    });
}
