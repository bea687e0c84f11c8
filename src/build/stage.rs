//! The step loop of one stage: key, look up, and on a miss execute and snapshot.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use yadokari_cache::Bucket;
use yadokari_cache::Key;
use yadokari_cache::Record;
use yadokari_cache::StepRecord;
use yadokari_cache::Turn;

use super::Error;
use super::Progress;
use super::ahead;
use super::ahead::Ahead;
use super::base::Base;
use super::explain::Absence;
use super::explain::Explainer;
use super::explain::MissReason;
use super::inferred;
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
use super::report::StepReport;
use super::request::SnapshotMode;
use super::shared::Mode;
use super::shared::Shared;
use super::shared_cache::Answer;
use super::shared_cache::SharedCache;
use super::shared_cache::SharedStep;
use super::slot::Slot;
use super::turn;
use super::turn::Turned;
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
    /// What changed first in it or below, to explain misses above.
    pub first_change: Option<String>,
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
    for (at, step) in stage.steps.steps.clone().into_iter().enumerate() {
        shared.check_interrupted()?;
        stage.ahead.at = at;
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
                    stage.explainer.keep(false);
                    return Err(error);
                }
            }
        }
    }
    stage.tell_saved(true);
    stage.explainer.keep(true);
    Ok(Finished {
        base: stage.base,
        chain: stage.chain,
        rows: stage.rows,
        steps: stage.steps,
        definition: stage.definition,
        misses: stage.misses,
        first_change: stage.explainer.first_change(),
    })
}

/// What a step that runs is remembered by.
struct Keys {
    keys: StepKeys,
    /// What the keys were made of, for explaining the next miss.
    fields: Vec<(String, String)>,
    inferred: Option<Key>,
    /// The right to be the only one who runs it, until its record is there.
    turn: Option<Turn>,
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
    /// What was found out of later steps.
    ahead: Ahead,
    /// There from the first miss on; given up when a later step hits, because the
    /// hit's layer isn't in it.
    root: Option<Root>,
    walk: Option<WalkSnapshotter>,
    writer: Option<Writer>,
    /// Steps that ran and whose layers are on their way to the cache.
    saving: VecDeque<Saving>,
    misses: u32,
    explainer: Explainer,
}

struct Saving {
    number: StepNumber,
    elapsed: Duration,
    slot: LayerSlot,
}

impl<'a> StageRun<'a> {
    fn begin(shared: &'a Shared<'a>, index: usize) -> Result<Self, Error> {
        let stage = &shared.plan.stages[index];
        let mut below = None;
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
                below.clone_from(&parent.first_change);
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
        let base_name = match &stage.base {
            crate::plan::Base::Image(name) => {
                base.as_ref().map(|base| (name.clone(), base.identity()))
            }
            _ => None,
        };
        let explainer = Explainer::new(shared, index, &steps.steps, base_name, below);
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
                unseen: shared.request.unseen(),
            },
            ahead: Ahead::default(),
            root: None,
            walk: None,
            writer: None,
            saving: VecDeque::new(),
            misses: 0,
            explainer,
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
        let name = self.explainer.shown(&title);
        shared.observer.observe(Progress::Started { step: number, title });
        let started = Instant::now();
        let done = self.keyed_step(step, number, started);
        let done = done.map(|(outcome, reasons)| {
            shared.report(StepReport {
                number,
                stage: shared.plan.stages[self.index].title.clone(),
                name,
                is_hit: outcome == Outcome::Cached,
                reasons,
                elapsed: started.elapsed(),
                layer: self.chain.last().cloned(),
            });
            outcome
        });
        match &done {
            // Told when the record is durable: what was told is never lost.
            Ok(Outcome::Done) => {
                let slot = self.chain.last().expect("the step's own").clone();
                self.saving.push_back(Saving { number, elapsed: started.elapsed(), slot });
            }
            outcome => {
                let outcome = match outcome {
                    Ok(outcome) => outcome.clone(),
                    Err(error) if matches!(error.cause(), Error::NotCached) => Outcome::Absent,
                    Err(_) => Outcome::Failed,
                };
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
    ) -> Result<(Outcome, Vec<MissReason>), Error> {
        let shared = self.shared;
        if shared.lacks_files(&step.action) {
            return Err(Error::NotCached);
        }
        let inferred = match &shared.workshop.repo {
            Some(_) if ahead::needs_other_files(&step.action) => {
                let parent = &self.definition;
                // What is wrong with a source is told when it is read.
                inferred::key_of(shared, parent, &step.action, &self.surroundings)
                    .unwrap_or_default()
            }
            _ => None,
        };
        if let Some(key) = &inferred
            && let Some(facts) = self.inferred_hit(key, &step.action)?
        {
            self.root = None;
            self.walk = None;
            self.add_layer(step, layers::ready(facts), true);
            return Ok((Outcome::Cached, Vec::new()));
        }
        let inputs = match self.ahead.take() {
            Some(inputs) => inputs,
            None => Inputs::of(shared, &step.action, &self.surroundings.platform)?,
        };
        let keys =
            key::of_step(&self.definition, &step.action, &inputs.contents, &self.surroundings);
        self.definition = keys.definition;
        let mut turn = None;
        let mut found = self.look_up(&keys, &step.action, inferred)?;
        let forced = matches!(found, Err(Absence::Forced(_)));
        if found.is_err() && !forced && shared.mode == Mode::Build {
            let again = || Ok(self.look_up_here(&keys, inferred)?.ok());
            match turn::wait(shared, &keys, number, again)? {
                Turned::Hit(facts) => found = Ok(*facts),
                Turned::Build(taken) => turn = taken,
            }
        }
        let mut reasons = Vec::new();
        let (slot, outcome) = match found {
            Ok(facts) => {
                self.explainer.hit(shared, step, &inputs, &keys, &self.surroundings)?;
                self.root = None;
                self.walk = None;
                (layers::ready(facts), Outcome::Cached)
            }
            Err(_) if shared.mode != Mode::Build => return Err(Error::NotCached),
            Err(absence) => {
                let explainer = &mut self.explainer;
                let (why, fields) =
                    explainer.miss(shared, step, &inputs, &keys, &self.surroundings, absence)?;
                reasons.clone_from(&why);
                shared.observer.observe(Progress::Missed { step: number, reasons: why });
                self.misses += 1;
                shared.first_miss(self.index);
                let keys = Keys { keys, fields, inferred, turn };
                (self.execute(step, inputs, keys, number, started)?, Outcome::Done)
            }
        };
        self.add_layer(step, slot, outcome == Outcome::Cached);
        Ok((outcome, reasons))
    }

    fn add_layer(&mut self, step: &Step, slot: LayerSlot, cached: bool) {
        self.shared.layer_coming(self.index, &slot, cached);
        self.chain.push(Arc::clone(&slot));
        self.rows.push(Row { created_by: step.created_by.clone(), layer: Some(slot) });
    }

    /// Finds a step that reads other stages in the shared cache, where what it reads
    /// isn't here; goes on with the definition key that it had there.
    fn inferred_hit(&mut self, key: &Key, action: &Action) -> Result<Option<LayerFacts>, Error> {
        let shared = self.shared;
        let Some(repo) = &shared.workshop.repo else { return Ok(None) };
        if self.forced(action).is_some()
            || inferred::is_here(shared, action, &self.surroundings.platform)?
        {
            return Ok(None);
        }
        let answer = repo.by_inferred(key);
        repo.tell(shared.observer);
        let Answer::Hit(step) = answer else { return Ok(None) };
        let definition = step.record.definition;
        let facts = self.take_shared(repo, &step, definition)?;
        if facts.is_some() {
            self.definition = definition;
        }
        Ok(facts)
    }

    /// Finds the step's layer in the local cache, then in the shared one, or says why it
    /// isn't taken from there.
    fn look_up(
        &mut self,
        keys: &StepKeys,
        action: &Action,
        inferred: Option<Key>,
    ) -> Result<Result<LayerFacts, Absence>, Error> {
        if let Some(flag) = self.forced(action) {
            return Ok(Err(Absence::Forced(flag)));
        }
        let absence = match self.look_up_here(keys, inferred)? {
            Ok(facts) => return Ok(Ok(facts)),
            Err(absence) => absence,
        };
        let Some(repo) = self.shared.workshop.repo.clone() else { return Ok(Err(absence)) };
        repo.ask(keys);
        self.ask_ahead(&repo, keys);
        let answer = repo.answer(keys);
        repo.tell(self.shared.observer);
        let answer = match answer {
            // It ran on some layers: on these?
            Answer::Ran(step) => {
                let content = key::on_chain(&self.layer_ids()?, &keys.hint);
                match step.record.content == Some(content) {
                    true => Answer::Hit(step),
                    false => repo.by_content(&content),
                }
            }
            other => other,
        };
        Ok(match answer {
            Answer::Hit(step) => {
                self.take_shared(&repo, &step, keys.definition)?.ok_or(Absence::LayerGone)
            }
            Answer::Unusable(reason) => Err(Absence::Unusable(reason)),
            Answer::Ran(_) | Answer::Miss => Err(absence),
        })
    }

    /// The flag that keeps such a step from being looked up, if one does.
    fn forced(&self, action: &Action) -> Option<&'static str> {
        self.shared.request.forced(&self.shared.plan.stages[self.index], action)
    }

    /// Asks the shared cache for the steps that follow, as far as their keys can be
    /// known before this one has ended: the answers come while this one is waited for.
    fn ask_ahead(&mut self, repo: &SharedCache, keys: &StepKeys) {
        let shared = self.shared;
        let Some(from) = self.ahead.begin() else { return };
        let mut definition = keys.definition;
        for (at, step) in self.steps.steps.iter().enumerate().skip(from) {
            if matches!(step.action, Action::Config | Action::Silent) {
                continue;
            }
            // What the context can't tell has to be built or fetched first. And an
            // error is told when it is the step's turn.
            if ahead::needs_other_files(&step.action)
                || ahead::reaches_out(&step.action)
                || shared.lacks_files(&step.action)
            {
                return;
            }
            let inputs = Inputs::of(shared, &step.action, &self.surroundings.platform);
            let Ok(inputs) = inputs else { return };
            let keys =
                key::of_step(&definition, &step.action, &inputs.contents, &self.surroundings);
            definition = keys.definition;
            let is_here = shared.workshop.cache.get(Bucket::Steps, &definition).is_some();
            if self.forced(&step.action).is_none() && !is_here {
                repo.ask(&keys);
            }
            self.ahead.put(at, inputs);
        }
    }

    /// Takes a hit of the shared cache. Its layer stays there until it is needed,
    /// unless this build compresses in another way.
    fn take_shared(
        &self,
        repo: &SharedCache,
        step: &SharedStep,
        definition: Key,
    ) -> Result<Option<LayerFacts>, Error> {
        let step = repo.take(step, definition);
        if repo.fits(&step) {
            return Ok(layers::facts_of(&step.record));
        }
        repo.fetch(&step.layer.digest, true, self.shared.observer)?;
        Ok(self.shared.workshop.usable(&step.record)?)
    }

    /// Finds the step's layer in the local cache.
    ///
    /// A record counts only on the layers that it was made on, though its definition
    /// key is found at once: a step below that had to run again may have made another
    /// layer, and what stood on the former one doesn't fit.
    fn look_up_here(
        &self,
        keys: &StepKeys,
        inferred: Option<Key>,
    ) -> Result<Result<LayerFacts, Absence>, Error> {
        let workshop = self.shared.workshop;
        let cache = &workshop.cache;
        let found = |record: &StepRecord, facts: LayerFacts| {
            if let Some(repo) = &workshop.repo {
                repo.hit_locally(record, &facts, inferred);
            }
            Ok(facts)
        };
        let mut layer_gone = false;
        let below = layers::peek_all(&self.chain).map(|below| {
            let mut ids = self.base_ids();
            ids.extend(below.iter().map(|facts| facts.diff_id));
            ids
        });
        if let Some(below) = below
            && let Some(record) = cache.record::<StepRecord>(&keys.definition)
            && record.content.is_none_or(|content| content == key::on_chain(&below, &keys.hint))
        {
            match workshop.usable(&record)? {
                Some(facts) => return Ok(found(&record, facts)),
                None => layer_gone = true,
            }
        }
        // Waiting for the layers below pays only if this step was ever run.
        let elsewhere = cache.get(Bucket::Hints, &keys.hint).is_some();
        let absence = if layer_gone { Absence::LayerGone } else { Absence::NoRecord { elsewhere } };
        if !elsewhere {
            return Ok(Err(absence));
        }
        let content = key::on_chain(&self.layer_ids()?, &keys.hint);
        let Some(mut record) = cache.record_in::<StepRecord>(Bucket::Content, &content) else {
            return Ok(Err(absence));
        };
        let Some(facts) = workshop.usable(&record)? else {
            return Ok(Err(Absence::LayerGone));
        };
        // Next time the definition answers at once.
        record.definition = keys.definition;
        cache.put(&[(Bucket::Steps, keys.definition, record.encode())])?;
        Ok(found(&record, facts))
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
        Keys { keys, fields, inferred, mut turn }: Keys,
        number: StepNumber,
        started: Instant,
    ) -> Result<LayerSlot, Error> {
        let now = self.shared.now();
        self.ensure_root()?;
        let is_run = matches!(step.action, Action::Run(_));
        let root = self.root.as_mut().expect("made just before");
        let in_place = self.shared.is_in_place();
        if is_run && !in_place {
            self.shared.mount(root)?;
        }
        let overlay = Arc::clone(root.overlay());
        let (base, chain) = (self.base_ids(), self.chain.clone());
        overlay.mark();
        let mut log_snapshotter = LogSnapshotter::new();
        let snapshotter: &mut dyn Snapshotter = match self.shared.request.snapshot {
            SnapshotMode::Walk(mode) if is_run && !in_place => {
                self.walk.insert(WalkSnapshotter::new(mode))
            }
            _ => &mut log_snapshotter,
        };
        snapshotter.mark(&*overlay.after())?;

        let root = self.root.as_ref().expect("made above");
        if in_place {
            self.shared.occupies(&overlay, is_run, base.clone(), chain.clone());
        }
        let executed = inputs.execute(self.shared, &step.action, root, number, now);
        if executed.is_err() && in_place && !is_run {
            // The table holds half a step.
            self.shared.occupied_by_nobody();
        }
        if executed.is_err()
            && self.shared.check_interrupted().is_err()
            && let Some(turn) = turn.take()
        {
            turn.abandon();
        }
        let is_kept = executed?;

        let slot: LayerSlot = Arc::new(Slot::default());
        let log: ChangeLog = overlay.log();
        if let Some(reason) = &log.lost {
            self.shared.observer.observe(Progress::Warning(format!(
                "the change log is incomplete ({reason}); the whole root is compared instead"
            )));
        }
        let set = snapshotter.changes(&*overlay.before(), &*overlay.after(), &log)?;
        if in_place {
            if !is_run {
                self.shared.edited_in_place(&overlay, &set);
            }
            let chain = chain.iter().cloned().chain([Arc::clone(&slot)]).collect();
            self.shared.occupies(&overlay, is_run, base.clone(), chain);
        }
        let job = Job {
            set,
            span: step.span,
            keys,
            base,
            chain,
            fields,
            created: now,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            is_kept,
            shared: self.forced(&step.action).is_none(),
            inferred,
            overlay,
            slot: Arc::clone(&slot),
            turn,
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
        lowers.extend(self.shared.chain_lowers(&self.chain)?);
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
