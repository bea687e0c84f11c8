//! A value that one thread will have later and others wait for.

use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

/// A write-once cell with waiting. Cloned values come out, so make them cheap.
#[derive(Debug)]
pub struct Slot<T> {
    value: Mutex<Option<T>>,
    filled: Condvar,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { value: Mutex::new(None), filled: Condvar::new() }
    }
}

impl<T: Clone> Slot<T> {
    /// A slot that has its value already.
    pub fn ready(value: T) -> Self {
        Self { value: Mutex::new(Some(value)), filled: Condvar::new() }
    }

    /// Puts the value in; the first one stays.
    pub fn fill(&self, value: T) {
        let mut held = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(value);
        }
        self.filled.notify_all();
    }

    /// The value, if it is there.
    pub fn peek(&self) -> Option<T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the value, but not longer than `limit`.
    pub fn wait_for(&self, limit: Duration) -> Option<T> {
        let end = Instant::now() + limit;
        let mut held = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = held.as_ref() {
                return Some(value.clone());
            }
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return None;
            }
            let waited = self.filled.wait_timeout(held, rest);
            held = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the value.
    pub fn wait(&self) -> T {
        let mut held = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = held.as_ref() {
                return value.clone();
            }
            held = self.filled.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_stays_and_wakes_who_waits() {
        let slot = Slot::default();
        assert_eq!(slot.peek(), None);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| slot.wait());
            slot.fill(1);
            slot.fill(2);
            assert_eq!(waiting.join().expect("no panic"), 1);
        });
        assert_eq!(slot.peek(), Some(1));
    }
}
