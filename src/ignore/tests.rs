use super::*;
use proptest::prelude::*;

fn path(text: &str) -> RootPath {
    RootPath::clamped(text.as_bytes()).expect("no NUL")
}

fn excludes(patterns: &[&str], name: &str) -> bool {
    Matcher::new(patterns).expect("valid").excludes(&path(name))
}

#[test]
fn one_pattern_against_one_path() {
    let yes = [
        ("**", "a"),
        ("**/", "a/b"),
        ("**/**", "a/b"),
        ("d/**", "d/x/y"),
        ("**/d", "d"),
        ("**/d", "x/d"),
        ("**/d", "x/d/below"),
        ("**/d/*", "x/d/f"),
        ("**/d/**", "x/d/y/f"),
        ("**f", "x/y/of"),
        ("**/f*.t*", "x/y/f1.txt"),
        ("**/**/*.t", "f.t"),
        ("a**/*.t", "a/f.t"),
        ("a**/*.t", "ab/c/d/f.t"),
        ("a/*.t**", "a/f.t.u"),
        ("a[b-d]e", "ace"),
        ("a[^b-d]e", "aze"),
        (".*", ".git"),
        ("a.b", "a.b"),
        ("a?b", "a☺b"),
        ("a(b)c+{d}$|", "a(b)c+{d}$|"),
        (r"a\*b", "a*b"),
        (r"\\", r"\"),
        (r"[\]x]", "]"),
        ("[a-ζ]*", "α"),
        ("docs/", "docs/x"),
        ("./a//b/../c", "a/c"),
    ];
    for (pattern, name) in yes {
        assert!(excludes(&[pattern], name), "{pattern} should match {name}");
    }
    let no = [
        ("*.md", "docs/x.md"),
        ("**/*.u", "x/f.t"),
        ("a/*.t", "a/b/f.t"),
        ("a[b-d]e", "ae"),
        (".*", "git"),
        ("a.b", "axb"),
        ("a?b", "ab"),
        ("a?b", "a/b"),
        ("a*b", "a/b"),
        ("a???b", "a☺b"),
        ("d/**", "d"),
        ("**/.d", "x.d"),
        (r"a\*b", "axb"),
        ("[z-a]", "m"),
        (".", "a"),
        ("*", ""),
    ];
    for (pattern, name) in no {
        assert!(!excludes(&[pattern], name), "{pattern} should not match {name}");
    }
}

#[test]
fn the_last_pattern_that_matches_wins() {
    assert!(!excludes(&["docs", "!docs/a.md"], "docs/a.md"));
    assert!(excludes(&["docs", "!docs/a.md"], "docs/b.md"));
    assert!(excludes(&["!a.go", "*.go"], "a.go"));
    assert!(!excludes(&["**", "!util/web"], "util/web/x/y"));
    assert!(excludes(&["**", "!util/web", "util/web/x"], "util/web/x/y"));
    assert!(!excludes(&["*", "  !a  "], "a"));
}

#[test]
fn exception_met_before_anything_is_excluded_does_not_count_below() {
    // On the way down `!a` is skipped at `a`, where nothing is excluded yet.
    assert!(excludes(&["a/b/c", "!a"], "a/b/c"));
    assert!(!excludes(&["a", "!a"], "a/b/c"));
}

#[test]
fn more_patterns_than_fit_on_the_stack_still_count() {
    let mut patterns: Vec<String> = (0..100).map(|i| format!("x{i}")).collect();
    patterns.push("!x99/keep".to_owned());
    let matcher = Matcher::new(&patterns).expect("valid");
    assert!(matcher.excludes(&path("x99/a")) && !matcher.excludes(&path("x99/keep")));
}

#[test]
fn an_ignore_file_has_comments_in_the_first_column_only() {
    let text = b"\xef\xbb\xbf# note\n # x\r\n/abs\n\n  sp  \n! /back/me/\nback\n";
    let matcher = Matcher::parse(text).expect("valid");
    assert_eq!(matcher.patterns.len(), 5);
    for name in ["# x", "abs", "sp", "back"] {
        assert!(matcher.excludes(&path(name)), "{name}");
    }
    assert!(!matcher.excludes(&path("note")));
    let later = Matcher::parse(b"back\n! /back/me/").expect("valid");
    assert!(!later.excludes(&path("back/me/x")) && later.excludes(&path("back/x")));
}

#[test]
fn bad_patterns_are_errors() {
    assert_eq!(Matcher::parse(b"!\n").err(), Some(Error::LoneExclamation));
    assert_eq!(Matcher::parse(b"! ").err(), Some(Error::LoneExclamation));
    for bad in
        ["[", "a[", "[^", "[^bc", "[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", r"\", r"[\", "[^]"]
    {
        assert!(Matcher::new([bad]).is_err(), "{bad}");
        assert!(path_match(bad, &path("a")).is_err(), "{bad}");
    }
}

#[test]
fn excluded_directories_are_entered_when_something_below_may_come_back() {
    let may = |patterns: &[&str], name: &str| {
        Matcher::new(patterns).expect("valid").may_reinclude_below(&path(name))
    };
    assert!(may(&["*", "!a/b/c"], "a"));
    assert!(may(&["*", "!a/b/c"], "a/b"));
    assert!(!may(&["*", "!a/b/c"], "a/b/c"));
    assert!(!may(&["*", "!a/b/c"], "b"));
    assert!(may(&["*", "!*/x"], "q") && !may(&["*", "!*.md"], "q"));
    assert!(may(&["*", "!**/x"], "q/r/s") && may(&["*", "!q/**/x"], "q/r/s"));
    assert!(!may(&["*", "!q/**/x"], "p"));
    assert!(may(&["*", "!a[^x]b"], "a"));
    assert!(!may(&["*", "a/b"], "a"));
}

#[test]
fn wildcards_match_whole_paths() {
    let yes = [
        ("*", "abc"),
        ("*c", "abc"),
        ("a*/b", "abc/b"),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/f"),
        ("a*b?c*x", "abxbbxdbxebxczzx"),
        ("ab[^e-g]", "abc"),
        (r"[\-x]", "-"),
        ("*x", "xxx"),
        ("/src/./*.js", "src/a.js"),
        ("a**b", "axxb"),
    ];
    for (pattern, name) in yes {
        assert_eq!(path_match(pattern, &path(name)), Ok(true), "{pattern} {name}");
    }
    let no = [
        ("a*", "ab/c"),
        ("a*/b", "a/c/b"),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/fff"),
        ("a*b?c*x", "abxbbxdbxebxczzy"),
        ("ab[e-g]", "abc"),
        ("**/b", "x/y/b"),
        ("a", "aa"),
    ];
    for (pattern, name) in no {
        assert_eq!(path_match(pattern, &path(name)), Ok(false), "{pattern} {name}");
    }
    assert!(has_wildcard("a*") && has_wildcard("[a") && has_wildcard(r"\\?"));
    assert!(!has_wildcard(r"a\*") && !has_wildcard("a"));
}

#[test]
fn names_that_are_no_text_match_stars() {
    let name = RootPath::clamped(b"x/\xff\xfe.o").expect("no NUL");
    for pattern in ["**/*.o", "x/*", "x/**", "**"] {
        assert!(Matcher::new([pattern]).expect("valid").excludes(&name), "{pattern}");
    }
    assert_eq!(path_match("x/??.o", &name), Ok(true));
}

proptest! {
    #[test]
    fn any_bytes_are_a_matcher_or_an_error(
        text in proptest::collection::vec(any::<u8>(), 0..80),
        name in "[a-z/*.]{0,20}",
    ) {
        if let Ok(matcher) = Matcher::parse(&text) {
            matcher.excludes(&path(&name));
            matcher.may_reinclude_below(&path(&name));
        }
    }

    #[test]
    fn a_single_component_pattern_agrees_with_filepath_match(
        pattern in r"([ab*?x]|\[a-c\]|\[\^b\]|\\\*){1,8}",
        name in "[abcx*☺]{1,8}",
    ) {
        prop_assume!(!pattern.contains("**"));
        prop_assert_eq!(path_match(&pattern, &path(&name)), Ok(excludes(&[&pattern], &name)));
    }

    #[test]
    fn nothing_reappears_below_a_directory_that_need_not_be_entered(
        patterns in proptest::collection::vec("!?([ab*]{1,2}/?){1,3}", 1..5),
        directory in "[ab](/[ab]){0,2}",
        below in "[ab](/[ab]){0,2}",
    ) {
        let matcher = Matcher::new(&patterns).expect("no brackets");
        let above = path(&directory);
        if matcher.excludes(&above) && !matcher.may_reinclude_below(&above) {
            let inner = path(&format!("{directory}/{below}"));
            prop_assert!(matcher.excludes(&inner), "{inner} reappears");
        }
    }
}
