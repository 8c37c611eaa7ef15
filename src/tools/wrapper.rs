//! The text around a command, and how its end is told from its output.
//!
//! A command's end is a fact, never a guess: the outer shell prints an end record with a nonce that only
//! it knows. End of file won't do, since a program left in the background holds the pipe open.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Deadline;
use crate::sandbox::{ExecSpec, Sandbox, Script};

use super::facts::Facts;

/// `$1` nonce, `$2` output file, `$3` marker, `$4` directory, `$5` side file, `$6` start directory,
/// `$7` shell, `$8` command, `$9` inner text.
///
/// The outer shell has no marker, so that a sweep leaves it alive to print the record. The bound on the
/// output file holds for `tee` alone, which goes on to the pipe when the file is full, and to the file
/// when nobody reads the pipe any more. What the outer shell itself says ("Killed") goes to its standard
/// error: for that the redirection stands within the parentheses, since dash redirects itself otherwise.
const FOREGROUND: &str = r#"
mkdir -p "${2%/*}" 2>/dev/null
{ true >"$2"; } 2>/dev/null
moved=0
cd "$4" 2>/dev/null || { moved=1; cd "$6" 2>/dev/null || cd /; }
{
( SANDCASTER_CALL=$3; export SANDCASTER_CALL; exec "$7" -c "$9" "$7" "$5" "$8" </dev/null 2>&1 )
code=$?
dir=$(cat "$5" 2>/dev/null)
rm -f "$5"
printf '\n\036%s %s %s %s\036' "$1" "$code" "$moved" "$dir"
} | { trap '' PIPE XFSZ; ulimit -f 20480; exec tee -a "$2"; } 2>/dev/null
"#;

/// Arguments as above. The program's output goes to the file alone, so it holds no pipe. The record has
/// `running` in place of the exit code if it still runs after a second, and the process id at its end.
const BACKGROUND: &str = r#"
mkdir -p "${2%/*}" 2>/dev/null
moved=0
cd "$4" 2>/dev/null || { moved=1; cd "$6" 2>/dev/null || cd /; }
( trap '' HUP; SANDCASTER_CALL=$3; export SANDCASTER_CALL; exec "$7" -c "$9" "$7" /dev/null "$8" ) </dev/null >"$2" 2>&1 &
pid=$!
n=0
while [ "$n" -lt 10 ] && kill -0 "$pid" 2>/dev/null; do
sleep 0.1 2>/dev/null || { sleep 1; n=10; }
n=$((n+1))
done
if kill -0 "$pid" 2>/dev/null; then code=running; else wait "$pid"; code=$?; fi
head -c 4096 "$2" 2>/dev/null
printf '\n\036%s %s %s %s\036' "$1" "$code" "$moved" "$pid"
"#;

/// `$1` side file, `$2` command. The command sees no positional parameters and no text of ours.
const INNER: &str = r#"trap "pwd -P >'$1' 2>/dev/null" EXIT
sandcaster_command=$2
shift 2
eval "$sandcaster_command""#;

/// `$1` marker, `$2` tenths of a second between TERM and KILL. One `grep` looks at all processes, however
/// many there are: the marker is random enough to be found anywhere in an environment. (Not with `-F`, which
/// in `BusyBox` looks no further than the first NUL.) The kill is repeated, since what is being killed may be
/// starting others.
const SWEEP: &str = r#"
marked() { grep -l "SANDCASTER_CALL=$1" /proc/[0-9]*/environ 2>/dev/null | tr -cd '0-9\n'; }
n=0
if [ "$2" -gt 0 ]; then
p=$(marked "$1")
[ -n "$p" ] || exit 0
kill -TERM $p 2>/dev/null
while [ "$n" -lt "$2" ] && kill -0 $p 2>/dev/null; do
sleep 0.1 2>/dev/null || { sleep 1; n=$((n+9)); }
n=$((n+1))
done
fi
n=0
while [ "$n" -lt 10 ]; do
p=$(marked "$1")
[ -n "$p" ] || exit 0
kill -KILL $p 2>/dev/null
n=$((n+1))
done
"#;

/// Cuts the end record off an output file; `$1` file, `$2` bytes that stay. `tee` appends, so what a program
/// in the background prints later follows without a gap.
const TRIM: &str = r#"dd if=/dev/null of="$1" bs=1 seek="$2" 2>/dev/null"#;

/// Where a command runs and what is kept of it.
#[derive(Debug)]
pub(super) struct Wrapped<'a> {
    pub(super) command: &'a str,
    pub(super) cwd: &'a str,
    pub(super) start_dir: &'a str,
    pub(super) output: &'a str,
    pub(super) facts: &'a Facts,
    /// In the environment of every process of the call: 128 random bits.
    pub(super) marker: &'a str,
    /// In the end record: 128 random bits, known to the outer shell only.
    pub(super) nonce: &'a str,
    pub(super) background: bool,
}

impl Wrapped<'_> {
    pub(super) fn spec(&self) -> ExecSpec {
        let text = if self.background {
            BACKGROUND
        } else {
            FOREGROUND
        };
        let side = format!("{}.cwd", self.output);
        let argv = [
            "sh",
            "-c",
            text,
            "sandcaster",
            self.nonce,
            self.output,
            self.marker,
            self.cwd,
            &side,
            self.start_dir,
            &self.facts.shell,
            self.command,
            INNER,
        ];
        ExecSpec {
            argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            env: environment(self.facts),
            cwd: "/".to_owned(),
            ..ExecSpec::default()
        }
    }
}

/// What keeps programs from waiting for a keyboard, paging or colouring; never a key of ours.
fn environment(facts: &Facts) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = [
        ("PAGER", "cat"),
        ("GIT_PAGER", "cat"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("PIP_PROGRESS_BAR", "off"),
        ("TQDM_DISABLE", "1"),
        ("NO_COLOR", "1"),
        ("TERM", "dumb"),
        ("PYTHONUNBUFFERED", "1"),
        ("CI", "1"),
        ("LANG", "C.UTF-8"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    if let Some(path) = &facts.path {
        env.insert("PATH".to_owned(), path.clone());
    }
    env
}

/// Ends every process that carries `marker`: TERM, `grace` for them to end, KILL. Bounded by `grace` and
/// three seconds more.
pub(super) async fn sweep(sandbox: &dyn Sandbox, marker: &str, grace: Duration) {
    let tenths = (grace.as_millis() / 100).to_string();
    let limit = Deadline::after(grace + Duration::from_secs(3));
    // A sweep that fails is followed by the kill of the process group, whatever the reason.
    drop(
        Script {
            text: SWEEP,
            args: vec![marker, &tenths],
            ..Script::default()
        }
        .run(sandbox, limit)
        .await,
    );
}

/// Cuts the end record off `output`, of which `bytes` came before it. For at most a second.
pub(super) async fn trim(sandbox: &dyn Sandbox, output: &str, bytes: u64) {
    let bytes = bytes.to_string();
    // A record that stays in the file is unsightly, not wrong.
    drop(
        Script {
            text: TRIM,
            args: vec![output, &bytes],
            ..Script::default()
        }
        .run(sandbox, Deadline::after(Duration::from_secs(1)))
        .await,
    );
}

/// What the outer shell says at the end of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EndRecord {
    /// The exit code; `None` for a background program that still runs.
    pub(super) code: Option<i32>,
    /// The directory to start in was gone.
    pub(super) moved: bool,
    /// The directory at the end, if it is known; of a background program the process id.
    pub(super) rest: String,
}

/// Finds the end record in output that comes in pieces.
#[derive(Debug)]
pub(super) struct RecordScanner {
    pattern: Vec<u8>,
    held: Vec<u8>,
    in_record: bool,
}

/// A record longer than this is cut: its directory is lost then, not its code.
const LONGEST_RECORD: usize = 8 * 1024;

impl RecordScanner {
    pub(super) fn new(nonce: &str) -> Self {
        Self {
            pattern: format!("\n\u{1e}{nonce} ").into_bytes(),
            held: Vec::new(),
            in_record: false,
        }
    }

    /// Takes the next bytes; gives those that are output for certain, and the record once it is whole.
    /// After that everything is void.
    pub(super) fn push(&mut self, bytes: &[u8]) -> (Vec<u8>, Option<EndRecord>) {
        self.held.extend_from_slice(bytes);
        let mut output = Vec::new();
        if !self.in_record {
            let pattern = &self.pattern;
            if let Some(at) = find(&self.held, pattern) {
                output.extend(self.held.drain(..at));
                self.held.drain(..pattern.len());
                self.in_record = true;
            } else {
                let keep = (1..pattern.len().min(self.held.len() + 1))
                    .rev()
                    .find(|len| self.held.ends_with(pattern.get(..*len).unwrap_or_default()))
                    .unwrap_or(0);
                output.extend(self.held.drain(..self.held.len() - keep));
            }
        }
        let record = self.in_record.then(|| self.record()).flatten();
        (output, record)
    }

    /// The end of the stream without a record: what was held back is output.
    pub(super) fn finish(self) -> Vec<u8> {
        if self.in_record {
            Vec::new()
        } else {
            self.held
        }
    }

    fn record(&self) -> Option<EndRecord> {
        let end = self.held.iter().position(|b| *b == 0x1e);
        let cut = end.is_none() && self.held.len() > LONGEST_RECORD;
        let end = end.or_else(|| cut.then_some(LONGEST_RECORD))?;
        let text = String::from_utf8_lossy(self.held.get(..end).unwrap_or_default()).into_owned();
        let mut parts = text.splitn(3, ' ');
        let code = match parts.next() {
            Some("running") => None,
            code => Some(code.and_then(|code| code.parse().ok()).unwrap_or(1)),
        };
        Some(EndRecord {
            code,
            moved: parts.next() == Some("1"),
            rest: parts.next().filter(|_| !cut).unwrap_or_default().to_owned(),
        })
    }
}

/// Where `pattern` begins, whose second byte is the rare one.
fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    let rare = pattern.get(1)?;
    let mut from = 1;
    loop {
        let at = from + text.get(from..)?.iter().position(|b| b == rare)?;
        if text.get(at - 1..)?.starts_with(pattern) {
            return Some(at - 1);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_found_however_it_is_cut() {
        let stream = b"out\n\x1e\nput\n\x1en0nce 3 1 /home/a b\x1e late".as_slice();
        for cut in 0..stream.len() {
            let mut scanner = RecordScanner::new("n0nce");
            let (a, b) = stream.split_at(cut);
            let (mut output, first) = scanner.push(a);
            let (more, second) = scanner.push(b);
            output.extend(more);
            assert_eq!(output, b"out\n\x1e\nput", "cut at {cut}");
            let record = first.or(second).unwrap();
            assert_eq!((record.code, record.moved), (Some(3), true));
            assert_eq!(record.rest, "/home/a b");
        }
    }

    #[test]
    fn a_forged_record_is_output() {
        let mut scanner = RecordScanner::new("right");
        let (mut output, record) = scanner.push(b"x\n\x1ewrong 0 0 /\x1e\n\x1eri");
        assert_eq!(record, None);
        output.extend(scanner.finish());
        assert_eq!(output, b"x\n\x1ewrong 0 0 /\x1e\n\x1eri");
    }
}
