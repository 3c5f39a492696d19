#!/usr/bin/env bash
# Runs a command beside a fresh node on a temporary data folder, then ends the node and demands a clean end.
#
#   scripts/with_node.sh BINARY COMMAND...
#
# In the command, HOST, PORT and ADMIN (host:port) stand for the node's addresses: as variables, and as words of their own.
set -euo pipefail
# shellcheck source=scripts/node.sh
. "$(dirname "$0")/node.sh"
binary=$1
shift
folder=$(mktemp -d "${TMPDIR:-/tmp}/ringkv-node.XXXXXX")
trap 'kill_node; rm -rf "$folder"' EXIT

start_node "$binary" "$folder/data" --memory 64MiB
export HOST=$node_host PORT=$node_port ADMIN=$node_admin
words=()
for word in "$@"; do
    case $word in
        HOST | PORT | ADMIN) words+=("${!word}") ;;
        *) words+=("$word") ;;
    esac
done
"${words[@]}"
stop_node || { echo "the node ended with code $?" >&2; tail -n 20 "$folder/data.log/err" >&2; exit 1; }
