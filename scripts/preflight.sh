#!/usr/bin/env bash
# Is this machine fit for a node? Each check with what was found, what is wanted, why, and the command that mends it.
#
#   scripts/preflight.sh [--data DIR] [--cores LIST] [--binary FILE] [--strict] [--json]
#
#   --data DIR      the node's data folder, made or not (/var/lib/ringkv)
#   --cores LIST    the CPUs of its data cores, as in 0,2-5 (every CPU allowed)
#   --binary FILE   the node, which looks by `ringkv probe` where a script cannot (target/release/ringkv, then the one in PATH)
#   --strict        a warning fails too
#   --json          one JSON object instead of lines
#
# Changes nothing, and needs no rights: what this user, virtual machine or container does not show is "not visible here", and never fails.
# FAIL is what a node cannot do without, or what could cost acknowledged data; WARN is what makes it slower. Limits (memlock, open files)
# are those of this shell; ringkv.service brings its own. Exit codes: 0 fit, 1 not, 2 the command line.
#
#   RINGKV_SYSROOT   stands for /: a folder of plain files, for tests
set -euo pipefail
here=$(dirname "$(realpath -- "$0")")
# shellcheck source=scripts/host.sh
. "$here/host.sh"

usage() {
    sed -n '2,/^set -/ { s/^# \{0,1\}//; /^set -/d; p }' "$0"
}

data=/var/lib/ringkv cpus="" binary="" strict="" json=""
while [ $# -gt 0 ]; do
    case $1 in
        --data | --cores | --binary)
            [ $# -ge 2 ] || { echo "preflight.sh: $1 wants a word after it" >&2; exit 2; }
            case $1 in --data) data=$2 ;; --cores) cpus=$2 ;; *) binary=$2 ;; esac
            shift
            ;;
        --strict) strict=1 ;;
        --json) json=1 ;;
        --help | -h) usage; exit 0 ;;
        *) echo "preflight.sh: $1 is not known; see --help" >&2; exit 2 ;;
    esac
    shift
done
if [ -z "$cpus" ]; then allowed_cpus || true; cpus=$REPLY; fi
numbers "$cpus" || { echo "preflight.sh: $cpus is no list of CPUs" >&2; exit 2; }
cores=${#numbers[@]}
core_numbers=" ${numbers[*]} "

# ----------------------------------------------------------------------------------------------------------------------------------
# Rows: status (ok, warn, fail, unseen), name, found, wanted, why, the command that mends it.

rows=() ok=0 warn=0 fail=0 unseen=0
row() {
    printf -v "$1" %d $((${!1} + 1))
    rows+=("$1" "$2" "$3" "$4" "$5" "$6")
}

# unseen NAME WANTED WHY: for what this host does not show.
unseen() {
    row unseen "$1" "not visible here" "$2" "$3" ""
}

# at_least FOUND WANTED: whether a number, or `unlimited`, is as large.
at_least() {
    [ "$1" = unlimited ] || { [[ $1 =~ ^[0-9]+$ ]] && [ "$1" -ge "$2" ]; }
}

# ----------------------------------------------------------------------------------------------------------------------------------
# What the node finds by doing it: its lines as ${fact[NAME]}; those of one name are joined by "; ".

declare -A fact=()
look() {
    local candidate
    if [ -n "$binary" ]; then
        ask "$binary" || { echo "preflight.sh: $binary is no node that knows the word probe" >&2; exit 2; }
        return
    fi
    for candidate in "$here/../target/release/ringkv" "$here/../target/debug/ringkv" "$(command -v ringkv || true)"; do
        if [ -x "$candidate" ] && ask "$candidate"; then return; fi
    done
}

# ask BINARY: takes its facts in; fails if it has none (an older node).
ask() {
    local name text
    while read -r name text; do
        [ -z "$name" ] || fact[$name]=${fact[$name]:+${fact[$name]}; }$text
    done < <("$1" probe "$data" 2>/dev/null || true)
    [ ${#fact[@]} -gt 0 ]
}

kernel() {
    local why="buffer rings, multishot receive and deferred task run of io_uring are there since 6.1"
    if ! first_line "$sysroot/proc/sys/kernel/osrelease"; then unseen kernel "6.1 or later" "$why"; return; fi
    local found=$REPLY major minor
    IFS=.- read -r major minor _ <<<"$found"
    if [[ $major =~ ^[0-9]+$ && $minor =~ ^[0-9]+$ ]] && { [ "$major" -gt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -ge 1 ]; }; }; then
        row ok kernel "$found" "6.1 or later" "$why" ""
    else
        row fail kernel "$found" "6.1 or later" "$why" "install a newer kernel (Debian: apt install -t bookworm-backports linux-image-amd64)"
    fi
}

rings() {
    local why="without it a node serves on epoll and file threads, which cost more a request and a disk access" mend="sysctl -w kernel.io_uring_disabled=0"
    if ! first_line "$sysroot/proc/sys/kernel/io_uring_disabled"; then
        unseen "io_uring policy" "0" "before Linux 6.6 there is no switch; the next row tells"
    else
        case $REPLY in
            0) row ok "io_uring policy" 0 0 "$why" "" ;;
            1) row warn "io_uring policy" "1 (only for privileged users and one group)" 0 "the service's user may not have it" "$mend" ;;
            *) row warn "io_uring policy" "$REPLY (off)" 0 "$why" "$mend" ;;
        esac
    fi
    case ${fact[io_uring]:-} in
        "") unseen io_uring "a ring can be set up" "$why; cargo build --release makes the node that tries it" ;;
        ok) row ok io_uring "a ring was set up" "a ring can be set up" "$why" "" ;;
        *) row warn io_uring "${fact[io_uring]}" "a ring can be set up" "$why" \
            "$mend; in a container a seccomp profile with io_uring_setup, io_uring_enter, io_uring_register" ;;
    esac
    case ${fact[io_uring_missing]:-unknown} in
        unknown*) unseen "io_uring operations" "all that a node uses" "a node does nothing by other calls while it serves" ;;
        none) row ok "io_uring operations" all "all that a node uses" "a node does nothing by other calls while it serves" "" ;;
        *) row warn "io_uring operations" "missing: ${fact[io_uring_missing]}" "all that a node uses" "$why" "install Linux 6.1 or later" ;;
    esac
    if [ -n "${fact[io_uring_slower]:-}" ]; then
        row warn "io_uring speed" "${fact[io_uring_slower]}" "nothing is done the slow way" "each is a system call or a lookup more" \
            "install the kernel that is named, raise the limit that is named"
    fi
}

limits() {
    local why="rings and registered buffers are locked memory" nofile=$((8192 * cores + 4096))
    case ${fact[memlock_bytes]:-unknown} in
        unknown*) unseen memlock "64 MiB or unlimited" "$why" ;;
        *) if at_least "${fact[memlock_bytes]}" $((64 << 20)); then
                row ok memlock "enough" "64 MiB or unlimited" "$why" ""
            else
                row warn memlock "$((fact[memlock_bytes] >> 20)) MiB" "64 MiB or unlimited" "$why" \
                    "ulimit -l unlimited (as root); LimitMEMLOCK=infinity in the unit"
            fi ;;
    esac
    why="a core serves up to 8192 connections, beside its files"
    case ${fact[nofile]:-unknown} in
        unknown*) unseen "open files" "$nofile" "$why" ;;
        *) if at_least "${fact[nofile]}" "$nofile"; then
                row ok "open files" "${fact[nofile]}" "$nofile" "$why" ""
            else
                row warn "open files" "${fact[nofile]}" "$nofile" "$why" "ulimit -n 1048576 (as root); LimitNOFILE=1048576 in the unit"
            fi ;;
    esac
}

clocks() {
    local why="each request reads the clock; a clock that costs a system call costs every request one"
    case ${fact[clock_read_ns]:-unknown} in
        unknown*) unseen "clock reads" "at most 100 ns" "$why" ;;
        *) if [ "${fact[clock_read_ns]}" -le 100 ]; then
                row ok "clock reads" "${fact[clock_read_ns]} ns" "at most 100 ns" "$why" ""
            else
                row warn "clock reads" "${fact[clock_read_ns]} ns" "at most 100 ns" "$why" \
                    "clocksource=tsc tsc=reliable on the kernel's command line, where the hardware allows it"
            fi ;;
    esac
    why="versions and times to live come from the wall clock"
    case ${fact[clock_synchronized]:-unknown} in
        unknown*) unseen "clock sync" "synchronized" "$why" ;;
        yes) row ok "clock sync" synchronized synchronized "$why" "" ;;
        *) row warn "clock sync" "not synchronized" synchronized "$why" "apt install chrony && systemctl enable --now chrony" ;;
    esac
}

# ----------------------------------------------------------------------------------------------------------------------------------
# What tune.sh sets. The files of one setting are one row.

declare -A tune_all=() tune_off=() tune_found=()
setting() {
    tune_all[$1]=$((${tune_all[$1]:-0} + 1))
    if [ "$3" != "$4" ]; then
        tune_off[$1]=$((${tune_off[$1]:-0} + 1))
    fi
    case " ${tune_found[$1]:-} " in *" $3 "*) ;; *) tune_found[$1]="${tune_found[$1]:+${tune_found[$1]} }$3" ;; esac
}

# tuned NAME WANTED WHY
tuned() {
    local all=${tune_all[$1]:-0} off=${tune_off[$1]:-0} found=${tune_found[$1]:-}
    if [ "$all" -eq 0 ]; then
        unseen "$1" "$2" "$3"
    elif [ "$off" -eq 0 ]; then
        row ok "$1" "${found// /, }" "$2" "$3" ""
    else
        found=${found// /, }
        [ "$all" -eq 1 ] || found="$found ($off of $all are not)"
        row warn "$1" "$found" "$2" "$3" "sudo $here/tune.sh --apply --data $data"
    fi
}

tunables() {
    settings
    tuned governor performance "a CPU that has to speed up first answers late"
    tuned energy performance "the firmware slows a CPU down that it thinks little used"
    tuned c-states "1 (off) where a wake takes over $wake_us_max µs" "a request that finds its core asleep waits for it to wake"
    tuned clocksource "tsc, or a paravirtual clock" "other clocks are read by a system call or from a slow device"
    tuned numa-balancing "0, with more than one node" "it takes pages away in order to see who uses them: each costs a fault"
    tuned scheduler "none; mq-deadline on a spinning disk" "the node queues and orders by itself; a scheduler only adds a lock"
    tuned swappiness "0 or 1" "memory of a node that went to swap answers as late as a disk, and not in the order that the cache chose"
    tuned huge-pages "madvise or never" "huge pages unasked for take memory beyond --memory, and stall while memory is compacted"
}

swap() {
    local why="a page of the cache that went to swap is read back inside a request" used=0 lines="" name size
    if [ ! -r "$sysroot/proc/swaps" ]; then unseen swap none "$why"; return; fi
    while read -r name _ size _; do
        [ "$name" != Filename ] || continue
        lines="${lines:+$lines, }$name" used=$((used + size / 1024))
    done <"$sysroot/proc/swaps"
    if [ -z "$lines" ]; then
        row ok swap none none "$why" ""
    else
        row warn swap "$lines ($used MiB)" none "$why" "sudo swapoff -a, and its line out of /etc/fstab; or MemorySwapMax=0 in the unit"
    fi
}

# ----------------------------------------------------------------------------------------------------------------------------------
# CPUs, memory and network.

quota() {
    local why="a group that used its share up is stopped for the rest of the period, up to 100 ms" group folder value period
    group=$(sed -n 's/^0:://p' "$sysroot/proc/self/cgroup" 2>/dev/null || true)
    if [ -z "$group" ] || ! [ -r "$sysroot/sys/fs/cgroup/cgroup.controllers" ]; then unseen "cpu quota" none "$why"; return; fi
    while :; do
        folder=$sysroot/sys/fs/cgroup${group%/}
        if first_line "$folder/cpu.max"; then
            read -r value period <<<"$REPLY"
            if [ "$value" != max ]; then
                row warn "cpu quota" "$value µs in $period µs (${group:-/})" none "$why" "CPUQuota= out of the unit; --cpus out of docker run"
                return
            fi
        fi
        [ -n "${group%/}" ] || break
        group=${group%/*}
    done
    row ok "cpu quota" none none "$why" ""
}

numa() {
    local why="what lies on another node is farther away for every request" nodes=0 cpu found folder mend="" apart=""
    local wanted="the data cores on one node, the disk's and the network's"
    local -a home=()
    for folder in "$sysroot"/sys/devices/system/node/node[0-9]*; do
        first_line "$folder/cpulist" || continue
        nodes=$((nodes + 1))
        mend="${mend:+$mend or }--cores $REPLY"
        numbers "$REPLY" || continue
        for cpu in "${numbers[@]}"; do
            case $core_numbers in *" $cpu "*) home+=("${folder##*/node}") && break ;; esac
        done
    done
    case $nodes in
        0) unseen numa "$wanted" "$why"; return ;;
        1) row ok numa "1 node" "$wanted" "$why" ""; return ;;
    esac
    found="$nodes nodes, data cores on ${home[*]}"
    [ ${#home[@]} -eq 1 ] || apart=1
    for folder in "${disks[@]/#/$sysroot/sys/class/block/}" "$sysroot"/sys/class/net/*; do
        # -1: the firmware does not say.
        if first_line "$folder/device/numa_node" && [ "$REPLY" -ge 0 ]; then
            found="$found, ${folder##*/} on $REPLY"
            [ "$REPLY" = "${home[0]:-}" ] || apart=1
        fi
    done
    if [ -n "$apart" ]; then row warn numa "$found" "$wanted" "$why" "$mend"; else row ok numa "$found" "$wanted" "$why" ""; fi
}

network() {
    local why="a queue's interrupts run on one CPU, which then carries all of its traffic" folder name queues queue spread seen=""
    for folder in "$sysroot"/sys/class/net/*; do
        # Only what is hardware, or looks like it, and is in use.
        if ! [ -e "$folder/device" ] || ! [ -d "$folder/queues/rx-0" ]; then continue; fi
        if first_line "$folder/operstate" && [ "$REPLY" = down ]; then continue; fi
        name=${folder##*/} queues=0 spread="" seen=1
        for queue in "$folder"/queues/rx-*; do
            queues=$((queues + 1))
            if first_line "$queue/rps_cpus" && [ -n "${REPLY//[0,]/}" ]; then spread=1; fi
        done
        if [ "$queues" -ge "$cores" ]; then
            row ok "network queues" "$name: $queues" "one for each of $cores data cores" "$why" ""
        elif [ -n "$spread" ]; then
            row ok "network queues" "$name: $queues, spread by software (RPS)" "one for each of $cores data cores" "$why" ""
        else
            row warn "network queues" "$name: $queues" "one for each of $cores data cores" "$why" \
                "sudo ethtool -L $name combined $cores, or as many as ethtool -l $name allows; then RPS: rps_cpus in $folder/queues/rx-*"
        fi
    done
    [ -n "$seen" ] || unseen "network queues" "one for each of $cores data cores" "$why"
}

# ----------------------------------------------------------------------------------------------------------------------------------
# The data folder.

file_system() {
    local why="direct I/O, durable writes, and allocation without copying" mend="mkfs.ext4 or mkfs.xfs on a disk of its own, mounted at $data"
    if ! $mounted; then unseen "file system" "ext4 or xfs" "$why"; return; fi
    case $mount_type in
        ext4 | xfs) row ok "file system" "$mount_type at $mount_point" "ext4 or xfs" "$why" "" ;;
        tmpfs | ramfs) row fail "file system" "$mount_type at $mount_point" "ext4 or xfs" "what is acknowledged there is in memory only" "$mend" ;;
        *) row warn "file system" "$mount_type at $mount_point" "ext4 or xfs" "$why" "$mend" ;;
    esac
}

mount_flags() {
    local why="an acknowledged write must be on the disk; a read must not write" wanted="rw, barriers, no atime writes, no discard"
    if ! $mounted; then unseen "mount options" "$wanted" "$why"; return; fi
    local options=",$mount_options," found="" status=ok mend=""
    # off STATUS OPTION MEND: one that should not be so; the worst decides.
    off() {
        found="${found:+$found, }$2" mend="${mend:+$mend; }$3"
        [ "$status" = fail ] || status=$1
    }
    case $options in *,ro,*) off fail ro "sudo mount -o remount,rw $mount_point" ;; esac
    case $options in *,nobarrier,* | *,barrier=0,*) off fail nobarrier "sudo mount -o remount,barrier=1 $mount_point" ;; esac
    case $options in *,noatime,* | *,relatime,*) ;; *) off warn atime "sudo mount -o remount,noatime $mount_point" ;; esac
    case $options in *,data=journal,*) off warn data=journal "take it out of /etc/fstab: direct I/O goes with it" ;; esac
    case $options in
        *,discard,*) off warn discard "sudo mount -o remount,nodiscard $mount_point && sudo systemctl enable --now fstrim.timer" ;;
    esac
    row $status "mount options" "${found:-$mount_options}" "$wanted" "$why" "$mend"
}

block_device() {
    local disk queue why_block why="every durable write waits until a volatile cache is flushed; one that survives a power cut answers at once"
    if [ ${#disks[@]} -eq 0 ]; then
        unseen "write cache" "write through (none, or protected against power loss)" "$why"
        unseen "block size" "at most 4096" "the node reads and writes in blocks of 4096 bytes"
        return
    fi
    for disk in "${disks[@]}"; do
        queue=$sysroot/sys/class/block/$disk/queue
        if ! first_line "$queue/write_cache"; then
            unseen "write cache" "write through (none, or protected against power loss)" "$why"
        elif [ "$REPLY" = "write through" ]; then
            row ok "write cache" "$disk: $REPLY" "write through (none, or protected against power loss)" "$why" ""
        else
            row warn "write cache" "$disk: $REPLY" "write through (none, or protected against power loss)" "$why" \
                "a disk with power-loss protection; never by writing to $queue/write_cache, which takes the flushes away and not the cache"
        fi
        why_block="the node reads and writes in blocks of 4096 bytes"
        if ! first_line "$queue/logical_block_size"; then
            unseen "block size" "at most 4096" "$why_block"
        elif [ "$REPLY" -le 4096 ]; then
            row ok "block size" "$disk: $REPLY" "at most 4096" "$why_block" ""
        else
            row fail "block size" "$disk: $REPLY" "at most 4096" "$why_block" "nvme format --block-size=4096 (erases the disk)"
        fi
    done
}

direct_io() {
    local why="the node has its own cache; the kernel's would hold everything twice" wanted="writes aligned to at most 4096 bytes"
    local found=${fact[direct_write_align_bytes]:-unknown}
    case $found in
        unknown*) unseen "direct I/O" "$wanted" "$why${found#unknown}" ;;
        none*) row warn "direct I/O" "$found" "$wanted" "$why" "an ext4 or xfs file system for $data" ;;
        *) row ok "direct I/O" "aligned to $found" "$wanted" "$why" "" ;;
    esac
    why="what an acknowledged write waits for; the promised p99 is 1 ms" found=${fact[durable_write_us]:-unknown}
    case $found in
        unknown*) unseen "durable write" "at most 500 µs" "$why" ;;
        *) if [ "$found" -le 500 ]; then
                row ok "durable write" "$found µs (median)" "at most 500 µs" "$why" ""
            else
                row warn "durable write" "$found µs (median)" "at most 500 µs" "$why" "an NVMe disk with power-loss protection, and nothing else on it"
            fi ;;
    esac
}

# ----------------------------------------------------------------------------------------------------------------------------------

# quoted TEXT: as a JSON string in $REPLY.
quoted() {
    REPLY=${1//\\/\\\\}
    REPLY=${REPLY//\"/\\\"}
    REPLY="\"${REPLY//[[:cntrl:]]/ }\""
}

show_json() {
    local at field separator="" line
    local -a fields=(status name found wanted why mend)
    printf '{"fit":%s,"ok":%d,"warn":%d,"fail":%d,"unseen":%d,"checks":[' "$1" "$ok" "$warn" "$fail" "$unseen"
    for ((at = 0; at < ${#rows[@]}; at += 6)); do
        line=""
        for field in 0 1 2 3 4 5; do
            quoted "${rows[at + field]}"
            line="${line:+$line,}\"${fields[field]}\":$REPLY"
        done
        printf '%s\n{%s}' "$separator" "$line"
        separator=,
    done
    printf '\n]}\n'
}

show_lines() {
    local at status
    for ((at = 0; at < ${#rows[@]}; at += 6)); do
        status=${rows[at]}
        case $status in
            ok) printf 'ok    %-19s %s\n' "${rows[at + 1]}" "${rows[at + 2]}" ;;
            unseen) printf -- '-     %-19s %s; wanted: %s\n' "${rows[at + 1]}" "${rows[at + 2]}" "${rows[at + 3]}" ;;
            *)
                printf '%-5s %-19s %s; wanted: %s\n' "${status^^}" "${rows[at + 1]}" "${rows[at + 2]}" "${rows[at + 3]}"
                printf '      %-19s why:  %s\n      %-19s mend: %s\n' "" "${rows[at + 4]}" "" "${rows[at + 5]}"
                ;;
        esac
    done
    if grep -qw hypervisor "$sysroot/proc/cpuinfo" 2>/dev/null; then
        echo "A virtual machine: CPU and disk settings that are not visible here are the host's; look there too."
    fi
    echo "$ok ok, $warn warnings, $fail failed, $unseen not visible here"
}

disks=() mounted=true
if mount_of "$data"; then disks_of_mount; else mounted=false; fi
look
kernel
rings
limits
clocks
tunables
swap
quota
numa
network
file_system
mount_flags
block_device
direct_io
fit=true
if [ "$fail" -gt 0 ] || { [ -n "$strict" ] && [ "$warn" -gt 0 ]; }; then fit=false; fi
if [ -n "$json" ]; then show_json $fit; else show_lines; fi
$fit
