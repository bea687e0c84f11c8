//! The step loop of one stage: key, look up, and on a miss execute and snapshot.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use yadokari_cache::Bucket;
use yadokari_cache::Key;
use yadokari_cache::Record;
use yadokari_cache::StepRecord;

use super::Error;
use super::Progress;
use super::base::Base;
use super::inputs::Inputs;
use super::key;
use super::key::StepKeys;
use super::layers;
use super::layers::Job;
use super::layers::LayerFacts;
use super::layers::LayerSlot;
use super::layers::Writer;
use super::progress::Outcome;
use super::progress::StepNumber;
use super::request::SnapshotMode;
use super::shared::Shared;
use super::slot::Slot;
use crate::change::ChangeLog;
use crate::oci::digest::DiffId;
use crate::overlay::Lower;
use crate::plan::BaseState;
use crate::plan::Steps;
use crate::plan::step::Action;
use crate::plan::step::Step;
use crate::rootfs::Root;
use crate::snapshot::LogSnapshotter;
use crate::snapshot::Snapshotter;
use crate::snapshot::WalkSnapshotter;
use crate::tree::Timestamp;

/// A row of the history that a stage adds.
#[derive(Clone)]
pub struct Row {
    /// `created_by`.
    pub created_by: String,
    /// Its layer; `None` for a row with `empty_layer`.
    pub layer: Option<LayerSlot>,
}

/// A stage whose steps are all through; its last layers may still be on their way.
pub struct Finished {
    /// The image at the bottom; `None` for `scratch`.
    pub base: Option<Arc<Base>>,
    /// Layers added above the base, by this stage and those it stands on.
    pub chain: Vec<LayerSlot>,
    /// Rows added likewise.
    pub rows: Vec<Row>,
    /// What child stages inherit, and the config.
    pub steps: Steps,
    /// Definition key of the last step.
    pub definition: Key,
    /// How many steps ran.
    pub misses: u32,
}

impl Finished {
    /// Diff IDs of all layers, bottom first. Waits for layers on their way.
    ///
    /// # Errors
    /// When a layer couldn't be written.
    pub fn diff_ids(&self) -> Result<Vec<DiffId>, Error> {
        let mut ids: Vec<DiffId> =
            self.base.iter().flat_map(|base| &base.layers).map(|layer| layer.diff_id).collect();
        ids.extend(layers::wait_all(&self.chain)?.iter().map(|facts| facts.diff_id));
        Ok(ids)
    }
}

/// Runs the steps of a stage.
///
/// # Errors
/// The first step's that failed.
pub fn run(shared: &Shared<'_>, index: usize) -> Result<Finished, Error> {
    let mut stage = StageRun::begin(shared, index)?;
    let total = stage.numbered_steps();
    let mut position = 0;
    for step in stage.steps.steps.clone() {
        shared.check_interrupted()?;
        match step.action {
            Action::Silent => {}
            Action::Config => {
                stage.rows.push(Row { created_by: step.created_by.clone(), layer: None });
            }
            _ => {
                position += 1;
                let place = shared.named(index, &format!("{position}/{total}"));
                let title = format!("[{}] {}", place.trim_start(), step.title);
                if let Err(error) = stage.layer_step(&step, title) {
                    stage.tell_saved(true);
                    return Err(error);
                }
            }
        }
    }
    stage.tell_saved(true);
    Ok(Finished {
        base: stage.base,
        chain: stage.chain,
        rows: stage.rows,
        steps: stage.steps,
        definition: stage.definition,
        misses: stage.misses,
    })
}

/// A stage on its way.
struct StageRun<'a> {
    shared: &'a Shared<'a>,
    index: usize,
    base: Option<Arc<Base>>,
    chain: Vec<LayerSlot>,
    rows: Vec<Row>,
    steps: Steps,
    definition: Key,
    surroundings: key::Surroundings,
    /// There from the first miss on; given up when a later step hits, because the
    /// hit's layer isn't in it.
    root: Option<Root>,
    walk: Option<WalkSnapshotter>,
    writer: Option<Writer>,
    /// Steps that ran and whose layers are on their way to the cache.
    saving: VecDeque<Saving>,
    misses: u32,
}

struct Saving {
    number: StepNumber,
    elapsed: Duration,
    slot: LayerSlot,
}

impl<'a> StageRun<'a> {
    fn begin(shared: &'a Shared<'a>, index: usize) -> Result<Self, Error> {
        let stage = &shared.plan.stages[index];
        let (base, chain, rows, state, definition) = match &stage.base {
            crate::plan::Base::Scratch => {
                (None, Vec::new(), Vec::new(), BaseState::scratch(), key::of_base(&[]))
            }
            crate::plan::Base::Image(name) => {
                let base = shared
                    .bases
                    .resolve(name, &stage.platform)
                    .map_err(|error| error.or_stage(name, shared.plan))
                    .map_err(|error| error.at(shared.dockerfile, stage.span))?;
                let ids: Vec<DiffId> = base.layers.iter().map(|layer| layer.diff_id).collect();
                let state = BaseState::image(&base.config);
                (Some(base), Vec::new(), Vec::new(), state, key::of_base(&ids))
            }
            crate::plan::Base::Stage(parent) => {
                let parent = shared.stage(*parent)?;
                (
                    parent.base.clone(),
                    parent.chain.clone(),
                    parent.rows.clone(),
                    parent.steps.base_state(),
                    parent.definition,
                )
            }
        };
        let steps = shared.plan.steps(index, &state)?;
        Ok(Self {
            shared,
            index,
            base,
            chain,
            rows,
            steps,
            definition,
            surroundings: key::Surroundings {
                platform: stage.platform.clone(),
                clamp: shared.workshop.clamp,
                conditions: shared.request.conditions.clone(),
            },
            root: None,
            walk: None,
            writer: None,
            saving: VecDeque::new(),
            misses: 0,
        })
    }

    fn numbered_steps(&self) -> usize {
        let makes_layer = |step: &&Step| !matches!(step.action, Action::Config | Action::Silent);
        self.steps.steps.iter().filter(makes_layer).count()
    }

    /// One step that makes a layer.
    fn layer_step(&mut self, step: &Step, title: String) -> Result<(), Error> {
        let shared = self.shared;
        let number = shared.next_step();
        shared.observer.observe(Progress::Started { step: number, title });
        let started = Instant::now();
        let done = self.keyed_step(step, number, started);
        match &done {
            // Told when the record is durable: what was told is never lost.
            Ok(Outcome::Done) => {
                let slot = self.chain.last().expect("the step's own").clone();
                self.saving.push_back(Saving { number, elapsed: started.elapsed(), slot });
            }
            outcome => {
                let outcome = outcome.as_ref().map_or(Outcome::Failed, Clone::clone);
                let elapsed = started.elapsed();
                shared.observer.observe(Progress::Finished { step: number, outcome, elapsed });
            }
        }
        self.tell_saved(false);
        done.map(drop).map_err(|error| error.at(shared.dockerfile, step.span))
    }

    /// Tells of steps whose layers are in the cache by now; with `wait`, of all.
    fn tell_saved(&mut self, wait: bool) {
        while let Some(saving) = self.saving.front() {
            let done = if wait { Some(saving.slot.wait()) } else { saving.slot.peek() };
            let Some(done) = done else { return };
            let outcome = if done.is_ok() { Outcome::Done } else { Outcome::Failed };
            let (step, elapsed) = (saving.number, saving.elapsed);
            self.shared.observer.observe(Progress::Finished { step, outcome, elapsed });
            self.saving.pop_front();
        }
    }

    fn keyed_step(
        &mut self,
        step: &Step,
        number: StepNumber,
        started: Instant,
    ) -> Result<Outcome, Error> {
        let inputs = Inputs::of(self.shared, &step.action, &self.surroundings.platform)?;
        let keys =
            key::of_step(&self.definition, &step.action, &inputs.contents, &self.surroundings);
        self.definition = keys.definition;
        let (slot, outcome) = match self.look_up(&keys, &step.action)? {
            Some(facts) => {
                self.root = None;
                self.walk = None;
                (layers::ready(facts), Outcome::Cached)
            }
            None => {
                self.misses += 1;
                self.shared.first_miss(self.index);
                (self.execute(step, inputs, keys, number, started)?, Outcome::Done)
            }
        };
        self.shared.layer_coming(self.index, &slot, outcome == Outcome::Cached);
        self.chain.push(Arc::clone(&slot));
        self.rows.push(Row { created_by: step.created_by.clone(), layer: Some(slot) });
        Ok(outcome)
    }

    /// Finds the step's layer in the cache.
    fn look_up(&self, keys: &StepKeys, action: &Action) -> Result<Option<LayerFacts>, Error> {
        let request = self.shared.request;
        let wanted = match action {
            Action::Copy(_) => request.cache_copy,
            _ => request.cache_run,
        };
        if !request.cache || !wanted {
            return Ok(None);
        }
        let cache = &self.shared.workshop.cache;
        if let Some(record) = cache.record::<StepRecord>(&keys.definition)
            && let Some(facts) = self.shared.workshop.usable(&record)?
        {
            return Ok(Some(facts));
        }
        // Waiting for the layers below pays only if this step was ever run.
        if cache.get(Bucket::Hints, &keys.hint).is_none() {
            return Ok(None);
        }
        let content = key::on_chain(&self.layer_ids()?, &keys.hint);
        let Some(mut record) = cache.record_in::<StepRecord>(Bucket::Content, &content) else {
            return Ok(None);
        };
        let Some(facts) = self.shared.workshop.usable(&record)? else { return Ok(None) };
        // Next time the definition answers at once.
        record.definition = keys.definition;
        cache.put(&[(Bucket::Steps, keys.definition, record.encode())])?;
        Ok(Some(facts))
    }

    /// Diff IDs of everything below the next step. Waits for layers on their way.
    fn layer_ids(&self) -> Result<Vec<DiffId>, Error> {
        let mut ids = self.base_ids();
        ids.extend(layers::wait_all(&self.chain)?.iter().map(|facts| facts.diff_id));
        Ok(ids)
    }

    fn base_ids(&self) -> Vec<DiffId> {
        self.base.iter().flat_map(|base| &base.layers).map(|layer| layer.diff_id).collect()
    }

    /// Runs the step and hands its changes to the layer writer.
    fn execute(
        &mut self,
        step: &Step,
        inputs: Inputs,
        keys: StepKeys,
        number: StepNumber,
        started: Instant,
    ) -> Result<LayerSlot, Error> {
        let now = self.shared.now();
        self.ensure_root()?;
        let is_run = matches!(step.action, Action::Run(_));
        let root = self.root.as_mut().expect("made just before");
        if is_run {
            let detail = root.mount()?;
            tracing::debug!(mount = %detail.display(), "root mounted");
        }
        let overlay = Arc::clone(root.overlay());
        overlay.mark();
        let mut log_snapshotter = LogSnapshotter::new();
        let snapshotter: &mut dyn Snapshotter = match self.shared.request.snapshot {
            SnapshotMode::Walk(mode) if is_run => self.walk.insert(WalkSnapshotter::new(mode)),
            _ => &mut log_snapshotter,
        };
        snapshotter.mark(&*overlay.after())?;

        inputs.execute(self.shared, &step.action, root, number, now)?;

        let log: ChangeLog = overlay.log();
        if let Some(reason) = &log.lost {
            self.shared.observer.observe(Progress::Warning(format!(
                "the change log is incomplete ({reason}); the whole root is compared instead"
            )));
        }
        let set = snapshotter.changes(&*overlay.before(), &*overlay.after(), &log)?;
        let slot: LayerSlot = Arc::new(Slot::default());
        let job = Job {
            set,
            span: step.span,
            keys,
            base: self.base_ids(),
            chain: self.chain.clone(),
            created: now,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            overlay,
            slot: Arc::clone(&slot),
        };
        let writer = match &self.writer {
            Some(writer) => writer,
            None => {
                let workshop = self.shared.workshop.clone();
                self.writer.insert(Writer::start(workshop).map_err(Error::Thread)?)
            }
        };
        writer.submit(job);
        Ok(slot)
    }

    /// Makes the root over all layers so far, if it isn't there.
    fn ensure_root(&mut self) -> Result<(), Error> {
        if self.root.is_some() {
            return Ok(());
        }
        let mut lowers: Vec<Lower> = Vec::new();
        if let Some(base) = &self.base {
            lowers.extend(self.shared.base_lowers(base)?);
        }
        for facts in layers::wait_all(&self.chain)? {
            lowers.push(self.shared.workshop.lower(&facts)?);
        }
        let scratch = self.shared.scratch("root")?;
        self.root = Some(Root::new(lowers, scratch)?);
        Ok(())
    }
}

/// A time as it stands in a history row and in the entries that a step makes.
pub fn clamp(now: Timestamp, clamp: Option<i64>) -> Timestamp {
    match clamp {
        Some(limit) if now.seconds >= limit => Timestamp::seconds(limit),
        _ => now,
    }
}
