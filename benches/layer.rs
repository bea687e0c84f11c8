//! What a layer costs: writing and reading tars, compressing them.
//!
//! `cargo bench --bench layer`. The input is made up but shaped like a real
//! layer: many small files of words, so that ratios mean something.

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use yadokari::change::Change;
use yadokari::change::ChangeSet;
use yadokari::change::Put;
use yadokari::layer;
use yadokari::layer::WriteOptions;
use yadokari::layer::compress::Compression;
use yadokari::layer::compress::Compressor;
use yadokari::path::RootPath;
use yadokari::tree::Kind;
use yadokari::tree::NodeId;
use yadokari::tree::Stat;

/// Text that compresses about as well as program sources.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = (state >> 33) % 4096;
        let _ =
            write!(bytes, "{:x}{}", word * word, [" ", "_", "(", ";\n"][(state >> 62) as usize]);
    }
    bytes.truncate(length);
    bytes
}

/// `files` files of `size` bytes, fifty to a directory.
fn small_files(files: usize, size: usize) -> ChangeSet {
    let mut changes = Vec::new();
    for number in 0..files {
        let directory = format!("srv/app/{:05}", number / 50);
        let mut put = |path: String, kind: Kind, bytes: Option<Vec<u8>>| {
            let mut stat = Stat::new(kind, 0o644);
            stat.size = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
            changes.push(Change::Put(Put {
                path: RootPath::clamped(path.as_bytes()).expect("no NUL"),
                node: NodeId(changes.len() as u64),
                stat,
                link_target: None,
                capability: None,
                content: bytes.map(|bytes| Arc::new(bytes) as yadokari::tree::Content),
            }));
        };
        if number % 50 == 0 {
            put(directory.clone(), Kind::Directory, None);
        }
        put(format!("{directory}/file{number:05}.c"), Kind::File, Some(text(size, number as u64)));
    }
    ChangeSet { changes }
}

fn tars(criterion: &mut Criterion) {
    let set = small_files(20_000, 3000);
    let mut tar = Vec::new();
    let made = layer::write(&set, &WriteOptions::default(), &mut tar).expect("a good set");
    let mut group = criterion.benchmark_group("tar of 20,000 files");
    group.sample_size(10).throughput(Throughput::Bytes(made.size));
    group.bench_function("write", |bencher| {
        bencher.iter(|| {
            layer::write(black_box(&set), &WriteOptions::default(), std::io::sink())
                .expect("a good set")
        });
    });
    group.bench_function("read", |bencher| {
        bencher.iter(|| layer::read(black_box(tar.as_slice()), std::io::sink()).expect("good"));
    });
    group.finish();
}

fn compression(criterion: &mut Criterion) {
    let mut tar = Vec::new();
    layer::write(&small_files(8000, 4000), &WriteOptions::default(), &mut tar).expect("a good set");
    let mut group = criterion.benchmark_group("compress");
    group.sample_size(10).throughput(Throughput::Bytes(tar.len() as u64));
    let gzip = [1, 2, 3, 4, 5, 6].map(|level| Compression::Gzip { level, single_member: false });
    let others = [
        Compression::Gzip { level: 1, single_member: true },
        Compression::Zstd { level: 1 },
        Compression::Zstd { level: 3 },
    ];
    for setting in gzip.into_iter().chain(others) {
        for threads in [1, 2] {
            let run = || {
                let mut compressor =
                    Compressor::new(Vec::new(), setting, threads).expect("a valid level");
                compressor.write_all(black_box(&tar)).expect("memory takes all");
                compressor.finish().expect("memory takes all")
            };
            let ratio = run().len() as f64 / tar.len() as f64;
            let name = BenchmarkId::new(format!("{} ratio {ratio:.3}", setting.label()), threads);
            group.bench_function(name, |bencher| bencher.iter(run));
        }
    }
    group.finish();
}

criterion_group!(benches, tars, compression);
criterion_main!(benches);
