//! Where a path leads in the sandbox, and what is there.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::listing::{count, unlooked};
use super::names::forms;
use super::script::Script;
use crate::encoding::composed;
use crate::paths::LONGEST_PATH;
use crate::sandbox::{FileErrorKind, SandboxError};
use crate::show::{alike, grouped, one_line, size};

use super::types::{Failure, ToolContext};

const LIMIT: Duration = Duration::from_secs(20);
/// For reading or writing one file through the backend.
const FILE_LIMIT: Duration = Duration::from_mins(1);
/// Names of a directory that are looked at.
const LISTING: usize = 256 * 1024;
const SHOWN_ENTRIES: usize = 200;

/// Says what `$1` is, in fields that end with NUL: kind, size, text (if `$2` is 1 and it is of at most 8 MiB:
/// its lines, those in CRLF, the first bytes), where a symlink leads, whether it may be read; of a missing one
/// the nearest directory above it that is there; whether one can look into that directory, or the one at `$1`;
/// the number of its entries; then the entries.
///
/// That no process can be started is said to a standard error that is read.
///
/// Entries are `./name` behind their mode and size: as no name has a slash, none can forge that.
const INSPECT: &str = r#"
p=$1
s=; l=; t=; r=0; d=; o=0; n=
if [ -d "$p" ]; then k=d; d=$p
elif [ -f "$p" ]; then k=f
elif [ -p "$p" ]; then k=p
elif [ -S "$p" ]; then k=s
elif [ -e "$p" ]; then k=v
elif [ -L "$p" ]; then k=l
else k=n; d=$p
while [ -n "$d" ] && ! [ -e "$d" ] && ! [ -L "$d" ]; do d=${d%/*}; done
d=${d:-/}
fi
[ -r "$p" ] && r=1
if [ "$k" = f ]; then
s=$( ( stat -L -c %s "$p" 2>/dev/null ) || wc -c <"$p" 2>/dev/null)
[ "$2" = 1 ] && [ "${s:-0}" -le 8388608 ] && l="$(grep -c '' "$p" 2>/dev/null) $(LC_ALL=C grep -c "$(printf '\r')\$" "$p" 2>/dev/null) $(head -c 16 "$p" 2>/dev/null | od -An -tx1)"
fi
if [ -L "$p" ]; then t=$(readlink -f "$p" 2>/dev/null); [ -n "$t" ] || t=$(readlink "$p" 2>/dev/null); fi
if [ -n "$d" ]; then if ! [ -d "$d" ]; then o=f; elif cd "$d" 2>/dev/null; then o=1; fi; fi
[ "$k$o" = d1 ] && command -v find >/dev/null && n=$(find . ! -name . -prune -exec sh -c 'echo $#' sh {} + | {
n=0; while read -r c; do n=$((n+c)); done; echo "$n"; })
printf '%s\000%s\000%s\000%s\000%s\000%s\000%s\000%s\000' "$k" "$s" "$l" "$t" "$r" "$d" "$o" "$n"
[ "$o" = 1 ] && find . ! -name . -prune -exec stat -c '%f|%s|%n' {} + | head -c 262144
exit 0
"#;

/// Says of each name after `$1`, all links in that directory, what it leads to, in fields that end with NUL:
/// `d`, `f` or `n` (nothing that can be reached), and where.
const LINKS: &str = r#"
cd "$1" || exit
shift
for f; do
if [ -d "./$f" ]; then k=d; elif [ -e "./$f" ]; then k=f; else k=n; fi
printf '%s\000%s\000' "$k" "$(readlink "./$f")"
done
"#;

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    /// A pipe, a socket, a device.
    Other,
    /// A link to where nothing can be reached.
    Dangling,
    Missing,
}

/// A path that was looked at.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Absolute.
    pub(super) path: String,
    pub(super) kind: Kind,
    /// What is there, for a complaint, if it is neither file nor directory.
    other: &'static str,
    /// Of a regular file, in bytes.
    pub(super) size: u64,
    /// Of a regular file, if it was asked for and the file isn't large.
    pub(super) text: Option<Text>,
    /// Where a symlink leads in the end, or what it names if that can't be told.
    pub(super) target: Option<String>,
    pub(super) readable: bool,
    /// The directory whose entries these are: the place itself, or of a missing one the nearest above it.
    directory: String,
    inside: Inside,
    /// How many entries a directory has, of which some may be missing in `entries`.
    total: Option<u64>,
    entries: Vec<Entry>,
}

/// Whether the entries of a directory could be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    Seen,
    Closed,
    /// It is none.
    NoDirectory,
}

/// What a text is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) lines: u64,
    /// Lines that end in CRLF.
    pub(super) crlf: u64,
    /// The first 16 bytes, or all if there are fewer.
    pub(super) begins: Vec<u8>,
}

impl Text {
    fn parse(field: &str) -> Option<Self> {
        let mut words = field.split_whitespace();
        Some(Self {
            lines: words.next()?.parse().ok()?,
            crlf: words.next()?.parse().ok()?,
            begins: words
                .map(|byte| u8::from_str_radix(byte, 16).ok())
                .collect::<Option<_>>()?,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    name: String,
    mode: u32,
    size: u64,
}

/// The absolute form of a path that a model gave: against the tracked directory, `~` being the home.
pub(super) fn absolute(path: &str, cwd: &str, home: &str) -> Result<String, Failure> {
    if path.trim().is_empty() {
        return Err(Failure::Complaint("path is empty".to_owned()));
    }
    if path.contains('\0') {
        return Err(Failure::Complaint(
            "path has a NUL character, which no file name can have".to_owned(),
        ));
    }
    let joined = |base: &str, rest: &str| match rest {
        "" => base.to_owned(),
        rest => format!("{}/{rest}", base.trim_end_matches('/')),
    };
    let full = if path == "~" {
        home.to_owned()
    } else if let Some(rest) = path.strip_prefix("~/") {
        joined(home, rest)
    } else if path.starts_with('/') {
        path.to_owned()
    } else {
        joined(cwd, path.trim_start_matches("./"))
    };
    let trimmed = full.trim_end_matches('/');
    if trimmed.len() > LONGEST_PATH {
        return Err(Failure::Complaint(format!(
            "path is {} bytes long; no path can have more than {}",
            grouped(count(trimmed.len())),
            grouped(count(LONGEST_PATH))
        )));
    }
    Ok(if trimmed.is_empty() { "/" } else { trimmed }.to_owned())
}

impl Place {
    /// Looks at `path`, as the model gave it; if nothing is there, with its accents typed in another way.
    pub(super) async fn look(
        path: &str,
        count_lines: bool,
        context: &ToolContext,
    ) -> Result<Self, Failure> {
        let facts = context.session.probe(context.sandbox.as_ref()).await;
        let path = absolute(path, &context.session.cwd(), &facts.home)?;
        let first = Self::inspect(&path, count_lines, context).await?;
        if first.kind == Kind::Missing {
            for form in forms(&path).iter().skip(1) {
                let other = Self::inspect(form, count_lines, context).await?;
                if other.kind != Kind::Missing {
                    return Ok(other);
                }
            }
            // Some parts may be typed in one way and some in the other.
            let mut next = first.in_another_form();
            for _ in path.split('/') {
                let Some(form) = next else { break };
                let other = Self::inspect(&form, count_lines, context).await?;
                if other.kind != Kind::Missing {
                    return Ok(other);
                }
                next = other.in_another_form();
            }
        }
        Ok(first)
    }

    /// Of a missing one, the path with its first missing part as it is in its directory, if that differs only in how
    /// accents are typed.
    fn in_another_form(&self) -> Option<String> {
        let below = self.path.strip_prefix(&self.directory)?;
        let below = below.trim_start_matches('/');
        let name = below.split('/').next().filter(|name| !name.is_ascii())?;
        let wanted = composed(name);
        let mut entries = self.entries.iter().map(|entry| entry.name.as_str());
        let there = entries.find(|entry| *entry != name && composed(entry) == wanted)?;
        let rest = below.get(name.len()..).unwrap_or_default();
        let directory = self.directory.trim_end_matches('/');
        Some(format!("{directory}/{there}{rest}"))
    }

    async fn inspect(
        path: &str,
        count_lines: bool,
        context: &ToolContext,
    ) -> Result<Self, Failure> {
        let found = Script {
            text: INSPECT,
            args: vec![path, if count_lines { "1" } else { "0" }],
            keep: LISTING + 16 * 1024,
            ..Script::default()
        }
        .run_for(context, LIMIT)
        .await?;
        if found.stdout.is_empty() {
            return Err(unlooked(path, &found, context));
        }
        Ok(Self::parse(path.to_owned(), &found.stdout))
    }

    pub(super) fn parse(path: String, output: &[u8]) -> Self {
        let text = String::from_utf8_lossy(output);
        let mut fields = text.splitn(9, '\0');
        let mut field = || fields.next().unwrap_or_default();
        let (kind, other) = match field() {
            "d" => (Kind::Directory, ""),
            "f" => (Kind::File, ""),
            "p" => (Kind::Other, "a pipe"),
            "s" => (Kind::Other, "a socket"),
            "v" => (Kind::Other, "a device"),
            "l" => (Kind::Dangling, "a link that leads nowhere"),
            _ => (Kind::Missing, ""),
        };
        let (size, text, target, readable) = (field(), field(), field(), field() == "1");
        let directory = field().to_owned();
        let inside = match field() {
            "1" => Inside::Seen,
            "f" => Inside::NoDirectory,
            _ => Inside::Closed,
        };
        let total = field().trim().parse().ok();
        let listing = field();
        let mut entries = parse_entries(listing);
        if output.len() >= LISTING {
            // The last one may be cut.
            entries.pop();
        }
        entries.sort();
        Self {
            target: (!target.is_empty() && target != path).then(|| target.to_owned()),
            path,
            kind,
            other,
            size: size.trim().parse().unwrap_or(0),
            text: Text::parse(text),
            readable,
            directory,
            inside,
            total,
            entries,
        }
    }

    /// ` -> target` where a symlink leads elsewhere.
    pub(super) fn arrow(&self) -> String {
        self.target
            .as_deref()
            .map(|target| format!(" -> {}", one_line(target)))
            .unwrap_or_default()
    }

    /// A complaint for anything but a regular file that can be read.
    pub(super) fn not_a_file(&self, given: &str, context: &ToolContext) -> Option<Failure> {
        let given = one_line(given);
        Some(Failure::Complaint(match (self.kind, &self.target) {
            (Kind::File, _) if self.readable => return None,
            (Kind::File, _) => format!("{given}: permission denied"),
            (Kind::Directory, _) => format!("{given} is a directory"),
            (Kind::Dangling, Some(target)) => format!(
                "{given} is no regular file but a link to {}, where nothing can be reached",
                one_line(target)
            ),
            (Kind::Other | Kind::Dangling, _) => {
                format!("{given} is no regular file but {}: use bash", self.other)
            }
            (Kind::Missing, _) => self.missing(&given, context),
        }))
    }

    fn missing(&self, given: &str, context: &ToolContext) -> String {
        let directory = one_line(&self.directory);
        match self.inside {
            Inside::Closed => return format!("{given}: permission denied in {directory}"),
            Inside::NoDirectory => return format!("{given}: {directory} is no directory"),
            Inside::Seen => {}
        }
        let below = self.path.strip_prefix(&self.directory).unwrap_or_default();
        let mut parts = below.split('/').filter(|part| !part.is_empty());
        let name = parts.next().unwrap_or_default();
        let near = alike(name, self.entries.iter().map(|entry| entry.name.as_str()));
        let is_directory = |name: &str| {
            let mut named = self.entries.iter().filter(|entry| entry.name == name);
            named.any(|entry| entry.is(DIRECTORY))
        };
        let near: Vec<String> = near
            .into_iter()
            .map(|name| one_line(name) + if is_directory(name) { "/" } else { "" })
            .collect();
        let whose = if parts.next().is_some() {
            format!(" {directory} has no {}.", one_line(name))
        } else {
            String::new()
        };
        let hint = if near.is_empty() {
            String::new()
        } else {
            format!(" Similar names there: {}.", near.join(", "))
        };
        format!(
            "{given}: no such file or directory.{whose}{hint} The working directory is {}.",
            one_line(&context.session.cwd())
        )
    }

    /// The directory's entries, for reading; `given` is its name in complaints.
    pub(super) async fn listing(
        &self,
        given: &str,
        context: &ToolContext,
    ) -> Result<String, Failure> {
        if self.inside != Inside::Seen || !self.readable {
            let given = one_line(given);
            let why = format!("{given}: permission denied for the directory's entries");
            return Err(Failure::Complaint(why));
        }
        let Some(total) = self.total else {
            let why = "the sandbox has no find to list a directory; use bash";
            return Err(Failure::Complaint(why.to_owned()));
        };
        if total == 0 && self.entries.is_empty() {
            return Ok("(empty directory)".to_owned());
        }
        let shown = self.entries.get(..SHOWN_ENTRIES).unwrap_or(&self.entries);
        let mut args = vec![self.path.as_str()];
        // By a name that is not UTF-8 no link can be asked for.
        let asked = |entry: &Entry| entry.is(LINK) && !entry.name.contains('\u{fffd}');
        let links = shown.iter().filter(|entry| asked(entry));
        args.extend(links.map(|entry| entry.name.as_str()));
        let led = if args.len() > 1 {
            let script = Script {
                text: LINKS,
                args,
                // A target is at most as long as a path.
                keep: SHOWN_ENTRIES * (LONGEST_PATH + 8),
                ..Script::default()
            };
            script.run_for(context, LIMIT).await?.stdout
        } else {
            Vec::new()
        };
        let led = String::from_utf8_lossy(&led);
        let mut led = led.split('\0');
        let mut lines = Vec::with_capacity(shown.len() + 1);
        for entry in shown {
            let name = one_line(&entry.name);
            lines.push(if entry.is(LINK) && !asked(entry) {
                format!("{name} (a link; its name is not UTF-8)")
            } else if entry.is(LINK) {
                let kind = led.next().unwrap_or_default();
                let target = one_line(led.next().unwrap_or_default());
                match kind {
                    "d" => format!("{name}/ -> {target}"),
                    "f" => format!("{name} -> {target}"),
                    _ => format!("{name} -> {target} (a link to nothing that can be reached)"),
                }
            } else if entry.is(DIRECTORY) {
                format!("{name}/")
            } else {
                format!("{name} ({})", size(entry.size))
            });
        }
        let known = u64::try_from(self.entries.len()).unwrap_or(u64::MAX);
        let total = total.max(known);
        let shown = u64::try_from(shown.len()).unwrap_or(u64::MAX);
        if shown < total {
            let which = if known < total {
                ", not the first by name"
            } else {
                ""
            };
            lines.push(format!(
                "[{} of {} entries{which}; use glob for the others]",
                grouped(shown),
                grouped(total)
            ));
        }
        Ok(lines.join("\n"))
    }
}

const DIRECTORY: u32 = 0x4000;
const LINK: u32 = 0xa000;

impl Entry {
    const fn is(&self, kind: u32) -> bool {
        self.mode & 0xf000 == kind
    }
}

/// The bytes of a file that was looked at. Bounded by the call's deadline and token.
pub(super) async fn fetch(
    place: &Place,
    most: u64,
    context: &ToolContext,
) -> Result<Bytes, Failure> {
    let reading = context.sandbox.read(&place.path, most);
    within(reading, context).await?.map_err(Into::into)
}

/// Writes a file, whole; `given` is its name in complaints.
pub(super) async fn store(
    path: &str,
    given: &str,
    bytes: Bytes,
    context: &ToolContext,
) -> Result<(), Failure> {
    let writing = context.sandbox.write(path, bytes);
    let Err(error) = within(writing, context).await? else {
        return Ok(());
    };
    let denied = matches!(
        error,
        SandboxError::File {
            kind: FileErrorKind::PermissionDenied,
            ..
        }
    );
    if denied && let Some(mode) = unwritable(path, context).await {
        return Err(Failure::Complaint(format!(
            "{} {}; change that with bash first, or write another file",
            one_line(given),
            if mode & 0o222 == 0 {
                format!("is read-only (mode {mode:o})")
            } else {
                format!("can't be written by this user (mode {mode:o})")
            }
        )));
    }
    let places = ["/tmp", context.session.start_dir()];
    let is_there = places
        .iter()
        .any(|place| Path::new(path).starts_with(place));
    Err(write_failed(given, error, is_there))
}

/// The mode of the file at `path`, if it is one that this user can't write to.
async fn unwritable(path: &str, context: &ToolContext) -> Option<u32> {
    let script = Script {
        text: r#"[ -f "$1" ] && ! [ -w "$1" ] && stat -L -c %a "$1""#,
        args: vec![path],
        keep: 16,
        ..Script::default()
    };
    let mode = script.run_for(context, LIMIT).await.ok()?.stdout;
    u32::from_str_radix(std::str::from_utf8(&mode).ok()?.trim(), 8).ok()
}

/// Why a write failed, in a sentence that says what to do. `is_there`: it was where files can be written as a rule.
fn write_failed(given: &str, error: SandboxError, is_there: bool) -> Failure {
    let SandboxError::File { kind, .. } = &error else {
        return error.into();
    };
    let name = one_line(given);
    let instead = if is_there {
        ""
    } else {
        "; write below the working directory or /tmp instead"
    };
    Failure::Complaint(match kind {
        FileErrorKind::NotFound => {
            format!("{name}: no such directory, and it could not be created")
        }
        FileErrorKind::PermissionDenied => {
            format!("{name}: permission denied{instead}")
        }
        FileErrorKind::IsDirectory => {
            format!("{name} is a directory; give the path of a file in it")
        }
        FileErrorKind::NotDirectory => {
            format!("{name}: a part of the path is a file, not a directory")
        }
        FileErrorKind::NotRegular => format!("{name} is no regular file: use bash"),
        FileErrorKind::NoSpace => {
            format!("{name}: its disk is full; delete what is no longer needed there")
        }
        FileErrorKind::ReadOnly => format!("{name}: read-only file system{instead}"),
        FileErrorKind::Other(why) => format!("{name}: {}", one_line(why)),
    })
}

pub(super) async fn within<T>(
    work: impl Future<Output = T>,
    context: &ToolContext,
) -> Result<T, Failure> {
    // The token first: nothing is begun for a run that is over.
    tokio::select! {
        biased;
        () = context.cancel.cancelled() => Err(Failure::Cancelled),
        done = tokio::time::timeout_at(context.deadline.within(FILE_LIMIT).instant(), work) => {
            done.map_err(|_| Failure::Complaint("the sandbox took too long over the file".to_owned()))
        }
    }
}

/// `<hex mode>|<size>|./<name>`, each before a line end that the next such head follows.
fn parse_entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in text.split('\n') {
        match head(line) {
            Some((mode, size, name)) => entries.push(Entry {
                name: name.to_owned(),
                mode,
                size,
            }),
            None => {
                if let Some(last) = entries.last_mut() {
                    last.name.push('\n');
                    last.name.push_str(line);
                }
            }
        }
    }
    if let Some(last) = entries.last_mut() {
        last.name.truncate(last.name.trim_end_matches('\n').len());
    }
    entries
}

fn head(line: &str) -> Option<(u32, u64, &str)> {
    let (mode, rest) = line.split_once('|')?;
    let (size, name) = rest.split_once('|')?;
    Some((
        u32::from_str_radix(mode, 16).ok()?,
        size.parse().ok()?,
        name.strip_prefix("./")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_from_the_directory_and_the_home() {
        for (path, full) in [
            ("a/b", "/w/a/b"),
            ("./a", "/w/a"),
            (".", "/w/."),
            ("/x/", "/x"),
            ("/", "/"),
            ("~", "/h"),
            ("~/a", "/h/a"),
            ("~x", "/w/~x"),
        ] {
            assert_eq!(absolute(path, "/w", "/h").unwrap(), full);
        }
        assert_eq!(absolute("a", "/", "/h").unwrap(), "/a");
        assert!(absolute("", "/w", "/h").is_err());
        assert!(absolute("a\0", "/w", "/h").is_err());
        assert!(absolute(&"a/".repeat(2_046), "/w", "/h").is_ok());
        assert!(absolute(&"a/".repeat(2_047), "/w", "/h").is_err());
    }

    #[test]
    fn entries_with_line_ends_in_their_names_stay_whole() {
        let entries = parse_entries("81a4|12|./a\nb|c\n41ed|4096|./dir\n");
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].name, "a\nb|c");
        assert!(entries[1].is(DIRECTORY));
        assert_eq!(entries[1].name, "dir");
    }
}
