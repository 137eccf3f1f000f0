//! The HTTP client options of remote storages.

use core::time::Duration;

use object_store::ClientOptions;

/// How long a server may send nothing. Whole responses have no timeout, because a client may read a
/// large blob slowly.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout(READ_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
}
