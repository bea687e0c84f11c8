//! Where the users are: our own images under Docker's engine and podman, as a CI runner
//! starts them.
//!
//! Docker's daemon is started here, with directories and a socket of its own and without
//! a bridge (containers share the network of the machine, where the registry is), and
//! ends with the last test that uses it. Needs root and Debian's packages docker.io,
//! podman, docker-registry, uidmap and binutils. Builds that need the network are in
//! `scripts/stock`.

#[path = "support/host.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod host;
#[path = "support/image.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod image;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;
use std::time::Instant;

use host::Registry;
use host::succeed;
use image::Image;

const EPOCH: &str = "1000000000";

const TOOLS: &[&str] = &["dockerd", "docker", "docker-registry", "skopeo", "strip", "jq"];

/// How GitLab Runner finds a shell in a job's image.
const SHELL: &str = "if [ -x /usr/local/bin/bash ]; then exec /usr/local/bin/bash; \
     elif [ -x /usr/bin/bash ]; then exec /usr/bin/bash; elif [ -x /bin/bash ]; then exec /bin/bash; \
     elif [ -x /usr/local/bin/sh ]; then exec /usr/local/bin/sh; \
     elif [ -x /usr/bin/sh ]; then exec /usr/bin/sh; elif [ -x /bin/sh ]; then exec /bin/sh; \
     elif [ -x /busybox/sh ]; then exec /busybox/sh; else echo shell not found; exit 1; fi";

/// Docker's daemon with our images in it.
struct Engine {
    daemon: Child,
    directory: tempfile::TempDir,
    executor: String,
    debug: String,
}

static ENGINE: Mutex<Weak<Engine>> = Mutex::new(Weak::new());

impl Engine {
    /// The one that runs, else a new one; `None` where there can't be one.
    fn get() -> Option<Arc<Self>> {
        if !host::require_host(TOOLS) {
            return None;
        }
        let mut shared = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = shared.upgrade().unwrap_or_else(|| Arc::new(Self::start()));
        *shared = Arc::downgrade(&engine);
        Some(engine)
    }

    fn start() -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let at = directory.path();
        fs::write(at.join("daemon.json"), "{}").expect("a config");
        let log = fs::File::create(at.join("log")).expect("a log");
        let daemon = Command::new("dockerd")
            .arg("--config-file")
            .arg(at.join("daemon.json"))
            .arg("--data-root")
            .arg(at.join("data"))
            .arg("--exec-root")
            .arg(at.join("exec"))
            .arg("--pidfile")
            .arg(at.join("pid"))
            .arg("--host")
            .arg(format!("unix://{}", at.join("socket").display()))
            .args(["--bridge", "none", "--iptables=false", "--ip6tables=false"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("dockerd");
        let mut engine = Self { daemon, directory, executor: String::new(), debug: String::new() };
        let started = Instant::now();
        while !engine.docker().arg("version").output().expect("docker").status.success() {
            let log = fs::read_to_string(engine.directory.path().join("log")).unwrap_or_default();
            assert!(started.elapsed() < Duration::from_secs(60), "dockerd does not start:\n{log}");
        }
        let images = images(engine.directory.path());
        for (name, slot) in [("executor", 0), ("debug", 1)] {
            let load = succeed(engine.docker().arg("load").arg("-i").arg(images.join(name)));
            let said = String::from_utf8_lossy(&load.stdout).into_owned();
            let id = said.trim().rsplit(' ').next().expect("an id").to_owned();
            *[&mut engine.executor, &mut engine.debug][slot] = id;
        }
        engine
    }

    fn docker(&self) -> Command {
        let mut command = Command::new("docker");
        let socket = self.directory.path().join("socket");
        command.arg("--host").arg(format!("unix://{}", socket.display()));
        command
    }

    /// `docker run` of `image` with `work` at its own path.
    fn run(&self, image: &str, options: &[&str], work: &Path) -> Command {
        let mut command = self.docker();
        command
            .args(["run", "--rm", "--interactive", "--network", "host"])
            .args(["--env", &format!("SOURCE_DATE_EPOCH={EPOCH}")])
            .args(["--volume", &format!("{0}:{0}", work.display())])
            .args(options)
            .arg(image);
        command
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SIGTERM ends its containers, too.
        let pid = self.daemon.id().to_string();
        let _ = Command::new("kill").arg(&pid).status();
        let _ = self.daemon.wait();
        // It leaves a mount of its network's namespace.
        let namespaces = self.directory.path().join("exec/netns/default");
        let _ = Command::new("umount").arg(namespaces).stderr(Stdio::null()).status();
    }
}

/// Our images as archives for `docker load`, built by the builder at hand.
fn images(directory: &Path) -> PathBuf {
    let binary = directory.join("yadokari");
    // Without what only a debugger needs: a tenth of the bytes.
    succeed(Command::new("strip").arg("-o").arg(&binary).arg(env!("CARGO_BIN_EXE_yadokari")));
    let out = directory.join("images");
    succeed(
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/images"))
            .arg(&out)
            .env("YADOKARI", &binary)
            .env_remove("REGISTRY"),
    );
    for name in ["executor", "debug"] {
        fs::remove_dir_all(out.join(name)).expect("a layout");
        fs::rename(out.join(format!("{name}.tar")), out.join(name)).expect("an archive");
    }
    out
}

/// Something to build, with a secret, a cache, a second stage and another user.
const SERVICE: &str = "ARG BASE
FROM ${BASE} AS build
RUN --mount=type=cache,target=/var/cache/stock echo made > /var/cache/stock/x && \
    mkdir /out && cat /var/cache/stock/x > /out/cached
RUN --mount=type=secret,id=token sha256sum < /run/secrets/token > /out/sum
FROM ${BASE}
COPY --from=build --chown=bob:staff /out /srv/out
RUN mkdir -m 1777 /pub && rm /bin/vi && ln -s /pub /link && echo over > /link/over
USER bob
RUN id -un > /pub/who && test ! -w /etc/passwd && test ! -e /run/secrets/token
USER root
RUN chown 5:6 /pub/who && chmod 0700 /srv && mkfifo /pub/pipe && ln /pub/who /pub/again
";

/// A context with `SERVICE`, a registry with its base, and what the overlay makes of it.
struct Project {
    registry: Registry,
    work: tempfile::TempDir,
    base: String,
}

impl Project {
    fn new(registry: Registry) -> Self {
        let (registry, work, base) = host::with_base(registry);
        let project = Self { registry, work, base };
        host::set_mode(project.path(), 0o755);
        fs::write(project.path().join("token"), "hunter2").expect("a secret");
        project.context("service", SERVICE);
        project
    }

    fn path(&self) -> &Path {
        self.work.path()
    }

    fn context(&self, name: &str, dockerfile: &str) -> PathBuf {
        let context = self.path().join(name);
        fs::create_dir_all(&context).expect("a context");
        fs::write(context.join("Dockerfile"), dockerfile).expect("a Dockerfile");
        context
    }

    /// Arguments to build a context of ours without pushing.
    fn words(&self, name: &str, out: &Path) -> Vec<String> {
        let context = self.path().join(name).display().to_string();
        [
            "--context".to_owned(),
            context.clone(),
            "--dockerfile".to_owned(),
            format!("{context}/Dockerfile"),
            "--build-arg".to_owned(),
            format!("BASE={}", self.base),
            "--secret".to_owned(),
            format!("id=token,src={}", self.path().join("token").display()),
            "--no-push".to_owned(),
            "--oci-layout-path".to_owned(),
            out.display().to_string(),
        ]
        .into()
    }

    /// The manifest's digest of a context as the overlay's root makes it.
    fn expected(&self, name: &str) -> String {
        let output = succeed(
            host::yadokari()
                .args(["build", "--root=overlay"])
                .env("SOURCE_DATE_EPOCH", EPOCH)
                .env("DOCKER_AUTH_CONFIG", host::credentials(&self.registry.address))
                .arg("--cache-dir")
                .arg(self.path().join(format!("cache-{name}")))
                .args(self.words(name, &self.path().join(format!("expected-{name}")))),
        );
        stdout(&output)
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `command` with `text` as its standard input.
fn feed(mut command: Command, text: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("a process");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(text.as_bytes()).expect("it reads its input");
    drop(input);
    child.wait_with_output().expect("an end")
}

/// The job of many a `.gitlab-ci.yml`, run as the runner runs it: a shell of the debug
/// image gets the script, the project is a volume, and nothing else is given.
#[test]
fn a_gitlab_job_written_for_kaniko_works_with_the_image_swapped() {
    let Some(engine) = Engine::get() else { return };
    let project = Project::new(Registry::start_with_password());
    let registry = &project.registry.address;
    let builds = project.path().join("builds/team/app");
    fs::create_dir_all(&builds).expect("a project");
    let text = SERVICE
        .replace(" --mount=type=secret,id=token", "")
        .replace("sha256sum < /run/secrets/token", "echo none");
    let text = text.replace("ARG BASE\n", "").replace("${BASE}", &project.base);
    fs::write(builds.join("Dockerfile"), &text).expect("a Dockerfile");
    project.context("job", &text);
    let expected = project.expected("job");
    for (place, tag) in [("/kaniko/.docker", "new"), ("/root/.docker", "old")] {
        let script = format!(
            "set -eo pipefail\n\
             mkdir -p {place}\n\
             echo \"{{\\\"auths\\\":{{\\\"$CI_REGISTRY\\\":{{\\\"username\\\":\\\"$CI_REGISTRY_USER\\\",\
             \\\"password\\\":\\\"$CI_REGISTRY_PASSWORD\\\"}}}}}}\" > {place}/config.json\n\
             /kaniko/executor --context $CI_PROJECT_DIR --dockerfile $CI_PROJECT_DIR/Dockerfile \
             --destination $CI_REGISTRY_IMAGE:$CI_COMMIT_TAG\n"
        );
        let variables = [
            format!("CI_REGISTRY={registry}"),
            format!("CI_REGISTRY_USER={}", host::USER),
            format!("CI_REGISTRY_PASSWORD={}", host::PASSWORD),
            format!("CI_REGISTRY_IMAGE={registry}/team/app"),
            format!("CI_COMMIT_TAG={tag}"),
            "CI_PROJECT_DIR=/builds/team/app".to_owned(),
        ];
        let mount = format!("{}:/builds", project.path().join("builds").display());
        let mut options =
            vec!["--entrypoint", "", "--volume", &mount, "--workdir", "/builds/team/app"];
        for variable in &variables {
            options.extend(["--env", variable]);
        }
        let mut command = engine.run(&engine.debug, &options, &project.path().join("job"));
        command.args(["sh", "-c", SHELL]);
        let output = feed(command, &script);
        assert!(output.status.success(), "{place}\n{}", stderr(&output));
        assert!(stderr(&output).contains("inplace"), "{}", stderr(&output));
        assert_eq!(stdout(&output), expected, "{place}\n{}", stderr(&output));
        let pushed = succeed(Command::new("skopeo").args([
            "inspect",
            "--tls-verify=false",
            "--creds",
            &format!("{}:{}", host::USER, host::PASSWORD),
            "--format",
            "{{.Digest}}",
            &format!("docker://{registry}/team/app:{tag}"),
        ]));
        assert_eq!(stdout(&pushed), expected);
    }
}

/// Name, options of `docker run`, what the line about the root must say.
const CONTAINERS: &[(&str, &[&str], &str)] = &[
    ("as-it-is", &[], "inplace"),
    (
        "six-capabilities",
        &[
            "--cap-drop=ALL",
            "--cap-add=CHOWN",
            "--cap-add=DAC_OVERRIDE",
            "--cap-add=FOWNER",
            "--cap-add=SETUID",
            "--cap-add=SETGID",
            "--cap-add=SETFCAP",
        ],
        "inplace",
    ),
    ("no-new-privileges", &["--security-opt=no-new-privileges"], "inplace"),
    (
        "fuse",
        &["--device=/dev/fuse", "--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined"],
        "private mount namespace",
    ),
    (
        "user-namespace",
        &[
            "--device=/dev/fuse",
            "--security-opt=seccomp=unconfined",
            "--security-opt=apparmor=unconfined",
            "--security-opt=systempaths=unconfined",
        ],
        "user namespace of our own, which has all ids",
    ),
    (
        "user-namespace-masked",
        &[
            "--device=/dev/fuse",
            "--security-opt=seccomp=unconfined",
            "--security-opt=apparmor=unconfined",
        ],
        "user namespace of our own, which has all ids",
    ),
    (
        "read-only-fuse",
        &[
            "--read-only",
            "--device=/dev/fuse",
            "--cap-add=SYS_ADMIN",
            "--security-opt=apparmor=unconfined",
        ],
        "private mount namespace",
    ),
];

#[test]
fn every_container_makes_the_same_image() {
    let Some(engine) = Engine::get() else { return };
    let project = Project::new(Registry::start());
    let expected = project.expected("service");
    let mut faults = Vec::new();
    for (name, options, root) in CONTAINERS {
        let mut command = engine.run(&engine.executor, options, project.path());
        command
            .args(project.words("service", &project.path().join(name)))
            .arg("--cache-dir")
            .arg(project.path().join(format!("cache-{name}")));
        let output = command.output().expect("docker");
        let told = stderr(&output);
        if stdout(&output) != expected || !told.contains(root) {
            faults.push(format!("{name}: {expected} / {}\n{told}", stdout(&output)));
        }
    }
    assert!(faults.is_empty(), "{} containers differ:\n{}", faults.len(), faults.join("\n"));
}

/// What RUN can't do is said, and what needs no RUN is done.
#[test]
fn a_read_only_container_copies_and_says_why_it_does_not_run() {
    let Some(engine) = Engine::get() else { return };
    let project = Project::new(Registry::start());
    let copies = "ARG BASE\nFROM ${BASE}\nCOPY --chown=1:2 Dockerfile /d/\nWORKDIR /w\n";
    project.context("copies", copies);
    let build = |name: &str| {
        let mut command = engine.run(&engine.executor, &["--read-only"], project.path());
        command
            .args(project.words(name, &project.path().join(format!("{name}-read-only"))))
            .arg("--cache-dir")
            .arg(project.path().join("cache-read-only"));
        command.output().expect("docker")
    };
    let output = build("copies");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), project.expected("copies"));
    let output = build("service");
    assert!(!output.status.success());
    assert!(stderr(&output).contains("read-only"), "{}", stderr(&output));
}

/// 300 MB in a layer, 512 MB of memory, page cache included.
#[test]
fn a_large_layer_needs_little_memory() {
    let Some(engine) = Engine::get() else { return };
    let project = Project::new(Registry::start());
    let text = "ARG BASE\nFROM ${BASE}\nRUN dd if=/dev/urandom of=/large bs=1M count=300\n";
    project.context("large", text);
    let out = project.path().join("large-out");
    let options = ["--memory=512m", "--memory-swap=512m"];
    let mut command = engine.run(&engine.executor, &options, project.path());
    command.args(project.words("large", &out)).args([
        "--compression-level",
        "1",
        "--cache-dir",
        "/kaniko/cache",
    ]);
    let output = command.output().expect("docker");
    assert!(output.status.success(), "{}", stderr(&output));
    let image = Image::open(&out);
    let sizes: Vec<u64> = image.manifest["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .filter_map(|layer| layer["size"].as_u64())
        .collect();
    assert!(sizes.last().is_some_and(|size| *size >= 300 << 20), "{sizes:?}");
}

/// As on a runner that keeps its container: nothing of one image is in the next.
#[test]
fn builds_after_one_another_in_one_container_know_nothing_of_each_other() {
    let Some(engine) = Engine::get() else { return };
    let project = Project::new(Registry::start());
    let other = "ARG BASE\nFROM ${BASE} AS tools\nFROM scratch\n\
         COPY --from=tools /bin/busybox /b/busybox\n\
         RUN [\"/b/busybox\", \"sh\", \"-c\", \"/b/busybox mkdir /made; test ! -e /srv\"]\n";
    project.context("other", other);
    let names = ["service", "other", "service"];
    let mut script = "set -e\n".to_owned();
    for (index, name) in names.iter().enumerate() {
        let words = project.words(name, &project.path().join(format!("turn-{index}")));
        let words: String = words.iter().map(|word| format!("'{word}' ")).collect();
        // Every step runs; the cache only knows what the root shows.
        script += &format!("/kaniko/executor --no-cache --cache-dir /kaniko/cache {words}\n");
    }
    let mut command = engine.run(&engine.debug, &["--entrypoint", ""], project.path());
    command.args(["sh", "-c", SHELL]);
    let output = feed(command, &script);
    assert!(output.status.success(), "{}", stderr(&output));
    let digests: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
    let expected: Vec<String> = names.iter().map(|name| project.expected(name)).collect();
    assert_eq!(digests, expected, "{}", stderr(&output));
}

/// A user that the machine has not, with 65,536 subordinate ids.
const ANA: u32 = 424_242;

/// podman as a user: root in the container is nobody in particular outside. The engine is
/// only asked for the files of our image.
#[test]
fn podman_without_root_makes_the_same_image() {
    if !host::require_host(&["podman", "runc", "newuidmap", "setpriv"]) {
        return;
    }
    let Some(engine) = Engine::get() else { return };
    let project = Project::new(Registry::start());
    let expected = project.expected("service");
    let home = project.path().join("home");
    for directory in ["rootfs", "run", "work"] {
        fs::create_dir_all(home.join(directory)).expect("a directory");
    }
    let created = succeed(engine.docker().args(["create", &engine.debug]));
    let id = stdout(&created);
    let archive = home.join("rootfs.tar");
    succeed(engine.docker().arg("export").arg("--output").arg(&archive).arg(&id));
    succeed(engine.docker().args(["rm", &id]));
    let passwd = fs::read_to_string("/etc/passwd").expect("passwd");
    let passwd = format!("{passwd}ana:x:{ANA}:{ANA}::{}:/bin/sh\n", home.display());
    fs::write(home.join("passwd"), passwd).expect("passwd");
    fs::write(home.join("subid"), "ana:500000:65536\n").expect("subuid");
    let words = project.words("service", &home.join("work/out"));
    let words: String = words.iter().map(|word| format!("'{word}' ")).collect();
    // Mounts are gone when the script ends, and so is the process that podman leaves to hold
    // its user namespace.
    let script = format!(
        "touch /etc/subuid /etc/subgid; mount --bind passwd /etc/passwd\n\
         mount --bind subid /etc/subuid; mount --bind subid /etc/subgid\n\
         tar -C rootfs -xf rootfs.tar; chown -hR {ANA}:{ANA} rootfs run work .\n\
         exec setpriv --reuid={ANA} --regid={ANA} --clear-groups env -i \"PATH=$PATH\" HOME=$PWD \
         XDG_RUNTIME_DIR=$PWD/run podman --root $PWD/store --runroot $PWD/run/podman \
         --storage-driver vfs --cgroup-manager cgroupfs --events-backend file \
         run --rm --runtime runc --network host --ulimit nofile=1024:1024 \
         --ulimit nproc=1024:1024 --env SOURCE_DATE_EPOCH={EPOCH} --env PATH=/kaniko:/busybox \
         --volume {work}:{work} --rootfs $PWD/rootfs \
         /kaniko/executor --cache-dir /kaniko/cache {words}",
        work = project.path().display(),
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc"])
        .args(["sh", "-ec", &script])
        .current_dir(&home)
        .output()
        .expect("unshare");
    assert_eq!(stdout(&output), expected, "{}", stderr(&output));
    assert!(stderr(&output).contains("inplace"), "{}", stderr(&output));
}

/// What each container allows is told, also to programs.
#[test]
fn the_doctor_tells_every_rung_and_how_to_climb() {
    let Some(engine) = Engine::get() else { return };
    let work = tempfile::tempdir().expect("a directory");
    let doctor = |options: &[&str]| -> serde_json::Value {
        let mut command = engine.run(&engine.executor, options, work.path());
        // The executor's command line is kaniko's; this one is ours.
        let arguments: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
        let (image, before) = arguments.split_last().expect("an image");
        command = Command::new("docker");
        command.args(before).args(["--entrypoint", "/kaniko/yadokari"]).arg(image);
        command.args(["doctor", "--json"]);
        let output = command.output().expect("docker");
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    for (name, options, root) in CONTAINERS {
        let said = doctor(options);
        let chosen = match *root {
            "inplace" => "inplace",
            "private mount namespace" => "overlay",
            _ => "overlay in a user namespace",
        };
        assert_eq!(said["chosen"], chosen, "{name}: {said:#}");
        for rung in said["ladder"].as_array().expect("a ladder") {
            let grants = rung["grants"].as_array().expect("grants");
            let places: Vec<&str> =
                grants.iter().filter_map(|grant| grant["where"].as_str()).collect();
            for place in ["docker", "Kubernetes"] {
                assert!(places.iter().any(|at| at.contains(place)), "{place}: {rung:#}");
            }
        }
    }
}
