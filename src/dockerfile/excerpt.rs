//! Lines of a Dockerfile: which ones a span covers, what they look like, and the
//! comment above them.

use crate::dockerfile::instruction::Dockerfile;
use crate::dockerfile::instruction::Span;
use std::fmt::Write;

/// Lines shown around a finding of one line; around longer ones half of that.
const AROUND: usize = 4;

/// The line that frames an excerpt.
const FRAME: &str = "--------------------";

/// The lines of one Dockerfile, for looking up places in it.
#[derive(Debug)]
pub struct Lines<'a> {
    dockerfile: &'a Dockerfile,
    /// Offset of the first byte of each line.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// Looks for the line breaks once.
    pub fn of(dockerfile: &'a Dockerfile) -> Self {
        let breaks = dockerfile.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let starts = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        Self { dockerfile, starts }
    }

    /// First and last line that `span` touches, from 1.
    pub fn range(&self, span: Span) -> (usize, usize) {
        let line = |offset: usize| self.starts.partition_point(|start| *start <= offset).max(1);
        let first = line(span.start);
        let last = line(span.end.max(span.start + 1) - 1);
        (first, last.max(first))
    }

    /// The text of a line, without its end; empty beyond the last.
    pub fn text(&self, line: usize) -> &'a str {
        let Some(start) = line.checked_sub(1).and_then(|index| self.starts.get(index)) else {
            return "";
        };
        let end = self.starts.get(line).copied().unwrap_or(self.dockerfile.text.len());
        self.dockerfile.text[*start..end].trim_end_matches(['\n', '\r'])
    }

    /// The lines around `span` as BuildKit shows them: a heading with file and line,
    /// then numbered lines, those of the span marked with `>>>`. Ends in a line feed.
    pub fn excerpt(&self, span: Span) -> String {
        let (first, last) = self.range(span);
        let count = self.starts.len();
        let around = if first == last { AROUND } else { AROUND / 2 };
        let (mut top, mut bottom, mut shown) = (first, last.min(count), 0);
        // Near an end of the file the other side gets more.
        while shown < around && (top > 1 || bottom < count) {
            if top > 1 {
                top -= 1;
                shown += 1;
            }
            if bottom < count {
                bottom += 1;
                shown += 1;
            }
            shown += 1;
        }
        let mut text = format!("{}:{first}\n{FRAME}\n", self.dockerfile.name);
        for line in top..=bottom {
            let mark = if (first..=last).contains(&line) { ">>>" } else { "   " };
            // Writing to a String cannot fail.
            let _ = writeln!(text, " {line:>3} | {mark} {}", self.text(line));
        }
        text.push_str(FRAME);
        text.push('\n');
        text
    }
}

/// The comments right above the instruction that starts at `start`, nearest last,
/// without their `#`. A blank line ends them.
pub fn comments_above(text: &str, start: usize) -> Vec<&str> {
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let mut comments = Vec::new();
    let mut rest = text[..line_start].strip_suffix('\n');
    while let Some(above) = rest {
        let from = above.rfind('\n').map_or(0, |newline| newline + 1);
        let line = above[from..].trim_start_matches('\u{feff}').trim();
        let Some(comment) = line.strip_prefix('#') else { break };
        comments.push(comment.trim());
        rest = above[..from].strip_suffix('\n');
    }
    comments.reverse();
    comments
}

/// What the comments above the instruction at `start` say about `name`: the rest of
/// the first that begins with it.
pub fn description<'a>(text: &'a str, start: usize, name: &str) -> Option<&'a str> {
    comments_above(text, start)
        .into_iter()
        .find_map(|comment| comment.strip_prefix(name)?.strip_prefix(' '))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile;

    fn parsed(text: &str) -> Dockerfile {
        dockerfile::parse("Dockerfile", text.as_bytes()).expect("valid")
    }

    #[test]
    fn an_excerpt_marks_the_lines_and_shows_what_is_around() {
        let file = parsed("FROM a\nRUN b\nRUN c\nRUN d \\\n e\nRUN f\n");
        let lines = Lines::of(&file);
        let shown = lines.excerpt(file.instructions[2].span);
        let expected = "Dockerfile:3\n--------------------\n   1 |     FROM a\n   2 |     RUN b\n   \
                        3 | >>> RUN c\n   4 |     RUN d \\\n   5 |      e\n--------------------\n";
        assert_eq!(shown, expected);
        assert_eq!(lines.range(file.instructions[3].span), (4, 5));
        assert_eq!(lines.text(99), "");
    }

    #[test]
    fn any_span_has_lines_and_an_excerpt() {
        let file = parsed("FROM é\r\nRUN ü");
        for start in 0..20 {
            for end in 0..20 {
                let shown = Lines::of(&file).excerpt(Span { start, end });
                assert!(shown.contains(">>>"), "{start} {end}");
            }
        }
    }

    #[test]
    fn comments_belong_to_what_follows_them_without_a_blank_line() {
        let text = "# far\n\n# A first\n  # B second \nARG A B\n";
        let start = text.find("ARG").expect("there");
        assert_eq!(comments_above(text, start), ["A first", "B second"]);
        assert_eq!(description(text, start, "B"), Some("second"));
        assert_eq!(description(text, start, "fir"), None);
        assert_eq!(comments_above(text, 0), [""; 0]);
        assert_eq!(comments_above("#x\nFROM a", 3), ["x"]);
    }
}
