//! The outer process: our own executable, started again by the builder. Reads
//! the specification, makes the namespaces, forks the process that is pid 1 in
//! them and waits for it.

use std::ffi::OsStr;
use std::io;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

use super::error::Operation;
use super::in_place;
use super::init;
use super::open_files;
use super::spec;
use super::spec::Failure;
use super::spec::Process;
use super::spec::Report;

/// The name (`argv[0]`) by which the executable knows that it is the child.
pub const CHILD_NAME: &str = "yadokari-sandbox";

/// Exit code of the sandbox's own processes when they gave up; the builder goes
/// by the report, not by this.
pub(super) const GAVE_UP: i32 = 125;

/// Turns this process into the sandbox's child, if the builder started it as
/// that; then never returns. To be called as the very first thing in `main`:
/// there must be no second thread and no open file yet.
pub fn child_main_if_asked() {
    if std::env::args_os().next().as_deref() == Some(OsStr::new(CHILD_NAME)) {
        #[expect(clippy::disallowed_methods, reason = "this process is the sandbox's child")]
        std::process::exit(outer());
    }
}

/// The socket to the builder, seen from the sandbox.
pub(super) struct Control(UnixStream);

impl Control {
    /// Sends `report`; a builder that is gone can't be told anything.
    pub(super) fn send(&self, report: &Report) {
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            let _ = (&self.0).write_all(&line);
        }
    }

    /// Sends the recorder's listener along with its line.
    pub(super) fn send_listener(
        &self,
        listener: &OwnedFd,
        no_new_privileges: bool,
    ) -> io::Result<()> {
        use rustix::net::SendAncillaryBuffer;
        use rustix::net::SendAncillaryMessage;
        use rustix::net::SendFlags;

        let mut line = serde_json::to_vec(&Report::Listener { no_new_privileges })?;
        line.push(b'\n');
        let descriptors = [listener.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let parts = [io::IoSlice::new(&line)];
        rustix::net::sendmsg(&self.0, &parts, &mut ancillary, SendFlags::empty())?;
        Ok(())
    }

    /// Reports a failure and ends the process.
    pub(super) fn give_up(&self, failure: Failure) -> ! {
        self.send(&Report::Failed(failure));
        leave(GAVE_UP)
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.0
    }
}

/// Ends this process at once: no destructors, no flushing, right after a fork too.
pub(super) fn leave(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// fork(2). The sandbox's processes have one thread each, so the new process
/// may do whatever the old one may.
pub(super) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: there is one thread (see `child_main_if_asked`), so no lock can be
    // held by a thread that doesn't exist in the new process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        raw => Ok(Pid::from_raw(raw)),
    }
}

/// Has the kernel kill this process when its parent dies.
pub(super) fn die_with_parent() -> rustix::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
}

fn outer() -> i32 {
    // Whatever a library of the builder left open across exec: gone, before
    // anything of ours is opened.
    // SAFETY: no value owns a descriptor above 2 yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if die_with_parent().is_err() {
        return GAVE_UP;
    }
    let Some((control, spec)) = receive() else { return GAVE_UP };
    let parent = rustix::process::getppid().map_or(0, Pid::as_raw_pid);
    if parent != spec.builder {
        return GAVE_UP; // died before it could be watched
    }
    open_files::put_back(spec.open_files);
    // A terminal's Ctrl-C is the builder's to handle.
    let _ = rustix::process::setsid();
    let process = spec.process;
    if process.in_place.is_some() {
        in_place::run(&process, &control);
    }
    if let Err(failure) = namespaces(&process) {
        control.give_up(failure);
    }
    let fork_failed = |errno| Failure::new(Operation::Fork, "the sandbox", errno);
    let itself = match rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()) {
        Ok(itself) => itself,
        Err(errno) => control.give_up(fork_failed(errno.raw_os_error())),
    };
    match fork() {
        Ok(None) => init::run(&process, &control, &itself),
        Ok(Some(init)) => {
            drop(control);
            wait(init)
        }
        Err(error) => control.give_up(fork_failed(error.raw_os_error().unwrap_or(0))),
    }
}

/// Reads the specification from standard input, which is the control socket, and
/// keeps the socket where no program executed later can find it.
fn receive() -> Option<(Control, spec::Spec<Process>)> {
    let socket: OwnedFd = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3).ok()?;
    let mut stream = UnixStream::from(socket);
    let spec = spec::decode(&mut stream).ok()?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    // Without a /dev/null, 0 stays the socket until the command's own stdin
    // replaces it; the socket must not be read from there.
    if let Ok(null) = null {
        rustix::stdio::dup2_stdin(&null).ok()?;
    }
    Some((Control(stream), spec))
}

fn namespaces(process: &Process) -> Result<(), Failure> {
    let mut flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if !process.network {
        flags |= UnshareFlags::NEWNET;
    }
    // SAFETY: one thread; CLONE_FILES is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .map_err(Failure::of(Operation::Unshare, "the step"))?;
    rustix::system::sethostname(process.hostname.as_bytes())
        .map_err(Failure::of(Operation::Hostname, &process.hostname))?;
    if process.network {
        return Ok(());
    }
    loopback()
        .map_err(|error| Failure::new(Operation::Loopback, "lo", error.raw_os_error().unwrap_or(0)))
}

/// Sets IFF_UP on `lo` (netdevice(7)); its addresses come with it.
fn loopback() -> io::Result<()> {
    use rustix::net::AddressFamily;
    use rustix::net::SocketType;
    use std::os::fd::AsRawFd;

    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: `ifreq` is plain numbers; zero is a value of each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed() as libc::c_char;
    request.ifr_name[1] = b'o'.cast_signed() as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which `request` is.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until pid 1 is gone, and with it every process of its namespace: the
/// kernel lets pid 1 be reaped last.
fn wait(init: Pid) -> i32 {
    loop {
        match rustix::process::waitpid(Some(init), rustix::process::WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                return status
                    .exit_status()
                    .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
                    .unwrap_or(GAVE_UP);
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return GAVE_UP,
        }
    }
}
