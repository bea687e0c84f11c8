//! The command lines, as typed. `request` turns them into what a build is asked for.
//!
//! Names and meanings are kaniko's where it has them. Booleans take `--x`,
//! `--x=true` and `--x=false`; nothing that is known but not there yet is ignored:
//! see [`MISSING`].

#![allow(rustdoc::broken_intra_doc_links, reason = "help texts: brackets are optional parts")]

mod groups;
mod publish;
mod warm;

use std::path::PathBuf;

use clap::ArgAction;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;

use super::cache::CacheArguments;
pub use groups::Logging;
pub use groups::Pull;
pub use publish::Login;
pub use publish::Push;
pub use warm::Warm;
pub use warm::Warmer;

/// Builds container images from Dockerfiles, inside a container, without a daemon.
#[derive(Debug, Parser)]
#[command(name = "yadokari", version, max_term_width = 100, args_override_self = true)]
pub struct Yadokari {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands of `yadokari`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image from a Dockerfile and push it
    Build(Box<Build>),
    /// Tell in which root RUN steps happen here, and what better ones would need
    Doctor(Doctor),
    /// Look after the cache: show, check, shrink it, move its mounts
    Cache(CacheArguments),
    /// Fetch base images, and steps of a shared cache, ahead of builds
    Warm(Box<Warm>),
    /// Push an image that is there as files
    Push(Box<Push>),
    /// Keep the password of a registry for later builds
    Login(Login),
    /// Print the version
    Version,
}

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Builds an image from a Dockerfile and pushes it, with kaniko's command line.
#[derive(Debug, Parser)]
#[command(name = "executor", version, max_term_width = 100, args_override_self = true)]
pub struct Executor {
    /// The same flags as `yadokari build`.
    #[command(flatten)]
    pub build: Build,
    /// What to do instead of building.
    #[command(subcommand)]
    pub command: Option<ExecutorCommand>,
}

/// The subcommands of `executor`.
#[derive(Debug, Subcommand)]
pub enum ExecutorCommand {
    /// Push an image that is there as files
    Push(Box<Push>),
    /// Keep the password of a registry for later builds
    Login(Login),
    /// Print the version
    Version,
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// Plain lines.
    Text,
    /// Plain lines with colour where the terminal has it.
    Color,
    /// One JSON object a line.
    Json,
}

/// How much is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Verbosity {
    /// Only what ended the program.
    Panic,
    /// As `panic`.
    Fatal,
    /// Errors.
    Error,
    /// Errors and warnings.
    Warn,
    /// What happens.
    Info,
    /// What happens inside.
    Debug,
    /// Everything.
    Trace,
}

/// How changes of a RUN are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Snapshot {
    /// From the change log of the overlay (the default).
    Log,
    /// By comparing the whole tree, contents and all.
    Full,
    /// By comparing metadata of the whole tree.
    Redo,
    /// By comparing times of the whole tree.
    Time,
}

/// Flags of a build.
#[derive(Debug, Args)]
pub struct Build {
    /// Directory, dir://PATH, tar://FILE.tar.gz, tar://stdin (also `-`), a git repository
    /// (git://HOST/REPO#REF, https://HOST/REPO.git#REF:DIR, git@HOST:REPO), or the URL of an
    /// archive
    #[arg(short, long, default_value = "/workspace/")]
    pub context: String,
    /// Directory inside the context to build from
    #[arg(long, value_name = "PATH")]
    pub context_sub_path: Option<String>,
    /// Dockerfile, relative to the working directory or to the context [default: Dockerfile]
    #[arg(short = 'f', long, value_name = "PATH")]
    pub dockerfile: Option<String>,
    /// Where to push, NAME or NAME:TAG; may be repeated
    #[arg(short, long, value_name = "IMAGE")]
    pub destination: Vec<String>,
    /// Build, but do not push
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub no_push: Option<bool>,
    /// KEY=VALUE, or KEY to take the value from the environment; may be repeated
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub build_arg: Vec<String>,
    /// Stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Look at the Dockerfile and build nothing: apply the lint rules
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub check: bool,
    /// build, check, outline or targets, with `,format=json`: answer instead of building
    #[arg(long, value_name = "METHOD")]
    pub call: Option<String>,
    /// KEY=VALUE put into the image's labels; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// [PLACE:]KEY=VALUE put on the manifest, or on PLACE: manifest-descriptor, index,
    /// index-descriptor; may be repeated
    #[arg(long, value_name = "[PLACE:]KEY=VALUE")]
    pub annotation: Vec<String>,
    /// Equal inputs give equal images: times become 1970 unless SOURCE_DATE_EPOCH says another
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub reproducible: bool,
    /// SOURCE_DATE_EPOCH also limits the times inside new layers
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub rewrite_timestamp: bool,
    /// One layer for everything above the base image
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub single_snapshot: bool,
    /// Print what would be built, and build nothing
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub dryrun: bool,
    /// A tag that exists and may not be moved is no error
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub push_ignore_immutable_tag_errors: bool,
    /// env, google, ecr, acr, gitlab: who is asked for credentials after the config
    /// files; empty: nobody; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub credential_helpers: Vec<String>,
    /// id=NAME[,src=FILE|,env=VARIABLE]; may be repeated
    #[arg(long, value_name = "SECRET")]
    pub secret: Vec<String>,
    /// KEY=VALUE: branch, single-branch, depth, recurse-submodules or insecure-skip-tls of a
    /// context in a git repository; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub git: Vec<String>,
    /// NAME=PLACE: what NAME means in FROM, --from and from=; a place is a directory, a git
    /// repository, the URL of an archive, docker-image://IMAGE or oci-layout://DIR[:TAG]; may
    /// be repeated
    #[arg(long, value_name = "NAME=PLACE")]
    pub build_context: Vec<String>,
    /// default, ID=SOCKET or ID=KEY[,KEY]: agent for RUN --mount=type=ssh; may be repeated
    #[arg(long, value_name = "SSH")]
    pub ssh: Vec<String>,
    /// NAME:ADDRESS in /etc/hosts of RUN; the address may be host-gateway; may be repeated
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,
    /// Size of /dev/shm of RUN [default: 64m]
    #[arg(long, value_name = "BYTES")]
    pub shm_size: Option<String>,
    /// NAME=SOFT[:HARD]: limit of processes of RUN; may be repeated
    #[arg(long, value_name = "LIMIT")]
    pub ulimit: Vec<String>,
    /// Network of every RUN without --network
    #[arg(long, value_enum, default_value = "default")]
    pub network: NetworkKind,
    /// Platform to build for: os/arch[/variant] [default: this machine's]; several, with
    /// commas or repeated, become an image index
    #[arg(
        long,
        alias = "customPlatform",
        visible_alias = "platform",
        value_name = "PLATFORM",
        value_delimiter = ','
    )]
    pub custom_platform: Vec<String>,
    /// Attest how the image was made: true, or mode=min[,builder-id=URL]
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub provenance: Option<String>,
    /// type=provenance[,mode=min]: the same in another spelling; may be repeated
    #[arg(long, value_name = "OPTIONS")]
    pub attest: Vec<String>,
    /// Skip steps whose layers are in the cache [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub cache: Option<bool>,
    /// Repository, or oci:DIR, of a cache shared between machines, asked after the local
    /// one [default: none; with --cache given and pushing: DESTINATION/cache]
    #[arg(long, value_name = "REPOSITORY")]
    pub cache_repo: Option<String>,
    /// Do not push steps to the shared cache
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub no_push_cache: bool,
    /// Directory of the cache
    #[arg(long, env = "YADOKARI_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Remove what was used longest ago when the cache has more, e.g. 20GiB [default: no limit]
    #[arg(long, env = "YADOKARI_CACHE_MAX_SIZE", value_name = "SIZE")]
    pub cache_max_size: Option<String>,
    /// Use and keep nothing that is older, e.g. 336h
    #[arg(long, default_value = super::cache_limits::DEFAULT_TTL, value_name = "DURATION")]
    pub cache_ttl: String,
    /// Also skip COPY and ADD
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub cache_copy_layers: bool,
    /// Also skip RUN and WORKDIR
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub cache_run_layers: bool,
    /// Run every step, whatever the cache holds
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub no_cache: bool,
    /// Run every step of these stages, comma-separated; may be repeated
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub no_cache_filter: Vec<String>,
    /// Tell why steps are not taken from the cache
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub explain: bool,
    /// How changes of a RUN are found
    #[arg(long, alias = "snapshotMode", value_enum, default_value = "log")]
    pub snapshot_mode: Snapshot,
    /// Which root to build in [default: the best that this host allows]
    #[arg(long, value_enum)]
    pub root: Option<RootKind>,
    /// How requests reach the overlay [default: io_uring where the host has it switched on]
    #[arg(long, env = "YADOKARI_FUSE_TRANSPORT", value_enum, default_value = "auto")]
    pub fuse_transport: FuseTransport,
    /// Let the kernel read and write large files of the overlay by itself, where the host allows it
    #[arg(long, env = "YADOKARI_FUSE_PASSTHROUGH", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub fuse_passthrough: bool,
    /// Build in the root of this machine although it seems to be no container
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub force: bool,
    /// Path of the container that is no part of the image; may be repeated [root inplace]
    #[arg(long, value_name = "PATH")]
    pub ignore_path: Vec<String>,
    /// Leave /var/run alone [default: where something is mounted below it; root inplace]
    #[arg(long, alias = "whitelist-var-run", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub ignore_var_run: Option<bool>,
    /// Remove the files of the container before building [root inplace]
    #[arg(long, env = "KANIKO_PRE_CLEANUP", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub pre_cleanup: bool,
    /// Remove the files of the container after building [root inplace]
    #[arg(long, env = "KANIKO_CLEANUP", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub cleanup: bool,
    /// Bring the files of the container back after --cleanup [root inplace]
    #[arg(long, env = "KANIKO_PRESERVE_CONTEXT", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub preserve_context: bool,
    /// Leave the image's files in the container even if every step was cached [root inplace]
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub materialize: bool,
    /// Write the image to an OCI image layout
    #[arg(long, value_name = "DIR")]
    pub oci_layout_path: Option<PathBuf>,
    /// Write the image to a tar file as docker save does
    #[arg(long, alias = "tarPath", value_name = "FILE")]
    pub tar_path: Option<PathBuf>,
    /// Write the manifest's digest to a file
    #[arg(long, value_name = "FILE")]
    pub digest_file: Option<PathBuf>,
    /// Write repository@digest of each destination to a file
    #[arg(long, value_name = "FILE")]
    pub image_name_with_digest_file: Option<PathBuf>,
    /// Write repository:tag@digest of each destination to a file
    #[arg(long, value_name = "FILE")]
    pub image_name_tag_with_digest_file: Option<PathBuf>,
    /// Write digests, names and what became of each step to a JSON file
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
    /// Media types of the image [default: oci]
    #[arg(long, value_enum)]
    pub image_format: Option<ImageFormat>,
    /// Compression of new layers
    #[arg(long, value_enum, default_value = "gzip")]
    pub compression: CompressionKind,
    /// Compression level; 0 or below: the default
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub compression_level: i32,
    /// Plain HTTP for the destinations
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub insecure: bool,
    /// Do not check certificates when pushing and pulling
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub skip_tls_verify: bool,
    /// How registries are reached.
    #[command(flatten)]
    pub pull: Pull,
    /// Do not check before building that pushing is allowed
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub skip_push_permission_check: bool,
    /// Further tries of a failed push request
    #[arg(long, default_value_t = 0)]
    pub push_retry: u32,
    /// Further tries of a failed pull request
    #[arg(long, default_value_t = 0)]
    pub image_download_retry: u32,
    /// What is told.
    #[command(flatten)]
    pub logging: Logging,
    /// Flags of kaniko that need nothing here: unused stages are always skipped, no
    /// layer is ever held in memory, and there is no walk to replace.
    #[command(flatten)]
    pub settled: Settled,
}

/// Flags of kaniko whose purpose is served without them.
#[derive(Debug, Args)]
pub struct Settled {
    /// Unused stages are always skipped
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub skip_unused_stages: Option<bool>,
    /// Layers are streamed
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub compressed_caching: Option<bool>,
    /// Every instruction has its row of history
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub force_build_metadata: Option<bool>,
    /// Nothing is extracted; a pull that breaks goes on where it broke
    #[arg(long, hide = true)]
    pub image_fs_extract_retry: Option<u32>,
    /// Everything of ours is in the cache directory
    #[arg(long, env = "KANIKO_DIR", hide = true)]
    pub kaniko_dir: Option<PathBuf>,
    /// Changes come from the log
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub use_new_run: Option<bool>,
}

/// Which root a build runs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RootKind {
    /// Our FUSE overlay in a private mount namespace.
    Overlay,
    /// The container's own `/`, as kaniko does it.
    Inplace,
}

/// `--fuse-transport`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum FuseTransport {
    /// io_uring where the host has it switched on, else the device.
    Auto,
    /// read(2) and write(2) of `/dev/fuse`.
    Device,
    /// io_uring, or no mount.
    Ring,
    /// The fuser crate, without `O_TMPFILE`: to compare with.
    Fuser,
}

/// `--network`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum NetworkKind {
    /// The builder's own.
    Default,
    /// Loopback alone.
    None,
    /// The builder's own, asked for by name.
    Host,
}

/// `--image-format`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ImageFormat {
    /// OCI media types.
    Oci,
    /// Docker media types.
    Docker,
}

/// `--compression`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum CompressionKind {
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// Flags of kaniko that aren't there yet: naming one is an error that says so.
pub const MISSING: &[&str] = &["bucket"];

/// A boolean as pflag reads it.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("`{other}` is neither true nor false")),
    }
}

/// The first word of a command line that names a flag of kaniko which isn't there.
pub fn missing_flag<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Option<&'static str> {
    for argument in arguments {
        if argument == "--" {
            return None;
        }
        let Some(name) = argument.strip_prefix("--") else { continue };
        let name = name.split('=').next().unwrap_or(name);
        if let Some(found) = MISSING.iter().find(|missing| **missing == name) {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_lines_are_consistent() {
        Yadokari::command().debug_assert();
        Executor::command().debug_assert();
        Warmer::command().debug_assert();
    }

    #[test]
    fn no_flag_is_both_there_and_missing() {
        let command = Executor::command();
        for name in MISSING {
            assert!(
                command.get_arguments().all(|argument| argument.get_long() != Some(name)),
                "--{name}"
            );
        }
        assert_eq!(missing_flag(["--context", "x", "--bucket=y"]), Some("bucket"));
        assert_eq!(missing_flag(["--", "--bucket"]), None);
    }

    #[test]
    fn the_last_of_a_repeated_flag_wins_as_in_kaniko() {
        let words =
            ["executor", "-c", "a", "-d", "x", "--context=b", "--cache", "-d=y", "--cache=0"];
        let build = Executor::try_parse_from(words).expect("valid").build;
        assert_eq!((build.context.as_str(), build.cache), ("b", Some(false)));
        assert_eq!(build.destination, ["x", "y"]);
        let words = ["yadokari", "build", "--tar-path=a", "--tar-path=b"];
        let Ok(Yadokari { command: Command::Build(build) }) = Yadokari::try_parse_from(words)
        else {
            panic!("valid")
        };
        assert_eq!(build.tar_path, Some("b".into()));
    }

    #[test]
    fn booleans_are_read_as_kaniko_reads_them() {
        let parse = |words: &[&str]| {
            Executor::try_parse_from(std::iter::once(&"executor").chain(words))
                .map(|executor| (executor.build.cache, executor.build.no_push))
        };
        assert_eq!(parse(&[]).ok(), Some((None, None)));
        assert_eq!(parse(&["--cache"]).ok(), Some((Some(true), None)));
        assert_eq!(parse(&["--cache=false", "--no-push"]).ok(), Some((Some(false), Some(true))));
        assert_eq!(parse(&["--cache=0", "--no-push=f"]).ok(), Some((Some(false), Some(false))));
        assert!(parse(&["--cache", "true"]).is_err());
        assert!(parse(&["--cache=maybe"]).is_err());
    }
}
