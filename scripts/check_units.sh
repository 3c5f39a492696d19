#!/usr/bin/env bash
# Holds the service units against systemd's own judgement: no line that it does not understand, and an exposure of at most 2.0 out of 10.
#
#   scripts/check_units.sh BINARY
#
# The units are installed below a temporary folder, and looked at there.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d "${TMPDIR:-/tmp}/ringkv-units.XXXXXX")
trap 'rm -rf "$folder"' EXIT
scripts/install.sh --binary "$1" --root "$folder/root" >/dev/null
for unit in ringkv.service ringkv-tune.service; do
    # systemd looks whether the program is there.
    sed "s|=\(-\{0,1\}\)/usr/local/|=\1$folder/root/usr/local/|" "$folder/root/etc/systemd/system/$unit" >"$folder/$unit"
done
code=0
# It warns of a key that it does not know, and ends with 0 all the same.
said=$(systemd-analyze verify --man=no "$folder"/ringkv*.service 2>&1) || code=$?
if [ "$code" -ne 0 ] || grep -q ringkv <<<"$said"; then
    echo "systemd-analyze verify, code $code: $said"
    exit 1
fi
systemd-analyze security --no-pager --offline=true --threshold=20 "$folder/ringkv.service"
