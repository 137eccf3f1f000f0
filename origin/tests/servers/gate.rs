//! A TCP forwarder before a server, with an address that is known before the server starts. It can
//! be cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Length of the kernel's queue of connections that are not accepted yet.
const BACKLOG: u32 = 1024;

/// What the gate does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateState {
    /// Forwards them.
    Open,
    /// Closes them, and each new one once it is accepted.
    Closed,
    /// Keeps them, and each new one, without forwarding a byte.
    Hanging,
    /// Closes them, and refuses new ones.
    Refusing,
}

/// A forwarder to one of several addresses in turn.
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    state: watch::Sender<GateState>,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
    accepting: JoinHandle<()>,
    /// Bound and never listening: keeps the port while the gate refuses connections.
    _reserved: TcpSocket,
}

impl Gate {
    /// A gate without targets: it closes connections until it gets some.
    pub(crate) async fn start() -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let reserved = bound(any_port);
        let address = reserved.local_addr().unwrap();
        let listener = listen(address);
        let state = watch::Sender::new(GateState::Open);
        let targets: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let accepting = accept(listener, state.subscribe(), Arc::clone(&targets));
        Self {
            address,
            state,
            targets,
            accepting: tokio::spawn(accepting),
            _reserved: reserved,
        }
    }

    /// Sets the addresses to which new connections are forwarded.
    pub(crate) fn set_targets(&self, targets: impl IntoIterator<Item = SocketAddr>) {
        *self.targets.lock().unwrap() = targets.into_iter().collect();
    }

    pub(crate) fn set(&self, state: GateState) {
        self.state.send_replace(state);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A socket whose port other sockets of this kind may share.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

fn listen(address: SocketAddr) -> TcpListener {
    bound(address).listen(BACKLOG).unwrap()
}

async fn accept(
    mut listener: TcpListener,
    mut states: watch::Receiver<GateState>,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
) {
    let address = listener.local_addr().unwrap();
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => Some(accepted),
            () = wait_until(&mut states, |state| state == GateState::Refusing) => None,
        };
        let Some(client) = client else {
            drop(listener);
            wait_until(&mut states, |state| state != GateState::Refusing).await;
            listener = listen(address);
            continue;
        };
        let Ok((client, _)) = client else { continue };
        let target = {
            let mut targets = targets.lock().unwrap();
            if !targets.is_empty() {
                targets.rotate_left(1);
            }
            targets.last().copied()
        };
        if let Some(target) = target {
            tokio::spawn(forward(client, target, states.clone()));
        }
    }
}

/// Forwards a connection while the gate stays open. A connection that hung is closed afterwards,
/// because bytes may have been lost.
async fn forward(
    mut client: TcpStream,
    target: SocketAddr,
    mut states: watch::Receiver<GateState>,
) {
    let copy = async {
        let mut server = TcpStream::connect(target).await?;
        tokio::io::copy_bidirectional(&mut client, &mut server).await
    };
    tokio::select! {
        // An error is the end of a connection, which its other side sees.
        _ended = copy => return,
        () = wait_until(&mut states, |state| state != GateState::Open) => {}
    }
    wait_until(&mut states, |state| state != GateState::Hanging).await;
}

/// Waits for a state. The gate itself ends with the test, and with it this wait.
async fn wait_until(states: &mut watch::Receiver<GateState>, is_met: impl Fn(GateState) -> bool) {
    let met = states.wait_for(|state| is_met(*state)).await.map(drop);
    if met.is_err() {
        std::future::pending().await
    }
}
