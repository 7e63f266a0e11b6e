#!/usr/bin/env bash
# Our whole suite, then the adapters for real, beside PyLate, fast-plaid, colbert-ai and faiss (requirements-interop.txt)
# in .venv-interop, which is made the first time (6 GB). Arguments go to pytest instead of the default selection:
#   bash scripts/test_interop.sh
#   bash scripts/test_interop.sh tests/interop -k faiss
set -euo pipefail
cd "$(dirname "$0")/.."
export VENV=.venv-interop # what the suite starts by scripts/env.sh runs in it too
stamp="$VENV/complete-$(cat requirements*.txt | cksum | cut -d' ' -f1)"
if [ ! -f "$stamp" ]; then
  [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --disable-pip-version-check -r requirements-interop.txt
  "$VENV/bin/python" -m pip check
  touch "$stamp"
fi
export PATH="$PWD/$VENV/bin:$PATH" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export INTEROP=1                                          # a missing package is an error, not a skipped test
export TORCH_EXTENSIONS_DIR="$PWD/$VENV/torch_extensions" # what colbert-ai compiles, kept for the next time

if [ $# -gt 0 ]; then
  exec python -m pytest "$@"
fi
exec python -m pytest -n "${WORKERS:-2}" --dist worksteal tests
