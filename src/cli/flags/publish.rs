//! The command lines of `push` and `login`.

use std::path::PathBuf;

use clap::ArgAction;
use clap::Args;

use super::Logging;
use super::Pull;
use super::boolean;

/// Flags of `push`.
#[derive(Debug, Args)]
pub struct Push {
    /// The image: a directory in the OCI image layout, or a tar of one or of `docker save`
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Where to push, NAME or NAME:TAG; may be repeated
    #[arg(short, long, value_name = "IMAGE", required = true)]
    pub destination: Vec<String>,
    /// Write the digest to a file
    #[arg(long, value_name = "FILE")]
    pub digest_file: Option<PathBuf>,
    /// Plain HTTP for the destinations
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub insecure: bool,
    /// Do not check certificates
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub skip_tls_verify: bool,
    /// How registries are reached.
    #[command(flatten)]
    pub pull: Pull,
    /// env, google, ecr, acr, gitlab: who is asked for credentials after the config
    /// files; empty: nobody; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    pub credential_helpers: Vec<String>,
    /// A tag that exists and may not be moved is no error
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub push_ignore_immutable_tag_errors: bool,
    /// Do not check before the first upload that pushing is allowed
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub skip_push_permission_check: bool,
    /// Further tries of a failed request
    #[arg(long, default_value_t = 0)]
    pub push_retry: u32,
    /// What is told.
    #[command(flatten)]
    pub logging: Logging,
}

/// Flags of `login`.
#[derive(Debug, Args)]
pub struct Login {
    /// The registry's host, with a port unless it is the scheme's own
    #[arg(value_name = "REGISTRY")]
    pub registry: String,
    /// User name
    #[arg(short, long)]
    pub username: String,
    /// Password or token; it can be seen in the list of processes
    #[arg(
        short,
        long,
        conflicts_with = "password_stdin",
        required_unless_present = "password_stdin"
    )]
    pub password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
}
