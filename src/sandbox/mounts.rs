//! Makes the root of a step: the root directory itself, `/proc`, `/sys`, `/dev`,
//! the mounts of the process; then makes it `/`.
//!
//! Everything is addressed by descriptors. Places inside the root are resolved
//! by openat2(2) with links confined to the root, so nothing that an image or an
//! earlier step put there can lead a mount outside.
//!
//! Runs in a mount namespace of its own, in which a tmpfs is laid over the host's
//! path of the root as a workplace. It stays behind, unreachable, when the root
//! becomes `/`.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::io::Errno;
use rustix::mount::FsMountFlags;
use rustix::mount::FsOpenFlags;
use rustix::mount::MountAttrFlags;
use rustix::mount::MountPropagationFlags;
use rustix::mount::MoveMountFlags;
use rustix::mount::OpenTreeFlags;
use rustix::mount::UnmountFlags;
use rustix::process::Gid;
use rustix::process::Uid;

use super::error::Operation;
use super::spec::Failure;
use super::spec::Fallback;
use super::spec::MountPoint;
use super::spec::Process;
use crate::path::RootPath;

/// What Docker hides of `/proc` and `/sys`. What doesn't exist is skipped.
const MASKED: &[&str] = &[
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
];

/// What Docker makes read-only of `/proc`.
const READ_ONLY: &[&str] = &["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

/// Device nodes of `/dev`: name, major, minor; all 0666.
const DEVICES: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links of `/dev`: name, target.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// nosuid, nodev and noexec at once.
const INERT: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Makes `process.root`, furnished, the root of this mount namespace.
pub(super) fn enter_root(
    process: &Process,
    fallback: &mut dyn FnMut(Fallback),
) -> Result<(), Failure> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(Failure::of(Operation::Propagation, "/"))?;
    let sources = open_sources(&process.mounts)?;
    let room = Room::new(&process.root)?;
    room.mount_proc(fallback)?;
    room.mount_sys(fallback)?;
    room.mount_dev(process.shm_size, fallback)?;
    room.restrict()?;
    let mut made = vec![clamped("dev")];
    for (index, (mount, source)) in process.mounts.iter().zip(sources).enumerate() {
        room.mount(index, mount, source, &made)?;
        if !matches!(mount, MountPoint::File { .. }) {
            made.push(mount.target().clone());
        }
    }
    room.pivot(fallback).map_err(Failure::of(Operation::PivotRoot, &process.root.to_string_lossy()))
}

fn clamped(path: &str) -> RootPath {
    RootPath::clamped(path.as_bytes()).expect("constants hold no NUL")
}

/// Copies of the mounts to be bound, taken before anything covers their paths.
fn open_sources(mounts: &[MountPoint]) -> Result<Vec<Option<OwnedFd>>, Failure> {
    let open = |mount: &MountPoint| {
        let MountPoint::Bind { source, read_only, .. } = mount else { return Ok(None) };
        let shown = source.to_string_lossy().into_owned();
        let failed = |errno: Errno| Failure::new(Operation::Source, &shown, errno.raw_os_error());
        let copy = clone_tree(CWD, source).map_err(failed)?;
        if *read_only {
            make_read_only(copy.as_fd()).map_err(failed)?;
        }
        Ok(Some(copy))
    };
    mounts.iter().map(open).collect()
}

/// The root directory as a mount, and the workplace behind it.
struct Room {
    /// The workplace: an empty tmpfs with `root` and `files` in it.
    workplace: OwnedFd,
    /// The top of the root.
    root: OwnedFd,
}

impl Room {
    fn new(path: &Path) -> Result<Self, Failure> {
        let shown = path.to_string_lossy();
        let failed = |errno: Errno| Failure::new(Operation::Root, &*shown, errno.raw_os_error());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        // Not recursive: a root has no mounts below it but ours.
        let root = rustix::mount::open_tree(CWD, path, flags).map_err(failed)?;
        let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
        let workplace = tmpfs(None, 0o700, INERT.difference(MountAttrFlags::MOUNT_ATTR_NOEXEC));
        let workplace = workplace.map_err(failed)?;
        attach(workplace.as_fd(), place.as_fd()).map_err(failed)?;
        for name in ["root", "files"] {
            rustix::fs::mkdirat(&workplace, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
        }
        let place = open_path(&workplace, "root").map_err(failed)?;
        attach(root.as_fd(), place.as_fd()).map_err(failed)?;
        let root = open_path(&workplace, "root").map_err(failed)?;
        Ok(Self { workplace, root })
    }

    /// Opens a place of ours, where a link would be an attempt to lead us astray.
    fn place(&self, path: &str) -> Result<OwnedFd, Failure> {
        resolve(self.root.as_fd(), &clamped(path), ResolveFlags::NO_SYMLINKS)
            .map_err(Failure::of(Operation::MountPoint, &format!("/{path}")))
    }

    fn mount_proc(&self, fallback: &mut dyn FnMut(Fallback)) -> Result<(), Failure> {
        let place = self.place("proc")?;
        let proc = match filesystem("proc", &[], INERT) {
            // In a user namespace, where the one around us is masked: a fresh one would
            // show what that hides. Whoever looks into a process there still needs
            // every capability that the process has.
            Err(errno @ Errno::PERM) => clone_tree(CWD, Path::new("/proc"))
                .inspect(|_| fallback(Fallback::BoundProc(errno.raw_os_error()))),
            proc => proc,
        };
        proc.and_then(|proc| attach(proc.as_fd(), place.as_fd()))
            .map_err(Failure::of(Operation::Mount, "/proc"))
    }

    fn mount_sys(&self, fallback: &mut dyn FnMut(Fallback)) -> Result<(), Failure> {
        let place = self.place("sys")?;
        let failed = |errno: Errno| Failure::new(Operation::Mount, "/sys", errno.raw_os_error());
        let sys = match filesystem("sysfs", &[], INERT | MountAttrFlags::MOUNT_ATTR_RDONLY) {
            Ok(sys) => sys,
            // Refused where the network namespace belongs to somebody else.
            Err(errno) => {
                let sys = clone_tree(CWD, Path::new("/sys")).map_err(failed)?;
                make_read_only(sys.as_fd()).map_err(failed)?;
                fallback(Fallback::BoundSys(errno.raw_os_error()));
                sys
            }
        };
        attach(sys.as_fd(), place.as_fd()).map_err(failed)
    }

    fn mount_dev(&self, shm_size: u64, fallback: &mut dyn FnMut(Fallback)) -> Result<(), Failure> {
        let place = self.place("dev")?;
        let failed = |errno: Errno| Failure::new(Operation::Mount, "/dev", errno.raw_os_error());
        let dev =
            tmpfs(Some(64 << 20), 0o755, MountAttrFlags::MOUNT_ATTR_NOSUID).map_err(failed)?;
        attach(dev.as_fd(), place.as_fd()).map_err(failed)?;
        for (name, target) in LINKS {
            rustix::fs::symlinkat(*target, &dev, *name).map_err(failed)?;
        }
        let mut bound = None;
        for &(name, major, minor) in DEVICES {
            let device = rustix::fs::makedev(major, minor);
            let mode = Mode::from_raw_mode(0o666);
            let kind = FileType::CharacterDevice;
            if let Err(errno) = rustix::fs::mknodat(&dev, name, kind, mode, device) {
                bound = Some(errno.raw_os_error());
                bind_device(&dev, name).map_err(Failure::of(Operation::Device, name))?;
            }
        }
        if let Some(errno) = bound {
            fallback(Fallback::BoundDevices(errno));
        }
        let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let under = |name: &str, what: rustix::io::Result<OwnedFd>| {
            rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))
                .and_then(|()| attach(what?.as_fd(), open_path(&dev, name)?.as_fd()))
                .map_err(Failure::of(Operation::Mount, &format!("/dev/{name}")))
        };
        // Group 5 is tty in every distribution; a user namespace may not map it.
        let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
        let pts = filesystem("devpts", &options, quiet)
            .or_else(|_| filesystem("devpts", &options[..2], quiet));
        under("pts", pts)?;
        under("shm", tmpfs(Some(shm_size), 0o1777, INERT))?;
        match filesystem("mqueue", &[], INERT) {
            Ok(queue) => under("mqueue", Ok(queue)),
            Err(Errno::NODEV) => Ok(()), // a kernel without message queues
            Err(errno) => under("mqueue", Err(errno)),
        }
    }

    /// Hides and write-protects what Docker hides and write-protects.
    fn restrict(&self) -> Result<(), Failure> {
        let find = |path: &str| match resolve(
            self.root.as_fd(),
            &clamped(path),
            ResolveFlags::NO_SYMLINKS,
        ) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
            found => found.map(Some),
        };
        let hide = |path: &str| -> rustix::io::Result<()> {
            let Some(place) = find(path)? else { return Ok(()) };
            let stat = rustix::fs::fstat(&place)?;
            let cover = if FileType::from_raw_mode(stat.st_mode).is_dir() {
                tmpfs(Some(0), 0o755, INERT | MountAttrFlags::MOUNT_ATTR_RDONLY)?
            } else {
                clone_tree(CWD, Path::new("/dev/null"))?
            };
            attach(cover.as_fd(), place.as_fd())
        };
        let protect = |path: &str| -> rustix::io::Result<()> {
            let Some(place) = find(path)? else { return Ok(()) };
            let cover = clone_tree(&place, Path::new(""))?;
            make_read_only(cover.as_fd())?;
            attach(cover.as_fd(), place.as_fd())
        };
        for &path in MASKED {
            hide(path).map_err(Failure::of(Operation::Mask, &format!("/{path}")))?;
        }
        for &path in READ_ONLY {
            protect(path).map_err(Failure::of(Operation::Mask, &format!("/{path}")))?;
        }
        Ok(())
    }

    /// Mounts the `index`th mount of the process; below one of `made`, a missing
    /// place is made.
    fn mount(
        &self,
        index: usize,
        mount: &MountPoint,
        source: Option<OwnedFd>,
        made: &[RootPath],
    ) -> Result<(), Failure> {
        let target = mount.target();
        let shown = target.to_string();
        let failed = |errno: Errno| Failure::new(Operation::Mount, &shown, errno.raw_os_error());
        let what = match (mount, source) {
            (MountPoint::Bind { .. }, Some(source)) => source,
            (MountPoint::Tmpfs { size, mode, .. }, _) => {
                let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
                tmpfs(*size, *mode, flags).map_err(failed)?
            }
            (MountPoint::File { contents, mode, uid, gid, .. }, _) => self
                .write(&index.to_string(), contents.as_bytes(), *mode, (*uid, *gid))
                .map_err(|error| {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    Failure::new(Operation::File, &shown, errno)
                })?,
            (MountPoint::Bind { .. }, None) => unreachable!("open_sources opens every bind"),
        };
        let find = || resolve(self.root.as_fd(), target, ResolveFlags::empty());
        let ours = made.iter().any(|top| target.starts_with(top) && target != top);
        let place = match find() {
            Err(Errno::NOENT) if ours => {
                let directory = rustix::fs::fstat(&what)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
                self.make(target, directory).and_then(|()| find())
            }
            found => found,
        };
        let place = place.map_err(Failure::of(Operation::MountPoint, &shown))?;
        attach(what.as_fd(), place.as_fd()).map_err(failed)
    }

    /// Makes `target` and its missing parents, in the root as it is seen.
    fn make(&self, target: &RootPath, directory: bool) -> rustix::io::Result<()> {
        let mut at = RootPath::root();
        for part in target.components() {
            let Some(name) = crate::path::Name::new(part) else { return Err(Errno::INVAL) };
            let parent = resolve(self.root.as_fd(), &at, ResolveFlags::empty())?;
            at = at.join(&name);
            let made = if directory || at != *target {
                rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755))
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&parent, part, flags, Mode::from_raw_mode(0o644)).map(drop)
            };
            match made {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Writes a file into the workplace and gives a read-only mount of it alone.
    fn write(
        &self,
        name: &str,
        contents: &[u8],
        mode: u16,
        (uid, gid): (u32, u32),
    ) -> io::Result<OwnedFd> {
        use std::io::Write as _;

        let files = open_path(&self.workplace, "files")?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&files, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(file);
        file.write_all(contents)?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(u32::from(mode)))?;
        let mount = clone_tree(&files, Path::new(name))?;
        make_read_only(mount.as_fd())?;
        Ok(mount)
    }

    /// Makes the root `/` and lets go of everything else (pivot_root(2), NOTES:
    /// `pivot_root(".", ".")`). Docker's profile forbids that, with CAP_SYS_ADMIN too:
    /// there the root is laid over `/`, as switch_root(8) does. Whoever breaks out of the
    /// chroot comes back to it: what `..` finds on top of the old `/` is the root.
    fn pivot(self, fallback: &mut dyn FnMut(Fallback)) -> rustix::io::Result<()> {
        rustix::process::fchdir(&self.root)?;
        match rustix::process::pivot_root(".", ".") {
            Ok(()) => rustix::mount::unmount(".", UnmountFlags::DETACH)?,
            Err(errno @ Errno::PERM) => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let old = rustix::fs::open("/", flags, Mode::empty())?;
                attach(self.root.as_fd(), old.as_fd())?;
                rustix::process::chroot(".")?;
                fallback(Fallback::Chroot(errno.raw_os_error()));
            }
            Err(errno) => return Err(errno),
        }
        rustix::process::chdir("/")
    }
}

/// Opens `path` in the tree under `root`, links confined to it.
fn resolve(
    root: BorrowedFd<'_>,
    path: &RootPath,
    more: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    let bytes = if path.is_root() { b"." } else { path.as_bytes() };
    loop {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match rustix::fs::openat2(root, bytes, flags, Mode::empty(), how) {
            // A rename somewhere on the machine came in between.
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}

fn open_path(directory: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(directory, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// A mount of a fresh filesystem, attached nowhere yet.
fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    flags: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        rustix::mount::fsconfig_set_string(&context, *name, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// A tmpfs; `size` in bytes, rounded up to one page (0 means no limit to the kernel).
fn tmpfs(size: Option<u64>, mode: u16, flags: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let mode = format!("{mode:o}");
    let size = size.map(|bytes| bytes.max(4096).to_string());
    let mut options = vec![("mode", mode.as_str())];
    options.extend(size.as_deref().map(|bytes| ("size", bytes)));
    filesystem("tmpfs", &options, flags)
}

/// A copy of the mounts at and below `path`, attached nowhere yet.
fn clone_tree(directory: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    rustix::mount::open_tree(directory, path, flags)
}

/// Lays a mount that is attached nowhere over `place`.
fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", place, "", flags)
}

fn bind_device(dev: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o666))?;
    let node = clone_tree(CWD, &Path::new("/dev").join(name))?;
    attach(node.as_fd(), open_path(dev, name)?.as_fd())
}

/// Makes a mount and those below it read-only (mount_setattr(2), Linux 5.12).
fn make_read_only(mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = Attributes {
        set: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()),
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    let flags = AtFlags::EMPTY_PATH.bits() | OpenTreeFlags::AT_RECURSIVE.bits();
    // SAFETY: the path is a C string; `attributes` has the layout and the size
    // that is told of `struct mount_attr`, and is only read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}
