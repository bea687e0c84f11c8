//! Platforms: `os/architecture[/variant]`, normalized and matched the way
//! containerd does (its `platforms` package).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image runs on, as Go names it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// Version of the OS (Windows).
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// `v7`, `v8`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A text that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform: `os/architecture[/variant]` is expected, as in `linux/arm64`")]
pub struct ParsePlatformError(pub String);

impl Platform {
    /// A normalized platform without OS version.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            os_version: None,
            variant: variant.map(str::to_owned),
        }
        .normalized()
    }

    /// The platform this program was compiled for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new(std::env::consts::OS, architecture, None)
    }

    /// One spelling per platform: `x86_64` is `amd64`, `aarch64` is `arm64`, `arm64/v8`
    /// has no variant, `arm` without variant is `arm/v7`.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let os = match self.os.to_ascii_lowercase() {
            os if os == "macos" => "darwin".to_owned(),
            os => os,
        };
        let given = self.variant.as_deref().unwrap_or("").to_ascii_lowercase();
        let (architecture, variant) = match self.architecture.to_ascii_lowercase().as_str() {
            "i386" | "x86" => ("386".to_owned(), String::new()),
            "x86_64" | "x86-64" | "amd64" => {
                ("amd64".to_owned(), if given == "v1" { String::new() } else { given })
            }
            "aarch64" | "arm64" => {
                let variant = match given.as_str() {
                    "8" | "v8" | "v8.0" => String::new(),
                    _ => given,
                };
                ("arm64".to_owned(), variant)
            }
            "armhf" => ("arm".to_owned(), "v7".to_owned()),
            "armel" => ("arm".to_owned(), "v6".to_owned()),
            "arm" => {
                let variant = match given.as_str() {
                    "" | "7" => "v7".to_owned(),
                    "5" | "6" | "8" => format!("v{given}"),
                    _ => given,
                };
                ("arm".to_owned(), variant)
            }
            other => (other.to_owned(), given),
        };
        Self {
            architecture,
            os,
            os_version: self.os_version.clone(),
            variant: Some(variant).filter(|variant| !variant.is_empty()),
        }
    }

    /// How well an image for `offered` runs on `self`: `None` when it does not, else a
    /// rank of which the highest is the best. Within an architecture the newest variant
    /// that is not newer than the wanted one wins (`arm/v7` runs `v7`, `v6`, `v5`, in
    /// this order of preference); another architecture never matches, although some
    /// kernels could run it: a built image must not silently change its architecture.
    pub fn rank(&self, offered: &Self) -> Option<u32> {
        let (wanted, offered) = (self.normalized(), offered.normalized());
        if wanted.os != offered.os || wanted.architecture != offered.architecture {
            return None;
        }
        if let (Some(wanted), Some(offered)) = (&wanted.os_version, &offered.os_version)
            && wanted != offered
        {
            return None;
        }
        let level = |platform: &Self| variant_level(platform).map(|level| level + 1);
        if wanted.variant == offered.variant {
            return Some(u32::MAX);
        }
        let (most, has) = (level(&wanted)?, level(&offered)?);
        (has <= most).then_some(has)
    }

    /// The best of `offered` for this platform; the first of equals. Index into `offered`.
    pub fn best<'a>(&self, offered: impl IntoIterator<Item = &'a Self>) -> Option<usize> {
        let mut best: Option<(u32, usize)> = None;
        for (index, platform) in offered.into_iter().enumerate() {
            if let Some(rank) = self.rank(platform)
                && best.is_none_or(|(highest, _)| rank > highest)
            {
                best = Some((rank, index));
            }
        }
        best.map(|(_, index)| index)
    }
}

/// A number that grows with the variant (`v8.1` is 801); `None` for words we cannot order.
fn variant_level(platform: &Platform) -> Option<u32> {
    let default = match platform.architecture.as_str() {
        "amd64" => "v1",
        "arm64" => "v8",
        "arm" => "v7",
        _ => return None,
    };
    let text = platform.variant.as_deref().unwrap_or(default).strip_prefix('v')?;
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    let (major, minor) = (major.parse::<u8>().ok()?, minor.parse::<u8>().ok()?);
    (minor < 100).then(|| u32::from(major) * 100 + u32::from(minor))
}

/// The inverse of [`FromStr`]: `linux/arm/v7`.
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Takes `os/architecture[/variant]`, or an OS or an architecture alone (the other half
/// is then the host's), and normalizes it.
impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(word) {
            return Err(ParsePlatformError(text.to_owned()));
        }
        match parts.as_slice() {
            [one] if is_os(one) => {
                let host = Self::host();
                Ok(Self::new(one, &host.architecture, host.variant.as_deref()))
            }
            [one] if is_architecture(one) => Ok(Self::new(&Self::host().os, one, None)),
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(ParsePlatformError(text.to_owned())),
        }
    }
}

fn is_os(word: &str) -> bool {
    const KNOWN: [&str; 7] =
        ["linux", "windows", "darwin", "macos", "freebsd", "netbsd", "openbsd"];
    KNOWN.contains(&word.to_ascii_lowercase().as_str())
}

fn is_architecture(word: &str) -> bool {
    const KNOWN: [&str; 19] = [
        "386", "i386", "amd64", "x86_64", "x86-64", "arm", "armhf", "armel", "arm64", "aarch64",
        "loong64", "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc64le", "riscv64", "s390x",
    ];
    KNOWN.contains(&word.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn spellings_of_one_platform_become_equal() {
        for (given, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/6", "linux/arm/v6"),
            ("Linux/ARM64", "linux/arm64"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(platform(given).to_string(), normal, "{given}");
        }
    }

    #[test]
    fn half_a_platform_is_completed_by_the_host() {
        let host = Platform::host();
        assert_eq!(platform("s390x"), Platform::new(&host.os, "s390x", None));
        assert_eq!(platform("windows").architecture, host.architecture);
        assert_eq!(host.to_string().parse(), Ok(host));
    }

    #[test]
    fn other_text_is_refused() {
        for bad in ["", "/", "linux/", "linux/arm/v7/x", "plan10", "linux/a b", "a/b/c/d"] {
            assert_eq!(bad.parse::<Platform>(), Err(ParsePlatformError(bad.to_owned())));
        }
    }

    #[test]
    fn the_newest_variant_that_runs_is_chosen() {
        let offered =
            ["linux/arm/v5", "linux/arm/v6", "linux/arm64", "linux/amd64", "linux/arm/v8"]
                .map(platform);
        assert_eq!(platform("linux/arm/v7").best(&offered), Some(1));
        assert_eq!(platform("linux/arm/v5").best(&offered), Some(0));
        assert_eq!(platform("linux/arm64/v8").best(&offered), Some(2));
        assert_eq!(platform("linux/amd64/v3").best(&offered), Some(3));
        assert_eq!(platform("windows/amd64").best(&offered), None);
        assert_eq!(platform("linux/386").best(&offered), None);
    }

    #[test]
    fn an_image_for_a_newer_variant_does_not_run() {
        assert_eq!(platform("linux/amd64").rank(&platform("linux/amd64/v3")), None);
        assert_eq!(platform("linux/arm/v6").rank(&platform("linux/arm/v7")), None);
        assert!(platform("linux/arm64/v8.2").rank(&platform("linux/arm64")).is_some());
    }
}
