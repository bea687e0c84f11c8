//! What every answer to the kernel has in common, whoever speaks the protocol: it is
//! counted, watched, and no panic gets out of it. And the numbers and flags that both
//! sides agreed on, so that all transports behave alike.

use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;

use fuser::InitFlags;

use super::Overlay;
use super::errno::Answer;
use super::errno::Fault;
use super::inode::Attributes;
use super::inode::Ino;
use super::kernel::Operation;
use super::ops::Rename;
use super::ops::Seek;
use super::ops::SetMode;
use super::ops::Space;
use crate::tree::Device;
use crate::tree::Kind;

/// How long an answer is good, in seconds: longer than any build. The kernel counts in
/// jiffies and cuts what doesn't fit.
pub(super) const FOREVER: u64 = 1 << 31;
/// Largest write and read that the kernel sends in one request (its limit is 256 pages).
pub(super) const MAX_WRITE: u32 = 1 << 20;
/// Requests that may wait in the background (readahead); the default of 16 starves
/// several readers.
pub(super) const MAX_BACKGROUND: u16 = 64;
/// What stat(2) says about a directory's size, as ext4 does: some programs take 0
/// for broken.
const DIRECTORY_SIZE: u64 = 4096;
/// What stat(2) recommends as the size of an I/O request.
pub(super) const BLOCK_SIZE: u32 = 4096;

/// Asked for where the kernel has them. Not asked for, on purpose: WRITEBACK_CACHE
/// (attributes go stale at each close), ATOMIC_O_TRUNC (without OPEN requests a
/// truncation would be lost), POSIX_ACL (kept, not enforced). With HANDLE_KILLPRIV_V2
/// set-id bits and capabilities are taken away here, and the kernel asks for
/// capabilities before the first write only, not before each.
pub(super) const WANTED: [InitFlags; 6] = [
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

impl Overlay {
    /// Counts the request and runs `body`. A panic in it becomes EIO, and the log is
    /// not to be trusted any more.
    ///
    /// # Errors
    /// The errno to answer with.
    pub(super) fn answer<T>(
        &self,
        operation: Operation,
        body: impl FnOnce(&Self) -> Answer<T>,
    ) -> Result<T, i32> {
        self.requests().count(operation);
        let _under_way = self.pulse.begin();
        match catch_unwind(AssertUnwindSafe(|| body(self))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(fault)) => Err(fault.errno()),
            Err(_) => {
                tracing::error!(?operation, "a request of the kernel failed inside");
                let why = format!("answering {operation:?} failed inside the overlay");
                self.table().recorder.lose(why);
                Err(libc::EIO)
            }
        }
    }

    /// Runs `body`, which writes to `node`. If the writer `may_not_keep` set-id bits,
    /// they go first, and the kernel is told: it runs programs by what it has cached. They
    /// are gone also if nothing can be written then, as on a disk.
    ///
    /// # Errors
    /// The errno to answer with.
    pub(super) fn answer_writer<T>(
        &self,
        operation: Operation,
        node: Ino,
        may_not_keep: bool,
        body: impl FnOnce(&Self) -> Answer<T>,
    ) -> Result<T, i32> {
        let mut is_changed = false;
        let result = self.answer(operation, |overlay| {
            is_changed = may_not_keep && overlay.op_kill_set_id(node)?.is_some();
            body(overlay)
        });
        if is_changed {
            self.drop_attributes(node);
        }
        result
    }

    /// Answers setxattr(2).
    ///
    /// # Errors
    /// The errno to answer with.
    pub(super) fn answer_setxattr(
        &self,
        node: Ino,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Result<(), i32> {
        let is_mode_changed = self.answer(Operation::SetXattr, |overlay| {
            overlay.op_setxattr(node, name, value, set_mode(flags)?)
        })?;
        if is_mode_changed {
            self.drop_attributes(node);
        }
        Ok(())
    }

    /// Lets the kernel forget the attributes of `node`. A thread that answers a request
    /// may call it.
    pub(super) fn drop_attributes(&self, node: Ino) {
        let kernel = self.kernel().clone();
        if let Some(kernel) = kernel {
            kernel.drop_attributes(node);
        }
    }

    /// Counts a request that the kernel is told never to send again.
    pub(super) fn refuse(&self, operation: Operation) -> i32 {
        self.requests().count(operation);
        libc::ENOSYS
    }
}

/// A number that can't be one of ours leads to ESTALE, as one that is gone does.
pub(super) fn ino(number: u64) -> Ino {
    Ino::try_from(number).unwrap_or(0)
}

/// What stat(2) says about the size.
pub(super) fn shown_size(attributes: &Attributes) -> u64 {
    let face = &attributes.face;
    if face.kind == Kind::Directory { DIRECTORY_SIZE } else { face.size }
}

/// What mknod(2) makes.
pub(super) fn kind_of(mode: u32) -> Answer<Kind> {
    Ok(match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Kind::File,
        libc::S_IFCHR => Kind::CharDevice,
        libc::S_IFBLK => Kind::BlockDevice,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        _ => return Err(Fault::Invalid),
    })
}

/// The kernel's `new_encode_dev` (include/linux/kdev_t.h): 12 bits of major between
/// two parts of minor.
pub(super) fn packed_device(device: Device) -> u32 {
    (device.minor & 0xff) | ((device.major & 0xfff) << 8) | ((device.minor & !0xff) << 12)
}

/// Undoes [`packed_device`].
pub(super) fn unpacked_device(packed: u32) -> Device {
    Device { major: (packed & 0xf_ff00) >> 8, minor: (packed & 0xff) | ((packed >> 12) & 0xf_ff00) }
}

/// What the flags of renameat2(2) ask for.
pub(super) fn rename_mode(flags: u32) -> Answer<Rename> {
    const NO_REPLACE_WHITEOUT: u32 = libc::RENAME_NOREPLACE | libc::RENAME_WHITEOUT;
    Ok(match flags {
        0 => Rename::Replace,
        libc::RENAME_NOREPLACE => Rename::NoReplace,
        libc::RENAME_EXCHANGE => Rename::Exchange,
        libc::RENAME_WHITEOUT => Rename::Whiteout,
        NO_REPLACE_WHITEOUT => Rename::NoReplaceWhiteout,
        _ => return Err(Fault::Invalid),
    })
}

/// What the flags of setxattr(2) ask for.
pub(super) fn set_mode(flags: i32) -> Answer<SetMode> {
    match flags {
        0 => Ok(SetMode::Any),
        libc::XATTR_CREATE => Ok(SetMode::Create),
        libc::XATTR_REPLACE => Ok(SetMode::Replace),
        _ => Err(Fault::Invalid),
    }
}

/// What the mode of fallocate(2) asks for; the kernel refuses the rest itself.
pub(super) fn space(mode: i32) -> Answer<Space> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    match mode {
        0 => Ok(Space::Extend),
        KEEP => Ok(Space::Keep),
        PUNCH => Ok(Space::Punch),
        ZERO => Ok(Space::Zero),
        ZERO_KEEP => Ok(Space::ZeroKeep),
        _ => Err(Fault::Unsupported),
    }
}

impl Overlay {
    /// Answers lseek(2) with a `whence` that is for a filesystem to answer.
    pub(super) fn seek(&self, node: Ino, offset: i64, whence: i32) -> Answer<i64> {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(Fault::Invalid),
        };
        let offset = u64::try_from(offset).map_err(|_| Fault::NoOffset)?;
        let found = self.op_seek(node, offset, what)?;
        i64::try_from(found).map_err(|_| Fault::NoOffset)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;

    use super::*;
    use crate::overlay::inode::ROOT;
    use crate::overlay::kernel::Kernel;
    use crate::overlay::ops::NewNode;

    /// Whose attributes were to be dropped.
    #[derive(Default)]
    struct Told(Mutex<Vec<Ino>>);

    impl Kernel for Told {
        fn drop_entry(&self, _: Ino, _: &[u8]) {}

        fn drop_node(&self, _: Ino) {}

        fn drop_attributes(&self, ino: Ino) {
            self.0.lock().expect("no panic").push(ino);
        }
    }

    #[test]
    fn the_kernel_learns_that_set_id_bits_are_gone_though_the_write_failed() {
        let overlay = Overlay::new(Vec::new(), &std::env::temp_dir()).expect("a directory");
        let told = Arc::new(Told::default());
        *overlay.kernel() = Some(Arc::clone(&told) as Arc<dyn Kernel>);
        let (kind, device) = (Kind::File, Device::default());
        let new = NewNode { kind, mode: 0o4755, uid: 0, gid: 0, device, target: &[] };
        let node = overlay.op_make(ROOT, b"f", &new).expect("a file").ino;
        let full = |_: &Overlay| Err::<(), _>(Fault::Full);
        let write =
            |may_not_keep| overlay.answer_writer(Operation::Write, node, may_not_keep, full);
        assert_eq!(write(false), Err(libc::ENOSPC));
        assert!(told.0.lock().expect("no panic").is_empty());
        assert_eq!(write(true), Err(libc::ENOSPC));
        assert_eq!(overlay.op_getattr(node).expect("a file").face.mode, 0o755);
        assert_eq!(*told.0.lock().expect("no panic"), [node]);
    }

    #[test]
    fn device_numbers_survive_the_kernels_packing() {
        for (major, minor) in [(0, 0), (1, 3), (259, 1_048_575), (4095, 300)] {
            let device = Device { major, minor };
            assert_eq!(unpacked_device(packed_device(device)), device);
        }
    }
}
