//! Random reads, writes, truncations, holes, copies and mappings of one file, against
//! bytes in memory, as fsx does: whatever way bytes take in, they come out every way.
//! Needs what `tests/mount.rs` needs.
//!
//! `YADOKARI_SEED` repeats a run, `YADOKARI_OPERATIONS` makes it longer.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/both.rs"]
mod both;
#[path = "support/mapper.rs"]
mod mapper;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/random.rs"]
mod random;

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use both::Both;
use mapper::Mapper;
use random::Random;
use rustix::fs::FallocateFlags;

/// A file doesn't grow beyond: across the size at which files are stored apart.
const LONGEST: u64 = 1_400_000;

fn number(variable: &str, otherwise: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable}: a number")))
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// The file, and the bytes that it must have.
struct Exercised {
    file: File,
    path: PathBuf,
    mapper: Mapper,
    bytes: Vec<u8>,
    random: Random,
    /// What was done last, for whoever looks for a fault.
    trail: Vec<String>,
}

impl Exercised {
    /// A range: small, or across many pages; within the file or beyond.
    fn range(&mut self) -> (u64, usize) {
        let longest = if self.random.chance(20) { 300_000 } else { 10_000 };
        let length = self.random.below(longest) + 1;
        let limit = match self.random.chance(70) {
            true => self.bytes.len() as u64 + 1,
            false => LONGEST - length,
        };
        (self.random.below(limit).min(LONGEST - length), length as usize)
    }

    /// The part of a range that lies in the file.
    fn within(&mut self) -> Option<std::ops::Range<usize>> {
        let (offset, length) = self.range();
        let start = offset as usize;
        let end = (start + length).min(self.bytes.len());
        (start < end).then_some(start..end)
    }

    fn grow(&mut self, end: usize) {
        self.bytes.resize(self.bytes.len().max(end), 0);
    }

    fn put(&mut self, start: usize, bytes: &[u8]) {
        self.grow(start + bytes.len());
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn act(&mut self) {
        let what = self.random.below(100);
        let (offset, length) = self.range();
        let start = offset as usize;
        self.trail.push(format!("{what} {offset} {length} of {}", self.bytes.len()));
        match what {
            0..22 => {
                let bytes = self.random.bytes(length);
                self.file.write_all_at(&bytes, offset).unwrap();
                self.put(start, &bytes);
            }
            22..44 => {
                let mut read = vec![1; length];
                let count = self.file.read_at(&mut read, offset).unwrap();
                let expected = self.bytes.len().saturating_sub(start).min(length);
                self.check(count == expected, "length of a read");
                let same = read[..count] == self.bytes[start.min(self.bytes.len())..][..count];
                self.check(same, "bytes of a read");
            }
            44..52 => {
                self.file.set_len(offset).unwrap();
                self.bytes.resize(start, 0);
            }
            52..66 => {
                let Some(range) = self.within() else { return };
                let bytes = self.random.bytes(range.len());
                if self.random.chance(30) {
                    self.mapper.write_and_flush(&self.path, range.start, &bytes).unwrap();
                } else {
                    let writes = [(range.start, bytes.clone())];
                    self.mapper.write(&self.path, &writes).unwrap();
                }
                self.mapper.forget().unwrap();
                self.bytes[range].copy_from_slice(&bytes);
            }
            66..76 => {
                let Some(range) = self.within() else { return };
                let same = self.mapper.shows(&self.path, range.start, &self.bytes[range]);
                self.check(same.unwrap(), "bytes of a mapping");
                self.mapper.forget().unwrap();
            }
            76..82 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.file, flags, offset, length as u64).unwrap();
                let size = self.bytes.len();
                self.bytes[start.min(size)..(start + length).min(size)].fill(0);
            }
            82..86 => {
                let flags = FallocateFlags::ZERO_RANGE;
                rustix::fs::fallocate(&self.file, flags, offset, length as u64).unwrap();
                self.put(start, &vec![0; length]);
            }
            86..88 => {
                let flags = FallocateFlags::empty();
                rustix::fs::fallocate(&self.file, flags, offset, length as u64).unwrap();
                self.grow(start + length);
            }
            88..96 => {
                let Some(from) = self.within() else { return };
                let overlaps = start < from.end && from.start < start + from.len();
                if overlaps || start + from.len() > LONGEST as usize {
                    return;
                }
                let (mut source, mut target) = (from.start as u64, offset);
                let mut left = from.len();
                while left > 0 {
                    let file = &self.file;
                    let copied = rustix::fs::copy_file_range(
                        file,
                        Some(&mut source),
                        file,
                        Some(&mut target),
                        left,
                    );
                    left -= copied.unwrap();
                }
                let bytes = self.bytes[from].to_vec();
                self.put(start, &bytes);
            }
            _ => {
                let size = self.file.metadata().unwrap().len();
                self.check(size == self.bytes.len() as u64, "size");
            }
        }
    }

    fn check(&self, holds: bool, what: &str) {
        let last = &self.trail[self.trail.len().saturating_sub(12)..];
        assert!(
            holds,
            "{what} is wrong; what, offset and length of the last operations: {last:#?}"
        );
    }
}

#[test]
fn a_file_gives_back_what_was_put_in_whichever_way() {
    let Some(mut both) = Both::new() else { return };
    let seed = number("YADOKARI_SEED", u64::from(std::process::id()));
    let count = number("YADOKARI_OPERATIONS", 4_000);
    println!("YADOKARI_SEED={seed} YADOKARI_OPERATIONS={count}");
    let path = both.ours().join("file");
    let random = Random::new(seed);
    let mut exercised = Exercised {
        file: open(&path),
        path: path.clone(),
        mapper: Mapper::start(),
        bytes: Vec::new(),
        random,
        trail: Vec::new(),
    };
    for number in 1..=count {
        exercised.act();
        if number % 500 != 0 {
            continue;
        }
        match exercised.random.below(3) {
            // Whatever was handed out must not change any more.
            0 => both.overlay.mark(),
            1 => drop(both.overlay.after().content(yadokari::tree::NodeId(
                std::os::unix::fs::MetadataExt::ino(&exercised.file.metadata().unwrap()),
            ))),
            _ => {
                exercised.file = File::open("/dev/null").unwrap();
                both.remount();
                exercised.file = open(&path);
            }
        }
        let same = fs::read(&path).unwrap() == exercised.bytes;
        exercised.check(same, "the whole file");
    }
    exercised.file = File::open("/dev/null").unwrap();
    both.remount();
    let same = fs::read(&path).unwrap() == exercised.bytes;
    exercised.check(same, "the whole file after a remount");
}
