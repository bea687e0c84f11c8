//! RUN in the container's own root: which state it is in, and whose turn it is.

use std::path::PathBuf;
use std::sync::Arc;

use super::Error;
use super::Progress;
use super::layers;
use super::layers::LayerSlot;
use super::request::RootChoice;
use super::request::SnapshotMode;
use super::shared::Shared;
use super::shared::lock;
use super::stage::Finished;
use crate::change::ChangeSet;
use crate::oci::digest::DiffId;
use crate::overlay::Overlay;
use crate::plan::step::RunStep;
use crate::rootfs;
use crate::rootfs::InPlace;
use crate::rootfs::outside::Outside;
use crate::sandbox::Exit;
use crate::sandbox::Stream;
use crate::step;
use crate::step::run::Prepared;
use crate::tree::Timestamp;

impl Shared<'_> {
    /// Whether RUN steps happen in the container's own root.
    pub fn is_in_place(&self) -> bool {
        matches!(self.request.root, RootChoice::InPlace { .. })
    }

    /// Calls `body` with the container's root; opens it first if need be.
    fn with_root<T>(
        &self,
        body: impl FnOnce(&mut InPlace) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let RootChoice::InPlace { options, state } = &self.request.root else {
            return Err(Error::Panic);
        };
        let mut place = lock(&self.state.in_place);
        let root = match &mut *place {
            Some(root) => root,
            None => {
                let mut exceptions = options.exceptions.clone();
                exceptions.own.push(self.request.cache_dir.clone());
                // Another one, where that can't be written.
                exceptions.own.push(self.workshop.store.directory().to_owned());
                exceptions.own.push(state.clone());
                exceptions.own.push(self.context.directory().to_owned());
                exceptions.own.extend(std::env::current_exe().ok());
                let outside = Outside::of_this_root(&exceptions)?;
                let options = rootfs::in_place::Options { exceptions, ..options.clone() };
                let scratch = self.scratch("in-place")?;
                let root =
                    InPlace::open("/".as_ref(), outside, options, state, &scratch, |layers| {
                        self.overlay_of(layers)
                    })?;
                place.insert(root)
            }
        };
        body(root)
    }

    /// An overlay over layers of an earlier build; `None` if the cache lost one.
    fn overlay_of(&self, layers: &[String]) -> Option<Arc<Overlay>> {
        let lowers = layers.iter().map(|id| {
            let id: DiffId = id.parse().ok()?;
            self.workshop.open_lower(&id).ok()
        });
        let overlay =
            lowers.collect::<Option<Vec<_>>>().and_then(|lowers| self.overlay(lowers).ok());
        if overlay.is_none() {
            self.observer.observe(Progress::Warning(
                "the cache has lost layers that an earlier build left in this container's root: \
                 its files stay there; --pre-cleanup removes them"
                    .to_owned(),
            ));
        }
        overlay
    }

    /// Runs `run` in the container's root over the table of `overlay`. Tells, too, whether
    /// another root would give the same: not where it met something of this container's own.
    ///
    /// # Errors
    /// The step's own.
    pub(super) fn run_in_place(
        &self,
        overlay: &Arc<Overlay>,
        run: &RunStep,
        mounts: Vec<Prepared>,
        now: Timestamp,
        output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<(Exit, bool), Error> {
        let walk = match self.request.snapshot {
            SnapshotMode::Log => None,
            SnapshotMode::Walk(mode) => Some(mode),
        };
        self.with_root(|root| {
            let hidden = root.hidden(overlay);
            for path in &hidden {
                self.observer.observe(Progress::Warning(format!(
                    "{path} is a mount of this container: RUN sees it instead of what the image \
                     has there, and what RUN writes there is not in the image"
                )));
            }
            let notice = |text: String| {
                self.observer.observe(Progress::Note(text));
            };
            let mut place = step::in_place::Place {
                root,
                overlay,
                runner: self.runner,
                cancel: Arc::clone(&self.cancel),
                walk,
                conditions: &self.request.conditions,
                notice: &notice,
            };
            let ran = step::in_place::run(&mut place, run, mounts, now, output)?;
            if let Some(path) = ran.private.first() {
                self.observer.observe(Progress::Warning(format!(
                    "RUN wrote to {path}, which is this container's own: that is not in the image, \
                     and the step is not kept in the cache"
                )));
            }
            let missing = place.root.missing().count();
            if missing > 0 {
                tracing::debug!(missing, "entries that this container can't have on its disk");
            }
            Ok((ran.exit, hidden.is_empty() && ran.private.is_empty()))
        })
    }

    /// The table of `overlay` was changed by a step that is no RUN.
    pub(super) fn edited_in_place(&self, overlay: &Arc<Overlay>, set: &ChangeSet) {
        if let Some(root) = &mut *lock(&self.state.in_place) {
            root.edited(overlay, set);
        }
    }

    /// The table of `overlay`, which is all in these layers, is what the root shows:
    /// from now on, if `enters`, or if it did already.
    pub(super) fn occupies(
        &self,
        overlay: &Arc<Overlay>,
        enters: bool,
        base: Vec<DiffId>,
        chain: Vec<LayerSlot>,
    ) {
        let mut occupied = lock(&self.state.occupied);
        if enters || occupied.as_ref().is_some_and(|(there, ..)| Arc::ptr_eq(there, overlay)) {
            *occupied = Some((Arc::clone(overlay), base, chain));
        }
    }

    /// What the root shows is in no layers.
    pub(super) fn occupied_by_nobody(&self) {
        *lock(&self.state.occupied) = None;
    }

    /// Unpacks files for a bind mount.
    ///
    /// # Errors
    /// Those of the disk.
    pub(super) fn unpack(&self, overlay: &Overlay) -> Result<PathBuf, Error> {
        let scratch = self.scratch("unpacked")?;
        let to = scratch.join("files");
        std::fs::create_dir(&to).map_err(|source| Error::Scratch { path: to.clone(), source })?;
        rootfs::in_place::unpack(&*overlay.after(), &to, &scratch)?;
        Ok(to)
    }

    /// The build has ended: unpacks the target where that was asked for, cleans up or
    /// remembers what the root shows.
    ///
    /// # Errors
    /// Those of the disk, and of layers.
    pub fn leave_root(&self, target: Option<&Finished>) -> Result<(), Error> {
        let RootChoice::InPlace { options, .. } = &self.request.root else { return Ok(()) };
        if options.materialize
            && let Some(target) = target
        {
            let overlay = self.overlay(self.stage_lowers(target)?)?;
            self.with_root(|root| Ok(root.enter(&overlay).map(drop)?))?;
            let layers = self.layers_of(target)?;
            return self.with_root(|root| Ok(root.leave(Some((&overlay, layers)))?));
        }
        if options.cleanup {
            return self.with_root(|root| Ok(root.leave(None)?));
        }
        let Some(root) = &mut *lock(&self.state.in_place) else { return Ok(()) };
        let occupied = lock(&self.state.occupied).take();
        let layers = occupied.and_then(|(overlay, base, chain)| {
            let above = layers::peek_all(&chain)?;
            let ids = base.iter().copied().chain(above.iter().map(|facts| facts.diff_id));
            Some((overlay, ids.map(|id| id.to_string()).collect()))
        });
        Ok(root.leave(
            layers.as_ref().map(|(overlay, ids): &(_, Vec<String>)| (overlay, ids.clone())),
        )?)
    }

    fn layers_of(&self, finished: &Finished) -> Result<Vec<String>, Error> {
        Ok(finished.diff_ids()?.iter().map(ToString::to_string).collect())
    }
}
