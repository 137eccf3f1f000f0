//! Asks origins that do not answer whether they are back, so that a peer knows it before its next
//! pull does.
//!
//! When is decided by [`Reachability`](flotilla_common::reachability::Reachability); nothing is
//! asked while all is well. The question is `GET /readyz`: an origin of ours says whether it can
//! serve, with its storage, and any other registry does not know the path and answers 404. Every
//! status below 500 is an answer. What it says changes what status and metrics show; when pulls ask
//! again is the machine's to know.

use flotilla_common::swarm::OriginSlot;
use flotilla_common::time::Time;
use flotilla_runtime::shutdown::Shutdown;
use futures_util::future::join_all;
use reqwest::Method;
use tokio::time::timeout;

use super::{HEAD_TIMEOUT, MAX_ERROR_LEN, Origins, client, lock, whole};

const PATH: &str = "/readyz";

impl Origins {
    /// Probes every silent origin when it is time, until the shutdown begins.
    pub(crate) async fn probe_for_ever(self, shutdown: Shutdown) {
        loop {
            let fell_silent = self.0.silent.notified();
            let next = self.probe_times().filter_map(|(_, at)| at).min();
            tokio::select! {
                () = shutdown.wait() => return,
                () = fell_silent => continue,
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

    /// When each origin wants to be probed.
    fn probe_times(&self) -> impl Iterator<Item = (OriginSlot, Option<Time>)> {
        let at = |origin: &super::Origin| lock(&origin.reachability).probe_at();
        (0..).map(OriginSlot).zip(self.0.origins.iter().map(at))
    }

    async fn probe(&self, origin: OriginSlot) {
        match self.asked_whether_ready(origin).await {
            // The machine keeps its own rests: an origin that sheds load is ready, and must not be
            // asked the sooner for it.
            Ok(()) => self.heard(origin, None),
            Err(trouble) => {
                tracing::debug!(origin = self.url(origin), trouble, "probe origin");
                if let Some(origin) = self.0.origins.get(origin.0 as usize) {
                    lock(&origin.reachability).probe_failed(
                        self.0.clock.now(),
                        trouble,
                        &mut rand::rng(),
                    );
                }
            }
        }
    }

    async fn asked_whether_ready(&self, origin: OriginSlot) -> Result<(), String> {
        let answer = timeout(HEAD_TIMEOUT, self.request(Method::GET, origin, PATH).send()).await;
        let answer = answer.map_err(|_| format!("no answer within {HEAD_TIMEOUT:?}"))?;
        let answer = answer.map_err(|error| client::explain(&error))?;
        let status = answer.status();
        // Read to its end, the connection can be used again.
        let body = whole(answer, MAX_ERROR_LEN).await.unwrap_or_default();
        if !status.is_server_error() {
            return Ok(());
        }
        let message = client::error_message(&body).map(|message| format!(": {message}"));
        Err(format!("{status}{}", message.unwrap_or_default()))
    }
}
