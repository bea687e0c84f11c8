//! `--chown` and `--chmod`.

use super::Error;
use crate::path::RootPath;
use crate::sandbox::user;
use crate::tree::Tree;
use crate::tree::resolve::read_file;

/// Largest `/etc/passwd` and `/etc/group` that are read, in bytes.
const ACCOUNT_FILE_LIMIT: u64 = 8 << 20;

/// The account files of a root, empty where it has none.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Accounts {
    /// Bytes of `/etc/passwd`.
    pub passwd: Vec<u8>,
    /// Bytes of `/etc/group`.
    pub group: Vec<u8>,
}

impl Accounts {
    /// Reads them from `tree`.
    ///
    /// # Errors
    /// Those of reading the tree.
    pub fn read(tree: &dyn Tree) -> Result<Self, Error> {
        let read = |path: &'static str| {
            let at = RootPath::clamped(path.as_bytes()).unwrap_or_default();
            read_file(tree, &at, ACCOUNT_FILE_LIMIT)
                .map_err(Error::io("read", path))
                .map(Option::unwrap_or_default)
        };
        Ok(Self { passwd: read("/etc/passwd")?, group: read("/etc/group")? })
    }

    /// Owner and group that `--chown=spec` means; an unknown name is 0:0.
    ///
    /// # Errors
    /// [`Error::Ownership`] for a number that is out of range.
    pub fn owner(&self, spec: &str) -> Result<(u32, u32), Error> {
        user::chown(spec, &self.passwd, &self.group)
            .map_err(|error| Error::Ownership(error.to_string()))
    }

    /// The user that `USER spec` means.
    ///
    /// # Errors
    /// [`Error::Ownership`] when a name isn't in the account files.
    pub fn user(&self, spec: &str) -> Result<user::User, Error> {
        user::resolve(spec, &self.passwd, &self.group)
            .map_err(|error| Error::Ownership(error.to_string()))
    }
}

/// A parsed `--chmod`: octal, or BSD symbolic (`u=rwX,go=rX`, `+x`, `g=u`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The mode itself.
    Octal(u16),
    /// Clauses applied to a file's own mode.
    Symbolic(Vec<Clause>),
}

/// One clause of a symbolic mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clause {
    /// Whose bits: mask over 0o7777 of user, group and other.
    who: u16,
    operator: Operator,
    bits: Bits,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operator {
    Add,
    Remove,
    Set,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bits {
    /// rwxst bits, replicated for user, group and other; and whether `X` was there.
    Given { bits: u16, conditional: bool },
    /// Permission of `u`, `g` or `o`: a shift by 6, 3 or 0.
    Copied(u16),
}

const USER: u16 = 0o4700;
const GROUP: u16 = 0o2070;
const OTHER: u16 = 0o1007;

impl Mode {
    /// Reads a `--chmod` value; `None` if it is neither octal nor symbolic.
    pub fn parse(text: &str) -> Option<Self> {
        if text.bytes().next()?.is_ascii_digit() {
            let mode = u16::from_str_radix(text, 8).ok()?;
            return (mode <= 0o7777).then_some(Self::Octal(mode));
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            let actions = part.find(['+', '-', '='])?;
            let who = part[..actions].chars().try_fold(0, |mask, letter| match letter {
                'u' => Some(mask | USER),
                'g' => Some(mask | GROUP),
                'o' => Some(mask | OTHER),
                'a' => Some(0o7777),
                _ => None,
            })?;
            let who = if who == 0 { 0o7777 } else { who };
            let mut rest = &part[actions..];
            while let Some(operator) = rest.chars().next() {
                let operator = match operator {
                    '+' => Operator::Add,
                    '-' => Operator::Remove,
                    '=' => Operator::Set,
                    _ => return None,
                };
                let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
                clauses.push(Clause { who, operator, bits: Bits::parse(&rest[1..end])? });
                rest = &rest[end..];
            }
        }
        Some(Self::Symbolic(clauses))
    }

    /// The mode that a file of `mode` gets.
    pub fn apply(&self, mode: u16, is_directory: bool) -> u16 {
        match self {
            Self::Octal(octal) => *octal,
            Self::Symbolic(clauses) => {
                clauses.iter().fold(mode, |mode, clause| clause.apply(mode, is_directory))
            }
        }
    }
}

impl Bits {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "u" => return Some(Self::Copied(6)),
            "g" => return Some(Self::Copied(3)),
            "o" => return Some(Self::Copied(0)),
            _ => {}
        }
        let mut bits = 0;
        let mut conditional = false;
        for letter in text.chars() {
            match letter {
                'r' => bits |= 0o444,
                'w' => bits |= 0o222,
                'x' => bits |= 0o111,
                's' => bits |= 0o6000,
                't' => bits |= 0o1000,
                'X' => conditional = true,
                _ => return None,
            }
        }
        Some(Self::Given { bits, conditional })
    }
}

impl Clause {
    fn apply(self, mode: u16, is_directory: bool) -> u16 {
        let bits = match self.bits {
            Bits::Given { bits, conditional } => {
                let execute = conditional && (is_directory || mode & 0o111 != 0);
                bits | if execute { 0o111 } else { 0 }
            }
            Bits::Copied(shift) => ((mode >> shift) & 7) * 0o111,
        };
        let bits = bits & self.who;
        match self.operator {
            Operator::Add => mode | bits,
            Operator::Remove => mode & !bits,
            // `=` leaves set-id bits of a directory alone unless they are named.
            Operator::Set => (mode & !(self.who & 0o777)) & !(self.who & 0o7000) | bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_and_symbolic_modes_are_read_as_chmod_reads_them() {
        for (text, before, directory, after) in [
            ("755", 0o600, false, 0o755),
            ("0644", 0o755, false, 0o644),
            ("4755", 0o755, false, 0o4755),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("+x", 0o644, false, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("g=u", 0o640, false, 0o660),
            ("o=", 0o777, false, 0o770),
            ("u+s", 0o755, false, 0o4755),
            ("u+x-w", 0o644, false, 0o544),
        ] {
            let mode = Mode::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(mode.apply(before, directory), after, "{text} on {before:o}");
        }
    }

    #[test]
    fn other_words_are_no_modes() {
        for text in ["", "99", "77777", "rwx", "u~x", "z+x", "u+q", "u=rw,"] {
            assert_eq!(Mode::parse(text), None, "{text}");
        }
    }
}
