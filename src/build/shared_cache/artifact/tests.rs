use proptest::prelude::*;
use serde_json::Value;
use serde_json::json;

use super::*;

const NOW: i64 = 1_800_000_000;

fn key(byte: u8) -> Key {
    Key::from_bytes([byte; 32])
}

fn step() -> SharedStep {
    let layer = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(b"layer"), 5);
    SharedStep {
        record: StepRecord {
            diff_id: [7; 32],
            compressed: Some(Compressed {
                digest: *layer.digest.as_bytes(),
                size: 5,
                media_type: layer.media_type.clone(),
            }),
            created: NOW - 100,
            created_nanoseconds: 5,
            empty: false,
            inputs: Vec::new(),
            definition: key(1),
            content: Some(key(2)),
            hint: Some(key(3)),
            duration_ms: 9,
            stored: 0,
        },
        layer,
        setting: "gzip-members-1".to_owned(),
        inferred: Some(key(4)),
    }
}

fn read(manifest: &[u8], asked: Asked) -> Result<SharedStep, Defect> {
    Outline::read(manifest)?.step(None, &asked, NOW, None)
}

/// The artifact with its manifest and its record changed.
fn changed(in_manifest: impl Fn(&mut Value), in_record: impl Fn(&mut Value)) -> Vec<u8> {
    let artifact = encode(&step());
    let mut record: Value = serde_json::from_slice(&artifact.record).expect("JSON");
    in_record(&mut record);
    let record = serde_json::to_vec(&record).expect("JSON");
    let mut manifest: Value = serde_json::from_slice(&artifact.manifest).expect("JSON");
    manifest["config"]["data"] = json!(STANDARD.encode(&record));
    manifest["config"]["digest"] = json!(Digest::of(&record));
    manifest["config"]["size"] = json!(record.len());
    in_manifest(&mut manifest);
    serde_json::to_vec(&manifest).expect("JSON")
}

/// Changes a document.
type Change<'a> = &'a dyn Fn(&mut Value);

fn defect(in_manifest: impl Fn(&mut Value), in_record: impl Fn(&mut Value)) -> String {
    let bytes = changed(in_manifest, in_record);
    read(&bytes, Asked::Definition(key(1))).expect_err("a defect").to_string()
}

#[test]
fn a_step_survives_a_round_trip_under_each_of_its_keys() {
    let artifact = encode(&step());
    let asked = [
        Asked::Definition(key(1)),
        Asked::Content(key(2)),
        Asked::Hint(key(3)),
        Asked::Inferred(key(4)),
    ];
    for asked in asked {
        assert_eq!(read(&artifact.manifest, asked).expect("valid"), step());
    }
    assert!(matches!(read(&artifact.manifest, Asked::Definition(key(2))), Err(Defect::OtherKey)));
    let read_back: Value = serde_json::from_slice(&artifact.manifest).expect("JSON");
    assert_eq!(read_back["artifactType"], STEP_TYPE);
    assert_eq!(Digest::of(&artifact.record), artifact.config.digest);
}

#[test]
fn what_explains_misses_stays_on_the_machine() {
    let mut telling = step();
    telling.record.inputs = vec![("environment".to_owned(), "TOKEN=hunter2".to_owned())];
    assert_eq!(encode(&telling), encode(&step()));
}

#[test]
fn the_record_may_lie_beside_the_manifest() {
    let Artifact { manifest, record, .. } = encode(&step());
    let mut manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    drop(manifest["config"]["data"].take());
    let bytes = serde_json::to_vec(&manifest).expect("JSON");
    let outline = Outline::read(&bytes).expect("an outline");
    let wanted = outline.missing().expect("to be fetched").clone();
    let asked = Asked::Definition(key(1));
    let at = |fetched: Vec<u8>| {
        Outline::read(&bytes).expect("an outline").step(Some(fetched), &asked, NOW, None)
    };
    assert_eq!(wanted.digest, Digest::of(&record));
    assert_eq!(at(record.clone()).expect("valid"), step());
    assert!(matches!(at(record[1..].to_vec()), Err(Defect::Digest)));
}

#[test]
fn what_no_builder_writes_is_a_miss_with_its_reason() {
    let none = |_: &mut Value| {};
    let cases: &[(&str, Change<'_>, Change<'_>)] = &[
        ("no cached step", &|m| m["config"]["mediaType"] = json!("text/plain"), &none),
        ("no cached step", &|m| m["mediaType"] = json!(media_type::DOCKER_MANIFEST), &none),
        ("digest", &|m| m["config"]["data"] = json!("AAAA"), &none),
        ("digest", &|m| m["config"]["data"] = json!("!"), &none),
        ("digest", &|m| m["config"]["size"] = json!(3), &none),
        ("size", &|m| m["config"]["size"] = json!(u64::MAX), &none),
        ("number of layers", &|m| m["layers"] = json!([]), &none),
        ("media type", &|m| m["layers"][0]["mediaType"] = json!("text/html"), &none),
        ("layer's size", &|m| m["layers"][0]["size"] = json!(u64::MAX), &none),
        ("layer is", &|m| m["layers"][0]["digest"] = json!(Digest::of(b"other")), &none),
        ("malformed", &|m| m["layers"][0]["size"] = json!(-1), &none),
        ("version is 2", &none, &|r| r["version"] = json!(2)),
        ("another key", &none, &|r| r["definition"] = json!(key(9).to_string())),
        ("key is", &none, &|r| r["content"] = json!("../../etc")),
        ("malformed", &none, &|r| r["diffId"] = json!("sha256:0")),
        ("time", &none, &|r| r["created"] = json!(i64::MAX)),
        ("time", &none, &|r| r["created"] = json!(i64::MIN)),
        ("time", &none, &|r| r["created"] = json!(NOW + 2 * CLOCK_SKEW)),
        ("time", &none, &|r| r["createdNanoseconds"] = json!(1_000_000_000)),
        ("compression", &none, &|r| r["setting"] = json!("x".repeat(65))),
        ("compression", &none, &|r| r["setting"] = json!("\u{1b}[31m")),
        ("malformed", &none, &|r| *r = json!([])),
    ];
    for (wanted, in_manifest, in_record) in cases {
        let found = defect(in_manifest, in_record);
        assert!(found.contains(wanted), "{wanted}: {found}");
    }
}

#[test]
fn a_record_ages_by_the_time_its_step_finished() {
    let bytes = encode(&step()).manifest;
    let at = |ttl: u64| {
        let asked = Asked::Definition(key(1));
        let outline = Outline::read(&bytes).expect("an outline");
        outline.step(None, &asked, NOW, Some(Duration::from_secs(ttl)))
    };
    assert!(at(100).is_ok());
    assert!(matches!(at(99), Err(Defect::Expired)));
    assert!(at(u64::MAX).is_ok());
}

#[test]
fn a_stranger_s_urls_and_annotations_are_dropped() {
    let bytes = changed(
        |manifest| {
            manifest["layers"][0]["urls"] = json!(["http://elsewhere.invalid/x"]);
            manifest["layers"][0]["annotations"] = json!({"a": "b"});
        },
        |_| {},
    );
    assert_eq!(read(&bytes, Asked::Definition(key(1))).expect("valid"), step());
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..900, to in any::<u8>()) {
        let asked = Asked::Definition(key(1));
        let _ = read(&bytes, asked);
        let mut manifest = encode(&step()).manifest;
        if let Some(byte) = manifest.get_mut(at) {
            *byte = to;
        }
        let _ = read(&manifest, asked);
        let cut = at.min(manifest.len());
        let _ = read(&manifest[..cut], asked);
    }
}
