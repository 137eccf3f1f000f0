//! The error type.

use std::path::Path;

use flotilla::client::ClientError;

/// Why the laboratory failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// An action failed.
    #[error("{action}: {cause}")]
    Failed {
        /// What was attempted: verb and noun.
        action: String,
        /// The system's error.
        cause: String,
    },
    /// A service did not start, or ended unexpectedly.
    #[error("{name} {problem}; its log:\n{log}")]
    Service {
        /// The service's name.
        name: String,
        /// What happened to it.
        problem: String,
        /// The end of its log.
        log: String,
    },
    /// A request of a client failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Services logged errors or ended unexpectedly, beside what a test looked at.
    #[error("services reported errors:\n{0}")]
    UnexpectedErrors(String),
}

impl LabError {
    pub(crate) fn failed(action: impl Into<String>, cause: impl ToString) -> Self {
        Self::Failed {
            action: action.into(),
            cause: cause.to_string(),
        }
    }

    /// Maps the error of an action on a file.
    pub(crate) fn io(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let action = format!("{action} {}", path.display());
        move |error| Self::failed(action, error)
    }
}
