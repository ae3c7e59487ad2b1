#!/usr/bin/env bash
# Lists ops whose record of a GPU run (tests/records/<op>.json) is missing or was made from other sources.
# Usage: stale_records.sh            list
#        stale_records.sh hash OP    print the hash that a record of OP must hold
cd "$(dirname "$0")/../.."
# Sources of an op's kernels: CUDA's headers, its own (cpu*.h are not), and those that some ops share where it includes them.
hash_of() {
  own=$(ls "ops/$1"/*.h "ops/$1"/*.cu "ops/$1"/*.cuh 2>/dev/null | grep -v '/cpu[^/]*\.h$')
  shared=
  grep -qs '"ops/scan\.' $own /dev/null && shared="core/rows.h ops/scan.h ops/scan.cuh"
  grep -qs '"core/rows\.h"' $own /dev/null && shared="core/rows.h $shared"
  { ls core/cuda/*.h core/cuda/*.cuh core/half.h core/philox.h $own $shared "ops/$1/op.cpp"; } 2>/dev/null |
    LC_ALL=C sort | xargs cat | sha256sum | cut -c1-16
}
if [ "${1:-}" = hash ]; then
  hash_of "$2"
  exit
fi
stale=0
for op in ops/*/op.cpp; do
  name=$(basename "$(dirname "$op")")
  record=tests/records/$name.json
  if [ ! -f "$record" ]; then
    echo "GPU record missing: $name"
    stale=$((stale + 1))
  elif ! grep -q "\"$(hash_of "$name")\"" "$record"; then
    echo "GPU record stale: $name"
    stale=$((stale + 1))
  fi
done
echo "GPU records: $stale missing or stale"
