# Sourced by pretrain_*_inbatch.sh and finetune_*_inbatch.sh: cache -> train -> index -> evaluate, then zero-shot.
#   CONFIG     the run's YAML, ours or an original one
#   OUT        where the run goes (experiments/<name of CONFIG>)
#   NPROC      processes (number of GPUs, else 1)
#   ZERO_SHOT  YAMLs of the same family, on whose data sets the trained weights are judged without further training;
#              the towers are the trained run's own
#   --check    say what every stage would do and what it misses; status 1 when one cannot be done
#   section.key=value ...   changes of CONFIG
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
install requirements-quickstart.txt
export TOKENIZERS_PARALLELISM=false

NPROC=${NPROC:-$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)}
[ "$NPROC" -ge 1 ] || NPROC=1
launch=(python)
[ "$NPROC" -eq 1 ] || launch=(python -m torch.distributed.run --standalone --nproc_per_node="$NPROC")

# stage NAME COMMAND ...: with --check a failure is counted and the next stage is looked at all the same
stage() {
  local start=$SECONDS
  echo "== $1"
  shift
  if [ ${#check[@]} -eq 0 ]; then
    "$@"
    echo "== done in $((SECONDS - start)) s"
  else
    "$@" "${check[@]}" || missing=1
  fi
}

# judge YAML OUT [option ...]: index and report of the weights at hand on the YAML's data set
judge() {
  local config=$1 out=$2
  shift 2
  stage "index: $config" python -m runs.run_indexer --config_path "$config" "run.out=$out" "$@"
  stage "evaluate: $config" "${launch[@]}" -m runs.evaluate_retrieval --config_path "$config" "run.out=$out" "$@"
}

# zero_shot YAML OUT [change ...]: features (by the trained run's own tower), index and report
zero_shot() {
  local config=$1 out=$2
  shift 2
  local words=(--checkpoint "$OUT" "$@" "visual.cache=$out/features")
  stage "visual features: $config" "${launch[@]}" -m runs.run_visual_embedder --config_path "$config" "${words[@]}"
  judge "$config" "$out" "${words[@]}"
}

inbatch() {
  local changes=() shared=() failed=()
  check=() missing=0
  for word in "$@"; do
    case "$word" in
      --check) check=(--check) ;;
      run.device=* | visual.* | index.* | eval.*) changes+=("$word") shared+=("$word") ;; # for every data set
      *=*) changes+=("$word") ;;
      *) echo "usage: [CONFIG=x.yaml NPROC=n ...] bash $0 [--check] [section.key=value ...]" >&2 && exit 2 ;;
    esac
  done
  OUT=${OUT:-experiments/$(basename "$CONFIG" .yaml)}
  local words=(${changes[@]+"${changes[@]}"})
  stage "visual features: $CONFIG" "${launch[@]}" -m runs.run_visual_embedder --config_path "$CONFIG" ${words[@]+"${words[@]}"}
  stage "train: $CONFIG" "${launch[@]}" train_retrieval.py --config_path "$CONFIG" "run.out=$OUT" ${words[@]+"${words[@]}"}
  judge "$CONFIG" "$OUT" ${words[@]+"${words[@]}"}
  for config in ${ZERO_SHOT:-}; do
    # A data set that is not here must not take the others' results with it; it counts at the end. (In the background,
    # because set -e does nothing in a subshell whose failure is looked at.)
    (
      set -e
      zero_shot "$config" "$OUT/zero_shot/$(basename "$config" .yaml)" ${shared[@]+"${shared[@]}"}
      exit $missing
    ) &
    wait $! || failed+=("$config")
  done
  if [ ${#failed[@]} -gt 0 ]; then
    echo "not evaluated zero-shot, for the reasons above: ${failed[*]}" >&2
    exit 1
  fi
  return $missing
}
