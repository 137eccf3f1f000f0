//! What the stories share: a region to break, an image to pull, real tools, and waiting for what
//! must come.

pub(crate) mod breaker;
pub(crate) mod buildah;
pub(crate) mod containerd;
mod daemon;
pub(crate) mod disk;
pub(crate) mod docker;
pub(crate) mod lab_scene;
pub(crate) mod platforms;
pub(crate) mod podman;
pub(crate) mod process;
pub(crate) mod registry;
pub(crate) mod scene;
pub(crate) mod tools;
