//! Stages: bases, names, targets, dependencies, triggers, platforms.

use super::super::step::Origin;
use super::*;

#[test]
fn a_base_is_a_stage_above_then_scratch_then_an_image() {
    let plan = planned("FROM a AS one\nFROM ONE AS two\nFROM scratch\nFROM three\nFROM b AS three");
    let bases: Vec<&Base> = plan.stages.iter().map(|stage| &stage.base).collect();
    assert_eq!(
        bases,
        [
            &Base::Image("a".to_owned()),
            &Base::Stage(0),
            &Base::Scratch,
            &Base::Image("three".to_owned()),
            &Base::Image("b".to_owned()),
        ]
    );
    let titles: Vec<&str> = plan.stages.iter().map(|stage| stage.title.as_str()).collect();
    assert_eq!(titles, ["one", "two", "stage-2", "stage-3", "three"]);
    assert_eq!(planned("FROM a AS x").stages[0].title, "");
}

#[test]
fn global_args_are_expanded_in_from() {
    let text = "ARG V=1\nARG T=${V}-slim\nFROM base:$T AS s-$V\nFROM ${U:-other}@${V}";
    let text = text.replace(" AS s-$V", "");
    let plan = try_plan(&text, &with_args(&[("V", "2")])).expect("plans");
    let bases: Vec<&Base> = plan.stages.iter().map(|stage| &stage.base).collect();
    assert_eq!(bases, [&Base::Image("base:2-slim".to_owned()), &Base::Image("other@2".to_owned())]);
    let blank = try_plan("FROM $NOTHING", &options()).expect_err("blank");
    assert!(blank.message().contains("expands to nothing"), "{}", blank.message());
    assert!(
        try_plan("ARG A=1\nFROM i\nARG B=2\nFROM x$B", &options())
            .is_ok_and(|plan| { plan.stages[1].base == Base::Image("x".to_owned()) }),
        "ARGs of a stage aren't seen by the next FROM"
    );
}

#[test]
fn of_two_stages_of_a_name_from_takes_the_nearest_above_and_copy_the_last() {
    let text = "FROM a AS dup\nFROM dup AS x\nCOPY --from=dup /f /f\nFROM b AS dup\nFROM x";
    let plan = planned(text);
    assert_eq!(plan.stages[1].base, Base::Stage(0));
    assert_eq!(plan.dependencies(1), [0, 2]);
    let steps = try_steps(&plan, 1, &ContainerConfig::default()).expect("places");
    assert_eq!(copies(&steps)[0].origin, Origin::Stage(2));
}

#[test]
fn from_is_a_number_a_name_in_any_case_scratch_or_an_image() {
    let text = "FROM a AS one\nFROM b\nCOPY --from=0 . .\nCOPY --from=ONE . .\nCOPY --from=later . .\n\
        COPY --from=img:1 . .\nCOPY --from=scratch . .\nRUN --mount=from=one,target=/t x\nFROM c AS later";
    let options = Options { target: Some("1".to_owned()), ..options() };
    let plan = try_plan(text, &options).expect("plans");
    let steps = try_steps(&plan, 1, &ContainerConfig::default()).expect("places");
    let origins: Vec<&Origin> = copies(&steps).iter().map(|copy| &copy.origin).collect();
    assert_eq!(
        origins,
        [
            &Origin::Stage(0),
            &Origin::Stage(0),
            &Origin::Stage(2),
            &Origin::Image("img:1".to_owned()),
            &Origin::Scratch,
        ]
    );
    assert_eq!(plan.dependencies(1), [0, 2]);
    assert_eq!(plan.needed, [0, 2, 1]);
    assert!(error("COPY --from=1 a b").message().contains("no stage 1"));
    assert!(error("COPY --from=-1 a b").message().contains("no stage -1"));
}

#[test]
fn only_what_the_target_needs_is_planned() {
    let text = "FROM a AS base\nFROM base AS unused\nFROM base AS build\nFROM x AS tool\n\
        FROM base\nCOPY --from=build . .\nRUN --mount=type=bind,from=tool,target=/t x";
    let plan = planned(text);
    assert_eq!((plan.target, plan.needed.as_slice()), (4, &[0, 2, 3, 4][..]));
    let early = Options { target: Some("Build".to_owned()), ..options() };
    let plan = try_plan(text, &early).expect("plans");
    assert_eq!((plan.target, plan.needed.as_slice()), (2, &[0, 2][..]));
}

#[test]
fn targets_are_names_or_numbers() {
    let text = "FROM a AS base\nFROM b AS build\nFROM c\n";
    let target = |wanted: &str| {
        let options = Options { target: Some(wanted.to_owned()), ..options() };
        try_plan(text, &options).map(|plan| plan.target)
    };
    for (wanted, expected) in [("base", 0), ("BUILD", 1), ("2", 2), ("0", 0), ("", 2)] {
        assert_eq!(target(wanted).ok(), Some(expected), "{wanted}");
    }
    let unknown = target("biuld").expect_err("unknown");
    assert!(unknown.message().contains("base, build"), "{}", unknown.message());
    assert_eq!(unknown.hint(), Some("did you mean `build`?"));
    assert!(target("3").is_err());
}

#[test]
fn stages_that_need_each_other_are_an_error_even_when_unused() {
    for text in [
        "FROM a AS one\nCOPY --from=two . .\nFROM b AS two\nCOPY --from=one . .",
        "FROM a AS one\nCOPY --from=two . .\nFROM one AS two",
        "FROM a AS one\nCOPY --from=one . .",
        "FROM a AS one\nRUN --mount=from=1,target=/t x\nFROM one\nFROM c",
    ] {
        let error = try_plan(text, &options()).expect_err(text);
        assert!(error.message().contains("need each other"), "{}", error.message());
        assert!(error.message().contains("one"), "{}", error.message());
    }
}

#[test]
fn platforms_come_from_the_flag_the_base_stage_or_the_target() {
    let text = "ARG P=linux/arm64\nFROM --platform=$P a AS one\nFROM --platform=linux/s390x one\n\
        FROM b\nFROM --platform=$BUILDPLATFORM c\nFROM --platform=linux/s390x scratch";
    let options = Options { platform: Platform::new("linux", "riscv64", None), ..options() };
    let plan = try_plan(text, &options).expect("plans");
    let shown: Vec<String> = plan.stages.iter().map(|stage| stage.platform.to_string()).collect();
    assert_eq!(
        shown,
        ["linux/arm64", "linux/arm64", "linux/riscv64", "linux/amd64", "linux/riscv64"]
    );
    for (text, part) in [
        ("FROM --platform=$X a", "expands to nothing"),
        ("FROM --platform=a/b/c/d a", "not a platform"),
    ] {
        let error = try_plan(text, &super::options()).expect_err(text);
        assert!(error.message().contains(part), "{}", error.message());
    }
}

#[test]
fn triggers_of_a_stage_fire_in_its_child_and_only_there() {
    let text = "FROM a AS base\nENV V=1\nONBUILD RUN echo one\nONBUILD COPY --from=tool . /$V\n\
        FROM t AS tool\nFROM base AS child\nRUN own\nFROM child";
    let plan = planned(text);
    assert_eq!(plan.dependencies(0), [0; 0]);
    assert_eq!(plan.dependencies(2), [0, 1]);
    assert_eq!(plan.needed, [0, 1, 2, 3]);

    let none = ContainerConfig::default();
    let base = try_steps(&plan, 0, &none).expect("places");
    assert_eq!(base.config.on_build, ["RUN echo one", "COPY --from=tool . /$V"]);
    assert!(matches!(base.steps[1].action, Action::Silent));
    assert_eq!(history(&base), ["ENV V=1", "", ""]);

    let child = try_steps(&plan, 2, &none).expect("places");
    assert_eq!(
        history(&child),
        [
            "RUN /bin/sh -c echo one # buildkit",
            "COPY . /1 # buildkit",
            "RUN /bin/sh -c own # buildkit"
        ]
    );
    assert_eq!(child.steps[0].title, "ONBUILD RUN echo one");
    assert_eq!(child.steps[0].span, plan.stages[2].span, "points at the FROM");
    assert_eq!(child.config.on_build, [""; 0]);
    assert_eq!(child.extra_stages, [0_usize; 0]);
    assert!(try_steps(&plan, 3, &none).expect("places").steps.is_empty());
}

#[test]
fn triggers_of_an_image_name_stages_of_this_file() {
    let config = ContainerConfig {
        on_build: vec!["RUN x".to_owned(), "COPY --from=tool /a /b".to_owned()],
        ..ContainerConfig::default()
    };
    let mut plan = planned("FROM t AS tool\nFROM unused\nFROM image\nRUN y");
    assert_eq!(plan.needed, [2]);
    let found = try_steps(&plan, 2, &config).expect("places");
    assert_eq!(found.extra_stages, [0]);
    assert_eq!(found.config.on_build, [""; 0]);
    assert_eq!(runs(&found).len(), 2);

    assert!(plan.add_triggers(2, &config.on_build).expect("adds"));
    assert_eq!((plan.needed.as_slice(), plan.dependencies(2)), (&[0, 2][..], vec![0]));
    assert!(!plan.add_triggers(2, &config.on_build).expect("known"));
    assert_eq!(try_steps(&plan, 2, &config).expect("places").extra_stages, [0_usize; 0]);
}

#[test]
fn bad_triggers_of_an_image_are_errors_at_the_from() {
    let mut plan = planned("FROM image AS one\nFROM one AS two");
    for text in ["FROBNICATE", "FROM x", "ONBUILD RUN x", "MAINTAINER x", "COPY --from=9 a b"] {
        let error = plan.add_triggers(0, &[text.to_owned()]).expect_err(text);
        assert_eq!(error.line(), 1, "{text}");
    }
    let circle = plan.add_triggers(0, &["COPY --from=two a b".to_owned()]).expect_err("circle");
    assert!(circle.message().contains("need each other"), "{}", circle.message());
}

#[test]
fn stages_that_read_the_context_are_known() {
    let text = "FROM a\nCOPY x /\nFROM a\nCOPY --from=0 x /\nFROM a\nRUN --mount=target=/t x\n\
        FROM a\nRUN x\nFROM a\nCOPY <<EOF /x\nEOF\nFROM a\nADD x /\n";
    let plan = planned(text);
    let reads: Vec<bool> = (0..6).map(|stage| plan.reads_context(stage)).collect();
    assert_eq!(reads, [true, false, true, false, false, true]);
}

#[test]
fn doubtful_from_lines_are_warned_of() {
    for (text, expected) in [
        ("FROM $X:y", &["UndefinedArgInFrom", "InvalidDefaultArgInFrom"][..]),
        ("ARG X\nFROM a$X", &[]),
        ("ARG X\nFROM ${X:-a}", &[]),
        ("FROM oci-layout:///images/a:1", &[]),
        ("FROM --platform=$TARGETPLATFORM a", &["RedundantTargetPlatform"]),
        ("FROM --platform=linux/amd64 a", &["FromPlatformFlagConstDisallowed"]),
        ("FROM --platform=linux/amd64 a AS b-amd64", &[]),
        ("# check=skip=UndefinedArgInFrom\nFROM a$X", &[]),
    ] {
        let plan = planned(text);
        let mut found = rules(&plan.warnings);
        found.sort_by_key(|rule| expected.iter().position(|known| known == rule));
        assert_eq!(found, expected, "{text}");
    }
    let options = with_args(&[("X", "image")]);
    let plan = try_plan("ARG X\nFROM $X", &options).expect("plans");
    assert_eq!(rules(&plan.warnings), ["InvalidDefaultArgInFrom"]);
}

#[test]
fn a_named_context_replaces_stages_and_images() {
    let mut contexts = Contexts::default();
    contexts.insert("build", named::NamedContext::Files);
    contexts.insert("debian", named::NamedContext::Image("mirror/debian:1".to_owned()));
    let text = "FROM debian:latest AS build\nRUN x\nFROM debian\nCOPY --from=build a b\n\
                COPY --from=debian a b\nRUN --mount=from=other,target=/t x";
    let options = Options { contexts, ..options() };
    let plan = try_plan(text, &options).expect("valid");
    let build = &plan.stages[0];
    assert_eq!((&build.base, build.files.as_deref()), (&Base::Scratch, Some("build")));
    assert!(build.instructions.is_empty());
    assert_eq!(plan.stages[1].base, Base::Image("mirror/debian:1".to_owned()));
    let steps = plan.steps(0, &BaseState::scratch()).expect("valid").steps;
    assert_eq!(steps.len(), 1, "the files of the context");
    let steps = plan.steps(1, &BaseState::scratch()).expect("valid").steps;
    let origins: Vec<_> = steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Copy(copy) => Some(copy.origin.clone()),
            _ => None,
        })
        .collect();
    let image = step::Origin::Image("mirror/debian:1".to_owned());
    assert_eq!(origins, [step::Origin::Stage(0), image]);
}
