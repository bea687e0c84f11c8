//! The process between builder and command when there are no namespaces: it starts
//! the command in the container's own root, and when that has ended it ends whatever
//! the command left behind.
//!
//! Without a pid namespace the kernel doesn't do that by itself. This process is a
//! *subreaper* (`PR_SET_CHILD_SUBREAPER`): orphans of the command become its children,
//! so killing its children until there are none ends them all, daemons too.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::WaitOptions;

use super::child;
use super::child::Control;
use super::error::Operation;
use super::init;
use super::spec::Failure;
use super::spec::Process;
use super::spec::Report;

/// Starts the command and reaps; never returns.
pub(super) fn run(process: &Process, control: &Control) -> ! {
    // It holds the step's environment and the socket to the builder.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(errno) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        control.give_up(Failure::new(Operation::Wait, "the step", errno.raw_os_error()));
    }
    let signals = match init::block_and_watch_children() {
        Ok(signals) => signals,
        Err(error) => control.give_up(init::failure(Operation::Wait, "signals", &error)),
    };
    match child::fork() {
        Ok(None) => {
            let failure = init::command(process, control);
            control.give_up(failure)
        }
        Ok(Some(command)) => reap(command, control, &signals),
        Err(error) => control.give_up(init::failure(Operation::Fork, "the command", &error)),
    }
}

fn reap(command: Pid, control: &Control, signals: &OwnedFd) -> ! {
    loop {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == command
                && let Some(exit) = init::exit(status)
            {
                end_all();
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
            Err(_) => give_up(),
        }
        let asked = !ready[1].revents().is_empty();
        let _ = rustix::io::read(signals, &mut [0_u8; 1024]);
        if asked {
            let mut byte = [0];
            match control.stream().read(&mut byte) {
                Ok(1) if byte == [init::TERMINATE] => signal(command, Signal::TERM),
                Ok(1) => {}
                // The builder wants an end now, or is gone.
                Ok(_) | Err(_) => give_up(),
            }
        }
    }
}

fn give_up() -> ! {
    end_all();
    child::leave(child::GAVE_UP)
}

/// Kills children until there are none: every orphan becomes one in time.
fn end_all() {
    loop {
        for pid in children() {
            signal(pid, Signal::KILL);
        }
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return, // ECHILD: nobody is left
        }
    }
}

fn children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_pid();
    if let Ok(list) = fs::read_to_string(format!("/proc/{own}/task/{own}/children")) {
        let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
        return pids.filter_map(Pid::from_raw).collect();
    }
    // A kernel without CONFIG_PROC_CHILDREN.
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| parent_of(*pid) == Some(own)).filter_map(Pid::from_raw).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `pid (name) state ppid …`; the name may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Sends a signal; without `CAP_KILL`, as the user that the process runs as.
fn signal(pid: Pid, signal: Signal) {
    if rustix::process::kill_process(pid, signal) != Err(Errno::PERM) {
        return;
    }
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid()));
    let uid = status
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse::<u32>().ok());
    let Some(uid) = uid else { return };
    if let Ok(None) = child::fork() {
        let uid = rustix::thread::Uid::from_raw(uid);
        if rustix::thread::set_thread_res_uid(uid, uid, uid).is_ok() {
            let _ = rustix::process::kill_process(pid, signal);
        }
        child::leave(0);
    }
}
