//! Requests, without a kernel.

use super::*;
use crate::overlay::errno::Fault;
use crate::overlay::inode::Ino;
use crate::overlay::inode::ROOT;
use crate::overlay::ops::Change as SetAttr;
use crate::overlay::ops::NewNode;
use crate::overlay::ops::Rename;
use crate::overlay::ops::Seek;
use crate::overlay::ops::SetMode;
use crate::overlay::ops::Space;
use crate::tree::Device;

fn new(kind: Kind, mode: u16) -> NewNode<'static> {
    NewNode { kind, mode, uid: 7, gid: 8, device: Device::default(), target: &[] }
}

fn file(overlay: &Overlay, parent: Ino, name: &str) -> Ino {
    overlay.op_make(parent, name.as_bytes(), &new(Kind::File, 0o644)).expect("a file").ino
}

fn directory(overlay: &Overlay, parent: Ino, name: &str) -> Ino {
    overlay.op_make(parent, name.as_bytes(), &new(Kind::Directory, 0o755)).expect("a directory").ino
}

fn content(overlay: &Overlay, ino: Ino) -> Vec<u8> {
    let size = overlay.op_getattr(ino).expect("a file").face.size;
    let mut buffer = vec![9; size as usize + 10];
    let count = overlay.op_read(ino, 0, &mut buffer).expect("readable");
    buffer.truncate(count);
    buffer
}

fn list(overlay: &Overlay, ino: Ino, offset: u64, most: usize) -> (Vec<String>, u64) {
    let (mut names, mut next) = (Vec::new(), offset);
    overlay
        .op_readdir(ino, offset, |entry| {
            if names.len() == most {
                return true;
            }
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            next = entry.next;
            false
        })
        .expect("readable");
    (names, next)
}

#[test]
fn a_directory_is_read_to_its_end_while_its_entries_vanish() {
    let overlay = over(&[]);
    let dir = directory(&overlay, ROOT, "d");
    for number in 0..100 {
        file(&overlay, dir, &format!("f{number}"));
    }
    let (mut seen, mut offset) = (0, 2);
    loop {
        let (names, next) = list(&overlay, dir, offset, 7);
        if names.is_empty() {
            break;
        }
        for name in names {
            overlay.op_unlink(dir, name.as_bytes()).expect("still there");
            seen += 1;
        }
        offset = next;
    }
    assert_eq!(seen, 100);
    overlay.op_rmdir(ROOT, b"d").expect("empty");
}

#[test]
fn a_renamed_over_entry_keeps_its_place() {
    let overlay = over(&[]);
    for name in ["a", "b", "c"] {
        file(&overlay, ROOT, name);
    }
    file(&overlay, ROOT, "new");
    overlay.op_rename((ROOT, b"new"), (ROOT, b"a"), Rename::Replace).expect("renamed");
    assert_eq!(list(&overlay, ROOT, 0, 99).0, [".", "..", "a", "b", "c"]);
}

#[test]
fn writes_sparse_truncate_and_grow_like_any_file() {
    let overlay = over(&[]);
    let ino = file(&overlay, ROOT, "f");
    overlay.op_write(ino, 5, b"hello").expect("room");
    assert_eq!(content(&overlay, ino), b"\0\0\0\0\0hello");
    overlay.op_write(ino, 0, b"HE").expect("room");
    let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    overlay.op_setattr(ino, &size(7)).expect("shorter");
    overlay.op_setattr(ino, &size(9)).expect("longer");
    assert_eq!(content(&overlay, ino), b"HE\0\0\0he\0\0");
    overlay.op_fallocate(ino, 0, 1, Space::Punch).expect("a hole");
    overlay.op_fallocate(ino, 8, 4, Space::Zero).expect("zeros");
    assert_eq!(content(&overlay, ino), b"\0E\0\0\0he\0\0\0\0\0");
    assert_eq!(overlay.op_seek(ino, 0, Seek::Data).expect("data"), 1);
    assert_eq!(overlay.op_seek(ino, 1, Seek::Hole).expect("a hole"), 2);
    assert!(matches!(overlay.op_seek(ino, 7, Seek::Data), Err(Fault::NoOffset)));
    assert!(matches!(overlay.op_write(ino, u64::MAX - 3, b"xxx"), Err(Fault::TooLarge)));
    assert!(matches!(overlay.op_setattr(ino, &size(u64::MAX)), Err(Fault::TooLarge)));
}

#[test]
fn a_large_file_is_whole_across_log_flat_file_and_generations() {
    let overlay = over(&[]);
    let ino = file(&overlay, ROOT, "big");
    let mut model = vec![0_u8; 3 << 20];
    for (number, at) in (0..model.len()).step_by(200_000).enumerate() {
        let piece = vec![number as u8 + 1; 200_000.min(model.len() - at)];
        overlay.op_write(ino, at as u64, &piece).expect("room");
        model[at..at + piece.len()].copy_from_slice(&piece);
        if number % 3 == 0 {
            overlay.mark();
        }
    }
    let frozen = overlay.after().content(NodeId(u64::from(ino))).expect("a file");
    let old = model.clone();
    for at in [0, 1_100_000, 2_500_000] {
        overlay.op_write(ino, at, &[0xee; 100_000]).expect("room");
        model[at as usize..at as usize + 100_000].fill(0xee);
    }
    assert!(content(&overlay, ino) == model);
    assert!(read_all(&frozen) == old);
}

#[test]
fn a_copy_shares_bytes_and_stays_apart() {
    let overlay = over(&[]);
    let (one, two) = (file(&overlay, ROOT, "one"), file(&overlay, ROOT, "two"));
    overlay.op_write(one, 0, b"0123456789").expect("room");
    assert_eq!(overlay.op_copy((one, 2), (two, 4), 100).expect("copied"), 8);
    assert_eq!(content(&overlay, two), b"\0\0\0\x0023456789");
    overlay.op_write(one, 3, b"xx").expect("room");
    overlay.op_write(two, 0, b"yyyyyy").expect("room");
    assert_eq!(content(&overlay, one), b"012xx56789");
    assert_eq!(content(&overlay, two), b"yyyyyy456789");
    assert_eq!(overlay.op_copy((one, 0), (one, 20), 5).expect("within"), 5);
    assert_eq!(&content(&overlay, one)[20..], b"012xx");
    assert_eq!(overlay.op_copy((one, 99), (two, 0), 5).expect("past the end"), 0);
}

#[test]
fn renames_follow_their_flags() {
    let overlay = over(&[base()]);
    let dir = directory(&overlay, ROOT, "dir");
    let (a, b) = (file(&overlay, dir, "a"), file(&overlay, dir, "b"));
    let at = |name: &[u8]| overlay.op_lookup(dir, name).unwrap().map(|found| found.ino);
    let no_replace = overlay.op_rename((dir, b"a"), (dir, b"b"), Rename::NoReplace);
    assert!(matches!(no_replace, Err(Fault::Exists)));
    overlay.op_rename((dir, b"a"), (dir, b"b"), Rename::Exchange).expect("swapped");
    assert_eq!((at(b"a"), at(b"b")), (Some(b), Some(a)));
    overlay.op_rename((dir, b"a"), (dir, b"c"), Rename::Whiteout).expect("moved");
    let left = overlay.op_lookup(dir, b"a").unwrap().expect("a whiteout");
    assert_eq!((left.face.kind, left.face.device), (Kind::CharDevice, Device::default()));
    let into_itself = overlay.op_rename((ROOT, b"dir"), (dir, b"x"), Rename::Replace);
    assert!(matches!(into_itself, Err(Fault::Invalid)));
    let onto_file = overlay.op_rename((ROOT, b"dir"), (ROOT, b"bin"), Rename::Replace);
    assert!(matches!(onto_file, Err(Fault::NotDirectory)));
    let onto_full = overlay.op_rename((ROOT, b"etc"), (ROOT, b"dir"), Rename::Replace);
    assert!(matches!(onto_full, Err(Fault::NotEmpty)));
    overlay.op_rename((ROOT, b"etc"), (dir, b"etc"), Rename::Replace).expect("moved");
    assert_eq!(text(overlay.after().as_ref(), "dir/etc/deep/er/file"), "deep");
}

#[test]
fn a_removed_open_file_lives_until_it_is_forgotten() {
    let overlay = over(&[]);
    let ino = file(&overlay, ROOT, "f");
    overlay.op_write(ino, 0, b"bytes").expect("room");
    overlay.op_unlink(ROOT, b"f").expect("there");
    assert_eq!(content(&overlay, ino), b"bytes");
    assert_eq!(overlay.op_getattr(ino).expect("open").face.links, 0);
    assert!(matches!(overlay.op_link(ino, ROOT, b"back"), Err(Fault::NotFound)));
    overlay.op_forget(ino, 1);
    assert!(overlay.op_getattr(ino).is_err());
    assert_eq!(file(&overlay, ROOT, "g"), ino, "its number is free again");
}

#[test]
fn entries_inherit_the_group_of_a_set_group_id_directory() {
    let overlay = over(&[]);
    let dir = directory(&overlay, ROOT, "d");
    let change = SetAttr { mode: Some(0o2775), gid: Some(50), ..SetAttr::default() };
    overlay.op_setattr(dir, &change).expect("there");
    let sub = overlay.op_make(dir, b"s", &new(Kind::Directory, 0o755)).expect("a directory");
    assert_eq!((sub.face.gid, sub.face.mode), (50, 0o2755));
    let inner = overlay.op_make(dir, b"f", &new(Kind::File, 0o644)).expect("a file");
    assert_eq!((inner.face.uid, inner.face.gid, inner.face.mode), (7, 50, 0o644));
}

#[test]
fn capabilities_go_when_a_file_is_written_or_given_away() {
    for how in ["write", "truncate", "chown"] {
        let overlay = over(&[base()]);
        let tool = ino(&overlay, "usr/bin/tool");
        assert!(overlay.op_getxattr(tool, b"security.capability").is_ok());
        match how {
            "write" => overlay.op_write(tool, 0, b"x").expect("room"),
            "truncate" => {
                drop(overlay.op_setattr(tool, &SetAttr { size: Some(3), ..SetAttr::default() }))
            }
            _ => drop(overlay.op_setattr(tool, &SetAttr { uid: Some(1), ..SetAttr::default() })),
        }
        let gone = overlay.op_getxattr(tool, b"security.capability");
        assert!(matches!(gone, Err(Fault::NoAttribute)), "{how}");
    }
}

#[test]
fn attributes_are_set_listed_and_removed() {
    let overlay = over(&[]);
    let ino = file(&overlay, ROOT, "f");
    for name in ["user.b", "user.a"] {
        overlay.op_setxattr(ino, name.as_bytes(), b"v", SetMode::Create).expect("new");
    }
    let again = overlay.op_setxattr(ino, b"user.a", b"w", SetMode::Create);
    assert!(matches!(again, Err(Fault::Exists)));
    assert_eq!(overlay.op_listxattr(ino).expect("two"), b"user.a\0user.b\0");
    overlay.op_removexattr(ino, b"user.a").expect("there");
    let replaced = overlay.op_setxattr(ino, b"user.a", b"w", SetMode::Replace);
    assert!(matches!(replaced, Err(Fault::NoAttribute)));
}

/// `tests/mount_fidelity.rs` compares with a disk what a newer kernel lets through.
#[test]
fn an_acl_that_is_none_is_refused_and_an_empty_one_removed() {
    let acl = |entries: &[[u8; 2]]| {
        let entry = |[tag, permissions]: &[u8; 2]| [*tag, 0, *permissions, 0, 255, 255, 255, 255];
        [vec![2, 0, 0, 0], entries.iter().flat_map(entry).collect()].concat()
    };
    let overlay = over(&[]);
    let ino = file(&overlay, ROOT, "f");
    let name = crate::overlay::acl::ACCESS;
    let set = |value: &[u8]| overlay.op_setxattr(ino, name, value, SetMode::Any);
    let masked = acl(&[[1, 6], [2, 7], [4, 0], [16, 4], [32, 0]]);
    assert!(set(&masked).expect("an ACL"));
    let no_mask = acl(&[[1, 6], [2, 7], [4, 0], [32, 0]]);
    let (no_owner, bad_tag) = (acl(&[[4, 0], [32, 0]]), acl(&[[1, 6], [4, 0], [32, 0], [3, 0]]));
    let (bad_bits, cut) = (acl(&[[1, 8], [4, 0], [32, 0]]), &masked[..masked.len() - 1]);
    for bad in [&no_mask[..], &no_owner, &bad_tag, &bad_bits, cut, b"", &[3, 0, 0, 0]] {
        assert!(matches!(set(bad), Err(Fault::Invalid)), "{bad:?}");
    }
    assert_eq!(overlay.op_getxattr(ino, name).expect("kept"), masked);
    assert!(!set(&acl(&[])).expect("an empty ACL"));
    assert!(matches!(overlay.op_getxattr(ino, name), Err(Fault::NoAttribute)));
    assert_eq!(overlay.op_getattr(ino).expect("there").face.mode, 0o640);
}

#[test]
fn names_are_checked() {
    let overlay = over(&[]);
    let make = |name: &[u8]| overlay.op_make(ROOT, name, &new(Kind::File, 0o644));
    assert!(matches!(make(&[b'x'; 256]), Err(Fault::NameTooLong)));
    assert!(make(&[b'x'; 255]).is_ok());
    for bad in [&b"."[..], b"..", b"", b"a/b", b"a\0b"] {
        assert!(matches!(make(bad), Err(Fault::Invalid)));
    }
    let found = overlay.op_lookup(ROOT, &[b'x'; 256]);
    assert!(matches!(found, Err(Fault::NameTooLong)));
}

#[test]
fn numbers_that_are_nobodys_are_stale() {
    let overlay = over(&[]);
    for number in [0, 2, u32::MAX] {
        assert!(matches!(overlay.op_getattr(number), Err(Fault::Stale)));
        assert!(matches!(overlay.op_lookup(number, b"x"), Err(Fault::Stale)));
        overlay.op_forget(number, u64::MAX);
    }
    let file = file(&overlay, ROOT, "f");
    assert!(matches!(overlay.op_lookup(file, b"x"), Err(Fault::NotDirectory)));
    assert!(matches!(overlay.op_read(ROOT, 0, &mut [0]), Err(Fault::IsDirectory)));
    assert!(matches!(overlay.op_readlink(file), Err(Fault::Invalid)));
}
