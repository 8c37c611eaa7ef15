//! The tools that a model can call: one table, one file per group, all written above the sandbox traits.

mod session;
mod types;

use crate::llm::ToolSpec;

pub use session::ShellSession;
pub use types::{Tool, ToolAnswer, ToolContext, ToolOutcome};

/// Every tool that a request may name, in the order in which the model sees them.
pub static TOOLS: &[ToolDef] = &[
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
    pub spec: fn() -> ToolSpec,
    /// What runs.
    pub tool: &'static dyn Tool,
}

impl std::fmt::Debug for ToolDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ToolDef")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl ToolDef {
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
