//! Images to measure with: one layer of incompressible bytes that are made when they are needed, so
//! that an image costs no disk but its copies in the region.

use bytes::Bytes;
use flotilla_common::digest::{Algorithm, Digest, DigestHasher};
use flotilla_common::manifest::OCI_MANIFEST;
use futures_util::stream;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use reqwest::Body;
use serde_json::json;

use crate::client::{ClientError, RegistryClient};

/// Bytes made at once.
const PIECE: usize = 256 << 10;
/// The configuration of an image that has none (image specification 1.1, "Guidance for an Empty
/// Descriptor").
pub(super) const EMPTY: &[u8] = b"{}";

/// The bytes of a layer: the same for the same `rng_seed`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    pub(super) size: u64,
    pub(super) rng_seed: u64,
}

/// An image in the registry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pushed {
    pub(super) manifest: Digest,
    pub(super) layer: Digest,
    pub(super) size: u64,
}

impl Content {
    /// The bytes in order.
    pub(super) fn pieces(self) -> impl Iterator<Item = Bytes> + Send + 'static {
        let mut generator = Pcg64Mcg::seed_from_u64(self.rng_seed);
        let mut left = self.size;
        std::iter::from_fn(move || {
            let len = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            left -= len as u64;
            let mut piece = vec![0; len];
            generator.fill(&mut piece[..]);
            (len > 0).then(|| Bytes::from(piece))
        })
    }

    fn digest(self) -> Digest {
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        self.pieces().for_each(|piece| hasher.update(&piece));
        hasher.finish()
    }

    /// Pushes an image of this one layer under `tag`.
    pub(super) async fn push(
        self,
        origin: &RegistryClient,
        tag: &str,
    ) -> Result<Pushed, ClientError> {
        let layer = tokio::task::spawn_blocking(move || self.digest()).await?;
        let bytes = stream::iter(self.pieces().map(Ok::<_, std::io::Error>));
        origin
            .upload(&layer, self.size, Body::wrap_stream(bytes))
            .await?;
        let config = Digest::sha256(EMPTY);
        origin
            .upload(&config, EMPTY.len() as u64, Body::from(EMPTY))
            .await?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": EMPTY.len() },
            "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": self.size }],
        })
        .to_string()
        .into_bytes();
        let digest = Digest::sha256(&manifest);
        origin.put_manifest(tag, OCI_MANIFEST, manifest).await?;
        Ok(Pushed {
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
    fn content_has_its_size_and_is_the_same_again() {
        let content = Content {
            size: 2 * PIECE as u64 + 5,
            rng_seed: 3,
        };
        let bytes: Vec<u8> = content.pieces().flatten().collect();
        assert_eq!(bytes.len() as u64, content.size);
        assert_eq!(content.digest(), Digest::sha256(&bytes));
        assert_ne!(
            content.digest(),
            Content {
                rng_seed: 4,
                ..content
            }
            .digest()
        );
    }
}
