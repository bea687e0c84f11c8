//! What a build is asked to do: flags and environment, resolved.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::dockerfile::Overrides;
use crate::image::Format;
use crate::image::annotation::Annotations;
use crate::layer::compress::Compression;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::registry;
use crate::snapshot::Mode as WalkMode;

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

/// How changes of a RUN are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SnapshotMode {
    /// From the overlay's change log.
    #[default]
    Log,
    /// By walking the whole tree before and after, as kaniko does.
    Walk(WalkMode),
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
    /// The cache directory.
    pub cache_dir: PathBuf,
    /// How changes are found.
    pub snapshot: SnapshotMode,
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
    /// How registries are reached.
    pub registry: registry::Options,
    /// Where credentials are.
    pub credentials: registry::Environment,
    /// `--skip-push-permission-check` not given.
    pub check_push: bool,
    /// Threads for compressing and hashing.
    pub threads: NonZeroUsize,
}
