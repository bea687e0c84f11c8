//! The overlay: a root filesystem over image layers that records what is written.
//!
//! One inode table in memory is the filesystem. Names and metadata of the layers
//! below come from their indexes when they are asked for, contents from their blobs;
//! nothing is unpacked, and an overlay over a million files is made as quickly as
//! one over ten. What is written goes to a log and flat files without names, and
//! every change is noted when it happens: which entries and nodes were touched, and
//! how they were before. So the trees [`before`](Overlay::before) and
//! [`after`](Overlay::after) a step exist at the same time, and the
//! [`log`](Overlay::log) says where to compare them.
//!
//! ```text
//! mark ─ make_stub_… ─ [process in the mount | edits] ─ sync ─ remove_stubs ─ log, before, after ─ mark …
//! ```
//!
//! It changes in two ways: through a mount ([`Overlay::mount`]), where programs run,
//! and by calls in this process, which is how COPY, ADD and WORKDIR work. The calls
//! need no mount; a live mount sees them, because they drop what the kernel cached.
//!
//! What must hold:
//! - A [`Content`](crate::tree::Content) handed out never changes, whatever is written later.
//! - [`log`](Overlay::log) names everything that differs between before and after,
//!   or says that it lost something.
//! - One lock, the table's, held for microseconds. No content is read or written and
//!   no kernel is notified while it is held. Order: table, then kernel handle.
//! - A thread that answers the kernel never touches the mount it serves.
//!
//! To read it: `inode.rs`, `table.rs`, `ops.rs`; `recorder.rs` and `view.rs` for
//! before and after; `extent.rs` and `upper.rs` for bytes; `edit.rs` and `stub.rs`
//! for calls; `session.rs` and `watchdog.rs` for the mount, `transport.rs` for how
//! requests come, `wire.rs` (or `fuse.rs`) for what they say, and `passthrough.rs` for
//! what doesn't come as a request.

mod acl;
mod answer;
mod content;
mod device;
mod edit;
mod errno;
mod extent;
mod fuse;
mod inode;
mod kernel;
mod lower;
mod ops;
mod passthrough;
mod recorder;
mod rendezvous;
mod ring;
mod session;
mod stub;
mod table;
#[cfg(test)]
mod tests;
mod transport;
mod upper;
mod view;
mod watchdog;
mod wire;

pub use edit::Attributes;
pub use edit::Follow;
pub use edit::Place;
pub use kernel::Requests;
pub use lower::Lower;
pub use session::MountError;
pub use session::MountOptions;
pub use session::Session;
pub use session::open_device;
pub use session::try_mount;
pub use stub::Stubs;
pub use transport::RING_SWITCH;
pub use transport::Transport;
pub use transport::is_ring_switched_on;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use kernel::Kernel;
use table::Table;
use view::Side;
use view::View;
use watchdog::Pulse;

use crate::change::Change;
use crate::change::ChangeLog;
use crate::change::ChangeSet;
use crate::tree::Kind;
use crate::tree::Tree;

/// A root filesystem; see the head of this file.
pub struct Overlay {
    table: Mutex<Table>,
    /// The mount, while there is one.
    kernel: Mutex<Option<Arc<dyn Kernel>>>,
    requests: Requests,
    pulse: Pulse,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").finish_non_exhaustive()
    }
}

impl Overlay {
    /// An overlay over `lowers`, bottom first. What is written goes to unnamed files
    /// in the directory `scratch`, which should be on a disk with room; they vanish
    /// with the overlay and everything it handed out.
    ///
    /// # Errors
    /// When `scratch` can't be opened.
    pub fn new(lowers: Vec<Lower>, scratch: &Path) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            table: Mutex::new(Table::new(lowers, scratch)?),
            kernel: Mutex::new(None),
            requests: Requests::default(),
            pulse: Pulse::default(),
        }))
    }

    /// Begins a step: what is there now is *before*, and the log is empty. Takes time
    /// for what the last step changed, not for what is there.
    pub fn mark(&self) {
        let copies = self.copies();
        self.table().mark(copies);
    }

    /// What was touched since the mark. Remove stubs first.
    pub fn log(&self) -> ChangeLog {
        self.table().recorder.log()
    }

    /// The tree as it was at the last mark. Nodes that are in both trees have the
    /// same id. Stays true until the next mark.
    pub fn before(&self) -> Box<dyn Tree + '_> {
        Box::new(View { overlay: self, side: Side::Before })
    }

    /// The tree as it is.
    pub fn after(&self) -> Box<dyn Tree + '_> {
        Box::new(View { overlay: self, side: Side::After })
    }

    /// The same as [`Overlay::after`], for readers that know no step.
    pub fn tree(&self) -> Box<dyn Tree + '_> {
        self.after()
    }

    /// Lets the contents of `set` come out of the layer that was made of it, which
    /// frees the space they had here. A file that changed since is left alone, so
    /// this may run while the next step does. Idempotent.
    pub fn settle(&self, set: &ChangeSet, layer: Lower) {
        let index = Arc::clone(&layer.index);
        let number = self.table().add_settled(layer);
        for change in &set.changes {
            let Change::Put(put) = change else { continue };
            let (Some(content), Kind::File) = (&put.content, put.stat.kind) else { continue };
            let (Ok(ino), Some(node)) = (view::ino_of(put.node), lower::node_at(&index, &put.path))
            else {
                continue;
            };
            self.table().settle(ino, content.as_ref(), lower::Part { layer: number, node });
        }
    }

    /// How many requests of which kind the kernel sent, over all mounts.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic under the lock was caught and made the log incomplete; the table is
        // still the best there is.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kernel(&self) -> MutexGuard<'_, Option<Arc<dyn Kernel>>> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
