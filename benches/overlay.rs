//! The overlay beside other filesystems, and its costs as the base grows.
//!
//! `cargo bench --bench overlay` prints what a mount, a snapshot of nothing and the
//! memory come to on bases of 10,000 to 1,000,000 files; `cargo bench --bench overlay
//! transports` what a request costs by each transport (io_uring only where it is switched
//! on). With three arguments the
//! program is one of the competitors of `scripts/bench-overlay`: it mounts the layer in
//! a tar and serves it, by the transport that `YADOKARI_FUSE_TRANSPORT` names, passing files
//! through if `YADOKARI_FUSE_PASSTHROUGH` is 1, until its standard input ends.

use std::fs;
use std::fs::File;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use yadokari::layer;
use yadokari::layer::LayerIndex;
use yadokari::overlay::Lower;
use yadokari::overlay::MountOptions;
use yadokari::overlay::Overlay;
use yadokari::overlay::Transport;
use yadokari::snapshot::LogSnapshotter;
use yadokari::snapshot::Snapshotter;

/// Files of the generated bases.
const SIZES: [u64; 3] = [10_000, 100_000, 1_000_000];
/// What a client asks, how often.
const QUESTIONS: u32 = 30_000;
/// Mounts and snapshots are taken this often; the median counts.
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.as_slice() {
        [tar, scratch, at] => serve(Path::new(tar), Path::new(scratch), Path::new(at)),
        [word] if word == "transports" => transports(),
        [word, path] if word == "ask" => ask(Path::new(path)),
        [size] => measure(size.parse().context("a number of files")?),
        _ => scale(),
    }
}

/// Serves the layer in `tar` on `at` until standard input ends.
fn serve(tar: &Path, scratch: &Path, at: &Path) -> anyhow::Result<()> {
    let blob = scratch.join("blob");
    let input = BufReader::new(File::open(tar)?);
    let written = layer::read(input, BufWriter::new(File::create(&blob)?))?;
    let overlay = Overlay::new(vec![lower(written.index, &blob)?], scratch)?;
    let name = std::env::var("YADOKARI_FUSE_TRANSPORT").unwrap_or_else(|_| "auto".to_owned());
    let transport = Transport::named(&name).with_context(|| format!("no transport {name}"))?;
    let passthrough = std::env::var("YADOKARI_FUSE_PASSTHROUGH").is_ok_and(|value| value == "1");
    let options = MountOptions { transport, passthrough, ..MountOptions::default() };
    let session = overlay.mount(at, options)?;
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    session.unmount()?;
    Ok(())
}

/// Asks the mount a question that the kernel never answers by itself.
fn ask(path: &Path) -> anyhow::Result<()> {
    for _ in 0..QUESTIONS {
        rustix::fs::listxattr(path, &mut [0_u8; 64][..])?;
    }
    Ok(())
}

/// One line for each number of clients and transport, and the ratio to the first: medians
/// of interleaved rounds, per request.
fn transports() -> anyhow::Result<()> {
    println!("| clients | transport | processor, µs | wall, µs | processor, ratio | wall, ratio |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for clients in [1, 4] {
        let all = [Transport::Device, Transport::Ring, Transport::Fuser];
        // For each transport its costs by round; a round without a ring stays empty.
        let mut seen = vec![Vec::new(); all.len()];
        for _ in 0..ROUNDS {
            for (transport, seen) in all.into_iter().zip(&mut seen) {
                match question_costs(transport, clients) {
                    Ok(costs) => seen.push(Some(costs)),
                    Err(error) if transport == Transport::Ring => {
                        eprintln!("no ring: {error:#}");
                        seen.push(None);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        for (transport, costs) in all.into_iter().zip(&seen) {
            // Each with those of the device in the same round.
            let rounds: Vec<_> =
                costs.iter().zip(&seen[0]).filter_map(|(own, device)| own.zip(*device)).collect();
            if rounds.is_empty() {
                continue;
            }
            let median = |of: &dyn Fn((f64, f64), (f64, f64)) -> f64| {
                let mut values: Vec<f64> =
                    rounds.iter().map(|(own, device)| of(*own, *device)).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            println!(
                "| {clients} | {} | {:.1} | {:.1} | {:.2} | {:.2} |",
                transport.name(),
                median(&|own, _| own.0),
                median(&|own, _| own.1),
                median(&|own, device| own.0 / device.0),
                median(&|own, device| own.1 / device.1),
            );
        }
    }
    Ok(())
}

/// Microseconds of processor and wall time that a request costs, client and server
/// together.
fn question_costs(transport: Transport, clients: u32) -> anyhow::Result<(f64, f64)> {
    let place = tempfile::tempdir()?;
    let at = place.path().join("root");
    fs::create_dir(&at)?;
    let overlay = Overlay::new(Vec::new(), place.path())?;
    let session = overlay.mount(&at, MountOptions { transport, ..MountOptions::default() })?;
    let (before, started) = (processor_time()?, Instant::now());
    let ask = |_| {
        let program = std::env::current_exe()?;
        anyhow::Ok(std::process::Command::new(program).arg("ask").arg(&at).spawn()?)
    };
    let started_all: Vec<_> = (0..clients).map(ask).collect::<Result<_, _>>()?;
    for mut client in started_all {
        anyhow::ensure!(client.wait()?.success(), "a client failed");
    }
    let wall = started.elapsed();
    let used = processor_time()?.saturating_sub(before);
    session.unmount()?;
    let micros = |time: Duration, count: u32| time.as_secs_f64() * 1e6 / f64::from(count);
    Ok((micros(used, QUESTIONS * clients), micros(wall, QUESTIONS)))
}

/// Processor time of this process and the children that it waited for.
fn processor_time() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("a name")?;
    // utime, stime, cutime and cstime of proc(5), in hundredths of a second.
    let ticks: u64 = fields.split_whitespace().skip(11).take(4).flat_map(str::parse::<u64>).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// One line for each size, each from a process of its own: memory is a high-water mark.
fn scale() -> anyhow::Result<()> {
    println!(
        "| files | index, MB | index opened and mounted | snapshot of nothing | peak memory |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for size in SIZES {
        let program = std::env::current_exe()?;
        let status = std::process::Command::new(program).arg(size.to_string()).status()?;
        anyhow::ensure!(status.success(), "{size} files: {status}");
    }
    Ok(())
}

fn measure(files: u64) -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    let blob = place.path().join("blob");
    let index = place.path().join("index");
    // Another process makes the index, so that its memory isn't ours.
    if std::env::var_os("MAKE").is_none() {
        let program = std::env::current_exe()?;
        let made = std::process::Command::new(program)
            .arg(files.to_string())
            .env("MAKE", place.path())
            .status()?;
        anyhow::ensure!(made.success(), "the base was not made");
    } else {
        return make(files, Path::new(&std::env::var("MAKE")?));
    }
    let at = place.path().join("root");
    fs::create_dir(&at)?;
    let (mut mounts, mut snapshots) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let lower = lower(map(&index)?, &blob)?;
        let overlay = Overlay::new(vec![lower], place.path())?;
        let session = overlay.mount(&at, MountOptions::default())?;
        mounts.push(started.elapsed());
        anyhow::ensure!(fs::read(at.join("d0/f1"))? == b"content of a file\n", "the base is there");
        overlay.mark();
        let started = Instant::now();
        let set =
            LogSnapshotter::new().changes(&*overlay.before(), &*overlay.after(), &overlay.log())?;
        snapshots.push(started.elapsed());
        anyhow::ensure!(set.is_empty(), "nothing was changed");
        session.unmount()?;
    }
    let peak = fs::read_to_string("/proc/self/status")?
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        })
        .context("no VmHWM")?;
    println!(
        "| {files} | {:.0} | {:.1} ms | {:.2} ms | {} MB |",
        fs::metadata(&index)?.len() as f64 / 1e6,
        milliseconds(&mut mounts),
        milliseconds(&mut snapshots),
        peak / 1000,
    );
    Ok(())
}

/// Writes `blob` and `index` of a layer with that many small files.
fn make(files: u64, place: &Path) -> anyhow::Result<()> {
    let mut tar = tar::Builder::new(BufWriter::new(File::create(place.join("tar"))?));
    let content = b"content of a file\n";
    for number in 0..files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        let path = format!("d{}/f{number}", number / 200);
        tar.append_data(&mut header, path, content.as_slice())?;
    }
    tar.into_inner()?.flush()?;
    let input = BufReader::new(File::open(place.join("tar"))?);
    let written = layer::read(input, BufWriter::new(File::create(place.join("blob"))?))?;
    fs::write(place.join("index"), written.index)?;
    fs::remove_file(place.join("tar"))?;
    Ok(())
}

fn lower<B>(index: B, blob: &Path) -> anyhow::Result<Lower>
where
    B: AsRef<[u8]> + Send + Sync + 'static,
{
    let index = LayerIndex::from_bytes(index)?;
    Ok(Lower { index: Arc::new(index), blob: Arc::new(File::open(blob)?) })
}

fn map(path: &Path) -> anyhow::Result<memmap2::Mmap> {
    // SAFETY: the file is this benchmark's own, and nobody changes it.
    Ok(unsafe { memmap2::Mmap::map(&File::open(path)?) }?)
}

fn milliseconds(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}
