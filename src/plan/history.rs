//! The texts of history rows, as Go prints them in BuildKit (`%q`, `%v`, `%+v`).

use std::fmt::Write as _;

use super::scope::Scope;
use crate::oci::config::HealthConfig;

/// `RUN |N k=v … program arguments # buildkit`: every ARG in scope goes first.
pub(super) fn run(scope: &Scope, arguments: &[String]) -> String {
    let declared = scope.declared();
    let mut text = "RUN".to_owned();
    if !declared.is_empty() {
        let _ = write!(text, " |{}", declared.len());
        for (name, value) in declared {
            let _ = write!(text, " {name}={value}");
        }
    }
    for argument in arguments {
        text.push(' ');
        text.push_str(argument);
    }
    text.push_str(" # buildkit");
    text
}

/// `%v` of a slice of strings: `[a b]`.
pub(super) fn plain_list<S: AsRef<str>>(items: &[S]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    format!("[{}]", items.join(" "))
}

/// `%q` of a slice of strings: `["a" "b"]`.
pub(super) fn quoted_list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quote(item)).collect();
    plain_list(&items)
}

/// `strconv.Quote`.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x0b' => quoted.push_str("\\v"),
            _ if is_printable(letter) => quoted.push(letter),
            _ => {
                let code = u32::from(letter);
                let _ = match code {
                    0..=0x7f => write!(quoted, "\\x{code:02x}"),
                    0x80..=0xffff => write!(quoted, "\\u{code:04x}"),
                    _ => write!(quoted, "\\U{code:08x}"),
                };
            }
        }
    }
    quoted.push('"');
    quoted
}

/// Go's `IsPrint`: Rust's own quoting draws the line at the same Unicode classes,
/// but only leaves a combining letter alone when it isn't the first.
fn is_printable(letter: char) -> bool {
    matches!(letter, '\'') || format!("a{letter}").escape_debug().count() == 2
}

/// `%+v` of Docker's `HealthcheckConfig`.
pub(super) fn health(health: &HealthConfig) -> String {
    format!(
        "{{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        plain_list(&health.test),
        duration(health.interval),
        duration(health.timeout),
        duration(health.start_period),
        duration(health.start_interval),
        health.retries
    )
}

/// `time.Duration.String` of nanoseconds: `1h0m0s`, `1.5s`, `100ms`, `0s`.
fn duration(nanoseconds: i64) -> String {
    const SECOND: u64 = 1_000_000_000;
    let total = nanoseconds.unsigned_abs();
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let text = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(total, 1_000)),
        1_000_000..SECOND => format!("{}ms", decimal(total, 1_000_000)),
        _ => {
            let (hours, rest) = (total / (3_600 * SECOND), total % (3_600 * SECOND));
            let (minutes, rest) = (rest / (60 * SECOND), rest % (60 * SECOND));
            let seconds = decimal(rest, SECOND);
            match (hours, minutes) {
                (0, 0) => format!("{seconds}s"),
                (0, _) => format!("{minutes}m{seconds}s"),
                _ => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// `value / unit` without trailing zeros; `unit` is a power of ten.
fn decimal(value: u64, unit: u64) -> String {
    let digits = unit.ilog10() as usize;
    let text = format!("{}.{:0digits$}", value / unit, value % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_go_does() {
        for (text, expected) in [
            ("a", "\"a\""),
            ("it's \"x\"", "\"it's \\\"x\\\"\""),
            ("a\\n\n\t\x07\x1b\x7f", "\"a\\\\n\\n\\t\\a\\x1b\\x7f\""),
            ("é日\u{301}", "\"é日\u{301}\""),
            ("\u{a0}\u{200b}\u{e0001}", "\"\\u00a0\\u200b\\U000e0001\""),
        ] {
            assert_eq!(quote(text), expected);
        }
        assert_eq!(quoted_list(&["a".to_owned(), "b c".to_owned()]), "[\"a\" \"b c\"]");
        assert_eq!(quoted_list(&[]), "[]");
    }

    #[test]
    fn durations_are_printed_as_go_does() {
        for (nanoseconds, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (100_000_000, "100ms"),
            (1_500_000_000, "1.5s"),
            (5_000_000_000, "5s"),
            (60_000_000_000, "1m0s"),
            (3_661_000_000_000, "1h1m1s"),
            (3_600_000_000_000, "1h0m0s"),
            (-2_000_000_000, "-2s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(duration(nanoseconds), expected);
        }
    }

    #[test]
    fn a_probe_is_printed_as_go_prints_the_struct() {
        let probe = HealthConfig {
            test: vec!["CMD-SHELL".to_owned(), "curl -f x".to_owned()],
            interval: 5_000_000_000,
            retries: 3,
            ..HealthConfig::default()
        };
        assert_eq!(
            health(&probe),
            "{Test:[CMD-SHELL curl -f x] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:3}"
        );
    }
}
