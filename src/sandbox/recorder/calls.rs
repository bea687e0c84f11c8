//! Which of its arguments say what a call changes: the table of `filter.rs` in code.

use super::filter;

/// Whether a link at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Links {
    Followed,
    Kept,
}

impl Links {
    pub(super) fn opposite(self) -> Self {
        match self {
            Self::Followed => Self::Kept,
            Self::Kept => Self::Followed,
        }
    }
}

/// What says whether links are followed.
#[derive(Clone, Copy, Debug)]
pub(super) enum LinksBy {
    Always(Links),
    /// A flag in an argument.
    Flag {
        index: u8,
        flag: i32,
        then: Links,
    },
    /// Flags of open(2): a file that is to be new, or no link, isn't looked for behind one.
    Open(u8),
    /// `struct open_how`.
    How(u8),
}

/// What happens to an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Entry,
    /// It is made a directory, if there is none.
    Directory,
    /// It is removed: what led over it leads elsewhere.
    Gone,
    /// It becomes a symbolic link.
    Link,
    Moved,
}

/// Which argument of a call says what it changes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Path {
        directory: Option<u8>,
        path: u8,
        links: LinksBy,
        kind: Kind,
    },
    Descriptor(u8),
    Socket {
        address: u8,
        length: u8,
    },
    Root,
    /// The caller becomes somebody else.
    User,
    Everything,
}

const fn path(directory: Option<u8>, path: u8, links: Links, kind: Kind) -> Place {
    Place::Path { directory, path, links: LinksBy::Always(links), kind }
}

const fn flagged(path: u8, index: u8, flag: i32, then: Links) -> Place {
    let links = LinksBy::Flag { index, flag, then };
    Place::Path { directory: Some(0), path, links, kind: Kind::Entry }
}

/// What `call` changes, by the table in `filter.rs`.
pub(super) fn places(call: libc::c_long) -> &'static [Place] {
    use Kind::Entry;
    use Kind::Gone;
    use Kind::Moved;
    use Links::Followed;
    use Links::Kept;
    const NO_FOLLOW: i32 = libc::AT_SYMLINK_NOFOLLOW;
    match call {
        libc::SYS_openat => {
            const { &[Place::Path { directory: Some(0), path: 1, links: LinksBy::Open(2), kind: Entry }] }
        }
        libc::SYS_openat2 => {
            const { &[Place::Path { directory: Some(0), path: 1, links: LinksBy::How(2), kind: Entry }] }
        }
        libc::SYS_mkdirat => const { &[path(Some(0), 1, Kept, Kind::Directory)] },
        libc::SYS_mknodat => const { &[path(Some(0), 1, Kept, Entry)] },
        libc::SYS_unlinkat => const { &[path(Some(0), 1, Kept, Gone)] },
        libc::SYS_symlinkat => const { &[path(Some(1), 2, Kept, Kind::Link)] },
        libc::SYS_renameat | libc::SYS_renameat2 => {
            const { &[path(Some(0), 1, Kept, Moved), path(Some(2), 3, Kept, Moved)] }
        }
        libc::SYS_linkat => {
            const { &[flagged(1, 4, libc::AT_SYMLINK_FOLLOW, Followed), path(Some(2), 3, Kept, Entry)] }
        }
        libc::SYS_truncate | libc::SYS_setxattr | libc::SYS_removexattr => {
            const { &[path(None, 0, Followed, Entry)] }
        }
        libc::SYS_lsetxattr | libc::SYS_lremovexattr => const { &[path(None, 0, Kept, Entry)] },
        libc::SYS_fchmod | libc::SYS_fchown | libc::SYS_fsetxattr | libc::SYS_fremovexattr => {
            const { &[Place::Descriptor(0)] }
        }
        libc::SYS_fchmodat => const { &[path(Some(0), 1, Followed, Entry)] },
        filter::FCHMODAT2 | libc::SYS_utimensat => const { &[flagged(1, 3, NO_FOLLOW, Kept)] },
        libc::SYS_fchownat => const { &[flagged(1, 4, NO_FOLLOW, Kept)] },
        filter::SETXATTRAT | filter::REMOVEXATTRAT => const { &[flagged(1, 2, NO_FOLLOW, Kept)] },
        filter::FILE_SETATTR => const { &[flagged(1, 4, NO_FOLLOW, Kept)] },
        libc::SYS_bind => const { &[Place::Socket { address: 1, length: 2 }] },
        libc::SYS_chroot => const { &[Place::Root] },
        libc::SYS_setgid
        | libc::SYS_setregid
        | libc::SYS_setresgid
        | libc::SYS_setfsgid
        | libc::SYS_setuid
        | libc::SYS_setreuid
        | libc::SYS_setresuid
        | libc::SYS_setfsuid => const { &[Place::User] },
        _ => old_places(call),
    }
}

/// The calls of before there were directory descriptors.
#[cfg(target_arch = "x86_64")]
fn old_places(call: libc::c_long) -> &'static [Place] {
    use Kind::Entry;
    use Links::Followed;
    use Links::Kept;
    match call {
        libc::SYS_open => {
            const { &[Place::Path { directory: None, path: 0, links: LinksBy::Open(1), kind: Entry }] }
        }
        libc::SYS_creat
        | libc::SYS_chmod
        | libc::SYS_chown
        | libc::SYS_utime
        | libc::SYS_utimes => const { &[path(None, 0, Followed, Entry)] },
        libc::SYS_mkdir => const { &[path(None, 0, Kept, Kind::Directory)] },
        libc::SYS_mknod | libc::SYS_lchown => const { &[path(None, 0, Kept, Entry)] },
        libc::SYS_unlink | libc::SYS_rmdir => const { &[path(None, 0, Kept, Kind::Gone)] },
        libc::SYS_symlink => const { &[path(None, 1, Kept, Kind::Link)] },
        libc::SYS_rename => {
            const { &[path(None, 0, Kept, Kind::Moved), path(None, 1, Kept, Kind::Moved)] }
        }
        libc::SYS_link => const { &[path(None, 0, Kept, Entry), path(None, 1, Kept, Entry)] },
        libc::SYS_futimesat => const { &[path(Some(0), 1, Followed, Entry)] },
        _ => const { &[Place::Everything] },
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn old_places(_: libc::c_long) -> &'static [Place] {
    &[Place::Everything]
}
