#!/usr/bin/env bash
# Fails on an include that goes up the layers core < autograd < ops < data < nn < apps, on a CUDA header outside
# core/cuda and kernels, and on an op without its spec or README.
set -u
cd "$(dirname "$0")/../.."
bad=0
allowed=""
for layer in core autograd ops data nn apps; do
  allowed="${allowed:+$allowed|}$layer"
  found=$(grep -rnE '^#include "(core|autograd|ops|data|nn|apps)/' "$layer" --include='*.h' --include='*.cpp' --include='*.cu' --include='*.cuh' |
    grep -vE "#include \"($allowed)/")
  [ -z "$found" ] || { echo "upward include:"; echo "$found"; bad=1; }
done
found=$(grep -rnE '#include <(cuda|cublas|cudnn|nvtx)' core autograd ops data nn apps --include='*.h' --include='*.cpp' | grep -v '^core/cuda/')
[ -z "$found" ] || { echo "CUDA header outside core/cuda and .cu files:"; echo "$found"; bad=1; }
for op in ops/*/op.cpp; do
  folder=$(dirname "$op")
  for part in op.h spec.cpp README.md; do
    [ -f "$folder/$part" ] || { echo "$folder has no $part"; bad=1; }
  done
done
for folder in core autograd ops data nn apps tests core/* data/* nn/* apps/* tests/op_suite; do
  [ ! -d "$folder" ] || [ -f "$folder/README.md" ] || { echo "$folder has no README.md"; bad=1; }
done
exit $bad
