//! What a case expects of its image or of what the builder says: the files `expect`,
//! `config`, `history`, `layers`, `error`, `output` and `check` of a case. What they
//! look like is told in the head of `conformance.rs`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::process::Output;

use serde_json::Value;

use super::cases::Case;
use super::image::Entry;
use super::image::Image;

/// Everything in which `image` is not what the case expects; `base` is the image
/// that BASE names.
pub(crate) fn image_faults(case: &Case, image: &Image, base: &Image) -> Vec<String> {
    let mut faults = Vec::new();
    if let Some(text) = case.read("expect") {
        faults.extend(tree(&text, &image.flatten()));
    }
    if let Some(text) = case.read("config") {
        faults.extend(config(&text, &image.config));
    }
    let beyond = Beyond::of(image, base);
    faults.extend(beyond.foreign_comments());
    if let Some(text) = case.read("history") {
        faults.extend(difference("history", &text, &beyond.history()));
    }
    if let Some(text) = case.read("layers") {
        faults.extend(layers(&text, &beyond.layers()));
    }
    faults
}

/// Everything in which a refusal is not the expected one.
pub(crate) fn error_faults(expected: &str, output: &Output) -> Vec<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let mut faults = Vec::new();
    let mut code = 1;
    for line in lines(expected) {
        if let Some(number) = line.strip_prefix("exit ") {
            code = number.parse().expect("an exit code");
        } else if let Some(place) = line.strip_prefix("at ") {
            let place = format!("Dockerfile:{place}");
            let is_there = said.match_indices(&place).any(|(at, _)| {
                let next = said[at + place.len()..].chars().next();
                place.ends_with(':') || next.is_none_or(|next| !next.is_ascii_digit())
            });
            if !is_there {
                faults.push(format!("nothing is said of {place}"));
            }
        } else if !said.contains(line) {
            faults.push(format!("`{line}` isn't said"));
        }
    }
    if output.status.code() != Some(code) {
        faults.push(format!("{} instead of exit code {code}", output.status));
    }
    if !faults.is_empty() {
        faults.push(format!("said was:\n{said}"));
    }
    faults
}

/// Everything in which what was said is not what is expected.
pub(crate) fn output_faults(expected: &str, output: &Output) -> Vec<String> {
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    lines(expected)
        .filter_map(|line| match line.strip_prefix("! ") {
            Some(secret) => said.contains(secret).then(|| format!("`{secret}` is said:\n{said}")),
            None => (!said.contains(line)).then(|| format!("`{line}` isn't said:\n{said}")),
        })
        .collect()
}

/// Everything in which the findings of a check are not the expected ones.
pub(crate) fn check_faults(expected: &str, output: &Output) -> Vec<String> {
    let answer: Value = match serde_json::from_slice(&output.stdout) {
        Ok(answer) => answer,
        Err(error) => {
            let said = String::from_utf8_lossy(&output.stderr);
            return vec![format!("the answer of the check is no JSON: {error}\n{said}")];
        }
    };
    let none = Vec::new();
    let mut found = String::new();
    for warning in answer["warnings"].as_array().unwrap_or(&none) {
        let line = &warning["location"]["ranges"][0]["start"]["line"];
        let (rule, detail) = (&warning["ruleName"], &warning["detail"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let _ = writeln!(found, "{line} {}: {}", text(rule), text(detail));
    }
    let mut faults = difference("findings", expected, &found);
    let code = i32::from(lines(expected).next().is_some());
    if output.status.code() != Some(code) {
        faults.push(format!("{} instead of exit code {code}", output.status));
    }
    faults
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim().is_empty())
}

fn difference(what: &str, expected: &str, found: &str) -> Vec<String> {
    if expected.trim_end() == found.trim_end() {
        return Vec::new();
    }
    vec![format!("{what}, expected:\n{}\nfound:\n{}", expected.trim_end(), found.trim_end())]
}

/// Lines are `PATH = CONTENT` (with `\n`), `PATH : ENTRY`, or `! PATH`.
fn tree(expected: &str, found: &BTreeMap<String, Entry>) -> Vec<String> {
    let mut faults = Vec::new();
    for line in lines(expected) {
        if let Some(path) = line.strip_prefix("! ") {
            if found.contains_key(path) {
                faults.push(format!("{path} is there"));
            }
        } else if let Some((path, entry)) = line.split_once(" : ") {
            let there = found.get(path).map(|found| found.text.as_str());
            if there != Some(entry) {
                faults.push(format!("{path} is {there:?}, not {entry:?}"));
            }
        } else if let Some((path, content)) = line.split_once(" = ") {
            let there = found.get(path).map(|found| shown(&found.content));
            if there.as_deref() != Some(content) {
                faults.push(format!("{path} holds {there:?}, not {content:?}"));
            }
        } else {
            panic!("expect has a line that can't be read: {line}");
        }
    }
    faults
}

/// Content as it stands in the files of a case.
fn shown(content: &[u8]) -> String {
    let text = String::from_utf8_lossy(content);
    text.replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r")
}

/// Lines are `POINTER = JSON` or `! POINTER`, pointers as RFC 6901 has them.
fn config(expected: &str, found: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for line in lines(expected) {
        if let Some(pointer) = line.strip_prefix("! ") {
            if let Some(value) = found.pointer(pointer) {
                faults.push(format!("{pointer} is {value}"));
            }
            continue;
        }
        let (pointer, json) = line.split_once(" = ").expect("POINTER = JSON");
        let expected: Value = serde_json::from_str(json)
            .unwrap_or_else(|error| panic!("{pointer}: no JSON in config: {error}"));
        let there = found.pointer(pointer).unwrap_or(&Value::Null);
        if *there != expected {
            faults.push(format!("{pointer} is {there}, not {expected}"));
        }
    }
    faults
}

/// What an image has beyond its base.
struct Beyond<'a> {
    image: &'a Image,
    base_layers: usize,
    base_rows: usize,
}

impl<'a> Beyond<'a> {
    fn of(image: &'a Image, base: &Image) -> Self {
        let list = |image: &Image, pointer: &str| -> Vec<Value> {
            image.config.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let base_layers = list(base, "/rootfs/diff_ids");
        if !list(image, "/rootfs/diff_ids").starts_with(&base_layers) {
            return Self { image, base_layers: 0, base_rows: 0 };
        }
        let base_rows = list(base, "/history").len();
        Self { image, base_layers: base_layers.len(), base_rows }
    }

    fn rows(&self) -> &[Value] {
        let rows = self.image.config["history"].as_array().map(Vec::as_slice).unwrap_or_default();
        rows.get(self.base_rows..).unwrap_or_default()
    }

    /// Every row of ours says which frontend's rules it follows.
    fn foreign_comments(&self) -> Vec<String> {
        self.rows()
            .iter()
            .filter(|row| row["comment"] != "buildkit.dockerfile.v0")
            .map(|row| format!("a history row has another comment: {row}"))
            .collect()
    }

    /// `layer TEXT` or `empty TEXT` for each row, line feeds as `\n`.
    fn history(&self) -> String {
        let mut text = String::new();
        for row in self.rows() {
            let kind = if row["empty_layer"] == true { "empty" } else { "layer" };
            let by = row["created_by"].as_str().unwrap_or_default();
            let _ = writeln!(text, "{kind} {}", shown(by.as_bytes()));
        }
        text
    }

    /// The entries of each layer, in their order.
    fn layers(&self) -> Vec<Vec<TarEntry>> {
        let layers = self.image.manifest["layers"].as_array().expect("layers");
        layers[self.base_layers..].iter().map(|layer| entries(self.image.inflate(layer))).collect()
    }
}

/// An entry of a layer's tar as it stands there.
struct TarEntry {
    /// `NAME KIND MODE UID:GID`, with what links point at.
    text: String,
    /// Whole seconds.
    time: u64,
    content: String,
}

fn entries(layer: impl Read) -> Vec<TarEntry> {
    use tar::EntryType;
    let mut archive = tar::Archive::new(layer);
    let mut found = Vec::new();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("content");
        let extensions: Vec<String> = entry
            .pax_extensions()
            .expect("pax")
            .into_iter()
            .flatten()
            .map(|extension| extension.expect("a record").key().expect("UTF-8").to_owned())
            .filter(|key| key.starts_with("SCHILY.xattr."))
            .map(|key| format!(" {key}"))
            .collect();
        let header = entry.header();
        let kind = match header.entry_type() {
            EntryType::Directory => "directory",
            EntryType::Symlink => "symlink",
            EntryType::Link => "link",
            EntryType::Char => "character",
            EntryType::Block => "block",
            EntryType::Fifo => "fifo",
            _ => "file",
        };
        let mut text = format!(
            "{} {kind} {:04o} {}:{}{}",
            String::from_utf8_lossy(&entry.path_bytes()),
            header.mode().expect("a mode") & 0o7777,
            header.uid().expect("uid"),
            header.gid().expect("gid"),
            extensions.concat(),
        );
        if let Some(target) = entry.link_name_bytes().filter(|target| !target.is_empty()) {
            let _ = write!(text, " -> {}", String::from_utf8_lossy(&target));
        }
        let time = header.mtime().expect("a time");
        found.push(TarEntry { text, time, content: shown(&content) });
    }
    found
}

/// `layer` begins a layer; below it stands each entry of it as `TEXT`, followed by
/// ` @SECONDS` if its time matters and ` = CONTENT` if its content does.
fn layers(expected: &str, found: &[Vec<TarEntry>]) -> Vec<String> {
    let mut wanted: Vec<Vec<&str>> = Vec::new();
    for line in lines(expected) {
        match (line, wanted.last_mut()) {
            ("layer", _) => wanted.push(Vec::new()),
            (entry, Some(layer)) => layer.push(entry),
            (entry, None) => panic!("layers has an entry before the first layer: {entry}"),
        }
    }
    let fits = |wanted: &str, entry: &TarEntry| {
        let (rest, content) = match wanted.split_once(" = ") {
            Some((rest, content)) => (rest, Some(content)),
            None => (wanted, None),
        };
        let (text, time) = match rest.split_once(" @") {
            Some((text, time)) => (text, Some(time)),
            None => (rest, None),
        };
        text == entry.text
            && time.is_none_or(|time| time == entry.time.to_string())
            && content.is_none_or(|content| content == entry.content)
    };
    let same = wanted.len() == found.len()
        && wanted.iter().zip(found).all(|(wanted, found)| {
            wanted.len() == found.len()
                && wanted.iter().zip(found).all(|(wanted, entry)| fits(wanted, entry))
        });
    if same {
        return Vec::new();
    }
    let mut text = String::new();
    for layer in found {
        text.push_str("layer\n");
        for entry in layer {
            let _ = writeln!(text, "{} @{} = {}", entry.text, entry.time, entry.content);
        }
    }
    vec![format!("layers, expected:\n{}\nfound:\n{text}", expected.trim_end())]
}
