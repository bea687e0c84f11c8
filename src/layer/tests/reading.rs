//! What the entries of a foreign layer do to each other, and which are refused.

use super::*;

/// A tar from lines: `d path`, `f path content`, `l path target` (symbolic),
/// `h path target` (hard), `p path` (pipe).
fn tar_of(lines: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.splitn(3, ' ');
        let kind = words.next().unwrap_or_default();
        let name = words.next().unwrap_or_default();
        let rest = words.next().unwrap_or_default();
        let (flag, link, data) = match kind {
            "d" => (b'5', "", ""),
            "f" => (b'0', "", rest),
            "l" => (b'2', rest, ""),
            "h" => (b'1', rest, ""),
            "p" => (b'6', "", ""),
            other => panic!("{other}"),
        };
        let header = header::Header {
            name: name.as_bytes(),
            link: link.as_bytes(),
            flag,
            mode: 0o644,
            size: data.len() as u64,
            ..header::Header::default()
        };
        header::encode(&header, &mut out).expect("it can be said");
        out.extend_from_slice(data.as_bytes());
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// The listing of a tar of `lines`, without the root.
fn read_lines(lines: &str) -> String {
    let tar = tar_of(lines);
    let made = read(tar.as_slice(), std::io::sink()).expect("a good layer");
    let text = listing(&index_of(&made), &tar);
    text.split_once('\n').map_or_else(String::new, |(_, rest)| rest.to_owned())
}

fn fault_of(lines: &str) -> Fault {
    match read(tar_of(lines).as_slice(), std::io::sink()) {
        Err(Error::Entry { fault, .. }) => fault,
        other => panic!("{lines}: {other:?}"),
    }
}

#[test]
fn names_are_taken_relative_to_the_root() {
    let expected = "/a directory 0644 0:0\n/a/b file 0644 0:0 size=1 \"x\"\n";
    for lines in [
        "d a/\nf a/b x",
        "d ./a/\nf ./a/b x",
        "d /a\nf //a/b x",
        "d a/\nf a//./b x",
        "d a/\nf a/c/../b x",
    ] {
        assert_eq!(read_lines(lines), expected, "{lines}");
    }
}

#[test]
fn names_that_leave_the_root_are_refused() {
    for lines in ["f ../a x", "f a/../../b x", "f /../a x", "d ..", "h a ../b", "h a /../b"] {
        assert_eq!(fault_of(lines), Fault::Escapes, "{lines}");
    }
}

#[test]
fn nothing_is_placed_through_a_link_of_the_same_layer() {
    let through = Fault::ThroughSymlink(path("a"));
    assert_eq!(fault_of("l a /etc\nf a/passwd x"), through);
    assert_eq!(fault_of("l a b\nd b\nf a/c/d x"), through);
    assert_eq!(fault_of("l a b\nf a/.wh.c x"), through);
    assert_eq!(fault_of("l a b\nf a/.wh..wh..opq x"), through);
    assert_eq!(fault_of("l a b\nh c a/d"), through);
    assert_eq!(fault_of("f a x\nf a/b x"), Fault::ThroughFile(path("a")));
    // Once the link is replaced, its path is an ordinary directory.
    let text = read_lines("l a /etc\nd a\nf a/b x");
    assert_eq!(text, "/a directory 0644 0:0 opaque\n/a/b file 0644 0:0 size=1 \"x\"\n");
}

#[test]
fn directories_that_are_not_named_are_implied() {
    let expected = "/a directory 0755 0:0 implied\n/a/b directory 0755 0:0 implied\n\
                    /a/b/c file 0644 0:0 size=1 \"x\"\n";
    assert_eq!(read_lines("f a/b/c x"), expected);
    // Named later, they are what the layer says.
    assert!(read_lines("f a/b x\nd a").starts_with("/a directory 0644 0:0\n"));
    assert_eq!(read_lines("d ./"), "");
}

#[test]
fn of_two_entries_the_last_one_wins_and_directories_merge() {
    assert_eq!(read_lines("f a x\nf a yy"), "/a file 0644 0:0 size=2 \"yy\"\n");
    assert_eq!(read_lines("d a\nf a/b x\nf a y"), "/a file 0644 0:0 size=1 \"y\"\n");
    let merged = "/a directory 0644 0:0\n/a/b file 0644 0:0 size=1 \"x\"\n";
    assert_eq!(read_lines("d a\nf a/b x\nd a"), merged);
    // The file hid a directory below; the directory that replaces it must not show it again.
    assert_eq!(read_lines("f a x\nd a"), "/a directory 0644 0:0 opaque\n");
    // A directory that came back is not the one entries went to before.
    assert_eq!(
        read_lines("d a\nf a/b x\nf a y\nd a\nf a/c z"),
        "/a directory 0644 0:0 opaque\n/a/c file 0644 0:0 size=1 \"z\"\n"
    );
}

#[test]
fn whiteouts_speak_of_the_layers_below_only() {
    assert_eq!(read_lines("f d/.wh.a x"), "/d directory 0755 0:0 implied\n/d/a gone\n");
    for lines in ["f a x\nf .wh.a x", "f .wh.a x\nf a x"] {
        assert_eq!(read_lines(lines), "/a file 0644 0:0 size=1 \"x\"\n", "{lines}");
    }
    for lines in ["d a\nf .wh.a x", "f .wh.a x\nd a"] {
        assert_eq!(read_lines(lines), "/a directory 0644 0:0 opaque\n", "{lines}");
    }
    let both = "/a directory 0755 0:0 implied opaque\n/a/b file 0644 0:0 size=1 \"x\"\n";
    assert_eq!(read_lines("f .wh.a x\nf a/b x"), both);
    assert_eq!(read_lines("f a/b x\nf a/.wh..wh..opq x"), both);
    let tar = tar_of("f .wh..wh..opq x");
    let made = read(tar.as_slice(), std::io::sink()).expect("a good layer");
    assert!(index_of(&made).node(LayerIndex::ROOT).opaque);
    assert_eq!(fault_of("f a/.wh. x"), Fault::Name);
}

#[test]
fn aufs_metadata_is_no_part_of_the_root_but_links_into_it_work() {
    let lines = "d .wh..wh.plnk\nf .wh..wh.plnk/12.34 x\nf .wh..wh.aufs y\nh a .wh..wh.plnk/12.34";
    assert_eq!(read_lines(lines), "/a file 0644 0:0 size=1 \"x\"\n");
    assert_eq!(fault_of("h a .wh..wh.plnk/12.34"), Fault::LinkToMetadata);
}

#[test]
fn an_archive_that_is_no_layer_keeps_names_that_look_like_whiteouts() {
    let tar = tar_of("f .wh.a x");
    let made = read_archive(tar.as_slice(), std::io::sink()).expect("a good archive");
    assert!(listing(&index_of(&made), &tar).contains("/.wh.a file"));
}

#[test]
fn hard_links_share_a_node_or_mean_a_file_below() {
    let text = read_lines("f a x\nh b ./a\nh d/c /b");
    assert!(text.contains("/a file 0644 0:0 node=1 links=3"), "{text}");
    assert!(text.contains("/d/c file 0644 0:0 node=1 links=3"), "{text}");
    assert_eq!(read_lines("h b usr/a\nh c b"), "/b lower:usr/a\n/c lower:usr/a\n");
    // A later file at the target doesn't change what the link got.
    let text = read_lines("f a x\nh b a\nf a yy");
    assert_eq!(text, "/a file 0644 0:0 size=2 \"yy\"\n/b file 0644 0:0 size=1 \"x\"\n");
    assert_eq!(read_lines("f a x\nh a a"), "/a file 0644 0:0 size=1 \"x\"\n");
    assert_eq!(fault_of("d a\nh b a"), Fault::LinkToDirectory(path("a")));
    assert_eq!(fault_of("h ./ a"), Fault::Root);
    // Symbolic links can have several names, too.
    assert!(read_lines("l a x\nh b a").contains("/b symlink 0644 0:0 node=1 links=2 -> x"));
}

#[test]
fn the_root_is_a_directory_and_nothing_else() {
    let tar = tar_of("d /");
    let made = read(tar.as_slice(), std::io::sink()).expect("a good layer");
    assert_eq!(listing(&index_of(&made), &tar), "/ directory 0644 0:0\n");
    assert_eq!(fault_of("f ./ x"), Fault::Root);
    assert_eq!(fault_of("l . x"), Fault::Root);
}

#[test]
fn names_beyond_the_limits_of_the_system_are_refused() {
    assert!(matches!(fault_of(&format!("f {} x", "n".repeat(256))), Fault::TooLarge(_)));
    assert!(matches!(fault_of(&format!("f {} x", "n/".repeat(2049))), Fault::TooLarge(_)));
    assert!(matches!(fault_of(&format!("l a {}", "n".repeat(4097))), Fault::TooLarge(_)));
}

#[test]
fn archives_that_are_cut_or_no_archives_say_where() {
    let tar = tar_of("f a 0123456789\nf b x");
    let error = |bytes: &[u8]| match read(bytes, std::io::sink()) {
        Err(Error::Entry { name, offset, fault }) => (name, offset, fault),
        other => panic!("{other:?}"),
    };
    assert_eq!(error(&tar[..300]), (String::new(), 0, Fault::Truncated));
    assert_eq!(error(&tar[..515]), ("a".to_owned(), 0, Fault::Truncated));
    assert_eq!(error(&tar[..1000]).2, Fault::Truncated);
    assert_eq!(error(&[b'x'; 512]).2, Fault::Checksum);
    let mut broken = tar.clone();
    broken[1024] = b'c';
    assert_eq!(error(&broken), ("c".to_owned(), 1024, Fault::Checksum));
    let mut lone = vec![0; 512];
    lone.extend_from_slice(&tar);
    assert_eq!(error(&lone).2, Fault::LoneZeroBlock);
    // Without its end marker an archive is accepted, as Docker does; so is nothing.
    assert!(read(&tar[..2048], std::io::sink()).is_ok());
    assert!(read(&b""[..], std::io::sink()).is_ok());
}

#[test]
fn bytes_behind_the_end_are_copied_and_counted() {
    let mut tar = tar_of("f a x");
    tar.extend_from_slice(&[0; 8192]);
    tar.extend_from_slice(b"anything");
    let mut copy = Vec::new();
    let made = read(tar.as_slice(), &mut copy).expect("a good layer");
    assert!(copy == tar);
    assert_eq!(made.size, tar.len() as u64);
    assert_eq!(made.diff_id, DiffId::of(&tar));
    assert_eq!(made.entries, 1);
}
