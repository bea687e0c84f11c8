//! Texts and judgements of BuildKit's lint rules, as far as planning sees them.

use super::Plan;
use super::stage::Base;
use super::step::Action;
use super::step::CopySource;
use super::step::Origin;
use super::steps::Steps;
use crate::dockerfile::instruction::Warning;
use crate::ignore::Matcher;
use crate::oci::config::ImageConfig;
use crate::oci::platform::Platform;
use crate::path::RootPath;

impl Plan {
    /// Warns of sources of `steps` that the build context's `ignore` rules exclude.
    pub fn ignored_sources(&self, steps: &Steps, ignore: &Matcher) -> Vec<Warning> {
        const RULE: &str = "CopyIgnoredFile";
        let mut warnings = Vec::new();
        for step in &steps.steps {
            let Action::Copy(copy) = &step.action else { continue };
            if copy.origin != Origin::Context || !self.dockerfile.check.allows(RULE, step.span) {
                continue;
            }
            let verb = if copy.add { "Add" } else { "Copy" };
            for source in &copy.sources {
                let CopySource::Path(path) = source else { continue };
                if RootPath::clamped(path.as_bytes()).is_some_and(|place| ignore.excludes(&place)) {
                    let message = ignored(verb, path);
                    warnings.push(Warning { rule: RULE, message, span: step.span });
                }
            }
        }
        warnings
    }

    /// Warns when the image that `stage` starts from is for another platform than the
    /// stage: an image without an index may be for anything.
    pub fn base_platform(&self, stage: usize, image: &ImageConfig) -> Option<Warning> {
        const RULE: &str = "InvalidBaseImagePlatform";
        let stage = self.stages.get(stage)?;
        let Base::Image(name) = &stage.base else { return None };
        let wanted = &stage.platform;
        let fits = image.os == wanted.os && image.architecture == wanted.architecture;
        if fits || !self.dockerfile.check.allows(RULE, stage.span) {
            return None;
        }
        let actual = Platform::new(&image.os, &image.architecture, image.variant.as_deref());
        let message = base_platform(name, &actual.to_string(), &wanted.to_string());
        Some(Warning { rule: RULE, message, span: stage.span })
    }
}

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

/// JSONArgsRecommended
pub(super) fn json_arguments(instruction: &str) -> String {
    format!(
        "JSON arguments recommended for {instruction} to prevent unintended behavior related to OS signals"
    )
}

/// MultipleInstructionsDisallowed
pub(super) fn repeated(instruction: &str) -> String {
    format!(
        "Multiple {instruction} instructions should not be used in the same stage because only the last one will be used"
    )
}

/// CopyIgnoredFile
pub(super) fn ignored(verb: &str, path: &str) -> String {
    format!("Attempting to {verb} file \"{path}\" that is excluded by .dockerignore")
}

/// InvalidBaseImagePlatform
pub(super) fn base_platform(image: &str, actual: &str, expected: &str) -> String {
    format!(
        "Base image {image} was pulled with platform \"{actual}\", expected \"{expected}\" for current build"
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
