#!/usr/bin/env bash
# A real node under checked load, killed with SIGKILL at a random moment, N times on the same data.
#
#   scripts/crash.sh [N]       100 rounds unless told otherwise
#
# Each round starts the node (on one core, then on all, by turns, so that logs are replayed by other cores than wrote them), has the load
# generator read back every key that was ever written, puts it under load again, and kills it. The load generator keeps a journal
# of what was issued and acknowledged. `lost`: an acknowledged write is absent or older than it may be; `wrong`: a value that nobody wrote.
# The last line sums up: "rounds N · acknowledged A · lost L · wrong W"; the exit code is 0 only if both are 0.
#
#   RINGKV_CRASH_SEED     moments of the kills (random; printed)
#   RINGKV_CRASH_LOAD     more flags for the load generator
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/node.sh
rounds=${1:-100}
case $rounds in '' | *[!0-9]* | 0) echo "usage: scripts/crash.sh [N], N at least 1" >&2; exit 2 ;; esac
seed=${RINGKV_CRASH_SEED:-$(($(date +%s) % 32768))}
RANDOM=$seed
read -r -a more_load <<<"${RINGKV_CRASH_LOAD:-}"

cargo build --locked --release --quiet -p ringkv -p loadgen
node=target/release/ringkv load=target/release/loadgen
folder=$(mktemp -d "${TMPDIR:-/tmp}/ringkv-crash.XXXXXX")
load_pid=""
finish() {
    local code=$?
    kill_node
    [ -z "$load_pid" ] || kill -KILL "$load_pid" 2>/dev/null || true
    if [ "$code" -eq 0 ]; then rm -rf "$folder"; else echo "kept for a look: $folder (seed $seed)" >&2; fi
}
trap finish EXIT

acknowledged=0 lost=0 wrong=0
cores=$(awk '/^Cpus_allowed_list:/ { print $2 }' /proc/self/status)
first_core=${cores%%[-,]*}

# Adds a result of the load generator to the sums: its lost and wrong, and the writes that were acknowledged.
add_up() {
    local figures
    figures=$(python3 - "$1" <<'END'
import json, sys
result = json.load(open(sys.argv[1]))
writes = sum(result["ops"].get(kind, {}).get("count", 0) for kind in ("put", "del"))
print(int(writes), int(result["lost"]), int(result["wrong"]))
END
    )
    read -r writes l w <<<"$figures"
    acknowledged=$((acknowledged + writes)) lost=$((lost + l)) wrong=$((wrong + w))
}

# Starts the node for this round; odd rounds on one core, even ones on all.
start_round() {
    local list=$cores
    [ $(($1 % 2)) -eq 0 ] || list=$first_core
    start_node "$node" "$folder/data" --memory 128MiB --cores "$list"
}

# Reads back every key that the journal knows.
read_back() {
    local code=0
    [ -f "$folder/journal" ] || return 0
    "$load" --target "native://$node_host:$node_port" --verify-journal "$folder/journal" --quiet --json "$folder/verify.json" \
        >"$folder/verify.txt" 2>&1 || code=$?
    if [ "$code" -gt 1 ]; then
        echo "reading back ended with code $code:" >&2
        tail -n 20 "$folder/verify.txt" "$folder/data.log/err" >&2
        exit 1
    fi
    add_up "$folder/verify.json"
    [ "$code" -eq 0 ] || { echo "round $1: lost or wrong after the restart:" >&2; tail -n 20 "$folder/verify.txt" >&2; }
}

for ((round = 1; round <= rounds; round++)); do
    start_round "$round"
    read_back "$round"
    "$load" --target "native://$node_host:$node_port" --closed --pipeline 8 --conns 8 --mix get=50,put=45,del=5 --keys 50k \
        --value 64..4K --warmup 0 --seconds 60 --seed "$round" --check --journal "$folder/journal" --quiet --json "$folder/load.json" \
        "${more_load[@]}" >"$folder/load.txt" 2>&1 &
    load_pid=$!
    sleep "$((RANDOM % 2)).$((RANDOM % 10))$((RANDOM % 10))"
    kill_node
    code=0
    wait "$load_pid" || code=$?
    load_pid=""
    # 3: the server went away, as it should; 1: it did, and answers were wrong. A kill may come before the first connection (4).
    case $code in
        1 | 3) add_up "$folder/load.json" ;;
        4) ;;
        *) echo "the load generator ended with code $code:" >&2; tail -n 20 "$folder/load.txt" >&2; exit 1 ;;
    esac
    [ $((round % 10)) -ne 0 ] || echo "round $round · acknowledged $acknowledged · lost $lost · wrong $wrong"
done
start_round "$((rounds + 1))"
read_back "$((rounds + 1))"
stop_node || { echo "the node ended with code $?" >&2; exit 1; }
echo "rounds $rounds · acknowledged $acknowledged · lost $lost · wrong $wrong"
[ "$lost" -eq 0 ] && [ "$wrong" -eq 0 ] && [ "$acknowledged" -gt 0 ]
