//! What answers a listener's requests, and on which threads.

use std::fmt;
use std::sync::Arc;

use ::http::Response;
use ::http::request::Parts;
use axum::Router;
use axum::body::Body;

use super::Workers;

type Shortcut = dyn Fn(&Parts) -> Option<Response<Body>> + Send + Sync;

/// A router, and what may stand before it.
#[derive(Clone)]
pub struct Responder {
    pub(super) router: Router,
    pub(super) shortcut: Option<Arc<Shortcut>>,
    pub(super) workers: Option<Arc<Workers>>,
}

impl Responder {
    /// The same, with a shortcut: what can be answered at once, from memory and without the
    /// request's body, does not go through the router. `None` leaves the request to it.
    #[must_use]
    pub fn with_shortcut(
        self,
        shortcut: impl Fn(&Parts) -> Option<Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            shortcut: Some(Arc::new(shortcut)),
            ..self
        }
    }

    /// The same, on threads of its own; on the caller's runtime without.
    #[must_use]
    pub fn on(self, workers: Option<Arc<Workers>>) -> Self {
        Self { workers, ..self }
    }
}

impl From<Router> for Responder {
    fn from(router: Router) -> Self {
        Self {
            router,
            shortcut: None,
            workers: None,
        }
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder")
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}
