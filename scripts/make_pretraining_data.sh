#!/usr/bin/env bash
# ViD2R from visual-instruction conversations: filter, convert, look at the result (docs/VID2R.md).
#   bash scripts/make_pretraining_data.sh
#   NPROC=4 TEMPLATE=legacy-mire RULES=legacy-mire bash scripts/make_pretraining_data.sh
#   bash scripts/make_pretraining_data.sh --check
# Environment: DATA (conversation files), COLBERT, KB, OUT (folder), IMAGES, RULES, TEMPLATE, NPROC (processes),
# PRECISION (of the encoder: auto, fp32, fp16, bf16).
# Run it again and it reuses what is complete; kill it and the next run goes on where it was.
source "$(dirname "$0")/env.sh"
install requirements.txt
export TOKENIZERS_PARALLELISM=false

OUT=${OUT:-data/vid2r}
DATA=${DATA:-$OUT/llava_v1_5_mix665k.json $OUT/lvis_instruct4v_220k.json}
COLBERT=${COLBERT:-ckpts/colbertv2.0}
KB=${KB:-data/wiki/Wiki6M_ver_1_0.jsonl}
RULES=${RULES:-clean}
TEMPLATE=${TEMPLATE:-clean}
PRECISION=${PRECISION:-auto}
NPROC=${NPROC:-$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)}
[ "$NPROC" -ge 1 ] || NPROC=1
launch=(python)
[ "$NPROC" -eq 1 ] || launch=(python -m torch.distributed.run --standalone --nproc_per_node="$NPROC")
case "${1-}" in
  "") check=() ;;
  --check) check=(--check) ;;
  *) echo "usage: [OUT=... KB=... NPROC=n ...] bash $0 [--check]" >&2 && exit 2 ;;
esac

echo "== conversations to pairs"
# shellcheck disable=SC2086 (several files)
"${launch[@]}" -m runs.neural_filtering --data_paths $DATA --colbert_ckpt "$COLBERT" --rules "$RULES" \
  --precision "$PRECISION" \
  --save_path "$OUT/vid2r_wo_conversion.json" ${check[@]+"${check[@]}"}
echo "== responses to passages"
"${launch[@]}" -m runs.convert_tasks --data_path "$OUT/vid2r_wo_conversion.json" --colbert_ckpt "$COLBERT" \
  --db_pool "$KB" --indexing --template "$TEMPLATE" --precision "$PRECISION" \
  --save_path "$OUT/ViD2R.json" ${check[@]+"${check[@]}"}
echo "== statistics"
python -m runs.dataset_stats "$OUT/ViD2R.json" ${IMAGES:+--image_dir "$IMAGES"} ${check[@]+"${check[@]}"}
