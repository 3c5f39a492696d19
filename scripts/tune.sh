#!/usr/bin/env bash
# What can be set at run time so that a machine serves ringkv at its best, and back.
#
#   scripts/tune.sh [--check] [--data DIR]    what is set and what should be; exit code 1 if something is to be set
#   scripts/tune.sh --apply [--data DIR]      sets it (as root); what was before is kept for --undo
#   scripts/tune.sh --undo                    sets back what --apply changed
#
# DIR is the node's data folder (/var/lib/ringkv unless said): the scheduler is set of the disks under it and of no others.
# The settings, each with its reason, are in tuning.md. All of them are gone after a reboot, and so is the kept state (/run/ringkv-tune);
# ringkv-tune.service (scripts/install.sh --with-tune) applies them at each start of the machine. Applying twice keeps the first state.
# Exit codes: 0 all as it should be, 1 something is not, 2 the command line.
#
#   RINGKV_SYSROOT   stands for /: a folder of plain files, for tests
set -euo pipefail
# shellcheck source=scripts/host.sh
. "$(dirname "$(realpath -- "$0")")/host.sh"

usage() {
    sed -n '2,/^set -/ { s/^# \{0,1\}//; /^set -/d; p }' "$0"
}

mode=check data=/var/lib/ringkv
while [ $# -gt 0 ]; do
    case $1 in
        --check | --apply | --undo) mode=${1#--} ;;
        --data)
            [ $# -ge 2 ] || { echo "tune.sh: --data wants a folder" >&2; exit 2; }
            data=$2
            shift
            ;;
        --help | -h) usage; exit 0 ;;
        *) echo "tune.sh: $1 is not known; see --help" >&2; exit 2 ;;
    esac
    shift
done

state_file=$sysroot/run/ringkv-tune/state
off=0 changed=0 failed=0
declare -A kept=()

# Files and what they held before the first --apply, a line each with a tab between; in the order in which they were set.
if [ -r "$state_file" ]; then
    while IFS=$'\t' read -r file _; do kept[$file]=1; done <"$state_file"
fi

# set_to FILE VALUE: writes it; the kernel's refusal is told and counted.
set_to() {
    if { printf '%s\n' "$2" >"$1"; } 2>/dev/null; then return 0; fi
    failed=$((failed + 1))
    echo "tune.sh: $1 cannot be set to $2$([ -w "$1" ] || echo ' (not writable: root is needed)')" >&2
    return 1
}

# keep FILE VALUE: adds a line to the state.
keep() {
    if { mkdir -p "${state_file%/*}" && printf '%s\t%s\n' "$1" "$2" >>"$state_file"; } 2>/dev/null; then return 0; fi
    echo "tune.sh: $state_file cannot be written, so nothing is set (root is needed)" >&2
    exit 1
}

# setting NAME FILE FOUND WANTED: called by `settings` for each.
setting() {
    local name=$1 file=$2 found=$3 wanted=$4
    if [ "$found" = "$wanted" ]; then
        [ "$mode" != check ] || printf 'ok    %-15s %s: %s\n' "$name" "${file#"$sysroot"}" "$found"
        return 0
    fi
    off=$((off + 1))
    if [ "$mode" = check ]; then
        printf 'off   %-15s %s: %s, wanted %s\n' "$name" "${file#"$sysroot"}" "$found" "$wanted"
        return 0
    fi
    # Kept before it is changed: an --apply that is cut short can be undone.
    local key=${file#"$sysroot"} fresh=""
    if [ -z "${kept[$key]:-}" ]; then
        keep "$key" "$found"
        kept[$key]=1 fresh=1
    fi
    if set_to "$file" "$wanted"; then
        changed=$((changed + 1))
        printf 'set   %-15s %s: %s, was %s\n' "$name" "${file#"$sysroot"}" "$wanted" "$found"
    elif [ -n "$fresh" ]; then
        sed -i '$d' "$state_file"
    fi
}

undo() {
    local line file value at
    local -a lines=() left=()
    [ ! -e "$state_file" ] || mapfile -t lines <"$state_file"
    # The last first: what was set later may hold what was set before it.
    for ((at = ${#lines[@]} - 1; at >= 0; at--)); do
        line=${lines[at]} file=${lines[at]%%$'\t'*} value=${lines[at]#*$'\t'}
        # A CPU or a disk that is gone has nothing to set back.
        [ -e "$sysroot$file" ] || continue
        if set_to "$sysroot$file" "$value"; then
            changed=$((changed + 1))
            printf 'back  %s: %s\n' "$file" "$value"
        else
            left=("$line" "${left[@]}")
        fi
    done
    if [ ${#left[@]} -gt 0 ]; then
        printf '%s\n' "${left[@]}" >"$state_file"
    else
        rm -f "$state_file"
        rmdir "${state_file%/*}" 2>/dev/null || true
    fi
    echo "$changed set back, $failed failed"
    [ "$failed" -eq 0 ]
}

if [ "$mode" = undo ]; then
    undo
    exit
fi
disks=()
if mount_of "$data"; then disks_of_mount; fi
settings
if [ "$mode" = check ]; then
    echo "$off to be set"
    [ "$off" -eq 0 ]
else
    echo "$changed set, $failed failed"
    [ "$failed" -eq 0 ]
fi
