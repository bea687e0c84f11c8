//! The registry client over real HTTP on loopback: against a registry in this process
//! that misbehaves on demand, and against Debian's `docker-registry` where it is
//! installed.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/registry.rs"]
mod fake;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use fake::{Auth, Fault, Registry, Rules};
use yadokari::oci::descriptor::Descriptor;
use yadokari::oci::digest::Digest;
use yadokari::oci::manifest::{Document, Index, Manifest, parse_manifest};
use yadokari::oci::media_type;
use yadokari::oci::platform::Platform;
use yadokari::oci::reference::Reference;
use yadokari::registry::{
    BlobReader, Client, Environment, Error, Keychain, Options, Pushed, Unreachable,
};

fn options() -> Options {
    Options {
        retries: 4,
        retry_delay: Duration::from_millis(1),
        timeout: Duration::from_secs(20),
        ..Options::default()
    }
}

fn anonymous() -> Client {
    Client::new(options(), Keychain::anonymous()).unwrap()
}

/// A client whose `DOCKER_AUTH_CONFIG` is `config`, with `HOST` replaced.
fn client(config: &str, registry: &Registry) -> Client {
    let environment = Environment {
        docker_auth_config: Some(config.replace("HOST", registry.host())),
        ..Environment::default()
    };
    Client::new(options(), Keychain::read(&environment).unwrap()).unwrap()
}

fn reference(registry: &Registry, rest: &str) -> Reference {
    format!("{}/{rest}", registry.host()).parse().unwrap()
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + index / 251) as u8).collect()
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(bytes), bytes.len() as u64)
}

fn read(mut reader: BlobReader) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A source for `push_blob`.
fn source(bytes: &[u8]) -> impl Fn() -> io::Result<File> + use<> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    move || File::open(file.path())
}

fn manifest(layer: &[u8]) -> Vec<u8> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: descriptor(b"{}"),
        layers: vec![descriptor(layer)],
        subject: None,
        annotations: [].into(),
    };
    serde_json::to_vec(&manifest).unwrap()
}

fn tokens(accounts: &[(&'static str, &'static str, bool)], anonymous: bool) -> Rules {
    let auth = Auth::Token { accounts: accounts.to_vec(), refresh: Some("r3fresh"), anonymous };
    Rules { auth, ..Rules::default() }
}

// Pulling

#[test]
fn a_manifest_is_resolved_and_fetched_by_tag_and_by_digest() {
    let registry = Registry::start(Rules::default());
    let bytes = manifest(b"layer");
    let digest = registry.put_manifest("team/app", "1", media_type::OCI_MANIFEST, &bytes);
    let client = anonymous();
    for name in ["team/app:1".to_owned(), format!("team/app@{digest}")] {
        let name = reference(&registry, &name);
        let resolved = client.resolve(&name).unwrap();
        assert_eq!(resolved.digest, digest);
        assert_eq!(resolved.media_type, media_type::OCI_MANIFEST);
        assert_eq!(resolved.size, bytes.len() as u64);
        let fetched = client.manifest(&name).unwrap();
        assert_eq!((fetched.digest, fetched.bytes), (digest, bytes.clone()));
    }
    assert_eq!(registry.count("GET", "/v2/team"), 2, "resolving needs no body");
    assert!(registry.seen()[1].header("Accept").unwrap().contains(media_type::DOCKER_INDEX));
}

#[test]
fn a_head_without_digest_is_followed_by_a_get() {
    let registry = Registry::start(Rules { no_digest_header: true, ..Rules::default() });
    let bytes = manifest(b"layer");
    let digest = registry.put_manifest("app", "1", media_type::OCI_MANIFEST, &bytes);
    assert_eq!(anonymous().resolve(&reference(&registry, "app:1")).unwrap().digest, digest);
    registry.fault("HEAD", "manifests", Fault::Status(405, vec![], String::new()));
    assert_eq!(anonymous().resolve(&reference(&registry, "app:1")).unwrap().digest, digest);
}

#[test]
fn a_missing_image_names_host_repository_and_the_registry_s_words() {
    let registry = Registry::start(Rules::default());
    for error in [
        anonymous().resolve(&reference(&registry, "no/such:9")).unwrap_err(),
        anonymous().manifest(&reference(&registry, "no/such:9")).unwrap_err(),
    ] {
        assert!(error.is_not_found() && !error.is_unauthorized());
        let shown = error.to_string();
        for part in [registry.host(), "no/such:9", "404", "MANIFEST_UNKNOWN", "manifest unknown"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(error.hint().unwrap().contains("check the name"));
    }
}

#[test]
fn a_manifest_with_the_wrong_digest_is_never_given_out() {
    let registry = Registry::start(Rules::default());
    let bytes = manifest(b"layer");
    let digest = registry.put_manifest("app", "1", media_type::OCI_MANIFEST, &bytes);
    for name in ["app:1".to_owned(), format!("app@{digest}")] {
        registry.fault("GET", "manifests", Fault::Corrupt);
        let error = anonymous().manifest(&reference(&registry, &name)).unwrap_err();
        assert!(matches!(error, Error::DigestMismatch { expected, .. } if expected == digest));
    }
}

#[test]
fn an_oversized_manifest_is_cut_off() {
    let registry = Registry::start(Rules::default());
    let bytes = vec![b' '; (8 << 20) + 1];
    registry.put_manifest("app", "1", media_type::OCI_MANIFEST, &bytes);
    let error = anonymous().manifest(&reference(&registry, "app:1")).unwrap_err();
    assert!(matches!(error, Error::Size { .. }), "{error}");
}

#[test]
fn the_index_leads_to_the_image_of_the_platform() {
    let registry = Registry::start(Rules::default());
    let mut entries = Vec::new();
    for platform in ["linux/amd64", "linux/arm64/v8", "linux/arm/v6"] {
        let bytes = manifest(platform.as_bytes());
        registry.put_manifest("app", platform, media_type::OCI_MANIFEST, &bytes);
        let mut entry =
            Descriptor::new(media_type::OCI_MANIFEST, Digest::of(&bytes), bytes.len() as u64);
        entry.platform = Some(platform.parse().unwrap());
        entries.push(entry);
    }
    let index = Index {
        schema_version: 2,
        media_type: None,
        artifact_type: None,
        manifests: entries,
        subject: None,
        annotations: [].into(),
    };
    let bytes = serde_json::to_vec(&index).unwrap();
    registry.put_manifest("app", "1", media_type::OCI_INDEX, &bytes);
    let image = |platform: &str| {
        let platform: Platform = platform.parse().unwrap();
        anonymous().image(&reference(&registry, "app:1"), &platform)
    };
    for (wanted, found) in [("linux/arm64", "linux/arm64/v8"), ("linux/arm/v7", "linux/arm/v6")] {
        assert_eq!(image(wanted).unwrap().bytes, manifest(found.as_bytes()));
    }
    let error = image("linux/s390x").unwrap_err();
    assert!(error.to_string().contains("linux/amd64, linux/arm64, linux/arm/v6"), "{error}");
}

#[test]
fn a_blob_is_streamed_and_verified() {
    let registry = Registry::start(Rules::default());
    let bytes = content(3 << 20);
    registry.put_blob("app", &bytes);
    registry.put_blob("app", b"");
    let client = anonymous();
    let name = reference(&registry, "app");
    assert_eq!(read(client.blob(&name, &descriptor(&bytes)).unwrap()).unwrap(), bytes);
    assert_eq!(client.blob_bytes(&name, &descriptor(&bytes)).unwrap(), bytes);
    assert_eq!(client.blob_bytes(&name, &descriptor(b"")).unwrap(), b"");
    assert!(client.has_blob(&name, &Digest::of(&bytes)).unwrap());
    assert!(!client.has_blob(&name, &Digest::of(b"other")).unwrap());
}

#[test]
fn a_corrupt_blob_fails_before_its_last_bytes_and_stays_failed() {
    let registry = Registry::start(Rules::default());
    let bytes = content(1 << 20);
    registry.put_blob("app", &bytes);
    registry.fault("GET", "blobs", Fault::Corrupt);
    let mut reader = anonymous().blob(&reference(&registry, "app"), &descriptor(&bytes)).unwrap();
    let mut received = Vec::new();
    let error = reader.read_to_end(&mut received).unwrap_err();
    assert!(received.len() < bytes.len(), "the last bytes must not be handed out");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let inner = error.downcast::<Error>().unwrap();
    assert!(matches!(inner, Error::DigestMismatch { .. }), "{inner}");
    for _ in 0..2 {
        assert!(reader.read(&mut [0; 8]).is_err(), "an error must not turn into an end");
    }
}

#[test]
fn a_blob_of_another_length_is_refused_at_once() {
    let registry = Registry::start(Rules::default());
    let bytes = content(1000);
    registry.put_blob("app", &bytes);
    for size in [999, 1001] {
        let wrong = Descriptor::new("", Digest::of(&bytes), size);
        let error = anonymous().blob(&reference(&registry, "app"), &wrong).unwrap_err();
        assert!(matches!(error, Error::Size { .. }), "{error}");
    }
}

#[test]
fn a_connection_that_breaks_in_a_blob_is_resumed_where_it_broke() {
    for no_ranges in [false, true] {
        let registry = Registry::start(Rules { no_ranges, ..Rules::default() });
        let bytes = content(2 << 20);
        registry.put_blob("app", &bytes);
        registry.fault("GET", "blobs", Fault::Truncate(700_000));
        registry.fault("GET", "blobs", Fault::Drop);
        let reader = anonymous().blob(&reference(&registry, "app"), &descriptor(&bytes)).unwrap();
        assert_eq!(read(reader).unwrap(), bytes);
        let ranges: Vec<_> = registry
            .seen()
            .iter()
            .filter(|seen| seen.target.contains("blobs"))
            .map(|seen| seen.header("Range").map(str::to_owned))
            .collect();
        let resumed = Some("bytes=700000-".to_owned());
        assert_eq!(ranges, [None, resumed.clone(), resumed]);
    }
}

#[test]
fn a_blob_that_always_breaks_is_an_error_and_not_an_end() {
    let registry = Registry::start(Rules::default());
    let bytes = content(1 << 20);
    registry.put_blob("app", &bytes);
    for _ in 0..20 {
        registry.fault("GET", "blobs", Fault::Truncate(10));
    }
    let reader = anonymous().blob(&reference(&registry, "app"), &descriptor(&bytes)).unwrap();
    let error = read(reader).unwrap_err().downcast::<Error>().unwrap();
    assert!(matches!(error, Error::Unreachable { kind: Unreachable::Broken, .. }), "{error}");
    assert_eq!(registry.count("GET", "blobs"), 5, "the first and four more");
}

#[test]
fn trouble_that_may_pass_is_tried_again_and_other_trouble_is_not() {
    let registry = Registry::start(Rules::default());
    let bytes = manifest(b"layer");
    registry.put_manifest("app", "1", media_type::OCI_MANIFEST, &bytes);
    let again = vec![("Retry-After", "0".to_owned())];
    registry.fault("GET", "manifests", Fault::Status(429, again, String::new()));
    registry.fault("GET", "manifests", Fault::Status(503, vec![], String::new()));
    registry.fault("GET", "manifests", Fault::Drop);
    let client = anonymous();
    let name = reference(&registry, "app:1");
    assert_eq!(client.manifest(&name).unwrap().bytes, bytes);
    assert_eq!(registry.count("GET", "manifests"), 4);
    registry.fault("GET", "manifests", Fault::Status(400, vec![], "no".to_owned()));
    assert!(client.manifest(&name).unwrap_err().to_string().contains("400"));
    assert_eq!(registry.count("GET", "manifests"), 5);
}

#[test]
fn retry_after_is_waited_for() {
    let registry = Registry::start(Rules::default());
    let digest = registry.put_blob("app", b"x");
    let again = vec![("Retry-After", "1".to_owned())];
    registry.fault("HEAD", "blobs", Fault::Status(429, again, String::new()));
    let begin = std::time::Instant::now();
    assert!(anonymous().has_blob(&reference(&registry, "app"), &digest).unwrap());
    assert!(begin.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_registry_that_is_not_there_says_so() {
    let host = {
        let registry = Registry::start(Rules::default());
        registry.host().to_owned()
    };
    let error = anonymous().manifest(&format!("{host}/app").parse().unwrap()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { kind: Unreachable::Connect, .. }), "{error}");
    assert!(error.hint().unwrap().contains(&host));
}

#[test]
fn mirrors_are_asked_in_order_and_then_the_registry() {
    let [empty, origin, mirror] = [(); 3].map(|()| Registry::start(Rules::default()));
    let bytes = manifest(b"layer");
    origin.put_manifest("app", "1", media_type::OCI_MANIFEST, &bytes);
    let layer = content(200_000);
    origin.put_blob("app", &layer);
    mirror.put_blob("copies/app", &layer);
    let mirrors = vec![empty.host().to_owned(), format!("{}/copies", mirror.host())];
    let mut options = Options { mirrors: vec![(origin.host().to_owned(), mirrors)], ..options() };
    let client = Client::new(options.clone(), Keychain::anonymous()).unwrap();
    let name = reference(&origin, "app:1");
    assert_eq!(client.manifest(&name).unwrap().bytes, bytes);
    assert_eq!(mirror.count("GET", "/v2/copies/app/manifests/1"), 1);
    // The mirror breaks for good in the middle: the registry has the rest.
    mirror.fault("GET", "blobs", Fault::Truncate(100_000));
    for _ in 0..5 {
        mirror.fault("GET", "blobs", Fault::Status(403, vec![], String::new()));
    }
    assert_eq!(read(client.blob(&name, &descriptor(&layer)).unwrap()).unwrap(), layer);
    assert_eq!(origin.count("GET", "blobs"), 1);
    options.skip_default_fallback = true;
    let client = Client::new(options, Keychain::anonymous()).unwrap();
    let error = client.manifest(&name).unwrap_err();
    assert!(matches!(&error, Error::Everywhere { failures } if failures.len() == 2), "{error}");
}

// Authorization

const PASSWORD: &str = "hunter2-secret";

#[test]
fn basic_authentication_is_answered_and_a_wrong_password_is_named() {
    let auth = Auth::Basic("me", PASSWORD);
    let registry = Registry::start(Rules { auth, ..Rules::default() });
    let bytes = manifest(b"layer");
    registry.put_manifest("app", "1", media_type::OCI_MANIFEST, &bytes);
    let name = reference(&registry, "app:1");
    let right = r#"{"auths":{"HOST":{"username":"me","password":"hunter2-secret"}}}"#;
    assert_eq!(client(right, &registry).manifest(&name).unwrap().bytes, bytes);
    let wrong = r#"{"auths":{"HOST":{"username":"me","password":"hunter2-wrong"}}}"#;
    let error = client(wrong, &registry).manifest(&name).unwrap_err();
    assert!(error.is_unauthorized());
    let shown = format!("{error} {error:?} {:?}", error.hint());
    assert!(shown.contains("DOCKER_AUTH_CONFIG") && shown.contains("401"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
    let error = anonymous().manifest(&name).unwrap_err();
    assert!(error.hint().unwrap().contains("no credentials"), "{error}");
}

#[test]
fn tokens_are_fetched_once_per_scope_and_shared_between_threads() {
    let registry = Registry::start(tokens(&[("me", PASSWORD, true)], false));
    let bytes = manifest(b"layer");
    registry.put_manifest("app", "1", media_type::OCI_MANIFEST, &bytes);
    let config = r#"{"auths":{"HOST":{"username":"me","password":"hunter2-secret"}}}"#;
    let client = client(config, &registry);
    let name = reference(&registry, "app:1");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(client.manifest(&name).unwrap().bytes, bytes));
        }
    });
    assert_eq!(registry.count("GET", "/token"), 1);
    let token = registry.seen().into_iter().find(|seen| seen.target.contains("/token")).unwrap();
    assert!(token.target.contains("service=fake&scope=repository%3Aapp%3Apull"), "{token:?}");
}

#[test]
fn a_public_image_needs_no_credentials_behind_a_token_server() {
    let registry = Registry::start(tokens(&[], true));
    registry.put_manifest("app", "1", media_type::OCI_MANIFEST, &manifest(b"layer"));
    let name = reference(&registry, "app:1");
    assert!(anonymous().manifest(&name).is_ok());
    // Neither do wrong ones hurt.
    let stale = r#"{"auths":{"HOST":{"username":"me","password":"stale"}}}"#;
    assert!(client(stale, &registry).manifest(&name).is_ok());
}

#[test]
fn an_identity_token_is_traded_by_post() {
    let registry = Registry::start(tokens(&[], false));
    registry.put_manifest("app", "1", media_type::OCI_MANIFEST, &manifest(b"layer"));
    let config = r#"{"auths":{"HOST":{"identitytoken":"r3fresh"}}}"#;
    assert!(client(config, &registry).manifest(&reference(&registry, "app:1")).is_ok());
    assert_eq!((registry.count("POST", "/token"), registry.count("GET", "/token")), (1, 0));
}

#[test]
fn credentials_that_may_not_push_give_way_to_the_next() {
    let registry = Registry::start(tokens(&[("reader", "r", false), ("writer", "w", true)], false));
    let config = r#"{"auths":{
        "HOST/team":{"username":"reader","password":"r"},
        "HOST":{"username":"writer","password":"w"}}}"#;
    let name = reference(&registry, "team/app:1");
    client(config, &registry).check_push(&name).unwrap();
    let only_reader = r#"{"auths":{"HOST":{"username":"reader","password":"r"}}}"#;
    let error = client(only_reader, &registry).check_push(&name).unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
    assert!(error.to_string().contains("tried DOCKER_AUTH_CONFIG"), "{error}");
    assert!(!error.to_string().contains("anonymous"), "pushes are not tried anonymously: {error}");
}

#[test]
fn an_expired_token_is_renewed() {
    let registry = Registry::start(tokens(&[("me", PASSWORD, true)], false));
    registry.put_manifest("app", "1", media_type::OCI_MANIFEST, &manifest(b"layer"));
    let config = r#"{"auths":{"HOST":{"username":"me","password":"hunter2-secret"}}}"#;
    let client = client(config, &registry);
    let name = reference(&registry, "app:1");
    client.manifest(&name).unwrap();
    registry.fault("GET", "manifests", Fault::Status(401, vec![], String::new()));
    client.manifest(&name).unwrap();
    assert_eq!(registry.count("GET", "/token"), 2);
}

#[test]
fn a_redirect_to_another_port_carries_no_authorization() {
    let storage = Registry::start(Rules::default());
    let blobs_at = Some(format!("http://{}", storage.host()));
    let auth = Auth::Basic("me", PASSWORD);
    let registry = Registry::start(Rules { auth, blobs_at, ..Rules::default() });
    let bytes = content(5000);
    registry.put_blob("app", &bytes);
    storage.put_blob("app", &bytes);
    let config = r#"{"auths":{"HOST":{"username":"me","password":"hunter2-secret"}}}"#;
    let client = client(config, &registry);
    let name = reference(&registry, "app");
    assert_eq!(client.blob_bytes(&name, &descriptor(&bytes)).unwrap(), bytes);
    assert!(registry.seen().last().unwrap().header("Authorization").is_some());
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("Authorization"), None);
    // Back to where it came from: still none.
    storage.rules(|rules| rules.blobs_at = Some(format!("http://{}", registry.host())));
    let before = registry.seen().len();
    assert!(client.blob_bytes(&name, &descriptor(&bytes)).is_err());
    let later: Vec<_> = registry.seen().split_off(before);
    assert!(later[1].header("Authorization").is_none(), "{later:?}");
}

// Pushing

#[test]
fn an_image_is_pushed_and_pulled_back() {
    let registry = Registry::start(tokens(&[("me", PASSWORD, true)], false));
    let config = r#"{"auths":{"HOST":{"username":"me","password":"hunter2-secret"}}}"#;
    let client = client(config, &registry);
    round_trip(&client, &reference(&registry, "team/app:1"));
    let (kind, bytes) = registry.manifest("team/app", "1").unwrap();
    assert_eq!((kind.as_str(), bytes), (media_type::OCI_MANIFEST, manifest(&content(10 << 20))));
    assert_eq!(registry.open_uploads(), 0);
    assert_eq!(registry.count("PATCH", ""), 0, "a body that is accepted is sent whole");
}

fn round_trip(client: &Client, name: &Reference) {
    client.check_push(name).unwrap();
    let layer = content(10 << 20);
    let uploaded = Pushed::Uploaded { bytes: layer.len() as u64 };
    let push = || client.push_blob(name, &descriptor(&layer), &source(&layer), &[]).unwrap();
    assert_eq!(push(), uploaded);
    assert_eq!(push(), Pushed::Present);
    assert_eq!(
        client.push_blob_bytes(name, &descriptor(b"{}"), b"{}").unwrap(),
        Pushed::Uploaded { bytes: 2 }
    );
    let bytes = manifest(&layer);
    let digest = client.push_manifest(name, media_type::OCI_MANIFEST, &bytes).unwrap();
    assert_eq!(digest, Digest::of(&bytes));
    let fetched = client.image(name, &Platform::host()).unwrap();
    assert_eq!((fetched.digest, &fetched.bytes), (digest, &bytes));
    let Document::Manifest(parsed) = parse_manifest(&fetched.bytes, &fetched.media_type).unwrap()
    else {
        panic!("an index");
    };
    assert_eq!(client.blob_bytes(name, &parsed.config).unwrap(), b"{}");
    assert_eq!(read(client.blob(name, &parsed.layers[0]).unwrap()).unwrap(), layer);
    let other = Reference::parse_destination(&format!("{}/other/app", name.registry())).unwrap();
    let mounted =
        client.push_blob(&other, &descriptor(&layer), &source(&layer), std::slice::from_ref(name));
    assert_eq!(mounted.unwrap(), Pushed::Mounted);
}

#[test]
fn a_mount_asks_for_both_repositories_and_goes_on_when_refused() {
    let registry = Registry::start(tokens(&[("me", PASSWORD, true)], false));
    let config = r#"{"auths":{"HOST":{"username":"me","password":"hunter2-secret"}}}"#;
    let client = client(config, &registry);
    let layer = content(100_000);
    registry.put_blob("base", &layer);
    let [base, app] = ["base", "app"].map(|name| reference(&registry, name));
    let elsewhere: Reference = "registry.example/base".parse().unwrap();
    let from = [app.clone(), elsewhere, base];
    let push = || client.push_blob(&app, &descriptor(&layer), &source(&layer), &from).unwrap();
    assert_eq!(push(), Pushed::Mounted);
    let seen = registry.seen();
    let asked = seen.iter().rfind(|seen| seen.target.starts_with("/token")).unwrap();
    assert!(asked.target.contains("repository%3Aapp%3Apull%2Cpush"), "{asked:?}");
    assert!(asked.target.contains("repository%3Abase%3Apull"), "{asked:?}");
    assert_eq!(registry.count("POST", "mount="), 1);

    let refusing = Registry::start(Rules { no_mount: true, ..Rules::default() });
    refusing.put_blob("base", &layer);
    let [base, app] = ["base", "app"].map(|name| reference(&refusing, name));
    let pushed = anonymous().push_blob(&app, &descriptor(&layer), &source(&layer), &[base]);
    assert_eq!(pushed.unwrap(), Pushed::Uploaded { bytes: 100_000 });
    assert_eq!(refusing.count("POST", "uploads"), 1, "the refused mount's session is used");
    assert_eq!(refusing.open_uploads(), 0);
}

#[test]
fn a_registry_that_refuses_the_body_gets_chunks() {
    for patch_max in [None, Some((4 << 20, 416)), Some((1 << 20, 413))] {
        let rules = Rules { put_max: Some(1 << 20), patch_max, ..Rules::default() };
        let registry = Registry::start(rules);
        let layer = content((9 << 20) + 1);
        let name = reference(&registry, "app");
        let pushed = anonymous().push_blob(&name, &descriptor(&layer), &source(&layer), &[]);
        assert_eq!(pushed.unwrap(), Pushed::Uploaded { bytes: layer.len() as u64 });
        assert_eq!(registry.blob("app", &Digest::of(&layer)).as_ref(), Some(&layer));
    }
}

#[test]
fn a_chunk_that_arrives_in_part_is_resumed_from_the_server_s_range() {
    let registry = Registry::start(Rules { put_max: Some(0), ..Rules::default() });
    registry.fault("PATCH", "", Fault::KeepPart(1_000_000));
    registry.fault("PATCH", "", Fault::LoseAnswer);
    let layer = content(9 << 20);
    let name = reference(&registry, "app");
    anonymous().push_blob(&name, &descriptor(&layer), &source(&layer), &[]).unwrap();
    assert_eq!(registry.blob("app", &Digest::of(&layer)).as_ref(), Some(&layer));
    let seen = registry.seen();
    let starts: Vec<_> = seen
        .iter()
        .filter(|seen| seen.method == "PATCH")
        .filter_map(|seen| seen.header("Content-Range")?.split('-').next())
        .collect();
    assert_eq!(starts, ["0", "1000000", "5194304", "9388608"]);
}

#[test]
fn an_upload_survives_broken_connections_and_busy_servers() {
    let registry = Registry::start(Rules::default());
    registry.fault("HEAD", "blobs", Fault::Status(503, vec![], String::new()));
    registry.fault("POST", "uploads", Fault::Status(429, vec![], String::new()));
    registry.fault("PUT", "uploads", Fault::Status(502, vec![], String::new()));
    registry.fault("PUT", "uploads", Fault::Drop);
    let layer = content(1 << 20);
    let name = reference(&registry, "app");
    let pushed = anonymous().push_blob(&name, &descriptor(&layer), &source(&layer), &[]);
    assert_eq!(pushed.unwrap(), Pushed::Uploaded { bytes: layer.len() as u64 });
    assert_eq!(registry.blob("app", &Digest::of(&layer)).as_ref(), Some(&layer));
}

#[test]
fn a_lost_answer_is_noticed_and_nothing_is_sent_twice() {
    let registry = Registry::start(Rules::default());
    registry.fault("PUT", "uploads", Fault::LoseAnswer);
    let layer = content(1 << 20);
    let name = reference(&registry, "app");
    anonymous().push_blob(&name, &descriptor(&layer), &source(&layer), &[]).unwrap();
    assert_eq!(registry.count("PUT", "uploads"), 1);
}

#[test]
fn a_proxy_that_hangs_up_on_large_bodies_gets_chunks() {
    let registry = Registry::start(Rules::default());
    registry.fault("PUT", "uploads", Fault::Drop);
    registry.fault("PUT", "uploads", Fault::Drop);
    let layer = content(6 << 20);
    let name = reference(&registry, "app");
    anonymous().push_blob(&name, &descriptor(&layer), &source(&layer), &[]).unwrap();
    assert_eq!(registry.count("PATCH", "uploads"), 2);
    assert_eq!(registry.blob("app", &Digest::of(&layer)).as_ref(), Some(&layer));
}

#[test]
fn a_source_that_does_not_fit_its_descriptor_is_not_sent() {
    let registry = Registry::start(Rules::default());
    let name = reference(&registry, "app");
    let client = anonymous();
    let short = client.push_blob(&name, &descriptor(&content(100)), &source(&content(99)), &[]);
    assert!(matches!(short, Err(Error::Size { expected: 100, actual: 99, .. })));
    let other = client.push_blob(&name, &descriptor(b"aa"), &source(b"bb"), &[]).unwrap_err();
    assert!(other.to_string().contains("DIGEST_INVALID"), "{other}");
    let missing = || Err(io::ErrorKind::NotFound.into());
    let gone = client.push_blob(&name, &descriptor(b"aa"), &missing, &[]).unwrap_err();
    assert!(matches!(gone, Error::Source { .. }), "{gone}");
}

#[test]
fn an_immutable_tag_is_told_apart() {
    let registry = Registry::start(Rules::default());
    let text = r#"{"errors":[{"code":"TAG_INVALID","message":"the tag '1' already exists and cannot be overwritten because the repository is immutable"}]}"#;
    registry.fault("PUT", "manifests", Fault::Status(400, vec![], text.to_owned()));
    let name = reference(&registry, "app:1");
    let error = anonymous().push_manifest(&name, media_type::OCI_MANIFEST, b"{}").unwrap_err();
    assert!(error.is_immutable_tag(), "{error}");
}

// TLS

/// A file server with a certificate of its own, made and run by `openssl`.
struct Tls {
    process: std::process::Child,
    host: String,
    certificate: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl Tls {
    /// Serves `manifest` as `app:1`.
    fn start(manifest: &[u8]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", "key.pem", "-out", "certificate.pem"])
            .current_dir(directory.path())
            .stderr(std::process::Stdio::null())
            .status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: there is no openssl");
            return None;
        }
        let manifests = directory.path().join("v2/app/manifests");
        std::fs::create_dir_all(&manifests).unwrap();
        std::fs::write(manifests.join("1"), manifest).unwrap();
        let host = free_address();
        let process = std::process::Command::new("openssl")
            .args(["s_server", "-WWW", "-quiet", "-accept", &host])
            .args(["-key", "key.pem", "-cert", "certificate.pem"])
            .current_dir(directory.path())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_for(&host);
        let certificate = directory.path().join("certificate.pem");
        Some(Self { process, host, certificate, _directory: directory })
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_registry_s_own_authority_is_trusted_and_no_other() {
    let bytes = manifest(b"layer");
    let Some(server) = Tls::start(&bytes) else { return };
    let name: Reference = format!("{}/app:1", server.host).parse().unwrap();
    let fetch = |options| Client::new(options, Keychain::anonymous()).unwrap().manifest(&name);

    let error = fetch(options()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { kind: Unreachable::Tls, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("--registry-certificate"), "{:?}", error.hint());

    let certificates = vec![(server.host.clone(), server.certificate.clone())];
    assert_eq!(fetch(Options { certificates, ..options() }).unwrap().bytes, bytes);
    let skip = vec![server.host.clone()];
    let skip = Options { skip_tls_verify_registries: skip, ..options() };
    assert_eq!(fetch(skip).unwrap().bytes, bytes);
}

#[test]
fn a_machine_without_certificate_authorities_can_use_its_registry_s() {
    let again = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_registry_s_own_authority_is_trusted_and_no_other"])
        .env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", "/nonexistent")
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stdout));
}

#[test]
fn an_unusable_certificate_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    for prepare in [None, Some("no certificate")] {
        if let Some(text) = prepare {
            std::fs::write(&path, text).unwrap();
        }
        let certificates = vec![("r.example".to_owned(), path.clone())];
        let options = Options { certificates, ..options() };
        let error = Client::new(options, Keychain::anonymous()).unwrap_err();
        assert!(error.to_string().contains("ca.pem of registry r.example"), "{error}");
    }
}

// Debian's registry

fn free_address() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().to_string()
}

/// Until somebody listens; a connection that is refused comes back at once.
fn wait_for(host: &str) {
    for _ in 0..4000 {
        if std::net::TcpStream::connect(host).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("nobody listens at {host}");
}

/// Debian's `docker-registry` on a free port; ended when dropped.
struct Debian {
    process: std::process::Child,
    host: String,
    _directory: tempfile::TempDir,
}

impl Debian {
    fn start() -> Option<Self> {
        let program = std::path::Path::new("/usr/bin/docker-registry");
        if !program.exists() {
            eprintln!("SKIPPED: Debian's package docker-registry is not installed");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let host = free_address();
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"{host}\"}}\n",
            directory.path().join("blobs").display()
        );
        std::fs::write(&config, text).unwrap();
        let process = std::process::Command::new(program)
            .arg("serve")
            .arg(&config)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_for(&host);
        Some(Self { process, host, _directory: directory })
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn debian_s_registry_takes_and_gives_an_image() {
    let Some(registry) = Debian::start() else { return };
    let client = anonymous();
    let name: Reference = format!("{}/team/app:1", registry.host).parse().unwrap();
    round_trip(&client, &name);
    let missing: Reference = format!("{}/team/app:2", registry.host).parse().unwrap();
    assert!(client.resolve(&missing).unwrap_err().is_not_found());
}
