//! `push` and `login`: what is to be pushed where, and by whom.

use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;

use super::FAILURE;
use super::flags::Executor;
use super::flags::Login;
use super::flags::Push as Flags;
use super::hint;
use super::interrupt;
use super::report::Reporter;
use super::request;
use super::request::FlagError;
use super::request::wrong;
use crate::build;
use crate::build::Push;
use crate::build::Request;
use crate::oci::digest::Digest;
use crate::registry;
use crate::registry::Client;
use crate::registry::Keychain;
use crate::sandbox::Cancel;

/// Longest password that standard input may hold, in bytes; tokens of some clouds have
/// several thousand.
const PASSWORD_MAX: u64 = 64 << 10;

/// Pushes an image that is there as files, and prints its digest.
pub(super) fn push(flags: &Flags) -> ExitCode {
    let logging = &flags.logging;
    let reporter = Reporter::new(logging.log_format, logging.verbosity, logging.log_timestamp);
    super::logging::start(logging.verbosity, logging.log_format, reporter.screen());
    let variable = |name: &str| std::env::var(name).ok();
    let request = match resolve(flags, &variable) {
        Ok(mut request) => {
            request.credentials.add_variables(std::env::vars());
            request
        }
        Err(error) => {
            reporter.error(&error.to_string(), None);
            return ExitCode::from(FAILURE);
        }
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    let listens = Cancel::new()
        .and_then(|cancel| interrupt::listen(Arc::clone(&interrupted), Arc::new(cancel)));
    if let Err(error) = listens {
        reporter.error(&format!("cannot listen for signals: {error}"), None);
        return ExitCode::from(FAILURE);
    }
    match carry_out(flags, &request, &interrupted) {
        Ok(digest) => {
            for destination in &request.destinations {
                reporter.done(&format!("{destination} pushed"));
            }
            super::print(&format!("{digest}\n"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            reporter.error(&build::chain(&error), hint(error.cause()).as_deref());
            match error.cause() {
                build::Error::Interrupted => ExitCode::from(interrupt::INTERRUPTED),
                _ => ExitCode::from(FAILURE),
            }
        }
    }
}

fn carry_out(
    flags: &Flags,
    request: &Request,
    interrupted: &AtomicBool,
) -> Result<Digest, build::Error> {
    let keychain = Keychain::read(&request.credentials)?;
    let client = Client::new(request.registry.clone(), keychain)?;
    let push = Push {
        path: &flags.path,
        destinations: &request.destinations,
        check: request.check_push,
        ignore_immutable_tags: request.ignore_immutable_tags,
        threads: request.threads.get(),
        interrupted,
    };
    let digest = build::push(&push, &client)?;
    if let Some(path) = &flags.digest_file {
        std::fs::write(path, digest.to_string())
            .map_err(|source| build::Error::Output { path: path.clone(), source })?;
    }
    Ok(digest)
}

fn resolve(flags: &Flags, variable: &dyn Fn(&str) -> Option<String>) -> Result<Request, FlagError> {
    // Whatever a build has by default, but for what is said here.
    let mut build =
        Executor::try_parse_from(["executor"]).map_err(|error| wrong(error.to_string()))?.build;
    build.destination.clone_from(&flags.destination);
    build.insecure = flags.insecure;
    build.skip_tls_verify = flags.skip_tls_verify;
    build.pull = flags.pull.clone();
    build.credential_helpers.clone_from(&flags.credential_helpers);
    build.push_ignore_immutable_tag_errors = flags.push_ignore_immutable_tag_errors;
    build.skip_push_permission_check = flags.skip_push_permission_check;
    build.push_retry = flags.push_retry;
    let variable = |name: &str| variable(name).filter(|_| name != "KANIKO_NO_PUSH");
    request::resolve(&build, &variable)
}

/// Keeps a password where the next build finds it.
pub(super) fn login(flags: &Login) -> ExitCode {
    let told = |text: &str| {
        super::eprintln(text);
        ExitCode::from(FAILURE)
    };
    let password = match &flags.password {
        Some(password) => password.clone(),
        None => {
            let mut text = String::new();
            if let Err(error) = std::io::stdin().take(PASSWORD_MAX).read_to_string(&mut text) {
                return told(&format!("error: cannot read the password: {error}"));
            }
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
    };
    if password.is_empty() || flags.username.is_empty() {
        return told("error: user name and password must not be empty");
    }
    // What comes after it would be taken for the password (RFC 7617).
    if flags.username.contains(':') {
        return told("error: a user name must not contain `:`");
    }
    let environment = registry::Environment::read(|name| std::env::var_os(name));
    match registry::login(&environment, &flags.registry, &flags.username, &password) {
        Ok(kept) => {
            super::eprintln(&format!("the password for {} is kept in {kept}", flags.registry));
            ExitCode::SUCCESS
        }
        Err(error) => told(&format!("error: {}", build::chain(&error))),
    }
}
