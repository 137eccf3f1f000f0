//! A TCP forwarder before the origins of a region, with an address that is known before they start.
//! It can be cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the gate does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateState {
    /// Forwards them.
    Open,
    /// Closes them, and each new one.
    Closed,
    /// Keeps them, and each new one, without forwarding a byte.
    Hanging,
}

/// A forwarder to one of several addresses in turn.
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    state: watch::Sender<GateState>,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
    accepting: JoinHandle<()>,
}

impl Gate {
    /// A gate without targets: it closes connections until it gets some.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = watch::Sender::new(GateState::Open);
        let targets: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let (states, known) = (state.subscribe(), Arc::clone(&targets));
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    continue;
                };
                let target = {
                    let mut targets = known.lock().unwrap();
                    if !targets.is_empty() {
                        targets.rotate_left(1);
                    }
                    targets.last().copied()
                };
                if let Some(target) = target {
                    tokio::spawn(forward(client, target, states.clone()));
                }
            }
        });
        Self {
            address,
            state,
            targets,
            accepting,
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
        () = wait_until_cut(&mut states) => {}
    }
    // The gate itself ends with the test.
    let _changed = states.wait_for(|state| *state != GateState::Hanging).await;
}

async fn wait_until_cut(states: &mut watch::Receiver<GateState>) {
    let _changed = states.wait_for(|state| *state != GateState::Open).await;
}
