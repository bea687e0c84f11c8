//! The command line of the warmer: kaniko's, short flags and all.

use std::path::PathBuf;
use std::time::Duration;

use clap::ArgAction;
use clap::Args;
use clap::Parser;

use super::Logging;
use super::Pull;
use super::boolean;
use crate::dockerfile::duration;

/// Fetches base images ahead of builds, with kaniko's command line.
#[derive(Debug, Parser)]
#[command(name = "warmer", version, max_term_width = 100, args_override_self = true)]
pub struct Warmer {
    /// The same flags as `yadokari warm`.
    #[command(flatten)]
    pub warm: Warm,
}

/// Flags of the warmer.
#[derive(Debug, Args)]
pub struct Warm {
    /// Image to fetch; may be repeated
    #[arg(short, long, value_name = "IMAGE")]
    pub image: Vec<String>,
    /// Dockerfile whose base images are fetched; may be repeated
    #[arg(short, long, value_name = "PATH")]
    pub dockerfile: Vec<String>,
    /// KEY=VALUE for the Dockerfiles, or KEY to take the value from the environment; may be
    /// repeated
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub build_arg: Vec<String>,
    /// Directory of the cache
    #[arg(short, long, env = "YADOKARI_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Verify what is there and fetch again what is damaged
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = boolean, action = ArgAction::Set)]
    pub force: bool,
    /// Age from which a step of the shared cache counts as missing
    #[arg(long, value_name = "DURATION", default_value = "336h", value_parser = age)]
    pub cache_ttl: Duration,
    /// Platform to fetch for: os/arch[/variant] [default: this machine's]
    #[arg(long, alias = "customPlatform", visible_alias = "platform", value_name = "PLATFORM")]
    pub custom_platform: Option<String>,
    /// Also fetch the Dockerfiles' steps out of a shared cache: repository, or oci:DIR
    #[arg(long, value_name = "REPOSITORY")]
    pub cache_repo: Option<String>,
    /// Build context of the Dockerfiles; without it, their steps end at the first that
    /// needs a file of it
    #[arg(long, value_name = "CONTEXT")]
    pub context: Option<String>,
    /// Stage of the Dockerfiles that will be built [default: the last]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// How registries are reached.
    #[command(flatten)]
    pub pull: Pull,
    /// What is told.
    #[command(flatten)]
    pub logging: Logging,
}

/// A duration as Go reads it, as kaniko does.
fn age(text: &str) -> Result<Duration, String> {
    let nanoseconds = duration::parse(text)?;
    u64::try_from(nanoseconds)
        .map(Duration::from_nanos)
        .map_err(|_| format!("a duration can't be negative: `{text}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Warm, String> {
        Warmer::try_parse_from(std::iter::once(&"warmer").chain(words))
            .map(|warmer| warmer.warm)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn short_flags_mean_what_they_mean_to_kaniko_s_warmer() {
        let warm =
            parse(&["-i", "a", "-i=b", "-d", "Dockerfile", "-c", "/c", "-f"]).expect("valid");
        assert_eq!(
            (warm.image, warm.dockerfile),
            (vec!["a".into(), "b".into()], vec!["Dockerfile".into()])
        );
        assert_eq!((warm.cache_dir, warm.force), (Some("/c".into()), true));
        let warm = parse(&["--customPlatform=linux/arm64", "--insecure-pull"]).expect("valid");
        assert_eq!(warm.custom_platform.as_deref(), Some("linux/arm64"));
        assert!(warm.pull.insecure_pull);
    }

    #[test]
    fn ages_are_go_s_durations() {
        let ttl = |text: &str| parse(&["--cache-ttl", text]).map(|warm| warm.cache_ttl);
        assert_eq!(parse(&[]).map(|warm| warm.cache_ttl), Ok(Duration::from_secs(336 * 3600)));
        assert_eq!(ttl("1h30m"), Ok(Duration::from_secs(5400)));
        for bad in ["14", "14d", "-1h"] {
            assert!(ttl(bad).is_err(), "{bad}");
        }
    }
}
