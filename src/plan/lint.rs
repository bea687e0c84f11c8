//! Texts and judgements of BuildKit's lint rules, as far as planning sees them.

/// `(did you mean …?)`, or nothing.
fn near(option: Option<&str>, sign: &str) -> String {
    option.map_or_else(String::new, |option| format!(" (did you mean {sign}{option}?)"))
}

/// UndefinedVar
pub(super) fn undefined(name: &str, nearest: Option<&str>) -> String {
    format!("Usage of undefined variable '${name}'{}", near(nearest, "$"))
}

/// UndefinedArgInFrom
pub(super) fn undefined_in_from(name: &str, nearest: Option<&str>) -> String {
    format!("FROM argument '{name}' is not declared{}", near(nearest, ""))
}

/// InvalidDefaultArgInFrom
pub(super) fn invalid_default(image: &str) -> String {
    format!("Default value for ARG {image} results in empty or invalid base image name")
}

/// RedundantTargetPlatform
pub(super) fn redundant_platform(variable: &str) -> String {
    format!(
        "Setting platform to predefined {variable} in FROM is redundant as this is the default behavior"
    )
}

/// FromPlatformFlagConstDisallowed
pub(super) fn constant_platform(platform: &str) -> String {
    format!("FROM --platform flag should not use constant value \"{platform}\"")
}

/// WorkdirRelativePath
pub(super) fn relative_workdir(path: &str) -> String {
    format!("Relative workdir \"{path}\" can have unexpected results if the base image changes")
}

/// SecretsUsedInArgOrEnv
pub(super) fn secret(instruction: &str, name: &str) -> String {
    format!("Do not use ARG or ENV instructions for sensitive data ({instruction} \"{name}\")")
}

/// ExposeProtoCasing
pub(super) fn expose_casing(port: &str) -> String {
    format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase")
}

/// ExposeInvalidFormat
pub(super) fn expose_format(port: &str) -> String {
    format!(
        "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
    )
}

/// Whether a variable of this name probably holds a secret: one of its words (or
/// neighbouring words) says so, and none says it is public.
pub(super) fn sounds_secret(name: &str) -> bool {
    const SECRET: [&str; 10] = [
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    const ALLOWED: [&str; 3] = ["public", "file", "version"];
    let lower = name.to_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|word| words.contains(&word));
    has(&SECRET) && !has(&ALLOWED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_by_whole_words_of_the_name() {
        for secret in ["API_KEY", "DATABASE_PASSWORD", "GITHUB_TOKEN", "secret_MESSAGE", "AUTH"] {
            assert!(sounds_secret(secret), "{secret}");
        }
        for plain in ["KEYBOARD", "PUBLIC_KEY", "TOKEN_FILE", "MONKEY", "TOKEN_VERSION", ""] {
            assert!(!sounds_secret(plain), "{plain}");
        }
    }
}
