//! Events in words, with the peers and chunks that they are about.

use core::fmt::Debug;

use crate::event::Event;
use crate::fetch::{FetchPurpose, FetchSource};
use crate::network::FlowEvent;
use crate::slab::Key;
use crate::world::World;

/// Maximum number of characters of a described message.
const MAX_CHARACTERS: usize = 300;

impl World<'_> {
    pub(super) fn describe(&self, event: &Event) -> String {
        match event {
            Event::Requested { fetch } => format!("request arrives: {}", self.fetch_text(*fetch)),
            Event::Refused { fetch, reason } => {
                format!("refusal ({reason:?}) arrives: {}", self.fetch_text(*fetch))
            }
            Event::FirstByte { fetch } => {
                format!("first byte arrives: {}", self.fetch_text(*fetch))
            }
            Event::Arrived { fetch } => format!("last byte arrives: {}", self.fetch_text(*fetch)),
            Event::OriginAsked { call } => format!("request arrives: {}", self.call_text(*call)),
            Event::OriginServes { call } => format!("answer begins: {}", self.call_text(*call)),
            Event::OriginAnswered { call, outcome } => {
                format!("{outcome:?} arrives: {}", self.call_text(*call))
            }
            Event::OriginArrived { call } => {
                format!("last byte arrives: {}", self.call_text(*call))
            }
            Event::BodyBroke { call } => format!("answer breaks off: {}", self.call_text(*call)),
            Event::Have { broadcast } => {
                format!(
                    "held chunks arrive: {}",
                    text(self.broadcasts.get(*broadcast))
                )
            }
            Event::ChunkMap { message } => {
                let message = self.chunk_map_messages.get(*message);
                format!("chunk map arrives: {}", text(message))
            }
            Event::ToTracker { message } => {
                let message = self.tracker_messages.get(*message);
                format!("message reaches a tracker: {}", text(message))
            }
            Event::FromTracker { answer } => {
                let answer = self.tracker_answers.get(*answer);
                format!("answer of a tracker arrives: {}", text(answer))
            }
            Event::FailureStarts { failure } => {
                format!(
                    "failure starts: {}",
                    text(self.scenario.failures.get(*failure))
                )
            }
            Event::FailureEnds { failure } => {
                format!(
                    "failure ends: {}",
                    text(self.scenario.failures.get(*failure))
                )
            }
            other => shorten(format!("{other:?}")),
        }
    }

    pub(super) fn describe_flow(&self, event: &FlowEvent) -> String {
        match *event {
            FlowEvent::Progress { tag, from, moved } => {
                format!("{moved} bytes have flowed: {}", self.flow_text(tag, from))
            }
            FlowEvent::Done { tag, from, .. } => {
                format!(
                    "all bytes have left the source: {}",
                    self.flow_text(tag, from)
                )
            }
        }
    }

    fn flow_text(&self, tag: u64, from: u32) -> String {
        let key = Key::from_bits(tag);
        if self.is_origin(from) {
            self.call_text(key)
        } else {
            self.fetch_text(key)
        }
    }

    fn call_text(&self, key: Key) -> String {
        match self.calls.get(key) {
            Some(call) => {
                let fetch = self.fetch_text(call.fetch);
                format!("{fetch}: that of region {}", call.region)
            }
            None => "a call that has ended".to_owned(),
        }
    }

    fn fetch_text(&self, key: Key) -> String {
        let Some(fetch) = self.fetches.get(key) else {
            return "a fetch that has ended".to_owned();
        };
        let source = match fetch.source {
            FetchSource::Peer { peer, .. } => format!("peer {peer}"),
            FetchSource::Origin => "the origins".to_owned(),
        };
        let (peer, blob) = (fetch.peer, fetch.blob.0);
        let what = match fetch.purpose {
            FetchPurpose::Chunk { chunk, .. } => format!("chunk {chunk} of blob {blob}"),
            FetchPurpose::Manifest { pull } => format!("the manifest of its pull {pull}"),
            FetchPurpose::Proofs { pull } => {
                format!("the proofs of the blobs of its pull {pull}")
            }
            FetchPurpose::PassThrough { from, to } => {
                format!("the bytes {from} to {to} of blob {blob} past the swarm")
            }
        };
        format!("peer {peer} fetches {what} from {source}")
    }
}

fn text<T: Debug>(message: Option<&T>) -> String {
    match message {
        Some(message) => shorten(format!("{message:?}")),
        None => "one that was withdrawn".to_owned(),
    }
}

fn shorten(text: String) -> String {
    match text.char_indices().nth(MAX_CHARACTERS) {
        Some((at, _)) => format!("{} ...", &text[..at]),
        None => text,
    }
}
