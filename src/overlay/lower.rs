//! Read-only layers below: a layer index for names and metadata, a blob for bytes.
//!
//! A merged directory is a list of [`Part`]s from the top down; a name in it is
//! found by one binary search in each. Nothing is read before it is asked for, so
//! an overlay over a million files costs no more to make than one over ten.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::OnceLock;

use super::extent::Backing;
use super::extent::Extent;
use super::extent::Extents;
use super::extent::SEALED;
use super::extent::Source;
use crate::layer::Entry;
use crate::layer::LayerIndex;
use crate::path::Name;
use crate::path::RootPath;
use crate::tree::Kind;

/// Longest name that a directory takes (`NAME_MAX` of limits.h).
pub(super) const MAX_NAME: usize = 255;

/// A layer to put under an overlay.
#[derive(Clone, Debug)]
pub struct Lower {
    /// What the layer holds, and where in the blob.
    pub index: Arc<LayerIndex>,
    /// The uncompressed tar.
    pub blob: Arc<File>,
}

/// A layer in use.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) index: Arc<LayerIndex>,
    blob: Arc<Backing>,
    /// Inode number of each node that has one, else 0. Four bytes a node, of which
    /// the system only provides the pages that are touched.
    inodes: Vec<u32>,
    links: OnceLock<Links>,
}

impl Layer {
    pub(super) fn new(lower: Lower) -> Self {
        let nodes = lower.index.node_count() as usize;
        Self {
            index: lower.index,
            blob: Backing::new(lower.blob),
            inodes: vec![0; nodes],
            links: OnceLock::new(),
        }
    }

    /// The inode that stands for `node` in the table.
    pub(super) fn inode(&self, node: u32) -> Option<u32> {
        self.inodes.get(node as usize).copied().filter(|&ino| ino != 0)
    }

    /// Notes the inode that stands for `node`; 0 for none.
    pub(super) fn set_inode(&mut self, node: u32, ino: u32) {
        if let Some(slot) = self.inodes.get_mut(node as usize) {
            *slot = ino;
        }
    }

    /// Where the bytes of the file `node` are.
    pub(super) fn extents(&self, node: u32) -> Extents {
        Extents::from_sorted(self.index.extents(node).map(|extent| Extent {
            start: extent.file_offset,
            length: extent.length,
            source: Source::Backing(Arc::clone(&self.blob)),
            at: extent.blob_offset,
            epoch: SEALED,
        }))
    }
}

/// A node of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub(super) layer: u32,
    pub(super) node: u32,
}

/// What a name stands for in the layers below a directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or a whiteout.
    Nothing,
    /// A directory merged of these, top first.
    Directory(Vec<Part>),
    /// Anything else.
    Node(Part),
}

/// The root directories of the lowest `count` layers, top first, down to an opaque one.
pub(super) fn roots(layers: &[Layer], count: usize) -> Vec<Part> {
    let mut parts = Vec::with_capacity(count);
    for (number, layer) in layers.iter().enumerate().take(count).rev() {
        parts.push(Part { layer: number as u32, node: LayerIndex::ROOT });
        if layer.index.node(LayerIndex::ROOT).opaque {
            break;
        }
    }
    parts
}

/// Looks for `name` in a directory made of `parts`.
pub(super) fn find(layers: &[Layer], parts: &[Part], name: &[u8]) -> Found {
    let mut merged = Vec::new();
    for part in parts {
        let Some(layer) = layers.get(part.layer as usize) else { continue };
        match layer.index.child(part.node, name) {
            None => {}
            Some(Entry::Whiteout) => break,
            Some(Entry::LowerLink(path)) => {
                if merged.is_empty() {
                    let path = RootPath::clamped(path);
                    let target = path.and_then(|path| follow(layers, part.layer, path));
                    return target.map_or(Found::Nothing, Found::Node);
                }
                break;
            }
            Some(Entry::Node(node)) => {
                let view = layer.index.node(node);
                let child = Part { layer: part.layer, node };
                if view.kind != Kind::Directory {
                    if merged.is_empty() {
                        return Found::Node(child);
                    }
                    break;
                }
                merged.push(child);
                if view.opaque {
                    break;
                }
            }
        }
    }
    if merged.is_empty() { Found::Nothing } else { Found::Directory(merged) }
}

/// The file at `path` in the layers below number `below`.
fn follow(layers: &[Layer], below: u32, path: RootPath) -> Option<Part> {
    let (mut parts, mut target) = (roots(layers, below as usize), None);
    for name in path.components() {
        // Further links point still lower, so this ends.
        match find(layers, &parts, name) {
            Found::Nothing => return None,
            Found::Directory(next) => parts = next,
            Found::Node(part) => {
                parts = Vec::new();
                target = Some(part);
                continue;
            }
        }
        target = None;
    }
    target
}

/// The part that a merged directory takes its metadata from: the first that a layer
/// names itself.
pub(super) fn face(layers: &[Layer], parts: &[Part]) -> Option<Part> {
    let named = parts.iter().find(|part| {
        layers.get(part.layer as usize).is_some_and(|layer| !layer.index.node(part.node).implied)
    });
    named.or(parts.first()).copied()
}

/// The node at `path` in one layer alone.
pub(super) fn node_at(index: &LayerIndex, path: &RootPath) -> Option<u32> {
    path.components().try_fold(LayerIndex::ROOT, |node, name| match index.child(node, name) {
        Some(Entry::Node(child)) => Some(child),
        _ => None,
    })
}

/// The names of all files of a layer that have several, and where its directories hang.
#[derive(Debug, Default)]
struct Links {
    /// By file, (directory, name).
    names: HashMap<u32, Vec<(u32, Name)>>,
    /// By directory, (parent, name).
    parents: HashMap<u32, (u32, Name)>,
}

impl Links {
    /// Reads the whole index.
    fn of(index: &LayerIndex) -> Self {
        let mut links = Self::default();
        let mut pending = vec![LayerIndex::ROOT];
        while let Some(directory) = pending.pop() {
            for (name, entry) in index.children(directory) {
                let (Entry::Node(child), Some(name)) = (entry, Name::new(name)) else { continue };
                let view = index.node(child);
                if view.kind != Kind::Directory {
                    if view.links > 1 {
                        links.names.entry(child).or_default().push((directory, name));
                    }
                } else if child > directory {
                    links.parents.insert(child, (directory, name));
                    pending.push(child);
                }
            }
        }
        links
    }
}

/// Where a node hangs in its layer: the directories from below the root down, as
/// (name, node), and its name in the last.
pub(super) type Hanging = (Vec<(Name, u32)>, Name);

impl Layer {
    /// Every place of the file `node`, if it has several. Reads the whole index, once.
    pub(super) fn places(&self, node: u32) -> Vec<Hanging> {
        let links = self.links.get_or_init(|| Links::of(&self.index));
        let names = links.names.get(&node).into_iter().flatten();
        names
            .map(|(directory, name)| {
                let (mut trail, mut at) = (Vec::new(), *directory);
                while let Some((parent, name)) = links.parents.get(&at) {
                    trail.push((name.clone(), at));
                    at = *parent;
                }
                trail.reverse();
                (trail, name.clone())
            })
            .collect()
    }
}

/// How many names of the file `part` show through the layers above its own.
pub(super) fn visible_names(layers: &[Layer], part: Part) -> u32 {
    let Some(layer) = layers.get(part.layer as usize) else { return 0 };
    let links = layer.index.node(part.node).links;
    let is_top = part.layer as usize + 1 == layers.len();
    if links <= 1 || is_top {
        return links;
    }
    let root = roots(layers, layers.len());
    let shows = |(trail, name): &Hanging| {
        let mut parts = root.clone();
        for (name, _) in trail {
            match find(layers, &parts, name.as_bytes()) {
                Found::Directory(next) => parts = next,
                _ => return false,
            }
        }
        find(layers, &parts, name.as_bytes()) == Found::Node(part)
    };
    layer.places(part.node).iter().filter(|place| shows(place)).count() as u32
}

/// Whether `name` can be an entry. Indexes are made by us, but out of foreign tars.
pub(super) fn is_name(name: &[u8]) -> bool {
    name.len() <= MAX_NAME && Name::new(name).is_some()
}
