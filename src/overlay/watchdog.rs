//! Cuts a mount off when the server doesn't answer any more.
//!
//! A program that waits for an answer can't be killed, and with it the step, the
//! builder and the machine's shutdown hang. So each request under way is known, and one
//! that takes minutes ends the mount: whoever waits gets an error.
//!
//! What counts is how often in a row the watchdog has found a request under way, not how
//! long by the clock: a builder that was stopped (SIGSTOP, `docker pause`, a frozen
//! cgroup) answered nothing meanwhile, and nothing is wrong with it. While it is stopped
//! the watchdog doesn't look either.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::TryLockError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use super::Overlay;

/// How long a request may take, if nobody says otherwise: they read or write at most
/// a mebibyte of a local disk.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// How often a request is found under way before its time is up.
const LOOKS: u32 = 4;

/// More threads than mounts have, except on the largest machines.
const SLOTS: usize = 512;

/// The requests under way.
#[derive(Debug)]
pub(super) struct Pulse {
    /// For each thread the number of its request, counted by itself; 0 if it has none.
    under_way: [AtomicU64; SLOTS],
}

/// Raised when there are requests of a mount that nobody will answer. It is the mount's
/// own: a thread of an earlier one may end late.
#[derive(Clone, Debug, Default)]
pub(super) struct Alarm(Arc<AtomicBool>);

impl Alarm {
    /// A thread that should answer ends before the mount does.
    pub(super) fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

thread_local! {
    /// The slot of this thread. If there are too many, some share one, and a stuck
    /// thread may hide behind a busy one.
    static SLOT: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS
    };
    /// Requests that this thread has begun.
    static BEGUN: Cell<u64> = const { Cell::new(0) };
}

impl Default for Pulse {
    fn default() -> Self {
        Self { under_way: [const { AtomicU64::new(0) }; SLOTS] }
    }
}

impl Pulse {
    /// A request begins in this thread; it ends when the value is dropped.
    pub(super) fn begin(&self) -> UnderWay<'_> {
        let slot = &self.under_way[SLOT.with(|slot| *slot)];
        BEGUN.set(BEGUN.get() + 1);
        slot.store(BEGUN.get(), Ordering::Relaxed);
        UnderWay(slot)
    }
}

/// A request that is being answered.
pub(super) struct UnderWay<'a>(&'a AtomicU64);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// What was under way when somebody last looked.
struct Watch {
    /// For each slot the number of the request, and how often in a row it was there.
    seen: Vec<(u64, u32)>,
}

impl Watch {
    fn new() -> Self {
        Self { seen: vec![(0, 0); SLOTS] }
    }

    /// Looks again; gives how often in a row the oldest request has been found by now.
    fn look(&mut self, pulse: &Pulse) -> u32 {
        let mut most = 0;
        for (slot, (number, times)) in pulse.under_way.iter().zip(&mut self.seen) {
            let found = slot.load(Ordering::Relaxed);
            *times = match found {
                0 => 0,
                same if same == *number => *times + 1,
                _ => 1,
            };
            *number = found;
            most = most.max(*times);
        }
        most
    }
}

/// Watches one mount until it is dropped.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// Hung up when the watch ends.
    _end: SyncSender<()>,
}

impl Watchdog {
    /// Calls `cut` once, in a thread of its own, when a request of `overlay` has taken
    /// longer than `patience`, or `alarm` was raised.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(
        overlay: &Arc<Overlay>,
        alarm: Alarm,
        patience: Duration,
        cut: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (end, wait) = std::sync::mpsc::sync_channel(0);
        let overlay = Arc::clone(overlay);
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut watch = Watch::new();
            while wait.recv_timeout(patience / LOOKS) == Err(RecvTimeoutError::Timeout) {
                // The first time says nothing about how long it has been there.
                if alarm.is_raised() || watch.look(&overlay.pulse) > LOOKS {
                    tracing::error!("the overlay does not answer a request; its mount is cut off");
                    // Before anybody learns of it; and once more, if a request that ends
                    // by it had the lock.
                    give_up_the_log(&overlay);
                    cut();
                    give_up_the_log(&overlay);
                    return;
                }
            }
        })?;
        Ok(Self { _end: end })
    }
}

/// What programs meant to write is lost, so the log doesn't say all. Whoever holds the
/// lock may be what is stuck: then nobody will get at the log either.
fn give_up_the_log(overlay: &Overlay) {
    let table = match overlay.table.try_lock() {
        Ok(table) => Some(table),
        Err(TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
        Err(TryLockError::WouldBlock) => None,
    };
    if let Some(mut table) = table {
        table.recorder.lose("a request was not answered, and the mount was cut off".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_that_was_found_most_often_counts() {
        let (pulse, mut watch) = (Pulse::default(), Watch::new());
        assert_eq!(watch.look(&pulse), 0);
        let request = pulse.begin();
        for times in 1..4 {
            std::thread::scope(|scope| {
                scope.spawn(|| drop(pulse.begin()));
            });
            assert_eq!(watch.look(&pulse), times);
        }
        drop(request);
        assert_eq!(watch.look(&pulse), 0);
    }

    #[test]
    fn the_next_request_of_a_thread_is_another_one() {
        let (pulse, mut watch) = (Pulse::default(), Watch::new());
        for _ in 0..4 {
            let request = pulse.begin();
            assert_eq!(watch.look(&pulse), 1);
            drop(request);
        }
    }
}
