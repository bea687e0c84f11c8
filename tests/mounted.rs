//! Random operations in a mounted root: log and walk give the same change set, and
//! the layer made of it turns *before* into *after*, as the kernel shows it.
//!
//! A base of two layers is mounted and worked on in rounds, from one thread or
//! three, with edits in process between and beside. After each round:
//!
//! 1. The sets of log and walk are equal in everything, bytes included.
//! 2. Unmounting and mounting again changes nothing that can be seen, so what the
//!    kernel had cached was true, and the tree says the same as the mount.
//! 3. A fresh overlay over the base and every layer written so far shows it too.
//!    This is the oracle that sees what fools log and walk alike, see the planted
//!    faults at the end and those in `src/snapshot/tests.rs`.
//! 4. The set of the round before, written only now, gives the bytes it gave then.
//!
//! `YADOKARI_SEED` sets the first seed, `YADOKARI_SEEDS` how many are tried; a
//! failure names its seed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/both.rs"]
mod both;
#[allow(dead_code)] // The other tests use the rest of it.
#[path = "support/host.rs"]
mod host;
#[path = "support/look.rs"]
mod look;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/mapper.rs"]
mod mapper;
#[path = "support/operations.rs"]
mod operations;
#[path = "support/random.rs"]
mod random;
#[path = "support/random_layers.rs"]
mod random_layers;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Mutex;

use both::Guard;
use look::View;
use mapper::Mapper;
use operations::Actor;
use operations::Done;
use random::Random;
use rustix::fs::CWD;
use rustix::fs::RenameFlags;
use yadokari::change::ChangeSet;
use yadokari::layer;
use yadokari::layer::LayerIndex;
use yadokari::layer::Written;
use yadokari::oci::digest::DiffId;
use yadokari::overlay::Lower;
use yadokari::overlay::Overlay;
use yadokari::overlay::Session;
use yadokari::snapshot::LogSnapshotter;
use yadokari::snapshot::Mode;
use yadokari::snapshot::Snapshotter;
use yadokari::snapshot::WalkSnapshotter;
use yadokari::tree::Kind;
use yadokari::tree::Timestamp;

const SEEDS: u64 = 20;
const ROUNDS: u32 = 6;
/// Per round, over all threads.
const OPERATIONS: u32 = 240;
const THREADS: u32 = 3;

/// Makes the mappings of all operations.
static MAPPER: LazyLock<Mutex<Mapper>> = LazyLock::new(|| Mutex::new(Mapper::start()));

/// A mounted overlay, and the layers that should make another one like it.
struct Root {
    overlay: Arc<Overlay>,
    session: Option<Session>,
    /// `None` in a round that nobody looks around before: most of the base isn't even
    /// in the overlay's table then, and the fold must find it.
    walk: Option<WalkSnapshotter>,
    /// The base, and the layer of each round so far.
    layers: Vec<Lower>,
    place: tempfile::TempDir,
    _guard: Guard,
}

/// A change set, and the layer that was made of it at once.
struct Taken {
    set: ChangeSet,
    diff_id: DiffId,
    /// What the root may read from instead; `None` once it does.
    layer: Option<Lower>,
}

impl Root {
    fn over(base: Vec<Lower>, looked_at: bool) -> Self {
        let place = tempfile::tempdir().expect("a directory");
        fs::create_dir(place.path().join("root")).expect("a directory");
        let overlay = Overlay::new(base.clone(), place.path()).expect("an overlay");
        if looked_at {
            look::of_tree(overlay.tree().as_ref());
        }
        let guard = Guard::of(&place.path().join("root"));
        let mut root =
            Self { overlay, session: None, walk: None, layers: base, place, _guard: guard };
        root.mount();
        if looked_at {
            root.mark();
        } else {
            root.overlay.mark();
        }
        root
    }

    fn at(&self) -> PathBuf {
        self.place.path().join("root")
    }

    fn mount(&mut self) {
        self.session = None;
        let session = self.overlay.mount(&self.at(), both::options());
        self.session = Some(session.expect("mounted"));
    }

    fn mark(&mut self) {
        self.overlay.mark();
        let mut walk = WalkSnapshotter::new(Mode::Full);
        walk.mark(self.overlay.after().as_ref()).expect("a readable tree");
        self.walk = Some(walk);
    }

    /// The set of the round, if log and walk agree on it.
    fn changes(&mut self) -> Result<ChangeSet, String> {
        self.session.as_ref().expect("mounted").sync().expect("synced");
        let log = self.overlay.log();
        assert_eq!(log.lost, None);
        let (before, after) = (self.overlay.before(), self.overlay.after());
        let set = LogSnapshotter::new().changes(before.as_ref(), after.as_ref(), &log);
        let set = set.map_err(|error| format!("log: {error}"))?;
        let Some(walk) = &mut self.walk else { return Ok(set) };
        let walked = walk.changes(before.as_ref(), after.as_ref(), &log);
        let walked = walked.map_err(|error| format!("walk: {error}"))?;
        look::compare_sets(("log", &set), ("walk", &walked))?;
        Ok(set)
    }

    /// What the mount shows, if the kernel's caches, the tree and the mount agree.
    fn shown(&mut self) -> Result<View, String> {
        let cached = look::of_directory(&self.at());
        self.mount();
        let shown = look::of_directory(&self.at());
        look::compare_cached(cached, &shown)?;
        let tree = look::of_tree(self.overlay.tree().as_ref());
        look::compare(("mount", &shown), ("tree", &tree))?;
        look::check_link_counts(&shown)?;
        Ok(shown)
    }

    /// The second oracle: whether `layer` on top of the layers so far gives `shown`.
    fn check(&self, layer: &Lower, shown: &View) -> Result<(), String> {
        let layers = self.layers.iter().chain([layer]).cloned().collect();
        let fresh = Overlay::new(layers, self.place.path()).expect("an overlay");
        let fresh = look::in_layers(&look::of_tree(fresh.tree().as_ref()));
        look::compare(("mount", &look::in_layers(shown)), ("layers", &fresh))
    }

    /// Everything that must hold after a round.
    fn finish_round(&mut self) -> Result<Taken, String> {
        let set = self.changes()?;
        let shown = self.shown()?;
        let (tar, written) = write(&set);
        let foreign = random_layers::lower(&tar);
        self.check(&foreign, &shown)?;
        let index = LayerIndex::from_bytes(written.index).map_err(|error| error.to_string())?;
        let layer = Lower { index: Arc::new(index), blob: Arc::clone(&foreign.blob) };
        self.check(&layer, &shown).map_err(|wrong| format!("by the writer's index: {wrong}"))?;
        self.layers.push(foreign);
        Ok(Taken { set, diff_id: written.diff_id, layer: Some(layer) })
    }

    /// Lets contents come out of the layer; nothing that can be seen changes.
    fn settle(&self, taken: &mut Taken) {
        if let Some(layer) = taken.layer.take() {
            self.overlay.settle(&taken.set, layer);
        }
    }
}

fn write(set: &ChangeSet) -> (Vec<u8>, Written) {
    let mut tar = Vec::new();
    let written = layer::write(set, &layer::WriteOptions::default(), &mut tar).expect("a layer");
    (tar, written)
}

/// How the operations of a round are spread.
#[derive(Clone, Copy, Debug)]
enum Spread {
    /// One thread, with edits in process among its calls.
    Alone,
    /// Three threads, each in a directory of its own.
    Disjoint,
    /// Three threads that get into each other's way, edits included.
    Shared,
}

fn run_round(root: &Root, spread: Spread, random: &mut Random, taken: Option<&mut Taken>) -> Done {
    let mount = root.at();
    let actor = |area: PathBuf, seed: u64| Actor {
        overlay: &root.overlay,
        mount: &mount,
        area,
        random: Random::new(seed),
        edits: !matches!(spread, Spread::Disjoint),
        maps: !matches!(spread, Spread::Shared),
        mapper: &MAPPER,
        done: Done::new(),
    };
    let threads = if matches!(spread, Spread::Alone) { 1 } else { THREADS };
    let mut actors = Vec::new();
    for number in 0..threads {
        let mut area = mount.clone();
        if matches!(spread, Spread::Disjoint) {
            area.push(format!("w{number}"));
            if !fs::symlink_metadata(&area).is_ok_and(|data| data.is_dir()) {
                let _ = fs::remove_file(&area);
                fs::create_dir(&area).expect("a directory");
            }
        }
        actors.push(actor(area, random.next()));
    }
    let settles = random.chance(50);
    std::thread::scope(|scope| {
        for actor in &mut actors {
            scope.spawn(|| actor.operate(OPERATIONS / threads));
        }
        if let Some(taken) = taken.filter(|_| settles) {
            root.settle(taken);
        }
    });
    let mut done = Done::new();
    for (name, count) in actors.into_iter().flat_map(|actor| actor.done) {
        *done.entry(name).or_default() += count;
    }
    done
}

fn run(seed: u64, done: &mut Done) -> Result<(), String> {
    let mut random = Random::new(seed);
    let looked_at = random.chance(50);
    let base = random_layers::two(&mut random);
    let mut root = Root::over(base, looked_at);
    if looked_at {
        assert!(root.shown()?.len() > 30, "a base with something in it");
    }
    let mut last: Option<Taken> = None;
    for round in 0..ROUNDS {
        let spread = *random.pick(&[Spread::Alone, Spread::Disjoint, Spread::Shared]);
        let failed = |wrong| format!("round {round}, {spread:?}: {wrong}");
        for (name, count) in run_round(&root, spread, &mut random, last.as_mut()) {
            *done.entry(name).or_default() += count;
        }
        let mut taken = root.finish_round().map_err(failed)?;
        if let Some(mut last) = last.take() {
            let late = write(&last.set).1.diff_id;
            if late != last.diff_id {
                return Err(failed("the set of the round before has other bytes now".to_owned()));
            }
            root.settle(&mut last);
        }
        root.mark();
        if random.chance(30) {
            let before = look::of_tree(root.overlay.tree().as_ref());
            root.settle(&mut taken);
            let after = look::of_tree(root.overlay.tree().as_ref());
            look::compare(("before settling", &before), ("settled", &after)).map_err(failed)?;
        }
        last = Some(taken);
    }
    Ok(())
}

fn setting(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

#[test]
fn log_and_walk_agree_and_the_layers_make_the_root_again() {
    if !host::require_host(&[]) {
        return;
    }
    let first = setting("YADOKARI_SEED", 1);
    let seeds = setting("YADOKARI_SEEDS", SEEDS);
    let mut done = Done::new();
    for seed in first..first + seeds {
        if let Err(wrong) = run(seed, &mut done) {
            panic!("YADOKARI_SEED={seed}: {wrong}");
        }
    }
    if seeds >= SEEDS {
        for name in Actor::names() {
            assert!(done.get(name).is_some_and(|count| *count > 2), "{name} hardly happened");
        }
    }
}

/// The oracles above compare the overlay with itself; this one has another opinion on
/// what the operations should have done.
#[test]
fn the_mount_does_what_a_plain_directory_does() {
    if !host::require_host(&[]) {
        return;
    }
    let first = setting("YADOKARI_SEED", 1);
    for seed in first..first + setting("YADOKARI_SEEDS", SEEDS) {
        let mut root = Root::over(random_layers::two(&mut Random::new(seed)), true);
        let plain = root.place.path().join("plain");
        let copied = Command::new("cp").arg("-a").args([&root.at(), &plain]).status();
        assert!(copied.expect("cp").success());
        let act = |at: &Path| {
            let mut actor = Actor {
                overlay: &root.overlay,
                mount: at,
                area: at.to_owned(),
                random: Random::new(seed),
                edits: false,
                maps: true,
                mapper: &MAPPER,
                done: Done::new(),
            };
            actor.operate(2 * OPERATIONS);
            actor.done
        };
        let done = act(&root.at());
        assert!(done.values().sum::<u32>() > OPERATIONS / 2, "YADOKARI_SEED={seed}: {done:?}");
        assert_eq!(done, act(&plain), "YADOKARI_SEED={seed}: what succeeded");
        let mut shown = root.shown().expect("a true mount");
        let mut expected = look::of_directory(&plain);
        for seen in shown.values_mut().chain(expected.values_mut()) {
            // Files of a layer count the names that another layer hides.
            (seen.stat.mtime, seen.stat.links) = (Timestamp::default(), 1);
            if seen.stat.kind == Kind::Symlink {
                // An archive can say what no filesystem keeps.
                seen.stat.mode = 0o777;
            }
        }
        if let Err(wrong) = look::compare(("mount", &shown), ("plain", &expected)) {
            panic!("YADOKARI_SEED={seed}: {wrong}");
        }
    }
}

/// A linker that writes through a mapping, and setcap(8) after it: on a disk the pages
/// that are still to be written take nothing away.
#[test]
fn a_capability_survives_late_pages_of_a_mapping() {
    if !host::require_host(&[]) {
        return;
    }
    let root = Root::over(Vec::new(), true);
    let path = root.at().join("f");
    fs::write(&path, [1; 9000]).expect("it works");
    let mut mapper = Mapper::start();
    mapper.write(&path, &[(5000, vec![7])]).expect("it works");
    let value = Random::new(1).capability();
    let name = "security.capability";
    rustix::fs::setxattr(&path, name, &value, rustix::fs::XattrFlags::empty()).expect("it works");
    root.session.as_ref().expect("mounted").sync().expect("it works");
    let seen = &look::of_tree(root.overlay.tree().as_ref())
        [&yadokari::path::RootPath::clamped(b"f").expect("no NUL")];
    assert_eq!(seen.capability, Some(value));
    let mut expected = [1; 9000];
    expected[5000] = 7;
    assert_eq!(seen.digest, Some(blake3::hash(&expected)));
    mapper.forget().expect("it works");
}

/// Runs `step` on a small root; gives what the second oracle says of the true set,
/// which must be nothing, and of the set that `fault` makes of it.
fn plant(step: fn(&Root), fault: fn(&mut ChangeSet)) -> String {
    let mut root = Root::over(Vec::new(), true);
    fs::create_dir(root.at().join("d")).expect("it works");
    fs::write(root.at().join("d/inner"), "inner").expect("it works");
    fs::write(root.at().join("f"), "content").expect("it works");
    fs::hard_link(root.at().join("f"), root.at().join("g")).expect("it works");
    root.finish_round().expect("a good layer");
    root.mark();
    step(&root);
    let mut set = root.changes().expect("a change set");
    let shown = root.shown().expect("a true mount");
    root.check(&random_layers::lower(&write(&set).0), &shown).expect("a good layer");
    let count = set.changes.len();
    fault(&mut set);
    assert!(set.changes.len() < count, "a planted fault");
    let wrong = root.check(&random_layers::lower(&write(&set).0), &shown);
    wrong.expect_err("the oracle must notice")
}

/// What a fold gives that doesn't look below a directory that is another one now.
#[test]
fn a_set_without_rule_1_is_noticed() {
    if !host::require_host(&[]) {
        return;
    }
    let wrong = plant(
        |root| fs::rename(root.at().join("d"), root.at().join("e")).expect("it works"),
        |set| set.changes.retain(|change| change.path().as_bytes() != b"e/inner"),
    );
    assert!(wrong.contains("/e/inner"), "{wrong}");
}

/// What a fold gives that emits the name that was written through, and no other.
#[test]
fn a_set_without_rule_2_is_noticed() {
    if !host::require_host(&[]) {
        return;
    }
    let wrong = plant(
        |root| fs::write(root.at().join("f"), "more content").expect("it works"),
        |set| set.changes.retain(|change| change.path().as_bytes() != b"g"),
    );
    assert!(wrong.contains("/g"), "{wrong}");
}

/// What a fold gives that takes equal files for the same file.
#[test]
fn a_set_without_rule_3_is_noticed() {
    if !host::require_host(&[]) {
        return;
    }
    let wrong = plant(
        |root| {
            let at = |name: &str| root.at().join(name);
            let data = fs::metadata(at("g")).expect("it works");
            fs::copy(at("g"), at("copy")).expect("it works");
            let (seconds, nanoseconds) = {
                use std::os::unix::fs::MetadataExt;
                (data.mtime(), data.mtime_nsec())
            };
            operations::set_time(&at("copy"), seconds, nanoseconds).expect("it works");
            rustix::fs::renameat_with(CWD, at("copy"), CWD, at("g"), RenameFlags::empty())
                .expect("it works");
        },
        |set| set.changes.clear(),
    );
    assert!(wrong.contains("/g"), "{wrong}");
}
