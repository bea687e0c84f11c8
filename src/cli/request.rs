//! From flags and environment to what a build is asked for.

use std::collections::HashSet;
use std::path::Path;
use std::path::PathBuf;

use super::attest;
use super::cache_limits;
use super::flags::Build;
use super::flags::CompressionKind;
use super::flags::FuseTransport;
use super::flags::ImageFormat;
use super::flags::NetworkKind;
use super::flags::Pull;
use super::flags::Snapshot;
use super::steering::Steering;
use crate::build::Request;
use crate::build::request::CachePlace;
use crate::build::request::CacheRepo;
use crate::build::request::RootChoice;
use crate::build::request::Secret;
use crate::build::request::SecretSource;
use crate::build::request::SnapshotMode;
use crate::image::Format;
use crate::image::annotation::Annotations;
use crate::layer::compress::Compression;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::overlay::Transport;
use crate::plan::step::Network;
use crate::registry;
use crate::snapshot::Mode as WalkMode;
use crate::step::run::Conditions;

mod places;

/// A flag that can't be used as it is.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct FlagError(String);

impl FlagError {
    /// A flag with a value that can't be read.
    pub(super) fn new(flag: &str, value: &str, reason: &str) -> Self {
        wrong(format!("{flag} {value}: {reason}"))
    }
}

pub(super) fn wrong(message: impl Into<String>) -> FlagError {
    FlagError(message.into())
}

/// Further tries of a failed request, even if none are asked for.
const LEAST_RETRIES: u32 = 4;

/// Level of zstd unless told otherwise, its own default.
const ZSTD_LEVEL: u8 = 3;

/// Host name of Docker Hub's registry, which `--registry-mirror` stands for.
const DOCKER_HUB: &str = "index.docker.io";

/// Resolves `flags`; `variable` reads the environment.
///
/// # Errors
/// A value that can't be read, named with its flag.
pub(super) fn resolve(
    flags: &Build,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Request, FlagError> {
    let no_push = match variable("KANIKO_NO_PUSH").filter(|value| !value.is_empty()) {
        Some(value) => value
            .to_ascii_lowercase()
            .parse::<bool>()
            .ok()
            .or(match value.as_str() {
                "1" | "t" => Some(true),
                "0" | "f" => Some(false),
                _ => None,
            })
            .ok_or_else(|| {
                wrong(format!("KANIKO_NO_PUSH is `{value}`: true or false is expected"))
            })?,
        None => flags.no_push.unwrap_or(false),
    };
    let destinations: Vec<Reference> = flags
        .destination
        .iter()
        .map(|text| {
            Reference::parse_destination(text)
                .map_err(|error| wrong(format!("--destination {text}: {error}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let asks = flags.check || flags.call.as_deref().is_some_and(|call| !call.starts_with("build"));
    if destinations.is_empty() && !no_push && !asks {
        return Err(wrong("no --destination: say where to push, or give --no-push"));
    }
    if destinations.is_empty()
        && (flags.image_name_with_digest_file.is_some()
            || flags.image_name_tag_with_digest_file.is_some())
    {
        return Err(wrong("a file for image names needs a --destination"));
    }
    if flags.tar_path.is_some() && flags.compression == CompressionKind::Zstd {
        return Err(wrong(
            "--tar-path holds gzip layers: it can't be used with --compression=zstd",
        ));
    }
    if flags.tar_path.is_some() && flags.image_format == Some(ImageFormat::Oci) {
        return Err(wrong(
            "--tar-path is Docker's format: it can't be used with --image-format=oci",
        ));
    }
    let (contexts, named_files) = places::contexts(&flags.build_context)?;
    let build_platform = Platform::host();
    let platforms = platforms(&flags.custom_platform, &build_platform)?;
    let provenance =
        attest::provenance(flags.provenance.as_deref(), &flags.attest).map_err(wrong)?;
    let annotations = annotations(&flags.annotation)?;
    let build_args = with_epoch(build_args(&flags.build_arg, variable)?, variable)?;
    let steering = Steering::read(&build_args).map_err(wrong)?;
    let alone = platforms.len() == 1 && provenance.is_none() && !steering.index;
    if alone && annotations.need_index() {
        return Err(wrong("--annotation: an image for one platform has no index to be annotated"));
    }
    if flags.tar_path.is_some() && !alone {
        return Err(wrong(
            "--tar-path holds one image and nothing about it: use --oci-layout-path for several \
             platforms and for provenance",
        ));
    }
    if provenance.is_some() && flags.image_format == Some(ImageFormat::Docker) {
        return Err(wrong(
            "Docker's media types have no attestations: use --image-format=oci for provenance",
        ));
    }
    let threads = std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN);
    let format = flags.image_format.map(|format| match format {
        ImageFormat::Oci => Format::Oci,
        ImageFormat::Docker => Format::Docker,
    });
    let cache_limits = cache_limits::limits(flags.cache_max_size.as_deref(), &flags.cache_ttl)?;
    let cache_repo = cache_repo(flags, no_push, &destinations)?
        .map(|repo| CacheRepo { ttl: cache_limits.ttl, ..repo });
    Ok(Request {
        context: flags.context.clone(),
        context_sub_path: flags.context_sub_path.clone(),
        dockerfile: flags.dockerfile.clone(),
        destinations,
        push: !no_push,
        build_args,
        target: flags.target.clone(),
        overrides: steering.overrides,
        index: steering.index,
        labels: pairs("--label", &flags.label)?,
        platform: platforms.first().cloned().unwrap_or_else(|| build_platform.clone()),
        platforms,
        provenance,
        build_platform,
        cache: flags.cache.unwrap_or(true),
        cache_copy: flags.cache_copy_layers,
        cache_run: flags.cache_run_layers,
        no_cache: flags.no_cache,
        no_cache_filter: flags.no_cache_filter.iter().map(|name| name.to_lowercase()).collect(),
        cache_dir: cache_dir(flags.cache_dir.as_deref(), variable),
        cache_repo,
        cache_limits,
        snapshot: match flags.snapshot_mode {
            Snapshot::Log => SnapshotMode::Log,
            Snapshot::Full => SnapshotMode::Walk(WalkMode::Full),
            Snapshot::Redo => SnapshotMode::Walk(WalkMode::Redo),
            Snapshot::Time => SnapshotMode::Walk(WalkMode::Time),
        },
        root: RootChoice::default(), // the ladder decides
        fuse_transport: match flags.fuse_transport {
            FuseTransport::Auto => Transport::Auto,
            FuseTransport::Device => Transport::Device,
            FuseTransport::Ring => Transport::Ring,
            FuseTransport::Fuser => Transport::Fuser,
        },
        fuse_passthrough: flags.fuse_passthrough,
        oci_layout: flags.oci_layout_path.clone(),
        tar: flags.tar_path.clone(),
        digest_file: flags.digest_file.clone(),
        metadata_file: flags.metadata_file.clone(),
        name_digest_file: flags.image_name_with_digest_file.clone(),
        name_tag_digest_file: flags.image_name_tag_with_digest_file.clone(),
        format: format.or(flags.tar_path.is_some().then_some(Format::Docker)),
        compression: compression(flags)?,
        source_date_epoch: flags.reproducible.then_some(0),
        rewrite_timestamp: flags.rewrite_timestamp,
        annotations,
        single_snapshot: flags.single_snapshot,
        ignore_immutable_tags: flags.push_ignore_immutable_tag_errors,
        secrets: secrets(&flags.secret, variable)?,
        ssh: places::ssh(&flags.ssh, variable)?,
        git: places::git(&flags.git, &flags.build_arg, variable)?,
        contexts,
        named_files,
        network: match flags.network {
            NetworkKind::Default => Network::Default,
            NetworkKind::None => Network::None,
            NetworkKind::Host => Network::Host,
        },
        conditions: Conditions { hostname: steering.hostname, ..places::conditions(flags)? },
        registry: registry_options(
            &flags.pull,
            flags.insecure,
            flags.skip_tls_verify,
            flags.push_retry.max(flags.image_download_retry),
            variable,
        )?,
        credentials: registry::Environment {
            well_known: helpers(&flags.credential_helpers)?,
            ..registry::Environment::read(|name| variable(name).map(Into::into))
        },
        check_push: !flags.skip_push_permission_check,
        threads,
    })
}

/// The shared cache. kaniko's default, `<first destination>/cache`, holds where
/// kaniko would have it: with `--cache` given. Our own cache is on without it, and
/// a build that nobody told to do so writes to no further repository.
fn cache_repo(
    flags: &Build,
    no_push: bool,
    destinations: &[Reference],
) -> Result<Option<CacheRepo>, FlagError> {
    let place = match (&flags.cache_repo, destinations.first()) {
        (Some(text), _) => cache_place(text)?,
        (None, Some(first)) if flags.cache == Some(true) && !no_push => {
            let text = format!("{}/cache", first.name());
            cache_place(&text).map_err(|error| {
                wrong(format!("no place for the shared cache, give --cache-repo: {error}"))
            })?
        }
        _ => return Ok(None),
    };
    Ok(Some(CacheRepo { place, push: !flags.no_push_cache, ttl: None }))
}

/// `REPOSITORY`, or `oci:DIR`.
fn cache_place(text: &str) -> Result<CachePlace, FlagError> {
    if let Some(directory) = text.strip_prefix("oci:") {
        if directory.is_empty() {
            return Err(wrong("--cache-repo oci: a directory is expected after it"));
        }
        return Ok(CachePlace::Layout(directory.into()));
    }
    Reference::parse_destination(text)
        .map(CachePlace::Registry)
        .map_err(|error| wrong(format!("--cache-repo {text}: {error}")))
}

/// `--cache-dir`, or `/cache` where the image has it, or the user's cache directory.
pub(super) fn cache_dir(
    given: Option<&Path>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> PathBuf {
    if let Some(directory) = given {
        return directory.to_owned();
    }
    let in_image = PathBuf::from("/cache");
    if in_image.is_dir() {
        return in_image;
    }
    let base = variable("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map_or_else(
        || PathBuf::from(variable("HOME").unwrap_or_else(|| "/root".to_owned())).join(".cache"),
        PathBuf::from,
    );
    base.join("yadokari")
}

fn compression(flags: &Build) -> Result<Compression, FlagError> {
    let level = flags.compression_level;
    let in_range = |highest: u8| match u8::try_from(level) {
        Ok(0) => Ok(None),
        Ok(level) if level <= highest => Ok(Some(level)),
        Err(_) if level < 0 => Ok(None),
        _ => Err(wrong(format!("--compression-level {level}: at most {highest} is possible"))),
    };
    match flags.compression {
        CompressionKind::Gzip => Ok(in_range(12)?.map_or(Compression::DEFAULT, |level| {
            Compression::Gzip { level, single_member: false }
        })),
        CompressionKind::Zstd => {
            if flags.image_format == Some(ImageFormat::Docker) {
                return Err(wrong(
                    "Docker's media types have no zstd layers: use --image-format=oci",
                ));
            }
            Ok(Compression::Zstd { level: in_range(22)?.unwrap_or(ZSTD_LEVEL) })
        }
    }
}

/// SOURCE_DATE_EPOCH of the environment counts as a build argument, as for buildx.
fn with_epoch(
    mut arguments: Vec<(String, Option<String>)>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<(String, Option<String>)>, FlagError> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    let given = arguments.iter().any(|(name, _)| name == NAME);
    if let Some(text) = variable(NAME).filter(|value| !value.is_empty() && !given) {
        if text.parse::<i64>().is_err() {
            let expected = "whole seconds since 1970 are expected";
            return Err(wrong(format!("{NAME} is `{text}`: {expected}")));
        }
        arguments.push((NAME.to_owned(), Some(text)));
    }
    Ok(arguments)
}

/// The platforms, each once; without any, our own.
fn platforms(given: &[String], host: &Platform) -> Result<Vec<Platform>, FlagError> {
    let mut platforms: Vec<Platform> = Vec::new();
    for text in given.iter().filter(|text| !text.is_empty()) {
        let platform =
            text.parse().map_err(|error| wrong(format!("--custom-platform {text}: {error}")))?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    if platforms.is_empty() {
        platforms.push(host.clone());
    }
    Ok(platforms)
}

fn annotations(given: &[String]) -> Result<Annotations, FlagError> {
    let mut annotations = Annotations::default();
    for text in given {
        annotations
            .add(text)
            .map_err(|message| wrong(format!("--annotation {text}: {message}")))?;
    }
    Ok(annotations)
}

/// `--credential-helpers`: all without the flag, none for an empty one.
fn helpers(given: &[String]) -> Result<Vec<registry::WellKnown>, FlagError> {
    if given.is_empty() {
        return Ok(registry::WellKnown::ALL.to_vec());
    }
    given
        .iter()
        .filter(|name| !name.is_empty())
        .map(|name| {
            registry::WellKnown::named(name).ok_or_else(|| {
                wrong(format!(
                    "--credential-helpers {name}: env, google, ecr, acr and gitlab are known"
                ))
            })
        })
        .collect()
}

/// `KEY=VALUE`, or `KEY` for the value in the environment; a later one wins.
fn build_args(
    given: &[String],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<(String, Option<String>)>, FlagError> {
    let mut arguments: Vec<(String, Option<String>)> = Vec::new();
    for text in given {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), variable(text)),
        };
        if name.is_empty() {
            return Err(wrong(format!("--build-arg {text}: the name is missing")));
        }
        arguments.retain(|(known, _)| known != name);
        arguments.push((name.to_owned(), value));
    }
    Ok(arguments)
}

/// `KEY=VALUE` pairs; a later one wins.
fn pairs(flag: &str, given: &[String]) -> Result<Vec<(String, String)>, FlagError> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for text in given {
        let (name, value) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| wrong(format!("{flag} {text}: KEY=VALUE is expected")))?;
        pairs.retain(|(known, _)| known != name);
        pairs.push((name.to_owned(), value.to_owned()));
    }
    Ok(pairs)
}

/// `id=NAME[,type=file|env][,src=PATH][,env=VARIABLE]`.
fn secrets(
    given: &[String],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Secret>, FlagError> {
    let mut secrets: Vec<Secret> = Vec::new();
    let mut ids = HashSet::new();
    for text in given {
        let bad = |reason: &str| wrong(format!("--secret {text}: {reason}"));
        let (mut id, mut kind, mut source, mut env) = (None, None, None, None);
        for field in text.split(',') {
            let (key, value) =
                field.split_once('=').ok_or_else(|| bad("KEY=VALUE fields are expected"))?;
            match key {
                "id" => id = Some(value.to_owned()),
                "type" => kind = Some(value.to_owned()),
                "src" | "source" => source = Some(value.to_owned()),
                "env" => env = Some(value.to_owned()),
                other => {
                    return Err(bad(&format!(
                        "`{other}` is unknown; id, type, src and env are known"
                    )));
                }
            }
        }
        let id = id.filter(|id| !id.is_empty()).ok_or_else(|| bad("id is missing"))?;
        if !ids.insert(id.clone()) {
            return Err(bad("the id was given before"));
        }
        let source = match (kind.as_deref(), source, env) {
            (_, Some(_), Some(_)) => return Err(bad("src and env exclude each other")),
            (Some("env"), Some(name), None) | (None | Some("env"), None, Some(name)) => {
                SecretSource::Environment(name)
            }
            (None | Some("file"), Some(path), None) => SecretSource::File(path.into()),
            (Some("file"), None, Some(_)) => return Err(bad("a file has a src, not an env")),
            (Some("env"), None, None) => SecretSource::Environment(id.clone()),
            (Some("file"), None, None) => SecretSource::File(id.clone().into()),
            (None, None, None) if variable(&id).is_some() => SecretSource::Environment(id.clone()),
            (None, None, None) => SecretSource::File(id.clone().into()),
            (Some(other), ..) => {
                return Err(bad(&format!("type `{other}` is unknown; file and env are known")));
            }
        };
        secrets.push(Secret { id, source });
    }
    Ok(secrets)
}

/// How registries are reached; `insecure` and `skip_tls_verify` for pushing,
/// `retries` as far as they are asked for.
fn registry_options(
    flags: &Pull,
    insecure: bool,
    skip_tls_verify: bool,
    retries: u32,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<registry::Options, FlagError> {
    let mut maps: Vec<(String, Vec<String>)> = Vec::new();
    let mut add = |origin: &str, place: &str| match maps.iter_mut().find(|(name, _)| name == origin)
    {
        Some((_, places)) => places.push(place.to_owned()),
        None => maps.push((origin.to_owned(), vec![place.to_owned()])),
    };
    for text in flags.registry_map.iter().cloned().chain(variable("KANIKO_REGISTRY_MAP")) {
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (origin, place) = pair
                .split_once('=')
                .ok_or_else(|| wrong(format!("--registry-map {text}: ORIGIN=NEW is expected")))?;
            add(origin, place);
        }
    }
    for mirror in flags.registry_mirror.iter().cloned().chain(variable("KANIKO_REGISTRY_MIRROR")) {
        if !mirror.is_empty() {
            add(DOCKER_HUB, &mirror);
        }
    }
    let certificates = pairs("--registry-certificate", &flags.registry_certificate)?
        .into_iter()
        .map(|(host, path)| (host, path.into()))
        .collect();
    let client_certificates = pairs("--registry-client-cert", &flags.registry_client_cert)?
        .into_iter()
        .map(|(host, files)| {
            let (certificate, key) = files.split_once(',').ok_or_else(|| {
                wrong(format!("--registry-client-cert {host}={files}: CERT,KEY is expected"))
            })?;
            Ok((host, (certificate.into(), key.into())))
        })
        .collect::<Result<Vec<_>, FlagError>>()?;
    Ok(registry::Options {
        insecure,
        insecure_pull: flags.insecure_pull,
        insecure_registries: flags.insecure_registry.clone(),
        skip_tls_verify,
        skip_tls_verify_pull: flags.skip_tls_verify_pull,
        skip_tls_verify_registries: flags.skip_tls_verify_registry.clone(),
        certificates,
        client_certificates,
        mirrors: maps,
        skip_default_fallback: flags.skip_default_registry_fallback,
        retries: retries.max(LEAST_RETRIES),
        user_agent: user_agent(variable),
        ..registry::Options::default()
    })
}

fn user_agent(variable: &dyn Fn(&str) -> Option<String>) -> String {
    let own = concat!("yadokari/", env!("CARGO_PKG_VERSION"));
    match variable("UPSTREAM_CLIENT_TYPE").filter(|value| !value.is_empty()) {
        Some(client) => format!("{own},{client}"),
        None => own.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::Executor;
    use clap::Parser;

    fn request(words: &[&str]) -> Result<Request, String> {
        let executor = Executor::try_parse_from(std::iter::once(&"executor").chain(words))
            .map_err(|error| error.to_string())?;
        let environment = |name: &str| match name {
            "HOME" => Some("/home/me".to_owned()),
            "TOKEN" => Some("hidden".to_owned()),
            _ => None,
        };
        resolve(&executor.build, &environment).map_err(|error| error.to_string())
    }

    #[test]
    fn a_build_needs_a_destination_or_no_push() {
        assert!(request(&[]).map(drop).expect_err("nothing given").contains("--no-push"));
        assert!(!request(&["--no-push"]).is_ok_and(|request| request.push));
        assert!(request(&["-d", "localhost:5000/a/b"]).expect("enough").push);
        assert!(request(&["-d", "UPPER/case:tag:tag"]).is_err());
    }

    #[test]
    fn build_args_come_from_the_environment_when_bare() {
        let request =
            request(&["--no-push", "--build-arg=A=1=2", "--build-arg=TOKEN", "--build-arg=NONE"])
                .expect("valid");
        assert_eq!(
            request.build_args,
            [
                ("A".to_owned(), Some("1=2".to_owned())),
                ("TOKEN".to_owned(), Some("hidden".to_owned())),
                ("NONE".to_owned(), None),
            ]
        );
    }

    #[test]
    fn a_shared_cache_is_used_where_kaniko_would_use_one_or_where_it_is_named() {
        let repo = |words: &[&str]| request(words).map(|request| request.cache_repo);
        let at = |text: &str| {
            let place = cache_place(text).expect("a place");
            Ok(Some(CacheRepo {
                place,
                push: true,
                ttl: Some(std::time::Duration::from_secs(336 * 3600)),
            }))
        };
        assert_eq!(repo(&["-d=r.test/a/b:1"]), Ok(None));
        assert_eq!(
            repo(&["-d=r.test/a/b:1", "-d=r.test/other", "--cache"]),
            at("r.test/a/b/cache")
        );
        assert_eq!(repo(&["-d=r.test/a/b:1", "--cache", "--no-push"]), Ok(None));
        assert_eq!(repo(&["-d=r.test/a/b:1", "--cache-repo=r.test/cache"]), at("r.test/cache"));
        assert_eq!(repo(&["--no-push", "--cache-repo=oci:/x"]), at("oci:/x"));
        let read_only = repo(&["--no-push", "--cache-repo=r.test/cache", "--no-push-cache"]);
        assert!(read_only.is_ok_and(|repo| repo.is_some_and(|repo| !repo.push)));
        assert!(repo(&["--no-push", "--cache-repo=oci:"]).is_err());
        assert!(repo(&["--no-push", "--cache-repo=A B"]).is_err());
    }

    #[test]
    fn secrets_are_files_or_variables() {
        let one = |text: &str| {
            request(&["--no-push", "--secret", text]).map(|r| r.secrets[0].source.clone())
        };
        assert_eq!(one("id=a,src=/x"), Ok(SecretSource::File("/x".into())));
        assert_eq!(one("id=a,env=B"), Ok(SecretSource::Environment("B".to_owned())));
        assert_eq!(one("id=a,type=env,src=B"), Ok(SecretSource::Environment("B".to_owned())));
        assert_eq!(one("id=TOKEN"), Ok(SecretSource::Environment("TOKEN".to_owned())));
        assert_eq!(one("id=other"), Ok(SecretSource::File("other".into())));
        for bad in ["src=/x", "id=a,src=x,env=y", "id=a,color=red", "id"] {
            assert!(one(bad).is_err(), "{bad}");
        }
    }
}
