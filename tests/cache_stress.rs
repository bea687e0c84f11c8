//! Sixteen builders on one cache directory while a random one is killed again and
//! again, and every image is checked. 20 seconds; `scripts/stress-cache` for longer,
//! with RUN steps where the machine can, and with each builder in a container of its
//! own, which shares the cache as a volume.

#[allow(dead_code, reason = "others use the rest")]
#[path = "support/host.rs"]
mod host;
#[allow(dead_code, reason = "others use the rest")]
#[path = "support/image.rs"]
mod image;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use image::Image;

const BUILDERS: usize = 16;

/// Different images, sharing their first steps in pairs.
const VARIANTS: u64 = 12;

/// Seconds unless `YADOKARI_STRESS_SECONDS` says otherwise.
const SECONDS: u64 = 20;

struct Room {
    work: PathBuf,
    base: Option<String>,
    /// Whether each builder has a container: namespaces, cgroup and root of its own.
    in_containers: bool,
    /// Diff IDs of each variant, from undisturbed builds.
    expected: Vec<serde_json::Value>,
    /// When a step was first told to be finished: variant and title.
    finished: Mutex<BTreeMap<(u64, String), Instant>>,
    children: Vec<Mutex<Option<Child>>>,
    built: AtomicU64,
    killed: AtomicU64,
    hits: AtomicU64,
    waits: AtomicU64,
    over: AtomicBool,
}

impl Room {
    fn context(&self, variant: u64) -> PathBuf {
        self.work.join(format!("context-{variant}"))
    }

    fn write_context(&self, variant: u64) {
        let context = self.context(variant);
        fs::create_dir_all(&context).expect("a directory");
        let from = self.base.as_deref().unwrap_or("scratch");
        let run = match self.base {
            Some(_) => "RUN sleep 0.02 && cat /pair /own > /both\n",
            None => "",
        };
        let dockerfile = format!("FROM {from}\nCOPY pair /pair\nCOPY own /own\n{run}WORKDIR /w\n");
        fs::write(context.join("Dockerfile"), dockerfile).expect("a file");
        let text = |what: &str, number: u64| format!("{what} {number}\n").repeat(5_000);
        fs::write(context.join("pair"), text("pair", variant / 2)).expect("a file");
        fs::write(context.join("own"), text("own", variant)).expect("a file");
    }

    /// A builder for `place`, if it is one that may be killed.
    fn command(&self, variant: u64, cache: &Path, layout: &Path, place: Option<usize>) -> Command {
        let mut command = match place.filter(|_| self.in_containers) {
            Some(place) => self.container(place),
            None => host::yadokari(),
        };
        command
            .env("SOURCE_DATE_EPOCH", "1000000000")
            .args(["build", "--no-push", "--log-format=text", "--context"])
            .arg(self.context(variant))
            .arg("--cache-dir")
            .arg(cache)
            .arg("--oci-layout-path")
            .arg(layout)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }
}

impl Room {
    /// A stock container with nothing in it but the builder.
    fn container(&self, place: usize) -> Command {
        let root = self.work.join(format!("root-{place}"));
        for directory in ["tmp", "etc"] {
            fs::create_dir_all(root.join(directory)).expect("a directory");
        }
        let _ = fs::remove_file(self.pid_file(place));
        let mut command = Command::new("podman");
        command
            .args(["run", "--rm", "--runtime=runc", "--network=none"])
            .args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"])
            .args(["--env", "SOURCE_DATE_EPOCH=1000000000"])
            .arg(format!("--volume={0}:{0}", self.work.display()))
            .arg(format!("--volume={}:/yadokari:ro", env!("CARGO_BIN_EXE_yadokari")))
            .arg("--pidfile")
            .arg(self.pid_file(place))
            .arg("--rootfs")
            .arg(root)
            .arg("/yadokari");
        command
    }

    fn pid_file(&self, place: usize) -> PathBuf {
        self.work.join(format!("pid-{place}"))
    }

    /// Kills the builder at `place`, if there is one: not its container's caretakers.
    fn kill(&self, place: usize) -> bool {
        let mut child = self.children[place].lock().expect("no panic");
        let Some(child) = &mut *child else { return false };
        if !self.in_containers {
            child.kill().expect("SIGKILL");
            return true;
        }
        // Between containers there is none, and before it begins it is the runtime.
        let pid = fs::read_to_string(self.pid_file(place)).ok();
        let pid = pid.and_then(|text| rustix::process::Pid::from_raw(text.trim().parse().ok()?));
        let Some(pid) = pid else { return false };
        let program = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
        program.is_ok_and(|program| program.ends_with("yadokari"))
            && rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok()
    }
}

fn rootfs(layout: &Path) -> serde_json::Value {
    Image::open(layout).config["rootfs"].clone()
}

/// splitmix64
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *state;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// One builder after another, until time is over. With `bounded`, some of them make
/// room, so a finished step may be gone.
fn build_on(room: &Room, place: usize, bounded: bool, mut seed: u64) {
    let cache = room.work.join("cache");
    let layout = room.work.join(format!("layout-{place}"));
    while !room.over.load(Ordering::SeqCst) {
        let variant = next(&mut seed) % VARIANTS;
        let _ = fs::remove_dir_all(&layout);
        let mut command = room.command(variant, &cache, &layout, Some(place));
        if bounded && next(&mut seed).is_multiple_of(3) {
            command.arg("--cache-max-size=600kB");
        }
        let begun = Instant::now();
        let mut child = command.spawn().expect("a builder");
        let mut stderr = child.stderr.take().expect("piped");
        *room.children[place].lock().expect("no panic") = Some(child);
        let mut told = Vec::new();
        stderr.read_to_end(&mut told).expect("a pipe");
        let child = room.children[place].lock().expect("no panic").take();
        let status = child.expect("put there").wait().expect("a builder");
        let text = String::from_utf8_lossy(&told).into_owned();
        let mut titles: BTreeMap<&str, &str> = BTreeMap::new();
        for line in text.lines() {
            let Some((number, rest)) = line.split_once(' ').filter(|(n, _)| n.starts_with('#'))
            else {
                continue;
            };
            if rest.starts_with('[') {
                titles.insert(number, rest);
                continue;
            }
            let Some(title) = titles.get(number) else { continue };
            let step = (variant, (*title).to_owned());
            let mut finished = room.finished.lock().expect("no panic");
            if rest.starts_with("DONE") {
                let before = finished.get(&step).is_some_and(|then| *then < begun);
                assert!(bounded || !before, "lost: {step:?} ran again\n{text}");
                finished.entry(step).or_insert_with(Instant::now);
            } else if rest.starts_with("CACHED") {
                room.hits.fetch_add(1, Ordering::SeqCst);
            } else if rest.starts_with("waiting") {
                room.waits.fetch_add(1, Ordering::SeqCst);
            }
        }
        if status.success() {
            let warnings = text.lines().filter(|line| line.starts_with("warning"));
            let bad: Vec<_> = warnings.filter(|line| line.contains("damaged")).collect();
            assert!(bad.is_empty(), "{bad:?}");
            assert_eq!(rootfs(&layout), room.expected[variant as usize], "wrong image\n{text}");
            room.built.fetch_add(1, Ordering::SeqCst);
        } else {
            use std::os::unix::process::ExitStatusExt;
            // A container tells of a signal as a shell does.
            let signal = status.signal().or_else(|| status.code().map(|code| code - 128));
            assert_eq!(signal, Some(9), "a builder failed\n{text}");
            room.killed.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[test]
fn sixteen_builders_and_a_killer_never_give_a_wrong_image() {
    let seconds = std::env::var("YADOKARI_STRESS_SECONDS").ok();
    let seconds: u64 = seconds.and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let dir = tempfile::tempdir().expect("a directory");
    let with_run = std::env::var_os("YADOKARI_STRESS_RUN").is_some();
    let held =
        (with_run && host::require_host(&["docker-registry"])).then(host::registry_with_base);
    let in_containers = std::env::var_os("YADOKARI_STRESS_CONTAINERS").is_some()
        && host::require_host(&["podman", "runc"]);
    let mut room = Room {
        work: dir.path().to_owned(),
        base: held.as_ref().map(|(_, _, base)| base.clone()),
        in_containers,
        expected: Vec::new(),
        finished: Mutex::default(),
        children: (0..BUILDERS).map(|_| Mutex::new(None)).collect(),
        built: AtomicU64::new(0),
        killed: AtomicU64::new(0),
        hits: AtomicU64::new(0),
        waits: AtomicU64::new(0),
        over: AtomicBool::new(false),
    };
    for variant in 0..VARIANTS {
        room.write_context(variant);
        let layout = dir.path().join(format!("expected-{variant}"));
        host::succeed(&mut room.command(variant, &dir.path().join("quiet"), &layout, None));
        room.expected.push(rootfs(&layout));
    }
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    // First nothing may be lost; then contents are evicted all the time.
    for bounded in [false, true] {
        room.over.store(false, Ordering::SeqCst);
        let room = &room;
        std::thread::scope(|scope| {
            let builders: Vec<_> = (0..BUILDERS)
                .map(|place| {
                    let seed = seed.wrapping_mul(31).wrapping_add(place as u64);
                    scope.spawn(move || build_on(room, place, bounded, seed))
                })
                .collect();
            let begun = Instant::now();
            let mut state = seed ^ 0x5555;
            while begun.elapsed() < Duration::from_secs(seconds) / 2
                && builders.iter().all(|builder| !builder.is_finished())
            {
                // A kill every half a second, at any point of a build.
                std::thread::park_timeout(Duration::from_millis(next(&mut state) % 1000));
                // Most of a container's time is not the builder's: the next one then.
                let first = (next(&mut state) % BUILDERS as u64) as usize;
                let places = (0..50 * BUILDERS).map(|more| (first + more) % BUILDERS);
                for place in places {
                    if room.kill(place) {
                        break;
                    }
                    std::thread::park_timeout(Duration::from_micros(500));
                }
            }
            room.over.store(true, Ordering::SeqCst);
        });
    }
    let (built, killed) = (room.built.load(Ordering::SeqCst), room.killed.load(Ordering::SeqCst));
    eprintln!(
        "{built} images checked, {killed} builders killed, {} hits, {} waits: 0 wrong, 0 lost",
        room.hits.load(Ordering::SeqCst),
        room.waits.load(Ordering::SeqCst)
    );
    assert!(built > 0 && killed > 0);
    let mut verify = host::yadokari();
    verify.args(["cache", "verify", "--cache-dir"]).arg(dir.path().join("cache"));
    host::succeed(&mut verify);
}
