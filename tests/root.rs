//! The sandbox on a real kernel: needs root and a static busybox.
//!
//! Without them each test says so and passes, unless `YADOKARI_REQUIRE` lists
//! `root`: then it fails.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use yadokari::path::RootPath;
use yadokari::sandbox::Cancel;
use yadokari::sandbox::Error;
use yadokari::sandbox::Exit;
use yadokari::sandbox::MountPoint;
use yadokari::sandbox::Namespaces;
use yadokari::sandbox::Process;
use yadokari::sandbox::Runner;
use yadokari::sandbox::SecretBytes;
use yadokari::sandbox::Stream;
use yadokari::sandbox::user::User;

const BUSYBOX: &str = "/bin/busybox";

/// Programs that the tests call by name; all of them are busybox.
const APPLETS: &[&str] = &[
    "cat", "chmod", "chroot", "env", "grep", "head", "hostname", "id", "ls", "mknod", "mount",
    "pwd", "readlink", "sh", "sleep", "stat", "true",
];

/// A root with busybox and the stubs that an overlay would have.
struct Root(tempfile::TempDir);

/// How a process ended and what it said.
#[derive(Debug)]
struct Ran {
    exit: Exit,
    stdout: String,
    stderr: String,
}

impl Root {
    /// `None` where such tests can't run; says so, or fails if they must.
    fn new() -> Option<Self> {
        let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        if !is_root || !Path::new(BUSYBOX).exists() {
            let required = std::env::var("YADOKARI_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|need| need == "root"), "no root or no {BUSYBOX}");
            eprintln!("skipped: needs root and {BUSYBOX}");
            return None;
        }
        let root = tempfile::tempdir().expect("a directory");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        for directory in ["bin", "dev", "etc", "mnt", "proc", "run/secrets", "sys", "tmp", "w"] {
            fs::create_dir_all(root.path().join(directory)).expect("mkdir");
        }
        fs::copy(BUSYBOX, root.path().join("bin/busybox")).expect("copy");
        for applet in APPLETS {
            symlink("busybox", root.path().join("bin").join(applet)).expect("link");
        }
        Some(Self(root))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn process(&self, arguments: &[&str]) -> Process {
        let mut process = Process::new(self.path(), arguments.iter().copied());
        process.environment.push(("PATH".into(), "/bin".into()));
        process
    }

    fn shell(&self, script: &str) -> Process {
        self.process(&["/bin/sh", "-c", script])
    }

    /// Standard output of a script that must succeed.
    fn says(&self, script: &str) -> String {
        let ran = run(&self.shell(script)).expect("runs");
        assert_eq!(ran.exit, Exit::Code(0), "{script}: {ran:?}");
        ran.stdout
    }

    /// Whether a process of this machine runs the root's busybox.
    fn is_in_use(&self) -> bool {
        let busybox = fs::metadata(self.path().join("bin/busybox")).expect("there");
        fs::read_dir("/proc").expect("proc").filter_map(Result::ok).any(|process| {
            fs::metadata(process.path().join("exe"))
                .is_ok_and(|exe| (exe.dev(), exe.ino()) == (busybox.dev(), busybox.ino()))
        })
    }
}

fn sandbox() -> Namespaces {
    Namespaces::new(env!("CARGO_BIN_EXE_yadokari"))
}

fn run(process: &Process) -> Result<Ran, Error> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let sandbox = sandbox();
    let exit = sandbox.run(process, &mut |stream, bytes| {
        let into = if stream == Stream::Stdout { &mut stdout } else { &mut stderr };
        into.extend_from_slice(bytes);
    })?;
    assert_eq!(sandbox.fallbacks(), [], "this machine can do everything");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ok(Ran { exit, stdout: text(stdout), stderr: text(stderr) })
}

fn at(path: &str) -> RootPath {
    RootPath::clamped(path.as_bytes()).expect("no NUL")
}

fn bob() -> User {
    User {
        uid: 1500,
        gid: 1600,
        groups: vec![10, 99],
        home: "/home/bob".to_owned(),
        name: "bob".to_owned(),
    }
}

#[test]
fn exit_codes_and_signals_come_back() {
    let Some(root) = Root::new() else { return };
    for (script, exit) in [
        ("exit 0", Exit::Code(0)),
        ("exit 37", Exit::Code(37)),
        ("kill -9 $$", Exit::Signal(9)),
        ("kill -15 $$", Exit::Signal(15)),
    ] {
        assert_eq!(run(&root.shell(script)).expect("runs").exit, exit, "{script}");
    }
    assert_eq!(Exit::Signal(9).code(), 137);
}

#[test]
fn outputs_are_told_apart_and_input_is_empty() {
    let Some(root) = Root::new() else { return };
    let script = "echo out; echo err >&2; cat; stat -L -c %t:%T /dev/stdin";
    let ran = run(&root.shell(script)).expect("runs");
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n1:3\n", "err\n"));
    // More than a pipe holds, on both.
    let script = "head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2";
    let ran = run(&root.shell(script)).expect("runs");
    assert_eq!((ran.stdout.len(), ran.stderr.len()), (300_000, 200_000));
}

#[test]
fn a_user_can_open_its_outputs_by_name() {
    let Some(root) = Root::new() else { return };
    let mut process = root.shell("echo out > /dev/stdout; echo err > /dev/stderr");
    process.user = bob();
    let ran = run(&process).expect("runs");
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn a_process_left_behind_ends_with_the_command() {
    let Some(root) = Root::new() else { return };
    // It ignores what can be ignored and has the pipes open.
    let script = "(trap '' TERM HUP INT; echo up; while :; do sleep 1000; done) & echo done";
    let begun = Instant::now();
    let ran = run(&root.shell(script)).expect("runs");
    assert_eq!(ran.exit, Exit::Code(0));
    assert!(begun.elapsed() < Duration::from_secs(100));
    assert!(!root.is_in_use(), "a process is left");
}

#[test]
fn orphans_are_reaped() {
    let Some(root) = Root::new() else { return };
    // A zombie keeps its directory in /proc until somebody waits for it.
    let script = "orphan=$(sh -c 'sleep 0 >/dev/null & echo $!'); \
                  while [ -d /proc/$orphan ]; do n=$((n+1)); [ $n -lt 3000000 ] || exit 9; done";
    root.says(script);
}

#[test]
fn nothing_of_the_builder_is_open() {
    let Some(root) = Root::new() else { return };
    // A file that any program started from here inherits.
    let leak = fs::File::open("/etc/passwd").expect("opens");
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).expect("fcntl");
    // 3 is the directory that ls reads.
    assert_eq!(root.says("ls /proc/self/fd"), "0\n1\n2\n3\n");
    // Root in the step can't look into pid 1, which holds secrets and the socket.
    let ran = run(&root.shell("readlink /proc/1/fd/3; cat /proc/1/environ; readlink /proc/1/exe"))
        .expect("runs");
    assert_ne!(ran.exit, Exit::Code(0), "{ran:?}");
    assert_eq!(ran.stdout, "");
}

#[test]
fn rights_are_dockers() {
    let Some(root) = Root::new() else { return };
    let script = "grep -e ^Cap -e ^NoNewPrivs -e ^Seccomp: -e ^Groups /proc/self/status | \
                  while read a b; do echo $a $b; done; umask";
    assert_eq!(
        root.says(script),
        "Groups: 0\nCapInh: 0000000000000000\nCapPrm: 00000000a80425fb\n\
         CapEff: 00000000a80425fb\nCapBnd: 00000000a80425fb\nCapAmb: 0000000000000000\n\
         NoNewPrivs: 0\nSeccomp: 2\n0022\n"
    );
    let mut process = root.shell(&format!("id -u; id -g; echo $HOME; {script}"));
    process.user = bob();
    assert_eq!(
        run(&process).expect("runs").stdout,
        "1500\n1600\n/home/bob\nGroups: 10 99 1600\nCapInh: 0000000000000000\n\
         CapPrm: 0000000000000000\nCapEff: 0000000000000000\nCapBnd: 00000000a80425fb\n\
         CapAmb: 0000000000000000\nNoNewPrivs: 0\nSeccomp: 2\n0022\n"
    );
}

#[test]
fn mounting_is_refused_while_chroot_and_mknod_are_not() {
    let Some(root) = Root::new() else { return };
    let ran = run(&root.shell("mount -t tmpfs none /mnt")).expect("runs");
    assert_ne!(ran.exit, Exit::Code(0));
    assert!(ran.stderr.to_lowercase().contains("permi"), "{ran:?}");
    root.says("chroot / /bin/true; mknod /tmp/null c 1 3; chmod 4755 /tmp/null");
}

#[test]
fn names_and_ids_are_those_of_the_sandbox() {
    let Some(root) = Root::new() else { return };
    let mut process = root.shell("hostname; echo $$");
    assert_eq!(run(&process).expect("runs").stdout, "buildkitsandbox\n2\n");
    process.hostname = "elsewhere".to_owned();
    assert_eq!(run(&process).expect("runs").stdout, "elsewhere\n2\n");
}

#[test]
fn no_network_means_loopback_alone() {
    let Some(root) = Root::new() else { return };
    let mut process = root.shell("ls /sys/class/net; cat /sys/class/net/lo/flags");
    process.network = false;
    assert_eq!(run(&process).expect("runs").stdout, "lo\n0x9\n", "up, and loopback");
}

#[test]
fn a_secret_is_a_read_only_file_in_memory() {
    let Some(root) = Root::new() else { return };
    fs::write(root.path().join("run/secrets/token"), "").expect("stub");
    let mut process = root.shell(
        "cat /run/secrets/token; stat -c ' %a %u %g' /run/secrets/token; \
         (echo x > /run/secrets/token) 2>/dev/null || echo refused; \
         chmod 777 /run/secrets/token",
    );
    process.mounts.push(MountPoint::File {
        target: at("/run/secrets/token"),
        contents: SecretBytes::new(*b"hunter2"),
        mode: 0o400,
        uid: 7,
        gid: 8,
    });
    let ran = run(&process).expect("runs");
    assert_eq!(ran.stdout, "hunter2 400 7 8\nrefused\n");
    assert!(ran.stderr.contains("Read-only"), "{ran:?}");
    assert_eq!(fs::read(root.path().join("run/secrets/token")).expect("there"), b"");
}

#[test]
fn a_script_below_dev_needs_no_stub() {
    let Some(root) = Root::new() else { return };
    let mut process = root.process(&["/dev/pipes/EOF", "arg"]);
    process.mounts.push(MountPoint::File {
        target: at("/dev/pipes/EOF"),
        contents: SecretBytes::new(*b"#!/bin/sh\necho $0 $1\n"),
        mode: 0o755,
        uid: 0,
        gid: 0,
    });
    process.user = bob();
    assert_eq!(run(&process).expect("runs").stdout, "/dev/pipes/EOF arg\n");
    assert_eq!(fs::read_dir(root.path().join("dev")).expect("there").count(), 0);
}

#[test]
fn binds_are_as_writable_as_asked() {
    let Some(root) = Root::new() else { return };
    let source = tempfile::tempdir().expect("a directory");
    fs::create_dir(source.path().join("sub")).expect("mkdir");
    fs::write(source.path().join("sub/f"), "content").expect("write");
    let bind = |path: &str, target: &str, read_only| MountPoint::Bind {
        source: source.path().join(path),
        target: at(target),
        read_only,
    };
    let mut process = root.shell("cat /mnt/sub/f; (echo x > /mnt/sub/new) || echo refused");
    process.mounts = vec![bind("", "mnt", true)];
    let ran = run(&process).expect("runs");
    assert_eq!(ran.stdout, "contentrefused\n");
    assert!(ran.stderr.contains("Read-only"), "{ran:?}");
    process.mounts = vec![bind("", "mnt", false)];
    assert_eq!(run(&process).expect("runs").stdout, "content");
    assert_eq!(fs::read(source.path().join("sub/new")).expect("written"), b"x\n");
    assert_eq!(fs::read_dir(root.path().join("mnt")).expect("there").count(), 0);
    // A file alone, and something that isn't there.
    fs::write(root.path().join("w/file"), "").expect("stub");
    let mut process = root.shell("cat /w/file");
    process.mounts = vec![bind("sub/f", "w/file", true)];
    assert_eq!(run(&process).expect("runs").stdout, "content");
    process.mounts = vec![bind("sub/gone", "mnt", true)];
    let error = run(&process).expect_err("there is no such source");
    assert!(error.to_string().starts_with("can't open the bind source"), "{error}");
}

#[test]
fn a_mount_below_a_mount_gets_its_place_made_and_the_root_never() {
    let Some(root) = Root::new() else { return };
    let script = "stat -c %a /mnt; stat -f -c '%b * %s' /mnt; cat /mnt/a/b; stat -f -c %b /dev/shm";
    let mut process = root.shell(script);
    process.shm_size = 1 << 20;
    process.mounts = vec![
        MountPoint::Tmpfs { target: at("mnt"), size: Some(1 << 20), mode: 0o1777 },
        MountPoint::File {
            target: at("mnt/a/b"),
            contents: SecretBytes::new(*b"deep\n"),
            mode: 0o444,
            uid: 0,
            gid: 0,
        },
    ];
    assert_eq!(run(&process).expect("runs").stdout, "1777\n256 * 4096\ndeep\n256\n");
    process.mounts = vec![MountPoint::Tmpfs { target: at("nowhere"), size: None, mode: 0o755 }];
    let error = run(&process).expect_err("nobody made the place");
    assert_eq!(error.to_string(), "can't open the mount point /nowhere");
    assert!(!root.path().join("nowhere").exists());
}

#[test]
fn links_in_the_root_lead_no_mount_outside() {
    let Some(root) = Root::new() else { return };
    let outside = tempfile::tempdir().expect("a directory");
    symlink(outside.path(), root.path().join("w/link")).expect("link");
    let mut process = root.shell("true");
    process.mounts = vec![MountPoint::Tmpfs { target: at("w/link"), size: None, mode: 0o755 }];
    let error = run(&process).expect_err("the link leads to nothing in the root");
    assert_eq!(error.to_string(), "can't open the mount point /w/link");
    fs::remove_dir(root.path().join("proc")).expect("rmdir");
    symlink("/etc", root.path().join("proc")).expect("link");
    let error = run(&root.shell("true")).expect_err("/proc is a link");
    assert_eq!(error.to_string(), "can't open the mount point /proc");
}

#[test]
fn directory_and_environment_are_as_told() {
    let Some(root) = Root::new() else { return };
    let mut process = root.process(&["env"]);
    process.environment.push(("A".into(), "b c".into()));
    process.environment.push(("HOME".into(), "/h".into()));
    assert_eq!(run(&process).expect("runs").stdout, "PATH=/bin\nA=b c\nHOME=/h\n");
    process.arguments = vec!["pwd".into()];
    process.directory = "/w".into();
    assert_eq!(run(&process).expect("runs").stdout, "/w\n");
    process.directory = "/missing".into();
    let error = run(&process).expect_err("no such directory");
    assert_eq!(error.to_string(), "can't enter the working directory /missing");
}

#[test]
fn a_program_that_cannot_start_is_told_as_a_shell_tells_it() {
    let Some(root) = Root::new() else { return };
    let told = |arguments: &[&str]| {
        let error = run(&root.process(arguments)).expect_err("fails");
        (error.to_string(), error.exit_code())
    };
    assert_eq!(told(&["foo"]), ("exec: `foo`: not found in PATH".to_owned(), Some(127)));
    assert_eq!(told(&["/bin/foo"]).1, Some(127));
    assert_eq!(told(&["/etc"]).1, Some(126));
    let write = |name: &str, text: &str, mode| {
        let path = root.path().join("bin").join(name);
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    write("plain", "x", 0o644);
    assert_eq!(told(&["/bin/plain"]).1, Some(126));
    assert_eq!(told(&["plain"]).1, Some(126));
    write("text", "text", 0o755);
    let (message, code) = told(&["text"]);
    assert!(message.contains("exec format error"), "{message}");
    assert_eq!(code, Some(126));
    write("script", "#!/no/such\n", 0o755);
    let (message, code) = told(&["script"]);
    assert!(message.contains("interpreter"), "{message}");
    assert_eq!(code, Some(127));
}

#[test]
fn proc_sys_and_dev_are_fresh_and_masked() {
    let Some(root) = Root::new() else { return };
    let shown = root.says(
        "for f in kcore keys timer_list; do [ -e /proc/$f ] && head -c 1 /proc/$f; done; \
         for d in acpi scsi; do [ -e /proc/$d ] && ls /proc/$d; done; ls /sys/firmware; true",
    );
    assert_eq!(shown, "");
    let script = "(echo x > /proc/sys/kernel/domainname); (echo > /sys/kernel/mm/ksm/run)";
    let ran = run(&root.shell(script)).expect("runs");
    assert_eq!(ran.stderr.matches("Read-only").count(), 2, "{ran:?}");
    assert_eq!(root.says("echo /proc/[0-9]*"), "/proc/1 /proc/2\n");
    assert_eq!(
        root.says("ls /dev; head -c 2 /dev/zero >/dev/null; ls /dev/pts"),
        "core\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\n\
         urandom\nzero\nptmx\n"
    );
}

#[test]
fn a_cancelled_command_gets_sigterm_then_sigkill() {
    let Some(root) = Root::new() else { return };
    let cancel = Arc::new(Cancel::new().expect("an eventfd"));
    let mut process = root.shell("echo ready; exec sleep 1000");
    process.cancel = Some(Arc::clone(&cancel));
    let exit = sandbox().run(&process, &mut |_, _| cancel.cancel()).expect("runs");
    assert_eq!(exit, Exit::Signal(15));
    assert!(cancel.is_cancelled());

    let cancel = Arc::new(Cancel::new().expect("an eventfd"));
    let script = "trap 'echo got it' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let mut process = root.shell(script);
    process.cancel = Some(Arc::clone(&cancel));
    let mut said = Vec::new();
    let exit = sandbox()
        .with_grace(Duration::from_millis(500))
        .run(&process, &mut |_, bytes| {
            said.extend_from_slice(bytes);
            cancel.cancel();
        })
        .expect("runs");
    assert_eq!(exit, Exit::Signal(9));
    assert_eq!(String::from_utf8_lossy(&said), "ready\ngot it\n");
    assert!(!root.is_in_use());
}

/// Not a test of its own: the builder that the next test kills.
#[test]
fn victim() {
    let Some(root) = std::env::var_os("YADOKARI_TEST_VICTIM") else { return };
    let mut process = Process::new(root, ["/bin/sh", "-c", "echo ready; exec sleep 1000"]);
    process.environment.push(("PATH".into(), "/bin".into()));
    let _ = sandbox().run(&process, &mut |_, _| eprintln!("ready"));
}

#[test]
fn a_killed_builder_leaves_no_process() {
    let Some(root) = Root::new() else { return };
    let mut builder = Command::new(std::env::current_exe().expect("known"))
        .args(["--exact", "victim", "--nocapture"])
        .env("YADOKARI_TEST_VICTIM", root.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let stderr = builder.stderr.take().expect("piped");
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "ready"), "the command never ran");
    assert!(root.is_in_use(), "the check below would mean nothing");
    builder.kill().expect("kills");
    builder.wait().expect("reaps");
    // Death travels from parent to child: soon, but not at once.
    let until = Instant::now() + Duration::from_secs(60);
    while root.is_in_use() {
        assert!(Instant::now() < until, "the command outlived the builder");
        std::thread::yield_now();
    }
}

#[test]
fn mounts_of_a_process_are_not_seen_outside() {
    let Some(root) = Root::new() else { return };
    let mut during = String::new();
    let mut process = root.shell("echo mounted");
    process.mounts = vec![MountPoint::Tmpfs { target: at("mnt"), size: None, mode: 0o755 }];
    sandbox()
        .run(&process, &mut |_, _| {
            during = fs::read_to_string("/proc/self/mountinfo").expect("proc");
        })
        .expect("runs");
    let shown = root.path().to_string_lossy().into_owned();
    assert!(!during.is_empty() && !during.contains(&shown), "{during}");
    root.says("true");
}
