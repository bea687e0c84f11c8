//! The bytes of a layer that we write.

use std::process::Command;

use super::*;
use crate::oci::digest::DiffId;
use crate::tree::ReadAt;

/// A set with everything that can be in one.
fn sample() -> ChangeSet {
    let mut root = put("", Kind::Directory, 0o755);
    root.stat.mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 999_999_999 };
    let mut tool = file("bin/tool", b"tool\n");
    tool.stat.mode = 0o4755;
    tool.stat.mtime = Timestamp { seconds: 1_700_000_001, nanoseconds: 5 };
    tool.capability = Some(vec![1, 0, 0, 2, 0, 0x20, 0, 0]);
    let mut same = put("bin/tool-2", Kind::File, 0o4755);
    same = Put { path: same.path, ..tool.clone() };
    let mut device = put("dev/null", Kind::CharDevice, 0o666);
    device.stat.device = Device { major: 1, minor: 3 };
    let mut old = file("etc/old", b"");
    old.stat.mtime = Timestamp { seconds: -2, nanoseconds: 500_000_000 };
    let mut owned = file("etc/owned", &[b'x'; 512]);
    (owned.stat.uid, owned.stat.gid) = (4_000_000, 100);
    let long = format!("etc/{}", "n".repeat(150));
    let mut changes: Vec<Change> = [
        root,
        put("bin", Kind::Directory, 0o755),
        tool,
        same,
        put("dev", Kind::Directory, 0o755),
        device,
        put("dev/pipe", Kind::Fifo, 0o600),
        put("dev/socket", Kind::Socket, 0o600),
        put("etc", Kind::Directory, 0o1777),
    ]
    .into_iter()
    .map(Change::Put)
    .collect();
    changes.push(Change::Delete(path("etc/gone")));
    changes.extend(
        [
            symlink("etc/link", "../bin/tool"),
            file(&long, b"long"),
            old,
            owned,
            symlink("etc/ümlaut", "ä"),
        ]
        .map(Change::Put),
    );
    ChangeSet { changes }
}

#[test]
fn an_empty_set_is_two_zero_blocks() {
    let (tar, made) = written(&ChangeSet::default());
    assert_eq!(tar, [0; 1024]);
    // The diff ID that every builder gives an empty layer.
    let known = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
    assert_eq!(made.diff_id.to_string(), known);
    assert_eq!((made.size, made.entries), (1024, 0));
    assert_eq!(listing(&index_of(&made), &tar), "/ directory 0755 0:0 implied\n");
}

#[test]
fn the_bytes_of_a_layer_never_change() {
    let (tar, made) = written(&sample());
    assert_eq!(made.diff_id, DiffId::of(&tar));
    // Changing this on purpose rebuilds every layer of every user: say so in the release notes.
    let golden = "sha256:993db8c4331c8e461aebbf9042aaf65331d8bd644296385616ad615529f24181";
    assert_eq!(made.diff_id.to_string(), golden);
}

#[test]
fn the_index_says_what_the_tar_holds() {
    let (tar, made) = written(&sample());
    let expected = format!(
        "\
/ directory 0755 0:0 @1700000000.000000000
/bin directory 0755 0:0
/bin/tool file 4755 0:0 @1700000001.000000000 node=N links=2 size=5 \"tool\\n\" \
security.capability=[1, 0, 0, 2, 0, 32, 0, 0]
/bin/tool-2 file 4755 0:0 @1700000001.000000000 node=N links=2 size=5 \"tool\\n\" \
security.capability=[1, 0, 0, 2, 0, 32, 0, 0]
/dev directory 0755 0:0
/dev/null chardevice 0666 0:0 dev=1:3
/dev/pipe fifo 0600 0:0
/etc directory 1777 0:0
/etc/gone gone
/etc/link symlink 0777 0:0 -> ../bin/tool
/etc/{} file 0644 0:0 size=4 \"long\"
/etc/old file 0644 0:0 @-2.000000000 size=0 \"\"
/etc/owned file 0644 4000000:100 size=512
/etc/ümlaut symlink 0777 0:0 -> ä
",
        "n".repeat(150)
    );
    assert_eq!(listing(&index_of(&made), &tar), expected.replace("node=N", "node=4"));
}

#[test]
fn another_implementation_reads_the_same() {
    let (tar, _) = written(&sample());
    let mut archive = tar::Archive::new(tar.as_slice());
    let mut found = Vec::new();
    for entry in archive.entries().expect("a tar") {
        let entry = entry.expect("an entry");
        let header = entry.header();
        found.push(format!(
            "{} {:?} {:o} {} {} {}",
            String::from_utf8_lossy(&entry.path_bytes()),
            header.entry_type(),
            header.mode().expect("a mode"),
            header.mtime().expect("a time"),
            entry.size(),
            entry
                .link_name_bytes()
                .map_or_else(String::new, |name| String::from_utf8_lossy(&name).into_owned()),
        ));
    }
    let long = format!("etc/{} Regular 644 0 4 ", "n".repeat(150));
    let expected = [
        "./ Directory 755 1700000000 0 ",
        "bin/ Directory 755 0 0 ",
        "bin/tool Regular 4755 1700000001 5 ",
        "bin/tool-2 Link 4755 1700000001 0 bin/tool",
        "dev/ Directory 755 0 0 ",
        "dev/null Char 666 0 0 ",
        "dev/pipe Fifo 600 0 0 ",
        "etc/ Directory 1777 0 0 ",
        "etc/.wh.gone Regular 0 0 0 ",
        "etc/link Symlink 777 0 0 ../bin/tool",
        &long,
        "etc/old Regular 644 0 0 ",
        "etc/owned Regular 644 0 512 ",
        "etc/ümlaut Symlink 777 0 0 ä",
    ];
    assert_eq!(found, expected);
}

#[test]
fn gnu_tar_reads_it_without_complaint() {
    let (tar, _) = written(&sample());
    let directory = tempfile::tempdir().expect("a directory");
    let name = directory.path().join("layer.tar");
    std::fs::write(&name, tar).expect("room on disk");
    let listed = Command::new("tar")
        .args(["--numeric-owner", "--utc", "--full-time", "-tvf"])
        .arg(&name)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .expect("tar is installed");
    let text = String::from_utf8_lossy(&listed.stdout);
    assert!(listed.status.success() && listed.stderr.is_empty(), "{listed:?}");
    assert!(text.contains("1969-12-31 23:59:58 etc/old\n"), "{text}");
    assert!(text.contains("4000000/100"), "{text}");
    assert!(text.contains("etc/ümlaut -> ä\n"), "{text}");
    assert_eq!(text.lines().count(), 14);
}

/// A content that isn't what was promised.
struct Changed {
    claimed: u64,
    bytes: Vec<u8>,
    digest: Option<[u8; 32]>,
}

impl ReadAt for Changed {
    fn len(&self) -> u64 {
        self.claimed
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.bytes.read_at(buffer, offset)
    }

    fn known_digest(&self) -> Option<[u8; 32]> {
        self.digest
    }
}

#[test]
fn content_that_changed_is_an_error_and_never_a_wrong_layer() {
    let bytes = b"content".to_vec();
    let true_digest = *blake3::hash(&bytes).as_bytes();
    for (claimed, size, digest, good) in [
        (7, 7, None, true),
        (7, 7, Some(true_digest), true),
        (7, 7, Some([0; 32]), false),
        (6, 7, None, false),
        (8, 7, None, false),
        (9, 9, None, false),
    ] {
        let mut put = file("f", b"");
        put.stat.size = size;
        put.content = Some(Arc::new(Changed { claimed, bytes: bytes.clone(), digest }));
        let result = write(&set([put]), &WriteOptions::default(), std::io::sink());
        match result {
            Ok(_) => assert!(good, "{claimed} {size}"),
            Err(Error::ContentChanged { path }) => assert!(!good && path == super::path("f")),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn files_larger_than_the_buffer_arrive_whole() {
    let bytes: Vec<u8> = (0..1_000_003_u32).map(|at| (at >> 8) as u8 ^ at as u8).collect();
    let (tar, made) = written(&set([file("a", b"x"), file("b", &bytes), file("c", b"y")]));
    let index = index_of(&made);
    let Some(Entry::Node(node)) = index.child(LayerIndex::ROOT, b"b") else { panic!("no b") };
    assert!(content(&index, node, &tar) == bytes);
    assert_eq!(index.digest(node), Some(*blake3::hash(&bytes).as_bytes()));
}

#[test]
fn a_clamp_lowers_times_and_never_raises_them() {
    let mut late = file("late", b"");
    late.stat.mtime = Timestamp { seconds: 100, nanoseconds: 1 };
    let mut early = file("early", b"");
    early.stat.mtime = Timestamp::seconds(50);
    let mut tar = Vec::new();
    let options = WriteOptions { clamp: Some(70) };
    let made = write(&set([early, late]), &options, &mut tar).expect("a set that can be said");
    let text = listing(&index_of(&made), &tar);
    assert!(text.contains("/early file 0644 0:0 @50.0"), "{text}");
    assert!(text.contains("/late file 0644 0:0 @70.0"), "{text}");
}

#[test]
fn what_no_layer_can_hold_is_refused() {
    let mut hollow = put("f", Kind::File, 0o644);
    (hollow.content, hollow.stat.size) = (None, 1);
    let sets = [
        set([file("a/.wh.b", b"")]),
        set([hollow]),
        set([symlink("l", "")]),
        set([file("", b"")]),
        set([file("a", b""), file("a/b", b"")]),
        ChangeSet { changes: vec![Change::Delete(path(""))] },
    ];
    for set in sets {
        let result = write(&set, &WriteOptions::default(), std::io::sink());
        assert!(matches!(result, Err(Error::Unrepresentable { .. })), "{set:?}");
    }
}
