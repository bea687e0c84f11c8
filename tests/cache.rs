//! The cache directory as its users see it: bounded, damaged, read-only, shared; and
//! the subcommands that show and shrink it. All of it with the real binary.
//!
//! Most builds here have only COPY steps on a base in an OCI layout, which need no
//! privilege and no network.

#[allow(dead_code, reason = "others use the rest")]
#[path = "support/host.rs"]
mod host;
#[allow(dead_code, reason = "others use the rest")]
#[path = "support/image.rs"]
mod image;

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::fs::FileTimes;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;
use std::time::SystemTime;

use image::Image;
use serde_json::Value;
use tempfile::TempDir;
use yadokari_cache::Access;
use yadokari_cache::Bucket;
use yadokari_cache::Cache;
use yadokari_cache::Fold;
use yadokari_cache::Key;

const DOCKERFILE: &str = "ARG BASE=scratch
FROM ${BASE} AS first
COPY a /a
COPY b /b
FROM ${BASE}
COPY --from=first /a /b /both/
COPY c /c
";

/// Files of the build context, large enough to be compressed and to be damaged
/// somewhere in the middle.
const FILES: [&str; 3] = ["a", "b", "c"];

struct Room {
    dir: TempDir,
}

impl Room {
    fn new() -> Self {
        let room = Self { dir: tempfile::tempdir().expect("a directory") };
        let base = room.path("base-context");
        fs::create_dir_all(&base).expect("a directory");
        fs::write(base.join("Dockerfile"), "FROM scratch\nCOPY base /base\n").expect("a file");
        fs::write(base.join("base"), noise(0, 50_000)).expect("a file");
        let context = room.path("context");
        fs::create_dir_all(&context).expect("a directory");
        fs::write(context.join("Dockerfile"), DOCKERFILE).expect("a file");
        for (number, name) in FILES.iter().enumerate() {
            room.write(name, &noise(1 + number as u64, 50_000));
        }
        let mut build = host::yadokari();
        build.args(["build", "--no-push", "--context"]).arg(&base);
        build.arg("--oci-layout-path").arg(room.path("base"));
        host::succeed(build.arg("--cache-dir").arg(room.path("base-cache")));
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path("context").join(name), bytes).expect("a file");
    }

    fn command(&self) -> Command {
        let mut command = host::yadokari();
        command
            .env_remove("YADOKARI_CACHE_MAX_SIZE")
            .env("SOURCE_DATE_EPOCH", "1000000000")
            .args(["build", "--no-push", "--log-format=text", "--context"])
            .arg(self.path("context"))
            .arg(format!("--build-arg=BASE=oci:{}", self.path("base").display()))
            .arg("--oci-layout-path")
            .arg(self.path("layout"))
            .arg("--cache-dir")
            .arg(self.cache());
        command
    }

    /// Builds, checks the image, and gives what was told.
    fn build(&self, arguments: &[&str]) -> Built {
        self.run(self.command().args(arguments))
    }

    fn run(&self, command: &mut Command) -> Built {
        let _ = fs::remove_dir_all(self.path("layout"));
        let output = host::succeed(command);
        let image = Image::open(&self.path("layout"));
        let files = image.flatten();
        let content = |name: &str| fs::read(self.path("context").join(name)).expect("a file");
        for (path, expected) in [
            ("/base", noise(0, 50_000)),
            ("/both/a", content("a")),
            ("/both/b", content("b")),
            ("/c", content("c")),
        ] {
            assert!(files[path].content == expected, "{path} is wrong");
        }
        Built::of(&output)
    }

    fn cache_command(&self, arguments: &[&str]) -> Command {
        let mut command = host::yadokari();
        command.env_remove("YADOKARI_CACHE_MAX_SIZE");
        command.arg("cache").args(arguments).arg("--cache-dir").arg(self.cache());
        command
    }

    /// The JSON document of a subcommand that succeeds.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = host::succeed(self.cache_command(arguments).arg("--json"));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn contents(&self, part: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache().join(part)).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    }

    /// Moves the last use of every content this far into the past, seals kept.
    fn age(&self, seconds: u64) {
        for part in ["blobs/sha256", "layers/sha256", "aside", "contexts", "mounts"] {
            for path in self.contents(part) {
                let file = File::open(&path).expect("a file");
                let time = file.metadata().and_then(|found| found.modified()).expect("a time");
                let earlier = time - Duration::from_secs(seconds);
                let times = FileTimes::new().set_modified(earlier);
                file.set_times(times).expect("times");
            }
        }
    }
}

struct Built {
    /// How often a step ended in a way: `CACHED`, `DONE`.
    ends: BTreeMap<String, usize>,
    warnings: Vec<String>,
    text: String,
}

impl Built {
    fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let mut ends = BTreeMap::new();
        for word in text.lines().filter_map(|line| line.split(' ').nth(1)) {
            if ["CACHED", "DONE"].contains(&word) {
                *ends.entry(word.to_owned()).or_default() += 1;
            }
        }
        let warnings = text.lines().filter(|line| line.starts_with("warning:"));
        Self { ends, warnings: warnings.map(str::to_owned).collect(), text }
    }

    fn done(&self) -> usize {
        self.ends.get("DONE").copied().unwrap_or(0)
    }

    fn cached(&self) -> usize {
        self.ends.get("CACHED").copied().unwrap_or(0)
    }
}

/// Bytes that don't compress, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Changes a byte in the middle, in place.
fn flip(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = File::options().read(true).write(true).open(path).expect("a file");
    let middle = file.metadata().expect("a length").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x55], middle).expect("a byte");
}

fn halve(path: &Path) {
    let file = File::options().write(true).open(path).expect("a file");
    let half = file.metadata().expect("a length").len() / 2;
    file.set_len(half).expect("a length");
}

fn overwrite(path: &Path) {
    fs::write(path, "<html>captive portal</html>").expect("a file");
}

type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 3] = [("flip", flip), ("halve", halve), ("foreign", overwrite)];

// Damage.

#[test]
fn a_damaged_blob_is_told_once_set_aside_and_made_anew() {
    let room = Room::new();
    room.build(&[]);
    let blobs = room.contents("blobs/sha256");
    let tars = room.contents("layers/sha256");
    for (name, damage) in DAMAGES {
        // With the uncompressed layers at hand a blob is compressed again; without
        // them the steps run again.
        for with_tars in [true, false] {
            if !with_tars {
                tars.iter().for_each(|path| fs::remove_file(path).expect("a file"));
            }
            blobs.iter().for_each(|path| damage(path));
            let again = room.build(&[]);
            let told = again.warnings.len();
            // Steps of the first stage aren't asked for their blobs unless it runs.
            assert!(told >= 3, "{name}: {}", again.text);
            assert_eq!(again.done() > 0, !with_tars, "{name}: {}", again.text);
            let distinct: std::collections::BTreeSet<_> = again.warnings.iter().collect();
            assert_eq!(distinct.len(), told, "{name}: each once: {}", again.text);
            let third = room.build(&[]);
            assert_eq!((third.done(), third.warnings.len()), (0, 0), "{name}: {}", third.text);
        }
    }
    assert!(!room.contents("aside").is_empty());
}

/// Changes a byte without a trace in the file's times, as a failing disk does.
fn rot(path: &Path) {
    let file = File::open(path).expect("a file");
    let before = file.metadata().and_then(|found| found.modified()).expect("a time");
    flip(path);
    file.set_times(FileTimes::new().set_modified(before)).expect("times");
}

#[test]
fn what_rots_under_its_seal_is_found_when_it_is_read_and_made_anew() {
    let room = Room::new();
    room.build(&[]);
    for with_tars in [true, false] {
        if !with_tars {
            for path in room.contents("layers/sha256") {
                fs::remove_file(path).expect("a file");
            }
            // What runs now needs the layers of the others.
            room.write("c", &noise(77, 50_000));
        }
        room.contents("blobs/sha256").iter().for_each(|path| rot(path));
        let again = room.build(&[]);
        // Nothing asks for the first stage's blobs, nor for that of the former COPY c.
        assert!(again.warnings.len() >= 2, "{}", again.text);
        assert_eq!(again.done() > 0, !with_tars, "{}", again.text);
        let distinct: std::collections::BTreeSet<_> = again.warnings.iter().collect();
        assert_eq!(distinct.len(), again.warnings.len(), "each once: {}", again.text);
        let third = room.build(&[]);
        assert_eq!((third.done(), third.warnings.len()), (0, 0), "{}", third.text);
    }
}

#[test]
fn what_rots_before_a_push_is_made_anew() {
    if !host::require_host(&["docker-registry"]) {
        return;
    }
    let room = Room::new();
    room.build(&[]);
    room.contents("blobs/sha256").iter().for_each(|path| rot(path));
    let registry = host::Registry::start();
    let mut build = host::yadokari();
    build.args(["build", "--context"]).arg(room.path("context"));
    build.arg(format!("--build-arg=BASE=oci:{}", room.path("base").display()));
    build.arg("--cache-dir").arg(room.cache()).env("SOURCE_DATE_EPOCH", "1000000000");
    build.arg("--destination").arg(format!("{}/app:1", registry.address));
    let output = host::succeed(&mut build);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("begins again"), "{text}");
}

#[test]
fn what_is_no_file_is_set_aside_and_made_anew() {
    let room = Room::new();
    room.build(&[]);
    for make in [
        (|path: &Path| fs::create_dir(path).expect("a directory")) as fn(&Path),
        // Opening it would wait for ever.
        |path: &Path| {
            host::succeed(Command::new("mkfifo").arg(path))
                .status
                .success()
                .then_some(())
                .expect("a pipe")
        },
    ] {
        for part in ["blobs/sha256", "layers/sha256"] {
            for path in room.contents(part) {
                fs::remove_file(&path).expect("a file");
                make(&path);
            }
        }
        let again = room.build(&[]);
        assert_eq!(again.done(), 4, "{}", again.text);
        let third = room.build(&[]);
        assert_eq!((third.done(), third.warnings.len()), (0, 0), "{}", third.text);
    }
}

#[test]
fn contents_that_go_while_a_build_relies_on_them_are_made_anew() {
    // As when it can't hold them: the directory is read-only to it, or locks don't
    // reach the collector. The build is kept at its last step by another's turn.
    let room = Room::new();
    room.build(&[]);
    let cache = Cache::open(&room.cache(), Access::ReadWrite).expect("a cache");
    let listed = room.json(&["ls"]);
    let mut c = None;
    cache
        .each_record(&mut |seen| {
            let text = String::from_utf8_lossy(seen.value).into_owned();
            if seen.bucket == Bucket::Steps.name() && text.contains("COPY c /c") {
                c = Some(seen.key);
            }
        })
        .expect("records");
    let c = c.unwrap_or_else(|| panic!("no step in {listed}"));
    host::succeed(&mut room.cache_command(&["rm", &c.to_string()]));
    let mut content = Vec::new();
    cache
        .each_record(&mut |seen| {
            if seen.bucket == Bucket::Content.name() {
                content.push(seen.name());
            }
        })
        .expect("records");
    cache.take_back(&content).expect("the records go");
    let turn = cache.take_turn(&c).expect("a turn").expect("nobody has it");
    let mut command = room.command();
    let _ = fs::remove_dir_all(room.path("layout"));
    let mut child = spawn(&mut command);
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let mut text = String::new();
    while !text.contains("waiting") {
        assert!(stderr.read_line(&mut text).expect("a pipe") > 0, "{text}");
    }
    for part in ["blobs/sha256", "layers/sha256"] {
        room.contents(part).iter().for_each(|path| fs::remove_file(path).expect("a file"));
    }
    drop(turn);
    std::io::Read::read_to_string(&mut stderr, &mut text).expect("a pipe");
    assert!(child.wait().expect("a builder").success(), "{text}");
    assert!(text.contains("begins again"), "{text}");
    assert_eq!(room.build(&[]).done(), 0);
}

#[test]
fn a_damaged_layer_or_index_never_reaches_an_image() {
    for (part, extension) in [("tar", "tar"), ("index", "index")] {
        for (name, damage) in DAMAGES {
            let room = Room::new();
            room.build(&[]);
            for path in room.contents("layers/sha256") {
                if path.extension().is_some_and(|found| found == extension) {
                    damage(&path);
                }
            }
            // The second stage copies out of the first one's layers again.
            room.write("b", &noise(9, 50_000));
            let again = room.build(&[]);
            assert!(again.done() >= 2, "{part} {name}: {}", again.text);
            assert!(!again.warnings.is_empty(), "{part} {name}: {}", again.text);
            let third = room.build(&[]);
            assert_eq!((third.done(), third.warnings.len()), (0, 0), "{part} {name}");
        }
    }
}

#[test]
fn damaged_spool_files_cost_their_steps_and_are_told_once() {
    for (name, damage) in DAMAGES {
        let room = Room::new();
        room.build(&[]);
        let spool = room.contents("spool");
        assert!(spool.len() >= 4);
        spool.iter().for_each(|path| damage(path));
        let again = room.build(&[]);
        assert_eq!(again.cached(), 0, "{name}");
        assert_eq!(again.warnings.len(), spool.len(), "{name}: {}", again.text);
        assert_eq!(room.contents("aside").len(), spool.len());
        let third = room.build(&[]);
        assert_eq!((third.done(), third.warnings.len()), (0, 0), "{name}");
    }
}

#[test]
fn records_of_another_version_or_of_nonsense_are_misses() {
    let room = Room::new();
    room.build(&[]);
    let cache = Cache::open(&room.cache(), Access::ReadWrite).expect("a cache");
    for value in [&b"\x09{}"[..], b"\x01{\"diff_id\":7}", b"", b"\x01", &[0xff; 400]] {
        let mut keys = Vec::new();
        cache
            .each_record(&mut |seen| {
                let known = Bucket::ALL.iter().find(|bucket| bucket.name() == seen.bucket);
                keys.push((*known.expect("ours"), seen.key));
            })
            .expect("records");
        let puts: Vec<_> =
            keys.into_iter().map(|(bucket, key)| (bucket, key, value.to_vec())).collect();
        cache.put(&puts).expect("put");
        let again = room.build(&[]);
        assert_eq!(again.cached(), 0, "{}", again.text);
        assert!(!again.warnings.is_empty(), "{}", again.text);
        let third = room.build(&[]);
        assert_eq!((third.done(), third.warnings.len()), (0, 0), "{}", third.text);
    }
}

#[test]
fn a_damaged_log_or_index_loses_at_most_what_was_damaged() {
    for (name, damage) in DAMAGES {
        let room = Room::new();
        room.build(&[]);
        let fold = || {
            let cache = Cache::open(&room.cache(), Access::ReadWrite).expect("a cache");
            cache.fold(Fold::Now).expect("a fold");
        };
        fold();
        for path in room.contents("index") {
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            let length = path.metadata().expect("a length").len();
            if !name.starts_with("LOG") && length > 0 {
                damage(&path);
            }
        }
        let again = room.build(&[]);
        assert_eq!(again.done(), 0, "{name}: the log has it all: {}", again.text);
        assert!(!again.warnings.is_empty(), "{name}: {}", again.text);
        // The next fold makes the index anew.
        room.write("c", &noise(7, 50_000));
        room.build(&[]);
        fold();
        let again = room.build(&[]);
        assert_eq!((again.done(), again.warnings.len()), (0, 0), "{name}: {}", again.text);

        let log = room
            .contents("records")
            .into_iter()
            .find(|path| path.extension().is_some_and(|extension| extension == "log"));
        damage(&log.expect("a log"));
        fs::remove_dir_all(room.cache().join("index")).expect("the index");
        let again = room.build(&[]);
        assert!(again.done() > 0 || name == "halve", "{name}: {}", again.text);
        fold();
        host::succeed(&mut room.cache_command(&["gc"]));
        let again = room.build(&[]);
        assert_eq!(again.done(), 0, "{name}: {}", again.text);
    }
}

#[test]
fn damaged_context_digests_are_forgotten() {
    for (name, damage) in DAMAGES {
        let room = Room::new();
        room.build(&[]);
        for path in room.contents("contexts") {
            damage(&path);
        }
        let damaged = room.contents("contexts").len();
        let again = room.build(&[]);
        assert_eq!(again.done(), 0, "{name}");
        assert_eq!(again.warnings.len(), damaged, "{name}: {}", again.text);
    }
}

#[test]
fn a_damaged_version_is_mended_and_a_newer_one_left_alone() {
    let room = Room::new();
    room.build(&[]);
    let version = room.cache().join("VERSION");
    for (name, damage) in DAMAGES {
        damage(&version);
        let again = room.build(&[]);
        assert_eq!((again.done(), again.warnings.len()), (0, 1), "{name}: {}", again.text);
    }
    fs::write(&version, "yadokari cache 99\n").expect("a file");
    let newer = room.build(&[]);
    assert_eq!((newer.cached(), newer.warnings.len()), (0, 1), "{}", newer.text);
    assert_eq!(fs::read_to_string(&version).expect("a file"), "yadokari cache 99\n");
    // Somebody else's directory is not ours to mend.
    let foreign = room.path("foreign");
    fs::create_dir(&foreign).expect("a directory");
    fs::write(foreign.join("VERSION"), "1.2.3\n").expect("a file");
    let refused = room.command().arg("--cache-dir").arg(&foreign).output().expect("a builder");
    assert!(!refused.status.success());
    assert_eq!(fs::read_dir(&foreign).expect("a directory").count(), 1);
}

// Subcommands and bounds.

#[test]
fn verify_finds_what_a_forged_seal_hides_and_fails() {
    let room = Room::new();
    room.build(&[]);
    assert_eq!(room.json(&["verify"])["damaged"].as_array().map(Vec::len), Some(0));
    for part in ["blobs/sha256", "layers/sha256"] {
        for path in room.contents(part) {
            rot(&path);
        }
    }
    let output = room.cache_command(&["verify", "--json"]).output().expect("a subcommand");
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let damaged = found["damaged"].as_array().expect("a list").len();
    assert!(damaged >= 8, "{found}");
    assert_eq!(room.json(&["verify"])["damaged"].as_array().map(Vec::len), Some(0));
    assert!(room.build(&[]).done() > 0);
}

#[test]
fn ls_and_du_tell_what_is_there() {
    let room = Room::new();
    room.build(&[]);
    let listed = room.json(&["ls"]);
    let steps = listed.as_array().expect("a list");
    assert_eq!(steps.len(), 4, "{listed}");
    for step in steps {
        assert_eq!(step["kind"], "step");
        assert!(step["bytes"].as_u64() > Some(50_000), "{step}");
        assert!(step["blob"].as_str().is_some_and(|blob| blob.starts_with("sha256:")));
    }
    let all = room.json(&["ls", "--all"]);
    assert!(all.as_array().map(Vec::len) > Some(12), "{all}");
    let du = room.json(&["du"]);
    for part in ["records", "layers", "blobs", "memory", "total"] {
        assert!(du[part].as_u64() > Some(0), "{part}: {du}");
    }
    assert_eq!(du["reclaimable"], 0);
    assert_eq!(du["mounts"], 0);
    let text = host::succeed(&mut room.cache_command(&["du"])).stdout;
    assert!(String::from_utf8_lossy(&text).contains("reclaimable"));
}

#[test]
fn gc_keeps_the_most_recently_used_within_the_size_and_takes_records_along() {
    let room = Room::new();
    room.build(&[]);
    room.age(1000);
    room.write("c", &noise(8, 60_000));
    room.build(&[]);
    let total = room.json(&["du"])["total"].as_u64().expect("bytes");
    let wanted = (total - 100_000).to_string();
    let would = room.json(&["gc", "--max-size", &wanted, "--dry-run"]);
    assert_eq!(room.json(&["du"])["total"].as_u64(), Some(total));
    let did = room.json(&["gc", "--max-size", &wanted]);
    assert_eq!(would["removed"], did["removed"]);
    assert!(did["remaining"].as_u64() <= Some(total - 100_000), "{did}");
    // The layer of the newest step is still there, and nothing names what has gone.
    assert_eq!(room.json(&["verify"])["damaged"].as_array().map(Vec::len), Some(0));
    room.build(&[]);
    let nothing = room.json(&["gc", "--max-size=0"]);
    assert!(nothing["records"].as_u64() > Some(0), "{nothing}");
    assert!(room.contents("blobs/sha256").is_empty());
    assert!(room.contents("layers/sha256").is_empty());
    assert!(room.contents("trash").is_empty());
    assert_eq!(room.json(&["ls"]).as_array().map(Vec::len), Some(0));
    let again = room.build(&[]);
    assert_eq!((again.cached(), again.warnings.len()), (0, 0), "{}", again.text);
}

#[test]
fn a_build_keeps_its_cache_within_the_size_it_was_given() {
    let room = Room::new();
    for round in 0..6 {
        room.write("c", &noise(100 + round, 200_000));
        room.build(&["--cache-max-size=1MB"]);
        room.age(100);
        let du = room.json(&["du"]);
        assert!(du["total"].as_u64() <= Some(1_000_000), "round {round}: {du}");
    }
    // By the variable, too, and bad values are named.
    let text = String::from_utf8_lossy(
        &room.command().arg("--cache-max-size=many").output().expect("a builder").stderr,
    )
    .into_owned();
    assert!(text.contains("--cache-max-size many"), "{text}");
    let mut gc = room.cache_command(&["gc"]);
    host::succeed(gc.env("YADOKARI_CACHE_MAX_SIZE", "0"));
    assert!(room.contents("blobs/sha256").is_empty());
}

#[test]
fn steps_older_than_the_ttl_are_built_again() {
    let room = Room::new();
    room.build(&[]);
    assert_eq!(room.build(&["--cache-ttl=1h"]).done(), 0);
    let expired = room.build(&["--cache-ttl=0s"]);
    assert_eq!(expired.cached(), 0, "{}", expired.text);
    let gone = room.json(&["gc", "--ttl=0s"]);
    assert!(gone["records"].as_u64() > Some(0), "{gone}");
    assert_eq!(room.json(&["ls"]).as_array().map(Vec::len), Some(0));
}

#[test]
fn rm_removes_what_is_named_and_says_what_is_not_there() {
    let room = Room::new();
    room.build(&[]);
    let listed = room.json(&["ls"]);
    let key = listed[0]["name"].as_str().expect("a key");
    let blob = listed[1]["blob"].as_str().expect("a digest");
    let removed = room.json(&["rm", key, blob]);
    assert!(removed["records"].as_u64() > Some(0), "{removed}");
    assert_eq!(room.json(&["ls"]).as_array().map(Vec::len), Some(3));
    for (name, reason) in [
        (key, "nothing in the cache"),
        (&format!("sha256:{}", "0".repeat(64)), "nothing in the cache"),
        ("latest", "neither a key"),
    ] {
        let output = room.cache_command(&["rm", name]).output().expect("a subcommand");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(reason), "{name}: {text}");
    }
    room.build(&[]);
}

#[test]
fn garbage_of_the_dead_is_reclaimed_after_the_grace() {
    let room = Room::new();
    room.build(&[]);
    let stray = room.cache().join("blobs/sha256").join("0".repeat(64));
    fs::write(&stray, "no record names this").expect("a file");
    let half = room.cache().join(format!("layers/sha256/{}.tar", "1".repeat(64)));
    fs::write(&half, "its writer was killed").expect("a file");
    fs::create_dir_all(room.cache().join("tmp/dead/deep")).expect("a directory");
    fs::write(room.cache().join("tmp/dead/deep/work"), "x").expect("a file");
    fs::write(room.cache().join("leases/dead"), "").expect("a file");
    host::succeed(&mut room.cache_command(&["gc"]));
    assert!(stray.exists() && half.exists(), "somebody may be about to name them");
    assert!(!room.cache().join("tmp/dead").exists());
    for path in [&stray, &half] {
        let old = SystemTime::now() - Duration::from_secs(2 * 3600);
        File::open(path)
            .and_then(|file| file.set_times(FileTimes::new().set_modified(old)))
            .expect("times");
    }
    assert!(room.json(&["du"])["reclaimable"].as_u64() > Some(0));
    let gone = room.json(&["gc"]);
    assert_eq!(gone["removed"].as_array().map(Vec::len), Some(2), "{gone}");
    assert!(!stray.exists() && !half.exists());
    assert_eq!(room.build(&[]).done(), 0);
}

#[test]
fn an_old_base_stays_as_long_as_its_manifest_is_used() {
    // The store keeps bases of registries; their parts are named by their manifest.
    let room = Room::new();
    room.build(&[]);
    let store = yadokari::store::Store::open(&room.cache()).expect("a store");
    let layout = Image::open(&room.path("base"));
    let manifest = serde_json::to_vec(&layout.manifest).expect("JSON");
    let config = fs::read(layout.blob(&layout.manifest["config"]["digest"])).expect("a config");
    let manifest = store.put_blob(&manifest).expect("a blob");
    let config = store.put_blob(&config).expect("a blob");
    drop(store);
    room.age(100 * 3600);
    let store = yadokari::store::Store::open(&room.cache()).expect("a store");
    assert!(store.has_blob(&manifest, None).expect("an answer"));
    drop(store);
    host::succeed(&mut room.cache_command(&["gc", "--ttl=50h"]));
    let store = yadokari::store::Store::open(&room.cache()).expect("a store");
    assert!(store.has_blob(&manifest, None).expect("an answer"));
    assert!(store.has_blob(&config, None).expect("an answer"));
    let layer = layout.config["rootfs"]["diff_ids"][0].as_str().expect("a diff ID");
    assert!(store.layer(&layer.parse().expect("a diff ID")).expect("an answer").is_some());
}

#[test]
fn beginnings_of_blobs_are_counted_and_go_unless_somebody_goes_on_with_them() {
    use std::io::Write;
    let room = Room::new();
    room.build(&[]);
    let store = yadokari::store::Store::open(&room.cache()).expect("a store");
    let begin = |text: &str| {
        let digest = yadokari::oci::digest::Digest::of(text.as_bytes());
        let mut begun = store.partial_blob(&digest).expect("a file");
        begun.write_all(&noise(5, 40_000)).expect("bytes");
        begun
    };
    let living = begin("living");
    {
        let other = yadokari::store::Store::open(&room.cache()).expect("a store");
        let digest = yadokari::oci::digest::Digest::of(b"dead");
        let mut begun = other.partial_blob(&digest).expect("a file");
        begun.write_all(&noise(6, 40_000)).expect("bytes");
    }
    assert!(room.json(&["du"])["partial"].as_u64() >= Some(80_000));
    let gone = room.json(&["gc", "--max-size=0"]);
    let removed = gone["removed"].as_array().expect("a list");
    assert_eq!(removed.iter().filter(|one| one["kind"] == "partial").count(), 1, "{gone}");
    assert_eq!(room.contents("partial").len(), 1, "somebody writes it");
    drop(living);
    drop(store);
    host::succeed(&mut room.cache_command(&["clear"]));
    assert_eq!(room.contents("partial").len(), 0);
}

#[test]
fn removing_both_forms_of_a_layer_takes_its_record_along() {
    let room = Room::new();
    room.build(&[]);
    let listed = room.json(&["ls"]);
    let text = |name: &str| listed[0][name].as_str().expect("a digest").to_owned();
    let gone = room.json(&["rm", &text("diffID"), &text("blob")]);
    assert!(gone["records"].as_u64() > Some(0), "{gone}");
    assert_eq!(room.json(&["ls"]).as_array().map(Vec::len), Some(3));
}

#[test]
fn what_a_living_process_holds_survives_everything() {
    let room = Room::new();
    room.build(&[]);
    let store = yadokari::store::Store::open(&room.cache()).expect("a store");
    let listed = room.json(&["ls"]);
    let digest = listed[0]["blob"].as_str().expect("a digest");
    assert!(store.has_blob(&digest.parse().expect("a digest"), None).expect("an answer"));
    let gone = room.cache_command(&["gc", "--max-size=0", "--json"]).output().expect("gc");
    let gone: Value = serde_json::from_slice(&gone.stdout).expect("JSON");
    assert_eq!(gone["inUse"], 1, "{gone}");
    assert_eq!(room.contents("blobs/sha256").len(), 1);
    assert_eq!(room.json(&["ls"]).as_array().map(Vec::len), Some(1), "its record stays");
    let refused = room.cache_command(&["rm", digest]).output().expect("rm");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in use"));
    let refused = room.cache_command(&["clear"]).output().expect("clear");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("running builds"));
    assert!(!refused.status.success());
    drop(store);
    host::succeed(&mut room.cache_command(&["clear"]));
    let du = room.json(&["du"]);
    assert_eq!((&du["blobs"], &du["layers"]), (&Value::from(0), &Value::from(0)), "{du}");
    assert_eq!(room.build(&[]).cached(), 0);
}

#[test]
fn clear_waits_for_a_build_when_asked_to() {
    let room = Room::new();
    room.build(&[]);
    let store = yadokari::store::Store::open(&room.cache()).expect("a store");
    store.scratch().expect("a lease");
    let mut clear = room.cache_command(&["clear", "--wait=1m"]);
    let waiting = clear.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("clear");
    drop(store);
    let output = waiting.wait_with_output().expect("clear");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(room.contents("blobs/sha256").is_empty());
}

// Read-only.

#[test]
fn a_cache_that_can_only_be_read_gives_hits_and_the_build_goes_on() {
    if !host::require("root", rustix::process::geteuid().is_root()) {
        return;
    }
    let room = Room::new();
    room.build(&[]);
    let before: Vec<_> = room.contents("spool");
    room.write("c", &noise(55, 50_000));
    // The whole build runs where the cache is mounted read-only.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"");
    command.arg(room.cache());
    let build = room.command();
    command.arg(build.get_program()).args(build.get_args()).env("SOURCE_DATE_EPOCH", "1000000000");
    let built = room.run(&mut command);
    assert_eq!((built.cached(), built.done()), (3, 1), "{}", built.text);
    assert_eq!(built.warnings.len(), 1, "{}", built.text);
    assert!(built.warnings[0].contains("not permitted"), "{}", built.warnings[0]);
    assert_eq!(room.contents("spool"), before);
}

// Turns.

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a builder")
}

#[test]
fn a_step_that_another_build_runs_is_waited_for_and_not_run_again() {
    let room = Room::new();
    // As another build would, being at this very step.
    let key = {
        room.build(&[]);
        let listed = room.json(&["ls", "--all"]);
        let steps: Vec<&Value> = listed.as_array().expect("a list").iter().collect();
        let of_c = steps.iter().filter(|entry| entry["kind"] == "step").count();
        assert_eq!(of_c, 4);
        host::succeed(&mut room.cache_command(&["rm", steps_of(&listed, 0)]));
        Key::from_hex(steps_of(&listed, 0)).expect("a key")
    };
    let cache = Cache::open(&room.cache(), Access::ReadWrite).expect("a cache");
    let turn = cache.take_turn(&key).expect("a turn").expect("nobody has it");
    // Content keys would answer without a turn.
    let mut content = Vec::new();
    cache
        .each_record(&mut |seen| {
            if seen.bucket == Bucket::Content.name() {
                content.push(seen.name());
            }
        })
        .expect("records");
    cache.take_back(&content).expect("taken back");
    let _ = fs::remove_dir_all(room.path("layout"));
    let mut waiting = spawn(&mut room.command());
    let mut lines = BufReader::new(waiting.stderr.take().expect("piped")).lines();
    let waits =
        lines.by_ref().map_while(Result::ok).any(|line| line.contains("waiting for another build"));
    assert!(waits, "it says that it waits");
    // The one who builds dies without a record: the other builds at once.
    drop(turn);
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(waiting.wait().expect("a builder").success(), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("DONE")), "{rest:?}");
    assert!(room.contents("running").is_empty());
}

fn steps_of(listed: &Value, number: usize) -> &str {
    let list = listed.as_array().expect("a list");
    let mut steps = list.iter().filter(|entry| entry["kind"] == "step");
    steps.nth(number).and_then(|step| step["name"].as_str()).expect("a key")
}

#[test]
fn identical_builds_at_once_run_each_step_once() {
    if !host::require_host(&["docker-registry"]) {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let context = work.path().join("context");
    fs::create_dir_all(&context).expect("a directory");
    let dockerfile = format!("FROM {base}\nRUN sleep 1 && echo one > /one\nRUN echo two > /two\n");
    fs::write(context.join("Dockerfile"), dockerfile).expect("a file");
    let builders: Vec<Child> = (0..4)
        .map(|number| {
            let mut command = host::yadokari();
            command
                .args(["build", "--no-push", "--log-format=text", "--context"])
                .arg(&context)
                .arg("--cache-dir")
                .arg(work.path().join("cache"))
                .arg("--oci-layout-path")
                .arg(work.path().join(format!("layout-{number}")));
            spawn(&mut command)
        })
        .collect();
    let mut done = 0;
    let mut digests = std::collections::BTreeSet::new();
    for builder in builders {
        let output = builder.wait_with_output().expect("a builder");
        let built = Built::of(&output);
        assert!(output.status.success(), "{}", built.text);
        done += built.done();
        digests.insert(output.stdout);
    }
    assert_eq!(done, 2, "each step ran once");
    assert_eq!(digests.len(), 1);
}

/// Nobody waits for one who waited himself, if nothing comes of it.
#[test]
fn builds_that_waited_for_a_step_that_fails_build_it_at_once() {
    if !host::require_host(&["docker-registry"]) {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let context = work.path().join("context");
    fs::create_dir_all(&context).expect("a directory");
    let dockerfile = format!(
        "FROM {base}\nRUN --mount=type=cache,target=/c \
         echo begins >> /c/log; sleep 2; echo ends >> /c/log; cat /c/log; exit 1\n"
    );
    fs::write(context.join("Dockerfile"), dockerfile).expect("a file");
    let builders: Vec<Child> = (0..4)
        .map(|_| {
            let mut command = host::yadokari();
            command
                .args(["build", "--no-push", "--log-format=text", "--context"])
                .arg(&context)
                .arg("--cache-dir")
                .arg(work.path().join("cache"));
            spawn(&mut command)
        })
        .collect();
    let mut log = Vec::new();
    for builder in builders {
        let output = builder.wait_with_output().expect("a builder");
        let built = Built::of(&output);
        assert!(!output.status.success(), "{}", built.text);
        let lines = built.text.lines().filter_map(|line| line.strip_prefix("#1 "));
        let seen = lines.filter(|line| ["begins", "ends"].contains(line));
        let seen: Vec<String> = seen.map(str::to_owned).collect();
        if seen.len() > log.len() {
            log = seen;
        }
    }
    // The first by itself; then all others, each beginning before one of them ends.
    let expected = ["begins", "ends", "begins", "begins", "begins", "ends", "ends", "ends"];
    assert_eq!(log, expected);
}
