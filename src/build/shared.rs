//! What all stages of a build share: the caches, the context, the finished stages
//! and the images that files are copied from.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use yadokari_cache::ContextDigests;
use yadokari_cache::ContextRoot;

use super::Crew;
use super::Error;
use super::Progress;
use super::ahead;
use super::base::Base;
use super::base::Bases;
use super::layers;
use super::layers::LayerSlot;
use super::layers::Workshop;
use super::progress::Observer;
use super::progress::StepNumber;
use super::publish::Uploads;
use super::remote::Remotes;
use super::remote::Watch;
use super::report::StepReport;
use super::request::Request;
use super::request::SshSource;
use super::slot::Slot;
use super::stage;
use super::stage::Finished;
use crate::agent::Agent;
use crate::context::Context;
use crate::context::ContextTree;
use crate::context::DigestMemory;
use crate::dockerfile::Dockerfile;
use crate::ignore::Matcher;
use crate::oci::digest::DiffId;
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;
use crate::overlay::Lower;
use crate::overlay::Overlay;
use crate::plan::Plan;
use crate::plan::step::Action;
use crate::plan::step::MountKind;
use crate::plan::step::Origin;
use crate::plan::step::RunStep;
use crate::rootfs::InPlace;
use crate::rootfs::Root;
use crate::sandbox::Cancel;
use crate::sandbox::Runner;
use crate::step;
use crate::step::source::Source;
use crate::tree::Timestamp;

/// What is done with a step that is in no cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// It runs.
    Build,
    /// The stage ends there.
    Warm {
        /// Whether there is a build context to compute keys with.
        has_context: bool,
    },
}

type StageSlot = Arc<Slot<Result<Arc<Finished>, Arc<Error>>>>;

/// See the module.
pub struct Shared<'a> {
    /// What is asked for.
    pub request: &'a Request,
    /// Whether anything is to be run.
    pub mode: Mode,
    /// The Dockerfile, for messages.
    pub dockerfile: &'a Dockerfile,
    /// Its stages.
    pub plan: &'a Plan,
    /// SOURCE_DATE_EPOCH: the time of what is made now, if it is later.
    pub epoch: Option<i64>,
    /// The build context.
    pub context: &'a Context,
    /// Its ignore rules.
    pub ignore: Mutex<Option<Matcher>>,
    /// How layers are written.
    pub workshop: &'a Workshop,
    /// How base images are reached.
    pub bases: &'a Bases,
    /// How URLs and repositories are reached.
    pub remotes: &'a Remotes,
    /// Uploads behind the build; `None` when nothing is pushed.
    pub uploads: Option<&'a Uploads<'a>>,
    /// Who is told.
    pub observer: &'a dyn Observer,
    /// Who starts processes.
    pub runner: &'a (dyn Runner + Sync),
    /// Ends running processes.
    pub cancel: Arc<Cancel>,
    /// Set when the user interrupts.
    pub interrupted: &'a AtomicBool,
    pub(super) state: State,
}

#[derive(Default)]
pub(super) struct State {
    steps: AtomicU32,
    scratches: AtomicU32,
    context_tree: OnceLock<Arc<ContextTree>>,
    memory: OnceLock<Arc<ContextDigests>>,
    stages: Mutex<BTreeMap<usize, StageSlot>>,
    /// Stages that somebody runs or has run.
    begun: Mutex<BTreeSet<usize>>,
    /// Trees that files are copied from, by stage or image.
    trees: Mutex<BTreeMap<String, OpenTree>>,
    /// The container's own root, once something has to be run in it.
    pub(super) in_place: Mutex<Option<InPlace>>,
    /// The table that it shows, and the layers that hold all of it.
    pub(super) occupied: Mutex<Option<Occupied>>,
    /// `--build-context`s that are files, by name, once somebody asked.
    named: Mutex<BTreeMap<String, NamedSlot>>,
    /// Memories of their files' digests.
    memories: Mutex<Vec<Arc<ContextDigests>>>,
    /// Whether it was said why mounts are not served in the best way.
    is_transport_told: AtomicBool,
    /// Agents with keys of `--ssh`, by id.
    agents: Mutex<BTreeMap<String, Arc<Agent>>>,
    reports: Mutex<Vec<StepReport>>,
}

/// An overlay, the diff IDs of its base and the layers above.
pub(super) type Occupied = (Arc<Overlay>, Vec<DiffId>, Vec<LayerSlot>);

/// The files of a `--build-context`; who asks second waits for the first.
type NamedSlot = Arc<Mutex<Option<Arc<ContextTree>>>>;

/// A tree that files are copied from, with the layers it is made of.
type OpenTree = (Vec<Lower>, Arc<Overlay>);

/// Files that a step reads, kept alive while it does.
pub enum Files {
    /// The build context.
    Context(Arc<ContextTree>),
    /// A stage or an image.
    Layers {
        /// Its layers, for a view of its own.
        lowers: Vec<Lower>,
        /// Its files.
        overlay: Arc<Overlay>,
        /// How messages call it.
        whose: String,
    },
}

impl Files {
    /// Calls `with` with the tree to read.
    pub fn with_source<T>(&self, with: impl FnOnce(&Source<'_>) -> T) -> T {
        match self {
            Self::Context(tree) => with(&Source::Context(tree)),
            Self::Layers { overlay, whose, .. } => {
                let tree = overlay.after();
                with(&Source::Layers { tree: &*tree, whose: whose.clone() })
            }
        }
    }
}

impl<'a> Shared<'a> {
    /// Gathers what the stages share.
    #[expect(clippy::too_many_arguments, reason = "one call, in build.rs; each is a part")]
    pub fn new(
        request: &'a Request,
        mode: Mode,
        dockerfile: &'a Dockerfile,
        plan: &'a Plan,
        epoch: Option<i64>,
        context: &'a Context,
        ignore: Matcher,
        workshop: &'a Workshop,
        bases: &'a Bases,
        remotes: &'a Remotes,
        uploads: Option<&'a Uploads<'a>>,
        crew: &'a Crew<'a>,
    ) -> Self {
        Self {
            request,
            mode,
            dockerfile,
            plan,
            epoch,
            context,
            ignore: Mutex::new(Some(ignore)),
            workshop,
            bases,
            remotes,
            uploads,
            observer: crew.observer,
            runner: crew.runner,
            cancel: Arc::clone(&crew.cancel),
            interrupted: crew.interrupted,
            state: State::default(),
        }
    }

    /// Runs every needed stage, each in its own thread; one waits for those it reads
    /// when it reaches the step that does. Gives the target's result.
    ///
    /// # Errors
    /// The first stage's that failed by itself.
    pub fn run_stages(&self) -> Result<Arc<Finished>, Error> {
        for &index in &self.plan.needed {
            lock(&self.state.stages).entry(index).or_default();
        }
        if self.is_in_place() {
            // There is one root: stages take turns. One that reads another runs that
            // first (see `Shared::stage`).
            self.plan.needed.iter().for_each(|&index| self.run_stage(index));
        } else {
            std::thread::scope(|scope| {
                for &index in &self.plan.needed {
                    scope.spawn(move || self.run_stage(index));
                }
            });
        }
        let failures: Vec<Error> =
            self.plan.needed.iter().filter_map(|&index| self.stage(index).err()).collect();
        let by_itself =
            |error: &Error| !matches!(error.cause(), Error::Interrupted | Error::NotCached);
        let position = failures.iter().position(by_itself).unwrap_or(0);
        match failures.into_iter().nth(position) {
            Some(error) => Err(error),
            None => self.stage(self.plan.target),
        }
    }

    /// Runs a stage in this thread, unless that was begun already.
    fn run_stage(&self, index: usize) {
        if !lock(&self.state.begun).insert(index) {
            return;
        }
        let run = || stage::run(self, index);
        let finished = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
            .unwrap_or(Err(Error::Panic));
        let is_lost = self.workshop.repo.as_ref().is_some_and(|repo| repo.is_lost())
            || self.workshop.store.lost();
        let is_absent =
            finished.as_ref().is_err_and(|error| matches!(error.cause(), Error::NotCached));
        // Others may go on: what they finish isn't done again.
        if finished.is_err() && !is_lost && !is_absent {
            self.cancel.cancel();
        }
        let slot = lock(&self.state.stages).entry(index).or_default().clone();
        slot.fill(finished.map(Arc::new).map_err(Arc::new));
    }

    /// The result of a stage; waits for it, or where stages take turns, runs it.
    ///
    /// # Errors
    /// The stage's own, shared.
    pub fn stage(&self, index: usize) -> Result<Arc<Finished>, Error> {
        if self.is_in_place() && self.plan.needed.contains(&index) {
            self.run_stage(index);
        }
        let slot = lock(&self.state.stages).get(&index).cloned();
        let slot = slot.ok_or(Error::Panic)?;
        slot.wait().map_err(Error::Stage)
    }

    /// Mounts `root`, if it isn't yet, and gives the directory. Tells once if that isn't
    /// served in the best way that the host offers.
    ///
    /// # Errors
    /// What the host doesn't allow.
    pub fn mount(&self, root: &mut Root) -> Result<PathBuf, Error> {
        let at = root.mount(self.request.fuse_transport, self.request.fuse_passthrough)?;
        tracing::debug!(mount = %at.display(), "root mounted");
        if let Some(why) = root.fallback()
            && !self.state.is_transport_told.swap(true, Ordering::Relaxed)
        {
            self.observer.observe(Progress::Warning(why.to_owned()));
        }
        Ok(at)
    }

    /// Whether a step reads files that there are none of.
    pub fn lacks_files(&self, action: &Action) -> bool {
        self.mode == Mode::Warm { has_context: false } && ahead::needs_context(action)
    }

    /// The layers of a base image, fetched where they are missing, several at once.
    ///
    /// # Errors
    /// See [`Bases::ensure_layer`].
    pub fn base_lowers(&self, base: &Base) -> Result<Vec<Lower>, Error> {
        let missing: Vec<_> = base
            .layers
            .iter()
            .filter(|layer| !matches!(self.bases.store.layer(&layer.diff_id), Ok(Some(_))))
            .collect();
        let next = AtomicU32::new(0);
        let work = || -> Result<(), Error> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                let Some(layer) = missing.get(at) else { return Ok(()) };
                self.check_interrupted()?;
                self.bases.ensure_layer(base, layer, self.observer)?;
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..missing.len().min(4)).map(|_| scope.spawn(work)).collect();
            work()?;
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(Error::Panic)))
        })?;
        base.layers.iter().map(|layer| Ok(self.workshop.open_lower(&layer.diff_id)?)).collect()
    }

    /// The files of `origin`.
    ///
    /// # Errors
    /// Those of the stage or image.
    pub fn files(&self, origin: &Origin, platform: &Platform) -> Result<Files, Error> {
        let whose = match origin {
            Origin::Context => return Ok(Files::Context(self.context_tree()?)),
            Origin::Named(name) => return Ok(Files::Context(self.named_tree(name)?)),
            Origin::Scratch => "scratch".to_owned(),
            Origin::Stage(index) => format!("stage {}", self.plan.stages[*index].title),
            Origin::Image(name) => format!("image {name} for {platform}"),
        };
        if let Some((lowers, overlay)) = lock(&self.state.trees).get(&whose).cloned() {
            return Ok(Files::Layers { lowers, overlay, whose });
        }
        let lowers = match origin {
            Origin::Context | Origin::Named(_) | Origin::Scratch => Vec::new(),
            Origin::Stage(index) => self.stage_lowers(&*self.stage(*index)?)?,
            Origin::Image(name) => {
                let resolved = self.bases.resolve(name, platform);
                self.base_lowers(&*resolved.map_err(|error| error.or_stage(name, self.plan))?)?
            }
        };
        let overlay = self.overlay(lowers.clone())?;
        lock(&self.state.trees).insert(whose.clone(), (lowers.clone(), Arc::clone(&overlay)));
        Ok(Files::Layers { lowers, overlay, whose })
    }

    /// The layers of a finished stage, ready to be stacked.
    ///
    /// # Errors
    /// Those of its layers.
    pub fn stage_lowers(&self, finished: &Finished) -> Result<Vec<Lower>, Error> {
        let mut lowers = match &finished.base {
            Some(base) => self.base_lowers(base)?,
            None => Vec::new(),
        };
        lowers.extend(self.chain_lowers(&finished.chain)?);
        Ok(lowers)
    }

    /// The layers of a chain, ready to be stacked. Waits for those on their way, and
    /// fetches those that only the shared cache has.
    ///
    /// # Errors
    /// Those of its layers.
    pub fn chain_lowers(&self, chain: &[LayerSlot]) -> Result<Vec<Lower>, Error> {
        let chain = layers::wait_all(chain)?;
        if let Some(repo) = &self.workshop.repo {
            let digests: Vec<Digest> = chain.iter().map(|facts| facts.descriptor.digest).collect();
            repo.fetch_all(&digests, true, self.observer)?;
        }
        let lowers: Result<_, _> = chain.iter().map(|facts| self.workshop.lower(facts)).collect();
        if lowers.is_err() && self.workshop.store.lost() {
            // One is damaged or gone; others may be, and the build should begin again
            // once and not for each of them.
            chain.iter().for_each(|facts| self.workshop.store.doubt_blob(&facts.descriptor.digest));
        }
        Ok(lowers?)
    }

    /// An overlay that is only read.
    ///
    /// # Errors
    /// When its scratch directory can't be made.
    pub fn overlay(&self, lowers: Vec<Lower>) -> Result<Arc<Overlay>, Error> {
        let scratch = self.scratch("tree")?;
        Overlay::new(lowers, &scratch).map_err(|source| Error::Scratch { path: scratch, source })
    }

    /// The build context's files, ignore rules applied.
    ///
    /// # Errors
    /// When the context's directory can't be opened.
    pub fn context_tree(&self) -> Result<Arc<ContextTree>, Error> {
        let mut ignore = lock(&self.ignore);
        if let Some(tree) = self.state.context_tree.get() {
            return Ok(Arc::clone(tree));
        }
        let matcher = ignore.take().unwrap_or_default();
        let mut tree = self.context.tree(matcher)?;
        // An unpacked archive lies somewhere else in every build.
        if !self.context.is_unpacked()
            && let Ok(root) = ContextRoot::of(self.context.directory())
        {
            let memory = Arc::new(ContextDigests::load(&self.request.cache_dir, &root));
            if let Some(notice) = memory.notice() {
                self.observer.observe(Progress::Warning(notice.to_string()));
            }
            tree = tree.remembering(Arc::clone(&memory) as Arc<dyn DigestMemory>);
            let _ = self.state.memory.set(memory);
        }
        let tree = Arc::new(tree);
        Ok(Arc::clone(self.state.context_tree.get_or_init(|| tree)))
    }

    /// The files of a `--build-context`, fetched or opened when first asked for.
    ///
    /// # Errors
    /// Those of its kind.
    fn named_tree(&self, name: &str) -> Result<Arc<ContextTree>, Error> {
        let slot = Arc::clone(lock(&self.state.named).entry(name.to_owned()).or_default());
        let mut found = lock(&slot);
        if let Some(tree) = &*found {
            return Ok(Arc::clone(tree));
        }
        let place = self.request.named_files.iter().find(|files| files.name == name);
        let place = place.ok_or(Error::Panic)?;
        let context = self.remotes.named_context(&place.place, self.watch())?;
        let ignore = match context.ignore_file()? {
            Some(rules) => Matcher::parse(&rules.text)
                .map_err(|source| Error::Ignore { file: rules.name.clone(), source })?,
            None => Matcher::default(),
        };
        let mut tree = context.tree(ignore)?;
        if !context.is_unpacked()
            && let Ok(root) = ContextRoot::of(context.directory())
        {
            let memory = Arc::new(ContextDigests::load(&self.request.cache_dir, &root));
            tree = tree.remembering(Arc::clone(&memory) as Arc<dyn DigestMemory>);
            lock(&self.state.memories).push(memory);
        }
        Ok(Arc::clone(found.insert(Arc::new(tree))))
    }

    /// Who watches over what is fetched.
    pub fn watch(&self) -> Watch<'_> {
        Watch { observer: self.observer, interrupted: self.interrupted }
    }

    /// The socket that `--ssh` gives for `id` and whether it is raw; `None` if it gives
    /// none. Keys are handed to an agent of ours the first time.
    ///
    /// # Errors
    /// Those of the agent.
    pub fn ssh_socket(&self, id: &str) -> Result<Option<(PathBuf, bool)>, Error> {
        let Some(ssh) = self.request.ssh.iter().find(|ssh| ssh.id == id) else { return Ok(None) };
        match &ssh.source {
            SshSource::Socket { path, raw } => Ok(Some((path.clone(), *raw))),
            SshSource::Keys(files) => {
                let mut agents = lock(&self.state.agents);
                if let Some(agent) = agents.get(id) {
                    return Ok(Some((agent.socket().to_owned(), false)));
                }
                let agent = Arc::new(Agent::start(&self.scratch("agent")?, files)?);
                let socket = agent.socket().to_owned();
                agents.insert(id.to_owned(), agent);
                Ok(Some((socket, false)))
            }
        }
    }

    /// Remembers what was digested of the context, for the next build.
    pub fn save_context_digests(&self) {
        let named = lock(&self.state.memories);
        for memory in self.state.memory.get().into_iter().chain(&*named) {
            if let Err(error) = memory.save() {
                tracing::debug!(%error, "context digests not remembered");
            }
        }
    }

    /// A fresh directory of this build.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn scratch(&self, what: &str) -> Result<PathBuf, Error> {
        let number = self.state.scratches.fetch_add(1, Ordering::Relaxed);
        let path = self.workshop.store.scratch()?.join(format!("{what}-{number}"));
        std::fs::create_dir_all(&path)
            .map_err(|source| Error::Scratch { path: path.clone(), source })?;
        Ok(path)
    }

    /// Goes on counting steps after `number`.
    pub fn count_from(&self, number: u32) {
        self.state.steps.store(number, Ordering::Relaxed);
    }

    /// How many steps were numbered.
    pub fn counted(&self) -> u32 {
        self.state.steps.load(Ordering::Relaxed)
    }

    /// How the progress calls a step of stage `index`: `build 2/5`, with the platform
    /// in front where there are several.
    pub fn named(&self, index: usize, position: &str) -> String {
        let stage = &self.plan.stages[index];
        let platform = match self.request.platforms.len() {
            0 | 1 => String::new(),
            _ => format!("{} ", stage.platform),
        };
        format!("{platform}{} {position}", stage.title)
    }

    /// The number of the next step.
    pub fn next_step(&self) -> StepNumber {
        StepNumber(self.state.steps.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Takes the report of a step.
    pub fn report(&self, report: StepReport) {
        lock(&self.state.reports).push(report);
    }

    /// The reports of all steps so far, by number.
    pub fn reports(&self) -> Vec<StepReport> {
        let mut reports = lock(&self.state.reports).clone();
        reports.sort_by_key(|report| report.number);
        reports
    }

    /// The time that a step's entries and history row get.
    pub fn now(&self) -> Timestamp {
        let now = jiff::Timestamp::now();
        let nanoseconds = u32::try_from(now.subsec_nanosecond()).unwrap_or_default();
        let now = Timestamp { seconds: now.as_second(), nanoseconds };
        stage::clamp(now, self.epoch)
    }

    /// # Errors
    /// [`Error::Interrupted`] once the user asked to stop or another stage failed.
    pub fn check_interrupted(&self) -> Result<(), Error> {
        if self.interrupted.load(Ordering::Relaxed) || self.cancel.is_cancelled() {
            return Err(Error::Interrupted);
        }
        match self.uploads.and_then(Uploads::denied) {
            Some(error) => Err(Error::Denied(error)),
            None => Ok(()),
        }
    }

    /// A stage has to run a step: the push will be needed, so what it needs is
    /// checked in the background.
    pub fn first_miss(&self, index: usize) {
        if index == self.plan.target
            && let Some(uploads) = self.uploads
        {
            uploads.expect_push();
        }
    }

    /// A layer of stage `index` will be there; the target's are uploaded meanwhile.
    pub fn layer_coming(&self, index: usize, slot: &LayerSlot, cached: bool) {
        if index == self.plan.target
            && !cached
            && !self.request.single_snapshot
            && let Some(uploads) = self.uploads
        {
            uploads.layer(slot);
        }
    }

    /// Values of the secrets that a RUN may see, for masking its output.
    ///
    /// # Errors
    /// A secret that can't be read.
    pub fn secret_values(&self, run: &RunStep) -> Result<Vec<Vec<u8>>, Error> {
        let ids = run.mounts.iter().filter_map(|mount| match &mount.kind {
            MountKind::Secret { id, .. } => Some(id),
            _ => None,
        });
        let mut values = Vec::new();
        for id in ids {
            values.extend(self.secret(id)?);
        }
        Ok(values)
    }

    /// The value of a secret; `None` if it wasn't given.
    ///
    /// # Errors
    /// When its file or variable can't be read, or it is too large.
    pub fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(secret) = self.request.secrets.iter().find(|secret| secret.id == id) else {
            return Ok(None);
        };
        secret.read().map(Some)
    }
}

impl From<step::Error> for Error {
    fn from(error: step::Error) -> Self {
        Self::Step(Box::new(error))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
