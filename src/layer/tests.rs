//! What the tests of this module share, and the properties that hold for any layer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::change::Change;
use crate::change::ChangeSet;
use crate::change::Put;
use crate::path::RootPath;
use crate::tree::Device;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::Stat;
use crate::tree::Timestamp;

mod foreign;
mod reading;
mod writing;

pub(super) fn path(text: &str) -> RootPath {
    RootPath::clamped(text.as_bytes()).expect("no NUL")
}

/// A put of `kind` at `at`, its own node, with nothing in it.
pub(super) fn put(at: &str, kind: Kind, mode: u16) -> Put {
    let node = NodeId(u64::from_le_bytes(
        blake3::hash(at.as_bytes()).as_bytes()[..8].try_into().expect("eight bytes"),
    ));
    let content = (kind == Kind::File).then(|| Arc::new(Vec::new()) as crate::tree::Content);
    Put {
        path: path(at),
        node,
        stat: Stat::new(kind, mode),
        link_target: None,
        capability: None,
        content,
    }
}

pub(super) fn file(at: &str, bytes: &[u8]) -> Put {
    let mut put = put(at, Kind::File, 0o644);
    put.stat.size = bytes.len() as u64;
    put.content = Some(Arc::new(bytes.to_vec()));
    put
}

pub(super) fn symlink(at: &str, target: &str) -> Put {
    let mut put = put(at, Kind::Symlink, 0o777);
    put.stat.size = target.len() as u64;
    put.link_target = Some(target.as_bytes().to_vec());
    put
}

pub(super) fn set(puts: impl IntoIterator<Item = Put>) -> ChangeSet {
    ChangeSet { changes: puts.into_iter().map(Change::Put).collect() }
}

/// Writes `set`; gives the tar and what was said about it.
pub(super) fn written(set: &ChangeSet) -> (Vec<u8>, Written) {
    let mut tar = Vec::new();
    let written = write(set, &WriteOptions::default(), &mut tar).expect("a set that can be said");
    (tar, written)
}

pub(super) fn index_of(written: &Written) -> LayerIndex {
    let index = LayerIndex::from_bytes(written.index.clone()).expect("an index made just now");
    index.verify().expect("an index made just now");
    index
}

/// The bytes of a file, out of the tar it lies in.
pub(super) fn content(index: &LayerIndex, node: u32, tar: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(index.node(node).size).expect("a small file")];
    for extent in index.extents(node) {
        let place = |at: u64| usize::try_from(at).expect("a small file");
        let from = place(extent.blob_offset)..place(extent.blob_offset + extent.length);
        let to = place(extent.file_offset)..place(extent.file_offset + extent.length);
        bytes[to].copy_from_slice(&tar[from]);
    }
    bytes
}

/// An index as text: one line per entry, sorted by path, every field that it holds.
pub(super) fn listing(index: &LayerIndex, tar: &[u8]) -> String {
    let mut out = String::new();
    line(&mut out, index, LayerIndex::ROOT, "/", tar);
    walk(&mut out, index, LayerIndex::ROOT, "", tar);
    out
}

fn walk(out: &mut String, index: &LayerIndex, directory: u32, at: &str, tar: &[u8]) {
    for (name, entry) in index.children(directory) {
        assert_eq!(index.child(directory, name), Some(entry), "search agrees with listing");
        let path = format!("{at}/{}", String::from_utf8_lossy(name));
        match entry {
            Entry::Whiteout => {
                let _ = writeln!(out, "{path} gone");
            }
            Entry::LowerLink(target) => {
                let _ = writeln!(out, "{path} lower:{}", String::from_utf8_lossy(target));
            }
            Entry::Node(node) => {
                line(out, index, node, &path, tar);
                if index.node(node).kind == Kind::Directory {
                    walk(out, index, node, &path, tar);
                }
            }
        }
    }
}

fn line(out: &mut String, index: &LayerIndex, number: u32, path: &str, tar: &[u8]) {
    let node = index.node(number);
    let kind = format!("{:?}", node.kind).to_lowercase();
    let _ = write!(out, "{path} {kind} {:04o} {}:{}", node.mode, node.uid, node.gid);
    if node.mtime != Timestamp::default() {
        let _ = write!(out, " @{}.{:09}", node.mtime.seconds, node.mtime.nanoseconds);
    }
    if node.device != Device::default() {
        let _ = write!(out, " dev={}:{}", node.device.major, node.device.minor);
    }
    for (flag, name) in [(node.implied, " implied"), (node.opaque, " opaque")] {
        out.push_str(if flag { name } else { "" });
    }
    if node.links > 1 {
        let _ = write!(out, " node={number} links={}", node.links);
    }
    if node.kind == Kind::Symlink {
        let _ = write!(out, " -> {}", String::from_utf8_lossy(index.link_target(number)));
    }
    if node.kind == Kind::File {
        let bytes = content(index, number, tar);
        if let Some(digest) = index.digest(number) {
            assert_eq!(digest, *blake3::hash(&bytes).as_bytes(), "{path}");
        }
        let _ = write!(out, " size={}", node.size);
        if bytes.len() <= 16 {
            let _ = write!(out, " {:?}", String::from_utf8_lossy(&bytes));
        }
    }
    for (name, value) in index.xattrs(number) {
        let _ = write!(out, " {}={value:?}", String::from_utf8_lossy(&name));
    }
    out.push('\n');
}

/// What a random path of a change set is.
#[derive(Clone, Debug)]
enum Made {
    Gone,
    Directory,
    File(Vec<u8>),
    /// One more name of a file that came before, if there is one.
    Link(usize),
    Symlink(String),
    Device(u32, u32),
    Fifo,
    Socket,
}

fn made() -> impl Strategy<Value = Made> {
    prop_oneof![
        1 => Just(Made::Gone),
        3 => Just(Made::Directory),
        4 => proptest::collection::vec(any::<u8>(), 0..2000).prop_map(Made::File),
        2 => any::<usize>().prop_map(Made::Link),
        1 => "[a-zä/.]{1,120}".prop_map(Made::Symlink),
        1 => (0..4096_u32, 0..1_048_576_u32).prop_map(|(major, minor)| Made::Device(major, minor)),
        1 => Just(Made::Fifo),
        1 => Just(Made::Socket),
    ]
}

prop_compose! {
    fn any_stat()(
        mode in 0..0o10000_u16,
        uid in prop_oneof![0..3_u32, any::<u32>()],
        gid in prop_oneof![0..3_u32, any::<u32>()],
        seconds in prop_oneof![0..2_000_000_000_i64, -(1_i64 << 40)..(1 << 40)],
        nanoseconds in 0..1_000_000_000_u32,
    ) -> Stat {
        let mtime = Timestamp { seconds, nanoseconds };
        Stat { mode, uid, gid, mtime, ..Stat::new(Kind::File, 0) }
    }
}

prop_compose! {
    /// A change set in path order, with or without the directories above.
    pub(super) fn any_set()(
        entries in proptest::collection::btree_map(
            proptest::collection::vec("[abc]|[a-z]{1,120}|ä[ü-]{1,60}", 1..5),
            (made(), any_stat(), proptest::option::of(proptest::collection::vec(any::<u8>(), 20))),
            0..24,
        ),
    ) -> ChangeSet {
        let mut sorted: BTreeMap<RootPath, _> = BTreeMap::new();
        for (names, value) in entries {
            sorted.insert(path(&names.join("/")), value);
        }
        let mut changes: Vec<Change> = Vec::new();
        let mut blocked: Option<RootPath> = None;
        for (path, (made, stat, capability)) in sorted {
            if blocked.as_ref().is_some_and(|above| path.starts_with(above)) {
                continue;
            }
            if !matches!(made, Made::Directory) {
                blocked = Some(path.clone());
            }
            changes.push(change(path, made, stat, capability, &changes));
        }
        ChangeSet { changes }
    }
}

fn change(
    path: RootPath,
    made: Made,
    mut stat: Stat,
    capability: Option<Vec<u8>>,
    before: &[Change],
) -> Change {
    let mut link_target = None;
    let mut content = None;
    let node = NodeId(before.len() as u64);
    stat.kind = match made {
        Made::Gone => return Change::Delete(path),
        Made::Directory => Kind::Directory,
        Made::Fifo => Kind::Fifo,
        Made::Socket => Kind::Socket,
        Made::Device(major, minor) => {
            stat.device = Device { major, minor };
            if minor % 2 == 0 { Kind::BlockDevice } else { Kind::CharDevice }
        }
        Made::Symlink(target) => {
            stat.size = target.len() as u64;
            link_target = Some(target.into_bytes());
            Kind::Symlink
        }
        Made::File(bytes) => {
            stat.size = bytes.len() as u64;
            content = Some(Arc::new(bytes) as crate::tree::Content);
            Kind::File
        }
        Made::Link(choice) => {
            let files: Vec<&Put> = before
                .iter()
                .filter_map(|change| match change {
                    Change::Put(put) if !put.stat.is_directory() => Some(put),
                    _ => None,
                })
                .collect();
            if let Some(first) = choice.checked_rem(files.len()).map(|at| files[at]) {
                return Change::Put(Put { path, ..first.clone() });
            }
            content = Some(Arc::new(Vec::new()) as crate::tree::Content);
            Kind::File
        }
    };
    Change::Put(Put { path, node, stat, link_target, capability, content })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back_the_same(set in any_set()) {
        let (tar, first) = written(&set);
        prop_assert_eq!(first.size, tar.len() as u64);
        prop_assert_eq!(first.diff_id, crate::oci::digest::DiffId::of(&tar));
        let mut copy = Vec::new();
        let second = read(tar.as_slice(), &mut copy).expect("our own layer");
        prop_assert!(copy == tar);
        prop_assert_eq!((second.diff_id, second.size, second.entries), (first.diff_id, first.size, first.entries));
        prop_assert_eq!(listing(&index_of(&second), &tar), listing(&index_of(&first), &tar));
        prop_assert!(second.index == first.index, "the index is canonical");
    }

    #[test]
    fn damaged_layers_never_panic(
        set in any_set(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        reseal in any::<bool>(),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let (mut tar, _) = written(&set);
        for (at, byte) in damage {
            let at = at.index(tar.len());
            tar[at] = byte;
            if reseal {
                seal(&mut tar, at);
            }
        }
        tar.truncate(cut.map_or(tar.len(), |cut| cut.index(tar.len())));
        let mut copy = Vec::new();
        if let Ok(found) = read(tar.as_slice(), &mut copy) {
            prop_assert!(copy == tar);
            let index = index_of(&found);
            for node in 0..index.node_count() {
                for extent in index.extents(node) {
                    prop_assert!(extent.blob_offset + extent.length <= tar.len() as u64);
                }
            }
        }
    }

    #[test]
    fn a_damaged_index_is_noticed_and_never_panics(
        set in any_set(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let (_, made) = written(&set);
        let mut bytes = made.index;
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(index) = LayerIndex::from_bytes(bytes) {
            prop_assert!(index.verify().is_err());
            for node in 0..index.node_count().min(1000) {
                let _ = (index.node(node), index.link_target(node), index.digest(node));
                let _ = (index.extents(node).take(1000).count(), index.xattrs(node).len());
                for (name, entry) in index.children(node).take(1000) {
                    let _ = (index.child(node, name), entry);
                }
            }
        }
    }
}

/// Makes the checksum right again of the header block that `at` lies in, if it is one.
fn seal(tar: &mut [u8], at: usize) {
    let start = at / 512 * 512;
    let Some(block) = tar.get_mut(start..start + 512) else { return };
    if &block[257..262] != b"ustar" {
        return;
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
