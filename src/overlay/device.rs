//! Requests by read(2) of `/dev/fuse`, answers by write(2).
//!
//! Each thread reads a request, answers it, and reads the next. Whichever thread waits
//! gets the next request.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::io::Errno;

use super::wire::Agreement;
use super::wire::Core;
use super::wire::LARGEST_ANSWER;
use super::wire::LARGEST_REQUEST;
use super::wire::Offer;
use super::wire::Wishes;

/// Agrees with the kernel on what it may ask; the first thing that happens on a mount.
///
/// # Errors
/// When it speaks another protocol, or the mount is gone.
pub(super) fn agree(device: &OwnedFd, wishes: Wishes) -> io::Result<Agreement> {
    let mut message = vec![0; LARGEST_REQUEST];
    let Some(length) = receive(device, &mut message)? else {
        return Err(io::ErrorKind::NotConnected.into());
    };
    let offer = Offer::read(&message[..length]).map_err(io::Error::other)?;
    match offer.accept(Wishes { ring: wishes.ring && offer.has_ring(), ..wishes }) {
        Ok((agreement, answer)) => {
            rustix::io::write(device, &answer)?;
            Ok(agreement)
        }
        Err(refusal) => {
            rustix::io::write(device, &offer.refuse())?;
            Err(io::Error::other(refusal))
        }
    }
}

/// Starts `threads` threads that answer until the mount is gone.
///
/// # Errors
/// When a thread can't be started.
pub(super) fn start(
    core: &Arc<Core>,
    device: &Arc<OwnedFd>,
    threads: usize,
) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
    let started = (0..threads).map(|number| {
        let (core, device) = (Arc::clone(core), Arc::clone(device));
        let thread = std::thread::Builder::new().name(format!("fuse-{number}"));
        thread.spawn(move || core.ended(serve(&core, &device)))
    });
    started.collect()
}

fn serve(core: &Core, device: &OwnedFd) -> io::Result<()> {
    // Memory that no large request touches isn't used.
    let (mut message, mut answer) = (vec![0; LARGEST_REQUEST], vec![0; LARGEST_ANSWER]);
    while let Some(length) = receive(device, &mut message)? {
        if let Some(length) = core.serve(&message[..length], &mut answer) {
            send(device, &answer[..length]);
        }
    }
    Ok(())
}

/// Reads the next request; `None` if the mount is gone.
fn receive(device: &OwnedFd, message: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match rustix::io::read(device, &mut *message) {
            Ok(length) => return Ok(Some(length)),
            // A request that was interrupted before we had it, or we were.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::NODEV) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

fn send(device: &OwnedFd, answer: &[u8]) {
    match rustix::io::write(device, answer) {
        // Nobody waits for it any more, or the mount is gone.
        Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
        // The kernel tells whoever waits that the answer was no good.
        Err(error) => tracing::warn!(%error, bytes = answer.len(), "an answer was not taken"),
    }
}
