//! The scripts that look at a machine, set it up and install a node, on machines made of plain files: without root, and nothing of this
//! host is changed.

mod common;

use common::{BINARY, Ended, Folder, Node, PATIENCE};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

/// What a node finds on a machine that is fit, as `ringkv probe` says it.
const FIT_FACTS: &str = "io_uring ok\nio_uring_missing none\nmemlock_bytes unlimited\nnofile 1048576\nclock_read_ns 25\n\
    clock_synchronized yes\ndirect_write_align_bytes 512\ndurable_write_us 40\n";

/// The files of a machine that is fit but for the run-time settings.
const MACHINE: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "6.12.0-amd64"),
    ("proc/sys/kernel/io_uring_disabled", "0"),
    ("proc/sys/kernel/numa_balancing", "1"),
    ("proc/sys/vm/swappiness", "60"),
    ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority"),
    ("proc/self/status", "Name:\tbash\nCpus_allowed_list:\t0-1"),
    ("proc/self/cgroup", "0::/system.slice/ringkv.service"),
    ("proc/self/mountinfo", MOUNTS),
    ("sys/fs/cgroup/cgroup.controllers", "cpu memory"),
    ("sys/fs/cgroup/system.slice/cpu.max", "max 100000"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never"),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet"),
    ("sys/devices/system/clocksource/clocksource0/available_clocksource", "hpet tsc acpi_pm"),
    ("sys/devices/system/node/node0/cpulist", "0-1"),
    ("sys/devices/system/node/node1/cpulist", "2-3"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_available_governors", "performance powersave"),
    ("sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference", "balance_power"),
    ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance"),
    ("sys/devices/system/cpu/cpu1/cpufreq/scaling_available_governors", "performance powersave"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state0/latency", "0"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state0/disable", "0"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state1/latency", "133"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state1/disable", "0"),
    ("sys/devices/pci0/nvme0n1/device/numa_node", "0"),
    ("sys/devices/pci0/nvme0n1/queue/scheduler", "none [mq-deadline] kyber"),
    ("sys/devices/pci0/nvme0n1/queue/rotational", "0"),
    ("sys/devices/pci0/nvme0n1/queue/write_cache", "write through"),
    ("sys/devices/pci0/nvme0n1/queue/logical_block_size", "512"),
    ("sys/devices/pci0/nvme0n1/nvme0n1p1/partition", "1"),
    ("sys/devices/pci0/nvme0n1/nvme0n1p1/uevent", "MAJOR=259\nDEVNAME=nvme0n1p1"),
    ("sys/devices/virtual/dm-0/uevent", "MAJOR=253\nDEVNAME=dm-0"),
    ("sys/class/net/eth0/operstate", "up"),
    ("sys/class/net/eth0/device/numa_node", "0"),
    ("sys/class/net/eth0/queues/rx-0/rps_cpus", "0"),
    ("sys/class/net/eth0/queues/rx-1/rps_cpus", "0"),
];

/// The data lie on a volume that lies on a partition, below a folder with a blank in its name; the root is elsewhere.
const MOUNTS: &str = "27 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
    36 27 253:0 / /srv/key\\040values rw,noatime shared:1 - xfs /dev/mapper/vg-data rw,attr2\n\
    37 27 0:25 / /srv/key rw,relatime - tmpfs tmpfs rw";
const DATA: &str = "/srv/key values/ringkv";

/// A machine of plain files, and a node that says what it is told to.
struct Machine {
    folder: Folder,
}

impl Machine {
    fn new() -> Machine {
        let machine = Machine { folder: Folder::new() };
        MACHINE.iter().for_each(|(path, text)| machine.write(path, text));
        let root = machine.root();
        for folder in ["sys/class/block", "sys/dev/block", "sys/devices/virtual/dm-0/slaves"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let disk = "../../devices/pci0/nvme0n1";
        symlink(disk, root.join("sys/class/block/nvme0n1")).unwrap();
        symlink(format!("{disk}/nvme0n1p1"), root.join("sys/class/block/nvme0n1p1")).unwrap();
        symlink("../../devices/virtual/dm-0", root.join("sys/class/block/dm-0")).unwrap();
        symlink("../../devices/virtual/dm-0", root.join("sys/dev/block/253:0")).unwrap();
        symlink("../../../pci0/nvme0n1/nvme0n1p1", root.join("sys/devices/virtual/dm-0/slaves/nvme0n1p1")).unwrap();
        machine.facts(FIT_FACTS);
        machine
    }

    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("root")
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        std::fs::create_dir_all(path.parent().expect("below the root")).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
    }

    /// What the word in brackets is, or the first line.
    fn read(&self, path: &str) -> String {
        let text = std::fs::read_to_string(self.root().join(path)).unwrap();
        let line = text.lines().next().unwrap_or("");
        line.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(line, |(word, _)| word).to_owned()
    }

    fn facts(&self, facts: &str) {
        let node = self.folder.file("node", &format!("#!/bin/sh\n[ \"$1\" = probe ] || exit 2\nprintf '%s' '{facts}'\n"));
        std::fs::set_permissions(node, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Every file's word.
    fn state(&self) -> BTreeMap<String, String> {
        MACHINE.iter().map(|(path, _)| ((*path).to_owned(), self.read(path))).collect()
    }

    fn script(&self, name: &str, words: &[&str]) -> Ended {
        script(name, words, Some(&self.root()))
    }

    fn preflight(&self, words: &[&str]) -> Ended {
        let node = self.folder.path().join("node");
        let words = [&["--data", DATA, "--binary", node.to_str().expect("plain names")], words].concat();
        self.script("preflight.sh", &words)
    }
}

/// Runs a script to its end.
fn script(name: &str, words: &[&str], sysroot: Option<&Path>) -> Ended {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name);
    let mut command = Command::new("timeout");
    command.arg(PATIENCE.as_secs().to_string()).arg(path).args(words).stdin(Stdio::null()).env_remove("DESTDIR");
    match sysroot {
        Some(root) => command.env("RINGKV_SYSROOT", root),
        None => command.env_remove("RINGKV_SYSROOT"),
    };
    let output = command.output().expect("there are bash and timeout");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

/// The status of a check in what `--json` printed: one object a line.
fn status_of<'o>(json: &'o str, check: &str) -> &'o str {
    let name = format!("\"name\":\"{check}\"");
    let line = json.lines().find(|line| line.contains(&name)).unwrap_or_else(|| panic!("no check {check} in {json}"));
    line.strip_prefix("{\"status\":\"").and_then(|rest| rest.split('"').next()).expect("the status comes first")
}

fn assert_is_json(text: &str) {
    let read = "import json, sys\nfor row in json.load(sys.stdin)['checks']:\n    assert all(isinstance(row[k], str) for k in \
        ('status', 'name', 'found', 'wanted', 'why', 'mend'))\n    assert row['found'] and row['wanted'] and row['why'], row\n    \
        assert bool(row['mend']) == (row['status'] in ('warn', 'fail')), row\n";
    let mut child = Command::new("python3").args(["-c", read]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3 runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), text.as_bytes()).expect("python3 reads");
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}\n{text}");
}

#[test]
fn what_is_applied_twice_is_undone_once_to_the_first_state() {
    let machine = Machine::new();
    let before = machine.state();
    let check = machine.script("tune.sh", &["--check", "--data", DATA]);
    assert_eq!(check.code, 1, "{check:?}");
    assert_eq!(machine.state(), before, "looking changes nothing");
    let applied = machine.script("tune.sh", &["--apply", "--data", DATA]);
    assert!(applied.code == 0 && applied.out.contains("8 set, 0 failed"), "{applied:?}");
    let expected = [
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance"),
        ("sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference", "performance"),
        ("sys/devices/system/cpu/cpu0/cpuidle/state0/disable", "0"),
        ("sys/devices/system/cpu/cpu0/cpuidle/state1/disable", "1"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
        ("sys/devices/pci0/nvme0n1/queue/scheduler", "none"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "madvise"),
        ("proc/sys/kernel/numa_balancing", "0"),
        ("proc/sys/vm/swappiness", "1"),
    ];
    expected.iter().for_each(|(path, value)| assert_eq!(machine.read(path), *value, "{path}"));
    assert_eq!(machine.script("tune.sh", &["--check", "--data", DATA]).code, 0);
    let again = machine.script("tune.sh", &["--apply", "--data", DATA]);
    assert!(again.code == 0 && again.out.contains("0 set, 0 failed"), "{again:?}");
    // Somebody else sets one back in between: what is kept is still the first state.
    machine.write("proc/sys/vm/swappiness", "30");
    let third = machine.script("tune.sh", &["--apply", "--data", DATA]);
    assert!(third.code == 0 && third.out.contains("1 set, 0 failed"), "{third:?}");
    let undone = machine.script("tune.sh", &["--undo"]);
    assert!(undone.code == 0 && undone.out.contains("8 set back, 0 failed"), "{undone:?}");
    assert_eq!(machine.state(), before);
    let nothing = machine.script("tune.sh", &["--undo"]);
    assert!(nothing.code == 0 && nothing.out.contains("0 set back, 0 failed"), "{nothing:?}");
}

#[test]
fn the_governor_is_set_after_the_preference_that_it_fixes_and_undone_before_it() {
    let machine = Machine::new();
    let position = |text: &str, name: &str| text.lines().position(|line| line.contains(name)).expect("it is told");
    let applied = machine.script("tune.sh", &["--apply", "--data", DATA]);
    assert!(position(&applied.out, "energy_performance_preference") < position(&applied.out, "scaling_governor"), "{applied:?}");
    let undone = machine.script("tune.sh", &["--undo"]);
    assert!(position(&undone.out, "scaling_governor") < position(&undone.out, "energy_performance_preference"), "{undone:?}");
}

#[test]
fn what_the_kernel_refuses_is_told_and_the_rest_is_set() {
    let machine = Machine::new();
    let file = machine.root().join("proc/sys/vm/swappiness");
    std::fs::remove_file(&file).unwrap();
    // Readable, and no write to it succeeds, root's neither.
    symlink("/proc/version", &file).unwrap();
    let applied = machine.script("tune.sh", &["--apply", "--data", DATA]);
    assert!(applied.code == 1 && applied.out.contains("7 set, 1 failed"), "{applied:?}");
    assert!(applied.err.contains("swappiness cannot be set to 1"), "{applied:?}");
    let undone = machine.script("tune.sh", &["--undo"]);
    assert!(undone.code == 0 && undone.out.contains("7 set back, 0 failed"), "{undone:?}");
}

#[test]
fn a_fit_machine_passes_every_check_and_stays_as_it_is() {
    let machine = Machine::new();
    assert_eq!(machine.script("tune.sh", &["--apply", "--data", DATA]).code, 0);
    let before = machine.state();
    let fit = machine.preflight(&["--strict", "--json"]);
    assert_is_json(&fit.out);
    assert_eq!(fit.code, 0, "{fit:?}");
    assert!(fit.out.contains("{\"fit\":true,\"ok\":26,\"warn\":0,\"fail\":0,\"unseen\":0,"), "{fit:?}");
    assert!(fit.out.contains("2 nodes, data cores on 0, nvme0n1 on 0, eth0 on 0"), "{fit:?}");
    assert_eq!(machine.state(), before);
    let lines = machine.preflight(&[]);
    assert!(lines.code == 0 && lines.out.ends_with("26 ok, 0 warnings, 0 failed, 0 not visible here\n"), "{lines:?}");
}

/// What goes wrong with a machine: a file with another text, the check that finds it, and how bad it is.
const SPOILED_FILES: &[(&str, &str, &str, &str)] = &[
    ("proc/sys/kernel/osrelease", "5.15.0-generic", "kernel", "fail"),
    ("proc/sys/kernel/osrelease", "6.0.9", "kernel", "fail"),
    ("proc/sys/kernel/io_uring_disabled", "1", "io_uring policy", "warn"),
    ("proc/sys/kernel/io_uring_disabled", "2", "io_uring policy", "warn"),
    ("proc/sys/kernel/numa_balancing", "1", "numa-balancing", "warn"),
    ("proc/sys/vm/swappiness", "60", "swappiness", "warn"),
    ("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1048572 0 -2", "swap", "warn"),
    ("proc/self/status", "Cpus_allowed_list:\t1-2", "numa", "warn"),
    ("proc/self/status", "Cpus_allowed_list:\t2-3", "numa", "warn"),
    ("proc/self/status", "Cpus_allowed_list:\t0-3", "network queues", "warn"),
    ("sys/fs/cgroup/system.slice/cpu.max", "50000 100000", "cpu quota", "warn"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never", "huge-pages", "warn"),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "acpi_pm", "clocksource", "warn"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil", "governor", "warn"),
    ("sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference", "power", "energy", "warn"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state1/disable", "0", "c-states", "warn"),
    ("sys/devices/pci0/nvme0n1/queue/scheduler", "none mq-deadline [bfq]", "scheduler", "warn"),
    ("sys/devices/pci0/nvme0n1/queue/write_cache", "write back", "write cache", "warn"),
    ("sys/devices/pci0/nvme0n1/queue/logical_block_size", "16384", "block size", "fail"),
    ("proc/self/mountinfo", "27 1 253:0 / / rw,relatime - tmpfs tmpfs rw", "file system", "fail"),
    ("proc/self/mountinfo", "27 1 253:0 / / rw,relatime - overlay overlay rw", "file system", "warn"),
    ("proc/self/mountinfo", "27 1 253:0 / / ro,relatime - ext4 /dev/dm-0 rw", "mount options", "fail"),
    ("proc/self/mountinfo", "27 1 253:0 / / rw,relatime - ext4 /dev/dm-0 rw,nobarrier", "mount options", "fail"),
    ("proc/self/mountinfo", "27 1 253:0 / / rw,relatime - ext4 /dev/dm-0 rw,discard", "mount options", "warn"),
    ("proc/self/mountinfo", "27 1 253:0 / / rw - ext4 /dev/dm-0 rw", "mount options", "warn"),
    ("proc/self/mountinfo", "27 1 253:0 / / rw,noatime - ext4 /dev/dm-0 rw,data=journal", "mount options", "warn"),
];

/// The same for what a node finds.
const SPOILED_FACTS: &[(&str, &str, &str, &str)] = &[
    ("io_uring ok", "io_uring it is forbidden here", "io_uring", "warn"),
    ("io_uring_missing none", "io_uring_missing msg_ring,linkat", "io_uring operations", "warn"),
    ("io_uring ok", "io_uring ok\nio_uring_slower truncation blocks the core", "io_uring speed", "warn"),
    ("memlock_bytes unlimited", "memlock_bytes 65536", "memlock", "warn"),
    ("nofile 1048576", "nofile 1024", "open files", "warn"),
    ("clock_read_ns 25", "clock_read_ns 900", "clock reads", "warn"),
    ("clock_synchronized yes", "clock_synchronized no", "clock sync", "warn"),
    ("direct_write_align_bytes 512", "direct_write_align_bytes none: Invalid argument", "direct I/O", "warn"),
    ("durable_write_us 40", "durable_write_us 4100", "durable write", "warn"),
];

/// One thing is wrong: its check says so, and the exit code follows.
fn assert_found(machine: &Machine, check: &str, bad: &str, what: &str) {
    let plain = machine.preflight(&["--json"]);
    assert_is_json(&plain.out);
    assert_eq!(status_of(&plain.out, check), bad, "{what}: {plain:?}");
    assert_eq!(plain.code, i32::from(bad == "fail"), "{what}: {plain:?}");
}

#[test]
fn each_thing_that_is_wrong_is_found_by_its_check() {
    let machine = Machine::new();
    assert_eq!(machine.script("tune.sh", &["--apply", "--data", DATA]).code, 0);
    for (path, text, check, bad) in SPOILED_FILES {
        let good = std::fs::read_to_string(machine.root().join(path)).unwrap();
        machine.write(path, text);
        assert_found(&machine, check, bad, path);
        machine.write(path, good.trim_end());
    }
    for (good, text, check, bad) in SPOILED_FACTS {
        machine.facts(&FIT_FACTS.replace(good, text));
        assert_found(&machine, check, bad, text);
    }
    machine.facts(&FIT_FACTS.replace("yes", "no"));
    assert_eq!((machine.preflight(&[]).code, machine.preflight(&["--strict"]).code), (0, 1), "a warning fails only when that is asked for");
}

#[test]
fn a_container_that_shows_nothing_fails_nothing() {
    let machine = Machine::new();
    std::fs::remove_dir_all(machine.root()).unwrap();
    std::fs::create_dir_all(machine.root()).unwrap();
    machine.facts("io_uring ok\nclock_synchronized unknown: Operation not permitted\n");
    let seen = machine.preflight(&["--strict", "--json"]);
    assert_is_json(&seen.out);
    assert_eq!(seen.code, 0, "{seen:?}");
    assert_eq!((status_of(&seen.out, "io_uring"), status_of(&seen.out, "kernel")), ("ok", "unseen"));
    assert!(seen.out.contains("\"ok\":1,\"warn\":0,\"fail\":0,"), "{seen:?}");
    assert_eq!(machine.script("tune.sh", &["--check"]).code, 0, "nothing is there to be set");
}

#[test]
fn this_machine_is_looked_at_without_a_failure_of_the_script() {
    let folder = Folder::new();
    let data = folder.data();
    let words = ["--json", "--binary", BINARY, "--data", data.to_str().expect("plain names")];
    let seen = script("preflight.sh", &words, None);
    assert_is_json(&seen.out);
    assert_eq!(status_of(&seen.out, "io_uring"), "ok", "{seen:?}");
    assert!(seen.code <= 1 && seen.err.is_empty(), "{seen:?}");
    assert!(!data.exists(), "nothing is left behind");
}

#[test]
fn words_that_no_script_knows_are_refused() {
    for (name, words) in [
        ("preflight.sh", vec!["--fast"]),
        ("preflight.sh", vec!["--data"]),
        ("preflight.sh", vec!["--cores", "0-x"]),
        ("preflight.sh", vec!["--binary", "/nowhere"]),
        ("tune.sh", vec!["--faster"]),
        ("install.sh", vec!["--purge"]),
        ("install.sh", vec!["--root", ""]),
    ] {
        let ended = script(name, &words, None);
        assert!(ended.code == 2 && ended.err.starts_with(name), "{name} {words:?}: {ended:?}");
    }
}

#[test]
fn a_node_is_installed_kept_over_a_second_time_and_removed() {
    let folder = Folder::new();
    let root = folder.path().join("image");
    let place = root.to_str().expect("plain names");
    let install = || script("install.sh", &["--root", place, "--binary", BINARY], None);
    assert_eq!(install().code, 0);
    for (path, mode) in [
        ("usr/local/bin/ringkv", 0o755),
        ("usr/local/lib/ringkv/preflight.sh", 0o755),
        ("usr/local/lib/ringkv/tune.sh", 0o755),
        ("usr/local/lib/ringkv/host.sh", 0o644),
        ("etc/systemd/system/ringkv.service", 0o644),
        ("etc/systemd/system/ringkv-tune.service", 0o644),
        ("etc/ringkv/node.toml", 0o640),
    ] {
        let found = std::fs::metadata(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(found.permissions().mode() & 0o777, mode, "{path}");
    }
    let config = root.join("etc/ringkv/node.toml");
    let node = Node::start(&folder.data(), &["--config", config.to_str().expect("plain names")]);
    assert_eq!(node.stop().code, 0);
    std::fs::write(&config, "data = \"/elsewhere\"\n").unwrap();
    std::fs::create_dir_all(root.join("var/lib/ringkv")).unwrap();
    assert_eq!(install().code, 0);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "data = \"/elsewhere\"\n", "an operator's configuration is kept");
    let removed = script("install.sh", &["--root", place, "--uninstall"], None);
    assert!(removed.code == 0 && removed.out.contains("are kept"), "{removed:?}");
    assert!(!root.join("usr/local/bin/ringkv").exists() && !root.join("etc/systemd/system/ringkv.service").exists());
    assert!(config.exists() && root.join("var/lib/ringkv").exists(), "data and configuration stay");
    assert_eq!(script("install.sh", &["--root", place, "--uninstall", "--purge"], None).code, 0);
    assert!(!config.exists() && !root.join("var/lib/ringkv").exists());
}
