//! Digests (OCI image specification, descriptor.md): `sha256:` and 64 hex digits.
//!
//! [`Digest`] names a blob as stored and sent; [`DiffId`] names the uncompressed
//! tar of a layer. Both are SHA-256, and they must never be mixed up, so they are
//! two types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A text that is no SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: `sha256:` and 64 lower-case hex digits are expected")]
pub struct ParseDigestError(pub String);

macro_rules! sha256_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 32]);

        impl $name {
            /// Takes the 32 bytes of a SHA-256.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Computes it from all bytes at once.
            pub fn of(bytes: &[u8]) -> Self {
                Self(Sha256::digest(bytes).into())
            }

            /// The 64 hex digits without the algorithm.
            pub fn hex(&self) -> String {
                use fmt::Write as _;
                self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
                    let _ = write!(text, "{byte:02x}");
                    text
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "sha256:{}", self.hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse(text).map(Self).ok_or_else(|| ParseDigestError(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseDigestError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(digest: $name) -> Self {
                digest.to_string()
            }
        }
    };
}

sha256_name! {
    /// SHA-256 of a blob as stored and sent: manifest, config or compressed layer.
    Digest
}

sha256_name! {
    /// SHA-256 of a layer's uncompressed tar.
    DiffId
}

fn parse(text: &str) -> Option<[u8; 32]> {
    let hex = text.strip_prefix("sha256:")?.as_bytes();
    if hex.len() != 64 {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Chain ID of a stack of layers (OCI image specification, config.md): names the
/// filesystem that applying them in order gives. `None` for no layers.
pub fn chain_id(layers: &[DiffId]) -> Option<Digest> {
    let (first, rest) = layers.split_first()?;
    Some(
        rest.iter().fold(Digest(first.0), |chain, layer| {
            Digest::of(format!("{chain} {layer}").as_bytes())
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_survive_a_round_trip_and_reject_other_text() {
        let digest = Digest::of(b"");
        assert_eq!(
            digest.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in ["", "sha256:", "sha512:00", &digest.to_string().to_uppercase()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn chain_id_of_one_layer_is_its_diff_id() {
        let layer = DiffId::of(b"a");
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(&[layer]).map(|id| *id.as_bytes()), Some(*layer.as_bytes()));
        assert_ne!(chain_id(&[layer, layer]), chain_id(&[layer]));
    }
}
