//! COPY and ADD.

use super::directory;
use super::stage;
use super::stage::Named;
use super::step::Action;
use super::step::CopySource;
use super::step::CopyStep;
use super::step::Origin;
use super::steps::Placer;
use crate::dockerfile::Error;
use crate::dockerfile::expand;
use crate::dockerfile::instruction::Copy;
use crate::dockerfile::instruction::Heredoc;
use crate::dockerfile::instruction::Source;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::instruction::Word;

impl Placer<'_> {
    pub(super) fn copy(
        &mut self,
        span: Span,
        copy: &Copy,
        add: bool,
    ) -> Result<(Action, String), Error> {
        self.check_unsupported(span, copy)?;
        let origin = self.origin(copy.from.as_ref())?;
        let chown = self.flag(span, copy.chown.as_ref())?;
        let chmod = self.flag(span, copy.chmod.as_ref())?;
        if let (Some(mode), Some(word)) = (&chmod, &copy.chmod) {
            check_mode(mode).map_err(|message| self.fail(word.span, message))?;
        }

        // Heredocs are copied after all paths, wherever they stand.
        let mut sources = Vec::with_capacity(copy.sources.len());
        for source in &copy.sources {
            if let Source::Path(word) = source {
                let path = self.expand(span, word)?;
                self.check_remote(span, &path, add)?;
                sources.push(CopySource::Path(path));
            }
        }
        for source in &copy.sources {
            if let Source::Heredoc(heredoc) = source {
                let body = self.heredoc(span, heredoc)?;
                sources.push(CopySource::Inline { name: heredoc.name.clone(), body });
            }
        }
        let given = self.expand(span, &copy.destination)?;
        let destination = directory::join_destination(self.directory(), &given)
            .ok_or_else(|| self.fail(span, "the destination holds a NUL byte"))?;

        let mut text = if add { "ADD" } else { "COPY" }.to_owned();
        if copy.parents {
            text.push_str(" --parents");
        }
        for (flag, value) in [("chown", &chown), ("chmod", &chmod)] {
            if let Some(value) = value {
                text = format!("{text} --{flag}={value}");
            }
        }
        for source in &sources {
            text = match source {
                CopySource::Path(path) => format!("{text} {path}"),
                CopySource::Inline { name, .. } => format!("{text} <<{name}"),
            };
        }
        text = format!("{text} {given} # buildkit");

        let step = CopyStep {
            origin,
            sources,
            destination,
            link: copy.link && chmod.is_none(),
            chown,
            chmod,
            parents: copy.parents,
            exclude: copy.exclude.iter().map(|word| word.text.clone()).collect(),
            add,
            unpack: copy.unpack,
        };
        Ok((Action::Copy(step), text))
    }

    /// An expanded flag; one that expands to nothing counts as not given.
    fn flag(&mut self, span: Span, word: Option<&Word>) -> Result<Option<String>, Error> {
        let Some(word) = word else { return Ok(None) };
        let value = self.expand(span, word)?;
        Ok(Some(value).filter(|value| !value.is_empty()))
    }

    fn origin(&self, from: Option<&Word>) -> Result<Origin, Error> {
        let Some(word) = from else { return Ok(Origin::Context) };
        let named = stage::named(&self.plan.stages, &word.text)
            .map_err(|message| self.fail(word.span, message))?;
        Ok(match named {
            Named::Stage(stage) => Origin::Stage(stage),
            Named::Scratch => Origin::Scratch,
            Named::Image(image) => Origin::Image(image),
        })
    }

    fn heredoc(&mut self, span: Span, heredoc: &Heredoc) -> Result<String, Error> {
        if !heredoc.expand {
            return Ok(heredoc.body.clone());
        }
        let expanded = expand::expand_heredoc(&heredoc.body, &self.scope)
            .map_err(|error| self.fail(span, error.to_string()))?;
        self.note_undefined(span, &expanded.undefined);
        Ok(expanded.value)
    }

    fn check_unsupported(&self, span: Span, copy: &Copy) -> Result<(), Error> {
        if let Some(word) = &copy.checksum {
            return Err(self.fail(word.span, "ADD --checksum is not supported yet"));
        }
        if copy.keep_git_dir {
            return Err(self.fail(span, "ADD --keep-git-dir is not supported yet"));
        }
        Ok(())
    }

    fn check_remote(&self, span: Span, path: &str, add: bool) -> Result<(), Error> {
        let kind = match remote(path) {
            None => return Ok(()),
            Some(Remote::Git) => "a git repository",
            Some(Remote::Http) => "a URL",
        };
        let message = if add {
            format!("`{path}`: ADD of {kind} is not supported yet")
        } else {
            format!("`{path}`: the source of COPY can't be {kind}")
        };
        Err(self.fail(span, message))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Remote {
    Git,
    Http,
}

/// Whether a source names something on another machine. `github.com/a/b` doesn't:
/// it can't be told from a path.
fn remote(source: &str) -> Option<Remote> {
    if ["git://", "ssh://", "git@"].iter().any(|prefix| source.starts_with(prefix)) {
        return Some(Remote::Git);
    }
    if source.starts_with("http://") || source.starts_with("https://") {
        let path = source.split(['#', '?']).next().unwrap_or_default();
        return Some(if path.ends_with(".git") { Remote::Git } else { Remote::Http });
    }
    // user@host:path
    let (host, _) = source.split_once(':')?;
    let (user, host) = host.split_once('@')?;
    let plain = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    (plain(user) && plain(host)).then_some(Remote::Git)
}

/// Octal up to 7777, or symbolic as BSD's chmod has it: `u=rwX,go=rX`, `+x`, `g=u`.
fn check_mode(mode: &str) -> Result<(), String> {
    let octal = || {
        format!(
            "`{mode}` is no mode: an octal number up to 07777 or a form such as `u=rwX,go=rX` is expected"
        )
    };
    if mode.starts_with(|letter: char| letter.is_ascii_digit()) {
        return match u32::from_str_radix(mode, 8) {
            Ok(bits) if bits <= 0o7777 => Ok(()),
            _ => Err(octal()),
        };
    }
    let clause_is_valid = |clause: &str| {
        let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        actions.starts_with(['+', '-', '='])
            && actions.chars().all(|letter| "+-=rstwxXugo".contains(letter))
    };
    if mode.split(',').all(clause_is_valid) { Ok(()) } else { Err(octal()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_or_symbolic() {
        for good in ["0", "644", "07777", "u=rwX,go=rX", "+x", "g=u", "a-w", "u+s", "=", "u+r-w"] {
            assert_eq!(check_mode(good), Ok(()), "{good}");
        }
        for bad in
            ["", "8", "10000", "0x1", "rwx", "u", "u=rwz", "u=r,", "z+x", "+ x", "77777777777"]
        {
            assert!(check_mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn remote_sources_are_told_from_paths() {
        for git in [
            "git@github.com:a/b",
            "git://h/r",
            "ssh://git@h/r.git",
            "https://h/a/b.git",
            "https://h/a/b.git#v1:sub",
            "https://h/a/b.git?ref=x",
            "me@host.example:repo",
        ] {
            assert_eq!(remote(git), Some(Remote::Git), "{git}");
        }
        assert_eq!(remote("https://h/a.tar.gz"), Some(Remote::Http));
        for path in ["a", "b.git", "a:b", "@scope/pkg:x", "github.com/a/b", "x/y@z:1", "http:"] {
            assert_eq!(remote(path), None, "{path}");
        }
    }
}
