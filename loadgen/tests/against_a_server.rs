//! The generator against a small server that is right, or wrong in one known way.

#[allow(dead_code)]
mod server;

use clap::Parser;
use loadgen::options::Options;
use loadgen::plan::OpKind;
use loadgen::report::Report;
use loadgen::run::{Failure, exit_code, run};
use server::{Fault, Server};
use std::net::SocketAddr;
use std::time::Duration;

fn try_load(address: SocketAddr, flags: &str) -> Result<Report, Failure> {
    let target = format!("native://{address}");
    let flags = ["loadgen", "--target", &target, "--quiet"].into_iter().chain(flags.split_whitespace());
    run(Options::try_parse_from(flags).unwrap(), &mut |_| {})
}

fn load(address: SocketAddr, flags: &str) -> Report {
    try_load(address, flags).unwrap()
}

const MIXED: &str = "--closed --warmup 0 --seconds 0.4 --keys 200 --conns 4 --mix get=50,put=50 --check --verify";

#[test]
fn a_right_server_is_found_right_in_every_way_of_loading_it() {
    let server = Server::start(Fault::None, 2);
    for flags in [
        "--closed --pipeline 8 --mix get=5,put=4,del=1 --preload",
        "--closed --any --dist zipf:0.99 --value 32..5000",
        "--rate 3000 --dist zipf:1.2 --cores 0,1 --mix get=1,put=1",
        "--rate 3000 --ttl 100ms --spin",
        "--closed --pipeline 64 --keys 1 --mix put=9,get=1",
        "--closed --value 1M --keys 5 --pipeline 4",
    ] {
        let keys = if flags.contains("--keys") { "" } else { "--keys 500" };
        let report = load(server.address, &format!("--warmup 0.1 --seconds 0.4 --conns 8 --check --verify {keys} {flags}"));
        let tally = &report.tally;
        assert_eq!((tally.wrong, tally.lost, exit_code(&report)), (0, 0, 0), "{flags}:\n{}", report.table());
        assert!(tally.errors.is_empty() && tally.checked > 100, "{flags}:\n{}", report.table());
        let hops = flags.contains("--any") || flags.contains("--keys 1 ");
        assert_eq!(tally.hops > 0, hops, "{flags}: keys go to the core that owns them\n{}", report.table());
        assert!(tally.ops[OpKind::Get as usize].latencies.count() > 0);
    }
}

#[test]
fn the_open_loop_reaches_its_rate() {
    let server = Server::start(Fault::None, 1);
    let report = load(server.address, "--rate 4000 --warmup 0.2 --seconds 1 --conns 10 --keys 1000");
    assert!((3700.0..4300.0).contains(&report.rate_reached()), "{}", report.table());
    assert_eq!(report.tally.unsent, 0);
    let puts = report.tally.ops[OpKind::Put as usize].latencies.count() as f64;
    let gets = report.tally.ops[OpKind::Get as usize].latencies.count() as f64;
    assert!((0.06..0.12).contains(&(puts / (puts + gets))), "91 to 9 was asked for");
}

#[test]
fn a_stall_of_the_server_is_charged_to_every_request_planned_in_it() {
    let server = Server::start(Fault::StallsAt(1000), 1);
    let report = load(server.address, "--rate 2000 --warmup 0 --seconds 1.2 --conns 4 --pipeline 1 --keys 1000 --mix get=1");
    let latencies = &report.tally.ops[OpKind::Get as usize].latencies;
    // 300 ms of 1.2 s: a quarter of the requests waited, half of those for more than 150 ms.
    assert!(latencies.quantile_us(0.9) > 100_000.0, "{}", report.table());
    assert!(latencies.max_us() > 280_000.0 && latencies.quantile_us(0.4) < 50_000.0, "{}", report.table());
    assert!((2200..2600).contains(&latencies.count()), "none is left out: {}", latencies.count());
}

#[test]
fn a_fill_writes_every_key_exactly_once_and_tries_refused_ones_again() {
    for (fault, threads) in [(Fault::None, "0,1"), (Fault::IsOverloaded, "0")] {
        let server = Server::start(fault, 3);
        let report = load(server.address, &format!("--fill --keys 20k --conns 7 --cores {threads}"));
        let store = server.store.lock().unwrap();
        assert_eq!(store.len(), 20_000);
        assert!(store.values().all(|entry| entry.puts == 1));
        assert_eq!(report.tally.ops[OpKind::Put as usize].latencies.count(), 20_000);
        assert_eq!(report.tally.errors.contains_key("overloaded"), fault == Fault::IsOverloaded);
    }
}

#[test]
fn every_way_of_being_wrong_is_found() {
    for (fault, flags, is_lost) in [
        (Fault::LosesWrites, "", true),
        (Fault::MixesKeys, "", false),
        (Fault::IsStale, "", true),
        (Fault::Rots, "", false),
        (Fault::Resurrects, "--mix get=50,put=30,del=20", true),
        (Fault::NeverExpires, "--ttl 50ms --rate 2000 --keys 1k --mix get=90,put=10", false),
        (Fault::ExpiresEarly, "--ttl 200ms --rate 2000 --keys 1k --mix get=90,put=10", true),
    ] {
        let server = Server::start(fault, 2);
        let mut common = MIXED.to_owned();
        if flags.contains("--rate") {
            common = common.replace("--closed", "").replace("--keys 200", "");
        }
        if flags.contains("--mix") {
            common = common.replace("--mix get=50,put=50", "");
        }
        let report = load(server.address, &format!("{common} {flags}"));
        let (found, other) = if is_lost { (report.tally.lost, "lost") } else { (report.tally.wrong, "wrong") };
        assert!(found > 0, "{fault:?}: nothing {other}\n{}", report.table());
        assert_eq!(exit_code(&report), 1);
        assert!(!report.tally.findings.is_empty() && report.json().contains("\"findings\": {\""));
    }
}

#[test]
fn refusals_are_counted_by_kind() {
    let server = Server::start(Fault::IsOverloaded, 1);
    let report = load(server.address, MIXED);
    assert!(report.tally.errors["overloaded"] > 0 && report.tally.errors.len() == 1, "{}", report.table());
    assert_eq!((report.tally.wrong, report.tally.lost), (0, 0), "a refused write did nothing");
}

#[test]
fn a_journal_outlives_the_server_and_convicts_it_when_it_comes_back_without_a_write() {
    let folder = std::env::temp_dir().join(format!("loadgen-journal-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let journal = folder.join("journal");
    let server = Server::start(Fault::DiesAt(5000), 2);
    let flags = format!("{} --pipeline 4 --journal {}", MIXED.replace("0.4", "20"), journal.display());
    let report = load(server.address, &flags);
    assert_eq!(exit_code(&report), 3, "{}", report.table());
    assert!(report.died.as_ref().unwrap().contains("went away"));

    let (address, store) = (server.address, server.store.clone());
    drop(server);
    let unreachable = try_load(address, &format!("--verify-journal {}", journal.display()));
    assert!(matches!(unreachable, Err(Failure::Unreachable(_))), "nobody is there");
    let server = Server::start_on(address, Fault::None, 3, store.clone());
    let verify = format!("--verify-journal {} --conns 3", journal.display());
    let report = load(address, &verify);
    assert_eq!(exit_code(&report), 0, "{}", report.table());
    assert!(report.tally.checked > 100);

    // The same run goes on over the restart, and is still known afterwards.
    let report = load(address, &format!("{} --pipeline 4 --journal {}", MIXED, journal.display()));
    assert_eq!(exit_code(&report), 0, "{}", report.table());
    store.lock().unwrap().retain(|key, _| !key.ends_with(b"7"));
    let report = load(address, &verify);
    assert!(report.tally.lost > 5 && exit_code(&report) == 1, "{}", report.table());
    drop(server);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_run_stays_through_a_restart_and_reads_everything_back() {
    let server = Server::start(Fault::None, 2);
    let (address, store) = (server.address, server.store.clone());
    let restart = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        drop(server);
        std::thread::sleep(Duration::from_millis(200));
        Server::start_on(address, Fault::None, 3, store)
    });
    let report = load(address, "--rate 2000 --warmup 0 --seconds 1.5 --keys 300 --conns 4 --mix get=50,put=50 --check --reconnect");
    let server = restart.join().unwrap();
    let tally = &report.tally;
    assert_eq!((tally.wrong, tally.lost, exit_code(&report)), (0, 0, 0), "{}", report.table());
    assert!(tally.reconnects >= 4 && tally.checked > 1000, "{}", report.table());
    let latencies = &tally.ops[OpKind::Get as usize].latencies;
    assert!(latencies.max_us() > 150_000.0, "the outage is part of the latencies\n{}", report.table());
    drop(server);
}
