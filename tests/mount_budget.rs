//! The request budget: how often the kernel may ask the server, by kind of request.
//! Exact, so it needs no quiet machine. Needs what `tests/mount.rs` needs.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/both.rs"]
mod both;

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use both::Both;

type Counts = BTreeMap<&'static str, u64>;

fn counts(both: &Both) -> Counts {
    both.overlay.requests().counts().into_iter().collect()
}

/// What `work` cost, by kind. Without FORGET: when a node is forgotten is up to the
/// kernel, which also tells it in the middle of something else.
fn cost(both: &Both, work: impl FnOnce()) -> Counts {
    let before = counts(both);
    work();
    let mut after = counts(both);
    after.retain(|name, count| {
        *count -= before.get(name).copied().unwrap_or_default();
        *count > 0 && *name != "FORGET"
    });
    after
}

fn total(counts: &Counts) -> u64 {
    counts.values().sum()
}

#[track_caller]
fn at_most(limit: u64, counts: &Counts) {
    assert!(total(counts) <= limit, "{counts:?}");
}

/// A mount in which the kernel has learned what isn't offered (OPEN, FLUSH, …).
fn warm() -> Option<Both> {
    let both = Both::new()?;
    let at = both.ours();
    fs::create_dir_all(at.join("d/e")).unwrap();
    for number in 0..30 {
        fs::write(at.join(format!("d/f{number}")), format!("bytes {number}")).unwrap();
    }
    fs::read_dir(at.join("d")).unwrap().for_each(drop);
    fs::read(at.join("d/f1")).unwrap();
    fs::remove_file(at.join("d/f29")).unwrap();
    Some(both)
}

fn read_and_stat(path: &Path) {
    let mut file = File::open(path).unwrap();
    file.metadata().unwrap();
    file.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_cached_file_is_opened_stated_and_read_without_a_request() {
    let Some(both) = warm() else { return };
    let path = both.ours().join("d/f1");
    read_and_stat(&path);
    read_and_stat(&path);
    assert_eq!(cost(&both, || read_and_stat(&path)), Counts::new());
}

#[test]
fn a_missing_path_is_asked_for_once() {
    let Some(both) = warm() else { return };
    let path = both.ours().join("d/missing");
    // The directory was changed, so its attributes are asked for besides.
    at_most(2, &cost(&both, || assert!(!path.exists())));
    assert_eq!(cost(&both, || assert!(!path.exists())), Counts::new());
}

#[test]
fn a_warm_listing_with_metadata_costs_at_most_one_request_for_a_directory() {
    let Some(both) = warm() else { return };
    let list = || {
        for directory in ["d", "d/e"] {
            for entry in fs::read_dir(both.ours().join(directory)).unwrap() {
                fs::symlink_metadata(entry.unwrap().path()).unwrap();
            }
        }
    };
    list();
    list();
    at_most(2, &cost(&both, list));
}

/// `ls` asks for two attributes of each file besides.
#[test]
fn a_warm_recursive_ls_costs_one_request_for_a_directory_and_two_for_a_file() {
    let Some(both) = warm() else { return };
    let list = || {
        let listed = Command::new("ls").arg("-lR").arg(both.ours()).output().unwrap();
        assert!(listed.status.success());
    };
    list();
    list();
    let mut counts = cost(&both, list);
    let xattrs = ["GETXATTR", "LISTXATTR"].map(|name| counts.remove(name).unwrap_or_default());
    // Three directories and 29 files; the directory that is named counts twice.
    at_most(3, &counts);
    assert!(xattrs.iter().sum::<u64>() <= 2 * 34, "{xattrs:?}");
}

#[test]
fn creating_writing_and_closing_a_file_costs_at_most_five() {
    let Some(both) = warm() else { return };
    at_most(5, &cost(&both, || fs::write(both.ours().join("d/new"), "x").unwrap()));
}

/// The kernel asks for capabilities before the first write of an open file, and not
/// before each: that is what HANDLE_KILLPRIV_V2 is for.
#[test]
fn further_writes_of_an_open_file_cost_one_each() {
    let Some(both) = warm() else { return };
    let mut file = OpenOptions::new().append(true).open(both.ours().join("d/f2")).unwrap();
    file.write_all(b"first").unwrap();
    let counts = cost(&both, || (0..20).for_each(|_| file.write_all(b"line\n").unwrap()));
    assert_eq!(counts, Counts::from([("WRITE", 20)]));
}

#[test]
fn a_large_write_and_read_cost_one_for_each_mebibyte() {
    let Some(mut both) = warm() else { return };
    let path = both.ours().join("large");
    fs::write(&path, "").unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let bytes = vec![7; 16 << 20];
    let counts = cost(&both, || (&file).write_all(&bytes).unwrap());
    // A page cache of small folios ends a request early now and then.
    assert!(counts["WRITE"] <= 17, "{counts:?}");
    drop(file);
    both.remount();
    let counts = cost(&both, || assert!(fs::read(&path).unwrap() == bytes));
    // Without the right to raise the read-ahead of the mount it is 128 KiB.
    assert!(counts["READ"] <= 130, "{counts:?}");
}

#[test]
fn removing_a_file_costs_at_most_three() {
    let Some(both) = warm() else { return };
    at_most(3, &cost(&both, || fs::remove_file(both.ours().join("d/f3")).unwrap()));
}

#[test]
fn renaming_a_file_costs_at_most_four() {
    let Some(both) = warm() else { return };
    let (from, to) = (both.ours().join("d/f4"), both.ours().join("d/e/f4"));
    at_most(4, &cost(&both, || fs::rename(&from, &to).unwrap()));
}

#[test]
fn making_a_directory_a_link_or_a_symbolic_link_costs_at_most_three() {
    let Some(both) = warm() else { return };
    let at = |name: &str| both.ours().join(name);
    at_most(3, &cost(&both, || fs::create_dir(at("d/made")).unwrap()));
    at_most(3, &cost(&both, || fs::hard_link(at("d/f5"), at("d/linked")).unwrap()));
    at_most(3, &cost(&both, || std::os::unix::fs::symlink("f5", at("d/soft")).unwrap()));
}

#[test]
fn mode_and_time_cost_one_each_and_an_owner_two() {
    use std::os::unix::fs::PermissionsExt;
    let Some(both) = warm() else { return };
    let path = both.ours().join("d/f6");
    fs::metadata(&path).unwrap();
    let mode = || fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    at_most(1, &cost(&both, mode));
    let owner = || std::os::unix::fs::chown(&path, Some(1), Some(1)).unwrap();
    at_most(2, &cost(&both, owner));
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let time = || file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    at_most(1, &cost(&both, time));
}

#[test]
fn running_a_cached_program_costs_at_most_one() {
    let Some(both) = warm() else { return };
    let program = both.ours().join("busybox");
    let Some(source) =
        ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists())
    else {
        return;
    };
    fs::copy(source, &program).unwrap();
    // The path is absolute, and the program opens nothing.
    let run = || assert!(Command::new(&program).arg("true").status().unwrap().success());
    run();
    run();
    run();
    at_most(1, &cost(&both, run));
}
