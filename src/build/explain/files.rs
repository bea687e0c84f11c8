//! Lists of the files that a step reads, as they are kept and compared.

use std::collections::BTreeMap;
use std::collections::HashMap;

use super::reason::FileChange;
use super::reason::MissReason;
use crate::path::RootPath;
use crate::step::select::Listed;
use crate::tree::Kind;

/// Files that are kept of one selection: more are told by their number only.
pub(super) const MOST_KEPT: usize = 100_000;

/// Files that are told one by one.
const MOST_TOLD: usize = 10;

/// First line of a list, for the next format to have another.
const HEADER: &[u8] = b"yadokari files 1\n";

/// A list as bytes: for each file kind, mode, owner, digest and path, NUL behind it.
pub(super) fn encode(files: &[Listed], is_whole: bool) -> Vec<u8> {
    use std::io::Write;
    let mut bytes = HEADER.to_vec();
    bytes.push(if is_whole { b'=' } else { b'>' });
    for file in files {
        let (uid, gid) = file.owner;
        let digest: String = file.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        write!(bytes, "{} {:o} {uid} {gid} {digest} ", letter(file.kind), file.mode)
            .expect("memory takes any bytes");
        bytes.extend_from_slice(file.path.as_bytes());
        bytes.push(0);
    }
    bytes
}

/// Reads what [`encode`] wrote; `None` for anything else.
pub(super) fn decode(bytes: &[u8]) -> Option<(Vec<Listed>, bool)> {
    let (mark, rest) = bytes.strip_prefix(HEADER)?.split_first()?;
    let mut files = Vec::new();
    for line in rest.split(|&byte| byte == 0).filter(|line| !line.is_empty()) {
        let mut words = line.splitn(6, |&byte| byte == b' ');
        let mut text = || std::str::from_utf8(words.next()?).ok();
        let kind = kind(text()?)?;
        let mode = u16::from_str_radix(text()?, 8).ok()?;
        let owner = (text()?.parse().ok()?, text()?.parse().ok()?);
        let digest = u128::from_str_radix(text()?, 16).ok()?.to_be_bytes();
        let path = RootPath::clamped(words.next()?)?;
        files.push(Listed { path, kind, mode, owner, digest });
    }
    Some((files, *mark == b'='))
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::File => 'f',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    }
}

fn kind(letter: &str) -> Option<Kind> {
    Some(match letter {
        "f" => Kind::File,
        "d" => Kind::Directory,
        "l" => Kind::Symlink,
        "c" => Kind::CharDevice,
        "b" => Kind::BlockDevice,
        "p" => Kind::Fifo,
        "s" => Kind::Socket,
        _ => return None,
    })
}

/// How `new` differs from `old`, in the order of paths: the first few one by one,
/// then how many more. Directories that come or go with their files aren't told.
pub(super) fn compare(old: &[Listed], new: &[Listed]) -> Vec<MissReason> {
    let by_path = |files: &[Listed]| -> BTreeMap<RootPath, Listed> {
        files.iter().map(|file| (file.path.clone(), file.clone())).collect()
    };
    let (old, new) = (by_path(old), by_path(new));
    let mut removed: BTreeMap<&RootPath, &Listed> =
        old.iter().filter(|(path, _)| !new.contains_key(*path)).collect();
    let mut gone: HashMap<[u8; 16], Vec<&RootPath>> = HashMap::new();
    for (path, file) in removed.iter().rev().filter(|(_, file)| file.kind == Kind::File) {
        gone.entry(file.digest).or_default().push(path);
    }
    let mut changes: BTreeMap<&RootPath, FileChange> = BTreeMap::new();
    for (path, file) in &new {
        let change = match old.get(path) {
            Some(before) => match changed(before, file) {
                Some(change) => change,
                None => continue,
            },
            None => match gone.get_mut(&file.digest).and_then(Vec::pop) {
                Some(from) if file.kind == Kind::File => {
                    removed.remove(from);
                    FileChange::Renamed { from: shown(from) }
                }
                _ => FileChange::Added,
            },
        };
        changes.insert(path, change);
    }
    changes.extend(removed.keys().map(|path| (*path, FileChange::Removed)));
    let is_directory = |path: &RootPath| {
        let either = new.get(path).or_else(|| old.get(path));
        either.is_some_and(|file| file.kind == Kind::Directory)
    };
    let comes_along = |path: &RootPath, change: &FileChange| {
        matches!(change, FileChange::Added | FileChange::Removed)
            && is_directory(path)
            && changes
                .range::<RootPath, _>((std::ops::Bound::Excluded(path), std::ops::Bound::Unbounded))
                .next()
                .is_some_and(|(next, _)| next.starts_with(path))
    };
    let told: Vec<(&RootPath, &FileChange)> = changes
        .iter()
        .filter(|(path, change)| !comes_along(path, change))
        .map(|(path, change)| (*path, change))
        .collect();
    let mut reasons: Vec<MissReason> = told
        .iter()
        .take(MOST_TOLD)
        .map(|(path, change)| MissReason::FileChanged {
            path: shown(path),
            change: (*change).clone(),
        })
        .collect();
    if told.len() > MOST_TOLD {
        reasons.push(MissReason::FilesChanged { count: Some(told.len() - MOST_TOLD) });
    }
    reasons
}

fn changed(old: &Listed, new: &Listed) -> Option<FileChange> {
    if old.kind != new.kind {
        return Some(FileChange::Kind);
    }
    if old.digest != new.digest {
        return Some(FileChange::Content);
    }
    if old.mode != new.mode {
        let octal = |mode: u16| format!("{mode:04o}");
        return Some(FileChange::Mode { old: octal(old.mode), new: octal(new.mode) });
    }
    (old.owner != new.owner).then_some(FileChange::Owner)
}

/// A path as the Dockerfile would name it: relative to the context.
fn shown(path: &RootPath) -> String {
    if path.is_root() {
        return ".".to_owned();
    }
    String::from_utf8_lossy(path.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, mode: u16, content: u8) -> Listed {
        let path = RootPath::clamped(path.as_bytes()).unwrap();
        Listed { path, kind: Kind::File, mode, owner: (0, 0), digest: [content; 16] }
    }

    fn directory(path: &str) -> Listed {
        Listed { kind: Kind::Directory, ..file(path, 0o755, 0) }
    }

    fn said(old: &[Listed], new: &[Listed]) -> Vec<String> {
        compare(old, new).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn lists_survive_a_round_trip_and_damage_is_nothing() {
        let odd = RootPath::clamped(b"a b\n\xff").unwrap();
        let files = [Listed { path: odd, ..file("x", 0o4755, 9) }, directory("d")];
        let bytes = encode(&files, false);
        assert_eq!(decode(&bytes), Some((files.to_vec(), false)));
        assert_eq!(decode(b""), None);
        assert_eq!(decode(b"yadokari files 1\n=x"), None);
        for cut in 0..bytes.len() {
            let _ = decode(&bytes[..cut]);
        }
    }

    #[test]
    fn each_way_to_differ_has_its_words() {
        let old =
            [file("a", 0o644, 1), file("b", 0o644, 2), file("c", 0o644, 3), file("d", 0o600, 4)];
        let new =
            [file("a", 0o755, 1), file("b", 0o644, 9), file("d", 0o600, 4), file("z", 0o644, 3)];
        assert_eq!(
            said(&old, &new),
            ["a: mode 0644 → 0755", "b: content changed", "z: renamed from c"]
        );
        assert_eq!(said(&old[..1], &old[..2]), ["b: added"]);
        assert_eq!(said(&old[..2], &old[..1]), ["b: removed"]);
        let link = Listed { kind: Kind::Symlink, ..file("a", 0o644, 1) };
        assert_eq!(said(&old[..1], &[link]), ["a: type changed"]);
        assert_eq!(said(&old, &old), Vec::<String>::new());
    }

    #[test]
    fn directories_are_told_only_by_themselves() {
        let old = [directory("d"), file("d/f", 0o644, 1)];
        assert_eq!(said(&[], &old), ["d/f: added"]);
        assert_eq!(said(&old, &[]), ["d/f: removed"]);
        assert_eq!(said(&[], &old[..1]), ["d: added"]);
    }

    #[test]
    fn many_changes_are_counted() {
        let new: Vec<Listed> = (0..25).map(|n| file(&format!("{n:02}"), 0o644, n)).collect();
        let said = said(&[], &new);
        assert_eq!(said.len(), 11);
        assert_eq!(said[10], "15 more files changed");
    }
}
