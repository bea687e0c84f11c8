use super::*;

fn read(text: &str) -> Result<Mount, Wrong> {
    let around = Surroundings {
        stages: &[],
        contexts: &Contexts::default(),
        directory: "/w",
        namespace: None,
    };
    build(&fields(text)?, &around)
}

fn kind(text: &str) -> MountKind {
    read(text).expect("valid").kind
}

#[test]
fn a_mount_is_a_read_only_view_of_the_context_unless_it_says_otherwise() {
    let bind = |source: &str, writable| MountKind::Bind {
        origin: Origin::Context,
        source: source.to_owned(),
        writable,
    };
    assert_eq!(read("target=/t"), Ok(Mount { target: "/t".to_owned(), kind: bind("", false) }));
    assert_eq!(read("dst=t,src=/a/../b/,rw").expect("valid").target, "/w/t");
    assert_eq!(kind("dst=t,src=/a/../b/,rw"), bind("b", true));
    assert_eq!(kind("target=/t,rw=false"), bind("", false));
    assert_eq!(kind("target=/t,ro=0"), bind("", true));
    assert_eq!(
        kind("from=alpine,target=/t,source=etc"),
        MountKind::Bind {
            origin: Origin::Image("alpine".to_owned()),
            source: "etc".to_owned(),
            writable: false
        }
    );
}

#[test]
fn fields_are_csv() {
    let Ok(read) = fields("type=bind,\"target=/a,\"\"b\",ro") else { panic!("valid") };
    assert_eq!(
        read,
        [
            ("type".to_owned(), Some("bind".to_owned())),
            ("target".to_owned(), Some("/a,\"b".to_owned())),
            ("ro".to_owned(), None)
        ]
    );
    for bad in ["", "a=\"b\"", "\"a=b", "\"a\"b"] {
        assert!(fields(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_cache_has_the_cleaned_target_as_its_id() {
    let cache = |id: &str| MountKind::Cache {
        id: id.to_owned(),
        sharing: Sharing::Shared,
        read_only: false,
        from: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    assert_eq!(kind("type=cache,target=/root//.cache/"), cache("/root/.cache"));
    assert_eq!(kind("type=CACHE,target=/x,id=go"), cache("go"));
    assert_eq!(
        kind("type=cache,target=/x,sharing=locked,mode=0700,uid=5,gid=6,ro,from=a,source=/s"),
        MountKind::Cache {
            id: "/x".to_owned(),
            sharing: Sharing::Locked,
            read_only: true,
            from: Some((Origin::Image("a".to_owned()), "s".to_owned())),
            mode: 0o700,
            uid: 5,
            gid: 6,
        }
    );
    let around = Surroundings {
        stages: &[],
        contexts: &Contexts::default(),
        directory: "/",
        namespace: Some("ns"),
    };
    let Ok(fields) = fields("type=cache,target=/x") else { panic!("valid") };
    assert_eq!(build(&fields, &around).expect("valid").kind, cache("ns//x"));
}

#[test]
fn a_secret_is_a_file_a_variable_or_both() {
    let secret = |id: &str, file, env: Option<&str>| MountKind::Secret {
        id: id.to_owned(),
        file,
        env: env.map(str::to_owned),
        required: false,
        mode: 0o400,
        uid: 0,
        gid: 0,
    };
    for (text, target, expected) in [
        ("type=secret,id=a/k", "/run/secrets/k", secret("a/k", true, None)),
        ("type=secret,target=/r/.npmrc", "/r/.npmrc", secret(".npmrc", true, None)),
        ("type=secret,id=k,target=t", "/w/t", secret("k", true, None)),
        ("type=secret,src=k,env=KEY", "", secret("k", false, Some("KEY"))),
        ("type=secret,id=k,env=KEY,target=/t", "/t", secret("k", true, Some("KEY"))),
    ] {
        let mount = read(text).expect("valid");
        assert_eq!((mount.target.as_str(), &mount.kind), (target, &expected), "{text}");
    }
}

#[test]
fn sizes_are_binary() {
    for (text, bytes) in
        [("100", 100), ("1k", 1024), ("64MB", 64 << 20), ("1.5 GiB", 3 << 29), ("2b", 2)]
    {
        assert_eq!(parse_size(text), Some(bytes), "{text}");
    }
    for bad in ["", "m", "-1", "1x", "1.2.3k", "99999999999999999999", "20000000p"] {
        assert_eq!(parse_size(bad), None, "{bad}");
    }
    assert_eq!(kind("type=tmpfs,target=/t,size=1m"), MountKind::Tmpfs { size: Some(1 << 20) });
    assert_eq!(kind("type=tmpfs,target=/t"), MountKind::Tmpfs { size: None });
}

#[test]
fn an_ssh_mount_is_a_socket_for_its_user() {
    let ssh = |id: &str, required, mode, uid| MountKind::Ssh {
        id: id.to_owned(),
        required,
        mode,
        uid,
        gid: 0,
    };
    assert_eq!(kind("type=ssh"), ssh("default", false, 0o600, 0));
    assert_eq!(kind("type=ssh,id=a,required,mode=0666,uid=7"), ssh("a", true, 0o666, 7));
    assert_eq!(read("type=ssh,target=s").expect("valid").target, "/w/s");
}

#[test]
fn mistakes_are_named() {
    for (text, part) in [
        ("type=bnd,target=/t", "no type of mount"),
        ("type=ssh,from=x", "type ssh"),
        ("type=ssh,size=1", "type ssh"),
        ("type=ssh,target=/", "can't have `/`"),
        ("tagret=/t", "no key of a mount"),
        ("target", "must be key=value"),
        ("target=/", "can't have `/`"),
        ("target=..", "can't have `/`"),
        ("target=/t,mode=0700", "type bind"),
        ("type=tmpfs,target=/t,uid=1", "type tmpfs"),
        ("type=bind,target=/t,size=1", "type bind"),
        ("type=cache,target=/t,required", "type cache"),
        ("type=cache,target=/t,env=A", "type cache"),
        ("type=cache,target=/t,mode=9", "octal"),
        ("type=cache,target=/t,mode=17777", "octal"),
        ("type=cache,target=/t,sharing=x", "shared, private or locked"),
        ("type=cache,target=/t,source=/s", "needs a `from`"),
        ("type=secret,id=a,from=b", "type secret"),
        ("type=secret,id=a,source=b", "either"),
        ("type=secret", "needs an `id`"),
        ("target=/t,ro=maybe", "true or false"),
        ("target=/t,from=$X", "no variables"),
    ] {
        let message = read(text).expect_err(text).message;
        assert!(message.contains(part), "{text}: {message}");
    }
    let hint = |text| read(text).expect_err(text).hint;
    assert_eq!(hint("tagret=/t").as_deref(), Some("did you mean `target`?"));
    assert_eq!(hint("type=bnd").as_deref(), Some("did you mean `bind`?"));
}

#[test]
fn only_binds_without_from_read_the_context() {
    assert!(reads_context("target=/t") && reads_context("type=bind,target=/t"));
    assert!(!reads_context("type=cache,target=/t") && !reads_context("from=a,target=/t"));
    assert_eq!(origin_name("from=a,target=/t").as_deref(), Some("a"));
    assert_eq!(origin_name("type=tmpfs,from=a,target=/t"), None);
}
