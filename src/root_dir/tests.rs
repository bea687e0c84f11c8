use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn path(text: &str) -> RootPath {
    RootPath::clamped(text.as_bytes()).unwrap()
}

/// A root in a directory that also holds `outside`, and both ways of confinement.
fn roots() -> (TempDir, [RootDir; 2]) {
    let top = TempDir::new().unwrap();
    fs::create_dir_all(top.path().join("root/a/b")).unwrap();
    fs::write(top.path().join("outside"), "outside").unwrap();
    fs::write(top.path().join("root/a/file"), "inside").unwrap();
    let open = || RootDir::open(&top.path().join("root")).unwrap();
    let roots = [open(), open().walking()];
    assert_eq!(roots[1].confinement(), Confinement::Walk);
    (top, roots)
}

fn text(root: &RootDir, at: &str, links: Links) -> Result<String, Error> {
    let mut text = String::new();
    root.open_file(&path(at), links)?.read_to_string(&mut text).unwrap();
    Ok(text)
}

#[test]
fn scoped_links_never_leave_the_root() {
    let (top, roots) = roots();
    let inside = top.path().join("root");
    symlink("../../../outside", inside.join("up")).unwrap();
    symlink(top.path().join("outside"), inside.join("away")).unwrap();
    symlink("/a", inside.join("absolute")).unwrap();
    symlink("a/../../a/./file", inside.join("winding")).unwrap();
    symlink("..", inside.join("a/parent")).unwrap();
    for root in roots {
        for escaping in ["up", "away"] {
            let error = text(&root, escaping, Links::Scoped).unwrap_err();
            assert!(error.is_not_found(), "{escaping}: {error:?}");
        }
        for through in ["absolute/file", "winding", "a/parent/a/parent/a/file"] {
            assert_eq!(text(&root, through, Links::Scoped).unwrap(), "inside", "{through}");
        }
        assert_eq!(root.resolve(&path("winding"), true).unwrap(), path("a/file"));
        assert_eq!(root.resolve(&path("winding"), false).unwrap(), path("winding"));
        assert_eq!(root.resolve(&path("absolute/parent"), true).unwrap(), RootPath::root());
        fs::write(inside.join("outside"), "scoped").unwrap();
        assert_eq!(text(&root, "up", Links::Scoped).unwrap(), "scoped");
        fs::remove_file(inside.join("outside")).unwrap();
    }
}

#[test]
fn links_that_leave_are_refused_where_only_inner_ones_are_allowed() {
    let (top, roots) = roots();
    let inside = top.path().join("root");
    symlink("../outside", inside.join("up")).unwrap();
    symlink("/a/file", inside.join("absolute")).unwrap();
    symlink("a", inside.join("inner")).unwrap();
    for root in roots {
        for leaving in ["up", "absolute"] {
            let error = text(&root, leaving, Links::Inside).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::CrossesDevices, "{leaving}");
        }
        assert_eq!(text(&root, "inner/file", Links::Inside).unwrap(), "inside");
        let error = text(&root, "inner/file", Links::Refused).unwrap_err();
        assert_eq!(error.kind(), io::Error::from(Errno::LOOP).kind());
        assert_eq!(text(&root, "a/file", Links::Refused).unwrap(), "inside");
    }
}

#[test]
fn link_circles_end() {
    let (top, roots) = roots();
    symlink("two", top.path().join("root/one")).unwrap();
    symlink("one", top.path().join("root/two")).unwrap();
    for root in roots {
        for links in [Links::Scoped, Links::Inside, Links::Refused] {
            let error = text(&root, "one", links).unwrap_err();
            assert_eq!(error.kind(), io::Error::from(Errno::LOOP).kind());
        }
        assert_eq!(root.read_link(&path("one")).unwrap(), b"two");
        assert_eq!(root.stat(&path("one"), false).unwrap().stat.kind, Kind::Symlink);
    }
}

#[test]
fn a_pipe_is_refused_and_never_waited_for() {
    let (_top, roots) = roots();
    let directory = roots[0].open_directory(&path("a"), Links::Refused).unwrap();
    directory.create_fifo(&Name::new(b"pipe").unwrap()).unwrap();
    for root in roots {
        let error = text(&root, "a/pipe", Links::Scoped).unwrap_err();
        assert!(matches!(error, Error::NotAFile { .. }), "{error}");
        assert_eq!(root.stat(&path("a/pipe"), true).unwrap().stat.kind, Kind::Fifo);
    }
}

#[test]
fn listings_are_sorted_and_typed() {
    let (top, roots) = roots();
    symlink("nowhere", top.path().join("root/a/link")).unwrap();
    for root in roots {
        let entries = root.read_dir(&path("a")).unwrap();
        let shown: Vec<_> =
            entries.iter().map(|entry| (entry.name.to_string(), entry.kind.unwrap())).collect();
        let expected = [("b", Kind::Directory), ("file", Kind::File), ("link", Kind::Symlink)];
        assert_eq!(shown, expected.map(|(name, kind)| (name.to_owned(), kind)));
    }
}

#[test]
fn errors_name_the_path_and_survive_as_io_errors() {
    let (top, [root, _]) = roots();
    let error = io::Error::from(text(&root, "a/none", Links::Scoped).unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let expected = format!("cannot open {}", top.path().join("root/a/none").display());
    assert_eq!(error.to_string(), expected);
}

#[test]
fn attributes_are_read_where_the_filesystem_keeps_them() {
    let (top, roots) = roots();
    let file = top.path().join("root/a/file");
    match rustix::fs::setxattr(&file, c"user.key", &[7; 1000], rustix::fs::XattrFlags::empty()) {
        Ok(()) => {
            for root in roots {
                let found = root.xattrs(&path("a/file")).unwrap();
                assert!(found.contains(&(b"user.key".to_vec(), vec![7; 1000])), "{found:?}");
            }
        }
        Err(errno) => {
            assert_eq!(errno, Errno::NOTSUP);
            assert_eq!(roots[0].xattrs(&path("a/file")).unwrap(), []);
        }
    }
}

fn target() -> impl Strategy<Value = String> {
    let part = prop_oneof![Just(".."), Just("."), Just("a"), Just("b"), Just("l0"), Just("l1")];
    (any::<bool>(), prop::collection::vec(part, 1..5)).prop_map(|(absolute, parts)| {
        format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The kernel is the oracle of our walk.
    #[test]
    fn the_walk_agrees_with_the_kernel(
        links in prop::collection::vec((any::<bool>(), target()), 2..=2),
        asked in prop::collection::vec(target(), 8),
    ) {
        let (top, [kernel, walking]) = roots();
        for (index, (nested, target)) in links.iter().enumerate() {
            let place = if *nested { "root/a" } else { "root" };
            symlink(target, top.path().join(place).join(format!("l{index}"))).unwrap();
        }
        for text in asked {
            let asked = path(&text);
            for mode in [Links::Scoped, Links::Inside, Links::Refused] {
                for follow in [OFlags::PATH, OFlags::PATH | OFlags::NOFOLLOW, OFlags::RDONLY] {
                    let answer = |root: &RootDir| {
                        root.open_at(&asked, follow, mode)
                            .and_then(DiskStat::of)
                            .map(|found| found.inode)
                            .map_err(|error| error.raw_os_error())
                    };
                    prop_assert_eq!(answer(&kernel), answer(&walking), "{} {:?}", text, mode);
                }
            }
        }
    }
}
