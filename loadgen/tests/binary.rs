//! The binary as scripts use it: exit codes, the JSON file, an orderly end at SIGTERM.

#[allow(dead_code)]
mod server;

use server::{Fault, Server};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn start(server: &Server, flags: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.arg("--target").arg(format!("native://{}", server.address)).args(flags.split_whitespace());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("loadgen-binary-{}-{name}", std::process::id()))
}

#[test]
fn a_run_prints_progress_a_table_and_json() {
    let server = Server::start(Fault::None, 2);
    let json = file("json");
    let flags = format!("--rate 500 --warmup 0 --seconds 1.3 --keys 100 --conns 4 --preload --check --json {}", json.display());
    let (code, out, err) = finish(start(&server, &flags));
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("\nget ") && out.contains("wanted 500/s") && out.contains("0 wrong, 0 lost"), "{out}");
    assert!(err.lines().any(|line| line.starts_with("load    1 s") && line.contains("/s  p50")), "{err}");
    let text = std::fs::read_to_string(&json).unwrap();
    assert!(text.contains("\"rate_wanted\": 500.000") && text.contains("\"lost\": 0") && text.contains("\"p999_us\": "), "{text}");
    std::fs::remove_file(&json).unwrap();
}

#[test]
fn exit_codes_tell_how_a_run_ended() {
    let server = Server::start(Fault::LosesWrites, 1);
    let load = "--closed --quiet --warmup 0 --seconds 0.4 --keys 100 --conns 2 --mix get=1,put=1 --check";
    assert_eq!(finish(start(&server, load)).0, Some(1));
    assert_eq!(finish(start(&server, "--mix nothing")).0, Some(2));
    let server = Server::start(Fault::DiesAt(100), 1);
    let (code, _, err) = finish(start(&server, load));
    assert!(code == Some(3) && err.contains("went away"), "{err}");
    assert_eq!(finish(start(&server, load)).0, Some(4));
}

#[test]
fn a_signal_ends_a_run_with_its_report_and_its_journal() {
    let server = Server::start(Fault::None, 1);
    let journal = file("journal");
    let flags = format!("--closed --quiet --warmup 0 --seconds 60 --keys 100 --mix get=1,put=1 --check --journal {}", journal.display());
    let child = start(&server, &flags);
    std::thread::sleep(Duration::from_millis(700));
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let (code, out, _) = finish(child);
    assert_eq!(code, Some(3));
    assert!(out.contains("ended     interrupted"), "{out}");
    let (code, out, err) = finish(start(&server, &format!("--quiet --verify-journal {}", journal.display())));
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("100 answers judged, 0 wrong, 0 lost"), "{out}");
    std::fs::remove_file(&journal).unwrap();
}

#[test]
fn a_search_prints_its_steps_and_draws_them() {
    let server = Server::start(Fault::None, 1);
    let (html, json) = (file("html"), file("find.json"));
    let files = format!("--html {} --json {}", html.display(), json.display());
    // A bound that no rate breaks, so that it ends where the rate is not reached.
    let flags =
        format!("--find-p99-us 60000000 --rate 500 --warmup 0.05 --seconds 0.2 --keys 100 --conns 2 --dist hotspot:0.1,0.9 {files}");
    let (code, out, err) = finish(start(&server, &flags));
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("\nstep ") && out.contains("\nfound ") && err.lines().any(|line| line.starts_with("bracket ")), "{out}{err}");
    let text = std::fs::read_to_string(&json).unwrap();
    assert!(text.contains("\"find\": {\"p99_us\": 60000000.000") && text.contains("\"steps\": [{"), "{text}");
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("<h2>Search</h2>") && page.matches("<svg").count() == 4 && page.ends_with("</html>\n"), "{page}");
    [html, json].iter().for_each(|path| std::fs::remove_file(path).unwrap());
}
