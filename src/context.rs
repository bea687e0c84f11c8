//! The build context: where COPY and ADD take their files from.
//!
//! [`Location::parse`] reads `--context`, [`Context::open`] makes it a directory:
//! in place when it is one, unpacked below a scratch directory when it is an
//! archive. [`Context::dockerfile`] finds the Dockerfile and its ignore file,
//! [`Context::tree`] is what is left under the ignore rules.
//!
//! Nothing here writes into a user's directory, and no link leads out of it.
//! Links of the context itself are nodes of the tree; following them within the
//! tree is up to COPY.

mod digest;
mod dir;
mod error;
mod location;
mod scan;
mod tar;

use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;

pub use digest::DigestMemory;
pub use dir::ContextTree;
pub use dir::Ignore;
pub use dir::Nothing;
pub use error::Error;
pub use location::Location;
pub use location::Place;
pub use tar::newest;

use crate::path::RootPath;
use crate::root_dir::Confinement;
use crate::root_dir::Links;
use crate::root_dir::RootDir;

/// An open build context.
#[derive(Clone, Debug)]
pub struct Context {
    root: Arc<RootDir>,
    /// Removes the unpacked files with the last clone.
    unpacked: Option<Arc<TempDir>>,
    /// Time of what was fetched, in seconds since 1970: of a commit, Last-Modified, or
    /// the latest of an archive's files.
    time: Option<i64>,
}

/// A Dockerfile as found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DockerfileText {
    /// Its path for messages: as given where that is what was found.
    pub name: String,
    /// Its bytes.
    pub text: Vec<u8>,
    /// The ignore file that goes with it, if there is one.
    pub ignore: Option<IgnoreText>,
}

/// A `.dockerignore` file as found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IgnoreText {
    /// Its path for messages.
    pub name: String,
    /// Its bytes.
    pub text: Vec<u8>,
}

impl Context {
    /// Opens the context at `location`. An archive is unpacked into a directory of
    /// its own below `scratch`, which lives as long as the context; standard input
    /// is read to its end.
    ///
    /// # Errors
    /// When there is nothing, it can't be read, or an entry of the archive leaves it.
    pub fn open(location: &Location, scratch: &Path) -> Result<Self, Error> {
        match location {
            Location::Directory(path) => {
                let root = RootDir::open(path).map_err(|error| Error::open(path, error))?;
                Ok(Self { root: Arc::new(root), unpacked: None, time: None })
            }
            Location::Archive(path) => {
                let file = std::fs::File::open(path)
                    .map_err(|source| Error::Read { path: path.clone(), source })?;
                Ok(Self::unpack(file, &location.to_string(), scratch)?.with_time(None))
            }
            Location::Stdin => {
                // A terminal, or `/dev/null` where nothing was piped in: kaniko
                // refuses these as well, instead of waiting for a tar to be typed.
                let stdin = std::io::stdin();
                let found = crate::root_dir::DiskStat::of(&stdin)
                    .map_err(|source| Error::Read { path: "standard input".into(), source })?;
                if found.stat.kind == crate::tree::Kind::CharDevice {
                    return Err(Error::NothingPiped);
                }
                Ok(Self::unpack(stdin, &location.to_string(), scratch)?.with_time(None))
            }
        }
    }

    /// Unpacks a tar, plain or compressed by gzip or zstd, as [`Context::open`] does.
    /// `name` is for messages. Its time is that of its newest file.
    ///
    /// # Errors
    /// As for archives there.
    pub fn unpack(archive: impl Read + Send, name: &str, scratch: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Scratch { path: scratch.to_owned(), source };
        std::fs::create_dir_all(scratch).map_err(failed)?;
        let target =
            tempfile::Builder::new().prefix("context-").tempdir_in(scratch).map_err(failed)?;
        let root = RootDir::open(target.path()).map_err(|error| failed(error.into()))?;
        let time = tar::unpack(archive, name, &root)?;
        Ok(Self { root: Arc::new(root), unpacked: Some(Arc::new(target)), time })
    }

    /// A context of files that were put into `directory`, which goes with the last clone.
    ///
    /// # Errors
    /// When the directory can't be opened.
    pub fn of_fetched(directory: TempDir) -> Result<Self, Error> {
        let path = directory.path();
        let root = RootDir::open(path).map_err(|error| Error::open(path, error))?;
        Ok(Self { root: Arc::new(root), unpacked: Some(Arc::new(directory)), time: None })
    }

    /// The same with the time of what it was made of, in seconds since 1970.
    #[must_use]
    pub fn with_time(self, time: Option<i64>) -> Self {
        Self { time, ..self }
    }

    /// Time of the commit or archive that was fetched; what lies on this machine has none.
    pub fn time(&self) -> Option<i64> {
        self.time
    }

    /// The rules of `.dockerignore` in its root, if it has them.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn ignore_file(&self) -> Result<Option<IgnoreText>, Error> {
        self.read_ignore(".dockerignore")
    }

    /// The directory `path` of this context as a context (`--context-sub-path`).
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn below(&self, path: &RootPath) -> Result<Self, Error> {
        let root = self.root.below(path).map_err(|e| Error::open(&self.root.shown(path), e))?;
        Ok(Self { root: Arc::new(root), unpacked: self.unpacked.clone(), time: self.time })
    }

    /// Where its files lie.
    pub fn directory(&self) -> &Path {
        self.root.path()
    }

    /// Whether it came out of an archive or a repository: remembering digests of its files is
    /// useless then, as the next build unpacks new ones.
    pub fn is_unpacked(&self) -> bool {
        self.unpacked.is_some()
    }

    /// Who keeps paths inside it, for the report.
    pub fn confinement(&self) -> Confinement {
        self.root.confinement()
    }

    /// Finds the Dockerfile. `path` (`-f`) is looked for from `cwd` on, then in the
    /// context, where links are scoped; without it `Dockerfile` and then
    /// `dockerfile` in the context's root. `<dockerfile>.dockerignore` beside it
    /// wins over the context's `.dockerignore`. Ignore rules don't hide either.
    ///
    /// # Errors
    /// [`Error::NoDockerfile`] when there is none, [`Error::Read`] when one of the
    /// files is there and can't be read, [`Error::DockerfileUrl`].
    pub fn dockerfile(&self, path: Option<&str>, cwd: &Path) -> Result<DockerfileText, Error> {
        let mut tried = Vec::new();
        if let Some(path) = path {
            if path.starts_with("http://") || path.starts_with("https://") {
                return Err(Error::DockerfileUrl { url: path.to_owned() });
            }
            let here = cwd.join(path);
            match std::fs::metadata(&here) {
                Ok(found) if !found.is_dir() => {
                    let text = std::fs::read(&here)
                        .map_err(|source| Error::Read { path: here.clone(), source })?;
                    let ignore = self.ignore_beside(path, &here)?;
                    return Ok(DockerfileText { name: path.to_owned(), text, ignore });
                }
                _ => tried.push(here),
            }
        }
        let names: &[&str] = match &path {
            Some(path) => &[path],
            None => &["Dockerfile", "dockerfile"],
        };
        for name in names {
            let Some(place) = RootPath::clamped(name.as_bytes()) else { continue };
            if let Some(text) = self.read(&place)? {
                let beside = format!("{name}.dockerignore");
                let ignore = match self.read_ignore(&beside)? {
                    None => self.read_ignore(".dockerignore")?,
                    found => found,
                };
                return Ok(DockerfileText { name: (*name).to_owned(), text, ignore });
            }
            let shown = self.root.shown(&place);
            if !tried.contains(&shown) {
                tried.push(shown);
            }
        }
        Err(Error::NoDockerfile { tried })
    }

    /// The ignore file for a Dockerfile at `here`, which need not be in the context.
    fn ignore_beside(&self, name: &str, here: &Path) -> Result<Option<IgnoreText>, Error> {
        let mut beside = here.as_os_str().to_owned();
        beside.push(".dockerignore");
        let beside = PathBuf::from(beside);
        match std::fs::read(&beside) {
            Ok(text) => Ok(Some(IgnoreText { name: format!("{name}.dockerignore"), text })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.read_ignore(".dockerignore")
            }
            Err(source) => Err(Error::Read { path: beside, source }),
        }
    }

    fn read_ignore(&self, name: &str) -> Result<Option<IgnoreText>, Error> {
        let Some(place) = RootPath::clamped(name.as_bytes()) else { return Ok(None) };
        let text = self.read(&place)?;
        Ok(text.map(|text| IgnoreText { name: name.to_owned(), text }))
    }

    /// Bytes of the file at `place`; `None` if there is nothing or a directory.
    fn read(&self, place: &RootPath) -> Result<Option<Vec<u8>>, Error> {
        let path = || self.root.shown(place);
        match self.root.stat(place, true) {
            Ok(found) if found.stat.is_directory() => return Ok(None),
            Err(error) if error.is_not_found() => return Ok(None),
            _ => {}
        }
        let mut file = self
            .root
            .open_file(place, Links::Scoped)
            .map_err(|error| Error::Read { path: path(), source: error.into() })?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|source| Error::Read { path: path(), source })?;
        Ok(Some(bytes))
    }

    /// The files of this context that `ignore` leaves. Reads nothing yet.
    ///
    /// # Errors
    /// When the context's root can't be looked at.
    pub fn tree(&self, ignore: impl Ignore + 'static) -> Result<ContextTree, Error> {
        ContextTree::new(self.clone(), Box::new(ignore))
    }
}

#[cfg(test)]
mod tests;
