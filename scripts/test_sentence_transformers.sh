#!/usr/bin/env bash
# Our text towers against sentence-transformers 6 itself (tests/interop/test_sentence_transformers.py), in .venv-st, which
# is made the first time (requirements-sentence-transformers.txt). Arguments go to pytest:
#   bash scripts/test_sentence_transformers.sh
#   bash scripts/test_sentence_transformers.sh -k prompt
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=.venv-st
stamp="$VENV/complete-$(cat requirements*.txt | cksum | cut -d' ' -f1)"
if [ ! -f "$stamp" ]; then
  [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --disable-pip-version-check -r requirements-sentence-transformers.txt
  "$VENV/bin/python" -m pip check
  touch "$stamp"
fi
export PATH="$PWD/$VENV/bin:$PATH" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export INTEROP=sentence-transformers # a missing package is an error, not a skipped test
exec python -m pytest tests/interop/test_sentence_transformers.py "$@"
