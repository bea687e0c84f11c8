//! Files over HTTP: one conditional GET, the answer's body as a reader.
//!
//! A credential is sent to the origin it was meant for; once a redirect leads to
//! another one, it stays away for good. HTTPS isn't left for plain HTTP by a redirect.

use std::io;
use std::io::Read;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::time::Duration;

use backon::BackoffBuilder;
use backon::ExponentialBuilder;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Certificate;
use reqwest::Response;
use reqwest::StatusCode;
use reqwest::header;
use reqwest::header::HeaderValue;
use tokio::runtime::Runtime;
use url::Url;

use super::Error;
use crate::address::redacted;

/// Redirects of one request.
const REDIRECTS_MAX: usize = 10;

/// How long the other side may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Further tries of a request that got no answer, or one that says to try later.
const RETRIES: usize = 3;

/// Pause before the first further try; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// What is known of a file from an earlier build: sent along, so that an unchanged
/// file is not sent again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// Its ETag.
    pub etag: Option<String>,
    /// Its Last-Modified.
    pub last_modified: Option<String>,
}

/// What a server says to a request.
pub enum Answer {
    /// It still is what was [`Known`].
    Unchanged,
    /// The file.
    Body(Box<Body>),
}

/// A file on its way. Reading blocks; silence of a minute is an error, and so is an
/// end before the announced length.
pub struct Body {
    host: String,
    runtime: Arc<Runtime>,
    // A mutex only because a response can't be shared between threads.
    response: Mutex<Response>,
    piece: Option<Box<dyn AsRef<[u8]> + Send + Sync>>,
    offset: usize,
    /// Its ETag.
    pub etag: Option<String>,
    /// Its Last-Modified, as sent.
    pub last_modified: Option<String>,
}

/// A client for files. Shared by threads; nothing is started before the first request.
pub struct Http {
    user_agent: String,
    runtime: OnceLock<Arc<Runtime>>,
    secure: OnceLock<reqwest::Client>,
    plain: OnceLock<reqwest::Client>,
    direct: OnceLock<reqwest::Client>,
}

impl Http {
    /// A client that calls itself `user_agent`.
    pub fn new(user_agent: &str) -> Self {
        Self {
            user_agent: user_agent.to_owned(),
            runtime: OnceLock::new(),
            secure: OnceLock::new(),
            plain: OnceLock::new(),
            direct: OnceLock::new(),
        }
    }

    /// Asks for `url`. `authorization` is the value of that header, for the origin of
    /// `url` alone; without one, user and password of the URL are used.
    ///
    /// Blocks until the answer's head is there; passing failures are tried again a few
    /// times.
    ///
    /// # Errors
    /// No answer, one that is no success, redirects without end.
    pub fn get(
        &self,
        url: &Url,
        known: &Known,
        authorization: Option<&str>,
    ) -> Result<Answer, Error> {
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_times(RETRIES)
            .with_jitter()
            .build();
        loop {
            match self.runtime()?.block_on(self.follow(url, known, authorization)) {
                Err(error) if error.is_passing() => match pauses.next() {
                    Some(pause) => {
                        tracing::debug!(%error, ?pause, "asking again");
                        std::thread::sleep(pause);
                    }
                    None => return Err(error),
                },
                other => return other,
            }
        }
    }

    async fn follow(
        &self,
        asked: &Url,
        known: &Known,
        authorization: Option<&str>,
    ) -> Result<Answer, Error> {
        let shown = redacted(asked.as_str());
        let mut authorization = credential(asked, authorization)?;
        let mut url = without_user(asked);
        for _ in 0..=REDIRECTS_MAX {
            let response = self.once(&url, known, authorization.as_ref(), &shown).await?;
            let status = response.status();
            let next = response.headers().get(header::LOCATION);
            let (true, Some(next)) = (is_redirect(status), next) else {
                return self.answer(response, known, &url, &shown);
            };
            let wrong = |reason: String| Error::Redirect { url: shown.clone(), reason };
            let next = next
                .to_str()
                .ok()
                .and_then(|place| url.join(place).ok())
                .filter(|next| matches!(next.scheme(), "http" | "https") && next.has_host())
                .ok_or_else(|| wrong("it is redirected to something that is no URL".to_owned()))?;
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(wrong(format!(
                    "{} redirects from HTTPS to plain HTTP at {}",
                    host(&url),
                    host(&next)
                )));
            }
            if next.origin() != url.origin() {
                authorization = None;
            }
            url = without_user(&next);
        }
        Err(Error::Redirect {
            url: shown,
            reason: format!("more than {REDIRECTS_MAX} redirects, the last one to {}", host(&url)),
        })
    }

    async fn once(
        &self,
        url: &Url,
        known: &Known,
        authorization: Option<&HeaderValue>,
        shown: &str,
    ) -> Result<Response, Error> {
        // Contents are stored as they are: no transfer in another encoding.
        let mut request =
            self.client(url)?.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        if let Some(etag) = &known.etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        } else if let Some(time) = &known.last_modified {
            request = request.header(header::IF_MODIFIED_SINCE, time);
        }
        let unreachable =
            |reason: String| Error::Unreachable { url: shown.to_owned(), host: host(url), reason };
        match tokio::time::timeout(SILENCE, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unreachable(innermost(error))),
            Err(_) => Err(unreachable(silence())),
        }
    }

    fn answer(
        &self,
        response: Response,
        known: &Known,
        url: &Url,
        shown: &str,
    ) -> Result<Answer, Error> {
        let status = response.status();
        let header = |name| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let asked = known.etag.is_some() || known.last_modified.is_some();
        if status == StatusCode::NOT_MODIFIED && asked {
            return Ok(Answer::Unchanged);
        }
        if !status.is_success() {
            return Err(Error::Status {
                url: shown.to_owned(),
                host: host(url),
                status: status.to_string(),
                hint: match status.as_u16() {
                    401 | 403 => {
                        " (credentials come from --secret id=HTTP_AUTH_TOKEN_HOST or \
                         HTTP_AUTH_HEADER_HOST)"
                    }
                    _ => "",
                },
            });
        }
        let etag = header(header::ETAG);
        // Some servers ignore the condition and send the same file again.
        let is_strong = |etag: &str| !etag.starts_with("W/");
        if etag.as_deref().is_some_and(is_strong) && etag == known.etag {
            return Ok(Answer::Unchanged);
        }
        Ok(Answer::Body(Box::new(Body {
            host: host(url),
            runtime: self.runtime()?,
            last_modified: header(header::LAST_MODIFIED),
            etag,
            response: Mutex::new(response),
            piece: None,
            offset: 0,
        })))
    }

    fn runtime(&self) -> Result<Arc<Runtime>, Error> {
        if let Some(runtime) = self.runtime.get() {
            return Ok(Arc::clone(runtime));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fetch")
            .enable_all()
            .build()
            .map_err(|error| Error::Setup(error.into()))?;
        Ok(Arc::clone(self.runtime.get_or_init(|| Arc::new(runtime))))
    }

    fn client(&self, url: &Url) -> Result<&reqwest::Client, Error> {
        let failed = |error: reqwest::Error| Error::Setup(error.into());
        let builder = || {
            reqwest::Client::builder()
                .user_agent(&self.user_agent)
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(Duration::from_secs(30))
                .tcp_keepalive(Duration::from_secs(30))
        };
        let (place, made) = if url.scheme() == "https" {
            if let Some(client) = self.secure.get() {
                return Ok(client);
            }
            // Without any authority on the system reqwest makes no client; an image
            // without a CA bundle uses the built-in ones.
            let made = builder().build().or_else(|_| {
                let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS
                    .iter()
                    .filter_map(|certificate| Certificate::from_der(certificate).ok());
                builder().tls_certs_only(roots).build()
            });
            (&self.secure, made)
        } else if is_loopback(url) {
            if let Some(client) = self.direct.get() {
                return Ok(client);
            }
            (&self.direct, builder().no_proxy().tls_certs_only([]).build())
        } else {
            if let Some(client) = self.plain.get() {
                return Ok(client);
            }
            // Nothing to verify, so no certificates are loaded.
            (&self.plain, builder().tls_certs_only([]).build())
        };
        let made = made.map_err(failed)?;
        Ok(place.get_or_init(|| made))
    }
}

impl Body {
    /// Who sends it.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(piece) = &self.piece {
                let rest = (**piece).as_ref().get(self.offset..).unwrap_or_default();
                if !rest.is_empty() {
                    let count = rest.len().min(buffer.len());
                    buffer[..count].copy_from_slice(&rest[..count]);
                    self.offset += count;
                    return Ok(count);
                }
            }
            let response = self.response.get_mut().unwrap_or_else(PoisonError::into_inner);
            // Inside of it, because a timeout starts by looking for its runtime.
            let chunk = async { tokio::time::timeout(SILENCE, response.chunk()).await };
            let next = self.runtime.block_on(chunk);
            let failed = |reason: String| {
                io::Error::other(format!("{} stopped sending: {reason}", self.host))
            };
            match next {
                Ok(Ok(None)) => return Ok(0),
                Ok(Ok(Some(piece))) => {
                    self.piece = Some(Box::new(piece));
                    self.offset = 0;
                }
                Ok(Err(error)) => return Err(failed(innermost(error))),
                Err(_) => return Err(failed(silence())),
            }
        }
    }
}

fn silence() -> String {
    format!("silence for {} s", SILENCE.as_secs())
}

/// What is at the bottom of an error; what lies above repeats the URL.
fn innermost(error: reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    redacted(&cause.to_string())
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Host and port of `url`, for messages.
fn host(url: &Url) -> String {
    let name = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn without_user(url: &Url) -> Url {
    let mut url = url.clone();
    // Only URLs that can't have a host refuse; ours has one.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    url
}

/// The header for `url`'s origin.
fn credential(url: &Url, given: Option<&str>) -> Result<Option<HeaderValue>, Error> {
    let text = match given {
        Some(text) => text.to_owned(),
        None if url.username().is_empty() && url.password().is_none() => return Ok(None),
        None => {
            let decoded = |text: &str| {
                url::form_urlencoded::parse(format!("x={}", text.replace('+', "%2B")).as_bytes())
                    .next()
                    .map(|(_, value)| value.into_owned())
                    .unwrap_or_default()
            };
            let user = decoded(url.username());
            let password = decoded(url.password().unwrap_or_default());
            format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        }
    };
    let mut value =
        HeaderValue::from_str(text.trim()).map_err(|_| Error::BadCredential { host: host(url) })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn the_password_of_a_url_becomes_a_header_and_leaves_the_url() {
        let given = url("https://me:a%40b@h.example/x#y");
        let header = credential(&given, None).expect("fits").expect("there");
        assert_eq!(header.to_str().ok(), Some("Basic bWU6YUBi"));
        assert!(header.is_sensitive());
        assert_eq!(without_user(&given).as_str(), "https://h.example/x");
        assert!(credential(&url("https://h/"), None).expect("fits").is_none());
        assert!(credential(&url("https://h/"), Some("Bearer a\nb")).is_err());
    }

    #[test]
    fn loopback_is_reached_past_any_proxy() {
        for text in ["http://127.0.0.1:1/", "http://localhost/", "http://[::1]/"] {
            assert!(is_loopback(&url(text)), "{text}");
        }
        assert!(!is_loopback(&url("http://127.example/")));
    }
}
