//! Pulling: manifests and blobs, from mirrors or the registry, verified.

use std::io;
use std::sync::Arc;

use reqwest::header::{self, HeaderMap};
use reqwest::{Method, Response, Url};
use sha2::{Digest as _, Sha256};

use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Document, MANIFEST_MAX, parse_manifest};
use crate::oci::media_type;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

use super::auth::Access;
use super::error::{Error, Subject};
use super::retry::Patience;
use super::site::{Direction, Place, Site, origin_place, pull_places};
use super::transport::Call;
use super::{Client, Core, Inner};

/// An index inside an index inside an index is no image any more.
const INDEX_DEPTH: usize = 3;
/// Largest blob that is held in memory as a whole, in bytes.
const BLOB_BYTES_MAX: u64 = 8 << 20;
/// Bytes after which a transfer counts as recovered and may break as often again.
const RECOVERED: u64 = 1 << 20;

/// What a reference stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Of manifest or index.
    pub digest: Digest,
    /// Its type, as the registry says.
    pub media_type: String,
    /// Its length in bytes.
    pub size: u64,
}

/// A manifest or an index, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// SHA-256 of `bytes`.
    pub digest: Digest,
    /// Its type, as the registry says; may be none that we know.
    pub media_type: String,
    /// As received.
    pub bytes: Vec<u8>,
}

impl Core {
    /// Asks each place in turn: those that answered the last time first, in their order.
    /// `attempt` is retried at each.
    async fn anywhere<T>(
        &self,
        reference: &Reference,
        operation: &'static str,
        what: &str,
        mut attempt: impl AsyncFnMut(&Site, &Place, &Subject) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut places: Vec<(usize, Arc<Site>, Place)> =
            pull_places(&self.options, &self.transport, reference)
                .into_iter()
                .enumerate()
                .map(|(index, place)| (index, self.site(&place), place))
                .collect();
        places.sort_by_key(|(_, site, _)| site.is_down());
        let mut failures = Vec::new();
        for (index, site, place) in &places {
            let subject = subject(operation, place, what);
            let outcome = self.policy().run(async || attempt(site, place, &subject).await).await;
            match outcome {
                Ok(value) => return Ok(value),
                Err(error) => {
                    if places.len() > 1 {
                        tracing::warn!(error = %error, "asking the next place");
                    }
                    failures.push((*index, error));
                }
            }
        }
        // The registry's own word last, as promised.
        failures.sort_by_key(|(index, _)| *index);
        let mut failures: Vec<Error> = failures.into_iter().map(|(_, error)| error).collect();
        match failures.len() {
            1 => Err(failures.remove(0)),
            _ => Err(Error::Everywhere { failures }),
        }
    }

    pub(super) async fn resolve(&self, reference: &Reference) -> Result<Resolved, Error> {
        let identifier = reference.identifier();
        let head = self
            .anywhere(reference, "resolve", &suffix(reference), async |site, place, subject| {
                let url = url(
                    site.base(&self.transport, subject).await?,
                    place,
                    "manifests",
                    &identifier,
                    subject,
                )?;
                let call = Call::new(Method::HEAD, url, subject).header(header::ACCEPT, &accept());
                let outcome = self.send(site, &pull(place), &call).await;
                let response = match outcome {
                    Ok(response) => response,
                    // A HEAD has no message; and some know no HEAD at all.
                    Err(error) if matches!(error.status(), Some(400 | 404 | 405 | 501)) => {
                        return self.fetch(site, place, reference, subject).await.map(resolved);
                    }
                    Err(error) => return Err(error),
                };
                let digest = announced_digest(response.headers());
                let media_type = media_type_of(response.headers());
                let size = header_text(response.headers(), header::CONTENT_LENGTH.as_str())
                    .and_then(|text| text.parse().ok());
                match (digest, media_type, size) {
                    (Some(digest), Some(media_type), Some(size)) => {
                        if let Some(expected) = reference.digest()
                            && expected != digest
                        {
                            let subject = Box::new(subject.clone());
                            return Err(Error::DigestMismatch {
                                subject,
                                expected,
                                actual: digest,
                            });
                        }
                        Ok(Resolved { digest, media_type, size })
                    }
                    _ => self.fetch(site, place, reference, subject).await.map(resolved),
                }
            })
            .await?;
        Ok(head)
    }

    pub(super) async fn manifest(&self, reference: &Reference) -> Result<Fetched, Error> {
        let what = suffix(reference);
        self.anywhere(reference, "fetch the manifest of", &what, async |site, place, subject| {
            self.fetch(site, place, reference, subject).await
        })
        .await
    }

    /// GET of a manifest at one place.
    async fn fetch(
        &self,
        site: &Site,
        place: &Place,
        reference: &Reference,
        subject: &Subject,
    ) -> Result<Fetched, Error> {
        let base = site.base(&self.transport, subject).await?;
        let url = url(base, place, "manifests", &reference.identifier(), subject)?;
        let call = Call::new(Method::GET, url, subject).header(header::ACCEPT, &accept());
        let response = self.send(site, &pull(place), &call).await?;
        let announced = announced_digest(response.headers());
        let media_type = media_type_of(response.headers()).unwrap_or_default();
        let bytes = self.transport.body(response, MANIFEST_MAX, subject).await?;
        let actual = Digest::of(&bytes);
        for expected in reference.digest().into_iter().chain(announced) {
            if expected != actual {
                let subject = Box::new(subject.clone());
                return Err(Error::DigestMismatch { subject, expected, actual });
            }
        }
        Ok(Fetched { digest: actual, media_type, bytes })
    }

    pub(super) async fn image(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Fetched, Error> {
        let mut reference = reference.clone();
        for _ in 0..INDEX_DEPTH {
            let mut fetched = self.manifest(&reference).await?;
            let place = origin_place(&self.options, &self.transport, &reference, Direction::Pull);
            let subject = || Box::new(subject("use", &place, &suffix(&reference)));
            let document = parse_manifest(&fetched.bytes, &fetched.media_type)
                .map_err(|source| Error::Manifest { subject: subject(), source })?;
            let index = match document {
                Document::Index(index) => index,
                Document::Manifest(manifest) => {
                    // A server that says `application/json` does not get to name the type.
                    if !media_type::is_manifest(&fetched.media_type) {
                        let oci = || media_type::OCI_MANIFEST.to_owned();
                        fetched.media_type = manifest.media_type.unwrap_or_else(oci);
                    }
                    return Ok(fetched);
                }
            };
            let chosen = index.select(platform).ok_or_else(|| Error::Platform {
                subject: subject(),
                wanted: Box::new(platform.clone()),
                available: index.platforms(),
            })?;
            reference = reference.with_digest(chosen.digest);
        }
        let place = origin_place(&self.options, &self.transport, &reference, Direction::Pull);
        Err(Error::Protocol {
            subject: Box::new(subject("use", &place, &suffix(&reference))),
            problem: "indexes are nested too deep".to_owned(),
        })
    }

    pub(super) async fn has_blob(
        &self,
        repository: &Reference,
        digest: &Digest,
    ) -> Result<bool, Error> {
        let place = origin_place(&self.options, &self.transport, repository, Direction::Push);
        let site = self.site(&place);
        let subject = subject("look for", &place, &format!("@{digest}"));
        let found = self
            .policy()
            .run(async || self.head_blob(&site, &pull(&place), &place, digest, &subject).await);
        found.await
    }

    /// HEAD of a blob, once.
    pub(super) async fn head_blob(
        &self,
        site: &Site,
        access: &Access<'_>,
        place: &Place,
        digest: &Digest,
        subject: &Subject,
    ) -> Result<bool, Error> {
        let base = site.base(&self.transport, subject).await?;
        let url = url(base, place, "blobs", &digest.to_string(), subject)?;
        match self.send(site, access, &Call::new(Method::HEAD, url, subject)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens a blob at `offset`, wherever it is to be had. The answer starts at most at
    /// `offset`; gives where it does.
    async fn open_blob(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<(Response, u64, Subject), Error> {
        let digest = descriptor.digest.to_string();
        let what = format!("@{digest}");
        self.anywhere(repository, "fetch the blob", &what, async |site, place, subject| {
            let base = site.base(&self.transport, subject).await?;
            let url = url(base, place, "blobs", &digest, subject)?;
            let mut call = Call::new(Method::GET, url, subject);
            if offset > 0 {
                call = call.header(header::RANGE, &format!("bytes={offset}-"));
            }
            let response = self.send(site, &pull(place), &call).await?;
            let start = match response.status().as_u16() {
                206 => content_range_start(response.headers()).ok_or_else(|| Error::Protocol {
                    subject: Box::new(subject.clone()),
                    problem: "it sends a part without saying which".to_owned(),
                })?,
                _ => 0,
            };
            let length = response.content_length();
            let expected = descriptor.size.saturating_sub(start);
            if start > offset || length.is_some_and(|length| start == 0 && length != expected) {
                return Err(Error::Size {
                    subject: Box::new(subject.clone()),
                    expected: descriptor.size,
                    actual: start.saturating_add(length.unwrap_or(0)),
                });
            }
            Ok((response, start, subject.clone()))
        })
        .await
    }
}

fn resolved(fetched: Fetched) -> Resolved {
    let size = fetched.bytes.len() as u64;
    Resolved { digest: fetched.digest, media_type: fetched.media_type, size }
}

/// A blob as a stream.
///
/// Size and SHA-256 are verified before the last bytes are handed out: whoever has read
/// `size` bytes, or seen the end, has the right content. A connection that breaks is
/// resumed where it broke, at another mirror if need be. Errors are
/// [`std::io::Error`]s that hold an [`Error`], and stay: a failed reader never ends well.
pub struct BlobReader {
    inner: Arc<Inner>,
    repository: Reference,
    descriptor: Descriptor,
    subject: Subject,
    state: State,
    chunk: Option<Box<dyn AsRef<[u8]> + Send>>,
    /// Bytes of `chunk` handed out.
    taken: usize,
    hasher: Sha256,
    /// Bytes received and hashed.
    received: u64,
    /// Bytes of the answer still to be passed over, after a resumption from further back.
    skip: u64,
    /// Breaks since the transfer last recovered, and where that was.
    /// Left for connections that break; renewed by progress.
    patience: Patience,
    recovered_at: u64,
}

enum State {
    Reading(Response),
    Verified,
    Failed(io::ErrorKind, String),
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader").field("blob", &self.descriptor.digest).finish_non_exhaustive()
    }
}

impl BlobReader {
    pub(super) fn open(
        inner: Arc<Inner>,
        repository: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Self, Error> {
        let (response, _, subject) =
            inner.block_on(inner.core.open_blob(repository, descriptor, 0))?;
        let patience = inner.core.policy().patience();
        Ok(Self {
            inner,
            repository: repository.clone(),
            descriptor: descriptor.clone(),
            subject,
            state: State::Reading(response),
            chunk: None,
            taken: 0,
            hasher: Sha256::new(),
            received: 0,
            skip: 0,
            patience,
            recovered_at: 0,
        })
    }

    /// Receives the next chunk, resuming as needed; sets the state at the end.
    fn advance(&mut self) -> Result<(), Error> {
        if self.received == self.descriptor.size {
            return self.verify();
        }
        let State::Reading(response) = &mut self.state else { return Ok(()) };
        let core = &self.inner.core;
        match self.inner.block_on(core.transport.chunk(response, &self.subject)) {
            Ok(Some(chunk)) => self.accept(chunk),
            Ok(None) => self.resume(Error::Size {
                subject: Box::new(self.subject.clone()),
                expected: self.descriptor.size,
                actual: self.received,
            }),
            Err(error) => self.resume(error),
        }
    }

    fn accept(&mut self, chunk: impl AsRef<[u8]> + Send + 'static) -> Result<(), Error> {
        let length = chunk.as_ref().len();
        let skip = usize::try_from(self.skip).unwrap_or(usize::MAX).min(length);
        self.skip -= skip as u64;
        let fresh = chunk.as_ref().get(skip..).unwrap_or(&[]);
        self.received += fresh.len() as u64;
        if self.received > self.descriptor.size {
            return Err(Error::Size {
                subject: Box::new(self.subject.clone()),
                expected: self.descriptor.size,
                actual: self.received,
            });
        }
        self.hasher.update(fresh);
        if self.received - self.recovered_at >= RECOVERED {
            self.patience = self.inner.core.policy().patience();
            self.recovered_at = self.received;
        }
        self.taken = skip;
        self.chunk = Some(Box::new(chunk));
        if self.received == self.descriptor.size { self.verify() } else { Ok(()) }
    }

    fn verify(&mut self) -> Result<(), Error> {
        let actual = Digest::from_bytes(std::mem::take(&mut self.hasher).finalize().into());
        if actual != self.descriptor.digest {
            return Err(Error::DigestMismatch {
                subject: Box::new(self.subject.clone()),
                expected: self.descriptor.digest,
                actual,
            });
        }
        self.state = State::Verified;
        Ok(())
    }

    /// Reconnects after `cause` and a pause; `cause` is given back once there were too
    /// many breaks.
    fn resume(&mut self, cause: Error) -> Result<(), Error> {
        self.inner.block_on(self.patience.rest(cause))?;
        let core = &self.inner.core;
        let opened = core.open_blob(&self.repository, &self.descriptor, self.received);
        let (response, start, subject) = self.inner.block_on(opened)?;
        self.skip = self.received.saturating_sub(start);
        self.subject = subject;
        self.state = State::Reading(response);
        Ok(())
    }

    fn fail(&mut self, error: Error) -> io::Error {
        self.chunk = None;
        let kind = match &error {
            Error::DigestMismatch { .. } => io::ErrorKind::InvalidData,
            Error::Size { expected, actual, .. } if actual < expected => {
                io::ErrorKind::UnexpectedEof
            }
            Error::Size { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        self.state = State::Failed(kind, error.to_string());
        io::Error::new(kind, error)
    }
}

impl io::Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(chunk) = &self.chunk {
                let rest = (**chunk).as_ref().get(self.taken..).unwrap_or(&[]);
                if !rest.is_empty() {
                    let length = rest.len().min(buffer.len());
                    buffer[..length].copy_from_slice(&rest[..length]);
                    self.taken += length;
                    return Ok(length);
                }
                self.chunk = None;
            }
            match &self.state {
                State::Verified => return Ok(0),
                State::Failed(kind, message) => return Err(io::Error::new(*kind, message.clone())),
                State::Reading(_) => {
                    if let Err(error) = self.advance() {
                        return Err(self.fail(error));
                    }
                }
            }
        }
    }
}

pub(super) fn blob_bytes(
    client: &Client,
    repository: &Reference,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, Error> {
    let core = &client.inner.core;
    let place = origin_place(&core.options, &core.transport, repository, Direction::Pull);
    let subject =
        || Box::new(subject("fetch the blob", &place, &format!("@{}", descriptor.digest)));
    if descriptor.size > BLOB_BYTES_MAX {
        let (expected, actual) = (BLOB_BYTES_MAX, descriptor.size);
        return Err(Error::Size { subject: subject(), expected, actual });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(descriptor.size).unwrap_or(0));
    let mut reader = client.blob(repository, descriptor)?;
    match io::Read::read_to_end(&mut reader, &mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(error.downcast::<Error>().unwrap_or_else(|error| Error::Protocol {
            subject: subject(),
            problem: error.to_string(),
        })),
    }
}

/// Everything an image may be, so that a registry converts nothing.
fn accept() -> String {
    [
        media_type::OCI_INDEX,
        media_type::OCI_MANIFEST,
        media_type::DOCKER_INDEX,
        media_type::DOCKER_MANIFEST,
    ]
    .join(", ")
}

fn pull(place: &Place) -> Access<'_> {
    Access { repository: &place.repository, direction: Direction::Pull, also: &[] }
}

/// `:tag` or `@digest`.
fn suffix(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("@{digest}"),
        (None, tag) => format!(":{}", tag.unwrap_or_default()),
    }
}

pub(super) fn subject(operation: &'static str, place: &Place, what: &str) -> Subject {
    let name = format!("{}{what}", place.repository);
    Subject { operation, name, host: place.host().to_owned() }
}

/// `/v2/<repository>/<kind>/<name>`.
pub(super) fn url(
    base: &Url,
    place: &Place,
    kind: &str,
    name: &str,
    subject: &Subject,
) -> Result<Url, Error> {
    base.join(&format!("v2/{}/{kind}/{name}", place.repository)).map_err(|error| Error::Protocol {
        subject: Box::new(subject.clone()),
        problem: error.to_string(),
    })
}

pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

/// `Docker-Content-Digest`, when it is a SHA-256.
pub(super) fn announced_digest(headers: &HeaderMap) -> Option<Digest> {
    header_text(headers, "docker-content-digest")?.parse().ok()
}

fn media_type_of(headers: &HeaderMap) -> Option<String> {
    let text = header_text(headers, header::CONTENT_TYPE.as_str())?;
    Some(text.split(';').next().unwrap_or("").trim().to_owned()).filter(|text| !text.is_empty())
}

/// The first byte of `Content-Range: bytes 5-9/10`.
fn content_range_start(headers: &HeaderMap) -> Option<u64> {
    let text = header_text(headers, header::CONTENT_RANGE.as_str())?;
    text.strip_prefix("bytes")?.trim_start_matches([' ', '=']).split('-').next()?.parse().ok()
}
