//! The sources of `RUN --mount`: views of other files, cache directories, secrets,
//! sockets of ssh agents.

use std::fs;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use super::Error;
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
use crate::tree::resolve::resolve;

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
    binds: &[Files],
    views: &mut Views,
) -> Result<Vec<Prepared>, Error> {
    let mut binds = binds.iter();
    let mut prepared = Vec::new();
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
                prepared.push(cache_directory(shared, mount, files)?);
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
    Ok(prepared)
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
    let mounted = root.mount()?.join(found.path.as_path());
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

/// The directory of a cache mount, locked as its sharing asks.
fn cache_directory(
    shared: &Shared<'_>,
    mount: &Mount,
    files: Option<&Files>,
) -> Result<Prepared, Error> {
    let MountKind::Cache { id, sharing, read_only, mode, uid, gid, from } = &mount.kind else {
        return Err(Error::Panic);
    };
    // Another owner or mode is another directory, as in BuildKit.
    let mut hasher = yadokari_cache::KeyHasher::new("cache mount");
    hasher.field("id", id.as_bytes());
    hasher.number("mode", u64::from(*mode));
    hasher.number("uid", u64::from(*uid));
    hasher.number("gid", u64::from(*gid));
    let key = hasher.finish();
    let parent = shared.workshop.store.cache_mount_dir(&key.to_string())?;
    let failed = |path: PathBuf| move |source: io::Error| Error::CacheMount { path, source };
    for number in 0_u32.. {
        let lock_path = parent.join(format!("{number}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed(lock_path.clone()))?;
        match sharing {
            Sharing::Shared => lock.lock_shared().map_err(failed(lock_path))?,
            Sharing::Locked => lock.lock().map_err(failed(lock_path))?,
            Sharing::Private => match lock.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => continue,
                Err(fs::TryLockError::Error(error)) => return Err(failed(lock_path)(error)),
            },
        }
        let directory = parent.join(number.to_string());
        if !directory.exists() {
            fill(shared, &directory, mount, files, from.as_ref().map(|(_, path)| path.as_str()))?;
        }
        return Ok(Prepared::Bind {
            source: directory,
            is_directory: true,
            target: mount.target.clone(),
            read_only: *read_only,
            lock: Some(lock),
        });
    }
    Err(Error::Panic)
}

/// Makes a cache directory, with what `from` says in it.
fn fill(
    shared: &Shared<'_>,
    directory: &std::path::Path,
    mount: &Mount,
    files: Option<&Files>,
    source: Option<&str>,
) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let MountKind::Cache { mode, uid, gid, .. } = &mount.kind else { return Err(Error::Panic) };
    let failed = |source: io::Error| Error::CacheMount { path: directory.to_owned(), source };
    let fresh = directory.with_extension(format!("new-{}", std::process::id()));
    fs::create_dir_all(&fresh).map_err(failed)?;
    if let (Some(files), Some(source)) = (files, source) {
        let mut views = Views::default();
        let (view, _) = view(shared, files, source, &mut views)?;
        copy_tree(&view, &fresh).map_err(failed)?;
    }
    fs::set_permissions(&fresh, fs::Permissions::from_mode(u32::from(*mode))).map_err(failed)?;
    std::os::unix::fs::chown(&fresh, Some(*uid), Some(*gid)).map_err(failed)?;
    match fs::rename(&fresh, directory) {
        // Somebody else was first; with sharing that is as good.
        Err(_) if directory.exists() => {
            let _ = fs::remove_dir_all(&fresh);
            Ok(())
        }
        other => other.map_err(failed),
    }
}

/// Copies the contents of a directory with owners and modes.
fn copy_tree(from: &std::path::Path, to: &std::path::Path) -> io::Result<()> {
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
