//! Where a build context is, as `--context` says it.

use std::fmt;
use std::path::PathBuf;

use super::Error;

/// A place that a build context comes from.
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
    /// For an empty text, and for every other `scheme://`.
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
            ("s3" | "gs" | "git" | "https", _) => {
                Err(Error::SchemeNotYet { scheme: scheme.to_owned() })
            }
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
