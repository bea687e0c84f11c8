//! The seccomp filter that asks the recorder about system calls which can change a
//! tree, and about no others: reading costs nothing.
//!
//! | calls | what is noted |
//! | --- | --- |
//! | `open`, `openat` with a flag that writes, creates or truncates; `creat`, `openat2` | the file |
//! | `mkdir(at)`, `mknod(at)`, `unlink(at)`, `rmdir`, `symlink(at)`, `bind` of a unix socket | the entry |
//! | `rename(at)(2)` | both entries, and all below them if they are directories |
//! | `link(at)` | both entries |
//! | `truncate`; `chmod`, `chown`, `utime` and `setxattr` families, by path or descriptor | the file |
//! | `mount` family, `open_by_handle_at`, subvolume ioctls of btrfs | everything: the step is walked |
//! | `setuid`, `setgid` and their kin | that the caller can't be looked into any more |
//! | the same calls of a 32-bit program | everything: the step is walked |
//! | `fchmod`, `fchown`, `futimens`, `fsetxattr`, `fremovexattr` | nothing, under [`Record::Names`]: watches tell of them; but of `fchown` that changes no owner, which takes a capability away, the file |
//! | `execve(at)` | that the caller gets another memory; whether it needed set-user-ID, which no_new_privs takes away |
//! | `io_uring_setup`, x32 calls | refused with ENOSYS: programs fall back |
//!
//! Writes through descriptors and memory maps need no notice: the descriptor was
//! opened for writing by one of these calls. `write`, `pwrite`, `ftruncate`, `fallocate`,
//! `copy_file_range`, `splice`, `FICLONE` and whatever else needs such a descriptor are
//! left alone.

use libc::c_long;
use libc::sock_filter;

use super::super::spec::Record;

/// Bits of `open(2)` flags that can change something: write, create, truncate, and
/// the kernel's own `__O_TMPFILE`.
pub(super) const WRITING: u32 =
    (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u32 | 0o20_000_000;

/// What `data.arch` is for calls of this machine's own kind (`AUDIT_ARCH_*`).
#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE: u32 = 0xc000_00b7;
#[cfg(target_arch = "x86_64")]
const I386: u32 = 0x4000_0003;

/// Set in the number of a call of the x32 kind.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// Calls that libc doesn't name on every machine; the same number everywhere.
pub(super) const FCHMODAT2: c_long = 452;
pub(super) const SETXATTRAT: c_long = 463;
pub(super) const REMOVEXATTRAT: c_long = 466;
pub(super) const FILE_SETATTR: c_long = 469;
pub(super) const OPEN_TREE_ATTR: c_long = 467;

/// Subvolumes of btrfs are made and removed through a descriptor that may be
/// read-only: SNAP_CREATE, SUBVOL_CREATE, SNAP_DESTROY and their second versions.
const SUBVOLUMES: [u32; 6] =
    [0x5000_9401, 0x5000_940e, 0x5000_940f, 0x5000_9417, 0x5000_9418, 0x5000_943f];

/// Calls that are noted by their names: all of them under [`Record::All`].
pub(super) const NOTED: &[c_long] = &[
    libc::SYS_openat2,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_symlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_truncate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    SETXATTRAT,
    REMOVEXATTRAT,
    FILE_SETATTR,
    libc::SYS_bind,
    libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    // Whoever mounts changes what paths mean.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_pivot_root,
    libc::SYS_open_by_handle_at,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_execve,
    libc::SYS_execveat,
    // Nobody can be looked into who changed its user or group.
    libc::SYS_setgid,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setfsgid,
    libc::SYS_setuid,
    libc::SYS_setreuid,
    libc::SYS_setresuid,
    libc::SYS_setfsuid,
];

/// Those that change attributes of the file behind their first argument.
const BY_DESCRIPTOR: &[c_long] =
    &[libc::SYS_fchmod, libc::SYS_fchown, libc::SYS_fsetxattr, libc::SYS_fremovexattr];

/// Those that do so if their second argument, a path, is null.
const BY_DESCRIPTOR_OR_PATH: &[c_long] = &[
    libc::SYS_utimensat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
];

/// The same for 32-bit programs on x86-64, by number (`asm/unistd_32.h`), and
/// `open`, `openat` whatever their flags.
#[cfg(target_arch = "x86_64")]
const NOTED_I386: &[u32] = &[
    5, 8, 9, 10, 14, 15, 16, 21, 22, 30, 38, 39, 40, 52, 83, 92, 93, 94,
    95, // open … fchown
    182, 193, 194, 198, 207, 212, 217, 226, 227, 228, 235, 236, 237, 271, // chown … utimes
    295, 296, 297, 298, 299, 301, 302, 303, 304, 306, 320, 324, 342, 353,
    361, // openat … bind
    412, 428, 429, 437, 452, 463, 466, 467, 469, // utimensat_time64 … file_setattr
];

/// Offsets in `struct seccomp_data`; low halves of arguments (little endian).
pub(super) const NUMBER_AT: u32 = 0;
pub(super) const ARCH_AT: u32 = 4;
pub(super) const fn argument_at(index: u32) -> u32 {
    16 + 8 * index
}

pub(super) const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
pub(super) const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

fn instruction(code: u32, k: u32, on_true: u8, on_false: u8) -> sock_filter {
    let code = u16::try_from(code).expect("classic BPF codes have 16 bits");
    sock_filter { code, jt: on_true, jf: on_false, k }
}

pub(super) fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

pub(super) fn answer(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, action, 0, 0)
}

/// Skips the next `skip` instructions unless the accumulator is `value`.
pub(super) fn unless_equal(value: u32, skip: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, skip)
}

/// Skips the instruction after these if the accumulator is one of `values`.
pub(super) fn unless_one_of(values: [u32; 2]) -> [sock_filter; 2] {
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    [instruction(equal, values[0], 2, 0), instruction(equal, values[1], 1, 0)]
}

/// Skips the next instruction unless the accumulator has one of `bits`.
fn unless_any(bits: u32) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, bits, 0, 1)
}

pub(super) fn jump(length: usize) -> sock_filter {
    let length = u32::try_from(length).expect("a few hundred");
    instruction(libc::BPF_JMP | libc::BPF_JA, length, 0, 0)
}

pub(super) fn number(call: c_long) -> u32 {
    u32::try_from(call).expect("system call numbers are small")
}

/// Assembles the filter.
pub(super) fn program(record: Record) -> Vec<sock_filter> {
    let mut blocks = vec![(NATIVE, native(record))];
    #[cfg(target_arch = "x86_64")]
    blocks.push((I386, i386()));
    let mut program = vec![load(ARCH_AT)];
    for (arch, block) in blocks {
        // A block is longer than a conditional jump reaches.
        program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, arch, 1, 0));
        program.push(jump(block.len()));
        program.extend(block);
    }
    // A kind of call that nobody knows here: slow, and nothing is missed.
    program.push(answer(NOTIFY));
    program
}

fn native(record: Record) -> Vec<sock_filter> {
    let mut block = vec![load(NUMBER_AT)];
    #[cfg(target_arch = "x86_64")]
    {
        block.push(unless_any(X32));
        block.push(answer(ENOSYS));
    }
    for (call, flags) in [
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, 1),
        (libc::SYS_openat, 2),
    ] {
        block.push(unless_equal(number(call), 4));
        block.push(load(argument_at(flags)));
        block.push(unless_any(WRITING));
        block.push(answer(NOTIFY));
        block.push(answer(ALLOW));
    }
    block.push(unless_equal(number(libc::SYS_ioctl), 2 + 2 * SUBVOLUMES.len() as u8));
    block.push(load(argument_at(1)));
    for request in SUBVOLUMES {
        block.push(unless_equal(request, 1));
        block.push(answer(NOTIFY));
    }
    block.push(answer(ALLOW));
    block.push(unless_equal(number(libc::SYS_io_uring_setup), 1));
    block.push(answer(ENOSYS));
    if record == Record::Names {
        block.push(unless_equal(number(libc::SYS_fchown), 6));
        block.push(load(argument_at(1)));
        block.push(unless_equal(u32::MAX, 3));
        block.push(load(argument_at(2)));
        block.push(unless_equal(u32::MAX, 1));
        block.push(answer(NOTIFY));
        block.push(answer(ALLOW));
        for call in BY_DESCRIPTOR_OR_PATH {
            block.push(unless_equal(number(*call), 6));
            block.push(load(argument_at(1)));
            block.push(unless_equal(0, 3));
            block.push(load(argument_at(1) + 4)); // its high half
            block.push(unless_equal(0, 1));
            block.push(answer(ALLOW));
            block.push(answer(NOTIFY));
        }
    }
    for call in NOTED {
        let allowed = record == Record::Names && BY_DESCRIPTOR.contains(call);
        block.push(unless_equal(number(*call), 1));
        block.push(answer(if allowed { ALLOW } else { NOTIFY }));
    }
    block.push(answer(ALLOW));
    block
}

#[cfg(target_arch = "x86_64")]
fn i386() -> Vec<sock_filter> {
    let mut block = vec![load(NUMBER_AT)];
    for call in NOTED_I386 {
        block.push(unless_equal(*call, 1));
        block.push(answer(NOTIFY));
    }
    block.push(unless_equal(425, 1)); // io_uring_setup
    block.push(answer(ENOSYS));
    block.push(answer(ALLOW));
    block
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Runs a filter as the kernel would.
    fn judge(arch: u32, call: u32, arguments: [u32; 6]) -> u32 {
        judge_with(&program(Record::All), arch, call, arguments)
    }

    pub(in super::super) fn judge_with(
        program: &[sock_filter],
        arch: u32,
        call: u32,
        arguments: [u32; 6],
    ) -> u32 {
        let (mut at, mut accumulator) = (0_usize, 0_u32);
        loop {
            let step = program[at];
            let code = u32::from(step.code);
            at += 1;
            if code == libc::BPF_RET | libc::BPF_K {
                return step.k;
            } else if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
                accumulator = match step.k {
                    NUMBER_AT => call,
                    ARCH_AT => arch,
                    other => arguments[(other as usize - 16) / 8],
                };
            } else if code == libc::BPF_JMP | libc::BPF_JA {
                at += step.k as usize;
            } else {
                let yes = match code & 0xf0 {
                    libc::BPF_JEQ => accumulator == step.k,
                    libc::BPF_JSET => accumulator & step.k != 0,
                    other => panic!("jump {other}"),
                };
                at += usize::from(if yes { step.jt } else { step.jf });
            }
        }
    }

    #[test]
    fn reading_is_allowed_and_changing_is_noted() {
        let native = |call, arguments| judge(NATIVE, number(call), arguments);
        let flags = |flags: i32| [0, 0, flags as u32, 0, 0, 0];
        for call in [libc::SYS_read, libc::SYS_write, libc::SYS_mmap, libc::SYS_statx] {
            assert_eq!(native(call, [u32::MAX; 6]), ALLOW, "{call}");
        }
        assert_eq!(native(libc::SYS_openat, flags(libc::O_RDONLY | libc::O_CLOEXEC)), ALLOW);
        assert_eq!(native(libc::SYS_openat, flags(libc::O_PATH | libc::O_DIRECTORY)), ALLOW);
        for writing in [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC] {
            assert_eq!(native(libc::SYS_openat, flags(writing)), NOTIFY, "{writing:o}");
        }
        assert_eq!(native(libc::SYS_openat, flags(libc::O_TMPFILE)), NOTIFY);
        for call in NOTED {
            assert_eq!(native(*call, [0; 6]), NOTIFY, "{call}");
        }
        assert_eq!(native(libc::SYS_ioctl, [3, 0x5401, 0, 0, 0, 0]), ALLOW);
        assert_eq!(native(libc::SYS_ioctl, [3, 0x5000_9401, 0, 0, 0, 0]), NOTIFY);
        assert_eq!(native(libc::SYS_io_uring_setup, [0; 6]), ENOSYS);
        assert_eq!(native(libc::SYS_execve, [0; 6]), NOTIFY);
        assert_eq!(judge(0x1234, 0, [0; 6]), NOTIFY, "a kind of call that nobody knows");
    }

    #[test]
    fn what_watches_tell_of_is_asked_about_by_path_alone() {
        let program = program(Record::Names);
        let native = |call, arguments| judge_with(&program, NATIVE, number(call), arguments);
        for call in NOTED {
            let by_descriptor = BY_DESCRIPTOR.contains(call);
            let expected = if by_descriptor { ALLOW } else { NOTIFY };
            assert_eq!(native(*call, [3, 7, 7, 7, 0, 0]), expected, "{call}");
        }
        for call in BY_DESCRIPTOR_OR_PATH {
            assert_eq!(native(*call, [3, 0, 7, 0, 0, 0]), ALLOW, "{call}");
        }
        let owners = |user, group| native(libc::SYS_fchown, [3, user, group, 0, 0, 0]);
        assert_eq!(owners(u32::MAX, u32::MAX), NOTIFY);
        assert_eq!(owners(0, u32::MAX), ALLOW);
        assert_eq!(owners(u32::MAX, 0), ALLOW);
        // Paths can't be told from null by half of their address.
        let high_half = program.iter().filter(|step| step.k == argument_at(1) + 4).count();
        assert_eq!(high_half, BY_DESCRIPTOR_OR_PATH.len());
        assert_eq!(native(libc::SYS_openat, [0, 0, libc::O_WRONLY as u32, 0, 0, 0]), NOTIFY);
        assert_eq!(native(libc::SYS_openat, [0; 6]), ALLOW);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn thirty_two_bit_programs_are_noted_under_their_own_numbers() {
        assert_eq!(judge(I386, 3, [0; 6]), ALLOW, "read");
        assert_eq!(judge(I386, 10, [0; 6]), NOTIFY, "unlink");
        assert_eq!(judge(NATIVE, X32 | 82, [0; 6]), ENOSYS, "x32");
    }
}
