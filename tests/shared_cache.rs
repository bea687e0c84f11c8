//! The cache that machines share: two cache directories, one registry or one OCI
//! layout between them.

#[path = "support/registry.rs"]
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
mod fake;
#[path = "support/host.rs"]
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
mod host;
#[path = "support/logged.rs"]
mod logged;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use fake::Auth;
use fake::Fault;
use fake::Rules;
use logged::Logged;
use serde_json::Value;
use tempfile::TempDir;

const STEPS: &str = "ARG BASE
FROM ${BASE} AS build
COPY source /source
RUN cat /source > /built
FROM ${BASE}
COPY --from=build /built /built
RUN echo first > /first
COPY late /late
RUN cat /first /late > /last
";

/// Two machines: a build context, and a cache directory for each.
struct Machines {
    directory: TempDir,
    base: String,
    auth: Option<String>,
}

impl Machines {
    /// With the busybox image as `base` in `registry`.
    fn new(address: &str, auth: Option<String>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let base = format!("{address}/base:latest");
        let machines = Self { directory, base, auth };
        let context = host::busybox_context(machines.directory.path());
        let mut command = machines.command("base");
        command.arg("--context").arg(&context).args(["--destination", &machines.base]);
        host::succeed(&mut command);
        let context = machines.context();
        fs::create_dir_all(&context).expect("a directory");
        for (name, text) in [("Dockerfile", STEPS), ("source", "source\n"), ("late", "late\n")] {
            fs::write(context.join(name), text).expect("a file");
        }
        machines
    }

    fn context(&self) -> PathBuf {
        self.directory.path().join("context")
    }

    fn cache(&self, machine: &str) -> PathBuf {
        self.directory.path().join(format!("cache-{machine}"))
    }

    fn command(&self, machine: &str) -> Command {
        let mut command = host::yadokari();
        command
            .env_remove("DOCKER_AUTH_CONFIG")
            .env("DOCKER_CONFIG", "/nowhere")
            .args(["build", "--log-format=text", "--cache-dir"])
            .arg(self.cache(machine));
        if let Some(auth) = &self.auth {
            command.env("DOCKER_AUTH_CONFIG", auth);
        }
        command
    }

    fn build(&self, machine: &str, more: &[&str]) -> Built {
        let mut command = self.command(machine);
        command
            .arg("--context")
            .arg(self.context())
            .args(["--build-arg", &format!("BASE={}", self.base)])
            .args(more);
        Built::of(&host::succeed(&mut command))
    }
}

/// What a build said.
struct Built {
    digest: String,
    log: String,
}

impl Built {
    fn of(output: &Output) -> Self {
        Self {
            digest: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// How many steps ended so.
    fn count(&self, word: &str) -> usize {
        let is_it = |line: &&str| {
            line.starts_with('#') && line.split(' ').nth(1).is_some_and(|found| found == word)
        };
        self.log.lines().filter(is_it).count()
    }

    /// Warnings but those about the Dockerfile.
    fn warnings(&self) -> Vec<&str> {
        self.log.lines().filter(|line| line.contains("warning: the cache")).collect()
    }
}

/// Requests that move the content of a blob: a download, or an upload of more than
/// its session.
fn transfers<'a>(requests: &'a [String], digests: &[String]) -> Vec<&'a String> {
    let moves = |line: &&String| {
        let names = digests.iter().any(|digest| {
            line.contains(&format!("blobs/{digest}")) || line.contains(&digest.replace(':', "%3A"))
        });
        let is_mount = line.starts_with("POST");
        names && !line.starts_with("HEAD") && !is_mount
    };
    requests.iter().filter(moves).collect()
}

/// Digests of the layers of an image in a registry of Debian's.
fn layers(registry: &Logged, manifest: &str) -> Vec<String> {
    let bytes = fs::read(registry.blob_file(manifest)).expect("the manifest");
    let manifest: Value = serde_json::from_slice(&bytes).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers");
    layers.iter().map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect()
}

fn second_machine_only_hits(locked: bool) {
    if !host::require_host(&["docker-registry", "busybox", "tar"]) {
        return;
    }
    let registry = Logged::start(locked);
    let auth = locked.then(|| registry.auth_config());
    let machines = Machines::new(&registry.address, auth);
    let cache = format!("--cache-repo={}/shared/cache", registry.address);
    let app = format!("--destination={}/app:1", registry.address);
    let first = machines.build("one", &[&cache, &app]);
    assert_eq!((first.count("DONE"), first.count("CACHED")), (6, 0), "{}", first.log);
    assert!(first.log.contains("6 steps pushed to the cache"), "{}", first.log);
    let made = layers(&registry, &first.digest);
    let sent = registry.requests();
    for layer in &made[1..] {
        let uploads = transfers(&sent, std::slice::from_ref(layer));
        assert_eq!(uploads.len(), 1, "{layer} is sent once: {uploads:?}");
    }

    let before = registry.requests().len();
    let second = machines.build("two", &[&cache, &app]);
    assert_eq!((second.count("DONE"), second.count("CACHED")), (0, 6), "{}", second.log);
    assert_eq!(second.digest, first.digest);
    assert!(second.warnings().is_empty(), "{}", second.log);
    let requests = registry.requests().split_off(before);
    assert_eq!(transfers(&requests, &made), [""; 0], "nothing has to move");

    // To another repository the layers go by mounting.
    let other = format!("--destination={}/other:1", registry.address);
    let before = registry.requests().len();
    let third = machines.build("three", &[&cache, &other]);
    let requests = registry.requests().split_off(before);
    assert_eq!((&third.digest, third.count("DONE")), (&first.digest, 0), "{}", third.log);
    assert_eq!(transfers(&requests, &made), [""; 0], "{requests:#?}");
    let mounts = requests.iter().filter(|line| line.contains("mount=") && line.ends_with("201"));
    assert_eq!(mounts.count(), made.len(), "{requests:#?}");
    // Nothing was fetched, so nothing is claimed to be here.
    assert!(!machines.cache("three").join("blobs/sha256").read_dir().expect("blobs").any(
        |entry| {
            let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
            made.iter().any(|digest| digest.ends_with(&name))
        }
    ));
}

#[test]
fn a_second_machine_builds_everything_from_hits_and_moves_no_layer() {
    second_machine_only_hits(false);
}

#[test]
fn the_shared_cache_is_reached_with_the_keychain_s_credentials() {
    second_machine_only_hits(true);
}

#[test]
fn a_layer_is_fetched_when_a_later_step_needs_it_and_not_before() {
    if !host::require_host(&["docker-registry", "busybox", "tar"]) {
        return;
    }
    let registry = Logged::start(false);
    let machines = Machines::new(&registry.address, None);
    let cache = format!("--cache-repo={}/cache", registry.address);
    let app = format!("--destination={}/app:1", registry.address);
    let first = machines.build("one", &[&cache, &app]);
    let made = layers(&registry, &first.digest);
    fs::write(machines.context().join("late"), "later\n").expect("a file");
    let before = registry.requests().len();
    let second = machines.build("two", &[&cache, &app]);
    assert_eq!((second.count("DONE"), second.count("CACHED")), (2, 4), "{}", second.log);
    let requests = registry.requests().split_off(before);
    let moved = |layer: &String| transfers(&requests, std::slice::from_ref(layer)).len();
    // base, COPY --from, RUN first are below the new steps; the old ones above aren't.
    let counts: Vec<usize> = made.iter().map(moved).collect();
    assert_eq!(counts, [1, 1, 1, 0, 0], "{requests:#?}");
    // The stage that only served the COPY was never fetched.
    let layers_of_build =
        registry.requests().iter().filter(|l| l.contains("GET /v2/cache/blobs")).count();
    assert_eq!(layers_of_build, 2, "{requests:#?}");

    // What was fetched hits locally from now on: the shared cache isn't asked.
    let before = registry.requests().len();
    let again = machines.build("two", &[&cache, &app]);
    assert_eq!((again.count("DONE"), &again.digest), (0, &second.digest), "{}", again.log);
    let requests = registry.requests().split_off(before);
    let asked = requests.iter().filter(|line| line.contains("/v2/cache/") && !line.contains("PUT"));
    // Only the stage `build`, which this machine has never had, may still be asked for.
    assert!(asked.count() <= 3, "{requests:#?}");
}

#[test]
fn a_repeat_build_with_local_hits_asks_the_shared_cache_nothing() {
    if !host::require_host(&["docker-registry", "busybox", "tar"]) {
        return;
    }
    let registry = Logged::start(false);
    let machines = Machines::new(&registry.address, None);
    let cache = format!("--cache-repo={}/cache", registry.address);
    let app = format!("--destination={}/app:1", registry.address);
    machines.build("one", &[&cache, &app]);
    let before = registry.requests().len();
    machines.build("one", &[&cache, &app]);
    let requests = registry.requests().split_off(before);
    assert!(!requests.iter().any(|line| line.contains("/v2/cache/")), "{requests:#?}");
}

#[test]
fn steps_that_only_the_local_cache_knew_are_shared_too() {
    if !host::require_host(&["docker-registry", "busybox", "tar"]) {
        return;
    }
    let registry = Logged::start(false);
    let machines = Machines::new(&registry.address, None);
    let app = format!("--destination={}/app:1", registry.address);
    // No cache was asked for: nothing but the image is pushed.
    machines.build("one", &[&app]);
    assert!(!registry.requests().iter().any(|line| line.contains("/v2/app/cache/")));
    // With --cache, kaniko's default place.
    let second = machines.build("one", &[&app, "--cache=true"]);
    assert_eq!(second.count("DONE"), 0, "{}", second.log);
    assert!(second.log.contains("6 steps pushed to the cache"), "{}", second.log);
    let read_only = machines.build("two", &[&app, "--cache", "--no-push-cache"]);
    assert_eq!((read_only.count("DONE"), read_only.digest), (0, second.digest));
}

#[test]
fn an_oci_layout_is_a_shared_cache_too() {
    if !host::require_host(&["docker-registry", "busybox", "tar"]) {
        return;
    }
    let registry = Logged::start(false);
    let machines = Machines::new(&registry.address, None);
    let place = machines.directory.path().join("layout");
    let cache = format!("--cache-repo=oci:{}", place.display());
    let first = machines.build("one", &["--no-push", &cache]);
    assert_eq!(first.count("DONE"), 6, "{}", first.log);
    let index: Value =
        serde_json::from_slice(&fs::read(place.join("index.json")).expect("an index"))
            .expect("JSON");
    // Definition, content and hint of each step, and the inferred key of the COPY --from.
    assert_eq!(index["manifests"].as_array().expect("manifests").len(), 6 * 3 + 1);
    let tar = machines.directory.path().join("image");
    let out = format!("--oci-layout-path={}", tar.display());
    let second = machines.build("two", &["--no-push", &cache, &out]);
    assert_eq!((second.count("DONE"), &second.digest), (0, &first.digest), "{}", second.log);
    assert!(second.warnings().is_empty(), "{}", second.log);
    assert!(tar.join("index.json").exists());
}

#[test]
fn no_failing_cache_fails_a_build_and_each_is_told_of_once() {
    if !host::require_host(&["docker-registry", "busybox", "tar"]) {
        return;
    }
    let registry = Logged::start(false);
    let machines = Machines::new(&registry.address, None);
    let locked = fake::Registry::start(Rules { auth: Auth::Basic("a", "b"), ..Rules::default() });
    let anonymous = Auth::Token { accounts: Vec::new(), refresh: None, anonymous: true };
    let read_only = fake::Registry::start(Rules { auth: anonymous, ..Rules::default() });
    let broken = fake::Registry::start(Rules::default());
    for _ in 0..200 {
        for method in ["GET", "HEAD", "POST"] {
            broken.fault(method, "/v2/", Fault::Status(503, Vec::new(), String::new()));
        }
    }
    let layout = machines.directory.path().join("late-as-file");
    fs::write(&layout, "a file").expect("a file");
    let nobody = "127.0.0.1:1/cache".to_owned();
    let at = |registry: &fake::Registry| format!("{}/cache", registry.host());
    let places = [
        ("unreachable", nobody),
        ("locked", at(&locked)),
        ("read-only", at(&read_only)),
        ("broken", at(&broken)),
        ("file", format!("oci:{}", layout.display())),
    ];
    for (name, place) in places {
        let built = machines.build(name, &["--no-push", &format!("--cache-repo={place}")]);
        assert_eq!(built.count("DONE"), 6, "{name}: {}", built.log);
        assert_eq!(built.warnings().len(), 1, "{name}: {}", built.log);
        assert!(built.warnings()[0].contains(&place), "{name}: {}", built.log);
    }
    assert!(read_only.count("GET", "/manifests/") > 0, "it may be read");
    assert_eq!(read_only.count("PUT", "/"), 0, "and not written");
}

#[test]
fn hostile_foreign_and_lost_content_is_built_anew() {
    if !host::require_host(&["docker-registry", "busybox", "tar"]) {
        return;
    }
    let registry = Logged::start(false);
    let machines = Machines::new(&registry.address, None);
    let cache = fake::Registry::start(Rules::default());
    let place = format!("--cache-repo={}/cache", cache.host());
    machines.build("one", &["--no-push", &place]);
    let manifests = cache.manifests("cache");
    assert!(manifests.len() > 6 * 3, "{}", manifests.len());

    // Something else lies under every tag.
    let foreign: [(&str, &[u8]); 3] = [
        ("garbage", b"\0\x01{"),
        ("an image", br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#),
        ("another step", &manifests[0].1.clone()),
    ];
    for (number, (what, bytes)) in foreign.iter().enumerate() {
        for (tag, _) in &manifests {
            cache.put_manifest("cache", tag, "application/vnd.oci.image.manifest.v1+json", bytes);
        }
        let built =
            machines.build(&format!("foreign-{number}"), &["--no-push", &place, "--no-push-cache"]);
        assert!(built.count("DONE") >= 5, "{what}: {}", built.log);
        assert!(built.log.contains("is not used"), "{what}: {}", built.log);
    }

    // The records are true, and the layers are gone or are others.
    for (tag, bytes) in &manifests {
        cache.put_manifest("cache", tag, "application/vnd.oci.image.manifest.v1+json", bytes);
    }
    fs::write(machines.context().join("late"), "later\n").expect("a file");
    cache.replace_blobs("cache", b"not the layer");
    let changed = machines.build("changed", &["--no-push", &place]);
    assert_eq!(changed.count("FAILED"), 0);
    assert!(changed.log.contains("goes on without it"), "{}", changed.log);
    cache.remove_blobs("cache");
    let out = machines.directory.path().join("image");
    let lost = machines
        .build("lost", &["--no-push", &place, &format!("--oci-layout-path={}", out.display())]);
    assert!(lost.log.contains("goes on without it"), "{}", lost.log);
    assert!(Path::new(&out).join("index.json").exists());
}
