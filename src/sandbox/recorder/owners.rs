//! Notices when a step in a user namespace with one id tries to give a file to somebody
//! else. chown(2) fails there with EINVAL before any filesystem hears of it, and a
//! program that doesn't care would end well with other owners than the image has
//! elsewhere. So it is asked about before, and the step counts as failed.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use libc::sock_filter;
use rustix::event::EventfdFlags;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::os::fd::AsFd;

use super::filter;
use super::listener;
use super::listener::Listener;
use super::listener::Notice;
use super::process::Caller;
use super::process::Memories;

/// Calls that change an owner, and which argument is the user; the group comes next.
const CALLS: &[(libc::c_long, u32)] = &[
    (libc::SYS_fchownat, 2),
    (libc::SYS_fchown, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, 1),
];

/// An owner that a step wanted to give.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in super::super) struct Foreign {
    /// As the step called it; `a file` by descriptor.
    pub(in super::super) path: String,
    pub(in super::super) uid: u32,
    pub(in super::super) gid: u32,
}

/// Installs the filter, for users that can't be had (`user`) and for groups (`group`);
/// gives the descriptor that notices come from.
///
/// # Errors
/// As for the recorder's.
pub(in super::super) fn install(user: bool, group: bool) -> io::Result<OwnedFd> {
    listener::install_program(program(user, group))
}

fn program(users: bool, groups: bool) -> Vec<sock_filter> {
    let mut program = vec![
        filter::load(filter::ARCH_AT),
        // 32-bit programs have other numbers; they get the kernel's answer.
        filter::unless_equal(filter::NATIVE, 1),
        filter::jump(1),
        filter::answer(filter::ALLOW),
        filter::load(filter::NUMBER_AT),
    ];
    for (call, user) in CALLS {
        let mut block = Vec::new();
        let asked = [(*user, users), (user + 1, groups)];
        for (argument, _) in asked.into_iter().filter(|(_, is_asked)| *is_asked) {
            block.push(filter::load(filter::argument_at(argument)));
            block.extend(filter::unless_one_of([0, u32::MAX]));
            block.push(filter::answer(filter::NOTIFY));
        }
        block.push(filter::answer(filter::ALLOW));
        program.push(filter::unless_equal(filter::number(*call), block.len() as u8));
        program.extend(block);
    }
    program.push(filter::answer(filter::ALLOW));
    program
}

/// The thread that answers.
pub(in super::super) struct Owners {
    stop: Arc<OwnedFd>,
    thread: JoinHandle<io::Result<Option<Foreign>>>,
}

impl Owners {
    /// Answers notices from `listener` until [`Owners::finish`].
    pub(in super::super) fn listen(listener: OwnedFd) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = Arc::new(rustix::event::eventfd(0, flags)?);
        let until = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("owners".to_owned())
            .spawn(move || watch(&Listener::new(listener), &until))?;
        Ok(Self { stop, thread })
    }

    /// The first owner that was to be given, when every process of the step is gone.
    pub(in super::super) fn finish(self) -> io::Result<Option<Foreign>> {
        rustix::io::write(&*self.stop, &1_u64.to_ne_bytes())?;
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    }
}

fn watch(listener: &Listener, stop: &OwnedFd) -> io::Result<Option<Foreign>> {
    let mut first = None;
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        match rustix::event::poll(&mut ready, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        if ready[0].revents().contains(PollFlags::IN) {
            if let Some(notice) = listener.receive()? {
                first.get_or_insert_with(|| foreign(&notice));
                listener.go_on(notice.id)?;
            }
        } else if !ready[0].revents().is_empty() || !ready[1].revents().is_empty() {
            return Ok(first);
        }
    }
}

fn foreign(notice: &Notice) -> Foreign {
    let call = libc::c_long::from(notice.call);
    let user = CALLS.iter().find(|(number, _)| *number == call).map_or(1, |(_, user)| *user);
    let id = |index: u32| notice.arguments[index as usize] as u32;
    let path = match user {
        _ if call == libc::SYS_fchown => None,
        user => Caller::new(notice.pid)
            .string(&mut Memories::default(), notice.arguments[user as usize - 1])
            .ok(),
    };
    let path = path.filter(|path| !path.is_empty());
    let path = path.map(|path| String::from_utf8_lossy(&path).into_owned());
    Foreign { path: path.unwrap_or_else(|| "a file".to_owned()), uid: id(user), gid: id(user + 1) }
}

#[cfg(test)]
mod tests {
    use super::super::filter::tests::judge_with;
    use super::*;

    #[test]
    fn only_owners_other_than_root_are_asked_about() {
        let none = u32::MAX;
        let judge = |call: libc::c_long, arguments| {
            judge_with(&program(true, true), filter::NATIVE, filter::number(call), arguments)
        };
        assert_eq!(judge(libc::SYS_fchown, [3, 0, 0, 9, 9, 9]), filter::ALLOW);
        assert_eq!(judge(libc::SYS_fchown, [3, none, none, 9, 9, 9]), filter::ALLOW);
        assert_eq!(judge(libc::SYS_fchown, [3, 5, none, 9, 9, 9]), filter::NOTIFY);
        assert_eq!(judge(libc::SYS_fchown, [3, 0, 5, 9, 9, 9]), filter::NOTIFY);
        assert_eq!(judge(libc::SYS_fchownat, [3, 7, 0, none, 9, 9]), filter::ALLOW);
        assert_eq!(judge(libc::SYS_fchownat, [3, 7, 0, 42, 9, 9]), filter::NOTIFY);
        assert_eq!(judge(libc::SYS_read, [3, 5, 5, 5, 5, 5]), filter::ALLOW);
    }

    #[test]
    fn where_groups_can_be_had_only_users_are_asked_about() {
        let judge = |program: &[sock_filter], arguments| {
            judge_with(program, filter::NATIVE, filter::number(libc::SYS_fchown), arguments)
        };
        let (users, groups) = (program(true, false), program(false, true));
        assert_eq!(judge(&users, [3, 0, 5, 9, 9, 9]), filter::ALLOW);
        assert_eq!(judge(&users, [3, 5, 0, 9, 9, 9]), filter::NOTIFY);
        assert_eq!(judge(&groups, [3, 0, 5, 9, 9, 9]), filter::NOTIFY);
        assert_eq!(judge(&groups, [3, 5, 0, 9, 9, 9]), filter::ALLOW);
    }
}
