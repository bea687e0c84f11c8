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

/// One line in, one line out: a file is mapped and written through; the mapping stays
/// until the next line.
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
                at, data = word.split(':')
                data = bytes.fromhex(data)
                kept[int(at):int(at) + len(data)] = data
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
            line.push_str(&format!(" {at}:{}", hex(bytes)));
        }
        self.ask(&line)
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
