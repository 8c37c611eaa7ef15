//! Keys and base URLs: from the environment only (rule SE-3), checked before anything starts.

use std::net::IpAddr;

use super::Config;
use super::env::Layers;
use crate::llm::PROVIDERS;
use crate::sandbox::BACKENDS;
use crate::secrets::{SHORTEST_SEARCHED, Secret};
use crate::show::{QUOTED, quoted, start};

const API_KEY: &str = "SANDCASTER_API_KEY";
const WEBHOOK_SECRET: &str = "SANDCASTER_WEBHOOK_SECRET";
const ALLOW_INSECURE: &str = "SANDCASTER_ALLOW_INSECURE_BASE_URL";
/// Keys below this length can be guessed.
const LONG_ENOUGH: usize = 32;
/// The old and the new one while a key is changed.
const MOST_API_KEYS: usize = 2;

/// The variables that hold keys of providers and backends.
fn key_variables() -> impl Iterator<Item = &'static str> {
    let llm = PROVIDERS.iter().flat_map(|def| def.key_vars);
    let sandbox = BACKENDS.iter().flat_map(|def| def.key_vars);
    llm.chain(sandbox).copied()
}

fn base_url_variables() -> impl Iterator<Item = &'static str> {
    let llm = PROVIDERS
        .iter()
        .map(|def| def.base_url_var)
        .filter(|name| !name.is_empty());
    llm.chain(BACKENDS.iter().flat_map(|def| def.url_vars).copied())
}

fn host_variables() -> impl Iterator<Item = &'static str> {
    BACKENDS.iter().flat_map(|def| def.host_vars).copied()
}

/// Every variable that is read here: keys, secrets and base URLs.
pub fn variables() -> impl Iterator<Item = &'static str> {
    key_variables()
        .chain(base_url_variables())
        .chain(host_variables())
        .chain([API_KEY, WEBHOOK_SECRET, ALLOW_INSECURE])
}

/// Whatever the variables of keys hold, also what is refused: nothing of it may be in a message about another
/// variable. Of a long one also the beginning, since such a message shows no more.
pub(super) fn unspeakable(layers: &Layers<'_>) -> Vec<Secret> {
    let names = key_variables().chain([API_KEY, WEBHOOK_SECRET]);
    let values =
        names.flat_map(|name| [layers.process, layers.dotenv].map(|layer| layer.get(name)));
    let parts = values.flatten().flat_map(|value| {
        let keys = value.split(',');
        keys.chain([value.as_str()])
    });
    let beginnings = parts.flat_map(|key| [key, start(key.trim(), QUOTED)]);
    beginnings.map(Secret::new).collect()
}

/// Reads all keys and base URLs.
pub(super) fn apply(config: &mut Config, layers: &Layers<'_>, errors: &mut Vec<String>) {
    if let Some((value, source)) = layers.get_even_empty(API_KEY) {
        match api_keys(value) {
            Ok(keys) => {
                if keys.iter().any(|key| key.expose().len() < LONG_ENOUGH) {
                    config.warnings.push(format!(
                        "{API_KEY} has fewer than {LONG_ENOUGH} characters: it can be guessed"
                    ));
                }
                for key in &keys {
                    unsearched(config, API_KEY, key);
                }
                config.server.api_keys = keys;
                config.key_sources.insert(API_KEY, source);
            }
            Err(fault) => errors.push(format!("{API_KEY} {fault}")),
        }
    }
    if let Some((value, source)) = layers.get(WEBHOOK_SECRET) {
        config.key_sources.insert(WEBHOOK_SECRET, source);
        let secret = Secret::new(value);
        unsearched(config, WEBHOOK_SECRET, &secret);
        config.server.webhook_secret = Some(secret);
    }
    for name in key_variables() {
        let Some((value, source)) = layers.get(name) else {
            continue;
        };
        match value.trim().bytes().position(|byte| !byte.is_ascii_graphic()) {
            None => {
                let key = Secret::new(value);
                unsearched(config, name, &key);
                config.keys.insert(name, key);
                config.key_sources.insert(name, source);
            }
            Some(at) => errors.push(format!(
                "{name} can't be sent in a header: character {} is a blank, a control character or not \
                 ASCII; copy the key again",
                at + 1
            )),
        }
    }
    let insecure = layers
        .get(ALLOW_INSECURE)
        .is_some_and(|(value, _)| matches!(value.trim(), "1" | "true"));
    for name in base_url_variables() {
        let Some((value, _)) = layers.get(name) else {
            continue;
        };
        match base_url(value.trim(), insecure) {
            Ok(url) => {
                config.base_urls.insert(name, url);
            }
            Err(fault) => errors.push(format!("{} {fault}", named(name, value.trim()))),
        }
    }
    for name in host_variables() {
        let Some((value, _)) = layers.get(name) else {
            continue;
        };
        if is_host_name(value.trim()) {
            config.base_urls.insert(name, value.trim().to_owned());
        } else {
            errors.push(format!(
                "{} is no host name; it should look like e2b.app, without https:// and path",
                named(name, value.trim())
            ));
        }
    }
}

/// Warns of a key that the redactor leaves out.
fn unsearched(config: &mut Config, name: &str, key: &Secret) {
    if key.expose().len() < SHORTEST_SEARCHED {
        config.warnings.push(format!(
            "{name} has fewer than {SHORTEST_SEARCHED} characters: it is used, but is not searched for in what \
             runs and logs show, since so short a word would damage ordinary text"
        ));
    }
}

/// Longer parts of a host's name are not shown.
const LONGEST_LABEL: usize = 24;

fn is_host_name(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= 253
        && value.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
}

/// Whether the text is surely a place, and no key: those are longer than people name their machines, or have no dots.
fn is_place(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let name = || {
        let end = host.rsplit_once('.').map(|(_, end)| end);
        is_host_name(host)
            && host.split('.').all(|label| label.len() <= LONGEST_LABEL)
            && end.is_some_and(|end| end.bytes().all(|byte| byte.is_ascii_alphabetic()))
    };
    host == "localhost" || address.parse::<IpAddr>().is_ok() || name()
}

/// A variable with its refused address. Of that the place it leads to is shown, never a user, a path or a query; and
/// nothing of what is no address, since it may be a key in the wrong place.
pub(super) fn named(variable: &str, address: &str) -> String {
    let place = match reqwest::Url::parse(address) {
        Ok(url) if url.has_host() => url.host_str().filter(|host| is_place(host)).map(|host| {
            let port = url
                .port()
                .map_or_else(String::new, |port| format!(":{port}"));
            format!("{}://{host}{port}", url.scheme())
        }),
        _ => {
            let host = address.split(['/', ':', '?', '#']).next();
            let host = host
                .filter(|host| is_place(host))
                .filter(|_| !address.contains('@'));
            host.map(str::to_owned)
        }
    };
    match place {
        Some(place) => format!("{variable} ({})", quoted(&place)),
        None => variable.to_owned(),
    }
}

/// One key, or two with a comma between.
fn api_keys(value: &str) -> Result<Vec<Secret>, String> {
    if value.is_empty() {
        return Err(
            "is set but empty; unset it to run without authentication, or give it a key".to_owned(),
        );
    }
    let parts: Vec<&str> = value.split(',').collect();
    if parts.len() > MOST_API_KEYS {
        return Err(format!(
            "has {} keys with commas between (limit {MOST_API_KEYS}: the old and the new one)",
            parts.len()
        ));
    }
    for part in &parts {
        if part.is_empty() {
            return Err("has an empty key beside the comma".to_owned());
        }
        if !part.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "has a blank, a control character or one that is not ASCII: clients could not send it \
                 in a header (a line end at the end of the value is the usual cause)"
                    .to_owned(),
            );
        }
    }
    Ok(parts.into_iter().map(Secret::new).collect())
}

/// An absolute URL that keys may be sent to, without its trailing slash. The message does not show it.
fn base_url(value: &str, insecure: bool) -> Result<String, String> {
    let url = reqwest::Url::parse(value)
        .map_err(|_| "is no absolute URL; it should look like https://host/path".to_owned())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or password".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not have a ? or # part".to_owned());
    }
    let host = url.host_str().unwrap_or_default();
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    let loopback =
        host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback());
    match url.scheme() {
        "https" => {}
        "http" if loopback || insecure => {}
        "http" => {
            return Err(format!(
                "is plain http to another machine, which would send the key readable; use https, or \
                 set {ALLOW_INSECURE}=1"
            ));
        }
        _ => return Err("must begin with https://".to_owned()),
    }
    Ok(value.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_keys_that_clients_can_send_are_taken() {
        for (value, count) in [("my-secret-token", 1), ("a,b", 2), ("x/+=~!\"", 1)] {
            assert_eq!(api_keys(value).unwrap().len(), count, "{value}");
        }
        for value in [
            "", " ", ",", "a,", ",b", "a b", "a\n", "a\u{7f}", "ключ", "a,b,c", "a, b",
        ] {
            assert!(api_keys(value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn a_refused_address_is_shown_without_what_may_be_secret() {
        let key = format!("sk-{}", "k3y".repeat(20));
        let two_parts = format!("{}.{}", "0123456789abcdef".repeat(2), "AbCdEfGhIjKlMnOp");
        let token = format!(
            "eyJ{}.eyJ{}.{}",
            "hbGc".repeat(8),
            "zdWI".repeat(8),
            "Sig".repeat(14)
        );
        for (address, shown) in [
            (
                "http://gateway.example:8080/v1",
                "X (\"http://gateway.example:8080\")",
            ),
            (
                "https://u:hunter2@gateway.example/?key=1",
                "X (\"https://gateway.example\")",
            ),
            ("gateway.example/v1?key=1", "X (\"gateway.example\")"),
            ("ftp://gateway.example", "X (\"ftp://gateway.example\")"),
            ("u:hunter2@gateway.example", "X"),
            ("u.v:hunter2@gateway.example", "X"),
            ("hunter2.gateway.example@x", "X"),
            ("10.0.0.1:8080/v1", "X (\"10.0.0.1\")"),
            ("http://[fe80::1]:8080/v1", "X (\"http://[fe80::1]:8080\")"),
            ("http://localhost:1/?key=1", "X (\"http://localhost:1\")"),
            ("", "X"),
            (&key, "X"),
            (&format!("http://{key}"), "X"),
            (&format!("https://{key}:443/v1"), "X"),
            (&two_parts, "X"),
            (&format!("https://{two_parts}"), "X"),
            (&token, "X"),
            (&format!("https://{token}/"), "X"),
            ("short.t0ken", "X"),
        ] {
            assert_eq!(named("X", address), shown, "{address}");
        }
    }

    #[test]
    fn base_urls_protect_the_key() {
        for (value, kept) in [
            ("https://gateway.example/v1/", "https://gateway.example/v1"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]:8080/", "http://[::1]:8080"),
            ("http://localhost", "http://localhost"),
            ("http://[::ffff:127.0.0.1]", "http://[::ffff:127.0.0.1]"),
        ] {
            assert_eq!(base_url(value, false).as_deref(), Ok(kept));
        }
        for value in [
            "http://gateway.example",
            "http://127.0.0.1.evil.example",
            "https://user:pass@gateway.example",
            "https://gateway.example/?key=1",
            "https://gateway.example/#x",
            "ftp://gateway.example",
            "gateway.example",
            "",
        ] {
            assert!(base_url(value, false).is_err(), "{value}");
        }
        assert!(base_url("http://gateway.example", true).is_ok());
        assert!(
            !base_url("https://u:hunter2@x", false)
                .unwrap_err()
                .contains("hunter2")
        );
    }
}
