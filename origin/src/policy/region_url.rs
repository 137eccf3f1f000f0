//! The URL of a region's origin.

use core::fmt;
use core::str::FromStr;

use http::Uri;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `https://HOST` or `https://HOST:PORT`, without a path. Origins of regions authenticate each
/// other by TLS, so there is no plain form.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RegionUrl(Box<str>);

/// A text is not the URL of a region.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the URL of a region: {1}")]
pub struct RegionUrlError(String, &'static str);

impl RegionUrl {
    /// The URL as text, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegionUrl {
    type Err = RegionUrlError;

    fn from_str(text: &str) -> Result<Self, RegionUrlError> {
        let error = |problem| RegionUrlError(text.to_owned(), problem);
        let form = "use https://HOST or https://HOST:PORT";
        let uri: Uri = text.parse().map_err(|_| error(form))?;
        let host = uri.authority().ok_or_else(|| error(form))?.as_str();
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") => {
                return Err(error(
                    "origins of regions authenticate each other by TLS; use https://HOST or https://HOST:PORT",
                ));
            }
            _ => return Err(error(form)),
        }
        if host.contains('@') || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(error(
                "a user name, a path or a query is not supported; use https://HOST or https://HOST:PORT",
            ));
        }
        Ok(Self(
            format!("https://{}", host.to_ascii_lowercase()).into(),
        ))
    }
}

impl fmt::Display for RegionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RegionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for RegionUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RegionUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_without_a_path() {
        let text = |url: &str| url.parse::<RegionUrl>().map(|url| url.to_string());
        let expected = Ok("https://origin.eu.example:5000".to_owned());
        assert_eq!(text("https://Origin.EU.example:5000/"), expected);
        for (url, problem) in [
            ("http://origin.eu.example", "authenticate each other by TLS"),
            ("origin.eu.example", "use https://HOST"),
            ("https://", "use https://HOST"),
            ("ftp://origin.eu.example", "use https://HOST"),
            ("https://user@origin.eu.example", "a user name"),
            ("https://origin.eu.example/v2/", "a path"),
            ("https://origin.eu.example?x=1", "a query"),
        ] {
            let error = text(url).map_err(|error| error.to_string());
            assert!(error.is_err_and(|error| error.contains(problem)), "{url}");
        }
    }
}
