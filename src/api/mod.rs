//! The HTTP API: parse, call, map errors, stream. No business rule lives here.
//!
//! Every request passes, in this order: the connection cap and head limits ([`listen`]), framing, the
//! browser rules, authentication, and only then a handler that may read a body. Every response gets a
//! request id and the security headers.

mod auth;
mod browser;
mod error;
mod extract;
mod files;
mod framing;
mod guard;
mod health;
pub mod listen;
mod params;
mod query;
mod runs;
mod socket;
pub mod sse;
mod state;
mod view;
mod webhooks;

use axum::Router;
use axum::http::Method;
use axum::routing::{get, post};
use tokio::net::TcpListener;

pub use listen::{Limits, Shutdown};
pub use state::{ApiLimits, ApiState};

/// A route of the API, for documentation and for tests that walk all of them.
#[derive(Clone, Copy, Debug)]
pub struct RouteDef {
    /// The method, in capitals.
    pub method: &'static str,
    /// The path, with `{parameters}`.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
}

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, from any web page too: load balancers poll it.
    Public,
    /// Holders of a key, if the server has one.
    Key,
    /// The handler decides: deliveries are signed.
    Signed,
}

macro_rules! routes {
    ($($method:ident $name:literal $path:literal $access:ident $handler:path;)*) => {
        /// Every route. What is not listed here does not exist.
        pub static ROUTES: &[RouteDef] =
            &[$(RouteDef { method: $name, path: $path, access: Access::$access },)*];

        fn table() -> Router<ApiState> {
            Router::new()$(.route($path, $method($handler)))*
        }
    };
}

routes! {
    get  "GET"  "/health"                   Public health::health;
    get  "GET"  "/health/live"              Public health::live;
    post "POST" "/query"                    Key    query::query;
    get  "GET"  "/runs"                     Key    runs::list;
    get  "GET"  "/runs/{id}"                Key    runs::get;
    get  "GET"  "/runs/{id}/events"         Key    runs::events;
    post "POST" "/runs/{id}/cancel"         Key    runs::cancel;
    get  "GET"  "/runs/{id}/files/{*path}"  Key    files::download;
    post "POST" "/webhooks/e2b"             Signed webhooks::e2b;
}

/// Who may call the route that was matched; a path that matches none needs a key, like most.
fn access(matched: Option<&str>) -> Access {
    let row = matched.and_then(|path| ROUTES.iter().find(|row| row.path == path));
    row.map_or(Access::Key, |row| row.access)
}

/// Whether a path without empty parts is that of a route.
fn known(path: &str) -> bool {
    ROUTES.iter().any(|route| {
        let mut parts = path.split('/');
        let mut wanted = route.path.split('/');
        loop {
            match (wanted.next(), parts.next()) {
                (None, None) => return true,
                (Some(rest), Some(_)) if rest.starts_with("{*") => return true,
                (Some(name), Some(_)) if name.starts_with('{') => {}
                (Some(name), Some(part)) if name == part => {}
                _ => return false,
            }
        }
    })
}

/// The whole API over `state`.
pub fn router(state: ApiState) -> Router {
    guarded(table(), state)
}

/// `routes` behind everything that holds for each request and response. Tests use it with routes of
/// their own.
pub fn guarded(routes: Router<ApiState>, state: ApiState) -> Router {
    routes
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(
            error::panicked,
        ))
        .layer(axum::middleware::from_fn_with_state(
            state.clone(),
            guard::guard,
        ))
        .with_state(state)
}

/// Serves the API on `listener` until `shutdown` begins and its responses have ended, or are cut.
pub async fn serve(listener: TcpListener, state: ApiState, shutdown: Shutdown) {
    listen::serve(listener, router(state), Limits::default(), shutdown).await;
}

/// The methods that web pages of allowed origins may use.
const CORS_METHODS: [Method; 2] = [Method::GET, Method::POST];
