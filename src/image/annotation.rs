//! Annotations from the command line, and which document each belongs on.

use std::collections::BTreeMap;

use crate::oci::platform::Platform;

/// Annotations, by where they go. A later one of the same key wins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Annotations {
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    place: Place,
    /// `None`: for every platform.
    platform: Option<Platform>,
    key: String,
    value: String,
}

/// What an annotation stands on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The image's manifest.
    Manifest,
    /// The descriptor that names the manifest, in an index.
    ManifestDescriptor,
    /// The image index.
    Index,
    /// The descriptor that names the index, in a layout.
    IndexDescriptor,
}

impl Annotations {
    /// Reads one `[PLACE[,PLACE…]:]KEY=VALUE`, where a place is `manifest` (the
    /// default), `manifest-descriptor`, `index` or `index-descriptor`, the first two
    /// with an optional `[PLATFORM]`.
    ///
    /// # Errors
    /// The message: no `=`, no key, an unknown place.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let (left, value) = text.split_once('=').ok_or("KEY=VALUE is expected")?;
        let (places, key) = left.split_once(':').unwrap_or(("manifest", left));
        if key.is_empty() {
            return Err("the key is missing".to_owned());
        }
        for word in places.split(',') {
            let (name, platform) = match word.split_once('[') {
                None => (word, None),
                Some((name, rest)) => {
                    let inner = rest.strip_suffix(']').ok_or(format!("`{word}` lacks a `]`"))?;
                    let platform: Platform = inner.parse().map_err(|error| format!("{error}"))?;
                    (name, Some(platform))
                }
            };
            let place = match (name, &platform) {
                ("manifest", _) => Place::Manifest,
                ("manifest-descriptor", _) => Place::ManifestDescriptor,
                ("index", None) => Place::Index,
                ("index-descriptor", None) => Place::IndexDescriptor,
                ("index" | "index-descriptor", Some(_)) => {
                    return Err(format!("`{word}`: an index is for all platforms"));
                }
                _ => {
                    return Err(format!(
                        "`{name}` is no place for an annotation: manifest, manifest-descriptor, \
                         index and index-descriptor are"
                    ));
                }
            };
            let (key, value) = (key.to_owned(), value.to_owned());
            self.entries.push(Entry { place, platform, key, value });
        }
        Ok(())
    }

    /// Those at `place` for `platform`; an index has none, so anything will do there.
    pub fn at(&self, place: Place, platform: &Platform) -> BTreeMap<String, String> {
        self.entries
            .iter()
            .filter(|entry| entry.place == place)
            .filter(|entry| entry.platform.as_ref().is_none_or(|known| known == platform))
            .map(|entry| (entry.key.clone(), entry.value.clone()))
            .collect()
    }

    /// Whether one of them needs an index to stand on.
    pub fn need_index(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| matches!(entry.place, Place::Index | Place::IndexDescriptor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Annotations {
        let mut annotations = Annotations::default();
        for text in texts {
            annotations.add(text).expect(text);
        }
        annotations
    }

    #[test]
    fn annotations_go_where_their_prefix_says() {
        let (here, there) =
            (Platform::new("linux", "amd64", None), Platform::new("linux", "arm64", None));
        let read = read(&[
            "a=1",
            "manifest:a=2=3",
            "index,manifest-descriptor:b=",
            "manifest[linux/arm64]:c=4",
        ]);
        let at = |place, platform: &Platform| -> Vec<(String, String)> {
            read.at(place, platform).into_iter().collect()
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(at(Place::Manifest, &here), [pair("a", "2=3")]);
        assert_eq!(at(Place::Manifest, &there), [pair("a", "2=3"), pair("c", "4")]);
        assert_eq!(at(Place::ManifestDescriptor, &here), [pair("b", "")]);
        assert_eq!(at(Place::Index, &here), [pair("b", "")]);
        assert!(read.need_index());
    }

    #[test]
    fn what_is_no_annotation_is_refused() {
        for bad in
            ["a", "=b", "manifest:=b", "layer:a=b", "index[linux/arm64]:a=b", "manifest[x:a=b"]
        {
            assert!(Annotations::default().add(bad).is_err(), "{bad}");
        }
    }
}
