//! The story of a build: a Dockerfile in, an image out.
//!
//! [`build`] walks it once, top to bottom. Each stage runs its step loop
//! ([`stage`]): key ([`key`], [`inputs`]) → look up → on a miss execute, snapshot
//! and hand the change set to the layer writer ([`layers`]), which works behind
//! the next step. `publish` uploads finished layers meanwhile.
//!
//! Nothing here prints: what happens is told to an [`Observer`].

pub mod base;
pub mod call;
mod client;
mod delivery;
mod error;
mod foreign;
pub mod inputs;
pub mod key;
pub mod layers;
mod mounts;
mod outputs;
pub mod progress;
mod publish;
mod remote;
pub mod request;
mod shared;
mod single;
pub mod slot;
pub mod stage;
pub mod survey;
mod tail;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use yadokari_cache::Access;
use yadokari_cache::Cache;
use yadokari_cache::Fold;

pub use error::Error;
pub use error::chain;
pub use progress::Observer;
pub use progress::Progress;
pub use publish::Pushed;
pub use request::Request;

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
use client::LazyClient;
use delivery::Delivery;
use delivery::Made;
use layers::Workshop;
use publish::Uploads;
use remote::Remotes;
use remote::Watch;
use shared::Shared;
use stage::Finished;

/// What a build made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digest of the config: the image ID.
    pub config: Digest,
    /// Where it was pushed.
    pub pushed: Vec<Pushed>,
    /// Steps of the target stage that ran.
    pub misses: u32,
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
}

/// Builds what `request` asks for.
///
/// # Errors
/// The first thing that failed. Everything finished before stays in the cache.
pub fn build(request: &Request, crew: &Crew<'_>) -> Result<Report, Error> {
    let cache = Arc::new(Cache::open(&request.cache_dir, Access::ReadWrite)?);
    let store = Arc::new(Store::open(&request.cache_dir)?.with_lease(cache.lease()?));
    let remotes = Remotes::new(request, Arc::clone(&store), Arc::clone(&cache));
    let watch = Watch { observer: crew.observer, interrupted: crew.interrupted };
    let mut context = remotes.context(&request.context, watch)?;
    if let Some(below) = &request.context_sub_path {
        context = context.below(&RootPath::clamped(below.as_bytes()).unwrap_or_default())?;
    }
    let (dockerfile, ignore) = read_dockerfile(request, &context)?;
    let client = LazyClient::new(request.registry.clone(), request.credentials.clone());
    let bases = Bases::new(Arc::new(client), Arc::clone(&store));
    let mut plans = Vec::with_capacity(request.platforms.len());
    for platform in &request.platforms {
        let plan = plan_stages(request, platform, &dockerfile, &bases)?;
        let steps = survey::lint(&plan, &bases, &ignore, crew)?;
        foreign::check(&plan, &steps, &request.build_platform.architecture, &store)?;
        plans.push(plan);
    }
    let uploads = (request.push && !request.destinations.is_empty()).then(|| {
        let destinations = request.destinations.clone();
        Uploads::new(&bases, destinations, request.check_push, request.ignore_immutable_tags)
    });
    let mut made = Vec::with_capacity(plans.len());
    let mut counted = 0;
    let mut built = Ok(());
    for plan in &plans {
        let epoch = plan.source_date_epoch.or(request.source_date_epoch);
        let workshop = Workshop {
            store: Arc::clone(&store),
            cache: Arc::clone(&cache),
            compression: request.compression,
            media_type: layer_media_type(request.compression).to_owned(),
            clamp: epoch.filter(|_| request.rewrite_timestamp),
            threads: request.threads,
        };
        let shared = Shared::new(
            request,
            &dockerfile,
            plan,
            epoch,
            &context,
            ignore.clone(),
            &workshop,
            &bases,
            &remotes,
            uploads.as_ref(),
            crew,
        );
        shared.count_from(counted);
        let image = make(&shared, plan, epoch);
        shared.save_context_digests();
        counted = shared.counted();
        match image {
            Ok(image) => made.push(image),
            Err(error) => {
                built = Err(error);
                break;
            }
        }
    }
    // Whatever finished is kept, also when something else failed.
    if let Err(error) = cache.fold(Fold::IfWorthwhile) {
        crew.observer.observe(Progress::Warning(format!("the cache index is behind: {error}")));
    }
    for notice in cache.take_notices() {
        crew.observer.observe(Progress::Warning(notice.to_string()));
    }
    built.map_err(|error| error.at_layer(&dockerfile))?;
    let delivery = Delivery::new(request, &bases, made);
    let pushed = match &uploads {
        Some(uploads) => uploads.publish(&delivery)?,
        None => Vec::new(),
    };
    outputs::write(request, &delivery, &bases)?;
    Ok(Report {
        manifest: delivery.top().digest,
        config: delivery.first().image.config.digest,
        pushed,
        misses: delivery.misses(),
    })
}

/// Runs the stages of one platform and puts its image together.
fn make(shared: &Shared<'_>, plan: &Plan, epoch: Option<i64>) -> Result<Made, Error> {
    let finished = shared.run_stages()?;
    let finished = match shared.request.single_snapshot {
        true => Arc::new(single::merge(shared, &finished)?),
        false => finished,
    };
    let image = assemble(shared.request, plan, &finished, epoch)?;
    Ok(Made {
        platform: plan.stages[plan.target].platform.clone(),
        image,
        base: finished.base.clone(),
        misses: finished.misses,
    })
}

/// Reads the Dockerfile and the ignore rules that go with it.
fn read_dockerfile(request: &Request, context: &Context) -> Result<(Dockerfile, Matcher), Error> {
    let file = context.dockerfile(request.dockerfile.as_deref(), Path::new("."))?;
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
    request: &Request,
    platform: &Platform,
    dockerfile: &Dockerfile,
    bases: &Bases,
) -> Result<Plan, Error> {
    let mut plan = plan::plan(dockerfile, &plan_options(request, platform))?;
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
