//! Probes of origins, which the failover machine asks for: when a call was slow or failed, and
//! while an origin is out.
//!
//! The probe is `GET /readyz`: an origin answers whether it can serve, with its storage; another
//! registry does not know the path and answers 404. Every status below 500 counts as good.

use flotilla_common::failover::SourceId;
use flotilla_runtime::error_text::explain;
use flotilla_runtime::shutdown::Shutdown;
use reqwest::Method;

use super::client::OriginClient;
use super::http_client::error_message;
use super::request::{MAX_ERROR_LEN, read_body};

const PATH: &str = "/readyz";

impl OriginClient {
    /// Probes origins when the failover machine asks for it, until the shutdown begins.
    pub(crate) async fn probe_until_shutdown(self, shutdown: Shutdown) {
        let probe = |origin| self.get_readyz(origin);
        self.sources().clone().run_probes(probe, shutdown).await;
    }

    async fn get_readyz(&self, origin: SourceId) -> Result<(), String> {
        let answer = self.request(Method::GET, origin, PATH).send().await;
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
