//! Another try, after a growing pause, of what may succeed a moment later.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

use super::error::Error;

/// Longest pause that a server's `Retry-After` can ask for. Longer waits are the user's
/// to decide on.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// Longest pause of our own.
const DELAY_MAX: Duration = Duration::from_secs(20);

/// How often and how fast to try again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// Tries after the first.
    pub(super) retries: u32,
    /// First pause; doubles each time.
    pub(super) delay: Duration,
}

/// The pauses of one operation; counts its failures.
pub(super) struct Patience {
    pauses: backon::ExponentialBackoff,
}

impl Policy {
    /// Begins an operation.
    pub(super) fn patience(self) -> Patience {
        let pauses = ExponentialBuilder::new()
            .with_min_delay(self.delay)
            .with_max_delay(DELAY_MAX.max(self.delay))
            .with_factor(2.0)
            .with_jitter()
            .with_max_times(usize::try_from(self.retries).unwrap_or(usize::MAX))
            .build();
        Patience { pauses }
    }

    /// Runs `attempt` until it succeeds, fails for good or the tries are used up; gives the
    /// last error.
    pub(super) async fn run<T>(
        self,
        mut attempt: impl AsyncFnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut patience = self.patience();
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => patience.pause(error).await?,
            }
        }
    }
}

impl Patience {
    /// Waits before the next try, or gives the error back when it is final.
    pub(super) async fn pause(&mut self, error: Error) -> Result<(), Error> {
        if error.is_transient() { self.rest(error).await } else { Err(error) }
    }

    /// Waits before the next try, whatever the error is; gives it back once the tries
    /// are used up.
    pub(super) async fn rest(&mut self, error: Error) -> Result<(), Error> {
        let Some(own) = self.pauses.next() else { return Err(error) };
        let pause = match error.retry_after() {
            Some(asked) if asked > RETRY_AFTER_MAX => return Err(error),
            Some(asked) => asked.max(own),
            None => own,
        };
        tracing::warn!("{error}; trying again in {:.1} s", pause.as_secs_f64());
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
