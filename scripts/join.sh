#!/usr/bin/env bash
# What a caller notices when a node joins: three nodes by scripts/cluster.sh on loopback, the load generator in check mode at QUORUM and a
# steady open-loop rate, first on the three, then while a fourth joins and takes its share over.
#
#   scripts/join.sh
#
# Prints the share of the replicas that moved against the fair share, by `cluster status` before and after, and the cells that nodes were
# given by comparing (others came with writes and reads meanwhile); how long it took; and the errors and the p99 of gets and puts before, in
# the worst five seconds meanwhile, and after it, when all keys are read back. Exit code 0 only if at most 1.1 times the fair share moved, no
# request failed, nothing was lost or wrong, and p99 meanwhile is at most twice that before (or under 5 ms).
#
#   RINGKV_JOIN_RATE      requests a second (2000), half of them puts
#   RINGKV_JOIN_KEYS      keys that are there before the join (200k)
#   RINGKV_JOIN_VALUE     bytes of a value (100)
#   RINGKV_JOIN_KEEP      a folder that gets the load generator's JSON of each load
#   RINGKV_BINARY, RINGKV_LOADGEN   the programs (target/release/…, built)
set -euo pipefail
cd "$(dirname "$0")/.."
rate=${RINGKV_JOIN_RATE:-2000}
keys=${RINGKV_JOIN_KEYS:-200k}
value=${RINGKV_JOIN_VALUE:-100}
if [ -z "${RINGKV_BINARY:-}" ] || [ -z "${RINGKV_LOADGEN:-}" ]; then
    cargo build --locked --release --quiet -p ringkv -p loadgen
fi
export RINGKV_BINARY=${RINGKV_BINARY:-target/release/ringkv}
load=${RINGKV_LOADGEN:-target/release/loadgen}
folder=$(mktemp -d "${TMPDIR:-/tmp}/ringkv-join.XXXXXX")
export RINGKV_CLUSTER=$folder/cluster RINGKV_CLUSTER_NET=loopback
load_pid="" node_pid="" watch_pid=""
finish() {
    local code=$?
    [ -z "$watch_pid" ] || kill "$watch_pid" 2>/dev/null || true
    [ -z "$load_pid" ] || kill -KILL "$load_pid" 2>/dev/null || true
    if [ -n "$node_pid" ]; then
        kill -TERM "$node_pid" 2>/dev/null || true
        wait "$node_pid" 2>/dev/null || true
    fi
    [ ! -e "$RINGKV_CLUSTER/cluster" ] || scripts/cluster.sh down || true
    if [ "$code" -eq 0 ]; then rm -rf "$folder"; else echo "kept for a look: $folder" >&2; fi
}
trap finish EXIT

scripts/cluster.sh up 3 "$RINGKV_CLUSTER" >"$folder/up"
target=$(awk '/^ready / { print $2 }' "$folder/up")
first=${target#native://}
first=${first%%,*}
port=${first##*:}
say() { "$RINGKV_BINARY" cluster "$@" --port "$port"; }

# run NAME SECONDS: a load to its end. All go on from one journal, so that no acknowledged write of an earlier one is forgotten.
run() {
    "$load" --target "$target" --level quorum --rate "$rate" --mix get=50,put=50 --keys "$keys" --value "$value" --conns 12 \
        --seconds "$2" --check --journal "$folder/journal" --quiet --json "$folder/$1.json" >"$folder/$1.txt" 2>&1 &
    load_pid=$!
}
ended() {
    local code=0
    wait "$load_pid" || code=$?
    load_pid=""
    [ "$code" -le 1 ] || { echo "the load generator ended with code $code:" >&2; tail -n 20 "$folder/$1.txt" >&2; exit 1; }
    [ -z "${RINGKV_JOIN_KEEP:-}" ] || cp "$folder/$1.json" "$RINGKV_JOIN_KEEP/"
}

"$load" --target "$target" --level quorum --fill --keys "$keys" --value "$value" --conns 4 --check --journal "$folder/journal" \
    --quiet >"$folder/fill.txt" 2>&1
run before 10
ended before
say status >"$folder/status-before"
began=$(date +%s%3N)
read -r -a flags <<<"${RINGKV_CLUSTER_FLAGS:---memory 64MiB}"
"$RINGKV_BINARY" --data "$folder/node4" --port $((port + 300)) --admin-port $((port + 380)) --gossip-port $((port + 390)) --node-id 4 \
    --join "$first" --cores "$(taskset -pc $$ | sed 's/.*: //; s/[,-].*//')" --spin-us 0 "${flags[@]}" >"$folder/node4.txt" 2>&1 &
node_pid=$!
settled() { say status 2>/dev/null | tee "$folder/status" | awk '/ member / { n++ } /nothing moves/ { s = 1 } END { exit !(n == 4 && s) }'; }
watch() {
    until settled; do sleep 0.2; done
    date +%s%3N >"$folder/settled-at"
}
watch &
watch_pid=$!
# Loads of five seconds, each with all keys read back behind it, one after another until nothing moves any more.
loads=0
until [ -e "$folder/settled-at" ]; do
    loads=$((loads + 1))
    run "meanwhile$loads" 5
    ended "meanwhile$loads"
    kill -0 "$node_pid" 2>/dev/null || { echo "the fourth node ended:" >&2; tail "$folder/node4.txt" >&2; exit 1; }
    [ $(($(date +%s%3N) - began)) -lt 600000 ] || { echo "the join does not end: $(tail -n 1 "$folder/status")" >&2; exit 1; }
done
wait "$watch_pid"
watch_pid=""
took_ms=$(($(cat "$folder/settled-at") - began))
# What was acknowledged while nobody listened is read back as well.
run after 2
ended after
python3 - "$folder" "$took_ms" "$port" "$loads" <<'END'
import json, sys, urllib.request

folder, took_ms, port, loads = sys.argv[1], *map(int, sys.argv[2:])


def given(admin):
    """Cells that a node lacked, and was given by others."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("ringkv_repair_received_total"))


def replicas(name):
    """How many replicas of vnodes each node has."""
    rows = [line.split() for line in open(f"{folder}/{name}")]
    at = next(row for row in rows if row[:1] == ["node"]).index("replicas")
    return {int(row[0]): int(row[at]) for row in rows if row and row[0].isdigit()}


before, after = replicas("status-before"), replicas("status")
whole = sum(after.values())
moved = sum(max(0, count - before.get(node, 0)) for node, count in after.items())
fair = whole / 4
ok = 0 < moved <= 1.1 * fair
print(f"moved {moved} of {whole} replicas of vnodes, {moved / fair:.2f} x the fair share, in {took_ms / 1000:.1f} s; comparing gave nodes {sum(given(port + 80 + at) for at in (0, 100, 200, 300))} cells")
p99 = {}
for name, parts in (("before", ["before"]), ("meanwhile", [f"meanwhile{at + 1}" for at in range(loads)]), ("after", ["after"])):
    reports = [json.load(open(f"{folder}/{part}.json")) for part in parts]
    errors, lost, wrong = sum(sum(load["errors"].values()) for load in reports), sum(load["lost"] for load in reports), sum(load["wrong"] for load in reports)
    # The worst five seconds, and the worse of gets and puts.
    p99[name] = max(op["p99_us"] for load in reports for op in load["ops"].values()) / 1000
    ok = ok and errors == lost == wrong == 0 and all(load["died"] is None for load in reports)
    print(f"{name:<10} p99 {p99[name]:8.2f} ms · errors {errors} · lost {lost} · wrong {wrong}")
ok = ok and p99["meanwhile"] <= max(2 * p99["before"], 5.0)
print("a join goes unnoticed" if ok else "a join is noticed")
sys.exit(0 if ok else 1)
END
