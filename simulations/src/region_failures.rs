//! Failures of a region: its origin refuses, hangs, is slow or lags behind, its storage fails, or
//! the region is cut off.

use crate::event::Event;
use crate::failures::FROZEN;
use crate::scenario::{FailureKind, millis};
use crate::service::{Condition, Latency};
use crate::world::World;

impl World<'_> {
    pub(crate) fn fail_regions(&mut self, number: usize) {
        let failure = &self.scenario.failures[number];
        for region in failure.regions(self.origins.len() as u32) {
            self.note_outage(failure, region);
            let origin = &mut self.origins[region as usize];
            match failure.kind {
                FailureKind::StopOrigin => {
                    origin.condition = Condition::Refuses;
                    self.break_calls(region);
                    self.break_idle_connections(region);
                }
                FailureKind::HangOrigin => {
                    origin.condition = Condition::Hangs;
                    let end = self.origin_end(region);
                    self.network.set_rates(self.now, end, FROZEN, FROZEN);
                }
                FailureKind::SlowOrigin => {
                    origin.slow = Some(Latency::of_failure(failure));
                }
                FailureKind::LagOrigin => origin.lacking_share = failure.share,
                FailureKind::HangStorage
                | FailureKind::RefuseStorage
                | FailureKind::SlowStorage => {
                    self.fail_storage(number, region);
                }
                FailureKind::Partition => {
                    self.is_cut_off[region as usize] = true;
                    self.cut_links(region);
                }
                _ => {}
            }
        }
    }

    pub(crate) fn recover_regions(&mut self, number: usize) {
        let failure = &self.scenario.failures[number];
        for region in failure.regions(self.origins.len() as u32) {
            let origin = &mut self.origins[region as usize];
            match failure.kind {
                FailureKind::StopOrigin => origin.condition = Condition::Up,
                FailureKind::HangOrigin => {
                    origin.condition = Condition::Up;
                    let held = origin.take_held();
                    let end = self.origin_end(region);
                    let (up, down) = self.scenario.origin.rates();
                    self.network.set_rates(self.now, end, up, down);
                    for call in held {
                        self.resume_call(call);
                    }
                }
                FailureKind::SlowOrigin => origin.slow = None,
                FailureKind::LagOrigin => origin.lacking_share = 0.0,
                FailureKind::HangStorage
                | FailureKind::RefuseStorage
                | FailureKind::SlowStorage => {
                    self.recover_storage(region);
                }
                FailureKind::Partition => {
                    self.is_cut_off[region as usize] = false;
                    self.reset_calls_across(region);
                }
                _ => {}
            }
        }
    }

    fn fail_storage(&mut self, number: usize, region: u32) {
        let failure = &self.scenario.failures[number];
        let Some(storage) = &mut self.origins[region as usize].storage else {
            return;
        };
        storage.cached_share = failure.cached;
        storage.condition = match failure.kind {
            FailureKind::HangStorage => Condition::Hangs,
            FailureKind::RefuseStorage => Condition::Refuses,
            _ => {
                storage.slow = Some(Latency::of_failure(failure));
                return;
            }
        };
        let condition = storage.condition;
        self.interrupt_bodies(region, condition);
    }

    fn recover_storage(&mut self, region: u32) {
        if let Some(storage) = &mut self.origins[region as usize].storage {
            storage.condition = Condition::Up;
            storage.slow = None;
            storage.cached_share = 0.0;
        }
        self.resume_reads(region);
    }

    /// Whether nothing passes between two regions.
    pub(crate) fn is_cut(&self, one: u32, other: u32) -> bool {
        one != other && (self.is_cut_off[one as usize] || self.is_cut_off[other as usize])
    }

    /// A region's origin stops: its connections break.
    fn break_calls(&mut self, region: u32) {
        for call in self.calls_to(region) {
            if let Some(peer) = self.stop_call(call) {
                let delay = self.http_delay(peer, region);
                let broke = Event::BodyBroke { call };
                self.queue.push_after(self.now, delay, broke);
            }
        }
    }

    /// A region is cut off: its connections with others fall silent. Neighbours notice that after
    /// their idle timeout; calls to origins wait for their bytes.
    fn cut_links(&mut self, region: u32) {
        let notice = millis(self.scenario.links.death_noticed_ms);
        for peer in 0..self.peers.len() as u32 {
            if self.locations[peer as usize].region != region {
                continue;
            }
            for slot in self.peers[peer as usize].links.up_slots() {
                let link = *self.peers[peer as usize].links.at(slot);
                if self.locations[link.peer as usize].region == region {
                    continue;
                }
                self.hang_up(peer, slot, notice);
                let (slot, epoch) = (slot, link.epoch);
                let closed = Event::Closed { peer, slot, epoch };
                self.queue.push_after(self.now, notice, closed);
            }
        }
        for (call, _) in self.calls_across(region) {
            self.stop_call(call);
        }
    }

    /// A region is connected again: calls that lost their bytes are reset.
    fn reset_calls_across(&mut self, region: u32) {
        for (call, peer) in self.calls_across(region) {
            let delay = self.http_delay(peer, region);
            let broke = Event::BodyBroke { call };
            self.queue.push_after(self.now, delay, broke);
        }
    }
}
