//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::config::Overrides;
use crate::show::nearest;

/// Runs AI agents in isolated sandboxes and streams what they do.
#[derive(Debug, Parser)]
#[command(name = "sandcaster", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
    /// Settings file [default: sandcaster.json, if there is one]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Settings")]
    config: Option<PathBuf>,
    /// Where runs are kept [default: .sandcaster]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Settings")]
    data_dir: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  sandcaster serve --port 8000             the API on http://127.0.0.1:8000
  sandcaster \"Summarise README.md\" -f README.md
                                           one run, the answer on stdout
  sandcaster query -m demo '$ uname -a'    no LLM and no key: runs the line in a sandbox
  sandcaster query --json \"…\" | jq .type   one event per line
  sandcaster doctor                        what is set up, and what is missing

Settings: flags, then the environment, .env, and sandcaster.json in the working directory.
Exit codes: 0 done, 1 the run or server failed, 2 wrong usage or settings.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve the HTTP API
    Serve(Serve),
    /// Run one prompt here; `query` may be left out
    Query(Query),
    /// Say what is configured and what can be used, without showing a secret
    Doctor,
    /// Have E2B report sandboxes that die to this server
    #[command(subcommand, after_help = WEBHOOK_EXAMPLES)]
    Webhook(WebhookCommand),
}

const WEBHOOK_EXAMPLES: &str = "\
Examples:
  sandcaster webhook register https://agents.example.com
  sandcaster webhook list
  sandcaster webhook delete 0b4c6fd2-…

E2B_API_KEY names the account; SANDCASTER_WEBHOOK_SECRET is what E2B signs with and the server checks.";

#[derive(Debug, Subcommand)]
pub(super) enum WebhookCommand {
    /// Have events sent to a server, signed with its secret; done again, it changes the secret
    Register {
        /// The server's public address, as E2B reaches it (https)
        url: String,
    },
    /// Show the account's webhooks
    List,
    /// Delete a webhook
    Delete {
        /// Its id, as `list` shows it
        id: String,
    },
}

const SERVE_EXAMPLES: &str = "\
Examples:
  sandcaster serve --port 8000
  SANDCASTER_API_KEY=… sandcaster serve --host 0.0.0.0 --require-auth

There is no short form of --host: -h is this help.";

#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES)]
#[expect(
    clippy::doc_markdown,
    reason = "shown by --help, where backticks are noise"
)]
pub(super) struct Serve {
    /// Port; 0 takes a free one [default: SANDCASTER_PORT, PORT, server.port, else 3000]
    #[arg(short, long)]
    port: Option<u16>,
    /// Address to listen on; 0.0.0.0 for all [default: SANDCASTER_HOST, server.host, else 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Refuse to start without SANDCASTER_API_KEY
    #[arg(long)]
    require_auth: bool,
}

const QUERY_EXAMPLES: &str = "\
Examples:
  sandcaster query \"Compare a.csv and b.csv\" -f a.csv -f b.csv
  sandcaster query -m opus -t 900 --max-turns 50 \"…\"
  sandcaster query -m demo '$ uname -a'

The answer goes to stdout as it comes; tool calls, warnings and cost to stderr.
Ctrl-C cancels the run; the exit code is 1 if it ends in an error.";

#[derive(Debug, Args)]
#[command(after_help = QUERY_EXAMPLES)]
pub(super) struct Query {
    /// What the agent is to do
    pub(super) prompt: String,
    /// Model: an alias or a full id
    #[arg(short, long)]
    pub(super) model: Option<String>,
    /// LLM provider
    #[arg(long)]
    pub(super) provider: Option<String>,
    /// Sandbox backend
    #[arg(long)]
    pub(super) sandbox_provider: Option<String>,
    /// File to give to the agent (repeatable)
    #[arg(short, long = "file", value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    /// Seconds until the run is ended
    #[arg(short, long, value_name = "SECONDS")]
    pub(super) timeout: Option<u64>,
    /// Most turns of the model
    #[arg(long, value_name = "N")]
    pub(super) max_turns: Option<u64>,
    /// Template or image of the sandbox
    #[arg(short = 'T', long, value_name = "NAME")]
    pub(super) template: Option<String>,
    /// Print every event as one line of JSON
    #[arg(long, alias = "no-tui")]
    pub(super) json: bool,
}

/// What became of the arguments.
pub(super) enum Parsed {
    Command(Box<Cli>),
    /// Help or version, asked for.
    Text(String),
    /// Wrong usage, and why.
    Refused(String),
}

/// Commands that the older sandcaster has, and this one not yet.
static PLANNED: &[&str] = &["init", "templates", "session", "chat", "runs"];
static COMMANDS: &[&str] = &["serve", "query", "doctor", "webhook", "help"];

/// Reads the arguments; the first is the program's name. A first word that is no command and no flag is
/// a prompt for `query`.
pub(super) fn parse(mut arguments: Vec<OsString>) -> Parsed {
    if let Some(first) = arguments.get(1).and_then(|first| first.to_str()) {
        if first == "serve" && asks_for_host_with_h(&arguments) {
            return Parsed::Refused(
                "error: -h is help; --host has no short form: use --host ADDRESS".to_owned(),
            );
        }
        if PLANNED.contains(&first) {
            return Parsed::Refused(format!(
                "error: the command `{first}` is not implemented yet\n\
                 To send it as a prompt: sandcaster query {first}"
            ));
        }
        let word = !first.starts_with('-') && !COMMANDS.contains(&first);
        let alone = word && !first.contains(char::is_whitespace);
        if let Some(command) = alone
            .then(|| nearest(first, COMMANDS.iter().copied()))
            .flatten()
        {
            return Parsed::Refused(format!(
                "error: there is no command `{first}`; did you mean `{command}`?\n\
                 To send it as a prompt: sandcaster query {first}"
            ));
        }
        if word {
            arguments.insert(1, OsString::from("query"));
        }
    }
    match Cli::try_parse_from(arguments) {
        Ok(cli) => Parsed::Command(Box::new(cli)),
        Err(error) => {
            let text = error.render().to_string();
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Parsed::Text(text),
                _ => Parsed::Refused(text),
            }
        }
    }
}

/// `serve -h 0.0.0.0`, as the older sandcaster took it.
fn asks_for_host_with_h(arguments: &[OsString]) -> bool {
    arguments.windows(2).any(|pair| {
        let [flag, value] = pair else { return false };
        flag == "-h" && value.to_str().is_some_and(|value| !value.starts_with('-'))
    })
}

impl Cli {
    /// What the flags say over the settings.
    pub(super) fn overrides(&self) -> Overrides {
        let mut overrides = Overrides {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            ..Overrides::default()
        };
        match &self.command {
            Command::Serve(serve) => {
                overrides.host.clone_from(&serve.host);
                overrides.port = serve.port;
                overrides.require_auth = serve.require_auth;
            }
            Command::Query(query) => overrides.template.clone_from(&query.template),
            Command::Doctor | Command::Webhook(_) => {}
        }
        overrides
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> Parsed {
        let words = std::iter::once("sandcaster").chain(line.iter().copied());
        parse(words.map(OsString::from).collect())
    }

    #[test]
    fn a_bare_prompt_is_a_query() {
        for line in [
            &["do the thing", "-m", "opus"][..],
            &["query", "do the thing", "-m", "opus"],
        ] {
            let Parsed::Command(cli) = parsed(line) else {
                panic!("{line:?} was refused")
            };
            let Command::Query(query) = cli.command else {
                panic!("{line:?} is no query")
            };
            assert_eq!(query.prompt, "do the thing");
            assert_eq!(query.model.as_deref(), Some("opus"));
        }
    }

    #[test]
    fn slips_are_not_sent_to_a_model() {
        for line in [
            &["serv"][..],
            &["doctr"],
            &["init", "research-brief"],
            &["serve", "-h", "0.0.0.0"],
            &["serve", "--port", "70000"],
            &["query"],
            &[],
        ] {
            assert!(matches!(parsed(line), Parsed::Refused(_)), "{line:?}");
        }
    }

    #[test]
    fn the_flags_of_the_older_sandcaster_are_taken() {
        let Parsed::Command(cli) = parsed(&[
            "hi",
            "--no-tui",
            "-T",
            "base",
            "-f",
            "a",
            "-f",
            "b",
            "-t",
            "60",
            "--max-turns",
            "3",
        ]) else {
            panic!("refused")
        };
        assert_eq!(cli.overrides().template.as_deref(), Some("base"));
        let Command::Query(query) = cli.command else {
            panic!("no query")
        };
        assert!(query.json);
        assert_eq!(query.files.len(), 2);
    }

    #[test]
    fn help_and_version_are_answers() {
        for line in [
            &["--help"][..],
            &["-h"],
            &["serve", "-h"],
            &["--version"],
            &["help"],
        ] {
            assert!(matches!(parsed(line), Parsed::Text(_)), "{line:?}");
        }
    }
}
