//! Compression of layers in independent blocks, on as many threads as there are.
//!
//! gzip is written as one member per block and zstd as one frame per block;
//! concatenations of either are what RFC 1952 (2.2) and RFC 8878 (3) define as a
//! file, and every registry client reads them. Blocks are cut by size alone, so
//! the bytes don't depend on the number of threads. For readers that stop after
//! the first gzip member there is a mode with only one, on one thread.
//!
//! Memory is bounded: a few blocks per thread, see [`Compressor::new`].

use std::collections::VecDeque;
use std::io;
use std::io::Write;
use std::thread;

use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;

/// Input of one gzip member: 32 times the window of deflate, so little is lost at
/// the cuts, and a layer of a few megabytes still occupies every thread.
const GZIP_BLOCK: usize = 1 << 20;
/// Input of one zstd frame: the window of level 3, so no match is lost within it.
const ZSTD_BLOCK: usize = 2 << 20;

/// Input that a single gzip member is fed at a time. zlib's output depends on how
/// its input is cut, so the cuts must not come from whoever writes.
const SINGLE_PIECE: usize = 128 << 10;

/// How a layer blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// The tar as it is.
    None,
    /// gzip at level 0 to 12 (with a single member, to 9).
    Gzip {
        /// Higher is smaller and slower.
        level: u8,
        /// One member for readers that take no more: slower, larger, one thread.
        single_member: bool,
    },
    /// zstd at level 1 to 22.
    Zstd {
        /// Higher is smaller and slower.
        level: u8,
    },
}

impl Compression {
    /// gzip as a build writes it unless told otherwise. Level 1 of libdeflate is
    /// twice as fast as level 6 for 8 % more bytes (740 MB of programs and
    /// scripts: .406 against .377); kaniko's true default is 1 too.
    pub const DEFAULT: Self = Self::Gzip { level: 1, single_member: false };

    /// Stable text that names the setting, for keys and reports: equal labels mean
    /// equal settings.
    pub fn label(&self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Gzip { level, single_member: false } => format!("gzip-members-{level}"),
            Self::Gzip { level, single_member: true } => format!("gzip-single-{level}"),
            Self::Zstd { level } => format!("zstd-frames-{level}"),
        }
    }

    /// What OCI appends to the media type of a tar layer: ``, `+gzip` or `+zstd`.
    pub fn media_type_suffix(&self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip { .. } => "+gzip",
            Self::Zstd { .. } => "+zstd",
        }
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A writer that compresses to another one. Only [`Compressor::finish`] makes the
/// output whole; what a dropped compressor leaves behind has to be thrown away.
pub struct Compressor<W: Write>(Mode<W>);

enum Mode<W: Write> {
    Plain(W),
    Single(Single<W>),
    Blocks(Blocks<W>),
}

impl<W: Write> Compressor<W> {
    /// Compresses to `out` on `threads` threads of its own; 0 and 1 mean on the
    /// caller's. At most 2 × `threads` + 2 blocks of 1 MiB (zstd: 2 MiB) with their
    /// results are in memory.
    ///
    /// # Errors
    /// When the level is out of range or a thread can't be started.
    pub fn new(out: W, compression: Compression, threads: usize) -> io::Result<Self> {
        Ok(Self(match compression {
            Compression::None => Mode::Plain(out),
            Compression::Gzip { level, single_member: true } => {
                if level > 9 {
                    return Err(level_error("gzip", level));
                }
                let level = flate2::Compression::new(level.into());
                let encoder = flate2::write::GzEncoder::new(out, level);
                Mode::Single(Single { encoder, piece: Vec::with_capacity(SINGLE_PIECE) })
            }
            Compression::Gzip { level, single_member: false } => {
                Mode::Blocks(Blocks::new(out, GZIP_BLOCK, Codec::gzip(level)?, threads)?)
            }
            Compression::Zstd { level } => {
                Mode::Blocks(Blocks::new(out, ZSTD_BLOCK, Codec::zstd(level)?, threads)?)
            }
        }))
    }

    /// Compresses and writes what is left and gives the writer back, flushed.
    ///
    /// # Errors
    /// Those of the writer, also from earlier calls.
    pub fn finish(self) -> io::Result<W> {
        let mut out = match self.0 {
            Mode::Plain(out) => out,
            Mode::Single(mut single) => {
                single.encoder.write_all(&single.piece)?;
                single.encoder.finish()?
            }
            Mode::Blocks(blocks) => blocks.finish()?,
        };
        out.flush()?;
        Ok(out)
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Mode::Plain(out) => out.write(bytes),
            Mode::Single(single) => single.write(bytes),
            Mode::Blocks(blocks) => blocks.write(bytes),
        }
    }

    /// Does nothing: cutting a block short would change the output.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One gzip member on the caller's thread, fed in equal pieces.
struct Single<W: Write> {
    encoder: flate2::write::GzEncoder<W>,
    piece: Vec<u8>,
}

impl<W: Write> Single<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == SINGLE_PIECE {
            self.encoder.write_all(&self.piece)?;
            self.piece.clear();
        }
        let taken = bytes.len().min(SINGLE_PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }
}

fn level_error(what: &str, level: u8) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what} has no level {level}"))
}

/// What compresses one block; each thread makes its own.
#[derive(Clone, Copy)]
enum Codec {
    Gzip(libdeflater::CompressionLvl),
    Zstd(i32),
}

impl Codec {
    fn gzip(level: u8) -> io::Result<Self> {
        libdeflater::CompressionLvl::new(level.into())
            .map(Self::Gzip)
            .map_err(|_| level_error("gzip", level))
    }

    fn zstd(level: u8) -> io::Result<Self> {
        if (1..=22).contains(&level) {
            Ok(Self::Zstd(level.into()))
        } else {
            Err(level_error("zstd", level))
        }
    }

    fn worker(self) -> io::Result<Worker> {
        Ok(match self {
            Self::Gzip(level) => Worker::Gzip(libdeflater::Compressor::new(level)),
            Self::Zstd(level) => Worker::Zstd(zstd::bulk::Compressor::new(level)?),
        })
    }
}

enum Worker {
    Gzip(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Worker {
    /// Compresses `input` into `output`, replacing what it held.
    fn compress(&mut self, input: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Gzip(compressor) => {
                output.resize(compressor.gzip_compress_bound(input.len()), 0);
                let length = compressor
                    .gzip_compress(input, output)
                    .map_err(|error| io::Error::other(error.to_string()))?;
                output.truncate(length);
            }
            Self::Zstd(compressor) => {
                output.clear();
                output.reserve(zstd::zstd_safe::compress_bound(input.len()));
                compressor.compress_to_buffer(input, output)?;
            }
        }
        Ok(())
    }
}

/// A block on its way: input in, output out, both buffers used again.
#[derive(Default)]
struct Block {
    input: Vec<u8>,
    output: Vec<u8>,
}

struct Job {
    block: Block,
    done: Sender<io::Result<Block>>,
}

/// Cuts the input into blocks, has them compressed, and writes the results in order.
struct Blocks<W> {
    out: W,
    size: usize,
    current: Block,
    spare: Vec<Block>,
    engine: Engine,
    /// Whether any block was sent off.
    any: bool,
    failed: bool,
}

enum Engine {
    Here(Box<Worker>),
    Pool(Pool),
}

struct Pool {
    jobs: Option<Sender<Job>>,
    pending: VecDeque<Receiver<io::Result<Block>>>,
    limit: usize,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Pool {
    fn new(codec: Codec, count: usize) -> io::Result<Self> {
        let limit = 2 * count;
        let (jobs, queue) = crossbeam_channel::bounded::<Job>(limit);
        let mut pool =
            Self { jobs: Some(jobs), pending: VecDeque::new(), limit, threads: Vec::new() };
        for _ in 0..count {
            let mut worker = codec.worker()?;
            let queue = queue.clone();
            let run = move || {
                for mut job in queue {
                    let result = worker.compress(&job.block.input, &mut job.block.output);
                    // Nobody waits for it after an error; then there is nothing to do.
                    let _ = job.done.send(result.map(|()| job.block));
                }
            };
            pool.threads.push(thread::Builder::new().name("compress".to_owned()).spawn(run)?);
        }
        Ok(pool)
    }

    fn submit(&mut self, block: Block) -> io::Result<()> {
        let (done, result) = crossbeam_channel::bounded(1);
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(Job { block, done }));
        match sent {
            Some(Ok(())) => {
                self.pending.push_back(result);
                Ok(())
            }
            _ => Err(gone()),
        }
    }

    /// The oldest block, waiting for it if `wait`; `None` if there is none (yet).
    fn next(&mut self, wait: bool) -> io::Result<Option<Block>> {
        let Some(oldest) = self.pending.front() else { return Ok(None) };
        let received = if wait {
            oldest.recv().map_err(|_| gone())?
        } else {
            match oldest.try_recv() {
                Ok(result) => result,
                Err(crossbeam_channel::TryRecvError::Empty) => return Ok(None),
                Err(crossbeam_channel::TryRecvError::Disconnected) => return Err(gone()),
            }
        };
        self.pending.pop_front();
        received.map(Some)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        self.pending.clear();
        for thread in self.threads.drain(..) {
            // A panic of the thread has shown as a lost block already.
            let _ = thread.join();
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("a compression thread ended early")
}

impl<W: Write> Blocks<W> {
    fn new(out: W, size: usize, codec: Codec, threads: usize) -> io::Result<Self> {
        let engine = match threads {
            0 | 1 => Engine::Here(Box::new(codec.worker()?)),
            count => Engine::Pool(Pool::new(codec, count)?),
        };
        let current = Block::default();
        Ok(Self { out, size, current, spare: Vec::new(), engine, any: false, failed: false })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("the compressed output failed earlier"));
        }
        // Blocks grow as they fill: a small layer shouldn't cost whole ones.
        let taken = bytes.len().min(self.size - self.current.input.len());
        self.current.input.extend_from_slice(&bytes[..taken]);
        if self.current.input.len() == self.size {
            let result = self.send();
            self.failed = result.is_err();
            result?;
        }
        Ok(taken)
    }

    /// Has the current block compressed and writes what is ready.
    fn send(&mut self) -> io::Result<()> {
        self.any = true;
        match &mut self.engine {
            Engine::Here(worker) => {
                worker.compress(&self.current.input, &mut self.current.output)?;
                self.out.write_all(&self.current.output)?;
                self.current.input.clear();
                Ok(())
            }
            Engine::Pool(pool) => {
                let next = self.spare.pop().unwrap_or_default();
                pool.submit(std::mem::replace(&mut self.current, next))?;
                self.drain(false)
            }
        }
    }

    /// Writes finished blocks in order: those that are ready and as many as stand
    /// above the limit, or all.
    fn drain(&mut self, all: bool) -> io::Result<()> {
        let Engine::Pool(pool) = &mut self.engine else { return Ok(()) };
        while let Some(mut block) = pool.next(all || pool.pending.len() >= pool.limit)? {
            self.out.write_all(&block.output)?;
            block.input.clear();
            self.spare.push(block);
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        if self.failed {
            return Err(io::Error::other("the compressed output failed earlier"));
        }
        // Nothing at all still is one empty member or frame.
        if !self.current.input.is_empty() || !self.any {
            self.send()?;
        }
        self.drain(true)?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests;
