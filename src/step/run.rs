//! RUN: a process in the mounted root, with the mounts it asked for.
//!
//! Mount points that the root lacks are stubs: they are made before the snapshot
//! looks, and taken away after the process ended, so no layer ever shows them.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use super::Error;
use super::copy::make_directories;
use super::ownership::Accounts;
use crate::overlay::Attributes;
use crate::path::RootPath;
use crate::plan::step::Network;
use crate::plan::step::RunStep;
use crate::rootfs::Root;
use crate::sandbox::Cancel;
use crate::sandbox::Exit;
use crate::sandbox::Limit;
use crate::sandbox::MountPoint;
use crate::sandbox::Process;
use crate::sandbox::Runner;
use crate::sandbox::SecretBytes;
use crate::sandbox::Stream;
use crate::tree::Timestamp;

/// Name of the host that a process sees, as BuildKit's.
const HOSTNAME: &str = "buildkitsandbox";

/// What every RUN of a build finds around it, as flags say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Conditions {
    /// `--add-host`: names and addresses, in order.
    pub hosts: Vec<(String, HostAddress)>,
    /// `--shm-size` in bytes; `None`: Docker's 64 MiB.
    pub shm_size: Option<u64>,
    /// `--ulimit`.
    pub limits: Vec<Limit>,
    /// `BUILDKIT_SANDBOX_HOSTNAME`; `None`: BuildKit's `buildkitsandbox`.
    pub hostname: Option<String>,
}

impl Conditions {
    /// Name of the host that a process sees.
    pub fn hostname(&self) -> &str {
        self.hostname.as_deref().unwrap_or(HOSTNAME)
    }
}

/// Where a host of `--add-host` is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostAddress {
    /// There.
    At(IpAddr),
    /// `host-gateway`: the machine that the builder's container runs on, which is where
    /// its default route leads.
    Gateway,
}

/// Size of `/dev/shm` in bytes, as Docker's.
const SHM_SIZE: u64 = 64 << 20;

/// A mount of the step with its source prepared by the build.
pub enum Prepared {
    /// Files of the host: a mounted tree, a cache directory.
    Bind {
        /// Absolute path on the host.
        source: PathBuf,
        /// Whether that is a directory. Known, not asked: the path may be in a mount
        /// of ours, which our own threads keep away from.
        is_directory: bool,
        /// Mount point in the root.
        target: String,
        /// Whether writing is refused.
        read_only: bool,
        /// Kept open while the step runs: the lock of a cache mount.
        lock: Option<File>,
    },
    /// Memory.
    Tmpfs {
        /// Mount point in the root.
        target: String,
        /// Bytes.
        size: Option<u64>,
    },
    /// A secret as a file.
    Secret {
        /// Where it appears in the root.
        target: String,
        /// Its value.
        value: SecretBytes,
        /// Mode of the file.
        mode: u16,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A secret as a variable.
    SecretVariable {
        /// Name.
        name: String,
        /// Its value.
        value: SecretBytes,
    },
}

/// Where a RUN happens.
pub struct Place<'a> {
    /// The root, mounted.
    pub root: &'a Root,
    /// Where it is mounted.
    pub mounted: &'a Path,
    /// Starts processes.
    pub runner: &'a dyn Runner,
    /// Ends the process when somebody gives up.
    pub cancel: Arc<Cancel>,
    /// What it finds around it.
    pub conditions: &'a Conditions,
}

/// Runs `step` and gives back how its process ended.
///
/// # Errors
/// An unknown user, a mount point that can't be made, a process that can't be
/// started. A process that fails is no error here.
pub fn run(
    place: &Place<'_>,
    step: &RunStep,
    mounts: Vec<Prepared>,
    now: Timestamp,
    output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Exit, Error> {
    let overlay = &**place.root.overlay();
    let user = Accounts::read(&*overlay.after())?.user(&step.user)?;
    let attributes = Attributes { mode: 0o755, uid: user.uid, gid: user.gid, mtime: now };
    let directory = RootPath::clamped(step.directory.as_bytes()).unwrap_or_default();
    make_directories(overlay, &directory, &attributes)?;

    let mut environment: Vec<(String, String)> = step.environment.clone();
    for (name, value) in &step.proxy {
        set(&mut environment, name, value);
    }
    let mut points = Vec::new();
    for target in ["/proc", "/sys", "/dev"] {
        // The sandbox mounts these itself; they only have to exist.
        points.push((target.to_owned(), true, None));
    }
    for (target, contents) in
        [("/etc/hosts", hosts(place.conditions)?), ("/etc/resolv.conf", resolv_conf())]
    {
        points.push((target.to_owned(), false, Some(PointKind::File(contents, 0o644, 0, 0))));
    }
    if let Some(script) = &step.script {
        points.push((
            format!("/dev/pipes/{}", script.name),
            false,
            Some(PointKind::File(SecretBytes::new(script.body.clone().into_bytes()), 0o755, 0, 0)),
        ));
    }
    let mut locks = Vec::new();
    for mount in mounts {
        match mount {
            Prepared::Bind { source, is_directory, target, read_only, lock } => {
                locks.extend(lock);
                points.push((target, is_directory, Some(PointKind::Bind(source, read_only))));
            }
            Prepared::Tmpfs { target, size } => {
                points.push((target, true, Some(PointKind::Tmpfs(size))));
            }
            Prepared::Secret { target, value, mode, uid, gid } => {
                points.push((target, false, Some(PointKind::File(value, mode, uid, gid))));
            }
            Prepared::SecretVariable { name, value } => {
                set(&mut environment, &name, &String::from_utf8_lossy(value.as_bytes()));
            }
        }
    }
    let mut stubs = Vec::new();
    let mut mounted = Vec::new();
    let prepare = || -> Result<(), Error> {
        for (target, is_directory, point) in points {
            let failed = |reason: String| Error::Mount { target: target.clone(), reason };
            let path = RootPath::clamped(target.as_bytes())
                .ok_or_else(|| failed("it holds a NUL byte".to_owned()))?;
            // Below /dev the sandbox's own filesystem hides the root: it makes the mount
            // point there itself.
            let hidden = path.components().next() == Some(b"dev") && path.components().count() > 1;
            let path = if hidden {
                path
            } else {
                let made = if is_directory {
                    overlay.make_stub_directory(&path)
                } else {
                    overlay.make_stub_file(&path)
                };
                let made = made.map_err(|error| failed(error.to_string()))?;
                let path = made.path.clone();
                stubs.push(made);
                path
            };
            mounted.extend(match point {
                None => None,
                Some(PointKind::Bind(source, read_only)) => {
                    Some(MountPoint::Bind { source, target: path, read_only })
                }
                Some(PointKind::Tmpfs(size)) => {
                    Some(MountPoint::Tmpfs { target: path, size, mode: 0o1777 })
                }
                Some(PointKind::File(contents, mode, uid, gid)) => {
                    Some(MountPoint::File { target: path, contents, mode, uid, gid })
                }
            });
        }
        Ok(())
    };
    let prepared = prepare();
    let ended = prepared.and_then(|()| {
        if !environment.iter().any(|(name, _)| name == "HOME") {
            environment.push(("HOME".to_owned(), user.home.clone()));
        }
        let process = Process {
            root: place.mounted.to_owned(),
            arguments: step.arguments.clone(),
            environment,
            directory: step.directory.clone(),
            user,
            mounts: mounted,
            network: step.network != Network::None,
            hostname: place.conditions.hostname().to_owned(),
            shm_size: place.conditions.shm_size.unwrap_or(SHM_SIZE),
            limits: place.conditions.limits.clone(),
            in_place: None,
            recorder: None,
            cancel: Some(Arc::clone(&place.cancel)),
        };
        Ok(place.runner.run(&process, output)?)
    });
    // Pages of shared memory maps first: a stub that was written to is no stub.
    let synced = place.root.sync().map_err(Error::io("sync", "the root filesystem"));
    overlay.remove_stubs(stubs).map_err(Error::io("take away", "the mount points"))?;
    synced?;
    drop(locks);
    ended
}

enum PointKind {
    Bind(PathBuf, bool),
    Tmpfs(Option<u64>),
    File(SecretBytes, u16, u32, u32),
}

pub(super) fn set(environment: &mut Vec<(String, String)>, name: &str, value: &str) {
    match environment.iter_mut().find(|(key, _)| key == name) {
        Some(entry) => value.clone_into(&mut entry.1),
        None => environment.push((name.to_owned(), value.to_owned())),
    }
}

/// `/etc/hosts` of a process: loopback names, and what the builder's own file says
/// of other hosts (aliases that a pod or runner was given). Those of `--add-host` come
/// first: the first line of a name counts.
fn hosts(conditions: &Conditions) -> Result<SecretBytes, Error> {
    let mut text = format!(
        "127.0.0.1\tlocalhost {}\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        conditions.hostname()
    );
    for (name, address) in &conditions.hosts {
        let address = match address {
            HostAddress::At(address) => *address,
            HostAddress::Gateway => gateway().ok_or_else(|| Error::NoGateway(name.clone()))?,
        };
        text.push_str(&format!("{address}\t{name}\n"));
    }
    let own = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    for line in own.lines() {
        let address = line.split_whitespace().next().unwrap_or_default();
        let loopback = address.starts_with("127.") || address == "::1";
        if !address.is_empty() && !address.starts_with('#') && !loopback {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(SecretBytes::new(text.into_bytes()))
}

/// Where the default route leads (proc_net(5): addresses in hexadecimal digits, in the
/// machine's byte order).
fn gateway() -> Option<IpAddr> {
    default_route(&std::fs::read_to_string("/proc/net/route").ok()?)
}

fn default_route(table: &str) -> Option<IpAddr> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        (destination == "00000000" && gateway != 0).then(|| IpAddr::from(gateway.to_ne_bytes()))
    })
}

/// `/etc/resolv.conf` of a process: the builder's own; it shares its network.
fn resolv_conf() -> SecretBytes {
    SecretBytes::new(std::fs::read("/etc/resolv.conf").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_where_the_default_route_leads() {
        let gateway = u32::from_ne_bytes([172, 17, 0, 1]);
        let table = format!(
            "Iface\tDestination\tGateway\tFlags\neth0\t000011AC\t00000000\t0001\n\
             eth0\t00000000\t{gateway:08X}\t0003\n"
        );
        assert_eq!(default_route(&table), Some(IpAddr::from([172, 17, 0, 1])));
        assert_eq!(default_route("Iface\tDestination\tGateway\n"), None);
        assert_eq!(default_route("x\neth0 00000000\neth0 00000000 zz\n"), None);
    }
}
