use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::io::Write;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::oci::manifest::Index;
use crate::oci::manifest::MANIFEST_MAX;
use crate::oci::manifest::Manifest;
use crate::oci::media_type;
use crate::oci::platform::Platform;

/// Blobs in memory, handed out as files.
#[derive(Default)]
struct Held(HashMap<Digest, Vec<u8>>);

impl Held {
    fn put(&mut self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = Digest::of(bytes);
        self.0.insert(digest, bytes.to_vec());
        Descriptor::new(media_type, digest, bytes.len() as u64)
    }

    fn open(&self, digest: &Digest) -> io::Result<File> {
        let bytes = self.0.get(digest).ok_or(io::ErrorKind::NotFound)?;
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        io::Seek::rewind(&mut file)?;
        Ok(file)
    }
}

fn image(held: &mut Held, layers: &[&[u8]]) -> Image {
    let config = held.put(media_type::OCI_CONFIG, b"{\"os\":\"linux\"}");
    let layers: Vec<_> =
        layers.iter().map(|bytes| held.put(media_type::OCI_LAYER_GZIP, bytes)).collect();
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: config.clone(),
        layers: layers.clone(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    let manifest_bytes = serde_json::to_vec(&manifest).unwrap();
    let manifest = held.put(media_type::OCI_MANIFEST, &manifest_bytes);
    Image { manifest, manifest_bytes, config, layers }
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn files(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A layout in `directory` whose index has `entries`; blobs are those of `held`.
fn lay_out(directory: &Path, held: &Held, entries: Vec<Descriptor>) {
    let place = directory.join("blobs/sha256");
    fs::create_dir_all(&place).unwrap();
    for (digest, bytes) in &held.0 {
        fs::write(place.join(digest.hex()), bytes).unwrap();
    }
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(directory.join("index.json"), index(entries)).unwrap();
}

fn index(manifests: Vec<Descriptor>) -> Vec<u8> {
    serde_json::to_vec(&Index {
        schema_version: 2,
        media_type: None,
        artifact_type: None,
        manifests,
        subject: None,
        annotations: BTreeMap::new(),
    })
    .unwrap()
}

fn named(entry: &Descriptor, name: &str) -> Descriptor {
    let annotations = BTreeMap::from([(REF_NAME.to_owned(), name.to_owned())]);
    Descriptor { annotations, ..entry.clone() }
}

fn on(entry: &Descriptor, platform: &str) -> Descriptor {
    Descriptor { platform: Some(platform.parse().unwrap()), ..entry.clone() }
}

#[test]
fn what_was_written_is_read_again() {
    let directory = TempDir::new().unwrap();
    let mut held = Held::default();
    let image = image(&mut held, &[b"one", b"two", b"one"]);
    write(directory.path(), &image, Some("v1"), &|digest| held.open(digest)).unwrap();
    assert_eq!(files(directory.path()), ["blobs", "index.json", "oci-layout"]);
    assert_eq!(files(&directory.path().join("blobs/sha256")).len(), 4);
    let layout = Layout::open(directory.path()).unwrap();
    for name in [None, Some("v1"), Some(image.manifest.digest.to_string().as_str())] {
        let read = layout.image(name, &amd64()).unwrap();
        assert_eq!((&read.config, &read.layers), (&image.config, &image.layers));
        assert_eq!(read.manifest_bytes, image.manifest_bytes);
    }
    let mut text = String::new();
    layout.blob(&image.layers[1]).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "two");
    assert_eq!(layout.document(&image.config).unwrap(), b"{\"os\":\"linux\"}");
}

#[test]
fn a_second_image_replaces_the_entry_and_keeps_the_blobs() {
    let directory = TempDir::new().unwrap();
    let mut held = Held::default();
    let first = image(&mut held, &[b"one"]);
    let second = image(&mut held, &[b"one", b"two"]);
    write(directory.path(), &first, Some("v1"), &|digest| held.open(digest)).unwrap();
    let asked = std::cell::RefCell::new(Vec::new());
    let open = |digest: &Digest| {
        asked.borrow_mut().push(*digest);
        held.open(digest)
    };
    write(directory.path(), &second, None, &open).unwrap();
    // What is there isn't written again.
    assert_eq!(*asked.borrow(), [second.layers[1].digest]);
    let layout = Layout::open(directory.path()).unwrap();
    assert_eq!(layout.image(None, &amd64()).unwrap(), second);
    let error = layout.image(Some("v1"), &amd64()).unwrap_err().to_string();
    assert!(error.contains("no image `v1`"), "{error}");
}

#[test]
fn a_blob_that_is_not_what_it_should_be_is_never_written() {
    let mut held = Held::default();
    let image = image(&mut held, &[b"layer"]);
    for wrong in [&b"lay3r"[..], b"", b"layer and more"] {
        held.0.insert(image.layers[0].digest, wrong.to_vec());
        let directory = TempDir::new().unwrap();
        let open = |digest: &Digest| held.open(digest);
        let error = write(directory.path(), &image, None, &open).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        assert!(!directory.path().join("index.json").exists());
        assert!(files(&directory.path().join("blobs/sha256")).is_empty());
        let tar = directory.path().join("image.tar");
        let error = save_docker_archive(&tar, &image, &[], &open).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        assert!(!tar.exists());
    }
    held.0.clear();
    let open = |digest: &Digest| held.open(digest);
    let error = write(TempDir::new().unwrap().path(), &image, None, &open).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot read blob {}", image.layers[0].digest));
}

#[test]
fn a_truncated_blob_in_the_layout_is_replaced() {
    let directory = TempDir::new().unwrap();
    let mut held = Held::default();
    let image = image(&mut held, &[b"layer"]);
    let blob = directory.path().join("blobs/sha256").join(image.layers[0].digest.hex());
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, b"lay").unwrap();
    write(directory.path(), &image, None, &|digest| held.open(digest)).unwrap();
    assert_eq!(fs::read(&blob).unwrap(), b"layer");
}

#[test]
fn corrupt_blobs_are_detected_when_they_are_read() {
    let directory = TempDir::new().unwrap();
    let mut held = Held::default();
    let image = image(&mut held, &[b"layer"]);
    write(directory.path(), &image, None, &|digest| held.open(digest)).unwrap();
    let layout = Layout::open(directory.path()).unwrap();
    let blob = |blob: &Descriptor| directory.path().join("blobs/sha256").join(blob.digest.hex());
    for wrong in [&b"lay3r"[..], b"lay", b"layer and more"] {
        fs::write(blob(&image.layers[0]), wrong).unwrap();
        let error =
            layout.blob(&image.layers[0]).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
    let mut changed = image.manifest_bytes.clone();
    changed.push(b' ');
    fs::write(blob(&image.manifest), &changed).unwrap();
    assert!(matches!(layout.image(None, &amd64()), Err(Error::Mismatch { .. })));
    fs::write(blob(&image.manifest), vec![b' '; MANIFEST_MAX + 1]).unwrap();
    assert!(matches!(layout.image(None, &amd64()), Err(Error::Read { .. })));
    fs::remove_file(blob(&image.manifest)).unwrap();
    assert!(matches!(layout.image(None, &amd64()), Err(Error::Read { .. })));
}

#[test]
fn images_are_found_by_name_and_platform() {
    let mut held = Held::default();
    let one = image(&mut held, &[b"one"]);
    let two = image(&mut held, &[b"two"]);
    let nested = held.put(
        media_type::OCI_INDEX,
        &index(vec![on(&one.manifest, "linux/amd64"), on(&two.manifest, "linux/arm64")]),
    );
    let arm64: Platform = "linux/arm64".parse().unwrap();
    let found = |entries: Vec<Descriptor>, name: Option<&str>, platform: &Platform| {
        let directory = TempDir::new().unwrap();
        lay_out(directory.path(), &held, entries);
        Layout::open(directory.path())?.image(name, platform).map(|image| image.layers)
    };
    let tagged = || vec![named(&one.manifest, "v1"), named(&two.manifest, "v2")];
    assert_eq!(found(tagged(), Some("v2"), &amd64()).unwrap(), two.layers);
    let error = found(tagged(), None, &amd64()).unwrap_err().to_string();
    assert!(error.ends_with("holds not exactly one image: there is v1, v2"), "{error}");
    let error = found(Vec::new(), None, &amd64()).unwrap_err().to_string();
    assert!(error.ends_with("it is empty"), "{error}");
    assert_eq!(found(vec![nested.clone()], None, &amd64()).unwrap(), one.layers);
    assert_eq!(found(vec![nested.clone()], None, &arm64).unwrap(), two.layers);
    let flat = vec![on(&one.manifest, "linux/amd64"), on(&two.manifest, "linux/arm64")];
    assert_eq!(found(flat, None, &arm64).unwrap(), two.layers);
    let error = found(vec![nested], None, &"linux/s390x".parse().unwrap()).unwrap_err();
    assert!(
        error.to_string().ends_with("linux/s390x, only for linux/amd64, linux/arm64"),
        "{error}"
    );
}

#[test]
fn indexes_within_indexes_end() {
    let mut held = Held::default();
    let mut entry = on(&image(&mut held, &[]).manifest, "linux/amd64");
    for _ in 0..10 {
        entry = on(&held.put(media_type::OCI_INDEX, &index(vec![entry])), "linux/amd64");
    }
    let directory = TempDir::new().unwrap();
    lay_out(directory.path(), &held, vec![entry]);
    let error = Layout::open(directory.path()).unwrap().image(None, &amd64()).unwrap_err();
    assert!(matches!(error, Error::TooDeep { .. }), "{error}");
}

#[test]
fn other_directories_are_no_layouts() {
    let directory = TempDir::new().unwrap();
    let open = || Layout::open(directory.path()).unwrap_err();
    assert!(open().to_string().ends_with("it has no file `oci-layout`"));
    for (marker, reason) in [("", "malformed"), ("{}", "malformed"), ("[]", "malformed")] {
        fs::write(directory.path().join("oci-layout"), marker).unwrap();
        assert!(open().to_string().contains(reason), "{marker}");
    }
    fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(open().to_string().contains("version `2.0.0`"));
    fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    assert!(matches!(open(), Error::Read { .. }));
    for text in ["", "\0", "{}", r#"{"schemaVersion":2}"#] {
        fs::write(directory.path().join("index.json"), text).unwrap();
        assert!(matches!(open(), Error::Malformed { .. }), "{text}");
    }
}

#[test]
fn the_docker_archive_has_each_layer_once_in_kaniko_s_shape() {
    let mut held = Held::default();
    let image = image(&mut held, &[b"one", b"two", b"one"]);
    let written = |names: &[&str]| {
        let mut bytes = Vec::new();
        write_docker_archive(&mut bytes, &image, names, &|digest| held.open(digest)).unwrap();
        bytes
    };
    let bytes = written(&["a/b:1", "c:2"]);
    assert_eq!(bytes, written(&["a/b:1", "c:2"]));
    let mut archive = ::tar::Archive::new(&bytes[..]);
    let mut entries = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        entries.push((entry.path().unwrap().display().to_string(), content));
    }
    let layer = |at: usize| format!("{}.tar.gz", image.layers[at].digest.hex());
    let names: Vec<_> = entries.iter().map(|(name, _)| name.clone()).collect();
    let config = image.config.digest.to_string();
    assert_eq!(names, [config.clone(), layer(0), layer(1), "manifest.json".to_owned()]);
    let expected = format!(
        r#"[{{"Config":"{config}","RepoTags":["a/b:1","c:2"],"Layers":["{}","{}","{}"]}}]"#,
        layer(0),
        layer(1),
        layer(0)
    );
    assert_eq!(String::from_utf8(entries[3].1.clone()).unwrap(), expected);
    assert_eq!(entries[2].1, b"two");
    let unnamed = written(&[]);
    let text = String::from_utf8_lossy(&unnamed);
    assert!(text.contains(r#""RepoTags":["unset-repo/unset-image-name:latest"]"#));
}
