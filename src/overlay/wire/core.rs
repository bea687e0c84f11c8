//! From request to answer: which operation of the overlay it is.

use std::sync::Arc;

use rustix::fs::StatVfs;
use zerocopy::FromBytes;
use zerocopy::IntoBytes;

use super::Agreement;
use super::abi;
use super::abi::HEADER_OUT;
use super::abi::HeaderIn;
use super::reply;
use super::reply::Done;
use super::reply::Listing;
use super::reply::Long;
use super::reply::Reply;
use super::reply::Short;
use super::request::Request;
use super::set_id;
use super::set_id::Doubts;
use crate::overlay::Overlay;
use crate::overlay::answer;
use crate::overlay::errno::Answer;
use crate::overlay::inode::Attributes;
use crate::overlay::inode::Ino;
use crate::overlay::kernel::Operation;
use crate::overlay::ops::Change;
use crate::overlay::ops::NewNode;
use crate::overlay::passthrough::Opening;
use crate::overlay::rendezvous::Rendezvous;
use crate::overlay::table::CAPABILITY;
use crate::overlay::watchdog::Alarm;
use crate::tree::Device;
use crate::tree::Kind;

/// What answers the requests of one mount, for all of its threads.
#[derive(Debug)]
pub(in crate::overlay) struct Core {
    overlay: Arc<Overlay>,
    /// Where the threads meet, if they do.
    rendezvous: Option<Arc<Rendezvous>>,
    agreement: Agreement,
    doubts: Doubts,
    alarm: Alarm,
}

type Outcome<T> = Result<T, i32>;

/// An answer out of few bytes, or the error.
fn short(result: Outcome<Short>) -> Reply {
    result.map_or_else(Reply::Error, Reply::Short)
}

fn entry(result: Outcome<Attributes>) -> Reply {
    short(result.map(|attributes| Short::new(&reply::entry_out(&attributes))))
}

fn empty(result: Outcome<()>) -> Reply {
    short(result.map(|()| Short::empty()))
}

impl Core {
    /// For a mount of `overlay`.
    pub(in crate::overlay) fn new(
        overlay: Arc<Overlay>,
        rendezvous: Option<Arc<Rendezvous>>,
        agreement: Agreement,
    ) -> Self {
        Self { overlay, rendezvous, agreement, doubts: Doubts::default(), alarm: Alarm::default() }
    }

    /// What the watchdog of the mount has to look at.
    pub(in crate::overlay) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// A thread that answers ends, as the mount does, or by a mistake: then the mount is
    /// cut off, since nobody may wait for ever.
    pub(in crate::overlay) fn ended<T, E>(&self, how: Result<T, E>) -> Result<T, E> {
        if how.is_err() {
            self.alarm.raise();
        }
        how
    }

    /// Answers a whole request in `message`; the answer with its header goes to `out`.
    /// Gives its length, or `None` if none is due.
    pub(in crate::overlay) fn serve(&self, message: &[u8], out: &mut [u8]) -> Option<usize> {
        let Ok((header, body)) = HeaderIn::read_from_prefix(message) else {
            tracing::warn!(bytes = message.len(), "the kernel sent less than a header");
            return None;
        };
        let (head, payload) = out.split_at_mut_checked(HEADER_OUT)?;
        let done = if header.len as usize == message.len() {
            let (first, tail) = body.split_at(abi::head_size(header.opcode).min(body.len()));
            self.finish(self.begin(&header, first, tail), payload)
        } else {
            Done::error(libc::EIO)
        };
        let answer = done.header(header.unique)?;
        answer.write_to(head).ok()?;
        Some(answer.len as usize)
    }

    /// Does what the request in `header`, `head` and `tail` asks, as far as it needs
    /// the request.
    pub(in crate::overlay) fn begin(&self, header: &HeaderIn, head: &[u8], tail: &[u8]) -> Reply {
        match Request::decode(header, head, tail) {
            Ok(request) => self.dispatch(header, request),
            Err(error) => {
                tracing::warn!(%error, opcode = header.opcode, len = header.len, "in /dev/fuse");
                self.overlay.requests().count(Operation::Other);
                Reply::Error(libc::EIO)
            }
        }
    }

    /// Does the rest, and puts the answer behind its header into `out`.
    pub(in crate::overlay) fn finish(&self, reply: Reply, out: &mut [u8]) -> Done {
        let overlay = &self.overlay;
        let made = match reply {
            Reply::Nothing => return Done::Nothing,
            Reply::Error(number) => return Done::error(number),
            Reply::Short(short) => return short.put(out),
            Reply::Long(Long::Value(value)) => return reply::put(&value, out),
            Reply::Long(Long::Read { node, offset, size }) => {
                let room = out.len().min(size as usize);
                overlay.answer(Operation::Read, |overlay| {
                    overlay.op_read(node, offset, &mut out[..room])
                })
            }
            Reply::Long(Long::ReadDir { node, offset, size }) => {
                let mut listing = Listing::new(out, size);
                let listed = overlay.answer(Operation::ReadDir, |overlay| {
                    overlay.op_readdir(node, offset, |entry| listing.add(&entry, None))
                });
                listed.map(|()| listing.len())
            }
            Reply::Long(Long::ReadDirPlus { node, offset, size }) => {
                let mut listing = Listing::new(out, size);
                let listed = overlay.answer(Operation::ReadDirPlus, |overlay| {
                    overlay.op_readdirplus(node, offset, |entry, attributes| {
                        listing.add(&entry, Some(attributes))
                    })
                });
                listed.map(|()| listing.len())
            }
        };
        made.map_or_else(Done::error, |length| Done::Answer { error: 0, length })
    }

    fn dispatch(&self, header: &HeaderIn, request: Request<'_>) -> Reply {
        let overlay = &self.overlay;
        match request {
            Request::Lookup { parent, name } => {
                let found = overlay
                    .answer(Operation::Lookup, |overlay| overlay.op_lookup(parent, name))
                    .map(|found| found.map_or_else(reply::no_entry, |it| reply::entry_out(&it)));
                short(found.map(|entry| Short::new(&entry)))
            }
            Request::Forget { node, count } => self.forget([(node, count)]),
            Request::ForgetSome(forgets) => self.forget(forgets.iter()),
            Request::GetAttr { node } => {
                let found = overlay.answer(Operation::GetAttr, |overlay| overlay.op_getattr(node));
                short(found.map(|attributes| Short::new(&reply::attr_out(&attributes))))
            }
            Request::SetAttr { node, change, kills_set_id } => {
                let changed = self.set_attributes(header, node, &change, kills_set_id);
                short(changed.map(|attributes| Short::new(&reply::attr_out(&attributes))))
            }
            Request::ReadLink { node } => {
                match overlay.answer(Operation::ReadLink, |overlay| overlay.op_readlink(node)) {
                    Ok(target) => Reply::Long(Long::Value(target)),
                    Err(number) => Reply::Error(number),
                }
            }
            Request::Symlink { parent, name, target } => {
                let new = NewNode { target, ..new_node(header, Kind::Symlink, 0o777) };
                entry(overlay.answer(Operation::Symlink, |it| it.op_make(parent, name, &new)))
            }
            Request::MkNod { parent, name, mode, device } => {
                entry(overlay.answer(Operation::MkNod, |overlay| {
                    let kind = answer::kind_of(mode)?;
                    let mut new = new_node(header, kind, mode);
                    if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
                        new.device = answer::unpacked_device(device);
                    }
                    overlay.op_make(parent, name, &new)
                }))
            }
            Request::MkDir { parent, name, mode } => {
                let new = new_node(header, Kind::Directory, mode);
                entry(overlay.answer(Operation::MkDir, |it| it.op_make(parent, name, &new)))
            }
            Request::TmpFile { parent, mode, flags } => {
                let new = new_node(header, Kind::File, mode);
                let is_linkable = flags & libc::O_EXCL == 0;
                let made = overlay.answer(Operation::TmpFile, |overlay| {
                    let made = overlay.op_make_nameless(parent, &new, is_linkable)?;
                    if !self.agreement.passes_through {
                        return Ok((made, None));
                    }
                    let (made, opening) = overlay.op_open_nameless(&made, writes(flags))?;
                    Ok((made, Some(opening)))
                });
                short(made.map(|(made, opening)| Short::new(&reply::create_out(&made, opening))))
            }
            Request::Unlink { parent, name } => {
                empty(overlay.answer(Operation::Unlink, |it| it.op_unlink(parent, name)))
            }
            Request::RmDir { parent, name } => {
                empty(overlay.answer(Operation::RmDir, |it| it.op_rmdir(parent, name)))
            }
            Request::Rename { from, to, flags } => {
                empty(overlay.answer(Operation::Rename, |overlay| {
                    overlay.op_rename(from, to, answer::rename_mode(flags)?)
                }))
            }
            Request::Link { node, parent, name } => {
                entry(overlay.answer(Operation::Link, |it| it.op_link(node, parent, name)))
            }
            Request::Read { node, offset, size } => Reply::Long(Long::Read { node, offset, size }),
            Request::ReadDir { node, offset, size } => {
                Reply::Long(Long::ReadDir { node, offset, size })
            }
            Request::ReadDirPlus { node, offset, size } => {
                Reply::Long(Long::ReadDirPlus { node, offset, size })
            }
            Request::Write { node, offset, data, flags } => {
                self.write(header, node, offset, data, flags)
            }
            Request::StatFs => {
                let found = overlay.answer(Operation::StatFs, Overlay::op_statfs);
                short(found.map(|stat: StatVfs| Short::new(&reply::statfs_out(&stat))))
            }
            Request::Open { .. } if !self.agreement.passes_through => {
                Reply::Error(overlay.refuse(Operation::Open))
            }
            Request::Create { .. } if !self.agreement.passes_through => {
                Reply::Error(overlay.refuse(Operation::Create))
            }
            Request::Open { node, flags } => self.open(node, writes(flags)),
            Request::Create { parent, name, mode, flags } => {
                let new = new_node(header, Kind::File, mode);
                let made = overlay.answer(Operation::Create, |overlay| {
                    overlay.op_create(parent, name, &new, writes(flags))
                });
                short(
                    made.map(|(made, opening)| {
                        Short::new(&reply::create_out(&made, Some(opening)))
                    }),
                )
            }
            Request::Release { node } if self.agreement.passes_through => {
                empty(overlay.answer(Operation::Release, |overlay| {
                    overlay.op_release(node);
                    Ok(())
                }))
            }
            Request::Release { .. } | Request::ReleaseDir => {
                overlay.requests().count(Operation::Release);
                Reply::Short(Short::empty())
            }
            Request::SetXattr { node, name, value, flags } => {
                self.doubts.settle(node);
                empty(overlay.answer_setxattr(node, name, value, flags))
            }
            Request::GetXattr { node, name, size } => self.get_xattr(node, name, size),
            Request::ListXattr { node, size } => {
                let listed =
                    overlay.answer(Operation::ListXattr, |overlay| overlay.op_listxattr(node));
                listed.map_or_else(Reply::Error, |names| reply::xattr(names, size))
            }
            Request::RemoveXattr { node, name } => {
                let removed = overlay
                    .answer(Operation::RemoveXattr, |overlay| overlay.op_removexattr(node, name));
                if removed.is_ok() && name == CAPABILITY {
                    self.doubts.uncapped(node, header.pid);
                } else {
                    self.doubts.settle(node);
                }
                empty(removed)
            }
            Request::Fallocate { node, offset, length, mode } => {
                empty(self.change_content(header, Operation::Fallocate, node, |overlay| {
                    overlay.op_fallocate(node, offset, length, answer::space(mode)?)
                }))
            }
            Request::Lseek { node, offset, whence } => {
                let found =
                    overlay.answer(Operation::Lseek, |overlay| overlay.seek(node, offset, whence));
                short(
                    found.map(|offset| {
                        Short::new(&abi::LseekOut { offset: offset.cast_unsigned() })
                    }),
                )
            }
            Request::Copy { from, to, length, is_wide } => {
                let copied = self.change_content(header, Operation::CopyFileRange, to.0, |it| {
                    it.op_copy(from, to, length)
                });
                short(copied.map(|bytes| {
                    if is_wide {
                        return Short::new(&abi::CopyFileRangeOut { bytes });
                    }
                    // No copy is longer than 32 bits can say.
                    Short::new(&abi::WriteOut { size: bytes as u32, padding: 0 })
                }))
            }
            Request::Ioctl => {
                overlay.requests().count(Operation::Other);
                Reply::Error(libc::ENOTTY)
            }
            Request::Destroy => Reply::Short(Short::empty()),
            // Answers come at once: nothing is worth interrupting, and ENOSYS says so.
            Request::Interrupt => Reply::Error(libc::ENOSYS),
            Request::Unserved(operation) => Reply::Error(overlay.refuse(operation)),
        }
    }

    fn forget(&self, nodes: impl IntoIterator<Item = (Ino, u64)>) -> Reply {
        for (node, count) in nodes {
            self.doubts.settle(node);
            let _: Outcome<()> = self.overlay.answer(Operation::Forget, |overlay| {
                overlay.op_forget(node, count);
                Ok(())
            });
        }
        Reply::Nothing
    }

    fn get_xattr(&self, node: Ino, name: &[u8], size: u32) -> Reply {
        if let Some(rendezvous) = &self.rendezvous
            && rendezvous.is_meant(name)
        {
            return Reply::Error(if rendezvous.meet() { libc::ENODATA } else { libc::EIO });
        }
        self.doubts.settle(node);
        let found =
            self.overlay.answer(Operation::GetXattr, |overlay| overlay.op_getxattr(node, name));
        found.map_or_else(Reply::Error, |value| reply::xattr(value, size))
    }

    /// What the kernel was told of the file's attributes, as good forever, isn't any more
    /// if programs may write to it without a word.
    fn open(&self, node: Ino, writes: bool) -> Reply {
        let opened = self.overlay.answer(Operation::Open, |it| it.op_open(node, writes));
        if writes && matches!(opened, Ok(Opening::Through(_))) {
            self.overlay.drop_attributes(node);
        }
        short(opened.map(|opening| Short::new(&reply::open_out(opening))))
    }

    /// Set-id bits go where the kernel says so, and with a change that names nothing;
    /// see `set_id.rs` for what that means. The answer has the mode, so that the
    /// kernel need not be told besides.
    fn set_attributes(
        &self,
        header: &HeaderIn,
        node: Ino,
        change: &Change,
        kills_set_id: bool,
    ) -> Outcome<Attributes> {
        self.overlay.answer(Operation::SetAttr, |overlay| {
            let attributes = overlay.op_setattr(node, change)?;
            let names_nothing = change.names_nothing();
            // No WRITE follows that would say so.
            let is_kept = names_nothing
                && !kills_set_id
                && self.doubts.are_about(node)
                && overlay.is_passed_through(node)
                && set_id::may_keep(header.pid).unwrap_or(header.uid == 0);
            let is_killed = (kills_set_id || names_nothing) && !is_kept;
            let had = if is_killed { overlay.op_kill_set_id(node)? } else { None };
            if names_nothing && !kills_set_id {
                self.doubts.taken(node, header.pid, had);
            } else {
                self.doubts.settle(node);
            }
            if had.is_some() { overlay.op_getattr(node) } else { Ok(attributes) }
        })
    }

    fn write(&self, header: &HeaderIn, node: Ino, offset: u64, data: &[u8], flags: u32) -> Reply {
        // Pages of a mapping never take set-id bits away, whoever writes them back.
        let is_late = flags & abi::WRITE_CACHE != 0;
        let write = if is_late { Overlay::op_write_back } else { Overlay::op_write };
        let may_not_keep = !is_late && flags & abi::WRITE_KILL_SUIDGID != 0;
        if may_not_keep {
            self.doubts.settle(node);
        } else if !is_late {
            self.give_set_id_back(header, node);
        }
        let written = self.overlay.answer_writer(Operation::Write, node, may_not_keep, |overlay| {
            write(overlay, node, offset, data)
        });
        // A request is no longer than its buffer.
        short(written.map(|()| Short::new(&abi::WriteOut { size: data.len() as u32, padding: 0 })))
    }

    /// Runs `body`, which changes the content of `node` by another request than WRITE.
    /// Those don't say who may keep set-id bits: where they go, a SETATTR came before.
    fn change_content<T>(
        &self,
        header: &HeaderIn,
        operation: Operation,
        node: Ino,
        body: impl FnOnce(&Overlay) -> Answer<T>,
    ) -> Outcome<T> {
        if self.doubts.are_about(node) {
            if set_id::may_keep(header.pid).unwrap_or(header.uid == 0) {
                self.give_set_id_back(header, node);
            } else {
                self.doubts.settle(node);
            }
        }
        let may_not_keep = header.uid != 0 && !self.agreement.says_before_changing;
        self.overlay.answer_writer(operation, node, may_not_keep, body)
    }

    fn give_set_id_back(&self, header: &HeaderIn, node: Ino) {
        let Some(mode) = self.doubts.kept(node, header.pid) else { return };
        if matches!(self.overlay.op_give_set_id_back(node, mode), Ok(true)) {
            self.overlay.drop_attributes(node);
        }
    }
}

/// Whether open(2) with `flags` lets write.
fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// What the caller makes; `mode` may have bits of the kind.
fn new_node(header: &HeaderIn, kind: Kind, mode: u32) -> NewNode<'static> {
    NewNode {
        kind,
        mode: (mode & 0o7777) as u16,
        uid: header.uid,
        gid: header.gid,
        device: Device::default(),
        target: &[],
    }
}
