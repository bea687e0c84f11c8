//! JSON as Go's encoder writes it, so that equal documents have equal digests
//! whoever wrote them: no blanks, and `<`, `>`, `&`, U+2028 and U+2029 escaped.

use std::io;

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

/// Encodes `value`.
pub(super) fn to_vec<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, Go))
        .expect("maps with text keys, written to memory");
    bytes
}

struct Go;

impl Formatter for Go {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        let mut start = 0;
        for (place, letter) in fragment.char_indices() {
            if matches!(letter, '<' | '>' | '&' | '\u{2028}' | '\u{2029}') {
                writer.write_all(&fragment.as_bytes()[start..place])?;
                write!(writer, "\\u{:04x}", u32::from(letter))?;
                start = place + letter.len_utf8();
            }
        }
        writer.write_all(&fragment.as_bytes()[start..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_go_does() {
        for (text, expected) in [
            ("a && b > c < d", r#""a \u0026\u0026 b \u003e c \u003c d""#),
            ("\u{2028}x\u{2029}", r#""\u2028x\u2029""#),
            ("\"\\\n\t\u{1}é/", "\"\\\"\\\\\\n\\t\\u0001é/\""),
        ] {
            assert_eq!(String::from_utf8(to_vec(&text)).as_deref(), Ok(expected));
        }
    }
}
