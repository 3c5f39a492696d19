#!/usr/bin/env bash
# A cluster of real processes on this machine, and what may happen to its nodes.
#
#   scripts/cluster.sh up N DIR       founds N nodes with their data in DIR; prints their addresses, "ready native://H:P,H:P,…" last
#   scripts/cluster.sh kill I         kill -9 of node I (1 to N)
#   scripts/cluster.sh stop I         SIGSTOP: it stands still with its sockets open; `cont I` lets it go on
#   scripts/cluster.sh restart I      ends node I if it runs, and starts it again on its data
#   scripts/cluster.sh partition I    cuts node I off from the others and from clients, silently; `heal I` joins it again
#   scripts/cluster.sh wipe I         kills node I and removes its data
#   scripts/cluster.sh status         a line a node
#   scripts/cluster.sh down           ends all nodes as an operator does; the data stays
#
# Each returns when its effect is there: `up` when every node gets answers from all replicas, `restart` when QUORUM works through the
# node, `heal` likewise. Where root may make network namespaces, each node has one, with a veth on a bridge; elsewhere all are on loopback,
# and `partition` exits with 3. Other exit codes: 1 failed, 2 wrong words.
#
#   RINGKV_CLUSTER         DIR for the words after `up`; without it the last `up` of this user counts
#   RINGKV_CLUSTER_NET     netns or loopback, instead of what is possible
#   RINGKV_CLUSTER_FLAGS   more flags for each node; the default memory is 64MiB, on one core each
#   RINGKV_BINARY          the program (target/release/ringkv, built if it is not there)
set -euo pipefail
last_up=${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}/ringkv-cluster.$UID
patience_s=90

usage() {
    sed -n '2,/^set -/s/^# \{0,1\}//p' "$0" | sed '/^set -/d' >&2
    exit 2
}

fail() {
    echo "cluster.sh: $*" >&2
    exit 1
}

# within SECONDS COMMAND...: until the command succeeds; fails when it does not in time.
within() {
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.02
    done
}

# The state: what `up` settled, in DIR/cluster, as words without quotes.

load_state() {
    local name value
    dir=${RINGKV_CLUSTER:-}
    if [ -z "$dir" ]; then
        [ -r "$last_up" ] || fail "no cluster is up; begin with: scripts/cluster.sh up 3 DIR"
        dir=$(<"$last_up")
    fi
    [ -r "$dir/cluster" ] || fail "no cluster is up in $dir"
    while IFS='=' read -r name value; do
        case $name in nodes | net | port | bridge | subnet | binary) printf -v "$name" '%s' "$value" ;; esac
    done <"$dir/cluster"
}

save_state() {
    local name
    for name in nodes net port bridge subnet binary; do printf '%s=%s\n' "$name" "${!name}"; done >"$dir/cluster"
    # Who names the folder each time leaves the last one that was not named.
    [ -n "${RINGKV_CLUSTER:-}" ] || printf '%s\n' "$dir" >"$last_up"
}

host_of() { if [ "$net" = netns ]; then echo "$subnet.$1"; else echo 127.0.0.1; fi; }
port_of() { if [ "$net" = netns ]; then echo "$port"; else echo $((port + 100 * ($1 - 1))); fi; }
address_of() { echo "$(host_of "$1"):$(port_of "$1")"; }
space_of() { echo "$bridge-$1"; }
veth_of() { echo "${bridge}v$1"; }

# The processes: a pid counts only with the start time that it had, so that nobody else's process is ever hit.

# stat_of PID: its state and its start time; nothing where there is none.
stat_of() {
    local stat
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    read -r -a stat <<<"${stat##*) }"
    echo "${stat[0]} ${stat[19]}"
}

# process_of I: sets $pid and $state (a letter of the kernel's); fails where the node does not run.
process_of() {
    local started now
    pid="" state=""
    [ -r "$dir/node$1.pid" ] || return 1
    read -r pid started <"$dir/node$1.pid"
    now=$(stat_of "$pid") || return 1
    state=${now% *}
    [ "${now#* }" = "$started" ] && [ "$state" != Z ] && [ "$state" != X ]
}

is_gone() { ! process_of "$1"; }
is_stopped() { process_of "$1" && [ "$state" = T ]; }
is_going() { process_of "$1" && [ "$state" != T ]; }

end_node() {
    process_of "$1" || return 0
    kill -KILL "$pid" 2>/dev/null || true
    within 20 is_gone "$1" || fail "node $1 (pid $pid) does not go"
}

first_cpus() {
    local list part
    list=$(awk '/^Cpus_allowed_list:/ { print $2 }' /proc/self/status)
    cpus=()
    for part in ${list//,/ }; do
        for ((cpu = ${part%-*}; cpu <= ${part#*-}; cpu++)); do cpus+=("$cpu"); done
    done
}

start_node() {
    local i=$1 at founders="" words=() more
    for ((at = 1; at <= nodes; at++)); do founders+="${founders:+,}$at=$(address_of "$at")"; done
    first_cpus
    at=$(port_of "$i")
    [ "$net" = netns ] && words+=(ip netns exec "$(space_of "$i")")
    words+=("$binary" --data "$dir/node$i" --host "$(host_of "$i")" --port "$at" --admin-port $((at + 80)) --gossip-port $((at + 90)))
    words+=(--node-id "$i" --founders "$founders")
    [ "$net" = netns ] && words+=(--insecure --cluster-key "$dir/key")
    read -r -a more <<<"${RINGKV_CLUSTER_FLAGS:-}"
    case " ${more[*]} " in *" --cores "*) ;; *) words+=(--cores "${cpus[(i - 1) % ${#cpus[@]}]}") ;; esac
    case " ${more[*]} " in *" --memory "*) ;; *) words+=(--memory 64MiB) ;; esac
    case " ${more[*]} " in *" --spin-us "*) ;; *) words+=(--spin-us 0) ;; esac
    : >"$dir/node$i.out"
    # In a session of its own: a Ctrl-C meant for a script is not for the nodes.
    setsid "${words[@]}" ${more[@]+"${more[@]}"} >"$dir/node$i.out" 2>>"$dir/node$i.err" </dev/null &
    pid=$!
    disown "$pid"
    at=$(stat_of "$pid") || fail "node $i ended at once: $(tail -n 1 "$dir/node$i.err")"
    echo "$pid ${at#* }" >"$dir/node$i.pid"
}

is_ready() { grep -q '^ready ' "$dir/node$1.out" || is_gone "$1"; }

wait_ready() {
    within "$patience_s" is_ready "$1" || fail "node $1 is not ready after $patience_s s"
    process_of "$1" || fail "node $1 ended before it was ready: $(tail -n 1 "$dir/node$1.err")"
}

# answers I LEVEL: keys of several vnodes are read through node I at this level.
answers() {
    local key said
    for key in a b c d e f g h; do
        said=$(timeout 10 "$binary" get "cluster.sh:$key" --host "$(host_of "$1")" --port "$(port_of "$1")" --level "$2" 2>&1) && continue
        case $said in *"no such key"*) ;; *) return 1 ;; esac
    done
}

wait_answers() {
    within "$patience_s" answers "$1" "$2" || fail "node $1 gets no answers at $2 after $patience_s s"
}

# The network: a bridge with the address .254, a namespace and a veth a node.

can_netns() {
    [ "$(id -u)" -eq 0 ] && command -v ip >/dev/null || return 1
    local probe=rkvprobe$$
    ip netns add "$probe" 2>/dev/null || return 1
    local code=0
    ip link add "rkvp$$" type veth peer name eth0 netns "$probe" 2>/dev/null || code=1
    ip link del "rkvp$$" 2>/dev/null || true
    ip netns del "$probe" 2>/dev/null || true
    return "$code"
}

make_net() {
    local third i space veth
    for third in $(seq 0 255) none; do
        [ "$third" != none ] || fail "all of 10.213.0.0/16 is taken"
        bridge=rkv$third subnet=10.213.$third
        ip link add "$bridge" type bridge 2>/dev/null && break
    done
    ip addr add "$subnet.254/24" dev "$bridge"
    ip link set "$bridge" up
    for ((i = 1; i <= nodes; i++)); do
        space=$(space_of "$i") veth=$(veth_of "$i")
        ip netns add "$space"
        ip link add "$veth" type veth peer name eth0 netns "$space"
        ip link set "$veth" master "$bridge" up
        ip -n "$space" link set lo up
        ip -n "$space" addr add "$subnet.$i/24" dev eth0
        ip -n "$space" link set eth0 up
    done
}

remove_net() {
    local i
    [ "$net" = netns ] || return 0
    for ((i = 1; i <= nodes; i++)); do
        ip link del "$(veth_of "$i")" 2>/dev/null || true
        ip netns del "$(space_of "$i")" 2>/dev/null || true
    done
    ip link del "$bridge" 2>/dev/null || true
}

is_cut() { [ "$net" = netns ] && ! ip -o link show "$(veth_of "$1")" | grep -q " master $bridge "; }

# A port such that all that the nodes need on loopback is free.
find_port() {
    local tries i above
    for ((tries = 0; tries < 100; tries++)); do
        port=$((12000 + RANDOM % 160 * 100))
        for ((i = 0; i < nodes; i++)); do
            for above in 0 80 90; do
                # Whoever answers there has it.
                if (: <"/dev/tcp/127.0.0.1/$((port + 100 * i + above))") 2>/dev/null; then continue 3; fi
            done
        done
        return 0
    done
    fail "no free ports"
}

# The words.

up() {
    nodes=$1 dir=$2 net=${RINGKV_CLUSTER_NET:-} bridge="" subnet="" port=7400
    case $nodes in [1-9] | [1-9][0-9]) ;; *) fail "up N DIR: N lies between 1 and 99" ;; esac
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    [ ! -e "$dir/cluster" ] || fail "a cluster is up in $dir; end it with: RINGKV_CLUSTER=$dir scripts/cluster.sh down"
    binary=${RINGKV_BINARY:-}
    if [ -z "$binary" ]; then
        cd "$(dirname "$0")/.."
        binary=target/release/ringkv
        [ -x "$binary" ] || cargo build --locked --release --quiet -p ringkv
    fi
    binary=$(realpath -- "$binary")
    case $net in
        "") if can_netns; then net=netns; else net=loopback; fi ;;
        netns) can_netns || fail "no network namespaces can be made here" ;;
        loopback) ;;
        *) fail "RINGKV_CLUSTER_NET is netns or loopback" ;;
    esac
    trap 'give_up' EXIT
    if [ "$net" = netns ]; then
        head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$dir/key"
        chmod 600 "$dir/key"
        make_net
    else
        find_port
    fi
    save_state
    local i addresses=""
    for ((i = 1; i <= nodes; i++)); do start_node "$i"; done
    for ((i = 1; i <= nodes; i++)); do wait_ready "$i"; done
    for ((i = 1; i <= nodes; i++)); do
        wait_answers "$i" all
        addresses+="${addresses:+,}$(address_of "$i")"
    done
    trap - EXIT
    status
    echo "ready native://$addresses"
}

# An `up` that does not come to its end leaves nothing behind but the data and what the nodes said.
give_up() {
    local i
    for ((i = 1; i <= nodes; i++)); do end_node "$i"; done
    remove_net
    rm -f "$dir/cluster"
}

status() {
    local i word cut
    for ((i = 1; i <= nodes; i++)); do
        word=running cut=""
        if ! process_of "$i"; then
            word=dead pid="-"
        elif [ "$state" = T ]; then
            word=stopped
        fi
        if is_cut "$i"; then cut=" cut"; fi
        echo "node $i $word$cut pid=$pid native=$(address_of "$i") admin=$(host_of "$i"):$(($(port_of "$i") + 80)) data=$dir/node$i"
    done
}

partition() {
    if [ "$net" != netns ]; then
        echo "cluster.sh: no network namespaces here, so node $1 cannot be cut off" >&2
        exit 3
    fi
    # Off the bridge, but with its link up: what is sent vanishes, and nobody is told.
    ip link set "$(veth_of "$1")" nomaster
}

heal() {
    if [ "$net" != netns ]; then
        echo "cluster.sh: no network namespaces here, so no node is cut off" >&2
        exit 3
    fi
    ip link set "$(veth_of "$1")" master "$bridge"
    # A node that is dead or stands still has nothing to answer.
    if ! is_going "$1"; then return 0; fi
    wait_answers "$1" quorum
}

down() {
    local i
    for ((i = 1; i <= nodes; i++)); do
        process_of "$i" || continue
        kill -TERM "$pid" 2>/dev/null || true
        kill -CONT "$pid" 2>/dev/null || true
    done
    for ((i = 1; i <= nodes; i++)); do within 15 is_gone "$i" || end_node "$i"; done
    remove_net
    rm -f "$dir/cluster" "$dir"/node*.pid "$dir/key"
    if [ -r "$last_up" ] && [ "$(<"$last_up")" = "$dir" ]; then rm -f "$last_up"; fi
}

word=${1:-}
case $word:$# in
    up:3) up "$2" "$3"; exit ;;
    status:1 | down:1) load_state; "$word"; exit ;;
    kill:2 | stop:2 | cont:2 | restart:2 | partition:2 | heal:2 | wipe:2) ;;
    *) usage ;;
esac
load_state
i=$2
case $i in '' | *[!0-9]*) usage ;; esac
if [ "$i" -lt 1 ] || [ "$i" -gt "$nodes" ]; then fail "there is no node $i; there are $nodes"; fi
case $word in
    kill) end_node "$i" ;;
    stop)
        process_of "$i" || fail "node $i does not run"
        kill -STOP "$pid"
        within 20 is_stopped "$i" || fail "node $i does not stop"
        ;;
    cont)
        process_of "$i" || fail "node $i does not run"
        kill -CONT "$pid"
        within 20 is_going "$i" || fail "node $i does not go on"
        ;;
    restart)
        end_node "$i"
        start_node "$i"
        wait_ready "$i"
        if ! is_cut "$i"; then wait_answers "$i" quorum; fi
        ;;
    partition | heal) "$word" "$i" ;;
    wipe)
        end_node "$i"
        rm -rf "${dir:?}/node$i"
        ;;
esac
