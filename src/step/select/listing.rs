//! The files of a selection one by one: what a miss is explained by.

use yadokari_cache::KeyHasher;

use super::Item;
use super::Selection;
use super::hash_what;
use crate::ignore::Matcher;
use crate::path::RootPath;
use crate::step::Error;
use crate::step::source::Source;
use crate::tree::Kind;
use crate::tree::NodeId;

/// One thing that a COPY, ADD or bind mount takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its path in the context, stage or image; below the pivot with `--parents`.
    pub path: RootPath,
    /// What it is.
    pub kind: Kind,
    /// Its permissions, as far as they count.
    pub mode: u16,
    /// Owner and group; `0:0` where they don't count.
    pub owner: (u32, u32),
    /// Half of a BLAKE3 of its bytes, link target or device number.
    pub digest: [u8; 16],
}

impl Selection {
    /// Lists what is taken, in the order of the sources, at most `most` things;
    /// with it, whether that was all.
    ///
    /// # Errors
    /// Those of reading the source. Digests of files must be known already:
    /// [`Selection::digest`] sees to that.
    pub fn listing(
        &self,
        source: &Source<'_>,
        exclude: Option<&Matcher>,
        most: usize,
    ) -> Result<(Vec<Listed>, bool), Error> {
        let mut listed = Vec::new();
        let mut failed = None;
        let mut is_whole = true;
        for item in &self.items {
            if let Item::Inline { name, body } = item {
                let digest = half(blake3::hash(body.as_bytes()).as_bytes());
                let path = RootPath::root().join(name);
                let (kind, mode, owner) = (Kind::File, 0o644, (0, 0));
                listed.push(Listed { path, kind, mode, owner, digest });
            }
        }
        self.each(source, exclude, &mut |number, below, node| {
            if failed.is_some() || listed.len() >= most {
                is_whole &= failed.is_some() || listed.len() < most;
                return;
            }
            let path = match self.items.get(number) {
                Some(Item::Whole { named, .. }) if is_file_named(named, below, source, node) => {
                    named.clone()
                }
                Some(Item::Whole { named, .. }) => named.join_path(below),
                _ => below.clone(),
            };
            match look(source, below, node) {
                Ok((kind, mode, owner, digest)) => {
                    listed.push(Listed { path, kind, mode, owner, digest });
                }
                Err(error) => failed = Some(Error::io("read", &path)(error)),
            }
        })?;
        match failed {
            Some(error) => Err(error),
            None => Ok((listed, is_whole)),
        }
    }

    /// [`listing`](Self::listing) of what a mount shows.
    ///
    /// # Errors
    /// As there.
    pub fn listing_of_mount(
        &self,
        source: &Source<'_>,
        most: usize,
    ) -> Result<(Vec<Listed>, bool), Error> {
        let (mut listed, is_whole) = self.listing(source, None, most)?;
        // It is visited first.
        if let Some(top) = self.mounted_top(source)?
            && let Some(first) = listed.first_mut()
        {
            first.mode = top.mode;
            if !source.resets_owner() {
                first.owner = (top.uid, top.gid);
            }
        }
        Ok((listed, is_whole))
    }
}

/// Whether `below` is the name of the source itself, which is then no directory.
fn is_file_named(named: &RootPath, below: &RootPath, source: &Source<'_>, node: NodeId) -> bool {
    let is_directory = || source.tree().stat(node).is_ok_and(|stat| stat.is_directory());
    named.file_name().is_some_and(|name| RootPath::root().join(&name) == *below) && !is_directory()
}

type Seen = (Kind, u16, (u32, u32), [u8; 16]);

fn look(source: &Source<'_>, below: &RootPath, node: NodeId) -> std::io::Result<Seen> {
    let stat = source.tree().stat(node)?;
    // The top directory's own mode and owner don't reach the image.
    let counts = !(below.is_root() && stat.is_directory());
    let mode = if counts { stat.mode } else { 0o755 };
    let owner = if counts && !source.resets_owner() { (stat.uid, stat.gid) } else { (0, 0) };
    let mut hasher = KeyHasher::new("listed");
    hash_what(&mut hasher, source, node, &stat)?;
    Ok((stat.kind, mode, owner, half(hasher.finish().as_bytes())))
}

fn half(digest: &[u8; 32]) -> [u8; 16] {
    *digest.first_chunk().expect("16 of 32 bytes")
}
