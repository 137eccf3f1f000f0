//! Stories of uploads on remote storage, which share the memory for parts.

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

/// Bytes of a part.
const PART: u64 = 5 << 20;
/// Bytes of a batch.
const BATCH: u64 = 512 << 10;
const MIB: usize = 1 << 20;

/// Remote storage, in memory, with room for so many parts.
fn with_parts(parts: u64) -> Arc<dyn Storage> {
    storage::open("memory:///", parts * PART).unwrap()
}

/// A `PATCH` whose bytes come when the story says so, and end when this is dropped.
struct Sending {
    bytes: UnboundedSender<Bytes>,
    answer: JoinHandle<Response>,
}

impl Sending {
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

/// Two uploads have all parts, two more have bytes and no part. Would these hold the memory for
/// batches meanwhile, nobody could go on.
#[tokio::test]
async fn uploads_that_have_a_part_never_wait_for_those_that_wait_for_one() {
    let two_batches = ByteSize(2 * BATCH);
    let region = Region::start_on(with_parts(2), 1, |config| {
        config.limits.upload_buffers = two_batches
    })
    .await;
    let client = region.client(0);
    let before = region.operations(0).writes();
    let mut uploads = Vec::new();
    for begun in 1..=4 {
        let upload = Sending::begin(&client).await;
        upload.send(MIB);
        uploads.push(upload);
        while region.operations(0).writes() < before + begun {
            tokio::task::yield_now().await;
        }
    }
    // More than a part each, in all.
    uploads.iter().for_each(|upload| upload.send(PART as usize));
    for upload in uploads {
        let status = tokio::time::timeout(Duration::from_secs(60), upload.status()).await;
        assert_eq!(
            status.expect("they wait for each other"),
            StatusCode::ACCEPTED
        );
    }
    region.is_sound().await;
}

#[tokio::test]
async fn a_client_that_sends_a_byte_now_and_then_does_not_keep_its_part() {
    let brief = Duration::from_millis(100);
    let region = Region::start_on(with_parts(1), 1, |config| {
        config.limits.stall_timeout = brief
    })
    .await;
    let client = region.client(0);
    let before = region.operations(0).writes();
    let slow = Sending::begin(&client).await;
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
    // It waits for the part for longer than a client may stall: that is not its fault.
    let quick = Sending::begin(&client).await;
    quick.send(MIB);
    assert_eq!(
        slow.answer.await.unwrap().status(),
        StatusCode::REQUEST_TIMEOUT
    );
    assert_eq!(quick.status().await, StatusCode::ACCEPTED);
    trickle.abort();
}
