//! A real node for a test: the built binary on a temporary data folder and ports of its own choice, always ended by its pid, everything
//! in time. With `RINGKV_IO` in the environment every node runs on that (`epoll`), unless its test says other.

#![allow(dead_code, reason = "each test file uses its part of this")]

pub mod seccomp;

use ringkv::client::{Client, ClientConfig};
use ringkv::io::host;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_ringkv");
/// Until the ready line, and until a process ends that was told to.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A temporary folder, removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("node-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a temporary folder can be made");
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the node's data lies.
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// A file with this text.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("a file can be written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// A process whose streams are read all along; killed when dropped.
struct Process {
    child: Child,
    err: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    lines: mpsc::Receiver<String>,
}

impl Process {
    fn spawn(program: &str, words: &[String]) -> Process {
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let (tell, lines) = mpsc::channel();
        let said = Arc::new(Mutex::new(String::new()));
        let heard = said.clone();
        let out = std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        let err = std::thread::spawn(move || {
            for line in BufReader::new(err).lines().map_while(Result::ok) {
                let mut said = heard.lock().expect("nobody panics with it");
                said.push_str(&line);
                said.push('\n');
            }
        });
        Process { child, err: said, readers: vec![out, err], lines }
    }

    /// Waits for its end; kills it and panics if that takes too long.
    fn wait(&mut self) -> Ended {
        let by = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => break status,
                None if Instant::now() > by => {
                    let _ = self.child.kill();
                    panic!("the process does not end; it said: {}", self.said());
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
        let out: Vec<String> = self.lines.try_iter().collect();
        Ended { code: status.code().unwrap_or(-1), out: out.join("\n"), err: self.said() }
    }

    fn said(&self) -> String {
        self.err.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Runs the binary with these words to its end.
pub fn run(args: &[&str]) -> Ended {
    run_program(BINARY, args)
}

/// The same of another build.
pub fn run_program(program: &str, args: &[&str]) -> Ended {
    Process::spawn(program, &words(args)).wait()
}

/// A running node.
pub struct Node {
    process: Process,
    pub native: SocketAddr,
    pub admin: SocketAddr,
}

impl Node {
    /// Serves `data` on the first CPU with 64 MiB, unless `flags` say other.
    pub fn start(data: &Path, flags: &[&str]) -> Node {
        match Node::try_start(data, flags) {
            Ok(node) => node,
            Err(ended) => panic!("the node ended before it was ready: {ended:?}"),
        }
    }

    /// A node, or how it ended without becoming ready.
    pub fn try_start(data: &Path, flags: &[&str]) -> Result<Node, Ended> {
        Node::try_start_program(BINARY, data, flags)
    }

    /// The same of another build.
    pub fn try_start_program(program: &str, data: &Path, flags: &[&str]) -> Result<Node, Ended> {
        let mut line = words(&["--data", data.to_str().expect("plain names")]);
        let one = one_core();
        for (flag, value) in [("--port", "0"), ("--admin-port", "0"), ("--memory", "64MiB"), ("--cores", &one)] {
            if !flags.contains(&flag) {
                line.extend(words(&[flag, value]));
            }
        }
        if let (Ok(io), false) = (std::env::var("RINGKV_IO"), flags.contains(&"--io")) {
            line.extend(["--io".to_owned(), io]);
        }
        line.extend(words(flags));
        let mut process = Process::spawn(program, &line);
        let by = Instant::now() + PATIENCE;
        loop {
            match process.lines.recv_timeout(by.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with("ready ") => {
                    let (native, admin) = addresses(&line);
                    return Ok(Node { process, native, admin });
                }
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(process.wait()),
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("no ready line; it said: {}", process.said()),
            }
        }
    }

    /// How clients of these tests connect.
    pub fn config(&self) -> ClientConfig {
        let addresses = vec![format!("127.0.0.1:{}", self.native.port())];
        ClientConfig { addresses, request_timeout: Duration::from_secs(20), follow_ring: false, ..ClientConfig::default() }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.config()).expect("the node takes a client in")
    }

    /// A client of another namespace.
    pub fn client_of(&self, namespace: &str) -> Client {
        Client::connect(ClientConfig { namespace: namespace.to_owned(), ..self.config() }).expect("the node takes a client in")
    }

    /// A bare connection that waits at most ten seconds for anything.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.native.port())).expect("the port is open");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a stream takes a timeout");
        stream.set_write_timeout(Some(Duration::from_secs(10))).expect("a stream takes a timeout");
        stream
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Ends it with SIGKILL.
    pub fn kill(mut self) {
        self.process.child.kill().expect("it is our child");
        self.process.wait();
    }

    /// How it ends by itself.
    pub fn ends(mut self) -> Ended {
        self.process.wait()
    }

    /// Ends it with SIGTERM.
    pub fn stop(mut self) -> Ended {
        let pid = self.pid().to_string();
        let sent = Command::new("sh").args(["-c", "kill -TERM \"$1\"", "sh", &pid]).status().expect("there is a shell");
        assert!(sent.success(), "the node was not there to be ended: {}", self.process.said());
        self.process.wait()
    }

    /// Panics if the process ended.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.process.child.try_wait().expect("it is our child") {
            panic!("the node ended ({status}); it said: {}", self.process.said());
        }
    }

    /// What it said on standard error so far.
    pub fn said(&self) -> String {
        self.process.said()
    }

    /// Resident memory.
    pub fn rss_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the node is alive");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has memory");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number of KiB") * 1024
    }

    /// A GET on the admin port: status and body.
    pub fn ask(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin.port())).expect("the admin port is open");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a stream takes a timeout");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").expect("the admin port reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the admin port answers in time");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    /// The sum of a metric over cores and labels; 0 where there is none. The node publishes about twice a second.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.ask("/metrics");
        let values = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

fn addresses(line: &str) -> (SocketAddr, SocketAddr) {
    let find = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.parse().ok());
    match (find("native="), find("admin=")) {
        (Some(native), Some(admin)) => (native, admin),
        _ => panic!("a ready line names both addresses: {line}"),
    }
}

/// A program of the next version, which `scripts/check.sh` builds and names; `None`, and said, where there is none.
pub fn next_program(test: &str) -> Option<String> {
    let named = std::env::var("RINGKV_NEXT").ok();
    if named.is_none() {
        eprintln!("SKIPPED {test}: RINGKV_NEXT names no program built with the feature next-version");
    }
    named
}

/// The first CPU that may be used.
pub fn one_core() -> String {
    host::allowed_cpus()[0].to_string()
}

/// Two CPUs; `None`, and said, where there is only one.
pub fn two_cores(test: &str) -> Option<String> {
    match host::allowed_cpus()[..] {
        [first, second, ..] => Some(format!("{first},{second}")),
        _ => {
            eprintln!("SKIPPED {test}: this machine allows only one CPU");
            None
        }
    }
}

/// Waits until `is_so`, at most `patience`; whether it became so.
pub fn becomes(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let by = Instant::now() + patience;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() > by {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
