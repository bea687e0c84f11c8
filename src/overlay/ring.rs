//! Requests and answers by io_uring over `/dev/fuse` (Linux 6.14, switched on by the
//! host): one system call brings an answer back and the next request along, on the CPU
//! that asked.
//!
//! The kernel has a queue for each possible CPU, and puts a request into that of the CPU
//! it comes from. Each CPU that we may run on has a worker that is pinned to it and
//! serves its queue; the queues of the others (CPUs that are offline or not ours, where
//! the kernel's own threads run) are shared out among the workers. A queue has one
//! place for a request, since its worker answers one at a time. What doesn't come this
//! way, FORGET and INTERRUPT, is read from the device by a thread of `device.rs`.
//!
//! All workers have their rings and buffers *before* the kernel is told that there
//! will be a ring, because it then makes everybody wait until each queue is armed.
//!
//! # Memory
//! The kernel writes into a place between the moment when it is armed and the moment
//! when its completion is seen; in the rest of the time it is ours. [`Place`] is the only
//! thing that touches that memory.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use io_uring::IoUring;
use io_uring::cqueue;
use io_uring::opcode::PollAdd;
use io_uring::opcode::UringCmd80;
use io_uring::squeue;
use io_uring::types::Fd;
use memmap2::MmapMut;
use rustix::event::EventfdFlags;
use rustix::thread::CpuSet;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

use super::wire;
use super::wire::Core;
use super::wire::HEADER_IN;
use super::wire::HeaderIn;
use super::wire::HeaderOut;

type Ring = IoUring<squeue::Entry128, cqueue::Entry>;

/// Commands of FUSE to io_uring.
const REGISTER: u32 = 1;
/// Brings an answer and takes the next request.
const COMMIT_AND_FETCH: u32 = 2;

/// Bytes for the headers of a place: the kernel's `fuse_uring_req_header` is 288 long.
const HEADERS: usize = 4096;
/// Where the head of a request is in them.
const HEAD_AT: usize = 128;
/// Where the kernel and we tell each other the length of the tail.
const LENGTHS_AT: usize = 256;

/// Marks the completion of a bell; places have lower numbers.
const BELL: u64 = u64::MAX;
/// How long workers may take until they have nothing to do.
const PATIENCE: Duration = Duration::from_secs(30);
/// A worker that has answered so many requests since its bell rang has answered those
/// that were waiting then, however many come behind.
const MANY: u32 = 1 << 16;

/// `fuse_uring_ent_in_out`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Lengths {
    flags: u64,
    commit_id: u64,
    payload_sz: u32,
    padding: u32,
    reserved: u64,
}

/// `fuse_uring_cmd_req`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
struct Command {
    flags: u64,
    commit_id: u64,
    queue: u16,
    padding: [u8; 6],
}

/// How many queues there are, by the list of possible CPUs (`0-3`, `0,2-5`).
fn queues(possible: &str) -> Option<u16> {
    let mut count = 0_u16;
    for range in possible.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// Which queues each worker has, and the CPU that it is pinned to: the queue of its own
/// CPU first, and those of CPUs that have no worker dealt out.
fn deal(queues: u16, ours: &[u16]) -> Vec<(u16, Vec<u16>)> {
    let mut hands: Vec<(u16, Vec<u16>)> =
        ours.iter().filter(|cpu| **cpu < queues).map(|cpu| (*cpu, vec![*cpu])).collect();
    if hands.is_empty() {
        // CPUs with numbers beyond their count: no known kernel has them.
        hands.push((ours.first().copied().unwrap_or(0), Vec::new()));
    }
    let rest: Vec<u16> = (0..queues).filter(|queue| !ours.contains(queue)).collect();
    for (queue, turn) in rest.into_iter().zip((0..hands.len()).cycle()) {
        hands[turn].1.push(queue);
    }
    hands
}

/// Bytes of a place for the tail of a request and for an answer, as much as the kernel
/// wants for the largest.
fn tail_size() -> usize {
    (super::answer::MAX_WRITE as usize).next_multiple_of(rustix::param::page_size())
}

/// A place for a request and its answer.
struct Place {
    queue: u16,
    headers: *mut u8,
    tail: *mut u8,
    commit_id: u64,
}

impl Place {
    /// Answers the request that the kernel has put here.
    ///
    /// # Safety
    /// The kernel must have completed the command that armed the place.
    unsafe fn answer(&mut self, core: &Core) {
        // SAFETY: both lie in the worker's mapping, don't overlap, and are as long as
        // said. The kernel doesn't touch them until they are armed again, as the caller
        // promises, and no other place has them.
        let (headers, tail) = unsafe {
            (
                std::slice::from_raw_parts_mut(self.headers, HEADERS),
                std::slice::from_raw_parts_mut(self.tail, tail_size()),
            )
        };
        let header: HeaderIn = front(headers);
        let mut lengths: Lengths = front(&headers[LENGTHS_AT..]);
        self.commit_id = lengths.commit_id;
        let length = tail.len().min(lengths.payload_sz as usize);
        let head = &headers[HEAD_AT..HEAD_AT + wire::head_size(header.opcode)];
        let reply = core.begin(&header, head, &tail[..length]);
        let done = core.finish(reply, tail);
        // The kernel sends nothing this way that wants no answer.
        let answer = done.header(header.unique);
        let answer = answer.unwrap_or(HeaderOut { len: 0, error: 0, unique: header.unique });
        lengths.payload_sz = answer.len.saturating_sub(size_of::<HeaderOut>() as u32);
        headers[..size_of::<HeaderOut>()].copy_from_slice(answer.as_bytes());
        headers[LENGTHS_AT..LENGTHS_AT + size_of::<Lengths>()].copy_from_slice(lengths.as_bytes());
    }
}

/// The structure at the front of `bytes`, which are long enough.
fn front<T: FromBytes + KnownLayout + Immutable + Default>(bytes: &[u8]) -> T {
    T::read_from_prefix(bytes).map(|(value, _)| value).unwrap_or_default()
}

const _: () = assert!(HEADER_IN <= HEAD_AT && size_of::<Lengths>() + LENGTHS_AT <= 288);

/// How workers are asked whether they have nothing to do.
#[derive(Debug)]
pub(super) struct Bells {
    bells: Vec<Arc<OwnedFd>>,
    /// Held by whoever rings.
    ringing: Mutex<()>,
    round: Mutex<Round>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Round {
    number: u64,
    idle: usize,
    /// Workers that have ended.
    gone: usize,
}

impl Bells {
    fn new(workers: usize) -> io::Result<Self> {
        let bell = || Ok(Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?));
        let bells = (0..workers).map(|_| bell()).collect::<io::Result<_>>()?;
        let (ringing, round) = (Mutex::default(), Mutex::default());
        Ok(Self { bells, ringing, round, changed: Condvar::new() })
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every worker had nothing to do at some moment from now on; whether
    /// they did. The kernel queues a request while the program that sends it runs, and
    /// moves those that wait in the background along as others end, always within one
    /// queue; so a queue that is empty has nothing of what was sent before.
    pub(super) fn ring(&self) -> bool {
        let _alone = self.ringing.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut round = self.round();
            round.number += 1;
            round.idle = 0;
        }
        for bell in &self.bells {
            if rustix::io::write(&**bell, &1_u64.to_ne_bytes()).is_err() {
                return false;
            }
        }
        let waited = self.changed.wait_timeout_while(self.round(), PATIENCE, |round| {
            round.idle < self.bells.len() && round.gone == 0
        });
        let (round, _) = waited.unwrap_or_else(PoisonError::into_inner);
        round.idle >= self.bells.len()
    }

    fn number(&self) -> u64 {
        self.round().number
    }

    /// A worker has nothing to do, for the round `number`.
    fn is_idle(&self, number: u64) {
        let mut round = self.round();
        if round.number == number {
            round.idle += 1;
            self.changed.notify_all();
        }
    }

    fn is_gone(&self) {
        self.round().gone += 1;
        self.changed.notify_all();
    }
}

/// Workers that have all they need, and wait for a mount.
pub(super) struct Crew {
    workers: Vec<Hand>,
    bells: Arc<Bells>,
}

/// One of the crew.
struct Hand {
    start: Sender<Start>,
    told: Receiver<io::Result<()>>,
    thread: Thread,
}

/// A thread that answers until the mount is gone.
type Thread = JoinHandle<io::Result<()>>;

/// What a worker begins with.
struct Start {
    core: Arc<Core>,
    device: Arc<OwnedFd>,
}

impl Crew {
    /// Starts a worker for each CPU that we may run on.
    ///
    /// # Errors
    /// When this process may have no io_uring, or no threads and memory.
    pub(super) fn gather() -> io::Result<Self> {
        let possible = fs::read_to_string("/sys/devices/system/cpu/possible")?;
        let queues = queues(&possible).ok_or_else(|| io::Error::other("which CPUs are there?"))?;
        let set = rustix::thread::sched_getaffinity(None)?;
        let ours: Vec<u16> =
            (0..CpuSet::MAX_CPU as u16).filter(|cpu| set.is_set(usize::from(*cpu))).collect();
        let hands = deal(queues, &ours);
        let bells = Arc::new(Bells::new(hands.len())?);
        let mut workers = Vec::with_capacity(hands.len());
        for (number, (cpu, queues)) in hands.into_iter().enumerate() {
            let (start, wait) = std::sync::mpsc::channel();
            let (tell, told) = std::sync::mpsc::channel();
            let (bells, bell) = (Arc::clone(&bells), Arc::clone(&bells.bells[number]));
            let thread = std::thread::Builder::new().name(format!("ring-{cpu}"));
            let thread = thread.spawn(move || {
                let made = Worker::new(cpu, &queues, bells, bell);
                match made {
                    Ok(worker) => {
                        let _ = tell.send(Ok(()));
                        worker.run(&wait, &tell)
                    }
                    Err(error) => {
                        let _ = tell.send(Err(error));
                        Ok(())
                    }
                }
            })?;
            workers.push(Hand { start, told, thread });
        }
        let crew = Self { workers, bells };
        crew.wait()?;
        Ok(crew)
    }

    /// Waits until each worker has told how it went.
    fn wait(&self) -> io::Result<()> {
        let gone = |_| io::Error::other("a thread of the ring ended");
        self.workers.iter().try_for_each(|hand| hand.told.recv().map_err(gone)?)
    }

    /// Lets them arm their queues and answer.
    ///
    /// # Errors
    /// When a queue can't be armed.
    pub(super) fn start(
        self,
        core: &Arc<Core>,
        device: &Arc<OwnedFd>,
    ) -> io::Result<(Arc<Bells>, Vec<Thread>)> {
        for hand in &self.workers {
            let _ = hand.start.send(Start { core: Arc::clone(core), device: Arc::clone(device) });
        }
        self.wait()?;
        let threads = self.workers.into_iter().map(|hand| hand.thread).collect();
        Ok((self.bells, threads))
    }
}

struct Worker {
    ring: Ring,
    places: Vec<Place>,
    /// Where the places are.
    memory: MmapMut,
    bells: Arc<Bells>,
    bell: Arc<OwnedFd>,
    /// Places that the kernel has, or that are on their way to it.
    armed: usize,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.bells.is_gone();
        if self.armed > 0
            && let Ok(nothing) = MmapMut::map_anon(1)
        {
            // The kernel may still write there; so it is never used for anything else.
            std::mem::forget(std::mem::replace(&mut self.memory, nothing));
        }
    }
}

impl Worker {
    fn new(cpu: u16, queues: &[u16], bells: Arc<Bells>, bell: Arc<OwnedFd>) -> io::Result<Self> {
        let mut set = CpuSet::new();
        set.set(usize::from(cpu));
        if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
            tracing::debug!(%error, cpu, "a worker of the ring is not pinned");
        }
        let entries = u32::try_from(queues.len() + 1).unwrap_or(u32::MAX).next_power_of_two();
        // Not setup_defer_taskrun: of a thread that was killed the kernel then keeps what it
        // has put off until the ring is closed. A thread of the same process that waits for
        // the mount keeps the ring open, and not even fusectl would end the waiting.
        let ring = Ring::builder().setup_single_issuer().setup_coop_taskrun().build(entries)?;
        let stride = HEADERS + tail_size();
        let mut memory = MmapMut::map_anon(stride * queues.len().max(1))?;
        let pieces = memory.chunks_exact_mut(stride);
        let places = pieces
            .zip(queues)
            .map(|(piece, queue)| {
                let (headers, tail) = piece.split_at_mut(HEADERS);
                let (headers, tail) = (headers.as_mut_ptr(), tail.as_mut_ptr());
                Place { queue: *queue, headers, tail, commit_id: 0 }
            })
            .collect();
        Ok(Self { ring, places, memory, bells, bell, armed: 0 })
    }

    /// Waits for a mount, tells whether its queues could be armed, and answers until it
    /// is gone.
    fn run(mut self, wait: &Receiver<Start>, tell: &Sender<io::Result<()>>) -> io::Result<()> {
        let Ok(Start { core, device }) = wait.recv() else { return Ok(()) };
        match self.arm(&device) {
            Ok(early) => {
                let _ = tell.send(Ok(()));
                core.ended(self.serve(early, &core, &device))
            }
            Err(error) => {
                let _ = tell.send(Err(error));
                Ok(())
            }
        }
    }

    /// Registers all places. Gives what came in the meantime: the last worker to get here
    /// opens the mount.
    fn arm(&mut self, device: &OwnedFd) -> io::Result<Vec<(u64, i32)>> {
        let vectors: Vec<[libc::iovec; 2]> = self
            .places
            .iter()
            .map(|place| {
                let vector =
                    |base: *mut u8, length| libc::iovec { iov_base: base.cast(), iov_len: length };
                [vector(place.headers, HEADERS), vector(place.tail, tail_size())]
            })
            .collect();
        for (number, vector) in vectors.iter().enumerate() {
            let address = vector.as_ptr() as u64;
            let command = Command { queue: self.places[number].queue, ..Command::default() };
            let mut entry = command_entry(device, REGISTER, &command, Some(address), number);
            set_length(&mut entry, 2);
            self.push(&entry)?;
            self.armed += 1;
        }
        self.listen()?;
        // What can't be armed is told at once.
        self.enter(0)?;
        let early = self.completed();
        let refused = early.iter().filter(|(number, result)| *number != BELL && *result < 0);
        let refused: Vec<i32> = refused.map(|(_, result)| -result).collect();
        self.armed -= refused.len();
        refused.first().map_or(Ok(early), |error| Err(io::Error::from_raw_os_error(*error)))
    }

    fn serve(&mut self, early: Vec<(u64, i32)>, core: &Core, device: &OwnedFd) -> io::Result<()> {
        let mut completed = early;
        // The round that is rung for, and the requests since.
        let mut rung: Option<(u64, u32)> = None;
        while self.armed > 0 {
            let mut answered = 0_u32;
            let mut just_rung = false;
            for (number, result) in completed {
                if number == BELL {
                    let mut count = [0; 8];
                    rustix::io::read(&*self.bell, &mut count)?;
                    rung = Some((self.bells.number(), 0));
                    just_rung = true;
                    self.listen()?;
                } else if result < 0 {
                    self.armed -= 1;
                    self.lost(number, result)?;
                } else {
                    answered += 1;
                    self.reply(number, core, device)?;
                }
            }
            if let Some((round, since)) = &mut rung {
                *since = since.saturating_add(answered);
                // Whatever was on its way when the bell rang came with it or before.
                if !just_rung && (answered == 0 || *since >= MANY) {
                    self.bells.is_idle(*round);
                    rung = None;
                }
            }
            if self.armed > 0 {
                self.enter(if rung.is_some() { 0 } else { 1 })?;
            }
            completed = self.completed();
        }
        Ok(())
    }

    /// Answers the request in a place and gives the place back.
    fn reply(&mut self, number: u64, core: &Core, device: &OwnedFd) -> io::Result<()> {
        let number = number as usize;
        let place = &mut self.places[number];
        // SAFETY: its command is completed, and completions come once.
        unsafe { place.answer(core) };
        let command =
            Command { queue: place.queue, commit_id: place.commit_id, ..Command::default() };
        let entry = command_entry(device, COMMIT_AND_FETCH, &command, None, number);
        self.push(&entry)
    }

    /// The kernel doesn't use a place any more: because the mount is gone, or else it
    /// is a mistake that must not make anybody wait for ever.
    fn lost(&self, number: u64, result: i32) -> io::Result<()> {
        match -result {
            libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED | libc::ENODEV => Ok(()),
            error => {
                let error = io::Error::from_raw_os_error(error);
                tracing::error!(%error, number, "the kernel refuses an answer by io_uring");
                Err(error)
            }
        }
    }

    /// Waits for the bell.
    fn listen(&mut self) -> io::Result<()> {
        let bell = Fd(self.bell.as_raw_fd());
        let entry = PollAdd::new(bell, libc::POLLIN as u32).build().user_data(BELL);
        self.push(&entry.into())
    }

    fn push(&mut self, entry: &squeue::Entry128) -> io::Result<()> {
        // SAFETY: buffers that it names live as long as the worker, or until it is
        // submitted where the kernel needs them no longer; descriptors live longer.
        let pushed = unsafe { self.ring.submission().push(entry) };
        // There are as many entries as a worker can have under way.
        pushed.map_err(|_| io::Error::other("the ring is full"))
    }

    /// Submits what was pushed, and waits for `least` completions.
    fn enter(&self, least: u32) -> io::Result<()> {
        loop {
            // SAFETY: the length is read by us alone, there is one thread.
            let pushed = unsafe { self.ring.submission_shared() }.len() as u32;
            // SAFETY: no argument is given.
            let entered = unsafe {
                self.ring.submitter().enter::<libc::sigset_t>(pushed, least, GETEVENTS, None)
            };
            match entered {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn completed(&mut self) -> Vec<(u64, i32)> {
        self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect()
    }
}

/// `IORING_ENTER_GETEVENTS`: also run what the kernel has put off.
const GETEVENTS: u32 = 1;

fn command_entry(
    device: &OwnedFd,
    operation: u32,
    command: &Command,
    address: Option<u64>,
    number: usize,
) -> squeue::Entry128 {
    let mut bytes = [0; 80];
    bytes[..size_of::<Command>()].copy_from_slice(command.as_bytes());
    let entry = UringCmd80::new(Fd(device.as_raw_fd()), operation).cmd(bytes).addr(address);
    entry.build().user_data(number as u64)
}

/// Sets `len` of an entry (offset 24 of `struct io_uring_sqe`), for which the crate has no
/// call where commands are concerned.
fn set_length(entry: &mut squeue::Entry128, length: u32) {
    const LENGTH_AT: usize = 24;
    const _: () = assert!(size_of::<squeue::Entry128>() == 128);
    // SAFETY: the entry is 128 bytes, plain data, `repr(C)` around the kernel's structure.
    unsafe {
        std::ptr::from_mut(entry).cast::<u8>().add(LENGTH_AT).cast::<u32>().write_unaligned(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!(queues("0-1\n"), Some(2));
        assert_eq!(queues("0"), Some(1));
        assert_eq!(queues("0,2-5,9"), Some(6));
        assert_eq!(queues("5-2"), None);
        assert_eq!(queues(""), None);
        assert_eq!(queues("0-65535"), None);
    }

    #[test]
    fn each_queue_has_one_worker_and_each_worker_its_own_cpu() {
        for (queues, ours) in [(2, vec![0, 1]), (8, vec![1, 3]), (4, vec![2]), (3, vec![7])] {
            let hands = deal(queues, &ours);
            let mut dealt: Vec<u16> = hands.iter().flat_map(|(_, hand)| hand.clone()).collect();
            dealt.sort_unstable();
            assert_eq!(dealt, (0..queues).collect::<Vec<_>>());
            for (cpu, hand) in &hands {
                assert!(ours.contains(cpu));
                assert!(*cpu >= queues || hand.first() == Some(cpu));
            }
        }
    }

    #[test]
    fn a_bell_is_answered_once_all_are_idle_and_never_by_those_who_left() {
        let bells = Arc::new(Bells::new(2).unwrap());
        let workers: Vec<_> = (0..2)
            .map(|number| {
                let bells = Arc::clone(&bells);
                std::thread::spawn(move || {
                    let mut count = [0; 8];
                    rustix::io::read(&*bells.bells[number], &mut count).unwrap();
                    bells.is_idle(bells.number());
                })
            })
            .collect();
        assert!(bells.ring());
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        bells.is_gone();
        assert!(!bells.ring());
    }
}
