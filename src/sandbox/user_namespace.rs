//! A user namespace of our own, for a builder that may not mount: in it, it may.
//!
//! Which ids exist in there decides which owners a RUN step can see and give:
//!
//! | who we are | ids of the namespace | written by |
//! | --- | --- | --- |
//! | root of a container with SETUID, SETGID and SETFCAP | the container's, each as itself | a process of ours left outside |
//! | a user with subordinate ids | ours as 0, the subordinate ones from 1 on | `newuidmap`, `newgidmap` |
//! | anybody else | ours as 0, and no other | ourselves |
//!
//! user_namespaces(7) has the rules. A map can be written once and only from outside
//! if it has more than one id, so a helper is forked before the namespace is made.
//! The owners in a layer don't depend on any of this: they are data in the overlay's
//! table. An id that isn't mapped can't be *given* by a step, though: chown(2) fails
//! with EINVAL before any filesystem hears of it.

use std::fmt;
use std::fs;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::process::Stdio;

use rustix::mount::MountPropagationFlags;
use rustix::process::Pid;
use rustix::process::WaitOptions;
use rustix::thread::UnshareFlags;
use serde::Deserialize;
use serde::Serialize;

use super::child;
use super::user;

/// Why there is no user namespace to mount in.
#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    /// unshare(2) refuses.
    #[error("user namespaces are forbidden here, by a seccomp profile or by the host: {0}")]
    Refused(#[source] io::Error),
    /// `user.max_user_namespaces` is reached.
    #[error("the host allows no (further) user namespaces: see user.max_user_namespaces")]
    TooMany,
    /// Not even our own id can be mapped.
    #[error("no id can be mapped into a user namespace: {0}")]
    Map(#[source] io::Error),
    /// Mounts can't be cut off from the outside.
    #[error("cannot make mounts private in a user namespace: {0}")]
    Mounts(#[source] io::Error),
    /// The process that writes the maps is missing.
    #[error("cannot start a process: {0}")]
    Helper(#[source] io::Error),
}

/// The ids that exist in a user namespace: how many there are beginning with 0.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ids {
    /// First id outside of the map, for users; `u32::MAX` if all are mapped.
    pub users: u32,
    /// The same for groups.
    pub groups: u32,
    /// Why there are no more, if something was tried.
    pub why: Option<String>,
}

impl Ids {
    /// Whether there is no owner but root.
    pub fn is_single(&self) -> bool {
        self.users <= 1 || self.groups <= 1
    }
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_single(), self.users.min(self.groups)) {
            (true, _) => {
                f.write_str("one id alone: files of others are shown as nobody's, no chown")?
            }
            (_, u32::MAX) => f.write_str("all ids")?,
            (_, count) => write!(f, "ids 0 to {}", count - 1)?,
        }
        self.why.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}

/// Gives this process a user namespace, with as many ids as it can have, and a mount
/// namespace in it. To be called before there is a second thread. After an error the
/// process may be in a namespace without use: [`super::rehearse`] it.
///
/// # Errors
/// [`UserNamespaceError`].
pub fn enter_user_namespace() -> Result<Ids, UserNamespaceError> {
    let (ours, theirs) = UnixStream::pair().map_err(UserNamespaceError::Helper)?;
    let outside = Outside::look();
    let builder = rustix::process::getpid();
    let helper = match child::fork().map_err(UserNamespaceError::Helper)? {
        Some(helper) => helper,
        None => {
            drop(ours);
            outside.serve(theirs, builder);
            child::leave(0)
        }
    };
    drop(theirs);
    let entered = enter(ours, &outside);
    let _ = rustix::process::waitpid(Some(helper), WaitOptions::empty());
    let why = entered?;
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", all)
        .map_err(|errno| UserNamespaceError::Mounts(errno.into()))?;
    let count = |name| mapped(&fs::read_to_string(name).unwrap_or_default());
    Ok(Ids { users: count("/proc/self/uid_map"), groups: count("/proc/self/gid_map"), why })
}

/// Makes the namespaces and has the maps written; gives why ids are missing.
fn enter(mut helper: UnixStream, outside: &Outside) -> Result<Option<String>, UserNamespaceError> {
    // SAFETY: one thread (see `enter_user_namespace`); CLONE_FILES isn't among the flags.
    let made =
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) };
    made.map_err(|errno| match errno {
        rustix::io::Errno::NOSPC | rustix::io::Errno::USERS => UserNamespaceError::TooMany,
        errno => UserNamespaceError::Refused(errno.into()),
    })?;
    // The helper ends when it has written, and its end closes the stream.
    let mut why = String::new();
    helper
        .write_all(b"g")
        .and_then(|()| helper.read_to_string(&mut why))
        .map_err(UserNamespaceError::Helper)?;
    let missing = |path| fs::read_to_string(path).is_ok_and(|map| map.is_empty());
    if missing("/proc/self/uid_map") {
        fs::write("/proc/self/uid_map", format!("0 {} 1", outside.user))
            .map_err(UserNamespaceError::Map)?;
    }
    if missing("/proc/self/gid_map") {
        // Without this an unprivileged process could get rid of a group that forbids
        // it something; a kernel before 3.19 lacks the file.
        let _ = fs::write("/proc/self/setgroups", "deny");
        fs::write("/proc/self/gid_map", format!("0 {} 1", outside.group))
            .map_err(UserNamespaceError::Map)?;
    }
    Ok(Some(why).filter(|why| !why.is_empty()))
}

/// Whether no file can be given to another user, and to another group, in the user
/// namespace that we are in: there is one alone.
pub(super) fn has_one_user_and_group() -> (bool, bool) {
    let is_single = |path| fs::read_to_string(path).is_ok_and(|map| size(&map) <= 1);
    (is_single("/proc/self/uid_map"), is_single("/proc/self/gid_map"))
}

/// How many ids a map has.
fn size(map: &str) -> u64 {
    map.lines().filter_map(range).map(|(_, count)| count).sum()
}

/// First id, from 0 on, that a map (`INSIDE OUTSIDE COUNT` a line) lacks.
fn mapped(map: &str) -> u32 {
    let mut ranges: Vec<(u64, u64)> = map.lines().filter_map(range).collect();
    ranges.sort_unstable();
    let end = ranges.iter().fold(
        0,
        |end, &(first, count)| {
            if first <= end { end.max(first + count) } else { end }
        },
    );
    u32::try_from(end).unwrap_or(u32::MAX)
}

/// First id and count of a line of a map.
fn range(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_whitespace();
    let (first, _, count) = (fields.next()?, fields.next()?, fields.next()?);
    Some((first.parse().ok()?, count.parse().ok()?))
}

/// What we are outside of the namespace.
struct Outside {
    user: u32,
    group: u32,
    users: String,
    groups: String,
}

impl Outside {
    fn look() -> Self {
        // Every id of the namespace around us as itself.
        let same = |name| -> String {
            let map = fs::read_to_string(name).unwrap_or_default();
            map.lines()
                .filter_map(range)
                .map(|(first, count)| format!("{first} {first} {count}\n"))
                .collect()
        };
        Self {
            user: rustix::process::geteuid().as_raw(),
            group: rustix::process::getegid().as_raw(),
            users: same("/proc/self/uid_map"),
            groups: same("/proc/self/gid_map"),
        }
    }

    /// Waits for the namespace of `builder` and maps what can be mapped; says why that
    /// isn't everything.
    fn serve(&self, mut builder: UnixStream, pid: Pid) {
        let _ = child::die_with_parent();
        if builder.read_exact(&mut [0]).is_err() {
            return; // there is no namespace
        }
        let pid = pid.as_raw_pid();
        let written = if self.user == 0 { self.same_ids(pid) } else { self.subordinate_ids(pid) };
        if let Err(why) = written {
            let _ = builder.write_all(why.as_bytes());
        }
    }

    fn same_ids(&self, pid: i32) -> Result<(), String> {
        // Groups first: without the right to map them, users alone are of no use.
        for (name, map) in [("gid_map", &self.groups), ("uid_map", &self.users)] {
            fs::write(format!("/proc/{pid}/{name}"), map).map_err(|error| {
                format!("root lacks SETUID, SETGID or SETFCAP to map more: {error}")
            })?;
        }
        Ok(())
    }

    fn subordinate_ids(&self, pid: i32) -> Result<(), String> {
        let passwd = fs::read("/etc/passwd").unwrap_or_default();
        let name = user::name_of(self.user, &passwd);
        let mut commands = Vec::new();
        for (program, file, own) in
            [("newgidmap", "/etc/subgid", self.group), ("newuidmap", "/etc/subuid", self.user)]
        {
            let text = fs::read_to_string(file).unwrap_or_default();
            let ranges = subordinate(&text, self.user, name.as_deref());
            if ranges.is_empty() {
                return Err(format!("no subordinate ids in {file}"));
            }
            let mut command = Command::new(program);
            command.args([pid.to_string(), "0".into(), own.to_string(), "1".into()]);
            let mut inside = 1;
            for (first, count) in ranges {
                command.args([inside, first, count].map(|number| number.to_string()));
                inside += count;
            }
            commands.push((program, command));
        }
        for (program, mut command) in commands {
            let output = command
                .stdin(Stdio::null())
                .output()
                .map_err(|error| format!("subordinate ids need {program}: {error}"))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(format!("{program} failed: {}", said.trim()));
            }
        }
        Ok(())
    }
}

/// Ranges of a user in subuid(5) or subgid(5): first id and count, in order.
fn subordinate(text: &str, user: u32, name: Option<&str>) -> Vec<(u64, u64)> {
    let number = user.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            (owner == number || Some(owner) == name).then_some((first, count))
        })
        .filter(|&(_, count)| count > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_counted_from_zero_on() {
        assert_eq!(mapped("         0          0 4294967295\n"), u32::MAX);
        assert_eq!(mapped("0 1000 1\n1 100000 65536\n"), 65537);
        assert_eq!(mapped("1 100000 65536\n0 1000 1\n"), 65537, "in any order");
        assert_eq!(mapped("0 1000 1\n5 100000 10\n"), 1, "a gap ends it");
        assert_eq!(mapped("1000 1000 1\n"), 0);
        assert_eq!(mapped(""), 0);
    }

    #[test]
    fn the_size_of_a_map_is_that_of_all_its_lines() {
        assert_eq!(size("         0          0 4294967295\n"), 4_294_967_295);
        assert_eq!(size("0 1000 1\n"), 1);
        assert_eq!(size("1000 1000 1\n"), 1, "wherever it begins");
        assert_eq!(size("0 1000 1\n5 100000 10\n"), 11);
    }

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_number() {
        let text = "root:1:9\nana:100000:65536\n1000:300000:10\n# x\nana:bad:1\nbob:1:1\n";
        assert_eq!(subordinate(text, 1000, Some("ana")), [(100_000, 65536), (300_000, 10)]);
        assert_eq!(subordinate(text, 1000, None), [(300_000, 10)]);
        assert_eq!(subordinate(text, 7, Some("eve")), []);
    }

    #[test]
    fn what_is_mapped_is_told_in_a_few_words() {
        let ids = |users, groups, why: Option<&str>| {
            Ids { users, groups, why: why.map(str::to_owned) }.to_string()
        };
        assert_eq!(ids(u32::MAX, u32::MAX, None), "all ids");
        assert_eq!(ids(65537, u32::MAX, None), "ids 0 to 65536");
        assert!(ids(65537, 1, Some("no newgidmap")).starts_with("one id alone"));
        assert!(ids(1, 1, Some("no newuidmap")).ends_with("(no newuidmap)"));
    }
}
