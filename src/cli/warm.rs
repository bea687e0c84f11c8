//! The warmer: flags to what is to be fetched, and its report.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;

use super::FAILURE;
use super::flags::Executor;
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
use crate::build::Warm;
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
    // Whatever a build has by default, but for what is said here.
    let mut build = Executor::try_parse_from(["executor", "--no-push"])
        .map_err(|error| wrong(error.to_string()))?
        .build;
    build.context = flags.context.clone().unwrap_or_default();
    build.build_arg.clone_from(&flags.build_arg);
    build.target.clone_from(&flags.target);
    build.custom_platform = flags.custom_platform.iter().cloned().collect();
    build.cache_dir.clone_from(&flags.cache_dir);
    build.cache_repo.clone_from(&flags.cache_repo);
    build.no_push_cache = true;
    build.pull = flags.pull.clone();
    let variable = |name: &str| variable(name).filter(|_| name != "KANIKO_NO_PUSH");
    let mut request = request::resolve(&build, &variable)?;
    if let Some(repo) = &mut request.cache_repo {
        repo.ttl = Some(flags.cache_ttl);
    }
    Ok(Warm {
        images: flags.image.clone(),
        dockerfiles: flags.dockerfile.clone(),
        has_context: flags.context.is_some(),
        force: flags.force,
        request,
    })
}
