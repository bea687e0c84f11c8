//! What a build tells about itself while it runs, as values. `cli::report` alone
//! turns them into text.

use std::time::Duration;

use super::explain::MissReason;
use super::survey::Finding;

/// Number of a step in one build, from 1; 0 for what belongs to no step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StepNumber(pub u32);

/// Which of a process's two outputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How a step ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Its layer was in the cache.
    Cached,
    /// It ran.
    Done,
    /// It isn't in the cache, and nothing was to be run.
    Absent,
    /// It failed.
    Failed,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Which root is used and why, in one line.
    Root {
        /// `overlay`.
        root: &'static str,
        /// Transport, threads; what was not available.
        detail: String,
    },
    /// A step begins.
    Started {
        /// Its number.
        step: StepNumber,
        /// `[build 2/5] RUN make`.
        title: String,
    },
    /// Another build is at this very step: its result is waited for.
    Waiting {
        /// Its number.
        step: StepNumber,
        /// How long at most; then the step is built here as well.
        limit: Duration,
    },
    /// A step's process wrote something.
    Output {
        /// Its number.
        step: StepNumber,
        /// Where to.
        stream: Stream,
        /// What, not necessarily whole lines.
        bytes: Vec<u8>,
    },
    /// A step ended.
    Finished {
        /// Its number.
        step: StepNumber,
        /// How.
        outcome: Outcome,
        /// How long it took.
        elapsed: Duration,
    },
    /// Why a step isn't taken from the cache.
    Missed {
        /// Its number.
        step: StepNumber,
        /// The reasons, at least one.
        reasons: Vec<MissReason>,
    },
    /// Something went another way than the best one: a fallback.
    Warning(String),
    /// What the lint rules find in the Dockerfile; once, before the first step.
    Findings(Vec<Finding>),
    /// Something worth a line: a base image pulled, an image pushed.
    Note(String),
}

/// Takes what a build tells; called from several threads.
pub trait Observer: Sync {
    /// Takes one event.
    fn observe(&self, progress: Progress);
}

impl<F: Fn(Progress) + Sync> Observer for F {
    fn observe(&self, progress: Progress) {
        self(progress);
    }
}
