#!/usr/bin/env bash
# The main job on a small vision transformer and Fashion-MNIST. ./run demo calls this with the folder of programs.
set -euo pipefail
bin=$1
shift
begin=$SECONDS
echo "1 of 2: how sparse is each attention layer of the teacher?"
"$bin/profile_sparsity" apps/demo/profile.yaml out.dir=runs/demo-profile out.overwrite=true
echo
echo "2 of 2: replace the two sparsest and the two densest layers and train"
"$bin/distill" apps/demo/distill.yaml distill.profile=runs/demo-profile/summary.json out.dir=runs/demo out.overwrite=true "$@"
echo
echo "done in $((SECONDS - begin)) s"
echo "the layers:       runs/demo-profile/report.html"
echo "what it cost:     runs/demo/report.html"
