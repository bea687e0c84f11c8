//! Paths that mean something else to every process: through its own entries in `/proc`
//! (`/proc/self/fd/3`, `/dev/fd/3`, `/proc/self/cwd/file`). What can be read off the path
//! is followed as the caller's; a path that gets there by another name is told from one
//! that leads everybody to the same place.

use std::os::fd::OwnedFd;

use rustix::fs::CWD;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::io::Errno;

use super::open_directory;
use super::path_of;
use super::process::Caller;
use super::process::Unreadable;
use crate::path::RootPath;

/// Splits a path through a link of `/proc` that every process has its own of: the link
/// as we see that of `caller`, and what comes after it. That stays as it is written: `..`
/// leads up from where the link leads.
pub(super) fn proc_link<'a>(caller: &Caller, full: &'a [u8]) -> Option<(String, &'a [u8])> {
    let mut rest = full;
    let link = match (first(&mut rest)?, first(&mut rest)?) {
        (b"dev", b"fd") => caller.entry(b"self")? + "/fd/" + number(first(&mut rest)?)?,
        (b"proc", who) => {
            let mut entry = caller.entry(who)?;
            let mut what = first(&mut rest)?;
            if what == b"task" {
                entry = caller.entry(first(&mut rest)?)?;
                what = first(&mut rest)?;
            }
            match what {
                b"fd" => entry + "/fd/" + number(first(&mut rest)?)?,
                b"cwd" => entry + "/cwd",
                b"root" => entry + "/root",
                b"exe" => entry + "/exe",
                _ => return None,
            }
        }
        _ => return None,
    };
    Some((link, rest))
}

/// Whether a path names a file of a process's own directory in `/proc` that is no way to
/// anywhere, as `/proc/self/task/7/comm`: nothing of any tree.
pub(super) fn is_of_process(caller: &Caller, full: &[u8]) -> bool {
    const WAYS: [&[u8]; 6] = [b"fd", b"cwd", b"root", b"exe", b"map_files", b"task"];
    let mut rest = full;
    let mut next = || first(&mut rest);
    if next() != Some(b"proc") || next().and_then(|who| caller.entry(who)).is_none() {
        return false;
    }
    let mut what = next();
    if what == Some(b"task") && next().and_then(|who| caller.entry(who)).is_some() {
        what = next();
    }
    what.is_some_and(|what| !WAYS.contains(&what))
        && !full.split(|&b| b == b'/').any(|p| p == b"..")
}

/// Whether a path may lead through such a link, or did, were there no `..` in it.
pub(super) fn is_of_proc(full: &[u8]) -> bool {
    let mut rest = full;
    match first(&mut rest) {
        Some(b"proc") => true,
        Some(b"dev") => first(&mut rest) == Some(b"fd"),
        _ => false,
    }
}

/// Takes the first name off a path; what is left begins with a slash.
fn first<'a>(path: &mut &'a [u8]) -> Option<&'a [u8]> {
    loop {
        let start = path.iter().position(|&byte| byte != b'/')?;
        let end = path[start..].iter().position(|&byte| byte == b'/');
        let (name, rest) = path[start..].split_at(end.unwrap_or(path.len() - start));
        *path = rest;
        if name != b"." {
            return Some(name);
        }
    }
}

/// A name that is a number.
fn number(name: &[u8]) -> Option<&str> {
    std::str::from_utf8(name).ok().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What a path that led us to our own entry in `/proc` is to whoever used it.
pub(super) fn as_callers(entry: &RootPath) -> Option<Vec<u8>> {
    if !entry.as_bytes().starts_with(b"proc/") {
        return None;
    }
    let own = format!("proc/{}/", rustix::process::getpid().as_raw_pid());
    let rest = entry.as_bytes().strip_prefix(own.as_bytes())?;
    Some([b"/proc/self/", rest].concat())
}

/// Opens a directory by a path that leads everybody to the same one: `LOOP` if it leads
/// through a link of `/proc`, which may have been reached by another name.
pub(super) fn open_same_for_all(path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        // Linux 5.6 has it, and older profiles of containers don't know it.
        Err(Errno::NOSYS | Errno::PERM) => open_directory(path),
        opened => opened,
    }
}

/// A path that can't be opened, for `errno`, may still be one to whoever used it: if it
/// leads over a link of `/proc`, or to where we would have such a link.
pub(super) fn fails_for_all(path: &[u8], mut errno: Errno) -> Result<(), Unreadable> {
    let mut way = path;
    let is_own = loop {
        if errno == Errno::LOOP {
            // Links that go round do so for everybody.
            break open_directory(way).err() != Some(Errno::LOOP);
        }
        let Some(cut) = way.iter().rposition(|&byte| byte == b'/').filter(|_| way != b"/") else {
            break false;
        };
        way = &way[..cut.max(1)];
        match open_same_for_all(way).and_then(|directory| path_of(&directory)) {
            Ok(reached) => {
                let of_process = reached.as_bytes().strip_prefix(b"proc/");
                break of_process.is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit));
            }
            Err(next) => errno = next,
        }
    };
    if is_own {
        let path = String::from_utf8_lossy(path);
        return Err(Unreadable::Call(format!("{path} leads through a link of /proc")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_proc_is_the_callers_and_what_follows_stays_as_it_is() {
        let caller = Caller::new(7);
        let split = |path: &'static str| {
            let (link, rest) = proc_link(&caller, path.as_bytes())?;
            Some((link, std::str::from_utf8(rest).expect("as above")))
        };
        let leads = |link: &str, rest| Some((link.to_owned(), rest));
        assert_eq!(split("/proc/self/fd/3"), leads("/proc/7/fd/3", ""));
        assert_eq!(split("//proc/./self//cwd/../x"), leads("/proc/7/cwd", "/../x"));
        assert_eq!(split("/dev/fd/3/a/../b"), leads("/proc/7/fd/3", "/a/../b"));
        assert_eq!(split("/proc/8/root/."), leads("/proc/8/root", "/."));
        assert_eq!(split("/proc/self/task/9/cwd/x"), leads("/proc/9/cwd", "/x"));
        assert_eq!(split("/proc/self/exe"), leads("/proc/7/exe", ""));
        for other in ["/proc/self/fd", "/proc/self/fd/../cwd/x", "/dev/fd/../x", "/w/proc/self/cwd"]
        {
            assert_eq!(split(other), None, "{other}");
        }
    }

    #[test]
    fn a_file_of_a_process_is_no_way_to_anywhere() {
        let caller = Caller::new(7);
        for path in ["/proc/self/comm", "/proc/8/task/9/comm", "//proc/./self/attr/exec"] {
            assert!(is_of_process(&caller, path.as_bytes()), "{path}");
        }
        for path in [
            "/proc/self/fd/3",
            "/proc/self/cwd",
            "/proc/self/task/9/root/x",
            "/proc/self/attr/../../../x",
            "/proc/self",
            "/proc/sys/kernel/x",
            "/srv/self/comm",
        ] {
            assert!(!is_of_process(&caller, path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn only_what_leads_into_proc_may_be_found_by_somebody_else() {
        let place = tempfile::tempdir().expect("a directory");
        let link = |name: &str, target: &str| {
            std::os::unix::fs::symlink(target, place.path().join(name)).expect("a link");
        };
        link("fd", "/proc/self/fd");
        link("round", "round");
        let is_sure = |path: &str| {
            let path = place.path().join(path).into_os_string().into_encoded_bytes();
            let errno = open_same_for_all(&path).expect_err("nothing to be opened");
            fails_for_all(&path, errno).is_ok()
        };
        assert!(is_sure("none/below"));
        assert!(is_sure("round/below"));
        assert!(!is_sure("fd/0"), "a descriptor of ours");
        assert!(!is_sure("fd/999999/below"), "none of ours");
    }
}
