//! What is left to do when the user has the result: it makes later builds faster,
//! and nobody waits for it.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;

use super::progress::Observer;
use super::shared_cache::CachePush;

/// See the module.
#[derive(Default)]
pub struct Later {
    pushes: Mutex<Vec<CachePush>>,
}

impl Later {
    /// Takes something for later.
    pub(super) fn add(&self, push: CachePush) {
        self.pushes.lock().unwrap_or_else(PoisonError::into_inner).push(push);
    }

    /// Does all of it, until `interrupted`. Fails never: what goes wrong is told.
    pub fn run(&self, observer: &dyn Observer, interrupted: &AtomicBool) {
        let pushes =
            std::mem::take(&mut *self.pushes.lock().unwrap_or_else(PoisonError::into_inner));
        for push in pushes {
            push.run(observer, interrupted);
        }
    }
}
