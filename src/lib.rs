//! Flotilla's commands, and what they share with the laboratory and the stories in `tests/`:
//! a registry client, generated images, a fleet's keys, a region in this process ([`region`]), and
//! services as child processes ([`measure`]).

pub mod breakable_storage;
pub mod cli;
pub mod client;
pub mod command;
pub mod commands;
pub mod fleet;
pub mod image;
pub mod measure;
pub mod pki;
pub mod progress;
pub mod region;
pub mod regions;
