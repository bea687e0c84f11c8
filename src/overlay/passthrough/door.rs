//! How the kernel is told of flat files, and whether it lets itself be told.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Weak;

use super::flat::UNWRITTEN;
use super::flat::is_ours_alone;
use super::flat::punch;
use super::flat::stamp;
use super::flat::tame;
use super::time_of;
use crate::overlay::Overlay;
use crate::overlay::device;
use crate::overlay::session;
use crate::overlay::upper::FLAT_FROM;
use crate::overlay::wire::Wishes;

/// The kernel's name for an open file that it may read and write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::overlay) struct BackingId(pub(in crate::overlay) u32);

/// `struct fuse_backing_map` (`linux/fuse.h`).
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// `FUSE_DEV_IOC_BACKING_OPEN`: `_IOW(229, 1, struct fuse_backing_map)`.
const BACKING_OPEN: libc::Ioctl = 0x4010_e501_u32 as libc::Ioctl;
/// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, uint32_t)`.
const BACKING_CLOSE: libc::Ioctl = 0x4004_e502_u32 as libc::Ioctl;

/// Where the kernel is told of flat files: the device of the mount. It doesn't keep the
/// device open: the mount ends when that is closed.
#[derive(Clone, Debug)]
pub(in crate::overlay) struct Door(Weak<OwnedFd>);

impl Door {
    pub(in crate::overlay) fn new(device: &Arc<OwnedFd>) -> Self {
        Self(Arc::downgrade(device))
    }

    /// Lets the kernel use `file`. Waits for nobody.
    pub(super) fn open(&self, file: &File) -> io::Result<BackingId> {
        let device = self.0.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: the kernel reads a structure of this form from the address, which is
        // that of a living one, and keeps nothing of it.
        let id = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN, &raw const map) };
        u32::try_from(id).map(BackingId).map_err(|_| io::Error::last_os_error())
    }

    /// Takes the name back. Whoever has the file open by it keeps that.
    pub(super) fn close(&self, id: BackingId) {
        let Some(device) = self.0.upgrade() else { return };
        // SAFETY: the kernel reads four bytes from the address of a living number.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE, &raw const id.0) };
        if done != 0 {
            let error = io::Error::last_os_error();
            tracing::debug!(%error, "the kernel keeps a backing file");
        }
    }
}

/// Filesystems, by their numbers in statfs(2), that lock no file while it is read: btrfs,
/// ext4, f2fs, tmpfs. On another one (XFS) a program that reads into memory which is mapped
/// from the overlay may keep us from changing the file and wait for us.
const READ_UNLOCKED: [rustix::fs::FsWord; 4] = [0x9123_683e, 0xef53, 0xf2f5_2010, 0x0102_1994];

/// Why nothing is passed through.
#[derive(Debug, thiserror::Error)]
pub(in crate::overlay) enum Refusal {
    #[error("the fuser transport does not carry it")]
    Fuser,
    #[error("the kernel does not offer it, Linux 6.9 does")]
    NotOffered,
    #[error("it needs CAP_SYS_ADMIN, and not that of a user namespace")]
    NotPermitted,
    #[error(
        "what is written goes to a stacked filesystem, such as the overlayfs of a container's root"
    )]
    Stacked,
    #[error("what is written goes to a filesystem other than btrfs, ext4, f2fs and tmpfs")]
    Filesystem,
    /// Something that is needed of the filesystem of what is written.
    #[error("the filesystem of what is written has no {0} ({1})")]
    Lacks(&'static str, #[source] io::Error),
    #[error("it cannot be tried ({0})")]
    Untried(String),
}

/// Whether files can be passed through on a mount of `overlay`: tries it with a mount
/// that is attached nowhere.
///
/// # Errors
/// What forbids it.
pub(in crate::overlay) fn probe(overlay: &Overlay) -> Result<(), Refusal> {
    let lacks = |what| move |error| Refusal::Lacks(what, error);
    let file = overlay.table().upper.flat_for_copy().map_err(lacks("room"))?;
    let file = file.file();
    file.set_len(FLAT_FROM).map_err(lacks("room"))?;
    punch(file, &(0..4096)).map_err(lacks("holes that are punched"))?;
    stamp(file).map_err(lacks("times"))?;
    let stat = rustix::fs::fstat(file).map_err(io::Error::from).map_err(lacks("times"))?;
    if time_of(&stat) != UNWRITTEN {
        return Err(Refusal::Lacks("times to the nanosecond", io::ErrorKind::Unsupported.into()));
    }
    tame(file).map_err(lacks("leases"))?;
    if !is_ours_alone(file).map_err(lacks("leases"))? {
        return Err(Refusal::Lacks("leases", io::ErrorKind::WouldBlock.into()));
    }
    let untried = |error: &dyn std::fmt::Display| Refusal::Untried(error.to_string());
    let (device, _mount) = session::detached().map_err(|error| untried(&error))?;
    let device = Arc::new(device);
    let wishes = Wishes { ring: false, passthrough: true };
    let agreement = device::agree(&device, wishes).map_err(|error| untried(&error))?;
    if !agreement.passes_through {
        return Err(Refusal::NotOffered);
    }
    let system = rustix::fs::fstatfs(file).map_err(io::Error::from).map_err(lacks("name"))?;
    match Door::new(&device).open(file) {
        Ok(_) if READ_UNLOCKED.contains(&system.f_type) => Ok(()),
        Ok(_) => Err(Refusal::Filesystem),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EPERM) => Refusal::NotPermitted,
            Some(libc::ELOOP) => Refusal::Stacked,
            _ => untried(&error),
        }),
    }
}
