use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use proptest::prelude::*;

use super::*;
use crate::ignore::Matcher;
use crate::path::Name;
use crate::tree::ContentReader;
use crate::tree::Kind;
use crate::tree::NodeId;
use crate::tree::Tree;

fn path(text: &str) -> RootPath {
    RootPath::clamped(text.as_bytes()).unwrap()
}

fn context(directory: &Path) -> Context {
    Context::open(&Location::Directory(directory.to_owned()), directory).unwrap()
}

/// Rules in the order of a file; the last that matches a path or a parent counts.
#[derive(Clone, Debug)]
struct Rules(Vec<(bool, RootPath)>);

impl Ignore for Rules {
    fn excludes(&self, path: &RootPath) -> bool {
        let matching = self.0.iter().rev().find(|(_, rule)| path.starts_with(rule));
        matching.is_some_and(|(excludes, _)| *excludes)
    }

    fn may_reinclude_below(&self, path: &RootPath) -> bool {
        self.0.iter().any(|(excludes, rule)| !excludes && rule.starts_with(path))
    }
}

fn rules(lines: &str) -> Rules {
    let rule = |line: &str| match line.strip_prefix('!') {
        Some(rest) => (false, path(rest)),
        None => (true, path(line)),
    };
    Rules(lines.split_whitespace().map(rule).collect())
}

/// Everything in the tree below `node`.
fn walk(tree: &dyn Tree, node: NodeId, at: &RootPath, found: &mut BTreeMap<RootPath, NodeId>) {
    for (name, child) in tree.children(node).unwrap() {
        let path = at.join(&name);
        walk(tree, child, &path, found);
        found.insert(path, child);
    }
}

fn all(tree: &dyn Tree) -> BTreeMap<RootPath, NodeId> {
    let mut found = BTreeMap::new();
    walk(tree, tree.root(), &RootPath::root(), &mut found);
    found
}

fn shown(tree: &dyn Tree) -> String {
    all(tree).keys().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn make(directory: &Path, files: &[&str]) {
    for file in files {
        let file = directory.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "text").unwrap();
    }
}

#[test]
fn locations_are_read_as_kaniko_reads_them() {
    let directory = |text: &str| Ok(Location::Directory(text.into()));
    let parse = |text: &str| Location::parse(text).map_err(|error| error.to_string());
    assert_eq!(parse("/workspace/"), directory("/workspace/"));
    assert_eq!(parse("."), directory("."));
    assert_eq!(parse("dir:///a/b"), directory("/a/b"));
    assert_eq!(parse("dir://a"), directory("a"));
    assert_eq!(parse("a b://c"), directory("a b://c"));
    assert_eq!(parse("tar:///x.tar.gz"), Ok(Location::Archive("/x.tar.gz".into())));
    assert_eq!(parse("tar://stdin"), Ok(Location::Stdin));
    assert_eq!(parse("-"), Ok(Location::Stdin));
    let place = |text: &str| Place::parse(text).map_err(|error| error.to_string());
    for scheme in ["s3", "gs"] {
        let error = place(&format!("{scheme}://bucket/x")).unwrap_err();
        assert!(error.contains("object store") && error.contains("tar://stdin"), "{error}");
    }
    assert_eq!(place("tar://stdin"), Ok(Place::Local(Location::Stdin)));
    assert!(matches!(place("https://h/x.tar.gz"), Ok(Place::Http(_))));
    assert!(matches!(place("https://h/x.git#main:sub"), Ok(Place::Git(_))));
    assert!(matches!(place("git@h:x"), Ok(Place::Git(_))));
    let commit = "0123456789abcdef0123456789abcdef01234567";
    for (text, reference) in [
        ("git://h/r", None),
        ("git://h/r.git#refs/heads/x", Some("refs/heads/x")),
        ("git://h/r.git#refs/heads/x#0123456789abcdef0123456789abcdef01234567", Some(commit)),
    ] {
        let Ok(Place::KanikoGit(address)) = place(text) else { panic!("{text}") };
        assert_eq!(address.reference.as_deref(), reference, "{text}");
    }
    assert!(place("git://h/r#a#b").is_err());
    for (text, expected) in
        [("http://x", "`http://`"), ("ftp://x", "`ftp://`"), ("", "no path"), ("tar://", "no path")]
    {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    for text in ["/a", "tar:///x.tar", "tar://stdin"] {
        assert_eq!(parse(text).unwrap().to_string(), text);
    }
}

#[test]
fn a_context_that_is_missing_or_no_directory_says_so() {
    let top = TempDir::new().unwrap();
    make(top.path(), &["file.tar"]);
    let open = |name: &str| {
        Context::open(&Location::Directory(top.path().join(name)), top.path()).unwrap_err()
    };
    assert!(matches!(open("none"), Error::Open { .. }));
    let error = open("file.tar").to_string();
    assert!(error.contains("not a directory") && error.contains("`tar://`"), "{error}");
}

#[test]
fn the_dockerfile_is_looked_for_from_the_working_directory_first() {
    let (cwd, top) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let context = context(top.path());
    let found = |path: Option<&str>| context.dockerfile(path, cwd.path());
    let error = found(None).unwrap_err().to_string();
    assert!(error.contains("/Dockerfile nor at ") && error.ends_with("/dockerfile"), "{error}");
    fs::write(top.path().join("dockerfile"), "lower").unwrap();
    assert_eq!(found(None).unwrap().text, b"lower");
    fs::write(top.path().join("Dockerfile"), "upper").unwrap();
    assert_eq!(found(None).unwrap().text, b"upper");
    fs::write(top.path().join("other"), "in context").unwrap();
    assert_eq!(found(Some("other")).unwrap().text, b"in context");
    assert_eq!(found(Some("/other")).unwrap().text, b"in context");
    fs::create_dir(cwd.path().join("other")).unwrap();
    assert_eq!(found(Some("other")).unwrap().text, b"in context");
    fs::remove_dir(cwd.path().join("other")).unwrap();
    fs::write(cwd.path().join("other"), "in cwd").unwrap();
    let other = found(Some("other")).unwrap();
    assert_eq!((other.name.as_str(), &other.text[..]), ("other", &b"in cwd"[..]));
    let error = found(Some("none")).unwrap_err().to_string();
    assert_eq!(error.matches("none").count(), 2, "{error}");
    let error = found(Some("https://host/Dockerfile")).unwrap_err();
    assert!(matches!(error, Error::DockerfileUrl { .. }), "{error}");
}

#[test]
fn the_ignore_file_beside_the_dockerfile_wins() {
    let (cwd, top) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    make(top.path(), &["Dockerfile", "sub/Dockerfile"]);
    make(cwd.path(), &["own"]);
    let context = context(top.path());
    let ignore = |path: Option<&str>| {
        let found = context.dockerfile(path, cwd.path()).unwrap().ignore;
        found.map(|found| (found.name, String::from_utf8(found.text).unwrap()))
    };
    let some = |name: &str, text: &str| Some((name.to_owned(), text.to_owned()));
    assert_eq!(ignore(None), None);
    fs::write(top.path().join(".dockerignore"), "root").unwrap();
    assert_eq!(ignore(None), some(".dockerignore", "root"));
    assert_eq!(ignore(Some("sub/Dockerfile")), some(".dockerignore", "root"));
    assert_eq!(ignore(Some("own")), some(".dockerignore", "root"));
    fs::write(top.path().join("sub/Dockerfile.dockerignore"), "sub").unwrap();
    fs::write(cwd.path().join("own.dockerignore"), "own").unwrap();
    assert_eq!(ignore(None), some(".dockerignore", "root"));
    let beside = some("sub/Dockerfile.dockerignore", "sub");
    assert_eq!(ignore(Some("sub/Dockerfile")), beside);
    assert_eq!(ignore(Some("own")), some("own.dockerignore", "own"));
}

#[test]
fn a_dockerfile_in_the_context_is_never_read_through_a_link_that_leaves_it() {
    let top = TempDir::new().unwrap();
    make(top.path(), &["secret", "context/real"]);
    symlink("../secret", top.path().join("context/Dockerfile")).unwrap();
    let context = context(&top.path().join("context"));
    let none = top.path().join("none");
    assert!(matches!(context.dockerfile(None, &none), Err(Error::NoDockerfile { .. })));
    symlink("/real", top.path().join("context/dockerfile")).unwrap();
    assert_eq!(context.dockerfile(None, &none).unwrap().text, b"text");
}

#[test]
fn an_archive_is_unpacked_below_scratch_and_removed_with_the_context() {
    let scratch = TempDir::new().unwrap();
    let mut builder = ::tar::Builder::new(Vec::new());
    for name in ["Dockerfile", "sub/file"] {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &b"text"[..]).unwrap();
    }
    let archive = scratch.path().join("context.tar");
    fs::write(&archive, builder.into_inner().unwrap()).unwrap();
    let place = scratch.path().join("unpacked/here");
    let context = Context::open(&Location::Archive(archive), &place).unwrap();
    assert!(context.is_unpacked() && context.directory().starts_with(&place));
    assert_eq!(context.dockerfile(None, scratch.path()).unwrap().text, b"text");
    let below = context.below(&path("sub")).unwrap();
    let tree = below.tree(Nothing).unwrap();
    assert_eq!(shown(&tree), "/file");
    let content = tree.content(tree.find(&path("file")).unwrap().unwrap()).unwrap();
    drop((context, below, tree));
    // A content outlives its tree, and keeps what it needs.
    assert_eq!(std::io::read_to_string(ContentReader::new(content)).unwrap(), "text");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
}

#[test]
fn excluded_paths_do_not_exist() {
    let top = TempDir::new().unwrap();
    make(top.path(), &["a/b/c", "a/d", "e", "f/g"]);
    let tree = context(top.path()).tree(rules("a/b f e")).unwrap();
    assert_eq!(shown(&tree), "/a /a/d");
    for hidden in ["a/b", "a/b/c", "e", "f/g"] {
        assert_eq!(tree.find(&path(hidden)).unwrap(), None, "{hidden}");
    }
}

#[test]
fn an_excluded_directory_exists_with_what_is_included_again() {
    let top = TempDir::new().unwrap();
    make(top.path(), &["a/b/keep", "a/b/drop", "a/c", "d/e", "f"]);
    fs::create_dir(top.path().join("empty")).unwrap();
    let rules = rules("a d empty f !a/b/keep !d/none !empty/none !f/x");
    for ask_singly in [false, true] {
        let tree = context(top.path()).tree(rules.clone()).unwrap();
        if ask_singly {
            assert!(tree.find(&path("a/b/keep")).unwrap().is_some());
            assert_eq!(tree.find(&path("d")).unwrap(), None);
        }
        assert_eq!(shown(&tree), "/a /a/b /a/b/keep");
    }
}

#[test]
fn only_what_is_asked_is_read() {
    let top = TempDir::new().unwrap();
    make(top.path(), &["asked/file", "other/file"]);
    let tree = context(top.path()).tree(Nothing).unwrap();
    assert!(tree.find(&path("asked/file")).unwrap().is_some());
    // Nobody looked into the other directory, so this is no change.
    fs::remove_dir_all(top.path().join("other")).unwrap();
    assert_eq!(shown(&tree), "/asked /asked/file");
}

#[test]
fn names_of_one_file_have_one_id_and_ids_are_stable() {
    let top = TempDir::new().unwrap();
    make(top.path(), &["a/one", "b/other"]);
    fs::hard_link(top.path().join("a/one"), top.path().join("b/two")).unwrap();
    let tree = context(top.path()).tree(Nothing).unwrap();
    let singly = tree.find(&path("b/two")).unwrap().unwrap();
    let listed = all(&tree);
    assert_eq!(listed[&path("a/one")], singly);
    assert_eq!(listed[&path("b/two")], singly);
    assert_ne!(listed[&path("b/other")], singly);
    assert_eq!(tree.stat(singly).unwrap().links, 2);
    assert_eq!(all(&tree), listed);
}

#[test]
fn every_kind_is_told_and_links_stay_links() {
    let top = TempDir::new().unwrap();
    make(top.path(), &["file"]);
    symlink("file", top.path().join("link")).unwrap();
    let _listener = UnixListener::bind(top.path().join("socket")).unwrap();
    let tree = context(top.path()).tree(Nothing).unwrap();
    let node = |name: &str| tree.find(&path(name)).unwrap().unwrap();
    assert_eq!(tree.stat(node("file")).unwrap().kind, Kind::File);
    assert_eq!(tree.stat(node("link")).unwrap().kind, Kind::Symlink);
    assert_eq!(tree.stat(node("link")).unwrap().size, 4);
    assert_eq!(tree.stat(node("socket")).unwrap().kind, Kind::Socket);
    assert_eq!(tree.link_target(node("link")).unwrap(), b"file");
    assert!(tree.xattrs(node("link")).unwrap().is_empty());
    assert!(matches!(tree.digest(node("link")), Err(Error::NotAFile { .. })));
    assert!(tree.content(node("socket")).is_err());
    assert!(tree.child(node("file"), b"x").unwrap().is_none());
    assert!(tree.child(tree.root(), b"..").unwrap().is_none());
    assert_eq!(tree.stat(NodeId(99)).unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_directory_that_becomes_a_link_is_not_followed() {
    let top = TempDir::new().unwrap();
    make(top.path(), &["secret/file", "context/directory/file"]);
    let tree = context(&top.path().join("context")).tree(Nothing).unwrap();
    let node = tree.find(&path("directory/file")).unwrap().unwrap();
    fs::remove_dir_all(top.path().join("context/directory")).unwrap();
    symlink("../secret", top.path().join("context/directory")).unwrap();
    let error = tree.digest(node).unwrap_err();
    assert!(error.to_string().contains("directory/file"), "{error}");
    let directory = tree.find(&path("directory")).unwrap().unwrap();
    let error = tree.children(directory).unwrap_err();
    assert!(error.to_string().contains("context/directory"), "{error}");
}

#[test]
fn more_large_files_than_handles_can_be_read_at_once() {
    let top = TempDir::new().unwrap();
    for index in 0..600 {
        let file = fs::File::create(top.path().join(format!("{index}"))).unwrap();
        file.set_len((256 << 10) + 1).unwrap();
    }
    let tree = context(top.path()).tree(Nothing).unwrap();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let contents: Vec<_> = tree
        .children(tree.root())
        .unwrap()
        .into_iter()
        .map(|(_, node)| tree.content(node).unwrap())
        .collect();
    for content in &contents {
        assert_eq!(content.read_at(&mut [1; 10], 5).unwrap(), 10);
    }
    // 256 of ours; other tests run in this process too.
    assert!(open() < 500, "{}", open());
    for content in &contents {
        assert_eq!(content.read_at(&mut [1; 10], (256 << 10) - 5).unwrap(), 6);
        assert_eq!(content.read_at(&mut [1; 10], (256 << 10) + 1).unwrap(), 0);
    }
}

#[test]
fn threads_that_ask_at_once_get_the_same_ids() {
    let top = TempDir::new().unwrap();
    let files: Vec<String> = (0..60).map(|index| format!("{}/{index}", index % 3)).collect();
    make(top.path(), &files.iter().map(String::as_str).collect::<Vec<_>>());
    for _ in 0..20 {
        let tree = context(top.path()).tree(rules("0 !0/3 !0/9")).unwrap();
        let results: Vec<_> = std::thread::scope(|scope| {
            let ask = |single: bool| {
                let tree = &tree;
                scope.spawn(move || {
                    if single {
                        let _ = tree.find(&path("0/9")).unwrap().unwrap();
                    }
                    all(tree)
                })
            };
            let threads: Vec<_> = (0..4).map(|index| ask(index % 2 == 0)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(results[0].len(), 3 + 2 + 40);
    }
}

#[test]
fn a_scan_sees_everything_with_any_number_of_threads() {
    let top = TempDir::new().unwrap();
    let files: Vec<String> = (0..60).map(|index| format!("{}/x/{index}", index % 7)).collect();
    make(top.path(), &files.iter().map(String::as_str).collect::<Vec<_>>());
    let expected = shown(&context(top.path()).tree(rules("2 !2/x/9 3")).unwrap());
    for threads in [1, 2, 9] {
        let tree = context(top.path()).tree(rules("2 !2/x/9 3")).unwrap();
        tree.scan(tree.root(), NonZeroUsize::new(threads).unwrap()).unwrap();
        // Nothing is read any more.
        fs::rename(top.path().join("0"), top.path().join("moved")).unwrap();
        assert_eq!(shown(&tree), expected);
        fs::rename(top.path().join("moved"), top.path().join("0")).unwrap();
    }
}

#[test]
fn a_scan_that_meets_an_unreadable_directory_fails_and_names_it() {
    let top = TempDir::new().unwrap();
    make(top.path(), &["a/file", "b/file", "c/file"]);
    for threads in [1, 4] {
        let tree = context(top.path()).tree(Nothing).unwrap();
        assert!(tree.find(&path("b")).unwrap().is_some());
        tree.children(tree.root()).unwrap();
        fs::rename(top.path().join("b"), top.path().join("d")).unwrap();
        let error = tree.scan(tree.root(), NonZeroUsize::new(threads).unwrap()).unwrap_err();
        let shown = top.path().join("b").display().to_string();
        assert!(error.to_string().contains(&shown), "{error}");
        fs::rename(top.path().join("d"), top.path().join("b")).unwrap();
    }
}

/// What moby's rules leave, found the slow way: everything is walked, then judged.
fn oracle(
    directory: &Path,
    at: &RootPath,
    rules: &dyn Ignore,
    found: &mut BTreeSet<RootPath>,
) -> bool {
    let mut holds_any = false;
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = std::os::unix::ffi::OsStringExt::into_vec(entry.file_name());
        let path = at.join(&Name::new(&name).unwrap());
        let below =
            entry.file_type().unwrap().is_dir() && oracle(&entry.path(), &path, rules, found);
        if !rules.excludes(&path) || below {
            found.insert(path);
            holds_any = true;
        }
    }
    holds_any
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn children_are_those_of_a_full_walk(
        files in prop::collection::vec("[abc](/[abc]){0,3}", 1..12),
        rows in prop::collection::vec((any::<bool>(), "[abc](/[abc]){0,3}"), 0..6),
        asked in prop::collection::vec("[abc](/[abc]){0,3}", 0..4),
    ) {
        let top = TempDir::new().unwrap();
        for file in files {
            let file = top.path().join(file);
            // Names that are a file here and a directory there: the first wins.
            if fs::create_dir_all(file.parent().unwrap()).is_ok() {
                let _ = fs::OpenOptions::new().create_new(true).write(true).open(file);
            }
        }
        let rules = Rules(rows.iter().map(|(excludes, rule)| (*excludes, path(rule))).collect());
        let mut expected = BTreeSet::new();
        oracle(top.path(), &RootPath::root(), &rules, &mut expected);
        let tree = context(top.path()).tree(rules).unwrap();
        let mut singly = BTreeMap::new();
        for place in asked.iter().map(|text| path(text)) {
            let found = tree.find(&place).unwrap();
            prop_assert_eq!(found.is_some(), expected.contains(&place), "{}", place);
            singly.insert(place, found);
        }
        let listed = all(&tree);
        prop_assert_eq!(listed.keys().cloned().collect::<BTreeSet<_>>(), expected);
        for (place, id) in singly {
            prop_assert_eq!(listed.get(&place).copied(), id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// The matcher's own hint where to look again never hides a file.
    #[test]
    fn ignore_files_leave_what_a_full_walk_leaves(
        files in prop::collection::vec("[abc](/[abc]){0,3}", 1..12),
        lines in prop::collection::vec(
            "!?(\\*\\*/)?([abc*]|\\?|\\*[ab])(/([abc*]|\\*\\*)){0,3}", 0..6,
        ),
    ) {
        let top = TempDir::new().unwrap();
        for file in files {
            let file = top.path().join(file);
            if fs::create_dir_all(file.parent().unwrap()).is_ok() {
                let _ = fs::OpenOptions::new().create_new(true).write(true).open(file);
            }
        }
        let matcher = || Matcher::new(&lines).unwrap();
        let mut expected = BTreeSet::new();
        oracle(top.path(), &RootPath::root(), &matcher(), &mut expected);
        let tree = context(top.path()).tree(matcher()).unwrap();
        prop_assert_eq!(all(&tree).into_keys().collect::<BTreeSet<_>>(), expected);
    }
}
