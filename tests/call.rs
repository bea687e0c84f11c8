//! `--check` and `--call` of the real binary, and lint findings in ordinary builds.
//! Needs no privilege and no network.

#[allow(dead_code, reason = "shared with tests that use the rest of it")]
#[path = "support/host.rs"]
mod host;

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

/// A context with the Dockerfile `text`.
fn context(text: &str) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("c")).expect("a directory");
    fs::write(directory.path().join("c/Dockerfile"), text).expect("a Dockerfile");
    directory
}

fn build(directory: &Path, arguments: &[&str]) -> Output {
    host::yadokari()
        .arg("build")
        .arg("--context")
        .arg(directory.join("c"))
        .arg("--cache-dir")
        .arg(directory.join("cache"))
        .args(arguments)
        .output()
        .expect("the builder")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Exit code and standard output of a check of `dockerfile`.
fn check(dockerfile: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let directory = context(dockerfile);
    let output = build(directory.path(), &[&["--check"], arguments].concat());
    (output.status.code(), text(&output.stdout))
}

#[test]
fn a_check_without_findings_succeeds_and_says_so() {
    let (code, said) = check("FROM scratch\nCOPY a /a\n", &[]);
    assert_eq!((code, said.as_str()), (Some(0), "Check complete, no warnings found.\n"));
}

#[test]
fn a_check_shows_each_finding_with_its_lines_and_fails() {
    let (code, said) = check("FROM scratch AS Base\nCOPY a /a\nMAINTAINER me\n", &[]);
    assert_eq!(code, Some(1));
    let expected = "Check complete, 2 warnings have been found!\n\
                    \n\
                    WARNING: StageNameCasing\n\
                    Stage name 'Base' should be lowercase\n\
                    Dockerfile:1\n\
                    --------------------\n\
                    \x20  1 | >>> FROM scratch AS Base\n\
                    \x20  2 |     COPY a /a\n\
                    \x20  3 |     MAINTAINER me\n\
                    --------------------\n\
                    \n\
                    WARNING: MaintainerDeprecated\n\
                    Maintainer instruction is deprecated in favor of using label\n\
                    Dockerfile:3\n\
                    --------------------\n";
    assert!(said.starts_with(expected), "{said}");
}

#[test]
fn a_check_looks_at_all_stages_or_at_those_a_target_needs() {
    let file = "FROM scratch AS a\nCMD x\nFROM scratch AS b\nCMD [\"x\"]\n";
    assert_eq!(check(file, &[]).0, Some(1));
    assert_eq!(check(file, &["--target", "b"]).0, Some(0));
    assert_eq!(check(file, &["--target", "a"]).0, Some(1));
}

#[test]
fn a_check_obeys_directive_comment_and_build_argument() {
    let odd = "FROM scratch\nMAINTAINER me\n";
    assert_eq!(check(&format!("# check=skip=MaintainerDeprecated\n{odd}"), &[]).0, Some(0));
    assert_eq!(check(&format!("# check=skip=all\n{odd}"), &[]).0, Some(0));
    let argument = "--build-arg=BUILDKIT_DOCKERFILE_CHECK=skip=MaintainerDeprecated";
    assert_eq!(check(odd, &[argument]).0, Some(0));
    let argument = "--build-arg=BUILDKIT_DOCKERFILE_CHECK=skip=StageNameCasing";
    assert_eq!(check(&format!("# check=skip=all\n{odd}"), &[argument]).0, Some(1));
    let above = "FROM scratch\n# check=skip=MaintainerDeprecated\nMAINTAINER me\n";
    assert_eq!(check(above, &[]).0, Some(0));
}

#[test]
fn a_check_as_json_names_rule_place_and_source() {
    let (code, said) = check("FROM scratch\nMAINTAINER me\n", &["--call=check,format=json"]);
    assert_eq!(code, Some(1));
    let answer: Value = serde_json::from_str(&said).expect("JSON");
    let warning = &answer["warnings"][0];
    assert_eq!(warning["ruleName"], "MaintainerDeprecated");
    assert_eq!(warning["location"]["ranges"][0]["start"]["line"], 2);
    assert_eq!(answer["sources"][0]["fileName"], "Dockerfile");
    assert_eq!(answer["sources"][0]["data"], "RlJPTSBzY3JhdGNoCk1BSU5UQUlORVIgbWUK");
}

#[test]
fn what_cannot_be_built_fails_the_check_with_its_place() {
    let (code, said) = check("FROM scratch\nENV A=${B:?needed}\n", &[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("needed") && said.contains("Dockerfile:2"), "{said}");
    let (code, said) = check("FROM scratch\nENVV A=b\n", &["--call=check,format=json"]);
    assert_eq!(code, Some(1));
    let answer: Value = serde_json::from_str(&said).expect("JSON");
    assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains("ENVV")));
}

/// Every rule that a file alone can break, with its finding.
#[test]
fn each_rule_is_found_by_name() {
    for (file, rule) in [
        ("FROM scratch AS A", "StageNameCasing"),
        ("FROM scratch as a", "FromAsCasing"),
        ("FROM scratch\nENV A=b \\\n\n C=d", "NoEmptyContinuation"),
        ("FROM scratch\nenv A=b\nENV C=d", "ConsistentInstructionCasing"),
        ("FROM scratch AS a\nFROM scratch AS a", "DuplicateStageName"),
        ("FROM scratch AS context", "ReservedStageName"),
        ("FROM scratch\nENTRYPOINT x", "JSONArgsRecommended"),
        ("FROM scratch\nMAINTAINER x", "MaintainerDeprecated"),
        ("ARG V=scratch\nFROM ${VV:-scratch}", "UndefinedArgInFrom"),
        ("FROM scratch\nWORKDIR a", "WorkdirRelativePath"),
        ("FROM scratch\nENV A=$B", "UndefinedVar"),
        ("FROM scratch\nCMD [\"a\"]\nCMD [\"b\"]", "MultipleInstructionsDisallowed"),
        ("FROM scratch\nLABEL a b", "LegacyKeyValueFormat"),
        ("FROM --platform=$TARGETPLATFORM scratch", "RedundantTargetPlatform"),
        ("FROM scratch\nARG PASSWORD", "SecretsUsedInArgOrEnv"),
        ("FROM --platform=linux/s390x scratch", "FromPlatformFlagConstDisallowed"),
        ("FROM scratch\nEXPOSE 80/UDP", "ExposeProtoCasing"),
        ("FROM scratch\nEXPOSE 1.2.3.4:80:80", "ExposeInvalidFormat"),
        ("# check=experimental=all\n\nFROM scratch\n# odd\nARG A", "InvalidDefinitionDescription"),
    ] {
        let (code, said) = check(&format!("{file}\n"), &[]);
        assert_eq!(code, Some(1), "{file}: {said}");
        assert!(said.starts_with("Check complete, 1 warning has been found!\n"), "{file}: {said}");
        assert!(said.contains(&format!("WARNING: {rule}\n")), "{file}: {said}");
    }
    let argument = "--build-arg=BASE=scratch";
    let (_, said) = check("ARG BASE\nFROM $BASE\n", &[argument]);
    assert!(said.contains("WARNING: InvalidDefaultArgInFrom\n"), "{said}");
}

#[test]
fn a_copy_of_an_ignored_file_is_warned_of() {
    let directory = context("FROM scratch\nCOPY ./secret.txt sub/x kept /\nADD secret.txt /\n");
    fs::write(directory.path().join("c/.dockerignore"), "secret.txt\nsub\n").expect("a file");
    let output = build(directory.path(), &["--check"]);
    let said = text(&output.stdout);
    assert_eq!(said.matches("WARNING: CopyIgnoredFile\n").count(), 3, "{said}");
    for (verb, file) in [("Copy", "./secret.txt"), ("Copy", "sub/x"), ("Add", "secret.txt")] {
        let message = format!("Attempting to {verb} file \"{file}\" that is excluded");
        assert!(said.contains(&message), "{message}: {said}");
    }
}

#[test]
fn a_base_for_another_platform_is_warned_of() {
    let directory = context("FROM scratch\nCOPY Dockerfile /\n");
    let layout = directory.path().join("base");
    let place = layout.display().to_string();
    let made = build(
        directory.path(),
        &["--no-push", "--custom-platform=linux/s390x", "--oci-layout-path", &place],
    );
    assert!(made.status.success(), "{}", text(&made.stderr));
    let file = format!("FROM oci-layout://{place}\nCMD [\"x\"]\n");
    fs::write(directory.path().join("c/Dockerfile"), file).expect("a Dockerfile");
    let output = build(directory.path(), &["--check", "--custom-platform=linux/riscv64"]);
    let said = text(&output.stdout);
    let message = "was pulled with platform \"linux/s390x\", expected \"linux/riscv64\"";
    assert!(said.contains("InvalidBaseImagePlatform") && said.contains(message), "{said}");
}

#[test]
fn an_ordinary_build_ends_with_its_findings() {
    let directory = context("FROM scratch\nCOPY Dockerfile /\nMAINTAINER me\n");
    let output = build(directory.path(), &["--no-push"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let expected = "1 warning found (use --verbosity=debug to expand):\n - MaintainerDeprecated: \
                    Maintainer instruction is deprecated in favor of using label (line 3)\n";
    let at = said.find(expected).unwrap_or_else(|| panic!("{said}"));
    assert!(said[..at].contains("COPY Dockerfile"), "after the steps: {said}");
    let output = build(directory.path(), &["--no-push", "--verbosity=debug"]);
    assert!(text(&output.stderr).contains(">>> MAINTAINER me"));
}

#[test]
fn findings_that_are_errors_end_a_build_before_its_first_step() {
    let file = "# check=error=true\nFROM scratch\nCOPY Dockerfile /\nMAINTAINER me\nCMD x\n";
    let directory = context(file);
    let output = build(directory.path(), &["--no-push"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let expected = "lint violation found for rules: JSONArgsRecommended, MaintainerDeprecated";
    assert!(said.contains(expected) && !said.contains("COPY"), "{said}");
    let off = "--build-arg=BUILDKIT_DOCKERFILE_CHECK=error=false";
    assert!(build(directory.path(), &["--no-push", off]).status.success());
}

const TARGETS: &str = "# VERSION which one\nARG VERSION=1\n\n# tools makes them\n\
    FROM scratch AS tools\nARG VERSION\nFROM scratch\nRUN --mount=type=secret,id=key true\n";

#[test]
fn targets_are_listed_with_what_is_said_about_them() {
    let directory = context(TARGETS);
    let output = build(directory.path(), &["--call=targets"]);
    assert!(output.status.success());
    let expected = "TARGET    DESCRIPTION\ntools     makes them\n(default)\n";
    assert_eq!(text(&output.stdout), expected);
    let output = build(directory.path(), &["--call=targets,format=json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["targets"][0]["name"], "tools");
    assert_eq!(answer["targets"][0]["base"], "scratch");
    assert_eq!(answer["targets"][1]["default"], true);
    assert!(answer["targets"][1].get("name").is_none());
}

#[test]
fn an_outline_lists_arguments_and_secrets_of_the_target() {
    let directory = context(TARGETS);
    let output = build(directory.path(), &["--call=outline", "--target=tools"]);
    let expected = "TARGET:      tools\nDESCRIPTION: makes them\n\n\
                    BUILD ARG   VALUE   DESCRIPTION\nVERSION     1       which one\n\n";
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    let output = build(directory.path(), &["--call=outline,format=json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["secrets"][0]["name"], "key");
    assert!(answer.get("args").is_none(), "{answer}");
}
