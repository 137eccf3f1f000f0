//! An image with the registry that has it: `origin.example:5000/team/app:v1`.

use std::fmt;
use std::str::FromStr;

use crate::commands::peer::ImageReference;

/// An image, and the host of its registry if it names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RegistryImage {
    /// `HOST` or `HOST:PORT`.
    pub(super) registry: Option<String>,
    pub(super) image: ImageReference,
}

impl fmt::Display for RegistryImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        write!(f, "{}", self.image)
    }
}

impl FromStr for RegistryImage {
    type Err = String;

    /// The first component is a registry if it has a dot or a colon, or is `localhost`, as for
    /// other clients.
    fn from_str(text: &str) -> Result<Self, String> {
        let (registry, image) = match text.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (Some(first.to_owned()), rest)
            }
            _ => (None, text),
        };
        let image = ImageReference::parse(image)
            .map_err(|error| format!("{error}; write REGISTRY/REPOSITORY:TAG"))?;
        Ok(Self { registry, image })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn registry_is_told_from_the_repository() {
        for (text, registry, image) in [
            (
                "origin.eu.example/team/app:v1",
                Some("origin.eu.example"),
                "team/app:v1",
            ),
            ("127.0.0.1:5000/app", Some("127.0.0.1:5000"), "app:latest"),
            ("localhost/app:v1", Some("localhost"), "app:v1"),
            ("team/app:v1", None, "team/app:v1"),
            ("app:v1", None, "app:v1"),
        ] {
            let parsed: RegistryImage = text.parse().unwrap();
            assert_eq!(parsed.registry.as_deref(), registry, "{text}");
            assert_eq!(parsed.image.to_string(), image, "{text}");
        }
        let error = "https://origin.example/app"
            .parse::<RegistryImage>()
            .unwrap_err();
        assert!(error.contains("write REGISTRY/REPOSITORY:TAG"), "{error}");
    }
}
