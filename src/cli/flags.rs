//! The command lines, as typed. `request` turns them into what a build is asked for.
//!
//! Names and meanings are kaniko's where it has them. Booleans take `--x`,
//! `--x=true` and `--x=false`; nothing that is known but not there yet is ignored:
//! see [`MISSING`].

use std::path::PathBuf;

use clap::ArgAction;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;

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
    /// Print the version
    Version,
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
    /// Skip steps whose layers are in the cache
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub cache: bool,
    /// Directory of the cache
    #[arg(long, env = "YADOKARI_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Also skip COPY and ADD
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub cache_copy_layers: bool,
    /// Also skip RUN and WORKDIR
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub cache_run_layers: bool,
    /// How changes of a RUN are found
    #[arg(long, alias = "snapshotMode", value_enum, default_value = "log")]
    pub snapshot_mode: Snapshot,
    /// Which root to build in [default: the best that this host allows]
    #[arg(long, value_enum)]
    pub root: Option<RootKind>,
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
    /// Plain HTTP for pulling
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub insecure_pull: bool,
    /// Registry to reach by plain HTTP; may be repeated
    #[arg(long, value_name = "HOST")]
    pub insecure_registry: Vec<String>,
    /// Do not check certificates when pushing and pulling
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub skip_tls_verify: bool,
    /// Do not check certificates when pulling
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub skip_tls_verify_pull: bool,
    /// Registry whose certificate is not checked; may be repeated
    #[arg(long, value_name = "HOST")]
    pub skip_tls_verify_registry: Vec<String>,
    /// HOST=FILE.pem to trust for a registry; may be repeated
    #[arg(long, value_name = "HOST=FILE")]
    pub registry_certificate: Vec<String>,
    /// HOST=CERT,KEY to present to a registry; may be repeated
    #[arg(long, value_name = "HOST=CERT,KEY")]
    pub registry_client_cert: Vec<String>,
    /// Mirror of Docker Hub; may be repeated
    #[arg(long, value_name = "HOST")]
    pub registry_mirror: Vec<String>,
    /// ORIGIN=NEW[;ORIGIN=NEW]: another place to pull from; may be repeated
    #[arg(long, value_name = "MAP")]
    pub registry_map: Vec<String>,
    /// Fail when no mirror answers
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub skip_default_registry_fallback: bool,
    /// Do not check before building that pushing is allowed
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub skip_push_permission_check: bool,
    /// Further tries of a failed push request
    #[arg(long, default_value_t = 0)]
    pub push_retry: u32,
    /// Further tries of a failed pull request
    #[arg(long, default_value_t = 0)]
    pub image_download_retry: u32,
    /// How much is told
    #[arg(short, long, value_enum, default_value = "info")]
    pub verbosity: Verbosity,
    /// How log lines look
    #[arg(long, value_enum, default_value = "color")]
    pub log_format: LogFormat,
    /// Put the time before each line
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub log_timestamp: bool,
    /// Flags of kaniko that need nothing here: unused stages are always skipped,
    /// nothing is left behind that would have to be cleaned up, no layer is ever
    /// held in memory, and there is no walk to replace.
    #[command(flatten)]
    pub settled: Settled,
}

/// Flags of kaniko whose purpose is served without them.
#[derive(Debug, Args)]
pub struct Settled {
    /// Unused stages are always skipped
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub skip_unused_stages: Option<bool>,
    /// Nothing outside the cache directory is written
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub cleanup: Option<bool>,
    /// Nothing outside the cache directory is written
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub pre_cleanup: Option<bool>,
    /// Building outside a container is safe: the host's files aren't touched
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub force: Option<bool>,
    /// Layers are streamed
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub compressed_caching: Option<bool>,
    /// Every instruction has its row of history
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub force_build_metadata: Option<bool>,
    /// Nothing of the host's is mounted at /var/run, so nothing has to be ignored there
    #[arg(long, alias = "whitelist-var-run", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub ignore_var_run: Option<bool>,
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
pub const MISSING: &[&str] = &[
    "bucket",
    "cache-repo",
    "cache-ttl",
    "ignore-path",
    "materialize",
    "no-push-cache",
    "preserve-context",
];

/// A boolean as pflag reads it.
fn boolean(text: &str) -> Result<bool, String> {
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
        assert_eq!(missing_flag(["--context", "x", "--cache-repo=y"]), Some("cache-repo"));
        assert_eq!(missing_flag(["--", "--cache-repo"]), None);
    }

    #[test]
    fn the_last_of_a_repeated_flag_wins_as_in_kaniko() {
        let words =
            ["executor", "-c", "a", "-d", "x", "--context=b", "--cache", "-d=y", "--cache=0"];
        let build = Executor::try_parse_from(words).expect("valid").build;
        assert_eq!((build.context.as_str(), build.cache), ("b", false));
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
        assert_eq!(parse(&[]).ok(), Some((true, None)));
        assert_eq!(parse(&["--cache=false", "--no-push"]).ok(), Some((false, Some(true))));
        assert_eq!(parse(&["--cache=0", "--no-push=f"]).ok(), Some((false, Some(false))));
        assert!(parse(&["--cache", "true"]).is_err());
        assert!(parse(&["--cache=maybe"]).is_err());
    }
}
