//! An HTTP client that behaves as containerd, on a plain socket: it distinguishes a connection
//! reset from an end, and can close the connection in the middle of a body.

use std::io;
use std::time::{Duration, Instant};

use flotilla_peer::Peer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No response may take longer in any test.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The head of a response, and the connection with its body.
pub(crate) struct MirrorResponse {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    stream: TcpStream,
    /// Time from the request to the head.
    pub(crate) head_after: Duration,
}

impl MirrorResponse {
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
            .expect("every response has a content-length")
            .parse()
            .unwrap()
    }

    /// Whether the body has a length and no encoding, as every response must.
    pub(crate) fn is_plain(&self) -> bool {
        self.header("content-length").is_some()
            && self.header("transfer-encoding").is_none()
            && self.header("content-encoding").is_none()
    }

    /// Reads until `length` bytes of the body or its end have arrived.
    pub(crate) async fn read(&mut self, length: usize) -> io::Result<&[u8]> {
        let mut buffer = vec![0; 64 << 10];
        while self.body.len() < length {
            let read = timeout(TIMEOUT, self.stream.read(&mut buffer))
                .await
                .expect("no bytes before the timeout")?;
            if read == 0 {
                break;
            }
            self.body.extend_from_slice(&buffer[..read]);
        }
        Ok(&self.body[..self.body.len().min(length)])
    }

    /// Reads the whole body, or up to the end of the connection if that comes first. An error is a
    /// reset.
    pub(crate) async fn read_all(mut self) -> io::Result<Vec<u8>> {
        let length = self.length() as usize;
        self.read(length).await?;
        Ok(self.body)
    }

    /// Reads `length` bytes of the body and closes the connection.
    pub(crate) async fn read_and_close(mut self, length: usize) -> Vec<u8> {
        let length = length.min(self.length() as usize);
        self.read(length).await.unwrap().to_vec()
    }
}

/// Sends a request as containerd does, on a connection of its own.
pub(crate) async fn request(
    peer: &Peer,
    method: &str,
    path: &str,
    range: Option<&str>,
) -> MirrorResponse {
    let mirror = peer.mirror_addr();
    let mut stream = TcpStream::connect(mirror).await.unwrap();
    let range = range.map_or(String::new(), |range| format!("Range: {range}\r\n"));
    let text = format!(
        "{method} {path}?ns=registry.example%3A5000 HTTP/1.1\r\nHost: {mirror}\r\n\
         User-Agent: containerd/2.2.9\r\nAccept: application/vnd.oci.image.manifest.v1+json, */*\r\n\
         Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5\r\n{range}\r\n"
    );
    let started = Instant::now();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let end = loop {
        let mut buffer = [0; 4096];
        let read = timeout(TIMEOUT, stream.read(&mut buffer))
            .await
            .expect("no bytes before the timeout")
            .unwrap();
        assert!(read > 0, "the connection ended before the head");
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
    MirrorResponse {
        status,
        headers,
        body: bytes[end + 4..].to_vec(),
        stream,
        head_after,
    }
}

pub(crate) async fn get(peer: &Peer, path: &str, range: Option<&str>) -> MirrorResponse {
    request(peer, "GET", path, range).await
}

/// The code and message of an OCI error response.
pub(crate) async fn oci_error(response: MirrorResponse) -> (String, String) {
    let body: serde_json::Value =
        serde_json::from_slice(&response.read_all().await.unwrap()).unwrap();
    let text = |key: &str| body["errors"][0][key].as_str().unwrap().to_owned();
    (text("code"), text("message"))
}
