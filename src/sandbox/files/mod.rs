//! Files into a sandbox, and what the run made of them out again.
//!
//! Everything that comes out is hostile input (`reliability-security`, FI-2): names are bytes, only regular
//! files are opened, sizes are counted while reading, and whatever is left out is named.

use std::collections::HashMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use sha2::{Digest as _, Sha256};

use crate::clock::Deadline;
use crate::events::{FileEncoding, FileEvent};
use crate::paths::SandboxPath;
use crate::show::{one_line, short, size};
use crate::spec::InputFile;

use super::script::{Script, unforked};
use super::types::{FileErrorKind, Sandbox, SandboxError};

mod mime;

pub use mime::mime_type;

/// A file of at most this many bytes travels in its event.
pub const INLINE_MOST: usize = 1024 * 1024;
/// Uploads at once.
const SIDE_BY_SIDE: usize = 8;
/// Of names.
const LISTING: usize = 8 * 1024 * 1024;
/// Of what a listing prints: the names twice, and what stands before each the second time.
const PRINTED: usize = 4 * LISTING;
/// Files that are listed.
const LISTED: usize = 200_000;
/// Bytes of a line of a listing before the name.
const BEFORE_NAME: usize = 256;
/// Looks after one that the connection lost.
const AGAIN: u32 = 2;
/// Omissions that are named one by one; the others are counted.
const NAMED: usize = 100;
/// Files that are compared before others get their turn: well below a millisecond.
const COMPARED: usize = 1024;

/// Directories that are full of what nobody asked for. Left out unless they are named.
pub(crate) const SKIPPED: &[&str] = &[
    ".git",
    ".hg",
    ".svn",
    "node_modules",
    "__pycache__",
    ".venv",
    "venv",
    ".tox",
    ".mypy_cache",
    ".pytest_cache",
    ".cache",
];

/// The working directory itself, and everything but directories below it, without dot names and the directories
/// named `$1`, `$2`, …. In batches: the names, each with NUL, and one NUL more; a line
/// `mode|size|time|time in words|name` for each that is still there, in the same order; NUL. As the names
/// are known, each tells where its line ends, whatever is in it. A batch of nothing is the last.
///
/// The directory comes first: that it is there shows that all these programs do what they are to do. A name that `find`
/// never gives comes last: without it, or when `stat` did not come to its end, what there is can't be told from what was
/// not seen.
const SNAPSHOT: &str = r#"
for p in find head xargs stat; do
command -v "$p" >/dev/null || { echo "$p" >&2; exit 7; }
done
n=$#
for s in "$@"; do set -- "$@" -o -name "$s"; done
while [ "$n" -gt 0 ]; do shift; n=$((n-1)); done
{
find . -name . -print0 -o \( -name '.*' "$@" \) -prune -o ! -type d -print0 2>/dev/null
[ $? -gt 1 ] || printf '/\000'
} | head -c 8388608 | xargs -0 sh -c '
[ $# -gt 0 ] || exit 0
printf "%s\000" "$@"
printf "\000"
stat -c "%f|%s|%Y|%y|%n" "$@" 2>/dev/null
[ $? -le 1 ] || exit 255
printf "\000"
' sandcaster || exit 8
printf '\000\000'
"#;

/// What may come out of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectLimits {
    /// Files.
    pub files: usize,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
}

impl Default for CollectLimits {
    fn default() -> Self {
        Self {
            files: 10,
            file_bytes: 25 * 1024 * 1024,
            total_bytes: 50 * 1024 * 1024,
        }
    }
}

/// A file that the run created or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectedFile {
    /// Relative to the working directory, in the normal form of [`SandboxPath`].
    pub path: String,
    /// Guessed from name and bytes.
    pub mime_type: &'static str,
    /// In lower-case hex.
    pub sha256: String,
    /// How its content travels in an event.
    pub encoding: FileEncoding,
    /// The content, if it is small enough for an event.
    pub content: Option<String>,
    /// What is in it, exactly.
    pub bytes: Bytes,
}

/// A file that is not returned, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Omitted {
    /// Its path, with control characters escaped.
    pub path: String,
    /// For a person.
    pub reason: String,
}

/// Places the request's files in the working directory, several at once.
///
/// # Errors
/// The first write that failed. Dropping the future leaves some of the files behind.
pub async fn upload(sandbox: &dyn Sandbox, files: &[InputFile]) -> Result<(), SandboxError> {
    let writes: Vec<_> = files
        .iter()
        .map(|file| sandbox.write(file.path.as_str(), file.bytes.clone()))
        .collect();
    stream::iter(writes)
        .buffer_unordered(SIDE_BY_SIDE)
        .try_collect::<()>()
        .await
}

/// How the working directory looked before the agent's first tool call.
#[derive(Debug, Default)]
pub struct Baseline {
    seen: HashMap<Vec<u8>, Print>,
    inputs: HashMap<Vec<u8>, [u8; 32]>,
    /// Why nobody knows: then what is new can't be told from what was there.
    unlooked: Option<String>,
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Print {
    regular: bool,
    size: u64,
    /// Whole seconds.
    changed: u64,
    /// In the image's own words, with fractions where it has them.
    in_words: Vec<u8>,
}

impl Print {
    /// Whether its time is finer than a second, so that equal prints mean equal bytes.
    fn is_fine(&self) -> bool {
        let fraction = self.in_words.split(|b| *b == b'.').nth(1);
        fraction.is_some_and(|digits| {
            digits
                .iter()
                .take_while(|b| b.is_ascii_digit())
                .any(|b| *b != b'0')
        })
    }
}

impl Baseline {
    /// Looks at the working directory, into which `inputs` have just been placed. A sandbox that lacks what the
    /// look needs can be used all the same; [`Collecting`] tells why no file is returned.
    ///
    /// # Errors
    /// The sandbox's own; `Timeout` when the look takes longer than `deadline` allows.
    pub async fn take(
        sandbox: &dyn Sandbox,
        inputs: &[InputFile],
        deadline: Deadline,
    ) -> Result<Self, SandboxError> {
        let unlooked = match snapshot(sandbox, deadline).await {
            Ok(Look::Seen(listing)) => Ok(listing),
            Ok(Look::Failed(why) | Look::Killed(why)) => Err(why),
            Err(error @ SandboxError::Starved(_)) => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        let listing = match unlooked {
            Ok(listing) => listing,
            Err(why) => {
                return Ok(Self {
                    unlooked: Some(why),
                    ..Self::default()
                });
            }
        };
        let inputs = inputs.to_vec();
        apart(move || {
            let digested = |file: InputFile| {
                let digest = Sha256::digest(&file.bytes).into();
                (file.path.as_str().into(), digest)
            };
            Self {
                seen: listing.files.into_iter().collect(),
                inputs: inputs.into_iter().map(digested).collect(),
                unlooked: None,
            }
        })
        .await
    }
}

struct Snapshot {
    files: Vec<(Vec<u8>, Print)>,
    /// There were more names than can be listed.
    cut: bool,
}

/// A look at the working directory.
enum Look {
    Seen(Snapshot),
    /// The script could not do it: why.
    Failed(String),
    /// It did not come to its end, as where memory or processes are short: the same.
    Killed(String),
}

/// Looks again, a few times, where the connection broke on the way: that says nothing about the sandbox.
async fn snapshot(sandbox: &dyn Sandbox, deadline: Deadline) -> Result<Look, SandboxError> {
    let mut again = AGAIN;
    loop {
        match look(sandbox, deadline).await {
            Err(SandboxError::Backend(_)) if again > 0 && !deadline.passed() => again -= 1,
            looked => return looked,
        }
    }
}

async fn look(sandbox: &dyn Sandbox, deadline: Deadline) -> Result<Look, SandboxError> {
    let found = Script {
        text: SNAPSHOT,
        args: SKIPPED
            .iter()
            .copied()
            .filter(|name| !name.starts_with('.'))
            .collect(),
        cwd: sandbox.working_dir(),
        keep: PRINTED,
        ..Script::default()
    }
    .run(sandbox, deadline)
    .await?;
    if let Some(short) = unforked(&found.stderr) {
        return Err(SandboxError::Starved(short));
    }
    let ended = || format!("the script for it ended with exit {}", found.exit_code);
    Ok(match found.exit_code {
        0 => {
            let reading = move || parse(&found.stdout, found.stdout.len() >= PRINTED);
            apart(reading).await?.map_or_else(
                || {
                    let why =
                        "the sandbox's find, xargs or stat can't be used for it, or was ended";
                    Look::Killed(why.to_owned())
                },
                Look::Seen,
            )
        }
        7 => {
            let program = String::from_utf8_lossy(&found.stderr);
            let program = short(program.trim(), 100);
            Look::Failed(format!("the sandbox has no `{program}`"))
        }
        _ => Look::Killed(ended()),
    })
}

/// A look when the agent is done. Where no process can be started for it, or it breaks off, what commands have left running
/// may be all that the sandbox holds: that is ended then. Gives how many processes were.
async fn last_look(sandbox: &dyn Sandbox, deadline: Deadline) -> (Look, u32) {
    let mut look = snapshot(sandbox, deadline).await;
    let mut ended = 0;
    if matches!(look, Ok(Look::Killed(_)) | Err(SandboxError::Starved(_))) {
        // Where they can't be ended, the look's own failure is what is to be told.
        ended = sandbox.end_all().await.ok().flatten().unwrap_or(0);
        if ended > 0 {
            look = snapshot(sandbox, deadline).await;
        }
    }
    let look = look.unwrap_or_else(|error| Look::Failed(error.to_string()));
    (look, ended)
}

/// A listing may have 200,000 names, a file 25 MiB: too much for the runtime's threads.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SandboxError> {
    let done = crate::apart::apart(work).await;
    done.ok_or_else(|| SandboxError::Backend("the server is stopping".to_owned()))
}

/// What comes after the last name that `find` gives.
const LAST: &[u8] = b"/";

/// What a listing printed; `full` if that may not be all. `None` if it has no beginning, or no end, or more
/// names at once than any program is given.
fn parse(output: &[u8], full: bool) -> Option<Snapshot> {
    let mut files = Vec::new();
    let mut rest = output;
    let mut named = 0;
    let (mut begun, mut whole, mut ended, mut cut) = (false, false, false, full);
    while !ended {
        let mut names = Vec::new();
        while let Some(name) = up_to_nul(&mut rest).filter(|name| !name.is_empty()) {
            named += name.len() + 1;
            names.push(name);
            if names.len() > LISTED {
                return None;
            }
        }
        let Some(mut lines) = up_to_nul(&mut rest) else {
            break;
        };
        ended = names.is_empty() && lines.is_empty();
        for name in names {
            let Some((print, after)) = line(lines, name) else {
                continue;
            };
            lines = after;
            if name == b"." || name == LAST {
                begun |= name == b".";
                whole |= name == LAST;
                continue;
            }
            let path = name.strip_prefix(b"./").unwrap_or(name);
            files.push((path.to_vec(), print));
        }
        // What is beyond these would take many times its size.
        if named >= LISTING || files.len() >= LISTED {
            cut = true;
            files.truncate(LISTED);
            break;
        }
    }
    files.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    files.sort_by_cached_key(|(path, _)| depth(path));
    (begun && (ended && whole || cut)).then_some(Snapshot { files, cut })
}

/// Takes any output of the script, for [`crate::fuzz`].
pub(crate) fn fuzz(output: &[u8]) {
    let Some(Snapshot { files, .. }) = parse(output, true) else {
        return;
    };
    assert!(files.len() <= output.len(), "more files than names");
}

/// How many directories deep.
pub(crate) fn depth(path: &[u8]) -> usize {
    path.split(|b| *b == b'/').count()
}

/// What comes before the next NUL, which is taken as well; `None`, and nothing taken, if there is none.
fn up_to_nul<'o>(rest: &mut &'o [u8]) -> Option<&'o [u8]> {
    let end = rest.iter().position(|b| *b == 0)?;
    let (before, after) = rest.split_at(end);
    *rest = after.get(1..).unwrap_or_default();
    Some(before)
}

/// The line of `name` if it is the next, and what follows it. A file that is gone has none.
fn line<'o>(rest: &'o [u8], name: &[u8]) -> Option<(Print, &'o [u8])> {
    // Without a bound each name would look through all that has no such mark.
    let mut fields = rest
        .get(..BEFORE_NAME)
        .unwrap_or(rest)
        .split(|b| *b == b'|');
    let mode = fields.next()?;
    let size = fields.next()?;
    let changed = fields.next()?;
    let in_words = fields.next()?;
    let before = mode.len() + size.len() + changed.len() + in_words.len() + 4;
    let after = rest
        .get(before..)?
        .strip_prefix(name)?
        .strip_prefix(b"\n")?;
    let mode = u32::from_str_radix(std::str::from_utf8(mode).ok()?, 16).ok()?;
    Some((
        Print {
            regular: mode & 0xf000 == 0x8000,
            size: number(size)?,
            changed: number(changed)?,
            in_words: in_words.to_vec(),
        },
        after,
    ))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Reads what is new or changed since a [`Baseline`], one file at a time: no more than one is ever held.
pub struct Collecting<'a> {
    sandbox: &'a dyn Sandbox,
    before: &'a Baseline,
    limits: CollectLimits,
    deadline: Deadline,
    /// What is still to be looked at: by depth, then path.
    left: std::iter::Enumerate<std::vec::IntoIter<(Vec<u8>, Print)>>,
    /// There were more names than can be listed.
    cut: bool,
    total: u64,
    returned: usize,
    omitted: Vec<Omitted>,
    further: u64,
    ended: u32,
}

impl<'a> Collecting<'a> {
    /// Looks at the working directory; reads within `limits` and until `deadline`.
    ///
    /// Never fails: when the sandbox does, what can't be returned is named as left out.
    pub async fn begin(
        sandbox: &'a dyn Sandbox,
        before: &'a Baseline,
        limits: CollectLimits,
        deadline: Deadline,
    ) -> Self {
        let (look, ended) = match &before.unlooked {
            Some(why) => (Look::Failed(why.clone()), 0),
            None => last_look(sandbox, deadline).await,
        };
        let (files, cut, failed) = match look {
            Look::Seen(now) => (now.files, now.cut, None),
            Look::Failed(why) | Look::Killed(why) => (Vec::new(), false, Some(why)),
        };
        let mut collecting = Self {
            sandbox,
            before,
            limits,
            deadline,
            left: files.into_iter().enumerate(),
            cut,
            total: 0,
            returned: 0,
            omitted: Vec::new(),
            further: 0,
            ended,
        };
        if let Some(why) = failed {
            let why = format!("its files could not be listed: {why}");
            collecting.omit(sandbox.working_dir(), &why);
        }
        collecting
    }

    /// How many processes, which commands had left running, were ended so that the directory could be looked at.
    pub const fn ended(&self) -> u32 {
        self.ended
    }

    /// The next file; `None` after the last.
    pub async fn next(&mut self) -> Option<CollectedFile> {
        while let Some((nth, (path, print))) = self.left.next() {
            if nth.is_multiple_of(COMPARED) {
                tokio::task::yield_now().await;
            }
            let seen = self.before.seen.get(&path);
            let input = self.before.inputs.get(&path);
            if seen == Some(&print) && (input.is_none() || print.is_fine()) {
                continue;
            }
            match self.read(&path, &print, input).await {
                Ok(Some(file)) => {
                    self.total += length(&file.bytes);
                    self.returned += 1;
                    return Some(file);
                }
                Ok(None) => {}
                Err(reason) => self.omit(&String::from_utf8_lossy(&path), &reason),
            }
        }
        None
    }

    /// What was left out, in the same order; at most 100, and one or two more for the rest.
    pub fn omitted(mut self) -> Vec<Omitted> {
        let mut add = |path: &str, reason: String| {
            self.omitted.push(Omitted {
                path: one_line(path),
                reason,
            });
        };
        if self.further > 0 {
            let further = self.further;
            add("…", format!("{further} further files were left out"));
        }
        if self.cut {
            let why = "it has more files than can be listed; some were not looked at";
            add(self.sandbox.working_dir(), why.to_owned());
        }
        self.omitted
    }

    /// The file, `None` if it is an input that is as it was, or why it is left out.
    async fn read(
        &self,
        raw: &[u8],
        print: &Print,
        input: Option<&[u8; 32]>,
    ) -> Result<Option<CollectedFile>, String> {
        if !print.regular {
            return Err("not a regular file (a link, pipe, socket or device)".to_owned());
        }
        let path = usable_name(raw)?;
        if input.is_none() {
            self.fits(print.size)?;
        }
        if self.deadline.passed() {
            return Err("the time for collecting files was over".to_owned());
        }
        // Counted while reading: the size that was reported may be a lie, or old.
        let most = self
            .limits
            .file_bytes
            .min(self.limits.total_bytes.saturating_sub(self.total));
        let full_path = format!(
            "{}/{path}",
            self.sandbox.working_dir().trim_end_matches('/')
        );
        let reading = self.sandbox.read(&full_path, most);
        let bytes = tokio::time::timeout_at(self.deadline.instant(), reading)
            .await
            .map_err(|_| "the time for collecting files was over".to_owned())?
            .map_err(|error| self.unreadable(print.size, &error))?;
        let size = length(&bytes);
        let (path, unchanged) = (path.to_owned(), input.map(|digest| hex(digest)));
        let file = apart(move || CollectedFile::new(path, bytes))
            .await
            .map_err(|error| error.to_string())?;
        if unchanged.is_some_and(|digest| digest == file.sha256) {
            return Ok(None);
        }
        if input.is_some() {
            self.fits(size)?;
        }
        Ok(Some(file))
    }

    fn fits(&self, bytes: u64) -> Result<(), String> {
        let limits = self.limits;
        if self.returned >= limits.files {
            return Err(format!("at most {} files are returned", limits.files));
        }
        if bytes > limits.file_bytes {
            return Err(self.too_large(bytes));
        }
        if self.total + bytes > limits.total_bytes {
            return Err(format!(
                "{}: all files together may have {}",
                size(bytes),
                mebibytes(limits.total_bytes)
            ));
        }
        Ok(())
    }

    fn too_large(&self, bytes: u64) -> String {
        format!(
            "{} (at most {} are returned)",
            size(bytes),
            mebibytes(self.limits.file_bytes)
        )
    }

    fn unreadable(&self, bytes: u64, error: &SandboxError) -> String {
        match error {
            SandboxError::File { kind, .. } => match kind {
                FileErrorKind::NotFound => "it vanished while files were collected".to_owned(),
                kind => kind.to_string(),
            },
            SandboxError::TooLarge { .. } => self
                .fits(bytes)
                .err()
                .unwrap_or_else(|| "it grew beyond the limit while it was read".to_owned()),
            error => error.to_string(),
        }
    }

    fn omit(&mut self, path: &str, reason: &str) {
        if self.omitted.len() < NAMED {
            self.omitted.push(Omitted {
                path: one_line(path),
                reason: one_line(reason),
            });
        } else {
            self.further += 1;
        }
    }
}

/// The name as every client can use it: the rule for inputs, so that an output can be sent back as one.
fn usable_name(raw: &[u8]) -> Result<&str, String> {
    let name =
        std::str::from_utf8(raw).map_err(|_| "its name is not UTF-8; rename it".to_owned())?;
    match SandboxPath::parse(name) {
        Ok(path) if path.as_str() == name => Ok(name),
        Ok(_) => Err("its name has a backslash; rename it".to_owned()),
        Err(why) => Err(format!("its name can't be returned ({why}); rename it")),
    }
}

fn length(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}

/// The event for a collected file, which can be downloaded at `url`.
pub fn file_event(file: &CollectedFile, url: String) -> FileEvent {
    FileEvent {
        path: file.path.clone(),
        mime_type: file.mime_type.to_owned(),
        size: length(&file.bytes),
        sha256: file.sha256.clone(),
        encoding: file.encoding,
        content: file.content.clone(),
        url,
    }
}

impl CollectedFile {
    /// Looks at all of `bytes`.
    fn new(path: String, bytes: Bytes) -> Self {
        let (encoding, content) = inline(&bytes);
        Self {
            mime_type: mime_type(&path, &bytes),
            path,
            sha256: sha256_hex(&bytes),
            encoding,
            content,
            bytes,
        }
    }
}

/// How `bytes` travel in an event: text as it is, other bytes in base64; nothing beyond [`INLINE_MOST`].
pub fn inline(bytes: &[u8]) -> (FileEncoding, Option<String>) {
    let fits = bytes.len() <= INLINE_MOST;
    match std::str::from_utf8(bytes) {
        Ok(text) => (FileEncoding::Utf8, fits.then(|| text.to_owned())),
        Err(_) => (FileEncoding::Base64, fits.then(|| STANDARD.encode(bytes))),
    }
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(out, "{byte:02x}").ok();
    }
    out
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
