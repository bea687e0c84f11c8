//! Flags that say where things are, and what a RUN finds around it: `--git`,
//! `--build-context`, `--ssh`, `--add-host`, `--shm-size`, `--ulimit`.

use std::path::Path;
use std::path::PathBuf;

use super::FlagError;
use super::wrong;
use crate::build::request::GitOptions;
use crate::build::request::Hidden;
use crate::build::request::NamedFiles;
use crate::build::request::Ssh;
use crate::build::request::SshSource;
use crate::cli::flags::Build;
use crate::context::Place;
use crate::plan::mount_size;
use crate::plan::named;
use crate::plan::named::Contexts;
use crate::plan::named::NamedContext;
use crate::sandbox::Limit;
use crate::step::run::Conditions;
use crate::step::run::HostAddress;

/// Keys of `--git`, as kaniko has them.
const GIT_KEYS: &str = "branch, single-branch, depth, recurse-submodules and insecure-skip-tls";

/// `--git KEY=VALUE`s and kaniko's variables. Only the commit that is wanted is ever
/// fetched, so `single-branch` and `depth` are checked and say nothing.
pub(super) fn git(
    given: &[String],
    build_args: &[String],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<GitOptions, FlagError> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let pull_method = variable("GIT_PULL_METHOD").unwrap_or_else(|| "https".to_owned());
    if !["https", "http", "git", "ssh"].contains(&pull_method.as_str()) {
        return Err(wrong(format!(
            "GIT_PULL_METHOD is `{pull_method}`: https, http, git or ssh is expected"
        )));
    }
    let credential = match (variable("GIT_USERNAME"), variable("GIT_PASSWORD")) {
        (None, None) => variable("GIT_TOKEN").map(|token| (token, Hidden::new(String::new()))),
        (user, password) => {
            Some((user.unwrap_or_default(), Hidden::new(password.unwrap_or_default())))
        }
    };
    let kept = |argument: &String| {
        let value = argument.strip_prefix("BUILDKIT_CONTEXT_KEEP_GIT_DIR=");
        value.is_some_and(|value| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"))
    };
    let mut options = GitOptions {
        branch: None,
        recurse_submodules: false,
        insecure_skip_tls: false,
        pull_method,
        credential,
        keep_git_dir: build_args.iter().any(kept),
    };
    for text in given {
        let bad = |reason: String| wrong(format!("--git {text}: {reason}"));
        let flag = |value: &str| match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(bad(format!("`{value}` is neither true nor false"))),
        };
        // kaniko takes one pair a flag; its documentation shows several.
        for pair in text.split(',') {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| bad("KEY=VALUE is expected".to_owned()))?;
            match key {
                "branch" => options.branch = Some(value.to_owned()).filter(|name| !name.is_empty()),
                "recurse-submodules" => options.recurse_submodules = flag(value)?,
                "insecure-skip-tls" => options.insecure_skip_tls = flag(value)?,
                "single-branch" => {
                    flag(value)?;
                }
                "depth" => {
                    let number = value.parse::<u32>();
                    number.map_err(|_| bad(format!("`{value}` is no number of commits")))?;
                }
                _ => return Err(bad(format!("`{key}` is unknown; {GIT_KEYS} are known"))),
            }
        }
    }
    Ok(options)
}

/// `--build-context NAME=PLACE`s: what plans have to know of them, and where files are.
pub(super) fn contexts(given: &[String]) -> Result<(Contexts, Vec<NamedFiles>), FlagError> {
    let mut contexts = Contexts::default();
    let mut files: Vec<NamedFiles> = Vec::new();
    for text in given {
        let bad = |reason: String| wrong(format!("--build-context {text}: {reason}"));
        let (name, place) = text
            .split_once('=')
            .filter(|(name, place)| !name.is_empty() && !place.is_empty())
            .ok_or_else(|| bad("NAME=PLACE is expected".to_owned()))?;
        if matches!(name, "context" | "scratch") {
            return Err(bad(format!("`{name}` has a meaning of its own")));
        }
        let normal = named::normal(name);
        files.retain(|known| known.name != normal);
        if let Some(image) = place.strip_prefix("docker-image://") {
            contexts.insert(name, NamedContext::Image(image.to_owned()));
        } else if place.starts_with("oci-layout://") {
            contexts.insert(name, NamedContext::Image(place.to_owned()));
        } else {
            match place.split_once("://") {
                Some((scheme @ ("target" | "local"), _)) => {
                    return Err(bad(format!("{scheme}:// is not supported")));
                }
                _ => Place::parse(place).map_err(|error| bad(error.to_string()))?,
            };
            contexts.insert(name, NamedContext::Files);
            files.push(NamedFiles { name: normal, place: place.to_owned() });
        }
    }
    Ok((contexts, files))
}

/// `--ssh default | ID | ID=SOCKET[,raw=true] | ID=KEY[,KEY]`.
pub(super) fn ssh(
    given: &[String],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Ssh>, FlagError> {
    let mut found: Vec<Ssh> = Vec::new();
    for text in given {
        let bad = |reason: &str| wrong(format!("--ssh {text}: {reason}"));
        let (id, places) = match text.split_once('=') {
            Some((id, places)) => (id, Some(places)),
            None => (text.as_str(), None),
        };
        let id = if id.is_empty() { "default" } else { id };
        if found.iter().any(|known| known.id == id) {
            return Err(bad("the id was given before"));
        }
        let mut raw = false;
        let mut paths: Vec<PathBuf> = Vec::new();
        for place in places.into_iter().flat_map(|places| places.split(',')) {
            match place.split_once('=') {
                Some(("raw", "true" | "1")) => raw = true,
                Some(("raw", "false" | "0")) => raw = false,
                _ if place.is_empty() => return Err(bad("a path is empty")),
                _ => paths.push(place.into()),
            }
        }
        if paths.is_empty() {
            let agent = variable("SSH_AUTH_SOCK").filter(|path| !path.is_empty());
            paths.push(
                agent.map(Into::into).ok_or_else(|| {
                    bad("no socket or key is given, and SSH_AUTH_SOCK is not set")
                })?,
            );
        }
        let source = match paths.as_slice() {
            [path] if is_socket(path) => SshSource::Socket { path: path.clone(), raw },
            [path] if !path.exists() => {
                return Err(bad(&format!("{} is not there", path.display())));
            }
            _ if raw => return Err(bad("raw needs a socket")),
            paths if paths.iter().any(|path| is_socket(path)) => {
                return Err(bad("a socket can't be combined with others"));
            }
            _ => SshSource::Keys(paths),
        };
        found.push(Ssh { id: id.to_owned(), source });
    }
    Ok(found)
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// `--add-host`, `--shm-size` and `--ulimit`.
pub(super) fn conditions(flags: &Build) -> Result<Conditions, FlagError> {
    let mut hosts = Vec::new();
    for text in &flags.add_host {
        let bad = |reason: &str| wrong(format!("--add-host {text}: {reason}"));
        // `NAME=ADDRESS` is Docker's newer form; an IPv6 address holds colons itself.
        let (name, address) = text
            .split_once('=')
            .or_else(|| text.split_once(':'))
            .filter(|(name, _)| !name.is_empty() && !name.contains(char::is_whitespace))
            .ok_or_else(|| bad("NAME:ADDRESS is expected"))?;
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = match address {
            "host-gateway" => HostAddress::Gateway,
            address => HostAddress::At(
                bare.unwrap_or(address).parse().map_err(|_| bad("the address can't be read"))?,
            ),
        };
        hosts.push((name.to_owned(), address));
    }
    let shm_size = match &flags.shm_size {
        None => None,
        Some(text) => {
            let size = mount_size(text).ok_or_else(|| {
                wrong(format!("--shm-size {text}: a number of bytes such as 64m is expected"))
            })?;
            Some(size).filter(|size| *size > 0)
        }
    };
    let mut limits: Vec<Limit> = Vec::new();
    for text in &flags.ulimit {
        let limit =
            Limit::parse(text).map_err(|reason| wrong(format!("--ulimit {text}: {reason}")))?;
        limits.retain(|known| known.name != limit.name);
        limits.push(limit);
    }
    Ok(Conditions { hosts, shm_size, limits, hostname: None })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use clap::Parser;

    use super::*;
    use crate::cli::flags::Executor;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    fn flags(list: &[&str]) -> Build {
        Executor::try_parse_from(std::iter::once(&"executor").chain(list)).expect("parses").build
    }

    #[test]
    fn git_options_are_kanikos() {
        let variable = |name: &str| match name {
            "GIT_TOKEN" => Some("t".to_owned()),
            _ => None,
        };
        let read = |list: &[&str]| git(&words(list), &[], &variable);
        let options = read(&["branch=dev,single-branch=true", "recurse-submodules=1", "depth=3"])
            .expect("valid");
        assert_eq!(options.branch.as_deref(), Some("dev"));
        assert!(options.recurse_submodules && !options.insecure_skip_tls);
        assert_eq!(options.pull_method, "https");
        assert_eq!(options.credential, Some(("t".to_owned(), Hidden::new(String::new()))));
        for bad in ["branch", "depth=x", "insecure-skip-tls=maybe", "colour=red"] {
            assert!(read(&[bad]).is_err(), "{bad}");
        }
        let method = |name: &str| (name == "GIT_PULL_METHOD").then(|| "ftp".to_owned());
        assert!(git(&[], &[], &method).is_err());
    }

    #[test]
    fn a_build_context_is_an_image_or_files() {
        let (contexts, files) = contexts(&words(&[
            "alpine=docker-image://debian:12",
            "lay=oci-layout:///x:1",
            "src=/dir",
            "src=https://h/a.tar.gz",
        ]))
        .expect("valid");
        let image = |name: &str| contexts.find(name).map(|(_, context)| context.clone());
        assert_eq!(image("alpine:latest"), Some(NamedContext::Image("debian:12".to_owned())));
        assert_eq!(image("lay"), Some(NamedContext::Image("oci-layout:///x:1".to_owned())));
        assert_eq!(image("src"), Some(NamedContext::Files));
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].place, "https://h/a.tar.gz");
        for bad in ["x", "x=", "=y", "x=s3://b/o", "x=target://y", "scratch=/x"] {
            assert!(super::contexts(&words(&[bad])).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_agent_is_a_socket_or_keys() {
        let work = tempfile::tempdir().expect("a directory");
        let socket = work.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let key = work.path().join("k");
        std::fs::write(&key, "x").expect("a file");
        let variable =
            |name: &str| (name == "SSH_AUTH_SOCK").then(|| socket.to_string_lossy().into_owned());
        let read = |list: &[String]| ssh(list, &variable).map(|mut found| found.remove(0));
        let of = |raw| SshSource::Socket { path: socket.clone(), raw };
        assert_eq!(read(&words(&["default"])).expect("valid").source, of(false));
        let text = format!("a={},raw=true", socket.display());
        let found = read(&[text]).expect("valid");
        assert_eq!((found.id.as_str(), found.source), ("a", of(true)));
        let text = format!("b={k},{k}", k = key.display());
        assert_eq!(
            read(&[text]).expect("valid").source,
            SshSource::Keys(vec![key.clone(), key.clone()])
        );
        for bad in ["a=/nowhere", &format!("a={},raw=true", key.display())] {
            assert!(read(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(ssh(&words(&["default"]), &|_| None).is_err());
    }

    #[test]
    fn hosts_sizes_and_limits_are_read() {
        let found = conditions(&flags(&[
            "--add-host=a:10.0.0.1",
            "--add-host=b:::1",
            "--add-host=c=[fe80::1]",
            "--add-host=d:host-gateway",
            "--shm-size=128m",
            "--ulimit=nofile=1",
            "--ulimit=nofile=2:3",
        ]))
        .expect("valid");
        let at = |text: &str| HostAddress::At(text.parse::<IpAddr>().expect("an address"));
        let hosts: Vec<_> = found.hosts.iter().map(|(name, at)| (name.as_str(), *at)).collect();
        assert_eq!(
            hosts,
            [
                ("a", at("10.0.0.1")),
                ("b", at("::1")),
                ("c", at("fe80::1")),
                ("d", HostAddress::Gateway)
            ]
        );
        assert_eq!(found.shm_size, Some(128 << 20));
        assert_eq!(found.limits.len(), 1);
        for bad in ["--add-host=a", "--add-host=a:x", "--shm-size=x", "--ulimit=x=1"] {
            assert!(conditions(&flags(&[bad])).is_err(), "{bad}");
        }
    }
}
