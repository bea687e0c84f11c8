//! Pushing: blobs by presence, mount or upload; manifests.
//!
//! An upload is one streamed PUT. Registries and proxies that refuse a large body get
//! chunks instead, and after a break are asked how far they got.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};

use reqwest::header;
use reqwest::{Method, Response, Url};

use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;

use super::Core;
use super::auth::Access;
use super::error::{Error, Subject};
use super::pull::{announced_digest, header_text, subject, url};
use super::retry::Patience;
use super::site::{Direction, Place, Site, origin_place};
use super::transport::{Call, Payload, authority};

/// Chunks when a whole body is refused, in bytes: the smallest limit that a large registry
/// is known to have.
const CHUNK: u64 = 4 << 20;
/// Below this a registry that still finds chunks too large is not worth halving for.
const CHUNK_MIN: u64 = 256 << 10;
/// Whole bodies that may break before chunks are tried: some proxies close the connection
/// instead of saying that the body is too large.
const BREAKS_BEFORE_CHUNKS: u32 = 2;

/// How a blob got into the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Present,
    /// The registry took it over from another repository.
    Mounted,
    /// We sent it.
    Uploaded {
        /// Its length; more may have been sent because of retries.
        bytes: u64,
    },
}

/// What stays the same during the push of one blob.
struct Upload<'a> {
    core: &'a Core,
    site: &'a Site,
    place: &'a Place,
    access: Access<'a>,
    subject: &'a Subject,
    descriptor: &'a Descriptor,
    source: &'a dyn Fn() -> io::Result<File>,
    /// The bytes themselves, for small blobs.
    bytes: Option<&'a [u8]>,
}

/// An open upload session.
struct Session {
    location: Url,
    /// `OCI-Chunk-Min-Length`.
    chunk_min: u64,
}

impl Core {
    pub(super) async fn push_blob(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        source: &dyn Fn() -> io::Result<File>,
        mount_from: &[Reference],
    ) -> Result<Pushed, Error> {
        self.push(repository, descriptor, source, None, mount_from).await
    }

    pub(super) async fn push_bytes(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        bytes: &[u8],
    ) -> Result<Pushed, Error> {
        let never = || Err(io::Error::from(io::ErrorKind::Unsupported));
        self.push(repository, descriptor, &never, Some(bytes), &[]).await
    }

    async fn push(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        source: &dyn Fn() -> io::Result<File>,
        bytes: Option<&[u8]>,
        mount_from: &[Reference],
    ) -> Result<Pushed, Error> {
        let place = origin_place(&self.options, &self.transport, repository, Direction::Push);
        let site = self.site(&place);
        let subject = subject("push the blob", &place, &format!("@{}", descriptor.digest));
        let access = push_access(&place);
        let upload = Upload {
            core: self,
            site: &site,
            place: &place,
            access,
            subject: &subject,
            descriptor,
            source,
            bytes,
        };
        if self.policy().run(async || upload.is_present().await).await? {
            return Ok(Pushed::Present);
        }
        let mut session = None;
        let mut mounts: Vec<&str> = Vec::new();
        for from in mount_from {
            let other = from.repository() != repository.repository();
            if from.registry() == repository.registry()
                && other
                && !mounts.contains(&from.repository())
            {
                mounts.push(from.repository());
            }
        }
        for from in mounts {
            match self.policy().run(async || upload.mount(from).await).await {
                Ok(Mount::Done) => return Ok(Pushed::Mounted),
                // Refused: a session was opened instead, which the next one replaces.
                Ok(Mount::Opened(opened)) => {
                    if let Some(previous) = session.replace(opened) {
                        upload.cancel(previous).await;
                    }
                }
                // A mount only saves time; the upload will tell what is really wrong.
                Err(error) => tracing::debug!(error = %error, from, "cannot mount"),
            }
        }
        upload.run(session).await?;
        Ok(Pushed::Uploaded { bytes: descriptor.size })
    }

    pub(super) async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, Error> {
        let place = origin_place(&self.options, &self.transport, reference, Direction::Push);
        let site = self.site(&place);
        let identifier = reference.identifier();
        let separator = if reference.digest().is_some() { '@' } else { ':' };
        let subject = subject("push the manifest", &place, &format!("{separator}{identifier}"));
        let digest = Digest::of(bytes);
        let mismatch = |expected, actual| Error::DigestMismatch {
            subject: Box::new(subject.clone()),
            expected,
            actual,
        };
        if let Some(expected) = reference.digest()
            && expected != digest
        {
            return Err(mismatch(expected, digest));
        }
        let access = push_access(&place);
        let put = async || {
            let base = site.base(&self.transport, &subject).await?;
            let url = url(base, &place, "manifests", &identifier, &subject)?;
            let call = Call::new(Method::PUT, url, &subject)
                .header(header::CONTENT_TYPE, media_type)
                .payload(Payload::Bytes(bytes));
            self.send(&site, &access, &call).await
        };
        let response = self.policy().run(put).await?;
        match announced_digest(response.headers()) {
            Some(stored) if stored != digest => Err(mismatch(digest, stored)),
            _ => Ok(digest),
        }
    }

    pub(super) async fn check_push(&self, reference: &Reference) -> Result<(), Error> {
        let place = origin_place(&self.options, &self.transport, reference, Direction::Push);
        let site = self.site(&place);
        let subject = subject("push to", &place, "");
        let empty = Descriptor::new("", Digest::of(b""), 0);
        let never = || Err(io::Error::from(io::ErrorKind::Unsupported));
        let upload = Upload {
            core: self,
            site: &site,
            place: &place,
            access: push_access(&place),
            subject: &subject,
            descriptor: &empty,
            source: &never,
            bytes: Some(b""),
        };
        let session = self.policy().run(async || upload.open().await).await?;
        upload.cancel(session).await;
        Ok(())
    }
}

fn push_access(place: &Place) -> Access<'_> {
    Access { repository: &place.repository, direction: Direction::Push, also: &[] }
}

enum Mount {
    Done,
    Opened(Session),
}

impl Upload<'_> {
    async fn is_present(&self) -> Result<bool, Error> {
        let digest = &self.descriptor.digest;
        self.core.head_blob(self.site, &self.access, self.place, digest, self.subject).await
    }

    /// `POST …/blobs/uploads/` with further query fields.
    async fn start(&self, query: &[(&str, &str)], also: &[String]) -> Result<Response, Error> {
        let base = self.site.base(&self.core.transport, self.subject).await?;
        let mut url = url(base, self.place, "blobs", "uploads/", self.subject)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let access = Access { also, ..self.access.clone() };
        let call = Call::new(Method::POST, url, self.subject);
        self.core.send(self.site, &access, &call).await
    }

    async fn open(&self) -> Result<Session, Error> {
        let response = self.start(&[], &[]).await?;
        self.session(&response)
    }

    async fn mount(&self, from: &str) -> Result<Mount, Error> {
        let digest = self.descriptor.digest.to_string();
        let response =
            self.start(&[("mount", &digest), ("from", from)], &[from.to_owned()]).await?;
        match response.status().as_u16() {
            201 => Ok(Mount::Done),
            _ => Ok(Mount::Opened(self.session(&response)?)),
        }
    }

    fn session(&self, response: &Response) -> Result<Session, Error> {
        let location = self.location(response)?.ok_or_else(|| {
            self.protocol("it opens an upload without saying where (no Location)")
        })?;
        let chunk_min = header_text(response.headers(), "oci-chunk-min-length")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        Ok(Session { location, chunk_min })
    }

    /// Where an upload goes on. Registries behind a proxy often name themselves with the
    /// wrong scheme: HTTPS is kept for the host we already speak it with.
    fn location(&self, response: &Response) -> Result<Option<Url>, Error> {
        let Some(text) = header_text(response.headers(), header::LOCATION.as_str()) else {
            return Ok(None);
        };
        let asked = response.url();
        let mut url =
            asked.join(text).map_err(|_| self.protocol("it sends the upload to no valid place"))?;
        if asked.scheme() == "https" && url.scheme() == "http" {
            if url.host_str() == asked.host_str()
                && (url.port().is_none() || url.port() == asked.port())
            {
                // Both cannot fail: an https URL with a host is valid.
                let _ = url.set_scheme("https");
                let _ = url.set_port(asked.port());
            } else if !self.site.trust.plain {
                return Err(self.protocol("it sends the upload from HTTPS to plain HTTP"));
            }
        }
        Ok(Some(url))
    }

    fn protocol(&self, problem: &str) -> Error {
        Error::Protocol { subject: Box::new(self.subject.clone()), problem: problem.to_owned() }
    }

    /// A request of an open session. An upload may live on another host than the registry,
    /// which then gets no authorization.
    async fn send(&self, call: &Call<'_>) -> Result<Response, Error> {
        let base = self.site.base(&self.core.transport, self.subject).await?;
        if call.url.origin() == base.origin() {
            return self.core.send(self.site, &self.access, call).await;
        }
        let transport = &self.core.transport;
        let reply = transport.send(call, &self.site.trust, None).await?;
        if reply.response.status().is_success() {
            return Ok(reply.response);
        }
        let host = authority(&call.url);
        let subject = Subject { host, ..self.subject.clone() };
        let refusal = Box::new(transport.refusal(reply.response, &subject).await);
        Err(Error::Refused { subject: Box::new(subject), refusal })
    }

    /// Gives a session up; a registry that does not care forgets it by itself.
    async fn cancel(&self, session: Session) {
        let call = Call::new(Method::DELETE, session.location, self.subject);
        if let Err(error) = self.send(&call).await {
            tracing::debug!(error = %error, "cannot cancel an upload");
        }
    }

    /// Uploads, into `session` first if there is one.
    async fn run(&self, mut session: Option<Session>) -> Result<(), Error> {
        self.check_source()?;
        let mut patience = self.core.policy().patience();
        let mut breaks = 0;
        let mut chunked = false;
        loop {
            let error = match self.attempt(session.take(), chunked, &mut patience).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !chunked && is_body_refused(&error) && self.descriptor.size > 0 {
                tracing::info!(error = %error, "the body is refused, sending chunks");
                chunked = true;
                continue;
            }
            if matches!(error, Error::Unreachable { .. }) {
                breaks += 1;
                chunked |= breaks >= BREAKS_BEFORE_CHUNKS && self.descriptor.size > CHUNK;
            }
            let lost = is_session_lost(&error);
            match patience.pause(error).await {
                Ok(()) => {}
                // The registry forgot the session: a new one, but not for ever.
                Err(error) if lost && breaks < self.core.options.retries => {
                    tracing::warn!(error = %error, "starting the upload again");
                    breaks += 1;
                }
                Err(error) => return Err(error),
            }
            // The answer may have been lost and not the blob.
            if self.is_present().await.unwrap_or(false) {
                return Ok(());
            }
        }
    }

    async fn attempt(
        &self,
        session: Option<Session>,
        chunked: bool,
        patience: &mut Patience,
    ) -> Result<(), Error> {
        let session = match session {
            Some(session) => session,
            None => self.open().await?,
        };
        match chunked {
            false => self.put(session.location, 0).await,
            true => self.send_chunks(session, patience).await,
        }
    }

    /// The closing PUT, with everything from `offset` on as its body.
    async fn put(&self, mut location: Url, offset: u64) -> Result<(), Error> {
        let digest = self.descriptor.digest.to_string();
        location.query_pairs_mut().append_pair("digest", &digest);
        let length = self.descriptor.size.saturating_sub(offset);
        let payload = match self.bytes {
            _ if length == 0 => Payload::Empty,
            Some(bytes) => Payload::Bytes(bytes),
            None => Payload::File { open: self.source, offset, length },
        };
        let call = Call::new(Method::PUT, location, self.subject)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .payload(payload);
        let response = self.send(&call).await?;
        match announced_digest(response.headers()) {
            Some(actual) if actual != self.descriptor.digest => Err(Error::DigestMismatch {
                subject: Box::new(self.subject.clone()),
                expected: self.descriptor.digest,
                actual,
            }),
            _ => Ok(()),
        }
    }

    async fn send_chunks(&self, session: Session, patience: &mut Patience) -> Result<(), Error> {
        let Session { mut location, chunk_min } = session;
        let size = self.descriptor.size;
        let mut chunk = CHUNK.max(chunk_min);
        let mut offset = 0;
        let mut stuck = 0;
        while offset < size {
            let bytes = self.read(offset, chunk.min(size - offset))?;
            let end = offset + bytes.len() as u64;
            let call = Call::new(Method::PATCH, location.clone(), self.subject)
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_RANGE, &format!("{offset}-{}", end - 1))
                .payload(Payload::Bytes(&bytes));
            let (reached, next) = match self.send(&call).await {
                Ok(response) => {
                    let reached = reached(&response, end).unwrap_or(end);
                    (reached, self.location(&response)?)
                }
                Err(error) => {
                    if error.status() == Some(413) && chunk / 2 >= CHUNK_MIN.max(chunk_min) {
                        chunk /= 2;
                    } else if error.status() != Some(416) {
                        // 416: it has another idea of where we are, which it tells now.
                        patience.pause(error).await?;
                    } else if stuck >= self.core.options.retries.max(1) {
                        return Err(error);
                    }
                    self.status(&location, end).await?
                }
            };
            if reached > end {
                return Err(self.protocol("it claims more bytes than it was sent"));
            }
            stuck = if reached > offset { 0 } else { stuck + 1 };
            if stuck > self.core.options.retries.max(1) + 4 {
                return Err(self.protocol("the upload makes no progress"));
            }
            offset = reached;
            location = next.unwrap_or(location);
        }
        self.put(location, size).await
    }

    /// How far the registry got: bytes, and where to go on.
    async fn status(&self, location: &Url, sent: u64) -> Result<(u64, Option<Url>), Error> {
        let ask = async || {
            let call = Call::new(Method::GET, location.clone(), self.subject);
            self.send(&call).await
        };
        let response = self.core.policy().run(ask).await?;
        Ok((reached(&response, sent).unwrap_or(0), self.location(&response)?))
    }

    /// A part of the blob in memory.
    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
        let fail = |source| Error::Source { subject: Box::new(self.subject.clone()), source };
        if let Some(bytes) = self.bytes {
            let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
            let part = bytes.get(at(offset)..at(offset.saturating_add(length)));
            return part
                .map(<[u8]>::to_vec)
                .ok_or_else(|| fail(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut file = (self.source)().map_err(fail)?;
        file.seek(io::SeekFrom::Start(offset)).map_err(fail)?;
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 != length {
            return Err(fail(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(bytes)
    }

    /// Refuses a source of the wrong length before anything is sent.
    fn check_source(&self) -> Result<(), Error> {
        let fail = |source| Error::Source { subject: Box::new(self.subject.clone()), source };
        let actual = match self.bytes {
            Some(bytes) => bytes.len() as u64,
            None => (self.source)().and_then(|file| file.metadata()).map_err(fail)?.len(),
        };
        if actual == self.descriptor.size {
            return Ok(());
        }
        let (subject, expected) = (Box::new(self.subject.clone()), self.descriptor.size);
        Err(Error::Size { subject, expected, actual })
    }
}

/// Whether the body as a whole is what the registry does not like.
fn is_body_refused(error: &Error) -> bool {
    matches!(error.status(), Some(405 | 411 | 413 | 415 | 416 | 501))
}

/// Whether the session is gone or broken, but a new one may do.
fn is_session_lost(error: &Error) -> bool {
    let Error::Refused { refusal, .. } = error else { return false };
    refusal.status == 404
        || refusal.status == 416
        || matches!(
            refusal.code.as_deref(),
            Some("BLOB_UPLOAD_INVALID" | "BLOB_UPLOAD_UNKNOWN" | "RANGE_INVALID")
        )
}

/// Bytes the registry says it has, out of `Range: 0-<last>`. `0-0` is written for one byte
/// and for none; `sent` decides.
fn reached(response: &Response, sent: u64) -> Option<u64> {
    let text = header_text(response.headers(), header::RANGE.as_str())?;
    let last: u64 = text.trim_start_matches("bytes=").split_once('-')?.1.parse().ok()?;
    match last {
        0 if sent != 1 => Some(0),
        last => last.checked_add(1),
    }
}
