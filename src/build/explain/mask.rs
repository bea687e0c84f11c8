//! Values as they are kept for explanations: those that look like secrets only as a
//! keyed digest, which tells that a value changed and nothing else.
//!
//! A kept value is text with one letter in front:
//!
//! ```text
//! =text              the value
//! ~<16 hex> text     the beginning of a long one, or one with secrets in it taken
//!                    out, and the keyed digest of all of it
//! *<16 hex>          a hidden one: digest under the cache's own key
//! ```
//!
//! What looks like a secret is judged by name and by value, and errs on the side of
//! hiding: a value hidden in vain costs an arrow in a message.

use yadokari_cache::Places;

use super::reason::Shown;

/// Letters of a value that are kept.
const LONGEST: usize = 200;

/// Shortest secret that is looked for inside other texts, in bytes: shorter ones
/// stand everywhere.
const SHORTEST: usize = 6;

/// Parts of a variable's name that say that its value is secret.
const TELLING: &[&str] = &[
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "TOKEN",
    "SECRET",
    "CREDENTIAL",
    "CREDENTIALS",
    "CREDS",
    "AUTH",
    "OAUTH",
    "AUTHORIZATION",
    "KEY",
    "KEYS",
    "APIKEY",
    "PRIVATEKEY",
    "ACCESSKEY",
    "COOKIE",
    "SESSION",
    "JWT",
    "BEARER",
    "DSN",
    "WEBHOOK",
    "PASS",
    "PWD",
    "PAT",
];

/// The same where they may stand anywhere in the name.
const TELLING_INSIDE: &[&str] = &["PASSWORD", "PASSWD", "SECRET", "TOKEN", "CREDENTIAL", "APIKEY"];

/// Variables whose names only seem telling.
const INNOCENT: &[&str] = &["PWD", "OLDPWD", "GPG_KEY"];

/// Parts of a name that explain why a value looks random.
const NAMES_OF_DIGESTS: &[&str] = &[
    "SHA", "SHA1", "SHA256", "SHA512", "COMMIT", "REVISION", "REV", "DIGEST", "HASH", "CHECKSUM",
    "VERSION", "REF", "BUILD", "GIT",
];

/// How tokens of well-known services begin.
const TOKEN_PREFIXES: &[&str] = &[
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "AKIA",
    "ASIA",
    "eyJ",
    "sk-",
    "sk_live_",
    "rk_live_",
    "npm_",
    "pypi-",
    "dckr_pat_",
    "hvs.",
    "-----BEGIN",
];

/// Makes kept values, and shown ones out of them.
#[derive(Clone)]
pub(super) struct Mask {
    key: [u8; 32],
    /// Values to be hidden wherever they stand.
    secrets: Vec<String>,
}

impl Mask {
    /// The mask of a cache; without its key, values are compared within this build
    /// alone. `secrets` are values of variables, by name.
    pub(super) fn new<'a>(
        places: &Places,
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let own = || {
            use std::hash::BuildHasher;
            use std::hash::Hasher;
            let random = std::hash::RandomState::new().build_hasher().finish();
            *blake3::hash(&random.to_le_bytes()).as_bytes()
        };
        let mut mask = Self { key: places.mask_key().unwrap_or_else(own), secrets: Vec::new() };
        for (name, value) in variables {
            mask.learn(name, value);
        }
        mask
    }

    /// Hides the value of a variable from now on, if it looks like a secret.
    pub(super) fn learn(&mut self, name: &str, value: &str) {
        if value.len() >= SHORTEST
            && looks_secret(name, value)
            && !self.secrets.iter().any(|known| known == value)
        {
            self.secrets.push(value.to_owned());
            // Of two secrets, one in the other, the longer one goes first.
            self.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        }
    }

    /// The value of a variable, to be kept.
    pub(super) fn variable(&self, name: &str, value: &str) -> String {
        if looks_secret(name, value) { self.hidden(value) } else { self.text(value) }
    }

    /// Any other text, to be kept: secrets in it are replaced by asterisks.
    pub(super) fn text(&self, text: &str) -> String {
        let masked = self.shown(text);
        if masked == text && text.chars().count() <= LONGEST {
            return format!("={text}");
        }
        let beginning: String = masked.chars().take(LONGEST).collect();
        let dots = if beginning.len() < masked.len() { "…" } else { "" };
        format!("~{} {beginning}{dots}", self.digest(text))
    }

    /// `text` with asterisks for every secret in it.
    pub(super) fn shown(&self, text: &str) -> String {
        let mut masked = text.to_owned();
        for secret in &self.secrets {
            if masked.contains(secret.as_str()) {
                masked = masked.replace(secret.as_str(), "***");
            }
        }
        words(&masked)
    }

    fn hidden(&self, value: &str) -> String {
        format!("*{}", self.digest(value))
    }

    fn digest(&self, value: &str) -> String {
        let digest = blake3::keyed_hash(&self.key, value.as_bytes());
        digest.to_hex().as_str()[..16].to_owned()
    }
}

/// What is shown of a kept value.
pub(super) fn show(kept: &str) -> Shown {
    match kept.split_at_checked(1) {
        Some(("=", text)) => Shown::Clear(text.to_owned()),
        Some(("~", rest)) => {
            let text = rest.split_once(' ').map_or("", |(_, text)| text);
            Shown::Clear(text.to_owned())
        }
        _ => Shown::HIDDEN,
    }
}

/// Whether a variable of this name and value is none of anybody's business.
fn looks_secret(name: &str, value: &str) -> bool {
    if value.is_empty() {
        return false;
    }
    let parts = parts(name);
    let upper = name.to_ascii_uppercase();
    let by_name = !INNOCENT.contains(&upper.as_str())
        && (parts.iter().any(|part| TELLING.contains(&part.as_str()))
            || TELLING_INSIDE.iter().any(|inside| upper.contains(inside)));
    let random_is_fine = parts.iter().any(|part| NAMES_OF_DIGESTS.contains(&part.as_str()));
    by_name || words(value) != value || (!random_is_fine && looks_random(value))
}

/// The words of a name in capitals: `dbPassword`, `DB_PASSWORD` and `db-password`
/// have the same.
fn parts(name: &str) -> Vec<String> {
    let mut parts: Vec<String> = vec![String::new()];
    let mut before_was_small = false;
    for letter in name.chars() {
        let separates = !letter.is_ascii_alphanumeric();
        if separates || (letter.is_ascii_uppercase() && before_was_small) {
            parts.push(String::new());
        }
        if !separates && let Some(last) = parts.last_mut() {
            last.push(letter.to_ascii_uppercase());
        }
        before_was_small = letter.is_ascii_lowercase();
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// `text` with asterisks for what is secret wherever it stands: user and password in
/// a URL, tokens of well-known services.
fn words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let is_gap = |letter: char| letter.is_whitespace() || "\"'=,;()<>|".contains(letter);
    for piece in text.split_inclusive(is_gap) {
        let (word, gap) = match piece.char_indices().next_back() {
            Some((at, letter)) if is_gap(letter) => piece.split_at(at),
            _ => (piece, ""),
        };
        let is_token = TOKEN_PREFIXES
            .iter()
            .any(|prefix| word.starts_with(prefix) && word.len() >= prefix.len() + 12);
        if is_token {
            out.push_str("***");
        } else if let Some((scheme, rest)) = word.split_once("://")
            && let end = rest.find(['/', '?', '#']).unwrap_or(rest.len())
            && let Some(at) = rest[..end].rfind('@')
        {
            out.push_str(&format!("{scheme}://***{}", &rest[at..]));
        } else {
            out.push_str(word);
        }
        out.push_str(gap);
    }
    out
}

/// Whether a part of `value` looks drawn at random: long, mixed, and with many
/// different letters.
fn looks_random(value: &str) -> bool {
    value.split(|letter: char| !(letter.is_ascii_alphanumeric() || "+_-".contains(letter))).any(
        |run| {
            if run.len() < 20 {
                return false;
            }
            let has = |class: fn(&char) -> bool| run.chars().any(|letter| class(&letter));
            let digits = has(char::is_ascii_digit);
            let is_hex = run.len() >= 32 && run.bytes().all(|byte| byte.is_ascii_hexdigit());
            let mixed = has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase) && digits;
            // Random hex has 3.6 to 4 bits a letter at this length, base 62 above 4;
            // words with a number in them are below.
            (is_hex && digits && bits_per_letter(run) > 3.0)
                || (mixed && bits_per_letter(run) > 3.8)
        },
    )
}

/// Shannon entropy of the letters of `text`.
fn bits_per_letter(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        counts[usize::from(byte)] += 1;
    }
    let total = text.len() as f64;
    let share = |count: u32| f64::from(count) / total;
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| -share(*count) * share(*count).log2())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask() -> Mask {
        let secrets = vec!["hunter2hunter2".to_owned()];
        Mask { key: [7; 32], secrets }
    }

    #[test]
    fn what_looks_like_a_secret_is_hidden() {
        for (name, value) in [
            ("PASSWORD", "x"),
            ("DB_PASSWORD", "x"),
            ("dbPassword", "x"),
            ("MYSQL_ROOT_PASSWORD", "x"),
            ("NPM_TOKEN", "x"),
            ("GITHUBTOKEN", "x"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("SSH_KEY", "x"),
            ("API-KEY", "x"),
            ("REGISTRY_AUTH", "x"),
            ("credentials", "x"),
            ("URL", "https://me:pw@example.org/x"),
            ("INDEX", "https://token@example.org/simple"),
            ("A", "ghp_0123456789abcdefghijABCDEFGHIJ"),
            ("A", "eyJhbGciOiJIUzI1NiJ9.e30.x"),
            ("A", "q9Zt3LmK8vXw2RbY7cHd5NfJ"),
            ("A", "3f8a9c0b1d2e4f5a6b7c8d9e0f1a2b3c"),
        ] {
            let kept = mask().variable(name, value);
            assert!(!kept.contains(value) || value == "x", "{name}={value}: {kept}");
            assert_eq!(show(&kept), Shown::HIDDEN, "{name}={value}");
        }
    }

    #[test]
    fn what_is_ordinary_is_shown() {
        for (name, value) in [
            ("VERSION", "1.2.3"),
            ("AUTHOR", "somebody"),
            ("KEYBOARD", "de"),
            ("PWD", "/src"),
            ("PASSWORD", ""),
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("URL", "https://example.org/a@b"),
            ("GIT_SHA", "3f8a9c0b1d2e4f5a6b7c8d9e0f1a2b3c4d5e6f70"),
            ("PYTHON_SHA256", "3f8a9c0b1d2e4f5a6b7c8d9e0f1a2b3c3f8a9c0b1d2e4f5a6b7c8d9e0f1a2b3c"),
            ("JAVA_OPTS", "-XX:MaxRAMPercentage=75.0 -Dfile.encoding=UTF-8"),
            ("DEBIAN_FRONTEND", "noninteractive"),
        ] {
            let kept = mask().variable(name, value);
            assert_eq!(show(&kept), Shown::Clear(value.to_owned()), "{name}={value}");
        }
    }

    #[test]
    fn hidden_values_compare_and_depend_on_the_key() {
        let other = Mask { key: [8; 32], secrets: Vec::new() };
        let one = mask().variable("TOKEN", "a");
        assert_eq!(one, mask().variable("TOKEN", "a"));
        assert_ne!(one, mask().variable("TOKEN", "b"));
        assert_ne!(one, other.variable("TOKEN", "a"));
    }

    #[test]
    fn secrets_inside_other_texts_are_masked_and_still_compared() {
        let kept = mask().text("curl -u me:hunter2hunter2 http://a:b@c/d");
        assert!(!kept.contains("hunter2") && !kept.contains("a:b"), "{kept}");
        assert_eq!(show(&kept), Shown::Clear("curl -u me:*** http://***@c/d".to_owned()));
        assert_ne!(kept, mask().text("curl -u me:hunter2hunter2 http://a:c@c/d"));
    }

    #[test]
    fn long_texts_are_cut_and_still_compared() {
        let long = "word ".repeat(100);
        let (one, other) = (mask().text(&long), mask().text(&format!("{long}.")));
        assert_ne!(one, other);
        assert!(one.len() < 300);
        assert_eq!(show(&one), show(&other));
    }
}
