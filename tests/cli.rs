//! The command line as scripts and people rely on it: a real node on a temporary folder, the shell client, exit codes.

use ringkv::config::exit;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ringkv-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Node {
    child: Child,
    native: String,
    admin: String,
}

fn ringkv(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringkv"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs to its end, which must come within a minute.
fn finish(args: &[&str]) -> Output {
    let mut child = ringkv(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            panic!("{args:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

impl Node {
    fn start(data: &str, more: &[&str]) -> Node {
        Node::start_at(data, "0", more)
    }

    fn start_at(data: &str, port: &str, more: &[&str]) -> Node {
        let io = std::env::var("RINGKV_IO").unwrap_or_else(|_| "auto".to_owned());
        let flags = [&["--data", data, "--port", port, "--admin-port", "0", "--memory", "64MiB", "--io", &io], more].concat();
        let mut child = ringkv(&flags).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(READY_WITHIN).unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["ready", native, admin] = words[..] else {
            let _ = child.kill();
            panic!("the first line should be `ready native=HOST:PORT admin=HOST:PORT`, and was {line:?}");
        };
        let native = native.strip_prefix("native=").expect("native").to_owned();
        let admin = admin.strip_prefix("admin=").expect("admin").to_owned();
        Node { child, native, admin }
    }

    /// The shell client: exit code and standard output.
    fn shell(&self, words: &[&str]) -> (i32, String) {
        let (host, port) = self.native.rsplit_once(':').unwrap();
        let output = finish(&[words, &["--host", host, "--port", port]].concat());
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    fn ok(&self, words: &[&str]) -> String {
        let (code, text) = self.shell(words);
        assert_eq!(code, exit::CLEAN, "{words:?} said {text}");
        text
    }

    fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the exit code.
    fn terminate(mut self) -> i32 {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().expect("an exit code, no signal");
            }
            assert!(began.elapsed() < Duration::from_secs(30), "SIGTERM should end it");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn allowed_cpus() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    ringkv::config::parse::cores(list.trim()).unwrap()
}

#[test]
fn a_wrong_configuration_is_one_sentence_that_names_the_key_and_exit_2() {
    let folder = Folder::new();
    let file = folder.path("conf");
    std::fs::write(&file, "prot = 7400\n").unwrap();
    for (args, key) in [
        (vec!["--prot", "1"], "--prot"),
        (vec!["--memory", "lots"], "memory"),
        (vec!["--port", "7480"], "admin-port"),
        (vec!["--host", "0.0.0.0"], "secret-file"),
        (vec!["--config", &file], "prot"),
        (vec!["get"], "KEY"),
    ] {
        let output = finish(&args);
        assert_eq!(output.status.code(), Some(exit::CONFIG), "{args:?}");
        let text = said(&output);
        assert!(text.contains(key) && text.lines().count() == 1 && output.stdout.is_empty(), "{args:?} said {text}");
    }
    assert_eq!(finish(&["--help"]).status.code(), Some(exit::CLEAN));
}

#[test]
fn the_shell_client_puts_gets_expires_and_deletes() {
    let folder = Folder::new();
    let node = Node::start(&folder.path("data"), &[]);
    let first = node.ok(&["put", "key", "value"]);
    assert_eq!((first.len(), node.ok(&["get", "key"])), (32, "value".to_owned()));
    assert_eq!(node.shell(&["put", "key", "other", "--if-absent"]).0, exit::FAILED);
    let second = node.ok(&["put", "key", "newer", "--if-version", &first]);
    assert!(second > first, "{second} lies above {first}");
    assert_eq!(node.ok(&["ttl", "key"]), "never");
    node.ok(&["expire", "key", "1h"]);
    assert!(node.ok(&["ttl", "key"]).starts_with("35"), "a bit less than 3600 s");
    node.ok(&["persist", "key"]);
    assert_eq!(node.ok(&["ttl", "key"]), "never");
    node.ok(&["put", "short", "x", "--ttl", "50ms"]);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(node.shell(&["get", "short"]), (exit::FAILED, String::new()));
    assert_eq!(node.ok(&["scan"]), "key");
    node.ok(&["del", "key"]);
    assert_eq!(node.shell(&["get", "key"]).0, exit::FAILED);
    assert!(node.ok(&["ns", "create", "cache", "--durability", "interval", "--ttl", "1m"]).starts_with("cache "));
    node.ok(&["put", "key", "in cache", "--namespace", "cache"]);
    assert_eq!(node.shell(&["get", "key"]).0, exit::FAILED, "namespaces are apart");
    assert!(node.ok(&["ns", "alter", "cache", "--compression", "lz4"]).ends_with("durability=interval compression=lz4"));
    assert!(node.ok(&["ns", "create", "texts", "--compression", "lz4"]).ends_with("ttl=none durability=sync compression=lz4"));
    assert!(node.ok(&["ns", "list"]).contains("durability=interval"));
    assert!(node.ok(&["info"]).lines().all(|line| line.is_empty() || line.contains(':')));
    assert_eq!(node.terminate(), exit::CLEAN);
}

#[test]
fn the_admin_port_tells_metrics_health_and_info() {
    let folder = Folder::new();
    let node = Node::start(&folder.path("data"), &[]);
    node.ok(&["put", "key", "value"]);
    assert!(node.page("/health").ends_with("ok\n"));
    let metrics = node.page("/metrics");
    assert!(metrics.contains("# TYPE ringkv_") && metrics.contains("core=\"0\""), "{metrics}");
    assert!(node.page("/info").contains(':') && node.page("/").contains("<h1>ringkv</h1>"));
}

#[test]
fn what_was_acknowledged_survives_kill_9_and_another_core_list() {
    let folder = Folder::new();
    let data = folder.path("data");
    let cpus = allowed_cpus();
    let one = cpus[0].to_string();
    let all = ringkv::config::spell(&cpus);
    for (round, cores) in [one.as_str(), &all, &one].into_iter().enumerate() {
        let node = Node::start(&data, &["--cores", cores]);
        for earlier in 0..round * 10 {
            assert_eq!(node.ok(&["get", &format!("key{earlier}")]), format!("value{earlier}"));
        }
        for new in round * 10..round * 10 + 10 {
            node.ok(&["put", &format!("key{new}"), &format!("value{new}")]);
        }
        node.kill();
    }
}

#[test]
fn busy_ports_and_folders_are_refused_with_codes_of_their_own() {
    let folder = Folder::new();
    let data = folder.path("data");
    let node = Node::start(&data, &[]);
    let second = finish(&["--data", &data, "--port", "0", "--admin-port", "0"]);
    assert_eq!(second.status.code(), Some(exit::DATA_IN_USE), "{}", said(&second));
    assert!(said(&second).contains("data"));
    let port = |address: &str| address.rsplit_once(':').unwrap().1.to_owned();
    let other = folder.path("other");
    let busy = finish(&["--data", &other, "--port", &port(&node.native), "--admin-port", "0"]);
    assert_eq!(busy.status.code(), Some(exit::ADDRESS_IN_USE), "{}", said(&busy));
    assert!(said(&busy).contains("--port"));
    let busy = finish(&["--data", &other, "--port", "0", "--admin-port", &port(&node.admin)]);
    assert_eq!(busy.status.code(), Some(exit::ADDRESS_IN_USE), "{}", said(&busy));
    assert!(said(&busy).contains("--admin-port"));
}

#[test]
fn the_number_of_vnodes_is_fixed_when_the_folder_is_made() {
    let folder = Folder::new();
    let data = folder.path("data");
    assert_eq!(Node::start(&data, &["--vnodes", "256"]).terminate(), exit::CLEAN);
    assert_eq!(Node::start(&data, &[]).terminate(), exit::CLEAN);
    let output = finish(&["--data", &data, "--port", "0", "--admin-port", "0", "--vnodes", "512"]);
    assert_eq!(output.status.code(), Some(exit::CONFIG), "{}", said(&output));
    assert!(said(&output).contains("vnodes"));
}

#[test]
fn founders_meet_keep_their_ids_and_tell_who_left() {
    let folder = Folder::new();
    // Loopback has addresses enough that those of this process's number are free.
    let pid = std::process::id();
    let host = |id: u32| format!("127.{}.{}.{id}", 1 + pid / 256 % 250, pid % 256);
    let list: Vec<String> = (1..=3).map(|id| format!("{id}={}:7400", host(id))).collect();
    let list = list.join(",");
    let start = |id: u32| {
        let (host, id, cpu) = (host(id), id.to_string(), allowed_cpus()[0].to_string());
        let flags = ["--host", &host, "--node-id", &id, "--founders", &list, "--rack", "r1", "--cores", &cpu];
        Node::start_at(&folder.path(&id), "7400", &flags)
    };
    let shows = |node: &Node, line: &str| {
        let began = Instant::now();
        while !node.page("/metrics").lines().any(|found| found == line) {
            assert!(began.elapsed() < Duration::from_secs(20), "{line}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let mut nodes: Vec<Node> = (1..=3).map(start).collect();
    nodes.iter().for_each(|node| shows(node, "ringkv_gossip_members{state=\"alive\"} 3"));
    assert!(nodes[1].ok(&["info"]).contains("node_id:0000000000000002"));
    assert_eq!(nodes.pop().unwrap().terminate(), exit::CLEAN);
    nodes.iter().for_each(|node| shows(node, "ringkv_gossip_members{state=\"left\"} 1"));
    let back = start(3);
    nodes.iter().for_each(|node| shows(node, "ringkv_gossip_members{state=\"alive\"} 3"));
    drop(back);
    let join = format!("{}:7400", host(1));
    let cpu = allowed_cpus()[0].to_string();
    let joins = |id: &str, more: &[&str]| {
        let flags = ["--data", &folder.path("4"), "--port", "0", "--admin-port", "0", "--join", &join, "--node-id", id, "--cores", &cpu];
        finish(&[&flags[..], more].concat())
    };
    std::fs::write(folder.path("key"), "another").unwrap();
    let (key, q) = (folder.path("key"), "512".to_owned());
    for (id, more, why) in [
        ("3", &[][..], "node-id 3 is taken"),
        ("65539", &[], "low 16 bits"),
        ("4", &["--cluster-key", &key], "another cluster key"),
        ("4", &["--vnodes", &q], "keeps them for its life"),
    ] {
        let refused = joins(id, more);
        assert!(!refused.status.success() && said(&refused).contains(why), "{id} {more:?}: {}", said(&refused));
    }
    let third =
        ["--data", &folder.path("3"), "--port", "7400", "--admin-port", "0", "--host", &host(1), "--founders", &list, "--node-id", "1"];
    let other = finish(&[&third[..], &["--cores", &allowed_cpus()[0].to_string()]].concat());
    assert_eq!(other.status.code(), Some(exit::CONFIG));
    assert!(said(&other).contains("the data folder was made for node 3"), "{}", said(&other));
}

#[test]
fn nobody_has_to_read_what_is_said() {
    let piped = |args: &[&str]| ringkv(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut table = piped(&["ring", "--nodes", "20", "--cores", "16"]);
    drop(table.stdout.take());
    let output = table.wait_with_output().unwrap();
    assert!(!said(&output).contains("panicked"), "{}", said(&output));
    // A node serves on.
    let folder = Folder::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut child = piped(&["--data", &folder.path("data"), "--port", &free, "--admin-port", "0", "--memory", "64MiB"]);
    drop((child.stdout.take(), child.stderr.take()));
    let node = Node { child, native: format!("127.0.0.1:{free}"), admin: String::new() };
    let began = Instant::now();
    while node.shell(&["put", "greeting", "hello"]).0 != exit::CLEAN {
        assert!(began.elapsed() < READY_WITHIN, "it does not serve");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(node.ok(&["get", "greeting"]), "hello");
    assert_eq!(node.terminate(), exit::CLEAN);
}

#[test]
fn a_secret_is_asked_of_every_client() {
    let folder = Folder::new();
    let (right, wrong) = (folder.path("right"), folder.path("wrong"));
    std::fs::write(&right, "open sesame\n").unwrap();
    std::fs::write(&wrong, "open barley\n").unwrap();
    let node = Node::start(&folder.path("data"), &["--secret-file", &right]);
    node.ok(&["put", "key", "value", "--secret-file", &right]);
    assert_eq!(node.shell(&["get", "key"]).0, exit::FAILED);
    assert_eq!(node.shell(&["get", "key", "--secret-file", &wrong]).0, exit::FAILED);
    assert_eq!(node.ok(&["get", "key", "--secret-file", &right]), "value");
}

#[test]
fn other_protocols_on_the_native_port_get_one_human_sentence() {
    let folder = Folder::new();
    let node = Node::start(&folder.path("data"), &[]);
    for first in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "*1\r\n$4\r\nPING\r\n"] {
        let mut stream = TcpStream::connect(&node.native).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(first.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        // The port may reset the connection behind its sentence.
        let _ = stream.read_to_end(&mut bytes);
        assert!(String::from_utf8_lossy(&bytes).contains("ringkv"), "{first:?} got {bytes:?}");
    }
    node.ok(&["put", "key", "value"]);
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn damage(path: &Path, at: u64) {
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 0x10]).unwrap();
}

#[test]
fn verify_changes_nothing_in_a_sound_folder_and_names_the_damaged_file_and_the_offset() {
    let folder = Folder::new();
    let data = folder.path("data");
    let node = Node::start(&data, &["--cores", "0"]);
    node.ok(&["put", "key", "value"]);
    assert_eq!(node.terminate(), exit::CLEAN);
    let all = || {
        let mut found = Vec::new();
        files(Path::new(&data), &mut found);
        found.retain(|path| path.file_name().is_some_and(|name| name != "lock"));
        found.sort();
        found.into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect::<Vec<_>>()
    };
    let before = all();
    let verify = || {
        let output = finish(&["verify", &data]);
        (output.status.code(), format!("{}{}", String::from_utf8_lossy(&output.stdout), said(&output)))
    };
    let (code, text) = verify();
    assert_eq!(code, Some(exit::CLEAN), "{text}");
    for line in ["LAYOUT: generation 1, 1 cores", "g1-s0/MANIFEST-1: ", "g1-s0/wal-1.seg: ", "g1-s0: log of "] {
        assert!(text.lines().any(|said| said.starts_with(line)), "{line}: {text}");
    }
    assert!(!text.contains("damaged") && all() == before, "{text}");
    for (file, at, told) in
        [("LAYOUT", 33, "LAYOUT at 0: "), ("LAYOUT", 4000, "LAYOUT at 4000: "), ("g1-s0/wal-1.seg", 40, "g1-s0/wal-1.seg at 0: ")]
    {
        let path = Path::new(&data).join(file);
        damage(&path, at);
        let (code, text) = verify();
        assert_eq!(code, Some(exit::DATA_DAMAGED), "{text}");
        let damaged: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("damaged: ")).collect();
        assert!(damaged.len() == 1 && damaged[0].starts_with(told), "{text}");
        damage(&path, at);
    }
    let path = Path::new(&data).join("g1-s0/CURRENT");
    std::fs::rename(&path, folder.path("gone")).unwrap();
    let (code, text) = verify();
    assert!(code == Some(exit::DATA_DAMAGED) && text.contains("damaged: g1-s0/CURRENT at 0: the file is gone"), "{text}");
    std::fs::rename(folder.path("gone"), &path).unwrap();
    assert!(verify().0 == Some(exit::CLEAN) && all() == before);
}

#[test]
fn a_damaged_folder_is_told_file_by_file_and_what_is_sound_of_it_is_copied() {
    let folder = Folder::new();
    let (data, new) = (folder.path("data"), folder.path("new"));
    let node = Node::start(&data, &["--cores", "0"]);
    let first = node.ok(&["put", "one", "kept"]);
    node.ok(&["put", "two", "kept too"]);
    assert_eq!(node.terminate(), exit::CLEAN);
    let log = Path::new(&data).join("g1-s0/wal-1.seg");
    let inspect = |words: &[&str]| {
        let output = finish(&[&["inspect", log.to_str().unwrap()], words].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = inspect(&["--cells"]);
    assert_eq!(code, Some(exit::CLEAN), "{text}");
    assert!(text.contains("WAL segment: number 1") && text.contains(&format!("\"one\", version {first}, value 4 bytes")), "{text}");
    let (_, json) = inspect(&["--limit", "1", "--json"]);
    assert!(json.lines().all(|line| line.starts_with("{\"what\":\"") && line.ends_with('}')) && json.contains("not shown"), "{json}");
    // The header of the log's segment: a node refuses it, and every record behind it is sound.
    damage(&log, 40);
    let (code, text) = inspect(&["--cells"]);
    assert!(code == Some(exit::DATA_DAMAGED) && text.contains("damaged: offset 0") && text.contains("\"two\""), "{text}");
    let output = finish(&["verify", &data, "--salvage", &new]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(exit::CLEAN), "{text}{}", said(&output));
    assert!(text.contains("verifies sound; 0 places lost"), "{text}");
    assert_eq!(finish(&["verify", &data]).status.code(), Some(exit::DATA_DAMAGED), "the source stays as it is");
    let node = Node::start(&new, &["--cores", "0"]);
    assert_eq!((node.ok(&["get", "one"]), node.ok(&["get", "two"])), ("kept".to_owned(), "kept too".to_owned()));
    assert!(node.ok(&["put", "one", "newer"]) > first);
    assert_eq!(node.terminate(), exit::CLEAN);
    assert_eq!(finish(&["verify", &data, "--salvage", &new]).status.code(), Some(exit::FAILED), "never over something");
}
