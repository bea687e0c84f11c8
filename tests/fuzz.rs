//! The readers of Dockerfiles against text that nobody wrote: no panic, no hang.
//!
//! By default a loop of two seconds. `YADOKARI_FUZZ=10000000` runs that many executions
//! instead, `YADOKARI_FUZZ_SEED` chooses others.

use std::time::Duration;
use std::time::Instant;

use rustix::time::ClockId;
use rustix::time::clock_gettime;

use yadokari::dockerfile;
use yadokari::dockerfile::expand;
use yadokari::oci::config::ContainerConfig;
use yadokari::oci::platform::Platform;
use yadokari::plan;
use yadokari::plan::BaseState;

/// Longest time for one execution: all passes are linear, and texts are short.
const LIMIT: Duration = Duration::from_secs(5);

/// What the texts are made of.
const PIECES: [&str; 112] = [
    "FROM ",
    "FROM a\n",
    "FROM scratch AS b\n",
    "FROM --platform=$BUILDPLATFORM a",
    " AS ",
    "ARG ",
    "ARG A=1\n",
    "RUN ",
    "COPY ",
    "ADD ",
    "ENV ",
    "LABEL ",
    "WORKDIR ",
    "USER ",
    "EXPOSE ",
    "VOLUME ",
    "STOPSIGNAL ",
    "SHELL ",
    "CMD ",
    "ENTRYPOINT ",
    "HEALTHCHECK ",
    "ONBUILD ",
    "MAINTAINER ",
    "NONE",
    "run ",
    "Run ",
    "\n",
    "\n",
    "\n",
    "\r\n",
    "\\\n",
    "\\",
    "\\\\",
    "`",
    "`\n",
    "#",
    "# ",
    "# escape=`\n",
    "# syntax=docker/dockerfile:1\n",
    "# check=skip=all\n",
    "# check=error=true;skip=A,B\n",
    "\u{feff}",
    " ",
    "  ",
    "\t",
    "\u{a0}",
    "\u{2028}",
    "ü",
    "한",
    "a",
    "b",
    "A",
    "A=b ",
    "=",
    "==",
    "\"",
    "'",
    "[",
    "]",
    "[\"a\", \"b\"]",
    "[\"a\",]",
    "[1]",
    ",",
    ".",
    "..",
    "/",
    "/./",
    "*",
    "**",
    "?",
    "[a-z]",
    "!",
    "$",
    "$A",
    "${",
    "}",
    "${A}",
    "${A:-b}",
    "${A:?m}",
    "${A+",
    "${A#*}",
    "${A%%b}",
    "${A/a/b}",
    "${A//a/$1}",
    ":",
    ":-",
    "$$",
    "<<E",
    "<<-E ",
    "<<'E'",
    "<< E",
    "3<<E",
    "\nE\n",
    "\nE",
    "E\n",
    "--",
    "--from=",
    "--from=b ",
    "--mount=type=cache,target=/c ",
    "--mount=type=bind,",
    "--chown=1:2 ",
    "--chmod=u+x ",
    "--link ",
    "--interval=1s ",
    "80/tcp",
    "8000-9000",
    "1.2.3.4:80:80/UDP",
    "SIGTERM",
    "0",
    "9999999999",
    "--unpack=false ",
    "https://h/x.git#v:s",
];

/// Processor time of this thread: a busy machine is no hang.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let nanoseconds = u32::try_from(time.tv_nsec).expect("less than a second");
    Duration::new(u64::try_from(time.tv_sec).expect("not negative"), nanoseconds)
}

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % limit.max(1)
    }
}

/// A text: pieces, sometimes with a byte changed.
fn text(random: &mut Random, into: &mut Vec<u8>) {
    into.clear();
    if random.below(3) > 0 {
        into.extend_from_slice(b"FROM a AS b\n");
    }
    for _ in 0..random.below(14) {
        into.extend_from_slice(PIECES[random.below(PIECES.len())].as_bytes());
    }
    if random.below(4) == 0 && !into.is_empty() {
        let at = random.below(into.len());
        into[at] = random.next().to_le_bytes()[0];
    }
}

/// Everything that reads such a text, as a build does it.
fn execute(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let variables = |name: &str| (name == "A").then(|| "aXbX".to_owned());
        for escape in ['\\', '`'] {
            let _ = expand(text, escape, &variables);
            let _ = dockerfile::expand_words(text, escape, &variables);
        }
        let _ = dockerfile::expand_heredoc(text, &variables);
        let _ = dockerfile::parse_trigger(text);
    }
    let parsed = match dockerfile::parse("Dockerfile", bytes) {
        Ok(parsed) => parsed,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    for instruction in &parsed.instructions {
        assert!(parsed.text.get(instruction.span.start..instruction.span.end).is_some());
    }
    let platform = Platform::new("linux", "amd64", None);
    let options = plan::Options {
        build_args: vec![("A".to_owned(), Some("x".to_owned()))],
        ..plan::Options::new(platform)
    };
    let Ok(planned) = plan::plan(&parsed, &options) else { return };
    let _ = planned.targets();
    for index in 0..planned.stages.len() {
        let base = BaseState { config: ContainerConfig::default(), ..BaseState::scratch() };
        let _ = planned.steps(index, &base);
    }
}

#[test]
fn no_text_makes_the_readers_panic_or_hang() {
    let wanted: Option<u64> =
        std::env::var("YADOKARI_FUZZ").ok().and_then(|text| text.parse().ok());
    let seed: u64 =
        std::env::var("YADOKARI_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut bytes = Vec::new();
    let started = Instant::now();
    let mut executions = 0_u64;
    let mut slowest = Duration::ZERO;
    loop {
        let enough = match wanted {
            Some(wanted) => executions >= wanted,
            None => started.elapsed() > Duration::from_secs(2),
        };
        if enough {
            break;
        }
        text(&mut random, &mut bytes);
        let began = processor_time();
        let outcome = std::panic::catch_unwind(|| execute(&bytes));
        let took = processor_time() - began;
        let shown = || format!("seed {seed}: {:?}", String::from_utf8_lossy(&bytes));
        assert!(outcome.is_ok(), "panic with {}", shown());
        assert!(took < LIMIT, "{took:?} with {}", shown());
        slowest = slowest.max(took);
        executions += 1;
    }
    println!("{executions} executions in {:?}, the slowest {slowest:?}", started.elapsed());
    assert!(executions > 1000);
}

#[test]
fn ten_megabytes_are_read_whole() {
    let mut text = String::from("FROM scratch\n");
    let mut number = 0_usize;
    while text.len() < 10 << 20 {
        number += 1;
        text.push_str(&format!(
            "# step {number}\nRUN --mount=type=cache,target=/c make part-{number} \\\n  \
             && echo \"done {number}\" > /log/{number}\nENV V{number}=\"${{PATH:-x}}/{number}\"\n"
        ));
    }
    let started = processor_time();
    let parsed = dockerfile::parse("Dockerfile", text.as_bytes()).expect("valid");
    let took = processor_time() - started;
    println!("{} bytes, {} instructions: {took:?}", text.len(), parsed.instructions.len());
    assert_eq!(parsed.instructions.len(), 1 + 2 * number);
}
