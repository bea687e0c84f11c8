use super::*;
use proptest::prelude::*;

fn variables(name: &str) -> Option<String> {
    let value = match name {
        "PWD" => "/home",
        "SET" => "value",
        "EMPTY" => "",
        "KO" => "한국어",
        "TXT" => "/foo*/*/*.txt",
        "TMP" => "/tmp/tmp/bar.txt",
        "XY" => "xxyy",
        "STARS" => "a***yy*",
        "QUERY" => "???y",
        "REGEX" => r"()[]{}^$.*?|\x",
        "STAR_SLASH" => r"\*/",
        "SPACES" => "one  two",
        "OS" => "linux",
        _ => return None,
    };
    Some(value.to_owned())
}

fn plain(text: &str) -> Result<String, ExpandError> {
    expand(text, '\\', &variables).map(|expanded| expanded.value)
}

#[test]
fn quotes_escapes_and_names() {
    for (text, expected) in [
        ("hello", "hello"),
        ("he'll'o", "hello"),
        ("he'l\\l'o", "hel\\lo"),
        ("he\\'llo", "he'llo"),
        ("\"he\\\"llo\"", "he\"llo"),
        ("\"he\\\\llo\\n\"", "he\\llo\\n"),
        ("\"he'llo'\"", "he'llo'"),
        ("'he\"llo'", "he\"llo"),
        ("\"\"''", ""),
        ("hello\\", "hello"),
        ("\\\\\\a", "\\a"),
        ("$PWD", "/home"),
        ("a$PWD.b", "a/home.b"),
        ("'$PWD'", "$PWD"),
        ("\"$PWD\"", "/home"),
        ("\\$PWD", "$PWD"),
        ("\"\\$PWD\"", "$PWD"),
        ("${PWD}x", "/homex"),
        ("$PWDx", ""),
        ("$KO", "한국어"),
        ("안녕${KO}", "안녕한국어"),
        ("$", "$"),
        ("a$", "a$"),
        ("$.", "$."),
        ("$$x", "x"),
        ("$1x$@$*$#$?$-$!$0", "x"),
        ("$123y", "y"),
        ("$ü_1", ""),
        ("a b  c", "a b  c"),
        ("  'a b' ", "  a b "),
    ] {
        assert_eq!(plain(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn defaults_and_alternatives() {
    for (text, expected) in [
        ("${SET-w}${EMPTY-w}${NONE-w}", "valuew"),
        ("${SET:-w}${EMPTY:-w}${NONE:-w}", "valueww"),
        ("${SET+w}${EMPTY+w}${NONE+w}", "ww"),
        ("${SET:+w}${EMPTY:+w}${NONE:+w}", "w"),
        ("${SET?m}${EMPTY?m}", "value"),
        ("${NONE:-}", ""),
        ("${NONE:-${EMPTY:-$SET}}", "value"),
        ("${NONE:-\"a}b\"}", "a}b"),
        ("${NONE:-'$SET'}", "$SET"),
        ("${NONE:-a\\}b}", "a}b"),
        ("${NONE:--}", "-"),
        ("x.$OS${OS:+-${OS}}.gz", "x.linux-linux.gz"),
    ] {
        assert_eq!(plain(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn patterns_trim_and_replace() {
    for (text, expected) in [
        ("${XY#x}", "xyy"),
        ("${XY#*}", "xxyy"),
        ("${XY##*}", ""),
        ("${XY#*x*y}", "y"),
        ("${XY##*x}", "yy"),
        ("${XY#}${XY##}${XY%}", "xxyyxxyyxxyy"),
        ("${XY%y}", "xxy"),
        ("${XY%%y*}", "xx"),
        ("${XY%x}", "xxyy"),
        ("${XY%%$EMPTY}", "xxyy"),
        ("${QUERY#?\\?}", "?y"),
        ("${STARS%%\\**\\*}", "a"),
        (r"${REGEX#()[]{\}^$.\*\?|\\}", "x"),
        ("${TXT/$STAR_SLASH/.}", "/foo.*/*.txt"),
        ("${TXT//$STAR_SLASH/.}", "/foo..*.txt"),
        ("${TMP//\\/tmp/}", "/bar.txt"),
        ("${TMP/\\/tmp/}", "/tmp/bar.txt"),
        ("${XY/x/$SET}", "valuexyy"),
        ("${XY//x/[\\$0]}", "[\\x][\\x]yy"),
        ("${XY/$EMPTY/w}", "wxxyy"),
        ("${XY///}", "xxyy"),
        ("${NONE#x}${NONE/x/y}", ""),
        ("${KO%?}", "한국"),
    ] {
        assert_eq!(plain(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn what_a_dockerfile_does_not_know_is_an_error() {
    let unsupported = [
        "${SET:=w}",
        "${SET=w}",
        "${SET:0:2}",
        "${!SET}",
        "${#SET}",
        "${SET^^}",
        "${SET,}",
        "${SET:#v}",
        "${SET:%v}",
        "${SET:}",
        "${SET@Q}",
    ];
    for text in unsupported {
        let error = plain(text).expect_err(text);
        assert!(matches!(error, ExpandError::UnsupportedModifier { .. }), "{text}: {error}");
    }
    for text in ["${}", "${{SET}}", "${:-x}"] {
        assert_eq!(plain(text), Err(ExpandError::BadSubstitution), "{text}");
    }
    for text in ["${", "${SET", "${SET:", "${SET:-x", "${SET/a/b", "${NONE:-${SET}"] {
        assert_eq!(plain(text), Err(ExpandError::MissingBrace), "{text}");
    }
    for text in ["${SET/a}", "${SET//}"] {
        assert_eq!(plain(text), Err(ExpandError::MissingSlash("SET".to_owned())), "{text}");
    }
    for text in ["'", "a'b", "\"", "\"a\\\"", "${NONE:-'}"] {
        assert!(matches!(plain(text), Err(ExpandError::UnclosedQuote(_))), "{text}");
    }
    for text in ["${SET#\\x}", "${SET%\\x}", "${SET/\\x/y}"] {
        assert!(matches!(plain(text), Err(ExpandError::BadPattern { .. })), "{text}");
    }
}

#[test]
fn a_required_variable_reports_its_message() {
    let message = |text: &str| plain(text).expect_err(text).to_string();
    assert_eq!(message("${NONE?set it to $SET}"), "NONE: set it to value");
    assert_eq!(message("${NONE?}"), "NONE: is not allowed to be unset");
    assert_eq!(message("${EMPTY:?}"), "EMPTY: is not allowed to be empty");
}

#[test]
fn undefined_names_are_told_once_in_order() {
    let expanded = expand("$B ${A:-$C} $B $SET ${D+x}", '\\', &variables).expect("valid");
    assert_eq!(expanded.value, "   value ");
    assert_eq!(expanded.undefined, ["B", "C", "A", "D"]);
}

#[test]
fn the_backtick_escapes_when_it_is_the_escape_character() {
    let value = |text: &str| expand(text, '`', &variables).expect("valid").value;
    assert_eq!(value("C:\\dir`$SET`\""), "C:\\dir$SET\"");
    assert_eq!(value("\"`$SET \\n\""), "$SET \\n");
}

#[test]
fn words_split_after_expansion_and_not_in_quotes() {
    let words = |text: &str| expand_words(text, '\\', &variables).expect("valid");
    assert_eq!(words("a  b$SPACES c"), ["a", "bone", "two", "c"]);
    assert_eq!(words("\"$SPACES\" 'x y' z\\ z"), ["one  two", "x y", "z z"]);
    assert_eq!(words("$EMPTY '' \"\""), Vec::<String>::new());
    assert_eq!(words("80/tcp"), ["80/tcp"]);
}

#[test]
fn heredocs_keep_quotes_and_backticks() {
    let body = |text: &str| expand_heredoc(text, &variables).expect("valid");
    assert_eq!(body("'$SET' \"$NONE\"\n").value, "'value' \"\"\n");
    assert_eq!(body("\\$SET `date` it's\n").value, "$SET `date` it's\n");
    assert_eq!(body("$NONE").undefined, ["NONE"]);
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| format!("{}x{}", "${N:-".repeat(depth), "}".repeat(depth));
    assert_eq!(plain(&nested(MAX_DEPTH)).as_deref(), Ok("x"));
    assert_eq!(plain(&nested(MAX_DEPTH + 1)), Err(ExpandError::TooDeep));
    assert_eq!(plain(&nested(1_000_000)), Err(ExpandError::TooDeep));
}

proptest! {
    #[test]
    fn expansion_never_panics(text in "\\PC{0,60}", escape in prop_oneof![Just('\\'), Just('`')]) {
        let _ = expand(&text, escape, &variables);
        let _ = expand_words(&text, escape, &variables);
        let _ = expand_heredoc(&text, &variables);
    }

    #[test]
    fn substitutions_never_panic(text in r#"([$]|[$]\{|\}|SET|KO|:|-|\+|\?|#|%|/|\*|\\|'|"| ){0,24}"#) {
        let _ = expand(&text, '\\', &variables);
        let _ = expand_words(&text, '`', &variables);
    }

    #[test]
    fn quoting_round_trip(
        text in "\\PC{0,40}",
        escape in prop_oneof![Just('\\'), Just('`')],
    ) {
        let double: String = text
            .chars()
            .flat_map(|char| {
                let special = char == '"' || char == '$' || char == escape;
                special.then_some(escape).into_iter().chain([char])
            })
            .collect();
        let bare: String = text.chars().flat_map(|char| [escape, char]).collect();
        for quoted in [format!("\"{double}\""), bare] {
            let expanded = expand(&quoted, escape, &variables).expect("quoted");
            prop_assert_eq!(&expanded.value, &text);
            let words = expand_words(&quoted, escape, &variables).expect("quoted");
            prop_assert_eq!(words.concat(), text.clone());
        }
    }
}
