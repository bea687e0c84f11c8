//! A way to know that every request the kernel has sent is answered.
//!
//! syncfs(2) starts the writing of dirty pages, but newer kernels don't wait for a
//! FUSE server to take them, and nothing else tells outside of fusectl, which
//! containers don't have. So all threads of the server are made to meet: as many
//! requests as there are threads are sent, and each is answered only when all have
//! arrived. A thread that arrives has answered what it had, and the kernel hands out
//! requests in order, so whatever was queued before the meeting is done.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a thread waits for the others. They are only kept by requests that read
/// or write at most a mebibyte each.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the threads of one mount meet.
#[derive(Debug)]
pub(super) struct Rendezvous {
    /// The extended attribute that is asked for to get here. Nobody else can know it.
    name: String,
    threads: usize,
    is_open: AtomicBool,
    arrived: Mutex<Count>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Count {
    arrived: usize,
    meeting: u64,
}

impl Rendezvous {
    /// For a server with `threads` threads.
    pub(super) fn new(threads: usize) -> Self {
        let token = RandomState::new().hash_one(threads);
        Self {
            name: format!("user.yadokari-{token:016x}"),
            threads,
            is_open: AtomicBool::new(false),
            arrived: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The attribute to ask for.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Begins or ends a meeting.
    pub(super) fn open(&self, open: bool) {
        self.is_open.store(open, Ordering::SeqCst);
        let mut count = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        count.arrived = 0;
        count.meeting += 1;
        self.changed.notify_all();
    }

    /// Whether a request for `name` is one to meet.
    pub(super) fn is_meant(&self, name: &[u8]) -> bool {
        self.is_open.load(Ordering::Relaxed) && name == self.name.as_bytes()
    }

    /// Waits until all threads are here; whether they came.
    pub(super) fn meet(&self) -> bool {
        let mut count = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        count.arrived += 1;
        self.changed.notify_all();
        let meeting = count.meeting;
        let waited = self.changed.wait_timeout_while(count, PATIENCE, |count| {
            count.meeting == meeting && count.arrived < self.threads
        });
        let (count, _) = waited.unwrap_or_else(PoisonError::into_inner);
        count.meeting == meeting && count.arrived >= self.threads
    }

    /// How many threads the server has.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }
}
