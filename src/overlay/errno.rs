//! What an operation on the overlay can answer besides success, and the one map
//! from that to errno(3).

use std::io;

/// Why an operation failed, in the words of errno(3).
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// No such entry, or the node is gone.
    #[error("no such file or directory")]
    NotFound,
    /// The kernel or a caller names an inode that doesn't exist any more.
    #[error("stale inode number")]
    Stale,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// Not a directory where one is needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory where none may be.
    #[error("is a directory")]
    IsDirectory,
    /// The directory still has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// More than 255 bytes in a name. The kernel doesn't check it for FUSE.
    #[error("file name too long")]
    NameTooLong,
    /// The request makes no sense for this node.
    #[error("invalid argument")]
    Invalid,
    /// The operation is forbidden whoever asks, such as a hard link to a directory.
    #[error("operation not permitted")]
    NotPermitted,
    /// A file would get longer than an offset can say.
    #[error("file too large")]
    TooLarge,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The caller's buffer can't hold the attribute.
    #[error("result too large for the buffer")]
    Range,
    /// No data or hole at or behind this offset.
    #[error("no such offset")]
    NoOffset,
    /// Known, but not for this mode or flag.
    #[error("operation not supported")]
    Unsupported,
    /// Inode numbers or link counts have run out.
    #[error("no space left")]
    Full,
    /// The storage behind the overlay failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What internal operations return.
pub(super) type Answer<T> = Result<T, Fault>;

impl Fault {
    /// The number of errno(3). A failure of storage without a number is `EIO`: the
    /// kernel must never see a made-up success.
    pub(super) fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Stale => libc::ESTALE,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::Invalid => libc::EINVAL,
            Self::NotPermitted => libc::EPERM,
            Self::TooLarge => libc::EFBIG,
            Self::NoAttribute => libc::ENODATA,
            Self::Range => libc::ERANGE,
            Self::NoOffset => libc::ENXIO,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::Full => libc::ENOSPC,
            // Of the numbers storage can give, those that a program acts on are
            // passed through; everything else (EBADF, EFAULT, ENOENT of a file that
            // is ours) says nothing about the program's file and becomes EIO.
            Self::Io(error) => match error.raw_os_error() {
                Some(
                    number @ (libc::ENOSPC
                    | libc::EDQUOT
                    | libc::EFBIG
                    | libc::ENOMEM
                    | libc::EMFILE
                    | libc::ENFILE
                    | libc::EINTR),
                ) => number,
                _ => libc::EIO,
            },
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Io(error) => error,
            // Callers outside ask for `NotFound`; a stale node is that to them.
            Fault::Stale => Self::from_raw_os_error(libc::ENOENT),
            fault => Self::from_raw_os_error(fault.errno()),
        }
    }
}
