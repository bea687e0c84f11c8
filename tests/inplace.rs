//! The same images in every root: in the overlay, in an overlay in a user namespace, in
//! the container's own root recorded and walked, without a privilege that a stock
//! container lacks.
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
    host::require_host(&["podman", "runc", "docker-registry", "newuidmap", "setpriv"])
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
        let times = image::times(image);
        // No layer holds a later time.
        let clamped = |time: i64| time.min(EPOCH.parse().expect("a number"));
        for (path, entry) in &expected {
            let on_disk = fs::symlink_metadata(self.path().join(path.trim_start_matches('/')));
            if let Ok(seen) = on_disk
                && clamped(seen.mtime()) != clamped(times[path])
            {
                differences.push(format!(
                    "{path}: {} s in the image, {} s on disk",
                    times[path],
                    seen.mtime()
                ));
            }
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

/// How many cases are built in every mode; `YADOKARI_ALL_CASES` builds all.
const CHOSEN: usize = 60;

/// The cases in which processes run: some, at equal distances of the alphabet, without
/// `YADOKARI_ALL_CASES`.
fn cases() -> Vec<PathBuf> {
    let runs = |path: &PathBuf| {
        let text = fs::read_to_string(path.join("Dockerfile")).expect("a Dockerfile");
        text.lines().any(|line| line.trim_start().to_uppercase().starts_with("RUN "))
    };
    let differs = |path: &PathBuf| DIFFERENT.iter().any(|(name, _)| path.ends_with(name));
    let mut all = cases::all();
    all.retain(|path| cases::makes_files(path) && runs(path) && !differs(path));
    if std::env::var_os("YADOKARI_ALL_CASES").is_some() || all.len() <= CHOSEN {
        return all;
    }
    let length = all.len();
    let taken = |index: usize| index * CHOSEN / length != (index + 1) * CHOSEN / length;
    let chosen = all.into_iter().enumerate().filter(|(index, _)| taken(*index));
    chosen.map(|(_, case)| case).collect()
}

/// Only the root of the host makes device nodes.
fn needs_no_devices(case: &Case) -> bool {
    !case.read("Dockerfile").expect("a Dockerfile").contains("mknod")
}

fn manifest(layout: &Path) -> Value {
    let index = fs::read(layout.join("index.json")).unwrap_or_default();
    let index: Value = serde_json::from_slice(&index).unwrap_or_default();
    index["manifests"][0]["digest"].clone()
}

fn quoted(words: &[String]) -> String {
    words.iter().map(|word| format!("'{word}' ")).collect()
}

/// In place all of them one after another in one container, as a long-lived runner does.
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
        faults.extend(differing(&cases, mode, &layout));
    }
    for (mode, ids) in [("all-ids", Ids::All), ("subordinate-ids", Ids::Subordinate)] {
        let user = Unprivileged::new(work, ids);
        let cases: Vec<&Case> = cases.iter().filter(|case| needs_no_devices(case)).collect();
        let mut script = String::new();
        for case in &cases {
            let out = user.out(&case.name, mode);
            let _ = writeln!(
                script,
                "./yadokari build --cache-dir {mode} --oci-layout-path {out} {} 2>{out}.log || \
                 echo {} failed",
                quoted(&user.words(&words(case))),
                case.name,
            );
        }
        succeed(&mut user.script(&script));
        let layout = |case: &Case, mode: &str| match mode {
            "overlay" => layout(case, mode),
            mode => work.join(user.out(&case.name, mode)),
        };
        faults.extend(differing(cases, mode, &layout));
    }
    assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), faults.join("\n"));
}

/// Cases whose manifest isn't the same in `mode` as in the overlay, with its log.
fn differing<'a>(
    cases: impl IntoIterator<Item = &'a Case>,
    mode: &str,
    layout: &dyn Fn(&Case, &str) -> PathBuf,
) -> Vec<String> {
    let compare = |case: &Case| {
        let (expected, found) = (manifest(&layout(case, "overlay")), manifest(&layout(case, mode)));
        let log = layout(case, mode).display().to_string() + ".log";
        let log = fs::read_to_string(log).unwrap_or_default();
        (expected != found || expected.is_null())
            .then(|| format!("{} {mode}: {expected} / {found}\n{log}", case.name))
    };
    cases.into_iter().filter_map(compare).collect()
}

/// Which ids a builder without the right to mount has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// Root of a container: all that the container has.
    All,
    /// Root of a container that may not set users: all groups, and one user.
    Groups,
    /// A user with subordinate ids.
    Subordinate,
    /// A user without.
    Single,
}

/// A builder that may not mount: the machine's own files, without CAP_SYS_ADMIN.
struct Unprivileged {
    work: PathBuf,
    ids: Ids,
}

/// A user that the machine has not.
const USER: u32 = 424_242;

impl Unprivileged {
    /// Works in `work/user`, where it finds the cases, the builder and a FUSE device
    /// that everybody may open.
    fn new(work: &Path, ids: Ids) -> Self {
        let own = work.join("user");
        for directory in ["cases", "home", "out"] {
            fs::create_dir_all(own.join(directory)).expect("a directory");
        }
        for file in ["yadokari", "fuse"] {
            fs::write(own.join(file), "").expect("a mount point");
        }
        host::set_mode(work, 0o755);
        let passwd = fs::read_to_string("/etc/passwd").expect("passwd");
        let line = format!("{passwd}ana:x:{USER}:{USER}::/:/bin/sh\n");
        fs::write(own.join("passwd"), line).expect("passwd");
        let ids_of = match ids {
            Ids::Subordinate => "ana:500000:65536\n",
            Ids::All | Ids::Groups | Ids::Single => "",
        };
        fs::write(own.join("subid"), ids_of).expect("subuid");
        Self { work: work.to_owned(), ids }
    }

    fn out(&self, case: &str, mode: &str) -> String {
        format!("user/out/{case}-{mode}")
    }

    /// The same arguments where the cases are.
    fn words(&self, words: &[String]) -> Vec<String> {
        let cases = self.work.join("user/cases").display().to_string();
        words.iter().map(|word| word.replace(CASES, &cases)).collect()
    }

    /// Runs a shell script in `work`. Mounts are gone when it ends.
    fn script(&self, text: &str) -> Command {
        let owner = if matches!(self.ids, Ids::All | Ids::Groups) { 0 } else { USER };
        let prepare = format!(
            "chown -hR {owner}:{owner} .\n\
             mount --bind {CASES} user/cases; mount --bind {} user/yadokari\n\
             mknod -m 666 user/node c 10 229; mount --bind user/node /dev/fuse; rm user/node\n\
             mount --bind user/passwd /etc/passwd\n\
             touch /etc/subuid /etc/subgid\n\
             mount --bind user/subid /etc/subuid; mount --bind user/subid /etc/subgid\n\
             ln -sf user/yadokari yadokari; export HOME=$PWD/user/home SOURCE_DATE_EPOCH={EPOCH}\n",
            env!("CARGO_BIN_EXE_yadokari"),
        );
        let become_it = match self.ids {
            Ids::All => "--bounding-set=-sys_admin,-sys_ptrace".to_owned(),
            Ids::Groups => "--bounding-set=-sys_admin,-sys_ptrace,-setuid".to_owned(),
            // What the user makes is the user's.
            Ids::Subordinate | Ids::Single => {
                format!("--reuid={USER} --regid={USER} --clear-groups")
            }
        };
        fs::write(self.work.join("job.sh"), text).expect("a script");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-ec"])
            .arg(format!("{prepare}exec setpriv {become_it} sh job.sh",));
        command.current_dir(&self.work);
        command
    }
}

/// A user with one id gets the same bytes where no other owner is given, and a clear no
/// where one is.
#[test]
fn one_id_alone_builds_the_same_or_says_what_it_lacks() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("single");
    fs::create_dir_all(&context).expect("a directory");
    fs::write(context.join("file"), "text\n").expect("a file");
    let same = format!(
        "FROM {base}\nCOPY --chown=5:6 file /five\nRUN echo x > /made && rm /bin/vi && \
         stat -c %u /etc > /owner\nRUN touch /home/bob/mine 2>/dev/null || mkdir /tmp/d\n"
    );
    let build = |name: &str, text: &str| {
        fs::write(context.join(name), text).expect("a Dockerfile");
        format!("--context {0} --dockerfile {0}/{name} --no-push", context.display())
    };
    let same = build("same", &same);
    let user = build("user", &format!("FROM {base}\nUSER bob\nRUN true\n"));
    let chown = build("chown", &format!("FROM {base}\nRUN touch /x && chown bob /x\n"));
    let quiet = build("quiet", &format!("FROM {base}\nRUN touch /x && (chown bob /x || true)\n"));
    let words: Vec<&str> = same.split_whitespace().collect();
    succeed(
        host::yadokari()
            .env("SOURCE_DATE_EPOCH", EPOCH)
            .args(["build", "--root=overlay", "--oci-layout-path"])
            .arg(work.join("expected"))
            .arg("--cache-dir")
            .arg(work.join("cache-root"))
            .args(words),
    );
    let single = Unprivileged::new(work, Ids::Single);
    let run = |words: &str| {
        let script = format!("./yadokari build --cache-dir user/cache {words}");
        single.script(&script).output().expect("unshare")
    };
    let told = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let output = run(&format!("{same} --oci-layout-path user/out/same"));
    assert!(output.status.success(), "{}", told(&output));
    assert!(told(&output).contains("one id alone"), "{}", told(&output));
    assert_eq!(manifest(&work.join("expected")), manifest(&work.join("user/out/same")));
    let output = run(&user);
    assert!(!output.status.success());
    assert!(told(&output).contains("doesn't map"), "{}", told(&output));
    for words in [&chown, &quiet] {
        let output = run(words);
        assert!(!output.status.success(), "another owner was silently lost");
        assert!(told(&output).contains("1500"), "{}", told(&output));
    }
    // That all groups are there, and may be set, gives no file to another user.
    let groups = Unprivileged::new(work, Ids::Groups);
    let script = format!("./yadokari build --cache-dir user/cache-groups {quiet}");
    let output = groups.script(&script).output().expect("unshare");
    assert!(!output.status.success(), "another owner was silently lost");
    assert!(told(&output).contains("1500"), "{}", told(&output));
}

/// What a step in an overlay must not see, in the files and in `/proc`.
const PRY: &str = r#"
clean() { [ -z "$1" ] || { echo "seen: $1"; exit 1; }; }
clean "$(find / -xdev -type f -exec grep -lE 'MAR[K]_' {} + 2>/dev/null)"
clean "$(cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | grep -E 'MAR[K]_')"
clean "$(for p in /proc/[0-9]*; do readlink $p/root; readlink $p/cwd; done | grep -v '^/$')"
clean "$(for f in /proc/[0-9]*/fd/*; do readlink $f; done | grep -E 'cache|config.json|fuse')"
clean "$(env | grep 'MAR[K]')"
test ! -e "$WORK" && test ! -e /run/secrets/token
"#;

/// In an overlay a step finds neither credentials nor the cache nor other stages nor
/// secrets of other steps nor the builder's environment, whether the builder is root or
/// has a user namespace of its own.
#[test]
fn a_step_in_an_overlay_sees_nothing_that_was_not_given_to_it() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("pry");
    let credentials = work.join("credentials");
    for directory in [&context, &credentials] {
        fs::create_dir_all(directory).expect("a directory");
    }
    let config = r#"{"auths":{"example.com":{"username":"a","password":"MARK_CREDENTIALS"}}}"#;
    fs::write(credentials.join("config.json"), config).expect("credentials");
    fs::write(work.join("secret"), "MARK_SECRET").expect("a secret");
    fs::write(context.join("other"), "MARK_CONTEXT").expect("a file");
    fs::write(context.join("pry"), PRY).expect("a script");
    let dockerfile = format!(
        "FROM {base} AS other\nCOPY other /other\n\
         RUN --mount=type=secret,id=token grep -q MARK_ /run/secrets/token && echo MARK_STAGE > /s && \
         touch /done\n\
         FROM {base}\nCOPY --from=other /done /done\nCOPY pry /pry\n\
         RUN WORK={} sh -e /pry\nUSER bob\nRUN WORK={} sh -e /pry\n",
        work.display(),
        work.display()
    );
    fs::write(context.join("Dockerfile"), dockerfile).expect("a Dockerfile");
    let words = format!(
        "build --root=overlay --no-push --context {} --secret id=token,src={}",
        context.display(),
        work.join("secret").display()
    );
    succeed(
        host::yadokari()
            .env("MARK_ENVIRONMENT", "MARK_ENVIRONMENT")
            .env("DOCKER_CONFIG", &credentials)
            .args(words.split(' '))
            .arg("--cache-dir")
            .arg(work.join("cache-MARK_NAME")),
    );
    let script = format!(
        "export MARK_ENVIRONMENT=MARK_ENVIRONMENT DOCKER_CONFIG={}\n\
         ./yadokari {words} --cache-dir user/cache-MARK_NAME",
        credentials.display()
    );
    for ids in [Ids::All, Ids::Subordinate] {
        fs::remove_dir_all(work.join("user")).unwrap_or_default();
        succeed(&mut Unprivileged::new(work, ids).script(&script));
    }
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

/// Ways of `tests/support/writer.c`, and whether such a step may be walked: links may have
/// changed while threads used them, or lead who knows where.
const WAYS: &[(&str, bool)] = &[
    ("threads", true),
    ("forks", false),
    ("races", false),
    ("deep", false),
    ("proc", false),
    ("detours", true),
    ("descriptors", false),
    ("attributes", false),
    ("user", false),
    ("links", false),
];

/// Builds in place and compares the disk with the image; gives what was told.
fn build_and_compare(work: &Path, name: &str) -> String {
    let context = work.join(name);
    let container = Container::new(work);
    let out = work.join(format!("{name}-out"));
    let words: Vec<String> = ["/kaniko/executor", "--no-push", "--verbosity=debug", "--context"]
        .into_iter()
        .map(str::to_owned)
        .chain([context.display().to_string(), "--oci-layout-path".to_owned()])
        .chain([out.display().to_string()])
        .collect();
    let output = succeed(&mut container.command(CAPABILITIES, &[], &words));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let differences = container.differences(&Image::open(&out));
    assert!(differences.is_empty(), "{}\n{told}", differences.join("\n"));
    told
}

/// Threads, storms of forks, races of renames, deep trees, descriptors that travel,
/// links of `/proc`, another user: nothing missed, and all of it recorded.
#[test]
fn what_a_c_program_can_think_of_is_recorded() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("writer");
    fs::create_dir_all(&context).expect("a directory");
    compile_writer(&context);
    for seed in 1..=3 {
        for (way, may_be_walked) in WAYS {
            let dockerfile = format!(
                "FROM {base}\nCOPY writer /writer\nRUN mkdir -p /base/d /base/e /still/d /still/e /kept/d /kept/e /kept/n/d && \
                 cd /base && echo old > /kept/file && for f in a b c own capable; do echo $f > $f; echo $f > /kept/$f; done; \
                 ln /kept/file /kept/other; echo still > /still/d/file; echo n > /kept/n/d/file; \
                 chown 1500 own; ln -s /proc/self/fd link; /writer capability /kept/capable\n\
                 RUN /writer {way} {seed}\nRUN mv /base /gone && rm -rf /w/1\n"
            );
            fs::write(context.join("Dockerfile"), dockerfile).expect("a Dockerfile");
            let told = build_and_compare(work, "writer");
            let walked = told.contains("the whole root was compared");
            assert!(*may_be_walked || !walked, "{way} was walked:\n{told}");
            assert!(told.contains("by=Names"), "nothing is watched:\n{told}");
            fs::remove_dir_all(work.join("writer-out")).expect("a layout");
        }
    }
}

/// The program `writer` in a context.
fn compile_writer(context: &Path) {
    succeed(
        Command::new("cc")
            .args(["-O1", "-static", "-pthread", "-o"])
            .arg(context.join("writer"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/writer.c")),
    );
}

/// A program of this machine in a context, with the libraries that it needs.
fn bring(context: &Path, programs: &[&str]) {
    for program in programs {
        let found = succeed(Command::new("sh").args(["-c", &format!("command -v {program}")]));
        let path = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        // A static one has none.
        let libraries = Command::new("ldd").arg(&path).output().expect("ldd");
        let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
        let needed = libraries
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
            .chain([path.as_str()]);
        for file in needed {
            let to = context.join("root").join(file.trim_start_matches('/'));
            fs::create_dir_all(to.parent().expect("a parent")).expect("a directory");
            fs::copy(file, &to).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
    }
}

/// Real programs that write much, with another user's tools: git and dpkg of this
/// machine. `scripts/stock` does it with apt, pip and npm.
#[test]
fn git_and_dpkg_are_recorded() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("tools");
    fs::create_dir_all(context.join("root")).expect("a directory");
    bring(
        &context,
        &["git", "git-upload-pack", "dpkg", "dpkg-deb", "dpkg-split", "tar", "rm", "diff"],
    );
    let package = work.join("package");
    fs::create_dir_all(package.join("DEBIAN")).expect("a directory");
    fs::create_dir_all(package.join("usr/share/made/deep")).expect("a directory");
    for number in 0..200 {
        let file = package.join(format!("usr/share/made/deep/{number}"));
        fs::write(file, number.to_string()).expect("a file");
    }
    let control = |version: u32| {
        let text = format!(
            "Package: made\nVersion: {version}\nArchitecture: all\nMaintainer: n <n@example.com>\n\
             Description: made for a test\n"
        );
        fs::write(package.join("DEBIAN/control"), text).expect("control");
        let deb = context.join(format!("{version}.deb"));
        succeed(
            Command::new("dpkg-deb").arg("--root-owner-group").arg("-b").arg(&package).arg(deb),
        );
    };
    control(1);
    fs::remove_file(package.join("usr/share/made/deep/7")).expect("a file");
    fs::write(package.join("usr/share/made/deep/8"), "other").expect("a file");
    control(2);
    let dockerfile = format!(
        "FROM {base}\nCOPY root /\nCOPY *.deb /debs/\n\
         ENV GIT_AUTHOR_NAME=n GIT_AUTHOR_EMAIL=e GIT_COMMITTER_NAME=n GIT_COMMITTER_EMAIL=e\n\
         RUN mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/log /usr/sbin && \
         touch /var/lib/dpkg/status && for p in ldconfig start-stop-daemon update-rc.d; do \
         printf '#!/bin/sh\\n' > /usr/sbin/$p; chmod +x /usr/sbin/$p; done\n\
         RUN PATH=$PATH:/usr/sbin:/sbin dpkg -i /debs/1.deb\n\
         RUN PATH=$PATH:/usr/sbin:/sbin dpkg -i /debs/2.deb\n\
         RUN git init -q /r && cd /r && for n in 1 2 3 4 5 6; do cp -r /usr/share/made d$n; \
         git add -A; git commit -qm $n; done; git checkout -q -b side HEAD~3 && echo s > s && \
         git add s && git commit -qm side && git checkout -q - && git merge -q -m m side && \
         git gc -q && git clone -q /r /clone && git mv d1 moved && git commit -qam moved\n\
         RUN PATH=$PATH:/usr/sbin:/sbin dpkg --purge made && cd /clone && git reset -q --hard HEAD~2\n"
    );
    fs::write(context.join("Dockerfile"), dockerfile).expect("a Dockerfile");
    let told = build_and_compare(work, "tools");
    assert!(!told.contains("the whole root was compared"), "{told}");
}

/// npm of this machine in a context, with what it is made of.
fn bring_npm(context: &Path) {
    bring(context, &["node"]);
    let found = succeed(Command::new("sh").args(["-c", "readlink -f \"$(command -v npm)\""]));
    let program = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
    // Debian keeps each of its parts as a package of its own.
    let shared = Path::new("/usr/share/nodejs");
    let parts = match program.starts_with(shared) {
        true => shared,
        false => program.ancestors().nth(2).expect("npm/bin/npm-cli.js"),
    };
    let to = context.join("root").join(parts.strip_prefix("/").expect("absolute"));
    fs::create_dir_all(to.parent().expect("a parent")).expect("a directory");
    succeed(Command::new("cp").arg("-a").arg(parts).arg(to));
    let bin = context.join("root/usr/local/bin");
    fs::create_dir_all(&bin).expect("a directory");
    for name in ["npm", "npx"] {
        let program = program.with_file_name(format!("{name}-cli.js"));
        std::os::unix::fs::symlink(program, bin.join(name)).expect("a link");
    }
}

/// A tree of modules that is installed, taken away and installed again by threads of node:
/// the scripts of `tests/programs/npm`, offline.
#[test]
fn npm_is_recorded() {
    if !ready() || !host::require_host(&["node", "npm"]) {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("npm");
    fs::create_dir_all(context.join("root")).expect("a directory");
    bring_npm(&context);
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/npm");
    succeed(Command::new("cp").arg("-r").arg(scripts).arg(context.join("scripts")));
    let dockerfile = format!(
        "FROM {base}\nCOPY root /\nCOPY scripts /scripts\nENV HOME=/mnt/home\n\
         RUN ln -s /bin/env /usr/bin/env && mkdir -p $HOME\nWORKDIR /mnt\n\
         RUN sh -e /scripts/lower.sh\nRUN sh -e /scripts/1-ci.sh\nRUN sh -e /scripts/2-change.sh\n"
    );
    fs::write(context.join("Dockerfile"), dockerfile).expect("a Dockerfile");
    let told = build_and_compare(work, "npm");
    assert!(!told.contains("the whole root was compared"), "{told}");
    assert!(told.contains("tool says four"), "{told}");
}

/// A build in the container's own root, its words after the executable's.
fn in_place(context: &Path, cache: &Path, out: &Path) -> Vec<String> {
    let words = ["--no-push", "--log-format=text", "--context"].map(str::to_owned);
    let options = [("--cache-dir", cache), ("--oci-layout-path", out)];
    let options = options
        .into_iter()
        .flat_map(|(option, path)| [option.to_owned(), path.display().to_string()]);
    words.into_iter().chain([context.display().to_string()]).chain(options).collect()
}

/// Runs one with `options` for the container; gives what it told.
fn run_in_place(work: &Path, options: &[&str], words: Vec<String>) -> String {
    let words: Vec<String> = ["/kaniko/executor".to_owned()].into_iter().chain(words).collect();
    let container = Container::new(work);
    let output = succeed(&mut container.command(CAPABILITIES, options, &words));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A mount of the container is in no layer, though in another root it would be: what a
/// step did there is told, and nobody gets the step from the cache.
#[test]
fn a_step_that_writes_to_a_mount_of_the_container_is_not_kept() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("mounted");
    fs::create_dir_all(&context).expect("a directory");
    let inside = work.join("there");
    // What is gone when the step ends is in no layer anywhere, nor is what was there.
    let kept = "RUN mkdir -p {0} && echo a > {0}/passing && mv {0}/passing {0}/gone && \
                rm {0}/gone && echo a > /a\n";
    let unkept = ["RUN mkdir -p {1} && echo b > {1}/b\n", "RUN chmod 0755 {0} && echo c > /c\n"];
    let dockerfile = format!("FROM {base}\nWORKDIR {{0}}\n{kept}{}", unkept.concat())
        .replace("{0}", &work.display().to_string())
        .replace("{1}", &inside.display().to_string());
    fs::write(context.join("Dockerfile"), dockerfile).expect("a Dockerfile");
    let (cache, out) = (work.join("shared-cache"), work.join("out"));
    for _ in 0..2 {
        let told = run_in_place(work, &[], in_place(&context, &cache, &out));
        for path in [&inside, work] {
            assert!(told.contains(&format!("RUN wrote to {}", path.display())), "{told}");
        }
        assert_eq!(told.matches("RUN wrote to").count(), 2, "{told}");
        fs::remove_dir_all(&out).expect("a layout");
    }
    fs::remove_dir_all(&inside).expect("what the step made");
    let output = succeed(
        host::yadokari()
            .env("SOURCE_DATE_EPOCH", EPOCH)
            .args(["build", "--root=overlay"])
            .args(in_place(&context, &cache, &out)),
    );
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(told.matches("CACHED").count(), 2, "{told}");
    let image = Image::open(&out).flatten();
    let within = inside.join("b").display().to_string();
    for path in ["/a", &within, "/c"] {
        assert!(image.contains_key(path), "{path} is not in the image:\n{told}");
    }
}

/// Nor if all that it did was to change a mode by a descriptor, of which no filter that
/// goes by names hears.
#[test]
fn a_step_that_changes_the_mode_of_a_mount_by_descriptor_is_not_kept() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("mode");
    fs::create_dir_all(&context).expect("a directory");
    compile_writer(&context);
    let dockerfile = format!(
        "FROM {base}\nWORKDIR {0}\nCOPY writer /writer\nRUN /writer mode {0}\n",
        work.display()
    );
    fs::write(context.join("Dockerfile"), dockerfile).expect("a Dockerfile");
    let words = in_place(&context, &work.join("shared-cache"), &work.join("out"));
    let told = run_in_place(work, &[], words);
    assert!(told.contains(&format!("RUN wrote to {}", work.display())), "{told}");
}

/// A directory that the container has and the image lacks is one that a step makes.
#[test]
fn a_directory_that_only_the_container_has_is_not_taken_for_the_images() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("made");
    fs::create_dir_all(&context).expect("a directory");
    fs::write(
        context.join("Dockerfile"),
        format!("FROM {base}\nRUN mkdir -p {}\n", work.display()),
    )
    .expect("a Dockerfile");
    let (cache, out) = (work.join("shared-cache"), work.join("out"));
    let told = run_in_place(work, &[], in_place(&context, &cache, &out));
    assert!(told.contains(&format!("RUN wrote to {},", work.display())), "{told}");
    // Whoever looks first asks for nothing that is there.
    let line = format!("FROM {base}\nRUN cd {} && mkdir it && rmdir it\n", work.display());
    fs::write(context.join("Dockerfile"), line).expect("a Dockerfile");
    let told = run_in_place(work, &[], in_place(&context, &cache, &work.join("other")));
    assert!(told.contains(&format!("RUN wrote to {}/it,", work.display())), "{told}");
}

/// A cache mount can't be moved to its place where the cache is on a volume.
#[test]
fn a_step_with_a_cache_mount_is_kept_where_the_cache_is_on_a_volume() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("cached");
    fs::create_dir_all(&context).expect("a directory");
    fs::write(
        context.join("Dockerfile"),
        format!(
            "FROM {base}\nRUN --mount=type=cache,target=/m echo a >> /m/log && cp /m/log /log\n"
        ),
    )
    .expect("a Dockerfile");
    let (cache, out) = (work.join("shared-cache"), work.join("out"));
    let told = run_in_place(work, &[], in_place(&context, &cache, &out));
    assert!(!told.contains("RUN wrote to"), "{told}");
    fs::remove_dir_all(&out).expect("a layout");
    let told = run_in_place(work, &[], in_place(&context, &cache, &out));
    assert_eq!(told.matches("CACHED").count(), 1, "{told}");
    assert!(!Image::open(&out).flatten().contains_key("/m/log"));
}

/// Where the cache can't be written, the layers of the build are in a place that the
/// steps of a Dockerfile don't empty, and that is in no layer, walked or not.
#[test]
fn a_step_that_empties_tmp_takes_nothing_from_the_builder() {
    if !ready() {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("emptying");
    fs::create_dir_all(&context).expect("a directory");
    fs::write(
        context.join("Dockerfile"),
        format!(
            "FROM {base}\nRUN echo a > /a\nRUN rm -rf /tmp/* && echo b > /b\nRUN echo c > /c\n"
        ),
    )
    .expect("a Dockerfile");
    let locked = work.join("locked");
    fs::create_dir(&locked).expect("a directory");
    let volume = format!("{}:/locked:ro", locked.display());
    let manifests = ["log", "full"].map(|mode| {
        let out = work.join(mode);
        let mut words = in_place(&context, Path::new("/locked"), &out);
        if mode == "full" {
            words.push("--snapshot-mode=full".to_owned());
        }
        let told = run_in_place(work, &["--volume", &volume], words);
        let image = Image::open(&out).flatten();
        for path in ["/a", "/b", "/c"] {
            assert!(image.contains_key(path), "{path} is not in the image:\n{told}");
        }
        let foreign = image.keys().find(|path| path.contains("yadokari"));
        assert_eq!(foreign, None, "{told}");
        manifest(&out)
    });
    assert_eq!(manifests[0], manifests[1]);
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
        "FROM {base}\nCOPY --chown=0:50 --chmod=2755 Dockerfile /grouped\n\
         RUN test ! -e /left && test -e /bin/ls && mkdir -m 777 /pub\n\
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
