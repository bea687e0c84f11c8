//! Which hosts to ask for a repository, and how: mirrors, HTTP or HTTPS, trust.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::{Method, Url};
use tokio::sync::{Mutex, OnceCell};

use crate::oci::reference::{DOCKER_HUB, DOCKER_HUB_API, DOCKER_HUB_LEGACY, Reference};

use super::Options;
use super::auth::{self, Grants};
use super::error::{Error, Subject, Unreachable};
use super::transport::{Call, Transport, Trust, is_loopback};

/// What a repository is asked for; insecure flags differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Pull,
    Push,
}

/// A repository at one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) trust: Trust,
    /// The schemes to try, in order; never empty.
    pub(super) schemes: &'static [&'static str],
    /// Path inside that host.
    pub(super) repository: String,
}

impl Place {
    /// Host and port.
    pub(super) fn host(&self) -> &str {
        &self.trust.registry
    }
}

/// All places to pull `reference` from: its mirrors in order, then the registry itself.
pub(super) fn pull_places(
    options: &Options,
    transport: &Transport,
    reference: &Reference,
) -> Vec<Place> {
    let origin = canonical(reference.registry());
    let mut places: Vec<Place> = Vec::new();
    let mirrors = options
        .mirrors
        .iter()
        .filter(|(registry, _)| canonical(registry) == origin)
        .flat_map(|(_, mirrors)| mirrors);
    for mirror in mirrors {
        let (scheme, rest) = match mirror.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, mirror.as_str()),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        let repository = match path {
            "" => reference.repository().to_owned(),
            path => format!("{path}/{}", reference.repository()),
        };
        let mut place = place(options, transport, &api_host(host), repository, Direction::Pull);
        match scheme {
            Some("http") => {
                (place.schemes, place.trust.plain) = (&["http"], true);
            }
            Some("https") => place.schemes = &["https"],
            _ => {}
        }
        places.push(place);
    }
    if places.is_empty() || !options.skip_default_fallback {
        places.push(origin_place(options, transport, reference, Direction::Pull));
    }
    places
}

/// The registry itself.
pub(super) fn origin_place(
    options: &Options,
    transport: &Transport,
    reference: &Reference,
    direction: Direction,
) -> Place {
    let repository = reference.repository().to_owned();
    place(options, transport, reference.api_host(), repository, direction)
}

fn place(
    options: &Options,
    transport: &Transport,
    host: &str,
    repository: String,
    direction: Direction,
) -> Place {
    let listed = |hosts: &[String]| hosts.iter().any(|each| canonical(each) == canonical(host));
    let (insecure, skip) = match direction {
        Direction::Pull => {
            (options.insecure_pull, options.skip_tls_verify || options.skip_tls_verify_pull)
        }
        Direction::Push => (options.insecure, options.skip_tls_verify),
    };
    let told = insecure || listed(&options.insecure_registries);
    let skip_verify = skip || listed(&options.skip_tls_verify_registries);
    let plain = told || is_local(host);
    let schemes: &[&str] = match plain {
        false => &["https"],
        // Somebody who cares for the certificate expects TLS.
        true if skip_verify || transport.has_tls_material(host) => &["https", "http"],
        true => &["http", "https"],
    };
    Place { trust: Trust { registry: host.to_owned(), skip_verify, plain }, schemes, repository }
}

/// Hosts that kaniko, like Docker, asks without TLS: this machine and RFC 1918 addresses.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    is_loopback(name) || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_private())
}

/// One spelling per registry, for comparing.
fn canonical(host: &str) -> String {
    let host = host.trim().to_ascii_lowercase();
    match host.as_str() {
        DOCKER_HUB_LEGACY | DOCKER_HUB_API => DOCKER_HUB.to_owned(),
        _ => host,
    }
}

/// The host to ask for a registry's name.
fn api_host(host: &str) -> String {
    match canonical(host).as_str() {
        DOCKER_HUB => DOCKER_HUB_API.to_owned(),
        _ => host.to_owned(),
    }
}

/// What is known about one host, shared by all requests to it.
pub(super) struct Site {
    pub(super) trust: Trust,
    schemes: &'static [&'static str],
    base: OnceCell<Url>,
    pub(super) grants: Mutex<Grants>,
    down: AtomicBool,
}

impl Site {
    pub(super) fn new(place: &Place) -> Self {
        Self {
            trust: place.trust.clone(),
            schemes: place.schemes,
            base: OnceCell::new(),
            grants: Mutex::new(Grants::default()),
            down: AtomicBool::new(false),
        }
    }

    /// Host and port.
    pub(super) fn host(&self) -> &str {
        &self.trust.registry
    }

    /// Whether the last request got no answer; such a mirror is asked last.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    /// `http(s)://host/`. The first call asks `/v2/`, without credentials, by which
    /// scheme the host answers and how it wants to be authenticated.
    pub(super) async fn base(
        &self,
        transport: &Transport,
        subject: &Subject,
    ) -> Result<&Url, Error> {
        self.base.get_or_try_init(|| self.ping(transport, subject)).await
    }

    async fn ping(&self, transport: &Transport, subject: &Subject) -> Result<Url, Error> {
        let mut first_error = None;
        for (index, scheme) in self.schemes.iter().enumerate() {
            let has_other = index + 1 < self.schemes.len();
            let base = Url::parse(&format!("{scheme}://{}/", self.host())).map_err(|error| {
                Error::Protocol {
                    subject: Box::new(subject.clone()),
                    problem: format!("{} is no host: {error}", self.host()),
                }
            })?;
            let v2 = base.join("v2/").expect("a constant path joins any base URL");
            let call = Call::new(Method::GET, v2, subject);
            let reply = match transport.send(&call, &self.trust, None).await {
                Ok(reply) => reply,
                Err(error) => {
                    // What TLS says about a certificate is worth more than the refusal of
                    // plain HTTP before it.
                    let tls = matches!(&error, Error::Unreachable { kind: Unreachable::Tls, .. });
                    if tls && !has_other || first_error.is_none() {
                        first_error = Some(error);
                    }
                    continue;
                }
            };
            let answered = reply.response.url().clone();
            let challenge = auth::challenge(reply.response.headers());
            if *scheme == "http" && answered.scheme() == "https" {
                if answered.host_str() == base.host_str() {
                    let mut upgraded = answered;
                    upgraded.set_path("/");
                    upgraded.set_query(None);
                    self.grants.lock().await.set_challenge(challenge);
                    return Ok(upgraded);
                }
            } else if *scheme == "http" && has_other && reply.response.status() == 400 {
                // Servers of TLS tell those who come without it.
                first_error = Some(Error::Refused {
                    subject: Box::new(subject.clone()),
                    refusal: Box::new(transport.refusal(reply.response, subject).await),
                });
                continue;
            }
            if !reply.foreign {
                self.grants.lock().await.set_challenge(challenge);
            }
            return Ok(base);
        }
        Err(first_error.expect("every scheme that gave no base left an error"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    fn transport() -> Transport {
        Transport::new("test", Duration::from_secs(1))
    }

    fn schemes(options: &Options, image: &str, direction: Direction) -> &'static [&'static str] {
        let reference: Reference = image.parse().unwrap();
        origin_place(options, &transport(), &reference, direction).schemes
    }

    #[test]
    fn plain_http_is_for_local_hosts_and_those_the_user_named() {
        let none = Options::default();
        for local in [
            "localhost:5000/a",
            "127.0.0.1:1/a",
            "[::1]:5000/a",
            "10.1.2.3/a",
            "x.localhost/a",
            "192.168.0.1:80/a",
            "172.16.9.9/a",
        ] {
            assert_eq!(schemes(&none, local, Direction::Pull), ["http", "https"], "{local}");
        }
        for remote in ["debian", "r.example/a", "8.8.8.8/a", "172.32.0.1/a", "[2001:db8::1]/a"] {
            assert_eq!(schemes(&none, remote, Direction::Push), ["https"], "{remote}");
        }
        let pull = Options { insecure_pull: true, ..Options::default() };
        assert_eq!(schemes(&pull, "r.example/a", Direction::Pull), ["http", "https"]);
        assert_eq!(schemes(&pull, "r.example/a", Direction::Push), ["https"]);
        let listed =
            Options { insecure_registries: vec!["R.example".to_owned()], ..Options::default() };
        assert_eq!(schemes(&listed, "r.example/a", Direction::Push), ["http", "https"]);
        let skip = Options { skip_tls_verify: true, ..Options::default() };
        assert_eq!(schemes(&skip, "10.0.0.1/a", Direction::Push), ["https", "http"]);
    }

    #[test]
    fn mirrors_come_in_order_and_the_registry_last() {
        let mut options = Options {
            mirrors: vec![(
                "index.docker.io".to_owned(),
                vec!["m.example/hub/".to_owned(), "http://n.example:5000".to_owned()],
            )],
            ..Options::default()
        };
        let shown = |options: &Options, image: &str| {
            pull_places(options, &transport(), &image.parse().unwrap())
                .iter()
                .map(|place| {
                    format!("{}://{}/{}", place.schemes[0], place.host(), place.repository)
                })
                .collect::<Vec<_>>()
        };
        let hub = "https://registry-1.docker.io/library/debian";
        let mirrors =
            ["https://m.example/hub/library/debian", "http://n.example:5000/library/debian"];
        assert_eq!(shown(&options, "debian"), [mirrors[0], mirrors[1], hub]);
        assert_eq!(shown(&options, "r.example/a"), ["https://r.example/a"]);
        options.skip_default_fallback = true;
        assert_eq!(shown(&options, "debian"), mirrors);
        assert_eq!(shown(&options, "r.example/a"), ["https://r.example/a"]);
    }
}
