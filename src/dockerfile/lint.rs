//! The lint rules that need nothing but the text. Those that need expanded values
//! (`UndefinedVar`, `WorkdirRelativePath`, …) are found in `plan`.

use crate::dockerfile::directives::Check;
use crate::dockerfile::instruction::Command;
use crate::dockerfile::instruction::Instruction;
use crate::dockerfile::instruction::InstructionKind;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::instruction::Warning;
use crate::dockerfile::lines::Logical;
use crate::dockerfile::words;
use std::collections::HashMap;
use std::collections::HashSet;

/// How an instruction's keyword is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Casing {
    Lower,
    Upper,
    Mixed,
}

impl Casing {
    fn of(word: &str) -> Self {
        if word.bytes().all(|byte| byte.is_ascii_lowercase()) {
            Self::Lower
        } else if word.bytes().all(|byte| byte.is_ascii_uppercase()) {
            Self::Upper
        } else {
            Self::Mixed
        }
    }
}

/// Findings as they are made.
#[derive(Default)]
pub(super) struct Findings {
    warnings: Vec<Warning>,
    /// Keywords as written, with their places.
    keywords: Vec<(String, Span)>,
    stages: HashSet<String>,
    /// Last CMD, ENTRYPOINT and HEALTHCHECK of the current stage.
    last: HashMap<&'static str, Span>,
    /// SHELL was set in the current stage.
    shell_set: bool,
}

impl Findings {
    fn add(&mut self, rule: &'static str, span: Span, message: impl Into<String>) {
        self.warnings.push(Warning { rule, message: message.into(), span });
    }

    pub(super) fn instruction(&mut self, source: &str, instruction: &Instruction, line: &Logical) {
        if let Some(blank) = line.blank {
            let message = "empty continuation line; it will become an error";
            self.add("NoEmptyContinuation", blank, message);
        }
        let range = words::first(&line.text, words::trimmed(&line.text, 0..line.text.len())).0;
        let keyword = line.text[range.clone()].to_owned();
        let span = line.span(&range);
        match &instruction.kind {
            InstructionKind::From(from) => {
                self.last.clear();
                self.shell_set = false;
                self.from(&keyword, instruction, line, from.name.as_deref());
            }
            InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
                let legacy = pairs
                    .first()
                    .is_some_and(|(key, _)| !source[key.span.end..].starts_with(['=', '\\', '`']));
                if legacy {
                    let message = format!(
                        "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
                    );
                    self.add("LegacyKeyValueFormat", span, message);
                }
            }
            InstructionKind::Shell(_) => self.shell_set = true,
            InstructionKind::Cmd(command) => self.once("CMD", span, Some(command)),
            InstructionKind::Entrypoint(command) => self.once("ENTRYPOINT", span, Some(command)),
            InstructionKind::Healthcheck(_) => self.once("HEALTHCHECK", span, None),
            InstructionKind::Maintainer(_) => {
                let message =
                    "MAINTAINER is deprecated; use the label org.opencontainers.image.authors";
                self.add("MaintainerDeprecated", span, message);
            }
            _ => {}
        }
        self.keywords.push((keyword, span));
    }

    /// An instruction of which a stage keeps only the last.
    fn once(&mut self, keyword: &'static str, span: Span, command: Option<&Command>) {
        if let Some(earlier) = self.last.insert(keyword, span) {
            let message =
                format!("only the last {keyword} of a stage counts; this one has no effect");
            self.add("MultipleInstructionsDisallowed", earlier, message);
        }
        if matches!(command, Some(Command::Shell(_))) && !self.shell_set {
            let message = format!(
                "JSON arguments are recommended for {keyword}, so that it receives signals"
            );
            self.add("JSONArgsRecommended", span, message);
        }
    }

    fn from(&mut self, keyword: &str, from: &Instruction, line: &Logical, name: Option<&str>) {
        let Some(name) = name else { return };
        let words = words::blank_separated(&line.text, 0..line.text.len());
        // The grammar has been checked: the line ends in `AS NAME`.
        let [.., keyword_as, written] = words.as_slice() else { return };
        let (as_word, written_name) = (&line.text[keyword_as.clone()], &line.text[written.clone()]);
        let span = line.span(written);
        if Casing::of(as_word) != Casing::of(keyword) {
            let message = format!("the casing of `{as_word}` and `{keyword}` should be the same");
            self.add("FromAsCasing", line.span(keyword_as), message);
        }
        if written_name != name {
            let message = format!("stage name `{written_name}` should be lower case");
            self.add("StageNameCasing", span, message);
        }
        if matches!(name, "context" | "scratch") {
            let message = format!("`{name}` is a reserved name and should not name a stage");
            self.add("ReservedStageName", span, message);
        }
        if !self.stages.insert(name.to_owned()) {
            let message = format!("stage name `{name}` is used before");
            self.add("DuplicateStageName", from.span, message);
        }
    }

    /// The findings in order of their place, without those that aren't wanted.
    pub(super) fn finish(mut self, instructions: &[Instruction], check: &Check) -> Vec<Warning> {
        let upper =
            self.keywords.iter().filter(|(word, _)| Casing::of(word) == Casing::Upper).count();
        let lower =
            self.keywords.iter().filter(|(word, _)| Casing::of(word) == Casing::Lower).count();
        let (wanted, name) =
            if lower > upper { (Casing::Lower, "lower") } else { (Casing::Upper, "upper") };
        for (keyword, span) in std::mem::take(&mut self.keywords) {
            if Casing::of(&keyword) != wanted {
                let message = format!("`{keyword}` should be {name} case like most of the file");
                self.add("ConsistentInstructionCasing", span, message);
            }
        }
        // A finding inside an instruction obeys the comment above that instruction.
        let holder = |span: Span| {
            let index = instructions
                .partition_point(|instruction| instruction.span.start <= span.start)
                .saturating_sub(1);
            instructions.get(index).map_or(span, |instruction| instruction.span)
        };
        self.warnings.retain(|warning| check.allows(warning.rule, holder(warning.span)));
        self.warnings.sort_by_key(|warning| (warning.span.start, warning.rule));
        self.warnings
    }
}
