//! Flags that several command lines have in common.

use clap::ArgAction;
use clap::Args;

use super::LogFormat;
use super::Verbosity;
use super::boolean;

/// How registries are reached, for whoever pulls.
#[derive(Clone, Debug, Args)]
pub struct Pull {
    /// Plain HTTP for pulling
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub insecure_pull: bool,
    /// Registry to reach by plain HTTP; may be repeated
    #[arg(long, value_name = "HOST")]
    pub insecure_registry: Vec<String>,
    /// Do not check certificates when pulling
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub skip_tls_verify_pull: bool,
    /// Registry whose certificate is not checked; may be repeated
    #[arg(long, value_name = "HOST")]
    pub skip_tls_verify_registry: Vec<String>,
    /// HOST=FILE.pem to trust for a registry; may be repeated
    #[arg(long, value_name = "HOST=FILE")]
    pub registry_certificate: Vec<String>,
    /// HOST=CERT,KEY to present to a registry; may be repeated
    #[arg(long, value_name = "HOST=CERT,KEY")]
    pub registry_client_cert: Vec<String>,
    /// Mirror of Docker Hub; may be repeated
    #[arg(long, value_name = "HOST")]
    pub registry_mirror: Vec<String>,
    /// ORIGIN=NEW[;ORIGIN=NEW]: another place to pull from; may be repeated
    #[arg(long, value_name = "MAP")]
    pub registry_map: Vec<String>,
    /// Fail when no mirror answers
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub skip_default_registry_fallback: bool,
}

/// What is told.
#[derive(Clone, Debug, Args)]
pub struct Logging {
    /// How much is told
    #[arg(short, long, value_enum, default_value = "info")]
    pub verbosity: Verbosity,
    /// How log lines look
    #[arg(long, value_enum, default_value = "color")]
    pub log_format: LogFormat,
    /// Put the time before each line
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub log_timestamp: bool,
}
