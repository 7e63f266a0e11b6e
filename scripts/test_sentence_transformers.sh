#!/usr/bin/env bash
# Our text towers against sentence-transformers 6 itself (tests/interop/test_sentence_transformers.py), in .venv-st, which
# is made the first time (requirements-sentence-transformers.txt). Arguments go to pytest:
#   bash scripts/test_sentence_transformers.sh
#   bash scripts/test_sentence_transformers.sh -k prompt
VENV=.venv-st
source "$(dirname "$0")/env.sh"
beside requirements-sentence-transformers.txt
export INTEROP=sentence-transformers # a missing package is an error, not a skipped test
exec python -m pytest tests/interop/test_sentence_transformers.py "$@"
