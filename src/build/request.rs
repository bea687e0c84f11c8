//! What a build is asked to do: flags and environment, resolved.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::Error;
use crate::collect::Limits;
use crate::dockerfile::Overrides;
use crate::image::Format;
use crate::image::annotation::Annotations;
use crate::layer::compress::Compression;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::overlay::Transport;
use crate::plan::Plan;
use crate::plan::Stage;
use crate::plan::named::Contexts;
use crate::plan::step::Action;
use crate::plan::step::Network;
use crate::registry;
use crate::rootfs::in_place;
use crate::snapshot::Mode as WalkMode;
use crate::step::run::Conditions;

/// Largest secret that is accepted, in bytes, as BuildKit's.
const SECRET_LIMIT: u64 = 500 << 10;

/// Where a secret's value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SecretSource {
    /// A file.
    File(PathBuf),
    /// A variable of our environment.
    Environment(String),
}

/// A secret given with `--secret`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Secret {
    /// Name that `RUN --mount=type=secret,id=` uses.
    pub id: String,
    /// Where its value is.
    pub source: SecretSource,
}

impl Secret {
    /// Its value.
    ///
    /// # Errors
    /// [`Error::Secret`] when its file or variable can't be read, or it is too large.
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        let failed = |reason: String| Error::Secret { id: self.id.clone(), reason };
        match &self.source {
            SecretSource::File(path) => {
                let unreadable = |error| failed(format!("{}: {error}", path.display()));
                let length = path.metadata().map_err(unreadable)?.len();
                if length > SECRET_LIMIT {
                    return Err(failed(format!("it is larger than {SECRET_LIMIT} bytes")));
                }
                std::fs::read(path).map_err(unreadable)
            }
            SecretSource::Environment(name) => {
                use std::os::unix::ffi::OsStringExt;
                let value = std::env::var_os(name)
                    .ok_or_else(|| failed(format!("the variable {name} is not set")))?;
                Ok(value.into_vec())
            }
        }
    }
}

/// A text that `Debug` doesn't show.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl Hidden {
    /// Hides `text`.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hidden")
    }
}

/// How a context in a git repository is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GitOptions {
    /// `--git branch=`: used where the context names no reference.
    pub branch: Option<String>,
    /// `--git recurse-submodules=`.
    pub recurse_submodules: bool,
    /// `--git insecure-skip-tls=`.
    pub insecure_skip_tls: bool,
    /// What `git://` in `--context` means: `GIT_PULL_METHOD`, else `https`.
    pub pull_method: String,
    /// User and password, of `GIT_USERNAME` and `GIT_PASSWORD` or of `GIT_TOKEN`.
    pub credential: Option<(String, Hidden)>,
    /// Whether `.git` stays in the context (`BUILDKIT_CONTEXT_KEEP_GIT_DIR`).
    pub keep_git_dir: bool,
}

/// What `--build-context` gives a name to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedFiles {
    /// The name, in one spelling ([`crate::plan::named::normal`]).
    pub name: String,
    /// Where the files are, as `--context` would say it.
    pub place: String,
}

/// What `--ssh` gives to a RUN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ssh {
    /// Name that `RUN --mount=type=ssh,id=` uses.
    pub id: String,
    /// What stands behind it.
    pub source: SshSource,
}

/// What stands behind an `--ssh`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SshSource {
    /// An agent's socket, or with `raw` any socket.
    Socket {
        /// Where it is.
        path: PathBuf,
        /// Whether bytes pass without being looked at.
        raw: bool,
    },
    /// Files with private keys.
    Keys(Vec<PathBuf>),
}

/// How changes of a RUN are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SnapshotMode {
    /// From the overlay's change log.
    #[default]
    Log,
    /// By walking the whole tree before and after, as kaniko does.
    Walk(WalkMode),
}

/// Where a cache is that machines share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CachePlace {
    /// A repository; its tag means nothing.
    Registry(Reference),
    /// An OCI image layout on disk.
    Layout(PathBuf),
}

/// `--cache-repo` and what goes with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheRepo {
    /// Where it is.
    pub place: CachePlace,
    /// `--no-push-cache` not given.
    pub push: bool,
    /// `--cache-ttl`: age from which a step counts as missing.
    pub ttl: Option<Duration>,
}

/// Which root RUN steps see.
#[derive(Clone, Debug, Default)]
pub enum RootChoice {
    /// Our overlay, mounted.
    #[default]
    Overlay,
    /// The container's own `/`.
    InPlace {
        /// How it is treated.
        options: in_place::Options,
        /// Where it is remembered what it shows.
        state: PathBuf,
    },
}

/// Everything a build needs to know.
pub struct Request {
    /// `--context`, as given.
    pub context: String,
    /// `--context-sub-path`.
    pub context_sub_path: Option<String>,
    /// `--dockerfile`, as given; `None`: `Dockerfile` in the context.
    pub dockerfile: Option<String>,
    /// `--destination`s.
    pub destinations: Vec<Reference>,
    /// Whether to push to them.
    pub push: bool,
    /// `--build-arg`s; no value when the environment had none.
    pub build_args: Vec<(String, Option<String>)>,
    /// `--target`.
    pub target: Option<String>,
    /// What build arguments say in place of the file's own directives.
    pub overrides: Overrides,
    /// An image index even for a single platform.
    pub index: bool,
    /// `--label`s.
    pub labels: Vec<(String, String)>,
    /// Platform to build for; of several, the first.
    pub platform: Platform,
    /// All platforms to build for. Several become an image index.
    pub platforms: Vec<Platform>,
    /// `--provenance`: attested by the builder of this id (which may be empty).
    pub provenance: Option<String>,
    /// Platform we run on.
    pub build_platform: Platform,
    /// Whether layers are looked up in the cache.
    pub cache: bool,
    /// Whether layers of COPY and ADD are looked up.
    pub cache_copy: bool,
    /// Whether layers of RUN and WORKDIR are looked up.
    pub cache_run: bool,
    /// `--no-cache`.
    pub no_cache: bool,
    /// `--no-cache-filter`: stages whose steps are not looked up, in small letters.
    pub no_cache_filter: Vec<String>,
    /// The cache directory.
    pub cache_dir: PathBuf,
    /// The cache shared with other machines, asked after the local one.
    pub cache_repo: Option<CacheRepo>,
    /// `--cache-max-size` and `--cache-ttl`.
    pub cache_limits: Limits,
    /// How changes are found.
    pub snapshot: SnapshotMode,
    /// Where RUN steps happen.
    pub root: RootChoice,
    /// How requests reach the overlay.
    pub fuse_transport: Transport,
    /// Whether large files are passed through.
    pub fuse_passthrough: bool,
    /// `--oci-layout-path`.
    pub oci_layout: Option<PathBuf>,
    /// `--tar-path`.
    pub tar: Option<PathBuf>,
    /// `--digest-file`.
    pub digest_file: Option<PathBuf>,
    /// `--image-name-with-digest-file`.
    pub name_digest_file: Option<PathBuf>,
    /// `--image-name-tag-with-digest-file`.
    pub name_tag_digest_file: Option<PathBuf>,
    /// `--metadata-file`.
    pub metadata_file: Option<PathBuf>,
    /// `--image-format`; `None`: OCI.
    pub format: Option<Format>,
    /// `--compression` and `--compression-level`.
    pub compression: Compression,
    /// SOURCE_DATE_EPOCH where neither a build argument nor the Dockerfile says
    /// anything, in seconds: `--reproducible`.
    pub source_date_epoch: Option<i64>,
    /// Whether SOURCE_DATE_EPOCH also clamps the times in new layers.
    pub rewrite_timestamp: bool,
    /// `--annotation`s.
    pub annotations: Annotations,
    /// `--single-snapshot`: one layer for everything above the base.
    pub single_snapshot: bool,
    /// `--push-ignore-immutable-tag-errors`.
    pub ignore_immutable_tags: bool,
    /// `--secret`s.
    pub secrets: Vec<Secret>,
    /// `--ssh`s.
    pub ssh: Vec<Ssh>,
    /// How contexts in git repositories are reached.
    pub git: GitOptions,
    /// `--build-context`s that are images, and the names of the others.
    pub contexts: Contexts,
    /// `--build-context`s that are files.
    pub named_files: Vec<NamedFiles>,
    /// `--network`.
    pub network: Network,
    /// `--add-host`, `--shm-size`, `--ulimit`.
    pub conditions: Conditions,
    /// How registries are reached.
    pub registry: registry::Options,
    /// Where credentials are.
    pub credentials: registry::Environment,
    /// `--skip-push-permission-check` not given.
    pub check_push: bool,
    /// Threads for compressing and hashing.
    pub threads: NonZeroUsize,
}

impl Request {
    /// Repositories that have the image's layers after the build.
    pub fn mountable(&self) -> Vec<Reference> {
        if self.push { self.destinations.clone() } else { Vec::new() }
    }

    /// The flag that keeps a step of `stage` from being looked up, if one does.
    pub fn forced(&self, stage: &Stage, action: &Action) -> Option<&'static str> {
        let is_copy = matches!(action, Action::Copy(_));
        let is_filtered = || self.no_cache_filter.iter().any(|name| is_called(stage, name));
        if self.no_cache {
            Some("--no-cache")
        } else if !self.cache {
            Some("--cache=false")
        } else if is_filtered() {
            Some("--no-cache-filter")
        } else if is_copy && !self.cache_copy {
            Some("--cache-copy-layers=false")
        } else if !is_copy && !self.cache_run {
            Some("--cache-run-layers=false")
        } else {
            None
        }
    }

    /// Flags by which a snapshot of a RUN doesn't look everywhere: its layer may lack
    /// what another build's has.
    pub fn unseen(&self) -> Vec<String> {
        let mut flags = Vec::new();
        match self.snapshot {
            SnapshotMode::Log | SnapshotMode::Walk(WalkMode::Full) => {}
            SnapshotMode::Walk(WalkMode::Redo) => flags.push("--snapshot-mode=redo".to_owned()),
            SnapshotMode::Walk(WalkMode::Time) => flags.push("--snapshot-mode=time".to_owned()),
        }
        if let RootChoice::InPlace { options, .. } = &self.root {
            let exceptions = &options.exceptions;
            let mut ignored: Vec<_> =
                exceptions.ignored.iter().map(|path| format!("--ignore-path={path}")).collect();
            ignored.sort();
            ignored.dedup();
            flags.append(&mut ignored);
            if exceptions.ignore_var_run == Some(true) {
                flags.push("--ignore-var-run".to_owned());
            }
        }
        flags
    }

    /// Names of `--no-cache-filter` that no stage has.
    pub fn unknown_in_filter(&self, plan: &Plan) -> Vec<&str> {
        let has = |name: &String| plan.stages.iter().any(|stage| is_called(stage, name));
        self.no_cache_filter.iter().filter(|name| !has(name)).map(String::as_str).collect()
    }
}

/// Whether `name` means `stage`: its name, or its number from 0.
fn is_called(stage: &Stage, name: &str) -> bool {
    stage.name.as_deref() == Some(name) || name == stage.index.to_string()
}
