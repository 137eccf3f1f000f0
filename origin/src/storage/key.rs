//! Storage keys: slash-separated segments of characters that every backend and file system stores
//! unchanged.

use core::fmt;
use core::str::FromStr;

/// Maximum length of a key in bytes (S3's limit).
const MAX_KEY_LEN: usize = 1024;
/// Maximum length of a segment in bytes (a file name on Linux).
const MAX_SEGMENT_LEN: usize = 255;
/// The same for the last segment, to which the local directory appends one character.
const MAX_LAST_SEGMENT_LEN: usize = 254;

/// A text is not a valid key or prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid storage key {0:?}")]
pub struct KeyError(String);

/// The key of one object: segments of letters, digits and `._-:+=@`, none beginning with a dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// Validates `text` as a key.
    ///
    /// # Errors
    /// [`KeyError`] if it is not valid.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, KeyError> {
        let text = text.into();
        if is_key(&text) {
            Ok(Self(text))
        } else {
            Err(KeyError(text.into()))
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segment after the last slash.
    pub fn last_segment(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key prefix that ends with a slash, so that a listing never splits a segment.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Prefix(Box<str>);

impl Prefix {
    /// Validates `text` as a prefix.
    ///
    /// # Errors
    /// [`KeyError`] unless the text is a key followed by a slash.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, KeyError> {
        let text = text.into();
        match text.strip_suffix('/') {
            Some(segments) if is_segments(segments) => Ok(Self(text)),
            _ => Err(KeyError(text.into())),
        }
    }

    /// The prefix as text, with the slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The prefix without the slash at its end.
    pub fn without_slash(&self) -> &str {
        self.0.trim_end_matches('/')
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_segments(text: &str) -> bool {
    text.len() <= MAX_KEY_LEN && text.split('/').all(is_segment)
}

fn is_key(text: &str) -> bool {
    let last = text.rsplit('/').next().unwrap_or_default();
    text.len() <= MAX_KEY_LEN && last.len() <= MAX_LAST_SEGMENT_LEN && is_segments(text)
}

fn is_segment(segment: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:+=@".contains(&byte);
    (1..=MAX_SEGMENT_LEN).contains(&segment.len())
        && !segment.starts_with('.')
        && segment.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_prefix_validation() {
        for valid in ["a", "tag/library/app/_/v1.0", "blob/sha256:ab/00ff", "_"] {
            assert!(Key::new(valid).is_ok(), "{valid}");
            assert!(Prefix::new(format!("{valid}/")).is_ok(), "{valid}/");
        }
        for invalid in [
            "", "/", "a/", "/a", "a//b", "..", "a/../b", ".tmp/x", "a~", "a b", "ä", "a\\b",
        ] {
            assert!(Key::new(invalid).is_err(), "{invalid}");
            assert!(Prefix::new(format!("{invalid}/")).is_err(), "{invalid}/");
        }
        assert!(Prefix::new("a").is_err());
        assert!(Key::new("a".repeat(255)).is_err());
        assert!(Key::new("a/".repeat(512) + "b").is_err());
    }
}
