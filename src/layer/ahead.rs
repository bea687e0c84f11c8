//! Reading in a thread of its own: decompressing a stream costs about as much as
//! hashing, indexing and writing what comes out, and neither has to wait for the other.

use std::io;
use std::io::Read;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::PoisonError;

use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;

/// Bytes handed over at a time, and how many such pieces may wait.
const PIECE: usize = 256 << 10;
const WAITING: usize = 3;

/// Lets `consume` read what another thread reads of `source`, some pieces ahead, if there
/// is another processor to do it. Errors of `source` are those of reading. What `consume`
/// leaves unread may have been read of `source` all the same.
pub fn ahead<T>(source: impl Read + Send, consume: impl FnOnce(&mut dyn Read) -> T) -> T {
    let source = Mutex::new(source);
    let lock = || source.lock().unwrap_or_else(PoisonError::into_inner);
    if std::thread::available_parallelism().map_or(1, NonZero::get) == 1 {
        return consume(&mut *lock());
    }
    std::thread::scope(|scope| {
        let (full, pieces) = crossbeam_channel::bounded(WAITING);
        let (empty, spare) = crossbeam_channel::bounded(WAITING + 2);
        let thread = std::thread::Builder::new().name("inflate".to_owned());
        match thread.spawn_scoped(scope, move || hand_over(&mut *lock(), &full, &spare)) {
            Ok(_) => {
                // Dropped when this returns: then the thread ends, too.
                let mut ahead = Ahead { pieces, empty, piece: Vec::new(), at: 0, is_over: false };
                consume(&mut ahead)
            }
            Err(_) => consume(&mut *lock()),
        }
    })
}

/// Reads `source` to its end, of which an empty piece tells, or until nobody listens.
fn hand_over(
    source: &mut impl Read,
    full: &Sender<io::Result<Vec<u8>>>,
    spare: &Receiver<Vec<u8>>,
) {
    loop {
        let mut piece: Vec<u8> = spare.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let mut filled = 0;
        let mut error = None;
        while filled < PIECE && error.is_none() {
            match source.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(next) if next.kind() == io::ErrorKind::Interrupted => {}
                Err(next) => error = Some(next),
            }
        }
        piece.truncate(filled);
        if (filled > 0 || error.is_none()) && full.send(Ok(piece)).is_err() {
            return;
        }
        if let Some(error) = error {
            let _ = full.send(Err(error));
            return;
        }
        if filled == 0 {
            return;
        }
    }
}

struct Ahead {
    pieces: Receiver<io::Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    is_over: bool,
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() && !self.is_over {
            let _ = self.empty.try_send(std::mem::take(&mut self.piece));
            self.at = 0;
            self.piece = self
                .pieces
                .recv()
                .unwrap_or_else(|_| Err(io::Error::other("the thread that reads has ended")))?;
            self.is_over = self.piece.is_empty();
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time, and an error at the end.
    struct Stream {
        bytes: Vec<u8>,
        at: usize,
        end: Option<io::ErrorKind>,
    }

    impl Read for Stream {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(60_000).min(self.bytes.len() - self.at);
            buffer[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
            self.at += count;
            match self.end.filter(|_| count == 0) {
                Some(kind) => Err(kind.into()),
                None => Ok(count),
            }
        }
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|number| (number / 7) as u8).collect()
    }

    #[test]
    fn every_byte_comes_once_and_in_order() {
        for count in [0, 1, PIECE - 1, PIECE, PIECE + 1, 9 * PIECE + 5] {
            let stream = Stream { bytes: bytes(count), at: 0, end: None };
            let mut found = Vec::new();
            ahead(stream, |reader| {
                reader.read_to_end(&mut found).unwrap();
                assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0, "behind the end");
            });
            assert!(found == bytes(count), "{count}");
        }
    }

    #[test]
    fn an_error_comes_after_what_was_read_and_is_no_end() {
        for count in [0, 10, PIECE, 7 * PIECE + 3] {
            let end = Some(io::ErrorKind::TimedOut);
            let stream = Stream { bytes: bytes(count), at: 0, end };
            ahead(stream, |reader| {
                let mut found = Vec::new();
                let error = reader.read_to_end(&mut found).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                assert!(found == bytes(count), "{count}");
                assert!(reader.read(&mut [0; 8]).is_err(), "and there is nothing behind it");
            });
        }
    }

    #[test]
    fn whoever_stops_early_waits_for_nothing() {
        let stream = Stream { bytes: bytes(100 * PIECE), at: 0, end: None };
        let first = ahead(stream, |reader| {
            let mut first = [0; 3];
            reader.read_exact(&mut first).map(|()| first)
        });
        assert_eq!(first.unwrap(), bytes(3)[..]);
    }
}
