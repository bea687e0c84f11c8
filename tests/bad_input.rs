//! Bad input, one case at a time: the message says what was wrong and where, the
//! exit code is 1 (or a RUN's own), nothing half-made is left behind, and the same
//! build works with the same cache once the fault is gone.

#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/registry.rs"]
mod fake;
#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/host.rs"]
mod host;

use std::fs;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;
use yadokari::oci::digest::Digest;
use yadokari::oci::media_type;

use fake::Fault;
use fake::Rules;

/// A destination nothing listens at; only named, never pushed to.
const DESTINATION: &str = "127.0.0.1:1/team/app:1";

/// Exit code for whatever is no failed RUN.
const FAILURE: i32 = 1;

/// A build context, a cache and a place for results.
struct Bench {
    work: TempDir,
}

impl Bench {
    fn new() -> Self {
        let work = tempfile::tempdir().expect("a directory");
        for name in ["context", "results"] {
            fs::create_dir(work.path().join(name)).expect("a directory");
        }
        Self { work }
    }

    /// With a Dockerfile and a file `a` to copy.
    fn with(dockerfile: impl AsRef<[u8]>) -> Self {
        let bench = Self::new();
        bench.write("a", "a\n");
        bench.write("Dockerfile", dockerfile);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// Writes a file of the context.
    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path("context").join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }

    /// A build of the context that is asked for every kind of result.
    fn build(&self) -> Command {
        self.build_as(host::yadokari())
    }

    fn build_as(&self, mut command: Command) -> Command {
        command
            .env_remove("KANIKO_NO_PUSH")
            .args(["build", "--no-push", "--log-format", "text", "--destination", DESTINATION])
            .arg("--context")
            .arg(self.path("context"))
            .arg("--cache-dir")
            .arg(self.path("cache"));
        for (flag, file) in [
            ("--digest-file", "digest"),
            ("--image-name-with-digest-file", "names"),
            ("--image-name-tag-with-digest-file", "tags"),
            ("--oci-layout-path", "layout"),
            ("--tar-path", "image.tar"),
        ] {
            command.arg(flag).arg(self.path("results").join(file));
        }
        command
    }

    /// The build fails with `code`, says each of `parts`, and leaves nothing behind.
    #[track_caller]
    fn refuses(&self, command: &mut Command, code: i32, parts: &[&str]) -> String {
        let output = command.output().expect("the builder");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{command:?}\n{stderr}");
        assert_eq!(output.stdout, b"", "a failed build has no result\n{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert!(stderr.contains("error: ") && !stderr.contains("error: error: "), "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "`{part}` isn't said:\n{stderr}");
        }
        self.is_clean(&stderr);
        stderr
    }

    /// No result, no lease, nothing in flight, nothing mounted.
    #[track_caller]
    fn is_clean(&self, stderr: &str) {
        assert_eq!(entries(&self.path("results")), [""; 0], "a half-made result\n{stderr}");
        self.cache_is_clean(&self.path("cache"), stderr);
        nothing_is_mounted_below(self.work.path());
    }

    #[track_caller]
    fn cache_is_clean(&self, cache: &Path, stderr: &str) {
        assert_eq!(entries(&cache.join("tmp")), [""; 0], "left in flight\n{stderr}");
        self.no_lease_is_left(cache, stderr);
    }

    /// As [`is_clean`](Self::is_clean) after a build that was ended between two
    /// instructions of its own: a small file that it was writing may be there for an
    /// hour (`cache/src/lease.rs`), nothing else.
    #[track_caller]
    fn is_clean_after_a_kill(&self, stderr: &str) {
        let cache = self.path("cache");
        assert_eq!(entries(&self.path("results")), [""; 0], "a half-made result\n{stderr}");
        let in_flight = entries(&cache.join("tmp")).into_iter();
        let unexpected: Vec<_> = in_flight.filter(|name| !name.starts_with("new-")).collect();
        assert_eq!(unexpected, [""; 0], "left in flight\n{stderr}");
        self.no_lease_is_left(&cache, stderr);
        nothing_is_mounted_below(self.work.path());
    }

    #[track_caller]
    fn no_lease_is_left(&self, cache: &Path, stderr: &str) {
        let leases: Vec<String> =
            entries(&cache.join("leases")).into_iter().filter(|name| name != "collect").collect();
        assert_eq!(leases, [""; 0], "a lease is left\n{stderr}");
    }

    /// The build works and makes everything it was asked for.
    #[track_caller]
    fn accepts(&self, command: &mut Command) -> String {
        let output = host::succeed(command);
        for name in ["digest", "names", "tags", "layout/index.json", "image.tar"] {
            assert!(self.path("results").join(name).is_file(), "{name} is missing");
        }
        let results = self.path("results");
        fs::remove_dir_all(&results).expect("the results");
        fs::create_dir(&results).expect("a directory");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// The Dockerfile fails at `place` (`LINE:COLUMN`), `mended` works.
    #[track_caller]
    fn refuses_dockerfile(&self, text: &[u8], parts: &[&str], mended: &str) {
        self.write("Dockerfile", text);
        self.refuses(&mut self.build(), FAILURE, parts);
        self.write("Dockerfile", mended);
        self.accepts(&mut self.build());
    }
}

/// Names in a directory; none if it isn't there.
fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect()
}

/// Looks into the mount namespace of every process: a mount that outlives the build
/// lives in one that does too.
#[track_caller]
fn nothing_is_mounted_below(directory: &Path) {
    let directory = directory.to_str().expect("a plain path");
    for process in entries(Path::new("/proc")) {
        if process.bytes().all(|byte| byte.is_ascii_digit()) {
            let path = Path::new("/proc").join(process).join("mountinfo");
            let mounts = fs::read_to_string(&path).unwrap_or_default();
            assert!(!mounts.contains(directory), "{}: something is left mounted", path.display());
        }
    }
}

const GOOD: &str = "FROM scratch\nCOPY a /\n";

// Dockerfiles

#[test]
fn what_is_no_dockerfile_is_refused() {
    let bench = Bench::with("");
    bench.refuses_dockerfile(b"", &["Dockerfile", "FROM"], GOOD);
    bench.refuses_dockerfile(b"# nothing\n\n   # here\n", &["Dockerfile", "FROM"], GOOD);
    bench.refuses_dockerfile(
        b"\x7fELF\x02\x01\x01\0\0\0\xff\xfe\0",
        &["Dockerfile:1:", "UTF-8"],
        GOOD,
    );
    bench.refuses_dockerfile(b"FROM scratch\nCOPY \0 /\n", &["Dockerfile:2:6"], GOOD);
}

#[test]
fn an_unknown_instruction_is_named_with_the_nearest_one() {
    let bench = Bench::with("");
    bench.refuses_dockerfile(
        b"FROM scratch\n\nCOPPY a /\n",
        &["Dockerfile:3:1", "COPPY", "did you mean COPY?"],
        GOOD,
    );
}

#[test]
fn stages_that_need_each_other_are_refused() {
    let bench = Bench::with("");
    let mended = "FROM scratch AS one\nCOPY a /x\nFROM scratch AS two\nCOPY --from=one /x /y\n";
    bench.refuses_dockerfile(
        b"FROM scratch AS one\nCOPY --from=two /x /y\nFROM scratch AS two\nCOPY --from=one /y /x\n",
        &["Dockerfile:2:", "two"],
        mended,
    );
    bench.refuses_dockerfile(
        b"FROM scratch AS one\nCOPY --from=one /x /y\n",
        &["Dockerfile:2:", "one"],
        mended,
    );
}

#[test]
fn a_misspelt_stage_is_looked_for_as_an_image_and_the_stage_is_suggested() {
    let registry = fake::Registry::start(Rules::default());
    let bench =
        Bench::with("FROM scratch AS build\nCOPY a /x\nFROM scratch\nCOPY --from=biuld /x /y\n");
    let mirrored = || {
        let mut command = bench.build();
        command.args(["--registry-mirror", registry.host(), "--skip-default-registry-fallback"]);
        command.args(["--insecure-registry", registry.host()]);
        command
    };
    bench.refuses(
        &mut mirrored(),
        FAILURE,
        &["Dockerfile:4:", "biuld", "404", "did you mean the stage `build`?"],
    );
    bench.write(
        "Dockerfile",
        "FROM scratch AS build\nCOPY a /x\nFROM scratch\nCOPY --from=build /x /y\n",
    );
    bench.accepts(&mut mirrored());
}

#[test]
fn a_missing_source_is_named_and_an_ignored_one_said_to_be() {
    let bench = Bench::with("FROM scratch\nCOPY a /\nCOPY no/such /\n");
    bench.refuses(&mut bench.build(), FAILURE, &["Dockerfile:3:", "no/such", "not found"]);
    bench.write("Dockerfile", "FROM scratch\nCOPY a /\nCOPY b /\n");
    bench.write("b", "b\n");
    bench.write(".dockerignore", "b\n");
    bench.refuses(
        &mut bench.build(),
        FAILURE,
        &["Dockerfile:3:", "/b: not found in the build context", "an ignore rule excludes it"],
    );
    fs::remove_file(bench.path("context/.dockerignore")).expect("the rules");
    let log = bench.accepts(&mut bench.build());
    assert!(log.contains("CACHED"), "what the failed builds finished is kept:\n{log}");
}

#[test]
fn bad_ignore_rules_are_named() {
    let bench = Bench::with(GOOD);
    bench.write(".dockerignore", "x\n[\n");
    bench.refuses(&mut bench.build(), FAILURE, &[".dockerignore", "["]);
    bench.write(".dockerignore", "x\n");
    bench.accepts(&mut bench.build());
}

// Contexts

#[test]
fn a_missing_dockerfile_or_context_is_named() {
    let bench = Bench::with(GOOD);
    bench.refuses(
        bench.build().args(["--dockerfile", "Dokcerfile"]),
        FAILURE,
        &["there is no Dockerfile at", "Dokcerfile"],
    );
    let nowhere = bench.path("nowhere");
    bench.refuses(
        bench.build().arg("--context").arg(&nowhere),
        FAILURE,
        &["cannot open the build context", nowhere.to_str().expect("plain")],
    );
    bench.refuses(
        bench.build().arg("--context-sub-path=sub"),
        FAILURE,
        &["cannot open the build context", "sub"],
    );
    bench.refuses(
        bench.build().arg("--context=gs://bucket/x"),
        FAILURE,
        &["gs://", "object store", "tar://stdin"],
    );
    bench.accepts(&mut bench.build());
}

/// Bytes that can't be compressed: xorshift64.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

/// Archive of the context, compressed.
fn archive(bench: &Bench) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", bench.path("context")).expect("a tar");
    let bytes = tar.into_inner().expect("a tar");
    gzip(&bytes)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("memory");
    out.finish().expect("memory")
}

#[test]
fn a_damaged_archive_is_refused_as_a_context() {
    let bench = Bench::with(GOOD);
    bench.write("noise", noise(100_000));
    let whole = archive(&bench);
    let file = bench.path("context.tar.gz");
    let context = format!("tar://{}", file.display());
    for length in [whole.len() / 2, whole.len() - 4, 5] {
        fs::write(&file, &whole[..length]).expect("an archive");
        bench.refuses(
            bench.build().arg("--context").arg(&context),
            FAILURE,
            &["build context", "context.tar.gz"],
        );
    }
    fs::write(&file, b"this is no archive at all").expect("an archive");
    bench.refuses(bench.build().arg("--context").arg(&context), FAILURE, &["context.tar.gz"]);
    fs::write(&file, &whole).expect("an archive");
    bench.accepts(bench.build().arg("--context").arg(&context));
}

#[test]
fn nothing_on_standard_input_is_refused_as_a_context() {
    let bench = Bench::with(GOOD);
    let from_stdin = |bytes: &[u8]| {
        let file = bench.path("stdin");
        fs::write(&file, bytes).expect("a file");
        let mut command = bench.build();
        command.args(["--context", "tar://stdin"]).stdin(File::open(&file).expect("a file"));
        command
    };
    bench.refuses(&mut from_stdin(b""), FAILURE, &["build context tar://stdin", "no files"]);
    bench.refuses(
        bench.build().args(["--context", "-"]).stdin(Stdio::null()),
        FAILURE,
        &["nothing is piped"],
    );
    bench.accepts(&mut from_stdin(&archive(&bench)));
}

#[test]
fn an_unreadable_file_of_the_context_is_named() {
    if !host::require_host(&["setpriv"]) {
        return;
    }
    let bench = Bench::with(GOOD);
    // Somebody else's cache and results, in a place that he may enter.
    host::set_mode(bench.work.path(), 0o755);
    host::set_mode(&bench.path("results"), 0o777);
    let cache = bench.path("cache");
    fs::create_dir(&cache).expect("a directory");
    host::set_mode(&cache, 0o777);
    let program = bench.path("yadokari");
    fs::copy(env!("CARGO_BIN_EXE_yadokari"), &program).expect("the builder");
    host::set_mode(&program, 0o755);
    let as_nobody = || {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .env("HOME", bench.work.path());
        bench.build_as(command)
    };
    host::set_mode(&bench.path("context/a"), 0o000);
    bench.refuses(
        &mut as_nobody(),
        FAILURE,
        &["Dockerfile:2:", "cannot read the build context", "context/a", "Permission denied"],
    );
    host::set_mode(&bench.path("context/a"), 0o644);
    let output = host::succeed(&mut as_nobody());
    assert!(bench.path("results/layout/index.json").is_file(), "{output:?}");
}

// Flags

#[test]
fn a_bad_value_of_a_flag_is_named_with_the_flag() {
    let bench = Bench::with(GOOD);
    for (words, parts) in [
        (&["--destination", "UPPER/case:a:b"][..], &["--destination UPPER/case:a:b"][..]),
        (&["--destination="], &["--destination"]),
        (&["--build-arg", "=value"], &["--build-arg =value", "name is missing"]),
        (&["--label", "novalue"], &["--label novalue", "KEY=VALUE"]),
        (&["--secret", "id=a,color=red"], &["--secret", "`color` is unknown", "env"]),
        (&["--secret", "src=/x"], &["--secret", "id is missing"]),
        (&["--custom-platform", "linux/"], &["--custom-platform linux/"]),
        (&["--custom-platform", "linux/amd64/v1/x"], &["--custom-platform"]),
        (&["--cache=maybe"], &["--cache", "`maybe` is neither true nor false"]),
        (&["--compression-level=40"], &["--compression-level 40", "12"]),
        (&["--compression=zstd"], &["--tar-path", "zstd"]),
        (&["--image-format=oci"], &["--tar-path", "--image-format=oci"]),
        (&["--snapshot-mode=fast"], &["--snapshot-mode", "fast", "log"]),
        (&["--registry-map=nomap"], &["--registry-map nomap", "ORIGIN=NEW"]),
        (&["--target", "nostage"], &["there is no target stage `nostage`"]),
        (&["--cache-repo", "oci:"], &["--cache-repo oci:", "a directory is expected"]),
        (&["--cache-repo", "No/Such"], &["--cache-repo No/Such", "is not an image reference"]),
        (&["--annotation", "novalue"], &["--annotation novalue", "KEY=VALUE"]),
        (&["--destinatoin=x"], &["--destinatoin", "--destination"]),
        (&["surplus"], &["surplus"]),
    ] {
        bench.refuses(bench.build().args(words), FAILURE, parts);
    }
    bench.refuses(
        bench.build().env("SOURCE_DATE_EPOCH", "yesterday"),
        FAILURE,
        &["SOURCE_DATE_EPOCH", "yesterday", "seconds"],
    );
    bench.accepts(&mut bench.build());
}

#[test]
fn a_build_without_a_destination_says_what_to_give() {
    let bench = Bench::with(GOOD);
    let mut command = host::yadokari();
    command.env_remove("KANIKO_NO_PUSH").args(["build", "--context"]).arg(bench.path("context"));
    bench.refuses(&mut command, FAILURE, &["--destination", "--no-push"]);
}

// Base images

/// An image of one layer whose parts may disagree.
struct Parts {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Parts {
    /// Of an uncompressed tar. `diff_id` other than the tar's makes them disagree.
    fn of(tar: &[u8], diff_id: Option<String>) -> Self {
        let layer = gzip(tar);
        let diff_id = diff_id.unwrap_or_else(|| Digest::of(tar).to_string());
        let config = serde_json::to_vec(&json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            "history": [{ "created_by": "made by hand" }],
        }))
        .expect("JSON");
        let describe = |kind: &str, bytes: &[u8]| {
            json!({
                "mediaType": kind,
                "digest": Digest::of(bytes).to_string(),
                "size": bytes.len(),
            })
        };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": [describe(media_type::OCI_LAYER_GZIP, &layer)],
        }))
        .expect("JSON");
        Self { layer, config, manifest }
    }

    /// Writes them as an OCI layout, in place of what is there.
    fn write(&self, directory: &Path) {
        let blobs = directory.join("blobs/sha256");
        let _ = fs::remove_dir_all(directory);
        fs::create_dir_all(&blobs).expect("a directory");
        for bytes in [&self.layer, &self.config, &self.manifest] {
            fs::write(blobs.join(Digest::of(bytes).hex()), bytes).expect("a blob");
        }
        fs::write(directory.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("a layout");
        let index: Value = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": media_type::OCI_MANIFEST,
                "digest": Digest::of(&self.manifest).to_string(),
                "size": self.manifest.len(),
            }],
        });
        fs::write(directory.join("index.json"), index.to_string()).expect("an index");
    }

    /// Puts them into a registry as `app:1`.
    fn serve(&self, registry: &fake::Registry) {
        registry.put_blob("app", &self.layer);
        registry.put_blob("app", &self.config);
        registry.put_manifest("app", "1", media_type::OCI_MANIFEST, &self.manifest);
    }
}

/// One entry of a tar, its name exactly as given.
fn entry(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, target: &str) {
    let content: &[u8] = if kind == tar::EntryType::Regular { b"payload\n" } else { b"" };
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(content.len() as u64);
    let gnu = header.as_gnu_mut().expect("a GNU header");
    gnu.name[..name.len()].copy_from_slice(name.as_bytes());
    gnu.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    tar.append(&header, content).expect("an entry");
}

fn layer(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, target) in entries {
        entry(&mut tar, *kind, name, target);
    }
    tar.into_inner().expect("a tar")
}

fn good_layer() -> Vec<u8> {
    layer(&[(tar::EntryType::Directory, "etc/", ""), (tar::EntryType::Regular, "etc/file", "")])
}

#[test]
fn a_layer_that_reaches_outside_its_root_is_refused() {
    use tar::EntryType::Directory;
    use tar::EntryType::Link;
    use tar::EntryType::Regular;
    use tar::EntryType::Symlink;
    let bench = Bench::new();
    let image = bench.path("image");
    let dockerfile = format!(
        "FROM oci-layout://{0} AS base\nFROM scratch\nCOPY --from=base / /\n",
        image.display()
    );
    bench.write("Dockerfile", dockerfile);
    let outside = bench.path("outside");
    let outside = outside.to_str().expect("plain");
    for (entries, parts) in [
        (&[(Regular, "../outside", "")][..], &["`../outside`", "leaves the root"][..]),
        (&[(Regular, "etc/../../outside", "")], &["`etc/../../outside`", "leaves the root"]),
        (&[(Symlink, "way", outside), (Regular, "way/in", "")], &["`way/in`", "symbolic link"]),
        (
            &[(Symlink, "way", ".."), (Directory, "way/in/", ""), (Regular, "way/in/x", "")],
            &["`way/in/`", "symbolic link"],
        ),
        (&[(Link, "stolen", "../../etc/passwd")], &["`stolen`", "leaves the root"]),
        (&[(Regular, "file", ""), (Regular, "file/x", "")], &["`file/x`", "not a directory"]),
        (&[(Regular, ".wh...", "")], &["`.wh...`"]),
    ] {
        Parts::of(&layer(entries), None).write(&image);
        let stderr = bench.refuses(&mut bench.build(), FAILURE, parts);
        assert!(stderr.contains("Dockerfile:"), "{stderr}");
        assert!(stderr.contains("sha256:"), "the layer is named:\n{stderr}");
        assert!(!Path::new(outside).exists());
    }
    Parts::of(&good_layer(), None).write(&image);
    bench.accepts(&mut bench.build());
}

#[test]
fn an_absolute_name_in_a_layer_stays_in_its_root() {
    let bench = Bench::new();
    let (image, outside) = (bench.path("image"), bench.path("outside"));
    let name = outside.to_str().expect("plain");
    Parts::of(&layer(&[(tar::EntryType::Regular, name, "")]), None).write(&image);
    bench.write(
        "Dockerfile",
        format!(
            "FROM oci-layout://{} AS base\nFROM scratch\nCOPY --from=base {name} /found\n",
            image.display()
        ),
    );
    bench.accepts(&mut bench.build());
    assert!(!outside.exists());
}

#[test]
fn a_layer_that_is_not_what_the_config_says_is_refused() {
    let bench = Bench::new();
    let image = bench.path("image");
    bench.write(
        "Dockerfile",
        format!(
            "FROM oci-layout://{} AS base\nFROM scratch\nCOPY --from=base /etc /\n",
            image.display()
        ),
    );
    let wrong = Digest::of(b"something else").to_string();
    Parts::of(&good_layer(), Some(wrong.clone())).write(&image);
    bench.refuses(&mut bench.build(), FAILURE, &["Dockerfile:3:", "should have diff ID", &wrong]);
    let whole = good_layer();
    Parts::of(&whole[..700], None).write(&image);
    bench.refuses(&mut bench.build(), FAILURE, &["Dockerfile:3:", "truncated"]);
    let mut parts = Parts::of(&whole, None);
    parts.write(&image);
    let blob = image.join("blobs/sha256").join(Digest::of(&parts.layer).hex());
    for length in [parts.layer.len() - 9, 12, 0] {
        fs::write(&blob, &parts.layer[..length]).expect("a blob");
        bench.refuses(&mut bench.build(), FAILURE, &["Dockerfile:3:", "sha256:"]);
    }
    parts.config = b"{".to_vec();
    parts.write(&image);
    bench.refuses(&mut bench.build(), FAILURE, &["Dockerfile:1:"]);
    Parts::of(&whole, None).write(&image);
    bench.accepts(&mut bench.build());
}

#[test]
fn an_image_that_is_not_there_is_named() {
    let registry = fake::Registry::start(Rules::default());
    Parts::of(&good_layer(), None).serve(&registry);
    let bench = Bench::new();
    bench.write("a", "a\n");
    let from = |name: &str| format!("FROM {}/{name}\nCOPY a /\n", registry.host());
    bench.write("Dockerfile", from("app:2"));
    bench.refuses(&mut bench.build(), FAILURE, &["Dockerfile:1:", "app:2", registry.host(), "404"]);
    bench.write("Dockerfile", from("App:1"));
    bench.refuses(&mut bench.build(), FAILURE, &["Dockerfile:1:", "App:1"]);
    bench.write("Dockerfile", "FROM oci-layout:///no/such/layout\n");
    bench.refuses(&mut bench.build(), FAILURE, &["Dockerfile:1:", "/no/such/layout"]);
    bench.write("Dockerfile", from("app:1"));
    bench.accepts(&mut bench.build());
}

#[test]
fn a_registry_that_does_not_answer_is_named() {
    let bench = Bench::with("FROM 127.0.0.1:1/app:1\nCOPY a /\n");
    bench.refuses(&mut bench.build(), FAILURE, &["Dockerfile:1:", "127.0.0.1:1", "cannot connect"]);
}

/// Each try of a request that may be repeated waits longer, so the cases run side
/// by side.
#[test]
fn what_a_registry_sends_has_to_be_what_was_asked_for() {
    let changed = "changed or cut the content";
    std::thread::scope(|scope| {
        for (part, fault, hint) in [
            ("/manifests/", Fault::Corrupt, changed),
            ("/blobs/", Fault::Corrupt, changed),
            ("/manifests/", Fault::Truncate(20), "closed the connection"),
            ("/blobs/", Fault::Truncate(20), "closed the connection"),
            ("/blobs/", Fault::Status(500, Vec::new(), String::new()), "try again later"),
        ] {
            scope.spawn(move || pull_through(part, &fault, hint));
        }
    });
}

/// Pulls an image while every GET of `part` goes wrong, then again.
fn pull_through(part: &'static str, fault: &Fault, hint: &str) {
    let registry = fake::Registry::start(Rules::default());
    let parts = Parts::of(&good_layer(), None);
    parts.serve(&registry);
    let layer = Digest::of(&parts.layer).to_string();
    let spoil = |part: &'static str| {
        for _ in 0..50 {
            registry.fault("GET", part, fault.clone());
        }
    };
    let bench = || {
        let bench = Bench::new();
        let dockerfile = format!(
            "FROM {}/app:1 AS base\nFROM scratch\nCOPY --from=base /etc /\n",
            registry.host()
        );
        bench.write("Dockerfile", dockerfile);
        bench
    };
    let whole = bench();
    spoil(part);
    whole.refuses(
        &mut whole.build(),
        FAILURE,
        &["Dockerfile:1:", "app@sha256:", registry.host(), "hint: ", hint],
    );
    registry.mend();
    whole.accepts(&mut whole.build());
    if part == "/blobs/" {
        // The config arrives, the layer does not.
        let only_layer = bench();
        spoil(layer.clone().leak());
        only_layer.refuses(
            &mut only_layer.build(),
            FAILURE,
            &["Dockerfile:3:", &layer, registry.host(), "hint: ", hint],
        );
        registry.mend();
        only_layer.accepts(&mut only_layer.build());
    }
}

#[test]
fn a_push_that_is_refused_leaves_no_digest_and_is_made_good() {
    let refused = || {
        Fault::Status(
            403,
            vec![("Content-Type", "application/json".to_owned())],
            r#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#.to_owned(),
        )
    };
    let registry = fake::Registry::start(Rules::default());
    let bench = Bench::with(GOOD);
    let push = || {
        let mut command = host::yadokari();
        command
            .env_remove("KANIKO_NO_PUSH")
            .args(["build", "--log-format", "text", "--context"])
            .arg(bench.path("context"))
            .arg("--cache-dir")
            .arg(bench.path("cache"))
            .arg("--digest-file")
            .arg(bench.path("results/digest"))
            .args(["--destination", &format!("{}/team/app:1", registry.host())]);
        command
    };
    // The permission, a blob, the manifest.
    for (method, part) in [("POST", "/blobs/uploads"), ("PUT", "/blobs/"), ("PUT", "/manifests/")] {
        for _ in 0..50 {
            registry.fault(method, part, refused());
        }
        let stderr = bench.refuses(
            &mut push(),
            FAILURE,
            &["team/app", registry.host(), "403", "DENIED: not yours", "hint: "],
        );
        assert!(registry.manifest("team/app", "1").is_none(), "{stderr}");
        registry.mend();
    }
    host::succeed(&mut push());
    let digest = fs::read_to_string(bench.path("results/digest")).expect("a digest");
    let (_, manifest) = registry.manifest("team/app", "1").expect("a manifest");
    assert_eq!(digest, Digest::of(&manifest).to_string());
}

// The disk

/// A small filesystem; unmounted when dropped.
struct Disk {
    at: TempDir,
}

impl Disk {
    fn of(size: &str) -> Self {
        let at = tempfile::tempdir().expect("a directory");
        host::succeed(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
                .arg(at.path()),
        );
        Self { at }
    }

    fn grow(&self, size: &str) {
        host::succeed(
            Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(self.at.path()),
        );
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.at.path()).status();
    }
}

#[test]
fn a_full_disk_is_named_and_costs_nothing_once_there_is_room() {
    if !host::require_host(&["mount", "umount"]) {
        return;
    }
    let bench = Bench::with("FROM scratch\nCOPY a /\nCOPY noise /\n");
    bench.write("noise", noise(6 << 20));
    for size in ["4m", "1m", "64k", "8k"] {
        let disk = Disk::of(size);
        let cache = disk.at.path().join("cache");
        let mut command = bench.build();
        command.arg("--cache-dir").arg(&cache);
        let stderr = bench.refuses(&mut command, FAILURE, &["no space left"]);
        assert!(stderr.contains(cache.to_str().expect("plain")), "{size}: {stderr}");
        // The layer is written behind the build: it is the culprit's line all the same.
        assert!(!size.ends_with('m') || stderr.contains("Dockerfile:3:1"), "{size}: {stderr}");
        bench.cache_is_clean(&cache, &stderr);
        disk.grow("100m");
        bench.accepts(&mut command);
    }
    // The results have no room.
    let disk = Disk::of("1m");
    let mut command = bench.build();
    command.arg("--oci-layout-path").arg(disk.at.path().join("layout"));
    let layout = disk.at.path().join("layout");
    bench.refuses(
        &mut command,
        FAILURE,
        &["No space left on device", layout.to_str().expect("plain")],
    );
    assert_eq!(entries(&layout), ["blobs"], "an index of what isn't there");
    let mut command = bench.build();
    command.arg("--tar-path").arg(disk.at.path().join("image.tar"));
    fs::remove_dir_all(&layout).expect("half a layout");
    let output = command.output().expect("the builder");
    assert_eq!(output.status.code(), Some(FAILURE));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("image.tar") && stderr.contains("No space left"), "{stderr}");
    assert!(!bench.path("results/digest").exists(), "the digest comes last");
    assert_eq!(entries(disk.at.path()), [""; 0], "half an archive");
    disk.grow("100m");
    host::succeed(&mut command);
}

// RUN

/// A root with busybox, as an OCI layout.
fn busybox(bench: &Bench) -> PathBuf {
    let layout = bench.path("busybox-layout");
    let context = host::busybox_context(bench.work.path());
    host::succeed(
        host::yadokari()
            .args(["build", "--no-push", "--context"])
            .arg(context)
            .arg("--cache-dir")
            .arg(bench.path("cache"))
            .arg("--oci-layout-path")
            .arg(&layout),
    );
    layout
}

#[test]
fn a_failed_run_gives_its_code_and_its_last_lines() {
    if !host::require_host(&[]) {
        return;
    }
    let bench = Bench::with("");
    let base = busybox(&bench);
    let base = base.display();
    for (run, code, parts) in [
        (
            "RUN echo one; echo two >&2; exit 7",
            7,
            &["exit code: 7", "last lines of the failed step", "  one\n", "  two\n"][..],
        ),
        ("RUN echo dying; kill -9 $$", 137, &["signal", "9", "  dying\n"]),
        ("RUN [\"/bin/no-such-program\", \"x\"]", 127, &["/bin/no-such-program"]),
        ("RUN no-such-program", 127, &["exit code: 127", "no-such-program: not found"]),
        ("RUN [\"/etc/passwd\"]", 126, &["/etc/passwd", "ermission denied"]),
        ("USER nobody-at-all\nRUN true", 1, &["Dockerfile:4:", "nobody-at-all"]),
        (
            "RUN --mount=type=secret,id=token,required=true cat /run/secrets/token",
            1,
            &["Dockerfile:3:", "token", "--secret"],
        ),
        ("RUN --mount=type=bind,source=nothing,target=/x true", 1, &["Dockerfile:3:", "nothing"]),
        ("RUN --mount=type=bnd true", 1, &["Dockerfile:3:", "did you mean `bind`?"]),
    ] {
        bench.write(
            "Dockerfile",
            format!("FROM oci-layout://{base}\nRUN echo kept > /kept\n{run}\n"),
        );
        let stderr = bench.refuses(&mut bench.build(), code, parts);
        assert!(stderr.contains("Dockerfile:"), "{stderr}");
    }
    bench.write(
        "Dockerfile",
        format!(
            "FROM oci-layout://{base}\nRUN --mount=type=secret,id=token cat /run/secrets/token\n"
        ),
    );
    bench.refuses(
        bench.build().args(["--secret", "id=token,src=/no/such/secret"]),
        FAILURE,
        &["Dockerfile:2:", "secret `token`", "/no/such/secret"],
    );
    bench.refuses(
        bench.build().args(["--secret", "id=token,env=NO_SUCH_VARIABLE"]),
        FAILURE,
        &["Dockerfile:2:", "secret `token`", "NO_SUCH_VARIABLE is not set"],
    );
    bench.write(
        "Dockerfile",
        format!("FROM oci-layout://{base}\nRUN echo kept > /kept\nRUN exit 0\n"),
    );
    let log = bench.accepts(&mut bench.build());
    assert!(log.contains("CACHED"), "the step before the failed one is kept:\n{log}");
}

/// Whether a process runs `sleep SECONDS`.
fn sleeps(seconds: &str) -> bool {
    entries(Path::new("/proc")).iter().any(|process| {
        let line = fs::read(Path::new("/proc").join(process).join("cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|word| word == seconds.as_bytes())
    })
}

#[test]
fn an_interrupted_build_ends_at_once_and_leaves_nothing() {
    if !host::require_host(&["kill"]) {
        return;
    }
    let bench = Bench::with("");
    let base = busybox(&bench);
    for (number, (signals, command)) in [
        (&["-TERM"][..], "sleep"),
        (&["-INT"], "sleep"),
        // A process that holds out against the first signal.
        (&["-TERM"], "trap '' TERM INT; sleep"),
        (&["-TERM", "-TERM"], "sleep"),
    ]
    .into_iter()
    .enumerate()
    {
        let seconds = format!("{}.{number}", 100_000 + std::process::id());
        bench.write(
            "Dockerfile",
            format!(
                "FROM oci-layout://{}\nRUN echo kept > /kept{number}\n\
                 RUN (sleep {seconds} &) ; echo running; {command} {seconds}\n",
                base.display()
            ),
        );
        let mut build = bench
            .build()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the builder");
        let mut lines = BufReader::new(build.stderr.take().expect("piped")).lines();
        let mut log = String::new();
        let mut take = |until: &str| {
            for line in lines.by_ref() {
                log.push_str(&line.expect("text"));
                log.push('\n');
                if log.ends_with(&format!("{until}\n")) {
                    break;
                }
            }
            log.clone()
        };
        take(" running");
        for signal in signals {
            host::succeed(Command::new("kill").arg(signal).arg(build.id().to_string()));
        }
        let log = take("the end of the file");
        let status = build.wait().expect("a child");
        assert_eq!(status.code(), Some(130), "{signals:?}: {:?}\n{log}", status.signal());
        assert!(!log.contains("panicked"), "{log}");
        assert!(!sleeps(&seconds), "a process is left\n{log}");
        if signals.len() == 1 {
            assert!(log.contains("interrupted"), "{log}");
            bench.is_clean(&log);
        } else {
            nothing_is_mounted_below(bench.work.path());
        }
        bench.write(
            "Dockerfile",
            format!(
                "FROM oci-layout://{}\nRUN echo kept > /kept{number}\nRUN echo again\n",
                base.display()
            ),
        );
        // A second signal ends the program at once, also when the step was not told to
        // be done yet.
        let was_told = log.contains("#1 DONE");
        assert!(was_told || signals.len() > 1, "{log}");
        let log = bench.accepts(&mut bench.build());
        assert!(!was_told || log.contains("CACHED"), "the step before is kept:\n{log}");
        if signals.len() == 1 {
            bench.is_clean(&log);
        } else {
            bench.is_clean_after_a_kill(&log);
        }
    }
}
