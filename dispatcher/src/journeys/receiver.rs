//! A receiver over a real socket that answers as it is told, byte for byte.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncBufReadExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    pub(crate) at: Instant,
    /// Which connection it came on.
    pub(crate) connection: usize,
}

impl Got {
    pub(crate) fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    pub(crate) fn attempt(&self) -> u32 {
        self.headers["chaski-attempt"].parse().unwrap()
    }
}

/// What a receiver answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// This status, no body, the connection stays open.
    Status(u16),
    /// This status after so long.
    Late(u16, Duration),
    /// A status with one header more.
    With(u16, &'static str, &'static str),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// A 200, and then the connection is closed without saying so before.
    Close,
    /// These bytes, and then the same again and again.
    Endless(&'static [u8], &'static [u8]),
    /// Nothing, ever.
    Silence,
    /// The connection is reset.
    Reset,
}

type Script = Arc<dyn Fn(&Got) -> Answer + Send + Sync>;

/// A receiver on a port of its own.
pub(crate) struct Receiver {
    address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
    count: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start(script: impl Fn(&Got) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (got, (counter, count)) = (Arc::new(Mutex::new(Vec::new())), watch::channel(0));
        let (script, taken): (Script, _) = (Arc::new(script), got.clone());
        let counter = Arc::new(counter);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, connection, script.clone(), taken.clone(), counter.clone()));
            }
        });
        Self { address, got, count, task }
    }

    /// One that answers everything with this status, which can be changed.
    pub(crate) async fn answering(status: u16) -> (Self, Arc<AtomicU16>) {
        let status = Arc::new(AtomicU16::new(status));
        let now = Arc::clone(&status);
        (Self::start(move |_| Answer::Status(now.load(Relaxed))).await, status)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hooks", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// Waits until so many requests have come.
    pub(crate) async fn has(&self, requests: usize) -> Vec<Got> {
        let mut count = self.count.clone();
        let waited =
            tokio::time::timeout(Duration::from_mins(1), count.wait_for(|count| *count >= requests)).await;
        assert!(waited.is_ok(), "{requests} requests wanted, these came: {:#?}", self.got());
        self.got()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    stream: TcpStream,
    connection: usize,
    script: Script,
    taken: Arc<Mutex<Vec<Got>>>,
    counter: Arc<watch::Sender<usize>>,
) {
    let mut stream = BufReader::new(stream);
    while let Some(got) = request(&mut stream, connection).await {
        let answer = script(&got);
        taken.lock().unwrap().push(got);
        counter.send_modify(|count| *count += 1);
        if let Answer::Late(_, after) = answer {
            tokio::time::sleep(after).await;
        }
        let written = match answer {
            Answer::Status(status) | Answer::Late(status, _) => {
                stream.write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").as_bytes()).await
            }
            Answer::With(status, name, value) => {
                stream
                    .write_all(
                        format!("HTTP/1.1 {status} X\r\n{name}: {value}\r\ncontent-length: 0\r\n\r\n")
                            .as_bytes(),
                    )
                    .await
            }
            Answer::Raw(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Answer::Close => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                return;
            }
            Answer::Endless(head, rest) => {
                let _ = stream.write_all(head).await;
                while stream.write_all(rest).await.is_ok() {}
                return;
            }
            Answer::Silence => std::future::pending().await,
            Answer::Reset => {
                socket2::SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
                return;
            }
        };
        if written.is_err() {
            return;
        }
    }
}

async fn request(stream: &mut BufReader<TcpStream>, connection: usize) -> Option<Got> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match stream.read_line(&mut line).await {
            Ok(0) | Err(_) => return None,
            Ok(_) if line.trim().is_empty() => break,
            Ok(_) => lines.push(line),
        }
    }
    let at = Instant::now();
    assert!(lines[0].starts_with("POST /hooks HTTP/1.1"), "{lines:?}");
    let pair = |line: &String| {
        line.trim().split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()))
    };
    let headers: HashMap<String, String> = lines[1..].iter().filter_map(pair).collect();
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some(Got { headers, body, at, connection })
}
