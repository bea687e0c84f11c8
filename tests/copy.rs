//! What COPY and ADD refuse, and what the tables of `tests/dockerfile` can't express:
//! links and times inside a layer.

#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/host.rs"]
mod host;
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/image.rs"]
mod image;

use std::fs;
use std::path::Path;
use std::process::Output;

use image::Image;
use tempfile::TempDir;

/// A build of `dockerfile` in a context with `a`, `d/f`, and `d/g`, a link of `d/f`.
fn build(dockerfile: &str) -> (TempDir, Output) {
    let work = tempfile::tempdir().expect("a directory");
    let context = work.path().join("context");
    fs::create_dir_all(context.join("d")).expect("a directory");
    for (name, text) in [("a", "a"), ("d/f", "f"), ("Dockerfile", dockerfile)] {
        fs::write(context.join(name), text).expect("a file");
    }
    fs::hard_link(context.join("d/f"), context.join("d/g")).expect("a link");
    let output = host::yadokari()
        .args(["build", "--no-push", "--log-format=text", "--cache=false", "--cache-dir"])
        .arg(work.path().join("cache"))
        .arg("--oci-layout-path")
        .arg(work.path().join("layout"))
        .arg("--context")
        .arg(&context)
        .output()
        .expect("runs");
    (work, output)
}

/// Type, name and link target of the entries of the last layer.
fn last_layer(layout: &Path) -> Vec<(tar::EntryType, String, String)> {
    let image = Image::open(layout);
    let layers = image.manifest["layers"].as_array().expect("layers");
    let blob = image.blob(&layers.last().expect("a layer")["digest"]);
    let file = fs::File::open(blob).expect("a blob");
    let mut tar = tar::Archive::new(flate2::read::MultiGzDecoder::new(file));
    tar.entries()
        .expect("a tar")
        .map(|entry| {
            let entry = entry.expect("an entry");
            let target = entry.link_name_bytes().unwrap_or_default();
            (
                entry.header().entry_type(),
                String::from_utf8_lossy(&entry.path_bytes()).into_owned(),
                String::from_utf8_lossy(&target).into_owned(),
            )
        })
        .collect()
}

#[test]
fn names_of_one_file_stay_links_of_each_other() {
    for flags in ["", "--link ", "--parents "] {
        let (work, output) = build(&format!("FROM scratch\nCOPY {flags}d /t/\n"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let entries = last_layer(&work.path().join("layout"));
        let links: Vec<_> =
            entries.iter().filter(|(kind, ..)| *kind == tar::EntryType::Link).collect();
        assert_eq!(links.len(), 1, "{flags}{entries:?}");
        assert!(links[0].1.ends_with("/g") && links[0].2.ends_with("/f"), "{links:?}");
    }
}

#[test]
fn files_and_directories_do_not_replace_each_other() {
    for (body, part) in [
        ("COPY d /t/a/\nCOPY a /t/", "a directory is there"),
        ("COPY a /t\nCOPY d /t", "it is there and not a directory"),
        ("COPY a /t\nCOPY d /t/", "it is there and not a directory"),
        ("COPY a /t\nCOPY a /t/x/", "it is there and not a directory"),
        ("COPY a /t/f/inner\nCOPY d /t/", "a directory is there"),
        ("COPY missing /t", "not found in the build context"),
        ("COPY --parents missing/x /t", "not found in the build context"),
        ("COPY [x /t", "bad pattern"),
    ] {
        let (_work, output) = build(&format!("FROM scratch\n{body}\n"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(part), "{body}: {said}");
    }
}

#[test]
fn a_link_layer_replaces_what_is_in_its_way() {
    let (work, output) = build("FROM scratch\nCOPY a /t\nCOPY --link d/f /t/x/f\n");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let image = Image::open(&work.path().join("layout"));
    let tree = image.flatten();
    assert_eq!(tree["/t"].text, "directory 0755 0:0");
    assert_eq!(tree["/t/x/f"].content, b"f");
}
