//! Chains of uploads from their first link to their last, and segments that no link names.

use std::collections::BTreeMap;

use flotilla_common::codec;

use super::{Checker, Look, NO_KEY, PAGE};
use crate::layout;
use crate::record::{BlobRecord, Segment, TableAt};
use crate::storage::{Key, StorageError};
use crate::upload::chain::{Chain, Next};
use crate::upload::id::Generation;
use crate::upload::link::{Act, Link};

/// An upload's links, read in order.
#[derive(Default)]
struct Links {
    /// How many there are.
    count: u64,
    problems: Vec<String>,
    /// Where the next one would be.
    end: u64,
    segments: Vec<Segment>,
    ending: Ending,
}

/// What became of the upload.
#[derive(Default)]
enum Ending {
    #[default]
    Open,
    Finished(Box<Link>),
    Cancelled,
}

impl Links {
    /// Follows one link. `base` is the last that named all segments before it.
    fn follow(
        &mut self,
        offset: u64,
        link: Link,
        base: &mut (u64, Vec<Segment>),
    ) -> Result<(), &'static str> {
        self.count += 1;
        if !matches!(self.ending, Ending::Open) {
            return Err("there are links after the one that ended it");
        }
        if offset != self.end {
            return Err("a link does not begin where the one before ended");
        }
        let before = match link.base {
            None => Vec::new(),
            Some(named) if named == base.0 => base.1.clone(),
            Some(_) => return Err("a link builds upon one that does not name all segments"),
        };
        let names_all = link.base.is_none();
        match Chain::after(offset, link, &before).map_err(|_| "a link does not fit its place")? {
            Next::Open(chain) => {
                self.end = chain.end();
                self.segments = chain.segments().to_vec();
                if names_all {
                    *base = (offset, self.segments.clone());
                }
            }
            Next::Finished(link) => {
                self.segments = link.segments.clone();
                self.ending = Ending::Finished(Box::new(link));
            }
            Next::Cancelled => self.ending = Ending::Cancelled,
        }
        Ok(())
    }

    /// Whether a data object belongs to it.
    fn names(&self, nonce: u128) -> bool {
        let table = match &self.ending {
            Ending::Finished(link) => match link.act {
                Act::Finish {
                    table: TableAt::Object { nonce },
                    ..
                } => Some(nonce),
                _ => None,
            },
            Ending::Cancelled => return false,
            Ending::Open => None,
        };
        table == Some(nonce) || self.segments.iter().any(|segment| segment.nonce == nonce)
    }
}

impl Checker {
    /// All data objects of an upload, and of the blob that it became, with their sizes.
    pub(super) async fn segments(
        &self,
        upload: &Generation,
    ) -> Result<BTreeMap<u128, u64>, StorageError> {
        let (prefix, mut sizes, mut after) = (layout::segments(upload), BTreeMap::new(), None);
        loop {
            let page = self.storage.list(&prefix, after.as_ref(), PAGE).await?;
            let sized = page.entries.iter().filter_map(|entry| {
                Some((
                    u128::from_str_radix(entry.key.last_segment(), 16).ok()?,
                    entry.size,
                ))
            });
            sizes.extend(sized);
            if !page.more {
                return Ok(sizes);
            }
            after = page.entries.into_iter().next_back().map(|entry| entry.key);
        }
    }

    async fn links(&self, upload: &Generation) -> Result<Links, StorageError> {
        let (prefix, mut links, mut after) = (layout::links(upload), Links::default(), None);
        let mut base = (0, Vec::new());
        loop {
            let page = self.storage.list(&prefix, after.as_ref(), PAGE).await?;
            for entry in &page.entries {
                let Some(object) = self.storage.read(&entry.key).await? else {
                    continue;
                };
                let followed = match (offset(&entry.key), codec::decode::<Link>(&object.body)) {
                    (Some(offset), Ok(link)) => {
                        links.follow(offset, link, &mut base).map_err(str::to_owned)
                    }
                    (None, _) => Err(NO_KEY.to_owned()),
                    (_, Err(error)) => Err(format!("{}: {error}", entry.key)),
                };
                links.problems.extend(followed.err());
            }
            if !page.more {
                return Ok(links);
            }
            after = page.entries.into_iter().next_back().map(|entry| entry.key);
        }
    }

    /// `key` is the first link of the upload.
    pub(super) async fn look_at_upload(&self, key: &Key) -> Result<Look, StorageError> {
        let Some(upload) = upload_of(key) else {
            return Ok(Look::damage(NO_KEY));
        };
        let links = self.links(&upload).await?;
        let mut look = Look {
            damage: links.problems,
            ..Look::default()
        };
        match links.ending {
            Ending::Cancelled => {}
            Ending::Finished(link) => self.look_at_finish(&upload, &link, &mut look).await?,
            Ending::Open => {
                let present = self.segments(&upload).await?;
                let lost = links
                    .segments
                    .iter()
                    .filter(|segment| present.get(&segment.nonce) != Some(&segment.size));
                look.damage.extend(lost.map(|segment| {
                    format!(
                        "segment {} is not there as acknowledged",
                        layout::segment(&upload, segment.nonce)
                    )
                }));
                look.leftovers.push(format!(
                    "an upload of {} bytes so far that is not finished",
                    links.end
                ));
            }
        }
        Ok(look)
    }

    async fn look_at_finish(
        &self,
        upload: &Generation,
        link: &Link,
        look: &mut Look,
    ) -> Result<(), StorageError> {
        let Some(expected) = link.record(0) else {
            return Ok(());
        };
        let key = layout::blob(&expected.facts.digest, upload);
        match self.storage.read(&key).await? {
            // Its client was not told that it is done, and is when it asks again.
            None => look.leftovers.push(format!(
                "{key} is still to be written: its push was cut short"
            )),
            Some(object) => {
                let same = codec::decode::<BlobRecord>(&object.body).is_ok_and(|record| {
                    record.facts == expected.facts && record.segments == expected.segments
                });
                if !same {
                    look.damage
                        .push(format!("{key} is not what the upload was finished as"));
                }
            }
        }
        Ok(())
    }

    /// `key` is the first data object of the upload.
    pub(super) async fn look_at_segments(&self, key: &Key) -> Result<Look, StorageError> {
        let Some(upload) = upload_of(key) else {
            return Ok(Look::damage(NO_KEY));
        };
        let present = self.segments(&upload).await?;
        let links = self.links(&upload).await?;
        let nameless = present
            .into_iter()
            .filter(|(nonce, _)| !links.names(*nonce));
        let leftovers = nameless.map(|(nonce, size)| {
            format!(
                "{} of {size} bytes is named by nothing",
                layout::segment(&upload, nonce)
            )
        });
        Ok(Look {
            leftovers: leftovers.collect(),
            ..Look::default()
        })
    }
}

/// The upload of `upload/<id>/...` or `seg/<id>/...`.
fn upload_of(key: &Key) -> Option<Generation> {
    key.as_str().split('/').nth(1)?.parse().ok()
}

fn offset(key: &Key) -> Option<u64> {
    u64::from_str_radix(key.last_segment(), 16).ok()
}
