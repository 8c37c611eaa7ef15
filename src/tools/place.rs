//! Where a path leads in the sandbox, and what is there.

use std::time::Duration;

use bytes::Bytes;

use super::script::Script;
use crate::show::{alike, one_line, size};

use super::types::{Failure, ToolContext};

const LIMIT: Duration = Duration::from_secs(20);
/// For reading or writing one file through the backend.
const FILE_LIMIT: Duration = Duration::from_mins(1);
/// Names of a directory that are looked at.
const LISTING: usize = 256 * 1024;
const SHOWN_ENTRIES: usize = 200;

/// Says what `$1` is, in fields that end with NUL: kind, size, text (if `$2` is 1 and it is of at most 8 MiB:
/// its lines, those in CRLF, the first bytes), where a symlink leads, whether it may be read; then, of a directory its entries, of a missing
/// file its neighbours.
///
/// Entries are `./name` behind their mode and size: as no name has a slash, none can forge that.
const INSPECT: &str = r#"
p=$1
s=; l=; t=; r=0
if [ -d "$p" ]; then k=d; elif [ -f "$p" ]; then k=f; elif [ -e "$p" ] || [ -L "$p" ]; then k=o; else k=n; fi
[ -r "$p" ] && r=1
if [ "$k" = f ]; then
s=$(stat -L -c %s "$p" 2>/dev/null || wc -c <"$p" 2>/dev/null)
[ "$2" = 1 ] && [ "${s:-0}" -le 8388608 ] && l="$(grep -c '' "$p" 2>/dev/null) $(LC_ALL=C grep -c "$(printf '\r')\$" "$p" 2>/dev/null) $(head -c 3 "$p" 2>/dev/null | od -An -tx1)"
fi
[ -L "$p" ] && t=$(readlink -f "$p" 2>/dev/null)
printf '%s\000%s\000%s\000%s\000%s\000' "$k" "$s" "$l" "$t" "$r"
d=
[ "$k" = d ] && d=$p
[ "$k" = n ] && d=${p%/*}/
[ -n "$d" ] && cd "$d" 2>/dev/null || exit 0
find . ! -name . -prune -exec stat -L -c '%f|%s|%n' {} + 2>/dev/null | head -c 262144
"#;

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    /// A FIFO, a device, a socket, a symlink that leads nowhere.
    Other,
    Missing,
}

/// A path that was looked at.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Absolute.
    pub(super) path: String,
    pub(super) kind: Kind,
    /// Of a regular file, in bytes.
    pub(super) size: u64,
    /// Of a regular file, if it was asked for and the file isn't large.
    pub(super) text: Option<Text>,
    /// Where a symlink leads in the end.
    pub(super) target: Option<String>,
    pub(super) readable: bool,
    entries: Vec<Entry>,
}

/// What a text is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) lines: u64,
    /// Lines that end in CRLF.
    pub(super) crlf: u64,
    /// The first three bytes, in hexadecimal.
    pub(super) begins: String,
}

impl Text {
    fn parse(field: &str) -> Option<Self> {
        let mut words = field.split_whitespace();
        Some(Self {
            lines: words.next()?.parse().ok()?,
            crlf: words.next()?.parse().ok()?,
            begins: words.collect(),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    name: String,
    directory: bool,
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
    Ok(if trimmed.is_empty() { "/" } else { trimmed }.to_owned())
}

impl Place {
    /// Looks at `path`, as the model gave it.
    pub(super) async fn look(
        path: &str,
        count_lines: bool,
        context: &ToolContext,
    ) -> Result<Self, Failure> {
        let facts = context.session.probe(context.sandbox.as_ref()).await;
        let path = absolute(path, &context.session.cwd(), &facts.home)?;
        let found = Script {
            text: INSPECT,
            args: vec![&path, if count_lines { "1" } else { "0" }],
            keep: LISTING + 16 * 1024,
            ..Script::default()
        }
        .run_for(context, LIMIT)
        .await?;
        Ok(Self::parse(path, &found.stdout))
    }

    fn parse(path: String, output: &[u8]) -> Self {
        let text = String::from_utf8_lossy(output);
        let mut fields = text.splitn(6, '\0');
        let mut field = || fields.next().unwrap_or_default().trim().to_owned();
        let kind = match field().as_str() {
            "d" => Kind::Directory,
            "f" => Kind::File,
            "o" => Kind::Other,
            _ => Kind::Missing,
        };
        let (size, text, target, readable) = (field(), field(), field(), field());
        let mut entries = parse_entries(&field());
        entries.sort();
        Self {
            target: (!target.is_empty() && target != path).then_some(target),
            path,
            kind,
            size: size.parse().unwrap_or(0),
            text: Text::parse(&text),
            readable: readable == "1",
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
        let what = match self.kind {
            Kind::File if self.readable => return None,
            Kind::File => format!("{given}: permission denied"),
            Kind::Directory => format!("{given} is a directory"),
            Kind::Other => format!(
                "{given} is no regular file (a pipe, socket, device or dangling link): use bash"
            ),
            Kind::Missing => self.missing(&given, context),
        };
        Some(Failure::Complaint(
            context.redactor.clean(&what).into_owned(),
        ))
    }

    fn missing(&self, given: &str, context: &ToolContext) -> String {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let near: Vec<String> = alike(name, self.entries.iter().map(|entry| entry.name.as_str()))
            .into_iter()
            .map(one_line)
            .collect();
        let hint = if near.is_empty() {
            String::new()
        } else {
            format!(" Similar names there: {}.", near.join(", "))
        };
        format!(
            "{given}: no such file or directory.{hint} The working directory is {}.",
            one_line(&context.session.cwd())
        )
    }

    /// The directory's entries, for reading.
    pub(super) fn listing(&self) -> String {
        if self.entries.is_empty() {
            return "(empty directory)".to_owned();
        }
        let mut lines: Vec<String> = self
            .entries
            .iter()
            .take(SHOWN_ENTRIES)
            .map(|entry| entry.shown(true))
            .collect();
        if self.entries.len() > SHOWN_ENTRIES {
            lines.push(format!(
                "[{} of {} entries; use glob for the others]",
                SHOWN_ENTRIES,
                self.entries.len()
            ));
        }
        lines.join("\n")
    }
}

impl Entry {
    fn shown(&self, with_size: bool) -> String {
        let name = one_line(&self.name);
        match (self.directory, with_size) {
            (true, _) => format!("{name}/"),
            (false, true) => format!("{name} ({})", size(self.size)),
            (false, false) => name,
        }
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
    within(writing, context)
        .await?
        .map_err(|error| super::write::failed(given, error))
}

async fn within<T>(work: impl Future<Output = T>, context: &ToolContext) -> Result<T, Failure> {
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
                directory: mode & 0xf000 == 0x4000,
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
    }

    #[test]
    fn entries_with_line_ends_in_their_names_stay_whole() {
        let entries = parse_entries("81a4|12|./a\nb|c\n41ed|4096|./dir\n");
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].name, "a\nb|c");
        assert!(entries[1].directory);
        assert_eq!(entries[1].name, "dir");
    }
}
