#!/usr/bin/env bash
# What a caller notices when a node comes back that has missed a million writes: three nodes by scripts/cluster.sh on loopback, one of them
# killed while the load generator fills all keys at QUORUM, then started again under a steady open-loop load in check mode.
#
#   scripts/return.sh
#
# Prints how long after its start nothing is kept for the node any more; then ends the two others and reads every key from the node that was
# away, alone, at ONE: nothing acknowledged may lack there, so that it was equal. And errors and the p99 of gets and puts before, in the
# worst five seconds meanwhile, and after. Exit code 0 only if nothing was kept after 60 s, no request failed, nothing was lost or wrong, and
# p99 meanwhile is at most twice that before (or under 5 ms).
#
#   RINGKV_RETURN_RATE    requests a second (2000), half of them puts
#   RINGKV_RETURN_KEYS    keys, each of which is written once while the node is away (1M)
#   RINGKV_RETURN_VALUE   bytes of a value (100)
#   RINGKV_RETURN_KEEP    a folder that gets the load generator's JSON of each load
#   RINGKV_BINARY, RINGKV_LOADGEN   the programs (target/release/…, built)
set -euo pipefail
cd "$(dirname "$0")/.."
rate=${RINGKV_RETURN_RATE:-2000}
keys=${RINGKV_RETURN_KEYS:-1M}
value=${RINGKV_RETURN_VALUE:-100}
if [ -z "${RINGKV_BINARY:-}" ] || [ -z "${RINGKV_LOADGEN:-}" ]; then
    cargo build --locked --release --quiet -p ringkv -p loadgen
fi
export RINGKV_BINARY=${RINGKV_BINARY:-target/release/ringkv}
load=${RINGKV_LOADGEN:-target/release/loadgen}
folder=$(mktemp -d "${TMPDIR:-/tmp}/ringkv-return.XXXXXX")
export RINGKV_CLUSTER=$folder/cluster RINGKV_CLUSTER_NET=loopback
load_pid="" watch_pid=""
finish() {
    local code=$?
    [ -z "$watch_pid" ] || kill "$watch_pid" 2>/dev/null || true
    [ -z "$load_pid" ] || kill -KILL "$load_pid" 2>/dev/null || true
    [ ! -e "$RINGKV_CLUSTER/cluster" ] || scripts/cluster.sh down || true
    if [ "$code" -eq 0 ]; then rm -rf "$folder"; else echo "kept for a look: $folder" >&2; fi
}
trap finish EXIT

scripts/cluster.sh up 3 "$RINGKV_CLUSTER" >"$folder/up"
target=$(awk '/^ready / { print $2 }' "$folder/up")
first=${target#native://}
first=${first%%,*}
port=${first##*:}

# with NAME FLAGS...: a load to its end. All go on from one journal, so that no acknowledged write of an earlier one is forgotten.
with() {
    local name=$1
    shift
    "$load" --quiet --json "$folder/$name.json" "$@" >"$folder/$name.txt" 2>&1 &
    load_pid=$!
    local code=0
    wait "$load_pid" || code=$?
    load_pid=""
    [ "$code" -le 1 ] || { echo "the load generator ended with code $code:" >&2; tail -n 20 "$folder/$name.txt" >&2; exit 1; }
    [ -z "${RINGKV_RETURN_KEEP:-}" ] || cp "$folder/$name.json" "$RINGKV_RETURN_KEEP/"
}
journal=(--keys "$keys" --value "$value" --check --journal "$folder/journal")
# One address: a load of several would read all keys back at its end.
steady=(--target "native://$first" --level quorum --rate "$rate" --mix "get=50,put=50" --conns 12 "${journal[@]}")

with before "${steady[@]}" --seconds 10
scripts/cluster.sh kill 3
with missed --target "native://$first" --level quorum --fill --conns 8 --pipeline 16 "${journal[@]}"
# figure PORT NAME: the sum of a metric over cores.
figure() {
    {
        exec 9<>"/dev/tcp/127.0.0.1/$1"
        printf 'GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n' >&9
        awk -v name="$2" '$1 ~ "^" name "($|{)" { sum += $NF } END { printf "%d\n", sum }' <&9
        exec 9<&-
    } 2>/dev/null || echo -1
}
kept=$(($(figure $((port + 80)) ringkv_hints) + $(figure $((port + 180)) ringkv_hints)))
began=$(date +%s%3N)
scripts/cluster.sh restart 3
all_sent() { [ "$(figure $((port + 80)) ringkv_hints)$(figure $((port + 180)) ringkv_hints)" = 00 ]; }
# What stays so for three seconds; the time is that at which it began.
watch() {
    local since=""
    until [ -n "$since" ] && [ $(($(date +%s%3N) - since)) -ge 3000 ]; do
        if all_sent; then since=${since:-$(date +%s%3N)}; else since=""; fi
        sleep 0.2
    done
    echo "$since" >"$folder/equal-at"
}
watch &
watch_pid=$!
loads=0
until [ -e "$folder/equal-at" ]; do
    loads=$((loads + 1))
    with "meanwhile$loads" "${steady[@]}" --seconds 5
    [ $(($(date +%s%3N) - began)) -lt 600000 ] || { echo "the node does not become equal" >&2; exit 1; }
done
wait "$watch_pid"
watch_pid=""
took_ms=$(($(cat "$folder/equal-at") - began))
given=$(figure $((port + 280)) ringkv_repair_received_total)
with after "${steady[@]}" --seconds 5
# What a QUORUM of the others has may be on its way to the third for a moment.
sleep 2
scripts/cluster.sh kill 1
scripts/cluster.sh kill 2
with alone --target "native://${target##*,}" --level one --verify-journal "$folder/journal" --conns 8
python3 - "$folder" "$took_ms" "$loads" "$kept" "$given" <<'END'
import json, sys

folder, took_ms, loads, kept, given = sys.argv[1], *map(int, sys.argv[2:])
report = lambda name: json.load(open(f"{folder}/{name}.json"))
missed = report("missed")["ops"]["put"]["count"]
print(f"{missed} writes missed, {kept} kept for the node as hints; equal after {took_ms / 1000:.1f} s, {given} cells of them by comparing")
ok, p99 = took_ms <= 60_000, {}
for name, parts in (("before", ["before"]), ("meanwhile", [f"meanwhile{at + 1}" for at in range(loads)]), ("after", ["after"]), ("alone", ["alone"])):
    reports = [report(part) for part in parts]
    errors, lost, wrong = (sum(of(load) for load in reports) for of in (lambda load: sum(load["errors"].values()), lambda load: load["lost"], lambda load: load["wrong"]))
    # The worst five seconds, and the worse of gets and puts.
    p99[name] = max(op["p99_us"] for load in reports for op in load["ops"].values()) / 1000
    ok = ok and errors == lost == wrong == 0 and all(load["died"] is None for load in reports)
    print(f"{name:<10} p99 {p99[name]:8.2f} ms · errors {errors} · lost {lost} · wrong {wrong}")
ok = ok and p99["meanwhile"] <= max(2 * p99["before"], 5.0)
print("a return goes unnoticed" if ok else "a return is noticed")
sys.exit(0 if ok else 1)
END
