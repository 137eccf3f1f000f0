//! An image on the command line: `library/app:v1`, `library/app@sha256:...`.

use std::fmt;
use std::str::FromStr;

use flotilla_common::name::{NameError, Reference, RepositoryName};

/// A repository, and a tag or digest in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    /// The repository.
    pub repository: RepositoryName,
    /// The tag or digest.
    pub reference: Reference,
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            repository,
            reference,
        } = self;
        let reference = reference.to_string();
        let separator = if reference.contains(':') { '@' } else { ':' };
        write!(f, "{repository}{separator}{reference}")
    }
}

impl ImageReference {
    /// Parses `REPOSITORY[:TAG|@DIGEST]`; the default is the tag `latest`.
    ///
    /// # Errors
    /// The repository, the tag or the digest is not valid.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (repository, reference) = text
            .split_once('@')
            .or_else(|| text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')))
            .unwrap_or((text, "latest"));
        Ok(Self {
            repository: repository.parse()?,
            reference: reference.parse()?,
        })
    }
}

impl FromStr for ImageReference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| {
            format!(
                "{error}; write REPOSITORY:TAG or REPOSITORY@DIGEST, without the registry's name"
            )
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn parses_tags_digests_and_the_default_tag() {
        let parsed = |text: &str| {
            let ImageReference {
                repository,
                reference,
            } = text.parse().unwrap();
            (repository.to_string(), reference.to_string())
        };
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(
            parsed("library/app:v1"),
            ("library/app".into(), "v1".into())
        );
        assert_eq!(parsed("app"), ("app".into(), "latest".into()));
        assert_eq!(parsed(&format!("a/b@{digest}")), ("a/b".into(), digest));
        let error = "127.0.0.1:5000/app:v1"
            .parse::<ImageReference>()
            .unwrap_err();
        assert!(error.contains("without the registry's name"), "{error}");
    }
}
