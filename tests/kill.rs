//! A build killed at any instant leaves a cache that is true and keeps every step
//! that had finished.

#[path = "support/host.rs"]
mod host;
#[allow(dead_code, reason = "the conformance tests use the rest")]
#[path = "support/image.rs"]
mod image;
#[path = "support/validator.rs"]
mod validator;

use std::collections::BTreeMap;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use image::Image;

/// Kills in a CI run, `YADOKARI_BUILD_KILLS` says otherwise; the seed is printed.
const KILLS: u32 = 50;

const DOCKERFILE: &str = "ARG BASE
FROM ${BASE} AS build
COPY data /data/
RUN cat /data/* > /all && sleep 0.05
RUN dd if=/dev/zero of=/big bs=1M count=4 2>/dev/null && echo tail >> /big
WORKDIR /w
RUN rm /all && echo done > /w/done
FROM ${BASE}
COPY --from=build /w/done /big /
RUN echo last > /last
";

fn build(base: &str, context: &Path, cache: &Path, layout: &Path) -> Command {
    let mut command = host::yadokari();
    command
        .env("SOURCE_DATE_EPOCH", "1000000000")
        .args(["build", "--no-push", "--log-format", "text", "--context"])
        .arg(context)
        .arg("--cache-dir")
        .arg(cache)
        .args(["--build-arg", &format!("BASE={base}"), "--oci-layout-path"])
        .arg(layout);
    command
}

/// Titles of steps by how they ended: `CACHED` or `DONE`.
fn outcomes(log: &str) -> BTreeMap<String, String> {
    let mut titles = BTreeMap::new();
    let mut outcomes = BTreeMap::new();
    for line in log.lines() {
        let Some((number, rest)) = line.split_once(' ').filter(|(n, _)| n.starts_with('#')) else {
            continue;
        };
        if rest.starts_with('[') {
            titles.insert(number.to_owned(), rest.to_owned());
        } else if let Some(title) = titles.get(number)
            && let Some(word @ ("CACHED" | "DONE")) = rest.split(' ').next()
        {
            outcomes.insert(title.clone(), word.to_owned());
        }
    }
    outcomes
}

/// A generator that needs no crate: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }
}

#[test]
fn a_killed_build_loses_no_finished_step_and_leaves_no_mount() {
    if !host::require_host(&["docker-registry", "skopeo", "umoci"]) {
        return;
    }
    let (_registry, work, base) = host::registry_with_base();
    let work = work.path();
    let context = work.join("context");
    fs::create_dir_all(context.join("data")).expect("a directory");
    fs::write(context.join("Dockerfile"), DOCKERFILE).expect("a Dockerfile");
    for number in 0..50 {
        fs::write(context.join(format!("data/{number}")), format!("{number}\n")).expect("a file");
    }
    // What the image must be, and how long an undisturbed build takes.
    let whole = work.join("whole");
    let started = Instant::now();
    host::succeed(&mut build(&base, &context, &work.join("cache-whole"), &whole));
    let mut length = started.elapsed();
    validator::validate(&whole);
    let expected = Image::open(&whole);

    let seed = std::env::var("YADOKARI_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("seed {seed}: YADOKARI_SEED={seed} repeats this run");
    let kills = std::env::var("YADOKARI_BUILD_KILLS").ok().and_then(|kills| kills.parse().ok());
    let kills: u32 = kills.unwrap_or(KILLS);
    let mut random = Random(seed);
    let (mut reused, mut killed) = (0, 0);
    for kill in 0..kills {
        let cache = work.join(format!("cache-{kill}"));
        let layout = work.join("layout");
        let mut victim = build(&base, &context, &cache, &layout)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the builder");
        let after =
            Duration::from_nanos(random.next() % u64::try_from(length.as_nanos()).expect("short"));
        let stderr = victim.stderr.take().expect("piped");
        let reader = std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).collect::<Vec<_>>().join("\n")
        });
        let begun = Instant::now();
        while begun.elapsed() < after && victim.try_wait().expect("a child").is_none() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        victim.kill().expect("SIGKILL");
        match victim.wait().expect("a child").code() {
            None => killed += 1,
            // The machine was busier at first: the next ones are to meet a build at work.
            Some(_) => length = length.min(begun.elapsed()),
        }
        let before = outcomes(&reader.join().expect("a reader"));

        let output = host::succeed(&mut build(&base, &context, &cache, &layout));
        let now = outcomes(&String::from_utf8_lossy(&output.stderr));
        // A step that was told to be done is in the cache: it must not run again.
        let lost: Vec<_> = before
            .keys()
            .filter(|title| now.get(*title).is_some_and(|how| how == "DONE"))
            .collect();
        assert!(lost.is_empty(), "kill {kill} after {after:?}: {lost:?} ran again");
        reused += now.values().filter(|how| *how == "CACHED").count();

        let image = Image::open(&layout);
        assert_eq!(
            image.config["rootfs"], expected.config["rootfs"],
            "kill {kill} after {after:?}: another image"
        );
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let ours = work.display().to_string();
        assert!(!mounts.contains(&ours), "kill {kill}: something is left mounted");
        fs::remove_dir_all(&cache).expect("the cache");
        fs::remove_dir_all(&layout).expect("the layout");
    }
    eprintln!(
        "{killed} of {kills} builds killed in time, {reused} steps found again: 0 lost, 0 wrong"
    );
    assert!(reused > 0, "no kill came late enough to leave a finished step");
}
