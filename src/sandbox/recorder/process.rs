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
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

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

/// Memories of processes that were opened before. `/proc/PID/mem` stays open on the
/// memory that the process had then, so one is forgotten when its process executes
/// something, and after [`FRESH`]: process ids come round again, but not that soon.
///
/// That of a process which is about to change its user is *kept*, for nobody may open it
/// afterwards, and used when that is so. Whoever has the id later began later, too.
#[derive(Debug, Default)]
pub(super) struct Memories {
    open: HashMap<u32, (OwnedFd, Instant)>,
    /// Directories in `/proc` of those who called more than once.
    entries: HashMap<u32, Option<Rc<OwnedFd>>>,
    kept: HashMap<u32, Kept>,
    /// Whether executions are noticed; nothing is left open before one was.
    sees_executions: bool,
}

/// The memory of a process that began at that time, in the words of proc(5).
#[derive(Debug)]
struct Kept {
    memory: OwnedFd,
    began: Option<String>,
}

/// How long an open memory is used.
const FRESH: Duration = Duration::from_millis(50);

/// How many memories are left open.
const OPEN: usize = 32;

/// How many are kept: each is a descriptor of the builder's. Those of processes that are
/// gone make room when there are so many; beyond that nothing is read, and the step is
/// walked.
const KEPT: usize = 256;

impl Memories {
    /// Who calls, with its directory in `/proc` if it calls again.
    pub(super) fn caller(&mut self, pid: u32) -> Caller {
        let mut caller = Caller::new(pid);
        if !self.sees_executions {
            return caller;
        }
        caller.entry = match self.entries.get(&pid) {
            Some(Some(entry)) => Some(Rc::clone(entry)),
            Some(None) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let entry = rustix::fs::open(caller.own.as_str(), flags, Mode::empty());
                let entry = entry.ok().map(Rc::new);
                self.entries.insert(pid, entry.clone());
                entry
            }
            None => {
                if self.entries.len() >= OPEN {
                    self.entries.clear();
                }
                self.entries.insert(pid, None);
                None
            }
        };
        caller
    }

    /// `caller` is about to get another memory, and if it is a thread its leader's id.
    pub(super) fn forget(&mut self, caller: &Caller) {
        self.sees_executions = true;
        self.kept.remove(&caller.pid);
        self.open.clear();
        self.entries.clear();
    }

    /// `caller` is about to change its user or group.
    pub(super) fn keep(&mut self, caller: &Caller) {
        if !self.sees_executions {
            return;
        }
        // After a change of its group it may be late for a change of its user.
        let Ok(memory) = caller.look(|| caller.open_memory()) else { return };
        if self.kept.len() >= KEPT {
            self.kept.retain(|pid, _| Path::new(&format!("/proc/{pid}")).exists());
        }
        if self.kept.len() < KEPT || self.kept.contains_key(&caller.pid) {
            self.kept.insert(caller.pid, Kept { memory, began: caller.began() });
        }
    }

    /// Does `body` with the memory of `caller`: with a fresh one if it finds nothing in
    /// one that was open, and with a kept one if that is refused.
    fn with<T>(
        &mut self,
        caller: &Caller,
        mut body: impl FnMut(&OwnedFd) -> rustix::io::Result<Option<T>>,
    ) -> Result<Option<T>, Unreadable> {
        let open = self.open.get(&caller.pid).filter(|(_, since)| since.elapsed() < FRESH);
        if let Some((memory, _)) = open
            && let Ok(Some(found)) = body(memory)
        {
            return Ok(Some(found));
        }
        // Whether we may look is asked when it is opened.
        let memory = match caller.look(|| caller.open_memory()) {
            Ok(memory) => memory,
            Err(refused) => {
                let kept = self.kept.get(&caller.pid).filter(|kept| kept.began == caller.began());
                return match kept.map(|kept| body(&kept.memory)) {
                    Some(Ok(Some(found))) => Ok(Some(found)),
                    _ => Err(refused),
                };
            }
        };
        let found = body(&memory).map_err(|errno| caller.failed(errno))?;
        if self.sees_executions {
            if self.open.len() >= OPEN {
                self.open.clear();
            }
            self.open.insert(caller.pid, (memory, Instant::now()));
        }
        Ok(found)
    }
}

/// A thread that makes a call, by its id in our pid namespace.
pub(super) struct Caller {
    pid: u32,
    /// `/proc/PID/`.
    own: String,
    /// The same, open; of no use any more when its process is gone.
    entry: Option<Rc<OwnedFd>>,
    /// Whether it has to be looked into as another user.
    other: Cell<bool>,
}

impl Caller {
    pub(super) fn new(pid: u32) -> Self {
        Self { pid, own: format!("/proc/{pid}/"), entry: None, other: Cell::new(false) }
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
        let status = self.status()?;
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
    pub(super) fn memory(
        &self,
        memories: &mut Memories,
        address: u64,
        length: usize,
    ) -> Result<Vec<u8>, Unreadable> {
        let bytes = memories.with(self, |memory| {
            let mut bytes = vec![0; length];
            let count = read_at(memory, &mut bytes, address)?;
            bytes.truncate(count);
            Ok((count > 0).then_some(bytes))
        })?;
        Ok(bytes.unwrap_or_default())
    }

    /// The C string at `address`; empty if there is none: the call will fail.
    pub(super) fn string(
        &self,
        memories: &mut Memories,
        address: u64,
    ) -> Result<Vec<u8>, Unreadable> {
        let text = memories.with(self, |memory| {
            for length in [USUAL, LONGEST] {
                let mut bytes = vec![0; length];
                let count = read_at(memory, &mut bytes, address)?;
                bytes.truncate(count);
                if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
                    bytes.truncate(end);
                    return Ok(Some(bytes));
                }
            }
            Ok(None)
        })?;
        Ok(text.unwrap_or_default())
    }

    fn open_memory(&self) -> rustix::io::Result<OwnedFd> {
        let path = format!("/proc/{}/mem", self.pid);
        rustix::fs::open(Path::new(&path), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    fn link(&self, name: &str) -> Result<Vec<u8>, Unreadable> {
        let path = format!("{}{name}", self.own);
        self.look(|| self.read_link(&path))
    }

    /// Its working directory; ends in ` (deleted)` if that was removed.
    pub(super) fn directory(&self) -> Result<Vec<u8>, Unreadable> {
        self.link("cwd")
    }

    /// The entry of a descriptor in `/proc`.
    pub(super) fn descriptor(&self, descriptor: i32) -> String {
        format!("{}fd/{descriptor}", self.own)
    }

    /// The entry in `/proc` that `who` (`self`, or a number) means to it.
    pub(super) fn entry(&self, who: &[u8]) -> Option<String> {
        match who {
            b"self" | b"thread-self" => Some(format!("/proc/{}", self.pid)),
            number => {
                let number: u32 = std::str::from_utf8(number).ok()?.parse().ok()?;
                Some(format!("/proc/{number}"))
            }
        }
    }

    /// What a link of `/proc` leads to; `None` if there is none.
    pub(super) fn target(&self, link: &str) -> Result<Option<Vec<u8>>, Unreadable> {
        self.look(|| match self.read_link(link) {
            Ok(target) => Ok(Some(target)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        })
    }

    /// What a link of `/proc` leads to, most often one of its own.
    fn read_link(&self, link: &str) -> rustix::io::Result<Vec<u8>> {
        let buffer = Vec::with_capacity(USUAL);
        if let (Some(entry), Some(name)) = (&self.entry, link.strip_prefix(&self.own))
            && let Ok(target) = rustix::fs::readlinkat(entry, name, buffer)
        {
            return Ok(target.into_bytes());
        }
        Ok(rustix::fs::readlinkat(CWD, link, Vec::new())?.into_bytes())
    }

    /// Whether the file behind a link of `/proc` has a name left.
    pub(super) fn has_names(&self, link: &str) -> Result<bool, Unreadable> {
        self.look(|| match rustix::fs::statat(CWD, Path::new(link), AtFlags::empty()) {
            Ok(stat) => Ok(stat.st_nlink > 0),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        })
    }

    /// Its effective user, if it has no capability: it may change attributes of files
    /// that are its own.
    pub(super) fn plain_user(&self) -> Result<Option<u32>, Unreadable> {
        let status = self.status()?;
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let has_none = line.is_some_and(|set| set.trim().bytes().all(|digit| digit == b'0'));
        Ok(if has_none { Some(self.ids()?.0) } else { None })
    }

    /// Whether no_new_privs is set: set-user-ID programs give it nothing.
    pub(super) fn gets_no_privileges(&self) -> Result<bool, Unreadable> {
        let status = self.status()?;
        let line = status.lines().find_map(|line| line.strip_prefix("NoNewPrivs:"));
        Ok(line.is_none_or(|value| value.trim() != "0"))
    }

    /// When it began, in ticks since the machine did; `None` if that can't be read.
    fn began(&self) -> Option<String> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // The name may hold anything; the time is the twentieth field behind it.
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_whitespace().nth(19).map(str::to_owned)
    }

    fn status(&self) -> Result<String, Unreadable> {
        std::fs::read_to_string(format!("/proc/{}/status", self.pid))
            .map_err(|error| Unreadable::Call(format!("a process is gone: {error}")))
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Barrier;

    use super::*;

    fn memories() -> Memories {
        Memories { sees_executions: true, ..Memories::default() }
    }

    /// Reads as zeros, whatever the address.
    fn zeros(of: &Caller) -> Kept {
        Kept { memory: File::open("/dev/zero").expect("a device").into(), began: of.began() }
    }

    #[test]
    fn a_kept_memory_is_not_asked_about_a_process_that_can_be_looked_into() {
        let text = c"here".to_owned();
        let ours = Caller::new(std::process::id());
        let mut memories = memories();
        memories.kept.insert(ours.pid, zeros(&ours));
        let read = ours.string(&mut memories, text.as_ptr() as u64).expect("ours");
        assert_eq!(read, b"here");
    }

    #[test]
    fn memories_of_processes_that_are_gone_make_room_and_others_do_not() {
        let ours = Caller::new(std::process::id());
        let mut memories = memories();
        // No process has such a number (proc(5): pid_max).
        memories.kept.extend((0..KEPT as u32).map(|gone| (u32::MAX - gone, zeros(&ours))));
        memories.keep(&ours);
        assert_eq!(memories.kept.keys().copied().collect::<Vec<_>>(), [ours.pid]);
        memories.kept.clear();
        let (barrier, ids) = (Barrier::new(KEPT + 1), std::sync::Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..KEPT {
                scope.spawn(|| {
                    let id = rustix::thread::gettid().as_raw_pid().cast_unsigned();
                    ids.lock().expect("no panic").push(id);
                    barrier.wait();
                    barrier.wait();
                });
            }
            barrier.wait();
            memories
                .kept
                .extend(ids.lock().expect("no panic").iter().map(|id| (*id, zeros(&ours))));
            memories.keep(&ours);
            barrier.wait();
        });
        assert_eq!(memories.kept.len(), KEPT);
        assert!(!memories.kept.contains_key(&ours.pid));
    }
}
