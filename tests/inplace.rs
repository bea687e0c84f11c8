//! Builds in the container's own root: the same images as in the overlay, found by the
//! recorder or by walking, without a privilege that a stock container lacks.
//!
//! Needs root, podman with runc, a static busybox and docker-registry. A container is
//! a directory with nothing but `/kaniko` and a busybox, Docker's default
//! capabilities and seccomp profile.

#[path = "support/cases.rs"]
mod cases;
#[path = "support/host.rs"]
mod host;
#[path = "support/image.rs"]
mod image;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use cases::CASES;
use cases::Case;
use host::succeed;
use image::Image;
use serde_json::Value;

/// Docker's defaults.
const CAPABILITIES: &str = "CHOWN,DAC_OVERRIDE,FSETID,FOWNER,MKNOD,NET_RAW,SETGID,SETUID,\
     SETFCAP,SETPCAP,NET_BIND_SERVICE,SYS_CHROOT,KILL,AUDIT_WRITE";

/// What kaniko needs.
const FEWEST: &str = "CHOWN,DAC_OVERRIDE,FOWNER,SETUID,SETGID,SETFCAP";

/// Cases that can't be the same without namespaces, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("run-mount-bind", "a bind mount is a copy, and root can write to it"),
    ("run-heredoc-script", "a container's /dev is noexec, so the script has another name"),
    ("heredoc-run-script-arguments", "so it has there"),
    ("run-network-none", "the network can't be taken away"),
    ("history-does-not-show-mounts", "the network can't be taken away"),
    ("arg-hostname", "the name of the host is the container's"),
    ("run-hosts-and-limits", "/etc/hosts and /dev/shm are the container's"),
    ("run-etc-files-are-read-only", "/etc/hosts and /etc/resolv.conf are the container's"),
    ("run-sees-the-sandbox", "what is seen is the container's"),
    ("mount-bind-file", "a bind mount is a copy, and root can write to it"),
    ("mount-cache-read-only", "root can write to what is read-only"),
    ("mount-tmpfs-size", "a tmpfs mount is a directory without a limit"),
];

const EPOCH: &str = "1000000000";

fn ready() -> bool {
    host::require_host(&["podman", "runc", "docker-registry"])
}

/// A stock container: its root is a directory of ours.
struct Container {
    root: tempfile::TempDir,
    work: PathBuf,
}

impl Container {
    /// With `work` mounted at its own path.
    fn new(work: &Path) -> Self {
        let root = tempfile::tempdir_in("/var/tmp").expect("a directory");
        host::set_mode(root.path(), 0o755);
        for directory in ["kaniko", "cache", "busybox", "bin", "etc", "tmp", "root"] {
            fs::create_dir_all(root.path().join(directory)).expect("a directory");
        }
        host::set_mode(&root.path().join("tmp"), 0o1777);
        let busybox = ["/bin/busybox", "/usr/bin/busybox"];
        let busybox = busybox.iter().find(|path| Path::new(path).exists()).expect("busybox");
        fs::copy(busybox, root.path().join("busybox/busybox")).expect("busybox");
        fs::hard_link(root.path().join("busybox/busybox"), root.path().join("busybox/sh"))
            .expect("a shell");
        Self { root, work: work.to_owned() }
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    fn command(&self, capabilities: &str, options: &[&str], words: &[String]) -> Command {
        let mut command = Command::new("podman");
        command
            .args(["run", "--rm", "--runtime", "runc", "--network", "host"])
            .args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"])
            .args(["--cap-drop", "ALL", "--cap-add", capabilities])
            .args(["--env", "PATH=/usr/local/bin:/kaniko:/busybox", "--env", "HOME=/root"])
            .args(["--env", &format!("SOURCE_DATE_EPOCH={EPOCH}")])
            .arg("--volume")
            .arg(format!("{0}:{0}", self.work.display()))
            .arg("--volume")
            .arg(format!("{0}:{0}:ro", CASES))
            .arg("--volume")
            .arg(format!("{}:/kaniko/executor:ro", env!("CARGO_BIN_EXE_yadokari")))
            .args(options)
            .arg("--rootfs")
            .arg(self.path())
            .args(words);
        command
    }

    /// Runs a shell script, as a CI job does.
    fn script(&self, text: &str) -> Output {
        let path = self.work.join("job.sh");
        fs::write(&path, text).expect("a script");
        let words = ["/busybox/sh".to_owned(), path.display().to_string()];
        self.command(CAPABILITIES, &[], &words).output().expect("podman")
    }

    /// What differs between the files here and those of `image`; what isn't the
    /// image's is left out.
    fn differences(&self, image: &Image) -> Vec<String> {
        let outside = |path: &str| {
            ["/proc", "/sys", "/dev", "/kaniko", "/cache", "/busybox", "/run/.containerenv"]
                .iter()
                .map(|outside| (*outside).to_owned())
                .chain([self.work.display().to_string(), CASES.to_owned()])
                .any(|outside| path == outside || path.starts_with(&format!("{outside}/")))
                || ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab"].contains(&path)
                || [self.work.as_path(), Path::new(CASES)].iter().any(|at| at.starts_with(path))
        };
        let mut expected = image.flatten();
        expected.retain(|path, _| !outside(path));
        let mut found = BTreeMap::new();
        let mut pending = vec![PathBuf::from("/")];
        while let Some(path) = pending.pop() {
            let at = self.path().join(path.strip_prefix("/").expect("absolute"));
            for entry in fs::read_dir(&at).expect("a directory") {
                let name = entry.expect("an entry").file_name();
                let below = path.join(&name);
                let shown = below.to_string_lossy().into_owned();
                if outside(&shown) {
                    continue;
                }
                let (text, content) = described(&at.join(&name));
                if text.starts_with("directory") {
                    pending.push(below);
                }
                if !text.starts_with("socket") {
                    found.insert(shown, (text, content));
                }
            }
        }
        let mut differences = Vec::new();
        for (path, entry) in &expected {
            match found.remove(path) {
                None => differences.push(format!("{path}: only in the image: {}", entry.text)),
                Some((text, content)) if text != entry.text || content != entry.content => {
                    differences
                        .push(format!("{path}: {} in the image, {text} on disk", entry.text));
                }
                Some(_) => {}
            }
        }
        // Directories of the container itself were there before.
        let own = ["/bin", "/etc", "/tmp", "/root", "/run", "/var", "/var/tmp"];
        found.retain(|path, (text, _)| {
            !(own.contains(&path.as_str()) && text.starts_with("directory"))
        });
        differences
            .extend(found.iter().map(|(path, (text, _))| format!("{path}: only on disk: {text}")));
        differences
    }
}

/// A file as [`image::Entry`] describes it.
fn described(path: &Path) -> (String, Vec<u8>) {
    let seen = fs::symlink_metadata(path).expect("there");
    let (kind, mode) = (seen.file_type(), seen.mode() & 0o7777);
    let owner = format!("{}:{}", seen.uid(), seen.gid());
    let device =
        || format!("{}:{}", rustix::fs::major(seen.rdev()), rustix::fs::minor(seen.rdev()));
    if kind.is_dir() {
        (format!("directory {mode:04o} {owner}"), Vec::new())
    } else if kind.is_symlink() {
        let target = fs::read_link(path).expect("a link");
        (format!("link {owner} -> {}", target.display()), Vec::new())
    } else if kind.is_char_device() {
        (format!("character {mode:04o} {owner} {}", device()), Vec::new())
    } else if kind.is_block_device() {
        (format!("block {mode:04o} {owner} {}", device()), Vec::new())
    } else if kind.is_fifo() {
        (format!("fifo {mode:04o} {owner}"), Vec::new())
    } else if kind.is_socket() {
        ("socket".to_owned(), Vec::new())
    } else {
        let mut value = [0; 64];
        let capability = match rustix::fs::lgetxattr(path, "security.capability", &mut value) {
            Ok(length) => format!(" capability {:?}", &value[..length]),
            Err(_) => String::new(),
        };
        (format!("file {mode:04o} {owner}{capability}"), fs::read(path).expect("a file"))
    }
}

/// What the builder is told to build a case.
fn words(case: &Case) -> Vec<String> {
    let own = case.read("ours").unwrap_or_default();
    ["--context".to_owned(), case.context().display().to_string(), "--dockerfile".to_owned()]
        .into_iter()
        .chain([case.dockerfile().display().to_string(), "--no-push".to_owned()])
        .chain(case.arguments.iter().cloned())
        .chain(own.split_whitespace().map(|word| case.filled(word)))
        .collect()
}

/// The cases in which processes run.
fn cases() -> Vec<PathBuf> {
    let runs = |path: &PathBuf| {
        let text = fs::read_to_string(path.join("Dockerfile")).expect("a Dockerfile");
        text.lines().any(|line| line.trim_start().to_uppercase().starts_with("RUN "))
    };
    let differs = |path: &PathBuf| DIFFERENT.iter().any(|(name, _)| path.ends_with(name));
    let mut all = cases::all();
    all.retain(|path| cases::makes_files(path) && runs(path) && !differs(path));
    all
}

fn manifest(layout: &Path) -> Value {
    let index = fs::read(layout.join("index.json")).unwrap_or_default();
    let index: Value = serde_json::from_slice(&index).unwrap_or_default();
    index["manifests"][0]["digest"].clone()
}

fn quoted(words: &[String]) -> String {
    words.iter().map(|word| format!("'{word}' ")).collect()
}

/// All of them one after another in one container, as a long-lived runner does.
#[test]
fn every_root_and_recorder_makes_the_same_bytes() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let cases: Vec<Case> =
        cases().iter().map(|directory| Case::prepare(directory, work, &base)).collect();
    let layout = |case: &Case, mode: &str| work.join(&case.name).join(mode);
    for case in &cases {
        succeed(
            host::yadokari()
                .env("SOURCE_DATE_EPOCH", EPOCH)
                .args(["build", "--root=overlay", "--cache-dir"])
                .arg(work.join("cache-overlay"))
                .arg("--oci-layout-path")
                .arg(layout(case, "overlay"))
                .args(words(case)),
        );
    }
    let mut faults = Vec::new();
    for mode in ["log", "full"] {
        let container = Container::new(work);
        let mut script = String::new();
        for case in &cases {
            let out = layout(case, mode);
            let _ = writeln!(
                script,
                "/kaniko/executor --cache-dir /cache --snapshot-mode {mode} --oci-layout-path {} \
                 {} 2>{}.log || echo {} failed",
                out.display(),
                quoted(&words(case)),
                out.display(),
                case.name,
            );
        }
        let output = container.script(&script);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for case in &cases {
            let (expected, found) =
                (manifest(&layout(case, "overlay")), manifest(&layout(case, mode)));
            if expected != found || expected.is_null() {
                let log = layout(case, mode).display().to_string() + ".log";
                let log = fs::read_to_string(log).unwrap_or_default();
                faults.push(format!("{} {mode}: {expected} / {found}\n{log}", case.name));
            }
        }
    }
    assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), faults.join("\n"));
}

/// Programs that write in many ways, from threads, through renamed directories and
/// links; `N` seeds them.
const PROGRAM: &str = r#"
seed=N
next() { seed=$(( (seed * 1103515245 + 12345) % 2147483648 )); echo $(( seed / 65536 % $1 )); }
mkdir -p /w/a/b /w/c /usr/new
i=0
while [ $i -lt 120 ]; do
  i=$((i + 1))
  p=/w/$(next 3)/$(next 4); q=/w/$(next 3)/$(next 4)
  mkdir -p "${p%/*}" "${q%/*}"
  case $(next 14) in
    0) [ -d "$p" ] || echo "$i" > "$p" ;;
    1) [ -d "$p" ] || echo more >> "$p" ;;
    2) rm -rf "$p" ;;
    3) mv "$p" "$q" 2>/dev/null || true ;;
    4) [ -d "$p" ] || ln -f "$p" "$q" 2>/dev/null || true ;;
    5) rm -rf "$p"; ln -s "../$(next 3)/$(next 4)" "$p" ;;
    6) chmod 0$(next 8)75 "$p" 2>/dev/null || true ;;
    7) chown $(next 9):$(next 9) "$p" 2>/dev/null || true ;;
    8) rm -rf "$p"; mkdir -p "$p/x/y"; echo deep > "$p/x/y/z" ;;
    9) mv /w/0 /w/moved; echo "$i" > /w/moved/inside; mv /w/moved /w/0 ;;
    10) rm -rf "$p"; mkfifo "$p" ;;
    11) (cd "${p%/*}" && echo "$i" > relative$(next 3)) & wait ;;
    12) [ -d "$p" ] || { cp -p "$p" /w/keep && echo same > "$p" && touch -r /w/keep "$p"; } 2>/dev/null || true ;;
    13) mv /w/1 /w/t && mv /w/0 /w/1 && mv /w/t /w/0 ;;
  esac
done
rm /etc/group.old 2>/dev/null || true
sed -i 's/Bob/Robert/' /etc/passwd
ln -f /bin/busybox /usr/new/busybox
for n in 1 2 3 4 5 6 7 8; do (j=0; while [ $j -lt 20 ]; do echo $j > /w/fork$n-$j; [ $((j % 3)) = 0 ] && rm /w/fork$n-$j; j=$((j + 1)); done) & done; wait
true
"#;

/// What is on disk when the build has ended is what the layers hold, for programs of
/// every kind: nothing was missed and nothing was made up. Recorded, not walked.
#[test]
fn the_recorder_misses_nothing() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("random");
    fs::create_dir_all(&context).expect("a directory");
    let mut dockerfile = format!("FROM {base}\n");
    for seed in 1..=12 {
        fs::write(context.join(format!("p{seed}.sh")), PROGRAM.replace('N', &seed.to_string()))
            .expect("a program");
        let _ = write!(dockerfile, "COPY p{seed}.sh /p.sh\nRUN sh /p.sh\n");
    }
    fs::write(context.join("Dockerfile"), dockerfile).expect("a Dockerfile");
    let container = Container::new(work);
    let out = work.join("random-out");
    let words: Vec<String> = ["/kaniko/executor", "--no-push", "--verbosity=debug", "--context"]
        .into_iter()
        .map(str::to_owned)
        .chain([context.display().to_string(), "--oci-layout-path".to_owned()])
        .chain([out.display().to_string()])
        .collect();
    let output = succeed(&mut container.command(CAPABILITIES, &[], &words));
    let told = String::from_utf8_lossy(&output.stderr);
    let differences = container.differences(&Image::open(&out));
    assert!(differences.is_empty(), "{}\n{told}", differences.join("\n"));
    let walked = told.matches("the whole root was compared").count();
    assert!(walked < 12, "every step was walked:\n{told}");
    eprintln!("{walked} of 12 steps were walked");
}

/// The capabilities that kaniko needs are enough, and what a failed build left isn't
/// seen by the next one.
#[test]
fn few_capabilities_are_enough_and_a_failed_step_leaves_nothing() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let container = Container::new(work);
    let build = |name: &str, text: &str| {
        let context = work.join(name);
        fs::create_dir_all(&context).expect("a directory");
        fs::write(context.join("Dockerfile"), text).expect("a Dockerfile");
        let out = work.join(format!("{name}-out"));
        let words: Vec<String> = ["/kaniko/executor", "--no-push", "--context"]
            .into_iter()
            .map(str::to_owned)
            .chain([context.display().to_string(), "--oci-layout-path".to_owned()])
            .chain([out.display().to_string()])
            .collect();
        let output = container.command(FEWEST, &[], &words).output().expect("podman");
        (output, out)
    };
    let (failed, _) =
        build("fails", &format!("FROM {base}\nRUN echo x > /left && rm /bin/ls && exit 7\n"));
    assert_eq!(failed.status.code(), Some(7), "{}", String::from_utf8_lossy(&failed.stderr));
    let text = format!(
        "FROM {base}\nRUN test ! -e /left && test -e /bin/ls && mkdir -m 777 /pub\n\
         USER bob\nRUN id -un > /pub/who && (sleep 600 &) && ! touch /etc/forbidden\n\
         USER root\nRUN chown 5:6 /pub/who && su bob -c 'echo e > /pub/eve'\n"
    );
    let (output, out) = build("few", &text);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let image = Image::open(&out);
    let differences = container.differences(&image);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    let tree = image.flatten();
    assert_eq!(tree["/pub/who"].content, b"bob\n");
    assert_eq!(tree["/pub/who"].text, "file 0644 5:6");
    assert_eq!(tree["/pub/eve"].content, b"e\n");
    // Another base in the same root: nothing of the first one is left.
    let busybox = fs::read_dir(container.path().join("bin")).expect("bin").count();
    assert!(busybox > 50, "the base was unpacked");
    let next = work.join("next");
    fs::create_dir_all(&next).expect("a directory");
    fs::copy(container.path().join("busybox/busybox"), next.join("busybox")).expect("busybox");
    let (output, out) = build(
        "next",
        "FROM scratch\nCOPY busybox /b/busybox\nRUN [\"/b/busybox\", \"ls\", \"/\"]\nRUN [\"/b/busybox\", \"mkdir\", \"/made\"]\n",
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let differences = container.differences(&Image::open(&out));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
