//! Sources of credentials that kaniko has built in: two that read variables of the
//! environment, and the helpers of three clouds.

use std::collections::BTreeMap;
use std::fmt;

/// A source of credentials beside the config files (`--credential-helpers`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WellKnown {
    /// `KANIKO_<HOST>_USER` and `KANIKO_<HOST>_PASSWORD`.
    Env,
    /// `docker-credential-gcr`.
    Google,
    /// `docker-credential-ecr-login`.
    Ecr,
    /// `docker-credential-acr-env`.
    Acr,
    /// GitLab's `CI_REGISTRY…` and `CI_DEPENDENCY_PROXY…`.
    Gitlab,
}

/// What a source has for a host.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// User and password.
    Password { user: String, password: String },
    /// To be asked from `docker-credential-<name>`.
    Program(&'static str),
}

impl WellKnown {
    /// All, in the order in which they are asked.
    pub const ALL: [Self; 5] = [Self::Env, Self::Google, Self::Ecr, Self::Acr, Self::Gitlab];

    /// The source that `--credential-helpers` calls `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.to_string() == name)
    }

    /// Whether a source reads the variable `name`.
    pub(super) fn reads(name: &str) -> bool {
        let secret = name.ends_with("_USER") || name.ends_with("_PASSWORD");
        let of_gitlab = name.starts_with("CI_REGISTRY") || name.starts_with("CI_DEPENDENCY_PROXY");
        of_gitlab || (name.starts_with("KANIKO_") && secret)
    }

    /// What this source has for `host`, which is in lower case.
    pub(super) fn at(self, host: &str, variables: &BTreeMap<String, String>) -> Option<Answer> {
        let get = |name: &str| variables.get(name).cloned();
        let pair = |user: &str, password: &str| {
            Some(Answer::Password { user: get(user)?, password: get(password)? })
        };
        let name = host.split(':').next().unwrap_or(host);
        let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        match self {
            Self::Env => {
                // The whole host first, then without its first parts.
                let places =
                    std::iter::once(0).chain(name.match_indices('.').map(|(at, _)| at + 1));
                places.map(|at| name[at..].replace(['.', '-'], "_").to_uppercase()).find_map(
                    |part| pair(&format!("KANIKO_{part}_USER"), &format!("KANIKO_{part}_PASSWORD")),
                )
            }
            Self::Gitlab => ["CI_REGISTRY", "CI_DEPENDENCY_PROXY"].into_iter().find_map(|prefix| {
                let place = get(&format!("{prefix}_SERVER")).or_else(|| get(prefix))?;
                let place = place.split('/').next().unwrap_or_default().to_ascii_lowercase();
                let place = place.strip_suffix(":443").unwrap_or(&place);
                (place == host)
                    .then(|| pair(&format!("{prefix}_USER"), &format!("{prefix}_PASSWORD")))?
            }),
            Self::Google => {
                let fits = name == "gcr.io" || ends(&[".gcr.io", "-docker.pkg.dev"]);
                fits.then_some(Answer::Program("gcr"))
            }
            Self::Ecr => {
                let regional =
                    name.contains(".dkr.ecr") && ends(&[".amazonaws.com", ".amazonaws.com.cn"]);
                (regional || name == "public.ecr.aws").then_some(Answer::Program("ecr-login"))
            }
            Self::Acr => {
                let fits = ends(&[".azurecr.io", ".azurecr.cn", ".azurecr.de", ".azurecr.us"]);
                fits.then_some(Answer::Program("acr-env"))
            }
        }
    }
}

impl fmt::Display for WellKnown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Env => "env",
            Self::Google => "google",
            Self::Ecr => "ecr",
            Self::Acr => "acr",
            Self::Gitlab => "gitlab",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_longest_host_win() {
        let variables: BTreeMap<String, String> = [
            ("KANIKO_EXAMPLE_COM_USER", "wide"),
            ("KANIKO_EXAMPLE_COM_PASSWORD", "1"),
            ("KANIKO_MY_HUB_EXAMPLE_COM_USER", "near"),
            ("KANIKO_MY_HUB_EXAMPLE_COM_PASSWORD", "2"),
            ("CI_REGISTRY", "registry.example.org:5050"),
            ("CI_REGISTRY_USER", "ci"),
            ("CI_REGISTRY_PASSWORD", "3"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        let user = |known: WellKnown, host: &str| match known.at(host, &variables) {
            Some(Answer::Password { user, .. }) => Some(user),
            _ => None,
        };
        assert_eq!(user(WellKnown::Env, "my-hub.example.com:5000").as_deref(), Some("near"));
        assert_eq!(user(WellKnown::Env, "other.example.com").as_deref(), Some("wide"));
        assert_eq!(user(WellKnown::Env, "example.org"), None);
        assert_eq!(user(WellKnown::Gitlab, "registry.example.org:5050").as_deref(), Some("ci"));
        assert_eq!(user(WellKnown::Gitlab, "registry.example.org"), None);
        assert!(variables.keys().all(|name| WellKnown::reads(name)));
        assert!(!WellKnown::reads("HOME") && !WellKnown::reads("KANIKO_DIR"));
    }

    #[test]
    fn clouds_are_told_by_their_hosts() {
        let none = BTreeMap::new();
        for (known, host, program) in [
            (WellKnown::Google, "eu.gcr.io", "gcr"),
            (WellKnown::Google, "europe-docker.pkg.dev", "gcr"),
            (WellKnown::Ecr, "1.dkr.ecr.eu-west-1.amazonaws.com", "ecr-login"),
            (WellKnown::Acr, "me.azurecr.io", "acr-env"),
        ] {
            assert_eq!(known.at(host, &none), Some(Answer::Program(program)), "{host}");
            assert_eq!(known.at("example.com", &none), None);
        }
        assert_eq!(WellKnown::named("gitlab"), Some(WellKnown::Gitlab));
        assert_eq!(WellKnown::named("x"), None);
    }
}
