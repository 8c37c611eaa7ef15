//! Bearer keys (HT-3).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};
use tokio::time::Instant;

use crate::error::{ErrorCode, Problem};
use crate::secrets::Secret;

/// The keys that are accepted, as digests, and who failed to name one.
pub(super) struct Auth {
    keys: Vec<[u8; 32]>,
    failures: Mutex<Failures>,
}

impl Auth {
    /// Accepts any of `keys`; everybody if there is none.
    pub(super) fn new(keys: &[Secret]) -> Self {
        Self {
            keys: keys
                .iter()
                .map(|key| Sha256::digest(key.expose()).into())
                .collect(),
            failures: Mutex::default(),
        }
    }

    /// Whether a key is needed at all.
    pub(super) fn required(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Lets a request with a right key pass. Whatever is wrong with another gives the same 401; more
    /// than 20 of them within a minute from one address give 429.
    ///
    /// A right key always passes: behind a proxy all clients share an address, and one that is
    /// misconfigured must not lock the others out.
    pub(super) fn check(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<(), Problem> {
        if !self.required() || self.known(bearer(headers).unwrap_or_default()) {
            return Ok(());
        }
        match self.failures.lock().count(peer, Instant::now()) {
            None => Err(unauthorized()),
            Some(wait) => Err(Problem::new(
                ErrorCode::TooManyRequests,
                "too many requests without a right key from this address",
            )
            .retry_after(wait)),
        }
    }

    /// Compares with every key, so that the time tells neither how many match nor which.
    fn known(&self, token: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let found = self
            .keys
            .iter()
            .fold(Choice::from(0), |found, key| found | key.ct_eq(&digest));
        // An empty token is no key, whatever was configured.
        bool::from(found) && !token.is_empty()
    }
}

/// The one answer to a missing, malformed or wrong key.
fn unauthorized() -> Problem {
    Problem::new(
        ErrorCode::Unauthorized,
        "this request needs a key: send Authorization: Bearer <key>",
    )
    .hint("the key is the server's SANDCASTER_API_KEY")
}

/// The token of exactly one `Authorization: Bearer <token>`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

const WINDOW: Duration = Duration::from_mins(1);
const FAILURES_PER_WINDOW: u32 = 20;
/// Addresses remembered at once; beyond it the oldest is forgotten.
const MOST_ADDRESSES: usize = 4096;

/// Failures by address, each in a window that begins with its first failure.
#[derive(Default)]
struct Failures {
    by_address: HashMap<IpAddr, (Instant, u32)>,
}

impl Failures {
    /// Counts a failure. When there were too many: how long until the window is over.
    fn count(&mut self, peer: Option<IpAddr>, now: Instant) -> Option<Duration> {
        let address = network(peer.unwrap_or(Ipv6Addr::UNSPECIFIED.into()));
        if !self.by_address.contains_key(&address) && self.by_address.len() >= MOST_ADDRESSES {
            self.make_room(now);
        }
        let (since, count) = self.by_address.entry(address).or_insert((now, 0));
        if now.duration_since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        (*count > FAILURES_PER_WINDOW).then(|| WINDOW.saturating_sub(now.duration_since(*since)))
    }

    fn make_room(&mut self, now: Instant) {
        self.by_address
            .retain(|_, (since, _)| now.duration_since(*since) < WINDOW);
        if self.by_address.len() >= MOST_ADDRESSES
            && let Some(oldest) = self
                .by_address
                .iter()
                .min_by_key(|(_, (since, _))| *since)
                .map(|(address, _)| *address)
        {
            self.by_address.remove(&oldest);
        }
    }
}

/// A v6 customer has a whole /64, so that is what counts.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn failures_are_counted_per_address_and_forgotten_after_a_minute() {
        let mut failures = Failures::default();
        let now = Instant::now();
        let one = Some(IpAddr::from([192, 0, 2, 1]));
        for _ in 0..20 {
            assert_eq!(failures.count(one, now), None);
        }
        assert_eq!(failures.count(one, now), Some(WINDOW));
        assert_eq!(
            failures.count(Some(IpAddr::from([192, 0, 2, 2])), now),
            None
        );
        assert_eq!(failures.count(one, now + WINDOW), None);
    }

    #[test]
    fn the_map_of_addresses_stays_bounded() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for n in 0..6000_u32 {
            failures.count(Some(IpAddr::V4(Ipv4Addr::from(n))), now);
        }
        assert_eq!(failures.by_address.len(), MOST_ADDRESSES);
    }

    #[test]
    fn a_v6_network_counts_as_one_address() {
        let a: IpAddr = "2001:db8::1".parse().unwrap();
        let b: IpAddr = "2001:db8::ffff:2".parse().unwrap();
        assert_eq!(network(a), network(b));
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(network(mapped), IpAddr::from([192, 0, 2, 1]));
    }
}
