//! The request handler of a listener: a router, an optional shortcut before it, optional threads.

use std::fmt;
use std::sync::Arc;

use ::http::Response;
use ::http::request::Parts;
use axum::Router;
use axum::body::Body;

use super::Workers;

type Shortcut = dyn Fn(&Parts) -> Option<Response<Body>> + Send + Sync;

/// A router, with an optional shortcut before it and optional threads of its own.
#[derive(Clone)]
pub struct Responder {
    pub(super) router: Router,
    pub(super) shortcut: Option<Arc<Shortcut>>,
    pub(super) workers: Option<Arc<Workers>>,
    pub(super) has_sendfile: bool,
}

impl Responder {
    /// Adds a shortcut, which answers from memory and without the request's body before the router.
    /// Where it returns `None`, the router handles the request.
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

    /// Whether requests on unencrypted HTTP/1.1 connections carry a
    /// [`FileSender`](super::FileSender). Default: on Linux.
    #[must_use]
    pub fn with_sendfile(self, has_sendfile: bool) -> Self {
        Self {
            has_sendfile,
            ..self
        }
    }

    /// Serves connections on `workers`; with `None`, on the caller's runtime.
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
            has_sendfile: cfg!(target_os = "linux"),
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
