//! Watches on every directory that the image and the container's root have in common
//! ([`Watches`]), kept from step to step.
//!
//! What is written to the disk or looked at later gets its watch then
//! ([`super::write::Known::found`]).

use std::io;
use std::sync::Arc;

use super::Error;
use super::outside::Outside;
use super::read::no_way;
use super::write::failed;
use crate::path::RootPath;
use crate::root_dir::Links;
use crate::root_dir::RootDir;
use crate::sandbox::Watches;
use crate::tree::Kind;
use crate::tree::Tree;

/// Watches, if there can be any.
#[derive(Debug, Default)]
pub(super) enum Watched {
    /// To be made when they are asked for.
    #[default]
    Nothing,
    /// On every directory of the image.
    Ready(Arc<Watches>),
    /// The host doesn't allow them, or not as many.
    Refused,
}

impl Watched {
    /// Watches on every directory that `tree` has, which the disk shows. What they told up
    /// to now is forgotten.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub(super) fn on(
        &mut self,
        tree: &dyn Tree,
        disk: &RootDir,
        outside: &Outside,
    ) -> Result<Option<Arc<Watches>>, Error> {
        if let Self::Ready(watches) = self
            && !watches.forget().is_ok_and(|is_whole| is_whole)
        {
            // More was written than the queue holds: it isn't known what is gone.
            *self = Self::Nothing;
        }
        let watches = match self {
            Self::Refused => return Ok(None),
            Self::Ready(watches) => Arc::clone(watches),
            Self::Nothing => {
                let begun = std::time::Instant::now();
                let watches = match Watches::new() {
                    Ok(watches) => Arc::new(watches),
                    Err(error) => {
                        tracing::debug!(%error, "directories can't be watched");
                        *self = Self::Refused;
                        return Ok(None);
                    }
                };
                watch_all(tree, disk, outside, &watches)?;
                tracing::debug!(elapsed = ?begun.elapsed(), "the directories are watched");
                watches
            }
        };
        watch_private(tree, disk, outside, &watches)?;
        *self =
            if watches.is_complete() { Self::Ready(Arc::clone(&watches)) } else { Self::Refused };
        Ok(watches.is_complete().then_some(watches))
    }
}

/// Watches every directory that isn't outside.
fn watch_all(
    tree: &dyn Tree,
    disk: &RootDir,
    outside: &Outside,
    watches: &Watches,
) -> Result<(), Error> {
    let mut pending = vec![(RootPath::root(), tree.root())];
    while let Some((path, node)) = pending.pop() {
        let fail = |source| failed("watch", &path, source);
        match disk.open_directory(&path, Links::Refused) {
            Ok(directory) => watches.add(&directory, &path),
            Err(error) => give_up(watches, error.into()),
        }
        if !watches.is_complete() {
            return Ok(());
        }
        for (name, child) in tree.children(node).map_err(fail)? {
            if tree.stat(child).map_err(fail)?.is_directory() {
                let path = path.join(&name);
                if !outside.covers(&path) {
                    pending.push((path, child));
                }
            }
        }
    }
    Ok(())
}

/// Watches places that are the container's own which the image has, too: what a step does
/// to one of these it would do to the image elsewhere. Whether it changes something below
/// one need not be known: a step that finds another mount there than the image's files
/// isn't kept anyway.
fn watch_private(
    tree: &dyn Tree,
    disk: &RootDir,
    outside: &Outside,
    watches: &Watches,
) -> Result<(), Error> {
    for path in outside.private() {
        let fail = |source| failed("look up", path, source);
        let Some(node) = tree.find(path).map_err(fail)? else { continue };
        match tree.stat(node).map_err(fail)?.kind {
            Kind::Directory => match disk.open_directory(path, Links::Refused) {
                Ok(directory) => watches.add_new(&directory, path),
                Err(error) => give_up(watches, error.into()),
            },
            // A file that is a mount is in no directory of the container.
            Kind::File => match disk.open_file(path, Links::Refused) {
                Ok(file) => watches.add_new(&file, path),
                Err(error) => give_up(watches, error.into()),
            },
            _ => {}
        }
    }
    Ok(())
}

/// Unless there is nothing.
fn give_up(watches: &Watches, error: io::Error) {
    if let Err(error) = no_way(error) {
        watches.give_up(&error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::Attributes;
    use crate::overlay::Overlay;
    use crate::path::Name;
    use crate::rootfs::outside::Exceptions;
    use crate::tree::NodeId;
    use crate::tree::Timestamp;
    use std::fs;

    fn path(text: &str) -> RootPath {
        RootPath::clamped(text.as_bytes()).expect("no NUL")
    }

    fn make(overlay: &Overlay, holder: NodeId, name: &str) -> NodeId {
        let mtime = Timestamp { seconds: 0, nanoseconds: 0 };
        let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime };
        let name = Name::new(name.as_bytes()).expect("a name");
        overlay.make_directory(holder, &name, &attributes).expect("an edit")
    }

    #[test]
    fn what_the_image_and_the_disk_have_is_watched() {
        let (root, scratch) = (tempfile::tempdir(), tempfile::tempdir());
        let (root, scratch) = (root.expect("a directory"), scratch.expect("a directory"));
        for directory in ["a/b", "a/mount/d", "ignored", "foreign"] {
            fs::create_dir_all(root.path().join(directory)).expect("a directory");
        }
        let overlay = Overlay::new(Vec::new(), scratch.path()).expect("an overlay");
        let top = overlay.after().root();
        let a = make(&overlay, top, "a");
        make(&overlay, a, "b");
        let mount = make(&overlay, a, "mount");
        make(&overlay, mount, "d");
        make(&overlay, top, "ignored");
        make(&overlay, top, "missing");
        let disk = RootDir::open(root.path()).expect("a directory");
        let exceptions =
            Exceptions { ignored: vec!["/ignored".to_owned()], ..Exceptions::default() };
        let outside = Outside::new([path("/a/mount")], &exceptions).expect("valid");
        let mut watched = Watched::default();
        let mut on = || watched.on(&*overlay.after(), &disk, &outside).expect("a disk");
        let watches = on().expect("few directories");
        // What is written to a file tells that its directory is watched.
        for directory in ["", "a", "a/b", "a/mount", "a/mount/d", "ignored", "foreign"] {
            fs::write(root.path().join(directory).join("file"), "bytes").expect("a file");
        }
        let told = ["file", "a/file", "a/b/file", "a/mount/file"].map(path);
        assert_eq!(watches.paths_told(), told.into());
        let again = on().expect("they are there");
        assert!(Arc::ptr_eq(&watches, &again));
        again.give_up("as if the host had no room");
        assert!(on().is_none());
        assert!(on().is_none());
    }
}
