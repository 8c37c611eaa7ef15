//! Work that takes long is not done on the threads of the runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use sandcaster::clock::Deadline;
use sandcaster::sandbox::files::{Baseline, CollectLimits, Collecting};
use sandcaster::sandbox::{ExecControl, ExecOutput, ExecSpec, ExecStream, Sandbox, SandboxError};
use sandcaster::secrets::Redactor;
use sandcaster::tools::{ShellSession, ToolContext, tool};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

type Prints = dyn Fn(&ExecSpec) -> Vec<ExecOutput> + Send + Sync;

/// One file in memory: whatever is asked of it is answered at once.
struct Memory {
    file: Bytes,
    /// What a program prints.
    prints: Box<Prints>,
    /// How often the file was read.
    reads: AtomicUsize,
    /// The nonce of the last command, with which its file ends.
    nonce: parking_lot::Mutex<String>,
    /// How often all that runs was ended.
    ended: Arc<AtomicUsize>,
}

impl Memory {
    fn new(
        file: &'static [u8],
        prints: impl Fn(&ExecSpec) -> Vec<ExecOutput> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Self::ending(file, prints, Arc::default())
    }

    fn ending(
        file: &'static [u8],
        prints: impl Fn(&ExecSpec) -> Vec<ExecOutput> + Send + Sync + 'static,
        ended: Arc<AtomicUsize>,
    ) -> Arc<Self> {
        Arc::new(Self {
            ended,
            file: Bytes::from_static(file),
            prints: Box::new(prints),
            reads: AtomicUsize::new(0),
            nonce: parking_lot::Mutex::default(),
        })
    }
}

struct Nothing;

#[async_trait::async_trait]
impl ExecControl for Nothing {
    async fn kill(&self) {}
}

#[async_trait::async_trait]
impl Sandbox for Memory {
    fn id(&self) -> &'static str {
        "memory"
    }
    fn working_dir(&self) -> &'static str {
        "/home"
    }
    async fn exec(&self, spec: ExecSpec) -> Result<ExecStream, SandboxError> {
        *self.nonce.lock() = spec.argv.get(4).cloned().unwrap_or_default();
        let printed = (self.prints)(&spec);
        let (sender, output) = tokio::sync::mpsc::channel(printed.len() + 1);
        let ended = printed
            .iter()
            .any(|said| matches!(said, ExecOutput::Exit(_)));
        let end = (!ended).then_some(ExecOutput::Exit(0));
        for piece in printed.into_iter().chain(end) {
            sender.try_send(Ok(piece)).unwrap();
        }
        let control = Arc::new(Nothing);
        Ok(ExecStream { output, control })
    }
    async fn read(&self, _: &str, _: u64) -> Result<Bytes, SandboxError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let end = format!("\n\x1e{} 3 - /home\x1e", self.nonce.lock());
        Ok([&self.file, end.as_bytes()].concat().into())
    }
    async fn write(&self, _: &str, _: Bytes) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn extend(&self, _: Duration) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn kill(&self) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn gone(&self) -> SandboxError {
        std::future::pending().await
    }
    async fn end_all(&self) -> Result<Option<u32>, SandboxError> {
        self.ended.fetch_add(1, Ordering::Relaxed);
        Ok(Some(3))
    }
}

/// Takes the only thread for long work, after what waits for it already, until the sender is dropped.
fn take_the_thread() -> (Sender<()>, JoinHandle<()>) {
    let (free, taken) = channel::<()>();
    let work = tokio::task::spawn_blocking(move || {
        taken.recv().ok();
    });
    (free, work)
}

/// Polls `work` often; it must still be waiting.
async fn is_stuck<T>(work: &mut (impl Future<Output = T> + Unpin)) -> bool {
    for _ in 0..100 {
        if futures::poll!(&mut *work).is_ready() {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

fn on_one_thread(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap()
        .block_on(test);
}

fn context(sandbox: Arc<dyn Sandbox>) -> ToolContext {
    ToolContext {
        sandbox,
        session: Arc::new(ShellSession::new("/home")),
        deadline: Deadline::after(Duration::from_secs(50)),
        cancel: CancellationToken::new(),
        redactor: Redactor::default(),
    }
}

fn args(args: &Value) -> serde_json::Map<String, Value> {
    args.as_object().unwrap().clone()
}

#[test]
fn an_edit_computes_off_the_threads_of_the_runtime() {
    on_one_thread(async {
        let looked = |_: &ExecSpec| vec![ExecOutput::Stdout("f\x0020\0\0\x001\0".into())];
        let context = context(Memory::new(b"one\ntwo\n", looked));
        for old in ["two", "three"] {
            let (free, taken) = take_the_thread();
            let change = json!({"path": "f", "old_string": old, "new_string": "2"});
            let built = tool("file_edit").unwrap().built.unwrap();
            let mut call = Box::pin(built.call(args(&change), &context));
            assert!(is_stuck(&mut call).await, "{old}");
            drop(free);
            assert_eq!(call.await.is_ok(), old == "two");
            taken.await.unwrap();
        }
    });
}

#[test]
fn output_that_was_lost_is_read_again_off_the_threads_of_the_runtime() {
    on_one_thread(async {
        let broken = |_: &ExecSpec| vec![ExecOutput::Gap];
        let sandbox = Memory::new(b"whole", broken);
        let context = context(sandbox.clone());
        let (free, taken) = take_the_thread();
        let built = tool("bash").unwrap().built.unwrap();
        let mut call = Box::pin(built.call(args(&json!({"command": "echo whole"})), &context));
        assert!(is_stuck(&mut call).await);
        assert_eq!(sandbox.reads.load(Ordering::Relaxed), 1);
        drop(free);
        let answer = call.await.unwrap();
        assert!(answer.text.starts_with("whole\n[exit 3"), "{}", answer.text);
        taken.await.unwrap();
    });
}

#[test]
fn output_is_cleaned_off_the_threads_of_the_runtime() {
    on_one_thread(async {
        let noise = |spec: &ExecSpec| {
            let nonce = spec.argv.get(4).map_or("", String::as_str);
            let begin = Bytes::from(format!("\x1e{nonce} 7 0  S\x1e"));
            let end = Bytes::from(format!("\n\x1e{nonce} 3 - /home\x1e"));
            let noise = std::iter::repeat_n(Bytes::from(vec![0xff; 30_000]), 5);
            let all = [begin].into_iter().chain(noise).chain([end]);
            all.map(ExecOutput::Stdout).collect()
        };
        let context = context(Memory::new(b"", noise));
        let built = tool("bash").unwrap().built.unwrap();
        let mut answer = None;
        let command = args(&json!({"command": "noise"}));
        let call = Box::pin(async { answer = Some(built.call(command, &context).await) });
        // A slice, and the rest.
        assert_eq!(turns(call).await, 2);
        let text = answer.unwrap().unwrap().text;
        assert!(
            text.contains("126,000 characters (0 lines) left out"),
            "{}",
            text.len()
        );
        assert!(text.contains("[exit 3"));
    });
}

const LISTED: &str = ".\0./a\0/\0\x0041ed|6|1|1.5|.\n81a4|7|1|1.5|./a\n41ed|6|1|1.5|/\n\0\0\0";

#[tokio::test]
async fn a_look_that_the_connection_lost_is_taken_again() {
    let (limits, deadline) = (
        CollectLimits::default(),
        Deadline::after(Duration::from_secs(50)),
    );
    for lost in 0..4 {
        let left = AtomicUsize::new(lost);
        let listed = move |_: &ExecSpec| {
            let fails =
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            let gap = fails.is_ok().then_some(ExecOutput::Gap);
            let said = ExecOutput::Stdout(LISTED.into());
            gap.into_iter().chain([said]).collect()
        };
        let sandbox = Memory::new(b"content", listed);
        let before = Baseline::default();
        let mut all = Collecting::begin(sandbox.as_ref(), &before, limits, deadline).await;
        assert_eq!(all.next().await.is_some(), lost <= 2, "{lost}");
    }
}

/// What breaks a look off may be what was left running; that a program is missing says the image.
#[tokio::test]
async fn what_was_left_running_is_ended_where_it_may_be_why_a_last_look_broke_off() {
    let half = &LISTED[..LISTED.len() / 2];
    for (name, said, ends) in [
        ("stat was killed", vec![ExecOutput::Exit(8)], true),
        ("the shell was killed", vec![ExecOutput::Exit(137)], true),
        (
            "find was killed",
            vec![ExecOutput::Stdout(half.into())],
            true,
        ),
        (
            "there is no stat",
            vec![ExecOutput::Stderr("stat".into()), ExecOutput::Exit(7)],
            false,
        ),
    ] {
        let ended = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&ended);
        let printed = move |_: &ExecSpec| match seen.load(Ordering::Relaxed) {
            0 => said.clone(),
            _ => vec![ExecOutput::Stdout(LISTED.into())],
        };
        let sandbox = Memory::ending(b"content", printed, Arc::clone(&ended));
        let limits = CollectLimits::default();
        let deadline = Deadline::after(Duration::from_secs(50));
        let before = Baseline::default();
        let mut all = Collecting::begin(sandbox.as_ref(), &before, limits, deadline).await;
        assert_eq!(all.ended(), if ends { 3 } else { 0 }, "{name}");
        assert_eq!(ended.load(Ordering::Relaxed), usize::from(ends), "{name}");
        assert_eq!(all.next().await.is_some(), ends, "{name}");
    }
}

#[test]
fn files_are_collected_off_the_threads_of_the_runtime() {
    on_one_thread(async {
        let listed = |_: &ExecSpec| vec![ExecOutput::Stdout(LISTED.into())];
        let sandbox = Memory::new(b"content", listed);
        let (before, limits) = (Baseline::default(), CollectLimits::default());
        let deadline = Deadline::after(Duration::from_secs(50));
        let (free, taken) = take_the_thread();
        let mut collecting = Box::pin(async {
            let mut all = Collecting::begin(sandbox.as_ref(), &before, limits, deadline).await;
            (all.next().await, all.omitted())
        });
        // The listing waits for its turn, and behind it stands what takes the thread once more.
        assert!(is_stuck(&mut collecting).await);
        assert_eq!(sandbox.reads.load(Ordering::Relaxed), 0);
        let (again, taken_again) = take_the_thread();
        drop(free);
        taken.await.unwrap();
        while sandbox.reads.load(Ordering::Relaxed) == 0 {
            assert!(futures::poll!(&mut collecting).is_pending());
            tokio::task::yield_now().await;
        }
        assert!(is_stuck(&mut collecting).await);
        drop(again);
        let (file, omitted) = collecting.await;
        assert!(file.is_some(), "{omitted:?}");
        taken_again.await.unwrap();
    });
}

/// Makes `work` wait for the only thread again and again, until it is done: how often it asked for it.
async fn turns<T>(mut work: impl Future<Output = T> + Unpin) -> usize {
    let taken = || {
        let (free, until) = channel::<()>();
        let (begun, begins) = tokio::sync::oneshot::channel();
        drop(tokio::task::spawn_blocking(move || {
            begun.send(()).ok();
            until.recv().ok();
        }));
        (free, begins)
    };
    let (mut free, begins) = taken();
    begins.await.unwrap();
    for turn in 0..20 {
        if !is_stuck(&mut work).await {
            return turn;
        }
        // Behind what the work waits for: when this has begun, that is done.
        let (next, begins) = taken();
        drop(std::mem::replace(&mut free, next));
        begins.await.unwrap();
    }
    panic!("it waits for something else");
}

/// What the scripts of the tools print of a directory with a file of one line.
fn directory(spec: &ExecSpec) -> Vec<ExecOutput> {
    let text = spec.argv.get(2).map_or("", String::as_str);
    let printed = if text.contains("ulimit -v") {
        "./a:1:x\n/end 0\n"
    } else if text.contains("-type l") {
        "d\0./a\0/\0"
    } else {
        "f\x0020\0\0\x001\0"
    };
    vec![ExecOutput::Stdout(printed.into())]
}

#[tokio::test]
async fn a_look_beside_a_search_that_fails_takes_no_line_away() {
    let prints = |spec: &ExecSpec| {
        if spec.argv.iter().any(|arg| arg.starts_with("marks ")) {
            return vec![ExecOutput::Exit(1)];
        }
        directory(spec)
    };
    let context = context(Memory::new(b"x", prints));
    let built = tool("grep").unwrap().built.unwrap();
    let call = built.call(args(&json!({"pattern": "x"})), &context);
    let text = call.await.unwrap().text;
    assert!(text.starts_with("a:1:x\n[files in UTF-16"), "{text}");
}

#[test]
fn tools_compute_off_the_threads_of_the_runtime() {
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01";
    for (name, given, file, times) in [
        // The pattern, the listing, the names that match.
        ("glob", json!({"pattern": "*"}), &b"x"[..], 3),
        // The pattern, the listing, the names; the lines, and those that mark files in UTF-16.
        ("grep", json!({"pattern": "x"}), b"x", 5),
        // The lines, and the page of them.
        ("file_read", json!({"path": "a"}), b"x\n", 2),
        // The lines, and the image.
        ("file_read", json!({"path": "a"}), PNG, 2),
    ] {
        on_one_thread(async {
            let context = context(Memory::new(file, directory));
            let built = tool(name).unwrap().built.unwrap();
            let call = Box::pin(built.call(args(&given), &context));
            assert_eq!(turns(call).await, times, "{name}");
        });
    }
}
