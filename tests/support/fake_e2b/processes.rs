//! `process.Process`: the calls that start, watch, feed, signal and list processes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Response};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use futures::StreamExt as _;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connect::{self, ConnectError, FrameSink, Part, message_frame};
use super::edge::User;
use super::faults::StreamFault;
use super::machine::{self, Launch};
use super::process::{Order, Process, Size, Told};
use super::sandboxes::SandboxBox;

/// `Keepalive-Ping-Interval` when the client names none.
const KEEPALIVE: Duration = Duration::from_secs(90);

/// Starts a process and streams it.
pub(super) async fn start(
    sandbox: &Arc<SandboxBox>,
    headers: &HeaderMap,
    body: &[u8],
    user: Result<User, ConnectError>,
    fault: Option<StreamFault>,
) -> Result<Response<Body>, ConnectError> {
    let request = connect::only_message(headers, body)?;
    let timeout = connect::timeout_ms(headers)?.map(Duration::from_millis);
    let order = order(sandbox, &user?, &request, timeout)?;
    let (process, told) = Process::start(sandbox, order).await?;
    Ok(stream(sandbox, process, told, headers, None, fault))
}

/// Streams a process that runs already, from now on.
pub(super) fn attach(
    sandbox: &Arc<SandboxBox>,
    headers: &HeaderMap,
    body: &[u8],
    fault: Option<StreamFault>,
) -> Result<Response<Body>, ConnectError> {
    let request = connect::only_message(headers, body)?;
    let limit = connect::timeout_ms(headers)?.map(Duration::from_millis);
    let process = find(sandbox, &request, false)?;
    let told = process.listen();
    Ok(stream(sandbox, process, told, headers, limit, fault))
}

fn stream(
    sandbox: &Arc<SandboxBox>,
    process: Arc<Process>,
    told: mpsc::Receiver<Told>,
    headers: &HeaderMap,
    limit: Option<Duration>,
    fault: Option<StreamFault>,
) -> Response<Body> {
    let interval = headers
        .get("keepalive-ping-interval")
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map_or(KEEPALIVE, Duration::from_secs);
    let (sink, body) = connect::channel(fault, sandbox.cut.clone());
    let sandbox = sandbox.clone();
    tokio::spawn(async move {
        feed(&sandbox, &process, told, sink, interval, limit).await;
    });
    connect::stream_response(body)
}

/// Tells one reader all about a process, until the end of either or of the sandbox.
async fn feed(
    sandbox: &SandboxBox,
    process: &Process,
    mut told: mpsc::Receiver<Told>,
    mut sink: FrameSink,
    interval: Duration,
    limit: Option<Duration>,
) {
    let start = message_frame(&json!({"event": {"start": {"pid": process.pid}}}));
    if sink.send(Part::Start, start).await.is_err() {
        return;
    }
    let until = limit.map(|limit| Instant::now() + limit);
    let late = ConnectError::new("deadline_exceeded", "context deadline exceeded");
    let pausing = sandbox.pausing();
    let mut ping_at = Instant::now() + interval;
    loop {
        // The death of the sandbox first, then of the process: what they had to say is lost, as at E2B.
        let sent = tokio::select! {
            biased;
            () = sink.reader_left() => return,
            () = sandbox.dead.cancelled() => {
                if sandbox.cut.is_cancelled() {
                    return sink.reset();
                }
                let gone = format!(
                    "the connection to sandbox {} ended before the stream completed", sandbox.id
                );
                return sink.finish(Some(&ConnectError::new("unavailable", gone))).await;
            }
            () = pausing.cancelled() => {
                return sink.finish(Some(&ConnectError::new("canceled", "context canceled"))).await;
            }
            () = process.timed_out.cancelled() => return sink.finish(Some(&late)).await,
            () = tokio::time::sleep_until(until.unwrap_or(ping_at)), if until.is_some() => {
                return sink.finish(Some(&late)).await;
            }
            next = told.recv() => match next {
                Some(Told::Data(frame)) => {
                    ping_at = Instant::now() + interval;
                    sink.send(Part::Data, frame).await
                }
                Some(Told::Exit(end)) => {
                    let event = message_frame(&json!({"event": {"end": end}}));
                    if sink.send(Part::Exit, event).await.is_ok() {
                        sink.finish(None).await;
                    }
                    return;
                }
                None => return sink.finish(None).await,
            },
            () = tokio::time::sleep_until(ping_at) => {
                ping_at = Instant::now() + interval;
                let event = message_frame(&json!({"event": {"keepalive": {}}}));
                sink.send(Part::Keepalive, event).await
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

fn text(value: &Value, what: &str) -> Result<String, ConnectError> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        _ => Err(malformed(what)),
    }
}

fn malformed(what: &str) -> ConnectError {
    ConnectError::refusal(
        "invalid_argument",
        format!("unmarshal message: bad field {what}"),
    )
}

fn order(
    sandbox: &SandboxBox,
    user: &User,
    request: &Value,
    timeout: Option<Duration>,
) -> Result<Order, ConnectError> {
    let config = &request["process"];
    let cmd = text(&config["cmd"], "cmd")?;
    if cmd.is_empty() {
        return Err(ConnectError::refusal(
            "invalid_argument",
            "error starting process: exec: no command",
        ));
    }
    let args = match &config["args"] {
        Value::Null => Vec::new(),
        Value::Array(args) => args
            .iter()
            .map(|a| text(a, "args"))
            .collect::<Result<_, _>>()?,
        _ => return Err(malformed("args")),
    };
    let mut envs: Vec<(String, String)> = vec![
        ("PATH".to_owned(), machine::PATH.to_owned()),
        ("HOME".to_owned(), user.home().to_owned()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
        ("E2B_TEMPLATE_ID".to_owned(), sandbox.wish.template.clone()),
        ("E2B_SANDBOX".to_owned(), "true".to_owned()),
    ];
    envs.extend(sandbox.wish.envs.clone());
    match &config["envs"] {
        Value::Null => {}
        Value::Object(map) => {
            for (name, value) in map {
                envs.push((name.clone(), text(value, "envs")?));
            }
        }
        _ => return Err(malformed("envs")),
    }
    // Last, so that nothing in it can hide a process from the sweep.
    envs.push(("E2B_SANDBOX_ID".to_owned(), sandbox.id.clone()));
    let asked = text(&config["cwd"], "cwd")?;
    let cwd = machine::inside(&asked, user.home())
        .map_err(|error| ConnectError::new("invalid_argument", error))?;
    if !sandbox.machine.host(&cwd).is_dir() {
        let why = format!("cwd '{cwd}' does not exist");
        return Err(ConnectError::new("invalid_argument", why));
    }
    if !sandbox.machine.can_start(&cmd) {
        let why = format!("error starting process '{cmd}': executable file not found");
        return Err(ConnectError::new("invalid_argument", why));
    }
    let terminal = match &request["pty"] {
        Value::Null => None,
        pty => Some(size(pty)?),
    };
    let stdin = match &request["stdin"] {
        Value::Null => true,
        Value::Bool(stdin) => *stdin,
        _ => return Err(malformed("stdin")),
    };
    let tag = match &request["tag"] {
        Value::Null => None,
        tag => Some(text(tag, "tag")?),
    };
    Ok(Order {
        launch: Launch {
            cmd,
            args,
            envs,
            cwd,
            terminal: terminal.is_some(),
        },
        tag,
        config: config.clone(),
        stdin,
        terminal,
        timeout,
    })
}

fn size(pty: &Value) -> Result<Size, ConnectError> {
    let side = |name: &str| {
        let number = pty["size"][name].as_u64();
        number
            .and_then(|n| u16::try_from(n).ok())
            .filter(|n| *n > 0)
            .ok_or_else(|| malformed("pty.size"))
    };
    Ok(Size {
        cols: side("cols")?,
        rows: side("rows")?,
    })
}

/// The process that a request selects.
fn find(sandbox: &SandboxBox, request: &Value, alive: bool) -> Result<Arc<Process>, ConnectError> {
    let selector = &request["process"];
    let processes = sandbox.processes.lock();
    let wanted = |process: &&Arc<Process>| !alive || process.lives();
    if let Some(pid) = selector["pid"].as_u64() {
        let found = u32::try_from(pid).ok().and_then(|pid| processes.get(&pid));
        return found.filter(wanted).cloned().ok_or_else(|| {
            ConnectError::new("not_found", format!("process with pid {pid} not found"))
        });
    }
    let Some(tag) = selector["tag"].as_str() else {
        return Err(ConnectError::refusal(
            "invalid_argument",
            "process selector is required",
        ));
    };
    let found = processes.values().find(|p| p.tag.as_deref() == Some(tag));
    found
        .filter(wanted)
        .cloned()
        .ok_or_else(|| ConnectError::new("not_found", format!("process with tag {tag} not found")))
}

/// `List`.
pub(super) fn list(sandbox: &SandboxBox) -> Value {
    let processes = sandbox.processes.lock();
    let live = processes.values().filter(|process| process.lives());
    let entries: Vec<Value> = live
        .map(|process| {
            let mut entry = json!({"config": process.config, "pid": process.pid});
            if let Some(tag) = &process.tag {
                entry["tag"] = json!(tag);
            }
            entry
        })
        .collect();
    if entries.is_empty() {
        json!({})
    } else {
        json!({"processes": entries})
    }
}

async fn feed_input(process: &Process, input: &Value) -> Result<(), ConnectError> {
    let lenient = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    for (key, terminal) in [("stdin", false), ("pty", true)] {
        if let Some(text) = input[key].as_str() {
            let text = text.replace('-', "+").replace('_', "/");
            let bytes = lenient.decode(text).map_err(|_| malformed("input"))?;
            return process.write(terminal, &bytes).await;
        }
    }
    Err(malformed("input"))
}

/// `SendInput`.
pub(super) async fn send_input(
    sandbox: &SandboxBox,
    request: &Value,
) -> Result<Value, ConnectError> {
    let process = find(sandbox, request, true)?;
    feed_input(&process, &request["input"]).await?;
    Ok(json!({}))
}

/// `CloseStdin`.
pub(super) async fn close_stdin(
    sandbox: &SandboxBox,
    request: &Value,
) -> Result<Value, ConnectError> {
    find(sandbox, request, true)?.close_input().await?;
    Ok(json!({}))
}

/// `SendSignal`: to the process alone, not to its children.
pub(super) fn send_signal(sandbox: &SandboxBox, request: &Value) -> Result<Value, ConnectError> {
    let signal = match (&request["signal"], request["signal"].as_u64()) {
        (Value::String(name), _) if name == "SIGNAL_SIGKILL" => Signal::SIGKILL,
        (Value::String(name), _) if name == "SIGNAL_SIGTERM" => Signal::SIGTERM,
        (_, Some(9)) => Signal::SIGKILL,
        (_, Some(15)) => Signal::SIGTERM,
        (other, _) => {
            let why = format!("invalid signal: {other}");
            return Err(ConnectError::refusal("unimplemented", why));
        }
    };
    let process = find(sandbox, request, true)?;
    if process.signal(signal) {
        Ok(json!({}))
    } else {
        let why = format!("process with pid {} not found", process.pid);
        Err(ConnectError::new("not_found", why))
    }
}

/// `Update`.
pub(super) fn update(sandbox: &SandboxBox, request: &Value) -> Result<Value, ConnectError> {
    let process = find(sandbox, request, true)?;
    process.resize(size(&request["pty"])?)?;
    Ok(json!({}))
}

/// `StreamInput`: envelopes as they come, answered once the client has sent its last.
pub(super) async fn stream_input(
    sandbox: &SandboxBox,
    body: Body,
) -> Result<Response<Body>, ConnectError> {
    let mut body = body.into_data_stream();
    let mut buffer = Vec::new();
    let mut process = None;
    while let Some(chunk) = body.next().await {
        let cut = |_| ConnectError::new("canceled", "the client went away");
        buffer.extend_from_slice(&chunk.map_err(cut)?);
        while let Some((_, payload)) = connect::take_frame(&mut buffer)? {
            let message = connect::parse(&payload)?;
            if let Some(start) = message.get("start") {
                process = Some(find(sandbox, start, true)?);
            } else if let Some(data) = message.get("data") {
                let Some(process) = &process else {
                    let why = "data before start";
                    return Err(ConnectError::refusal("invalid_argument", why));
                };
                feed_input(process, &data["input"]).await?;
            }
        }
    }
    let answer: Vec<u8> = [message_frame(&json!({})), connect::end_frame(&json!({}))].concat();
    Ok(connect::stream_response(Body::from(Bytes::from(answer))))
}
