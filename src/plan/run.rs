//! RUN: arguments, environment, mounts.

use super::history;
use super::mount;
use super::mount::Surroundings;
use super::step::Action;
use super::step::Mount;
use super::step::MountKind;
use super::step::Network;
use super::step::RunStep;
use super::steps::Placer;
use super::suggest;
use crate::dockerfile::Error;
use crate::dockerfile::instruction::Command;
use crate::dockerfile::instruction::Heredoc;
use crate::dockerfile::instruction::Run;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::instruction::Word;

/// Directory in which the script of a lone heredoc is seen.
const PIPES: &str = "/dev/pipes";
/// Handed to RUN without a declaration, in capitals and in small letters.
pub(super) const PROXIES: [&str; 5] =
    ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];
/// Tells programs where the agent listens.
const SOCKET_VARIABLE: &str = "SSH_AUTH_SOCK";
const NETWORKS: [&str; 3] = ["default", "none", "host"];

/// The heredoc of a RUN whose command line is nothing but `<<WORD`.
pub(super) fn lone_heredoc(run: &Run) -> Option<&Heredoc> {
    let Command::Shell(line) = &run.command else { return None };
    let [heredoc] = run.heredocs.as_slice() else { return None };
    let word = line.trim().trim_start_matches(|letter: char| letter.is_ascii_digit());
    let word = word.strip_prefix("<<")?;
    let word = word.strip_prefix('-').unwrap_or(word);
    is_one_word(word).then_some(heredoc)
}

/// Gives ssh mounts without a target the one that BuildKit gives them, and the first of
/// all as the value of `SSH_AUTH_SOCK`.
fn with_sockets(mut mounts: Vec<Mount>) -> (Vec<Mount>, Option<String>) {
    let mut first = None;
    let sockets = mounts.iter_mut().filter(|mount| matches!(mount.kind, MountKind::Ssh { .. }));
    for (number, mount) in sockets.enumerate() {
        if mount.target.is_empty() {
            mount.target = format!("/run/buildkit/ssh_agent.{number}");
        }
        first.get_or_insert_with(|| mount.target.clone());
    }
    (mounts, first)
}

/// Whether a shell would take `text` for one word, and no redirection is in it.
fn is_one_word(text: &str) -> bool {
    let mut quote = None;
    let mut letters = text.trim().chars().peekable();
    if letters.peek().is_none() {
        return false;
    }
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (_, '<') => return false,
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), _) if letter == open => quote = None,
            (None | Some('"'), '\\') => {
                letters.next();
            }
            (None, _) if letter.is_whitespace() => return false,
            _ => {}
        }
    }
    quote.is_none()
}

impl Placer<'_> {
    pub(super) fn run(&mut self, span: Span, run: &Run) -> Result<(Action, String), Error> {
        let mounts = run
            .mounts
            .iter()
            .map(|word| self.mount(span, word))
            .collect::<Result<Vec<Mount>, Error>>()?;
        let (mounts, socket) = with_sockets(mounts);
        let network = self.network(run)?;
        self.check_security(run)?;

        let (arguments, script) = self.run_arguments(run);
        // BuildKit hands the script's path to the shell, and says so in the history.
        let shown =
            if script.is_some() { self.in_shell(arguments.join(" ")) } else { arguments.clone() };
        let created_by = history::run(&self.scope, &shown);
        let mut environment = self.scope.environment().to_vec();
        if let Some(socket) = socket
            && self.scope.get(SOCKET_VARIABLE).is_none()
        {
            environment.push((SOCKET_VARIABLE.to_owned(), socket));
        }
        let step = RunStep {
            arguments,
            script,
            environment,
            proxy: self.proxy(),
            directory: self.directory().to_owned(),
            user: self.config.user.clone(),
            mounts,
            network,
        };
        Ok((Action::Run(step), created_by))
    }

    fn run_arguments(&self, run: &Run) -> (Vec<String>, Option<Heredoc>) {
        let line = match &run.command {
            Command::Exec(words) => return (words.clone(), None),
            Command::Shell(line) => line,
        };
        if let Some(heredoc) = lone_heredoc(run) {
            let content = heredoc.content().into_owned();
            return if content.starts_with("#!") {
                let script = Heredoc { body: content, chomp: false, ..heredoc.clone() };
                (vec![format!("{PIPES}/{}", heredoc.name)], Some(script))
            } else {
                (self.in_shell(content), None)
            };
        }
        let mut text = line.clone();
        for heredoc in &run.heredocs {
            text.push('\n');
            text.push_str(&heredoc.body);
            text.push_str(&heredoc.name);
        }
        (self.in_shell(text), None)
    }

    fn network(&self, run: &Run) -> Result<Network, Error> {
        let Some(word) = &run.network else { return Ok(self.plan.network) };
        match word.text.as_str() {
            "default" => Ok(Network::Default),
            "none" => Ok(Network::None),
            "host" => Ok(Network::Host),
            other => {
                let message = format!("`{other}` is no network: {} are known", NETWORKS.join(", "));
                let error = self.fail(word.span, message);
                Err(suggest::advise(error, suggest::hint(other, NETWORKS)))
            }
        }
    }

    fn check_security(&self, run: &Run) -> Result<(), Error> {
        let Some(word) = &run.security else { return Ok(()) };
        match word.text.as_str() {
            "sandbox" => Ok(()),
            "insecure" => Err(self.fail(
                word.span,
                "--security=insecure is not supported: steps never run with more rights than the builder's sandbox gives",
            )),
            other => Err(self.fail(
                word.span,
                format!("`{other}` is no security mode: sandbox is known"),
            )),
        }
    }

    /// Every value but that of `from` is expanded, field by field.
    fn mount(&mut self, span: Span, word: &Word) -> Result<Mount, Error> {
        let mut fields =
            mount::fields(&word.text).map_err(|message| self.fail(word.span, message))?;
        for (key, value) in &mut fields {
            if key != "from"
                && let Some(value) = value
            {
                *value = self.expand_text(span, value)?;
            }
        }
        let around = Surroundings {
            stages: &self.plan.stages,
            contexts: &self.plan.contexts,
            directory: self.directory(),
            namespace: self
                .plan
                .build_args
                .get("BUILDKIT_CACHE_MOUNT_NS")
                .map(String::as_str)
                .filter(|space| !space.is_empty()),
        };
        mount::build(&fields, &around).map_err(|wrong| {
            let error = self.fail(word.span, format!("--mount: {}", wrong.message));
            suggest::advise(error, wrong.hint)
        })
    }

    /// Both spellings of each proxy variable given as build arg; a variable that the
    /// file sets itself is left alone.
    fn proxy(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for name in PROXIES {
            let given = self
                .plan
                .build_args
                .iter()
                .rev()
                .find(|(known, value)| known.eq_ignore_ascii_case(name) && !value.is_empty());
            let Some((_, value)) = given else { continue };
            for spelling in [name.to_owned(), name.to_lowercase()] {
                if self.scope.get(&spelling).is_none() {
                    found.push((spelling, value.clone()));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heredoc_word_is_told_from_a_command_line() {
        for (text, expected) in [
            ("EOF", true),
            (" EOF", true),
            ("'E F'", true),
            ("\"E\\\"F\"", true),
            ("EOF cat", false),
            ("EOF <<B", false),
            ("", false),
            ("'E", false),
        ] {
            assert_eq!(is_one_word(text), expected, "{text}");
        }
    }
}
