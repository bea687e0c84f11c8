//! What is to be run and how it ended; both cross the socket between builder
//! and sandbox.

use std::fmt;
use std::io;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use super::error::Operation;
use super::namespaces::Cancel;
use super::open_files;
use super::recorder::Recorder;
use super::user::User;
use crate::path::RootPath;

/// A specification is refused above this many bytes: far more than the kernel
/// takes as arguments, environment and BuildKit as secrets.
const MAX_SPEC: u32 = 64 << 20;

/// A process to be run in a root.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Directory of the host that becomes `/`.
    #[serde(with = "host_path")]
    pub root: PathBuf,
    /// Program and arguments; a program without `/` is looked up in the PATH of
    /// `environment`.
    pub arguments: Vec<String>,
    /// The whole environment. HOME is added from `user` if it isn't there.
    pub environment: Vec<(String, String)>,
    /// Working directory, absolute in the root; must exist.
    pub directory: String,
    /// Who runs it.
    pub user: User,
    /// What is mounted into the root, in this order.
    pub mounts: Vec<MountPoint>,
    /// Whether it sees the builder's network; if not, there is `lo` alone.
    pub network: bool,
    /// Host name.
    pub hostname: String,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// Without namespaces: the builder's own root is the root, and `root`, `mounts`,
    /// `network`, `hostname` and `shm_size` mean nothing.
    #[serde(default)]
    pub in_place: Option<InPlace>,
    /// Limits other than the builder's own (setrlimit(2)).
    pub limits: Vec<Limit>,
    /// Ends it early.
    #[serde(skip)]
    pub cancel: Option<Arc<Cancel>>,
    /// Is told what could change, if [`InPlace::record`] says so.
    #[serde(skip)]
    pub recorder: Option<Arc<Recorder>>,
}

/// How a process without namespaces is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InPlace {
    /// What could change is recorded so.
    pub record: Option<Record>,
}

/// About which system calls the recorder is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// All that can change a tree.
    All,
    /// Those of them that name a path. Attributes that are changed by descriptor are told
    /// by [`super::Watches`].
    Names,
}

impl Process {
    /// `arguments` as root in `root`, with the values BuildKit gives to a RUN:
    /// host name `buildkitsandbox`, 64 MiB of `/dev/shm`, the builder's network,
    /// working directory `/`, an empty environment.
    pub fn new(
        root: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        Self {
            root: root.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            directory: "/".to_owned(),
            user: User::root(),
            mounts: Vec::new(),
            network: true,
            hostname: "buildkitsandbox".to_owned(),
            shm_size: 64 << 20,
            in_place: None,
            limits: Vec::new(),
            cancel: None,
            recorder: None,
        }
    }

    /// The value of `name` in the environment; the last one wins, as in a shell.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A limit of a process's resources.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limit {
    /// One of [`Limit::NAMES`].
    pub name: String,
    /// What counts; `None`: no limit.
    pub soft: Option<u64>,
    /// Up to where the process may raise it; `None`: no limit.
    pub hard: Option<u64>,
}

impl Limit {
    /// Names of limits, as Docker's `--ulimit` has them.
    pub const NAMES: [&'static str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];

    /// Reads `NAME=SOFT[:HARD]`; -1 is no limit, and without HARD both are SOFT.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, values) = text.split_once('=').ok_or("NAME=SOFT[:HARD] is expected")?;
        if !Self::NAMES.contains(&name) {
            return Err(format!("`{name}` is no limit; there are {}", Self::NAMES.join(", ")));
        }
        let number = |text: &str| match text {
            "-1" => Ok(None),
            text => text.parse().map(Some).map_err(|_| format!("`{text}` is no number")),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
            return Err("the soft limit is above the hard one".to_owned());
        }
        Ok(Self { name: name.to_owned(), soft, hard })
    }
}

/// Something mounted into the root for the time of one process. `target` is
/// resolved inside the root, links confined to it, and must exist unless it is
/// below `/dev` or an earlier mount of the same process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MountPoint {
    /// A file or directory of the host.
    Bind {
        /// Path on the host. Links in it are followed there, so a path that a step
        /// can have a say in must have been resolved inside its own tree before.
        #[serde(with = "host_path")]
        source: PathBuf,
        /// Where.
        #[serde(with = "root_path")]
        target: RootPath,
        /// Whether writes fail with EROFS, in mounts below `source` too.
        read_only: bool,
    },
    /// An empty filesystem in memory.
    Tmpfs {
        /// Where.
        #[serde(with = "root_path")]
        target: RootPath,
        /// Bytes; `None`: half of the memory, as the kernel has it.
        size: Option<u64>,
        /// Permissions of its top directory (octal, with sticky bit).
        mode: u16,
    },
    /// A read-only file that exists in memory alone.
    File {
        /// Where; an existing file (or see above).
        #[serde(with = "root_path")]
        target: RootPath,
        /// Its bytes.
        contents: SecretBytes,
        /// Permissions (octal).
        mode: u16,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

impl MountPoint {
    /// Where it is mounted.
    pub fn target(&self) -> &RootPath {
        match self {
            Self::Bind { target, .. } | Self::Tmpfs { target, .. } | Self::File { target, .. } => {
                target
            }
        }
    }
}

/// Bytes that are shown nowhere: `Debug` tells their number only.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SecretBytes(#[serde(with = "secret_bytes")] Vec<u8>);

impl SecretBytes {
    /// Wraps `bytes`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({})", self.0.len())
    }
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this code (0 to 255).
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl Exit {
    /// Whether it is code 0.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }

    /// The code that a shell reports: 128 + n for signal n.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// Something the sandbox had to do without, or in a weaker way.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Fallback {
    /// The seccomp filter could not be installed; errno.
    NoSeccomp(i32),
    /// `/sys` is the host's, bound read-only, because a fresh one was refused; errno.
    BoundSys(i32),
    /// Device nodes are the host's, bound, because making them was refused; errno.
    BoundDevices(i32),
    /// The recorder's filter could not be installed; errno.
    NoRecorder(i32),
    /// `/proc` is the container's, bound, because a fresh one was refused; errno.
    BoundProc(i32),
    /// Supplementary groups stayed the builder's: setgroups(2) is refused; errno.
    KeptGroups(i32),
    /// The root is laid over `/` and not put in its place; errno.
    Chroot(i32),
    /// With one id: it isn't noticed when a file is given to somebody else; errno.
    UnseenOwners(i32),
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, errno) = match self {
            Self::NoSeccomp(errno) => ("RUN has no seccomp filter", errno),
            Self::BoundSys(errno) => ("RUN sees the builder's own /sys, read-only", errno),
            Self::BoundDevices(errno) => ("RUN has the builder's own device nodes", errno),
            Self::NoRecorder(errno) => ("RUN isn't recorded", errno),
            Self::BoundProc(errno) => (
                "RUN sees the container's own /proc and its process numbers, because parts of \
                 that are masked",
                errno,
            ),
            Self::Chroot(errno) => {
                ("RUN's root lies over the builder's instead of replacing it", errno)
            }
            Self::UnseenOwners(errno) => ("owners that RUN can't give go unnoticed", errno),
            Self::KeptGroups(errno) => ("RUN has the builder's supplementary groups", errno),
        };
        write!(f, "{what}: {}", io::Error::from_raw_os_error(*errno))
    }
}

/// A line from the sandbox to the builder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The command was not started.
    Failed(Failure),
    /// See [`Fallback`].
    Fallback(Fallback),
    /// The recorder's listener comes with this line as a descriptor.
    Listener {
        /// Whether set-user-ID programs have no effect.
        no_new_privileges: bool,
    },
    /// The command ended.
    Ended(Exit),
}

/// A system call that failed on the way to the command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) operation: Operation,
    pub(super) subject: String,
    pub(super) errno: i32,
}

impl Failure {
    pub(super) fn new(operation: Operation, subject: impl Into<String>, errno: i32) -> Self {
        Self { operation, subject: subject.into(), errno }
    }

    /// For `map_err` after a system call.
    pub(super) fn of(
        operation: Operation,
        subject: &str,
    ) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::new(operation, subject, errno.raw_os_error())
    }
}

/// What the builder sends: its own process id, to notice its death, the soft limit of
/// open files if its own is another one by now, and the process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec<P> {
    pub(super) builder: i32,
    pub(super) open_files: Option<u64>,
    pub(super) process: P,
}

/// The message of a [`Spec`]: length (u32, little endian), then JSON.
pub(super) fn encode(process: &Process) -> Result<Vec<u8>, serde_json::Error> {
    let builder = rustix::process::getpid().as_raw_pid();
    let open_files = open_files::before();
    let mut message = vec![0; 4];
    serde_json::to_writer(&mut message, &Spec { builder, open_files, process })?;
    let length = u32::try_from(message.len() - 4).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_le_bytes());
    Ok(message)
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(from: &mut impl Read) -> io::Result<Spec<Process>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_SPEC {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length as usize];
    from.read_exact(&mut message)?;
    Ok(serde_json::from_slice(&message)?)
}

/// Paths of the host as bytes: they need not be UTF-8.
mod host_path {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::ffi::OsStringExt;
    use std::path::Path;
    use std::path::PathBuf;

    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serialize;
    use serde::Serializer;

    pub(super) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(OsString::from_vec(Vec::deserialize(from)?).into())
    }
}

/// Paths of the root as bytes.
mod root_path {
    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serialize;
    use serde::Serializer;
    use serde::de::Error;

    use crate::path::RootPath;

    pub(super) fn serialize<S: Serializer>(path: &RootPath, to: S) -> Result<S::Ok, S::Error> {
        path.as_bytes().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<RootPath, D::Error> {
        RootPath::clamped(&Vec::deserialize(from)?).ok_or_else(|| D::Error::custom("NUL in a path"))
    }
}

/// Secrets in base64, a third of the size of a list of numbers.
mod secret_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serialize;
    use serde::Serializer;
    use serde::de::Error;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        STANDARD.encode(bytes).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_survives_the_socket_and_is_not_shown() {
        let mut process = Process::new("/r", ["true"]);
        process.mounts.push(MountPoint::File {
            target: RootPath::clamped(b"/run/\xffs").expect("no NUL"),
            contents: SecretBytes::new(*b"hunter2\0\xff"),
            mode: 0o400,
            uid: 1,
            gid: 2,
        });
        assert!(!format!("{process:?}").contains("hunter2"));
        let message = encode(&process).expect("encodes");
        let back = decode(&mut &message[..]).expect("decodes").process;
        assert_eq!(back.mounts[0].target(), process.mounts[0].target());
        match &back.mounts[0] {
            MountPoint::File { contents, .. } => assert_eq!(contents.as_bytes(), b"hunter2\0\xff"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn limits_are_read_as_docker_reads_them() {
        let limit = |name: &str, soft, hard| Ok(Limit { name: name.to_owned(), soft, hard });
        assert_eq!(Limit::parse("nofile=1:2"), limit("nofile", Some(1), Some(2)));
        assert_eq!(Limit::parse("core=0"), limit("core", Some(0), Some(0)));
        assert_eq!(Limit::parse("stack=5:-1"), limit("stack", Some(5), None));
        for bad in ["", "nofile", "nofile=", "nofile=x", "files=1", "nofile=3:2", "nofile=-1:5"] {
            assert!(Limit::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cut_or_huge_specification_is_an_error() {
        let message = encode(&Process::new("/", ["x"])).expect("encodes");
        assert!(decode(&mut &message[..message.len() - 1]).is_err());
        assert!(decode(&mut &[0xff; 8][..]).is_err());
    }
}
