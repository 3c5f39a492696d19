//! The process: reads the command line and goes where it says.

use ringkv::cluster::ring_table::{RingTable, Sketch};
use ringkv::config::{self, Command, exit};
use ringkv::io::host;
use std::io::Write;

fn main() {
    std::process::exit(run());
}

fn run() -> i32 {
    match config::load(std::env::args_os(), &|path| host::read_to_string(path), look) {
        Err(refusal) if refusal.code == exit::CLEAN => {
            print(&refusal.text);
            exit::CLEAN
        }
        Err(refusal) => {
            complain(&refusal.text);
            refusal.code
        }
        Ok(Command::Serve(config)) => serve(&config),
        Ok(Command::Client(client)) => shell(&client),
        Ok(Command::Probe(dir)) => ringkv::probe::run(dir.as_deref(), &print),
        Ok(Command::Verify(dir)) => ringkv::verify::run(&dir, &print),
        Ok(Command::Salvage { from, to }) => ringkv::verify::salvage(&from, &to, &print),
        Ok(Command::Inspect(what)) => ringkv::verify::inspect(&what, &mut std::io::stdout().lock(), &complain),
        Ok(Command::Ring(run)) => ring(run),
        Ok(Command::Local(run)) => local(&run),
        Ok(Command::Sim(run)) => ringkv::sim::run(&run, &mut print),
    }
}

/// What this machine offers.
fn look() -> config::Host {
    config::Host { cpus: host::allowed_cpus(), memory_bytes: host::memory_total_bytes() }
}

/// A line of what was asked for. Where nobody reads it any more (`| head`) there is nothing left to do.
fn print(line: &str) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(exit::FAILED);
    }
}

/// A line about what went wrong; to nobody, if nobody reads it.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "ringkv: {line}");
}

/// A line of a process that goes on, whoever reads.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn serve(config: &config::Config) -> i32 {
    ringkv::node::serve(config, &say, &|line| _ = writeln!(std::io::stderr(), "{line}"))
}

fn local(run: &config::LocalRun) -> i32 {
    ringkv::local::run(run, &look(), &say, &complain)
}

fn ring(run: config::RingRun) -> i32 {
    let config::RingRun { nodes, cores, mixed, vnodes, rf, racks, json } = run;
    let cores = if mixed.is_empty() { vec![cores] } else { mixed };
    let table = RingTable::new(&Sketch { nodes, cores, vnodes, rf: usize::from(rf), racks });
    if json {
        print(&table.json());
    } else {
        table.lines().iter().for_each(|line| print(line));
    }
    if table.is_met() { exit::CLEAN } else { exit::FAILED }
}

fn shell(client: &config::Client) -> i32 {
    let credential = match &client.target.secret_file {
        None => Vec::new(),
        Some(path) => match host::read_to_string(path) {
            Ok(text) => text.trim_end_matches(['\n', '\r']).as_bytes().to_vec(),
            Err(error) => {
                complain(&format!("secret-file {} cannot be read: {error}", path.display()));
                return exit::CONFIG;
            }
        },
    };
    let mut out = std::io::stdout().lock();
    match ringkv::shell::run(client, credential, &mut out) {
        Ok(()) => exit::CLEAN,
        Err(why) => {
            complain(&why);
            exit::FAILED
        }
    }
}
