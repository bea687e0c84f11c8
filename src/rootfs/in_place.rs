//! The root of a stock container: its own `/`, a mirror of the overlay's table.
//!
//! The table is the root filesystem, as it is where it can be mounted; it decides what
//! a layer holds, so layers don't depend on where a step ran. The disk is made to show
//! it when a RUN has to see it ([`InPlace::enter`]), and read back afterwards
//! ([`InPlace::read_back`]). COPY, ADD and WORKDIR never touch the disk.
//!
//! There is one disk, and every stage of a build takes it in turn. Going from one
//! stage's root, or one image's, to another's writes their difference. Which layers
//! the disk shows is remembered in a file, so that the next build in this container
//! goes on from there.
//!
//! What must hold:
//! - The disk shows the occupant's table but for `InPlace::pending` paths and what
//!   `Known` says the disk can't have.
//! - Nothing that lies [`Outside`] is written, read back or removed.
//! - What was there before and isn't the table's is never removed, unless
//!   `--pre-cleanup` or `--cleanup` ask for it.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::time::ClockId;
use serde::Deserialize;
use serde::Serialize;

use super::Error;
use super::outside::Exceptions;
use super::outside::Outside;
use super::read::Candidates;
use super::read::Reader;
use super::read::Scrutiny;
use super::watched::Watched;
use super::write::Known;
use super::write::Writer;
use super::write::Written;
use crate::change::ChangeSet;
use crate::overlay::Overlay;
use crate::path::RootPath;
use crate::root_dir::RootDir;
use crate::sandbox::Recording;
use crate::sandbox::Watches;
use crate::snapshot::Mode;
use crate::tree::Kind;
use crate::tree::Timestamp;
use crate::tree::Tree;

/// Name of the file that says what the disk shows.
const STATE: &str = "root.json";

/// Version of that file; another one is not believed.
const VERSION: u32 = 1;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What is to be left alone.
    pub exceptions: Exceptions,
    /// `--pre-cleanup`: everything else goes before the first step.
    pub pre_cleanup: bool,
    /// `--cleanup`: everything else goes when the build has ended.
    pub cleanup: bool,
    /// `--preserve-context`: what was there comes back after a clean-up.
    pub preserve: bool,
    /// `--materialize`: the target is unpacked even if every step was cached.
    pub materialize: bool,
}

/// The container's root; see the head of this file.
pub struct InPlace {
    disk: RootDir,
    path: PathBuf,
    outside: Outside,
    options: Options,
    occupant: Arc<Overlay>,
    /// Paths where the disk may show something else than the occupant's table.
    pending: Candidates,
    known: Known,
    watched: Watched,
    /// When what is running began.
    since: Timestamp,
    scratch: PathBuf,
    state: PathBuf,
    /// Kept locked while the root is in use.
    _lock: File,
    /// What was there before, if it is to come back.
    preserved: Option<Arc<Overlay>>,
    /// Whether anything was written to the disk.
    is_used: bool,
}

/// What an earlier build left on the disk.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    /// Diff IDs, bottom first.
    layers: Vec<String>,
    /// When the disk was known to show them.
    seconds: i64,
    nanoseconds: u32,
    /// Where it may show something else.
    pending: Vec<Vec<u8>>,
}

/// What was found out by reading back.
#[derive(Clone, Debug, Default)]
pub struct ReadBack {
    /// Why everything was compared although a recording was wanted.
    pub walked: Option<String>,
    /// Paths that were looked at.
    pub looked_at: u64,
}

impl InPlace {
    /// Takes the root at `path` (`/`, but in tests). `directory` holds the state;
    /// `scratch` is this build's own. `layers` opens the layers of earlier builds:
    /// an overlay over them, or nothing if one is missing.
    ///
    /// # Errors
    /// [`Error::Busy`] while another build uses it; [`Error::Disk`];
    /// [`Error::Scratch`].
    pub fn open(
        path: &Path,
        outside: Outside,
        options: Options,
        directory: &Path,
        scratch: &Path,
        layers: impl FnOnce(&[String]) -> Option<Arc<Overlay>>,
    ) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(Error::disk("create", directory))?;
        let lock_path = directory.join("root.lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(Error::disk("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::Busy),
            Err(fs::TryLockError::Error(error)) => {
                return Err(Error::disk("lock", &lock_path)(error));
            }
        }
        let disk = RootDir::open(path).map_err(|error| Error::disk("open", path)(error.into()))?;
        let state = directory.join(STATE);
        let empty = Overlay::new(Vec::new(), scratch)
            .map_err(|source| Error::Scratch { path: scratch.to_owned(), source })?;
        let mut root = Self {
            disk,
            path: path.to_owned(),
            outside,
            options,
            occupant: Arc::clone(&empty),
            pending: Candidates::from([RootPath::root()]),
            known: Known::default(),
            watched: Watched::default(),
            since: now(),
            scratch: scratch.to_owned(),
            state,
            _lock: lock,
            preserved: None,
            is_used: false,
        };
        if let Some(state) = root.read_state()
            && let Some(overlay) = layers(&state.layers)
        {
            root.since = Timestamp { seconds: state.seconds, nanoseconds: state.nanoseconds };
            root.occupant = overlay;
            root.pending = root.verify()?;
            root.pending.extend(state.pending.iter().filter_map(|path| RootPath::clamped(path)));
        }
        Ok(root)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is left alone.
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// What was asked for.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The directory by handle, for whatever is put there for the time of a step.
    pub fn disk(&self) -> &RootDir {
        &self.disk
    }

    fn read_state(&self) -> Option<State> {
        let state: State = serde_json::from_slice(&fs::read(&self.state).ok()?).ok()?;
        (state.version == VERSION).then_some(state)
    }

    /// Where the disk no longer shows what an earlier build left: bytes are compared
    /// where something changed, metadata everywhere. Layers hold whole seconds, the
    /// disk has more.
    fn verify(&mut self) -> Result<Candidates, Error> {
        let occupant = Arc::clone(&self.occupant);
        let mut reader = self.reader(&occupant, Scrutiny::Changed);
        let changed = reader.everywhere()?;
        reader.differing(&changed)
    }

    fn reader<'a>(&'a mut self, overlay: &'a Overlay, scrutiny: Scrutiny) -> Reader<'a> {
        Reader {
            disk: &self.disk,
            outside: &self.outside,
            known: &mut self.known,
            overlay,
            since: self.since,
            scrutiny,
        }
    }

    /// Keeps what is there for later and removes it, as far as that was asked for;
    /// before the first step.
    fn prepare(&mut self) -> Result<(), Error> {
        self.is_used = true;
        if self.options.preserve {
            let original = self.empty()?;
            self.since = Timestamp { seconds: i64::MIN, nanoseconds: 0 };
            let scratch = self.scratch.clone();
            let mut reader = self.reader(&original, Scrutiny::Changed);
            let candidates = reader.everywhere()?;
            reader.apply(candidates, &scratch)?;
            self.preserved = Some(original);
        }
        if self.options.pre_cleanup {
            Writer::new(&self.disk, &self.outside, &mut self.known).clear()?;
            self.known.forget();
            self.occupant = self.empty()?;
            self.pending = Candidates::from([RootPath::root()]);
        }
        Ok(())
    }

    fn empty(&self) -> Result<Arc<Overlay>, Error> {
        Overlay::new(Vec::new(), &self.scratch)
            .map_err(|source| Error::Scratch { path: self.scratch.clone(), source })
    }

    /// Makes the disk show `overlay`. What the last step left running must be gone.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn enter(&mut self, overlay: &Arc<Overlay>) -> Result<Written, Error> {
        if !self.is_used {
            self.prepare()?;
        }
        // From here on the disk shows nothing that could be relied on after a kill.
        match fs::remove_file(&self.state) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::disk("remove", &self.state)(error));
            }
            _ => {}
        }
        let written = if Arc::ptr_eq(&self.occupant, overlay) {
            let pending = std::mem::take(&mut self.pending);
            if pending.is_empty() {
                Written::default()
            } else {
                Writer::new(&self.disk, &self.outside, &mut self.known)
                    .mend(&*overlay.after(), &pending)?
            }
        } else {
            let written = Writer::new(&self.disk, &self.outside, &mut self.known).switch(
                &*self.occupant.after(),
                &*overlay.after(),
                &self.pending,
            )?;
            self.occupant = Arc::clone(overlay);
            self.pending.clear();
            written
        };
        self.since = now();
        Ok(written)
    }

    /// Watches on every directory of the disk, which shows `overlay`; `None` where there
    /// can't be any.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn watches(&mut self, overlay: &Overlay) -> Result<Option<Arc<Watches>>, Error> {
        let watches = self.watched.on(&*overlay.after(), &self.disk, &self.outside)?;
        self.known.watches.clone_from(&watches);
        Ok(watches)
    }

    /// Notes that the table of `overlay` was changed at these paths by other than a
    /// RUN.
    pub fn edited(&mut self, overlay: &Arc<Overlay>, set: &ChangeSet) {
        if Arc::ptr_eq(&self.occupant, overlay) {
            self.pending.extend(set.changes.iter().map(|change| change.path().clone()));
        }
    }

    /// Notes that the table was changed at `path`.
    pub fn touched(&mut self, overlay: &Arc<Overlay>, path: RootPath) {
        if Arc::ptr_eq(&self.occupant, overlay) {
            self.pending.insert(path);
        }
    }

    /// Does to the table of `overlay`, which entered last, what was done to the disk
    /// since. `recording` says where to look; without one, or if `walk` says so,
    /// everything is compared.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn read_back(
        &mut self,
        overlay: &Arc<Overlay>,
        recording: Result<&Recording, String>,
        walk: Option<Mode>,
    ) -> Result<ReadBack, Error> {
        let mut report = ReadBack::default();
        let scrutiny = walk.map_or(Scrutiny::Changed, Scrutiny::Walk);
        let recording = match (recording, walk) {
            (_, Some(_)) => None,
            (Err(why), None) => {
                report.walked = Some(why);
                None
            }
            (Ok(recording), None) => {
                report.walked = recording.lost.clone().or_else(|| self.ambiguous(recording));
                report.walked.is_none().then_some(recording)
            }
        };
        let scratch = self.scratch.clone();
        let mut reader = self.reader(overlay, scrutiny);
        let candidates = match recording {
            Some(recording) => reader.recorded(recording)?,
            None => reader.everywhere()?,
        };
        report.looked_at = candidates.len() as u64;
        reader.apply(candidates, &scratch)?;
        self.since = now();
        Ok(report)
    }

    /// Undoes what a step did since the disk was entered and the overlay marked: both
    /// are as they were then. `recording` as in [`InPlace::read_back`].
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn undo(&mut self, overlay: &Arc<Overlay>) -> Result<(), Error> {
        let scratch = self.scratch.clone();
        let candidates = self.reader(overlay, Scrutiny::Changed).everywhere()?;
        self.reader(overlay, Scrutiny::Changed).apply(candidates.clone(), &scratch)?;
        Writer::new(&self.disk, &self.outside, &mut self.known).switch(
            &*overlay.after(),
            &*overlay.before(),
            &candidates,
        )?;
        self.reader(overlay, Scrutiny::Changed).apply(candidates, &scratch)?;
        self.since = now();
        Ok(())
    }

    /// Why a recorded path may have meant something else when it was used: a symbolic
    /// link on it changed during the step.
    fn ambiguous(&self, recording: &Recording) -> Option<String> {
        let tree = self.occupant.after();
        let is_link = |path: &RootPath| {
            recording.links.contains(path)
                || (recording.touched.contains(path)
                    && (self
                        .disk
                        .stat(path, false)
                        .is_ok_and(|seen| seen.stat.kind == Kind::Symlink)
                        || tree
                            .find(path)
                            .ok()
                            .flatten()
                            .and_then(|node| tree.stat(node).ok())
                            .is_some_and(|stat| stat.kind == Kind::Symlink)))
        };
        let mut plain: BTreeSet<RootPath> = BTreeSet::new();
        let own = recording.through_links.iter().cloned().map(Some);
        let above = recording.touched.iter().map(RootPath::parent);
        for start in own.chain(above).flatten() {
            let mut at = Some(start);
            while let Some(path) = at {
                at = path.parent();
                if path.is_root() || plain.contains(&path) {
                    break;
                }
                if is_link(&path) {
                    return Some(format!("the symbolic link {path} changed while it was used"));
                }
                plain.insert(path);
            }
        }
        None
    }

    /// Paths of `overlay` below mounts of the container: a RUN sees the mount there
    /// and not the image. What the user wants to be left alone is none of them.
    pub fn hidden(&self, overlay: &Overlay) -> Vec<RootPath> {
        let tree = overlay.after();
        let holds = |path: &&RootPath| {
            let node = tree.find(path).ok().flatten()?;
            let is_directory = tree.stat(node).ok()?.is_directory();
            (is_directory && !tree.children(node).ok()?.is_empty()).then_some(())
        };
        let usual: [&[u8]; 3] = [b"proc", b"sys", b"dev"];
        let places = self
            .outside
            .places()
            .filter(|path| path.components().next().is_none_or(|first| !usual.contains(&first)))
            .filter(|path| !self.outside.is_ignored(path));
        places.filter(|path| holds(path).is_some()).cloned().collect()
    }

    /// Paths that the disk can't have.
    pub fn missing(&self) -> impl Iterator<Item = &RootPath> {
        self.known.missing.iter()
    }

    /// Ends the use of the root. `layers` are those of the occupant, if all of it is
    /// in layers; the next build goes on from there.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn leave(&mut self, layers: Option<(&Arc<Overlay>, Vec<String>)>) -> Result<(), Error> {
        if self.options.cleanup {
            if !self.is_used {
                self.prepare()?;
            }
            let _ = fs::remove_file(&self.state);
            Writer::new(&self.disk, &self.outside, &mut self.known).clear()?;
            self.known.forget();
            self.occupant = self.empty()?;
            self.pending = Candidates::from([RootPath::root()]);
            if let Some(original) = self.preserved.take() {
                self.enter(&original)?;
            }
            return Ok(());
        }
        let Some((overlay, layers)) = layers else { return Ok(()) };
        if !self.is_used || !Arc::ptr_eq(overlay, &self.occupant) {
            return Ok(());
        }
        let state = State {
            version: VERSION,
            layers,
            seconds: self.since.seconds,
            nanoseconds: self.since.nanoseconds,
            pending: self.pending.iter().map(|path| path.as_bytes().to_vec()).collect(),
        };
        let bytes = serde_json::to_vec(&state).map_err(std::io::Error::from);
        let fresh = self.state.with_extension("new");
        bytes
            .and_then(|bytes| fs::write(&fresh, bytes))
            .and_then(|()| fs::rename(&fresh, &self.state))
            .map_err(Error::disk("write", &self.state))
    }

    /// The overlay that the disk shows.
    pub fn occupant(&self) -> &Arc<Overlay> {
        &self.occupant
    }
}

/// The time as the kernel stamps files with it: change times of what happens from
/// now on are never before it.
fn now() -> Timestamp {
    let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
    Timestamp { seconds: now.tv_sec, nanoseconds: u32::try_from(now.tv_nsec).unwrap_or_default() }
}

/// Writes what `tree` shows to the directory `to`: for RUN --mount=type=bind.
///
/// # Errors
/// [`Error::Disk`].
pub fn unpack(tree: &dyn Tree, to: &Path, scratch: &Path) -> Result<(), Error> {
    let disk = RootDir::open(to).map_err(|error| Error::disk("open", to)(error.into()))?;
    let empty = Overlay::new(Vec::new(), scratch)
        .map_err(|source| Error::Scratch { path: scratch.to_owned(), source })?;
    let suspects = Candidates::from([RootPath::root()]);
    Writer::new(&disk, &Outside::default(), &mut Known::default())
        .switch(&*empty.after(), tree, &suspects)
        .map(drop)
}
