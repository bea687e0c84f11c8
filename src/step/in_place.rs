//! RUN without namespaces: a process in the container's own `/`, as kaniko runs it.
//!
//! What `RUN --mount` asks for is put where it is wanted for the time of the step
//! (`step::stand_in`). Afterwards the disk is read back into the table.

use std::io;
use std::sync::Arc;

use super::Error;
use super::copy::make_directories;
use super::ownership::Accounts;
use super::run::Conditions;
use super::run::Prepared;
use super::run::set;
use super::stand_in::Contents;
use super::stand_in::StandIns;
use crate::overlay::Attributes;
use crate::overlay::Overlay;
use crate::path::RootPath;
use crate::plan::step::Network;
use crate::plan::step::RunStep;
use crate::rootfs::InPlace;
use crate::sandbox;
use crate::sandbox::Cancel;
use crate::sandbox::Exit;
use crate::sandbox::Process;
use crate::sandbox::Record;
use crate::sandbox::Recorder;
use crate::sandbox::Recording;
use crate::sandbox::Runner;
use crate::sandbox::Stream;
use crate::snapshot::Mode;
use crate::tree::Timestamp;

/// Programs whose name in a command says that no_new_privs would spoil it.
const NEED_PRIVILEGES: [&str; 3] = ["sudo", "doas", "pkexec"];

/// Where the script of a RUN with a heredoc and `#!` lies while it runs.
const PIPES: &str = "/.pipes";

/// Where a RUN happens.
pub struct Place<'a> {
    /// The container's root.
    pub root: &'a mut InPlace,
    /// The table it mirrors.
    pub overlay: &'a Arc<Overlay>,
    /// Starts processes.
    pub runner: &'a dyn Runner,
    /// Ends the process when somebody gives up.
    pub cancel: Arc<Cancel>,
    /// How changes are found, if not by recording.
    pub walk: Option<Mode>,
    /// What it finds around it.
    pub conditions: &'a Conditions,
    /// Is told what was done without, and why.
    pub notice: &'a dyn Fn(String),
}

/// How a RUN ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// How its process ended.
    pub exit: Exit,
    /// Some of what it touched where the container has something of its own: in another
    /// root it would be in the layer, here it isn't.
    pub private: Vec<RootPath>,
}

/// Runs `step`. The table then holds what it changed.
///
/// # Errors
/// As [`super::run::run`], and [`Error::Network`].
pub fn run(
    place: &mut Place<'_>,
    step: &RunStep,
    mounts: Vec<Prepared>,
    now: Timestamp,
    output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Ran, Error> {
    if step.network == Network::None {
        return Err(Error::Network);
    }
    let Conditions { hosts, shm_size, limits: _, hostname } = place.conditions;
    if !hosts.is_empty() || shm_size.is_some() || hostname.is_some() {
        (place.notice)(
            "--add-host, --shm-size and BUILDKIT_SANDBOX_HOSTNAME have no effect in the \
             container's own root"
                .to_owned(),
        );
    }
    let user = Accounts::read(&*place.overlay.after())?.user(&step.user)?;
    let attributes = Attributes { mode: 0o755, uid: user.uid, gid: user.gid, mtime: now };
    let directory = RootPath::clamped(step.directory.as_bytes()).unwrap_or_default();
    let mut record = place.walk.is_none();
    let mut spoilt = None;
    if record && user.uid != 0 && names_privileged_program(&step.arguments) {
        record = false;
        spoilt = Some("its command names a set-user-ID program".to_owned());
    }
    loop {
        make_directories(place.overlay, &directory, &attributes)?;
        let mut above = Some(directory.clone());
        while let Some(path) = above {
            above = path.parent();
            place.root.touched(place.overlay, path);
        }
        let written = place.root.enter(place.overlay)?;
        tracing::debug!(?written, "the container's root shows the image");
        let mut process = Process::new("/", step.arguments.iter().cloned());
        process.root = place.root.path().to_owned();
        process.environment = step.environment.clone();
        process.directory.clone_from(&step.directory);
        process.user = user.clone();
        process.limits.clone_from(&place.conditions.limits);
        process.cancel = Some(Arc::clone(&place.cancel));
        let watches = if record { place.root.watches(place.overlay)? } else { None };
        let by = if watches.is_some() { Record::Names } else { Record::All };
        process.in_place = Some(sandbox::InPlace { record: record.then_some(by) });
        for (name, value) in &step.proxy {
            set(&mut process.environment, name, value);
        }
        let tree = place.overlay.after();
        let mut stand_ins = StandIns::new(place.root.disk(), &*tree);
        let placed = put(&mut stand_ins, &mounts, step, &mut process);
        if !process.environment.iter().any(|(name, _)| name == "HOME") {
            process.environment.push(("HOME".to_owned(), user.home.clone()));
        }
        let private: Vec<RootPath> = place.root.outside().private().cloned().collect();
        let outside = place.root.outside().places().filter(|path| !private.contains(path));
        let outside = outside.chain(stand_ins.paths()).cloned().collect();
        let recorder =
            Recorder::new(outside, private, watches).map_err(Error::io("make", "a recorder"))?;
        let recorder = Arc::new(recorder);
        process.recorder = Some(Arc::clone(&recorder));
        stand_ins.ready();
        let ended = placed.and_then(|()| Ok(place.runner.run(&process, output)?));
        let recording = recorder.finish();
        stand_ins.remove().map_err(Error::io("take away", "what was mounted"))?;
        if let Some(program) = &recording.needs_privileges {
            (place.notice)(format!(
                "{program} needs set-user-ID, which the recorder takes away: the step begins \
                 again without it and the whole root is compared"
            ));
            place.root.undo(place.overlay)?;
            record = false;
            spoilt = Some(format!("{program} needs set-user-ID"));
            continue;
        }
        let private = private_of(place, &recording);
        let ended = ended.map(|exit| Ran { exit, private });
        if !ended.as_ref().is_ok_and(|ran| ran.exit.is_success()) {
            // Nothing of a step that failed stays, neither here nor for the next build.
            place.root.undo(place.overlay)?;
            return ended;
        }
        let recorded: Result<&Recording, String> = match spoilt.take() {
            Some(why) => Err(why),
            None if record && !recorder.is_installed() => {
                Err("this container lets no seccomp filter listen".to_owned())
            }
            None => Ok(&recording),
        };
        let report = place.root.read_back(place.overlay, recorded, place.walk)?;
        let (notices, looked_at) = (recording.notices, report.looked_at);
        tracing::debug!(?by, notices, looked_at, "read back");
        if let Some(why) = report.walked {
            (place.notice)(format!("{why}: the whole root was compared"));
        }
        return ended;
    }
}

/// What a step left where the container has something of its own, or changed of the
/// place itself. What is gone again would be in no layer anywhere, if the image has the
/// directory that it was in.
fn private_of(place: &Place<'_>, recording: &Recording) -> Vec<RootPath> {
    let tree = place.overlay.after();
    let node = |path: &RootPath| tree.find(path).ok().flatten();
    let is_directory = |path: &RootPath| {
        node(path).and_then(|node| tree.stat(node).ok()).is_some_and(|stat| stat.is_directory())
    };
    let is_gone = |path: &RootPath| {
        place.root.disk().stat(path, false).is_err_and(|error| error.is_not_found())
    };
    let is_as_elsewhere = |path: &RootPath| {
        if recording.more_private || node(path).is_some() || !is_gone(path) {
            return false;
        }
        let mut above = std::iter::successors(path.parent(), RootPath::parent);
        above.find(|path| !is_gone(path)).is_some_and(|path| is_directory(&path))
    };
    let touched = recording.private.iter().filter(|path| !is_as_elsewhere(path));
    touched.chain(recording.ways.iter().filter(|path| !is_directory(path))).cloned().collect()
}

fn names_privileged_program(arguments: &[String]) -> bool {
    let words = arguments.iter().flat_map(|argument| {
        argument.split(|letter: char| letter.is_whitespace() || ";&|()'\"".contains(letter))
    });
    let names = words.filter_map(|word| word.rsplit('/').next());
    names.into_iter().any(|name| NEED_PRIVILEGES.contains(&name))
}

/// Puts everything that the step wants to see in its place.
fn put(
    stand_ins: &mut StandIns<'_>,
    mounts: &[Prepared],
    step: &RunStep,
    process: &mut Process,
) -> Result<(), Error> {
    let failed = |target: &str| {
        let target = target.to_owned();
        move |error: io::Error| Error::Mount { target, reason: error.to_string() }
    };
    if let Some(script) = &step.script {
        // A container's /dev lets nothing be executed.
        let (usual, target) =
            (format!("/dev/pipes/{}", script.name), format!("{PIPES}/{}", script.name));
        for argument in process.arguments.iter_mut().filter(|argument| **argument == usual) {
            argument.clone_from(&target);
        }
        let contents =
            Contents::File { bytes: script.body.as_bytes(), mode: 0o755, uid: 0, gid: 0 };
        stand_ins.put(&target, contents).map_err(failed(&target))?;
    }
    for mount in mounts {
        match mount {
            Prepared::Bind { source, target, lock, .. } => {
                let contents = match lock {
                    Some(_) => Contents::Kept(source),
                    None => Contents::Moved(source),
                };
                stand_ins.put(target, contents).map_err(failed(target))?;
            }
            Prepared::Tmpfs { target, .. } => {
                stand_ins.put(target, Contents::Directory(0o1777)).map_err(failed(target))?;
            }
            Prepared::Secret { target, value, mode, uid, gid } => {
                let (mode, uid, gid) = (*mode, *uid, *gid);
                let contents = Contents::File { bytes: value.as_bytes(), mode, uid, gid };
                stand_ins.put(target, contents).map_err(failed(target))?;
            }
            Prepared::SecretVariable { name, value } => {
                set(&mut process.environment, name, &String::from_utf8_lossy(value.as_bytes()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_need_privileges_are_found_in_a_command() {
        let command =
            |text: &str| names_privileged_program(&["/bin/sh".into(), "-c".into(), text.into()]);
        assert!(command("sudo apt-get update"));
        assert!(command("cd /x && (/usr/bin/sudo -n true)"));
        assert!(!command("echo pseudo sudoers"));
    }
}
