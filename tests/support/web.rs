//! A web server in this process, on a loopback port: files with validators, redirects,
//! and git's own CGI program behind a password.

use std::collections::HashMap;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// What is behind a path.
#[derive(Clone)]
pub(crate) enum Page {
    /// Bytes with their headers; a request that names the ETag gets 304.
    File(Vec<u8>, Vec<(&'static str, String)>),
    /// Another place.
    Redirect(String),
    /// A bare status.
    Status(&'static str),
}

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) status: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

#[derive(Default)]
struct State {
    pages: HashMap<String, Page>,
    /// Directory of repositories below `/git/`, and the header that opens them.
    git: Option<(PathBuf, String)>,
    seen: Vec<Seen>,
}

/// A running server; stops when dropped.
pub(crate) struct Web {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    address: String,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopping) = (Arc::clone(&state), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(&state, &stream));
            }
        });
        Self { state, stop, address, thread: Some(thread) }
    }

    /// `http://127.0.0.1:PORT` and `path`.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn put(&self, path: &str, page: Page) {
        self.state.lock().expect("no handler panics").pages.insert(path.to_owned(), page);
    }

    /// Serves the repositories in `directory` below `/git/` to whoever sends
    /// `authorization`.
    pub(crate) fn serve_git(&self, directory: PathBuf, authorization: &str) {
        self.state.lock().expect("no handler panics").git =
            Some((directory, authorization.to_owned()));
    }

    /// The requests since the last call.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().expect("no handler panics").seen)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(&self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Answer {
    status: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn bare(status: &str) -> Self {
        Self { status: status.to_owned(), headers: Vec::new(), body: Vec::new() }
    }
}

fn serve(state: &Mutex<State>, stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return };
    let (method, target) = (method.to_owned(), target.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.trim().split_once(": ") {
            headers.push((name.to_owned(), value.to_owned()));
        }
    }
    let mut seen = Seen { path: target.clone(), status: String::new(), headers };
    let mut body = Vec::new();
    if let Some(length) = seen.header("content-length").and_then(|text| text.parse().ok()) {
        body.resize(length, 0);
        if reader.read_exact(&mut body).is_err() {
            return;
        }
    } else if seen.header("transfer-encoding").is_some() {
        body = chunks(&mut reader);
    }
    let (page, git) = {
        let state = state.lock().expect("no handler panics");
        (state.pages.get(&target).cloned(), state.git.clone())
    };
    let answer = match (page, git) {
        (Some(Page::Status(status)), _) => Answer::bare(status),
        (Some(Page::Redirect(place)), _) => {
            Answer { headers: vec![("Location".to_owned(), place)], ..Answer::bare("302 Found") }
        }
        (Some(Page::File(bytes, headers)), _) => {
            let headers: Vec<(String, String)> =
                headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let own = |name: &str| {
                headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
            };
            let etag = own("ETag").zip(seen.header("if-none-match"));
            let time = own("Last-Modified").zip(seen.header("if-modified-since"));
            if etag.or(time).is_some_and(|(own, asked)| own == asked) {
                Answer::bare("304 Not Modified")
            } else {
                Answer { status: "200 OK".to_owned(), headers, body: bytes }
            }
        }
        (None, Some((directory, authorization))) if target.starts_with("/git/") => {
            if seen.header("authorization") == Some(authorization.as_str()) {
                cgi(&directory, &method, &target, &seen, &body)
            } else {
                let headers = vec![("WWW-Authenticate".to_owned(), "Basic realm=x".to_owned())];
                Answer { headers, ..Answer::bare("401 Unauthorized") }
            }
        }
        _ => Answer::bare("404 Not Found"),
    };
    seen.status.clone_from(&answer.status);
    state.lock().expect("no handler panics").seen.push(seen);
    let mut head = format!("HTTP/1.1 {}\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", answer.body.len()));
    let mut writer = stream;
    // Somebody who has seen enough hangs up.
    let _ = writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&answer.body));
}

fn chunks(reader: &mut BufReader<&TcpStream>) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a length");
        let length = usize::from_str_radix(line.trim(), 16).expect("a length");
        let mut piece = vec![0; length + 2];
        reader.read_exact(&mut piece).expect("a piece");
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&piece[..length]);
    }
}

/// Answers by `git http-backend` (RFC 3875).
fn cgi(directory: &PathBuf, method: &str, target: &str, seen: &Seen, body: &[u8]) -> Answer {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", directory)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", path.strip_prefix("/git").expect("checked"))
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", method)
        .env("CONTENT_TYPE", seen.header("content-type").unwrap_or_default())
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", seen.header("content-encoding").unwrap_or_default())
        .env("GIT_PROTOCOL", seen.header("git-protocol").unwrap_or_default())
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("git http-backend");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(body).expect("read by git");
    drop(stdin);
    let output = child.wait_with_output().expect("git").stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let mut answer = Answer { body: output[end + 4..].to_vec(), ..Answer::bare("200 OK") };
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        match line.split_once(": ") {
            Some(("Status", status)) => status.clone_into(&mut answer.status),
            Some((name, value)) => answer.headers.push((name.to_owned(), value.to_owned())),
            None => {}
        }
    }
    answer
}
