//! Every refusal and every default, as an operator meets them.

use super::*;
use crate::wire::command::{Compression, Level, LevelsAsked};
use std::ffi::OsString;

fn host() -> Host {
    Host { cpus: vec![0, 1, 2, 3], memory_bytes: 8 << 30 }
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn run(words: &str, files: &[(&str, &str)]) -> Result<Command, Refusal> {
    let args = std::iter::once("ringkv").chain(words.split_whitespace()).map(OsString::from);
    let read = |path: &Path| {
        let found = files.iter().find(|(name, _)| Path::new(name) == path);
        found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| std::io::ErrorKind::NotFound.into())
    };
    load(args, &read, host)
}

fn config(words: &str, files: &[(&str, &str)]) -> Config {
    match run(words, files) {
        Ok(Command::Serve(config)) => config,
        other => panic!("{words}: {other:?}"),
    }
}

fn refused(words: &str, file: &str) -> String {
    let refusal = run(words, &[("f", file)]).expect_err(words);
    assert_eq!(refusal.code, exit::CONFIG);
    assert!(!refusal.text.contains('\n'), "one sentence: {}", refusal.text);
    refusal.text
}

#[test]
fn defaults_work_without_a_word() {
    let config = config("", &[]);
    assert_eq!(config.native, at("127.0.0.1:7400"));
    assert_eq!(config.admin, at("127.0.0.1:7480"));
    assert_eq!(config.data, Path::new("./ringkv-data"));
    assert_eq!(config.cores, [0, 1, 2, 3]);
    assert_eq!(config.memory_bytes, (8u64 << 30) / 100 * 25);
    assert_eq!((config.durability, config.insecure, config.strict_start), (Durability::Sync, false, false));
    assert_eq!(config.vnodes_at_creation(), 4096);
    assert_eq!(config.io, None);
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = "port = 7500\nadmin-port = 7501\ncores = \"1-2\"\nmemory = \"1G\"\ndurability = \"interval\"\nstrict-start = true\n";
    let config = config("--config f --port 7600 --cores 3 --strict-start=false", &[("f", file)]);
    assert_eq!((config.native.port(), config.admin.port()), (7600, 7501));
    assert_eq!((config.cores, config.memory_bytes), (vec![3], 1 << 30));
    assert_eq!((config.durability, config.strict_start), (Durability::Interval, false));
}

#[test]
fn io_is_forced_by_name_and_free_with_auto() {
    let io = |words: &str| config(words, &[("f", "io = \"epoll\"")]).io;
    assert_eq!([io("--io uring"), io("--config f"), io("--config f --io auto")], [Some(Backend::Uring), Some(Backend::Epoll), None]);
}

#[test]
fn a_refusal_is_one_sentence_that_names_the_key() {
    for (words, file, key) in [
        ("--prot 1", "", "--prot"),
        ("--port x", "", "--port"),
        ("--port 99999", "", "--port"),
        ("--cores 9", "", "cores"),
        ("--cores 1,1", "", "cores"),
        ("--memory 1T", "", "memory"),
        ("--memory 1M", "", "memory"),
        ("--memory lots", "", "memory"),
        ("--durability never", "", "durability"),
        ("--io kqueue", "", "io"),
        ("--vnodes 1000", "", "vnodes"),
        ("--vnodes 32768", "", "vnodes"),
        ("--host nowhere", "", "host"),
        ("--port 7480", "", "admin-port"),
        ("--config missing", "", "config"),
        ("--config f", "prot = 1", "prot"),
        ("--config f", "data = \"d\"\nport = \"x\"", "line 2: `port"),
        ("--config f", "port = ", "port"),
        ("--config f", "port = 1\nport = 2", "port"),
        ("--config f", "[cores]\nlist = 1", "cores"),
        ("--founders 1=127.0.0.1:7400 --join 127.0.0.1:1", "", "contradict"),
        ("--node-id 1", "", "node-id"),
        ("--rack a", "", "rack"),
        ("--weight 2", "", "weight"),
        ("--gossip-port 2", "", "gossip-port"),
        ("--config f", "cluster-key = \"k\"", "cluster-key"),
        ("--founders 1=127.0.0.1:7400", "", "node-id"),
        ("--founders 1=127.0.0.1:7400 --node-id 2", "", "node-id 2"),
        ("--founders 1=127.0.0.1:7401 --node-id 1", "", "127.0.0.1:7401"),
        ("--founders 1=127.0.0.2:7400 --node-id 1", "", "127.0.0.2:7400"),
        ("--founders 1=127.0.0.1:7400 --node-id 1 --gossip-port 0", "", "gossip-port"),
        ("--founders 1=127.0.0.1:7400,2=127.0.0.1:65530 --node-id 1", "", "127.0.0.1:65530"),
        ("--founders x --node-id 1", "", "founders"),
        ("--join nowhere", "", "join"),
        ("--join 127.0.0.1:1 --node-id 0", "", "node-id"),
        ("--join 127.0.0.1:1 --gossip-port 7400", "", "gossip-port"),
        ("--join 127.0.0.1:1 --gossip-port 7480", "", "admin-port"),
        ("--join 127.0.0.1:1 --weight 0", "", "weight"),
        ("--standby", "", "standby"),
        ("--restored", "", "restored"),
        ("cluster", "", "WORDS"),
        ("--join 127.0.0.1:1 --rack aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "", "rack"),
        ("--join 127.0.0.1:1 --host 0.0.0.0 --insecure --cluster-key k", "", "host 0.0.0.0"),
        ("--join 10.0.0.1:1 --host 10.0.0.2 --insecure", "", "cluster-key"),
        ("--port 1 get k", "", "--port"),
        ("put k", "", "VALUE"),
        ("put k v --if-absent --if-present", "", "--if-present"),
        ("put k v --ttl 0", "", "--ttl"),
        ("get k --if-absent", "", "--if-absent"),
        ("sim --seed 1 --seeds 2", "", "--seeds"),
        ("ring --nodes 0", "", "--nodes"),
        ("ring --cores 4 --mixed 4,8", "", "--mixed"),
        ("ring --mixed 4,0", "", "--mixed"),
        ("ring --rf 6", "", "--rf"),
        ("ring --racks 0", "", "--racks"),
        ("ring --vnodes 100", "", "vnodes"),
        ("ns alter x", "", "--ttl"),
        ("ns", "", "word"),
        ("frobnicate", "", "frobnicate"),
    ] {
        let text = refused(words, file);
        assert!(text.contains(key), "`{words}` with `{file}` said: {text}");
    }
}

#[test]
fn beyond_loopback_takes_a_credential_or_insecure() {
    assert!(refused("--host 0.0.0.0", "").contains("secret-file"));
    assert!(refused("--host ::", "").contains("secret-file"));
    assert!(refused("--config f", "host = \"10.0.0.1\"").contains("secret-file"));
    assert!(refused("--insecure --secret-file s", "").contains("contradict"));
    assert_eq!(config("--host 0.0.0.0 --insecure", &[]).native, at("0.0.0.0:7400"));
    assert_eq!(config("--host 0.0.0.0 --secret-file s", &[]).secret_file.as_deref(), Some(Path::new("s")));
    assert_eq!(config("--host ::1", &[]).native, at("[::1]:7400"));
    assert_eq!(config("--host localhost", &[]).native, at("127.0.0.1:7400"));
}

#[test]
fn founders_know_each_other_and_who_joins_knows_whom_to_ask() {
    assert_eq!(config("", &[]).cluster, None);
    let list = "1=127.0.0.1:7400,2=127.0.0.1:7401,3=127.0.0.3:7400";
    let two = config(&format!("--node-id 2 --port 7401 --gossip-port 7491 --founders {list}"), &[]).cluster.unwrap();
    assert_eq!((two.node_id, two.founders.len(), two.key_file), (Some(2), 3, None));
    assert_eq!(two.seeds, [at("127.0.0.1:7490"), at("127.0.0.3:7490")]);
    assert_eq!((two.gossip, two.ip, two.weight, two.rack.as_str()), (at("127.0.0.1:7491"), at("127.0.0.1:1").ip(), 4, ""));
    let words = "--host 0.0.0.0 --insecure --cluster-key k --node-id 1 --founders 1=10.0.0.1:7400";
    let every = config(words, &[]).cluster.unwrap();
    assert_eq!((every.gossip, every.ip, every.seeds.len()), (at("0.0.0.0:7490"), at("10.0.0.1:1").ip(), 0));
    let file = "join = \"10.0.0.1:7490,10.0.0.2:7490\"\nrack = \"r1\"\nweight = 9\ncluster-key = \"k\"\nnode-id = 5\n";
    let joins = config("--config f --host 10.0.0.5 --insecure", &[("f", file)]).cluster.unwrap();
    assert_eq!((joins.node_id, joins.weight, joins.rack.as_str()), (Some(5), 9, "r1"));
    assert_eq!((joins.seeds.len(), joins.founders.len(), joins.ip), (2, 0, at("10.0.0.5:1").ip()));
    assert_eq!((joins.key_file.as_deref(), joins.standby), (Some(Path::new("k")), false));
    assert!(config("--join 127.0.0.1:1 --standby", &[]).cluster.unwrap().standby);
    assert_eq!(config("--join 127.0.0.1:1 --gossip-port 0 --port 0", &[]).cluster.unwrap().node_id, None);
}

#[test]
fn a_small_host_still_starts_with_the_least_that_works() {
    let tiny = Host { cpus: vec![0, 1], memory_bytes: 64 << 20 };
    assert_eq!(Settings::default().resolve(&tiny).unwrap().memory_bytes, 2 * MEMORY_BYTES_MIN_PER_CORE);
    let many = Host { cpus: (0..400).collect(), memory_bytes: 1 << 40 };
    assert_eq!(Settings::default().resolve(&many).unwrap().cores.len(), CORES_MAX);
    assert!(Settings { port: Some(0), admin_port: Some(0), ..Settings::default() }.resolve(&host()).is_ok());
}

#[test]
fn the_shell_clients_words_are_understood() {
    let word = |words: &str| match run(words, &[]) {
        Ok(Command::Client(client)) => client,
        other => panic!("{words}: {other:?}"),
    };
    let put = word("put k v --ttl 10s --if-version 000000000000000000000000000000ff --host h --port 9 --namespace n");
    let condition = Condition::IfVersion(crate::base::record::Version(255));
    let ttl = Some(std::time::Duration::from_secs(10));
    assert_eq!(put.word, Word::Put { key: b"k".into(), value: b"v".into(), ttl, condition });
    let never = Word::Put { key: b"k".into(), value: b"v".into(), ttl: Some(std::time::Duration::MAX), condition: Condition::Always };
    assert_eq!(word("put k v --ttl never").word, never);
    assert_eq!(put.target, Target { host: "h".into(), port: 9, secret_file: None, namespace: "n".into(), level: None });
    assert_eq!(word("get k").target.port, PORT_DEFAULT);
    assert_eq!(word("scan").word, Word::Scan { vnode: None, limit: 1000 });
    let levels = LevelsAsked::default();
    let none = Namespaces::Alter { name: "x".into(), ttl: Some(None), durability: None, compression: None, levels };
    assert_eq!(word("ns alter x --ttl none").word, Word::Namespaces(none));
    let (durability, compression) = (Durability::Interval, Compression::None);
    let made = Namespaces::Create { name: "x".into(), ttl: None, durability, compression, levels, replicas: None };
    assert_eq!(word("ns create x --durability interval").word, Word::Namespaces(made));
    let five = Namespaces::Create { name: "x".into(), ttl: None, durability, compression, levels, replicas: Some(5) };
    assert_eq!(word("ns create x --durability interval --replicas 5").word, Word::Namespaces(five));
    let packed = Namespaces::Alter { name: "x".into(), ttl: None, durability: None, compression: Some(Compression::Lz4), levels };
    assert_eq!(word("ns alter x --compression lz4").word, Word::Namespaces(packed));
    let levels = LevelsAsked { read: Some(Level::One), write: Some(Level::Exactly(2)) };
    let fast = Namespaces::Create { name: "x".into(), ttl: None, durability: Durability::Sync, compression, levels, replicas: None };
    assert_eq!(word("ns create x --default-level one,2").word, Word::Namespaces(fast));
    let fast = Namespaces::Alter { name: "x".into(), ttl: None, durability: None, compression: None, levels };
    assert_eq!(word("ns alter x --default-level one,2").word, Word::Namespaces(fast));
    let (mine, other) = (word("get k --level one"), word("ns alter x --default-level all --level one"));
    assert_eq!((mine.target.level, other.target.level), (Some(LevelsAsked::both(Level::One)), Some(LevelsAsked::both(Level::One))));
    assert_eq!(run("verify d", &[]), Ok(Command::Verify("d".into())));
    let salvage = Command::Salvage { from: "d".into(), to: "n".into() };
    assert_eq!(run("verify d --salvage n", &[]), Ok(salvage));
    let inspect = Inspect { file: "f".into(), limit: 7, cells: false, json: true };
    assert_eq!(run("inspect f --limit 7 --json", &[]), Ok(Command::Inspect(inspect)));
    let ring = RingRun { nodes: 20, cores: 16, mixed: vec![], vnodes: 4096, rf: 3, racks: 1, json: false };
    assert_eq!(run("ring --nodes 20 --cores 16", &[]), Ok(Command::Ring(ring.clone())));
    let ring = RingRun { mixed: vec![4, 8], racks: 2, json: true, ..ring };
    assert_eq!(run("ring --nodes 20 --mixed 4,8 --racks 2 --json", &[]), Ok(Command::Ring(ring)));
    let sim = SimRun { seeds: Some(50), ..SimRun::default() };
    assert_eq!(run("sim --seeds 50", &[]), Ok(Command::Sim(sim)));
}

#[test]
fn help_and_version_are_no_failures() {
    let help = run("--help", &[]).expect_err("help is text");
    assert_eq!(help.code, exit::CLEAN);
    assert!(help.text.contains("--admin-port") && help.text.contains("Exit codes"));
    assert_eq!(run("--version", &[]).expect_err("version is text").code, exit::CLEAN);
}

/// The first table of `tuning.md`: flag and default of each row.
fn rows() -> Vec<(String, String)> {
    let table = include_str!("../../tuning.md").lines().filter(|line| line.starts_with("| `--"));
    table
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let flag = cells[1].trim_matches('`').split(' ').next().unwrap_or("").to_owned();
            (flag, cells[2].trim_matches('`').to_owned())
        })
        .collect()
}

#[test]
fn every_knob_has_its_row_in_tuning_md_and_every_row_its_knob() {
    let mut in_table: Vec<String> = rows().into_iter().map(|(flag, _)| flag).collect();
    let mut flags = command::server_flags();
    in_table.sort();
    flags.sort();
    assert_eq!(in_table, flags);
}

#[test]
fn the_defaults_that_tuning_md_tells_are_the_defaults() {
    let mut shown = 0;
    for (flag, default) in rows() {
        let constant = match flag.as_str() {
            "--data" => DATA_DEFAULT.to_owned(),
            "--host" => HOST_DEFAULT.to_owned(),
            "--port" => PORT_DEFAULT.to_string(),
            "--admin-port" => ADMIN_PORT_DEFAULT.to_string(),
            "--gossip-port" => GOSSIP_PORT_DEFAULT.to_string(),
            "--memory" => format!("{MEMORY_PERCENT_DEFAULT}%"),
            "--durability" => "sync".to_owned(),
            "--vnodes" => VNODES_DEFAULT.to_string(),
            "--io" => config("", &[]).io.map_or("auto", Backend::name).to_owned(),
            _ => continue,
        };
        assert_eq!(default, constant, "{flag}");
        shown += 1;
    }
    assert_eq!(shown, 9);
}
