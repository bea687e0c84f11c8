//! A mounted overlay and a plain directory beside it, to do the same in both.
//!
//! Whoever works in a mount that is served by the same process can't be killed while a
//! request of his is under way: it is answered by nobody, and keeps the process that
//! should have answered. So each mount has a [`Guard`].

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;

use yadokari::overlay::Lower;
use yadokari::overlay::MountError;
use yadokari::overlay::MountOptions;
use yadokari::overlay::Overlay;
use yadokari::overlay::Session;
use yadokari::overlay::Transport;

/// A process that cuts a mount off when the process that serves it is gone, or is
/// nothing but a thread that waits for itself.
#[derive(Debug)]
pub(crate) struct Guard(Child);

/// `$1`: process, `$2`: mount point. A process that has no memory any more has ended, or
/// does so: its first thread is a zombie, or closes the last file of the mount and waits for
/// itself. Forcing an unmount cuts the connection, and that ends all waiting. Nothing here
/// asks the mount itself.
const WATCH: &str = r#"
while grep -q '^VmSize:' "/proc/$1/status" 2>/dev/null; do
    sleep 0.3
done
while umount -c -i -n -f -l "$2" 2>/dev/null; do :; done
"#;

impl Guard {
    /// Watches this process for what is, or will be, mounted on `at`.
    pub(crate) fn of(at: &Path) -> Self {
        use std::os::unix::process::CommandExt;
        let child = Command::new("sh")
            .args(["-c", WATCH, "guard", &std::process::id().to_string()])
            .arg(at)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Whoever kills our process group doesn't mean it.
            .process_group(0)
            .spawn();
        Self(child.expect("sh"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How to mount: by the transport that `YADOKARI_FUSE_TRANSPORT` names, so that all of
/// these tests can be run with each, and passing files through if
/// `YADOKARI_FUSE_PASSTHROUGH` is 1.
pub(crate) fn options() -> MountOptions {
    let name = std::env::var("YADOKARI_FUSE_TRANSPORT").unwrap_or_else(|_| "auto".to_owned());
    let transport = Transport::named(&name).expect("auto, device, ring or fuser");
    let passthrough = std::env::var("YADOKARI_FUSE_PASSTHROUGH").is_ok_and(|value| value == "1");
    MountOptions { transport, passthrough, ..MountOptions::default() }
}

const ELSEWHERE: &str = "YADOKARI_ELSEWHERE";

/// Where [`Both::same_elsewhere`] wants the test to work that runs in this process.
pub(crate) fn elsewhere() -> Option<PathBuf> {
    std::env::var_os(ELSEWHERE).map(PathBuf::from)
}

/// A mounted overlay, and a plain directory.
pub(crate) struct Both {
    pub(crate) overlay: Arc<Overlay>,
    session: Option<Session>,
    options: MountOptions,
    place: tempfile::TempDir,
    /// Dropped last.
    _guard: Guard,
}

impl Both {
    /// Nothing in either; `None`, said aloud, where nothing can be mounted and
    /// `YADOKARI_REQUIRE` doesn't ask for it.
    pub(crate) fn new() -> Option<Self> {
        Self::over(Vec::new())
    }

    /// An overlay over `lowers`.
    pub(crate) fn over(lowers: Vec<Lower>) -> Option<Self> {
        Self::with(options(), lowers)
    }

    /// An overlay over `lowers`, spoken to by `transport`.
    pub(crate) fn by(transport: Transport, lowers: Vec<Lower>) -> Option<Self> {
        Self::with(MountOptions { transport, ..options() }, lowers)
    }

    /// An overlay over `lowers`, mounted as `options` say.
    pub(crate) fn with(options: MountOptions, lowers: Vec<Lower>) -> Option<Self> {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().expect("a directory");
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        for name in ["ours", "plain", "scratch"] {
            fs::create_dir(place.path().join(name)).expect("a directory");
        }
        let overlay = Overlay::new(lowers, &place.path().join("scratch")).expect("an overlay");
        let guard = Guard::of(&place.path().join("ours"));
        let mut both = Self { overlay, session: None, options, place, _guard: guard };
        match both.mount() {
            Ok(()) => Some(both),
            Err(
                error @ (MountError::NoDevice(_)
                | MountError::DeviceRefused(_)
                | MountError::NotPermitted(_)),
            ) => {
                let required = std::env::var("YADOKARI_REQUIRE").unwrap_or_default();
                assert!(!required.split(',').any(|need| need == "fuse"), "{error}");
                eprintln!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn mount(&mut self) -> Result<(), MountError> {
        self.session = Some(self.overlay.mount(&self.ours(), self.options)?);
        Ok(())
    }

    /// Unmounts and mounts again: the kernel's caches hide what a filesystem forgot.
    pub(crate) fn remount(&mut self) {
        self.session.take().expect("mounted").unmount().expect("unmounted");
        self.mount().expect("mounted again");
    }

    /// Mounts an overlay over `lowers` in place of the one that was there.
    pub(crate) fn start_over(&mut self, lowers: Vec<Lower>) {
        self.session.take().expect("mounted").unmount().expect("unmounted");
        self.overlay = Overlay::new(lowers, &self.scratch()).expect("an overlay");
        self.mount().expect("mounted again");
    }

    pub(crate) fn session(&self) -> &Session {
        self.session.as_ref().expect("mounted")
    }

    /// The mount.
    pub(crate) fn ours(&self) -> PathBuf {
        self.place.path().join("ours")
    }

    /// The plain directory.
    pub(crate) fn plain(&self) -> PathBuf {
        self.place.path().join("plain")
    }

    /// Where the overlay writes to, on the filesystem of the plain directory.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.place.path().join("scratch")
    }

    /// Has the test `name` begin again in a process of its own for each of the two; it
    /// finds the place by [`elsewhere`]. For whatever makes mappings: see `mapper.rs`.
    pub(crate) fn same_elsewhere(&self, name: &str) {
        for at in [self.ours(), self.plain()] {
            let program = std::env::current_exe().expect("this program");
            let output = Command::new(program)
                .args(["--exact", name, "--nocapture", "--test-threads=1"])
                .env(ELSEWHERE, &at)
                .output()
                .expect("this program");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && said.contains("1 passed"),
                "{}: {said}{}",
                at.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }

    /// Does the same in both and demands the same answer.
    #[track_caller]
    pub(crate) fn same<T: PartialEq + std::fmt::Debug>(&self, body: impl Fn(&Path) -> T) -> T {
        let (ours, plain) = (body(&self.ours()), body(&self.plain()));
        assert_eq!(ours, plain, "left: in the mount, right: in a plain directory");
        ours
    }
}
