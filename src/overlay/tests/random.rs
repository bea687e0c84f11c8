//! Random steps, several on top of each other, against every oracle there is: the
//! tree at the mark, the walk, bytes kept beside, and the layer laid over the old tree.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::overlay::inode::Ino;
use crate::overlay::inode::ROOT;
use crate::overlay::ops::Change as SetAttr;
use crate::overlay::ops::NewNode;
use crate::overlay::ops::Rename;
use crate::overlay::ops::SetMode;
use crate::overlay::ops::Space;
use crate::snapshot::Mode;
use crate::snapshot::WalkSnapshotter;
use crate::tree::Device;

type Step = Vec<(u8, u8, u8, u16)>;

/// An overlay and, by inode, the bytes that its files must hold.
struct Driven {
    overlay: Arc<Overlay>,
    bytes: BTreeMap<Ino, Vec<u8>>,
}

impl Driven {
    fn new(lowers: &[Lower]) -> Self {
        Self { overlay: over(lowers), bytes: BTreeMap::new() }
    }

    /// All directories, or all other nodes, in a stable order with their places.
    fn nodes(&self, directories: bool) -> Vec<(Ino, Ino, Name)> {
        let tree = self.overlay.after();
        let (mut found, mut pending) = (Vec::new(), vec![tree.root()]);
        if directories {
            found.push((ROOT, ROOT, name("root")));
        }
        while let Some(directory) = pending.pop() {
            for (name, child) in tree.children(directory).unwrap() {
                let is_directory = tree.stat(child).unwrap().is_directory();
                if is_directory {
                    pending.push(child);
                }
                if is_directory == directories {
                    found.push((child.0 as Ino, directory.0 as Ino, name));
                }
            }
        }
        found
    }

    fn bytes(&mut self, ino: Ino) -> &mut Vec<u8> {
        let overlay = &self.overlay;
        self.bytes.entry(ino).or_insert_with(|| {
            read_all(&overlay.after().content(NodeId(u64::from(ino))).expect("a file"))
        })
    }

    fn act(&mut self, (what, one, two, value): (u8, u8, u8, u16)) {
        let overlay = Arc::clone(&self.overlay);
        let directories = self.nodes(true);
        let others = self.nodes(false);
        let directory = directories[one as usize % directories.len()].0;
        let second = directories[two as usize % directories.len()].0;
        let fresh = [b'a' + two % 5];
        let place = (!others.is_empty()).then(|| others[one as usize % others.len()].clone());
        let file = place
            .clone()
            .filter(|(ino, ..)| overlay.op_getattr(*ino).expect("there").face.kind == Kind::File);
        let new = |kind| NewNode {
            kind,
            mode: value % 0o1000,
            uid: 0,
            gid: 0,
            device: Device { major: 1, minor: 5 },
            target: b"some/target",
        };
        let at = u64::from(value % 300);
        // Failures are as good as successes: what was done is what counts.
        match what % 20 {
            0..=2 => {
                if let Ok(made) = overlay.op_make(directory, &fresh, &new(Kind::File)) {
                    self.bytes.remove(&made.ino);
                }
            }
            3 | 4 => drop(overlay.op_make(directory, &fresh, &new(Kind::Directory))),
            5 => {
                let kind = [Kind::Symlink, Kind::Fifo, Kind::CharDevice][value as usize % 3];
                if let Ok(made) = overlay.op_make(directory, &fresh, &new(kind)) {
                    self.bytes.remove(&made.ino);
                }
            }
            6..=8 => {
                let Some((ino, ..)) = file else { return };
                let piece = vec![two; 1 + value as usize % 90];
                overlay.op_write(ino, at, &piece).expect("room");
                let bytes = self.bytes(ino);
                let end = at as usize + piece.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[at as usize..end].copy_from_slice(&piece);
            }
            9 => {
                let Some((ino, ..)) = file else { return };
                self.bytes(ino).resize(at as usize, 0);
                let change = SetAttr { size: Some(at), ..SetAttr::default() };
                overlay.op_setattr(ino, &change).expect("a file");
            }
            10 => {
                let Some((ino, ..)) = file else { return };
                let bytes = self.bytes(ino);
                let end = (at as usize + 40).min(bytes.len());
                if (at as usize) < end {
                    bytes[at as usize..end].fill(0);
                }
                overlay.op_fallocate(ino, at, 40, Space::Punch).expect("a file");
            }
            11 => {
                let Some((ino, parent, old)) = place else { return };
                if value % 3 == 0 {
                    let root = NodeId(u64::from(directory));
                    let children = overlay.after().children(root).unwrap();
                    if let Some((name, _)) = children.get(two as usize % children.len().max(1)) {
                        overlay.remove(root, name).expect("there");
                        self.forget_dead();
                        return;
                    }
                }
                overlay.op_unlink(parent, old.as_bytes()).expect("there");
                let _ = ino;
                self.forget_dead();
            }
            12 => {
                let (_, parent, name) = &directories[one as usize % directories.len()];
                drop(overlay.op_rmdir(*parent, name.as_bytes()));
            }
            13 => {
                let Some((_, parent, old)) = place else { return };
                let how =
                    [Rename::Replace, Rename::Exchange, Rename::NoReplace][value as usize % 3];
                drop(overlay.op_rename((parent, old.as_bytes()), (second, &fresh), how));
                self.forget_dead();
            }
            14 => {
                let (_, parent, name) = &directories[one as usize % directories.len()];
                let how = [Rename::Replace, Rename::Exchange][value as usize % 2];
                drop(overlay.op_rename((*parent, name.as_bytes()), (second, &fresh), how));
                self.forget_dead();
            }
            15 => {
                let Some((ino, ..)) = place else { return };
                drop(overlay.op_link(ino, second, &fresh));
            }
            16 => {
                let Some((ino, ..)) = place else { return };
                let change = SetAttr {
                    mode: Some(value % 0o1000),
                    uid: (value % 2 == 0).then_some(u32::from(value % 5)),
                    ..SetAttr::default()
                };
                overlay.op_setattr(ino, &change).expect("there");
            }
            17 => {
                let Some((ino, ..)) = file else { return };
                let value = [1, 0, 0, 2, two, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                overlay
                    .op_setxattr(ino, b"security.capability", &value, SetMode::Any)
                    .expect("a file");
            }
            18 => {
                let Some((to, ..)) = file else { return };
                let files: Vec<_> = others
                    .iter()
                    .filter(|(ino, ..)| {
                        overlay.op_getattr(*ino).expect("there").face.kind == Kind::File
                    })
                    .collect();
                let from = files[two as usize % files.len()].0;
                if from == to {
                    return;
                }
                let source = self.bytes(from).clone();
                let count = overlay.op_copy((from, 10), (to, at), 50).expect("files") as usize;
                assert_eq!(count, source.len().saturating_sub(10).min(50));
                if count > 0 {
                    let bytes = self.bytes(to);
                    let end = at as usize + count;
                    bytes.resize(bytes.len().max(end), 0);
                    bytes[at as usize..end].copy_from_slice(&source[10..10 + count]);
                }
            }
            _ => {
                let directory = NodeId(u64::from(directory));
                let name = Name::new(&fresh).expect("a letter");
                let content = bytes(&"put ".repeat(value as usize % 50));
                let put = overlay.put_file(directory, &name, &attributes(0o600), content);
                self.forget_dead();
                if let Ok(node) = put {
                    self.bytes.remove(&(node.0 as Ino));
                }
            }
        }
    }

    /// Forgets the bytes of files that are gone, because their numbers come again.
    fn forget_dead(&mut self) {
        let live: Vec<Ino> = self.nodes(false).into_iter().map(|(ino, ..)| ino).collect();
        self.bytes.retain(|ino, _| live.contains(ino));
    }

    fn check_bytes(&self) {
        for (ino, wanted) in &self.bytes {
            let content = self.overlay.after().content(NodeId(u64::from(*ino))).expect("a file");
            assert_eq!(&read_all(&content), wanted);
        }
    }
}

fn shown(set: &ChangeSet) -> Vec<String> {
    let show = |change: &Change| match change {
        Change::Put(put) => {
            let bytes = put.content.as_ref().map(read_all);
            format!(
                "{} {:?} {bytes:?} {:?} {:?}",
                put.path, put.stat, put.link_target, put.capability
            )
        }
        Change::Delete(path) => format!("-{path}"),
    };
    set.changes.iter().map(show).collect()
}

fn run(steps: &[Step], settles: &[bool]) {
    let mut lowers = vec![base()];
    let mut driven = Driven::new(&lowers);
    let mut kept: Vec<(ChangeSet, Vec<String>)> = Vec::new();
    for (number, actions) in steps.iter().enumerate() {
        let overlay = Arc::clone(&driven.overlay);
        overlay.mark();
        let old = dump(overlay.after().as_ref());
        let mut walk = WalkSnapshotter::new(Mode::Full);
        walk.mark(overlay.after().as_ref()).expect("readable");
        for action in actions {
            driven.act(*action);
        }
        driven.check_bytes();
        let (before, after) = (overlay.before(), overlay.after());
        assert_eq!(dump(before.as_ref()), old, "the tree before");
        let set = changes(&overlay);
        let walked =
            walk.changes(before.as_ref(), after.as_ref(), &overlay.log()).expect("readable");
        let lines = shown(&set);
        assert_eq!(lines, shown(&walked), "log and walk");
        for (earlier, lines) in &kept {
            assert_eq!(&shown(earlier), lines, "contents of a step before");
        }
        let layer = lower_of(&set);
        lowers.push(layer.clone());
        let new = dump(after.as_ref());
        let layered = over(&lowers);
        assert_eq!(
            dump_carried(layered.after().as_ref()),
            dump_carried(after.as_ref()),
            "the layer over the old tree"
        );
        kept.push((set, lines));
        if settles[number % settles.len()] {
            overlay.settle(&kept[number].0, layer);
            assert_eq!(dump(after.as_ref()), new, "settled");
            driven.check_bytes();
        } else if number % 3 == 2 {
            // Go on in a new overlay over the layers, as after a cache hit.
            drop((before, after));
            driven = Driven::new(&lowers);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_oracle_agrees_on_random_steps(
        steps in prop::collection::vec(
            prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>(), any::<u16>()), 0..25),
            1..5
        ),
        settles in prop::collection::vec(any::<bool>(), 1..4),
    ) {
        run(&steps, &settles);
    }
}
