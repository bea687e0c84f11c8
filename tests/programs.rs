//! Real programs do in a mount what they do in a plain directory beside it, and the layers
//! that are made of it hold it all.
//!
//! Each program has a directory of scripts in `tests/programs`. `lower.sh` makes, on the
//! host's disk, what becomes a layer. The others are run one after another in a mount over
//! that layer and in a plain directory with the same in it, both of them at [`HERE`],
//! without a network. After each script:
//!
//! 1. What it said is the same. So is what any program can see of the two: names, kinds,
//!    modes, owners, contents, hard links, capabilities, and all times but those of now.
//! 2. Unmounting and mounting again changes nothing that can be seen, and the tree says
//!    the same as the mount.
//! 3. Log and walk give the same change set, bytes included, and a fresh overlay over the
//!    layers so far shows the same root. Each second script goes on over those layers alone.
//!
//! Contents that a program itself makes other ones each time (it notes when something was
//! done, or inode numbers) are left out of 1, by name and with the reason; of 2 and 3
//! nothing is.
//!
//! Needs root, FUSE and the programs. They are processes of their own: a mapping that
//! this process made could wait for itself, see `support/mapper.rs`.

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/both.rs"]
mod both;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/host.rs"]
mod host;
#[path = "support/look.rs"]
mod look;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/random.rs"]
mod random;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/random_layers.rs"]
mod random_layers;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;

use both::Both;
use look::View;
use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use yadokari::layer;
use yadokari::layer::LayerIndex;
use yadokari::overlay::Lower;
use yadokari::overlay::Overlay;
use yadokari::snapshot::LogSnapshotter;
use yadokari::snapshot::Mode;
use yadokari::snapshot::Snapshotter;
use yadokari::snapshot::WalkSnapshotter;
use yadokari::tree::Timestamp;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs");

/// Where a script finds the root it works in. Each has a mount namespace of its own, so
/// that the mount and the plain directory have the same path.
const HERE: &str = "/mnt";

/// Stands for every time since the scripts began.
const NOW: Timestamp = Timestamp { seconds: i64::MAX, nanoseconds: 0 };

/// A program, as its directory is called, and what is special about it.
struct Program {
    name: &'static str,
    tools: &'static [&'static str],
    /// Ends of paths whose contents, and with a slash at the end beginnings of paths whose
    /// names, the program makes other ones each time.
    its_own: &'static [&'static str],
    /// Parts of paths whose times it may set to now or not.
    own_times: &'static [&'static str],
}

impl Program {
    /// One that needs `tools` and does the same each time.
    const fn new(name: &'static str, tools: &'static [&'static str]) -> Self {
        Self { name, tools, its_own: &[], own_times: &[] }
    }
}

/// Runs a script in `root`. Its processes end with it, and it ends with us.
fn run(root: &Path, script: &Path) -> String {
    let path = std::env::var("PATH").expect("a path");
    // The system's own programs, and the compiler without its proxies.
    let cargo = Path::new(env!("CARGO")).parent().expect("a directory").display();
    let path = format!("{cargo}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{path}");
    let text = fs::read_to_string(script).expect("a script");
    let enter =
        "mount --bind \"$1\" \"$2\"; cd \"$2\"; umask 022; exec bash -euo pipefail -c \"$3\"";
    let output = Command::new("setpriv")
        .args(["--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "--net", "timeout", "--signal=KILL", "200"])
        .args(["bash", "-euc", enter, "enter"])
        .arg(root)
        .args([HERE, &text])
        .env_clear()
        .envs([("PATH", path.as_str()), ("HOME", "/mnt/home"), ("TMPDIR", "/mnt/tmp")])
        .envs([("LC_ALL", "C.UTF-8"), ("TZ", "UTC"), ("SOURCE_DATE_EPOCH", "1000000000")])
        .envs([("GIT_AUTHOR_DATE", "1000000000 +0000")])
        .envs([("GIT_COMMITTER_DATE", "1000000000 +0000")])
        // What an import compiles has the time of its source in it.
        .envs([("PYTHONDONTWRITEBYTECODE", "1"), ("PYTHONHASHSEED", "0")])
        .stdin(Stdio::null())
        .output()
        .expect("setpriv");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{} in {}: {}\n{said}\n{}",
        script.display(),
        root.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// The layer that `lower.sh` makes, as a tar.
fn lower_of(program: &Program) -> Vec<u8> {
    let place = tempfile::tempdir().expect("a directory");
    let root = place.path().join("root");
    for directory in ["home", "tmp"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    host::set_mode(&root.join("tmp"), 0o1777);
    run(&root, &Path::new(SCRIPTS).join(program.name).join("lower.sh"));
    let tar = Command::new("tar")
        .args(["--sort=name", "--format=posix", "--mtime=@1000000000", "--numeric-owner"])
        .args(["--pax-option=delete=atime,delete=ctime", "--xattrs", "-C"])
        .arg(root)
        .args(["-cf", "-", "."])
        .stderr(Stdio::inherit())
        .output()
        .expect("tar");
    assert!(tar.status.success(), "{}", tar.status);
    tar.stdout
}

/// Unpacks it as a disk keeps it.
fn unpack(tar: &[u8], to: &Path) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), tar).expect("room");
    host::succeed(
        Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
            .arg(file.path())
            .arg("-C")
            .arg(to),
    );
}

/// What must be the same in the mount and in the plain directory.
fn to_compare(view: &View, program: &Program, since: i64, directory_times: bool) -> View {
    let mut kept = view.clone();
    kept.retain(|path, _| {
        let path = String::from_utf8_lossy(path.as_bytes());
        !program.its_own.iter().any(|own| own.ends_with('/') && path.starts_with(own))
    });
    for (path, seen) in &mut kept {
        let path = String::from_utf8_lossy(path.as_bytes());
        if program.its_own.iter().any(|own| path.ends_with(own)) {
            (seen.digest, seen.stat.size) = (None, 0);
        }
        let is_own_time = program.own_times.iter().any(|own| path.contains(own));
        if is_own_time || seen.stat.mtime.seconds >= since {
            seen.stat.mtime = NOW;
        }
        // fuser has no files without a name, so there they are seen for a moment.
        if seen.stat.is_directory() && (!directory_times || path == "tmp") {
            seen.stat.mtime = NOW;
        }
    }
    kept
}

/// Takes from the times below `root` what layers don't carry.
fn cut_times(root: &Path) {
    for (path, seen) in look::of_directory(root) {
        let time = Timespec { tv_sec: seen.stat.mtime.seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let at = root.join(path.as_path());
        rustix::fs::utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW).expect("there");
    }
}

fn scripts(program: &Program) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(SCRIPTS).join(program.name)).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| !path.ends_with("lower.sh")).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no scripts", program.name);
    paths
}

/// See the head of the file.
fn same_as_on_a_disk(program: &Program) {
    let tools = ["bash", "setpriv", "unshare", "timeout", "tar"];
    if !host::require_host(&tools)
        || !host::require_host(program.tools)
        || !host::require(HERE, Path::new(HERE).is_dir())
    {
        return;
    }
    let tar = lower_of(program);
    let mut layers = vec![random_layers::lower(&tar)];
    let Some(mut both) = Both::over(layers.clone()) else { return };
    unpack(&tar, &both.plain());
    let since = fs::metadata(tempfile::NamedTempFile::new().expect("a file").path())
        .expect("there")
        .mtime();
    // Layers have times of directories only if something else about them changed.
    let mut directory_times = true;
    let mut is_new = true;
    for (number, script) in scripts(program).iter().enumerate() {
        let name = script.file_name().expect("a name").to_string_lossy().into_owned();
        let failed = |wrong: String| -> ! { panic!("after {}/{name}: {wrong}", program.name) };
        both.overlay.mark();
        let mut walk = WalkSnapshotter::new(Mode::Full);
        if is_new {
            // Of its twin, so that this one meets what it hasn't looked at yet.
            let twin = Overlay::new(layers.clone(), &both.scratch()).expect("an overlay");
            walk.mark(twin.after().as_ref()).expect("readable");
        } else {
            walk.mark(both.overlay.after().as_ref()).expect("readable");
        }
        let said =
            both.same(|root| run(root, script).lines().map(str::to_owned).collect::<Vec<_>>());
        assert!(!said.is_empty(), "{name} says nothing");

        both.session().sync().expect("synced");
        let cached = look::of_directory(&both.ours());
        let plain = look::of_directory(&both.plain());
        let [ours, theirs] =
            [&cached, &plain].map(|view| to_compare(view, program, since, directory_times));
        look::compare(("mount", &ours), ("plain", &theirs)).unwrap_or_else(|wrong| failed(wrong));

        both.remount();
        let shown = look::of_directory(&both.ours());
        look::compare_cached(cached, &shown).unwrap_or_else(|wrong| failed(wrong));
        let tree = look::of_tree(both.overlay.tree().as_ref());
        look::compare(("mount", &shown), ("tree", &tree)).unwrap_or_else(|wrong| failed(wrong));
        look::check_link_counts(&shown).unwrap_or_else(|wrong| failed(wrong));

        both.session().sync().expect("synced");
        let log = both.overlay.log();
        assert_eq!(log.lost, None);
        let (before, after) = (both.overlay.before(), both.overlay.after());
        let set = LogSnapshotter::new().changes(before.as_ref(), after.as_ref(), &log);
        let set = set.expect("readable");
        let walked = walk.changes(before.as_ref(), after.as_ref(), &log).expect("readable");
        drop((before, after));
        look::compare_sets(("log", &set), ("walk", &walked)).unwrap_or_else(|wrong| failed(wrong));
        let mut tar = Vec::new();
        let options = layer::WriteOptions::default();
        let written = layer::write(&set, &options, &mut tar).expect("a layer");
        let foreign = random_layers::lower(&tar);
        let index = LayerIndex::from_bytes(written.index).expect("a good index");
        let own = Lower { index: Arc::new(index), blob: Arc::clone(&foreign.blob) };
        layers.push(foreign);
        let fresh = Overlay::new(layers.clone(), &both.scratch()).expect("an overlay");
        let fresh = look::in_layers(&look::of_tree(fresh.tree().as_ref()));
        look::compare(("mount", &look::in_layers(&shown)), ("layers", &fresh))
            .unwrap_or_else(|wrong| failed(wrong));

        is_new = number % 2 == 0;
        if is_new {
            both.start_over(layers.clone());
            cut_times(&both.plain());
            directory_times = false;
        } else {
            both.overlay.settle(&set, own);
        }
    }
}

#[test]
fn mv_of_lower_directories() {
    same_as_on_a_disk(&Program::new("mv", &["mv", "cp", "mkfifo"]));
}

#[test]
fn tar_with_hard_links_and_holes() {
    let tools = &["tar", "gzip", "setfattr", "getfattr", "setcap", "getcap"];
    same_as_on_a_disk(&Program::new("tar", tools));
}

#[test]
fn git() {
    // It has the inode number and the times of every file.
    let its_own = &["/index"];
    // An object that would be written again is touched instead; whether git hashes a file
    // again depends on whether it was written at the time that the index has.
    let own_times = &["/objects/"];
    same_as_on_a_disk(&Program { its_own, own_times, ..Program::new("git", &["git"]) });
}

#[test]
fn cargo() {
    // The files that a crate was made of, in the order of a hash map.
    let its_own = &["/dep-lib-helper", "/dep-test-lib-helper"];
    same_as_on_a_disk(&Program { its_own, ..Program::new("cargo", &["cc"]) });
}

#[test]
fn npm() {
    // It notes when a tarball was put into it.
    let its_own = &["cache/"];
    same_as_on_a_disk(&Program { its_own, ..Program::new("npm", &["npm", "node"]) });
}

#[test]
fn python_in_a_virtual_environment() {
    same_as_on_a_disk(&Program::new("venv", &["python3"]));
}

#[test]
fn pip() {
    same_as_on_a_disk(&Program::new("pip", &["python3"]));
}

#[test]
fn sqlite_with_a_write_ahead_log() {
    // Pages are given in the order in which the writers come, and the log has random numbers.
    let its_own = &["data.db", "data.db-wal", "data.db-shm"];
    same_as_on_a_disk(&Program { its_own, ..Program::new("sqlite", &["python3"]) });
}

#[test]
fn dpkg_with_triggers_and_conffiles() {
    same_as_on_a_disk(&Program::new("dpkg", &["dpkg", "busybox"]));
}

#[test]
fn apt_get() {
    // The cache has the times and numbers of the lists, the others say when something was done.
    let its_own =
        &["/pkgcache.bin", "/srcpkgcache.bin", "/log/apt/history.log", "/log/apt/term.log"];
    same_as_on_a_disk(&Program { its_own, ..Program::new("apt", &["apt-get", "busybox"]) });
}

#[test]
fn rpm_with_file_triggers() {
    // It notes when a package was installed; its write-ahead log has random numbers.
    let its_own = &["/rpmdb.sqlite", "/rpmdb.sqlite-wal", "/rpmdb.sqlite-shm"];
    same_as_on_a_disk(&Program { its_own, ..Program::new("rpm", &["rpm", "rpmbuild"]) });
}
