//! Images on disk, as OCI image layouts: made for a demonstration, or read from what other tools
//! wrote.

mod layout;
mod make;

pub use layout::{Layout, LayoutError};
pub use make::make;
