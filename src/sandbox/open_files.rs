//! How many files may be open: in the builder as many as anybody allows it, in a step as
//! many as in whatever started the builder.
//!
//! The soft limit is 1024 nearly everywhere, for programs that use select(2). The
//! builder doesn't, and holds files of many layers, steps and connections at a time.

use std::sync::OnceLock;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;

/// The soft limit before it was raised.
static BEFORE: OnceLock<u64> = OnceLock::new();

/// Raises this process's soft limit of open files to the hard one. Steps that are run
/// from here on get the soft limit that it had, or what [`Process::limits`] says.
///
/// [`Process::limits`]: super::Process::limits
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Without a soft limit there is nothing to be raised.
    if let Some(before) = limit.current
        && limit.maximum != Some(before)
        && setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).is_ok()
    {
        let _ = BEFORE.set(before);
    }
}

/// The soft limit that a step has to get back, if it was raised.
pub(super) fn before() -> Option<u64> {
    BEFORE.get().copied()
}

/// Sets this process's soft limit to what [`before`] gave in the builder.
pub(super) fn put_back(before: Option<u64>) {
    if before.is_some() {
        let limit = getrlimit(Resource::Nofile);
        // To lower it is always allowed.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: before, ..limit });
    }
}
