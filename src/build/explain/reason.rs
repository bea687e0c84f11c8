//! Why a step isn't taken from the cache, as a value.

use std::fmt;

use serde::Serialize;

/// A value of a variable or field, fit to be shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum Shown {
    /// As it is, or its beginning when it is long.
    Clear(String),
    /// It looks like a secret: only that it changed is known.
    Hidden(Hidden),
}

/// Stands for a value that isn't shown; in JSON `{"hidden": true}`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Hidden {
    /// Always true.
    pub hidden: bool,
}

impl Shown {
    /// A value that isn't shown.
    pub const HIDDEN: Self = Self::Hidden(Hidden { hidden: true });
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clear(text) if text.is_empty() => f.write_str("\"\""),
            Self::Clear(text) => f.write_str(&one_line(text)),
            Self::Hidden(_) => f.write_str("(hidden)"),
        }
    }
}

/// How a file that a step reads differs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum FileChange {
    /// It wasn't there.
    Added,
    /// It is no longer there.
    Removed,
    /// It was there under another name.
    Renamed {
        /// The former name.
        from: String,
    },
    /// Its bytes, its link's target or its device number.
    Content,
    /// Its permissions.
    Mode {
        /// The former ones, in octal.
        old: String,
        /// Those it has now, in octal.
        new: String,
    },
    /// It was a file and is a link, and the like.
    Kind,
    /// Its owner or group.
    Owner,
}

impl fmt::Display for FileChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added => f.write_str("added"),
            Self::Removed => f.write_str("removed"),
            Self::Renamed { from } => write!(f, "renamed from {from}"),
            Self::Content => f.write_str("content changed"),
            Self::Mode { old, new } => write!(f, "mode {old} → {new}"),
            Self::Kind => f.write_str("type changed"),
            Self::Owner => f.write_str("owner changed"),
        }
    }
}

/// One reason why a step isn't taken from the cache; a step may have several.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MissReason {
    /// A flag says so.
    Forced {
        /// Which.
        flag: String,
    },
    /// No such step was ever built, as far as is known.
    NeverBuilt {
        /// It was, but not on these layers.
        elsewhere: bool,
    },
    /// It was built, and is no longer in the cache.
    Evicted,
    /// Another base image.
    BaseChanged {
        /// The former one: name, or digest where the name is the same.
        old: String,
        /// The one it is now.
        new: String,
        /// Its name where that is the same.
        name: Option<String>,
    },
    /// What the step stands on changed first.
    ParentChanged {
        /// The step, stage or base that did, as the progress shows it.
        step: String,
    },
    /// The instruction itself.
    InstructionChanged {
        /// The former one.
        old: Shown,
        /// The one it is now.
        new: Shown,
    },
    /// A variable that the step can see.
    VariableChanged {
        /// `ARG` or `ENV`.
        variable: String,
        /// Its name.
        name: String,
        /// Former value; `None` when it had none.
        old: Option<Shown>,
        /// Value now; `None` when it has none.
        new: Option<Shown>,
    },
    /// Another field of the key: directory, user, platform, a mount …
    FieldChanged {
        /// Which.
        field: String,
        /// Former value; `None` when there was none.
        old: Option<Shown>,
        /// Value now; `None` when there is none.
        new: Option<Shown>,
    },
    /// A file that the step reads.
    FileChanged {
        /// Its path in the build context, stage or image.
        path: String,
        /// How.
        #[serde(flatten)]
        change: FileChange,
    },
    /// Files that the step reads: further ones than are listed, or some that are not
    /// known one by one.
    FilesChanged {
        /// How many; `None` when that isn't known.
        count: Option<usize>,
    },
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forced { flag } => write!(f, "forced by {flag}"),
            Self::NeverBuilt { elsewhere: false } => f.write_str("not in cache: never built"),
            Self::NeverBuilt { elsewhere: true } => {
                f.write_str("not in cache: never built on these layers")
            }
            Self::Evicted => f.write_str("evicted: it was built and is no longer in the cache"),
            Self::BaseChanged { old, new, name: Some(name) } => {
                write!(f, "base image {name}: digest {old} → {new}")
            }
            Self::BaseChanged { old, new, name: None } => write!(f, "base image: {old} → {new}"),
            Self::ParentChanged { step } => write!(f, "parent step changed: {}", one_line(step)),
            Self::InstructionChanged { old, new } => {
                write!(f, "instruction changed: {old} → {new}")
            }
            Self::VariableChanged { variable, name, old, new } => {
                change(f, &format!("{variable} {name}"), old.as_ref(), new.as_ref())
            }
            Self::FieldChanged { field, old, new } => change(f, field, old.as_ref(), new.as_ref()),
            Self::FileChanged { path, change } => write!(f, "{}: {change}", one_line(path)),
            Self::FilesChanged { count: Some(count) } => write!(f, "{count} more files changed"),
            Self::FilesChanged { count: None } => f.write_str("files changed"),
        }
    }
}

fn change(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    old: Option<&Shown>,
    new: Option<&Shown>,
) -> fmt::Result {
    match (old, new) {
        (Some(Shown::Hidden(_)), Some(Shown::Hidden(_))) => {
            write!(f, "{what}: changed (its value is hidden)")
        }
        (Some(old), Some(new)) => write!(f, "{what}: {old} → {new}"),
        (None, Some(new)) => write!(f, "{what}: none → {new}"),
        (Some(old), None) => write!(f, "{what}: {old} → none"),
        (None, None) => write!(f, "{what}: changed"),
    }
}

/// `text` without line breaks and other control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_the_documentation_says() {
        let clear = |text: &str| Some(Shown::Clear(text.to_owned()));
        let said = |reason: MissReason| reason.to_string();
        let file = |change| MissReason::FileChanged { path: "src/app.py".to_owned(), change };
        assert_eq!(said(file(FileChange::Content)), "src/app.py: content changed");
        let arg = MissReason::VariableChanged {
            variable: "ARG".to_owned(),
            name: "VERSION".to_owned(),
            old: clear("1.2"),
            new: clear("1.3"),
        };
        assert_eq!(said(arg), "ARG VERSION: 1.2 → 1.3");
        let base = MissReason::BaseChanged {
            old: "sha256:a".to_owned(),
            new: "sha256:b".to_owned(),
            name: Some("debian:bookworm".to_owned()),
        };
        assert_eq!(said(base), "base image debian:bookworm: digest sha256:a → sha256:b");
        let never = MissReason::NeverBuilt { elsewhere: false };
        assert_eq!(said(never), "not in cache: never built");
        let token = MissReason::VariableChanged {
            variable: "ARG".to_owned(),
            name: "TOKEN".to_owned(),
            old: Some(Shown::HIDDEN),
            new: Some(Shown::HIDDEN),
        };
        assert_eq!(said(token.clone()), "ARG TOKEN: changed (its value is hidden)");
        let json = serde_json::to_value(&token).unwrap();
        assert_eq!(json["kind"], "variable_changed");
        assert_eq!(json["old"]["hidden"], true);
        let json = serde_json::to_value(file(FileChange::Content)).unwrap();
        assert_eq!((&json["path"], &json["change"]), (&"src/app.py".into(), &"content".into()));
    }
}
