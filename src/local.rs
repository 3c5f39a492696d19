//! `ringkv local`: a cluster of processes on loopback, in one terminal. Each node is this program with the flags that an operator would
//! give it, one core each, without spinning; so what is shown here holds for nodes on machines of their own.

mod torture;

use crate::base::prng::Prng;
use crate::config::{Host, LocalRun, exit};
use crate::io::host::{self, Nudge};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use torture::Torture;

/// From one node's ports to the next one's.
const PORT_STEP: u16 = 100;
const ADMIN_ABOVE: u16 = 80;
const GOSSIP_ABOVE: u16 = 90;
/// Memory of each node, where the machine has it.
const MEMORY_MIB_MAX: u64 = 512;
const MEMORY_MIB_MIN: u64 = 64;
/// How often torture says how it goes.
const LINE_EVERY: Duration = Duration::from_millis(200);
/// How long a node may take to its ready line, and to its end.
const READY_MAX: Duration = Duration::from_secs(60);
const END_MAX: Duration = Duration::from_secs(15);

/// A node that runs.
struct Node {
    id: u16,
    child: Child,
}

/// What a node's standard output told.
enum News {
    Ready { node: u16, line: String },
    Ended { node: u16 },
}

/// Where the nodes are and what they are given.
struct Plan<'a> {
    run: &'a LocalRun,
    host: &'a Host,
    program: std::path::PathBuf,
    founders: String,
}

impl Plan<'_> {
    fn port(&self, node: u16) -> u16 {
        self.run.port + PORT_STEP * (node - 1)
    }

    fn data(&self, node: u16) -> std::path::PathBuf {
        self.run.dir.join(format!("node{node}"))
    }

    fn command(&self, node: u16) -> Command {
        let port = self.port(node);
        let cpu = self.host.cpus[usize::from(node - 1) % self.host.cpus.len()];
        let share_mib = (self.host.memory_bytes >> 20) / 4 / u64::from(self.run.nodes);
        let memory_mib = share_mib.clamp(MEMORY_MIB_MIN, MEMORY_MIB_MAX);
        let mut command = Command::new(&self.program);
        command.arg("--data").arg(self.data(node)).args(["--port", &port.to_string(), "--admin-port", &(port + ADMIN_ABOVE).to_string()]);
        command.args(["--cores", &cpu.to_string(), "--spin-us", "0", "--memory", &format!("{memory_mib}MiB")]);
        if self.run.nodes > 1 {
            command.args(["--node-id", &node.to_string(), "--founders", &self.founders]);
            command.args(["--gossip-port", &(port + GOSSIP_ABOVE).to_string()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    fn start(&self, node: u16, tell: &mpsc::Sender<News>) -> Result<Node, String> {
        let mut child = self.command(node).spawn().map_err(|error| format!("node {node} cannot be started: {error}"))?;
        let out = child.stdout.take().expect("asked for");
        let tell = tell.clone();
        let read = move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if line.starts_with("ready ") {
                    let _ = tell.send(News::Ready { node, line });
                }
            }
            let _ = tell.send(News::Ended { node });
        };
        host::spawn_thread("ringkv-local", read).map_err(|error| format!("a thread cannot be started: {error}"))?;
        Ok(Node { id: node, child })
    }
}

/// Runs until a signal, or until a node ends by itself; the exit code. `say` prints a line on standard output, `warn` on standard error.
pub fn run(run: &LocalRun, host: &Host, say: &dyn Fn(&str), warn: &dyn Fn(&str)) -> i32 {
    match try_run(run, host, say) {
        Ok(()) => exit::CLEAN,
        Err(why) => {
            warn(&why);
            exit::FAILED
        }
    }
}

fn try_run(run: &LocalRun, host: &Host, say: &dyn Fn(&str)) -> Result<(), String> {
    if u32::from(run.port) + u32::from(PORT_STEP) * u32::from(run.nodes) > u32::from(u16::MAX) {
        return Err(format!("port {} leaves no room for {} nodes", run.port, run.nodes));
    }
    let program = std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    host::block_signals().map_err(|error| format!("signals: {error}"))?;
    host::create_dirs(&run.dir).map_err(|error| format!("{}: {error}", run.dir.display()))?;
    let founders: Vec<String> = (1..=run.nodes).map(|node| format!("{node}=127.0.0.1:{}", run.port + PORT_STEP * (node - 1))).collect();
    let plan = Plan { run, host, program, founders: founders.join(",") };
    let (tell, news) = mpsc::channel();
    let mut nodes = Vec::new();
    let outcome = start_all(&plan, &tell, &news, &mut nodes, say).and_then(|()| match run.torture {
        true => torture_all(&plan, &tell, &news, &mut nodes, say),
        false => wait(&news, run.nodes, say),
    });
    end_all(&mut nodes);
    outcome
}

fn start_all(
    plan: &Plan<'_>,
    tell: &mpsc::Sender<News>,
    news: &mpsc::Receiver<News>,
    nodes: &mut Vec<Node>,
    say: &dyn Fn(&str),
) -> Result<(), String> {
    for node in 1..=plan.run.nodes {
        nodes.push(plan.start(node, tell)?);
    }
    let mut lines = vec![None; nodes.len()];
    let until = host::mono().plus(READY_MAX);
    while lines.iter().any(Option::is_none) {
        match news.recv_timeout(until.since(host::mono())) {
            Ok(News::Ready { node, line }) => lines[usize::from(node - 1)] = Some(line),
            Ok(News::Ended { node }) => return Err(format!("node {node} ended before it was ready")),
            Err(_) => return Err("not all nodes are ready after a minute".to_owned()),
        }
    }
    for (node, line) in nodes.iter().zip(lines.into_iter().flatten()) {
        let addresses = line.strip_prefix("ready ").unwrap_or(&line);
        say(&format!("node {} pid={} {addresses} data={}", node.id, node.child.id(), plan.data(node.id).display()));
    }
    say("ready");
    Ok(())
}

/// Until a signal comes, or no node is left.
fn wait(news: &mpsc::Receiver<News>, nodes: u16, say: &dyn Fn(&str)) -> Result<(), String> {
    let mut ended = 0;
    while ended < nodes {
        if host::wait_for_signal(Some(Duration::from_millis(100))).is_some() {
            return Ok(());
        }
        while let Ok(News::Ended { node }) = news.try_recv() {
            say(&format!("node {node} has ended; the others go on"));
            ended += 1;
        }
    }
    Err("all nodes have ended".to_owned())
}

/// Loads the nodes and lets them fall one at a time, until a signal comes or the time is over.
fn torture_all(
    plan: &Plan<'_>,
    tell: &mpsc::Sender<News>,
    news: &mpsc::Receiver<News>,
    nodes: &mut [Node],
    say: &dyn Fn(&str),
) -> Result<(), String> {
    let addresses: Vec<String> = (1..=plan.run.nodes).map(|node| format!("127.0.0.1:{}", plan.port(node))).collect();
    let torture = Torture::start(&addresses).map_err(|error| format!("a thread cannot be started: {error}"))?;
    let mut prng = Prng::new(host::random_u64());
    let until = plan.run.seconds.map(|seconds| host::mono().plus(Duration::from_secs(seconds)));
    let mut is_over = || host::wait_for_signal(Some(LINE_EVERY)).is_some() || until.is_some_and(|until| host::mono() >= until);
    let line = |what: &str| say(&format!("{} · {what}", torture.seen.line()));
    let calm = |what: &str, pause: Duration, is_over: &mut dyn FnMut() -> bool| {
        let end = host::mono().plus(pause);
        while host::mono() < end {
            if is_over() {
                return true;
            }
            line(what);
        }
        false
    };
    // One at a time: with three replicas a majority is always there.
    let outcome = loop {
        if calm("all nodes run", Duration::from_millis(prng.between(1_500, 3_000)), &mut is_over) {
            break Ok(());
        }
        let at = prng.below(nodes.len() as u64) as usize;
        let (id, pause) = (nodes[at].id, Duration::from_millis(prng.between(500, 3_000)));
        let ends = if prng.one_in(2) {
            let _ = host::nudge(nodes[at].child.id(), Nudge::Kill);
            let _ = nodes[at].child.wait();
            let ends = calm(&format!("node {id} is killed"), pause, &mut is_over);
            nodes[at] = plan.start(id, tell)?;
            ends || calm(&format!("node {id} starts"), Duration::from_secs(1), &mut is_over)
        } else {
            let _ = host::nudge(nodes[at].child.id(), Nudge::Pause);
            let ends = calm(&format!("node {id} is stopped"), pause, &mut is_over);
            let _ = host::nudge(nodes[at].child.id(), Nudge::Resume);
            ends
        };
        while news.try_recv().is_ok() {}
        if ends {
            break Ok(());
        }
    };
    // Whoever was started last is up before the last look.
    host::sleep(Duration::from_secs(2));
    let seen = torture.end();
    say(&seen.line());
    match seen.is_clean() {
        true => outcome,
        false => Err("something acknowledged was lost, or something was shown that nobody wrote".to_owned()),
    }
}

/// Asks every node to end, and sees to it that it does.
fn end_all(nodes: &mut [Node]) {
    for node in nodes.iter() {
        // It may have ended already.
        let _ = host::nudge(node.child.id(), Nudge::Terminate);
    }
    let until = host::mono().plus(END_MAX);
    for node in nodes {
        while matches!(node.child.try_wait(), Ok(None)) && host::mono() < until {
            host::sleep(Duration::from_millis(10));
        }
        let _ = node.child.kill();
        let _ = node.child.wait();
    }
}
