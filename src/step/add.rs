//! ADD of local archives: found by content, unpacked into the destination.
//!
//! Entries are put into the root one by one through the overlay's own table. Their
//! names can't leave the root: `..` is refused, and links on the way are resolved
//! inside the root.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::io::BufReader;
use std::io::Read;
use std::io::Seek;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::Error;
use super::copy::Rules;
use super::copy::make_directories;
use super::copy::replace_directories;
use super::select::Item;
use super::select::Selection;
use super::source::Source;
use crate::ignore::Matcher;
use crate::layer::decompress::archive_reader;
use crate::overlay::Attributes;
use crate::overlay::Overlay;
use crate::path::RootPath;
use crate::plan::step::CopyStep;
use crate::tree::Content;
use crate::tree::ContentReader;
use crate::tree::Device;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::ReadAt;
use crate::tree::Timestamp;
use crate::tree::resolve::resolve;

/// Runs an ADD: archives are unpacked, everything else is copied as COPY does.
///
/// `scratch` is a directory of this build; decompressed archives lie there for as
/// long as the root uses them.
///
/// # Errors
/// As [`super::copy::copy`], and [`Error::Archive`].
pub fn add(
    root: &Overlay,
    step: &CopyStep,
    source: &Source<'_>,
    selection: Selection,
    exclude: Option<&Matcher>,
    now: Timestamp,
    scratch: &Path,
) -> Result<(), Error> {
    let rules = Rules::new(step, root, source.resets_owner(), now)?;
    // Sources go in one after another, so a later one wins over an earlier one.
    for item in selection.items {
        if let Item::Whole { named, node } = &item
            && step.unpack != Some(false)
            && let Some(archive) = open_archive(source, named, *node, scratch)?
        {
            unpack(root, step, &rules, &named.to_string(), &archive)?;
            continue;
        }
        let single = Selection { items: vec![item] };
        super::copy::copy(root, step, source, &single, exclude, now)?;
    }
    Ok(())
}

/// A plain tar in a file of its own.
fn open_archive(
    source: &Source<'_>,
    named: &RootPath,
    node: NodeId,
    scratch: &Path,
) -> Result<Option<Arc<File>>, Error> {
    let tree = source.tree();
    let stat = tree.stat(node).map_err(Error::io("look up", named))?;
    if stat.kind != Kind::File {
        return Ok(None);
    }
    let content = tree.content(node).map_err(Error::io("read", named))?;
    let reader = archive_reader(ContentReader::new(content)).map_err(Error::io("read", named))?;
    let Some(mut reader) = reader else { return Ok(None) };
    let damaged =
        |error: io::Error| Error::Archive { archive: named.to_string(), reason: error.to_string() };
    let mut plain =
        tempfile::tempfile_in(scratch).map_err(Error::io("make a file in", scratch.display()))?;
    io::copy(&mut reader, &mut plain).map_err(damaged)?;
    Ok(Some(Arc::new(plain)))
}

/// A part of a file.
struct Slice {
    file: Arc<File>,
    offset: u64,
    length: u64,
}

impl ReadAt for Slice {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.length.saturating_sub(offset);
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.read_at(&mut buffer[..wanted], self.offset + offset)
    }
}

/// A number of a header; a field that was left blank is 0, as other readers have it.
fn numeric(field: &[u8], read: io::Result<u64>) -> io::Result<u64> {
    let is_blank = field.iter().all(|byte| matches!(byte, 0 | b' '));
    if is_blank { Ok(0) } else { read }
}

fn unpack(
    root: &Overlay,
    step: &CopyStep,
    rules: &Rules,
    named: &str,
    archive: &Arc<File>,
) -> Result<(), Error> {
    let damaged = |reason: String| Error::Archive { archive: named.to_owned(), reason };
    let destination = RootPath::clamped(step.destination.as_bytes()).unwrap_or_default();
    let mut fresh = HashSet::new();
    let mut directories_to = |path: &RootPath, attributes: &Attributes| {
        if step.link {
            replace_directories(root, path, attributes, &mut fresh)
        } else {
            make_directories(root, path, attributes)
        }
    };
    let destination = if step.link {
        destination
    } else {
        resolve(&*root.after(), &destination, true)
            .map_err(Error::io("look up", &destination))?
            .path
    };
    directories_to(&destination, &rules.created())?;

    let mut file = archive.try_clone().map_err(Error::io("read", named))?;
    file.rewind().map_err(Error::io("read", named))?;
    let mut tar = tar::Archive::new(BufReader::with_capacity(1 << 16, file));
    let owner = step.chown.as_ref().map(|_| {
        let created = rules.created();
        (created.uid, created.gid)
    });
    let mut directories: Vec<(NodeId, RootPath, Attributes)> = Vec::new();
    let mut made: HashMap<RootPath, NodeId> = HashMap::new();
    for entry in tar.entries().map_err(|error| damaged(error.to_string()))? {
        let mut entry = entry.map_err(|error| damaged(error.to_string()))?;
        let raw = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let trimmed: &[u8] = {
            let start = raw.iter().position(|&byte| byte != b'/').unwrap_or(raw.len());
            &raw[start..]
        };
        let relative = RootPath::strict(trimmed)
            .ok_or_else(|| damaged(format!("entry `{shown}` leads out of the archive")))?;
        let mut capability = None;
        if let Some(extensions) =
            entry.pax_extensions().map_err(|error| damaged(error.to_string()))?
        {
            for extension in extensions {
                let extension = extension.map_err(|error| damaged(error.to_string()))?;
                match extension.key_bytes() {
                    b"SCHILY.xattr.security.capability" => {
                        capability = Some(extension.value_bytes().to_vec());
                    }
                    key if key.starts_with(b"GNU.sparse.") => {
                        return Err(damaged(format!(
                            "entry `{shown}` is a sparse file in PAX form, which is not supported; \
                             pack it with --format=gnu"
                        )));
                    }
                    _ => {}
                }
            }
        }
        let header = entry.header().clone();
        let number = |value: io::Result<u64>| {
            value.map_err(|error| damaged(format!("entry `{shown}`: {error}")))
        };
        let old = header.as_old();
        let (uid, gid) = match owner {
            Some(owner) => owner,
            None => (
                u32::try_from(number(numeric(&old.uid, entry.header().uid()))?).unwrap_or(u32::MAX),
                u32::try_from(number(numeric(&old.gid, entry.header().gid()))?).unwrap_or(u32::MAX),
            ),
        };
        let mode = header.mode().map_err(|error| damaged(format!("entry `{shown}`: {error}")))?;
        let attributes = Attributes {
            mode: (mode & 0o7777) as u16,
            uid,
            gid,
            mtime: Timestamp::seconds(
                i64::try_from(number(numeric(&old.mtime, header.mtime()))?).unwrap_or_default(),
            ),
        };
        let Some(name) = relative.file_name() else {
            if header.entry_type().is_dir() {
                let node = directories_to(&destination, &attributes)?;
                directories.push((node, destination.clone(), attributes));
            }
            continue;
        };
        let parent = destination.join_path(&relative.parent().unwrap_or_default());
        let directory = directories_to(
            &parent,
            &Attributes { mode: 0o755, uid: 0, gid: 0, mtime: rules.created().mtime },
        )?;
        let path = parent.join(&name);
        let there =
            root.after().child(directory, name.as_bytes()).map_err(Error::io("look up", &path))?;
        let mut existing = None;
        if let Some(node) = there {
            let stat = root.after().stat(node).map_err(Error::io("look up", &path))?;
            if stat.is_directory() && header.entry_type().is_dir() {
                existing = Some(node);
            } else {
                root.remove(directory, &name).map_err(Error::io("replace", &path))?;
            }
        }
        let write = || Error::io("write", &path);
        use tar::EntryType;
        let node = match header.entry_type() {
            EntryType::Directory => {
                let node = match existing {
                    Some(node) => node,
                    None => root.make_directory(directory, &name, &attributes).map_err(write())?,
                };
                directories.push((node, path.clone(), attributes));
                node
            }
            EntryType::Regular | EntryType::Continuous => {
                let content: Content = Arc::new(Slice {
                    file: Arc::clone(archive),
                    offset: entry.raw_file_position(),
                    length: entry.size(),
                });
                root.put_file(directory, &name, &attributes, content).map_err(write())?
            }
            EntryType::GNUSparse => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(|error| damaged(error.to_string()))?;
                root.put_file(directory, &name, &attributes, Arc::new(bytes)).map_err(write())?
            }
            EntryType::Symlink => {
                let target = entry
                    .link_name_bytes()
                    .ok_or_else(|| damaged(format!("link `{shown}` has no target")))?;
                root.put_symlink(directory, &name, &attributes, &target).map_err(write())?
            }
            EntryType::Link => {
                let target = entry
                    .link_name_bytes()
                    .and_then(|target| {
                        let target = target.strip_prefix(b"/").unwrap_or(&target).to_vec();
                        RootPath::strict(&target)
                    })
                    .ok_or_else(|| damaged(format!("link `{shown}` leads out of the archive")))?;
                let target_path = destination.join_path(&target);
                let node = made
                    .get(&target)
                    .copied()
                    .or(root.after().find(&target_path).map_err(write())?)
                    .ok_or_else(|| {
                        damaged(format!("`{shown}` is a link to `{target}`, which isn't there"))
                    })?;
                root.link(node, directory, &name).map_err(write())?;
                node
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let kind = match header.entry_type() {
                    EntryType::Char => Kind::CharDevice,
                    EntryType::Block => Kind::BlockDevice,
                    _ => Kind::Fifo,
                };
                let device = Device {
                    major: header.device_major().ok().flatten().unwrap_or_default(),
                    minor: header.device_minor().ok().flatten().unwrap_or_default(),
                };
                root.put_special(directory, &name, &attributes, kind, device).map_err(write())?
            }
            _ => continue,
        };
        if let Some(capability) = capability {
            root.set_xattr(node, b"security.capability", &capability).map_err(write())?;
        }
        made.insert(relative, node);
    }
    for (node, path, attributes) in directories.iter().rev() {
        root.set_attributes(*node, attributes).map_err(Error::io("change", path))?;
    }
    Ok(())
}
