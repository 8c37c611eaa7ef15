//! Which call a request is: the control plane by its path, the rest by what envd serves.

use axum::http::Method;
use axum::http::request::Parts;

/// A call of E2B's API or of envd: what faults, counts and the journal name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `POST /v2/sandboxes`, `POST /sandboxes`.
    Create,
    /// `GET /v2/sandboxes`, `GET /sandboxes`.
    List,
    /// `GET /sandboxes/{id}`.
    Get,
    /// `DELETE /sandboxes/{id}`.
    Delete,
    /// `POST /sandboxes/{id}/timeout`.
    Timeout,
    /// `POST /sandboxes/{id}/refreshes`.
    Refreshes,
    /// `POST [/v2]/sandboxes/{id}/connect`: the control plane's, which never shortens a life.
    Reconnect,
    /// `POST /sandboxes/{id}/resume`.
    Resume,
    /// `POST /sandboxes/{id}/pause`.
    Pause,
    /// `POST /sandboxes/{id}/snapshots`.
    Snapshot,
    /// `GET /snapshots`.
    Snapshots,
    /// `DELETE /templates/{id}`.
    DeleteTemplate,
    /// `PUT /sandboxes/{id}/network`.
    Network,
    /// `GET /sandboxes/{id}/metrics`.
    Metrics,
    /// `GET /v2/sandboxes/{id}/logs`.
    Logs,
    /// `GET /health` of the API.
    ApiHealth,
    /// `/events/webhooks` and below.
    Webhooks,
    /// `GET /events/sandboxes` and below.
    Events,
    /// `process.Process/Start`.
    Start,
    /// `process.Process/Connect`.
    Connect,
    /// `process.Process/List`.
    ProcessList,
    /// `process.Process/SendInput`.
    SendInput,
    /// `process.Process/StreamInput`.
    StreamInput,
    /// `process.Process/CloseStdin`.
    CloseStdin,
    /// `process.Process/SendSignal`.
    SendSignal,
    /// `process.Process/Update`.
    Update,
    /// `filesystem.Filesystem/Stat`.
    Stat,
    /// `filesystem.Filesystem/ListDir`.
    ListDir,
    /// `filesystem.Filesystem/MakeDir`.
    MakeDir,
    /// `filesystem.Filesystem/Move`.
    Move,
    /// `filesystem.Filesystem/Remove`.
    Remove,
    /// The filesystem service's watchers, which the stand-in does not play.
    Watch,
    /// `GET /files`.
    Download,
    /// `POST /files`.
    Upload,
    /// `GET /health` of envd.
    EnvdHealth,
    /// `GET /metrics` of envd.
    EnvdMetrics,
    /// `GET /envs` of envd.
    Envs,
    /// Anything else.
    Unknown,
}

impl Route {
    /// Whether the control plane answers it.
    pub fn is_control(self) -> bool {
        matches!(
            self,
            Self::Create
                | Self::List
                | Self::Get
                | Self::Delete
                | Self::Timeout
                | Self::Refreshes
                | Self::Reconnect
                | Self::Resume
                | Self::Pause
                | Self::Snapshot
                | Self::Snapshots
                | Self::DeleteTemplate
                | Self::Network
                | Self::Metrics
                | Self::Logs
                | Self::ApiHealth
                | Self::Webhooks
                | Self::Events
        )
    }

    /// Whether its answer is a stream of envelopes.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Start | Self::Connect | Self::StreamInput)
    }

    /// Whether its request body is read as it comes.
    pub(super) fn streams_in(self) -> bool {
        matches!(self, Self::Upload | Self::StreamInput)
    }
}

/// What a request is aimed at.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub route: Route,
    /// The id in a control-plane path, as sent.
    pub id: String,
    /// Whether the path began with `/v2`.
    pub v2: bool,
}

/// Finds the call that a request makes.
pub(super) fn target(parts: &Parts) -> Target {
    let path = parts.uri.path();
    let (v2, below) = path
        .strip_prefix("/v2/")
        .map_or((false, path), |rest| (true, rest));
    let segments: Vec<&str> = below.trim_start_matches('/').split('/').collect();
    let get = parts.method == Method::GET;
    let post = parts.method == Method::POST;
    let put = parts.method == Method::PUT;
    let delete = parts.method == Method::DELETE;
    let to_sandbox = parts.headers.contains_key("e2b-sandbox-id");
    // Few paths exist under both prefixes; the others are unknown there.
    let (route, id) = match segments.as_slice() {
        ["sandboxes", _, rest] if v2 && !matches!(*rest, "connect" | "logs") => {
            (Route::Unknown, "")
        }
        [first, ..] if v2 && *first != "sandboxes" => (Route::Unknown, ""),
        ["sandboxes", _] if v2 => (Route::Unknown, ""),
        ["sandboxes"] if post => (Route::Create, ""),
        ["sandboxes"] if get => (Route::List, ""),
        ["sandboxes", id] if get => (Route::Get, *id),
        ["sandboxes", id] if delete => (Route::Delete, *id),
        ["sandboxes", id, "timeout"] if post => (Route::Timeout, *id),
        ["sandboxes", id, "refreshes"] if post => (Route::Refreshes, *id),
        ["sandboxes", id, "connect"] if post => (Route::Reconnect, *id),
        ["sandboxes", id, "resume"] if post => (Route::Resume, *id),
        ["sandboxes", id, "pause"] if post => (Route::Pause, *id),
        ["sandboxes", id, "snapshots"] if post => (Route::Snapshot, *id),
        ["sandboxes", id, "network"] if put => (Route::Network, *id),
        ["sandboxes", id, "metrics"] if get => (Route::Metrics, *id),
        ["sandboxes", id, "logs"] if get => (Route::Logs, *id),
        ["snapshots"] if get => (Route::Snapshots, ""),
        ["templates", id] if delete => (Route::DeleteTemplate, *id),
        ["events", "webhooks"] => (Route::Webhooks, ""),
        ["events", "webhooks", id] => (Route::Webhooks, *id),
        ["events", "sandboxes"] if get => (Route::Events, ""),
        ["events", "sandboxes", id] if get => (Route::Events, *id),
        ["health"] if get && !to_sandbox => (Route::ApiHealth, ""),
        ["health"] if get => (Route::EnvdHealth, ""),
        ["metrics"] if get => (Route::EnvdMetrics, ""),
        ["envs"] if get => (Route::Envs, ""),
        ["files"] if get => (Route::Download, ""),
        ["files"] if post => (Route::Upload, ""),
        ["process.Process", method] if post => (process(method), ""),
        ["filesystem.Filesystem", method] if post => (filesystem(method), ""),
        _ => (Route::Unknown, ""),
    };
    Target {
        route,
        id: id.to_owned(),
        v2,
    }
}

fn process(method: &str) -> Route {
    match method {
        "Start" => Route::Start,
        "Connect" => Route::Connect,
        "List" => Route::ProcessList,
        "SendInput" => Route::SendInput,
        "StreamInput" => Route::StreamInput,
        "CloseStdin" => Route::CloseStdin,
        "SendSignal" => Route::SendSignal,
        "Update" => Route::Update,
        _ => Route::Unknown,
    }
}

fn filesystem(method: &str) -> Route {
    match method {
        "Stat" => Route::Stat,
        "ListDir" => Route::ListDir,
        "MakeDir" => Route::MakeDir,
        "Move" => Route::Move,
        "Remove" => Route::Remove,
        "WatchDir" | "CreateWatcher" | "GetWatcherEvents" | "RemoveWatcher" => Route::Watch,
        _ => Route::Unknown,
    }
}
