//! The rules that keep web pages away (HT-4): loopback is no protection, browsers reach it.
//!
//! A page of another site shows itself by `Origin` or `Sec-Fetch-Site`; a page that had its own name
//! rebound to this address shows itself by that name in `Host`. Clients that are no browsers send
//! neither header and name the address that they mean.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::access::Access;
use super::framing::split_port;
use crate::error::{ErrorCode, Problem};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Which hosts and origins are answered.
#[derive(Debug)]
pub(super) struct BrowserRules {
    /// Without a key every request needs a good `Host`; with one, only if names were configured.
    check_host: bool,
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl BrowserRules {
    pub(super) fn new(has_key: bool, hosts: &[String], origins: &[String]) -> Self {
        Self {
            check_host: !has_key || !hosts.is_empty(),
            hosts: hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            origins: origins
                .iter()
                .map(|origin| origin.trim_end_matches('/').to_ascii_lowercase())
                .collect(),
        }
    }

    /// Refuses what a web page could have sent; gives the origin of a page that may.
    pub(super) fn check(
        &self,
        access: Access,
        host: &str,
        headers: &HeaderMap,
    ) -> Result<Option<HeaderValue>, Problem> {
        let host_matters = match access {
            Access::Key => self.check_host,
            Access::Public | Access::Signed => false,
        };
        if host_matters && !self.host_allowed(host) {
            return Err(Problem::new(
                ErrorCode::ForbiddenHost,
                "this server does not answer to the name in the Host header",
            )
            .hint("use an IP address or localhost, or add the name to server.allowedHosts"));
        }
        let mut origins = headers.get_all(ORIGIN).iter();
        let allowed = match (origins.next(), origins.next()) {
            (None, _) => None,
            (Some(origin), None) if self.origin_allowed(origin) => Some(origin.clone()),
            (Some(_), _) if access == Access::Public => None,
            (Some(_), _) => return Err(forbidden_origin()),
        };
        if allowed.is_none() && access != Access::Public {
            let mut sites = headers.get_all(SEC_FETCH_SITE).iter();
            if sites.any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none")) {
                return Err(forbidden_origin());
            }
        }
        Ok(allowed)
    }

    fn host_allowed(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let (name, _) = split_port(&host);
        if self
            .hosts
            .iter()
            .any(|allowed| allowed == name || *allowed == host)
        {
            return true;
        }
        let bracketed = name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Some(v6) = bracketed {
            return v6.parse::<Ipv6Addr>().is_ok_and(|ip| specified(ip.into()));
        }
        if let Ok(v4) = name.parse::<Ipv4Addr>() {
            return specified(v4.into());
        }
        let name = match name.strip_suffix('.') {
            Some(rooted) if rooted.ends_with("localhost") => rooted,
            _ => name,
        };
        name == "localhost"
            || name.ends_with(".localhost")
            // Names without a dot belong to the local network (containers, pods); rebinding needs a
            // domain. What starts with a digit may be another way to write an address.
            || (!name.contains('.') && name.starts_with(|first: char| first.is_ascii_alphabetic()))
    }

    fn origin_allowed(&self, origin: &HeaderValue) -> bool {
        let origin = origin.to_str().unwrap_or_default();
        self.origins
            .iter()
            .any(|allowed| origin.eq_ignore_ascii_case(allowed))
    }
}

/// Not `0.0.0.0` or `::`, which browsers connect to this machine.
fn specified(ip: IpAddr) -> bool {
    !ip.to_canonical().is_unspecified()
}

fn forbidden_origin() -> Problem {
    Problem::new(
        ErrorCode::ForbiddenOrigin,
        "requests from web pages of other origins are not answered",
    )
    .hint("add the page's origin to server.allowedOrigins (SANDCASTER_CORS_ORIGINS)")
}
