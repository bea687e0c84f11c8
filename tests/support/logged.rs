//! Debian's docker-registry on a loopback port with its access log, with or without
//! a password; ends when dropped.

use std::fs;
use std::fs::File;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;

/// `builder` with the password `secret`, as bcrypt with the least work.
const ACCOUNT: &str = "builder:$2b$04$u54/.RtROQllTsDCobLCP.NweHuFSA.IC5htQj2qt5L5gsQIoIGby\n";

/// The same for `Authorization: Basic`.
pub(crate) const CREDENTIALS: &str = "YnVpbGRlcjpzZWNyZXQ=";

/// See the module.
pub(crate) struct Logged {
    process: Child,
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    directory: TempDir,
}

impl Logged {
    /// Starts one with nothing in it; with `locked`, only for those who know the
    /// password.
    pub(crate) fn start(locked: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let address = format!("127.0.0.1:{port}");
        let place = directory.path().display();
        let mut text = format!(
            "version: 0.1\nlog: {{ level: error }}\n\
             storage: {{ filesystem: {{ rootdirectory: {place}/data }} }}\n\
             http: {{ addr: \"{address}\" }}\n"
        );
        if locked {
            fs::write(directory.path().join("accounts"), ACCOUNT).expect("accounts");
            text += &format!("auth: {{ htpasswd: {{ realm: test, path: {place}/accounts }} }}\n");
        }
        let config = directory.path().join("config.yml");
        fs::write(&config, text).expect("a config");
        let log = File::create(directory.path().join("log")).expect("a log");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("docker-registry");
        let registry = Self { process, address, directory };
        let started = Instant::now();
        while TcpStream::connect(&registry.address).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "the registry did not start");
            std::thread::yield_now();
        }
        registry
    }

    /// A `DOCKER_AUTH_CONFIG` that opens it.
    pub(crate) fn auth_config(&self) -> String {
        format!(r#"{{"auths":{{"{}":{{"auth":"{CREDENTIALS}"}}}}}}"#, self.address)
    }

    /// Requests so far: `GET /v2/app/blobs/sha256:… 200`. What was answered before
    /// this is called is in it.
    pub(crate) fn requests(&self) -> Vec<String> {
        // The log is written in order: once our own request is there, all before are.
        let mark = format!("/v2/mark/{}", unique());
        let mut stream = TcpStream::connect(&self.address).expect("the registry");
        std::io::Write::write_all(
            &mut stream,
            format!("GET {mark} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).as_bytes(),
        )
        .expect("a request");
        let started = Instant::now();
        loop {
            let log = fs::read_to_string(self.directory.path().join("log")).expect("the log");
            if log.contains(&mark) {
                return log.lines().filter_map(request).collect();
            }
            assert!(started.elapsed() < Duration::from_secs(20), "the log is silent:\n{log}");
            std::thread::yield_now();
        }
    }

    /// Where it keeps a blob.
    pub(crate) fn blob_file(&self, digest: &str) -> std::path::PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let path = format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        self.directory.path().join(Path::new(&path))
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn unique() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_nanos()
}

/// Out of `host - - [time] "GET /v2/ HTTP/1.1" 200 2 "" "agent"`.
fn request(line: &str) -> Option<String> {
    let mut quoted = line.split('"');
    let request = quoted.nth(1)?;
    let status = quoted.next()?.split_whitespace().next()?;
    let (request, _) = request.rsplit_once(" HTTP/")?;
    Some(format!("{request} {status}"))
}
