//! The tools that a model can call: one table, one file per group, all written above the sandbox traits.
//!
//! A call goes [`resolve_called`] → [`prepare`] → [`BuiltTool::call`]. Commands of ours in the sandbox are fixed
//! texts for a POSIX shell, with everything variable as an argument; what comes back is cleaned of escapes
//! and secrets, and bounded, before anyone sees it.

mod bash;
mod boundaries;
mod command;
mod edit;
mod facts;
mod grep;
mod image;
mod listing;
mod names;
mod nearest;
mod page;
mod piece;
mod place;
mod read;
mod regex;
mod replace;
mod room;
mod schema;
mod script;
mod search;
mod session;
mod state;
pub(crate) mod text;
mod types;
mod wrapper;
mod write;

use std::fmt::Write as _;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::chat::ToolSpec;

pub use facts::Facts;
pub(crate) use grep::fuzz_grep;
pub(crate) use listing::fuzz_listing;
pub use schema::{Prepared, example, prepare};
pub use session::ShellSession;
pub use text::shorten;
pub use types::{Failure, Tool, ToolAnswer, ToolContext};

use place::{fetch, store};

/// Every tool that a request may name, in the order in which the model sees them.
pub static TOOLS: &[ToolDef] = &[
    ToolDef::built("bash", &["Bash"], false, &bash::SPEC, &bash::Bash),
    ToolDef::built(
        "file_read",
        &["read_file", "Read"],
        true,
        &read::SPEC,
        &read::FileRead,
    ),
    ToolDef::built(
        "file_write",
        &["write_file", "Write"],
        false,
        &write::SPEC,
        &write::FileWrite,
    ),
    ToolDef::built("file_edit", &["Edit"], false, &edit::SPEC, &edit::FileEdit),
    ToolDef::built("glob", &["Glob"], true, &search::SPEC, &search::Glob),
    ToolDef::built("grep", &["Grep"], true, &grep::SPEC, &grep::Grep),
    ToolDef::planned("web_search", &["WebSearch"]),
    ToolDef::planned("web_fetch", &["WebFetch"]),
    ToolDef::planned("read_skill", &["Skill"]),
    ToolDef::planned("task", &["Task"]),
    ToolDef::planned("spawn_sandbox", &[]),
    ToolDef::planned("exec_in", &[]),
    ToolDef::planned("transfer_files", &[]),
    ToolDef::planned("kill_sandbox", &[]),
    ToolDef::planned("list_sandboxes", &[]),
];

/// A row of [`TOOLS`].
#[derive(Clone, Copy)]
pub struct ToolDef {
    /// Our name for it, on the wire and to the model.
    pub name: &'static str,
    /// Names that existing configs use for it, matched exactly.
    pub aliases: &'static [&'static str],
    /// Calls of it may run beside others.
    pub parallel_safe: bool,
    /// What it is made of; `None` for a tool that is known but not built yet.
    pub built: Option<BuiltTool>,
}

/// A tool that can run.
#[derive(Clone, Copy)]
pub struct BuiltTool {
    /// What the model sees.
    pub spec: &'static LazyLock<ToolSpec>,
    tool: &'static dyn Tool,
}

impl BuiltTool {
    /// Runs a call, as [`Tool::call`]. What happened to other programs for it is told behind its own words.
    ///
    /// # Errors
    /// As [`Tool::call`].
    pub async fn call(
        &self,
        args: Map<String, Value>,
        context: &ToolContext,
    ) -> Result<ToolAnswer, Failure> {
        let mut outcome = self.tool.call(args, context).await;
        let text = match &mut outcome {
            Ok(answer) => &mut answer.text,
            Err(Failure::Complaint(why)) => why,
            Err(Failure::Fatal(_) | Failure::Cancelled) => return outcome,
        };
        for note in context.session.take_notes() {
            let end = if text.ends_with('\n') { "" } else { "\n" };
            write!(text, "{end}[{note}]").ok();
        }
        outcome
    }
}

impl std::fmt::Debug for ToolDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ToolDef")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for BuiltTool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuiltTool").finish_non_exhaustive()
    }
}

impl ToolDef {
    const fn built(
        name: &'static str,
        aliases: &'static [&'static str],
        parallel_safe: bool,
        spec: &'static LazyLock<ToolSpec>,
        tool: &'static dyn Tool,
    ) -> Self {
        Self {
            name,
            aliases,
            parallel_safe,
            built: Some(BuiltTool { spec, tool }),
        }
    }

    const fn planned(name: &'static str, aliases: &'static [&'static str]) -> Self {
        Self {
            name,
            aliases,
            parallel_safe: false,
            built: None,
        }
    }
}

/// The row with this name or alias, matched exactly as configs write it.
pub fn tool(name: &str) -> Option<&'static ToolDef> {
    TOOLS
        .iter()
        .find(|def| def.name == name || def.aliases.contains(&name))
}

/// What a model meant by the name that it called.
#[derive(Clone, Copy, Debug)]
pub enum Called {
    /// A tool of this run.
    Tool(&'static ToolDef, &'static BuiltTool),
    /// A tool that exists, under our name, but not in this run.
    NotAllowed(&'static str),
    /// No tool at all.
    Unknown,
}

/// Maps the name that a model wrote to a tool of this run, whose tools are `enabled`.
///
/// Models drift to the names that they were trained on: case, aliases, a `functions.` prefix and blanks
/// don't matter here. In configs they do.
pub fn resolve_called(name: &str, enabled: &[&'static str]) -> Called {
    let trimmed = name.trim();
    let bare = trimmed
        .get(..10)
        .filter(|prefix| prefix.eq_ignore_ascii_case("functions."))
        .and_then(|_| trimmed.get(10..))
        .unwrap_or(trimmed)
        .trim();
    let meant = TOOLS.iter().find(|def| {
        def.name.eq_ignore_ascii_case(bare)
            || def
                .aliases
                .iter()
                .any(|alias| alias.eq_ignore_ascii_case(bare))
    });
    match meant {
        None => Called::Unknown,
        Some(def) => match &def.built {
            Some(built) if enabled.contains(&def.name) => Called::Tool(def, built),
            _ => Called::NotAllowed(def.name),
        },
    }
}

#[cfg(test)]
#[path = "mod_tests.rs"]
mod tests;
