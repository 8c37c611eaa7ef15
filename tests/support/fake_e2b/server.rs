//! The port: connections, faults before and after acting, and the way to each handler.

use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Request, Response};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::connect::{self, ConnectError};
use super::edge::{self, Answer};
use super::faults::{Deed, Plan, StreamFault};
use super::journal::Seen;
use super::routes::{self, Route, Target};
use super::sandboxes::SandboxBox;
use super::{Inner, control, controls, filesystem, processes, transfer};

/// Largest body of a call that is read whole.
const LARGEST: usize = 16 << 20;

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the stand-in closes this connection")]
struct Hangup;

/// Accepts until the stand-in is dropped.
pub(super) async fn serve(inner: Arc<Inner>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = inner.closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        if let Ok((socket, _)) = accepted {
            tokio::spawn(connection(inner.clone(), socket));
        }
    }
}

async fn connection(inner: Arc<Inner>, socket: TcpStream) {
    // Small frames are to leave at once, as from E2B; without it they'd leave all the same, later.
    socket.set_nodelay(true).ok();
    let service = service_fn(|request| {
        let inner = inner.clone();
        async move {
            // In a task of its own: what a client asked for is done even if it leaves.
            let done = tokio::spawn(handle(inner.clone(), request)).await;
            done.unwrap_or_else(|panic| {
                inner.panics.lock().push(panic.to_string());
                Err(Hangup)
            })
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(socket), service);
    tokio::select! {
        () = inner.closing.cancelled() => {}
        // Broken connections are what half of the tests are about.
        result = served => drop(result),
    }
}

enum Input {
    Whole(Bytes),
    Streamed(Body),
}

async fn handle(inner: Arc<Inner>, request: Request<Incoming>) -> Result<Response<Body>, Hangup> {
    let (parts, body) = request.into_parts();
    let target = routes::target(&parts);
    let body = Body::new(body);
    let (input, kept) = if target.route.streams_in() {
        (Input::Streamed(body), Bytes::new())
    } else {
        let Ok(bytes) = axum::body::to_bytes(body, LARGEST).await else {
            return Err(Hangup);
        };
        (Input::Whole(bytes.clone()), bytes)
    };
    if let Some(answer) = controls::call(&inner, &parts, &kept).await {
        return Ok(*answer.response);
    }
    let seen = Seen::new(&parts, &target, kept);
    inner.journal.note(&seen);
    let plan = inner.faults.plan(&seen);
    if let Some(mut gate) = plan.gate.clone() {
        // A gate that was dropped is open.
        gate.wait_for(|open| *open).await.ok();
    }
    if !plan.delay.is_zero() {
        tokio::time::sleep(plan.delay).await;
    }
    match &plan.deed {
        Deed::Respond(reply) => {
            if let Input::Streamed(body) = input {
                drain(body).await;
            }
            return Ok(reply.response());
        }
        Deed::DropBefore => return Err(Hangup),
        Deed::Hang => return hang(&inner).await,
        _ => {}
    }
    let answer = act(&inner, &parts, &target, &seen, input, plan.stream.clone()).await;
    if let Some(why) = answer.refused {
        inner.journal.refuse(&seen, why);
    }
    conclude(&inner, plan, *answer.response).await
}

async fn conclude(
    inner: &Inner,
    plan: Plan,
    response: Response<Body>,
) -> Result<Response<Body>, Hangup> {
    if !plan.late.is_zero() {
        tokio::time::sleep(plan.late).await;
    }
    match plan.deed {
        Deed::DropAfter => Err(Hangup),
        Deed::HangAfter => hang(inner).await,
        Deed::RespondAfterActing(reply) => Ok(reply.response()),
        _ => Ok(response),
    }
}

async fn hang(inner: &Inner) -> Result<Response<Body>, Hangup> {
    inner.closing.cancelled().await;
    Err(Hangup)
}

async fn drain(body: Body) {
    use futures::StreamExt as _;
    let mut stream = body.into_data_stream();
    while let Some(Ok(_)) = stream.next().await {}
}

async fn act(
    inner: &Arc<Inner>,
    parts: &Parts,
    target: &Target,
    seen: &Seen,
    input: Input,
    fault: Option<StreamFault>,
) -> Answer {
    if target.route.is_control() {
        return control::call(inner, parts, target, seen).await;
    }
    let leaks = parts.headers.iter().any(|(name, value)| {
        name == "x-api-key" || contains(value.as_bytes(), inner.key.as_bytes())
    });
    if leaks {
        inner
            .journal
            .refuse(seen, "the API key was sent to a sandbox".to_owned());
    }
    if edge::looks_like_a_browser(&parts.headers) {
        let why = "the edge answers this User-Agent in HTML";
        inner.journal.refuse(seen, why.to_owned());
    }
    let sandbox = match edge::locate(inner, parts) {
        Ok(sandbox) => sandbox,
        Err(answer) => return answer,
    };
    envd(&sandbox, parts, target.route, input, fault).await
}

/// Whether `hay` contains `needle`.
fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

async fn envd(
    sandbox: &Arc<SandboxBox>,
    parts: &Parts,
    route: Route,
    input: Input,
    fault: Option<StreamFault>,
) -> Answer {
    let path = parts.uri.path();
    if matches!(
        path,
        "/init" | "/freeze" | "/unfreeze" | "/collapse" | "/fsfreeze" | "/fsthaw"
    ) {
        return Answer::refusal(404, "This endpoint is reserved");
    }
    if route == Route::EnvdHealth {
        return Answer::empty(204);
    }
    let files = matches!(route, Route::Download | Route::Upload);
    if let Err(answer) = edge::admit(sandbox, parts, files) {
        return answer;
    }
    let kind = parts.headers.get("content-type");
    let kind = kind.and_then(|v| v.to_str().ok()).unwrap_or_default();
    let rpc = path.starts_with("/process.Process/") || path.starts_with("/filesystem.Filesystem/");
    let wanted = if route.is_stream() {
        connect::STREAM_TYPE
    } else {
        "application/json"
    };
    if rpc && route != Route::Watch && kind.split(';').next() != Some(wanted) {
        return Answer::refusal_text(
            415,
            &format!("content type '{kind}' where {wanted} is needed"),
        );
    }
    let whole = match (&input, route) {
        (Input::Whole(bytes), _) => bytes.clone(),
        (Input::Streamed(_), _) => Bytes::new(),
    };
    let unary = || connect::parse(&whole);
    match (route, input) {
        (Route::Start, _) => {
            let user = edge::user(&parts.headers);
            Answer::stream(processes::start(sandbox, &parts.headers, &whole, user, fault).await)
        }
        (Route::Connect, _) => {
            Answer::stream(processes::attach(sandbox, &parts.headers, &whole, fault))
        }
        (Route::StreamInput, Input::Streamed(body)) => {
            Answer::stream(processes::stream_input(sandbox, body).await)
        }
        (Route::ProcessList, _) => Answer::unary(unary().map(|_| processes::list(sandbox))),
        (Route::SendInput, _) => Answer::unary(match unary() {
            Ok(request) => processes::send_input(sandbox, &request).await,
            Err(error) => Err(error),
        }),
        (Route::CloseStdin, _) => Answer::unary(match unary() {
            Ok(request) => processes::close_stdin(sandbox, &request).await,
            Err(error) => Err(error),
        }),
        (Route::SendSignal, _) => {
            Answer::unary(unary().and_then(|r| processes::send_signal(sandbox, &r)))
        }
        (Route::Update, _) => Answer::unary(unary().and_then(|r| processes::update(sandbox, &r))),
        (Route::Watch, _) => Answer::unary(Err(ConnectError::refusal(
            "unimplemented",
            "the stand-in plays no watchers",
        ))),
        (Route::Stat | Route::ListDir | Route::MakeDir | Route::Move | Route::Remove, _) => {
            Answer::unary(unary().and_then(|request| {
                let user = edge::user(&parts.headers)?;
                filesystem::call(sandbox, &user, route, &request)
            }))
        }
        (Route::Download, _) => transfer::download(sandbox, parts).await,
        (Route::Upload, Input::Streamed(body)) => transfer::upload(sandbox, parts, body).await,
        (Route::Envs, _) => Answer::json(200, &serde_json::json!(sandbox.wish.envs)),
        (Route::EnvdMetrics, _) => Answer::json(
            200,
            &serde_json::json!({
                "ts": sandcaster::clock::Clock::system().now().as_second(),
                "cpu_count": 2, "cpu_used_pct": 1.5, "mem_total": 536_870_912_u64,
                "mem_used": 67_108_864_u64, "mem_cache": 1_048_576_u64, "mem_total_mib": 512,
                "mem_used_mib": 64, "disk_used": 134_217_728_u64, "disk_total": 1_073_741_824_u64,
            }),
        ),
        _ => Answer::refusal(404, &format!("no such path: {} {path}", parts.method)),
    }
}
