//! The cache that machines share: steps as artifacts in a registry, or in an OCI
//! layout (`--cache-repo`).
//!
//! The local cache is asked first, always; this one only on a local miss, and then
//! for the following steps too, all at once ([`SharedCache::ask`]). A hit fetches no
//! layer: it is fetched when a root is made of it or a result file needs it
//! ([`SharedCache::fetch`]), and an image is pushed with it by mounting. What ran here is
//! pushed when the user has the image ([`CachePush`]).
//!
//! No local record is put for a hit before its layer is here: a record never names
//! a blob that isn't there.
//!
//! A cache that fails is told of once and left alone; the build goes on. If a layer
//! is lost after its record was believed, [`SharedCache::is_lost`] says so and the build
//! begins again without this cache; what it finished by then hits locally.

pub mod artifact;
mod place;
mod push;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use yadokari_cache::Bucket;
use yadokari_cache::Cache;
use yadokari_cache::Key;
use yadokari_cache::KeyHasher;
use yadokari_cache::Record;
use yadokari_cache::StepRecord;
use yadokari_cache::record::SharedMark;

pub use artifact::SharedStep;
pub use place::PlaceError;
pub use push::CachePush;

use super::Progress;
use super::base;
use super::base::BaseLayer;
use super::client::LazyClient;
use super::key::StepKeys;
use super::layers;
use super::layers::LayerError;
use super::layers::LayerFacts;
use super::progress::Observer;
use super::request::CachePlace;
use super::request::CacheRepo;
use super::slot::Slot;
use crate::oci::digest::DiffId;
use crate::oci::digest::Digest;
use crate::oci::reference::Reference;
use crate::registry;
use crate::store::Store;
use artifact::Asked;
use artifact::Defect;
use artifact::Outline;
use place::Place;

/// Questions on their way at once.
const ASKING: usize = 8;

/// Layers on their way at once.
const FETCHING: usize = 4;

/// Longest time that a step waits for an answer; after that nobody asks any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Further tries of a failed request: a cache that needs more costs more than it
/// saves.
const RETRIES: u32 = 1;

/// Pause before it.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// How long a note that a step is there already is believed, in seconds: somebody
/// may have cleaned the repository.
const MARK_LIFE: i64 = 7 * 24 * 3600;

/// What the cache says of a step.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The step ran with these very inputs on the same history.
    Hit(Arc<SharedStep>),
    /// It ran once, on other layers perhaps: its content key may hit.
    Ran(Arc<SharedStep>),
    /// Not there.
    Miss,
    /// Something is there and can't be used; why.
    Unusable(String),
}

/// See the module.
pub struct SharedCache {
    inner: Arc<Inner>,
    /// There from the first question on.
    questions: OnceLock<Mutex<mpsc::Sender<Question>>>,
}

struct Inner {
    place: Place,
    /// How messages call it.
    name: String,
    options: CacheRepo,
    /// When this build began, in seconds since 1970.
    now: i64,
    /// Label of this build's compression.
    setting: String,
    store: Arc<Store>,
    cache: Arc<Cache>,
    /// By definition key.
    asked: Mutex<BTreeMap<Key, Arc<Slot<Answer>>>>,
    /// Hits of this build, by the digest of their blobs.
    layers: Mutex<BTreeMap<Digest, Arc<Held>>>,
    /// What may have to be pushed.
    unsent: Mutex<Vec<Unsent>>,
    trouble: Mutex<Trouble>,
    is_lost: AtomicBool,
}

struct Question {
    keys: StepKeys,
    slot: Arc<Slot<Answer>>,
}

/// Hits with one layer, which may not be here yet.
struct Held {
    step: SharedStep,
    /// To be put when the layer is here. Several steps may have made the same one.
    records: Mutex<Vec<StepRecord>>,
    /// Held while it is fetched: one does it, others wait.
    fetching: Mutex<()>,
}

struct Unsent {
    step: SharedStep,
    /// Made by this build; else it may be there already.
    is_new: bool,
}

/// How well the cache does.
#[derive(Default)]
struct Trouble {
    /// Nobody asks any more.
    stopped: bool,
    /// Nothing is pushed either: there is no answer, or no sense in it.
    broken: bool,
    /// In words; told.
    reason: Option<String>,
    notices: Vec<String>,
}

impl SharedCache {
    /// Nothing is asked before the first miss. `setting` is the label of this
    /// build's compression, `now` the time in seconds since 1970.
    pub fn new(
        options: CacheRepo,
        registry: &registry::Options,
        credentials: &registry::Environment,
        setting: String,
        store: Arc<Store>,
        cache: Arc<Cache>,
        now: i64,
    ) -> Self {
        let (place, name) = match &options.place {
            CachePlace::Registry(repository) => {
                let options = registry::Options {
                    // The cache is pushed to, so it is reached as destinations are;
                    // and a mirror has nothing of what was pushed.
                    insecure_pull: registry.insecure || registry.insecure_pull,
                    mirrors: Vec::new(),
                    retries: RETRIES,
                    retry_delay: RETRY_DELAY,
                    ..registry.clone()
                };
                let client = Arc::new(LazyClient::new(options, credentials.clone()));
                let name = repository.name();
                (Place::Registry { repository: repository.clone(), client }, name)
            }
            CachePlace::Layout(directory) => {
                let name = format!("oci:{}", directory.display());
                (Place::Layout { directory: directory.clone(), opened: OnceLock::new() }, name)
            }
        };
        Self {
            inner: Arc::new(Inner {
                place,
                name,
                options,
                now,
                setting,
                store,
                cache,
                asked: Mutex::default(),
                layers: Mutex::default(),
                unsent: Mutex::default(),
                trouble: Mutex::default(),
                is_lost: AtomicBool::new(false),
            }),
            questions: OnceLock::new(),
        }
    }

    /// Asks for a step in the background, once.
    pub fn ask(&self, keys: &StepKeys) {
        let slot = {
            let mut asked = lock(&self.inner.asked);
            if asked.contains_key(&keys.definition) {
                return;
            }
            let slot = Arc::new(Slot::default());
            asked.insert(keys.definition, Arc::clone(&slot));
            slot
        };
        let questions = self.questions.get_or_init(|| Mutex::new(self.inner.start()));
        let question = Question { keys: *keys, slot: Arc::clone(&slot) };
        if lock(questions).send(question).is_err() {
            slot.fill(Answer::Miss);
        }
    }

    /// The answer to a question; asks it if nobody did. Waits, but not for ever.
    pub fn answer(&self, keys: &StepKeys) -> Answer {
        self.ask(keys);
        let slot = lock(&self.inner.asked).get(&keys.definition).cloned();
        let Some(slot) = slot else { return Answer::Miss };
        if let Some(answer) = slot.peek() {
            return answer;
        }
        if lock(&self.inner.trouble).stopped {
            return Answer::Miss;
        }
        slot.wait_for(PATIENCE).unwrap_or_else(|| {
            let reason = format!("no answer within {} seconds", PATIENCE.as_secs());
            self.inner.stop(&reason, true);
            Answer::Miss
        })
    }

    /// What the cache knows under a content key. Waits for the answer.
    pub fn by_content(&self, content: &Key) -> Answer {
        self.inner.find(&Asked::Content(*content))
    }

    /// What the cache knows under an inferred key. Waits for the answer.
    pub fn by_inferred(&self, inferred: &Key) -> Answer {
        self.inner.find(&Asked::Inferred(*inferred))
    }

    /// Takes a hit: from now on its layer can be fetched. `definition` is the key
    /// that it hit by or for.
    pub fn take(&self, step: &SharedStep, definition: Key) -> SharedStep {
        let mut step = step.clone();
        step.record.definition = definition;
        let held = {
            let mut layers = lock(&self.inner.layers);
            let held = layers.entry(step.layer.digest).or_insert_with(|| {
                Arc::new(Held {
                    step: step.clone(),
                    records: Mutex::default(),
                    fetching: Mutex::new(()),
                })
            });
            lock(&held.records).push(step.record.clone());
            Arc::clone(held)
        };
        let blob = (&step.layer.digest, Some(step.layer.size));
        if matches!(self.inner.store.has_blob(blob.0, blob.1), Ok(true))
            && let Err(error) = self.inner.put_records(&held)
        {
            tracing::debug!(%error, "a hit of the shared cache is not noted here");
        }
        step
    }

    /// Whether a hit was compressed as this build compresses.
    pub fn fits(&self, step: &SharedStep) -> bool {
        step.setting == self.inner.setting
    }

    /// Makes sure that the blob of a hit is here, and with `indexed` the layer ready
    /// to be stacked. False: the blob is no hit's.
    ///
    /// # Errors
    /// When it can't be had; the cache is lost then.
    pub fn fetch(
        &self,
        digest: &Digest,
        indexed: bool,
        observer: &dyn Observer,
    ) -> Result<bool, LayerError> {
        let held = lock(&self.inner.layers).get(digest).cloned();
        let Some(held) = held else { return Ok(false) };
        let _one = lock(&held.fetching);
        let fetched = self.inner.fetch(&held.step, indexed, observer);
        match fetched.and_then(|()| self.inner.put_records(&held)) {
            Ok(()) => Ok(true),
            Err(error) => {
                self.inner.is_lost.store(true, Ordering::Relaxed);
                self.inner.stop(&super::error::chain(&error), true);
                Err(error)
            }
        }
    }

    /// [`SharedCache::fetch`] of all that are hits, several at once.
    ///
    /// # Errors
    /// The first that can't be had.
    pub fn fetch_all(
        &self,
        digests: &[Digest],
        indexed: bool,
        observer: &dyn Observer,
    ) -> Result<(), LayerError> {
        let wanted: Vec<&Digest> = digests.iter().filter(|digest| self.has_layer(digest)).collect();
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), LayerError> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(digest) = wanted.get(at) else { return Ok(()) };
                self.fetch(digest, indexed, observer)?;
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (1..wanted.len().min(FETCHING)).map(|_| scope.spawn(work)).collect();
            work()?;
            let panicked = |_| Err(LayerError::new(super::Error::Panic));
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(panicked))
        })
    }

    /// [`SharedCache::fetch`] of every hit, ready to be stacked.
    ///
    /// # Errors
    /// The first that can't be had.
    pub fn fetch_hits(&self, observer: &dyn Observer) -> Result<(), LayerError> {
        let digests: Vec<Digest> = lock(&self.inner.layers).keys().copied().collect();
        self.fetch_all(&digests, true, observer)
    }

    /// Whether a layer is a hit's, here or not.
    pub fn has_layer(&self, digest: &Digest) -> bool {
        lock(&self.inner.layers).contains_key(digest)
    }

    /// Where a hit's layer can be mounted from.
    pub fn mount_from(&self, digest: &Digest) -> Option<Reference> {
        self.inner.place.repository().filter(|_| self.has_layer(digest)).cloned()
    }

    /// Whether a layer that this build relies on couldn't be had.
    pub fn is_lost(&self) -> bool {
        self.inner.is_lost.load(Ordering::Relaxed)
    }

    /// A step ran here.
    pub fn made(&self, record: &StepRecord, inferred: Option<Key>) {
        self.inner.remember(record, inferred, true);
    }

    /// A step hit locally: if the shared cache may lack it, it is pushed too.
    pub fn hit_locally(&self, record: &StepRecord, facts: &LayerFacts, inferred: Option<Key>) {
        if !self.inner.options.push {
            return;
        }
        let key = self.inner.mark_key(&record.definition);
        let mark = self.inner.cache.record::<SharedMark>(&key);
        let is_fresh =
            mark.is_some_and(|mark| mark.seen.saturating_add(MARK_LIFE) > self.inner.now);
        if !is_fresh {
            let mut record = record.clone();
            record.compressed = Some(layers::compressed(&facts.descriptor));
            self.inner.remember(&record, inferred, false);
        }
    }

    /// Why nobody asks any more, if that is so; it needn't be told then.
    pub fn trouble(&self) -> Option<String> {
        let mut trouble = lock(&self.inner.trouble);
        trouble
            .reason
            .take()
            .inspect(|reason| trouble.notices.retain(|notice| !notice.starts_with(reason)))
    }

    /// What is to be told of the cache, once.
    pub fn tell(&self, observer: &dyn Observer) {
        let notices = std::mem::take(&mut lock(&self.inner.trouble).notices);
        for notice in notices {
            observer.observe(Progress::Warning(notice));
        }
    }

    /// What is left to be pushed; `mount_from` have the layers perhaps.
    pub fn unsent(&self, mount_from: Vec<Reference>) -> Option<CachePush> {
        let unsent = std::mem::take(&mut *lock(&self.inner.unsent));
        let is_broken = lock(&self.inner.trouble).broken;
        (!unsent.is_empty() && !is_broken)
            .then(|| CachePush::new(Arc::clone(&self.inner), unsent, mount_from))
    }
}

impl Inner {
    /// Starts the threads that ask; they end when nobody can ask them any more.
    fn start(self: &Arc<Self>) -> mpsc::Sender<Question> {
        let (sender, inbox) = mpsc::channel::<Question>();
        let inbox = Arc::new(Mutex::new(inbox));
        for _ in 0..ASKING {
            let (inner, inbox) = (Arc::clone(self), Arc::clone(&inbox));
            let work = move || {
                loop {
                    let next = lock(&inbox).recv();
                    let Ok(question) = next else { return };
                    question.slot.fill(inner.reply(&question.keys));
                }
            };
            if let Err(error) = std::thread::Builder::new().name("cache".to_owned()).spawn(work) {
                tracing::debug!(%error, "one thread less asks the shared cache");
            }
        }
        sender
    }

    fn reply(&self, keys: &StepKeys) -> Answer {
        match self.find(&Asked::Definition(keys.definition)) {
            Answer::Miss => self.find(&Asked::Hint(keys.hint)),
            other => other,
        }
    }

    fn find(&self, asked: &Asked) -> Answer {
        if lock(&self.trouble).stopped {
            return Answer::Miss;
        }
        let found = match self.read(asked) {
            Ok(found) => found,
            Err(error) => {
                let broken = match &error {
                    // Some registries hide what isn't there; pushing will tell.
                    PlaceError::Registry(error) => !error.is_unauthorized(),
                    PlaceError::Layout(_) | PlaceError::Tag(_) => true,
                };
                self.stop(&super::error::chain(&error), broken);
                return Answer::Miss;
            }
        };
        match (found, asked) {
            (None, _) => Answer::Miss,
            (Some(Ok(step)), Asked::Hint(_)) => Answer::Ran(Arc::new(step)),
            (Some(Ok(step)), _) => Answer::Hit(Arc::new(step)),
            (Some(Err(defect)), _) => {
                let key = asked.key();
                let reason =
                    format!("the cached step {key} in {} is not used: {defect}", self.name);
                if !matches!(defect, Defect::Expired) {
                    lock(&self.trouble).notices.push(reason.clone());
                }
                Answer::Unusable(reason)
            }
        }
    }

    fn read(&self, asked: &Asked) -> Result<Option<Result<SharedStep, Defect>>, PlaceError> {
        let Some(bytes) = self.place.manifest(&asked.key().to_string())? else { return Ok(None) };
        let outline = match Outline::read(&bytes) {
            Ok(outline) => outline,
            Err(defect) => return Ok(Some(Err(defect))),
        };
        let record = outline.missing().map(|blob| self.place.document(blob)).transpose()?;
        Ok(Some(outline.step(record, asked, self.now, self.options.ttl)))
    }

    fn fetch(
        &self,
        step: &SharedStep,
        indexed: bool,
        observer: &dyn Observer,
    ) -> Result<(), LayerError> {
        let layer = BaseLayer {
            descriptor: step.layer.clone(),
            diff_id: DiffId::from_bytes(step.record.diff_id),
        };
        let (digest, size) = (layer.descriptor.digest, layer.descriptor.size);
        let is_indexed = self.store.layer(&layer.diff_id).map_err(LayerError::new)?.is_some();
        let wants_index = indexed && !is_indexed;
        if self.store.has_blob(&digest, Some(size)).map_err(LayerError::new)? {
            if !wants_index {
                return Ok(());
            }
            if let Some(file) = self.store.open_blob(&digest).map_err(LayerError::new)? {
                return base::index_layer(&self.store, &layer, file).map_err(LayerError::new);
            }
        }
        observer
            .observe(Progress::Note(format!("fetching {digest} ({size} bytes) from the cache")));
        let mut blob = self.store.blob_writer().map_err(LayerError::new)?;
        let mut source = self.place.blob(&layer.descriptor).map_err(LayerError::new)?;
        if wants_index {
            let keep = base::Keep::new(source, &mut blob);
            base::index_layer(&self.store, &layer, keep).map_err(LayerError::new)?;
        } else {
            io::copy(&mut source, &mut blob).map_err(LayerError::new)?;
        }
        blob.commit(Some(&digest)).map_err(LayerError::new)?;
        Ok(())
    }

    /// The layer is here: now the local cache may know its steps.
    fn put_records(&self, held: &Held) -> Result<(), LayerError> {
        let step = &held.step;
        let diff_id = DiffId::from_bytes(step.record.diff_id);
        let mut puts = Vec::new();
        for record in std::mem::take(&mut *lock(&held.records)) {
            puts.extend(record.puts());
            puts.push(self.mark(&record.definition));
        }
        if !puts.is_empty() {
            puts.push(layers::compressed_put(&diff_id, &step.layer, &step.setting));
            self.cache.put(&puts).map_err(LayerError::new)?;
        }
        Ok(())
    }

    fn remember(&self, record: &StepRecord, inferred: Option<Key>, is_new: bool) {
        let Some(facts) = layers::facts_of(record) else { return };
        if !self.options.push {
            return;
        }
        let mut record = record.clone();
        // What explains misses may name variables: it stays on this machine.
        record.inputs = Vec::new();
        let setting = self.setting.clone();
        let step = SharedStep { record, layer: facts.descriptor, setting, inferred };
        lock(&self.unsent).push(Unsent { step, is_new });
    }

    /// Nobody asks any more; told once.
    fn stop(&self, reason: &str, broken: bool) {
        let mut trouble = lock(&self.trouble);
        trouble.stopped = true;
        trouble.broken |= broken;
        if trouble.reason.is_none() {
            let text = format!("the cache {} can't be used: {reason}", self.name);
            trouble.notices.push(format!("{text}; the build goes on without it"));
            trouble.reason = Some(text);
        }
    }

    /// Where it is noted locally that a step is in this cache.
    fn mark_key(&self, definition: &Key) -> Key {
        let mut hasher = KeyHasher::new("shared mark");
        hasher.text("place", &self.name);
        hasher.key("definition", definition);
        hasher.text("setting", &self.setting);
        hasher.finish()
    }

    fn mark(&self, definition: &Key) -> (Bucket, Key, Vec<u8>) {
        let mark = SharedMark { seen: self.now };
        (Bucket::Shared, self.mark_key(definition), mark.encode())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
