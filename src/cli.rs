//! The door: command line and environment in, exit code out.
//!
//! `flags` is what was typed, `request` what it means, `report` the only place
//! that prints. The same binary is `yadokari` and, by the name it is called,
//! kaniko's `executor` or `warmer`.

mod attest;
pub mod cache;
mod cache_limits;
pub mod cache_mount;
mod call;
mod doctor;
pub mod flags;
mod interrupt;
mod ladder;
mod logging;
mod push;
mod report;
mod request;
mod screen;
mod steering;
mod warm;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;

use crate::build;
use crate::build::Crew;
use crate::build::Later;
use crate::build::Observer;
use crate::build::Progress;
use crate::build::Report;
use crate::build::Request;
use crate::build::call::Question;
use crate::sandbox::Cancel;
use crate::sandbox::Namespaces;
use crate::sandbox::raise_open_files;
use flags::Build;
use flags::Command;
use flags::Executor;
use flags::ExecutorCommand;
use flags::Warmer;
use flags::Yadokari;
use report::Reporter;

/// Exit code for everything that is no failed RUN.
const FAILURE: u8 = 1;

/// Runs what `arguments` say; the first is the name we were called by.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let name = arguments
        .first()
        .and_then(|first| Path::new(first).file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let as_executor = name == "executor";
    let words = arguments.iter().skip(1).filter_map(|word| word.to_str());
    // The warmer has all of kaniko's.
    let is_warmer = name == "warmer" || words.clone().next() == Some("warm");
    if let Some(missing) = flags::missing_flag(words).filter(|_| !is_warmer) {
        eprintln(&format!("error: --{missing} is not there yet; nothing was built"));
        return ExitCode::from(FAILURE);
    }
    let parsed = if as_executor {
        Executor::try_parse_from(arguments).map(|executor| match executor.command {
            Some(ExecutorCommand::Version) => Command::Version,
            Some(ExecutorCommand::Push(flags)) => Command::Push(flags),
            Some(ExecutorCommand::Login(flags)) => Command::Login(flags),
            None => Command::Build(Box::new(executor.build)),
        })
    } else if name == "warmer" {
        Warmer::try_parse_from(arguments).map(|warmer| Command::Warm(Box::new(warmer.warm)))
    } else {
        Yadokari::try_parse_from(arguments).map(|yadokari| yadokari.command)
    };
    match parsed {
        Ok(Command::Version) => {
            println!("yadokari {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Command::Build(flags)) => run_build(&flags),
        Ok(Command::Cache(arguments)) => cache::run(&arguments, &|name| std::env::var(name).ok()),
        Ok(Command::Warm(flags)) => warm::run(&flags),
        Ok(Command::Doctor(flags)) => doctor::run(&flags),
        Ok(Command::Push(flags)) => push::push(&flags),
        Ok(Command::Login(flags)) => push::login(&flags),
        Err(error) => {
            // Help and version are no errors and go to standard output.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { FAILURE } else { 0 })
        }
    }
}

fn run_build(flags: &Build) -> ExitCode {
    let log = &flags.logging;
    let reporter =
        Reporter::new(log.log_format, log.verbosity, log.log_timestamp).explaining(flags.explain);
    logging::start(log.verbosity, log.log_format, reporter.screen());
    let variable = |name: &str| std::env::var(name).ok();
    let mut request = match request::resolve(flags, &variable) {
        Ok(mut request) => {
            request.credentials.add_variables(std::env::vars());
            request
        }
        Err(error) => {
            reporter.error(&error.to_string(), None);
            return ExitCode::from(FAILURE);
        }
    };
    let call = match call::Call::read(flags.call.as_deref(), flags.check) {
        Ok(call) => call,
        Err(error) => {
            reporter.error(&error, None);
            return ExitCode::from(FAILURE);
        }
    };
    let question = call.question.or(flags.dryrun.then_some(Question::Plan));
    if let Some(question) = question {
        return answer(&reporter, &request, question, call);
    }
    raise_open_files();
    // Before any thread: everything we mount is seen by us and our children alone,
    // and goes when we go, however we end.
    match ladder::choose(flags, &request, &variable) {
        Ok(chosen) => {
            reporter.observe(match chosen.warning {
                None => Progress::Root { root: chosen.name, detail: chosen.why },
                Some(warning) => Progress::Warning(warning),
            });
            request.root = chosen.root;
        }
        Err(refusal) => {
            reporter.error(&refusal, None);
            return ExitCode::from(FAILURE);
        }
    }
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
    let built = build::build(&request, &crew);
    for fallback in runner.fallbacks() {
        reporter.observe(Progress::Warning(fallback.to_string()));
    }
    reporter.screen().close();
    reporter.findings();
    let code = match built {
        Ok(report) => {
            tell(&reporter, &report);
            ExitCode::SUCCESS
        }
        Err(error) => fail(&reporter, &error),
    };
    later.run(&reporter, &interrupted);
    code
}

/// Answers `--check` and `--call`: nothing is built, and nothing can be interrupted
/// that would leave something behind.
fn answer(
    reporter: &Reporter,
    request: &Request,
    question: Question,
    call: call::Call,
) -> ExitCode {
    let cancel = match Cancel::new() {
        Ok(cancel) => Arc::new(cancel),
        Err(error) => {
            reporter.error(&format!("cannot start: {error}"), None);
            return ExitCode::from(FAILURE);
        }
    };
    let runner = Namespaces::of_this_program();
    let interrupted = AtomicBool::new(false);
    let later = Later::default();
    let crew = Crew {
        observer: reporter,
        runner: &runner,
        cancel,
        interrupted: &interrupted,
        later: &later,
    };
    match build::call::ask(request, question, &crew) {
        Ok(answer) => {
            print(&call::render(&answer, call.json));
            let failed = call::is_bad(&answer) && !call.ignore_status;
            ExitCode::from(if failed { FAILURE } else { 0 })
        }
        Err(error) => {
            if call.json && question == Question::Check {
                let message = build::chain(&error);
                let value = serde_json::json!({
                    "warnings": [], "sources": [], "error": { "message": message },
                });
                print(&format!("{value:#}\n"));
            }
            fail(reporter, &error)
        }
    }
}

/// To standard output; a closed pipe is no reason to panic.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

fn tell(reporter: &Reporter, report: &Report) {
    for pushed in &report.pushed {
        let how = if pushed.unchanged { "is up to date" } else { "pushed" };
        reporter.done(&format!("{} {how}", pushed.destination));
    }
    reporter.done(&format!("image {}", report.config));
    println!("{}", report.manifest);
}

/// Tells why a build failed and chooses the exit code: a failed RUN's own, 130
/// when interrupted, 1 otherwise.
fn fail(reporter: &Reporter, error: &build::Error) -> ExitCode {
    let cause = error.cause();
    if let build::Error::RunFailed { output, .. } = cause
        && !output.is_empty()
    {
        reporter.error("the last lines of the failed step:", None);
        for line in output {
            reporter.screen().line(&format!("  {line}"));
        }
    }
    match error.placed() {
        Some(place) => {
            reporter.placed_error(&place.render(), &build::chain(error), hint(cause).as_deref())
        }
        None => reporter.error(&build::chain(error), hint(cause).as_deref()),
    }
    match cause {
        build::Error::Interrupted => ExitCode::from(interrupt::INTERRUPTED),
        _ => ExitCode::from(cause.exit_code().unwrap_or(FAILURE)),
    }
}

/// What a user may do about it, where the message doesn't say so itself.
fn hint(cause: &build::Error) -> Option<String> {
    match cause {
        build::Error::Root(crate::rootfs::Error::Mount(_)) => Some(
            "RUN needs /dev/fuse and the right to mount (CAP_SYS_ADMIN), or a container whose \
             root may be used: `yadokari doctor` tells more"
                .to_owned(),
        ),
        build::Error::Denied(error) => error.hint(),
        other => other.registry()?.hint(),
    }
}

fn eprintln(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
