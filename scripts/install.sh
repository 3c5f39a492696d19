#!/usr/bin/env bash
# Installs a node as a service of systemd, and takes it away again.
#
#   scripts/install.sh [--binary FILE] [--with-tune] [--no-start] [--root DIR]
#   scripts/install.sh --uninstall [--purge] [--root DIR]
#
#   --binary FILE   the node (target/release/ringkv: cargo build --release makes it)
#   --with-tune     also set the machine up at each of its starts (ringkv-tune.service runs tune.sh --apply)
#   --no-start      install only; `systemctl enable --now ringkv` starts it
#   --root DIR      install below DIR, for an image or a package (DESTDIR means the same): no user is made and nothing is started
#   --uninstall     stop the node and remove what was installed; data, configuration and user stay
#   --purge         with --uninstall: those too
#
# Installs /usr/local/bin/ringkv, /usr/local/lib/ringkv/{preflight,tune,host}.sh, /etc/systemd/system/ringkv.service and
# ringkv-tune.service, and /etc/ringkv/node.toml unless there is one: an operator's is never overwritten. The data are in /var/lib/ringkv.
# Run again it installs a newer node over the old one and restarts it. Exit codes: 0 done, 1 failed, 2 the command line.
set -euo pipefail
here=$(dirname "$(realpath -- "$0")")

usage() {
    sed -n '2,/^set -/ { s/^# \{0,1\}//; /^set -/d; p }' "$0"
}

mode=install binary="" tune="" start=1 purge="" root=${DESTDIR:-}
while [ $# -gt 0 ]; do
    case $1 in
        --binary | --root)
            [ -n "${2:-}" ] || { echo "install.sh: $1 wants a word after it" >&2; exit 2; }
            case $1 in --binary) binary=$2 ;; *) root=$2 ;; esac
            shift
            ;;
        --with-tune) tune=1 ;;
        --no-start) start="" ;;
        --uninstall) mode=uninstall ;;
        --purge) purge=1 ;;
        --help | -h) usage; exit 0 ;;
        *) echo "install.sh: $1 is not known; see --help" >&2; exit 2 ;;
    esac
    shift
done
[ -z "$purge" ] || [ "$mode" = uninstall ] || { echo "install.sh: --purge goes with --uninstall" >&2; exit 2; }
root=${root%/}
if [ -z "$root" ] && [ "$(id -u)" -ne 0 ]; then
    echo "install.sh: root is needed (sudo), or --root DIR to install into a folder" >&2
    exit 1
fi

user=ringkv
bin=$root/usr/local/bin/ringkv
lib=$root/usr/local/lib/ringkv
units=$root/etc/systemd/system
config=$root/etc/ringkv
data=$root/var/lib/ringkv

# manager WORD...: systemctl, where this is about the running system and systemd runs it.
manager() {
    [ -z "$root" ] && [ -d /run/systemd/system ] || return 0
    systemctl "$@"
}

make_user() {
    [ -z "$root" ] || return 0
    getent passwd "$user" >/dev/null ||
        useradd --system --user-group --no-create-home --home-dir /var/lib/ringkv --shell /usr/sbin/nologin "$user"
}

install_all() {
    if [ -z "$binary" ]; then
        binary=$here/../target/release/ringkv
    fi
    if ! [ -x "$binary" ]; then
        echo "install.sh: there is no $binary; make it (cargo build --release), or name one with --binary" >&2
        exit 1
    fi
    make_user
    install -D -m 0755 -- "$binary" "$bin"
    for script in preflight.sh tune.sh; do install -D -m 0755 -- "$here/$script" "$lib/$script"; done
    install -D -m 0644 -- "$here/host.sh" "$lib/host.sh"
    for unit in ringkv.service ringkv-tune.service; do install -D -m 0644 -- "$here/systemd/$unit" "$units/$unit"; done
    if ! [ -e "$config/node.toml" ]; then
        install -d -m 0750 -- "$config"
        install -m 0640 -- "$here/systemd/node.toml" "$config/node.toml"
        [ -n "$root" ] || chown -R "root:$user" "$config"
    fi
    manager daemon-reload
    [ -z "$tune" ] || manager enable --now ringkv-tune.service
    if [ -z "$start" ] || [ -n "$root" ]; then
        echo "installed; systemctl enable --now ringkv starts it"
    elif [ -d /run/systemd/system ]; then
        manager enable ringkv.service
        manager restart ringkv.service
        echo "installed and serving; journalctl -u ringkv shows what it says"
    else
        echo "installed; systemd does not run here, so: $bin --config $config/node.toml"
    fi
    echo "is this machine fit for it: $lib/preflight.sh"
}

uninstall_all() {
    if [ -e "$units/ringkv.service" ]; then manager disable --now ringkv.service; fi
    if [ -e "$units/ringkv-tune.service" ]; then manager disable --now ringkv-tune.service; fi
    rm -f -- "$units/ringkv.service" "$units/ringkv-tune.service" "$bin" "$lib"/{preflight,tune,host}.sh
    if [ -d "$lib" ]; then rmdir --ignore-fail-on-non-empty -- "$lib"; fi
    manager daemon-reload
    if [ -z "$purge" ]; then
        echo "removed; data ($data) and configuration ($config) are kept: --uninstall --purge removes them too"
        return
    fi
    rm -rf -- "$data" "$config"
    if [ -z "$root" ] && getent passwd "$user" >/dev/null; then userdel "$user"; fi
    echo "removed, with data, configuration and user"
}

"${mode}_all"
