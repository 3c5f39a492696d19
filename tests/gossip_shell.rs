//! Gossip over real sockets: control cores of one process on loopback, on glommio and on plain threads.

use ringkv::cluster::board::{Member, MemberBoard, Members};
use ringkv::cluster::gossip::member::{Address, Profile, Rack, State, Versions};
use ringkv::cluster::gossip::wire::Key;
use ringkv::cluster::gossip::{CLUSTER_UNKNOWN, Me, Timing};
use ringkv::control::gossip::{GossipFigures, GossipSetup, to_address};
use ringkv::control::{ControlConfig, ControlHandle, IDLE_MAX, Source, StartError, start};
use ringkv::io::driver::Backend;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// For what takes a moment on a free machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Silent;

impl Source for Silent {
    fn metrics(&self) -> String {
        String::new()
    }
    fn health(&self) -> Result<(), String> {
        Ok(())
    }
    fn info(&self) -> String {
        String::new()
    }
}

struct Node {
    id: u64,
    handle: ControlHandle,
    board: Arc<MemberBoard>,
    figures: Arc<GossipFigures>,
    said: Arc<Mutex<Vec<String>>>,
    woken: Arc<AtomicU64>,
}

fn profile() -> Profile {
    let at = |port| Address::v4([127, 0, 0, 1], port);
    let versions = Versions { min: 1, max: 1 };
    Profile { native: at(7400), gossip: at(0), cores: 1, weight: 1, rack: Rack::default(), protocol: versions, format: versions }
}

/// How a node is started.
struct Plan<'a> {
    id: u64,
    cluster: u64,
    vnodes: u32,
    key: &'a [u8],
    seeds: Vec<Address>,
    backend: Backend,
}

impl Plan<'_> {
    fn new(id: u64, backend: Backend, seeds: Vec<Address>) -> Plan<'static> {
        Plan { id, cluster: 7, vnodes: 16, key: b"key", seeds, backend }
    }

    fn config(self) -> (ControlConfig, Node0) {
        let (said, woken) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicU64>::default());
        let (heard, count) = (said.clone(), woken.clone());
        let board = Arc::new(MemberBoard::new(Box::new(move || _ = count.fetch_add(1, Ordering::Relaxed))));
        let figures = Arc::<GossipFigures>::default();
        let gossip = GossipSetup {
            listen: "127.0.0.1:0".parse().unwrap(),
            cluster: self.cluster,
            vnodes: self.vnodes,
            key: Key::new(self.key),
            me: Me { node: self.id, profile: profile() },
            seeds: self.seeds,
            timing: Timing::default(),
            board: board.clone(),
            figures: figures.clone(),
            warn: Arc::new(move |line| heard.lock().unwrap().push(line.to_owned())),
        };
        let config = ControlConfig {
            address: "127.0.0.1:0".parse().unwrap(),
            cpu: None,
            shares: false,
            idle_max: IDLE_MAX,
            source: Arc::new(Silent),
            backend: self.backend,
            gossip: Some(gossip),
        };
        (config, Node0 { id: self.id, board, figures, said, woken })
    }

    fn start(self) -> Node {
        let (config, Node0 { id, board, figures, said, woken }) = self.config();
        let handle = start(config).expect("starts");
        Node { id, handle, board, figures, said, woken }
    }
}

/// A node that does not run yet.
struct Node0 {
    id: u64,
    board: Arc<MemberBoard>,
    figures: Arc<GossipFigures>,
    said: Arc<Mutex<Vec<String>>>,
    woken: Arc<AtomicU64>,
}

impl Node {
    fn address(&self) -> Address {
        to_address(self.handle.gossip_address().expect("gossip runs"))
    }

    fn sees(&self, node: u64) -> Option<State> {
        self.board.get().get(node).map(|member| member.state)
    }

    fn has_said(&self, words: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(words))
    }
}

fn wait(what: &str, mut until: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !until() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    began.elapsed()
}

fn three(backend: Backend) -> Vec<Node> {
    let mut nodes = vec![Plan::new(1, backend, vec![]).start()];
    let seed = nodes[0].address();
    nodes.extend((2..=3).map(|id| Plan::new(id, backend, vec![seed]).start()));
    wait("three see three", || nodes.iter().all(|node| [1, 2, 3].iter().all(|id| node.board.get().is_live(*id))));
    nodes
}

fn a_cluster_meets_and_notices_who_falls_and_who_leaves(backend: Backend) {
    let mut nodes = three(backend);
    for node in &nodes {
        let members = node.board.get();
        assert_eq!((members.me(), members.cluster(), members.list().len()), (node.id, 7, 3));
        assert!(nodes.iter().all(|other| members.get(other.id).unwrap().profile.gossip == other.address()));
        assert!(node.woken.load(Ordering::Relaxed) >= node.board.generation());
    }
    let seed = nodes[1].address();
    nodes.push(Plan { cluster: CLUSTER_UNKNOWN, ..Plan::new(4, backend, vec![seed]) }.start());
    wait("the fourth learns its cluster", || nodes[3].board.get().cluster() == 7);
    wait("four see four", || nodes.iter().all(|node| (1..=4).all(|id| node.board.get().is_live(id))));
    nodes[2].board.set_topology(5, 55);
    let heard = |node: &Node| node.board.take_newer().map(|newer| (newer.newest.epoch, newer.newest.hash));
    wait("a topology is heard of", || heard(&nodes[0]) == Some((5, 55)));
    assert_eq!(heard(&nodes[2]), None, "it has it");
    nodes.pop().unwrap().handle.stop();
    let took = wait("a goodbye is heard", || nodes.iter().all(|node| node.sees(4) == Some(State::Left)));
    assert!(took < Duration::from_secs(2), "{took:?}");
    nodes.pop().unwrap().handle.stop_abruptly();
    let took = wait("a death is found", || nodes.iter().all(|node| node.sees(3) == Some(State::Dead)));
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert!(nodes.iter().all(|node| node.said.lock().unwrap().is_empty() && node.sees(node.id) == Some(State::Alive)));
    wait("the figures follow", || {
        let mut report = ringkv::base::metrics::Report::new();
        nodes[0].figures.report(&mut report);
        let text = report.prometheus();
        let deaths = report.total("gossip_deaths_total") >= 1.0 && report.total("gossip_syncs_total") >= 1.0;
        deaths && ["gossip_members{state=\"alive\"} 2", "gossip_members{state=\"left\"} 1"].iter().all(|line| text.contains(line))
    });
}

#[test]
fn a_cluster_on_glommio_meets_and_notices_who_falls_and_who_leaves() {
    a_cluster_meets_and_notices_who_falls_and_who_leaves(Backend::Uring);
}

#[test]
fn a_cluster_on_threads_meets_and_notices_who_falls_and_who_leaves() {
    a_cluster_meets_and_notices_who_falls_and_who_leaves(Backend::Epoll);
}

fn strangers_are_refused_with_a_sentence(backend: Backend) {
    let first = Plan::new(1, backend, vec![]).start();
    let seed = vec![first.address()];
    let key = Plan { key: b"other", ..Plan::new(2, backend, seed.clone()) }.start();
    let vnodes = Plan { vnodes: 32, ..Plan::new(3, backend, seed.clone()) }.start();
    let cluster = Plan { cluster: 8, ..Plan::new(4, backend, seed) }.start();
    wait("the key is named", || first.has_said("the cluster keys differ") && key.has_said("the cluster keys differ"));
    wait("the vnodes are named", || first.has_said("its ring has 32 vnodes, that of this node 16") && vnodes.has_said("refused by node 1"));
    wait("the cluster is named", || first.has_said("its cluster is 0000000000000008") && cluster.has_said("refused by node 1"));
    assert!([&first, &key, &vnodes, &cluster].iter().all(|node| node.board.get().list().len() == 1));
    wait("refusals are counted", || {
        let mut report = ringkv::base::metrics::Report::new();
        first.figures.report(&mut report);
        let text = report.prometheus();
        ["wrong_key", "other_vnodes", "other_cluster"].iter().all(|reason| {
            let line = format!("gossip_refusals_total{{reason=\"{reason}\"}} ");
            text.lines().any(|found| found.contains(&line) && !found.ends_with(" 0"))
        })
    });
}

#[test]
fn strangers_on_glommio_are_refused_with_a_sentence() {
    strangers_are_refused_with_a_sentence(Backend::Uring);
}

#[test]
fn strangers_on_threads_are_refused_with_a_sentence() {
    strangers_are_refused_with_a_sentence(Backend::Epoll);
}

fn streams_that_drip_lie_or_crowd_end_and_gossip_goes_on(backend: Backend) {
    let first = Plan::new(1, backend, vec![]).start();
    let address = first.handle.gossip_address().unwrap();
    let connect = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    // A reset is an end as well.
    let is_ended = |stream: &mut TcpStream| {
        let ended = stream.read(&mut [0; 16]);
        assert!(
            ended.as_ref().is_ok_and(|count| *count == 0) || ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
        );
    };
    let mut crowd: Vec<TcpStream> = (0..12).map(|_| connect()).collect();
    let second = Plan::new(2, backend, vec![first.address()]).start();
    wait("they meet all the same", || first.board.get().is_live(2) && second.board.get().is_live(1));
    crowd.iter_mut().for_each(is_ended);
    let mut long = connect();
    let _ = long.write_all(&[255; 64]);
    is_ended(&mut long);
    let mut garbage = connect();
    let _ = garbage.write_all(&[3, 0, 0, 0, 1, 2, 3]);
    is_ended(&mut garbage);
    let third = Plan::new(3, backend, vec![second.address()]).start();
    wait("three see three", || [&first, &second, &third].iter().all(|node| (1..=3).all(|id| node.board.get().is_live(id))));
}

#[test]
fn streams_on_glommio_that_drip_lie_or_crowd_end() {
    streams_that_drip_lie_or_crowd_end_and_gossip_goes_on(Backend::Uring);
}

#[test]
fn streams_on_threads_that_drip_lie_or_crowd_end() {
    streams_that_drip_lie_or_crowd_end_and_gossip_goes_on(Backend::Epoll);
}

#[test]
fn a_busy_port_is_named_with_the_flag_that_moves_it_and_is_soon_free_after_the_end() {
    for backend in [Backend::Uring, Backend::Epoll] {
        let first = Plan::new(1, backend, vec![]).start();
        let taken = first.handle.gossip_address().unwrap();
        let busy = || {
            let (mut config, _) = Plan::new(2, backend, vec![]).config();
            config.gossip.as_mut().unwrap().listen = taken;
            config
        };
        let error = start(busy()).err().expect("the port is taken");
        assert!(matches!(error, StartError::GossipInUse(_)) && error.to_string().contains("--gossip-port"), "{error}");
        first.handle.stop();
        // The kernel takes a ring down in its own time, and what was under way on it holds the sockets until then.
        let by = Instant::now() + Duration::from_secs(10);
        let again = loop {
            match start(busy()) {
                Err(StartError::GossipInUse(_)) if Instant::now() < by => std::thread::sleep(Duration::from_millis(20)),
                other => break other,
            }
        };
        again.expect("the port is free").stop();
    }
}

#[test]
fn a_new_generation_is_never_seen_before_its_snapshot() {
    let board = MemberBoard::new(Box::new(|| {}));
    let member = |node| Member { node, state: State::Alive, incarnation: 1, profile: profile() };
    std::thread::scope(|scope| {
        scope.spawn(|| (1..=1000).for_each(|node| board.publish(Members::new(9, node, [member(node)]))));
        while board.generation() < 1000 {
            let generation = board.generation();
            assert!(board.get().me() >= generation);
        }
    });
}
