//! The house has floors, and imports only point down: this scans the sources.
//!
//! The table is the one in `src/lib.rs`. A module that isn't in it fails the test,
//! and so does a grouped `use crate::{…}`, which the scan could not read.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Modules by floor. Modules of one floor don't know each other, with the
/// exceptions in [`SIDEWAYS`].
const FLOORS: &[(&str, u32)] = &[
    ("cli", 60),
    ("build", 50),
    ("step", 41),
    ("rootfs", 40),
    ("agent", 31),
    ("context", 31),
    ("fetch", 31),
    ("layout", 31),
    ("overlay", 31),
    ("registry", 31),
    ("sandbox", 31),
    ("store", 31),
    ("root_dir", 30),
    ("image", 20),
    ("layer", 20),
    ("plan", 20),
    ("snapshot", 20),
    ("address", 10),
    ("dockerfile", 10),
    ("ignore", 10),
    ("change", 1),
    ("oci", 0),
    ("path", 0),
    ("tree", 0),
];

/// Imports within one floor that are allowed, each with its reason.
const SIDEWAYS: &[(&str, &str, &str)] =
    &[("tree", "path", "a tree is walked by names"), ("oci", "tree", "times of history rows")];

fn floor(module: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a source directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Faults in `text`, a file of `module`.
fn faults(module: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let Some(own) = floor(module) else {
        return vec![format!("module {module} is on no floor")];
    };
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let mut rest = code;
        while let Some(at) = rest.find("crate::") {
            let before = rest[..at].chars().next_back();
            rest = &rest[at + "crate::".len()..];
            if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_') {
                continue;
            }
            let name: String = rest
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                .collect();
            if rest.starts_with('{') {
                faults.push(format!("line {}: grouped import of the crate", number + 1));
                continue;
            }
            let Some(other) = floor(&name) else {
                faults.push(format!("line {}: {name} is on no floor", number + 1));
                continue;
            };
            let sideways = SIDEWAYS.iter().any(|(from, to, _)| *from == module && *to == name);
            if name != module && other >= own && !sideways {
                faults.push(format!("line {}: {module} must not know {name}", number + 1));
            }
        }
    }
    faults
}

#[test]
fn imports_only_point_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50, "the scan found {} files", files.len());
    let mut all = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).expect("below src");
        let module = relative
            .components()
            .next()
            .and_then(|first| first.as_os_str().to_str())
            .expect("a name")
            .trim_end_matches(".rs")
            .to_owned();
        if module == "main" || module == "lib" {
            continue;
        }
        let text = fs::read_to_string(&file).expect("source text");
        all.extend(
            faults(&module, &text)
                .into_iter()
                .map(|fault| format!("{}: {fault}", relative.display())),
        );
    }
    assert!(all.is_empty(), "imports that point up or sideways:\n{}", all.join("\n"));
}

#[test]
fn the_scan_catches_planted_faults() {
    assert_eq!(faults("layer", "use crate::build::Error;").len(), 1);
    assert_eq!(faults("layer", "use crate::snapshot::Error;").len(), 1);
    assert_eq!(faults("layer", "use crate::{path, tree};").len(), 1);
    assert_eq!(faults("layer", "use crate::nowhere::X;").len(), 1);
    assert_eq!(faults("attic", "").len(), 1);
    assert_eq!(faults("layer", "use crate::path::Name; // crate::build").len(), 0);
    assert_eq!(faults("cli", "let x = yadokari_crate::y;").len(), 0);
}
