//! Pid 1 of the namespaces: mounts the root, starts the command, reaps, and ends
//! with the command, whereupon the kernel kills whatever the command left behind.
//!
//! Pid 1 keeps its capabilities on purpose: a process may look into another one
//! (`/proc/1/mem`, `/proc/1/fd`, ptrace) only if it has all of its capabilities,
//! and pid 1 holds the step's secrets and the socket to the builder.

use std::ffi::CString;
use std::io;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::WaitOptions;
use rustix::process::WaitStatus;
use rustix::thread::CapabilitySet;

use super::child;
use super::child::Control;
use super::error::Operation;
use super::mounts;
use super::recorder;
use super::seccomp;
use super::spec::Exit;
use super::spec::Failure;
use super::spec::Fallback;
use super::spec::InPlace;
use super::spec::Process;
use super::spec::Report;
use super::user_namespace;

/// The byte by which the builder asks to send SIGTERM to the command. The end of
/// the stream asks pid 1 to end at once.
pub(super) const TERMINATE: u8 = b'T';

/// Docker's default capabilities; as bits a80425fb.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs as pid 1; `outer` is a pidfd of the process outside that waits for us.
pub(super) fn run(process: &Process, control: &Control, outer: &OwnedFd) -> ! {
    let die = |errno: Errno| Failure::new(Operation::Fork, "the sandbox", errno.raw_os_error());
    if let Err(errno) = child::die_with_parent() {
        control.give_up(die(errno));
    }
    // It may have died before that; a pidfd becomes readable then.
    let mut dead = [PollFd::new(outer, PollFlags::IN)];
    if rustix::event::poll(&mut dead, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) != Ok(0) {
        child::leave(child::GAVE_UP);
    }
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    rustix::process::umask(Mode::empty());
    let result = mounts::enter_root(process, &mut |fallback| {
        control.send(&Report::Fallback(fallback));
    });
    if let Err(failure) = result {
        control.give_up(failure);
    }
    // Blocked before the command exists, so that its end can't be missed.
    let signals = match block_and_watch_children() {
        Ok(signals) => signals,
        Err(error) => control.give_up(failure(Operation::Wait, "signals", &error)),
    };
    match child::fork() {
        Ok(None) => {
            let failure = command(process, control);
            control.give_up(failure)
        }
        Ok(Some(command)) => reap(command, control, &signals),
        Err(error) => control.give_up(failure(Operation::Fork, "the command", &error)),
    }
}

pub(super) fn failure(operation: Operation, subject: &str, error: &io::Error) -> Failure {
    Failure::new(operation, subject, error.raw_os_error().unwrap_or(libc::EIO))
}

/// Blocks SIGCHLD and gives a descriptor that is readable when it is pending.
pub(super) fn block_and_watch_children() -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before it is read; signalfd
    // returns a descriptor that nothing else owns.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            raw => Ok(OwnedFd::from_raw_fd(raw)),
        }
    }
}

/// Waits for the command, reaping whatever else ends here, and reports its end.
fn reap(command: Pid, control: &Control, signals: &OwnedFd) -> ! {
    loop {
        // First, because the command may have ended before the first poll.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == command
                && let Some(exit) = exit(status)
            {
                control.send(&Report::Ended(exit));
                child::leave(0);
            }
        }
        let mut ready = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::from_borrowed_fd(control.stream().as_fd(), PollFlags::IN),
        ];
        match rustix::event::poll(&mut ready, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => child::leave(child::GAVE_UP),
        }
        let asked = !ready[1].revents().is_empty();
        // `siginfo`s only say that there is somebody to reap.
        let _ = rustix::io::read(signals, &mut [0_u8; 1024]);
        if asked {
            let mut byte = [0];
            match control.stream().read(&mut byte) {
                Ok(1) if byte == [TERMINATE] => {
                    let _ = rustix::process::kill_process(command, Signal::TERM);
                }
                Ok(1) => {}
                // The builder wants an end now, or is gone.
                Ok(_) | Err(_) => child::leave(child::GAVE_UP),
            }
        }
    }
}

pub(super) fn exit(status: WaitStatus) -> Option<Exit> {
    let code = status.exit_status().map(Exit::Code);
    code.or_else(|| status.terminating_signal().map(Exit::Signal))
}

/// Becomes the command; returns only if that failed.
pub(super) fn command(process: &Process, control: &Control) -> Failure {
    match prepare(process, control) {
        Ok(()) => execute(process),
        Err(failure) => failure,
    }
}

fn prepare(process: &Process, control: &Control) -> Result<(), Failure> {
    let _ = rustix::process::setsid();
    default_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|null| rustix::stdio::dup2_stdin(&null));
    null.map_err(Failure::of(Operation::Stdin, "/dev/null"))?;
    rustix::process::chdir(process.directory.as_str())
        .map_err(Failure::of(Operation::Directory, &process.directory))?;
    limits(process)?;
    rights(process, control)
}

/// Sets the limits asked for, while raising one is still allowed.
fn limits(process: &Process) -> Result<(), Failure> {
    use rustix::process::Resource;
    use rustix::process::Rlimit;

    for limit in &process.limits {
        let resource = match limit.name.as_str() {
            "as" => Resource::As,
            "core" => Resource::Core,
            "cpu" => Resource::Cpu,
            "data" => Resource::Data,
            "fsize" => Resource::Fsize,
            "locks" => Resource::Locks,
            "memlock" => Resource::Memlock,
            "msgqueue" => Resource::Msgqueue,
            "nice" => Resource::Nice,
            "nofile" => Resource::Nofile,
            "nproc" => Resource::Nproc,
            "rss" => Resource::Rss,
            "rtprio" => Resource::Rtprio,
            "rttime" => Resource::Rttime,
            "sigpending" => Resource::Sigpending,
            "stack" => Resource::Stack,
            _ => return Err(Failure::new(Operation::Limit, &limit.name, libc::EINVAL)),
        };
        let value = Rlimit { current: limit.soft, maximum: limit.hard };
        rustix::process::setrlimit(resource, value)
            .map_err(Failure::of(Operation::Limit, &limit.name))?;
    }
    Ok(())
}

/// Undoes what was changed for pid 1, and SIGPIPE, which Rust's runtime ignores.
fn default_signals() {
    // SAFETY: SIG_DFL runs no code of ours; `set` is initialised by sigemptyset.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Gives up every right but those of the user with Docker's default
/// capabilities. The order is forced: the bounding set needs CAP_SETPCAP, the
/// filter CAP_SYS_ADMIN, groups CAP_SETGID, so the user comes last.
fn rights(process: &Process, control: &Control) -> Result<(), Failure> {
    use rustix::thread;

    let user = &process.user;
    let (uid, gid) = (thread::Uid::from_raw(user.uid), thread::Gid::from_raw(user.gid));
    let name = user.name.as_str();
    // So that the user can open /dev/stdout and /dev/stderr, as runc does it.
    // Pipes of a builder in another user namespace can't be given away.
    for output in [io::stdout().as_fd(), io::stderr().as_fd()] {
        let _ = rustix::fs::fchown(output, Some(uid), Some(gid));
    }
    let capabilities = Failure::of(Operation::Capabilities, name);
    let held = match (drop_bounding_set(), &process.in_place) {
        // What a container without CAP_SETPCAP has can't be reduced any more.
        (Err(Errno::PERM), Some(_)) => thread::capabilities(None)
            .map(|sets| sets.permitted & CAPABILITIES)
            .map_err(capabilities)?,
        (held, _) => held.map_err(capabilities)?,
    };
    filter(process, control);
    // The primary group among the supplementary ones, too: a file that its group
    // may not read must stay unreadable after setgid away (CVE-2022-36109).
    let mut groups = vec![gid];
    groups.extend(user.groups.iter().copied().map(thread::Gid::from_raw));
    groups.dedup();
    match thread::set_thread_groups(&groups) {
        Err(errno @ Errno::PERM) if groups_are_denied() => {
            control.send(&Report::Fallback(Fallback::KeptGroups(errno.raw_os_error())));
        }
        result => result.map_err(Failure::of(Operation::User, name))?,
    }
    thread::set_thread_res_gid(gid, gid, gid).map_err(Failure::of(Operation::User, name))?;
    thread::set_thread_res_uid(uid, uid, uid).map_err(Failure::of(Operation::User, name))?;
    let kept = if user.uid == 0 { held } else { CapabilitySet::empty() };
    // Nothing inheritable: CVE-2022-24769.
    let sets = thread::CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    thread::clear_ambient_capability_set()
        .and_then(|()| thread::set_capabilities(None, sets))
        .map_err(Failure::of(Operation::Capabilities, name))?;
    if process.in_place.is_some() {
        // No pid namespace ends it otherwise; a change of user would undo this.
        let _ = child::die_with_parent();
    }
    Ok(())
}

/// Whether nobody may set groups in this user namespace: so it is if its map was written
/// without the right to map more than one group.
fn groups_are_denied() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

/// Installs Docker's filter, or without namespaces the recorder's: there, the
/// container has a filter of its own.
fn filter(process: &Process, control: &Control) {
    let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EINVAL);
    match &process.in_place {
        None => {
            if let Err(error) = seccomp::install() {
                control.send(&Report::Fallback(Fallback::NoSeccomp(errno(error))));
            }
            let (user, group) = user_namespace::has_one_user_and_group();
            if user || group {
                let sent = recorder::owners::install(user, group)
                    .and_then(|listener| control.send_listener(&listener, false));
                if let Err(error) = sent {
                    control.send(&Report::Fallback(Fallback::UnseenOwners(errno(error))));
                }
            }
        }
        Some(InPlace { record: None }) => {}
        Some(InPlace { record: Some(record) }) => {
            let sent = recorder::install(*record).and_then(|(listener, no_new_privileges)| {
                control.send_listener(&listener, no_new_privileges)
            });
            if let Err(error) = sent {
                control.send(&Report::Fallback(Fallback::NoRecorder(errno(error))));
            }
        }
    }
}

/// Reduces the bounding set to the default capabilities and gives those of them
/// that we hold.
fn drop_bounding_set() -> rustix::io::Result<CapabilitySet> {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(true) if !CAPABILITIES.contains(capability) => {
                rustix::thread::remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            Err(_) => break, // past the kernel's last capability
        }
    }
    Ok(rustix::thread::capabilities(None)?.permitted & CAPABILITIES)
}

/// Executes the program, looked up as execvp(3) does but without its retry under
/// `/bin/sh`, which runc lacks too. Returns why it failed.
fn execute(process: &Process) -> Failure {
    let program = process.arguments.first().map_or("", String::as_str);
    let Some(arguments) = c_strings(process.arguments.iter().map(String::as_bytes)) else {
        return Failure::new(Operation::Execute, program, libc::EINVAL);
    };
    let mut variables: Vec<Vec<u8>> = process
        .environment
        .iter()
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
        .collect();
    if process.variable("HOME").is_none() {
        variables.push([b"HOME=", process.user.home.as_bytes()].concat());
    }
    let Some(environment) = c_strings(variables.iter().map(Vec::as_slice)) else {
        return Failure::new(Operation::Execute, program, libc::EINVAL);
    };
    if program.is_empty() {
        return Failure::new(Operation::Find, program, libc::ENOENT);
    }
    if program.contains('/') {
        return Failure::new(
            Operation::Execute,
            program,
            execve(program, &arguments, &environment),
        );
    }
    let mut refused = None;
    for directory in process.variable("PATH").unwrap_or(DEFAULT_PATH).split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{directory}/{program}");
        match execve(&candidate, &arguments, &environment) {
            libc::ENOENT if !exists(&candidate) => {}
            libc::ENOTDIR => {}
            // Directories and files that aren't executable hide nothing behind them.
            libc::EACCES => refused = Some(candidate),
            errno => return Failure::new(Operation::Execute, candidate, errno),
        }
    }
    match refused {
        Some(candidate) => Failure::new(Operation::Execute, candidate, libc::EACCES),
        None => Failure::new(Operation::Find, program, libc::ENOENT),
    }
}

fn exists(path: &str) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXISTS).is_ok()
}

fn c_strings<'a>(strings: impl Iterator<Item = &'a [u8]>) -> Option<Vec<CString>> {
    strings.map(|bytes| CString::new(bytes).ok()).collect()
}

/// execve(2); returns the errno.
fn execve(path: &str, arguments: &[CString], environment: &[CString]) -> i32 {
    let Ok(path) = CString::new(path) else { return libc::EINVAL };
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in a null pointer and point to C strings that live
    // through the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capabilities_are_dockers() {
        assert_eq!(CAPABILITIES.bits(), 0xa804_25fb);
    }
}
