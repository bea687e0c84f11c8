//! The story of a build: a Dockerfile in, an image out.
//!
//! [`build`] walks it once, top to bottom. Each stage runs its step loop
//! ([`stage`]): key ([`key`], [`inputs`]) → look up → on a miss execute, snapshot
//! and hand the change set to the layer writer ([`layers`]), which works behind
//! the next step. `publish` uploads finished layers meanwhile.
//!
//! Nothing here prints: what happens is told to an [`Observer`].

mod ahead;
pub mod base;
mod cache_dir;
pub mod call;
mod client;
mod delivery;
mod epoch;
mod error;
pub mod explain;
mod foreign;
mod in_place;
pub mod inferred;
pub mod inputs;
pub mod key;
mod later;
pub mod layers;
mod mounts;
mod outputs;
pub mod progress;
mod publish;
mod push;
mod remote;
pub mod report;
pub mod request;
mod shared;
pub mod shared_cache;
mod single;
pub mod slot;
pub mod stage;
pub mod survey;
mod tail;
mod turn;
mod warm;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use yadokari_cache::Cache;

pub use error::Error;
pub use error::chain;
pub use later::Later;
pub use progress::Observer;
pub use progress::Progress;
pub use publish::Pushed;
pub use push::Push;
pub use push::push;
pub use report::StepReport;
pub use request::Request;
pub use warm::Warm;
pub use warm::Warmed;
pub use warm::warm;

use crate::context::Context;
use crate::dockerfile;
use crate::dockerfile::Dockerfile;
use crate::ignore::Matcher;
use crate::image::Assemble;
use crate::image::Assembled;
use crate::image::BaseImage;
use crate::image::Format;
use crate::image::LayerRow;
use crate::image::Row;
use crate::image::annotation::Place;
use crate::layer::compress::Compression;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::media_type;
use crate::oci::platform::Platform;
use crate::path::RootPath;
use crate::plan;
use crate::plan::Plan;
use crate::sandbox::Cancel;
use crate::sandbox::Runner;
use crate::store::Store;

use base::Base;
use base::Bases;
use cache_dir::CacheDir;
use client::LazyClient;
use delivery::Delivery;
use delivery::Made;
use layers::Workshop;
use publish::Uploads;
use remote::Remotes;
use remote::Watch;
use shared::Mode;
use shared::Shared;
use shared_cache::SharedCache;
use stage::Finished;

/// What a build made.
#[derive(Clone)]
pub struct Report {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digest of the config: the image ID.
    pub config: Digest,
    /// Where it was pushed.
    pub pushed: Vec<Pushed>,
    /// Steps of the target stage that ran.
    pub misses: u32,
    /// Every step that makes a layer, by number.
    pub steps: Vec<StepReport>,
}

/// Who takes part in a build besides its request.
pub struct Crew<'a> {
    /// Is told what happens.
    pub observer: &'a dyn Observer,
    /// Starts processes.
    pub runner: &'a (dyn Runner + Sync),
    /// Ends running processes.
    pub cancel: Arc<Cancel>,
    /// Set when the user asks to stop.
    pub interrupted: &'a AtomicBool,
    /// Takes what is to be done when the user has the result.
    pub later: &'a Later,
}

/// Builds what `request` asks for.
///
/// # Errors
/// The first thing that failed. Everything finished before stays in the cache.
pub fn build(request: &Request, crew: &Crew<'_>) -> Result<Report, Error> {
    let cache_dir = CacheDir::open(request, crew.observer)?;
    let built = build_in(&cache_dir, request, crew);
    // Whatever finished is kept, also when something else failed.
    cache_dir.finish(request, crew.observer);
    built
}

fn build_in(cache_dir: &CacheDir, request: &Request, crew: &Crew<'_>) -> Result<Report, Error> {
    let (cache, store) = (&cache_dir.cache, &cache_dir.store);
    let remotes = Remotes::new(request, Arc::clone(store), Arc::clone(cache));
    let watch = Watch { observer: crew.observer, interrupted: crew.interrupted };
    let mut context = remotes.context(&request.context, watch)?;
    if let Some(below) = &request.context_sub_path {
        context = context.below(&RootPath::clamped(below.as_bytes()).unwrap_or_default())?;
    }
    let (dockerfile, ignore) = read_dockerfile(request, request.dockerfile.as_deref(), &context)?;
    let client = LazyClient::new(request.registry.clone(), request.credentials.clone());
    let bases = Bases::new(Arc::new(client), Arc::clone(store));
    let mut plans = Vec::with_capacity(request.platforms.len());
    for platform in &request.platforms {
        let mut options = plan_options(request, platform);
        epoch::resolve(&mut options, request, &dockerfile, &context, &remotes, watch)?;
        let plan = plan_stages(&options, &dockerfile, &bases)?;
        let steps = survey::lint(&plan, &bases, &ignore, crew)?;
        if plans.is_empty() {
            for name in plan.unused_arguments(steps.values()) {
                let text = format!("--build-arg {name}: no ARG takes it");
                crew.observer.observe(Progress::Warning(text));
            }
        }
        foreign::check(&plan, &steps, &request.build_platform.architecture, store)?;
        plans.push(plan);
    }
    for name in plans.first().map(|plan| request.unknown_in_filter(plan)).unwrap_or_default() {
        crew.observer
            .observe(Progress::Warning(format!("--no-cache-filter: no stage is called {name}")));
    }
    let ready = Ready {
        request,
        crew,
        dockerfile: &dockerfile,
        ignore: &ignore,
        context: &context,
        plans: &plans,
        bases: &bases,
        remotes: &remotes,
        store,
        cache,
    };
    let repo = ready.repo();
    let mut result = ready.attempt(repo.as_ref());
    // Once cancelled, every further attempt is interrupted, and the reason why forgotten.
    let may_begin_again =
        |result: &Result<Report, Error>| result.is_err() && !crew.cancel.is_cancelled();
    for _ in 0..RESTARTS {
        // What was finished hits now; what was lost is missed and made anew.
        if may_begin_again(&result) && store.take_lost() {
            crew.observer.observe(Progress::Note(
                "the cache has lost what it had before: the build begins again".to_owned(),
            ));
            result = ready.attempt(repo.as_ref());
        }
    }
    let Some(repo) = repo else { return result };
    repo.tell(crew.observer);
    if let Err(error) = &result
        && matches!(error.cause(), Error::Interrupted)
    {
        return result;
    }
    if repo.is_lost() && may_begin_again(&result) {
        // What was finished hits now; what was believed to be there runs.
        return ready.attempt(None);
    }
    if let Some(push) = repo.unsent(request.mountable()) {
        crew.later.add(push);
    }
    result
}

/// How often a build begins again because the cache lost what it had found there: each
/// time something else.
const RESTARTS: u32 = 3;

/// Everything that a build stands on, read and planned.
struct Ready<'a> {
    request: &'a Request,
    crew: &'a Crew<'a>,
    dockerfile: &'a Dockerfile,
    ignore: &'a Matcher,
    context: &'a Context,
    /// One for each platform.
    plans: &'a [Plan],
    bases: &'a Bases,
    remotes: &'a Remotes,
    store: &'a Arc<Store>,
    cache: &'a Arc<Cache>,
}

impl Ready<'_> {
    /// The shared cache, if the request names one.
    fn repo(&self) -> Option<Arc<SharedCache>> {
        let request = self.request;
        let options = request.cache_repo.clone().filter(|_| request.cache)?;
        Some(Arc::new(SharedCache::new(
            options,
            &request.registry,
            &request.credentials,
            request.compression.label(),
            Arc::clone(self.store),
            Arc::clone(self.cache),
            jiff::Timestamp::now().as_second(),
        )))
    }

    /// The latest time that an image of `plan` may carry.
    fn epoch(&self, plan: &Plan) -> Option<i64> {
        let asked = match plan.source_date_epoch {
            Some(plan::Epoch::At(seconds)) => Some(seconds),
            // Without a time, or nothing said: see `epoch::resolve`.
            _ => None,
        };
        asked.or(self.request.source_date_epoch)
    }

    fn workshop(&self, plan: &Plan, repo: Option<&Arc<SharedCache>>) -> Workshop {
        Workshop {
            store: Arc::clone(self.store),
            cache: Arc::clone(self.cache),
            repo: repo.cloned(),
            compression: self.request.compression,
            media_type: layer_media_type(self.request.compression).to_owned(),
            clamp: self.epoch(plan).filter(|_| self.request.rewrite_timestamp),
            threads: self.request.threads,
            ttl: self.request.cache_limits.ttl_seconds(),
        }
    }

    fn shared<'b>(
        &'b self,
        mode: Mode,
        plan: &'b Plan,
        workshop: &'b Workshop,
        uploads: Option<&'b Uploads<'b>>,
    ) -> Shared<'b> {
        Shared::new(
            self.request,
            mode,
            self.dockerfile,
            plan,
            self.epoch(plan),
            self.context,
            self.ignore.clone(),
            workshop,
            self.bases,
            self.remotes,
            uploads,
            self.crew,
        )
    }

    /// Fetches what the shared cache has of the steps, running none.
    fn fetch_steps(&self, mode: Mode) -> Result<(), Error> {
        let Some(repo) = self.repo() else { return Ok(()) };
        for plan in self.plans {
            let workshop = self.workshop(plan, Some(&repo));
            let shared = self.shared(mode, plan, &workshop, None);
            let walked = shared.run_stages();
            shared.save_context_digests();
            repo.fetch_hits(self.crew.observer)?;
            if let Some(reason) = repo.trouble() {
                return Err(Error::SharedCache(reason));
            }
            repo.tell(self.crew.observer);
            match walked {
                Err(error) if !matches!(error.cause(), Error::NotCached) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Builds and delivers, with the help of `repo`.
    fn attempt(&self, repo: Option<&Arc<SharedCache>>) -> Result<Report, Error> {
        let Self { request, crew, dockerfile, plans, bases, .. } = *self;
        let uploads = (request.push && !request.destinations.is_empty()).then(|| {
            let destinations = request.destinations.clone();
            let (check, immutable) = (request.check_push, request.ignore_immutable_tags);
            Uploads::new(bases, destinations, check, immutable, crew.observer)
        });
        let mut made = Vec::with_capacity(plans.len());
        let mut steps = Vec::new();
        let mut counted = 0;
        for plan in plans {
            let workshop = self.workshop(plan, repo);
            let shared = self.shared(Mode::Build, plan, &workshop, uploads.as_ref());
            shared.count_from(counted);
            let image = make(&shared, plan, self.epoch(plan));
            made.push(image.map_err(|error| error.at_layer(dockerfile))?);
            counted = shared.counted();
            steps.extend(shared.reports());
        }
        let delivery = Delivery::new(request, bases, made);
        let pushed = self.deliver(&delivery, uploads.as_ref(), repo, &steps);
        let pushed = pushed.inspect_err(|error| {
            if error.may_be_damage() {
                self.doubt(&delivery, repo);
            }
        })?;
        Ok(Report {
            steps,
            manifest: delivery.top().digest,
            config: delivery.first().image.config.digest,
            pushed,
            misses: delivery.misses(),
        })
    }

    /// Holds the layers that should be here against their digests.
    fn doubt(&self, delivery: &Delivery, repo: Option<&Arc<SharedCache>>) {
        for Made { image, base, .. } in &delivery.made {
            let bases = base.iter().flat_map(|base| &base.layers);
            let elsewhere: Vec<Digest> = bases.map(|layer| layer.descriptor.digest).collect();
            for layer in &image.layers {
                let digest = &layer.digest;
                let is_elsewhere =
                    elsewhere.contains(digest) || repo.is_some_and(|repo| repo.has_layer(digest));
                if !is_elsewhere || matches!(self.store.has_blob(digest, None), Ok(true)) {
                    self.store.doubt_blob(digest);
                }
            }
        }
    }

    /// Pushes what was built and writes the results that were asked for.
    fn deliver(
        &self,
        delivery: &Delivery,
        uploads: Option<&Uploads<'_>>,
        repo: Option<&Arc<SharedCache>>,
        steps: &[StepReport],
    ) -> Result<Vec<Pushed>, Error> {
        let Self { request, crew, bases, .. } = *self;
        let pushed = match uploads {
            Some(uploads) => uploads.publish(delivery, repo.map(|repo| &**repo))?,
            None => Vec::new(),
        };
        if let Some(repo) = repo.filter(|_| request.oci_layout.is_some() || request.tar.is_some()) {
            let layers: Vec<Digest> = delivery.layers().map(|layer| layer.digest).collect();
            repo.fetch_all(&layers, false, crew.observer)?;
        }
        outputs::write(request, delivery, bases, steps)?;
        Ok(pushed)
    }
}

/// Runs the stages of one platform and puts its image together.
fn make(shared: &Shared<'_>, plan: &Plan, epoch: Option<i64>) -> Result<Made, Error> {
    let built = shared.run_stages();
    shared.save_context_digests();
    let left = shared.leave_root(built.as_deref().ok());
    let finished = built?;
    let finished = match shared.request.single_snapshot {
        true => Arc::new(single::merge(shared, &finished)?),
        false => finished,
    };
    let image = assemble(shared.request, plan, &finished, epoch)?;
    left?;
    Ok(Made {
        platform: plan.stages[plan.target].platform.clone(),
        image,
        base: finished.base.clone(),
        misses: finished.misses,
    })
}

/// Reads the Dockerfile and the ignore rules that go with it.
fn read_dockerfile(
    request: &Request,
    name: Option<&str>,
    context: &Context,
) -> Result<(Dockerfile, Matcher), Error> {
    let file = context.dockerfile(name, Path::new("."))?;
    let dockerfile = dockerfile::parse_with(&file.name, &file.text, request.overrides.clone())?;
    let ignore = match &file.ignore {
        Some(rules) => Matcher::parse(&rules.text)
            .map_err(|source| Error::Ignore { file: rules.name.clone(), source })?,
        None => Matcher::default(),
    };
    Ok((dockerfile, ignore))
}

/// Plans the stages. Triggers out of base images may name further stages, so bases
/// are resolved (not fetched) until nothing new turns up.
fn plan_stages(
    options: &plan::Options,
    dockerfile: &Dockerfile,
    bases: &Bases,
) -> Result<Plan, Error> {
    let mut plan = plan::plan(dockerfile, options)?;
    let mut seen = Vec::new();
    loop {
        let next = plan.needed.iter().copied().find(|index| !seen.contains(index));
        let Some(index) = next else { return Ok(plan) };
        seen.push(index);
        let stage = &plan.stages[index];
        if let plan::Base::Image(name) = &stage.base {
            let base = bases
                .resolve(name, &stage.platform)
                .map_err(|error| error.or_stage(name, &plan).at(dockerfile, stage.span))?;
            plan.add_triggers(index, &base.config.config.on_build)?;
        }
    }
}

/// What planning needs to know of the request.
fn plan_options(request: &Request, platform: &Platform) -> plan::Options {
    plan::Options {
        build_args: request.build_args.clone(),
        target: request.target.clone(),
        platform: platform.clone(),
        build_platform: request.build_platform.clone(),
        contexts: request.contexts.clone(),
        network: request.network,
    }
}

/// Puts config and manifest together. Waits for layers on their way.
fn assemble(
    request: &Request,
    plan: &Plan,
    finished: &Finished,
    epoch: Option<i64>,
) -> Result<Assembled, Error> {
    let mut rows = Vec::with_capacity(finished.rows.len());
    for row in &finished.rows {
        let layer = match &row.layer {
            None => None,
            Some(slot) => {
                let facts = slot.wait()?;
                Some(LayerRow {
                    descriptor: facts.descriptor,
                    diff_id: facts.diff_id,
                    created: facts.created,
                })
            }
        };
        rows.push(Row { created_by: row.created_by.clone(), layer });
    }
    let base: Option<&Base> = finished.base.as_deref();
    let layers: Vec<Descriptor> =
        base.iter().flat_map(|base| &base.layers).map(|layer| layer.descriptor.clone()).collect();
    let platform = &plan.stages[plan.target].platform;
    Ok(crate::image::assemble(&Assemble {
        base: base.map(|base| BaseImage {
            config: &base.config,
            layers: &layers,
            media_type: &base.media_type,
        }),
        config: &finished.steps.config,
        author: finished.steps.author.as_deref(),
        platform,
        rows: &rows,
        labels: &request.labels,
        annotations: &request.annotations.at(Place::Manifest, platform),
        // Attestations are OCI's, and so is an index that holds them.
        format: request.format.or(request.provenance.is_some().then_some(Format::Oci)),
        epoch,
    })?)
}

/// Media type of new layers; the image may go by Docker's names for the same.
fn layer_media_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => media_type::OCI_LAYER,
        Compression::Gzip { .. } => media_type::OCI_LAYER_GZIP,
        Compression::Zstd { .. } => media_type::OCI_LAYER_ZSTD,
    }
}
