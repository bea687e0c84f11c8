//! A foreign layer is indexed while its bytes pass by.
//!
//! The tar is copied as it is, because its diff ID is the SHA-256 of these very
//! bytes; contents stay where they are in it. What a layer means follows the OCI
//! image specification, layer.md, and containerd's applier; what it refuses is
//! listed in [`Fault`]: above all nothing of a layer reaches outside its root,
//! and no entry is placed through a symbolic link of the same layer.

use std::collections::HashMap;
use std::io::Read;
use std::io::Write;

use crate::layer::Written;
use crate::layer::error::Error;
use crate::layer::error::Fault;
use crate::layer::index::Body;
use crate::layer::index::Builder;
use crate::layer::index::Extent;
use crate::layer::index::Node;
use crate::layer::whiteout;
use crate::layer::whiteout::Mark;
use crate::path::RootPath;
use crate::tree::Kind;
use crate::tree::Stat;

mod archive;
mod fields;
mod pax;
mod sparse;
mod tap;

use archive::Archive;
use archive::Member;

/// Longest path or link target, `PATH_MAX` of limits.h.
const MAX_PATH: usize = 4096;
/// Longest single name, `NAME_MAX` of limits.h.
const MAX_NAME: usize = 255;

/// Copies the uncompressed layer `tar` byte for byte to `out`, to its very end,
/// and indexes it on the way. Flushes `out` at the end.
///
/// A leading `/` or `./` of a name is dropped, as every unpacker does; directories
/// that are missing are implied; of two entries with one path the last one wins.
///
/// # Errors
/// [`Error::Read`] from `tar`, [`Error::Write`] from `out`, [`Error::Entry`] for
/// whatever is damaged, cut short or refused. `out` then holds a part of the layer.
pub fn read(tar: impl Read, out: impl Write) -> Result<Written, Error> {
    index(tar, out, true)
}

/// Like [`read`], for an archive that is no layer (`ADD archive.tar /`): names
/// that begin with `.wh.` are ordinary names.
///
/// # Errors
/// Those of [`read`].
pub fn read_archive(tar: impl Read, out: impl Write) -> Result<Written, Error> {
    index(tar, out, false)
}

/// Whether `bytes` begin with the header of a tar entry.
pub(super) fn is_header(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|block: &fields::Block| {
        block.iter().any(|&byte| byte != 0) && fields::checksum_matches(block)
    })
}

fn index(tar: impl Read, out: impl Write, whiteouts: bool) -> Result<Written, Error> {
    let mut archive = Archive::new(tar, out);
    let mut reader = Reader { index: Builder::new(), metadata: HashMap::new(), whiteouts };
    let mut entries = 0;
    while let Some(member) = archive.next()? {
        entries += 1;
        let body = body(&mut archive, &member)?;
        reader.place(&member, body).map_err(|fault| member.error(fault))?;
    }
    let (diff_id, size) = archive.finish()?;
    Ok(Written { diff_id, size, index: reader.index.finish()?, entries })
}

/// What the entry holds; reads the content of a file. `None` for hard links.
fn body<R: Read, W: Write>(
    archive: &mut Archive<R, W>,
    member: &Member,
) -> Result<Option<Body>, Error> {
    let kind = match member.kind {
        Some(kind) => kind,
        None => return Ok(None),
    };
    Ok(Some(match kind {
        Kind::Directory => Body::Directory,
        Kind::Symlink => Body::Symlink(member.link.clone()),
        Kind::File => match &member.sparse {
            Some(extents) => Body::File { extents: extents.clone(), digest: None },
            None => {
                let (position, length) = (archive.position(), member.stored);
                let digest = archive.hash_content(member)?;
                let extent = Extent { file_offset: 0, blob_offset: position, length };
                let extents = if length == 0 { Vec::new() } else { vec![extent] };
                Body::File { extents, digest: Some(digest) }
            }
        },
        Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => Body::Special,
    }))
}

struct Reader {
    index: Builder,
    /// Files in aufs bookkeeping: no part of the root, but hard links may mean them.
    metadata: HashMap<RootPath, u32>,
    whiteouts: bool,
}

impl Reader {
    fn place(&mut self, member: &Member, body: Option<Body>) -> Result<(), Fault> {
        let path = inside(&member.name)?;
        if self.whiteouts {
            if whiteout::is_metadata(&path) {
                if let Some(body) = body {
                    let node = self.index.add(node(member, body))?;
                    self.metadata.insert(path, node);
                }
                return Ok(());
            }
            let name = path.components().next_back().unwrap_or_default();
            match whiteout::mark(name) {
                Mark::None => {}
                Mark::Deleted(name) => {
                    let parent = path.parent().unwrap_or_default();
                    return self.index.whiteout(&parent.join(&name));
                }
                Mark::Opaque => return self.index.opaque(&path.parent().unwrap_or_default()),
                Mark::Metadata | Mark::Invalid => return Err(Fault::Name),
            }
        }
        if let Some(body) = body {
            return self.index.put(&path, node(member, body)).map(|_| ());
        }
        let target = inside(&member.link)?;
        if self.whiteouts && whiteout::is_metadata(&target) {
            let node = *self.metadata.get(&target).ok_or(Fault::LinkToMetadata)?;
            return self.index.link_node(&path, node);
        }
        if target == path {
            // Nothing to do for a file of this layer; below, there is nothing new to say.
            return Ok(());
        }
        self.index.link(&path, &target)
    }
}

fn node(member: &Member, body: Body) -> Node {
    let size = match &body {
        Body::File { .. } => member.size,
        Body::Symlink(target) => target.len() as u64,
        Body::Directory | Body::Special => 0,
    };
    let stat = Stat {
        kind: member.kind.unwrap_or(Kind::File),
        mode: member.mode,
        uid: member.uid,
        gid: member.gid,
        size,
        mtime: member.mtime,
        device: member.device,
        links: 1,
    };
    Node { stat, xattrs: member.xattrs.clone(), body }
}

/// Takes a name of a tar as a path inside its root.
fn inside(name: &[u8]) -> Result<RootPath, Fault> {
    if name.is_empty() || name.contains(&0) {
        return Err(Fault::Name);
    }
    if name.len() > MAX_PATH {
        return Err(Fault::TooLarge("the path"));
    }
    let start = name.iter().position(|&byte| byte != b'/').unwrap_or(name.len());
    let path = RootPath::strict(&name[start..]).ok_or(Fault::Escapes)?;
    if path.components().any(|component| component.len() > MAX_NAME) {
        return Err(Fault::TooLarge("a name in the path"));
    }
    Ok(path)
}
