#!/usr/bin/env bash
# Builds ringkv as if it were of the next version of what a cluster keeps and says, for tests of rolling upgrades:
#
#   scripts/build_next.sh PROGRAM
set -euo pipefail
program=${1:?where to put the program}
cd "$(dirname "$0")/.."
mkdir -p "$(dirname "$program")"
# No older one is taken for it.
rm -f "$program"
cargo build --locked -p ringkv --features ringkv/tokio,ringkv/next-version --bin ringkv --message-format=json-render-diagnostics >"$program.json"
built=$(sed -n 's/.*"executable":"\([^"]*\/ringkv\)".*/\1/p' "$program.json" | tail -n 1)
rm -f "$program.json"
cp "$built" "$program"
