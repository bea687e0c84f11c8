//! Looking into the process that makes a call: its memory, its directories and its
//! descriptors, through `/proc`.
//!
//! `/proc/PID/mem` and not `process_vm_readv(2)`: a container's profile lets the
//! former be. Both ask the same question: whether we could trace the process. We can
//! if it is ours or has the user, the group and no more rights than we. For one of
//! another user the thread takes on that user for files (`setfsuid(2)`), which needs
//! `CAP_SETUID` and `CAP_SETGID` only. One that changed its user without executing
//! anything since isn't open to anybody without `CAP_SYS_PTRACE`.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Longest path that a call takes (`PATH_MAX`).
const LONGEST: usize = 4096;

/// Most paths are shorter than this many bytes.
const USUAL: usize = 256;

/// Why a call can't be understood.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// The process can't be looked into; says which.
    Process(String),
    /// The call changes what can't be named; says how.
    Call(String),
}

/// A thread that makes a call, by its id in our pid namespace.
pub(super) struct Caller {
    pid: u32,
    /// Whether it has to be looked into as another user.
    other: Cell<bool>,
}

impl Caller {
    pub(super) fn new(pid: u32) -> Self {
        Self { pid, other: Cell::new(false) }
    }

    /// Does `body` with the rights that it takes to look into the process.
    fn look<T>(&self, body: impl Fn() -> rustix::io::Result<T>) -> Result<T, Unreadable> {
        if !self.other.get() {
            match body() {
                Ok(value) => return Ok(value),
                Err(Errno::ACCESS | Errno::PERM) => self.other.set(true),
                Err(errno) => return Err(self.failed(errno)),
            }
        }
        let (uid, gid) = self.ids()?;
        let as_other = Identity::take(uid, gid);
        let result = body();
        drop(as_other);
        result.map_err(|errno| self.failed(errno))
    }

    fn failed(&self, errno: Errno) -> Unreadable {
        match errno {
            Errno::ACCESS | Errno::PERM => Unreadable::Process(self.name()),
            errno => Unreadable::Call(format!("/proc/{} can't be read: {errno}", self.pid)),
        }
    }

    /// `process 12 (http)`.
    fn name(&self) -> String {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        format!("the process `{}`", name.trim_end())
    }

    /// Effective user and group.
    pub(super) fn ids(&self) -> Result<(u32, u32), Unreadable> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))
            .map_err(|error| Unreadable::Call(format!("a process is gone: {error}")))?;
        let effective = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line.and_then(|line| line.split_whitespace().nth(1)).and_then(|id| id.parse().ok())
        };
        match (effective("Uid:"), effective("Gid:")) {
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            _ => Err(Unreadable::Call(format!("/proc/{}/status says nothing", self.pid))),
        }
    }

    /// `length` bytes of its memory at `address`; fewer where there are no more.
    pub(super) fn memory(&self, address: u64, length: usize) -> Result<Vec<u8>, Unreadable> {
        self.look(|| {
            let memory = self.open_memory()?;
            let mut bytes = vec![0; length];
            let count = read_at(&memory, &mut bytes, address)?;
            bytes.truncate(count);
            Ok(bytes)
        })
    }

    /// The C string at `address`; empty if there is none: the call will fail.
    pub(super) fn string(&self, address: u64) -> Result<Vec<u8>, Unreadable> {
        self.look(|| {
            let memory = self.open_memory()?;
            for length in [USUAL, LONGEST] {
                let mut bytes = vec![0; length];
                let count = read_at(&memory, &mut bytes, address)?;
                bytes.truncate(count);
                if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
                    bytes.truncate(end);
                    return Ok(bytes);
                }
            }
            Ok(Vec::new())
        })
    }

    fn open_memory(&self) -> rustix::io::Result<OwnedFd> {
        let path = format!("/proc/{}/mem", self.pid);
        rustix::fs::open(Path::new(&path), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    fn link(&self, name: &str) -> Result<Vec<u8>, Unreadable> {
        let path = format!("/proc/{}/{name}", self.pid);
        self.look(|| Ok(rustix::fs::readlinkat(CWD, Path::new(&path), Vec::new())?.into_bytes()))
    }

    /// Its working directory; ends in ` (deleted)` if that was removed.
    pub(super) fn directory(&self) -> Result<Vec<u8>, Unreadable> {
        self.link("cwd")
    }

    /// What a descriptor is open on; `None` if it isn't open.
    pub(super) fn descriptor(&self, descriptor: i32) -> Result<Option<Vec<u8>>, Unreadable> {
        let path = format!("/proc/{}/fd/{descriptor}", self.pid);
        self.look(|| match rustix::fs::readlinkat(CWD, Path::new(&path), Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        })
    }

    /// Whether the file behind a descriptor has a name left.
    pub(super) fn has_names(&self, descriptor: i32) -> Result<bool, Unreadable> {
        let path = format!("/proc/{}/fd/{descriptor}", self.pid);
        self.look(|| match rustix::fs::statat(CWD, Path::new(&path), AtFlags::empty()) {
            Ok(stat) => Ok(stat.st_nlink > 0),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        })
    }

    /// Whether its root directory is ours.
    pub(super) fn has_our_root(&self) -> Result<bool, Unreadable> {
        Ok(self.link("root")? == b"/")
    }
}

fn read_at(memory: &OwnedFd, buffer: &mut [u8], address: u64) -> rustix::io::Result<usize> {
    match rustix::io::pread(memory, buffer, address) {
        // No memory there: the call will fail with EFAULT.
        Err(Errno::IO | Errno::FAULT) => Ok(0),
        other => other,
    }
}

/// The filesystem user of this thread, another one while this lives.
struct Identity {
    uid: u32,
    gid: u32,
}

impl Identity {
    fn take(uid: u32, gid: u32) -> Self {
        // SAFETY: both calls only change credentials of this thread.
        unsafe {
            let before = libc::syscall(libc::SYS_setfsgid, gid);
            let user = libc::syscall(libc::SYS_setfsuid, uid);
            Self { uid: user as u32, gid: before as u32 }
        }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            libc::syscall(libc::SYS_setfsuid, self.uid);
            libc::syscall(libc::SYS_setfsgid, self.gid);
        }
    }
}

impl From<Unreadable> for io::Error {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Process(what) | Unreadable::Call(what) => Self::other(what),
        }
    }
}
