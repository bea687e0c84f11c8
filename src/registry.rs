//! Registries: the client of the OCI distribution protocol.
//!
//! [`Client`] is a blocking facade over an own async runtime: it may be shared by any
//! number of threads, and must not be called from inside a runtime. It never writes to
//! disk and never prints.
//!
//! - What is received is verified against its digest before the last byte is handed out.
//! - Credentials go to the host they belong to and to the token server it names, and
//!   appear in no error and no log.
//! - What may succeed a moment later is tried again, an upload or download where it broke.
//!
//! Start at [`Client::manifest`] (`registry/pull.rs`) or [`Client::push_blob`]
//! (`registry/push.rs`); `registry/auth.rs` is what stands between a request and its
//! answer, `registry/site.rs` says which host is asked how.

mod auth;
mod error;
mod keychain;
mod login;
mod pull;
mod push;
mod retry;
mod site;
mod transport;
mod well_known;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Response;
use tokio::runtime::Runtime;

use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;

pub use error::{Error, Refusal, Subject, Unreachable};
pub use keychain::{Environment, Keychain};
pub use login::login;
pub use pull::{BlobReader, Fetched, Resolved};
pub use push::Pushed;
pub use well_known::WellKnown;

use auth::{Access, Authorizer};
use retry::Policy;
use site::{Place, Site};
use transport::{Call, Transport};

/// How registries are spoken to. Hosts are written as in references: name or address, with
/// a port unless it is the scheme's own.
#[derive(Debug, Clone)]
pub struct Options {
    /// Plain HTTP is acceptable where we push (and for caches).
    pub insecure: bool,
    /// Plain HTTP is acceptable where we pull.
    pub insecure_pull: bool,
    /// Plain HTTP is acceptable for these hosts.
    pub insecure_registries: Vec<String>,
    /// Certificates are not verified, neither for pushes nor for pulls.
    pub skip_tls_verify: bool,
    /// Certificates are not verified for pulls.
    pub skip_tls_verify_pull: bool,
    /// Certificates of these hosts are not verified.
    pub skip_tls_verify_registries: Vec<String>,
    /// Host and PEM file of certificate authorities to trust beside the system's.
    pub certificates: Vec<(String, PathBuf)>,
    /// Host and PEM files of client certificate and key.
    pub client_certificates: Vec<(String, (PathBuf, PathBuf))>,
    /// Registry and what to ask before it, in order: `host`, `host/prefix`, optionally with
    /// `http://` or `https://`. Docker Hub may be spelled in any of its ways.
    pub mirrors: Vec<(String, Vec<String>)>,
    /// A registry that has mirrors is not asked itself.
    pub skip_default_fallback: bool,
    /// Tries after a first failure that may pass.
    pub retries: u32,
    /// Pause before the first further try; doubles each time.
    pub retry_delay: Duration,
    /// Longest silence of a server.
    pub timeout: Duration,
    /// `User-Agent`.
    pub user_agent: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            insecure: false,
            insecure_pull: false,
            insecure_registries: Vec::new(),
            skip_tls_verify: false,
            skip_tls_verify_pull: false,
            skip_tls_verify_registries: Vec::new(),
            certificates: Vec::new(),
            client_certificates: Vec::new(),
            mirrors: Vec::new(),
            skip_default_fallback: false,
            retries: 3,
            retry_delay: Duration::from_millis(500),
            timeout: Duration::from_secs(60),
            user_agent: concat!("yadokari/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// A client of any number of registries. Cheap to clone; all clones share connections,
/// tokens and what was learnt about hosts.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// The async half.
struct Core {
    options: Options,
    transport: Transport,
    keychain: Keychain,
    sites: Mutex<HashMap<(String, bool, bool), Arc<Site>>>,
}

struct Inner {
    core: Core,
    /// Always there until `drop`.
    runtime: Option<Runtime>,
}

impl Inner {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("the runtime lives as long as its owner").block_on(future)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Not waiting for a stuck read of a file or name look-up.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Client {
    /// Starts a client: two threads, no connection yet.
    ///
    /// # Errors
    ///
    /// [`Error::Certificate`] when a certificate or key cannot be read, [`Error::Setup`]
    /// when threads cannot be started.
    pub fn new(options: Options, keychain: Keychain) -> Result<Self, Error> {
        let mut transport = Transport::new(&options.user_agent, options.timeout);
        for (host, path) in &options.certificates {
            transport.add_authority(host, path)?;
        }
        for (host, (certificate, key)) in &options.client_certificates {
            transport.add_identity(host, certificate, key)?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(|error| Error::Setup(error.into()))?;
        let core = Core { options, transport, keychain, sites: Mutex::new(HashMap::new()) };
        Ok(Self { inner: Arc::new(Inner { core, runtime: Some(runtime) }) })
    }

    /// What a reference stands for now, without fetching it.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`] tells a missing image from other troubles.
    pub fn resolve(&self, reference: &Reference) -> Result<Resolved, Error> {
        self.inner.block_on(self.inner.core.resolve(reference))
    }

    /// The manifest or index behind a reference, verified against the reference's digest
    /// and the server's. At most [`MANIFEST_MAX`](crate::oci::manifest::MANIFEST_MAX) bytes.
    pub fn manifest(&self, reference: &Reference) -> Result<Fetched, Error> {
        self.inner.block_on(self.inner.core.manifest(reference))
    }

    /// The manifest of the image for `platform`: through the index, if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::Platform`] when the index has no such image.
    pub fn image(&self, reference: &Reference, platform: &Platform) -> Result<Fetched, Error> {
        self.inner.block_on(self.inner.core.image(reference, platform))
    }

    /// Streams a blob. See [`BlobReader`] for what is verified when.
    pub fn blob(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
    ) -> Result<BlobReader, Error> {
        BlobReader::open(Arc::clone(&self.inner), repository, descriptor)
    }

    /// Goes on with a blob of which `begun` has the first bytes: they are read, hashed
    /// and not given out again; what follows is. Nothing is asked for if it is whole.
    ///
    /// # Errors
    ///
    /// As [`BlobReader`]'s; `InvalidData` when `begun` is no beginning of the blob,
    /// as far as that can be seen yet.
    pub fn rest_of_blob(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        begun: &mut dyn io::Read,
    ) -> io::Result<BlobReader> {
        BlobReader::resume_after(Arc::clone(&self.inner), repository, descriptor, begun)
    }

    /// A small blob such as an image config, at most 8 MiB, verified.
    pub fn blob_bytes(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, Error> {
        pull::blob_bytes(self, repository, descriptor)
    }

    /// Whether the repository (never a mirror of it) has a blob.
    pub fn has_blob(&self, repository: &Reference, digest: &Digest) -> Result<bool, Error> {
        self.inner.block_on(self.inner.core.has_blob(repository, digest))
    }

    /// Brings a blob into a repository: not at all if it is there, by mounting it from one
    /// of `mount_from` (those at the same registry), or by upload. `source` opens the blob,
    /// from its start, once per try; `descriptor` says how much of it is sent.
    pub fn push_blob(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        source: &dyn Fn() -> io::Result<File>,
        mount_from: &[Reference],
    ) -> Result<Pushed, Error> {
        self.inner.block_on(self.inner.core.push_blob(repository, descriptor, source, mount_from))
    }

    /// Uploads a small blob such as an image config, unless it is there.
    pub fn push_blob_bytes(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        bytes: &[u8],
    ) -> Result<Pushed, Error> {
        self.inner.block_on(self.inner.core.push_bytes(repository, descriptor, bytes))
    }

    /// Uploads a manifest or index under the reference's digest, or else tag. Everything it
    /// names must be there already. Gives its digest.
    pub fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, Error> {
        self.inner.block_on(self.inner.core.push_manifest(reference, media_type, bytes))
    }

    /// Finds out whether we may push, by opening an upload and cancelling it.
    pub fn check_push(&self, reference: &Reference) -> Result<(), Error> {
        self.inner.block_on(self.inner.core.check_push(reference))
    }
}

impl Core {
    fn policy(&self) -> Policy {
        Policy { retries: self.options.retries, delay: self.options.retry_delay }
    }

    fn site(&self, place: &Place) -> Arc<Site> {
        let trust = &place.trust;
        let key = (trust.registry.clone(), trust.plain, trust.skip_verify);
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(sites.entry(key).or_insert_with(|| Arc::new(Site::new(place))))
    }

    /// One authorized request without retries; answers of 2xx.
    async fn send(
        &self,
        site: &Site,
        access: &Access<'_>,
        call: &Call<'_>,
    ) -> Result<Response, Error> {
        let authorizer = Authorizer { transport: &self.transport, keychain: &self.keychain };
        let outcome = authorizer.send(site, access, call).await;
        site.set_down(matches!(outcome, Err(Error::Unreachable { .. })));
        outcome
    }
}
