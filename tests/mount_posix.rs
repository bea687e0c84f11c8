//! The cases of pjdfstest, as a table: each system call on each kind of path, by root
//! and by somebody else, in the mounted overlay and in a plain directory. Both must
//! give the same error or success, and leave the same entries, owners, modes, link
//! counts, sizes and targets, and the same times must have moved.
//!
//! Errors and permissions mostly come out of the crossing of [`CALLS`] and [`PATHS`];
//! [`SEQUENCES`] has what takes more than one call; `YADOKARI_CASES=all` runs the whole
//! crossing, not a fifth of it. Not compared: times of last access
//! (we keep them like `noatime`; no image has them) and the link count and size of
//! directories (1 here, as on btrfs). Needs root and what `tests/mount.rs` needs.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/both.rs"]
mod both;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;

use both::Both;
use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::io::Errno;

/// Somebody without a right beyond his own.
const NOBODY: u32 = 65_534;
/// A group that he is in, besides his own.
const STAFF: u32 = 50;

/// What every case finds: kind, mode (octal), owner, group, path, and a target.
const FIXTURE: &[&str] = &[
    "file 0644 0 0 file",
    "file 0666 0 0 open",
    "file 0644 65534 65534 own",
    "file 0640 0 50 staff",
    "file 6777 0 0 suid",
    "file 6755 65534 65534 ownsuid",
    "file 0644 65534 0 foreign",
    "link - - - hard file",
    "dir 0755 0 0 dir",
    "dir 0755 0 0 full",
    "file 0644 0 0 full/f",
    "dir 0755 65534 65534 odir",
    "file 0644 0 0 odir/f",
    "dir 0777 0 0 pub",
    "file 0644 0 0 pub/f",
    "file 0644 65534 65534 pub/own",
    "dir 0755 65534 65534 pub/dir",
    "dir 1777 0 0 sticky",
    "file 0644 0 0 sticky/f",
    "file 0644 65534 65534 sticky/own",
    "dir 0777 0 0 sticky/dir",
    "dir 1777 65534 65534 osticky",
    "file 0644 0 0 osticky/f",
    "dir 0666 0 0 noexec",
    "file 0666 0 0 noexec/f",
    "dir 0555 0 0 nowrite",
    "file 0666 0 0 nowrite/f",
    "dir 0333 0 0 noread",
    "file 0666 0 0 noread/f",
    "dir 2777 0 50 sgid",
    "fifo 0666 0 0 fifo",
    "socket 0666 0 0 socket",
    "char 0666 0 0 null",
    "block 0600 0 0 block",
    "symlink - - - tofile file",
    "symlink - - - todir pub",
    "symlink - - - dangling nowhere",
    "symlink - - - loop1 loop2",
    "symlink - - - loop2 loop1",
];

/// Paths, relative to the fixture. `<n>` stands for that many bytes of a name,
/// `<path:n>` for a path of that length.
const PATHS: &[&str] = &[
    "file",
    "open",
    "own",
    "staff",
    "suid",
    "ownsuid",
    "hard",
    "dir",
    "full",
    "odir",
    "odir/f",
    "pub/f",
    "pub/own",
    "pub/dir",
    "pub/new",
    "sticky/f",
    "sticky/own",
    "sticky/dir",
    "osticky/f",
    "noexec/f",
    "noexec/new",
    "nowrite/f",
    "nowrite/new",
    "noread/f",
    "noread/new",
    "sgid",
    "sgid/new",
    "fifo",
    "socket",
    "null",
    "block",
    "tofile",
    "todir",
    "todir/own",
    "dangling",
    "loop1",
    "loop1/x",
    "missing",
    "missing/x",
    "missing/",
    "file/x",
    "file/",
    "fifo/x",
    "tofile/",
    "todir/",
    "dir/",
    "dir/.",
    "dir/..",
    ".",
    "..",
    "",
    "<255>",
    "<256>",
    "pub/<255>",
    "<256>/x",
    "<path:4095>",
    "<path:4096>",
    "pub/<path:4000>",
];

/// System calls; `X` is the path.
const CALLS: &[&str] = &[
    "chmod 0511 X",
    "chmod 7777 X",
    "chown 65533 65533 X",
    "chown 65534 - X",
    "chown - 50 X",
    "chown - - X",
    "lchown - 50 X",
    "truncate 3 X",
    "truncate 30 X",
    "link X pub/linked",
    "link own X",
    "mkdir 2775 X",
    "mkfifo 0644 X",
    "mknod X",
    "mksock X",
    "open r X",
    "open w X",
    "open wt X",
    "open rd X",
    "open rn X",
    "open wc X",
    "open wce X",
    "open wa X",
    "rename X pub/moved",
    "rename pub/own X",
    "rename pub/dir X",
    "exchange X pub/own",
    "noreplace pub/own X",
    "rmdir X",
    "unlink X",
    "symlink some/target X",
    "utimes now X",
    "utimes set X",
    "utimes omit X",
    "utimes setown X",
    "readlink X",
    "stat X",
    "access w X",
    "access x X",
    "list X",
    "setxattr X",
    "write X",
];

/// Cases of more than one call; each line is one, `nobody` before it if by him.
const SEQUENCES: &[&[&str]] = &[
    // A file that lost its last name.
    &[
        "hold own",
        "unlink own",
        "held-stat",
        "held-write",
        "held-truncate 2",
        "held-chmod 0600",
        "held-stat",
    ],
    &["hold own", "rename file own", "held-stat", "held-write", "stat own"],
    &["hold hard", "unlink file", "held-stat", "stat hard", "unlink hard", "held-stat"],
    // A directory that lost its name.
    &["hold dir", "rmdir dir", "held-stat", "held-make x", "held-list"],
    &["hold pub/dir", "rename odir pub/dir", "unlink odir/f", "held-stat"],
    // Descriptors that only read.
    &["holdr own", "held-truncate 2", "held-write"],
    &["nobody hold own", "chmod 0000 own", "chown 0 0 own", "held-write", "held-truncate 1"],
    // Set-id bits.
    &["nobody write suid", "stat suid"],
    &["nobody truncate 3 suid", "stat suid"],
    &["nobody open wt suid", "stat suid"],
    &["write suid", "stat suid"],
    &["truncate 3 suid", "stat suid"],
    &["chown 65533 65533 suid", "stat suid"],
    &["chown - - suid", "stat suid"],
    &["chown 65533 65533 sgid", "stat sgid"],
    &["nobody chown - 50 ownsuid", "stat ownsuid"],
    &["nobody chmod 2755 own", "stat own", "chown - 12 own", "nobody chmod 2755 own", "stat own"],
    &["nobody write ownsuid", "stat ownsuid"],
    &["nobody punch suid", "stat suid"],
    &["nobody copyto suid", "stat suid"],
    // Capabilities go with a write, a truncation, a change of owner, and not otherwise.
    &["setcap file", "getcap file", "write file", "getcap file"],
    &["setcap file", "truncate 3 file", "getcap file"],
    &["setcap file", "chown 1 1 file", "getcap file"],
    &["setcap file", "chmod 0700 file", "utimes set file", "link file pub/x", "getcap file"],
    &["setcap file", "rename file pub/x", "getcap pub/x"],
    &["setcap file", "punch file", "getcap file"],
    &["setcap file", "copyto file", "getcap file"],
    &["nobody setcap own", "nobody getcap own"],
    // Groups of what is made.
    &["nobody mkdir 0755 sgid/d", "stat sgid/d", "nobody mkdir 0755 sgid/d/e", "stat sgid/d/e"],
    &["nobody open wce sgid/f", "stat sgid/f", "nobody mkfifo 0644 sgid/p", "stat sgid/p"],
    &["nobody symlink x sgid/l", "lstat sgid/l"],
    // Renames.
    &[
        "rename pub pub/dir",
        "rename pub pub/dir/x",
        "rename pub/dir pub",
        "rename full dir",
        "rename dir full",
    ],
    &["rename dir full", "unlink full/f", "rename dir full", "stat full"],
    &["rename file hard", "stat file", "stat hard"],
    &["rename file file", "rename pub/dir pub/dir", "rename tofile file", "lstat file"],
    &[
        "nobody rename sticky/f pub/x",
        "nobody rename sticky/own pub/x",
        "nobody rename osticky/f pub/y",
    ],
    &[
        "nobody rename sticky/dir pub/x",
        "nobody rename pub/dir sticky/x",
        "nobody rename odir sticky/x",
    ],
    &["nobody exchange sticky/own sticky/f", "nobody exchange sticky/own pub/own", "stat pub/own"],
    &["exchange dir file", "stat dir", "stat file", "exchange dir/x file"],
    &["exchange pub pub/dir", "exchange pub/dir pub", "exchange loop1 file", "lstat file"],
    &["whiteout file x", "lstat file", "stat x"],
    &["whiteout file pub/f", "lstat file", "stat pub/f"],
    &["noreplace file x", "noreplace x hard", "stat x"],
    // Links.
    &[
        "link own pub/a",
        "link pub/a pub/b",
        "stat own",
        "unlink own",
        "stat pub/b",
        "unlink pub/a",
        "stat pub/b",
    ],
    &["link dir pub/a", "link tofile pub/a", "lstat pub/a", "link fifo pub/p", "stat fifo"],
    &[
        "link loop1 pub/a",
        "link dangling pub/b",
        "lstat dangling",
        "unlink dangling",
        "lstat pub/b",
    ],
    &["nobody link file pub/a", "nobody link own pub/b", "nobody link open pub/c"],
    // Trees.
    &["rmdir full", "unlink full/f", "rmdir full", "rmdir full", "unlink dir", "rmdir file"],
    &[
        "mkdir 0755 dir/a",
        "mkdir 0755 dir/a/b",
        "rmdir dir/a",
        "rmdir dir/a/b",
        "rmdir dir/a",
        "rmdir dir",
    ],
    &["rmdir dir/.", "rmdir dir/..", "rmdir .", "unlink todir", "rmdir todir", "stat pub"],
    // Times.
    &[
        "nobody utimes now open",
        "nobody utimes set open",
        "nobody utimes now file",
        "nobody utimes omit file",
    ],
    &[
        "utimes before own",
        "stat own",
        "times own",
        "utimes far own",
        "times own",
        "utimes set own",
        "times own",
    ],
    &["utimes set tofile", "times file", "lutimes set tofile", "times tofile"],
    &["utimes half own", "times own", "chmod 0600 own", "times own"],
    // Opening.
    &[
        "open wce file",
        "open wce dangling",
        "open wc dangling",
        "stat nowhere",
        "open rn tofile",
        "open rd tofile",
    ],
    &[
        "nobody open wc pub/x",
        "stat pub/x",
        "nobody open wc sticky/f",
        "nobody open wc sticky/own",
        "nobody open wt open",
    ],
    &[
        "open wt file",
        "stat file",
        "open wt fifo",
        "open wt null",
        "open w dir",
        "open rd dir",
        "open wct dir",
    ],
    &[
        "umask 077",
        "mkdir 0777 a",
        "stat a",
        "open wce b",
        "stat b",
        "mkfifo 0666 c",
        "stat c",
        "umask 022",
    ],
    &[
        "chmod 0000 own",
        "nobody open r own",
        "nobody stat own",
        "nobody chmod 0400 own",
        "nobody open r own",
        "nobody open w own",
    ],
    &[
        "chmod 0070 staff",
        "nobody open r staff",
        "nobody open w staff",
        "nobody access x staff",
        "chmod 0707 staff",
        "nobody open r staff",
    ],
    &[
        "nobody list noread",
        "nobody stat noread/f",
        "nobody list noexec",
        "nobody stat noexec/f",
        "nobody open wc nowrite/f",
    ],
    &["chmod 0777 full", "nobody unlink full/f", "chmod 0755 full", "nobody open wc full/f"],
    // Sizes.
    &["truncate 100000 own", "stat own", "truncate 0 own", "stat own", "truncate -1 own"],
    &["truncate 1 dir", "truncate 1 fifo", "truncate 1 null", "truncate 1 tofile", "stat file"],
    &["seekwrite 1000000 own", "stat own", "append own", "stat own"],
];

/// Who acts, and what he holds open.
struct Actor {
    base: OwnedFd,
    path: PathBuf,
    held: Option<OwnedFd>,
}

type Answer = Result<String, Errno>;

fn done<T>(result: Result<T, Errno>) -> Answer {
    result.map(|_| String::new())
}

fn io<T>(result: std::io::Result<T>) -> Answer {
    done(result.map_err(|error| Errno::from_raw_os_error(error.raw_os_error().unwrap())))
}

fn octal(text: &str) -> Mode {
    Mode::from_raw_mode(u32::from_str_radix(text, 8).unwrap())
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok()
}

/// Spells a path of the tables out.
fn spelled(path: &str) -> String {
    let Some((head, rest)) = path.split_once('<') else { return path.to_owned() };
    let (what, tail) = rest.split_once('>').unwrap();
    let middle = match what.split_once(':') {
        // `./././…x`, which leads to `x`.
        Some((_, length)) => {
            let length: usize = length.parse().unwrap();
            let mut text = "./".repeat(length / 2);
            if length % 2 == 1 {
                text.push('x');
            } else {
                text.replace_range(length - 2.., "xy");
            }
            text
        }
        None => "x".repeat(what.parse().unwrap()),
    };
    format!("{head}{middle}{tail}")
}

fn times(of: &str) -> Timestamps {
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let both = |time| Timestamps { last_access: time, last_modification: time };
    match of {
        "now" => both(time(0, rustix::fs::UTIME_NOW)),
        "omit" => both(time(0, rustix::fs::UTIME_OMIT)),
        "before" => both(time(-100, 300_000_001)),
        "far" => both(time(7_000_000_000, 999_999_999)),
        "half" => Timestamps {
            last_access: time(0, rustix::fs::UTIME_OMIT),
            last_modification: time(12_345, 678_901_234),
        },
        "setown" => Timestamps {
            last_access: time(5, 6),
            last_modification: time(0, rustix::fs::UTIME_NOW),
        },
        _ => both(time(1_000_000, 123_456_789)),
    }
}

impl Actor {
    fn new(path: &Path) -> Self {
        let base = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        Self { base, path: path.to_owned(), held: None }
    }

    fn open(&self, how: &str, path: &str) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        for letter in how.chars() {
            flags |= match letter {
                'r' => OFlags::RDONLY,
                'w' => OFlags::WRONLY,
                'b' => OFlags::RDWR,
                't' => OFlags::TRUNC,
                'c' => OFlags::CREATE,
                'e' => OFlags::EXCL,
                'd' => OFlags::DIRECTORY,
                'n' => OFlags::NOFOLLOW,
                'a' => OFlags::APPEND,
                letter => panic!("{letter}"),
            };
        }
        rustix::fs::openat(&self.base, path, flags, octal("0666"))
    }

    fn stat(&self, path: &str, flags: AtFlags) -> Answer {
        let stat = rustix::fs::statat(&self.base, path, flags)?;
        Ok(shown(&stat))
    }

    /// One line of the tables.
    fn perform(&mut self, line: &str) -> Answer {
        let words: Vec<&str> = line.split(' ').collect();
        let call = words[0];
        // Empty paths are words, too.
        let last = spelled(words[words.len() - 1]);
        let path = last.as_str();
        let word = |index: usize| words[index];
        let first = spelled(words[1.min(words.len() - 1)]);
        let first = first.as_str();
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let rename =
            |flags| done(rustix::fs::renameat_with(&self.base, first, &self.base, path, flags));
        let absolute = || self.path.join(path);
        let node =
            |kind, mode, device| done(rustix::fs::mknodat(&self.base, path, kind, mode, device));
        let held = || self.held.as_ref().expect("held");
        match call {
            "chmod" => {
                done(rustix::fs::chmodat(&self.base, path, octal(word(1)), AtFlags::empty()))
            }
            "chown" | "lchown" => {
                let uid = number(word(1)).map(rustix::fs::Uid::from_raw);
                let gid = number(word(2)).map(rustix::fs::Gid::from_raw);
                let flags = if call == "lchown" { nofollow } else { AtFlags::empty() };
                done(rustix::fs::chownat(&self.base, path, uid, gid, flags))
            }
            "truncate" => {
                let size = word(1).parse().unwrap();
                // The limit on the length of a path counts what stands before it.
                let at = if path.len() > 3_000 { PathBuf::from(path) } else { absolute() };
                let at = CString::new(at.as_os_str().as_bytes()).unwrap();
                // SAFETY: a string with a NUL at its end, which the call only reads.
                match unsafe { libc::truncate(at.as_ptr(), size) } {
                    0 => Ok(String::new()),
                    _ => io::<()>(Err(std::io::Error::last_os_error())),
                }
            }
            "link" => {
                done(rustix::fs::linkat(&self.base, first, &self.base, path, AtFlags::empty()))
            }
            "mkdir" => done(rustix::fs::mkdirat(&self.base, path, octal(word(1)))),
            "mkfifo" => node(FileType::Fifo, octal(word(1)), 0),
            "mksock" => node(FileType::Socket, octal("0644"), 0),
            "mknod" => node(FileType::CharacterDevice, octal("0644"), rustix::fs::makedev(1, 7)),
            "open" => done(self.open(word(1), path)),
            "rename" => rename(RenameFlags::empty()),
            "exchange" => rename(RenameFlags::EXCHANGE),
            "noreplace" => rename(RenameFlags::NOREPLACE),
            "whiteout" => rename(RenameFlags::WHITEOUT),
            "rmdir" => done(rustix::fs::unlinkat(&self.base, path, AtFlags::REMOVEDIR)),
            "unlink" => done(rustix::fs::unlinkat(&self.base, path, AtFlags::empty())),
            "symlink" => done(rustix::fs::symlinkat(word(1), &self.base, path)),
            "utimes" | "lutimes" => {
                let flags = if call == "lutimes" { nofollow } else { AtFlags::empty() };
                done(rustix::fs::utimensat(&self.base, path, &times(word(1)), flags))
            }
            "times" => {
                let stat = rustix::fs::statat(&self.base, path, nofollow)?;
                Ok(format!("{}.{}", stat.st_mtime, stat.st_mtime_nsec))
            }
            "readlink" => {
                let target = rustix::fs::readlinkat(&self.base, path, Vec::new())?;
                Ok(format!("{target:?}"))
            }
            "stat" => self.stat(path, AtFlags::empty()),
            "lstat" => self.stat(path, nofollow),
            "access" => {
                let access = match word(1) {
                    "w" => rustix::fs::Access::WRITE_OK,
                    _ => rustix::fs::Access::EXEC_OK,
                };
                done(rustix::fs::accessat(&self.base, path, access, AtFlags::empty()))
            }
            "list" => listed(self.open("rd", path)?),
            "setxattr" => {
                let flags = rustix::fs::XattrFlags::empty();
                let file = self.open("r", path)?;
                done(rustix::fs::fsetxattr(&file, "user.x", b"value", flags))
            }
            "setcap" => {
                let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                let flags = rustix::fs::XattrFlags::empty();
                done(rustix::fs::setxattr(absolute(), "security.capability", &value, flags))
            }
            "getcap" => {
                let mut value = [0; 32];
                let length = rustix::fs::getxattr(absolute(), "security.capability", &mut value)?;
                Ok(format!("{:?}", &value[..length]))
            }
            "write" => done(rustix::io::write(&self.open("w", path)?, b"written")),
            "append" => done(rustix::io::write(&self.open("wa", path)?, b"appended")),
            "seekwrite" => {
                let offset = word(1).parse().unwrap();
                done(rustix::io::pwrite(&self.open("w", path)?, b"far", offset))
            }
            "punch" => {
                let flags =
                    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                done(rustix::fs::fallocate(&self.open("w", path)?, flags, 0, 4))
            }
            "copyto" => {
                let (from, to) = (self.open("r", "open")?, self.open("w", path)?);
                done(rustix::fs::copy_file_range(&from, None, &to, None, 5))
            }
            "umask" => {
                rustix::process::umask(octal(word(1)));
                Ok(String::new())
            }
            "hold" | "holdr" => {
                let how = if call == "holdr" { "r" } else { "b" };
                let opened = match self.open(how, path) {
                    Err(Errno::ISDIR) => self.open("rd", path),
                    opened => opened,
                };
                self.held = Some(opened?);
                Ok(String::new())
            }
            "held-stat" => Ok(shown(&rustix::fs::fstat(held())?)),
            "held-write" => done(rustix::io::write(held(), b"held")),
            "held-truncate" => done(rustix::fs::ftruncate(held(), word(1).parse().unwrap())),
            "held-chmod" => done(rustix::fs::fchmod(held(), octal(word(1)))),
            "held-make" => {
                let flags = OFlags::CREATE | OFlags::WRONLY;
                done(rustix::fs::openat(held(), path, flags, octal("0644")))
            }
            "held-list" => listed(rustix::io::dup(held())?),
            call => panic!("{call}"),
        }
    }
}

fn listed(directory: OwnedFd) -> Answer {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(directory)? {
        names.push(entry?.file_name().to_owned());
    }
    names.sort();
    Ok(format!("{names:?}"))
}

/// What is compared of a node.
fn shown(stat: &rustix::fs::Stat) -> String {
    let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
    // A directory that was removed has no link anywhere.
    let (links, size) = match is_directory {
        true => (u64::from(stat.st_nlink > 0), 0),
        false => (stat.st_nlink, stat.st_size),
    };
    let (mode, uid, gid) = (stat.st_mode, stat.st_uid, stat.st_gid);
    format!("{mode:o} {uid}:{gid} links={links} size={size} device={}", stat.st_rdev)
}

/// Makes the fixture below `at`.
fn prepare(at: &Path) {
    for line in FIXTURE {
        let words: Vec<&str> = line.split(' ').collect();
        let path = at.join(words[4]);
        let make = |kind, device| {
            rustix::fs::mknodat(CWD, &path, kind, Mode::empty(), device).unwrap();
        };
        match words[0] {
            "file" => fs::write(&path, words[4].repeat(3)).unwrap(),
            "dir" => fs::create_dir(&path).unwrap(),
            "fifo" => make(FileType::Fifo, 0),
            "socket" => make(FileType::Socket, 0),
            "char" => make(FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            "block" => make(FileType::BlockDevice, rustix::fs::makedev(7, 200)),
            "link" => fs::hard_link(at.join(words[5]), &path).unwrap(),
            "symlink" => std::os::unix::fs::symlink(words[5], &path).unwrap(),
            kind => panic!("{kind}"),
        }
        if let (Some(uid), Some(gid)) = (number(words[2]), number(words[3])) {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).unwrap();
            rustix::fs::chmod(&path, octal(words[1])).unwrap();
        }
    }
}

/// Metadata, the two times, and the number of the inode.
type State = BTreeMap<PathBuf, (String, [(i64, i64); 2], u64)>;

fn state(at: &Path) -> State {
    let mut state = State::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = at.join(&path);
        let stat = rustix::fs::lstat(&full).unwrap();
        let mut text = shown(&stat);
        if let Ok(target) = fs::read_link(&full) {
            write!(text, " -> {target:?}").unwrap();
        }
        let data = fs::symlink_metadata(&full).unwrap();
        if data.is_file() {
            write!(text, " {}", blake3::hash(&fs::read(&full).unwrap()).to_hex()).unwrap();
        }
        if data.is_dir() {
            let entries = fs::read_dir(&full).unwrap();
            pending.extend(entries.map(|entry| path.join(entry.unwrap().file_name())));
        }
        let times = [(data.mtime(), data.mtime_nsec()), (data.ctime(), data.ctime_nsec())];
        state.insert(path, (text, times, data.ino()));
    }
    state
}

/// What became of `before`: every entry, and which of its times moved. The number of an
/// inode that is gone may be that of a new one, whose times are both others.
fn change(before: &State, after: &State) -> String {
    let former: BTreeMap<u64, [(i64, i64); 2]> =
        before.values().map(|(_, times, node)| (*node, *times)).collect();
    let mut lines = String::new();
    for (path, (text, times, node)) in after {
        let old = former.get(node).unwrap_or(&[(0, 0); 2]);
        let moved = match (old[0] == times[0], old[1] == times[1]) {
            (true, true) => "same",
            (false, true) => "mtime",
            (true, false) => "ctime",
            (false, false) => "mtime and ctime",
        };
        writeln!(lines, "{path:?} {text} [{moved}]").unwrap();
    }
    lines
}

/// Waits until the clock that files get their times from has gone on: no time of what
/// comes now is that of what was before.
fn tick() {
    let clock = || rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    let start = clock();
    while clock() == start {
        std::thread::yield_now();
    }
}

/// Runs `body` in a thread of `uid` with the groups of [`NOBODY`], or of root.
fn become_and<T: Send>(uid: u32, body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if uid != 0 {
                let groups = [STAFF];
                // SAFETY: the calls change this thread alone, which ends with `body`;
                // the list of groups lives until they have read it.
                let done = unsafe {
                    libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
                        && libc::syscall(libc::SYS_setresgid, uid, uid, uid) == 0
                        && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
                };
                assert!(done, "{}", std::io::Error::last_os_error());
            }
            body()
        });
        thread.join().unwrap()
    })
}

/// One case: who does what, one call after the other.
type Case = Vec<(u32, String)>;

/// Runs `cases` below `root`, each in a fixture of its own. What each answered, and
/// what became of the fixture.
fn run(root: &Path, cases: &[Case]) -> (Vec<String>, Vec<State>) {
    let places: Vec<PathBuf> =
        (0..cases.len()).map(|number| root.join(number.to_string())).collect();
    for place in &places {
        fs::create_dir(place).unwrap();
        rustix::fs::chmod(place, octal("0755")).unwrap();
        prepare(place);
    }
    let before: Vec<State> = places.iter().map(|place| state(place)).collect();
    tick();
    let mut reports = Vec::new();
    for (place, case) in places.iter().zip(cases) {
        let mut actor = Actor::new(place);
        let mut report = String::new();
        for (uid, line) in case {
            let actor = &mut actor;
            let answer = become_and(*uid, || actor.perform(line));
            writeln!(report, "{uid} {line}: {answer:?}").unwrap();
        }
        reports.push(report);
    }
    let after: Vec<State> = places.iter().map(|place| state(place)).collect();
    for ((report, before), after) in reports.iter_mut().zip(&before).zip(&after) {
        report.push_str(&change(before, after));
    }
    (reports, after)
}

/// The umask is the process's.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `cases` in both, and looks at ours a second time through a fresh mount.
fn compare(cases: &[Case]) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut both) = Both::new() else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    rustix::process::umask(octal("0022"));
    let mut wrong = Vec::new();
    for (number, cases) in cases.chunks(150).enumerate() {
        let [ours, plain] = [both.ours(), both.plain()].map(|root| {
            let root = root.join(number.to_string());
            fs::create_dir(&root).unwrap();
            root
        });
        let ((reports, seen), (expected, _)) = (run(&ours, cases), run(&plain, cases));
        for (ours, plain) in reports.iter().zip(&expected) {
            if ours != plain {
                wrong.push(difference(ours, plain));
            }
        }
        both.remount();
        for (number, (case, seen)) in cases.iter().zip(&seen).enumerate() {
            let again = state(&ours.join(number.to_string()));
            if again != *seen {
                wrong.push(format!("{case:?}: another tree after a remount"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases differ:\n{}",
        wrong.len(),
        cases.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
}

/// The lines that differ, under the calls.
fn difference(ours: &str, plain: &str) -> String {
    let (one, two): (Vec<&str>, Vec<&str>) = (ours.lines().collect(), plain.lines().collect());
    let mut text = format!("{}\n", one[0].chars().take(100).collect::<String>());
    for line in one.iter().filter(|line| !two.contains(line)) {
        writeln!(text, "  ours:  {}", line.chars().take(200).collect::<String>()).unwrap();
    }
    for line in two.iter().filter(|line| !one.contains(line)) {
        writeln!(text, "  plain: {}", line.chars().take(200).collect::<String>()).unwrap();
    }
    text
}

/// The cases of one user: every fifth, another fifth of the paths for each call, or all
/// if `YADOKARI_CASES` is `all`, which takes minutes.
fn crossed(uid: u32) -> Vec<Case> {
    let all = std::env::var_os("YADOKARI_CASES").is_some_and(|cases| cases == "all");
    let is_due =
        |call: usize, path: usize| all || (call * 2 + path + uid as usize).is_multiple_of(5);
    let case = |call: &str, path: &str| {
        let words = call.split(' ').map(|word| if word == "X" { path } else { word });
        vec![(uid, words.collect::<Vec<_>>().join(" "))]
    };
    let mut cases = Vec::new();
    for (number, call) in CALLS.iter().enumerate() {
        let due = PATHS.iter().enumerate().filter(|(path, _)| is_due(number, *path));
        cases.extend(due.map(|(_, path)| case(call, path)));
    }
    cases
}

#[test]
fn roots_calls_on_every_kind_of_path_do_what_they_do_on_a_disk() {
    compare(&crossed(0));
}

#[test]
fn everybody_elses_calls_on_every_kind_of_path_do_what_they_do_on_a_disk() {
    compare(&crossed(NOBODY));
}

#[test]
fn sequences_of_calls_do_what_they_do_on_a_disk() {
    let case = |lines: &&[&str]| -> Case {
        let who = |line: &&str| match line.strip_prefix("nobody ") {
            Some(line) => (NOBODY, line.to_owned()),
            None => (0, (*line).to_owned()),
        };
        lines.iter().map(who).collect()
    };
    compare(&SEQUENCES.iter().map(case).collect::<Vec<_>>());
}
