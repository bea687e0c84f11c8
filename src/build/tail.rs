//! The output of a process on its way to the log: values of secrets are masked,
//! and the last lines are kept for the error message.

use std::collections::VecDeque;

use super::progress::Stream;

/// Lines kept for the message of a failing step.
const KEPT_LINES: usize = 20;

/// Longest line kept, in bytes; a longer one is cut.
const KEPT_LINE: usize = 4096;

/// What stands in a log for the value of a secret.
const MASK: &[u8] = b"****";

/// See the module.
pub(super) struct Tail {
    masks: Vec<Vec<u8>>,
    /// Bytes held back because a secret may begin in them, by stream.
    held: [Vec<u8>; 2],
    lines: VecDeque<Vec<u8>>,
    line: [Vec<u8>; 2],
}

impl Tail {
    /// Masks `secrets`; values of less than three bytes would mask everything and
    /// are left alone.
    pub(super) fn new(secrets: Vec<Vec<u8>>) -> Self {
        let mut masks: Vec<Vec<u8>> = secrets
            .iter()
            .map(|secret| secret.trim_ascii_end().to_vec())
            .filter(|secret| secret.len() >= 3)
            .collect();
        masks.sort_by_key(|mask| std::cmp::Reverse(mask.len()));
        Self {
            masks,
            held: [Vec::new(), Vec::new()],
            lines: VecDeque::new(),
            line: [Vec::new(), Vec::new()],
        }
    }

    /// Takes output and gives what may be shown of it by now.
    pub(super) fn take(&mut self, stream: Stream, bytes: &[u8]) -> Vec<u8> {
        let slot = stream as usize;
        if self.masks.is_empty() {
            self.keep(slot, bytes);
            return bytes.to_vec();
        }
        let mut all = std::mem::take(&mut self.held[slot]);
        all.extend_from_slice(bytes);
        let (shown, held) = mask(&self.masks, &all, true);
        self.held[slot] = held;
        self.keep(slot, &shown);
        shown
    }

    /// Gives what was held back, at the end of the output.
    pub(super) fn finish(&mut self) -> Vec<(Stream, Vec<u8>)> {
        let mut rest = Vec::new();
        for stream in [Stream::Out, Stream::Err] {
            let slot = stream as usize;
            let (shown, _) = mask(&self.masks, &std::mem::take(&mut self.held[slot]), false);
            self.keep(slot, &shown);
            if !shown.is_empty() {
                rest.push((stream, shown));
            }
        }
        rest
    }

    /// The last lines of both outputs, in order of arrival.
    pub(super) fn last_lines(&self) -> Vec<String> {
        let unfinished = self.line.iter().filter(|line| !line.is_empty());
        let lines: Vec<&Vec<u8>> = self.lines.iter().chain(unfinished).collect();
        let skipped = lines.len().saturating_sub(KEPT_LINES);
        lines[skipped..].iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    fn keep(&mut self, slot: usize, bytes: &[u8]) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ended) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let line = &mut self.line[slot];
            let room = KEPT_LINE.saturating_sub(line.len());
            line.extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                let line = std::mem::take(line);
                self.lines.push_back(line);
                if self.lines.len() > KEPT_LINES {
                    self.lines.pop_front();
                }
            }
        }
    }
}

/// Replaces every mask in `bytes`. With `more` to come, a tail that may be the
/// beginning of a mask is given back as the second part.
fn mask(masks: &[Vec<u8>], bytes: &[u8], more: bool) -> (Vec<u8>, Vec<u8>) {
    let mut shown = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if let Some(found) = masks.iter().find(|mask| rest.starts_with(mask)) {
            shown.extend_from_slice(MASK);
            at += found.len();
        } else if more && masks.iter().any(|mask| mask.starts_with(rest)) {
            return (shown, rest.to_vec());
        } else {
            shown.push(bytes[at]);
            at += 1;
        }
    }
    (shown, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_masked_even_when_it_arrives_in_pieces() {
        let mut tail = Tail::new(vec![b"hunter2\n".to_vec()]);
        let mut shown = tail.take(Stream::Out, b"pass=hun");
        shown.extend(tail.take(Stream::Out, b"ter2 ok hunt"));
        shown.extend(tail.finish().into_iter().flat_map(|(_, bytes)| bytes));
        assert_eq!(String::from_utf8_lossy(&shown), "pass=**** ok hunt");
        assert_eq!(tail.last_lines(), ["pass=**** ok hunt"]);
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut tail = Tail::new(Vec::new());
        for line in 0..100 {
            tail.take(Stream::Err, format!("line {line}\n").as_bytes());
        }
        let lines = tail.last_lines();
        assert_eq!(lines.len(), KEPT_LINES);
        assert_eq!(lines.last().map(String::as_str), Some("line 99"));
    }
}
