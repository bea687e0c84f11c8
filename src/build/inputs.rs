//! What a step reads: resolved and digested for its key, then used to execute it.

use std::sync::Arc;

use yadokari_cache::Key;
use yadokari_cache::KeyHasher;

use super::Error;
use super::Progress;
use super::mounts;
use super::progress;
use super::progress::StepNumber;
use super::shared::Files;
use super::shared::Shared;
use super::tail::Tail;
use crate::oci::platform::Platform;
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
use crate::step::select::Selection;
use crate::tree::Timestamp;

/// The inputs of one step.
pub struct Inputs {
    /// Digests for the key: a COPY's selection, each bind mount's source in order.
    pub contents: Vec<Key>,
    selected: Option<(Files, Selection)>,
    /// Files behind each bind mount, in the order of the mounts that have some.
    binds: Vec<Files>,
}

impl Inputs {
    /// Resolves and digests what `action` reads. Nothing is mounted or copied.
    ///
    /// # Errors
    /// A source that isn't there or can't be read; a stage that failed.
    pub fn of(shared: &Shared<'_>, action: &Action, platform: &Platform) -> Result<Self, Error> {
        let mut inputs = Self { contents: Vec::new(), selected: None, binds: Vec::new() };
        match action {
            Action::Copy(copy) => {
                let files = shared.files(&copy.origin, platform)?;
                let exclude = step::select::excludes(copy)?;
                let (selection, digest) = files.with_source(|source| {
                    let selection = step::select::select(source, copy)?;
                    let digest =
                        selection.digest(source, exclude.as_ref(), shared.request.threads)?;
                    Ok::<_, step::Error>((selection, digest))
                })?;
                inputs.contents.push(digest);
                inputs.selected = Some((files, selection));
            }
            Action::Run(run) => inputs.add_binds(shared, run, platform)?,
            _ => {}
        }
        Ok(inputs)
    }

    fn add_binds(
        &mut self,
        shared: &Shared<'_>,
        run: &RunStep,
        platform: &Platform,
    ) -> Result<(), Error> {
        for mount in &run.mounts {
            let (origin, source) = match &mount.kind {
                MountKind::Bind { origin, source, .. } => (origin, source),
                MountKind::Cache { from: Some((origin, source)), .. } => (origin, source),
                _ => continue,
            };
            let files = shared.files(origin, platform)?;
            let copy = whole(origin, source);
            let digest = files.with_source(|tree| {
                step::select::select(tree, &copy)?.digest(tree, None, shared.request.threads)
            })?;
            let mut hasher = KeyHasher::new("bind");
            hasher.field("files", digest.as_bytes());
            self.contents.push(hasher.finish());
            self.binds.push(files);
        }
        Ok(())
    }

    /// Does to `root` what `action` says.
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
    ) -> Result<(), Error> {
        match action {
            Action::Config | Action::Silent => Ok(()),
            Action::Workdir { path, user } => {
                Ok(step::workdir::workdir(root.overlay(), path, user, now)?)
            }
            Action::Copy(copy) => {
                let exclude = step::select::excludes(copy)?;
                let (files, selection) = self.selected.expect("made for every copy");
                Ok(files.with_source(|source| {
                    if copy.add {
                        step::add::add(
                            root.overlay(),
                            copy,
                            source,
                            selection,
                            exclude.as_ref(),
                            now,
                            root.scratch(),
                        )
                    } else {
                        step::copy::copy(
                            root.overlay(),
                            copy,
                            source,
                            &selection,
                            exclude.as_ref(),
                            now,
                        )
                    }
                })?)
            }
            Action::Run(run) => self.execute_run(shared, run, root, number, now),
        }
    }

    fn execute_run(
        self,
        shared: &Shared<'_>,
        run: &RunStep,
        root: &Root,
        number: StepNumber,
        now: Timestamp,
    ) -> Result<(), Error> {
        // Unmounted when this goes out of scope, after the process ended.
        let mut views = mounts::Views::default();
        let prepared = mounts::prepare(shared, run, &self.binds, &mut views)?;
        let masks = shared.secret_values(run)?;
        let mut tail = Tail::new(masks);
        let place = step::run::Place {
            root,
            mounted: &root.scratch().join("root"),
            runner: shared.runner,
            cancel: Arc::clone(&shared.cancel),
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
        let exit = if shared.is_in_place() {
            shared.run_in_place(root.overlay(), run, prepared, now, &mut output)?
        } else {
            step::run::run(&place, run, prepared, now, &mut output)?
        };
        for (stream, bytes) in tail.finish() {
            shared.observer.observe(Progress::Output { step: number, stream, bytes });
        }
        shared.check_interrupted()?;
        match exit {
            Exit::Code(0) => Ok(()),
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

/// A COPY of one path, for selecting what a bind mount shows.
pub fn whole(origin: &Origin, source: &str) -> CopyStep {
    CopyStep {
        origin: origin.clone(),
        sources: vec![CopySource::Path(if source.is_empty() { "/" } else { source }.to_owned())],
        destination: "/".to_owned(),
        chown: None,
        chmod: None,
        link: false,
        parents: false,
        exclude: Vec::new(),
        add: false,
        unpack: None,
    }
}
