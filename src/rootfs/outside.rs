//! What of the container's root is not the image's: mounts, our own directories, and
//! what the user wants to be left alone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use super::Error;
use crate::ignore::Matcher;
use crate::path::RootPath;

/// Directories that are no part of any image, be they mounts or not.
const ALWAYS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Mounts of a container that RUN finds in every root, and writes into no image.
const EVERYWHERE: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// What a RUN may change without it being in the image, as in kaniko.
const UNRECORDED: [&str; 2] = ["/etc/mtab", "/tmp/apt-key-gpghome*"];

/// Paths that are neither written, nor read back, nor removed.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    places: BTreeSet<RootPath>,
    /// Those of them that are so in this container alone.
    private: BTreeSet<RootPath>,
    /// Those of them that the user named.
    ignored: BTreeSet<RootPath>,
    patterns: Matcher,
    unrecorded: Matcher,
}

/// What the user says about it.
#[derive(Clone, Debug, Default)]
pub struct Exceptions {
    /// Directories and files of the builder: cache, context, configuration.
    pub own: Vec<PathBuf>,
    /// `--ignore-path`; each may hold wildcards for one component.
    pub ignored: Vec<String>,
    /// `--ignore-var-run`; `None`: where something is mounted below.
    pub ignore_var_run: Option<bool>,
}

impl Outside {
    /// That of the root of this process, by its mounts.
    ///
    /// # Errors
    /// [`Error::Disk`] without `/proc`; [`Error::Pattern`].
    pub fn of_this_root(exceptions: &Exceptions) -> Result<Self, Error> {
        const TABLE: &str = "/proc/self/mountinfo";
        let table = fs::read(TABLE).map_err(Error::disk("read", Path::new(TABLE)))?;
        Self::new(mount_points(&table), exceptions)
    }

    /// That of a root with these mount points.
    ///
    /// # Errors
    /// [`Error::Pattern`].
    pub fn new(
        mounts: impl IntoIterator<Item = RootPath>,
        exceptions: &Exceptions,
    ) -> Result<Self, Error> {
        let mut places: BTreeSet<RootPath> = mounts.into_iter().collect();
        for path in &exceptions.own {
            // Where it really is, too: the way there may lead over a link.
            let real = fs::canonicalize(path).ok();
            for path in [Some(path.clone()), real].into_iter().flatten() {
                use std::os::unix::ffi::OsStrExt;
                places.extend(RootPath::clamped(path.as_os_str().as_bytes()));
            }
        }
        let always: Vec<RootPath> = ALWAYS.iter().filter_map(|path| at(path)).collect();
        let everywhere: Vec<RootPath> = EVERYWHERE.iter().filter_map(|path| at(path)).collect();
        let mut private = places.clone();
        private.remove(&RootPath::root());
        private.retain(|place| {
            !everywhere.contains(place) && !always.iter().any(|always| place.starts_with(always))
        });
        places.extend(always);
        let var_run = at("/var/run").unwrap_or_default();
        let ignores_var_run = exceptions.ignore_var_run.unwrap_or_else(|| {
            places.iter().any(|place| place.starts_with(&var_run) && *place != var_run)
        });
        if ignores_var_run {
            places.insert(var_run);
        }
        let (mut plain, mut patterns) = (Vec::new(), Vec::new());
        for path in &exceptions.ignored {
            if path.contains(['*', '?', '[', '\\']) { &mut patterns } else { &mut plain }
                .push(path.as_str());
        }
        let plain: Vec<RootPath> = plain.into_iter().filter_map(at).collect();
        private.retain(|place| !plain.iter().any(|ignored| place.starts_with(ignored)));
        let mut ignored: BTreeSet<RootPath> = plain.into_iter().collect();
        ignored.remove(&RootPath::root());
        places.extend(ignored.iter().cloned());
        places.remove(&RootPath::root());
        let matcher = |patterns: Vec<&str>| {
            let relative = patterns.into_iter().map(|pattern| pattern.trim_start_matches('/'));
            Matcher::new(relative).map_err(|error| Error::Pattern(error.to_string()))
        };
        let (patterns, unrecorded) = (matcher(patterns)?, matcher(UNRECORDED.to_vec())?);
        Ok(Self { places, private, ignored, patterns, unrecorded })
    }

    /// Whether `path` is left alone.
    pub fn covers(&self, path: &RootPath) -> bool {
        self.places.iter().any(|place| path.starts_with(place)) || self.patterns.excludes(path)
    }

    /// Whether something below `path` is left alone: then it must stay a directory.
    pub fn is_below(&self, path: &RootPath) -> bool {
        let mut from = self.places.range(path..);
        let first = from.next().filter(|place| *place != path).or_else(|| from.next());
        first.is_some_and(|place| place.starts_with(path))
    }

    /// Whether changes of a RUN at `path` don't count.
    pub fn hides(&self, path: &RootPath) -> bool {
        self.covers(path) || self.unrecorded.excludes(path)
    }

    /// The paths, without patterns.
    pub fn places(&self) -> impl Iterator<Item = &RootPath> {
        self.places.iter()
    }

    /// Those of the paths that are this container's own: a mount of it, a directory of the
    /// builder. In another root they are part of the image.
    pub fn private(&self) -> impl Iterator<Item = &RootPath> {
        self.private.iter()
    }

    /// Whether `path` is left alone because the user says so.
    pub fn is_ignored(&self, path: &RootPath) -> bool {
        self.ignored.iter().any(|ignored| path.starts_with(ignored))
    }

    /// This and `more`.
    pub fn with(&self, more: impl IntoIterator<Item = RootPath>) -> Self {
        let mut all = self.clone();
        all.places.extend(more);
        all
    }
}

fn at(path: &str) -> Option<RootPath> {
    RootPath::clamped(path.as_bytes())
}

/// The mount points in `/proc/PID/mountinfo` (proc_pid_mountinfo(5)) but the root.
pub fn mount_points(table: &[u8]) -> Vec<RootPath> {
    let lines = table.split(|&byte| byte == b'\n');
    let fields = lines.filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    let paths = fields.filter_map(|field| RootPath::clamped(&unescaped(field)));
    paths.filter(|path| !path.is_root()).collect()
}

/// Space, tab, newline and backslash are written in octal there.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| first == b'\\');
        let value =
            digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

/// Why it seems that this process runs in a container; `None` if it doesn't. The
/// signs are kaniko's.
pub fn signs_of_a_container(variable: &dyn Fn(&str) -> Option<String>) -> Option<&'static str> {
    for sign in [
        "/.dockerenv",
        "/run/.containerenv",
        "/var/run/secrets/kubernetes.io/serviceaccount",
        "/run/secrets/kubernetes.io/serviceaccount",
    ] {
        if Path::new(sign).exists() {
            return Some(sign);
        }
    }
    if variable("container").is_some_and(|value| !value.is_empty()) {
        return Some("the variable `container`");
    }
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if ["docker", "kubepods", "containerd", "libpod", "crio", "lxc"]
        .iter()
        .any(|name| groups.contains(name))
    {
        return Some("the name of the control group");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_overlay = |line: &str| {
        line.split(' ').nth(4) == Some("/")
            && line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("overlay "))
    };
    mounts.lines().any(is_overlay).then_some("the root is an overlay")
}

impl Error {
    /// For `map_err` after work on `path`.
    pub(super) fn disk(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Disk { action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RootPath {
        RootPath::clamped(text.as_bytes()).expect("no NUL")
    }

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let table = b"22 1 0:21 / / rw - overlay overlay rw\n\
            23 22 0:22 / /proc rw shared:1 - proc proc rw\n\
            24 22 0:23 /x /with\\040space/\\134a rw - ext4 /dev/sda rw\n";
        assert_eq!(mount_points(table), [path("/proc"), path("/with space/\\a")]);
    }

    #[test]
    fn what_only_this_container_has_is_private() {
        let exceptions = Exceptions {
            own: vec!["/kaniko".into()],
            ignored: vec!["/ignored".to_owned()],
            ignore_var_run: None,
        };
        let mounts = ["/", "/proc/x", "/etc/hosts", "/etc/hostname", "/builds", "/ignored/m"];
        let outside = Outside::new(mounts.map(path), &exceptions).expect("valid");
        let private: Vec<&RootPath> = outside.private().collect();
        assert_eq!(private, [&path("/builds"), &path("/etc/hostname"), &path("/kaniko")]);
        assert!(outside.is_ignored(&path("/ignored/m")) && !outside.is_ignored(&path("/builds")));
    }

    #[test]
    fn what_lies_outside_is_covered_and_keeps_its_parents() {
        let exceptions = Exceptions {
            own: vec!["/kaniko".into()],
            ignored: vec!["/opt/keep".to_owned(), "/srv/*.log".to_owned()],
            ignore_var_run: None,
        };
        let outside = Outside::new([path("/etc/hosts"), path("/var/run/secrets/x")], &exceptions)
            .expect("valid");
        for covered in [
            "/proc/1",
            "/kaniko",
            "/kaniko/a",
            "/opt/keep/b",
            "/etc/hosts",
            "/var/run/y",
            "/srv/a.log",
        ] {
            assert!(outside.covers(&path(covered)), "{covered}");
        }
        for free in ["/", "/etc", "/etc/hostsx", "/opt", "/kanikox", "/srv/a", "/var"] {
            assert!(!outside.covers(&path(free)), "{free}");
        }
        for above in ["/", "/etc", "/opt", "/var", "/var/run", "/var/run/secrets"] {
            assert!(outside.is_below(&path(above)), "{above}");
        }
        assert!(!outside.is_below(&path("/etc/hosts")));
        assert!(!outside.is_below(&path("/srv")));
        assert!(outside.hides(&path("/etc/mtab")) && !outside.covers(&path("/etc/mtab")));
    }
}
