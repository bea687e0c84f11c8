//! What can go wrong with a registry, said so that a person knows what to do.
//!
//! No message holds a credential, a token or a URL: signed download URLs are secrets too.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::oci::digest::Digest;
use crate::oci::manifest::ParseManifestError;
use crate::oci::platform::Platform;

/// What was attempted, on what, and with whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Continues "cannot …": `fetch the manifest of`.
    pub operation: &'static str,
    /// Repository with tag or digest, or with a blob's digest, as the host knows it.
    pub name: String,
    /// Host and port that was asked.
    pub host: String,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {} at {}", self.operation, self.name, self.host)
    }
}

/// A refusal by the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The registry's own code: `MANIFEST_UNKNOWN`, `DENIED`, …
    pub code: Option<String>,
    /// The registry's own words, shortened.
    pub message: Option<String>,
    /// Which credentials were tried, in order, by their source: `DOCKER_AUTH_CONFIG`,
    /// `/root/.docker/config.json`, `docker-credential-gcr`, `anonymous`.
    pub tried: Vec<String>,
    /// What the server asked us to wait.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        if let Some(reason) =
            reqwest::StatusCode::from_u16(self.status).ok().and_then(|code| code.canonical_reason())
        {
            write!(f, " {reason}")?;
        }
        if let Some(code) = &self.code {
            write!(f, ", {code}")?;
        }
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        if matches!(self.status, 401 | 403) && !self.tried.is_empty() {
            write!(f, " (tried {})", self.tried.join(", "))?;
        }
        Ok(())
    }
}

/// Why there was no answer at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// The name has no address.
    Name,
    /// Nothing listens, or no route.
    Connect,
    /// The certificate or the handshake was refused by us or by them.
    Tls,
    /// Silence for longer than the time limit.
    Timeout,
    /// The connection broke after it stood.
    Broken,
}

/// A failed operation with a registry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The HTTP client or its runtime does not start.
    #[error("cannot set up the registry client")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A certificate or key given for a registry cannot be used.
    #[error("cannot use {what} {} of registry {host}", path.display())]
    Certificate {
        /// Which registry it was given for.
        host: String,
        /// `certificate`, `client certificate` or `client key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of credentials exists and cannot be used.
    #[error("cannot read the registry credentials in {origin}: {problem}")]
    Credentials {
        /// Path or environment variable.
        origin: String,
        /// Why, without any of the content.
        problem: String,
    },
    /// The registry said no.
    #[error("{subject}: {refusal}")]
    Refused {
        /// What was attempted.
        subject: Box<Subject>,
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// The server that hands out the registry's tokens said no, or gave none.
    #[error("{subject}: token server {realm}: {refusal}")]
    Token {
        /// What the token was for.
        subject: Box<Subject>,
        /// Host of the token server.
        realm: String,
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// No answer.
    #[error("{subject}: {}", describe(*.kind))]
    Unreachable {
        /// What was attempted.
        subject: Box<Subject>,
        /// In which way.
        kind: Unreachable,
        /// The cause, without the URL.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What came is not what the digest names.
    #[error("{subject}: the content has digest {actual}, not {expected}")]
    DigestMismatch {
        /// What was attempted.
        subject: Box<Subject>,
        /// The digest that was asked for or announced.
        expected: Digest,
        /// SHA-256 of the received bytes.
        actual: Digest,
    },
    /// More or fewer bytes than the descriptor or the limit says.
    #[error("{subject}: got {actual} bytes, {expected} were expected")]
    Size {
        /// What was attempted.
        subject: Box<Subject>,
        /// Bytes by the descriptor, or the limit.
        expected: u64,
        /// Bytes received until we knew.
        actual: u64,
    },
    /// An answer that breaks the protocol.
    #[error("{subject}: {problem}")]
    Protocol {
        /// What was attempted.
        subject: Box<Subject>,
        /// What is wrong with the answer.
        problem: String,
    },
    /// A manifest that we cannot use.
    #[error("{subject}")]
    Manifest {
        /// What was attempted.
        subject: Box<Subject>,
        /// Why.
        #[source]
        source: ParseManifestError,
    },
    /// The image exists, but not for the wanted platform.
    #[error("{subject}: there is no image for {wanted}, only for {}", list(.available))]
    Platform {
        /// What was attempted.
        subject: Box<Subject>,
        /// The wanted platform.
        wanted: Box<Platform>,
        /// What the index offers.
        available: Vec<Platform>,
    },
    /// What is to be pushed cannot be read.
    #[error("{subject}: cannot read the blob")]
    Source {
        /// What was attempted.
        subject: Box<Subject>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Every mirror and the registry itself failed; at least two entries, the mirrors in
    /// their order, the registry last.
    #[error("{}", failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Everywhere {
        /// One per host.
        failures: Vec<Error>,
    },
}

fn describe(kind: Unreachable) -> &'static str {
    match kind {
        Unreachable::Name => "the host name has no address",
        Unreachable::Connect => "cannot connect",
        Unreachable::Tls => "no trusted TLS connection",
        Unreachable::Timeout => "no answer in time",
        Unreachable::Broken => "the connection broke",
    }
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "no platform at all".to_owned();
    }
    platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// What the user can do about it, as a sentence; `None` when the message says it all.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { subject, refusal } => refusal_hint(subject, refusal),
            Self::Token { refusal, .. } if !matches!(refusal.status, 401 | 403) => Some(
                "the server that hands out the registry's tokens does not work; try again later"
                    .to_owned(),
            ),
            Self::Token { subject, refusal, .. } => refusal_hint(subject, refusal),
            Self::Unreachable { subject, kind, source } => {
                Some(unreachable_hint(subject, *kind, source.as_ref()))
            }
            Self::DigestMismatch { .. } | Self::Size { .. } => Some(
                "the registry, a mirror or a proxy in between changed or cut the content; \
                 nothing of it was used"
                    .to_owned(),
            ),
            Self::Manifest { source: ParseManifestError::Malformed(_), subject } => {
                Some(format!("is {} a registry, and not a web page in front of one?", subject.host))
            }
            Self::Platform { .. } => {
                Some("choose another base image or another --custom-platform".to_owned())
            }
            Self::Everywhere { failures } => failures.last().and_then(Self::hint),
            Self::Setup(_)
            | Self::Certificate { .. }
            | Self::Credentials { .. }
            | Self::Protocol { .. }
            | Self::Manifest { .. }
            | Self::Source { .. } => None,
        }
    }

    /// Whether the registry says that the thing does not exist. With mirrors: whether the
    /// last one asked, which is the registry itself, says so.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } => refusal.status == 404,
            Self::Everywhere { failures } => failures.last().is_some_and(Self::is_not_found),
            _ => false,
        }
    }

    /// Whether credentials are missing or insufficient.
    pub fn is_unauthorized(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } | Self::Token { refusal, .. } => {
                matches!(refusal.status, 401 | 403)
            }
            Self::Everywhere { failures } => failures.last().is_some_and(Self::is_unauthorized),
            _ => false,
        }
    }

    /// Whether a push failed because of what was pushed: it can't be read, or isn't
    /// what its digest says.
    pub fn is_about_content(&self) -> bool {
        match self {
            Self::Source { .. } => true,
            Self::Refused { refusal, .. } => refusal.status == 400,
            _ => false,
        }
    }

    /// Whether a push failed because the tag exists and may not be moved.
    pub fn is_immutable_tag(&self) -> bool {
        let Self::Refused { refusal, .. } = self else { return false };
        let message = refusal.message.as_deref().unwrap_or("").to_ascii_lowercase();
        message.contains("updating existing tags is not allowed")
            || (message.contains("tag") && message.contains("immutab"))
    }

    /// Whether the same request may succeed a moment later: time-outs, broken and refused
    /// connections, 408, 429 and the gateway's and server's own troubles.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } | Self::Token { refusal, .. } => {
                matches!(refusal.status, 408 | 429 | 500 | 502 | 503 | 504)
            }
            Self::Unreachable { kind, .. } => *kind != Unreachable::Tls,
            _ => false,
        }
    }

    /// What the server asked us to wait before the next attempt.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { refusal, .. } | Self::Token { refusal, .. } => refusal.retry_after,
            _ => None,
        }
    }

    /// HTTP status of a refusal by the registry.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal.status),
            _ => None,
        }
    }
}

fn refusal_hint(subject: &Subject, refusal: &Refusal) -> Option<String> {
    let host = &subject.host;
    let only_anonymous = refusal.tried.iter().all(|tried| tried == "anonymous");
    match refusal.status {
        401 | 403 if only_anonymous => Some(format!(
            "there are no credentials for {host}: add them to DOCKER_AUTH_CONFIG or to the \
             config.json in $DOCKER_CONFIG (the key under `auths` must be the host); or the \
             repository does not exist"
        )),
        401 => Some(format!("the credentials for {host} are wrong or expired")),
        403 => Some(format!(
            "the credentials for {host} are valid but not allowed to do this in this repository"
        )),
        404 if refusal.code.as_deref() == Some("NAME_UNKNOWN") => Some(format!(
            "the repository does not exist at {host}, or is private to the credentials used"
        )),
        404 => Some(format!("check the name and the tag; {host} answers, but has no such thing")),
        429 => Some(format!("{host} limits the number of requests: log in, use a mirror, or wait")),
        400 if refusal.message.as_deref().is_some_and(|text| text.contains("HTTPS")) => {
            Some(format!("{host} wants HTTPS: do not list it as insecure"))
        }
        500.. => Some(format!("{host} has trouble of its own; try again later")),
        _ => None,
    }
}

fn unreachable_hint(
    subject: &Subject,
    kind: Unreachable,
    source: &(dyn std::error::Error + 'static),
) -> String {
    let host = &subject.host;
    let cause = chain(source);
    match kind {
        Unreachable::Name => format!("check the spelling of {host} and the name servers"),
        Unreachable::Connect => {
            format!(
                "check that the registry runs at {host} and that a proxy or firewall lets it through"
            )
        }
        Unreachable::Tls if cause.contains("corrupt message") => {
            format!(
                "{host} does not speak TLS there: if it is meant to be plain HTTP, give --insecure-registry {host}"
            )
        }
        Unreachable::Tls => format!(
            "give the certificate authority with --registry-certificate {host}=/path.pem or in \
             SSL_CERT_FILE, or skip the check with --skip-tls-verify-registry {host}"
        ),
        Unreachable::Timeout => format!("{host} is too slow or a firewall drops its answers"),
        Unreachable::Broken => format!("{host} or a proxy in between closed the connection"),
    }
}

/// All causes in one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
