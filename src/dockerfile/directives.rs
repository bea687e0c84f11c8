//! The parser directives at the top of a file: `# syntax=`, `# escape=`, `# check=`.

use crate::dockerfile::error::Error;
use crate::dockerfile::instruction::Span;
use crate::dockerfile::lines::Text;
use crate::dockerfile::rules;

/// What lint rules do: the `# check=` directive, and the `# check=skip=…` comments
/// above single instructions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Check {
    /// Rules that are off.
    pub skip: Rules,
    /// Experimental rules that are on.
    pub experimental: Rules,
    /// Findings fail the build.
    pub error: bool,
    /// Rules that are off for the instruction with that span; in order of the spans.
    pub scoped: Vec<(Span, Rules)>,
}

/// A choice of lint rules.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// Every rule.
    pub all: bool,
    /// The rules by name.
    pub names: Vec<String>,
}

impl Rules {
    /// Whether `rule` is chosen.
    pub fn contains(&self, rule: &str) -> bool {
        self.all || self.names.iter().any(|name| name.eq_ignore_ascii_case(rule))
    }

    fn parse(text: &str) -> Self {
        if text.trim() == "all" {
            return Self { all: true, names: Vec::new() };
        }
        let names = text.split(',').map(|name| name.trim().to_owned());
        Self { all: false, names: names.filter(|name| !name.is_empty()).collect() }
    }
}

impl Check {
    /// Reads the value of a `check` directive (also that of the build argument
    /// `BUILDKIT_DOCKERFILE_CHECK`): `skip=A,B|all;error=true;experimental=X|all`.
    ///
    /// Fails, with a message, on unknown options and values.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut check = Self::default();
        if text.trim().is_empty() {
            return Ok(check);
        }
        for part in text.trim().splitn(3, ';') {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("invalid check option `{}`", part.trim()))?;
            match key.trim() {
                "skip" => check.skip = Rules::parse(value),
                "experimental" => check.experimental = Rules::parse(value),
                "error" => {
                    check.error = match value.trim() {
                        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                        other => {
                            return Err(format!(
                                "check option `error` is true or false, not `{other}`"
                            ));
                        }
                    };
                }
                other => return Err(format!("unknown check option `{other}`")),
            }
        }
        Ok(check)
    }

    /// Whether findings of `rule` about the instruction at `span` are wanted.
    pub fn allows(&self, rule: &str, span: Span) -> bool {
        let index = self.scoped.partition_point(|(outer, _)| outer.start <= span.start);
        let scoped = index.checked_sub(1).and_then(|index| self.scoped.get(index));
        let off = scoped.is_some_and(|(outer, rules)| {
            span.start < outer.end.max(outer.start + 1) && rules.contains(rule)
        });
        let experimental = rules::find(rule).is_some_and(|rule| rule.experimental);
        !off && !self.skip.contains(rule) && (!experimental || self.experimental.contains(rule))
    }
}

/// The directives of a file.
pub(super) struct Directives {
    pub(super) escape: char,
    pub(super) check: Check,
    /// End of the last directive's line: comments up to here are no comments.
    pub(super) end: usize,
}

struct Directive<'a> {
    key: String,
    value: &'a str,
    span: Span,
}

/// Reads the directives at the top of `text`.
///
/// Fails on a repeated directive, an escape character other than `\` and backtick,
/// a syntax that is not Docker's, and unknown check options.
pub(super) fn read(text: Text<'_>, any_syntax: bool) -> Result<Directives, Error> {
    let mut directives = Directives { escape: '\\', check: Check::default(), end: 0 };
    let source = text.text;
    let start = if source.starts_with('\u{feff}') { 3 } else { 0 };
    // A `#!` line hides `escape` (it ends the section) but neither `syntax` nor
    // `check`, which BuildKit looks for in a pass of their own.
    let first_line = source[start..].split_inclusive('\n').next().unwrap_or_default();
    let shebang = first_line.starts_with("#!");
    let from = if shebang { start + first_line.len() } else { start };
    let mut seen: Vec<String> = Vec::new();
    for directive in section(source, from, "#") {
        if seen.contains(&directive.key) {
            let message = format!("only one {} parser directive can be used", directive.key);
            return Err(text.error(directive.span, message));
        }
        directives.end = directive.span.end;
        match directive.key.as_str() {
            "escape" if shebang => {}
            "escape" => {
                directives.escape = match directive.value {
                    "\\" => '\\',
                    "`" => '`',
                    other => {
                        let message = format!("invalid escape character `{other}`");
                        return Err(text
                            .error(directive.span, message)
                            .with_hint("it is either a backslash or a backtick"));
                    }
                };
            }
            "syntax" if any_syntax => {}
            "syntax" => check_syntax(text, &directive)?,
            _ => {
                directives.check = Check::parse(directive.value)
                    .map_err(|message| text.error(directive.span, message))?;
            }
        }
        seen.push(directive.key);
    }
    if seen.is_empty() && !any_syntax {
        foreign_syntax(text, from)?;
    }
    Ok(directives)
}

/// The directives from `at` on, each `marker key = value` on a line of its own.
fn section<'a>(source: &'a str, at: usize, marker: &'a str) -> impl Iterator<Item = Directive<'a>> {
    let mut at = at;
    source[at..].split_inclusive('\n').map_while(move |line| {
        let start = at;
        at += line.len();
        let line = line.trim_end();
        let body = line.trim_start().strip_prefix(marker)?;
        let (key, value) = body.split_once('=')?;
        let key = key.trim().to_ascii_lowercase();
        let known = matches!(key.as_str(), "syntax" | "escape" | "check");
        let span = Span { start, end: start + line.len() };
        let value = value.trim();
        (known && !value.is_empty()).then_some(Directive { key, value, span })
    })
}

/// A file for another frontend may name it in that language's own comment style.
fn foreign_syntax(text: Text<'_>, from: usize) -> Result<(), Error> {
    let slashes = section(text.text, from, "//").find(|directive| directive.key == "syntax");
    if let Some(directive) = slashes {
        return check_syntax(text, &directive);
    }
    if !text.text[from..].trim_start().starts_with('{') {
        return Ok(());
    }
    let json: Result<serde_json::Map<String, serde_json::Value>, _> =
        serde_json::from_str(&text.text[from..]);
    match json.as_ref().ok().and_then(|map| map.get("syntax")).and_then(|value| value.as_str()) {
        Some(value) => {
            let span = Span { start: from, end: from };
            check_syntax(text, &Directive { key: "syntax".to_owned(), value, span })
        }
        None => Ok(()),
    }
}

/// Whether `value` of a syntax directive names Docker's own frontend.
pub fn is_known_syntax(value: &str) -> bool {
    let reference = value.split_whitespace().next().unwrap_or_default();
    let bare = ["docker.io/", "index.docker.io/", "registry-1.docker.io/"]
        .iter()
        .find_map(|host| reference.strip_prefix(host))
        .unwrap_or(reference);
    reference.is_empty() || reference == "dockerfile.v0" || bare.starts_with("docker/dockerfile")
}

/// Accepts the names of Docker's own frontend, whose language is the one read here.
fn check_syntax(text: Text<'_>, directive: &Directive<'_>) -> Result<(), Error> {
    if is_known_syntax(directive.value) {
        return Ok(());
    }
    let reference = directive.value.split_whitespace().next().unwrap_or_default();
    Err(text
        .error(directive.span, format!("syntax `{reference}` is not supported"))
        .with_hint("only docker/dockerfile is; remove the directive if the file is a plain one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directives(source: &str) -> Result<Directives, String> {
        read(Text { name: "Dockerfile", text: source }, false).map_err(|error| error.to_string())
    }

    #[test]
    fn a_section_ends_at_the_first_line_that_is_no_directive() {
        let escape = |source: &str| directives(source).expect("valid").escape;
        assert_eq!(escape("# escape=`\n"), '`');
        assert_eq!(escape("\u{feff}  #EsCaPe  =  `  \r\nFROM x"), '`');
        assert_eq!(escape("# syntax=docker/dockerfile:1\n# escape=`\n"), '`');
        for ended in ["\n# escape=`", "# note\n# escape=`", "FROM x\n# escape=`", "#!x\n#escape=`"]
        {
            assert_eq!(escape(ended), '\\', "{ended:?}");
        }
    }

    #[test]
    fn repeated_and_invalid_directives_fail() {
        for (source, part) in [
            ("# escape=`\n# escape=`", "only one escape"),
            ("# escape=x", "invalid escape character `x`"),
            ("# check=skip", "invalid check option"),
            ("# check=error=maybe", "true or false"),
        ] {
            let error = directives(source).err().expect(source);
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn only_dockers_own_syntax_is_accepted() {
        for good in
            ["docker/dockerfile:1", "docker.io/docker/dockerfile-upstream:master", "dockerfile.v0"]
        {
            assert!(directives(&format!("# syntax={good}\n")).is_ok(), "{good}");
        }
        for bad in [
            "# syntax=example.com/other:1\n",
            "// syntax=example.com/other\n",
            "{\"syntax\": \"example.com/other\"}",
            "#!/usr/bin/env x\n# syntax = example.com/other --flag",
        ] {
            let error = directives(bad).err().expect(bad);
            assert!(error.contains("syntax `example.com/other"), "{error}");
            let text = Text { name: "Dockerfile", text: bad };
            assert!(read(text, true).is_ok(), "another syntax was asked for outside");
        }
    }

    #[test]
    fn check_is_parsed_and_kept() {
        let check = directives("# check=skip=A, b;error=true;experimental=all\n").expect("valid");
        let check = check.check;
        assert!(check.error && check.experimental.contains("X"));
        assert!(!check.allows("a", Span::default()) && check.allows("c", Span::default()));
    }
}
