//! Keys: slash-separated segments of harmless characters, so that every backend and file system
//! holds them as they are.

use core::fmt;
use core::str::FromStr;

/// Bytes of a key at most (S3's limit).
const MAX_KEY_LEN: usize = 1024;
/// Bytes of a segment at most: a file name, and of the last one a file name less the local
/// directory's mark.
const MAX_SEGMENT_LEN: usize = 255;
const MAX_LAST_SEGMENT_LEN: usize = 254;

/// Why a text is not a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed storage key {0:?}")]
pub struct KeyError(String);

/// The key of one object: segments of letters, digits and `._-:+=@`, none beginning with a dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// A key of a text that is known to be one.
    ///
    /// # Errors
    /// [`KeyError`] for anything else.
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

    /// What follows the last slash.
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

/// The beginning of keys, up to and with a slash: a listing never cuts a segment.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Prefix(Box<str>);

impl Prefix {
    /// All keys under these segments.
    ///
    /// # Errors
    /// [`KeyError`] unless the text is a key followed by a slash.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, KeyError> {
        let text = text.into();
        match text.strip_suffix('/') {
            Some(segments) if is_directory(segments) => Ok(Self(text)),
            _ => Err(KeyError(text.into())),
        }
    }

    /// The prefix as text, with its slash at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The prefix without its slash.
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

fn is_directory(text: &str) -> bool {
    text.len() <= MAX_KEY_LEN && text.split('/').all(is_segment)
}

fn is_key(text: &str) -> bool {
    let last = text.rsplit('/').next().unwrap_or_default();
    text.len() <= MAX_KEY_LEN && last.len() <= MAX_LAST_SEGMENT_LEN && is_directory(text)
}

fn is_segment(segment: &str) -> bool {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:+=@".contains(&byte);
    (1..=MAX_SEGMENT_LEN).contains(&segment.len())
        && !segment.starts_with('.')
        && segment.bytes().all(harmless)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_prefixes_are_checked() {
        for good in ["a", "tag/library/app/_/v1.0", "blob/sha256:ab/00ff", "_"] {
            assert!(Key::new(good).is_ok(), "{good}");
            assert!(Prefix::new(format!("{good}/")).is_ok(), "{good}/");
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", "..", "a/../b", ".tmp/x", "a~", "a b", "ä", "a\\b",
        ] {
            assert!(Key::new(bad).is_err(), "{bad}");
            assert!(Prefix::new(format!("{bad}/")).is_err(), "{bad}/");
        }
        assert!(Prefix::new("a").is_err());
        assert!(Key::new("a".repeat(255)).is_err());
        assert!(Key::new("a/".repeat(512) + "b").is_err());
    }
}
