//! Images on disk, as OCI image layouts: generated ones, and those of other tools.

mod generate;
mod layout;

pub use generate::generate;
pub use layout::{Layout, LayoutError};
