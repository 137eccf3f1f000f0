//! The storage argument, and the errors of the commands that repair a storage.

use std::sync::Arc;

use clap::Args;
use flotilla_origin::Limits;
use flotilla_origin::maintenance::RepairError;
use flotilla_origin::storage::{self, Storage, TimeoutStorage, missing_credentials};

use crate::command::CommandError;

/// The storage that a command works on.
#[derive(Debug, Args)]
pub(super) struct StorageArgs {
    /// The storage, as in the origins' configuration
    #[arg(long, value_name = "URL", env = "FLOTILLA_STORAGE")]
    storage: String,
}

impl StorageArgs {
    /// Opens the storage, which must exist.
    pub(super) fn open(&self) -> Result<Arc<dyn Storage>, CommandError> {
        open(&self.storage)
    }
}

/// Opens a storage that exists.
pub(super) fn open(url: &str) -> Result<Arc<dyn Storage>, CommandError> {
    let storage = storage::open_existing(url);
    let storage = storage.map_err(|error| CommandError::failed("open the storage", error))?;
    let timeout = Limits::default().storage_timeout;
    Ok(Arc::new(TimeoutStorage::new(storage, timeout)))
}

/// The error of a command whose repair failed.
pub(super) fn repair_error(action: &str, error: &RepairError) -> CommandError {
    let mut text = error.to_string();
    if let Some(fix) = missing_credentials(&text) {
        text = format!("{text}; {fix}");
    } else if matches!(error, RepairError::Storage(_)) {
        text = format!("{text}; run the command again, it goes on where it stopped");
    }
    CommandError::failed(action, text)
}
