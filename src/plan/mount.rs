//! The values of `RUN --mount`: comma-separated `key=value` fields, read as Go's
//! CSV reader does, then checked key by key.

use super::directory;
use super::named::Contexts;
use super::stage;
use super::stage::Stage;
use super::step::Mount;
use super::step::MountKind;
use super::step::Origin;
use super::step::Sharing;
use super::suggest;
use crate::path::RootPath;

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
const KEYS: [&str; 18] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "mode",
    "uid",
    "gid",
    "size",
];
/// Keys of secrets alone.
const ENV: &str = "env";
/// Permission bits with setuid, setgid and sticky.
const MODE_MAX: u32 = 0o7777;

/// What is wrong with a mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// What.
    pub(super) message: String,
    /// What may have been meant.
    pub(super) hint: Option<String>,
}

impl From<String> for Wrong {
    fn from(message: String) -> Self {
        Self { message, hint: None }
    }
}

/// One field: the key in lower case, the value not yet expanded.
pub(super) type Field = (String, Option<String>);

/// Splits a mount's text into its fields.
///
/// # Errors
/// Misplaced quotes, nothing at all.
pub(super) fn fields(text: &str) -> Result<Vec<Field>, String> {
    let fields = split(text)?;
    Ok(fields
        .into_iter()
        .map(|field| match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value.to_owned())),
            None => (field.to_lowercase(), None),
        })
        .collect())
}

/// One record of CSV (RFC 4180, as Go's encoding/csv reads it).
fn split(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Err("the mount is empty".to_owned());
    }
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        if let Some(mut quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            loop {
                let Some((part, after)) = quoted.split_once('"') else {
                    return Err(format!("a quote in `{text}` isn't closed"));
                };
                field.push_str(part);
                match after.strip_prefix('"') {
                    Some(more) => {
                        field.push('"');
                        quoted = more;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
            fields.push(field);
            match rest.strip_prefix(',') {
                Some(after) => rest = after,
                None if rest.is_empty() => return Ok(fields),
                None => {
                    return Err(format!("in `{text}` a closing quote isn't followed by a comma"));
                }
            }
        } else {
            let (field, after) = match rest.split_once(',') {
                Some((field, after)) => (field, Some(after)),
                None => (rest, None),
            };
            if field.contains('"') {
                return Err(format!(
                    "in `{text}` a quote stands inside a field; quote the whole field"
                ));
            }
            fields.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Ok(fields),
            }
        }
    }
}

/// What `from` of the mount names, before anything is expanded. `None` if it
/// names nothing, or the text is wrong (which shows when the mount is placed).
pub(super) fn origin_name(text: &str) -> Option<String> {
    let fields = fields(text).ok()?;
    let is_type =
        |wanted: &str| last(&fields, "type").is_some_and(|kind| kind.eq_ignore_ascii_case(wanted));
    if ["tmpfs", "secret", "ssh"].into_iter().any(is_type) {
        return None;
    }
    last(&fields, "from").filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Whether the mount shows files of the build context.
pub(super) fn reads_context(text: &str) -> bool {
    let Ok(fields) = fields(text) else { return false };
    let is_bind = last(&fields, "type")
        .is_none_or(|kind| !TYPES[1..].contains(&kind.to_lowercase().as_str()));
    is_bind && last(&fields, "from").is_none_or(str::is_empty)
}

fn last<'a>(fields: &'a [Field], key: &str) -> Option<&'a str> {
    fields.iter().rev().find(|(known, _)| known == key).and_then(|(_, value)| value.as_deref())
}

/// What a mount may refer to.
pub(super) struct Surroundings<'a> {
    /// All stages, for `from`.
    pub(super) stages: &'a [Stage],
    /// What else it may name.
    pub(super) contexts: &'a Contexts,
    /// WORKDIR in force, absolute.
    pub(super) directory: &'a str,
    /// BUILDKIT_CACHE_MOUNT_NS: goes in front of cache ids.
    pub(super) namespace: Option<&'a str>,
}

/// The fields of a mount, read.
#[derive(Default)]
struct Keys {
    from: Option<String>,
    source: Option<String>,
    target: Option<String>,
    read_only: Option<bool>,
    id: Option<String>,
    sharing: Option<Sharing>,
    required: Option<bool>,
    mode: Option<u16>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    env: Option<String>,
}

/// Makes a mount of fields whose values are expanded.
///
/// # Errors
/// What is wrong: an unknown key or type, a key that the type doesn't have, a bad
/// value.
pub(super) fn build(fields: &[Field], around: &Surroundings<'_>) -> Result<Mount, Wrong> {
    let given = last(fields, "type").unwrap_or("bind");
    let kind = given.to_lowercase();
    if !TYPES.contains(&kind.as_str()) {
        return Err(Wrong {
            message: format!("`{given}` is no type of mount: {} are known", TYPES.join(", ")),
            hint: suggest::hint(given, TYPES),
        });
    }
    let mut keys = Keys::default();
    for (key, value) in fields {
        keys.read(key, value.as_deref())?;
    }
    keys.check(&kind)?;
    match kind.as_str() {
        "bind" => keys.bind(around),
        "cache" => keys.cache(around),
        "tmpfs" => keys.tmpfs(around),
        "ssh" => keys.ssh(around),
        _ => keys.secret(around),
    }
}

impl Keys {
    fn read(&mut self, key: &str, value: Option<&str>) -> Result<(), Wrong> {
        let wrong = |what: &str| {
            let value = value.unwrap_or_default();
            Wrong::from(format!("`{value}` is wrong for `{key}`: {what} is expected"))
        };
        let flag = || match value {
            None => Ok(true),
            Some(value) => parse_bool(value).ok_or_else(|| wrong("true or false")),
        };
        let text = || {
            value.map(str::to_owned).ok_or_else(|| Wrong {
                message: format!("`{key}` must be key=value"),
                hint: suggest::hint(key, KEYS.into_iter().chain([ENV])),
            })
        };
        match key {
            "type" => {
                text()?;
            }
            "from" => self.from = Some(text()?).filter(|name| !name.is_empty()),
            "source" | "src" => self.source = Some(text()?).filter(|path| !path.is_empty()),
            "target" | "dst" | "destination" => {
                self.target = Some(text()?).filter(|path| !path.is_empty());
            }
            "readonly" | "ro" => self.read_only = Some(flag()?),
            "readwrite" | "rw" => self.read_only = Some(!flag()?),
            "id" => self.id = Some(text()?).filter(|id| !id.is_empty()),
            "sharing" => {
                self.sharing = Some(match text()?.to_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => return Err(wrong("shared, private or locked")),
                });
            }
            "required" => self.required = Some(flag()?),
            "mode" => {
                let mode = u32::from_str_radix(&text()?, 8).ok().filter(|mode| *mode <= MODE_MAX);
                let mode = mode.and_then(|mode| u16::try_from(mode).ok());
                self.mode = Some(mode.ok_or_else(|| wrong("an octal number up to 7777"))?);
            }
            "uid" => self.uid = Some(text()?.parse().map_err(|_| wrong("a number"))?),
            "gid" => self.gid = Some(text()?.parse().map_err(|_| wrong("a number"))?),
            "size" => {
                self.size = Some(parse_size(&text()?).ok_or_else(|| wrong("a size such as 100m"))?);
            }
            ENV => {
                let name = text()?;
                if name.is_empty() || name.contains(['=', '\0']) {
                    return Err(wrong("the name of a variable"));
                }
                self.env = Some(name);
            }
            _ => {
                let known = KEYS.join(", ");
                return Err(Wrong {
                    message: format!("`{key}` is no key of a mount: {known}, {ENV} are known"),
                    hint: suggest::hint(key, KEYS.into_iter().chain([ENV])),
                });
            }
        }
        Ok(())
    }

    /// Refuses keys that the type doesn't have; like BuildKit, lets those pass that
    /// merely mean nothing (`from` of a tmpfs, `id` of a bind).
    fn check(&self, kind: &str) -> Result<(), Wrong> {
        let (secret, cache) = (kind == "secret", kind == "cache");
        let owned = secret || cache || kind == "ssh";
        for (key, given, allowed) in [
            ("mode", self.mode.is_some(), owned),
            ("uid", self.uid.is_some(), owned),
            ("gid", self.gid.is_some(), owned),
            ("sharing", self.sharing.is_some(), cache),
            ("required", self.required.is_some(), secret || kind == "ssh"),
            ("size", self.size.is_some(), kind == "tmpfs"),
            ("env", self.env.is_some(), secret),
            ("from", self.from.is_some(), !secret && kind != "ssh"),
        ] {
            if given && !allowed {
                return Err(format!("`{key}` is no key of a mount of type {kind}").into());
            }
        }
        Ok(())
    }

    fn target(&self, around: &Surroundings<'_>) -> Result<String, Wrong> {
        let given = self.target.as_deref().unwrap_or_default();
        match directory::join(around.directory, given).as_deref() {
            None => Err("the target holds a NUL byte".to_owned().into()),
            Some("/") => Err("a mount can't have `/` as its target".to_owned().into()),
            Some(target) => Ok(target.to_owned()),
        }
    }

    /// `source`, clean and relative; empty for the root.
    fn source(&self) -> Result<String, Wrong> {
        let given = self.source.as_deref().unwrap_or_default();
        let path = RootPath::clamped(given.as_bytes())
            .ok_or_else(|| Wrong::from("the source holds a NUL byte".to_owned()))?;
        Ok(path.to_string().trim_start_matches('/').to_owned())
    }

    fn origin(&self, around: &Surroundings<'_>) -> Result<Option<Origin>, Wrong> {
        let Some(from) = &self.from else { return Ok(None) };
        Ok(Some(stage::named(around.stages, around.contexts, from)?.into()))
    }

    fn bind(&self, around: &Surroundings<'_>) -> Result<Mount, Wrong> {
        let kind = MountKind::Bind {
            origin: self.origin(around)?.unwrap_or(Origin::Context),
            source: self.source()?,
            writable: !self.read_only.unwrap_or(true),
        };
        Ok(Mount { target: self.target(around)?, kind })
    }

    fn cache(&self, around: &Surroundings<'_>) -> Result<Mount, Wrong> {
        let from = match self.origin(around)? {
            Some(Origin::Scratch) | None if self.source.is_some() => {
                return Err("`source` of a cache mount needs a `from`".to_owned().into());
            }
            Some(Origin::Scratch) | None => None,
            Some(origin) => Some((origin, self.source()?)),
        };
        let id = self
            .id
            .clone()
            .unwrap_or_else(|| directory::clean(self.target.as_deref().unwrap_or_default()));
        let kind = MountKind::Cache {
            id: around.namespace.map_or_else(|| id.clone(), |space| format!("{space}/{id}")),
            sharing: self.sharing.unwrap_or_default(),
            read_only: self.read_only.unwrap_or(false),
            from,
            mode: self.mode.unwrap_or(0o755),
            uid: self.uid.unwrap_or(0),
            gid: self.gid.unwrap_or(0),
        };
        Ok(Mount { target: self.target(around)?, kind })
    }

    fn tmpfs(&self, around: &Surroundings<'_>) -> Result<Mount, Wrong> {
        let kind = MountKind::Tmpfs { size: self.size.filter(|size| *size > 0) };
        Ok(Mount { target: self.target(around)?, kind })
    }

    fn secret(&self, around: &Surroundings<'_>) -> Result<Mount, Wrong> {
        let id = match (&self.source, &self.id, &self.target) {
            (Some(_), Some(_), _) => {
                return Err("a secret has either `id` or `source`".to_owned().into());
            }
            (Some(id), None, _) | (None, Some(id), _) => id.clone(),
            (None, None, Some(target)) => directory::base_name(target).to_owned(),
            (None, None, None) => {
                return Err("a secret needs an `id`, a `source` or a `target`".to_owned().into());
            }
        };
        let target = match (&self.target, &self.env) {
            (Some(_), _) => self.target(around)?,
            (None, Some(_)) => String::new(),
            (None, None) => format!("/run/secrets/{}", directory::base_name(&id)),
        };
        let kind = MountKind::Secret {
            id,
            file: !target.is_empty(),
            env: self.env.clone(),
            required: self.required.unwrap_or(false),
            mode: self.mode.unwrap_or(0o400),
            uid: self.uid.unwrap_or(0),
            gid: self.gid.unwrap_or(0),
        };
        Ok(Mount { target, kind })
    }

    /// A mount without a target gets one from its place among the ssh mounts of the RUN.
    fn ssh(&self, around: &Surroundings<'_>) -> Result<Mount, Wrong> {
        if self.source.is_some() && self.id.is_some() {
            return Err("an ssh mount has either `id` or `source`".to_owned().into());
        }
        let target = match &self.target {
            Some(_) => self.target(around)?,
            None => String::new(),
        };
        let id = self.id.clone().or_else(|| self.source.clone());
        let kind = MountKind::Ssh {
            id: id.unwrap_or_else(|| "default".to_owned()),
            required: self.required.unwrap_or(false),
            mode: self.mode.unwrap_or(0o600),
            uid: self.uid.unwrap_or(0),
            gid: self.gid.unwrap_or(0),
        };
        Ok(Mount { target, kind })
    }
}

/// `strconv.ParseBool`.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A size in bytes as `units.RAMInBytes` reads it: `100`, `64m`, `1.5 GiB`; powers of
/// 1024. `None` for anything else.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit = text[digits.len()..].trim_start_matches(' ').to_ascii_lowercase();
    let power = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return None,
    };
    let scale = 1_u64 << (10 * power);
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return digits.parse::<u64>().ok()?.checked_mul(scale);
    }
    if !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let bytes = digits.parse::<f64>().ok()? * scale as f64;
    // Below 2^53 the conversion is exact; nobody limits a tmpfs beyond.
    (bytes < 9e15).then_some(bytes as u64)
}

#[cfg(test)]
mod tests;
