//! Reads images out of OCI layouts and flattens their layers, with code that
//! shares nothing with the builder: the `tar` crate and plain maps.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use serde_json::Value;

/// One file of a flattened image, as text that can be compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// `file 0644 0:0`, with links and devices spelt out.
    pub(crate) text: String,
    /// Bytes of a file.
    pub(crate) content: Vec<u8>,
}

/// An image in an OCI layout.
pub(crate) struct Image {
    directory: PathBuf,
    /// The manifest.
    pub(crate) manifest: Value,
    /// The config.
    pub(crate) config: Value,
}

impl Image {
    /// Opens the only image of a layout.
    pub(crate) fn open(directory: &Path) -> Self {
        let index = json(&directory.join("index.json"));
        let manifests = index["manifests"].as_array().expect("manifests");
        assert_eq!(manifests.len(), 1, "one image in {}", directory.display());
        let mut image =
            Self { directory: directory.to_owned(), manifest: Value::Null, config: Value::Null };
        image.manifest = json(&image.blob(&manifests[0]["digest"]));
        image.config = json(&image.blob(&image.manifest["config"]["digest"]));
        image
    }

    /// Path of a blob.
    pub(crate) fn blob(&self, digest: &Value) -> PathBuf {
        let digest = digest.as_str().expect("a digest");
        self.directory.join("blobs").join(digest.replace(':', "/"))
    }

    /// The tar of a layer.
    pub(crate) fn inflate(&self, layer: &Value) -> Box<dyn Read> {
        let file = File::open(self.blob(&layer["digest"])).expect("a blob");
        let media_type = layer["mediaType"].as_str().expect("a media type");
        if media_type.ends_with("gzip") {
            Box::new(flate2::read::MultiGzDecoder::new(std::io::BufReader::new(file)))
        } else if media_type.ends_with("zstd") {
            Box::new(zstd::Decoder::new(file).expect("zstd"))
        } else {
            Box::new(file)
        }
    }

    /// Applies all layers: path (with a leading slash) to entry. Times are left out.
    pub(crate) fn flatten(&self) -> BTreeMap<String, Entry> {
        let mut tree = BTreeMap::new();
        for layer in self.manifest["layers"].as_array().expect("layers") {
            apply(&mut tree, self.inflate(layer));
        }
        tree
    }
}

/// Times of modification, in seconds, of all that the layers of `image` bring; the last
/// one counts.
#[allow(dead_code, reason = "not every test looks at times")]
pub(crate) fn times(image: &Image) -> BTreeMap<String, i64> {
    let mut times = BTreeMap::new();
    for layer in image.manifest["layers"].as_array().expect("layers") {
        let mut archive = tar::Archive::new(image.inflate(layer));
        for entry in archive.entries().expect("a tar") {
            let entry = entry.expect("an entry");
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let time = entry.header().mtime().expect("a time");
            let name = name.trim_start_matches("./").trim_matches('/');
            times.insert(format!("/{name}"), i64::try_from(time).expect("a small number"));
        }
    }
    times
}

fn json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

/// Removes `path` and everything below it.
fn remove(tree: &mut BTreeMap<String, Entry>, path: &str, itself: bool) {
    let below = format!("{}/", path.trim_end_matches('/'));
    tree.retain(|known, _| !(known.starts_with(&below) || (itself && known == path)));
}

fn apply(tree: &mut BTreeMap<String, Entry>, layer: impl Read) {
    let mut archive = tar::Archive::new(layer);
    let mut added: Vec<String> = Vec::new();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./").trim_matches('/').to_owned();
        let path = format!("/{name}");
        let (parent, last) = path.rsplit_once('/').expect("a slash");
        if last == ".wh..wh..opq" {
            let below = format!("{parent}/");
            tree.retain(|known, _| !known.starts_with(&below) || added.contains(known));
            continue;
        }
        if let Some(gone) = last.strip_prefix(".wh.") {
            remove(tree, &format!("{parent}/{gone}"), true);
            continue;
        }
        let header = entry.header().clone();
        let mode = header.mode().expect("a mode") & 0o7777;
        let owner = format!("{}:{}", header.uid().expect("uid"), header.gid().expect("gid"));
        let target = || -> String {
            String::from_utf8_lossy(&entry.link_name_bytes().expect("a target")).into_owned()
        };
        use tar::EntryType;
        let mut capability = String::new();
        let (text, content) = match header.entry_type() {
            EntryType::Directory => (format!("directory {mode:04o} {owner}"), Vec::new()),
            EntryType::Symlink => (format!("link {owner} -> {}", target()), Vec::new()),
            EntryType::Link => {
                let target = target();
                let target =
                    format!("/{}", target.trim_start_matches("./").trim_start_matches('/'));
                let original = tree
                    .get(&target)
                    .unwrap_or_else(|| panic!("{path} links to {target}, which is missing"))
                    .clone();
                (original.text, original.content)
            }
            EntryType::Char | EntryType::Block => {
                let kind =
                    if header.entry_type() == EntryType::Char { "character" } else { "block" };
                let major = header.device_major().expect("a device").unwrap_or(0);
                let minor = header.device_minor().expect("a device").unwrap_or(0);
                (format!("{kind} {mode:04o} {owner} {major}:{minor}"), Vec::new())
            }
            EntryType::Fifo => (format!("fifo {mode:04o} {owner}"), Vec::new()),
            _ => {
                if let Some(extensions) = entry.pax_extensions().expect("pax") {
                    for extension in extensions {
                        let extension = extension.expect("a record");
                        if extension.key_bytes() == b"SCHILY.xattr.security.capability" {
                            capability = format!(" capability {:?}", extension.value_bytes());
                        }
                    }
                }
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("content");
                (format!("file {mode:04o} {owner}{capability}"), content)
            }
        };
        let is_directory = header.entry_type() == EntryType::Directory;
        if !is_directory {
            remove(tree, &path, false);
        }
        if path != "/" {
            tree.insert(path.clone(), Entry { text, content });
            added.push(path);
        }
    }
}
