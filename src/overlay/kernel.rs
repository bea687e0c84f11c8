//! What the overlay knows about the kernel that uses it: which caches to drop, and
//! how often it asked what.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use super::inode::Ino;
use super::inode::ROOT;
use super::table::Table;

/// The caches of a mount. Calls may wait for the kernel, which may wait for an
/// answer of ours: no lock may be held.
pub(super) trait Kernel: Send + Sync {
    /// Drops what is known about the entry `name`, also that there is none.
    fn drop_entry(&self, parent: Ino, name: &[u8]);

    /// Drops attributes and contents of a node.
    fn drop_node(&self, ino: Ino);

    /// Drops attributes of a node. Waits for nothing, so a thread that answers a
    /// request may call it.
    fn drop_attributes(&self, ino: Ino);
}

/// What an edit made stale in the kernel's caches.
#[derive(Debug, Default)]
pub(super) struct Stale {
    entries: Vec<(Ino, Box<[u8]>)>,
    nodes: Vec<Ino>,
}

impl Stale {
    /// The entry `name` changed, and so did its directory.
    pub(super) fn entry(&mut self, table: &Table, directory: Ino, name: &[u8]) {
        if is_known(table, directory) {
            self.entries.push((directory, name.into()));
            self.nodes.push(directory);
        }
    }

    /// The node `ino` changed.
    pub(super) fn node(&mut self, table: &Table, ino: Ino) {
        if is_known(table, ino) {
            self.nodes.push(ino);
        }
    }

    /// Tells the kernel.
    pub(super) fn drop_from(mut self, kernel: &dyn Kernel) {
        for (directory, name) in &self.entries {
            kernel.drop_entry(*directory, name);
        }
        self.nodes.sort_unstable();
        self.nodes.dedup();
        for ino in self.nodes {
            kernel.drop_node(ino);
        }
    }
}

/// Whether a kernel can have anything about `ino` in its caches.
fn is_known(table: &Table, ino: Ino) -> bool {
    ino == ROOT || table.inode(ino).is_ok_and(|inode| inode.lookups > 0)
}

macro_rules! operations {
    ($($name:ident $text:literal,)*) => {
        /// A kind of request.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Operation { $($name,)* }

        const NAMES: &[&str] = &[$($text,)*];
    };
}

operations! {
    Lookup "LOOKUP",
    Forget "FORGET",
    GetAttr "GETATTR",
    SetAttr "SETATTR",
    ReadLink "READLINK",
    MkNod "MKNOD",
    MkDir "MKDIR",
    Unlink "UNLINK",
    RmDir "RMDIR",
    Symlink "SYMLINK",
    Rename "RENAME",
    Link "LINK",
    Open "OPEN",
    Create "CREATE",
    TmpFile "TMPFILE",
    Release "RELEASE",
    OpenDir "OPENDIR",
    Read "READ",
    Write "WRITE",
    ReadDir "READDIR",
    ReadDirPlus "READDIRPLUS",
    GetXattr "GETXATTR",
    SetXattr "SETXATTR",
    ListXattr "LISTXATTR",
    RemoveXattr "REMOVEXATTR",
    StatFs "STATFS",
    Fallocate "FALLOCATE",
    Lseek "LSEEK",
    CopyFileRange "COPY_FILE_RANGE",
    Other "OTHER",
}

/// Counts the kernel's requests. Exact, so a test can hold a budget per operation.
#[derive(Debug, Default)]
pub struct Requests {
    counts: [AtomicU64; NAMES.len()],
}

impl Requests {
    pub(super) fn count(&self, operation: Operation) {
        self.counts[operation as usize].fetch_add(1, Ordering::SeqCst);
    }

    /// How many of one kind there were.
    pub(super) fn of(&self, operation: Operation) -> u64 {
        self.counts[operation as usize].load(Ordering::SeqCst)
    }

    /// The count of every kind that was asked at least once, by its name in
    /// the FUSE protocol.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        NAMES.iter().copied().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// All requests together. Each inode of a batched `FORGET` counts.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}
