//! Uploads to remote storage, which share the part buffers.

use core::convert::Infallible;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::units::ByteSize;
use flotilla_origin::storage::{self, Storage};
use futures_util::{StreamExt, stream};
use reqwest::{Body, Method, Response, StatusCode};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use crate::support::{Region, Registry, sample};

/// Length of a part in bytes.
const PART_LEN: u64 = 5 << 20;
/// Length of a batch in bytes.
const BATCH_LEN: u64 = 512 << 10;
const MIB: usize = 1 << 20;

/// Object storage in memory with this many part buffers.
fn storage_with_parts(parts: u64) -> Arc<dyn Storage> {
    storage::open("memory:///", parts * PART_LEN).unwrap()
}

/// A `PATCH` whose body the test sends piece by piece. The body ends when this is dropped.
struct OpenPatch {
    bytes: UnboundedSender<Bytes>,
    answer: JoinHandle<Response>,
}

impl OpenPatch {
    async fn begin(client: &Registry) -> Self {
        let (bytes, mut come) = unbounded_channel::<Bytes>();
        let pieces =
            stream::poll_fn(move |context| come.poll_recv(context)).map(Ok::<_, Infallible>);
        let upload = client.begin("app").await;
        let patch = client
            .request(Method::PATCH, &upload)
            .body(Body::wrap_stream(pieces));
        Self {
            bytes,
            answer: tokio::spawn(async move { patch.send().await.unwrap() }),
        }
    }

    fn send(&self, len: usize) {
        self.bytes.send(sample(len, 0)).unwrap();
    }

    async fn status(self) -> StatusCode {
        drop(self.bytes);
        self.answer.await.unwrap().status()
    }
}

/// Two uploads hold all part buffers, two more have bytes and no part buffer. If these held the
/// batch buffers meanwhile, no upload could continue.
#[tokio::test]
async fn uploads_do_not_deadlock_on_part_buffers() {
    let two_batches = ByteSize(2 * BATCH_LEN);
    let region = Region::start_on(storage_with_parts(2), 1, |config| {
        config.limits.upload_buffers = two_batches
    })
    .await;
    let client = region.client(0);
    let before = region.operations(0).writes();
    let mut uploads = Vec::new();
    for begun in 1..=4 {
        let upload = OpenPatch::begin(&client).await;
        upload.send(MIB);
        uploads.push(upload);
        while region.operations(0).writes() < before + begun {
            tokio::task::yield_now().await;
        }
    }
    // Each upload has more than a part in total.
    uploads
        .iter()
        .for_each(|upload| upload.send(PART_LEN as usize));
    for upload in uploads {
        let status = tokio::time::timeout(Duration::from_secs(60), upload.status()).await;
        assert_eq!(
            status.expect("the uploads are deadlocked"),
            StatusCode::ACCEPTED
        );
    }
    region.assert_sound().await;
}

#[tokio::test]
async fn slow_upload_releases_its_part_buffer() {
    let brief = Duration::from_millis(100);
    let region = Region::start_on(storage_with_parts(1), 1, |config| {
        config.limits.stall_timeout = brief
    })
    .await;
    let client = region.client(0);
    let before = region.operations(0).writes();
    let slow = OpenPatch::begin(&client).await;
    let trickle = tokio::spawn({
        let bytes = slow.bytes.clone();
        async move {
            let mut now_and_then = tokio::time::interval(brief / 4);
            while bytes.send(Bytes::from_static(b"x")).is_ok() {
                now_and_then.tick().await;
            }
        }
    });
    while region.operations(0).writes() == before {
        tokio::task::yield_now().await;
    }
    // The wait for a part buffer exceeds the stall budget, but does not count against it.
    let quick = OpenPatch::begin(&client).await;
    quick.send(MIB);
    assert_eq!(
        slow.answer.await.unwrap().status(),
        StatusCode::REQUEST_TIMEOUT
    );
    assert_eq!(quick.status().await, StatusCode::ACCEPTED);
    trickle.abort();
}
