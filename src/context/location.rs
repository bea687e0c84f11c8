//! Where a build context is, as `--context` says it.

use std::fmt;
use std::path::PathBuf;

use super::Error;
use crate::address::GitAddress;
use crate::address::HttpAddress;
use crate::address::Remote;
use crate::address::is_commit;

/// A place that a build context comes from: this machine or another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// This machine.
    Local(Location),
    /// A git repository.
    Git(GitAddress),
    /// `git://` as kaniko means it: the scheme says only that it is git. How it is
    /// reached is decided elsewhere (`GIT_PULL_METHOD`).
    KanikoGit(GitAddress),
    /// An archive behind a URL.
    Http(HttpAddress),
}

impl Place {
    /// Reads a value of `--context` or `--build-context`: what [`Location::parse`]
    /// reads, the address of a repository, or a URL.
    ///
    /// # Errors
    /// For an empty text, a malformed address, a kind of context that isn't there.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if let Some(rest) = text.strip_prefix("git://") {
            return kaniko_git(rest).map(Self::KanikoGit);
        }
        if let Some((scheme @ ("s3" | "gs"), rest)) = text.split_once("://") {
            return Err(Error::ObjectStore { scheme: scheme.to_owned(), object: rest.to_owned() });
        }
        Ok(match Remote::parse(text)? {
            None => Self::Local(Location::parse(text)?),
            Some(Remote::Git(address)) => Self::Git(address),
            Some(Remote::Http(address)) => Self::Http(address),
        })
    }
}

/// `HOST/PATH[#REF][#COMMIT]`, also with a directory or a query as in other addresses.
fn kaniko_git(rest: &str) -> Result<GitAddress, Error> {
    let mut parts = rest.splitn(3, '#');
    let place = parts.next().unwrap_or_default();
    let (reference, commit) = (parts.next(), parts.next());
    let text = match reference {
        Some(reference) => format!("git://{place}#{reference}"),
        None => format!("git://{place}"),
    };
    let mut address = GitAddress::parse(&text)?;
    if let Some(commit) = commit {
        if !is_commit(commit) {
            return Err(Error::KanikoCommit { commit: commit.to_owned() });
        }
        address.reference = Some(commit.to_owned());
    }
    Ok(address)
}

/// A place on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// A directory, used where it is.
    Directory(PathBuf),
    /// A tar file, plain or compressed by gzip or zstd.
    Archive(PathBuf),
    /// The same on standard input.
    Stdin,
}

impl Location {
    /// Reads a value of `--context`: a path or `dir://PATH`, `tar://PATH`,
    /// `tar://stdin` or `-`. Relative paths are kept as they are.
    ///
    /// # Errors
    /// For an empty text, and for every other `scheme://`. See [`Place`] for places on
    /// other machines.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
            _ => ("dir", text),
        };
        match (scheme, rest) {
            ("dir" | "tar", "") => Err(Error::NoPlace { text: text.to_owned() }),
            ("dir", path) => Ok(Self::Directory(path.into())),
            ("tar", "stdin") => Ok(Self::Stdin),
            ("tar", path) => Ok(Self::Archive(path.into())),
            _ => Err(Error::UnknownScheme { scheme: scheme.to_owned() }),
        }
    }
}

/// RFC 3986, section 3.1. Anything else before `://` is part of a path.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// As [`Location::parse`] reads it.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Archive(path) => write!(f, "tar://{}", path.display()),
            Self::Stdin => f.write_str("tar://stdin"),
        }
    }
}
