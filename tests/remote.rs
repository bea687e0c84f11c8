//! What lies on other machines: ADD of URLs and repositories, contexts elsewhere, named
//! contexts, ssh agents. Servers are in this process, on loopback ports.

#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/host.rs"]
mod host;
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/image.rs"]
mod image;
#[path = "support/web.rs"]
mod web;

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use sha2::Digest as _;
use tempfile::TempDir;

use host::succeed;
use image::Image;
use web::Page;
use web::Web;

const PASSWORD: &str = "correct-horse-battery";

/// A context, a cache and a place for results.
struct Bench {
    work: TempDir,
}

impl Bench {
    fn new(dockerfile: &str) -> Self {
        let work = tempfile::tempdir().expect("a directory");
        fs::create_dir(work.path().join("context")).expect("a directory");
        let bench = Self { work };
        bench.write(dockerfile);
        bench
    }

    fn write(&self, dockerfile: &str) {
        fs::write(self.path("context/Dockerfile"), dockerfile).expect("a Dockerfile");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = host::yadokari();
        command
            .env_remove("SSH_AUTH_SOCK")
            .args(["build", "--no-push", "--log-format", "text", "--cache-dir"])
            .arg(self.path("cache"))
            .arg("--oci-layout-path")
            .arg(self.path("layout"))
            .arg("--context")
            .arg(self.path("context"));
        command
    }

    /// Builds with further arguments; gives the image and what was said.
    fn build(&self, arguments: &[&str]) -> (Image, String) {
        self.build_by(self.command().args(arguments))
    }

    fn build_by(&self, command: &mut Command) -> (Image, String) {
        let _ = fs::remove_dir_all(self.path("layout"));
        let output = succeed(command);
        (Image::open(&self.path("layout")), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// What a build that fails says.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        said
    }
}

fn text(image: &Image, path: &str) -> String {
    let tree = image.flatten();
    let found = tree.get(path).unwrap_or_else(|| panic!("{path} among {:?}", tree.keys()));
    String::from_utf8_lossy(&found.content).into_owned()
}

fn entry(image: &Image, path: &str) -> Option<String> {
    image.flatten().get(path).map(|entry| entry.text.clone())
}

fn sha256(bytes: &[u8]) -> String {
    let digest = sha2::Sha256::digest(bytes);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn validated(body: &str, etag: &str) -> Page {
    let headers = vec![
        ("ETag", format!("\"{etag}\"")),
        ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT".to_owned()),
    ];
    Page::File(body.as_bytes().to_vec(), headers)
}

/// Time of `path` in the last layer that has it.
fn mtime(image: &Image, path: &str) -> u64 {
    let mut found = None;
    for layer in image.manifest["layers"].as_array().expect("layers") {
        let file = fs::File::open(image.blob(&layer["digest"])).expect("a blob");
        let mut tar = tar::Archive::new(flate2::read::MultiGzDecoder::new(file));
        for entry in tar.entries().expect("a tar") {
            let entry = entry.expect("an entry");
            if entry.path_bytes() == path.trim_start_matches('/').as_bytes() {
                found = Some(entry.header().mtime().expect("a time"));
            }
        }
    }
    found.unwrap_or_else(|| panic!("{path} is in no layer"))
}

// Files.

#[test]
fn a_file_has_its_name_its_time_and_mode_0600() {
    let web = Web::start();
    web.put("/a/f%20g.txt?q", validated("one", "1"));
    let bench = Bench::new(&format!(
        "FROM scratch\nADD {0} /d/\nADD {0} /as\nADD --chown=5:6 --chmod=644 {0} /own\n",
        web.url("/a/f%20g.txt?q")
    ));
    let (image, _) = bench.build(&[]);
    assert_eq!(entry(&image, "/d/f g.txt").as_deref(), Some("file 0600 0:0"));
    assert_eq!(entry(&image, "/as").as_deref(), Some("file 0600 0:0"));
    assert_eq!(entry(&image, "/own").as_deref(), Some("file 0644 5:6"));
    assert_eq!(text(&image, "/d/f g.txt"), "one");
    assert_eq!(mtime(&image, "/d/f g.txt"), 784_111_777);
    assert_eq!(web.take_seen().len(), 1, "one build asks once");
}

#[test]
fn an_unchanged_file_is_asked_for_once_and_not_sent_again() {
    let web = Web::start();
    web.put("/f", validated("one", "1"));
    let bench = Bench::new(&format!("FROM scratch\nADD {} /f\n", web.url("/f")));
    let (first, _) = bench.build(&[]);
    web.take_seen();
    let (second, said) = bench.build(&[]);
    assert_eq!(first.manifest, second.manifest);
    assert!(said.contains("CACHED"), "{said}");
    let seen = web.take_seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("if-none-match"), Some("\"1\""));
    assert_eq!(seen[0].status, "304 Not Modified");

    web.put("/f", validated("two", "2"));
    let (third, _) = bench.build(&[]);
    assert_eq!(text(&third, "/f"), "two");

    // Without an ETag the time is what is asked with; with neither it is sent again.
    let dated = vec![("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT".to_owned())];
    web.put("/f", Page::File(b"three".to_vec(), dated));
    bench.build(&[]);
    web.take_seen();
    let (_, said) = bench.build(&[]);
    assert!(said.contains("CACHED"), "{said}");
    assert_eq!(web.take_seen()[0].status, "304 Not Modified");
    web.put("/f", Page::File(b"three".to_vec(), Vec::new()));
    bench.build(&[]);
    let (image, said) = bench.build(&[]);
    assert!(said.contains("CACHED"), "the same bytes are no change: {said}");
    assert_eq!(text(&image, "/f"), "three");
}

#[test]
fn with_a_checksum_nothing_is_asked_again_and_a_wrong_one_is_refused() {
    let web = Web::start();
    web.put("/f", validated("one", "1"));
    let dockerfile =
        |sum: &str| format!("FROM scratch\nADD --checksum={sum} {} /f\n", web.url("/f"));
    let bench = Bench::new(&dockerfile(&sha256(b"two")));
    let said = bench.refused(&[]);
    assert!(said.contains(&sha256(b"one")) && said.contains(&sha256(b"two")), "{said}");
    bench.write(&dockerfile(&sha256(b"one")));
    bench.build(&[]);
    web.take_seen();
    let (image, said) = bench.build(&[]);
    assert!(said.contains("CACHED"), "{said}");
    assert_eq!(text(&image, "/f"), "one");
    // Another step with the same file needs no request either: the store has it.
    bench.write(&dockerfile(&sha256(b"one")).replace("/f\n", "/g\n"));
    let (image, _) = bench.build(&[]);
    assert_eq!((text(&image, "/g").as_str(), mtime(&image, "/g")), ("one", 784_111_777));
    assert!(web.take_seen().is_empty());
}

#[test]
fn a_credential_goes_to_its_host_and_not_where_a_redirect_leads() {
    let (one, two) = (Web::start(), Web::start());
    one.put("/f", Page::Redirect(two.url("/g")));
    two.put("/g", Page::Redirect(one.url("/h")));
    one.put("/h", validated("one", "1"));
    let bench = Bench::new(&format!("FROM scratch\nADD {} /d/\n", one.url("/f")));
    let secret = bench.path("secret");
    fs::write(&secret, format!("{PASSWORD}\n")).expect("a file");
    let flag = format!("--secret=id=HTTP_AUTH_TOKEN_127.0.0.1,src={}", secret.display());
    let (image, said) = bench.build(&[&flag]);
    assert_eq!(text(&image, "/d/f"), "one", "named by what was asked for");
    let bearer = format!("Bearer {PASSWORD}");
    let seen = one.take_seen();
    assert_eq!(seen[0].header("authorization"), Some(bearer.as_str()));
    assert_eq!((seen[1].path.as_str(), seen[1].header("authorization")), ("/h", None));
    assert_eq!(two.take_seen()[0].header("authorization"), None);
    assert_nowhere(&bench, &said, PASSWORD);
}

#[test]
fn the_password_of_a_url_is_used_and_hidden() {
    let web = Web::start();
    web.put("/f", validated("one", "1"));
    let url = web.url("/f").replace("http://", &format!("http://me:{PASSWORD}@"));
    let bench = Bench::new(&format!("FROM scratch\nADD {url} /f\n"));
    let (_, said) = bench.build(&[]);
    assert!(web.take_seen()[0].header("authorization").is_some_and(|it| it.starts_with("Basic ")));
    assert_nowhere(&bench, &said, PASSWORD);
    web.put("/f", Page::Status("403 Forbidden"));
    bench.write("FROM scratch\nARG U\nADD $U /f\n");
    let said = bench.refused(&[&format!("--build-arg=U={url}")]);
    assert!(said.contains("403") && !said.contains(PASSWORD), "{said}");
}

/// A secret is neither in what was said nor in any file of cache or image.
fn assert_nowhere(bench: &Bench, said: &str, secret: &str) {
    assert!(!said.contains(secret), "{said}");
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, secret);
    let mut open = vec![bench.path("cache"), bench.path("layout")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).expect("a directory").flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
                continue;
            }
            let bytes = fs::read(entry.path()).unwrap_or_default();
            for word in [secret, encoded.trim_end_matches('=')] {
                let found = bytes.windows(word.len()).any(|part| part == word.as_bytes());
                assert!(!found, "{} holds it", entry.path().display());
            }
        }
    }
}

#[test]
fn failures_name_host_and_status() {
    let web = Web::start();
    let bench = Bench::new(&format!("FROM scratch\nADD {} /f\n", web.url("/none")));
    let host = web.url("").replace("http://", "");
    let said = bench.refused(&[]);
    assert!(said.contains(&format!("{host} answers 404 Not Found")), "{said}");
    assert!(said.contains("Dockerfile:2"), "{said}");
    web.put("/none", Page::Redirect(web.url("/none")));
    assert!(bench.refused(&[]).contains("more than 10 redirects"));
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    bench.write(&format!("FROM scratch\nADD http://{closed}/f /f\n"));
    let said = bench.refused(&[]);
    assert!(said.contains(&format!("cannot reach {closed}")), "{said}");
}

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        // Owners are left blank, which means 0.
        header.set_mode(0o640);
        header.set_mtime(1_000_000_000);
        tar.append_data(&mut header, name, text.as_bytes()).expect("an entry");
    }
    tar.into_inner().and_then(flate2::write::GzEncoder::finish).expect("memory")
}

#[test]
fn an_archive_is_unpacked_only_when_asked() {
    let web = Web::start();
    web.put("/a.tar.gz", Page::File(archive(&[("in/f", "inside")]), Vec::new()));
    let url = web.url("/a.tar.gz");
    let bench = Bench::new(&format!(
        "FROM scratch\nADD {url} /whole/\nADD --unpack=true {url} /out/\nADD --unpack {url} /too/\n"
    ));
    let (image, _) = bench.build(&[]);
    assert!(entry(&image, "/whole/a.tar.gz").is_some());
    assert_eq!(text(&image, "/out/in/f"), "inside");
    assert_eq!(entry(&image, "/too/in/f").as_deref(), Some("file 0640 0:0"));
}

#[test]
fn sources_of_all_kinds_go_in_one_instruction() {
    let web = Web::start();
    web.put("/f", validated("remote", "1"));
    let bench = Bench::new(&format!(
        "FROM scratch\nADD here {} also <<word /d/\ntext\nword\n",
        web.url("/f")
    ));
    for name in ["here", "also"] {
        fs::write(bench.path("context").join(name), name).expect("a file");
    }
    let (image, _) = bench.build(&[]);
    for (path, expected) in
        [("/d/here", "here"), ("/d/f", "remote"), ("/d/also", "also"), ("/d/word", "text\n")]
    {
        assert_eq!(text(&image, path), expected);
    }
    let (_, said) = bench.build(&[]);
    assert!(said.contains("CACHED"), "{said}");
}

#[test]
fn the_archive_behind_a_url_is_a_context() {
    let web = Web::start();
    let files = [("Dockerfile", "FROM scratch\nCOPY f /f\n"), ("f", "from afar")];
    web.put("/c.tar.gz", Page::File(archive(&files), Vec::new()));
    let bench = Bench::new("");
    let context = format!("--context={}", web.url("/c.tar.gz"));
    let (image, _) = bench.build(&[&context]);
    assert_eq!(text(&image, "/f"), "from afar");
    let (_, said) = bench.build(&[&context]);
    assert!(said.contains("CACHED"), "{said}");
    let said = bench.refused(&[&format!("--context={}", web.url("/none"))]);
    assert!(said.contains("404"), "{said}");
}

#[test]
fn the_time_of_what_was_fetched_can_be_that_of_the_image() {
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=context"];
    let dockerfile = ("Dockerfile", "FROM scratch\nCOPY f /f\n");
    let web = Web::start();
    let dated = vec![("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT".to_owned())];
    web.put("/c.tar.gz", Page::File(archive(&[dockerfile, ("f", "x")]), dated));
    let bench = Bench::new("");
    let context = format!("--context={}", web.url("/c.tar.gz"));
    let (image, _) = bench.build(&[&context, epoch[0], epoch[1]]);
    assert_eq!(image.config["created"], "1994-11-06T08:49:37Z");
    if has_git() {
        let served = tempfile::tempdir().expect("a directory");
        let repository = Repository::new(served.path(), "r.git");
        repository.commit(&[dockerfile, ("f", "x")]);
        let daemon = Daemon::start(served.path());
        let context = format!("--context={}", daemon.url("r.git"));
        let mut command = bench.command();
        command.env("GIT_PULL_METHOD", "git").arg(context).args(epoch);
        let (image, _) = bench.build_by(&mut command);
        assert_eq!(image.config["created"], "2001-09-09T01:46:40Z");
        assert_eq!(mtime(&image, "/f"), 1_000_000_000);
    }
}

/// As BuildKit has it: a `--build-context` before a stage, what is remote alone has a time,
/// and ARG gives the number.
#[test]
fn the_time_of_what_a_name_stands_for_can_be_that_of_the_image() {
    const NEVER: &str = "1970-01-01";
    let web = Web::start();
    let dated = vec![("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT".to_owned())];
    web.put("/dated", Page::File(b"x".to_vec(), dated.clone()));
    web.put("/plain", Page::File(b"x".to_vec(), Vec::new()));
    web.put("/a.tar.gz", Page::File(archive(&[("f", "x")]), Vec::new()));
    let bench = Bench::new("");
    let other = bench.path("other");
    fs::create_dir(&other).expect("a directory");
    let digest = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    let checked = format!("--checksum={digest} {}", web.url("/dated"));
    let stages = [
        (web.url("/dated"), Some("1994-11-06T08:49:37Z")),
        (checked, Some("1994-11-06T08:49:37Z")),
        (web.url("/a.tar.gz"), Some("2001-09-09T01:46:40Z")),
        (web.url("/plain"), None),
    ];
    for (source, created) in stages {
        bench.write(&format!(
            "ARG SOURCE_DATE_EPOCH=Source\nFROM scratch AS source\nARG T=/d/\nADD {source} $T\n\
             FROM scratch\nARG SOURCE_DATE_EPOCH\nLABEL at=[$SOURCE_DATE_EPOCH]\nCOPY <<E /f\nE\n"
        ));
        for _ in 0..2 {
            let (image, _) = bench.build(&[]);
            let said = image.config["created"].as_str().expect("a time").to_owned();
            let label = &image.config["config"]["Labels"]["at"];
            match created {
                Some(created) => {
                    assert_eq!(said, created, "{source}");
                    let seconds: jiff::Timestamp = created.parse().expect("a time");
                    assert_eq!(*label, format!("[{}]", seconds.as_second()), "{source}");
                }
                None => {
                    assert!(said.as_str() > "2020" && !said.starts_with(NEVER), "{source}: {said}");
                    assert_eq!(*label, "[]", "{source}");
                }
            }
        }
    }
    bench.write("FROM scratch AS from\nFROM scratch\nCOPY <<E /f\nE\n");
    let named = |place: &str| {
        let context = format!("--build-context=from={place}");
        let (image, _) = bench.build(&[&context, "--build-arg=SOURCE_DATE_EPOCH=from"]);
        image.config["created"].as_str().expect("a time").to_owned()
    };
    assert_eq!(named(&web.url("/a.tar.gz")), "2001-09-09T01:46:40Z");
    assert!(named(&other.display().to_string()).as_str() > "2020");
    web.put("/a.tar.gz", Page::File(archive(&[("f", "x")]), dated));
    assert_eq!(named(&web.url("/a.tar.gz")), "1994-11-06T08:49:37Z");
    if has_git() {
        let served = tempfile::tempdir().expect("a directory");
        Repository::new(served.path(), "r.git").commit(&[("f", "x")]);
        let daemon = Daemon::start(served.path());
        let url = daemon.url("r.git");
        assert_eq!(named(&url), "2001-09-09T01:46:40Z");
        bench.write(&format!(
            "FROM scratch AS source\nADD {url} /d\nFROM scratch\nCOPY <<E /f\nE\n"
        ));
        let (image, _) = bench.build(&["--build-arg=SOURCE_DATE_EPOCH=source"]);
        assert_eq!(image.config["created"], "2001-09-09T01:46:40Z");
    }
}

// Repositories.

/// A repository with a branch, tags and a submodule's worth of history.
struct Repository {
    directory: PathBuf,
}

impl Repository {
    fn new(parent: &Path, name: &str) -> Self {
        let directory = parent.join(name);
        fs::create_dir_all(&directory).expect("a directory");
        let repository = Self { directory };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = succeed(
            Command::new("git")
                .args(arguments)
                .current_dir(&self.directory)
                .env("GIT_CONFIG_GLOBAL", "/dev/null")
                .env("GIT_ALLOW_PROTOCOL", "file:git:http")
                .envs([("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@b")])
                .envs([("GIT_COMMITTER_NAME", "a"), ("GIT_COMMITTER_EMAIL", "a@b")])
                .env("GIT_AUTHOR_DATE", "1000000000 +0000")
                .env("GIT_COMMITTER_DATE", "1000000000 +0000"),
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Writes files and gives the commit that holds them.
    fn commit(&self, files: &[(&str, &str)]) -> String {
        for (name, text) in files {
            let path = self.directory.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", "x"]);
        self.git(&["rev-parse", "HEAD"])
    }
}

/// `git daemon` on a loopback port; ends when dropped.
struct Daemon {
    process: Child,
    address: String,
}

impl Daemon {
    fn start(directory: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let process = Command::new("git")
            .args(["daemon", "--export-all", "--listen=127.0.0.1", "--reuseaddr"])
            .arg(format!("--port={port}"))
            .arg(format!("--base-path={}", directory.display()))
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("git daemon");
        let daemon = Self { process, address: format!("127.0.0.1:{port}") };
        let started = Instant::now();
        while TcpStream::connect(&daemon.address).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "git daemon did not start");
            std::thread::yield_now();
        }
        daemon
    }

    fn url(&self, name: &str) -> String {
        format!("git://{}/{name}", self.address)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // `git` runs the daemon as its child; it passes the signal on.
        let pid = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
    }
}

fn has_git() -> bool {
    host::require("git", Command::new("git").arg("--version").output().is_ok())
}

#[test]
fn a_repository_is_added_without_its_history() {
    if !has_git() {
        return;
    }
    let served = tempfile::tempdir().expect("a directory");
    let repository = Repository::new(served.path(), "r");
    let first = repository.commit(&[("f", "one"), ("sub/run", "#!x")]);
    repository.git(&["update-index", "--chmod=+x", "sub/run"]);
    repository.git(&["commit", "--quiet", "--message=mode"]);
    repository.git(&["tag", "--annotate", "--message=x", "v1"]);
    let daemon = Daemon::start(served.path());
    let url = daemon.url("r");
    let bench = Bench::new(&format!(
        "FROM scratch\nADD {url} /all\nADD {url}#v1:sub /sub/\nADD {url}#{first} /old\n\
         ADD --keep-git-dir=true {url}?branch=main&mtime=commit /kept\n"
    ));
    let (image, _) = bench.build(&[]);
    assert_eq!(text(&image, "/all/f"), "one");
    assert_eq!(entry(&image, "/all/f").as_deref(), Some("file 0644 0:0"));
    assert_eq!(entry(&image, "/all/sub/run").as_deref(), Some("file 0755 0:0"));
    assert_eq!(entry(&image, "/all/.git"), None);
    assert_eq!(entry(&image, "/sub/run").as_deref(), Some("file 0755 0:0"));
    assert_eq!(entry(&image, "/sub/sub"), None);
    assert_eq!(entry(&image, "/old/sub/run").as_deref(), Some("file 0644 0:0"));
    assert!(entry(&image, "/kept/.git/HEAD").is_some());
    assert!(text(&image, "/kept/.git/config").contains(&url));
    assert_eq!(mtime(&image, "/kept/f"), 1_000_000_000);

    let (_, said) = bench.build(&[]);
    assert!(!said.contains("fetching"), "{said}");
    repository.commit(&[("f", "two")]);
    let (image, _) = bench.build(&[]);
    assert_eq!(text(&image, "/all/f"), "two");
}

#[test]
fn a_commit_has_to_be_the_one_that_the_checksum_says() {
    if !has_git() {
        return;
    }
    let served = tempfile::tempdir().expect("a directory");
    let repository = Repository::new(served.path(), "r");
    let commit = repository.commit(&[("f", "one")]);
    let daemon = Daemon::start(served.path());
    let url = daemon.url("r");
    let dockerfile = |sum: &str| format!("FROM scratch\nADD --checksum={sum} {url}#main /d\n");
    let bench = Bench::new(&dockerfile(&commit[..12]));
    bench.build(&[]);
    bench.write(&dockerfile("0123456789"));
    let said = bench.refused(&[]);
    assert!(said.contains(&commit) && said.contains("0123456789"), "{said}");
    bench.write(&format!("FROM scratch\nADD {url}#nothere /d\n"));
    let said = bench.refused(&[]);
    assert!(said.contains("has no branch, tag or commit `nothere`"), "{said}");
    bench.write(&format!("FROM scratch\nADD {}#main /d\n", daemon.url("none")));
    assert!(bench.refused(&[]).contains("cannot ask git://"));
    bench.write(&format!("FROM scratch\nADD {url}#0123456789012345678901234567890123456789 /d\n"));
    assert!(bench.refused(&[]).contains("cannot fetch git://"));
}

#[test]
fn submodules_come_along_unless_they_are_not_wanted() {
    if !has_git() {
        return;
    }
    let served = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(served.path());
    Repository::new(served.path(), "inner").commit(&[("g", "inner")]);
    let outer = Repository::new(served.path(), "outer");
    outer.git(&["submodule", "--quiet", "add", &daemon.url("inner"), "module"]);
    outer.commit(&[("f", "outer")]);
    let url = daemon.url("outer");
    let bench = Bench::new(&format!(
        "FROM scratch\nADD {url} /with\nADD {url}?submodules=false /without\n"
    ));
    let (image, _) = bench.build(&[]);
    assert_eq!(text(&image, "/with/module/g"), "inner");
    assert_eq!(entry(&image, "/with/module/.git"), None);
    assert_eq!(entry(&image, "/without/module/g"), None);
    assert_eq!(text(&image, "/without/f"), "outer");
}

#[test]
fn a_repository_is_a_context_as_kaniko_names_it() {
    if !has_git() {
        return;
    }
    let served = tempfile::tempdir().expect("a directory");
    let repository = Repository::new(served.path(), "r.git");
    let dockerfile = "FROM scratch\nCOPY . /\n";
    let old = repository.commit(&[
        ("Dockerfile", dockerfile),
        ("f", "main"),
        ("d/Dockerfile", dockerfile),
    ]);
    repository.git(&["checkout", "--quiet", "-b", "other"]);
    repository.commit(&[("f", "other")]);
    repository.git(&["checkout", "--quiet", "main"]);
    let daemon = Daemon::start(served.path());
    let bench = Bench::new("");
    let url = daemon.url("r.git");
    let build = |context: String, flags: &[&str]| {
        bench.build_by(
            bench
                .command()
                .env("GIT_PULL_METHOD", "git")
                .arg(format!("--context={context}"))
                .args(flags),
        )
    };
    let (image, said) = build(url.clone(), &[]);
    assert_eq!((text(&image, "/f").as_str(), entry(&image, "/.git")), ("main", None), "{said}");
    let (image, _) = build(format!("{url}#refs/heads/other"), &[]);
    assert_eq!(text(&image, "/f"), "other");
    let (image, _) = build(format!("{url}#refs/heads/other#{old}"), &[]);
    assert_eq!(text(&image, "/f"), "main");
    let (image, _) = build(url.clone(), &["--git=branch=other", "--git=single-branch=true"]);
    assert_eq!(text(&image, "/f"), "other");
    let (image, _) = build(url.clone(), &["--context-sub-path=d"]);
    assert_eq!(entry(&image, "/f"), None);
    let (_, said) = build(url, &[]);
    assert!(said.contains("CACHED"), "{said}");
}

#[test]
fn a_token_opens_a_repository_and_stays_out_of_everything() {
    if !has_git() {
        return;
    }
    let served = tempfile::tempdir().expect("a directory");
    let repository = Repository::new(served.path(), "r.git");
    repository.commit(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "private")]);
    let web = Web::start();
    let basic = |user: &str, password: &str| {
        let pair = format!("{user}:{password}");
        format!(
            "Basic {}",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pair)
        )
    };
    let url = web.url("/git/r.git");
    let bench = Bench::new(&format!("FROM scratch\nADD --keep-git-dir {url} /\n"));
    // As a secret, for ADD.
    web.serve_git(served.path().to_owned(), &basic("x-access-token", PASSWORD));
    let said = bench.refused(&[]);
    assert!(said.contains("cannot ask") && said.contains("terminal prompts disabled"), "{said}");
    let secret = bench.path("secret");
    fs::write(&secret, PASSWORD).expect("a file");
    let (image, said) =
        bench.build(&[&format!("--secret=id=GIT_AUTH_TOKEN.127.0.0.1,src={}", secret.display())]);
    assert_eq!(text(&image, "/f"), "private");
    assert!(entry(&image, "/.git/config").is_some());
    assert_nowhere(&bench, &said, PASSWORD);
    // In kaniko's variables, for the context.
    web.serve_git(served.path().to_owned(), &basic("me", PASSWORD));
    let (image, said) = bench.build_by(
        bench
            .command()
            .env("GIT_USERNAME", "me")
            .env("GIT_PASSWORD", PASSWORD)
            .env("GIT_PULL_METHOD", "http")
            .arg(format!("--context={}", url.replace("http://", "git://"))),
    );
    assert_eq!(text(&image, "/f"), "private");
    assert_nowhere(&bench, &said, PASSWORD);
    // In the address.
    web.take_seen();
    let address = url.replace("http://", &format!("http://me:{PASSWORD}@"));
    bench.write(&format!("FROM scratch\nADD --keep-git-dir {address} /\n"));
    let (_, said) = bench.build(&[]);
    assert_nowhere(&bench, &said, PASSWORD);
}

#[test]
fn without_git_the_message_says_what_is_missing() {
    let bench = Bench::new("FROM scratch\nADD git://127.0.0.1:1/r /\n");
    let output = bench.command().env("PATH", "/nonexistent").output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("install git"), "{said}");
}

// Named contexts.

#[test]
fn a_named_context_replaces_a_stage_an_image_and_a_from() {
    let web = Web::start();
    web.put("/n.tar.gz", Page::File(archive(&[("f", "archive")]), Vec::new()));
    let bench = Bench::new(
        "FROM nowhere.invalid/x AS build\nRUN fail\nFROM build\nCOPY --from=pkg f /pkg\n\
         COPY --from=far f /far\nCOPY --from=build f /again\n",
    );
    for (directory, word) in [("stage", "stage"), ("pkg", "pkg")] {
        let path = bench.path(directory);
        fs::create_dir(&path).expect("a directory");
        fs::write(path.join("f"), word).expect("a file");
        fs::write(path.join("ignored"), word).expect("a file");
        fs::write(path.join(".dockerignore"), "ignored\n").expect("a file");
    }
    let flags = [
        format!("--build-context=build={}", bench.path("stage").display()),
        format!("--build-context=pkg={}", bench.path("pkg").display()),
        format!("--build-context=far={}", web.url("/n.tar.gz")),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (image, _) = bench.build(&flags);
    for (path, expected) in
        [("/f", "stage"), ("/pkg", "pkg"), ("/far", "archive"), ("/again", "stage")]
    {
        assert_eq!(text(&image, path), expected, "{path}");
    }
    assert_eq!(entry(&image, "/ignored"), None);
    let (_, said) = bench.build(&flags);
    assert_eq!(said.matches("CACHED").count(), 4, "{said}");

    // A layout as a base, and as a source of files.
    let layout = bench.path("base");
    fs::rename(bench.path("layout"), &layout).expect("moved");
    bench.write("FROM alpine:3.20\nCOPY --from=other /f /other\n");
    let (image, _) = bench.build(&[
        &format!("--build-context=alpine:3.20=oci-layout://{}", layout.display()),
        &format!("--build-context=other=oci-layout://{}", layout.display()),
    ]);
    assert_eq!((text(&image, "/pkg"), text(&image, "/other")), ("pkg".into(), "stage".into()));
}

// RUN.

/// A context whose base is busybox with `ssh-add` and what it is linked to.
fn bench_with_busybox(dockerfile: &str) -> Bench {
    let bench = Bench::new(dockerfile);
    let base = host::busybox_context(bench.work.path());
    fs::copy(base.join("root.tar"), bench.path("context/root.tar")).expect("copied");
    let program = "/usr/bin/ssh-add";
    let output = succeed(Command::new("ldd").arg(program));
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    succeed(
        Command::new("tar")
            .args(["--dereference", "-cf"])
            .arg(bench.path("context/ssh.tar"))
            .arg("--absolute-names")
            .args(["--transform", "s,^/,,"])
            .args(std::iter::once(program).chain(libraries)),
    );
    bench
}

#[test]
fn an_agent_of_keys_is_forwarded_and_leaves_nothing() {
    if !host::require_host(&["ssh-agent", "ssh-add", "ssh-keygen"]) {
        return;
    }
    let bench = bench_with_busybox(
        "FROM scratch\nADD root.tar ssh.tar /\n\
         RUN --mount=type=ssh,mode=0666,uid=7,required ssh-add -l > /keys && \
         stat -c '%a %u' $SSH_AUTH_SOCK > /socket && ! ssh-add -D\n\
         RUN --mount=type=ssh,id=other true\n",
    );
    let key = bench.path("key");
    succeed(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "a key", "-f"])
            .arg(&key),
    );
    host::set_mode(&key, 0o644);
    let flag = format!("--ssh=default={}", key.display());
    let (image, _) = bench.build(&[&flag]);
    assert!(text(&image, "/keys").contains("a key"));
    assert_eq!(text(&image, "/socket"), "666 7\n");
    for path in ["/run", "/run/buildkit", "/etc/hosts", "/etc/resolv.conf"] {
        assert_eq!(entry(&image, path), None, "{path}");
    }
    // What an agent holds is in no key: without one the step is a hit.
    let (_, said) = bench.build(&[]);
    assert_eq!(said.matches("CACHED").count(), 3, "{said}");
    let said = bench.refused(&["--cache=false"]);
    assert!(said.contains("ssh agent `default` is required"), "{said}");
    // A key that needs a passphrase is refused instead of asked for.
    let locked = bench.path("locked");
    succeed(
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "secret", "-f"]).arg(&locked),
    );
    let said = bench.refused(&["--cache=false", &format!("--ssh=default={}", locked.display())]);
    assert!(said.contains("cannot use the key"), "{said}");
}

#[test]
fn hosts_limits_and_shared_memory_are_as_flags_say_and_leave_nothing() {
    if !host::require_host(&[]) {
        return;
    }
    let bench = bench_with_busybox(
        "FROM scratch\nADD root.tar /\n\
         RUN grep '10.1.2.3.*db.test' /etc/hosts && ulimit -n > /limit && \
         df -k /dev/shm | tail -1 | awk '{print $2}' > /shm\n\
         RUN cat /proc/net/dev | wc -l > /network\n",
    );
    let flags = [
        "--add-host=db.test:10.1.2.3",
        "--shm-size=32m",
        "--ulimit=nofile=123:456",
        "--network=none",
    ];
    let (image, _) = bench.build(&flags);
    assert_eq!(text(&image, "/limit"), "123\n");
    assert_eq!(text(&image, "/shm"), "32768\n");
    assert_eq!(text(&image, "/network"), "3\n", "two lines of head and lo");
    for path in ["/etc/hosts", "/etc/resolv.conf", "/run"] {
        assert_eq!(entry(&image, path), None, "{path}");
    }
    // Addresses are in no key, names and sizes are.
    let mut other = flags;
    other[0] = "--add-host=db.test:10.9.9.9";
    let (_, said) = bench.build(&other);
    assert_eq!(said.matches("CACHED").count(), 3, "{said}");
    other[1] = "--shm-size=16m";
    let said = bench.refused(&other);
    assert!(said.contains("did not complete"), "the step ran with the other address: {said}");
}

/// `bench`'s command in a shell that did `first`.
fn after(first: &str, bench: &Bench) -> Command {
    let command = bench.command();
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("{first}; exec \"$@\""), "sh"]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

#[test]
fn a_step_may_open_as_many_files_as_whoever_started_the_builder() {
    if !host::require_host(&[]) {
        return;
    }
    let bench = bench_with_busybox(
        "FROM scratch\nADD root.tar /\nRUN (ulimit -Sn; ulimit -Hn) > /limits\n",
    );
    let (image, _) = bench.build_by(&mut after("ulimit -Sn 300; ulimit -Hn 900", &bench));
    assert_eq!(text(&image, "/limits"), "300\n900\n");
}

#[test]
fn large_files_of_a_step_leave_the_builder_descriptors() {
    if !host::require_host(&[]) {
        return;
    }
    let bench = bench_with_busybox(
        "FROM scratch\nADD root.tar /\n\
         RUN for i in $(seq 150); do echo $i | dd of=/large$i bs=1024 seek=1024; done\n",
    );
    let (image, _) = bench.build_by(&mut after("ulimit -n 100", &bench));
    assert!(text(&image, "/large150").ends_with("\x00150\n"));
}

#[test]
fn a_download_larger_than_memory_allowed_is_streamed() {
    let web = Web::start();
    let size = 256 << 20;
    let mut body = vec![0; size];
    (&mut body[..]).write_all(b"start").expect("memory");
    web.put("/big", Page::File(body, Vec::new()));
    let bench = Bench::new(&format!("FROM scratch\nADD {} /big\n", web.url("/big")));
    // Data and heap together, whatever is mapped: a sixth of the file is enough for all.
    let (image, _) = bench.build_by(&mut after(&format!("ulimit -d {}", 160 << 10), &bench));
    assert!(entry(&image, "/big").is_some());
}
