//! What the tools of one sandbox remember between calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::ids;
use crate::sandbox::{ExecOutput, ExecStream, Sandbox};

use super::facts::Facts;

/// Programs that outlive their call and whose output is still read. Each holds a stream of the backend.
const MAX_DRAINS: usize = 32;
/// Looks into a sandbox that tells nothing, as where no process can be started.
const MOST_LOOKS: u8 = 5;

/// The state that calls of one run share. Dropping it stops reading what programs left behind by calls
/// still print.
#[derive(Debug)]
pub struct ShellSession {
    start_dir: String,
    cwd: Mutex<String>,
    facts: OnceCell<Facts>,
    /// Until then.
    unknown: Facts,
    looks: AtomicU8,
    told: AtomicBool,
    /// Bounded by [`MAX_DRAINS`]; a set, so that all of them end with the session.
    drains: Mutex<JoinSet<()>>,
    prefix: String,
    outputs: Arc<Mutex<Outputs>>,
    /// What happened besides and is to be told with the next answer.
    notes: Mutex<Vec<String>>,
    /// Shared by what runs in the sandbox; held alone by a call that found no room beside others.
    pub(super) rooms: tokio::sync::RwLock<()>,
    /// Held from the reading of a file to its writing: no edit is lost to another one.
    pub(super) edits: tokio::sync::Mutex<()>,
    /// Held while an image is read and written as text: each takes megabytes, and calls run side by side.
    pub(super) pictures: tokio::sync::Mutex<()>,
}

/// Output files of commands, by number, from 1.
#[derive(Debug, Default)]
struct Outputs {
    made: u64,
    /// Files that nobody was told of and nobody writes to: the next commands use them again.
    free: Vec<u64>,
    /// The others, oldest first.
    kept: Vec<Output>,
}

#[derive(Debug)]
struct Output {
    number: u64,
    /// A program in the background may still write to it.
    growing: bool,
    /// Somebody was told of it; `None` before the call's answer.
    told: Option<bool>,
}

impl Outputs {
    fn change(&mut self, number: u64, change: impl FnOnce(&mut Output)) {
        let Some(at) = self.kept.iter().position(|o| o.number == number) else {
            return;
        };
        if let Some(output) = self.kept.get_mut(at) {
            change(output);
            if !output.growing && output.told == Some(false) {
                self.kept.remove(at);
                self.free.push(number);
            }
        }
    }
}

impl ShellSession {
    /// A session that starts in `working_dir`.
    pub fn new(working_dir: &str) -> Self {
        Self {
            start_dir: working_dir.to_owned(),
            cwd: Mutex::new(working_dir.to_owned()),
            facts: OnceCell::new(),
            unknown: Facts::unknown(working_dir),
            looks: AtomicU8::new(0),
            told: AtomicBool::new(false),
            drains: Mutex::new(JoinSet::new()),
            prefix: ids::nonce().get(..4).unwrap_or_default().to_owned(),
            outputs: Arc::default(),
            notes: Mutex::default(),
            rooms: tokio::sync::RwLock::default(),
            edits: tokio::sync::Mutex::new(()),
            pictures: tokio::sync::Mutex::new(()),
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

    /// Looks into the sandbox for at most two seconds; later calls get the same facts at once. The first tool
    /// call does this by itself if nobody did before. A look that gave nothing is taken again by later calls, a
    /// few times.
    pub async fn probe(&self, sandbox: &dyn Sandbox) -> &Facts {
        let looking = || async {
            let facts = Facts::look(sandbox).await;
            let last = self.looks.fetch_add(1, Ordering::Relaxed) + 1 >= MOST_LOOKS;
            (facts.known || last).then_some(facts).ok_or(())
        };
        let looked = self.facts.get_or_try_init(looking).await;
        looked.unwrap_or(&self.unknown)
    }

    /// The facts for the model: the first time that they are known and asked for, `None` ever after.
    pub fn take_notice(&self) -> Option<String> {
        let notice = self.facts.get()?.notice();
        let first = !self.told.swap(true, Ordering::Relaxed);
        (first && !notice.is_empty()).then_some(notice)
    }

    /// Has `note` told with the next answer.
    pub(super) fn note(&self, note: String) {
        self.notes.lock().push(note);
    }

    pub(super) fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock())
    }

    /// The number of a file for the next output, which nobody uses. It grows until
    /// [`Self::settle_output`].
    pub(super) fn take_output(&self) -> u64 {
        let mut outputs = self.outputs.lock();
        let number = outputs.free.pop().unwrap_or_else(|| {
            outputs.made += 1;
            outputs.made
        });
        outputs.kept.push(Output {
            number,
            growing: true,
            told: None,
        });
        number
    }

    /// Whether anybody was told of that file.
    pub(super) fn tell_output(&self, number: u64, told: bool) {
        let mut outputs = self.outputs.lock();
        outputs.change(number, |output| output.told = Some(told));
    }

    /// Nobody writes to that file any more.
    pub(super) fn settle_output(&self, number: u64) {
        let mut outputs = self.outputs.lock();
        outputs.change(number, |output| output.growing = false);
    }

    /// Takes note of files that were emptied.
    pub(super) fn emptied_outputs(&self, numbers: &[u64]) {
        let mut outputs = self.outputs.lock();
        outputs
            .kept
            .retain(|output| output.growing || !numbers.contains(&output.number));
    }

    /// The numbers of the output files that are kept, newest first.
    pub(super) fn kept_outputs(&self) -> Vec<u64> {
        let outputs = self.outputs.lock();
        outputs.kept.iter().rev().map(|o| o.number).collect()
    }

    /// An output file's name, unique in the sandbox.
    pub(super) fn output_file(&self, number: u64) -> String {
        format!("{}-{number}.txt", self.prefix)
    }

    /// A name for a file that nobody is told of, unique in the sandbox.
    pub(super) fn output_name(&self) -> String {
        let mut outputs = self.outputs.lock();
        outputs.made += 1;
        self.output_file(outputs.made)
    }

    /// Reads `stream` into nothing until it ends, so that the program behind it is neither slowed nor
    /// killed by a broken pipe; then the output file `number` is settled. Gives it back when too many are read
    /// already.
    pub(super) fn drain(&self, stream: ExecStream, number: u64) -> Result<(), ExecStream> {
        let mut drains = self.drains.lock();
        while drains.try_join_next().is_some() {}
        if drains.len() >= MAX_DRAINS {
            return Err(stream);
        }
        let outputs = Arc::clone(&self.outputs);
        drains.spawn(async move {
            let mut stream = stream;
            while !matches!(stream.next().await, Ok(ExecOutput::Exit(_)) | Err(_)) {}
            outputs
                .lock()
                .change(number, |output| output.growing = false);
        });
        Ok(())
    }
}
