//! The real binary as a process of its own: started, asked, weighed.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

/// Longer than any single step takes; a benchmark that waits for it has failed.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A running server. Killed when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    child: Child,
    _dir: TempDir,
}

impl Server {
    /// Starts the binary over a new directory with `file` as its `sandcaster.json` and `llm` as its Anthropic;
    /// also gives the time until the first healthy answer.
    pub async fn start(llm: SocketAddr, file: &str) -> (Self, Duration) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("sandcaster.json"), file).expect("a settings file");
        let begun = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_sandcaster"))
            .args(["serve", "--port", "0"])
            .current_dir(dir.path())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("ANTHROPIC_API_KEY", "sk-ant-bench-0123456789abcdef")
            .env("ANTHROPIC_BASE_URL", format!("http://{llm}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("a pipe");
        let mut line = String::new();
        timeout(PATIENCE, BufReader::new(stdout).read_line(&mut line))
            .await
            .expect("it listens in time")
            .expect("a line");
        let address = line
            .split("http://")
            .nth(1)
            .and_then(|rest| rest.split(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no address in {line:?}"));
        let server = Self {
            address,
            child,
            _dir: dir,
        };
        let health = server.get("/health").await;
        let took = begun.elapsed();
        assert!(health.starts_with("HTTP/1.1 200"), "{health}");
        (server, took)
    }

    /// A whole answer, head and body, over a connection of its own.
    pub async fn get(&self, path: &str) -> String {
        let exchange = async {
            let mut socket = TcpStream::connect(self.address).await?;
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                self.address
            );
            socket.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        timeout(PATIENCE, exchange)
            .await
            .expect("an answer in time")
            .expect("an answer")
    }

    /// The memory of the process that is in RAM, in KiB.
    pub fn rss_kib(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// The most memory that the process has had in RAM, in KiB.
    pub fn peak_kib(&self) -> f64 {
        self.status("VmHWM:")
    }

    pub fn threads(&self) -> f64 {
        self.status("Threads:")
    }

    fn status(&self, field: &str) -> f64 {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {field} in /proc/<pid>/status"))
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// The processor time of the process so far in milliseconds, its children's not counted.
    pub fn cpu_millis(&self) -> f64 {
        let stat = self.read("stat");
        let after_name = stat.rsplit_once(") ").expect("a name").1;
        let field = |at: usize| {
            after_name
                .split(' ')
                .nth(at)
                .and_then(|ticks| ticks.parse::<u64>().ok())
        };
        let ticks = field(11)
            .zip(field(12))
            .map_or(0, |(user, system)| user + system);
        // The unit of the kernel's interface: a hundredth of a second on every Linux architecture.
        (ticks * 10) as f64
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.pid())).expect("/proc")
    }
}
