//! The cases under `tests/dockerfile/`, prepared for a builder.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use super::host;
use super::host::succeed;

/// Where the cases are.
pub(crate) const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dockerfile");

/// One case, its context copied to where builders may read it.
pub(crate) struct Case {
    pub(crate) name: String,
    /// The folder of the case.
    pub(crate) directory: PathBuf,
    /// A directory of its own, for results.
    pub(crate) work: PathBuf,
    /// What every builder is told: arguments that all of them know.
    pub(crate) arguments: Vec<String>,
}

impl Case {
    /// Copies the context below `work` and runs `setup` in it. `base` is the image
    /// that the build argument BASE names.
    pub(crate) fn prepare(directory: &Path, work: &Path, base: &str) -> Self {
        let name = directory.file_name().expect("a name").to_string_lossy().into_owned();
        let work = work.join(&name);
        let case = Self { name, directory: directory.to_owned(), work, arguments: Vec::new() };
        let context = case.context();
        fs::create_dir_all(&context).expect("a directory");
        let files = directory.join("context");
        if files.is_dir() {
            succeed(Command::new("cp").arg("-a").arg(files.join(".")).arg(&context));
        }
        host::set_mode(&context, 0o755);
        if let Some(script) = case.read("setup") {
            succeed(Command::new("sh").args(["-ec", &script]).current_dir(&context));
        }
        let mut arguments = vec!["--build-arg".to_owned(), format!("BASE={base}")];
        if directory.join("parent").exists() {
            let parent = case.push_parent(base);
            arguments.extend(["--build-arg".to_owned(), format!("PARENT={parent}")]);
        }
        let given = case.read("arguments").unwrap_or_default().replace("@BASE@", base);
        arguments.extend(given.split_whitespace().map(|word| case.filled(word)));
        Self { arguments, ..case }
    }

    /// Builds `parent`, pushes it beside `base` and gives its name.
    fn push_parent(&self, base: &str) -> String {
        let (registry, _) = base.rsplit_once('/').expect("HOST/base:latest");
        let parent = format!("{registry}/{}:latest", self.name);
        succeed(
            host::yadokari()
                .arg("build")
                .arg("--context")
                .arg(self.context())
                .arg("--dockerfile")
                .arg(self.directory.join("parent"))
                .arg("--cache-dir")
                .arg(self.work.join("parent-cache"))
                .args(["--build-arg", &format!("BASE={base}"), "--destination", &parent]),
        );
        parent
    }

    /// A word of `arguments` or `ours`, with the places in it filled in.
    pub(crate) fn filled(&self, word: &str) -> String {
        let secret = format!("src={}", self.work.join("secret").display());
        word.replace("@WORK@", &self.work.display().to_string()).replace("src=secret", &secret)
    }

    /// Text of a file of the case, if it has that file.
    pub(crate) fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.directory.join(file)).ok()
    }

    /// The copied build context.
    pub(crate) fn context(&self) -> PathBuf {
        self.work.join("context")
    }

    /// The Dockerfile.
    pub(crate) fn dockerfile(&self) -> PathBuf {
        self.directory.join("Dockerfile")
    }
}

/// The folders of all cases, sorted, or of the one that `YADOKARI_CASE` names.
pub(crate) fn all() -> Vec<PathBuf> {
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

/// Whether the case makes an image whose files come out of steps; the others are
/// refused, only checked, or about the image's config.
pub(crate) fn makes_files(directory: &Path) -> bool {
    let text = fs::read_to_string(directory.join("Dockerfile")).unwrap_or_default();
    let makes = |line: &str| {
        let word = line.split_whitespace().next().unwrap_or_default().to_uppercase();
        ["RUN", "COPY", "ADD", "WORKDIR", "ONBUILD"].contains(&word.as_str())
    };
    !directory.join("error").exists()
        && !directory.join("check").exists()
        && text.lines().any(makes)
}
