//! The admin port over real loopback connections; on epoll with `RINGKV_IO=epoll` in the environment.

use ringkv::control::{CONNECTIONS_MAX, ControlConfig, ControlHandle, IDLE_MAX, Source, StartError, start};
use ringkv::io::driver::Backend;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Figures {
    ill: AtomicBool,
}

impl Source for Figures {
    fn metrics(&self) -> String {
        "# TYPE ringkv_x gauge\nringkv_x 1\n".to_owned()
    }
    fn health(&self) -> Result<(), String> {
        if self.ill.load(Ordering::Relaxed) { Err("shard 3 stopped".to_owned()) } else { Ok(()) }
    }
    fn info(&self) -> String {
        "keys:12\nversion:0.1.0\n".to_owned()
    }
}

fn backend() -> Backend {
    if std::env::var("RINGKV_IO").is_ok_and(|io| io == "epoll") { Backend::Epoll } else { Backend::Uring }
}

fn started(idle_max: Duration) -> (ControlHandle, Arc<Figures>) {
    let source = Arc::new(Figures::default());
    let address = "127.0.0.1:0".parse().unwrap();
    let config = ControlConfig { address, cpu: None, shares: true, idle_max, source: source.clone(), backend: backend(), gossip: None };
    let handle = start(config).expect("starts");
    (handle, source)
}

fn connect(handle: &ControlHandle) -> TcpStream {
    let stream = TcpStream::connect(handle.address()).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

/// Everything until the other side ends.
fn rest(mut stream: &TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("the connection should end: {error}"),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn ask(handle: &ControlHandle, request: &str) -> String {
    let mut stream = connect(handle);
    stream.write_all(format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    rest(&stream)
}

#[test]
fn every_path_answers_and_nothing_but_looking_is_allowed() {
    let (handle, source) = started(IDLE_MAX);
    let metrics = ask(&handle, "GET /metrics HTTP/1.1");
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("version=0.0.4") && metrics.ends_with("ringkv_x 1\n"), "{metrics}");
    assert!(ask(&handle, "GET /health HTTP/1.1").ends_with("\r\n\r\nok\n"));
    source.ill.store(true, Ordering::Relaxed);
    let ill = ask(&handle, "GET /health HTTP/1.1");
    assert!(ill.starts_with("HTTP/1.1 503") && ill.ends_with("shard 3 stopped\n"), "{ill}");
    assert!(ask(&handle, "GET /info HTTP/1.1").ends_with("keys:12\nversion:0.1.0\n"));
    assert!(ask(&handle, "GET /info?json HTTP/1.1").ends_with("{\"keys\":12,\"version\":\"0.1.0\"}\n"));
    assert!(ask(&handle, "GET /info HTTP/1.1\r\nAccept: application/json").ends_with("}\n"));
    assert!(ask(&handle, "GET / HTTP/1.1").contains("<td>keys<td>12"));
    let head = ask(&handle, "HEAD /metrics HTTP/1.1");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(ask(&handle, "POST /metrics HTTP/1.1\r\nContent-Length: 0").starts_with("HTTP/1.1 405"));
    assert!(ask(&handle, "GET /etc/passwd HTTP/1.1").starts_with("HTTP/1.1 404"));
    handle.stop();
}

#[test]
fn one_connection_may_ask_many_times() {
    let (handle, _) = started(IDLE_MAX);
    let mut stream = connect(&handle);
    let once = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(once.repeat(200).as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&stream).matches("HTTP/1.1 200").count(), 200);
}

#[test]
fn garbage_and_endless_heads_are_refused() {
    let (handle, _) = started(IDLE_MAX);
    let mut stream = connect(&handle);
    stream.write_all(b"\x00\xffnonsense\r\n\r\n").unwrap();
    assert!(rest(&stream).starts_with("HTTP/1.1 400"));
    let mut stream = connect(&handle);
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(64 * 1024));
    // The port may close before all is sent.
    let _ = stream.write_all(endless.as_bytes());
    let said = rest(&stream);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431"), "{said}");
    let mut stream = connect(&handle);
    stream.write_all(format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100)).as_bytes()).unwrap();
    assert!(!rest(&stream).starts_with("HTTP/1.1 200"));
    assert!(ask(&handle, "GET /health HTTP/1.1").ends_with("ok\n"), "others are served on");
}

#[test]
fn clients_that_drip_or_sleep_are_closed() {
    let (handle, _) = started(Duration::from_millis(400));
    let sleeper = connect(&handle);
    let mut dripper = connect(&handle);
    let began = Instant::now();
    for byte in b"GET /health HTTP/1.1\r\nHost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" {
        if dripper.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(rest(&dripper), "");
    assert_eq!(rest(&sleeper), "");
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[test]
fn one_connection_too_many_is_closed_and_room_comes_back() {
    let (handle, _) = started(IDLE_MAX);
    let mut crowd: Vec<TcpStream> = (0..CONNECTIONS_MAX).map(|_| connect(&handle)).collect();
    for stream in &mut crowd {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    assert_eq!(rest(&connect(&handle)), "");
    drop(crowd);
    let began = Instant::now();
    while !refusable(&handle).starts_with("HTTP/1.1 200") {
        assert!(began.elapsed() < Duration::from_secs(5), "room should come back");
    }
}

/// Like `ask`, but the port may close while the request is being sent.
fn refusable(handle: &ControlHandle) -> String {
    let mut stream = connect(handle);
    let sent = stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    if sent.is_ok() { rest(&stream) } else { String::new() }
}

#[test]
fn stop_closes_the_port_and_every_connection() {
    let (handle, _) = started(IDLE_MAX);
    let address = handle.address();
    let idle = connect(&handle);
    assert!(ask(&handle, "GET /health HTTP/1.1").ends_with("ok\n"));
    let began = Instant::now();
    handle.stop();
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(rest(&idle), "");
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_busy_port_is_named_with_the_flag_that_moves_it() {
    let (handle, source) = started(IDLE_MAX);
    let config = ControlConfig {
        address: handle.address(),
        cpu: Some(0),
        shares: false,
        idle_max: IDLE_MAX,
        source,
        backend: backend(),
        gossip: None,
    };
    let error = start(config).err().expect("the port is taken");
    assert!(matches!(error, StartError::AddressInUse(_)) && error.to_string().contains("--admin-port"), "{error}");
}

#[test]
fn a_core_starts_and_stops_many_times_without_leaving_descriptors() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    started(IDLE_MAX).0.stop();
    let before = open();
    (0..20).for_each(|_| started(IDLE_MAX).0.stop());
    // Other tests of this process open and close theirs meanwhile.
    let began = Instant::now();
    while open() >= before + 20 {
        assert!(began.elapsed() < Duration::from_secs(10), "20 starts left {} descriptors", open() - before);
        std::thread::sleep(Duration::from_millis(50));
    }
}
