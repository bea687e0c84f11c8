//! Steps: instructions placed in a stage, with every variable expanded.

use crate::address::GitAddress;
use crate::address::HttpAddress;
use crate::dockerfile::instruction::{Heredoc, Span};
use crate::oci::digest::Digest;

/// A step of a stage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Where the instruction stands in the Dockerfile; for a trigger out of
    /// ONBUILD, the FROM that fired it.
    pub span: Span,
    /// What the progress shows: the instruction on one line.
    pub title: String,
    /// `created_by` of its history row, in BuildKit's form (`RUN … # buildkit`,
    /// `COPY a b # buildkit`, `WORKDIR /x`, `ENV A=b`, `CMD ["a"]`).
    pub created_by: String,
    /// Image config after the step (`image::ImageConfig::config`, PATH and all).
    pub config: crate::oci::config::ContainerConfig,
    /// `author` after the step (MAINTAINER).
    pub author: Option<String>,
    /// What it does.
    pub action: Action,
}

/// What a step does to the root filesystem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing; only the config changes (ARG: not even that). No layer, a history
    /// row with `empty_layer`.
    Config,
    /// Nothing and no history row either (ONBUILD).
    Silent,
    /// Runs a process.
    Run(RunStep),
    /// Copies files.
    Copy(CopyStep),
    /// Makes the directory and its missing parents, owned by the current user,
    /// mode 0755. A layer even when it is there already, except for `/`.
    Workdir {
        /// Absolute and clean.
        path: String,
        /// User in force, as USER wrote it (may be empty).
        user: String,
    },
}

/// A RUN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunStep {
    /// Program and arguments; the shell is already in front where there is one.
    pub arguments: Vec<String>,
    /// A lone heredoc that starts with `#!`: written 0755 to a read-only mount at
    /// `/dev/pipes/NAME`, which is `arguments[0]`.
    pub script: Option<Heredoc>,
    /// Environment in order: the config's ENV with in-scope ARGs laid over it by
    /// their position; without the undeclared proxy variables (see `proxy`).
    pub environment: Vec<(String, String)>,
    /// Undeclared proxy variables given as build args: in the process's
    /// environment, in no key and no history.
    pub proxy: Vec<(String, String)>,
    /// Working directory, absolute.
    pub directory: String,
    /// User in force, as USER wrote it (may be empty: root).
    pub user: String,
    /// `--mount`s in order, expanded.
    pub mounts: Vec<Mount>,
    /// `--network`.
    pub network: Network,
}

/// The network of a RUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Network {
    /// The builder's own.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The builder's own, asked for by name.
    Host,
}

/// Where files come from that are not in the root being built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The build context.
    Context,
    /// The stage with this index in the plan.
    Stage(usize),
    /// An image.
    Image(String),
    /// The files that `--build-context` gave this name to.
    Named(String),
    /// Nothing: `--from=scratch`.
    Scratch,
}

/// A `RUN --mount`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Where, absolute and clean; never `/`. Empty only for an env-only secret.
    pub target: String,
    /// Which.
    pub kind: MountKind,
}

/// The types of `RUN --mount` with their own keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MountKind {
    /// A view of other files; writes are discarded.
    Bind {
        /// Whose files.
        origin: Origin,
        /// Path in them, clean, relative to their root (empty: the root).
        source: String,
        /// `rw`: writable, discarded afterwards.
        writable: bool,
    },
    /// A directory that survives builds.
    Cache {
        /// `id`, by default the cleaned target.
        id: String,
        /// `sharing`.
        sharing: Sharing,
        /// `ro`.
        read_only: bool,
        /// What it is filled with when new.
        from: Option<(Origin, String)>,
        /// Mode of the directory when new.
        mode: u16,
        /// Owner of the directory when new.
        uid: u32,
        /// Group of the directory when new.
        gid: u32,
    },
    /// An empty filesystem in memory.
    Tmpfs {
        /// Bytes; `None`: no limit of its own.
        size: Option<u64>,
    },
    /// A secret as a file, an environment variable, or both.
    Secret {
        /// Which.
        id: String,
        /// Whether a file is wanted at `target`.
        file: bool,
        /// Environment variable to set.
        env: Option<String>,
        /// Fails when the secret wasn't given.
        required: bool,
        /// Mode of the file.
        mode: u16,
        /// Owner of the file.
        uid: u32,
        /// Group of the file.
        gid: u32,
    },
    /// The socket of an ssh agent.
    Ssh {
        /// Which of `--ssh`.
        id: String,
        /// Fails when it wasn't given.
        required: bool,
        /// Mode of the socket.
        mode: u16,
        /// Owner of the socket.
        uid: u32,
        /// Group of the socket.
        gid: u32,
    },
}

/// How concurrent users of a cache mount get along.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sharing {
    /// All at once.
    #[default]
    Shared,
    /// A directory for each.
    Private,
    /// One after another.
    Locked,
}

/// A COPY or ADD.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyStep {
    /// Whose files.
    pub origin: Origin,
    /// Sources in order.
    pub sources: Vec<CopySource>,
    /// Destination: absolute, cleaned, `.` and WORKDIR resolved; ends in `/` when
    /// the instruction's did (or was `.`), which makes it a directory.
    pub destination: String,
    /// `--chown`, as written after expansion.
    pub chown: Option<String>,
    /// `--chmod`, as written after expansion; checked to be valid.
    pub chmod: Option<String>,
    /// `--link`; already false where `--chmod` cancels it.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude` patterns.
    pub exclude: Vec<String>,
    /// ADD: archives are unpacked (by content), unless `--unpack=false`.
    pub add: bool,
    /// ADD: `--unpack` as given.
    pub unpack: Option<bool>,
}

impl CopyStep {
    /// A plain COPY of `source` (a path in `origin`, `/` for all) to `/`.
    pub fn whole(origin: Origin, source: &str) -> Self {
        Self {
            origin,
            sources: vec![CopySource::Path(source.to_owned())],
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
}

/// One source of a COPY or ADD.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CopySource {
    /// A path or pattern in the origin, as written after expansion.
    Path(String),
    /// ADD of a file on another machine.
    Http {
        /// Where.
        address: HttpAddress,
        /// `--checksum`.
        checksum: Option<Digest>,
    },
    /// ADD of a git repository; flags of the instruction are part of the address.
    Git {
        /// Which, and what of it.
        address: GitAddress,
    },
    /// A file made of a heredoc, mode 0644.
    Inline {
        /// File name.
        name: String,
        /// Bytes, already expanded.
        body: String,
    },
}
