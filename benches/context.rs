//! What an unchanged build context costs before the first key is known: 20,000 files
//! whose digests are remembered. Target: well below 60 ms.

use std::fs;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use yadokari::context::Context;
use yadokari::context::ContextTree;
use yadokari::context::Location;
use yadokari::context::Nothing;
use yadokari::ignore::Matcher;
use yadokari::tree::Kind;
use yadokari::tree::NodeId;
use yadokari::tree::Tree;
use yadokari_cache::ContextDigests;
use yadokari_cache::ContextRoot;

const DIRECTORIES: usize = 100;
const FILES: usize = 200;

/// Looks at every file.
fn walk(tree: &ContextTree, node: NodeId, files: &mut Vec<NodeId>) {
    for (_, child) in tree.children(node).expect("the directory can be read") {
        match tree.stat(child).expect("the node is there").kind {
            Kind::Directory => walk(tree, child, files),
            _ => files.push(child),
        }
    }
}

fn digests(context: &Context, cache: &Path, threads: NonZeroUsize) -> usize {
    let root = ContextRoot::of(context.directory()).expect("the context is there");
    let memory = Arc::new(ContextDigests::load(cache, &root));
    let tree = context.tree(Nothing).expect("the context is there").remembering(memory.clone());
    tree.scan(tree.root(), threads).expect("directories can be read");
    let mut files = Vec::new();
    walk(&tree, tree.root(), &mut files);
    tree.prefetch_digests(&files, threads).expect("files can be read");
    for &file in &files {
        black_box(tree.digest(file).expect("files can be read"));
    }
    memory.save().expect("the cache can be written");
    files.len()
}

fn context(criterion: &mut Criterion) {
    let (top, cache) = (tempfile::tempdir().expect("room"), tempfile::tempdir().expect("room"));
    for directory in 0..DIRECTORIES {
        let directory = top.path().join(format!("directory{directory}"));
        fs::create_dir(&directory).expect("room");
        for file in 0..FILES {
            fs::write(directory.join(format!("some_module_{file}.rs")), [7; 1500]).expect("room");
        }
    }
    fs::create_dir(cache.path().join("contexts")).expect("room");
    fs::create_dir(cache.path().join("tmp")).expect("room");
    // Files younger than the clock's granularity are never remembered.
    std::thread::sleep(Duration::from_millis(100));
    let location = Location::Directory(top.path().to_owned());
    let context = Context::open(&location, top.path()).expect("the context is there");
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);

    let mut group = criterion.benchmark_group("context of 20,000 files");
    group.sample_size(20);
    group.bench_function("listed and looked at", |bencher| {
        bencher.iter(|| {
            let tree = context.tree(Nothing).expect("the context is there");
            let mut files = Vec::new();
            walk(&tree, tree.root(), &mut files);
            assert_eq!(files.len(), DIRECTORIES * FILES);
        });
    });
    group.bench_function("scanned by several threads", |bencher| {
        bencher.iter(|| {
            let tree = context.tree(Nothing).expect("the context is there");
            tree.scan(tree.root(), threads).expect("directories can be read");
        });
    });
    group.bench_function("scanned under ten ignore patterns", |bencher| {
        let lines = [
            ".git",
            "target",
            "**/node_modules",
            "**/*.log",
            "*.md",
            "!README.md",
            "dist/",
            "**/.DS_Store",
            "docs/**",
            "!docs/keep.txt",
        ];
        bencher.iter(|| {
            let matcher = Matcher::new(lines).expect("the patterns are right");
            let tree = context.tree(matcher).expect("the context is there");
            tree.scan(tree.root(), threads).expect("directories can be read");
        });
    });
    group.bench_function("hashed", |bencher| {
        bencher.iter(|| {
            let tree = context.tree(Nothing).expect("the context is there");
            let mut files = Vec::new();
            walk(&tree, tree.root(), &mut files);
            tree.prefetch_digests(&files, threads).expect("files can be read");
        });
    });
    assert_eq!(digests(&context, cache.path(), threads), DIRECTORIES * FILES);
    group.bench_function("remembered", |bencher| {
        bencher.iter(|| digests(&context, cache.path(), threads));
    });
    group.finish();
}

criterion_group!(benches, context);
criterion_main!(benches);
