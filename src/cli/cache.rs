//! `yadokari cache`: what the cache holds, and what of it should go.
//!
//! Results go to standard output, for people or, with `--json`, as one JSON document.

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::Subcommand;
use serde_json::Value;
use serde_json::json;
use yadokari_cache::Access;
use yadokari_cache::Cache;

use super::cache_limits;
use super::cache_limits::human;
use super::cache_mount;
use super::cache_mount::ExportMount;
use super::cache_mount::ImportMount;
use super::request;
use super::request::FlagError;
use crate::collect;
use crate::collect::Collected;
use crate::collect::Entry;
use crate::collect::Order;
use crate::collect::Removed;
use crate::collect::Target;
use crate::store::Store;

/// Exit code when `verify` found damage, or nothing could be done.
const FAILURE: u8 = 1;

/// Shows, checks and shrinks the cache directory.
#[derive(Debug, Args)]
pub struct CacheArguments {
    /// Directory of the cache
    #[arg(long, global = true, env = "YADOKARI_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: CacheCommand,
}

/// The subcommands of `yadokari cache`.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List finished steps and cache mounts, least recently used first
    Ls {
        /// List blobs, layers and remembered contexts as well
        #[arg(short, long)]
        all: bool,
    },
    /// Show what takes how much space
    Du,
    /// Remove garbage, what is too old, and what is too much
    Gc(Gc),
    /// Remove records by key and contents by digest
    Rm {
        /// KEY (64 hex digits, as ls prints it) or sha256:DIGEST
        #[arg(required = true, value_name = "KEY|DIGEST")]
        names: Vec<String>,
    },
    /// Check everything against its digest; fails if something was damaged
    Verify,
    /// Write a RUN --mount=type=cache directory as a tar
    ExportMount(ExportMount),
    /// Make a RUN --mount=type=cache directory out of a tar, instead of what is there
    ImportMount(ImportMount),
    /// Remove everything; refuses while builds are running
    Clear {
        /// Wait so long for running builds to end, e.g. 10m
        #[arg(long, value_name = "DURATION", default_value = "0")]
        wait: String,
    },
}

/// Arguments of `yadokari cache gc`.
#[derive(Debug, Args)]
pub struct Gc {
    /// Remove what was used longest ago until so much is left, e.g. 20GiB
    #[arg(long, alias = "cache-max-size", env = "YADOKARI_CACHE_MAX_SIZE", value_name = "SIZE")]
    pub max_size: Option<String>,
    /// Remove what is older, e.g. 336h
    #[arg(long, alias = "cache-ttl", value_name = "DURATION", default_value = cache_limits::DEFAULT_TTL)]
    pub ttl: String,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
}

/// Why a subcommand failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Flag(#[from] FlagError),
    #[error(transparent)]
    Collect(#[from] collect::Error),
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    #[error(transparent)]
    Cache(#[from] yadokari_cache::Error),
    #[error(transparent)]
    Mount(#[from] cache_mount::Error),
}

/// What is printed, and whether it is good news.
struct Answer {
    text: String,
    json: Value,
    good: bool,
}

impl Answer {
    /// Nothing is to be said.
    fn silent() -> Self {
        Self { text: String::new(), json: Value::Null, good: true }
    }
}

/// Runs `yadokari cache …`.
pub(super) fn run(
    arguments: &CacheArguments,
    variable: &dyn Fn(&str) -> Option<String>,
) -> ExitCode {
    let directory = request::cache_dir(arguments.cache_dir.as_deref(), variable);
    match answer(&arguments.command, &directory) {
        Ok(answer) => {
            let json = arguments.json && !answer.json.is_null();
            let text = if json { format!("{}\n", answer.json) } else { answer.text };
            super::print(&text);
            if answer.good { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) }
        }
        Err(error) => {
            super::eprintln(&format!("error: {}", crate::build::chain(&error)));
            ExitCode::from(FAILURE)
        }
    }
}

fn answer(command: &CacheCommand, directory: &Path) -> Result<Answer, Error> {
    match command {
        CacheCommand::Ls { all } => {
            let cache = Cache::open(directory, Access::ReadOnly)?;
            Ok(listed(&collect::list(&cache, *all)?))
        }
        CacheCommand::Du => {
            let cache = Cache::open(directory, Access::ReadOnly)?;
            Ok(used(&collect::usage(&cache)?))
        }
        CacheCommand::Gc(gc) => {
            let limits = cache_limits::limits(gc.max_size.as_deref(), &gc.ttl)?;
            let cache = Cache::open(directory, Access::ReadWrite)?;
            let order = Order { limits, deadline: None, dry_run: gc.dry_run };
            let own = cache.lease()?;
            let collected =
                collect::collect(&cache, Some(&own), &order)?.ok_or(collect::Error::Busy)?;
            Ok(removed(&collected, gc.dry_run))
        }
        CacheCommand::Rm { names } => {
            let targets: Vec<Target> =
                names.iter().map(|name| Target::parse(name)).collect::<Result<_, _>>()?;
            let cache = Cache::open(directory, Access::ReadWrite)?;
            let own = cache.lease()?;
            let collected = collect::remove(&cache, Some(&own), &targets)?;
            Ok(removed(&collected, false))
        }
        CacheCommand::Verify => verify(directory),
        CacheCommand::ExportMount(mount) => {
            cache_mount::export(mount, directory)?;
            Ok(Answer::silent())
        }
        CacheCommand::ImportMount(mount) => {
            cache_mount::import(mount, directory)?;
            Ok(Answer::silent())
        }
        CacheCommand::Clear { wait } => {
            let wait = cache_limits::time(wait)
                .map_err(|reason| FlagError::new("--wait", wait, &reason))?;
            clear(directory, wait)
        }
    }
}

fn clear(directory: &Path, wait: Duration) -> Result<Answer, Error> {
    let cache = Cache::open(directory, Access::ReadWrite)?;
    let own = cache.lease()?;
    let collected = collect::clear(&cache, Some(&own), wait)?;
    Ok(removed(&collected, false))
}

fn verify(directory: &Path) -> Result<Answer, Error> {
    // A read-only cache can be checked, too; nothing is set aside then.
    let (cache, store) = match Cache::open(directory, Access::ReadWrite) {
        Ok(cache) => {
            let store = Store::open(directory)?.with_lease(cache.lease()?);
            (cache, store)
        }
        Err(yadokari_cache::Error::Denied { .. }) => {
            let cache = Cache::open(directory, Access::ReadOnly)?;
            (cache, Store::open_read_only(directory)?)
        }
        Err(error) => return Err(error.into()),
    };
    let verified = collect::verify(&Arc::new(cache), &store)?;
    let mut text: String =
        verified.damaged.iter().map(|damage| format!("damaged: {}\n", damage.what)).collect();
    text += &format!(
        "{} contents ({}) and {} records checked, {} damaged\n",
        verified.contents,
        human(verified.bytes),
        verified.records,
        verified.damaged.len()
    );
    let damaged: Vec<&str> = verified.damaged.iter().map(|damage| damage.what.as_str()).collect();
    Ok(Answer {
        text,
        json: json!({
            "contents": verified.contents,
            "bytes": verified.bytes,
            "records": verified.records,
            "damaged": damaged,
        }),
        good: verified.damaged.is_empty(),
    })
}

fn listed(entries: &[Entry]) -> Answer {
    let mut text = format!("{:<7} {:>9}  {:<20}  NAME\n", "KIND", "SIZE", "LAST USED");
    for entry in entries {
        text += &format!(
            "{:<7} {:>9}  {:<20}  {}",
            entry.kind.name(),
            human(entry.bytes),
            timestamp(entry.used),
            entry.name
        );
        match &entry.title {
            Some(title) => text += &format!("  {}\n", title.lines().next().unwrap_or_default()),
            None if entry.wanted => text.push('\n'),
            None => text += "  (nothing names it)\n",
        }
    }
    let json = entries
        .iter()
        .map(|entry| {
            json!({
                "kind": entry.kind.name(),
                "name": entry.name,
                "title": entry.title,
                "bytes": entry.bytes,
                "lastUsed": timestamp(entry.used),
                "created": entry.created.map(timestamp),
                "diffID": entry.diff_id,
                "blob": entry.blob,
                "named": entry.wanted,
            })
        })
        .collect();
    Answer { text, json: Value::Array(json), good: true }
}

fn used(usage: &collect::Usage) -> Answer {
    let parts = [
        ("records", usage.records),
        ("index", usage.index),
        ("layers", usage.layers),
        ("blobs", usage.blobs),
        ("mounts", usage.mounts),
        ("partial", usage.partial),
        ("memory", usage.memory),
        ("tmp", usage.tmp),
        ("waste", usage.waste),
        ("total", usage.total()),
        ("reclaimable", usage.reclaimable),
    ];
    let text =
        parts.iter().map(|(name, bytes)| format!("{name:<12} {:>9}\n", human(*bytes))).collect();
    let json = parts.iter().map(|(name, bytes)| ((*name).to_owned(), json!(bytes))).collect();
    Answer { text, json: Value::Object(json), good: true }
}

fn removed(collected: &Collected, dry_run: bool) -> Answer {
    let line = |one: &Removed| {
        format!(
            "{:<7} {:>9}  {:<20}  {} ({})\n",
            one.kind.name(),
            human(one.bytes),
            timestamp(one.used),
            one.name,
            one.why.name()
        )
    };
    let mut text: String = collected.removed.iter().map(line).collect();
    let bytes: u64 = collected.removed.iter().map(|one| one.bytes).sum();
    text += &format!(
        "{} {} contents ({}) and {} records; {} remain",
        if dry_run { "would remove" } else { "removed" },
        collected.removed.len(),
        human(bytes),
        collected.records,
        human(collected.size)
    );
    if collected.in_use > 0 {
        text += &format!("; {} are in use by running builds", collected.in_use);
    }
    text.push('\n');
    let json = json!({
        "removed": collected.removed.iter().map(|one| json!({
            "kind": one.kind.name(),
            "name": one.name,
            "bytes": one.bytes,
            "lastUsed": timestamp(one.used),
            "why": one.why.name(),
        })).collect::<Vec<_>>(),
        "records": collected.records,
        "bytes": bytes,
        "freed": collected.freed,
        "remaining": collected.size,
        "inUse": collected.in_use,
        "dryRun": dry_run,
    });
    Answer { text, json, good: true }
}

/// RFC 3339, whole seconds, UTC.
fn timestamp(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| "-".to_owned(), |time| time.to_string())
}
