//! The builder's side: starts the sandbox, passes on output, hears how it ended.

use std::collections::BTreeSet;
use std::io;
use std::io::PipeReader;
use std::io::Read;
use std::io::Write;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use rustix::event::EventfdFlags;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::io::Errno;

use super::Runner;
use super::Stream;
use super::child::CHILD_NAME;
use super::error::Error;
use super::error::Operation;
use super::init::TERMINATE;
use super::recorder::owners::Foreign;
use super::recorder::owners::Owners;
use super::spec;
use super::spec::Exit;
use super::spec::Failure;
use super::spec::Fallback;
use super::spec::Process;
use super::spec::Report;

/// How long a command may take to end after SIGTERM before it is killed: what
/// `docker stop` gives.
const GRACE: Duration = Duration::from_secs(10);

/// Output is passed on in pieces of at most this many bytes, a pipe's capacity.
const PIECE: usize = 64 << 10;

/// Ends running processes early, from any thread. Stays cancelled.
#[derive(Debug)]
pub struct Cancel {
    /// Readable from the moment of cancellation on; never read.
    event: OwnedFd,
    cancelled: AtomicBool,
}

impl Cancel {
    /// A handle that isn't cancelled.
    ///
    /// # Errors
    /// Those of eventfd(2): no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = rustix::event::eventfd(0, flags)?;
        Ok(Self { event, cancelled: AtomicBool::new(false) })
    }

    /// Asks every process that carries this handle to end: SIGTERM, and SIGKILL
    /// after the grace time. Does not wait for it.
    pub fn cancel(&self) {
        if !self.cancelled.swap(true, Ordering::SeqCst) {
            // Can't fail: the counter is far from its limit.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

/// Runs processes in namespaces of their own. Needs `CAP_SYS_ADMIN` and Linux 5.12.
#[derive(Debug)]
pub struct Namespaces {
    executable: PathBuf,
    grace: Duration,
    fallbacks: Mutex<BTreeSet<Fallback>>,
}

impl Namespaces {
    /// Starts sandboxes by executing `executable`, whose `main` must begin with
    /// [`super::child_main_if_asked`].
    pub fn new(executable: impl Into<PathBuf>) -> Self {
        Self { executable: executable.into(), grace: GRACE, fallbacks: Mutex::default() }
    }

    /// Starts sandboxes by executing this very program, even if its file has been
    /// replaced since. Needs `/proc`.
    pub fn of_this_program() -> Self {
        Self::new("/proc/self/exe")
    }

    /// The same with another time between SIGTERM and SIGKILL; 10 s otherwise.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// What the sandboxes run so far had to do without, each thing once.
    pub fn fallbacks(&self) -> Vec<Fallback> {
        let seen = self.fallbacks.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().cloned().collect()
    }

    fn start(&self, process: &Process) -> Result<Running, Error> {
        let message = spec::encode(process).map_err(Error::Specification)?;
        let (control, theirs) = UnixStream::pair().map_err(Error::Connection)?;
        let (stdout, stdout_end) = io::pipe().map_err(Error::Connection)?;
        let (stderr, stderr_end) = io::pipe().map_err(Error::Connection)?;
        // Descriptors 0 to 2 are the only ones passed on, so nothing has to be
        // made inheritable, which a thread starting another program would leak.
        let child = Command::new(&self.executable)
            .arg0(CHILD_NAME)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(stdout_end))
            .stderr(Stdio::from(stderr_end))
            .spawn()
            .map_err(|source| Error::Executable { executable: self.executable.clone(), source })?;
        let mut running = Running {
            child,
            control,
            control_open: true,
            stdout: Some(stdout),
            stderr: Some(stderr),
        };
        // A child that died at once is heard of later, by its status.
        let _ = running.control.write_all(&message);
        Ok(running)
    }

    fn note(&self, fallback: Fallback) {
        tracing::debug!(%fallback, "the sandbox is weaker than it should be");
        self.fallbacks.lock().unwrap_or_else(PoisonError::into_inner).insert(fallback);
    }
}

impl Runner for Namespaces {
    fn run(&self, process: &Process, output: &mut dyn FnMut(Stream, &[u8])) -> Result<Exit, Error> {
        let mut running = self.start(process)?;
        let mut heard = Heard::default();
        let mut ending = Ending::No;
        let mut owners = None;
        let mut buffer = vec![0; PIECE];
        while running.is_open() {
            let ready = running.poll(process, ending)?;
            if ready.cancelled && matches!(ending, Ending::No) {
                let _ = running.control.write_all(&[TERMINATE]);
                ending = Ending::Asked { until: Instant::now() + self.grace };
            }
            if let Ending::Asked { until } = ending
                && Instant::now() >= until
            {
                running.kill();
                ending = Ending::Killed;
            }
            if ready.stdout {
                pass_on(&mut running.stdout, &mut buffer, |piece| output(Stream::Stdout, piece))?;
            }
            if ready.stderr {
                pass_on(&mut running.stderr, &mut buffer, |piece| output(Stream::Stderr, piece))?;
            }
            if ready.aborted && !matches!(ending, Ending::Killed) {
                running.kill();
                ending = Ending::Killed;
            }
            if ready.control {
                match receive(&running.control, &mut buffer) {
                    Ok((0, _)) | Err(_) => running.control_open = false,
                    Ok((count, listener)) => {
                        match (&process.recorder, listener) {
                            (Some(recorder), Some(listener)) => {
                                recorder.listen(listener).map_err(Error::Connection)?;
                            }
                            (None, Some(listener)) => {
                                owners = Some(Owners::listen(listener).map_err(Error::Connection)?);
                            }
                            (_, None) => {}
                        }
                        heard.take(&buffer[..count], |fallback| self.note(fallback));
                    }
                }
            }
        }
        let status = running.child.wait().map_err(Error::Connection)?;
        let foreign = owners.map_or(Ok(None), Owners::finish).map_err(Error::Connection)?;
        if let Some(Foreign { path, uid, gid }) = foreign {
            return Err(Error::Owner { path, uid, gid });
        }
        match heard {
            Heard { failure: Some(failure), .. } => Err(failed(failure)),
            Heard { exit: Some(exit), .. } => Ok(exit),
            _ if matches!(ending, Ending::Killed) => Ok(Exit::Signal(libc::SIGKILL)),
            _ => Err(Error::Died {
                status: match (status.signal(), status.code()) {
                    (Some(signal), _) => format!("signal {signal}"),
                    (None, Some(code)) if code > 128 => format!("signal {}", code - 128),
                    (None, code) => format!("code {}", code.unwrap_or_default()),
                },
            }),
        }
    }
}

/// How far an early end has come.
#[derive(Clone, Copy)]
enum Ending {
    No,
    /// SIGTERM was sent.
    Asked {
        until: Instant,
    },
    /// Pid 1 was told to end.
    Killed,
}

/// What the reports said.
#[derive(Default)]
struct Heard {
    /// The start of a line that isn't complete.
    pending: Vec<u8>,
    failure: Option<Failure>,
    exit: Option<Exit>,
}

impl Heard {
    fn take(&mut self, bytes: &[u8], mut note: impl FnMut(Fallback)) {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(Report::Failed(failure)) => self.failure = self.failure.take().or(Some(failure)),
                Ok(Report::Fallback(fallback)) => note(fallback),
                Ok(Report::Listener { no_new_privileges }) => {
                    tracing::debug!(no_new_privileges, "the step is recorded");
                }
                Ok(Report::Ended(exit)) => self.exit = Some(exit),
                // Our own process wrote it; without its report the run is `Died`.
                Err(error) => tracing::debug!(%error, "a report of the sandbox can't be read"),
            }
        }
    }
}

/// Reads a piece of the reports, and the descriptor that may come with it.
fn receive(control: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    use rustix::net::RecvAncillaryBuffer;
    use rustix::net::RecvAncillaryMessage;
    use rustix::net::RecvFlags;

    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let received =
        rustix::net::recvmsg(control, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptor = descriptors.last();
        }
    }
    Ok((received.bytes, descriptor))
}

fn failed(failure: Failure) -> Error {
    let Failure { operation, subject, errno } = failure;
    let source = io::Error::from_raw_os_error(errno);
    match operation {
        Operation::Find => Error::NotInPath { program: subject },
        Operation::Execute => Error::Execute { program: subject, source },
        _ => Error::setup(operation, &subject, source),
    }
}

/// Reads one piece; at the end of the stream, closes it.
fn pass_on(
    stream: &mut Option<PipeReader>,
    buffer: &mut [u8],
    mut output: impl FnMut(&[u8]),
) -> Result<(), Error> {
    let Some(pipe) = stream else { return Ok(()) };
    match pipe.read(buffer) {
        Ok(0) => *stream = None,
        Ok(count) => output(&buffer[..count]),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => return Err(Error::Connection(error)),
    }
    Ok(())
}

/// A sandbox that was started. Dropped early, it ends its processes and waits
/// for them.
struct Running {
    child: Child,
    control: UnixStream,
    control_open: bool,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
}

/// What [`Running::poll`] found.
#[derive(Default)]
struct Ready {
    stdout: bool,
    stderr: bool,
    control: bool,
    cancelled: bool,
    aborted: bool,
}

impl Running {
    /// Whether anything can still be heard of the sandbox.
    fn is_open(&self) -> bool {
        self.control_open || self.stdout.is_some() || self.stderr.is_some()
    }

    /// Waits for something to happen; at most until the grace time is over.
    fn poll(&self, process: &Process, ending: Ending) -> Result<Ready, Error> {
        let mut which: Vec<fn(&mut Ready)> = Vec::with_capacity(4);
        let mut polled = Vec::with_capacity(4);
        if let Some(stdout) = &self.stdout {
            polled.push(PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN));
            which.push(|ready| ready.stdout = true);
        }
        if let Some(stderr) = &self.stderr {
            polled.push(PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::IN));
            which.push(|ready| ready.stderr = true);
        }
        if self.control_open {
            polled.push(PollFd::from_borrowed_fd(self.control.as_fd(), PollFlags::IN));
            which.push(|ready| ready.control = true);
        }
        if let (Some(cancel), Ending::No) = (&process.cancel, ending) {
            polled.push(PollFd::from_borrowed_fd(cancel.event.as_fd(), PollFlags::IN));
            which.push(|ready| ready.cancelled = true);
        }
        if let (Some(recorder), Ending::No) = (&process.recorder, ending) {
            polled.push(PollFd::from_borrowed_fd(recorder.abort().as_fd(), PollFlags::IN));
            which.push(|ready| ready.aborted = true);
        }
        let timeout = match ending {
            Ending::Asked { until } => {
                let left = until.saturating_duration_since(Instant::now());
                let left = left + Duration::from_millis(1); // never wakes too early
                Some(Timespec::try_from(left).map_err(|_| Error::Connection(Errno::INVAL.into()))?)
            }
            Ending::No | Ending::Killed => None,
        };
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Connection(errno.into())),
        }
        let mut ready = Ready::default();
        for (polled, mark) in polled.iter().zip(which) {
            if !polled.revents().is_empty() {
                mark(&mut ready);
            }
        }
        Ok(ready)
    }

    /// Tells pid 1 to end, and with it the kernel every process of the step.
    fn kill(&self) {
        let _ = self.control.shutdown(Shutdown::Write);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_open() {
            self.kill();
            let _ = self.child.wait();
        }
    }
}
