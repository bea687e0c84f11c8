//! What can keep a process from being run.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

/// Why a process was not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses namespaces or mounts.
    #[error(
        "can't {operation}: permission denied; CAP_SYS_ADMIN is missing or a security profile \
         forbids it"
    )]
    Privilege {
        /// What was refused.
        operation: Operation,
    },
    /// A part of the sandbox could not be set up.
    #[error("can't {operation} {subject}")]
    Setup {
        /// What was attempted.
        operation: Operation,
        /// On what; a path in the root unless the operation says otherwise.
        subject: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The step's user, or its group, has an id that the user namespace lacks.
    #[error(
        "can't become the user {user}: this user namespace doesn't map that id; it needs \
         subordinate ids (/etc/subuid, /etc/subgid, newuidmap, newgidmap)"
    )]
    Unmapped {
        /// Who.
        user: String,
    },
    /// The step gave a file to somebody whom the user namespace lacks, whether or not it
    /// minded that this failed.
    #[error(
        "the step gives {path} to {uid}:{gid}, and this user namespace has one id alone; it \
         needs subordinate ids (/etc/subuid, /etc/subgid, newuidmap, newgidmap)"
    )]
    Owner {
        /// As the step called it.
        path: String,
        /// User; 4294967295: none.
        uid: u32,
        /// Group; 4294967295: none.
        gid: u32,
    },
    /// The program is in no directory of PATH.
    #[error("exec: `{program}`: not found in PATH")]
    NotInPath {
        /// The program, as named by the command.
        program: String,
    },
    /// The program is there but can't be executed.
    #[error("exec: `{program}`: {}", execute_hint(source))]
    Execute {
        /// The program's path in the root.
        program: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Our own executable could not be started again.
    #[error("can't start the sandbox by executing {}", executable.display())]
    Executable {
        /// The executable.
        executable: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Talking to the sandbox failed.
    #[error("lost the connection to the sandbox")]
    Connection(#[source] io::Error),
    /// The sandbox ended without telling how the command did.
    #[error("the sandbox was killed from outside ({status}); was memory short?")]
    Died {
        /// How its first process ended.
        status: String,
    },
    /// The process can't be described to the sandbox.
    #[error("can't describe the process to the sandbox")]
    Specification(#[source] serde_json::Error),
}

fn execute_hint(source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory (or its interpreter is missing)".into(),
        Some(libc::ENOEXEC) => "exec format error (a script without `#!`, or another CPU?)".into(),
        _ => source.to_string(),
    }
}

impl Error {
    /// A failed part of the set-up; a refused namespace becomes [`Error::Privilege`].
    pub(super) fn setup(operation: Operation, subject: &str, source: io::Error) -> Self {
        let refused = source.raw_os_error() == Some(libc::EPERM);
        let privileged =
            matches!(operation, Operation::Unshare | Operation::Propagation | Operation::Root);
        if refused && privileged {
            Self::Privilege { operation }
        } else if operation == Operation::User && source.raw_os_error() == Some(libc::EINVAL) {
            Self::Unmapped { user: subject.to_owned() }
        } else {
            Self::Setup { operation, subject: subject.to_owned(), source }
        }
    }

    /// The exit code that a shell and runc give to a command that could not be
    /// started: 127 when there is no such program, 126 when it can't be
    /// executed; `None` when the sandbox itself failed.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::NotInPath { .. } => Some(127),
            Self::Execute { source, .. } if source.raw_os_error() == Some(libc::ENOENT) => {
                Some(127)
            }
            Self::Execute { .. } => Some(126),
            _ => None,
        }
    }
}

/// A part of setting up the sandbox. Shown as what follows "can't".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Operation {
    /// Making namespaces.
    Unshare,
    /// Cutting mounts off from the outside.
    Propagation,
    /// Setting the host name.
    Hostname,
    /// Bringing up `lo`.
    Loopback,
    /// Starting a process.
    Fork,
    /// Taking the root directory (a path of the host).
    Root,
    /// Finding the place of a mount.
    MountPoint,
    /// Opening what is to be bound (a path of the host).
    Source,
    /// Mounting a filesystem or binding something.
    Mount,
    /// Writing a file that is bound into the root.
    File,
    /// Making a device node.
    Device,
    /// Hiding a path.
    Mask,
    /// Making the root `/`.
    PivotRoot,
    /// Opening `/dev/null` as standard input.
    Stdin,
    /// Entering the working directory.
    Directory,
    /// Setting a limit.
    Limit,
    /// Giving up capabilities.
    Capabilities,
    /// Becoming the user.
    User,
    /// Waiting for signals and processes.
    Wait,
    /// Looking the program up in PATH.
    Find,
    /// Executing the program.
    Execute,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unshare => "make namespaces",
            Self::Propagation => "make mounts private below",
            Self::Hostname => "set the host name",
            Self::Loopback => "bring up the network interface",
            Self::Fork => "start a process for",
            Self::Root => "take as root",
            Self::MountPoint => "open the mount point",
            Self::Source => "open the bind source",
            Self::Mount => "mount",
            Self::File => "write the file for",
            Self::Device => "make the device",
            Self::Mask => "mask",
            Self::PivotRoot => "pivot into",
            Self::Stdin => "open as standard input",
            Self::Directory => "enter the working directory",
            Self::Limit => "set the limit",
            Self::Capabilities => "give up capabilities of",
            Self::User => "become the user",
            Self::Wait => "wait for",
            Self::Find => "find the program",
            Self::Execute => "execute",
        })
    }
}
