//! Names: repositories, tags, references, peers, regions and zones. Parsed once, at the edge.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::digest::Digest;

/// Why a text is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a repository name.
    #[error(
        "malformed repository name: path components of a-z, 0-9, '.', '_', '-', separated by '/', 255 characters at most"
    )]
    Repository,
    /// Not a tag.
    #[error(
        "malformed tag: a letter, digit or '_', then up to 127 letters, digits, '_', '.' or '-'"
    )]
    Tag,
    /// Neither a tag nor a digest.
    #[error("malformed reference: neither a tag nor a digest")]
    Reference,
    /// Not a label: a peer's id, a region or a zone.
    #[error("malformed name: 1 to 63 of a-z, 0-9 and '-', with no '-' at either end")]
    Label,
}

/// A newtype of a checked string: parse, print, and the codecs that go through both.
macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $valid:expr, $error:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                if $valid(text) { Ok(Self(text.into())) } else { Err($error) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        impl bincode::Encode for $name {
            fn encode<E: bincode::enc::Encoder>(
                &self,
                encoder: &mut E,
            ) -> Result<(), bincode::error::EncodeError> {
                self.as_str().encode(encoder)
            }
        }

        impl<Context> bincode::Decode<Context> for $name {
            fn decode<D: bincode::de::Decoder<Context = Context>>(
                decoder: &mut D,
            ) -> Result<Self, bincode::error::DecodeError> {
                let text = String::decode(decoder)?;
                text.parse().map_err(|error: NameError| {
                    bincode::error::DecodeError::OtherString(error.to_string())
                })
            }
        }

        impl<'de, Context> bincode::BorrowDecode<'de, Context> for $name {
            fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = Context>>(
                decoder: &mut D,
            ) -> Result<Self, bincode::error::DecodeError> {
                bincode::Decode::decode(decoder)
            }
        }
    };
}

checked_name!(
    /// A repository: a named scope within the registry (OCI distribution specification, "Pulling
    /// manifests").
    RepositoryName, is_repository, NameError::Repository
);
checked_name!(
    /// A tag: a mutable name of a manifest.
    Tag, is_tag, NameError::Tag
);
checked_name!(
    /// A peer's stable id, assigned by the fleet's CA and carried in its certificate.
    PeerId, is_label, NameError::Label
);
checked_name!(
    /// A region: a group of zones with its own origin and storage.
    RegionName, is_label, NameError::Label
);
/// The default region of seal keys, origins and peers.
pub const DEFAULT_REGION: &str = "local";

checked_name!(
    /// A zone: a domain of cheap traffic and common failure.
    ZoneName, is_label, NameError::Label
);

/// The name by which a manifest is requested.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A mutable name.
    Tag(Tag),
    /// The digest of the manifest.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains(':') {
            text.parse()
                .map(Self::Digest)
                .map_err(|_| NameError::Reference)
        } else {
            text.parse()
                .map(Self::Tag)
                .map_err(|_| NameError::Reference)
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

const fn is_lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_repository(text: &str) -> bool {
    text.len() <= 255 && text.split('/').all(is_path_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` of the specification.
fn is_path_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let mut rest = bytes;
    loop {
        let word = rest
            .iter()
            .take_while(|byte| is_lower_alphanumeric(**byte))
            .count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let separator = rest
            .iter()
            .take_while(|byte| !is_lower_alphanumeric(**byte))
            .count();
        let allowed = match &rest[..separator] {
            b"." | b"_" | b"__" => true,
            dashes => dashes.iter().all(|byte| *byte == b'-'),
        };
        if !allowed {
            return false;
        }
        rest = &rest[separator..];
    }
}

fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    (1..=128).contains(&bytes.len())
        && word(&bytes[0])
        && bytes
            .iter()
            .all(|byte| word(byte) || *byte == b'.' || *byte == b'-')
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes
            .iter()
            .all(|byte| is_lower_alphanumeric(*byte) || *byte == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_specification() {
        for good in ["app", "library/app", "a.b/c_d/e__f/g--h", "0"] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good}");
        }
        for bad in [
            "", "/", "App", "a/", "/a", "a//b", "a..b", "a___b", ".a", "a-", "a/_/b", "a b",
        ] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad}");
        }
        assert!("a".repeat(256).parse::<RepositoryName>().is_err());
    }

    #[test]
    fn tags_references_and_labels() {
        assert!("v1.0_a-b".parse::<Tag>().is_ok());
        assert!("_x".parse::<Tag>().is_ok());
        for bad in ["", ".x", "-x", "a/b", "a:b"] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        assert!("sha256:zz".parse::<Reference>().is_err());
        assert!("peer-1".parse::<PeerId>().is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert!(bad.parse::<ZoneName>().is_err(), "{bad}");
        }
    }
}
