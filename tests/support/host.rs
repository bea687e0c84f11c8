//! What tests need of the machine: tools, a registry, a base image. Everything
//! started here ends with the test.

use std::fs;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;

/// Whether a need is met; where `YADOKARI_REQUIRE` says so, an unmet one fails the
/// test instead of skipping it aloud.
pub(crate) fn require(what: &str, met: bool) -> bool {
    if met {
        return true;
    }
    assert!(
        std::env::var_os("YADOKARI_REQUIRE").is_none(),
        "this test needs {what}, and YADOKARI_REQUIRE is set"
    );
    eprintln!("SKIPPED: this test needs {what}");
    false
}

/// Root, `/dev/fuse` and the tools named.
pub(crate) fn require_host(tools: &[&str]) -> bool {
    require("root", rustix::process::geteuid().is_root())
        && require("/dev/fuse", Path::new("/dev/fuse").exists())
        && tools.iter().all(|tool| require(tool, which(tool)))
}

fn which(tool: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(tool).is_file())
    })
}

/// Who may use a registry with a password.
pub(crate) const USER: &str = "ci";

/// The password.
pub(crate) const PASSWORD: &str = "s3cret";

/// Debian's docker-registry on a loopback port; ends when dropped.
pub(crate) struct Registry {
    process: Child,
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    _directory: TempDir,
}

impl Registry {
    /// Starts one with nothing in it.
    pub(crate) fn start() -> Self {
        Self::start_with("", |_| {})
    }

    /// Starts one that wants [`USER`] and [`PASSWORD`], for reading too.
    #[allow(dead_code, reason = "few tests push with a password")]
    pub(crate) fn start_with_password() -> Self {
        // PASSWORD by bcrypt, as `htpasswd -nbB` gives it.
        let line = format!("{USER}:$2b$04$iFnj7qUtAADOynvCIcFusuDxL9uCQBldoCoSgoLg5meWUlnfgrhL2");
        Self::start_with("auth: { htpasswd: { realm: tests, path: @/htpasswd } }\n", |directory| {
            fs::write(directory.join("htpasswd"), line).expect("a password file");
        })
    }

    /// Starts one with more lines in its config, where `@` is a directory that
    /// `prepare` fills.
    fn start_with(more: &str, prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let address = format!("127.0.0.1:{port}");
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
             storage: {{ filesystem: {{ rootdirectory: {}/data }} }}\nhttp: {{ addr: \"{address}\" }}\n",
            directory.path().display()
        );
        let more = more.replace('@', &directory.path().display().to_string());
        prepare(directory.path());
        fs::write(&config, text + &more).expect("a config");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry");
        let registry = Self { process, address, _directory: directory };
        let started = Instant::now();
        while TcpStream::connect(&registry.address).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "the registry did not start");
            std::thread::yield_now();
        }
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The builder's executable.
pub(crate) fn yadokari() -> Command {
    Command::new(env!("CARGO_BIN_EXE_yadokari"))
}

/// Runs `command` and gives its output; fails the test with what it said if it fails.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}\n{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A busybox root as a build context: `root.tar` with accounts for bob, who is in
/// two groups.
pub(crate) fn busybox_context(directory: &Path) -> PathBuf {
    let root = directory.join("busybox");
    for sub in ["bin", "etc", "tmp", "root", "home/bob", "proc", "sys", "dev", "usr/bin"] {
        fs::create_dir_all(root.join(sub)).expect("a directory");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("busybox-static");
    fs::copy(busybox, root.join("bin/busybox")).expect("busybox");
    let list = Command::new(busybox).arg("--list").output().expect("busybox --list");
    for applet in String::from_utf8_lossy(&list.stdout).lines() {
        if applet != "busybox" {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))
                .expect("an applet");
        }
    }
    let write = |name: &str, text: &str| fs::write(root.join(name), text).expect("a file");
    write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nbob:x:1500:1500:Bob:/home/bob:/bin/sh\n");
    write("etc/group", "root:x:0:\nbob:x:1500:\nstaff:x:50:bob\nwheel:x:10:bob\n");
    set_mode(&root.join("tmp"), 0o1777);
    let context = directory.join("base");
    fs::create_dir_all(&context).expect("a directory");
    succeed(
        Command::new("tar")
            .args(["--owner=0", "--group=0", "--numeric-owner", "-cf"])
            .arg(context.join("root.tar"))
            .arg("-C")
            .arg(&root)
            .arg("."),
    );
    let dockerfile = "FROM scratch\nADD root.tar /\nCMD [\"/bin/sh\"]\n";
    fs::write(context.join("Dockerfile"), dockerfile).expect("a Dockerfile");
    context
}

/// Sets permissions of a file.
pub(crate) fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// A registry that holds the busybox image as `base:latest`.
pub(crate) fn registry_with_base() -> (Registry, TempDir, String) {
    with_base(Registry::start())
}

/// `registry` with the busybox image as `base:latest`.
pub(crate) fn with_base(registry: Registry) -> (Registry, TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let context = busybox_context(directory.path());
    let base = format!("{}/base:latest", registry.address);
    succeed(
        yadokari()
            .env("DOCKER_AUTH_CONFIG", credentials(&registry.address))
            .args(["build", "--context"])
            .arg(&context)
            .arg("--cache-dir")
            .arg(directory.path().join("base-cache"))
            .args(["--destination", &base]),
    );
    (registry, directory, base)
}

/// What a `config.json` says of [`USER`] at a registry.
pub(crate) fn credentials(registry: &str) -> String {
    format!(
        "{{\"auths\":{{\"{registry}\":{{\"username\":\"{USER}\",\"password\":\"{PASSWORD}\"}}}}}}"
    )
}
