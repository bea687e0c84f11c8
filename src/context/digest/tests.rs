use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::super::Context;
use super::super::Location;
use super::super::Nothing;
use super::*;
use crate::tree::Tree;

/// By path and fingerprint.
type Known = HashMap<(Vec<u8>, String), Remembered>;

/// Counts what it is told.
#[derive(Default)]
struct Memory {
    known: Mutex<Known>,
    puts: AtomicUsize,
}

impl DigestMemory for Memory {
    fn get(&self, path: &[u8], fingerprint: &Fingerprint) -> Option<Remembered> {
        let key = (path.to_vec(), format!("{fingerprint:?}"));
        self.known.lock().unwrap().get(&key).copied()
    }

    fn put(&self, path: &[u8], fingerprint: Fingerprint, known: Remembered) {
        self.puts.fetch_add(1, Ordering::Relaxed);
        let key = (path.to_vec(), format!("{fingerprint:?}"));
        self.known.lock().unwrap().insert(key, known);
    }
}

fn tree(directory: &Path) -> ContextTree {
    let location = Location::Directory(directory.to_owned());
    Context::open(&location, directory).unwrap().tree(Nothing).unwrap()
}

fn node(tree: &ContextTree, name: &str) -> NodeId {
    tree.child(tree.root(), name.as_bytes()).unwrap().unwrap()
}

#[test]
fn a_digest_is_the_blake3_of_all_bytes_whatever_the_size() {
    let directory = TempDir::new().unwrap();
    for size in [0, 1, 1000, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER + 7] {
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        fs::write(directory.path().join("file"), &bytes).unwrap();
        let tree = tree(directory.path());
        let digest = tree.digest(node(&tree, "file")).unwrap();
        assert_eq!(digest, *blake3::hash(&bytes).as_bytes(), "{size}");
    }
}

#[test]
fn an_unchanged_file_is_not_read_again() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("file"), "one").unwrap();
    let memory = Arc::new(Memory::default());
    let first = tree(directory.path()).remembering(memory.clone());
    let digest = first.digest(node(&first, "file")).unwrap();
    assert_eq!(memory.puts.load(Ordering::Relaxed), 1);
    // A false memory shows that nothing else was asked.
    memory.known.lock().unwrap().values_mut().for_each(|known| *known = [7; 32].into());
    let second = tree(directory.path()).remembering(memory.clone());
    assert_eq!(second.digest(node(&second, "file")).unwrap(), [7; 32]);
    assert_eq!(second.content(node(&second, "file")).unwrap().known_digest(), Some([7; 32]));
    fs::write(directory.path().join("file"), "three").unwrap();
    let third = tree(directory.path()).remembering(memory);
    assert_ne!(third.digest(node(&third, "file")).unwrap(), [7; 32]);
    assert_ne!(third.digest(node(&third, "file")).unwrap(), digest);
}

#[test]
fn a_file_that_changed_since_it_was_seen_is_an_error() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "one").unwrap();
    let tree = tree(directory.path());
    let node = node(&tree, "file");
    fs::write(&file, "three").unwrap();
    let error = tree.digest(node).unwrap_err();
    assert_eq!(error.to_string(), format!("{} changed during the build", file.display()));
    let content = tree.content(node).unwrap();
    let error = content.read_at(&mut [0; 9], 0).unwrap_err();
    assert_eq!(error.to_string(), format!("{} changed during the build", file.display()));
}

/// Changes the file after its first bytes were read.
struct Meddling<'a> {
    file: &'a File,
    path: &'a Path,
    is_done: bool,
}

impl Read for Meddling<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if !self.is_done {
            self.is_done = true;
            let half = buffer.len() / 2;
            let count = self.file.read(&mut buffer[..half])?;
            // Same length: times alone tell. Set by hand, as the clock may stand
            // still between two writes.
            fs::OpenOptions::new().write(true).open(self.path)?.write_all(b"two")?;
            let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
            fs::File::open(self.path)?.set_modified(past)?;
            return Ok(count);
        }
        self.file.read(buffer)
    }
}

#[test]
fn a_file_that_changes_while_it_is_hashed_is_an_error_and_not_remembered() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "one").unwrap();
    let memory = Arc::new(Memory::default());
    let tree = tree(directory.path()).remembering(memory.clone());
    let bytes = tree.bytes(node(&tree, "file")).unwrap();
    let file = tree.open(&bytes.path).unwrap();
    let meddling = Meddling { file: &file, path: &path, is_done: false };
    let error = tree.hash_open(&bytes, &file, meddling).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert_eq!(memory.puts.load(Ordering::Relaxed), 0);
}

#[test]
fn prefetching_hashes_each_file_once_with_any_number_of_threads() {
    let directory = TempDir::new().unwrap();
    for index in 0..50 {
        fs::write(directory.path().join(format!("file{index}")), [index; 99]).unwrap();
    }
    fs::create_dir(directory.path().join("directory")).unwrap();
    for threads in [1, 2, 7, 100] {
        let memory = Arc::new(Memory::default());
        let tree = tree(directory.path()).remembering(memory.clone());
        let nodes: Vec<_> =
            tree.children(tree.root()).unwrap().into_iter().map(|(_, node)| node).collect();
        tree.prefetch_digests(&nodes, NonZeroUsize::new(threads).unwrap()).unwrap();
        assert_eq!(memory.puts.load(Ordering::Relaxed), 50);
        let digest = tree.digest(node(&tree, "file7")).unwrap();
        assert_eq!(digest, *blake3::hash(&[7; 99]).as_bytes());
        assert_eq!(memory.puts.load(Ordering::Relaxed), 50);
    }
}

#[test]
fn prefetching_fails_with_the_first_of_several_failing_files() {
    let directory = TempDir::new().unwrap();
    for index in 10..40 {
        fs::write(directory.path().join(format!("file{index}")), "text").unwrap();
    }
    let tree = tree(directory.path());
    let nodes: Vec<_> =
        tree.children(tree.root()).unwrap().into_iter().map(|(_, node)| node).collect();
    for index in [13, 17, 33] {
        fs::write(directory.path().join(format!("file{index}")), "longer").unwrap();
    }
    let error = tree.prefetch_digests(&nodes, NonZeroUsize::new(4).unwrap()).unwrap_err();
    assert!(error.to_string().contains("file13"), "{error}");
}

#[test]
fn the_cache_is_asked_with_its_own_fingerprint_and_keeps_nothing_too_young() {
    let (directory, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let root = yadokari_cache::ContextRoot::of(directory.path()).unwrap();
    let memory = Arc::new(ContextDigests::load(cache.path(), &root));
    // Written after the build began, so its times prove nothing yet.
    let file = directory.path().join("file");
    fs::write(&file, "text").unwrap();
    let tree = tree(directory.path()).remembering(memory.clone());
    let node = node(&tree, "file");
    let digest = tree.digest(node).unwrap();
    let found = tree.bytes(node).unwrap().fingerprint;
    assert_eq!(found, Fingerprint::of(&fs::metadata(&file).unwrap()));
    assert_eq!(DigestMemory::get(&*memory, b"file", &found), None);
    assert_eq!(tree.digest(node).unwrap(), digest);
}
