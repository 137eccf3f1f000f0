//! The part of the XML API of GCS that fake-gcs-server lacks: writes, conditional removals, and
//! listings after a key. They are translated to what it has.

use std::net::SocketAddr;
use std::process::Command;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Client;

use super::proxy::{Answer, answer};

pub(super) const IF_GENERATION_MATCH: &str = "x-goog-if-generation-match";
const GENERATION: &str = "x-goog-generation";

/// Sends a request of the XML API.
pub(super) async fn send(
    client: &Client,
    server: SocketAddr,
    parts: Parts,
    body: Bytes,
) -> Result<Answer, reqwest::Error> {
    let condition = parts.headers.get(IF_GENERATION_MATCH);
    let condition = condition.and_then(|value| value.to_str().ok());
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    let Some((bucket, key)) = path.trim_start_matches('/').split_once('/') else {
        let url = format!("http://{server}{path}?{query}");
        let listed = answer(client.request(parts.method, url).headers(parts.headers));
        let (status, headers, body) = listed.await?;
        return Ok((status, without_length(headers), listed_after(&body, query)));
    };
    match parts.method {
        Method::PUT => {
            let mut url = format!(
                "http://{server}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={key}"
            );
            if let Some(generation) = condition {
                url += &format!("&ifGenerationMatch={generation}");
            }
            Ok(as_xml(answer(client.post(url).body(body)).await?))
        }
        method => {
            let url = format!("http://{server}{path}");
            if let Some(generation) = condition {
                let head = client.head(&url).header("host", host(&parts.headers));
                let (_, headers, _) = answer(head).await?;
                let present = headers
                    .get(GENERATION)
                    .and_then(|value| value.to_str().ok());
                if present != Some(generation) {
                    return Ok((
                        StatusCode::PRECONDITION_FAILED,
                        HeaderMap::new(),
                        Bytes::new(),
                    ));
                }
            }
            answer(
                client
                    .request(method, url)
                    .headers(parts.headers)
                    .body(body),
            )
            .await
        }
    }
}

fn host(headers: &HeaderMap) -> HeaderValue {
    let host = headers.get("host").cloned();
    host.unwrap_or(HeaderValue::from_static("localhost"))
}

/// The answer to a write, which the JSON API describes in its body.
fn as_xml((status, _, body): Answer) -> Answer {
    let mut headers = HeaderMap::new();
    let written: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let attribute = |name: &str| written[name].as_str().map(str::to_owned);
    for (name, value) in [
        (GENERATION, attribute("generation")),
        ("etag", attribute("etag").map(|etag| format!("\"{etag}\""))),
    ] {
        if let Some(value) = value.and_then(|value| value.parse().ok()) {
            headers.insert(name, value);
        }
    }
    (status, headers, Bytes::new())
}

/// A listing without the keys up to the one of `start-after`.
fn listed_after(body: &Bytes, query: &str) -> Bytes {
    const ITEM: &str = "<Contents>";
    let after = form_urlencoded::parse(query.as_bytes())
        .find_map(|(name, value)| (name == "start-after").then_some(value));
    let (Some(after), Ok(text)) = (after, std::str::from_utf8(body)) else {
        return body.clone();
    };
    const END: &str = "</Contents>";
    let (items, tail) = match text.rsplit_once(END) {
        Some((items, tail)) => (items, tail),
        None => return body.clone(),
    };
    let mut items = items.split(ITEM);
    let mut kept = items.next().unwrap_or_default().to_owned();
    for item in items {
        let key = item
            .split_once("<Key>")
            .and_then(|(_, rest)| rest.split_once("</Key>"));
        if key.is_some_and(|(key, _)| *key > *after) {
            kept += &format!("{ITEM}{}{END}", item.trim_end_matches(END));
        }
    }
    (kept + tail).into()
}

fn without_length(mut headers: HeaderMap) -> HeaderMap {
    headers.remove("content-length");
    headers
}

/// A service account with a new key: clients sign with it, and the server verifies nothing. Node.js
/// is available, because azurite runs on it.
pub(super) fn service_account() -> String {
    const SCRIPT: &str = "const { privateKey } = require('crypto').generateKeyPairSync('rsa', \
        { modulusLength: 2048, privateKeyEncoding: { type: 'pkcs8', format: 'pem' }, \
          publicKeyEncoding: { type: 'spki', format: 'pem' } }); \
        console.log(JSON.stringify({ private_key: privateKey, private_key_id: 'test', \
          client_email: 'test@flotilla.test' }));";
    let output = Command::new("node")
        .args(["-e", SCRIPT])
        .output()
        .expect("run node");
    assert!(output.status.success(), "create a key: {output:?}");
    String::from_utf8(output.stdout).expect("node prints text")
}
