//! Requests as bytes: those a kernel sends, and those none would.

use proptest::prelude::*;
use zerocopy::FromBytes;
use zerocopy::IntoBytes;

use super::*;
use crate::overlay::inode::ROOT;
use crate::overlay::wire::Agreement;
use crate::overlay::wire::Core;
use crate::overlay::wire::HEADER_IN;
use crate::overlay::wire::HEADER_OUT;
use crate::overlay::wire::HeaderIn;
use crate::overlay::wire::HeaderOut;
use crate::overlay::wire::LARGEST_ANSWER;

const LOOKUP: u32 = 1;
const SETATTR: u32 = 4;
const LINK: u32 = 13;
const WRITE: u32 = 16;
const GETXATTR: u32 = 22;
const REMOVEXATTR: u32 = 24;
const READDIRPLUS: u32 = 44;
const TMPFILE: u32 = 51;

/// Offset of a field in the attributes behind `fuse_entry_out`'s own fields.
const ENTRY_ATTR: usize = 40;
const ATTR_MODE: usize = 60;
const ATTR_LINKS: usize = 64;

fn core(overlay: &Arc<Overlay>) -> Core {
    core_of(overlay, false)
}

fn core_of(overlay: &Arc<Overlay>, passes_through: bool) -> Core {
    let agreement =
        Agreement { says_before_changing: true, passes_through, ..Agreement::default() };
    Core::new(Arc::clone(overlay), None, agreement)
}

#[test]
fn a_thread_that_ends_late_says_nothing_about_the_next_mount() {
    let overlay = over(&[]);
    let (earlier, later) = (core(&overlay), core(&overlay));
    earlier.ended(Err::<(), _>("a mistake")).expect_err("handed on");
    assert!(earlier.alarm().is_raised());
    assert!(!later.alarm().is_raised());
}

/// What is asked, by whom, of which node.
#[derive(Clone, Copy)]
struct Ask {
    opcode: u32,
    node: u64,
    thread: u32,
}

fn ask(opcode: u32, node: u64) -> Ask {
    Ask { opcode, node, thread: 1 }
}

fn message(Ask { opcode, node, thread }: Ask, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER_IN + body.len()).expect("short");
    let header = HeaderIn {
        len,
        opcode,
        unique: 77,
        nodeid: node,
        uid: 1000,
        gid: 1001,
        pid: thread,
        ..HeaderIn::default()
    };
    [header.as_bytes(), body].concat()
}

/// The error and the body of the answer; whatever comes back is framed as it must be.
fn answer(core: &Core, message: &[u8]) -> Option<(i32, Vec<u8>)> {
    let mut out = vec![0xa5; LARGEST_ANSWER];
    let length = core.serve(message, &mut out)?;
    let (header, _) = HeaderOut::read_from_prefix(&out).expect("a header");
    assert_eq!(header.len as usize, length);
    assert!(length >= HEADER_OUT && (header.error == 0 || length == HEADER_OUT));
    assert!(header.error <= 0 && header.error > -512, "no errno of the kernel's");
    Some((-header.error, out[HEADER_OUT..length].to_vec()))
}

fn done(core: &Core, what: Ask, body: &[u8]) -> Vec<u8> {
    let (error, body) = answer(core, &message(what, body)).expect("an answer");
    assert_eq!(error, 0, "request {}", what.opcode);
    body
}

fn failed(core: &Core, what: Ask, body: &[u8]) -> i32 {
    answer(core, &message(what, body)).expect("an answer").0
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A SETATTR that names `valid`, with `size` and `mode`.
fn setattr(valid: u32, size: u64, mode: u32) -> Vec<u8> {
    let mut body = vec![0; 88];
    body[..4].copy_from_slice(&valid.to_ne_bytes());
    body[16..24].copy_from_slice(&size.to_ne_bytes());
    body[68..72].copy_from_slice(&mode.to_ne_bytes());
    body
}

fn write(flags: u32, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).expect("short");
    let fields = words(&[0, 0, 0, 0, size, flags, 0, 0, 0, 0]);
    [&fields, data].concat()
}

/// A program with set-id bits and, if it `has_capability`, one.
fn program(overlay: &Overlay, has_capability: bool) -> u64 {
    put(overlay, "program", "code");
    let node = ino(overlay, "program");
    let change = ops::Change { mode: Some(0o6755), ..ops::Change::default() };
    overlay.op_setattr(node, &change).unwrap();
    if has_capability {
        let name = b"security.capability";
        overlay.op_setxattr(node, name, b"much", ops::SetMode::Any).unwrap();
    }
    overlay.op_lookup(ROOT, b"program").unwrap();
    u64::from(node)
}

fn mode(overlay: &Overlay, node: u64) -> u16 {
    overlay.op_getattr(u32::try_from(node).unwrap()).unwrap().face.mode
}

const CAPABILITY: &[u8] = b"security.capability\0";

#[test]
fn a_nameless_file_is_linked_once_and_gone_when_forgotten() {
    let overlay = over(&[]);
    overlay.mark();
    let core = core(&overlay);
    let create = words(&[libc::O_TMPFILE as u32 | libc::O_RDWR as u32, 0o100_640, 0o022, 0]);
    let body = [create.as_slice(), b"/\0"].concat();
    let made = done(&core, ask(TMPFILE, u64::from(ROOT)), &body);
    assert_eq!(made.len(), 144);
    let node = long(&made, 0);
    assert_eq!(word(&made, ENTRY_ATTR + ATTR_LINKS), 0);
    assert_eq!(word(&made, ENTRY_ATTR + ATTR_MODE), 0o100_640);
    done(&core, ask(WRITE, node), &write(0, b"hidden"));
    assert_eq!(dump(&*overlay.after()), dump(&*overlay.before()), "it is in no layer");

    let link = [node.to_ne_bytes().as_slice(), b"seen\0"].concat();
    let linked = done(&core, ask(LINK, u64::from(ROOT)), &link);
    assert_eq!(word(&linked, ENTRY_ATTR + ATTR_LINKS), 1);
    assert_eq!(text(&*overlay.after(), "seen"), "hidden");
    overlay.op_unlink(ROOT, b"seen").unwrap();
    assert_eq!(failed(&core, ask(LINK, u64::from(ROOT)), &link), libc::ENOENT);

    let other = long(&done(&core, ask(TMPFILE, u64::from(ROOT)), &body), 0);
    let number = u32::try_from(other).unwrap();
    assert!(overlay.op_getattr(number).is_ok());
    overlay.op_forget(number, 1);
    assert!(overlay.op_getattr(number).is_err());
}

#[test]
fn a_nameless_file_that_is_exclusive_gets_no_name() {
    let overlay = over(&[]);
    let core = core(&overlay);
    let flags = libc::O_TMPFILE | libc::O_EXCL | libc::O_RDWR;
    let body = [words(&[flags as u32, 0o100_600, 0, 0]).as_slice(), b"/\0"].concat();
    let node = long(&done(&core, ask(TMPFILE, u64::from(ROOT)), &body), 0);
    let link = [node.to_ne_bytes().as_slice(), b"seen\0"].concat();
    assert_eq!(failed(&core, ask(LINK, u64::from(ROOT)), &link), libc::ENOENT);
    put(&overlay, "file", "");
    let file = u64::from(ino(&overlay, "file"));
    assert_eq!(failed(&core, ask(TMPFILE, file), &body), libc::ENOTDIR);
}

#[test]
fn a_truncation_takes_set_id_bits_only_where_the_kernel_says_so() {
    let overlay = over(&[]);
    let core = core(&overlay);
    let node = program(&overlay, false);
    done(&core, ask(SETATTR, node), &setattr(1 << 3, 2, 0));
    assert_eq!(mode(&overlay, node), 0o6755);
    let changed = done(&core, ask(SETATTR, node), &setattr(1 << 3 | 1 << 11, 1, 0));
    assert_eq!(word(&changed, 16 + ATTR_MODE), 0o100_755, "the kernel is told");
    assert_eq!(mode(&overlay, node), 0o755);
}

#[test]
fn a_write_takes_set_id_bits_only_where_the_kernel_says_so() {
    let overlay = over(&[]);
    let core = core(&overlay);
    let node = program(&overlay, false);
    done(&core, ask(WRITE, node), &write(0, b"x"));
    // A page of a mapping, whoever brings it.
    done(&core, ask(WRITE, node), &write(1 | 1 << 2, b"x"));
    assert_eq!(mode(&overlay, node), 0o6755);
    done(&core, ask(WRITE, node), &write(1 << 2, b"x"));
    assert_eq!(mode(&overlay, node), 0o755);
}

#[test]
fn a_change_of_owner_to_nobody_takes_set_id_bits_with_and_without_a_capability() {
    for has_capability in [false, true] {
        let overlay = over(&[]);
        let core = core(&overlay);
        let node = program(&overlay, has_capability);
        if has_capability {
            done(&core, ask(REMOVEXATTR, node), CAPABILITY);
        }
        let changed = done(&core, ask(SETATTR, node), &setattr(0, 0, 0));
        assert_eq!(word(&changed, 16 + ATTR_MODE), 0o100_755);
        // A later write of the same thread asks for the capability first.
        let question = [words(&[0, 0]).as_slice(), CAPABILITY].concat();
        assert_eq!(failed(&core, ask(GETXATTR, node), &question), libc::ENODATA);
        done(&core, ask(WRITE, node), &write(0, b"x"));
        assert_eq!(mode(&overlay, node), 0o755);
    }
}

#[test]
fn a_write_over_a_capability_keeps_set_id_bits_of_who_may_keep_them() {
    for (flags, kept) in [(0, 0o6755), (1 << 2, 0o755)] {
        let overlay = over(&[]);
        let core = core(&overlay);
        let node = program(&overlay, true);
        done(&core, ask(REMOVEXATTR, node), CAPABILITY);
        done(&core, ask(SETATTR, node), &setattr(0, 0, 0));
        // Another thread looks, and writes nothing.
        let looks = Ask { thread: 2, ..ask(LOOKUP, u64::from(ROOT)) };
        done(&core, looks, b"program\0");
        done(&core, ask(WRITE, node), &write(flags, b"x"));
        assert_eq!(mode(&overlay, node), kept);
    }
}

#[test]
fn a_directory_is_listed_within_the_room_that_there_is() {
    let overlay = over(&[base()]);
    for number in 0..40 {
        put(&overlay, &format!("d/file-{number:03}"), "x");
    }
    let core = core(&overlay);
    let node = u64::from(ino(&overlay, "d"));
    let mut names = Vec::new();
    let mut offset = 0_u64;
    loop {
        let [low, high] = [offset as u32, (offset >> 32) as u32];
        let body = words(&[0, 0, low, high, 700, 0, 0, 0, 0, 0]);
        let listed = done(&core, ask(READDIRPLUS, node), &body);
        assert!(listed.len() <= 700 && listed.len().is_multiple_of(8));
        if listed.is_empty() {
            break;
        }
        let mut at = 0;
        while at < listed.len() {
            let length = word(&listed, at + 144) as usize;
            names.push(String::from_utf8(listed[at + 152..at + 152 + length].to_vec()).unwrap());
            offset = long(&listed, at + 136);
            at += (152 + length).next_multiple_of(8);
        }
    }
    assert_eq!(names.len(), 42);
    assert_eq!((names[0].as_str(), names[41].as_str()), (".", "file-039"));
}

/// Bytes that are nearly a request: the header is right, or not, and so is the length.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let known = prop_oneof![8 => 1_u32..54, 1 => any::<u32>()];
    let node = prop_oneof![4 => 0_u64..24, 1 => any::<u64>()];
    let field = prop_oneof![
        4 => 0_u32..24,
        2 => prop::sample::select(vec![4096, 1 << 20, u32::MAX, 0o6755, 1 << 11, 0x1ff]),
        1 => any::<u32>(),
    ];
    let name = prop::sample::select(vec![
        b"".to_vec(),
        b".".to_vec(),
        b"etc".to_vec(),
        b"a/b".to_vec(),
        b"a".to_vec(),
        b"security.capability".to_vec(),
        b"user.x".to_vec(),
        vec![b'n'; 300],
    ]);
    let tail = (prop::collection::vec(name, 0..3), prop::collection::vec(any::<u8>(), 0..64));
    let flaw = (any::<u8>(), any::<u16>());
    (known, node, prop::collection::vec(field, 0..24), tail, flaw).prop_map(
        |(opcode, node, fields, (names, rest), (kind, at))| {
            let mut body = words(&fields);
            for name in names {
                body.extend_from_slice(&name);
                body.push(0);
            }
            body.extend_from_slice(&rest);
            let thread = node as u32 % 3;
            let mut bytes = message(Ask { opcode, node, thread }, &body);
            match kind {
                0..=40 => bytes.truncate(at as usize % (bytes.len() + 1)),
                41..=60 => {
                    let place = at as usize % bytes.len();
                    bytes[place] = bytes[place].wrapping_add(kind);
                }
                _ => {}
            }
            bytes
        },
    )
}

/// Without a device of a mount nothing is passed through, and all is said as ever.
#[test]
fn where_files_may_be_passed_through_they_are_made_opened_and_released_by_request() {
    const OPEN: u32 = 14;
    const RELEASE: u32 = 18;
    const CREATE: u32 = 35;
    let overlay = over(&[]);
    let create = [words(&[2, 0o100_644, 0, 0]), b"f\0".to_vec()].concat();
    assert_eq!(failed(&core(&overlay), ask(CREATE, u64::from(ROOT)), &create), libc::ENOSYS);
    let core = core_of(&overlay, true);
    let made = done(&core, ask(CREATE, u64::from(ROOT)), &create);
    // Behind the entry: a handle of ours, flags, no backing file.
    assert_eq!((made.len(), long(&made, 128), word(&made, 136), word(&made, 140)), (144, 0, 2, 0));
    let node = long(&made, 0);
    assert_eq!(failed(&core, ask(CREATE, u64::from(ROOT)), &create), libc::EEXIST);
    assert_eq!(done(&core, ask(OPEN, node), &words(&[0, 0])), words(&[0, 0, 2, 0]));
    for _ in 0..3 {
        assert_eq!(done(&core, ask(RELEASE, node), &words(&[0; 6])), Vec::<u8>::new());
    }
    assert_eq!(failed(&core, ask(OPEN, 99), &words(&[0, 0])), libc::ESTALE);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic_or_break_the_table(
        requests in prop::collection::vec(messages(), 1..150),
        passes_through in any::<bool>(),
    ) {
        let overlay = over(&[base()]);
        overlay.mark();
        let core = core_of(&overlay, passes_through);
        for request in requests {
            answer(&core, &request);
        }
        malformed::check(&overlay);
        prop_assert_eq!(overlay.log().lost, None);
    }

    #[test]
    fn no_answer_is_longer_than_the_room_for_it(
        requests in prop::collection::vec((messages(), 0_usize..200), 1..40)
    ) {
        let overlay = over(&[base()]);
        let core = core(&overlay);
        for (request, room) in requests {
            let mut out = vec![0; room];
            if let Some(length) = core.serve(&request, &mut out) {
                prop_assert!(length <= room);
            }
        }
    }
}
