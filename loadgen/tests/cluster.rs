//! The generator against several servers over one store: what it does when one of them dies, comes back, or falls silent.

#[allow(dead_code)]
mod server;

use clap::Parser;
use loadgen::options::Options;
use loadgen::report::Report;
use loadgen::run::{exit_code, run};
use server::{Fault, Server, Store};
use std::time::Duration;

const LOAD: &str = "--level quorum --warmup 0 --keys 300 --conns 6 --mix get=50,put=45,del=5 --check";

/// Three servers, the second with this fault.
fn three(fault: Fault) -> Vec<Server> {
    let store = Store::default();
    let start = |fault| Server::start_on("127.0.0.1:0".parse().unwrap(), fault, 2, store.clone());
    vec![start(Fault::None), start(fault), start(Fault::None)]
}

fn load(servers: &[Server], flags: &str) -> Report {
    load_target(&target(servers), flags)
}

fn target(servers: &[Server]) -> String {
    let addresses: Vec<String> = servers.iter().map(|server| server.address.to_string()).collect();
    format!("ringkv://{}", addresses.join(","))
}

fn load_target(target: &str, flags: &str) -> Report {
    let line = ["loadgen", "--target", target, "--quiet"].into_iter().chain(LOAD.split(' ')).chain(flags.split_whitespace());
    run(Options::try_parse_from(line).unwrap(), &mut |_| {}).unwrap()
}

fn check(report: &Report) {
    let tally = &report.tally;
    assert_eq!((tally.wrong, tally.lost, exit_code(report)), (0, 0, 0), "{}", report.table());
    let slots = &tally.availability.slots;
    let (answered, errors) = slots.iter().fold((0, 0), |sum, slot| (sum.0 + slot.answered, sum.1 + slot.errors.values().sum::<u64>()));
    assert_eq!((answered, errors), (tally.answers, tally.errors.values().sum()), "every answer is in a slot\n{}", report.table());
}

#[test]
fn connections_are_spread_over_all_nodes() {
    let servers = three(Fault::None);
    for flags in ["--rate 2000 --seconds 0.5", "--closed --seconds 0.3", "--closed --seconds 0.3 --preload --cores 0,1"] {
        let report = load(&servers, flags);
        check(&report);
        assert!(report.tally.errors.is_empty() && report.tally.reconnects == 0, "{flags}:\n{}", report.table());
        assert!(servers.iter().all(|server| server.requests() > 50), "{flags}: a node was not asked");
    }
    let json = load(&servers, "--fill").json();
    assert!(json.contains("\"unknown\": 0") && json.contains("\"availability\": {\"slot_ms\": 100, \"slots\": [{"), "{json}");
}

#[test]
fn a_run_goes_on_at_the_others_when_a_node_dies_and_comes_back() {
    for mode in ["--rate 2000", "--closed"] {
        let mut servers = three(Fault::None);
        let target = target(&servers);
        let dying = servers.remove(1);
        let restart = std::thread::spawn(move || {
            let (address, store) = (dying.address, dying.store.clone());
            std::thread::sleep(Duration::from_millis(400));
            drop(dying);
            std::thread::sleep(Duration::from_millis(300));
            Server::start_on(address, Fault::None, 2, store)
        });
        let report = load_target(&target, &format!("{mode} --seconds 1.5"));
        drop(restart.join().unwrap());
        check(&report);
        let tally = &report.tally;
        assert!(tally.reconnects >= 2 && tally.errors.keys().all(|kind| kind == "connection lost"), "{}", report.table());
        // It was down for 300 ms, and nobody waited for it.
        let down = &tally.availability.slots[5..7];
        assert!(down.iter().all(|slot| slot.answered > 0), "{mode}:\n{}", report.table());
    }
}

#[test]
fn a_node_that_falls_silent_is_given_up_and_its_writes_are_unknown() {
    let servers = three(Fault::FallsSilentAt(200));
    let report = load(&servers, "--rate 2000 --seconds 2 --patience 300ms");
    check(&report);
    let tally = &report.tally;
    assert!(tally.reconnects >= 2 && tally.errors["connection lost"] > 10 && tally.errors.len() == 1, "{}", report.table());
    assert!(tally.unknown > 0 && tally.unknown <= tally.errors["connection lost"], "{}", report.table());
    let troubles = tally.availability.troubles();
    let longest = tally.availability.slots.iter().map(|slot| slot.longest_ns).max().unwrap();
    assert!(!troubles.is_empty() && (250_000_000..3_000_000_000).contains(&longest), "{}", report.table());
    assert!(report.table().contains("\ntrouble   "), "{}", report.table());
    // Half a second later all is as before.
    let after = (troubles[0].until_ns / 100_000_000) as usize + 2;
    assert!(tally.availability.slots.iter().skip(after).take(3).all(|slot| slot.answered > 0), "{}", report.table());
}
