//! WORKDIR: the directory and its missing parents, owned by the current user.

use super::Error;
use super::copy::make_directories;
use super::ownership::Accounts;
use crate::overlay::Attributes;
use crate::overlay::Overlay;
use crate::path::RootPath;
use crate::tree::Timestamp;

/// Makes `path` where it is missing; what is there stays untouched.
///
/// # Errors
/// [`Error::Ownership`] for an unknown user, [`Error::DirectoryOverFile`] when
/// something on the way is no directory.
pub fn workdir(root: &Overlay, path: &str, user: &str, now: Timestamp) -> Result<(), Error> {
    let user = Accounts::read(&*root.after())?.user(user)?;
    let attributes = Attributes { mode: 0o755, uid: user.uid, gid: user.gid, mtime: now };
    let path = RootPath::clamped(path.as_bytes()).unwrap_or_default();
    make_directories(root, &path, &attributes).map(drop)
}
