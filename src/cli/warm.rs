//! The warmer: flags to what is to be fetched, and its report.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::FAILURE;
use super::flags::Warm as Flags;
use super::hint;
use super::interrupt;
use super::report::Reporter;
use super::request;
use super::request::FlagError;
use super::request::wrong;
use crate::build;
use crate::build::Crew;
use crate::build::Later;
use crate::build::Request;
use crate::build::Warm;
use crate::build::request::CacheRepo;
use crate::build::request::SnapshotMode;
use crate::layer::compress::Compression;
use crate::oci::platform::Platform;
use crate::registry;
use crate::sandbox::Cancel;
use crate::sandbox::Namespaces;

/// Runs the warmer: success if everything that was asked for is here.
pub(super) fn run(flags: &Flags) -> ExitCode {
    let logging = &flags.logging;
    let reporter = Reporter::new(logging.log_format, logging.verbosity, logging.log_timestamp);
    super::logging::start(logging.verbosity, logging.log_format, reporter.screen());
    let variable = |name: &str| std::env::var(name).ok();
    let warm = match resolve(flags, &variable) {
        Ok(warm) => warm,
        Err(error) => {
            reporter.error(&error.to_string(), None);
            return ExitCode::from(FAILURE);
        }
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    let started = Cancel::new().map(Arc::new).and_then(|cancel| {
        interrupt::listen(Arc::clone(&interrupted), Arc::clone(&cancel))?;
        Ok(cancel)
    });
    let cancel = match started {
        Ok(cancel) => cancel,
        Err(error) => {
            reporter.error(&format!("cannot listen for signals: {error}"), None);
            return ExitCode::from(FAILURE);
        }
    };
    let runner = Namespaces::of_this_program();
    let later = Later::default();
    let crew = Crew {
        observer: &reporter,
        runner: &runner,
        cancel,
        interrupted: &interrupted,
        later: &later,
    };
    let warmed = build::warm(&warm, &crew);
    reporter.screen().close();
    let warmed = match warmed {
        Ok(warmed) => warmed,
        Err(error) => {
            reporter.error(&build::chain(&error), hint(error.cause()).as_deref());
            return ExitCode::from(FAILURE);
        }
    };
    let mut code = ExitCode::SUCCESS;
    for one in &warmed {
        match &one.outcome {
            Ok(()) => reporter.done(&format!("{} is warm", one.name)),
            Err(error) => {
                let text = format!("{}: {}", one.name, build::chain(error));
                reporter.error(&text, hint(error.cause()).as_deref());
                code = match error.cause() {
                    build::Error::Interrupted => ExitCode::from(interrupt::INTERRUPTED),
                    _ => ExitCode::from(FAILURE),
                };
            }
        }
    }
    code
}

fn resolve(flags: &Flags, variable: &dyn Fn(&str) -> Option<String>) -> Result<Warm, FlagError> {
    if flags.image.is_empty() && flags.dockerfile.is_empty() {
        return Err(wrong("nothing to warm: give --image or --dockerfile"));
    }
    if flags.dockerfile.is_empty() && (flags.cache_repo.is_some() || flags.context.is_some()) {
        return Err(wrong("--cache-repo and --context need a --dockerfile: images have no steps"));
    }
    let build_platform = Platform::host();
    let platform = match &flags.custom_platform {
        Some(text) => {
            text.parse().map_err(|error| wrong(format!("--custom-platform {text}: {error}")))?
        }
        None => build_platform.clone(),
    };
    let repo = match &flags.cache_repo {
        Some(text) => Some(CacheRepo {
            place: request::cache_place(text)?,
            push: false,
            ttl: Some(flags.cache_ttl),
        }),
        None => None,
    };
    let threads = std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN);
    Ok(Warm {
        images: flags.image.clone(),
        dockerfiles: flags.dockerfile.clone(),
        has_context: flags.context.is_some(),
        force: flags.force,
        request: Request {
            context: flags.context.clone().unwrap_or_default(),
            context_sub_path: None,
            dockerfile: None,
            destinations: Vec::new(),
            push: false,
            build_args: request::build_args(&flags.build_arg, variable)?,
            target: flags.target.clone(),
            labels: Vec::new(),
            platform,
            build_platform,
            cache: true,
            cache_copy: true,
            cache_run: true,
            cache_dir: request::cache_dir(flags.cache_dir.as_deref(), variable),
            cache_repo: repo,
            snapshot: SnapshotMode::Log,
            oci_layout: None,
            tar: None,
            digest_file: None,
            name_digest_file: None,
            name_tag_digest_file: None,
            format: None,
            compression: Compression::DEFAULT,
            source_date_epoch: request::epoch(variable)?,
            secrets: Vec::new(),
            registry: request::registry_options(&flags.pull, false, false, 0, variable)?,
            credentials: registry::Environment::read(|name| variable(name).map(Into::into)),
            check_push: false,
            threads,
        },
    })
}
