#!/usr/bin/env bash
# The one check, for people and for CI: if it passes here, it passes there.
#
#   scripts/check.sh            all steps
#   scripts/check.sh NAME...    only these
#
# Each step's output goes to target/check/NAME.log and is shown when the step fails; the others run on. The last line counts
# tests and steps: "N passed, N failed". With CI=true a skipped step is a failed one.
#
#   RINGKV_SEEDS           seeds that the simulator runs (200)
#   RINGKV_CLUSTER_SEEDS   seeds of clusters, fixed ones and as many fresh ones (100)
#   RINGKV_NEXT_SEEDS      seeds of clusters of programs of two versions (60)
set -euo pipefail
cd "$(dirname "$0")/.."
logs=target/check
mkdir -p "$logs"
only=("$@")
passed=0 failed=0 skipped=0

wanted() {
    [ ${#only[@]} -eq 0 ] && return 0
    local name
    for name in "${only[@]}"; do [ "$name" = "$1" ] && return 0; done
    return 1
}

# step NAME SECONDS COMMAND...: a step passes if its command does, in time. Tests that it ran count one by one.
step() {
    local name=$1 seconds=$2 log=$logs/$1.log began=$SECONDS code=0 counts
    shift 2
    wanted "$name" || return 0
    timeout --kill-after=10 "$seconds" "$@" >"$log" 2>&1 </dev/null || code=$?
    counts=$(awk '/^test result:/ { for (i = 2; i <= NF; i++) { if ($i == "passed;") p += $(i - 1); if ($i == "failed;") f += $(i - 1) } }
        END { print p + 0, f + 0 }' "$log")
    local tests_passed=${counts% *} tests_failed=${counts#* } verdict=ok
    passed=$((passed + tests_passed))
    failed=$((failed + tests_failed))
    if [ "$code" -eq 0 ]; then
        passed=$((passed + 1))
    else
        # A step whose tests failed is counted by its tests.
        [ "$tests_failed" -gt 0 ] || failed=$((failed + 1))
        verdict="FAILED (code $code)"
        [ "$code" -eq 124 ] && verdict="FAILED (over $seconds s)"
    fi
    local detail=""
    [ $((tests_passed + tests_failed)) -gt 0 ] && detail="  $tests_passed tests passed, $tests_failed failed"
    printf '%-12s %5d s  %s%s\n' "$name" $((SECONDS - began)) "$verdict" "$detail"
    [ "$code" -eq 0 ] || { echo "--- $log, its end:"; tail -n 120 "$log"; echo "---"; }
}

skip() {
    wanted "$1" || return 0
    if [ "${CI:-}" = true ]; then
        failed=$((failed + 1))
        printf '%-12s          FAILED, must not be skipped here: %s\n' "$1" "$2"
    else
        skipped=$((skipped + 1))
        printf '%-12s          skipped: %s\n' "$1" "$2"
    fi
}

step format 60 cargo fmt --all --check
step clippy 600 cargo clippy --locked --workspace --all-targets --features ringkv/tokio -- -D warnings
step client 300 cargo check --locked -p ringkv --no-default-features --features client
step tokio 300 cargo check --locked -p ringkv --no-default-features --features tokio --examples
# The same program as if it were of the next version, for the test of a rolling upgrade. Its libraries are those that the tests need anyway.
step next 900 scripts/build_next.sh target/check/ringkv-next
[ ! -x target/check/ringkv-next ] || export RINGKV_NEXT=$PWD/target/check/ringkv-next
# Limits are some times what a step takes on two quiet cores, builds included: machines that CI runs on differ by a factor of three.
step tests 2100 cargo test --locked --workspace --no-fail-fast --features ringkv/tokio
# Whole nodes once more, on the driver for hosts that forbid io_uring.
step tests-epoll 900 env RINGKV_IO=epoll cargo test --locked --workspace --no-fail-fast --features ringkv/tokio \
    --test node --test session --test client --test cli --test control --test hostile --test tokio_node --test cluster

node=target/debug/ringkv
if ! command -v python3 >/dev/null; then
    skip python "there is no python3"
elif [ ! -f tests/ringkv_client.py ]; then
    skip python "there is no tests/ringkv_client.py"
else
    step python 300 scripts/with_node.sh "$node" python3 -B tests/ringkv_client.py HOST PORT
fi
# The load generator against the servers that its codecs are for. The same packages and features as above, so that nothing is built twice.
if command -v redis-server >/dev/null && command -v memcached >/dev/null; then
    step peers 600 cargo test --locked --workspace --features ringkv/tokio --test real_servers --no-fail-fast -- --ignored
else
    skip peers "there is no redis-server or no memcached"
fi
if ! command -v shellcheck >/dev/null; then
    skip scripts "there is no shellcheck"
else
    step scripts 120 shellcheck -x .ci/run scripts/*.sh
fi
if ! command -v systemd-analyze >/dev/null; then
    skip units "there is no systemd-analyze"
else
    step units 120 scripts/check_units.sh "$node"
fi
# With the assertions of a debug build, and nothing to build.
step simulator 900 "$node" sim --seeds "${RINGKV_SEEDS:-200}"
# The same seeds each time, and as many that nobody has seen; a failing one prints how to repeat it.
step clusters 600 "$node" sim --cluster --seeds "${RINGKV_CLUSTER_SEEDS:-100}"
# Programs of two versions in one cluster, made newer under way.
[ ! -x target/check/ringkv-next ] || step clusters-next 600 target/check/ringkv-next sim --cluster --seeds "${RINGKV_NEXT_SEEDS:-60}"
step clusters-new 600 "$node" sim --cluster --seeds "${RINGKV_CLUSTER_SEEDS:-100}" --first "$(date +%s)"

[ "$skipped" -eq 0 ] || echo "$skipped skipped"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
