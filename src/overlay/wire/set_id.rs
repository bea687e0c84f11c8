//! Who loses set-id bits where the kernel's words have two meanings.
//!
//! A SETATTR that names nothing is sent in two cases. Either somebody changes an owner
//! to nobody in particular, or is about to write without the right to keep the bits:
//! they go. Or a file with a capability is written to, by whoever: the kernel sends
//! REMOVEXATTR for the capability and then this SETATTR, and the bits may stay. But a
//! change of owner takes a capability away with REMOVEXATTR, too. What tells the last
//! two apart is what follows: a WRITE that says that its writer may keep the bits, from
//! the same thread, with nothing else of the kernel's about this file in between. So
//! the bits go at once and come back with that WRITE. FALLOCATE and COPY_FILE_RANGE say
//! nothing about their caller; there his capabilities are looked up, which is possible
//! because he waits, and worth it because it hardly ever happens.
//!
//! The kernel asks for the capability again before the next write, except behind that
//! SETATTR. So a change of owner and a write behind it are never taken for one.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use crate::overlay::inode::Ino;

/// How many threads may be between REMOVEXATTR and WRITE at a time; beyond that the
/// oldest is taken for a change of owner.
const LIMIT: usize = 64;

/// What a thread did to a file just now.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    node: Ino,
    thread: u32,
    /// The mode before bits were taken from it; `None`: only the capability is gone.
    mode: Option<u16>,
}

/// Files whose set-id bits may have to come back.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    list: Mutex<Vec<Doubt>>,
    /// Length of the list, to be asked without the lock: it nearly always is 0.
    count: AtomicUsize,
}

impl Doubts {
    fn change<T>(&self, change: impl FnOnce(&mut Vec<Doubt>) -> T) -> T {
        let mut list: MutexGuard<'_, _> = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut list);
        self.count.store(list.len(), Ordering::Release);
        result
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// `thread` took the capability of `node`.
    pub(super) fn uncapped(&self, node: Ino, thread: u32) {
        self.change(|list| {
            list.retain(|doubt| doubt.node != node);
            if list.len() == LIMIT {
                list.remove(0);
            }
            list.push(Doubt { node, thread, mode: None });
        });
    }

    /// A SETATTR of `thread` that names nothing took bits from `node`, which had `mode`.
    pub(super) fn taken(&self, node: Ino, thread: u32, mode: Option<u16>) {
        if self.is_empty() {
            return;
        }
        self.change(|list| {
            let place = list.iter().position(|doubt| doubt.node == node);
            let Some(place) = place else { return };
            let doubt = &mut list[place];
            if doubt.thread == thread && doubt.mode.is_none() && mode.is_some() {
                doubt.mode = mode;
            } else {
                list.remove(place);
            }
        });
    }

    /// `thread` writes to `node` and may keep set-id bits: the mode that it kept, if it
    /// was taken away.
    pub(super) fn kept(&self, node: Ino, thread: u32) -> Option<u16> {
        if self.is_empty() {
            return None;
        }
        self.change(|list| {
            let place = list.iter().position(|doubt| doubt.node == node)?;
            let doubt = list.remove(place);
            doubt.mode.filter(|_| doubt.thread == thread)
        })
    }

    /// Whether bits of `node` may have to come back.
    pub(super) fn are_about(&self, node: Ino) -> bool {
        !self.is_empty() && self.change(|list| list.iter().any(|doubt| doubt.node == node))
    }

    /// Something else was asked about `node`.
    pub(super) fn settle(&self, node: Ino) {
        if !self.is_empty() {
            self.change(|list| list.retain(|doubt| doubt.node != node));
        }
    }
}

/// The first user namespace (`PROC_USER_INIT_INO`): a capability in another one doesn't
/// let anybody keep set-id bits.
const FIRST_NAMESPACE: &str = "user:[4026531837]";
/// Number of CAP_FSETID (capability.h).
const FSETID: u32 = 4;

/// Whether a thread that waits for us has CAP_FSETID; `None` if that can't be known.
pub(super) fn may_keep(thread: u32) -> Option<bool> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let namespace = fs::read_link(format!("/proc/{thread}/ns/user")).ok()?;
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let capabilities = u64::from_str_radix(capabilities.trim(), 16).ok()?;
    let is_first = namespace == Path::new(FIRST_NAMESPACE);
    Some(is_first && capabilities & (1 << FSETID) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_behind_the_loss_of_a_capability_keeps_the_mode() {
        let doubts = Doubts::default();
        doubts.uncapped(7, 1);
        doubts.taken(7, 1, Some(0o4755));
        assert_eq!(doubts.kept(7, 1), Some(0o4755));
        assert_eq!(doubts.kept(7, 1), None);
    }

    #[test]
    fn a_write_of_another_thread_or_after_another_request_keeps_nothing() {
        let doubts = Doubts::default();
        doubts.uncapped(7, 1);
        doubts.taken(7, 1, Some(0o4755));
        assert_eq!(doubts.kept(7, 2), None);
        doubts.uncapped(7, 1);
        doubts.taken(7, 1, Some(0o4755));
        doubts.settle(7);
        assert_eq!(doubts.kept(7, 1), None);
    }

    #[test]
    fn bits_that_went_without_a_capability_do_not_come_back() {
        let doubts = Doubts::default();
        doubts.taken(7, 1, Some(0o4755));
        assert_eq!(doubts.kept(7, 1), None);
        doubts.uncapped(7, 1);
        doubts.taken(7, 2, Some(0o4755));
        assert_eq!(doubts.kept(7, 1), None);
    }

    #[test]
    fn what_nobody_settles_is_bounded() {
        let doubts = Doubts::default();
        (0..1000).for_each(|node| doubts.uncapped(node, node));
        assert_eq!(doubts.count.load(Ordering::Acquire), LIMIT);
        doubts.taken(999, 999, Some(0o2755));
        assert_eq!(doubts.kept(999, 999), Some(0o2755));
    }
}
