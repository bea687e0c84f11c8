//! The key of a step: everything that decides what its layer holds.
//!
//! Three keys are made of the same fields:
//!
//! - the *hint* hashes the step by itself, without what it stands on;
//! - the *definition* key chains hints: parent's definition key and hint. It is
//!   known before anything exists;
//! - the *content* key is made of the layer chain below and the hint. A step that
//!   ran again but made the same layer doesn't change the content keys of its
//!   children, so they hit though their definition keys changed.
//!
//! What enters (each row is pinned by a test below, in both directions):
//!
//! | field | RUN | COPY, ADD | WORKDIR | why |
//! | --- | --- | --- | --- | --- |
//! | kind of action | yes | yes | yes | |
//! | platform | yes | yes | yes | a tree means something else elsewhere |
//! | arguments, shell in front | yes | - | - | |
//! | script of a lone `#!` heredoc | yes | - | - | |
//! | environment, in order | yes | - | - | the process can see all of it |
//! | directory, user | yes | - | yes | |
//! | network | yes | - | - | |
//! | mounts: type, target, options | yes | - | - | |
//! | bind mounts: content of the source, mode and owner of its top | yes | - | - | see `step::select` |
//! | secret, ssh and cache ids | yes | - | - | |
//! | names of `--add-host`, `--shm-size`, `--ulimit`, name of the host, where given | yes | - | - | as BuildKit's |
//! | ADD of a URL: file name and SHA-256 | - | yes | - | its host doesn't matter |
//! | ADD of a repository: commit, subdirectory, submodules | - | yes | - | see `build::remote` |
//! | destination, `--chown`, `--chmod`, `--link`, `--parents` | - | yes | - | |
//! | names, types, modes, contents of what is taken | - | yes | - | see `step::select`; which names are one file, too |
//! | ADD or COPY, `--unpack` | - | yes | - | archives are unpacked or not |
//! | `--snapshot-mode=redo` or `time`, `--ignore-path` in place | yes | - | - | the layer may lack something |
//! | clamp of times (`SOURCE_DATE_EPOCH`) | yes | yes | yes | it is in the layer's bytes |
//!
//! Values of these fields, secrets taken out, are kept to explain a later miss: a row
//! that is added here belongs into `build/explain/fields.rs` too.
//!
//! What deliberately does not: modification times and order of files (a checkout
//! sets them anew), owners in the build context (they are reset), undeclared proxy
//! variables (they differ by machine), values of secrets and what an ssh agent holds (they rotate, and must
//! not leave a trace), addresses of `--add-host`, labels, contents of cache mounts, `--snapshot-mode=full`, compression
//! and number of threads (none changes the tree), the text of the instruction
//! (a comment or a line break is no change).

use yadokari_cache::Key;
use yadokari_cache::KeyHasher;

use crate::oci::digest::DiffId;
use crate::oci::platform::Platform;
use crate::plan::step::Action;
use crate::plan::step::CopyStep;
use crate::plan::step::Mount;
use crate::plan::step::MountKind;
use crate::plan::step::Network;
use crate::plan::step::Origin;
use crate::plan::step::RunStep;
use crate::step::run::Conditions;

/// The keys of one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepKeys {
    /// The step by itself.
    pub hint: Key,
    /// Chained over the parents' definitions.
    pub definition: Key,
}

/// What is the same for all steps of a stage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Surroundings {
    /// Platform of the stage.
    pub platform: Platform,
    /// Latest time that a layer entry may carry, in seconds since the epoch.
    pub clamp: Option<i64>,
    /// What every RUN finds around it.
    pub conditions: Conditions,
    /// Flags by which changes of a RUN are not looked for everywhere.
    pub unseen: Vec<String>,
}

/// The definition key that a stage starts from: the layers of its base.
pub fn of_base(layers: &[DiffId]) -> Key {
    let mut hasher = KeyHasher::new("base");
    hasher.list("layers", layers.iter().map(|layer| layer.as_bytes().as_slice()));
    hasher.finish()
}

/// The keys of a step that stands on `parent`. `contents` are the digests of what
/// it reads: the selection of a COPY or ADD, the source of each bind mount, in order.
pub fn of_step(
    parent: &Key,
    action: &Action,
    contents: &[Key],
    surroundings: &Surroundings,
) -> StepKeys {
    let mut hasher = KeyHasher::new("step");
    hasher.field("platform", surroundings.platform.to_string().as_bytes());
    if let Some(clamp) = surroundings.clamp {
        hasher.field("clamp", &clamp.to_le_bytes());
    }
    match action {
        Action::Config | Action::Silent => {
            hasher.field("action", b"none");
        }
        Action::Workdir { path, user } => {
            hasher.field("action", b"workdir");
            hasher.field("path", path.as_bytes());
            hasher.field("user", user.as_bytes());
        }
        Action::Copy(copy) => add_copy(&mut hasher, copy),
        Action::Run(run) => {
            add_run(&mut hasher, run);
            add_conditions(&mut hasher, &surroundings.conditions);
            if !surroundings.unseen.is_empty() {
                hasher.list("unseen", surroundings.unseen.iter().map(|flag| flag.as_bytes()));
            }
        }
    }
    hasher.list("contents", contents.iter().map(|key| key.as_bytes().as_slice()));
    let hint = hasher.finish();
    let mut hasher = KeyHasher::new("definition");
    hasher.field("parent", parent.as_bytes());
    hasher.field("hint", hint.as_bytes());
    StepKeys { hint, definition: hasher.finish() }
}

/// The content key of a step on the layers `chain`, bottom first.
pub fn on_chain(chain: &[DiffId], hint: &Key) -> Key {
    let mut hasher = KeyHasher::new("content");
    hasher.list("chain", chain.iter().map(|layer| layer.as_bytes().as_slice()));
    hasher.field("hint", hint.as_bytes());
    hasher.finish()
}

fn add_copy(hasher: &mut KeyHasher, copy: &CopyStep) {
    hasher.field("action", if copy.add { b"add" } else { b"copy" });
    hasher.field("destination", copy.destination.as_bytes());
    hasher.optional("chown", copy.chown.as_deref().map(str::as_bytes));
    hasher.optional("chmod", copy.chmod.as_deref().map(str::as_bytes));
    hasher.number("link", u64::from(copy.link));
    hasher.number("parents", u64::from(copy.parents));
    hasher.number("unpack", copy.unpack.map_or(2, u64::from));
    // Owners of the context are reset, those of a stage are kept.
    let resets = matches!(copy.origin, Origin::Context | Origin::Named(_));
    hasher.number("context", u64::from(resets));
}

fn add_run(hasher: &mut KeyHasher, run: &RunStep) {
    hasher.field("action", b"run");
    hasher.list("arguments", run.arguments.iter().map(|argument| argument.as_bytes()));
    if let Some(script) = &run.script {
        hasher.field("script", script.body.as_bytes());
    }
    hasher.list(
        "environment",
        run.environment.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]),
    );
    hasher.field("directory", run.directory.as_bytes());
    hasher.field("user", run.user.as_bytes());
    hasher.number(
        "network",
        match run.network {
            Network::Default => 0,
            Network::None => 1,
            Network::Host => 2,
        },
    );
    for mount in &run.mounts {
        add_mount(hasher, mount);
    }
}

/// Only what was asked for: without flags a RUN has the key it always had. Addresses of
/// hosts are left out as in BuildKit; they differ by machine.
fn add_conditions(hasher: &mut KeyHasher, conditions: &Conditions) {
    let Conditions { hosts, shm_size, limits, hostname } = conditions;
    if !hosts.is_empty() {
        hasher.list("hosts", hosts.iter().map(|(name, _)| name.as_bytes()));
    }
    if let Some(size) = shm_size {
        hasher.number("shm size", *size);
    }
    for limit in limits {
        hasher.field("limit", limit.name.as_bytes());
        for value in [limit.soft, limit.hard] {
            hasher.optional("value", value.map(u64::to_le_bytes).as_ref().map(|value| &value[..]));
        }
    }
    if let Some(hostname) = hostname {
        hasher.field("hostname", hostname.as_bytes());
    }
}

fn add_mount(hasher: &mut KeyHasher, mount: &Mount) {
    hasher.field("mount", mount.target.as_bytes());
    match &mount.kind {
        MountKind::Bind { origin: _, source: _, writable } => {
            hasher.number("bind writable", u64::from(*writable));
        }
        MountKind::Cache { id, sharing: _, read_only, from, mode, uid, gid } => {
            hasher.field("cache", id.as_bytes());
            hasher.number("cache read only", u64::from(*read_only));
            hasher.number("cache filled", u64::from(from.is_some()));
            hasher.number("cache mode", u64::from(*mode));
            hasher.number("cache uid", u64::from(*uid));
            hasher.number("cache gid", u64::from(*gid));
        }
        MountKind::Tmpfs { size } => {
            hasher.optional("tmpfs", size.map(u64::to_le_bytes).as_ref().map(|size| &size[..]));
        }
        MountKind::Secret { id, file, env, required: _, mode, uid, gid } => {
            hasher.field("secret", id.as_bytes());
            hasher.number("secret file", u64::from(*file));
            hasher.optional("secret env", env.as_deref().map(str::as_bytes));
            hasher.number("secret mode", u64::from(*mode));
            hasher.number("secret uid", u64::from(*uid));
            hasher.number("secret gid", u64::from(*gid));
        }
        MountKind::Ssh { id, required: _, mode, uid, gid } => {
            hasher.field("ssh", id.as_bytes());
            hasher.number("ssh mode", u64::from(*mode));
            hasher.number("ssh uid", u64::from(*uid));
            hasher.number("ssh gid", u64::from(*gid));
        }
    }
}

#[cfg(test)]
mod tests;
