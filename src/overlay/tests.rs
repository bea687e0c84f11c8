//! What the tests of this module share: overlays out of layers that were written by
//! the real writer, steps folded by the real snapshotter, trees as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::*;
use crate::change::Change;
use crate::layer;
use crate::layer::LayerIndex;
use crate::path::Name;
use crate::path::RootPath;
use crate::snapshot::LogSnapshotter;
use crate::snapshot::Snapshotter;
use crate::tree::Content;
use crate::tree::ContentReader;
use crate::tree::NodeId;
use crate::tree::Timestamp;

mod editing;
mod foreign_links;
mod late_pages;
mod malformed;
mod operations;
mod random;
mod steps;
mod wire;

fn path(text: &str) -> RootPath {
    RootPath::clamped(text.as_bytes()).expect("no NUL")
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a name")
}

fn attributes(mode: u16) -> Attributes {
    Attributes { mode, uid: 0, gid: 0, mtime: Timestamp::seconds(1_000_000) }
}

fn bytes(text: &str) -> Content {
    Arc::new(text.as_bytes().to_vec())
}

fn over(lowers: &[Lower]) -> Arc<Overlay> {
    Overlay::new(lowers.to_vec(), &std::env::temp_dir()).expect("a scratch directory")
}

/// Puts a file at `at`, its parents made.
fn put(overlay: &Overlay, at: &str, text: &str) -> NodeId {
    let at = path(at);
    let parent = at.parent().expect("not the root");
    let (parent, _) = overlay.make_directories(&parent, &attributes(0o755)).expect("parents");
    let name = at.file_name().expect("not the root");
    overlay.put_file(parent, &name, &attributes(0o644), bytes(text)).expect("a file")
}

fn node(tree: &dyn Tree, at: &str) -> NodeId {
    tree.find(&path(at)).expect("readable").unwrap_or_else(|| panic!("{at} is not there"))
}

fn ino(overlay: &Overlay, at: &str) -> inode::Ino {
    view::ino_of(node(overlay.after().as_ref(), at)).expect("a number of ours")
}

fn read_all(content: &Content) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut ContentReader::new(Arc::clone(content)), &mut bytes)
        .expect("readable");
    bytes
}

fn text(tree: &dyn Tree, at: &str) -> String {
    String::from_utf8(read_all(&tree.content(node(tree, at)).expect("a file"))).expect("UTF-8")
}

/// A tree as text, one line a path.
fn dump(tree: &dyn Tree) -> String {
    dump_as(tree, true)
}

/// A tree as far as layers carry it: without sockets, times of directories, and
/// fractions of seconds.
fn dump_carried(tree: &dyn Tree) -> String {
    dump_as(tree, false)
}

fn dump_as(tree: &dyn Tree, exact: bool) -> String {
    let mut lines = String::new();
    let mut groups: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut pending = vec![(RootPath::root(), tree.root())];
    while let Some((path, node)) = pending.pop() {
        let stat = tree.stat(node).expect("readable");
        let group = groups.len();
        let group = *groups.entry(node).or_insert(group);
        let Timestamp { seconds, nanoseconds } = stat.mtime;
        let time = match stat.kind {
            _ if exact => format!("{seconds}.{nanoseconds}"),
            Kind::Directory => String::new(),
            _ => seconds.to_string(),
        };
        match stat.kind {
            Kind::Socket if !exact => {
                groups.remove(&node);
                continue;
            }
            Kind::Directory => {
                let mut children = tree.children(node).expect("readable");
                children.reverse();
                for (name, child) in children {
                    assert_eq!(tree.child(node, name.as_bytes()).expect("readable"), Some(child));
                    pending.push((path.join(&name), child));
                }
                write!(
                    lines,
                    "{path} {:?} {:o} {}:{} {time}",
                    stat.kind, stat.mode, stat.uid, stat.gid
                )
            }
            _ => {
                write!(
                    lines,
                    "{path} {:?} {:o} {}:{} {time} {} {:?} node={group}",
                    stat.kind, stat.mode, stat.uid, stat.gid, stat.size, stat.device
                )
            }
        }
        .expect("a string takes everything");
        if stat.kind == Kind::Symlink {
            let target = tree.link_target(node).expect("readable");
            write!(lines, " -> {}", String::from_utf8_lossy(&target)).expect("a string");
        }
        if stat.kind == Kind::File {
            let content = read_all(&tree.content(node).expect("readable"));
            assert_eq!(content.len() as u64, stat.size, "{path}");
            write!(lines, " {}", &blake3::hash(&content).to_hex()[..16]).expect("a string");
        }
        for (key, value) in tree.xattrs(node).expect("readable") {
            let key = String::from_utf8_lossy(&key).into_owned();
            write!(lines, " {key}={value:?}").expect("a string");
        }
        lines.push('\n');
    }
    lines
}

/// Runs `body` as a step and folds what it did.
fn step(overlay: &Overlay, body: impl FnOnce()) -> ChangeSet {
    overlay.mark();
    body();
    changes(overlay)
}

fn changes(overlay: &Overlay) -> ChangeSet {
    let (before, after) = (overlay.before(), overlay.after());
    LogSnapshotter::new()
        .changes(before.as_ref(), after.as_ref(), &overlay.log())
        .expect("readable trees")
}

/// The paths of a change set; deletions with a minus.
fn paths(set: &ChangeSet) -> Vec<String> {
    let path = |change: &Change| match change {
        Change::Put(put) => put.path.to_string(),
        Change::Delete(path) => format!("-{path}"),
    };
    set.changes.iter().map(path).collect()
}

fn lower(tar: &[u8], index: Vec<u8>) -> Lower {
    let mut blob = tempfile::tempfile().expect("a temporary file");
    std::io::Write::write_all(&mut blob, tar).expect("room");
    let index = LayerIndex::from_bytes(index).expect("a good index");
    index.verify().expect("a good index");
    Lower { index: Arc::new(index), blob: Arc::new(blob) }
}

fn lower_of(set: &ChangeSet) -> Lower {
    let mut tar = Vec::new();
    let written = layer::write(set, &layer::WriteOptions::default(), &mut tar).expect("a layer");
    lower(&tar, written.index)
}

/// A layer out of a foreign tar.
fn foreign(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Lower {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    let bytes = builder.into_inner().expect("a tar");
    let mut copy = Vec::new();
    let written = layer::read(bytes.as_slice(), &mut copy).expect("a good tar");
    lower(&copy, written.index)
}

fn add(builder: &mut tar::Builder<Vec<u8>>, at: &str, kind: tar::EntryType, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
    header.set_mtime(77);
    header.set_size(bytes.len() as u64);
    builder.append_data(&mut header, at, bytes).expect("a tar entry");
}

fn add_link(builder: &mut tar::Builder<Vec<u8>>, at: &str, kind: tar::EntryType, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(0);
    builder.append_link(&mut header, at, target).expect("a tar entry");
}

/// A base layer with a bit of everything.
fn base() -> Lower {
    let overlay = over(&[]);
    let set = step(&overlay, || {
        put(&overlay, "etc/passwd", "root:x:0:0::/root:/bin/sh\n");
        put(&overlay, "etc/deep/er/file", "deep");
        let file = put(&overlay, "usr/bin/tool", "#!/bin/sh\necho tool\n");
        let bin = node(overlay.after().as_ref(), "usr/bin");
        overlay.link(file, bin, &name("same")).expect("a link");
        let usr = node(overlay.after().as_ref(), "usr");
        overlay.link(file, usr, &name("other")).expect("a link");
        let root = overlay.after().root();
        overlay.put_symlink(root, &name("bin"), &attributes(0o777), b"usr/bin").expect("a link");
        let capability = [1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        overlay.set_xattr(file, b"security.capability", &capability).expect("an attribute");
    });
    lower_of(&set)
}

#[test]
fn a_table_reads_what_the_layers_hold() {
    let tree = over(&[base()]);
    assert_eq!(text(tree.after().as_ref(), "etc/deep/er/file"), "deep");
    let after = tree.after();
    assert_eq!(node(after.as_ref(), "usr/bin/tool"), node(after.as_ref(), "usr/other"));
    assert_eq!(after.stat(node(after.as_ref(), "usr/other")).unwrap().links, 3);
    assert_eq!(after.link_target(node(after.as_ref(), "bin")).unwrap(), b"usr/bin");
    assert!(after.find(&path("nothing/here")).unwrap().is_none());
    assert!(after.find(&path("etc/passwd/x")).unwrap().is_none());
    let content = after.content(node(after.as_ref(), "etc/passwd")).unwrap();
    let digest = blake3::hash(&read_all(&content));
    assert_eq!(content.known_digest(), Some(*digest.as_bytes()));
}

#[test]
fn looking_makes_no_change() {
    let overlay = over(&[base()]);
    let set = step(&overlay, || {
        dump(overlay.after().as_ref());
        overlay.op_lookup(inode::ROOT, b"etc").unwrap();
    });
    assert!(set.is_empty() && overlay.log().events.is_empty());
}

#[test]
fn layers_merge_with_whiteouts_opaque_and_implied_directories() {
    use tar::EntryType::{Directory, Link, Regular};
    let low = foreign(|tar| {
        add(tar, "dir/", Directory, b"");
        for at in ["dir/a", "dir/b", "dir/sub/c", "gone/x", "cover/old", "file", "kept"] {
            add(tar, at, Regular, b"low");
        }
    });
    let high = foreign(|tar| {
        add(tar, "dir/.wh.a", Regular, b"");
        add(tar, "dir/b", Regular, b"high");
        add(tar, "dir/sub/d", Regular, b"high");
        add(tar, ".wh.gone", Regular, b"");
        add(tar, "cover/", Directory, b"");
        add(tar, "cover/.wh..wh..opq", Regular, b"");
        add(tar, "cover/new", Regular, b"high");
        add(tar, "file/", Directory, b"");
        add(tar, "file/inside", Regular, b"high");
        add_link(tar, "linked", Link, "kept");
    });
    let overlay = over(&[low, high]);
    let tree = overlay.after();
    let mut found: Vec<String> = dump(tree.as_ref())
        .lines()
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    found.sort();
    let wanted = [
        "/",
        "/cover",
        "/cover/new",
        "/dir",
        "/dir/b",
        "/dir/sub",
        "/dir/sub/c",
        "/dir/sub/d",
        "/file",
        "/file/inside",
        "/kept",
        "/linked",
    ];
    assert_eq!(found, wanted);
    assert_eq!(text(tree.as_ref(), "dir/b"), "high");
    // The directory itself is only implied above: its time is that of the layer below.
    assert_eq!(tree.stat(node(tree.as_ref(), "dir")).unwrap().mtime, Timestamp::seconds(77));
    assert_eq!(node(tree.as_ref(), "linked"), node(tree.as_ref(), "kept"));
    assert_eq!(tree.stat(node(tree.as_ref(), "kept")).unwrap().links, 2);
}

/// The cost of an overlay must not grow with what is below.
#[test]
fn a_new_overlay_has_one_inode() {
    let overlay = over(&[base()]);
    assert!(overlay.table().inode(inode::ROOT + 1).is_err());
    overlay.after().find(&path("etc/deep")).expect("readable");
    assert!(overlay.table().inode(inode::ROOT + 2).is_ok());
    assert!(overlay.table().inode(inode::ROOT + 3).is_err());
}
