//! §1.4 and §1.7 of the reference: what a variable is worth where.

use super::step::CopySource;
use super::*;

/// (name of the rule, build args, file, value of X in the last RUN)
type Row =
    (&'static str, &'static [(&'static str, &'static str)], &'static str, Option<&'static str>);

const ROWS: &[Row] = &[
    ("global ARG isn't seen in a stage", &[], "ARG X=g\nFROM i\nRUN x", None),
    ("ARG imports the global value", &[], "ARG X=g\nFROM i\nARG X\nRUN x", Some("g")),
    ("stage default beats the global", &[], "ARG X=g\nFROM i\nARG X=s\nRUN x", Some("s")),
    ("build arg beats both", &[("X", "b")], "ARG X=g\nFROM i\nARG X=s\nRUN x", Some("b")),
    (
        "build arg reaches through the global",
        &[("X", "b")],
        "ARG X\nFROM i\nARG X\nRUN x",
        Some("b"),
    ),
    ("undeclared build arg isn't seen", &[("X", "b")], "FROM i\nRUN x", None),
    ("later of two build args wins", &[("X", "a"), ("X", "b")], "FROM i\nARG X\nRUN x", Some("b")),
    ("ARG with nothing isn't exported", &[], "FROM i\nARG X\nRUN x", None),
    ("ARG X= is exported empty", &[], "FROM i\nARG X=\nRUN x", Some("")),
    ("empty build arg is a value", &[("X", "")], "FROM i\nARG X=d\nRUN x", Some("")),
    ("ENV after ARG wins", &[("X", "b")], "FROM i\nARG X=a\nENV X=e\nRUN x", Some("e")),
    ("ARG after ENV wins", &[], "FROM i\nENV X=e\nARG X=a\nRUN x", Some("a")),
    ("ARG with nothing leaves ENV alone", &[], "FROM i\nENV X=e\nARG X\nRUN x", Some("e")),
    ("ARG counts from its line on", &[], "FROM i\nRUN x\nARG X=a", None),
    ("global ARGs see earlier ones", &[], "ARG A=1\nARG X=$A-2\nFROM i\nARG X\nRUN x", Some("1-2")),
    (
        "imported value isn't expanded again",
        &[("X", "$Y")],
        "ARG X\nFROM i\nARG X\nRUN x",
        Some("$Y"),
    ),
    ("ARG words see earlier words", &[], "FROM i\nARG A=1 X=$A\nRUN x", Some("1")),
    ("ENV words don't", &[], "FROM i\nENV A=1\nENV A=2 X=${A:-z}\nRUN x", Some("1")),
    ("ENV sees nothing of itself", &[], "FROM i\nENV A=1 X=\"${A:-z}\"\nRUN x", Some("z")),
    ("ARG default sees ENV", &[], "FROM i\nENV A=1\nARG X=$A\nRUN x", Some("1")),
    ("child stage inherits ARG", &[], "FROM i AS a\nARG X=a\nFROM a\nRUN x", Some("a")),
    ("grandchild too", &[], "FROM i AS a\nARG X=a\nFROM a AS b\nFROM b\nRUN x", Some("a")),
    ("other stages don't", &[], "FROM i AS a\nARG X=a\nFROM i\nRUN x", None),
    (
        "child's config ENV wins over inherited ARG",
        &[],
        "FROM i AS a\nENV X=e\nARG X=a\nFROM a\nRUN x",
        Some("e"),
    ),
    ("TARGETARCH needs a declaration", &[], "FROM i\nENV X=$TARGETARCH\nRUN x", Some("")),
    (
        "declared TARGETARCH has a value",
        &[],
        "FROM i\nARG TARGETARCH\nENV X=$TARGETARCH\nRUN x",
        Some("amd64"),
    ),
    (
        "default of TARGETARCH wins in a stage",
        &[],
        "FROM i\nARG TARGETARCH=z\nENV X=$TARGETARCH\nRUN x",
        Some("z"),
    ),
    (
        "BUILDPLATFORM",
        &[],
        "FROM i\nARG BUILDPLATFORM\nENV X=$BUILDPLATFORM\nRUN x",
        Some("linux/amd64"),
    ),
    (
        "TARGETVARIANT is empty, not unset",
        &[],
        "FROM i\nARG TARGETVARIANT\nENV X=${TARGETVARIANT-unset}\nRUN x",
        Some(""),
    ),
    (
        "TARGETOS can be given",
        &[("TARGETOS", "plan9")],
        "FROM i\nARG TARGETOS\nENV X=$TARGETOS\nRUN x",
        Some("plan9"),
    ),
    (
        "TARGETSTAGE of an unnamed stage",
        &[],
        "FROM i\nARG TARGETSTAGE\nENV X=$TARGETSTAGE\nRUN x",
        Some("default"),
    ),
    (
        "TARGETSTAGE is the last name",
        &[],
        "FROM i AS last\nARG TARGETSTAGE\nENV X=$TARGETSTAGE\nRUN x",
        Some("last"),
    ),
    (
        "steering ARGs never are environment",
        &[],
        "FROM i\nARG BUILDKIT_SBOM_SCAN_STAGE=1\nENV X=$BUILDKIT_SBOM_SCAN_STAGE\nRUN x",
        Some(""),
    ),
    ("positional names are empty", &[], "FROM i\nENV X=a$1$@b\nRUN x", Some("ab")),
];

#[test]
fn variables_are_worth_what_the_table_says() {
    for (rule, args, file, expected) in ROWS {
        let steps = steps_with(file, &with_args(args));
        assert_eq!(seen(&steps, "X").as_deref(), *expected, "{rule}");
    }
}

#[test]
fn a_build_arg_without_a_value_counts_as_not_given() {
    let options = Options { build_args: vec![("X".to_owned(), None)], ..options() };
    let steps = steps_with("FROM i\nARG X=d\nRUN x", &options);
    assert_eq!(seen(&steps, "X").as_deref(), Some("d"));
}

#[test]
fn an_arg_after_an_env_wins_in_run_but_not_in_the_config() {
    let steps = steps("FROM i\nENV A=e\nARG A=a\nRUN echo $A");
    assert_eq!(seen(&steps, "A").as_deref(), Some("a"));
    assert!(steps.config.env.contains(&"A=e".to_owned()));
    assert_eq!(history(&steps)[2], "RUN |1 A=a /bin/sh -c echo $A # buildkit");
}

#[test]
fn run_history_names_declared_args_once_with_the_value_in_force() {
    let text = "FROM i\nARG A=1\nARG B\nARG A=2\nENV A=3\nRUN x";
    assert_eq!(
        *history(&steps(text)).last().expect("RUN"),
        "RUN |2 A=3 B= /bin/sh -c x # buildkit"
    );
}

#[test]
fn history_of_arg_shows_the_value() {
    let text = "ARG G=g\nFROM i\nARG A=1 B\nARG G\nARG C=$A";
    let options = with_args(&[("C", "c")]);
    assert_eq!(history(&steps_with(text, &options)), ["ARG A=1 B", "ARG G=g", "ARG C=c"]);
}

#[test]
fn proxies_reach_run_without_a_declaration_and_without_a_trace() {
    let options = with_args(&[("http_proxy", "http://p"), ("NO_PROXY", ""), ("OTHER", "x")]);
    let text = "FROM i\nRUN x\nARG http_proxy\nRUN y";
    let steps = steps_with(text, &options);
    let runs = runs(&steps);
    let pair = |name: &str| (name.to_owned(), "http://p".to_owned());
    assert_eq!(runs[0].proxy, [pair("HTTP_PROXY"), pair("http_proxy")]);
    assert_eq!(seen(&steps, "http_proxy").as_deref(), Some("http://p"));
    assert!(!runs[0].environment.contains(&pair("http_proxy")));
    assert_eq!(runs[1].proxy, [pair("HTTP_PROXY")], "declared: part of the environment");
    assert_eq!(history(&steps)[0], "RUN /bin/sh -c x # buildkit");
}

#[test]
fn env_keeps_its_place_in_the_config_when_set_again() {
    let config = ContainerConfig {
        env: vec!["PATH=/b".to_owned(), "A=1".to_owned(), "B=2".to_owned()],
        ..ContainerConfig::default()
    };
    let steps = steps_on(config, "ENV A=3 C=4\nENV PATH=/x:$PATH");
    assert_eq!(steps.config.env, ["PATH=/x:/b", "A=3", "B=2", "C=4"]);
}

#[test]
fn path_has_a_default_that_instructions_see() {
    let steps = steps("FROM scratch\nENV P=$PATH\nRUN [\"x\"]");
    let expected = format!("P={DEFAULT_PATH}");
    assert_eq!(steps.config.env, [format!("PATH={DEFAULT_PATH}"), expected]);
    assert_eq!(seen(&steps, "PATH").as_deref(), Some(DEFAULT_PATH));
}

#[test]
fn the_places_that_expand_are_these() {
    let text = "FROM i\nENV V=v N=80\nLABEL $V=$V\nEXPOSE $N\nSTOPSIGNAL ${S:-TERM}\nUSER $V\n\
        VOLUME /$V\nWORKDIR /$V\nCOPY --chown=$V --chmod=7$N --exclude=$V $V /$V/\n\
        RUN --mount=type=cache,target=/$V,id=$V echo $V\nCMD echo $V\nENTRYPOINT [\"$V\"]\n\
        HEALTHCHECK CMD $V\nMAINTAINER $V\n";
    let text = text.replace("--chmod=7$N", "--chmod=7${Z:-55}");
    let steps = steps(&text);
    assert_eq!(
        history(&steps),
        [
            "ENV V=v N=80",
            "LABEL v=v",
            "EXPOSE [80/tcp]",
            "STOPSIGNAL TERM",
            "USER v",
            "VOLUME [/v]",
            "WORKDIR /v",
            "COPY --chown=v --chmod=755 v /v/ # buildkit",
            "RUN /bin/sh -c echo $V # buildkit",
            "CMD [\"/bin/sh\" \"-c\" \"echo $V\"]",
            "ENTRYPOINT [\"$V\"]",
            "HEALTHCHECK {Test:[CMD-SHELL $V] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
            "MAINTAINER $V",
        ]
    );
    assert_eq!(copies(&steps)[0].exclude, ["$V"]);
    assert_eq!(runs(&steps)[0].mounts[0].target, "/v");
}

#[test]
fn from_takes_no_variables() {
    for body in ["COPY --from=$X a b", "RUN --mount=from=$X,target=/t x"] {
        assert!(error(body).message().contains("no variables"), "{body}");
    }
}

#[test]
fn bad_substitutions_are_errors_at_their_place() {
    let error = error("ENV A=1\nENV B=${A?:");
    assert!(!error.message().is_empty());
    assert_eq!(error.line(), 3);
    assert!(try_plan("ARG A=${B?gone}\nFROM i", &options()).is_err());
    assert!(try_plan("FROM ${B?gone}", &options()).is_err());
    let given = with_args(&[("A", "x")]);
    assert!(try_plan("ARG A=${B?gone}\nFROM i", &given).is_ok(), "the default isn't looked at");
}

#[test]
fn undefined_variables_are_warned_of_unless_declared() {
    let warnings = |text: &str| steps(text).warnings;
    let found = warnings("FROM i\nENV PATHS=1\nENV A=$PATH5\n");
    assert_eq!(rules(&found), ["UndefinedVar"]);
    assert!(
        found[0].message.starts_with("Usage of undefined variable '$PATH5' (did you mean $PATH")
    );
    assert_eq!(rules(&warnings("FROM i\nARG A\nENV B=$A")), [""; 0]);
}

#[test]
fn heredocs_expand_raw_unless_quoted() {
    let text = "FROM i\nENV A=v\nCOPY <<EOF <<'RAW' /d/\n$A \"$A\" $UNSET \\$A `x`\nEOF\n$A\nRAW\n";
    let steps = steps(text);
    let inline = |name: &str, body: &str| step::CopySource::Inline {
        name: name.to_owned(),
        body: body.to_owned(),
    };
    assert_eq!(
        copies(&steps)[0].sources,
        [inline("EOF", "v \"v\"  $A `x`\n"), inline("RAW", "$A\n")]
    );
    assert_eq!(history(&steps)[1], "COPY <<EOF <<RAW /d/ # buildkit");
    assert_eq!(rules(&steps.warnings), ["UndefinedVar"]);
}

#[test]
fn arguments_that_nothing_takes_are_named() {
    let given = ["A", "B", "C", "D", "SOURCE_DATE_EPOCH", "BUILDKIT_SYNTAX", "http_proxy"];
    let given: Vec<(&str, &str)> = given.iter().map(|name| (*name, "1")).collect();
    let text = "ARG A\nFROM i AS p\nARG B\nONBUILD ARG C\nFROM p";
    let plan = try_plan(text, &with_args(&given)).expect("valid");
    assert_eq!(plan.unused_arguments(std::iter::empty()), ["D"]);
    let steps = plan.steps(0, &BaseState::scratch()).expect("placed");
    assert_eq!(plan.unused_arguments(std::iter::once(&steps)), ["D"]);
}

#[test]
fn source_date_epoch_is_read_from_build_args_and_globals() {
    let epoch = |text: &str, args: &[(&str, &str)]| {
        try_plan(text, &with_args(args)).map(|plan| plan.source_date_epoch)
    };
    let of = |text, args| epoch(text, args).ok().flatten();
    assert_eq!(of("FROM i", &[]), None);
    assert_eq!(of("FROM i", &[("SOURCE_DATE_EPOCH", "17")]), Some(Epoch::At(17)));
    assert_eq!(of("ARG SOURCE_DATE_EPOCH=5\nFROM i", &[]), Some(Epoch::At(5)));
    let context = Some(Epoch::Of(Dated::Context));
    assert_eq!(of("FROM i", &[("SOURCE_DATE_EPOCH", "context")]), context);
    assert_eq!(of("ARG SOURCE_DATE_EPOCH=5\nFROM i", &[("SOURCE_DATE_EPOCH", "")]), None);
    assert!(epoch("FROM i", &[("SOURCE_DATE_EPOCH", "soon")]).is_err());
}

#[test]
fn source_date_epoch_may_be_a_stage_with_one_remote_add() {
    let epoch = |text: &str| {
        let text = format!("{text}\nFROM i");
        let planned = try_plan(&text, &with_args(&[("SOURCE_DATE_EPOCH", "Src")]));
        planned.map(|plan| plan.source_date_epoch).map_err(|error| error.to_string())
    };
    let found = epoch("FROM scratch AS src\nARG A=a\nADD https://h/$A /").expect("a source");
    let Some(Epoch::Of(Dated::Source(CopySource::Http { address, checksum: None }))) = found else {
        panic!("{found:?}");
    };
    assert_eq!(address.url.as_str(), "https://h/a");
    let found = epoch("FROM scratch AS src\nADD https://h/r.git#v1 /").expect("a source");
    assert!(matches!(found, Some(Epoch::Of(Dated::Source(CopySource::Git { .. })))));
    for (text, what) in [
        ("FROM i AS src\nADD https://h/a /", "doesn't start from scratch"),
        ("FROM scratch AS src", "has no ADD"),
        ("FROM scratch AS src\nADD https://h/a /\nADD https://h/b /", "has a second ADD"),
        ("FROM scratch AS src\nADD https://h/a https://h/b /", "what it adds isn't remote"),
        ("FROM scratch AS src\nADD a /", "what it adds isn't remote"),
        ("FROM scratch AS src\nADD https://h/a /\nENV a=b", "does more than to ADD"),
        (
            "FROM scratch AS other\nADD https://h/a /",
            "or the name of a build context or of a stage",
        ),
    ] {
        let error = epoch(text).expect_err(text);
        assert!(error.contains(what), "{text}: {error}");
    }
}

#[test]
fn source_date_epoch_is_a_build_context_before_a_stage() {
    let mut contexts = named::Contexts::default();
    contexts.insert("src", named::NamedContext::Files);
    contexts.insert("base", named::NamedContext::Image("i".to_owned()));
    let epoch = |name: &str| {
        let options = with_args(&[("SOURCE_DATE_EPOCH", name)]);
        let options = Options { contexts: contexts.clone(), ..options };
        try_plan("FROM i AS src\nFROM i", &options).expect("valid").source_date_epoch
    };
    assert_eq!(epoch("src"), Some(Epoch::Of(Dated::Files("src".to_owned()))));
    assert_eq!(epoch("base"), Some(Epoch::Of(Dated::Image)));
}
