//! A client of a running peer's mirror, for the commands that work with one.

use std::fmt::Display;
use std::net::SocketAddr;

use clap::Args;
use reqwest::Response;
use serde::de::DeserializeOwned;

use crate::client::http_client;
use crate::command::CommandError;

/// The peer that a command works with.
#[derive(Clone, Debug, Args)]
pub(super) struct MirrorArg {
    /// The address of the peer's mirror
    #[arg(
        long,
        value_name = "ADDR",
        env = "FLOTILLA_MIRROR",
        default_value = "127.0.0.1:5001"
    )]
    pub(super) mirror: SocketAddr,
}

impl MirrorArg {
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.mirror)
    }

    /// Sends a GET request and decodes the JSON response.
    ///
    /// # Errors
    /// If no peer answers there.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CommandError> {
        let client =
            http_client().map_err(|error| CommandError::failed("create an HTTP client", error))?;
        let response = client
            .get(self.url(path))
            .send()
            .await
            .map_err(|error| self.request_error(error))?;
        self.decode(response).await
    }

    /// Decodes a JSON response.
    ///
    /// # Errors
    /// If the response is an error, or not from a peer.
    pub(super) async fn decode<T: DeserializeOwned>(
        &self,
        response: Response,
    ) -> Result<T, CommandError> {
        let status = response.status();
        let body = response
            .bytes()
            .await
            .map_err(|error| self.request_error(error))?;
        if !status.is_success() {
            if let Some(message) = image_error(&body) {
                return Err(CommandError::failed(
                    format!("ask the peer at {}", self.mirror),
                    message,
                ));
            }
            let text = String::from_utf8_lossy(&body).trim().to_owned();
            return Err(self.not_a_peer(format!(
                "it answered {status}: {text}; this may be an origin or a tracker"
            )));
        }
        serde_json::from_slice(&body).map_err(|error| {
            let action = format!("decode the response of the peer at {}", self.mirror);
            CommandError::failed(
                action,
                format!("{error}; is the peer's version the same as this program's?"),
            )
        })
    }

    /// The error for a request without a response, with a likely cause.
    pub(super) fn request_error(&self, error: reqwest::Error) -> CommandError {
        let cause = if error.is_connect() {
            "cannot connect: no peer listens there".to_owned()
        } else if error.is_request() && !error.is_timeout() {
            "no plain HTTP response: this may be an origin or a tracker with TLS".to_owned()
        } else {
            error.to_string()
        };
        self.not_a_peer(cause)
    }

    fn not_a_peer(&self, cause: impl Display) -> CommandError {
        CommandError::failed(
            format!("ask the peer at {}", self.mirror),
            format!("{cause}; set --mirror ADDR to the address of a peer's mirror"),
        )
    }
}

/// The message of an error about an image, in the format of registries. Origins and trackers do not
/// know the paths of peers, so they never send these codes for them.
fn image_error(body: &[u8]) -> Option<String> {
    let response: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = response.get("errors")?.get(0)?;
    let is_about_image = ["MANIFEST_UNKNOWN", "UNAVAILABLE"]
        .iter()
        .any(|code| error["code"] == *code);
    error["message"]
        .as_str()
        .filter(|_| is_about_image)
        .map(str::to_owned)
}
