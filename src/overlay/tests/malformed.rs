//! Requests as no kernel would send them, from several threads: whatever they ask, the
//! answer is an error or a success, the table stays whole, and nothing panics.

use proptest::prelude::*;

use super::*;
use crate::overlay::inode::ROOT;
use crate::overlay::ops::Change as SetAttr;
use crate::overlay::ops::NewNode;
use crate::overlay::ops::Rename;
use crate::overlay::ops::Seek;
use crate::overlay::ops::SetMode;
use crate::overlay::ops::SetTime;
use crate::overlay::ops::Space;
use crate::tree::Device;

/// One request: what, two inodes, two names, numbers.
type Ask = (u8, u8, u8, u8, u8, u64, u64);

/// Numbers of nodes that are there, were there, and never were.
fn number(choice: u8) -> inode::Ino {
    match choice {
        0 => 0,
        1..=4 => ROOT,
        5..=200 => u32::from(choice) % 24,
        201..=230 => u32::from(choice),
        _ => u32::MAX - u32::from(choice),
    }
}

fn words(choice: u8) -> Vec<u8> {
    match choice % 16 {
        0 => Vec::new(),
        1 => b".".to_vec(),
        2 => b"..".to_vec(),
        3 => b"a/b".to_vec(),
        4 => b"nul\0".to_vec(),
        5 => vec![b'x'; 255],
        6 => vec![b'x'; 256],
        7 => vec![b'x'; 70_000],
        8 => vec![0xff, 0xfe],
        9 => b".wh.a".to_vec(),
        10 => b"etc".to_vec(),
        11 => b"usr".to_vec(),
        choice => vec![b'a' + choice],
    }
}

/// Offsets and lengths: small ones, and those at the edges of what fits.
fn amount(choice: u64) -> u64 {
    match choice % 12 {
        0 => u64::MAX,
        1 => i64::MAX as u64,
        2 => i64::MAX as u64 - 4_000,
        3 => 1 << 40,
        4 => u64::from(u32::MAX) + 1,
        5 => (1 << 20) - 3,
        _ => choice % 9_000,
    }
}

fn ask(overlay: &Overlay, (what, one, two, first, second, x, y): Ask) {
    let (ino, other) = (number(one), number(two));
    let (name, further) = (words(first), words(second));
    let (offset, length) = (amount(x), amount(y));
    let piece = vec![first; (y % 5_000) as usize];
    let kinds = [
        Kind::File,
        Kind::Directory,
        Kind::Symlink,
        Kind::Fifo,
        Kind::Socket,
        Kind::CharDevice,
        Kind::BlockDevice,
    ];
    match what % 26 {
        0..=3 => {
            let new = NewNode {
                kind: kinds[second as usize % kinds.len()],
                mode: x as u16,
                uid: y as u32,
                gid: x as u32,
                device: Device { major: x as u32, minor: y as u32 },
                target: &further,
            };
            let _ = overlay.op_make(ino, &name, &new);
        }
        4 | 5 => drop(overlay.op_lookup(ino, &name)),
        6 => overlay.op_forget(ino, x % 7),
        7 => overlay.op_forget(ino, x),
        8 => drop(overlay.op_getattr(ino)),
        9 => {
            let time = Timestamp { seconds: x.cast_signed(), nanoseconds: y as u32 };
            let change = SetAttr {
                mode: (second & 1 != 0).then_some(y as u16),
                uid: (second & 2 != 0).then_some(x as u32),
                gid: (second & 4 != 0).then_some(y as u32),
                size: (second & 8 != 0).then_some(length),
                atime: (second & 16 != 0).then_some(SetTime::At(time)),
                mtime: (second & 32 != 0).then_some(SetTime::Now),
            };
            let _ = overlay.op_setattr(ino, &change);
        }
        10 => drop(overlay.op_readlink(ino)),
        11 => drop(overlay.op_unlink(ino, &name)),
        12 => drop(overlay.op_rmdir(ino, &name)),
        13 => drop(overlay.op_link(ino, other, &name)),
        14 | 15 => {
            let how = [
                Rename::Replace,
                Rename::NoReplace,
                Rename::Exchange,
                Rename::Whiteout,
                Rename::NoReplaceWhiteout,
            ];
            let how = how[x as usize % how.len()];
            let _ = overlay.op_rename((ino, &name), (other, &further), how);
        }
        16 => {
            let mut left = y % 40;
            let _ = overlay.op_readdirplus(ino, offset, |_, _| {
                left = left.saturating_sub(1);
                left == 0
            });
        }
        17 => drop(overlay.op_readdir(ino, offset, |entry| entry.next > length)),
        18 => {
            let mode = [SetMode::Any, SetMode::Create, SetMode::Replace][x as usize % 3];
            let _ = overlay.op_setxattr(ino, &name, &piece, mode);
        }
        19 => {
            let _ = overlay.op_getxattr(ino, &name);
            let _ = overlay.op_listxattr(ino);
            let _ = overlay.op_removexattr(ino, &further);
        }
        20 => drop(overlay.op_write(ino, offset, &piece)),
        21 => drop(overlay.op_write_back(ino, offset, &piece)),
        22 => drop(overlay.op_read(ino, offset, &mut vec![0; (y % 70_000) as usize])),
        23 => {
            let what = [Space::Extend, Space::Keep, Space::Punch, Space::Zero, Space::ZeroKeep];
            let _ = overlay.op_fallocate(ino, offset, length, what[second as usize % 5]);
            let _ = overlay.op_kill_set_id(ino);
        }
        24 => {
            let _ = overlay.op_seek(ino, offset, Seek::Data);
            let _ = overlay.op_seek(ino, offset, Seek::Hole);
        }
        _ => drop(overlay.op_copy((ino, offset), (other, amount(y >> 8)), length)),
    }
}

/// Everything that can be reached is there, knows its names, and has at least as many
/// links as names. Contents are not read: they may be longer than any memory.
pub(super) fn check(overlay: &Overlay) {
    let tree = overlay.after();
    let mut pending = vec![(tree.root(), 0)];
    let mut names: BTreeMap<NodeId, u32> = BTreeMap::new();
    while let Some((directory, depth)) = pending.pop() {
        assert!(depth < 10_000, "a circle");
        for (name, child) in tree.children(directory).expect("readable") {
            assert_eq!(tree.child(directory, name.as_bytes()).expect("readable"), Some(child));
            let known = tree.names(child).expect("readable").expect("it can tell");
            assert!(known.contains(&(directory, name)), "a node that doesn't know its name");
            *names.entry(child).or_default() += 1;
            if tree.stat(child).expect("readable").is_directory() {
                pending.push((child, depth + 1));
            }
        }
    }
    for (node, count) in names {
        let stat = tree.stat(node).expect("readable");
        assert!(stat.is_directory() && count == 1 || stat.links >= count);
    }
}

fn asks(count: usize) -> impl Strategy<Value = Vec<Ask>> {
    prop::collection::vec(any::<Ask>(), 1..count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_request_panics_or_breaks_the_table(rounds in prop::collection::vec(asks(120), 1..4)) {
        let overlay = over(&[base()]);
        for round in rounds {
            overlay.mark();
            round.into_iter().for_each(|request| ask(&overlay, request));
            check(&overlay);
            // The kernel is gone, and comes back.
            overlay.table().forget_all();
            check(&overlay);
            prop_assert_eq!(overlay.log().lost, None);
        }
    }

    #[test]
    fn requests_of_several_threads_do_not_break_the_table(
        each in prop::collection::vec(asks(80), 3)
    ) {
        let overlay = over(&[base()]);
        overlay.mark();
        std::thread::scope(|scope| {
            let threads: Vec<_> = each
                .into_iter()
                .map(|requests| {
                    let overlay = &overlay;
                    scope.spawn(move || {
                        requests.into_iter().for_each(|request| ask(overlay, request));
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("no panic");
            }
        });
        check(&overlay);
    }
}
