//! The kernel's side of the recorder: installing the filter, taking notices,
//! letting calls go on (seccomp_unotify(2)).

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use super::super::spec::Record;
use super::filter;

/// `SECCOMP_IOCTL_NOTIF_*` of `linux/seccomp.h`.
const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
const IS_VALID: u64 = 0x4008_2102;
const SET_FLAGS: u64 = 0x4008_2104;

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`: the answer wakes the caller on this CPU.
const SYNC_WAKE_UP: u64 = 1;

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`: the call is executed as if nobody had asked.
const CONTINUE: u32 = 1;

/// A call that waits for an answer: `struct seccomp_notif`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Notice {
    pub(super) id: u64,
    /// Thread that calls, in our pid namespace; 0 if it isn't in it.
    pub(super) pid: u32,
    flags: u32,
    pub(super) call: i32,
    pub(super) arch: u32,
    instruction: u64,
    pub(super) arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// Installs the filter of `record` for this thread and what it executes; gives the descriptor
/// that notices come from, and whether no_new_privs had to be set for it, which
/// takes effect away from set-user-ID programs.
///
/// # Errors
/// EACCES or EPERM where a profile forbids it, EBUSY where somebody else listens
/// already, EINVAL on a kernel before 5.0.
pub(in super::super) fn install(record: Record) -> io::Result<(OwnedFd, bool)> {
    match install_program(filter::program(record)) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {}
        other => return other.map(|listener| (listener, false)),
    }
    rustix::thread::set_no_new_privs(true)?;
    install_program(filter::program(record)).map(|listener| (listener, true))
}

/// Installs a filter that asks; gives the descriptor that notices come from.
///
/// # Errors
/// As [`install`].
pub(super) fn install_program(mut program: Vec<libc::sock_filter>) -> io::Result<OwnedFd> {
    let length = u16::try_from(program.len()).expect("the kernel takes 4096 instructions");
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let listen = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // A signal can't interrupt a call that was noted already; since 5.19.
    for flags in [listen | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, listen] {
        // SAFETY: `filter` points to `length` instructions that live through the
        // call; the kernel copies them. The descriptor it gives is ours alone.
        unsafe {
            let result = libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const filter,
            );
            if result >= 0 {
                return Ok(OwnedFd::from_raw_fd(result as i32));
            }
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// Where notices come from.
#[derive(Debug)]
pub(super) struct Listener(OwnedFd);

impl Listener {
    pub(super) fn new(descriptor: OwnedFd) -> Self {
        let listener = Self(descriptor);
        // Since 6.6; without it answers take a little longer.
        let _ = listener.control(SET_FLAGS, SYNC_WAKE_UP as *mut libc::c_void);
        listener
    }

    fn control(&self, request: u64, argument: *mut libc::c_void) -> io::Result<()> {
        // SAFETY: every caller passes what its request takes: a number, or a
        // pointer to a value of the structure that the request names.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, argument) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Takes a notice; waits for one. `None`: the caller is gone.
    pub(super) fn receive(&self) -> io::Result<Option<Notice>> {
        let mut notice = Notice::default();
        match self.control(RECEIVE, (&raw mut notice).cast()) {
            Ok(()) => Ok(Some(notice)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the caller of `id` still waits, so that what was read of it is its own.
    pub(super) fn is_valid(&self, id: u64) -> bool {
        let mut id = id;
        self.control(IS_VALID, (&raw mut id).cast()).is_ok()
    }

    /// Lets the call be executed. A caller that is gone needs no answer.
    pub(super) fn go_on(&self, id: u64) -> io::Result<()> {
        self.answer(Answer { id, value: 0, error: 0, flags: CONTINUE })
    }

    /// Lets the call fail with `errno`.
    pub(super) fn refuse(&self, id: u64, errno: i32) -> io::Result<()> {
        self.answer(Answer { id, value: 0, error: -errno, flags: 0 })
    }

    fn answer(&self, mut answer: Answer) -> io::Result<()> {
        match self.control(SEND, (&raw mut answer).cast()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
