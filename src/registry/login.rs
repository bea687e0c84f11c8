//! Keeps credentials where [`Keychain::read`](super::Keychain::read) looks for them, as
//! `docker login` does.

use std::fs;
use std::fs::Permissions;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use base64::Engine as _;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::error::Error;
use super::keychain::DOCKER_HUB_KEY;
use super::keychain::Environment;
use super::keychain::is_helper_name;
use super::keychain::normalize;
use super::keychain::read_file;
use crate::oci::reference::DOCKER_HUB;

/// Keeps `user` and `password` for the registry `host`: in Docker's config file, or with
/// the credential helper that the file names for that registry. Gives the place's name.
/// Everything else in the file stays. Whether the registry takes them isn't asked.
///
/// # Errors
/// [`Error::Credentials`] when the file can't be read, understood or written, or the
/// helper fails.
pub fn login(
    environment: &Environment,
    host: &str,
    user: &str,
    password: &str,
) -> Result<String, Error> {
    let path = environment.docker_file().ok_or_else(|| Error::Credentials {
        origin: "the environment".to_owned(),
        problem: "neither DOCKER_CONFIG nor HOME is set".to_owned(),
    })?;
    let origin = path.display().to_string();
    let fail = |problem: String| Error::Credentials { origin: origin.clone(), problem };
    let bytes = read_file(&path).map_err(&fail)?.unwrap_or_default();
    let mut config = if bytes.trim_ascii().is_empty() {
        Map::new()
    } else {
        // serde's own message may quote a value, which may be a password.
        serde_json::from_slice(&bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            fail(format!("it is not a Docker config file (line {line}, column {column})"))
        })?
    };
    let host = normalize(host);
    let key = if host == DOCKER_HUB { DOCKER_HUB_KEY } else { &host };
    // Whatever spelling of the host the file has: that is how it is read, too.
    let helper = config
        .get("credHelpers")
        .and_then(Value::as_object)
        .and_then(|helpers| helpers.iter().find(|(name, _)| normalize(name) == host))
        .map(|(_, helper)| helper)
        .or_else(|| config.get("credsStore"))
        .and_then(Value::as_str)
        .filter(|name| is_helper_name(name));
    if let Some(name) = helper {
        let program = format!("docker-credential-{name}");
        let entry = json!({"ServerURL": key, "Username": user, "Secret": password});
        store(environment, &program, entry.to_string().as_bytes())
            .map_err(|problem| Error::Credentials { origin: program.clone(), problem })?;
        return Ok(program);
    }
    let auths = config.entry("auths").or_insert(Value::Null);
    if auths.is_null() {
        *auths = json!({});
    }
    let auths = auths.as_object_mut().ok_or_else(|| fail("its `auths` is no object".to_owned()))?;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    // An older one under another spelling might be tried first.
    auths.retain(|name, _| normalize(name) != host);
    auths.insert(key.to_owned(), json!({"auth": auth}));
    write(&path, &config).map_err(|error| fail(format!("cannot write it: {error}")))?;
    Ok(origin)
}

/// Replaces the file, readable by its owner alone.
fn write(path: &std::path::Path, config: &Map<String, Value>) -> io::Result<()> {
    // A link leads to the file that is meant.
    let path = fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    let mut file = tempfile::Builder::new()
        .prefix(".config.json-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(directory)?;
    let mut text = serde_json::to_vec_pretty(config)?;
    text.push(b'\n');
    file.write_all(&text)?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(())
}

/// `docker-credential-<name> store`: the entry as JSON on stdin (docker's credential
/// helper protocol).
fn store(environment: &Environment, program: &str, entry: &[u8]) -> Result<(), String> {
    let paths = environment.path.iter().flat_map(std::env::split_paths);
    let found = paths
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
        .ok_or("it is not in PATH")?;
    let mut child = Command::new(found)
        .arg("store")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("it does not start: {error}"))?;
    if let Some(mut input) = child.stdin.take() {
        // One that closes it early says why in its answer.
        let _ = input.write_all(entry);
    }
    let output = child.wait_with_output().map_err(|error| format!("it failed: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stdout);
    let message: String = message.lines().next().unwrap_or("").chars().take(200).collect();
    Err(format!("it failed ({}): {message}", output.status))
}

#[cfg(test)]
mod tests {
    use super::super::Keychain;
    use super::super::keychain::Candidate;
    use super::super::keychain::Secret;
    use super::*;

    fn environment(directory: &std::path::Path) -> Environment {
        let directory = directory.as_os_str().to_owned();
        Environment::read(|name| {
            matches!(name, "DOCKER_CONFIG" | "PATH").then(|| directory.clone())
        })
    }

    #[test]
    fn what_is_kept_is_found_again_and_the_rest_stays() {
        let place = tempfile::tempdir().unwrap();
        let environment = environment(&place.path().join("made"));
        login(&environment, "https://Registry.example:5000/v2/", "me", "a:b").unwrap();
        let path = place.path().join("made/config.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, fs::read_to_string(&path).unwrap().replacen('{', r#"{"x": 7,"#, 1))
            .unwrap();
        login(&environment, "docker.io", "you", "c").unwrap();
        let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(config["x"], 7);
        let keychain = Keychain::read(&environment).unwrap();
        let known = |host: &str| match keychain.candidates(host, "r").as_slice() {
            [Candidate::Known { secret: Secret::Password { user, password }, .. }] => {
                (user.clone(), password.clone())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(known("registry.example:5000"), ("me".to_owned(), "a:b".to_owned()));
        assert_eq!(known("docker.io"), ("you".to_owned(), "c".to_owned()));
    }

    #[test]
    fn a_helper_keeps_what_is_its() {
        let place = tempfile::tempdir().unwrap();
        let program = place.path().join("docker-credential-box");
        let script = "#!/bin/sh\n[ \"$1\" = store ] && cat > \"$0.kept\"\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let path = place.path().join("config.json");
        fs::write(&path, r#"{"credHelpers": {"r.example": "box"}}"#).unwrap();
        let environment = environment(place.path());
        let kept = login(&environment, "r.example", "me", "secret").unwrap();
        assert_eq!(kept, "docker-credential-box");
        let told = fs::read_to_string(place.path().join("docker-credential-box.kept")).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        let expected = json!({"ServerURL": "r.example", "Username": "me", "Secret": "secret"});
        assert_eq!(told, expected);
        assert!(!fs::read_to_string(&path).unwrap().contains("auths"));
        login(&environment, "other.example", "me", "secret").unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("other.example"));
    }

    #[test]
    fn a_host_is_the_same_in_all_its_spellings() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("config.json");
        let environment = environment(place.path());
        // The helper isn't installed, which is an error and no reason to write it down.
        for (helpers, host) in [
            (json!({"docker.io": "box"}), "docker.io"),
            (json!({"index.docker.io": "box"}), "https://index.docker.io/v1/"),
            (json!({"https://R.example/v2/": "box"}), "r.example"),
        ] {
            fs::write(&path, json!({"credHelpers": helpers}).to_string()).unwrap();
            let wrong = login(&environment, host, "me", "secret").unwrap_err();
            assert!(wrong.to_string().contains("docker-credential-box"), "{host}: {wrong}");
            assert!(!fs::read_to_string(&path).unwrap().contains("auths"), "{host}");
        }
        let old = json!({"auth": "b2xkOm9sZA=="});
        let auths = json!({
            "https://R.example": old, "r.example/team": old, "https://other.example": old
        });
        fs::write(&path, json!({"auths": auths}).to_string()).unwrap();
        login(&environment, "r.example", "me", "secret").unwrap();
        let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let names: Vec<&String> = config["auths"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["https://other.example", "r.example", "r.example/team"]);
    }

    #[test]
    fn a_file_without_entries_gets_the_first() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("config.json");
        for text in ["", "{}", r#"{"auths": null, "credHelpers": null}"#] {
            fs::write(&path, text).unwrap();
            login(&environment(place.path()), "r.example", "me", "secret").unwrap();
            assert!(fs::read_to_string(&path).unwrap().contains("r.example"), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_something_else_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("config.json");
        for text in ["{\"auths\": ", "{\"auths\": 3}", "[]"] {
            fs::write(&path, text).unwrap();
            let wrong = login(&environment(place.path()), "r", "me", "secret").unwrap_err();
            assert!(!wrong.to_string().contains("secret"), "{wrong}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
