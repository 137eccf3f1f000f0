//! The connections of peers, and of origins, to origins: HTTP/1.1, so each carries one request at a
//! time.
//!
//! As a real peer does, a request takes the connection that became idle last, or opens one: a round
//! trip for TCP and one for TLS 1.3. An answer that is received whole gives its connection back;
//! any other end closes it.

use core::time::Duration;
use std::collections::BTreeMap;

use flotilla_common::time::Time;

use crate::network::{ConnectionId, Network};
use crate::service::Condition;
use crate::world::World;

/// Idle connections that a client keeps per origin.
const MAX_IDLE: usize = 16;
/// A connection that was idle for this long is closed: the HTTP client's default.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// One-way messages of both handshakes.
const HANDSHAKE_MESSAGES: u32 = 4;

/// An open connection of a peer or another origin to an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OriginConnection {
    /// Its congestion window in the direction to the client, if it is simulated.
    pub(crate) window: Option<ConnectionId>,
}

/// The idle connections, by client and region of the origin, each since when, the latest last.
#[derive(Debug, Default)]
pub(crate) struct OriginConnections(BTreeMap<(u32, u32), Vec<(OriginConnection, Time)>>);

impl OriginConnection {
    fn close(self, network: &mut Network) {
        if let Some(window) = self.window {
            network.close_connection(window);
        }
    }
}

impl World<'_> {
    /// A connection to the origin of a region for a request, and how long it takes to open;
    /// `None` if connections are not simulated.
    pub(crate) fn connect_to_origin(
        &mut self,
        peer: u32,
        region: u32,
    ) -> (Option<OriginConnection>, Duration) {
        let own = self.locations[peer as usize].region;
        let window = self.region_links.between(region, own).http_window;
        if window.is_none() && !self.scenario.links.handshakes {
            return (None, Duration::ZERO);
        }
        if let Some(connection) = self.take_idle(peer, region) {
            return (Some(connection), Duration::ZERO);
        }
        let window = window.map(|window| self.network.open_connection(window));
        let delay = self.handshake_delay(peer, region);
        (Some(OriginConnection { window }), delay)
    }

    /// A connection of one region's origin to another's, for a body. It is open already: origins ask
    /// each other all the time. Its window may be small.
    pub(crate) fn connect_origins(&mut self, own: u32, other: u32) -> Option<OriginConnection> {
        let window = self.region_links.between(other, own).http_window?;
        let client = self.origin_end(own);
        if let Some(connection) = self.take_idle(client, other) {
            return Some(connection);
        }
        let window = Some(self.network.open_connection(window));
        Some(OriginConnection { window })
    }

    /// Takes a client's idle connection to the origin of a region, if there is one.
    fn take_idle(&mut self, client: u32, region: u32) -> Option<OriginConnection> {
        self.close_expired(client, region);
        let idle = self.origin_connections.0.get_mut(&(client, region))?;
        idle.pop().map(|(connection, _)| connection)
    }

    /// How long a probe waits for a connection.
    pub(crate) fn probe_handshake_delay(&mut self, peer: u32, region: u32) -> Duration {
        self.close_expired(peer, region);
        let idle = self.origin_connections.0.get(&(peer, region));
        if idle.is_some_and(|idle| !idle.is_empty()) {
            return Duration::ZERO;
        }
        self.handshake_delay(peer, region)
    }

    /// How long it takes to open a connection. A stopped process refuses the first message.
    fn handshake_delay(&mut self, peer: u32, region: u32) -> Duration {
        let is_refused = self.origins[region as usize].condition == Condition::Refuses;
        if !self.scenario.links.handshakes || is_refused {
            return Duration::ZERO;
        }
        let messages = (0..HANDSHAKE_MESSAGES).map(|_| self.http_delay(peer, region));
        messages.sum()
    }

    /// Closes the connections that were idle for too long.
    fn close_expired(&mut self, peer: u32, region: u32) {
        let Some(idle) = self.origin_connections.0.get_mut(&(peer, region)) else {
            return;
        };
        let is_expired = |since: Time| since + IDLE_TIMEOUT <= self.now;
        let expired = idle.iter().take_while(|(_, since)| is_expired(*since));
        let expired = expired.count();
        for (connection, _) in idle.drain(..expired) {
            connection.close(&mut self.network);
        }
    }

    /// A request's answer was received whole: its connection is idle.
    pub(crate) fn keep_origin_connection(
        &mut self,
        peer: u32,
        region: u32,
        connection: OriginConnection,
    ) {
        let idle = self.origin_connections.0.entry((peer, region)).or_default();
        if idle.len() < MAX_IDLE {
            idle.push((connection, self.now));
        } else {
            self.close_origin_connection(connection);
        }
    }

    /// Closes a connection that carries no bytes any more.
    pub(crate) fn close_origin_connection(&mut self, connection: OriginConnection) {
        connection.close(&mut self.network);
    }

    /// A region's origin stops: the idle connections to it break.
    pub(crate) fn break_idle_connections(&mut self, region: u32) {
        let network = &mut self.network;
        self.origin_connections.0.retain(|(_, of), idle| {
            let is_kept = *of != region;
            if !is_kept {
                for (connection, _) in idle.drain(..) {
                    connection.close(network);
                }
            }
            is_kept
        });
    }
}
