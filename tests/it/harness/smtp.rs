//! A mail server that speaks as much SMTP as a client needs, without TLS, and remembers what it was given.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a client may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// A mail that was taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mail {
    /// What followed `AUTH`, as it was said.
    pub(crate) login: String,
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    /// Head and body, without the dots that SMTP doubles.
    pub(crate) data: String,
}

pub(crate) struct MailServer {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    mails: Mutex<Vec<Mail>>,
    /// Every command of every client.
    commands: Mutex<Vec<String>>,
}

impl MailServer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        // Ends with the process: nothing waits for it.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(&stream, &state));
            }
        });
        Self { address, state }
    }

    pub(crate) fn mails(&self) -> Vec<Mail> {
        self.state.mails.lock().unwrap().clone()
    }

    pub(crate) fn commands(&self) -> Vec<String> {
        self.state.commands.lock().unwrap().clone()
    }
}

/// One client, to its end; `None` when it goes away.
fn serve(stream: &TcpStream, state: &State) -> Option<()> {
    stream.set_read_timeout(Some(SILENCE)).ok()?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let say = |text: &str| (&*stream).write_all(format!("{text}\r\n").as_bytes()).ok();
    let mut mail = Mail::default();
    say("220 mail.test ESMTP")?;
    while let Some(line) = lines.next() {
        state.commands.lock().unwrap().push(line.clone());
        let word = line.split([' ', ':']).next().unwrap_or_default().to_uppercase();
        match &*word {
            "EHLO" => say("250-mail.test\r\n250-8BITMIME\r\n250 AUTH PLAIN LOGIN")?,
            "AUTH" => {
                line["AUTH ".len()..].clone_into(&mut mail.login);
                say("235 welcome")?;
            }
            "MAIL" => {
                mail.from = line;
                say("250 ok")?;
            }
            "RCPT" => {
                mail.to.push(line);
                say("250 ok")?;
            }
            "DATA" => {
                say("354 go on")?;
                for line in lines.by_ref().take_while(|line| line != ".") {
                    mail.data.push_str(line.strip_prefix('.').unwrap_or(&line));
                    mail.data.push('\n');
                }
                state.mails.lock().unwrap().push(std::mem::take(&mut mail));
                say("250 taken")?;
            }
            "QUIT" => return say("221 bye"),
            _ => say("502 not here")?,
        }
    }
    None
}
