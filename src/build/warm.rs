//! Fetching ahead of builds: base images, and the steps of Dockerfiles as far as a
//! shared cache has them.
//!
//! Nothing is run. Blobs are kept as they come: a warmer that is killed goes on
//! where it was. It is a user of the cache directory like any build, so builds,
//! collectors and other warmers may run beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::io::Read;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use sha2::Digest as _;
use sha2::Sha256;
use yadokari_cache::Access;
use yadokari_cache::Cache;
use yadokari_cache::Fold;

use super::Crew;
use super::Error;
use super::Progress;
use super::Ready;
use super::base::Base;
use super::base::BaseLayer;
use super::base::Bases;
use super::client::LazyClient;
use super::epoch;
use super::remote::Remotes;
use super::remote::Watch;
use super::request::Request;
use super::shared::Mode;
use crate::context::Context;
use crate::context::Location;
use crate::oci::platform::Platform;
use crate::path::RootPath;
use crate::plan;
use crate::plan::BaseState;
use crate::plan::Plan;
use crate::plan::Steps;
use crate::plan::step::Action;
use crate::plan::step::MountKind;
use crate::plan::step::Origin;
use crate::store::Store;

/// Layers on their way at once.
const FETCHING: usize = 4;

/// Age at which the beginning of a blob that nobody went on with goes, in seconds.
const PARTIAL_LIFE: i64 = 7 * 24 * 3600;

/// What is to be fetched.
pub struct Warm {
    /// Images by name.
    pub images: Vec<String>,
    /// Dockerfiles whose images, and steps, are wanted.
    pub dockerfiles: Vec<String>,
    /// Whether [`Request::context`] was given.
    pub has_context: bool,
    /// Verify what is there.
    pub force: bool,
    /// Everything else: platform, arguments, cache directory, registries.
    pub request: Request,
}

/// One thing that was asked for, and how it went.
pub struct Warmed {
    /// The image or Dockerfile, as named.
    pub name: String,
    /// Why it isn't here.
    pub outcome: Result<(), Error>,
}

/// An image, and who wants it: positions in the result.
struct Wanted {
    name: String,
    platform: Platform,
}

/// Fetches what `warm` asks for. What failed doesn't keep the rest from coming.
///
/// # Errors
/// Only when the cache directory or the build context can't be used.
pub fn warm(warm: &Warm, crew: &Crew<'_>) -> Result<Vec<Warmed>, Error> {
    let request = &warm.request;
    let cache = Arc::new(Cache::open(&request.cache_dir, Access::ReadWrite)?);
    let store = Arc::new(Store::open(&request.cache_dir)?.with_lease(cache.lease()?));
    let now = jiff::Timestamp::now().as_second();
    store.forget_partial_blobs(now.saturating_sub(PARTIAL_LIFE));
    let remotes = Remotes::new(request, Arc::clone(&store), Arc::clone(&cache));
    let watch = Watch { observer: crew.observer, interrupted: crew.interrupted };
    let mut context = if warm.has_context {
        remotes.context(&request.context, watch)?
    } else {
        Context::open(&Location::Directory(store.scratch()?), &store.scratch()?)?
    };
    if let Some(below) = request.context_sub_path.as_ref().filter(|_| warm.has_context) {
        context = context.below(&RootPath::clamped(below.as_bytes()).unwrap_or_default())?;
    }
    let client = LazyClient::new(request.registry.clone(), request.credentials.clone());
    let bases = Bases::new(Arc::new(client), Arc::clone(&store));

    let mut wanted: Vec<Wanted> = Vec::new();
    let mut want = |name: &str, platform: &Platform| {
        let known = |one: &Wanted| one.name == name && one.platform == *platform;
        if !wanted.iter().any(known) {
            wanted.push(Wanted { name: name.to_owned(), platform: platform.clone() });
        }
    };
    for name in &warm.images {
        want(name, &request.platform);
    }
    let mut done = Vec::new();
    let mut read = Vec::new();
    for name in &warm.dockerfiles {
        let planned = super::read_dockerfile(request, Some(name), &context).and_then(
            |(dockerfile, ignore)| {
                // Every image by itself, whatever becomes of the others.
                let mut options = super::plan_options(request, &request.platform);
                for stage in plan::plan(&dockerfile, &options)?.stages {
                    if let plan::Base::Image(image) = &stage.base {
                        want(image, &stage.platform);
                    }
                }
                epoch::resolve(&mut options, request, &dockerfile, &context, &remotes, watch)?;
                let plan = super::plan_stages(&options, &dockerfile, &bases)?;
                for (image, platform) in images(&plan, &bases)? {
                    want(&image, &platform);
                }
                Ok((dockerfile, ignore, plan))
            },
        );
        match planned {
            Ok(planned) => read.push((name.clone(), planned)),
            Err(error) => done.push(Warmed { name: name.clone(), outcome: Err(error) }),
        }
    }

    let fetch = Fetch { bases: &bases, crew, force: warm.force };
    done.extend(fetch.images(&wanted));
    for (name, (dockerfile, ignore, plan)) in &read {
        let ready = Ready {
            request,
            crew,
            dockerfile,
            ignore,
            context: &context,
            plans: std::slice::from_ref(plan),
            bases: &bases,
            remotes: &remotes,
            store: &store,
            cache: &cache,
        };
        let outcome = ready.fetch_steps(Mode::Warm { has_context: warm.has_context });
        done.push(Warmed { name: name.clone(), outcome });
    }
    if let Err(error) = cache.fold(Fold::IfWorthwhile) {
        crew.observer.observe(Progress::Warning(format!("the cache index is behind: {error}")));
    }
    for notice in cache.take_notices() {
        crew.observer.observe(Progress::Warning(notice.to_string()));
    }
    Ok(done)
}

/// The images that any stage of a plan starts from or copies from.
fn images(plan: &Plan, bases: &Bases) -> Result<Vec<(String, Platform)>, Error> {
    let mut found = Vec::new();
    let mut placed: Vec<Steps> = Vec::new();
    for stage in &plan.stages {
        let state = match &stage.base {
            plan::Base::Scratch => BaseState::scratch(),
            plan::Base::Stage(parent) => placed[*parent].base_state(),
            plan::Base::Image(name) => {
                found.push((name.clone(), stage.platform.clone()));
                BaseState::image(&bases.resolve(name, &stage.platform)?.config)
            }
        };
        let steps = plan.steps(stage.index, &state)?;
        for step in &steps.steps {
            let mut add = |origin: &Origin| {
                if let Origin::Image(name) = origin {
                    found.push((name.clone(), stage.platform.clone()));
                }
            };
            match &step.action {
                Action::Copy(copy) => add(&copy.origin),
                Action::Run(run) => run.mounts.iter().for_each(|mount| match &mount.kind {
                    MountKind::Bind { origin, .. }
                    | MountKind::Cache { from: Some((origin, _)), .. } => add(origin),
                    _ => {}
                }),
                _ => {}
            }
        }
        placed.push(steps);
    }
    Ok(found)
}

/// Fetching images.
struct Fetch<'a> {
    bases: &'a Bases,
    crew: &'a Crew<'a>,
    force: bool,
}

impl Fetch<'_> {
    /// Fetches images, layers of all of them side by side.
    fn images(&self, wanted: &[Wanted]) -> Vec<Warmed> {
        let resolved: Vec<Result<Arc<Base>, Error>> = wanted
            .iter()
            .map(|image| {
                self.check_interrupted()?;
                self.bases.resolve(&image.name, &image.platform)
            })
            .collect();
        // Images often share layers: each once.
        let mut layers: BTreeMap<_, (usize, &Base, &BaseLayer)> = BTreeMap::new();
        for (at, base) in resolved.iter().enumerate() {
            let Ok(base) = base else { continue };
            for layer in &base.layers {
                layers.entry(layer.diff_id).or_insert((at, base, layer));
            }
        }
        let mut jobs: Vec<_> = layers.into_values().collect();
        // The largest first, so that none is left for the end.
        jobs.sort_by_key(|(_, _, layer)| std::cmp::Reverse(layer.descriptor.size));
        let failed: Mutex<BTreeMap<_, Error>> = Mutex::default();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some((_, base, layer)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.check_interrupted().and_then(|()| self.layer(base, layer))
                {
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.insert(layer.diff_id, error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..jobs.len().min(FETCHING) {
                scope.spawn(work);
            }
            work();
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let failed: BTreeMap<_, Arc<Error>> =
            failed.into_iter().map(|(diff_id, error)| (diff_id, Arc::new(error))).collect();
        wanted
            .iter()
            .zip(resolved)
            .map(|(image, base)| {
                let outcome = base.and_then(|base| {
                    let broken = base.layers.iter().find_map(|layer| failed.get(&layer.diff_id));
                    broken.map_or(Ok(()), |error| Err(Error::Stage(Arc::clone(error))))
                });
                Warmed { name: image.name.clone(), outcome }
            })
            .collect()
    }

    fn check_interrupted(&self) -> Result<(), Error> {
        match self.crew.interrupted.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }

    /// One layer: its blob, then its tar and index.
    fn layer(&self, base: &Base, layer: &BaseLayer) -> Result<(), Error> {
        let store = &self.bases.store;
        if self.force {
            discard_damaged(store, layer)?;
        }
        if store.layer(&layer.diff_id)?.is_none() {
            self.bases.fetch_resumably(base, layer, self.crew.observer)?;
        }
        self.bases.ensure_layer(base, layer, self.crew.observer)
    }
}

/// Removes what of a layer isn't what its digests say.
fn discard_damaged(store: &Store, layer: &BaseLayer) -> Result<(), Error> {
    let digest = &layer.descriptor.digest;
    if let Some(file) = store.open_blob(digest)?
        && !hashes_to(file, digest.as_bytes())
    {
        store.discard_blob(digest)?;
    }
    if let Some(found) = store.layer(&layer.diff_id)?
        && !File::open(found.tar).is_ok_and(|tar| hashes_to(tar, layer.diff_id.as_bytes()))
    {
        store.discard_layer(&layer.diff_id)?;
    }
    Ok(())
}

/// Whether a file has this SHA-256; one that can't be read hasn't.
fn hashes_to(mut file: File, expected: &[u8; 32]) -> bool {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => {
                let found: [u8; 32] = hasher.finalize().into();
                return found == *expected;
            }
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}
