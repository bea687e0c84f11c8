//! A change set becomes a tar and its index, in one pass.
//!
//! The bytes are those that BuildKit's containerd differ would write for the
//! same changes, so equal sets give equal layers here and there: names without
//! `./`, directories with a slash at the end, whole seconds, no user names, no
//! extended attribute but `security.capability`, hard links to the first name in
//! path order, two zero blocks at the end.

use std::collections::HashMap;
use std::io;
use std::io::Write;

use sha2::Digest as _;
use sha2::Sha256;

use crate::change::Change;
use crate::change::ChangeSet;
use crate::change::Put;
use crate::layer::Written;
use crate::layer::error::Error;
use crate::layer::error::Fault;
use crate::layer::header;
use crate::layer::header::BLOCK;
use crate::layer::header::Header;
use crate::layer::index::Body;
use crate::layer::index::Builder;
use crate::layer::index::Extent;
use crate::layer::index::Node;
use crate::layer::whiteout;
use crate::oci::digest::DiffId;
use crate::path::RootPath;
use crate::tree::Content;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::Timestamp;

/// Bytes gathered before the sink sees them: a layer of small files reaches it in
/// large writes, and headers and contents are gathered without another copy.
const BUFFER: usize = 256 << 10;

/// Choices that change the bytes of a layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Latest modification time that may appear, in seconds since the epoch
    /// (`SOURCE_DATE_EPOCH`); later ones become this.
    pub clamp: Option<i64>,
}

/// Writes `set` as a tar to `out`, streamed: memory doesn't grow with contents.
/// Sockets are left out. Flushes `out` at the end.
///
/// # Errors
/// [`Error::Write`] from `out`, [`Error::Content`] from a content,
/// [`Error::ContentChanged`] when one isn't as long as its `stat` says or doesn't
/// have the digest it claims, [`Error::Unrepresentable`] for what no layer can
/// hold: a name that begins with `.wh.`, or a file without content.
pub fn write(set: &ChangeSet, options: &WriteOptions, out: impl Write) -> Result<Written, Error> {
    let mut writer = Writer {
        sink: Sink::new(out),
        index: Builder::new(),
        linked: HashMap::new(),
        clamp: options.clamp,
        entries: 0,
    };
    for change in &set.changes {
        match change {
            Change::Delete(path) => writer.delete(path)?,
            Change::Put(put) => writer.put(put)?,
        }
    }
    writer.sink.buffer.resize(writer.sink.buffer.len() + 2 * BLOCK, 0);
    let (diff_id, size) = writer.sink.finish().map_err(Error::Write)?;
    Ok(Written { diff_id, size, index: writer.index.finish()?, entries: writer.entries })
}

struct Writer<'a, W> {
    sink: Sink<W>,
    index: Builder,
    /// First name and number in the index of each node that may have further names.
    linked: HashMap<NodeId, (&'a RootPath, u32)>,
    clamp: Option<i64>,
    entries: u64,
}

impl<'a, W: Write> Writer<'a, W> {
    fn delete(&mut self, path: &RootPath) -> Result<(), Error> {
        let name = whiteout::tar_name(path)
            .ok_or_else(|| unrepresentable(path, "the root cannot be deleted"))?;
        check_name(path)?;
        self.header(path, &Header { name: &name, flag: b'0', ..Header::default() })?;
        self.index.whiteout(path).map_err(|fault| out_of_order(path, &fault))
    }

    fn put(&mut self, put: &'a Put) -> Result<(), Error> {
        let path = &put.path;
        if put.stat.kind == Kind::Socket {
            return Ok(());
        }
        check_name(path)?;
        let name = tar_name(put);
        let mtime = self.mtime(put);
        let common = Header {
            name: &name,
            mode: put.stat.mode & 0o7777,
            uid: put.stat.uid,
            gid: put.stat.gid,
            mtime,
            capability: put.capability.as_deref(),
            device: match put.stat.kind {
                Kind::CharDevice | Kind::BlockDevice => put.stat.device,
                _ => crate::tree::Device::default(),
            },
            ..Header::default()
        };
        if let Some(&(first, node)) = self.linked.get(&put.node) {
            self.header(path, &Header { link: first.as_bytes(), flag: b'1', ..common })?;
            return self.index.link_node(path, node).map_err(|fault| out_of_order(path, &fault));
        }
        let body = match put.stat.kind {
            Kind::Directory => {
                self.header(path, &Header { flag: b'5', ..common })?;
                Body::Directory
            }
            Kind::File => {
                let size = put.stat.size;
                self.header(path, &Header { flag: b'0', size, ..common })?;
                self.content(put)?
            }
            Kind::Symlink => {
                let link = put.link_target.as_deref().unwrap_or_default();
                if link.is_empty() {
                    return Err(unrepresentable(path, "it is a link without target"));
                }
                self.header(path, &Header { link, flag: b'2', ..common })?;
                Body::Symlink(link.to_vec())
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Socket => {
                let flag = match put.stat.kind {
                    Kind::CharDevice => b'3',
                    Kind::BlockDevice => b'4',
                    _ => b'6',
                };
                self.header(path, &Header { flag, ..common })?;
                Body::Special
            }
        };
        let mut stat = put.stat;
        stat.mode &= 0o7777;
        stat.mtime = Timestamp::seconds(mtime);
        stat.size = match &body {
            Body::File { .. } => stat.size,
            Body::Symlink(target) => target.len() as u64,
            Body::Directory | Body::Special => 0,
        };
        stat.device = common.device;
        let xattrs = put.capability.iter().map(|value| (CAPABILITY.to_vec(), value.clone()));
        let node = Node { stat, xattrs: xattrs.collect(), body };
        let number = self.index.put(path, node).map_err(|fault| out_of_order(path, &fault))?;
        if put.stat.kind != Kind::Directory {
            self.linked.insert(put.node, (path, number));
        }
        Ok(())
    }

    fn mtime(&self, put: &Put) -> i64 {
        let seconds = put.stat.mtime.seconds;
        self.clamp.map_or(seconds, |clamp| seconds.min(clamp))
    }

    fn header(&mut self, path: &RootPath, header: &Header<'_>) -> Result<(), Error> {
        self.entries += 1;
        self.sink.make_room().map_err(Error::Write)?;
        header::encode(header, &mut self.sink.buffer)
            .map_err(|reason| unrepresentable(path, reason))
    }

    /// Copies the bytes of a file behind its header.
    fn content(&mut self, put: &Put) -> Result<Body, Error> {
        let size = put.stat.size;
        let changed = || Error::ContentChanged { path: put.path.clone() };
        let empty: Content;
        let content = match &put.content {
            Some(content) => content,
            None if size == 0 => {
                empty = std::sync::Arc::new(Vec::new());
                &empty
            }
            None => return Err(unrepresentable(&put.path, "it is a file without content")),
        };
        if content.len() != size {
            return Err(changed());
        }
        let extents = match size {
            0 => Vec::new(),
            _ => vec![Extent { file_offset: 0, blob_offset: self.sink.position(), length: size }],
        };
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        while offset < size {
            let room = self.sink.room().map_err(Error::Write)?;
            let wanted = usize::try_from(size - offset).unwrap_or(usize::MAX).min(room);
            let start = self.sink.buffer.len();
            self.sink.buffer.resize(start + wanted, 0);
            let count = content
                .read_at(&mut self.sink.buffer[start..], offset)
                .map_err(|source| Error::Content { path: put.path.clone(), source })?;
            if count == 0 {
                return Err(changed());
            }
            self.sink.buffer.truncate(start + count);
            hasher.update(&self.sink.buffer[start..]);
            offset += count as u64;
        }
        self.sink.buffer.resize(self.sink.buffer.len() + header::padding(size), 0);
        let digest = *hasher.finalize().as_bytes();
        if content.known_digest().is_some_and(|known| known != digest) {
            return Err(changed());
        }
        Ok(Body::File { extents, digest: Some(digest) })
    }
}

const CAPABILITY: &[u8] = b"security.capability";

/// The name of an entry as a tar has it.
fn tar_name(put: &Put) -> Vec<u8> {
    let mut name = put.path.as_bytes().to_vec();
    if name.is_empty() {
        name.push(b'.');
    }
    if put.stat.is_directory() {
        name.push(b'/');
    }
    name
}

/// Refuses names that would be read as whiteouts.
fn check_name(path: &RootPath) -> Result<(), Error> {
    match path.components().next_back() {
        Some(name) if whiteout::is_reserved(name) => {
            Err(unrepresentable(path, "its name begins with `.wh.`, which marks deletions"))
        }
        _ => Ok(()),
    }
}

fn unrepresentable(path: &RootPath, reason: &'static str) -> Error {
    Error::Unrepresentable { path: path.clone(), reason }
}

/// What the index refuses isn't a change set in canonical form.
fn out_of_order(path: &RootPath, fault: &Fault) -> Error {
    unrepresentable(
        path,
        match fault {
            Fault::Root => "the root can only be a directory",
            Fault::TooLarge(_) => "the layer has too many entries",
            _ => "what the change set puts above it is no directory",
        },
    )
}

/// Gathers bytes, hashes and counts them on their way out.
struct Sink<W> {
    out: W,
    hasher: Sha256,
    /// Bytes that `out` has.
    flushed: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Sink<W> {
    fn new(out: W) -> Self {
        Self { out, hasher: Sha256::new(), flushed: 0, buffer: Vec::with_capacity(BUFFER) }
    }

    /// Where in the tar the next byte goes.
    fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    /// Bytes that may be appended before the next flush; at least one block.
    fn room(&mut self) -> io::Result<usize> {
        self.make_room()?;
        Ok((BUFFER - self.buffer.len()).max(BLOCK))
    }

    fn make_room(&mut self) -> io::Result<()> {
        if self.buffer.len() + 4 * BLOCK > BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.buffer);
        self.out.write_all(&self.buffer)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<(DiffId, u64)> {
        self.flush()?;
        self.out.flush()?;
        Ok((DiffId::from_bytes(self.hasher.finalize().into()), self.flushed))
    }
}
