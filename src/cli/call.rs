//! `--check` and `--call`: what is asked of a Dockerfile instead of building it, and
//! the answers as text and as JSON. Both forms are those of `docker buildx build`.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::build::call::Answer;
use crate::build::call::Question;
use crate::build::call::Said;
use crate::build::survey::Finding;
use crate::dockerfile::instruction::Span;
use crate::plan::outline::Asked;

/// What `--call` and `--check` ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Call {
    /// The question; `None`: build.
    pub(super) question: Option<Question>,
    /// The answer as JSON.
    pub(super) json: bool,
    /// Findings don't make the exit code 1.
    pub(super) ignore_status: bool,
}

impl Call {
    /// Reads `--call=METHOD[,format=text|json][,ignorestatus]` and `--check`.
    ///
    /// # Errors
    /// The message: an unknown method or option, or both flags at once.
    pub(super) fn read(call: Option<&str>, check: bool) -> Result<Self, String> {
        let mut read = Self { question: None, json: false, ignore_status: false };
        let (Some(text), false) = (call, check && call.is_none()) else {
            read.question = check.then_some(Question::Check);
            return Ok(read);
        };
        let mut fields = text.split(',');
        let method = fields.next().unwrap_or_default();
        read.question = match method {
            "" | "build" => None,
            "check" | "lint" => Some(Question::Check),
            "outline" => Some(Question::Outline),
            "targets" => Some(Question::Targets),
            other => {
                return Err(format!("--call {other}: build, check, outline and targets are known"));
            }
        };
        for field in fields {
            match field.split_once('=').unwrap_or((field, "true")) {
                ("format", "json") => read.json = true,
                ("format", "text") => read.json = false,
                ("ignorestatus", "true" | "1") => read.ignore_status = true,
                ("ignorestatus", "false" | "0") => read.ignore_status = false,
                _ => {
                    return Err(format!(
                        "--call {text}: `{field}` is unknown; format=text, format=json and ignorestatus are known"
                    ));
                }
            }
        }
        if check && read.question != Some(Question::Check) {
            return Err(format!("--check and --call {method} exclude each other"));
        }
        Ok(read)
    }
}

/// Whether the answer is a reason to fail: findings, or a Dockerfile that can't be
/// built.
pub(super) fn is_bad(answer: &Answer) -> bool {
    matches!(&answer.said, Said::Check(findings, error) if !findings.is_empty() || error.is_some())
}

/// The answer as it goes to standard output.
pub(super) fn render(answer: &Answer, json: bool) -> String {
    if json {
        let value = match &answer.said {
            Said::Check(findings, error) => check_json(answer, findings, error.as_deref()),
            Said::Outline(_) => outline_json(answer),
            Said::Targets(_) => targets_json(answer),
            Said::Plan(stages) => json!(stages),
        };
        return format!("{value:#}\n");
    }
    match &answer.said {
        Said::Check(findings, error) => check_text(findings, error.as_deref()),
        Said::Outline(_) => outline_text(answer),
        Said::Targets(_) => targets_text(answer),
        Said::Plan(stages) => {
            let lines = stages.iter().flatten().map(|line| format!("{line}\n"));
            lines.collect()
        }
    }
}

fn check_text(findings: &[Finding], error: Option<&str>) -> String {
    let mut text = match (findings.len(), error) {
        (0, None) => "Check complete, no warnings found.\n".to_owned(),
        (_, Some(_)) => String::new(),
        (1, None) => "Check complete, 1 warning has been found!\n".to_owned(),
        (count, None) => format!("Check complete, {count} warnings have been found!\n"),
    };
    for finding in findings {
        text.push('\n');
        text.push_str(&warning(finding));
    }
    if let Some(error) = error {
        text.push('\n');
        text.push_str(error.trim_end());
        text.push('\n');
    }
    text
}

/// One finding in full.
pub(super) fn warning(finding: &Finding) -> String {
    format!("WARNING: {}\n{}\n{}", finding.rule, finding.message, finding.excerpt)
}

fn check_json(answer: &Answer, findings: &[Finding], error: Option<&str>) -> Value {
    let warnings: Vec<Value> = findings
        .iter()
        .map(|finding| {
            json!({
                "ruleName": finding.rule,
                "description": finding.description,
                "detail": finding.message,
                "location": range(finding.lines),
            })
        })
        .collect();
    let mut value = json!({
        "warnings": warnings,
        "sources": [{
            "fileName": answer.dockerfile.name,
            "language": "Dockerfile",
            "data": STANDARD.encode(&answer.dockerfile.text),
        }],
    });
    if let Some(error) = error {
        value["error"] = json!({ "message": error });
    }
    value
}

fn range((first, last): (usize, usize)) -> Value {
    json!({ "ranges": [{ "start": { "line": first }, "end": { "line": last } }] })
}

/// Go leaves empty fields out.
fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    let fields = fields.into_iter().filter(|(_, value)| !empty(value));
    Value::Object(fields.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

fn sources(answer: &Answer) -> Value {
    json!([STANDARD.encode(&answer.dockerfile.text)])
}

fn outline_json(answer: &Answer) -> Value {
    let Said::Outline(outline) = &answer.said else { return Value::Null };
    let place = |span: Span| range(answer.lines(span));
    let arguments: Vec<Value> = outline
        .arguments
        .iter()
        .map(|argument| {
            object([
                ("name", json!(argument.name)),
                ("description", json!(argument.description)),
                ("value", json!(argument.value)),
                ("location", place(argument.span)),
            ])
        })
        .collect();
    let asked = |asked: &[Asked]| -> Vec<Value> {
        asked
            .iter()
            .map(|asked| {
                object([
                    ("name", json!(asked.name)),
                    ("required", json!(asked.required)),
                    ("location", place(asked.span)),
                ])
            })
            .collect()
    };
    object([
        ("name", json!(outline.name)),
        ("description", json!(outline.description)),
        ("args", json!(arguments)),
        ("secrets", json!(asked(&outline.secrets))),
        ("ssh", json!(asked(&outline.ssh))),
        ("sources", sources(answer)),
    ])
}

fn targets_json(answer: &Answer) -> Value {
    let Said::Targets(targets) = &answer.said else { return Value::Null };
    let targets: Vec<Value> = targets
        .iter()
        .map(|target| {
            object([
                ("name", json!(target.name)),
                ("default", json!(target.default)),
                ("description", json!(target.description)),
                ("base", json!(target.base)),
                ("platform", json!(target.platform)),
                ("location", range(answer.lines(target.span))),
            ])
        })
        .collect();
    json!({ "targets": targets, "sources": sources(answer) })
}

fn outline_text(answer: &Answer) -> String {
    let Said::Outline(outline) = &answer.said else { return String::new() };
    let mut text = String::new();
    if outline.name.is_some() || outline.description.is_some() {
        let name = outline.name.as_deref().unwrap_or("(default)");
        let mut rows = vec![vec!["TARGET:".to_owned(), name.to_owned()]];
        if let Some(description) = &outline.description {
            rows.push(vec!["DESCRIPTION:".to_owned(), description.clone()]);
        }
        text.push_str(&table(&rows, 1));
        text.push('\n');
    }
    let mut section = |head: &[&str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            let head = head.iter().map(|word| (*word).to_owned()).collect();
            text.push_str(&table(&[vec![head], rows].concat(), 3));
            text.push('\n');
        }
    };
    section(
        &["BUILD ARG", "VALUE", "DESCRIPTION"],
        outline
            .arguments
            .iter()
            .map(|argument| {
                vec![
                    argument.name.clone(),
                    argument.value.clone().unwrap_or_default(),
                    argument.description.clone().unwrap_or_default(),
                ]
            })
            .collect(),
    );
    let asked = |asked: &[Asked]| -> Vec<Vec<String>> {
        let required = |asked: &Asked| if asked.required { "true" } else { "" }.to_owned();
        asked.iter().map(|asked| vec![asked.name.clone(), required(asked)]).collect()
    };
    section(&["SECRET", "REQUIRED"], asked(&outline.secrets));
    section(&["SSH", "REQUIRED"], asked(&outline.ssh));
    text
}

fn targets_text(answer: &Answer) -> String {
    let Said::Targets(targets) = &answer.said else { return String::new() };
    let mut rows = vec![vec!["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    for target in targets {
        let name = match (&target.name, target.default) {
            (Some(name), true) => format!("{name} (default)"),
            (Some(name), false) => name.clone(),
            (None, true) => "(default)".to_owned(),
            (None, false) => String::new(),
        };
        rows.push(vec![name, target.description.clone().unwrap_or_default()]);
    }
    table(&rows, 1)
}

/// Columns as wide as their widest cell, `gap` blanks between them.
fn table(rows: &[Vec<String>], gap: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + gap
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = if column + 1 == row.len() { 0 } else { widths[column] };
            // Writing to a String cannot fail.
            let _ = write!(text, "{cell:width$}");
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_and_others_refused() {
        let call = |text: &str, check| Call::read(Some(text), check);
        let question = |text: &str| call(text, false).map(|call| call.question);
        assert_eq!(question("build"), Ok(None));
        assert_eq!(question("check"), Ok(Some(Question::Check)));
        assert_eq!(question("outline,format=text"), Ok(Some(Question::Outline)));
        assert!(call("targets,format=json", false).is_ok_and(|call| call.json));
        assert!(call("check,ignorestatus", true).is_ok_and(|call| call.ignore_status));
        assert_eq!(Call::read(None, true).map(|call| call.question), Ok(Some(Question::Check)));
        assert_eq!(Call::read(None, false).map(|call| call.question), Ok(None));
        for (text, check) in [("oultine", false), ("check,format=xml", false), ("outline", true)] {
            assert!(call(text, check).is_err(), "{text}");
        }
    }

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [["a", "bb", "c"], ["long", "", "d"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect();
        assert_eq!(table(&rows, 2), "a     bb  c\nlong      d\n");
    }
}
