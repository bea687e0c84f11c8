//! `yadokari login` and `yadokari push`: images that are there as files come whole to a
//! registry that asks who we are. Needs no privilege and no network but loopback.

#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/registry.rs"]
mod fake;
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/host.rs"]
mod host;
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/image.rs"]
mod image;
#[path = "support/validator.rs"]
mod validator;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use fake::Auth;
use fake::Registry;
use fake::Rules;
use image::Image;
use tempfile::TempDir;
use yadokari::oci::digest::Digest;

const PASSWORD: &str = "hunter2-secret";

fn locked() -> Registry {
    Registry::start(Rules { auth: Auth::Basic("me", PASSWORD), ..Rules::default() })
}

/// An image of two layers in `layout` and `image.tar`.
fn built() -> TempDir {
    let place = tempfile::tempdir().expect("a directory");
    let at = |name: &str| place.path().join(name);
    fs::create_dir(at("c")).expect("a directory");
    fs::write(at("c/Dockerfile"), "FROM scratch\nCOPY a /a\nCOPY b /b\nCMD [\"/a\"]\n")
        .expect("a file");
    fs::write(at("c/a"), "first").expect("a file");
    fs::write(at("c/b"), vec![b'b'; 100_000]).expect("a file");
    let mut build = host::yadokari();
    build.args(["build", "--no-push", "--context"]).arg(at("c"));
    build.arg("--cache-dir").arg(at("cache")).arg("--oci-layout-path").arg(at("layout"));
    host::succeed(build.arg("--tar-path").arg(at("image.tar")));
    place
}

/// A builder whose credentials are in `place/docker`.
fn yadokari(place: &Path) -> Command {
    let mut command = host::yadokari();
    command.env("DOCKER_CONFIG", place.join("docker"));
    command
}

fn login(place: &Path, registry: &Registry) {
    let mut child = yadokari(place)
        .args(["login", "--username=me", "--password-stdin", registry.host()])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the builder");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(format!("{PASSWORD}\n").as_bytes()).expect("written");
    drop(input);
    let output = child.wait_with_output().expect("its end");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("docker/config.json") && !told.contains(PASSWORD), "{told}");
}

fn push(place: &Path, path: &Path, destinations: &[String]) -> Output {
    let mut command = yadokari(place);
    command.arg("push").arg(path);
    for destination in destinations {
        command.args(["--destination", destination]);
    }
    command.output().expect("the builder")
}

/// Pulls with skopeo and validates; the image's files.
fn pulled(place: &Path, name: &str) -> Image {
    let layout = place.join("pulled");
    let _ = fs::remove_dir_all(&layout);
    host::succeed(
        Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"])
            .arg(format!("--src-creds=me:{PASSWORD}"))
            .arg(format!("docker://{name}"))
            .arg(format!("oci:{}:it", layout.display())),
    );
    validator::validate(&layout);
    Image::open(&layout)
}

#[test]
fn layouts_and_archives_are_pushed_whole_after_a_login() {
    if !host::require("skopeo", Path::new("/usr/bin/skopeo").exists()) {
        return;
    }
    let place = built();
    let at = |name: &str| place.path().join(name);
    let registry = locked();
    let name = |rest: &str| format!("{}/{rest}", registry.host());

    let refused = push(place.path(), &at("layout"), &[name("team/app:1")]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("team/app"), "{told}");

    login(place.path(), &registry);
    // Two names in one registry, the second of which need not be sent.
    let pushed = push(place.path(), &at("layout"), &[name("team/app:1"), name("other:2")]);
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    let ours = Image::open(&at("layout"));
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(at("layout/index.json")).expect("a file")).expect("JSON");
    let digest = index["manifests"][0]["digest"].as_str().expect("a digest");
    assert_eq!(String::from_utf8_lossy(&pushed.stdout), format!("{digest}\n"));
    for (repository, tag) in [("team/app", "1"), ("other", "2")] {
        let (_, manifest) = registry.manifest(repository, tag).expect("it was pushed");
        assert_eq!(Digest::of(&manifest).to_string(), digest, "{repository}");
        let image = pulled(place.path(), &name(&format!("{repository}:{tag}")));
        assert_eq!(image.flatten(), ours.flatten(), "{repository}");
    }

    // A tar of the layout, and what skopeo and we write for `docker load`; skopeo's
    // layers aren't compressed.
    host::succeed(
        Command::new("tar").args(["-cf", "oci.tar", "-C", "layout", "."]).current_dir(&place),
    );
    host::succeed(Command::new("skopeo").args(["copy", "--quiet", "--insecure-policy"]).args([
        format!("oci:{}", at("layout").display()),
        format!("docker-archive:{}:an/image:tag", at("docker.tar").display()),
    ]));
    // As `docker load` takes it, too.
    host::succeed(Command::new("gzip").args(["-k", "docker.tar"]).current_dir(&place));
    for archive in ["oci.tar", "image.tar", "docker.tar", "docker.tar.gz"] {
        let destination = name(&format!("{}:latest", archive.trim_end_matches(".tar")));
        let pushed = push(place.path(), &at(archive), std::slice::from_ref(&destination));
        assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        let image = pulled(place.path(), &destination);
        assert_eq!(image.config["config"], ours.config["config"], "{archive}");
        assert_eq!(image.config["rootfs"], ours.config["rootfs"], "{archive}");
        assert_eq!(image.flatten(), ours.flatten(), "{archive}");
        for layer in image.manifest["layers"].as_array().expect("layers") {
            let kind = layer["mediaType"].as_str().expect("a media type");
            assert!(kind.ends_with("gzip"), "{archive}: {kind}");
        }
    }
}

#[test]
fn what_is_no_image_is_refused_and_nothing_is_sent() {
    let place = built();
    let at = |name: &str| place.path().join(name);
    let registry = locked();
    login(place.path(), &registry);
    let tar = |name: &str, files: &[(&str, &str)]| {
        let mut tar = tar::Builder::new(fs::File::create(at(name)).expect("a file"));
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            // What the library refuses to write, a stranger may have written.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, text.as_bytes()).expect("appended");
        }
        tar.finish().expect("finished");
    };
    tar("empty.tar", &[]);
    tar(
        "two.tar",
        &[("manifest.json", r#"[{"Config":"c","Layers":[]},{"Config":"c","Layers":[]}]"#)],
    );
    tar("away.tar", &[("manifest.json", r#"[{"Config":"../../c","Layers":["x"]}]"#)]);
    tar("out.tar", &[("../../../escaped", "x"), ("manifest.json", "[")]);
    let config = r#"{"rootfs":{"type":"layers","diff_ids":["a","b"]}}"#;
    tar("few.tar", &[("manifest.json", r#"[{"Config":"c","Layers":[]}]"#), ("c", config)]);
    let config = r#"{"rootfs":{"type":"layers","diff_ids":["sha256:00"]}}"#;
    let manifest = r#"[{"Config":"c","Layers":["l.tar"]}]"#;
    tar("other.tar", &[("manifest.json", manifest), ("c", config), ("l.tar", "other")]);
    fs::write(at("text"), "this is no tar").expect("a file");
    fs::create_dir(at("directory")).expect("a directory");
    for (path, says) in [
        ("missing", "missing"),
        ("text", "text"),
        ("directory", "not an OCI image layout"),
        ("empty.tar", "neither `manifest.json` nor `oci-layout`"),
        ("two.tar", "holds 2 images"),
        ("away.tar", "`../../c` of its `manifest.json` is not in it"),
        ("out.tar", "`manifest.json` is malformed"),
        ("few.tar", "0 layers and a config for 2"),
        ("other.tar", "its layer `l.tar` has the diff ID sha256:"),
    ] {
        let seen = registry.seen().len();
        let output = push(place.path(), &at(path), &[format!("{}/xx:1", registry.host())]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{path}: {told}");
        assert!(told.contains(says), "{path}: {told}");
        assert_eq!(registry.seen().len(), seen, "{path}: something was asked");
    }
    assert!(!at("../escaped").exists() && !Path::new("/escaped").exists());
    // A blob that was cut short is found by the registry at the latest.
    let layout = Image::open(&at("layout"));
    let blob = layout.blob(&layout.manifest["layers"][1]["digest"]);
    fs::File::options().write(true).open(blob).and_then(|file| file.set_len(9)).expect("cut");
    let output = push(place.path(), &at("layout"), &[format!("{}/xx:1", registry.host())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

/// A directory for temporary files that can be looked into.
fn scratch(place: &Path) -> PathBuf {
    let scratch = place.join("scratch");
    fs::create_dir_all(&scratch).expect("a directory");
    scratch
}

fn left(scratch: &Path) -> Vec<PathBuf> {
    fs::read_dir(scratch).expect("a directory").map(|entry| entry.expect("it").path()).collect()
}

#[test]
fn a_full_temporary_directory_is_named_and_not_the_archive() {
    let place = tempfile::tempdir().expect("a directory");
    let scratch = scratch(place.path());
    // A limit on the size of files stands in for a small disk.
    let archive = place.path().join("large.tar");
    let mut tar = tar::Builder::new(fs::File::create(&archive).expect("a file"));
    let mut header = tar::Header::new_gnu();
    header.set_size(1 << 20);
    tar.append_data(&mut header, "l", std::io::repeat(7).take(1 << 20)).expect("appended");
    tar.finish().expect("finished");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh"]);
    command.arg(yadokari(place.path()).get_program()).env("TMPDIR", &scratch);
    command.arg("push").arg(&archive);
    command.args(["--destination", "127.0.0.1:9/xx:1"]);
    let output = command.output().expect("the builder");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(&format!("cannot write {}", scratch.display())), "{told}");
    assert_eq!(left(&scratch), [] as [PathBuf; 0]);
}

/// Sends SIGTERM, and waits.
fn terminated(mut child: Child) -> (Option<i32>, String) {
    let id = i32::try_from(child.id()).expect("a process");
    let pid = rustix::process::Pid::from_raw(id).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    let mut told = String::new();
    let mut stderr = child.stderr.take().expect("piped");
    stderr.read_to_string(&mut told).expect("a pipe");
    (child.wait().expect("its end").code(), told)
}

#[test]
fn an_interrupted_push_leaves_nothing_behind() {
    let place = built();
    let scratch = scratch(place.path());
    let start = |path: &Path, destination: &str| {
        let mut command = yadokari(place.path());
        command.env("TMPDIR", &scratch).arg("push").arg(path);
        command.args(["--destination", destination]);
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the builder")
    };
    // While it unpacks: an archive without end.
    let mut child = start(Path::new("/dev/stdin"), "127.0.0.1:9/xx:1");
    let mut archive = child.stdin.take().expect("piped");
    let mut header = tar::Header::new_gnu();
    header.set_size(4 << 30);
    header.set_cksum();
    archive.write_all(header.as_bytes()).expect("written");
    while left(&scratch).is_empty() {
        archive.write_all(&[0; 65536]).expect("written");
    }
    let writer = std::thread::spawn(move || while archive.write_all(&[0; 65536]).is_ok() {});
    let (code, told) = terminated(child);
    writer.join().expect("it ends with its reader");
    assert_eq!(code, Some(130), "{told}");
    assert_eq!(left(&scratch), [] as [PathBuf; 0]);

    // While it waits for a registry that says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    let child = start(&place.path().join("image.tar"), &format!("{address}/xx:1"));
    let connection = silent.accept().expect("a connection");
    assert_ne!(left(&scratch), [] as [PathBuf; 0]);
    let (code, told) = terminated(child);
    drop(connection);
    assert_eq!(code, Some(130), "{told}");
    assert_eq!(left(&scratch), [] as [PathBuf; 0]);
}

#[test]
fn a_user_name_that_would_be_cut_is_refused() {
    let place = tempfile::tempdir().expect("a directory");
    let mut command = yadokari(place.path());
    command.args(["login", "--username=me:you", "--password=x", "r.example"]);
    let output = command.output().expect("the builder");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("must not contain `:`"), "{told}");
    assert!(!place.path().join("docker").exists());
}
