//! Every route, on one screen.

use axum::Router;
use axum::extract::Request;
use axum::routing::{delete, get, post};
use tokio::net::TcpListener;

use super::access::{Access, RouteDef};
use super::error::SHOWN_PATH;
use super::limits::Limits;
use super::listen::{self, Shutdown};
use super::state::ApiState;
use super::{error, files, guard, health, query, runs, webhooks};
use crate::error::{ErrorCode, Problem};
use crate::show::short;

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
    get    "GET"    "/health"                   Public health::health;
    get    "GET"    "/health/live"              Public health::live;
    post   "POST"   "/query"                    Key    query::query;
    get    "GET"    "/runs"                     Key    runs::list;
    get    "GET"    "/runs/{id}"                Key    runs::get;
    delete "DELETE" "/runs/{id}"                Key    runs::delete;
    get    "GET"    "/runs/{id}/events"         Key    runs::events;
    post   "POST"   "/runs/{id}/cancel"         Key    runs::cancel;
    get    "GET"    "/runs/{id}/files/{*path}"  Key    files::download;
    post   "POST"   "/webhooks/e2b"             Signed webhooks::e2b;
}

/// Who may call the route that was matched; a path that matches none needs a key, like most.
fn access(matched: Option<&str>) -> Access {
    let row = matched.and_then(|path| ROUTES.iter().find(|row| row.path == path));
    row.map_or(Access::Key, |row| row.access)
}

/// Whether a route's path has these `parts`.
fn fits(route: &str, parts: &[&str]) -> bool {
    let mut parts = parts.iter();
    let mut wanted = route.split('/').skip(1);
    loop {
        match (wanted.next(), parts.next()) {
            (None, None) => return true,
            (Some(rest), Some(_)) if rest.starts_with("{*") => return true,
            (Some(name), Some(_)) if name.starts_with('{') => {}
            (Some(name), Some(part)) if name == *part => {}
            _ => return false,
        }
    }
}

/// The route's path whose id `path` leaves empty, as an unset variable of a script does.
fn without_id(path: &str) -> Option<&'static str> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    parts.dedup_by(|a, b| a.is_empty() && b.is_empty());
    ROUTES.iter().map(|route| route.path).find(|route| {
        let mut pairs = route.split('/').skip(1).zip(&parts);
        fits(route, &parts)
            && pairs.any(|(name, part)| {
                part.is_empty() && name.starts_with('{') && !name.starts_with("{*")
            })
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
        .fallback(not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(
            error::panicked,
        ))
        .layer(axum::middleware::from_fn_with_state(
            (state.clone(), access as guard::AccessOf),
            guard::guard,
        ))
        .with_state(state)
}

/// Serves the API on `listener` until `shutdown` begins and its responses have ended, or are cut.
pub async fn serve(listener: TcpListener, state: ApiState, limits: Limits, shutdown: Shutdown) {
    listen::serve(listener, router(state), limits, shutdown).await;
}

/// No such path.
async fn not_found(request: Request) -> Problem {
    let path = request.uri().path();
    let shown = short(path, SHOWN_PATH);
    let problem = Problem::new(
        ErrorCode::NotFound,
        format!("there is nothing at {} {shown}", request.method()),
    );
    if let Some(route) = without_id(path) {
        return problem.hint(format!("the run's id is missing: the path is {route}"));
    }
    // A base URL that ends in a slash makes doubled ones, and some clients add one at the end.
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let meant = format!("/{}", parts.join("/"));
    let known = || ROUTES.iter().any(|route| fits(route.path, &parts));
    if meant != path && meant.len() <= SHOWN_PATH && known() {
        return problem.hint(format!("did you mean {meant}?"));
    }
    problem.hint("the API is described in the README: POST /query starts a run")
}
