//! Looks at a whole context with several threads: nearly all of an unchanged build's
//! time is `statx`, which the kernel answers on all cores at once.
//!
//! Like those of [`digest`](super::digest), the threads end before the call returns.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::ContextTree;
use crate::tree::NodeId;

/// Directories that are still to be listed.
struct Queue {
    waiting: Vec<NodeId>,
    /// Those that a thread is listing: more may come of them.
    running: usize,
    failed: Option<io::Error>,
}

impl ContextTree {
    /// Reads all that is below `node` with `threads` threads, so that asking for it
    /// costs nothing more. Nothing is opened but directories.
    ///
    /// # Errors
    /// That of a directory or name that can't be read; which one, if there are
    /// several, is not defined.
    pub fn scan(&self, node: NodeId, threads: NonZeroUsize) -> io::Result<()> {
        let queue = Mutex::new(Queue { waiting: vec![node], running: 0, failed: None });
        let more = Condvar::new();
        let work = || {
            let mut state = lock(&queue);
            loop {
                let Some(next) = state.waiting.pop() else {
                    if state.running == 0 {
                        return;
                    }
                    state = more.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                };
                state.running += 1;
                drop(state);
                let found = self.directories_in(next);
                state = lock(&queue);
                state.running -= 1;
                match found {
                    Ok(found) if state.failed.is_none() => state.waiting.extend(found),
                    Ok(_) => {}
                    Err(error) => {
                        state.waiting.clear();
                        state.failed.get_or_insert(error);
                    }
                }
                more.notify_all();
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.get() {
                scope.spawn(work);
            }
            work();
        });
        let queue = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        queue.failed.map_or(Ok(()), Err)
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}
