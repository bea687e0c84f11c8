//! Hard links of a layer to files of the layers below it: the layer that has the file
//! doesn't know of them.

use tar::EntryType::Link;
use tar::EntryType::Regular;

use super::*;

/// `kept` below, `linked` above it, and `again` above that.
fn three() -> [Lower; 3] {
    let low = foreign(|tar| {
        add(tar, "kept", Regular, b"low");
        add(tar, "dir/several", Regular, b"low");
        add_link(tar, "dir/other", Link, "dir/several");
    });
    let middle = foreign(|tar| {
        add_link(tar, "linked", Link, "kept");
        add_link(tar, "deep/er/several", Link, "dir/other");
    });
    let high = foreign(|tar| {
        add_link(tar, "again", Link, "linked");
        add(tar, "dir/.wh.other", Regular, b"");
    });
    [low, middle, high]
}

#[test]
fn links_of_a_layer_to_a_lower_one_are_listed() {
    let [low, middle, high] = three();
    assert_eq!((low.index.lower_link_count(), low.index.lower_links()), (0, Vec::new()));
    let links: Vec<String> = middle
        .index
        .lower_links()
        .into_iter()
        .map(|(path, target)| format!("{path} {target}"))
        .collect();
    assert_eq!(links, ["/linked /kept", "/deep/er/several /dir/other"]);
    assert_eq!(high.index.lower_link_count(), 1);
}

#[test]
fn a_write_to_a_linked_lower_file_names_links_that_nobody_looked_up() {
    let overlay = over(&three());
    let set = step(&overlay, || {
        let ino = overlay.op_lookup(inode::ROOT, b"kept").unwrap().expect("there").ino;
        overlay.op_write(ino, 0, b"new").unwrap();
    });
    assert_eq!(paths(&set), ["/again", "/kept", "/linked"]);
}

#[test]
fn a_write_through_a_foreign_link_names_the_file_below() {
    let overlay = over(&three());
    let set = step(&overlay, || {
        let deep = node(overlay.after().as_ref(), "deep/er");
        let deep = view::ino_of(deep).expect("a number of ours");
        let ino = overlay.op_lookup(deep, b"several").unwrap().expect("there").ino;
        overlay.op_write(ino, 0, b"new").unwrap();
    });
    let files: Vec<String> =
        paths(&set).into_iter().filter(|path| path.ends_with("several")).collect();
    assert_eq!(files, ["/deep/er/several", "/dir/several"]);
}

#[test]
fn foreign_links_are_counted_before_anybody_looks() {
    let overlay = over(&three());
    let links = |at: &str| {
        let tree = overlay.after();
        tree.stat(node(tree.as_ref(), at)).expect("readable").links
    };
    assert_eq!((links("kept"), links("linked"), links("again")), (3, 3, 3));
    // `dir/other` is hidden from above.
    assert_eq!((links("deep/er/several"), links("dir/several")), (2, 2));
}
