//! The sources of `RUN --mount`: views of other files, cache directories, secrets,
//! sockets of ssh agents.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use super::Error;
use super::Progress;
use super::progress::StepNumber;
use super::shared::Files;
use super::shared::Shared;
use crate::agent::Permissions;
use crate::agent::Socket;
use crate::path::RootPath;
use crate::plan::step::CopyStep;
use crate::plan::step::Mount;
use crate::plan::step::MountKind;
use crate::plan::step::RunStep;
use crate::plan::step::Sharing;
use crate::rootfs::Root;
use crate::sandbox::SecretBytes;
use crate::step;
use crate::step::run::Prepared;
use crate::store::mounts::MountId;
use crate::store::mounts::MountLock;
use crate::tree::resolve::resolve;

/// How often a cache mount in use is asked for again. Polled, so that an interrupt
/// ends the wait.
const PATIENCE: Duration = Duration::from_millis(20);

/// Mounted views that a step uses; unmounted when dropped.
#[derive(Default)]
pub(super) struct Views {
    roots: Vec<Root>,
    sockets: Vec<Socket>,
}

/// Prepares the mounts of `run`; `binds` are the files behind those that show some,
/// in order.
///
/// # Errors
/// A required secret that wasn't given, a source that isn't there, and those of
/// the disk.
pub(super) fn prepare(
    shared: &Shared<'_>,
    run: &RunStep,
    number: StepNumber,
    binds: &[Files],
    views: &mut Views,
) -> Result<Vec<Prepared>, Error> {
    let mut binds = binds.iter();
    let mut prepared = Vec::new();
    // Where in `prepared` a cache mount belongs.
    let mut waiting: Vec<(usize, &Mount, Option<&Files>)> = Vec::new();
    for mount in &run.mounts {
        match &mount.kind {
            MountKind::Bind { source, writable, .. } => {
                let files = binds.next().expect("one for each bind");
                let (source, is_directory) = view(shared, files, source, views)?;
                prepared.push(Prepared::Bind {
                    source,
                    is_directory,
                    target: mount.target.clone(),
                    read_only: !writable,
                    lock: None,
                });
            }
            MountKind::Cache { from, .. } => {
                let files = from.as_ref().and_then(|_| binds.next());
                waiting.push((prepared.len(), mount, files));
                prepared.push(Prepared::Tmpfs { target: mount.target.clone(), size: Some(0) });
            }
            MountKind::Tmpfs { size } => {
                prepared.push(Prepared::Tmpfs { target: mount.target.clone(), size: *size });
            }
            MountKind::Secret { id, file, env, required, mode, uid, gid } => {
                let Some(value) = shared.secret(id)? else {
                    if *required {
                        return Err(step::Error::MissingSecret(id.clone()).into());
                    }
                    continue;
                };
                if *file {
                    prepared.push(Prepared::Secret {
                        target: mount.target.clone(),
                        value: SecretBytes::new(value.clone()),
                        mode: *mode,
                        uid: *uid,
                        gid: *gid,
                    });
                }
                if let Some(name) = env {
                    prepared.push(Prepared::SecretVariable {
                        name: name.clone(),
                        value: SecretBytes::new(value),
                    });
                }
            }
            MountKind::Ssh { id, required, mode, uid, gid } => {
                let Some((agent, raw)) = shared.ssh_socket(id)? else {
                    if *required {
                        return Err(step::Error::MissingSsh(id.clone()).into());
                    }
                    continue;
                };
                let permissions = Permissions { mode: *mode, uid: *uid, gid: *gid };
                let socket = Socket::listen(&shared.scratch("ssh")?, &agent, raw, permissions)?;
                prepared.push(Prepared::Bind {
                    source: socket.path().to_owned(),
                    is_directory: false,
                    target: mount.target.clone(),
                    read_only: false,
                    lock: None,
                });
                views.sockets.push(socket);
            }
        }
    }
    // In the order of their keys, not of the instruction: two steps that want the same
    // two mounts never wait for each other.
    waiting.sort_by_cached_key(|(_, mount, _)| mount_key(mount));
    let mut locked = Locked::default();
    for (at, mount, files) in waiting {
        prepared[at] = cache_directory(shared, number, mount, files, &mut locked)?;
    }
    Ok(prepared)
}

/// The key of a cache mount; equal ones that want it alone come first.
fn mount_key(mount: &Mount) -> Option<(String, bool)> {
    let MountKind::Cache { id, mode, uid, gid, sharing, .. } = &mount.kind else { return None };
    let which = MountId { id: id.clone(), mode: *mode, uid: *uid, gid: *gid };
    Some((which.key(), *sharing == Sharing::Shared))
}

/// Mounts a view of `files` and gives the path of `source` in it. Whatever a
/// process writes there goes away with the view.
fn view(
    shared: &Shared<'_>,
    files: &Files,
    source: &str,
    views: &mut Views,
) -> Result<(PathBuf, bool), Error> {
    let scratch = shared.scratch("view")?;
    let mut root = match files {
        Files::Layers { lowers, .. } => Root::new(lowers.clone(), scratch)?,
        Files::Context(_) => {
            let root = Root::new(Vec::new(), scratch)?;
            let copy = CopyStep::whole(crate::plan::step::Origin::Context, "/");
            files.with_source(|tree| {
                let selection = step::select::select(tree, &copy)?;
                step::copy::copy(root.overlay(), &copy, tree, &selection, None, shared.now())
            })?;
            root
        }
    };
    let path = RootPath::clamped(source.as_bytes()).unwrap_or_default();
    let found = resolve(&*root.overlay().after(), &path, true)
        .map_err(step::Error::io("look up", &path))?;
    let top = if shared.is_in_place() {
        shared.unpack(root.overlay())?
    } else {
        shared.mount(&mut root)?
    };
    let mounted = top.join(found.path.as_path());
    let is_directory = match found.node {
        None => true,
        Some(node) => {
            let stat = root.overlay().after().stat(node);
            stat.map_err(step::Error::io("look up", &path))?.is_directory()
        }
    };
    views.roots.push(root);
    Ok((mounted, is_directory))
}

/// Cache mounts of one RUN that are locked already, by key and number.
#[derive(Default)]
struct Locked {
    held: BTreeMap<String, (PathBuf, File)>,
}

/// The directory of a cache mount, locked as its sharing asks.
fn cache_directory(
    shared: &Shared<'_>,
    number: StepNumber,
    mount: &Mount,
    files: Option<&Files>,
    locked: &mut Locked,
) -> Result<Prepared, Error> {
    let MountKind::Cache { id, sharing, read_only, mode, uid, gid, from } = &mount.kind else {
        return Err(Error::Panic);
    };
    let which = MountId { id: id.clone(), mode: *mode, uid: *uid, gid: *gid };
    let key = which.key();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Error::CacheMount { path, source }
    };
    // The same directory at a second place of this RUN: waiting for ourselves would
    // be forever.
    let known = locked.held.get(&key).filter(|_| *sharing != Sharing::Private);
    let (directory, lock) = match known {
        Some((directory, lock)) => {
            (directory.clone(), lock.try_clone().map_err(failed(directory))?)
        }
        None => {
            let taken = take(shared, number, &which, *sharing)?;
            let again = taken.lock.try_clone().map_err(failed(&taken.directory))?;
            locked.held.insert(key, (taken.directory.clone(), again));
            (taken.directory, taken.lock)
        }
    };
    if !directory.exists() {
        fill(shared, &directory, mount, files, from.as_ref().map(|(_, path)| path.as_str()))?;
    }
    Ok(Prepared::Bind {
        source: directory,
        is_directory: true,
        target: mount.target.clone(),
        read_only: *read_only,
        lock: Some(lock),
    })
}

/// Locks a directory of a cache mount: waits for others, visibly, or takes a further
/// directory where the sharing is private.
fn take(
    shared: &Shared<'_>,
    step: StepNumber,
    which: &MountId,
    sharing: Sharing,
) -> Result<MountLock, Error> {
    let mut number = 0;
    let mut told = false;
    loop {
        let alone = sharing != Sharing::Shared;
        if let Some(locked) = shared.workshop.store.try_mount(which, number, alone)? {
            return Ok(locked);
        }
        if sharing == Sharing::Private {
            number += 1;
            continue;
        }
        if !told {
            let id = &which.id;
            let text = format!("#{} waiting for cache mount {id}: another step uses it", step.0);
            shared.observer.observe(Progress::Note(text));
            told = true;
        }
        shared.check_interrupted()?;
        std::thread::sleep(PATIENCE);
    }
}

/// Makes a cache directory, with what `from` says in it.
fn fill(
    shared: &Shared<'_>,
    directory: &Path,
    mount: &Mount,
    files: Option<&Files>,
    source: Option<&str>,
) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let MountKind::Cache { mode, uid, gid, .. } = &mount.kind else { return Err(Error::Panic) };
    let failed = |source: io::Error| Error::CacheMount { path: directory.to_owned(), source };
    // In this build's scratch: what a kill leaves of it is nobody's cache.
    let fresh = shared.scratch("cache-mount")?;
    if let (Some(files), Some(source)) = (files, source) {
        let mut views = Views::default();
        let (view, _) = view(shared, files, source, &mut views)?;
        copy_tree(&view, &fresh).map_err(failed)?;
    }
    std::os::unix::fs::chown(&fresh, Some(*uid), Some(*gid)).map_err(failed)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(u32::from(*mode))).map_err(failed)?;
    use rustix::fs::CWD;
    // Never over another, be it empty: somebody may have it mounted already.
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    let renamed = match rustix::fs::renameat_with(CWD, &fresh, CWD, directory, flags) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(&fresh, directory),
        other => other.map_err(Into::into),
    };
    match renamed {
        // Somebody else was first; with sharing that is as good.
        Err(_) if directory.exists() => {
            let _ = fs::remove_dir_all(&fresh);
            Ok(())
        }
        other => other.map_err(failed),
    }
}

/// Copies the contents of a directory with owners and modes.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let target = to.join(entry.file_name());
        if metadata.is_dir() {
            fs::create_dir(&target)?;
            copy_tree(&entry.path(), &target)?;
        } else if metadata.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
        } else if metadata.is_file() {
            fs::copy(entry.path(), &target)?;
        } else {
            continue;
        }
        std::os::unix::fs::lchown(&target, Some(metadata.uid()), Some(metadata.gid()))?;
        if !metadata.is_symlink() {
            fs::set_permissions(&target, metadata.permissions())?;
        }
    }
    Ok(())
}
