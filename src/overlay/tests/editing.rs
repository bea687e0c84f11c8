//! Changes by calls, and mount points that leave no trace.

use super::*;
use crate::tree::Device;

fn kind_of_error<T: std::fmt::Debug>(result: std::io::Result<T>) -> std::io::ErrorKind {
    result.expect_err("must fail").kind()
}

#[test]
fn paths_resolve_inside_the_root() {
    let overlay = over(&[base()]);
    let root = overlay.after().root();
    let link = |name_: &str, target: &str| {
        overlay
            .put_symlink(root, &name(name_), &attributes(0o777), target.as_bytes())
            .expect("a link");
    };
    link("up", "../../etc");
    link("abs", "/usr/../bin/tool");
    link("loop", "loop");
    link("dangling", "etc/nothing");
    let found = overlay.resolve(&path("up/passwd"), Follow::All).expect("there");
    assert_eq!(found.path, path("etc/passwd"));
    assert_eq!(found.name, Some(name("passwd")));
    let found = overlay.resolve(&path("abs"), Follow::All).expect("there");
    assert_eq!((found.path, found.node.is_some()), (path("usr/bin/tool"), true));
    let found = overlay.resolve(&path("abs"), Follow::Parents).expect("there");
    assert_eq!((found.path, found.directory), (path("abs"), root));
    let found = overlay.resolve(&path("dangling"), Follow::All).expect("its directory is there");
    assert_eq!((found.path, found.node), (path("etc/nothing"), None));
    let found = overlay.resolve(&RootPath::root(), Follow::All).expect("the root");
    assert_eq!((found.name, found.node), (None, Some(root)));
    let error = overlay.resolve(&path("loop"), Follow::All).expect_err("a loop");
    assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    let missing = overlay.resolve(&path("no/where"), Follow::All);
    assert_eq!(kind_of_error(missing), std::io::ErrorKind::NotFound);
    let through = overlay.resolve(&path("etc/passwd/x"), Follow::All);
    assert_eq!(kind_of_error(through), std::io::ErrorKind::NotADirectory);
}

#[test]
fn a_put_replaces_the_name_and_not_the_file() {
    let overlay = over(&[base()]);
    let set = step(&overlay, || {
        put(&overlay, "usr/bin/tool", "new");
    });
    let tree = overlay.after();
    assert_eq!(text(tree.as_ref(), "usr/bin/tool"), "new");
    assert_eq!(text(tree.as_ref(), "usr/other"), "#!/bin/sh\necho tool\n");
    assert_eq!(tree.stat(node(tree.as_ref(), "usr/other")).unwrap().links, 2);
    assert!(paths(&set).contains(&"/usr/bin/tool".to_owned()));
}

#[test]
fn puts_respect_directories() {
    let overlay = over(&[base()]);
    let root = overlay.after().root();
    let onto = overlay.put_file(root, &name("etc"), &attributes(0o644), bytes("x"));
    assert_eq!(kind_of_error(onto), std::io::ErrorKind::IsADirectory);
    let again = overlay.make_directory(root, &name("etc"), &attributes(0o755));
    assert_eq!(kind_of_error(again), std::io::ErrorKind::AlreadyExists);
    let file = node(overlay.after().as_ref(), "etc/passwd");
    let below = overlay.put_file(file, &name("x"), &attributes(0o644), bytes("x"));
    assert_eq!(kind_of_error(below), std::io::ErrorKind::NotADirectory);
    let directories = overlay.make_directories(&path("etc/passwd/x"), &attributes(0o755));
    assert_eq!(kind_of_error(directories), std::io::ErrorKind::NotADirectory);
    let special = overlay.put_special(
        root,
        &name("null"),
        &attributes(0o666),
        Kind::CharDevice,
        Device { major: 1, minor: 3 },
    );
    let stat = overlay.after().stat(special.expect("a device")).unwrap();
    assert_eq!(stat.device, Device { major: 1, minor: 3 });
}

#[test]
fn make_directories_follows_links_and_leaves_what_is_there() {
    let overlay = over(&[base()]);
    let (made, at) = overlay.make_directories(&path("bin/a/b"), &attributes(0o700)).expect("made");
    assert_eq!(at, path("usr/bin/a/b"));
    assert_eq!(overlay.after().stat(made).unwrap().mode, 0o700);
    assert_eq!(overlay.after().stat(node(overlay.after().as_ref(), "usr")).unwrap().mode, 0o755);
}

#[test]
fn a_removed_subtree_is_one_deletion() {
    let overlay = over(&[base()]);
    let set = step(&overlay, || {
        overlay.remove(overlay.after().root(), &name("etc")).expect("there");
    });
    assert_eq!(paths(&set), ["-/etc"]);
    assert_eq!(text(overlay.before().as_ref(), "etc/deep/er/file"), "deep");
    overlay.mark();
    assert!(overlay.before().find(&path("etc")).unwrap().is_none());
}

#[test]
fn stubs_leave_no_trace() {
    let overlay = over(&[base()]);
    overlay.mark();
    let before = dump(overlay.after().as_ref());
    let mtime = overlay.after().stat(overlay.after().root()).unwrap().mtime;
    let stubs = vec![
        overlay.make_stub_directory(&path("proc")).expect("a stub"),
        overlay.make_stub_directory(&path("mnt/deep/a")).expect("a stub"),
        overlay.make_stub_file(&path("mnt/deep/b")).expect("a stub"),
        overlay.make_stub_file(&path("etc/passwd")).expect("there"),
        overlay.make_stub_directory(&path("bin/cache")).expect("a stub"),
    ];
    assert!(stubs[3].is_empty() && !stubs[0].is_empty());
    assert_eq!(stubs[4].path, path("usr/bin/cache"));
    assert!(overlay.after().find(&path("mnt/deep/b")).unwrap().is_some());
    overlay.remove_stubs(stubs).expect("removed");
    assert!(overlay.log().events.is_empty());
    assert_eq!(dump(overlay.after().as_ref()), before);
    assert_eq!(overlay.after().stat(overlay.after().root()).unwrap().mtime, mtime);
}

#[test]
fn a_stub_that_a_program_used_is_what_the_program_made() {
    let overlay = over(&[base()]);
    overlay.mark();
    let stubs = vec![
        overlay.make_stub_directory(&path("mnt/a")).expect("a stub"),
        overlay.make_stub_directory(&path("tmp/b")).expect("a stub"),
        overlay.make_stub_file(&path("etc/hosts")).expect("a stub"),
    ];
    put(&overlay, "mnt/real", "x");
    overlay.op_write(ino(&overlay, "etc/hosts"), 0, b"127.0.0.1").expect("room");
    // Came and went: no trace in tmp.
    put(&overlay, "tmp/b/c", "x");
    overlay.remove(node(overlay.after().as_ref(), "tmp/b"), &name("c")).expect("there");
    overlay.remove_stubs(stubs).expect("removed");
    assert_eq!(paths(&changes(&overlay)), ["/etc", "/etc/hosts", "/mnt", "/mnt/real"]);
    assert!(overlay.before().find(&path("mnt")).unwrap().is_none());
}

#[test]
fn a_stub_of_the_wrong_kind_is_refused() {
    let overlay = over(&[base()]);
    let file = overlay.make_stub_file(&path("etc"));
    assert_eq!(kind_of_error(file), std::io::ErrorKind::IsADirectory);
    let directory = overlay.make_stub_directory(&path("etc/passwd"));
    assert_eq!(kind_of_error(directory), std::io::ErrorKind::NotADirectory);
    let below = overlay.make_stub_directory(&path("etc/passwd/x"));
    assert_eq!(kind_of_error(below), std::io::ErrorKind::NotADirectory);
}
