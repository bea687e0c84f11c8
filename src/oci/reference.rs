//! Image references: `[registry/]repository[:tag][@digest]`, with Docker's defaults
//! (distribution/reference, `normalize.go`): no registry means Docker Hub, one path
//! component on Docker Hub means `library/…`, neither tag nor digest means `latest`.
//!
//! The parser is our own: oci-spec's takes no IPv6 host, takes `Foo/x` for a repository
//! of Docker Hub where Docker takes `Foo` for a host, and accepts names of 64 hex digits,
//! which Docker keeps for image IDs.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

/// Docker Hub, as it is written in references.
pub const DOCKER_HUB: &str = "docker.io";
/// Docker Hub's old name, still found in credentials and mirror maps.
pub const DOCKER_HUB_LEGACY: &str = "index.docker.io";
/// The host that serves Docker Hub's registry protocol.
pub const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// The tag that is meant when none is written.
pub const DEFAULT_TAG: &str = "latest";

/// Longest repository path, as in distribution/reference.
const REPOSITORY_MAX: usize = 255;
/// Longest tag (distribution specification).
const TAG_MAX: usize = 128;

/// A normalized image reference. Always has a tag or a digest, maybe both.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference. Each variant but [`Empty`](Self::Empty) starts with the
/// whole text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// Nothing but white space.
    #[error("the image reference is empty")]
    Empty,
    /// `https://…`, `docker://…`.
    #[error("`{0}` is not an image reference: leave out `{1}`")]
    Scheme(String, String),
    /// The part before the first slash is neither a DNS name nor an address.
    #[error("`{0}` is not an image reference: `{1}` is not a host name with an optional port")]
    Host(String, String),
    /// A path component breaks the rules.
    #[error(
        "`{0}` is not an image reference: repository `{1}` must consist of lower-case letters \
         and digits, separated by `.`, `_`, `__` or `-`, in components separated by `/`"
    )]
    Repository(String, String),
    /// The repository path has upper-case letters.
    #[error("`{0}` is not an image reference: repository `{1}` must be lower case")]
    Uppercase(String, String),
    /// The repository path is longer than 255 bytes, or shorter than a destination allows.
    #[error("`{0}` is not an image reference: the repository must have {1} to 255 characters")]
    Length(String, usize),
    /// The part after `:` is no tag.
    #[error(
        "`{0}` is not an image reference: tag `{1}` must consist of at most 128 letters, digits, \
         `_`, `.` and `-`, and not start with `.` or `-`"
    )]
    Tag(String, String),
    /// The part after `@` is no SHA-256 digest.
    #[error(
        "`{0}` is not an image reference: `{1}` is not a digest \
         (`sha256:` and 64 lower-case hex digits)"
    )]
    Digest(String, String),
    /// 64 hex digits, which name a local image.
    #[error("`{0}` is an image ID, not an image reference: write `repository@sha256:…`")]
    ImageId(String),
    /// A destination with a digest.
    #[error("destination `{0}` must not have a digest: it follows from what is pushed")]
    DestinationDigest(String),
}

impl Reference {
    /// Puts a reference together out of parts that were checked before. A registry of
    /// Docker Hub must be [`DOCKER_HUB`].
    fn new(registry: String, repository: String) -> Self {
        Self { registry, repository, tag: None, digest: None }
    }

    /// Parses the name to push to: a digest is refused, the repository has at least two
    /// characters, the tag defaults to `latest`.
    pub fn parse_destination(text: &str) -> Result<Self, ParseReferenceError> {
        let reference: Self = text.parse()?;
        if reference.digest.is_some() {
            return Err(ParseReferenceError::DestinationDigest(text.trim().to_owned()));
        }
        if reference.repository.len() < 2 {
            return Err(ParseReferenceError::Length(text.trim().to_owned(), 2));
        }
        Ok(reference)
    }

    /// Host and optional port as written: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Host and optional port that answers the registry protocol; differs from
    /// [`registry`](Self::registry) for Docker Hub alone.
    pub fn api_host(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_API } else { &self.registry }
    }

    /// Path inside the registry: `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only when there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which wins over the tag.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What names the manifest inside the repository: the digest, or else the tag.
    pub fn identifier(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// Registry and repository alone: `docker.io/library/debian`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository at a digest, without a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same repository at a tag, without a digest.
    ///
    /// # Errors
    ///
    /// [`ParseReferenceError::Tag`].
    pub fn with_tag(&self, tag: &str) -> Result<Self, ParseReferenceError> {
        if !is_tag(tag) {
            let whole = format!("{}:{tag}", self.name());
            return Err(ParseReferenceError::Tag(whole, tag.to_owned()));
        }
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The short form that people write: `debian:12` for `docker.io/library/debian:12`.
    pub fn familiar(&self) -> String {
        let path = &self.repository;
        let first = path.split('/').next().unwrap_or("");
        let name = match path.strip_prefix("library/") {
            _ if self.registry != DOCKER_HUB => self.name(),
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            // Without its registry the name would be read as one of another host.
            _ if first.contains('.') || first == "localhost" => self.name(),
            _ => path.clone(),
        };
        name + &self.suffix()
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}"));
        let digest = self.digest.map(|digest| format!("@{digest}"));
        tag.unwrap_or_default() + &digest.unwrap_or_default()
    }
}

/// The full form: `docker.io/library/debian:12@sha256:…`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let whole = || text.to_owned();
        if text.is_empty() {
            return Err(ParseReferenceError::Empty);
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(ParseReferenceError::Scheme(whole(), format!("{scheme}://")));
        }
        if is_image_id(text) {
            return Err(ParseReferenceError::ImageId(whole()));
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => {
                let parsed = digest
                    .parse()
                    .map_err(|_| ParseReferenceError::Digest(whole(), digest.to_owned()))?;
                (named, Some(parsed))
            }
            None => (text, None),
        };
        let (registry, remainder) = split_registry(named);
        if !is_host(registry) {
            return Err(ParseReferenceError::Host(whole(), registry.to_owned()));
        }
        let (path, tag) = match remainder.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (remainder, None),
        };
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ParseReferenceError::Uppercase(whole(), path.to_owned()));
        }
        if !path.split('/').all(is_path_component) {
            return Err(ParseReferenceError::Repository(whole(), path.to_owned()));
        }
        if path.len() > REPOSITORY_MAX {
            return Err(ParseReferenceError::Length(whole(), 1));
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ParseReferenceError::Tag(whole(), tag.to_owned()));
        }
        let registry = if registry == DOCKER_HUB_LEGACY { DOCKER_HUB } else { registry };
        let repository = if registry == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        let mut reference = Self::new(registry.to_owned(), repository);
        reference.tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        reference.digest = digest;
        Ok(reference)
    }
}

/// Docker's rule for what the part before the first slash is: a host when it has a dot, a
/// colon or an upper-case letter, or is `localhost`.
fn split_registry(named: &str) -> (&str, &str) {
    match named.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DOCKER_HUB, named),
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    host.is_none_or(|host| host.split('.').all(label)) && port.is_none_or(is_port)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().copied().is_some_and(plain) || !bytes.last().copied().is_some_and(plain) {
        return false;
    }
    bytes.split(|byte| plain(*byte)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

/// `\w[\w.-]{0,127}`
fn is_tag(text: &str) -> bool {
    text.len() <= TAG_MAX
        && !text.is_empty()
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn is_image_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The place in `oci-layout://DIR[:TAG]` or `oci:DIR[:TAG]`: an image in an OCI layout
/// on disk. `None` for everything else.
pub fn layout_place(name: &str) -> Option<&str> {
    ["oci-layout://", "oci:"].iter().find_map(|scheme| name.strip_prefix(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn docker_s_defaults_are_filled_in() {
        for (given, full, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
            ("a/b/c", "docker.io/a/b/c:latest", "a/b/c:latest"),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            ("localhost:5000/a:1", "localhost:5000/a:1", "localhost:5000/a:1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("[fe80::1]/a/b:2", "[fe80::1]/a/b:2", "[fe80::1]/a/b:2"),
            ("Foo/x", "Foo/x:latest", "Foo/x:latest"),
            (
                "Registry.Example:443/x",
                "Registry.Example:443/x:latest",
                "Registry.Example:443/x:latest",
            ),
            (
                "10.0.0.1/x-y__z/a.b--c",
                "10.0.0.1/x-y__z/a.b--c:latest",
                "10.0.0.1/x-y__z/a.b--c:latest",
            ),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
            (
                "docker.io/localhost/c",
                "docker.io/localhost/c:latest",
                "docker.io/localhost/c:latest",
            ),
            (" debian ", "docker.io/library/debian:latest", "debian:latest"),
        ] {
            let reference: Reference = given.parse().unwrap();
            assert_eq!(reference.to_string(), full, "{given}");
            assert_eq!(reference.familiar(), familiar, "{given}");
            assert_eq!(full.parse(), Ok(reference.clone()), "{given}");
            assert_eq!(familiar.parse(), Ok(reference), "{given}");
        }
    }

    #[test]
    fn a_digest_replaces_the_default_tag_and_wins_over_a_tag() {
        let bare: Reference = format!("debian@{DIGEST}").parse().unwrap();
        assert_eq!((bare.tag(), bare.identifier().as_str()), (None, DIGEST));
        let both: Reference = format!("x.example/a:1@{DIGEST}").parse().unwrap();
        assert_eq!((both.tag(), both.identifier().as_str()), (Some("1"), DIGEST));
        assert_eq!(both.to_string(), format!("x.example/a:1@{DIGEST}"));
    }

    #[test]
    fn other_text_is_refused_with_its_reason() {
        use ParseReferenceError as E;
        let hex = &DIGEST[7..];
        type Check = fn(&E) -> bool;
        let cases: [(&str, Check); 19] = [
            ("", |e| matches!(e, E::Empty)),
            ("https://a.example/b", |e| matches!(e, E::Scheme(..))),
            (hex, |e| matches!(e, E::ImageId(..))),
            ("Debian", |e| matches!(e, E::Uppercase(..))),
            ("a.example/B", |e| matches!(e, E::Uppercase(..))),
            ("a..b", |e| matches!(e, E::Repository(..))),
            ("a/-b", |e| matches!(e, E::Repository(..))),
            ("a/b/", |e| matches!(e, E::Repository(..))),
            ("a___b", |e| matches!(e, E::Repository(..))),
            ("a.example/", |e| matches!(e, E::Repository(..))),
            ("a b", |e| matches!(e, E::Repository(..))),
            ("debian:", |e| matches!(e, E::Tag(..))),
            ("debian:-x", |e| matches!(e, E::Tag(..))),
            ("debian:a:b", |e| matches!(e, E::Tag(..))),
            ("debian@sha256:00", |e| matches!(e, E::Digest(..))),
            ("debian@", |e| matches!(e, E::Digest(..))),
            ("a.example:99999/b", |e| matches!(e, E::Host(..))),
            ("[::1/b", |e| matches!(e, E::Host(..))),
            ("-a.example/b", |e| matches!(e, E::Host(..))),
        ];
        for (text, check) in cases {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(check(&error), "{text}: {error:?}");
        }
    }

    #[test]
    fn destinations_refuse_digests_and_short_names() {
        assert_eq!(
            Reference::parse_destination("r.example/app").unwrap().to_string(),
            "r.example/app:latest"
        );
        assert!(matches!(
            Reference::parse_destination(&format!("app:1@{DIGEST}")),
            Err(ParseReferenceError::DestinationDigest(_))
        ));
        assert!(matches!(
            Reference::parse_destination("r.example/a"),
            Err(ParseReferenceError::Length(_, 2))
        ));
    }

    #[test]
    fn only_docker_hub_is_served_by_another_host() {
        assert_eq!("debian".parse::<Reference>().unwrap().api_host(), "registry-1.docker.io");
        assert_eq!("a.example/b".parse::<Reference>().unwrap().api_host(), "a.example");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_what_parses_survives_a_round_trip(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,80}|\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
                assert_eq!(reference.familiar().parse(), Ok(reference));
            }
        }
    }
}
