#!/usr/bin/env bash
# The test command: lint and the whole suite. Arguments go to pytest instead of the default selection:
#   bash scripts/test.sh                       # lint + everything, the fast sizes
#   bash scripts/test.sh --full                # lint + everything, the full counts
#   bash scripts/test.sh tests/golden -k mire  # only these tests
source "$(dirname "$0")/env.sh"
install requirements-dev.txt
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false # parallel workers, one torch thread each

if [ "${1:-}" = "--full" ]; then
  export FULL_TESTS=1
  shift
fi
if [ $# -gt 0 ]; then
  exec python -m pytest "$@"
fi
ruff check .
ruff format --check .
exec python -m pytest -n "${WORKERS:-2}" --dist worksteal tests
