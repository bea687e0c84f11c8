//! Path resolution inside a tree, as `chroot(2)` would do it: absolute link
//! targets start at the tree's root and `..` stops there (path_resolution(7)).

use std::collections::VecDeque;
use std::io;

use super::Kind;
use super::NodeId;
use super::Tree;
use crate::path::Name;
use crate::path::RootPath;

/// Links followed before giving up, as Linux does (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;

/// Where a path leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The path with every link on the way replaced. Where something on the way
    /// is missing, the rest is appended as it is.
    pub path: RootPath,
    /// What is there, if anything is.
    pub node: Option<NodeId>,
}

/// Resolves `path` in `tree`, following links in every directory part, and in the
/// last component too if `follow_last`.
///
/// # Errors
/// `FilesystemLoop` (`ELOOP`) after 40 links; `InvalidInput` for a link target
/// with a NUL byte; those of reading the tree.
pub fn resolve(tree: &dyn Tree, path: &RootPath, follow_last: bool) -> io::Result<Resolved> {
    let mut ahead: VecDeque<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
    let mut trail: Vec<(Vec<u8>, Option<NodeId>)> = Vec::new();
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        match part.as_slice() {
            b"" | b"." => continue,
            b".." => {
                trail.pop();
                continue;
            }
            _ => {}
        }
        let parent = trail.last().map_or(Some(tree.root()), |(_, node)| *node);
        let node = match parent {
            Some(parent) => tree.child(parent, &part)?,
            None => None,
        };
        if let Some(node) = node
            && (follow_last || !ahead.is_empty())
            && tree.stat(node)?.kind == Kind::Symlink
        {
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            let target = tree.link_target(node)?;
            if target.contains(&0) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            if target.first() == Some(&b'/') {
                trail.clear();
            }
            for part in target.split(|&byte| byte == b'/').rev() {
                ahead.push_front(part.to_vec());
            }
            continue;
        }
        trail.push((part, node));
    }
    let node = trail.last().map_or(Some(tree.root()), |(_, node)| *node);
    let path = trail.iter().fold(RootPath::root(), |path, (part, _)| {
        Name::new(part).map_or(path.clone(), |name| path.join(&name))
    });
    Ok(Resolved { path, node })
}

/// Reads a whole file of `tree`, links followed; `None` if there is no such file.
///
/// # Errors
/// `InvalidData` if it is longer than `limit` bytes; those of resolving and reading.
pub fn read_file(tree: &dyn Tree, path: &RootPath, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(node) = resolve(tree, path, true)?.node else { return Ok(None) };
    if tree.stat(node)?.kind != Kind::File {
        return Ok(None);
    }
    let content = tree.content(node)?;
    if content.len() > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{path} is longer than {limit} bytes"),
        ));
    }
    let mut bytes = vec![0; usize::try_from(content.len()).unwrap_or(usize::MAX)];
    super::read_exact_at(&content, &mut bytes, 0)?;
    Ok(Some(bytes))
}
