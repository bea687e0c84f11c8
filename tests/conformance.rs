//! Whole builds of the cases under `tests/dockerfile/`, compared with what buildah
//! makes of the same input.
//!
//! A case is a folder: `Dockerfile`; `context/`; `setup`, a shell script run in a
//! copy of the context; `arguments` for both builders; `expect`, what must be in
//! the image whoever built it; `deviations`, where buildah differs from the
//! reference and why; `no-buildah`, why buildah can't build it.

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

use serde_json::Value;

use host::succeed;
use image::Image;

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dockerfile");

/// What buildah's chroot isolation leaves in every layer made by a RUN.
const BUILDAH_STUBS: [&str; 4] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/run"];

struct Case {
    name: String,
    directory: PathBuf,
    context: PathBuf,
    arguments: Vec<String>,
}

impl Case {
    fn prepare(directory: PathBuf, work: &Path, base: &str) -> Self {
        let name = directory.file_name().expect("a name").to_string_lossy().into_owned();
        let context = work.join(&name).join("context");
        fs::create_dir_all(context.parent().expect("a parent")).expect("a directory");
        succeed(Command::new("cp").arg("-a").arg(directory.join("context")).arg(&context));
        host::set_mode(&context, 0o755);
        if let Ok(script) = fs::read_to_string(directory.join("setup")) {
            succeed(Command::new("sh").args(["-ec", &script]).current_dir(&context));
        }
        let mut arguments = vec!["--build-arg".to_owned(), format!("BASE={base}")];
        if let Ok(text) = fs::read_to_string(directory.join("arguments")) {
            let secret = work.join(&name).join("secret");
            arguments.extend(text.split_whitespace().map(|word| {
                word.replace("@BASE@", base)
                    .replace("src=secret", &format!("src={}", secret.display()))
            }));
        }
        Self { name, directory, context, arguments }
    }

    fn build_ours(&self, work: &Path, extra: &[&str]) -> PathBuf {
        let layout = work.join(&self.name).join(format!("ours{}", extra.concat().replace('/', "")));
        succeed(
            host::yadokari()
                .arg("build")
                .arg("--context")
                .arg(&self.context)
                .arg("--dockerfile")
                .arg(self.directory.join("Dockerfile"))
                .arg("--cache-dir")
                .arg(work.join("cache"))
                .arg("--no-push")
                .arg("--oci-layout-path")
                .arg(&layout)
                .args(&self.arguments)
                .args(extra),
        );
        layout
    }

    fn build_theirs(&self, work: &Path) -> PathBuf {
        let layout = work.join(&self.name).join("theirs");
        let store = work.join("buildah");
        let buildah = || {
            let mut command = Command::new("buildah");
            command
                .arg("--root")
                .arg(store.join("root"))
                .arg("--runroot")
                .arg(store.join("run"))
                .args(["--storage-driver", "overlay"]);
            command
        };
        let tag = format!("localhost/{}", self.name);
        succeed(
            buildah()
                .args(["bud", "--isolation", "chroot", "--tls-verify=false", "--layers=false"])
                .args(["--identity-label=false", "--format", "oci"])
                .args(["--tag", &tag])
                .arg("--file")
                .arg(self.directory.join("Dockerfile"))
                .args(&self.arguments)
                .arg(&self.context),
        );
        succeed(buildah().args(["push", "--quiet", &tag]).arg(format!("oci:{}", layout.display())));
        succeed(buildah().args(["rmi", "--all", "--force"]));
        layout
    }

    /// Checks what `expect` says. Lines are `PATH = CONTENT` (with `\n`),
    /// `PATH : ENTRY`, or `! PATH`.
    fn check_expected(&self, image: &Image) {
        let Ok(text) = fs::read_to_string(self.directory.join("expect")) else { return };
        let tree = image.flatten();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(path) = line.strip_prefix("! ") {
                assert!(!tree.contains_key(path), "{}: {path} is there", self.name);
            } else if let Some((path, entry)) = line.split_once(" : ") {
                let found = tree.get(path).map(|found| found.text.as_str());
                assert_eq!(found, Some(entry), "{}: {path}", self.name);
            } else if let Some((path, content)) = line.split_once(" = ") {
                let found = tree
                    .get(path)
                    .map(|found| String::from_utf8_lossy(&found.content).replace('\n', "\\n"));
                assert_eq!(found.as_deref(), Some(content), "{}: {path}", self.name);
            } else {
                panic!("{}: expect has a line that can't be read: {line}", self.name);
            }
        }
    }

    /// Known deviations of buildah: what, and why.
    fn deviations(&self) -> BTreeMap<String, String> {
        fs::read_to_string(self.directory.join("deviations"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(what, why)| (what.to_owned(), why.to_owned()))
            .collect()
    }
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = fs::read_dir(CASES)
        .expect("the cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join("Dockerfile").is_file())
        .collect();
    cases.sort();
    if let Ok(wanted) = std::env::var("YADOKARI_CASE") {
        cases.retain(|path| path.ends_with(&wanted));
    }
    cases
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

#[test]
fn builds_agree_with_the_reference_and_with_buildah() {
    if !host::require_host(&["buildah", "skopeo", "umoci", "docker-registry"]) {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let mut failures = Vec::new();
    let cases = cases();
    for directory in &cases {
        let case = Case::prepare(directory.clone(), work, &base);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let layout = case.build_ours(work, &[]);
            validator::validate(&layout);
            let ours = Image::open(&layout);
            case.check_expected(&ours);
            if case.directory.join("no-buildah").exists() {
                return Vec::new();
            }
            let theirs = Image::open(&case.build_theirs(work));
            let known = case.deviations();
            let mut differences = config_differences(&ours.config, &theirs.config);
            differences.extend(tree_differences(&ours, &theirs));
            let mut faults = Vec::new();
            for (what, how) in &differences {
                if !known.contains_key(what) {
                    faults.push(format!("{}: {what}: ours / buildah's: {how}", case.name));
                }
            }
            for what in known.keys() {
                if !differences.contains_key(what) {
                    faults.push(format!(
                        "{}: {what} is listed as a deviation and is none",
                        case.name
                    ));
                }
            }
            faults
        }));
        match outcome {
            Ok(faults) => failures.extend(faults),
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                    .unwrap_or_default();
                failures.push(format!("{}: {text}", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{} faults:\n{}", failures.len(), failures.join("\n"));
    eprintln!("{} Dockerfiles compared", cases.len());
}

/// The log and the walk make the same layers, step for step.
#[test]
fn the_walk_makes_the_same_layers_as_the_log() {
    if !host::require_host(&["docker-registry"]) {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let mut failures = Vec::new();
    for directory in cases() {
        let case = Case::prepare(directory, work, &base);
        // Times of what steps make differ between builds; a fixed epoch makes them agree.
        let build = |mode: &str| {
            let layout = work.join(&case.name).join(mode);
            succeed(
                host::yadokari()
                    .env("SOURCE_DATE_EPOCH", "1000000000")
                    .arg("build")
                    .arg("--context")
                    .arg(&case.context)
                    .arg("--dockerfile")
                    .arg(case.directory.join("Dockerfile"))
                    .arg("--cache-dir")
                    .arg(work.join(format!("cache-{mode}")))
                    .args(["--no-push", "--snapshot-mode", mode, "--oci-layout-path"])
                    .arg(&layout)
                    .args(&case.arguments),
            );
            Image::open(&layout).config["rootfs"]["diff_ids"].clone()
        };
        let (log, walk) = (build("log"), build("full"));
        if log != walk {
            failures.push(format!("{}: {log} / {walk}", case.name));
        }
    }
    assert!(failures.is_empty(), "other layers from the walk:\n{}", failures.join("\n"));
}
