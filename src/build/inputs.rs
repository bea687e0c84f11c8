//! What a step reads: resolved and digested for its key, then used to execute it.

use std::sync::Arc;

use yadokari_cache::Key;
use yadokari_cache::KeyHasher;

use super::Error;
use super::Progress;
use super::mounts;
use super::progress;
use super::progress::StepNumber;
use super::remote;
use super::remote::RemoteFile;
use super::shared::Files;
use super::shared::Shared;
use super::tail::Tail;
use crate::address::GitAddress;
use crate::address::HttpAddress;
use crate::context::Nothing;
use crate::fetch::Resolved;
use crate::oci::platform::Platform;
use crate::path::RootPath;
use crate::plan::step::Action;
use crate::plan::step::CopySource;
use crate::plan::step::CopyStep;
use crate::plan::step::MountKind;
use crate::plan::step::Origin;
use crate::plan::step::RunStep;
use crate::rootfs::Root;
use crate::sandbox::Exit;
use crate::sandbox::Stream;
use crate::step;
use crate::step::select::Item;
use crate::step::select::Listed;
use crate::step::select::Selection;
use crate::step::source::Source;
use crate::tree::Kind;
use crate::tree::Timestamp;
use crate::tree::Tree;

/// The inputs of one step.
pub struct Inputs {
    /// Digests for the key: a COPY's selections, each bind mount's source in order.
    pub contents: Vec<Key>,
    parts: Vec<Part>,
    /// Files behind each bind mount, in the order of the mounts that have some.
    binds: Vec<Files>,
}

/// Sources of a COPY or ADD that come from one place, with the step for them alone.
struct Part {
    step: CopyStep,
    place: Place,
}

enum Place {
    /// Files that are there.
    Here(Files, Selection),
    /// A file behind a URL; fetched when the step runs, if it isn't in the store.
    Http(HttpAddress, RemoteFile),
    /// A repository; fetched when the step runs.
    Git(GitAddress, Resolved),
}

impl Inputs {
    /// Resolves and digests what `action` reads. Nothing is mounted or copied.
    ///
    /// # Errors
    /// A source that isn't there or can't be read; a stage that failed.
    pub fn of(shared: &Shared<'_>, action: &Action, platform: &Platform) -> Result<Self, Error> {
        let mut inputs = Self { contents: Vec::new(), parts: Vec::new(), binds: Vec::new() };
        match action {
            Action::Copy(copy) => {
                for part in parts(copy) {
                    inputs.add_part(shared, part, platform)?;
                }
            }
            Action::Run(run) => inputs.add_binds(shared, run, platform)?,
            _ => {}
        }
        Ok(inputs)
    }

    /// The files that the step reads, list by list in the order of `contents`: at most
    /// `most` of each, with whether these are all.
    ///
    /// # Errors
    /// Those of reading a source.
    pub fn listings(
        &self,
        shared: &Shared<'_>,
        action: &Action,
        most: usize,
    ) -> Result<Vec<(Vec<Listed>, bool)>, Error> {
        let mut lists = Vec::new();
        match action {
            Action::Copy(_) => {
                for part in &self.parts {
                    lists.push(part.listing(most)?);
                }
            }
            Action::Run(run) => {
                for ((origin, source), files) in sources(run).zip(&self.binds) {
                    shared.check_interrupted()?;
                    let copy = whole(origin, source);
                    lists.push(files.with_source(|tree| {
                        step::select::select(tree, &copy)?.listing_of_mount(tree, most)
                    })?);
                }
            }
            _ => {}
        }
        Ok(lists)
    }

    fn add_part(
        &mut self,
        shared: &Shared<'_>,
        mut step: CopyStep,
        platform: &Platform,
    ) -> Result<(), Error> {
        let (remotes, watch) = (shared.remotes, shared.watch());
        let (key, place) = match step.sources.first() {
            Some(CopySource::Http { address, checksum }) => {
                let file = remotes.file(address, checksum.as_ref(), watch)?;
                let key = remote::file_key(address, &file.digest, &step.exclude);
                let place = Place::Http(address.clone(), file);
                // Unlike a local archive it is unpacked only when asked for.
                step.unpack = Some(step.unpack.unwrap_or(false));
                (key, place)
            }
            Some(CopySource::Git { address }) => {
                let resolved = remotes.commit(address, watch)?;
                let key = remote::repository_key(address, &resolved, &step.exclude);
                let place = Place::Git(address.clone(), resolved);
                step.unpack = Some(false);
                (key, place)
            }
            _ => {
                let files = shared.files(&step.origin, platform)?;
                let exclude = step::select::excludes(&step)?;
                let (selection, digest) = files.with_source(|source| {
                    let selection = step::select::select(source, &step)?;
                    let digest =
                        selection.digest(source, exclude.as_ref(), shared.request.threads)?;
                    Ok::<_, step::Error>((selection, digest))
                })?;
                (digest, Place::Here(files, selection))
            }
        };
        self.contents.push(key);
        self.parts.push(Part { step, place });
        Ok(())
    }

    fn add_binds(
        &mut self,
        shared: &Shared<'_>,
        run: &RunStep,
        platform: &Platform,
    ) -> Result<(), Error> {
        for (origin, source) in sources(run) {
            let files = shared.files(origin, platform)?;
            let copy = whole(origin, source);
            let digest = files.with_source(|tree| {
                step::select::select(tree, &copy)?.digest_of_mount(tree, shared.request.threads)
            })?;
            let mut hasher = KeyHasher::new("bind");
            hasher.field("files", digest.as_bytes());
            self.contents.push(hasher.finish());
            self.binds.push(files);
        }
        Ok(())
    }

    /// Does to `root` what `action` says. Tells whether the result may be kept for other
    /// builds.
    ///
    /// # Errors
    /// The step's own.
    pub fn execute(
        self,
        shared: &Shared<'_>,
        action: &Action,
        root: &Root,
        number: StepNumber,
        now: Timestamp,
    ) -> Result<bool, Error> {
        match action {
            Action::Config | Action::Silent => {}
            Action::Workdir { path, user } => {
                step::workdir::workdir(root.overlay(), path, user, now)?;
            }
            Action::Copy(_) => {
                let parts = self.parts;
                parts.into_iter().try_for_each(|part| part.execute(shared, root, now))?;
            }
            Action::Run(run) => return self.execute_run(shared, run, root, number, now),
        }
        Ok(true)
    }

    fn execute_run(
        self,
        shared: &Shared<'_>,
        run: &RunStep,
        root: &Root,
        number: StepNumber,
        now: Timestamp,
    ) -> Result<bool, Error> {
        // Unmounted when this goes out of scope, after the process ended.
        let mut views = mounts::Views::default();
        let prepared = mounts::prepare(shared, run, number, &self.binds, &mut views)?;
        let masks = shared.secret_values(run)?;
        let mut tail = Tail::new(masks);
        let place = step::run::Place {
            root,
            mounted: &root.scratch().join("root"),
            runner: shared.runner,
            cancel: Arc::clone(&shared.cancel),
            conditions: &shared.request.conditions,
        };
        let mut output = |stream: Stream, bytes: &[u8]| {
            let stream = match stream {
                Stream::Stdout => progress::Stream::Out,
                Stream::Stderr => progress::Stream::Err,
            };
            let bytes = tail.take(stream, bytes);
            if !bytes.is_empty() {
                shared.observer.observe(Progress::Output { step: number, stream, bytes });
            }
        };
        let (exit, is_kept) = if shared.is_in_place() {
            shared.run_in_place(root.overlay(), run, prepared, now, &mut output)?
        } else {
            (step::run::run(&place, run, prepared, now, &mut output)?, true)
        };
        for (stream, bytes) in tail.finish() {
            shared.observer.observe(Progress::Output { step: number, stream, bytes });
        }
        shared.check_interrupted()?;
        match exit {
            Exit::Code(0) => Ok(is_kept),
            Exit::Code(code) => Err(Error::RunFailed {
                command: run.arguments.join(" "),
                how: format!("exit code: {code}"),
                code: u8::try_from(code).unwrap_or(1),
                output: tail.last_lines(),
            }),
            Exit::Signal(signal) => Err(Error::RunFailed {
                command: run.arguments.join(" "),
                how: format!("killed by signal {signal}"),
                code: u8::try_from(128 + signal).unwrap_or(1),
                output: tail.last_lines(),
            }),
        }
    }
}

/// Whose files the mounts of `run` show, and which, in order.
fn sources(run: &RunStep) -> impl Iterator<Item = (&Origin, &str)> {
    run.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Bind { origin, source, .. } => Some((origin, source.as_str())),
        MountKind::Cache { from: Some((origin, source)), .. } => Some((origin, source.as_str())),
        _ => None,
    })
}

impl Part {
    /// What is taken, at most `most`; of what is elsewhere one line with its name and
    /// what it is at the moment.
    fn listing(&self, most: usize) -> Result<(Vec<Listed>, bool), Error> {
        let elsewhere = |name: &str, content: &[u8]| {
            let half = blake3::hash(content).as_bytes()[..16].try_into().expect("16 of 32 bytes");
            let path = RootPath::clamped(name.as_bytes()).unwrap_or_default();
            (vec![Listed { path, kind: Kind::File, mode: 0, owner: (0, 0), digest: half }], true)
        };
        match &self.place {
            Place::Here(files, selection) => {
                let exclude = step::select::excludes(&self.step)?;
                Ok(files.with_source(|source| selection.listing(source, exclude.as_ref(), most))?)
            }
            Place::Http(address, file) => {
                Ok(elsewhere(&address.to_string(), file.digest.as_bytes()))
            }
            Place::Git(address, resolved) => {
                Ok(elsewhere(&address.to_string(), resolved.commit.as_bytes()))
            }
        }
    }

    fn execute(self, shared: &Shared<'_>, root: &Root, now: Timestamp) -> Result<(), Error> {
        let Self { step: copy, place } = self;
        match place {
            Place::Here(files, selection) => {
                let exclude = step::select::excludes(&copy)?;
                let exclude = exclude.as_ref();
                let overlay = root.overlay();
                Ok(files.with_source(|source| {
                    if copy.add {
                        let scratch = root.scratch();
                        step::add::add(overlay, &copy, source, selection, exclude, now, scratch)
                    } else {
                        step::copy::copy(overlay, &copy, source, &selection, exclude, now)
                    }
                })?)
            }
            Place::Http(address, file) => {
                let tree = shared.remotes.open(&address, &file, shared.watch())?;
                let name = remote::file_name(&address);
                let named = RootPath::root().join(&name);
                let failed = step::Error::io("look up", &named);
                let node = tree.child(tree.root(), name.as_bytes()).map_err(failed)?;
                let node = node.expect("the tree holds a file of that name");
                let source = Source::Layers { tree: &tree, whose: address.to_string() };
                put(root, &copy, &source, Item::Whole { named, node }, now)
            }
            Place::Git(address, resolved) => {
                let context = shared.remotes.check_out(&address, &resolved, shared.watch())?;
                let tree = context.tree(Nothing)?;
                let item = Item::Whole { named: RootPath::root(), node: tree.root() };
                put(root, &copy, &Source::Context(&tree), item, now)
            }
        }
    }
}

/// A COPY of what a bind mount shows, for selecting it.
fn whole(origin: &Origin, source: &str) -> CopyStep {
    CopyStep::whole(origin.clone(), if source.is_empty() { "/" } else { source })
}

/// Splits a COPY or ADD where it changes from files at hand to files elsewhere, in the
/// order of its sources.
fn parts(copy: &CopyStep) -> Vec<CopyStep> {
    let is_remote =
        |source: &CopySource| matches!(source, CopySource::Http { .. } | CopySource::Git { .. });
    let mut parts: Vec<CopyStep> = Vec::new();
    for source in &copy.sources {
        match parts.last_mut() {
            Some(last) if !is_remote(source) && !last.sources.iter().any(is_remote) => {
                last.sources.push(source.clone());
            }
            _ => parts.push(CopyStep { sources: vec![source.clone()], ..copy.clone() }),
        }
    }
    parts
}

/// Puts `item` of `source` into the root, as an ADD.
fn put(
    root: &Root,
    step: &CopyStep,
    source: &Source<'_>,
    item: Item,
    now: Timestamp,
) -> Result<(), Error> {
    let exclude = step::select::excludes(step)?;
    let selection = Selection { items: vec![item] };
    let exclude = exclude.as_ref();
    Ok(step::add::add(root.overlay(), step, source, selection, exclude, now, root.scratch())?)
}
