//! An image as people name it: `library/app:v1`, `library/app@sha256:...`.

use std::str::FromStr;

use flotilla_common::name::{Reference, RepositoryName};

/// A repository and what is meant in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    /// The repository.
    pub repository: RepositoryName,
    /// The tag or digest.
    pub reference: Reference,
}

impl FromStr for ImageReference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (repository, reference) = text
            .split_once('@')
            .or_else(|| text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')))
            .unwrap_or((text, "latest"));
        let hint = "write REPOSITORY:TAG or REPOSITORY@DIGEST, without the registry's name";
        let failed = |error: &dyn std::fmt::Display| format!("{error}; {hint}");
        Ok(Self {
            repository: repository
                .parse::<RepositoryName>()
                .map_err(|error| failed(&error))?,
            reference: reference
                .parse::<Reference>()
                .map_err(|error| failed(&error))?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn images_as_people_name_them() {
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
