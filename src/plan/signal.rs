//! Names of Linux signals, for STOPSIGNAL.

/// As Docker's `ParseSignal` knows them (moby/sys/signal), without `SIG`.
const NAMES: [&str; 34] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// Whether `text` names a signal: a number other than zero, or a name in any
/// case, with `SIG` in front or not.
pub(super) fn is_valid(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES.contains(&name) || is_real_time(name)
}

/// `RTMIN`, `RTMIN+1` to `+15`, `RTMAX`, `RTMAX-1` to `-14`.
fn is_real_time(name: &str) -> bool {
    let within = |rest: &str, sign: char, most: u8| {
        rest.is_empty()
            || rest.strip_prefix(sign).is_some_and(|digits| {
                !digits.starts_with('0')
                    && digits.bytes().all(|byte| byte.is_ascii_digit())
                    && digits.parse::<u8>().is_ok_and(|number| number <= most)
            })
    };
    match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => within(rest, '+', 15),
        (_, Some(rest)) => within(rest, '-', 14),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_names_or_numbers() {
        for good in ["SIGTERM", "term", "9", "37", "SIGRTMIN", "RTMIN+3", "sigrtmax-14"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "0", "SIG", "SIGFOO", "RTMIN+16", "RTMAX-15", "RTMIN+", "TERM ", "RTMAX+1"]
        {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
