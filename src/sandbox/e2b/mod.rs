//! E2B: a microVM per run, over its REST API, its edge and the daemon (envd) in each sandbox.
//!
//! `control` speaks to the control plane (create, list, kill, lifetime), `create` holds what must hold
//! when an answer gets lost, `envd` is one sandbox (files, life), `process` its commands, `connect`
//! the framing of their streams, `errors` what failures mean, `webhooks` the registrations that have E2B tell us
//! of a sandbox's death.
//!
//! What must hold: the key goes to the control plane only, and neither it nor a sandbox's token into any
//! sandbox, error or log. Every wait has an end. A create whose answer was lost never leads to a second
//! sandbox for the run: it is looked for by its labels first. A command is sent again only if it surely
//! reached nobody.

mod backend;
mod command;
mod connect;
mod control;
mod create;
mod envd;
mod errors;
mod facts;
mod files;
mod follow;
mod input;
mod process;
mod stream;
mod webhooks;

use crate::sandbox::{BackendDef, Build};
use crate::spec::Network;
use facts::KEY_VAR;

pub use backend::build_with;
pub use facts::{API_URL_VAR, DOMAIN_VAR, SANDBOX_URL_VAR, Timing};
pub use webhooks::{Registered, Webhook, Webhooks};

/// The row of E2B in [`super::BACKENDS`].
pub const DEF: BackendDef = BackendDef {
    name: "e2b",
    key_vars: &[KEY_VAR],
    url_vars: &[API_URL_VAR, SANDBOX_URL_VAR],
    host_vars: &[DOMAIN_VAR],
    default_network: Network::Full,
    working_dir: "/home/user",
    isolates: "a microVM per run at E2B",
    build: Build::With(|config| build_with(config, Timing::default())),
};
