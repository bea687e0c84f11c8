//! Why something on another machine can't be had.

use std::io;
use std::path::PathBuf;

/// A failure to fetch. Addresses are shown without passwords.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The HTTP client can't be made.
    #[error("cannot start an HTTP client")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer.
    #[error("cannot reach {host} for {url}: {reason}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Who should have answered.
        host: String,
        /// Why there is no answer.
        reason: String,
    },
    /// An answer that is no success.
    #[error("{host} answers {status} to a request for {url}{hint}")]
    Status {
        /// What was asked for.
        url: String,
        /// Who answered.
        host: String,
        /// `404 Not Found`.
        status: String,
        /// What may help.
        hint: &'static str,
    },
    /// Redirects that lead nowhere, or where they must not.
    #[error("{url}: {reason}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A credential that no header can carry.
    #[error(
        "the credential for {host} can't be sent: it holds a line break or a control character"
    )]
    BadCredential {
        /// Whom it is for.
        host: String,
    },
    /// There is no git.
    #[error(
        "git is needed for {address}, and there is none in PATH: install git, or add the files another way"
    )]
    NoGit {
        /// The repository.
        address: String,
    },
    /// git failed.
    #[error("cannot {action} {address}: {output}")]
    Git {
        /// What was tried.
        action: &'static str,
        /// The repository.
        address: String,
        /// What git said, credentials hidden.
        output: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{address} has no branch, tag or commit `{reference}`")]
    NoReference {
        /// The repository.
        address: String,
        /// What was looked for.
        reference: String,
    },
    /// The commit isn't the one that `--checksum` asks for.
    #[error("{address} is at commit {found}, and its checksum says {expected}")]
    WrongCommit {
        /// The repository.
        address: String,
        /// The prefix asked for.
        expected: String,
        /// The commit found.
        found: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A local file or process failed.
    #[error("cannot use {path}: {source}")]
    Local {
        /// The file or program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// Whether asking again may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => {
                ["429", "500", "502", "503", "504"].iter().any(|code| status.starts_with(code))
            }
            _ => false,
        }
    }
}
