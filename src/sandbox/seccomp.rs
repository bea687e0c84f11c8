//! Docker's default seccomp filter, for a process with Docker's default capabilities.
//!
//! Docker writes the profile as a list of what is allowed, with EPERM for the
//! rest. System call numbers never change their meaning, so up to [`LAST`] the
//! complement says the same in fewer words: [`DENIED`]. Numbers above are calls
//! that the profile doesn't know; they get ENOSYS, as runc does it, so that
//! programs fall back to older calls instead of giving up.
//!
//! The program is assembled here and not by a crate, because it must answer
//! three ways (allow, EPERM, ENOSYS), must let 32-bit programs run under their own
//! numbers instead of killing them, and must not set no_new_privs.
//!
//! Source: `profiles/seccomp/default.json` of moby; `seccomp.json` of Debian's
//! package golang-github-containers-common is a close relative.

use std::io;

use libc::sock_filter;

/// `futex_requeue`, the last call that is judged by name.
const LAST: u32 = 456;

/// The flags of clone(2) that make namespaces: NEWNS, NEWCGROUP, NEWUTS, NEWIPC,
/// NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: u32 = 0x7e02_0000;

/// The address family that a container must not use: vsock reaches the hypervisor.
const AF_VSOCK: u32 = 40;

/// The values of personality(2) that are allowed: Linux, Linux 32, each with
/// UNAME26, and the query.
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `AUDIT_ARCH_*` of the kernel's audit.h.
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;
#[cfg(target_arch = "x86_64")]
const I386: u32 = 0x4000_0003;

/// Calls that need a capability which a step doesn't have, or that Docker
/// forbids to all.
const DENIED: &[libc::c_long] = &[
    // CAP_SYS_ADMIN
    libc::SYS_bpf,
    libc::SYS_fanotify_init,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // other capabilities: boot, time, modules, accounting, ptrace, nice, tty, log, handles
    libc::SYS_acct,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_mbind,
    libc::SYS_open_by_handle_at,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_reboot,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    libc::SYS_settimeofday,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // nobody
    libc::SYS_add_key,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
];

/// The same for 32-bit programs on x86-64, by number (`asm/unistd_32.h`), since
/// libc names only those of the machine it is built for.
#[cfg(target_arch = "x86_64")]
const DENIED_I386: &[u32] = &[
    21, 22, 25, 51, 52, 62, 74, 79, 86, 87,
    88, // mount … stime acct umount2 ustat … uselib reboot
    101, 103, 110, 111, 113, 115, 121, 128, 129, 131, 135, 149, 166,
    169, // ioperm … nfsservctl
    217, 253, 264, 274, 275, 276, 283, 286, 287, 288,
    294, // pivot_root … keyctl migrate_pages
    310, 317, 336, 338, 342, 346, 349, 350, 357, 374, // unshare … bpf userfaultfd
    404, 425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442, 443, 450, // as native
];

/// Calls of one ABI that get special treatment.
struct Abi {
    arch: u32,
    denied: Vec<u32>,
    clone: u32,
    clone3: u32,
    personality: u32,
    socket: u32,
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).expect("system call numbers are small")
}

fn abis() -> Vec<Abi> {
    vec![
        Abi {
            arch: NATIVE,
            denied: DENIED.iter().copied().map(number).collect(),
            clone: number(libc::SYS_clone),
            clone3: number(libc::SYS_clone3),
            personality: number(libc::SYS_personality),
            socket: number(libc::SYS_socket),
        },
        #[cfg(target_arch = "x86_64")]
        Abi {
            arch: I386,
            denied: DENIED_I386.to_vec(),
            clone: 120,
            clone3: 435,
            personality: 136,
            socket: 359,
        },
    ]
}

/// Offsets in `struct seccomp_data`; the arguments' low halves (little endian).
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENT_0_AT: u32 = 16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

fn instruction(code: u32, k: u32, on_true: u8, on_false: u8) -> sock_filter {
    let code = u16::try_from(code).expect("classic BPF codes have 16 bits");
    sock_filter { code, jt: on_true, jf: on_false, k }
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

fn answer(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, action, 0, 0)
}

/// Skips the next `skip` instructions unless the accumulator is `value`.
fn unless_equal(value: u32, skip: usize) -> sock_filter {
    let skip = u8::try_from(skip).expect("blocks are short");
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, skip)
}

/// Assembles the filter.
fn program() -> Vec<sock_filter> {
    let mut program = vec![load(ARCH_AT)];
    for abi in abis() {
        let block = block(&abi);
        // A block is longer than a conditional jump reaches.
        program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, abi.arch, 1, 0));
        let length = u32::try_from(block.len()).expect("a few hundred");
        program.push(instruction(libc::BPF_JMP | libc::BPF_JA, length, 0, 0));
        program.extend(block);
    }
    program.push(answer(ENOSYS));
    program
}

fn block(abi: &Abi) -> Vec<sock_filter> {
    let mut block = vec![load(NUMBER_AT)];
    block.push(instruction(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, LAST, 0, 1));
    block.push(answer(ENOSYS));
    let mut case = |call: u32, body: &[sock_filter]| {
        block.push(unless_equal(call, body.len()));
        block.extend_from_slice(body);
    };
    case(abi.clone3, &[answer(ENOSYS)]);
    case(
        abi.clone,
        &[
            load(ARGUMENT_0_AT),
            instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, NAMESPACE_FLAGS, 0, 1),
            answer(EPERM),
            answer(ALLOW),
        ],
    );
    case(
        abi.socket,
        &[load(ARGUMENT_0_AT), unless_equal(AF_VSOCK, 1), answer(EPERM), answer(ALLOW)],
    );
    let mut personality = vec![load(ARGUMENT_0_AT)];
    for value in PERSONALITIES {
        personality.extend([unless_equal(value, 1), answer(ALLOW)]);
    }
    personality.push(answer(EPERM));
    case(abi.personality, &personality);
    for &call in &abi.denied {
        case(call, &[answer(EPERM)]);
    }
    block.push(answer(ALLOW));
    block
}

/// Installs the filter for this thread and whatever it executes. Needs
/// `CAP_SYS_ADMIN`, because no_new_privs stays off: `sudo` works in a step.
///
/// # Errors
/// That of seccomp(2): EACCES without the capability, EINVAL without the feature.
pub(super) fn install() -> io::Result<()> {
    let mut program = program();
    let length = u16::try_from(program.len()).expect("the kernel takes 4096 instructions");
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: `filter` points to `length` instructions that live through the
    // call; the kernel copies them.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would.
    fn judge(arch: u32, call: u32, argument: u32) -> u32 {
        let program = program();
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
                    ARGUMENT_0_AT => argument,
                    other => panic!("load of {other}"),
                };
            } else if code == libc::BPF_JMP | libc::BPF_JA {
                at += step.k as usize;
            } else {
                let yes = match code & 0xf0 {
                    libc::BPF_JEQ => accumulator == step.k,
                    libc::BPF_JGT => accumulator > step.k,
                    libc::BPF_JSET => accumulator & step.k != 0,
                    other => panic!("jump {other}"),
                };
                at += usize::from(if yes { step.jt } else { step.jf });
            }
        }
    }

    #[test]
    fn the_filter_answers_as_dockers_profile_does() {
        let native = |call, argument| judge(NATIVE, number(call), argument);
        for call in [libc::SYS_read, libc::SYS_execve, libc::SYS_chroot, libc::SYS_ptrace] {
            assert_eq!(native(call, 0), ALLOW, "{call}");
        }
        for call in [libc::SYS_mount, libc::SYS_unshare, libc::SYS_keyctl, libc::SYS_reboot] {
            assert_eq!(native(call, 0), EPERM, "{call}");
        }
        assert_eq!(native(libc::SYS_clone3, 0), ENOSYS);
        assert_eq!(native(libc::SYS_clone, 0x11), ALLOW);
        assert_eq!(native(libc::SYS_clone, 0x1000_0011), EPERM, "CLONE_NEWUSER");
        assert_eq!(native(libc::SYS_socket, 2), ALLOW);
        assert_eq!(native(libc::SYS_socket, AF_VSOCK), EPERM);
        assert_eq!(native(libc::SYS_personality, 0xffff_ffff), ALLOW);
        assert_eq!(native(libc::SYS_personality, 0x0040_0000), EPERM, "ADDR_NO_RANDOMIZE");
        assert_eq!(judge(NATIVE, LAST + 1, 0), ENOSYS);
        assert_eq!(judge(0x1234, 0, 0), ENOSYS, "an ABI that nobody knows");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn thirty_two_bit_programs_run_under_their_own_numbers() {
        assert_eq!(judge(I386, 11, 0), ALLOW, "execve");
        assert_eq!(judge(I386, 21, 0), EPERM, "mount, which is sendto's neighbour in 64 bits");
        assert_eq!(judge(I386, 120, 0x0002_0000), EPERM, "clone with NEWNS");
        assert_eq!(judge(NATIVE, 0x4000_0000, 0), ENOSYS, "x32");
    }
}
