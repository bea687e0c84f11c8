//! Where credentials come from: Docker's config files, podman's, and credential helpers.
//!
//! For one repository there may be several; all are candidates, in the order of their
//! sources and, within a file, from the longest matching path to the bare host. Helpers
//! run only when it is their turn. Nothing here appears in errors, `Debug` or logs but
//! the sources' names.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use crate::oci::reference::{DOCKER_HUB, DOCKER_HUB_API, DOCKER_HUB_LEGACY};

use super::error::Error;
use super::well_known::{Answer, WellKnown};

/// Docker Hub's key in config files and for helpers.
pub(super) const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// User name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// A helper may have to ask a cloud's metadata server, but not the user.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Config files are small.
const FILE_MAX: u64 = 4 << 20;

/// What a person or machine shows to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    /// User and password.
    Password { user: String, password: String },
    /// OAuth2 refresh token, traded for access tokens at the token server.
    Identity(String),
    /// Sent as it is, as `Authorization: Bearer`.
    Registry(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(…)",
            Self::Identity(_) => "Identity(…)",
            Self::Registry(_) => "Registry(…)",
        })
    }
}

/// One way to be somebody at a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Candidate {
    /// Written in a file.
    Known { origin: String, secret: Secret },
    /// To be asked from `docker-credential-<name>`.
    Helper { name: String, key: String },
    /// Nobody.
    Anonymous,
}

impl Candidate {
    /// Its name in messages.
    pub(super) fn origin(&self) -> String {
        match self {
            Self::Known { origin, .. } => origin.clone(),
            Self::Helper { name, .. } => format!("docker-credential-{name}"),
            Self::Anonymous => "anonymous".to_owned(),
        }
    }
}

/// The environment variables that say where credentials are. The caller reads them, so
/// that this module depends on no process-wide state.
#[derive(Clone, Default)]
pub struct Environment {
    /// `DOCKER_AUTH_CONFIG`: a config file's content.
    pub docker_auth_config: Option<String>,
    /// `DOCKER_CONFIG`: directory of `config.json`.
    pub docker_config: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `REGISTRY_AUTH_FILE`: a file in podman's form.
    pub registry_auth_file: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_directory: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub config_home: Option<PathBuf>,
    /// `PATH`, where helpers are looked for.
    pub path: Option<OsString>,
    /// Who is asked after the files.
    pub well_known: Vec<WellKnown>,
    /// Variables that the first two of these read.
    pub variables: BTreeMap<String, String>,
}

impl Environment {
    /// Takes them from a look-up function such as [`std::env::var_os`]. Empty variables
    /// count as unset.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| get(name).map(PathBuf::from);
        Self {
            docker_auth_config: get("DOCKER_AUTH_CONFIG")
                .map(|value| value.to_string_lossy().into_owned()),
            docker_config: path("DOCKER_CONFIG"),
            home: path("HOME"),
            registry_auth_file: path("REGISTRY_AUTH_FILE"),
            runtime_directory: path("XDG_RUNTIME_DIR"),
            config_home: path("XDG_CONFIG_HOME"),
            path: get("PATH"),
            well_known: Vec::new(),
            variables: BTreeMap::new(),
        }
    }

    /// Keeps those of `variables` that hold credentials.
    pub fn add_variables(&mut self, variables: impl Iterator<Item = (String, String)>) {
        self.variables
            .extend(variables.filter(|(name, value)| WellKnown::reads(name) && !value.is_empty()));
    }

    /// Docker's own config file; `None` if there is no place for one.
    pub(super) fn docker_file(&self) -> Option<PathBuf> {
        match (&self.docker_config, &self.home) {
            (Some(directory), _) => Some(directory.join("config.json")),
            (None, home) => Some(home.as_ref()?.join(".docker/config.json")),
        }
    }

    /// Files in the order in which they are asked, each once.
    fn files(&self) -> Vec<PathBuf> {
        let home = |below: &str| self.home.as_ref().map(|home| home.join(below));
        let podman = self.runtime_directory.as_ref();
        let config_home = self.config_home.clone().or_else(|| home(".config"));
        let mut files: Vec<PathBuf> = Vec::new();
        let candidates = [
            self.docker_file(),
            Some(PathBuf::from("/kaniko/.docker/config.json")),
            self.registry_auth_file.clone(),
            podman.map(|directory| directory.join("containers/auth.json")),
            config_home.map(|directory| directory.join("containers/auth.json")),
        ];
        for file in candidates.into_iter().flatten() {
            if !files.contains(&file) {
                files.push(file);
            }
        }
        files
    }
}

/// All credentials that are known before a registry is asked.
#[derive(Default)]
pub struct Keychain {
    files: Vec<AuthFile>,
    path: Option<OsString>,
    well_known: Vec<WellKnown>,
    variables: BTreeMap<String, String>,
}

impl fmt::Debug for Keychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origins = self.files.iter().map(|file| &file.origin);
        f.debug_set().entries(origins).finish()
    }
}

struct AuthFile {
    origin: String,
    /// Normalized key (`host` or `host/path`) and secret.
    auths: Vec<(String, Secret)>,
    /// Normalized host and helper.
    helpers: Vec<(String, String)>,
    store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct FileShape {
    auths: Option<BTreeMap<String, AuthShape>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthShape {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl Keychain {
    /// No credentials at all.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Reads `DOCKER_AUTH_CONFIG`, then `config.json` in `DOCKER_CONFIG` or `~/.docker`,
    /// `/kaniko/.docker/config.json`, `REGISTRY_AUTH_FILE` and podman's two places. Files
    /// that do not exist are passed over.
    ///
    /// # Errors
    ///
    /// [`Error::Credentials`] for a source that exists and cannot be read or understood.
    pub fn read(environment: &Environment) -> Result<Self, Error> {
        let mut files = Vec::new();
        if let Some(text) = &environment.docker_auth_config {
            files.push(AuthFile::parse("DOCKER_AUTH_CONFIG", text.as_bytes())?);
        }
        for path in environment.files() {
            let origin = path.display().to_string();
            if let Some(bytes) = read_file(&path)
                .map_err(|problem| Error::Credentials { origin: origin.clone(), problem })?
            {
                files.push(AuthFile::parse(&origin, &bytes)?);
            }
        }
        Ok(Self {
            files,
            path: environment.path.clone(),
            well_known: environment.well_known.clone(),
            variables: environment.variables.clone(),
        })
    }

    /// Everything that may open `repository` at `host`, best first, without the anonymous
    /// candidate. `host` may be any of Docker Hub's names.
    pub(super) fn candidates(&self, host: &str, repository: &str) -> Vec<Candidate> {
        let host = normalize(host);
        let whole = format!("{host}/{repository}");
        let mut found: Vec<Candidate> = Vec::new();
        let mut push = |candidate: Candidate| {
            if !found.contains(&candidate) {
                found.push(candidate);
            }
        };
        let helper_key = if host == DOCKER_HUB { DOCKER_HUB_KEY } else { host.as_str() };
        let helper =
            |name: &String| Candidate::Helper { name: name.clone(), key: helper_key.to_owned() };
        for file in &self.files {
            for (_, name) in file.helpers.iter().filter(|(key, _)| *key == host) {
                push(helper(name));
            }
            let covers = |key: &str| {
                whole.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let mut matching: Vec<_> = file.auths.iter().filter(|(key, _)| covers(key)).collect();
            matching.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
            for (_, secret) in matching {
                push(Candidate::Known { origin: file.origin.clone(), secret: secret.clone() });
            }
            if let Some(name) = &file.store {
                push(helper(name));
            }
        }
        for known in &self.well_known {
            match known.at(&host, &self.variables) {
                Some(Answer::Password { user, password }) => push(Candidate::Known {
                    origin: format!("the environment ({known})"),
                    secret: Secret::Password { user, password },
                }),
                // One that isn't installed is not even tried.
                Some(Answer::Program(name)) if self.program(name).is_some() => {
                    push(helper(&name.to_owned()));
                }
                _ => {}
            }
        }
        found
    }

    /// The secret of a candidate; `None` for the anonymous one and for a helper that knows
    /// nothing. A helper that fails is an `Err` with its own words, for the log.
    pub(super) async fn secret(&self, candidate: &Candidate) -> Result<Option<Secret>, String> {
        match candidate {
            Candidate::Known { secret, .. } => Ok(Some(secret.clone())),
            Candidate::Anonymous => Ok(None),
            Candidate::Helper { name, key } => self.ask_helper(name, key).await,
        }
    }

    /// Where the helper `name` is installed.
    fn program(&self, name: &str) -> Option<PathBuf> {
        let program = format!("docker-credential-{name}");
        std::env::split_paths(self.path.as_ref()?)
            .map(|directory| directory.join(&program))
            .find(|file| file.is_file())
    }

    /// `docker-credential-<name> get`: the server on stdin, JSON on stdout (docker's
    /// credential helper protocol).
    async fn ask_helper(&self, name: &str, key: &str) -> Result<Option<Secret>, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            username: String,
            secret: String,
        }
        let program = format!("docker-credential-{name}");
        let found = self.program(name).ok_or_else(|| format!("{program} is not in PATH"))?;
        let mut child = tokio::process::Command::new(found)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{program} does not start: {error}"))?;
        let mut input = child.stdin.take();
        let talk = async {
            if let Some(input) = input.as_mut() {
                // A helper that needs no input may have closed it already.
                let _ = input.write_all(key.as_bytes()).await;
            }
            drop(input);
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(HELPER_TIMEOUT, talk)
            .await
            .map_err(|_| format!("{program} gave no answer in {} s", HELPER_TIMEOUT.as_secs()))?
            .map_err(|error| format!("{program} failed: {error}"))?;
        if !output.status.success() {
            // On failure, and only then, stdout holds a message.
            let message = String::from_utf8_lossy(&output.stdout);
            let message: String = message.lines().next().unwrap_or("").chars().take(200).collect();
            if message.contains("credentials not found") {
                return Ok(None);
            }
            return Err(format!("{program} failed ({}): {message}", output.status));
        }
        let answer: Answer = serde_json::from_slice(&output.stdout)
            .map_err(|_| format!("{program} gave no credentials in JSON"))?;
        Ok(match answer {
            Answer { username, secret } if username == TOKEN_USER => Some(Secret::Identity(secret)),
            Answer { username, secret } if username.is_empty() && secret.is_empty() => None,
            Answer { username, secret } => {
                Some(Secret::Password { user: username, password: secret })
            }
        })
    }
}

impl AuthFile {
    fn parse(origin: &str, bytes: &[u8]) -> Result<Self, Error> {
        let fail = |problem: String| Error::Credentials { origin: origin.to_owned(), problem };
        let shape: FileShape = if bytes.trim_ascii().is_empty() {
            FileShape::default()
        } else {
            // serde's own message may quote a value, which may be a password.
            serde_json::from_slice(bytes).map_err(|error| {
                fail(format!(
                    "it is not a Docker config file (line {}, column {})",
                    error.line(),
                    error.column()
                ))
            })?
        };
        let mut auths = Vec::new();
        for (key, entry) in shape.auths.unwrap_or_default() {
            let secret =
                entry.secret().map_err(|problem| fail(format!("the entry of {key} {problem}")))?;
            if let Some(secret) = secret {
                auths.push((normalize(&key), secret));
            }
        }
        let helpers = shape.cred_helpers.unwrap_or_default();
        Ok(Self {
            origin: origin.to_owned(),
            auths,
            helpers: helpers
                .into_iter()
                .filter(|(_, name)| is_helper_name(name))
                .map(|(host, name)| (normalize(&host), name))
                .collect(),
            store: shape.creds_store.filter(|name| is_helper_name(name)),
        })
    }
}

impl AuthShape {
    /// `None` for the empty entries that `docker login` leaves beside a credential store.
    fn secret(self) -> Result<Option<Secret>, &'static str> {
        let given = |value: Option<String>| value.filter(|value| !value.is_empty());
        if let Some(token) = given(self.identitytoken) {
            return Ok(Some(Secret::Identity(token)));
        }
        if let Some(token) = given(self.registrytoken) {
            return Ok(Some(Secret::Registry(token)));
        }
        let (user, password) = match given(self.auth) {
            Some(auth) => {
                let lenient = base64::engine::GeneralPurpose::new(
                    &base64::alphabet::STANDARD,
                    base64::engine::GeneralPurposeConfig::new()
                        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
                );
                let bytes =
                    lenient.decode(auth.trim()).map_err(|_| "has an `auth` that is not base64")?;
                let text =
                    String::from_utf8(bytes).map_err(|_| "has an `auth` that is not text")?;
                let (user, password) = text
                    .split_once(':')
                    .ok_or("has an `auth` that is not `user:password` in base64")?;
                // Docker cuts the zero bytes that old versions appended.
                (user.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            None => match (given(self.username), given(self.password)) {
                (Some(user), Some(password)) => (user, password),
                _ => return Ok(None),
            },
        };
        Ok(Some(if user == TOKEN_USER {
            Secret::Identity(password)
        } else {
            Secret::Password { user, password }
        }))
    }
}

/// A helper's name becomes part of a program's name, never of a path.
pub(super) fn is_helper_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0'])
}

/// One spelling per registry: no scheme, no trailing slash, no API version, lower-case
/// host, no default port, and `docker.io` for all of Docker Hub's names.
pub(super) fn normalize(key: &str) -> String {
    let key = key.trim();
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    let path = path.trim_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let host = match host {
        DOCKER_HUB_LEGACY | DOCKER_HUB_API => DOCKER_HUB,
        host => host,
    };
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

/// The bytes of a file; `None` when it does not exist.
pub(super) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, String> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
