//! Build arguments that steer the builder instead of the build: `BUILDKIT_…`.

use crate::dockerfile::Check;
use crate::dockerfile::Overrides;
use crate::dockerfile::is_known_syntax;

/// What the build arguments ask of the builder.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Steering {
    /// `BUILDKIT_DOCKERFILE_CHECK` and `BUILDKIT_SYNTAX`: in place of directives.
    pub(super) overrides: Overrides,
    /// `BUILDKIT_MULTI_PLATFORM`: an index, also for a single platform.
    pub(super) index: bool,
    /// `BUILDKIT_SANDBOX_HOSTNAME`: name of the host that steps see.
    pub(super) hostname: Option<String>,
}

impl Steering {
    /// Reads them out of all build arguments.
    ///
    /// # Errors
    /// The message: a value that can't be read, or an argument that asks for what isn't
    /// there.
    pub(super) fn read(arguments: &[(String, Option<String>)]) -> Result<Self, String> {
        let mut steering = Self::default();
        for (name, value) in arguments {
            let Some(value) = value else { continue };
            match name.as_str() {
                "BUILDKIT_DOCKERFILE_CHECK" => {
                    let check = Check::parse(value).map_err(|message| format!("{name}: {message}"));
                    steering.overrides.check = Some(check?);
                }
                "BUILDKIT_SYNTAX" if is_known_syntax(value) => steering.overrides.syntax = true,
                "BUILDKIT_SYNTAX" => {
                    return Err(format!(
                        "{name}: syntax `{value}` is not supported, only docker/dockerfile is"
                    ));
                }
                "BUILDKIT_MULTI_PLATFORM" => {
                    steering.index = match value.to_ascii_lowercase().as_str() {
                        "1" | "t" | "true" => true,
                        "" | "0" | "f" | "false" => false,
                        other => return Err(format!("{name} is true or false, not `{other}`")),
                    };
                }
                "BUILDKIT_SANDBOX_HOSTNAME" if !is_hostname(value) => {
                    return Err(format!("{name}: `{value}` is no name of a host"));
                }
                "BUILDKIT_SANDBOX_HOSTNAME" => {
                    steering.hostname = Some(value.clone()).filter(|name| !name.is_empty());
                }
                _ => {}
            }
        }
        Ok(steering)
    }
}

/// Whether the kernel takes it (at most 64 bytes, sethostname(2)) and `/etc/hosts` can
/// hold it.
fn is_hostname(name: &str) -> bool {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    name.len() <= 64 && name.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steering_arguments_are_read_and_wrong_ones_refused() {
        let read =
            |name: &str, value: &str| Steering::read(&[(name.to_owned(), Some(value.to_owned()))]);
        let check = read("BUILDKIT_DOCKERFILE_CHECK", "error=true").expect("valid");
        assert!(check.overrides.check.is_some_and(|check| check.error));
        let syntax = read("BUILDKIT_SYNTAX", "docker/dockerfile:1.4").expect("valid");
        assert!(syntax.overrides.syntax);
        assert!(read("BUILDKIT_MULTI_PLATFORM", "1").is_ok_and(|read| read.index));
        assert_eq!(read("OTHER", "1"), Ok(Steering::default()));
        let name = read("BUILDKIT_SANDBOX_HOSTNAME", "a-b.c").expect("valid").hostname;
        assert_eq!(name.as_deref(), Some("a-b.c"));
        for (name, value) in [
            ("BUILDKIT_DOCKERFILE_CHECK", "colour=red"),
            ("BUILDKIT_SYNTAX", "example.com/other"),
            ("BUILDKIT_MULTI_PLATFORM", "perhaps"),
            ("BUILDKIT_SANDBOX_HOSTNAME", "x y"),
        ] {
            assert!(read(name, value).is_err(), "{name}");
        }
    }
}
