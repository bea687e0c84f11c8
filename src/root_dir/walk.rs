//! Path resolution from handle to handle, without `openat2(2)`.
//!
//! Handles of all directories from the root down are kept, so `..` returns to
//! where we came from, even if that was moved elsewhere meanwhile.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::DiskStat;
use super::Links;
use crate::path::Name;
use crate::path::RootPath;
use crate::tree::Kind;

/// Links followed before `ELOOP`, as in Linux (path_resolution(7)).
const MOST_LINKS: u32 = 40;

/// Where a path led.
pub(super) struct Place {
    /// The directory that holds it; `None` for the root that the walk began at.
    directory: Option<OwnedFd>,
    /// Its name there; `None` if it is the directory itself.
    name: Option<Name>,
    /// Whether it is a symbolic link.
    is_link: bool,
    /// The way without links.
    pub(super) path: RootPath,
}

/// Follows `path` from `root`. What lies there exists.
///
/// # Errors
/// `ENOENT`, `ENOTDIR`, those of `links`, and `ELOOP` after 40 links.
pub(super) fn walk(
    root: BorrowedFd<'_>,
    path: &RootPath,
    links: Links,
    follow: bool,
) -> io::Result<Place> {
    let mut above: Vec<(OwnedFd, Name)> = Vec::new();
    // Last first.
    let mut left: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
    let mut followed = 0;
    while let Some(part) = left.pop() {
        if part == b".." {
            if above.pop().is_none() && links != Links::Scoped {
                return Err(Errno::XDEV.into());
            }
            continue;
        }
        // Link targets may hold these.
        let Some(name) = Name::new(&part) else { continue };
        let directory = above.last().map_or(root, |(handle, _)| handle.as_fd());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(directory, name.as_bytes(), flags, Mode::empty())?;
        let kind = DiskStat::of(&handle)?.stat.kind;
        if kind == Kind::Symlink && (follow || !left.is_empty()) {
            followed += 1;
            if links == Links::Refused || followed > MOST_LINKS {
                return Err(Errno::LOOP.into());
            }
            let target = rustix::fs::readlinkat(&handle, c"", Vec::new())?.into_bytes();
            if target.starts_with(b"/") {
                if links == Links::Inside {
                    return Err(Errno::XDEV.into());
                }
                above.clear();
            }
            left.extend(target.rsplit(|&byte| byte == b'/').map(<[u8]>::to_vec));
        } else if left.is_empty() && kind != Kind::Directory {
            let path = path_of(&above).join(&name);
            let directory = above.pop().map(|(handle, _)| handle);
            let is_link = kind == Kind::Symlink;
            return Ok(Place { directory, name: Some(name), is_link, path });
        } else if kind == Kind::Directory {
            above.push((handle, name));
        } else {
            return Err(Errno::NOTDIR.into());
        }
    }
    let path = path_of(&above);
    let directory = above.pop().map(|(handle, _)| handle);
    Ok(Place { directory, name: None, is_link: false, path })
}

fn path_of(above: &[(OwnedFd, Name)]) -> RootPath {
    above.iter().fold(RootPath::root(), |path, (_, name)| path.join(name))
}

/// Opens `path` below `root` as `openat2(2)` would.
pub(super) fn open(
    root: BorrowedFd<'_>,
    path: &RootPath,
    flags: OFlags,
    links: Links,
) -> io::Result<OwnedFd> {
    let place = walk(root, path, links, !flags.contains(OFlags::NOFOLLOW))?;
    if place.is_link && !flags.contains(OFlags::PATH) {
        return Err(Errno::LOOP.into());
    }
    let directory = place.directory.as_ref().map_or(root, AsFd::as_fd);
    let name = place.name.as_ref().map_or(&b"."[..], Name::as_bytes);
    // A link that came in here since the walk is not followed.
    Ok(rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW, Mode::empty())?)
}
