//! Authorization as the registry asks for it: challenges, tokens, and which of several
//! credentials opens which repository.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, Response, Url};
use serde::Deserialize;

use super::error::{Error, Refusal, Subject};
use super::keychain::{Candidate, Keychain, Secret};
use super::site::{Direction, Site};
use super::transport::{Call, Payload, Transport, authority};

/// Largest answer of a token server, in bytes.
const TOKEN_MAX: usize = 1 << 20;
/// Life of a token that does not tell its own (distribution's token specification).
const TOKEN_LIFE: u64 = 60;
/// Our name at OAuth2 token servers.
const CLIENT_ID: &str = "yadokari";

/// How a registry wants to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenge in `WWW-Authenticate` that we can answer, tokens before passwords.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(header::WWW_AUTHENTICATE) {
        for (scheme, parameters) in parse_challenges(value.to_str().unwrap_or("")) {
            let get = |name: &str| {
                let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
            };
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = get("realm")
            {
                let (service, scope) = (get("service"), get("scope"));
                return Some(Challenge::Bearer { realm, service, scope });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// Splits `Scheme key="value", key=value, Scheme …` (RFC 9110 §11.6.1), leniently.
fn parse_challenges(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return found;
        }
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after_space = after.trim_start();
        let Some(value) = after_space.strip_prefix('=').filter(|_| !word.is_empty()) else {
            // A word without a value starts a challenge; a stray `=` is passed over.
            match word.is_empty() {
                true => rest = after.get(1..).unwrap_or(""),
                false => {
                    found.push((word.to_owned(), Vec::new()));
                    rest = after;
                }
            }
            continue;
        };
        let value = value.trim_start();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = value.find([' ', '\t', ',']).unwrap_or(value.len());
                let (value, after) = value.split_at(end);
                (value.to_owned(), after)
            }
        };
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word.to_owned(), value));
        }
        rest = after;
    }
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, text.get(at + 1..).unwrap_or("")),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// What a request needs to be allowed to do.
#[derive(Clone, Debug)]
pub(super) struct Access<'a> {
    pub(super) repository: &'a str,
    pub(super) direction: Direction,
    /// Further repositories to read from, for mounts.
    pub(super) also: &'a [String],
}

impl Access<'_> {
    /// Token scopes (distribution's token specification).
    fn scopes(&self, extra: Option<&str>) -> Vec<String> {
        let actions = match self.direction {
            Direction::Pull => "pull",
            Direction::Push => "pull,push",
        };
        let mut scopes = vec![format!("repository:{}:{actions}", self.repository)];
        for repository in self.also {
            scopes.push(format!("repository:{repository}:pull"));
        }
        // Registries with wishes of their own name them in the challenge.
        for scope in extra.unwrap_or("").split_whitespace() {
            if !scopes.iter().any(|known| covers(known, scope)) {
                scopes.push(scope.to_owned());
            }
        }
        scopes
    }
}

/// Whether scope `known` asks for everything that `wanted` does.
fn covers(known: &str, wanted: &str) -> bool {
    let split =
        |scope: &str| scope.rsplit_once(':').map(|(on, acts)| (on.to_owned(), acts.to_owned()));
    match (split(known), split(wanted)) {
        (Some((on, has)), Some((of, wants))) => {
            on == of && wants.split(',').all(|want| has.split(',').any(|action| action == want))
        }
        _ => known == wanted,
    }
}

/// A header that opened, or should open, something.
#[derive(Clone)]
struct Grant {
    /// Distinguishes a grant from its successor under the same key.
    id: u64,
    header: Option<HeaderValue>,
    /// Index into the candidates of the request.
    candidate: usize,
    expires: Option<Instant>,
}

/// What one host has asked for and accepted.
#[derive(Default)]
pub(super) struct Grants {
    challenge: Option<Challenge>,
    by_scopes: HashMap<String, Grant>,
    last_id: u64,
}

impl Grants {
    /// Remembers how the host wants to be asked; `None` for a host that lets everybody in.
    pub(super) fn set_challenge(&mut self, challenge: Option<Challenge>) {
        self.challenge = challenge;
    }
}

/// Sends requests with the authorization their host wants.
pub(super) struct Authorizer<'a> {
    pub(super) transport: &'a Transport,
    pub(super) keychain: &'a Keychain,
}

impl Authorizer<'_> {
    /// Sends `call` to `site`, with each credential in turn as long as the answer is 401
    /// or 403, anonymously at the end where that can help. Gives answers of 2xx.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for any other answer, [`Error::Token`] when no credential gets a
    /// token, or no answer.
    pub(super) async fn send(
        &self,
        site: &Site,
        access: &Access<'_>,
        call: &Call<'_>,
    ) -> Result<Response, Error> {
        let mut candidates = self.keychain.candidates(site.host(), access.repository);
        // Anonymous pushes are for registries without any accounts.
        if access.direction == Direction::Pull || candidates.is_empty() {
            candidates.push(Candidate::Anonymous);
        }
        let mut turn = Turn { first: 0, extra: None, tried: Vec::new(), failure: None };
        // Each round but the few after an expired or replaced grant uses up a candidate.
        for _ in 0..candidates.len() * 2 + 4 {
            let Some((grant, is_new)) =
                self.grant(site, access, call.subject, &candidates, &mut turn).await?
            else {
                break;
            };
            let header = grant.as_ref().and_then(|grant| grant.header.as_ref());
            let reply = self.transport.send(call, &site.trust, header).await?;
            let status = reply.response.status();
            if status.is_success() {
                return Ok(reply.response);
            }
            let wants = challenge(reply.response.headers());
            let mut refusal = self.transport.refusal(reply.response, call.subject).await;
            // A storage host behind a redirect has nothing to do with our credentials.
            if !matches!(status.as_u16(), 401 | 403) || reply.foreign {
                refusal.tried.clone_from(&turn.tried);
                return Err(refused(call.subject, refusal));
            }
            let mut grants = site.grants.lock().await;
            let asked_for = access.scopes(turn.extra.as_deref());
            if let Some(Challenge::Bearer { scope: Some(scope), .. }) = &wants {
                turn.extra = Some(scope.clone());
            }
            match grant {
                Some(grant) => {
                    grants.by_scopes.retain(|_, kept| kept.id != grant.id);
                    if wants.is_some() {
                        grants.challenge = wants;
                    }
                    if is_new && access.scopes(turn.extra.as_deref()) == asked_for {
                        turn.tried.extend(candidates.get(grant.candidate).map(Candidate::origin));
                    } else if is_new {
                        // The registry wants more scopes: once more with the same credential.
                        turn.first = grant.candidate;
                    }
                }
                None => grants.challenge = Some(wants.unwrap_or(Challenge::Basic)),
            }
            drop(grants);
            turn.failure = Some(refused(call.subject, refusal));
        }
        Err(turn.give_up(call.subject))
    }

    /// The header to try next and whether it was made just now; inside, `None` for a host
    /// that has not asked for any. `None` when there is nothing left to try.
    async fn grant(
        &self,
        site: &Site,
        access: &Access<'_>,
        subject: &Subject,
        candidates: &[Candidate],
        turn: &mut Turn,
    ) -> Result<Option<(Option<Grant>, bool)>, Error> {
        // Held while a token is fetched, so that parallel requests share one.
        let mut grants = site.grants.lock().await;
        let Some(challenge) = grants.challenge.clone() else {
            return Ok(Some((None, false)));
        };
        let scopes = access.scopes(turn.extra.as_deref());
        let key = scopes.join(" ");
        if let Some(grant) = grants.by_scopes.get(&key)
            && grant.candidate >= turn.first
            && grant.expires.is_none_or(|expires| Instant::now() < expires)
        {
            return Ok(Some((Some(grant.clone()), false)));
        }
        for (index, candidate) in candidates.iter().enumerate().skip(turn.first) {
            turn.first = index + 1;
            let secret = match self.keychain.secret(candidate).await {
                Ok(Some(secret)) => Some(secret),
                Ok(None) if *candidate == Candidate::Anonymous => None,
                Ok(None) => {
                    turn.tried.push(format!("{} (knows no credentials)", candidate.origin()));
                    continue;
                }
                Err(problem) => {
                    tracing::warn!(host = site.host(), "{problem}");
                    turn.tried.push(problem);
                    continue;
                }
            };
            let made = match (&challenge, &secret) {
                (_, Some(Secret::Registry(token))) => Ok((bearer(token), None)),
                (Challenge::Basic, Some(secret)) => Ok((basic(secret), None)),
                // Asking a second time without password cannot help.
                (Challenge::Basic, None) if turn.failure.is_some() => {
                    turn.tried.push(candidate.origin());
                    continue;
                }
                (Challenge::Basic, None) => Ok((None, None)),
                (Challenge::Bearer { realm, service, .. }, secret) => {
                    self.token(site, realm, service.as_deref(), &scopes, secret.as_ref(), subject)
                        .await
                }
            };
            match made {
                Ok((header, life)) => {
                    grants.last_id += 1;
                    let expires = life.and_then(|life| Instant::now().checked_add(life));
                    let id = grants.last_id;
                    let grant = Grant { id, header, candidate: index, expires };
                    grants.by_scopes.insert(key, grant.clone());
                    return Ok(Some((Some(grant), true)));
                }
                // These may be about this one credential.
                Err(error @ Error::Token { .. }) if !error.is_transient() => {
                    turn.tried.push(candidate.origin());
                    turn.failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Asks the token server: GET with Basic, or OAuth2 POST for identity tokens.
    async fn token(
        &self,
        site: &Site,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
        secret: Option<&Secret>,
        subject: &Subject,
    ) -> Result<(Option<HeaderValue>, Option<Duration>), Error> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        let protocol = |problem: &str| Error::Protocol {
            subject: Box::new(subject.clone()),
            problem: problem.to_owned(),
        };
        let base = site.base(self.transport, subject).await?;
        let mut url =
            base.join(realm).map_err(|_| protocol("its token server has no valid address"))?;
        let is_plain = url.scheme() == "http" && base.scheme() == "https";
        if is_plain && secret.is_some() && !site.trust.plain {
            return Err(protocol("its token server wants credentials without TLS"));
        }
        let host = authority(&url);
        let form;
        let (call, authorization) = if let Some(Secret::Identity(token)) = secret {
            let joined = scopes.join(" ");
            let mut fields = Url::parse("form:").expect("a constant URL is valid");
            fields
                .query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service.unwrap_or(""))
                .append_pair("scope", &joined)
                .append_pair("client_id", CLIENT_ID)
                .append_pair("refresh_token", token);
            form = fields.query().unwrap_or("").to_owned();
            let call = Call::new(Method::POST, url, subject)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .payload(Payload::Bytes(form.as_bytes()));
            (call, None)
        } else {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(service.map(|service| ("service", service)));
            query.extend_pairs(scopes.iter().map(|scope| ("scope", scope)));
            drop(query);
            (Call::new(Method::GET, url, subject), secret.and_then(basic))
        };
        let reply = self.transport.send(&call, &site.trust, authorization.as_ref()).await?;
        let token_error = |refusal: Refusal| Error::Token {
            subject: Box::new(subject.clone()),
            realm: host.clone(),
            refusal: Box::new(refusal),
        };
        if !reply.response.status().is_success() {
            return Err(token_error(self.transport.refusal(reply.response, subject).await));
        }
        let status = reply.response.status().as_u16();
        let bytes = self.transport.body(reply.response, TOKEN_MAX, subject).await?;
        let answer: Option<Answer> = serde_json::from_slice(&bytes).ok();
        let life = answer.as_ref().and_then(|answer| answer.expires_in).unwrap_or(TOKEN_LIFE);
        let token = answer
            .and_then(|answer| answer.token.or(answer.access_token))
            .filter(|token| !token.is_empty());
        let header = token.as_deref().and_then(bearer).ok_or_else(|| {
            token_error(Refusal {
                status,
                code: None,
                message: Some("the answer holds no token".to_owned()),
                tried: Vec::new(),
                retry_after: None,
            })
        })?;
        // A tenth of its life is left for the request that uses it.
        Ok((Some(header), Some(Duration::from_secs(life.max(1)).mul_f64(0.9))))
    }
}

/// The state of one request's search for a credential.
struct Turn {
    /// Candidates before this one are used up.
    first: usize,
    /// Scope out of the last refusal.
    extra: Option<String>,
    tried: Vec<String>,
    failure: Option<Error>,
}

impl Turn {
    /// The last failure, with all that was tried.
    fn give_up(self, subject: &Subject) -> Error {
        let tried = self.tried;
        match self.failure {
            Some(Error::Refused { subject, mut refusal }) => {
                refusal.tried = tried;
                Error::Refused { subject, refusal }
            }
            Some(Error::Token { subject, realm, mut refusal }) => {
                refusal.tried = tried;
                Error::Token { subject, realm, refusal }
            }
            Some(other) => other,
            // Every helper failed and anonymous access was not worth a try.
            None => refused(
                subject,
                Refusal { status: 401, code: None, message: None, tried, retry_after: None },
            ),
        }
    }
}

fn refused(subject: &Subject, refusal: Refusal) -> Error {
    Error::Refused { subject: Box::new(subject.clone()), refusal: Box::new(refusal) }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

/// `None` for a token that is no password: Docker sends those as user `<token>`, which no
/// registry with Basic takes.
fn basic(secret: &Secret) -> Option<HeaderValue> {
    let Secret::Password { user, password } = secret else { return None };
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    sensitive(&format!("Basic {pair}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn challenges_are_read_in_all_their_spellings() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        for (values, expected) in [
            (
                vec![r#"Bearer realm="https://a/t",service="s",scope="repository:a:pull,push""#],
                bearer("https://a/t", Some("s"), Some("repository:a:pull,push")),
            ),
            (vec![r#"bearer Realm = "x\"y" , service=plain"#], bearer("x\"y", Some("plain"), None)),
            (vec!["Basic realm=\"r\""], Some(Challenge::Basic)),
            (vec!["BASIC"], Some(Challenge::Basic)),
            (vec!["Basic realm=\"r\", Bearer realm=\"t\""], bearer("t", None, None)),
            (vec!["Negotiate", "Basic realm=x"], Some(Challenge::Basic)),
            (vec!["Negotiate abc=="], None),
            (vec!["Bearer service=\"no realm\""], None),
            (vec!["=", "\"", ",,,", "Bearer realm=\"unclosed"], bearer("unclosed", None, None)),
            (vec![], None),
        ] {
            assert_eq!(challenge(&headers(&values)), expected, "{values:?}");
        }
    }

    #[test]
    fn scopes_name_every_repository_once() {
        let also = ["other".to_owned()];
        let access = Access { repository: "a/b", direction: Direction::Push, also: &also };
        assert_eq!(
            access.scopes(Some("repository:a/b:pull registry:catalog:*")),
            ["repository:a/b:pull,push", "repository:other:pull", "registry:catalog:*"]
        );
    }

    proptest::proptest! {
        #[test]
        fn no_challenge_panics(text in "\\PC{0,60}|[a-z =,\"\\\\]{0,60}") {
            parse_challenges(&text);
        }
    }
}
