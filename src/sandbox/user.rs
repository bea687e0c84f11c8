//! Users and groups of the image: what USER and `--chown` mean.
//!
//! The image's own passwd(5) and group(5) are read as bytes, without libc: what
//! the builder's machine calls its users is of no interest. Lines that don't
//! parse are skipped, as runc does.

use serde::Deserialize;
use serde::Serialize;

/// The highest id that a Dockerfile may name, as runc has it.
const MAX_ID: u32 = i32::MAX as u32;

/// Who runs a process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups in the order of the group file; without the primary
    /// one unless the file lists the user there.
    pub groups: Vec<u32>,
    /// Home directory; `/` if unknown.
    pub home: String,
    /// Name if there is one, else the number.
    pub name: String,
}

impl User {
    /// Root of an image without a passwd file that says otherwise.
    pub fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new(), home: "/root".to_owned(), name: "root".into() }
    }
}

/// A user or group that the image doesn't have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name without an entry in passwd.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// A name without an entry in group.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// A number above 2147483647.
    #[error("uids and gids must be in range 0-2147483647: {0}")]
    OutOfRange(String),
}

/// The user that `user`, as USER wrote it, means in an image with these `passwd`
/// and `group` files (empty if the image lacks them).
///
/// | `user` | gid | supplementary groups |
/// | --- | --- | --- |
/// | empty | root's | root's |
/// | name, or number with an entry | the entry's | those that list the name |
/// | number without an entry | 0 | none |
/// | `u:g` | g | none |
///
/// HOME is the entry's, `/` without one.
///
/// # Errors
/// A name that isn't found; a number out of range.
pub fn resolve(user: &str, passwd: &[u8], group: &[u8]) -> Result<User, Error> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = parse_id(user)?;
    let entry = accounts(passwd).find(|account| match number {
        Some(uid) => account.uid == uid,
        None => account.name == user.as_bytes(),
    });
    let mut resolved = match (&entry, number) {
        (Some(entry), _) => User {
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            home: text(entry.home),
            name: text(entry.name),
        },
        (None, Some(uid)) => {
            User { uid, gid: 0, groups: Vec::new(), home: String::new(), name: user.to_owned() }
        }
        (None, None) => return Err(Error::UnknownUser(user.to_owned())),
    };
    if resolved.home.is_empty() {
        resolved.home = "/".to_owned();
    }
    match (wanted_group, entry) {
        (Some(wanted), _) => resolved.gid = find_group(wanted, group)?,
        (None, Some(entry)) => {
            resolved.groups = groups(group)
                .filter(|group| group.members.split(|&byte| byte == b',').any(|m| m == entry.name))
                .map(|group| group.gid)
                .collect();
        }
        (None, None) => {}
    }
    Ok(resolved)
}

fn find_group(wanted: &str, group: &[u8]) -> Result<u32, Error> {
    match parse_id(wanted)? {
        Some(gid) => Ok(gid),
        None => groups(group)
            .find(|group| group.name == wanted.as_bytes())
            .map(|group| group.gid)
            .ok_or_else(|| Error::UnknownGroup(wanted.to_owned())),
    }
}

/// The owner that `--chown=spec` means: (uid, gid). A name alone brings its
/// primary group, a number alone the same number as group; a name that the
/// image doesn't have is silently 0, as in BuildKit.
///
/// # Errors
/// [`Error::OutOfRange`] alone.
pub fn chown(spec: &str, passwd: &[u8], group: &[u8]) -> Result<(u32, u32), Error> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let (uid, mut gid) = match parse_id(user)? {
        Some(id) => (id, id),
        None => accounts(passwd)
            .find(|account| account.name == user.as_bytes())
            .map_or((0, 0), |account| (account.uid, account.gid)),
    };
    if let Some(wanted) = wanted_group {
        match find_group(wanted, group) {
            Ok(found) => gid = found,
            Err(Error::UnknownGroup(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((uid, gid))
}

/// The name of a user in a passwd file.
pub(super) fn name_of(uid: u32, passwd: &[u8]) -> Option<String> {
    accounts(passwd).find(|account| account.uid == uid).map(|account| text(account.name))
}

/// `Some` for a number, `None` for a name.
fn parse_id(text: &str) -> Result<Option<u32>, Error> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(Error::OutOfRange(text.to_owned())),
    }
}

/// A line of passwd(5): `name:password:uid:gid:comment:home:shell`.
struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// A line of group(5): `name:password:gid:member,member`.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .map(|line| line.split(|&byte| byte == b':').collect())
}

fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|fields| {
        Some(Account {
            name: fields.first().copied().filter(|name| !name.is_empty())?,
            uid: decimal(fields.get(2)?)?,
            gid: decimal(fields.get(3)?)?,
            home: fields.get(5).copied().unwrap_or_default(),
        })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|fields| {
        Some(Group {
            name: fields.first().copied().filter(|name| !name.is_empty())?,
            gid: decimal(fields.get(2)?)?,
            members: fields.get(3).copied().unwrap_or_default(),
        })
    })
}

fn decimal(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\ngarbage\nbad:x:minus:1::/bad:\nshort:x:7:8\n\
        bob:x:1500:1600:Bob:/home/bob:/bin/sh\nnohome:x:9:9:::\n";
    const GROUP: &[u8] = b"root:x:0:root\n:x:3:bob\nwheel:x:10:alice,bob\nbob:x:1600:\n\
        audio:x:29:bobby\ndocker:x:99:bob\nbroken:x:\xff:bob\n";

    fn user(text: &str) -> (u32, u32, Vec<u32>, String) {
        let user = resolve(text, PASSWD, GROUP).expect("resolves");
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn user_brings_groups_and_home_by_dockers_rules() {
        let home = "/home/bob".to_owned();
        assert_eq!(user("bob"), (1500, 1600, vec![10, 99], home.clone()));
        assert_eq!(user("1500"), (1500, 1600, vec![10, 99], home.clone()));
        assert_eq!(user("bob:wheel"), (1500, 10, vec![], home.clone()));
        assert_eq!(user("bob:4000"), (1500, 4000, vec![], home.clone()));
        assert_eq!(user("1500:2"), (1500, 2, vec![], home));
        assert_eq!(user("7777"), (7777, 0, vec![], "/".to_owned()));
        assert_eq!(user("7777:5"), (7777, 5, vec![], "/".to_owned()));
        assert_eq!(user(""), (0, 0, vec![0], "/root".to_owned()));
        assert_eq!(user("short"), (7, 8, vec![], "/".to_owned()));
        assert_eq!(user("nohome"), (9, 9, vec![], "/".to_owned()));
    }

    #[test]
    fn what_the_image_lacks_is_an_error_for_user_only() {
        let error = |text: &str| resolve(text, PASSWD, GROUP).expect_err("fails").to_string();
        assert_eq!(
            error("nosuch"),
            "unable to find user nosuch: no matching entries in passwd file"
        );
        assert_eq!(
            error("bob:nosuch"),
            "unable to find group nosuch: no matching entries in group file"
        );
        assert_eq!(error("bad"), "unable to find user bad: no matching entries in passwd file");
        assert!(error("4294967295").contains("range"));
        let lone = resolve("", b"", b"").expect("root needs no file");
        assert_eq!((lone.uid, lone.gid, lone.home.as_str()), (0, 0, "/"));
        assert_eq!(chown("nosuch", PASSWD, GROUP), Ok((0, 0)));
    }

    #[test]
    fn chown_takes_the_primary_group_or_the_number() {
        assert_eq!(chown("bob", PASSWD, GROUP), Ok((1500, 1600)));
        assert_eq!(chown("55", PASSWD, GROUP), Ok((55, 55)));
        assert_eq!(chown("1500", PASSWD, GROUP), Ok((1500, 1500)));
        assert_eq!(chown("55:66", PASSWD, GROUP), Ok((55, 66)));
        assert_eq!(chown("bob:wheel", PASSWD, GROUP), Ok((1500, 10)));
        assert_eq!(chown("55:nosuch", PASSWD, GROUP), Ok((55, 55)));
        assert_eq!(chown("nosuch:wheel", PASSWD, GROUP), Ok((0, 10)));
    }
}
