//! Instructions that change nothing but the image config (and WORKDIR, which
//! mostly does). Each returns the text of its history row.

use super::directory;
use super::expose;
use super::history;
use super::lint;
use super::signal;
use super::step::Action;
use super::steps;
use super::steps::Declared;
use super::steps::Placer;
use crate::dockerfile::Error;
use crate::dockerfile::expand;
use crate::dockerfile::instruction::ArgDeclaration;
use crate::dockerfile::instruction::Command;
use crate::dockerfile::instruction::Healthcheck;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::instruction::Word;
use crate::oci::config::Empty;
use crate::oci::config::HealthConfig;

impl Placer<'_> {
    /// Unlike everywhere else, a later word sees the earlier ones.
    pub(super) fn arg(
        &mut self,
        span: Span,
        declarations: &[ArgDeclaration],
    ) -> Result<String, Error> {
        let mut texts = Vec::with_capacity(declarations.len());
        for declaration in declarations {
            let name = &declaration.name.text;
            if lint::sounds_secret(name) {
                self.warn("SecretsUsedInArgOrEnv", lint::secret("ARG", name), span);
            }
            let value = match (self.plan.build_args.get(name), &declaration.default) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => Some(self.expand(span, default)?),
                (None, None) => self.plan.globals.get(name).map(str::to_owned),
            };
            if let Some(value) = &value
                && !steps::is_never_environment(name)
            {
                self.scope.set(name, value.clone());
            }
            texts.push(match &value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            });
            let given = self.plan.build_args.contains_key(name) || declaration.default.is_some();
            self.arguments.push(Declared {
                name: name.clone(),
                value: value.clone(),
                imported: !given && value.is_some(),
                span: self.locate(span),
            });
            self.scope.declare(name, value);
        }
        Ok(format!("ARG {}", texts.join(" ")))
    }

    pub(super) fn env(&mut self, span: Span, pairs: &[(Word, Word)]) -> Result<String, Error> {
        let pairs = self.pairs(span, pairs)?;
        let mut text = "ENV".to_owned();
        for (name, value) in pairs {
            if name.is_empty() {
                return Err(self.fail(span, "the name of a variable expands to nothing"));
            }
            if lint::sounds_secret(&name) {
                self.warn("SecretsUsedInArgOrEnv", lint::secret("ENV", &name), span);
            }
            let entry = format!("{name}={value}");
            text = format!("{text} {entry}");
            let env = &mut self.config.env;
            match env.iter_mut().find(|known| known.split('=').next() == Some(&name)) {
                Some(known) => *known = entry,
                None => env.push(entry),
            }
            self.scope.set(&name, value);
        }
        Ok(text)
    }

    pub(super) fn label(&mut self, span: Span, pairs: &[(Word, Word)]) -> Result<String, Error> {
        let pairs = self.pairs(span, pairs)?;
        let mut text = "LABEL".to_owned();
        for (name, value) in pairs {
            text = format!("{text} {name}={value}");
            self.config.labels.insert(name, value);
        }
        Ok(text)
    }

    fn pairs(
        &mut self,
        span: Span,
        pairs: &[(Word, Word)],
    ) -> Result<Vec<(String, String)>, Error> {
        pairs
            .iter()
            .map(|(name, value)| Ok((self.expand(span, name)?, self.expand(span, value)?)))
            .collect()
    }

    pub(super) fn workdir(&mut self, span: Span, word: &Word) -> Result<(Action, String), Error> {
        let given = self.expand(span, word)?;
        if !self.scope.workdir_set && !given.starts_with('/') {
            self.warn("WorkdirRelativePath", lint::relative_workdir(&given), span);
        }
        self.scope.workdir_set = true;
        let path = directory::join(self.directory(), &given)
            .ok_or_else(|| self.fail(span, "the path holds a NUL byte"))?;
        self.config.working_dir.clone_from(&path);
        let created_by = format!("WORKDIR {path}");
        let action = if path == "/" {
            Action::Config
        } else {
            Action::Workdir { path, user: self.config.user.clone() }
        };
        Ok((action, created_by))
    }

    pub(super) fn user(&mut self, span: Span, word: &Word) -> Result<String, Error> {
        self.config.user = self.expand(span, word)?;
        Ok(format!("USER {}", self.config.user))
    }

    /// The words are sorted as written, then split, then ranges are written out.
    pub(super) fn expose(&mut self, span: Span, words: &[Word]) -> Result<String, Error> {
        let mut words: Vec<&Word> = words.iter().collect();
        words.sort_by(|a, b| a.text.cmp(&b.text));
        let mut ports = Vec::new();
        for word in words {
            let expanded =
                expand::expand_words(&word.text, self.plan.dockerfile.escape, &self.scope)
                    .map_err(|error| self.fail(span, error.to_string()))?;
            for text in expanded {
                let read = expose::parse(&text).map_err(|message| self.fail(span, message))?;
                for (rule, message) in read.findings {
                    self.warn(rule, message, span);
                }
                ports.extend(read.ports);
            }
        }
        let text = format!("EXPOSE {}", history::plain_list(&ports));
        self.config.exposed_ports.extend(ports.into_iter().map(|port| (port, Empty {})));
        Ok(text)
    }

    pub(super) fn volume(&mut self, span: Span, words: &[Word]) -> Result<String, Error> {
        let mut volumes = Vec::with_capacity(words.len());
        for word in words {
            let volume = self.expand(span, word)?;
            if volume.is_empty() {
                return Err(self.fail(span, "a volume can't have an empty path"));
            }
            volumes.push(volume);
        }
        let text = format!("VOLUME {}", history::plain_list(&volumes));
        self.config.volumes.extend(volumes.into_iter().map(|volume| (volume, Empty {})));
        Ok(text)
    }

    pub(super) fn stop_signal(&mut self, span: Span, word: &Word) -> Result<String, Error> {
        let signal = self.expand(span, word)?;
        if !signal::is_valid(&signal) {
            let message =
                format!("`{signal}` is no signal: a name such as SIGTERM or a number is expected");
            return Err(self.fail(span, message));
        }
        let text = format!("STOPSIGNAL {signal}");
        self.config.stop_signal = signal;
        Ok(text)
    }

    pub(super) fn shell_instruction(&mut self, words: &[String]) -> String {
        self.config.shell = words.to_vec();
        format!("SHELL {}", history::plain_list(words))
    }

    pub(super) fn cmd(&mut self, span: Span, command: &Command) -> String {
        self.once("CMD", span, Some(command));
        let arguments = self.arguments(command);
        let text = format!("CMD {}", history::quoted_list(&arguments));
        self.config.cmd = Some(arguments).filter(|words| !words.is_empty());
        self.config.args_escaped = true;
        text
    }

    pub(super) fn entrypoint(&mut self, span: Span, command: &Command) -> String {
        self.once("ENTRYPOINT", span, Some(command));
        let arguments = self.arguments(command);
        let text = format!("ENTRYPOINT {}", history::quoted_list(&arguments));
        self.config.entrypoint = Some(arguments).filter(|words| !words.is_empty());
        if !self.last.contains_key("CMD") {
            self.config.cmd = None;
        }
        text
    }

    fn arguments(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => self.in_shell(text.clone()),
        }
    }

    pub(super) fn healthcheck(&mut self, span: Span, check: &Healthcheck) -> String {
        self.once("HEALTHCHECK", span, None);
        let health = match check {
            Healthcheck::None => {
                HealthConfig { test: vec!["NONE".to_owned()], ..HealthConfig::default() }
            }
            Healthcheck::Check {
                command,
                interval,
                timeout,
                start_period,
                start_interval,
                retries,
            } => HealthConfig {
                // SHELL has no say here: the runtime picks the shell.
                test: match command {
                    Command::Exec(words) => {
                        ["CMD".to_owned()].into_iter().chain(words.iter().cloned()).collect()
                    }
                    Command::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
                },
                interval: *interval,
                timeout: *timeout,
                start_period: *start_period,
                start_interval: *start_interval,
                retries: i64::from(*retries),
            },
        };
        let text = format!("HEALTHCHECK {}", history::health(&health));
        self.config.healthcheck = Some(health);
        text
    }

    pub(super) fn maintainer(&mut self, name: &str) -> String {
        self.author = Some(name.to_owned());
        format!("MAINTAINER {name}")
    }
}
