//! The step cache: 32-byte key → small versioned record, in a directory that any
//! number of processes share without a daemon.
//!
//! The crate knows no Dockerfile and no image; it alone names RocksDB. Contents
//! (layers, blobs) are files that somebody else keeps beside it; a record only
//! names them.
//!
//! # The directory
//!
//! ```text
//! VERSION            `yadokari cache 1`; a higher number is refused
//! spool/             finished records not yet folded, one frame a file
//! records/<n>.log    every folded record, one frame after another: the truth
//! records/folds      counter, raised by each fold; tells readers to look again
//! records/lock       held (flock) by whoever folds
//! index/             RocksDB: a view of the log, always derivable from it
//! contexts/          remembered digests of build contexts ([`contexts`])
//! places/            what was built last at a place, to explain a miss ([`places`])
//! leases/, tmp/      who is alive, and what each has in flight ([`lease`])
//! running/           steps being built, a locked file each ([`running`])
//! aside/             damaged files, out of everybody's way
//! trash/             no longer wanted, not yet deleted ([`trash`])
//! blobs/ layers/ mounts/   contents; not of this crate
//! ```
//!
//! # The protocol
//!
//! - **put** writes one frame to a file of its own, syncs it, renames it into
//!   `spool/` and syncs that directory: durable and visible to all, without any
//!   lock. Nobody ever waits for anybody.
//! - **get** looks into the spool (kept in memory; read again only when the
//!   directory's time changed), then into the index. The index is not opened
//!   before a key is asked for that the spool does not hold.
//! - **fold** tries the lock and leaves when it is held. The holder appends all
//!   spool frames to the log, syncs it, brings the index up to the log's end,
//!   raises the counter, and only then unlinks the spool files. So a record is
//!   at every instant in the spool or in the index, and a reader that looks in
//!   this order never misses one.
//! - The index remembers up to where in the log it has come, in the same batch
//!   as the records. A lost, damaged or foreign index is therefore set aside and
//!   read anew from the log; a kill between any two steps costs a repetition.
//! - Keys are write-once in meaning: two records of one key are equivalent, the
//!   later put wins.
//! - **take back** puts a frame that says "not this record any more", naming it by
//!   key *and* hash, and travels like a put. So a collector that acts on what it
//!   read a second ago can't undo what a builder has put since. When most of the
//!   log is dead, the collector writes the living records into the next log.
//! - **collect**: see [`lease`]. Records are taken back, durably, before what they
//!   name goes; what goes is renamed into `trash/` and deleted when there is time.
//!
//! Anything unreadable is a miss and a [`Notice`], never an error of the build
//! and never a panic. `tests/cache_processes.rs` of the main package kills
//! writers and lets eight processes put, get and fold at once.
//!
//! Start reading at [`Cache`].

mod aside;
mod cache;
pub mod contexts;
mod directory;
mod error;
mod frame;
mod index;
pub mod key;
pub mod lease;
pub mod places;
pub mod record;
pub mod running;
mod spool;
mod survey;
pub mod trash;
mod tree;

pub use aside::set_aside;
pub use cache::{Bucket, Cache, Fold, Folded, RecordName};
pub use contexts::{ContextDigests, ContextRoot, Fingerprint, Remembered};
pub use directory::{Access, FORMAT, prepare};
pub use error::{Error, Notice};
pub use key::{Key, KeyHasher};
pub use lease::{Collector, Lease};
pub use places::Places;
pub use record::{Record, StepRecord};
pub use running::Turn;
pub use survey::{Compacted, Seen, SeenUntil};
