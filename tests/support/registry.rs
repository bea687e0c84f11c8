//! A registry in this process, on a loopback port, that misbehaves on demand.
//!
//! It speaks enough of the distribution protocol for a client: manifests, blobs with
//! ranges, uploads whole and in chunks, mounts, Basic and token authentication. Faults
//! are queued by [`Registry::fault`]; every request is recorded.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use base64::Engine as _;
use yadokari::oci::digest::Digest;

/// Who may do what.
#[derive(Clone, Default)]
pub(crate) enum Auth {
    /// Everybody, everything.
    #[default]
    Open,
    /// One user and password for everything.
    Basic(&'static str, &'static str),
    /// Tokens from `/token`.
    Token {
        /// User, password, and whether it may push.
        accounts: Vec<(&'static str, &'static str, bool)>,
        /// OAuth2 refresh token that may push.
        refresh: Option<&'static str>,
        /// Whether nobody in particular may pull.
        anonymous: bool,
    },
}

/// What the registry accepts.
#[derive(Clone, Default)]
pub(crate) struct Rules {
    pub(crate) auth: Auth,
    /// Mounts are refused.
    pub(crate) no_mount: bool,
    /// A PUT of an upload with more bytes is refused with 413.
    pub(crate) put_max: Option<usize>,
    /// A PATCH with more bytes is refused with this status.
    pub(crate) patch_max: Option<(usize, u16)>,
    /// Blobs are answered by a redirect to this `http://host:port`.
    pub(crate) blobs_at: Option<String>,
    /// Ranges are ignored.
    pub(crate) no_ranges: bool,
    /// `Docker-Content-Digest` is left out.
    pub(crate) no_digest_header: bool,
}

/// How a request goes wrong.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Answers with a status, headers and a body instead.
    Status(u16, Vec<(&'static str, String)>, String),
    /// Closes the connection without an answer, the body unread.
    Drop,
    /// Answers in full but for the last bytes: only so many of the body are sent.
    Truncate(usize),
    /// Answers, but sends only so many bytes of the body and then nothing for ever.
    Stall(usize),
    /// Changes the first byte of the body, headers untouched.
    Corrupt,
    /// Does what was asked, then closes without an answer.
    LoseAnswer,
    /// Keeps only so many bytes of the body of a PATCH and answers 500.
    KeepPart(usize),
}

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

type Name = (String, String);
type Document = (String, Arc<Vec<u8>>);

#[derive(Default)]
struct State {
    rules: Rules,
    address: String,
    blobs: HashMap<Name, Arc<Vec<u8>>>,
    /// Repository and name to media type and content.
    manifests: HashMap<Name, Document>,
    uploads: HashMap<String, (String, Vec<u8>)>,
    /// Token to what it allows, as `repository:action`.
    tokens: HashMap<String, HashSet<String>>,
    faults: Vec<(&'static str, &'static str, Fault)>,
    seen: Vec<Seen>,
    counter: usize,
}

/// A running registry; stops when dropped.
pub(crate) struct Registry {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    address: String,
    thread: Option<JoinHandle<()>>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Arc<Vec<u8>>,
}

impl Answer {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Arc::new(Vec::new()) }
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        let text = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
        Self::new(status).with("Content-Type", "application/json").body(text.into_bytes())
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: impl Into<Arc<Vec<u8>>>) -> Self {
        self.body = body.into();
        self
    }
}

impl Registry {
    pub(crate) fn start(rules: Rules) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let state =
            Arc::new(Mutex::new(State { rules, address: address.clone(), ..State::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopping) = (Arc::clone(&state), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let state = Arc::clone(&shared);
                if let Ok(stream) = stream {
                    std::thread::spawn(move || serve(&state, &stream));
                }
            }
        });
        Self { state, stop, address, thread: Some(thread) }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> &str {
        &self.address
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no handler panics")
    }

    pub(crate) fn rules(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.state().rules);
    }

    /// The next request of `method` whose target contains `part` goes wrong.
    pub(crate) fn fault(&self, method: &'static str, part: &'static str, fault: Fault) {
        self.state().faults.push((method, part, fault));
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn mend(&self) {
        self.state().faults.clear();
    }

    pub(crate) fn put_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let key = (repository.to_owned(), digest.to_string());
        self.state().blobs.insert(key, Arc::new(bytes.to_vec()));
        digest
    }

    pub(crate) fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        kind: &str,
        bytes: &[u8],
    ) -> Digest {
        let digest = Digest::of(bytes);
        for name in [tag.to_owned(), digest.to_string()] {
            let value = (kind.to_owned(), Arc::new(bytes.to_vec()));
            self.state().manifests.insert((repository.to_owned(), name), value);
        }
        digest
    }

    pub(crate) fn blob(&self, repository: &str, digest: &Digest) -> Option<Vec<u8>> {
        let key = (repository.to_owned(), digest.to_string());
        self.state().blobs.get(&key).map(|bytes| bytes.to_vec())
    }

    pub(crate) fn manifest(&self, repository: &str, name: &str) -> Option<(String, Vec<u8>)> {
        let key = (repository.to_owned(), name.to_owned());
        self.state().manifests.get(&key).map(|(kind, bytes)| (kind.clone(), bytes.to_vec()))
    }

    /// Tags of a repository with their manifests.
    pub(crate) fn manifests(&self, repository: &str) -> Vec<(String, Vec<u8>)> {
        let state = self.state();
        let tagged = state
            .manifests
            .iter()
            .filter(|((of, name), _)| of == repository && !name.contains(':'));
        let mut all: Vec<_> =
            tagged.map(|((_, tag), (_, bytes))| (tag.clone(), bytes.to_vec())).collect();
        all.sort();
        all
    }

    /// Every blob of a repository becomes `bytes`, whatever its digest.
    pub(crate) fn replace_blobs(&self, repository: &str, bytes: &[u8]) {
        for ((of, _), blob) in &mut self.state().blobs {
            if of == repository {
                *blob = Arc::new(bytes.to_vec());
            }
        }
    }

    /// Every blob of a repository goes.
    pub(crate) fn remove_blobs(&self, repository: &str) {
        self.state().blobs.retain(|(of, _), _| of != repository);
    }

    /// Upload sessions neither finished nor cancelled.
    pub(crate) fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }

    /// All requests so far, in order of arrival.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// How many requests of `method` had `part` in their target.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        let seen = self.seen();
        seen.iter().filter(|seen| seen.method == method && seen.target.contains(part)).count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener.
        drop(TcpStream::connect(&self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves one connection until it ends.
fn serve(state: &Mutex<State>, stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some((seen, length)) = read_head(&mut reader) {
        let fault = {
            let mut state = state.lock().expect("no handler panics");
            state.seen.push(seen.clone());
            let found = state
                .faults
                .iter()
                .position(|(method, part, _)| *method == seen.method && seen.target.contains(part));
            found.map(|index| state.faults.remove(index).2)
        };
        if let Some(Fault::Drop) = fault {
            return;
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let mut truncate = None;
        let mut stall = false;
        let answer = match fault {
            Some(Fault::Status(status, headers, body)) => {
                let mut answer = Answer::new(status).body(body.into_bytes());
                answer.headers = headers;
                answer
            }
            Some(Fault::KeepPart(kept)) => {
                body.truncate(kept);
                handle(state, &seen, &body);
                Answer::error(500, "UNKNOWN", "lost the rest")
            }
            Some(Fault::LoseAnswer) => {
                handle(state, &seen, &body);
                return;
            }
            fault => {
                let mut answer = handle(state, &seen, &body);
                match fault {
                    Some(Fault::Truncate(length)) => truncate = Some(length),
                    Some(Fault::Stall(length)) => (truncate, stall) = (Some(length), true),
                    Some(Fault::Corrupt) => {
                        let mut bytes = answer.body.to_vec();
                        bytes[0] ^= 1;
                        answer.body = Arc::new(bytes);
                    }
                    _ => {}
                }
                answer
            }
        };
        let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
        let has_length = answer.headers.iter().any(|(name, _)| *name == "Content-Length");
        if !has_length {
            head += &format!("Content-Length: {}\r\n", answer.body.len());
        }
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        if writer.write_all(head.as_bytes()).is_err() {
            return;
        }
        if seen.method != "HEAD" {
            let part = &answer.body[..truncate.unwrap_or(answer.body.len())];
            let sent = writer.write_all(part);
            if stall {
                // Until the client goes.
                let _ = reader.read(&mut [0]);
            }
            if sent.is_err() || truncate.is_some() {
                return;
            }
        }
    }
}

/// Request line and headers, and the length of the body.
fn read_head(reader: &mut BufReader<&TcpStream>) -> Option<(Seen, usize)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut seen = Seen { method, target, headers, body: 0 };
    assert!(seen.header("Transfer-Encoding").is_none(), "bodies must tell their length");
    seen.body = seen.header("Content-Length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let length = seen.body;
    Some((seen, length))
}

fn handle(state: &Mutex<State>, seen: &Seen, body: &[u8]) -> Answer {
    let mut state = state.lock().expect("no handler panics");
    let (path, query) = seen.target.split_once('?').unwrap_or((&seen.target, ""));
    if path == "/token" {
        return state.token(seen, query, body);
    }
    let Some(path) = path.strip_prefix("/v2/") else {
        return Answer::error(404, "NOT_FOUND", "no such page");
    };
    if path.is_empty() {
        return match state.allowed(seen, "", "") {
            true => Answer::new(200),
            false => state.challenge(""),
        };
    }
    let route = ["/manifests/", "/blobs/uploads/", "/blobs/"]
        .into_iter()
        .find_map(|kind| path.split_once(kind).map(|(repository, name)| (repository, kind, name)));
    let Some((repository, kind, name)) = route else {
        return Answer::error(404, "NOT_FOUND", "no such route");
    };
    let action = if matches!(seen.method.as_str(), "GET" | "HEAD") && kind != "/blobs/uploads/" {
        "pull"
    } else {
        "push"
    };
    if !state.allowed(seen, repository, action) {
        return state.challenge(&format!("repository:{repository}:{action}"));
    }
    match kind {
        "/manifests/" => state.manifest(seen, repository, name, body),
        "/blobs/" => state.blob(seen, repository, name),
        _ => state.upload(seen, repository, name, query, body),
    }
}

fn query_values(query: &str, name: &str) -> Vec<String> {
    let decode = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            match byte {
                b'+' => bytes.push(b' '),
                b'%' => {
                    let hex = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                    let hex = String::from_utf8_lossy(&hex).into_owned();
                    bytes.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
                }
                byte => bytes.push(byte),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| decode(value)).collect()
}

impl State {
    fn account(header: Option<&str>) -> Option<(String, String)> {
        let encoded = header?.strip_prefix("Basic ")?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
    }

    fn allowed(&self, seen: &Seen, repository: &str, action: &str) -> bool {
        let header = seen.header("Authorization");
        match &self.rules.auth {
            Auth::Open => true,
            Auth::Basic(user, password) => {
                Self::account(header) == Some(((*user).to_owned(), (*password).to_owned()))
            }
            Auth::Token { .. } => header
                .and_then(|header| header.strip_prefix("Bearer "))
                .and_then(|token| self.tokens.get(token))
                .is_some_and(|scopes| {
                    repository.is_empty() || scopes.contains(&format!("{repository}:{action}"))
                }),
        }
    }

    fn challenge(&self, scope: &str) -> Answer {
        let value = match &self.rules.auth {
            Auth::Token { .. } => format!(
                r#"Bearer realm="http://{}/token",service="fake",scope="{scope}""#,
                self.address
            ),
            _ => r#"Basic realm="fake""#.to_owned(),
        };
        Answer::error(401, "UNAUTHORIZED", "authentication required")
            .with("WWW-Authenticate", value)
    }

    fn token(&mut self, seen: &Seen, query: &str, body: &[u8]) -> Answer {
        let Auth::Token { accounts, refresh, anonymous } = self.rules.auth.clone() else {
            return Answer::new(404);
        };
        let form = String::from_utf8_lossy(body).into_owned();
        let posted = seen.method == "POST";
        let may_push = if posted {
            match (query_values(&form, "refresh_token").first(), refresh) {
                (Some(given), Some(wanted)) if given == wanted => true,
                _ => return Answer::error(401, "DENIED", "bad refresh token"),
            }
        } else {
            match Self::account(seen.header("Authorization")) {
                Some((user, password)) => {
                    match accounts.iter().find(|known| known.0 == user && known.1 == password) {
                        Some((_, _, may_push)) => *may_push,
                        None => return Answer::error(401, "UNAUTHORIZED", "wrong password"),
                    }
                }
                None if anonymous => false,
                None => return Answer::error(401, "UNAUTHORIZED", "log in first"),
            }
        };
        let source = if posted { form.as_str() } else { query };
        let mut granted = HashSet::new();
        for scope in query_values(source, "scope").iter().flat_map(|text| text.split(' ')) {
            if let Some((name, actions)) =
                scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':'))
            {
                for action in actions.split(',').filter(|action| may_push || *action == "pull") {
                    granted.insert(format!("{name}:{action}"));
                }
            }
        }
        self.counter += 1;
        let token = format!("token-{}", self.counter);
        self.tokens.insert(token.clone(), granted);
        let field = if posted { "access_token" } else { "token" };
        Answer::new(200).body(format!(r#"{{"{field}":"{token}","expires_in":300}}"#).into_bytes())
    }

    fn manifest(&mut self, seen: &Seen, repository: &str, name: &str, body: &[u8]) -> Answer {
        if seen.method == "PUT" {
            let digest = Digest::of(body).to_string();
            let kind = seen.header("Content-Type").unwrap_or("").to_owned();
            for name in [name.to_owned(), digest.clone()] {
                let value = (kind.clone(), Arc::new(body.to_vec()));
                self.manifests.insert((repository.to_owned(), name), value);
            }
            return Answer::new(201).with("Docker-Content-Digest", digest);
        }
        let Some((kind, bytes)) = self.manifests.get(&(repository.to_owned(), name.to_owned()))
        else {
            return Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
        };
        let answer = Answer::new(200).with("Content-Type", kind.clone()).body(Arc::clone(bytes));
        match self.rules.no_digest_header {
            true => answer,
            false => answer.with("Docker-Content-Digest", Digest::of(bytes).to_string()),
        }
    }

    fn blob(&mut self, seen: &Seen, repository: &str, name: &str) -> Answer {
        let Some(bytes) = self.blobs.get(&(repository.to_owned(), name.to_owned())) else {
            return Answer::error(404, "BLOB_UNKNOWN", "blob unknown");
        };
        if let Some(elsewhere) = &self.rules.blobs_at {
            return Answer::new(307).with("Location", format!("{elsewhere}{}", seen.target));
        }
        let start = seen
            .header("Range")
            .filter(|_| !self.rules.no_ranges)
            .and_then(|range| range.strip_prefix("bytes="))
            .and_then(|range| range.trim_end_matches('-').parse::<usize>().ok());
        match start {
            None => Answer::new(200).body(Arc::clone(bytes)),
            Some(start) => {
                let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
                Answer::new(206).with("Content-Range", range).body(bytes[start..].to_vec())
            }
        }
    }

    fn upload(
        &mut self,
        seen: &Seen,
        repository: &str,
        id: &str,
        query: &str,
        body: &[u8],
    ) -> Answer {
        let one = |name: &str| query_values(query, name).into_iter().next();
        if seen.method == "POST" {
            if let (Some(digest), Some(from)) = (one("mount"), one("from")) {
                let readable = self.allowed(seen, &from, "pull");
                let found = self.blobs.get(&(from, digest.clone())).cloned();
                if let Some(bytes) = found.filter(|_| readable && !self.rules.no_mount) {
                    self.blobs.insert((repository.to_owned(), digest), bytes);
                    return Answer::new(201);
                }
            }
            self.counter += 1;
            let id = format!("upload-{}", self.counter);
            self.uploads.insert(id.clone(), (repository.to_owned(), Vec::new()));
            let place = format!("/v2/{repository}/blobs/uploads/{id}?state=a%2Bb");
            return Answer::new(202).with("Location", place).with("Range", "0-0");
        }
        let place = format!("/v2/{repository}/blobs/uploads/{id}?state=a%2Bb");
        let rules = self.rules.clone();
        if one("state").as_deref() != Some("a+b") {
            return Answer::error(400, "BLOB_UPLOAD_INVALID", "the location was changed");
        }
        let Some((_, bytes)) = self.uploads.get_mut(id) else {
            return Answer::error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
        };
        let progress = |bytes: &Vec<u8>, status| {
            Answer::new(status)
                .with("Location", place.clone())
                .with("Range", format!("0-{}", bytes.len().saturating_sub(1)))
        };
        match seen.method.as_str() {
            "GET" => progress(bytes, 204),
            "PATCH" => {
                if let Some((max, status)) = rules.patch_max
                    && body.len() > max
                {
                    return Answer::error(status, "SIZE_INVALID", "chunk too large");
                }
                let range = seen.header("Content-Range").unwrap_or("");
                if range.split('-').next().and_then(|text| text.parse().ok()) != Some(bytes.len()) {
                    return Answer::error(416, "BLOB_UPLOAD_INVALID", "not where it ended");
                }
                bytes.extend_from_slice(body);
                progress(bytes, 202)
            }
            "PUT" => {
                if rules.put_max.is_some_and(|max| body.len() > max) {
                    return Answer::error(413, "SIZE_INVALID", "body too large");
                }
                bytes.extend_from_slice(body);
                let digest = Digest::of(bytes).to_string();
                let whole = Arc::new(std::mem::take(bytes));
                self.uploads.remove(id);
                if one("digest").as_deref() != Some(digest.as_str()) {
                    return Answer::error(400, "DIGEST_INVALID", "digest does not match");
                }
                self.blobs.insert((repository.to_owned(), digest.clone()), whole);
                Answer::new(201).with("Docker-Content-Digest", digest)
            }
            "DELETE" => {
                self.uploads.remove(id);
                Answer::new(204)
            }
            _ => Answer::new(405),
        }
    }
}
