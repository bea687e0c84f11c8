//! A stored file mapped into memory.
//!
//! The index of a layer of a million files has some hundred megabytes, of which a
//! build touches little. Mapped, opening it costs the same whatever its size, and
//! its pages belong to the page cache that all builders share, not to us.

#![allow(unsafe_code, reason = "the one place outside overlay and sandbox; see above")]

use std::fs::File;
use std::io;

/// The bytes of a file, read-only.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps a file of the store.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        // SAFETY: the bytes of a mapping must not change while they are borrowed.
        // Files of the store come into being by a rename when they are complete,
        // nobody opens them for writing afterwards, and they go by unlinking,
        // which leaves a mapping intact. Whoever else can write into the cache
        // directory can as well replace what is in it.
        unsafe { memmap2::Mmap::map(file) }.map(Self)
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
