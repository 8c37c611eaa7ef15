//! E2B: a microVM per run, over its REST API, its edge and the daemon (envd) in each sandbox.
//!
//! `control` speaks to the control plane (create, list, kill, lifetime), `create` holds what must hold
//! when an answer gets lost, `envd` is one sandbox (files, life). `process` starts a command, `command` is one
//! that runs, `stream` what it says, in the frames of `connect`; `follow` reads that to its end, `input` feeds it.
//! `errors` says what failures mean, `webhooks` keeps the registrations that have E2B tell us of a sandbox's
//! death, and `delivery` reads what it then tells.
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
pub mod delivery;
mod envd;
mod errors;
mod files;
mod follow;
mod input;
mod process;
mod stream;
mod timing;
mod webhooks;

use crate::sandbox::def::{BackendDef, Build};
use crate::spec::Network;

use self::backend::KEY_VAR;

pub use backend::{API_URL_VAR, DOMAIN_VAR, SANDBOX_URL_VAR, build_with};
pub(crate) use connect::fuzz_connect;
pub use timing::Timing;
pub use webhooks::{Registered, Webhook, Webhooks};

/// The row of E2B in [`super::BACKENDS`].
pub const DEF: BackendDef = BackendDef {
    name: "e2b",
    key_vars: &[KEY_VAR],
    url_vars: &[API_URL_VAR, SANDBOX_URL_VAR],
    host_vars: &[DOMAIN_VAR],
    default_network: Network::Full,
    working_dir: "/home/user",
    dies_with_server: false,
    isolates: "a microVM per run at E2B",
    build: Build::With(|config| build_with(config, Timing::default())),
};
