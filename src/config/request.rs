//! The body of `POST /query` as sent (API reference, POST /query), checked strictly.

use std::fmt;

use super::check;
use super::check::Wrong;
use super::faults::Faults;
use super::json::{self, At, Node};
use super::request_files;
use crate::encoding::without_bom;
use crate::error::{ErrorCode, Problem};
use crate::show::did_you_mean;
use crate::spec::{InputFile, NanoUsd, ThinkingLevel};

/// Every field as sent, no defaults filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryRequest {
    /// The prompt: 1 to 1,000,000 characters, not only blanks.
    pub prompt: String,
    /// A model's alias or full id.
    pub model: Option<String>,
    /// The LLM provider's name; known, and built.
    pub provider: Option<&'static str>,
    /// The sandbox backend's name; known, and built.
    pub sandbox_provider: Option<&'static str>,
    /// 1 to 1000.
    pub max_turns: Option<u32>,
    /// In seconds, 5 to 3600.
    pub timeout_secs: Option<u64>,
    /// At most 20, 10,000,000 bytes in all, under distinct normalised names.
    pub files: Vec<InputFile>,
    /// Our names of the tools; an empty list means none.
    pub allowed_tools: Option<Vec<&'static str>>,
    /// How much the model may think.
    pub thinking_level: Option<ThinkingLevel>,
    /// The most that the run may cost.
    pub max_budget: Option<NanoUsd>,
    /// The run goes on without readers.
    pub background: bool,
}

/// Takes one field's value into the request.
type Take = fn(&mut QueryRequest, &Node<'_>, &At<'_>, &mut Faults);

/// What can be sent.
static FIELDS: &[(&str, Take)] = &[
    ("prompt", take_prompt),
    ("model", |request, node, at, faults| {
        request.model = faults.note(at, check::model(node)).map(str::to_owned);
    }),
    ("maxTurns", |request, node, at, faults| {
        request.max_turns = faults
            .note(at, check::integer(node, &check::TURNS))
            .and_then(|turns| u32::try_from(turns).ok());
    }),
    ("timeout", |request, node, at, faults| {
        request.timeout_secs = faults.note(at, check::integer(node, &check::TIMEOUT_SECS));
    }),
    ("files", |request, node, at, faults| {
        request.files = request_files::take(node, at, faults);
    }),
    ("allowedTools", take_tools),
    ("provider", take_provider),
    ("sandboxProvider", take_backend),
    ("thinkingLevel", |request, node, at, faults| {
        request.thinking_level = faults.note(at, check::thinking(node));
    }),
    ("maxBudgetUsd", |request, node, at, faults| {
        request.max_budget = faults.note(at, check::usd(node));
    }),
    ("background", |request, node, at, faults| {
        request.background = faults.note(at, check::boolean(node)).unwrap_or_default();
    }),
];

/// The names of all fields that a request may have. For the documentation's test.
pub fn request_fields() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(|(name, _)| *name)
}

/// Fields that are documented or known from older clients, and not built yet.
static PLANNED: &[&str] = &[
    "outputFormat",
    "composite",
    "branching",
    "allowedSkills",
    "allowedAgents",
    "extraSkills",
    "extraAgents",
    "apiKeys",
    "mcpServers",
    "sessionConfig",
    "resume",
    "forkSession",
];

/// Settings that a request can't change.
static OF_THE_FILE: &[&str] = &[
    "systemPrompt",
    "systemPromptAppend",
    "skillsDir",
    "templateSkills",
    "agents",
    "chat",
    "template",
    "network",
    "sandboxStart",
    "disconnectGraceSecs",
    "storeDurability",
    "modelAliases",
    "server",
    "local",
];

/// The prompt's limit, in Unicode scalar values.
const PROMPT_CHARS: usize = 1_000_000;

impl QueryRequest {
    /// Parses a body strictly: one JSON object, known fields, right types, within limits. `null` for a field
    /// that may be left out is the same as leaving it out.
    ///
    /// # Errors
    /// `INVALID_JSON` with line and column; else one answer with every fault of the body (up to 20):
    /// `VALIDATION_FAILED` or `PROVIDER_UNKNOWN`, or `NOT_IMPLEMENTED` if nothing else is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut request = Self::default();
        let mut faults = Faults::default();
        let of = |name: &str| FIELDS.iter().find(|(known, _)| *known == name);
        let root = json::parse(body, &|name| of(name).is_some(), &mut |at| {
            faults.add(at, || Wrong::new("is given twice"));
        });
        let root = root.map_err(|error| refused(body, &error))?;
        let Node::Object(fields) = &root else {
            let message = format!("the body must be an object, not {}", root.kind());
            return Err(invalid_json(message));
        };
        if !fields.iter().any(|(name, _)| name == "prompt") {
            faults.add("prompt", || Wrong::new("is required"));
        }
        for (name, value) in fields {
            let at = At::Name(&At::Document, name);
            let field = of(name);
            let known = field.is_some() || PLANNED.contains(&name.as_ref());
            if matches!(value, Node::Null) && known && name != "prompt" {
                // Typed clients send every field: null is an absent one.
                continue;
            }
            match field {
                Some((_, take)) => take(&mut request, value, &at, &mut faults),
                None if known => faults.planned(at, "is not implemented yet"),
                None => faults.add(at, || unknown_field(name)),
            }
        }
        faults.into_result().map(|()| request)
    }
}

fn invalid_json(message: impl fmt::Display) -> Problem {
    Problem::new(ErrorCode::InvalidJson, format!("Invalid JSON: {message}"))
}

/// Why a body could not be read.
fn refused(body: &[u8], error: &serde_json::Error) -> Problem {
    if error.is_data() {
        let message = format!("Validation failed: the body has {error}");
        return Problem::new(ErrorCode::ValidationFailed, message);
    }
    if without_bom(body).trim_ascii().is_empty() {
        return invalid_json("the body is empty");
    }
    if body.starts_with(b"@") {
        return invalid_json(error)
            .hint("curl reads a file only with -d @FILE, or --data-binary @FILE");
    }
    invalid_json(error)
}

fn unknown_field(name: &str) -> Wrong {
    if OF_THE_FILE.contains(&name) {
        return Wrong::new("is a setting of the server, not of a request")
            .hint(Some("set it in sandcaster.json".to_owned()));
    }
    // The older Python service had each key as a field of its own.
    if name.ends_with("_api_key") {
        return Wrong::new("is unknown").hint(Some(
            "keys are set in the server's environment, never sent".to_owned(),
        ));
    }
    let known = FIELDS.iter().map(|(known, _)| *known);
    let known = known
        .chain(PLANNED.iter().copied())
        .chain(OF_THE_FILE.iter().copied());
    Wrong::new("is unknown").hint(did_you_mean(name, known))
}

fn take_prompt(request: &mut QueryRequest, node: &Node<'_>, at: &At<'_>, faults: &mut Faults) {
    let text = check::text(node, &(1..=PROMPT_CHARS)).and_then(|text| {
        if text.trim().is_empty() {
            return Err(Wrong::new("must not be only blanks"));
        }
        Ok(text)
    });
    if let Some(text) = faults.note(at, text) {
        text.clone_into(&mut request.prompt);
    }
}

fn take_tools(request: &mut QueryRequest, node: &Node<'_>, at: &At<'_>, faults: &mut Faults) {
    let Node::Array(names) = node else {
        return faults.add(at, || Wrong::not(node, "an array of tool names"));
    };
    if names.len() > check::MOST_TOOLS {
        let message = format!("names {} tools (limit {})", names.len(), check::MOST_TOOLS);
        return faults.add(at, || Wrong::new(message));
    }
    let mut tools = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let at = At::Index(at, index);
        let Some(def) = faults.note(at, check::tool(name)) else {
            continue;
        };
        if def.built.is_none() {
            faults.planned(
                at,
                format!(
                    "names the tool `{}`, which is not implemented yet",
                    def.name
                ),
            );
        } else if !tools.contains(&def.name) {
            tools.push(def.name);
        }
    }
    request.allowed_tools = Some(tools);
}

fn take_provider(request: &mut QueryRequest, node: &Node<'_>, at: &At<'_>, faults: &mut Faults) {
    let Some(def) = faults.note(at, check::provider(node)) else {
        return;
    };
    if matches!(def.build, crate::llm::Build::NotYet) {
        let message = format!(
            "names the LLM provider `{}`, which is not implemented yet",
            def.name
        );
        faults.planned(at, message);
    }
    request.provider = Some(def.name);
}

fn take_backend(request: &mut QueryRequest, node: &Node<'_>, at: &At<'_>, faults: &mut Faults) {
    let Some(def) = faults.note(at, check::backend(node)) else {
        return;
    };
    if matches!(def.build, crate::sandbox::Build::NotYet) {
        let message = format!(
            "names the sandbox backend `{}`, which is not implemented yet",
            def.name
        );
        faults.planned(at, message);
    }
    request.sandbox_provider = Some(def.name);
}
