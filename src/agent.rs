//! ssh agents for `RUN --mount=type=ssh`.
//!
//! A step never gets the user's socket itself but one of ours ([`Socket`]) with the mode
//! and owner that the mount asks for. What passes through it is looked at: a step may
//! list keys and have something signed, and not add, remove or lock keys. Private keys
//! given as files are held by an `ssh-agent` of our own ([`Agent`]), which ends with the
//! build, however that ends.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// Longest message of the agent protocol, in bytes: OpenSSH's own limit.
const MESSAGE_MAX: u32 = 256 << 10;

/// `SSH_AGENTC_REQUEST_IDENTITIES`, `SSH_AGENTC_SIGN_REQUEST` and
/// `SSH_AGENTC_EXTENSION` of draft-miller-ssh-agent.
const ALLOWED: [u8; 3] = [11, 13, 27];

/// `SSH_AGENT_FAILURE` as a whole message.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no program for it.
    #[error(
        "{program} is needed for keys given to --ssh and not in PATH: install an OpenSSH client, or give an agent's socket"
    )]
    NoProgram {
        /// `ssh-agent` or `ssh-add`.
        program: &'static str,
    },
    /// A key can't be used.
    #[error("cannot use the key {path}: {reason}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A socket or process failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// An `ssh-agent` that holds keys out of files; ends when dropped.
#[derive(Debug)]
pub struct Agent {
    /// Lives as long as its standard input is open: it ends when we do.
    keeper: Child,
    agent: Option<rustix::process::Pid>,
    socket: PathBuf,
}

impl Agent {
    /// Starts one in `directory`, an empty directory of ours, with the keys of `files`.
    /// Keys that need a passphrase are refused.
    ///
    /// # Errors
    /// [`Error::NoProgram`], [`Error::Key`].
    pub fn start(directory: &Path, files: &[PathBuf]) -> Result<Self, Error> {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
            .map_err(failed("use", directory))?;
        // ssh-agent ends with the program that it runs, and that with our pipe. Paths
        // of sockets are short, so it is named from within its directory.
        let mut keeper = Command::new("ssh-agent")
            .args(["-a", "agent", "sh", "-c", "echo \"$SSH_AGENT_PID\"; exec cat"])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => Error::NoProgram { program: "ssh-agent" },
                _ => failed("start ssh-agent in", directory)(source),
            })?;
        let mut line = String::new();
        if let Some(stdout) = keeper.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(failed("hear of", directory))?;
        }
        let agent = line.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
        let socket = directory.join("agent");
        let agent = Self { keeper, agent, socket };
        for file in files {
            agent.add(directory, file)?;
        }
        Ok(agent)
    }

    /// Hands the key to the agent without its file's mode being looked at, as mounted
    /// secrets are often readable by all.
    fn add(&self, directory: &Path, file: &Path) -> Result<(), Error> {
        let wrong = |reason: String| Error::Key { path: file.to_owned(), reason };
        let key = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
        let mut child = Command::new("ssh-add")
            .args(["-q", "-"])
            .current_dir(directory)
            .env("SSH_AUTH_SOCK", "agent")
            // Asking for a passphrase fails instead of waiting for somebody.
            .env("SSH_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS_REQUIRE", "force")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => Error::NoProgram { program: "ssh-add" },
                _ => failed("start ssh-add in", directory)(source),
            })?;
        if let Some(mut stdin) = child.stdin.take() {
            // If it doesn't read, its status tells why.
            let _ = stdin.write_all(&key);
        }
        let output = child.wait_with_output().map_err(failed("start ssh-add in", directory))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().lines().last().unwrap_or("ssh-add refuses it").to_owned();
        Err(wrong(format!("{said} (keys with a passphrase need an agent)")))
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        if let Some(agent) = self.agent {
            let _ = rustix::process::kill_process(agent, rustix::process::Signal::TERM);
        }
        let _ = self.keeper.wait();
    }
}

/// Who may use a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permissions {
    /// Mode of the socket.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A socket for one step, in front of an agent; closed when dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Its directory: sockets are reached through it, as their paths must be short.
    directory: OwnedFd,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Socket {
    /// Listens in `directory`, an empty directory of ours, on behalf of the agent at
    /// `agent`. With `raw` bytes pass as they are.
    ///
    /// # Errors
    /// When the socket can't be made, or nobody listens at `agent`.
    pub fn listen(
        directory: &Path,
        agent: &Path,
        raw: bool,
        permissions: Permissions,
    ) -> Result<Self, Error> {
        let agent = Peer::of(agent)?;
        drop(agent.connect().map_err(failed("reach the ssh agent at", &agent.path))?);
        let path = directory.join("socket");
        let handle: OwnedFd =
            std::fs::File::open(directory).map_err(failed("open", directory))?.into();
        let near = near(&handle, "socket");
        let listener = UnixListener::bind(&near).map_err(failed("listen at", &path))?;
        let Permissions { mode, uid, gid } = permissions;
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).map_err(failed("own", &path))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(u32::from(mode)))
            .map_err(failed("change", &path))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("ssh agent".to_owned());
        let listener = thread.spawn(move || {
            for client in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, agent.connect()) else { continue };
                // Ends with the client's process, at the latest with its step.
                std::thread::spawn(move || {
                    let passed =
                        if raw { copy_all(&client, &server) } else { relay(&client, &server) };
                    if let Err(error) = passed {
                        tracing::debug!(%error, "a connection to the ssh agent ended");
                    }
                });
            }
        });
        let listener = Some(listener.map_err(failed("serve", &path))?);
        Ok(Self { path, directory: handle, stop, listener })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener.
        if UnixStream::connect(near(&self.directory, "socket")).is_ok()
            && let Some(thread) = self.listener.take()
        {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A socket that is connected to by a short path, however long its own is.
struct Peer {
    directory: OwnedFd,
    name: String,
    path: PathBuf,
}

impl Peer {
    fn of(path: &Path) -> Result<Self, Error> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = std::fs::File::open(parent).map_err(failed("open", parent))?.into();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { directory, name, path: path.to_owned() })
    }

    fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(near(&self.directory, &self.name))
    }
}

fn near(directory: &OwnedFd, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()).into()
}

/// Passes requests to the agent and answers back, one after another as the protocol
/// has it. What isn't allowed is answered with a failure.
fn relay(client: &UnixStream, agent: &UnixStream) -> io::Result<()> {
    let (mut client, mut agent) = (client, agent);
    while let Some(request) = message(&mut client)? {
        if request.get(4).is_some_and(|kind| ALLOWED.contains(kind)) {
            agent.write_all(&request)?;
            let answer = message(&mut agent)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            client.write_all(&answer)?;
        } else {
            client.write_all(&FAILURE)?;
        }
    }
    Ok(())
}

/// One message with its length in front; `None` at the end of the stream.
fn message(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let count = u32::from_be_bytes(length);
    if count == 0 || count > MESSAGE_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = length.to_vec();
    message.resize(4 + count as usize, 0);
    from.read_exact(&mut message[4..])?;
    Ok(Some(message))
}

/// Copies in both directions until both have ended.
fn copy_all(one: &UnixStream, two: &UnixStream) -> io::Result<()> {
    std::thread::scope(|scope| {
        let back = scope.spawn(|| {
            let (mut from, mut to) = (two, one);
            let copied = io::copy(&mut from, &mut to);
            let _ = one.shutdown(Shutdown::Write);
            copied
        });
        let (mut from, mut to) = (one, two);
        let copied = io::copy(&mut from, &mut to);
        let _ = two.shutdown(Shutdown::Write);
        back.join().unwrap_or(Ok(0))?;
        copied.map(drop)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that answers each request with its own body.
    fn echo(directory: &Path) -> PathBuf {
        let path = directory.join("echo");
        let listener = UnixListener::bind(&path).expect("a socket");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    while let Ok(Some(request)) = message(&mut &stream) {
                        (&stream).write_all(&request).expect("an answer");
                    }
                });
            }
        });
        path
    }

    fn socket(raw: bool) -> (tempfile::TempDir, Socket) {
        let work = tempfile::tempdir().expect("a directory");
        let agent = echo(work.path());
        let permissions = Permissions {
            mode: 0o600,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        let directory = work.path().join("d");
        std::fs::create_dir(&directory).expect("a directory");
        let socket = Socket::listen(&directory, &agent, raw, permissions).expect("listens");
        (work, socket)
    }

    fn ask(socket: &Socket, kind: u8) -> Vec<u8> {
        let stream = UnixStream::connect(socket.path()).expect("connects");
        (&stream).write_all(&[0, 0, 0, 2, kind, b'x']).expect("sent");
        message(&mut &stream).expect("an answer").expect("a message")
    }

    #[test]
    fn listing_and_signing_pass_and_changing_keys_does_not() {
        let (_work, socket) = socket(false);
        for kind in ALLOWED {
            assert_eq!(ask(&socket, kind), [0, 0, 0, 2, kind, b'x']);
        }
        for kind in [17, 18, 19, 20, 22, 23, 25, 26, 0, 255] {
            assert_eq!(ask(&socket, kind), FAILURE, "{kind}");
        }
    }

    #[test]
    fn raw_bytes_pass_as_they_are() {
        let (_work, socket) = socket(true);
        assert_eq!(ask(&socket, 17), [0, 0, 0, 2, 17, b'x']);
    }

    #[test]
    fn a_message_without_or_with_absurd_length_ends_the_connection() {
        for bytes in [&[0_u8, 0, 0, 0][..], &[0xff; 8][..], &[0, 0, 0, 9, 11][..]] {
            assert!(message(&mut &*bytes).is_err(), "{bytes:?}");
        }
        assert!(matches!(message(&mut &b""[..]), Ok(None)));
    }

    #[test]
    fn a_socket_goes_with_its_value() {
        let (_work, socket) = socket(false);
        let path = socket.path().to_owned();
        drop(socket);
        assert!(!path.exists());
    }
}
