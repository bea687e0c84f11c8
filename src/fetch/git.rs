//! Git repositories, by the `git` program, as BuildKit does it.
//!
//! git sees nothing of the user's or the system's configuration, runs no hook, asks no
//! question and speaks https, http, ssh and git only, also for submodules. A credential
//! travels in its environment, bound to the scheme, host and port it is meant for: never
//! in arguments, never in `.git/config`.
//!
//! A reference is resolved by one `ls-remote`, and only the commit that it names is
//! fetched, without its history where the server allows that.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;
use url::Url;

use super::Error;
use crate::address::GitAddress;
use crate::address::is_commit;
use crate::address::redacted;

/// Protocols that git may speak, for submodules too.
const PROTOCOLS: &str = "https:http:ssh:git";

/// Variables of our environment that git and ssh are given.
const PASSED_ON: [&str; 16] = [
    "PATH",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "GIT_EXEC_PATH",
    "SSH_AUTH_SOCK",
    "TMPDIR",
];

/// How much of git's output is kept, in bytes.
const OUTPUT_MAX: usize = 1 << 20;

/// How many lines of a failed git are shown.
const LINES_SHOWN: usize = 12;

/// How often a running git is looked at for the user having asked to stop.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How a repository is reached.
#[derive(Clone, Default)]
pub struct GitAccess {
    /// Value of the `Authorization` header for the repository's own host.
    pub authorization: Option<String>,
    /// Whether certificates are not checked.
    pub skip_tls_verify: bool,
}

impl GitAccess {
    /// The header for a user name and a password or token.
    pub fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    }
}

/// What a reference names right now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The commit, in full.
    pub commit: String,
    /// The full name of the reference (`refs/heads/main`, `HEAD`); `None` for a commit.
    pub reference: Option<String>,
    /// The object of an annotated tag.
    tag: Option<String>,
}

/// What is to be checked out.
pub struct Checkout<'a> {
    /// Which repository.
    pub address: &'a GitAddress,
    /// Which commit.
    pub resolved: &'a Resolved,
    /// How to reach it.
    pub access: &'a GitAccess,
    /// Whether `.git` stays.
    pub keep_git_dir: bool,
    /// Whether submodules are fetched too.
    pub submodules: bool,
}

/// The git program with an environment of its own.
pub struct Git {
    variables: Vec<(&'static str, OsString)>,
}

impl Git {
    /// `variable` reads our environment.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let variables = PASSED_ON.into_iter().filter_map(|name| Some((name, variable(name)?)));
        Self { variables: variables.collect() }
    }

    /// Asks the repository which commit `address` means; nobody if that is a commit.
    /// `stop` ends it early.
    ///
    /// # Errors
    /// No git, no answer, [`Error::NoReference`], [`Error::WrongCommit`].
    pub fn resolve(
        &self,
        address: &GitAddress,
        access: &GitAccess,
        stop: &dyn Fn() -> bool,
    ) -> Result<Resolved, Error> {
        let resolved = match address.reference.as_deref() {
            Some(reference) if is_commit(reference) => {
                let commit = reference.to_ascii_lowercase();
                Resolved { commit, reference: None, tag: None }
            }
            reference => {
                let wanted = reference.unwrap_or("HEAD");
                let peeled = format!("{wanted}^{{}}");
                let place = Place { address, access, stop };
                let url = plain_url(address);
                let output =
                    self.run(&place, "ask", None, &["ls-remote", "--", &url, wanted, &peeled])?;
                choose(wanted, &String::from_utf8_lossy(&output)).ok_or_else(|| {
                    Error::NoReference {
                        address: redacted(&address.url),
                        reference: wanted.to_owned(),
                    }
                })?
            }
        };
        match &address.checksum {
            Some(expected)
                if !resolved.commit.starts_with(expected)
                    && !resolved.tag.as_ref().is_some_and(|tag| tag.starts_with(expected)) =>
            {
                Err(Error::WrongCommit {
                    address: address.to_string(),
                    expected: expected.clone(),
                    found: resolved.commit,
                })
            }
            _ => Ok(resolved),
        }
    }

    /// Puts the files of a commit into the empty directory `into`: directories and
    /// programs 0755, other files 0644. `stop` ends it early. Gives the commit's time in
    /// seconds since 1970.
    ///
    /// # Errors
    /// What git says; those of the disk.
    pub fn check_out(
        &self,
        checkout: &Checkout<'_>,
        into: &Path,
        stop: &dyn Fn() -> bool,
    ) -> Result<i64, Error> {
        let Checkout { address, resolved, access, .. } = checkout;
        let place = Place { address, access, stop };
        let commit = resolved.commit.as_str();
        let run = |action, arguments: &[&str]| self.run(&place, action, Some(into), arguments);
        let format = if commit.len() == 64 { "sha256" } else { "sha1" };
        run("prepare", &["init", "--quiet", "--template=", &format!("--object-format={format}")])?;
        run("prepare", &["remote", "add", "origin", &plain_url(address)])?;
        self.fetch(&place, resolved, into)?;
        run("check out", &["checkout", "--quiet", "--force", "--detach", commit])?;
        if checkout.submodules && into.join(".gitmodules").is_file() {
            let update = ["submodule", "--quiet", "update", "--init", "--recursive"];
            let shallow: Vec<&str> = update.iter().copied().chain(["--depth=1"]).collect();
            // Not every server gives out a commit that no branch ends with.
            match run("fetch the submodules of", &shallow) {
                Err(Error::Git { .. }) => run("fetch the submodules of", &update)?,
                other => other?,
            };
        }
        let time = run("read", &["show", "--no-patch", "--format=%ct", commit])?;
        let time = String::from_utf8_lossy(&time).trim().parse().unwrap_or_default();
        let settle = Settle {
            keep_git_dir: checkout.keep_git_dir,
            time: address.commit_time.then_some(time),
        };
        settle.directory(into).map_err(|source| Error::Local { path: into.to_owned(), source })?;
        Ok(time)
    }

    /// Brings the commit into the repository in `into`: alone, with the reference that
    /// names it, or with everything, whichever the server allows first.
    fn fetch(&self, place: &Place<'_>, resolved: &Resolved, into: &Path) -> Result<(), Error> {
        let commit = resolved.commit.as_str();
        let base = ["fetch", "--quiet", "--no-recurse-submodules", "--force"];
        let mut tries: Vec<Vec<&str>> = Vec::new();
        tries.push([&base[..], &["--no-tags", "--depth=1", "origin", commit]].concat());
        if let Some(reference) = &resolved.reference {
            tries.push([&base[..], &["--no-tags", "--depth=1", "origin", reference]].concat());
            tries.push([&base[..], &["--no-tags", "origin", reference]].concat());
        }
        let everything = "+refs/*:refs/remotes/origin/*";
        tries.push([&base[..], &["--no-tags", "origin", everything]].concat());
        let object = format!("{commit}^{{commit}}");
        let mut last = None;
        for arguments in tries {
            match self.run(place, "fetch", Some(into), &arguments) {
                Err(error @ Error::Git { .. }) => last = Some(error),
                Err(error) => return Err(error),
                Ok(_) => match self.run(place, "read", Some(into), &["cat-file", "-e", &object]) {
                    Err(Error::Git { .. }) => {}
                    other => return other.map(drop),
                },
            }
        }
        Err(last.unwrap_or_else(|| Error::NoReference {
            address: redacted(&place.address.url),
            reference: commit.to_owned(),
        }))
    }

    /// Runs git to its end and gives its standard output.
    fn run(
        &self,
        place: &Place<'_>,
        action: &'static str,
        directory: Option<&Path>,
        arguments: &[&str],
    ) -> Result<Vec<u8>, Error> {
        let address = || place.address.to_string();
        let local = |source| Error::Local { path: "git".into(), source };
        let mut command = Command::new("git");
        command
            .args(arguments)
            .current_dir(directory.unwrap_or(Path::new("/")))
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .envs(surroundings(place))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that its helpers end with it.
            .process_group(0);
        tracing::debug!(command = %redacted(&arguments.join(" ")), "git");
        let mut child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NoGit { address: address() },
            _ => local(source),
        })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (ended, stdout, stderr) = std::thread::scope(|scope| {
            let stdout = scope.spawn(|| read_some(stdout));
            let stderr = scope.spawn(|| read_some(stderr));
            let ended = wait(&child, place.stop);
            // When git is gone nobody else of its group may hold the pipes.
            let joined = |thread: std::thread::ScopedJoinHandle<'_, Vec<u8>>| {
                thread.join().unwrap_or_default()
            };
            (ended, joined(stdout), joined(stderr))
        });
        let status = child.wait().map_err(local)?;
        if !ended.map_err(local)? {
            return Err(Error::Interrupted);
        }
        if status.success() {
            return Ok(stdout);
        }
        let mut text = redacted(&String::from_utf8_lossy(&stderr));
        if let Some(secret) = &place.access.authorization {
            text = text.replace(secret.as_str(), "****");
        }
        let lines: Vec<&str> = text.trim().lines().map(str::trim_end).collect();
        let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
        let output = if shown.is_empty() { status.to_string() } else { shown };
        Err(Error::Git { action, address: address(), output })
    }
}

/// Which repository is dealt with, and how.
struct Place<'a> {
    address: &'a GitAddress,
    access: &'a GitAccess,
    stop: &'a dyn Fn() -> bool,
}

/// What git finds in its environment besides what is passed on.
fn surroundings(place: &Place<'_>) -> Vec<(String, String)> {
    let mut settings = vec![
        ("core.hooksPath".to_owned(), "/dev/null".to_owned()),
        ("core.autocrlf".to_owned(), "false".to_owned()),
        ("core.fsmonitor".to_owned(), "false".to_owned()),
        ("credential.helper".to_owned(), String::new()),
        ("advice.detachedHead".to_owned(), "false".to_owned()),
        ("gc.auto".to_owned(), "0".to_owned()),
        ("maintenance.auto".to_owned(), "false".to_owned()),
        ("init.defaultBranch".to_owned(), "main".to_owned()),
        // A server that goes silent for a minute is given up.
        ("http.lowSpeedLimit".to_owned(), "1".to_owned()),
        ("http.lowSpeedTime".to_owned(), "60".to_owned()),
    ];
    if place.access.skip_tls_verify {
        settings.push(("http.sslVerify".to_owned(), "false".to_owned()));
    }
    let header = place.access.authorization.clone().or_else(|| own_credential(place.address));
    if let (Some(header), Some(origin)) = (header, origin(place.address)) {
        let value = format!("Authorization: {}", header.replace(['\r', '\n'], ""));
        settings.push((format!("http.{origin}.extraHeader"), value));
    }
    let mut variables: Vec<(String, String)> = [
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_CONFIG_SYSTEM", "/dev/null"),
        ("GIT_ATTR_NOSYSTEM", "1"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_ALLOW_PROTOCOL", PROTOCOLS),
        (
            "GIT_SSH_COMMAND",
            "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=accept-new",
        ),
        ("HOME", "/nonexistent"),
        ("LC_ALL", "C"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    variables.push(("GIT_CONFIG_COUNT".to_owned(), settings.len().to_string()));
    for (number, (name, value)) in settings.into_iter().enumerate() {
        variables.push((format!("GIT_CONFIG_KEY_{number}"), name));
        variables.push((format!("GIT_CONFIG_VALUE_{number}"), value));
    }
    variables
}

/// The address as git gets it: the password of an HTTP URL travels as a header.
fn plain_url(address: &GitAddress) -> String {
    match Url::parse(&address.url) {
        Ok(mut url) if matches!(url.scheme(), "http" | "https") => {
            // Only URLs that can't have a host refuse; this one has one.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.to_string()
        }
        _ => address.url.clone(),
    }
}

/// User and password of an HTTP URL as a header.
fn own_credential(address: &GitAddress) -> Option<String> {
    let url = Url::parse(&address.url).ok()?;
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decoded = |text: &str| {
        url::form_urlencoded::parse(format!("x={}", text.replace('+', "%2B")).as_bytes())
            .next()
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default()
    };
    let password = decoded(url.password().unwrap_or_default());
    Some(GitAccess::basic(&decoded(url.username()), &password))
}

/// `https://host:port/`, which git matches by scheme, host and port; `None` where no
/// header is sent.
fn origin(address: &GitAddress) -> Option<String> {
    let url = Url::parse(&address.url).ok()?;
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{}://{}{port}/", url.scheme(), url.host_str()?))
}

/// Chooses among the lines of `ls-remote` what `wanted` means: as git-checkout, a
/// branch before a tag, and of an annotated tag the commit.
fn choose(wanted: &str, output: &str) -> Option<Resolved> {
    let lines: Vec<(&str, &str)> =
        output.lines().filter_map(|line| line.split_once('\t')).collect();
    let of = |name: &str| lines.iter().find(|(_, known)| *known == name).map(|(id, _)| *id);
    let names = [
        wanted.to_owned(),
        format!("refs/heads/{wanted}"),
        format!("refs/tags/{wanted}"),
        format!("refs/{wanted}"),
        format!("refs/remotes/{wanted}"),
    ];
    names.into_iter().find_map(|name| {
        let object = of(&name).filter(|id| is_commit(id))?;
        let peeled = of(&format!("{name}^{{}}")).filter(|id| is_commit(id));
        Some(Resolved {
            commit: peeled.unwrap_or(object).to_owned(),
            tag: peeled.map(|_| object.to_owned()),
            reference: Some(name),
        })
    })
}

/// Waits for `child`; `false` if it was killed because `stop` said so.
fn wait(child: &std::process::Child, stop: &dyn Fn() -> bool) -> io::Result<bool> {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        if stop() {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            return Ok(false);
        }
        let mut polled = [PollFd::new(&handle, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&LOOK)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reads to the end and keeps the last [`OUTPUT_MAX`] bytes, more or less.
fn read_some(from: Option<impl Read>) -> Vec<u8> {
    let Some(mut from) = from else { return Vec::new() };
    let mut kept = Vec::new();
    let mut buffer = [0; 1 << 14];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > 2 * OUTPUT_MAX {
            kept.drain(..kept.len() - OUTPUT_MAX);
        }
    }
    kept
}

/// Makes a checkout the same everywhere: modes don't depend on the umask, and `.git`
/// is gone unless it is wanted.
struct Settle {
    keep_git_dir: bool,
    /// Time of every file, in seconds since 1970.
    time: Option<i64>,
}

impl Settle {
    fn directory(&self, directory: &Path) -> io::Result<()> {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if entry.file_name() == ".git" && !self.keep_git_dir {
                if kind.is_dir() {
                    fs::remove_dir_all(&path)?;
                } else {
                    fs::remove_file(&path)?;
                }
                continue;
            }
            if kind.is_dir() {
                self.directory(&path)?;
                continue;
            }
            if kind.is_file() {
                let program = entry.metadata()?.permissions().mode() & 0o100 != 0;
                let mode = if program { 0o755 } else { 0o644 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
            self.set_time(&path)?;
        }
        self.set_time(directory)
    }

    fn set_time(&self, path: &Path) -> io::Result<()> {
        let Some(seconds) = self.time else { return Ok(()) };
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222";

    #[test]
    fn a_branch_wins_over_a_tag_and_a_tag_is_peeled() {
        let lines = format!("{ONE}\trefs/heads/x/v1\n{TWO}\trefs/heads/v1\n{ONE}\trefs/tags/v1\n");
        let found = choose("v1", &lines).expect("found");
        assert_eq!(
            (found.commit.as_str(), found.reference.as_deref()),
            (TWO, Some("refs/heads/v1"))
        );
        let lines = format!("{ONE}\trefs/tags/v1\n{TWO}\trefs/tags/v1^{{}}\n");
        let found = choose("v1", &lines).expect("found");
        assert_eq!((found.commit.as_str(), found.tag.as_deref()), (TWO, Some(ONE)));
        assert_eq!(choose("v1", &format!("{ONE}\trefs/heads/x/v1\n")), None);
        assert_eq!(choose("HEAD", &format!("{ONE}\tHEAD\n")).expect("found").commit, ONE);
        assert_eq!(choose("v1", "nonsense\trefs/heads/v1\n\t\n"), None);
    }

    #[test]
    fn a_credential_is_bound_to_its_origin_and_leaves_the_address() {
        let address = GitAddress::parse("https://me:hunter2@h.example:8443/a.git").expect("valid");
        let access = GitAccess::default();
        let place = Place { address: &address, access: &access, stop: &|| false };
        assert_eq!(plain_url(&address), "https://h.example:8443/a.git");
        let variables = surroundings(&place);
        let number = variables
            .iter()
            .find(|(_, value)| value == "http.https://h.example:8443/.extraHeader")
            .and_then(|(name, _)| name.strip_prefix("GIT_CONFIG_KEY_"))
            .expect("a header");
        let value =
            variables.iter().find(|(name, _)| *name == format!("GIT_CONFIG_VALUE_{number}"));
        assert_eq!(value.expect("a value").1, "Authorization: Basic bWU6aHVudGVyMg==");
        assert!(variables.iter().all(|(_, value)| !value.contains("hunter2")));
        let ssh = GitAddress::parse("git@h.example:a").expect("valid");
        let access = GitAccess { authorization: Some("Basic x".to_owned()), ..access };
        let place = Place { address: &ssh, access: &access, stop: &|| false };
        assert!(surroundings(&place).iter().all(|(_, value)| !value.contains("Basic x")));
    }
}
