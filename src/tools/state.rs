//! Files of ours in a sandbox that hold what is too long for an argument or for standard input.

use std::time::Duration;

use bytes::Bytes;

use crate::clock::Deadline;
use crate::sandbox::{SandboxError, Script, Short, unforked};

use super::facts::Facts;
use super::place::within;
use super::types::{Failure, ToolContext};

const LIMIT: Duration = Duration::from_secs(10);
const REMOVAL: Duration = Duration::from_secs(2);

/// Prints the first of the directories `$2`, `$3`, … in which the file `$1` can be made, and makes it. What is in the way
/// there and is no directory or file of its own is removed: a link would lead elsewhere, and a pipe would wait for ever.
const PLACE: &str = r#"
name=$1
shift
for dir do
[ -d "$dir" ] && [ ! -L "$dir" ] || { rm -rf "$dir"; mkdir -p "$dir"; } 2>/dev/null
file=$dir/$name
if [ -L "$file" ] || [ -e "$file" ] && [ ! -f "$file" ]; then rm -rf "$file" 2>/dev/null; fi
if { echo >"$file"; } 2>/dev/null; then printf '%s\n' "$dir"; exit 0; fi
rm -f "$file" 2>/dev/null
done
exit 0
"#;

/// Why there is no file.
pub(super) enum Unkept {
    /// No process could be started to make room for it.
    Short(Short),
    Failure(Failure),
}

impl From<Failure> for Unkept {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// Writes `bytes` to a file called `name` where there is room for it, and gives its path.
pub(super) async fn keep(
    name: &str,
    bytes: &Bytes,
    facts: &Facts,
    context: &ToolContext,
) -> Result<String, Unkept> {
    let sandbox = context.sandbox.as_ref();
    let home = format!("{}/.sandcaster", facts.home);
    let dirs = [facts.state_dir.as_str(), &home, "/dev/shm/.sandcaster"];
    let mut dirs = dirs.as_slice();
    let mut why = "no file can be made there".to_owned();
    while let [_, ..] = dirs {
        let script = Script {
            text: PLACE,
            args: [&[name], dirs].concat(),
            keep: 8 * 1024,
            ..Script::default()
        };
        let placing = script.run(sandbox, Deadline::after(LIMIT));
        let placed = match within(placing, context).await? {
            Ok(placed) => placed,
            Err(SandboxError::Starved(short)) => return Err(Unkept::Short(short)),
            Err(error) => return Err(Unkept::Failure(error.into())),
        };
        if let Some(short) = unforked(&placed.stderr) {
            return Err(Unkept::Short(short));
        }
        let said = String::from_utf8_lossy(&placed.stdout);
        let Some(at) = dirs.iter().position(|dir| *dir == said.trim_end()) else {
            break;
        };
        let path = format!("{}/{name}", said.trim_end());
        match within(sandbox.write(&path, bytes.clone()), context).await? {
            Ok(()) => return Ok(path),
            Err(error) if error.is_fatal() => return Err(Unkept::Failure(error.into())),
            Err(error) => why = error.to_string(),
        }
        discard(&path, context).await;
        dirs = dirs.get(at + 1..).unwrap_or_default();
    }
    Err(Unkept::Failure(Failure::Complaint(why)))
}

/// Removes a file that nobody needs any more; empties it where no process can be started for that.
pub(super) async fn discard(path: &str, context: &ToolContext) {
    let sandbox = context.sandbox.as_ref();
    let removing = Script {
        text: r#"exec rm -f "$1""#,
        args: vec![path],
        ..Script::default()
    };
    let removed = removing.run(sandbox, Deadline::after(REMOVAL)).await;
    if !removed.is_ok_and(|removed| removed.exit_code == 0) {
        let emptying = sandbox.write(path, Bytes::new());
        drop(tokio::time::timeout(REMOVAL, emptying).await);
    }
}
