//! Shared writable mappings, made by another process.
//!
//! Taking a mapping away waits, with the lock of its address space held, for pages
//! that are still to be written. In the process that serves the mount this can wait
//! for itself for ever: a server thread that needs memory needs the same lock.
//!
//! A file that somebody cuts meanwhile is as good as gone: `NotFound`.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;

/// One line in, one line out: a file is mapped and written through (`put`, `flush`) or
/// compared (`is`); the mapping stays until the next line.
const PROGRAM: &str = r"
import mmap, os, sys
kept = None
for line in sys.stdin:
    words = line.split()
    if kept is not None:
        kept.close()
        kept = None
    answer = 0
    try:
        if words:
            fd = os.open(bytes.fromhex(words[0]), os.O_RDWR | os.O_NOFOLLOW)
            try:
                kept = mmap.mmap(fd, 0)
            finally:
                os.close(fd)
            for word in words[1:]:
                what, at, data = word.split(':')
                at, data = int(at), bytes.fromhex(data)
                if what == 'is':
                    assert kept[at:at + len(data)] == data
                else:
                    kept[at:at + len(data)] = data
                if what == 'flush':
                    kept.flush()
    except AssertionError:
        answer = 5
    except OSError as error:
        answer = error.errno
    except IndexError:
        answer = 2
    print(answer, flush=True)
";

/// The process; it ends with this value.
pub(crate) struct Mapper {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Mapper {
    /// Starts the process.
    pub(crate) fn start() -> Self {
        let mut child = Command::new("python3")
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, input, output }
    }

    /// Writes through a mapping of the whole file, which is kept.
    pub(crate) fn write(&mut self, path: &Path, writes: &[(usize, Vec<u8>)]) -> io::Result<()> {
        let mut line = hex(path.as_os_str().as_bytes());
        for (at, bytes) in writes {
            line.push_str(&format!(" put:{at}:{}", hex(bytes)));
        }
        self.ask(&line)
    }

    /// Writes `bytes` through a mapping of the whole file and waits until they are written.
    pub(crate) fn write_and_flush(
        &mut self,
        path: &Path,
        at: usize,
        bytes: &[u8],
    ) -> io::Result<()> {
        self.ask(&format!("{} flush:{at}:{}", hex(path.as_os_str().as_bytes()), hex(bytes)))
    }

    /// Whether `bytes` are what a mapping shows.
    pub(crate) fn shows(&mut self, path: &Path, at: usize, bytes: &[u8]) -> io::Result<bool> {
        let line = format!("{} is:{at}:{}", hex(path.as_os_str().as_bytes()), hex(bytes));
        match self.ask(&line) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Takes the mapping away.
    pub(crate) fn forget(&mut self) -> io::Result<()> {
        self.ask("")
    }

    fn ask(&mut self, line: &str) -> io::Result<()> {
        let mut answer = String::new();
        let asked = writeln!(self.input, "{line}");
        if asked.is_err() || self.output.read_line(&mut answer)? == 0 {
            // SIGBUS: there are no pages behind the end of a file.
            *self = Self::start();
            return Err(io::ErrorKind::NotFound.into());
        }
        match answer.trim().parse().expect("a number of an error") {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
