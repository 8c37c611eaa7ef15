//! The body of `POST /query` as sent (API reference, POST /query), checked strictly.

use super::check;
use super::check::Wrong;
use super::faults::Faults;
use super::json::{self, Node, Path};
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
type Take = fn(&mut QueryRequest, &Node, Path, &mut Faults);

/// What can be sent.
static FIELDS: &[(&str, Take)] = &[
    ("prompt", take_prompt),
    ("model", |request, node, path, faults| {
        request.model = faults.note(path, check::model(node)).map(str::to_owned);
    }),
    ("maxTurns", |request, node, path, faults| {
        request.max_turns = faults
            .note(path, check::integer(node, &check::TURNS))
            .and_then(|turns| u32::try_from(turns).ok());
    }),
    ("timeout", |request, node, path, faults| {
        request.timeout_secs = faults.note(path, check::integer(node, &check::TIMEOUT_SECS));
    }),
    ("files", |request, node, path, faults| {
        request.files = request_files::take(node, &path, faults);
    }),
    ("allowedTools", take_tools),
    ("provider", take_provider),
    ("sandboxProvider", take_backend),
    ("thinkingLevel", |request, node, path, faults| {
        request.thinking_level = faults.note(path, check::thinking(node));
    }),
    ("maxBudgetUsd", |request, node, path, faults| {
        request.max_budget = faults.note(path, check::usd(node));
    }),
    ("background", |request, node, path, faults| {
        request.background = faults.note(path, check::boolean(node)).unwrap_or_default();
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
        let root = json::parse(body).map_err(|error| invalid_json(body, &error))?;
        let Node::Object(fields) = &root else {
            return Err(Problem::new(
                ErrorCode::InvalidJson,
                format!(
                    "Invalid JSON: the body must be an object, not {}",
                    root.describe()
                ),
            ));
        };
        let mut request = Self::default();
        let mut faults = Faults::default();
        for path in json::repeated_names(&root) {
            faults.add(path, Wrong::new("is given twice"));
        }
        if !fields.kept.iter().any(|(name, _)| name == "prompt") {
            faults.add(Path::field("prompt"), Wrong::new("is required"));
        }
        for (name, value) in &fields.kept {
            let path = Path::field(name);
            let field = FIELDS.iter().find(|(known, _)| known == name);
            let known = field.is_some() || PLANNED.contains(&name.as_str());
            if matches!(value, Node::Null) && known && name != "prompt" {
                // Typed clients send every field: null is an absent one.
                continue;
            }
            match field {
                Some((_, take)) => take(&mut request, value, path, &mut faults),
                None if known => faults.planned(path, "is not implemented yet"),
                None => faults.add_with(path, || unknown_field(name)),
            }
        }
        if fields.kept.len() < fields.total {
            faults.add(Path::default(), Wrong::new("has too many values"));
        }
        faults.into_result().map(|()| request)
    }
}

fn invalid_json(body: &[u8], error: &serde_json::Error) -> Problem {
    if without_bom(body).trim_ascii().is_empty() {
        return Problem::new(ErrorCode::InvalidJson, "Invalid JSON: the body is empty");
    }
    let problem = Problem::new(ErrorCode::InvalidJson, format!("Invalid JSON: {error}"));
    if body.starts_with(b"@") {
        return problem.hint("curl reads a file only with -d @FILE, or --data-binary @FILE");
    }
    problem
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

fn take_prompt(request: &mut QueryRequest, node: &Node, path: Path, faults: &mut Faults) {
    let text = check::text(node, &(1..=PROMPT_CHARS)).and_then(|text| {
        if text.trim().is_empty() {
            return Err(Wrong::new("must not be only blanks"));
        }
        Ok(text)
    });
    if let Some(text) = faults.note(path, text) {
        text.clone_into(&mut request.prompt);
    }
}

fn take_tools(request: &mut QueryRequest, node: &Node, path: Path, faults: &mut Faults) {
    let Node::Array(names) = node else {
        let message = format!("must be an array of tool names, not {}", node.describe());
        return faults.add(path, Wrong::new(message));
    };
    if names.total > check::MOST_TOOLS {
        let message = format!("names {} tools (limit {})", names.total, check::MOST_TOOLS);
        return faults.add(path, Wrong::new(message));
    }
    let mut tools = Vec::new();
    for (index, name) in names.kept.iter().enumerate() {
        let path = path.index(index);
        let Some(def) = faults.note(path.clone(), check::tool(name)) else {
            continue;
        };
        if def.built.is_none() {
            faults.planned(
                path,
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

fn take_provider(request: &mut QueryRequest, node: &Node, path: Path, faults: &mut Faults) {
    let Some(def) = faults.note(path.clone(), check::provider(node)) else {
        return;
    };
    if matches!(def.build, crate::llm::Build::NotYet) {
        let message = format!(
            "names the LLM provider `{}`, which is not implemented yet",
            def.name
        );
        faults.planned(path, message);
    }
    request.provider = Some(def.name);
}

fn take_backend(request: &mut QueryRequest, node: &Node, path: Path, faults: &mut Faults) {
    let Some(def) = faults.note(path.clone(), check::backend(node)) else {
        return;
    };
    if matches!(def.build, crate::sandbox::Build::NotYet) {
        let message = format!(
            "names the sandbox backend `{}`, which is not implemented yet",
            def.name
        );
        faults.planned(path, message);
    }
    request.sandbox_provider = Some(def.name);
}
