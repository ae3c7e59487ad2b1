#!/usr/bin/env bash
# Every header compiles alone. Usage: check_headers.sh [COMPILER ARGS...]
# The three that need CUDA's headers are left to the CUDA build, which includes them in every kernel.
cd "$(dirname "$0")/../.."
find core autograd ops data nn apps -name '*.h' ! -path '*/ladder/*' ! -path 'core/cuda/check.h' ! -path 'core/cuda/launch.h' ! -path 'core/cuda/chain.h' |
  xargs -P "$(nproc)" -I{} sh -c 'printf "#include \"%s\"\n" {} | ${CXX:-c++} -std=c++20 -fopenmp -DOCCAM_CUDA=0 -fsyntax-only -I. "$@" -x c++ - || { echo "does not compile alone: {}"; exit 255; }' sh "$@"
