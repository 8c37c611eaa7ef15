//! The only builder of HTTP clients.

use std::time::Duration;

/// A client for LLM providers and sandbox backends: HTTP/1.1, no redirects, no total timeout (streams
/// have their own deadlines).
pub type HttpClient = reqwest::Client;

/// Builds the client.
///
/// # Errors
/// When the TLS roots can't be read.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the seam for HTTP clients"
)]
pub fn build() -> Result<HttpClient, reqwest::Error> {
    reqwest::Client::builder()
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10))
        .pool_idle_timeout(Duration::from_secs(90))
        .tcp_keepalive(Duration::from_secs(30))
        .user_agent(concat!("sandcaster/", env!("CARGO_PKG_VERSION")))
        .build()
}
