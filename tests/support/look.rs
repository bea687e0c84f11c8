//! All that a root shows, as a value: through a mount as any program sees it, or
//! through a [`Tree`]. And all that a change set says.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use yadokari::change::Change;
use yadokari::change::ChangeSet;
use yadokari::path::Name;
use yadokari::path::RootPath;
use yadokari::tree::ContentReader;
use yadokari::tree::Device;
use yadokari::tree::Kind;
use yadokari::tree::Stat;
use yadokari::tree::Timestamp;
use yadokari::tree::Tree;

const CAPABILITY: &[u8] = b"security.capability";

/// One path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    /// `size` is 0 for a directory, whose size means nothing.
    pub(crate) stat: Stat,
    pub(crate) target: Option<Vec<u8>>,
    pub(crate) capability: Option<Vec<u8>>,
    pub(crate) digest: Option<blake3::Hash>,
    /// The first of all names of the file: hard links have it in common.
    pub(crate) first: RootPath,
}

/// Every path of a root but what is special about it.
pub(crate) type View = BTreeMap<RootPath, Seen>;

/// Walks the directory `root` by lstat and read.
pub(crate) fn of_directory(root: &Path) -> View {
    let mut found = Vec::new();
    let mut pending = vec![RootPath::root()];
    while let Some(path) = pending.pop() {
        let at = root.join(path.as_path());
        let fail = |error: io::Error| -> ! { panic!("{path}: {error}") };
        let data = fs::symlink_metadata(&at).unwrap_or_else(|error| fail(error));
        let kind = kind_of(data.file_type());
        if kind == Kind::Directory {
            for entry in fs::read_dir(&at).unwrap_or_else(|error| fail(error)) {
                let name = entry.unwrap_or_else(|error| fail(error)).file_name();
                pending.push(path.join(&Name::new(name.as_bytes()).expect("a name")));
            }
        }
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let (major, minor) = (rustix::fs::major(data.rdev()), rustix::fs::minor(data.rdev()));
        let is_directory = kind == Kind::Directory;
        let stat = Stat {
            kind,
            mode: (data.mode() & 0o7777) as u16,
            uid: data.uid(),
            gid: data.gid(),
            size: if is_directory { 0 } else { data.size() },
            mtime: Timestamp { seconds: data.mtime(), nanoseconds: data.mtime_nsec() as u32 },
            device: if is_device { Device { major, minor } } else { Device::default() },
            links: if is_directory { 1 } else { data.nlink() as u32 },
        };
        let mut buffer = [0; 64];
        let capability = match rustix::fs::lgetxattr(&at, CAPABILITY, &mut buffer) {
            Ok(length) => Some(buffer[..length].to_vec()),
            Err(rustix::io::Errno::NODATA) => None,
            Err(error) => fail(error.into()),
        };
        let target = (kind == Kind::Symlink)
            .then(|| fs::read_link(&at).unwrap_or_else(|error| fail(error)))
            .map(|target| target.as_os_str().as_bytes().to_vec());
        let digest = (kind == Kind::File)
            .then(|| blake3::hash(&fs::read(&at).unwrap_or_else(|error| fail(error))));
        let first = path.clone();
        found.push((data.ino(), path, Seen { stat, target, capability, digest, first }));
    }
    grouped(found)
}

/// Walks `tree`.
pub(crate) fn of_tree(tree: &dyn Tree) -> View {
    let mut found = Vec::new();
    let mut pending = vec![(RootPath::root(), tree.root())];
    while let Some((path, node)) = pending.pop() {
        let fail = |error: io::Error| -> ! { panic!("{path}: {error}") };
        let mut stat = tree.stat(node).unwrap_or_else(|error| fail(error));
        if stat.is_directory() {
            (stat.size, stat.links) = (0, 1);
            for (name, child) in tree.children(node).unwrap_or_else(|error| fail(error)) {
                pending.push((path.join(&name), child));
            }
        }
        let target = (stat.kind == Kind::Symlink)
            .then(|| tree.link_target(node).unwrap_or_else(|error| fail(error)));
        let digest = (stat.kind == Kind::File).then(|| {
            let content = tree.content(node).unwrap_or_else(|error| fail(error));
            let claimed = content.known_digest();
            let mut bytes = Vec::new();
            ContentReader::new(content).read_to_end(&mut bytes).unwrap_or_else(|error| fail(error));
            let digest = blake3::hash(&bytes);
            assert!(
                claimed.is_none_or(|claimed| digest == claimed),
                "{path} claims another digest"
            );
            digest
        });
        let capability = tree.xattr(node, CAPABILITY).unwrap_or_else(|error| fail(error));
        let first = path.clone();
        found.push((node.0, path, Seen { stat, target, capability, digest, first }));
    }
    grouped(found)
}

fn grouped(found: Vec<(u64, RootPath, Seen)>) -> View {
    let mut firsts: BTreeMap<u64, RootPath> = BTreeMap::new();
    for (node, path, _) in &found {
        let first = firsts.entry(*node).or_insert_with(|| path.clone());
        if path < first {
            *first = path.clone();
        }
    }
    let named = |(node, path, seen)| (path, Seen { first: firsts[&node].clone(), ..seen });
    found.into_iter().map(named).collect()
}

/// What of `view` a layer is there to keep (reference: what the exporter writes):
/// no sockets, whole seconds, no times of directories. How many names a file has is
/// seen by those names.
pub(crate) fn in_layers(view: &View) -> View {
    let mut kept: View =
        view.clone().into_iter().filter(|(_, seen)| seen.stat.kind != Kind::Socket).collect();
    for seen in kept.values_mut() {
        let directory = seen.stat.is_directory();
        seen.stat.mtime.seconds = if directory { 0 } else { seen.stat.mtime.seconds };
        seen.stat.mtime.nanoseconds = 0;
        seen.stat.links = 1;
    }
    kept
}

/// Fails if a file has more names than its link count says. Fewer is fine: a layer
/// doesn't know which of its names those above hide.
pub(crate) fn check_link_counts(view: &View) -> Result<(), String> {
    let mut names: BTreeMap<&RootPath, u32> = BTreeMap::new();
    for seen in view.values() {
        *names.entry(&seen.first).or_default() += 1;
    }
    for (path, seen) in view {
        if !seen.stat.is_directory() && names[&seen.first] > seen.stat.links {
            return Err(format!("{path} has {} names: {seen:?}", names[&seen.first]));
        }
    }
    Ok(())
}

/// Fails with the first few paths where two views differ.
pub(crate) fn compare(left: (&str, &View), right: (&str, &View)) -> Result<(), String> {
    let mut lines = Vec::new();
    let paths: std::collections::BTreeSet<_> = left.1.keys().chain(right.1.keys()).collect();
    for path in paths {
        let (one, two) = (left.1.get(path), right.1.get(path));
        if one != two {
            lines.push(format!("{path:?}\n  {}: {one:?}\n  {}: {two:?}", left.0, right.0));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    let count = lines.len();
    lines.truncate(8);
    Err(format!("{count} paths differ:\n{}", lines.join("\n")))
}

/// Fails if what the kernel had cached isn't what a fresh mount shows.
pub(crate) fn compare_cached(mut cached: View, shown: &View) -> Result<(), String> {
    // When one thread asks for the time of a directory while another makes an entry
    // in it, the kernel may take the answers in the wrong order and keep the old time.
    for (path, seen) in &mut cached {
        if seen.stat.is_directory()
            && let Some(now) = shown.get(path)
            && seen.stat.mtime <= now.stat.mtime
        {
            seen.stat.mtime = now.stat.mtime;
        }
    }
    compare(("cached", &cached), ("remounted", shown))
}

/// Fails with all changes that are in one set alone, bytes included.
pub(crate) fn compare_sets(
    left: (&str, &ChangeSet),
    right: (&str, &ChangeSet),
) -> Result<(), String> {
    let (one, two) = (lines(left.1), lines(right.1));
    if one == two {
        return Ok(());
    }
    let mut report = format!("{} and {} differ:\n", left.0, right.0);
    for (name, lines, others) in [(left.0, &one, &two), (right.0, &two, &one)] {
        for line in lines.iter().filter(|line| !others.contains(line)) {
            report += &format!("{name}: {line}\n");
        }
    }
    Err(report)
}

/// A set in full, one line for each change.
fn lines(set: &ChangeSet) -> Vec<String> {
    let line = |change: &Change| match change {
        Change::Delete(path) => format!("- {path:?}"),
        Change::Put(put) => {
            let digest = put.content.clone().map(|content| {
                let mut bytes = Vec::new();
                ContentReader::new(content).read_to_end(&mut bytes).expect("readable");
                blake3::hash(&bytes)
            });
            let (stat, target, capability) = (&put.stat, &put.link_target, &put.capability);
            format!("+ {:?} {:?} {stat:?} {target:?} {capability:?} {digest:?}", put.path, put.node)
        }
    };
    set.changes.iter().map(line).collect()
}

fn kind_of(kind: fs::FileType) -> Kind {
    match kind {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => Kind::Symlink,
        kind if kind.is_char_device() => Kind::CharDevice,
        kind if kind.is_block_device() => Kind::BlockDevice,
        kind if kind.is_fifo() => Kind::Fifo,
        _ => Kind::Socket,
    }
}
