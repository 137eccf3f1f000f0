//! Probes of origins that do not answer, so that status and metrics show their return before the
//! next pull.
//!
//! [`Reachability`](flotilla_common::reachability::Reachability) decides when to probe; an origin
//! that answers is never probed. The probe is `GET /readyz`: an origin answers whether it can
//! serve, with its storage; another registry does not know the path and answers 404. Every status
//! below 500 counts as an answer. A probe only changes status and metrics; when pulls ask the
//! origin again is decided by the state machine.

use flotilla_common::swarm::OriginSlot;
use flotilla_common::time::Time;
use flotilla_runtime::shutdown::Shutdown;
use futures_util::future::join_all;
use reqwest::Method;
use tokio::time::timeout;

use super::client::{OriginClient, OriginEntry, lock};
use super::http_client::{error_message, explain};
use super::request::{HEAD_TIMEOUT, MAX_ERROR_LEN, read_body};

const PATH: &str = "/readyz";

impl OriginClient {
    /// Probes each origin that does not answer when its probe is due, until the shutdown begins.
    pub(crate) async fn probe_until_shutdown(self, shutdown: Shutdown) {
        loop {
            let failed = self.0.failed.notified();
            let next = self.probe_times().filter_map(|(_, at)| at).min();
            tokio::select! {
                () = shutdown.wait() => return,
                () = failed => continue,
                () = self.0.clock.sleep_until(next) => {}
            }
            let now = self.0.clock.now();
            let due = self
                .probe_times()
                .filter(|(_, at)| at.is_some_and(|at| at <= now));
            let probes = join_all(due.map(|(origin, _)| self.probe(origin)));
            tokio::select! {
                () = shutdown.wait() => return,
                _ = probes => {}
            }
        }
    }

    /// When each origin is to be probed.
    fn probe_times(&self) -> impl Iterator<Item = (OriginSlot, Option<Time>)> {
        let at = |origin: &OriginEntry| lock(&origin.reachability).probe_at();
        (0..).map(OriginSlot).zip(self.0.entries.iter().map(at))
    }

    async fn probe(&self, origin: OriginSlot) {
        match self.get_readyz(origin).await {
            // The machine keeps its own back-off: an overloaded origin is ready too, and must not
            // be asked again earlier because of a probe.
            Ok(()) => self.record(origin, None),
            Err(error) => {
                tracing::debug!(
                    origin = self.url(origin),
                    trouble = error,
                    "origin probe failed"
                );
                if let Some(origin) = self.0.entries.get(origin.0 as usize) {
                    lock(&origin.reachability).probe_failed(
                        self.0.clock.now(),
                        error,
                        &mut rand::rng(),
                    );
                }
            }
        }
    }

    async fn get_readyz(&self, origin: OriginSlot) -> Result<(), String> {
        let answer = timeout(HEAD_TIMEOUT, self.request(Method::GET, origin, PATH).send()).await;
        let answer = answer.map_err(|_| format!("no response within {HEAD_TIMEOUT:?}"))?;
        let answer = answer.map_err(|error| explain(&error))?;
        let status = answer.status();
        // After the whole body was read, the connection can be reused.
        let body = read_body(answer, MAX_ERROR_LEN).await.unwrap_or_default();
        if !status.is_server_error() {
            return Ok(());
        }
        let message = error_message(&body).map(|message| format!(": {message}"));
        Err(format!("{status}{}", message.unwrap_or_default()))
    }
}
