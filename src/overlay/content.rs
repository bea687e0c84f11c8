//! The bytes of a file as they were at one moment.

use std::io;
use std::sync::Arc;

use super::extent::Extents;
use crate::tree::ReadAt;

/// A copy of an extent map. Its extents are sealed, so nothing that happens to the
/// file afterwards shows here; it keeps what it reads from open.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) extents: Arc<Extents>,
    pub(super) size: u64,
    pub(super) digest: Option<[u8; 32]>,
}

impl ReadAt for Frozen {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        self.extents.read(&mut buffer[..count], offset)?;
        Ok(count)
    }

    fn known_digest(&self) -> Option<[u8; 32]> {
        self.digest
    }

    fn identity(&self) -> Option<u128> {
        Some(self.extents.identity(self.size))
    }
}
