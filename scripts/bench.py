"""Races ringkv against its peers: scripts/bench.sh builds the binaries and calls this.

Server and load have a CPU each, the same for all; peers and ringkv run in turn in one run, and what counts is the ratio. Every peer has the
settings that its users run it with, named in the table. A peer that is not installed makes its rows say so.
"""
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time

import measure
from measure import (
    KEY_BYTES, MIB, NODE_CPU, SCALE, VALUE_BYTES, WORK, Missing, Node, Sampler, bounded, cpu_seconds, disk_usage, load, result, run_rows, say,
    scaled,
)

PASSES = 3
SECONDS = max(0.5, 4 * min(1, SCALE))


class Peer:
    """Another server, on the node's CPU. It ends with the row."""

    running = []

    def __init__(self, name, scheme, words, port, version):
        self.name, self.port, self.version = name, port, version
        self.target = "%s://127.0.0.1:%d" % (scheme, port)
        self.data = os.path.join(WORK, "peer-%s" % name.replace(" ", "-"))
        shutil.rmtree(self.data, ignore_errors=True)
        os.makedirs(self.data)
        with open(os.path.join(self.data, "log"), "wb") as log:
            words = ["taskset", "-c", str(NODE_CPU), *words]
            self.process = subprocess.Popen(words, cwd=self.data, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = self.process.pid
        Peer.running.append(self)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("%s did not start; see %s/log" % (name, self.data))

    def cpu_seconds(self):
        return cpu_seconds(self.pid)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        Peer.running.remove(self)
        shutil.rmtree(self.data, ignore_errors=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def version_of(*words):
    """What a peer says of itself, or Missing."""
    if os.environ.get("RINGKV_PEERS") == "no":
        raise Missing("peers are left out")
    try:
        said = subprocess.run(words, capture_output=True, timeout=20, check=False)
    except FileNotFoundError:
        raise Missing("%s is not installed" % words[0]) from None
    found = re.search(r"\d+\.\d+(\.\d+)?", (said.stdout + said.stderr).decode())
    return found[0] if found else "?"


def redis(durable=False):
    port, version = free_port(), version_of("redis-server", "--version")
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", "."]
    words += ["--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no"] if durable else ["--appendonly", "no"]
    return Peer("redis durable" if durable else "redis", "redis", words, port, "Redis " + version)


def memcached():
    port, version = free_port(), version_of("memcached", "--version")
    words = ["memcached", "-p", str(port), "-U", "0", "-l", "127.0.0.1", "-t", "1", "-m", "2048", "-c", "4096", "-u", "root"]
    return Peer("memcached", "memcached-meta", words, port, "memcached " + version)


def end_peers():
    for peer in list(Peer.running):
        peer.stop()


def bounded_seconds(seconds):
    """Less of them in a quick look."""
    return max(1, int(seconds * min(1, SCALE)))


def requests(report):
    return sum(op["count"] for op in report["ops"].values())


def cpu_of(server, *flags):
    """One pass of a load: µs of the server's CPU a request, requests a second."""
    before = server.cpu_seconds()
    report = load(server, *flags)
    spent = server.cpu_seconds() - before
    if report["errors"]:
        say("             errors: %s" % report["errors"])
    return 1e6 * spent / requests(report), report["rate_reached"]


def spread(passes):
    return "%.2f (%.2f to %.2f)" % (statistics.median(passes), min(passes), max(passes))


# ----------------------------------------------------------------------------------------------------------------------------------
# cpu: what a request costs the server.

CPU_KEYS = ["--key-size", str(KEY_BYTES), "--value", "100"]
CPU_GOALS = {(50, 1): 0.80, (50, 16): 0.40, (50, 100): 0.25, (500, 1): 0.80}


def cpu_flags(conns, pipeline, mix, seconds=SECONDS):
    keys = ["--keys", str(scaled(1_000_000, 10_000)), *CPU_KEYS, "--dist", "uniform"]
    times = ["--warmup", "0.5", "--seconds", str(seconds)]
    return ["--closed", "--conns", str(conns), "--pipeline", str(pipeline), "--mix", mix, *keys, *times]


def cpu():
    servers = {}
    for name, start in (("redis", redis), ("memcached", memcached)):
        try:
            servers[name] = start()
        except Missing as why:
            say("             %s" % why)
    servers["ringkv"] = Node("bench-cpu", "--memory", "2GiB", fresh=True)
    for server in servers.values():
        load(server, "--fill", "--conns", "50", "--pipeline", "16", "--keys", str(scaled(1_000_000, 10_000)), *CPU_KEYS)
    # Some times over all, so that nobody is measured on a cold cache.
    for server in servers.values():
        load(server, *cpu_flags(50, 16, "get=100", 2 * SECONDS))
    for kind in ("get", "put"):
        for (conns, pipeline), goal in CPU_GOALS.items():
            cpu_case(servers, kind, conns, pipeline, goal if kind == "get" else None)
    for server in servers.values():
        server.stop()
    shutil.rmtree(os.path.join(WORK, "bench-cpu"), ignore_errors=True)


def cpu_case(servers, kind, conns, pipeline, goal):
    costs, rates = {name: [] for name in servers}, {name: [] for name in servers}
    for _ in range(PASSES):
        for name, server in servers.items():
            cost, rate = cpu_of(server, *cpu_flags(conns, pipeline, "%s=100" % kind))
            costs[name].append(cost)
            rates[name].append(rate)
    what = "%s 100 B, %d connections, P=%d: " % (kind, conns, pipeline)
    for name in servers:
        rate = statistics.median(rates[name])
        label = getattr(servers[name], "version", name)
        result("cpu", what + label, "", "%s µs, %.0f/s" % (spread(costs[name]), rate), None, costs=costs[name], rates=rates[name])
    peers = [statistics.median(costs[name]) for name in servers if name != "ringkv"]
    if peers:
        ratio = statistics.median(costs["ringkv"]) / min(peers)
        note = "" if kind == "get" else " (durable, the peers' are not)"
        bounded("cpu", what + "server CPU over the best peer's" + note, ratio, high=goal, unit=" ×")


# ----------------------------------------------------------------------------------------------------------------------------------
# hop: a request that another core owns.


def hop():
    if measure.LOAD_CPU is None:
        raise Missing("two CPUs are needed")
    cores = "%s,%s" % (NODE_CPU, measure.LOAD_CPU)
    node, costs = Node("bench-hop", "--memory", "1GiB", cores=cores, fresh=True), {}
    keys = ["--keys", str(scaled(100_000, 10_000)), *CPU_KEYS]
    load(node, "--fill", "--conns", "50", "--pipeline", "16", *keys)
    flags = ["--closed", "--conns", "50", "--pipeline", "16", "--mix", "get=100", *keys, "--warmup", "0.5", "--seconds", str(SECONDS)]
    share = []
    for _ in range(PASSES):
        for route in ("--routed", "--any"):
            before = node.cpu_seconds()
            report = load(node, *flags, route)
            costs.setdefault(route, []).append(1e6 * (node.cpu_seconds() - before) / requests(report))
            share.append(report["hops"] / requests(report))
    node.stop()
    shutil.rmtree(os.path.join(WORK, "bench-hop"), ignore_errors=True)
    direct, mixed = (statistics.median(costs[route]) for route in ("--routed", "--any"))
    # Over any connection only some hop: what one that does costs follows from their share.
    hopped = direct + (mixed - direct) / max(share)
    what = "get 100 B, P=16, to the owning core / over any (%.0f %% hop)" % (100 * max(share))
    result("hop", what, "", "%s / %s µs" % tuple(map(spread, costs.values())), None)
    bounded("hop", "CPU of a request that hops over a direct one's", hopped / direct, high=1.5, unit=" ×")
    peer = redis()
    load(peer, "--fill", "--conns", "50", "--pipeline", "16", *keys)
    cost = statistics.median(cpu_of(peer, *flags)[0] for _ in range(PASSES))
    peer.stop()
    bounded("hop", "the same over %s" % peer.version, hopped / cost, high=0.8, unit=" ×")


# ----------------------------------------------------------------------------------------------------------------------------------
# million: the owner's promise.


def million():
    node = Node("bench-million", "--memory", "4GiB", fresh=True)
    keys = ["--keys", str(scaled(10_000_000, 100_000)), *CPU_KEYS]
    load(node, "--fill", "--conns", "50", "--pipeline", "16", *keys)
    rate = str(scaled(1_000_000, 10_000))
    mix = ["--mix", "get=91,put=9", "--dist", "zipf:0.99", "--conns", "50", *keys]
    # As after some minutes of such a load: what fits into memory is there, then what is asked for often.
    sweep = ["--closed", "--pipeline", "100", "--conns", "50", *keys, "--warmup", "0"]
    load(node, *sweep, "--mix", "get=100", "--dist", "uniform", "--seconds", str(bounded_seconds(60)))
    load(node, "--closed", *mix, "--pipeline", "100", "--warmup", "0", "--seconds", str(bounded_seconds(15)))
    before = node.cpu_seconds()
    report = load(node, "--rate", rate, *mix, "--warmup", "3", "--seconds", str(bounded_seconds(20)), "--html", os.path.join(WORK, "million.html"))
    spent = node.cpu_seconds() - before
    ops = report["ops"]
    p99 = max(op["p99_us"] for op in ops.values())
    result("million", "open loop at %s/s, 91 %% get 9 %% durable put: rate reached" % rate, "", "%.0f/s" % report["rate_reached"], None)
    result("million", "server CPU", "", "%.2f µs a request" % (1e6 * spent / requests(report)), None)
    for kind, op in ops.items():
        quantiles = tuple(op[name] for name in ("p50_us", "p99_us", "p999_us", "max_us"))
        result("million", "%s p50 / p99 / p99.9 / max" % kind, "", "%.0f / %.0f / %.0f / %.0f µs" % quantiles, None)
    reached = report["rate_reached"] >= 0.98 * float(rate)
    result("million", "p99 of the slower kind", "< 1000 µs", "%.0f µs" % p99, p99 < 1000 and reached, limit=report["generator_limit"])
    if report["generator_limit"]:
        result("million", "limit", "", report["generator_limit"], None)
    found = load(node, "--find-p99-us", "1000", *mix, "--warmup", "1", "--seconds", "5")
    best = "%.0f/s" % found["find"]["rate"] if found["find"]["rate"] else "none"
    result("million", "the highest rate that holds a p99 of 1 ms", "", "%s (%s)" % (best, found["find"]["limit"]), None)
    node.stop()
    shutil.rmtree(os.path.join(WORK, "bench-million"), ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------------------------
# durable: every answer after its sync.


def durable():
    flags = ["--closed", "--conns", "50", "--pipeline", "16", "--mix", "put=100", "--keys", str(scaled(1_000_000, 10_000)), *CPU_KEYS]
    flags += ["--warmup", "1", "--seconds", str(SECONDS)]
    peer, node = redis(durable=True), Node("bench-durable", "--memory", "2GiB", fresh=True)
    rows = {peer.version: (peer, []), "ringkv": (node, [])}
    for _ in range(PASSES):
        for server, reports in rows.values():
            reports.append(load(server, *flags))
    middle = {}
    for name, (_, reports) in rows.items():
        rate = statistics.median(report["rate_reached"] for report in reports)
        p99 = statistics.median(report["ops"]["put"]["p99_us"] for report in reports)
        middle[name] = (rate, p99)
        result("durable", "put, 50 connections, P=16, sync before the answer: " + name, "", "%.0f/s, p99 %.0f µs" % (rate, p99), None)
    peer.stop()
    node.stop()
    shutil.rmtree(os.path.join(WORK, "bench-durable"), ignore_errors=True)
    (their_rate, their_p99), (our_rate, our_p99) = middle.values()
    bounded("durable", "rate over %s appendfsync always" % peer.version, our_rate / their_rate, low=1.5, unit=" ×")
    bounded("durable", "p99 over theirs", our_p99 / their_p99, high=0.5, unit=" ×")


# ----------------------------------------------------------------------------------------------------------------------------------
# disk: data much larger than memory. One fill each.

DISK_KEYS = scaled(16_000_000, 50_000)
DISK_MEMORY_MIB = 512


def db_bench(*flags, seconds_max=3600):
    """RocksDB's own benchmark, in its process, on the node's CPU: seconds, operations a second, CPU seconds."""
    folder = os.path.join(WORK, "bench-rocksdb")
    half = str(DISK_MEMORY_MIB // 2 * MIB)
    words = ["taskset", "-c", str(NODE_CPU), "db_bench", "--db=" + folder, "--key_size=%d" % KEY_BYTES, "--value_size=%d" % VALUE_BYTES,
             "--num=%d" % DISK_KEYS, "--cache_size=" + half, "--write_buffer_size=%d" % (64 * MIB), "--bloom_bits=10",
             "--compression_type=none",
             "--use_direct_reads=true", "--use_direct_io_for_flush_and_compaction=true", "--cache_index_and_filter_blocks=false",
             "--max_background_jobs=2", "--threads=1", "--statistics=false", *flags]
    try:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise Missing("db_bench (rocksdb-tools) is not installed") from None
    out, err = process.communicate(timeout=seconds_max)
    found = re.search(r"^(\w+)\s*:\s*([\d.]+) micros/op (\d+) ops/sec", out.decode(), re.M)
    if not found:
        raise RuntimeError("db_bench said nothing of use: %s" % err.decode()[-300:])
    return float(found[3])


def children_seconds():
    times = os.times()
    return times.children_user + times.children_system


def disk():
    keys = ["--keys", str(DISK_KEYS), "--key-size", str(KEY_BYTES), "--value", str(VALUE_BYTES)]
    rocks = None
    try:
        version = version_of("db_bench", "--version")
        before = children_seconds()
        rate = db_bench("--benchmarks=filluniquerandom")
        rocks = {"fill": rate, "cpu": 1e6 * (children_seconds() - before) / DISK_KEYS, "version": version}
        rocks["missing"] = db_bench("--benchmarks=readmissing", "--use_existing_db=true", "--reads=%d" % scaled(2_000_000, 20_000))
    except Missing as why:
        say("             %s" % why)
    shutil.rmtree(os.path.join(WORK, "bench-rocksdb"), ignore_errors=True)
    node = Node("bench-disk", "--memory", "%dMiB" % DISK_MEMORY_MIB, fresh=True)
    before = node.cpu_seconds()
    report = load(node, "--fill", "--conns", "50", "--pipeline", "16", *keys, seconds_max=3600)
    cost, rate = 1e6 * (node.cpu_seconds() - before) / DISK_KEYS, report["rate_reached"]
    result("disk", "fill of %d keys × 1 KiB in random order, durable" % DISK_KEYS, "", "%.0f/s, %.2f µs CPU" % (rate, cost), None)
    if rocks:
        result("disk", "RocksDB filluniquerandom (log not synced)", "", "%.0f/s, %.2f µs CPU" % (rocks["fill"], rocks["cpu"]), None)
        bounded("disk", "CPU an insert over RocksDB's", cost / rocks["cpu"], high=0.7, unit=" ×")
        bounded("disk", "fill rate over RocksDB's", rate / rocks["fill"], low=1.0, unit=" ×")
    disk_gets(node, keys)
    flags = ["--closed", "--conns", "1", "--pipeline", "100", "--mix", "get=100", "--warmup", "2", "--seconds", str(2 * SECONDS)]
    # Keys one byte longer than those that were put.
    absent = ["--keys", str(DISK_KEYS), "--key-size", str(KEY_BYTES + 1), "--value", str(VALUE_BYTES)]
    report = load(node, *flags, *absent)
    result("disk", "absent keys, P=100", "", "%.0f/s" % report["rate_reached"], None)
    if rocks:
        ratio = report["rate_reached"] / rocks["missing"]
        bounded("disk", "over RocksDB's readmissing in its process (%.0f/s)" % rocks["missing"], ratio, low=1.0, unit=" ×")
    node.stop()
    shutil.rmtree(os.path.join(WORK, "bench-disk"), ignore_errors=True)


def fio_reads(folder, seconds):
    """4 KiB random reads at depth 32 of the node's own files, so of the same bytes wherever the host caches them: how many a second, and
    the µs of CPU each."""
    words = ["taskset", "-c", str(NODE_CPU), "fio", "--name=read", "--opendir=" + folder, "--file_service_type=random"]
    words += ["--readonly", "--rw=randread", "--bs=4k", "--iodepth=32", "--ioengine=io_uring", "--direct=1", "--time_based"]
    words += ["--runtime=%d" % seconds, "--output-format=json"]
    try:
        done = subprocess.run(words, capture_output=True, timeout=900, check=False)
    except FileNotFoundError:
        raise Missing("fio is not installed") from None
    if done.returncode:
        raise RuntimeError("fio: %s" % (done.stdout + done.stderr).decode()[-300:])
    # Remarks of its own come before the report.
    job = json.loads(done.stdout[done.stdout.index(b"{"):])["jobs"][0]
    iops = job["read"]["iops"]
    return iops, 1e4 * (job["usr_cpu"] + job["sys_cpu"]) / iops


def merged(node):
    """Waits until merges have ended: the node writes nothing more."""
    before = node.written_bytes()
    for _ in range(200):
        time.sleep(3)
        now = node.written_bytes()
        if now - before < MIB:
            return
        before = now
    say("             merges still run after ten minutes")


def disk_gets(node, keys):
    """Gets of 32 at a time: over a connection each, where each pays its own way through the network, and 16 to a connection."""
    seconds = max(1, int(SECONDS))
    flags = ["--closed", "--mix", "get=100", *keys, "--dist", "uniform", "--warmup", "1", "--seconds", str(seconds)]
    shapes = {"32 connections, P=1": ["--conns", "32", "--pipeline", "1"], "2 connections, P=16": ["--conns", "2", "--pipeline", "16"]}
    alone, piped = shapes
    busy = load(node, *flags, *shapes[alone])
    got = "%.0f/s, p99 %.0f µs" % (busy["rate_reached"], busy["ops"]["get"]["p99_us"])
    result("disk", "get from disk, %s, right after the fill, merges running" % alone, "", got, None)
    merged(node)
    bare, costs, rates, p99s = [], [], {shape: [] for shape in shapes}, {shape: [] for shape in shapes}
    for _ in range(PASSES):
        try:
            bare.append(fio_reads(os.path.join(node.data, "tables"), seconds))
        except Missing as why:
            say("             %s" % why)
        for shape, shaped in shapes.items():
            before = node.cpu_seconds()
            report = load(node, *flags, *shaped)
            rates[shape].append(report["rate_reached"])
            p99s[shape].append(report["ops"]["get"]["p99_us"])
            if shape == piped:
                # The second of warming up is the node's too.
                costs.append(1e6 * (node.cpu_seconds() - before) / (report["rate_reached"] * (seconds + 1)))
    for shape in shapes:
        got = "%.0f/s, p99 %.0f µs" % (statistics.median(rates[shape]), statistics.median(p99s[shape]))
        result("disk", "get from disk, %s, merges ended" % shape, "", got, None)
    result("disk", "CPU of such a get, %s" % piped, "", "%s µs" % spread(costs), None)
    if bare:
        iops, cost = (statistics.median(column) for column in zip(*bare))
        result("disk", "fio's 4 KiB random reads, depth 32", "", "%.0f/s, %.2f µs CPU" % (iops, cost), None)
        bounded("disk", "over them, %s" % alone, statistics.median(rates[alone]) / iops, low=0.8, unit=" ×")
        bounded("disk", "over them, %s" % piped, statistics.median(rates[piped]) / iops, low=0.8, unit=" ×")


# ----------------------------------------------------------------------------------------------------------------------------------
# overwrite: a steady load for ten minutes, and more than the node can take.

# Merges take tens of seconds: less than this shows no steady state, however few the keys.
SETTLE_SECONDS, HIGHEST_SECONDS = max(30, bounded_seconds(120)), max(90, bounded_seconds(240))
OVERLOAD_SECONDS, STEADY_SECONDS = max(5, bounded_seconds(60)), max(5, bounded_seconds(600))


def overwrite():
    node = Node("bench-overwrite", "--memory", "512MiB", fresh=True)
    keys = ["--keys", str(scaled(4_000_000, 50_000)), "--key-size", str(KEY_BYTES), "--value", str(VALUE_BYTES)]
    load(node, "--fill", "--conns", "50", "--pipeline", "16", *keys, seconds_max=3600)
    # What merges keep up with: they have gone round some times before it counts, and go round some times while it does.
    times = ["--warmup", str(SETTLE_SECONDS), "--seconds", str(HIGHEST_SECONDS)]
    highest = load(node, "--closed", "--conns", "50", "--pipeline", "16", "--mix", "get=5,put=95", *keys, *times)
    mix = ["--conns", "50", "--pipeline", "16", "--mix", "get=5,put=95", *keys, "--warmup", "2"]
    rate = highest["rate_reached"]
    over = load(node, "--rate", str(int(2 * rate)), *mix, "--seconds", str(OVERLOAD_SECONDS))
    merged(node)
    quiet = load(node, "--rate", "2000", "--conns", "20", "--pipeline", "16", "--mix", "get=100", *keys, "--warmup", "1", "--seconds", "10")
    seconds_max = STEADY_SECONDS + 120
    report = load(node, "--rate", str(int(0.8 * rate)), *mix, "--seconds", str(STEADY_SECONDS), seconds_max=seconds_max)
    node.stop()
    shutil.rmtree(os.path.join(WORK, "bench-overwrite"), ignore_errors=True)
    what = "highest rate, 5 %% gets: mean of %d s of a closed loop, after %d s of it" % (HIGHEST_SECONDS, SETTLE_SECONDS)
    result("overwrite", what, "", "%.0f/s" % rate, None)
    bounded("overwrite", "longest gap without an answer meanwhile", highest["longest_gap_ms"], high=50, unit=" ms")
    what = "open loop at twice that rate, %d s: longest gap without an answer" % OVERLOAD_SECONDS
    bounded("overwrite", what, over["longest_gap_ms"], high=50, unit=" ms")
    result("overwrite", "rate reached then", "", "%.0f/s" % over["rate_reached"], None)
    result("overwrite", "open loop at 80 %%, %d s: rate reached" % STEADY_SECONDS, "", "%.0f/s" % report["rate_reached"], None)
    bounded("overwrite", "longest gap without an answer", report["longest_gap_ms"], high=50, unit=" ms")
    ops = report["ops"]
    bounded("overwrite", "put p99.9", ops["put"]["p999_us"] / 1000, high=10, unit=" ms")
    before, during = quiet["ops"]["get"]["p99_us"], ops["get"]["p99_us"]
    bounded("overwrite", "get p99 over quiet (%.0f µs)" % before, during / before, high=2, unit=" ×")


# ----------------------------------------------------------------------------------------------------------------------------------
# share: what a node holds of a large cluster's data.


def share():
    """The seed's share of a node: far more data than memory, filled, read, overwritten, and started again after kill -9."""
    count = scaled(40_000_000, 100_000)
    raw = count * (KEY_BYTES + VALUE_BYTES)
    shutil.rmtree(os.path.join(WORK, "bench-share"), ignore_errors=True)
    free = shutil.disk_usage(WORK).free
    if free < 1.45 * raw:
        raise Missing("the disk has %.0f GB free, and this needs %.0f" % (free / 1e9, 1.45 * raw / 1e9))
    node = Node("bench-share", "--memory", "512MiB", fresh=True)
    keys = ["--keys", str(count), "--key-size", str(KEY_BYTES), "--value", str(VALUE_BYTES)]
    reads = ["--closed", "--mix", "get=100", "--dist", "uniform", "--warmup", "1", "--seconds", str(2 * max(1, int(SECONDS)))]
    before, disk_peak = node.cpu_seconds(), Sampler(lambda: sum(disk_usage(node.data)))
    report = load(node, "--fill", "--conns", "50", "--pipeline", "16", *keys, seconds_max=3600)
    cost = 1e6 * (node.cpu_seconds() - before) / count
    what = "fill of %d keys × 1 KiB in random order, durable" % count
    result("share", what, "", "%.0f/s, %.2f µs CPU, gap %.0f ms" % (report["rate_reached"], cost, report["longest_gap_ms"]), None)
    bounded("share", "highest use of the disk meanwhile, over the data's bytes", disk_peak.finish() / raw, high=1.4, unit=" ×")
    merged(node)
    got = load(node, *reads, "--conns", "32", "--pipeline", "1", *keys)
    result("share", "get, depth 32, merges ended", "", "%.0f/s, p99 %.0f µs" % (got["rate_reached"], got["ops"]["get"]["p99_us"]), None)
    # Keys one byte longer than those that were put.
    absent = ["--keys", str(count), "--key-size", str(KEY_BYTES + 1), "--value", str(VALUE_BYTES)]
    got = load(node, *reads, "--conns", "1", "--pipeline", "100", *absent)
    result("share", "absent keys, P=100", "", "%.0f/s" % got["rate_reached"], None)
    disk_peak = Sampler(lambda: sum(disk_usage(node.data)))
    times = ["--warmup", str(SETTLE_SECONDS), "--seconds", str(HIGHEST_SECONDS)]
    got = load(node, "--closed", "--conns", "50", "--pipeline", "16", "--mix", "put=100", *keys, *times, seconds_max=3600)
    result("share", "overwriting, closed loop: rate, longest gap", "", "%.0f/s, %.0f ms" % (got["rate_reached"], got["longest_gap_ms"]), None)
    bounded("share", "highest use of the disk meanwhile, over the data's bytes", disk_peak.finish() / raw, high=1.4, unit=" ×")
    node.kill()
    node = Node("bench-share", "--memory", "512MiB")
    bounded("share", "kill -9, then seconds to the ready line", node.start_seconds, high=5, unit=" s")
    node.stop()
    shutil.rmtree(os.path.join(WORK, "bench-share"), ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------------------------
# memory: what a cached string takes.


def memory():
    keys, budget = scaled(4_000_000, 50_000), "%dMiB" % max(32, scaled(512))
    node = Node("bench-memory", "--memory", budget, fresh=True)
    flags = ["--keys", str(keys), *CPU_KEYS]
    load(node, "--fill", "--conns", "50", "--pipeline", "16", *flags)
    entries, held = 0, 0
    # Until the cache is full: its index is there from the start.
    for _ in range(10):
        load(node, "--closed", "--conns", "50", "--pipeline", "16", "--mix", "get=100", *flags, "--warmup", "0", "--seconds", str(2 * SECONDS))
        before, metrics = held, node.settled_metrics()
        entries, held = metrics.sum("cell_cache_entries"), metrics.sum("cell_cache_bytes")
        if held == before:
            break
    node.stop()
    shutil.rmtree(os.path.join(WORK, "bench-memory"), ignore_errors=True)
    bounded("memory", "a cached string of 16 B key and 100 B value (%d of them)" % entries, held / entries, high=160, unit=" B", digits=0)


# ----------------------------------------------------------------------------------------------------------------------------------
# knobs: what the flags of tuning.md give.

KNOBS = {
    "as it is": [],
    "--spin-us 0": ["--spin-us", "0"],
    "--spin-us 300": ["--spin-us", "300"],
    "--durability interval": ["--durability", "interval"],
    "--io epoll": ["--io", "epoll"],
    "--memory 128MiB": ["--memory", "128MiB"],
}


def knobs():
    """For each setting: one request at a time, reads and durable writes in a pipeline, and what an idle second costs."""
    keys = ["--keys", str(scaled(1_000_000, 10_000)), *CPU_KEYS]
    times = ["--warmup", "0.5", "--seconds", str(SECONDS)]
    for name, flags in KNOBS.items():
        node = Node("bench-knobs", *(["--memory", "1GiB"] if "--memory" not in flags else []), *flags, fresh=True)
        load(node, "--fill", "--conns", "50", "--pipeline", "16", *keys)
        load(node, *cpu_flags(50, 16, "get=100", 2 * SECONDS))
        alone = load(node, "--rate", "2000", "--conns", "1", "--mix", "get=100", *keys, *times)["ops"]["get"]["p50_us"]
        before = node.cpu_seconds()
        time.sleep(1)
        idle = 100 * (node.cpu_seconds() - before)
        get_cost, get_rate = cpu_of(node, *cpu_flags(50, 16, "get=100"))
        put_cost, put_rate = cpu_of(node, *cpu_flags(50, 16, "put=100"))
        node.stop()
        got = (alone, idle, get_rate / 1e3, get_cost, put_rate / 1e3, put_cost)
        result("knobs", name, "", "get at 2k/s p50 %.0f µs, idle %.1f %% CPU, get %.0fk/s %.2f µs, put %.0fk/s %.2f µs" % got, None)
    shutil.rmtree(os.path.join(WORK, "bench-knobs"), ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------------------------
# machine: what no server can be better than here.


def machine():
    """How long a thread that only reads the clock is kept from running, while another does the same on the other CPU."""
    gaps = os.path.join(measure.RELEASE, "gaps")
    cpus = [cpu for cpu in (NODE_CPU, measure.LOAD_CPU) if cpu is not None]
    running = [subprocess.Popen(["taskset", "-c", str(cpu), gaps, str(5 * SECONDS)], stdout=subprocess.PIPE) for cpu in cpus]
    for cpu, process in zip(cpus, running):
        said = json.loads(process.communicate(timeout=60)[0])
        got = "%.2f %% of the time; the longest %.1f ms" % (said["lost_percent"], said["longest_us"] / 1000)
        result("machine", "CPU %s: kept from running for over 0.5 ms at a time, all CPUs busy" % cpu, "", got, None)


# ----------------------------------------------------------------------------------------------------------------------------------
# cluster: three nodes on the node's CPU, against one node, and against Redis with two replicas that it waits for.


class Several:
    """Servers that are measured as one; the first is the one that is loaded."""

    def __init__(self, servers):
        self.servers, self.target = servers, servers[0].target

    def cpu_seconds(self):
        return sum(server.cpu_seconds() for server in self.servers)

    def stop(self):
        for server in self.servers:
            server.stop()


def three_nodes():
    ports = [free_port() for _ in range(3)]
    founders = ",".join("%d=127.0.0.1:%d" % (node, port) for node, port in enumerate(ports, 1))
    # Gossip is as far from the native port at every node.
    gossip = ["--gossip-port", None]
    nodes = []
    for node, port in enumerate(ports, 1):
        gossip[1] = str(port + 1)
        flags = ["--node-id", str(node), "--founders", founders, *gossip, "--memory", "1GiB", "--spin-us", "0"]
        nodes.append(Node("bench-cluster-%d" % node, *flags, fresh=True, port=port))
    return Several(nodes)


def three_redis():
    servers = []
    for number in range(3):
        port, version = free_port(), version_of("redis-server", "--version")
        words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", "."]
        words += ["--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"]
        if number:
            words += ["--replicaof", "127.0.0.1", str(servers[0].port)]
        servers.append(Peer("redis-%d" % number, "redis-wait", words, port, "Redis " + version))
    # Until both have the link.
    for _ in range(200):
        with socket.create_connection(("127.0.0.1", servers[0].port), 2) as control:
            control.sendall(b"INFO replication\r\n")
            said = control.recv(65536)
        if said.count(b"state=online") == 2:
            return Several(servers)
        time.sleep(0.1)
    raise RuntimeError("the replicas of Redis do not come online")


def cluster():
    goals = {1: 0.6, 16: 0.45}
    keys = ["--keys", "100000", *CPU_KEYS, "--warmup", "0.5", "--seconds", str(SECONDS), "--closed", "--conns", "50"]
    try:
        peers = three_redis()
    except Missing as why:
        peers = say("             %s" % why)
    nodes, alone = three_nodes(), Node("bench-cluster-0", "--memory", "1GiB", "--spin-us", "0", fresh=True)
    for server in (nodes, alone):
        load(server, "--fill", "--conns", "50", "--pipeline", "16", "--keys", "100000", *CPU_KEYS)
    for pipeline, goal in goals.items():
        ours, theirs = [], []
        for _ in range(PASSES):
            before = nodes.cpu_seconds()
            report = load(nodes, *keys, "--pipeline", str(pipeline), "--mix", "put=100")
            cost = 1e6 * (nodes.cpu_seconds() - before) / requests(report)
            ours.append((cost, report["rate_reached"], report["ops"]["put"]["p99_us"]))
            if peers:
                before = peers.cpu_seconds()
                report = load(peers, *keys, "--pipeline", str(pipeline), "--mix", "put=100")
                cost = 1e6 * (peers.cpu_seconds() - before) / requests(report)
                theirs.append((cost, report["rate_reached"], report["ops"]["put"]["p99_us"]))
        what = "durable put at QUORUM, three nodes, 50 connections, P=%d: " % pipeline
        for name, rows in (("ringkv", ours), ("Redis, two replicas, SET and WAIT 1", theirs)):
            if rows:
                middle = [statistics.median(row[at] for row in rows) for at in range(3)]
                result("cluster", what + name, "", "%.1f µs of all servers' CPU, %.0f/s, p99 %.0f µs" % tuple(middle), None)
        if theirs:
            ratio = [statistics.median(row[at] for row in ours) / statistics.median(row[at] for row in theirs) for at in range(3)]
            bounded("cluster", what + "CPU over Redis's", ratio[0], high=goal, unit=" ×")
            bounded("cluster", what + "rate over Redis's", ratio[1], low=2, unit=" ×")
            bounded("cluster", what + "p99 over Redis's", ratio[2], high=0.5, unit=" ×")
    costs = {"three": [], "one": []}
    for _ in range(PASSES):
        for name, server in (("three", nodes), ("one", alone)):
            costs[name].append(cpu_of(server, *keys, "--pipeline", "16", "--mix", "get=100")[0])
    what = "get, P=16: at QUORUM of three nodes / on one node"
    result("cluster", what, "", "%s / %s µs" % (spread(costs["three"]), spread(costs["one"])), None)
    bounded("cluster", "CPU of all nodes over one node's", statistics.median(costs["three"]) / statistics.median(costs["one"]), high=3, unit=" ×")
    for server in (nodes, alone, peers):
        if server:
            server.stop()


ROWS = {row.__name__: row for row in (cluster, machine, cpu, hop, million, durable, memory, disk, overwrite, share, knobs)}
BY_NAME = ("overwrite", "share", "knobs", "cluster")
FOLDERS = ("bench-cpu", "bench-hop", "bench-million", "bench-durable", "bench-disk", "bench-rocksdb", "bench-overwrite", "bench-share",
           "bench-memory", "bench-knobs", "bench-cluster-0", "bench-cluster-1", "bench-cluster-2", "bench-cluster-3")


def main():
    try:
        # Twenty minutes long, or no race: only by name.
        if not sys.argv[1:]:
            sys.argv += [name for name in ROWS if name not in BY_NAME]
        return run_rows(ROWS, FOLDERS, "bench.json")
    finally:
        end_peers()


if __name__ == "__main__":
    sys.exit(main())
