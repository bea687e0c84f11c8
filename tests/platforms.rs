//! Several platforms in one build, provenance, annotations, times and the other flags
//! about what is written. Needs no privilege and no network but loopback.

#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/registry.rs"]
mod fake;
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/host.rs"]
mod host;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use fake::Fault;
use fake::Registry;
use fake::Rules;
use serde_json::Value;
use tempfile::TempDir;
use yadokari::oci::manifest::Index;

/// A context with the Dockerfile `text` and a file.
fn context(text: &str) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("c")).expect("a directory");
    fs::write(directory.path().join("c/Dockerfile"), text).expect("a Dockerfile");
    fs::write(directory.path().join("c/file"), "hello").expect("a file");
    directory
}

fn build(directory: &Path, arguments: &[&str]) -> Output {
    let output = host::yadokari()
        .arg("build")
        .arg("--context")
        .arg(directory.join("c"))
        .arg("--cache-dir")
        .arg(directory.join("cache"))
        .args(arguments)
        .output()
        .expect("the builder");
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    output
}

/// Builds into a layout and gives its directory.
fn layout(directory: &Path, arguments: &[&str]) -> PathBuf {
    let place = directory.join("layout");
    let _ = fs::remove_dir_all(&place);
    let shown = place.display().to_string();
    let output =
        build(directory, &[&["--no-push", "--oci-layout-path", &shown], arguments].concat());
    assert!(output.status.success(), "{arguments:?}");
    place
}

fn blob(layout: &Path, digest: &Value) -> Value {
    let digest = digest.as_str().expect("a digest").replace(':', "/");
    let bytes = fs::read(layout.join("blobs").join(digest)).expect("a blob");
    serde_json::from_slice(&bytes).expect("JSON")
}

fn top(layout: &Path) -> Value {
    let bytes = fs::read(layout.join("index.json")).expect("index.json");
    let index: Value = serde_json::from_slice(&bytes).expect("JSON");
    index["manifests"][0].clone()
}

/// The manifest of an image alone in a layout, and its config.
fn image(layout: &Path) -> (Value, Value) {
    let manifest = blob(layout, &top(layout)["digest"]);
    let config = blob(layout, &manifest["config"]["digest"]);
    (manifest, config)
}

/// `skopeo inspect --raw`, and a copy of everything, which recomputes all digests.
fn judged_by_skopeo(layout: &Path) -> Option<Value> {
    let place = format!("oci:{}", layout.display());
    let output = match Command::new("skopeo").args(["inspect", "--raw", &place]).output() {
        Ok(output) => output,
        Err(_) => {
            host::require("skopeo", false);
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let copy = layout.with_extension("copy");
    let to = format!("oci:{}:all", copy.display());
    host::succeed(
        Command::new("skopeo")
            .args(["copy", "--all", "--quiet", "--insecure-policy"])
            .args([&place, &to]),
    );
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// A base for two platforms in a layout, made by a build of its own.
fn base_for_two() -> (TempDir, String) {
    let directory = context("FROM scratch\nARG TARGETARCH\nCOPY <<EOF /arch\n$TARGETARCH\nEOF\n");
    let place = layout(directory.path(), &["--platform=linux/amd64,linux/arm64"]);
    let name = format!("oci-layout://{}", place.display());
    (directory, name)
}

#[test]
fn several_platforms_become_an_index_each_on_its_own_base() {
    let (_base, name) = base_for_two();
    let file = format!("FROM {name}\nARG TARGETPLATFORM\nENV P=$TARGETPLATFORM\nCOPY file /\n");
    let directory = context(&file);
    let place = layout(
        directory.path(),
        &["--platform=linux/amd64", "--platform=linux/arm64", "--annotation=index:a=b"],
    );
    let index = blob(&place, &top(&place)["digest"]);
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(index["annotations"]["a"], "b");
    let mut layers = Vec::new();
    for (at, architecture) in ["amd64", "arm64"].into_iter().enumerate() {
        let entry = &index["manifests"][at];
        assert_eq!(entry["platform"]["architecture"], architecture);
        let manifest = blob(&place, &entry["digest"]);
        let config = blob(&place, &manifest["config"]["digest"]);
        assert_eq!(config["architecture"], architecture);
        let env = config["config"]["Env"].to_string();
        assert!(env.contains(&format!("P=linux/{architecture}")), "{env}");
        layers.push(manifest["layers"].clone());
    }
    assert_ne!(layers[0][0], layers[1][0], "each stands on its own base");
    assert_eq!(layers[0][1], layers[1][1], "what is the same is there once");
    if let Some(seen) = judged_by_skopeo(&place) {
        assert_eq!(seen, index);
    }
}

#[test]
fn an_index_is_pushed_with_its_images_and_again_not_at_all() {
    let registry = Registry::start(Rules::default());
    let directory = context("FROM scratch\nARG TARGETARCH\nENV A=$TARGETARCH\nCOPY file /\n");
    let destination = format!("{}/team/app:1", registry.host());
    let arguments =
        ["--platform=linux/amd64,linux/arm64", "--provenance", "--destination", &destination];
    assert!(build(directory.path(), &arguments).status.success());
    let puts = registry.count("PUT", "/v2/team/app/manifests");
    assert_eq!(puts, 5, "two images, two attestations, one index");
    let again = build(directory.path(), &arguments);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("is up to date"), "{said}");
    assert_eq!(registry.count("PUT", "/v2/team/app/manifests"), puts);
}

#[test]
fn a_run_that_cannot_run_here_is_refused_before_anything_is_built() {
    let directory = context("FROM scratch\nCOPY file /\nRUN [\"/file\"]\n");
    // No kernel has interpreters for all of these unless somebody set it up so.
    let foreign = ["linux/s390x", "linux/riscv64", "linux/ppc64le", "linux/arm64"];
    let mut refused = 0;
    for platform in foreign {
        let flag = format!("--platform={platform}");
        let output = build(directory.path(), &["--no-push", &flag]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("binfmt_misc") {
            refused += 1;
            assert_eq!(output.status.code(), Some(1));
            assert!(said.contains(platform) && said.contains("Dockerfile:3"), "{said}");
            assert!(!said.contains("COPY file"), "nothing was begun: {said}");
        }
    }
    host::require("a platform that doesn't run here", refused > 0);
}

#[test]
fn provenance_stands_beside_the_image_and_tells_no_secrets() {
    let (_base, name) = base_for_two();
    let directory = context(&format!("FROM {name}\nARG PASSPHRASE\nCOPY file /\n"));
    let flags = ["--provenance=mode=min", "--build-arg=PASSPHRASE=hidden-word"];
    let place = layout(directory.path(), &flags);
    let index = blob(&place, &top(&place)["digest"]);
    let (image, attestation) = (&index["manifests"][0], &index["manifests"][1]);
    assert_eq!(attestation["platform"]["os"], "unknown");
    assert_eq!(attestation["annotations"]["vnd.docker.reference.type"], "attestation-manifest");
    assert_eq!(attestation["annotations"]["vnd.docker.reference.digest"], image["digest"]);
    let manifest = blob(&place, &attestation["digest"]);
    assert_eq!(manifest["subject"]["digest"], image["digest"]);
    let layer = &manifest["layers"][0];
    assert_eq!(layer["mediaType"], "application/vnd.in-toto+json");
    let statement = blob(&place, &layer["digest"]);
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    assert_eq!(
        format!("sha256:{}", statement["subject"][0]["digest"]["sha256"].as_str().expect("hex")),
        image["digest"].as_str().expect("a digest")
    );
    let made_from = &statement["predicate"]["buildDefinition"]["resolvedDependencies"];
    assert_eq!(made_from.as_array().map(Vec::len), Some(1), "{made_from}");
    assert!(!statement.to_string().contains("hidden-word"));
    // A second build attests the same, so that pushing it is no work.
    let first = top(&place)["digest"].clone();
    assert_eq!(top(&layout(directory.path(), &flags))["digest"], first);
    // Whoever pulls by platform gets the image.
    let parsed: Index = serde_json::from_value(index.clone()).expect("an index");
    assert_eq!(parsed.platforms().len(), 1);
    judged_by_skopeo(&place);
}

#[test]
fn annotations_stand_on_the_manifest_unless_they_say_otherwise() {
    let directory = context("FROM scratch\nCOPY file /\n");
    let place = layout(
        directory.path(),
        &["--annotation=a=1", "--annotation", "manifest-descriptor:d=2", "--annotation=a=3"],
    );
    assert_eq!(image(&place).0["annotations"], serde_json::json!({ "a": "3" }));
    assert_eq!(top(&place)["annotations"]["d"], "2");
    let refused = build(directory.path(), &["--no-push", "--annotation=index:a=b"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("no index") && !refused.status.success(), "{said}");
}

#[test]
fn reproducible_images_are_the_same_wherever_and_whenever_they_are_made() {
    let digests: Vec<Value> = (0..2)
        .map(|_| {
            let directory = context("FROM scratch\nCOPY file /new/\nWORKDIR /w\nENV A=b\n");
            let place = layout(directory.path(), &["--reproducible"]);
            let (_, config) = image(&place);
            assert_eq!(config["created"], "1970-01-01T00:00:00Z");
            top(&place)["digest"].clone()
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn the_build_argument_says_the_time_before_the_file_and_the_flag() {
    let directory = context("ARG SOURCE_DATE_EPOCH=100\nFROM scratch\nCOPY file /\n");
    let created =
        |arguments: &[&str]| image(&layout(directory.path(), arguments)).1["created"].clone();
    assert_eq!(created(&[]), "1970-01-01T00:01:40Z");
    assert_eq!(created(&["--reproducible"]), "1970-01-01T00:01:40Z");
    let given = "--build-arg=SOURCE_DATE_EPOCH=200";
    assert_eq!(created(&[given]), "1970-01-01T00:03:20Z");
    let layer =
        |arguments: &[&str]| image(&layout(directory.path(), arguments)).0["layers"][0].clone();
    let rewritten = layer(&[given]);
    assert_ne!(rewritten, layer(&[given, "--rewrite-timestamp=false"]));
}

#[test]
fn a_single_snapshot_is_one_layer_with_everything_in_it() {
    let (_base, name) = base_for_two();
    let file = format!("FROM {name}\nCOPY file /a\nCOPY file /b\nENV A=b\nWORKDIR /w\nUSER me\n");
    let directory = context(&file);
    let place = layout(directory.path(), &["--single-snapshot"]);
    let (manifest, config) = image(&place);
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(2), "the base's and ours");
    let history = config["history"].as_array().expect("history");
    let layers = history.iter().filter(|row| row.get("empty_layer").is_none()).count();
    assert_eq!(layers, 2);
    let digest = manifest["layers"][1]["digest"].as_str().expect("a digest").replace(':', "/");
    let blob = fs::File::open(place.join("blobs").join(digest)).expect("a layer");
    let mut names: Vec<String> = tar::Archive::new(flate2::read::MultiGzDecoder::new(blob))
        .entries()
        .expect("a tar")
        .map(|entry| entry.expect("an entry").path().expect("a path").display().to_string())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "b", "w/"]);
    // The second time it comes out of the cache, the same.
    let again = layout(directory.path(), &["--single-snapshot"]);
    assert_eq!(image(&again).0, manifest);
}

#[test]
fn a_dry_run_prints_the_plan_and_builds_nothing() {
    let file = "FROM scratch AS tools\nCOPY file /\nFROM scratch\nCOPY --from=tools /file /x\n";
    let directory = context(file);
    let output = build(directory.path(), &["--dryrun", "--destination=localhost:1/app:1"]);
    assert!(output.status.success());
    let expected = "STAGE 0\nFROM scratch AS tools\nCOPY file /\nSAVE STAGE 0\n\
                    STAGE 1\nFROM scratch\nCOPY --from=tools /file /x\nPUSH localhost:1/app:1\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn a_tag_that_may_not_be_moved_is_an_error_unless_told_otherwise() {
    let registry = Registry::start(Rules::default());
    let directory = context("FROM scratch\nCOPY file /\n");
    let destination = format!("--destination={}/app:1", registry.host());
    let refuse = || {
        let body = r#"{"errors":[{"code":"TAG_INVALID","message":"The image tag '1' already exists and cannot be overwritten because the tag is immutable."}]}"#;
        registry.fault("PUT", "manifests", Fault::Status(400, vec![], body.to_owned()));
    };
    refuse();
    assert!(!build(directory.path(), &[&destination]).status.success());
    refuse();
    let flags = [&destination, "--push-ignore-immutable-tag-errors"];
    assert!(build(directory.path(), &flags).status.success());
}

#[test]
fn flags_of_kaniko_that_need_nothing_are_accepted() {
    let directory = context("FROM scratch\nCOPY file /\n");
    let flags = [
        "--no-push",
        "--force-build-metadata",
        "--ignore-var-run=false",
        "--whitelist-var-run",
        "--image-fs-extract-retry=3",
        "--kaniko-dir=/elsewhere",
        "--credential-helpers=",
        "--push-ignore-immutable-tag-errors",
    ];
    assert!(build(directory.path(), &flags).status.success());
}
