//! Cuts a mount off when the server doesn't answer any more.
//!
//! A program that waits for an answer can't be killed, and with it the step, the
//! builder and the machine's shutdown hang. So each request under way is known by when
//! it began, and one that takes minutes ends the mount: whoever waits gets an error.

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
use std::time::Instant;

use super::Overlay;

/// How long a request may take, if nobody says otherwise: they read or write at most
/// a mebibyte of a local disk.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// More threads than mounts have, except on the largest machines.
const SLOTS: usize = 512;

/// When the requests under way began.
#[derive(Debug)]
pub(super) struct Pulse {
    start: Instant,
    /// Milliseconds since `start`, and one; 0 for a thread that has nothing to answer.
    begun: [AtomicU64; SLOTS],
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
}

impl Default for Pulse {
    fn default() -> Self {
        Self { start: Instant::now(), begun: [const { AtomicU64::new(0) }; SLOTS] }
    }
}

impl Pulse {
    /// A request begins in this thread; it ends when the value is dropped.
    pub(super) fn begin(&self) -> UnderWay<'_> {
        let slot = &self.begun[SLOT.with(|slot| *slot)];
        slot.store(self.now(), Ordering::Relaxed);
        UnderWay(slot)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// How long the oldest request has been under way.
    fn longest(&self) -> Duration {
        let begun = self.begun.iter().map(|slot| slot.load(Ordering::Relaxed));
        let oldest = begun.filter(|&begun| begun > 0).min();
        Duration::from_millis(oldest.map_or(0, |begun| self.now().saturating_sub(begun)))
    }
}

/// A request that is being answered.
pub(super) struct UnderWay<'a>(&'a AtomicU64);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
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
            while wait.recv_timeout(patience / 4) == Err(RecvTimeoutError::Timeout) {
                if alarm.is_raised() || overlay.pulse.longest() > patience {
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
    fn the_oldest_request_under_way_counts() {
        let pulse = Pulse::default();
        assert_eq!(pulse.longest(), Duration::ZERO);
        let request = pulse.begin();
        while pulse.longest() < Duration::from_millis(3) {
            std::thread::yield_now();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| drop(pulse.begin()));
        });
        assert!(pulse.longest() >= Duration::from_millis(3));
        drop(request);
        assert_eq!(pulse.longest(), Duration::ZERO);
    }
}
