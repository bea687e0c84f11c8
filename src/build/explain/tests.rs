//! Reasons out of two descriptions of a stage, without a build.

use std::collections::HashSet;

use super::*;
use crate::oci::platform::Platform;
use crate::plan::step::Action;
use crate::plan::step::CopySource;
use crate::plan::step::CopyStep;
use crate::plan::step::Mount;
use crate::plan::step::MountKind;
use crate::plan::step::Network;
use crate::plan::step::Origin;
use crate::plan::step::RunStep;
use crate::step::run::Conditions;

fn surroundings() -> Surroundings {
    Surroundings {
        platform: Platform::new("linux", "amd64", None),
        clamp: None,
        conditions: Conditions::default(),
        unseen: Vec::new(),
    }
}

fn step(action: Action) -> Step {
    let span = crate::dockerfile::instruction::Span { start: 0, end: 0 };
    let config = crate::oci::config::ContainerConfig {
        env: vec!["LANG=C".to_owned()],
        ..Default::default()
    };
    let (title, created_by) = (String::new(), String::new());
    Step { span, title, created_by, config, author: None, action }
}

fn run() -> RunStep {
    RunStep {
        arguments: ["/bin/sh", "-c", "make"].map(str::to_owned).to_vec(),
        script: None,
        environment: [("LANG", "C"), ("V", "1")]
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .to_vec(),
        proxy: Vec::new(),
        directory: "/".to_owned(),
        user: String::new(),
        mounts: Vec::new(),
        network: Network::Default,
    }
}

fn mounted(target: &str, size: Option<u64>) -> Mount {
    Mount { target: target.to_owned(), kind: MountKind::Tmpfs { size } }
}

fn copy() -> CopyStep {
    CopyStep {
        origin: Origin::Context,
        sources: vec![CopySource::Path("src".to_owned())],
        destination: "/src/".to_owned(),
        chown: None,
        chmod: None,
        link: false,
        parents: false,
        exclude: Vec::new(),
        add: false,
        unpack: None,
    }
}

fn mask(places: &Places) -> Mask {
    Mask::new(places, [])
}

fn no_places() -> Places {
    Places::of(std::path::Path::new("/nonexistent"))
}

#[test]
fn every_field_of_the_key_is_kept() {
    let mut actions = Vec::new();
    let changes: [fn(&mut RunStep); 13] = [
        |_| (),
        |run| run.arguments[2].push('x'),
        |run| run.arguments[0].push('x'),
        |run| run.arguments = vec!["make".to_owned()],
        |run| run.arguments = vec!["ma".to_owned(), "ke".to_owned()],
        |run| run.environment[0].1.push('x'),
        |run| run.environment.reverse(),
        |run| run.environment.truncate(1),
        |run| run.directory.push('x'),
        |run| run.user.push('x'),
        |run| run.network = Network::None,
        |run| run.mounts = vec![mounted("/a", None), mounted("/b", None)],
        |run| run.mounts = vec![mounted("/b", None), mounted("/a", None)],
    ];
    for change in changes {
        let mut run = run();
        change(&mut run);
        actions.push(Action::Run(run));
    }
    let changes: [fn(&mut CopyStep); 8] = [
        |_| (),
        |copy| copy.destination.push('x'),
        |copy| copy.chown = Some("1".to_owned()),
        |copy| copy.chmod = Some("1".to_owned()),
        |copy| copy.link = true,
        |copy| copy.parents = true,
        |copy| copy.add = true,
        |copy| copy.unpack = Some(true),
    ];
    for change in changes {
        let mut copy = copy();
        change(&mut copy);
        actions.push(Action::Copy(copy));
    }
    actions.push(Action::Workdir { path: "/a".to_owned(), user: String::new() });
    actions.push(Action::Workdir { path: "/a".to_owned(), user: "u".to_owned() });
    let arm = Surroundings { platform: Platform::new("linux", "arm64", None), ..surroundings() };
    let clamped = Surroundings { clamp: Some(1), ..surroundings() };

    let mask = mask(&no_places());
    let count = actions.len() * 3;
    let (mut keys, mut fields) = (HashSet::new(), HashSet::new());
    for action in actions {
        for surroundings in [&surroundings(), &arm, &clamped] {
            let key =
                crate::build::key::of_step(&Key::from_bytes([0; 32]), &action, &[], surroundings);
            keys.insert(key.hint);
            fields.insert(fields::of_step(&step(action.clone()), surroundings, &mask));
        }
    }
    assert_eq!((keys.len(), fields.len()), (count, count));
}

#[test]
fn every_condition_of_a_run_is_kept() {
    use crate::sandbox::Limit;
    use crate::step::run::HostAddress;
    let plain = Conditions::default();
    let limit = |soft| Limit { name: "nofile".to_owned(), soft, hard: None };
    let conditions = [
        plain.clone(),
        Conditions { hosts: vec![("db".to_owned(), HostAddress::Gateway)], ..plain.clone() },
        Conditions { hostname: Some("builder".to_owned()), ..plain.clone() },
        Conditions { shm_size: Some(1), ..plain.clone() },
        Conditions { shm_size: Some(2), ..plain.clone() },
        Conditions { limits: vec![limit(Some(1))], ..plain.clone() },
        Conditions { limits: vec![limit(None)], ..plain },
    ];
    let mut all: Vec<Surroundings> = conditions
        .map(|conditions| Surroundings { conditions, ..surroundings() })
        .into_iter()
        .collect();
    all.push(Surroundings { unseen: vec!["--snapshot-mode=time".to_owned()], ..surroundings() });
    let mask = mask(&no_places());
    let action = Action::Run(run());
    let (mut keys, mut fields) = (HashSet::new(), HashSet::new());
    for surroundings in &all {
        keys.insert(
            crate::build::key::of_step(&Key::from_bytes([0; 32]), &action, &[], surroundings).hint,
        );
        fields.insert(fields::of_step(&step(action.clone()), surroundings, &mask));
    }
    assert_eq!((keys.len(), fields.len()), (all.len(), all.len()));
}

/// A step by title; its hint is `hint`, its definition chains it over `parents`.
fn kept(title: &str, hint: &str, parents: &str, fields: &[(&str, &str)]) -> KeptStep {
    KeptStep {
        title: title.to_owned(),
        definition: format!("{parents}/{hint}"),
        hint: hint.to_owned(),
        fields: fields.iter().map(|(n, v)| ((*n).to_owned(), format!("={v}"))).collect(),
    }
}

fn explainer(former: &[KeptStep], base: Option<(&str, &str)>, titles: &[&str]) -> Explainer {
    let places = no_places();
    let base = base.map(|(name, digest)| (name.to_owned(), digest.to_owned()));
    Explainer {
        mask: mask(&places),
        places,
        own: Vec::new(),
        former: Kept { base: Some(("b".to_owned(), "1".to_owned())), steps: former.to_vec() },
        current: Kept { base, steps: Vec::new() },
        titles: titles.iter().map(|title| (*title).to_owned()).collect(),
        matched: vec![false; former.len()],
        first_change: None,
    }
}

const GONE: Absence = Absence::NoRecord { elsewhere: false };

/// Reasons for each step of `now`, all of them missing.
fn reasons(explainer: &mut Explainer, now: &[KeptStep], absence: Absence) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for step in now {
        let reasons = explainer.reasons(step, absence.clone());
        all.push(reasons.iter().map(ToString::to_string).collect());
        explainer.first_change.get_or_insert_with(|| step.title.clone());
        explainer.current.steps.push(step.clone());
    }
    all
}

const SAME: Option<(&str, &str)> = Some(("b", "1"));

#[test]
fn a_changed_argument_is_named_and_children_name_their_parent() {
    let former = [
        kept("RUN a", "a1", "", &[("instruction", "RUN a"), ("ARG V", "1.2")]),
        kept("RUN b", "b1", "/a1", &[("instruction", "RUN b")]),
    ];
    let now = [
        kept("RUN a", "a2", "", &[("instruction", "RUN a"), ("ARG V", "1.3")]),
        kept("RUN b", "b1", "/a2", &[("instruction", "RUN b")]),
    ];
    let mut explainer = explainer(&former, SAME, &["RUN a", "RUN b"]);
    let said = reasons(&mut explainer, &now, GONE);
    assert_eq!(said, [vec!["ARG V: 1.2 → 1.3"], vec!["parent step changed: RUN a"]]);
}

#[test]
fn an_inserted_step_was_never_built_and_those_behind_it_name_it() {
    let former = [kept("RUN a", "a", "", &[]), kept("RUN b", "b", "/a", &[])];
    let now = [kept("RUN new", "n", "", &[]), kept("RUN a", "a", "/n", &[])];
    let mut explainer = explainer(&former, SAME, &["RUN new", "RUN a", "RUN b"]);
    let said = reasons(&mut explainer, &now, GONE);
    assert_eq!(said, [vec!["not in cache: never built"], vec!["parent step changed: RUN new"]]);
}

#[test]
fn a_removed_step_is_named_by_the_next() {
    let former = [kept("RUN a", "a", "", &[]), kept("RUN b", "b", "/a", &[])];
    let mut explainer = explainer(&former, SAME, &["RUN b"]);
    let said = reasons(&mut explainer, &[kept("RUN b", "b", "", &[])], GONE);
    assert_eq!(said, [["parent step changed: RUN a (removed)"]]);
}

#[test]
fn an_edited_instruction_shows_both_texts() {
    let former = [kept("RUN a", "a", "", &[("instruction", "RUN a")])];
    let now = [kept("RUN b", "b", "", &[("instruction", "RUN b")])];
    let said = reasons(&mut explainer(&former, SAME, &["RUN b"]), &now, GONE);
    assert_eq!(said, [["instruction changed: RUN a → RUN b"]]);
}

#[test]
fn another_base_is_told_by_name_or_by_digest() {
    let former = [kept("RUN a", "a", "", &[])];
    let now = [kept("RUN a", "a", "/other", &[])];
    let said = |base| reasons(&mut explainer(&former, base, &["RUN a"]), &now, GONE);
    assert_eq!(said(Some(("b", "2"))), [["base image b: digest 1 → 2"]]);
    assert_eq!(said(Some(("c", "2"))), [["base image: b → c"]]);
    assert_eq!(said(None), [["base image: b → scratch"]]);
}

#[test]
fn what_was_there_and_is_gone_was_evicted() {
    let former = [kept("RUN a", "a", "", &[])];
    let said =
        |absence| reasons(&mut explainer(&former, SAME, &["RUN a"]), &former.clone(), absence);
    assert!(said(GONE)[0][0].starts_with("evicted"));
    assert!(said(Absence::LayerGone)[0][0].starts_with("evicted"));
    assert_eq!(said(Absence::Forced("--no-cache")), [["forced by --no-cache"]]);
}

#[test]
fn a_stage_that_failed_keeps_what_was_known_of_its_end() {
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir(cache.path().join("tmp")).unwrap();
    let place = Key::from_bytes([1; 32]);
    let former = [kept("RUN a", "a1", "", &[]), kept("RUN b", "b1", "/a1", &[])];
    let mut explainer = explainer(&former, SAME, &["RUN a", "RUN b"]);
    explainer.places = Places::of(cache.path());
    explainer.own = vec![place];
    let now = [kept("RUN a", "a2", "", &[])];
    reasons(&mut explainer, &now, GONE);
    explainer.keep(false);
    let kept: Kept = serde_json::from_slice(&explainer.places.read(&place).unwrap()).unwrap();
    assert_eq!(kept.steps, [now[0].clone(), former[1].clone()]);
}
