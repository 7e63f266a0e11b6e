#!/usr/bin/env bash
# From nothing to a trained, indexed and evaluated retriever on real images and passages, on a laptop CPU:
#   bash scripts/quickstart.sh            # about 15 minutes on two cores, once the packages are downloaded
#   bash scripts/quickstart.sh --smoke    # the same stages on a handful of records, in under 3 minutes
# Run it again and it reuses what is complete; kill it and the next run goes on where it was.
source "$(dirname "$0")/env.sh"
install requirements-quickstart.txt
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
begin=$SECONDS

config=cfgs/flagfacts_mire.yaml
out=${OUT:-experiments/quickstart}
changes=()
while [ $# -gt 0 ]; do
  case "$1" in
    --smoke)
      out=${OUT:-experiments/quickstart-smoke}
      changes+=(data.limit=8 train.steps=4 train.batch_size=8 train.warmup_steps=1 train.eval_every=2 eval.valid_queries=8)
      ;;
    --limit) changes+=("data.limit=$2") && shift ;;
    *=*) changes+=("$1") ;; # section.key=value
    *) echo "usage: bash scripts/quickstart.sh [--smoke] [--limit N] [section.key=value ...]" >&2 && exit 2 ;;
  esac
  shift
done
changes=("visual.cache=$out/features" ${changes[@]+"${changes[@]}"})

stage() {
  local start=$SECONDS
  echo "== $1"
  shift
  "$@"
  echo "== done in $((SECONDS - start)) s"
}

mkdir -p "$out"
stage "towers" bash -c 'set -o pipefail; python scripts/prepare_towers.py --root ckpts | tee "$0/towers.jsonl"' "$out"
downloads=$(python -c 'import json, sys; print(round(sum(json.loads(line)["download_s"] for line in open(sys.argv[1]))))' \
  "$out/towers.jsonl")
stage "visual features" python -m runs.run_visual_embedder --config_path $config "${changes[@]}"
for modality in image+question question image; do
  run=("data.modality=$modality" "run.out=$out/$modality" "${changes[@]}")
  [ "$modality" = image+question ] || run+=("eval.ablations=[]")
  stage "train: $modality" python train_retrieval.py --config_path $config "${run[@]}"
  stage "index: $modality" python -m runs.run_indexer --overwrite --config_path $config "${run[@]}"
  stage "evaluate: $modality" python -m runs.evaluate_retrieval --reuse --config_path $config "${run[@]}"
done
echo
python -m runs.report --out "$out" "$out/image+question" "$out/question" "$out/image"
echo "downloading the towers took $downloads s, everything else $((SECONDS - begin - downloads)) s (installation apart)"
echo "ask it yourself:"
echo "  .venv/bin/python -m runs.search 'Which crops do farmers grow here?' --image data/flagfacts/images/twemoji/fr.png --run $out/image+question"
