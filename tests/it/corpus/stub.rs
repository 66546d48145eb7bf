//! A destination that misbehaves as a case says, once for each event, and takes it the second time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::{Layout, Site, Storage, certificate, expire, pause};

/// Longer than any attempt is.
const HANG: Duration = Duration::from_secs(8);

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) id: String,
    pub(super) attempt: u32,
    pub(super) idempotency_key: String,
    /// Which connection it came on, counted from 0.
    pub(super) connection: usize,
}

#[derive(Default)]
struct Seen {
    connections: usize,
    requests: Vec<Request>,
    /// Bytes of a misbehaving answer that were taken; through TLS, bytes of requests that came.
    taken: usize,
}

pub(super) struct Stub {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Stub {
    pub(super) fn start(script: &Value) -> Self {
        let is_refusing = script["net"] == "refused";
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let (seen, script) = (Arc::new(Mutex::new(Seen::default())), Arc::new(script.clone()));
        let theirs = Arc::clone(&seen);
        std::thread::spawn(move || {
            if is_refusing {
                // A port that is taken and not listened on: nobody else gets it, everybody is refused.
                pause(Duration::from_secs(600));
                drop(socket);
                return;
            }
            socket.listen(128).unwrap();
            let listener: TcpListener = socket.into();
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, seen) = (Arc::clone(&script), Arc::clone(&theirs));
                std::thread::spawn(move || serve(&stream, &script, &seen));
            }
        });
        Self { address, seen }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().requests.clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }

    pub(super) fn taken(&self) -> usize {
        self.seen.lock().unwrap().taken
    }
}

fn serve(stream: &TcpStream, script: &Value, seen: &Mutex<Seen>) {
    let connection = {
        let mut seen = seen.lock().unwrap();
        seen.connections += 1;
        seen.connections - 1
    };
    if script["tls"].is_string() {
        let (mut tls, mut stream) = (ServerConnection::new(expired()).unwrap(), stream);
        let mut request = [0; 4096];
        let read = rustls::Stream::new(&mut tls, &mut stream).read(&mut request);
        // One who does not know the certificate says nothing behind the handshake.
        seen.lock().unwrap().taken += read.unwrap_or_default();
        return;
    }
    let mut reader = BufReader::new(stream);
    while let Some((request, head)) = read_request(&mut reader, connection) {
        let times = {
            let mut seen = seen.lock().unwrap();
            let times = seen.requests.iter().filter(|known| known.id == request.id).count();
            seen.requests.push(request);
            times
        };
        if !answer(stream, script, times, &head, seen) {
            return;
        }
    }
}

/// A certificate that ended yesterday.
fn expired() -> Arc<ServerConfig> {
    static CONFIG: OnceLock<Arc<ServerConfig>> = OnceLock::new();
    let make = || {
        let site = Site::on(Storage::File, &Layout::default());
        certificate(&site, "stub", None, &["subjectAltName=IP:127.0.0.1"]);
        expire(&site, "stub");
        let chain = vec![CertificateDer::from_pem_file(site.path("stub.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(site.path("stub.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        Arc::new(config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap())
    };
    Arc::clone(CONFIG.get_or_init(make))
}

fn read_request(reader: &mut BufReader<&TcpStream>, connection: usize) -> Option<(Request, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let header = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .unwrap_or_default()
            .to_owned()
    };
    let mut body = vec![0; header("content-length").parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let attempt = header("chaski-attempt").parse().ok()?;
    let (id, idempotency_key) = (header("webhook-id"), header("idempotency-key"));
    Some((Request { id, attempt, idempotency_key, connection }, head))
}

/// Answers the request that has come for the `times`-th time, counted from 0; whether the connection goes on.
fn answer(mut stream: &TcpStream, script: &Value, times: usize, head: &str, seen: &Mutex<Seen>) -> bool {
    const TAKEN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let statuses = script["status_each"].as_array();
    if times >= statuses.map_or(1, Vec::len) {
        return stream.write_all(TAKEN.as_bytes()).is_ok();
    }
    let text = |name: &str| script[name].as_str();
    let mut written_to = stream;
    let mut flood = |piece: &[u8], bytes: u64| {
        let mut taken = 0;
        while taken < bytes && written_to.write_all(piece).is_ok() {
            taken += piece.len() as u64;
            seen.lock().unwrap().taken += piece.len();
        }
    };
    if let Some(raw) = text("raw") {
        let _ = stream.write_all(raw.as_bytes());
        // Cut where it ends, unless it has come to its end.
        return raw.ends_with("\r\n\r\n");
    }
    match text("net") {
        Some("rst_after_request") => {
            let socket = socket2::SockRef::from(stream);
            let _ = socket.set_linger(Some(Duration::ZERO));
            return false;
        }
        Some("close_idle") => {
            let _ = stream.write_all(TAKEN.as_bytes());
            return false;
        }
        _ => {}
    }
    if script["hang"].is_string() {
        pause(HANG);
        return false;
    }
    if script["flood_1xx"] == true {
        flood(b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n", u64::MAX);
        return false;
    }
    if let Some(bytes) = script["head_bytes"].as_u64() {
        flood(b"HTTP/1.1 200 OK\r\n", 1);
        flood(&b"x-a: 0123456789abcdef\r\n".repeat(100), bytes);
        return false;
    }
    let status = statuses.map_or(&script["status"], |statuses| &statuses[times]);
    let status = status.as_u64().unwrap_or(200);
    let mut lines = format!("HTTP/1.1 {status} Something\r\n");
    for (name, header) in [("retry_after", "retry-after"), ("location", "location")] {
        if let Some(value) = text(name) {
            lines += &format!("{header}: {value}\r\n");
        }
    }
    if let Some(bytes) = script["body_bytes"].as_u64() {
        let _ = stream.write_all(format!("{lines}content-length: {bytes}\r\n\r\n").as_bytes());
        flood(&[b'x'; 16 * 1024], bytes);
        return false;
    }
    if let Some(pause_between) = script["drip_ms"].as_u64() {
        let _ = stream.write_all(format!("{lines}content-length: 3600\r\n\r\n").as_bytes());
        while stream.write_all(b"x").is_ok() {
            pause(Duration::from_millis(pause_between));
        }
        return false;
    }
    let body = if script["gzip_bomb"] == true {
        // What it unpacks to does not matter to whoever does not unpack it.
        lines += "content-encoding: gzip\r\n";
        [&[0x1f, 0x8b, 8][..], &[0; 10 * 1024]].concat()
    } else if script["echo_headers"] == true {
        head.as_bytes().to_vec()
    } else {
        Vec::new()
    };
    if status != 204 {
        lines += &format!("content-length: {}\r\n", body.len());
    }
    stream.write_all(&[lines.as_bytes(), b"\r\n", &body].concat()).is_ok()
}
