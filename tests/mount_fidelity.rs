//! What programs may expect of a filesystem, one claim a test: done in the mounted
//! overlay and in a plain directory, with equal results. `tests/mount_posix.rs` has
//! calls, errors and permissions as a table. Needs what `tests/mount.rs` needs.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/both.rs"]
mod both;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use both::Both;
use rustix::fs::CWD;
use rustix::fs::FallocateFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::inotify;
use rustix::io::Errno;
use yadokari::overlay::Attributes;
use yadokari::overlay::MountOptions;
use yadokari::path::Name;
use yadokari::tree::Content;
use yadokari::tree::ReadAt;
use yadokari::tree::Timestamp;

const NOBODY: u32 = 65_534;

fn rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + index / 251) as u8).collect()
}

#[test]
fn two_mappings_and_calls_see_each_others_bytes() {
    if let Some(at) = both::elsewhere() {
        let file = rw(&at.join("f"));
        file.set_len(20_000).unwrap();
        // SAFETY: the file is only changed by this thread, and not cut.
        let (mut one, two) = unsafe {
            (memmap2::MmapMut::map_mut(&file).unwrap(), memmap2::Mmap::map(&file).unwrap())
        };
        one[5_000..5_005].copy_from_slice(b"first");
        assert_eq!(&two[5_000..5_005], b"first");
        let mut read = [0; 5];
        file.read_exact_at(&mut read, 5_000).unwrap();
        assert_eq!(&read, b"first");
        file.write_all_at(b"call", 9_000).unwrap();
        assert_eq!(&two[9_000..9_004], b"call");
        one.flush().unwrap();
        fs::remove_file(at.join("f")).unwrap();
        one[1..5].copy_from_slice(b"gone");
        assert_eq!(&two[1..5], b"gone");
        let kept = rw(&at.join("kept"));
        kept.set_len(9_000).unwrap();
        // SAFETY: as above.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&kept).unwrap() };
        map[8_999] = 7;
        map[0] = 1;
        return;
    }
    let Some(mut both) = Both::new() else { return };
    both.same_elsewhere("two_mappings_and_calls_see_each_others_bytes");
    let last = both.same(|at| fs::read(at.join("kept")).unwrap());
    assert_eq!((last[0], last[8_999], last.len()), (1, 7, 9_000));
    both.remount();
    assert!(fs::read(both.ours().join("kept")).unwrap() == last);
}

/// A time that a program sets stays, though bytes that it wrote through a mapping
/// before are still under way.
#[test]
fn a_time_set_after_a_mapping_was_written_stays() {
    let time = |at: &Path| {
        let data = fs::metadata(at.join("f")).unwrap();
        (data.mtime(), data.mtime_nsec())
    };
    if let Some(at) = both::elsewhere() {
        let file = rw(&at.join("f"));
        file.set_len(9_000).unwrap();
        // SAFETY: nobody else has the file.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file).unwrap() };
        map[100] = 1;
        file.set_modified(std::time::UNIX_EPOCH + Duration::new(1_000, 5)).unwrap();
        rustix::fs::syncfs(&file).unwrap();
        drop(map);
        file.sync_all().unwrap();
        return;
    }
    let Some(mut both) = Both::new() else { return };
    both.same_elsewhere("a_time_set_after_a_mapping_was_written_stays");
    assert_eq!(both.same(time), (1_000, 5));
    both.session().sync().unwrap();
    both.remount();
    assert_eq!(time(&both.ours()), (1_000, 5));
}

#[test]
fn a_removed_file_lives_through_its_mapping_and_descriptor() {
    let Some(both) = Both::new() else { return };
    let _ = both.same(|at| {
        let file = rw(&at.join("f"));
        file.write_all_at(b"content", 0).unwrap();
        // SAFETY: nobody cuts the file.
        let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
        fs::remove_file(at.join("f")).unwrap();
        file.write_all_at(b"C", 0).unwrap();
        let by_proc = fs::read(format!("/proc/self/fd/{}", file.as_raw_fd()));
        (map.to_vec(), file.metadata().unwrap().nlink(), by_proc.unwrap())
    });
}

#[test]
fn a_removed_directory_is_empty_and_takes_nothing() {
    let Some(both) = Both::new() else { return };
    let _ = both.same(|at| {
        fs::create_dir(at.join("d")).unwrap();
        let directory = File::open(at.join("d")).unwrap();
        fs::remove_dir(at.join("d")).unwrap();
        let flags = OFlags::CREATE | OFlags::WRONLY;
        let made = rustix::fs::openat(&directory, "x", flags, Mode::RUSR).map(drop);
        let names = rustix::fs::Dir::read_from(&directory).unwrap().count();
        (made, names, directory.metadata().unwrap().nlink())
    });
}

#[test]
fn advisory_locks_hold_between_descriptors_and_processes() {
    let Some(both) = Both::new() else { return };
    let _ = both.same(|at| {
        let (one, two) = (rw(&at.join("f")), rw(&at.join("f")));
        one.lock().unwrap();
        let taken = two.try_lock().is_err();
        let elsewhere = Command::new("flock").arg("-n").arg(at.join("f")).arg("true").status();
        one.unlock().unwrap();
        let free = two.try_lock().is_ok();
        // Records, by open file description.
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as _,
            l_whence: libc::SEEK_SET as _,
            l_start: 10,
            l_len: 5,
            l_pid: 0,
        };
        let mut set = |file: &File, start| {
            lock.l_start = start;
            // SAFETY: the call reads the structure, which outlives it.
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }
        };
        let records = (set(&one, 10), set(&two, 12), set(&two, 15));
        (taken, elsewhere.map(|status| status.code()).ok(), free, records)
    });
}

/// Events of a directory as text.
fn events(at: &Path, work: impl Fn(&Path)) -> Vec<String> {
    let directory = at.join("watched");
    fs::create_dir(&directory).unwrap();
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, &directory, inotify::WatchFlags::ALL_EVENTS).unwrap();
    work(&directory);
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&watch, &mut buffer);
    let mut seen = Vec::new();
    while let Ok(event) = reader.next() {
        seen.push(format!("{:?} {:?}", event.events(), event.file_name()));
    }
    seen
}

#[test]
fn inotify_tells_what_happens_in_a_directory() {
    let Some(both) = Both::new() else { return };
    let seen = both.same(|at| {
        events(at, |directory| {
            fs::write(directory.join("f"), "text").unwrap();
            fs::rename(directory.join("f"), directory.join("g")).unwrap();
            fs::set_permissions(directory.join("g"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::hard_link(directory.join("g"), directory.join("h")).unwrap();
            fs::remove_file(directory.join("g")).unwrap();
            fs::create_dir(directory.join("d")).unwrap();
            fs::remove_dir(directory.join("d")).unwrap();
        })
    });
    assert!(seen.len() > 10, "{seen:?}");
}

#[test]
fn direct_reads_and_writes_agree_with_cached_ones() {
    #[repr(align(4096))]
    struct Aligned([u8; 8192]);
    let Some(mut both) = Both::new() else { return };
    let bytes = both.same(|at| {
        let path = at.join("f");
        fs::write(&path, pattern(20_000)).unwrap();
        let direct = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .unwrap();
        let mut block = Box::new(Aligned([0; 8192]));
        direct.read_exact_at(&mut block.0, 4096).unwrap();
        assert!(block.0[..] == pattern(20_000)[4096..12_288]);
        block.0.fill(9);
        direct.write_all_at(&block.0, 8192).unwrap();
        fs::read(&path).unwrap()
    });
    both.remount();
    assert!(fs::read(both.ours().join("f")).unwrap() == bytes);
}

#[test]
fn ranges_are_punched_zeroed_and_extended() {
    let Some(mut both) = Both::new() else { return };
    let (punch, zero, keep) =
        (FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE, FallocateFlags::KEEP_SIZE);
    let ranges = [
        (punch | keep, 100, 9_000),
        (zero, 30_000, 5_000),
        (zero | keep, 34_000, 90_000),
        (FallocateFlags::empty(), 40_000, 100),
        (keep, 50_000, 1_000_000),
        (punch | keep, 39_000, 1_000_000),
        // What makes no sense, or isn't allowed.
        (punch, 0, 10),
        (FallocateFlags::empty(), 0, 0),
        (punch | zero | keep, 0, 10),
        (FallocateFlags::empty(), i64::MAX as u64 - 10, 100),
    ];
    let bytes = both.same(|at| {
        let file = rw(&at.join("f"));
        file.write_all_at(&pattern(32_000), 0).unwrap();
        let allocate = |(flags, offset, length)| {
            let done = rustix::fs::fallocate(&file, flags, offset, length);
            (done, file.metadata().unwrap().len())
        };
        let done: Vec<_> = ranges.into_iter().map(allocate).collect();
        let reader = File::open(at.join("f")).unwrap();
        let refused = rustix::fs::fallocate(&reader, keep, 0, 1);
        let directory = File::open(at).unwrap();
        let nowhere = rustix::fs::fallocate(&directory, keep, 0, 1);
        (done, refused, nowhere, fs::read(at.join("f")).unwrap())
    });
    both.remount();
    assert!(fs::read(both.ours().join("f")).unwrap() == bytes.3);
}

/// ext4 can, most filesystems can't, and programs expect that.
#[test]
fn collapsing_and_inserting_ranges_is_refused_as_not_supported() {
    let Some(both) = Both::new() else { return };
    let file = rw(&both.ours().join("f"));
    file.write_all_at(&pattern(32_768), 0).unwrap();
    for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(rustix::fs::fallocate(&file, flags, 4096, 4096), Err(Errno::OPNOTSUPP));
    }
    assert!(fs::read(both.ours().join("f")).unwrap() == pattern(32_768));
}

#[test]
fn data_and_holes_are_found_where_they_are() {
    use rustix::fs::SeekFrom::Data;
    use rustix::fs::SeekFrom::Hole;
    let Some(both) = Both::new() else { return };
    let _ = both.same(|at| {
        let file = rw(&at.join("f"));
        for block in [0_u64, 1, 5, 9] {
            file.write_all_at(&pattern(65_536), block * 65_536).unwrap();
        }
        file.set_len(20 * 65_536).unwrap();
        file.sync_all().unwrap();
        let mut found = Vec::new();
        for offset in (0..22_u64).map(|block| block * 65_536) {
            found.push((
                rustix::fs::seek(&file, Data(offset)),
                rustix::fs::seek(&file, Hole(offset)),
            ));
        }
        found
    });
}

#[test]
fn a_copy_shares_bytes_and_moves_none() {
    let Some(mut both) = Both::new() else { return };
    let count = |both: &Both, name: &str| {
        let counts = both.overlay.requests().counts();
        counts.into_iter().find(|(known, _)| *known == name).map_or(0, |(_, count)| count)
    };
    let large = both.ours().join("large");
    fs::write(&large, pattern(40 << 20)).unwrap();
    let used = || rustix::fs::statvfs(both.scratch()).unwrap().f_bfree;
    let before = (count(&both, "WRITE"), count(&both, "READ"), used());
    assert_eq!(fs::copy(&large, both.ours().join("copy")).unwrap(), 40 << 20);
    assert_eq!((before.0, before.1), (count(&both, "WRITE"), count(&both, "READ")));
    assert!(count(&both, "COPY_FILE_RANGE") >= 1);
    // Either can be changed, and the other stays.
    rw(&large).write_all_at(b"changed", 5 << 20).unwrap();
    both.remount();
    let copy = fs::read(both.ours().join("copy")).unwrap();
    assert!(copy == pattern(40 << 20));
}

#[test]
fn copies_within_and_between_files_do_what_they_do_on_a_disk() {
    let Some(both) = Both::new() else { return };
    let _ = both.same(|at| {
        let (one, two) = (rw(&at.join("one")), rw(&at.join("two")));
        one.write_all_at(&pattern(50_000), 0).unwrap();
        let copy = |from: &File, mut offset: u64, to: &File, mut target: u64, length| {
            rustix::fs::copy_file_range(from, Some(&mut offset), to, Some(&mut target), length)
        };
        let answers = [
            copy(&one, 100, &two, 7, 30_000),
            copy(&one, 49_990, &two, 60_000, 100),
            copy(&one, 50_000, &two, 0, 100),
            copy(&one, 0, &one, 40_000, 20_000),
            copy(&one, 0, &one, 100, 20_000),
            copy(&two, 0, &one, 0, 0),
        ];
        (answers, fs::read(at.join("one")).unwrap(), fs::read(at.join("two")).unwrap())
    });
}

#[test]
fn times_are_kept_to_the_nanosecond_before_and_after_1970() {
    let Some(mut both) = Both::new() else { return };
    let times = [(0, 1), (-1, 999_999_999), (-100_000, 5), (5_000_000_000, 123_456_789)];
    let read = |at: &Path| -> Vec<_> {
        let one = |number: usize| {
            let data = fs::metadata(at.join(number.to_string())).unwrap();
            (data.atime(), data.atime_nsec(), data.mtime(), data.mtime_nsec())
        };
        (0..times.len()).map(one).collect()
    };
    let set = both.same(|at| {
        for (number, (tv_sec, tv_nsec)) in times.iter().enumerate() {
            let path = at.join(number.to_string());
            fs::write(&path, "").unwrap();
            let time = rustix::fs::Timespec { tv_sec: *tv_sec, tv_nsec: *tv_nsec };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
        }
        read(at)
    });
    both.remount();
    assert_eq!(read(&both.ours()), set);
}

#[test]
fn the_room_is_that_of_the_disk_below() {
    let Some(both) = Both::new() else { return };
    let stat = rustix::fs::statvfs(both.ours()).unwrap();
    let below = rustix::fs::statvfs(both.plain()).unwrap();
    assert_eq!((stat.f_blocks, stat.f_frsize), (below.f_blocks, below.f_frsize));
    assert_eq!(stat.f_namemax, 255);
    assert!(stat.f_bavail > 0 && stat.f_bavail <= stat.f_blocks);
}

fn as_nobody(program: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).uid(NOBODY).gid(NOBODY).stderr(Stdio::null());
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

/// The kernel runs a program by the mode that it has cached.
#[test]
fn a_program_that_somebody_wrote_to_runs_as_nobody_else() {
    let Some(both) = Both::new() else { return };
    let _ = both.same(|at| {
        let (id, tee) = (at.join("id"), Path::new("/usr/bin/tee"));
        fs::copy("/usr/bin/id", &id).unwrap();
        fs::set_permissions(&id, fs::Permissions::from_mode(0o6777)).unwrap();
        let before = as_nobody(&id, &["-u"]);
        let mut append = Command::new(tee);
        append.arg("-a").arg(&id).uid(NOBODY).gid(NOBODY).stdin(Stdio::piped());
        let mut append = append.stdout(Stdio::null()).spawn().unwrap();
        append.stdin.take().unwrap().write_all(b"more").unwrap();
        assert!(append.wait().unwrap().success());
        (before, as_nobody(&id, &["-u"]))
    });
}

#[test]
fn a_program_that_runs_is_not_written_to() {
    let Some(both) = Both::new() else { return };
    let _ = both.same(|at| {
        let program = at.join("cat");
        fs::copy("/bin/cat", &program).unwrap();
        let mut child =
            Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let write = OpenOptions::new().write(true).open(&program).map(drop);
        drop(stdin);
        child.wait().unwrap();
        write.map_err(|error| error.raw_os_error())
    });
}

#[test]
fn attributes_are_listed_replaced_and_measured() {
    use rustix::fs::XattrFlags;
    let Some(mut both) = Both::new() else { return };
    let list = |at: &Path| {
        let mut names = [0; 200];
        let length = rustix::fs::listxattr(at.join("f"), &mut names).unwrap();
        let mut names: Vec<_> =
            names[..length].split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        names.sort();
        names
    };
    let names = both.same(|at| {
        let path = at.join("f");
        fs::write(&path, "").unwrap();
        let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
        let get = |name: &str, room: usize| {
            let mut value = vec![0; room];
            rustix::fs::getxattr(&path, name, &mut value)
        };
        let answers = [
            set("user.b", b"one", XattrFlags::empty()),
            set("user.a", &[7; 900], XattrFlags::CREATE),
            set("user.a", b"", XattrFlags::CREATE),
            set("user.c", b"", XattrFlags::REPLACE),
            set("user.b", b"", XattrFlags::REPLACE),
            set("trusted.t", b"root", XattrFlags::empty()),
            set("nonsense", b"x", XattrFlags::empty()),
            set(&format!("user.{}", "n".repeat(251)), b"x", XattrFlags::empty()),
            rustix::fs::removexattr(&path, "user.none"),
        ];
        let lengths = [get("user.a", 0), get("user.a", 10), get("user.a", 1000), get("user.b", 10)];
        let fifo = at.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let on_fifo = rustix::fs::setxattr(&fifo, "user.x", b"", XattrFlags::empty());
        (answers, lengths, on_fifo, list(at))
    });
    both.remount();
    assert_eq!(list(&both.ours()), names.3);
}

/// The value of an access ACL: tag (include/uapi/linux/posix_acl.h), permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// `cp -p` and `sed -i` give a file its mode that way, whether or not it has an ACL.
#[test]
fn an_access_acl_says_the_mode() {
    use rustix::fs::XattrFlags;
    const ACCESS: &str = "system.posix_acl_access";
    const NO_ID: u32 = u32::MAX;
    let Some(mut both) = Both::new() else { return };
    let only_mode = [(0x01, 7, NO_ID), (0x04, 5, NO_ID), (0x20, 4, NO_ID)];
    let with_user =
        [(0x01, 6, NO_ID), (0x02, 7, NOBODY), (0x04, 0, NO_ID), (0x10, 5, NO_ID), (0x20, 0, NO_ID)];
    let look = |path: &Path| {
        let mut value = [0; 100];
        let length = rustix::fs::getxattr(path, ACCESS, &mut value);
        let mode = fs::metadata(path).unwrap().mode();
        (format!("{mode:o}"), length.map(|length| value[..length].to_vec()))
    };
    let seen = both.same(|at| {
        ["file", "directory"].map(|name| {
            let path = at.join(name);
            match name {
                "file" => File::create(&path).map(drop),
                _ => fs::create_dir(&path),
            }
            .unwrap();
            let chmod = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode));
            chmod(0o2600).unwrap();
            let set = |value: &[u8]| {
                let answer = rustix::fs::setxattr(&path, ACCESS, value, XattrFlags::empty());
                (answer, look(&path))
            };
            let first = [
                set(&acl(&only_mode)),
                set(&acl(&with_user)),
                set(&acl(&only_mode[..2])),
                set(&acl(&with_user[..3])),
                set(b"short"),
            ];
            chmod(0o731).unwrap();
            let changed = look(&path);
            let removed = [(); 2].map(|()| (rustix::fs::removexattr(&path, ACCESS), look(&path)));
            let again = [set(&acl(&with_user)), set(&acl(&only_mode)), set(&acl(&with_user))];
            (first, changed, removed, again)
        })
    });
    both.remount();
    for (name, seen) in ["file", "directory"].iter().zip(seen) {
        assert_eq!(look(&both.ours().join(name)), seen.3[2].1);
    }
}

#[test]
fn appends_of_several_writers_all_arrive() {
    let Some(mut both) = Both::new() else { return };
    let lines = |at: &Path| {
        let text = fs::read_to_string(at.join("log")).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let all = both.same(|at| {
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let path = at.join("log");
                scope.spawn(move || {
                    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
                    for number in 0..100 {
                        file.write_all(format!("{worker} {number}\n").as_bytes()).unwrap();
                    }
                });
            }
        });
        lines(at)
    });
    both.remount();
    assert_eq!(lines(&both.ours()), all);
}

#[test]
fn a_reader_of_a_directory_meets_what_stays_once_while_entries_come_and_go() {
    let Some(both) = Both::new() else { return };
    let _ = both.same(|at| {
        let at = at.join("d");
        fs::create_dir(&at).unwrap();
        let name = |number: usize| format!("a-rather-long-name-of-an-entry-{number:05}");
        for number in 0..3_000 {
            File::create(at.join(name(number))).unwrap();
        }
        let mut seen: Vec<OsString> = Vec::new();
        for (number, entry) in fs::read_dir(&at).unwrap().enumerate() {
            seen.push(entry.unwrap().file_name());
            if number % 10 == 0 && number < 900 {
                // Every third goes, others come.
                fs::remove_file(at.join(name(number / 10 * 30))).unwrap();
                File::create(at.join(format!("new-{number}"))).unwrap();
            }
        }
        let once: BTreeSet<&OsString> = seen.iter().collect();
        let missed = (0..3_000).filter(|number| {
            (number % 30 != 0 || *number >= 2_700) && !once.contains(&OsString::from(name(*number)))
        });
        (missed.count(), once.len() == seen.len())
    });
}

#[test]
fn a_directory_emptied_while_it_is_read_is_empty() {
    let Some(both) = Both::new() else { return };
    let _ = both.same(|at| {
        let at = at.join("d");
        fs::create_dir(&at).unwrap();
        for number in 0..5_000 {
            File::create(at.join(number.to_string())).unwrap();
        }
        for entry in fs::read_dir(&at).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        fs::remove_dir(&at).map_err(|error| error.raw_os_error())
    });
}

const ATTRIBUTES: Attributes =
    Attributes { mode: 0o644, uid: 0, gid: 0, mtime: Timestamp::seconds(1_000) };

#[test]
fn a_directory_of_200_000_entries_is_listed_and_searched() {
    let Some(both) = Both::new() else { return };
    let root = both.overlay.after().root();
    let name = |text: &str| Name::new(text.as_bytes()).unwrap();
    let directory = both.overlay.make_directory(root, &name("d"), &ATTRIBUTES).unwrap();
    for number in 0..200_000 {
        let content = Arc::new(Vec::new());
        let name = name(&format!("entry-{number}"));
        both.overlay.put_file(directory, &name, &ATTRIBUTES, content).unwrap();
    }
    let at = both.ours().join("d");
    assert_eq!(fs::read_dir(&at).unwrap().count(), 200_000);
    for number in [0, 99_999, 199_999] {
        assert_eq!(fs::metadata(at.join(format!("entry-{number}"))).unwrap().mtime(), 1_000);
    }
    assert!(!at.join("entry-200000").exists());
    fs::write(at.join("entry-200000"), "more").unwrap();
    fs::remove_file(at.join("entry-5")).unwrap();
    fs::rename(at.join("entry-6"), at.join("renamed")).unwrap();
    assert_eq!(fs::read_dir(&at).unwrap().count(), 200_000);
}

#[test]
fn a_file_has_65_000_names() {
    let Some(mut both) = Both::new() else { return };
    let root = both.overlay.after().root();
    let name = |number: u32| Name::new(format!("name-{number}").as_bytes()).unwrap();
    let content = Arc::new(b"content".to_vec());
    let file = both.overlay.put_file(root, &name(0), &ATTRIBUTES, content).unwrap();
    for number in 1..65_000 {
        both.overlay.link(file, root, &name(number)).unwrap();
    }
    let at = |number: u32| both.ours().join(format!("name-{number}"));
    fs::hard_link(at(64_999), at(65_000)).unwrap();
    assert_eq!(fs::metadata(at(31_000)).unwrap().nlink(), 65_001);
    fs::write(at(65_000), "through one").unwrap();
    assert_eq!(fs::read(at(17)).unwrap(), b"through one");
    for number in 0..100 {
        fs::remove_file(at(number * 600)).unwrap();
    }
    assert_eq!(fs::metadata(at(1)).unwrap().nlink(), 64_901);
    both.remount();
    assert_eq!(fs::metadata(both.ours().join("name-1")).unwrap().nlink(), 64_901);
}

#[test]
fn a_path_of_4_000_bytes_leads_somewhere() {
    let Some(mut both) = Both::new() else { return };
    let name = "n".repeat(248);
    let descend = |at: &Path, make: bool| {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        let mut directory = rustix::fs::open(at, flags, Mode::empty()).unwrap();
        for _ in 0..40 {
            if make {
                rustix::fs::mkdirat(&directory, &name, Mode::RWXU).unwrap();
            }
            directory = rustix::fs::openat(&directory, &name, flags, Mode::empty()).unwrap();
        }
        directory
    };
    let deep: String = std::iter::repeat_n(format!("{name}/"), 16).collect();
    let _ = both.same(|at| {
        descend(at, true);
        let path = at.join(format!("{deep}{}", "f".repeat(4_000 - deep.len())));
        fs::write(&path, "deep").map_err(|error| error.raw_os_error()).unwrap();
        let beyond = at.join(format!("{deep}{name}/{name}")).metadata();
        (fs::read(&path).unwrap(), beyond.map(drop).map_err(|error| error.raw_os_error()))
    });
    both.remount();
    descend(&both.ours(), false);
    let path = both.ours().join(format!("{deep}{}", "f".repeat(4_000 - deep.len())));
    assert_eq!(fs::read(path).unwrap(), b"deep");
}

#[test]
fn a_sparse_file_of_20_gib_takes_no_room_and_keeps_its_ends() {
    let Some(mut both) = Both::new() else { return };
    let _ = both.same(|at| {
        let file = rw(&at.join("sparse"));
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(b"end", (20 << 30) - 3).unwrap();
        let data = file.metadata().unwrap();
        assert!(data.blocks() < 1_000);
        data.len()
    });
    both.remount();
    let file = rw(&both.ours().join("sparse"));
    let mut end = [1; 5];
    file.read_exact_at(&mut end, (20 << 30) - 5).unwrap();
    assert_eq!(&end, b"\0\0end");
}

#[test]
fn sockets_pipes_and_devices_work_where_they_are_named() {
    let Some(both) = Both::new() else { return };
    let _ = both.same(|at| {
        let listener = std::os::unix::net::UnixListener::bind(at.join("socket")).unwrap();
        let mut stream = std::os::unix::net::UnixStream::connect(at.join("socket")).unwrap();
        listener.accept().unwrap().0.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).unwrap();
        fs::rename(at.join("socket"), at.join("moved")).unwrap();
        let moved = std::os::unix::net::UnixStream::connect(at.join("moved")).is_ok();
        let null = at.join("null");
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, &null, kind, Mode::RWXU, rustix::fs::makedev(1, 3)).unwrap();
        fs::write(&null, "into nothing").unwrap();
        (heard, moved, fs::read(&null).unwrap(), fs::metadata(&null).unwrap().rdev())
    });
}

/// Set in the process that [`a_killed_user_of_its_own_mount_leaves_nothing`] starts.
const VICTIM: &str = "YADOKARI_TEST_VICTIM";

#[test]
fn a_killed_user_of_its_own_mount_leaves_nothing() {
    let name = "a_killed_user_of_its_own_mount_leaves_nothing";
    if std::env::var_os(VICTIM).is_some() {
        let Some(both) = Both::new() else { return };
        println!("\nat {}", both.ours().display());
        loop {
            fs::write(both.ours().join("f"), pattern(100_000)).unwrap();
            fs::read_dir(both.ours()).unwrap().for_each(drop);
            fs::remove_file(both.ours().join("f")).unwrap();
        }
    }
    if Both::new().is_none() {
        return;
    }
    for round in 0..5 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(VICTIM, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let at =
            lines.map_while(Result::ok).find_map(|line| Some(line.strip_prefix("at ")?.to_owned()));
        let at = at.expect("it mounts");
        // It is in the middle of something; of what is chance.
        for _ in 0..round * 1_000 {
            std::thread::yield_now();
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        let start = Instant::now();
        while fs::read_to_string("/proc/self/mounts").unwrap().contains(&at) {
            assert!(start.elapsed() < Duration::from_secs(60), "{at} stays mounted");
            std::thread::yield_now();
        }
        let place = Path::new(&at).parent().unwrap();
        fs::remove_dir_all(place).unwrap();
    }
}

/// A content that can't be read before somebody opens the gate.
struct Stuck(Mutex<bool>, Condvar);

impl ReadAt for Stuck {
    fn len(&self) -> u64 {
        9
    }

    fn read_at(&self, buffer: &mut [u8], _: u64) -> std::io::Result<usize> {
        let open = self.0.lock().unwrap();
        drop(self.1.wait_while(open, |open| !*open).unwrap());
        buffer.fill(b'x');
        Ok(buffer.len())
    }
}

#[test]
fn a_server_that_does_not_answer_is_cut_off() {
    if Both::new().is_none() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let at = place.path().join("root");
    fs::create_dir(&at).unwrap();
    let overlay = yadokari::overlay::Overlay::new(Vec::new(), place.path()).unwrap();
    let stuck = Arc::new(Stuck(Mutex::new(false), Condvar::new()));
    let content: Content = stuck.clone();
    let root = overlay.after().root();
    overlay.put_file(root, &Name::new(b"f").unwrap(), &ATTRIBUTES, content).unwrap();
    let _guard = both::Guard::of(&at);
    let patience = Some(Duration::from_millis(300));
    let options = MountOptions { patience, ..both::options() };
    let session = overlay.mount(&at, options).unwrap();
    // Waits, and can't be interrupted, until the connection is cut.
    let read = fs::read(at.join("f")).unwrap_err().raw_os_error().unwrap();
    assert!([libc::ECONNABORTED, libc::ENOTCONN, libc::EIO].contains(&read), "{read}");
    *stuck.0.lock().unwrap() = true;
    stuck.1.notify_all();
    session.unmount().unwrap();
    assert!(overlay.log().lost.is_some());
}
