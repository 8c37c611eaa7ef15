//! The process's settings, merged.

use std::path::Path;

use super::env::{EnvMap, Layers};
use super::settings::{Config, ConfigError, Overrides};
use super::{fields, file, keys, values, variables};
use crate::net::Proxies;
use crate::secrets::Redactor;

impl Config {
    /// Merges all settings: flags over environment over `.env` over `sandcaster.json` over defaults.
    /// The files are looked for in `cwd`; `env` is the whole environment.
    ///
    /// # Errors
    /// Every wrong value with its file, line, column and field, or its variable.
    pub fn load(overrides: &Overrides, env: &EnvMap, cwd: &Path) -> Result<Self, ConfigError> {
        let Overrides {
            host,
            port,
            data_dir,
            config: file_flag,
            template,
            require_auth,
        } = overrides;
        let mut config = Self {
            data_dir: cwd.join(".sandcaster"),
            ..Self::default()
        };
        let mut errors = Vec::new();

        file::apply(&mut config, file_flag.as_deref(), cwd, &mut errors);
        let dotenv = variables::read_dotenv(cwd, &mut errors);
        config.warnings.extend(dotenv.warnings);
        let layers = Layers {
            process: env,
            dotenv: &dotenv.values,
        };
        config.warnings.extend(variables::differences(&layers));
        config.warnings.extend(variables::misspelt(&layers));
        fields::apply_environment(&mut config, &layers, &mut errors);
        keys::apply(&mut config, &layers, &mut errors);
        match Proxies::from_env(|name| env.get(name).map(String::as_str)) {
            Ok(proxies) => config.proxies = proxies,
            Err(name) => errors.push(format!(
                "{} names no proxy that can be used; it should look like http://host:port or https://host:port",
                keys::named(name, env.get(name).map_or("", |url| url.trim()))
            )),
        }

        if let Some(host) = host {
            match values::host(host) {
                Ok(host) => config.server.host = host,
                Err(wrong) => errors.push(format!("--host {}", wrong.message)),
            }
        }
        if let Some(port) = port {
            config.server.port = *port;
        }
        if let Some(dir) = data_dir {
            config.data_dir.clone_from(dir);
        }
        if let Some(template) = template {
            config.project.template = Some(template.clone());
        }
        config.data_dir = cwd.join(&config.data_dir);
        if *require_auth && config.server.api_keys.is_empty() {
            errors.push(
                "--require-auth: no API key is set; set SANDCASTER_API_KEY (32 characters or more)"
                    .to_owned(),
            );
        }
        config.warnings.extend(config.tight_memory());
        let redactor = Redactor::new(&keys::unspeakable(&layers));
        if errors.is_empty() {
            for warning in &mut config.warnings {
                redactor.clean_text(warning);
            }
            return Ok(config);
        }
        Err(ConfigError(redactor.clean(&errors.join("\n")).into_owned()))
    }
}
