//! COPY and ADD.

use super::directory;
use super::stage;
use super::step::Action;
use super::step::CopySource;
use super::step::CopyStep;
use super::step::Origin;
use super::steps::Placer;
use crate::address::Remote;
use crate::address::commit_prefix;
use crate::address::redacted;
use crate::dockerfile::Error;
use crate::dockerfile::expand;
use crate::dockerfile::instruction::Copy;
use crate::dockerfile::instruction::Heredoc;
use crate::dockerfile::instruction::Source;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::instruction::Word;
use crate::oci::digest::Digest;

impl Placer<'_> {
    pub(super) fn copy(
        &mut self,
        span: Span,
        copy: &Copy,
        add: bool,
    ) -> Result<(Action, String), Error> {
        let origin = self.origin(copy.from.as_ref())?;
        let chown = self.flag(span, copy.chown.as_ref())?;
        let chmod = self.flag(span, copy.chmod.as_ref())?;
        if let (Some(mode), Some(word)) = (&chmod, &copy.chmod) {
            check_mode(mode).map_err(|message| self.fail(word.span, message))?;
        }

        // Heredocs are copied after all paths, wherever they stand.
        let mut sources = Vec::with_capacity(copy.sources.len());
        let mut shown = Vec::with_capacity(copy.sources.len());
        for source in &copy.sources {
            if let Source::Path(word) = source {
                let path = self.expand(span, word)?;
                let remote = self.remote(span, &path, copy, add)?;
                shown.push(redacted(&path));
                sources.push(remote.unwrap_or(CopySource::Path(path)));
            }
        }
        for source in &copy.sources {
            if let Source::Heredoc(heredoc) = source {
                let body = self.heredoc(span, heredoc)?;
                shown.push(format!("<<{}", heredoc.name));
                sources.push(CopySource::Inline { name: heredoc.name.clone(), body });
            }
        }
        if let Some(word) = &copy.checksum {
            self.add_checksum(span, word, &mut sources)?;
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
        text = format!("{text} {} {given} # buildkit", shown.join(" "));

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
        let named = stage::named(&self.plan.stages, &self.plan.contexts, &word.text)
            .map_err(|message| self.fail(word.span, message))?;
        Ok(named.into())
    }

    fn heredoc(&mut self, span: Span, heredoc: &Heredoc) -> Result<String, Error> {
        if !heredoc.expand {
            return Ok(heredoc.content().into_owned());
        }
        let expanded = expand::expand_heredoc(&heredoc.content(), &self.scope)
            .map_err(|error| self.fail(span, error.to_string()))?;
        self.note_undefined(span, &expanded.undefined);
        Ok(expanded.value)
    }

    /// What `path` names on another machine; `None` if it is a path.
    fn remote(
        &self,
        span: Span,
        path: &str,
        copy: &Copy,
        add: bool,
    ) -> Result<Option<CopySource>, Error> {
        let remote = Remote::parse(path).map_err(|error| self.fail(span, error.to_string()))?;
        let Some(remote) = remote else { return Ok(None) };
        if !add {
            let kind = match remote {
                Remote::Git(_) => "a git repository",
                Remote::Http(_) => "a URL",
            };
            let path = redacted(path);
            let message = format!("`{path}`: the source of COPY can't be {kind}; ADD takes it");
            return Err(self.fail(span, message));
        }
        Ok(Some(match remote {
            Remote::Http(address) => CopySource::Http { address, checksum: None },
            Remote::Git(mut address) => {
                if copy.keep_git_dir {
                    address.keep_git_dir = Some(true);
                }
                CopySource::Git { address }
            }
        }))
    }

    /// Gives `--checksum` to the only source, which is on another machine.
    fn add_checksum(
        &mut self,
        span: Span,
        word: &Word,
        sources: &mut [CopySource],
    ) -> Result<(), Error> {
        let Some(text) = self.flag(span, Some(word))? else { return Ok(()) };
        let wrong = |message: String| self.fail(word.span, message);
        match sources {
            [CopySource::Http { checksum, .. }] => {
                let digest: Digest = text.parse().map_err(|_| {
                    wrong(format!(
                        "--checksum of a URL is `sha256:` and 64 hexadecimal digits, not `{text}`"
                    ))
                })?;
                *checksum = Some(digest);
                Ok(())
            }
            [CopySource::Git { address }] => {
                let prefix = commit_prefix(&text).map_err(wrong)?;
                match &address.checksum {
                    Some(known) if !known.starts_with(&prefix) && !prefix.starts_with(known) => {
                        Err(wrong(format!("--checksum={text} and the address's {known} differ")))
                    }
                    Some(known) if known.len() >= prefix.len() => Ok(()),
                    _ => {
                        address.checksum = Some(prefix);
                        Ok(())
                    }
                }
            }
            [_] => Err(wrong("--checksum needs a URL or a git repository".to_owned())),
            _ => Err(wrong("--checksum can't be used with several sources".to_owned())),
        }
    }
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
}
