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
use crate::show::{one_line, size};
use crate::spec::InputFile;

use super::script::Script;
use super::types::{FileErrorKind, Sandbox, SandboxError};

mod mime;

pub use mime::mime_type;

/// A file of at most this many bytes travels in its event.
pub const INLINE_MOST: usize = 1024 * 1024;
/// Uploads at once.
const SIDE_BY_SIDE: usize = 8;
/// Of names.
const LISTING: usize = 8 * 1024 * 1024;
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

/// Everything but directories below the working directory, without dot names and the directories named
/// `$1`, `$2`, …. In batches: the names, each with NUL, and one NUL more; a line
/// `mode|size|time|time in words|name` for each that is still there, in the same order; NUL. As the names
/// are known, each tells where its line ends, whatever is in it.
const SNAPSHOT: &str = r#"
n=$#
for s in "$@"; do set -- "$@" -o -name "$s"; done
while [ "$n" -gt 0 ]; do shift; n=$((n-1)); done
find . ! -name . \( -name '.*' "$@" \) -prune -o ! -type d -print0 2>/dev/null | head -c 8388608 | xargs -0 sh -c '
[ $# -gt 0 ] || exit 0
printf "%s\000" "$@"
printf "\000"
stat -c "%f|%s|%Y|%y|%n" "$@" 2>/dev/null
printf "\000"
' sandcaster
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

/// What a run made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// By depth, then path.
    pub files: Vec<CollectedFile>,
    /// What was left out, in the same order; at most 100, and one more that counts the rest.
    pub omitted: Vec<Omitted>,
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
    /// Looks at the working directory, into which `inputs` have just been placed.
    ///
    /// # Errors
    /// The sandbox's own; `Timeout` when the look takes longer than `deadline` allows.
    pub async fn take(
        sandbox: &dyn Sandbox,
        inputs: &[InputFile],
        deadline: Deadline,
    ) -> Result<Self, SandboxError> {
        let listing = snapshot(sandbox, deadline).await?;
        let inputs = inputs.to_vec();
        apart(move || {
            let digested = |file: InputFile| {
                let digest = Sha256::digest(&file.bytes).into();
                (file.path.as_str().into(), digest)
            };
            Self {
                seen: listing.files.into_iter().collect(),
                inputs: inputs.into_iter().map(digested).collect(),
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

async fn snapshot(sandbox: &dyn Sandbox, deadline: Deadline) -> Result<Snapshot, SandboxError> {
    let found = Script {
        text: SNAPSHOT,
        args: SKIPPED
            .iter()
            .copied()
            .filter(|name| !name.starts_with('.'))
            .collect(),
        cwd: sandbox.working_dir(),
        // The names twice, and what stands before each the second time.
        keep: 6 * LISTING,
        ..Script::default()
    }
    .run(sandbox, deadline)
    .await?;
    apart(move || parse(&found.stdout)).await
}

/// A listing may have 200,000 names, a file 25 MiB: too much for the runtime's threads.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SandboxError> {
    let done = crate::apart::apart(work).await;
    done.ok_or_else(|| SandboxError::Backend("the server is stopping".to_owned()))
}

fn parse(output: &[u8]) -> Snapshot {
    let mut files = Vec::new();
    let mut rest = output;
    let mut named = 0;
    let mut cut = false;
    while !rest.is_empty() {
        let mut names = Vec::new();
        while let Some(name) = up_to_nul(&mut rest).filter(|name| !name.is_empty()) {
            named += name.len() + 1;
            names.push(name);
        }
        let Some(mut lines) = up_to_nul(&mut rest) else {
            cut = true;
            break;
        };
        for name in names {
            let Some((print, after)) = line(lines, name) else {
                continue;
            };
            lines = after;
            let path = name.strip_prefix(b"./").unwrap_or(name);
            files.push((path.to_vec(), print));
        }
    }
    cut |= named >= LISTING;
    files.sort_by_cached_key(|(path, _)| (depth(path), path.clone()));
    Snapshot { files, cut }
}

/// Takes any output of the script, for [`crate::fuzz`].
pub(crate) fn fuzz(output: &[u8]) {
    let files = parse(output).files;
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
    let mut fields = rest.splitn(5, |b| *b == b'|');
    let mode = fields.next()?;
    let size = fields.next()?;
    let changed = fields.next()?;
    let in_words = fields.next()?;
    let after = fields.next()?.strip_prefix(name)?.strip_prefix(b"\n")?;
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

/// Reads what is new or changed since `before`, within `limits` and until `deadline`.
///
/// Never fails: when the sandbox does, what was read until then is returned and the rest is named as left
/// out.
pub async fn collect(
    sandbox: &dyn Sandbox,
    before: &Baseline,
    limits: &CollectLimits,
    deadline: Deadline,
) -> Collected {
    let now = match snapshot(sandbox, deadline).await {
        Ok(now) => now,
        Err(error) => {
            return Collected {
                files: Vec::new(),
                omitted: vec![Omitted {
                    path: one_line(sandbox.working_dir()),
                    reason: format!("its files could not be listed: {error}"),
                }],
            };
        }
    };
    let mut collecting = Collecting {
        sandbox,
        limits,
        deadline,
        total: 0,
        files: Vec::new(),
        omitted: Vec::new(),
        further: 0,
    };
    for (nth, (path, print)) in now.files.iter().enumerate() {
        if nth.is_multiple_of(COMPARED) {
            tokio::task::yield_now().await;
        }
        let seen = before.seen.get(path);
        let input = before.inputs.get(path);
        if seen == Some(print) && (input.is_none() || print.is_fine()) {
            continue;
        }
        collecting.file(path, print, input).await;
    }
    if now.cut {
        collecting.omit(
            sandbox.working_dir(),
            "it has more files than can be listed; some were not looked at",
        );
    }
    collecting.done()
}

struct Collecting<'a> {
    sandbox: &'a dyn Sandbox,
    limits: &'a CollectLimits,
    deadline: Deadline,
    total: u64,
    files: Vec<CollectedFile>,
    omitted: Vec<Omitted>,
    further: u64,
}

impl Collecting<'_> {
    async fn file(&mut self, raw: &[u8], print: &Print, input: Option<&[u8; 32]>) {
        let shown = String::from_utf8_lossy(raw);
        match self.read(raw, print, input).await {
            Ok(Some(file)) => {
                self.total += length(&file.bytes);
                self.files.push(file);
            }
            Ok(None) => {}
            Err(reason) => self.omit(&shown, &reason),
        }
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
        if self.files.len() >= limits.files {
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

    fn done(mut self) -> Collected {
        if self.further > 0 {
            self.omitted.push(Omitted {
                path: "…".to_owned(),
                reason: format!("{} further files were left out", self.further),
            });
        }
        Collected {
            files: self.files,
            omitted: self.omitted,
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
