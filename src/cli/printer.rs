//! The only writer to stdout and stderr.

use std::io::{self, IsTerminal, Write};

use crate::show::deceives;

/// Writes answers and notes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Printer {
    out_is_terminal: bool,
    err_is_terminal: bool,
}

impl Printer {
    pub(super) fn new() -> Self {
        Self {
            out_is_terminal: io::stdout().is_terminal(),
            err_is_terminal: io::stderr().is_terminal(),
        }
    }

    /// Whether notes go to a terminal.
    pub(super) const fn notes_on_terminal(self) -> bool {
        self.err_is_terminal
    }

    /// Text to stdout as it is, at once; on a terminal without control characters, which a model or
    /// command could use to rewrite the screen.
    pub(super) fn text(self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.out_is_terminal {
            out.write_all(visible(text).as_bytes())?;
        } else {
            out.write_all(text.as_bytes())?;
        }
        out.flush()
    }

    /// A line to stdout.
    pub(super) fn line(self, text: &str) -> io::Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// A line to stderr, without control characters: notes quote services and models, and end up on terminals
    /// by way of files too. Nobody reading it is no fault.
    #[expect(
        clippy::unused_self,
        reason = "only who has the printer writes, and text() needs to know its terminal"
    )]
    pub(super) fn note(self, text: &str) {
        drop(writeln!(io::stderr().lock(), "{}", visible(text)));
    }
}

fn visible(text: &str) -> String {
    text.chars()
        .filter(|c| !deceives(*c) || matches!(c, '\n' | '\t'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_a_terminal() {
        assert_eq!(visible("a\u{1b}[2Jb\u{9b}1mc\td\n"), "a[2Jb1mc\td\n");
    }
}
