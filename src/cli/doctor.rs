//! `yadokari doctor`: the ladder of roots, which rungs hold here, and what to add for
//! the others.

use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;

use super::flags::Doctor;
use super::ladder;
use crate::overlay;
use crate::overlay::RING_SWITCH;
use crate::rootfs::outside::signs_of_a_container;
use crate::sandbox;
use crate::sandbox::Exit;
use crate::sandbox::Ids;
use crate::sandbox::InPlace;
use crate::sandbox::Namespaces;
use crate::sandbox::Process;
use crate::sandbox::Record;
use crate::sandbox::Recorder;
use crate::sandbox::Runner;

/// A way to have a root.
struct Rung {
    name: &'static str,
    /// What it is like.
    what: &'static str,
    /// What was found, or why it doesn't work.
    found: Result<String, String>,
    /// Taken only if nothing else works.
    is_last_resort: bool,
    /// What has to be granted.
    needs: &'static str,
    /// Where, and the line to add there.
    grants: &'static [(&'static str, &'static str)],
}

/// Prints the ladder; fails if no rung holds.
pub(super) fn run(flags: &Doctor) -> ExitCode {
    let variable = |name: &str| std::env::var(name).ok();
    // While this process has one thread; the first changes nothing here.
    let user_namespace = sandbox::rehearse(ladder::probe_user_namespace);
    let rungs = [
        Rung {
            name: "overlay",
            what: "our FUSE overlay, RUN in namespaces of its own: isolated, no unpacking",
            found: sandbox::rehearse(probe_overlay),
            is_last_resort: false,
            needs: "/dev/fuse, CAP_SYS_ADMIN, and no profile that forbids mount",
            grants: &[
                (
                    "docker run",
                    "--device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined",
                ),
                (
                    "GitLab Runner, config.toml, [runners.docker]",
                    "devices = [\"/dev/fuse\"]\ncap_add = [\"SYS_ADMIN\"]\n\
                     security_opt = [\"apparmor=unconfined\"]",
                ),
                (
                    "Kubernetes, pod spec, with a device plugin for /dev/fuse",
                    "hostUsers: false\ncontainers:\n- resources: {limits: {github.com/fuse: 1}}\n  \
                     securityContext: {capabilities: {add: [SYS_ADMIN]}, \
                     seccompProfile: {type: Unconfined}, appArmorProfile: {type: Unconfined}}",
                ),
                (
                    "GitLab Runner, config.toml, [runners.kubernetes]",
                    "[[runners.kubernetes.pod_spec]]\n  name = \"fuse\"\n  patch_type = \
                     \"strategic\"\n  patch = \'{\"hostUsers\": false, \"containers\": [{\"name\": \
                     \"build\", \"resources\": {\"limits\": {\"github.com/fuse\": \"1\"}}}]}\'",
                ),
            ],
        },
        Rung {
            name: "overlay in a user namespace",
            what: "the same without CAP_SYS_ADMIN, in a user namespace that we make ourselves",
            is_last_resort: user_namespace.as_ref().is_ok_and(Ids::is_single),
            found: user_namespace.map(|ids| format!("mounted one to try; it has {ids}")),
            needs: "/dev/fuse, leave to make user namespaces and to mount in them; for owners \
                    other than root, root with SETUID, SETGID and SETFCAP, or subordinate ids",
            grants: &[
                (
                    "docker run",
                    "--device /dev/fuse --security-opt seccomp=unconfined --security-opt \
                     apparmor=unconfined --security-opt systempaths=unconfined",
                ),
                (
                    "GitLab Runner, config.toml, [runners.docker]",
                    "devices = [\"/dev/fuse\"]\nsecurity_opt = [\"seccomp=unconfined\", \
                     \"apparmor=unconfined\", \"systempaths=unconfined\"]",
                ),
                (
                    "Kubernetes, container spec, with a device plugin for /dev/fuse",
                    "resources: {limits: {github.com/fuse: 1}}\nsecurityContext: {seccompProfile: \
                     {type: Unconfined}, appArmorProfile: {type: Unconfined}}",
                ),
                (
                    "a user of a host, as its root",
                    "apt-get install uidmap\nusermod --add-subuids 100000-165535 \
                     --add-subgids 100000-165535 USER\nchmod 0666 /dev/fuse",
                ),
            ],
        },
        Rung {
            name: "inplace",
            what: "the container's own /, as kaniko does it: no isolation of RUN",
            found: probe_in_place(&variable),
            is_last_resort: false,
            needs: "root in a container with CHOWN, DAC_OVERRIDE, FOWNER, SETUID, SETGID, SETFCAP",
            grants: &[
                (
                    "docker run",
                    "--user 0 --cap-add CHOWN --cap-add DAC_OVERRIDE --cap-add FOWNER --cap-add \
                     SETUID --cap-add SETGID --cap-add SETFCAP",
                ),
                (
                    "Kubernetes, container spec",
                    "securityContext: {runAsUser: 0, capabilities: {add: [CHOWN, DAC_OVERRIDE, \
                     FOWNER, SETUID, SETGID, SETFCAP]}}",
                ),
            ],
        },
    ];
    let holds = |rung: &&Rung| rung.found.is_ok();
    let chosen = rungs
        .iter()
        .filter(holds)
        .find(|rung| !rung.is_last_resort)
        .or_else(|| rungs.iter().find(holds))
        .map(|rung| rung.name);
    if flags.json {
        let rungs: Vec<_> = rungs
            .iter()
            .map(|rung| {
                json!({
                    "root": rung.name,
                    "what": rung.what,
                    "works": rung.found.is_ok(),
                    "found": rung.found.as_ref().map_or_else(Clone::clone, Clone::clone),
                    "needs": rung.needs,
                    "grants": rung.grants.iter().map(|(place, line)| json!({
                        "where": place, "add": line
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        println!("{:#}", json!({ "chosen": chosen, "ladder": rungs }));
    } else {
        for rung in &rungs {
            let (mark, found) = match &rung.found {
                Ok(found) => ("works", found),
                Err(why) => ("does not work", why),
            };
            println!("{}: {mark}\n  {}\n  {found}", rung.name, rung.what);
            if rung.found.is_err() {
                println!("  needs {}", rung.needs);
                for (place, lines) in rung.grants {
                    println!("  {place}:");
                    lines.lines().for_each(|line| println!("    {line}"));
                }
            }
        }
        match chosen {
            Some(name) => println!("RUN steps happen in: {name}"),
            None => println!("RUN steps can't happen here"),
        }
    }
    ExitCode::from(u8::from(chosen.is_none()))
}

/// Mounts an overlay that nobody serves.
fn probe_overlay() -> Result<String, String> {
    overlay::open_device().map_err(|error| error.to_string())?;
    sandbox::isolate_mounts().map_err(|error| error.to_string())?;
    overlay::try_mount().map_err(|error| error.to_string())?;
    Ok(if overlay::is_ring_switched_on() {
        "mounted one to try; io_uring is switched on".to_owned()
    } else {
        format!("mounted one to try; io_uring is off or not there ({RING_SWITCH})")
    })
}

/// Runs ourselves under the recorder.
fn probe_in_place(variable: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    if let Some(why) = ladder::refusal(false, variable) {
        return Err(why.to_owned());
    }
    let sign = signs_of_a_container(variable).unwrap_or_default();
    let recorder = Recorder::new(Vec::new(), Vec::new(), None)
        .map(Arc::new)
        .map_err(|error| error.to_string())?;
    let mut process = Process::new("/", ["/proc/self/exe", "version"]);
    process.in_place = Some(InPlace { record: Some(Record::All) });
    process.recorder = Some(Arc::clone(&recorder));
    let ended = Namespaces::of_this_program().run(&process, &mut |_, _| {});
    let recording = recorder.finish();
    match ended {
        Ok(exit) if exit != Exit::Code(0) => Err(format!("a process to try ended with {exit:?}")),
        Err(error) => Err(error.to_string()),
        Ok(_) if recorder.is_installed() && recording.lost.is_none() => {
            Ok(format!("a container by {sign}; changes are recorded"))
        }
        Ok(_) => Ok(format!(
            "a container by {sign}; no recorder (seccomp), so every step compares the whole root"
        )),
    }
}
