//! Helpers shared by the stories: regions to break, images to pull, and third-party tools.

pub(crate) mod buildah;
pub(crate) mod containerd;
mod daemon;
pub(crate) mod docker;
pub(crate) mod docker_registry;
pub(crate) mod lab;
pub(crate) mod multi_platform_image;
pub(crate) mod outage;
pub(crate) mod podman;
pub(crate) mod proxy;
pub(crate) mod region;
pub(crate) mod s3;
pub(crate) mod service;
pub(crate) mod small_disk;
pub(crate) mod tools;
pub(crate) mod two_regions;
