//! A real cluster: three processes of the built binary on loopback, founded together. One of them is killed, stopped, started again, and
//! what the others answer meanwhile is judged. Bounds in time are far wider than what is expected, since the machine may be busy.

mod common;

use common::{BINARY, Ended, Folder, Node, becomes, next_program, run_program};
use ringkv::base::prng::Prng;
use ringkv::client::{Client, ClientConfig, ClientError, NamespaceChanges, NamespaceOptions, TimeToLive};
use ringkv::config::exit;
use ringkv::io::host::{self, Nudge, nudge};
use ringkv::wire::command::{Durability, Level, LevelsAsked, PutItem};
use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const NODES: usize = 3;
/// For what takes a moment on a free machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// A node that is gone or stands still is known to be so within this.
const NOTICED: Duration = Duration::from_secs(2);
/// Ports are drawn from here, below those that the kernel hands out by itself.
const PORTS: std::ops::Range<u16> = 12_000..30_000;

/// Clusters take turns: three processes are enough for a small machine.
static TURN: Mutex<()> = Mutex::new(());

/// Three nodes; those that run are ended when this is dropped.
struct Cluster {
    nodes: Vec<Option<Node>>,
    ports: Vec<u16>,
    folder: Folder,
    _turn: MutexGuard<'static, ()>,
}

/// So many ports with a free one for gossip right above each, nobody else's at the moment.
fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let mut draw = Prng::new(u64::from(std::process::id()) << 16 | u64::from(NEXT.fetch_add(1, Ordering::Relaxed)));
    let (mut ports, mut held) = (Vec::new(), Vec::new());
    while ports.len() < count {
        let port = PORTS.start + draw.below(u64::from(PORTS.end - PORTS.start) / 2) as u16 * 2;
        let sockets = (TcpListener::bind(("127.0.0.1", port)), TcpListener::bind(("127.0.0.1", port + 1)));
        if let ((Ok(native), Ok(gossip)), Ok(datagrams)) = (sockets, UdpSocket::bind(("127.0.0.1", port + 1))) {
            ports.push(port);
            held.push((native, gossip, datagrams));
        }
    }
    ports
}

fn founders(ports: &[u16]) -> String {
    let list: Vec<String> = ports.iter().enumerate().map(|(at, port)| format!("{}=127.0.0.1:{port}", at + 1)).collect();
    list.join(",")
}

/// Flags of the node at this place of the list.
fn flags(at: usize, ports: &[u16]) -> Vec<String> {
    let cpus = host::allowed_cpus();
    let (port, gossip) = (ports[at], ports[at] + 1);
    let line = format!(
        "--node-id {} --founders {} --port {port} --gossip-port {gossip} --cores {} --spin-us 0 --memory 64MiB",
        at + 1,
        founders(ports),
        cpus[at % cpus.len()]
    );
    line.split(' ').map(str::to_owned).collect()
}

fn data_of(folder: &Path, at: usize) -> PathBuf {
    folder.join(format!("node{}", at + 1))
}

fn launch(program: &str, data: &Path, at: usize, ports: &[u16]) -> Node {
    try_launch(program, data, at, ports).unwrap_or_else(|ended| panic!("node {} ended before it was ready: {ended:?}", at + 1))
}

fn try_launch(program: &str, data: &Path, at: usize, ports: &[u16]) -> Result<Node, Ended> {
    let flags = flags(at, ports);
    Node::try_start_program(program, data, &flags.iter().map(String::as_str).collect::<Vec<_>>())
}

impl Cluster {
    fn start() -> Cluster {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (folder, ports) = (Folder::new(), free_ports(NODES));
        let nodes: Vec<Option<Node>> = thread::scope(|scope| {
            let (data, ports) = (folder.path(), &ports);
            let started: Vec<_> = (0..NODES).map(|at| scope.spawn(move || launch(BINARY, &data_of(data, at), at, ports))).collect();
            started.into_iter().map(|node| node.join().ok()).collect()
        });
        assert!(nodes.iter().all(Option::is_some), "not every node starts");
        let cluster = Cluster { nodes, ports, folder, _turn: turn };
        cluster.is_whole_again();
        cluster
    }

    fn data(&self, at: usize) -> PathBuf {
        data_of(self.folder.path(), at)
    }

    fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().expect("it runs")
    }

    fn kill(&mut self, at: usize) {
        self.nodes[at].take().expect("it runs").kill();
    }

    fn restart(&mut self, at: usize) {
        self.start_as(at, BINARY);
    }

    fn start_as(&mut self, at: usize, program: &str) {
        self.nodes[at] = Some(launch(program, &self.data(at), at, &self.ports));
    }

    /// A client of one node that tries nothing twice.
    fn client(&self, at: usize, level: Level) -> Client {
        let levels = LevelsAsked::both(level);
        Client::connect(ClientConfig { levels, retries: 0, ..self.node(at).config() }).expect("the node takes a client in")
    }

    /// A client that goes on at the next node when it loses its own.
    fn client_from(&self, first: usize) -> Client {
        let addresses = (0..NODES).map(|at| format!("127.0.0.1:{}", self.ports[(first + at) % NODES])).collect();
        let levels = LevelsAsked::both(Level::Quorum);
        let config = ClientConfig { addresses, levels, request_timeout: Duration::from_secs(2), ..ClientConfig::default() };
        Client::connect(config).expect("a node takes a client in")
    }

    /// A client that is given one node and asks each for what it owns.
    fn client_of_all(&self, at: usize) -> Client {
        let levels = LevelsAsked::both(Level::Quorum);
        let config = ClientConfig { levels, follow_ring: true, announce: true, ..self.node(at).config() };
        Client::connect(config).expect("the node takes a client in")
    }

    fn clients(&self, level: Level) -> Vec<Client> {
        (0..NODES).map(|at| self.client(at, level)).collect()
    }

    /// All of three replicas answer, whichever node is asked.
    fn is_whole_again(&self) {
        for at in 0..NODES {
            let mut client = self.client(at, Level::All);
            let mut last = None;
            let whole = becomes(PATIENCE, || {
                last = (0..8u8).find_map(|key| client.put(&[b'w', key], b"whole").err());
                last.is_none()
            });
            assert!(whole, "node {}: ALL does not work: {last:?}", at + 1);
        }
    }
}

#[test]
fn what_is_put_at_one_node_is_read_at_the_others_at_every_level() {
    let cluster = Cluster::start();
    for (name, level) in [("one", Level::One), ("quorum", Level::Quorum), ("all", Level::All), ("two", Level::Exactly(2))] {
        let mut clients = cluster.clients(level);
        for at in 0..NODES {
            let key = |number: u32| format!("{name} {at} {number}").into_bytes();
            for number in 0..20u32 {
                clients[at].put(&key(number), &number.to_le_bytes()).expect("a put");
            }
            for (other, client) in clients.iter_mut().enumerate() {
                let mut reads = |number: u32| {
                    let found = client.get(&key(number)).expect("a get");
                    found.is_some_and(|found| found.value == number.to_le_bytes())
                };
                for number in 0..20u32 {
                    // At ONE what was written reaches the others a moment later.
                    let found = if level == Level::One { becomes(PATIENCE, || reads(number)) } else { reads(number) };
                    assert!(found, "{name}: key {number} of node {} at node {}", at + 1, other + 1);
                }
            }
            clients[at].delete(&key(0)).expect("a delete");
            let gone = clients.iter_mut().all(|client| becomes(PATIENCE, || client.get(&key(0)).expect("a get").is_none()));
            assert!(gone, "{name}: a deleted key stays");
        }
    }
    // Levels of reading and of writing apart: W = all makes R = one see it.
    let levels = LevelsAsked { read: Some(Level::One), write: Some(Level::All) };
    let mut first = Client::connect(ClientConfig { levels, ..cluster.node(0).config() }).expect("a client");
    let mut last = Client::connect(ClientConfig { levels, ..cluster.node(2).config() }).expect("a client");
    for number in 0..50u8 {
        first.put(&[number], &[number]).expect("a put");
        assert_eq!(last.get(&[number]).expect("a get").map(|found| found.value), Some(vec![number]));
    }
}

#[test]
fn many_keys_at_once_and_deadlines_hold_at_every_node() {
    let cluster = Cluster::start();
    let mut clients = cluster.clients(Level::Quorum);
    let keys: Vec<Vec<u8>> = (0..300).map(|number| format!("many {number}").into_bytes()).collect();
    let items: Vec<PutItem<'_>> = keys.iter().map(|key| PutItem { key, value: &key[5..], ttl_ms: 0 }).collect();
    assert_eq!(clients[0].multi_put(&items).expect("a multi-put").len(), keys.len());
    let mut asked: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    asked.push(b"nothing is here");
    for client in &mut clients {
        let found = client.multi_get(&asked).expect("a multi-get");
        let right = found.iter().zip(&keys).all(|(found, key)| found.as_ref().is_some_and(|(_, value)| value[..] == key[5..]));
        assert!(right && found.len() == asked.len() && found[keys.len()].is_none());
    }
    let (soon, never) = (&keys[0], &keys[1]);
    clients[1].expire(soon, Duration::from_millis(1500)).expect("an expire").expect("it is there");
    clients[1].expire(never, Duration::from_secs(100)).expect("an expire").expect("it is there");
    assert!(matches!(clients[2].ttl(never).expect("a ttl"), TimeToLive::Remaining(left) if left > Duration::from_secs(60)));
    clients[2].persist(never).expect("a persist").expect("it is there");
    assert_eq!(clients[0].ttl(never).expect("a ttl"), TimeToLive::Never);
    assert!(clients[0].expire(b"nothing is here", Duration::from_secs(1)).expect("an expire").is_none());
    for client in &mut clients {
        assert!(becomes(PATIENCE, || client.get(soon).expect("a get").is_none()), "it outlives its deadline");
        assert!(client.get(never).expect("a get").is_some());
    }
}

#[test]
fn a_namespace_is_made_at_the_first_node_and_known_at_all() {
    let cluster = Cluster::start();
    let mut clients = cluster.clients(Level::Quorum);
    for client in &mut clients[1..] {
        let refused = client.namespace_create("texts", Duration::ZERO, Durability::Sync);
        let Err(ClientError::Failed { message, .. }) = refused else { panic!("made at another node: {refused:?}") };
        let first = format!("changed at its first node, 1 at 127.0.0.1:{}", cluster.ports[0]);
        assert!(message.contains(&first), "{message}");
    }
    let made = clients[0].namespace_create("texts", Duration::ZERO, Durability::Sync).expect("the first node makes it");
    for client in &mut clients {
        let known = becomes(PATIENCE, || client.namespaces().expect("a list").contains(&made));
        assert!(known, "a node does not know it");
    }
    let of = |at: usize| {
        let levels = LevelsAsked::both(Level::Quorum);
        let config = ClientConfig { levels, namespace: "texts".to_owned(), ..cluster.node(at).config() };
        Client::connect(config).expect("the namespace is found")
    };
    of(1).put(b"motto", b"stay").expect("a put");
    assert_eq!(of(2).get(b"motto").expect("a get").expect("just put").value, b"stay");
    assert!(clients[2].get(b"motto").expect("a get").is_none(), "namespaces are apart");
}

#[test]
fn what_names_no_level_has_those_of_its_namespace() {
    let mut cluster = Cluster::start();
    let mut first = cluster.client(0, Level::Quorum);
    let options = NamespaceOptions { levels: LevelsAsked { read: Some(Level::One), write: None }, ..NamespaceOptions::default() };
    let made = first.namespace_create_with("fast", options).expect("the first node makes it");
    assert_eq!(made.levels, options.levels);
    let made = first.namespace_alter_with(
        "fast",
        NamespaceChanges { levels: LevelsAsked { read: None, write: Some(Level::One) }, ..NamespaceChanges::default() },
    );
    let made = made.expect("the first node changes it");
    assert_eq!(made.levels, LevelsAsked::both(Level::One), "what is not named stays");
    let mut second = cluster.client(1, Level::Quorum);
    assert!(becomes(PATIENCE, || second.namespaces().expect("a list").contains(&made)), "the second does not know it");
    let info = second.info().expect("a node tells about itself");
    assert!(info.contains(&format!("namespace_fast:id={} ttl_ms=0 durability=sync rf=3 level=one\n", made.id)), "{info}");
    assert!(info.contains("namespace_default:id=1 ttl_ms=0 durability=sync rf=3 level=quorum\n"), "{info}");
    let open = |namespace: &str, levels| {
        let config = ClientConfig { levels, namespace: namespace.to_owned(), retries: 0, ..cluster.node(1).config() };
        Client::connect(config).expect("the namespace is found")
    };
    let [mut fast, mut slow] = ["fast", "default"].map(|namespace| open(namespace, LevelsAsked::default()));
    let mut asked = open("fast", LevelsAsked::both(Level::Quorum));
    open("fast", LevelsAsked::both(Level::All)).put(b"motto", b"stay").expect("all three have it");
    cluster.kill(0);
    cluster.kill(2);
    let lacks = |outcome: Result<_, ClientError>| matches!(outcome, Err(ClientError::Unavailable { .. }));
    assert!(becomes(PATIENCE, || lacks(slow.put(b"motto", b"go"))), "a quorum is two of three");
    assert!(lacks(asked.put(b"motto", b"go")), "what a request names counts");
    assert_eq!(fast.get(b"motto").expect("one answers").expect("it was put").value, b"stay");
    fast.put(b"motto", b"go").expect("one takes it");
    assert_eq!(fast.get(b"motto").expect("one answers").expect("it was put").value, b"go");
}

#[test]
fn a_node_with_another_list_of_founders_is_refused_with_a_sentence() {
    let mut cluster = Cluster::start();
    // One that thinks it founded another cluster with two of these.
    let mut ports = cluster.ports.clone();
    ports[2] = free_ports(1)[0];
    let line = flags(2, &ports);
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let stranger = Node::start(&cluster.folder.path().join("stranger"), &line);
    let told = becomes(PATIENCE, || stranger.said().contains("refused by node") && cluster.node(0).said().contains("its cluster is"));
    assert!(told, "said: {}\nand: {}", stranger.said(), cluster.node(0).said());
    let mut outside = Client::connect(ClientConfig { levels: LevelsAsked::both(Level::Quorum), retries: 0, ..stranger.config() });
    assert!(outside.as_mut().map_or(true, |client| client.put(b"key", b"value").is_err()), "the others are none of its");
    stranger.kill();
    // And a node of this one, started with the other list.
    cluster.kill(2);
    let ended = Node::try_start(&cluster.data(2), &line).err().expect("its data is of another cluster");
    assert!(ended.code == 2 && ended.err.contains("founders: the data folder belongs to another cluster"), "{ended:?}");
    cluster.restart(2);
    cluster.is_whole_again();
}

#[test]
fn a_killed_node_is_missed_by_all_alone_and_comes_back() {
    let mut cluster = Cluster::start();
    let mut clients = cluster.clients(Level::Quorum);
    (0..100u8).for_each(|number| _ = clients[2].put(&[number], b"before").expect("a put"));
    drop(clients.pop());
    let mut all = [cluster.client(0, Level::All), cluster.client(1, Level::All)];
    cluster.kill(2);
    let killed = Instant::now();
    for number in 0..100u8 {
        let [first, second] = &mut clients[..] else { panic!("two are left") };
        let began = Instant::now();
        first.put(&[number], b"meanwhile").expect("QUORUM goes on");
        assert_eq!(second.get(&[number]).expect("QUORUM goes on").expect("just put").value, b"meanwhile");
        assert!(began.elapsed() < NOTICED, "QUORUM waited for the dead");
    }
    for client in &mut all {
        let is_told = |outcome| matches!(outcome, Err(ClientError::Unavailable { need: 3, alive: 2 }));
        assert!(becomes(NOTICED, || is_told(client.put(b"key", b"value").map(drop)) && is_told(client.get(b"key").map(drop))));
        let began = Instant::now();
        assert!(is_told(client.put(b"key", b"value").map(drop)) && began.elapsed() < NOTICED, "it is told at once");
    }
    eprintln!("ALL was refused {:?} after the kill", killed.elapsed());
    cluster.restart(2);
    let started = Instant::now();
    // Read through the node that missed it.
    let mut back = cluster.client(2, Level::Quorum);
    let mut missing: BTreeSet<u8> = (0..100).collect();
    let caught_up = becomes(PATIENCE, || {
        missing.retain(|number| match back.get(&[*number]) {
            Ok(found) => {
                assert_eq!(found.expect("it was acknowledged").value, b"meanwhile");
                false
            }
            Err(_) => true,
        });
        missing.is_empty()
    });
    assert!(caught_up, "no QUORUM through the node that is back: {missing:?}");
    cluster.is_whole_again();
    eprintln!("ALL worked again {:?} after the restart", started.elapsed());
}

/// What clients have asked a node.
fn asked(node: &Node) -> f64 {
    node.metric("ringkv_requests_total")
}

#[test]
fn a_client_of_one_node_asks_each_for_what_it_owns_and_does_without_one_that_falls() {
    let mut cluster = Cluster::start();
    let mut client = cluster.client_of_all(0);
    // What was on its way to a node as it fell may be stored or not: it is put again.
    let mut put = |number: u32| match client.put(&number.to_le_bytes(), b"stay") {
        Err(ClientError::Unknown { .. }) => client.put(&number.to_le_bytes(), b"stay").expect("a put").0,
        done => done.expect("a put").0,
    };
    put(0);
    let before = [0, 1, 2].map(|at| asked(cluster.node(at)));
    (0..600).for_each(|number| _ = put(number));
    let share = |at: usize| asked(cluster.node(at)) - before[at];
    assert!(becomes(PATIENCE, || (0..NODES).map(share).sum::<f64>() >= 600.0), "{:?}", [0, 1, 2].map(share));
    let shares = [0, 1, 2].map(share);
    assert!(shares.iter().all(|share| (100.0..320.0).contains(share)), "a third each: {shares:?}");
    cluster.kill(1);
    let began = Instant::now();
    (0..600).for_each(|number| _ = put(number));
    assert!(began.elapsed() < PATIENCE, "{:?} without the second node", began.elapsed());
    cluster.restart(1);
    let mut number = 0;
    let is_asked_again = becomes(PATIENCE, || {
        (0..50).for_each(|_| _ = put(number));
        number += 1;
        asked(cluster.node(1)) > 0.0
    });
    assert!(is_asked_again, "a node that is back is not asked");
    (0..600u32).for_each(|number| assert!(client.get(&number.to_le_bytes()).expect("a get").is_some(), "key {number}"));
}

#[test]
fn a_founder_without_its_disk_is_refused_though_nobody_could_tell_it_when_it_started() {
    let mut cluster = Cluster::start();
    let mut client = cluster.client(0, Level::Quorum);
    (0..50u32).for_each(|key| _ = client.put(&key.to_le_bytes(), b"kept").expect("a put"));
    cluster.kill(2);
    fs::remove_dir_all(cluster.data(2)).expect("its data goes");
    let is_refused = |ended: &Ended| ended.code == exit::CONFIG && ended.err.contains("ringkv cluster replace 3 NEW");
    let ended = try_launch(BINARY, &cluster.data(2), 2, &cluster.ports).err().expect("its folder is empty, and others know the cluster");
    assert!(is_refused(&ended), "{ended:?}");
    cluster.kill(0);
    cluster.kill(1);
    let alone = launch(BINARY, &cluster.data(2), 2, &cluster.ports);
    cluster.restart(0);
    cluster.restart(1);
    let ended = alone.ends();
    assert!(is_refused(&ended), "{ended:?}");
    let mut client = cluster.client(1, Level::Quorum);
    for key in 0..50u32 {
        let found =
            becomes(PATIENCE, || client.get(&key.to_le_bytes()).is_ok_and(|found| found.is_some_and(|found| found.value == b"kept")));
        assert!(found, "key {key} is lost");
    }
}

/// Runs put and get by turns for so long; from the first to the last instant at which one failed or took over 100 ms, and how many failed.
fn trouble(clients: &mut [Client], seconds: u64) -> (Duration, u32) {
    let (began, mut first, mut last, mut errors) = (Instant::now(), None, Duration::ZERO, 0);
    for number in 0u32.. {
        let since = began.elapsed();
        if since > Duration::from_secs(seconds) {
            break;
        }
        let client = &mut clients[number as usize % 2];
        let key = [b'p', (number % 64) as u8];
        let failed = client.put(&key, &number.to_le_bytes()).is_err() || client.get(&key).is_err();
        errors += u32::from(failed);
        if failed || began.elapsed() - since > Duration::from_millis(100) {
            first.get_or_insert(since);
            last = began.elapsed();
        }
        thread::sleep(Duration::from_millis(2));
    }
    (first.map_or(Duration::ZERO, |first| last - first), errors)
}

#[test]
fn a_node_that_stands_still_is_left_out_and_taken_in_again() {
    let cluster = Cluster::start();
    for stopped in [2, 1] {
        let others: Vec<usize> = (0..NODES).filter(|at| *at != stopped).collect();
        let mut clients: Vec<Client> = others.iter().map(|at| cluster.client(*at, Level::Quorum)).collect();
        let mut all = cluster.client(others[0], Level::All);
        nudge(cluster.node(stopped).pid(), Nudge::Pause).expect("it is ours");
        let (window, errors) = trouble(&mut clients, 7);
        let told = all.put(b"key", b"value");
        eprintln!("node {} stood still: {errors} errors, answers over 100 ms or errors for {window:?}", stopped + 1);
        nudge(cluster.node(stopped).pid(), Nudge::Resume).expect("it is ours");
        assert!(window < Duration::from_secs(5), "{window:?} with {errors} errors");
        assert!(matches!(told, Err(ClientError::Unavailable { need: 3, alive: 2 })), "nobody noticed: {told:?}");
        cluster.is_whole_again();
    }
}

/// One key's writes: numbers that rise, by one writer.
#[derive(Default)]
struct Record {
    issued: AtomicU64,
    /// The newest that was acknowledged.
    floor: AtomicU64,
    /// Nobody knows of these; one may show up at any later time.
    unknown: Mutex<BTreeSet<u64>>,
}

#[derive(Default)]
struct Judge {
    records: [Record; 32],
    stop: AtomicBool,
    acknowledged: AtomicU64,
    unknown: AtomicU64,
    judged: AtomicU64,
    lost: AtomicU64,
    wrong: AtomicU64,
}

impl Judge {
    fn write(&self, mut client: Client) {
        for number in 0usize.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let at = number % self.records.len();
            let record = &self.records[at];
            let value = record.issued.fetch_add(1, Ordering::SeqCst) + 1;
            match client.put(format!("judged {at}").as_bytes(), format!("{at} {value}").as_bytes()) {
                Ok(_) => {
                    record.floor.store(value, Ordering::SeqCst);
                    self.acknowledged.fetch_add(1, Ordering::SeqCst);
                }
                Err(ClientError::Unknown { .. }) => {
                    record.unknown.lock().expect("nobody panics with it").insert(value);
                    self.unknown.fetch_add(1, Ordering::SeqCst);
                }
                // Surely not done.
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn read(&self, mut client: Client) {
        for number in 0usize.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            self.judge(number * 7 % self.records.len(), &mut client);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Reads a key and judges what it shows. False: there was no answer.
    fn judge(&self, at: usize, client: &mut Client) -> bool {
        let record = &self.records[at];
        let floor = record.floor.load(Ordering::SeqCst);
        let Ok(found) = client.get(format!("judged {at}").as_bytes()) else { return false };
        self.judged.fetch_add(1, Ordering::SeqCst);
        let text = found.map(|found| String::from_utf8_lossy(&found.value).into_owned());
        let said =
            |text: &str| text.split_once(' ').and_then(|(key, value)| Some((key.parse::<usize>().ok()?, value.parse::<u64>().ok()?)));
        let (is_lost, is_wrong) = match text.as_deref().map(said) {
            None => (floor > 0, false),
            Some(Some((key, value))) if key == at && value <= record.issued.load(Ordering::SeqCst) => {
                (value < floor && !record.unknown.lock().expect("nobody panics with it").contains(&value), false)
            }
            Some(_) => (false, true),
        };
        self.lost.fetch_add(u64::from(is_lost), Ordering::SeqCst);
        self.wrong.fetch_add(u64::from(is_wrong), Ordering::SeqCst);
        if is_lost || is_wrong {
            eprintln!("key {at}: found {text:?}, acknowledged {floor}");
        }
        true
    }
}

/// Ends a load when the test does, by a panic too.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_copy_of_a_nodes_data_is_refused_unless_all_are_set_back() {
    let mut cluster = Cluster::start();
    let mut clients = cluster.clients(Level::Quorum);
    (0..50u32).for_each(|key| _ = clients[0].put(&key.to_le_bytes(), b"kept").expect("a put"));
    clients.iter_mut().for_each(|client| _ = client.snapshot("monday").expect("a snapshot"));
    (0..50u32).for_each(|key| _ = clients[0].put(&key.to_le_bytes(), b"later").expect("a put"));
    for at in 0..NODES {
        cluster.kill(at);
        let (data, copy) = (cluster.data(at), cluster.folder.path().join(format!("copy{at}")));
        fs::rename(data.join("snapshots").join("monday"), &copy).expect("a snapshot is a folder");
        fs::remove_dir_all(&data).and_then(|()| fs::rename(&copy, &data)).expect("it takes the folder's place");
    }
    let ended = try_launch(BINARY, &cluster.data(1), 1, &cluster.ports).err().expect("it lacks what came later");
    assert!(ended.code == exit::CONFIG && ended.err.contains("is a copy") && ended.err.contains("--restored"), "{ended:?}");
    let ports = cluster.ports.clone();
    let start = |at: usize, cluster: &Cluster| {
        let flags: Vec<String> = flags(at, &ports).into_iter().chain(["--restored".to_owned()]).collect();
        Node::try_start(&cluster.data(at), &flags.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for at in 0..NODES {
        cluster.nodes[at] = Some(start(at, &cluster).expect("all of them are set back"));
    }
    cluster.is_whole_again();
    let mut client = cluster.client(2, Level::Quorum);
    assert!((0..50u32).all(|key| client.get(&key.to_le_bytes()).expect("a get").is_some_and(|found| found.value == b"kept")));
    // It is the node's own from now on.
    cluster.kill(1);
    cluster.restart(1);
}

/// A node that joins through the first one.
fn launch_joining(cluster: &Cluster, id: usize, more: &[&str]) -> Node {
    try_launch_joining(cluster, id, more).unwrap_or_else(|ended| panic!("the node ended before it was ready: {ended:?}"))
}

fn try_launch_joining(cluster: &Cluster, id: usize, more: &[&str]) -> Result<Node, Ended> {
    let (port, cpus) = (free_ports(1)[0], host::allowed_cpus());
    let line = format!(
        "--node-id {id} --join 127.0.0.1:{} --port {port} --gossip-port {} --cores {} --spin-us 0 --memory 64MiB",
        cluster.ports[0],
        port + 1,
        cpus[id % cpus.len()]
    );
    let flags: Vec<&str> = line.split(' ').chain(more.iter().copied()).collect();
    Node::try_start(&data_of(cluster.folder.path(), id - 1), &flags)
}

fn status(client: &mut Client) -> String {
    client.cluster("status").expect("a status")
}

/// Nothing moves, and so many nodes are members.
fn is_settled(client: &mut Client, members: usize) -> bool {
    let status = status(client);
    status.contains("nothing moves") && status.lines().filter(|line| line.contains(" member ")).count() == members
}

fn moved(number: u32) -> Vec<u8> {
    format!("moved {number}").into_bytes()
}

/// A client of a namespace, at QUORUM.
fn client_in(namespace: &str, config: ClientConfig) -> Client {
    let config = ClientConfig { namespace: namespace.to_owned(), levels: LevelsAsked::both(Level::Quorum), ..config };
    Client::connect(config).expect("the namespace is found")
}

/// Two namespaces with 300 keys each: `single` has each key on one node alone, `five` on all that there are.
fn make_of_one_and_of_five(cluster: &Cluster, first: &mut Client) {
    let replicas = |replicas| NamespaceOptions { replicas: Some(replicas), ..NamespaceOptions::default() };
    for (name, count) in [("single", 1), ("five", 5)] {
        let made = first.namespace_create_with(name, replicas(count)).expect("the first node makes it");
        assert_eq!(made.replicas, count);
        let mut client = client_in(name, cluster.node(0).config());
        (0..300u32).for_each(|number| _ = client.put(&moved(number), &number.to_le_bytes()).expect("a put"));
    }
    let refused = first.namespace_create_with("two", replicas(2)).expect_err("nobody has two").to_string();
    assert!(refused.contains("1, 3 or 5"), "{refused}");
    let info = first.info().expect("a node tells about itself");
    assert!(info.contains(" rf=1 ") && info.contains(" rf=5 ") && status(first).contains("namespaces of 1, 3, 5 replicas"), "{info}");
}

/// How many keys of one of these namespaces are there.
fn those_there(namespace: &str, config: ClientConfig) -> usize {
    let mut client = client_in(namespace, config);
    let is_there = |number: &u32| client.get(&moved(*number)).expect("a get").is_some_and(|found| found.value == number.to_le_bytes());
    (0..300u32).filter(is_there).count()
}

/// How many keys of `single` can be read when everybody knows that the second node is gone.
fn those_left(cluster: &Cluster) -> usize {
    let mut first = cluster.client(0, Level::Quorum);
    let is_known = |row: &str| row.starts_with("2 ") && row.contains(" no ");
    assert!(becomes(PATIENCE, || status(&mut first).lines().any(is_known)), "{}", status(&mut first));
    let config = ClientConfig { retries: 0, ..cluster.node(0).config() };
    let mut client = client_in("single", config);
    let left = (0..300u32).filter(|number| match client.get(&moved(*number)) {
        Err(ClientError::Unavailable { need: 1, alive: 0, .. }) => false,
        found => found.expect("it is there, or its node is not").is_some(),
    });
    let left = left.count();
    assert!((1..300).contains(&left), "{left} of 300 on two nodes of three");
    left
}

/// Every key has what was written last, of `last` writes over the first 500.
fn all_is_there(client: &mut Client, last: u32) {
    for number in 0..2_000u32 {
        let found = client.get(&moved(number)).expect("a get").expect("it was put").value;
        let found = u32::from_le_bytes(found.try_into().expect("four bytes"));
        let wanted = if number < 500 { (0..last).rev().find(|put| put % 500 == number).unwrap_or(number) } else { number };
        assert_eq!(found, wanted, "key {number}");
    }
}

fn third_is_told_to_leave(client: &mut Client) {
    assert!(becomes(PATIENCE, || is_settled(client, 4)));
    let planned = client.cluster("plan leave 1").expect("a plan");
    assert!(planned.contains("replicas of vnodes"), "{planned}");
    let refused = client.cluster("leave 9").expect_err("there is no such node").to_string();
    assert!(refused.contains("there is no node 9"), "{refused}");
    let said = client.cluster("leave 3").expect("it leaves");
    assert!(said.contains("vnodes move"), "{said}");
}

#[test]
fn a_node_joins_under_load_another_leaves_and_a_dead_one_is_replaced() {
    let mut cluster = Cluster::start();
    let mut clients = cluster.clients(Level::Quorum);
    for number in 0..2_000u32 {
        clients[0].put(&moved(number), &number.to_le_bytes()).expect("a put");
    }
    make_of_one_and_of_five(&cluster, &mut clients[0]);
    // Writes go on over all of it; none of them may fail while nobody falls.
    // The writer follows the ring: it hears of whoever comes and goes.
    let (stop, written, known) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let (mut writer, stop, written, known) = (cluster.client_of_all(1), &stop, &written, &known);
        let _ends = Ends(stop);
        let writing = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let number = written.fetch_add(1, Ordering::Relaxed) as u32;
                writer.put(&moved(number % 500), &number.to_le_bytes()).expect("a put while vnodes move");
                let nodes = writer.server().nodes.iter().fold(0, |all, node| all | 1 << node.id);
                known.store(nodes, Ordering::Relaxed);
            }
        });
        let knows = |nodes: u64| becomes(PATIENCE, || known.load(Ordering::Relaxed) == nodes);
        let fourth = launch_joining(&cluster, 4, &[]);
        assert!(becomes(PATIENCE * 2, || is_settled(&mut clients[0], 4)), "no join: {}", status(&mut clients[0]));
        assert!(knows(0b11110), "the client has not heard of the join: {:b}", known.load(Ordering::Relaxed));
        assert!(becomes(PATIENCE, || asked(&fourth) > 50.0), "the new node is not asked for what it owns");
        let mut at_fourth = Client::connect(ClientConfig { levels: LevelsAsked::both(Level::One), ..fourth.config() }).expect("a client");
        third_is_told_to_leave(&mut at_fourth);
        assert!(becomes(PATIENCE * 2, || is_settled(&mut clients[0], 3)), "no leave: {}", status(&mut clients[0]));
        assert!(knows(0b10110), "the client has not heard of the leave: {:b}", known.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        writing.join().expect("no put failed");
        let last = written.load(Ordering::Relaxed) as u32;
        assert!(last > 100, "{last} puts");
        cluster.nodes.push(Some(fourth));
    });
    // Who left serves clients still, and falls without being missed.
    cluster.kill(2);
    let last = written.load(Ordering::Relaxed) as u32;
    let all_is_there = |client: &mut Client| all_is_there(client, last);
    let mut ends = [cluster.client(0, Level::All), cluster.client(3, Level::Quorum)];
    ends.iter_mut().for_each(all_is_there);
    for namespace in ["single", "five"] {
        assert_eq!(those_there(namespace, cluster.node(3).config()), 300, "of {namespace}, after a join and a leave");
    }
    // The second one dies, and a node that stood by takes its place.
    cluster.kill(1);
    let left = those_left(&cluster);
    let fifth = launch_joining(&cluster, 5, &["--standby"]);
    let replaced = becomes(PATIENCE, || ends[0].cluster("replace 2 5").is_ok_and(|said| said.contains("1 replica had on node 2 is lost")));
    assert!(replaced, "{:?}", ends[0].cluster("replace 2 5"));
    let mut first = cluster.client(0, Level::Quorum);
    assert!(becomes(PATIENCE * 2, || is_settled(&mut first, 3)), "no replacement: {}", status(&mut first));
    let mut client = Client::connect(ClientConfig { levels: LevelsAsked::both(Level::All), ..fifth.config() }).expect("a client");
    assert!(becomes(PATIENCE, || client.get(&moved(1_999)).is_ok_and(|found| found.is_some())));
    all_is_there(&mut client);
    assert_eq!(those_there("five", fifth.config()), 300, "after a replacement");
    assert_eq!(those_there("single", fifth.config()), left, "what the dead node alone had is gone, and nothing else");
    // The last founder goes: what the two who came have taken over has to be all.
    cluster.kill(0);
    let mut client = Client::connect(ClientConfig { levels: LevelsAsked::both(Level::Quorum), ..fifth.config() }).expect("a client");
    assert!(becomes(PATIENCE, || client.get(&moved(1_999)).is_ok_and(|found| found.is_some())));
    all_is_there(&mut client);
    // It comes back without its disk, and of those in its list of founders nobody is left: those whom it does not know tell it.
    fs::remove_dir_all(cluster.data(0)).expect("its data goes");
    let ended = launch(BINARY, &cluster.data(0), 0, &cluster.ports).ends();
    assert!(ended.code == exit::CONFIG && ended.err.contains("ringkv cluster replace 1 NEW"), "{ended:?}");
    all_is_there(&mut client);
}

#[test]
fn nothing_is_lost_and_nothing_wrong_over_kills_and_restarts() {
    let mut cluster = Cluster::start();
    let judge = Judge::default();
    let (writer, readers) = (cluster.client_from(1), [cluster.client_from(0), cluster.client_from(2)]);
    thread::scope(|scope| {
        // Ends the threads also where this one panics.
        let _end = Ending(&judge.stop);
        scope.spawn(|| judge.write(writer));
        readers.into_iter().for_each(|client| drop(scope.spawn(|| judge.read(client))));
        for killed in [2, 1] {
            thread::sleep(Duration::from_millis(700));
            cluster.kill(killed);
            let before = judge.acknowledged.load(Ordering::SeqCst);
            assert!(becomes(PATIENCE, || judge.acknowledged.load(Ordering::SeqCst) > before + 200), "writes do not go on");
            cluster.restart(killed);
            cluster.is_whole_again();
        }
    });
    let mut last = cluster.client_from(2);
    (0..judge.records.len()).for_each(|at| assert!(becomes(PATIENCE, || judge.judge(at, &mut last)), "key {at} is not read back"));
    let count = |of: &AtomicU64| of.load(Ordering::SeqCst);
    let (acknowledged, unknown, judged) = (count(&judge.acknowledged), count(&judge.unknown), count(&judge.judged));
    eprintln!("{acknowledged} writes acknowledged, {unknown} unknown, {judged} answers judged");
    assert_eq!((count(&judge.lost), count(&judge.wrong)), (0, 0), "of {acknowledged} writes and {judged} answers");
    assert!(acknowledged > 400 && judged > 400, "{acknowledged} {judged}");
}

/// The version of a node's folder, as `ringkv inspect` of the newer program tells.
fn folder_version(next: &str, cluster: &Cluster, at: usize) -> String {
    let told = run_program(next, &["inspect", cluster.data(at).join("LAYOUT").to_str().expect("plain names")]);
    let version = told.out.split_once("layout: version ").and_then(|(_, rest)| rest.split(',').next());
    version.unwrap_or_else(|| panic!("{told:?}")).to_owned()
}

#[test]
fn nodes_are_upgraded_one_after_another_and_what_is_new_begins_with_the_last() {
    let Some(next) = next_program("a rolling upgrade") else { return };
    let mut cluster = Cluster::start();
    let judge = Judge::default();
    let (writer, readers) = (cluster.client_from(1), [cluster.client_from(0), cluster.client_from(2)]);
    let versions = |cluster: &Cluster| [0, 1, 2].map(|at| cluster.node(at).metric("ringkv_cluster_version") as u64);
    thread::scope(|scope| {
        let _end = Ending(&judge.stop);
        scope.spawn(|| judge.write(writer));
        readers.into_iter().for_each(|client| drop(scope.spawn(|| judge.read(client))));
        // One goes back while it may.
        let steps = [(2, next.as_str()), (0, &next), (2, BINARY), (1, &next), (2, &next)];
        for (step, (at, program)) in steps.into_iter().enumerate() {
            let ended = cluster.nodes[at].take().expect("it runs").stop();
            assert!(ended.code == 0 && !ended.err.contains("malformed"), "{ended:?}");
            cluster.start_as(at, program);
            cluster.is_whole_again();
            if step + 1 < steps.len() {
                // Longer than the nodes take to look.
                thread::sleep(Duration::from_secs(3));
                assert!(becomes(PATIENCE, || versions(&cluster) == [1, 1, 1]), "step {step}: {:?}", versions(&cluster));
                assert_eq!([0, 1, 2].map(|at| folder_version(&next, &cluster, at)), ["1", "1", "1"], "step {step}");
            }
        }
        assert!(becomes(PATIENCE, || versions(&cluster) == [2, 2, 2]), "{:?}", versions(&cluster));
        assert_eq!([0, 1, 2].map(|at| folder_version(&next, &cluster, at)), ["2", "2", "2"]);
        assert!(status(&mut cluster.client(1, Level::Quorum)).contains(", version 2\n"));
    });
    // What the nodes say to each other from now on only the newer ones understand.
    let made =
        cluster.client(0, Level::Quorum).namespace_create_with("later", NamespaceOptions::default()).expect("the first node makes it");
    for at in 0..NODES {
        assert!(becomes(PATIENCE, || cluster.client(at, Level::Quorum).namespaces().expect("a list").contains(&made)), "node {}", at + 1);
        assert_eq!(cluster.node(at).metric("ringkv_peer_frames_malformed_total"), 0.0, "node {}", at + 1);
    }
    let mut last = cluster.client_from(2);
    (0..judge.records.len()).for_each(|at| assert!(becomes(PATIENCE, || judge.judge(at, &mut last)), "key {at} is not read back"));
    let count = |of: &AtomicU64| of.load(Ordering::SeqCst);
    let acknowledged = count(&judge.acknowledged);
    assert_eq!((count(&judge.lost), count(&judge.wrong)), (0, 0), "of {acknowledged} writes");
    assert!(acknowledged > 1_000, "{acknowledged}");
    // An older program reads none of it, and is not let in.
    cluster.kill(2);
    let ended = try_launch(BINARY, &cluster.data(2), 2, &cluster.ports).err().expect("it does not know this version");
    assert!(ended.code == 5 && ended.err.contains("a data folder of a later version"), "{ended:?}");
    let ended = try_launch_joining(&cluster, 4, &[]).err().expect("it does not know this version");
    assert!(ended.err.contains("the cluster is at version 2, and this program knows version 1"), "{ended:?}");
    cluster.start_as(2, &next);
    cluster.is_whole_again();
}

/// Says stop when it goes.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
