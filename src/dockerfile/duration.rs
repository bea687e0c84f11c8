//! Durations in Go's syntax: `1h30m`, `1.5s`, `300ms`.

/// Reads a duration as Go's `time.ParseDuration` does; nanoseconds.
///
/// # Errors
/// A message, on anything else and on more than about 292 years.
pub fn parse(text: &str) -> Result<i64, String> {
    let bad = || format!("invalid duration `{text}`");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(bad());
        }
        let end = after.find(|char: char| char == '.' || char.is_ascii_digit());
        let (unit, after) = after.split_at(end.unwrap_or(after.len()));
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60 * 1_000_000_000,
            "h" => 3_600 * 1_000_000_000,
            "" => return Err(format!("missing unit in duration `{text}`")),
            other => return Err(format!("unknown unit `{other}` in duration `{text}`")),
        };
        let whole = whole.bytes().try_fold(0_i128, |sum, digit| {
            let sum = sum * 10 + i128::from(digit - b'0');
            (sum <= i128::from(i64::MAX)).then_some(sum)
        });
        total += whole.ok_or_else(bad)? * scale;
        // In millionths of a nanosecond, so that the sum is cut once.
        let mut part = scale * 1_000_000;
        let mut sum = 0;
        for digit in fraction.bytes().take(18) {
            part /= 10;
            sum += i128::from(digit - b'0') * part;
        }
        total += sum / 1_000_000;
        if total > i128::from(i64::MAX) {
            return Err(bad());
        }
        rest = after;
    }
    let total = if negative { -total } else { total };
    i64::try_from(total).map_err(|_| bad())
}

fn digits(text: &str) -> (&str, &str) {
    let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        const SECOND: i64 = 1_000_000_000;
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("5s"), Ok(5 * SECOND));
        assert_eq!(parse("1h2m3.5s"), Ok((3600 + 120 + 3) * SECOND + SECOND / 2));
        assert_eq!(parse("-.5s"), Ok(-SECOND / 2));
        assert_eq!(parse("100µs"), Ok(100_000));
        for bad in ["", "5", "s", ".s", "1x", "1s2", "+", "9999999999999h", "１s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
