//! The one validator that every image produced by a test passes.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use crate::host::succeed;
use crate::image::Image;

/// Recomputes digests, diff IDs, sizes and order of the image in `layout`, and has
/// it accepted by `skopeo copy` into another layout and by `umoci unpack`.
pub(crate) fn validate(layout: &Path) {
    let image = Image::open(layout);
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).expect("index.json"))
            .expect("JSON");
    let manifest = &index["manifests"][0]["digest"];
    let read = |digest: &serde_json::Value| std::fs::read(image.blob(digest)).expect("a blob");
    let result = yadokari::image::validate(
        &read(&image.manifest["config"]["digest"]),
        &read(manifest),
        |descriptor| File::open(image.blob(&descriptor.digest.to_string().into())),
    );
    assert!(result.is_ok(), "{}: {result:?}", layout.display());

    let scratch = tempfile::tempdir().expect("a directory");
    let copy = scratch.path().join("copy");
    succeed(
        Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy"])
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("oci:{}:checked", copy.display())),
    );
    succeed(
        Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:checked", copy.display()))
            .arg(scratch.path().join("bundle")),
    );
}
