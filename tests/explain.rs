//! What hits, what misses, and what is said about it: the keys and the explanations,
//! by the real binary.

#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "support/host.rs"]
mod host;
#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "support/image.rs"]
mod image;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

/// A context, a cache and a base image to build on.
struct Bench {
    directory: TempDir,
    base: Option<(host::Registry, TempDir, String)>,
}

/// How one build went.
struct Built {
    metadata: Value,
    stderr: String,
}

impl Bench {
    /// For builds from scratch: these need nothing of the machine.
    fn plain() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("context")).expect("a directory");
        Self { directory, base: None }
    }

    /// For builds that run something.
    fn with_base() -> Option<Self> {
        host::require_host(&["docker-registry"])
            .then(|| Self { base: Some(host::registry_with_base()), ..Self::plain() })
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.directory.path().join("context").join(name);
        fs::create_dir_all(path.parent().expect("below the context")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    fn context(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("context").join(name)
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = host::yadokari();
        command
            .args(["build", "--no-push", "--log-format=text", "--explain", "--context"])
            .arg(self.context(""))
            .arg("--cache-dir")
            .arg(self.directory.path().join("cache"))
            .arg("--metadata-file")
            .arg(self.directory.path().join("metadata.json"))
            .arg("--oci-layout-path")
            .arg(self.directory.path().join("layout"));
        if let Some((_, _, base)) = &self.base {
            command.args(["--build-arg", &format!("BASE={base}")]);
        }
        command.args(flags);
        command
    }

    fn build(&self, flags: &[&str]) -> Built {
        let output = host::succeed(&mut self.command(flags));
        let metadata = fs::read(self.directory.path().join("metadata.json")).expect("metadata");
        Built {
            metadata: serde_json::from_slice(&metadata).expect("JSON"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// A file of the image that was built last.
    fn file(&self, path: &str) -> image::Entry {
        let layout = self.directory.path().join("layout");
        image::Image::open(&layout).flatten().remove(path).expect("a file of the image")
    }

    /// Builds, and says of each step `hit` or its reasons.
    fn steps(&self, flags: &[&str]) -> Vec<String> {
        self.build(flags).steps()
    }
}

impl Built {
    fn steps(&self) -> Vec<String> {
        let steps = self.metadata["yadokari.steps"].as_array().expect("steps");
        steps
            .iter()
            .map(|step| match step["cache"].as_str().expect("hit or miss") {
                "hit" => {
                    assert_eq!(step["reasons"], Value::Array(Vec::new()));
                    "hit".to_owned()
                }
                _ => {
                    let reasons = step["reasons"].as_array().expect("reasons");
                    let texts: Vec<_> =
                        reasons.iter().filter_map(|one| one["text"].as_str()).collect();
                    assert!(!texts.is_empty(), "a miss without a reason: {step}");
                    for text in &texts {
                        assert!(self.stderr.contains(*text), "{text} is not in\n{}", self.stderr);
                    }
                    texts.join("; ")
                }
            })
            .collect()
    }
}

const HIT: &str = "hit";
const NEVER: &str = "not in cache: never built";

fn set_mtime(path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    fs::File::options()
        .append(true)
        .open(path)
        .and_then(|file| file.set_modified(time))
        .expect("utimes");
}

// What a COPY's key is made of.

#[test]
fn copy_matches_by_content_names_and_modes_and_not_by_times() {
    let bench = Bench::plain();
    bench.write("Dockerfile", "FROM scratch\nCOPY src /src\n");
    bench.write("src/app.py", "one");
    bench.write("src/lib/x.py", "x");
    assert_eq!(bench.steps(&[]), [NEVER]);
    assert_eq!(bench.steps(&[]), [HIT]);
    set_mtime(&bench.context("src/app.py"), 1_000_000_000);
    assert_eq!(bench.steps(&[]), [HIT], "another time is no change");
    bench.write("src/app.py", "one");
    assert_eq!(bench.steps(&[]), [HIT], "the same bytes again are no change");
    bench.write("src/app.py", "two");
    assert_eq!(bench.steps(&[]), ["src/app.py: content changed"]);
    host::set_mode(&bench.context("src/lib/x.py"), 0o755);
    assert_eq!(bench.steps(&[]), ["src/lib/x.py: mode 0644 → 0755"]);
    fs::rename(bench.context("src/lib/x.py"), bench.context("src/lib/y.py")).expect("rename");
    assert_eq!(bench.steps(&[]), ["src/lib/y.py: renamed from src/lib/x.py"]);
    bench.write("src/new", "new");
    assert_eq!(bench.steps(&[]), ["src/new: added"]);
    fs::remove_file(bench.context("src/new")).expect("remove");
    assert_eq!(bench.steps(&[]), [HIT], "as two builds before");
    fs::remove_file(bench.context("src/app.py")).expect("remove");
    assert_eq!(bench.steps(&[]), ["src/app.py: removed"]);
    bench.write("elsewhere", "not copied");
    assert_eq!(bench.steps(&[]), [HIT], "what isn't taken doesn't matter");
}

#[test]
fn renaming_a_file_under_a_wildcard_misses() {
    let bench = Bench::plain();
    bench.write("Dockerfile", "FROM scratch\nCOPY *.txt /texts/\n");
    bench.write("a.txt", "text");
    assert_eq!(bench.steps(&[]), [NEVER]);
    fs::rename(bench.context("a.txt"), bench.context("b.txt")).expect("rename");
    assert_eq!(bench.steps(&[]), ["b.txt: renamed from a.txt"]);
    assert_eq!(bench.steps(&[]), [HIT]);
}

#[test]
fn another_name_of_a_file_outside_the_context_is_no_change() {
    let bench = Bench::plain();
    bench.write("Dockerfile", "FROM scratch\nCOPY src /src\n");
    bench.write("src/file", "text");
    assert_eq!(bench.steps(&[]), [NEVER]);
    fs::hard_link(bench.context("src/file"), bench.directory.path().join("outside")).expect("link");
    assert_eq!(bench.steps(&[]), [HIT]);
}

#[test]
fn many_changed_files_are_counted() {
    let bench = Bench::plain();
    bench.write("Dockerfile", "FROM scratch\nCOPY src /src\n");
    for number in 0..40 {
        bench.write(&format!("src/{number:02}"), "old");
    }
    bench.steps(&[]);
    for number in 0..40 {
        bench.write(&format!("src/{number:02}"), "new");
    }
    let said = bench.steps(&[]).remove(0);
    assert!(said.starts_with("src/00: content changed; src/01: content changed"), "{said}");
    assert!(said.ends_with("30 more files changed"), "{said}");
}

#[test]
fn labels_are_in_no_key() {
    let bench = Bench::plain();
    bench.write("Dockerfile", "FROM scratch\nLABEL a=1\nCOPY src /src\n");
    bench.write("src", "x");
    bench.steps(&[]);
    bench.write("Dockerfile", "FROM scratch\nLABEL a=2\n# a comment\nCOPY src \\\n  /src\n");
    assert_eq!(bench.steps(&["--label", "b=3"]), [HIT]);
}

// What an unchanged context costs.

/// System calls of a build, one a line; `None`, aloud, where strace is missing.
fn traced(bench: &Bench) -> Option<String> {
    let has_strace = Command::new("strace").arg("-V").output().is_ok();
    if !host::require("strace", has_strace) {
        return None;
    }
    let log = bench.directory.path().join("trace");
    let build = bench.command(&[]);
    host::succeed(
        Command::new("strace")
            .args(["-f", "-qq", "-s", "300", "-e"])
            .arg("trace=open,openat,openat2,statx,newfstatat,listxattr,flistxattr,getxattr,fgetxattr")
            .arg("-o")
            .arg(&log)
            .arg(build.get_program())
            .args(build.get_args()),
    );
    fs::read_to_string(log).ok()
}

#[test]
fn an_unchanged_context_costs_one_stat_for_each_file_and_opens_none() {
    let bench = Bench::plain();
    bench.write("Dockerfile", "FROM scratch\nCOPY . /src\n");
    for number in 0..1000 {
        bench.write(&format!("d{}/file-{number}", number % 10), "text");
    }
    bench.steps(&[]);
    // By now their ctime is older than a tick of the clock.
    bench.steps(&[]);
    let Some(trace) = traced(&bench) else { return };
    let of_files: Vec<&str> = trace.lines().filter(|line| line.contains("file-")).collect();
    let stats = of_files.iter().filter(|line| line.contains("stat")).count();
    assert_eq!((stats, of_files.len()), (1000, 1000), "{:?}", &of_files[..5]);

    // When one changed, the others are read once, for the layer; none for its digest.
    bench.write("d3/file-123", "next");
    let Some(trace) = traced(&bench) else { return };
    let is_open = |line: &&str| line.contains("open") && line.contains("file-");
    let opened: Vec<&str> = trace.lines().filter(is_open).collect();
    let of_changed = opened.iter().filter(|line| line.contains("file-123\"")).count();
    assert_eq!((opened.len() - of_changed, of_changed), (999, 2));
}

#[test]
fn a_file_rewritten_with_its_times_put_back_misses() {
    let bench = Bench::plain();
    bench.write("Dockerfile", "FROM scratch\nCOPY src /src\n");
    bench.write("src", "one");
    set_mtime(&bench.context("src"), 1_000_000_000);
    bench.steps(&[]);
    bench.steps(&[]);
    for text in ["two", "six", "ten"] {
        // Same size, same time; again and again within a tick of the clock.
        bench.write("src", text);
        set_mtime(&bench.context("src"), 1_000_000_000);
        assert_eq!(bench.steps(&[]), ["src: content changed"]);
    }
}

// Flags.

#[test]
fn flags_force_steps_and_say_so() {
    let bench = Bench::plain();
    bench.write(
        "Dockerfile",
        "FROM scratch AS one\nCOPY a /a\nWORKDIR /w\nFROM scratch\nCOPY --from=one /a /b\n",
    );
    bench.write("a", "a");
    bench.steps(&[]);
    let all = |why: &str| vec![format!("forced by {why}"); 3];
    assert_eq!(bench.steps(&["--no-cache"]), all("--no-cache"));
    assert_eq!(bench.steps(&["--cache=false"]), all("--cache=false"));
    let mut copies = bench.steps(&["--cache-copy-layers=false"]);
    copies.sort();
    assert_eq!(
        copies,
        ["forced by --cache-copy-layers=false", "forced by --cache-copy-layers=false", HIT]
    );
    let mut runs = bench.steps(&["--cache-run-layers=false"]);
    runs.sort();
    assert_eq!(runs, ["forced by --cache-run-layers=false", HIT, HIT]);
    let mut filtered = bench.steps(&["--no-cache-filter=other,ONE"]);
    filtered.sort();
    assert_eq!(filtered, ["forced by --no-cache-filter", "forced by --no-cache-filter", HIT]);
    let said = bench.build(&["--no-cache-filter=other"]).stderr;
    assert!(said.contains("no stage is called other"), "{said}");
    assert_eq!(bench.steps(&[]), [HIT, HIT, HIT], "what was forced is in the cache all the same");
}

#[test]
fn a_layer_that_went_missing_was_evicted() {
    let bench = Bench::plain();
    bench.write("Dockerfile", "FROM scratch\nCOPY src /src\n");
    bench.write("src", "x");
    bench.steps(&[]);
    let cache = bench.directory.path().join("cache");
    for part in ["blobs/sha256", "layers/sha256"] {
        fs::remove_dir_all(cache.join(part)).expect("remove");
        fs::create_dir_all(cache.join(part)).expect("make");
    }
    assert!(bench.steps(&[])[0].starts_with("evicted"));
    for part in ["spool", "records", "index"] {
        let _ = fs::remove_dir_all(cache.join(part));
    }
    assert!(bench.steps(&[])[0].starts_with("evicted"));
}

#[test]
fn the_metadata_file_names_digests_and_layers() {
    let bench = Bench::plain();
    bench.write("Dockerfile", "FROM scratch\nCOPY src /src\n");
    bench.write("src", "x");
    let built = bench.build(&["--destination", "example.org/team/app:1"]);
    let layout = fs::read(bench.directory.path().join("layout/index.json")).expect("index");
    let index: Value = serde_json::from_slice(&layout).expect("JSON");
    let metadata = &built.metadata;
    assert_eq!(metadata["containerimage.digest"], index["manifests"][0]["digest"]);
    assert_eq!(metadata["containerimage.descriptor"]["size"], index["manifests"][0]["size"]);
    assert_eq!(metadata["image.name"], "example.org/team/app:1");
    let digest = metadata["containerimage.digest"].as_str().expect("text").replace(':', "/");
    let blob = bench.directory.path().join("layout/blobs").join(digest);
    let manifest: Value = serde_json::from_slice(&fs::read(blob).expect("blob")).expect("JSON");
    assert_eq!(metadata["containerimage.config.digest"], manifest["config"]["digest"]);
    let step = &metadata["yadokari.steps"][0];
    assert_eq!(step["layer"], manifest["layers"][0]["digest"]);
    assert!(step["seconds"].as_f64().is_some_and(|seconds| seconds >= 0.0));
}

#[test]
fn json_log_lines_carry_the_reasons() {
    let bench = Bench::plain();
    bench.write("Dockerfile", "FROM scratch\nCOPY src /src\n");
    bench.write("src", "x");
    bench.steps(&[]);
    bench.write("src", "y");
    let said = bench.build(&["--log-format=json"]).stderr;
    let lines = said.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let missed = lines.into_iter().find(|line| line["event"] == "missed").expect("a line");
    assert_eq!(missed["reasons"][0]["kind"], "file_changed");
    assert_eq!(missed["reasons"][0]["path"], "src");
    assert_eq!(missed["msg"], "src: content changed");
}

// RUN.

#[test]
fn an_arg_rebuilds_the_steps_that_see_it_and_says_how_it_changed() {
    let Some(bench) = Bench::with_base() else { return };
    let dockerfile = "ARG BASE\nFROM $BASE\nRUN echo before > /before\nARG VERSION\n\
                      RUN echo $VERSION > /version\nRUN echo after > /after\n";
    bench.write("Dockerfile", dockerfile);
    let version = |version: &str| format!("--build-arg=VERSION={version}");
    assert_eq!(bench.steps(&[&version("1.2")]), [NEVER; 3]);
    assert_eq!(bench.steps(&[&version("1.2")]), [HIT; 3]);
    assert_eq!(
        bench.steps(&[&version("1.3")]),
        [
            HIT,
            "ARG VERSION: 1.2 → 1.3",
            "ARG VERSION: 1.2 → 1.3; parent step changed: RUN echo $VERSION > /version"
        ]
    );
    assert_eq!(bench.steps(&[&version("1.2")]), [HIT; 3]);
    assert_eq!(bench.steps(&[&version("1.2"), "--build-arg=HTTP_PROXY=http://p"]), [HIT; 3]);
}

#[test]
fn the_mode_of_a_mounted_directory_is_seen_by_the_key() {
    let Some(bench) = Bench::with_base() else { return };
    let dockerfile = "ARG BASE\nFROM $BASE AS made\nARG MODE\nRUN mkdir -m $MODE /d && touch /d/f\n\
                      FROM $BASE\n\
                      RUN --mount=type=bind,from=made,source=/d,target=/m stat -c %a /m > /mode\n";
    bench.write("Dockerfile", dockerfile);
    let mode = |mode: &str| format!("--build-arg=MODE={mode}");
    bench.steps(&[&mode("755")]);
    // Stages begin at once, so either may be told first.
    let said = bench.steps(&[&mode("700")]);
    assert!(said.iter().any(|said| said == "d: mode 0755 → 0700"), "{said:?}");
    assert_eq!(bench.file("/mode").content, b"700\n");
}

#[test]
fn a_layer_of_a_snapshot_that_does_not_look_everywhere_is_no_other_build_s() {
    let Some(bench) = Bench::with_base() else { return };
    bench.write("Dockerfile", "ARG BASE\nFROM $BASE\nRUN chmod 600 /etc/passwd && touch /x\n");
    bench.steps(&["--snapshot-mode=time"]);
    assert_eq!(bench.steps(&["--snapshot-mode=time"]), [HIT]);
    assert_eq!(bench.steps(&[]), ["flags that hide changes: --snapshot-mode=time → none"]);
    let text = bench.file("/etc/passwd").text;
    assert!(text.contains("0600"), "{text}");
    assert_eq!(bench.steps(&["--snapshot-mode=full"]), [HIT]);
}

#[test]
fn a_step_that_made_the_same_layer_again_does_not_rebuild_its_children() {
    let Some(bench) = Bench::with_base() else { return };
    bench.write("Dockerfile", "ARG BASE\nFROM $BASE\nRUN echo same > /file\nRUN cp /file /copy\n");
    let epoch = |command: &mut Command| {
        command.env("SOURCE_DATE_EPOCH", "1000000000");
        host::succeed(command);
    };
    epoch(&mut bench.command(&[]));
    bench.write("Dockerfile", "ARG BASE\nFROM $BASE\nRUN echo same >  /file\nRUN cp /file /copy\n");
    epoch(&mut bench.command(&[]));
    let metadata = fs::read(bench.directory.path().join("metadata.json")).expect("metadata");
    let built =
        Built { metadata: serde_json::from_slice(&metadata).expect("JSON"), stderr: String::new() };
    let steps = built.metadata["yadokari.steps"].as_array().expect("steps");
    assert_eq!((&steps[0]["cache"], &steps[1]["cache"]), (&"miss".into(), &"hit".into()));
}

#[test]
fn a_step_that_made_another_layer_rebuilds_its_children() {
    let Some(bench) = Bench::with_base() else { return };
    let dockerfile = "ARG BASE\nFROM $BASE AS one\nRUN cat /proc/sys/kernel/random/uuid > /id\n\
                      FROM one\nRUN cp /id /copy && cmp /id /copy\nRUN cmp /id /copy\n";
    bench.write("Dockerfile", dockerfile);
    assert_eq!(bench.steps(&[]), [NEVER; 3]);
    // What stood on the former layer must not be put on the new one.
    let said = bench.steps(&["--no-cache-filter=one"]);
    assert_eq!(said[0], "forced by --no-cache-filter");
    assert!(said[1..].iter().all(|why| why.starts_with("parent step changed")), "{said:?}");
    assert_eq!(bench.steps(&[]), [HIT; 3]);
}

#[test]
fn secrets_are_in_no_key_and_secret_values_are_nowhere_in_the_explanations() {
    let Some(bench) = Bench::with_base() else { return };
    bench.write(
        "Dockerfile",
        "ARG BASE\nFROM $BASE\nARG NPM_TOKEN\nARG INDEX\n\
         RUN --mount=type=secret,id=key true\n",
    );
    let secret = bench.directory.path().join("secret");
    fs::write(&secret, "hunter2-of-the-mount").expect("a file");
    let id = format!("--secret=id=key,src={}", secret.display());
    let first =
        ["--build-arg=NPM_TOKEN=hunter2-one", "--build-arg=INDEX=https://me:hunter2-two@h/x"];
    bench.steps(&[&id, first[0], first[1]]);
    fs::write(&secret, "hunter2-rotated").expect("a file");
    assert_eq!(bench.steps(&[&id, first[0], first[1]]), [HIT], "a rotated secret is no change");
    let second =
        ["--build-arg=NPM_TOKEN=hunter2-other", "--build-arg=INDEX=https://me:hunter2-2@h/x"];
    let built = bench.build(&[&id, second[0], second[1]]);
    assert_eq!(
        built.steps(),
        ["ARG NPM_TOKEN: changed (its value is hidden); ARG INDEX: changed (its value is hidden)"]
    );
    assert!(!built.stderr.contains("hunter2"), "{}", built.stderr);
    assert!(!built.metadata.to_string().contains("hunter2"), "{}", built.metadata);
    for part in ["places", "spool", "records"] {
        let directory = bench.directory.path().join("cache").join(part);
        for entry in fs::read_dir(&directory).expect(part) {
            let bytes = fs::read(entry.expect("an entry").path()).expect("a file");
            let found = bytes.windows(7).any(|window| window == b"hunter2");
            assert!(!found, "{part}: {}", String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn another_base_and_another_instruction_are_named() {
    let Some(bench) = Bench::with_base() else { return };
    bench.write("Dockerfile", "ARG BASE\nFROM $BASE\nRUN echo one > /file\n");
    bench.steps(&[]);
    bench.write("Dockerfile", "ARG BASE\nFROM $BASE\nRUN echo two > /file\n");
    assert_eq!(
        bench.steps(&[]),
        ["instruction changed: RUN echo one > /file → RUN echo two > /file"]
    );
    let (_, _, base) = bench.base.as_ref().expect("a base");
    let other = bench.directory.path().join("other");
    fs::create_dir(&other).expect("a directory");
    fs::write(other.join("Dockerfile"), format!("FROM {base}\nCOPY Dockerfile /x\n"))
        .expect("a file");
    let cache = bench.directory.path().join("other-cache");
    host::succeed(
        host::yadokari()
            .args(["build", "--context"])
            .arg(&other)
            .arg("--cache-dir")
            .arg(cache)
            .args(["--destination", base]),
    );
    let said = bench.steps(&[]).remove(0);
    assert!(said.starts_with(&format!("base image {base}: digest sha256:")), "{said}");
}
