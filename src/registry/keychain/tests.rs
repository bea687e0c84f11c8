use super::*;

use std::os::unix::fs::PermissionsExt;

fn keychain(text: &str) -> Keychain {
    let environment =
        Environment { docker_auth_config: Some(text.to_owned()), ..Environment::default() };
    Keychain::read(&environment).unwrap()
}

fn password(user: &str, password: &str) -> Secret {
    Secret::Password { user: user.to_owned(), password: password.to_owned() }
}

fn secrets(keychain: &Keychain, host: &str, repository: &str) -> Vec<Secret> {
    let candidates = keychain.candidates(host, repository).into_iter();
    candidates
        .filter_map(|candidate| match candidate {
            Candidate::Known { secret, .. } => Some(secret),
            _ => None,
        })
        .collect()
}

#[test]
fn every_spelling_of_docker_hub_is_docker_hub() {
    for key in [
        "https://index.docker.io/v1/",
        "https://index.docker.io/v2/",
        "index.docker.io",
        "docker.io",
        "https://registry-1.docker.io",
        "https://docker.io/",
    ] {
        // base64 of `me:secret`
        let keychain = keychain(&format!(r#"{{"auths":{{"{key}":{{"auth":"bWU6c2VjcmV0"}}}}}}"#));
        for host in ["docker.io", "registry-1.docker.io", "index.docker.io"] {
            assert_eq!(secrets(&keychain, host, "library/a"), [password("me", "secret")], "{key}");
        }
        assert!(secrets(&keychain, "example.org", "a").is_empty());
    }
}

#[test]
fn longer_paths_come_first_and_siblings_never() {
    let keychain = keychain(
        r#"{"auths":{
            "r.example":{"username":"host","password":"1"},
            "r.example/team":{"username":"team","password":"2"},
            "https://r.example/team/app/":{"username":"app","password":"3"},
            "r.example/tea":{"username":"sibling","password":"4"},
            "R.example:443":{"username":"port","password":"5"},
            "r.example:5000":{"username":"other","password":"6"},
            "r.example/empty":{}
        }}"#,
    );
    let users = |repository: &str| {
        secrets(&keychain, "r.example", repository)
            .into_iter()
            .map(|secret| match secret {
                Secret::Password { user, .. } => user,
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    let mut all = users("team/app");
    all.sort_by_key(|user| matches!(user.as_str(), "host" | "port"));
    assert_eq!(&all[..2], ["app", "team"]);
    assert_eq!(all.len(), 4);
    assert!(!users("teammate/app").contains(&"team".to_owned()));
}

#[test]
fn tokens_of_all_kinds_are_told_apart() {
    let keychain = keychain(
        r#"{"auths":{
            "a":{"identitytoken":"refresh","auth":"MDA6"},
            "b":{"registrytoken":"bearer"},
            "c":{"username":"<token>","password":"refresh"},
            "d":{"auth":"dTpwOnE="}
        }}"#,
    );
    assert_eq!(secrets(&keychain, "a", "x"), [Secret::Identity("refresh".to_owned())]);
    assert_eq!(secrets(&keychain, "b", "x"), [Secret::Registry("bearer".to_owned())]);
    assert_eq!(secrets(&keychain, "c", "x"), [Secret::Identity("refresh".to_owned())]);
    assert_eq!(secrets(&keychain, "d", "x"), [password("u", "p:q")]);
}

#[test]
fn files_are_asked_in_order_and_each_once() {
    let home = tempfile::tempdir().unwrap();
    let write = |below: &str, user: &str| {
        let path = home.path().join(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = format!(r#"{{"auths":{{"r.example":{{"username":"{user}","password":"x"}}}}}}"#);
        std::fs::write(&path, text).unwrap();
        path
    };
    write(".docker/config.json", "docker");
    write("run/containers/auth.json", "runtime");
    write(".config/containers/auth.json", "podman");
    let environment = Environment {
        docker_auth_config: Some(
            r#"{"auths":{"r.example":{"username":"variable","password":"x"}}}"#.to_owned(),
        ),
        home: Some(home.path().to_owned()),
        registry_auth_file: Some(home.path().join(".docker/config.json")),
        runtime_directory: Some(home.path().join("run")),
        ..Environment::default()
    };
    let keychain = Keychain::read(&environment).unwrap();
    let expected = ["variable", "docker", "runtime", "podman"].map(|user| password(user, "x"));
    assert_eq!(secrets(&keychain, "r.example", "a"), expected);
    let origins: Vec<_> =
        keychain.candidates("r.example", "a").iter().map(Candidate::origin).collect();
    assert_eq!(origins[0], "DOCKER_AUTH_CONFIG");
    assert!(origins[1].ends_with(".docker/config.json"));
}

#[test]
fn broken_sources_are_errors_that_quote_nothing() {
    for text in [
        "hunter2",
        r#"{"auths":"hunter2"}"#,
        r#"{"auths":{"a":{"auth":"hunter2%"}}}"#,
        r#"{"auths":{"a":{"auth":["hunter2"]}}}"#,
        r#"{"auths":{"a":{"auth":"aHVudGVyMg=="}}}"#,
    ] {
        let environment =
            Environment { docker_auth_config: Some(text.to_owned()), ..Environment::default() };
        let error = Keychain::read(&environment).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("DOCKER_AUTH_CONFIG"), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("aHVu"), "{shown}");
    }
}

#[test]
fn debug_output_has_no_secret() {
    let keychain = keychain(r#"{"auths":{"a":{"username":"u","password":"hunter2"}}}"#);
    let shown = format!("{keychain:?} {:?}", keychain.candidates("a", "x"));
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn helpers_are_asked_by_docker_s_protocol() {
    let programs = tempfile::tempdir().unwrap();
    let program = |name: &str, script: &str| {
        let path = programs.path().join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    // Answers with the key it was asked for as the secret.
    program(
        "echo",
        r#"read key; printf '{"ServerURL":"","Username":"%s","Secret":"%s"}' "$1" "$key""#,
    );
    program("none", "echo credentials not found in native keychain; exit 1");
    program("bad", "echo no cloud here; exit 3");
    let environment = Environment {
        docker_auth_config: Some(
            r#"{"credHelpers":{"r.example":"echo","n.example":"none","m.example":"missing",
                "x.example":"../../bin/x"},"credsStore":"bad"}"#
                .to_owned(),
        ),
        path: Some(programs.path().into()),
        ..Environment::default()
    };
    let keychain = Keychain::read(&environment).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |host: &str| {
        let candidates = keychain.candidates(host, "a");
        runtime.block_on(keychain.secret(&candidates[0]))
    };
    assert_eq!(ask("r.example"), Ok(Some(password("get", "r.example"))));
    assert_eq!(ask("n.example"), Ok(None));
    assert!(ask("m.example").unwrap_err().contains("not in PATH"));
    assert!(ask("docker.io").unwrap_err().contains("no cloud here"));
    assert_eq!(keychain.candidates("x.example", "a").len(), 1, "only the store is left");
    assert_eq!(
        keychain.candidates("registry-1.docker.io", "a")[0],
        Candidate::Helper { name: "bad".to_owned(), key: DOCKER_HUB_KEY.to_owned() }
    );
}
