#!/usr/bin/env bash
# docs/fusions.md: train and judge every arm of cfgs/fusions over 3 seeds, then rewrite the page's tables and its plot.
#   bash scripts/compare_fusions.sh                      # about an hour on 2 free cores; goes on where it was stopped
#   bash scripts/compare_fusions.sh --tune               # first: choose cfgs/fusions/tuned.yaml anew
#   bash scripts/compare_fusions.sh --smoke              # the same stages on a handful of records
#   bash scripts/compare_fusions.sh --arms cls mire_clean --data flagfacts --seeds 1
source "$(dirname "$0")/env.sh"
install requirements-quickstart.txt requirements-wikilens.txt

for tower in minilm-l6 dinov2-small efficientnet-lite0; do
  [ -f "ckpts/$tower/config.json" ] || python scripts/prepare_towers.py --only "$tower"
done
[ -f data/wikilens/manifest.json ] || python scripts/build_wikilens.py --fetch --photos
[ $# -gt 0 ] || set -- --docs docs/fusions.md
python benchmarks/compare_fusions.py "$@"
