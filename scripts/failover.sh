#!/usr/bin/env bash
# What a caller notices when a node of three fails: a cluster by scripts/cluster.sh, the load generator in check mode at QUORUM and a
# steady open-loop rate, then kill -9 of one node, its restart, SIGSTOP of another for 5 s, and where network namespaces are, the third
# cut off for 5 s.
#
#   scripts/failover.sh
#
# Each node that fails has a third of the load's connections. For each of these a line: the window in which there were errors or answers
# over 100 ms (from when the first such request was due to the end of the last; with less than 1 s between them they are one window), how
# many, and what was lost or wrong. The first 2 s of a load, when its connections meet idle nodes, do not count. All keys are read back
# after each. Exit code 0 only if every window is under 1 s, the one before anything happens too, and nothing was lost or wrong.
#
#   RINGKV_FAILOVER_RATE      requests a second (2000), half of them puts
#   RINGKV_FAILOVER_PATIENCE  when callers give a silent connection up (300ms)
#   RINGKV_FAILOVER_LOAD      more flags for the load generator
#   RINGKV_FAILOVER_KEEP      a folder that gets the load generator's JSON of each load
#   RINGKV_BINARY, RINGKV_LOADGEN   the programs (target/release/…, built)
set -euo pipefail
cd "$(dirname "$0")/.."
rate=${RINGKV_FAILOVER_RATE:-2000}
patience=${RINGKV_FAILOVER_PATIENCE:-300ms}
read -r -a more_load <<<"${RINGKV_FAILOVER_LOAD:-}"
if [ -z "${RINGKV_BINARY:-}" ] || [ -z "${RINGKV_LOADGEN:-}" ]; then
    cargo build --locked --release --quiet -p ringkv -p loadgen
fi
export RINGKV_BINARY=${RINGKV_BINARY:-target/release/ringkv}
load=${RINGKV_LOADGEN:-target/release/loadgen}
folder=$(mktemp -d "${TMPDIR:-/tmp}/ringkv-failover.XXXXXX")
export RINGKV_CLUSTER=$folder/cluster
load_pid=""
finish() {
    local code=$?
    [ -z "$load_pid" ] || kill -KILL "$load_pid" 2>/dev/null || true
    [ ! -e "$RINGKV_CLUSTER/cluster" ] || scripts/cluster.sh down || true
    if [ "$code" -eq 0 ]; then rm -rf "$folder"; else echo "kept for a look: $folder" >&2; fi
}
trap finish EXIT

scripts/cluster.sh up 3 "$RINGKV_CLUSTER" | tee "$folder/up"
target=$(awk '/^ready / { print $2 }' "$folder/up")
verdict=0

# begin NAME SECONDS: starts a load. All go on from one journal, so that no acknowledged write of an earlier one is forgotten.
begin() {
    name=$1 seconds=$2
    : >"$folder/events"
    "$load" --target "$target" --level quorum --rate "$rate" --mix get=50,put=48,del=2 --keys 20k --value 100 --conns 12 --warmup 0 \
        --seconds "$seconds" --patience "$patience" --check --journal "$folder/journal" --quiet --json "$folder/$name.json" \
        ${more_load[@]+"${more_load[@]}"} >"$folder/load.txt" 2>&1 &
    load_pid=$!
    began=$(date +%s%3N)
}

# event SECONDS WHAT WORD NODE: at so many seconds of the load this happens to a node.
event() {
    local left=$((began + $1 * 1000 - $(date +%s%3N)))
    [ "$left" -le 0 ] || sleep "$((left / 1000)).$(printf %03d $((left % 1000)))"
    echo "$(date +%s%3N) $2" >>"$folder/events"
    scripts/cluster.sh "$3" "$4"
}

# judge: waits for the load's end, and shows what it noticed.
judge() {
    local code=0
    if [ $(($(date +%s%3N) - began)) -ge $(((seconds - 2) * 1000)) ]; then
        echo "$name: its end came too late for the load to see" >&2
        verdict=1
    fi
    wait "$load_pid" || code=$?
    load_pid=""
    [ "$code" -le 1 ] || { echo "the load generator ended with code $code:" >&2; tail -n 20 "$folder/load.txt" >&2; exit 1; }
    [ -z "${RINGKV_FAILOVER_KEEP:-}" ] || cp "$folder/$name.json" "$RINGKV_FAILOVER_KEEP/"
    python3 - "$folder/$name.json" "$folder/events" <<'END' || verdict=1
import json, sys

JOINED_S = 1.0
BOUND_S = 1.0
# The first requests of all connections come at once to nodes that were idle.
SETTLED_S = 2.0
load = json.load(open(sys.argv[1]))
start_ms = load["started_unix_ms"]
events = [(0.0, "before")]
for line in open(sys.argv[2]):
    ms, what = line.rstrip("\n").split(" ", 1)
    events.append(((int(ms) - start_ms) / 1000, what))
slots = load["availability"]["slots"]
slot_s = load["availability"]["slot_ms"] / 1000

def event_of(at_s):
    return max(index for index, (since, _) in enumerate(events) if since <= max(at_s, 0.0))

ok = load["lost"] == 0 and load["wrong"] == 0 and load["died"] is None
for index, (since, what) in enumerate(events):
    # What was in flight at an event was due before it, and ends after it.
    own = []
    for first, last in sorted(slot["bad_s"] for slot in slots if "bad_s" in slot):
        if event_of(last) != index or last < SETTLED_S:
            continue
        if own and first < own[-1][1] + JOINED_S:
            own[-1][1] = max(own[-1][1], last)
        else:
            own.append([first, last])
    of = [slot for slot in slots if slot["at_s"] >= SETTLED_S and event_of(slot["at_s"] + slot_s) == index]
    errors = sum(sum(slot.get("errors", {}).values()) for slot in of)
    total = {field: sum(slot.get(field, 0) for slot in of) for field in ("answered", "slow", "lost", "wrong")}
    window = max((last - first for first, last in own), default=0.0)
    ok = ok and window < BOUND_S
    others = f" (and {len(own) - 1} more)" if len(own) > 1 else ""
    print(f"{what:<10} window {window * 1000:5.0f} ms{others} · errors {errors} · over 100 ms {total['slow']}"
          f" · answered {total['answered']} · lost {total['lost']} · wrong {total['wrong']}")
kinds = ", ".join(f"{kind} {count}" for kind, count in load["errors"].items()) or "none"
print(f"           errors: {kinds} · writes of unknown outcome {load['unknown']} · longest gap {load['longest_gap_ms']:.0f} ms"
      f" · judged {load['checked']}, read back too: lost {load['lost']}, wrong {load['wrong']}")
sys.exit(0 if ok else 1)
END
}

begin kill 20
event 5 "kill -9" kill 3
event 10 "restart" restart 3
judge
begin stop 15
event 5 "SIGSTOP" stop 2
event 10 "SIGCONT" cont 2
judge
if scripts/cluster.sh heal 1 2>/dev/null; then
    begin partition 17
    event 5 "partition" partition 1
    event 10 "heal" heal 1
    judge
else
    echo "no network namespaces here: no node is cut off"
fi
summary="every window is under 1 s, nothing is lost or wrong"
[ "$verdict" -eq 0 ] || summary="a window is too long, or something is lost or wrong"
echo "$summary"
[ "$verdict" -eq 0 ]
