//! Bytes that were written through a mapping arrive when the kernel likes.

use super::*;
use crate::overlay::ops::Change as SetAttr;
use crate::overlay::ops::SetTime;

fn file(overlay: &Overlay) -> inode::Ino {
    put(overlay, "f", "content");
    ino(overlay, "f")
}

#[test]
fn a_time_that_was_set_survives_late_pages_and_no_later_call() {
    let overlay = over(&[]);
    let file = file(&overlay);
    let time = Timestamp { seconds: 1_000, nanoseconds: 5 };
    let change = SetAttr { mtime: Some(SetTime::At(time)), ..SetAttr::default() };
    overlay.op_setattr(file, &change).unwrap();
    overlay.op_write_back(file, 0, b"late").unwrap();
    assert_eq!(overlay.op_getattr(file).unwrap().face.mtime, time);
    overlay.op_write(file, 0, b"call").unwrap();
    let written = overlay.op_getattr(file).unwrap().face.mtime;
    assert!(written.seconds > 1_000);
    overlay.op_write_back(file, 0, b"page").unwrap();
    assert!(overlay.op_getattr(file).unwrap().face.mtime >= written);
}

#[test]
fn late_pages_of_a_file_whose_time_was_set_long_ago_change_the_time() {
    let overlay = over(&[]);
    let file = file(&overlay);
    let time = Timestamp { seconds: 1_000, nanoseconds: 5 };
    let long_ago = Timestamp { seconds: inode::now().seconds - 36, nanoseconds: 0 };
    overlay.table().inode_mut(file).unwrap().set_mtime(time, Some(long_ago));
    overlay.op_write_back(file, 0, b"late").unwrap();
    assert!(overlay.op_getattr(file).unwrap().face.mtime.seconds > 1_000);
}
