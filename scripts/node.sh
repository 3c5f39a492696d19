# Sourced by other scripts: one node in the background, on a port of its own choice.
#
#   start_node BINARY DATA [FLAG...]   sets node_pid, node_host, node_port, node_admin; fails after 30 s without the ready line
#   stop_node                          ends it as an operator does, and gives its exit code
#   kill_node                          ends it as a power cut does (kill -9 by its pid)
#
# With RINGKV_IO in the environment the node runs on that (uring or epoll).
# shellcheck shell=bash disable=SC2034

node_pid=""

start_node() {
    local binary=$1 data=$2 waited=0 line=""
    shift 2
    mkdir -p "$data.log"
    : >"$data.log/out"
    "$binary" --data "$data" --port 0 --admin-port 0 ${RINGKV_IO:+--io "$RINGKV_IO"} "$@" >"$data.log/out" 2>>"$data.log/err" &
    node_pid=$!
    while [ -z "$line" ]; do
        line=$(grep -m 1 '^ready ' "$data.log/out" || true)
        [ -n "$line" ] && break
        if ! kill -0 "$node_pid" 2>/dev/null || [ "$waited" -ge 600 ]; then
            echo "the node did not become ready:" >&2
            tail -n 20 "$data.log/out" "$data.log/err" >&2
            return 1
        fi
        sleep 0.05
        waited=$((waited + 1))
    done
    local native=${line#*native=}
    native=${native%% *}
    node_admin=${line#*admin=}
    node_admin=${node_admin%% *}
    node_host=${native%:*}
    node_port=${native##*:}
}

stop_node() {
    local pid=$node_pid
    node_pid=""
    [ -n "$pid" ] || return 0
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid"
}

kill_node() {
    local pid=$node_pid
    node_pid=""
    [ -n "$pid" ] || return 0
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}
