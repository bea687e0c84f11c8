//! What must hold whatever the file says.

use proptest::prelude::*;

use super::*;

/// Instructions with places for a name, a word and a stage.
fn line() -> impl Strategy<Value = String> {
    let template = prop::sample::select(vec![
        "FROM {s} AS {s}",
        "FROM scratch",
        "FROM image:{n} AS {s}",
        "ARG {n}={w}",
        "ARG {n}",
        "ENV {n}={w} {n}=${n}",
        "RUN {w} ${n}",
        "RUN --mount=type=cache,target={w} {w}",
        "RUN --mount=from={s},target={w},source={w} x",
        "COPY --from={s} {w} {w}",
        "COPY --chmod={w} {w} {w}/",
        "WORKDIR {w}",
        "EXPOSE {w}",
        "USER {w}",
        "ENTRYPOINT {w}",
        "CMD [\"{n}\"]",
        "ONBUILD COPY --from={s} {w} {w}",
        "ONBUILD ENV {n}={w}",
        "STOPSIGNAL {w}",
        "VOLUME {w}",
    ]);
    let name = prop::sample::select(vec!["A", "B", "PATH", "TARGETARCH"]);
    let word = prop::sample::select(vec![
        "x",
        "/a/b",
        "../c",
        "$A",
        "${B:-y}",
        "80-82/udp",
        "9",
        "0755",
        "u+x",
        ".",
        "/",
        "\"q r\"",
    ]);
    let stage = prop::sample::select(vec!["one", "TWO", "three", "0", "2", "img"]);
    (template, name, word, stage).prop_map(|(template, name, word, stage)| {
        template.replace("{n}", name).replace("{w}", word).replace("{s}", stage)
    })
}

proptest! {
    #[test]
    fn planning_never_panics_and_needed_stages_come_after_what_they_need(
        lines in prop::collection::vec(line(), 1..20),
    ) {
        let text = format!("FROM first\n{}\n", lines.join("\n"));
        let Ok(dockerfile) = dockerfile::parse("Dockerfile", text.as_bytes()) else { return Ok(()) };
        let Ok(plan) = plan(&dockerfile, &options()) else { return Ok(()) };
        prop_assert_eq!(plan.needed.last(), Some(&plan.target));
        for (place, &stage) in plan.needed.iter().enumerate() {
            for dependency in plan.dependencies(stage) {
                prop_assert!(plan.needed[..place].contains(&dependency));
            }
            let Ok(steps) = try_steps(&plan, stage, &ContainerConfig::default()) else { continue };
            prop_assert_eq!(&steps.extra_stages, &[0_usize; 0]);
            prop_assert!(steps.config.env.iter().any(|entry| entry.starts_with("PATH=")));
            if let Some(last) = steps.steps.last() {
                prop_assert_eq!(&last.config, &steps.config);
            }
        }
    }

    #[test]
    fn readers_of_arguments_never_panic(text in ".{0,24}", other in "[a-z=,\"./0-9:\\-]{0,24}") {
        for text in [&text, &other] {
            let _ = expose::parse(text);
            let _ = signal::is_valid(text);
            let _ = directory::join_destination(text, text);
            let around =
                mount::Surroundings { stages: &[], contexts: &Contexts::default(), directory: "/", namespace: Some(text) };
            for kind in ["bind", "cache", "tmpfs", "secret"] {
                if let Ok(fields) = mount::fields(&format!("type={kind},{text}")) {
                    let _ = mount::build(&fields, &around);
                }
            }
        }
    }
}
