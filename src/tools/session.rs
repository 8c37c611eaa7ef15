//! What the tools of one sandbox remember between calls.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::ids;
use crate::sandbox::{ExecOutput, ExecStream, Sandbox};

use super::facts::Facts;

/// Programs that outlive their call and whose output is still read. Each holds a stream of the backend.
const MAX_DRAINS: usize = 32;

/// The state that calls of one run share. Dropping it stops reading what programs left behind by calls
/// still print.
#[derive(Debug)]
pub struct ShellSession {
    start_dir: String,
    cwd: Mutex<String>,
    facts: OnceCell<Facts>,
    told: AtomicBool,
    /// Bounded by [`MAX_DRAINS`]; a set, so that all of them end with the session.
    drains: Mutex<JoinSet<()>>,
    prefix: String,
    outputs: AtomicU64,
    /// Held from the reading of a file to its writing: no edit is lost to another one.
    pub(super) edits: tokio::sync::Mutex<()>,
}

impl ShellSession {
    /// A session that starts in `working_dir`.
    pub fn new(working_dir: &str) -> Self {
        Self {
            start_dir: working_dir.to_owned(),
            cwd: Mutex::new(working_dir.to_owned()),
            facts: OnceCell::new(),
            told: AtomicBool::new(false),
            drains: Mutex::new(JoinSet::new()),
            prefix: ids::nonce().get(..4).unwrap_or_default().to_owned(),
            outputs: AtomicU64::new(0),
            edits: tokio::sync::Mutex::new(()),
        }
    }

    /// The directory that the next command starts in.
    pub fn cwd(&self) -> String {
        self.cwd.lock().clone()
    }

    /// Where the session started.
    pub fn start_dir(&self) -> &str {
        &self.start_dir
    }

    pub(super) fn set_cwd(&self, dir: &str) {
        dir.clone_into(&mut self.cwd.lock());
    }

    /// Looks into the sandbox, once per session and for at most two seconds; later calls get the same
    /// facts at once. The first tool call does this by itself if nobody did before.
    pub async fn probe(&self, sandbox: &dyn Sandbox) -> &Facts {
        self.facts.get_or_init(|| Facts::look(sandbox)).await
    }

    /// The facts for the model: the first time that they are known and asked for, `None` ever after.
    pub fn take_notice(&self) -> Option<String> {
        let notice = self.facts.get()?.notice();
        let first = !self.told.swap(true, Ordering::Relaxed);
        (first && !notice.is_empty()).then_some(notice)
    }

    /// A name for the next output file, unique in the sandbox.
    pub(super) fn output_name(&self) -> String {
        let n = self.outputs.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{}-{n}.txt", self.prefix)
    }

    /// Reads `stream` into nothing until it ends, so that the program behind it is neither slowed nor
    /// killed by a broken pipe. Gives it back when too many are read already.
    pub(super) fn drain(&self, stream: ExecStream) -> Result<(), ExecStream> {
        let mut drains = self.drains.lock();
        while drains.try_join_next().is_some() {}
        if drains.len() >= MAX_DRAINS {
            return Err(stream);
        }
        drains.spawn(async move {
            let mut stream = stream;
            while !matches!(stream.next().await, Ok(ExecOutput::Exit(_)) | Err(_)) {}
        });
        Ok(())
    }
}
