//! RUN --mount=type=cache across builds and processes, and as a tar.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::zombie_processes, reason = "every test waits for what it starts, or fails")]

#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "support/host.rs"]
mod host;

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use tempfile::TempDir;

fn cache_command(cache: &Path, arguments: &[&str]) -> Command {
    let mut command = host::yadokari();
    command.arg("cache").args(arguments).arg("--cache-dir").arg(cache);
    command
}

/// Runs a subcommand with `input`; its output if it succeeds, else its message.
fn pipe(cache: &Path, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
    let mut command = cache_command(cache, arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    // It may refuse before it has read everything.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let output = child.wait_with_output().expect("ends");
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// The directories of all cache mounts.
fn directories(cache: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for key in fs::read_dir(cache.join("mounts")).into_iter().flatten().flatten() {
        let inside = fs::read_dir(key.path()).into_iter().flatten().flatten();
        found.extend(inside.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found.sort();
    found
}

fn only(cache: &Path) -> PathBuf {
    let mut found = directories(cache);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// A tar of one file.
fn one_file(name: &str, kind: tar::EntryType, link: &str, body: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, name, kind, link, body);
    tar.into_inner().expect("memory")
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    name: &str,
    kind: tar::EntryType,
    link: &str,
    body: &[u8],
) {
    let mut header = tar::Header::new_gnu();
    // Written by hand: the crate refuses the names that are tried here.
    let raw = header.as_gnu_mut().expect("made as one");
    raw.name[..name.len()].copy_from_slice(name.as_bytes());
    raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(rustix::process::geteuid().as_raw().into());
    header.set_gid(rustix::process::getegid().as_raw().into());
    header.set_mtime(1);
    header.set_size(body.len() as u64);
    header.set_cksum();
    tar.append(&header, body).expect("memory");
}

#[test]
fn everything_about_the_files_survives_export_and_import() {
    if !host::require("root", rustix::process::geteuid().is_root()) {
        return;
    }
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let seed = one_file("seed", tar::EntryType::Regular, "", b"");
    pipe(here.path(), &["import-mount", "pkg"], &seed).unwrap();
    let one = only(here.path());
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    fs::create_dir_all(one.join(&long).parent().unwrap()).unwrap();
    fs::write(one.join(&long), "long").unwrap();
    fs::write(one.join("tool"), vec![7; 100_000]).unwrap();
    std::os::unix::fs::chown(one.join("tool"), Some(70_000), Some(80_000)).unwrap();
    host::set_mode(&one.join("tool"), 0o4755);
    fs::hard_link(one.join("tool"), one.join("again")).unwrap();
    std::os::unix::fs::symlink("/no/where", one.join("link")).unwrap();
    std::os::unix::fs::lchown(one.join("link"), Some(5), Some(6)).unwrap();
    let has_xattrs = rustix::fs::setxattr(
        one.join(&long),
        "user.note",
        b"x\0y",
        rustix::fs::XattrFlags::empty(),
    )
    .is_ok();
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    fs::File::options().append(true).open(one.join("tool")).unwrap().set_modified(old).unwrap();
    host::set_mode(&one.join("d".repeat(120)), 0o700);
    let _socket = std::os::unix::net::UnixListener::bind(one.join("socket")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        one.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();

    let tar = pipe(here.path(), &["export-mount", "pkg"], b"").unwrap();
    pipe(there.path(), &["import-mount", "pkg"], &tar).unwrap();
    let other = only(there.path());
    assert_eq!(other.parent().unwrap().file_name(), one.parent().unwrap().file_name(), "same key");
    let again = pipe(there.path(), &["export-mount", "pkg"], b"").unwrap();
    assert!(tar == again, "the second archive has the first one's bytes");

    let look = |name: &str| fs::symlink_metadata(other.join(name)).unwrap();
    let tool = look("tool");
    assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777), (70_000, 80_000, 0o4755));
    assert_eq!((tool.mtime(), tool.mtime_nsec()), (1_000_000_000, 123_456_789));
    assert_eq!(tool.ino(), look("again").ino());
    assert_eq!(fs::read(other.join("tool")).unwrap(), vec![7; 100_000]);
    assert_eq!((look("link").uid(), look("link").gid()), (5, 6));
    assert_eq!(fs::read_link(other.join("link")).unwrap(), Path::new("/no/where"));
    assert_eq!(look(&"d".repeat(120)).mode() & 0o7777, 0o700);
    assert_eq!(fs::read(other.join(&long)).unwrap(), b"long");
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&look("pipe").file_type()));
    assert!(!other.join("socket").exists());
    if has_xattrs {
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(other.join(&long), "user.note", &mut value).unwrap();
        assert_eq!(&value[..length], b"x\0y");
    }
}

#[test]
fn an_unsafe_archive_is_refused_and_changes_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let good = one_file("kept", tar::EntryType::Regular, "", b"kept");
    pipe(cache.path(), &["import-mount", "a"], &good).unwrap();
    let directory = only(cache.path());
    let (file, link) = (tar::EntryType::Regular, tar::EntryType::Symlink);
    let two = |first: (&str, tar::EntryType, &str), second: (&str, tar::EntryType, &str)| {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, target) in [("fine", file, ""), first, second] {
            append(&mut tar, name, kind, target, b"");
        }
        tar.into_inner().unwrap()
    };
    let one = |name, kind, target| one_file(name, kind, target, b"");
    let mut cut = one_file("cut", file, "", &[1; 4000]);
    cut.truncate(2000);
    for (archive, why) in [
        (one("/etc/passwd", file, ""), "absolute path"),
        (one("../outside", file, ""), "`..`"),
        (one("a/../../b", file, ""), "`..`"),
        (two(("l", link, "/tmp"), ("l/x", file, "")), "below something that is no directory"),
        (two(("l", link, ".."), ("l/x", file, "")), "below something that is no directory"),
        (two(("x", file, ""), ("x", file, "")), "stands twice"),
        (two(("x", link, "y"), ("x", file, "")), "stands twice"),
        (one("h", tar::EntryType::Link, "/etc/passwd"), "absolute path"),
        (one("h", tar::EntryType::Link, "nothing"), "hard link to a file that the archive lacks"),
        (one("dev", tar::EntryType::Char, ""), "device"),
        (cut, "archive"),
        (b"no tar at all, but long enough to be one".repeat(50), "archive"),
    ] {
        let said = pipe(cache.path(), &["import-mount", "a"], &archive).unwrap_err();
        assert!(said.contains(why), "{why}: {said}");
        assert_eq!(only(cache.path()), directory);
        let names: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["kept"], "{why}");
    }
    assert!(!Path::new("/tmp/x").exists());
    let next = one_file("next", file, "", b"");
    pipe(cache.path(), &["import-mount", "a"], &next).unwrap();
    assert!(directory.join("next").exists() && !directory.join("kept").exists());
    let left: Vec<_> = fs::read_dir(cache.path().join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_mount_that_is_not_there_or_not_the_only_one_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let said = pipe(cache.path(), &["export-mount", "none"], b"").unwrap_err();
    assert!(said.contains("no cache mount `none`"), "{said}");
    let tar = one_file("f", tar::EntryType::Regular, "", b"");
    pipe(cache.path(), &["import-mount", "a", "--mode=0700"], &tar).unwrap();
    pipe(cache.path(), &["import-mount", "a", "--mode=0755"], &tar).unwrap();
    let said = pipe(cache.path(), &["export-mount", "a"], b"").unwrap_err();
    assert!(said.contains("--mode=0700") && said.contains("--mode=0755"), "{said}");
    pipe(cache.path(), &["export-mount", "a", "--mode=0700"], b"").unwrap();
    let file = cache.path().join("out.tar");
    let file = file.to_str().unwrap();
    pipe(cache.path(), &["export-mount", "a", "--mode=0700", "-o", file], b"").unwrap();
    pipe(cache.path(), &["import-mount", "b", file], b"").unwrap();
    assert_eq!(directories(cache.path()).len(), 3);
}

/// Builds that run something with cache mounts.
struct Bench {
    directory: TempDir,
    base: (host::Registry, TempDir, String),
}

impl Bench {
    fn new() -> Option<Self> {
        host::require_host(&["docker-registry"]).then(|| Self {
            directory: tempfile::tempdir().unwrap(),
            base: host::registry_with_base(),
        })
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    /// A build of one RUN line, named so that contexts don't meet.
    fn run(&self, name: &str, line: &str) -> Command {
        let context = self.directory.path().join(name);
        fs::create_dir_all(&context).unwrap();
        fs::write(context.join("Dockerfile"), format!("FROM {}\n{line}\n", self.base.2)).unwrap();
        let mut command = host::yadokari();
        command
            .args(["build", "--no-push", "--log-format=text", "--context"])
            .arg(context)
            .arg("--cache-dir")
            .arg(self.cache());
        command
    }

    /// Starts a build that waits in its RUN for a file `go` in the cache mount.
    fn holder(&self, sharing: &str) -> (Child, PathBuf) {
        let line = format!(
            "RUN --mount=type=cache,id=m,target=/m,sharing={sharing} \
             echo held > /m/held; while [ ! -e /m/go ]; do sleep 0.02; done; echo done > /m/done"
        );
        let mut command = self.run("holder", &line);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = std::time::Instant::now();
        loop {
            let held =
                directories(&self.cache()).into_iter().find(|path| path.join("held").exists());
            if let Some(directory) = held {
                return (child, directory);
            }
            assert!(started.elapsed().as_secs() < 30, "the holder did not start");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_cache_mount_survives_builds_and_can_be_seeded() {
    let Some(bench) = Bench::new() else { return };
    let line = "RUN --mount=type=cache,id=m,target=/m,uid=7,gid=8,mode=0750 \
                echo first >> /m/log && stat -c '%u:%g %a' /m > /m/stat";
    host::succeed(&mut bench.run("a", line));
    host::succeed(&mut bench.run("b", &line.replace("first", "second")));
    let directory = only(&bench.cache());
    assert_eq!(fs::read_to_string(directory.join("log")).unwrap(), "first\nsecond\n");
    assert_eq!(fs::read_to_string(directory.join("stat")).unwrap(), "7:8 750\n");
    let tar = pipe(&bench.cache(), &["export-mount", "m"], b"").unwrap();

    // Another machine.
    fs::remove_dir_all(bench.cache()).unwrap();
    pipe(&bench.cache(), &["import-mount", "m"], &tar).unwrap();
    host::succeed(&mut bench.run("c", &line.replace("first", "third")));
    let directory = only(&bench.cache());
    assert_eq!(fs::read_to_string(directory.join("log")).unwrap(), "first\nsecond\nthird\n");
}

#[test]
fn a_locked_mount_is_waited_for_across_processes_with_a_visible_line() {
    let Some(bench) = Bench::new() else { return };
    let (mut holder, directory) = bench.holder("locked");
    let line = "RUN --mount=type=cache,id=m,target=/m,sharing=locked cat /m/done > /m/seen";
    let mut command = bench.run("waiter", line);
    let mut waiter = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(waiter.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("waiting for cache mount m")));
    fs::write(directory.join("go"), "").unwrap();
    // Nobody reads it further: it must not fill up.
    let rest = std::thread::spawn(move || lines.for_each(drop));
    assert!(holder.wait().unwrap().success());
    assert!(waiter.wait().unwrap().success());
    rest.join().unwrap();
    assert_eq!(fs::read_to_string(directory.join("seen")).unwrap(), "done\n");
    assert_eq!(only(&bench.cache()), directory);
}

#[test]
fn a_private_mount_in_use_gets_a_further_directory_and_a_shared_one_does_not() {
    let Some(bench) = Bench::new() else { return };
    let (mut holder, directory) = bench.holder("private");
    let line = "RUN --mount=type=cache,id=m,target=/m,sharing=private test ! -e /m/held";
    host::succeed(&mut bench.run("private", line));
    assert_eq!(directories(&bench.cache()).len(), 2);
    fs::write(directory.join("go"), "").unwrap();
    assert!(holder.wait().unwrap().success());

    fs::remove_dir_all(bench.cache()).unwrap();
    let (mut holder, directory) = bench.holder("shared");
    let line = "RUN --mount=type=cache,id=m,target=/m touch /m/go";
    host::succeed(&mut bench.run("shared", line));
    assert!(holder.wait().unwrap().success());
    assert_eq!(only(&bench.cache()), directory);
}

#[test]
fn one_step_may_mount_a_locked_cache_twice() {
    let Some(bench) = Bench::new() else { return };
    let line = "RUN --mount=type=cache,id=m,target=/a,sharing=locked \
                --mount=type=cache,id=m,target=/b,sharing=locked \
                --mount=type=cache,id=m,target=/c echo x > /a/f && cmp /a/f /b/f && cmp /a/f /c/f";
    host::succeed(&mut bench.run("twice", line));
    assert_eq!(directories(&bench.cache()).len(), 1);
}
