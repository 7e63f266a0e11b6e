#!/usr/bin/env bash
# The searcher in a browser, in one command: installs what it needs, trains and indexes the quickstart's model if that was
# not done yet (about 15 minutes on two cores), and serves it. Arguments go to python -m runs.serve:
#   bash scripts/demo.sh                        # http://127.0.0.1:8024
#   bash scripts/demo.sh --port 9000
#   bash scripts/demo.sh --run experiments/mine # another run: nothing is trained
source "$(dirname "$0")/env.sh"
install requirements-quickstart.txt requirements-demo.txt
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

if [[ ! " $* " =~ \ (-h|--(run|index|check|help))[=\ ] && ! -f "${OUT:-experiments/quickstart}/image+question/index/manifest.json" ]]; then
  bash scripts/quickstart.sh # env.sh has gone to the repository's root
fi
if [[ ! " $* " =~ \ --(run|index)[=\ ] ]]; then
  set -- --run "${OUT:-experiments/quickstart}/image+question" "$@"
fi
exec python -m runs.serve "$@"
