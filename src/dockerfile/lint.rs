//! The lint rules that need nothing but the text. Those that need expanded values or
//! the stage's state (`UndefinedVar`, `JSONArgsRecommended`, …) are found in `plan`.

use crate::dockerfile::directives::Check;
use crate::dockerfile::excerpt;
use crate::dockerfile::instruction::Instruction;
use crate::dockerfile::instruction::InstructionKind;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::instruction::Warning;
use crate::dockerfile::lines::Logical;
use crate::dockerfile::words;
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
}

impl Findings {
    fn add(&mut self, rule: &'static str, span: Span, message: impl Into<String>) {
        self.warnings.push(Warning { rule, message: message.into(), span });
    }

    pub(super) fn instruction(&mut self, source: &str, instruction: &Instruction, line: &Logical) {
        if let Some(blank) = line.blank {
            self.add("NoEmptyContinuation", blank, "Empty continuation line");
        }
        let range = words::first(&line.text, words::trimmed(&line.text, 0..line.text.len())).0;
        let keyword = line.text[range.clone()].to_owned();
        let span = line.span(&range);
        match &instruction.kind {
            InstructionKind::From(from) => {
                self.from(&keyword, instruction, line, from.name.as_deref());
                if let Some(name) = &from.name {
                    self.description("FROM", source, instruction.span, &[name.as_str()]);
                }
            }
            InstructionKind::Arg(declarations) => {
                let names: Vec<&str> =
                    declarations.iter().map(|argument| argument.name.text.as_str()).collect();
                self.description("ARG", source, instruction.span, &names);
            }
            InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
                let legacy = pairs
                    .first()
                    .is_some_and(|(key, _)| !source[key.span.end..].starts_with(['=', '\\', '`']));
                if legacy {
                    let name = keyword.to_uppercase();
                    let message = format!(
                        "\"{name} key=value\" should be used instead of legacy \"{name} key value\" format"
                    );
                    self.add("LegacyKeyValueFormat", span, message);
                }
            }
            InstructionKind::Maintainer(_) => {
                let message = "Maintainer instruction is deprecated in favor of using label";
                self.add("MaintainerDeprecated", span, message);
            }
            _ => {}
        }
        // Global ARGs are no part of what BuildKit counts.
        if !self.keywords.is_empty() || matches!(instruction.kind, InstructionKind::From(_)) {
            self.keywords.push((keyword, span));
        }
    }

    /// A comment right above a definition is taken for its description.
    fn description(&mut self, keyword: &str, source: &str, span: Span, names: &[&str]) {
        let comments = excerpt::comments_above(source, span.start);
        let Some(comment) = comments.last() else { return };
        let first = comment.split(' ').next().unwrap_or_default();
        if names.contains(&first) {
            return;
        }
        let example = if let [name] = names { name } else { "<arg_key>" };
        let message =
            format!("Comment for {keyword} should follow the format: `# {example} <description>`");
        self.add("InvalidDefinitionDescription", span, message);
    }

    fn from(&mut self, keyword: &str, from: &Instruction, line: &Logical, name: Option<&str>) {
        let Some(name) = name else { return };
        let words = words::blank_separated(&line.text, 0..line.text.len());
        // The grammar has been checked: the line ends in `AS NAME`.
        let [.., keyword_as, written] = words.as_slice() else { return };
        let (as_word, written_name) = (&line.text[keyword_as.clone()], &line.text[written.clone()]);
        let span = line.span(written);
        // A keyword of mixed case is found fault with elsewhere.
        let casing = Casing::of(keyword);
        if casing != Casing::Mixed && Casing::of(as_word) != casing {
            let message = format!("'{as_word}' and '{keyword}' keywords' casing do not match");
            self.add("FromAsCasing", line.span(keyword_as), message);
        }
        if written_name != name {
            let message = format!("Stage name '{written_name}' should be lowercase");
            self.add("StageNameCasing", span, message);
        }
        if matches!(name, "context" | "scratch") {
            let message =
                format!("Stage name should not use the same name as reserved stage \"{name}\"");
            self.add("ReservedStageName", span, message);
        }
        if !self.stages.insert(name.to_owned()) {
            let message = format!("Duplicate stage name \"{name}\", stage names should be unique");
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
            if lower > upper { (Casing::Lower, "lowercase") } else { (Casing::Upper, "uppercase") };
        for (keyword, span) in std::mem::take(&mut self.keywords) {
            if Casing::of(&keyword) != wanted {
                let message = format!(
                    "Command '{keyword}' should match the case of the command majority ({name})"
                );
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
