//! The warmer: images and steps fetched ahead, by kaniko's command line.

#[path = "support/registry.rs"]
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
mod fake;
#[path = "support/host.rs"]
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
mod host;
#[path = "support/logged.rs"]
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
mod logged;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use fake::Fault;
use fake::Rules;
use logged::Logged;
use yadokari::oci::descriptor::Descriptor;
use yadokari::oci::digest::Digest;
use yadokari::oci::manifest::Manifest;
use yadokari::oci::media_type;

/// The warmer with kaniko's name.
fn warmer(cache: &Path) -> Command {
    let mut command = host::yadokari();
    command.arg0("/kaniko/warmer").env("DOCKER_CONFIG", "/nowhere");
    command.arg("--cache-dir").arg(cache).arg("--log-format=text");
    command
}

fn log(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An uncompressed tar with one file of `size` bytes.
fn layer(size: usize) -> Vec<u8> {
    let content: Vec<u8> = (0..size).map(|at| (at * 7 + at / 251) as u8).collect();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(size as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "file", &content[..]).expect("an entry");
    archive.into_inner().expect("a tar")
}

/// Puts an image of one layer into `registry`; gives the layer's digest.
fn put_image(registry: &fake::Registry, name: &str, layer: &[u8]) -> Digest {
    let digest = registry.put_blob(name, layer);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
    );
    registry.put_blob(name, config.as_bytes());
    let of =
        |kind: &str, bytes: &[u8]| Descriptor::new(kind, Digest::of(bytes), bytes.len() as u64);
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: of(media_type::OCI_CONFIG, config.as_bytes()),
        layers: vec![of(media_type::OCI_LAYER, layer)],
        subject: None,
        annotations: [].into(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("JSON");
    registry.put_manifest(name, "1", media_type::OCI_MANIFEST, &bytes);
    digest
}

#[test]
fn a_warm_image_is_not_fetched_again_and_a_missing_one_is_named() {
    let registry = fake::Registry::start(Rules::default());
    let digest = put_image(&registry, "app", &layer(1000));
    let directory = tempfile::tempdir().expect("a directory");
    let good = format!("{}/app:1", registry.host());
    let bad = format!("{}/none:1", registry.host());
    let output = warmer(directory.path()).args(["-i", &bad, "-i", &good]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1), "{}", log(&output));
    assert!(log(&output).contains(&format!("error: {bad}: ")), "{}", log(&output));
    assert!(log(&output).contains(&format!("{good} is warm")), "{}", log(&output));
    let fetched = || registry.count("GET", &format!("/blobs/{digest}"));
    assert_eq!(fetched(), 1);
    let again = host::succeed(warmer(directory.path()).args(["-i", &good]));
    assert!(log(&again).contains("is warm"), "{}", log(&again));
    assert_eq!(fetched(), 1, "it was here");
    let none = warmer(directory.path()).output().expect("runs");
    assert_eq!(none.status.code(), Some(1));
    assert!(log(&none).contains("--image or --dockerfile"), "{}", log(&none));
}

#[test]
fn a_killed_warmer_goes_on_where_it_was() {
    let registry = fake::Registry::start(Rules::default());
    let digest = put_image(&registry, "app", &layer(300_000));
    let image = format!("{}/app:1", registry.host());
    let directory = tempfile::tempdir().expect("a directory");
    let partial = directory.path().join("partial").join(digest.hex());
    // The config is small and comes first; only the layer stalls.
    registry.fault("GET", Box::leak(digest.to_string().into_boxed_str()), Fault::Stall(100_000));
    let mut killed = warmer(directory.path())
        .args(["-i", &image])
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let started = Instant::now();
    while fs::metadata(&partial).map_or(0, |found| found.len()) < 100_000 {
        assert!(started.elapsed() < Duration::from_secs(30), "nothing comes");
        std::thread::yield_now();
    }
    killed.kill().expect("a kill");
    killed.wait().expect("an end");
    let output = host::succeed(warmer(directory.path()).args(["-i", &image]));
    assert!(log(&output).contains("from byte 100000"), "{}", log(&output));
    let ranges: Vec<_> =
        registry.seen().iter().filter_map(|seen| seen.header("Range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["bytes=100000-"]);
    assert!(!partial.exists());
}

#[test]
fn a_beginning_that_is_not_the_blob_s_is_thrown_away() {
    let registry = fake::Registry::start(Rules::default());
    let digest = put_image(&registry, "app", &layer(1000));
    let image = format!("{}/app:1", registry.host());
    for wrong in [b"wrong".to_vec(), vec![0; 100_000]] {
        let directory = tempfile::tempdir().expect("a directory");
        let partial = directory.path().join("partial");
        fs::create_dir_all(&partial).expect("a directory");
        fs::write(partial.join(digest.hex()), &wrong).expect("a file");
        host::succeed(warmer(directory.path()).args(["-i", &image]));
        assert!(!partial.join(digest.hex()).exists());
    }
}

#[test]
fn force_finds_damage_and_mends_it() {
    let registry = fake::Registry::start(Rules::default());
    let digest = put_image(&registry, "app", &layer(1000));
    let image = format!("{}/app:1", registry.host());
    let directory = tempfile::tempdir().expect("a directory");
    host::succeed(warmer(directory.path()).args(["-i", &image]));
    let tar = directory.path().join(format!("layers/sha256/{}.tar", digest.hex()));
    let whole = fs::read(&tar).expect("the layer");
    let mut damaged = whole.clone();
    damaged[600] ^= 1;
    fs::write(&tar, &damaged).expect("damage");
    host::succeed(warmer(directory.path()).args(["-i", &image]));
    // Changed since it was written, so it is looked at even without being told to.
    assert!(fs::read(&tar).expect("the layer") == whole, "seen by its seal");
    fs::write(&tar, &damaged).expect("damage");
    host::succeed(warmer(directory.path()).args(["-i", &image, "--force"]));
    assert!(fs::read(&tar).expect("the layer") == whole);
}

#[test]
fn many_warmers_and_a_build_share_one_download() {
    let registry = fake::Registry::start(Rules::default());
    let digest = put_image(&registry, "app", &layer(2_000_000));
    let image = format!("{}/app:1", registry.host());
    let directory = tempfile::tempdir().expect("a directory");
    let running: Vec<_> = (0..4)
        .map(|_| {
            let mut command = warmer(directory.path());
            command.args(["-i", &image]).stderr(Stdio::piped()).spawn().expect("starts")
        })
        .collect();
    for child in running {
        let output = child.wait_with_output().expect("an end");
        assert!(output.status.success(), "{}", log(&output));
    }
    assert_eq!(registry.count("GET", &format!("/blobs/{digest}")), 1);
}

const STEPS: &str = "ARG BASE=none
FROM ${BASE} AS build
RUN echo built > /built
FROM ${BASE}
RUN echo first > /first
COPY file /file
RUN cat /first /file > /last
COPY --from=build /built /built
";

#[test]
fn steps_of_a_dockerfile_are_warmed_out_of_a_shared_cache() {
    if !host::require_host(&["docker-registry", "busybox", "tar"]) {
        return;
    }
    let registry = Logged::start(false);
    let directory = tempfile::tempdir().expect("a directory");
    let base = format!("{}/base:latest", registry.address);
    let arg = format!("--build-arg=BASE={base}");
    let cache_repo = format!("--cache-repo={}/cache", registry.address);
    let app = format!("--destination={}/app:1", registry.address);
    let context = host::busybox_context(directory.path());
    let cache = |name: &str| directory.path().join(name);
    let build = |machine: &str, context: &Path, more: &[&str]| {
        let mut command = host::yadokari();
        command.args(["build", "--log-format=text", "--context"]).arg(context);
        host::succeed(command.arg("--cache-dir").arg(cache(machine)).args(more))
    };
    build("base", &context, &[&format!("--destination={base}")]);
    let context = directory.path().join("context");
    fs::create_dir_all(&context).expect("a directory");
    fs::write(context.join("file"), "text").expect("a file");
    fs::write(context.join("Dockerfile"), STEPS).expect("a file");
    let first = build("one", &context, &[&arg, &cache_repo, &app]);

    let dockerfile = context.join("Dockerfile");
    let warm = |machine: &str, more: &[&str]| {
        let mut command = warmer(&cache(machine));
        command.args([&arg, &cache_repo]).arg("-d").arg(&dockerfile).args(more);
        log(&host::succeed(&mut command))
    };
    let told = warm("two", &["--context", context.to_str().expect("a name")]);
    assert_eq!(told.matches(" CACHED\n").count(), 5, "{told}");
    let before = registry.requests().len();
    let second = build("two", &context, &[&arg, &app]);
    assert_eq!(second.stdout, first.stdout, "{}", log(&second));
    let moved: Vec<String> = registry
        .requests()
        .split_off(before)
        .into_iter()
        .filter(|line| line.starts_with("GET") && line.contains("/blobs/"))
        .collect();
    assert_eq!(moved, [""; 0], "everything was here");

    // Without the context the walk ends where a file of it is needed.
    let told = warm("three", &[]);
    assert_eq!(told.matches(" CACHED\n").count(), 2, "{told}");
    assert_eq!(told.matches(" NOT CACHED").count(), 1, "{told}");
    assert!(told.contains("is warm"), "{told}");

    // Who asks for steps is told when they can't be had; the images come all the same.
    let mut command = warmer(&cache("four"));
    command.args([&arg, "--cache-repo=127.0.0.1:1/cache", "-d"]).arg(&dockerfile);
    let output = command.output().expect("runs");
    assert_eq!(output.status.code(), Some(1), "{}", log(&output));
    assert!(log(&output).contains(&format!("{base} is warm")), "{}", log(&output));
    assert!(log(&output).contains("127.0.0.1:1/cache can't be used"), "{}", log(&output));
}
