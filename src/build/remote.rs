//! What a build fetches besides images: ADD of URLs and repositories, contexts that
//! lie elsewhere. Joins the fetchers with the store, the cache and the secrets.
//!
//! A file is kept in the store by its digest; a record under its URL holds what the
//! server said of it. So an unchanged file costs one conditional request, and with
//! `--checksum` none. A repository costs one look at its references; its files are
//! fetched only when a step has to run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use yadokari_cache::Cache;
use yadokari_cache::Key;
use yadokari_cache::KeyHasher;
use yadokari_cache::Record;
use yadokari_cache::record::RemoteRecord;

use super::Error;
use super::Progress;
use super::progress::Observer;
use super::request::GitOptions;
use super::request::Request;
use super::request::Secret;
use crate::address::GitAddress;
use crate::address::HttpAddress;
use crate::context;
use crate::context::Context;
use crate::context::Place;
use crate::fetch;
use crate::fetch::Answer;
use crate::fetch::Body;
use crate::fetch::Checkout;
use crate::fetch::Git;
use crate::fetch::GitAccess;
use crate::fetch::Http;
use crate::fetch::Known;
use crate::fetch::Resolved;
use crate::fetch::SingleFile;
use crate::layer::decompress;
use crate::oci::digest::Digest;
use crate::path::Name;
use crate::path::RootPath;
use crate::plan::step::CopySource;
use crate::store::Store;
use crate::tree::Timestamp;

/// Further tries of a download that broke off.
const RETRIES: u32 = 2;

/// See the module.
pub struct Remotes {
    http: Http,
    git: Git,
    secrets: Vec<Secret>,
    options: GitOptions,
    store: Arc<Store>,
    cache: Arc<Cache>,
    /// What this build asked for: a URL means one thing from its start to its end.
    files: Asked<RemoteFile>,
    commits: Asked<Resolved>,
}

/// Answers by question; a second asker waits for the first.
type Asked<T> = Mutex<BTreeMap<String, Arc<Mutex<Option<T>>>>>;

/// A file on another machine, as it is right now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteFile {
    /// Of its bytes.
    pub digest: Digest,
    /// What its server said of its time; `None` while it wasn't asked.
    modified: Option<LastModified>,
}

/// Last-Modified (RFC 9110, section 5.6.7), if there is one that can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct LastModified(Option<i64>);

impl LastModified {
    fn of(header: Option<&str>) -> Self {
        Self(header.and_then(|text| {
            let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text);
            time.ok().map(jiff::Timestamp::as_second)
        }))
    }

    /// The time of the file that ADD makes: without one 1970, as in BuildKit.
    fn or_epoch(self) -> Timestamp {
        Timestamp::seconds(self.0.unwrap_or_default())
    }
}

/// Who watches over what is fetched.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Is told.
    pub observer: &'a dyn Observer,
    /// Set when the user asks to stop.
    pub interrupted: &'a AtomicBool,
}

impl Watch<'_> {
    fn stops(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

impl Remotes {
    /// Nothing is asked for yet.
    pub fn new(request: &Request, store: Arc<Store>, cache: Arc<Cache>) -> Self {
        Self {
            http: Http::new(&request.registry.user_agent),
            git: Git::new(|name| std::env::var_os(name)),
            secrets: request.secrets.clone(),
            options: request.git.clone(),
            store,
            cache,
            files: Mutex::default(),
            commits: Mutex::default(),
        }
    }

    fn secret(&self, id: &str) -> Result<Option<String>, Error> {
        let Some(secret) = self.secrets.iter().find(|secret| secret.id == id) else {
            return Ok(None);
        };
        let value = String::from_utf8(secret.read()?).map_err(|_| Error::Secret {
            id: id.to_owned(),
            reason: "it isn't text, as a credential has to be".to_owned(),
        })?;
        Ok(Some(value.trim().to_owned()))
    }

    // Files.

    /// What `address` holds. Asks its server, unless `checksum` says it already.
    ///
    /// # Errors
    /// Those of the server, and [`Error::Checksum`].
    pub fn file(
        &self,
        address: &HttpAddress,
        checksum: Option<&Digest>,
        watch: Watch<'_>,
    ) -> Result<RemoteFile, Error> {
        let key = url_key(address);
        let known = self.cache.record::<RemoteRecord>(&key);
        if let Some(checksum) = checksum {
            let modified = known
                .filter(|record| record.digest == *checksum.as_bytes())
                .map(|record| LastModified::of(record.last_modified.as_deref()));
            return Ok(RemoteFile { digest: *checksum, modified });
        }
        let slot = slot(&self.files, address.url.as_str());
        let mut found = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*found {
            return Ok(file.clone());
        }
        let file = match known {
            None => self.download(address, None, watch)?,
            Some(record) => {
                let conditions = Known {
                    etag: record.etag.clone(),
                    last_modified: record.last_modified.clone(),
                };
                match self.ask(address, &conditions)? {
                    Answer::Unchanged => RemoteFile {
                        digest: Digest::from_bytes(record.digest),
                        modified: Some(LastModified::of(record.last_modified.as_deref())),
                    },
                    Answer::Body(body) => self.keep(address, body, None, watch)?,
                }
            }
        };
        Ok(found.insert(file).clone())
    }

    /// The bytes of a file, as a tree that holds it alone. Fetches them if the store
    /// doesn't have them.
    ///
    /// # Errors
    /// Those of the server and of the disk; [`Error::Checksum`] if the file is another
    /// one than was asked for.
    pub fn open(
        &self,
        address: &HttpAddress,
        file: &RemoteFile,
        watch: Watch<'_>,
    ) -> Result<SingleFile, Error> {
        let (blob, modified) = self.bytes(address, file, watch)?;
        let failed = |source| Error::Download { address: address.to_string(), source };
        SingleFile::new(file_name(address), blob, modified.or_epoch()).map_err(failed)
    }

    fn bytes(
        &self,
        address: &HttpAddress,
        file: &RemoteFile,
        watch: Watch<'_>,
    ) -> Result<(File, LastModified), Error> {
        let stored = match file.modified {
            Some(modified) => self.store.open_blob(&file.digest)?.map(|blob| (blob, modified)),
            None => None,
        };
        if let Some(stored) = stored {
            return Ok(stored);
        }
        let fetched = self.download(address, Some(&file.digest), watch)?;
        let blob = self.store.open_blob(&file.digest)?.ok_or(Error::Panic)?;
        Ok((blob, fetched.modified.ok_or(Error::Panic)?))
    }

    /// The time of what an ADD fetches, in seconds since 1970: of a repository that of the
    /// commit, of a file its Last-Modified, of an archive without one that of its newest file.
    ///
    /// # Errors
    /// Those of fetching it.
    pub fn time_of(&self, source: &CopySource, watch: Watch<'_>) -> Result<Option<i64>, Error> {
        match source {
            CopySource::Http { address, checksum } => {
                let file = self.file(address, checksum.as_ref(), watch)?;
                if let Some(LastModified(Some(time))) = file.modified {
                    return Ok(Some(time));
                }
                let (blob, modified) = self.bytes(address, &file, watch)?;
                Ok(modified.0.or_else(|| newest_in(blob)))
            }
            CopySource::Git { address } => {
                let resolved = self.commit(address, watch)?;
                Ok(self.check_out(address, &resolved, watch)?.time())
            }
            CopySource::Path(_) | CopySource::Inline { .. } => Ok(None),
        }
    }

    fn ask(&self, address: &HttpAddress, known: &Known) -> Result<Answer, Error> {
        let host = address.url.host_str().unwrap_or_default();
        let authorization = match self.secret(&format!("HTTP_AUTH_HEADER_{host}"))? {
            Some(header) => Some(header),
            None => self
                .secret(&format!("HTTP_AUTH_TOKEN_{host}"))?
                .map(|token| format!("Bearer {token}")),
        };
        Ok(self.http.get(&address.url, known, authorization.as_deref())?)
    }

    /// Fetches a file, again if the transfer breaks off.
    fn download(
        &self,
        address: &HttpAddress,
        expected: Option<&Digest>,
        watch: Watch<'_>,
    ) -> Result<RemoteFile, Error> {
        let mut left = RETRIES;
        loop {
            let Answer::Body(body) = self.ask(address, &Known::default())? else {
                return Err(Error::Panic); // nothing was known, so it can't be unchanged
            };
            match self.keep(address, body, expected, watch) {
                Err(Error::Download { address, source }) if left > 0 => {
                    left -= 1;
                    tracing::debug!(%address, %source, "fetching again");
                }
                other => return other,
            }
        }
    }

    /// Streams a body into the store and remembers what the server said of it.
    fn keep(
        &self,
        address: &HttpAddress,
        mut body: Box<Body>,
        expected: Option<&Digest>,
        watch: Watch<'_>,
    ) -> Result<RemoteFile, Error> {
        watch.observer.observe(Progress::Note(format!("fetching {address}")));
        let mut blob = self.store.blob_writer()?;
        let mut reader = Stoppable { from: &mut body, watch };
        let copied = io::copy(&mut reader, &mut blob);
        if watch.stops() {
            return Err(Error::Interrupted);
        }
        copied.map_err(|source| Error::Download { address: address.to_string(), source })?;
        let (digest, _) = match blob.commit(expected) {
            Err(crate::store::Error::WrongDigest { expected, found }) => {
                return Err(Error::Checksum { address: address.to_string(), expected, found });
            }
            other => other?,
        };
        let record = RemoteRecord {
            digest: *digest.as_bytes(),
            etag: body.etag.clone(),
            last_modified: body.last_modified.clone(),
        };
        self.cache.put(&[(RemoteRecord::BUCKET, url_key(address), record.encode())])?;
        let modified = LastModified::of(body.last_modified.as_deref());
        Ok(RemoteFile { digest, modified: Some(modified) })
    }

    // Repositories.

    /// The commit that `address` means, asked for once in a build.
    ///
    /// # Errors
    /// Those of git.
    pub fn commit(&self, address: &GitAddress, watch: Watch<'_>) -> Result<Resolved, Error> {
        self.resolve(address, &self.access(address)?, watch)
    }

    fn resolve(
        &self,
        address: &GitAddress,
        access: &GitAccess,
        watch: Watch<'_>,
    ) -> Result<Resolved, Error> {
        let question = format!("{} {:?} {:?}", address.url, address.reference, address.checksum);
        let slot = slot(&self.commits, &question);
        let mut found = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resolved) = &*found {
            return Ok(resolved.clone());
        }
        let resolved = self.git.resolve(address, access, &|| watch.stops())?;
        Ok(found.insert(resolved).clone())
    }

    /// The files of a commit as a context.
    ///
    /// # Errors
    /// Those of git and of the disk.
    pub fn check_out(
        &self,
        address: &GitAddress,
        resolved: &Resolved,
        watch: Watch<'_>,
    ) -> Result<Context, Error> {
        let submodules = address.submodules.unwrap_or(true);
        self.checkout(address, resolved, &self.access(address)?, submodules, watch)
    }

    fn checkout(
        &self,
        address: &GitAddress,
        resolved: &Resolved,
        access: &GitAccess,
        submodules: bool,
        watch: Watch<'_>,
    ) -> Result<Context, Error> {
        let commit = &resolved.commit;
        watch.observer.observe(Progress::Note(format!("fetching {address} at {commit}")));
        let scratch = self.store.scratch()?;
        let failed = |source| Error::Scratch { path: scratch.clone(), source };
        let directory =
            tempfile::Builder::new().prefix("git-").tempdir_in(&scratch).map_err(failed)?;
        let checkout = Checkout {
            address,
            resolved,
            access,
            keep_git_dir: address.keep_git_dir.unwrap_or(false),
            submodules,
        };
        let time = self.git.check_out(&checkout, directory.path(), &|| watch.stops())?;
        let context = Context::of_fetched(directory)?.with_time(Some(time));
        match &address.subdirectory {
            None => Ok(context),
            Some(below) => {
                Ok(context.below(&RootPath::clamped(below.as_bytes()).unwrap_or_default())?)
            }
        }
    }

    /// How the repository of an ADD is reached: with BuildKit's secrets, those for the
    /// host first.
    fn access(&self, address: &GitAddress) -> Result<GitAccess, Error> {
        let host = address.host();
        let suffixes = [format!(".{host}"), String::new()];
        for suffix in &suffixes {
            if let Some(header) = self.secret(&format!("GIT_AUTH_HEADER{suffix}"))? {
                return Ok(GitAccess { authorization: Some(header), ..GitAccess::default() });
            }
            if let Some(token) = self.secret(&format!("GIT_AUTH_TOKEN{suffix}"))? {
                let header = GitAccess::basic("x-access-token", &token);
                return Ok(GitAccess { authorization: Some(header), ..GitAccess::default() });
            }
        }
        Ok(GitAccess::default())
    }

    // Contexts.

    /// Opens what a `--build-context` names. `git://` means the protocol here, and
    /// credentials meant for the build context aren't used.
    ///
    /// # Errors
    /// Those of its kind.
    pub fn named_context(&self, text: &str, watch: Watch<'_>) -> Result<Context, Error> {
        match Place::parse(text)? {
            Place::Git(address) | Place::KanikoGit(address) => {
                let resolved = self.commit(&address, watch)?;
                self.check_out(&address, &resolved, watch)
            }
            _ => self.context(text, watch),
        }
    }

    /// Opens the build context, wherever it is.
    ///
    /// # Errors
    /// Those of its kind.
    pub fn context(&self, text: &str, watch: Watch<'_>) -> Result<Context, Error> {
        match Place::parse(text)? {
            Place::Local(location) => Ok(Context::open(&location, &self.store.scratch()?)?),
            Place::Http(address) => self.archive(&address, watch),
            Place::Git(address) => self.repository(address, true, watch),
            Place::KanikoGit(mut address) => {
                let rest = address.url.trim_start_matches("git://").to_owned();
                address.url = format!("{}://{rest}", self.options.pull_method);
                self.repository(address, false, watch)
            }
        }
    }

    fn archive(&self, address: &HttpAddress, watch: Watch<'_>) -> Result<Context, Error> {
        let Answer::Body(body) = self.ask(address, &Known::default())? else {
            return Err(Error::Panic); // nothing was known, so it can't be unchanged
        };
        watch.observer.observe(Progress::Note(format!("fetching {address}")));
        let time = LastModified::of(body.last_modified.as_deref()).0;
        let reader = Stoppable { from: body, watch };
        let context = Context::unpack(reader, &address.to_string(), &self.store.scratch()?);
        if watch.stops() {
            return Err(Error::Interrupted);
        }
        let context = context?;
        let time = time.or(context.time());
        Ok(context.with_time(time))
    }

    /// A context in a repository: `--git` options and kaniko's variables apply.
    fn repository(
        &self,
        mut address: GitAddress,
        submodules: bool,
        watch: Watch<'_>,
    ) -> Result<Context, Error> {
        let options = &self.options;
        if address.reference.is_none()
            && let Some(branch) = &options.branch
        {
            address.set_reference(branch.clone()).map_err(Error::GitOption)?;
        }
        let mut access = self.access(&address)?;
        access.skip_tls_verify = options.insecure_skip_tls;
        if access.authorization.is_none() {
            access.authorization = options
                .credential
                .as_ref()
                .map(|(user, password)| GitAccess::basic(user, password.text()));
        }
        if options.keep_git_dir && address.keep_git_dir.is_none() {
            address.keep_git_dir = Some(true);
        }
        let resolved = self.resolve(&address, &access, watch)?;
        let submodules = address.submodules.unwrap_or(options.recurse_submodules || submodules);
        self.checkout(&address, &resolved, &access, submodules, watch)
    }
}

impl From<fetch::Error> for Error {
    fn from(error: fetch::Error) -> Self {
        match error {
            fetch::Error::Interrupted => Self::Interrupted,
            other => Self::Remote(other),
        }
    }
}

/// The content part of the key of an ADD of a URL: its name and its bytes.
pub(super) fn file_key(address: &HttpAddress, digest: &Digest, exclude: &[String]) -> Key {
    let mut hasher = KeyHasher::new("remote file");
    hasher.field("name", file_name(address).as_bytes());
    hasher.field("digest", digest.as_bytes());
    hasher.list("exclude", exclude.iter().map(|pattern| pattern.as_bytes()));
    hasher.finish()
}

/// The content part of the key of an ADD of a repository: the commit and what of it is
/// taken. Where it lies counts only if `.git`, which tells it, is kept.
pub(super) fn repository_key(address: &GitAddress, resolved: &Resolved, exclude: &[String]) -> Key {
    let mut hasher = KeyHasher::new("repository");
    hasher.field("commit", resolved.commit.as_bytes());
    hasher.optional("subdirectory", address.subdirectory.as_deref().map(str::as_bytes));
    hasher.number("submodules", u64::from(address.submodules.unwrap_or(true)));
    let kept = address.keep_git_dir.unwrap_or(false);
    hasher.optional("kept from", kept.then_some(address.url.as_bytes()));
    hasher.list("exclude", exclude.iter().map(|pattern| pattern.as_bytes()));
    hasher.finish()
}

/// The name that ADD gives the file.
pub(super) fn file_name(address: &HttpAddress) -> Name {
    Name::new(address.file_name().as_bytes())
        .unwrap_or_else(|| Name::new(b"__unnamed__").expect("a constant that is a name"))
}

fn url_key(address: &HttpAddress) -> Key {
    let mut hasher = KeyHasher::new("url");
    hasher.text("url", address.url.as_str());
    hasher.finish()
}

fn slot<T>(asked: &Asked<T>, question: &str) -> Arc<Mutex<Option<T>>> {
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(asked.entry(question.to_owned()).or_default())
}

/// The time of the newest file in an archive; `None` if it isn't a tar that can be read
/// to its end, or holds no file.
fn newest_in(archive: File) -> Option<i64> {
    context::newest(decompress::archive_reader(archive).ok()??).ok()?
}

/// Ends early when the user asks to.
struct Stoppable<'a, R> {
    from: R,
    watch: Watch<'a>,
}

impl<R: io::Read> io::Read for Stoppable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.watch.stops() {
            return Err(io::Error::other("interrupted"));
        }
        self.from.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Remote;

    fn http(text: &str) -> HttpAddress {
        match Remote::parse(text) {
            Ok(Some(Remote::Http(address))) => address,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn last_modified_is_a_time_and_its_lack_the_epoch() {
        assert_eq!(
            LastModified::of(Some("Sun, 06 Nov 1994 08:49:37 GMT")).or_epoch(),
            Timestamp::seconds(784_111_777)
        );
        for text in [None, Some(""), Some("yesterday")] {
            assert_eq!(LastModified::of(text).or_epoch(), Timestamp::seconds(0), "{text:?}");
        }
    }

    #[test]
    fn a_file_is_keyed_by_name_and_bytes_not_by_its_host() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let key = |url: &str, digest| file_key(&http(url), digest, &[]);
        assert_eq!(key("https://a/f", &one), key("https://b/x/f?q", &one));
        assert_ne!(key("https://a/f", &one), key("https://a/g", &one));
        assert_ne!(key("https://a/f", &one), key("https://a/f", &two));
        assert_ne!(
            key("https://a/f", &one),
            file_key(&http("https://a/f"), &one, &["*".to_owned()])
        );
    }
}
