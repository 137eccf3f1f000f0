//! containerd's side of a connection, down to the socket: a reset is told from an end, and a client
//! hangs up when it has what it wants.

use std::io;
use std::time::{Duration, Instant};

use flotilla_peer::Peer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No answer may take longer in any test.
const PATIENCE: Duration = Duration::from_secs(30);

/// The head of an answer, and the connection that its body comes on.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    stream: TcpStream,
    /// From the request to the head.
    pub(crate) head_after: Duration,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn headers(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .collect()
    }

    pub(crate) fn length(&self) -> u64 {
        self.header("content-length")
            .expect("every answer has a length")
            .parse()
            .unwrap()
    }

    /// What every answer must have and must not have.
    pub(crate) fn is_plain(&self) -> bool {
        self.header("content-length").is_some()
            && self.header("transfer-encoding").is_none()
            && self.header("content-encoding").is_none()
    }

    /// Reads until there are `length` bytes of the body, or its end.
    pub(crate) async fn read(&mut self, length: usize) -> io::Result<&[u8]> {
        let mut buffer = vec![0; 64 << 10];
        while self.body.len() < length {
            let read = timeout(PATIENCE, self.stream.read(&mut buffer))
                .await
                .expect("silence")?;
            if read == 0 {
                break;
            }
            self.body.extend_from_slice(&buffer[..read]);
        }
        Ok(&self.body[..self.body.len().min(length)])
    }

    /// Reads the body to the end that its length names, or to the end of the connection if that
    /// comes first. An error is a reset.
    pub(crate) async fn whole(mut self) -> io::Result<Vec<u8>> {
        let length = self.length() as usize;
        self.read(length).await?;
        Ok(self.body)
    }

    /// Reads `length` bytes and hangs up, however many there are.
    pub(crate) async fn piece(mut self, length: usize) -> Vec<u8> {
        let length = length.min(self.length() as usize);
        self.read(length).await.unwrap().to_vec()
    }
}

/// Asks as containerd does; it keeps the connection for itself.
pub(crate) async fn ask(peer: &Peer, method: &str, path: &str, range: Option<&str>) -> Answer {
    let mirror = peer.mirror_addr();
    let mut stream = TcpStream::connect(mirror).await.unwrap();
    let range = range.map_or(String::new(), |range| format!("Range: {range}\r\n"));
    let request = format!(
        "{method} {path}?ns=registry.example%3A5000 HTTP/1.1\r\nHost: {mirror}\r\n\
         User-Agent: containerd/2.2.9\r\nAccept: application/vnd.oci.image.manifest.v1+json, */*\r\n\
         Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5\r\n{range}\r\n"
    );
    let started = Instant::now();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let end = loop {
        let mut buffer = [0; 4096];
        let read = timeout(PATIENCE, stream.read(&mut buffer))
            .await
            .expect("silence")
            .unwrap();
        assert!(read > 0, "the connection ended before the head did");
        bytes.extend_from_slice(&buffer[..read]);
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
    };
    let head_after = started.elapsed();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    let headers = headers
        .map(|(key, value)| (key.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Answer {
        status,
        headers,
        body: bytes[end + 4..].to_vec(),
        stream,
        head_after,
    }
}

pub(crate) async fn get(peer: &Peer, path: &str, range: Option<&str>) -> Answer {
    ask(peer, "GET", path, range).await
}

/// The code and message of an OCI error.
pub(crate) async fn error(answer: Answer) -> (String, String) {
    let body: serde_json::Value = serde_json::from_slice(&answer.whole().await.unwrap()).unwrap();
    let text = |key: &str| body["errors"][0][key].as_str().unwrap().to_owned();
    (text("code"), text("message"))
}
