//! Which root RUN steps get: the strongest that this host allows, found by trying.

use std::path::Path;
use std::path::PathBuf;

use super::flags::Build;
use super::flags::RootKind;
use crate::build::Request;
use crate::build::request::RootChoice;
use crate::build::request::SecretSource;
use crate::overlay;
use crate::overlay::Transport;
use crate::rootfs::in_place::Options;
use crate::rootfs::outside::Exceptions;
use crate::rootfs::outside::signs_of_a_container;
use crate::sandbox;
use crate::sandbox::Ids;

/// kaniko's directory, where the image has it.
pub(super) const KANIKO: &str = "/kaniko";

/// What was chosen, and what is to be told about it.
pub(super) struct Chosen {
    pub(super) root: RootChoice,
    /// As `--root` calls it.
    pub(super) name: &'static str,
    /// In the line that says which root it is.
    pub(super) why: String,
    /// Told instead, if no root works: a build without RUN needs none.
    pub(super) warning: Option<String>,
}

/// Chooses the root for a build. To be called before there is a second thread: the
/// overlay needs a mount namespace of its own.
///
/// # Errors
/// Why the root that `--root` names can't be had.
pub(super) fn choose(
    flags: &Build,
    request: &Request,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Chosen, String> {
    match flags.root {
        Some(RootKind::Overlay) => mounted(request.fuse_transport)
            .or_else(|why| in_user_namespace(request.fuse_transport, &why, |_| true))
            .map_err(|why| {
                format!(
                    "--root=overlay is impossible here: {why}; `yadokari doctor` tells what to add"
                )
            }),
        Some(RootKind::Inplace) => in_place(flags, request, variable, None)
            .map_err(|why| format!("--root=inplace is refused: {why}")),
        None => climb(flags, request, variable),
    }
}
/// The strongest root there is. With one id alone owners can't be given, so that comes
/// after the container's own root, where they can.
fn climb(
    flags: &Build,
    request: &Request,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Chosen, String> {
    let no_overlay = match mounted(request.fuse_transport)
        .or_else(|why| in_user_namespace(request.fuse_transport, &why, |ids| !ids.is_single()))
    {
        Ok(chosen) => return Ok(chosen),
        Err(why) => why,
    };
    // A root that isn't kaniko's image is not replaced without being asked for: it may
    // be somebody's workshop.
    let ours = if kaniko(variable).is_dir() {
        Ok(())
    } else {
        Err(format!("there is no {KANIKO} here; --root=inplace does it nevertheless"))
    };
    let no_place = match ours.and_then(|()| in_place(flags, request, variable, Some(&no_overlay))) {
        Ok(chosen) => return Ok(chosen),
        Err(why) => why,
    };
    in_user_namespace(request.fuse_transport, &no_place, |_| true).or_else(|_| {
        Ok(Chosen {
            root: RootChoice::Overlay,
            name: "overlay",
            why: String::new(),
            warning: Some(format!(
                "no root for RUN steps: not overlay ({no_overlay}), not inplace ({no_place})"
            )),
        })
    })
}

/// The overlay in a mount namespace of ours.
fn mounted(transport: Transport) -> Result<Chosen, String> {
    overlay::open_device().map_err(|error| error.to_string())?;
    sandbox::isolate_mounts().map_err(|error| error.to_string())?;
    Ok(Chosen {
        root: RootChoice::Overlay,
        name: "overlay",
        why: format!("{} in a private mount namespace", fuse(transport)),
        warning: None,
    })
}

/// The overlay in a user namespace of ours, because not `without` one; if `accept` likes
/// the ids that it has.
fn in_user_namespace(
    transport: Transport,
    without: &str,
    accept: impl FnOnce(&Ids) -> bool,
) -> Result<Chosen, String> {
    if overlay::open_device().is_err() {
        return Err(without.to_owned());
    }
    let besides = |why: String| format!("{without}; nor in a user namespace: {why}");
    // Tried elsewhere before: there is no way back.
    let ids = sandbox::rehearse(probe_user_namespace).map_err(besides)?;
    if !accept(&ids) {
        return Err(besides(format!("it has {ids}")));
    }
    let ids = sandbox::enter_user_namespace().map_err(|error| besides(error.to_string()))?;
    Ok(Chosen {
        root: RootChoice::Overlay,
        name: "overlay",
        why: format!("{} in a user namespace of our own, which has {ids}", fuse(transport)),
        warning: None,
    })
}

/// Enters a user namespace and mounts an overlay in it; not to be undone.
pub(super) fn probe_user_namespace() -> Result<Ids, String> {
    let ids = sandbox::enter_user_namespace().map_err(|error| error.to_string())?;
    overlay::try_mount().map_err(|error| error.to_string())?;
    Ok(ids)
}

/// How FUSE will be spoken, as far as can be known before something is mounted.
fn fuse(transport: Transport) -> &'static str {
    match transport {
        Transport::Auto if overlay::is_ring_switched_on() => "FUSE over io_uring",
        Transport::Auto | Transport::Device => "FUSE",
        Transport::Ring => "FUSE over io_uring",
        Transport::Fuser => "FUSE by the fuser crate",
    }
}

/// Why the root of this machine may not be used; `None` if it may.
pub(super) fn refusal(
    force: bool,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("files of an image have many owners, and only root can make them");
    }
    if is_read_only() {
        return Some("the container's root is read-only");
    }
    if !force && signs_of_a_container(variable).is_none() {
        return Some(
            "this seems to be no container, and its files would be replaced by the image's: \
             --force does it nevertheless",
        );
    }
    None
}

fn is_read_only() -> bool {
    rustix::fs::statvfs("/")
        .is_ok_and(|seen| seen.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

fn kaniko(variable: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    variable("KANIKO_DIR").map_or_else(|| PathBuf::from(KANIKO), PathBuf::from)
}

fn in_place(
    flags: &Build,
    request: &Request,
    variable: &dyn Fn(&str) -> Option<String>,
    instead: Option<&str>,
) -> Result<Chosen, String> {
    if let Some(why) = refusal(flags.force, variable) {
        return Err(why.to_owned());
    }
    let kaniko = kaniko(variable);
    let mut own: Vec<PathBuf> = vec![kaniko.clone()];
    own.extend(request.secrets.iter().filter_map(|secret| match &secret.source {
        SecretSource::File(path) => Some(path.clone()),
        SecretSource::Environment(_) => None,
    }));
    own.extend(variable("DOCKER_CONFIG").map(PathBuf::from));
    own.extend([&request.oci_layout, &request.tar].into_iter().flatten().cloned());
    let state = if kaniko.is_dir() { kaniko } else { request.cache_dir.join("root") };
    let options = Options {
        exceptions: Exceptions {
            own: own.into_iter().filter(|path| path != Path::new("/")).collect(),
            ignored: flags.ignore_path.clone(),
            ignore_var_run: flags.ignore_var_run,
        },
        pre_cleanup: flags.pre_cleanup,
        cleanup: flags.cleanup,
        preserve: flags.preserve_context,
        materialize: flags.materialize,
    };
    let because = instead.map_or_else(|| "as asked".to_owned(), |why| format!("no overlay: {why}"));
    Ok(Chosen {
        root: RootChoice::InPlace { options, state },
        name: "inplace",
        why: format!(
            "the container's own /, without isolation: RUN can read credentials, cache and \
             context ({because})"
        ),
        warning: None,
    })
}
