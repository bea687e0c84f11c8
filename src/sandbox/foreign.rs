//! Whether programs for another architecture run here, found out by running one: the
//! kernel may have an interpreter for it (binfmt_misc), and neither its list nor the
//! interpreter need be visible from inside a container.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

/// A program that does nothing but `exit(0)`.
struct Program {
    /// As Go names it.
    architecture: &'static str,
    /// 64 bits.
    wide: bool,
    big_endian: bool,
    /// `e_machine` of its ELF header (elf.h).
    machine: u16,
    /// `e_flags`.
    flags: u32,
    code: &'static [u8],
}

const PROGRAMS: [Program; 8] = [
    Program {
        architecture: "amd64",
        wide: true,
        big_endian: false,
        machine: 62,
        flags: 0,
        // mov eax, 60; xor edi, edi; syscall
        code: &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05],
    },
    Program {
        architecture: "386",
        wide: false,
        big_endian: false,
        machine: 3,
        flags: 0,
        // mov eax, 1; xor ebx, ebx; int 0x80
        code: &[0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80],
    },
    Program {
        architecture: "arm64",
        wide: true,
        big_endian: false,
        machine: 183,
        flags: 0,
        // mov x8, #93; mov x0, #0; svc #0
        code: &[0xa8, 0x0b, 0x80, 0xd2, 0, 0, 0x80, 0xd2, 0x01, 0, 0, 0xd4],
    },
    Program {
        architecture: "arm",
        wide: false,
        big_endian: false,
        machine: 40,
        // EABI 5.
        flags: 0x0500_0000,
        // mov r7, #1; mov r0, #0; svc #0
        code: &[0x01, 0x70, 0xa0, 0xe3, 0, 0, 0xa0, 0xe3, 0, 0, 0, 0xef],
    },
    Program {
        architecture: "riscv64",
        wide: true,
        big_endian: false,
        machine: 243,
        // Double-precision floats, as every distribution is built.
        flags: 4,
        // li a7, 93; li a0, 0; ecall
        code: &[0x93, 0x08, 0xd0, 0x05, 0x13, 0x05, 0, 0, 0x73, 0, 0, 0],
    },
    Program {
        architecture: "ppc64le",
        wide: true,
        big_endian: false,
        machine: 21,
        // ELF v2.
        flags: 2,
        // li r0, 1; li r3, 0; sc
        code: &[0x01, 0, 0, 0x38, 0, 0, 0x60, 0x38, 0x02, 0, 0, 0x44],
    },
    Program {
        architecture: "s390x",
        wide: true,
        big_endian: true,
        machine: 22,
        flags: 0,
        // lghi %r2, 0; svc 1
        code: &[0xa7, 0x29, 0, 0, 0x0a, 0x01],
    },
    Program {
        architecture: "loong64",
        wide: true,
        big_endian: false,
        machine: 258,
        // Double-precision floats, object ABI 1.
        flags: 0x43,
        // ori a7, zero, 93; ori a0, zero, 0; syscall 0
        code: &[0x0b, 0x74, 0x81, 0x03, 0x04, 0, 0x80, 0x03, 0, 0, 0x2b, 0],
    },
];

/// Tries again while the file counts as being written: a process that another thread
/// forked a moment ago may still hold our handle.
const TRIES: u32 = 50;

/// Whether programs for `architecture` (Go's name) run on this machine. `None`: we have
/// no program to try it with. Runs one, made in `scratch`.
///
/// # Errors
/// When `scratch` can't be written to.
pub fn runs_here(architecture: &str, scratch: &Path) -> io::Result<Option<bool>> {
    let Some(program) = PROGRAMS.iter().find(|program| program.architecture == architecture) else {
        return Ok(None);
    };
    let path = scratch.join(format!("runs-{architecture}"));
    let mut file = File::create(&path)?;
    file.write_all(&program.elf())?;
    file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
    drop(file);
    let mut tries = 0;
    let ran = loop {
        let status = Command::new(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .status();
        match status {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            other => break other.is_ok_and(|status| status.success()),
        }
    };
    // In a scratch directory it goes with that otherwise.
    let _ = std::fs::remove_file(&path);
    Ok(Some(ran))
}

impl Program {
    /// A static executable with one loadable segment: the whole file.
    fn elf(&self) -> Vec<u8> {
        const BASE: u64 = 0x10000;
        let (header, segment): (u16, u16) = if self.wide { (64, 56) } else { (52, 32) };
        let start = u64::from(header + segment);
        let size = start + self.code.len() as u64;
        let mut out = Out { bytes: Vec::new(), wide: self.wide, big_endian: self.big_endian };
        let class = if self.wide { 2 } else { 1 };
        let order = if self.big_endian { 2 } else { 1 };
        out.bytes.extend([0x7f, b'E', b'L', b'F', class, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.half(2); // ET_EXEC
        out.half(self.machine);
        out.word(1); // EV_CURRENT
        out.address(BASE + start);
        out.address(u64::from(header)); // program headers
        out.address(0); // no section headers
        out.word(self.flags);
        for value in [header, segment, 1, if self.wide { 64 } else { 40 }, 0, 0] {
            out.half(value);
        }
        out.word(1); // PT_LOAD
        if self.wide {
            out.word(5); // readable, executable
        }
        for value in [0, BASE, BASE, size, size] {
            out.address(value);
        }
        if !self.wide {
            out.word(5);
        }
        out.address(0x1000); // alignment
        out.bytes.extend_from_slice(self.code);
        out.bytes
    }
}

struct Out {
    bytes: Vec<u8>,
    wide: bool,
    big_endian: bool,
}

impl Out {
    fn half(&mut self, value: u16) {
        self.bytes.extend(if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() });
    }

    fn word(&mut self, value: u32) {
        self.bytes.extend(if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() });
    }

    fn address(&mut self, value: u64) {
        if !self.wide {
            return self.word(u32::try_from(value).expect("addresses of a tiny file"));
        }
        self.bytes.extend(if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_architecture_runs_and_an_unknown_one_is_not_judged() {
        let scratch = tempfile::tempdir().expect("a directory");
        let own = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        assert_eq!(runs_here(own, scratch.path()).expect("writable"), Some(true));
        assert_eq!(runs_here("pdp11", scratch.path()).expect("writable"), None);
    }

    #[test]
    fn headers_say_what_the_code_is_for() {
        for program in &PROGRAMS {
            let elf = program.elf();
            let machine = [elf[18], elf[19]];
            let machine = match program.big_endian {
                true => u16::from_be_bytes(machine),
                false => u16::from_le_bytes(machine),
            };
            assert_eq!(machine, program.machine, "{}", program.architecture);
            assert!(elf.ends_with(program.code));
        }
    }
}
