//! POSIX ACLs, as far as they are the mode of a file.
//!
//! Three entries of an access ACL are the permissions of owner, group and others; with a
//! mask, that is what the group's bits show. Programs set one on files that need none:
//! libacl makes it up of a mode, and `cp -p`, `install` and `sed -i` give a file its mode by
//! nothing else. Entries for other users and groups are kept and not enforced, and a default
//! ACL isn't inherited.
//!
//! References: acl(5), include/uapi/linux/posix_acl_xattr.h, `posix_acl_equiv_mode` and
//! `posix_acl_chmod` in fs/posix_acl.c.

/// The attribute that holds the access ACL.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds what new entries of a directory get.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: [u8; 4] = 2_u32.to_le_bytes();
/// Bytes of tag, permissions and id.
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: [u8; 4],
}

/// An access ACL.
#[derive(Clone, Debug)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// Reads the value of an attribute; `None` if it is no valid access ACL. An ACL
    /// without entries is valid and means that there is none.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let entries = value.strip_prefix(&VERSION)?.chunks(ENTRY).map(|bytes| {
            let bytes = <[u8; ENTRY]>::try_from(bytes).ok()?;
            let [tag, tag_high, permissions, permissions_high, id @ ..] = bytes;
            let tag = u16::from_le_bytes([tag, tag_high]);
            let permissions = u16::from_le_bytes([permissions, permissions_high]);
            let is_known = [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(&tag);
            (is_known && permissions <= 7).then_some(Entry { tag, permissions, id })
        });
        let acl = Self(entries.collect::<Option<_>>()?);
        let has = |tag| acl.get(tag).is_some();
        let needs_mask = has(USER) || has(GROUP);
        let is_whole = has(USER_OBJ) && has(GROUP_OBJ) && has(OTHER) && (has(MASK) || !needs_mask);
        (acl.is_empty() || is_whole).then_some(acl)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it says no more than a mode does.
    pub(super) fn is_only_mode(&self) -> bool {
        self.0.iter().all(|entry| [USER_OBJ, GROUP_OBJ, OTHER].contains(&entry.tag))
    }

    /// The permission bits of a file that has it.
    pub(super) fn mode(&self) -> u16 {
        let bits = |tag| self.get(tag).unwrap_or_default();
        let group = self.get(MASK).unwrap_or(bits(GROUP_OBJ));
        bits(USER_OBJ) << 6 | group << 3 | bits(OTHER)
    }

    /// What chmod(2) makes of it.
    pub(super) fn set_mode(&mut self, mode: u16) {
        let group = if self.get(MASK).is_some() { MASK } else { GROUP_OBJ };
        for entry in &mut self.0 {
            match entry.tag {
                USER_OBJ => entry.permissions = mode >> 6 & 7,
                OTHER => entry.permissions = mode & 7,
                tag if tag == group => entry.permissions = mode >> 3 & 7,
                _ => {}
            }
        }
    }

    /// The value of the attribute.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut value = VERSION.to_vec();
        for Entry { tag, permissions, id } in &self.0 {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id);
        }
        value
    }

    fn get(&self, tag: u16) -> Option<u16> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions)
    }
}
