#!/usr/bin/env bash
# Our whole suite, then the adapters for real, beside PyLate, fast-plaid, colbert-ai and faiss (requirements-interop.txt)
# in .venv-interop, which is made the first time (6 GB). Arguments go to pytest instead of the default selection:
#   bash scripts/test_interop.sh
#   bash scripts/test_interop.sh tests/interop -k faiss
export VENV=.venv-interop # what the suite starts by scripts/env.sh runs in it too
source "$(dirname "$0")/env.sh"
beside requirements-interop.txt
export INTEROP=1                                          # a missing package is an error, not a skipped test
export TORCH_EXTENSIONS_DIR="$PWD/$VENV/torch_extensions" # what colbert-ai compiles, kept for the next time

if [ $# -gt 0 ]; then
  exec python -m pytest "$@"
fi
exec python -m pytest -n "${WORKERS:-2}" --dist worksteal tests
