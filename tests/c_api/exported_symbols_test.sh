#!/usr/bin/env bash
# exported_symbols_test.sh NM LIBRARY LIST HEADER: the library exports exactly what the list has, and the header declares it.
set -euo pipefail
nm=$1 library=$2 list=$3 header=$4
exported=$("$nm" -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | LC_ALL=C sort)
declared=$(grep '^GANTRY_API' "$header" | sed -E 's/^[^(]*[ *](gantry_[a-z0-9_]+)\(.*/\1/' | LC_ALL=C sort)
diff -u "$list" <(echo "$exported") || { echo "the library's symbols differ from $list"; exit 1; }
diff -u "$list" <(echo "$declared") || { echo "the header's functions differ from $list"; exit 1; }
