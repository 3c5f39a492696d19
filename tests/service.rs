//! A node under a service manager: what it says on the socket that `NOTIFY_SOCKET` names, and when.

mod common;

use common::{BINARY, Folder, PATIENCE, one_core};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(data: &Path, socket: &Path) -> Killed {
    let cores = one_core();
    let words = ["--port", "0", "--admin-port", "0", "--memory", "64MiB", "--cores", &cores, "--data"];
    let mut command = Command::new(BINARY);
    command.args(words).arg(data).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Killed(command.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", "1000000").spawn().expect("the binary starts"))
}

#[test]
fn a_manager_hears_that_the_node_serves_lives_and_ends() {
    let folder = Folder::new();
    let path = std::env::temp_dir().join(format!("ringkv-manager-{}", std::process::id()));
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 512];
        let bytes = manager.recv(&mut buffer).expect("the node says a word in time");
        String::from_utf8_lossy(&buffer[..bytes]).into_owned()
    };
    let mut node = start(&folder.data(), &path);
    let ready = heard();
    let native = ready.strip_prefix("READY=1\nSTATUS=serving, native=").and_then(|rest| rest.split(' ').next());
    std::net::TcpStream::connect(native.unwrap_or_else(|| panic!("not ready: {ready}"))).expect("it serves when it says so");
    assert_eq!([heard(), heard()], ["WATCHDOG=1", "WATCHDOG=1"], "the core turns");
    let pid = node.0.id().to_string();
    assert!(Command::new("sh").args(["-c", "kill -TERM \"$1\"", "sh", &pid]).status().unwrap().success());
    let last = std::iter::repeat_with(heard).find(|word| word != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    assert_eq!(node.0.wait().unwrap().code(), Some(0));
    std::fs::remove_file(path).unwrap();
}
