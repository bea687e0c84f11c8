//! Layers on their way from a change set to the cache, behind the running build.
//!
//! A stage hands each sealed change set to its writer and goes on. The writer
//! makes tar, diff ID, index, compressed blob and digest in one pass, commits them
//! in the order that keeps the cache true (blob, layer, record), and fills the
//! slot that the image, the push and the next steps' content keys wait for.

use std::fs::File;
use std::io;
use std::io::BufWriter;
use std::io::Read;
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use yadokari_cache::Bucket;
use yadokari_cache::Cache;
use yadokari_cache::Key;
use yadokari_cache::KeyHasher;
use yadokari_cache::Record;
use yadokari_cache::StepRecord;
use yadokari_cache::Turn;
use yadokari_cache::record::Compressed;
use yadokari_cache::record::CompressedRecord;

use super::key;
use super::shared_cache::SharedCache;
use super::slot::Slot;
use crate::change::ChangeSet;
use crate::dockerfile::Span;
use crate::layer;
use crate::layer::LayerIndex;
use crate::layer::ahead::ahead;
use crate::layer::compress::Compression;
use crate::layer::compress::Compressor;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::DiffId;
use crate::oci::digest::Digest;
use crate::overlay::Lower;
use crate::overlay::Overlay;
use crate::store::Store;
use crate::tree::Timestamp;

/// Bytes gathered before the uncompressed tar is written on.
const TAR_BUFFER: usize = 1 << 18;

/// A finished layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerFacts {
    /// Of the uncompressed tar.
    pub diff_id: DiffId,
    /// Of the compressed blob.
    pub descriptor: Descriptor,
    /// When it was made.
    pub created: Timestamp,
}

/// Why a layer couldn't be finished; shared because several wait for it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", super::error::chain(&**.cause))]
pub struct LayerError {
    cause: Arc<dyn std::error::Error + Send + Sync>,
    /// The instruction whose layer it is, once known. Whoever waits for the layer is
    /// at another one by then.
    pub span: Option<Span>,
}

impl LayerError {
    pub(super) fn new(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { cause: Arc::new(error), span: None }
    }

    /// Names the instruction, unless it is known.
    fn of(self, span: Span) -> Self {
        Self { span: Some(self.span.unwrap_or(span)), ..self }
    }
}

/// A layer that is, or will be, finished.
pub type LayerSlot = Arc<Slot<Result<LayerFacts, LayerError>>>;

/// A slot for a layer that is there already.
pub fn ready(facts: LayerFacts) -> LayerSlot {
    Arc::new(Slot::ready(Ok(facts)))
}

/// Waits for all layers of a chain.
///
/// # Errors
/// That of the first layer which failed.
pub fn wait_all(chain: &[LayerSlot]) -> Result<Vec<LayerFacts>, LayerError> {
    chain.iter().map(|slot| slot.wait()).collect()
}

/// The layers of a chain if all are finished.
pub fn peek_all(chain: &[LayerSlot]) -> Option<Vec<LayerFacts>> {
    chain.iter().map(|slot| slot.peek()?.ok()).collect()
}

/// A change set to be written.
pub struct Job {
    /// The changes.
    pub set: ChangeSet,
    /// The instruction, for messages.
    pub span: Span,
    /// The step's keys.
    pub keys: key::StepKeys,
    /// The fields they were made of, for the record.
    pub fields: Vec<(String, String)>,
    /// The base's layers.
    pub base: Vec<DiffId>,
    /// The layers between the base and this one.
    pub chain: Vec<LayerSlot>,
    /// Creation time of the layer.
    pub created: Timestamp,
    /// How long the step took, in milliseconds.
    pub duration_ms: u64,
    /// Whether it gets a record: another build would make the same.
    pub is_kept: bool,
    /// Whether the shared cache gets it too.
    pub shared: bool,
    /// Key by the definitions of the stages that it reads.
    pub inferred: Option<Key>,
    /// The root the changes come from; its files are served from the written layer
    /// afterwards.
    pub overlay: Arc<Overlay>,
    /// To be filled.
    pub slot: LayerSlot,
    /// The right to be the one who builds the step; given up with the job, when the
    /// record is there.
    pub turn: Option<Turn>,
}

/// How layers are written; the same for all of a build.
#[derive(Clone)]
pub struct Workshop {
    /// Where content goes.
    pub store: Arc<Store>,
    /// Where records go.
    pub cache: Arc<Cache>,
    /// The cache shared with other machines.
    pub repo: Option<Arc<SharedCache>>,
    /// Compression of the blobs.
    pub compression: Compression,
    /// Media type of the blobs.
    pub media_type: String,
    /// Latest time that an entry may carry.
    pub clamp: Option<i64>,
    /// Threads for compressing.
    pub threads: NonZeroUsize,
    /// Age in seconds from which a record isn't used any more.
    pub ttl: Option<u64>,
}

/// The writing thread of one stage.
pub struct Writer {
    jobs: Option<mpsc::SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// Sealed change sets that may wait for the writer before a stage has to wait too:
/// their contents are on disk, so this bounds only the handles.
const WAITING_JOBS: usize = 64;

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(workshop: Workshop) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::sync_channel::<Job>(WAITING_JOBS);
        let thread = std::thread::Builder::new().name("layers".to_owned()).spawn(move || {
            for job in inbox {
                let (slot, span) = (Arc::clone(&job.slot), job.span);
                // A slot that stayed empty would keep whoever waits for it forever.
                let write = std::panic::AssertUnwindSafe(|| workshop.write(job));
                let written = std::panic::catch_unwind(write)
                    .unwrap_or_else(|_| Err(LayerError::new(super::Error::Panic)));
                slot.fill(written.map_err(|error| error.of(span)));
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Hands over a change set.
    pub fn submit(&self, job: Job) {
        let slot = Arc::clone(&job.slot);
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        if !matches!(sent, Some(Ok(()))) {
            slot.fill(Err(LayerError::new(io::Error::other("the layer writer has stopped"))));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // Nothing is lost: what happened to a layer stands in its slot.
            let _ = thread.join();
        }
    }
}

impl Workshop {
    fn write(&self, job: Job) -> Result<LayerFacts, LayerError> {
        let facts = self.write_set(&job.set, job.created)?;
        self.record(&job, &facts)?;
        // From here on the root reads the files out of the layer, and the change
        // set's own copies can go. Failing that costs only space.
        match self.open_lower(&facts.diff_id) {
            Ok(lower) => job.overlay.settle(&job.set, lower),
            Err(error) => tracing::debug!(%error, "layer not opened for the root"),
        }
        Ok(facts)
    }

    /// Writes a change set as a layer and as a blob; no record is made.
    ///
    /// # Errors
    /// Those of the store, of the contents, and of what no layer can hold.
    pub fn write_set(&self, set: &ChangeSet, created: Timestamp) -> Result<LayerFacts, LayerError> {
        let tar = self.store.layer_writer().map_err(LayerError::new)?;
        let blob = self.store.blob_writer().map_err(LayerError::new)?;
        let compressor =
            Compressor::new(blob, self.compression, self.threads.get()).map_err(LayerError::new)?;
        let mut both = Both { tar: BufWriter::with_capacity(TAR_BUFFER, tar), compressor };
        let options = layer::WriteOptions { clamp: self.clamp };
        let written = layer::write(set, &options, &mut both).map_err(LayerError::new)?;
        let blob = both.compressor.finish().map_err(LayerError::new)?;
        let tar = both.tar.into_inner().map_err(|error| LayerError::new(error.into_error()))?;

        let (digest, size) = blob.commit(None).map_err(LayerError::new)?;
        tar.commit(&written.diff_id, &written.index).map_err(LayerError::new)?;
        Ok(LayerFacts {
            diff_id: written.diff_id,
            descriptor: Descriptor::new(self.media_type.clone(), digest, size),
            created,
        })
    }

    /// The layer that a record names, if the store still has it as the image needs
    /// it: compressed as this build compresses. It is compressed anew where only
    /// the tar is left, or where the record was made with another setting.
    ///
    /// # Errors
    /// Those of the store.
    pub fn usable(&self, record: &StepRecord) -> Result<Option<LayerFacts>, LayerError> {
        let Some(mut facts) = facts_of(record) else { return Ok(None) };
        if self.ttl.is_some_and(|ttl| record.is_expired(ttl, now())) {
            return Ok(None);
        }
        let known: Option<CompressedRecord> =
            self.cache.record(&compressed_key(&facts.diff_id, &self.compression.label()));
        if let Some(known) = known {
            let digest = Digest::from_bytes(known.blob.digest);
            if self.has(&digest, known.blob.size)? {
                facts.descriptor =
                    Descriptor::new(self.media_type.clone(), digest, known.blob.size);
                return Ok(Some(facts));
            }
        }
        if self.store.layer(&facts.diff_id).map_err(LayerError::new)?.is_none() {
            let blob = self.has(&facts.descriptor.digest, facts.descriptor.size)?;
            if !blob {
                return Ok(None);
            }
            if self.inflate(&facts).is_err() {
                // If it is damaged it is out of the way of the one that is made now.
                self.store.recheck_blob(&facts.descriptor.digest).map_err(LayerError::new)?;
                return Ok(None);
            }
        }
        let Ok(layer) = self.open_lower(&facts.diff_id) else { return Ok(None) };
        let blob = self.store.blob_writer().map_err(LayerError::new)?;
        let mut compressor =
            Compressor::new(blob, self.compression, self.threads.get()).map_err(LayerError::new)?;
        // The handle is shared: reading by position leaves its offset alone.
        let tar = FileAt { file: &layer.blob, offset: 0 };
        let mut tar = io::BufReader::with_capacity(TAR_BUFFER, tar);
        io::copy(&mut tar, &mut compressor).map_err(LayerError::new)?;
        let blob = compressor.finish().map_err(LayerError::new)?;
        let (digest, size) = blob.commit(None).map_err(LayerError::new)?;
        facts.descriptor = Descriptor::new(self.media_type.clone(), digest, size);
        self.cache.put(&[self.compressed_put(&facts)]).map_err(LayerError::new)?;
        Ok(Some(facts))
    }

    fn has(&self, digest: &Digest, size: u64) -> Result<bool, LayerError> {
        self.store.has_blob(digest, Some(size)).map_err(LayerError::new)
    }

    fn compressed_put(&self, facts: &LayerFacts) -> (Bucket, Key, Vec<u8>) {
        compressed_put(&facts.diff_id, &facts.descriptor, &self.compression.label())
    }

    /// A finished layer, ready to be stacked.
    ///
    /// # Errors
    /// Those of the store; a layer that the store no longer has in any form.
    pub fn lower(&self, facts: &LayerFacts) -> Result<Lower, LayerError> {
        let lower = || {
            if self.store.layer(&facts.diff_id).map_err(LayerError::new)?.is_none() {
                self.inflate(facts)?;
            }
            self.open_lower(&facts.diff_id)
        };
        lower().inspect_err(|_| self.store.doubt_blob(&facts.descriptor.digest))
    }

    /// A layer of the store, ready to be stacked.
    ///
    /// # Errors
    /// When the store doesn't have it.
    pub fn open_lower(&self, diff_id: &DiffId) -> Result<Lower, LayerError> {
        match self.store.open_layer(diff_id).map_err(LayerError::new)? {
            Some(layer) => {
                let index = LayerIndex::from_bytes(layer.index).map_err(LayerError::new)?;
                Ok(Lower { index: Arc::new(index), blob: layer.tar })
            }
            None => Err(LayerError::new(io::Error::other(format!(
                "layer {diff_id} went missing from the cache"
            )))),
        }
    }

    /// Makes tar and index of a layer out of its compressed blob.
    fn inflate(&self, facts: &LayerFacts) -> Result<(), LayerError> {
        let file = self.store.open_blob(&facts.descriptor.digest).map_err(LayerError::new)?;
        let Some(file) = file else {
            return Err(LayerError::new(io::Error::from(io::ErrorKind::NotFound)));
        };
        let inflated = layer::decompress::reader(file).map_err(LayerError::new)?;
        let writer = self.store.layer_writer().map_err(LayerError::new)?;
        let mut tar = BufWriter::with_capacity(TAR_BUFFER, writer);
        let read = |inflated: &mut dyn Read| layer::read(inflated, &mut tar);
        let written = ahead(inflated, read).map_err(LayerError::new)?;
        if written.diff_id != facts.diff_id {
            return Err(LayerError::new(io::Error::other(format!(
                "blob {} holds another layer than {}",
                facts.descriptor.digest, facts.diff_id
            ))));
        }
        let writer = tar.into_inner().map_err(|error| LayerError::new(error.into_error()))?;
        writer.commit(&written.diff_id, &written.index).map_err(LayerError::new)
    }

    /// Puts the step's record under its definition key and its content key, and
    /// leaves its hint. The blob and the layer are durable by now.
    fn record(&self, job: &Job, facts: &LayerFacts) -> Result<(), LayerError> {
        if !job.is_kept {
            return Ok(());
        }
        let mut below = job.base.clone();
        below.extend(wait_all(&job.chain)?.iter().map(|facts| facts.diff_id));
        let content = key::on_chain(&below, &job.keys.hint);
        let record = StepRecord {
            diff_id: *facts.diff_id.as_bytes(),
            compressed: Some(compressed(&facts.descriptor)),
            created: facts.created.seconds,
            created_nanoseconds: facts.created.nanoseconds,
            stored: now(),
            empty: job.set.is_empty(),
            definition: job.keys.definition,
            content: Some(content),
            hint: Some(job.keys.hint),
            duration_ms: job.duration_ms,
            inputs: job.fields.clone(),
        };
        let mut puts = record.puts();
        puts.push(self.compressed_put(facts));
        self.cache.put(&puts).map_err(LayerError::new)?;
        if let Some(repo) = self.repo.as_ref().filter(|_| job.shared) {
            repo.made(&record, job.inferred);
        }
        Ok(())
    }
}

/// Key under which the blob of a layer is found that was made with a setting.
fn compressed_key(diff_id: &DiffId, setting: &str) -> Key {
    let mut hasher = KeyHasher::new("compressed");
    hasher.field("diff id", diff_id.as_bytes());
    hasher.field("setting", setting.as_bytes());
    hasher.finish()
}

/// The record that finds it.
pub(super) fn compressed_put(
    diff_id: &DiffId,
    blob: &Descriptor,
    setting: &str,
) -> (Bucket, Key, Vec<u8>) {
    let record = CompressedRecord { blob: compressed(blob) };
    (Bucket::Compressed, compressed_key(diff_id, setting), record.encode())
}

/// The clock, in seconds since 1970.
fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A record of a layer that no step made by itself.
pub fn record_of(facts: &LayerFacts, definition: Key, empty: bool) -> StepRecord {
    StepRecord {
        diff_id: *facts.diff_id.as_bytes(),
        compressed: Some(compressed(&facts.descriptor)),
        created: facts.created.seconds,
        created_nanoseconds: facts.created.nanoseconds,
        empty,
        definition,
        content: None,
        hint: None,
        duration_ms: 0,
        stored: now(),
        inputs: Vec::new(),
    }
}

/// What a record says of a layer.
pub fn facts_of(record: &StepRecord) -> Option<LayerFacts> {
    let compressed = record.compressed.as_ref()?;
    Some(LayerFacts {
        diff_id: DiffId::from_bytes(record.diff_id),
        descriptor: Descriptor::new(
            compressed.media_type.clone(),
            Digest::from_bytes(compressed.digest),
            compressed.size,
        ),
        created: Timestamp { seconds: record.created, nanoseconds: record.created_nanoseconds },
    })
}

/// Writes to the layer's tar and to its compressor.
struct Both<A: Write, B: Write> {
    tar: A,
    compressor: B,
}

impl<A: Write, B: Write> Write for Both<A, B> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tar.write_all(bytes)?;
        self.compressor.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tar.flush()?;
        self.compressor.flush()
    }
}

/// A blob as records name it.
pub(super) fn compressed(descriptor: &Descriptor) -> Compressed {
    Compressed {
        digest: *descriptor.digest.as_bytes(),
        size: descriptor.size,
        media_type: descriptor.media_type.clone(),
    }
}

/// Reads a shared file by position.
struct FileAt<'a> {
    file: &'a File,
    offset: u64,
}

impl io::Read for FileAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}
