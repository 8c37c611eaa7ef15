//! The text around a command, and how its end is told from its output.
//!
//! A command's end is a fact, never a guess: the outer shell prints an end record with a nonce. That guards against
//! accidents, not against a command that wants to imitate it, which can read the nonce in `/proc`. End of file won't
//! do, since a program left in the background holds the pipe open. What goes on around the command is nothing that
//! the command or its messages should show.

use std::collections::BTreeMap;
use std::time::Duration;

use memchr::memmem;

use crate::clock::Deadline;
use crate::sandbox::{ExecSpec, Sandbox, Script};
use crate::show::one_line;

use super::facts::Facts;

/// `$1` nonce, `$2` output file, `$3` marker, `$4` directory, `$5` side file, `$6` start directory,
/// `$7` shell, `$8` command, `$9` inner text, `${10}` a file with the command if it is long, `${11}` a line
/// end; then the output files of earlier calls, newest first.
///
/// What is ours and was replaced by a link, a pipe or a directory is removed: a link would lead elsewhere, opening a pipe
/// waits for ever. Empties the oldest of those if all of them together are too large (a program that still writes to one
/// goes on at its beginning). That no process can be started ends the shell, which must not say so to a standard
/// error that is thrown away. Goes to the directory. Prints the begin record to standard output alone, not
/// to the file: the outer shell's process id, whether the output can be kept, the numbers of the files that
/// were emptied, the shell's line in `/proc`.
macro_rules! prologue {
    () => {
        r#"
for sc_dir in "${2%/*/*}" "${2%/*}"; do
[ -d "$sc_dir" ] && [ ! -L "$sc_dir" ] || ( { rm -rf "$sc_dir"; mkdir -p "$sc_dir"; } 2>/dev/null )
done
sc_kept=0 sc_out=/dev/null
for sc_file in "$2" "$5"; do
if [ -L "$sc_file" ] || [ -e "$sc_file" ] && [ ! -f "$sc_file" ]; then ( rm -rf "$sc_file" 2>/dev/null ); fi
done
[ -L "$2" ] || [ -e "$2" ] && [ ! -f "$2" ] || { true >"$2" && sc_kept=1 sc_out=$2; } 2>/dev/null
sc_emptied=
[ $# -le 11 ] || sc_emptied=$(
shift 11
for path do
if [ -f "$path" ] && [ ! -L "$path" ]; then set -- "$@" "$path"; fi
shift
done
[ $# -gt 0 ] || exit 0
wc -c "$@" 2>/dev/null | {
sum=0
while read -r size path; do
case $path in /*) ;; *) continue;; esac
sum=$((sum+size))
if [ "$size" -gt 0 ] && [ "$sum" -gt 67108864 ]; then
path_end=${path##*-}
{ true >"$path" && printf '%s,' "${path_end%.txt}"; } 2>/dev/null
fi
done
}
)
sc_moved=-
cd "$4" 2>/dev/null || {
sc_moved=gone
[ ! -d "$4" ] || sc_moved=closed
cd "$6" 2>/dev/null || { cd /; sc_moved=$sc_moved,root; }
}
unset OLDPWD
sc_self=
{ read -r sc_self </proc/self/stat; } 2>/dev/null
printf '\036%s %s %s %s %s\036' "$1" "$$" "$sc_kept" "$sc_emptied" "${sc_self##*) }"
"#
    };
}

/// The outer shell has no marker, so that a sweep leaves it alive to print the record. The bound on the
/// output file holds for `tee` alone, which goes on to the pipe when the file is full, and to the file
/// when nobody reads the pipe any more. What the outer shell itself says ("Killed") goes to its standard
/// error: for that the redirection stands within the parentheses, since dash redirects itself otherwise.
/// The side file has a dot in it until the command is begun; it is read without another program, which a sweep could
/// end, and removed after the record, which must not depend on it. It is where there is room for it: a full `/tmp` must
/// not lose the directory, nor put a file of ours among the model's, if there is another place.
const FOREGROUND: &str = concat!(
    prologue!(),
    r#"
for sc_side in "$5" "/dev/shm/.${5##*/}" "${HOME-}/.${5##*/}"; do
if [ -L "$sc_side" ] || [ -e "$sc_side" ]; then ( rm -rf "$sc_side" 2>/dev/null ); fi
{ echo . >"$sc_side"; } 2>/dev/null && break
( rm -f "$sc_side" 2>/dev/null )
done
{
( { echo - >|"$sc_side"; } 2>/dev/null; SANDCASTER_CALL=$3; export SANDCASTER_CALL; exec "$7" -c "$9" "$7" "$sc_side" "$8" "${10}" "${11}" </dev/null 2>&1 )
sc_code=$?
sc_dir=
[ ! -f "$sc_side" ] || { IFS= read -r sc_dir && ! IFS= read -r sc_more || sc_dir=; } <"$sc_side"
printf '\n\036%s %s %s %s\036' "$1" "$sc_code" "$sc_moved" "$sc_dir"
rm -f "$sc_side"
} | {
trap '' PIPE XFSZ
ulimit -f 20480
command -v tee >/dev/null && exec tee -a "$sc_out"
exec cat
} 2>/dev/null
"#
);

/// The program's output goes to the file alone, so it holds no pipe of the call, through `tee`, for which the bound
/// on the file holds as above: what is beyond it is thrown away, and the program goes on. It is appended, so that
/// emptying the file works. The named pipe between them is open at both ends, and has lost its name, before either
/// is begun: none waits for the other. Where there can't be one, nothing bounds the file.
///
/// The record has `running` in place of the exit code if it still runs after a second, and the process
/// id at its end (also when nothing more can be started, so by a trap): with a minus, where the program leads a group, so that all of it can be ended.
const BACKGROUND: &str = concat!(
    prologue!(),
    r#"
sc_own= sc_reader=
command -v setsid >/dev/null 2>&1 && sc_own=setsid
if [ "$sc_kept" = 1 ] && ( mkfifo "$5" 2>/dev/null ) && { command exec 3<>"$5" 4<"$5" 5>"$5" 3>&-; } 2>/dev/null; then
rm -f "$5"
( trap '' HUP PIPE XFSZ; ulimit -f 20480; command -v tee >/dev/null && exec tee -a "$2"; exec cat >>"$2" ) <&4 4<&- 5>&- >/dev/null 2>&1 &
sc_reader=$!
else
exec 5>>"$sc_out"
fi
( trap '' HUP; SANDCASTER_CALL=$3; export SANDCASTER_CALL; exec $sc_own "$7" -c "$9" "$7" /dev/null "$8" "${10}" "${11}" ) </dev/null >&5 2>&1 4<&- 5>&- &
sc_pid=$!
exec 4<&- 5>&-
trap 'if kill -0 "$sc_pid" 2>/dev/null; then sc_code=running; else wait "$sc_pid"; sc_code=$?; fi
printf "\n\036%s %s %s %s\036" "$1" "$sc_code" "$sc_moved" "${sc_own:+-}$sc_pid"' EXIT
sc_n=0
while [ "$sc_n" -lt 10 ] && { kill -0 "$sc_pid" || kill -0 $sc_reader; } 2>/dev/null; do
sleep 0.1 2>/dev/null || { sleep 1; sc_n=10; }
sc_n=$((sc_n+1))
done
[ ! -f "$2" ] || head -c 8192 "$2" 2>/dev/null
exit 0
"#
);

/// `$1` side file, `$2` command, or `$3` a file with it, `$4` a line end. On one line, for the shell counts the
/// command's lines from here; `BusyBox` counts from zero. The command sees no positional parameters. The
/// directory is written at the end by itself and once more by the trap: a command may have a trap of its own,
/// or end by `exit`. A program of another call may have removed the file: that is no command that does nothing.
const INNER: &str = r#"sandcaster_side=$1 sandcaster_command=$2; trap '{ command pwd -P >|"$sandcaster_side" || :; } 2>/dev/null' EXIT; if [ -n "$3" ]; then sandcaster_command=$(cat "$3") && [ -n "$sandcaster_command" ] || { echo "sandcaster: the command is too long for an argument, and the file that it was put into can't be read any more: nothing of it was run"; exit 126; }; rm -f "$3"; fi; case $LINENO in 0) sandcaster_command=$4$sandcaster_command;; esac; shift 4; eval "$sandcaster_command"; { sandcaster_code=$?; set +exv; command pwd -P >|"$sandcaster_side"; } 2>/dev/null; exit "$sandcaster_code""#;

/// `$1` marker, `$2` tenths of a second between TERM and KILL, `$3` the outer shell, `$4` its start in ticks.
///
/// What is ended: every process with the marker in its environment (random enough to be found anywhere in
/// it; not with `-F`, which in `BusyBox` looks no further than the first NUL); what is in the session or the
/// group that the outer shell leads; what descends from its children, which themselves live to print the
/// record; and what descends from all of these, also when they are gone. One `grep` each looks at all
/// processes, however many there are. The kill is repeated, since what is being killed may be starting
/// others.
///
/// Prints what is left then, a process a line: also orphans that are younger than the call and could have
/// been its, which nobody can tell. A look that could not be begun, which sees not even itself, is no look at nothing. No here-document, for which a shell may want a file in `/tmp`.
const SWEEP: &str = r#"
[ -r /proc/self/stat ] || exit 1
m=$1 t=$2 outer=${3:--} begun=${4:-9223372036854775807} known=
look() {
queue="$known $(grep -l "SANDCASTER_CALL=$m" /proc/[0-9]*/environ 2>/dev/null | tr -c '0-9\n' ' ')"
grep -s ') ' /proc/[0-9]*/stat | {
top= orphans= found= left= seen_any=
set -f
while IFS= read -r line; do
pid=${line#/proc/}
pid=${pid%%/*}
set -- ${line##*) }
[ $# -ge 20 ] || continue
seen_any=.
case $1 in Z|X) continue;; esac
eval "alive_$pid=1 kin_$2=\"\${kin_$2-} $pid\""
if [ "$2" = "$outer" ]; then top="$top $pid"; continue; fi
if [ "$pid" = "$outer" ] || [ "$pid" = "$$" ]; then continue; fi
if [ "$3" = "$outer" ] || [ "$4" = "$outer" ]; then queue="$queue $pid"; fi
if [ "$2" = 1 ] && [ "${20}" -ge "$begun" ]; then orphans="$orphans $pid"; fi
done
for pid in $top; do eval "queue=\"\$queue \${kin_$pid-}\""; done
while set -- $queue && [ $# -gt 0 ]; do
queue=
for pid; do
eval "seen=\${seen_$pid-}; [ -n \"\$seen\" ] || queue=\"\$queue \${kin_$pid-}\"; alive=\${alive_$pid-}"
[ -n "$seen" ] || [ -z "$alive" ] || found="$found $pid"
eval "seen_$pid=1"
done
done
for pid in $orphans; do
eval "seen=\${seen_$pid-}"
[ -n "$seen" ] || ! kill -0 "$pid" 2>/dev/null || left="$left $pid"
done
echo "$found"
echo "$left"
echo "$seen_any"
}
}
again() {
out=$(look)
case $out in *.) ;; *) exit 1;; esac
left=${out#*
}
left=${left%.}
found=${out%%
*}
known="$known $found"
[ -n "$found" ]
}
alive() {
for pid in $found; do ! kill -0 "$pid" 2>/dev/null || return 0; done
return 1
}
n=0
if [ "$t" -gt 0 ] && again; then
kill -TERM $found 2>/dev/null
while [ "$n" -lt "$t" ] && alive; do
sleep 0.1 2>/dev/null || { sleep 1; n=$((n+9)); }
n=$((n+1))
done
fi
n=0
while [ "$n" -lt 10 ] && again; do
kill -KILL $found 2>/dev/null
n=$((n+1))
done
for pid in $found $left; do
{ read -r name </proc/"$pid"/comm && echo "$pid ($name)"; } 2>/dev/null
done
exit 0
"#;

/// `$1` output file, `$2` bytes of output, `$3` bytes with the end record; nothing, if it isn't known that these are
/// all. Prints the file's size, which must not be believed too soon: `tee` writes to the pipe first. Then cuts the end
/// record off, or makes it blanks, if a program in the background has printed something behind it. `tee` appends, so what
/// comes later follows without a gap.
const KEPT: &str = r#"
[ -f "$1" ] || exit 0
n=0
while size=$(wc -c <"$1" 2>/dev/null) && [ "$size" -lt "${3:-0}" ] && [ "$n" -lt 5 ]; do
n=$((n+1))
sleep 0.1 2>/dev/null || n=5
done
echo $size
if [ -n "$3" ] && [ "${size:-0}" -eq "$3" ]; then dd if=/dev/null of="$1" bs=1 seek="$2" 2>/dev/null
elif [ -n "$3" ] && [ "${size:-0}" -gt "$3" ]; then printf "%$(($3-$2-1))s\n" "" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
fi
exit 0
"#;

/// Where a command runs and what is kept of it.
#[derive(Debug)]
pub(super) struct Wrapped<'a> {
    pub(super) command: &'a str,
    /// A file with the command, if it is too long for an argument.
    pub(super) script: &'a str,
    pub(super) cwd: &'a str,
    pub(super) start_dir: &'a str,
    pub(super) output: &'a str,
    /// Output files of earlier calls, newest first.
    pub(super) earlier: Vec<String>,
    pub(super) facts: &'a Facts,
    /// In the environment of every process of the call: 128 random bits.
    pub(super) marker: &'a str,
    /// In the records: 128 random bits, which no program has by accident.
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
        let side = side_file(self.output);
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
            self.script,
            "\n",
        ];
        ExecSpec {
            argv: argv
                .iter()
                .copied()
                .chain(self.earlier.iter().map(String::as_str))
                .map(str::to_owned)
                .collect(),
            env: environment(self.facts),
            cwd: "/".to_owned(),
            ..ExecSpec::default()
        }
    }
}

/// The file beside `output` that a command leaves its directory in, unless there is no room for it.
fn side_file(output: &str) -> String {
    format!("{output}.cwd")
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

/// What a sweep left: processes as `pid (name)`; `None` if nobody knows.
pub(super) type Left = Option<Vec<String>>;

/// Ends every process of the call that carries `marker` and whose outer shell is `begun`: TERM, `grace` for
/// them to end, KILL. Bounded by `grace` and three seconds more.
pub(super) async fn sweep(
    sandbox: &dyn Sandbox,
    marker: &str,
    begun: Option<&Begun>,
    grace: Duration,
) -> Left {
    let tenths = (grace.as_millis() / 100).to_string();
    let (outer, start) = begun.map_or(("", ""), |begun| (&begun.outer, &begun.start));
    let swept = Script {
        text: SWEEP,
        args: vec![marker, &tenths, outer, start],
        keep: 16 * 1024,
        ..Script::default()
    }
    .run(sandbox, Deadline::after(grace + Duration::from_secs(3)))
    .await
    .ok()
    .filter(|swept| swept.exit_code == 0)?;
    let left = String::from_utf8_lossy(&swept.stdout);
    Some(left.lines().map(one_line).collect())
}

/// How much is in an output file. `record`, if the file must end with that behind all `bytes` of the output, is cut
/// off. `None`: nothing, or nobody knows. For at most two seconds.
pub(super) async fn kept(
    sandbox: &dyn Sandbox,
    output: &str,
    bytes: u64,
    record: Option<&EndRecord>,
) -> Option<u64> {
    let all = record.map(|record| bytes.saturating_add(record.length).to_string());
    let bytes = bytes.to_string();
    let kept = Script {
        text: KEPT,
        args: vec![output, &bytes, all.as_deref().unwrap_or("")],
        keep: 64,
        ..Script::default()
    }
    .run(sandbox, Deadline::after(Duration::from_secs(2)))
    .await
    .ok()?;
    String::from_utf8_lossy(&kept.stdout).trim().parse().ok()
}

/// What the outer shell says before it starts the command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Begun {
    /// Its process id: digits, or nothing.
    outer: String,
    /// When it started, in ticks: digits, or nothing.
    start: String,
    /// The output file could be made.
    pub(super) kept: bool,
    /// The numbers of earlier output files that were emptied.
    pub(super) emptied: Vec<u64>,
}

impl Begun {
    fn parse(text: &str) -> Self {
        let mut parts = text.split(' ');
        let digits = |part: Option<&str>| {
            let part = part.unwrap_or_default();
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if digits { part } else { "" }.to_owned()
        };
        Self {
            outer: digits(parts.next()),
            kept: parts.next() == Some("1"),
            emptied: parts
                .next()
                .unwrap_or_default()
                .split(',')
                .filter_map(|n| n.parse().ok())
                .collect(),
            // The 22nd field of the line, of which the first two were left out.
            start: digits(parts.nth(19)),
        }
    }
}

/// Where the side file of `output` may be, by the user's home.
pub(super) fn side_files(output: &str, home: &str) -> [String; 3] {
    let side = side_file(output);
    let name = side.rsplit('/').next().unwrap_or_default().to_owned();
    [side, format!("/dev/shm/.{name}"), format!("{home}/.{name}")]
}

/// What is in it until the command is begun.
pub(super) const UNBEGUN: &[u8] = b".\n";

/// How it went with the directory that a command was to start in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// It is there, but can't be entered.
    pub(super) closed: bool,
    /// Nor could the directory that the session started in: it ran in `/`.
    pub(super) to_root: bool,
}

/// What the outer shell says at the end of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EndRecord {
    /// The exit code; `None` for a background program that still runs.
    pub(super) code: Option<i32>,
    /// The directory to start in could not be used.
    pub(super) moved: Option<Moved>,
    /// The directory at the end, if it is known; of a background program the process id, with a minus if it
    /// leads a group.
    pub(super) rest: String,
    /// Bytes that it takes in the output.
    length: u64,
}

/// Finds the records in output that comes in pieces.
#[derive(Debug)]
pub(super) struct RecordScanner {
    pattern: Vec<u8>,
    held: Vec<u8>,
    at: At,
    begun: Option<Begun>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The begin record comes first, if it comes.
    Start,
    Output,
    Record,
}

/// A record longer than this is cut: its directory is lost then, not its code.
const LONGEST_RECORD: usize = 8 * 1024;

impl RecordScanner {
    pub(super) fn new(nonce: &str) -> Self {
        Self {
            pattern: format!("\n\u{1e}{nonce} ").into_bytes(),
            held: Vec::new(),
            at: At::Start,
            begun: None,
        }
    }

    /// What the begin record said, once it has come.
    pub(super) const fn begun(&self) -> Option<&Begun> {
        self.begun.as_ref()
    }

    /// Takes the next bytes; gives those that are output for certain, and the record once it is whole.
    /// After that everything is void.
    pub(super) fn push(&mut self, bytes: &[u8]) -> (Vec<u8>, Option<EndRecord>) {
        self.held.extend_from_slice(bytes);
        let mut output = Vec::new();
        if self.at == At::Start && !self.start() {
            return (output, None);
        }
        if self.at == At::Output {
            let pattern = &self.pattern;
            if let Some(at) = memmem::find(&self.held, pattern) {
                output.extend(self.held.drain(..at));
                self.held.drain(..pattern.len());
                self.at = At::Record;
            } else {
                let keep = (1..pattern.len().min(self.held.len() + 1))
                    .rev()
                    .find(|len| self.held.ends_with(pattern.get(..*len).unwrap_or_default()))
                    .unwrap_or(0);
                output.extend(self.held.drain(..self.held.len() - keep));
            }
        }
        let record = (self.at == At::Record).then(|| self.record()).flatten();
        (output, record)
    }

    /// Takes the begin record, if it stands there; whether that is decided.
    fn start(&mut self) -> bool {
        let pattern = self.pattern.get(1..).unwrap_or_default();
        if let Some(rest) = self.held.strip_prefix(pattern) {
            match rest.iter().position(|b| *b == 0x1e) {
                Some(end) => {
                    let text = String::from_utf8_lossy(rest.get(..end).unwrap_or_default());
                    self.begun = Some(Begun::parse(&text));
                    self.held.drain(..=pattern.len() + end);
                }
                None if rest.len() < LONGEST_RECORD => return false,
                None => {}
            }
        } else if pattern.starts_with(&self.held) {
            return false;
        }
        self.at = At::Output;
        true
    }

    /// The end of the stream without a record: what was held back is output.
    pub(super) fn finish(self) -> Vec<u8> {
        if self.at == At::Record {
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
            moved: parts.next().filter(|how| *how != "-").map(|how| Moved {
                closed: how.starts_with("closed"),
                to_root: how.ends_with("root"),
            }),
            rest: parts.next().filter(|_| !cut).unwrap_or_default().to_owned(),
            length: u64::try_from(self.pattern.len() + end + 1).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_records_are_found_however_they_are_cut() {
        let stat = "S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 99";
        let begin = format!("\x1en0nce 42 1 3,12, {stat}\x1e");
        let stream = [
            begin.as_bytes(),
            b"out\n\x1e\nput\n\x1en0nce 3 closed,root /home/a b\x1e late",
        ]
        .concat();
        for cut in 0..stream.len() {
            let mut scanner = RecordScanner::new("n0nce");
            let (a, b) = stream.split_at(cut);
            let (mut output, first) = scanner.push(a);
            let (more, second) = scanner.push(b);
            output.extend(more);
            assert_eq!(output, b"out\n\x1e\nput", "cut at {cut}");
            let begun = scanner.begun().unwrap();
            assert_eq!(
                (begun.outer.as_str(), begun.start.as_str()),
                ("42", "123456")
            );
            assert!(begun.kept);
            assert_eq!(begun.emptied, [3, 12]);
            let record = first.or(second).unwrap();
            assert_eq!(record.code, Some(3));
            let moved = record.moved.unwrap();
            assert!(moved.closed && moved.to_root);
            assert_eq!(record.rest, "/home/a b");
        }
    }

    /// Runs a command around which everything of ours is below `dir`; gives what it says.
    async fn said(dir: &str) -> String {
        let facts = Facts::unknown(dir);
        let output = format!("{dir}/state/out/x-2.txt");
        let wrapped = Wrapped {
            command: "echo on; cd /",
            script: "",
            cwd: dir,
            start_dir: dir,
            output: &output,
            earlier: vec![format!("{dir}/state/out/x-1.txt")],
            facts: &facts,
            marker: "m",
            nonce: "n0nce",
            background: false,
        };
        let argv = wrapped.spec().argv;
        let mut shell = tokio::process::Command::new(&argv[0]);
        shell.args(&argv[1..]).kill_on_drop(true);
        let ended = tokio::time::timeout(Duration::from_secs(20), shell.output()).await;
        String::from_utf8(ended.unwrap().unwrap().stdout).unwrap()
    }

    #[tokio::test]
    async fn pipes_and_links_in_place_of_our_files_hold_nothing_up_and_lead_nowhere() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().to_str().unwrap();
        let (state, out) = (tmp.path().join("state"), tmp.path().join("state/out"));
        std::fs::create_dir_all(&out).unwrap();
        let mode = nix::sys::stat::Mode::S_IRWXU;
        for name in ["x-1.txt", "x-2.txt", "x-2.txt.cwd"] {
            nix::unistd::mkfifo(&out.join(name), mode).unwrap();
        }
        let told = said(dir).await;
        assert!(told.ends_with("on\n\n\x1en0nce 0 - /\x1e"), "{told:?}");
        let kept = || std::fs::read_to_string(out.join("x-2.txt")).unwrap();
        assert!(kept().starts_with("on\n"));

        // As a result of the run such files would be handed on.
        let results = tmp.path().join("results");
        for ours in [&state, &out, &out.join("x-2.txt")] {
            std::fs::remove_dir_all(&results).ok();
            std::fs::create_dir(&results).unwrap();
            if ours.is_dir() {
                std::fs::remove_dir_all(ours).unwrap();
            } else {
                std::fs::remove_file(ours).unwrap();
            }
            std::os::unix::fs::symlink(&results, ours).unwrap();
            let told = said(dir).await;
            assert!(told.ends_with("on\n\n\x1en0nce 0 - /\x1e"), "{told:?}");
            assert!(kept().starts_with("on\n"), "{ours:?}");
            assert_eq!(std::fs::read_dir(&results).unwrap().count(), 0, "{ours:?}");
        }
    }

    #[test]
    fn a_forged_record_is_output() {
        for forged in ["\x1ewrong 1 1  S\x1e", "x"] {
            let mut scanner = RecordScanner::new("right");
            let text = format!("{forged}\n\x1ewrong 0 0 /\x1e\n\x1eri");
            let (mut output, record) = scanner.push(text.as_bytes());
            assert_eq!(record, None);
            assert_eq!(scanner.begun(), None);
            output.extend(scanner.finish());
            assert_eq!(output, text.as_bytes());
        }
    }
}
