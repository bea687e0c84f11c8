//! One test per row of the key table, in both directions.

use super::*;
use crate::dockerfile::instruction::Heredoc;
use crate::dockerfile::instruction::Span;
use crate::plan::step::CopySource;
use crate::plan::step::Sharing;

fn parent() -> Key {
    Key::from_bytes([7; 32])
}

fn amd64() -> Surroundings {
    Surroundings {
        platform: Platform::new("linux", "amd64", None),
        clamp: None,
        conditions: Conditions::default(),
        unseen: Vec::new(),
    }
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn pairs(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn run() -> RunStep {
    RunStep {
        arguments: texts(&["/bin/sh", "-c", "make"]),
        script: None,
        environment: pairs(&[("PATH", "/bin"), ("LANG", "C")]),
        proxy: Vec::new(),
        directory: "/src".to_owned(),
        user: String::new(),
        mounts: Vec::new(),
        network: Network::Default,
    }
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

fn script(name: &str, body: &str, start: usize) -> Heredoc {
    Heredoc {
        name: name.to_owned(),
        expand: true,
        chomp: false,
        descriptor: 0,
        body: body.to_owned(),
        span: Span { start, end: start + body.len() },
    }
}

fn bind() -> Mount {
    mounted(MountKind::Bind { origin: Origin::Context, source: "src".to_owned(), writable: false })
}

fn cache() -> Mount {
    mounted(MountKind::Cache {
        id: "/mnt".to_owned(),
        sharing: Sharing::Shared,
        read_only: false,
        from: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
    })
}

fn secret() -> Mount {
    mounted(MountKind::Secret {
        id: "token".to_owned(),
        file: true,
        env: None,
        required: false,
        mode: 0o400,
        uid: 0,
        gid: 0,
    })
}

fn mounted(kind: MountKind) -> Mount {
    Mount { target: "/mnt".to_owned(), kind }
}

fn content(byte: u8) -> Key {
    Key::from_bytes([byte; 32])
}

/// The keys of a step with one content behind it.
fn keys(action: &Action) -> StepKeys {
    of_step(&parent(), action, &[content(1)], &amd64())
}

fn run_with(change: impl FnOnce(&mut RunStep)) -> StepKeys {
    let mut run = run();
    change(&mut run);
    keys(&Action::Run(run))
}

fn copy_with(change: impl FnOnce(&mut CopyStep)) -> StepKeys {
    let mut copy = copy();
    change(&mut copy);
    keys(&Action::Copy(copy))
}

fn mount_with(mut mount: Mount, change: impl FnOnce(&mut Mount)) -> StepKeys {
    change(&mut mount);
    run_with(|run| run.mounts = vec![mount])
}

fn workdir(path: &str, user: &str) -> StepKeys {
    keys(&Action::Workdir { path: path.to_owned(), user: user.to_owned() })
}

/// No two of them agree, in the hint or in the definition.
fn assert_all_differ(all: &[StepKeys]) {
    for (index, one) in all.iter().enumerate() {
        for (offset, other) in all[index + 1..].iter().enumerate() {
            let other_index = index + 1 + offset;
            assert_ne!(one.hint, other.hint, "hints {index} and {other_index}");
            assert_ne!(one.definition, other.definition, "definitions {index} and {other_index}");
        }
    }
}

// What enters.

#[test]
fn the_kind_of_action_enters() {
    let all = [keys(&Action::Config), run_with(|_| ()), copy_with(|_| ()), workdir("/src", "")];
    assert_all_differ(&all);
    assert_eq!(keys(&Action::Config), keys(&Action::Silent));
}

#[test]
fn the_platform_enters_every_kind() {
    let arm = Surroundings { platform: Platform::new("linux", "arm64", None), ..amd64() };
    let arm_v6 = Surroundings { platform: Platform::new("linux", "arm", Some("v6")), ..amd64() };
    let arm_v7 = Surroundings { platform: Platform::new("linux", "arm", Some("v7")), ..amd64() };
    for action in kinds() {
        assert_all_differ(
            &[amd64(), arm.clone(), arm_v6.clone(), arm_v7.clone()]
                .map(|surroundings| of_step(&parent(), &action, &[], &surroundings)),
        );
    }
}

#[test]
fn the_clamp_enters_every_kind() {
    for action in kinds() {
        assert_all_differ(
            &[None, Some(0), Some(1), Some(-1)]
                .map(|clamp| of_step(&parent(), &action, &[], &Surroundings { clamp, ..amd64() })),
        );
    }
}

/// One action of each kind that makes a layer.
fn kinds() -> [Action; 3] {
    [
        Action::Run(run()),
        Action::Copy(copy()),
        Action::Workdir { path: "/src".to_owned(), user: String::new() },
    ]
}

#[test]
fn arguments_and_the_shell_in_front_enter() {
    assert_all_differ(&[
        run_with(|_| ()),
        run_with(|run| run.arguments = texts(&["/bin/bash", "-c", "make"])),
        run_with(|run| run.arguments = texts(&["/bin/sh", "-c", "make all"])),
        run_with(|run| run.arguments = texts(&["/bin/sh", "-c", "make", ""])),
        run_with(|run| run.arguments = texts(&["make"])),
        run_with(|run| run.arguments = texts(&[])),
    ]);
}

#[test]
fn arguments_that_join_alike_differ() {
    assert_all_differ(&[
        run_with(|run| run.arguments = texts(&["ab", "c"])),
        run_with(|run| run.arguments = texts(&["a", "bc"])),
        run_with(|run| run.arguments = texts(&["abc"])),
        run_with(|run| run.arguments = texts(&["abc", ""])),
        run_with(|run| run.arguments = texts(&["", "abc"])),
    ]);
}

#[test]
fn the_script_of_a_lone_heredoc_enters() {
    assert_all_differ(&[
        run_with(|_| ()),
        run_with(|run| run.script = Some(script("EOF", "", 0))),
        run_with(|run| run.script = Some(script("EOF", "#!/bin/sh\nmake\n", 0))),
        run_with(|run| run.script = Some(script("EOF", "#!/bin/sh\nmake all\n", 0))),
    ]);
}

#[test]
fn where_a_script_stands_does_not_enter() {
    assert_eq!(
        run_with(|run| run.script = Some(script("EOF", "#!/bin/sh\n", 0))),
        run_with(|run| run.script = Some(script("EOF", "#!/bin/sh\n", 100))),
    );
}

#[test]
fn the_environment_enters() {
    assert_all_differ(&[
        run_with(|_| ()),
        run_with(|run| run.environment = pairs(&[("PATH", "/bin"), ("LANG", "C.UTF-8")])),
        run_with(|run| run.environment = pairs(&[("PATH", "/bin"), ("LC_ALL", "C")])),
        run_with(|run| run.environment = pairs(&[("PATH", "/bin")])),
        run_with(|run| run.environment = pairs(&[("PATH", "/bin"), ("LANG", "C"), ("A", "")])),
        run_with(|run| run.environment.clear()),
    ]);
}

#[test]
fn the_order_of_the_environment_enters() {
    assert_all_differ(&[run_with(|_| ()), run_with(|run| run.environment.reverse())]);
}

#[test]
fn environments_that_join_alike_differ() {
    assert_all_differ(&[
        run_with(|run| run.environment = pairs(&[("AB", "C")])),
        run_with(|run| run.environment = pairs(&[("A", "BC")])),
        run_with(|run| run.environment = pairs(&[("ABC", "")])),
        run_with(|run| run.environment = pairs(&[("A", "B=C")])),
        run_with(|run| run.environment = pairs(&[("A", "B"), ("C", "")])),
        run_with(|run| run.environment = pairs(&[("A", ""), ("B", "C")])),
    ]);
}

#[test]
fn an_argument_is_no_variable() {
    assert_all_differ(&[
        run_with(|run| {
            run.arguments = texts(&["a", "b", "c"]);
            run.environment = Vec::new();
        }),
        run_with(|run| {
            run.arguments = texts(&["a"]);
            run.environment = pairs(&[("b", "c")]);
        }),
    ]);
}

#[test]
fn directory_and_user_of_a_run_enter() {
    assert_all_differ(&[
        run_with(|_| ()),
        run_with(|run| run.directory = "/".to_owned()),
        run_with(|run| run.user = "/src".to_owned()),
        run_with(|run| run.user = "app".to_owned()),
        run_with(|run| run.user = "app:app".to_owned()),
    ]);
}

#[test]
fn directory_and_user_of_a_workdir_enter() {
    assert_all_differ(&[
        workdir("/src", ""),
        workdir("/srv", ""),
        workdir("/src", "app"),
        workdir("/src/app", ""),
    ]);
}

#[test]
fn the_network_enters() {
    assert_all_differ(
        &[Network::Default, Network::None, Network::Host]
            .map(|network| run_with(|run| run.network = network)),
    );
}

#[test]
fn type_and_target_of_a_mount_enter() {
    let elsewhere = |mount| mount_with(mount, |mount| mount.target = "/opt".to_owned());
    assert_all_differ(&[
        run_with(|_| ()),
        mount_with(bind(), |_| ()),
        mount_with(cache(), |_| ()),
        mount_with(secret(), |_| ()),
        mount_with(mounted(MountKind::Tmpfs { size: None }), |_| ()),
        elsewhere(bind()),
        elsewhere(cache()),
        elsewhere(secret()),
        elsewhere(mounted(MountKind::Tmpfs { size: None })),
    ]);
}

#[test]
fn the_order_of_mounts_enters() {
    let other = Mount { target: "/mnt/below".to_owned(), ..cache() };
    assert_all_differ(&[
        run_with(|run| run.mounts = vec![bind(), other.clone()]),
        run_with(|run| run.mounts = vec![other.clone(), bind()]),
        run_with(|run| run.mounts = vec![other.clone()]),
        run_with(|run| run.mounts = vec![other.clone(), other.clone()]),
    ]);
}

#[test]
fn options_of_a_bind_enter() {
    assert_all_differ(&[
        mount_with(bind(), |_| ()),
        mount_with(bind(), |mount| {
            let MountKind::Bind { writable, .. } = &mut mount.kind else { unreachable!() };
            *writable = true;
        }),
    ]);
}

#[test]
fn options_of_a_tmpfs_enter() {
    assert_all_differ(
        &[None, Some(0), Some(4096)]
            .map(|size| mount_with(mounted(MountKind::Tmpfs { size }), |_| ())),
    );
}

#[test]
fn the_id_and_options_of_a_cache_enter() {
    let with = |id: &str, read_only, from, mode, uid, gid| {
        run_with(|run| {
            run.mounts = vec![mounted(MountKind::Cache {
                id: id.to_owned(),
                sharing: Sharing::Shared,
                read_only,
                from,
                mode,
                uid,
                gid,
            })];
        })
    };
    let seed = Some((Origin::Context, String::new()));
    assert_eq!(with("/mnt", false, None, 0o755, 0, 0), mount_with(cache(), |_| ()));
    assert_all_differ(&[
        with("/mnt", false, None, 0o755, 0, 0),
        with("apt", false, None, 0o755, 0, 0),
        with("/mnt", true, None, 0o755, 0, 0),
        with("/mnt", false, seed, 0o755, 0, 0),
        with("/mnt", false, None, 0o700, 0, 0),
        with("/mnt", false, None, 0o755, 1, 0),
        with("/mnt", false, None, 0o755, 0, 1),
    ]);
}

#[test]
fn the_id_and_options_of_a_secret_enter() {
    let with = |id: &str, file, env: Option<&str>, mode, uid, gid| {
        run_with(|run| {
            run.mounts = vec![mounted(MountKind::Secret {
                id: id.to_owned(),
                file,
                env: env.map(str::to_owned),
                required: false,
                mode,
                uid,
                gid,
            })];
        })
    };
    assert_eq!(with("token", true, None, 0o400, 0, 0), mount_with(secret(), |_| ()));
    assert_all_differ(&[
        with("token", true, None, 0o400, 0, 0),
        with("key", true, None, 0o400, 0, 0),
        with("token", false, Some("TOKEN"), 0o400, 0, 0),
        with("token", true, Some("TOKEN"), 0o400, 0, 0),
        with("token", true, Some("KEY"), 0o400, 0, 0),
        with("token", true, None, 0o440, 0, 0),
        with("token", true, None, 0o400, 1, 0),
        with("token", true, None, 0o400, 0, 1),
    ]);
}

#[test]
fn the_destination_and_flags_of_a_copy_enter() {
    assert_all_differ(&[
        copy_with(|_| ()),
        copy_with(|copy| copy.destination = "/src".to_owned()),
        copy_with(|copy| copy.destination = "/srv/".to_owned()),
        copy_with(|copy| copy.chown = Some(String::new())),
        copy_with(|copy| copy.chown = Some("1000:1000".to_owned())),
        copy_with(|copy| copy.chmod = Some("0644".to_owned())),
        copy_with(|copy| copy.chmod = Some("1000:1000".to_owned())),
        copy_with(|copy| copy.link = true),
        copy_with(|copy| copy.parents = true),
    ]);
}

#[test]
fn add_and_unpack_enter() {
    assert_all_differ(&[
        copy_with(|_| ()),
        copy_with(|copy| copy.add = true),
        copy_with(|copy| {
            copy.add = true;
            copy.unpack = Some(true);
        }),
        copy_with(|copy| {
            copy.add = true;
            copy.unpack = Some(false);
        }),
    ]);
}

#[test]
fn whether_a_copy_comes_from_the_context_enters() {
    // Owners are reset there and kept elsewhere.
    assert_all_differ(&[copy_with(|_| ()), copy_with(|copy| copy.origin = Origin::Stage(0))]);
}

#[test]
fn contents_and_their_order_enter() {
    let actions =
        [Action::Copy(copy()), Action::Run(RunStep { mounts: vec![bind(), bind()], ..run() })];
    for action in actions {
        let with = |contents: &[Key]| of_step(&parent(), &action, contents, &amd64());
        assert_all_differ(&[
            with(&[]),
            with(&[content(1)]),
            with(&[content(2)]),
            with(&[content(1), content(2)]),
            with(&[content(2), content(1)]),
            with(&[content(1), content(1)]),
        ]);
    }
}

// What deliberately does not.

#[test]
fn undeclared_proxy_variables_do_not_enter() {
    assert_eq!(
        run_with(|_| ()),
        run_with(|run| run.proxy = pairs(&[("HTTP_PROXY", "http://proxy.example.com:3128")])),
    );
}

#[test]
fn whether_a_secret_is_required_does_not_enter() {
    let required = mount_with(secret(), |mount| {
        let MountKind::Secret { required, .. } = &mut mount.kind else { unreachable!() };
        *required = true;
    });
    assert_eq!(mount_with(secret(), |_| ()), required);
}

#[test]
fn the_sharing_of_a_cache_does_not_enter() {
    let shared = mount_with(cache(), |_| ());
    for other in [Sharing::Private, Sharing::Locked] {
        let key = mount_with(cache(), |mount| {
            let MountKind::Cache { sharing, .. } = &mut mount.kind else { unreachable!() };
            *sharing = other;
        });
        assert_eq!(key, shared, "{other:?}");
    }
}

#[test]
fn what_a_cache_is_filled_with_enters_by_its_content_alone() {
    let with = |origin: Origin, path: &str| {
        mount_with(cache(), |mount| {
            let MountKind::Cache { from, .. } = &mut mount.kind else { unreachable!() };
            *from = Some((origin, path.to_owned()));
        })
    };
    assert_eq!(with(Origin::Context, "a"), with(Origin::Stage(1), "b"));
}

#[test]
fn the_source_of_a_bind_enters_by_its_content_alone() {
    let with = |from: Origin, path: &str| {
        mount_with(bind(), |mount| {
            let MountKind::Bind { origin, source, .. } = &mut mount.kind else { unreachable!() };
            *origin = from;
            *source = path.to_owned();
        })
    };
    let here = with(Origin::Context, "src");
    assert_eq!(with(Origin::Context, "other"), here);
    assert_eq!(with(Origin::Stage(3), "src"), here);
    assert_eq!(with(Origin::Image("debian:12".to_owned()), ""), here);
}

#[test]
fn sources_and_excludes_of_a_copy_enter_by_their_content_alone() {
    let plain = copy_with(|_| ());
    assert_eq!(copy_with(|copy| copy.exclude = texts(&["*.o"])), plain);
    assert_eq!(copy_with(|copy| copy.sources = vec![CopySource::Path("s*".to_owned())]), plain);
}

#[test]
fn the_number_of_a_stage_does_not_enter() {
    // A stage put in front of another moves its number and changes nothing else.
    let first = copy_with(|copy| copy.origin = Origin::Stage(0));
    assert_eq!(copy_with(|copy| copy.origin = Origin::Stage(1)), first);
    assert_eq!(copy_with(|copy| copy.origin = Origin::Image("debian:12".to_owned())), first);
}

// How keys hang together.

#[test]
fn equal_steps_have_equal_keys() {
    for action in kinds() {
        assert_eq!(keys(&action), keys(&action.clone()));
    }
}

#[test]
fn the_parent_enters_the_definition_and_not_the_hint() {
    for action in kinds() {
        let on = |parent: &Key| of_step(parent, &action, &[content(1)], &amd64());
        let (one, other) = (on(&content(8)), on(&content(9)));
        assert_eq!(one.hint, other.hint);
        assert_ne!(one.definition, other.definition);
        assert_ne!(one.definition, one.hint);
    }
}

#[test]
fn a_change_reaches_the_definitions_of_all_steps_after_it() {
    let chain = |first: &Action| {
        let mut definitions = Vec::new();
        let mut parent = of_base(&[]);
        for action in std::iter::once(first.clone()).chain(kinds()) {
            parent = of_step(&parent, &action, &[], &amd64()).definition;
            definitions.push(parent);
        }
        definitions
    };
    let before = chain(&Action::Config);
    let after = chain(&Action::Workdir { path: "/other".to_owned(), user: String::new() });
    for (one, other) in before.iter().zip(&after) {
        assert_ne!(one, other);
    }
}

#[test]
fn the_layers_of_the_base_and_their_order_enter() {
    let (one, two) = (DiffId::of(b"one"), DiffId::of(b"two"));
    let all = [
        of_base(&[]),
        of_base(&[one]),
        of_base(&[two]),
        of_base(&[one, two]),
        of_base(&[two, one]),
    ];
    for (index, key) in all.iter().enumerate() {
        assert!(!all[index + 1..].contains(key), "{index}");
    }
}

#[test]
fn the_content_key_depends_on_chain_and_hint_alone() {
    let (one, two) = (DiffId::of(b"one"), DiffId::of(b"two"));
    let action = Action::Run(run());
    let [here, there] =
        [content(8), content(9)].map(|parent| of_step(&parent, &action, &[content(1)], &amd64()));
    assert_ne!(here.definition, there.definition);
    assert_eq!(on_chain(&[one, two], &here.hint), on_chain(&[one, two], &there.hint));

    let other = run_with(|run| run.user = "app".to_owned()).hint;
    let all = [
        on_chain(&[], &here.hint),
        on_chain(&[one], &here.hint),
        on_chain(&[two], &here.hint),
        on_chain(&[one, two], &here.hint),
        on_chain(&[two, one], &here.hint),
        on_chain(&[one, two], &other),
    ];
    for (index, key) in all.iter().enumerate() {
        assert!(!all[index + 1..].contains(key), "{index}");
    }
}

#[test]
fn keys_of_different_purposes_never_meet() {
    // The same bytes as a base, as a chain and as a definition.
    let layer = DiffId::from_bytes([7; 32]);
    let step = of_step(&parent(), &Action::Config, &[], &amd64());
    let all = [of_base(&[layer]), on_chain(&[layer], &step.hint), step.hint, step.definition];
    for (index, key) in all.iter().enumerate() {
        assert!(!all[index + 1..].contains(key), "{index}");
    }
}

#[test]
fn conditions_of_a_run_count_but_for_addresses() {
    use crate::sandbox::Limit;
    use crate::step::run::HostAddress;

    let hint = |conditions: Conditions| {
        let around = Surroundings { conditions, ..amd64() };
        of_step(&parent(), &Action::Run(run()), &[], &around).hint
    };
    let host = |name: &str, address: HostAddress| Conditions {
        hosts: vec![(name.to_owned(), address)],
        ..Conditions::default()
    };
    let there = HostAddress::At([10, 0, 0, 1].into());
    let limit = Limit::parse("nofile=1:2").expect("valid");
    let plain = hint(Conditions::default());
    let named = hint(host("a", there));
    assert_eq!(named, hint(host("a", HostAddress::Gateway)));
    let shm = hint(Conditions { shm_size: Some(1), ..Conditions::default() });
    let limited = hint(Conditions { limits: vec![limit], ..Conditions::default() });
    let elsewhere = hint(Conditions { hostname: Some("x".to_owned()), ..Conditions::default() });
    let all = [plain, named, hint(host("b", there)), shm, limited, elsewhere];
    for (number, one) in all.iter().enumerate() {
        assert!(!all[..number].contains(one), "{number}");
    }
}

#[test]
fn an_ssh_mount_counts_by_its_options_alone() {
    let ssh = |id: &str, required, mode| {
        let kind = MountKind::Ssh { id: id.to_owned(), required, mode, uid: 0, gid: 0 };
        let action = Action::Run(RunStep { mounts: vec![mounted(kind)], ..run() });
        of_step(&parent(), &action, &[], &amd64()).hint
    };
    assert_eq!(ssh("a", true, 0o600), ssh("a", false, 0o600));
    assert_ne!(ssh("a", true, 0o600), ssh("b", true, 0o600));
    assert_ne!(ssh("a", true, 0o600), ssh("a", true, 0o666));
}

#[test]
fn flags_that_hide_changes_of_a_run_enter() {
    let seen = amd64();
    let unseen = Surroundings { unseen: texts(&["--snapshot-mode=time"]), ..amd64() };
    let key = |action: &Action, surroundings| of_step(&parent(), action, &[], surroundings);
    let run = Action::Run(run());
    assert_ne!(key(&run, &seen), key(&run, &unseen));
    let copy = Action::Copy(copy());
    assert_eq!(key(&copy, &seen), key(&copy, &unseen));
}
