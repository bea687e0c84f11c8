//! `yadokari cache export-mount` and `import-mount`: a cache mount as a tar.

use std::fs::File;
use std::io;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::IsTerminal;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::store;
use crate::store::Store;
use crate::store::mounts::MountId;
use crate::store::mounts::MountLock;
use crate::store::mounts::StoredMount;
use crate::store::mounts::archive;

/// How often a mount in use is asked for again.
const PATIENCE: Duration = Duration::from_millis(50);

/// Which of several cache mounts of one id.
#[derive(Debug, Args)]
pub struct Variant {
    /// Mode that the Dockerfile gives the mount, in octal
    #[arg(long, value_name = "MODE", value_parser = octal)]
    pub mode: Option<u16>,
    /// Owner that the Dockerfile gives the mount
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
    /// Group that the Dockerfile gives the mount
    #[arg(long, value_name = "GID")]
    pub gid: Option<u32>,
}

/// Arguments of `yadokari cache export-mount`.
#[derive(Debug, Args)]
pub struct ExportMount {
    /// `id=` of the mount, by default its target
    pub id: String,
    /// File to write, `-` for standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    /// Which of several
    #[command(flatten)]
    pub variant: Variant,
}

/// Arguments of `yadokari cache import-mount`.
#[derive(Debug, Args)]
pub struct ImportMount {
    /// `id=` of the mount, by default its target
    pub id: String,
    /// Tar to read, plain or compressed; `-` for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub input: PathBuf,
    /// What to make of it, instead of what the archive says
    #[command(flatten)]
    pub variant: Variant,
}

/// Why a mount can't be moved.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Archive(#[from] archive::Error),
    #[error("cannot open {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("there is no cache mount `{0}`: ids are those of `id=`, or the mount's target")]
    NoSuchMount(String),
    #[error(
        "there are several cache mounts `{id}`, choose one by --mode, --uid and --gid: {found}"
    )]
    Several { id: String, found: String },
    #[error("standard output is a terminal: give -o FILE")]
    Terminal,
    #[error("standard input is a terminal: name a FILE")]
    NothingPiped,
}

/// Writes a mount as a tar.
pub(super) fn export(arguments: &ExportMount, directory: &Path) -> Result<(), Error> {
    let to_stdout = arguments.output == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(Error::Terminal);
    }
    let store = Store::open(directory)?;
    let found = choose(&store, &arguments.id, &arguments.variant)?;
    let locked = lock(&store, &found.id, found.number)?;
    let skipped = if to_stdout {
        archive::export(&found.id, &locked.directory, io::stdout().lock())?
    } else {
        let path = &arguments.output;
        let failed = |source| Error::Write { path: path.clone(), source };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        // Named last: half an archive never looks like a whole one.
        let mut fresh = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(parent.unwrap_or(Path::new(".")))
            .map_err(failed)?;
        let mut out = BufWriter::with_capacity(1 << 18, fresh.as_file_mut());
        let skipped = archive::export(&found.id, &locked.directory, &mut out)?;
        out.flush().map_err(|source| Error::Write { path: path.clone(), source })?;
        drop(out);
        fresh
            .persist(path)
            .map_err(|error| Error::Write { path: path.clone(), source: error.error })?;
        skipped
    };
    for path in skipped {
        super::eprintln(&format!(
            "warning: {} is a socket or device and is left out",
            path.display()
        ));
    }
    Ok(())
}

/// Makes a mount out of a tar: all of it or nothing.
pub(super) fn import(arguments: &ImportMount, directory: &Path) -> Result<(), Error> {
    let input: Box<dyn Read + Send> = if arguments.input == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(Error::NothingPiped);
        }
        Box::new(io::stdin())
    } else {
        let path = &arguments.input;
        let opened = File::open(path);
        Box::new(opened.map_err(|source| Error::Open { path: path.clone(), source })?)
    };
    let store = Store::open(directory)?;
    let fresh = store.scratch()?.join("mount");
    let mut mount =
        archive::import(&arguments.id, BufReader::with_capacity(1 << 18, input), &fresh)?;
    let variant = &arguments.variant;
    mount.mode = variant.mode.unwrap_or(mount.mode);
    mount.uid = variant.uid.unwrap_or(mount.uid);
    mount.gid = variant.gid.unwrap_or(mount.gid);
    let locked = lock(&store, &mount, 0)?;
    store.replace_mount(&locked, &fresh)?;
    Ok(())
}

fn choose(store: &Store, id: &str, variant: &Variant) -> Result<StoredMount, Error> {
    let mut found = store.mounts(Some(id))?;
    found.retain(|mount| {
        variant.mode.is_none_or(|mode| mode == mount.id.mode)
            && variant.uid.is_none_or(|uid| uid == mount.id.uid)
            && variant.gid.is_none_or(|gid| gid == mount.id.gid)
    });
    // Private directories beside the first one are copies of the same purpose.
    let mut firsts = found.iter().filter(|mount| mount.number == 0);
    match (firsts.next(), firsts.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) => found.into_iter().next().ok_or_else(|| Error::NoSuchMount(id.to_owned())),
        (Some(_), Some(_)) => {
            let shown = |mount: &StoredMount| {
                let MountId { mode, uid, gid, .. } = mount.id;
                format!("--mode={mode:04o} --uid={uid} --gid={gid}")
            };
            let found: Vec<String> = found.iter().map(shown).collect();
            Err(Error::Several { id: id.to_owned(), found: found.join(", ") })
        }
    }
}

/// Waits until nobody uses the mount, and says so.
fn lock(store: &Store, mount: &MountId, number: u32) -> Result<MountLock, Error> {
    let mut told = false;
    loop {
        if let Some(locked) = store.try_mount(mount, number, true)? {
            return Ok(locked);
        }
        if !told {
            super::eprintln(&format!("waiting for cache mount {}: a build uses it", mount.id));
            told = true;
        }
        std::thread::sleep(PATIENCE);
    }
}

fn octal(text: &str) -> Result<u16, String> {
    u16::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("`{text}` is no mode in octal"))
}
