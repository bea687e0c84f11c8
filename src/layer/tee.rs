//! Streams that hash and count what flows through them, and one that splits.

use std::io;
use std::io::Read;
use std::io::Write;

use sha2::Digest as _;
use sha2::Sha256;

use crate::oci::digest::Digest;

/// Passes bytes on to a writer, hashing and counting those that it took.
pub struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    count: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Starts at zero bytes in front of `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), count: 0 }
    }

    /// Bytes so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The writer, the SHA-256 of everything written and its length in bytes.
    /// Doesn't flush.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_bytes(self.hasher.finalize().into()), self.count)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..taken]);
        self.count += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Hands out the bytes of a reader, hashing and counting them.
pub struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    /// Starts at zero bytes behind `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), count: 0 }
    }

    /// Bytes so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The reader, the SHA-256 of everything read and its length in bytes. What
    /// wasn't read isn't in it.
    pub fn finish(self) -> (R, Digest, u64) {
        (self.inner, Digest::from_bytes(self.hasher.finalize().into()), self.count)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

/// Writes everything to two writers. After an error the two may hold different
/// amounts.
pub struct Tee<A, B> {
    first: A,
    second: B,
}

impl<A: Write, B: Write> Tee<A, B> {
    /// Splits to `first` and `second`, in this order.
    pub fn new(first: A, second: B) -> Self {
        Self { first, second }
    }

    /// Both writers. Doesn't flush.
    pub fn into_inner(self) -> (A, B) {
        (self.first, self.second)
    }
}

impl<A: Write, B: Write> Write for Tee<A, B> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.first.write(bytes)?;
        self.second.write_all(&bytes[..taken])?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.first.flush()?;
        self.second.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_give_the_digest_of_what_flowed() {
        let mut writer = HashingWriter::new(Tee::new(Vec::new(), Vec::new()));
        writer.write_all(b"some ").expect("a vector takes all");
        writer.write_all(b"bytes").expect("a vector takes all");
        let (tee, digest, count) = writer.finish();
        assert_eq!(tee.into_inner(), (b"some bytes".to_vec(), b"some bytes".to_vec()));
        assert_eq!((digest, count), (Digest::of(b"some bytes"), 10));

        let mut reader = HashingReader::new(b"some bytes".as_slice());
        io::copy(&mut reader, &mut io::sink()).expect("a slice is readable");
        let (_, digest, count) = reader.finish();
        assert_eq!((digest, count), (Digest::of(b"some bytes"), 10));
    }
}
