//! A client without opinions: sends what it is told and shows what came back, byte for byte. For tests of
//! the stand-in itself; the product's own client is tested by itself.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};

use super::FakeE2b;
use super::connect::{message_frame, take_frame};

/// Longest that any answer is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A sandbox, as its creator knows it.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its id.
    pub id: String,
    /// Its access token.
    pub token: String,
}

/// An answer read to its end.
#[derive(Debug)]
pub struct Told {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: reqwest::header::HeaderMap,
    /// What came of the body.
    pub bytes: Vec<u8>,
    /// Whether the connection broke before the body's end.
    pub broken: bool,
}

impl Told {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// The body's envelopes, and how many bytes follow the last whole one.
    pub fn frames(&self) -> (Vec<(u8, Value)>, usize) {
        let mut rest = self.bytes.clone();
        let mut frames = Vec::new();
        while let Ok(Some((flags, payload))) = take_frame(&mut rest) {
            frames.push((
                flags,
                serde_json::from_slice(&payload).unwrap_or(Value::Null),
            ));
        }
        (frames, rest.len())
    }
}

/// See the module's head.
#[derive(Clone)]
pub struct RawClient {
    http: reqwest::Client,
    url: String,
    key: String,
}

impl RawClient {
    /// A client of this stand-in.
    #[expect(clippy::disallowed_methods, reason = "loopback only, without proxy")]
    pub fn of(fake: &FakeE2b) -> Self {
        Self {
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            url: fake.url(),
            key: fake.key().to_owned(),
        }
    }

    /// A request to the control plane, with the key.
    pub fn api(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().unwrap();
        let request = self.http.request(method, format!("{}{path}", self.url));
        request.header("x-api-key", &self.key)
    }

    /// A request to a sandbox, with its routing headers and token.
    pub fn to(&self, made: &Made, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().unwrap();
        self.http
            .request(method, format!("{}{path}", self.url))
            .header("e2b-sandbox-id", &made.id)
            .header("e2b-sandbox-port", "49983")
            .header("x-access-token", &made.token)
    }

    /// Creates a sandbox that must be granted.
    pub async fn create(&self, body: Value) -> Made {
        let told = read(self.api("POST", "/v2/sandboxes").json(&body))
            .await
            .unwrap();
        assert_eq!(told.status, 201, "{:?}", told.json());
        let text = |key: &str| told.json()[key].as_str().unwrap().to_owned();
        Made {
            id: text("sandboxID"),
            token: text("envdAccessToken"),
        }
    }

    /// The request that starts `/bin/bash -c script`.
    pub fn bash(&self, made: &Made, script: &str) -> reqwest::RequestBuilder {
        let process = json!({"cmd": "/bin/bash", "args": ["-c", script]});
        self.start(made, &json!({"process": process, "stdin": false}))
    }

    /// The request that starts a process.
    pub fn start(&self, made: &Made, message: &Value) -> reqwest::RequestBuilder {
        self.to(made, "POST", "/process.Process/Start")
            .header("content-type", "application/connect+json")
            .header("connect-protocol-version", "1")
            .body(message_frame(message))
    }

    /// Runs a script to its end; stdout as text.
    pub async fn output(&self, made: &Made, script: &str) -> String {
        use base64::Engine as _;
        let told = read(self.bash(made, script)).await.unwrap();
        let mut out = Vec::new();
        for (_, message) in told.frames().0 {
            if let Some(text) = message["event"]["data"]["stdout"].as_str() {
                let decoded = base64::engine::general_purpose::STANDARD.decode(text);
                out.extend(decoded.unwrap());
            }
        }
        String::from_utf8(out).unwrap()
    }
}

/// Sends a request and reads the answer to its end, whole or broken. `Err` if there was no answer.
///
/// # Errors
/// When the connection ended, or time was over, before an answer began.
pub async fn read(request: reqwest::RequestBuilder) -> Result<Told, String> {
    let answer = tokio::time::timeout(PATIENCE, request.send()).await;
    let response = answer
        .map_err(|_| "no answer in time".to_owned())?
        .map_err(|error| error.to_string())?;
    let mut told = Told {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        bytes: Vec::new(),
        broken: false,
    };
    let mut body = response.bytes_stream();
    let whole = async {
        while let Some(chunk) = body.next().await {
            match chunk {
                Ok(chunk) => told.bytes.extend_from_slice(&chunk),
                Err(_) => told.broken = true,
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, whole).await;
    in_time.map_err(|_| "the body has no end".to_owned())?;
    Ok(told)
}

/// Sends a request from a task of its own, and reads the answer.
#[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
pub fn in_background(
    request: reqwest::RequestBuilder,
) -> tokio::task::JoinHandle<Result<Told, String>> {
    tokio::spawn(read(request))
}
