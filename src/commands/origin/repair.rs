//! What the commands that repair a storage share.

use std::sync::Arc;

use flotilla_origin::Limits;
use flotilla_origin::maintenance::RepairError;
use flotilla_origin::storage::{self, Storage, TimeoutStorage, missing_credentials};

use crate::command::CommandError;

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
