#!/usr/bin/env bash
# Every header compiles alone. Usage: check_headers.sh [COMPILER ARGS...]
cd "$(dirname "$0")/../.."
find core autograd ops data nn apps -name '*.h' ! -path '*/ladder/*' |
  xargs -P "$(nproc)" -I{} sh -c 'printf "#include \"%s\"\n" {} | ${CXX:-c++} -std=c++20 -fopenmp -DOCCAM_CUDA=0 -fsyntax-only -I. "$@" -x c++ - || { echo "does not compile alone: {}"; exit 255; }' sh "$@"
