use super::*;
use crate::dockerfile::instruction::Copy;
use crate::dockerfile::instruction::Healthcheck;
use crate::dockerfile::instruction::Run;
use crate::dockerfile::instruction::Source;
use proptest::prelude::*;

fn file(text: &str) -> Dockerfile {
    parse("Dockerfile", text.as_bytes()).unwrap_or_else(|error| panic!("{}", error.render()))
}

/// The instructions after a FROM put before `text`.
fn after_from(text: &str) -> Vec<InstructionKind> {
    let parsed = file(&format!("FROM base\n{text}"));
    parsed.instructions.into_iter().skip(1).map(|instruction| instruction.kind).collect()
}

fn one(text: &str) -> InstructionKind {
    let mut kinds = after_from(text);
    assert_eq!(kinds.len(), 1, "{text}");
    kinds.remove(0)
}

fn fault(text: &str) -> Error {
    parse("Dockerfile", text.as_bytes()).expect_err(text)
}

fn fault_of(text: &str) -> String {
    fault(&format!("FROM base\n{text}")).to_string()
}

fn texts(words: &[Word]) -> Vec<&str> {
    words.iter().map(|word| word.text.as_str()).collect()
}

fn run(text: &str) -> Run {
    match one(text) {
        InstructionKind::Run(run) => run,
        other => panic!("{other:?}"),
    }
}

fn copy(text: &str) -> Copy {
    match one(text) {
        InstructionKind::Copy(copy) | InstructionKind::Add(copy) => copy,
        other => panic!("{other:?}"),
    }
}

fn rules(text: &str) -> Vec<&'static str> {
    file(text).warnings.into_iter().map(|warning| warning.rule).collect()
}

#[test]
fn lines_are_joined_and_comments_vanish() {
    let parsed = file("# c\nFROM a\nRUN x \\\n  # inner\n\n# other\n   y\\\nz \\  \t\n w\\\n");
    assert_eq!(parsed.instructions[1].source, "RUN x    yz  w");
    assert_eq!(parsed.warnings[0].rule, "NoEmptyContinuation");
    let span = parsed.instructions[1].span;
    assert!(parsed.text[span.start..span.end].starts_with("RUN x \\\n"));
}

#[test]
fn a_doubled_escape_character_does_not_continue() {
    let kinds = after_from("RUN a\\\\\nRUN b");
    assert_eq!(kinds.len(), 2);
    let parsed = file("# escape=`\nFROM a\nRUN x `\n y\nRUN z \\\nRUN w");
    assert_eq!(parsed.escape, '`');
    assert_eq!(parsed.instructions.len(), 4);
}

#[test]
fn byte_order_mark_and_carriage_returns_are_accepted() {
    let parsed = file("\u{feff}FROM a\r\nRUN x \\\r\n y\r\nCOPY <<E /d\r\nb\r\nE\r\n");
    assert_eq!(parsed.instructions[1].source, "RUN x  y");
    match &parsed.instructions[2].kind {
        InstructionKind::Copy(copy) => match &copy.sources[0] {
            Source::Heredoc(heredoc) => assert_eq!(heredoc.body, "b\r\n"),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_are_no_dockerfile_fail() {
    for (text, part) in [
        (&b""[..], "no instructions"),
        (b"# only\n\n  # comments", "no instructions"),
        (b"ARG A=1\n", "no FROM"),
        (b"RUN x\nFROM a", "before the first FROM"),
        (b"FROM a\nRUN \0", "2:5: file holds a NUL byte"),
        (b"FROM a\n\xff\xfe", "2:1: file is not valid UTF-8"),
        (b"\x7fELF\x02\x01\x01\0\0", "NUL byte"),
        (b"FROM a\n\\\n", "no instruction follows"),
    ] {
        let error = parse("D", text).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn lines_have_a_limit_and_logical_lines_have_none() {
    let line = |length: usize| format!("FROM a\nRUN {}", "x".repeat(length - 4));
    file(&line(65535));
    assert!(fault(&line(65536)).to_string().contains("2:1: line is longer"));
    file(&format!("FROM a\nRUN x{}", "\\\nxxxxxxxxxxxxxxxx".repeat(10_000)));
}

#[test]
fn words_keep_their_place_across_continuations() {
    let parsed = file("FROM a\nCOPY --from=b s1 \\\n  # c\n  s2 \\\n d\n");
    let InstructionKind::Copy(copy) = &parsed.instructions[1].kind else { panic!() };
    let at = |word: &Word| &parsed.text[word.span.start..word.span.end];
    for word in [copy.from.as_ref().expect("given"), &copy.destination] {
        assert_eq!(at(word), word.text);
    }
    for source in &copy.sources {
        let Source::Path(word) = source else { panic!() };
        assert_eq!(at(word), word.text);
    }
}

#[test]
fn unknown_instructions_get_a_suggestion_and_a_place() {
    let error = fault("FROM a\n\n  RUNN x\n");
    assert_eq!((error.line(), error.column()), (3, 3));
    assert_eq!(error.message(), "unknown instruction `RUNN`");
    assert_eq!(error.hint(), Some("did you mean RUN?"));
    let error = fault("FROM a\nENV \\\n a=b \\\n\n c\n");
    assert_eq!((error.line(), error.column()), (5, 2));
}

#[test]
fn from_takes_one_or_three_words() {
    let parsed = file("FROM --platform=$P a:1 As Web-1.x_y");
    let InstructionKind::From(from) = &parsed.instructions[0].kind else { panic!() };
    assert_eq!(from.name.as_deref(), Some("web-1.x_y"));
    assert_eq!(from.platform.as_ref().map(|word| word.text.as_str()), Some("$P"));
    for bad in ["FROM", "FROM a b", "FROM a AS", "FROM a is b", "FROM a AS b c"] {
        assert!(fault(bad).to_string().contains("either one or three"), "{bad}");
    }
    for bad in ["FROM a AS 1x", "FROM a AS x/y", "FROM a AS ä"] {
        assert!(fault(bad).to_string().contains("invalid name for a build stage"), "{bad}");
    }
}

#[test]
fn arity_is_checked() {
    for word in ["MAINTAINER", "WORKDIR", "USER", "STOPSIGNAL"] {
        assert!(fault_of(word).contains("requires exactly one argument"), "{word}");
    }
    for word in ["ENV", "LABEL", "ARG", "ONBUILD", "HEALTHCHECK", "EXPOSE", "VOLUME", "SHELL"] {
        assert!(fault_of(word).contains("requires at least one argument"), "{word}");
    }
    for text in ["COPY a", "ADD", "COPY [\"a\"]", "COPY\t\n\tquux \\\n bar"] {
        let error = fault_of(text);
        assert!(error.contains("requires at least two arguments"), "{error}");
    }
    for (text, part) in [
        ("RUN []", "at least one"),
        ("SHELL []", "at least one"),
        ("SHELL a b", "JSON form"),
        ("ENV a", "must have two arguments"),
        ("ENV a=b c", "no `=` in `c`"),
        ("ENV =b", "can't be blank"),
        ("ARG =b", "can't be blank"),
        ("VOLUME [\" \"]", "can't be empty"),
        ("CMD [1]", "must be strings"),
        ("COPY [\"a\", null]", "must be strings"),
        ("HEALTHCHECK CMD [true]", "must be strings"),
    ] {
        let error = fault_of(text);
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn one_argument_is_the_rest_of_the_line() {
    assert!(matches!(one("user  a  b "), InstructionKind::User(word) if word.text == "a  b"));
    assert!(
        matches!(one("MAINTAINER A <b@c>"), InstructionKind::Maintainer(name) if name == "A <b@c>")
    );
}

#[test]
fn env_and_label_have_two_forms() {
    let pairs = |text: &str| match one(text) {
        InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
            pairs.into_iter().map(|(key, value)| (key.text, value.text)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(pairs("ENV a  b c=d  e"), [pair("a", "b c=d  e")]);
    assert_eq!(
        pairs("ENV a=b c='d e' f=\"g\\\" h\" i= j=k\\ l"),
        [
            pair("a", "b"),
            pair("c", "'d e'"),
            pair("f", "\"g\\\" h\""),
            pair("i", ""),
            pair("j", "k\\ l")
        ],
    );
    assert_eq!(pairs("LABEL \"a.b\"=c=d"), [pair("\"a.b\"", "c=d")]);
    assert_eq!(rules("FROM a\nENV a b\nENV c=d\nLABEL e f"), ["LegacyKeyValueFormat"; 2]);
}

#[test]
fn arg_declares_names_with_and_without_default() {
    let InstructionKind::Arg(declared) = one("ARG a b= c=\"d e\"") else { panic!() };
    let seen: Vec<_> = declared
        .iter()
        .map(|arg| (arg.name.text.as_str(), arg.default.as_ref().map(|word| word.text.as_str())))
        .collect();
    assert_eq!(seen, [("a", None), ("b", Some("")), ("c", Some("\"d e\""))]);
}

#[test]
fn commands_are_json_or_shell() {
    let exec = |words: &[&str]| Command::Exec(words.iter().map(|&word| word.to_owned()).collect());
    let shell = |text: &str| Command::Shell(text.to_owned());
    for (text, expected) in [
        ("CMD [\"a\", \"b c\"]", exec(&["a", "b c"])),
        ("CMD []", exec(&[])),
        ("CMD", shell("")),
        ("CMD ['a']", shell("['a']")),
        ("CMD [ -x /y ] && z", shell("[ -x /y ] && z")),
        ("CMD [\"a\\d\"]", shell("[\"a\\d\"]")),
        ("CMD a  'b' # c", shell("a  'b' # c")),
    ] {
        assert_eq!(one(text), InstructionKind::Cmd(expected), "{text}");
    }
}

#[test]
fn flags_are_checked_against_the_known_ones() {
    let run =
        run("RUN --mount=type=cache,target=/c --mount='type=bind,src=a b' --network=none -- --x y");
    assert_eq!(texts(&run.mounts), ["type=cache,target=/c", "type=bind,src=a b"]);
    assert_eq!(run.network.map(|word| word.text).as_deref(), Some("none"));
    assert_eq!(run.command, Command::Shell("--x y".to_owned()));
    let copy = copy("COPY --link --parents=FALSE --exclude=a --exclude=b --chown= a b");
    assert!(copy.link && !copy.parents && copy.chown.is_none());
    assert_eq!(texts(&copy.exclude), ["a", "b"]);
    for (text, part) in [
        ("COPY --form=x a b", "did you mean --from?"),
        ("COPY --checksum=x a b", "unknown flag --checksum of COPY"),
        ("ADD --from=x a b", "unknown flag --from of ADD"),
        ("MAINTAINER --boo x", "MAINTAINER has no flags"),
        ("CMD --x", "unknown flag --x of CMD"),
        ("COPY --from=x --from=y a b", "--from is given twice"),
        ("COPY --link --link a b", "given twice"),
        ("COPY --link=yes a b", "true or false, not `yes`"),
        ("COPY --link= a b", "missing a value"),
        ("COPY --from a b", "missing a value"),
        ("RUN --device=gpu x", "--device of RUN is not supported"),
        ("RUN --security=lax x", "unknown value `lax` of RUN --security"),
        ("RUN --network=hots x", "did you mean host?"),
    ] {
        let error = fault_of(text);
        assert!(error.contains(part), "{text}: {error}");
    }
    assert_eq!(one("ADD --unpack=false --keep-git-dir a b"), {
        let mut copy = self::copy("ADD a b");
        copy = Copy { unpack: Some(false), keep_git_dir: true, ..copy };
        let InstructionKind::Add(parsed) = one("ADD --unpack=false --keep-git-dir a b") else {
            panic!()
        };
        InstructionKind::Add(Copy {
            sources: parsed.sources,
            destination: parsed.destination,
            ..copy
        })
    });
}

#[test]
fn heredocs_follow_their_line() {
    let run = run("RUN <<A 3<<-'B C' cat\none $X\n# no comment\nA\n\ttwo\n\tB C\n");
    let seen: Vec<_> = run
        .heredocs
        .iter()
        .map(|doc| (doc.name.as_str(), doc.body.as_str(), doc.expand, doc.chomp, doc.descriptor))
        .collect();
    assert_eq!(
        seen,
        [("A", "one $X\n# no comment\n", true, false, 0), ("B C", "\ttwo\n", false, true, 3),]
    );
    assert_eq!(run.heredocs[1].content(), "two\n");
    assert_eq!(run.command, Command::Shell("<<A 3<<-'B C' cat".to_owned()));
    assert_eq!(
        self::run("RUN << E > f\nE\nRUN x".split("RUN x").next().expect("text")).heredocs.len(),
        1
    );
    assert!(self::run("RUN [\"<<E\"]").heredocs.is_empty());
    assert!(self::run("RUN \"<<E\" '<<E' <<<E a<<E").heredocs.is_empty());
    assert!(matches!(one("USER <<E"), InstructionKind::User(_)));
    let error = fault("FROM a\nRUN <<EOF\nx\n");
    assert_eq!(error.message(), "unterminated heredoc `EOF`");
    assert_eq!((error.line(), error.column()), (2, 5));
}

#[test]
fn copy_makes_files_of_heredocs_in_place() {
    let copied = copy("COPY --chown=1 <<X a << Y /d/\nY\nX\nX\nY\n");
    let seen: Vec<_> = copied
        .sources
        .iter()
        .map(|source| match source {
            Source::Path(word) => word.text.clone(),
            Source::Heredoc(doc) => format!("{}={}", doc.name, doc.body),
        })
        .collect();
    assert_eq!(seen, ["X=Y\n", "a", "Y=X\n"]);
    assert_eq!(copied.destination.text, "/d/");
    assert!(fault_of("COPY /a <<E\nE").contains("can't be a heredoc"));
    assert!(fault_of("COPY <<E\nE").contains("at least two"));
}

#[test]
fn onbuild_keeps_text_that_parses_to_the_same() {
    for (text, stored) in [
        ("ONBUILD RUN a \\\n b ", "RUN a  b "),
        ("onbuild   copy --from=x a b", "copy --from=x a b"),
        ("ONBUILD RUN <<-E\n\tx $Y\n\tE\n", "RUN <<-E\n\tx $Y\nE"),
        ("ONBUILD COPY <<'A' <<B /d\n1\nA\n2\nB\n", "COPY <<'A' <<B /d\n1\nA\n2\nB"),
    ] {
        let InstructionKind::Onbuild { text: kept, trigger } = one(text) else { panic!("{text}") };
        assert_eq!(kept, stored);
        let again = parse_trigger(&kept).expect("valid");
        assert_eq!(again.source, trigger.source);
        assert_eq!(std::mem::discriminant(&again.kind), std::mem::discriminant(&trigger.kind));
    }
    for (text, part) in [
        ("ONBUILD ONBUILD RUN x", "can't trigger another"),
        ("ONBUILD FROM x", "FROM can't be an ONBUILD trigger"),
        ("ONBUILD MAINTAINER x", "MAINTAINER can't be"),
        ("ONBUILD RUNN x", "unknown instruction `RUNN`"),
        ("ONBUILD --x RUN y", "ONBUILD has no flags"),
        ("ONBUILD COPY x", "at least two"),
    ] {
        let error = fault_of(text);
        assert!(error.contains(part), "{text}: {error}");
    }
    for bad in ["", "# x", "RUN a\nRUN b", "FROM a", "ONBUILD RUN x", "RUN <<E\n"] {
        assert!(parse_trigger(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn healthchecks_have_durations_and_retries() {
    let InstructionKind::Healthcheck(check) = one(
        "HEALTHCHECK --interval=1m30s --timeout=0s --start-period=1ms --start-interval=.5s --retries=3 CMD [\"a\"]",
    ) else {
        panic!()
    };
    assert_eq!(
        check,
        Healthcheck::Check {
            command: Command::Exec(vec!["a".to_owned()]),
            interval: 90_000_000_000,
            timeout: 0,
            start_period: 1_000_000,
            start_interval: 500_000_000,
            retries: 3,
        }
    );
    assert_eq!(one("healthcheck none"), InstructionKind::Healthcheck(Healthcheck::None));
    for (text, part) in [
        ("HEALTHCHECK NONE x", "takes no arguments"),
        ("HEALTHCHECK x", "unknown type `x`"),
        ("HEALTHCHECK CMD", "no command"),
        ("HEALTHCHECK CMD []", "no command"),
        ("HEALTHCHECK --interval=50ns CMD x", "less than 1ms"),
        ("HEALTHCHECK --interval=-1s CMD x", "less than 1ms"),
        ("HEALTHCHECK --interval=5 CMD x", "missing unit"),
        ("HEALTHCHECK --retries=-1 CMD x", "negative"),
        ("HEALTHCHECK --retries=x CMD x", "is a number"),
    ] {
        let error = fault_of(text);
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn lint_rules_find_what_the_text_shows() {
    for (text, rule) in [
        ("FROM a as b", "FromAsCasing"),
        ("FROM a AS B", "StageNameCasing"),
        ("FROM a AS context", "ReservedStageName"),
        ("FROM a AS b\nFROM a AS b", "DuplicateStageName"),
        ("FROM a\nrun x\nRUN y", "ConsistentInstructionCasing"),
        ("FROM a\nMAINTAINER x", "MaintainerDeprecated"),
        ("FROM a\nENV x y", "LegacyKeyValueFormat"),
        ("FROM a\nLABEL x y", "LegacyKeyValueFormat"),
        ("FROM a\nRUN x \\\n\n y", "NoEmptyContinuation"),
    ] {
        assert_eq!(rules(text), [rule], "{text}");
        assert!(rules(&format!("# check=skip={rule}\n{text}")).is_empty(), "{rule}");
    }
    for text in [
        "from a as b\nrun x",
        "arg x\nFROM a\nRUN x",
        "FROM a\n# check=skip=MaintainerDeprecated\nMAINTAINER x",
        "# odd comment\nFROM a AS b",
    ] {
        assert!(rules(text).is_empty(), "{text}: {:?}", rules(text));
    }
}

#[test]
fn experimental_rules_are_off_until_named() {
    let on = "# check=experimental=InvalidDefinitionDescription\n";
    for (text, message) in [
        ("FROM a\n# odd\nARG x", "Comment for ARG should follow the format: `# x <description>`"),
        (
            "FROM a\n# odd\nARG x y",
            "Comment for ARG should follow the format: `# <arg_key> <description>`",
        ),
        ("# odd\nFROM a AS b", "Comment for FROM should follow the format: `# b <description>`"),
    ] {
        assert!(rules(text).is_empty(), "{text}");
        let found = file(&format!("{on}\n{text}")).warnings;
        assert_eq!(found.len(), 1, "{text}");
        assert_eq!(found[0].message, message);
    }
    for text in ["FROM a\n# x what it is\nARG x", "FROM a\n# odd\n\nARG x", "# odd\nFROM a"] {
        assert!(rules(&format!("{on}\n{text}")).is_empty(), "{text}");
    }
}

#[test]
fn a_check_from_outside_replaces_the_directive_but_not_the_comments() {
    let text = "# check=skip=all\nFROM a AS B\n# check=skip=MaintainerDeprecated\nMAINTAINER x\n";
    let check = Some(Check::parse("error=true").expect("valid"));
    let outside = Overrides { check, syntax: false };
    let parsed = parse_with("D", text.as_bytes(), outside).expect("valid");
    let found: Vec<&str> = parsed.warnings.iter().map(|warning| warning.rule).collect();
    assert_eq!(found, ["StageNameCasing"]);
    assert!(parsed.check.error && rules(text).is_empty());
}

/// Messages exactly as BuildKit writes them.
#[test]
fn findings_in_the_text_have_the_usual_messages() {
    for (text, expected) in [
        ("FROM a AS Build", "Stage name 'Build' should be lowercase"),
        ("FROM a as b", "'as' and 'FROM' keywords' casing do not match"),
        ("FROM a\nRUN \\\n\nx", "Empty continuation line"),
        (
            "FROM a\nrun x\nRUN y",
            "Command 'run' should match the case of the command majority (uppercase)",
        ),
        (
            "from a\nrun x\nRUN y",
            "Command 'RUN' should match the case of the command majority (lowercase)",
        ),
        ("FROM a AS b\nFROM a AS b", "Duplicate stage name \"b\", stage names should be unique"),
        (
            "FROM a AS scratch",
            "Stage name should not use the same name as reserved stage \"scratch\"",
        ),
        ("FROM a\nMAINTAINER x", "Maintainer instruction is deprecated in favor of using label"),
        (
            "FROM a\nENV x y",
            "\"ENV key=value\" should be used instead of legacy \"ENV key value\" format",
        ),
    ] {
        let found: Vec<String> =
            file(text).warnings.into_iter().map(|warning| warning.message).collect();
        assert_eq!(found, [expected], "{text}");
    }
}

#[test]
fn megabytes_of_anything_take_linear_time() {
    let started = std::time::Instant::now();
    for part in [
        "RUN x\n",
        "ARG a\n",
        "RUN x \\\n\n y\n",
        "# check=skip=A\nCMD x\n",
        "COPY <<E <<F /x\ny\nE\nF\n",
        "ENV a='b c' d=\"${e:-${f}}\"\n",
        "FROM a AS b\n",
    ] {
        file(&format!("FROM a\n{}", part.repeat(1_000_000 / part.len())));
    }
    for part in ["x\\\n", " a=b \\\n", " <<E \\\n"] {
        let keyword = if part.contains('=') { "ENV" } else { "RUN" };
        let body = if part.contains("<<") { "\nE\n".repeat(20_000) } else { String::new() };
        let text = format!("FROM a\n{keyword} {}{body}", part.repeat(20_000));
        let _ = parse("D", text.as_bytes());
    }
    // A quadratic pass over any of these would take minutes.
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn errors_travel_between_threads() {
    fn travels<T: Clone + Send + Sync + std::error::Error + 'static>(_: T) {}
    travels(fault(""));
}

proptest! {
    #[test]
    fn any_bytes_are_a_dockerfile_or_an_error(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse("D", &text).map_err(|error| error.render());
    }

    #[test]
    fn anything_like_a_dockerfile_is_one_or_an_error(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("FROM a AS b"), Just("ONBUILD "), Just("RUN "), Just("COPY "), Just("ENV "),
                Just("ARG "), Just("HEALTHCHECK "), Just("CMD "), Just("<<E"), Just("<<-'E' "),
                Just("E"), Just("\n"), Just("\r\n"), Just("\\"), Just("\\\n"), Just("#"),
                Just("\""), Just("'"), Just("["), Just("\"]"), Just("--"), Just("from="),
                Just("link "), Just("a=b "), Just("ü"), Just("\u{a0}"), Just("\t"), Just("$"),
                Just("# escape=`\n"), Just("# syntax="), Just("LABEL "), Just("VOLUME "),
            ],
            0..24,
        ),
    ) {
        let text = parts.concat();
        let prefixed = format!("FROM x\n{text}");
        for text in [&text, &prefixed] {
            match parse("D", text.as_bytes()) {
                Ok(parsed) => {
                    for instruction in &parsed.instructions {
                        let span = instruction.span;
                        prop_assert!(span.start < span.end);
                        prop_assert!(parsed.text.get(span.start..span.end).is_some());
                    }
                }
                Err(error) => prop_assert!(!error.render().is_empty()),
            }
            let _ = parse_trigger(text);
        }
    }
}
