//! Sends one message to one replica over HTTP.

use core::error::Error;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use flotilla_common::wire::origin::REPLICA_PATH;
use flotilla_runtime::identity::{IdentityError, client_without_trust};
use reqwest::Client;

use super::leases::ProcessId;
use super::message::{Answer, Content, MAX_ANSWER_LEN, Message, RequestMac, Secret};
use crate::nonce::nonce;

/// A message that was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// Nothing listens at the address, so no replica runs there: it listens for messages before it
    /// serves its first client, and until it has served its last.
    #[error("connection refused")]
    Refused,
    /// There was no answer, or not that of a replica of this region.
    #[error("{0}")]
    Failed(String),
}

/// A message in its encoded form, which can be sent several times.
#[derive(Clone, Debug)]
pub(crate) struct SealedMessage {
    body: Bytes,
    mac: RequestMac,
}

/// The client side of the messages between replicas.
#[derive(Debug)]
pub(crate) struct Exchange {
    secret: Secret,
    process: ProcessId,
    http: Client,
}

impl Exchange {
    pub(crate) fn new(secret: Secret) -> Result<Self, IdentityError> {
        // Messages are authenticated by their MAC, so plain HTTP will do. The builder needs a TLS
        // configuration nevertheless.
        let http = Client::builder()
            .tls_backend_preconfigured(client_without_trust()?)
            .no_proxy();
        let http = http
            .build()
            .map_err(|error| IdentityError::Tls(error.to_string()))?;
        Ok(Self {
            secret,
            process: nonce(),
            http,
        })
    }

    pub(crate) const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Identifies the messages of this process.
    pub(crate) const fn process(&self) -> ProcessId {
        self.process
    }

    pub(crate) fn seal(&self, content: Content) -> Result<SealedMessage, ExchangeError> {
        let message = Message {
            sender: self.process,
            nonce: nonce(),
            content,
        };
        let sealed = self.secret.seal(&message);
        let (body, mac) = sealed.map_err(|error| ExchangeError::Failed(error.to_string()))?;
        Ok(SealedMessage {
            body: body.into(),
            mac,
        })
    }

    /// Sends a message and checks the answer. Callers limit how long it takes.
    pub(crate) async fn send(
        &self,
        replica: SocketAddr,
        message: &SealedMessage,
    ) -> Result<Answer, ExchangeError> {
        let request = self
            .http
            .post(format!("http://{replica}{REPLICA_PATH}"))
            .body(message.body.clone());
        let response = request.send().await.map_err(|error| of_request(&error))?;
        let len = response.content_length();
        if len.is_none_or(|len| len > MAX_ANSWER_LEN as u64) || !response.status().is_success() {
            let problem = format!("answered {}", response.status());
            return Err(ExchangeError::Failed(problem));
        }
        let body = response.bytes().await;
        let body = body.map_err(|error| ExchangeError::Failed(error.to_string()))?;
        self.secret.open_answer(&message.mac, &body).ok_or_else(|| {
            ExchangeError::Failed(
                "the answer has a wrong MAC; is it a replica of another region or storage, or \
                     does it have another seal key?"
                    .to_owned(),
            )
        })
    }
}

fn of_request(error: &reqwest::Error) -> ExchangeError {
    let mut cause: Option<&(dyn Error + 'static)> = error.is_connect().then_some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return ExchangeError::Refused;
        }
        cause = error.source();
    }
    ExchangeError::Failed(error.to_string())
}
