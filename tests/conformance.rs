//! Whole builds of the cases under `tests/dockerfile/`, held against what the
//! reference says of them and against what buildah makes of the same input.
//!
//! A case is a folder with a `Dockerfile` and some of these files:
//!
//! | file | meaning |
//! | --- | --- |
//! | `context/`, `setup` | the build context, and a shell script run in a copy of it |
//! | `parent` | a Dockerfile built first, of the same context; the build argument PARENT names its image, as BASE names one with busybox |
//! | `arguments` | words for both builders; `@BASE@` is the base image, `@WORK@` the directory above the context |
//! | `ours` | words for our builder alone |
//! | `expect` | files of the image: `PATH = CONTENT`, `PATH : ENTRY`, `! PATH` |
//! | `config` | parts of the image config: `POINTER = JSON`, `! POINTER` |
//! | `history` | the rows beyond the base's, all of them: `layer CREATED_BY` or `empty CREATED_BY` |
//! | `layers` | the entries of each layer beyond the base's, all of them: `layer`, then `NAME KIND MODE UID:GID[ -> TARGET][ @SECONDS][ = CONTENT]` |
//! | `output` | what is said during the build: `TEXT`, `! TEXT` |
//! | `error` | the build is refused: `at LINE:COLUMN` or `at LINE:`, `exit CODE` (else 1), and texts that are said |
//! | `check` | nothing is built; the findings of `--check`, all of them: `LINE RULE: TEXT` |
//! | `deviations` | where buildah differs from the reference, and why: `WHAT: WHY` |
//! | `no-buildah` | why buildah can't build it |
//!
//! In contents and rows line feed, tab and carriage return are `\n`, `\t` and
//! `\r`. Cases with `error`, `check`
//! or `history` are about what is ours alone; buildah builds all others unless
//! `no-buildah` says why not. `YADOKARI_CASE=NAME` runs a single one.

#[path = "support/cases.rs"]
mod cases;
#[path = "support/expected.rs"]
mod expected;
#[path = "support/host.rs"]
mod host;
#[path = "support/image.rs"]
mod image;
#[path = "support/validator.rs"]
mod validator;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::sync::Mutex;

use serde_json::Value;

use cases::Case;
use host::succeed;
use image::Image;

/// Cases built at once.
const AT_ONCE: usize = 2;

/// What buildah's chroot isolation leaves in every layer made by a RUN.
const BUILDAH_STUBS: [&str; 4] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/run"];

/// Runs our builder on a case.
fn run_ours(case: &Case, cache: &Path, extra: &[&str]) -> Output {
    let own = case.read("ours").unwrap_or_default();
    host::yadokari()
        .arg("build")
        .arg("--context")
        .arg(case.context())
        .arg("--dockerfile")
        .arg(case.dockerfile())
        .arg("--cache-dir")
        .arg(cache)
        .args(&case.arguments)
        .args(own.split_whitespace().map(|word| case.filled(word)))
        .args(extra)
        .output()
        .expect("the builder")
}

/// What buildah leaves mounted below a directory; goes with this value.
struct Mounts<'a>(&'a Path);

impl Drop for Mounts<'_> {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let ours: Vec<_> = places.filter(|place| Path::new(place).starts_with(self.0)).collect();
        for place in ours.into_iter().rev() {
            let _ = rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn build_theirs(case: &Case, store: &Path) -> PathBuf {
    let layout = case.work.join("theirs");
    succeed(
        Command::new("buildah")
            .arg("--root")
            .arg(store.join("root"))
            .arg("--runroot")
            .arg(store.join("run"))
            .args(["--storage-driver", "overlay"])
            .args(["bud", "--isolation", "chroot", "--tls-verify=false", "--layers=false"])
            .args(["--identity-label=false", "--format", "oci", "--tag"])
            .arg(format!("oci:{}:latest", layout.display()))
            .arg("--file")
            .arg(case.dockerfile())
            .args(&case.arguments)
            .arg(case.context()),
    );
    layout
}

/// Known deviations of buildah: what, and why.
fn deviations(case: &Case) -> BTreeMap<String, String> {
    case.read("deviations")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(what, why)| (what.to_owned(), why.to_owned()))
        .collect()
}

/// Fields of the container config in which two images differ.
fn config_differences(ours: &Value, theirs: &Value) -> BTreeMap<String, String> {
    let mut differences = BTreeMap::new();
    for top in ["architecture", "os", "author"] {
        if ours[top] != theirs[top] {
            differences.insert(top.to_owned(), format!("{} / {}", ours[top], theirs[top]));
        }
    }
    let empty = serde_json::Map::new();
    let object = |value: &Value| value["config"].as_object().unwrap_or(&empty).clone();
    let (ours, theirs) = (object(ours), object(theirs));
    let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    for key in keys {
        let normal = |map: &serde_json::Map<String, Value>| match map.get(key) {
            None | Some(Value::Null) => Value::Null,
            Some(value) => value.clone(),
        };
        let (mut one, mut two) = (normal(&ours), normal(&theirs));
        if key == "Labels"
            && let Some(labels) = two.as_object_mut()
        {
            labels.remove("io.buildah.version");
        }
        for value in [&mut one, &mut two] {
            let nothing = value.as_object().is_some_and(serde_json::Map::is_empty)
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_str() == Some("");
            if nothing {
                *value = Value::Null;
            }
        }
        if one != two {
            differences.insert(format!("config.{key}"), format!("{one} / {two}"));
        }
    }
    differences
}

/// Paths in which two flattened images differ.
fn tree_differences(ours: &Image, theirs: &Image) -> BTreeMap<String, String> {
    let (ours, theirs) = (ours.flatten(), theirs.flatten());
    let paths: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let show = |entry: Option<&image::Entry>| {
        entry.map_or_else(
            || "nothing".to_owned(),
            |entry| {
                let text = String::from_utf8_lossy(&entry.content);
                let text: String = text.chars().take(60).collect();
                format!("{} {text:?}", entry.text)
            },
        )
    };
    // buildah leaves the stubs of its own mounts in the layers; ours must not.
    let stub = |path: &&String| BUILDAH_STUBS.contains(&path.as_str()) && !ours.contains_key(*path);
    paths
        .into_iter()
        .filter(|path| ours.get(*path) != theirs.get(*path))
        .filter(|path| !stub(path))
        .map(|path| {
            (path.clone(), format!("{} / {}", show(ours.get(path)), show(theirs.get(path))))
        })
        .collect()
}

/// Runs `judge` on every case, [`AT_ONCE`] at once, and gathers what it finds; its
/// second argument is the number of the thread.
fn each_case(directories: Vec<PathBuf>, judge: impl Fn(&Path, usize) -> Vec<String> + Sync) {
    let count = directories.len();
    let pending = Mutex::new(directories.into_iter());
    let failures = Mutex::new(Vec::new());
    let next = || pending.lock().expect("no panic holds it").next();
    std::thread::scope(|scope| {
        for thread in 0..AT_ONCE {
            let (next, judge, failures) = (&next, &judge, &failures);
            scope.spawn(move || {
                while let Some(directory) = next() {
                    let judged = std::panic::AssertUnwindSafe(|| judge(&directory, thread));
                    let faults = std::panic::catch_unwind(judged).unwrap_or_else(|panic| {
                        let text = panic.downcast_ref::<String>().cloned();
                        let plain = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                        vec![text.or(plain).unwrap_or_default()]
                    });
                    let name = directory.file_name().expect("a name").to_string_lossy();
                    let faults = faults.iter().map(|fault| format!("{name}: {fault}"));
                    failures.lock().expect("no panic holds it").extend(faults);
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic holds it");
    assert!(failures.is_empty(), "{} faults:\n{}", failures.len(), failures.join("\n"));
    eprintln!("{count} Dockerfiles");
}

/// Everything in which the case isn't what the reference, or buildah, says.
fn faults(case: &Case, work: &Path, thread: usize, base: &Image) -> Vec<String> {
    // What is copied keeps its times, and times are in no key: a case that looks at them
    // must not find the layer of another case.
    let own = case.directory.join("layers").exists();
    let cache = if own { case.work.join("cache") } else { work.join("cache") };
    if let Some(expected) = case.read("check") {
        let output = run_ours(case, &cache, &["--call=check,format=json"]);
        return expected::check_faults(&expected, &output);
    }
    let layout = case.work.join("ours");
    let to = layout.display().to_string();
    let output = run_ours(case, &cache, &["--no-push", "--oci-layout-path", &to]);
    if let Some(expected) = case.read("error") {
        return expected::error_faults(&expected, &output);
    }
    if !output.status.success() {
        return vec![format!("fails:\n{}", String::from_utf8_lossy(&output.stderr))];
    }
    validator::validate(&layout);
    let ours = Image::open(&layout);
    let mut faults = expected::image_faults(case, &ours, base);
    if let Some(expected) = case.read("output") {
        faults.extend(expected::output_faults(&expected, &output));
    }
    if ["no-buildah", "history"].iter().any(|file| case.directory.join(file).exists()) {
        return faults;
    }
    let theirs = Image::open(&build_theirs(case, &work.join(format!("buildah-{thread}"))));
    let known = deviations(case);
    let mut differences = config_differences(&ours.config, &theirs.config);
    differences.extend(tree_differences(&ours, &theirs));
    for (what, how) in &differences {
        if !known.contains_key(what) {
            faults.push(format!("{what}: ours / buildah's: {how}"));
        }
    }
    for what in known.keys().filter(|what| !differences.contains_key(*what)) {
        faults.push(format!("{what} is listed as a deviation and is none"));
    }
    faults
}

#[test]
fn builds_agree_with_the_reference_and_with_buildah() {
    if !host::require_host(&["buildah", "skopeo", "umoci", "docker-registry"]) {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let _mounts = Mounts(work);
    let untouched = work.join("untouched");
    fs::create_dir_all(&untouched).expect("a directory");
    fs::write(untouched.join("Dockerfile"), format!("FROM {base}\n")).expect("a Dockerfile");
    succeed(
        host::yadokari()
            .arg("build")
            .arg("--context")
            .arg(&untouched)
            .arg("--cache-dir")
            .arg(work.join("cache"))
            .args(["--no-push", "--oci-layout-path"])
            .arg(untouched.join("layout")),
    );
    let untouched = Image::open(&untouched.join("layout"));
    each_case(cases::all(), |directory, thread| {
        faults(&Case::prepare(directory, work, &base), work, thread, &untouched)
    });
}

/// The log and the walk make the same layers, step for step.
#[test]
fn the_walk_makes_the_same_layers_as_the_log() {
    if !host::require_host(&["docker-registry"]) {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let directories = cases::all().into_iter().filter(|case| cases::makes_files(case)).collect();
    each_case(directories, |directory, _| {
        let case = Case::prepare(directory, work, &base);
        // Times of what steps make differ between builds; a fixed epoch makes them agree.
        let build = |mode: &str| {
            let layout = case.work.join(mode).display().to_string();
            let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1000000000"];
            let mode_and_place = ["--snapshot-mode", mode, "--no-push", "--oci-layout-path"];
            let extra = [&epoch[..], &mode_and_place, &[&layout]].concat();
            let output = run_ours(&case, &work.join(format!("cache-{mode}")), &extra);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Image::open(Path::new(&layout)).config["rootfs"]["diff_ids"].clone()
        };
        let (log, walk) = (build("log"), build("full"));
        if log == walk { Vec::new() } else { vec![format!("{log} / {walk}")] }
    });
}
