#!/usr/bin/env bash
# Measures the figures of docs/figures.md on this machine and holds them against their goals.
#
#   scripts/figures.sh [ROW...]      rows: dsync fill reads restart expiry slow_reader sim (all of them unless some are named)
#
# Prints a table (wanted, got) and writes target/figures/figures.json. Exit code 0 only if every goal was reached.
#
#   RINGKV_SCALE     shrinks keys and times for a quick look: 0.02 is enough to see every row run (1)
#   RINGKV_FIGURES   folder for the data (target/figures); it must lie on the disk that is to be measured
set -euo pipefail
cd "$(dirname "$0")/.."
command -v python3 >/dev/null || { echo "figures.sh needs python3" >&2; exit 2; }
cargo build --locked --release --quiet -p ringkv -p loadgen -p bench
PYTHONDONTWRITEBYTECODE=1 exec python3 scripts/figures.py "$@"
