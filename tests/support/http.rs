//! A server on a free port of loopback, and requests written byte by byte.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use sandcaster::api::{self, ApiLimits, ApiState, Limits, Shutdown};
use sandcaster::app::App;
use sandcaster::clock::Clock;
use sandcaster::config::{Config, ServerSettings, Usable};
use sandcaster::runs::{Keep, Runs, RunsConfig, Tasks};
use sandcaster::secrets::Secret;
use sandcaster::store::RunStore;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::memory_store::MemoryStore;

/// Longer than anything takes; a test that waits for it has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Settings of a server without a key.
pub fn keyless() -> ServerSettings {
    ServerSettings {
        port: 0,
        max_sandboxes: BTreeMap::new(),
        ..Config::default().server
    }
}

/// Settings of a server with these keys.
pub fn keyed(keys: &[&str]) -> ServerSettings {
    ServerSettings {
        api_keys: keys.iter().map(|key| Secret::new(key)).collect(),
        ..keyless()
    }
}

/// An application over `store` with these settings.
pub fn app(server: ServerSettings, store: Arc<dyn RunStore>, clock: Clock) -> App {
    let max_concurrent_runs = server.max_concurrent_runs;
    let config = Config {
        server,
        ..Config::default()
    };
    let (tasks, redactor) = (Tasks::new(), config.redactor());
    let runs = Runs::new(RunsConfig {
        store,
        keep: Keep {
            age: None,
            runs: u64::MAX,
        },
        providers: BTreeMap::new(),
        backends: BTreeMap::new(),
        max_concurrent_runs,
        redactor: redactor.clone(),
        clock: clock.clone(),
        tasks: tasks.clone(),
    });
    App {
        config: Arc::new(config),
        usable: Arc::new(Usable::default()),
        runs,
        tasks,
        redactor,
        clock,
    }
}

/// A server that is stopped when it is dropped.
pub struct TestServer {
    pub address: SocketAddr,
    pub store: Arc<MemoryStore>,
    pub shutdown: Shutdown,
    serving: JoinSet<()>,
}

impl TestServer {
    /// The whole API with these settings, over an empty store.
    pub async fn start(settings: ServerSettings) -> Self {
        Self::start_at(settings, Clock::system()).await
    }

    /// As [`TestServer::start`], with this clock.
    pub async fn start_at(settings: ServerSettings, clock: Clock) -> Self {
        let store = MemoryStore::new();
        let state = ApiState::new(app(settings, store.clone(), clock));
        Self::serve(api::router(state), store, Limits::default()).await
    }

    /// The whole API with other limits of bodies.
    pub async fn start_with(settings: ServerSettings, limits: ApiLimits) -> Self {
        let store = MemoryStore::new();
        let state = ApiState::with_limits(app(settings, store.clone(), Clock::system()), limits);
        Self::serve(api::router(state), store, Limits::default()).await
    }

    /// These routes behind the API's guard.
    pub async fn routes(
        settings: ServerSettings,
        routes: Router<ApiState>,
        limits: Limits,
    ) -> Self {
        let store = MemoryStore::new();
        let state = ApiState::new(app(settings, store.clone(), Clock::system()));
        Self::serve(api::guarded(routes, state), store, limits).await
    }

    async fn serve(router: Router, store: Arc<MemoryStore>, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::default();
        let mut serving = JoinSet::new();
        serving.spawn(api::listen::serve(
            listener,
            router,
            limits,
            shutdown.clone(),
        ));
        Self {
            address,
            store,
            shutdown,
            serving,
        }
    }

    /// A request to this server, with a `Host` and nothing else.
    pub fn request(&self, method: &str, path: &str) -> Request {
        Request {
            address: self.address,
            head: format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n"),
            host: Some(self.address.to_string()),
            body: Vec::new(),
        }
    }

    pub fn get(&self, path: &str) -> Request {
        self.request("GET", path)
    }

    pub fn post(&self, path: &str) -> Request {
        self.request("POST", path)
    }

    /// A connection of its own.
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends these bytes and reads until the server closes.
    pub async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        exchange(self.address, bytes).await
    }

    /// Waits until serving has ended.
    pub async fn ended(&mut self) {
        timeout(PATIENCE, self.serving.join_next())
            .await
            .expect("serving has not ended")
            .expect("there is one task")
            .expect("serving does not panic");
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shutdown.cut.cancel();
    }
}

/// A request under construction.
#[derive(Clone)]
pub struct Request {
    address: SocketAddr,
    head: String,
    host: Option<String>,
    body: Vec<u8>,
}

impl Request {
    /// With a header; `Host` replaces the usual one.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if name.eq_ignore_ascii_case("host") {
            self.host = Some(value.to_owned());
        } else {
            self.head.extend([name, ": ", value, "\r\n"]);
        }
        self
    }

    pub fn bearer(self, key: &str) -> Self {
        self.header("Authorization", &format!("Bearer {key}"))
    }

    /// With a body and its length.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        let length = self.body.len().to_string();
        self.header("Content-Length", &length)
    }

    /// With a JSON body.
    pub fn json(self, body: &str) -> Self {
        self.header("Content-Type", "application/json").body(body)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head.clone().into_bytes();
        if let Some(host) = &self.host {
            bytes.extend_from_slice(format!("Host: {host}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }

    pub async fn send(self) -> Reply {
        Reply::parse(&exchange(self.address, &self.bytes()).await)
    }
}

async fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    let talk = async {
        let (mut read, mut write) = stream.split();
        // A server that refuses early may close before everything is written.
        let (_, read) = tokio::join!(write.write_all(bytes), read.read_to_end(&mut answer));
        read.expect("the connection was reset before the answer was read");
    };
    timeout(PATIENCE, talk).await.expect("no answer in time");
    answer
}

/// A response, read whole.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// A chunked body had its last chunk, a sized one all its bytes.
    pub complete: bool,
}

impl Reply {
    /// Parses the bytes of one response.
    pub fn parse(bytes: &[u8]) -> Self {
        let at = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no response head in {:?}", String::from_utf8_lossy(bytes)));
        let head = std::str::from_utf8(&bytes[..at]).unwrap();
        let rest = &bytes[at + 4..];
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers: Vec<_> = lines
            .map(|line| line.split_once(": ").unwrap_or((line, "")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut reply = Self {
            status,
            headers,
            body: rest.to_vec(),
            complete: true,
        };
        if reply.header("transfer-encoding") == Some("chunked") {
            (reply.body, reply.complete) = dechunk(rest);
        } else if let Some(length) = reply.header("content-length") {
            reply.complete = length.parse() == Ok(rest.len());
        }
        reply
    }

    /// The one value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} comes twice");
        value
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// Checks that this is an error in the public form, and gives its code.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body = self.json();
        assert!(body["error"].is_string(), "{body}");
        assert_eq!(body["error"], body["message"]);
        let known = sandcaster::error::ErrorCode::parse(body["code"].as_str().unwrap());
        known.unwrap_or_else(|| panic!("{body}")).to_string()
    }
}

/// The bytes of a chunked body, and whether it ended properly.
fn dechunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        let start = at + 2;
        let Some(chunk) = rest.get(start..start + size) else {
            body.extend_from_slice(&rest[start..]);
            return (body, false);
        };
        body.extend_from_slice(chunk);
        rest = rest.get(start + size + 2..).unwrap_or_default();
    }
    (body, false)
}

/// Sends these bytes, keeps the sending side open, and reads one response with a `Content-Length`.
pub async fn first_reply(stream: &mut TcpStream, bytes: &[u8]) -> Reply {
    let talk = async {
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        loop {
            let mut part = [0; 4096];
            let n = stream.read(&mut part).await.unwrap();
            answer.extend_from_slice(&part[..n]);
            if answer.windows(4).any(|four| four == b"\r\n\r\n") {
                let reply = Reply::parse(&answer);
                if reply.complete || n == 0 {
                    return reply;
                }
            }
            assert!(n > 0, "the connection was closed without an answer");
        }
    };
    timeout(PATIENCE, talk).await.expect("no answer in time")
}

impl Reply {
    /// Whether these bytes hold a whole response.
    pub fn whole(bytes: &[u8]) -> bool {
        bytes.windows(4).any(|four| four == b"\r\n\r\n") && Self::parse(bytes).complete
    }
}
