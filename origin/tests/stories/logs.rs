//! Stories of an operator who looks for a request in the log.

use std::sync::Mutex;

use http::{Method, StatusCode};
use serde_json::Value;
use tempfile::NamedTempFile;
use tracing::subscriber::DefaultGuard;

use crate::support::{Region, header, is_unavailable};

/// What this thread logs, as a service writes it where there is no terminal.
struct Log {
    file: NamedTempFile,
    _until: DefaultGuard,
}

impl Log {
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

    /// The lines that have this id.
    fn about(&self, request_id: &str) -> Vec<Value> {
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
async fn each_request_is_found_by_its_id() {
    let log = Log::start();
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
    let found = log.about("edge-1/7");
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
async fn a_request_that_storage_failed_is_found_with_its_error() {
    let log = Log::start();
    let region = Region::start(1).await;
    region.faults.set_down(true);
    let failed = region.client(0).get("/v2/app/manifests/v1").await;
    assert!(is_unavailable(&failed));
    let found = log.about(header(&failed, "x-request-id"));
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
