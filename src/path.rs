//! Paths inside a root: bytes, relative, without `..`.
//!
//! A [`RootPath`] names a place in an image's root filesystem or in a build
//! context. It is never handed to the operating system as it is, so it can't
//! escape anything: links are resolved by whoever owns the tree, inside the tree.
//!
//! Order is by component, so parents sort before their children and a subtree
//! is contiguous: `a`, `a/b`, `a.b`. Layer entries are written in this order.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One component of a path: non-empty bytes without `/` or NUL, not `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Takes `bytes` as a name; `None` if it can't be one component.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let bad = bytes.is_empty()
            || bytes == b"."
            || bytes == b".."
            || bytes.iter().any(|&byte| byte == b'/' || byte == 0);
        (!bad).then(|| Self(bytes.into()))
    }

    /// The bytes, as the filesystem has them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// A path relative to a root; the empty path is the root itself.
///
/// Invariant: components are valid [`Name`]s joined by single slashes, with no
/// leading or trailing slash.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RootPath(Vec<u8>);

impl RootPath {
    /// The root itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Reads `path` as a path inside a root: leading, trailing and doubled
    /// slashes and `.` vanish; `..` goes up and stops at the root, as
    /// `chroot(2)` does. `None` if it holds a NUL byte.
    pub fn clamped(path: &[u8]) -> Option<Self> {
        if path.contains(&0) {
            return None;
        }
        let mut bytes = Vec::with_capacity(path.len());
        for part in path.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    bytes.truncate(bytes.iter().rposition(|&byte| byte == b'/').unwrap_or(0));
                }
                _ => {
                    if !bytes.is_empty() {
                        bytes.push(b'/');
                    }
                    bytes.extend_from_slice(part);
                }
            }
        }
        Some(Self(bytes))
    }

    /// Like [`RootPath::clamped`], but `None` as well when the path is absolute
    /// or a `..` in it would leave the root: for names out of foreign archives.
    pub fn strict(path: &[u8]) -> Option<Self> {
        if path.first() == Some(&b'/') {
            return None;
        }
        let mut depth = 0_usize;
        for part in path.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => depth = depth.checked_sub(1)?,
                _ => depth += 1,
            }
        }
        Self::clamped(path)
    }

    /// This path with one more component.
    pub fn join(&self, name: &Name) -> Self {
        self.join_bytes(name.as_bytes())
    }

    /// This path followed by every component of `rest`, clamped at the root.
    pub fn join_path(&self, rest: &Self) -> Self {
        if rest.is_root() { self.clone() } else { self.join_bytes(&rest.0) }
    }

    fn join_bytes(&self, rest: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + rest.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(rest);
        Self(bytes)
    }

    /// Whether this is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes: components joined by `/`, nothing before or after.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same as an operating-system path, still relative.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The components, from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|part| !part.is_empty())
    }

    /// The parent; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        Some(Self(self.0[..cut].to_vec()))
    }

    /// The last component; `None` for the root.
    pub fn file_name(&self) -> Option<Name> {
        self.components().next_back().and_then(Name::new)
    }

    /// Whether `self` is `ancestor` or lies below it.
    pub fn starts_with(&self, ancestor: &Self) -> bool {
        ancestor.is_root()
            || (self.0.starts_with(&ancestor.0)
                && matches!(self.0.get(ancestor.0.len()), None | Some(b'/')))
    }

    /// What is left of `self` below `ancestor`; `None` if it isn't below.
    pub fn below(&self, ancestor: &Self) -> Option<Self> {
        if !self.starts_with(ancestor) {
            return None;
        }
        let rest = &self.0[ancestor.0.len()..];
        Some(Self(rest.strip_prefix(b"/").unwrap_or(rest).to_vec()))
    }
}

impl Ord for RootPath {
    fn cmp(&self, other: &Self) -> Ordering {
        // Component by component: a slash comes before every byte of a name.
        let rank = |path: &[u8], at: usize| path.get(at).map(|&byte| (byte != b'/', byte));
        let differs = self.0.iter().zip(&other.0).position(|(one, two)| one != two);
        let at = differs.unwrap_or(self.0.len().min(other.0.len()));
        rank(&self.0, at).cmp(&rank(&other.0, at))
    }
}

impl PartialOrd for RootPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for RootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// Shown with a leading slash, as a user writes it; bytes that are no UTF-8 are replaced.
impl fmt::Display for RootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RootPath {
        RootPath::clamped(text.as_bytes()).expect("no NUL")
    }

    #[test]
    fn clamped_paths_never_leave_the_root() {
        assert_eq!(path("/../a//./b/../c/").as_bytes(), b"a/c");
        assert!(path("../..").is_root());
        assert!(RootPath::clamped(b"a\0b").is_none());
    }

    #[test]
    fn strict_refuses_what_clamped_bends() {
        assert!(RootPath::strict(b"/a").is_none());
        assert!(RootPath::strict(b"a/../../b").is_none());
        assert_eq!(RootPath::strict(b"./a/../b/"), Some(path("b")));
    }

    #[test]
    fn a_subtree_is_contiguous_in_path_order() {
        let mut paths = [path("a.b"), path("a/b"), path("a"), path("a/b/c"), path("")];
        paths.sort();
        let shown: Vec<_> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["/", "/a", "/a/b", "/a/b/c", "/a.b"]);
    }

    #[test]
    fn paths_are_ordered_component_by_component() {
        let paths =
            ["", "a", "a/b", "a/b/c", "a.b", "a-", "a!/b", "a0", "ab", "ab/c", "b", "\u{1}"];
        for one in paths.map(path) {
            for two in paths.map(path) {
                assert_eq!(one.cmp(&two), one.components().cmp(two.components()), "{one} {two}");
            }
        }
    }

    #[test]
    fn below_strips_whole_components_only() {
        assert_eq!(path("a/b/c").below(&path("a")), Some(path("b/c")));
        assert_eq!(path("ab").below(&path("a")), None);
        assert_eq!(path("a").below(&path("a")), Some(RootPath::root()));
        assert_eq!(path("a/b").parent(), Some(path("a")));
        assert_eq!(path("a").parent(), Some(RootPath::root()));
    }
}
