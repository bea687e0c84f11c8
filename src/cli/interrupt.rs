//! SIGINT and SIGTERM: the first asks the build to stop, the second ends us.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::sandbox::Cancel;

/// Exit code when interrupted, as shells have it for SIGINT.
pub(super) const INTERRUPTED: u8 = 130;

/// Starts listening in a thread of its own.
///
/// # Errors
/// When the thread or its handlers can't be set up.
pub(super) fn listen(interrupted: Arc<AtomicBool>, cancel: Arc<Cancel>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = runtime.block_on(async {
        Ok::<_, std::io::Error>((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ))
    })?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if interrupted.swap(true, Ordering::Relaxed) {
                    // Every mount goes with our mount namespace.
                    #[expect(clippy::disallowed_methods, reason = "the door; asked twice")]
                    std::process::exit(i32::from(INTERRUPTED));
                }
                cancel.cancel();
            }
        });
    })?;
    Ok(())
}
