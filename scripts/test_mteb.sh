#!/usr/bin/env bash
# Our retrievers and indexes behind mteb's search protocol (tests/interop/test_mteb.py), in .venv-mteb, which is made the
# first time (requirements-mteb.txt). Arguments go to pytest:
#   bash scripts/test_mteb.sh
#   bash scripts/test_mteb.sh -k reranking
VENV=${VENV:-.venv-mteb}
source "$(dirname "$0")/env.sh"
beside requirements-mteb.txt
export INTEROP=mteb # a missing package is an error, not a skipped test
exec python -m pytest tests/interop/test_mteb.py "$@"
