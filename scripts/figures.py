"""Measures the figures of docs/figures.md; scripts/figures.sh builds the binaries and calls this. What a figure means, and why it is
measured like this, is in docs/figures.md.
"""
import json
import os
import random
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time

from measure import (
    CPUS, KEY_BYTES, MIB, NODE_CPU, RELEASE, SCALE, VALUE_BYTES, WORK, Node, Sampler, answered, bounded, disk_usage, encode, load, pinned,
    result, run_rows, say, scaled, start_load,
)


def device_flushes():
    """Flush requests of the disk under the data (Documentation/block/stat.rst, the 16th field), or None."""
    number = os.stat(WORK).st_dev
    path = os.path.realpath("/sys/dev/block/%d:%d" % (os.major(number), os.minor(number)))
    if os.path.exists(os.path.join(path, "partition")):
        path = os.path.dirname(path)
    try:
        with open(os.path.join(path, "stat")) as text:
            fields = text.read().split()
        return int(fields[15])
    except (OSError, IndexError):
        return None


# ----------------------------------------------------------------------------------------------------------------------------------
# dsync: what durable costs.


def dsync():
    rounds, seconds = 5, max(0.5, 3 * min(1, SCALE * 5))
    disk, put, flushes, groups = [], [], 0, 0
    # Both ends look for work instead of sleeping: what is compared is the work, not how long an idle CPU takes to wake. Both yield between
    # looks, or the kernel's workers that end a durable write on their CPU would wait for the next tick.
    node = Node("dsync", "--memory", "1GiB", "--spin-us", "2000", fresh=True)
    load(node, "--fill", "--keys", "1000", "--conns", "1", "--value", "100")
    for _ in range(rounds):
        words = [os.path.join(RELEASE, "dsync"), WORK, str(seconds)]
        disk.append(json.loads(subprocess.run(pinned(words), check=True, capture_output=True, timeout=120).stdout))
        before, flushes_before = node.settled_metrics(), device_flushes()
        flags = ["--closed", "--spin", "--pipeline", "1", "--conns", "1", "--mix", "put=100", "--keys", "100k", "--value", "100"]
        report = load(node, *flags, "--warmup", "0.2", "--seconds", str(seconds))
        answered(report)
        put.append(report["ops"]["put"])
        groups += node.settled_metrics().wal_groups() - before.wal_groups()
        flushes += (device_flushes() or 0) - (flushes_before or 0)
    node.stop()
    middle = {name: [statistics.median(row[name] for row in rows) for rows in (disk, put)] for name in ("p50_us", "p99_us")}
    details = {"disk": disk, "put": put}
    result("dsync", "4 KiB DSYNC write of this disk, p50 / p99", "", "%.0f / %.0f µs" % (middle["p50_us"][0], middle["p99_us"][0]), None)
    result("dsync", "durable put, 1 connection, p50 / p99", "", "%.0f / %.0f µs" % (middle["p50_us"][1], middle["p99_us"][1]), None)
    bounded("dsync", "p50 of the put over p50 of the write", middle["p50_us"][1] / middle["p50_us"][0], 1.0, 1.35, **details)
    if device_flushes() is None:
        result("dsync", "flush requests of the device over WAL groups", "≥ 1", "not counted here", None)
    else:
        bounded("dsync", "flush requests of the device over WAL groups", flushes / max(1, groups), 1.0, flushes=flushes, groups=groups)


# ----------------------------------------------------------------------------------------------------------------------------------
# fill and reads: data larger than memory.

BUDGET_MIB = 256
filled_keys = None


def fill_flags(keys):
    return ["--keys", str(keys), "--key-size", str(KEY_BYTES), "--value", str(VALUE_BYTES)]


def fill():
    global filled_keys
    keys = scaled(4_000_000, 20_000)
    node = Node("fill", "--memory", "%dMiB" % BUDGET_MIB, fresh=True)
    before, written_before = node.settled_metrics(), node.written_bytes()
    memory, filters = Sampler(node.rss_bytes), Sampler(lambda: node.metrics().filter_and_index_bytes())
    report = load(node, "--fill", "--conns", "50", "--pipeline", "16", *fill_flags(keys), seconds_max=3600)
    log, rest = disk_usage(node.data)
    written = node.written_bytes() - written_before
    after, put = node.settled_metrics(), keys * (KEY_BYTES + VALUE_BYTES)
    counts = answered(report)
    lost = keys - counts.get("put", 0)
    result("fill", "%d keys put, not acknowledged" % keys, "0", str(lost), lost == 0)
    wal = after.wal_bytes() - before.wal_bytes()
    p = report["ops"]["put"]
    got = "%.0f/s; %.1f / %.1f ms" % (report["rate_reached"], p["p50_us"] / 1e3, p["p99_us"] / 1e3)
    result("fill", "rate; p50 / p99 of a put", "", got, None)
    bounded("fill", "tables written over bytes put", (written - wal) / put, high=4)
    bounded("fill", "WAL written over bytes put", wal / put, high=1.5)
    bounded("fill", "disk used over live bytes, without the WAL ring, at once", rest / put, high=1.15)
    bounded("fill", "disk used over live bytes, with the WAL ring (%d MiB)" % (log / MIB), (rest + log) / put)
    at_once = after.filter_and_index_bytes() / keys
    bounded("fill", "filters and index, bytes a key, highest", max(filters.finish() / keys, at_once), high=2.5, at_once=at_once)
    bounded("fill", "resident memory, highest, MiB (budget %d)" % BUDGET_MIB, memory.finish() / MIB, high=BUDGET_MIB + 64, digits=0)
    node.stop()
    filled_keys = keys


def reads():
    if filled_keys is None:
        fill()
    keys = filled_keys
    node = Node("fill", "--memory", "%dMiB" % BUDGET_MIB)
    memory = Sampler(node.rss_bytes)
    seconds = str(max(2, 20 * min(1, SCALE * 5)))
    flags = ["--closed", "--conns", "16", "--pipeline", "1", "--mix", "get=100", "--warmup", "0", "--seconds", seconds]
    absent = ["--keys", str(keys), "--key-size", str(KEY_BYTES + 1)]
    for name, more, high in (("present", fill_flags(keys), 1.05), ("absent", absent, 0.01)):
        # The cache fills before anything is counted; by another draw of keys, for of the same the cache would hold every block.
        load(node, *flags, *more, "--seed", "11")
        before = node.settled_metrics()
        report = load(node, *flags, *more, "--seed", "12")
        after = node.settled_metrics()
        gets = answered(report)["get"]
        reads, misses = after.lookup_reads() - before.lookup_reads(), after.memory_misses() - before.memory_misses()
        # An absent key is mostly known to be so without a disk: its lookups are the gets themselves.
        lookups = misses if name == "present" else after.gets() - before.gets()
        p = report["ops"]["get"]
        rate = "%.0f/s; %.0f / %.0f µs" % (report["rate_reached"], p["p50_us"], p["p99_us"])
        result("reads", "uniform gets, keys %s: rate; p50 / p99" % name, "", rate, None)
        figure = "disk reads a %s, keys %s" % ("cache miss" if name == "present" else "get", name)
        bounded("reads", figure, reads / max(1, lookups), high=high, digits=4, gets=gets, misses=misses, reads=reads)
    bounded("reads", "resident memory, highest, MiB (budget %d)" % BUDGET_MIB, memory.finish() / MIB, high=BUDGET_MIB + 64, digits=0)
    node.stop()


# ----------------------------------------------------------------------------------------------------------------------------------
# restart: the log at its bound.


def full_log(name, cores, fresh):
    """A node under a load of new values until its log is as full as it gets, killed there; live bytes of the log and its files' size."""
    node = Node(name, "--memory", "2GiB" if SCALE >= 1 else "1GiB", cores=cores, fresh=fresh)
    out = os.path.join(WORK, "restart.json")
    # Puts of one key range over and over, so that it is the log that fills and not the disk.
    flags = ["--closed", "--conns", "50", "--pipeline", "16", "--mix", "put=100", "--keys", "400k", "--value", str(VALUE_BYTES)]
    process = start_load(node, *flags, "--warmup", "0", "--seconds", "120", out=out)
    learn, end = time.monotonic() + max(3, 15 * min(1, SCALE * 3)), time.monotonic() + 90
    peak, live = 0, 0
    while time.monotonic() < end:
        live = node.metrics().wal_live_bytes()
        if time.monotonic() < learn:
            peak = max(peak, live)
        elif live >= 0.95 * peak:
            break
        time.sleep(0.1)
    node.kill()
    process.kill()
    process.communicate()
    return live, disk_usage(node.data)[0]


def restart():
    every = ",".join(str(cpu) for cpu in CPUS[:2])
    others = str(NODE_CPU) if len(CPUS) > 1 else None
    for figure, cores, bound in (("the same cores", every, 3), ("another core count", others, 5)):
        if cores is None:
            result("restart", "kill -9, then %s" % figure, "≤ %d s" % bound, "only one CPU here", None)
            continue
        live, ring = full_log("restart", every, fresh=True)
        node = Node("restart", "--memory", "2GiB" if SCALE >= 1 else "1GiB", cores=cores)
        found = node.client().get(b"no such key")
        assert found is None
        title = "kill -9, then %s: seconds to the ready line" % figure
        bounded("restart", title, node.start_seconds, high=bound, live_bytes=live, ring_bytes=ring)
        count = every.count(",") + 1
        text = "%.0f MiB live of a ring of %.0f MiB, a core" % (live / count / MIB, ring / count / MIB)
        full = ring / count >= 256 * MIB
        result("restart", "  the log at the kill", "ring ≥ 256 MiB", text, full if SCALE >= 1 else None)
        node.stop()
    shutil.rmtree(os.path.join(WORK, "restart"), ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------------------------
# expiry: exact, and soon forgotten.


def deadline_of(version, ttl_ms):
    """The wall-clock millisecond: a version's first 48 bits are the clock it was stamped with."""
    return (int.from_bytes(version[:8], "big") >> 16) + ttl_ms


def wall_ms():
    return time.time_ns() / 1e6


class Probes(threading.Thread):
    """Keys with times to live of their own, each read all around its deadline: present before it, absent from it on."""

    def __init__(self, node, count, first_ms, last_ms):
        super().__init__(daemon=True)
        self.node, self.late, self.early, self.reads = node, 0, 0, 0
        client, draw = node.client(), random.Random(4)
        self.keys = []
        for number in range(count):
            key, ttl_ms = b"probe-%08d" % number, draw.randrange(first_ms, last_ms)
            self.keys.append((deadline_of(client.put(key, b"v" * 64, ttl_ms=ttl_ms), ttl_ms), key))
        self.keys.sort()
        self.error = None
        self.start()

    def run(self):
        try:
            client = self.node.client()
            for deadline, key in self.keys:
                time.sleep(max(0, (deadline - wall_ms() - 4) / 1e3))
                if wall_ms() > deadline:
                    # Too late to see it present; it must be hidden all the same.
                    self.late += client.get(key) is not None
                    self.reads += 1
                    continue
                while True:
                    sent = wall_ms()
                    found = client.get(key)
                    came = wall_ms()
                    self.reads += 1
                    # Shown although the deadline was over when it was asked for; hidden although it was not when the answer was there.
                    self.late += found is not None and sent >= deadline
                    self.early += found is None and came < deadline
                    if found is None or sent > deadline + 50:
                        break
        except Exception as error:  # noqa: BLE001 - shown by whoever waits for it
            self.error = error


def expire_all(figure, memory, value_bytes, ttl_s):
    keys = scaled(1_000_000, 20_000)
    node = Node("expiry", "--memory", memory, fresh=True)
    begun = time.monotonic()
    flags = ["--fill", "--conns", "50", "--pipeline", "16", "--keys", str(keys), "--value", str(value_bytes), "--ttl", "%ds" % ttl_s]
    report = load(node, *flags, seconds_max=1200)
    answered(report)
    took = time.monotonic() - begun
    if took > ttl_s:
        say("             the fill took %.0f s of a time to live of %d s: some keys expired before all were there" % (took, ttl_s))
    left = max(1.0, ttl_s - took)
    probes = Probes(node, 500, 1000, int(left * 1000) + 4000)
    end = time.monotonic() + left + took + 90
    while time.monotonic() < end and node.metrics().expired() < keys + 500:
        time.sleep(0.5)
    probes.join(60)
    after = node.settled_metrics()
    if probes.error:
        raise probes.error
    result("expiry", "%s: %d keys, expired and counted" % (figure, keys), "all", "%.0f" % after.expired(), after.expired() >= keys)
    wrong = probes.late + probes.early
    text = "%d late, %d early" % (probes.late, probes.early)
    result("expiry", "  %d reads around 500 deadlines, wrong" % probes.reads, "0", text, wrong == 0)
    # What was still in a memtable at its deadline is counted there, also where most had gone to tables.
    for place, most in (("memory", 100), ("disk", 1000)):
        lags = [after.expiry_lag_ms(place, quantile) for quantile in ("p50", "p99")]
        got, ok = "%.0f / %.0f ms" % tuple(lags), lags[1] < most
        where = "in memory" if place == "memory" else "on disk"
        result("expiry", "  from the deadline to counted, %s: p50 / p99" % where, "p99 < %d ms" % most, got, ok, lags_ms=lags)
    node.stop()
    shutil.rmtree(node.data, ignore_errors=True)


def expiry():
    shrink = min(1, SCALE * 3)
    expire_all("in memory (budget 2 GiB, 64 B values)", "2GiB", 64, max(8, int(45 * shrink)))
    memory = max(16, int(256 * min(1, SCALE)))
    expire_all("on disk (budget %d MiB, 1 KiB values)" % memory, "%dMiB" % memory, 1024, max(10, int(120 * shrink)))


# ----------------------------------------------------------------------------------------------------------------------------------
# slow_reader: one client that never reads.


class Deaf(threading.Thread):
    """Asks for a large value on and on, and reads no answer."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.socket = node.client().socket
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(0.2)
        self.frames = b"".join(encode("get", number, deadline_ms=0, namespace=1, key=b"large") for number in range(2, 66))
        self.ended = threading.Event()
        self.sent = 0
        self.start()

    def run(self):
        while not self.ended.is_set():
            try:
                self.sent += self.socket.send(self.frames)
            except TimeoutError:
                pass
            except OSError:
                return

    def finish(self):
        self.ended.set()
        self.join()
        self.socket.close()


def slow_reader():
    node = Node("slow_reader", "--memory", "512MiB", fresh=True)
    conns, keys = (1000, 200_000) if SCALE >= 1 else (100, 20_000)
    load(node, "--fill", "--conns", "50", "--keys", str(keys), "--value", "100")
    node.client().put(b"large", b"x" * MIB)
    seconds = max(2, 8 * min(1, SCALE * 5))
    flags = ["--rate", "20k", "--conns", str(conns), "--mix", "get=91,put=9", "--keys", str(keys), "--value", "100", "--warmup", "1"]
    alone, beside, rss = [], [], 0
    for _ in range(5):
        report = load(node, *flags, "--seconds", str(seconds))
        answered(report)
        alone.append(report["ops"]["get"]["p99_us"])
        deaf = Deaf(node)
        report = load(node, *flags, "--seconds", str(seconds))
        rss = max(rss, node.rss_bytes())
        deaf.finish()
        answered(report)
        beside.append(report["ops"]["get"]["p99_us"])
    node.stop()
    a, b = statistics.median(alone), statistics.median(beside)
    result("slow_reader", "p99 of %d connections at 20k/s: alone / beside it" % conns, "", "%.0f / %.0f µs" % (a, b), None)
    bounded("slow_reader", "p99 beside one client that never reads, over alone", b / a, high=1.2, alone=alone, beside=beside)
    bounded("slow_reader", "resident memory beside it, highest, MiB", rss / MIB, digits=0)
    shutil.rmtree(node.data, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------------------------
# sim: how fast the simulator is.


def sim():
    seeds = scaled(200, 5)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([os.path.join(RELEASE, "ringkv"), "sim", "--seeds", str(seeds)], capture_output=True, text=True, timeout=1800)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = re.search(r"(\d+) commands", done.stdout)
    result("sim", "%d seeds: exit code" % seeds, "0", str(done.returncode), done.returncode == 0)
    if not found:
        raise RuntimeError("the simulator names no commands: %s" % done.stdout[-500:])
    bounded("sim", "commands a CPU second", int(found[1]) / seconds, low=100_000, digits=0, commands=int(found[1]), cpu_seconds=seconds)


# ----------------------------------------------------------------------------------------------------------------------------------

ROWS = {row.__name__: row for row in (dsync, fill, reads, restart, expiry, slow_reader, sim)}


def main():
    folders = ("dsync", "fill", "restart", "expiry", "slow_reader")
    # The row `reads` fills by itself where `fill` has not run.
    return run_rows(ROWS, folders, "figures.json", lambda name: name == "fill" and filled_keys is not None)


if __name__ == "__main__":
    sys.exit(main())
