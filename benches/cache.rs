//! What the index costs: many processes on one cache directory, and many records.
//!
//! `cargo bench --bench cache [-- RECORDS]` prints a table; the processes are this
//! program again. Every operation of every process is timed by itself.

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use yadokari_cache::Access;
use yadokari_cache::Bucket;
use yadokari_cache::Cache;
use yadokari_cache::Fold;
use yadokari_cache::Key;
use yadokari_cache::KeyHasher;

const DIRECTORY: &str = "YADOKARI_BENCH_DIRECTORY";
const PROCESSES: u64 = 16;

/// Records that are there before anything is timed, unless told otherwise.
const RECORDS: u64 = 100_000;

/// Builds of each process, and steps of a build: of each, a third hit, a third miss
/// and are put.
const BUILDS: u64 = 10;
const STEPS: u64 = 30;

/// What a step does besides, if `YADOKARI_BENCH_PAUSE` doesn't say otherwise in
/// milliseconds: sixteen builders have more to do than to ask the index.
const PAUSE: u64 = 40;

/// Bytes of a record, as a step's usually has.
const VALUE: usize = 600;

fn key(kind: &str, number: u64) -> Key {
    KeyHasher::new("yadokari bench v1").field("kind", kind.as_bytes()).number("n", number).finish()
}

/// One process: `get-hit 1234` lines, in microseconds.
fn child(directory: &Path, number: u64, records: u64) {
    let pause = std::env::var("YADOKARI_BENCH_PAUSE").ok().and_then(|text| text.parse().ok());
    let pause = Duration::from_millis(pause.unwrap_or(PAUSE));
    let mut lines = String::new();
    let mut tell = |what: &str, time: Duration| {
        lines.push_str(&format!("{what} {}\n", time.as_micros()));
    };
    for build in 0..BUILDS {
        let (mut asked, mut put) = (Duration::ZERO, Duration::ZERO);
        let mut timed = |what: &str, work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            let time = start.elapsed();
            // Puts are made behind the steps, and folds when the result is there.
            match what {
                "put" => put += time,
                "fold" => {}
                _ => asked += time,
            }
            tell(what, time);
        };
        let mut cache = None;
        timed("open", &mut || cache = Cache::open(directory, Access::ReadWrite).ok());
        let cache = cache.expect("a cache");
        for step in 0..STEPS {
            std::thread::park_timeout(pause);
            let old = key("old", (number * 7919 + build * 104_729 + step * 31) % records);
            let new = key("new", (number * BUILDS + build) * STEPS + step);
            timed(if step == 0 { "first-get" } else { "get-hit" }, &mut || {
                assert!(cache.get(Bucket::Steps, &old).is_some());
            });
            timed("get-miss", &mut || assert!(cache.get(Bucket::Steps, &new).is_none()));
            timed("put", &mut || {
                cache.put(&[(Bucket::Steps, new, vec![7; VALUE])]).expect("a put");
            });
        }
        timed("fold", &mut || {
            cache.fold(Fold::IfWorthwhile).expect("a fold");
        });
        tell("all look-ups of a build", asked);
        tell("all puts of a build", put);
    }
    let _ = std::io::Write::write_all(&mut std::io::stdout(), lines.as_bytes());
}

fn main() -> ExitCode {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let number =
            |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        child(Path::new(&directory), number("NUMBER"), number("RECORDS"));
        return ExitCode::SUCCESS;
    }
    // cargo adds `--bench`.
    let records = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(RECORDS);
    let directory = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(directory.path(), Access::ReadWrite).expect("a cache");
    let start = Instant::now();
    for chunk in 0..records.div_ceil(1000) {
        let puts: Vec<_> = (chunk * 1000..((chunk + 1) * 1000).min(records))
            .map(|number| (Bucket::Steps, key("old", number), vec![7; VALUE]))
            .collect();
        cache.put(&puts).expect("a put");
        if chunk % 100 == 99 {
            cache.fold(Fold::Now).expect("a fold");
        }
    }
    cache.fold(Fold::Now).expect("a fold");
    println(&format!("{records} records put and folded in {:.1} s", start.elapsed().as_secs_f64()));
    for processes in [1, PROCESSES] {
        println(&format!("\n{processes} processes, {BUILDS} builds of {STEPS} steps each:"));
        println(
            "| operation | count | p50 ms | p99 ms | max ms |\n| --- | --- | --- | --- | --- |",
        );
        for (name, mut times) in measure(directory.path(), processes, records) {
            times.sort_unstable();
            let at = |part: usize| times[(times.len() - 1) * part / 100] as f64 / 1000.0;
            println(&format!(
                "| {name} | {} | {:.2} | {:.2} | {:.2} |",
                times.len(),
                at(50),
                at(99),
                at(100)
            ));
        }
    }
    ExitCode::SUCCESS
}

fn measure(directory: &Path, processes: u64, records: u64) -> Vec<(String, Vec<u64>)> {
    let program = std::env::current_exe().expect("this program");
    let children: Vec<_> = (0..processes)
        .map(|number| {
            Command::new(&program)
                .env(DIRECTORY, directory)
                .env("NUMBER", (number + processes * 100).to_string())
                .env("RECORDS", records.to_string())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a process")
        })
        .collect();
    let mut found: Vec<(String, Vec<u64>)> = Vec::new();
    for mut child in children {
        let mut text = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
        assert!(child.wait().expect("a process").success());
        for line in text.lines() {
            let Some((name, time)) = line.rsplit_once(' ') else { continue };
            let Ok(time) = time.parse() else { continue };
            match found.iter_mut().find(|(known, _)| known == name) {
                Some((_, times)) => times.push(time),
                None => found.push((name.to_owned(), vec![time])),
            }
        }
    }
    found
}

fn println(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}
