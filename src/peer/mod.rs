//! What people ask of a peer on this machine: how it is doing, an image pulled through it, an image
//! warmed in it.

mod progress;
mod pull;
mod reference;
mod render;
mod status;
mod warm;

use std::fmt::Display;
use std::net::SocketAddr;

use clap::Args;
use reqwest::Response;
use serde::de::DeserializeOwned;

use crate::cli::CommandError;
use crate::client::http_client;

pub use pull::{PullArgs, run as pull};
pub use reference::ImageReference;
pub use status::{StatusArgs, run as status};
pub use warm::{WarmArgs, run as warm};

/// Which peer is meant.
#[derive(Clone, Debug, Args)]
struct MirrorArg {
    /// Where the peer's mirror listens
    #[arg(
        long,
        value_name = "ADDR",
        env = "FLOTILLA_MIRROR",
        default_value = "127.0.0.1:5001"
    )]
    mirror: SocketAddr,
}

impl MirrorArg {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.mirror)
    }

    /// What can be done if nothing answers there, or nothing that speaks plain HTTP.
    fn failed(&self, source: reqwest::Error) -> CommandError {
        let why = if source.is_connect() {
            "nothing listens; is a peer running there?".to_owned()
        } else if source.is_request() && !source.is_timeout() {
            "it does not answer plain HTTP; is it an origin or a tracker with TLS?".to_owned()
        } else {
            source.to_string()
        };
        self.no_peer(why)
    }

    fn no_peer(&self, why: impl Display) -> CommandError {
        let cure = "--mirror ADDR is where a peer's mirror listens";
        CommandError::failed(
            format!("ask the peer at {}", self.mirror),
            format!("{why} {cure}"),
        )
    }

    /// The JSON under a path.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CommandError> {
        let client =
            http_client().map_err(|error| CommandError::failed("set up an HTTP client", error))?;
        let response = client
            .get(self.url(path))
            .send()
            .await
            .map_err(|error| self.failed(error))?;
        self.read(response).await
    }

    /// The JSON of an answer; what it says if it is none.
    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, CommandError> {
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.failed(error))?;
        if !status.is_success() {
            if let Some(said) = said_of_an_image(&body) {
                return Err(CommandError::failed(
                    format!("ask the peer at {}", self.mirror),
                    said,
                ));
            }
            let said = String::from_utf8_lossy(&body).trim().to_owned();
            let why =
                format!("it answered {status}: {said}; is it a peer, and no origin or tracker?");
            return Err(self.no_peer(why));
        }
        serde_json::from_slice(&body).map_err(|error| {
            let what = format!("read what the peer at {} says", self.mirror);
            CommandError::failed(what, format!("{error}; is it a peer of this version?"))
        })
    }
}

/// What a peer says of an image that it cannot have, in the words of a registry; an origin or a
/// tracker knows no such path.
fn said_of_an_image(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = answer.get("errors")?.get(0)?;
    let is_of_an_image = ["MANIFEST_UNKNOWN", "UNAVAILABLE"]
        .iter()
        .any(|code| error["code"] == *code);
    error["message"]
        .as_str()
        .filter(|_| is_of_an_image)
        .map(str::to_owned)
}
