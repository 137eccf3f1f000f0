//! Finding a request in the logs.

use std::sync::Mutex;

use http::{Method, StatusCode};
use serde_json::Value;
use tempfile::NamedTempFile;
use tracing::subscriber::DefaultGuard;

use crate::support::{Region, header, is_unavailable};

/// Captures the JSON log of this thread.
struct LogCapture {
    file: NamedTempFile,
    _until: DefaultGuard,
}

impl LogCapture {
    fn start() -> Self {
        let file = NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(Mutex::new(file.reopen().unwrap()))
            .finish();
        Self {
            file,
            _until: tracing::subscriber::set_default(subscriber),
        }
    }

    /// The lines with this request id.
    fn lines_with(&self, request_id: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.file.path()).unwrap();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .filter(|line| line["request_id"] == request_id)
            .collect()
    }
}

#[tokio::test]
async fn requests_are_logged_by_id() {
    let log = LogCapture::start();
    let region = Region::start(1).await;
    let client = region.client(0);
    let path = "/v2/app/manifests/v1";
    let given = client
        .request(Method::GET, path)
        .header("x-request-id", "edge-1/7")
        .send()
        .await
        .unwrap();
    assert_eq!(given.status(), StatusCode::NOT_FOUND);
    let found = log.lines_with("edge-1/7");
    let [line] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(line["target"], "flotilla_origin::request");
    assert_eq!(
        (&line["level"], &line["method"]),
        (&"DEBUG".into(), &"GET".into())
    );
    assert_eq!(
        (&line["path"], &line["status"]),
        (&path.into(), &404.into())
    );
    assert!(line["seconds"].is_number() && line["route"].is_string());
}

#[tokio::test]
async fn storage_error_is_logged_with_request_id() {
    let log = LogCapture::start();
    let region = Region::start(1).await;
    region.faults.set_down(true);
    let failed = region.client(0).get("/v2/app/manifests/v1").await;
    assert!(is_unavailable(&failed));
    let found = log.lines_with(header(&failed, "x-request-id"));
    let [line] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        (&line["level"], &line["status"]),
        (&"WARN".into(), &503.into())
    );
    assert!(
        line["error"].as_str().unwrap().contains("injected fault"),
        "{line}"
    );
}
