//! Names by which a layer says that something below is gone (OCI image
//! specification, layer.md, "Whiteouts").

use crate::path::Name;
use crate::path::RootPath;

const PREFIX: &[u8] = b".wh.";
const META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What the last component of a tar name means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// An ordinary entry.
    None,
    /// The entry of this name is gone from the layers below.
    Deleted(Name),
    /// Nothing of the parent directory shows through from below.
    Opaque,
    /// Bookkeeping of aufs, no part of the root.
    Metadata,
    /// The prefix, but no name behind it.
    Invalid,
}

/// Reads the meaning of the entry name `name` (one component).
pub(super) fn mark(name: &[u8]) -> Mark {
    if name == OPAQUE {
        return Mark::Opaque;
    }
    if name.starts_with(META_PREFIX) {
        return Mark::Metadata;
    }
    match name.strip_prefix(PREFIX) {
        None => Mark::None,
        Some(rest) => Name::new(rest).map_or(Mark::Invalid, Mark::Deleted),
    }
}

/// Whether `path` lies in or is bookkeeping of aufs (`.wh..wh.plnk/…`).
pub(super) fn is_metadata(path: &RootPath) -> bool {
    path.components().any(|name| name.starts_with(META_PREFIX) && name != OPAQUE)
}

/// Whether a layer can't hold a file called `name` because it would delete another.
pub(super) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

/// The tar name of the whiteout of `path`; `None` for the root, which can't vanish.
pub(super) fn tar_name(path: &RootPath) -> Option<Vec<u8>> {
    let name = path.file_name()?;
    let whole = path.as_bytes();
    let (parent, _) = whole.split_at(whole.len() - name.as_bytes().len());
    Some([parent, PREFIX, name.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        assert_eq!(mark(b"a.wh.b"), Mark::None);
        assert_eq!(mark(b".wh.b"), Mark::Deleted(Name::new(b"b").expect("a name")));
        assert_eq!(mark(b".wh..wh..opq"), Mark::Opaque);
        assert_eq!(mark(b".wh..wh.plnk"), Mark::Metadata);
        assert_eq!(mark(b".wh."), Mark::Invalid);
        assert_eq!(mark(b".wh..."), Mark::Invalid);
    }

    #[test]
    fn a_whiteout_stands_beside_what_it_deletes() {
        let path = |text: &str| RootPath::clamped(text.as_bytes()).expect("no NUL");
        assert_eq!(tar_name(&path("a/b")).as_deref(), Some(b"a/.wh.b".as_slice()));
        assert_eq!(tar_name(&path("b")).as_deref(), Some(b".wh.b".as_slice()));
        assert_eq!(tar_name(&path("")), None);
    }
}
