//! The only builder of HTTP clients.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use reqwest::{NoProxy, Proxy, Url};
use tokio::time::timeout_at;

use crate::clock::Deadline;
use crate::secrets::Redactor;

/// A client for LLM providers and sandbox backends: HTTP/1.1, no redirects, no total timeout (streams
/// have their own deadlines).
pub type HttpClient = reqwest::Client;

/// Why there is no client: every cause, the outermost first. None of them says where certificates were looked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; certificates are those of SSL_CERT_FILE and SSL_CERT_DIR where these are set, else the system's"
)]
pub struct NoClient(String);

/// Builds the client, without a proxy.
///
/// # Errors
/// When the TLS roots can't be read.
pub fn build() -> Result<HttpClient, NoClient> {
    build_with(Proxies::default())
}

/// Builds the client. Other proxies than these are not used.
///
/// # Errors
/// When the TLS roots can't be read.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the seam for HTTP clients"
)]
pub fn build_with(proxies: Proxies) -> Result<HttpClient, NoClient> {
    let builder = reqwest::Client::builder()
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10))
        .pool_idle_timeout(Duration::from_secs(90))
        .tcp_keepalive(Duration::from_secs(30))
        .user_agent(concat!("sandcaster/", env!("CARGO_PKG_VERSION")));
    let proxies = proxies.0.into_iter();
    let built = proxies.fold(builder, reqwest::ClientBuilder::proxy).build();
    built.map_err(|error| NoClient(causes(&error)))
}

fn causes(error: &(dyn Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |&error| error.source());
    let texts: Vec<String> = chain.map(ToString::to_string).collect();
    texts.join(": ")
}

/// Whether a request that failed with `error` never left: there was no connection, or it was lost before the
/// request's first byte. All others may have been received, and done.
pub fn never_sent(error: &reqwest::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    let unused = |cause: &(dyn Error + 'static)| {
        cause
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_canceled)
    };
    error.is_connect() || error.is_builder() || causes.any(unused)
}

/// The first `most` bytes of a refusal's body, as text. What doesn't come until the deadline is left out, and so is
/// an end that may be half of a secret.
pub async fn refusal(
    mut response: reqwest::Response,
    most: usize,
    until: Deadline,
    redactor: &Redactor,
) -> String {
    let mut held = Vec::new();
    while held.len() <= most {
        match timeout_at(until.instant(), response.chunk()).await {
            Ok(Ok(Some(chunk))) => held.extend_from_slice(&chunk),
            Ok(Ok(None)) => return String::from_utf8_lossy(&held).into_owned(),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    held.truncate(most);
    redactor.clean_cut(&String::from_utf8_lossy(&held))
}

/// The proxies that the environment names. May hold a password, so `Debug` shows nothing.
#[derive(Clone, Default)]
pub struct Proxies(Vec<Proxy>);

/// This machine's addresses: a gateway here is asked directly, and what plain http may carry to it (a key) never
/// leaves the machine.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

impl Proxies {
    /// Those of `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in capitals or not, as most programs
    /// read them; never for loopback addresses.
    ///
    /// # Errors
    /// The variable that names no proxy, or one that speaks something else than HTTP.
    pub fn from_env<'e>(get: impl Fn(&str) -> Option<&'e str>) -> Result<Self, &'static str> {
        let first = |names: [&'static str; 2]| {
            names
                .into_iter()
                .find_map(|name| Some((name, get(name).filter(|value| !value.trim().is_empty())?)))
        };
        let (_, direct) = first(["NO_PROXY", "no_proxy"]).unwrap_or_default();
        let direct = NoProxy::from_string(&format!("{LOOPBACK},{direct}"));
        // Under CGI a client sets HTTP_PROXY, by its header `Proxy`.
        let http = get("REQUEST_METHOD").map_or("HTTP_PROXY", |_| "http_proxy");
        let mut proxies = Vec::new();
        for (names, make) in [
            (
                [http, "http_proxy"],
                Proxy::http::<&'e str> as fn(&'e str) -> _,
            ),
            (["HTTPS_PROXY", "https_proxy"], Proxy::https::<&'e str>),
            (["ALL_PROXY", "all_proxy"], Proxy::all::<&'e str>),
        ] {
            if let Some((name, url)) = first(names) {
                let url = url.trim();
                if !speaks_http(url) {
                    return Err(name);
                }
                let proxy = make(url).map_err(|_| name)?;
                proxies.push(proxy.no_proxy(direct.clone()));
            }
        }
        Ok(Self(proxies))
    }
}

/// Whether a proxy's URL has a scheme that works here, or none: then it is `http`. Others would be taken, and
/// fail each request.
fn speaks_http(url: &str) -> bool {
    match Url::parse(url) {
        Ok(url) if url.has_host() => matches!(url.scheme(), "http" | "https"),
        // `host:3128` looks like a scheme and has no host.
        Ok(_) | Err(_) => true,
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxies({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// A proxy that answers every request with 204, and its address.
    fn proxy() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut socket in listener.incoming().flatten() {
                let mut head = [0; 4096];
                drop(socket.read(&mut head));
                drop(socket.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"));
            }
        });
        format!("http://user:hunter2@{address}")
    }

    async fn through(variables: &[(&str, &str)], url: &str) -> bool {
        let found = |name: &str| variables.iter().find(|(known, _)| *known == name);
        let proxies = Proxies::from_env(|name| found(name).map(|(_, value)| *value)).unwrap();
        assert!(!format!("{proxies:?}").contains("hunter2"));
        let client = build_with(proxies).unwrap();
        let answer = client
            .get(url)
            .timeout(Duration::from_secs(10))
            .send()
            .await;
        answer.is_ok_and(|answer| answer.status() == 204)
    }

    #[tokio::test]
    async fn a_proxy_gets_what_leaves_the_machine_and_nothing_else() {
        let proxy = proxy();
        let far = "http://gateway.invalid/v1";
        for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            assert!(through(&[(name, &proxy)], far).await, "{name}");
            // Port 9 answers nobody.
            for near in [
                "http://127.0.0.1:9/",
                "http://127.8.8.8:9/",
                "http://localhost:9/",
                "http://[::1]:9/",
            ] {
                assert!(!through(&[(name, &proxy)], near).await, "{name} {near}");
                let listed = [(name, proxy.as_str()), ("NO_PROXY", "example.com")];
                assert!(!through(&listed, near).await, "{name} {near}");
            }
        }
        assert!(!through(&[("HTTPS_PROXY", &proxy)], far).await);
        assert!(
            !through(
                &[("HTTP_PROXY", &proxy), ("NO_PROXY", "gateway.invalid")],
                far
            )
            .await
        );
        assert!(!through(&[("HTTP_PROXY", &proxy), ("no_proxy", "*")], far).await);
        assert!(!through(&[("HTTP_PROXY", &proxy), ("REQUEST_METHOD", "GET")], far).await);
        assert!(!through(&[("HTTP_PROXY", "")], far).await);
    }

    #[tokio::test]
    async fn a_refusal_that_is_cut_shows_no_half_of_a_key() {
        const KEY: &str = "sk-0123456789abcdef";
        let redactor = Redactor::new([&crate::secrets::Secret::new(KEY)]);
        for (body, most, whole) in [
            (format!("bad {KEY}"), 10, "bad "),
            // What stands at a cut may be the beginning of one.
            (format!("bad {KEY}"), 3, ""),
            ("not bad".to_owned(), 7, "not bad"),
            // Whole, so whoever reads it cleans it.
            (format!("bad {KEY}"), 100, "bad sk-0123456789abcdef"),
            // Broken off: a half is a half whoever cut it.
            (format!("bad {}", &KEY[..9]), 100, "bad "),
        ] {
            let claimed = body.len() + usize::from(whole == "bad ");
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let serving = std::thread::spawn(move || {
                let (mut socket, _) = listener.accept().unwrap();
                drop(socket.read(&mut [0; 4096]));
                let head = format!("HTTP/1.1 401 No\r\ncontent-length: {claimed}\r\n\r\n");
                socket.write_all((head + &body).as_bytes()).unwrap();
            });
            let response = build().unwrap().get(url).send().await.unwrap();
            let until = Deadline::after(Duration::from_secs(30));
            assert_eq!(refusal(response, most, until, &redactor).await, whole);
            serving.join().unwrap();
        }
    }

    #[test]
    fn what_names_no_proxy_is_told_by_its_variable() {
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "all_proxy"] {
            let outcome = |url: &'static str| {
                let proxies = Proxies::from_env(|name| (name == variable).then_some(url));
                proxies.map(|proxies| proxies.0.len())
            };
            for url in [
                "http://a b",
                "socks5://127.0.0.1:1080",
                "socks5h://127.0.0.1:1080",
                "SOCKS4://127.0.0.1:1080",
                "ftp://127.0.0.1:21",
                "htp://127.0.0.1:3128",
                "://127.0.0.1:3128",
            ] {
                assert_eq!(outcome(url), Err(variable), "{url}");
            }
            for url in [
                "http://127.0.0.1:3128",
                " HTTPS://user:hunter2@127.0.0.1:3128/ ",
                "127.0.0.1:3128",
                "proxy.example:3128",
                "proxy.example",
            ] {
                assert_eq!(outcome(url), Ok(1), "{url}");
            }
        }
    }
}
