//! What single instructions do to config, history and steps.

use super::super::step::CopySource;
use super::super::step::MountKind;
use super::super::step::Network;
use super::*;
use crate::oci::config::HealthConfig;

#[test]
fn history_texts_are_those_of_buildkit() {
    for (instruction, expected) in [
        ("ENV A=1 B=\"two words\"", "ENV A=1 B=two words"),
        ("ENV A one two", "ENV A=one two"),
        ("LABEL a.b=\"c d\" e=f", "LABEL a.b=c d e=f"),
        ("WORKDIR w", "WORKDIR /w"),
        ("WORKDIR /", "WORKDIR /"),
        ("USER a:b", "USER a:b"),
        ("EXPOSE 8080 80/udp 443-445/TCP", "EXPOSE [443/tcp 444/tcp 445/tcp 80/udp 8080/tcp]"),
        ("VOLUME /b /a", "VOLUME [/b /a]"),
        ("VOLUME [\"/a b\"]", "VOLUME [/a b]"),
        ("STOPSIGNAL SIGINT", "STOPSIGNAL SIGINT"),
        ("SHELL [\"/bin/bash\", \"-c\"]", "SHELL [/bin/bash -c]"),
        ("CMD [\"a\", \"b \\\"c\\\"\"]", "CMD [\"a\" \"b \\\"c\\\"\"]"),
        ("CMD []", "CMD []"),
        ("CMD a b", "CMD [\"/bin/sh\" \"-c\" \"a b\"]"),
        ("ENTRYPOINT a", "ENTRYPOINT [\"/bin/sh\" \"-c\" \"a\"]"),
        (
            "HEALTHCHECK --interval=5s --retries=3 CMD [\"a\", \"b\"]",
            "HEALTHCHECK {Test:[CMD a b] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:3}",
        ),
        (
            "HEALTHCHECK NONE",
            "HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
        ),
        ("MAINTAINER a <b@c>", "MAINTAINER a <b@c>"),
        ("RUN a && b", "RUN /bin/sh -c a && b # buildkit"),
        ("RUN [\"a\", \"b c\"]", "RUN a b c # buildkit"),
        ("COPY a b /c/", "COPY a b /c/ # buildkit"),
        (
            "COPY --link --parents --chown=1:2 --exclude=x --from=img a /c",
            "COPY --parents --chown=1:2 a /c # buildkit",
        ),
        ("ADD --chmod=644 a.tar .", "ADD --chmod=644 a.tar . # buildkit"),
        ("run a", "RUN /bin/sh -c a # buildkit"),
    ] {
        assert_eq!(history(&steps(&format!("FROM i\n{instruction}"))), [expected], "{instruction}");
    }
}

#[test]
fn config_instructions_set_their_fields() {
    let text = "FROM i\nLABEL a=1\nLABEL a=2 b=3\nUSER u\nEXPOSE 80\nEXPOSE 53/UDP 80\nVOLUME /v\n\
        STOPSIGNAL 9\nSHELL [\"/s\", \"-x\"]\nCMD c\nHEALTHCHECK --timeout=2s CMD h\nMAINTAINER m\nWORKDIR /a\nWORKDIR b/../c/";
    let steps = steps(text);
    let config = &steps.config;
    assert_eq!(
        config.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
        ["a=2", "b=3"]
    );
    assert_eq!(config.user, "u");
    assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
    assert_eq!(config.volumes.keys().collect::<Vec<_>>(), ["/v"]);
    assert_eq!(config.stop_signal, "9");
    assert_eq!(config.cmd.as_deref(), Some(&["/s", "-x", "c"].map(str::to_owned)[..]));
    assert!(config.args_escaped);
    let probe = HealthConfig {
        test: vec!["CMD-SHELL".to_owned(), "h".to_owned()],
        timeout: 2_000_000_000,
        ..HealthConfig::default()
    };
    assert_eq!(config.healthcheck, Some(probe));
    assert_eq!(steps.author.as_deref(), Some("m"));
    assert_eq!(config.working_dir, "/a/c");
    let first = &steps.steps[0].config;
    assert!(first.user.is_empty() && first.labels["a"] == "1", "each step has the config after it");
}

#[test]
fn entrypoint_drops_the_cmd_of_the_base_but_not_of_the_stage() {
    let base = || ContainerConfig {
        cmd: Some(vec!["base".to_owned()]),
        entrypoint: Some(vec!["e".to_owned()]),
        ..ContainerConfig::default()
    };
    let cmd = |body: &str| steps_on(base(), body).config.cmd.map(|words| words.join(" "));
    assert_eq!(cmd("ENV A=1").as_deref(), Some("base"));
    assert_eq!(cmd("ENTRYPOINT [\"x\"]"), None);
    assert_eq!(cmd("CMD [\"own\"]\nENTRYPOINT [\"x\"]").as_deref(), Some("own"));
    assert_eq!(cmd("ENTRYPOINT [\"x\"]\nCMD [\"own\"]").as_deref(), Some("own"));
    assert_eq!(cmd("CMD []"), None);
    let text = "FROM i AS a\nCMD [\"base\"]\nFROM a\nENTRYPOINT [\"x\"]";
    assert_eq!(steps(text).config.cmd, None, "a base stage counts as a base");
    let entry = steps_on(base(), "ENTRYPOINT []").config;
    assert_eq!((entry.entrypoint, entry.cmd), (None, None));
}

#[test]
fn workdir_makes_a_layer_unless_it_is_the_root() {
    let text = "FROM i\nUSER bob\nWORKDIR /a/b\nWORKDIR ../c\nWORKDIR ..\nRUN x";
    let steps = steps(text);
    let workdir = |path: &str| Action::Workdir { path: path.to_owned(), user: "bob".to_owned() };
    let actions: Vec<&Action> = steps.steps[1..4].iter().map(|step| &step.action).collect();
    assert_eq!(actions, [&workdir("/a/b"), &workdir("/a/c"), &workdir("/a")]);
    assert_eq!((runs(&steps)[0].directory.as_str(), runs(&steps)[0].user.as_str()), ("/a", "bob"));
    let root = super::steps("FROM i\nWORKDIR /\nRUN x");
    assert!(matches!(root.steps[0].action, Action::Config));
    assert_eq!(runs(&super::steps("FROM i\nRUN x"))[0].directory, "/");
    let config = ContainerConfig { working_dir: "/w/".to_owned(), ..ContainerConfig::default() };
    assert_eq!(steps_on(config, "WORKDIR x").config.working_dir, "/w/x");
}

#[test]
fn run_takes_its_arguments_as_they_are_or_through_the_shell() {
    let arguments = |body: &str| {
        let steps = steps(&format!("FROM i\n{body}\n"));
        (runs(&steps)[0].clone(), steps.steps.last().expect("RUN").clone())
    };
    for (body, expected, title) in [
        ("RUN [\"a\", \"b c\"]", &["a", "b c"][..], "RUN [\"a\", \"b c\"]"),
        ("run a \\\n  b", &["/bin/sh", "-c", "a   b"], "RUN a   b"),
        ("SHELL [\"/s\"]\nRUN a", &["/s", "a"], "RUN a"),
        ("RUN <<EOF\na\nb\nEOF", &["/bin/sh", "-c", "a\nb\n"], "RUN <<EOF (a...)"),
        ("RUN <<-'E'\n\ta\n\tE", &["/bin/sh", "-c", "a\n"], "RUN <<-'E' (a)"),
        (
            "RUN cat <<A <<B\na\nA\nb\nB",
            &["/bin/sh", "-c", "cat <<A <<B\na\nA\nb\nB"],
            "RUN cat <<A <<B",
        ),
    ] {
        let (run, step) = arguments(body);
        assert_eq!(run.arguments, expected, "{body}");
        assert_eq!(step.title, title);
        assert_eq!(run.script, None);
    }
    let (run, step) = arguments("RUN <<X\n#!/bin/awk -f\nBEGIN {}\nX");
    assert_eq!(run.arguments, ["/dev/pipes/X"]);
    assert_eq!(run.script.map(|script| script.body).as_deref(), Some("#!/bin/awk -f\nBEGIN {}\n"));
    assert_eq!(step.created_by, "RUN /bin/sh -c /dev/pipes/X # buildkit");
}

#[test]
fn flags_of_run_are_checked() {
    let network = |body: &str| runs(&steps(&format!("FROM i\n{body}")))[0].network;
    assert_eq!(network("RUN x"), Network::Default);
    assert_eq!(network("RUN --network=none x"), Network::None);
    assert_eq!(network("RUN --network=host --security=sandbox x"), Network::Host);
    for (body, part) in [
        ("RUN --network=hots x", "hots"),
        ("RUN --security=insecure x", "not supported"),
        ("RUN --security=y x", "`y`"),
        ("RUN --mount=tagret=/t x", "no key of a mount"),
    ] {
        let error = error(body);
        assert!(error.message().contains(part), "{body}: {}", error.message());
        assert_eq!(error.line(), 2);
    }
}

#[test]
fn mounts_are_placed_in_order() {
    let text = "FROM i\nWORKDIR /w\nARG T=/t\nRUN --mount=target=a --mount=type=secret,id=k \
        --mount=type=cache,target=$T x";
    let options = with_args(&[("BUILDKIT_CACHE_MOUNT_NS", "ns")]);
    let steps = steps_with(text, &options);
    let targets: Vec<&str> =
        runs(&steps)[0].mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/w/a", "/run/secrets/k", "/t"]);
    let MountKind::Cache { id, .. } = &runs(&steps)[0].mounts[2].kind else { panic!("a cache") };
    assert_eq!(id, "ns//t");
}

#[test]
fn copy_resolves_its_destination_against_workdir() {
    for (destination, expected) in [
        (".", "/w/"),
        ("./", "/w/"),
        ("x", "/w/x"),
        ("x/", "/w/x/"),
        ("/x", "/x"),
        ("/", "/"),
        ("..", "/"),
    ] {
        let text = format!("FROM i\nWORKDIR /w\nCOPY a {destination}");
        assert_eq!(copies(&steps(&text))[0].destination, expected, "{destination}");
    }
}

#[test]
fn copy_and_add_carry_their_flags() {
    let text = "FROM i\nCOPY --link a /b\nCOPY --link --chmod=755 a /b\nADD --unpack=false a /b\n\
        COPY --exclude=*.o --exclude=!a.o --parents a/./b c* /d/\nCOPY --chown=$NONE a /b";
    let steps = steps(text);
    let copies = copies(&steps);
    assert!(copies[0].link && !copies[1].link, "--chmod cancels --link");
    assert_eq!(copies[1].chmod.as_deref(), Some("755"));
    assert!(!copies[0].add && copies[2].add);
    assert_eq!((copies[0].unpack, copies[2].unpack), (None, Some(false)));
    assert_eq!(copies[3].exclude, ["*.o", "!a.o"]);
    assert!(copies[3].parents);
    let path = |text: &str| CopySource::Path(text.to_owned());
    assert_eq!(copies[3].sources, [path("a/./b"), path("c*")]);
    assert_eq!(copies[4].chown, None, "expanding to nothing is not giving it");
    assert_eq!(history(&steps)[4], "COPY a /b # buildkit");
}

#[test]
fn heredocs_are_copied_after_the_paths() {
    let steps = steps("FROM i\nCOPY <<A b /d/\nx\nA\n");
    let inline = CopySource::Inline { name: "A".to_owned(), body: "x\n".to_owned() };
    assert_eq!(copies(&steps)[0].sources, [CopySource::Path("b".to_owned()), inline]);
    assert_eq!(history(&steps), ["COPY b <<A /d/ # buildkit"]);
}

#[test]
fn addresses_are_told_from_paths() {
    let sum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let made = steps(&format!(
        "FROM i\nARG U=https://me:hunter2@h/f\nADD a $U git@h:r#v1 /d/\n\
         ADD --checksum={sum} https://h/f /\n\
         ADD --checksum=ABCDEF012 --keep-git-dir=true https://h/a.git#main /x"
    ));
    let all = copies(&made);
    assert!(matches!(
        &all[0].sources[..],
        [CopySource::Path(_), CopySource::Http { checksum: None, .. }, CopySource::Git { .. }]
    ));
    assert!(matches!(&all[1].sources[..], [CopySource::Http { checksum: Some(_), .. }]));
    let [CopySource::Git { address }] = &all[2].sources[..] else { panic!("a repository") };
    assert_eq!(address.checksum.as_deref(), Some("abcdef012"));
    assert_eq!(address.keep_git_dir, Some(true));
    assert_eq!(history(&made)[1], "ADD a https://me:xxxxx@h/f git@h:r#v1 /d/ # buildkit");
    for (body, part) in [
        ("COPY https://h/f /", "can't be a URL"),
        ("COPY git@h:f /", "can't be a git repository"),
        ("ADD --checksum=sha256:0 https://h/f /", "64 hexadecimal digits"),
        ("ADD --checksum=sha512:0 https://h/f /", "64 hexadecimal digits"),
        ("ADD --checksum=sha256:0 f /", "needs a URL"),
        ("ADD --checksum=abcdef0 https://h/a.git https://h/f /", "several sources"),
        ("ADD --checksum=xyz https://h/a.git /", "no commit"),
        ("ADD --checksum=abcdef0 https://h/a.git?commit=1234567 /", "differ"),
        ("ADD https://h/a.git?colour=red /", "no key of a repository"),
    ] {
        let message = error(body).message().to_owned();
        assert!(message.contains(part), "{body}: {message}");
    }
}

#[test]
fn the_first_ssh_mount_is_the_agent_of_its_run() {
    let made = steps(
        "FROM i\nRUN --mount=type=ssh --mount=type=ssh,id=b x\n\
         ENV SSH_AUTH_SOCK=/own\nRUN --mount=type=ssh,target=/s x",
    );
    let all = runs(&made);
    let targets: Vec<&str> = all[0].mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/run/buildkit/ssh_agent.0", "/run/buildkit/ssh_agent.1"]);
    let socket = |run: &RunStep| {
        let found = run.environment.iter().find(|(name, _)| name == "SSH_AUTH_SOCK");
        found.map(|(_, value)| value.clone())
    };
    assert_eq!(socket(all[0]).as_deref(), Some("/run/buildkit/ssh_agent.0"));
    assert_eq!(socket(all[1]).as_deref(), Some("/own"));
}

#[test]
fn wrong_arguments_are_errors_at_their_line() {
    for (body, part) in [
        ("EXPOSE http", "no port"),
        ("EXPOSE 80/http", "no protocol"),
        ("STOPSIGNAL FOO", "no signal"),
        ("VOLUME $NONE", "empty path"),
        ("ENV $NONE=1", "expands to nothing"),
        ("COPY --chmod=999 a /b", "no mode"),
        ("COPY --chmod=u+q a /b", "no mode"),
    ] {
        let error = error(&format!("\n{body}"));
        assert!(error.message().contains(part), "{body}: {}", error.message());
        assert_eq!(error.line(), 3, "{body}");
    }
}

#[test]
fn doubtful_instructions_are_warned_of() {
    for (body, expected) in [
        ("WORKDIR a\nWORKDIR b", &["WorkdirRelativePath"][..]),
        ("# check=skip=WorkdirRelativePath\nWORKDIR a", &[]),
        ("WORKDIR /a\nWORKDIR b", &[]),
        ("ENV API_KEY=1", &["SecretsUsedInArgOrEnv"]),
        ("ARG TOKEN", &["SecretsUsedInArgOrEnv"]),
        ("EXPOSE 80/TCP", &["ExposeProtoCasing"]),
        ("EXPOSE 80:80", &["ExposeInvalidFormat"]),
        ("CMD x", &["JSONArgsRecommended"]),
        ("ENTRYPOINT x", &["JSONArgsRecommended"]),
        ("HEALTHCHECK CMD x", &[]),
        ("SHELL [\"b\"]\nCMD x", &[]),
        ("# check=skip=JSONArgsRecommended\nCMD x", &[]),
        ("CMD [\"x\"]\nCMD [\"y\"]", &["MultipleInstructionsDisallowed"]),
        ("HEALTHCHECK NONE\nHEALTHCHECK NONE", &["MultipleInstructionsDisallowed"]),
        ("CMD [\"x\"]\nFROM i\nCMD [\"x\"]", &[]),
    ] {
        assert_eq!(rules(&steps(&format!("FROM i\n{body}")).warnings), expected, "{body}");
    }
}

#[test]
fn a_stage_without_instructions_still_has_its_base_and_path() {
    let config = ContainerConfig {
        user: "u".to_owned(),
        cmd: Some(Vec::new()),
        working_dir: "w".to_owned(),
        ..ContainerConfig::default()
    };
    let steps = steps_on(config, "");
    assert!(steps.steps.is_empty());
    assert_eq!(steps.config.env, [format!("PATH={DEFAULT_PATH}")]);
    assert_eq!((steps.config.user.as_str(), steps.config.working_dir.as_str()), ("u", "/w"));
    assert_eq!(steps.config.cmd, None);
    assert_eq!(super::steps("FROM scratch").config.working_dir, "/");
}
