//! HTTP for the registry protocol: clients by kind of trust, redirects, time limits, and
//! bodies read from files.
//!
//! Two rules hold for every request: `Authorization` goes to the origin it was meant for
//! and nowhere else, whatever redirects say; and silence never lasts longer than the time
//! limit, while a transfer that moves may take as long as it needs.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read as _, Seek as _};
use std::net::IpAddr;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Identity, Method, Response, Url};
use tokio::task::JoinHandle;

use super::error::{Error, Refusal, Subject, Unreachable, chain};

/// Redirects of one request; registries need one or two.
const REDIRECTS_MAX: usize = 10;
/// How much of an error page is read.
const REFUSAL_MAX: usize = 64 << 10;
/// Pieces in which files are sent.
const PIECE: usize = 256 << 10;
/// A registry may copy and hash a whole layer between the last byte and its answer.
const ANSWER_PATIENCE: u32 = 10;

/// How far the other side of a connection is trusted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Trust {
    /// The registry on whose behalf requests are made: its own certificate authorities
    /// count for its token server and storage too.
    pub(super) registry: String,
    /// Whether certificates are not verified.
    pub(super) skip_verify: bool,
    /// Whether plain HTTP is acceptable.
    pub(super) plain: bool,
}

/// The body of a request; can be sent again.
pub(super) enum Payload<'a> {
    Empty,
    Bytes(&'a [u8]),
    /// `length` bytes of a file from `offset` on.
    File {
        open: &'a dyn Fn() -> io::Result<File>,
        offset: u64,
        length: u64,
    },
}

/// A request without its authorization.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) payload: Payload<'a>,
    pub(super) subject: &'a Subject,
}

impl<'a> Call<'a> {
    /// A request without body and headers.
    pub(super) fn new(method: Method, url: Url, subject: &'a Subject) -> Self {
        Self { method, url, headers: Vec::new(), payload: Payload::Empty, subject }
    }

    /// Adds a header. `value` must be visible ASCII, or the header is left out.
    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    pub(super) fn payload(mut self, payload: Payload<'a>) -> Self {
        self.payload = payload;
        self
    }
}

/// An answer of any status.
pub(super) struct Reply {
    pub(super) response: Response,
    /// Whether another origin than the one asked answered, after redirects.
    pub(super) foreign: bool,
}

/// What distinguishes one HTTP client from another.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Class {
    /// `None` for plain HTTP, else whether certificates are verified.
    verify: Option<bool>,
    authorities_of: Option<String>,
    identity_of: Option<String>,
    /// Past any proxy.
    direct: bool,
}

pub(super) struct Transport {
    user_agent: String,
    timeout: Duration,
    authorities: HashMap<String, Vec<Certificate>>,
    identities: HashMap<String, Identity>,
    clients: Mutex<HashMap<Class, reqwest::Client>>,
    system_roots: OnceLock<bool>,
}

impl Transport {
    pub(super) fn new(user_agent: &str, timeout: Duration) -> Self {
        Self {
            user_agent: user_agent.to_owned(),
            timeout,
            authorities: HashMap::new(),
            identities: HashMap::new(),
            clients: Mutex::new(HashMap::new()),
            system_roots: OnceLock::new(),
        }
    }

    /// Trusts the PEM certificates in `path` for what concerns `host`.
    pub(super) fn add_authority(&mut self, host: &str, path: &Path) -> Result<(), Error> {
        let fail = certificate_error(host, "certificate", path);
        let pem = std::fs::read(path).map_err(|error| fail(error.into()))?;
        let certificates =
            Certificate::from_pem_bundle(&pem).map_err(|error| fail(error.into()))?;
        if certificates.is_empty() {
            return Err(fail("there is no PEM certificate in it".into()));
        }
        self.authorities.entry(host.to_owned()).or_default().extend(certificates);
        Ok(())
    }

    /// Shows a client certificate to `host`, and to no other.
    pub(super) fn add_identity(
        &mut self,
        host: &str,
        certificate: &Path,
        key: &Path,
    ) -> Result<(), Error> {
        let read = |what, path: &Path| {
            std::fs::read(path).map_err(|error| certificate_error(host, what, path)(error.into()))
        };
        let mut pem = read("client certificate", certificate)?;
        pem.push(b'\n');
        pem.extend(read("client key", key)?);
        let identity = Identity::from_pem(&pem).map_err(|error| {
            certificate_error(host, "client certificate", certificate)(error.into())
        })?;
        self.identities.insert(host.to_owned(), identity);
        Ok(())
    }

    /// Whether the user gave TLS material for `host`.
    pub(super) fn has_tls_material(&self, host: &str) -> bool {
        self.authorities.contains_key(host) || self.identities.contains_key(host)
    }

    /// Sends a request, follows redirects of GET and HEAD, and gives the answer, whatever
    /// its status. `authorization` is sent to the origin of `call.url` alone.
    pub(super) async fn send(
        &self,
        call: &Call<'_>,
        trust: &Trust,
        authorization: Option<&HeaderValue>,
    ) -> Result<Reply, Error> {
        let mut url = call.url.clone();
        let mut foreign = false;
        for _ in 0..=REDIRECTS_MAX {
            let authorization = authorization.filter(|_| !foreign);
            let response = self.send_once(call, &url, trust, authorization).await?;
            let Some(next) = redirect(&response, call) else {
                return Ok(Reply { response, foreign });
            };
            let protocol = |problem: &str| Error::Protocol {
                subject: Box::new(call.subject.clone()),
                problem: problem.to_owned(),
            };
            let next = next.map_err(protocol)?;
            if url.scheme() == "https" && next.scheme() == "http" && !trust.plain {
                return Err(protocol("the registry redirects from HTTPS to plain HTTP"));
            }
            // Once away, the credentials stay away, also if a redirect leads back.
            foreign |= next.origin() != call.url.origin();
            url = next;
        }
        Err(Error::Protocol {
            subject: Box::new(call.subject.clone()),
            problem: format!("more than {REDIRECTS_MAX} redirects"),
        })
    }

    async fn send_once(
        &self,
        call: &Call<'_>,
        url: &Url,
        trust: &Trust,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Error> {
        let mut request = self.client(url, trust)?.request(call.method.clone(), url.clone());
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let mut progress = None;
        request = match &call.payload {
            Payload::Empty if call.method == Method::GET || call.method == Method::HEAD => request,
            Payload::Empty => request.header(header::CONTENT_LENGTH, 0),
            Payload::Bytes(bytes) => request.body(bytes.to_vec()),
            Payload::File { open, offset, length } => {
                let subject = || Box::new(call.subject.clone());
                let mut file =
                    open().map_err(|source| Error::Source { subject: subject(), source })?;
                file.seek(io::SeekFrom::Start(*offset))
                    .map_err(|source| Error::Source { subject: subject(), source })?;
                let watched = Arc::new(Progress::new(*length));
                progress = Some(Arc::clone(&watched));
                request
                    .header(header::CONTENT_LENGTH, *length)
                    .body(reqwest::Body::wrap_stream(FileStream::new(file, *length, watched)))
            }
        };
        let outcome = self.watch(progress.as_deref(), request.send()).await;
        if let Some(source) = progress.and_then(|progress| progress.take_failure()) {
            return Err(Error::Source { subject: Box::new(call.subject.clone()), source });
        }
        match outcome {
            Some(Ok(response)) => Ok(response),
            Some(Err(error)) => Err(unreachable(call.subject, error)),
            None => Err(self.silent(call.subject)),
        }
    }

    /// Waits for an answer as long as the body moves; `None` after too long a silence.
    async fn watch<T>(
        &self,
        progress: Option<&Progress>,
        answer: impl Future<Output = T>,
    ) -> Option<T> {
        let mut answer = pin!(answer);
        let (mut seen, mut silences) = (0, 0);
        loop {
            if let Ok(outcome) = tokio::time::timeout(self.timeout, &mut answer).await {
                return Some(outcome);
            }
            let progress = progress?;
            let sent = progress.sent.load(Ordering::Relaxed);
            if sent != seen {
                (seen, silences) = (sent, 0);
                continue;
            }
            silences += 1;
            if sent < progress.length || silences >= ANSWER_PATIENCE {
                return None;
            }
        }
    }

    /// The next piece of an answer's body; `None` at its end.
    pub(super) async fn chunk(
        &self,
        response: &mut Response,
        subject: &Subject,
    ) -> Result<Option<impl AsRef<[u8]> + Send + use<>>, Error> {
        match tokio::time::timeout(self.timeout, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(unreachable(subject, error)),
            Err(_) => Err(self.silent(subject)),
        }
    }

    /// A whole body of at most `max` bytes.
    pub(super) async fn body(
        &self,
        mut response: Response,
        max: usize,
        subject: &Subject,
    ) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut response, subject).await? {
            bytes.extend_from_slice(chunk.as_ref());
            if bytes.len() > max {
                return Err(Error::Size {
                    subject: Box::new(subject.clone()),
                    expected: max as u64,
                    actual: bytes.len() as u64,
                });
            }
        }
        Ok(bytes)
    }

    /// What a failed answer says.
    pub(super) async fn refusal(&self, mut response: Response, subject: &Subject) -> Refusal {
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers());
        let mut bytes = Vec::new();
        // Whatever goes wrong here, the status is the message.
        while let Ok(Some(chunk)) = self.chunk(&mut response, subject).await {
            bytes.extend_from_slice(chunk.as_ref());
            if bytes.len() > REFUSAL_MAX {
                break;
            }
        }
        let (code, message) = error_text(&bytes);
        Refusal { status, code, message, tried: Vec::new(), retry_after }
    }

    fn silent(&self, subject: &Subject) -> Error {
        Error::Unreachable {
            subject: Box::new(subject.clone()),
            kind: Unreachable::Timeout,
            source: format!("silence for {} s", self.timeout.as_secs_f32()).into(),
        }
    }

    fn client(&self, url: &Url, trust: &Trust) -> Result<reqwest::Client, Error> {
        let secure = url.scheme() == "https";
        let here = authority(url);
        let class = Class {
            verify: secure.then_some(!trust.skip_verify),
            authorities_of: Some(trust.registry.clone())
                .filter(|host| secure && self.authorities.contains_key(host)),
            identity_of: Some(here).filter(|host| secure && self.identities.contains_key(host)),
            direct: url.host_str().is_some_and(is_loopback),
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&class) {
            return Ok(client.clone());
        }
        let client = self.build(&class).map_err(|error| Error::Setup(error.into()))?;
        clients.insert(class, client.clone());
        Ok(client)
    }

    fn builder(&self) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .user_agent(&self.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(self.timeout.min(Duration::from_secs(30)))
            .pool_idle_timeout(Duration::from_secs(30))
            .tcp_keepalive(Duration::from_secs(30))
    }

    fn build(&self, class: &Class) -> reqwest::Result<reqwest::Client> {
        let mut builder = self.builder();
        if class.direct {
            builder = builder.no_proxy();
        }
        if let Some(identity) = class.identity_of.as_ref().and_then(|of| self.identities.get(of)) {
            builder = builder.identity(identity.clone());
        }
        let own = class.authorities_of.as_ref().and_then(|of| self.authorities.get(of));
        let own = own.cloned().unwrap_or_default();
        builder = match class.verify {
            // Nothing to verify, so no certificates are loaded.
            None => builder.tls_certs_only([]),
            Some(false) => builder.tls_certs_only([]).tls_danger_accept_invalid_certs(true),
            Some(true) if self.has_system_roots() => builder.tls_certs_merge(own),
            Some(true) => builder.tls_certs_only(built_in_roots().chain(own)),
        };
        builder.build()
    }

    /// Whether the system (SSL_CERT_FILE and SSL_CERT_DIR included) has certificate
    /// authorities. Without any, reqwest refuses to build a client, and an image without
    /// a CA bundle could not talk to any registry; the built-in ones take over then.
    fn has_system_roots(&self) -> bool {
        *self.system_roots.get_or_init(|| {
            let found = self.builder().build().is_ok();
            if !found {
                tracing::info!("no certificate authorities on this system, using built-in ones");
            }
            found
        })
    }
}

fn built_in_roots() -> impl Iterator<Item = Certificate> {
    webpki_root_certs::TLS_SERVER_ROOT_CERTS
        .iter()
        .filter_map(|certificate| Certificate::from_der(certificate).ok())
}

fn certificate_error(
    host: &str,
    what: &'static str,
    path: &Path,
) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> Error {
    move |source| Error::Certificate { host: host.to_owned(), what, path: path.to_owned(), source }
}

/// Host and, when it is not the scheme's own, port.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or("");
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Where a redirect leads, if the answer is one that this request may follow.
fn redirect(response: &Response, call: &Call<'_>) -> Option<Result<Url, &'static str>> {
    let status = response.status().as_u16();
    let follows = match status {
        301..=303 => call.method == Method::GET || call.method == Method::HEAD,
        307 | 308 => matches!(call.payload, Payload::Empty),
        _ => false,
    };
    if !follows {
        return None;
    }
    let location = response.headers().get(header::LOCATION)?;
    let target = location.to_str().ok().and_then(|text| response.url().join(text).ok());
    Some(match target {
        Some(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        _ => Err("the registry redirects to no valid place"),
    })
}

/// Whether `host` (without port; IPv6 in brackets) is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn unreachable(subject: &Subject, error: reqwest::Error) -> Error {
    // URLs may be signed.
    let error = error.without_url();
    let cause = chain(&error);
    let kind = if error.is_timeout() {
        Unreachable::Timeout
    } else if ["certificate", "corrupt message", "fatal alert", "handshake"]
        .iter()
        .any(|word| cause.contains(word))
    {
        Unreachable::Tls
    } else if error.is_dns() || cause.contains("dns error") {
        Unreachable::Name
    } else if error.is_connect() {
        Unreachable::Connect
    } else {
        Unreachable::Broken
    };
    Error::Unreachable { subject: Box::new(subject.clone()), kind, source: error.into() }
}

/// `Retry-After` in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(until.duration_since(jiff::Timestamp::now()).try_into().unwrap_or(Duration::ZERO))
}

/// Code and message of the specification's error document, or the first line of a text.
fn error_text(bytes: &[u8]) -> (Option<String>, Option<String>) {
    let short = |text: &str| {
        let clean = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let clean: String = clean.chars().filter(|c| !c.is_control()).take(300).collect();
        Some(clean).filter(|text| !text.is_empty())
    };
    if let Ok(document) = serde_json::from_slice::<serde_json::Value>(bytes) {
        let first = document.get("errors").and_then(|errors| errors.get(0)).unwrap_or(&document);
        let field =
            |name: &str| first.get(name).and_then(serde_json::Value::as_str).and_then(short);
        let message = field("message")
            .or_else(|| field("details"))
            .or_else(|| field("error_description"))
            .or_else(|| field("error"));
        return (field("code"), message);
    }
    let text = String::from_utf8_lossy(bytes);
    match text.trim_start().starts_with('<') {
        true => (None, None),
        false => (None, short(text.lines().next().unwrap_or(""))),
    }
}

/// How far a body has been sent.
struct Progress {
    length: u64,
    sent: AtomicU64,
    failure: Mutex<Option<io::Error>>,
}

impl Progress {
    fn new(length: u64) -> Self {
        Self { length, sent: AtomicU64::new(0), failure: Mutex::new(None) }
    }

    fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A part of a file as a stream of pieces, read on the blocking threads.
struct FileStream {
    file: Option<File>,
    reading: Option<JoinHandle<(File, io::Result<Vec<u8>>)>>,
    remaining: u64,
    progress: Arc<Progress>,
}

impl FileStream {
    fn new(file: File, length: u64, progress: Arc<Progress>) -> Self {
        Self { file: Some(file), reading: None, remaining: length, progress }
    }

    fn fail(&mut self, error: io::Error) -> Poll<Option<io::Result<Vec<u8>>>> {
        self.remaining = 0;
        let kind = error.kind();
        *self.progress.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        Poll::Ready(Some(Err(kind.into())))
    }
}

impl futures_core::Stream for FileStream {
    type Item = io::Result<Vec<u8>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(mut file) = self.file.take() {
            if self.remaining == 0 {
                return Poll::Ready(None);
            }
            let length = PIECE.min(usize::try_from(self.remaining).unwrap_or(PIECE));
            self.reading = Some(tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; length];
                let outcome = file.read_exact(&mut piece).map(|()| piece);
                (file, outcome)
            }));
        }
        let Some(reading) = self.reading.as_mut() else { return Poll::Ready(None) };
        let outcome = ready!(Pin::new(reading).poll(context));
        self.reading = None;
        match outcome {
            Ok((file, Ok(piece))) => {
                self.file = Some(file);
                self.remaining = self.remaining.saturating_sub(piece.len() as u64);
                self.progress.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Poll::Ready(Some(Ok(piece)))
            }
            Ok((_, Err(error))) => self.fail(error),
            Err(stopped) => self.fail(io::Error::other(stopped)),
        }
    }
}
