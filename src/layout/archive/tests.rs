//! Archives as strangers write them.

use std::io::Write;

use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::layout::Layout;
use crate::oci::manifest::Document;
use crate::oci::manifest::parse_manifest;

const GZIP: Compression = Compression::DEFAULT;
const ZSTD: Compression = Compression::Zstd { level: 1 };

/// The tar of a file `a` with this text.
fn layer(text: &str) -> Vec<u8> {
    archive(&[("a", text.as_bytes())])
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = ::tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn compressed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let mut out = Compressor::new(Vec::new(), compression, 1).unwrap();
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// A config for these layers.
fn config(tars: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<String> = tars.iter().map(|tar| DiffId::of(tar).to_string()).collect();
    json!({"rootfs": {"type": "layers", "diff_ids": ids}}).to_string().into_bytes()
}

fn contents(layers: &[&str]) -> Vec<u8> {
    json!([{"Config": "c", "RepoTags": ["x"], "Layers": layers}]).to_string().into_bytes()
}

fn unpacked(archive: &[u8]) -> Result<TempDir, Error> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("image.tar");
    fs::write(&path, archive).unwrap();
    let layout = place.path().join("layout");
    fs::create_dir(&layout).unwrap();
    unpack_archive(&path, &layout, 2, &AtomicBool::new(false)).map(|()| place)
}

/// The manifest, and the layers' bytes as they lie there.
fn image(place: &TempDir) -> (Manifest, Vec<Vec<u8>>) {
    let directory = place.path().join("layout");
    let layout = Layout::open(&directory).unwrap();
    let top = layout.only().unwrap();
    let bytes = layout.document(top).unwrap();
    let Document::Manifest(manifest) = parse_manifest(&bytes, &top.media_type).unwrap() else {
        panic!("an index");
    };
    let layers = manifest.layers.iter().map(|layer| {
        let mut bytes = Vec::new();
        layout.blob(layer).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    });
    let layers = layers.collect();
    (manifest, layers)
}

fn inflated(blob: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    any_reader(blob).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn files_become_blobs_and_nothing_else_is_left() {
    let tars = [layer("one"), layer("two"), layer("three")];
    let wanted = [&tars[0][..], &tars[1], &tars[2], &tars[0]];
    let (two, three) = (compressed(&tars[1], GZIP), compressed(&tars[2], ZSTD));
    let place = unpacked(&archive(&[
        ("1", &tars[0]),
        ("2", &two),
        ("3", &three),
        ("c", &config(&wanted)),
        ("more", b"not asked for"),
        ("manifest.json", &contents(&["1", "2", "./3", "1"])),
    ]))
    .unwrap();
    let (manifest, blobs) = image(&place);
    for (blob, tar) in blobs.iter().zip(wanted) {
        assert_eq!(inflated(blob), tar);
    }
    assert_eq!((&blobs[1], &blobs[2]), (&two, &three));
    let types: Vec<&str> = manifest.layers.iter().map(|layer| &layer.media_type[..]).collect();
    let (gzip, zstd) = (media_type::DOCKER_LAYER_GZIP, media_type::DOCKER_LAYER_ZSTD);
    assert_eq!(types, [gzip, gzip, zstd, gzip]);
    let listed = fs::read_dir(place.path().join("layout")).unwrap();
    let mut left: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["blobs", "index.json", "oci-layout"]);
}

#[test]
fn layers_that_the_config_does_not_name_are_refused() {
    let (good, other) = (layer("good"), layer("other"));
    let mut damaged = compressed(&good, GZIP);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    for (blob, says) in [
        (other.clone(), DiffId::of(&other).to_string()),
        (compressed(&other, GZIP), DiffId::of(&other).to_string()),
        (compressed(&other, ZSTD), DiffId::of(&other).to_string()),
        (damaged, "its layer `some/layer.tar` is damaged".to_owned()),
    ] {
        let error = unpacked(&archive(&[
            ("c", &config(&[&good])),
            ("some/layer.tar", &blob),
            ("manifest.json", &contents(&["some/layer.tar"])),
        ]))
        .unwrap_err();
        let told = error.to_string();
        assert!(matches!(error, Error::NotAnArchive { .. }), "{told}");
        assert!(told.contains("some/layer.tar") && told.contains(&says), "{told}");
        if !told.contains("damaged") {
            assert!(told.contains(&DiffId::of(&good).to_string()), "{told}");
        }
    }
}

#[test]
fn the_last_entry_of_a_name_counts_and_a_link_to_itself_does_not() {
    let tar = layer("last");
    let mut bytes = archive(&[
        ("l", b"first"),
        ("c", b"{}"),
        ("l", &tar),
        ("c", &config(&[&tar])),
        ("manifest.json", &contents(&["l"])),
    ]);
    // Its end is two blocks of zeroes.
    bytes.truncate(bytes.len() - 1024);
    let mut more = ::tar::Builder::new(bytes);
    for kind in [EntryType::Link, EntryType::Symlink] {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        more.append_link(&mut header, "./l", "l").unwrap();
    }
    let place = unpacked(&more.into_inner().unwrap()).unwrap();
    let (_, blobs) = image(&place);
    assert_eq!(inflated(&blobs[0]), tar);
}

#[test]
fn a_compressed_archive_is_read_as_docker_load_reads_it() {
    let tar = layer("text");
    let archive =
        archive(&[("l", &tar), ("c", &config(&[&tar])), ("manifest.json", &contents(&["l"]))]);
    for compression in [GZIP, ZSTD] {
        let place = unpacked(&compressed(&archive, compression)).unwrap();
        assert_eq!(inflated(&image(&place).1[0]), tar);
    }
}

/// An archive of both forms, as Docker and BuildKit write it, with one layer.
fn of_both(blob: &[u8], tar: &[u8], media_type: &str) -> Vec<u8> {
    let name = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let described = |bytes: &[u8], media_type: &str| -> Value {
        let digest = Digest::of(bytes).to_string();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let config = config(&[tar]);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": described(&config, media_type::OCI_CONFIG),
        "layers": [described(blob, media_type)],
        "annotations": {"who": "me"},
    })
    .to_string();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [described(manifest.as_bytes(), media_type::OCI_MANIFEST)],
    })
    .to_string();
    let table = json!([{"Config": name(&config), "Layers": [name(blob)]}]).to_string();
    archive(&[
        (&name(blob), blob),
        (&name(&config), &config),
        (&name(manifest.as_bytes()), manifest.as_bytes()),
        ("index.json", index.as_bytes()),
        ("manifest.json", table.as_bytes()),
        ("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#),
    ])
}

#[test]
fn of_an_archive_in_both_forms_the_layout_counts_unless_its_layers_are_not_compressed() {
    let tar = layer("text");
    let blob = compressed(&tar, GZIP);
    let place = unpacked(&of_both(&blob, &tar, media_type::OCI_LAYER_GZIP)).unwrap();
    let (manifest, blobs) = image(&place);
    assert_eq!(manifest.annotations["who"], "me");
    assert_eq!(blobs, [blob]);

    let place = unpacked(&of_both(&tar, &tar, media_type::OCI_LAYER)).unwrap();
    let (manifest, blobs) = image(&place);
    assert_eq!(manifest.layers[0].media_type, media_type::DOCKER_LAYER_GZIP);
    assert_eq!(inflated(&blobs[0]), tar);
    assert!(blobs[0].len() < tar.len());
}
