//! Two random layers, made as foreign tars.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Seek;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use yadokari::layer;
use yadokari::layer::LayerIndex;
use yadokari::overlay::Lower;

use crate::random::Random;

const ENTRIES: usize = 120;

/// Indexes `tar` as it would be if a registry had sent it.
pub(crate) fn lower(tar: &[u8]) -> Lower {
    let mut blob = tempfile::tempfile().expect("a file");
    let written = layer::read(tar, &mut blob).expect("a good layer");
    blob.flush().and_then(|()| blob.rewind()).expect("a file");
    let index = LayerIndex::from_bytes(written.index).expect("a good index");
    index.verify().expect("a good index");
    Lower { index: Arc::new(index), blob: Arc::new(blob) }
}

/// A layer of all kinds of files, and one above it with whiteouts, an opaque
/// directory, replacements and links to files of the first. Bottom first. The directories `w0` to `w2` are there.
pub(crate) fn two(random: &mut Random) -> Vec<Lower> {
    let mut first = Layer::new();
    for name in ["w0", "w1", "w2", "d", "d/e", "opaque", "gone", "becomes-file"] {
        first.directory(random, Path::new(name));
    }
    for _ in 0..ENTRIES {
        first.anything(random);
    }
    let mut second = Layer::new();
    for (number, path) in first.files.iter().enumerate() {
        if ["opaque", "gone", "becomes-file"].iter().any(|top| path.starts_with(top)) {
            continue;
        }
        match number % 6 {
            0 => second.whiteout(path),
            1 => second.file(random, path),
            2 => second.link(random, Path::new(&format!("linked-{number}")), path),
            _ => {}
        }
    }
    second.whiteout(Path::new("gone"));
    second.file(random, Path::new("becomes-file"));
    second.directory(random, Path::new("opaque"));
    second.whiteout(Path::new("opaque/.wh..opq"));
    second.file(random, Path::new("opaque/new"));
    second.file(random, Path::new("implied/below/file"));
    vec![lower(&first.finish()), lower(&second.finish())]
}

struct Layer {
    tar: tar::Builder<Vec<u8>>,
    directories: Vec<PathBuf>,
    files: Vec<PathBuf>,
    taken: BTreeSet<PathBuf>,
}

impl Layer {
    fn new() -> Self {
        Self {
            tar: tar::Builder::new(Vec::new()),
            directories: Vec::new(),
            files: Vec::new(),
            taken: BTreeSet::new(),
        }
    }

    fn header(random: &mut Random, kind: tar::EntryType) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(u32::from(random.mode()));
        header.set_uid(u64::from(random.id()));
        header.set_gid(u64::from(random.id()));
        header.set_mtime(random.below(2_000_000_000));
        header.set_size(0);
        header
    }

    fn directory(&mut self, random: &mut Random, path: &Path) {
        let mut header = Self::header(random, tar::EntryType::Directory);
        self.tar.append_data(&mut header, path, &[][..]).expect("memory");
        self.directories.push(path.to_owned());
        self.taken.insert(path.to_owned());
    }

    fn file(&mut self, random: &mut Random, path: &Path) {
        if random.chance(15) {
            let capability = random.capability();
            let record = [("SCHILY.xattr.security.capability", &capability[..])];
            self.tar.append_pax_extensions(record).expect("memory");
        }
        let length = random.length();
        let bytes = random.bytes(length);
        let mut header = Self::header(random, tar::EntryType::Regular);
        header.set_size(bytes.len() as u64);
        self.tar.append_data(&mut header, path, &bytes[..]).expect("memory");
    }

    fn link(&mut self, random: &mut Random, path: &Path, target: &Path) {
        let mut header = Self::header(random, tar::EntryType::Link);
        self.tar.append_link(&mut header, path, target).expect("memory");
    }

    fn whiteout(&mut self, path: &Path) {
        let mut name = OsStr::from_bytes(b".wh.").to_owned();
        name.push(path.file_name().expect("not the root"));
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        self.tar.append_data(&mut header, path.with_file_name(name), &[][..]).expect("memory");
    }

    /// An entry with a name that isn't taken yet.
    fn anything(&mut self, random: &mut Random) {
        let directory = random.pick(&self.directories).clone();
        let path = directory.join(OsStr::from_bytes(random.name()));
        if !self.taken.insert(path.clone()) {
            return;
        }
        match random.below(20) {
            0..4 => self.directory(random, &path),
            4..6 => {
                let mut header = Self::header(random, tar::EntryType::Symlink);
                let target = OsStr::from_bytes(random.name());
                self.tar.append_link(&mut header, &path, target).expect("memory");
            }
            6 => {
                let kind = *random.pick(&[tar::EntryType::Fifo, tar::EntryType::Char]);
                let mut header = Self::header(random, kind);
                header.set_device_major(1).expect("a header with devices");
                header.set_device_minor(3).expect("a header with devices");
                self.tar.append_data(&mut header, &path, &[][..]).expect("memory");
            }
            7..10 if !self.files.is_empty() => {
                let target = random.pick(&self.files).clone();
                self.link(random, &path, &target);
            }
            _ => {
                self.file(random, &path);
                self.files.push(path);
            }
        }
    }

    fn finish(self) -> Vec<u8> {
        self.tar.into_inner().expect("memory")
    }
}
