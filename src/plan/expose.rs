//! EXPOSE: `[ip:][host:]port[-port][/protocol]`.

use super::lint;

/// A word of EXPOSE, read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ports {
    /// `port/protocol`, ranges written out.
    pub(super) ports: Vec<String>,
    /// Findings: rule and message.
    pub(super) findings: Vec<(&'static str, String)>,
}

/// Reads one word.
///
/// # Errors
/// The message: what is wrong with it.
pub(super) fn parse(word: &str) -> Result<Ports, String> {
    let (outside, inside) = match word.rsplit_once(':') {
        Some((outside, inside)) => (Some(outside), inside),
        None => (None, word),
    };
    let (range, given) = inside.split_once('/').unwrap_or((inside, ""));
    if range.is_empty() {
        return Err(format!("`{word}` names no port"));
    }
    let protocol = match given.to_ascii_lowercase().as_str() {
        "" => "tcp".to_owned(),
        known @ ("tcp" | "udp" | "sctp") => known.to_owned(),
        _ => return Err(format!("`{given}` is no protocol: tcp, udp or sctp is expected")),
    };
    let mut findings = Vec::new();
    if !given.is_empty() && given != protocol {
        findings.push(("ExposeProtoCasing", lint::expose_casing(word)));
    }
    let bad_port = || format!("`{range}` is no port: a number up to 65535 or a range is expected");
    let (first, last) = parse_range(range).ok_or_else(bad_port)?;
    if let Some(outside) = outside {
        check_outside(word, outside, last - first)?;
        findings.push(("ExposeInvalidFormat", lint::expose_format(word)));
    }
    let ports = (first..=last).map(|port| format!("{port}/{protocol}")).collect();
    Ok(Ports { ports, findings })
}

/// The address and port of the host are allowed and mean nothing, but must be ones.
fn check_outside(word: &str, outside: &str, width: u16) -> Result<(), String> {
    let (address, host) = outside.rsplit_once(':').unwrap_or(("", outside));
    let bare = address
        .strip_prefix('[')
        .map_or(Some(address), |rest| rest.strip_suffix(']'))
        .unwrap_or("[");
    if !bare.is_empty() && bare.parse::<std::net::IpAddr>().is_err() {
        return Err(format!("`{address}` in `{word}` is no address"));
    }
    if !host.is_empty() {
        let (first, last) = parse_range(host)
            .ok_or_else(|| format!("`{host}` in `{word}` is no port of the host"))?;
        if width != 0 && last - first != width {
            return Err(format!("the two ranges in `{word}` differ in length"));
        }
    }
    Ok(())
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse::<u16>().ok() } else { None }
    };
    match text.split_once('-') {
        None => number(text).map(|port| (port, port)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some((first, last))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_expanded_and_protocols_lowered() {
        for (word, expected) in [
            ("80", vec!["80/tcp"]),
            ("80/", vec!["80/tcp"]),
            ("53/UDP", vec!["53/udp"]),
            ("8000-8002/sctp", vec!["8000/sctp", "8001/sctp", "8002/sctp"]),
            ("8080:80", vec!["80/tcp"]),
            ("127.0.0.1:8080:80/tcp", vec!["80/tcp"]),
            ("[::1]:80:80", vec!["80/tcp"]),
            ("::1::80", vec!["80/tcp"]),
            ("8000-9000:80", vec!["80/tcp"]),
        ] {
            assert_eq!(
                parse(word).map(|read| read.ports),
                Ok(expected.into_iter().map(str::to_owned).collect()),
                "{word}"
            );
        }
    }

    #[test]
    fn doubtful_words_are_named() {
        let rules = |word| -> Vec<_> {
            parse(word).expect("valid").findings.iter().map(|(rule, _)| *rule).collect()
        };
        assert_eq!(rules("80/TCP"), ["ExposeProtoCasing"]);
        assert_eq!(rules("8080:80"), ["ExposeInvalidFormat"]);
        assert_eq!(rules("80/tcp"), [""; 0]);
    }

    #[test]
    fn wrong_words_are_errors() {
        for word in [
            "",
            "/tcp",
            "http",
            "80/http",
            "65536",
            "-1",
            "9-8",
            "1-2-3",
            "+80",
            "x:80",
            "300.1.1.1:80:80",
            "1-3:8-9",
            "[::1:80:80",
        ] {
            assert!(parse(word).is_err(), "{word}");
        }
    }
}
