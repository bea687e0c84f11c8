//! The FUSE protocol as the kernel speaks it (`include/uapi/linux/fuse.h`, 7.40), over
//! nothing but bytes. Both transports of our own carry the same requests to the one
//! [`Core`] here: `device.rs` by read(2) and write(2), `ring.rs` by io_uring.
//!
//! A request comes in three parts: its header, the *head*, whose length follows from
//! the kind of request, and the *tail*: names, targets, data. The device gives them in
//! one piece; the ring gives the head and the tail in places of their own, and wants
//! the answer where the tail was. So an answer is made in two steps: what needs the
//! tail is done first ([`Core::begin`]), and what may be long is made in its place
//! ([`Core::finish`]).
//!
//! It decides what `fuse.rs` decides, and knows more: `O_TMPFILE`, and who may keep
//! set-id bits. Whatever the bytes are, nothing here panics or reads past them.
//!
//! Read `abi.rs`, `request.rs`, `reply.rs`, `core.rs`; `init.rs` is how a mount begins.

mod abi;
mod core;
mod init;
mod reply;
mod request;
mod set_id;

use super::answer::MAX_WRITE;

pub(super) use self::core::Core;
pub(super) use abi::HEADER_IN;
pub(super) use abi::HEADER_OUT;
pub(super) use abi::HeaderIn;
pub(super) use abi::HeaderOut;
pub(super) use abi::head_size;
pub(super) use init::Agreement;
pub(super) use init::Offer;
pub(super) use init::Wishes;
pub(super) use reply::drop_entry;
pub(super) use reply::drop_node;

/// Room for a request of the largest kind: a WRITE of [`MAX_WRITE`] bytes behind its
/// header and head.
pub(super) const LARGEST_REQUEST: usize = MAX_WRITE as usize + 4096;
/// Room for an answer of the largest kind: READ's.
pub(super) const LARGEST_ANSWER: usize = HEADER_OUT + MAX_WRITE as usize;
