#!/usr/bin/env bash
# Our retrievers and indexes behind mteb's search protocol (tests/interop/test_mteb.py), in .venv-mteb, which is made the
# first time (requirements-mteb.txt). Arguments go to pytest:
#   bash scripts/test_mteb.sh
#   bash scripts/test_mteb.sh -k reranking
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv-mteb}
stamp="$VENV/complete-$(cat requirements*.txt | cksum | cut -d' ' -f1)"
if [ ! -f "$stamp" ]; then
  [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --disable-pip-version-check -r requirements-mteb.txt
  "$VENV/bin/python" -m pip check
  touch "$stamp"
fi
export PATH="$PWD/$VENV/bin:$PATH" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export INTEROP=mteb # a missing package is an error, not a skipped test
exec python -m pytest tests/interop/test_mteb.py "$@"
