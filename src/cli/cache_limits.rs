//! Sizes and durations as people type them, and the bounds of the cache.

use std::time::Duration;

use super::request::FlagError;
use crate::collect::Limits;
use crate::dockerfile::duration;

/// How old a record may become unless told otherwise, kaniko's two weeks.
pub(super) const DEFAULT_TTL: &str = "336h";

/// The bounds that `--cache-max-size` and `--cache-ttl` set.
///
/// # Errors
/// A value that can't be read, named with its flag.
pub(super) fn limits(max_size: Option<&str>, ttl: &str) -> Result<Limits, FlagError> {
    let max_size = max_size
        .filter(|text| !text.is_empty())
        .map(|text| size(text).map_err(|reason| FlagError::new("--cache-max-size", text, &reason)))
        .transpose()?;
    let ttl = time(ttl).map_err(|reason| FlagError::new("--cache-ttl", ttl, &reason))?;
    Ok(Limits { max_size, ttl: Some(ttl) })
}

/// Reads `336h`, `90m`, `1h30m`, as Go does. Nothing negative.
///
/// # Errors
/// What is wrong, in a few words.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let nanoseconds = duration::parse(text)?;
    let nanoseconds = u64::try_from(nanoseconds).map_err(|_| "it is negative".to_owned())?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// Reads a number of bytes: `500MB`, `20GiB`, `1.5G`, `1048576`. One letter and `iB`
/// count by 1024, `B` after it by 1000, as `du` and `dd` have it.
///
/// # Errors
/// What is wrong, in a few words.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|char: char| !(char.is_ascii_digit() || char == '.'));
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let unit = unit.trim_start().to_ascii_lowercase();
    let (letter, base) = match unit.as_str() {
        "" | "b" => (None, 1),
        _ => match unit.strip_suffix("ib") {
            Some(letter) => (Some(letter), 1024),
            None => match unit.strip_suffix('b') {
                Some(letter) => (Some(letter), 1000),
                None => (Some(unit.as_str()), 1024),
            },
        },
    };
    let power = match letter {
        None => 0,
        Some("k") => 1,
        Some("m") => 2,
        Some("g") => 3,
        Some("t") => 4,
        Some(_) => return Err("a unit like MB, GiB or G is expected".to_owned()),
    };
    let scale = u128::from(u64::pow(base, power));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction: String = fraction.chars().take(12).collect();
    let parse = |digits: &str| -> Result<u128, String> {
        if digits.is_empty() { Ok(0) } else { digits.parse::<u64>().map(u128::from) }
            .map_err(|_: std::num::ParseIntError| "a number is expected".to_owned())
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err("a number is expected".to_owned());
    }
    let part = parse(&fraction)? * scale / 10_u128.pow(fraction.len() as u32);
    u64::try_from(parse(whole)? * scale + part).map_err(|_| "it is too large".to_owned())
}

/// Bytes for people: `20.0 GB`.
pub(super) fn human(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1000.0, 0);
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_binary_and_decimal_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("7b", 7),
            ("500MB", 500_000_000),
            ("20GiB", 20 << 30),
            ("20 gib", 20 << 30),
            ("1.5G", 3 << 29),
            ("2k", 2048),
            (".5TB", 500_000_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "x", "GB", "-1", "1XB", "1.2.3", "99999999999T", "1e3"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ages_are_read_as_kaniko_reads_them() {
        assert_eq!(time(DEFAULT_TTL), Ok(Duration::from_secs(14 * 24 * 3600)));
        assert_eq!(time("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(time("0"), Ok(Duration::ZERO));
        for bad in ["", "2", "2 weeks", "-1h"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_told_in_four_letters_or_less() {
        let told: Vec<String> =
            [0, 999, 1000, 999_949, 999_950, 20_000_000_000].into_iter().map(human).collect();
        assert_eq!(told, ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "20.0 GB"]);
    }
}
