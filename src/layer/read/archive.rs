//! The entries of a tar, one after the other, with everything that extends them:
//! PAX headers, GNU long names, sparse maps.

use std::io::Read;
use std::io::Write;

use crate::layer::error::Error;
use crate::layer::error::Fault;
use crate::layer::header::padding;
use crate::layer::index::Extent;
use crate::oci::digest::DiffId;
use crate::tree::Device;
use crate::tree::Kind;
use crate::tree::Timestamp;
use crate::tree::Xattr;

use super::fields;
use super::fields::Block;
use super::fields::Dialect;
use super::pax::Records;
use super::sparse;
use super::sparse::Announced;
use super::sparse::Map;
use super::tap::Short;
use super::tap::Tap;

/// Longest extended header or long name, the limit of Go's reader.
const MAX_EXTENSION: u64 = 1 << 20;

/// One entry, everything that extends it already applied.
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub(super) link: Vec<u8>,
    /// `None` for a hard link.
    pub(super) kind: Option<Kind>,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Length of a file, holes included.
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) device: Device,
    pub(super) xattrs: Vec<Xattr>,
    /// Bytes of content that stand in the tar.
    pub(super) stored: u64,
    /// Where the bytes of a sparse file lie.
    pub(super) sparse: Option<Vec<Extent>>,
    /// Where its own header starts.
    offset: u64,
}

impl Member {
    /// `fault` as an error that names this entry.
    pub(super) fn error(&self, fault: Fault) -> Error {
        error(&self.name, self.offset, fault)
    }
}

/// What stands in front of an entry and speaks about it.
#[derive(Default)]
struct Extensions {
    records: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// Reads a tar and passes its bytes on.
pub(super) struct Archive<R, W> {
    tap: Tap<R, W>,
    /// Content and padding of the last entry that nobody has read yet.
    content: u64,
    padding: u64,
}

impl<R: Read, W: Write> Archive<R, W> {
    pub(super) fn new(input: R, out: W) -> Self {
        Self { tap: Tap::new(input, out), content: 0, padding: 0 }
    }

    /// Offset in the tar of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.tap.position()
    }

    /// The next entry; `None` behind the last. An archive may end without its two
    /// zero blocks, as every reader of layers accepts.
    pub(super) fn next(&mut self) -> Result<Option<Member>, Error> {
        let mut extensions = Extensions::default();
        let mut extended = false;
        loop {
            let offset = self.tap.position();
            let left = self.content.saturating_add(self.padding);
            (self.content, self.padding) = (0, 0);
            self.skip(left).map_err(|short| self.short(b"", offset, short))?;
            let offset = self.tap.position();
            let block = self.tap.block().map_err(|short| self.short(b"", offset, short))?;
            let Some(block) = block else {
                if extended {
                    return Err(error(b"", offset, Fault::Truncated));
                }
                return Ok(None);
            };
            if block.iter().all(|&byte| byte == 0) {
                let second = self.tap.block().map_err(|short| self.short(b"", offset, short))?;
                return match second {
                    _ if extended => Err(error(b"", offset, Fault::Truncated)),
                    Some(second) if second.iter().any(|&byte| byte != 0) => {
                        Err(error(b"", offset, Fault::LoneZeroBlock))
                    }
                    _ => Ok(None),
                };
            }
            let name = fields::name(&block);
            let fault = |fault| error(&name, offset, fault);
            if !fields::checksum_matches(&block) {
                return Err(fault(Fault::Checksum));
            }
            match block[fields::TYPE] {
                b'x' => {
                    let bytes = self.extension(&block, &name, offset)?;
                    extensions.records = Records::parse(&bytes).map_err(fault)?;
                    extended = true;
                }
                // Unpackers of layers ignore what a global header says; so do we.
                b'g' => {
                    self.extension(&block, &name, offset)?;
                }
                b'L' => {
                    let bytes = self.extension(&block, &name, offset)?;
                    extensions.long_name = Some(fields::string(&bytes).to_vec());
                    extended = true;
                }
                b'K' => {
                    let bytes = self.extension(&block, &name, offset)?;
                    extensions.long_link = Some(fields::string(&bytes).to_vec());
                    extended = true;
                }
                _ => return self.member(&block, offset, extensions).map(Some),
            }
        }
    }

    /// Reads the content of `member`, which is the current entry and not sparse;
    /// gives its BLAKE3.
    pub(super) fn hash_content(&mut self, member: &Member) -> Result<[u8; 32], Error> {
        let mut hasher = blake3::Hasher::new();
        let length = std::mem::take(&mut self.content);
        self.tap
            .each(length, |piece| {
                hasher.update(piece);
            })
            .map_err(|short| self.short(&member.name, member.offset, short))?;
        Ok(*hasher.finalize().as_bytes())
    }

    /// Passes on the rest; gives the SHA-256 and length of the whole tar.
    pub(super) fn finish(self) -> Result<(DiffId, u64), Error> {
        self.tap.finish()
    }

    fn skip(&mut self, length: u64) -> Result<(), Short> {
        self.tap.each(length, |_| {})
    }

    /// Reads the content of an extension entry.
    fn extension(&mut self, block: &Block, name: &[u8], offset: u64) -> Result<Vec<u8>, Error> {
        let size = fields::unsigned(&block[fields::SIZE], "size")
            .map_err(|fault| error(name, offset, fault))?;
        if size > MAX_EXTENSION {
            return Err(error(name, offset, Fault::TooLarge("an extended header")));
        }
        let mut bytes = Vec::new();
        self.tap
            .each(size, |piece| bytes.extend_from_slice(piece))
            .map_err(|short| self.short(name, offset, short))?;
        self.padding = padding(size) as u64;
        Ok(bytes)
    }

    fn member(
        &mut self,
        block: &Block,
        offset: u64,
        mut extensions: Extensions,
    ) -> Result<Member, Error> {
        let name = extensions
            .long_name
            .or_else(|| extensions.records.get("GNU.sparse.name").map(<[u8]>::to_vec))
            .or_else(|| extensions.records.get("path").map(<[u8]>::to_vec))
            .unwrap_or_else(|| fields::name(block));
        let link = extensions
            .long_link
            .or_else(|| extensions.records.get("linkpath").map(<[u8]>::to_vec))
            .unwrap_or_else(|| fields::string(&block[fields::LINK]).to_vec());
        let mut member = metadata(block, &extensions.records, name, link, offset)
            .map_err(|fault| error(&fields::name(block), offset, fault))?;
        let is_file = member.kind == Some(Kind::File);
        let map = self.sparse_map(block, &mut extensions.records, &mut member)?;
        self.content = if is_file { member.stored } else { 0 };
        self.padding = padding(self.content) as u64;
        if let Some(map) = map {
            let extents = sparse::extents(&map, member.size, member.stored, self.tap.position());
            member.sparse = Some(extents.map_err(|fault| member.error(fault))?);
        }
        Ok(member)
    }

    /// Finds the map of a sparse file and its true size. Where the map stands in
    /// front of the content, it is consumed and no longer counted as stored.
    fn sparse_map(
        &mut self,
        block: &Block,
        records: &mut Records,
        member: &mut Member,
    ) -> Result<Option<Map>, Error> {
        if block[fields::TYPE] == b'S' {
            return self.old_map(block, member).map(Some);
        }
        if member.kind != Some(Kind::File) {
            return Ok(None);
        }
        let map = match sparse::announced(records).map_err(|fault| member.error(fault))? {
            Announced::No => return Ok(None),
            Announced::Map(map) => map,
            Announced::InContent => self.map_in_content(member)?,
        };
        let size = records
            .number("GNU.sparse.realsize")
            .and_then(|size| Ok(size.or(records.number("GNU.sparse.size")?)))
            .and_then(|size| size.ok_or(Fault::SparseMap));
        member.size = size.map_err(|fault| member.error(fault))?;
        Ok(Some(map))
    }

    fn map_in_content(&mut self, member: &mut Member) -> Result<Map, Error> {
        let mut reader = sparse::MapReader::default();
        loop {
            let block = self.content_block(member)?;
            member.stored = member
                .stored
                .checked_sub(block.len() as u64)
                .ok_or_else(|| member.error(Fault::SparseMap))?;
            if let Some(map) = reader.take(&block).map_err(|fault| member.error(fault))? {
                return Ok(map);
            }
        }
    }

    fn old_map(&mut self, block: &Block, member: &mut Member) -> Result<Map, Error> {
        if fields::dialect(block) != Dialect::Gnu {
            return Err(member.error(Fault::SparseMap));
        }
        member.size = sparse::old_size(block).map_err(|fault| member.error(fault))?;
        let (mut map, mut more) = sparse::old_header(block).map_err(|fault| member.error(fault))?;
        while more {
            let block = self.content_block(member)?;
            more = sparse::old_extension(&block, &mut map).map_err(|fault| member.error(fault))?;
        }
        Ok(map)
    }

    /// A block of sparse map in front of the content of `member`.
    fn content_block(&mut self, member: &Member) -> Result<Block, Error> {
        let block =
            self.tap.block().map_err(|short| self.short(&member.name, member.offset, short));
        block?.ok_or_else(|| member.error(Fault::Truncated))
    }

    fn short(&self, name: &[u8], offset: u64, short: Short) -> Error {
        match short {
            Short::Failed(error) => error,
            Short::End => error(name, offset, Fault::Truncated),
        }
    }
}

/// Reads the fields of `block`, with what `records` says instead.
fn metadata(
    block: &Block,
    records: &Records,
    name: Vec<u8>,
    link: Vec<u8>,
    offset: u64,
) -> Result<Member, Fault> {
    let flag = block[fields::TYPE];
    let kind = match flag {
        // The oldest archives tell directories by their name alone.
        0 if name.ends_with(b"/") => Some(Kind::Directory),
        0 | b'0' | b'7' | b'S' => Some(Kind::File),
        b'1' => None,
        b'2' => Some(Kind::Symlink),
        b'3' => Some(Kind::CharDevice),
        b'4' => Some(Kind::BlockDevice),
        b'5' => Some(Kind::Directory),
        b'6' => Some(Kind::Fifo),
        other => return Err(Fault::Type(char::from(other))),
    };
    if matches!(kind, Some(Kind::Symlink) | None) {
        match link.len() {
            0 => return Err(Fault::Name),
            1..=super::MAX_PATH if !link.contains(&0) => {}
            1..=super::MAX_PATH => return Err(Fault::Name),
            _ => return Err(Fault::TooLarge("the link target")),
        }
    }
    let is_device = matches!(kind, Some(Kind::CharDevice | Kind::BlockDevice));
    let device = if is_device && fields::dialect(block) != Dialect::V7 {
        Device {
            major: fields::small(&block[fields::MAJOR], "devmajor")?,
            minor: fields::small(&block[fields::MINOR], "devminor")?,
        }
    } else {
        Device::default()
    };
    let mode = fields::number(&block[fields::MODE], "mode")? & 0o7777;
    let size = match records.number("size")? {
        Some(size) => size,
        None => fields::unsigned(&block[fields::SIZE], "size")?,
    };
    // An offset must stay within what a file can have.
    if i64::try_from(size).is_err() {
        return Err(Fault::Number("size"));
    }
    let uid = match records.id("uid")? {
        Some(uid) => uid,
        None => fields::small(&block[fields::UID], "uid")?,
    };
    let gid = match records.id("gid")? {
        Some(gid) => gid,
        None => fields::small(&block[fields::GID], "gid")?,
    };
    let mtime = match records.mtime()? {
        Some(mtime) => mtime,
        None => Timestamp::seconds(fields::number(&block[fields::MTIME], "mtime")?),
    };
    Ok(Member {
        name,
        link,
        kind,
        mode: u16::try_from(mode).unwrap_or(0),
        uid,
        gid,
        size,
        mtime,
        device,
        xattrs: records.xattrs()?,
        stored: size,
        sparse: None,
        offset,
    })
}

fn error(name: &[u8], offset: u64, fault: Fault) -> Error {
    Error::Entry { name: String::from_utf8_lossy(name).into_owned(), offset, fault }
}
