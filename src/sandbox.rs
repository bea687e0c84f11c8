//! Runs a process inside a root filesystem, apart from the rest of the machine.
//!
//! The process gets its own mount, pid, ipc and uts namespaces (and a network
//! namespace when it is to have no network), the root as `/`, fresh `/proc`,
//! `/sys` and `/dev`, Docker's fourteen default capabilities and its default
//! seccomp filter. Nothing of it outlives [`Runner::run`], nor the builder.
//!
//! Three processes of ours take part, because a program with threads must do
//! nothing between `fork` and `exec`:
//!
//! ```text
//! builder ──exec──▶ outer (child.rs) ──fork──▶ pid 1 (init.rs) ──fork──▶ the command
//!           spec ▶  unshare                    mounts, pivot_root       rights, exec
//!           ◀ reports, one JSON line each, over the same socket         ◀ exit status
//! ```
//!
//! The builder executes its own binary again under the name [`CHILD_NAME`]; the
//! first thing `main` does is to call [`child_main_if_asked`]. The specification,
//! which holds secrets, travels over a socket: never over arguments or environment.
//!
//! Where a container has no right to make namespaces, a process runs in the
//! builder's own root without any ([`InPlace`]); there is no pid 1 then, the outer
//! process ends what the command leaves behind, and a [`Recorder`] is told of every
//! call that could change a file.
//!
//! Mount points must exist in the root before a process is run, except below a
//! mount made by the sandbox itself (`/dev`, or an earlier mount of the process):
//! those are made on the spot. This module never creates anything in the root.
//!
//! A root served by FUSE must be mounted with `allow_other`, or a process that
//! isn't root can't see it.
//!
//! Start reading at [`Namespaces`], then `child.rs`, `init.rs`, `mounts.rs`.

mod child;
mod error;
mod foreign;
mod in_place;
mod init;
mod mounts;
mod namespaces;
mod open_files;
mod recorder;
mod seccomp;
mod spec;
pub mod user;
mod user_namespace;

pub use child::CHILD_NAME;
pub use child::child_main_if_asked;
pub use error::Error;
pub use error::Operation;
pub use foreign::runs_here;
pub use namespaces::Cancel;
pub use namespaces::Namespaces;
pub use open_files::raise_open_files;
pub use recorder::Recorder;
pub use recorder::Recording;
pub use recorder::Watches;
pub use spec::Exit;
pub use spec::Fallback;
pub use spec::InPlace;
pub use spec::Limit;
pub use spec::MountPoint;
pub use spec::Process;
pub use spec::Record;
pub use spec::SecretBytes;
pub use user_namespace::Ids;
pub use user_namespace::UserNamespaceError;
pub use user_namespace::enter_user_namespace;

use std::io;
use std::io::Read;
use std::io::Write;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Which of its outputs a process wrote to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// Something that runs processes: [`Namespaces`], or a script in a test.
pub trait Runner {
    /// Runs `process` to its end and hands every piece of its output to
    /// `output` in the order in which it arrives. Blocks; when it returns, every
    /// process that the command left behind is gone as well.
    ///
    /// # Errors
    /// [`Error`] when the command could not be started. A command that ran and
    /// failed is an [`Exit`].
    fn run(&self, process: &Process, output: &mut dyn FnMut(Stream, &[u8])) -> Result<Exit, Error>;
}

/// Gives this process a mount namespace of its own, in which no mount is shared
/// with the outside. To be called at start, before there is a second thread:
/// threads started later share the namespace of the one that started them.
///
/// # Errors
/// [`Error::Privilege`] without `CAP_SYS_ADMIN`.
pub fn isolate_mounts() -> Result<(), Error> {
    use rustix::mount::MountPropagationFlags;
    use rustix::mount::mount_change;
    use rustix::thread::UnshareFlags;

    let failed = |operation| {
        move |errno: rustix::io::Errno| Error::setup(operation, "/", io::Error::from(errno))
    };
    // SAFETY: `unshare` is unsafe for the sake of CLONE_FILES alone, which would
    // let descriptors be closed behind the back of other threads.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(failed(Operation::Unshare))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed(Operation::Propagation))
}

/// Does `act` in a process of its own that ends afterwards, and gives what it gave:
/// for whatever can't be undone. To be called before there is a second thread.
///
/// # Errors
/// The error of `act`; that there is no process, or that it died.
pub fn rehearse<T: Serialize + DeserializeOwned>(
    act: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    let (mut read, mut write) = io::pipe().map_err(|error| error.to_string())?;
    let Some(pid) = child::fork().map_err(|error| error.to_string())? else {
        drop(read);
        if let Ok(text) = serde_json::to_vec(&act()) {
            let _ = write.write_all(&text);
        }
        child::leave(0);
    };
    drop(write);
    let mut text = Vec::new();
    let heard = read.read_to_end(&mut text);
    let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    heard
        .map_err(serde_json::Error::io)
        .and_then(|_| serde_json::from_slice(&text))
        .map_err(|_| "the process that tried it died".to_owned())?
}
