#!/usr/bin/env bash
# Races ringkv against Redis, memcached, RocksDB and the bare disk on this machine, server and load on a CPU each, and prints the ratios.
#
#   scripts/bench.sh [ROW...]      rows: machine cpu hop million durable memory disk, and by name only cluster (three nodes against one, and
#                                  against Redis with two replicas), overwrite (some 20 minutes), share (40M keys, 60 GB of
#                                  disk, some 25 minutes) and knobs (what the flags of tuning.md give)
#
# Peers are Debian's packages redis-server, memcached, rocksdb-tools and fio; a row whose peer is missing says so. Writes
# target/figures/bench.json, and for `million` the report target/figures/million.html. Exit code 0 only if every goal was reached.
#
#   RINGKV_SCALE     shrinks keys and times for a quick look: 0.02 is enough to see every row run (1)
#   RINGKV_PEERS     no leaves the peers out
#   RINGKV_FIGURES   folder for the data (target/figures); it must lie on the disk that is to be measured, with some 40 GiB free
set -euo pipefail
cd "$(dirname "$0")/.."
command -v python3 >/dev/null || { echo "bench.sh needs python3" >&2; exit 2; }
cargo build --locked --release --quiet -p ringkv -p loadgen -p bench
PYTHONDONTWRITEBYTECODE=1 exec python3 scripts/bench.py "$@"
