#!/usr/bin/env bash
# The test command: lint and the whole suite. Arguments go to pytest instead of the default selection:
#   bash scripts/test.sh                       # lint + everything, the fast sizes
#   bash scripts/test.sh --full                # lint + everything, the full counts
#   bash scripts/test.sh tests/golden -k mire  # only these tests
source "$(dirname "$0")/env.sh"

# The tests of pages want a real browser (tests/browser.py); where this may, it installs Debian's.
browser() {
  local name as=()
  [ -z "${CHROMIUM:-}" ] || return 0
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then return 0; fi
  done
  [ "$(id -u)" = 0 ] || as=(sudo -n)
  if command -v apt-get >/dev/null && { [ ${#as[@]} = 0 ] || "${as[@]}" true 2>/dev/null; }; then
    echo "== installing chromium for the tests of pages"
    "${as[@]}" apt-get update -qq && "${as[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null && return 0
  fi
  # Not the end: Playwright may have one of its own; else these tests skip loudly, or fail with NEEDS_BROWSER.
  echo "== no chromium, and it could not be installed: apt-get install chromium, or python -m playwright install chromium" >&2
}

install requirements-dev.txt
browser
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
