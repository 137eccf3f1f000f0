//! Helpers shared by `flotilla bench` and the laboratory in `tests/lab`: services as child
//! processes, their resource usage, images to move, and the bytes that pulls deliver.

mod delivery;
mod disk_space;
mod origin_process;
mod process;
mod service_process;
mod synthetic_image;
mod testbed;
mod tracker_process;

pub use delivery::{Delivery, PullDelivery};
pub use disk_space::require_disk_space;
pub use origin_process::{OriginProcess, OriginProcessPlan};
pub use process::Process;
pub use synthetic_image::{
    EMPTY_CONFIG, EMPTY_CONFIG_TYPE, LAYER_TYPE, PushedImage, SyntheticImage,
};
pub use testbed::{PeerProcess, Testbed};
pub use tracker_process::TrackerProcess;
