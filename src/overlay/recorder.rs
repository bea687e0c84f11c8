//! The change log: what was touched since the mark, and how it was before.
//!
//! Cost follows what changed: a mark clears two maps. The image of a node is taken
//! when it is touched for the first time, the previous target of an entry likewise;
//! the tree *before* is the table with these put over it.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use super::inode::Body;
use super::inode::Face;
use super::inode::Ino;
use super::inode::Xattrs;
use crate::change::ChangeLog;
use crate::change::Event;
use crate::path::Name;
use crate::tree::NodeId;

/// A node as it was at the mark.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) face: Face,
    pub(super) xattrs: Xattrs,
    /// Of a file; `None`: as the lower node has it.
    pub(super) body: Option<Box<Body>>,
}

/// A node touched since the mark.
#[derive(Debug)]
pub(super) struct Touch {
    /// Whether it is an event. The time of a directory whose entries changed is not:
    /// the entries are.
    pub(super) is_event: bool,
    /// `None`: it didn't exist.
    pub(super) image: Option<Box<Image>>,
}

/// A name in a directory.
pub(super) type Entry = (Ino, Arc<[u8]>);

/// What was touched since the mark.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) nodes: HashMap<Ino, Touch>,
    /// By directory, what each touched name stood for.
    pub(super) entries: HashMap<Ino, BTreeMap<Arc<[u8]>, Option<Ino>>>,
    /// The names that a node had and that were touched.
    pub(super) former: HashMap<Ino, Vec<Entry>>,
    lost: Option<String>,
}

impl Recorder {
    /// Forgets everything: what is there now is what was before.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Says that the log is not complete any more.
    pub(super) fn lose(&mut self, why: String) {
        self.lost.get_or_insert(why);
    }

    /// Notes that `name` of `directory`, which stands for `previous`, is about to change.
    pub(super) fn entry(&mut self, directory: Ino, name: &[u8], previous: Option<Ino>) {
        let names = self.entries.entry(directory).or_default();
        if names.contains_key(name) {
            return;
        }
        let name: Arc<[u8]> = name.into();
        if let Some(previous) = previous {
            self.former.entry(previous).or_default().push((directory, Arc::clone(&name)));
        }
        names.insert(name, previous);
    }

    /// Whether `ino` is needed to answer what was before.
    pub(super) fn remembers(&self, ino: Ino) -> bool {
        match self.nodes.get(&ino) {
            Some(touch) => touch.image.is_some(),
            None => self.former.contains_key(&ino),
        }
    }

    /// Forgets a node that came and went since the mark, or never counted.
    pub(super) fn forget(&mut self, ino: Ino) {
        self.nodes.remove(&ino);
        self.entries.remove(&ino);
    }

    /// The log.
    pub(super) fn log(&self) -> ChangeLog {
        let mut log = ChangeLog { events: Default::default(), lost: self.lost.clone() };
        for (directory, names) in &self.entries {
            let directory = NodeId(u64::from(*directory));
            let names = names.keys().filter_map(|name| Name::new(name));
            log.events.extend(names.map(|name| Event::Entry { directory, name }));
        }
        let touched = self.nodes.iter().filter(|(_, touch)| touch.is_event);
        log.events.extend(touched.map(|(ino, _)| Event::Node(NodeId(u64::from(*ino)))));
        log
    }
}
