//! Addresses of what lies on other machines: files behind URLs and git repositories,
//! as ADD, `--context` and `--build-context` name them. Pure: asks nobody.
//!
//! The forms are BuildKit's: `https://host/file`, and for repositories
//! `https://host/repo.git`, `git://host/repo`, `ssh://user@host/repo` and
//! `user@host:repo`, each with a fragment (`#ref:subdirectory`) or a query
//! (`?branch=&tag=&ref=&commit=&checksum=&subdir=&submodules=&keep-git-dir=&mtime=`).
//!
//! Start reading at [`Remote::parse`].

use std::fmt;

use url::Url;

use crate::path::RootPath;

/// Keys of a repository's query, for the message about others.
const KEYS: &str = "ref, branch, tag, commit, checksum, subdir, submodules, keep-git-dir and mtime";

/// Name of a file whose URL has no last component, as BuildKit calls it.
const UNNAMED: &str = "__unnamed__";

/// What is wrong with an address. Never shows a password.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read as a URL.
    #[error("`{address}` is no URL: {reason}")]
    NoUrl {
        /// The address, password hidden.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A part of a repository's address is wrong.
    #[error("`{address}`: {reason}")]
    Git {
        /// The address, password hidden.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Something on another machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Remote {
    /// A file.
    Http(HttpAddress),
    /// A repository.
    Git(GitAddress),
}

/// A file behind a URL.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpAddress {
    /// Where it is; may hold a password.
    pub url: Url,
}

/// A repository and what of it is wanted.
#[derive(Clone, PartialEq, Eq)]
pub struct GitAddress {
    /// What git is given, without query and fragment; may hold a password.
    pub url: String,
    /// Branch, tag, other reference or commit; `None`: what HEAD names.
    pub reference: Option<String>,
    /// Directory to take, clean and relative; `None`: all.
    pub subdirectory: Option<String>,
    /// What the commit must begin with, in lower-case hexadecimal digits.
    pub checksum: Option<String>,
    /// Whether `.git` is wanted; `None` if not said.
    pub keep_git_dir: Option<bool>,
    /// Whether submodules are wanted; `None` if not said.
    pub submodules: Option<bool>,
    /// Whether files carry the commit's time instead of the checkout's.
    pub commit_time: bool,
}

impl Remote {
    /// Reads `text`; `None` if it is a path. `github.com/a/b` is one: it can't be told
    /// from a path.
    ///
    /// # Errors
    /// A malformed URL, an unknown key of a query, references that exclude each other.
    pub fn parse(text: &str) -> Result<Option<Self>, Error> {
        match kind(text) {
            None => Ok(None),
            Some(Kind::Git) => GitAddress::parse(text).map(Self::Git).map(Some),
            Some(Kind::Http) => {
                let url = parse_url(text)?;
                Ok(Some(Self::Http(HttpAddress { url })))
            }
        }
    }
}

fn parse_url(text: &str) -> Result<Url, Error> {
    let wrong = |reason: String| Error::NoUrl { address: redacted(text), reason };
    let url = Url::parse(text).map_err(|error| wrong(error.to_string()))?;
    match url.host_str() {
        None | Some("") => Err(wrong("it names no host".to_owned())),
        Some(_) => Ok(url),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Git,
    Http,
}

fn kind(source: &str) -> Option<Kind> {
    if ["git://", "ssh://", "git@"].iter().any(|prefix| source.starts_with(prefix)) {
        return Some(Kind::Git);
    }
    if source.starts_with("http://") || source.starts_with("https://") {
        let path = source.split(['#', '?']).next().unwrap_or_default();
        return Some(if path.ends_with(".git") { Kind::Git } else { Kind::Http });
    }
    scp_parts(source).map(|_| Kind::Git)
}

/// `user@host` and path of `user@host:path`, ssh's own form.
fn scp_parts(source: &str) -> Option<(&str, &str)> {
    let (place, path) = source.split_once(':')?;
    let (user, host) = place.split_once('@')?;
    let plain = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    (plain(user) && plain(host) && !user.starts_with('-')).then_some((place, path))
}

impl HttpAddress {
    /// The name of the file: the path's last component, percent signs decoded.
    pub fn file_name(&self) -> String {
        let last = self.url.path().rsplit('/').next().unwrap_or_default();
        let decoded = percent_decoded(last);
        match decoded.as_str() {
            "" | "." | ".." => UNNAMED.to_owned(),
            name if name.contains(['/', '\0']) => UNNAMED.to_owned(),
            name => name.to_owned(),
        }
    }
}

/// The URL without its password.
impl fmt::Display for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redacted(self.url.as_str()))
    }
}

impl fmt::Debug for HttpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpAddress({self})")
    }
}

impl GitAddress {
    /// Reads the address of a repository.
    ///
    /// # Errors
    /// As [`Remote::parse`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Git { address: redacted(text), reason };
        let (rest, fragment) = match text.split_once('#') {
            Some((rest, fragment)) => (rest, Some(fragment)),
            None => (text, None),
        };
        let (url, query) = match rest.split_once('?') {
            Some((url, query)) => (url, Some(query)),
            None => (rest, None),
        };
        if url.contains("://") {
            parse_url(url)?;
        } else if scp_parts(url).is_none_or(|(_, path)| path.is_empty()) {
            return Err(wrong("USER@HOST:PATH is expected".to_owned()));
        }
        let mut address = Self {
            url: url.to_owned(),
            reference: None,
            subdirectory: None,
            checksum: None,
            keep_git_dir: None,
            submodules: None,
            commit_time: false,
        };
        if let Some(query) = query {
            for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
                address.read(&key, &value).map_err(wrong)?;
            }
        }
        if let Some(fragment) = fragment {
            let (reference, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
            if !reference.is_empty() {
                address.set_reference(reference.to_owned()).map_err(wrong)?;
            }
            if !directory.is_empty() {
                address.set_subdirectory(directory).map_err(wrong)?;
            }
        }
        Ok(address)
    }

    fn read(&mut self, key: &str, value: &str) -> Result<(), String> {
        let flag = || match value {
            "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
            _ => Err(format!("`{value}` is wrong for `{key}`: true or false is expected")),
        };
        let given =
            || Some(value).filter(|value| !value.is_empty()).ok_or(format!("`{key}` has no value"));
        match key {
            "ref" => self.set_reference(given()?.to_owned())?,
            "branch" => self.set_reference(format!("refs/heads/{}", given()?))?,
            "tag" => self.set_reference(format!("refs/tags/{}", given()?))?,
            "subdir" => self.set_subdirectory(given()?)?,
            "commit" | "checksum" => {
                let wanted = commit_prefix(given()?)?;
                match &self.checksum {
                    Some(known) if *known != wanted => {
                        return Err("`commit` and `checksum` differ".to_owned());
                    }
                    _ => self.checksum = Some(wanted),
                }
            }
            "submodules" => self.submodules = flag()?,
            "keep-git-dir" => self.keep_git_dir = flag()?,
            "mtime" => {
                self.commit_time = match value {
                    "checkout" => false,
                    "commit" => true,
                    _ => {
                        return Err(format!(
                            "`{value}` is wrong for `mtime`: checkout or commit is expected"
                        ));
                    }
                }
            }
            // A hint for how to fetch; we choose by ourselves.
            "fetch-by-commit" => {
                flag()?;
            }
            _ => return Err(format!("`{key}` is no key of a repository: {KEYS} are known")),
        }
        Ok(())
    }

    /// Sets what is wanted of the repository, once.
    ///
    /// # Errors
    /// The message: one was set before, or it can't be one.
    pub fn set_reference(&mut self, reference: String) -> Result<(), String> {
        if self.reference.as_ref().is_some_and(|known| *known != reference) {
            return Err("more than one of ref, branch, tag and fragment is given".to_owned());
        }
        check_reference(&reference)?;
        self.reference = Some(reference);
        Ok(())
    }

    fn set_subdirectory(&mut self, directory: &str) -> Result<(), String> {
        if self.subdirectory.is_some() {
            return Err("the subdirectory is given twice".to_owned());
        }
        let path = RootPath::clamped(directory.as_bytes())
            .ok_or_else(|| "the subdirectory holds a NUL byte".to_owned())?;
        if !path.is_root() {
            self.subdirectory = Some(path.to_string().trim_start_matches('/').to_owned());
        }
        Ok(())
    }

    /// The host, without user and port.
    pub fn host(&self) -> String {
        match Url::parse(&self.url) {
            Ok(url) if url.has_host() => url.host_str().unwrap_or_default().to_owned(),
            _ => {
                let place = self.url.split(':').next().unwrap_or_default();
                place.rsplit('@').next().unwrap_or_default().to_owned()
            }
        }
    }
}

/// The address without its password.
impl fmt::Display for GitAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redacted(&self.url))?;
        match (&self.reference, &self.subdirectory) {
            (None, None) => Ok(()),
            (Some(reference), None) => write!(f, "#{reference}"),
            (reference, Some(directory)) => {
                write!(f, "#{}:{directory}", reference.as_deref().unwrap_or_default())
            }
        }
    }
}

impl fmt::Debug for GitAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GitAddress({self})")
    }
}

/// The beginning of a commit as `--checksum` gives it.
///
/// # Errors
/// The message, for anything but 7 to 64 hexadecimal digits.
pub fn commit_prefix(text: &str) -> Result<String, String> {
    let is_prefix =
        (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_prefix {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("`{text}` is no commit: 7 to 64 hexadecimal digits are expected"))
    }
}

/// Whether `reference` is a commit in full (SHA-1 or SHA-256).
pub fn is_commit(reference: &str) -> bool {
    matches!(reference.len(), 40 | 64) && reference.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What git-check-ref-format(1) forbids, as far as it could be taken for something
/// else: options, refspecs, patterns.
fn check_reference(reference: &str) -> Result<(), String> {
    let bad = reference.starts_with('-')
        || reference.contains("..")
        || reference.contains(|letter: char| {
            letter.is_control() || letter.is_whitespace() || "~^:?*[\\".contains(letter)
        });
    if bad { Err(format!("`{reference}` can't be a branch, tag or commit")) } else { Ok(()) }
}

/// `text` with the password of every URL in it replaced by `xxxxx`; a lone user name
/// before an `@` as well, since tokens are given that way. ssh's user stays.
pub fn redacted(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        let end = after
            .find(|letter: char| letter.is_whitespace() || "/?#\"'".contains(letter))
            .unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            None => after,
            Some(place) => {
                let who = &after[..place];
                match who.split_once(':') {
                    Some((user, _)) => {
                        shown.push_str(user);
                        shown.push_str(":xxxxx");
                    }
                    None if before.ends_with("ssh://") || before.ends_with("git://") => {
                        shown.push_str(who);
                    }
                    None => shown.push_str("xxxxx"),
                }
                &after[place..]
            }
        };
    }
    shown.push_str(rest);
    shown
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        let byte = pair
            .filter(|pair| bytes[at] == b'%' && !pair.starts_with('+'))
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        decoded.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(text: &str) -> GitAddress {
        match Remote::parse(text) {
            Ok(Some(Remote::Git(address))) => address,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn remote_sources_are_told_from_paths() {
        for text in [
            "git@github.com:a/b",
            "git://h/r",
            "ssh://git@h/r.git",
            "https://h/a/b.git",
            "https://h/a/b.git#v1:sub",
            "https://h/a/b.git?ref=x",
            "me@host.example:repo",
        ] {
            git(text);
        }
        assert!(matches!(Remote::parse("https://h/a.tar.gz"), Ok(Some(Remote::Http(_)))));
        for path in ["a", "b.git", "a:b", "@scope/pkg:x", "github.com/a/b", "x/y@z:1", "http:"] {
            assert_eq!(Remote::parse(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn fragments_and_queries_say_the_same() {
        let one = git("https://h/a.git#v1:x/../y");
        assert_eq!(
            (one.reference.as_deref(), one.subdirectory.as_deref()),
            (Some("v1"), Some("y"))
        );
        assert_eq!(one.url, "https://h/a.git");
        let two = git("https://h/a.git?ref=v1&subdir=/y/");
        assert_eq!(one, two);
        assert_eq!(git("git://h/a#:sub").subdirectory.as_deref(), Some("sub"));
        assert_eq!(git("git://h/a?branch=b").reference.as_deref(), Some("refs/heads/b"));
        assert_eq!(git("git@h:a?tag=t").reference.as_deref(), Some("refs/tags/t"));
        let all = git("git://h/a?commit=ABCDEF0&submodules=false&keep-git-dir&mtime=commit");
        assert_eq!(all.checksum.as_deref(), Some("abcdef0"));
        assert_eq!(
            (all.submodules, all.keep_git_dir, all.commit_time),
            (Some(false), Some(true), true)
        );
    }

    #[test]
    fn what_could_mean_something_else_to_git_is_refused() {
        for text in [
            "git://h/a#--upload-pack=x",
            "git://h/a#a:b:c\0",
            "git://h/a#a b",
            "git://h/a?ref=a..b",
            "git://h/a?branch=x&tag=y",
            "git://h/a?branch=x#y",
            "git://h/a?colour=red",
            "git://h/a?commit=xyz",
            "git://h/a?mtime=now",
            "git://h/a?ref=",
            "git@h:",
        ] {
            assert!(Remote::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_are_those_that_credentials_are_meant_for() {
        for (text, host) in [
            ("https://user:pass@h.example:8443/a.git", "h.example"),
            ("git@h.example:a/b", "h.example"),
            ("ssh://git@h:22/a", "h"),
        ] {
            assert_eq!(git(text).host(), host, "{text}");
        }
    }

    #[test]
    fn a_file_is_named_by_its_path() {
        for (text, name) in [
            ("https://h/a/b.txt?x=/y#z", "b.txt"),
            ("https://h/a%20b", "a b"),
            ("https://h/%zz%2", "%zz%2"),
            ("https://h/", UNNAMED),
            ("https://h", UNNAMED),
            ("https://h/a%2fb", UNNAMED),
        ] {
            let Ok(Some(Remote::Http(address))) = Remote::parse(text) else { panic!("{text}") };
            assert_eq!(address.file_name(), name, "{text}");
        }
    }

    #[test]
    fn passwords_are_never_shown() {
        for (text, shown) in [
            ("ADD https://u:p@h/a https://t@h/b /", "ADD https://u:xxxxx@h/a https://xxxxx@h/b /"),
            ("ssh://git@h/a", "ssh://git@h/a"),
            ("https://h/a@b", "https://h/a@b"),
            ("https://u:p@q@h", "https://u:xxxxx@h"),
            ("no url", "no url"),
        ] {
            assert_eq!(redacted(text), shown);
        }
        assert!(!format!("{:?}", git("https://u:hunter2@h/a.git")).contains("hunter2"));
    }
}
