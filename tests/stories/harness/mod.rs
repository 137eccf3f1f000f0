//! What the stories share: a region to break, an image to pull, real tools, and waiting for what must come.

pub(crate) mod containerd;
pub(crate) mod lab;
pub(crate) mod scene;
pub(crate) mod tools;
