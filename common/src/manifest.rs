//! OCI manifests and indexes, as far as a registry and its peers read them: the references between
//! them.
//!
//! Follows the OCI image specification 1.1 ("Image Manifest", "Image Index") and Docker's schema 2,
//! whose shape is the same. Unknown fields are ignored: the registry stores and serves the
//! original bytes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of Docker's manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of Docker's manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// All media types of manifests, as an Accept header lists them.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The maximum size of a manifest, bytes.
pub const MAX_MANIFEST_LEN: usize = 4 << 20;

/// A reference to bytes: media type, digest and size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type of the bytes.
    #[serde(default)]
    pub media_type: String,
    /// Their digest.
    pub digest: Digest,
    /// Their size.
    pub size: u64,
    /// For an entry of an index: the platform, as given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<serde_json::Value>,
    /// The type of an artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Free text by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Other places to fetch from: the bytes need not be in the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

/// A manifest or an index, read as one shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The media type; optional in OCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The type of an artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration blob of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    /// The layers of an image, lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Descriptor>,
    /// The manifests of an index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Descriptor>,
    /// The manifest that this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free text by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the right shape.
    #[error("malformed manifest: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Schema 1, or an unknown schema.
    #[error("unsupported manifest: schemaVersion {0}, this registry stores schemaVersion 2")]
    Schema(u32),
    /// Larger than [`MAX_MANIFEST_LEN`].
    #[error("manifest of {0} bytes exceeds the limit of {MAX_MANIFEST_LEN}")]
    TooLarge(usize),
}

impl Manifest {
    /// Parses the bytes of a manifest.
    ///
    /// # Errors
    /// The bytes are not a supported manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST_LEN {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        if manifest.schema_version != 2 {
            return Err(ManifestError::Schema(manifest.schema_version));
        }
        Ok(manifest)
    }

    /// Whether it lists manifests instead of blobs.
    pub fn is_index(&self) -> bool {
        match self.media_type.as_deref() {
            Some(media_type) => media_type == OCI_INDEX || media_type == DOCKER_LIST,
            None => self.config.is_none() && !self.manifests.is_empty(),
        }
    }

    /// The media type that the bytes themselves have: the one that they state, or that of an OCI
    /// document of their shape. `None` if they state a type that is not in [`ACCEPT`], or have the
    /// shape of another type: a client that is told a wrong type reads another image from the same
    /// bytes (CVE-2021-41190).
    pub fn own_media_type(&self) -> Option<&'static str> {
        let has_manifests = !self.manifests.is_empty();
        let has_blobs = self.config.is_some() || !self.layers.is_empty();
        let (media_type, may_have_blobs) = match self.media_type.as_deref() {
            Some(OCI_MANIFEST) => (OCI_MANIFEST, true),
            Some(DOCKER_MANIFEST) => (DOCKER_MANIFEST, true),
            Some(OCI_INDEX) => (OCI_INDEX, false),
            Some(DOCKER_LIST) => (DOCKER_LIST, false),
            Some(_) => return None,
            None if has_blobs => (OCI_MANIFEST, true),
            None if has_manifests => (OCI_INDEX, false),
            None => return None,
        };
        let is_mixed = if may_have_blobs {
            has_manifests
        } else {
            has_blobs
        };
        (!is_mixed).then_some(media_type)
    }

    /// The referenced blobs that a registry must hold: configuration, then layers, each once.
    pub fn blobs(&self) -> Vec<&Descriptor> {
        // A manifest of 4 MiB has room for tens of thousands of layers.
        let mut known = BTreeSet::new();
        let here = self
            .config
            .iter()
            .chain(&self.layers)
            .filter(|blob| blob.urls.is_empty());
        here.filter(|blob| known.insert(blob.digest)).collect()
    }

    /// The sum of the sizes of its blobs in bytes, as it states them: at most [`u64::MAX`], since a
    /// manifest may state any size.
    pub fn stated_bytes(&self) -> u64 {
        let sizes = self.blobs().into_iter().map(|blob| blob.size);
        sizes.fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_unique_and_exclude_foreign_layers() {
        let digest = Digest::sha256(b"layer");
        let layer = |urls: &str| {
            format!(r#"{{"mediaType":"x","digest":"{digest}","size":5,"urls":{urls}}}"#)
        };
        let config = Digest::sha256(b"config");
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{config}","size":6}},"layers":[{},{}],"unknown":1}}"#,
            layer("[]"),
            layer("[]")
        );
        let manifest = Manifest::parse(text.as_bytes()).expect("a manifest");
        assert_eq!(
            manifest
                .blobs()
                .iter()
                .map(|blob| blob.digest)
                .collect::<Vec<_>>(),
            [config, digest]
        );
        assert!(!manifest.is_index());
        let text = format!(
            r#"{{"schemaVersion":2,"layers":[{}]}}"#,
            layer(r#"["https://elsewhere.invalid/x"]"#)
        );
        assert!(
            Manifest::parse(text.as_bytes())
                .expect("a manifest")
                .blobs()
                .is_empty()
        );
    }

    #[test]
    fn media_type_is_derived_from_statement_or_shape() {
        let digest = Digest::sha256(b"x");
        let one = format!(r#"{{"mediaType":"x","digest":"{digest}","size":5}}"#);
        let derived = |fields: &str| {
            let text = format!(r#"{{"schemaVersion":2{fields}}}"#);
            let manifest = Manifest::parse(text.as_bytes()).expect("a manifest");
            manifest.own_media_type()
        };
        let stated = |media_type: &str, fields: &str| {
            derived(&format!(r#","mediaType":"{media_type}"{fields}"#))
        };
        let blobs = format!(r#","config":{one},"layers":[{one}]"#);
        let manifests = format!(r#","manifests":[{one}]"#);
        assert_eq!(derived(&blobs), Some(OCI_MANIFEST));
        assert_eq!(derived(&manifests), Some(OCI_INDEX));
        for media_type in [OCI_MANIFEST, DOCKER_MANIFEST] {
            assert_eq!(stated(media_type, &blobs), Some(media_type));
            assert_eq!(stated(media_type, &manifests), None);
        }
        for media_type in [OCI_INDEX, DOCKER_LIST] {
            assert_eq!(stated(media_type, &manifests), Some(media_type));
            assert_eq!(stated(media_type, &blobs), None);
        }
        assert_eq!(derived(&format!("{blobs}{manifests}")), None, "both");
        assert_eq!(derived(""), None, "neither");
        assert_eq!(stated("text/plain", &blobs), None);
    }

    #[test]
    fn invalid_manifests_are_errors() {
        assert!(matches!(
            Manifest::parse(b"{"),
            Err(ManifestError::Malformed(_))
        ));
        assert!(matches!(
            Manifest::parse(br#"{"schemaVersion":1}"#),
            Err(ManifestError::Schema(1))
        ));
        assert!(matches!(
            Manifest::parse(&vec![b' '; MAX_MANIFEST_LEN + 1]),
            Err(ManifestError::TooLarge(_))
        ));
    }
}
