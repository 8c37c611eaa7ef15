//! Request over file over environment over defaults: the one place where choices are made.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Config, ProjectSettings, QueryRequest, Usable};
use crate::error::{ErrorCode, Problem};
use crate::llm::{self, ProviderDef, models, prices};
use crate::sandbox::{self, BACKENDS, BackendDef};
use crate::spec::{ModelChoice, NanoUsd, Network, Presence, RunSpec, SandboxChoice};
use crate::tools::TOOLS;

impl Config {
    /// Makes every choice that a run needs.
    ///
    /// # Errors
    /// What can be known to be impossible now, with the field and a hint.
    pub fn resolve(&self, request: QueryRequest, usable: &Usable) -> Result<RunSpec, Problem> {
        // Both sides are taken apart whole, so that a field that nobody handles doesn't compile.
        let QueryRequest {
            prompt,
            model,
            provider,
            sandbox_provider,
            max_turns,
            timeout_secs,
            files,
            allowed_tools,
            thinking_level,
            max_budget,
            background,
        } = request;
        let ProjectSettings {
            system_prompt,
            model: project_model,
            provider: project_provider,
            sandbox_provider: project_backend,
            max_turns: project_turns,
            timeout: project_timeout,
            allowed_tools: project_tools,
            unavailable_tools,
            thinking: project_thinking,
            template,
            network,
            max_budget: project_budget,
            sandbox_start,
            disconnect_grace,
            model_aliases,
        } = &self.project;

        let wanted = Wanted {
            model: model.as_deref(),
            provider,
            project_model: project_model.as_deref(),
            project_provider: *project_provider,
            aliases: model_aliases,
        };
        let model = self.choose_model(&wanted)?;
        let named_none = sandbox_provider.is_none() && project_backend.is_none();
        let max_budget = [max_budget, *project_budget].into_iter().flatten().min();
        check_budget(max_budget, &model)?;
        let tools = TOOLS
            .iter()
            .filter(|def| def.built.is_some())
            .map(|def| def.name)
            .filter(|name| {
                project_tools
                    .as_ref()
                    .is_none_or(|list| list.contains(name))
            })
            .filter(|name| {
                allowed_tools
                    .as_ref()
                    .is_none_or(|list| list.contains(name))
            })
            .collect::<Vec<_>>();
        let backend = match self.choose_backend(sandbox_provider, *project_backend, usable) {
            // A run without tools and files gets no sandbox, so none has to be usable: the row is only
            // a name then.
            Err(_) if named_none && tools.is_empty() && files.is_empty() => any_built()?,
            other => other?,
        };

        Ok(RunSpec {
            prompt,
            model,
            thinking: thinking_level.unwrap_or(*project_thinking),
            tools,
            unavailable_tools: unavailable_tools.clone(),
            max_turns: max_turns.unwrap_or(*project_turns),
            timeout: timeout_secs.map_or(*project_timeout, Duration::from_secs),
            max_budget,
            files,
            sandbox: SandboxChoice {
                backend: backend.name,
                template: template_for(backend, template.as_deref())?,
                network: network_for(backend, *network)?,
                start: *sandbox_start,
            },
            system_prompt: system_prompt.clone(),
            presence: if background {
                Presence::Background
            } else {
                Presence::Attached {
                    grace: *disconnect_grace,
                }
            },
        })
    }

    /// Whether a provider's key is set, or it needs none.
    pub fn has_key(&self, def: &ProviderDef) -> bool {
        def.key_vars.is_empty() || def.key_vars.iter().any(|var| self.keys.contains_key(var))
    }

    /// The model of a request that says nothing about it.
    ///
    /// # Errors
    /// Why there is none.
    pub fn default_model(&self) -> Result<ModelChoice, Problem> {
        let ProjectSettings {
            model,
            provider,
            model_aliases,
            ..
        } = &self.project;
        self.choose_model(&Wanted {
            model: None,
            provider: None,
            project_model: model.as_deref(),
            project_provider: *provider,
            aliases: model_aliases,
        })
    }

    /// The backend of a request that says nothing about it.
    ///
    /// # Errors
    /// Why there is none.
    pub fn default_backend(&self, usable: &Usable) -> Result<&'static str, Problem> {
        self.choose_backend(None, self.project.sandbox_provider, usable)
            .map(|def| def.name)
    }

    fn choose_model(&self, wanted: &Wanted<'_>) -> Result<ModelChoice, Problem> {
        let key_present = |def: &ProviderDef| self.has_key(def);
        let mut found = None;
        for (model, provider) in wanted.tries() {
            let outcome = models::resolve(model, provider, wanted.aliases, &key_present);
            let fits = match &outcome {
                Ok(_) => true,
                Err(problem) => !matches!(
                    problem.code,
                    ErrorCode::UnknownModel
                        | ErrorCode::ValidationFailed
                        | ErrorCode::ProviderUnknown
                ),
            };
            if fits || found.is_none() {
                found = Some(outcome);
            }
            if fits {
                break;
            }
        }
        let choice = found.unwrap_or_else(|| {
            Err(Problem::new(
                ErrorCode::NoModelConfigured,
                "no model was named",
            ))
        });
        let choice = choice.map_err(|problem| wanted.explain(problem))?;
        let Some(def) = llm::provider(choice.provider) else {
            return Err(Problem::new(
                ErrorCode::Internal,
                "the model has no known provider",
            ));
        };
        if matches!(def.build, llm::Build::NotYet) {
            let message = format!("the LLM provider `{}` is not implemented yet", def.name);
            return Err(wanted.explain(Problem::field(
                ErrorCode::NotImplemented,
                wanted.field(),
                message,
            )));
        }
        if !self.has_key(def) {
            let message = format!("the LLM provider `{}` has no key on this server", def.name);
            return Err(wanted.explain(
                Problem::field(ErrorCode::LlmKeyMissing, wanted.field(), message).hint(format!(
                    "set {} where the server runs",
                    def.key_vars.join(" or ")
                )),
            ));
        }
        Ok(choice)
    }

    fn choose_backend(
        &self,
        requested: Option<&'static str>,
        project: Option<&'static str>,
        usable: &Usable,
    ) -> Result<&'static BackendDef, Problem> {
        if let Some(name) = requested.or(project) {
            let def = sandbox::backend(name).ok_or_else(|| {
                Problem::field(
                    ErrorCode::ProviderUnknown,
                    "sandboxProvider",
                    "no such sandbox backend",
                )
            })?;
            let refused = self.why_not(def, usable);
            return refused.map_or(Ok(def), |problem| {
                Err(if requested.is_some() {
                    problem
                } else {
                    from_settings(problem, "sandboxProvider")
                })
            });
        }
        let mut reasons = Vec::new();
        for def in BACKENDS {
            if matches!(def.build, sandbox::Build::NotYet) {
                continue;
            }
            match self.why_not(def, usable) {
                None => return Ok(def),
                Some(problem) => reasons.push((def.name, problem)),
            }
        }
        let causes: Vec<String> = reasons
            .iter()
            .map(|(name, problem)| format!("{name}: {}", problem.message))
            .collect();
        let problem = Problem::new(
            ErrorCode::NoSandboxConfigured,
            format!(
                "no sandbox backend can be used here ({})",
                causes.join("; ")
            ),
        );
        let hint = reasons
            .into_iter()
            .rev()
            .find_map(|(_, problem)| problem.hint);
        Err(problem
            .hint(hint.unwrap_or_else(|| "run `sandcaster doctor` on the server".to_owned())))
    }

    /// Why a backend can't be used now; `None` if it can.
    fn why_not(&self, def: &BackendDef, usable: &Usable) -> Option<Problem> {
        const FIELD: &str = "sandboxProvider";
        if matches!(def.build, sandbox::Build::NotYet) {
            let message = format!("the sandbox backend `{}` is not implemented yet", def.name);
            return Some(Problem::field(ErrorCode::NotImplemented, FIELD, message));
        }
        let missing: Vec<&str> = def
            .key_vars
            .iter()
            .copied()
            .filter(|var| !self.keys.contains_key(var))
            .collect();
        if !missing.is_empty() {
            let message = format!(
                "the sandbox backend `{}` has no key on this server",
                def.name
            );
            return Some(
                Problem::field(ErrorCode::ProviderAuthMissing, FIELD, message).hint(format!(
                    "set {} where the server runs",
                    missing.join(" and ")
                )),
            );
        }
        match usable.backends.get(def.name) {
            Some(Ok(())) => None,
            Some(Err(error)) => {
                let mut problem = Problem::field(error.code(), FIELD, error.to_string());
                problem.hint = error.hint();
                Some(problem)
            }
            None => Some(Problem::field(
                ErrorCode::NoSandboxConfigured,
                FIELD,
                format!(
                    "the sandbox backend `{}` was not found usable when the server started",
                    def.name
                ),
            )),
        }
    }
}

/// What was said about the model, by whom.
struct Wanted<'a> {
    model: Option<&'a str>,
    provider: Option<&'static str>,
    project_model: Option<&'a str>,
    project_provider: Option<&'static str>,
    aliases: &'a BTreeMap<String, String>,
}

impl<'a> Wanted<'a> {
    /// The pairs of model and provider to try, the best first. What the project says about one of them
    /// yields where it contradicts what the request says about the other.
    fn tries(&self) -> Vec<(Option<&'a str>, Option<&'static str>)> {
        let both = (
            self.model.or(self.project_model),
            self.provider.or(self.project_provider),
        );
        match (self.model, self.provider) {
            (Some(model), None) if self.project_provider.is_some() => {
                vec![both, (Some(model), None)]
            }
            (None, Some(provider)) if self.project_model.is_some() => {
                vec![both, (None, Some(provider))]
            }
            _ => vec![both],
        }
    }

    /// The field that led to the choice.
    const fn field(&self) -> &'static str {
        if self.model.is_none() && self.provider.is_some() {
            "provider"
        } else {
            "model"
        }
    }

    /// Says so where the fault lies in the settings, not in the request.
    fn explain(&self, problem: Problem) -> Problem {
        let silent = self.model.is_none() && self.provider.is_none();
        let configured = self.project_model.is_some() || self.project_provider.is_some();
        if silent && configured {
            let field = if self.project_model.is_some() {
                "model"
            } else {
                "provider"
            };
            return from_settings(problem, field);
        }
        problem
    }
}

/// A fault of a value that the server's settings chose: the request has no such field.
fn from_settings(mut problem: Problem, field: &str) -> Problem {
    problem.details.clear();
    problem.message = format!("{} (`{field}` of the server's settings)", problem.message);
    problem
}

/// The last built backend in the order of choice.
fn any_built() -> Result<&'static BackendDef, Problem> {
    let mut built = BACKENDS
        .iter()
        .filter(|def| matches!(def.build, sandbox::Build::With(_)));
    built.next_back().ok_or_else(|| {
        Problem::new(
            ErrorCode::NoSandboxConfigured,
            "this build has no sandbox backend",
        )
    })
}

/// A budget can only be kept when the price is known.
fn check_budget(budget: Option<NanoUsd>, model: &ModelChoice) -> Result<(), Problem> {
    let free = llm::provider(model.provider).is_some_and(|def| def.key_vars.is_empty());
    if budget.is_none() || free || prices::known(model.provider, &model.id) {
        return Ok(());
    }
    let message = format!(
        "no price is known for the model {}, so a budget can't be kept",
        model.id
    );
    Err(
        Problem::field(ErrorCode::ValidationFailed, "maxBudgetUsd", message)
            .hint("leave the budget out, or choose a model whose price is known"),
    )
}

/// The template, if the backend has such a thing and the name has its form.
fn template_for(backend: &BackendDef, template: Option<&str>) -> Result<Option<String>, Problem> {
    let Some(template) = template else {
        return Ok(None);
    };
    let form = match backend.name {
        "local" => "it has no templates",
        "e2b"
            if !template
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-/:.".contains(&b)) =>
        {
            "letters, digits and _ - / : ."
        }
        "vercel" if template.contains(|c: char| c.is_whitespace() || c == '/') => {
            "a snapshot's id, without blanks or slashes"
        }
        _ if template.contains(char::is_whitespace) => "an image's name, without blanks",
        _ => return Ok(Some(template.to_owned())),
    };
    let message = format!(
        "the template of the server's settings does not fit the sandbox backend `{}`: {form}",
        backend.name
    );
    Err(Problem::new(ErrorCode::InvalidTemplateForProvider, message)
        .hint("change or remove `template` (SANDCASTER_TEMPLATE), or name another sandboxProvider"))
}

/// The network mode, if the backend has it.
fn network_for(backend: &BackendDef, network: Option<Network>) -> Result<Network, Problem> {
    match network {
        None => Ok(backend.default_network),
        Some(Network::Full) if backend.name == "local" => Err(Problem::new(
            ErrorCode::NotImplemented,
            "`network: \"full\"` of the server's settings is not available with the sandbox backend `local`",
        )
        .hint("remove `network` (SANDCASTER_NETWORK), or name another sandboxProvider")),
        Some(network) => Ok(network),
    }
}
