//! `sandcaster webhook`: registers the server's webhook at E2B, and shows and deletes registrations.

use std::net::IpAddr;

use reqwest::Url;

use super::args::WebhookCommand;
use super::exit::{FAILED, REFUSED};
use super::printer::Printer;
use crate::config::Config;
use crate::net;
use crate::sandbox::SandboxError;
use crate::sandbox::e2b::{Registered, Webhook, Webhooks};

/// Where the server takes deliveries.
const PATH: &str = "/webhooks/e2b";

/// Does it, and gives the exit code. Never shows the secret.
pub(super) async fn run(command: &WebhookCommand, config: &Config, printer: Printer) -> u8 {
    let url = match command {
        WebhookCommand::Register { url } => match delivery_url(url) {
            Ok(url) => url,
            Err(why) => return refuse(printer, &why, None),
        },
        WebhookCommand::List | WebhookCommand::Delete { .. } => String::new(),
    };
    let http = match net::build_with(config.proxies.clone()) {
        Ok(http) => http,
        Err(error) => return refuse(printer, &format!("HTTPS can't be used: {error}"), None),
    };
    let secret = config.server.webhook_secret.clone();
    if secret.is_none() && matches!(command, WebhookCommand::Register { .. }) {
        let hint = "set it here and where the server runs, to the output of `openssl rand -hex 32`";
        return refuse(printer, "SANDCASTER_WEBHOOK_SECRET is not set", Some(hint));
    }
    let webhooks = match Webhooks::new(&config.backend_config(http), secret) {
        Ok(webhooks) => webhooks,
        Err(error) => return refuse(printer, &error.to_string(), error.hint().as_deref()),
    };
    let done = match command {
        WebhookCommand::Register { .. } => webhooks.register(&url).await.map(|done| match done {
            Registered::New(webhook) => format!("registered {}\n", line(&webhook)),
            Registered::Updated(webhook) => format!("updated {}\n", line(&webhook)),
        }),
        WebhookCommand::List => webhooks.list().await.map(|all| listing(&all)),
        WebhookCommand::Delete { id } => match webhooks.delete(id).await {
            Ok(true) => Ok(format!("deleted {id}\n")),
            Ok(false) => {
                printer.note(&format!("error: E2B has no webhook {id}"));
                return FAILED;
            }
            Err(error) => Err(error),
        },
    };
    match done {
        Ok(text) if printer.text(&text).is_ok() => 0,
        Ok(_) => FAILED,
        Err(error) => fail(printer, &error),
    }
}

fn refuse(printer: Printer, why: &str, hint: Option<&str>) -> u8 {
    printer.note(&format!("error: {why}"));
    if let Some(hint) = hint {
        printer.note(hint);
    }
    REFUSED
}

fn fail(printer: Printer, error: &SandboxError) -> u8 {
    printer.note(&format!("error: {error}"));
    if let Some(hint) = error.hint() {
        printer.note(&hint);
    }
    FAILED
}

fn line(webhook: &Webhook) -> String {
    let state = if webhook.enabled { "" } else { " (disabled)" };
    format!("{} {}{state}", webhook.id, webhook.url)
}

fn listing(all: &[Webhook]) -> String {
    if all.is_empty() {
        return "no webhooks\n".to_owned();
    }
    let lines = all
        .iter()
        .map(|webhook| format!("{}: {}", line(webhook), webhook.events.join(" ")));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// The whole URL of deliveries: the path is added where only the server is named.
fn delivery_url(text: &str) -> Result<String, String> {
    let mut url = Url::parse(text).map_err(|error| format!("`{text}` is no URL: {error}"))?;
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if !(url.scheme() == "https" || url.scheme() == "http" && loopback) {
        return Err("E2B delivers over the Internet: the URL must start with https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL must not hold a user or password: deliveries are signed".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("the URL must end with {PATH}"));
    }
    if url.path() == "/" {
        url.set_path(PATH);
    }
    if !url.path().ends_with(PATH) {
        return Err(format!(
            "the server takes deliveries at {PATH}, and the URL's path is {}",
            url.path()
        ));
    }
    Ok(url.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_server_gets_the_path_and_what_can_not_be_delivered_to_is_refused() {
        for (given, made) in [
            ("https://a.example", "https://a.example/webhooks/e2b"),
            ("https://a.example/", "https://a.example/webhooks/e2b"),
            (
                "https://a.example/agents/webhooks/e2b",
                "https://a.example/agents/webhooks/e2b",
            ),
            (
                "http://127.0.0.1:3000",
                "http://127.0.0.1:3000/webhooks/e2b",
            ),
            ("http://[::1]:3000", "http://[::1]:3000/webhooks/e2b"),
        ] {
            assert_eq!(delivery_url(given).as_deref(), Ok(made), "{given}");
        }
        for wrong in [
            "a.example",
            "http://a.example",
            "ftp://a.example",
            "https://u:p@a.example",
            "https://a.example/query",
            "https://a.example/webhooks/e2b?x=1",
        ] {
            assert!(delivery_url(wrong).is_err(), "{wrong}");
        }
    }
}
