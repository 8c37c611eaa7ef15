//! Settings and requests: what was typed, and what was decided.
//!
//! [`Config`] is the process's settings after flags, environment, `.env` and `sandcaster.json` have been
//! merged; [`QueryRequest`] a request's body as sent; [`Config::resolve`] makes a [`crate::spec::RunSpec`]
//! of both.

mod check;
mod dotenv;
mod env;
mod faults;
mod fields;
mod file;
mod json;
mod keys;
mod load;
mod request;
mod request_files;
mod resolve;
mod settings;
mod usable;
mod values;
mod variables;

pub use env::{EnvMap, Source, process as process_environment};
pub(crate) use env::{process_arguments, working_directory};
pub use fields::settings as setting_names;
pub(crate) use file::fuzz_file;
pub use keys::variables as key_variables;
pub use request::{QueryRequest, request_fields};
pub use settings::{
    Config, ConfigError, FILE_NAME, LogSettings, Overrides, ProjectSettings, ServerSettings,
};
pub use usable::Usable;
pub(crate) use variables::fuzz_dotenv;
