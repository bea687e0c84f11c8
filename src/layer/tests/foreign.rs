//! Tars of other programs, made by GNU tar where the test runs.

use std::path::Path;
use std::process::Command;

use super::*;

fn run_tar(arguments: &[&str], directory: &Path) -> Vec<u8> {
    let made = Command::new("tar")
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@1.5"])
        .args(arguments)
        .args(["-cf", "-", "."])
        .current_dir(directory)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .expect("tar is installed");
    assert!(made.status.success(), "{made:?}");
    made.stdout
}

/// A file with holes: a run of bytes at each of `offsets`, then a hole up to `size`.
fn sparse_file(at: &Path, offsets: &[u64], size: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::create(at).expect("room on disk");
    let mut bytes = vec![0; usize::try_from(size).expect("a small file")];
    for &offset in offsets {
        let run = [b'0' + (offset >> 16) as u8; 4096];
        file.write_all_at(&run, offset).expect("room on disk");
        let start = usize::try_from(offset).expect("a small file");
        bytes[start..start + run.len()].copy_from_slice(&run);
    }
    file.set_len(size).expect("room on disk");
    bytes
}

fn find(index: &LayerIndex, at: &str) -> u32 {
    path(at).components().fold(LayerIndex::ROOT, |node, name| match index.child(node, name) {
        Some(Entry::Node(child)) => child,
        other => panic!("{at}: {other:?}"),
    })
}

#[test]
fn every_format_of_gnu_tar_gives_the_same_index() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path();
    let deep = root.join("d".repeat(90)).join("e".repeat(60));
    std::fs::create_dir_all(&deep).expect("room on disk");
    std::fs::write(deep.join("file"), "deep").expect("room on disk");
    std::os::unix::fs::symlink("t".repeat(90), root.join("link")).expect("room on disk");
    std::fs::write(root.join("first"), "linked").expect("room on disk");
    std::fs::hard_link(root.join("first"), root.join("hard")).expect("room on disk");
    let mut listings = ["gnu", "oldgnu", "pax", "ustar"].map(|format| {
        let tar = run_tar(&[&format!("--format={format}")], root);
        let made = read(tar.as_slice(), std::io::sink()).expect(format);
        listing(&index_of(&made), &tar).replace("@1.500000000", "@1.000000000")
    });
    assert!(listings[0].contains("links=2"), "{}", listings[0]);
    listings.sort();
    assert_eq!(listings[0], listings[3]);
}

#[test]
fn long_names_and_links_of_every_dialect_arrive_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path();
    let name = "ü".repeat(110);
    std::fs::write(root.join(&name), "x").expect("room on disk");
    std::os::unix::fs::symlink("t".repeat(300), root.join("link")).expect("room on disk");
    for format in ["gnu", "pax"] {
        let tar = run_tar(&[&format!("--format={format}")], root);
        let made = read(tar.as_slice(), std::io::sink()).expect(format);
        let index = index_of(&made);
        assert_eq!(content(&index, find(&index, &name), &tar), b"x");
        assert_eq!(index.link_target(find(&index, "link")), "t".repeat(300).as_bytes());
    }
}

#[test]
fn sparse_files_of_every_form_read_as_what_they_were() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path();
    let many: Vec<u64> = (0..40).map(|at| at << 17).collect();
    let contents = [
        ("few", sparse_file(&root.join("few"), &[0, 1 << 17], (1 << 18) + 100)),
        ("hole", sparse_file(&root.join("hole"), &[], 1 << 18)),
        ("many", sparse_file(&root.join("many"), &many, 6 << 20)),
        ("tail", sparse_file(&root.join("tail"), &[(1 << 20) + 4096], (1 << 20) + 8192)),
    ];
    std::fs::write(root.join("z"), "behind").expect("room on disk");
    for arguments in [
        &["--format=gnu", "-S"][..],
        &["--format=pax", "-S", "--sparse-version=0.0"],
        &["--format=pax", "-S", "--sparse-version=0.1"],
        &["--format=pax", "-S", "--sparse-version=1.0"],
    ] {
        // The raw scan finds holes whatever the file system says about them.
        let arguments = [arguments, &["--hole-detection=raw"]].concat();
        let tar = run_tar(&arguments, root);
        assert!(tar.len() < 1 << 20, "holes aren't stored: {arguments:?}");
        let made = read(tar.as_slice(), std::io::sink()).expect("a good layer");
        let index = index_of(&made);
        for (name, bytes) in &contents {
            let node = find(&index, name);
            assert!(content(&index, node, &tar) == *bytes, "{name} {arguments:?}");
            assert_eq!(index.digest(node), None, "{name}");
        }
        let behind = find(&index, "z");
        assert_eq!(content(&index, behind, &tar), b"behind", "{arguments:?}");
        // A sparse file has a name of its own in the header, which must not show.
        assert!(!listing(&index, &tar).contains("GNUSparse"), "{arguments:?}");
    }
}

#[test]
fn extended_attributes_and_fractions_of_seconds_are_kept() {
    let mut tar = Vec::new();
    let mut builder = tar::Builder::new(&mut tar);
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.user.a", b"1\0".as_slice()),
            ("mtime", b"12.25"),
            ("uid", b"3000000"),
        ])
        .expect("a vector takes all");
    let mut header = tar::Header::new_ustar();
    header.set_size(2);
    header.set_mode(0o600);
    builder.append_data(&mut header, "f", b"hi".as_slice()).expect("a vector takes all");
    builder.finish().expect("a vector takes all");
    drop(builder);
    let made = read(tar.as_slice(), std::io::sink()).expect("a good layer");
    let expected = "/ directory 0755 0:0 implied\n\
                    /f file 0600 3000000:0 @12.250000000 size=2 \"hi\" user.a=[49, 0]\n";
    assert_eq!(listing(&index_of(&made), &tar), expected);
}

#[test]
fn types_without_meaning_in_a_layer_are_refused_by_name() {
    for flag in *b"VMDNX" {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_path("odd").expect("a short name");
        header.set_size(0);
        header.set_cksum();
        match read(header.as_bytes().as_slice(), std::io::sink()) {
            Err(Error::Entry { name, fault: Fault::Type(found), .. }) => {
                assert_eq!((name.as_str(), found), ("odd", char::from(flag)));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn extended_headers_are_bounded_and_global_ones_change_nothing() {
    let header = |flag: u8, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_path("name").expect("a short name");
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let tar = [header(b'g', b"12 path=bad\n"), header(b'0', b"x")].concat();
    let made = read(tar.as_slice(), std::io::sink()).expect("a good layer");
    assert!(listing(&index_of(&made), &tar).contains("/name file 0644 0:0 size=1 \"x\"\n"));

    let fault = |tar: Vec<u8>| match read(tar.as_slice(), std::io::sink()) {
        Err(Error::Entry { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    assert!(matches!(fault(header(b'x', &vec![0; (1 << 20) + 1])), Fault::TooLarge(_)));
    assert_eq!(fault(header(b'x', b"9 path=x\n")), Fault::Truncated, "nothing follows it");
    assert_eq!(fault(header(b'x', b"garbage")), Fault::ExtendedHeader);
    let no_path = [header(b'x', b"12 path=a\0b\n"), header(b'0', b"")].concat();
    assert_eq!(fault(no_path), Fault::Name);
}
