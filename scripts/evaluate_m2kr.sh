# PreFLMR's table: every subset of M2KR with every model: index -> search -> judge, then the runs beside the published
# numbers in experiments/m2kr/table (report.md, report.csv). A complete index is kept, an unfinished one goes on.
#
#   bash scripts/evaluate_m2kr.sh
#   MODELS=experiments/preflmr_finetune_evqa SUBSETS=EVQA bash scripts/evaluate_m2kr.sh
#
#   MODELS    checkpoints: folders, run folders or hub names
#   SUBSETS   of M2KR
#   DATA      folder with X_data and X_passages; or a hub name, downloaded into data/m2kr
#   IMAGES    folder of the pictures, one folder per subset: docs/M2KR.md
#   --check   say what would be done and what is missing
#   --limit N only the first N questions of every subset, for trying things out
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
install requirements-m2kr.txt
export TOKENIZERS_PARALLELISM=false

MODELS=${MODELS:-LinWeizheDragon/PreFLMR_ViT-B LinWeizheDragon/PreFLMR_ViT-L LinWeizheDragon/PreFLMR_ViT-G}
SUBSETS=${SUBSETS:-WIT IGLUE KVQA OVEN LLaVA Infoseek EVQA OKVQA MSMARCO}
DATA=${DATA:-data/m2kr}
IMAGES=${IMAGES:-data/m2kr_images}

check=() limit=()
while [ $# -gt 0 ]; do
  case "$1" in
    --check) check=(--check) ;;
    --limit) limit=(--limit "$2") && shift ;;
    *) echo "usage: [MODELS=... SUBSETS=... DATA=... IMAGES=...] bash $0 [--check] [--limit N]" >&2 && exit 2 ;;
  esac
  shift
done

images() {
  case "$1" in
    WIT | IGLUE) echo "$IMAGES/WIT/images" ;;
    KVQA) echo "$IMAGES/KVQA/KVQAimgs" ;;
    OVEN) echo "$IMAGES/OVEN" ;;
    LLaVA | OKVQA) echo "$IMAGES/OKVQA" ;;
    Infoseek) echo "$IMAGES/Infoseek/val" ;;
    EVQA) echo "$IMAGES/EVQA/images" ;;
    *) echo "$IMAGES" ;; # MSMARCO has no pictures
  esac
}

for model in $MODELS; do
  for subset in $SUBSETS; do
    name="${subset}_$(basename "$model")"
    words=(--dataset_name "m2kr.$subset" --dataset_hf_path "$DATA" --checkpoint "$model" ${check[@]+"${check[@]}"})
    echo "== $subset: $model"
    python -m runs.run_indexer "${words[@]}" --exp_name "$name" --n_bits 8
    python -m runs.evaluate_retrieval "${words[@]}" --index_name "$name.nbits=8" --image_dir "$(images "$subset")" ${limit[@]+"${limit[@]}"}
  done
done
[ ${#check[@]} -gt 0 ] || python -m runs.report --published m2kr --out experiments/m2kr/table experiments/m2kr
