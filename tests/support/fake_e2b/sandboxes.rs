//! Sandboxes: their states, their lives' ends, and their deaths.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use sandcaster::clock::Clock;
use sandcaster::ids::nonce;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::machine::{self, Machine};
use super::process::Process;

/// Running or paused; a dead sandbox is in no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Answers.
    Running,
    /// Frozen; the edge says that it was not found.
    Paused,
}

/// How open streams end when their sandbox dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Death {
    /// The connection breaks.
    #[default]
    Reset,
    /// An end frame with `unavailable`, as newer edges send.
    EndFrame,
}

/// What was asked for at creation.
#[derive(Clone, Debug, Default)]
pub(super) struct Wish {
    pub template: String,
    pub timeout: Duration,
    pub metadata: BTreeMap<String, String>,
    pub envs: BTreeMap<String, String>,
    pub secure: bool,
    pub auto_pause: bool,
    pub internet: Option<bool>,
    pub network: Option<Value>,
}

/// A sandbox, as tests see it.
#[derive(Clone, Debug)]
pub struct SandboxView {
    /// Its id.
    pub id: String,
    /// Template or snapshot that it was made from.
    pub template: String,
    /// Metadata of its creation.
    pub metadata: BTreeMap<String, String>,
    /// Environment of its creation.
    pub envs: BTreeMap<String, String>,
    /// Running or paused.
    pub state: State,
    /// When it was made.
    pub started_at: Timestamp,
    /// When it ends by itself.
    pub end_at: Timestamp,
    /// `allow_internet_access` of its creation.
    pub internet: Option<bool>,
    /// `network` of its creation, or as replaced since.
    pub network: Option<Value>,
    /// The directory on the host that holds its `home`, `root` and `tmp`.
    pub dir: PathBuf,
}

pub(super) struct SandboxBox {
    pub id: String,
    pub number: u64,
    pub wish: Wish,
    pub token: String,
    pub client_id: String,
    pub started: Instant,
    pub started_at: Timestamp,
    pub machine: Machine,
    pub processes: Mutex<HashMap<u32, Arc<Process>>>,
    pub file_metadata: Mutex<HashMap<PathBuf, BTreeMap<String, String>>>,
    pub network: Mutex<Option<Value>>,
    pub ran_anything: AtomicBool,
    /// Cancelled at its death: streams end.
    pub dead: CancellationToken,
    /// Cancelled before [`Self::dead`] where the death breaks connections.
    pub cut: CancellationToken,
    paused: Mutex<CancellationToken>,
    state: Mutex<State>,
    end: watch::Sender<(Instant, Timestamp)>,
}

impl SandboxBox {
    pub(super) fn state(&self) -> State {
        *self.state.lock()
    }

    pub(super) fn end_at(&self) -> Timestamp {
        self.end.borrow().1
    }

    /// Moves its end to `after` from now.
    pub(super) fn set_end(&self, after: Duration) {
        self.end.send_replace(end_after(after));
    }

    /// Moves its end to `after` from now, unless that were sooner.
    pub(super) fn extend(&self, after: Duration) {
        let new = end_after(after);
        self.end.send_if_modified(|end| {
            let later = new.0 > end.0;
            if later {
                *end = new;
            }
            later
        });
    }

    /// Resolves when its time is over.
    pub(super) async fn over(&self) {
        let mut end = self.end.subscribe();
        loop {
            let until = end.borrow_and_update().0;
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                changed = end.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Resolves once it runs and has time left.
    pub(super) async fn resumed(&self) {
        let mut end = self.end.subscribe();
        loop {
            let until = end.borrow_and_update().0;
            if self.state() == State::Running && until > Instant::now() {
                return;
            }
            tokio::select! {
                changed = end.changed() => if changed.is_err() { return },
                () = self.dead.cancelled() => return,
            }
        }
    }

    /// `execution` of an event's data.
    pub(super) fn execution(&self) -> Value {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        json!({"execution": {
            "started_at": self.started_at.to_string(), "vcpu_count": 2, "memory_mb": 512,
            "execution_time": millis,
        }})
    }

    /// Cancelled when it is paused.
    pub(super) fn pausing(&self) -> CancellationToken {
        self.paused.lock().clone()
    }

    /// Freezes it; false if it was frozen already.
    pub(super) fn pause(&self) -> bool {
        let mut state = self.state.lock();
        if *state == State::Paused {
            return false;
        }
        *state = State::Paused;
        self.machine.signal_all(Signal::SIGSTOP);
        self.paused.lock().cancel();
        true
    }

    /// Thaws it; false if it was running.
    pub(super) fn resume(&self) -> bool {
        let mut state = self.state.lock();
        if *state == State::Running {
            return false;
        }
        *self.paused.lock() = CancellationToken::new();
        self.machine.signal_all(Signal::SIGCONT);
        *state = State::Running;
        true
    }

    pub(super) fn view(&self) -> SandboxView {
        SandboxView {
            id: self.id.clone(),
            template: self.wish.template.clone(),
            metadata: self.wish.metadata.clone(),
            envs: self.wish.envs.clone(),
            state: self.state(),
            started_at: self.started_at,
            end_at: self.end_at(),
            internet: self.wish.internet,
            network: self.network.lock().clone(),
            dir: self.machine.dir().to_owned(),
        }
    }

    /// The answer to create and connect.
    pub(super) fn created_json(&self) -> Value {
        let mut json = json!({
            "templateID": self.wish.template,
            "sandboxID": self.id,
            "clientID": self.client_id,
            "envdVersion": ENVD_VERSION,
            "domain": null,
        });
        if self.wish.secure {
            json["envdAccessToken"] = json!(self.token);
        }
        json
    }

    /// An entry of the list.
    pub(super) fn listed_json(&self) -> Value {
        let state = match self.state() {
            State::Running => "running",
            State::Paused => "paused",
        };
        let mut json = json!({
            "templateID": self.wish.template,
            "sandboxID": self.id,
            "clientID": self.client_id,
            "startedAt": self.started_at.to_string(),
            "endAt": self.end_at().to_string(),
            "cpuCount": 2,
            "memoryMB": 512,
            "diskSizeMB": 1024,
            "state": state,
            "envdVersion": ENVD_VERSION,
        });
        if !self.wish.metadata.is_empty() {
            json["metadata"] = json!(self.wish.metadata);
        }
        json
    }

    /// The answer to get.
    pub(super) fn detail_json(&self) -> Value {
        let mut json = self.listed_json();
        json["domain"] = Value::Null;
        json["allowInternetAccess"] = json!(self.wish.internet);
        if self.wish.secure {
            json["envdAccessToken"] = json!(self.token);
        }
        let on_timeout = if self.wish.auto_pause {
            "pause"
        } else {
            "kill"
        };
        if let Some(network) = &*self.network.lock() {
            json["network"] = network.clone();
        }
        json["lifecycle"] = json!({"autoResume": false, "onTimeout": on_timeout});
        json
    }
}

/// The version of envd that is played.
pub(super) const ENVD_VERSION: &str = "0.6.13";

fn end_after(after: Duration) -> (Instant, Timestamp) {
    let at = Clock::system().now();
    let end = at.checked_add(after).unwrap_or(Timestamp::MAX);
    (Instant::now() + after, end)
}

/// All sandboxes of a stand-in.
#[derive(Default)]
pub(super) struct Sandboxes {
    live: Mutex<HashMap<String, Arc<SandboxBox>>>,
    made: AtomicU64,
    /// Every id ever given out, so that nothing of them is left behind at the end.
    all: Mutex<HashSet<String>>,
    sweeping: tokio::sync::Mutex<()>,
    to_sweep: Mutex<HashSet<String>>,
}

impl Sandboxes {
    pub(super) fn create(&self, wish: Wish) -> std::io::Result<Arc<SandboxBox>> {
        let id = format!("i{}", &nonce()[..20]);
        let sandbox = Arc::new(SandboxBox {
            number: self.made.fetch_add(1, Ordering::AcqRel) + 1,
            token: format!("ea_{}", nonce()),
            client_id: nonce()[..8].to_owned(),
            started: Instant::now(),
            started_at: Clock::system().now(),
            machine: Machine::new(&id)?,
            processes: Mutex::default(),
            file_metadata: Mutex::default(),
            network: Mutex::new(wish.network.clone()),
            ran_anything: AtomicBool::new(false),
            dead: CancellationToken::new(),
            cut: CancellationToken::new(),
            paused: Mutex::default(),
            state: Mutex::new(State::Running),
            end: watch::Sender::new(end_after(wish.timeout)),
            id: id.clone(),
            wish,
        });
        self.all.lock().insert(id.clone());
        self.live.lock().insert(id, sandbox.clone());
        Ok(sandbox)
    }

    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Acquire)
    }

    /// One by its id; the old form `<id>-<client>` is cut at the dash.
    pub(super) fn get(&self, id: &str) -> Option<Arc<SandboxBox>> {
        let id = id.split('-').next().unwrap_or_default();
        self.live.lock().get(id).cloned()
    }

    /// All, the newest first.
    pub(super) fn list(&self) -> Vec<Arc<SandboxBox>> {
        let mut all: Vec<_> = self.live.lock().values().cloned().collect();
        all.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.number));
        all
    }

    pub(super) fn running(&self) -> usize {
        let live = self.live.lock();
        live.values()
            .filter(|s| s.state() == State::Running)
            .count()
    }

    /// Takes it out and ends its streams and processes. `None` if it was gone.
    pub(super) async fn kill(&self, id: &str, death: Death) -> Option<Arc<SandboxBox>> {
        let id = id.split('-').next().unwrap_or_default();
        let sandbox = self.live.lock().remove(id)?;
        if death == Death::Reset {
            sandbox.cut.cancel();
        }
        sandbox.dead.cancel();
        // By their numbers first: the environment of a process that is just being replaced by its program
        // reads as empty, and the sweep would miss it.
        let known: Vec<_> = sandbox.processes.lock().values().cloned().collect();
        for process in known {
            process.signal(Signal::SIGKILL);
        }
        if sandbox.ran_anything.load(Ordering::Acquire) {
            self.to_sweep.lock().insert(sandbox.id.clone());
            self.sweep().await;
        }
        Some(sandbox)
    }

    /// Kills what the dead have left. Those who come meanwhile share the next look at the process table.
    async fn sweep(&self) {
        let _turn = self.sweeping.lock().await;
        let ids = std::mem::take(&mut *self.to_sweep.lock());
        if !ids.is_empty() {
            let done = tokio::task::spawn_blocking(move || machine::kill_all_of(&ids)).await;
            assert!(done.is_ok(), "the sweep panicked");
        }
    }

    /// Live processes of any sandbox that ever was.
    pub(super) fn processes_left(&self) -> usize {
        machine::processes_of(&self.all.lock()).len()
    }

    /// Ends everything, from a thread that may block.
    pub(super) fn end_all(&self) {
        let live: Vec<_> = self.live.lock().drain().collect();
        for (_, sandbox) in live {
            sandbox.cut.cancel();
            sandbox.dead.cancel();
        }
        let all = self.all.lock();
        if !all.is_empty() {
            machine::kill_all_of(&all);
        }
    }
}
