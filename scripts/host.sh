# Sourced by preflight.sh and tune.sh: how they look at a host. Everything is read below RINGKV_SYSROOT (/ unless said), so that
# tests can hand in a host of plain files. Answers come in variables, without a subshell: a host has thousands of these files.
# shellcheck shell=bash

sysroot=${RINGKV_SYSROOT:-}
sysroot=${sysroot%/}
# A CPU may sleep so deep that it needs this long to wake, in microseconds; deeper costs more than the rest of a request.
wake_us_max=20

# first_line FILE: its first line in $REPLY; fails where there is none to read.
first_line() {
    REPLY=""
    [ -r "$1" ] && { IFS= read -r REPLY <"$1" || [ -n "$REPLY" ]; } 2>/dev/null
}

# chosen FILE: of a list with one word in brackets, that word; of anything else, its first line.
chosen() {
    first_line "$1" || return 1
    case $REPLY in *\[*\]*) REPLY=${REPLY#*\[} REPLY=${REPLY%%\]*} ;; esac
}

# offers FILE WORD: whether a list, with or without brackets, has this word.
offers() {
    first_line "$1" || return 1
    REPLY=${REPLY//[\[\]]/}
    case " $REPLY " in *" $2 "*) return 0 ;; *) return 1 ;; esac
}

# numbers LIST: 0,2-4 as the array $numbers.
numbers() {
    local part
    numbers=()
    for part in ${1//,/ }; do
        case $part in
            *[!0-9-]* | '' | -* | *-) return 1 ;;
            *-*) for ((part_at = 10#${part%-*}; part_at <= 10#${part#*-}; part_at++)); do numbers+=("$part_at"); done ;;
            *) numbers+=("$((10#$part))") ;;
        esac
    done
}

# allowed_cpus: the CPUs that this process may use, as a list in $REPLY.
allowed_cpus() {
    local key value
    while read -r key value; do
        [ "$key" = Cpus_allowed_list: ] && { REPLY=$value; return 0; }
    done 2>/dev/null <"$sysroot/proc/self/status"
    REPLY=0
    return 1
}

# mount_of PATH: of the file system under it, $mount_point $mount_type $mount_options $mount_device (major:minor) and $mount_source.
mount_of() {
    local path device point prefix options type source super fields rest found=1
    local -a word
    if [ -n "$sysroot" ]; then path=$(realpath -ms -- "$1"); else path=$(realpath -m -- "$1"); fi
    mount_point=""
    [ -r "$sysroot/proc/self/mountinfo" ] || return 1
    while IFS= read -r fields; do
        rest=${fields#* - }
        read -r -a word <<<"${fields%% - *}"
        read -r type source super <<<"$rest"
        device=${word[2]} options=${word[5]}
        # Spaces and the like are written as \040.
        printf -v point '%b' "${word[4]//\\/\\0}"
        prefix=${point%/}
        case ${path%/}/ in
            "$prefix"/*)
                # The last of equals is the one on top.
                if [ ${#point} -ge ${#mount_point} ]; then
                    mount_point=$point mount_device=$device mount_source=$source found=0
                    # shellcheck disable=SC2034 # for preflight.sh
                    mount_type=$type mount_options=$options,$super
                fi
                ;;
        esac
    done <"$sysroot/proc/self/mountinfo"
    return $found
}

# disks_of_mount: the whole disks under $mount_device, as the array $disks; empty where the kernel shows none (containers, networks).
disks_of_mount() {
    local name=""
    disks=()
    if first_line "$sysroot/sys/dev/block/$mount_device/uevent"; then
        name=$(sed -n 's/^DEVNAME=//p' "$sysroot/sys/dev/block/$mount_device/uevent")
    fi
    if [ -z "$name" ]; then
        case $mount_source in
            /dev/*)
                name=$mount_source
                [ -n "$sysroot" ] || name=$(realpath -m -- "$name")
                name=${name#/dev/}
                ;;
        esac
    fi
    [ -z "$name" ] || whole_disks "$name"
}

whole_disks() {
    # In the name of a device a slash is an exclamation mark.
    local name=${1//\//!} folder slave
    folder=$sysroot/sys/class/block/$name
    [ -d "$folder" ] || return 0
    for slave in "$folder"/slaves/*; do
        [ -e "$slave" ] || continue
        whole_disks "${slave##*/}"
        folder=""
    done
    [ -n "$folder" ] || return 0
    if [ -e "$folder/partition" ]; then
        folder=$(realpath -- "$folder/..")
        name=${folder##*/}
    fi
    case " ${disks[*]} " in *" $name "*) ;; *) disks+=("$name") ;; esac
}

# settings: calls `setting NAME FILE FOUND WANTED` for each file of the run-time settings that this host has. Needs $disks.
settings() {
    settings_of_cpus
    settings_of_memory
    settings_of_disks
}

settings_of_cpus() {
    local folder state clock=$sysroot/sys/devices/system/clocksource/clocksource0
    # Before the governor: under intel_pstate the governor "performance" fixes it.
    for folder in "$sysroot"/sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
        if first_line "$folder/energy_performance_preference"; then
            setting energy "$folder/energy_performance_preference" "$REPLY" performance
        fi
    done
    for folder in "$sysroot"/sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
        if offers "$folder/scaling_available_governors" performance && first_line "$folder/scaling_governor"; then
            setting governor "$folder/scaling_governor" "$REPLY" performance
        fi
    done
    for state in "$sysroot"/sys/devices/system/cpu/cpu[0-9]*/cpuidle/state[0-9]*; do
        if first_line "$state/latency" && [ "$REPLY" -gt "$wake_us_max" ] && first_line "$state/disable"; then
            setting c-states "$state/disable" "$REPLY" 1
        fi
    done
    if offers "$clock/available_clocksource" tsc && first_line "$clock/current_clocksource"; then
        # The others are read without a system call too.
        case $REPLY in
            hpet | acpi_pm | jiffies | refined-jiffies | xen) setting clocksource "$clock/current_clocksource" "$REPLY" tsc ;;
            *) setting clocksource "$clock/current_clocksource" "$REPLY" "$REPLY" ;;
        esac
    fi
}

settings_of_memory() {
    local file=$sysroot/proc/sys/kernel/numa_balancing
    if [ -d "$sysroot/sys/devices/system/node/node1" ] && first_line "$file"; then
        setting numa-balancing "$file" "$REPLY" 0
    fi
    file=$sysroot/proc/sys/vm/swappiness
    if first_line "$file"; then
        case $REPLY in
            0) setting swappiness "$file" 0 0 ;;
            *) setting swappiness "$file" "$REPLY" 1 ;;
        esac
    fi
    file=$sysroot/sys/kernel/mm/transparent_hugepage/enabled
    if chosen "$file"; then
        case $REPLY in
            never) setting huge-pages "$file" never never ;;
            *) setting huge-pages "$file" "$REPLY" madvise ;;
        esac
    fi
}

settings_of_disks() {
    local disk file wanted found
    for disk in "${disks[@]}"; do
        file=$sysroot/sys/class/block/$disk/queue/scheduler
        chosen "$file" || continue
        found=$REPLY wanted=none
        first_line "$sysroot/sys/class/block/$disk/queue/rotational" && [ "$REPLY" = 1 ] && wanted=mq-deadline
        offers "$file" "$wanted" || wanted=$found
        setting scheduler "$file" "$found" "$wanted"
    done
}
