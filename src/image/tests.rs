use std::io::Write;

use super::*;
use crate::oci::config::DEFAULT_PATH;
use crate::oci::config::Empty;
use crate::oci::config::HealthConfig;

fn platform() -> Platform {
    Platform {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        os_version: None,
        variant: None,
    }
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(tar).expect("memory");
    encoder.finish().expect("memory")
}

fn layer(tar: &[u8], seconds: i64) -> LayerRow {
    let blob = gzip(tar);
    LayerRow {
        descriptor: Descriptor::new(
            media_type::OCI_LAYER_GZIP,
            Digest::of(&blob),
            blob.len() as u64,
        ),
        diff_id: DiffId::of(tar),
        created: Timestamp { seconds, nanoseconds: 500_000_000 },
    }
}

fn row(created_by: &str, layer: Option<LayerRow>) -> Row {
    Row { created_by: created_by.to_owned(), layer }
}

struct Case {
    config: ContainerConfig,
    rows: Vec<Row>,
    platform: Platform,
    annotations: BTreeMap<String, String>,
}

impl Case {
    fn new(rows: Vec<Row>) -> Self {
        Self {
            config: ContainerConfig::default(),
            rows,
            platform: platform(),
            annotations: BTreeMap::new(),
        }
    }

    fn input(&self) -> Assemble<'_> {
        Assemble {
            base: None,
            config: &self.config,
            author: None,
            platform: &self.platform,
            rows: &self.rows,
            labels: &[],
            annotations: &self.annotations,
            format: None,
            epoch: None,
        }
    }
}

fn base() -> (ImageConfig, Vec<Descriptor>) {
    let lower = layer(b"base", 0);
    let mut descriptor = lower.descriptor;
    descriptor.media_type = media_type::DOCKER_LAYER_GZIP.to_owned();
    let history = |time: &str, by: &str, empty_layer| History {
        created: Some(time.to_owned()),
        created_by: Some(by.to_owned()),
        empty_layer,
        ..History::default()
    };
    let config = ImageConfig {
        created: Some("2020-01-01T00:00:00Z".to_owned()),
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        rootfs: RootFs { diff_ids: vec![lower.diff_id], ..RootFs::default() },
        history: vec![
            history("2019-12-31T00:00:00Z", "ADD file", false),
            history("2020-01-01T00:00:00Z", "CMD", true),
        ],
        ..ImageConfig::default()
    };
    (config, vec![descriptor])
}

fn times(image: &ImageConfig) -> Vec<&str> {
    image.history.iter().map(|row| row.created.as_deref().unwrap_or("none")).collect()
}

#[test]
fn a_config_is_written_byte_for_byte_as_go_writes_it() {
    let mut case = Case::new(vec![
        row("RUN /bin/sh -c a && b > c # buildkit", Some(layer(b"one", 1_700_000_000))),
        row("CMD [\"x\"]", None),
    ]);
    case.config = ContainerConfig {
        user: "1000".to_owned(),
        exposed_ports: BTreeMap::from([("80/tcp".to_owned(), Empty {})]),
        env: vec!["PATH=/bin".to_owned(), "A=<b>".to_owned()],
        entrypoint: Some(Vec::new()),
        cmd: Some(vec!["x".to_owned()]),
        healthcheck: Some(HealthConfig {
            test: vec!["NONE".to_owned()],
            interval: 5,
            ..HealthConfig::default()
        }),
        args_escaped: true,
        volumes: BTreeMap::from([("/v".to_owned(), Empty {})]),
        working_dir: "/w".to_owned(),
        on_build: vec!["RUN true".to_owned()],
        labels: BTreeMap::from([("b".to_owned(), "1".to_owned())]),
        stop_signal: "SIGINT".to_owned(),
        shell: vec!["/bin/bash".to_owned(), "-c".to_owned()],
    };
    let labels = [("a".to_owned(), "&".to_owned()), ("b".to_owned(), "2".to_owned())];
    let input = Assemble { labels: &labels, author: Some("me"), ..case.input() };
    let image = assemble(&input).expect("valid");
    let expected = concat!(
        r#"{"created":"2023-11-14T22:13:20.5Z","author":"me","architecture":"amd64","os":"linux","#,
        r#""config":{"User":"1000","ExposedPorts":{"80/tcp":{}},"Env":["PATH=/bin","A=\u003cb\u003e"],"#,
        r#""Cmd":["x"],"Healthcheck":{"Test":["NONE"],"Interval":5},"ArgsEscaped":true,"#,
        r#""Volumes":{"/v":{}},"WorkingDir":"/w","OnBuild":["RUN true"],"#,
        r#""Labels":{"a":"\u0026","b":"2"},"StopSignal":"SIGINT","Shell":["/bin/bash","-c"]},"#,
        r#""rootfs":{"type":"layers","diff_ids":["#,
        r#""sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"]},"#,
        r#""history":[{"created":"2023-11-14T22:13:20.5Z","#,
        r#""created_by":"RUN /bin/sh -c a \u0026\u0026 b \u003e c # buildkit","#,
        r#""comment":"buildkit.dockerfile.v0"},"#,
        r#"{"created":"2023-11-14T22:13:20.5Z","created_by":"CMD [\"x\"]","#,
        r#""comment":"buildkit.dockerfile.v0","empty_layer":true}]}"#,
    );
    assert_eq!(String::from_utf8(image.config_json).as_deref(), Ok(expected));
}

#[test]
fn a_manifest_names_config_and_layers() {
    let mut case = Case::new(vec![row("COPY", Some(layer(b"one", 1)))]);
    case.annotations.insert("k".to_owned(), "v".to_owned());
    let image = assemble(&case.input()).expect("valid");
    let blob = gzip(b"one");
    let expected = format!(
        concat!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
            r#""config":{{"mediaType":"application/vnd.oci.image.config.v1+json","#,
            r#""digest":"{}","size":{}}},"#,
            r#""layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","#,
            r#""digest":"{}","size":{}}}],"annotations":{{"k":"v"}}}}"#,
        ),
        Digest::of(&image.config_json),
        image.config_json.len(),
        Digest::of(&blob),
        blob.len()
    );
    assert_eq!(String::from_utf8(image.manifest_json.clone()).as_deref(), Ok(expected.as_str()));
    assert_eq!(image.manifest.digest, Digest::of(&image.manifest_json));
}

#[test]
fn metadata_rows_take_the_time_of_the_layer_before_or_of_the_first_one() {
    let case = Case::new(vec![
        row("ENV A=1", None),
        row("RUN a", Some(layer(b"a", 10))),
        row("ENV B=1", None),
        row("RUN b", Some(layer(b"b", 20))),
        row("CMD", None),
    ]);
    let image = assemble(&case.input()).expect("valid").image;
    let (ten, twenty) = ("1970-01-01T00:00:10.5Z", "1970-01-01T00:00:20.5Z");
    assert_eq!(times(&image), [ten, ten, ten, twenty, twenty]);
    assert_eq!(image.created.as_deref(), Some(twenty));
    let empty: Vec<bool> = image.history.iter().map(|row| row.empty_layer).collect();
    assert_eq!(empty, [true, false, true, false, true]);
}

#[test]
fn without_a_new_layer_the_last_time_of_the_base_counts() {
    let (config, layers) = base();
    let base = BaseImage { config: &config, layers: &layers, media_type: "" };
    let case = Case::new(vec![row("ENV A=1", None)]);
    let image = assemble(&Assemble { base: Some(base), ..case.input() }).expect("valid").image;
    assert_eq!(times(&image)[2], "2020-01-01T00:00:00Z");
    assert_eq!(image.created.as_deref(), Some("2020-01-01T00:00:00Z"));

    let image = assemble(&case.input()).expect("valid").image;
    assert_eq!((times(&image), image.created.as_deref()), (vec!["none"], None));
}

#[test]
fn the_epoch_clamps_new_times_and_leaves_the_base_alone() {
    let (config, layers) = base();
    let base = BaseImage { config: &config, layers: &layers, media_type: "" };
    let rows = vec![
        row("ENV A=1", None),
        row("RUN a", Some(layer(b"a", 100))),
        row("RUN b", Some(layer(b"b", 5))),
    ];
    let case = Case::new(rows);
    let input = Assemble { base: Some(base), epoch: Some(50), ..case.input() };
    let image = assemble(&input).expect("valid").image;
    let clamped = "1970-01-01T00:00:50Z";
    assert_eq!(
        times(&image),
        [
            "2019-12-31T00:00:00Z",
            "2020-01-01T00:00:00Z",
            clamped,
            clamped,
            "1970-01-01T00:00:05.5Z"
        ]
    );
    assert_eq!(image.created.as_deref(), Some("1970-01-01T00:00:05.5Z"));

    let case = Case::new(Vec::new());
    let input = Assemble { base: Some(base), epoch: Some(50), ..case.input() };
    let image = assemble(&input).expect("valid").image;
    assert_eq!(image.created.as_deref(), Some(clamped), "the image itself is clamped");
}

#[test]
fn the_format_follows_the_base_unless_asked_for() {
    let (config, layers) = base();
    let case = Case::new(vec![row("COPY", Some(layer(b"new", 1)))]);
    let docker =
        BaseImage { config: &config, layers: &layers, media_type: media_type::DOCKER_MANIFEST };
    let oci = BaseImage { media_type: media_type::OCI_MANIFEST, ..docker };
    for (base, asked, expected) in [
        (None, None, Format::Oci),
        (Some(docker), None, Format::Docker),
        (Some(oci), None, Format::Oci),
        (Some(docker), Some(Format::Oci), Format::Oci),
        (Some(oci), Some(Format::Docker), Format::Docker),
    ] {
        let image = assemble(&Assemble { base, format: asked, ..case.input() }).expect("valid");
        assert_eq!(image.manifest.media_type, expected.manifest());
        assert_eq!(image.config.media_type, expected.config());
        for layer in &image.layers {
            assert_eq!(Format::of(&layer.media_type), expected);
        }
        if base.is_some() {
            assert_eq!(image.layers[0].digest, layers[0].digest);
            assert_eq!(image.image.rootfs.diff_ids, [DiffId::of(b"base"), DiffId::of(b"new")]);
        }
    }
}

#[test]
fn path_is_added_only_where_it_lacks() {
    let mut case = Case::new(Vec::new());
    let env = |case: &Case| assemble(&case.input()).expect("valid").image.config.env;
    let default = format!("PATH={DEFAULT_PATH}");
    assert_eq!(env(&case), [default.as_str()]);
    case.config.env = vec!["PATHS=1".to_owned()];
    assert_eq!(env(&case), ["PATHS=1", &default]);
    case.config.env = vec!["PATH=/x".to_owned()];
    assert_eq!(env(&case), ["PATH=/x"]);
}

#[test]
fn a_base_that_contradicts_itself_is_refused_or_mended() {
    let (mut config, layers) = base();
    let case = Case::new(Vec::new());
    let assembled = |config: &ImageConfig, layers: &[Descriptor]| {
        let base = BaseImage { config, layers, media_type: "" };
        assemble(&Assemble { base: Some(base), ..case.input() })
    };
    let refused = assembled(&config, &[]).expect_err("one diff ID too many");
    assert_eq!(refused, Error::BaseLayers { layers: 0, diff_ids: 1 });

    config.history.clear();
    let image = assembled(&config, &layers).expect("valid").image;
    assert_eq!(image.history.len(), 1, "a layer without a row gets one");
    assert_eq!(times(&image), ["2020-01-01T00:00:00Z"]);

    config.history = vec![History::default(), History::default()];
    let image = assembled(&config, &layers).expect("valid").image;
    assert!(!image.history[0].empty_layer && image.history[1].empty_layer);
}

#[test]
fn variant_and_os_version_of_another_platform_are_dropped() {
    let (mut config, layers) = base();
    config.variant = Some("v3".to_owned());
    let mut case = Case::new(Vec::new());
    let variant = |case: &Case| {
        let base = BaseImage { config: &config, layers: &layers, media_type: "" };
        assemble(&Assemble { base: Some(base), ..case.input() }).expect("valid").image.variant
    };
    assert_eq!(variant(&case).as_deref(), Some("v3"));
    case.platform.variant = Some("v2".to_owned());
    assert_eq!(variant(&case).as_deref(), Some("v2"));
    case.platform = Platform { architecture: "arm64".to_owned(), ..platform() };
    assert_eq!(variant(&case), None);
}

#[test]
fn unknown_keys_of_a_base_config_are_dropped() {
    let text = r#"{"created":"2020-01-01T00:00:00Z","docker_version":"1","container_config":{},
        "config":{"Hostname":"h","Image":"i","Env":null},"architecture":"amd64","os":"linux",
        "rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
    let config: ImageConfig = serde_json::from_str(text).expect("a config as Docker wrote it");
    let case = Case::new(Vec::new());
    let base = BaseImage { config: &config, layers: &[], media_type: "" };
    let image = assemble(&Assemble { base: Some(base), ..case.input() }).expect("valid");
    let json = String::from_utf8(image.config_json).expect("JSON");
    assert!(!json.contains("docker_version") && !json.contains("Hostname"), "{json}");
}

#[test]
fn times_are_printed_as_go_prints_them() {
    for (seconds, nanoseconds, expected) in [
        (0, 0, "1970-01-01T00:00:00Z"),
        (1_709_208_000, 500_000_000, "2024-02-29T12:00:00.5Z"),
        (0, 1, "1970-01-01T00:00:00.000000001Z"),
        (0, 120_000_000, "1970-01-01T00:00:00.12Z"),
        (-1, 0, "1969-12-31T23:59:59Z"),
        (-1, 750_000_000, "1969-12-31T23:59:59.75Z"),
        (i64::MIN, 0, "0000-01-01T00:00:00Z"),
    ] {
        assert_eq!(rfc3339(Timestamp { seconds, nanoseconds }), expected);
    }
    assert!(rfc3339(Timestamp::seconds(i64::MAX)).starts_with("9999-12-30T"));
}

mod validation {
    use super::*;

    fn image() -> Assembled {
        let case = Case::new(vec![
            row("RUN a", Some(layer(b"one", 1))),
            row("ENV", None),
            row("RUN b", Some(layer(b"two", 2))),
        ]);
        assemble(&case.input()).expect("valid")
    }

    fn open(descriptor: &Descriptor) -> std::io::Result<std::io::Cursor<Vec<u8>>> {
        [&b"one"[..], b"two"]
            .into_iter()
            .map(gzip)
            .find(|blob| Digest::of(blob) == descriptor.digest)
            .map(std::io::Cursor::new)
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn mismatches(image: &Assembled) -> Vec<String> {
        validate(&image.config_json, &image.manifest_json, open)
            .err()
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn what_is_assembled_is_valid() {
        assert_eq!(mismatches(&image()), [""; 0]);
    }

    #[test]
    fn every_mismatch_is_listed_at_once() {
        let mut image = image();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("JSON");
        let (one, two) = (DiffId::of(b"one").to_string(), DiffId::of(b"two").to_string());
        let config = text(&image.config_json)
            .replace(&one, "?")
            .replace(&two, &one)
            .replace('?', &two)
            .replacen("\"empty_layer\":true", "\"empty_layer\":false", 1)
            .replacen("1970-01-01T", "soon ", 1);
        image.config_json = config.into_bytes();
        let manifest = text(&image.manifest_json)
            .replacen("\"schemaVersion\":2", "\"schemaVersion\":1", 1)
            .replacen(media_type::OCI_CONFIG, media_type::DOCKER_CONFIG, 1)
            .replacen(media_type::OCI_LAYER_GZIP, media_type::DOCKER_LAYER_GZIP, 1);
        image.manifest_json = manifest.into_bytes();
        let found = mismatches(&image).join("\n");
        for part in [
            "schema version 1",
            "config has media type",
            "layer 0 has media type",
            "config has digest",
            "config has",
            "it is the diff ID of layer 1",
            "it is the diff ID of layer 0",
            "history rows with a layer: 3",
            "no RFC 3339 time",
        ] {
            assert!(found.contains(part), "{part} is missing in:\n{found}");
        }
    }

    #[test]
    fn blobs_are_read_to_their_end() {
        let image = image();
        let longer = |descriptor: &Descriptor| {
            let mut blob = open(descriptor)?.into_inner();
            blob.extend_from_slice(&gzip(b"more"));
            Ok(std::io::Cursor::new(blob))
        };
        let found = validate(&image.config_json, &image.manifest_json, longer).expect_err("longer");
        assert_eq!(found.len(), 6, "digest, size and diff ID of two layers: {found:?}");
        let missing = |_: &Descriptor| -> std::io::Result<std::io::Empty> {
            Err(std::io::ErrorKind::NotFound.into())
        };
        let found =
            validate(&image.config_json, &image.manifest_json, missing).expect_err("missing");
        assert!(matches!(
            found.as_slice(),
            [Mismatch::Read { layer: 0, .. }, Mismatch::Read { layer: 1, .. }]
        ));
    }

    #[test]
    fn texts_that_are_no_documents_are_named() {
        let found = validate(b"{", b"[]", open).expect_err("no documents");
        assert!(matches!(found.as_slice(), [Mismatch::Config(_), Mismatch::Manifest(_)]));
    }
}
