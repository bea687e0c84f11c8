//! What the records of each bucket say.
//!
//! A record is a version byte and JSON: small, readable with any tool, and open
//! to additional fields. The index itself takes any bytes; what is checked here
//! is checked on every reading, and a defect is a miss.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cache::Bucket;
use crate::key::Key;

/// Why bytes are not the record they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
    /// A version this program does not read.
    #[error("it has version {0}")]
    Version(u8),
    /// The version is right and the rest is not.
    #[error("it is malformed: {0}")]
    Malformed(String),
}

/// A value with a place in the cache.
pub trait Record: Serialize + DeserializeOwned {
    /// First byte of the encoding. A change that old readers must not see needs
    /// a new number; a change of meaning needs a new bucket.
    const VERSION: u8;
    /// Where records of this kind are kept.
    const BUCKET: Bucket;

    /// The bytes to put.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![Self::VERSION];
        serde_json::to_writer(&mut bytes, self)
            .expect("records hold only text, numbers and lists, and memory takes any bytes");
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    ///
    /// A [`Defect`] for anything else; never panics.
    fn decode(bytes: &[u8]) -> Result<Self, Defect> {
        match bytes.split_first() {
            None => Err(Defect::Empty),
            Some((&version, json)) if version == Self::VERSION => {
                serde_json::from_slice(json).map_err(|error| Defect::Malformed(error.to_string()))
            }
            Some((&version, _)) => Err(Defect::Version(version)),
        }
    }
}

/// A layer as it was compressed once: the blob to push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compressed {
    /// SHA-256 of the blob.
    #[serde(with = "hex")]
    pub digest: [u8; 32],
    /// Bytes of the blob.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
}

/// What a finished step produced, and from what.
///
/// The same record is put under its content key in another bucket; see
/// [`StepRecord::puts`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// SHA-256 of the uncompressed layer; of no bytes where `empty`.
    #[serde(with = "hex")]
    pub diff_id: [u8; 32],
    /// The compressed layer, if it was compressed when the record was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed: Option<Compressed>,
    /// When the step finished: seconds since 1970 …
    pub created: i64,
    /// … and nanoseconds of that second.
    #[serde(default)]
    pub created_nanoseconds: u32,
    /// The step changed nothing: there is no layer.
    #[serde(default)]
    pub empty: bool,
    /// Every field of the key, by name, as a digest or a printable value: what
    /// explains a later miss. Must hold no secret.
    #[serde(default)]
    pub inputs: Vec<(String, String)>,
    /// Key over the definition of the step.
    #[serde(with = "hex_key")]
    pub definition: Key,
    /// Key over what the step really read, where that is known.
    #[serde(default, with = "hex_key_or_none")]
    pub content: Option<Key>,
    /// Key of the step without its parent: finds the previous run of a step that
    /// missed.
    #[serde(default, with = "hex_key_or_none")]
    pub hint: Option<Key>,
    /// How long the step took, in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
}

impl Record for StepRecord {
    const VERSION: u8 = 1;
    const BUCKET: Bucket = Bucket::Steps;
}

impl StepRecord {
    /// The record under all of its keys, for one [`put`](crate::Cache::put).
    pub fn puts(&self) -> Vec<(Bucket, Key, Vec<u8>)> {
        let bytes = self.encode();
        let mut puts = vec![(Bucket::Steps, self.definition, bytes.clone())];
        puts.extend(self.content.map(|key| (Bucket::Content, key, bytes.clone())));
        puts.extend(self.hint.map(|key| (Bucket::Hints, key, bytes)));
        puts
    }
}

/// The blob made of a layer with one compression setting; its key hashes both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressedRecord {
    /// The blob.
    pub blob: Compressed,
}

impl Record for CompressedRecord {
    const VERSION: u8 = 1;
    const BUCKET: Bucket = Bucket::Compressed;
}

/// Sizes of a layer; its key is made of the diff ID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Bytes of the uncompressed tar.
    pub size: u64,
    /// Number of entries in it.
    pub entries: u64,
}

impl Record for LayerRecord {
    const VERSION: u8 = 1;
    const BUCKET: Bucket = Bucket::Layers;
}

/// What a reference meant for a platform when it was last resolved; its key
/// hashes both. Unlike all other records this one ages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// SHA-256 of the image's manifest.
    #[serde(with = "hex")]
    pub manifest: [u8; 32],
    /// Media type of the manifest.
    pub media_type: String,
    /// SHA-256 of the image's config.
    #[serde(with = "hex")]
    pub config: [u8; 32],
    /// Diff IDs of its layers, lowest first.
    #[serde(with = "hex_list")]
    pub layers: Vec<[u8; 32]>,
    /// When it was resolved, in seconds since 1970.
    pub resolved: i64,
}

impl Record for ImageRecord {
    const VERSION: u8 = 1;
    const BUCKET: Bucket = Bucket::Images;
}

/// What a URL held when it was last asked for; its key is made of the URL. Unlike a
/// step's it ages: the server is asked whether it still holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteRecord {
    /// SHA-256 of the bytes.
    #[serde(with = "hex")]
    pub digest: [u8; 32],
    /// ETag, as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Last-Modified, as sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
}

impl Record for RemoteRecord {
    const VERSION: u8 = 1;
    const BUCKET: Bucket = Bucket::Remotes;
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::key::Key;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&Key::from_bytes(*bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        parse(&text)
    }

    pub(super) fn parse<E: de::Error>(text: &str) -> Result<[u8; 32], E> {
        Key::from_hex(text)
            .map(|key| *key.as_bytes())
            .ok_or_else(|| E::custom("64 hex digits are expected"))
    }
}

mod hex_key {
    use serde::{Deserializer, Serializer};

    use crate::key::Key;

    pub(super) fn serialize<S: Serializer>(key: &Key, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(key)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Key, D::Error> {
        super::hex::deserialize(from).map(Key::from_bytes)
    }
}

mod hex_key_or_none {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::key::Key;

    pub(super) fn serialize<S: Serializer>(key: &Option<Key>, to: S) -> Result<S::Ok, S::Error> {
        match key {
            Some(key) => to.collect_str(key),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Key>, D::Error> {
        Option::<String>::deserialize(from)?
            .map(|text| super::hex::parse(&text).map(Key::from_bytes))
            .transpose()
    }
}

mod hex_list {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::key::Key;

    pub(super) fn serialize<S: Serializer>(list: &[[u8; 32]], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().map(|bytes| Key::from_bytes(*bytes).to_string()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<[u8; 32]>, D::Error> {
        Vec::<String>::deserialize(from)?.iter().map(|text| super::hex::parse(text)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step() -> StepRecord {
        StepRecord {
            diff_id: [0xab; 32],
            compressed: Some(Compressed {
                digest: [1; 32],
                size: 7,
                media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            }),
            created: -1,
            created_nanoseconds: 999_999_999,
            empty: false,
            inputs: vec![("instruction".into(), "RUN \"a\"\n\u{fffd}".into())],
            definition: Key::from_bytes([2; 32]),
            content: None,
            hint: Some(Key::from_bytes([3; 32])),
            duration_ms: u64::MAX,
        }
    }

    #[test]
    fn records_survive_a_round_trip() {
        let record = step();
        assert_eq!(StepRecord::decode(&record.encode()), Ok(record.clone()));
        let image = ImageRecord {
            manifest: [1; 32],
            media_type: "m".into(),
            config: [2; 32],
            layers: vec![[3; 32], [4; 32]],
            resolved: 5,
        };
        assert_eq!(ImageRecord::decode(&image.encode()), Ok(image));
        let layer = LayerRecord { size: 1, entries: 2 };
        assert_eq!(LayerRecord::decode(&layer.encode()), Ok(layer));
        let compressed = CompressedRecord { blob: record.compressed.unwrap() };
        assert_eq!(CompressedRecord::decode(&compressed.encode()), Ok(compressed));
    }

    #[test]
    fn a_record_is_put_under_each_of_its_keys() {
        let record = step();
        let buckets: Vec<Bucket> = record.puts().iter().map(|put| put.0).collect();
        assert_eq!(buckets, [Bucket::Steps, Bucket::Hints]);
    }

    #[test]
    fn defects_are_told_apart() {
        let bytes = step().encode();
        assert_eq!(StepRecord::decode(b""), Err(Defect::Empty));
        assert_eq!(StepRecord::decode(b"\x02{}"), Err(Defect::Version(2)));
        for cut in 1..bytes.len() {
            assert!(
                matches!(StepRecord::decode(&bytes[..cut]), Err(Defect::Malformed(_))),
                "{cut}"
            );
        }
        let short = String::from_utf8(bytes[1..].to_vec()).unwrap().replacen("abab", "ab", 1);
        assert!(StepRecord::decode(format!("\u{1}{short}").as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = StepRecord::decode(&bytes);
            let mut right_version = vec![1];
            right_version.extend(&bytes);
            let _ = StepRecord::decode(&right_version);
        }
    }
}
