//! Reads a stream and passes every byte of it on, hashed.

use std::io;
use std::io::Read;
use std::io::Write;

use sha2::Digest as _;
use sha2::Sha256;

use crate::layer::error::Error;
use crate::layer::header::BLOCK;
use crate::oci::digest::DiffId;

/// Bytes read at a time; also the size of the writes on the other side.
const BUFFER: usize = 256 << 10;

/// Why a read through the tap gave less than was asked for.
pub(super) enum Short {
    /// The stream ended.
    End,
    /// Source or sink failed.
    Failed(Error),
}

pub(super) struct Tap<R, W> {
    input: R,
    out: W,
    hasher: Sha256,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes consumed by the reader of the tar, not by the sink.
    position: u64,
}

impl<R: Read, W: Write> Tap<R, W> {
    pub(super) fn new(input: R, out: W) -> Self {
        let buffer = vec![0; BUFFER].into();
        Self { input, out, hasher: Sha256::new(), buffer, start: 0, end: 0, position: 0 }
    }

    /// Offset in the stream of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The bytes at hand, at least one; empty at the end of the stream.
    fn fill(&mut self) -> Result<&[u8], Error> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            // Short reads are gathered: the sink is to see large writes.
            while self.end < self.buffer.len() {
                match self.input.read(&mut self.buffer[self.end..]) {
                    Ok(0) => break,
                    Ok(count) => self.end += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Error::Read(error)),
                }
            }
            self.hasher.update(&self.buffer[..self.end]);
            self.out.write_all(&self.buffer[..self.end]).map_err(Error::Write)?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Consumes exactly `length` bytes, showing them to `sink` piece by piece.
    pub(super) fn each(&mut self, length: u64, mut sink: impl FnMut(&[u8])) -> Result<(), Short> {
        let mut left = length;
        while left > 0 {
            let piece = self.fill().map_err(Short::Failed)?;
            if piece.is_empty() {
                return Err(Short::End);
            }
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            sink(&piece[..count]);
            self.start += count;
            self.position += count as u64;
            left -= count as u64;
        }
        Ok(())
    }

    /// Consumes a block; `None` if the stream ends right here.
    pub(super) fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Short> {
        if self.fill().map_err(Short::Failed)?.is_empty() {
            return Ok(None);
        }
        let (mut block, mut filled) = ([0; BLOCK], 0);
        self.each(BLOCK as u64, |piece| {
            block[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        })?;
        Ok(Some(block))
    }

    /// Passes on whatever is left; gives the SHA-256 and length of everything.
    pub(super) fn finish(mut self) -> Result<(DiffId, u64), Error> {
        loop {
            let count = self.fill()?.len();
            if count == 0 {
                break;
            }
            self.start = self.end;
            self.position += count as u64;
        }
        self.out.flush().map_err(Error::Write)?;
        Ok((DiffId::from_bytes(self.hasher.finalize().into()), self.position))
    }
}
