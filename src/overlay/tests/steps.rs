//! Before and after, generations, settling.

use super::*;
use crate::overlay::inode::ROOT;
use crate::overlay::ops::Rename;

#[test]
fn before_stays_as_it_was_at_the_mark() {
    let overlay = over(&[base()]);
    overlay.mark();
    let old = dump(overlay.after().as_ref());
    put(&overlay, "etc/passwd", "changed");
    overlay.op_write(ino(&overlay, "usr/bin/tool"), 0, b"XX").expect("room");
    overlay.op_rename((ROOT, b"usr"), (ROOT, b"moved"), Rename::Replace).expect("moved");
    overlay.op_unlink(ino(&overlay, "moved/bin"), b"same").expect("there");
    overlay.remove(overlay.after().root(), &name("etc")).expect("there");
    assert_eq!(dump(overlay.before().as_ref()), old);
    let (before, tool) = (overlay.before(), ino(&overlay, "moved/bin"));
    let bin = NodeId(u64::from(tool));
    let parent = before.parent(bin).expect("a directory").expect("not the root");
    assert_eq!(before.find(&path("usr")).unwrap(), Some(parent.0));
    overlay.mark();
    assert_eq!(dump(overlay.before().as_ref()), dump(overlay.after().as_ref()));
}

#[test]
fn rename_away_and_back_keeps_inner_write() {
    let overlay = over(&[base()]);
    let set = step(&overlay, || {
        overlay.op_rename((ROOT, b"etc"), (ROOT, b"away"), Rename::Replace).expect("moved");
        overlay.op_write(ino(&overlay, "away/deep/er/file"), 0, b"DEEP").expect("room");
        overlay.op_rename((ROOT, b"away"), (ROOT, b"etc"), Rename::Replace).expect("moved");
    });
    let wanted = ["/etc", "/etc/deep", "/etc/deep/er", "/etc/deep/er/file"];
    assert_eq!(paths(&set), wanted);
}

#[test]
fn a_write_through_one_name_reaches_all_names_even_unseen_ones() {
    let overlay = over(&[base()]);
    let set = step(&overlay, || {
        // Only one name was ever looked up, and its directory moved.
        overlay.op_rename((ROOT, b"usr"), (ROOT, b"opt"), Rename::Replace).expect("moved");
        overlay.op_write(ino(&overlay, "opt/bin/same"), 0, b"##").expect("room");
    });
    let paths = paths(&set);
    for at in ["/opt/bin/same", "/opt/bin/tool", "/opt/other", "-/usr"] {
        assert!(paths.iter().any(|path| path == at), "{at} in {paths:?}");
    }
    let names = overlay.after().names(node(overlay.after().as_ref(), "opt/other")).unwrap();
    assert_eq!(names.map(|names| names.len()), Some(3));
}

#[test]
fn contents_of_a_step_stay_true_while_the_next_one_writes() {
    let overlay = over(&[]);
    let file = |set: &ChangeSet| {
        let mut contents = set.changes.iter().filter_map(|change| match change {
            Change::Put(put) => put.content.clone(),
            Change::Delete(_) => None,
        });
        contents.next_back().expect("a file")
    };
    let one = step(&overlay, || {
        put(&overlay, "f", "");
        overlay.op_write(ino(&overlay, "f"), 0, b"first").expect("room");
    });
    let two = step(&overlay, || {
        overlay.op_write(ino(&overlay, "f"), 0, b"second").expect("room");
        overlay.op_write(ino(&overlay, "f"), 1, b"E").expect("room");
    });
    overlay.mark();
    overlay.op_write(ino(&overlay, "f"), 0, b"third.").expect("room");
    assert_eq!(read_all(&file(&one)), b"first");
    assert_eq!(read_all(&file(&two)), b"sEcond");
    assert_eq!(text(overlay.after().as_ref(), "f"), "third.");
}

#[test]
fn settled_contents_come_out_of_the_layer_and_changed_ones_do_not() {
    let overlay = over(&[]);
    let set = step(&overlay, || {
        put(&overlay, "kept", "kept bytes");
        put(&overlay, "changed", "old bytes");
    });
    let layer = lower_of(&set);
    overlay.mark();
    overlay.op_write(ino(&overlay, "changed"), 0, b"NEW").expect("room");
    overlay.settle(&set, layer.clone());
    overlay.settle(&set, layer);
    let tree = overlay.after();
    let kept = tree.content(node(tree.as_ref(), "kept")).expect("a file");
    // Only a layer index knows a digest without reading.
    assert_eq!(kept.known_digest(), Some(*blake3::hash(b"kept bytes").as_bytes()));
    assert_eq!(read_all(&kept), b"kept bytes");
    assert_eq!(text(tree.as_ref(), "changed"), "NEW bytes");
    assert_eq!(text(overlay.before().as_ref(), "changed"), "old bytes");
    assert_eq!(paths(&changes(&overlay)), ["/changed"]);
}

#[test]
fn what_came_and_went_is_nothing() {
    let overlay = over(&[base()]);
    let set = step(&overlay, || {
        put(&overlay, "tmp/x/y", "z");
        overlay.remove(overlay.after().root(), &name("tmp")).expect("there");
    });
    assert!(set.is_empty(), "{:?}", paths(&set));
}
