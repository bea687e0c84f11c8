//! What needs neither privileges nor a network, judged by other programs.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use yadokari::layout;
use yadokari::layout::Image;
use yadokari::oci::descriptor::Descriptor;
use yadokari::oci::digest::DiffId;
use yadokari::oci::digest::Digest;
use yadokari::oci::manifest::Manifest;
use yadokari::oci::media_type;

fn put(directory: &Path, media_type: &str, bytes: &[u8]) -> Descriptor {
    let digest = Digest::of(bytes);
    std::fs::write(directory.join(digest.hex()), bytes).unwrap();
    Descriptor::new(media_type, digest, bytes.len() as u64)
}

/// An image of one layer with one file; its blobs lie in `directory`.
fn image(directory: &Path) -> Image {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", &b"hello"[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&tar).unwrap();
    let layer = put(directory, media_type::OCI_LAYER_GZIP, &gzip.finish().unwrap());
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2020-01-02T03:04:05Z",
        "config": {"Labels": {"who": "hermit"}},
        "rootfs": {"type": "layers", "diff_ids": [DiffId::of(&tar).to_string()]},
        "history": [{"created": "2020-01-02T03:04:05Z", "created_by": "COPY file /"}],
    });
    let config = put(directory, media_type::OCI_CONFIG, config.to_string().as_bytes());
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: config.clone(),
        layers: vec![layer.clone()],
        subject: None,
        annotations: BTreeMap::new(),
    };
    let manifest_bytes = serde_json::to_vec(&manifest).unwrap();
    let manifest = put(directory, media_type::OCI_MANIFEST, &manifest_bytes);
    Image { manifest, manifest_bytes, config, layers: vec![layer] }
}

/// Runs skopeo; `None`, aloud, where it is not installed.
fn skopeo(arguments: &[&str]) -> Option<serde_json::Value> {
    let output = match Command::new("skopeo").args(arguments).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: skopeo is not installed");
            return None;
        }
        other => other.unwrap(),
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {arguments:?}: {errors}");
    // `copy` prints text.
    Some(serde_json::from_slice(&output.stdout).unwrap_or_default())
}

#[test]
fn a_terminal_shows_running_steps_in_rows_and_keeps_one_line_of_each() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("Dockerfile"), "FROM scratch\nCOPY a /b\n").unwrap();
    std::fs::write(directory.path().join("a"), "a").unwrap();
    let build = |term: &str| {
        let command = format!(
            "{} build --no-push --context {} --cache-dir {}",
            env!("CARGO_BIN_EXE_yadokari"),
            directory.path().display(),
            directory.path().join(format!("cache-{term}")).display(),
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
        let output = script.env("TERM", term).stdin(std::process::Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        text
    };
    let (live, dumb) = (build("xterm"), build("dumb"));
    assert!(live.contains("\x1b[2K"), "a row was drawn and taken away: {live:?}");
    assert!(live.contains("#1 [1/1] COPY a /b DONE"), "{live:?}");
    assert!(!dumb.contains("\x1b[2K") && dumb.contains("#1 DONE"), "{dumb:?}");
}

#[test]
fn skopeo_reads_our_layouts_and_archives() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name).display().to_string();
    let image = image(directory.path());
    let open = |digest: &Digest| File::open(directory.path().join(digest.hex()));
    layout::write(Path::new(&place("layout")), &image, Some("v1"), &open).unwrap();
    let tar = place("image.tar");
    layout::save_docker_archive(Path::new(&tar), &image, &["example.org/a/b:1", "c:2"], &open)
        .unwrap();
    let unnamed = place("unnamed.tar");
    layout::save_docker_archive(Path::new(&unnamed), &image, &[], &open).unwrap();

    let layout = format!("oci:{}:v1", place("layout"));
    let Some(found) = skopeo(&["inspect", &layout]) else { return };
    assert_eq!(found["Digest"], image.manifest.digest.to_string());
    assert_eq!(found["Labels"]["who"], "hermit");
    assert_eq!(found["Layers"][0], image.layers[0].digest.to_string());
    for tar in [&tar, &unnamed] {
        let found = skopeo(&["inspect", &format!("docker-archive:{tar}")]).unwrap();
        assert_eq!(found["Labels"]["who"], "hermit");
        assert_eq!(found["Layers"].as_array().unwrap().len(), 1);
    }
    // Copying reads and verifies every layer.
    let copied = place("copied");
    let policy = place("policy.json");
    std::fs::write(&policy, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#).unwrap();
    for from in [
        layout,
        format!("docker-archive:{tar}:c:2"),
        format!("docker-archive:{tar}:example.org/a/b:1"),
    ] {
        skopeo(&["--policy", &policy, "copy", &from, &format!("oci:{copied}:again")]).unwrap();
    }

    // And we read what skopeo wrote.
    let again = layout::Layout::open(Path::new(&copied)).unwrap();
    let platform = "linux/amd64".parse().unwrap();
    let found = again.image(Some("again"), &platform).unwrap();
    assert_eq!(again.document(&found.config).unwrap().len() as u64, found.config.size);
    let mut layer = again.blob(&found.layers[0]).unwrap();
    std::io::copy(&mut layer, &mut std::io::sink()).unwrap();
}
