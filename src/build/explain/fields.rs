//! The fields of a step's key as they are kept: by name, short, without secrets.
//!
//! They follow the table in [`super::super::key`]; `every_field_of_the_key_is_kept`
//! pins that a step whose key differs has fields that differ.

use super::mask::Mask;
use crate::build::key::Surroundings;
use crate::plan::step::Action;
use crate::plan::step::CopySource;
use crate::plan::step::CopyStep;
use crate::plan::step::Mount;
use crate::plan::step::MountKind;
use crate::plan::step::Network;
use crate::plan::step::Origin;
use crate::plan::step::RunStep;
use crate::plan::step::Step;
use crate::step::run::Conditions;

/// The instruction's own words.
pub(super) const INSTRUCTION: &str = "instruction";

/// Names of the variables in order: order is part of the key.
pub(super) const ORDER: &str = "order of variables";

/// In front of the name of a field that holds the digest of a list of files.
pub(super) const FILES: &str = "files";

/// A field by name, its value as [`Mask`] keeps it.
pub(super) type Field = (String, String);

/// The fields of `step`, but for the files that it reads.
pub(super) fn of_step(step: &Step, surroundings: &Surroundings, mask: &Mask) -> Vec<Field> {
    let mut fields = Fields { mask, kept: Vec::new() };
    fields.text("platform", &surroundings.platform.to_string());
    if let Some(clamp) = surroundings.clamp {
        fields.text("SOURCE_DATE_EPOCH", &clamp.to_string());
    }
    match &step.action {
        Action::Config | Action::Silent => {}
        Action::Workdir { path, user } => {
            fields.text(INSTRUCTION, &format!("WORKDIR {path}"));
            fields.text("user", user);
        }
        Action::Copy(copy) => fields.copy(copy),
        Action::Run(run) => {
            fields.run(step, run);
            fields.conditions(&surroundings.conditions);
            if !surroundings.unseen.is_empty() {
                fields.text("flags that hide changes", &surroundings.unseen.join(" "));
            }
        }
    }
    fields.kept
}

struct Fields<'a> {
    mask: &'a Mask,
    kept: Vec<Field>,
}

impl Fields<'_> {
    fn text(&mut self, name: &str, value: &str) {
        self.kept.push((name.to_owned(), self.mask.text(value)));
    }

    fn copy(&mut self, copy: &CopyStep) {
        let word = if copy.add { "ADD" } else { "COPY" };
        let mut instruction = word.to_owned();
        for source in &copy.sources {
            instruction.push(' ');
            match source {
                CopySource::Path(path) => instruction.push_str(path),
                CopySource::Inline { name, .. } => instruction.push_str(name),
                CopySource::Http { address, .. } => instruction.push_str(&address.to_string()),
                CopySource::Git { address } => instruction.push_str(&address.to_string()),
            }
        }
        self.text(INSTRUCTION, &format!("{instruction} {}", copy.destination));
        for (name, value) in [("--chown", &copy.chown), ("--chmod", &copy.chmod)] {
            if let Some(value) = value {
                self.text(name, value);
            }
        }
        let flags = [("--link", copy.link), ("--parents", copy.parents)];
        for (name, _) in flags.iter().filter(|(_, given)| *given) {
            self.text(name, "given");
        }
        if let Some(unpack) = copy.unpack {
            self.text("--unpack", if unpack { "true" } else { "false" });
        }
        if copy.origin != Origin::Context {
            self.text("--from", "given");
        }
        if !copy.exclude.is_empty() {
            self.text("--exclude", &copy.exclude.join(" "));
        }
    }

    fn run(&mut self, step: &Step, run: &RunStep) {
        match run.arguments.as_slice() {
            [program, option, script] if option == "-c" => {
                self.text(INSTRUCTION, &format!("RUN {script}"));
                self.text("shell", &format!("{program} {option}"));
            }
            arguments => self.text(INSTRUCTION, &format!("RUN {arguments:?}")),
        }
        if let Some(script) = &run.script {
            self.text("script", &script.body);
        }
        let is_env = |name: &str| {
            let named = |entry: &String| entry.split('=').next() == Some(name);
            step.config.env.iter().any(named)
        };
        for (name, value) in &run.environment {
            let kind = if is_env(name) { "ENV" } else { "ARG" };
            self.kept.push((format!("{kind} {name}"), self.mask.variable(name, value)));
        }
        let names: Vec<&str> = run.environment.iter().map(|(name, _)| name.as_str()).collect();
        self.text(ORDER, &names.join(" "));
        self.text("directory", &run.directory);
        self.text("user", &run.user);
        let network = match run.network {
            Network::Default => "default",
            Network::None => "none",
            Network::Host => "host",
        };
        self.text("network", network);
        let mut described: Vec<(String, String)> = Vec::new();
        for mount in &run.mounts {
            let (name, what) = describe(mount);
            match described.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = format!("{known} and {what}"),
                None => described.push((name, what)),
            }
        }
        let order: Vec<&str> = run.mounts.iter().map(|mount| mount.target.as_str()).collect();
        if order.len() > 1 {
            self.text("order of mounts", &order.join(" "));
        }
        for (name, what) in described {
            self.text(&name, &what);
        }
    }

    fn conditions(&mut self, conditions: &Conditions) {
        let Conditions { hosts, shm_size, limits, hostname } = conditions;
        if let Some(hostname) = hostname {
            self.text("BUILDKIT_SANDBOX_HOSTNAME", hostname);
        }
        if !hosts.is_empty() {
            let names: Vec<&str> = hosts.iter().map(|(name, _)| name.as_str()).collect();
            self.text("--add-host", &names.join(" "));
        }
        if let Some(size) = shm_size {
            self.text("--shm-size", &size.to_string());
        }
        let number = |value: Option<u64>| value.map_or("-1".to_owned(), |value| value.to_string());
        let limits: Vec<String> = limits
            .iter()
            .map(|limit| format!("{}={}:{}", limit.name, number(limit.soft), number(limit.hard)))
            .collect();
        if !limits.is_empty() {
            self.text("--ulimit", &limits.join(" "));
        }
    }
}

fn describe(mount: &Mount) -> (String, String) {
    let name = format!("mount at {}", mount.target);
    let given = |flag: bool, text: &'static str| if flag { text } else { "" };
    let what = match &mount.kind {
        MountKind::Bind { origin: _, source, writable } => {
            format!("bind of /{source}{}", given(*writable, " rw"))
        }
        MountKind::Cache { id, sharing: _, read_only, from, mode, uid, gid } => format!(
            "cache {id}{}{} {mode:04o} {uid}:{gid}",
            given(*read_only, " ro"),
            given(from.is_some(), " filled"),
        ),
        MountKind::Tmpfs { size: Some(size) } => format!("tmpfs of {size} bytes"),
        MountKind::Tmpfs { size: None } => "tmpfs".to_owned(),
        MountKind::Secret { id, file, env, required: _, mode, uid, gid } => {
            let env = env.as_ref().map(|env| format!(" as {env}")).unwrap_or_default();
            format!("secret {id}{}{env} {mode:04o} {uid}:{gid}", given(*file, " as a file"))
        }
        MountKind::Ssh { id, required: _, mode, uid, gid } => {
            format!("ssh {id} {mode:04o} {uid}:{gid}")
        }
    };
    (name, what)
}
