//! Images of one layer of incompressible bytes, generated while they are pushed: they take no disk
//! space but in the region.

use bytes::Bytes;
use flotilla_common::digest::{Algorithm, Digest, DigestHasher};
use flotilla_common::manifest::OCI_MANIFEST;
use futures_util::stream;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use reqwest::Body;
use serde_json::json;

use crate::client::{ClientError, RegistryClient};

/// Bytes generated at once.
const BUFFER_LEN: usize = 256 << 10;
/// The config of an image that has none (image specification 1.1, "Guidance for an Empty
/// Descriptor").
pub const EMPTY_CONFIG: &[u8] = b"{}";
/// The media type of [`EMPTY_CONFIG`].
pub const EMPTY_CONFIG_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// The media type of an uncompressed layer.
pub const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image with one layer of pseudo-random bytes. (The layer is not a valid tar archive: nothing
/// unpacks it.)
#[derive(Clone, Copy, Debug)]
pub struct SyntheticImage {
    /// Size of the layer in bytes.
    pub size: u64,
    /// Images with the same value have the same bytes.
    pub rng_seed: u64,
}

/// A synthetic image in a registry.
#[derive(Clone, Copy, Debug)]
pub struct PushedImage {
    /// The manifest's digest.
    pub manifest: Digest,
    /// The layer's digest.
    pub layer: Digest,
    /// Size of the layer in bytes.
    pub size: u64,
}

impl SyntheticImage {
    /// The layer's bytes, in buffers of up to 256 KiB.
    pub fn layer_bytes(self) -> impl Iterator<Item = Bytes> + Send + 'static {
        let mut generator = Pcg64Mcg::seed_from_u64(self.rng_seed);
        let mut left = self.size;
        std::iter::from_fn(move || {
            let len = usize::try_from(left).map_or(BUFFER_LEN, |left| left.min(BUFFER_LEN));
            left -= len as u64;
            let mut buffer = vec![0; len];
            generator.fill(&mut buffer[..]);
            (len > 0).then(|| Bytes::from(buffer))
        })
    }

    fn layer_digest(self) -> Digest {
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        self.layer_bytes().for_each(|bytes| hasher.update(&bytes));
        hasher.finish()
    }

    /// Pushes the image under `tag`.
    ///
    /// # Errors
    /// The first request that failed.
    pub async fn push(
        self,
        origin: &RegistryClient,
        tag: &str,
    ) -> Result<PushedImage, ClientError> {
        let layer = tokio::task::spawn_blocking(move || self.layer_digest()).await?;
        let bytes = stream::iter(self.layer_bytes().map(Ok::<_, std::io::Error>));
        origin
            .upload(&layer, self.size, Body::wrap_stream(bytes))
            .await?;
        let config = Digest::sha256(EMPTY_CONFIG);
        let config_len = EMPTY_CONFIG.len() as u64;
        origin
            .upload(&config, config_len, Body::from(EMPTY_CONFIG))
            .await?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": EMPTY_CONFIG_TYPE, "digest": config, "size": config_len },
            "layers": [{ "mediaType": LAYER_TYPE, "digest": layer, "size": self.size }],
        })
        .to_string()
        .into_bytes();
        let digest = Digest::sha256(&manifest);
        origin.put_manifest(tag, OCI_MANIFEST, manifest).await?;
        Ok(PushedImage {
            manifest: digest,
            layer,
            size: self.size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_the_requested_size_and_are_reproducible() {
        let image = SyntheticImage {
            size: 2 * BUFFER_LEN as u64 + 5,
            rng_seed: 3,
        };
        let bytes: Vec<u8> = image.layer_bytes().flatten().collect();
        assert_eq!(bytes.len() as u64, image.size);
        assert_eq!(image.layer_digest(), Digest::sha256(&bytes));
        assert_ne!(
            image.layer_digest(),
            SyntheticImage {
                rng_seed: 4,
                ..image
            }
            .layer_digest()
        );
    }
}
