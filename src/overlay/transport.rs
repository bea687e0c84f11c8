//! How requests come from the kernel and answers go back. What is answered is the same
//! everywhere: `device.rs` and `ring.rs` carry bytes for the one core in `wire.rs`, and
//! `fuse.rs` is the same again over the `fuser` crate, less what that doesn't hand on.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::SessionACL;

use super::Overlay;
use super::device;
use super::fuse::Adapter;
use super::fuse::Caches;
use super::fuse::Uncapped;
use super::inode::Ino;
use super::kernel::Kernel;
use super::passthrough::Door;
use super::rendezvous::Rendezvous;
use super::ring;
use super::ring::Bells;
use super::watchdog::Alarm;
use super::wire;
use super::wire::Agreement;
use super::wire::Core;
use super::wire::Wishes;

/// How requests come from the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// io_uring where the host has it switched on, else the device.
    #[default]
    Auto,
    /// read(2) and write(2) of `/dev/fuse`.
    Device,
    /// io_uring over `/dev/fuse`, or no mount.
    Ring,
    /// The `fuser` crate: no `O_TMPFILE`, and set-id bits by guess. It is there to be
    /// compared with.
    Fuser,
}

impl Transport {
    /// Its name, as `--fuse-transport` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Device => "device",
            Self::Ring => "ring",
            Self::Fuser => "fuser",
        }
    }

    /// The transport with that name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Auto, Self::Device, Self::Ring, Self::Fuser];
        all.into_iter().find(|transport| transport.name() == name)
    }

    /// Whether io_uring is to be tried.
    pub(super) fn tries_ring(self) -> bool {
        match self {
            Self::Auto => is_ring_switched_on(),
            Self::Ring => true,
            Self::Device | Self::Fuser => false,
        }
    }
}

/// The switch of FUSE over io_uring: Linux 6.14 and later have it, off unless the host's
/// root turns it on.
pub const RING_SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// Whether the host offers FUSE over io_uring. The kernel still may not, inside.
pub fn is_ring_switched_on() -> bool {
    fs::read_to_string(RING_SWITCH).is_ok_and(|switch| switch.trim() == "Y")
}

/// What answers the requests of a mount.
pub(super) struct Server {
    /// They end when the mount does.
    pub(super) threads: Vec<JoinHandle<io::Result<()>>>,
    pub(super) quiet: Quiet,
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) transport: Transport,
    /// Raised when one of the threads ends too early.
    pub(super) alarm: Alarm,
}

/// How to know that whatever the kernel has sent is answered.
#[derive(Clone, Debug)]
pub(super) enum Quiet {
    /// All threads meet in requests of ours.
    Meeting(Arc<Rendezvous>),
    /// Each worker says when it has nothing to do.
    Idle(Arc<Bells>),
}

/// Answers requests of the mount that `device` belongs to, by anything but io_uring.
///
/// # Errors
/// When the kernel and we can't agree, or threads can't be started.
pub(super) fn serve(
    overlay: &Arc<Overlay>,
    device: OwnedFd,
    threads: usize,
    transport: Transport,
    passthrough: bool,
) -> io::Result<Server> {
    let rendezvous = Arc::new(Rendezvous::new(threads));
    let quiet = Quiet::Meeting(Arc::clone(&rendezvous));
    if transport == Transport::Fuser {
        let mut config = fuser::Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(threads);
        let uncapped = Uncapped::default();
        let adapter = Adapter { overlay: Arc::clone(overlay), rendezvous, uncapped };
        let server = fuser::Session::from_fd(adapter, device, SessionACL::All, config);
        let background = server.and_then(fuser::Session::spawn)?;
        let kernel = Arc::new(Caches(background.notifier()));
        let (threads, alarm) = (vec![background.guard], Alarm::default());
        return Ok(Server { threads, quiet, kernel, transport, alarm });
    }
    let device = Arc::new(device);
    let agreement = device::agree(&device, Wishes { ring: false, passthrough })?;
    pass_through(overlay, agreement, &device);
    let core = Arc::new(Core::new(Arc::clone(overlay), Some(rendezvous), agreement));
    let threads = device::start(&core, &device, threads)?;
    let kernel = Arc::new(Notices(device));
    let alarm = core.alarm().clone();
    Ok(Server { threads, quiet, kernel, transport: Transport::Device, alarm })
}

/// Answers requests of the mount that `device` belongs to by io_uring, with one thread
/// that reads what doesn't come that way.
///
/// # Errors
/// What keeps the ring from working; the mount is of no use then.
pub(super) fn serve_ring(
    overlay: &Arc<Overlay>,
    device: OwnedFd,
    crew: ring::Crew,
    passthrough: bool,
) -> io::Result<Server> {
    let device = Arc::new(device);
    let agreement = device::agree(&device, Wishes { ring: true, passthrough })?;
    if !agreement.has_ring {
        return Err(io::Error::other(format!("the kernel does not offer it ({RING_SWITCH})")));
    }
    pass_through(overlay, agreement, &device);
    let core = Arc::new(Core::new(Arc::clone(overlay), None, agreement));
    let (bells, mut threads) = crew.start(&core, &device)?;
    threads.extend(device::start(&core, &device, 1)?);
    let (kernel, quiet) = (Arc::new(Notices(device)), Quiet::Idle(bells));
    let alarm = core.alarm().clone();
    Ok(Server { threads, quiet, kernel, transport: Transport::Ring, alarm })
}

/// Lets files be passed through if that was agreed on.
fn pass_through(overlay: &Overlay, agreement: Agreement, device: &Arc<OwnedFd>) {
    if agreement.passes_through {
        overlay.table().passing.begin(Door::new(device));
    }
}

/// The caches of a mount, by notifications of ours.
struct Notices(Arc<OwnedFd>);

impl Notices {
    fn send(&self, what: &str, message: &[u8]) {
        // The kernel may not know the thing, or the mount may be gone: both are fine.
        match rustix::io::write(&*self.0, message) {
            Ok(_) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => tracing::debug!(%error, "the kernel did not drop a cached {what}"),
        }
    }
}

impl Kernel for Notices {
    fn drop_entry(&self, parent: Ino, name: &[u8]) {
        self.send("entry", &wire::drop_entry(parent, name));
    }

    fn drop_node(&self, ino: Ino) {
        self.send("node", &wire::drop_node(ino, 0));
    }

    fn drop_attributes(&self, ino: Ino) {
        // A negative offset leaves the pages alone (fuse_reverse_inval_inode).
        self.send("attribute", &wire::drop_node(ino, -1));
    }
}
