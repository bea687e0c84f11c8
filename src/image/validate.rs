//! Takes an image apart and recomputes everything in it: the oracle of the
//! integration tests, and of whoever doubts a registry.

use std::io;
use std::io::Read;

use sha2::Digest as _;
use sha2::Sha256;

use super::Format;
use super::media;
use crate::oci::config::ImageConfig;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::DiffId;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::media_type;

/// Something about an image that doesn't add up. Layers count from 0, the lowest.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// The manifest isn't one.
    #[error("manifest can't be read")]
    Manifest(#[source] serde_json::Error),
    /// The config isn't one.
    #[error("config can't be read")]
    Config(#[source] serde_json::Error),
    /// The specification's own types, as the crate `oci-spec` has them, can't hold it.
    #[error("{what} is not as the specification has it")]
    Specification {
        /// Manifest or config.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<oci_spec::OciSpecError>,
    },
    /// `schemaVersion` other than 2.
    #[error("manifest has schema version {0}, not 2")]
    SchemaVersion(u32),
    /// A media type of the other family, or of none.
    #[error("{what} has media type `{found}`, not `{expected}`")]
    MediaType {
        /// Manifest, config or which layer.
        what: String,
        /// As written.
        found: String,
        /// As it should be.
        expected: String,
    },
    /// A blob whose bytes have another digest.
    #[error("{what} has digest {found}, its descriptor says {expected}")]
    Digest {
        /// Config or which layer.
        what: String,
        /// Computed.
        found: Digest,
        /// As written.
        expected: Digest,
    },
    /// A blob of another size.
    #[error("{what} has {found} bytes, its descriptor says {expected}")]
    Size {
        /// Config or which layer.
        what: String,
        /// Counted.
        found: u64,
        /// As written.
        expected: u64,
    },
    /// A layer whose tar has another SHA-256.
    #[error("layer {layer} has diff ID {found}, the config says {expected}{}", place(*.belongs))]
    DiffId {
        /// Which layer.
        layer: usize,
        /// Computed.
        found: DiffId,
        /// As written.
        expected: DiffId,
        /// Where in the config the computed one stands, if anywhere.
        belongs: Option<usize>,
    },
    /// Lists of different length.
    #[error("manifest has {layers} layers, config {what} {count}")]
    Count {
        /// What is counted in the config.
        what: &'static str,
        /// Layers in the manifest.
        layers: usize,
        /// How many in the config.
        count: usize,
    },
    /// `rootfs.type` other than `layers`.
    #[error("config has rootfs type `{0}`, not `layers`")]
    RootFs(String),
    /// A time that isn't one.
    #[error("`{0}` in the config is no RFC 3339 time")]
    Time(String),
    /// A layer that can't be read or decompressed.
    #[error("layer {layer} can't be read")]
    Read {
        /// Which layer.
        layer: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn place(belongs: Option<usize>) -> String {
    belongs.map_or_else(String::new, |index| format!("; it is the diff ID of layer {index}"))
}

/// Recomputes digests, sizes, diff IDs and their order. `open` gives the blob that
/// a layer's descriptor names, as stored.
///
/// # Errors
/// Every mismatch there is, not only the first.
pub fn validate<R: Read>(
    config: &[u8],
    manifest_bytes: &[u8],
    mut open: impl FnMut(&Descriptor) -> io::Result<R>,
) -> Result<(), Vec<Mismatch>> {
    let mut found = Vec::new();
    let parsed: Option<ImageConfig> =
        serde_json::from_slice(config).map_err(|error| found.push(Mismatch::Config(error))).ok();
    let manifest: Manifest = match serde_json::from_slice(manifest_bytes) {
        Ok(manifest) => manifest,
        Err(error) => {
            found.push(Mismatch::Manifest(error));
            return Err(found);
        }
    };
    check_specification(config, parsed.is_some(), manifest_bytes, &mut found);
    check_manifest(&manifest, &mut found);
    check_blob("config", &manifest.config, Digest::of(config), config.len() as u64, &mut found);
    let diff_ids = match &parsed {
        Some(parsed) => {
            check_config(parsed, manifest.layers.len(), &mut found);
            parsed.rootfs.diff_ids.as_slice()
        }
        None => &[],
    };
    for (layer, descriptor) in manifest.layers.iter().enumerate() {
        let read = open(descriptor).and_then(|blob| hash(descriptor, blob));
        let read = match read {
            Ok(read) => read,
            Err(source) => {
                found.push(Mismatch::Read { layer, source });
                continue;
            }
        };
        check_blob(&format!("layer {layer}"), descriptor, read.digest, read.size, &mut found);
        if let Some(&expected) = diff_ids.get(layer)
            && expected != read.diff_id
        {
            let belongs = diff_ids.iter().position(|id| *id == read.diff_id);
            found.push(Mismatch::DiffId { layer, found: read.diff_id, expected, belongs });
        }
    }
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// A second reader beside our own types: what only we can read is no image.
fn check_specification(config: &[u8], readable: bool, manifest: &[u8], found: &mut Vec<Mismatch>) {
    let mismatch = |what| move |source| Mismatch::Specification { what, source: Box::new(source) };
    let manifest = oci_spec::image::ImageManifest::from_reader(manifest);
    found.extend(manifest.map_err(mismatch("manifest")).err());
    if readable {
        let config = oci_spec::image::ImageConfiguration::from_reader(config);
        found.extend(config.map_err(mismatch("config")).err());
    }
}

fn check_manifest(manifest: &Manifest, found: &mut Vec<Mismatch>) {
    if manifest.schema_version != 2 {
        found.push(Mismatch::SchemaVersion(manifest.schema_version));
    }
    let given = manifest.media_type.as_deref().unwrap_or_default();
    let format = Format::of(given);
    let mut check = |what: String, given: &str, expected: &str| {
        if given != expected {
            found.push(Mismatch::MediaType {
                what,
                found: given.to_owned(),
                expected: expected.to_owned(),
            });
        }
    };
    check("manifest".to_owned(), given, format.manifest());
    check("config".to_owned(), &manifest.config.media_type, format.config());
    for (index, layer) in manifest.layers.iter().enumerate() {
        check(format!("layer {index}"), &layer.media_type, media::layer(&layer.media_type, format));
    }
}

fn check_config(config: &ImageConfig, layers: usize, found: &mut Vec<Mismatch>) {
    if config.rootfs.kind != "layers" {
        found.push(Mismatch::RootFs(config.rootfs.kind.clone()));
    }
    let rows = config.history.iter().filter(|row| !row.empty_layer).count();
    let counts = [
        ("diff IDs:", config.rootfs.diff_ids.len(), true),
        ("history rows with a layer:", rows, !config.history.is_empty()),
    ];
    for (what, count, applies) in counts {
        if applies && count != layers {
            found.push(Mismatch::Count { what, layers, count });
        }
    }
    let times = config.history.iter().map(|row| &row.created).chain([&config.created]);
    for time in times.flatten() {
        if time.parse::<jiff::Timestamp>().is_err() {
            found.push(Mismatch::Time(time.clone()));
        }
    }
}

fn check_blob(
    what: &str,
    descriptor: &Descriptor,
    digest: Digest,
    size: u64,
    found: &mut Vec<Mismatch>,
) {
    if digest != descriptor.digest {
        found.push(Mismatch::Digest {
            what: what.to_owned(),
            found: digest,
            expected: descriptor.digest,
        });
    }
    if size != descriptor.size {
        found.push(Mismatch::Size {
            what: what.to_owned(),
            found: size,
            expected: descriptor.size,
        });
    }
}

/// A layer as read.
struct Hashed {
    digest: Digest,
    size: u64,
    diff_id: DiffId,
}

/// Reads a blob to its end, hashing what is stored and what is in it.
fn hash(descriptor: &Descriptor, blob: impl Read) -> io::Result<Hashed> {
    let mut stored = Hashing { inner: blob, sha256: Sha256::new(), size: 0 };
    let oci = media::layer(&descriptor.media_type, Format::Oci);
    let diff_id = if oci.ends_with("+gzip") {
        hash_tar(flate2::read::MultiGzDecoder::new(&mut stored))?
    } else if oci.ends_with("+zstd") {
        hash_tar(zstd::stream::read::Decoder::new(&mut stored)?)?
    } else if oci == media_type::OCI_LAYER || oci.ends_with(".tar") {
        hash_tar(&mut stored)?
    } else {
        let message = format!("media type `{}` is no layer's", descriptor.media_type);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    };
    // What a decoder left unread belongs to the blob all the same.
    io::copy(&mut stored, &mut io::sink())?;
    Ok(Hashed {
        digest: Digest::from_bytes(stored.sha256.finalize().into()),
        size: stored.size,
        diff_id,
    })
}

fn hash_tar(tar: impl Read) -> io::Result<DiffId> {
    let mut tar = Hashing { inner: tar, sha256: Sha256::new(), size: 0 };
    io::copy(&mut tar, &mut io::sink())?;
    Ok(DiffId::from_bytes(tar.sha256.finalize().into()))
}

/// Hashes what passes through.
struct Hashing<R> {
    inner: R,
    sha256: Sha256,
    size: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sha256.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}
