//! A mount of the overlay, from mount(2) to the end of its threads.
//!
//! The device is opened and mounted here, without a helper program; `transport.rs` has
//! what answers. The session ends when the last user of the mount is gone, and
//! [`Session::unmount`] sees to that: a mount that is still in use is cut off.

use std::fs;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::mount::UnmountFlags;

use super::Overlay;
use super::kernel::Operation;
use super::passthrough;
use super::passthrough::Refusal;
use super::rendezvous::Rendezvous;
use super::ring::Crew;
use super::transport;
use super::transport::Quiet;
use super::transport::Server;
use super::transport::Transport;
use super::watchdog;
use super::watchdog::Watchdog;

const DEVICE: &str = "/dev/fuse";
/// More threads than this only take requests from each other's CPUs.
const MAX_THREADS: usize = 8;
/// How far the kernel reads ahead, in KiB: one request of the largest size. Its
/// default of 128 costs eight times as many for a large file.
const READ_AHEAD: &str = "1024";
/// How long the threads of a mount that was let go may take to notice.
const GRACE: Duration = Duration::from_secs(5);

/// Why the overlay couldn't be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no `/dev/fuse`: the kernel lacks FUSE, or the container the device.
    #[error(
        "there is no {DEVICE}: the kernel has no FUSE or the container was not given the device"
    )]
    NoDevice(#[source] io::Error),
    /// `/dev/fuse` is there and can't be opened: file permissions or a device cgroup.
    #[error(
        "{DEVICE} may not be opened: the container's device rules or file permissions forbid it"
    )]
    DeviceRefused(#[source] io::Error),
    /// `/dev/fuse` can't be opened for another reason.
    #[error("cannot open {DEVICE}")]
    Device(#[source] io::Error),
    /// mount(2) is forbidden.
    #[error(
        "mounting is not permitted: it needs CAP_SYS_ADMIN or a user namespace, and no profile that denies mount"
    )]
    NotPermitted(#[source] io::Error),
    /// mount(2) failed for another reason.
    #[error("cannot mount on {}", at.display())]
    Mount {
        /// The directory.
        at: PathBuf,
        /// What mount(2) said.
        #[source]
        source: io::Error,
    },
    /// The overlay is mounted already; a second kernel cache would not see edits.
    #[error("the overlay is mounted already")]
    Mounted,
    /// The kernel and we couldn't agree, or threads couldn't be started.
    #[error("cannot serve the mount on {}", at.display())]
    Serve {
        /// The directory.
        at: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// [`Transport::Ring`] was asked for and can't be had.
    #[error("FUSE over io_uring is impossible here")]
    Ring(#[source] io::Error),
}

/// How to mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountOptions {
    /// Threads that answer requests; `None`: one per CPU, at most eight.
    pub threads: Option<NonZeroUsize>,
    /// How long a request may take before the mount is cut off; `None`: five minutes.
    pub patience: Option<Duration>,
    /// How requests come from the kernel.
    pub transport: Transport,
    /// Let the kernel read and write large files by itself, where the host allows it.
    pub passthrough: bool,
}

/// A live mount. Dropping it unmounts.
pub struct Session {
    client: Client,
    /// What answers; empty if nothing ever did.
    threads: Vec<JoinHandle<io::Result<()>>>,
    transport: Transport,
    /// Why it isn't a better one.
    fallback: Option<String>,
    /// Number of the connection in `/sys/fs/fuse/connections`.
    connection: Option<u32>,
    is_mounted: bool,
    watchdog: Option<Watchdog>,
}

/// What it takes to use the mount, as any program does. No thread of the server may.
#[derive(Clone)]
struct Client {
    overlay: Arc<Overlay>,
    at: PathBuf,
    /// Set when there is somebody to ask.
    quiet: Option<Quiet>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("at", &self.client.at).finish_non_exhaustive()
    }
}

impl Overlay {
    /// Mounts the overlay on the directory `at` and answers the kernel in threads of
    /// this process. They share its namespaces, but the mount is only visible in the
    /// mount namespace of the caller.
    ///
    /// # Errors
    /// [`MountError`]; nothing stays mounted then.
    pub fn mount(
        self: &Arc<Self>,
        at: &Path,
        options: MountOptions,
    ) -> Result<Session, MountError> {
        if self.kernel().is_some() {
            return Err(MountError::Mounted);
        }
        let mut fallbacks = Vec::new();
        let passthrough = options.passthrough && self.may_pass_through(options, &mut fallbacks);
        if options.transport.tries_ring() {
            // It must have everything before the kernel hears of it, and takes threads
            // only if it does.
            let failed = match Crew::gather() {
                Ok(crew) => {
                    let session = self.mount_by(at, options, Transport::Ring, |device| {
                        transport::serve_ring(self, device, crew, passthrough)
                    });
                    match session {
                        Err(MountError::Serve { source, .. }) => source,
                        session => return session.map(|session| session.told(&fallbacks)),
                    }
                }
                Err(error) => error,
            };
            if options.transport == Transport::Ring {
                return Err(MountError::Ring(failed));
            }
            fallbacks.push(format!(
                "FUSE over io_uring is switched on and does not work here ({failed}); requests \
                 are read from {DEVICE} instead"
            ));
        }
        let threads = options.threads.map_or_else(default_threads, NonZeroUsize::get);
        let session = self.mount_by(at, options, options.transport, |device| {
            transport::serve(self, device, threads, options.transport, passthrough)
        })?;
        Ok(session.told(&fallbacks))
    }

    /// Whether files can be passed through; if not, why goes to `fallbacks`.
    fn may_pass_through(&self, options: MountOptions, fallbacks: &mut Vec<String>) -> bool {
        let refused = match options.transport {
            Transport::Fuser => Some(Refusal::Fuser),
            _ => passthrough::probe(self).err(),
        };
        fallbacks.extend(refused.as_ref().map(|why| {
            format!("files are not passed through, every read and write is a request: {why}")
        }));
        refused.is_none()
    }

    /// Mounts, and lets `serve` answer.
    fn mount_by(
        self: &Arc<Self>,
        at: &Path,
        options: MountOptions,
        transport: Transport,
        serve: impl FnOnce(OwnedFd) -> io::Result<Server>,
    ) -> Result<Session, MountError> {
        let device = open_device()?;
        mount(&device, at)?;
        // From here on, dropping it unmounts.
        let client = Client { overlay: Arc::clone(self), at: at.to_owned(), quiet: None };
        let mut session = Session {
            client,
            threads: Vec::new(),
            transport,
            fallback: None,
            connection: None,
            is_mounted: true,
            watchdog: None,
        };
        let failed = |source| MountError::Serve { at: at.to_owned(), source };
        let server = serve(device).map_err(failed)?;
        session.threads = server.threads;
        session.transport = server.transport;
        session.client.quiet = Some(server.quiet);
        *self.kernel() = Some(server.kernel);
        session.connection = apart(|| connection_of(at)).unwrap_or_default();
        session.raise_read_ahead();
        let (at, abort) = (at.to_owned(), session.control("abort"));
        let patience = options.patience.unwrap_or(watchdog::PATIENCE);
        let cut = move || cut(&at, abort.as_deref());
        let watchdog = Watchdog::start(self, server.alarm, patience, cut);
        session.watchdog = Some(watchdog.map_err(failed)?);
        Ok(session)
    }
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, NonZeroUsize::get).min(MAX_THREADS)
}

/// Opens the FUSE device.
///
/// # Errors
/// Which of the things that can forbid it does.
pub fn open_device() -> Result<OwnedFd, MountError> {
    match rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => Ok(device),
        Err(error @ (Errno::NOENT | Errno::NODEV | Errno::NXIO)) => {
            Err(MountError::NoDevice(error.into()))
        }
        Err(error @ (Errno::PERM | Errno::ACCESS)) => Err(MountError::DeviceRefused(error.into())),
        Err(error) => Err(MountError::Device(error.into())),
    }
}

/// Whether this process may mount an overlay: makes a mount that is attached nowhere
/// and served by nobody, and lets it go.
///
/// # Errors
/// What forbids it.
pub fn try_mount() -> Result<(), MountError> {
    detached().map(drop)
}

/// A device, and a mount of it that is attached nowhere.
pub(super) fn detached() -> Result<(OwnedFd, OwnedFd), MountError> {
    use rustix::mount::FsMountFlags;
    use rustix::mount::FsOpenFlags;
    use rustix::mount::MountAttrFlags;

    let device = open_device()?;
    let made = || -> rustix::io::Result<OwnedFd> {
        let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let user = rustix::process::geteuid().as_raw().to_string();
        let group = rustix::process::getegid().as_raw().to_string();
        let descriptor = device.as_raw_fd().to_string();
        let options = [
            ("fd", descriptor.as_str()),
            ("rootmode", "40000"),
            ("user_id", &user),
            ("group_id", &group),
        ];
        for (name, value) in options {
            rustix::mount::fsconfig_set_string(&context, name, value)?;
        }
        rustix::mount::fsconfig_create(&context)?;
        let flags = MountAttrFlags::empty();
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    };
    let mount = made().map_err(|error| refusal(error, Path::new("nothing")))?;
    Ok((device, mount))
}

fn refusal(error: Errno, at: &Path) -> MountError {
    match error {
        Errno::PERM | Errno::ACCESS => MountError::NotPermitted(error.into()),
        error => MountError::Mount { at: at.to_owned(), source: error.into() },
    }
}

fn mount(device: &OwnedFd, at: &Path) -> Result<(), MountError> {
    // Devices and set-id programs of an image work as they do elsewhere, so neither
    // nodev nor nosuid. The kernel checks permissions, for every user.
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let options = std::ffi::CString::new(options).expect("numbers and words hold no NUL");
    let mounted = rustix::mount::mount(
        "yadokari",
        at,
        "fuse.yadokari",
        MountFlags::empty(),
        options.as_c_str(),
    );
    mounted.map_err(|error| refusal(error, at))
}

/// Runs what asks our own mount in a thread that holds none of our open files.
///
/// A request that the server has taken can't be interrupted: if we are killed, its
/// thread waits for an answer until the connection ends. The connection ends when
/// `/dev/fuse` is closed, and a thread that shares our table of open files would keep
/// it open: it would wait for itself, for ever (`tests/kill.rs`).
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("apart".to_owned());
        let thread = thread.spawn_scoped(scope, || {
            // SAFETY: CLOSE_RANGE_UNSHARE gives this thread a table of its own before it
            // closes anything, so no descriptor that somebody else owns goes away, and
            // this thread uses none but those it opens from here on.
            let done = unsafe {
                libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_UNSHARE)
            };
            if done != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

/// `CLOSE_RANGE_UNSHARE` of close_range(2), Linux 5.9.
const CLOSE_RANGE_UNSHARE: libc::c_uint = 1 << 1;

/// The minor number of the mount's device. Asked of the mount itself: this thread
/// serves nothing.
fn connection_of(at: &Path) -> Option<u32> {
    rustix::fs::stat(at).ok().map(|stat| rustix::fs::minor(stat.st_dev))
}

impl Session {
    /// The directory it is mounted on.
    pub fn path(&self) -> &Path {
        &self.client.at
    }

    /// How requests come from the kernel: never [`Transport::Auto`].
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Adds why it isn't what it could be.
    fn told(mut self, fallbacks: &[String]) -> Self {
        self.fallback = (!fallbacks.is_empty()).then(|| fallbacks.join("; "));
        self
    }

    /// Why they don't come by a better way that the host offers, or that was asked for.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Waits until everything that programs wrote has arrived in the overlay: pages
    /// of writable mappings stay with the kernel until then. Call it before
    /// [`Overlay::log`].
    ///
    /// # Errors
    /// Those of syncfs(2); `TimedOut` if the server doesn't answer: the log can't be
    /// trusted then.
    pub fn sync(&self) -> io::Result<()> {
        self.client.sync()
    }

    fn control(&self, name: &str) -> Option<PathBuf> {
        Some(PathBuf::from(format!("/sys/fs/fuse/connections/{}/{name}", self.connection?)))
    }

    fn raise_read_ahead(&self) {
        let Some(connection) = self.connection else { return };
        let path = format!("/sys/class/bdi/0:{connection}/read_ahead_kb");
        if let Err(error) = fs::write(&path, READ_AHEAD) {
            tracing::debug!(%error, path, "large files are read in small requests");
        }
    }

    /// Ends the mount and its threads, whoever still uses it, here or in another mount
    /// namespace that has a copy: they get errors from then on, what they have written
    /// is kept.
    ///
    /// # Errors
    /// Those of umount2(2) and of the threads; `TimedOut` if they don't end: that
    /// takes a copy elsewhere and no right to cut the connection.
    pub fn unmount(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.is_mounted = false;
        self.watchdog = None;
        let at = &self.client.at;
        if self.client.quiet.is_none() {
            // Never served: a request would wait forever, so nothing is asked.
            return Ok(apart(|| rustix::mount::unmount(at, UnmountFlags::DETACH))??);
        }
        self.sync_or_give_up();
        // MNT_FORCE cuts the connection, so the threads end even if something holds
        // the mount. In a user namespace it is forbidden.
        let force = || match rustix::mount::unmount(at, UnmountFlags::FORCE | UnmountFlags::DETACH)
        {
            // The watchdog was here before.
            Err(Errno::INVAL) => Ok(()),
            result => result,
        };
        let detach = || rustix::mount::unmount(at, UnmountFlags::DETACH);
        let unmounted = apart(|| match force() {
            Err(Errno::PERM) => detach(),
            result => result,
        });
        // Without a thread to be had (pids.max): a mount that was cut off asks nothing of
        // anybody, so this one may do it.
        let unmounted = unmounted.or_else(|error| match force() {
            Err(Errno::PERM) if self.abort() => Ok(detach()),
            Err(Errno::PERM) => Err(error),
            result => Ok(result),
        });
        let joined = self.join();
        *self.client.overlay.kernel() = None;
        self.client.overlay.end_passing();
        self.client.overlay.table().forget_all();
        unmounted??;
        joined
    }

    /// Waits until the threads have ended, and makes them if need be.
    fn join(&mut self) -> io::Result<()> {
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        let threads = std::mem::take(&mut self.threads);
        let thread = std::thread::Builder::new().name("join".to_owned());
        if let Err(error) = thread.spawn(move || done.send(join(threads))) {
            // Nobody waits for them.
            self.abort();
            return Err(error);
        }
        let joined = wait.recv_timeout(GRACE).or_else(|_| {
            self.abort();
            wait.recv_timeout(GRACE)
        });
        // If they don't end, the threads stay, answering whoever holds the copy.
        joined.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Syncs in a thread that may hang: a server that is stuck must not keep anybody
    /// from cutting it off, which ends the hanging too.
    fn sync_or_give_up(&self) {
        let (client, (done, wait)) = (self.client.clone(), std::sync::mpsc::sync_channel(1));
        let thread = std::thread::Builder::new().name("sync".to_owned());
        if let Err(error) = thread.spawn(move || done.send(client.sync())) {
            tracing::warn!(%error, "unmounting without the last writes");
            return;
        }
        match wait.recv_timeout(GRACE) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "unmounting without the last writes"),
            Err(_) => {
                tracing::warn!("the overlay does not answer; unmounting without the last writes")
            }
        }
    }

    /// Cuts the connection by fusectl; whether that worked.
    fn abort(&self) -> bool {
        let Some(path) = self.control("abort") else { return false };
        let aborted = abort(&path);
        if let Err(error) = &aborted {
            tracing::warn!(%error, path = %path.display(), "cannot abort the FUSE connection");
        }
        aborted.is_ok()
    }
}

/// Waits until all threads have ended; what the first that failed said.
fn join(threads: Vec<JoinHandle<io::Result<()>>>) -> io::Result<()> {
    let panicked = |_| Err(io::Error::other("a thread that answers the kernel panicked"));
    let ended: Vec<_> =
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect();
    ended.into_iter().collect()
}

/// Cuts the connection that has `path` in fusectl.
fn abort(path: &Path) -> io::Result<()> {
    use io::Write as _;
    File::options().write(true).open(path)?.write_all(b"1")
}

/// Cuts the connection of the mount on `at`, by fusectl where it is mounted, else by
/// force. The mount may stay, and answers with errors. Asks the mount nothing.
fn cut(at: &Path, control: Option<&Path>) {
    let aborted = control.is_some_and(|control| abort(control).is_ok());
    if aborted {
        return;
    }
    // A mount in use stays, and is cut all the same.
    match apart(|| rustix::mount::unmount(at, UnmountFlags::FORCE)) {
        Ok(Ok(()) | Err(Errno::BUSY)) => {}
        Ok(Err(error)) => {
            tracing::error!(%error, at = %at.display(), "cannot cut the mount off");
        }
        Err(error) => tracing::error!(%error, at = %at.display(), "cannot cut the mount off"),
    }
}

impl Client {
    /// See [`Session::sync`].
    fn sync(&self) -> io::Result<()> {
        match &self.quiet {
            None => Err(io::ErrorKind::NotConnected.into()),
            Some(Quiet::Meeting(rendezvous)) => apart(|| {
                let root = self.sync_root()?;
                self.repeat(|| meet(rendezvous, &root))
            })?,
            // Bells are files that are open here, and to ring them asks the mount nothing.
            Some(Quiet::Idle(bells)) => {
                apart(|| self.sync_root().map(drop))??;
                self.repeat(|| bells.ring())
            }
        }
    }

    /// Starts the writing of dirty pages.
    fn sync_root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.at, flags, Mode::empty())?;
        rustix::fs::syncfs(&root)?;
        Ok(root)
    }

    /// Waits by `quiet` until whatever the kernel has sent is answered. It holds back
    /// what is more than it likes to have under way, so once isn't enough: the last time
    /// must find that nothing came.
    fn repeat(&self, quiet: impl Fn() -> bool) -> io::Result<()> {
        loop {
            let asked = || {
                let requests = self.overlay.requests();
                requests.of(Operation::Write) + requests.of(Operation::Release)
            };
            let before = asked();
            if !quiet() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if asked() == before {
                return Ok(());
            }
        }
    }
}

/// Makes all threads of the server meet; see `rendezvous.rs`. Whether they did.
fn meet(rendezvous: &Rendezvous, root: &OwnedFd) -> bool {
    rendezvous.open(true);
    let name = rendezvous.name();
    let met = std::thread::scope(|scope| {
        let ask = || rustix::fs::fgetxattr(root, name, &mut [0; 1]);
        let start = |_| std::thread::Builder::new().name("ask".to_owned()).spawn_scoped(scope, ask);
        let askers: io::Result<Vec<_>> = (0..rendezvous.threads()).map(start).collect();
        let Ok(askers) = askers else {
            // Those that there are would wait for the others.
            rendezvous.open(false);
            return false;
        };
        askers.into_iter().all(|asker| matches!(asker.join(), Ok(Err(Errno::NODATA))))
    });
    rendezvous.open(false);
    met
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_mounted
            && let Err(error) = self.end()
        {
            tracing::warn!(%error, at = %self.client.at.display(), "cannot unmount the overlay");
        }
    }
}
