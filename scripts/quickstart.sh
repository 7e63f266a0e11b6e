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
extra=("visual.cache=$out/features" "$@")
if [ "${1:-}" = "--smoke" ]; then
  out=${OUT:-experiments/quickstart-smoke}
  extra=("visual.cache=$out/features" data.limit=8 train.steps=4 train.batch_size=8 train.warmup_steps=1
    train.eval_every=2 eval.valid_queries=8 "${@:2}")
fi

stage() {
  local start=$SECONDS
  echo "== $1"
  shift
  "$@"
  echo "== done in $((SECONDS - start)) s"
}

stage "towers" python scripts/prepare_towers.py --root ckpts
stage "visual features" python -m runs.run_visual_embedder --config_path $config "${extra[@]}"
for modality in image+question question image; do
  run=("data.modality=$modality" "run.out=$out/$modality" "${extra[@]}")
  [ "$modality" = image+question ] || run+=("eval.ablations=[]")
  stage "train: $modality" python train_retrieval.py --config_path $config "${run[@]}"
  stage "index: $modality" python -m runs.run_indexer --config_path $config "${run[@]}"
  stage "evaluate: $modality" python -m runs.evaluate_retrieval --reuse --config_path $config "${run[@]}"
done
echo
python -m runs.report --out "$out" "$out/image+question" "$out/question" "$out/image"
echo "everything took $((SECONDS - begin)) s besides the installation"
echo "ask it yourself:"
echo "  .venv/bin/python -m runs.search 'Which crops do farmers grow here?' --image data/flagfacts/images/twemoji/fr.png --run $out/image+question"
