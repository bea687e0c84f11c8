//! Why a build failed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::layers::LayerError;
use crate::context;
use crate::dockerfile;
use crate::dockerfile::Dockerfile;
use crate::dockerfile::Span;
use crate::dockerfile::suggest;
use crate::fetch;
use crate::layer;
use crate::layout;
use crate::oci::digest::DiffId;
use crate::oci::digest::Digest;
use crate::oci::manifest;
use crate::plan::Plan;
use crate::registry;
use crate::rootfs;
use crate::snapshot;
use crate::step;
use crate::store;

/// Why a build failed; the door sorts it into an exit code and a hint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Dockerfile can't be used.
    #[error(transparent)]
    Dockerfile(#[from] dockerfile::Error),
    /// Something failed while an instruction was carried out.
    #[error("{place}")]
    At {
        /// Where, with the excerpt, and what.
        place: dockerfile::Error,
        /// The cause.
        source: Box<Error>,
    },
    /// Lint findings, and the Dockerfile wants them to be errors.
    #[error("lint violation found for rules: {rules}")]
    Lint {
        /// Their names.
        rules: String,
    },
    /// A RUN for another architecture, which this machine can't execute.
    #[error(
        "this RUN is for {platform}, and programs for it don't run on this {host} machine: register \
         an interpreter with binfmt_misc (flag F), or build this stage `FROM --platform=$BUILDPLATFORM`"
    )]
    Foreign {
        /// Of the stage.
        platform: String,
        /// Our architecture.
        host: String,
    },
    /// A stage that others need failed.
    #[error(transparent)]
    Stage(Arc<Error>),
    /// A RUN's process failed.
    #[error("process `{command}` did not complete successfully: {how}")]
    RunFailed {
        /// What ran.
        command: String,
        /// `exit code: 3`.
        how: String,
        /// Exit code for ourselves.
        code: u8,
        /// Its last lines.
        output: Vec<String>,
    },
    /// A step would have to run, and nothing is to be run.
    #[error("a step is not in the cache")]
    NotCached,
    /// The shared cache can't be used, and it alone was asked for.
    #[error("{0}")]
    SharedCache(String),
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A push isn't allowed or can't work; found out before the work was done.
    #[error("cannot push: {0}")]
    Denied(Arc<registry::Error>),
    /// A step failed.
    #[error(transparent)]
    Step(Box<step::Error>),
    /// The build context can't be used.
    #[error(transparent)]
    Context(#[from] context::Error),
    /// `.dockerignore` is malformed.
    #[error("{file}: {source}")]
    Ignore {
        /// The file.
        file: String,
        /// What is wrong.
        source: crate::ignore::Error,
    },
    /// A registry refused or failed.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The cache directory can't be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The index of the cache can't be used.
    #[error(transparent)]
    Cache(#[from] yadokari_cache::Error),
    /// An OCI layout or archive can't be read or written.
    #[error(transparent)]
    Layout(#[from] layout::Error),
    /// A manifest can't be understood.
    #[error(transparent)]
    Manifest(#[from] manifest::ParseManifestError),
    /// The root filesystem can't be had.
    #[error(transparent)]
    Root(#[from] rootfs::Error),
    /// Finding what changed failed.
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    /// Config and manifest can't be put together.
    #[error(transparent)]
    Image(#[from] crate::image::Error),
    /// A layer couldn't be written.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// FROM names something that is no image reference.
    #[error("`{reference}` is no image: {reason}")]
    BadReference {
        /// As written.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was looked for as an image is nearly the name of a stage.
    #[error("{source}; there is no stage `{name}`: did you mean the stage `{stage}`?")]
    MisspeltStage {
        /// As written.
        name: String,
        /// The stage.
        stage: String,
        /// Why there is no such image.
        source: Box<Error>,
    },
    /// What a name leads to isn't an image.
    #[error("`{image}` is not an image but `{media_type}`")]
    NotAnImage {
        /// As written.
        image: String,
        /// What it is.
        media_type: String,
    },
    /// An image has nothing for our platform.
    #[error("`{image}` has no image for {platform}; it has {available}")]
    NoPlatform {
        /// As written.
        image: String,
        /// What is wanted.
        platform: String,
        /// What there is.
        available: String,
    },
    /// An image config can't be read.
    #[error("the config of `{image}` can't be read: {source}")]
    BadConfig {
        /// As written.
        image: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Manifest and config of an image disagree.
    #[error("the manifest of `{image}` has {layers} layers and its config {diff_ids}")]
    LayerCount {
        /// As written.
        image: String,
        /// In the manifest.
        layers: usize,
        /// In the config.
        diff_ids: usize,
    },
    /// A blob couldn't be fetched.
    #[error("cannot fetch {digest}: {source}")]
    Fetch {
        /// Of the blob.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// A layer of a base image is damaged or refused.
    #[error("layer {digest} of the base image can't be used: {source}")]
    BaseLayer {
        /// Of the blob.
        digest: Digest,
        /// Why.
        source: layer::Error,
    },
    /// A layer isn't what its image's config says.
    #[error("layer {digest} of the base image should have diff ID {expected} and has {found}")]
    WrongDiffId {
        /// Of the blob.
        digest: Digest,
        /// In the config.
        expected: DiffId,
        /// Computed.
        found: DiffId,
    },
    /// A scratch directory can't be used.
    #[error("cannot use {path}: {source}")]
    Scratch {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A cache mount's directory can't be used.
    #[error("cannot use the cache mount {path}: {source}")]
    CacheMount {
        /// The directory or lock.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A secret can't be read.
    #[error("secret `{id}`: {reason}")]
    Secret {
        /// Its id.
        id: String,
        /// Why.
        reason: String,
    },
    /// Something on another machine can't be had.
    #[error(transparent)]
    Remote(fetch::Error),
    /// A file broke off on its way, or can't be stored.
    #[error("cannot fetch {address}: {source}")]
    Download {
        /// The URL, password hidden.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// A file isn't what it should be.
    #[error("{address} has the digest {found}, and {expected} is expected")]
    Checksum {
        /// The URL, password hidden.
        address: String,
        /// `--checksum`, or what it was when its key was made.
        expected: Digest,
        /// What was fetched.
        found: Digest,
    },
    /// `--git` says something that git can't mean.
    #[error("--git branch: {0}")]
    GitOption(String),
    /// An ssh agent can't be used.
    #[error(transparent)]
    Agent(#[from] crate::agent::Error),
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// A result file couldn't be written.
    #[error("cannot write {path}: {source}")]
    Output {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image that was put together isn't valid: a fault of ours.
    #[error("internal: the image is not valid: {0}")]
    Invalid(String),
    /// A thread of ours panicked.
    #[error("internal: a thread of the build panicked; please report this")]
    Panic,
}

impl Error {
    /// Names the instruction that failed, unless something nearer to it did already.
    ///
    /// A layer that failed behind the build names its own instruction, not the one
    /// that waited for it.
    pub fn at(self, dockerfile: &Dockerfile, span: Span) -> Self {
        let span = match &self {
            Self::Layer(error) => error.span.unwrap_or(span),
            _ => span,
        };
        match self {
            Self::At { .. }
            | Self::Dockerfile(_)
            | Self::Stage(_)
            | Self::Interrupted
            | Self::NotCached
            | Self::Denied(_) => self,
            other => Self::At {
                place: dockerfile::Error::at(dockerfile, span, chain(&other)),
                source: Box::new(other),
            },
        }
    }

    /// Names the instruction whose layer failed, if that is what happened.
    pub fn at_layer(self, dockerfile: &Dockerfile) -> Self {
        match &self {
            Self::Layer(LayerError { span: Some(span), .. }) => {
                let span = *span;
                self.at(dockerfile, span)
            }
            _ => self,
        }
    }

    /// Adds the stage of `plan` that may have been meant when no image called `name`
    /// could be had.
    pub fn or_stage(self, name: &str, plan: &Plan) -> Self {
        let names: Vec<&str> =
            plan.stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
        match suggest::nearest(name, &names) {
            Some(stage) => Self::MisspeltStage {
                name: name.to_owned(),
                stage: stage.to_owned(),
                source: Box::new(self),
            },
            None => self,
        }
    }

    /// `image` turned out to be of `media_type`.
    pub fn not_an_image(image: &str, media_type: &str) -> Self {
        Self::NotAnImage { image: image.to_owned(), media_type: media_type.to_owned() }
    }

    /// What is at the bottom of it.
    pub fn cause(&self) -> &Self {
        match self {
            Self::At { source, .. } | Self::MisspeltStage { source, .. } => source.cause(),
            Self::Stage(shared) => shared.cause(),
            other => other,
        }
    }

    /// Whether damaged or missing contents of the cache may be behind a result that
    /// couldn't be delivered.
    pub(super) fn may_be_damage(&self) -> bool {
        match self.cause() {
            Self::Registry(error) => error.is_about_content(),
            Self::Layout(_) | Self::Output { .. } => true,
            _ => false,
        }
    }

    /// Exit code of the process that a RUN failed by: its own, or what a shell gives
    /// for a program that can't be executed. Never 0.
    pub fn exit_code(&self) -> Option<u8> {
        let code = match self.cause() {
            Self::RunFailed { code, .. } => *code,
            Self::Step(step) => match &**step {
                step::Error::Sandbox(error) => u8::try_from(error.exit_code()?).ok()?,
                _ => return None,
            },
            _ => return None,
        };
        Some(code.max(1))
    }

    /// The registry's failure behind it, if it is one: reading a layer wraps it.
    pub fn registry(&self) -> Option<&registry::Error> {
        let mut next: Option<&(dyn std::error::Error + 'static)> = match self.cause() {
            Self::Registry(error) => return Some(error),
            other => Some(other),
        };
        while let Some(error) = next {
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if let Some(found) = inner.and_then(|inner| inner.downcast_ref()) {
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    /// The error with its place in the Dockerfile, if it has one.
    pub fn placed(&self) -> Option<&dockerfile::Error> {
        match self {
            Self::At { place, .. } => Some(place),
            Self::Dockerfile(place) => Some(place),
            Self::Stage(shared) => shared.placed(),
            _ => None,
        }
    }
}

/// An error with its causes, each told once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !tells(&text, &cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Whether `text` says already what `cause` does, whatever the case and with or
/// without the number that the standard library appends.
fn tells(text: &str, cause: &str) -> bool {
    let core = cause.split(" (os error").next().unwrap_or(cause);
    text.to_lowercase().contains(&core.to_lowercase())
}
