//! The recorder of a step that runs without namespaces: it is told of every system
//! call that can change a tree, before it happens, and notes where.
//!
//! A notice says what *could* change. Whether it did, and how, is found out when the
//! step has ended, by looking there. So nothing here has to be right about the
//! order of things or about a call's success, only complete:
//!
//! - A path is noted as the kernel resolves it at that moment. Another thread may
//!   rename a directory before the call is executed; that rename is noted as well,
//!   with both names, and everything below a renamed directory is looked at.
//! - Where a symbolic link is involved, the path as written is noted besides. Whoever
//!   looks afterwards finds links that changed while they were used.
//! - A process that changed its user can't be looked into in a container without
//!   `CAP_SYS_PTRACE`. Its memory is opened before it does, so paths that it names in
//!   full are read all the same, and attributes that it changes by descriptor are those
//!   of its user's own files ([`Recording::owners`]). What it does otherwise makes the
//!   recording [lost](Recording::lost): the step is walked then.
//!
//! Attributes that are changed by descriptor come from [`Watches`] where every directory is
//! watched. Most such calls are about files that were opened for writing, and asking
//! about each is what recording costs.
//!
//! The filter needs no_new_privs in a container without `CAP_SYS_ADMIN`. A step that
//! executes a set-user-ID program would behave differently under it; such a program
//! is noticed before it starts, the step ends, and
//! [`Recording::needs_privileges`] says why, so that it can be run again without a
//! filter.
//!
//! Answers come from a thread of the builder, which is an ancestor of whatever runs:
//! that satisfies Yama's `ptrace_scope=1`, too. Processes of other users are looked
//! into with their user as the thread's filesystem user (`setfsuid(2)`).

mod calls;
mod filter;
mod listener;
pub(super) mod owners;
mod proc_links;
mod process;
mod watches;

pub(super) use listener::install;
pub use watches::Watches;

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use rustix::event::EventfdFlags;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::path::RootPath;
use calls::Kind;
use calls::Links;
use calls::LinksBy;
use calls::Place;
use calls::places;
use listener::Listener;
use listener::Notice;
use proc_links::as_callers;
use proc_links::fails_for_all;
use proc_links::is_of_proc;
use proc_links::is_of_process;
use proc_links::open_same_for_all;
use proc_links::proc_link;
use process::Caller;
use process::Memories;
use process::Unreadable;
use watches::Missed;

/// Links followed on a path before giving up, as Linux does (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;

/// Directories that are remembered by the string that led there.
const REMEMBERED: usize = 4096;

/// How long the watches' queue is left alone when some of it was taken: what a program
/// writes to one file meanwhile is one event.
const MERGING: Duration = Duration::from_millis(10);

/// Entries in private places that are noted.
const PRIVATE: usize = 4096;

/// What a step could have changed.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Entries that were touched, by path from the root, links resolved.
    pub touched: BTreeSet<RootPath>,
    /// Entries of which somebody changed attributes or bytes, maybe another program of the
    /// container: it counts where the image has them.
    pub watched: BTreeSet<RootPath>,
    /// Entries that were moved: what lies below one that is a directory counts too.
    pub moved: BTreeSet<RootPath>,
    /// Paths as written that lead over symbolic links.
    pub through_links: BTreeSet<RootPath>,
    /// Entries that were made symbolic links at some time.
    pub links: BTreeSet<RootPath>,
    /// The entries that were touched in places that are the container's own: what happened
    /// to them is in no layer, though elsewhere it would be.
    pub private: BTreeSet<RootPath>,
    /// Whether there were more of them than are worth remembering.
    pub more_private: bool,
    /// Such places that a directory was to be made at, as `mkdir --parents` tries for the
    /// way to what it makes.
    pub ways: BTreeSet<RootPath>,
    /// Users who changed attributes of files of theirs that couldn't be named.
    pub owners: BTreeSet<u32>,
    /// Why the above may be incomplete: the whole tree must be compared.
    pub lost: Option<String>,
    /// A program that needs set-user-ID or file capabilities, which don't work under
    /// the recorder: the step was ended before it started.
    pub needs_privileges: Option<String>,
    /// How many calls were noted.
    pub notices: u64,
}

/// Collects what a step touches; shared between who runs it and who reads it.
#[derive(Debug)]
pub struct Recorder {
    recording: Mutex<Recording>,
    /// Paths that nobody wants to hear of: what lies there is in no image.
    outside: Vec<RootPath>,
    /// Paths that are this container's own: what lies there is in no image either, but
    /// would be if the step ran elsewhere.
    private: Vec<RootPath>,
    /// Watches on every directory, if there are: then the filter is the smaller one.
    watches: Option<Arc<Watches>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Readable when the step has to end at once.
    abort: OwnedFd,
    /// Readable when nothing more is to be expected.
    stop: OwnedFd,
    installed: AtomicU64,
}

impl Recorder {
    /// A recorder that ignores whatever lies at or below `outside`, and of what lies at or
    /// below `private`, and not `outside`, only tells that it was touched. `watches`, if
    /// there are any, tell what the [smaller filter](super::spec::Record::Names) doesn't.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(
        outside: Vec<RootPath>,
        private: Vec<RootPath>,
        watches: Option<Arc<Watches>>,
    ) -> io::Result<Self> {
        let event = || {
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(io::Error::from)
        };
        Ok(Self {
            recording: Mutex::default(),
            outside,
            private,
            watches,
            threads: Mutex::default(),
            abort: event()?,
            stop: event()?,
            installed: AtomicU64::new(0),
        })
    }

    /// Whether a filter was installed for the step.
    pub fn is_installed(&self) -> bool {
        self.installed.load(Ordering::SeqCst) > 0
    }

    /// Answers notices from `listener` until nobody is left who could send one.
    pub(super) fn listen(self: &Arc<Self>, listener: OwnedFd) -> io::Result<()> {
        self.installed.fetch_add(1, Ordering::SeqCst);
        let recorder = Arc::clone(self);
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || {
            let mut scribe = Scribe::new(&recorder, Listener::new(listener));
            if let Err(error) = scribe.work() {
                scribe.recording.lost.get_or_insert(format!("the recorder failed: {error}"));
            }
            scribe.take_watched(true);
            scribe.hand_over();
        })?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// Readable when the step is to be ended.
    pub(super) fn abort(&self) -> &OwnedFd {
        &self.abort
    }

    /// What was noted. To be called when every process of the step is gone; what is
    /// left over gets no answer from here on.
    pub fn finish(&self) -> Recording {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                self.lock().lost.get_or_insert("the recorder gave up".to_owned());
            }
        }
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Recording> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Canonical paths of directories by the absolute string that led there, links on the
/// way or not. Cleared by whatever could make one wrong.
#[derive(Default)]
struct Directories {
    straight: HashMap<Vec<u8>, RootPath>,
    over_links: HashMap<Vec<u8>, RootPath>,
}

impl Directories {
    fn get(&self, path: &[u8]) -> Option<&RootPath> {
        self.straight.get(path).or_else(|| self.over_links.get(path))
    }

    fn insert(&mut self, path: &[u8], canonical: &RootPath) {
        if self.straight.len() + self.over_links.len() >= REMEMBERED {
            self.clear();
        }
        let is_straight = RootPath::clamped(path).is_some_and(|lexical| lexical == *canonical);
        let kind = if is_straight { &mut self.straight } else { &mut self.over_links };
        kind.insert(path.to_vec(), canonical.clone());
    }

    /// Something that may be a link is replaced or goes; what becomes of directories
    /// without a link on the way is noticed when they or a link are made.
    fn forget_links(&mut self) {
        self.over_links.clear();
    }

    fn clear(&mut self) {
        self.straight.clear();
        self.over_links.clear();
    }
}

/// The thread that answers.
struct Scribe<'a> {
    recorder: &'a Recorder,
    listener: Listener,
    recording: Recording,
    directories: Directories,
    memories: Memories,
    /// What becomes [`Recording::touched`], in no order: callers wait for this.
    touched: HashSet<RootPath>,
    /// Whether a process may have another root than ours.
    chrooted: bool,
}

impl<'a> Scribe<'a> {
    fn new(recorder: &'a Recorder, listener: Listener) -> Self {
        Self {
            recorder,
            listener,
            recording: Recording::default(),
            directories: Directories::default(),
            memories: Memories::default(),
            touched: HashSet::new(),
            chrooted: false,
        }
    }

    fn hand_over(self) {
        let mut all = self.recorder.lock();
        let own = self.recording;
        if all.touched.is_empty() {
            all.touched = self.touched.into_iter().collect();
        } else {
            all.touched.extend(self.touched);
        }
        all.watched.extend(own.watched);
        all.moved.extend(own.moved);
        all.through_links.extend(own.through_links);
        all.links.extend(own.links);
        all.private.extend(own.private);
        all.more_private |= own.more_private;
        all.ways.extend(own.ways);
        all.owners.extend(own.owners);
        all.notices += own.notices;
        all.lost = all.lost.take().or(own.lost);
        all.needs_privileges = all.needs_privileges.take().or(own.needs_privileges);
    }

    fn work(&mut self) -> io::Result<()> {
        let recorder = self.recorder;
        let mut pause_until: Option<Instant> = None;
        loop {
            let stop = recorder.stop.as_fd();
            let pause = pause_until.map(|until| until.saturating_duration_since(Instant::now()));
            let pause = pause.filter(|pause| !pause.is_zero());
            let watched = recorder.watches.as_ref().filter(|_| pause.is_none());
            let mut ready =
                [self.listener.as_fd(), stop, watched.map_or(stop, |watches| watches.as_fd())]
                    .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
            let pause = pause.and_then(|pause| Timespec::try_from(pause).ok());
            match rustix::event::poll(&mut ready, pause.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let (events, stop) = (ready[0].revents(), !ready[1].revents().is_empty());
            if watched.is_some() && !ready[2].revents().is_empty() {
                self.take_watched(false);
                pause_until = Some(Instant::now() + MERGING);
            }
            if events.contains(PollFlags::IN) {
                if let Some(notice) = self.listener.receive()? {
                    self.answer(&notice)?;
                }
                continue;
            }
            if events.intersects(PollFlags::HUP | PollFlags::ERR) {
                return Ok(());
            }
            if stop {
                // Everybody should be gone; on a kernel before 5.9 nothing says so.
                let mut again = [PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN)];
                let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
                if rustix::event::poll(&mut again, Some(&zero)) == Ok(0) {
                    return Ok(());
                }
            }
        }
    }

    /// Notes some of what the watches tell of; all of it, if nobody waits.
    fn take_watched(&mut self, all: bool) {
        let recorder = self.recorder;
        let Some(watches) = &recorder.watches else { return };
        let mut last = None;
        let mut note = |path: RootPath| {
            if last.as_ref() != Some(&path) {
                self.watched(path.clone());
                last = Some(path);
            }
        };
        let missed = if all {
            watches.take_all(note)
        } else {
            watches.take(&mut note).map(|batch| batch.and_then(|batch| batch.missed))
        };
        match missed {
            Ok(None) => {}
            Ok(Some(Missed::Overflow)) => {
                self.lose("more changed at once than inotify can tell of".to_owned());
            }
            Ok(Some(Missed::Unknown)) => {
                self.lose("inotify told of a directory that isn't known".to_owned());
            }
            Err(error) => self.lose(format!("inotify failed: {error}")),
        }
    }

    /// Notes what a watch told of. Below a place of the container's own anybody may have done
    /// it.
    fn watched(&mut self, path: RootPath) {
        let is_within = |places: &[RootPath]| places.iter().any(|place| path.starts_with(place));
        if self.recorder.private.contains(&path) {
            self.is_outside(&path, Kind::Entry);
        } else if !is_within(&self.recorder.outside) && !is_within(&self.recorder.private) {
            self.recording.watched.insert(path);
        }
    }

    fn answer(&mut self, notice: &Notice) -> io::Result<()> {
        self.recording.notices += 1;
        if self.recording.lost.is_none() || is_execution(notice) {
            match self.note(notice) {
                Ok(None) => {}
                Ok(Some(program)) => {
                    self.recording.needs_privileges.get_or_insert(program);
                    let _ = rustix::io::write(&self.recorder.abort, &1_u64.to_ne_bytes());
                    return self.listener.refuse(notice.id, libc::EPERM);
                }
                // Somebody who is gone changes nothing.
                Err(_) if !self.listener.is_valid(notice.id) => return Ok(()),
                Err(Unreadable::Process(who)) => {
                    self.lose(format!("{who} changed its user and can't be looked into"));
                }
                Err(Unreadable::Call(what)) => self.lose(what),
            }
        }
        self.listener.go_on(notice.id)
    }

    fn lose(&mut self, why: String) {
        tracing::debug!(why, "the recording is incomplete");
        self.recording.lost.get_or_insert(why);
    }

    /// Notes what a call could change. Gives the name of a program that can't be
    /// executed as it is meant to be.
    fn note(&mut self, notice: &Notice) -> Result<Option<String>, Unreadable> {
        if notice.pid == 0 {
            return Err(Unreadable::Call("a process is outside our pid namespace".to_owned()));
        }
        if notice.arch != filter::NATIVE {
            return Err(Unreadable::Call("a program of another architecture ran".to_owned()));
        }
        let caller = self.memories.caller(notice.pid);
        let call = libc::c_long::from(notice.call);
        if is_execution(notice) {
            let needs = self.execution(notice, &caller);
            self.memories.forget(&caller);
            return needs;
        }
        for place in places(call) {
            self.place(notice, &caller, *place)?;
        }
        Ok(None)
    }

    fn place(&mut self, notice: &Notice, caller: &Caller, place: Place) -> Result<(), Unreadable> {
        let call = libc::c_long::from(notice.call);
        let argument = |index: u8| notice.arguments[usize::from(index)];
        match place {
            Place::Descriptor(index) => self.descriptor(caller, argument(index) as i32, call),
            Place::User => {
                self.memories.keep(caller);
                Ok(())
            }
            Place::Everything => Err(Unreadable::Call(format!(
                "the step used a call that changes more than one path (number {call})"
            ))),
            Place::Root => {
                self.chrooted = true;
                self.directories.clear();
                Ok(())
            }
            Place::Socket { address, length } => {
                let length = usize::try_from(argument(length)).unwrap_or(0).min(110);
                let bytes = caller.memory(&mut self.memories, argument(address), length)?;
                let family = bytes.first_chunk::<2>().map(|bytes| u16::from_ne_bytes(*bytes));
                let path = bytes.get(2..).unwrap_or_default();
                let path = path.split(|&byte| byte == 0).next().unwrap_or_default();
                if family != Some(libc::AF_UNIX as u16) || path.is_empty() {
                    return Ok(());
                }
                let path = path.to_vec();
                self.path(caller, libc::AT_FDCWD, path, Links::Kept, Kind::Entry)
            }
            Place::Path { directory, path, links, kind } => {
                let directory =
                    directory.map_or(libc::AT_FDCWD, |index| argument(index) as u32 as i32);
                if argument(path) == 0 {
                    // futimens: utimensat without a path.
                    return self.descriptor(caller, directory, call);
                }
                let links = match links {
                    LinksBy::Always(links) => links,
                    LinksBy::Flag { index, flag, then } => {
                        let set = argument(index) as u32 & flag as u32 != 0;
                        if set { then } else { then.opposite() }
                    }
                    LinksBy::Open(index) => {
                        const NEW: u32 = (libc::O_CREAT | libc::O_EXCL) as u32;
                        let flags = argument(index) as u32;
                        let kept = flags & NEW == NEW || flags & libc::O_NOFOLLOW as u32 != 0;
                        if kept { Links::Kept } else { Links::Followed }
                    }
                    LinksBy::How(index) => match self.how(caller, argument(index))? {
                        Some(links) => links,
                        None => return Ok(()),
                    },
                };
                let path = caller.string(&mut self.memories, argument(path))?;
                if path.is_empty() {
                    return self.descriptor(caller, directory, call);
                }
                if may_make_link(call) {
                    self.directories.clear();
                }
                self.path(caller, directory, path, links, kind)
            }
        }
    }

    /// `struct open_how` of openat2(2): `None` if nothing can change.
    fn how(&mut self, caller: &Caller, address: u64) -> Result<Option<Links>, Unreadable> {
        const RESOLVE_IN_ROOT: u64 = 0x10;
        let bytes = caller.memory(&mut self.memories, address, 24)?;
        let field = |at: usize| {
            let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.first_chunk::<8>());
            bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
        };
        if field(0) as u32 & filter::WRITING == 0 {
            return Ok(None);
        }
        if field(16) & RESOLVE_IN_ROOT != 0 {
            return Err(Unreadable::Call("a program writes inside a root of its own".to_owned()));
        }
        Ok(Some(Links::Followed))
    }

    /// Notes the file behind a descriptor.
    fn descriptor(
        &mut self,
        caller: &Caller,
        descriptor: i32,
        call: libc::c_long,
    ) -> Result<(), Unreadable> {
        if descriptor == libc::AT_FDCWD {
            let path = caller.directory()?;
            self.canonical(path);
            return Ok(());
        }
        match self.linked(caller, &caller.descriptor(descriptor)) {
            // Without a capability one changes mode and owner of one's own files only,
            // but times of what one may write, too.
            Err(Unreadable::Process(who)) if call != libc::SYS_utimensat => {
                let user = caller.plain_user()?.ok_or(Unreadable::Process(who))?;
                self.recording.owners.insert(user);
                Ok(())
            }
            other => other,
        }
    }

    /// Notes the file that a link of `/proc` leads to.
    fn linked(&mut self, caller: &Caller, link: &str) -> Result<(), Unreadable> {
        let Some(path) = caller.target(link)? else { return Ok(()) };
        if let Some(name) = path.strip_suffix(b" (deleted)")
            && rustix::fs::lstat(path.as_slice()).is_err()
        {
            if caller.has_names(link)? {
                let name = String::from_utf8_lossy(name);
                return Err(Unreadable::Call(format!(
                    "{name} was changed after that name of it was removed"
                )));
            }
            return Ok(());
        }
        self.canonical(path);
        Ok(())
    }

    /// Notes a path that the kernel gave.
    fn canonical(&mut self, path: Vec<u8>) {
        if let Some(path) = Some(path).filter(|path| path.first() == Some(&b'/'))
            && let Some(path) = RootPath::clamped(&path)
        {
            self.enter(path, Kind::Entry);
        }
    }

    /// Notes an entry given by path. A caller that is gone by now changes nothing, and
    /// what was read of another one with its id does no harm.
    fn path(
        &mut self,
        caller: &Caller,
        directory: i32,
        path: Vec<u8>,
        links: Links,
        kind: Kind,
    ) -> Result<(), Unreadable> {
        let full = if path.first() == Some(&b'/') {
            path
        } else {
            let base = match directory {
                libc::AT_FDCWD => Some(caller.directory()?),
                descriptor => caller.target(&caller.descriptor(descriptor))?,
            };
            let Some(base) = base.filter(|base| base.first() == Some(&b'/')) else {
                return Ok(());
            };
            [base.as_slice(), b"/", path.as_slice()].concat()
        };
        if self.chrooted && !caller.has_our_root()? {
            return Err(Unreadable::Call("a program changed its root directory".to_owned()));
        }
        self.locate(caller, full, links, kind)
    }

    /// Follows a path through a process's own entries in `/proc` (`/proc/self/fd/3`,
    /// `/dev/fd/3`, `/proc/self/cwd/file`), which mean something else to us. Gives the
    /// path to go on with; `None`: everything is noted.
    fn through_proc(
        &mut self,
        caller: &Caller,
        full: Vec<u8>,
        links: Links,
    ) -> Result<Option<Vec<u8>>, Unreadable> {
        if is_of_process(caller, &full) {
            return Ok(None);
        }
        let Some((link, rest)) = proc_link(caller, &full) else {
            if is_of_proc(&full) && full.split(|&byte| byte == b'/').any(|part| part == b"..") {
                return Err(Unreadable::Call("a path leads into /proc and up again".to_owned()));
            }
            return Ok(Some(full));
        };
        if !rest.is_empty() {
            let Some(target) = caller.target(&link)? else { return Ok(None) };
            let is_path = target.first() == Some(&b'/');
            return Ok(is_path.then(|| [target.as_slice(), rest].concat()));
        }
        if links == Links::Followed {
            self.linked(caller, &link)?;
        }
        Ok(None)
    }

    /// Notes where the absolute path `full` leads, and what it is called on the way.
    fn locate(
        &mut self,
        caller: &Caller,
        mut full: Vec<u8>,
        links: Links,
        kind: Kind,
    ) -> Result<(), Unreadable> {
        for _ in 0..MAX_LINKS {
            full = match self.through_proc(caller, full, links)? {
                Some(full) => full,
                None => return Ok(()),
            };
            while full.len() > 1 && full.ends_with(b"/") {
                full.pop();
            }
            let cut = full.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
            let (parent, name) = (&full[..cut.max(1)], &full[cut + 1..]);
            if name.is_empty() || name == b"." || name == b".." {
                match open_same_for_all(&full).and_then(|directory| path_of(&directory)) {
                    Ok(path) => self.enter(path, kind),
                    Err(errno) => {
                        fails_for_all(&full, errno)?;
                        self.as_written(&full, kind);
                    }
                }
                return Ok(());
            }
            let (directory, opened) = match self.directory(parent) {
                Ok(found) => found,
                // It fails, or another thread is just making what is missing: then
                // that is noted, with everything below it.
                Err(errno) => {
                    fails_for_all(parent, errno)?;
                    self.as_written(&full, kind);
                    return Ok(());
                }
            };
            let lexical = RootPath::clamped(&full);
            let Some(entry) = RootPath::clamped(name).map(|name| directory.join_path(&name)) else {
                return Ok(());
            };
            if let Some(lexical) = lexical.filter(|lexical| *lexical != entry) {
                self.recording.through_links.insert(lexical);
            }
            if let Some(other) = as_callers(&entry).filter(|other| *other != full) {
                full = other;
                continue;
            }
            // A link that lies outside may lead back, as /dev/stdin does.
            if links == Links::Kept && self.is_outside(&entry, kind) {
                return Ok(());
            }
            let target = match (links, &opened) {
                (Links::Followed, Some(opened)) => rustix::fs::readlinkat(opened, name, Vec::new()),
                (Links::Followed, None) => {
                    let at = [b"/", entry.as_bytes()].concat();
                    rustix::fs::readlinkat(CWD, at.as_slice(), Vec::new())
                }
                (Links::Kept, _) => Err(Errno::INVAL),
            };
            match target {
                Ok(target) => {
                    let target = target.into_bytes();
                    // Whoever looks afterwards must know that this was a link.
                    self.recording.through_links.insert(entry.clone());
                    self.enter(entry, kind);
                    full = if target.first() == Some(&b'/') {
                        target
                    } else {
                        [b"/", directory.as_bytes(), b"/", target.as_slice()].concat()
                    };
                }
                Err(_) => {
                    self.enter(entry, kind);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The directory that an absolute path leads to; open, if it had to be looked up.
    fn directory(&mut self, path: &[u8]) -> rustix::io::Result<(RootPath, Option<OwnedFd>)> {
        if let Some(known) = self.directories.get(path) {
            return Ok((known.clone(), None));
        }
        let opened = open_same_for_all(path)?;
        let canonical = path_of(&opened)?;
        self.directories.insert(path, &canonical);
        Ok((canonical, Some(opened)))
    }

    fn as_written(&mut self, full: &[u8], kind: Kind) {
        if let Some(path) = RootPath::clamped(full) {
            self.recording.through_links.insert(path.clone());
            self.enter(path, kind);
        }
    }

    fn is_outside(&mut self, path: &RootPath, kind: Kind) -> bool {
        if self.recorder.outside.iter().any(|outside| path.starts_with(outside)) {
            return true;
        }
        let Some(place) = self.recorder.private.iter().find(|place| path.starts_with(place)) else {
            return false;
        };
        if kind == Kind::Directory && path == place {
            self.recording.ways.insert(path.clone());
        } else if self.recording.private.len() < PRIVATE {
            self.recording.private.insert(path.clone());
        } else {
            self.recording.more_private = true;
        }
        true
    }

    fn enter(&mut self, path: RootPath, kind: Kind) {
        match kind {
            Kind::Entry | Kind::Directory => {
                if !self.touched.contains(&path) && !self.is_outside(&path, kind) {
                    self.touched.insert(path);
                }
            }
            Kind::Gone => {
                self.directories.forget_links();
                if !self.is_outside(&path, kind) {
                    self.touched.insert(path);
                }
            }
            Kind::Link => {
                if !self.is_outside(&path, kind) {
                    self.recording.links.insert(path.clone());
                    self.touched.insert(path);
                }
            }
            Kind::Moved => {
                if is_plain(&path) {
                    self.directories.forget_links();
                } else {
                    self.directories.clear();
                }
                if !self.is_outside(&path, kind) {
                    self.recording.moved.insert(path.clone());
                    self.touched.insert(path);
                }
            }
        }
    }

    /// Whether a program that is about to be executed would get rights from its file
    /// that no_new_privs takes away.
    fn execution(
        &mut self,
        notice: &Notice,
        caller: &Caller,
    ) -> Result<Option<String>, Unreadable> {
        let (directory, path) = match libc::c_long::from(notice.call) {
            libc::SYS_execve => (libc::AT_FDCWD, notice.arguments[0]),
            _ => (notice.arguments[0] as u32 as i32, notice.arguments[1]),
        };
        let Ok(path) = caller.string(&mut self.memories, path) else {
            // It can't be seen what it executes. What it can't get by that is a
            // right that it gave up before.
            return Ok(None);
        };
        let base = match directory {
            _ if path.first() == Some(&b'/') => Vec::new(),
            libc::AT_FDCWD => caller.directory()?,
            descriptor => caller.target(&caller.descriptor(descriptor))?.unwrap_or_default(),
        };
        let full = if base.is_empty() || path.is_empty() {
            [base.as_slice(), path.as_slice()].concat()
        } else {
            [base.as_slice(), b"/", path.as_slice()].concat()
        };
        let Ok(stat) = rustix::fs::stat(full.as_slice()) else { return Ok(None) };
        let mut value = [0; 64];
        let set_ids = stat.st_mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        let capable = rustix::fs::getxattr(full.as_slice(), "security.capability", &mut value);
        if !set_ids && capable.is_err() {
            return Ok(None);
        }
        let (uid, gid) = caller.ids()?;
        let other_user = stat.st_mode & libc::S_ISUID != 0 && stat.st_uid != uid;
        let other_group = stat.st_mode & libc::S_ISGID != 0
            && stat.st_mode & libc::S_IXGRP != 0
            && stat.st_gid != gid;
        let needs = other_user || (uid != 0 && (other_group || capable.is_ok()));
        let needs = needs && caller.gets_no_privileges()? && self.listener.is_valid(notice.id);
        Ok(needs.then(|| String::from_utf8_lossy(&full).into_owned()))
    }
}

/// Whether an entry is neither a directory nor a link: no path leads over it.
fn is_plain(path: &RootPath) -> bool {
    let at = [b"/", path.as_bytes()].concat();
    match rustix::fs::lstat(at.as_slice()) {
        Ok(stat) => {
            let kind = FileType::from_raw_mode(stat.st_mode);
            !kind.is_dir() && !kind.is_symlink()
        }
        Err(errno) => errno == Errno::NOENT,
    }
}

fn open_directory(path: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The path of an open directory; `ENOENT` if it was removed.
fn path_of(directory: &OwnedFd) -> rustix::io::Result<RootPath> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let path = rustix::fs::readlinkat(CWD, Path::new(&link), Vec::new())?.into_bytes();
    if path.ends_with(b" (deleted)")
        && rustix::fs::statat(CWD, path.as_slice(), AtFlags::SYMLINK_NOFOLLOW).is_err()
    {
        return Err(Errno::NOENT);
    }
    RootPath::clamped(&path).ok_or(Errno::NOENT)
}

fn is_execution(notice: &Notice) -> bool {
    notice.arch == filter::NATIVE
        && matches!(libc::c_long::from(notice.call), libc::SYS_execve | libc::SYS_execveat)
}

/// Whether a call may give a path to a symbolic link: by making one, or one more name of
/// one.
fn may_make_link(call: libc::c_long) -> bool {
    matches!(call, libc::SYS_symlinkat | libc::SYS_linkat) || is_old_link(call)
}

#[cfg(target_arch = "x86_64")]
fn is_old_link(call: libc::c_long) -> bool {
    matches!(call, libc::SYS_symlink | libc::SYS_link)
}

#[cfg(not(target_arch = "x86_64"))]
fn is_old_link(_: libc::c_long) -> bool {
    false
}
