//! The images that the VMs of the benchmark pull, and the names of the VMs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;

/// Chunks of each layer: ten layers of 240 MB in all, as a service's image has them.
pub(super) const LAYER_CHUNKS: [u32; 10] = [400, 240, 120, 80, 40, 20, 12, 2, 2, 1];
/// The port that VMs announce; nothing listens on it.
const QUIC_PORT: u16 = 4001;

/// A layer of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub(super) digest: Digest,
    pub(super) chunks: u32,
    /// The number of its first chunk within the image.
    pub(super) first: u32,
}

/// An image: its layers in order.
#[derive(Debug)]
pub(super) struct Image {
    layers: Vec<Layer>,
    chunks: u32,
}

impl Image {
    /// The image with this number, whose layers have so many chunks.
    pub(super) fn new(number: usize, layer_chunks: &[u32]) -> Self {
        let mut chunks = 0;
        let layer = |(at, count): (usize, &u32)| {
            let first = chunks;
            chunks += count;
            Layer {
                digest: Digest::sha256(format!("image {number} layer {at}").as_bytes()),
                chunks: *count,
                first,
            }
        };
        let layers = layer_chunks.iter().enumerate().map(layer).collect();
        Self { layers, chunks }
    }

    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Chunks of all layers.
    pub(super) fn chunks(&self) -> u32 {
        self.chunks
    }

    pub(super) fn find(&self, digest: &Digest) -> Option<usize> {
        self.layers.iter().position(|layer| layer.digest == *digest)
    }

    /// The layer of a chunk of the image.
    pub(super) fn layer_of(&self, chunk: u32) -> usize {
        self.layers.partition_point(|layer| layer.first <= chunk) - 1
    }
}

/// The id of a VM.
pub(super) fn peer_id(number: u32) -> PeerId {
    format!("vm-{number}")
        .parse()
        .expect("letters, digits and a hyphen")
}

/// The number of the VM with this id.
pub(super) fn vm_number(id: &PeerId) -> Option<u32> {
    id.as_str().strip_prefix("vm-")?.parse().ok()
}

/// The address of a VM: one of its own in 127.0.0.0/8.
pub(super) fn vm_address(number: u32) -> SocketAddr {
    let host = u32::from(Ipv4Addr::new(127, 1, 0, 1)) + number;
    SocketAddr::new(IpAddr::V4(host.into()), QUIC_PORT)
}
