//! A printer of instructions, and the property that what is printed parses to the
//! same. Everything an instruction says is printed; where it stood is not.

use crate::dockerfile::instruction::Command;
use crate::dockerfile::instruction::Copy;
use crate::dockerfile::instruction::Healthcheck;
use crate::dockerfile::instruction::Heredoc;
use crate::dockerfile::instruction::InstructionKind;
use crate::dockerfile::instruction::Source;
use crate::dockerfile::instruction::Word;
use crate::dockerfile::parse;
use proptest::prelude::*;
use std::fmt::Write;

fn flag(out: &mut String, name: &str, word: Option<&Word>) {
    if let Some(word) = word {
        // Flags are unquoted when they are read.
        let _ = write!(out, " --{name}=\"");
        for char in word.text.chars() {
            if char == '"' || char == '\\' {
                out.push('\\');
            }
            out.push(char);
        }
        out.push('"');
    }
}

fn json(words: &[String]) -> String {
    serde_json::to_string(words).expect("strings")
}

fn command(command: &Command) -> String {
    match command {
        Command::Exec(words) => json(words),
        Command::Shell(text) => text.clone(),
    }
}

fn bodies(heredocs: &[&Heredoc]) -> String {
    heredocs.iter().map(|heredoc| format!("\n{}{}", heredoc.body, heredoc.name)).collect()
}

fn word_of(heredoc: &Heredoc) -> String {
    let quote = if heredoc.expand { "" } else { "'" };
    let dash = if heredoc.chomp { "-" } else { "" };
    let descriptor = match heredoc.descriptor {
        0 => String::new(),
        number => number.to_string(),
    };
    format!("{descriptor}<<{dash}{quote}{}{quote}", heredoc.name)
}

fn copy(keyword: &str, copy: &Copy) -> String {
    let mut out = keyword.to_owned();
    flag(&mut out, "from", copy.from.as_ref());
    flag(&mut out, "chown", copy.chown.as_ref());
    flag(&mut out, "chmod", copy.chmod.as_ref());
    flag(&mut out, "checksum", copy.checksum.as_ref());
    for (name, set) in
        [("link", copy.link), ("parents", copy.parents), ("keep-git-dir", copy.keep_git_dir)]
    {
        if set {
            let _ = write!(out, " --{name}");
        }
    }
    if let Some(unpack) = copy.unpack {
        let _ = write!(out, " --unpack={unpack}");
    }
    for exclude in &copy.exclude {
        flag(&mut out, "exclude", Some(exclude));
    }
    let mut heredocs = Vec::new();
    for source in &copy.sources {
        match source {
            Source::Path(word) => {
                let _ = write!(out, " {}", word.text);
            }
            Source::Heredoc(heredoc) => {
                let _ = write!(out, " {}", word_of(heredoc));
                heredocs.push(heredoc);
            }
        }
    }
    format!("{out} {}{}", copy.destination.text, bodies(&heredocs))
}

fn pairs(keyword: &str, pairs: &[(Word, Word)]) -> String {
    match pairs {
        // A legacy pair may hold what needs quotes in the other form.
        [(key, value)] if !value.text.is_empty() => {
            format!("{keyword} {} {}", key.text, value.text)
        }
        _ => pairs.iter().fold(keyword.to_owned(), |out, (key, value)| {
            format!("{out} {}={}", key.text, value.text)
        }),
    }
}

/// The instruction as text.
fn print(kind: &InstructionKind) -> String {
    let words = |keyword: &str, words: &[Word]| {
        words.iter().fold(keyword.to_owned(), |out, word| format!("{out} {}", word.text))
    };
    match kind {
        InstructionKind::From(from) => {
            let mut out = "FROM".to_owned();
            flag(&mut out, "platform", from.platform.as_ref());
            let _ = write!(out, " {}", from.image.text);
            if let Some(name) = &from.name {
                let _ = write!(out, " AS {name}");
            }
            out
        }
        InstructionKind::Arg(declared) => {
            declared.iter().fold("ARG".to_owned(), |out, argument| match &argument.default {
                Some(value) => format!("{out} {}={}", argument.name.text, value.text),
                None => format!("{out} {}", argument.name.text),
            })
        }
        InstructionKind::Run(run) => {
            let mut out = "RUN".to_owned();
            for mount in &run.mounts {
                flag(&mut out, "mount", Some(mount));
            }
            flag(&mut out, "network", run.network.as_ref());
            flag(&mut out, "security", run.security.as_ref());
            let heredocs: Vec<&Heredoc> = run.heredocs.iter().collect();
            format!("{out} {}{}", command(&run.command), bodies(&heredocs))
        }
        InstructionKind::Copy(step) => copy("COPY", step),
        InstructionKind::Add(step) => copy("ADD", step),
        InstructionKind::Env(list) => pairs("ENV", list),
        InstructionKind::Label(list) => pairs("LABEL", list),
        InstructionKind::Workdir(word) => format!("WORKDIR {}", word.text),
        InstructionKind::User(word) => format!("USER {}", word.text),
        InstructionKind::Expose(list) => words("EXPOSE", list),
        InstructionKind::Volume(list) => {
            let list: Vec<String> = list.iter().map(|word| word.text.clone()).collect();
            format!("VOLUME {}", json(&list))
        }
        InstructionKind::StopSignal(word) => format!("STOPSIGNAL {}", word.text),
        InstructionKind::Shell(list) => format!("SHELL {}", json(list)),
        InstructionKind::Cmd(one) => format!("CMD {}", command(one)),
        InstructionKind::Entrypoint(one) => format!("ENTRYPOINT {}", command(one)),
        InstructionKind::Healthcheck(Healthcheck::None) => "HEALTHCHECK NONE".to_owned(),
        InstructionKind::Healthcheck(Healthcheck::Check {
            command: probe,
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
        }) => format!(
            "HEALTHCHECK --interval={interval}ns --timeout={timeout}ns \
             --start-period={start_period}ns --start-interval={start_interval}ns \
             --retries={retries} CMD {}",
            command(probe)
        ),
        InstructionKind::Onbuild { text, .. } => format!("ONBUILD {text}"),
        InstructionKind::Maintainer(name) => format!("MAINTAINER {name}"),
    }
}

fn printed(text: &str) -> Option<String> {
    let parsed = parse("Dockerfile", text.as_bytes()).ok()?;
    let lines: Vec<String> =
        parsed.instructions.iter().map(|instruction| print(&instruction.kind)).collect();
    Some(format!("{}\n", lines.join("\n")))
}

#[test]
fn every_instruction_survives_printing() {
    let text = "ARG A B=c\nFROM --platform=$A img:1 AS web\n\
        RUN --mount=type=cache,target=/c --mount='type=bind,src=a b' --network=none make \\\n  all\n\
        RUN <<X cat 3<<-'Y' > f\none $A\nX\n\ttwo\n\tY\nRUN [\"a\", \"b \\\"c\"]\n\
        COPY --from=web --chown=a:b --chmod=u+x --link --parents --exclude=*.o <<E a b /d/\nx\nE\n\
        ADD --checksum=sha256:00 --keep-git-dir --unpack=false https://h/x /y\n\
        ENV A=b C='d e' F=\"g\"\nENV legacy a  b\nLABEL a.b=c\nWORKDIR /a b\nUSER a:b\n\
        EXPOSE 80 8000-8010/udp\nVOLUME /a /b\nVOLUME [\"/c d\"]\nSTOPSIGNAL 9\n\
        SHELL [\"sh\", \"-c\"]\nCMD a 'b'\nCMD []\nENTRYPOINT [\"x\"]\n\
        HEALTHCHECK --interval=5s --retries=3 CMD curl x\nHEALTHCHECK NONE\n\
        ONBUILD COPY <<E /x\ny\nE\nMAINTAINER me <a@b>\n";
    let once = printed(text).expect("valid");
    assert_eq!(printed(&once).as_deref(), Some(once.as_str()));
    assert_eq!(once.matches("\nCOPY").count() + once.matches("\nADD").count(), 2);
    for part in [
        "--mount=\"type=bind,src=a b\" --network=\"none\" make   all",
        "3<<-'Y'",
        "--chmod=\"u+x\" --link --parents",
        "--interval=5000000000ns",
        "VOLUME [\"/c d\"]",
    ] {
        assert!(once.contains(part), "{part}: {once}");
    }
}

proptest! {
    #[test]
    fn what_is_printed_parses_to_the_same(
        parts in proptest::collection::vec(
            (
                prop_oneof![
                    Just("RUN "), Just("COPY "), Just("COPY --from=a --link "), Just("ADD "),
                    Just("ENV "), Just("LABEL "), Just("ARG "), Just("WORKDIR "), Just("USER "),
                    Just("EXPOSE "), Just("VOLUME "), Just("CMD "), Just("ENTRYPOINT "),
                    Just("SHELL "), Just("HEALTHCHECK CMD "), Just("ONBUILD RUN "), Just("FROM "),
                    Just("RUN --mount=type=cache,target=/x "),
                ],
                proptest::collection::vec(
                    prop_oneof![
                        "[a-z]{1,4}", "[a-z]=[a-z'\"$]{0,4}", Just("\"a b\"".to_owned()),
                        Just("[\"a\", \"b\"]".to_owned()), Just("${A:-b}".to_owned()),
                        Just("a\\ b".to_owned()), Just("\\\n ".to_owned()), Just("ü".to_owned()),
                    ],
                    1..5,
                ),
            ),
            0..8,
        ),
    ) {
        let mut text = "FROM a AS b\n".to_owned();
        for (keyword, words) in parts {
            let line = format!("{keyword}{}\n", words.join(" "));
            // Each line by itself, so that one mistake doesn't spoil the file.
            if printed(&format!("FROM a\n{line}RUN x\n")).is_some_and(|out| out.ends_with("RUN x\n")) {
                text.push_str(&line);
            }
        }
        if let Some(once) = printed(&text) {
            prop_assert_eq!(printed(&once), Some(once));
        }
    }
}
