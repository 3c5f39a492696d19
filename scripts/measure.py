"""What scripts/figures.py and scripts/bench.py measure with: a node, its metrics, a load, a table of results.

The node runs on the first CPU and the load on the second, where there are two. Every load is bounded in requests and in time, and goes to
this machine's loopback only.
"""
import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests"))
from ringkv_client import Client, encode  # noqa: E402, F401 - the rows build frames too

RELEASE = os.environ.get("RINGKV_BINARIES") or os.path.join(ROOT, "target", "release")
WORK = os.environ.get("RINGKV_FIGURES") or os.path.join(ROOT, "target", "figures")
SCALE = float(os.environ.get("RINGKV_SCALE", "1"))
CPUS = sorted(os.sched_getaffinity(0))
MIB = 1 << 20
KEY_BYTES, VALUE_BYTES = 16, 1024

results = []


def disk_cpu():
    """The CPU that takes nearly all interrupts of the disks, or None."""
    with open("/proc/interrupts", encoding="ascii") as table:
        columns = [int(name[3:]) for name in table.readline().split()]
        rows = [line.split() for line in table if re.search(r"virtio\d+-req|nvme|ahci|megasas|mpt3sas", line)]
    taken = {cpu: sum(int(row[1 + place]) for row in rows) for place, cpu in enumerate(columns)}
    most = max(taken, key=taken.get)
    return most if taken[most] > 0.9 * sum(taken.values()) else None


def choose_cpus():
    """CPUs of the node and of the load. What a disk's interrupt wakes, the flush of a durable write, runs on its CPU: beside the node, which
    makes way for it, not beside the load, which does not."""
    if len(CPUS) < 2:
        return CPUS[0], None
    node = disk_cpu() if disk_cpu() in CPUS else CPUS[0]
    return node, next(cpu for cpu in CPUS if cpu != node)


NODE_CPU, LOAD_CPU = choose_cpus()


def scaled(count, least=1):
    return max(least, int(count * SCALE))


def say(text):
    print(text, file=sys.stderr, flush=True)


def result(row, figure, wanted, got, ok, **details):
    """One line of the table. `ok` None: there is no goal."""
    results.append({"row": row, "figure": figure, "wanted": wanted, "got": got, "ok": ok, **details})
    say("%-12s %-58s wanted %-16s got %-18s %s" % (row, figure, wanted or "-", got, {True: "ok", False: "MISSED", None: ""}[ok]))


def bounded(row, figure, got, low=None, high=None, unit="", digits=2, **details):
    """A number with its bounds."""
    wanted = " and ".join(filter(None, [low is not None and "≥ %g" % low, high is not None and "≤ %g" % high]))
    ok = None if not wanted else (low is None or got >= low) and (high is None or got <= high)
    result(row, figure, wanted + unit if wanted else "", "%.*f%s" % (digits, got, unit), ok, value=got, **details)


def cpu_seconds(pid):
    """User and system time of a process and its threads."""
    with open("/proc/%d/stat" % pid) as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Missing(Exception):
    """A metric that the node does not give."""


class Node:
    running = set()

    def __init__(self, name, *flags, cores=None, fresh=False, port=0):
        self.data = os.path.join(WORK, name)
        if fresh:
            shutil.rmtree(self.data, ignore_errors=True)
        os.makedirs(WORK, exist_ok=True)
        self.cores = str(NODE_CPU) if cores is None else cores
        words = [os.path.join(RELEASE, "ringkv"), "--data", self.data, "--port", str(port), "--admin-port", "0", "--cores", self.cores, *flags]
        self.log = open(self.data + ".err", "ab")
        begun = time.monotonic()
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log)
        Node.running.add(self)
        watchdog = threading.Timer(120, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline().decode()
        watchdog.cancel()
        self.start_seconds = time.monotonic() - begun
        found = re.match(r"ready native=(\S+):(\d+) admin=(\S+)", line)
        if not found:
            raise RuntimeError("the node did not become ready; see %s.err" % self.data)
        self.host, self.port, self.admin = found[1], int(found[2]), found[3]
        self.target = "native://%s:%d" % (self.host, self.port)
        self.pid = self.process.pid

    def end(self, how):
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        Node.running.discard(self)
        self.process.stdout.close()
        self.log.close()
        return code

    def stop(self):
        code = self.end(signal.SIGTERM)
        if code != 0:
            raise RuntimeError("the node ended with code %s; see %s.err" % (code, self.data))

    def kill(self):
        self.end(signal.SIGKILL)

    def metrics(self):
        with urllib.request.urlopen("http://%s/metrics" % self.admin, timeout=10) as answer:
            return Metrics(answer.read().decode())

    def settled_metrics(self):
        """Figures that hold all that happened before now: a core publishes twice a second."""
        time.sleep(1.2)
        return self.metrics()

    def client(self, deadline_ms=10_000):
        return Client(self.host, self.port, deadline_ms=deadline_ms)

    def rss_bytes(self):
        with open("/proc/%d/status" % self.pid) as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) * 1024

    def cpu_seconds(self):
        return cpu_seconds(self.pid)

    def written_bytes(self):
        with open("/proc/%d/io" % self.pid) as text:
            return int(re.search(r"^write_bytes: (\d+)", text.read(), re.M)[1])


class Metrics:
    """Prometheus' text of one moment."""

    def __init__(self, text):
        self.rows = []
        for line in text.splitlines():
            found = re.match(r'ringkv_(\w+)(?:\{(.*)\})? (\S+)$', line)
            if found:
                labels = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                self.rows.append((found[1], labels, float(found[3])))

    def values(self, *names, **labels):
        """All values of the first of these names that is there."""
        for name in names:
            found = [value for row, given, value in self.rows if row == name and all(given.get(k) == v for k, v in labels.items())]
            if found:
                return found
        raise Missing("no metric is called %s %s" % (" or ".join(names), labels or ""))

    def sum(self, *names, **labels):
        return sum(self.values(*names, **labels))

    def max(self, *names, **labels):
        return max(self.values(*names, **labels))

    # The names that these figures stand on, each in one place.
    def wal_groups(self):
        return self.sum("wal_groups_total")

    def wal_bytes(self):
        """Groups as written, and segments as prepared."""
        return self.sum("wal_written_bytes_total") + self.sum("wal_prepared_bytes_total")

    def wal_live_bytes(self):
        return self.sum("wal_live_bytes")

    def filter_and_index_bytes(self):
        return self.sum("filter_index_bytes")

    def lookup_reads(self):
        return self.sum("disk_reads_total")

    def memory_misses(self):
        return self.sum("memory_misses_total")

    def gets(self):
        return self.sum("requests_total", command="get")

    def expired(self):
        return self.sum("expired_total")

    def expiry_lag_ms(self, where, quantile):
        """Of the worst core. Where: memory or disk."""
        return self.max("expiry_lag_%s_%s_ms" % (where, quantile))


@atexit.register
def end_all():
    for node in list(Node.running):
        node.kill()


def pinned(words):
    return words if LOAD_CPU is None else ["taskset", "-c", str(LOAD_CPU), *words]


def start_load(node, *flags, out):
    """Of a node or of another server that has a `target`."""
    words = [os.path.join(RELEASE, "loadgen"), "--target", node.target, "--quiet", "--json", out, *flags]
    return subprocess.Popen(pinned(words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def load(node, *flags, seconds_max=600, may_die=False):
    """Runs the load generator to its end; its JSON."""
    out = os.path.join(WORK, "load.json")
    process = start_load(node, *flags, out=out)
    try:
        _, err = process.communicate(timeout=seconds_max)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RuntimeError("the load took more than %d s" % seconds_max) from None
    if process.returncode and not (may_die and process.returncode == 3):
        raise RuntimeError("the load ended with code %d: %s" % (process.returncode, err.decode().strip()))
    with open(out) as text:
        return json.load(text)


def answered(report):
    """The counts of a load, and a complaint where requests failed."""
    counts = {kind: op["count"] for kind, op in report["ops"].items()}
    if report["errors"]:
        say("             errors: %s" % report["errors"])
    return counts


class Sampler(threading.Thread):
    """The highest, ten times a second, of what `now` gives."""

    def __init__(self, now):
        super().__init__(daemon=True)
        self.now, self.highest, self.ended = now, 0, threading.Event()
        self.start()

    def run(self):
        while not self.ended.wait(0.1):
            try:
                self.highest = max(self.highest, self.now())
            except (OSError, TypeError):
                return

    def finish(self):
        self.ended.set()
        self.join()
        return self.highest


def disk_usage(folder):
    """Bytes on disk of the log's segments, and of all else; a file with several names counts once."""
    log, rest, seen = 0, 0, set()
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(path, name))
            except FileNotFoundError:
                continue
            if stat.st_ino not in seen:
                seen.add(stat.st_ino)
                if name.startswith("wal-"):
                    log += stat.st_blocks * 512
                else:
                    rest += stat.st_blocks * 512
    return log, rest


def table():
    print("\n%-12s %-62s %-18s %-26s" % ("row", "figure", "wanted", "got"))
    for line in results:
        mark = {True: "ok", False: "MISSED", None: ""}[line["ok"]]
        print("%-12s %-62s %-18s %-26s %s" % (line["row"], line["figure"], line["wanted"], line["got"], mark))


def run_rows(rows, folders, json_name, skip=lambda name: False):
    """Runs the rows named on the command line, or all; prints the table and writes it as JSON. The exit code."""
    wanted = sys.argv[1:] or list(rows)
    unknown = [name for name in wanted if name not in rows]
    if unknown:
        say("no row is called %s; there are %s" % (unknown[0], ", ".join(rows)))
        return 2
    os.makedirs(WORK, exist_ok=True)
    say("node on CPU %s, load on CPU %s, scale %g, data in %s" % (NODE_CPU, LOAD_CPU, SCALE, WORK))
    for name in wanted:
        if skip(name):
            continue
        begun = time.monotonic()
        try:
            rows[name]()
        except Exception as error:  # noqa: BLE001 - a row that fails does not take the others along
            result(name, "the row could not be measured", "", "%s: %s" % (type(error).__name__, error), False)
        end_all()
        say("%-12s took %.0f s" % (name, time.monotonic() - begun))
    for name in folders:
        shutil.rmtree(os.path.join(WORK, name), ignore_errors=True)
    table()
    with open(os.path.join(WORK, json_name), "w") as out:
        json.dump({"scale": SCALE, "cpus": CPUS, "results": results}, out, indent=1)
    return 0 if all(line["ok"] is not False for line in results) else 1
